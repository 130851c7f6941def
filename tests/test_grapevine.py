"""Word among nodes over Redis: it makes them look at once, and whatever happens to it changes nothing else."""

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from sekisho.services import revocation_watch
from sekisho.services.events import Events
from sekisho.services.revocation_watch import RevocationWatch
from sekisho.storage.redis import RedisGrapevine
from sekisho.storage.rows import MICROSECONDS, Cause, Ended
from sekisho.tokens.revoked import RevokedSessions
from step_by_step import writing
from test_revocation_watch import database

__all__ = ["database"]  # a fixture

pytestmark = pytest.mark.anyio

only_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


async def until(holds, within_s=10.0):
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110 - what is waited for is no event of ours
            await asyncio.sleep(0.005)


class Node:
    def __init__(self, storage, url, channel):
        self.lost, self.back, self.polls = [], 0, 0
        self.grapevine = RedisGrapevine(url, channel, on_lost=self.lost.append, on_back=self._came_back)
        self.revoked = RevokedSessions()
        self.watch = RevocationWatch(
            storage=storage, revoked=self.revoked, events=Events(CollectorRegistry()), grapevine=self.grapevine
        )
        self.heard = 0

    def _came_back(self):
        self.back += 1

    def _hears(self):
        self.heard += 1
        self.watch.look_soon()

    @asynccontextmanager
    async def running(self):
        tasks = [asyncio.create_task(self.watch.run()), asyncio.create_task(self.grapevine.listen(self._hears))]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.grapevine.close()

    async def ends(self, storage):
        """A session ends here: the row, and after the commit what follows from it."""
        session_id = uuid4()
        async with writing(storage) as tx:
            lapses_at_us = await tx.now_us() + 3600 * MICROSECONDS
            await tx.revocations.append(session_id, lapses_at_us=lapses_at_us)
        self.watch.announce([Ended(session_id=session_id, user_id=None, cause=Cause.LOGOUT, lapses_at_us=lapses_at_us)])
        return str(session_id)


@pytest.fixture
def channel():
    return f"test:{uuid4()}"


async def test_another_node_looks_at_once(database, redis_url, channel, monkeypatch):
    monkeypatch.setattr(revocation_watch, "POLL_S", 600.0)
    one, two = Node(database, redis_url, channel), Node(database, redis_url, channel)
    async with one.running(), two.running():
        await until(lambda: one.heard and two.heard)  # subscribed
        for _ in range(5):
            session_id = await one.ends(database)
            await until(lambda session_id=session_id: session_id in two.revoked)
    assert (one.lost, two.lost, one.back) == ([], [], 0)


@only_sqlite
async def test_what_is_said_is_not_believed_and_a_flood_of_it_makes_few_looks(
    database, redis_url, channel, monkeypatch
):
    monkeypatch.setattr(revocation_watch, "POLL_S", 600.0)
    node = Node(database, redis_url, channel)
    looks = 0
    poll = node.watch.poll

    async def counted():
        nonlocal looks
        looks += 1
        await poll()

    monkeypatch.setattr(node.watch, "poll", counted)
    async with node.running():
        await until(lambda: node.heard)
        began = time.monotonic()
        async with Redis.from_url(redis_url) as redis:
            for _ in range(500):
                await redis.publish(channel, str(uuid4()))
        await until(lambda: node.heard > 500)
        assert looks <= 3 + (time.monotonic() - began) / 0.02
        assert len(node.revoked) == 0


@only_sqlite
async def test_without_redis_only_time_is_lost(database, private_redis, channel):
    one, two = (Node(database, private_redis.url, channel) for _ in range(2))
    async with one.running(), two.running():
        await until(lambda: one.heard and two.heard)
        private_redis.stop()
        session_id = await one.ends(database)
        await until(lambda: session_id in two.revoked, within_s=5)
        await until(lambda: one.lost and two.lost)
        await asyncio.sleep(0)
        private_redis.start()
        await until(lambda: one.back and two.back, within_s=15)
        assert (len(one.lost), len(two.lost), one.back, two.back) == (1, 1, 1, 1)
        heard = two.heard
        session_id = await one.ends(database)
        await until(lambda: two.heard > heard and session_id in two.revoked)


@only_sqlite
async def test_a_redis_that_stalls_holds_nobody_up(database, private_redis, channel):
    one, two = (Node(database, private_redis.url, channel) for _ in range(2))
    async with one.running(), two.running():
        await until(lambda: one.heard and two.heard)
        os.kill(private_redis._process.pid, signal.SIGSTOP)
        try:
            for _ in range(20):
                began = time.monotonic()
                one.grapevine.tell()
                assert time.monotonic() - began < 0.1
            session_id = await one.ends(database)
            await until(lambda: session_id in two.revoked, within_s=5)
            await until(lambda: one.lost and two.lost, within_s=15)
        finally:
            os.kill(private_redis._process.pid, signal.SIGCONT)
        await until(lambda: one.back and two.back, within_s=15)


@only_sqlite
async def test_the_last_word_is_said_before_the_end(database, redis_url, channel):
    """The command line ends right after its commit."""
    hearer, teller = Node(database, redis_url, channel), Node(database, redis_url, channel)
    async with hearer.running():
        await until(lambda: hearer.heard)
        heard = hearer.heard
        await teller.ends(database)
        await teller.grapevine.close()
        await until(lambda: hearer.heard > heard)
