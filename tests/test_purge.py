"""The hourly purge: what it ends, what it deletes, what it leaves, and that one node of several does it."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import select, text
from sqlalchemy.util import await_only

from sekisho.errors import StorageUnavailable
from sekisho.services.events import Events
from sekisho.services.purge import Purge
from sekisho.services.revocation_watch import RevocationWatch
from sekisho.services.sessions import SessionLimits, Sessions
from sekisho.storage import schema
from sekisho.storage.engine import Database, SqlTransaction
from sekisho.storage.rows import MICROSECONDS, Cause, Stale, TheftRecord
from sekisho.storage.sessions import SqlSessions
from sekisho.tokens.revoked import RevokedSessions
from step_by_step import bare, reading, writing
from test_storage import a_session, database, only_postgresql, stored_user

__all__ = ["database"]  # a fixture

pytestmark = pytest.mark.anyio

HOUR_US = 3600 * MICROSECONDS
DAY_US = 24 * HOUR_US
ENTRY_LIFE_S = 970


class Node:
    """One node's purge, with what its verifier refuses and its log counts."""

    def __init__(self, database: Database) -> None:
        self.registry = CollectorRegistry()
        events = Events(self.registry)
        self.revoked = RevokedSessions()
        watch = RevocationWatch(storage=database, revoked=self.revoked, events=events)
        limits = SessionLimits(idle_s=3600, max_age_s=7200, max_sessions=50, entry_life_s=ENTRY_LIFE_S)
        sessions = Sessions(storage=database, limits=limits, watch=watch, events=events)
        self.purge = Purge(storage=database, sessions=sessions, events=events)

    def told(self, event: str, outcome: str) -> float:
        return self.registry.get_sample_value("sekisho_events_total", {"event": event, "outcome": outcome}) or 0


@pytest.fixture
def node(database: Database) -> Node:
    return Node(database)


@pytest.fixture
async def now_us(database: Database) -> AsyncIterator[int]:
    async with reading(database) as tx:
        yield await tx.now_us()


async def sql(database: Database, statement: str, **values) -> None:
    async with bare(database) as connection:
        await connection.execute(text(statement), values)


async def a_live_session(database: Database, now_us: int, **changes) -> UUID:
    session = a_session(await stored_user(database), now=now_us, **changes)
    async with writing(database) as tx:
        await tx.sessions.add(session)
    return session.id


async def an_ended_session(database: Database, now_us: int, *, ended_ago_us: int) -> UUID:
    session_id = await a_live_session(database, now_us)
    async with writing(database) as tx:
        await tx.sessions.end(
            cause=Cause.LOGOUT, now_us=now_us, lapses_at_us=now_us + HOUR_US, session_ids=[session_id]
        )
    aged = "UPDATE sessions SET ended_at_us = :at WHERE ended_at_us = :now"
    await sql(database, aged, at=now_us - ended_ago_us, now=now_us)
    return session_id


async def sessions_left(database: Database) -> dict[UUID, str | None]:
    """Session id → why it ended."""
    async with bare(database) as connection:
        rows = await connection.execute(select(schema.sessions.c.id, schema.sessions.c.cause))
        return {row.id: row.cause for row in rows}


async def revocations_left(database: Database) -> dict[UUID, int]:
    """Session id → when the entry lapses."""
    async with bare(database) as connection:
        rows = await connection.execute(select(schema.revocations))
        return {row.session_id: row.lapses_at_us for row in rows}


async def test_what_expired_unnoticed_is_ended_and_revoked(database, node, now_us):
    idle = await a_live_session(database, now_us, idle_ends_at_us=now_us - MICROSECONDS)
    old = await a_live_session(database, now_us, ends_at_us=now_us - MICROSECONDS)
    fresh = await a_live_session(database, now_us)
    assert await node.purge.once()
    assert await sessions_left(database) == {idle: "expired", old: "expired", fresh: None}
    entries = await revocations_left(database)
    assert entries.keys() == {idle, old}
    assert all(0 <= lapses - now_us - ENTRY_LIFE_S * MICROSECONDS < 60 * MICROSECONDS for lapses in entries.values())
    assert [str(session_id) in node.revoked for session_id in (idle, old, fresh)] == [True, True, False]
    assert node.told("session_ended", "expired") == 2
    assert node.told("purged", "ok") == 1


async def test_many_are_ended_in_bounded_transactions(database, node, now_us, monkeypatch):
    monkeypatch.setattr("sekisho.services.purge._AT_ONCE", 3)
    user = await stored_user(database)
    async with writing(database) as tx:
        for _ in range(8):
            await tx.sessions.add(a_session(user, now=now_us, idle_ends_at_us=now_us - 1))
    assert await node.purge.once()
    assert set((await sessions_left(database)).values()) == {"expired"}
    assert len(await revocations_left(database)) == 8


