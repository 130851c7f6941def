"""What goes over the feed, encoded once for all who follow it: the last events, and a snapshot to begin with.

A reader is a cursor into the ring of events, so it costs no memory here however slow it is; one that has fallen out of
the ring comes back and begins with a snapshot.
"""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple

from sekisho.tokens.revoked import RevokedSessions
from sekisho.verify.stream import PIECE, Position, event, grouped

GATHER_S: Final = 0.05
_RING_EVENTS: Final = 1024  # 50 s of events that follow each other as closely as they may
_RING_BYTES: Final = 4 * 1024 * 1024
_SNAPSHOT_EVENTS: Final = 256  # a snapshot this many events old is not used again


class FellBehind(Exception):
    """What comes next for this reader is no longer at hand."""


class Snapshot(NamedTuple):
    """All live entries as they were after the event ``number``, in encoded pieces."""

    number: int
    pieces: Sequence[bytes]


class FeedLog:
    """The feed of one process. Used from its event loop."""

    def __init__(
        self,
        *,
        revoked: RevokedSessions,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``revoked`` is what snapshots are made of; it holds the sessions that are published already."""
        self.boot = secrets.token_hex(8)
        self.number = 0
        self.is_over = False
        self._revoked = revoked
        self._key_ids: list[str] = []  # all that were ever published
        self._monotonic = monotonic
        self._ring: deque[bytes] = deque()
        self._ring_bytes = 0
        self._sessions: dict[str, int] = {}  # gathered for the next event
        self._keys: list[str] = []
        self._gathering_since: float | None = None
        self._flushed_at = float("-inf")
        self._flush_later: asyncio.TimerHandle | None = None
        self._changed: asyncio.Future[None] | None = None
        self._snapshot: Snapshot | None = None
        self._making: asyncio.Task[Snapshot] | None = None

    def start(self) -> None:
        """Readers may come."""
        self.is_over = False

    def end(self) -> None:
        """Ends every stream."""
        self.is_over = True
        self._wake()

    def publish(self, sessions: Mapping[str, int], keys: Sequence[str] = ()) -> None:
        """Entries that are new: sessions by id, with when they lapse (NumericDate), and key ids."""
        self._sessions.update(sessions)
        self._keys.extend(keys)
        self._key_ids.extend(keys)
        if self._gathering_since is None:
            self._gathering_since = self._monotonic()
        if self._flush_later is None:
            wait_s = self._flushed_at + GATHER_S - self._monotonic()
            if wait_s <= 0:
                self._flush()
            else:
                self._flush_later = asyncio.get_running_loop().call_later(wait_s, self._flush)

    @property
    def gathering_s(self) -> float:
        """For how long something has been known here that no event carries yet."""
        return 0.0 if self._gathering_since is None else self._monotonic() - self._gathering_since

    def position(self, number: int) -> Position:
        """The id of an event."""
        return Position(self.boot, number)

    def has_all_after(self, number: int) -> bool:
        """Whether a reader that has seen this event can go on without a snapshot."""
        return self.number - len(self._ring) <= number <= self.number

    def after(self, number: int) -> bytes | None:
        """The event that follows; None when there is none yet. Raises ``FellBehind``."""
        if not self.has_all_after(number):
            raise FellBehind
        return None if number == self.number else self._ring[number - self.number]

    def changed(self) -> asyncio.Future[None]:
        """Done when there is another event, or the end. To be waited for without cancelling it: others do too."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
            if self.is_over:
                self._changed.set_result(None)
        return self._changed

    async def snapshot(self) -> Snapshot:
        """One for all who ask at about the same time."""
        last = self._snapshot
        if last is not None and self.number - last.number <= _SNAPSHOT_EVENTS and self.has_all_after(last.number):
            return last
        if self._making is None:
            self._making = asyncio.create_task(self._make())
        return await asyncio.shield(self._making)  # a reader that leaves takes nothing from the others

    async def _make(self) -> Snapshot:
        try:
            # What is gathered for the next event is in here already, and will come again: harmless.
            number, keys, left = self.number, list(self._key_ids), dict(self._revoked.lapses_at)
            entries, pieces = iter(left.items()), []
            count = max(1, -(-len(left) // PIECE))
            for index in range(count):
                last = index == count - 1
                piece = grouped(dict(islice(entries, PIECE)), keys if index == 0 else (), more=not last)
                pieces.append(event("snapshot", piece, self.position(number) if last else None))
                await asyncio.sleep(0)  # a million entries take a second, in which requests go on
            self._snapshot = Snapshot(number, pieces)
            return self._snapshot
        finally:
            self._making = None

    def _flush(self) -> None:
        """One event of at most ``PIECE`` sessions; what is left follows at once, after others have had their turn."""
        self._flush_later = None
        self._flushed_at = self._monotonic()
        ids = list(islice(self._sessions, PIECE))
        sessions = {session_id: self._sessions.pop(session_id) for session_id in ids}
        keys, self._keys = self._keys, []
        self.number += 1
        self._append(event("revoked", grouped(sessions, keys), self.position(self.number)))
        self._wake()
        if not self._sessions:
            self._gathering_since = None
        else:
            self._flush_later = asyncio.get_running_loop().call_later(0, self._flush)

    def _append(self, encoded: bytes) -> None:
        self._ring.append(encoded)
        self._ring_bytes += len(encoded)
        while len(self._ring) > _RING_EVENTS or self._ring_bytes > _RING_BYTES:
            self._ring_bytes -= len(self._ring.popleft())

    def _wake(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None and not changed.done():
            changed.set_result(None)
