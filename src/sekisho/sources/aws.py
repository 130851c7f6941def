"""The key set as a secret of AWS Secrets Manager, and the function that rotates it there."""

import contextlib
import uuid

from sekisho.errors import KeyRefused
from sekisho.sources.aws_rotation import rotate
from sekisho.sources.secrets_manager import MAX_BYTES, SecretsManager
from sekisho.tokens.turnover import proven

__all__ = ["AwsSource", "rotate"]


class AwsSource:
    """The secret's current value is the key set. A new one is put beside it, tested there, and promoted.

    Unlike the other sources it knows what a good key set is: what is promoted counts on every node at once, and from
    then on nothing but AWSPREVIOUS leads back.
    """

    def __init__(
        self,
        secret_id: str,
        *,
        region: str | None = None,
        endpoint_url: str | None = None,
        role_arn: str | None = None,
    ) -> None:
        """``secret_id``: a name or an ARN. What is None is left to boto3's own chain."""
        self._secret = SecretsManager(secret_id, region=region, endpoint_url=endpoint_url, role_arn=role_arn)

    @property
    def name(self) -> str:
        """``aws:SECRET_ID``, and the region if it was given."""
        region = None if self._secret.is_arn else self._secret.region
        return f"aws:{self._secret.secret_id}" + (f" ({region})" if region else "")

    @property
    def writable(self) -> bool:
        """True; whether AWS lets us is seen when storing."""
        return True

    def load(self) -> bytes | None:
        """The current value, in one call; None if there is no such secret, or no value yet. Raises ``KeyRefused``."""
        current = self._secret.read(attempts=1)  # whoever looks again in a minute need not insist
        return None if current is None else current.document

    def store(self, document: bytes, *, expected: bytes | None) -> None:
        """Puts ``document`` as AWSPENDING, reads it back, tests it, and makes it AWSCURRENT if that has not changed.

        Raises ``KeyRefused`` if it has, if the document is no good key set, or if AWS refuses.
        """
        if len(document) > MAX_BYTES:
            raise KeyRefused(f"a secret holds {MAX_BYTES} bytes, and the key set is larger: use fewer or shorter keys")
        proven(document)
        before = self._secret.read()
        if (None if before is None else before.document) != expected:
            raise KeyRefused(f"{self.name} has changed meanwhile: read it again and repeat")
        version_id = str(uuid.uuid4())
        if not self._secret.put(version_id, document):
            self._create(version_id, document)
            return
        try:
            self._test(version_id, document)
            self._secret.make_current(version_id, instead_of=None if before is None else before.id)
        finally:
            with contextlib.suppress(KeyRefused):
                self._secret.drop_pending(version_id)

    def _create(self, version_id: str, document: bytes) -> None:
        if self._secret.is_arn:
            raise KeyRefused(f"there is no secret {self._secret.secret_id}: make it, or set SEKISHO_KEYS to its name")
        self._secret.create(version_id, document)

    def _test(self, version_id: str, document: bytes) -> None:
        pending = self._secret.read(version_id)
        if pending is None or pending.document != document:
            raise KeyRefused(f"{self.name}: what was put is not what is read back")
        proven(pending.document)
