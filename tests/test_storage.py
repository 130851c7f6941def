"""What the services ask of storage: one suite, SQLite and PostgreSQL."""

import asyncio
import hashlib
import os
import time
import traceback
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select

from sekisho.errors import StartRefused, StorageUnavailable
from sekisho.storage import connect, schema
from sekisho.storage.engine import Database
from sekisho.storage.migrate import upgrade
from sekisho.storage.rows import Cause, Ended, RevocationRow, Session, Stale, TheftRecord, User
from step_by_step import bare, reading, writing

pytestmark = pytest.mark.anyio

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
NOW = 1_800_000_000 * SECOND
LAPSES = NOW + 20 * MINUTE

only_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
only_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
async def database(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    """With time enough for many at once on a busy machine."""
    monkeypatch.setattr(connect, "POOL_WAIT_S", 20.0)
    database = Database(database_url, statement_timeout_ms=20_000)
    await upgrade(database)
    yield database
    await database.close()


@pytest.fixture
async def owner(database: Database) -> User:
    """A stored account."""
    return await stored_user(database)


def a_user(name: str = "", **changes) -> User:
    name = name or uuid4().hex
    user = User(
        id=uuid4(),
        email=f"{name.title()}@example.com",
        email_canonical=f"{name}@example.com",
        password_hash="$argon2id$…",
        roles=("admin", "監査"),
        created_at_us=NOW,
        disabled_at_us=None,
    )
    return replace(user, **changes)


def a_session(of: User, *, now: int = NOW, **changes) -> Session:
    session = Session(
        id=uuid4(),
        user_id=of.id,
        roles=of.roles,
        user_disabled=False,
        created_at_us=now,
        idle_ends_at_us=now + HOUR,
        ends_at_us=now + 24 * HOUR,
        generation=0,
        branch=0,
        parent_branch=None,
        made_at_us=now,
        handed_out_at_us=now,
        salt=os.urandom(16),
        last_address="192.0.2.7",
        last_user_agent="Mozilla/5.0 (関所)",
        ended_at_us=None,
        cause=None,
    )
    return replace(session, **changes)


async def stored_user(database: Database, **changes) -> User:
    user = a_user(**changes)
    async with writing(database) as tx:
        assert await tx.users.add(user)
    return user


async def stored_session(database: Database, of: User, **changes) -> Session:
    session = a_session(of, **changes)
    async with writing(database) as tx:
        await tx.sessions.add(session)
    return session


async def found(database: Database, session: Session) -> Session:
    async with reading(database) as tx:
        row = await tx.sessions.find(session.id)
    assert row is not None
    return row


async def entries(database: Database, than_id: int = 0) -> list[RevocationRow]:
    async with reading(database) as tx:
        return list(await tx.revocations.newer(than_id=than_id, missing=[]))


async def revoked(database: Database) -> list[UUID]:
    return [entry.session_id for entry in await entries(database)]


async def end(database: Database, **which) -> set[Ended]:
    async with writing(database) as tx:
        return set(await tx.sessions.end(cause=Cause.LOGOUT, now_us=NOW, lapses_at_us=LAPSES, **which))


def ended(session: Session, cause: Cause = Cause.LOGOUT) -> Ended:
    return Ended(session_id=session.id, user_id=session.user_id, cause=cause, lapses_at_us=LAPSES)


# --- URLs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "canary",
        "mysql://root:canary@127.0.0.1/x",
        "postgres://root:canary@127.0.0.1/x",
        "postgresql+psycopg://root:canary@127.0.0.1/x",
        "postgresql://root:secret@127.0.0.1:canary/x",
        "sqlite+pysqlite:///canary.db",
        # In memory every connection would see a database of its own.
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite://canary.db",
    ],
)
async def test_a_url_that_cannot_work_is_refused_at_once_and_not_shown(url):
    with pytest.raises(StartRefused) as refusal:
        Database(url)
    assert "SEKISHO_DATABASE_URL" in refusal.value.detail
    assert "canary" not in refusal.value.detail
    quoted = [line for line in traceback.format_exception(refusal.value) if "canary" in line]
    assert not quoted


