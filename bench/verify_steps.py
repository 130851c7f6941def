"""Where does the first sight of an access token go, and what does each strictness cost?

The steps are the lines of the source itself, cut at the numbers in its comments and run in a loop of their own; an
empty loop is taken off. The variants are the same modules compiled once more with one strictness left out. Tokens are
new strings, the times CPU time of one thread, medians of interleaved rounds, as in verify.py.
"""

import gc
import inspect
import logging
import textwrap
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from _peers import AUDIENCE, ISSUER, new_token
from _report import median, progress, start, table
from _rounds import Round, Times, fresh, interleaved, us_each
from _source import Cut, variant
from sekisho import wire
from sekisho.errors import TokenError
from sekisho.tokens import access, algorithms, jws
from sekisho.tokens.algorithms import AlgorithmName
from sekisho.tokens.keyring import Keyring
from sekisho.tokens.keys import Key, generate_key
from sekisho.verify import Verifier, verifier
from sekisho.verify.seen import DEFAULT_LIMIT, Seen

TOKENS = 250  # in a round
BEFORE = 50  # in a round, without being measured
ROUNDS_OF_STEPS = 60
ROUNDS_OF_VARIANTS = 80
ALGS: tuple[AlgorithmName, ...] = ("HS256", "EdDSA")

Scope = dict[str, Any]


class Step(NamedTuple):
    """Without a title it is run and not measured: it hands a value from one function to the next."""

    title: str
    code: str
    names: dict[str, Any]  # what the code finds beside its own variables
    again: str = ""  # for the way to the next step, where the code cannot be run twice


def _steps() -> list[Step]:
    def step(title: str, cut: Cut) -> Step:
        return Step(title, cut.text(), vars(cut.module))

    return [
        step("the clock", Cut(verifier, "now, leeway_s = ", "try:")),
        step("the memory: look-up", Cut(verifier, "known = seen.get", "# 1 to 8.")),
        step(" 1 size, three parts", Cut(jws, "# 1.", "# 2.")),
        step(" 2 header, looked up", Cut(jws, "# 2.", "# 3.")),
        step(" 3 signature", Cut(jws, "# 3.", "# 4.")),
        step(" 4 payload out of base64url", Cut(jws, "# 4.", "return payload, known or")),
        Step("", "data, header = payload, known", {}),
        step(" 5 type and kid", Cut(access, "# 5.", "# 6.")),
        step(" 6 claims out of JSON", Cut(access, "# 6.", "# 7.")),
        step(" 7 one reading only", Cut(access, "# 7.", "# 8.")),
        step(" 8 a user's", Cut(access, "# 8.", "return claims")),
        step(" 9 and 10 issuer, audience", Cut(verifier, "# 9.", "# 11.")),
        step("11 and 12 times, lifetime", Cut(verifier, "# 11.", "# 13.")),
        step("13 session not ended", Cut(verifier, "# 13.", "except TokenError")),
        Step("", "known = None", {}),
        step("the memory: entry", Cut(verifier, "if known is None:", "return claims")),
    ]


MAC = (
    ("   copy of the keyed state", "mac = self._keyed.copy()"),
    ("   update", "mac.update(message)"),
    ("", "spare = mac.copy()"),
    ("   finalize", "digest = mac.finalize()", "digest = spare.finalize()"),
    ("   encode", "ours = b64encode_as_string(digest, BASE64URL)"),
    ("   compare", 'hmac.compare_digest(ours, signature + "=")'),
)
_MAC_IN_SOURCE = (
    "mac = self._keyed.copy()",
    "mac.update(message)",
    'hmac.compare_digest(b64encode_as_string(mac.finalize(), BASE64URL), signature + "=")',
)


def _mac_steps() -> list[Step]:
    source = inspect.getsource(algorithms.Hs256.verify)
    for text in _MAC_IN_SOURCE:
        if text not in source:
            raise RuntimeError(f"Hs256.verify has no {text!r} any more")
    return [Step(title, code, vars(algorithms), *again) for title, code, *again in MAC]


