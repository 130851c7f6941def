"""The members of a JWK as bytes and numbers, and back (RFC 7518 §6). Readers raise ``KeyRefused`` or ``WireError``."""

from collections.abc import Mapping
from typing import Any, Final

from sekisho.errors import KeyRefused
from sekisho.wire import b64url_decode, b64url_encode

P256_BYTES: Final = 32


def octets(jwk: Mapping[str, Any], name: str) -> bytes:
    """The bytes of a member."""
    value = jwk.get(name)
    if not isinstance(value, str):
        raise KeyRefused(f"member {name} is missing or not a text")
    return b64url_decode(value)


def integer(jwk: Mapping[str, Any], name: str) -> int:
    """The number of a member of an RSA key."""
    return int.from_bytes(octets(jwk, name), "big")


def coordinate(jwk: Mapping[str, Any], name: str) -> int:
    """The number of a member of a P-256 key: full size, leading zeros kept (RFC 7518 §6.2.1.2)."""
    data = octets(jwk, name)
    if len(data) != P256_BYTES:
        raise KeyRefused(f"member {name} is not 32 bytes long")
    return int.from_bytes(data, "big")


def coordinate_text(number: int) -> str:
    """As ``coordinate`` reads it."""
    return b64url_encode(number.to_bytes(P256_BYTES, "big"))


def integer_text(number: int) -> str:
    """As ``integer`` reads it, without leading zeros (RFC 7518 §2, Base64urlUInt)."""
    return b64url_encode(number.to_bytes((number.bit_length() + 7) // 8, "big"))


def raw_public_keys(members: Mapping[str, str]) -> set[bytes]:
    """The public key of these members in the encodings that carry no sign of being one (RFC 8032 §5.1.2, SEC 1 §2.3.3).

    Empty for RSA and for a secret.
    """
    if "x" not in members:
        return set()
    x = octets(members, "x")
    y = octets(members, "y") if "y" in members else b""
    return {x, b"\x02" + x, b"\x03" + x, b"\x04" + x + y}
