"""Where the key set comes from. A source moves bytes; it does not know what they mean or whether they are good."""

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


def source_from(spec: str) -> KeySource:
    """The source that ``file:PATH`` or ``env:NAME`` names. Raises ``KeyRefused``; reads nothing yet."""
    kind, colon, rest = spec.partition(":")
    if colon and rest:
        if kind == "file":
            return FileSource(rest)
        if kind == "env":
            return EnvSource(rest)
    raise errors.KeyRefused("SEKISHO_KEYS must be file:PATH or env:NAME")  # the text itself may be a pasted key
