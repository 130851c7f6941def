"""The services that verify tokens elsewhere: each has a credential, with which it may follow and ask the issuer."""

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sekisho.errors import InputError, VerifierRefused
from sekisho.storage.ports import Storage
from sekisho.storage.rows import VerifierRow

PREFIX: Final = "sekisho_vc_"  # fixed, so that secret scanners know it
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CREDENTIAL: Final = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, kw_only=True)
class Verifiers:
    """Makes, lists, removes and checks their credentials."""

    storage: Storage

    async def add(self, name: str) -> str:
        """The credential, which is shown this once: only its SHA-256 is kept. Raises ``InputError``."""
        if not _NAME.fullmatch(name):
            raise InputError("name", "a verifier's name is 1 to 64 characters of A-Z, a-z, 0-9, '.', '_' and '-'")
        credential = PREFIX + secrets.token_urlsafe(32)
        hashed = _hashed(credential)
        if not await self.storage.write(lambda tx: tx.verifiers.add(name, credential_hash=hashed, now_us=tx.now_us())):
            raise InputError("name", f"there is a verifier {name} already: remove it first, or take another name")
        return credential

    async def remove(self, name: str) -> None:
        """Its credential counts no more; streams that are open end within minutes. Raises ``InputError``."""
        if not await self.storage.write(lambda tx: tx.verifiers.remove(name)):
            raise InputError("name", f"there is no verifier {name}")

    async def all(self) -> Sequence[VerifierRow]:
        """By name."""
        return await self.storage.read(lambda tx: tx.verifiers.all())

    async def check(self, credential: str) -> str:
        """Whose credential it is. Raises ``VerifierRefused``. What cannot be one never reaches the database."""
        if not _CREDENTIAL.fullmatch(credential):
            raise VerifierRefused
        hashed = _hashed(credential)
        name = await self.storage.read(lambda tx: tx.verifiers.name_of(hashed))
        if name is None:
            raise VerifierRefused
        return name


def _hashed(credential: str) -> bytes:
    # Plain SHA-256: there are 256 random bits in it, nothing to guess.
    return hashlib.sha256(credential.encode("ascii")).digest()
