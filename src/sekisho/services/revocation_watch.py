"""A node's own view of the revocation table, kept up by reading what is new every 200 ms.

Ids are handed out before commits, so rows can appear out of order: besides everything above the highest id seen, each
round asks for the ids that were missing below it. A gap that stays (a rollback took its id) is forgotten after 60 s.
A database that failed over may have lost rows and give their ids to others: then the whole table is read again, and
what this node knows beyond it is put back.

Whatever is new to this node, by its own commits or by the table, is passed on once: to the feed that other verifiers
follow. A word from another node (``Grapevine``) only makes the next look come sooner.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final
from uuid import UUID

from sekisho.errors import StorageUnavailable
from sekisho.services.events import Event, Events
from sekisho.storage.ports import Grapevine, Storage, Transaction
from sekisho.storage.rows import MICROSECONDS, Cause, Ended, RevocationRow
from sekisho.tokens.revoked import Revocation, RevokedSessions
from sekisho.wire import now_us, since_boot

POLL_S: Final = 0.2
KEY_KEPT_S: Final = 400 * 86_400  # a key's entry; verifiers keep it for the life of their process
_APART_S: Final = 0.02  # rounds that words from other nodes ask for
_GAP_KEPT_S: Final = 60.0
_MOST_GAPS: Final = 4000  # asked for in each round; beyond it the whole table is read again
_LOOK_BACK: Final = 2000  # ids below the highest that may still commit: the purge takes 1000 in one transaction
_PAGE: Final = 10_000  # rows of a full load at a time, so that no statement runs into its limit
_PUT_BACK: Final = 500  # entries in one transaction
_FORGET_EVERY_S: Final = 10.0


class RevocationWatch:
    """Feeds ``revoked`` from the table. One per process."""

    def __init__(
        self,
        *,
        storage: Storage,
        revoked: RevokedSessions,
        events: Events,
        on_sessions: Callable[[Mapping[str, int]], None] | None = None,
        on_key: Callable[[str], None] | None = None,
        grapevine: Grapevine | None = None,
        monotonic: Callable[[], float] = since_boot,
        clock: Callable[[], int] = now_us,
    ) -> None:
        """``on_sessions``: ended sessions that are new here, and when each lapses. ``on_key``: a key withdrawn."""
        self.key_ids: set[str] = set()
        self._on_sessions = on_sessions
        self._on_key = on_key
        self._grapevine = grapevine
        self._word = asyncio.Event()
        self._storage = storage
        self._revoked = revoked
        self._events = events
        self._monotonic = monotonic
        self._clock = clock
        self._offset_us = 0  # the database's time minus the node's
        self._highest = 0
        self._missing: dict[int, float] = {}  # id → when it was first missed
        self._read_at: float | None = None
        self._whole_next = True
        self._forgot_at = float("-inf")
        self._failing = False

    @property
    def age_s(self) -> float:
        """Seconds since the table was last read; infinite before the first time."""
        return float("inf") if self._read_at is None else self._monotonic() - self._read_at

    def announce(self, ended: Sequence[Ended]) -> None:
        """What this node has just committed bites here at once."""
        self._take({str(entry.session_id): _seconds_up(entry.lapses_at_us) for entry in ended})
        if ended:
            self._tell_nodes()

    async def withdraw_key(self, kid: str) -> None:
        """From now on every verifier refuses what this key has signed. Raises ``StorageUnavailable``."""
        await self._storage.write(partial(_append_keys, [kid]))
        self._take_keys([kid])
        self._tell_nodes()

    def look_soon(self) -> None:
        """Another node says that there is something new."""
        self._word.set()

    def knows(self, session_id: UUID) -> bool:
        """Whether this session's access tokens are refused already."""
        return str(session_id) in self._revoked

    def now_s(self) -> int:
        """The database's time, as far as this node knows it; before the first look, the node's own.

        For whoever checks access tokens: entries lapse by the database's time, and if tokens expired by the clock of a
        node that is behind, it would accept the revoked ones in between.
        """
        return self.now_us() // MICROSECONDS

    def now_us(self) -> int:
        """The same in microseconds."""
        return self._clock() + self._offset_us

    async def load(self) -> None:
        """All live entries; before the first request is answered. Raises ``StorageUnavailable``."""
        began = self._monotonic()
        lost = dict(self._revoked.lapses_at)  # of what was known before, what the table does not have
        lost_keys = set(self.key_ids)
        (now_us, self._offset_us), highest = await self._storage.read(
            lambda tx: (_times(tx, self._clock), tx.revocations.highest())
        )
        # A transaction under way may have taken one of the ids just below and commit after this. Whatever comes above
        # while the pages are read, the next round reads.
        missing = set(range(max(1, highest - _LOOK_BACK), highest))
        after_id: int | None = 0
        while after_id is not None:
            rows = await self._storage.read(partial(_page, now_us, after_id))
            missing.difference_update(row.id for row in rows)
            self._add(rows, now_us)
            for row in rows:
                lost.pop(str(row.session_id), None)
                lost_keys.discard(row.key_id or "")
            after_id = rows[-1].id if len(rows) == _PAGE else None
        self._missing = dict.fromkeys(missing, began)
        self._highest = highest
        self._read_at = began
        await self._put_back({sid: at * MICROSECONDS for sid, at in lost.items() if (at - 1) * MICROSECONDS > now_us})
        if lost_keys:
            await self._storage.write(partial(_append_keys, sorted(lost_keys)))
        self._whole_next = False

    async def poll(self) -> None:
        """One round. Raises ``StorageUnavailable``."""
        whole, self._whole_next = self._whole_next, True  # a round that fails may be a failover, which can lose rows
        if whole or not await self._follow():
            await self.load()
        self._whole_next = False
        if self._monotonic() - self._forgot_at >= _FORGET_EVERY_S:  # it walks through all entries
            self._forgot_at = self._monotonic()
            self._revoked.forget_lapsed(self.now_s())

    async def run(self) -> None:
        """Rounds for ever, until cancelled. A database that is down is told once, and once when it is back."""
        while True:
            self._word.clear()
            try:
                await self.poll()
            except StorageUnavailable as error:
                if not self._failing:
                    self._events.record(Event.STORAGE_FAILED, "revocations", detail=error.detail)
                self._failing = True
            else:
                if self._failing:
                    self._events.record(Event.STORAGE_BACK, "revocations")
                self._failing = False
            await asyncio.sleep(min(_APART_S, POLL_S))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S - _APART_S):
                    await self._word.wait()

    async def _follow(self) -> bool:
        """Takes what is new; False when that cannot be told from the ids, and only a full load will do."""
        began = self._monotonic()
        self._missing = {id_: since for id_, since in self._missing.items() if began - since <= _GAP_KEPT_S}
        missing = list(self._missing)
        (now_us, self._offset_us), in_table, rows = await self._storage.read(
            lambda tx: (
                _times(tx, self._clock),
                tx.revocations.highest(),
                tx.revocations.newer(than_id=self._highest, missing=missing),
            )
        )
        self._add(rows, now_us)
        if in_table < self._highest:  # a failover lost rows, and their ids come again; or the purge, which does no harm
            return False
        new = [row.id for row in rows if row.id > self._highest]
        highest = max(new, default=self._highest)
        if len(missing) + highest - self._highest - len(new) > _MOST_GAPS:
            return False
        self._missing.update(dict.fromkeys(range(self._highest + 1, highest), began))
        for row in rows:
            self._missing.pop(row.id, None)
        self._highest = highest
        self._read_at = began
        return True

    async def _put_back(self, lost: Mapping[str, int]) -> None:
        """Ends anew what a failover revived: sessions by id, and when their revocations lapse (microseconds).

        Without it nodes that start later would accept the access tokens, and refreshes would make new ones. Why the
        session had ended is lost with its row; two nodes may both put it back, which does no harm.
        """
        ids = [UUID(session_id) for session_id in lost]
        for start in range(0, len(ids), _PUT_BACK):
            await self._storage.write(partial(_end_anew, ids[start : start + _PUT_BACK], lost))
        if ids:
            self._events.record(Event.REVOCATIONS_PUT_BACK, number=len(ids))

    def _add(self, rows: Sequence[RevocationRow], now_us: int) -> None:
        live = [row for row in rows if row.lapses_at_us >= now_us]
        self._take({str(row.session_id): _seconds_up(row.lapses_at_us) for row in live if row.session_id})
        self._take_keys([row.key_id for row in live if row.key_id])

    def _take(self, entries: Mapping[str, int]) -> None:
        known = self._revoked.lapses_at
        new = {sid: lapses_at for sid, lapses_at in entries.items() if lapses_at > known.get(sid, 0)}
        self._revoked.add(Revocation(sid, lapses_at) for sid, lapses_at in new.items())
        # Before the first look nobody follows this node yet: a whole table need not go through the feed.
        if new and self._on_sessions is not None and self._read_at is not None:
            self._on_sessions(new)

    def _take_keys(self, kids: Sequence[str]) -> None:
        for kid in kids:
            if kid not in self.key_ids:
                self.key_ids.add(kid)
                if self._on_key is not None:
                    self._on_key(kid)

    def _tell_nodes(self) -> None:
        if self._grapevine is not None:
            self._grapevine.tell()


