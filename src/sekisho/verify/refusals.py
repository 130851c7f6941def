"""Refused tokens, counted; the operator is told in a line now and then, however many there are."""

import logging
from typing import Final

from sekisho.errors import TokenError, TokenExpired

LINE_EVERY_S: Final = 10
_log: Final = logging.getLogger("sekisho.verify")


class Refusals:
    """Counts by error code. Threads may lose a count to one another: a lock on every refusal would serve a flood."""

    __slots__ = ("_line_at", "_since_line", "by_code")

    def __init__(self) -> None:
        self.by_code: dict[str, int] = {}
        self._since_line = 0
        self._line_at = float("-inf")

    def count(self, error: TokenError, *, now: float) -> None:
        """Counts it, and logs at most one line each ``LINE_EVERY_S`` seconds of ``now`` (NumericDate)."""
        self.by_code[error.code] = self.by_code.get(error.code, 0) + 1
        if isinstance(error, TokenExpired):
            return  # each token comes to that; its client refreshes
        self._since_line += 1
        if abs(now - self._line_at) >= LINE_EVERY_S:  # also when the clock was put back
            _log.warning("access tokens refused: %d; the last: %s, %s", self._since_line, error.code, error)
            self._since_line, self._line_at = 0, now
