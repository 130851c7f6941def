"""Compact JWS (RFC 7515 §3.1): a payload and the proof that one of our keys signed it. Knows nothing of claims."""

from functools import lru_cache
from typing import Annotated, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from sekisho.errors import TokenHeaderRefused, TokenKeyUnknown, TokenMalformed
from sekisho.tokens.keyring import Header, Keyring
from sekisho.tokens.keys import KID_MAX_CHARS, STRICT_KID, Key
from sekisho.wire import WireError, b64url_decode, b64url_encode, json_object

MAX_TOKEN_CHARS: Final = 8192


class _Members(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The header members that are acted upon; one that we ignored would be one that we do not check.

    crit, b64, zip, jku, x5u and jwk have each been an attack (RFC 7515 §4.1.11, RFC 8725 §2.9, §3.10).
    """

    alg: str
    kid: Annotated[str, Meta(max_length=KID_MAX_CHARS)] | UnsetType = UNSET
    typ: str | UnsetType = UNSET


_MEMBERS: Final = msgspec.json.Decoder(_Members)


def sign(payload: bytes, key: Key, *, typ: str) -> str:
    """The compact JWS of ``payload``, signed by ``key``."""
    message = f"{_header_text(key.alg, key.kid, typ)}.{b64url_encode(payload)}"
    return f"{message}.{b64url_encode(key.material.sign(message.encode('ascii')))}"


@lru_cache(maxsize=64)  # the same few for every token
def _header_text(alg: str, kid: str, typ: str) -> str:
    return b64url_encode(msgspec.json.encode(_Members(alg, kid, typ)))


def verify(token: str | bytes, keyring: Keyring) -> bytes:
    """The payload of a compact JWS whose signature holds. Raises a ``TokenError``."""
    return verify_signed(token, keyring)[0]


def verify_signed(token: str | bytes, keyring: Keyring) -> tuple[bytes, Header]:
    """As ``verify``, with the header, which the signature covers."""
    # 1. Size and shape: three parts, before anything is decoded (RFC 7515 §7.1). That each part is the one base64url
    #    spelling of its bytes is seen where it is read: in steps 2, 3 and 4.
    if len(token) > MAX_TOKEN_CHARS:
        raise TokenMalformed("longer than 8 KiB")
    text = token if isinstance(token, str) else token.decode("latin-1")
    if not text.isascii():
        raise TokenMalformed("not ASCII")
    message, _, signature = text.rpartition(".")
    header_part, _, payload_part = message.partition(".")
    if not (header_part and payload_part and signature) or "." in payload_part:
        raise TokenMalformed("not three parts")

    # 2. The header names the key, and the key decides the algorithm (RFC 8725 §3.1). A header that once stood over a
    #    signature that held is known by its exact text.
    known = keyring.headers.get(header_part)
    if known is not None:
        key = known.key
    else:
        members = _read_members(header_part, keyring)
        key = keyring.find(kid=members.kid if isinstance(members.kid, str) else None, alg=members.alg)

    # 3. The signature, over the text as it came (RFC 7515 §5.2).
    key.material.verify(message.encode(), signature)

    # 4. From here on it is what our key's holder wrote; it must still have one reading only (RFC 7515 §4).
    try:
        payload = b64url_decode(payload_part)
    except WireError as error:
        raise TokenMalformed(f"payload: {error}") from None
    return payload, known or _learn(header_part, members, key, keyring)


def _read_members(part: str, keyring: Keyring) -> _Members:
    """What the header says, to find the key with. Cheap, so that garbage is; not yet strict about duplicate names."""
    if len(part) > keyring.max_header_chars:
        raise TokenKeyUnknown("the header is longer than any that names a key of this ring")
    try:
        return _MEMBERS.decode(b64url_decode(part))
    except WireError as error:
        raise TokenMalformed(f"header: {error}") from None
    except msgspec.ValidationError:
        raise TokenHeaderRefused("header members beyond alg, kid and typ, or not texts") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise TokenMalformed("header: not JSON") from None


def _learn(part: str, members: _Members, key: Key, keyring: Keyring) -> Header:
    """Of a header that the signature covers. The strict reader has the last word: duplicate names, above all."""
    try:
        json_object(b64url_decode(part))
    except WireError as error:
        raise TokenMalformed(f"header: {error}") from None
    header = Header(
        key=key,
        media_type=_media_type(members.typ) if isinstance(members.typ, str) else "",
        strict_kid=isinstance(members.kid, str) and STRICT_KID.fullmatch(members.kid) is not None,
    )
    keyring.learn(part, header)
    return header


def _media_type(typ: str) -> str:
    """``typ`` without the prefix that may be left out, in small letters; these are ASCII's (RFC 7515 §4.1.9)."""
    return typ.lower().removeprefix("application/") if typ.isascii() else typ
