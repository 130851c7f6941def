"""What does it cost to sign an access token, beside seven other libraries and the bare signature?

Everyone signs the same claims under the same header. *Issue* is what a service calls; it also makes the random jti,
which the others are given. *Sign* is given the payload as bytes. The times are CPU time of one thread, medians of
interleaved rounds, so other people's programs on the machine count for little.
"""

import hmac
import time
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
from cryptography.hazmat.primitives import serialization

from _fast_jwt import NAME, FastJwt, start_fast_jwt
from _peers import AUDIENCE, ISSUER, SCHEMES, TYP, Claims, KeyForms, claims_of, hmac_states, new_token, peers, versions
from _report import start, table
from _rounds import Round, Target, Times, interleaved, microseconds, names, ratios, targets, us_each
from sekisho.tokens import access, jws
from sekisho.tokens.algorithms import ALGORITHMS, AlgorithmName
from sekisho.tokens.keyring import Keyring
from sekisho.tokens.keys import Key, generate_key
from sekisho.verify import Verifier

TOKENS: dict[AlgorithmName, int] = {"HS256": 250, "EdDSA": 250, "ES256": 250, "RS256": 8}  # in a round
ROUNDS = 75
ISSUE, SIGN = "Sekisho, issue", "Sekisho, sign"
BARE, BARE_STATES = "the bare signature", "the bare signature, states copied"
TARGETS = (Target("HS256, issue: PyJWT", "HS256", ISSUE, ["PyJWT"], 4.5),)


def contenders(key: Key, now: int, fast_jwt: FastJwt | None) -> dict[str, Round]:
    """By name. Whose token is not accepted is no contender."""
    forms = KeyForms(key)
    claims = [claims_of(new_token(key, now)) for _ in range(TOKENS[key.alg])]
    payloads = [msgspec.json.encode(one) for one in claims]

    def issue(one: Claims) -> str:
        return access.issue(
            key,
            issuer=ISSUER,
            audience=AUDIENCE,
            subject=one["sub"],
            session_id=one["sid"],
            issued_at=one["iat"],
            expires_at=one["exp"],
        )

    def sign(payload: bytes) -> str:
        return jws.sign(payload, key, typ=TYP)

    others = {name: peer.sign for name, peer in peers(forms).items()}
    in_node = {NAME: fast_jwt.signer(forms, claims)} if fast_jwt else {}
    for name, signer in (others | in_node).items():
        _sound(name, signer(claims[0]), claims[0], key)
    rounds = {ISSUE: _round(issue, claims), SIGN: _round(sign, payloads)}
    rounds |= {name: _round(signer, claims) for name, signer in others.items()}
    if fast_jwt:
        rounds[NAME] = fast_jwt.round(forms, "sign")
    return rounds | bare(forms, [sign(payload).rpartition(".")[0].encode() for payload in payloads])


def _round(act: Callable[..., object], items: Sequence[object]) -> Round:
    return partial(us_each, act, items, before=items[: len(items) // 5])


def _sound(name: str, token: str | bytes, claims: Claims, key: Key) -> None:
    text = token.decode("ascii") if isinstance(token, bytes) else token
    verifier = Verifier(issuer=ISSUER, audience=AUDIENCE, keys=Keyring([key]), allow_shared_secret=True)
    if verifier.verify(text).jti != claims["jti"]:
        raise RuntimeError(f"{name} signs other claims")


def bare(key: KeyForms, messages: Sequence[bytes]) -> dict[str, Round]:
    """The signature alone, of a message that is ready."""
    if key.alg == "HS256":
        signers = {BARE: _hmac_at_once(key.private), BARE_STATES: _hmac_of_states(key.private)}
    else:
        signers = {BARE: _asymmetric(key)}
    return {name: _round(signer, messages) for name, signer in signers.items()}


def _hmac_at_once(secret: bytes) -> Callable[[bytes], bytes]:
    return lambda message: hmac.digest(secret, message, "sha256")


def _hmac_of_states(secret: bytes) -> Callable[[bytes], bytes]:
    inner_begun, outer_begun = hmac_states(secret)

    def sign(message: bytes) -> bytes:
        inner, outer = inner_begun.copy(), outer_begun.copy()
        inner.update(message)
        outer.update(inner.digest())
        return outer.digest()

    return sign


def _asymmetric(key: KeyForms) -> Callable[[bytes], bytes]:
    sign, scheme = serialization.load_pem_private_key(key.private, password=None).sign, SCHEMES[key.alg]
    return lambda message: sign(message, *scheme)


def _ratio_table(times: Times) -> None:
    rows = [
        [name, *ratios(times, ISSUE, name), *ratios(times, SIGN, name)]
        for name in names(times)
        if name not in {ISSUE, SIGN}
    ]
    table(["Sekisho, times as fast as", *ALGORITHMS, *(f"sign: {alg}" for alg in ALGORITHMS)], rows)


def main() -> None:
    start("Signing an access token")
    print(versions())
    fast_jwt = start_fast_jwt()
    now = int(time.time())
    keys = [generate_key(alg, purpose="sign", state="active", now=now) for alg in ALGORITHMS]
    times = interleaved({key.alg: contenders(key, now, fast_jwt) for key in keys}, ROUNDS)
    if fast_jwt:
        fast_jwt.close()
    _ratio_table(times)
    microseconds(times)
    targets(TARGETS, times)
    print("Issue makes the jti and the payload from what it is told; sign: is given the payload. RSA: 3072 bits.")


if __name__ == "__main__":
    main()
