"""E-mail addresses: kept as typed, compared in canonical form."""

import unicodedata
from dataclasses import dataclass
from typing import Final

from email_validator import EmailNotValidError, validate_email

from sekisho.errors import EmailInvalid

_MAX_CHARS: Final = 254  # RFC 5321 §4.5.3.1.3


@dataclass(frozen=True)
class EmailAddress:
    """An address as typed, and the form in which two spellings of one address are equal."""

    typed: str
    canonical: str


def parse_email(text: str) -> EmailAddress:
    """Checks the form and makes the canonical one. Raises ``EmailInvalid``.

    The domain in its ASCII form (IDNA), the local part in lower case: RFC 5321 lets hosts tell upper from lower case,
    none of note does, and ``A@x`` beside ``a@x`` would be an impostor's account. Whether mail arrives there is not
    asked: a name in a private network is as good.
    """
    if len(text) > _MAX_CHARS:
        raise EmailInvalid("email", "longer than 254 characters")
    try:
        checked = validate_email(text, check_deliverability=False, globally_deliverable=False)
    except (EmailNotValidError, UnicodeError) as error:
        raise EmailInvalid("email", type(error).__name__) from None
    local = unicodedata.normalize("NFKC", checked.local_part).casefold()
    return EmailAddress(typed=text, canonical=f"{local}@{checked.ascii_domain}")


def canonical_or_raw(text: str) -> str:
    """The canonical form; for what is no address, the text itself, which then simply matches no account."""
    try:
        return parse_email(text).canonical
    except EmailInvalid:
        return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "�")
