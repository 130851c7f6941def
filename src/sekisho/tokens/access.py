"""Access tokens: RFC 9068 JWTs. Issue one; read one whose signature holds."""

import os
from typing import Annotated, Final, TypeAlias
from uuid import UUID

import msgspec
from msgspec import Meta

from sekisho.errors import KeyRefused, TokenClaimsInvalid, TokenHeaderRefused, TokenMalformed
from sekisho.tokens import jws
from sekisho.tokens.keyring import Keyring
from sekisho.tokens.keys import Key
from sekisho.wire import MAX_NUMERIC_DATE, MAX_STRING, WireError, json_object

TYP: Final = "at+jwt"
CLIENT_ID: Final = "sekisho"
_JTI_BYTES: Final = 12  # two of 10^12 tokens share theirs with a probability below 10^-5
_BACKSLASH: Final = ord("\\")

_Text: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_STRING)]
_Texts: TypeAlias = tuple[_Text, ...]
# Whole seconds: a fraction or a text is refused rather than rounded or read (CVE-2026-25537).
_Date: TypeAlias = Annotated[int, Meta(gt=0, lt=MAX_NUMERIC_DATE)]


class AccessClaims(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What a verified access token says (RFC 9068 §2.2), as it says it. Times are NumericDate seconds.

    From a token only ``read`` makes one, after its signature held: a function that takes ``AccessClaims`` cannot be
    handed unverified text.
    """

    iss: _Text
    sub: _Text
    aud: _Text | Annotated[_Texts, Meta(min_length=1)]
    exp: _Date
    iat: _Date
    jti: _Text
    client_id: _Text
    sid: _Text
    nbf: _Date | None = None
    roles: _Texts = ()

    def is_for(self, audience: str) -> bool:
        """Whether ``aud`` is this audience, or a list that contains it (RFC 7519 §4.1.3)."""
        return self.aud == audience or (isinstance(self.aud, tuple) and audience in self.aud)


_DECODER: Final = msgspec.json.Decoder(AccessClaims)
_ENCODER: Final = msgspec.json.Encoder()


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
    """A signed access token. ``issued_at`` and ``expires_at`` are NumericDate seconds.

    Raises ``KeyRefused`` for a key of another purpose, and ``ValueError`` for a token that would be too long.
    """
    if key.purpose != "sign":
        raise KeyRefused(f"key {key.kid} is for {key.purpose}, and signs no access tokens")
    claims = AccessClaims(
        iss=issuer,
        sub=subject,
        aud=audience,
        exp=expires_at,
        iat=issued_at,
        jti=os.urandom(_JTI_BYTES).hex(),
        client_id=CLIENT_ID,
        sid=session_id,
        roles=roles,
    )
    token = jws.sign(_ENCODER.encode(claims), key, typ=TYP)
    if len(token) > jws.MAX_TOKEN_CHARS:
        raise ValueError("the access token would be longer than 8 KiB, which no verifier takes: too many roles")
    return token


def read(token: str, keyring: Keyring) -> AccessClaims:
    """The claims of an access token that one of ``keyring`` signed and that has the right shape, expired or not.

    They are not compared with anything yet: ``Verifier.verify`` does that, except where an expired token still counts
    (logout). Raises a ``TokenError``.
    """
    # Steps 1 to 4 are those of jws.verify_signed.
    data, header = jws.verify_signed(token, keyring)

    # 5. An access token and no other JWT of the issuer (RFC 9068 §4, RFC 8725 §3.11), with a kid of plain letters.
    if header.media_type != TYP:
        raise TokenHeaderRefused("typ is not at+jwt")
    if not header.strict_kid:
        raise TokenHeaderRefused("kid is missing or not of 1 to 64 letters, digits, - and _")

    # 6. Every claim is there and of its type (RFC 9068 §2.2, RFC 7519 §4.1).
    try:
        claims = _DECODER.decode(data)
    except msgspec.ValidationError:
        raise TokenClaimsInvalid("a claim is missing, of the wrong type, empty or too long") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise TokenMalformed("payload: not JSON in UTF-8") from None

    # 7. No other reader would read other claims (RFC 7519 §4, RFC 8259 §4). What we would write in the same way, byte
    #    for byte and without escapes, has no second reading; for all else the strict reader is asked.
    if _BACKSLASH in data or _ENCODER.encode(claims) != data:
        _refuse_two_readings(data, claims)

    # 8. Only users have sessions here; a subject that is the client is a client's token (RFC 9700 §4.15).
    if claims.sub == claims.client_id:
        raise TokenClaimsInvalid("sub is the client")
    return claims


def _refuse_two_readings(data: bytes, claims: AccessClaims) -> None:
    try:
        members = json_object(data)
    except WireError as error:
        raise TokenMalformed(f"payload: {error}") from None
    if members.get("roles") == []:
        del members["roles"]  # no roles are written as none, or as an empty list
    written = _ENCODER.encode(claims)
    if _ENCODER.encode({name: members[name] for name in claims.__struct_fields__ if name in members}) != written:
        raise TokenClaimsInvalid("a claim is not written as it is read")  # null for nothing, above all
    texts = (value for value in msgspec.structs.astuple(claims) if isinstance(value, str | tuple))
    if any("\0" in "".join(text) for text in texts):
        raise TokenClaimsInvalid("NUL in a claim")
