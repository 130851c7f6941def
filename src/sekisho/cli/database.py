"""``sekisho db``."""

import asyncio

import typer

from sekisho.settings import Settings
from sekisho.storage import migrate
from sekisho.storage.engine import Database

app = typer.Typer(help="The database's schema.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps ``upgrade`` a subcommand although it is the only one."""


@app.command()
def upgrade() -> None:
    """Bring the schema to what this version needs. All of it happens, or nothing."""

    async def run() -> tuple[str | None, str | None]:
        database = Database(Settings().database_url.get_secret_value())
        try:
            before = await migrate.current(database)
            await migrate.upgrade(database)
            return before, await migrate.current(database)
        finally:
            await database.close()

    before, after = asyncio.run(run())
    typer.echo(f"The schema is at {after} already." if before == after else f"The schema is now at {after}.")
