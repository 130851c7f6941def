"""Sekisho's answer beside the reference's. They are counted, and the fuzzer is told where they differ."""

from collections import Counter
from collections.abc import Callable

from reference import Refused

answers = Counter()


class Disagreement(Exception):
    """Sekisho's reading and the reference's differ, or a promise is broken."""


def agree(what: str, ours: Callable[[], object], theirs: Callable[[], object], refusal: type[Exception]) -> None:
    """Both refuse, or both read the same. Any exception that is no refusal goes out to the fuzzer."""
    try:
        mine = repr(ours())  # by repr: 1, 1.0 and True are equal to Python
    except refusal as error:
        mine = None
        str(error)
    try:
        other = repr(theirs())
    except Refused:
        other = None
    answers[what, "refused" if mine is None else "accepted"] += 1
    if mine != other:
        raise Disagreement(f"{what}: Sekisho {mine or 'refuses'}, the reference {other or 'refuses'}")


def never() -> None:
    raise Refused
