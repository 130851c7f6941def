"""What does it cost to verify an access token, beside PyJWT, joserfc and the bare signature check?

Everyone checks signature, exp, iss and aud; Sekisho checks more (DESIGN.md, "API call"). *First sight*: every token is
new to the verifier. *Seen before*: it has verified the same text earlier. The times are CPU time of one thread,
medians of interleaved rounds, so other people's programs on the machine count for little.
"""

import base64
import gc
import hmac
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from joserfc import jwk
from joserfc import jwt as joserfc_jwt
from joserfc.errors import SecurityWarning

from _report import median, progress, start, table
from sekisho.tokens import access
from sekisho.tokens.algorithms import ALGORITHMS, AlgorithmName
from sekisho.tokens.keyring import Keyring
from sekisho.tokens.keys import Key, generate_key
from sekisho.verify import Verifier

ISSUER = "https://auth.example.com"
AUDIENCE = "https://shop.example.com"
TOKENS = 200  # in a round
ROUNDS = 25

Contender = Callable[[], Callable[[str], object]]
"""Makes, for each round, a function that knows no token yet."""


def contenders(key: Key) -> dict[str, Contender]:
    """By name; the bare primitive gets what it needs prepared."""
    private = key.private_jwk()
    public = _pyjwt_key(key.alg, private)
    joserfc_key = jwk.import_key({name: value for name, value in private.items() if isinstance(value, str)})
    registry = joserfc_jwt.JWTClaimsRegistry(
        iss={"essential": True, "value": ISSUER}, aud={"essential": True, "value": AUDIENCE}, exp={"essential": True}
    )

    def sekisho() -> Callable[[str], object]:
        return Verifier(issuer=ISSUER, audience=AUDIENCE, keys=Keyring([key]), allow_shared_secret=True).verify

    def with_pyjwt(token: str) -> object:
        return jwt.decode(token, public, algorithms=[key.alg], issuer=ISSUER, audience=AUDIENCE, options=_REQUIRED)

    def with_joserfc(token: str) -> object:
        decoded = joserfc_jwt.decode(token, joserfc_key, algorithms=[key.alg])
        registry.validate(decoded.claims)
        return decoded.claims

    return {"Sekisho": sekisho, "PyJWT": lambda: with_pyjwt, "joserfc": lambda: with_joserfc}


_REQUIRED: Any = {"require": ["exp", "iss", "aud"]}


def _pyjwt_key(alg: AlgorithmName, private: Mapping[str, Any]) -> Any:
    """Its own key object, prepared once, as its documentation advises."""
    key = jwt.PyJWK.from_dict({name: value for name, value in private.items() if isinstance(value, str)}).key
    return key if alg == "HS256" else key.public_key()


def primitive(key: Key, tokens: Sequence[str]) -> Callable[[], object]:
    """The signature check alone, on message and signature cut out of the tokens beforehand."""
    cut = [token.rpartition(".") for token in tokens]
    signed = [(message.encode(), _decoded(signature)) for message, _, signature in cut]
    verify: Callable[[bytes, bytes], object]
    if key.alg == "HS256":
        secret = _decoded(key.private_jwk()["k"])

        def verify(message: bytes, signature: bytes) -> object:
            return hmac.compare_digest(hmac.digest(secret, message, "sha256"), signature)
    else:
        public = _pyjwt_key(key.alg, key.private_jwk())
        # Loaded anew: not the object that PyJWT holds.
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        public = serialization.load_der_public_key(public.public_bytes(serialization.Encoding.DER, form))
        if key.alg == "EdDSA":

            def verify(message: bytes, signature: bytes) -> object:
                return public.verify(signature, message)
        elif key.alg == "ES256":
            signed = [(message, _der(signature)) for message, signature in signed]
            ecdsa = ec.ECDSA(hashes.SHA256())

            def verify(message: bytes, signature: bytes) -> object:
                return public.verify(signature, message, ecdsa)
        else:
            pkcs1, sha256 = padding.PKCS1v15(), hashes.SHA256()

            def verify(message: bytes, signature: bytes) -> object:
                return public.verify(signature, message, pkcs1, sha256)

    def check_all() -> object:
        for message, signature in signed:
            verify(message, signature)
        return None

    return check_all


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _der(signature: bytes) -> bytes:
    return encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))


