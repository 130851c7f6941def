"""What does a flood of garbage cost a verifier, and how much memory do a million tokens take?

A refusal is timed with the exception that its caller catches, beside the first sight of a valid token of the same
algorithm. Tokens are new strings, the times CPU time of one thread, medians of interleaved rounds, as in verify.py.
The memory is the process's own, before and after.
"""

import gc
import json
import logging
import random
import string
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import psutil

from _peers import AUDIENCE, ISSUER, LIFETIME_S, TYP, new_token
from _report import progress, start, table
from _rounds import Round, Times, fresh, interleaved, us_each
from sekisho.errors import TokenError
from sekisho.tokens import jws
from sekisho.tokens.algorithms import AlgorithmName
from sekisho.tokens.keyring import Keyring
from sekisho.tokens.keys import Key, generate_key
from sekisho.verify import Verifier
from sekisho.verify.refusals import LINE_EVERY_S
from sekisho.verify.seen import DEFAULT_LIMIT
from sekisho.wire import b64url_decode, b64url_encode

TOKENS = 250  # in a round
BEFORE = 50  # in a round, without being measured
ROUNDS = 30
MILLION = 1_000_000
TRACED = 3 * DEFAULT_LIMIT
MIB = 2**20
TOKEN_CHARS = 8192  # the longest that is looked at
ALGS: tuple[AlgorithmName, ...] = ("HS256", "EdDSA")
VALID, VALID_LONG = "valid, first sight", "valid, of 8 KiB"
EXPIRED = "expired, rightly signed"
LONG = ("header of 8 KiB", "8 KiB, signature forged")  # beside a valid one as long
MAX_MIB = 32
_LETTERS = string.ascii_letters + string.digits + "-_"


class Lines(logging.Handler):
    """Counts what the verifier has to say."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, _record: logging.LogRecord) -> None:
        self.count += 1


def garbage(key: Key, now: int) -> dict[str, Callable[[], str]]:
    """Makers of tokens that must be refused, by what is wrong with them."""
    length = len(new_token(key, now))

    def forged(header: object = None, payload: str = "", separators: tuple[str, str] = (",", ":")) -> str:
        ours, claims, signature = new_token(key, now).split(".")
        if header is not None:
            ours = b64url_encode(json.dumps(header, separators=separators).encode())
        return f"{ours}.{payload or claims}.{_text(8)}{signature[8:]}"

    right = {"alg": key.alg, "kid": key.kid, "typ": TYP}
    long_payload = TOKEN_CHARS - len(forged(payload=".")) + 1
    return {
        "random text": partial(_text, length),
        "one part": lambda: new_token(key, now).partition(".")[0],
        "our header, signature forged": forged,
        "unknown kid": lambda: forged(right | {"kid": _text(16)}),
        "header in another order, signature forged": lambda: forged(dict(reversed(right.items()))),
        "header with spaces, signature forged": lambda: forged(right, separators=(" ,  ", " :  ")),
        "alg none": lambda: forged(right | {"alg": "none"}),
        LONG[0]: lambda: forged(right | {"typ": _text((TOKEN_CHARS - length) * 3 // 4)}),
        LONG[1]: lambda: forged(payload=_text(long_payload // 4 * 4)),
        EXPIRED: lambda: new_token(key, now - 2 * LIFETIME_S),
    }


def _long_token(key: Key, now: int) -> str:
    """With as many roles as fit."""
    payload = b64url_decode(new_token(key, now).split(".")[1]).decode()
    room = (TOKEN_CHARS - len(new_token(key, now))) * 3 // 4 - len(',"roles":[""]') - 2
    roles = '","'.join([_text(16)] * (room // 19))
    return jws.sign(f'{payload[:-1]},"roles":["{roles}"]}}'.encode(), key, typ=TYP)


def _text(length: int) -> str:
    return "".join(random.choices(_LETTERS, k=length))


def contenders(key: Key, now: int) -> dict[str, Round]:
    makers = {VALID: partial(new_token, key, now), VALID_LONG: partial(_long_token, key, now)} | garbage(key, now)
    return {name: _round(key, [make() for _ in range(BEFORE + TOKENS)], name) for name, make in makers.items()}


def _round(key: Key, tokens: list[str], name: str) -> Round:
    if max(map(len, tokens)) > TOKEN_CHARS:
        raise RuntimeError(f"{name}: too long to be looked at")

    flooded = new_verifier(key)

    def round_() -> float:
        # Valid tokens are new to their verifier; garbage comes to the same one again and again.
        verifier = new_verifier(key) if name == VALID else flooded
        took = us_each(partial(_tried, verifier.verify), fresh(tokens[BEFORE:]), before=fresh(tokens[:BEFORE]))
        if remembered(verifier) != 1 + (len(tokens) if name == VALID else 0):
            raise RuntimeError(f"{name}: the memory holds {remembered(verifier)} tokens")
        return took

    return round_


def _tried(verify: Callable[[str], object], token: str) -> None:
    try:
        verify(token)
    except TokenError:
        return


def new_verifier(key: Key, **options: int) -> Verifier:
    """One that knows its issuer's header, as a service does after its first request."""
    made = Verifier(issuer=ISSUER, audience=AUDIENCE, keys=Keyring([key]), allow_shared_secret=True, **options)
    made.verify(new_token(key, int(time.time())))
    return made


