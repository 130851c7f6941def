"""Keys, rings and good tokens for the fuzz target: the same in every run, so that an input found once is found again."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

from reference import Expected, RingKey

from sekisho.tokens import Keyring, algorithms
from sekisho.tokens.algorithms import Hs256
from sekisho.tokens.keys import Key
from sekisho.tokens.refresh import Position, RefreshKeys
from sekisho.tokens.revoked import Revocation, RevokedSessions
from sekisho.verify import Verifier
from sekisho.wire import b64url_encode

NOW = 1_800_000_000
time = SimpleNamespace(now=NOW)
EXPECTED = Expected(
    issuer="https://auth.example.com",
    audience="shop",
    now=NOW,
    leeway_s=10,
    max_lifetime_s=3600,
    ended=frozenset({"ended"}),
)

_VECTORS = json.loads((Path(__file__).parents[1] / "vectors/jws.json").read_text("utf-8"))
JWKS: dict[str, dict[str, str]] = {}
for _vector in _VECTORS:
    JWKS.setdefault(_vector["alg"], _vector["jwk"])
MATERIAL = {alg: algorithms.from_jwk(jwk) for alg, jwk in JWKS.items()}
KID = {alg: f"key-{alg}" for alg in MATERIAL}
# Mostly the cheap one: what stands behind a signature is the same for all.
SIGNERS = ("HS256", "EdDSA", "ES256", "RS256", "HS256", "HS256", "HS256", "HS256")

# Raw JSON texts: the target puts others in their places, valid or not.
CLAIMS = {
    b'"iss"': b'"https://auth.example.com"',
    b'"sub"': b'"user-1"',
    b'"aud"': b'"shop"',
    b'"exp"': b"1800000900",
    b'"iat"': b"1800000000",
    b'"jti"': b'"jti-1"',
    b'"client_id"': b'"sekisho"',
    b'"sid"': b'"session-1"',
    b'"nbf"': b"1800000000",
    b'"roles"': b'["admin"]',
}


def header_texts(alg: str) -> dict[bytes, bytes]:
    return {b'"alg"': f'"{alg}"'.encode(), b'"kid"': f'"{KID[alg]}"'.encode(), b'"typ"': b'"at+jwt"'}


def json_text(members: dict[bytes, bytes]) -> bytes:
    return b"{" + b",".join(name + b":" + value for name, value in members.items()) + b"}"


@dataclass(frozen=True)
class Ring:
    """The keys as Sekisho holds them, as the reference does, and a verifier that holds them."""

    keyring: Keyring
    reference: list[RingKey]
    verifier: Verifier


def ring_of(*named: tuple[str, str]) -> Ring:
    keyring = Keyring(Key(kid, MATERIAL[alg]) for kid, alg in named)
    names = {"EdDSA": ("EdDSA", "Ed25519")}
    verifier = Verifier(
        issuer=EXPECTED.issuer,
        audience=EXPECTED.audience,
        keys=keyring,
        revoked=RevokedSessions(Revocation(sid, NOW + 10_000) for sid in EXPECTED.ended),
        allow_shared_secret=True,
        leeway_s=EXPECTED.leeway_s,
        max_lifetime_s=EXPECTED.max_lifetime_s,
        clock=lambda: time.now,
    )
    return Ring(keyring, [RingKey(kid or None, names.get(alg, (alg,)), alg) for kid, alg in named], verifier)


RINGS = (
    ring_of(*((kid, alg) for alg, kid in KID.items())),
    # Names that are no proper ones, a secret without a name, and two keys of one algorithm.
    ring_of(("", "HS256"), (KID["EdDSA"], "EdDSA"), ("x" * 64, "EdDSA"), ("a b", "ES256"), ("x" * 256, "RS256")),
)


def signed(header: bytes, payload: bytes, alg: str) -> str:
    message = f"{b64url_encode(header)}.{b64url_encode(payload)}"
    return f"{message}.{b64url_encode(MATERIAL[alg].sign(message.encode('ascii')))}"


GOOD = {alg: signed(json_text(header_texts(alg)), json_text(CLAIMS), alg) for alg in MATERIAL}
# What a token may say whose signature holds: nobody else has these keys.
SIGNED_MESSAGES = {token.rpartition(".")[0] for token in (*GOOD.values(), *(v["token"] for v in _VECTORS))}
VECTOR_TOKENS = [vector["token"] for vector in _VECTORS]

_REFRESH_KEY = Key("refresh-1", Hs256(bytes(range(32))), "refresh")
REFRESH_KEYS = RefreshKeys(_REFRESH_KEY, [_REFRESH_KEY])
GOOD_REFRESH = REFRESH_KEYS.make(UUID(int=7), Position(3, 1), bytes(16))
