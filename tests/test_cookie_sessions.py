"""A cookie session is alive or ended, whatever the cache has kept or lost of it, and whoever was slow."""

import asyncio
import os
import random
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from astray import Astray, forgetful, one_behind
from cookie_world import CALLER, LIMITS, Node, Steps, World, caller, entry_of, orders
from sekisho.errors import SessionRefused, StorageUnavailable
from sekisho.services.cookie_sessions import ENTRY_LIFE_S, Entry, hash_of
from sekisho.services.sessions import SessionLimits
from sekisho.storage import connect, session_cache
from sekisho.storage.engine import Database
from sekisho.storage.migrate import upgrade
from sekisho.storage.rows import MICROSECONDS
from servers.postgres import Postgres, PostgresServer
from servers.redis import RedisServer
from step_by_step import writing
from test_storage import stored_user

pytestmark = pytest.mark.anyio

FRESH_S = 3.0  # an older view cannot check what the cache says


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take longer: how long a look-up waits for Redis is tested in test_session_cache.py."""
    monkeypatch.setattr(session_cache, "_TIMEOUT_S", 10.0)


@pytest.fixture(scope="module")
def _with_tables(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """One of each kind to make copies of: to make the tables anew would take longer than most of these tests."""
    urls = {
        "sqlite": f"sqlite:///{tmp_path_factory.mktemp('database') / 'sekisho.db'}",
        "postgresql": postgres.create_database(),
    }

    async def make_tables(url: str) -> None:
        database = Database(url)
        await upgrade(database)
        await database.close()

    for url in urls.values():
        asyncio.run(make_tables(url))
    yield urls
    postgres.drop_database(urls["postgresql"])


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(
    request: pytest.FixtureRequest, _with_tables: dict[str, str], postgres: Postgres, tmp_path: Path
) -> Iterator[str]:
    """A database of the test's own, with tables, of each kind."""
    original = _with_tables[request.param]
    if request.param == "sqlite":
        yield f"sqlite:///{shutil.copy(original.removeprefix('sqlite:///'), tmp_path / 'sekisho.db')}"
    else:
        url = postgres.create_database(template=original.rpartition("/")[2])
        yield url
        postgres.drop_database(url)


