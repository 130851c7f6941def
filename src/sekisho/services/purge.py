"""The hourly purge, done by whichever node comes first."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sekisho.errors import StorageUnavailable
from sekisho.services.events import Event, Events
from sekisho.services.sessions import Sessions
from sekisho.storage.ports import MICROSECONDS, Ended, Storage, Transaction

_DAY_S: Final = 86400
EVERY_S: Final = 3600
ENDED_SESSIONS_KEPT_S: Final = 30 * _DAY_S  # operators ask for a session's story weeks later
DEVICES_KEPT_S: Final = 180 * _DAY_S
_ENDED_AT_ONCE: Final = 1000  # expired sessions ended in one transaction, so that none is long


@dataclass(frozen=True, kw_only=True)
class Purge:
    """Ends sessions that expired unnoticed, and deletes what nobody asks for any more."""

    storage: Storage
    sessions: Sessions
    events: Events

    async def once(self) -> bool:
        """Does the work if no node has done it within the hour; says whether it did. Raises ``StorageUnavailable``."""
        if not await self.storage.write(_claim):
            return False
        while await self._end_expired():
            pass
        deleted = await self.storage.write(_delete)
        self.events.record(Event.PURGED, "ok", **deleted)
        return True

    async def run(self) -> None:
        """Asks every few minutes whether it is time, until cancelled."""
        while True:
            try:
                await self.once()
            except StorageUnavailable as error:
                self.events.record(Event.STORAGE_FAILED, "purge", detail=error.detail)
            await asyncio.sleep(EVERY_S / 10 * random.uniform(0.8, 1.2))  # noqa: S311 - nodes must not march in step

    async def _end_expired(self) -> bool:
        def work(tx: Transaction) -> Sequence[Ended]:
            now_us = tx.now_us()
            lapses_at_us = self.sessions.lapses_at_us(now_us)
            return tx.sessions.end_expired(now_us=now_us, lapses_at_us=lapses_at_us, limit=_ENDED_AT_ONCE)

        ended = await self.storage.write(work)
        self.sessions.tell(ended)
        return len(ended) == _ENDED_AT_ONCE


def _claim(tx: Transaction) -> bool:
    return tx.claim_chore("purge", every_us=EVERY_S * MICROSECONDS, now_us=tx.now_us())


def _delete(tx: Transaction) -> dict[str, int]:
    now_us = tx.now_us()
    return {
        "sessions": tx.sessions.purge_ended(ended_before_us=now_us - ENDED_SESSIONS_KEPT_S * MICROSECONDS),
        "revocations": tx.revocations.purge_lapsed(now_us=now_us),
        "devices": tx.devices.purge_unseen(seen_before_us=now_us - DEVICES_KEPT_S * MICROSECONDS),
    }
