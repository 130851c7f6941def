"""The hourly purge: what it ends, what it deletes, what it leaves, and that one node of several does it."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import select, text

from sekisho.services.events import Events
from sekisho.services.purge import Purge
from sekisho.services.revocation_watch import RevocationWatch
from sekisho.services.sessions import SessionLimits, Sessions
from sekisho.storage import schema
from sekisho.storage.engine import Database
from sekisho.storage.ports import MICROSECONDS, Cause
from sekisho.tokens.revoked import RevokedSessions
from step_by_step import bare, reading, writing
from test_storage import a_session, database, stored_user

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
    monkeypatch.setattr("sekisho.services.purge._ENDED_AT_ONCE", 3)
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
            await tx.devices.remember(device, user.id, now_us=now_us)
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
