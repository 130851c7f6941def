"""Who is calling, as far as the request tells."""

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Shown in the list of devices and recorded at a theft; decides nothing but throttling.

    ``device_token`` is what the device was given when it last signed in. It proves nothing and opens nothing: a known
    device is only throttled apart from everyone else.
    """

    address: str
    user_agent: str
    device_token: str | None = field(default=None, repr=False)

    @property
    def device_hash(self) -> bytes | None:
        """What the database knows of the device token."""
        return None if self.device_token is None else device_hash(self.device_token)


def device_hash(device_token: str) -> bytes:
    """SHA-256; the token has 256 random bits, so nothing slower is needed."""
    return hashlib.sha256(device_token.encode("utf-8", "replace")).digest()
