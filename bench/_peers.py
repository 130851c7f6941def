"""The libraries that verify and sign beside us, each used as its documentation advises, its keys prepared once.

All check the same: signature, exp, iss and aud. All sign the same claims under the same header.
"""

import base64
import hashlib
import json
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple, TypeAlias
from uuid import uuid4

import authlib.deprecate  # first: it asks to see every warning of its own
import jose.jwk
import jose.jwt
import joserfc.jwk
import joserfc.jwt
import jwcrypto.jwk
import jwcrypto.jwt
import jwt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from joserfc.errors import SecurityWarning

from sekisho.tokens import access
from sekisho.tokens.keys import Key

with warnings.catch_warnings(action="ignore"):  # this part of it has become joserfc; many programs still use it
    import authlib.jose

try:
    import ryjwt
except ImportError:  # it needs Python 3.12
    ryjwt = None

warnings.simplefilter("ignore", SecurityWarning)  # joserfc: the name EdDSA is deprecated (RFC 9864)

ISSUER = "https://auth.example.com"
AUDIENCE = "shop"
TYP = "at+jwt"
LIFETIME_S = 900
PURE_PYTHON = ("joserfc", "Authlib", "python-jose", "jwcrypto")  # beside PyJWT

Claims: TypeAlias = dict[str, Any]

SCHEMES: dict[str, tuple[Any, ...]] = {
    "EdDSA": (),
    "ES256": (ec.ECDSA(hashes.SHA256()),),
    "RS256": (padding.PKCS1v15(), hashes.SHA256()),
}
"""What ``cryptography`` is told beside message and signature."""


class Peer(NamedTuple):
    verify: Callable[[str], object]
    sign: Callable[[Claims], str | bytes]


class KeyForms:
    """One key in every form that a library asks for."""

    def __init__(self, key: Key) -> None:
        self.alg, self.kid = key.alg, key.kid
        self.header = {"alg": key.alg, "typ": TYP, "kid": key.kid}
        everything = {name: value for name, value in key.private_jwk().items() if isinstance(value, str)}
        self.private_jwk = {name: value for name, value in everything.items() if name not in {"purpose", "state"}}
        self.public_jwk = self.private_jwk if key.is_shared_secret else key.public_jwk()
        if key.is_shared_secret:
            self.private = self.public = b64url_decode(self.private_jwk["k"])
        else:
            loaded = jwt.PyJWK(self.private_jwk).key
            self.private = loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            self.public = loaded.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def peers(key: KeyForms) -> dict[str, Peer]:
    """By name, those that have the algorithm."""
    makers: dict[str, Callable[[KeyForms], Peer] | None] = {
        "PyJWT": _pyjwt,
        "joserfc": _joserfc,
        "Authlib": _authlib,
        "python-jose": _python_jose if key.alg != "EdDSA" else None,
        "jwcrypto": _jwcrypto,
        "ryjwt": _ryjwt if ryjwt else None,
    }
    return {name: make(key) for name, make in makers.items() if make}


def versions() -> str:
    """Who takes part, and a line for who is left out."""
    names = ("PyJWT", *PURE_PYTHON, *(["ryjwt"] if ryjwt else []), "cryptography")
    present = ", ".join(f"{name} {version(name)}" for name in names)
    return present if ryjwt else f"{present}\nWithout ryjwt: it is not installed, or Python is older than 3.12."


def _pyjwt(key: KeyForms) -> Peer:
    private, public = jwt.PyJWK(key.private_jwk), jwt.PyJWK(key.public_jwk)
    required: Any = {"require": ["exp", "iss", "aud"]}
    headers = {"typ": TYP, "kid": key.kid}

    def verify(token: str) -> object:
        return jwt.decode(token, public, algorithms=[key.alg], issuer=ISSUER, audience=AUDIENCE, options=required)

    return Peer(verify, lambda claims: jwt.encode(claims, private, algorithm=key.alg, headers=headers))


