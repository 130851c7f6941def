"""The hourly purge, done by whichever node comes first."""

import asyncio
import random
from dataclasses import dataclass
from typing import Final

from sekisho.errors import StorageUnavailable
from sekisho.services.events import Event, Events
from sekisho.services.sessions import Sessions
from sekisho.storage.ports import MICROSECONDS, Storage

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
        async with self.storage.writing() as tx:
            now_us = await tx.now_us()
            if not await tx.claim_chore("purge", every_us=EVERY_S * MICROSECONDS, now_us=now_us):
                return False
        while await self._end_expired():
            pass
        async with self.storage.writing() as tx:
            now_us = await tx.now_us()
            sessions = await tx.sessions.purge_ended(ended_before_us=now_us - ENDED_SESSIONS_KEPT_S * MICROSECONDS)
            revocations = await tx.revocations.purge_lapsed(now_us=now_us)
            devices = await tx.devices.purge_unseen(seen_before_us=now_us - DEVICES_KEPT_S * MICROSECONDS)
        self.events.record(Event.PURGED, sessions=sessions, revocations=revocations, devices=devices)
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
        async with self.storage.writing() as tx:
            now_us = await tx.now_us()
            ended = await tx.sessions.end_expired(
                now_us=now_us, lapses_at_us=self.sessions.lapses_at_us(now_us), limit=_ENDED_AT_ONCE
            )
        self.sessions.tell(ended)
        return len(ended) == _ENDED_AT_ONCE
