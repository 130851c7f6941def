"""P5: hashing is bounded, in order, of low priority, and never on the event loop."""

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import NoReturn

import pytest

from sekisho import errors
from sekisho.passwords import CHEAPEST, PasswordHasher
from sekisho.services import hashing
from sekisho.services.hashing import HashingPool

pytestmark = pytest.mark.anyio
DEADLINE_S = 30
# Read before any pool has threads: a pool that lowered the wrong thread would have lowered this one.
OWN_PRIORITY = os.getpriority(os.PRIO_PROCESS, 0) if sys.platform == "linux" else 0


class GatedHasher(PasswordHasher):
    """Each hash waits in its thread until the gate opens."""

    def __init__(self) -> None:
        super().__init__(CHEAPEST)
        self.gate = threading.Event()
        self.begun = threading.Semaphore(0)
        self.order: list[str] = []

    def hash(self, password: str) -> str:
        self.order.append(password)
        self.begun.release()
        assert self.gate.wait(DEADLINE_S)
        return super().hash(password)


@pytest.fixture
def gated() -> GatedHasher:
    return GatedHasher()


@pytest.fixture
async def pool(gated: GatedHasher) -> AsyncIterator[HashingPool]:
    """One thread, four places."""
    pool = HashingPool(gated, threads=1, queue_limit=4)
    yield pool
    gated.gate.set()
    pool.close()


async def occupy(pool: HashingPool, gated: GatedHasher, *names: str) -> list["asyncio.Task[str]"]:
    """Tasks that hold the only thread (the first) and wait (the others)."""
    tasks = [asyncio.create_task(pool.hash(name)) for name in names]
    assert await asyncio.to_thread(gated.begun.acquire, timeout=DEADLINE_S)
    return tasks


async def test_hash_and_verify() -> None:
    pool = HashingPool(PasswordHasher(CHEAPEST))
    stored = await pool.hash("right")
    await pool.verify("right", stored)
    with pytest.raises(errors.WrongCredentials, match="wrong password"):
        await pool.verify("wrong", stored)
    with pytest.raises(errors.WrongCredentials, match="no account"):
        await pool.verify("right", None)
    with pytest.raises(errors.InputError):
        await pool.hash("\ud800")
    assert not pool.needs_rehash(stored)
    assert pool.needs_rehash("")
    assert pool.max_password_bytes is None
    pool.close()


