"""How a transaction runs: on SQLite in a thread, on PostgreSQL on the event loop."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine

from sekisho.storage import connect
from sekisho.storage.rotate import rotate_on_postgresql, rotate_on_sqlite
from sekisho.storage.rows import Rotate, Session

T = TypeVar("T")


class Lane(Protocol):
    """Connections of one kind, on which transactions run."""

    async def run(self, work: Callable[[Connection], T]) -> T:
        """A transaction by SQLAlchemy."""
        ...

    async def rotate(self, order: Rotate, check: Callable[[Session], None]) -> Session | None:
        """The ordinary refresh, as a transaction by the driver."""
        ...

    async def close(self) -> None:
        """Closes the connections."""
        ...


class Threads:
    """SQLite: a whole transaction in one hop to a thread, as many threads as connections."""

    def __init__(self, engine: Engine, *, size: int) -> None:
        self._engine = engine
        self._size = size
        self._executor: ThreadPoolExecutor | None = None

    async def run(self, work: Callable[[Connection], T]) -> T:  # noqa: D102 - Lane says it
        return await self._in_thread(self._transaction, work)

    async def rotate(self, order: Rotate, check: Callable[[Session], None]) -> Session | None:  # noqa: D102
        return await self._in_thread(self._driver_transaction, lambda driver: rotate_on_sqlite(driver, order, check))

    async def close(self) -> None:  # noqa: D102
        executor, self._executor = self._executor, None
        if executor is not None:
            await asyncio.to_thread(executor.shutdown)
        self._engine.dispose()

    async def _in_thread(self, transaction: Callable[[Callable[[Any], T]], T], work: Callable[[Any], T]) -> T:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._size, "sekisho-sqlite")
        job = self._executor.submit(transaction, work)
        result = asyncio.wrap_future(job)
        try:
            done, _ = await asyncio.wait([result], timeout=connect.POOL_WAIT_S)
        except asyncio.CancelledError:
            result.cancel()  # one that has begun goes on to its end; nobody hears of it
            raise
        if not done and job.cancel():  # not begun: it never will
            raise PoolTimeoutError
        return await result

    def _transaction(self, work: Callable[[Connection], T]) -> T:
        with self._engine.begin() as connection:
            return work(connection)

    def _driver_transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        pooled = self._engine.raw_connection()
        try:
            driver = pooled.driver_connection
            assert isinstance(driver, sqlite3.Connection)
            driver.execute("BEGIN IMMEDIATE").close()
            try:
                result = work(driver)
                driver.execute("COMMIT").close()
            except BaseException:
                if driver.in_transaction:  # SQLite itself rolls back after some errors
                    driver.execute("ROLLBACK").close()
                raise
            return result
        finally:
            pooled.close()


class Loop:
    """PostgreSQL: on the event loop, by asyncpg."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def run(self, work: Callable[[Connection], T]) -> T:  # noqa: D102 - Lane says it
        async with self._engine.begin() as connection:
            return await connection.run_sync(work)

    async def rotate(self, order: Rotate, check: Callable[[Session], None]) -> Session | None:  # noqa: D102
        return await self._driver_transaction(lambda driver: rotate_on_postgresql(driver, order, check))

    async def close(self) -> None:  # noqa: D102
        await self._engine.dispose()

    async def _driver_transaction(self, work: Callable[[Any], Awaitable[T]]) -> T:
        while True:
            pooled = await self._engine.raw_connection()
            driver: Any = pooled.driver_connection
            if not driver.is_closed():
                break
            pooled.invalidate()  # the server went away meanwhile; a new one is made
        began = False
        try:
            async with driver.transaction():
                began = True
                return await work(driver)
        finally:
            # A BEGIN that was given up may still arrive: whoever came next would write inside of it, and lose it all.
            if not began or driver.is_closed() or driver.is_in_transaction():
                pooled.invalidate()
            pooled.close()
