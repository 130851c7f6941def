"""The database goes away, is locked, is full, or dies in the middle: nothing acknowledged is lost, nothing hangs, nothing
is told to whoever reads the log."""

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
import traceback
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import psutil
import pytest
from sqlalchemy import text

from sekisho.errors import StartRefused, StorageUnavailable
from sekisho.storage import connect
from sekisho.storage.engine import Database
from sekisho.storage.migrate import upgrade
from sekisho.storage.rows import Rotate, User
from servers.postgres import Postgres, PostgresServer
from step_by_step import bare, reading, writing
from test_storage import (
    HOUR,
    SECOND,
    a_user,
    database,
    entries,
    found,
    only_postgresql,
    only_sqlite,
    owner,
    revoked,
    stored_session,
    stored_user,
)

__all__ = ["database", "owner"]  # fixtures

pytestmark = pytest.mark.anyio

CANARY = "canary-0f3a9c"


async def unavailable(act) -> StorageUnavailable:
    """Fails where the answer hangs instead."""
    async with asyncio.timeout(10):
        with pytest.raises(StorageUnavailable) as caught:
            await act
    assert caught.value.retry_after_s >= 1
    return caught.value


async def add(database: Database, user: User) -> None:
    async with writing(database) as tx:
        assert await tx.users.add(user)


def assert_tells_nothing(error: StorageUnavailable) -> None:
    """Neither the error nor what a log prints of it quotes a value, a statement or the URL with its password."""
    printed = "".join(traceback.format_exception(error)) + repr(error) + error.detail
    for word in (CANARY, "INSERT", "postgresql://"):
        assert word not in printed


# --- PostgreSQL ----------------------------------------------------------------------------------------------------


@pytest.fixture
def private_url(private_postgres: PostgresServer) -> str:
    return private_postgres.create_database().replace("postgres@", f"postgres:{CANARY}@")


@pytest.fixture
async def on_private_postgres(private_url: str) -> AsyncIterator[Database]:
    database = Database(private_url)
    await upgrade(database)
    yield database
    await database.close()


async def test_postgresql_stopped_is_unavailable_at_once_and_back_by_itself(on_private_postgres, private_postgres):
    database, user = on_private_postgres, a_user(password_hash=CANARY)
    private_postgres.stop("immediate")
    # The first try meets a connection of the pool that is dead, the second has to connect.
    for _ in range(2):
        assert_tells_nothing(await unavailable(add(database, user)))
    await unavailable(database.ping())
    private_postgres.start()
    await database.ping()
    await add(database, user)


@pytest.mark.parametrize("stopped_before", ["statement", "commit"])
async def test_postgresql_stopped_inside_a_transaction_commits_nothing(
    on_private_postgres, private_postgres, stopped_before
):
    database, first, second = on_private_postgres, a_user(), a_user(password_hash=CANARY)

    async def sign_up() -> None:
        async with writing(database) as tx:
            await tx.users.add(first)
            if stopped_before == "statement":
                private_postgres.stop("immediate")
            await tx.users.add(second)
            if stopped_before == "commit":
                private_postgres.stop("immediate")

    assert_tells_nothing(await unavailable(sign_up()))
    private_postgres.start()
    async with reading(database) as tx:
        assert await tx.users.page(after="", limit=10) == []


async def test_a_restart_that_nobody_noticed_costs_one_answer_at_most(on_private_postgres, private_postgres):
    database = on_private_postgres
    async with contextlib.AsyncExitStack() as pool:
        for _ in range(connect.POOL_SIZE):
            tx = await pool.enter_async_context(reading(database))
            await tx.now_us()
    private_postgres.stop("fast")
    private_postgres.start()
    with contextlib.suppress(StorageUnavailable):
        await database.ping()
    for _ in range(connect.POOL_SIZE):
        await database.ping()


async def test_postgresql_that_turns_a_connection_away_is_unavailable(postgres, postgres_url):
    postgres.execute("DROP ROLE IF EXISTS turned_away")
    postgres.execute("CREATE ROLE turned_away LOGIN CONNECTION LIMIT 0")
    for url in (
        postgres_url.replace("postgres@", f"turned_away:{CANARY}@"),  # as a server that has too many connections
        postgres_url.replace("postgres@", f"postgres:{CANARY}@") + "_missing",
    ):
        database = Database(url)
        assert_tells_nothing(await unavailable(database.ping()))
        await database.close()
    postgres.execute("DROP ROLE turned_away")


@only_postgresql
async def test_a_statement_that_waits_too_long_is_given_up(database, database_url, owner):
    async with reading(database) as tx:
        now = await tx.now_us()
    session = await stored_session(database, owner, now=now, handed_out_at_us=now - HOUR)
    impatient = Database(database_url, statement_timeout_ms=100)

    async def refresh() -> object:
        return await impatient.rotate(a_refresh(session.id), lambda _: None)

    async with bare(database) as other:
        await other.execute(text("SELECT 1 FROM sessions FOR UPDATE"))
        assert_tells_nothing(await unavailable(refresh()))
    assert await found(database, session) == session
    assert await refresh() is not None
    await impatient.close()


