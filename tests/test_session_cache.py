"""The cache of cookie sessions on a real Redis: many look-ups in few round trips, and nobody waits for one that fails."""

import asyncio
import os
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import pairwise
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from astray import Astray, forgetful, true
from sekisho.errors import StartRefused
from sekisho.storage import session_cache
from sekisho.storage.session_cache import RedisSessionCache
from servers.proxy import Proxy, Rule
from servers.redis import RedisServer
from test_grapevine import until

pytestmark = pytest.mark.anyio

LIFE_S = 600
LIMIT_S = 0.1  # that a look-up waits for Redis
SLACK_S = 0.4  # for a busy machine


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the time limit is not what is tested, a busy machine may take longer."""
    monkeypatch.setattr(session_cache, "_TIMEOUT_S", 10.0)


class Cached:
    """A cache, and what it said of Redis."""

    def __init__(self, url: str, prefix: str) -> None:
        self.told: list[str] = []
        self.cache = RedisSessionCache(url, prefix, on_lost=lambda _: self.told.append("lost"), on_back=self._came_back)
        self.get, self.put, self.drop = self.cache.get, self.cache.put, self.cache.drop

    def _came_back(self) -> None:
        self.told.append("back")


@asynccontextmanager
async def cached(url: str, prefix: str = "") -> AsyncIterator[Cached]:
    made = Cached(url, prefix or f"test:{uuid4()}:")
    try:
        yield made
    finally:
        await made.cache.close()


def a_hash() -> bytes:
    return os.urandom(32)


async def commands(redis: Redis, name: str) -> int:
    """How often Redis has run this one."""
    return (await redis.info("commandstats")).get(f"cmdstat_{name}", {"calls": 0})["calls"]


async def results(*gets: "asyncio.Task[bytes | None]") -> list[bytes | None]:
    async with asyncio.timeout(15):
        return list(await asyncio.gather(*gets))


# --- what is kept --------------------------------------------------------------------------------------------------


async def test_what_is_put_is_got_until_it_is_dropped(patient, redis_url):
    async with cached(redis_url, "one:") as one, cached(redis_url, "other:") as other:
        mine, another = a_hash(), a_hash()
        assert await one.get(mine) is None
        await one.put(mine, b"\x00\xff entry", life_s=LIFE_S)
        await one.put(another, b"another's", life_s=LIFE_S)
        assert await one.get(mine) == b"\x00\xff entry"
        await one.put(mine, b"newer", life_s=LIFE_S)
        assert await one.get(mine) == b"newer"
        assert await other.get(mine) is None  # another issuer's, in the same Redis
        await one.drop(mine)
        await one.drop(mine)
        assert (await one.get(mine), await one.get(another)) == (None, b"another's")
        assert (one.told, other.told) == ([], [])


async def test_the_cookies_hash_is_the_whole_key(patient, redis_url):
    async with cached(redis_url, "one:") as one, Redis.from_url(redis_url) as redis:
        mine = a_hash()
        await one.put(mine, b"entry", life_s=LIFE_S)
        assert await redis.keys() == [b"one:" + mine.hex().encode()]


async def test_an_entry_is_gone_after_its_life(patient, redis_url):
    async with cached(redis_url) as one, Redis.from_url(redis_url) as redis:
        mine = a_hash()
        await one.put(mine, b"entry", life_s=LIFE_S)
        (key,) = await redis.keys()
        assert LIFE_S - 30 < await redis.ttl(key) <= LIFE_S
        await redis.expire(key, 5)
        await one.put(mine, b"entry", life_s=LIFE_S)
        assert LIFE_S - 30 < await redis.ttl(key) <= LIFE_S
        await one.put(mine, b"entry", life_s=1)
        began = time.monotonic()
        while await one.get(mine) is not None:
            assert time.monotonic() - began < 10
            await asyncio.sleep(0.02)
        assert await redis.keys() == []


@pytest.mark.parametrize("other", ["a list", "a hash", "a set", "a number"])
async def test_another_kind_of_value_is_none_and_is_written_over(patient, redis_url, other):
    async with cached(redis_url, "p:") as one, Redis.from_url(redis_url) as redis:
        mine, beside = a_hash(), a_hash()
        key = b"p:" + mine.hex().encode()
        put = {"a list": redis.rpush, "a hash": lambda key, *_: redis.hset(key, "a", "b"), "a set": redis.sadd}
        await put.get(other, redis.set)(key, 7)
        await one.put(beside, b"entry", life_s=LIFE_S)
        found = await results(asyncio.create_task(one.get(mine)), asyncio.create_task(one.get(beside)))
        assert found == [b"7" if other == "a number" else None, b"entry"]
        await one.put(mine, b"entry", life_s=LIFE_S)
        assert (await one.get(mine), one.told) == (b"entry", [])


@pytest.mark.parametrize("url", ["redis://h:port/0", "http://127.0.0.1/", "redis://h/0?no_such_option=1"])
async def test_a_url_that_cannot_work_is_refused_at_once_and_not_shown(url):
    with pytest.raises(StartRefused) as refused:
        RedisSessionCache(url.replace("h", "user:canary@h"), "p:", on_lost=str, on_back=int)
    assert "canary" not in str(refused.value)


# --- together ------------------------------------------------------------------------------------------------------


async def test_look_ups_at_once_are_one_mget(patient, private_redis):
    async with cached(private_redis.url) as one, Redis.from_url(private_redis.url) as redis:
        entries = {a_hash(): os.urandom(20) for _ in range(100)}
        for key, entry in entries.items():
            await one.put(key, entry, life_s=LIFE_S)
        wanted = [*entries, *(a_hash() for _ in range(50))] * 4
        random.shuffle(wanted)
        found = await results(*(asyncio.create_task(one.get(key)) for key in wanted))
        assert found == [entries.get(key) for key in wanted]
        assert await commands(redis, "mget") <= 2
        assert await commands(redis, "get") == 0


async def test_what_is_asked_while_one_is_under_way_goes_with_the_next(patient, private_redis):
    rule = Rule(hold=True)
    with Proxy(private_redis.port, rule=lambda: rule) as proxy:
        async with (
            cached(f"redis://127.0.0.1:{proxy.port}/0") as one,
            Redis.from_url(private_redis.url) as redis,
        ):
            first = asyncio.create_task(one.get(a_hash()))
            (held,) = await asyncio.to_thread(proxy.wait_for_held, 1)
            others = [asyncio.create_task(one.get(a_hash())) for _ in range(300)]
            await asyncio.sleep(0)
            held.release()
            assert await results(first, *others) == [None] * 301
            assert await commands(redis, "mget") == 2


@pytest.mark.parametrize("leaves", ["the first", "the last", "all"])
async def test_one_who_leaves_takes_nobody_along(patient, private_redis, leaves):
    mine, another = a_hash(), a_hash()
    async with cached(private_redis.url, "p:") as before:
        await before.put(mine, b"mine", life_s=LIFE_S)
        await before.put(another, b"another's", life_s=LIFE_S)
    rule = Rule(hold=True)
    with Proxy(private_redis.port, rule=lambda: rule) as proxy:
        async with cached(f"redis://127.0.0.1:{proxy.port}/0", "p:") as one:
            early = [asyncio.create_task(one.get(key)) for key in (mine, mine, another)]
            (held,) = await asyncio.to_thread(proxy.wait_for_held, 1)
            late = [asyncio.create_task(one.get(key)) for key in (mine, another, another)]
            await asyncio.sleep(0)
            gone = {"the first": [early[0], late[0]], "the last": [early[2], late[2]], "all": [*early, *late]}[leaves]
            for task in gone:
                task.cancel()
            await asyncio.gather(*gone, return_exceptions=True)
            held.release()
            async with asyncio.timeout(5):
                stay = {task: await task for task in (*early, *late) if task not in gone}
                assert [one for task, one in stay.items() if task in early[:2] or task is late[0]].count(b"mine") == {
                    "the first": 1,
                    "the last": 3,
                    "all": 0,
                }[leaves]
                assert list(stay.values()).count(b"another's") == {"the first": 3, "the last": 1, "all": 0}[leaves]
                assert [await one.get(mine), await one.get(another)] == [b"mine", b"another's"]
            assert one.told == []


@pytest.mark.parametrize("seed", range(3))
async def test_callers_that_leave_at_any_moment_spoil_no_connection(patient, redis_url, seed):
    """An answer that nobody takes must not be the next one's."""
    rng = random.Random(seed)
    async with cached(redis_url) as one:
        entries = {a_hash(): os.urandom(rng.randrange(1, 3000)) for _ in range(8)}

        async def does(key: bytes, what: int) -> None:
            if what == 0:
                await one.put(key, entries[key], life_s=LIFE_S)
            elif what == 1:
                await one.drop(key)
            else:
                assert await one.get(key) in {None, entries[key]}

        for _ in range(40):
            tasks = [asyncio.create_task(does(rng.choice(list(entries)), rng.randrange(6))) for _ in range(6)]
            for _ in range(rng.randrange(8)):
                await asyncio.sleep(0)
            leaving = rng.sample(tasks, 3)
            for task in leaving:
                task.cancel()
            async with asyncio.timeout(20):
                for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                    assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome
        for key, entry in entries.items():
            await one.put(key, entry, life_s=LIFE_S)
            assert await one.get(key) == entry
        assert one.told == []


