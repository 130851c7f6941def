"""Whom does each rule of refresh rotation throw out, the owner or the thief?

Seeded random walks over Sekisho's rule and seven published ones: an owner with one or several tabs on a network that
loses messages, and then a thief who holds a copy of the owner's token. Every rule meets the same owners. The same seed
prints the same tables. What must be true whatever the numbers are (a strict rule keeps an owner with one tab who loses
nothing, ...) is checked in passing, and a false logout of Sekisho's is named with its seed: the exit status is 1 then.
"""

import argparse
import random
import sys
from collections.abc import Callable, Sequence

from _report import median, progress, start, table
from _rotation_rules import RULES, Counter, ParentUntilAccess, PreviousDisplaces, Rule, Sekisho, Strict, StrictRefusing
from _rotation_walk import HOUR, MINUTE, Theft, Thief, honest, robbed

TABS = (1, 2, 3, 8)
LOSSES = (0.0, 0.01, 0.1, 0.4)
SESSIONS = 2000  # in each cell of Sekisho's
SHARE = 4  # the other rules have a quarter of that
REFRESHES = 200  # in each session that lives
THIEF_LOSS = 0.001
THIEF_DAYS = 7
STRATEGIES: dict[str, Callable[[Thief], None]] = {
    "uses it at once and goes on like a client": Thief.client,
    "presents the stolen token every 1 s to 1 h": Thief.poll,
    "takes it while the owner is away, goes on like a client": Thief.away,
    "uses it once and throws the result away": Thief.once,
    "refreshes 1 to 10 s after each refresh of the owner": Thief.shadow,
}
AIDS = """\
Lost: that share of the messages, half of them requests and half replies.
False logout: the session was ended, or the owner was refused and the jar holds no other token.
The clients take no lock across tabs: some publishers' own do. 100 % with two tabs is a rule that needs one.
Never found: the session was not ended. A rule that ends honest sessions finds thieves by the same accident.
Still in: the thief's last use was answered. A rule that only refuses may throw out the owner and keep the thief.
Tokens: access tokens that the thief got. Found after: the median of those found, from the theft on.
Sekisho's stated limits are the last two thieves: a single use looks like a lost reply, the other like a second tab.
"""
REFUSING = (StrictRefusing, PreviousDisplaces, ParentUntilAccess)

Lost = dict[tuple[type[Rule], int, float], float]
Thefts = dict[tuple[type[Rule], str], list[Theft]]