# --- transactions --------------------------------------------------------------------------------------------------


async def test_what_is_committed_is_there_for_another_database_object(database, database_url, owner):
    other = Database(database_url)
    async with reading(other) as tx:
        assert await tx.users.by_id(owner.id) == owner
    await other.close()


async def test_an_exception_in_the_block_rolls_back_and_comes_through(database):
    user = a_user()

    async def fail() -> None:
        async with writing(database) as tx:
            assert await tx.users.add(user)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with reading(database) as tx:
        assert await tx.users.by_id(user.id) is None


async def test_readers_see_the_last_commit_and_do_not_wait_for_the_writer(database, owner):
    async with writing(database) as writer:
        await writer.users.disable(owner.id, now_us=NOW)
        async with reading(database) as reader:
            assert await reader.users.by_id(owner.id) == owner


@only_sqlite
async def test_writers_of_sqlite_take_turns_in_order(database):
    """One writer in the process: in SQLite's own busy loop some would starve."""
    served = []

    async def write(number: int) -> None:
        async with writing(database) as tx:
            await tx.users.add(a_user())
            served.append(number)

    await asyncio.gather(*(write(number) for number in range(30)))
    assert served == list(range(30))


async def test_a_task_cancelled_in_the_block_rolls_back_and_gives_the_connection_back(database):
    async def write_and_stay(user: User, written: asyncio.Event) -> None:
        async with writing(database) as tx:
            await tx.users.add(user)
            written.set()
            await asyncio.Event().wait()

    users = [a_user() for _ in range(50)]
    for user in users:
        written = asyncio.Event()
        task = asyncio.create_task(write_and_stay(user, written))
        await written.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await stored_user(database)
    async with reading(database) as tx:
        assert [await tx.users.by_id(user.id) for user in users] == [None] * len(users)


async def test_a_task_cancelled_anywhere_gives_the_connection_back(database_url, monkeypatch):
    """While it connects, begins, waits for its turn, executes or commits."""
    # Without TLS: cancelled while it asks for TLS, asyncpg complains to the loop of a connection lost.
    monkeypatch.setattr(connect, "POOL_WAIT_S", 20.0)
    database = Database(database_url + ("?ssl=disable" if database_url.startswith("postgresql") else ""))
    await upgrade(database)
    await database.close()  # so that the first ones have to connect

    async def work() -> None:
        while True:
            await stored_user(database)

    for round_ in range(50):
        tasks = [asyncio.create_task(work()) for _ in range(2)]
        await asyncio.sleep(round_ / 10_000)
        for task in tasks:
            task.cancel()
        assert all(
            isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*tasks, return_exceptions=True)
        )
    await asyncio.gather(*(stored_user(database) for _ in range(10)))
    await database.close()


async def test_the_time_is_the_databases(database):
    before = time.time_ns() // 1000
    async with writing(database) as tx:
        now = await tx.now_us()
    assert before <= now <= time.time_ns() // 1000


@only_postgresql
async def test_on_postgresql_the_time_goes_on_within_a_transaction(database):
    async with writing(database) as tx:
        assert await tx.now_us() < await tx.now_us()


@only_sqlite
async def test_on_sqlite_the_time_is_that_of_the_begin(database):
    """Taken after the wait for the writer's turn, so that times grow in the order of the commits."""

    async def begin() -> tuple[int, int]:
        async with writing(database) as tx:
            return await tx.now_us(), await tx.now_us()

    async with writing(database):
        waiting = asyncio.create_task(begin())
        await asyncio.sleep(0)  # it stands in the queue
        turn = time.time_ns() // 1000
    first, second = await waiting
    assert turn <= first == second


# --- users ---------------------------------------------------------------------------------------------------------


