"""Cookie sessions: an opaque id, which the browser alone keeps, leads to the session's row.

A cache may answer in the row's place. It can only say yes, for a while, and its yes counts only with this node's view
of the revocations, which no cache has touched: an entry that was written after the logout, by a reader that was slower
than the logout, revives nothing. Every no that is not a revocation is the database's.
"""

import hashlib
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final
from uuid import UUID

import msgspec

from sekisho.errors import SessionRefused, StorageUnavailable
from sekisho.services.caller import Caller
from sekisho.services.sessions import Sessions
from sekisho.storage.ports import SessionCache, Storage, Transaction
from sekisho.storage.rows import MICROSECONDS, Cause, Ended, Session

ENTRY_LIFE_S: Final = 600  # shorter than a revocation's, which must outlive every entry of its session
OLDEST_VIEW_S: Final = 3.0  # as for verifiers: beyond it, what the cache says cannot be checked
_TOUCH_EVERY_S: Final = 60
_CLOCKS_DIFFER_S: Final = 60  # of nodes, in what they take for the database's time
_COOKIE_BYTES: Final = 32
_SHAPE: Final = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class CookieGrant:
    """What the browser gets: the cookie, and for how many seconds it can be of use."""

    cookie: str = field(repr=False)
    max_age_s: int
    session_id: UUID


class NewCookie:
    """The carrier of one new session. Made for each: an id that a client has brought is never adopted (CWE-384)."""

    def __init__(self) -> None:
        self._cookie = secrets.token_urlsafe(_COOKIE_BYTES)
        self.cookie_hash = hash_of(self._cookie)

    def grant(self, session: Session, *, now_us: int) -> CookieGrant:
        """The cookie lasts as long as the session at the most; its idle limit is kept by the server."""
        return CookieGrant(
            cookie=self._cookie, max_age_s=(session.ends_at_us - now_us) // MICROSECONDS, session_id=session.id
        )


class Entry(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="1"):
    """What a look-up gives, and what the cache keeps. Times in microseconds; ``read_at_us``: when the row said so."""

    cookie_hash: bytes
    session_id: UUID
    user_id: UUID
    roles: tuple[str, ...]
    created_at_us: int
    used_at_us: int
    ends_at_us: int
    read_at_us: int

    def is_good(self, cookie_hash: bytes, now_us: int) -> bool:
        """Whether it is this cookie's, not too old, and its session within its limits."""
        age_us = now_us - self.read_at_us
        is_young = -_CLOCKS_DIFFER_S * MICROSECONDS < age_us < ENTRY_LIFE_S * MICROSECONDS
        return self.cookie_hash == cookie_hash and is_young and now_us < self.ends_at_us


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Entry)


@dataclass(frozen=True, kw_only=True)
class CookieSessions:
    """Looks sessions up by their cookie, keeps them alive while they are used, and ends them."""

    storage: Storage
    sessions: Sessions
    cache: SessionCache | None
    _being_touched: set[UUID] = field(default_factory=set, init=False, repr=False)

    async def find(self, cookie: str, caller: Callable[[], Caller]) -> Entry:
        """The live session of a cookie. Raises ``SessionRefused`` and ``StorageUnavailable``.

        ``caller`` is asked once a minute, when the row is told that it is in use.
        """
        cookie_hash = hash_of(cookie)
        entry = await self._cached(cookie_hash)
        if entry is None:
            entry = await self._read(cookie_hash)
        # Of a row too: a database that failed over may have lost the logout.
        if self.sessions.watch.knows(entry.session_id):
            raise SessionRefused("the session has ended")
        return await self._kept_alive(entry, caller)

    async def log_out(self, cookie: str) -> None:
        """Ends the session; one that has ended already is no error. Raises ``SessionRefused`` for an unknown cookie."""
        cookie_hash = hash_of(cookie)

        def work(tx: Transaction) -> Sequence[Ended] | None:
            session = tx.sessions.by_cookie(cookie_hash)
            if session is None:
                return None
            now_us = tx.now_us()
            return tx.sessions.end(
                cause=Cause.LOGOUT,
                now_us=now_us,
                lapses_at_us=self.sessions.lapses_at_us(now_us),
                session_ids=[session.id],
            )

        ended = await self.storage.write(work)
        self.sessions.tell(ended or [])
        if self.cache is not None:
            await self.cache.drop(cookie_hash)  # also of a session whose row a failover has lost
        if ended is None:
            raise SessionRefused("no session has this cookie")

    async def _cached(self, cookie_hash: bytes) -> Entry | None:
        watch = self.sessions.watch
        if self.cache is None or watch.age_s > OLDEST_VIEW_S:
            return None
        found = await self.cache.get(cookie_hash)
        if found is None or watch.age_s > OLDEST_VIEW_S:
            return None
        try:
            entry = _DECODER.decode(found)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return entry if entry.is_good(cookie_hash, watch.now_us()) else None

    async def _read(self, cookie_hash: bytes) -> Entry:
        session, now_us = await self.storage.read(lambda tx: (tx.sessions.by_cookie(cookie_hash), tx.now_us()))
        return await self._from_row(cookie_hash, session, now_us)

    async def _from_row(self, cookie_hash: bytes, session: Session | None, now_us: int) -> Entry:
        if session is None or session.user_disabled or session.is_over(now_us):
            if self.cache is not None:
                await self.cache.drop(cookie_hash)
            raise SessionRefused("no session has this cookie" if session is None else "the session is over")
        entry = Entry(
            cookie_hash=cookie_hash,
            session_id=session.id,
            user_id=session.user_id,
            roles=session.roles,
            created_at_us=session.created_at_us,
            used_at_us=session.handed_out_at_us,
            ends_at_us=min(session.idle_ends_at_us, session.ends_at_us),
            read_at_us=now_us,
        )
        if self.cache is not None:
            await self.cache.put(cookie_hash, _ENCODER.encode(entry), life_s=ENTRY_LIFE_S)
        return entry

    async def _kept_alive(self, entry: Entry, caller: Callable[[], Caller]) -> Entry:
        """Slides the idle limit; one write a minute however many requests there are, and less where that is long."""
        idle_s = self.sessions.limits.idle_s
        every_us = min(_TOUCH_EVERY_S, max(1, idle_s // 4)) * MICROSECONDS
        is_fresh = abs(self.sessions.watch.now_us() - entry.used_at_us) < every_us
        if is_fresh or entry.session_id in self._being_touched:
            return entry
        touch = partial(_touch, entry.session_id, every_us, idle_s * MICROSECONDS, caller())
        self._being_touched.add(entry.session_id)
        try:
            session, now_us = await self.storage.write(touch)
        except StorageUnavailable:
            return entry  # the look-up said yes; the next request writes
        finally:
            self._being_touched.discard(entry.session_id)
        return await self._from_row(entry.cookie_hash, session, now_us)


def hash_of(cookie: str) -> bytes:
    """SHA-256; the cookie has 256 random bits. Raises ``SessionRefused`` for what cannot be one of ours."""
    if not _SHAPE.fullmatch(cookie):
        raise SessionRefused("the cookie has not the shape of ours")
    return hashlib.sha256(cookie.encode("ascii")).digest()


def _touch(
    session_id: UUID, every_us: int, idle_us: int, caller: Caller, tx: Transaction
) -> tuple[Session | None, int]:
    now_us = tx.now_us()
    tx.sessions.touch(
        session_id,
        now_us=now_us,
        every_us=every_us,
        idle_us=idle_us,
        address=caller.address,
        user_agent=caller.user_agent,
    )
    return tx.sessions.find(session_id), now_us
