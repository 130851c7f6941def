"""The database behind the ports: SQLite or PostgreSQL, told apart here and nowhere above."""

import asyncio
import random
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import asyncpg
from sqlalchemy import Column, Connection, delete, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from sekisho.errors import StorageUnavailable
from sekisho.storage.connect import parsed, postgresql_engine, sqlite_engine
from sekisho.storage.devices import SqlDevices
from sekisho.storage.lanes import Lane, Loop, Threads
from sekisho.storage.revocations import SqlRevocations
from sekisho.storage.rows import Rotate, Session, Stale
from sekisho.storage.schema import chores, devices, revocations, sessions, thefts
from sekisho.storage.sessions import PG_NOW_US, SqlSessions
from sekisho.storage.users import SqlUsers
from sekisho.storage.verifiers import SqlVerifiers
from sekisho.wire import now_us

T = TypeVar("T")

_SQLITE_READERS: Final = 4
_RETRY_AFTER_S: Final = 1
_ATTEMPTS: Final = 3
_CHORE_MS: Final = 600_000  # for a look at a whole table; a server that stands still is given up after it
_CONFLICTS: Final = frozenset({"40001", "40P01"})  # serialization failure, deadlock
_DRIVER_ERRORS: Final = (
    DBAPIError,
    sqlite3.Error,
    # Below SQLAlchemy: its adapter's errors at connecting, and asyncpg's own, of which the last is a rollback's on a
    # connection that is gone.
    AsyncAdapt_asyncpg_dbapi.Error,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)


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
        self.sessions = SqlSessions(connection)
        self.revocations = SqlRevocations(connection)
        self.devices = SqlDevices(connection)
        self.verifiers = SqlVerifiers(connection)

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


class Database:
    """``ports.Storage`` on SQLAlchemy. The constructor does no I/O."""

    def __init__(self, url: str, *, statement_timeout_ms: int = 1000) -> None:
        """``url`` is ``sqlite:///PATH`` or ``postgresql://…``. Raises ``StartRefused``, never showing the URL."""
        self.url = parsed(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._writer: Lane
        self._reader: Lane
        self._migrator: Lane
        self._slow_reader: Lane
        if self.is_sqlite:
            # One writer in the process, so that writers queue here in order and not in SQLite's busy loop, where
            # several starve. Readers see the last commit meanwhile (WAL).
            self._writer = Threads(sqlite_engine(self.url, pool_size=1, begin="BEGIN IMMEDIATE"), size=1)
            self._reader = Threads(
                sqlite_engine(self.url, pool_size=_SQLITE_READERS, begin="BEGIN"), size=_SQLITE_READERS
            )
            self._migrator = self._writer
            self._slow_reader = self._reader
        else:
            engine = postgresql_engine(self.url, statement_timeout_ms)
            self._writer = Loop(engine)
            # A single look-up needs no BEGIN and COMMIT around it, each of which is a round trip.
            self._reader = Loop(engine.execution_options(isolation_level="AUTOCOMMIT"))
            self._migrator = Loop(postgresql_engine(self.url, None))  # an index may take its time
            # Its own engine: the limit on the client's side belongs to a connection. Connects when first used.
            slow = postgresql_engine(self.url, _CHORE_MS)
            self._slow_reader = Loop(slow.execution_options(isolation_level="AUTOCOMMIT"))

    async def write(self, work: Callable[[SqlTransaction], T]) -> T:
        """Runs ``work`` in a transaction, which is durable when this returns."""
        return await self._run(self._writer, lambda connection: work(SqlTransaction(connection)))

    async def rotate(self, order: Rotate, check: Callable[[Session], None]) -> Session | None:
        """The ordinary refresh, durable when this returns. None unless every condition of *rotate* holds."""
        return await _attempts(lambda: self._writer.rotate(order, check))

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

    async def _run(self, lane: Lane, work: Callable[[Connection], T]) -> T:
        return await _attempts(lambda: lane.run(work))


async def _attempts(transaction: Callable[[], Awaitable[T]]) -> T:
    """Runs it again after a conflict, and says of every other failure ``StorageUnavailable``."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return await transaction()
        except PoolTimeoutError:
            raise StorageUnavailable(_RETRY_AFTER_S, "no free database connection in time") from None
        except _DRIVER_ERRORS as error:
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


def _original(error: Exception) -> object:
    return error.orig if isinstance(error, DBAPIError) else error


def _state(error: Exception) -> str:
    return str(getattr(_original(error), "sqlstate", None) or "")


def _reason(error: Exception) -> str:
    """For the operator: what the database said, where that cannot quote a value."""
    original, state = _original(error), _state(error)
    if isinstance(original, sqlite3.OperationalError) or state.startswith(_ABOUT_THE_SERVER):
        return f"database: {str(original).splitlines()[0]}"
    return f"database: {type(original).__name__} {state}".rstrip()