STRICT_BASE64 = (Cut(wire, 'if "+" in text', "try:"),)
TYPE_AND_KID = (Cut(access, "# 5.", "# 6."),)
ONE_READING = (Cut(access, "# 7.", "# 8."),)
LIFETIME = (Cut(verifier, "# 12.", "# 13."),)
REVOCATION = (Cut(verifier, "# 13.", "except TokenError", "pass"),)
MEMORY = (
    Cut(verifier, "known = seen.get", "# 1 to 8.", "known = None"),
    Cut(verifier, "if known is None:", "return claims"),
)
AS_IT_IS, NONE = "as it is", "without any of them"
WITHOUT: dict[str, tuple[Cut, ...]] = {
    AS_IT_IS: (),
    "without strict base64url (4)": STRICT_BASE64,
    "without the type and the kid (5)": TYPE_AND_KID,
    "without the proof of one reading (7)": ONE_READING,
    "without the lifetime (12)": LIFETIME,
    "without the look-up of ended sessions (13)": REVOCATION,
    "without the memory": MEMORY,
    NONE: STRICT_BASE64 + TYPE_AND_KID + ONE_READING + LIFETIME + REVOCATION + MEMORY,
}
REMEMBER_NONE = "as it is, remember=0"


def _new_verifier(key: Key, kind: Any = Verifier, **options: int) -> Any:
    return kind(issuer=ISSUER, audience=AUDIENCE, keys=Keyring([key]), allow_shared_secret=True, **options)


def ns_of_steps(steps: Sequence[Step], scopes: Sequence[Scope]) -> dict[str, float]:
    """Nanoseconds per token by title. Each scope goes through all steps, as the local variables of one token."""
    took = {}
    for step in steps:
        code = compile(step.code, "<step>", "exec")
        if step.title:
            names = [name for name in scopes[0] if name in code.co_names]
            states = [tuple(scope[name] for name in names) for scope in scopes]
            empty = _ns(_loop("pass", names, step.names), states)
            took[step.title] = _ns(_loop(step.code, names, step.names), states) - empty
        for scope in scopes:
            exec(step.again or code, step.names, scope)
    return took


def _loop(code: str, variables: Sequence[str], names: dict[str, Any]) -> Callable[[Sequence[Any]], None]:
    text = f"def run(states):\n    for [{', '.join(variables)}] in states:\n{textwrap.indent(code, ' ' * 8)}"
    made: Scope = {}
    exec(compile(text, "<loop>", "exec"), names, made)
    return made["run"]


def _ns(run: Callable[[Sequence[Any]], None], states: Sequence[Any]) -> float:
    run(states[:BEFORE])
    began_ns = time.thread_time_ns()
    run(states[BEFORE:])
    return (time.thread_time_ns() - began_ns) / (len(states) - BEFORE)


def _round_of_steps(key: Key, tokens: Sequence[str]) -> dict[str, float]:
    verify = _new_verifier(key).verify
    whole = us_each(verify, fresh(tokens[BEFORE:]), before=fresh(tokens[:BEFORE])) * 1000
    again = _new_verifier(key)
    again.verify(tokens[0])  # its header is known from now on
    keyring = again._held.in_use[0]  # noqa: SLF001 - the steps are inside
    took = ns_of_steps(_steps(), [{"self": again, "token": token, "keyring": keyring} for token in fresh(tokens)])
    if key.alg == "HS256":
        parts = [token.rpartition(".") for token in tokens]
        scopes = [{"self": key.material, "message": m.encode("ascii"), "signature": s} for m, _, s in parts]
        took |= ns_of_steps(_mac_steps(), scopes)
    return took | {WHOLE: whole}


WHOLE = "the whole, measured"


def measured_steps(
    keys: Sequence[Key], tokens: dict[AlgorithmName, list[str]]
) -> dict[AlgorithmName, dict[str, float]]:
    """The medians, by algorithm and title."""
    rounds: dict[AlgorithmName, list[dict[str, float]]] = {key.alg: [] for key in keys}
    gc.disable()
    for number in range(ROUNDS_OF_STEPS):
        progress(f"steps, round {number + 1} of {ROUNDS_OF_STEPS}")
        for key in keys:
            rounds[key.alg].append(_round_of_steps(key, tokens[key.alg]))
        gc.collect()
    gc.enable()
    return {alg: {title: median([one[title] for one in each]) for title in each[0]} for alg, each in rounds.items()}