async def test_more_at_once_than_connections_wait_and_then_give_up(database, monkeypatch, database_url):
    """Those who wait are answered; nobody waits for ever."""
    monkeypatch.setattr(connect, "POOL_WAIT_S", 0.1)
    small = Database(database_url)
    async with contextlib.AsyncExitStack() as pool:
        for _ in range(1 if small.is_sqlite else connect.POOL_SIZE):
            await pool.enter_async_context(writing(small))
        assert "no free" in (await unavailable(add(small, a_user()))).detail
    await stored_user(small)
    await small.close()


# --- both ----------------------------------------------------------------------------------------------------------


async def test_a_value_that_the_database_refuses_is_not_quoted(database, owner):
    """PostgreSQL's own text of the error quotes the whole row, SQLAlchemy's the statement."""
    for refused in ({"email": None}, {"id": owner.id}):
        assert_tells_nothing(await unavailable(add(database, a_user(password_hash=CANARY, **refused))))
    await stored_user(database)


@only_postgresql
async def test_a_value_that_the_driver_refuses_is_not_quoted(database):
    for refused in (CANARY + "\0", CANARY.encode()):
        assert_tells_nothing(await unavailable(add(database, a_user(password_hash=refused))))
    await stored_user(database)


# --- SQLite --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked_by_another(database_url: str) -> Iterator[None]:
    other = sqlite3.connect(database_url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield
    other.execute("ROLLBACK")
    other.close()


@only_sqlite
async def test_sqlite_locked_by_another_process_is_unavailable_until_it_lets_go(database, database_url, owner):
    with locked_by_another(database_url):
        assert_tells_nothing(await unavailable(add(database, a_user(password_hash=CANARY))))
        async with reading(database) as tx:
            assert await tx.users.by_id(owner.id) == owner
    await stored_user(database)


@only_sqlite
async def test_a_short_lock_is_waited_for(database, database_url):
    with locked_by_another(database_url):
        waiting = asyncio.create_task(stored_user(database))
        await asyncio.sleep(0.1)
    await waiting


@pytest.mark.parametrize("name", ["{folder}/missing/x.db", "{folder}", "/proc/x.db", "{folder}/no-database"])
async def test_a_path_where_no_database_can_be_is_unavailable(tmp_path: Path, name):
    """A folder that is not there, one that is no file, one that not even root can write, and another kind of file."""
    (tmp_path / "no-database").write_text(CANARY * 1000)
    database = Database(f"sqlite:///{name.format(folder=tmp_path)}")
    for _ in range(2):
        assert_tells_nothing(await unavailable(upgrade(database)))
        assert_tells_nothing(await unavailable(database.ping()))
    await database.close()


@only_sqlite
async def test_a_full_disk_refuses_writes_keeps_the_rest_and_recovers(database, owner):
    async def limit_pages(pages: str) -> None:
        async with bare(database) as connection:  # the only one that writes
            await connection.execute(text(f"PRAGMA max_page_count = {pages}"))

    await limit_pages("1")  # no less than there are
    big = a_user(password_hash=CANARY * 10_000)
    for _ in range(3):
        assert_tells_nothing(await unavailable(add(database, big)))
    async with reading(database) as tx:
        assert await tx.users.page(after="", limit=10) == [owner]
    await limit_pages("1000000")
    await add(database, big)
    await assert_whole(database)


async def assert_whole(database: Database) -> None:
    async with bare(database) as connection:
        assert (await connection.execute(text("PRAGMA integrity_check"))).scalar_one() == "ok"


# --- kill -9 -------------------------------------------------------------------------------------------------------

WRITER = """
import asyncio, sys
from uuid import uuid4
from sekisho.storage.engine import Database

async def write(database):
    while True:
        session_id = uuid4()
        async with writing(database) as tx:
            await tx.revocations.append(session_id, lapses_at_us=0)
        print(session_id, flush=True)  # the acknowledgement

async def main():
    database = Database(sys.argv[1])
    await asyncio.gather(*(write(database) for _ in range(4)))

asyncio.run(main())
"""


def acknowledged_by_a_writer_that_is_killed(url: str, *, after: int) -> set[UUID]:
    with subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(after)]
        writer.kill()
        lines += writer.stdout  # what it still got out
    return {UUID(line.strip()) for line in lines if line.endswith("\n")}


@only_sqlite
async def test_what_a_killed_process_acknowledged_is_in_sqlite(database, database_url):
    for _ in range(2):
        acknowledged = acknowledged_by_a_writer_that_is_killed(database_url, after=50)
        assert acknowledged <= set(await revoked(database))
        await assert_whole(database)
    ids = [entry.id for entry in await entries(database)]
    assert ids == list(range(1, len(ids) + 1)), "nothing half written, nothing skipped"


async def test_what_a_killed_process_acknowledged_survives_a_crash_of_postgresql(
    on_private_postgres, private_postgres, private_url
):
    database = on_private_postgres
    acknowledged = acknowledged_by_a_writer_that_is_killed(private_url, after=100)
    private_postgres.stop("immediate")
    private_postgres.start()
    with contextlib.suppress(StorageUnavailable):
        await database.ping()
    assert acknowledged <= set(await revoked(database))