async def test_a_user_comes_back_as_added(database):
    user = a_user("seki", email="Séki@例え.jp", roles=("admin", "監査"))
    async with writing(database) as tx:
        assert await tx.users.add(user)
    async with reading(database) as tx:
        assert await tx.users.by_id(user.id) == user
        assert await tx.users.by_email(user.email_canonical) == user
        assert await tx.users.by_id(uuid4()) is None
        assert await tx.users.by_email(user.email) is None, "only the canonical address is compared"


async def test_a_taken_address_is_refused_and_the_transaction_goes_on(database, owner):
    second, third = a_user(email_canonical=owner.email_canonical), a_user()
    async with writing(database) as tx:
        assert not await tx.users.add(second)
        assert await tx.users.add(third)
    async with reading(database) as tx:
        assert await tx.users.by_email(owner.email_canonical) == owner
        assert await tx.users.by_id(second.id) is None
        assert await tx.users.by_id(third.id) == third


async def test_of_40_sign_ups_at_once_one_gets_the_address(database):
    async def sign_up() -> bool:
        async with writing(database) as tx:
            return await tx.users.add(a_user("one"))

    outcomes = await asyncio.gather(*(sign_up() for _ in range(40)))
    assert sorted(outcomes) == [False] * 39 + [True]
    async with reading(database) as tx:
        assert len(await tx.users.page(after="", limit=100)) == 1


async def test_a_locked_user_changes_under_nobodys_hands(database, database_url, monkeypatch):
    monkeypatch.setattr(connect, "_SQLITE_BUSY_S", 20.0)
    nodes = [Database(database_url) for _ in range(2)]
    user = await stored_user(database, password_hash="0")

    async def count_up(node: Database) -> None:
        async with writing(node) as tx:
            read = await tx.users.locked(user.id)
            await asyncio.sleep(0)
            await tx.users.set_password_hash(user.id, str(int(read.password_hash) + 1), changed_at_us=None)

    await asyncio.gather(*(count_up(node) for node in nodes for _ in range(5)))
    for node in nodes:
        await node.close()
    async with writing(database) as tx:
        assert await tx.users.locked(user.id) == replace(user, password_hash="10")
        assert await tx.users.locked(uuid4()) is None


@only_postgresql
async def test_a_locked_user_can_be_given_sessions(database, owner):
    async with writing(database) as tx:
        await tx.users.locked(owner.id)
        await stored_session(database, owner)


async def test_a_new_password_is_told_from_a_new_hash_of_the_same(database, owner):
    other = await stored_user(database)
    changed_at = select(schema.users.c.password_changed_at_us).where(schema.users.c.id == owner.id)
    for given, expected in [(None, NOW), (NOW + HOUR, NOW + HOUR), (None, NOW + HOUR)]:
        async with writing(database) as tx:
            await tx.users.set_password_hash(owner.id, f"hash {given}", changed_at_us=given)
        async with bare(database) as connection:
            assert (await connection.execute(changed_at)).scalar_one() == expected
        async with reading(database) as tx:
            assert await tx.users.by_id(owner.id) == replace(owner, password_hash=f"hash {given}")
            assert await tx.users.by_id(other.id) == other


async def test_a_user_is_disabled_once(database, owner):
    other = await stored_user(database)
    session = await stored_session(database, owner)
    for at in (NOW, NOW + HOUR):
        async with writing(database) as tx:
            await tx.users.disable(owner.id, now_us=at)
    async with reading(database) as tx:
        assert await tx.users.by_id(owner.id) == replace(owner, disabled_at_us=NOW)
        assert await tx.users.by_id(other.id) == other
    assert await found(database, session) == replace(session, user_disabled=True)


async def test_pages_of_users_follow_the_canonical_address(database):
    users = {name: await stored_user(database, name=name) for name in ("c", "a", "d", "b")}
    async with reading(database) as tx:
        assert list(await tx.users.page(after="", limit=3)) == [users["a"], users["b"], users["c"]]
        assert list(await tx.users.page(after=users["c"].email_canonical, limit=3)) == [users["d"]]
        assert list(await tx.users.page(after=users["d"].email_canonical, limit=3)) == []