def _table_of_steps(ns: dict[AlgorithmName, dict[str, float]]) -> None:
    mac_titles = [title for title, *_ in MAC if title]
    titles = [step.title for step in _steps() if step.title]
    rows = []
    for title in titles:
        rows.append([title, *(f"{ns[alg][title]:.0f}" for alg in ALGS)])
        if title == " 3 signature":
            rows += [[part, f"{ns['HS256'][part]:.0f}", ""] for part in mac_titles]
    sums = {alg: sum(ns[alg][title] for title in titles) for alg in ALGS}
    rows.append(["their sum", *(f"{sums[alg]:.0f}" for alg in ALGS)])
    rows.append(["calls between them, freeing", *(f"{ns[alg][WHOLE] - sums[alg]:.0f}" for alg in ALGS)])
    rows.append([WHOLE, *(f"{ns[alg][WHOLE]:.0f}" for alg in ALGS)])
    table(["ns per token, first sight", *ALGS], rows)


def forgetting_ns() -> float:
    """What a full memory adds to each entry: half of it is forgotten at once, now and then."""
    seen: Any = Seen(DEFAULT_LIMIT)
    for number in range(DEFAULT_LIMIT):
        seen.remember(f"a token of usual length, {number:0400}", number)
    began_ns = time.thread_time_ns()
    seen.remember("one too many", 0)
    return (time.thread_time_ns() - began_ns) / (DEFAULT_LIMIT + 1 - len(seen))


def variants(key: Key, now: int, tokens: Sequence[str]) -> dict[str, Round]:
    """First sight with and without, by name."""
    expired = new_token(key, now - 3600)
    kinds = {name: variant(cuts) for name, cuts in WITHOUT.items()}

    def first_sight(kind: Any, **options: int) -> Round:
        tried = _new_verifier(key, kind, **options)
        tried.verify(tokens[0])
        _refuses(tried, expired)

        def round_() -> float:
            verify = _new_verifier(key, kind, **options).verify
            return us_each(verify, fresh(tokens[BEFORE:]), before=fresh(tokens[:BEFORE]))

        return round_

    rounds = {name: first_sight(kind) for name, kind in kinds.items()}
    rounds[REMEMBER_NONE] = first_sight(kinds[AS_IT_IS], remember=0)
    return rounds


def _refuses(one: Any, token: str) -> None:
    try:
        one.verify(token)
    except TokenError:
        return
    raise RuntimeError("a variant takes an expired token: more was cut out than was meant")


def _table_of_variants(times: Times) -> None:
    def costs(alg: AlgorithmName, name: str) -> list[str]:
        us, whole = times[alg][name], times[alg][AS_IT_IS]
        return [f"{us:.2f}", f"{(whole - us) * 1000:+.0f}", f"{(whole - us) / whole:+.1%}"]

    rows = [[name, *costs("HS256", name), f"{times['EdDSA'][name]:.1f}"] for name in times["HS256"]]
    table(["first sight, µs per token", "HS256", "saves ns", "share", "EdDSA"], rows)


def main() -> None:
    logging.disable()  # the proof that a variant still refuses is no news
    start("The steps of verifying an access token")
    now = int(time.time())
    keys = [generate_key(alg, purpose="sign", state="active", now=now) for alg in ALGS]
    tokens = {key.alg: [new_token(key, now) for _ in range(BEFORE + TOKENS)] for key in keys}
    _table_of_steps(measured_steps(keys, tokens))
    print(f"A full memory ({DEFAULT_LIMIT}) adds {median([forgetting_ns() for _ in range(9)]):.0f} ns to each entry.\n")
    _table_of_variants(interleaved({key.alg: variants(key, now, tokens[key.alg]) for key in keys}, ROUNDS_OF_VARIANTS))
    print("With EdDSA the curve's own spread is larger than any strictness costs.")


if __name__ == "__main__":
    main()
