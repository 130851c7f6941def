"""Rounds of tokens in one process, contender beside contender, and the tables that come of them."""

import gc
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from _report import median, progress, table
from sekisho.tokens.algorithms import ALGORITHMS, AlgorithmName

Round: TypeAlias = Callable[[], float]
"""Runs a round and says how many microseconds a token took."""

Times: TypeAlias = Mapping[AlgorithmName, Mapping[str, float]]
"""Microseconds per token, by algorithm and contender. Who lacks an algorithm is not in its part."""


class Target(NamedTuple):
    """How many times as fast as the fastest of ``others`` the contender ``ours`` shall be."""

    text: str
    alg: AlgorithmName
    ours: str
    others: Sequence[str]
    at_least: float

    def measured(self, times: Times) -> float | None:
        """None when none of the others was there."""
        us = times[self.alg]
        present = [us[name] for name in self.others if name in us]
        return min(present) / us[self.ours] if present else None


def fresh(tokens: Sequence[str]) -> list[str]:
    """Equal strings that are new: none has its hash computed yet."""
    return [token.encode("ascii").decode("ascii") for token in tokens]


def us_each(act: Callable[[Any], object], items: Sequence[object], *, before: Sequence[object]) -> float:
    """Microseconds of this thread's CPU time per item.

    The ones ``before`` do not count: they bring the contender's code back into the processor's caches, where a
    service that has work keeps it.
    """
    for item in before:
        act(item)
    began_ns = time.thread_time_ns()
    for item in items:
        act(item)
    return (time.thread_time_ns() - began_ns) / len(items) / 1000


def interleaved(contenders: Mapping[AlgorithmName, Mapping[str, Round]], rounds: int) -> Times:
    """The medians of so many rounds of each contender, and one more at first that does not count."""
    pairs = [(alg, name) for alg, by_name in contenders.items() for name in by_name]
    times: dict[tuple[AlgorithmName, str], list[float]] = {pair: [] for pair in pairs}
    gc.disable()
    for number in range(rounds + 1):
        progress(f"round {number} of {rounds}" if number else "warming up")
        # In a new order each time: nobody always finds the processor's caches as the same neighbour left them.
        for alg, name in random.sample(pairs, len(pairs)):
            took = contenders[alg][name]()
            if number:
                times[alg, name].append(took)
        gc.collect()
    gc.enable()
    return {alg: {name: median(times[alg, name]) for name in contenders[alg]} for alg in contenders}


def names(times: Times) -> list[str]:
    """Every contender that has at least one algorithm, in the order they were given."""
    return list(dict.fromkeys(name for alg in ALGORITHMS for name in times[alg]))


def ratios(times: Times, ours: str, other: str) -> list[str]:
    """How many times as fast as ``other`` ours is, algorithm by algorithm."""
    quotients = ((times[alg][other] / times[alg][ours]) if other in times[alg] else None for alg in ALGORITHMS)
    return [_times(quotient) for quotient in quotients]


def microseconds(times: Times) -> None:
    """The table of everyone's times."""
    rows = [
        [name, *(_rounded(times[alg][name]) if name in times[alg] else "–" for alg in ALGORITHMS)]
        for name in names(times)
    ]
    table(["µs per token", *ALGORITHMS], rows)


def targets(wanted: Iterable[Target], times: Times) -> None:
    """The table of what was aimed at and whether this run reached it."""
    rows = []
    for target in wanted:
        measured = target.measured(times)
        met = "not measured" if measured is None else "yes" if measured >= target.at_least else "NO"
        rows.append([target.text, f"{target.at_least:g} ×", _times(measured), met])
    table(["target", "at least", "measured", "met"], rows)


def _times(quotient: float | None) -> str:
    return "–" if quotient is None else f"{_rounded(quotient)} ×"


def _rounded(value: float) -> str:
    """With three digits or so, which is as much as a run is good for."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