# --- sessions ------------------------------------------------------------------------------------------------------


async def test_a_session_comes_back_as_added_with_its_users_roles(database, owner):
    big = 2**40
    session = a_session(
        owner, generation=big, branch=2**32 - 1, parent_branch=3, ended_at_us=NOW, cause=Cause.ADMIN.value
    )
    async with writing(database) as tx:
        await tx.sessions.add(session)
        await tx.sessions.add(a_session(owner))
    assert await found(database, session) == session
    async with reading(database) as tx:
        assert await tx.sessions.find(uuid4()) is None


async def test_a_session_needs_its_user(database):
    with pytest.raises(StorageUnavailable):
        await stored_session(database, a_user())


async def test_live_sessions_are_those_that_can_go_on_the_one_used_last_first(database, owner):
    first, last, middle = [
        await stored_session(database, owner, handed_out_at_us=at, idle_ends_at_us=NOW + 1, ends_at_us=NOW + 1)
        for at in (NOW - 3, NOW - 1, NOW - 2)
    ]
    await stored_session(database, owner, idle_ends_at_us=NOW)
    await stored_session(database, owner, ends_at_us=NOW)
    await stored_session(database, owner, ended_at_us=NOW, cause=Cause.LOGOUT.value)
    await stored_session(database, await stored_user(database))
    async with reading(database) as tx:
        assert list(await tx.sessions.live_of(owner.id, now_us=NOW)) == [last, middle, first]


async def test_ending_by_id_ends_these_and_appends_one_entry_for_each(database, owner):
    one, two, other = [await stored_session(database, owner) for _ in range(3)]
    assert await end(database, session_ids=[one.id, two.id, uuid4()]) == {ended(one), ended(two)}
    assert {(e.session_id, e.lapses_at_us) for e in await entries(database)} == {(one.id, LAPSES), (two.id, LAPSES)}
    assert len(await entries(database)) == 2
    for session in (one, two):
        assert await found(database, session) == replace(session, ended_at_us=NOW, cause=Cause.LOGOUT.value)
    assert await found(database, other) == other


async def test_ending_by_user_ends_all_of_that_user(database, owner):
    mine = [await stored_session(database, owner) for _ in range(2)]
    other = await stored_session(database, await stored_user(database))
    assert await end(database, user_id=owner.id) == {ended(session) for session in mine}
    assert sorted(await revoked(database)) == sorted(session.id for session in mine)
    assert await found(database, other) == other


async def test_conditions_of_ending_all_have_to_hold(database, owner):
    mine = await stored_session(database, owner)
    foreign = await stored_session(database, await stored_user(database))
    assert await end(database, session_ids=[mine.id, foreign.id], user_id=owner.id) == {ended(mine)}
    assert await revoked(database) == [mine.id]


async def test_ending_nothing_in_particular_is_refused(database, owner):
    session = await stored_session(database, owner)
    with pytest.raises(ValueError, match="which"):
        await end(database)
    assert await end(database, session_ids=[]) == set(), "an empty list is not every session"
    assert await found(database, session) == session


@pytest.mark.parametrize("changed", ["generation", "branch", "handed_out_at_us"])
async def test_a_session_that_moved_on_is_not_ended(database, owner, changed):
    session = await stored_session(database, owner)
    stale = replace(session, **{changed: getattr(session, changed) - 1})
    assert await end(database, unchanged_since=stale) == set()
    assert await revoked(database) == []
    assert await end(database, unchanged_since=session) == {ended(session)}