def _us_each(work: Callable[[], object]) -> float:
    began_ns = time.thread_time_ns()
    work()
    return (time.thread_time_ns() - began_ns) / TOKENS / 1000


def _over(verify: Callable[[str], object], tokens: Sequence[str]) -> Callable[[], object]:
    def run() -> None:
        for token in tokens:
            verify(token)

    return run


def measure() -> tuple[dict[AlgorithmName, dict[str, list[float]]], dict[AlgorithmName, int]]:
    """Microseconds per token, round by round, for each algorithm and contender; and the length of a token."""
    now = int(time.time())
    keys = {alg: generate_key(alg, purpose="sign", state="active", now=now) for alg in ALGORITHMS}
    tokens = {alg: [_token(key, now) for _ in range(TOKENS)] for alg, key in keys.items()}
    ready = {alg: (contenders(key), primitive(key, tokens[alg])) for alg, key in keys.items()}
    for alg, (makers, _) in ready.items():
        for make in makers.values():  # a contender that lets anything through is no peer
            _refuses(make(), tokens[alg][0], jwt_of_other_audience=_token(keys[alg], now, audience="elsewhere"))
    times: dict[AlgorithmName, dict[str, list[float]]] = {alg: {} for alg in ALGORITHMS}
    gc.disable()
    for number in range(ROUNDS):
        progress(f"round {number + 1} of {ROUNDS}")
        for alg, (makers, check_all) in ready.items():
            for name, make in makers.items():
                verify = make()
                times[alg].setdefault(name, []).append(_us_each(_over(verify, tokens[alg])))
                if name == "Sekisho":
                    seen = _us_each(_over(verify, tokens[alg]))
                    times[alg].setdefault("Sekisho, seen before", []).append(seen)
            times[alg].setdefault("primitive", []).append(_us_each(check_all))
        gc.collect()
    return times, {alg: len(tokens[alg][0]) for alg in ALGORITHMS}


def _token(key: Key, now: int, *, audience: str = AUDIENCE) -> str:
    return access.issue(
        key,
        issuer=ISSUER,
        audience=audience,
        subject=str(uuid4()),
        session_id=str(uuid4()),
        issued_at=now,
        expires_at=now + 900,
    )


def _refuses(verify: Callable[[str], object], token: str, *, jwt_of_other_audience: str) -> None:
    verify(token)
    message, _, signature = token.rpartition(".")
    forged = f"{message}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"
    for bad in (forged, jwt_of_other_audience):
        try:
            verify(bad)
        except Exception:  # noqa: BLE001 - each library has its own
            continue
        raise RuntimeError("a contender takes a bad token")


def main() -> None:
    warnings.simplefilter("ignore", SecurityWarning)  # joserfc: the name EdDSA is deprecated (RFC 9864)
    start("Verifying an access token")
    times, lengths = measure()
    us = {alg: {name: median(rounds) for name, rounds in times[alg].items()} for alg in ALGORITHMS}
    rows = []
    for alg in ALGORITHMS:
        mine, seen = us[alg]["Sekisho"], us[alg]["Sekisho, seen before"]
        peers = us[alg]["PyJWT"], us[alg]["joserfc"]
        bare = us[alg]["primitive"]
        rows.append(
            [
                alg,
                *(f"{peer / mine:.2f} ×" for peer in peers),
                f"{bare / mine:.0%}",
                f"{peers[0] / seen:.1f} ×",
                *(f"{value:.2f}" for value in (mine, seen, *peers, bare)),
                str(lengths[alg]),
            ]
        )
    ratios = ["× PyJWT", "× joserfc", "share of limit", "seen: × PyJWT"]
    table(["", *ratios, "Sekisho µs", "seen µs", "PyJWT µs", "joserfc µs", "primitive µs", "chars"], rows)
    print("× PyJWT: how many times as fast as PyJWT. Share of limit: bare signature check ÷ Sekisho. RSA: 3072 bits.")
    print("Targets: HS256 ≥ 10 × PyJWT and ≥ 6 × joserfc, seen before ≥ 70 × PyJWT; EdDSA ≥ 1.3 × PyJWT.")


if __name__ == "__main__":
    main()
