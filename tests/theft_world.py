"""The small world of an owner and a thief, to be explored to its last state as ``rotation_world`` tells."""

from collections.abc import Iterator
from typing import NamedTuple

from rotation_world import ANY, FUTURE, MOVES, Broken, Row, Token, answer
from sekisho.rotation import Action


class Rules(NamedTuple):
    """``apart``: the two never act within the window of each other. Else they act whenever they like."""

    window: int
    apart: bool
    mishaps: int = 0  # replies to the owner that are lost, and steps back of the clock; free ones are not counted


class Theft(NamedTuple):
    """The owner has the jar; the thief has every token that he stole or was given, and may present any of them.

    A hand has the session from the refresh that moves the row for it. The refused refresh that ends the session is the
    last change of hands.
    """

    row: Row
    jar: Token
    loot: frozenset[Token]
    hand: str = ""
    owner_acted: int = 99  # ticks ago
    thief_acted: int = 99
    changes: int = 0
    mishaps: int = 0
    alone: int | None = None  # ticks since a refresh of the owner with no act of the thief in the window before it
    doomed: bool = False  # no such act came in the window after it either, but one later


def thefts(window: int) -> list[Theft]:
    """Whatever the thief can steal, at any time."""
    ages = [(made, out) for made in range(window + 2) for out in range(made + 1)]
    rows = [Row(0, 0, parent_branch, *age) for parent_branch in (0, ANY) for age in ages]
    current, parent = (0, 0), (-1, 0)
    loots = [frozenset(loot) for loot in ([current], [parent], [current, parent])]
    return [Theft(row, jar, loot) for row in rows for jar in (current, parent) for loot in loots]


def theft_steps(theft: Theft, rules: Rules) -> Iterator[tuple[str, Theft]]:
    """All that can happen next. Raises ``Broken`` when the two go on for longer than is promised."""
    _check_live(theft, rules.window)
    window = rules.window
    yield (
        "tick",
        theft._replace(
            row=theft.row.older(window),
            owner_acted=theft.owner_acted + 1,
            thief_acted=theft.thief_acted + 1,
            alone=None if theft.alone is None else theft.alone + 1,
        ),
    )
    if rules.apart and theft.mishaps < rules.mishaps and theft.row.handed_out != FUTURE:
        yield "the clock steps back", theft._replace(row=theft.row.in_the_future(), mishaps=theft.mishaps + 1)
    if theft.thief_acted > window or not rules.apart:
        yield from _owner_acts(theft, rules)
    if theft.owner_acted > window or not rules.apart:
        yield from _thief_acts(theft, rules)


def _owner_acts(theft: Theft, rules: Rules) -> Iterator[tuple[str, Theft]]:
    action, after = answer(theft.row, theft.jar, rules.window)
    acted = _handed(theft._replace(owner_acted=0), "owner", action, after, rules)
    event = f"owner: {action} {theft.jar} → {after.token}"
    if action is Action.THEFT:
        return
    if theft.doomed:
        raise Broken(event)
    if action is Action.WAIT:
        yield event, acted
        return
    if acted.mishaps < rules.mishaps or not rules.apart:
        yield f"{event}, lost", acted._replace(mishaps=theft.mishaps + rules.apart)
    if action in MOVES and theft.alone is None and theft.thief_acted > rules.window and not rules.apart:
        acted = acted._replace(alone=0)
    yield event, acted._replace(jar=after.token)


def _thief_acts(theft: Theft, rules: Rules) -> Iterator[tuple[str, Theft]]:
    for token in sorted(theft.loot):
        action, after = answer(theft.row, token, rules.window)
        acted = _handed(theft._replace(thief_acted=0), "thief", action, after, rules)
        if action is Action.THEFT:
            continue
        if theft.alone is not None:
            acted = acted._replace(alone=None, doomed=theft.doomed or theft.alone > rules.window)
        if action is not Action.WAIT:
            acted = acted._replace(loot=acted.loot | {after.token})
        yield f"thief: {action} {token} → {after.token}", acted


def _handed(theft: Theft, hand: str, action: Action, after: Row, rules: Rules) -> Theft:
    """The row as it is after the act. Raises ``Broken`` at one change of hands too many."""
    changed = theft.hand not in {hand, ""} and (action in MOVES or action is Action.THEFT)
    changes = theft.changes + changed
    most = 3 + 2 * theft.mishaps
    if rules.apart and (changes > most or (changes == most and action is not Action.THEFT)):
        raise Broken(f"{changes} changes of hands after {theft.mishaps} mishaps")
    return theft._replace(
        row=after, hand=hand if action in MOVES else theft.hand, changes=changes if rules.apart else 0
    )


def _check_live(theft: Theft, window: int) -> None:
    """Of all tokens ever handed out only the current one is good, and its parent, which leads to it."""
    for token in theft.loot | {theft.jar}:
        if token not in {(0, 0), (-1, 0)} and answer(theft.row, token, window)[0] is not Action.THEFT:
            raise Broken(f"{token} is good beside the current one")


def theft_canonical(theft: Theft, window: int) -> Theft:
    """Counts from the row's position and its parent's; leaves out what was displaced or outlived long before."""
    row = theft.row
    parent_branch = row.parent_branch

    def from_there(token: Token) -> Token:
        generation, branch = token[0] - row.generation, token[1]
        if generation == 0:
            return 0, branch - row.branch
        return (generation, 0 if parent_branch == ANY else branch - parent_branch) if generation == -1 else (-2, 0)

    loot = frozenset(token for token in map(from_there, theft.loot) if token[1] >= -1)
    jar = from_there(theft.jar)
    return theft._replace(
        row=row._replace(generation=0, branch=0, parent_branch=min(parent_branch, 0)),
        jar=(jar[0], max(jar[1], -1)),
        loot=loot,
        owner_acted=min(theft.owner_acted, window + 1),
        thief_acted=min(theft.thief_acted, window + 1),
        alone=None if theft.alone is None else min(theft.alone, window + 1),
    )
