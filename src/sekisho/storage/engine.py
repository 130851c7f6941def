"""The database behind the ports: SQLite or PostgreSQL, told apart here and nowhere above."""

import asyncio
import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy import Column, Connection, Engine, create_engine, delete, event, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sekisho.errors import StartRefused, StorageUnavailable
from sekisho.storage.devices import SqlDevices
from sekisho.storage.ports import Stale
from sekisho.storage.revocations import SqlRevocations
from sekisho.storage.schema import chores, devices, revocations, sessions, thefts
from sekisho.storage.sessions import PG_NOW_US, SqlSessions
from sekisho.storage.users import SqlUsers
from sekisho.wire import now_us

T = TypeVar("T")

POOL_SIZE: Final = 10
_POOL_WAIT_S: Final = 1.0
_CONNECT_S: Final = 2.0
_STALL_S: Final = 0.5  # beyond the statement's own limit
_SQLITE_BUSY_S: Final = 1.0
_SQLITE_READERS: Final = 4
_RETRY_AFTER_S: Final = 1
_ATTEMPTS: Final = 3
_SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_CHORE_MS: Final = 600_000  # for a look at a whole table; a server that stands still is given up after it
_CONFLICTS: Final = frozenset({"40001", "40P01"})  # serialization failure, deadlock


_AGE: Final[dict[Stale, Column[Any]]] = {
    Stale.SESSIONS: sessions.c.ended_at_us,
    Stale.REVOCATIONS: revocations.c.lapses_at_us,
    Stale.DEVICES: devices.c.last_seen_at_us,
    Stale.THEFTS: thefts.c.at_us,
}


class SqlTransaction:
    """``ports.Transaction``: one connection inside one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._node_now_us = now_us() if connection.dialect.name == "sqlite" else None
        self.users = SqlUsers(connection)
        self.sessions = SqlSessions(connection, now_us=self._node_now_us)
        self.revocations = SqlRevocations(connection)
        self.devices = SqlDevices(connection)

    def now_us(self) -> int:
        """The database's time; on SQLite the node's, when the transaction began."""
        if self._node_now_us is not None:
            return self._node_now_us
        time: int = self._connection.execute(select(PG_NOW_US)).scalar_one()
        return time

    def claim_chore(self, name: str, *, every_us: int, now_us: int) -> bool:
        """Whoever changes the row does the chore."""
        # A time in the future, from a clock that stepped back, must not stop the chore until then. Less than a period
        # ahead it may be a node's that read the time after this one did, and has just done the chore.
        in_the_future = chores.c.ran_at_us > now_us + every_us
        self._connection.execute(delete(chores).where(chores.c.name == name, in_the_future))
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
        return self._connection.execute(claim).rowcount == 1

    def date_chore(self, name: str, *, ran_at_us: int) -> None:
        """So that a chore that failed need not wait a whole period."""
        self._connection.execute(update(chores).where(chores.c.name == name).values(ran_at_us=ran_at_us))

    def stale(self, kind: Stale, *, before_us: int, limit: int) -> Sequence[Any]:
        """Keys only: rows are found on a connection that reads, so that what deletes them is short."""
        age = _AGE[kind]
        (key,) = age.table.primary_key
        return self._connection.execute(select(key).where(age < before_us).limit(limit)).scalars().all()

    def delete_stale(self, kind: Stale, keys: Sequence[Any], *, before_us: int) -> int:
        """The age is asked again: a device may have been seen since."""
        age = _AGE[kind]
        (key,) = age.table.primary_key
        return self._connection.execute(delete(age.table).where(key.in_(keys), age < before_us)).rowcount


class _Lane(Protocol):
    """Connections of one kind, on which transactions run."""

    async def run(self, work: Callable[[Connection], T]) -> T: ...

    async def close(self) -> None: ...


class _Threads:
    """SQLite: a whole transaction in one hop to a thread, as many threads as connections."""

    def __init__(self, engine: Engine, *, size: int) -> None:
        self._engine = engine
        self._size = size
        self._executor: ThreadPoolExecutor | None = None

    async def run(self, work: Callable[[Connection], T]) -> T:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._size, "sekisho-sqlite")
        job = self._executor.submit(self._transaction, work)
        result = asyncio.wrap_future(job)
        try:
            done, _ = await asyncio.wait([result], timeout=_POOL_WAIT_S)
        except asyncio.CancelledError:
            result.cancel()  # one that has begun goes on to its end; nobody hears of it
            raise
        if not done and job.cancel():  # not begun: it never will
            raise PoolTimeoutError
        return await result

    async def close(self) -> None:
        executor, self._executor = self._executor, None
        if executor is not None:
            await asyncio.to_thread(executor.shutdown)
        self._engine.dispose()

    def _transaction(self, work: Callable[[Connection], T]) -> T:
        with self._engine.begin() as connection:
            return work(connection)


class _Loop:
    """PostgreSQL: on the event loop, by asyncpg."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def run(self, work: Callable[[Connection], T]) -> T:
        async with self._engine.begin() as connection:
            return await connection.run_sync(work)

    async def close(self) -> None:
        await self._engine.dispose()


