"""Which passwords may be chosen: by length and a list of common ones, not by composition (NIST SP 800-63B-4 §3.1.1.2).

Asked at sign-up and at a password change only: an existing password keeps working whatever the policy becomes.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

from sekisho import errors
from sekisho.passwords import normalise

DEFAULT_MIN_LENGTH: Final = 15  # code points: NIST SP 800-63B-4 §3.1.1.2 for a password that is the only factor
MAX_LENGTH: Final = 256  # code points after NFC, hence at most 1 KiB of UTF-8


def check_new_password(
    password: str,
    *,
    email: str,
    canonical_email: str | None = None,
    min_length: int = DEFAULT_MIN_LENGTH,
    max_bytes: int | None = None,
    service_names: Sequence[str] = (),
    field: str = "password",
) -> None:
    """Returns when an account with the address ``email`` may take this password.

    ``min_length`` counts code points after NFC; ``max_bytes`` is the hash algorithm's limit in UTF-8 bytes, if it has
    one. The address, its local part, the service's names and the list (OWASP ASVS 6.2.4, 6.2.11) are compared with the
    whole password and without regard to case. ``field`` is the member of the request that an error names.

    Raises ``PasswordTooShort``, ``PasswordTooLong``, ``PasswordContainsContext``, ``PasswordCommon``, and, for a
    lone surrogate, ``InputError``.
    """
    text = normalise(password, field=field)
    if len(text) < min_length:
        raise errors.PasswordTooShort(field)
    if len(text) > MAX_LENGTH:
        raise errors.PasswordTooLong(field, "more than 256 code points")
    if max_bytes is not None and len(text.encode()) > max_bytes:
        raise errors.PasswordTooLong(field, f"more than {max_bytes} bytes")
    addresses = [email] if canonical_email is None else [email, canonical_email]
    local_parts = [address.rpartition("@")[0] for address in addresses]
    folded = _fold(text)
    if folded in {_fold(word) for word in (*addresses, *local_parts, *service_names)}:
        raise errors.PasswordContainsContext(field)
    if folded in common_passwords():
        raise errors.PasswordCommon(field)


@dataclass(frozen=True, kw_only=True)
class PasswordRules:
    """The rules of one service, as ``check_new_password`` takes them."""

    min_length: int
    max_bytes: int | None
    service_names: Sequence[str]

    def check(self, password: str, *, email: str, canonical_email: str, field: str = "password") -> None:
        """As ``check_new_password``."""
        check_new_password(
            password,
            email=email,
            canonical_email=canonical_email,
            min_length=self.min_length,
            max_bytes=self.max_bytes,
            service_names=self.service_names,
            field=field,
        )


@cache
def common_passwords() -> frozenset[str]:
    """The bundled list, case-folded; read once, at the first password that is chosen."""
    text = files("sekisho").joinpath("data", "common_passwords.txt").read_text(encoding="utf-8")
    return frozenset(line for line in text.splitlines() if line and not line.startswith("#"))


def _fold(text: str) -> str:
    """Case-folded; in NFC before and after, because folding can undo it (Unicode §3.13, D145)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
