"""Small worlds around ``rotation.decide`` that can be explored to the last state.

Time goes in ticks, and a row remembers how many ticks ago something was. States that differ only by the generation
they have reached, or by a time longer ago than the window, are one state: so the worlds are finite, and ``explore``
sees every order of events. What it finds wrong comes back as the shortest way there.

**An honest client** keeps its refresh token in one jar (a browser's cookies; a file that several processes share). Any
number of tabs or processes use it, each in the same way: read the jar, send what it holds, put into the jar what comes
back. The request begins with the reading of the jar: after ``timeout`` the client has given up and ignores the reply,
after ``server`` nothing of it is carried out any more. Replies may overtake each other, and the jar keeps what arrived
last. A process that goes on with a copy of its own is a second holder, and no one can tell it from a thief.
"""

from collections.abc import Callable, Hashable, Iterator
from enum import Enum, auto
from functools import cache
from typing import NamedTuple

from sekisho.rotation import MICROSECONDS, Action, RotationState, decide

ANY = -1  # as a parent's branch: any
FUTURE = -1000  # as a time ago: the clock has stepped back by days, and will not catch up
MOVES = {Action.ROTATE, Action.BRANCH, Action.ADOPT}

Token = tuple[int, int]


class Row(NamedTuple):
    """What ``RotationState`` holds, with times in ticks ago."""

    generation: int
    branch: int
    parent_branch: int
    made: int
    handed_out: int

    @property
    def token(self) -> Token:
        return self.generation, self.branch

    def older(self, window: int) -> "Row":
        made, handed_out = self.made, self.handed_out
        return self._replace(
            made=made if made == FUTURE else min(made + 1, window + 1),
            handed_out=handed_out if handed_out == FUTURE else min(handed_out + 1, window + 1),
        )

    def in_the_future(self) -> "Row":
        return self._replace(made=FUTURE, handed_out=FUTURE)


