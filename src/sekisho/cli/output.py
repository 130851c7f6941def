"""Tables for people, JSON for programs; and the server's parts for one command."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, TypeAlias, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from sekisho.settings import Settings
from sekisho.storage.ports import MICROSECONDS
from sekisho.web.app import Sekisho

T = TypeVar("T")

AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def with_server_parts(work: Callable[[Sekisho], Awaitable[T]]) -> T:
    """Runs ``work`` with the flows on the configured database, whose schema is looked at first."""

    async def run() -> T:
        sekisho = Sekisho(Settings())
        try:
            await sekisho.check_schema()
            return await work(sekisho)
        finally:
            await sekisho.close()

    return asyncio.run(run())


def show_rows(rows: Sequence[dict[str, Any]], *, as_json: bool, empty: str) -> None:
    """A table, or a JSON list of objects with the same names."""
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        typer.echo(empty)
        return
    table = Table(*[name.replace("_", " ") for name in rows[0]])
    for row in rows:
        table.add_row(*["" if value is None else str(value) for value in row.values()])
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a pipe has no width; rich would cut ids at 80
    console.print(table, markup=False)


def show_fields(fields: dict[str, Any], *, as_json: bool) -> None:
    """One thing: a line for each of its values."""
    if as_json:
        typer.echo(json.dumps(fields, indent=2))
        return
    width = max(len(name) for name in fields)
    for name, value in fields.items():
        typer.echo(f"{name.replace('_', ' '):{width}}  {value}")


def time_text(seconds: int) -> str:
    """NumericDate as people read it, in UTC."""
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def time_text_us(time_us: int | None) -> str | None:
    """The same from microseconds."""
    return None if time_us is None else time_text(time_us // MICROSECONDS)