async def test_a_session_and_its_entry_are_written_together_or_not_at_all(database, owner):
    session = await stored_session(database, owner)

    async def fail() -> None:
        async with writing(database) as tx:
            await tx.sessions.end(cause=Cause.LOGOUT, now_us=NOW, lapses_at_us=LAPSES, session_ids=[session.id])
            assert len(await tx.revocations.newer(than_id=0, missing=[])) == 1, "in this same transaction"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await found(database, session) == session
    assert await revoked(database) == []


async def test_a_session_ends_once(database, owner):
    session = await stored_session(database, owner)
    outcomes = await asyncio.gather(*(end(database, session_ids=[session.id]) for _ in range(20)))
    assert sorted(map(len, outcomes)) == [0] * 19 + [1]
    async with writing(database) as tx:
        again = await tx.sessions.end(cause=Cause.ADMIN, now_us=NOW + 1, lapses_at_us=LAPSES, user_id=owner.id)
    assert list(again) == []
    assert await revoked(database) == [session.id]
    assert await found(database, session) == replace(session, ended_at_us=NOW, cause=Cause.LOGOUT.value)


async def test_expired_sessions_are_ended_the_longest_over_first(database, owner):
    idle = [await stored_session(database, owner, idle_ends_at_us=NOW - ago) for ago in (0, 2, 1)]
    too_old = await stored_session(database, owner, ends_at_us=NOW)
    live = await stored_session(database, owner, idle_ends_at_us=NOW + 1, ends_at_us=NOW + 1)
    await stored_session(database, owner, idle_ends_at_us=NOW - 9, ended_at_us=NOW - 9, cause=Cause.LOGOUT.value)

    async def end_two() -> set[Ended]:
        async with writing(database) as tx:
            found = await tx.sessions.expired(now_us=NOW, limit=2)
            return set(await tx.sessions.end_expired(found, now_us=NOW, lapses_at_us=LAPSES))

    assert await end_two() == {ended(idle[1], Cause.EXPIRED), ended(idle[2], Cause.EXPIRED)}
    assert await end_two() == {ended(idle[0], Cause.EXPIRED), ended(too_old, Cause.EXPIRED)}
    assert await end_two() == set()
    assert sorted(await revoked(database)) == sorted(session.id for session in [*idle, too_old])
    assert await found(database, too_old) == replace(too_old, ended_at_us=NOW, cause=Cause.EXPIRED.value)
    assert await found(database, live) == live


async def test_a_theft_is_kept_with_both_presentations(database, owner):
    session = await stored_session(database, owner)
    theft = TheftRecord(
        session_id=session.id,
        user_id=owner.id,
        at_us=NOW,
        generation=3,
        branch=1,
        address="203.0.113.9",
        user_agent="curl/8",
        current_generation=4,
        current_branch=2,
        current_since_us=NOW - HOUR,
        current_address=session.last_address,
        current_user_agent=session.last_user_agent,
    )
    async with writing(database) as tx:
        await tx.sessions.record_theft(theft)
    async with reading(database) as tx:
        assert list(await tx.sessions.thefts_of(session.id)) == [theft]
        assert list(await tx.sessions.thefts_of(uuid4())) == []


async def test_sessions_that_ended_long_ago_are_purged_their_entries_stay(database, owner):
    live, kept, old = [await stored_session(database, owner) for _ in range(3)]
    async with writing(database) as tx:
        for session, at in ((kept, NOW), (old, NOW - 1)):
            await tx.sessions.end(cause=Cause.LOGOUT, now_us=at, lapses_at_us=LAPSES, session_ids=[session.id])
        assert await purged(tx, Stale.SESSIONS, before_us=NOW) == 1
    async with reading(database) as tx:
        assert await tx.sessions.find(old.id) is None
    assert (await found(database, kept)).ended_at_us == NOW
    assert await found(database, live) == live
    assert sorted(await revoked(database)) == sorted([kept.id, old.id])


# --- revocations ---------------------------------------------------------------------------------------------------