async def test_sessions_that_ended_long_ago_go_and_others_stay(database, node, now_us):
    gone = await an_ended_session(database, now_us, ended_ago_us=30 * DAY_US + MICROSECONDS)
    kept = await an_ended_session(database, now_us, ended_ago_us=30 * DAY_US - 600 * MICROSECONDS)
    live = await a_live_session(database, now_us)
    assert await node.purge.once()
    assert await sessions_left(database) == {kept: "logout", live: None}
    assert gone in await revocations_left(database)  # its entry has a time of its own


async def test_lapsed_revocations_go_and_live_ones_stay(database, node, now_us):
    lapsed, live = uuid4(), uuid4()
    async with writing(database) as tx:
        await tx.revocations.append(lapsed, lapses_at_us=now_us - 1)
        await tx.revocations.append(live, lapses_at_us=now_us + HOUR_US)
    assert await node.purge.once()
    assert (await revocations_left(database)).keys() == {live}


async def test_devices_unseen_for_long_go_and_others_stay(database, node, now_us):
    user = await stored_user(database)
    unseen, seen = hashlib.sha256(b"unseen").digest(), hashlib.sha256(b"seen").digest()
    async with writing(database) as tx:
        for device in (unseen, seen):
            await tx.devices.remember(device, user.id, now_us=now_us, kept=10)
    aged = "UPDATE devices SET last_seen_at_us = :at WHERE token_hash = :device"
    await sql(database, aged, at=now_us - 180 * DAY_US - MICROSECONDS, device=unseen)
    await sql(database, aged, at=now_us - 180 * DAY_US + 600 * MICROSECONDS, device=seen)
    assert await node.purge.once()
    async with reading(database) as tx:
        assert [await tx.devices.is_known(device, user.id) for device in (unseen, seen)] == [False, True]


async def test_of_several_nodes_one_does_it_within_the_hour(database, now_us):
    nodes = [Node(database) for _ in range(5)]
    await a_live_session(database, now_us, idle_ends_at_us=now_us - 1)
    did = await asyncio.gather(*(node.purge.once() for node in nodes))
    assert sorted(did) == [False, False, False, False, True]
    assert sum(node.told("session_ended", "expired") for node in nodes) == 1
    assert not any([await node.purge.once() for node in nodes])

    await sql(database, "UPDATE chores SET ran_at_us = :at", at=now_us - HOUR_US + 600 * MICROSECONDS)
    assert not any([await node.purge.once() for node in nodes])
    await sql(database, "UPDATE chores SET ran_at_us = :at", at=now_us - HOUR_US)
    assert [await node.purge.once() for node in nodes].count(True) == 1


async def test_a_clock_that_stepped_back_does_not_stop_it(database, node, now_us):
    assert await node.purge.once()
    await sql(database, "UPDATE chores SET ran_at_us = :at", at=now_us + 400 * DAY_US)
    assert await node.purge.once()
    assert not await node.purge.once()


async def a_theft(database: Database, *, at_us: int) -> UUID:
    user, session_id = await stored_user(database), uuid4()
    theft = TheftRecord(
        session_id=session_id,
        user_id=user.id,
        at_us=at_us,
        generation=3,
        branch=1,
        address="203.0.113.9",
        user_agent="curl/8",
        current_generation=4,
        current_branch=2,
        current_since_us=at_us,
        current_address="192.0.2.7",
        current_user_agent="Mozilla/5.0",
    )
    async with writing(database) as tx:
        await tx.sessions.record_theft(theft)
    return session_id


async def test_thefts_of_long_ago_go_and_others_stay(database, node, now_us):
    old = await a_theft(database, at_us=now_us - 180 * DAY_US - MICROSECONDS)
    kept = await a_theft(database, at_us=now_us - 180 * DAY_US + 600 * MICROSECONDS)
    assert await node.purge.once()
    async with reading(database) as tx:
        assert [len(await tx.sessions.thefts_of(session_id)) for session_id in (old, kept)] == [0, 1]


async def test_no_transaction_deletes_more_than_a_batch(database, node, now_us, monkeypatch):
    monkeypatch.setattr("sekisho.services.purge._AT_ONCE", 3)
    async with writing(database) as tx:
        for _ in range(8):
            await tx.revocations.append(uuid4(), lapses_at_us=now_us - 1)
    numbers = []
    delete_stale = SqlTransaction.delete_stale

    def noted(*args, **kwargs) -> int:
        numbers.append(delete_stale(*args, **kwargs))
        return numbers[-1]

    monkeypatch.setattr(SqlTransaction, "delete_stale", noted)
    assert await node.purge.once()
    assert numbers == [3, 3, 2]
    assert await revocations_left(database) == {}


