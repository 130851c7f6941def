"""Compact JWS (RFC 7515 §3.1): a payload and the proof that one of our keys signed it. Knows nothing of claims."""

import json
import re
from typing import Any, Final, NamedTuple

from sekisho.errors import TokenHeaderRefused, TokenMalformed
from sekisho.tokens.keyring import Keyring
from sekisho.tokens.keys import KID_MAX_CHARS, Key
from sekisho.wire import WireError, b64url_decode, b64url_encode, json_object

MAX_TOKEN_CHARS: Final = 8192

_COMPACT: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)", re.ASCII)
_HEADER_MEMBERS: Final = frozenset({"alg", "kid", "typ"})


class Signed(NamedTuple):
    """A payload whose signature holds."""

    payload: bytes
    key: Key
    kid: str | None
    typ: str | None


def sign(payload: bytes, key: Key, *, typ: str) -> str:
    """The compact JWS of ``payload``, signed by ``key``."""
    header = json.dumps({"alg": key.alg, "kid": key.kid, "typ": typ}, separators=(",", ":"))
    message = f"{b64url_encode(header.encode())}.{b64url_encode(payload)}"
    return f"{message}.{b64url_encode(key.material.sign(message.encode('ascii')))}"


def verify(token: str | bytes, keyring: Keyring) -> bytes:
    """The payload of a compact JWS whose signature holds. Raises a ``TokenError``."""
    return verify_signed(token, keyring).payload


def verify_signed(token: str | bytes, keyring: Keyring) -> Signed:
    """As ``verify``, with the header's ``kid`` and ``typ``, which are covered by the signature."""
    # 1. Size and shape, before anything is decoded (RFC 8725 §3.14).
    header_part, payload_part, signature_part = _parts(token)
    # 2. The header: alg, kid and typ, nothing else. A member we do not act upon would be a member we ignore; crit,
    #    b64, zip, jku, x5u and jwk have each been an attack (RFC 7515 §4.1.11, RFC 8725 §2.4, §3.10).
    header = _header(header_part)
    # 3. The key, which decides the algorithm (RFC 8725 §3.1).
    key = keyring.find(kid=header.get("kid"), alg=header.get("alg"))
    # 4. The signature over the text as it came (RFC 7515 §5.2).
    try:
        payload, signature = b64url_decode(payload_part), b64url_decode(signature_part)
    except WireError as error:
        raise TokenMalformed(str(error)) from None
    key.material.verify(f"{header_part}.{payload_part}".encode("ascii"), signature)
    return Signed(payload, key, header.get("kid"), header.get("typ"))


def _parts(token: str | bytes) -> tuple[str, str, str]:
    if len(token) > MAX_TOKEN_CHARS:
        raise TokenMalformed("longer than 8 KiB")
    if isinstance(token, bytes):
        try:
            token = token.decode("ascii")
        except UnicodeDecodeError:
            raise TokenMalformed("not ASCII") from None
    match = _COMPACT.fullmatch(token)
    if match is None:
        raise TokenMalformed("not three base64url parts")
    header, payload, signature = match.groups()
    return header, payload, signature


def _header(part: str) -> dict[str, Any]:
    try:
        header = json_object(b64url_decode(part))
    except WireError as error:
        raise TokenMalformed(f"header: {error}") from None
    if not header.keys() <= _HEADER_MEMBERS:
        raise TokenHeaderRefused("header members beyond alg, kid and typ")
    for name in ("kid", "typ"):
        if name in header and not isinstance(header[name], str):
            raise TokenHeaderRefused(f"{name} is not a text")
    if len(header.get("kid", "")) > KID_MAX_CHARS:
        raise TokenHeaderRefused("kid is longer than 256 characters")
    return header
