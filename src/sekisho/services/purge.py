"""The hourly purge, done by whichever node comes first."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from uuid import UUID

from sekisho.errors import StorageUnavailable
from sekisho.services.events import Event, Events
from sekisho.services.sessions import Sessions
from sekisho.storage.ports import Storage, Transaction
from sekisho.storage.rows import MICROSECONDS, Ended, Stale

_DAY_S: Final = 86400
_CHORE: Final = "purge"
EVERY_S: Final = 3600
AGAIN_S: Final = 300  # when a step failed
ENDED_SESSIONS_KEPT_S: Final = 30 * _DAY_S  # operators ask for a session's story weeks later
DEVICES_KEPT_S: Final = 180 * _DAY_S
THEFTS_KEPT_S: Final = 180 * _DAY_S
_KEPT_S: Final = {
    Stale.SESSIONS: ENDED_SESSIONS_KEPT_S,
    Stale.REVOCATIONS: 0,
    Stale.DEVICES: DEVICES_KEPT_S,
    Stale.THEFTS: THEFTS_KEPT_S,
}
_AT_ONCE: Final = 1000  # rows in one transaction, so that none is long


@dataclass(frozen=True, kw_only=True)
class Purge:
    """Ends sessions that expired unnoticed, and deletes what nobody asks for any more."""

    storage: Storage
    sessions: Sessions
    events: Events

    async def once(self) -> bool:
        """Does the work if no node has done it within the hour; says whether it tried. Raises ``StorageUnavailable``.

        A step that fails is recorded and does not stop the others.
        """
        if not await self.storage.write(_claim):
            return False
        steps: dict[str, Callable[[], Awaitable[int]]] = {kind.value: partial(self._delete, kind) for kind in Stale}
        steps["expired"] = self._end_expired
        done: dict[str, int] = {}
        for name, step in steps.items():
            try:
                done[name] = await step()
            except StorageUnavailable as error:
                self.events.record(Event.STORAGE_FAILED, "purge", step=name, detail=error.detail)
        complete = len(done) == len(steps)
        self.events.record(Event.PURGED, "ok" if complete else "partly", **done)
        if not complete:
            await self.storage.write(_again_soon)
        return True

    async def run(self) -> None:
        """Asks every few minutes whether it is time, until cancelled."""
        while True:
            try:
                await self.once()
            except StorageUnavailable as error:
                self.events.record(Event.STORAGE_FAILED, "purge", detail=error.detail)
            await asyncio.sleep(EVERY_S / 10 * random.uniform(0.8, 1.2))  # noqa: S311 - nodes must not march in step

    async def _delete(self, kind: Stale) -> int:
        deleted = 0
        while True:
            before_us, keys = await self.storage.read_slowly(partial(_find, kind))
            if keys:
                deleted += await self.storage.write(partial(_delete, kind, keys, before_us))
            if len(keys) < _AT_ONCE:
                return deleted

    async def _end_expired(self) -> int:
        number = 0
        while True:
            # No index leads to them, so they are looked for without the time limit, outside of the transaction.
            ids = await self.storage.read_slowly(lambda tx: tx.sessions.expired(now_us=tx.now_us(), limit=_AT_ONCE))
            if ids:
                ended = await self.storage.write(partial(self._end, ids))
                self.sessions.tell(ended)
                number += len(ended)
            if len(ids) < _AT_ONCE:
                return number

    def _end(self, ids: Sequence[UUID], tx: Transaction) -> Sequence[Ended]:
        now_us = tx.now_us()
        lapses_at_us = self.sessions.lapses_at_us(now_us)
        return tx.sessions.end_expired(ids, now_us=now_us, lapses_at_us=lapses_at_us)


def _claim(tx: Transaction) -> bool:
    return tx.claim_chore(_CHORE, every_us=EVERY_S * MICROSECONDS, now_us=tx.now_us())


def _again_soon(tx: Transaction) -> None:
    tx.date_chore(_CHORE, ran_at_us=tx.now_us() - (EVERY_S - AGAIN_S) * MICROSECONDS)


def _find(kind: Stale, tx: Transaction) -> tuple[int, Sequence[Any]]:
    before_us = tx.now_us() - _KEPT_S[kind] * MICROSECONDS
    return before_us, tx.stale(kind, before_us=before_us, limit=_AT_ONCE)


def _delete(kind: Stale, keys: Sequence[Any], before_us: int, tx: Transaction) -> int:
    return tx.delete_stale(kind, keys, before_us=before_us)