def _joserfc(key: KeyForms) -> Peer:
    private, public = joserfc.jwk.import_key(key.private_jwk), joserfc.jwk.import_key(key.public_jwk)
    registry = joserfc.jwt.JWTClaimsRegistry(
        iss={"essential": True, "value": ISSUER}, aud={"essential": True, "value": AUDIENCE}, exp={"essential": True}
    )

    def verify(token: str) -> object:
        decoded = joserfc.jwt.decode(token, public, algorithms=[key.alg])
        registry.validate(decoded.claims)
        return decoded.claims

    return Peer(verify, lambda claims: joserfc.jwt.encode(key.header, claims, private, algorithms=[key.alg]))


def _authlib(key: KeyForms) -> Peer:
    importer = authlib.jose.JsonWebKey
    private, public = importer.import_key(key.private_jwk), importer.import_key(key.public_jwk)
    library = authlib.jose.JsonWebToken([key.alg])
    options = {
        "iss": {"essential": True, "value": ISSUER},
        "aud": {"essential": True, "value": AUDIENCE},
        "exp": {"essential": True},
    }

    def verify(token: str) -> object:
        claims = library.decode(token, public, claims_options=options)
        claims.validate()
        return claims

    return Peer(verify, lambda claims: library.encode(key.header, claims, private))


def _python_jose(key: KeyForms) -> Peer:
    private = jose.jwk.construct(key.private_jwk, key.alg)
    public = jose.jwk.construct(key.public_jwk, key.alg)
    required = {"require_exp": True, "require_iss": True, "require_aud": True}
    headers = {"typ": TYP, "kid": key.kid}

    def verify(token: str) -> object:
        return jose.jwt.decode(token, public, algorithms=[key.alg], issuer=ISSUER, audience=AUDIENCE, options=required)

    return Peer(verify, lambda claims: jose.jwt.encode(claims, private, algorithm=key.alg, headers=headers))


def _jwcrypto(key: KeyForms) -> Peer:
    private, public = jwcrypto.jwk.JWK(**key.private_jwk), jwcrypto.jwk.JWK(**key.public_jwk)
    checked = {"iss": ISSUER, "aud": AUDIENCE, "exp": None}  # None: it must be there and not be over

    def verify(token: str) -> object:
        return jwcrypto.jwt.JWT(jwt=token, key=public, algs=[key.alg], check_claims=checked, expected_type="JWS").claims

    def sign(claims: Claims) -> str:
        token = jwcrypto.jwt.JWT(header=key.header, claims=claims, algs=[key.alg])
        token.make_signed_token(private)
        return token.serialize()

    return Peer(verify, sign)


def _ryjwt(key: KeyForms) -> Peer:
    expected: Any = {"algorithms": [key.alg], "issuer": ISSUER, "audience": AUDIENCE}
    if key.alg == "HS256":
        private = public = ryjwt.SecretKey(key.private, **expected)
        header = {"typ": TYP, "kid": key.kid}
    else:
        private = ryjwt.PrivateKey(key.private, **expected, kid=key.kid)
        public = ryjwt.PublicKey(key.public, **expected)
        header = {"typ": TYP}
    return Peer(public.decode, lambda claims: private.encode(claims, header=header))


def new_token(
    key: Key, issued_at: int, *, issuer: str = ISSUER, audience: str = AUDIENCE, lifetime_s: int = LIFETIME_S
) -> str:
    """As Sekisho issues it, for a new user and session."""
    return access.issue(
        key,
        issuer=issuer,
        audience=audience,
        subject=str(uuid4()),
        session_id=str(uuid4()),
        issued_at=issued_at,
        expires_at=issued_at + lifetime_s,
    )


def claims_of(token: str) -> Claims:
    """What the token says, as a dictionary that is ready to be signed."""
    claims: Claims = json.loads(b64url_decode(token.split(".")[1]))
    return claims


def b64url_decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def hmac_states(secret: bytes) -> tuple[Any, Any]:
    """HMAC's inner and outer SHA-256, begun once (RFC 2104 §4): on copies OpenSSL looks up no algorithm any more."""
    block = secret.ljust(64, b"\0")
    return tuple(hashlib.sha256(bytes(byte ^ pad for byte in block)) for pad in (0x36, 0x5C))
