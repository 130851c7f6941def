"""``sekisho sessions``."""

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

import typer

from sekisho.cli.output import AsJson, printable, show_fields, show_rows, time_text_us, with_server_parts
from sekisho.cli.story import fields_of, told
from sekisho.cli.users import existing_user
from sekisho.services.sessions import Story
from sekisho.storage.rows import Session
from sekisho.web.app import Sekisho

app = typer.Typer(help="The sign-ins.", no_args_is_help=True)

SessionId = Annotated[UUID, typer.Argument(help="The session's id, as sekisho sessions list shows it.")]


@app.command("list")
def list_sessions(
    email: Annotated[str, typer.Argument(help="The account's e-mail address.")], as_json: AsJson = False
) -> None:
    """Show an account's live sessions, the one used last first."""

    async def work(sekisho: Sekisho) -> Sequence[Session]:
        user = await existing_user(sekisho, email)
        return await sekisho.flows.sessions.of_user(user.id)

    rows = [
        {
            "id": str(session.id),
            "kind": session.kind,
            "created_at": time_text_us(session.created_at_us),
            "last_used_at": time_text_us(session.handed_out_at_us),
            "address": session.last_address,
            "user_agent": session.last_user_agent,
        }
        for session in with_server_parts(work)
    ]
    show_rows(rows, as_json=as_json, empty="No live sessions.")


@app.command()
def show(session_id: SessionId, as_json: AsJson = False) -> None:
    """Tell the story of a session: when it began, how it went on, why it ended."""

    async def work(sekisho: Sekisho) -> Story:
        return await sekisho.flows.sessions.story(session_id)

    story = with_server_parts(work)
    if as_json:
        show_fields(fields_of(story), as_json=True)
    else:
        for line in told(story):
            typer.echo(printable(line))


@app.command()
def end(session_id: SessionId) -> None:
    """End a session. Its access tokens are refused everywhere within a second."""

    async def work(sekisho: Sekisho) -> None:
        await sekisho.flows.sessions.end_by_operator(session_id)

    with_server_parts(work)
    typer.echo(f"Ended session {session_id}.")
