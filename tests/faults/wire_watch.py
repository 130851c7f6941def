"""Death and loss at an exact point of a transaction on PostgreSQL, seen from between the node and its database.

The first statement of a refresh carries the caller's User-Agent, whatever the driver and however it is sent; so the
words in it reach the proxy. PostgreSQL says after each statement whether a transaction is still open.
"""

import os
import re
import signal
from collections.abc import Callable

from servers.odd_node import DIE_AT_THEFT, DIE_BEFORE_COMMIT
from servers.proxy import Rule

DIE_UNHEARD = "die-unheard"  # committed, and the node dies before it hears of it
LOSE_COMMIT = "lose-commit-"  # and a number: committed, the connection breaks, and the node lives on. Once a number:
# the words are then in the row, and the next statement carries them back.
STOP_BEFORE_COMMIT = (
    "stop-before-commit"  # the node stands still, and holds the row; without a lock it is at its commit
)
_READY = b"Z\0\0\0\5"
_WORDS = re.compile(rf"{DIE_UNHEARD}|{STOP_BEFORE_COMMIT}|{LOSE_COMMIT}\d+".encode())
_IDLE = b"Z\0\0\0\5I"  # ReadyForQuery: no transaction is open


class _Connection:
    """Remembers which of the words it has seen."""

    def __init__(self, pid: Callable[[], int], spent: set[bytes]) -> None:
        self._pid = pid
        self._spent = spent
        self._marked = b""

    def request(self, data: bytes) -> bool:
        if DIE_BEFORE_COMMIT.encode() in data or self._records_a_theft(data):
            os.kill(self._pid(), signal.SIGKILL)
            return False
        words = _WORDS.search(data)
        if words is not None and words[0] not in self._spent:
            self._spent.add(words[0])
            self._marked = words[0]
        return True

    def _records_a_theft(self, data: bytes) -> bool:
        """The statement that would have rotated has the words first, the record of the theft next."""
        word = DIE_AT_THEFT.encode()
        if word not in data:
            return False
        second = word in self._spent
        self._spent ^= {word}
        return second

    def answer(self, data: bytes) -> bool:
        if self._marked == STOP_BEFORE_COMMIT.encode() and _READY in data:
            self._marked = b""
            os.kill(self._pid(), signal.SIGSTOP)
        if not self._marked or _IDLE not in data:
            return True
        if self._marked == DIE_UNHEARD.encode():
            self._spent.clear()
            os.kill(self._pid(), signal.SIGKILL)
        return False


def doomed_at_commit(pid: Callable[[], int]) -> Callable[[], Rule]:
    """The rule for connections of the process ``pid`` to PostgreSQL."""

    spent: set[bytes] = set()

    def rule() -> Rule:
        connection = _Connection(pid, spent)
        return Rule(request=connection.request, answer=connection.answer)

    return rule