async def test_many_puts_at_once_are_no_loss(patient, redis_url):
    """After a flush every request puts."""
    async with cached(redis_url) as one:
        keys = [a_hash() for _ in range(400)]
        await asyncio.gather(*(one.put(key, key, life_s=LIFE_S) for key in keys))
        assert one.told == []
        found = await results(*(asyncio.create_task(one.get(key)) for key in keys))
        assert found == keys


# --- Redis is away -------------------------------------------------------------------------------------------------


@contextmanager
def killed(redis: RedisServer) -> Iterator[None]:
    redis.stop(signal.SIGKILL)
    yield
    redis.start()


@contextmanager
def standing_still(redis: RedisServer) -> Iterator[None]:
    process = redis._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


@contextmanager
def refusing(redis: RedisServer) -> Iterator[None]:
    """It asks for a password that we do not have."""
    with socket.create_connection(("127.0.0.1", redis.port), timeout=5) as operator:
        answers = operator.makefile("rb")

        def says(command: str) -> None:
            operator.sendall(f"{command}\r\n".encode())
            assert answers.readline()[:1] in b"+:", command

        says("CONFIG SET requirepass secret")
        says("AUTH secret")
        says("CLIENT KILL TYPE normal")
        yield
        says("CONFIG SET requirepass ''")