class Database:
    """``ports.Storage`` on SQLAlchemy. The constructor does no I/O."""

    def __init__(self, url: str, *, statement_timeout_ms: int = 1000) -> None:
        """``url`` is ``sqlite:///PATH`` or ``postgresql://…``. Raises ``StartRefused``, never showing the URL."""
        self.url = _parsed(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._writer: _Lane
        self._reader: _Lane
        self._migrator: _Lane
        self._slow_reader: _Lane
        if self.is_sqlite:
            # One writer in the process, so that writers queue here in order and not in SQLite's busy loop, where
            # several starve. Readers see the last commit meanwhile (WAL).
            self._writer = _Threads(_sqlite_engine(self.url, pool_size=1, begin="BEGIN IMMEDIATE"), size=1)
            self._reader = _Threads(
                _sqlite_engine(self.url, pool_size=_SQLITE_READERS, begin="BEGIN"), size=_SQLITE_READERS
            )
            self._migrator = self._writer
            self._slow_reader = self._reader
        else:
            engine = _postgresql_engine(self.url, statement_timeout_ms)
            self._writer = _Loop(engine)
            # A single look-up needs no BEGIN and COMMIT around it, each of which is a round trip.
            self._reader = _Loop(engine.execution_options(isolation_level="AUTOCOMMIT"))
            self._migrator = _Loop(_postgresql_engine(self.url, None))  # an index may take its time
            # Its own engine: the limit on the client's side belongs to a connection. Connects when first used.
            slow = _postgresql_engine(self.url, _CHORE_MS)
            self._slow_reader = _Loop(slow.execution_options(isolation_level="AUTOCOMMIT"))

    async def write(self, work: Callable[[SqlTransaction], T]) -> T:
        """Runs ``work`` in a transaction, which is durable when this returns."""
        return await self._run(self._writer, lambda connection: work(SqlTransaction(connection)))

    async def read(self, work: Callable[[SqlTransaction], T]) -> T:
        """Runs ``work`` on a connection that only reads."""
        return await self._run(self._reader, lambda connection: work(SqlTransaction(connection)))

    async def read_slowly(self, work: Callable[[SqlTransaction], T]) -> T:
        """As ``read``, but may take minutes."""
        return await self._run(self._slow_reader, lambda connection: work(SqlTransaction(connection)))

    async def migrate(self, work: Callable[[Connection], T]) -> T:
        """Runs ``work`` on a bare connection, in a writing transaction without a time limit."""
        return await self._run(self._migrator, work)

    async def ping(self) -> None:
        """Asks the database something. Raises ``StorageUnavailable``."""
        await self._run(self._reader, lambda connection: connection.execute(text("SELECT 1")).close())

    async def close(self) -> None:
        """Closes every connection."""
        for lane in {self._writer, self._reader, self._migrator, self._slow_reader}:
            await lane.close()

    async def _run(self, lane: _Lane, work: Callable[[Connection], T]) -> T:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await lane.run(work)
            except PoolTimeoutError:
                raise StorageUnavailable(_RETRY_AFTER_S, "no free database connection in time") from None
            except DBAPIError as error:
                if attempt == _ATTEMPTS or _state(error) not in _CONFLICTS:
                    # The driver's error is not chained: its text may quote a row's values.
                    raise StorageUnavailable(_RETRY_AFTER_S, _reason(error)) from None
            except SQLAlchemyError as error:
                raise StorageUnavailable(_RETRY_AFTER_S, f"database: {type(error).__name__}") from None
            except (OSError, TimeoutError) as error:  # connecting: refused, unreachable, timed out
                detail = f"database: {type(error).__name__} {error}".rstrip()
                raise StorageUnavailable(_RETRY_AFTER_S, detail) from None
            await asyncio.sleep(random.uniform(0.005, 0.02) * attempt)  # noqa: S311 - so that two do not meet again
        raise AssertionError("the last attempt returns or raises")


# SQLSTATE classes whose messages speak of the server and not of rows: connection, authorisation, unknown database,
# resources, shutdown.
_ABOUT_THE_SERVER: Final = ("08", "28", "3D", "53", "57")


def _state(error: DBAPIError) -> str:
    return str(getattr(error.orig, "sqlstate", None) or "")


def _reason(error: DBAPIError) -> str:
    """For the operator: what the database said, where that cannot quote a value."""
    original, state = error.orig, _state(error)
    if isinstance(original, sqlite3.OperationalError) or state.startswith(_ABOUT_THE_SERVER):
        return f"database: {str(original).splitlines()[0]}"
    return f"database: {type(original).__name__} {state}".rstrip()


def _parsed(url: str) -> URL:
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


def _sqlite_engine(url: URL, *, pool_size: int, begin: str) -> Engine:
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=_POOL_WAIT_S,
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
