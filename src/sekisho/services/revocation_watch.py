"""A node's own view of the revocation table, kept up by reading what is new every 200 ms.

Ids are handed out before commits, so rows can appear out of order: besides everything above the highest id seen, each
round asks for the ids that were missing below it. A gap that stays (a rollback took its id) is forgotten after 60 s.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final
from uuid import UUID

from sekisho.errors import StorageUnavailable
from sekisho.services.events import Event, Events
from sekisho.storage.ports import MICROSECONDS, Ended, RevocationRow, Storage
from sekisho.tokens.revoked import Revocation, RevokedSessions

POLL_S: Final = 0.2
_GAP_KEPT_S: Final = 60.0
_MOST_GAPS: Final = 1000


class RevocationWatch:
    """Feeds ``revoked`` from the table. One per process."""

    def __init__(
        self,
        *,
        storage: Storage,
        revoked: RevokedSessions,
        events: Events,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._storage = storage
        self._revoked = revoked
        self._events = events
        self._monotonic = monotonic
        self._highest = 0
        self._missing: dict[int, float] = {}  # id → when it was first missed
        self._read_at: float | None = None
        self._failing = False

    @property
    def age_s(self) -> float:
        """Seconds since the table was last read; infinite before the first time."""
        return float("inf") if self._read_at is None else self._monotonic() - self._read_at

    def announce(self, ended: Sequence[Ended]) -> None:
        """What this node has just committed bites here at once."""
        self._revoked.add(Revocation(str(entry.session_id), _seconds_up(entry.lapses_at_us)) for entry in ended)

    def knows(self, session_id: UUID) -> bool:
        """Whether this session's access tokens are refused already."""
        return str(session_id) in self._revoked

    async def load(self) -> None:
        """All live entries; before the first request is answered. Raises ``StorageUnavailable``."""
        began = self._monotonic()
        rows = await self._storage.read(lambda tx: tx.revocations.live(now_us=tx.now_us()))
        self._take(rows)
        # A transaction under way may have taken one of the ids just below and commit after this.
        seen = {row.id for row in rows}
        lowest = max(1, self._highest - _MOST_GAPS)
        self._missing = {id_: began for id_ in range(lowest, self._highest) if id_ not in seen}
        self._read_at = began

    async def poll(self) -> None:
        """One round. Raises ``StorageUnavailable``."""
        began = self._monotonic()
        self._missing = {id_: since for id_, since in self._missing.items() if began - since <= _GAP_KEPT_S}
        missing = list(self._missing)
        rows, now_us = await self._storage.read(
            lambda tx: (tx.revocations.newer(than_id=self._highest, missing=missing), tx.now_us())
        )
        self._take(rows)
        self._revoked.forget_lapsed(now_us // MICROSECONDS)
        self._read_at = began

    async def run(self) -> None:
        """Rounds for ever, until cancelled. A database that is down is told once, and once when it is back."""
        while True:
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
            await asyncio.sleep(POLL_S)

    def _take(self, rows: Sequence[RevocationRow]) -> None:
        now = self._monotonic()
        highest = max((row.id for row in rows), default=0)
        for id_ in range(max(self._highest + 1, highest - _MOST_GAPS), highest):
            self._missing[id_] = now
        for row in rows:
            self._missing.pop(row.id, None)
        self._highest = max(self._highest, highest)
        self._revoked.add(Revocation(str(row.session_id), _seconds_up(row.lapses_at_us)) for row in rows)


def _seconds_up(time_us: int) -> int:
    return -(-time_us // MICROSECONDS)
