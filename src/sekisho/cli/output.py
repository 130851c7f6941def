"""Tables for people, JSON for programs; and the server's parts for one command."""

import asyncio
import json
import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from sekisho.errors import InputError, StartRefused
from sekisho.settings import Settings
from sekisho.storage.engine import Database
from sekisho.storage.rows import MICROSECONDS
from sekisho.web.app import Sekisho

T = TypeVar("T")

MASK: Final = "***"
_PLACE: Final = re.compile(r"(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])?(?::[0-9]{1,5})?(?:/[A-Za-z0-9_./-]*)?", re.ASCII)
_HARMLESS: Final = re.compile(r"(?:(?:ssl|sslmode)=[a-z-]+)?", re.ASCII)

AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def with_server_parts(work: Callable[[Sekisho], Awaitable[T]]) -> T:
    """Runs ``work`` with the flows on the configured database, whose schema is looked at first.

    Raises ``StartRefused`` where there is no database.
    """

    async def run() -> T:
        sekisho = Sekisho(Settings())
        try:
            _expect_file(sekisho.database)
            await sekisho.check_schema()
            return await work(sekisho)
        finally:
            await sekisho.close()

    return asyncio.run(run())


def there_is_a_database() -> bool:
    """False where SQLite's file has not been made yet."""
    return missing_file(Database(Settings().database_url.get_secret_value())) is None


def _expect_file(database: Database) -> None:
    """SQLite would make an empty one, and in a wrong folder the answer would be that there are no accounts."""
    if (path := missing_file(database)) is not None:
        raise StartRefused(f"there is no database at {path}: type sekisho serve or sekisho db upgrade first")


def missing_file(database: Database) -> str | None:
    """SQLite's file, where it has not been made yet."""
    path = database.url.database
    return path if database.is_sqlite and path and not Path(path).exists() else None


def masked_url(url: str) -> str:
    """Of a database's or Redis's URL what can be shown: its kind and, where it can be told from a password, its place.

    Readers of URLs disagree about an @, / or ? that nobody has escaped: where one takes something for the host, another
    takes it for a piece of the password. All of it is masked then.
    """
    kind, _, rest = url.partition("://")
    if kind == "sqlite":
        return url.partition("?")[0]
    user, _, place = rest.rpartition("@")
    where, question, options = place.partition("?")
    if re.search(r"[/?#]", user) or not _PLACE.fullmatch(where):
        return f"{kind}://{MASK}"
    if not _HARMLESS.fullmatch(options):
        options = MASK
    return f"{kind}://{MASK + '@' if user else ''}{where}{question}{options}"


def line_of_input(what: str) -> str:
    """The first line of standard input. Raises ``InputError``."""
    try:
        line = sys.stdin.readline()
        line.encode()  # in the C locale Python smuggles undecodable bytes through as surrogates
    except UnicodeError:
        raise InputError(what, f"the {what} on standard input is not text in UTF-8") from None
    return line


def printable(value: object) -> str:
    """Tokens and User-Agent headers are written by strangers, and a terminal obeys control characters (ANSI)."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(value))


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
        table.add_row(*["" if value is None else printable(value) for value in row.values()])
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a pipe has no width; rich would cut ids at 80
    console.print(table, markup=False)


def show_fields(fields: dict[str, Any], *, as_json: bool) -> None:
    """One thing: a line for each of its values."""
    if as_json:
        typer.echo(json.dumps(fields, indent=2))
        return
    lines = {printable(name).replace("_", " "): printable(value) for name, value in fields.items()}
    width = max(len(name) for name in lines)
    for name, value in lines.items():
        typer.echo(f"{name:{width}}  {value}")


def time_text(seconds: int) -> str:
    """NumericDate as people read it, in UTC."""
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def time_text_us(time_us: int | None) -> str | None:
    """The same from microseconds."""
    return None if time_us is None else time_text(time_us // MICROSECONDS)
