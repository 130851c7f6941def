"""From the URL of a database to engines that connect to it. Nothing here connects by itself."""

import sqlite3
import time
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sekisho.errors import StartRefused

POOL_SIZE: Final = 10
POOL_WAIT_S: Final = 1.0
_CONNECT_S: Final = 2.0
_STALL_S: Final = 0.5  # beyond the statement's own limit, at the most
_SQLITE_BUSY_S: Final = 1.0
_SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


def parsed(url: str) -> URL:
    """Raises ``StartRefused``, never showing the URL."""
    try:
        parsed = make_url(url)
    except (SQLAlchemyError, ValueError):  # ValueError: a port that is not a number
        raise StartRefused("SEKISHO_DATABASE_URL is not a URL") from None
    drivers = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+asyncpg"}
    if parsed.drivername not in drivers:
        raise StartRefused("SEKISHO_DATABASE_URL begins with neither sqlite:/// nor postgresql://")
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        # In memory every connection would see a database of its own.
        raise StartRefused("SEKISHO_DATABASE_URL names no file: write sqlite:///PATH, with three slashes")
    return parsed.set(drivername=drivers[parsed.drivername], query=_driver_query(parsed))


def _driver_query(url: URL) -> dict[str, str]:
    """What stands after the ``?``, for the driver, to which the name of anything else would be a mistake in the code.

    libpq says sslmode, and so does whoever hands out URLs; asyncpg takes the same words as ssl.
    """
    modes: list[str] = []
    for name, value in url.query.items():
        if url.drivername != "postgresql" or name not in {"sslmode", "ssl"}:
            raise StartRefused(f"SEKISHO_DATABASE_URL cannot have {name!r} after its ?")
        if value not in _SSL_MODES:  # a tuple, when it is said twice, is not among them
            raise StartRefused(f"SEKISHO_DATABASE_URL: {name} must be one of {', '.join(_SSL_MODES)}")
        modes.append(str(value))
    if len(modes) > 1:
        raise StartRefused("SEKISHO_DATABASE_URL says both ssl and sslmode")
    return {"ssl": modes[0]} if modes else {}


def sqlite_engine(url: URL, *, pool_size: int, begin: str) -> Engine:
    """``begin``: the statement that begins each transaction."""
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_WAIT_S,
        hide_parameters=True,
        connect_args={"timeout": _SQLITE_BUSY_S, "check_same_thread": False},
    )

    def make_private(*_: object) -> None:
        path = url.database
        if path and path != ":memory:":  # password hashes are nobody else's business, whatever the umask
            Path(path).touch(mode=0o600)

    def set_up(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # the driver's own implicit BEGIN is deferred, which invites SQLITE_BUSY
        try:
            _into_wal(connection)
            # FULL: an acknowledged logout survives a power cut, which NORMAL in WAL mode does not promise.
            connection.execute("PRAGMA synchronous = FULL").close()
            connection.execute("PRAGMA foreign_keys = ON").close()
        except sqlite3.Error:
            connection.close()
            raise

    _listen(engine, "do_connect", make_private)
    _listen(engine, "connect", set_up)
    _listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def _into_wal(connection: sqlite3.Connection) -> None:
    """Turns a new file to WAL. SQLite does not wait for others who do just that; this does."""
    give_up_at = time.monotonic() + _SQLITE_BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").close()
        except sqlite3.OperationalError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.01)  # in the lane's own thread
        else:
            return


def postgresql_engine(url: URL, statement_timeout_ms: int | None) -> AsyncEngine:
    """``statement_timeout_ms`` None: a statement may take any time."""
    server_settings = {
        "application_name": "sekisho",
        "idle_in_transaction_session_timeout": "10000",
        "jit": "off",  # costs more than these one-row statements
    }
    connect_args: dict[str, Any] = {"timeout": _CONNECT_S, "server_settings": server_settings}
    if statement_timeout_ms is not None:
        server_settings["statement_timeout"] = str(statement_timeout_ms)
        # The server's own limit does not help against a server that stands still.
        statement_s = statement_timeout_ms / 1000
        connect_args["command_timeout"] = statement_s + min(_STALL_S, statement_s / 2)
    return create_async_engine(
        url,
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=POOL_WAIT_S,
        hide_parameters=True,
        connect_args=connect_args,
    )


def _listen(engine: Engine, name: str, function: Any) -> None:
    event.listen(engine, name, function)
