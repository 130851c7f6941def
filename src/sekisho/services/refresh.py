"""Refresh: a refresh token becomes a new pair, or tells us that two hold tokens of one session.

The ordinary case is one conditional UPDATE. What it does not settle is read, judged by ``rotation.decide`` and written
back on the condition that nothing has changed since.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, NamedTuple

from sekisho.errors import (
    RefreshRefused,
    RefreshSessionOver,
    RefreshTheft,
    RefreshTokenInvalid,
    RefreshWait,
    TryLater,
)
from sekisho.rotation import Action, Decision, RotationState, decide
from sekisho.services.alarm import Alarm
from sekisho.services.caller import Caller
from sekisho.services.events import Event, Events
from sekisho.services.mint import Grant, Mint
from sekisho.services.sessions import Sessions
from sekisho.services.stall import StallWatch
from sekisho.storage.ports import Storage, Transaction
from sekisho.storage.rows import MICROSECONDS, Cause, Ended, Rotate, RotationWrite, Session, TheftRecord
from sekisho.tokens.refresh import Presented

_ATTEMPTS: Final = 5


class _Outcome(NamedTuple):
    """What a transaction has decided; told to the caller after its commit."""

    action: Action | None  # None: the session is over
    session: Session
    now_us: int
    retry_after_s: int = 0
    ended: Sequence[Ended] = ()
    theft: TheftRecord | None = None


@dataclass(frozen=True, kw_only=True)
class Refresh:
    """Rotates refresh tokens. ``window_s`` is W of rotation.py."""

    storage: Storage
    mint: Mint
    sessions: Sessions
    events: Events
    window_s: int
    stall: StallWatch
    alarm: Alarm
    _under_way: set[asyncio.Task[_Outcome]] = field(default_factory=set, init=False, repr=False)

    async def __call__(self, *, token: str, caller: Caller) -> Grant:
        """A new pair. Raises ``RefreshRefused``, ``TryLater``, ``RefreshWait`` and ``StorageUnavailable``.

        A refusal for garbage (``RefreshTokenInvalid``) ends nobody's session.
        """
        try:
            presented = self.mint.read_refresh_token(token)  # garbage ends here, before the database
            taken_up_at = self.stall.now()
            self._expect_young(taken_up_at)
            check = partial(self._check, presented, taken_up_at)
            outcome = await self._rotated(presented, caller, check)
            if outcome is None:
                outcome = await self._settled(presented, caller, check)
        except RefreshTokenInvalid as error:
            self.events.record(Event.REFRESH_REFUSED, error.code, address=caller.address, detail=error.detail)
            raise
        return self._answer(outcome, caller)

    async def _rotated(self, presented: Presented, caller: Caller, check: Callable[[Session], None]) -> _Outcome | None:
        """The ordinary case."""
        order = Rotate(
            session_id=presented.session_id,
            presented_generation=presented.position.generation,
            presented_branch=presented.position.branch,
            window_us=self.window_s * MICROSECONDS,
            idle_us=self.sessions.limits.idle_s * MICROSECONDS,
            address=caller.address,
            user_agent=caller.user_agent,
        )
        rotated = await self.storage.rotate(order, check)
        return None if rotated is None else _Outcome(Action.ROTATE, rotated, rotated.made_at_us)

    async def _settled(self, presented: Presented, caller: Caller, check: Callable[[Session], None]) -> _Outcome:
        """Every other case. Goes on when the request is cancelled: a theft that was found must be told."""

        async def settle() -> _Outcome:
            outcome = await self.storage.write(lambda tx: self._decide(tx, presented, caller, check))
            self.sessions.tell(outcome.ended)
            if outcome.theft is not None:
                self.events.record(Event.THEFT_FOUND, "theft", **_both(outcome.theft))
                self.alarm.ring(outcome.theft)
            return outcome

        settling = asyncio.create_task(settle())
        self._under_way.add(settling)  # the loop alone would let it be collected in the middle
        settling.add_done_callback(self._under_way.discard)
        return await asyncio.shield(settling)

    def _decide(
        self, tx: Transaction, presented: Presented, caller: Caller, check: Callable[[Session], None]
    ) -> _Outcome:
        for attempt in range(_ATTEMPTS):
            # The first look takes no lock: mostly nothing is to be written. When many tabs write at once, the losers
            # of the first round would go on losing without one.
            look_up = tx.sessions.locked if attempt else tx.sessions.find
            session = look_up(presented.session_id)
            if session is None:
                raise RefreshSessionOver("its session is not known: purged long after its end, or lost in a failover")
            check(session)
            now_us = tx.now_us()
            outcome = self._settle(tx, session, presented, caller, now_us)
            if outcome is not None:
                return outcome
        raise TryLater(1, "the session's row kept changing")

    def _check(self, presented: Presented, taken_up_at: float, session: Session) -> None:
        """Before anything is decided, and so before the commit."""
        self.mint.check_secret(presented, session)
        self._expect_young(taken_up_at)

    def _expect_young(self, taken_up_at: float) -> None:
        """A request that was given up must move nothing, nor be taken for a thief's: its client refreshed elsewhere."""
        if self.stall.is_too_old(taken_up_at):
            raise TryLater(1, "the request may be an old one: this node or the database stood still")

    def _settle(
        self, tx: Transaction, session: Session, presented: Presented, caller: Caller, now_us: int
    ) -> _Outcome | None:
        """Carries out what ``rotation.decide`` says; None when the row has changed since it was read."""
        if session.ended_at_us is not None or session.user_disabled:
            return _Outcome(None, session, now_us)
        if session.is_over(now_us):
            ended = self._end(tx, session, Cause.EXPIRED, now_us)
            return _Outcome(None, session, now_us, ended=ended) if ended else None
        state = _state(session)
        position = presented.position
        decision = decide(
            state,
            generation=position.generation,
            branch=position.branch,
            now_us=now_us,
            window_s=self.window_s,
        )
        if decision.action is Action.THEFT:
            return self._record_theft(tx, session, presented, caller, now_us)
        if decision.state != state:
            write = self._write(session, decision, caller, now_us)
            if not tx.sessions.write_rotation(session, write):
                return None
            session = replace(session, **vars(write))
        return _Outcome(decision.action, session, now_us, retry_after_s=decision.retry_after_s)

    def _write(self, session: Session, decision: Decision, caller: Caller, now_us: int) -> RotationWrite:
        moves = decision.action in {Action.ROTATE, Action.BRANCH, Action.ADOPT}
        state = decision.state
        return RotationWrite(
            generation=state.generation,
            branch=state.branch,
            parent_branch=state.parent_branch,
            made_at_us=state.made_at_us,
            handed_out_at_us=state.handed_out_at_us,
            # Only a new position shows that the session is in use; the same token again does not prolong it.
            idle_ends_at_us=now_us + self.sessions.limits.idle_s * MICROSECONDS if moves else session.idle_ends_at_us,
            last_address=caller.address if moves else session.last_address,
            last_user_agent=caller.user_agent if moves else session.last_user_agent,
        )

    def _record_theft(
        self, tx: Transaction, session: Session, presented: Presented, caller: Caller, now_us: int
    ) -> _Outcome | None:
        ended = self._end(tx, session, Cause.THEFT, now_us)
        if not ended:
            return None
        theft = TheftRecord(
            session_id=session.id,
            user_id=session.user_id,
            at_us=now_us,
            generation=presented.position.generation,
            branch=presented.position.branch,
            address=caller.address,
            user_agent=caller.user_agent,
            current_generation=session.generation,
            current_branch=session.branch,
            current_since_us=session.made_at_us,
            current_address=session.last_address,
            current_user_agent=session.last_user_agent,
        )
        tx.sessions.record_theft(theft)
        return _Outcome(Action.THEFT, session, now_us, ended=ended, theft=theft)

    def _end(self, tx: Transaction, session: Session, cause: Cause, now_us: int) -> Sequence[Ended]:
        return tx.sessions.end(
            cause=cause,
            now_us=now_us,
            lapses_at_us=self.sessions.lapses_at_us(now_us),
            session_ids=[session.id],
            unchanged_since=session,
        )

    def _answer(self, outcome: _Outcome, caller: Caller) -> Grant:
        """After the commit: tell what was decided, and make the tokens."""
        session = outcome.session
        facts = {"session_id": session.id, "user_id": session.user_id, "address": caller.address}
        if outcome.action is None or outcome.action is Action.THEFT:
            refusal: type[RefreshRefused] = RefreshTheft if outcome.theft is not None else RefreshSessionOver
            self.events.record(Event.REFRESH_REFUSED, refusal.code, **facts)
            raise refusal
        self.events.record(
            Event.REFRESHED, outcome.action.value, **facts, generation=session.generation, branch=session.branch
        )
        if outcome.action is Action.WAIT:
            raise RefreshWait(outcome.retry_after_s)
        return self.mint.grant(session, now_us=outcome.now_us)


def _both(theft: TheftRecord) -> dict[str, Any]:
    """Both presentations, for the log. Its line has the time of the one that gave it away."""
    facts = vars(theft) | {"current_since": datetime.fromtimestamp(theft.current_since_us / MICROSECONDS, tz=UTC)}
    return {name: value for name, value in facts.items() if not name.endswith("_us")}


def _state(session: Session) -> RotationState:
    return RotationState(
        session.generation, session.branch, session.parent_branch, session.made_at_us, session.handed_out_at_us
    )
