"""``sekisho verifiers``."""

from collections.abc import Sequence
from typing import Annotated

import typer

from sekisho.cli.output import AsJson, show_rows, time_text_us, with_server_parts
from sekisho.storage.rows import VerifierRow
from sekisho.web.app import Sekisho

app = typer.Typer(help="The services that check tokens elsewhere, and their credentials.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The verifier's name: 1 to 64 of A-Z, a-z, 0-9, '.', '_', '-'.")]


@app.command()
def add(name: Name) -> None:
    """Make a credential for a service that follows the revocations. It is printed alone, and only this once."""

    async def work(sekisho: Sekisho) -> str:
        return await sekisho.verifiers.add(name)

    typer.echo(with_server_parts(work))
    typer.echo(
        f"The credential of {name}. It is not shown again: keep it where the service reads its secrets.", err=True
    )


@app.command("list")
def list_verifiers(as_json: AsJson = False) -> None:
    """Show who has a credential."""

    async def work(sekisho: Sekisho) -> Sequence[VerifierRow]:
        return await sekisho.verifiers.all()

    rows = [{"name": row.name, "created_at": time_text_us(row.created_at_us)} for row in with_server_parts(work)]
    show_rows(rows, as_json=as_json, empty="No verifiers.")


@app.command()
def remove(name: Name) -> None:
    """Take a credential back. A stream that is open with it ends within six minutes."""

    async def work(sekisho: Sekisho) -> None:
        await sekisho.verifiers.remove(name)

    with_server_parts(work)
    typer.echo(f"Removed {name}.")