@contextlib.contextmanager
def standing_still(postgres: PostgresServer) -> Iterator[None]:
    postmaster = psutil.Process(postgres._process.pid)
    family = [postmaster, *postmaster.children(recursive=True)]
    for process in family:
        process.suspend()
    try:
        yield
    finally:
        for process in family:
            process.resume()


@pytest.mark.anyio
async def test_a_postgresql_that_stands_still_is_given_up(private_postgres) -> None:
    """Its own statement_timeout cannot help; the wait has an end on this side."""
    database = Database(private_postgres.create_database())
    await database.ping()
    with standing_still(private_postgres):
        async with asyncio.timeout(30):  # not a measure: without a limit of ours it would never end
            with pytest.raises(StorageUnavailable):
                await database.ping()
    await database.ping()
    await database.close()


def a_refresh(session_id: UUID) -> Rotate:
    return Rotate(
        session_id=session_id,
        presented_generation=0,
        presented_branch=0,
        window_us=SECOND,
        idle_us=HOUR,
        address="",
        user_agent="",
    )


async def assert_writes_last(database: Database, postgres: Postgres) -> None:
    """What is acknowledged is there for others too: no connection was left inside a transaction of somebody before."""
    kept = []
    for _ in range(2 * connect.POOL_SIZE):
        kept.append(uuid4())
        await database.write(lambda tx: tx.revocations.append(kept[-1], lapses_at_us=0))
    name = database.url.database
    assert name is not None
    found = postgres.execute("SELECT session_id FROM revocations", database=name).split()
    assert {UUID(one) for one in found} >= set(kept)
    idle = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'"
    assert postgres.execute(idle, database=name) == "0"


@pytest.mark.anyio
async def test_a_refresh_given_up_while_postgresql_stood_still_spoils_no_connection(private_postgres) -> None:
    """Its BEGIN arrives late. Whoever wrote on that connection next would be inside of it, and lose everything."""
    database = Database(private_postgres.create_database())
    await upgrade(database)
    await database.rotate(a_refresh(uuid4()), lambda _: None)
    with standing_still(private_postgres):
        at_once = (database.rotate(a_refresh(uuid4()), lambda _: None) for _ in range(3))
        given_up = await asyncio.gather(*at_once, return_exceptions=True)
    assert all(isinstance(error, StorageUnavailable) for error in given_up)
    await assert_writes_last(database, private_postgres)
    await database.close()


@only_postgresql
async def test_a_refresh_that_is_cancelled_anywhere_spoils_no_connection(database, postgres) -> None:
    # asyncpg leaves a future behind that nobody asks, when its connection is dropped in the middle of a statement.
    asyncio.get_running_loop().set_exception_handler(None)
    await database.rotate(a_refresh(uuid4()), lambda _: None)
    for steps in range(12):
        refresh = asyncio.create_task(database.rotate(a_refresh(uuid4()), lambda _: None))
        for _ in range(steps):
            await asyncio.sleep(0)
        refresh.cancel()
        await asyncio.wait([refresh])
    await assert_writes_last(database, postgres)


# --- what stands after the ? of the URL ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer"])
async def test_sslmode_reaches_the_driver(private_url, mode) -> None:
    database = Database(f"{private_url}?sslmode={mode}")
    await database.ping()
    await database.close()


async def test_sslmode_require_is_refused_by_a_server_without_tls(private_url) -> None:
    database = Database(f"{private_url}?sslmode=require")
    error = await unavailable(database.ping())
    assert "SSL" in error.detail
    assert_tells_nothing(error)
    await database.close()


@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
async def test_the_strict_modes_without_a_certificate_are_no_traceback(
    private_url, mode, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    database = Database(f"{private_url}?sslmode={mode}")
    assert_tells_nothing(await unavailable(database.ping()))
    await database.close()


@pytest.mark.parametrize(
    ("url", "named"),
    [
        (f"postgresql://h/db?channel_binding={CANARY}", "'channel_binding'"),
        (
            f"postgresql://h/db?sslmode=require&prepared_statement_cache_size={CANARY}",
            "'prepared_statement_cache_size'",
        ),
        (f"postgresql://h/db?sslmode={CANARY}", "sslmode must be one of disable, "),
        ("postgresql://h/db?sslmode=require&sslmode=disable", "sslmode must be one of disable, "),
        ("postgresql://h/db?sslmode=require&ssl=disable", "both ssl and sslmode"),
        (f"sqlite:///a.db?mode={CANARY}", "'mode'"),
        ("sqlite:///a.db?sslmode=require", "'sslmode'"),
    ],
)
def test_what_cannot_stand_in_the_url_is_refused_by_name(url, named) -> None:
    with pytest.raises(StartRefused) as caught:
        Database(url)
    assert caught.value.detail.startswith("SEKISHO_DATABASE_URL")
    assert named in caught.value.detail
    assert CANARY not in caught.value.detail
    assert len(caught.value.detail.splitlines()) == 1
