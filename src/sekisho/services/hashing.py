"""The one place where passwords are hashed: a few threads of lowest priority behind a short queue.

A login storm must not slow anything but logins (OWASP ASVS 2.4.1, 13.1.2): the threads are shared with nothing on the
request path, the event loop only waits for them, and whoever finds the queue full is told at once when to come back.
"""

import asyncio
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Final, TypeVar

from sekisho import errors
from sekisho.passwords import PasswordHasher

DEFAULT_QUEUE_LIMIT: Final = 64  # about one second of OWASP's argon2id on one core
_LOWEST_PRIORITY: Final = 19
_WEIGHT_OF_LATEST: Final = 0.1  # in the moving average of durations

_T = TypeVar("_T")


class HashingPool:
    """Hashes and verifies passwords off the event loop, in order of arrival.

    Memory: each thread holds one hash's working memory at a time, so the budget is ``threads`` × the profile's memory
    (19 MiB each by default, 38 MiB on two cores), whatever the number of callers. A waiting caller costs its password.
    """

    def __init__(
        self, hasher: PasswordHasher, *, threads: int | None = None, queue_limit: int = DEFAULT_QUEUE_LIMIT
    ) -> None:
        """``threads``: at most, and by default, one a core. ``queue_limit``: callers running and waiting together."""
        self._hasher = hasher
        self.threads: Final = max(1, min(threads or _cores(), _cores()))
        self.queue_limit: Final = max(1, queue_limit)
        self._lock = threading.Lock()  # guards what follows; held for a few instructions, never while hashing
        self._executor: ThreadPoolExecutor | None = None
        self._taken = 0
        self._running = 0
        self._duration_s = 0.0
        self._closed = False

    @property
    def waiting(self) -> int:
        """Callers that have a place in the queue and no thread yet."""
        with self._lock:
            return self._taken - self._running

    @property
    def max_password_bytes(self) -> int | None:
        """As ``PasswordHasher.max_password_bytes``."""
        return self._hasher.max_password_bytes

    async def hash(self, password: str) -> str:
        """As ``PasswordHasher.hash``. Raises ``Overloaded`` too."""
        return await self._run(lambda: self._hasher.hash(password))

    async def verify(self, password: str, stored: str | None) -> None:
        """As ``PasswordHasher.verify``; ``None`` is an unknown account and costs a decoy's work.

        Raises ``WrongCredentials`` and ``Overloaded``.
        """
        if stored is None:
            await self._run(lambda: self._hasher.verify_decoy(password))
        else:
            await self._run(lambda: self._hasher.verify(password, stored))

    def needs_rehash(self, stored: str) -> bool:
        """As ``PasswordHasher.needs_rehash``; quick."""
        return self._hasher.needs_rehash(stored)

    def open(self) -> None:
        """Takes work again after ``close``: an application may be started more than once in a process."""
        with self._lock:
            self._closed = False

    def close(self) -> None:
        """Lets running work end; waiting and later callers get ``Overloaded``. Does not wait; may be repeated."""
        with self._lock:
            self._closed = True
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False)

    async def _run(self, work: Callable[[], _T]) -> _T:
        # Passes a cancellation on: when the client has gone, work that has not begun is never done.
        return await asyncio.wrap_future(self._submit(work))

    def _submit(self, work: Callable[[], _T]) -> Future[_T]:
        with self._lock:
            if self._closed:
                raise errors.Overloaded(detail="the hashing pool is closed")
            if self._taken >= self.queue_limit:
                retry_after_s = math.ceil(self._taken * self._duration_s / self.threads)
                raise errors.Overloaded(retry_after_s, "the hashing queue is full")
            if self._executor is None:
                self._executor = ThreadPoolExecutor(self.threads, "sekisho-hashing", _lower_priority)
            future = self._executor.submit(self._measure, work)
            self._taken += 1
        # Registered before asyncio's own callback: the place is free by the time the caller goes on.
        future.add_done_callback(self._leave)
        return future

    def _measure(self, work: Callable[[], _T]) -> _T:
        """Runs in a thread of the pool."""
        with self._lock:
            self._running += 1
            closed = self._closed
        if closed:
            raise errors.Overloaded(detail="the hashing pool is closed")
        began_s = time.perf_counter()
        try:
            return work()
        except MemoryError:  # the node's state, not the password's: it must not read as a wrong one
            raise errors.Overloaded(detail="no memory to hash with") from None
        finally:
            duration_s = time.perf_counter() - began_s
            with self._lock:
                weight = _WEIGHT_OF_LATEST if self._duration_s else 1.0
                self._duration_s += weight * (duration_s - self._duration_s)

    def _leave(self, future: Future[_T]) -> None:
        """Frees a place: when its work is done, or when it was given up before it began."""
        with self._lock:
            self._taken -= 1
            if not future.cancelled():
                self._running -= 1


def _cores() -> int:
    """The cores this process may use, which in a container are fewer than the machine has."""
    if sys.version_info >= (3, 13):
        cores = os.process_cpu_count()
    elif sys.platform == "linux":
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count()
    return cores or 1


def _lower_priority() -> None:
    """Runs first in each thread: whoever else wants the core, the event loop above all, goes before a hash.

    Linux alone counts a thread's priority by itself; elsewhere the call would slow the whole process.
    """
    if sys.platform == "linux":
        with suppress(OSError):  # a sandbox may forbid it, and an initializer that fails would break the pool
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
