"""Where the key set comes from. What is read is bytes; whether they are good keys the reader decides."""

from typing import Protocol

from sekisho import errors
from sekisho.sources.local import EnvSource, FileSource

__all__ = ["EnvSource", "FileSource", "KeySource", "source_from"]


class KeySource(Protocol):
    """One place that holds one document. Blocking; nothing here is on a request's path."""

    @property
    def name(self) -> str:
        """What an operator calls it, as in SEKISHO_KEYS."""

    @property
    def writable(self) -> bool:
        """Whether ``store`` can do anything but refuse."""

    def load(self) -> bytes | None:
        """The document; None if there is none yet. Raises ``KeyRefused`` if it must not be used as it is stored."""

    def store(self, document: bytes, *, expected: bytes | None) -> None:
        """Replaces ``expected``, which ``load`` gave before, with ``document``, in one step and for good.

        Raises ``KeyRefused`` if something else is stored by now: of two operators who rotate at once, one must see what
        the other has done.
        """


def source_from(
    spec: str,
    *,
    aws_region: str | None = None,
    aws_endpoint_url: str | None = None,
    aws_role_arn: str | None = None,
) -> KeySource:
    """The source that ``file:PATH``, ``env:NAME`` or ``aws:SECRET_ID`` names; it reads nothing yet.

    Raises ``KeyRefused``, and ``StartRefused`` where boto3 is missing.
    """
    kind, colon, rest = spec.partition(":")
    if colon and rest:
        if kind == "file":
            return FileSource(rest)
        if kind == "env":
            return EnvSource(rest)
        if kind == "aws":
            try:
                from sekisho.sources.aws import AwsSource  # noqa: PLC0415 - boto3 is for those who use it
            except ModuleNotFoundError as error:
                if (error.name or "").startswith("sekisho"):
                    raise
                raise errors.StartRefused(
                    f"SEKISHO_KEYS: keys in AWS need {error.name}: install sekisho[aws]"
                ) from None
            return AwsSource(rest, region=aws_region, endpoint_url=aws_endpoint_url, role_arn=aws_role_arn)
    # The text itself may be a pasted key.
    raise errors.KeyRefused("SEKISHO_KEYS must be file:PATH, env:NAME or aws:SECRET_ID")
