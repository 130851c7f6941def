"""Upgrades give exactly what the schema says, all of it or nothing, however often and however many at once."""

import asyncio
import os
import stat
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from alembic import op
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect, text

from sekisho.storage import migrate
from sekisho.storage.engine import _SQLITE_READERS, Database
from sekisho.storage.migrate import current, head, is_behind, upgrade
from sekisho.storage.schema import metadata
from step_by_step import bare, reading, writing
from test_storage import database, only_sqlite, owner, stored_session

__all__ = ["database", "owner"]  # fixtures

pytestmark = pytest.mark.anyio


@pytest.fixture
async def empty(database_url):
    """A database without tables."""
    database = Database(database_url)
    yield database
    await database.close()


async def run(database: Database, function, *args):
    return await database.migrate(lambda connection: function(connection, *args))


async def rows(database: Database, sql: str) -> list[tuple]:
    async with bare(database) as connection:
        return [tuple(row) for row in await connection.execute(text(sql))]


def table_names(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names())


def difference(connection: Connection) -> list:
    return compare_metadata(MigrationContext.configure(connection), metadata)


def replace_schema(connection: Connection) -> None:
    metadata.drop_all(connection)
    metadata.create_all(connection)


async def test_an_upgrade_from_nothing_gives_the_schema(empty):
    assert await current(empty) is None
    await upgrade(empty)
    assert await current(empty) == head()
    assert await run(empty, table_names) == {*metadata.tables, "alembic_version"}
    assert await run(empty, difference) == []


async def test_only_a_revision_known_and_old_or_none_is_behind(empty, monkeypatch):
    assert await is_behind(empty)
    await upgrade(empty)
    assert not await is_behind(empty)
    with monkeypatch.context() as code_of_tomorrow:
        code_of_tomorrow.setattr(migrate, "head", lambda: "of tomorrow")
        assert await is_behind(empty)
    async with bare(empty) as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = 'of tomorrow'"))
    assert not await is_behind(empty), "in a rolling upgrade old nodes go on"


# What the comparison above does not look at: AUTOINCREMENT, the conditions of indexes, names of constraints.
SQLITE_TEXT = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"
POSTGRESQL_TEXT = """
    SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    UNION ALL SELECT table_name || '.' || column_name, concat_ws(' ', data_type, is_nullable, column_default)
              FROM information_schema.columns WHERE table_schema = 'public'
    ORDER BY 1, 2
"""


async def test_the_databases_own_text_of_the_schema_is_the_same_too(database):
    sql = SQLITE_TEXT if database.is_sqlite else POSTGRESQL_TEXT
    by_upgrade = await rows(database, sql)
    assert len(by_upgrade) > len(metadata.tables)
    await run(database, replace_schema)
    by_metadata = await rows(database, sql)
    assert normalised(by_upgrade) == normalised(by_metadata)


def normalised(texts: list[tuple]) -> list[tuple]:
    """Without layout."""
    return [(name, "".join(sql.split())) for name, sql in texts]


async def test_a_second_upgrade_changes_nothing(database, owner):
    session = await stored_session(database, owner)
    await upgrade(database)
    async with reading(database) as tx:
        assert await tx.sessions.find(session.id) == session
    assert await current(database) == head()


async def test_three_upgrades_at_once_give_the_schema(database_url):
    nodes = [Database(database_url) for _ in range(3)]
    await asyncio.gather(*(upgrade(node) for node in nodes))
    assert await run(nodes[0], difference) == []
    assert await rows(nodes[0], "SELECT version_num FROM alembic_version") == [(head(),)]
    for node in nodes:
        await node.close()


async def test_an_upgrade_that_fails_in_the_middle_leaves_nothing(empty, monkeypatch):
    create_table, created = op.create_table, []

    def only_one(name: str, *args, **kwargs):
        if created:
            raise ZeroDivisionError
        created.append(name)
        return create_table(name, *args, **kwargs)

    monkeypatch.setattr(op, "create_table", only_one)
    with pytest.raises(ZeroDivisionError):
        await upgrade(empty)
    assert created
    assert await run(empty, table_names) == set()
    assert await current(empty) is None

    monkeypatch.undo()
    await upgrade(empty)
    assert await run(empty, difference) == []


@only_sqlite
async def test_every_connection_of_sqlite_writes_through_to_the_disk(database):
    expected = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}  # 2 is FULL
    async with AsyncExitStack() as open_at_once:
        writer = await open_at_once.enter_async_context(writing(database))
        readers = [await open_at_once.enter_async_context(reading(database)) for _ in range(_SQLITE_READERS)]
        for transaction in (writer, *readers):
            for name, value in expected.items():
                answer = await transaction._connection.execute(text(f"PRAGMA {name}"))
                assert answer.scalar_one() == value


@only_sqlite
async def test_the_files_of_sqlite_are_nobody_elses(database_url):
    folder = Path(database_url.removeprefix("sqlite:///")).parent
    before = os.umask(0)
    try:
        database = Database(database_url)
        await upgrade(database)
        modes = {path.name.removeprefix("sekisho.db"): stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
        await database.close()
    finally:
        os.umask(before)
    assert modes == {"": 0o600, "-wal": 0o600, "-shm": 0o600}