def remembered(verifier: Verifier) -> int:
    return len(verifier._held.in_use[1])  # noqa: SLF001 - nobody else asks


def _table_of_floods(times: Times) -> None:
    rows = []
    for name in times["HS256"]:
        shares = [f"{_share(times[alg], name):.0%}" for alg in ALGS]
        rows.append([name, *(f"{times[alg][name]:.2f}" for alg in ALGS), *shares])
    table(["µs per token, the caller's except included", *ALGS, *(f"of valid, {alg}" for alg in ALGS)], rows)


def _share(us: Mapping[str, float], name: str) -> float:
    return us[name] / us[VALID_LONG if name in LONG else VALID]


def million(key: Key, kind: str, count: int) -> Iterator[str]:
    """Different tokens, cheaply made: one payload with the number in it."""
    now = int(time.time())
    claims = f'{{"iss":"{ISSUER}","sub":"a4c1f0de-1f9e-4a53-9a3f-%012d","aud":"{AUDIENCE}","exp":{now + LIFETIME_S},'
    claims += f'"iat":{now},"jti":"%024d","client_id":"sekisho","sid":"0b5f7a10-6d3c-4d1e-8f61-%012d"}}'
    for number in range(count):
        token = jws.sign((claims % (number, number, number)).encode(), key, typ=TYP)
        yield token if kind == "valid" else f"{token[:-8]}{number:08d}"


class Grown(NamedTuple):
    most_mib: float
    end_mib: float
    remembered: int
    seconds: float
    lines: int


def memory(key: Key, kind: str, lines: Lines) -> Grown:
    """How the process grew over a million tokens at one verifier."""
    lines.count = 0
    verifier, process = new_verifier(key), psutil.Process()
    for token in million(key, "garbage", 1000):
        _tried(verifier.verify, token)
    gc.collect()
    began, before, most = time.monotonic(), process.memory_info().rss, 0
    for number, token in enumerate(million(key, kind, MILLION)):
        _tried(verifier.verify, token)
        if number % 1000 == 0:
            most = max(most, process.memory_info().rss)
            progress(f"{kind} token {number} of {MILLION}")
    after, seconds = process.memory_info().rss, time.monotonic() - began
    return Grown((max(most, after) - before) / MIB, (after - before) / MIB, remembered(verifier), seconds, lines.count)


def traced_bytes(key: Key, count: int) -> tuple[float, int]:
    """Bytes that Python allocated for each token remembered, and how many those are, after so many valid tokens."""
    verifier = new_verifier(key)
    gc.collect()
    tracemalloc.start()
    for token in million(key, "valid", count):
        verifier.verify(token)
    del token
    traced = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return traced / remembered(verifier), remembered(verifier)


def _memory_table(grown: dict[str, Grown]) -> None:
    rows = [
        [f"a million {kind}", f"{one.most_mib:.1f}", f"{one.end_mib:.1f}", f"{one.remembered}", f"{one.lines}"]
        for kind, one in grown.items()
    ]
    table(["HS256, growth of the process", "most, MiB", "end, MiB", "remembered", "lines logged"], rows)


def _traced_table(key: Key) -> None:
    rows = []
    for count in (DEFAULT_LIMIT // 2, DEFAULT_LIMIT - 1, TRACED):
        each, number = traced_bytes(key, count)
        rows.append([f"after {count} valid", f"{number}", f"{each:.0f}", f"{each * number / MIB:.1f}"])
    table(["HS256, allocated by Python", "remembered", "bytes each", "MiB"], rows)


def _targets(times: Times, grown: dict[str, Grown]) -> None:
    rows = []
    for alg in ALGS:
        for name in times[alg]:
            if name not in {VALID, VALID_LONG, EXPIRED}:
                share = _share(times[alg], name)
                rows.append([f"{alg}, {name}", "less than valid", f"{share:.0%}", _yes(share < 1)])
    for kind, one in grown.items():
        met = one.most_mib < MAX_MIB
        rows.append([f"memory, a million {kind}", f"under {MAX_MIB} MiB", f"{one.most_mib:.1f} MiB", _yes(met)])
    flood = grown["garbage"]
    met = flood.lines <= 1 + flood.seconds / LINE_EVERY_S and flood.remembered == 1
    found = f"{flood.lines} in {flood.seconds:.0f} s"
    rows.append(["lines logged, a million garbage", f"one in {LINE_EVERY_S} s", found, _yes(met)])
    table(["target", "aim", "measured", "met"], rows)


def _yes(met: bool) -> str:
    return "yes" if met else "NO"


def main() -> None:
    start("A verifier in bad weather")
    lines, log = Lines(), logging.getLogger("sekisho.verify")
    log.addHandler(lines)
    log.propagate = False
    now = int(time.time())
    keys = {alg: generate_key(alg, purpose="sign", state="active", now=now) for alg in ALGS}
    grown = {kind: memory(keys["HS256"], kind, lines) for kind in ("garbage", "valid")}
    times = interleaved({alg: contenders(key, now) for alg, key in keys.items()}, ROUNDS)
    _table_of_floods(times)
    _memory_table(grown)
    _traced_table(keys["HS256"])
    _targets(times, grown)
    print("Long ones beside a valid one as long, the others beside a valid one of the usual length.")
    print("Expired is no garbage: only who once held a token can send it. Of what is remembered one token was there")
    print("before the flood: it made the issuer's header known.")


if __name__ == "__main__":
    main()