AWAY = {"killed": killed, "standing still": standing_still, "refusing": refusing}


@pytest.mark.parametrize("how", AWAY)
async def test_nobody_waits_for_a_redis_that_is_away(private_redis, monkeypatch, how):
    async with cached(private_redis.url) as one:
        key = a_hash()
        await until_it_answers(one, key)
        already = len(one.told)
        with AWAY[how](private_redis):
            began = time.monotonic()
            assert await results(*(asyncio.create_task(one.get(key)) for _ in range(50))) == [None] * 50
            assert time.monotonic() - began < LIMIT_S + SLACK_S
            began = time.monotonic()
            for _ in range(100):
                await one.put(key, b"never", life_s=LIFE_S)
                await one.drop(key)
                assert await one.get(a_hash()) is None
            assert time.monotonic() - began < LIMIT_S + SLACK_S  # one of them may have tried
            monkeypatch.setattr(session_cache, "_AGAIN_S", 0.1)
            for _ in range(60):  # it goes on: tried again, and told no more
                attempt = time.monotonic()
                assert await one.get(key) is None
                assert time.monotonic() - attempt < LIMIT_S + SLACK_S
                await asyncio.sleep(0.01)
            assert one.told[already:] == ["lost"]
        await until_it_answers(one, key)
        assert one.told[already:] == ["lost", "back"]


async def until_it_answers(one: Cached, key: bytes) -> None:
    """Look-ups alone bring it back; then a value shows that it is there."""
    async with asyncio.timeout(20):
        while await one.get(key) is None:
            await one.put(key, b"value", life_s=LIFE_S)
            await asyncio.sleep(0.02)


async def test_a_redis_that_is_away_is_tried_about_once_in_a_second(private_redis):
    tried: list[float] = []

    def silent() -> Rule:
        tried.append(time.monotonic())
        return Rule(drop=True)

    with Proxy(private_redis.port, rule=silent) as proxy:
        async with cached(f"redis://127.0.0.1:{proxy.port}/0") as one:
            began = time.monotonic()
            while len(tried) < 4:
                assert await one.get(a_hash()) is None
                await asyncio.sleep(0.005)
                assert time.monotonic() - began < 15
    apart = [later - earlier for earlier, later in pairwise(tried)]
    assert all(0.5 <= pause <= 1.5 + LIMIT_S + SLACK_S for pause in apart), apart


async def test_nodes_do_not_try_again_in_step(free_port, monkeypatch):
    monkeypatch.setattr(session_cache, "_AGAIN_S", 1000.0)
    pauses = []
    for _ in range(8):
        async with cached(f"redis://127.0.0.1:{free_port}/0") as one:
            assert await one.get(a_hash()) is None
            pauses.append(one.cache._off_until - asyncio.get_running_loop().time())
    assert 400 < min(pauses) < max(pauses) - 100 < 1400, pauses


