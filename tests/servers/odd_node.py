"""Runs the command line of Sekisho in a faulty environment, of which the program knows nothing.

    TEST_CLOCK_OFFSET_S     the wall clock is wrong by so much
    TEST_STATEMENTS         a file into which every statement that SQLite runs is written

A request whose User-Agent is ``DIE_BEFORE_COMMIT`` kills the process when its transaction is about to commit (SQLite);
``DIE_AT_THEFT`` when it is about to record a theft, and has ended the session in the same transaction (SQLite);
one that begins with ``DIE_AFTER_BYTES`` when so many bytes of the reply are out: 0 is after the commit, before it.
"""

import os
import signal
import sqlite3
import sqlite3.dbapi2
import sys
import time
from typing import Any

DIE_BEFORE_COMMIT = "die-before-commit"
DIE_AT_THEFT = "die-at-theft"
DIE_AFTER_BYTES = "die-after-bytes="


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def shift_the_clock(seconds: float) -> None:
    """Before anything takes ``time.time`` for itself. The monotonic clock stays right."""
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + seconds
    time.time_ns = lambda: real_ns() + int(seconds * 1e9)


class Watched(sqlite3.Connection):
    """Sees the text of each statement, values included, just before it runs."""

    doomed = False

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.set_trace_callback(self._see)

    def _see(self, statement: str) -> None:
        if _statements is not None:
            os.write(_statements, statement.replace("\n", " ").encode() + b"\n")
        self.doomed = self.doomed or DIE_BEFORE_COMMIT in statement
        if self.doomed and statement.startswith("COMMIT"):
            die()
        if DIE_AT_THEFT in statement and statement.startswith("INSERT INTO thefts"):
            die()


class DoomedReply:
    """A transport that writes the beginning of a marked reply and kills the process."""

    def __init__(self, transport: Any, protocol: Any) -> None:
        self._transport = transport
        self._protocol = protocol
        self._reply = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        headers = dict(getattr(self._protocol, "headers", None) or ())
        marker = headers.get(b"user-agent", b"").decode("latin-1")
        if not marker.startswith(DIE_AFTER_BYTES):
            self._transport.write(data)
            return
        number = int(marker.removeprefix(DIE_AFTER_BYTES))
        self._reply += data
        if len(self._reply) >= number:
            # Past the event loop, which would write it later: there is no later.
            os.write(self._transport.get_extra_info("socket").fileno(), self._reply[:number])
            die()


def doom_replies() -> None:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    connection_made = HttpToolsProtocol.connection_made

    def with_doomed_replies(self: Any, transport: Any) -> None:
        connection_made(self, DoomedReply(transport, self))

    HttpToolsProtocol.connection_made = with_doomed_replies


def watch_sqlite() -> None:
    connect = sqlite3.connect

    def watched(*args: Any, **named: Any) -> sqlite3.Connection:
        return connect(*args, **{"factory": Watched, **named})

    sqlite3.connect = sqlite3.dbapi2.connect = watched


_statements: int | None = None

if __name__ == "__main__":
    if "TEST_CLOCK_OFFSET_S" in os.environ:
        shift_the_clock(float(os.environ["TEST_CLOCK_OFFSET_S"]))
    if "TEST_STATEMENTS" in os.environ:
        _statements = os.open(os.environ["TEST_STATEMENTS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    watch_sqlite()
    doom_replies()
    sys.path.pop(0)  # this folder, of which the program knows nothing either
    from sekisho.cli import main

    sys.argv[0] = "sekisho"
    main()
