"""A transaction held open while a test does other things: each call on it is sent to the running ``work`` function.

The product runs a transaction as one plain function, so that nothing can hold it open. Tests of locks, of rows that
commit late and of full pools need just that.
"""

import asyncio
import queue
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from sqlalchemy.util import await_only

from sekisho.storage.engine import Database

_Call = Callable[[], Any]


class _Steps:
    """Carries calls into ``work`` and their results out of it."""

    def __init__(self, *, in_thread: bool) -> None:
        self._in_thread = in_thread
        self._loop = asyncio.get_running_loop()
        self._calls: Any = queue.Queue() if in_thread else asyncio.Queue()
        self.opened: asyncio.Future[Any] = self._loop.create_future()
        self.failure: Exception | None = None

    def work(self, opened: Any) -> None:
        self._settle(self.opened, opened)
        while (step := self._next()) is not None:
            call, result = step
            try:
                self._settle(result, call())
            except Exception as error:  # noqa: BLE001 - the test gets it, and at its block's end the product
                self.failure = error
                self._settle(result, error, failed=True)

    async def do(self, call: _Call) -> Any:
        result = self._loop.create_future()
        self._calls.put_nowait((call, result))
        return await result

    def end(self, error: BaseException | None) -> None:
        """The work returns, or fails with ``error``."""
        self._calls.put_nowait(error)

    def _next(self) -> Any:
        step = self._calls.get() if self._in_thread else await_only(self._calls.get())
        if isinstance(step, BaseException):
            raise step
        return step

    def _settle(self, future: asyncio.Future[Any], value: Any, *, failed: bool = False) -> None:
        settle = future.set_exception if failed else future.set_result

        def now() -> None:
            if not future.done():
                settle(value)

        if self._in_thread:
            self._loop.call_soon_threadsafe(now)
        else:
            now()


class _Awaitable:
    """``target`` with every method as a coroutine that runs inside the transaction."""

    def __init__(self, target: Any, steps: _Steps) -> None:
        self._target = target
        self._steps = steps

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not callable(value):
            return _Awaitable(value, self._steps)
        return lambda *args, **kwargs: self._steps.do(lambda: value(*args, **kwargs))


@asynccontextmanager
async def _held(database: Database, run: Callable[[Callable[[Any], None]], Any]) -> AsyncIterator[Any]:
    steps = _Steps(in_thread=database.is_sqlite)
    task = asyncio.ensure_future(run(steps.work))
    try:
        await asyncio.wait([task, steps.opened], return_when=asyncio.FIRST_COMPLETED)
        if not steps.opened.done():
            await task  # raises what kept it from opening
        yield _Awaitable(steps.opened.result(), steps)
    except BaseException as error:
        # The product sees what its own statement raised; what the test raised only rolls back.
        steps.end(error if error is steps.failure else _Left())
        with suppress(_Left):
            await task
        raise
    steps.end(None)
    await task


class _Left(Exception):
    """The block of the test was left by an exception: the transaction rolls back."""


def writing(database: Database) -> Any:
    """``async with writing(database) as tx: await tx.users.add(...)``; commits at the end of the block."""
    return _held(database, database.write)


def reading(database: Database) -> Any:
    """The same on a connection that only reads."""
    return _held(database, database.read)


def bare(database: Database) -> Any:
    """The same with the bare connection: ``async with bare(database) as connection: await connection.execute(...)``."""
    return _held(database, database.migrate)
