"""The rule of refresh rotation: what to do with a presented refresh token. Pure; one function decides.

A refresh token names a position (generation, branch) in its session. The session's row holds the current position,
the branch that the generation before it had (any, after an adoption), and when the current position was made and last
handed out. W is the replay window. For a presented position (p, q) of a live session with current position (g, b):

====================================================  ================================================================
case                                                  decision
====================================================  ================================================================
(p,q) = (g,b), handed out at most W ago               **same again**: a slow second tab must not be two generations
                                                      behind, so a token is replaced at most once per W
(p,q) = (g,b), else                                   **rotate** to (g+1, 0)
p = g-1, q = parent, handed out and made ≤ W ago      **same again**, handed out now: tabs racing, or a reply lost
p = g-1, q = parent, handed out ≤ W ago, made before  **wait**: (g,b) may be on its way to an honest tab. Without
                                                      this, a thief who presents the parent every 20 s would keep it
                                                      alive for ever
p = g-1, q = parent, else                             **branch** to (g, b+1): a late retry after a lost reply. Nobody
                                                      honest has the displaced branch; whoever presents it later is
                                                      the other holder
(p,q) > (g,b)                                         **adopt**: we signed it in a history that the database lost
anything else                                         **theft**: two holders. End the session
====================================================  ================================================================

Times are whole microseconds. A time that lies in the future (the clock stepped back) counts as now and is written
back, or the window would stay open until the clock has caught up.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, NamedTuple

MICROSECONDS: Final = 1_000_000


class Action(StrEnum):
    """What the service does with a presented token."""

    SAME_AGAIN = "same_again"
    ROTATE = "rotate"
    WAIT = "wait"
    BRANCH = "branch"
    ADOPT = "adopt"
    THEFT = "theft"


@dataclass(frozen=True, slots=True)
class RotationState:
    """The part of a session's row that rotation reads and writes. Times in microseconds since 1970."""

    generation: int
    branch: int
    parent_branch: int | None
    made_at_us: int
    handed_out_at_us: int


class Decision(NamedTuple):
    """The action, and the state to be written before it is answered (unchanged where nothing is written)."""

    action: Action
    state: RotationState
    retry_after_s: int = 0


def decide(state: RotationState, *, generation: int, branch: int, now_us: int, window_s: int) -> Decision:
    """What to do with a genuine token for (``generation``, ``branch``) of a live session in ``state``."""
    window_us = window_s * MICROSECONDS
    state = _without_future(state, now_us)
    handed_out_lately = now_us - state.handed_out_at_us <= window_us
    made_lately = now_us - state.made_at_us <= window_us
    current = (state.generation, state.branch)
    presented = (generation, branch)

    if presented == current:
        if handed_out_lately:
            return Decision(Action.SAME_AGAIN, state)
        return Decision(Action.ROTATE, _made(state.generation + 1, 0, parent_branch=state.branch, now_us=now_us))
    if generation == state.generation - 1 and state.parent_branch in (branch, None):
        if handed_out_lately and made_lately:
            return Decision(Action.SAME_AGAIN, replace(state, handed_out_at_us=now_us))
        if handed_out_lately:
            left_us = state.handed_out_at_us + window_us - now_us
            return Decision(Action.WAIT, state, retry_after_s=left_us // MICROSECONDS + 1)
        next_branch = state.branch + 1
        return Decision(
            Action.BRANCH, _made(state.generation, next_branch, parent_branch=state.parent_branch, now_us=now_us)
        )
    if presented > current:
        return Decision(Action.ADOPT, _made(generation, branch, parent_branch=None, now_us=now_us))
    return Decision(Action.THEFT, state)


def _made(generation: int, branch: int, *, parent_branch: int | None, now_us: int) -> RotationState:
    return RotationState(generation, branch, parent_branch, made_at_us=now_us, handed_out_at_us=now_us)


def _without_future(state: RotationState, now_us: int) -> RotationState:
    if state.made_at_us <= now_us and state.handed_out_at_us <= now_us:
        return state
    return replace(
        state,
        made_at_us=min(state.made_at_us, now_us),
        handed_out_at_us=min(state.handed_out_at_us, now_us),
    )