async def test_who_comes_while_a_look_up_fails_does_not_wait_for_another(private_redis, monkeypatch):
    """Else look-ups would be held up as long as some come in time."""
    monkeypatch.setattr(session_cache, "_TIMEOUT_S", 1.0)
    tried = 0

    def silent() -> Rule:
        nonlocal tried
        tried += 1
        return Rule(drop=True)

    with Proxy(private_redis.port, rule=silent) as proxy:
        async with cached(f"redis://127.0.0.1:{proxy.port}/0") as one:
            first = asyncio.create_task(one.get(a_hash()))
            await until(lambda: tried)
            late = [asyncio.create_task(one.get(a_hash())) for _ in range(3)]
            assert await results(first, *late) == [None] * 4
            assert tried == 1


@pytest.mark.parametrize("failed", ["get", "put", "drop"])
async def test_after_one_command_that_failed_none_is_tried(private_redis, monkeypatch, failed):
    """Until its time has come."""
    monkeypatch.setattr(session_cache, "_AGAIN_S", 1000.0)

    async def all_three(key: bytes) -> None:
        for name in [failed, *({"get", "put", "drop"} - {failed})]:
            await (one.put(key, b"entry", life_s=LIFE_S) if name == "put" else getattr(one, name)(key))

    async with cached(private_redis.url, "p:") as one, Redis.from_url(private_redis.url) as redis:
        private_redis.stop()
        await all_three(a_hash())
        assert one.told == ["lost"]
        private_redis.start()
        await redis.set(b"p:" + bytes(32).hex().encode(), b"there")
        await all_three(bytes(32))
        assert await one.get(bytes(32)) is None
        assert one.told == ["lost"]
        assert await redis.keys() == [b"p:" + bytes(32).hex().encode()]
        assert await commands(redis, "mget") == 0


async def test_a_connection_that_broke_unnoticed_costs_no_more_than_a_miss(private_redis):
    async with cached(private_redis.url) as one:
        mine = a_hash()
        await until_it_answers(one, mine)
        private_redis.stop()
        private_redis.start()
        assert await one.get(mine) is None  # it is empty now
        await until_it_answers(one, mine)


# --- answers that are none -----------------------------------------------------------------------------------------

STRAYS = {
    "a status": b"+OK\r\n",
    "a number": b":1\r\n",
    "a text": b"$5\r\nentry\r\n",
    "nothing": b"$-1\r\n",
    "no list": b"*-1\r\n",
    "an empty list": b"*0\r\n",
    "a list too short": b"*1\r\n$5\r\nentry\r\n",
    "a list too long": b"*3\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n",
    "numbers": b"*2\r\n:1\r\n:2\r\n",
    "lists": b"*2\r\n*1\r\n$1\r\na\r\n*0\r\n",
    "an error": b"-LOADING Redis is loading the dataset in memory\r\n",
    "errors": b"*2\r\n-ERR one\r\n-ERR two\r\n",
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
}


@pytest.mark.parametrize("stray", STRAYS)
async def test_whatever_redis_answers_nobody_waits_for_ever(private_redis, stray):
    """Each gets bytes or None, and a good connection works afterwards."""
    network = Astray(private_redis.port, lambda: lambda _request, _answer: STRAYS[stray])
    async with network.listening(), cached(network.url) as one:
        found = await results(*(asyncio.create_task(one.get(a_hash())) for _ in range(2)))
        assert all(entry is None or isinstance(entry, bytes) for entry in found), found
        network.manners = lambda: true
        await one.cache._pool.disconnect()
        await until_it_answers(one, a_hash())


async def test_an_answer_that_is_lost_is_not_waited_for_and_the_next_is_ones_own(private_redis, monkeypatch):
    monkeypatch.setattr(session_cache, "_AGAIN_S", 0.01)
    network = Astray(private_redis.port, lambda: forgetful(every=7))
    async with network.listening(), cached(network.url) as one:
        found = []
        for key in (a_hash() for _ in range(30)):
            await one.put(key, key, life_s=LIFE_S)
            found.append((key, await one.get(key)))
            await asyncio.sleep(0.01)
        assert {entry for key, entry in found if entry != key} == {None}
        assert any(entry == key for key, entry in found)
        assert "lost" in one.told
