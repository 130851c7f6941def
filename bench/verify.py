"""What does it cost to verify an access token, beside seven other libraries and the bare signature check?

Everyone checks signature, exp, iss and aud; Sekisho checks more (DESIGN.md, "API call"). *First sight*: every token is
new to the verifier, its key is not. *Seen before*: it has verified the same text earlier. A token is always a new
string, as each request makes one of the bytes it reads. The times are CPU time of one thread, medians of interleaved
rounds, so other people's programs on the machine count for little.
"""

import hmac
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from _fast_jwt import CACHED, NAME, FastJwt, start_fast_jwt
from _peers import (
    AUDIENCE,
    ISSUER,
    LIFETIME_S,
    PURE_PYTHON,
    SCHEMES,
    KeyForms,
    b64url_decode,
    hmac_states,
    new_token,
    peers,
    versions,
)
from _report import start, table
from _rounds import Round, Target, Times, fresh, interleaved, microseconds, names, ratios, targets, us_each
from sekisho.tokens.algorithms import ALGORITHMS, AlgorithmName
from sekisho.tokens.keyring import Keyring
from sekisho.tokens.keys import Key, generate_key
from sekisho.verify import Verifier

TOKENS = 250  # in a round
BEFORE = 50  # in a round, without being measured
ROUNDS = 45
FIRST, SEEN = "Sekisho, first sight", "Sekisho, seen before"
BARE, BARE_STATES = "the bare check", "the bare check, states copied"
TARGETS = (
    Target("HS256, first sight: PyJWT", "HS256", FIRST, ["PyJWT"], 10),
    Target("HS256, first sight: the best other pure Python", "HS256", FIRST, PURE_PYTHON, 6),
    Target("HS256, seen before: PyJWT", "HS256", SEEN, ["PyJWT"], 70),
    Target("HS256, seen before: fast-jwt with its cache", "HS256", SEEN, [CACHED], 4),
    Target("HS256, seen before: ryjwt", "HS256", SEEN, ["ryjwt"], 2.5),
    Target("EdDSA, first sight: PyJWT", "EdDSA", FIRST, ["PyJWT"], 1.3),
)


def contenders(key: Key, now: int, fast_jwt: FastJwt | None) -> dict[str, Round]:
    """By name. Who lets a bad token through is no contender."""
    forms = KeyForms(key)
    tokens, before = ([new_token(key, now) for _ in range(count)] for count in (TOKENS, BEFORE))

    def new_verifier() -> Verifier:
        return Verifier(issuer=ISSUER, audience=AUDIENCE, keys=Keyring([key]), allow_shared_secret=True)

    def timed(verify: Callable[[str], object]) -> float:
        return us_each(verify, fresh(tokens), before=fresh(before))

    verifying = {SEEN: new_verifier().verify} | {name: peer.verify for name, peer in peers(forms).items()}
    in_node = fast_jwt.verifiers(forms, tokens, before) if fast_jwt else {}
    bad = _bad_tokens(key, now)
    for name, verify in (verifying | in_node).items():
        _sound(name, verify, tokens[0], bad)
    rounds: dict[str, Round] = {FIRST: lambda: timed(new_verifier().verify)}
    rounds |= {name: partial(timed, verify) for name, verify in verifying.items()}
    if fast_jwt:
        rounds |= {NAME: fast_jwt.round(forms, "verify"), CACHED: fast_jwt.round(forms, "verify cached")}
    timed(verifying[SEEN])
    return rounds | bare(forms, tokens)


def bare(key: KeyForms, tokens: Sequence[str]) -> dict[str, Round]:
    """The signature check alone, on message and signature cut out of the tokens beforehand."""
    cut = [token.rpartition(".") for token in tokens]
    signed = [(message.encode(), b64url_decode(signature)) for message, _, signature in cut]
    if key.alg == "HS256":
        checks = {BARE: _hmac_at_once(key.public), BARE_STATES: _hmac_of_states(key.public)}
    else:
        if key.alg == "ES256":
            signed = [(message, _der(signature)) for message, signature in signed]
        checks = {BARE: _asymmetric(key)}
    return {name: partial(us_each, check, signed, before=signed[:BEFORE]) for name, check in checks.items()}


def _hmac_at_once(secret: bytes) -> Callable[[tuple[bytes, bytes]], object]:
    return lambda signed: hmac.compare_digest(hmac.digest(secret, signed[0], "sha256"), signed[1])


def _hmac_of_states(secret: bytes) -> Callable[[tuple[bytes, bytes]], object]:
    inner_begun, outer_begun = hmac_states(secret)

    def check(signed: tuple[bytes, bytes]) -> object:
        inner, outer = inner_begun.copy(), outer_begun.copy()
        inner.update(signed[0])
        outer.update(inner.digest())
        return hmac.compare_digest(outer.digest(), signed[1])

    return check


def _asymmetric(key: KeyForms) -> Callable[[tuple[bytes, bytes]], object]:
    verify, scheme = serialization.load_pem_public_key(key.public).verify, SCHEMES[key.alg]
    return lambda signed: verify(signed[1], signed[0], *scheme)


def _der(signature: bytes) -> bytes:
    return encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))


def _bad_tokens(key: Key, now: int) -> dict[str, str]:
    message, _, signature = new_token(key, now).rpartition(".")
    return {
        "a forged signature": f"{message}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}",
        "another audience": new_token(key, now, audience="https://elsewhere.example.com"),
        "another issuer": new_token(key, now, issuer="https://elsewhere.example.com"),
        "an expired token": new_token(key, now - 2 * LIFETIME_S),
    }


def _sound(name: str, verify: Callable[[str], object], good: str, bad: dict[str, str]) -> None:
    verify(good)
    for what, token in bad.items():
        try:
            verify(token)
        except Exception:  # noqa: BLE001 - each library has its own
            continue
        raise RuntimeError(f"{name} takes {what}")


def _ratio_table(times: Times) -> None:
    blank = ["–"] * len(ALGORITHMS)
    rows = []
    for name in names(times):
        if name not in {FIRST, SEEN}:
            # A cache knows nothing of a token at first sight.
            first = blank if name == CACHED else ratios(times, FIRST, name)
            rows.append([name, *first, *ratios(times, SEEN, name)])
    table(["Sekisho, times as fast as", *ALGORITHMS, *(f"seen: {alg}" for alg in ALGORITHMS)], rows)


def main() -> None:
    logging.disable()  # the proof that bad tokens are refused is no news
    start("Verifying an access token")
    print(versions())
    fast_jwt = start_fast_jwt()
    now = int(time.time())
    keys: dict[AlgorithmName, Key] = {
        alg: generate_key(alg, purpose="sign", state="active", now=now) for alg in ALGORITHMS
    }
    times = interleaved({alg: contenders(key, now, fast_jwt) for alg, key in keys.items()}, ROUNDS)
    if fast_jwt:
        fast_jwt.close()
    _ratio_table(times)
    microseconds(times)
    targets(TARGETS, times)
    lengths = ", ".join(f"{alg} {len(new_token(key, now))}" for alg, key in keys.items())
    print("Seen before: beside fast-jwt's cache; nobody else remembers a token, so theirs is what each costs.")
    print(f"Characters of a token: {lengths}. RSA: 3072 bits.")


if __name__ == "__main__":
    main()