def _sessions(rule: type[Rule], sessions: int) -> int:
    return sessions if rule is Sekisho else max(1, sessions // SHARE)


def honest_owners(seed: str, sessions: int, refreshes: int) -> tuple[Lost, list[str]]:
    """The share of owners thrown out, and the seeds of those whom Sekisho threw out."""
    lost: Lost = {}
    stories = []
    for rule in RULES:
        count = _sessions(rule, sessions)
        for tabs in TABS:
            for loss in LOSSES:
                progress(f"{rule.name}: tabs {tabs}, {loss:.0%} lost")
                seeds = [f"{seed}/{tabs}/{loss}/{number}" for number in range(count)]
                out = [each for each in seeds if not _kept(rule, each, tabs=tabs, loss=loss, refreshes=refreshes)]
                lost[rule, tabs, loss] = len(out) / count
                if rule is Sekisho:
                    stories += out
    return lost, stories


def _kept(rule: type[Rule], seed: str, *, tabs: int, loss: float, refreshes: int) -> bool:
    return honest(rule(), random.Random(seed), tabs=tabs, loss=loss, rounds=refreshes)


def thieves(seed: str, sessions: int) -> Thefts:
    found: Thefts = {}
    for rule in RULES:
        for name, strategy in STRATEGIES.items():
            progress(f"{rule.name}: a thief {name}")
            found[rule, name] = [
                robbed(rule, random.Random(f"{seed}/{name}/{number}"), strategy, loss=THIEF_LOSS, days=THIEF_DAYS)
                for number in range(_sessions(rule, sessions))
            ]
    return found


def _check(lost: Lost, thefts: Thefts) -> None:
    """What the rules say of themselves. If the walks say otherwise they are broken, and not the rules."""
    by = {strategy: name for name, strategy in STRATEGIES.items()}
    for rule in RULES:
        _must(lost[rule, 1, 0.0] == 0, f"{rule.name} keeps an owner with one tab who loses nothing")
    for rule in REFUSING:
        ended = any(theft.found_after is not None for name in STRATEGIES for theft in thefts[rule, name])
        _must(not ended, f"{rule.name} ends no session")
    quick = [theft for theft in thefts[Counter, by[Thief.poll]] if theft.period and theft.period < Counter.interval_s]
    _must(all(theft.found_after is None for theft in quick), "a counter does not find who polls within its interval")
    _must(_never(thefts[Strict, by[Thief.once]]) < 0.1, "a strict rule finds who uses a token once")
    _must(_never(thefts[Sekisho, by[Thief.once]]) == 1, "Sekisho takes a token used once for a lost reply")


def _must(fact: bool, text: str) -> None:
    if not fact:
        raise RuntimeError(f"the simulation is broken: {text}")


def _never(thefts: Sequence[Theft]) -> float:
    return sum(theft.found_after is None for theft in thefts) / len(thefts)


def _honest_table(tabs: int, lost: Lost, sessions: int) -> None:
    rows = [
        [rule.name, *(_percent(lost[rule, tabs, loss]) for loss in LOSSES), f"{_sessions(rule, sessions)}"]
        for rule in RULES
    ]
    head = f"false logouts, % of sessions, {tabs} tab{'s' if tabs > 1 else ''}"
    table([head, *(f"{loss:.0%} lost" for loss in LOSSES), "sessions each"], rows)


def _thief_table(name: str, thefts: Thefts) -> None:
    rows = []
    for rule in RULES:
        these = thefts[rule, name]
        got = [theft.got for theft in these]
        after = [theft.found_after for theft in these if theft.found_after is not None]
        inside = sum(theft.inside for theft in these) / len(these)
        row = [rule.name, _percent(_never(these)), "–" if name.startswith("uses it once") else _percent(inside)]
        mean = sum(got) / len(got)
        rows.append(
            [*row, f"{median(got):.0f}", f"{mean:.1f}", _time(median(after)) if after else "–", f"{len(these)}"]
        )
    head = ["never found, %", "still in, %", "tokens, median", "tokens, mean", "found after", "thieves"]
    table([f"A thief {name}", *head], rows)


def _percent(share: float) -> str:
    """To a tenth, and never a 0 or a 100 that is none."""
    text = f"{share:.1%}".removesuffix("%")
    if share in {0, 1}:
        return f"{share:.0%}".removesuffix("%")
    return {"0.0": "<0.1", "100.0": ">99.9"}.get(text, text)


def _time(seconds: float) -> str:
    return f"{seconds / HOUR:.1f} h" if seconds >= HOUR else f"{seconds / MINUTE:.1f} min"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Whom does each rule of refresh rotation throw out?")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--sessions", type=int, default=SESSIONS, help="in each of Sekisho's cells")
    parser.add_argument("--refreshes", type=int, default=REFRESHES, help="in each session of an honest owner")
    return parser.parse_args()


def main() -> None:
    asked = _arguments()
    start("Rules of refresh rotation: false logouts and thieves")
    print(
        f"Seed {asked.seed}; an owner refreshes {asked.refreshes} times; a thief has {THIEF_DAYS} days.\n", flush=True
    )
    lost, stories = honest_owners(asked.seed, asked.sessions, asked.refreshes)
    thefts = thieves(asked.seed, asked.sessions)
    for tabs in TABS:
        _honest_table(tabs, lost, asked.sessions)
    for name in STRATEGIES:
        _thief_table(name, thefts)
    _check(lost, thefts)
    print(f"0 of {asked.sessions} sessions: less than {3 / asked.sessions:.2%} with 95 % confidence.")
    print(AIDS, end="")
    if stories:
        sys.exit(f"Sekisho threw out {len(stories)} honest owners. The first: random.Random({stories[0]!r})")


if __name__ == "__main__":
    main()
