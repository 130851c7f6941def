"""The database behind the ports: SQLite or PostgreSQL, told apart here and nowhere above."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, delete, event, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from sekisho.errors import StartRefused, StorageUnavailable
from sekisho.storage.devices import SqlDevices
from sekisho.storage.revocations import SqlRevocations
from sekisho.storage.schema import chores
from sekisho.storage.sessions import PG_NOW_US, SqlSessions
from sekisho.storage.users import SqlUsers
from sekisho.wire import now_us

POOL_SIZE: Final = 10
_POOL_WAIT_S: Final = 1.0
_CONNECT_S: Final = 2.0
_STALL_S: Final = 0.5  # beyond the statement's own limit
_SQLITE_BUSY_S: Final = 1.0
_SQLITE_READERS: Final = 4
_RETRY_AFTER_S: Final = 1


class SqlTransaction:
    """``ports.Transaction``: one connection inside one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._node_now_us = now_us() if connection.dialect.name == "sqlite" else None
        self.users = SqlUsers(connection)
        self.sessions = SqlSessions(connection, now_us=self._node_now_us)
        self.revocations = SqlRevocations(connection)
        self.devices = SqlDevices(connection)

    async def now_us(self) -> int:
        """The database's time; on SQLite the node's, when the transaction began."""
        if self._node_now_us is not None:
            return self._node_now_us
        time: int = (await self._connection.execute(select(PG_NOW_US))).scalar_one()
        return time

    async def claim_chore(self, name: str, *, every_us: int, now_us: int) -> bool:
        """Whoever changes the row does the chore."""
        # A time in the future, from a clock that stepped back, must not stop the chore until then. Less than a period
        # ahead it may be a node's that read the time after this one did, and has just done the chore.
        in_the_future = chores.c.ran_at_us > now_us + every_us
        await self._connection.execute(delete(chores).where(chores.c.name == name, in_the_future))
        dialect = postgresql if self._node_now_us is None else sqlite
        claim = (
            dialect.insert(chores)
            .values(name=name, ran_at_us=now_us)
            .on_conflict_do_update(
                index_elements=["name"],
                set_={"ran_at_us": now_us},
                where=chores.c.ran_at_us <= now_us - every_us,
            )
        )
        return (await self._connection.execute(claim)).rowcount == 1


class Database:
    """``ports.Storage`` on SQLAlchemy. The constructor does no I/O."""

    def __init__(self, url: str, *, statement_timeout_ms: int = 1000) -> None:
        """``url`` is ``sqlite:///PATH`` or ``postgresql://…``. Raises ``StartRefused``, never showing the URL."""
        self.url = _parsed(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            # One writer in the process, so that writers queue here in order and not in SQLite's busy loop, where
            # several starve. Readers see the last commit meanwhile (WAL).
            self._writer = _sqlite_engine(self.url, pool_size=1, begin="BEGIN IMMEDIATE")
            self._reader = _sqlite_engine(self.url, pool_size=_SQLITE_READERS, begin="BEGIN")
            self._migrator = self._writer
        else:
            self._writer = self._reader = _postgresql_engine(self.url, statement_timeout_ms)
            self._migrator = _postgresql_engine(self.url, None)  # an index may take its time

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[SqlTransaction]:
        """A transaction that may write. It is durable when the block has ended."""
        async with self._transaction(self._writer) as connection:
            yield SqlTransaction(connection)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[SqlTransaction]:
        """A transaction that only reads."""
        async with self._transaction(self._reader) as connection:
            yield SqlTransaction(connection)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """The bare connection in a writing transaction without a time limit, for migrations."""
        async with self._transaction(self._migrator) as connection:
            yield connection

    async def ping(self) -> None:
        """Asks the database something. Raises ``StorageUnavailable``."""
        async with self._transaction(self._reader) as connection:
            await connection.execute(text("SELECT 1"))

    async def close(self) -> None:
        """Closes every connection."""
        await self._writer.dispose()
        await self._reader.dispose()
        await self._migrator.dispose()

    @asynccontextmanager
    async def _transaction(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        try:
            async with engine.begin() as connection:
                yield connection
        except PoolTimeoutError:
            raise StorageUnavailable(_RETRY_AFTER_S, "no free database connection in time") from None
        except DBAPIError as error:
            # The driver's error is not chained: its text may quote a row's values.
            raise StorageUnavailable(_RETRY_AFTER_S, _reason(error)) from None
        except SQLAlchemyError as error:
            raise StorageUnavailable(_RETRY_AFTER_S, f"database: {type(error).__name__}") from None
        except (OSError, TimeoutError) as error:  # connecting: refused, unreachable, timed out
            raise StorageUnavailable(_RETRY_AFTER_S, f"database: {type(error).__name__} {error}".rstrip()) from None


# SQLSTATE classes whose messages speak of the server and not of rows: connection, authorisation, unknown database,
# resources, shutdown.
_ABOUT_THE_SERVER: Final = ("08", "28", "3D", "53", "57")


def _reason(error: DBAPIError) -> str:
    """For the operator: what the database said, where that cannot quote a value."""
    original = error.orig
    state = str(getattr(original, "sqlstate", None) or "")
    if isinstance(original, sqlite3.OperationalError) or state.startswith(_ABOUT_THE_SERVER):
        return f"database: {str(original).splitlines()[0]}"
    return f"database: {type(original).__name__} {state}".rstrip()


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (SQLAlchemyError, ValueError):  # ValueError: a port that is not a number
        raise StartRefused("SEKISHO_DATABASE_URL is not a URL") from None
    drivers = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
    if parsed.drivername not in drivers:
        raise StartRefused("SEKISHO_DATABASE_URL begins with neither sqlite:/// nor postgresql://")
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        # In memory every connection would see a database of its own.
        raise StartRefused("SEKISHO_DATABASE_URL names no file: write sqlite:///PATH, with three slashes")
    return parsed.set(drivername=drivers[parsed.drivername])


def _sqlite_engine(url: URL, *, pool_size: int, begin: str) -> AsyncEngine:
    engine = create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=_POOL_WAIT_S,
        hide_parameters=True,
        connect_args={"timeout": _SQLITE_BUSY_S},
    )

    def make_private(*_: object) -> None:
        path = url.database
        if path and path != ":memory:":  # password hashes are nobody else's business, whatever the umask
            Path(path).touch(mode=0o600)

    def set_up(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver's own implicit BEGIN is deferred, which invites SQLITE_BUSY
        cursor = connection.cursor()
        # FULL: an acknowledged logout survives a power cut, which NORMAL in WAL mode does not promise.
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    _listen(engine.sync_engine, "do_connect", make_private)
    _listen(engine.sync_engine, "connect", set_up)
    _listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def _postgresql_engine(url: URL, statement_timeout_ms: int | None) -> AsyncEngine:
    server_settings = {
        "application_name": "sekisho",
        "idle_in_transaction_session_timeout": "10000",
        "jit": "off",  # costs more than these one-row statements
    }
    connect_args: dict[str, Any] = {"timeout": _CONNECT_S, "server_settings": server_settings}
    if statement_timeout_ms is not None:
        server_settings["statement_timeout"] = str(statement_timeout_ms)
        # The server's own limit does not help against a server that stands still.
        connect_args["command_timeout"] = statement_timeout_ms / 1000 + _STALL_S
    return create_async_engine(
        url,
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=_POOL_WAIT_S,
        hide_parameters=True,
        connect_args=connect_args,
    )


def _listen(engine: Engine, name: str, function: Any) -> None:
    event.listen(engine, name, function)
