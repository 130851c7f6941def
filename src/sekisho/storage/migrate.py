"""Bringing a database's schema to what this version needs, and asking whether it is there."""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from sekisho.storage.engine import Database

_FOLDER: Final = Path(__file__).parent / "migrations"
_ADVISORY_LOCK: Final = 0x53454B49  # "SEKI": two upgrades at once would both create the tables


def head() -> str:
    """The revision that this version of the code needs."""
    revision = ScriptDirectory(str(_FOLDER)).get_current_head()
    assert revision is not None, "the package carries no migrations"
    return revision


async def current(database: Database) -> str | None:
    """The revision that the database has; None for an empty one. Raises ``StorageUnavailable``."""
    return await database.migrate(_current)


async def is_behind(database: Database) -> bool:
    """Whether revisions are missing.

    A revision that this code has never heard of comes from a newer version, which has only added to what this one
    needs: during a rolling upgrade both run. Raises ``StorageUnavailable``.
    """
    revision = await current(database)
    known = {script.revision for script in ScriptDirectory(str(_FOLDER)).walk_revisions()}
    return revision is None or (revision in known and revision != head())


async def upgrade(database: Database) -> None:
    """Runs what is missing, in one transaction: afterwards all of it is there, or none. Raises ``StorageUnavailable``.

    Safe to call from several nodes at once.
    """
    await database.migrate(_upgrade)


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