async def test_an_unknown_account_does_the_decoys_work(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def verify_decoy(_self: PasswordHasher, password: str) -> NoReturn:
        asked.append(password)
        raise errors.WrongCredentials

    monkeypatch.setattr(PasswordHasher, "verify_decoy", verify_decoy)
    pool = HashingPool(PasswordHasher(CHEAPEST))
    with pytest.raises(errors.WrongCredentials):
        await pool.verify("x", None)
    assert asked == ["x"]
    pool.close()


async def test_the_event_loop_runs_while_the_only_thread_hashes(pool: HashingPool, gated: GatedHasher) -> None:
    tasks = await occupy(pool, gated, "first")  # begun, and we are here: the loop was not blocked
    assert not tasks[0].done()
    gated.gate.set()  # the loop itself opens the gate; it could not if it were waiting behind it
    assert (await tasks[0]).startswith("$argon2id$")


async def test_a_full_queue_refuses_at_once_and_serves_again(pool: HashingPool, gated: GatedHasher) -> None:
    tasks = await occupy(pool, gated, "1", "2", "3", "4")
    assert pool.waiting == 3
    for call in (pool.hash("5"), pool.verify("5", None), pool.verify("5", "$2b$")):
        with pytest.raises(errors.Overloaded) as caught:
            await call
        assert caught.value.retry_after_s == 1
    gated.gate.set()
    await tasks[0]
    await pool.hash("5")  # a place is free by the time that the first caller goes on
    await asyncio.gather(*tasks)
    assert gated.order == ["1", "2", "3", "4", "5"]
    assert pool.waiting == 0


async def test_retry_after_grows_with_the_queue_and_the_time_a_hash_takes(
    pool: HashingPool, gated: GatedHasher, monkeypatch: pytest.MonkeyPatch
) -> None:
    gated.gate.set()
    seconds = iter([0.0, 3.0, 10.0, 13.0])
    clock = SimpleNamespace(perf_counter=lambda: next(seconds, 13.0))
    monkeypatch.setattr("sekisho.services.hashing.time", clock)
    for name in ("a", "b"):  # three seconds each
        await pool.hash(name)
        gated.begun.acquire()
    gated.gate.clear()
    tasks = await occupy(pool, gated, "1", "2", "3", "4")
    with pytest.raises(errors.Overloaded) as caught:
        await pool.hash("5")
    assert caught.value.retry_after_s == 12
    gated.gate.set()
    await asyncio.gather(*tasks)


async def test_a_waiter_that_is_cancelled_frees_its_place_and_its_work_is_not_done(
    pool: HashingPool, gated: GatedHasher
) -> None:
    tasks = await occupy(pool, gated, "1", "2", "3", "4")
    tasks[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]
    assert pool.waiting == 2
    tasks[1] = asyncio.create_task(pool.hash("5"))
    await asyncio.sleep(0)
    assert pool.waiting == 3
    gated.gate.set()
    await asyncio.gather(*tasks)
    assert gated.order == ["1", "3", "4", "5"]


async def test_running_work_keeps_its_place_when_its_caller_goes(pool: HashingPool, gated: GatedHasher) -> None:
    tasks = await occupy(pool, gated, "1", "2", "3", "4")
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    assert pool.waiting == 3
    with pytest.raises(errors.Overloaded):  # the thread is still hashing: otherwise clients that leave raise the bound
        await pool.hash("5")
    gated.gate.set()
    await asyncio.gather(*tasks[1:])
    await pool.hash("5")


async def test_close_answers_the_waiting_and_lets_the_running_end(pool: HashingPool, gated: GatedHasher) -> None:
    tasks = await occupy(pool, gated, "1", "2", "3")
    pool.close()
    pool.close()
    with pytest.raises(errors.Overloaded):
        await pool.hash("4")
    assert pool._executor is None  # nobody starts new threads after the end
    gated.gate.set()
    assert (await tasks[0]).startswith("$argon2id$")
    for task in tasks[1:]:
        with pytest.raises(errors.Overloaded):
            await task
    assert gated.order == ["1"]
    assert pool.waiting == 0


async def test_close_ends_the_threads() -> None:
    pool = HashingPool(PasswordHasher(CHEAPEST))
    await pool.hash("x")
    executor = pool._executor
    assert executor is not None
    threads = list(executor._threads)
    pool.close()
    for thread in threads:
        await asyncio.to_thread(thread.join, DEADLINE_S)
        assert not thread.is_alive()


async def test_lack_of_memory_is_not_a_wrong_password(pool: HashingPool, monkeypatch: pytest.MonkeyPatch) -> None:
    def verify(*_: object) -> NoReturn:
        raise MemoryError

    monkeypatch.setattr(PasswordHasher, "verify", verify)
    with pytest.raises(errors.Overloaded):
        await pool.verify("x", "")
    assert pool.waiting == 0


async def test_threads_are_made_at_the_first_use_and_no_more_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "_cores", lambda: 3)
    hasher = PasswordHasher(CHEAPEST)
    assert HashingPool(hasher).threads == 3
    assert HashingPool(hasher, threads=2).threads == 2
    assert HashingPool(hasher, threads=64).threads == 3
    before = threading.active_count()
    pool = HashingPool(hasher)
    assert threading.active_count() == before
    await asyncio.gather(*(pool.hash("x") for _ in range(20)))
    assert 1 <= threading.active_count() - before <= 3
    pool.close()


def test_there_is_a_core_at_least() -> None:
    assert 1 <= hashing._cores() <= (os.cpu_count() or 1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread")
async def test_threads_yield_to_everything_else() -> None:
    class Asking(PasswordHasher):
        def hash(self, password: str) -> str:
            return str(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    pool = HashingPool(Asking(CHEAPEST))
    assert await pool.hash("x") == "19"
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == OWN_PRIORITY
    pool.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread")
async def test_a_sandbox_that_forbids_priorities_does_not_break_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: int) -> NoReturn:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", forbidden)
    pool = HashingPool(PasswordHasher(CHEAPEST))
    assert (await pool.hash("x")).startswith("$argon2id$")
    pool.close()