@pytest.mark.parametrize("failing", [*Stale, None])
async def test_a_step_that_fails_does_not_stop_the_others(database, node, now_us, monkeypatch, failing):
    """None: the search for expired sessions."""
    lapsed = uuid4()
    async with writing(database) as tx:
        await tx.revocations.append(lapsed, lapses_at_us=now_us - 1)
    expired = await a_live_session(database, now_us, idle_ends_at_us=now_us - 1)
    theft = await a_theft(database, at_us=now_us - 200 * DAY_US)
    stale = SqlTransaction.stale

    def fails(*args, **kwargs):
        raise StorageUnavailable(1, "too slow")

    def maybe_fails(tx, kind, **kwargs):
        return fails() if kind is failing else stale(tx, kind, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SqlTransaction, "stale", maybe_fails)
        if failing is None:
            patch.setattr(SqlSessions, "expired", fails)
        assert await node.purge.once()
    assert node.told("storage_failed", "purge") == 1
    assert node.told("purged", "partly") == 1
    assert (await sessions_left(database))[expired] == ("expired" if failing else None)
    assert (lapsed in await revocations_left(database)) == (failing is Stale.REVOCATIONS)
    async with reading(database) as tx:
        assert len(await tx.sessions.thefts_of(theft)) == (failing is Stale.THEFTS)

    assert not await node.purge.once()  # not at once …
    await sql(database, "UPDATE chores SET ran_at_us = ran_at_us - :ago", ago=300 * MICROSECONDS)
    assert await node.purge.once()  # … but in five minutes
    assert node.told("purged", "ok") == 1
    assert (await sessions_left(database))[expired] == "expired"
    assert not await node.purge.once()


async def test_a_session_refreshed_since_it_was_found_is_left(database, now_us):
    """A clock that stepped back can bring one to life again."""
    live = await a_live_session(database, now_us)
    expired = await a_live_session(database, now_us, idle_ends_at_us=now_us - 1)
    async with writing(database) as tx:
        ended = await tx.sessions.end_expired([live, expired], now_us=now_us, lapses_at_us=now_us + HOUR_US)
    assert [entry.session_id for entry in ended] == [expired]


@only_postgresql
async def test_the_search_may_take_longer_than_a_request(database, database_url):
    hasty = Database(database_url, statement_timeout_ms=100)

    def search(tx: SqlTransaction) -> int:
        return tx._connection.execute(text("SELECT 1 FROM pg_sleep(0.5)")).scalar_one()

    with pytest.raises(StorageUnavailable):
        await hasty.read(search)
    assert await hasty.read_slowly(search) == 1
    await hasty.close()


async def waits_for_a_lock(database: Database) -> None:
    waiting = text("SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
    async with asyncio.timeout(20):
        while True:
            async with bare(database) as connection:  # anew each time: a transaction sees one state of it
                if (await connection.execute(waiting)).all():
                    return


@only_postgresql
@pytest.mark.parametrize("way", ["by user", "by id", "expired"])
async def test_rows_are_locked_in_the_order_of_their_ids(database, now_us, way):
    """So that two that end several sessions at once cannot wait for each other."""
    user = await stored_user(database)
    low, *_, high = ids = sorted(uuid4() for _ in range(5))
    async with writing(database) as tx:
        for session_id in reversed(ids):  # in the table the highest comes first
            session = a_session(user, now=now_us, idle_ends_at_us=now_us - 1)
            await tx.sessions.add(replace(session, id=session_id))

    def end(tx: SqlTransaction) -> int:
        times = {"now_us": now_us, "lapses_at_us": now_us + HOUR_US}
        if way == "expired":
            return len(tx.sessions.end_expired(ids[::-1], **times))
        which = {"user_id": user.id} if way == "by user" else {"session_ids": ids[::-1]}
        return len(tx.sessions.end(**times, cause=Cause.ADMIN, **which))

    async with writing(database) as other:
        await other.sessions.locked(low)
        ending = asyncio.create_task(database.write(end))
        await waits_for_a_lock(database)
        async with bare(database) as connection:
            free = text("SELECT id FROM sessions WHERE id = :id FOR UPDATE SKIP LOCKED")
            assert (await connection.execute(free, {"id": high})).all(), "it waits for the lowest and holds no other"
    assert await ending == 5


@only_postgresql
async def test_a_deadlock_is_tried_again(database, now_us):
    ids = [await a_live_session(database, now_us) for _ in range(2)]
    both_hold_one = asyncio.Barrier(2)
    attempts = 0

    def end_in_order(order: list[UUID]):
        first_time = True

        def work(tx: SqlTransaction) -> int:
            nonlocal attempts, first_time
            attempts += 1
            meet, first_time = first_time, False
            number = 0
            for session_id in order:
                number += len(
                    tx.sessions.end(
                        cause=Cause.ADMIN, now_us=now_us, lapses_at_us=now_us + HOUR_US, session_ids=[session_id]
                    )
                )
                if meet:
                    await_only(both_hold_one.wait())
                    meet = False
            return number

        return work

    ended = await asyncio.gather(*(database.write(end_in_order(order)) for order in (ids, ids[::-1])))
    assert sorted(ended) == [0, 2]
    assert attempts == 3
    assert len(await revocations_left(database)) == 2
