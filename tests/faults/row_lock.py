"""Somebody holds a session's row on PostgreSQL, so that statements queue behind it, in the order in which they come."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import asyncpg
from history import Call

from test_serve import wait_until


class RowLock:
    """Holds the row from entering to leaving."""

    def __init__(self, url: str, session: str) -> None:
        self._url = url
        self._session = session
        self._loop = asyncio.new_event_loop()

    def wait_for(self, number: int) -> None:
        """Returns when so many statements wait for a lock in this database."""
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        wait_until(
            lambda: self._do(self._connection.fetchval(waiting)) >= number, within_s=5, what=f"{number} statements wait"
        )

    def __enter__(self) -> Self:
        self._connection = self._do(asyncpg.connect(self._url))
        self._transaction = self._connection.transaction()
        self._do(self._transaction.start())
        self._do(self._connection.execute("SELECT FROM sessions WHERE id = $1 FOR UPDATE", self._session))
        return self

    def __exit__(self, _type: type[BaseException] | None, _: BaseException | None, _at: TracebackType | None) -> None:
        self._do(self._transaction.rollback())
        self._do(self._connection.close())
        self._loop.close()

    def _do(self, work: Awaitable[Any]) -> Any:
        return self._loop.run_until_complete(work)


def in_this_order(
    url: str, session: str, threads: ThreadPoolExecutor, *acts: Callable[[], Call], meanwhile: Callable[[], None] = int
) -> list[Call]:
    """The statements of these reach the session's row one after the other, the next before the first is through.

    ``meanwhile`` is called after each but the last.
    """
    running: list[Future[Call]] = []
    with RowLock(url, session) as row:
        for act in acts:
            if running:
                meanwhile()
            running.append(threads.submit(act))
            row.wait_for(len(running))
    return [future.result(30) for future in running]