@cache
def answer(row: Row, token: Token, window: int) -> tuple[Action, Row]:
    """What is decided, and the row after it."""
    parent_branch = None if row.parent_branch == ANY else row.parent_branch
    state = RotationState(*row.token, parent_branch, -row.made * MICROSECONDS, -row.handed_out * MICROSECONDS)
    action, after, _ = decide(state, generation=token[0], branch=token[1], now_us=0, window_s=window)
    ago = [max(FUTURE, -us // MICROSECONDS) for us in (after.made_at_us, after.handed_out_at_us)]
    return action, Row(
        after.generation, after.branch, ANY if after.parent_branch is None else after.parent_branch, *ago
    )


@cache
def windows_close(row: Row, window: int) -> bool:
    """Whether W after a refresh the token is replaced, and presenting the parent does not keep it from that."""
    for _ in range(window + 1):
        row = row.older(window)
    kept_fresh, parent = row._replace(handed_out=0), (row.generation - 1, max(0, row.parent_branch))
    replaced = answer(row, row.token, window)[0] is Action.ROTATE
    return replaced and answer(kept_fresh, parent, window)[0] is Action.WAIT


class Broken(AssertionError):
    """A promise did not hold; with the shortest way there."""


def explore(
    start: list, steps: Callable[..., Iterator], canonical: Callable, at_most: int = 1_000_000
) -> set[Hashable]:
    """Every state that can be reached. ``steps`` yields (what happened, next state), and raises ``Broken``."""
    came_from = dict.fromkeys(map(canonical, start))
    layer = list(came_from)
    while layer:
        found = []
        for state in layer:
            try:
                for event, after in steps(state):
                    after = canonical(after)  # noqa: PLW2901 - the state as the search knows it
                    if after not in came_from:
                        came_from[after] = state, event
                        found.append(after)
            except Broken as broken:
                events = [str(broken)]
                while came_from[state] is not None:
                    state, event = came_from[state]  # noqa: PLW2901 - the state as the search knows it
                    events.append(event)
                raise Broken(" → ".join(reversed(events))) from None
        layer = found
        assert len(came_from) < at_most, "the world is not as small as it was meant to be"
    return set(came_from)


# --- an honest client ----------------------------------------------------------------------------------------------


class Failover(Enum):
    """When the database may lose its last commits, however many."""

    NOTHING_IN_FLIGHT = auto()
    ONE_IN_FLIGHT = auto()  # with what the jar holds, or its reply; and none is sent until it is over
    ROTATIONS_LOST = auto()  # any in flight; what is lost are rotations and adoptions alone
    NOTHING_RENEWED = auto()  # the same, and the first thing lost may be a branch: while no clock steps back
    ANY_TIME = auto()  # not promised


class Bounds(NamedTuple):
    """How large the world is. ``window`` is W, ``timeout`` the client's TC."""

    window: int
    timeout: int
    server: int  # from the reading of the jar to the last moment when the server carries a request out
    in_flight: int
    two_steps: bool = False  # reading the row and writing it are two steps, and others come between
    compare_handed_out: bool = True  # the write's condition names handed_out_at, not generation and branch alone
    clock_steps_back: bool = False
    failover: Failover | None = None


SENT, READ, REPLY = "request", "request that has read the row", "reply"
NO_ROW = Row(0, 0, 0, 0, 0)
FARTHEST_BRANCH = 2  # the world's edge; only failovers, which keep old rows, lead there


class Message(NamedTuple):
    """A request, or the reply to it. ``age`` counts from the reading of the jar."""

    stage: str
    token: Token
    age: int
    read: Row = NO_ROW
    planned: Row = NO_ROW


class World(NamedTuple):
    row: Row
    jar: Token
    messages: tuple[Message, ...] = ()
    kept: Row | None = None  # what the next failover goes back to
    quiet: bool = False  # nothing is sent until all messages are over


FIRST = World(Row(0, 0, ANY, 0, 0), (0, 0))


def honest_steps(world: World, bounds: Bounds) -> Iterator[tuple[str, World]]:
    """All that can happen next. Raises ``Broken`` when an honest request is refused or two tokens are current."""
    _check_holders(world, bounds.window)
    row, jar, messages, kept, quiet = world
    if row.branch > FARTHEST_BRANCH:
        return
    if len(messages) < bounds.in_flight and not quiet:
        yield f"send {jar}", _with(world, Message(SENT, jar, 0))
    for index, message in enumerate(messages):
        others = world._replace(messages=messages[:index] + messages[index + 1 :])
        yield f"lose {message.stage} {message.token}", others
        if message.stage == SENT:
            yield _taken_up(others, message, bounds)
        elif message.stage == REPLY:
            yield f"deliver {message.token}", others._replace(jar=message.token)
        elif _unchanged(row, message.read, bounds):
            yield f"write {message.planned.token}", _written(others, message, message.planned, bounds)
        else:
            yield "decide again", _with(others, Message(SENT, message.token, message.age))
    yield "tick", _tick(world, bounds)
    if bounds.clock_steps_back and row.handed_out != FUTURE:
        stepped = None if kept is None else kept.in_the_future()
        yield "the clock steps back", world._replace(row=row.in_the_future(), kept=stepped)
    if bounds.failover is not None and kept != row:
        yield "copy the row", world._replace(kept=row)
        if kept is not None and _may_fail_over(world, bounds.failover):
            quiet = bounds.failover is Failover.ONE_IN_FLIGHT
            yield f"fail over to {kept.token}", world._replace(row=kept, kept=None, quiet=quiet)


def _check_holders(world: World, window: int) -> None:
    """Of each generation at most one token is held or under way, and none is dead before anyone presents it."""
    branches: dict[int, int] = {}
    for generation, branch in [world.jar, *(message.token for message in world.messages)]:
        if branches.setdefault(generation, branch) != branch:
            raise Broken(f"two tokens of one generation: branches {branch} and {branches[generation]}")
        if answer(world.row, (generation, branch), window)[0] is Action.THEFT:
            raise Broken(f"honest {(generation, branch)} refused at {world.row}")


def _with(world: World, message: Message) -> World:
    return world._replace(messages=(*world.messages, message))


def _taken_up(others: World, message: Message, bounds: Bounds) -> tuple[str, World]:
    row = others.row
    action, after = answer(row, message.token, bounds.window)
    event = f"{action} {message.token} → {after.token}"
    if not windows_close(after, bounds.window):
        raise Broken(f"{event}, and the window stays open")
    if action is Action.WAIT:
        later = after
        for _ in range(bounds.window + 1 - max(0, row.handed_out)):
            later = later.older(bounds.window)
        if answer(later, message.token, bounds.window)[0] is Action.WAIT:
            raise Broken("a wait that does not end when the token was handed out W ago")
        return event, others._replace(row=after)
    if bounds.two_steps and after != row:
        return f"plan to {event}", _with(others, Message(READ, message.token, message.age, row, after))
    may_be_lost = {Action.ROTATE, Action.ADOPT}
    if bounds.failover is Failover.NOTHING_RENEWED and others.kept == row:
        may_be_lost.add(Action.BRANCH)
    any_in_flight = bounds.failover in {Failover.ROTATIONS_LOST, Failover.NOTHING_RENEWED}
    if any_in_flight and after != row and action not in may_be_lost:
        others = others._replace(kept=None)
    return event, _written(others, message, after, bounds)


def _written(others: World, message: Message, after: Row, bounds: Bounds) -> World:
    if after.token < others.row.token:
        raise Broken("the position went backwards")
    world = others._replace(row=after)
    too_late = message.age > bounds.timeout
    return world if too_late else _with(world, Message(REPLY, after.token, message.age))


def _unchanged(row: Row, read: Row, bounds: Bounds) -> bool:
    same_hand_out = row.handed_out == read.handed_out or not bounds.compare_handed_out
    return row.token == read.token and same_hand_out


def _tick(world: World, bounds: Bounds) -> World:
    window, messages = bounds.window, []
    for message in world.messages:
        stage, token, age, read, planned = message
        if age < (bounds.timeout if stage == REPLY else bounds.server):
            if stage == READ:
                read, planned = read.older(window), planned.older(window)
            messages.append(Message(stage, token, age + 1, read, planned))
    kept = None if world.kept is None else world.kept.older(window)
    return world._replace(row=world.row.older(window), messages=tuple(messages), kept=kept)


def _may_fail_over(world: World, failover: Failover) -> bool:
    messages = world.messages
    if failover is Failover.NOTHING_IN_FLIGHT:
        return not messages
    if failover is Failover.ONE_IN_FLIGHT:
        return not messages or (len(messages) == 1 and (messages[0].stage == REPLY or messages[0].token == world.jar))
    return True


def honest_canonical(world: World) -> World:
    """Counts generations from the row's, and branches from the lowest wherever no new branch 0 can come."""
    generation, kept = world.row.generation, world.kept
    if kept is not None:  # how far back it lies makes no difference: everything is ahead of it
        kept = kept._replace(generation=max(kept.generation, generation - 3))
    rows = [world.row, *([] if kept is None else [kept])]
    rows += [row for message in world.messages if message.stage == READ for row in (message.read, message.planned)]
    tokens = [world.jar, *(row.token for row in rows), *(message.token for message in world.messages)]
    tokens += [(row.generation - 1, row.parent_branch) for row in rows if row.parent_branch != ANY]
    oldest = min(row.generation for row in rows)
    lowest: dict[int, int] = {}
    for its_generation, branch in tokens:
        if its_generation <= oldest:
            lowest[its_generation] = min(branch, lowest.get(its_generation, branch))

    def from_there(token: Token) -> Token:
        return token[0] - generation, token[1] - lowest.get(token[0], 0)

    def row_from_there(row: Row) -> Row:
        parent_branch = row.parent_branch
        if parent_branch != ANY:
            parent_branch -= lowest.get(row.generation - 1, 0)
        return Row(*from_there(row.token), parent_branch, row.made, row.handed_out)

    messages = sorted(
        Message(stage, from_there(token), age, row_from_there(read), row_from_there(planned))
        if stage == READ
        else Message(stage, from_there(token), age)
        for stage, token, age, read, planned in world.messages
    )
    kept = None if kept is None else row_from_there(kept)
    quiet = world.quiet and bool(messages)
    return World(row_from_there(world.row), from_there(world.jar), tuple(messages), kept, quiet)
