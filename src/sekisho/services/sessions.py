"""Sessions: open one, list a user's, end one, end all of them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar
from uuid import UUID, uuid4

from sekisho.errors import SessionNotFound
from sekisho.services.caller import Caller
from sekisho.services.events import Event, Events
from sekisho.services.revocation_watch import RevocationWatch
from sekisho.storage.ports import Storage, Transaction
from sekisho.storage.rows import MICROSECONDS, Cause, Ended, Session, TheftRecord, User
from sekisho.tokens.refresh import SALT_BYTES

G_co = TypeVar("G_co", covariant=True)


@dataclass(frozen=True, kw_only=True)
class SessionLimits:
    """How long sessions live, in seconds, and how many a user may have.

    ``idle_s`` slides with each refresh, or with each minute in which a cookie is used; ``max_age_s`` is set at login.
    ``entry_life_s`` is how long a revocation is kept: until every access token of the session has expired by itself.
    """

    idle_s: int
    max_age_s: int
    max_sessions: int
    entry_life_s: int


class Story(NamedTuple):
    """A session at the time ``now_us``, with its user's address and its recorded thefts."""

    session: Session
    email: str
    thefts: Sequence[TheftRecord]
    now_us: int


class Carrier(Protocol[G_co]):
    """How the browser or the client is to show a session: by tokens (``Mint``), or by a cookie (``NewCookie``)."""

    @property
    def cookie_hash(self) -> bytes | None:
        """For the session's row."""

    def grant(self, session: Session, *, now_us: int) -> G_co:
        """What the caller gets. Called after the commit, with the time that the database returned."""


def open_session(
    tx: Transaction, user: User, *, limits: SessionLimits, caller: Caller, cookie_hash: bytes | None, now_us: int
) -> tuple[Session, Sequence[Ended]]:
    """Opens a session for a user whose row the transaction holds, and ends those beyond the user's limit.

    The one idle longest goes first (OWASP ASVS 7.1.2).
    """
    surplus = tx.sessions.surplus_of(user.id, now_us=now_us, kept=limits.max_sessions - 1)
    evicted: Sequence[Ended] = []
    if surplus:
        evicted = tx.sessions.end(
            cause=Cause.EVICTED,
            now_us=now_us,
            lapses_at_us=now_us + limits.entry_life_s * MICROSECONDS,
            session_ids=surplus,
        )
    session = Session(
        id=uuid4(),  # a new id every time: ids are never recycled or taken from the client
        user_id=user.id,
        roles=user.roles,
        user_disabled=False,
        created_at_us=now_us,
        idle_ends_at_us=now_us + limits.idle_s * MICROSECONDS,
        ends_at_us=now_us + limits.max_age_s * MICROSECONDS,
        generation=0,
        branch=0,
        parent_branch=None,
        made_at_us=now_us,
        handed_out_at_us=now_us,
        salt=os.urandom(SALT_BYTES),
        last_address=caller.address,
        last_user_agent=caller.user_agent,
        ended_at_us=None,
        cause=None,
        cookie_hash=cookie_hash,
    )
    tx.sessions.add(session)
    return session, evicted


@dataclass(frozen=True, kw_only=True)
class Sessions:
    """A user's sessions, token and cookie alike."""

    storage: Storage
    limits: SessionLimits
    watch: RevocationWatch
    events: Events

    async def of_user(self, user_id: UUID) -> Sequence[Session]:
        """The live ones, the one used last first."""
        return await self.storage.read(lambda tx: tx.sessions.live_of(user_id, now_us=tx.now_us()))

    async def story(self, session_id: UUID) -> Story:
        """What is known of a session, live or not. Raises ``SessionNotFound``."""

        def work(tx: Transaction) -> Story:
            session = tx.sessions.find(session_id)
            if session is None:
                raise SessionNotFound
            user = tx.users.by_id(session.user_id)
            return Story(session, "" if user is None else user.email, tx.sessions.thefts_of(session_id), tx.now_us())

        return await self.storage.read(work)

    async def is_live(self, user_id: UUID, session_id: UUID) -> bool:
        """Whether the session goes on, by its row and its user's: the last word, wherever it is asked for."""

        def work(tx: Transaction) -> bool:
            session = tx.sessions.find(session_id)
            return (
                session is not None
                and session.user_id == user_id
                and not session.user_disabled
                and not session.is_over(tx.now_us())
            )

        return await self.storage.read(work)

    async def end_one(self, user_id: UUID, session_id: UUID) -> None:
        """Ends one of the user's own sessions. Raises ``SessionNotFound`` for any other, whoever owns it."""
        await self._end(Cause.ENDED_BY_USER, session_id, user_id)

    async def end_by_operator(self, session_id: UUID) -> None:
        """Ends any session. Raises ``SessionNotFound`` when it is not live."""
        await self._end(Cause.ADMIN, session_id, None)

    def lapses_at_us(self, now_us: int) -> int:
        """When a revocation of now may be forgotten."""
        return now_us + self.limits.entry_life_s * MICROSECONDS

    def tell(self, ended: Sequence[Ended]) -> None:
        """After the commit: the node's verifier hears of it at once, the log too."""
        self.watch.announce(ended)
        for entry in ended:
            self.events.record(
                Event.SESSION_ENDED, entry.cause.value, session_id=entry.session_id, user_id=entry.user_id
            )

    async def _end(self, cause: Cause, session_id: UUID, user_id: UUID | None) -> None:
        def work(tx: Transaction) -> Sequence[Ended]:
            now_us = tx.now_us()
            return tx.sessions.end(
                cause=cause,
                now_us=now_us,
                lapses_at_us=self.lapses_at_us(now_us),
                session_ids=[session_id],
                user_id=user_id,
            )

        ended = await self.storage.write(work)
        self.tell(ended)
        if not ended:
            raise SessionNotFound
