"""Access tokens: RFC 9068 JWTs. Issue one, read one whose signature holds, check what it claims."""

import json
import secrets
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

import msgspec

from sekisho.errors import TokenClaimsInvalid, TokenExpired, TokenHeaderRefused, TokenMalformed, TokenNotYetValid
from sekisho.tokens import jws
from sekisho.tokens.keyring import Keyring
from sekisho.tokens.keys import STRICT_KID, Key
from sekisho.wire import MAX_NUMERIC_DATE, WireError, json_object

TYP: Final = "at+jwt"
_TYPES: Final = frozenset({"at+jwt", "application/at+jwt"})
CLIENT_ID: Final = "sekisho"


class AccessClaims(msgspec.Struct, frozen=True, kw_only=True):
    """What a verified access token says (RFC 9068 §2.2). Times are NumericDate seconds.

    Only ``read`` makes one from a token, so a function that takes ``AccessClaims`` cannot be handed unverified text.
    """

    iss: str
    sub: str
    aud: tuple[str, ...]
    exp: int
    iat: int
    jti: str
    client_id: str
    sid: str
    nbf: int | None = None
    roles: tuple[str, ...] = ()


def account_and_session(claims: AccessClaims) -> tuple[UUID, UUID]:
    """The ids in ``sub`` and ``sid`` of a token that Sekisho issued. Raises ``TokenClaimsInvalid`` for any other."""
    try:
        return UUID(claims.sub), UUID(claims.sid)
    except ValueError:
        raise TokenClaimsInvalid("sub or sid is not an id of this issuer") from None


def issue(
    key: Key,
    *,
    issuer: str,
    audience: str,
    subject: str,
    session_id: str,
    issued_at: int,
    expires_at: int,
    roles: tuple[str, ...] = (),
) -> str:
    """A signed access token. ``issued_at`` and ``expires_at`` are NumericDate seconds."""
    claims: dict[str, object] = {
        "iss": issuer,
        "sub": subject,
        "aud": audience,
        "exp": expires_at,
        "iat": issued_at,
        "jti": secrets.token_urlsafe(16),
        "client_id": CLIENT_ID,
        "sid": session_id,
    }
    if roles:
        claims["roles"] = roles
    payload = json.dumps(claims, separators=(",", ":"), ensure_ascii=False).encode()
    return jws.sign(payload, key, typ=TYP)


def read(token: str, keyring: Keyring) -> AccessClaims:
    """The claims of an access token that one of ``keyring`` signed and that has the right shape, expired or not.

    Its claims are not compared with anything yet: follow with ``check``, except where an expired token still counts
    (logout). Raises a ``TokenError``.
    """
    signed = jws.verify_signed(token, keyring)
    # The type is exactly an access token's, so that no other JWT of ours passes for one (RFC 9068 §4, RFC 8725 §3.11).
    if signed.typ is None or signed.typ.lower() not in _TYPES or not signed.typ.isascii():
        raise TokenHeaderRefused("typ is not at+jwt")
    if signed.kid is None or not STRICT_KID.fullmatch(signed.kid):
        raise TokenHeaderRefused("kid is missing or not of 1 to 64 letters, digits, - and _")
    try:
        payload = json_object(signed.payload)
    except WireError as error:
        raise TokenMalformed(f"payload: {error}") from None
    return AccessClaims(
        iss=_text(payload, "iss"),
        sub=_text(payload, "sub"),
        aud=_audience(payload),
        exp=_date(payload, "exp"),
        iat=_date(payload, "iat"),
        jti=_text(payload, "jti"),
        client_id=_text(payload, "client_id"),
        sid=_text(payload, "sid"),
        nbf=_date(payload, "nbf") if "nbf" in payload else None,
        roles=_texts(payload, "roles") if "roles" in payload else (),
    )


def check(
    claims: AccessClaims,
    *,
    expected_issuer: str,
    expected_audience: str,
    now: int,
    leeway_s: int,
    max_lifetime_s: int,
) -> None:
    """Raises a ``TokenError`` unless the claims are for us and for now (RFC 9068 §4, RFC 7519 §4.1)."""
    if claims.iss != expected_issuer:
        raise TokenClaimsInvalid("iss is not the expected issuer")
    if expected_audience not in claims.aud:
        raise TokenClaimsInvalid("aud does not contain the expected audience")
    # Only users have sessions here; a subject that is the client is a client's token, not a user's (RFC 9700 §4.15).
    if claims.sub == claims.client_id:
        raise TokenClaimsInvalid("sub is the client")
    if now >= claims.exp + leeway_s:
        raise TokenExpired
    if claims.iat > now + leeway_s or (claims.nbf is not None and claims.nbf > now + leeway_s):
        raise TokenNotYetValid
    # A longer life than the issuer ever gives is a sign of a stolen key, and would outlive the revocation entries.
    if not 0 < claims.exp - claims.iat <= max_lifetime_s:
        raise TokenClaimsInvalid("the lifetime is longer than allowed")


def _text(payload: Mapping[str, Any], name: str) -> str:
    value = payload.get(name)
    if not isinstance(value, str) or not value or "\0" in value:
        raise TokenClaimsInvalid(f"{name} is missing or not a text")
    return value


def _texts(payload: Mapping[str, Any], name: str) -> tuple[str, ...]:
    values = payload[name]
    if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
        raise TokenClaimsInvalid(f"{name} is not a list of texts")
    return tuple(values)


def _audience(payload: Mapping[str, Any]) -> tuple[str, ...]:
    value = payload.get("aud")
    if isinstance(value, str) and value:
        return (value,)
    if isinstance(value, list) and value:
        return _texts(payload, "aud")
    raise TokenClaimsInvalid("aud is missing or empty")


def _date(payload: Mapping[str, Any], name: str) -> int:
    value = payload.get(name)
    # bool is an int to Python; a fraction or a text is refused rather than rounded or read (CVE-2026-25537).
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < MAX_NUMERIC_DATE:
        raise TokenClaimsInvalid(f"{name} is missing or not a time in whole seconds")
    return value
