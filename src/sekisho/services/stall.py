"""Notices requests that are too old to be carried out, because their clients may have given up.

After this process has stood still (suspended, starved of CPU, or blocked) it finds requests in its sockets whose
clients have long refreshed elsewhere; the same when the database kept it waiting. Carrying them out would hand out
positions that nobody receives, and what they present may look like a thief's by now.

An honest client is never refused while W ≥ 2 TC + L (tests/test_rotation_model.py), where TC is the client's time-out
and L the time from its reading the token to our commit. With TC = W/4 there is W/2 for L: W/4 until the request is
taken up (who has given up by then has left, or there was a stall), W/8 until it is decided, W/8 for the last statement.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from sekisho.wire import since_boot

_TICK_S: Final = 0.1
_BACKLOG_S: Final = 1.0  # how long after a stall requests may still be old ones


class StallWatch:
    """Ticks on the event loop; a tick that comes much too late was a stall."""

    def __init__(self, *, window_s: float, monotonic: Callable[[], float] = since_boot) -> None:
        """``window_s``: W of rotation.py."""
        self._longest_s = window_s / 4  # between two ticks
        self._oldest_s = window_s / 8
        self.now = monotonic
        self._ticked_at = monotonic()
        self._suspect_until = float("-inf")

    def is_too_old(self, taken_up_at: float) -> bool:
        """Whether a request that was taken up at ``taken_up_at``, by ``now``, may have been given up by its client."""
        return self.stalled or self.now() - taken_up_at > self._oldest_s

    @property
    def stalled(self) -> bool:
        """Whether a request that is taken up now may have been waiting through a stall."""
        now = self.now()
        return now - self._ticked_at > self._longest_s or now < self._suspect_until

    def tick(self) -> None:
        """The loop is running."""
        now = self.now()
        if now - self._ticked_at > self._longest_s:
            self._suspect_until = now + _BACKLOG_S
        self._ticked_at = now

    async def run(self) -> None:
        """Ticks until cancelled."""
        self._ticked_at = self.now()
        while True:
            await asyncio.sleep(_TICK_S)
            self.tick()
