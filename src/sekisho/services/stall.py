"""Notices that this process has stood still: suspended, starved of CPU, or blocked.

After such a stall it finds requests in its sockets whose clients have long given up and refreshed elsewhere. Carrying
them out would hand out positions that nobody receives, so a refresh is put off until the backlog is through.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

_TICK_S: Final = 0.1
_BACKLOG_S: Final = 1.0  # how long after a stall requests may still be old ones
_BOOT_CLOCK: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)


def since_boot() -> float:
    """Seconds that go on while the system is suspended. On Linux ``time.monotonic`` stands still then."""
    return time.monotonic() if _BOOT_CLOCK is None else time.clock_gettime(_BOOT_CLOCK)


class StallWatch:
    """Ticks on the event loop; a tick that comes much too late was a stall."""

    def __init__(self, *, longest_s: float, monotonic: Callable[[], float] = since_boot) -> None:
        """``longest_s``: a gap between two ticks beyond which requests are taken for old."""
        self._longest_s = longest_s
        self._monotonic = monotonic
        self._ticked_at = monotonic()
        self._suspect_until = float("-inf")

    @property
    def stalled(self) -> bool:
        """Whether a request that is taken up now may have been waiting through a stall."""
        now = self._monotonic()
        return now - self._ticked_at > self._longest_s or now < self._suspect_until

    def tick(self) -> None:
        """The loop is running."""
        now = self._monotonic()
        if now - self._ticked_at > self._longest_s:
            self._suspect_until = now + _BACKLOG_S
        self._ticked_at = now

    async def run(self) -> None:
        """Ticks until cancelled."""
        self._ticked_at = self._monotonic()
        while True:
            await asyncio.sleep(_TICK_S)
            self.tick()