def _times(tx: Transaction, clock: Callable[[], int]) -> tuple[int, int]:
    """The database's time, and by how much it is ahead of the node's."""
    before_us = clock()
    now_us = tx.now_us()
    return now_us, now_us - (before_us + clock()) // 2


def _end_anew(session_ids: Sequence[UUID], lapses_at_us: Mapping[str, int], tx: Transaction) -> None:
    latest_us = max(lapses_at_us[str(session_id)] for session_id in session_ids)
    revived = tx.sessions.end(cause=Cause.LOGOUT, now_us=tx.now_us(), lapses_at_us=latest_us, session_ids=session_ids)
    for session_id in set(session_ids) - {entry.session_id for entry in revived}:
        tx.revocations.append(session_id, lapses_at_us=lapses_at_us[str(session_id)])


def _append_keys(kids: Sequence[str], tx: Transaction) -> None:
    lapses_at_us = tx.now_us() + KEY_KEPT_S * MICROSECONDS
    for kid in kids:
        tx.revocations.append_key(kid, lapses_at_us=lapses_at_us)


def _page(now_us: int, after_id: int, tx: Transaction) -> Sequence[RevocationRow]:
    return tx.revocations.live(now_us=now_us, after_id=after_id, limit=_PAGE)


def _seconds_up(time_us: int) -> int:
    return -(-time_us // MICROSECONDS)