@pytest.fixture
async def database(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    """With time enough for a busy machine."""
    monkeypatch.setattr(connect, "POOL_WAIT_S", 20.0)
    database = Database(database_url, statement_timeout_ms=20_000)
    yield database
    await database.close()


@asynccontextmanager
async def a_world(database: Database, redis_url: str) -> AsyncIterator[World]:
    made = World(database, redis_url)
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
async def world(database: Database, redis_url: str) -> AsyncIterator[World]:
    async with a_world(database, redis_url) as made:
        yield made


async def refuses(node: Node, *cookies: str) -> None:
    for cookie in cookies:
        with pytest.raises(SessionRefused):
            await node.flow.find(cookie, caller)


async def finds(node: Node, cookie: str) -> Entry:
    """Its own session, and no other's."""
    entry = await node.flow.find(cookie, caller)
    assert entry.cookie_hash == hash_of(cookie)
    return entry


# --- who asks whom -------------------------------------------------------------------------------------------------


async def test_the_row_is_read_once_and_then_the_cache_answers(world):
    node, cookie = await world.node(), await world.opens()
    row = await world.row(cookie)
    first = await finds(node, cookie)
    assert node.flow.asked == (1, 1, 0)
    assert (first.session_id, first.user_id, first.roles) == (row.id, row.user_id, row.roles)
    assert (first.created_at_us, first.ends_at_us) == (row.created_at_us, row.idle_ends_at_us)
    assert await finds(node, cookie) == first
    assert node.flow.asked == (2, 1, 0)
    other = await world.node()
    assert await finds(other, cookie) == first
    assert other.flow.asked == (1, 0, 0)
    ttl = await world.redis.ttl(world.key(cookie))
    assert ENTRY_LIFE_S - 60 < ttl <= ENTRY_LIFE_S


async def test_what_is_no_cookie_of_ours_costs_nothing(world):
    node, cookie = await world.node(), await world.opens()
    for bad in ("", "x", cookie[:-1], cookie + "A", cookie[:-1] + "é", cookie[:-1] + "=", cookie + "\n", " " + cookie):
        await refuses(node, bad)
        with pytest.raises(SessionRefused):
            await node.flow.log_out(bad)
    assert node.flow.asked == (0, 0, 0)


async def test_an_unknown_cookie_leaves_nothing_in_the_cache(world):
    node = await world.node()
    unknown = "A" * 43
    await refuses(node, unknown, unknown)
    with pytest.raises(SessionRefused):
        await node.flow.log_out(unknown)
    assert await world.redis.keys() == []


async def test_without_redis_every_look_up_reads_the_row(world):
    node, cookie = await world.node(), await world.opens()
    flow = type(node.flow)(storage=node.flow.storage, sessions=node.flow.sessions, cache=None)
    for number in (1, 2):
        await flow.find(cookie, caller)
        assert flow.storage.reads == number
    await flow.log_out(cookie)
    with pytest.raises(SessionRefused):
        await flow.find(cookie, caller)


async def test_a_logout_can_be_repeated_and_is_one_end(world):
    node, other, cookie = await world.node(), await world.node(), await world.opens()
    await finds(node, cookie)
    await node.flow.log_out(cookie)
    await refuses(node, cookie)
    ended_at_us = (await world.row(cookie)).ended_at_us
    for again in (node, other):
        await again.flow.log_out(cookie)
    row = await world.row(cookie)
    assert (row.ended_at_us, row.cause) == (ended_at_us, "logout")
    assert await world.kept(cookie) is None


# --- slower than the logout ----------------------------------------------------------------------------------------

READS = {"look-up": ("read", "put"), "touch": ("write", "put")}
ENDS = ("commit", "tell", "drop")


@pytest.mark.parametrize("by", READS)
@pytest.mark.parametrize("where", ["one node", "two nodes"])
async def test_a_reader_slower_than_the_logout_revives_nothing(world, by, where):
    """Whichever way their steps meet. A look-up reads the row, a touch writes it; then both fill the cache."""
    left_behind = 0
    leaving = await world.node()
    elsewhere = leaving if where == "one node" else await world.node()
    for order in orders(READS[by], ENDS):
        cookie = await world.opens()
        if by == "touch":
            await world.unused_for(cookie, 61)
            await leaving.flow._read(hash_of(cookie))  # what the touch finds in the cache
        ended = await in_order(order, leaving, elsewhere, cookie)
        if order.index("commit") < order.index(READS[by][0]):
            assert ended, order
        entry = await world.kept(cookie)
        if entry is not None:
            left_behind += 1
            assert order[-1] == "put", order
        await elsewhere.watch.poll()
        later = await world.node()
        for node in (leaving, elsewhere, later):
            await refuses(node, cookie, cookie)
            node.now += FRESH_S + 0.1
            await refuses(node, cookie)
            node.now -= FRESH_S + 0.1
    assert left_behind == 1, "the entry that comes after everything else is the danger itself"


async def in_order(order: list[str], leaving: Node, elsewhere: Node, cookie: str) -> bool:
    """A reader and a logout take their steps; whether the reader was refused."""
    reads, ends = Steps(*(name for name in order if name not in ENDS)), Steps("write", "tell", "drop")
    reader = asyncio.create_task(elsewhere.flow_with(reads).find(cookie, caller))
    logout = asyncio.create_task(leaving.flow_with(ends).log_out(cookie))
    first = next(name for name in order if name not in ENDS)
    await reads.reach(first, reader)
    await ends.reach("write", logout)
    for name in order:
        if name in ENDS:
            await ends.take({"commit": "write"}.get(name, name), logout)
        else:
            await reads.take(name, reader)
    async with asyncio.timeout(30):
        await logout
        (outcome,) = await asyncio.gather(reader, return_exceptions=True)
    assert isinstance(outcome, Entry | SessionRefused), outcome
    return isinstance(outcome, SessionRefused)


async def test_a_reader_that_got_its_entry_before_the_logout_is_refused_after_it(world):
    """It stops between the cache's answer and the look at the revocations."""
    node, cookie = await world.node(), await world.opens()
    await finds(node, cookie)
    steps = Steps("got")
    reader = asyncio.create_task(node.flow_with(steps).find(cookie, caller))
    await steps.reach("got", reader)
    await node.flow.log_out(cookie)
    await steps.take("got", reader)
    with pytest.raises(SessionRefused):
        await reader


async def test_an_end_elsewhere_counts_from_the_next_look_at_the_table(world):
    node, cookie = await world.node(), await world.opens()
    await finds(node, cookie)
    await world.ends(cookie)
    assert await world.kept(cookie) is not None
    await finds(node, cookie)  # nobody has told it yet: the second that the feed may take
    await node.watch.poll()
    await refuses(node, cookie)
    assert await world.kept(cookie) is not None


# --- an old view ---------------------------------------------------------------------------------------------------


async def test_with_an_old_view_the_cache_is_not_asked(world):
    node, cookie = await world.node(), await world.opens()
    first = await finds(node, cookie)
    node.now += FRESH_S
    assert await finds(node, cookie) == first
    assert node.flow.asked == (2, 1, 0)
    node.now += 0.01
    await finds(node, cookie)
    assert node.flow.asked == (2, 2, 0)
    await node.watch.poll()
    await finds(node, cookie)
    assert node.flow.asked == (3, 2, 0)


async def test_with_an_old_view_a_yes_for_an_ended_session_is_not_heard(world):
    node, cookie = await world.node(), await world.opens()
    await finds(node, cookie)
    await world.ends(cookie)
    node.now += FRESH_S + 0.01
    await refuses(node, cookie)
    assert node.flow.asked == (1, 2, 0)  # of the cache, and of the database


async def test_before_its_first_look_a_node_believes_no_cache(world):
    node, cookie = await world.node(), await world.opens()
    await finds(node, cookie)
    await world.ends(cookie)
    starting = await world.starting()
    await refuses(starting, cookie)
    assert starting.flow.asked == (0, 1, 0)


async def test_a_view_that_grows_old_while_redis_answers_is_an_old_one(world):
    node, cookie = await world.node(), await world.opens()
    await finds(node, cookie)
    await world.ends(cookie)
    steps = Steps("got")
    flow = node.flow_with(steps)
    reader = asyncio.create_task(flow.find(cookie, caller))
    await steps.reach("got", reader)
    node.now += FRESH_S + 0.01
    await steps.take("got", reader)
    with pytest.raises(SessionRefused):
        await reader
    assert flow.asked == (1, 1, 0)


# --- an old entry --------------------------------------------------------------------------------------------------


async def test_an_entry_is_believed_for_its_life_whatever_redis_thinks(world):
    node, cookie = await world.node(), await world.opens()
    await finds(node, cookie)
    await world.redis.persist(world.key(cookie))
    old = await world.kept(cookie)
    # Used meanwhile, so that nothing has to be written.
    node.ahead_us = (ENTRY_LIFE_S - 5) * MICROSECONDS
    used = msgspec.structs.replace(msgspec.msgpack.decode(old, type=Entry), used_at_us=node.watch.now_us())
    await world.keeps(cookie, msgspec.msgpack.encode(used))
    await finds(node, cookie)
    assert node.flow.asked == (2, 1, 0)
    node.ahead_us = ENTRY_LIFE_S * MICROSECONDS
    await finds(node, cookie)
    assert node.flow.asked[:2] == (3, 2)


async def test_an_entry_that_outlived_its_sessions_revocation_revives_nothing(world):
    """Nobody knows of the revocation any more, but of the row."""
    node, cookie = await world.node(), await world.opens()
    row = await world.row(cookie)
    await world.ends(cookie, lapses_in_s=-5)
    await node.watch.poll()
    assert not node.watch.knows(row.id)
    read_at_us = node.watch.now_us() - ENTRY_LIFE_S * MICROSECONDS
    young, old = (entry_of(row, read_at_us=at_us) for at_us in (read_at_us + 5 * MICROSECONDS, read_at_us))
    await world.keeps(cookie, msgspec.msgpack.encode(young))
    await finds(node, cookie)  # this is how it would be
    await world.keeps(cookie, msgspec.msgpack.encode(old))
    await refuses(node, cookie)


async def test_an_entry_that_says_it_is_over_is_asked_of_the_row(world):
    """Another node has slid its limit since."""
    node, cookie = await world.node(), await world.opens()
    row = await world.row(cookie)
    now_us = node.watch.now_us()
    over = entry_of(row, read_at_us=now_us, ends_at_us=now_us - 1)
    await world.keeps(cookie, msgspec.msgpack.encode(over))
    assert (await finds(node, cookie)).ends_at_us == row.idle_ends_at_us
    assert node.flow.asked == (1, 1, 0)
    await finds(node, cookie)
    assert node.flow.asked == (2, 1, 0), "the cache knows better now"


@pytest.mark.parametrize("limit", ["idle_ends_at_us", "ends_at_us"])
async def test_a_session_over_its_limit_is_over_although_its_entry_is_there(world, limit):
    node, cookie = await world.node(), await world.opens()
    await finds(node, cookie)
    kept = await world.kept(cookie)
    row = await world.row(cookie)
    left_us = getattr(row, limit) - node.watch.now_us()
    await world.change(cookie, **{limit: -left_us})  # now
    entry = msgspec.structs.replace(msgspec.msgpack.decode(kept, type=Entry), ends_at_us=getattr(row, limit) - left_us)
    await world.keeps(cookie, msgspec.msgpack.encode(entry))
    await refuses(node, cookie)


# --- an entry of somebody else's, or none at all -------------------------------------------------------------------


async def test_another_cookies_entry_is_no_answer(world):
    node, mine, another = await world.node(), await world.opens(), await world.opens()
    await finds(node, another)
    await world.keeps(mine, await world.kept(another))
    assert (await finds(node, mine)).session_id == (await world.row(mine)).id
    assert node.flow.asked == (2, 2, 0)


async def test_garbage_in_the_cache_is_a_miss_and_written_over(world):
    node, cookie = await world.node(), await world.opens()
    await finds(node, cookie)
    good = await world.kept(cookie)
    fields = msgspec.msgpack.decode(good)
    texts = [b"", b"\xc1", b"yes", good[:-1], good + b"\x00", os.urandom(len(good)), b"\x91" * 50_000, b"\x90"]
    texts += [good[:at] for at in range(0, len(good), 7)]
    texts += [msgspec.msgpack.encode(value) for value in ({}, [], None, 7, "1", ["1"], {"cookie_hash": fields[1]})]
    texts += [msgspec.msgpack.encode(["2", *fields[1:]])]  # of another version
    for place in range(1, len(fields)):
        texts += [msgspec.msgpack.encode([*fields[:place], None, *fields[place + 1 :]])]
        texts += [msgspec.msgpack.encode([*fields[:place], [["x"]], *fields[place + 1 :]])]
    texts += [msgspec.msgpack.encode(fields[:-1])]
    assert good not in texts
    for number, text in enumerate(texts, 2):
        await world.keeps(cookie, text)
        await finds(node, cookie)
        assert node.flow.storage.reads == number, text
        assert await world.kept(cookie) != text
    await finds(node, cookie)
    assert node.flow.storage.reads == len(texts) + 1


@pytest.mark.parametrize("what", ["no UTF-8", "lists in lists"])
async def test_an_entry_that_cannot_be_decoded_is_a_miss(world, what):
    """Neither is a decode error in msgspec's own words."""
    node, cookie = await world.node(), await world.opens()
    await finds(node, cookie)
    good = await world.kept(cookie)
    texts = {
        "no UTF-8": good.replace(b"\xa5admin", b"\xa5\xff\xff\xff\xff\xff"),
        "lists in lists": b"\x9a" + good[1:] + b"\x91" * 100_000 + b"\xc0",  # one field more
    }
    assert texts[what] != good
    await world.keeps(cookie, texts[what])
    await finds(node, cookie)
    assert node.flow.storage.reads == 2


@pytest.mark.parametrize("manners", [one_behind, lambda: forgetful(9)], ids=["repeated", "lost"])
async def test_on_a_connection_that_mixes_answers_up_everyone_finds_their_own(
    database, private_redis, monkeypatch, manners
):
    """Look-ups, logouts and fills travel on it, so any answer can come in place of any other."""
    monkeypatch.setattr(session_cache, "_TIMEOUT_S", 10.0 if manners is one_behind else 0.1)
    monkeypatch.setattr(session_cache, "_AGAIN_S", 0.01)
    rng = random.Random(7)
    network = Astray(private_redis.port, manners)
    async with network.listening(), a_world(database, network.url) as world:
        node = await world.node()
        people = [await world.opens() for _ in range(4)]
        left: set[str] = set()
        for number in range(120):
            cookie = rng.choice(people)
            async with asyncio.timeout(10):
                if number % 30 == 29 and cookie not in left:
                    await node.flow.log_out(cookie)
                    left.add(cookie)
                elif cookie in left:
                    await refuses(node, cookie)
                elif rng.random() < 0.3:  # two at once, in one MGET
                    both = [one for one in people if one not in left][:2]
                    await asyncio.gather(*(finds(node, one) for one in both))
                else:
                    await finds(node, cookie)
        gave = [(wanted, found) for wanted, found in node.flow.cache.gave if isinstance(found, bytes)]
        others = sum(wanted not in found for wanted, found in gave)
        assert others == 0 or manners is one_behind, f"{others} of {len(gave)} were another's"


# --- the database lost the logout ----------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ["in the cache", "not in the cache"])
async def test_what_a_failover_lost_the_end_of_is_refused_by_who_knows_it(world, entry):
    ending, other, cookie = await world.node(), await world.node(), await world.opens()
    witness = await world.opens()
    await finds(other, cookie)
    kept = await world.kept(cookie)
    await ending.flow.log_out(cookie)
    await other.watch.poll()
    await world.loses_the_end(cookie)
    assert (await world.row(cookie)).ended_at_us is None
    for node in (ending, other):
        if entry == "in the cache":
            await world.keeps(cookie, kept)
        await refuses(node, cookie, cookie)
        await finds(node, witness)
    await other.watch.load()  # after the first answer that failed
    assert (await world.row(cookie)).ended_at_us is not None
    await refuses(await world.node(), cookie)


async def test_a_session_that_a_failover_lost_the_beginning_of_goes_with_its_logout(world):
    """The cache alone remembers it. Its cookie is unknown to the database, and must not work on afterwards."""
    node, other, cookie = await world.node(), await world.node(), await world.opens()
    await finds(node, cookie)
    await world.loses_the_beginning(cookie)
    with pytest.raises(SessionRefused):
        await node.flow.log_out(cookie)
    for each in (node, other):
        await refuses(each, cookie)


async def test_a_disabled_users_session_is_over_even_if_its_end_was_lost(world):
    node, user = await world.node(), await stored_user(world.database)
    known, unknown = [await world.opens(user=user) for _ in range(2)]
    await world.unused_for(known, 61)
    await node.flow._read(hash_of(known))
    async with writing(world.database) as tx:
        await tx.users.disable(user.id, now_us=await tx.now_us())
    await refuses(node, unknown)
    await refuses(node, known)  # by its touch
    assert node.flow.storage.writes == 1


# --- Redis forgets, remembers, or is away --------------------------------------------------------------------------


def flushed(redis: RedisServer) -> None:
    redis.flush()


def restarted_empty(redis: RedisServer) -> None:
    redis.stop(signal.SIGKILL)
    redis.start()


def restarted_with_an_old_dump(redis: RedisServer) -> None:
    """Of before the logout."""
    redis.stop(signal.SIGKILL)
    redis.start()
    assert redis._ask("DBSIZE\r\n", lines=1) != ":0\r\n"


def killed(redis: RedisServer) -> None:
    redis.stop(signal.SIGKILL)


FATES = {
    fate.__name__.replace("_", " "): fate for fate in (flushed, restarted_empty, restarted_with_an_old_dump, killed)
}


@pytest.mark.parametrize("fate", FATES)
async def test_whatever_becomes_of_redis_no_session_is_lost_and_none_revived(database, private_redis, fate):
    async with a_world(database, private_redis.url) as world:
        ending, other = await world.node(), await world.node()
        stays, leaves, is_ended = [await world.opens() for _ in range(3)]
        for node in (ending, other):
            for cookie in (stays, leaves, is_ended):
                await finds(node, cookie)
        if fate == "restarted with an old dump":
            assert private_redis._ask("SAVE\r\n", lines=1) == "+OK\r\n"
        await ending.flow.log_out(leaves)
        await world.ends(is_ended)
        FATES[fate](private_redis)
        for node in (ending, other):
            await node.watch.poll()
        nodes = [ending, other, await world.node()]
        for _ in range(3):
            for node in nodes:
                await finds(node, stays)
                await refuses(node, leaves, is_ended)
                node.now += 10  # with an old view, too
                await finds(node, stays)
                await refuses(node, leaves, is_ended)
                node.now -= 10
        if fate == "killed":
            private_redis.start()
        async with asyncio.timeout(20):
            while await world.kept(stays) is None:  # the cache is in use again
                await finds(nodes[0], stays)
                await asyncio.sleep(0.02)
        for node in nodes:
            await refuses(node, leaves, is_ended)


# --- staying alive -------------------------------------------------------------------------------------------------


async def test_a_session_in_use_is_written_once_a_minute(world):
    """By however many requests on however many nodes."""
    nodes = [await world.node() for _ in range(3)]
    cookie = await world.opens()
    await world.count_moves()

    async def burst() -> None:
        entries = await asyncio.gather(*(finds(node, cookie) for node in nodes * 30))
        assert len({entry.session_id for entry in entries}) == 1

    await burst()
    assert await world.moves() == 0
    for _ in range(2):
        await world.unused_for(cookie, 40)
        assert await world.moves() == 1  # ours
        await burst()
        assert await world.moves() == 0
        await world.unused_for(cookie, 20)
        await world.moves()
        before, written = await world.row(cookie), sum(node.flow.storage.writes for node in nodes)
        await burst()
        assert await world.moves() == 1
        row = await world.row(cookie)
        assert row.handed_out_at_us - before.handed_out_at_us >= 60 * MICROSECONDS
        assert row.idle_ends_at_us - row.handed_out_at_us == LIMITS.idle_s * MICROSECONDS
        # One at a time on each node; who has read the row before it was written tries too, and changes nothing.
        assert sum(node.flow.storage.writes for node in nodes) - written <= 10 * len(nodes)
        written = sum(node.flow.storage.writes for node in nodes)
        for node in nodes:
            assert (await finds(node, cookie)).used_at_us == row.handed_out_at_us
        assert sum(node.flow.storage.writes for node in nodes) == written
        (listed,) = await nodes[0].flow.sessions.of_user(row.user_id)
        assert listed.handed_out_at_us == row.handed_out_at_us  # as GET /sessions shows it


@pytest.mark.parametrize("why", ["ended", "idle_ends_at_us", "ends_at_us"])
async def test_a_touch_of_a_session_that_is_over_writes_nothing(world, why):
    """It was under way when the session ended."""
    cookie = await world.opens()
    await world.unused_for(cookie, 61)
    if why == "ended":
        await world.ends(cookie)
    else:
        await world.change(cookie, **{why: -LIMITS.max_age_s * MICROSECONDS})
    row = await world.row(cookie)
    async with writing(world.database) as tx:
        now_us = await tx.now_us()
        how = {"every_us": MICROSECONDS, "idle_us": MICROSECONDS, "address": "", "user_agent": ""}
        assert not await tx.sessions.touch(row.id, now_us=now_us, **how)
    assert await world.row(cookie) == row


async def test_of_two_nodes_the_one_that_read_the_time_first_does_not_write_after_the_other(world):
    """It waited for the row. What the other wrote lies a moment in its future, and is no clock that stepped back."""
    cookie = await world.opens()
    await world.unused_for(cookie, 61)
    row = await world.row(cookie)
    every_us, idle_us = 60 * MICROSECONDS, LIMITS.idle_s * MICROSECONDS
    who = {"address": CALLER.address, "user_agent": CALLER.user_agent}

    async def touched(now_us: int) -> bool:
        async with writing(world.database) as tx:
            return await tx.sessions.touch(row.id, now_us=now_us, every_us=every_us, idle_us=idle_us, **who)

    now_us = row.handed_out_at_us + every_us
    assert await touched(now_us)
    assert [await touched(now_us - ago_us) for ago_us in (1, 1000, MICROSECONDS)] == [False] * 3
    assert (await world.row(cookie)).handed_out_at_us == now_us
    assert await touched(now_us - 1000 * MICROSECONDS)  # this one is


@pytest.mark.parametrize(("idle_s", "every_s"), [(3600, 60), (240, 60), (40, 10), (5, 1), (2, 1)])
async def test_a_short_idle_limit_is_slid_more_often(world, idle_s, every_s):
    limits = SessionLimits(**{**vars(LIMITS), "idle_s": idle_s})
    node, cookie = await world.node(limits), await world.opens(limits)
    early_s = max(0, every_s - 5)  # a busy machine may take a while until it looks
    await world.change(cookie, handed_out_at_us=-early_s * MICROSECONDS)
    if every_s > 1:
        await finds(node, cookie)
        assert node.flow.storage.writes == 0
        await world.redis.delete(world.key(cookie))
    await world.change(cookie, handed_out_at_us=(early_s - every_s) * MICROSECONDS, idle_ends_at_us=60 * MICROSECONDS)
    await finds(node, cookie)
    assert node.flow.storage.writes == 1
    row = await world.row(cookie)
    assert row.idle_ends_at_us - row.handed_out_at_us == idle_s * MICROSECONDS
    took_s = float("inf")
    while took_s > 0.9:  # however short, not with each request
        written, began = node.flow.storage.writes, time.monotonic()
        await finds(node, cookie)
        await finds(node, cookie)
        took_s = time.monotonic() - began
    assert node.flow.storage.writes <= written + 1


async def test_a_touch_tells_who_it_was(world):
    node, cookie = await world.node(), await world.opens()
    await world.change(cookie, last_address="203.0.113.9", last_user_agent="curl")
    await finds(node, cookie)
    assert (await world.row(cookie)).last_address == "203.0.113.9"
    await world.unused_for(cookie, 61)
    await finds(node, cookie)
    row = await world.row(cookie)
    assert (row.last_address, row.last_user_agent) == (CALLER.address, CALLER.user_agent)


async def test_a_session_that_is_not_used_is_over_and_no_touch_revives_it(world):
    node, cookie = await world.node(), await world.opens()
    row = await world.row(cookie)
    await world.unused_for(cookie, LIMITS.idle_s)
    entry = entry_of(row, read_at_us=node.watch.now_us(), used_at_us=row.handed_out_at_us - 61 * MICROSECONDS)
    await world.keeps(cookie, msgspec.msgpack.encode(entry))  # a touch finds it alive, and the row says no
    await refuses(node, cookie, cookie)
    assert node.flow.storage.writes >= 1
    assert (await world.row(cookie)).idle_ends_at_us < node.watch.now_us()


async def test_the_absolute_limit_stays_where_it_is(world):
    node, cookie = await world.node(), await world.opens()
    ends_at_us = (await world.row(cookie)).ends_at_us
    await world.unused_for(cookie, 61)
    await world.change(cookie, ends_at_us=(60 - LIMITS.max_age_s) * MICROSECONDS)
    entry = await finds(node, cookie)
    row = await world.row(cookie)
    assert row.ends_at_us == ends_at_us + (60 - LIMITS.max_age_s) * MICROSECONDS == entry.ends_at_us
    assert row.idle_ends_at_us > row.ends_at_us


async def test_a_time_of_use_in_the_future_counts_as_now(world):
    """The database's clock stepped back. Else the limit would not slide until then."""
    node, cookie = await world.node(), await world.opens()
    await world.unused_for(cookie, -1000)
    await finds(node, cookie)
    assert node.flow.storage.writes == 1
    assert (await world.row(cookie)).handed_out_at_us <= node.watch.now_us() + MICROSECONDS
    await finds(node, cookie)
    assert node.flow.storage.writes == 1


async def test_one_who_leaves_during_the_touch_keeps_nobody_from_it(world):
    node, cookie = await world.node(), await world.opens()
    await world.unused_for(cookie, 61)
    steps = Steps("write")
    flow = node.flow_with(steps)
    reader = asyncio.create_task(flow.find(cookie, caller))
    await steps.reach("write", reader)
    entry = await flow.find(cookie, caller)  # another request meanwhile: it need not wait
    assert entry.session_id == (await world.row(cookie)).id
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    second = asyncio.create_task(flow.find(cookie, caller))
    await steps.take("write", second)
    assert (await second).used_at_us == (await world.row(cookie)).handed_out_at_us
    assert flow.storage.writes == 2


# --- the database is away ------------------------------------------------------------------------------------------


class Mortal:
    """A database that can be away."""

    def __init__(self, url: str, postgres: PostgresServer | None) -> None:
        self.database = Database(url)
        self._file = Path(url.removeprefix("sqlite:///"))
        self._postgres = postgres

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        if self._postgres is not None:
            self._postgres.stop("immediate")
            yield
            self._postgres.start()
            return
        await self.database.close()  # connections that are there would still work
        hidden = self._file.rename(self._file.with_suffix(".hidden"))
        self._file.mkdir()
        yield
        await self.database.close()
        self._file.rmdir()
        hidden.rename(self._file)


@pytest.fixture(params=["sqlite", "postgresql"])
async def mortal(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Mortal]:
    postgres = request.getfixturevalue("private_postgres") if request.param == "postgresql" else None
    made = Mortal(postgres.create_database() if postgres else f"sqlite:///{tmp_path / 'sekisho.db'}", postgres)
    await upgrade(made.database)
    yield made
    await made.database.close()


async def test_without_the_database_the_cache_answers_while_the_view_is_fresh(mortal, redis_url):
    async with a_world(mortal.database, redis_url) as world:
        node = await world.node()
        stays, unused, leaves, uncached = [await world.opens() for _ in range(4)]
        await world.unused_for(unused, 61)
        for cookie in (stays, leaves):
            await finds(node, cookie)
        await node.flow._read(hash_of(unused))
        await node.flow._read(hash_of(leaves))
        kept = await world.kept(leaves)
        await node.flow.log_out(leaves)
        await world.keeps(leaves, kept)
        async with mortal.away():
            for _ in range(2):
                await finds(node, stays)
                await finds(node, unused)  # its limit is not slid; it lives
                await refuses(node, leaves)
                for cookie in (uncached, "A" * 43):
                    with pytest.raises(StorageUnavailable):
                        await node.flow.find(cookie, caller)
                with pytest.raises(StorageUnavailable):
                    await node.watch.poll()
                node.now += FRESH_S
            node.now += 0.01 - FRESH_S
            for cookie in (stays, unused, leaves, uncached, "A" * 43):  # never: refused
                with pytest.raises(StorageUnavailable):
                    await node.flow.find(cookie, caller)
            with pytest.raises(StorageUnavailable):
                await node.flow.log_out(stays)
        await back_again(node)
        used_at_us = (await world.row(unused)).handed_out_at_us
        for cookie in (stays, unused, uncached):
            await finds(node, cookie)
        assert (await world.row(unused)).handed_out_at_us > used_at_us
        await refuses(node, leaves, "A" * 43)


async def back_again(node: Node) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                await node.watch.poll()
            except StorageUnavailable:
                await asyncio.sleep(0.05)
            else:
                return