async def append(database: Database, *, lapses_at_us: int = LAPSES) -> RevocationRow:
    session_id = uuid4()
    async with writing(database) as tx:
        await tx.revocations.append(session_id, lapses_at_us=lapses_at_us)
    (entry,) = [entry for entry in await entries(database) if entry.session_id == session_id]
    return entry


async def test_ids_grow_and_never_come_twice(database):
    ids = []
    for _ in range(3):
        ids += [(await append(database)).id, (await append(database)).id]
        async with writing(database) as tx:
            assert await purged(tx, Stale.REVOCATIONS, before_us=LAPSES + 1) == 2, "the newest row too"
    assert ids == sorted(set(ids))


async def test_an_entry_lives_until_its_time_and_is_purged_after(database):
    lapsed, last_moment, fresh = [await append(database, lapses_at_us=at) for at in (NOW - 1, NOW, NOW + 1)]
    async with writing(database) as tx:
        assert set(await tx.revocations.live(now_us=NOW)) == {last_moment, fresh}
        assert lapsed in await tx.revocations.newer(than_id=0, missing=[])
        assert await purged(tx, Stale.REVOCATIONS, before_us=NOW) == 1
        assert list(await tx.revocations.newer(than_id=0, missing=[])) == [last_moment, fresh]


async def test_newer_entries_and_late_ones_come_in_order(database):
    one, two, three, four = [await append(database) for _ in range(4)]
    async with reading(database) as tx:
        assert list(await tx.revocations.newer(than_id=two.id, missing=[])) == [three, four]
        assert list(await tx.revocations.newer(than_id=three.id, missing=[one.id, -1])) == [one, four]
        assert list(await tx.revocations.newer(than_id=four.id, missing=[])) == []


@only_postgresql
async def test_an_entry_whose_transaction_commits_late_is_found_among_the_missing(database):
    early, late = uuid4(), uuid4()
    async with writing(database) as slow:
        await slow.revocations.append(late, lapses_at_us=LAPSES)
        async with writing(database) as quick:
            await quick.revocations.append(early, lapses_at_us=LAPSES)
        (seen,) = await entries(database)
        assert seen.session_id == early
    assert await entries(database, than_id=seen.id) == []
    async with reading(database) as tx:
        (found_late,) = await tx.revocations.newer(than_id=seen.id, missing=[seen.id - 1])
    assert found_late.session_id == late


async def purged(tx, kind: Stale, *, before_us: int) -> int:
    return await tx.delete_stale(kind, await tx.stale(kind, before_us=before_us, limit=10), before_us=before_us)


# --- devices -------------------------------------------------------------------------------------------------------


async def test_a_device_is_known_to_the_account_that_it_signed_in_to_last(database, owner):
    other = await stored_user(database)
    device, stranger = (hashlib.sha256(os.urandom(32)).digest() for _ in range(2))
    async with writing(database) as tx:
        assert not await tx.devices.is_known(device, owner.id)
        await tx.devices.remember(device, owner.id, now_us=NOW, kept=10)
        assert await tx.devices.is_known(device, owner.id)
        assert not await tx.devices.is_known(device, other.id)
        assert not await tx.devices.is_known(stranger, owner.id)
        await tx.devices.remember(device, other.id, now_us=NOW + 1, kept=10)
        assert not await tx.devices.is_known(device, owner.id)
        assert await tx.devices.is_known(device, other.id)


async def test_devices_not_seen_for_long_are_forgotten(database, owner):
    old, kept, seen_again = (hashlib.sha256(os.urandom(32)).digest() for _ in range(3))
    async with writing(database) as tx:
        for device, at in ((old, NOW - 1), (kept, NOW), (seen_again, NOW - 1), (seen_again, NOW)):
            await tx.devices.remember(device, owner.id, now_us=at, kept=10)
        assert await purged(tx, Stale.DEVICES, before_us=NOW) == 1
        assert [await tx.devices.is_known(device, owner.id) for device in (old, kept, seen_again)] == [
            False,
            True,
            True,
        ]


