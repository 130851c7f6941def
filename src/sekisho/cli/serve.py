"""``sekisho serve``."""

import asyncio
import os
from functools import partial
from typing import Annotated, Final

import typer

from sekisho.errors import StartRefused, StorageUnavailable
from sekisho.settings import Settings
from sekisho.web import server
from sekisho.web.app import Sekisho

DEFAULT_PORT: Final = 8400

_ACCOUNT: Final = """'{"email":"alice@example.com","password":"a gate on the old road"}'"""


def _from_reply(member: str) -> str:
    """Shell that picks a member out of the login's reply in $T."""
    return rf"""$(echo "$T" | sed 's/.*"{member}":"\([^"]*\)".*/\1/')"""


def _welcome(at: str, issuer: str, *, state: str) -> str:
    bearer = f'-H "Authorization: Bearer {_from_reply("access_token")}"'
    refresh_token = rf'"{{\"refresh_token\":\"{_from_reply("refresh_token")}\"}}"'
    return f"""\
Sekisho is {state} on {at}  (issuer {issuer})
The API, to read and to try: {at}/docs

The flows, to paste into another shell:
  curl -sw '\\n' --json {_ACCOUNT} {at}/signup
  T=$(curl -s --json {_ACCOUNT} {at}/login); echo "$T"
  curl -sw '\\n' {bearer} {at}/me
  curl -sw '\\n' --json {refresh_token} {at}/refresh
  curl -si -X POST {bearer} {at}/logout

Ctrl-C stops it.
"""


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = DEFAULT_PORT,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes. More than one needs PostgreSQL.")] = 1,
) -> None:
    """Run the server.

    With nothing configured it keeps accounts in ./sekisho.db and its keys in ./sekisho-keys.json, and makes both
    when they are not there.
    """
    if port != DEFAULT_PORT:
        os.environ.setdefault("SEKISHO_ISSUER", f"http://127.0.0.1:{port}")
    settings = Settings()
    if not server.port_is_free(host, port):
        raise StartRefused(f"cannot listen on {host}:{port}: it is in use, or not an address of this machine (--port)")
    asyncio.run(_try_out(settings, workers))
    shown_host = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104 - compared, not listened on
    at = f"http://{f'[{shown_host}]' if ':' in shown_host else shown_host}:{port}"
    if workers > 1:  # each of them comes up when it does
        typer.echo(_welcome(at, settings.issuer, state="starting"))
    on_listening = partial(typer.echo, _welcome(at, settings.issuer, state="listening"))
    server.run(host=host, port=port, workers=workers, on_listening=on_listening)


async def _try_out(settings: Settings, workers: int) -> None:
    """What can stop the start does so here, in one line, and not in a worker's traceback."""
    sekisho = Sekisho(settings)
    try:
        if workers > 1 and sekisho.database.is_sqlite:
            raise StartRefused("SQLite takes one writer: use --workers 1, or set SEKISHO_DATABASE_URL to PostgreSQL")
        await sekisho.check()
    except StorageUnavailable as error:
        raise StartRefused(f"SEKISHO_DATABASE_URL: {error.detail}") from None
    finally:
        await sekisho.close()