async def test_of_an_accounts_devices_those_seen_last_are_kept(database, owner):
    other = await stored_user(database)
    mine = [hashlib.sha256(os.urandom(32)).digest() for _ in range(4)]
    others = hashlib.sha256(os.urandom(32)).digest()
    async with writing(database) as tx:
        await tx.devices.remember(others, other.id, now_us=NOW - 9, kept=2)
        for age, device in enumerate(mine):
            await tx.devices.remember(device, owner.id, now_us=NOW + age, kept=2)
        assert [await tx.devices.is_known(device, owner.id) for device in mine] == [False, False, True, True]
        await tx.devices.forget_all(owner.id)
        assert not any([await tx.devices.is_known(device, owner.id) for device in mine])
        assert await tx.devices.is_known(others, other.id)


# --- chores --------------------------------------------------------------------------------------------------------


async def claim(database: Database, *, now_us: int, name: str = "purge") -> bool:
    async with writing(database) as tx:
        return await tx.claim_chore(name, every_us=MINUTE, now_us=now_us)


async def test_a_chore_is_done_once_a_period(database):
    assert await claim(database, now_us=NOW)
    assert not await claim(database, now_us=NOW)
    assert not await claim(database, now_us=NOW + MINUTE - 1)
    assert await claim(database, now_us=NOW, name="another")
    assert await claim(database, now_us=NOW + MINUTE)
    assert not await claim(database, now_us=NOW + MINUTE)


@pytest.mark.parametrize("ran_before", [False, True], ids=["first time", "again"])
async def test_of_20_nodes_at_once_one_does_the_chore(database, ran_before):
    if ran_before:
        assert await claim(database, now_us=NOW - MINUTE)
    # Each node read the time a little earlier or later than the others.
    outcomes = await asyncio.gather(*(claim(database, now_us=NOW + (node * 7 + 10) % 20) for node in range(20)))
    assert sorted(outcomes) == [False] * 19 + [True]


async def test_a_node_that_read_the_time_before_the_winner_did_gets_no_second_turn(database):
    assert await claim(database, now_us=NOW)
    assert not await claim(database, now_us=NOW - SECOND)


async def test_a_time_in_the_future_does_not_stop_a_chore(database):
    """It comes from a clock that was ahead and has been put right since."""
    assert await claim(database, now_us=NOW + HOUR)
    assert await claim(database, now_us=NOW)
    assert not await claim(database, now_us=NOW)


# --- cancellation --------------------------------------------------------------------------------------------------


async def test_cancelled_transactions_are_wholly_done_or_wholly_not(database_url, monkeypatch):
    """Begun, waiting for their turn, or committing; and the connections come back."""
    monkeypatch.setattr(connect, "POOL_WAIT_S", 20.0)
    # Without TLS: cancelled while it asks for TLS, asyncpg complains to the loop of a connection lost.
    database = Database(database_url + ("?ssl=disable" if database_url.startswith("postgresql") else ""))
    await upgrade(database)
    pairs = []

    def add(pair: tuple[User, User]):
        return lambda tx: [tx.users.add(user) for user in pair]

    for round_ in range(6):
        new = [(a_user(), a_user()) for _ in range(50)]
        pairs += new
        tasks = [asyncio.create_task(database.write(add(pair))) for pair in new]
        await asyncio.sleep(round_ / 100)
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(end == [True, True] or isinstance(end, asyncio.CancelledError) for end in ends)
        # On SQLite one that had begun goes on to its end; this one comes after it.
        await stored_user(database)
        async with bare(database) as connection:
            there = set((await connection.execute(select(schema.users.c.id))).scalars())
        assert all((one.id in there) == (other.id in there) for one, other in pairs)
        answered = [pair for pair, end in zip(new, ends, strict=True) if isinstance(end, list)]
        assert all(one.id in there for one, _ in answered)
    assert await asyncio.gather(*(database.write(add((a_user(), a_user()))) for _ in range(50))) == [[True, True]] * 50
    await database.close()
