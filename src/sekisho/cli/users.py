"""``sekisho users``."""

import sys
from typing import Annotated, Final

import typer

from sekisho.cli.output import AsJson, line_of_input, show_rows, time_text_us, with_server_parts
from sekisho.errors import InputError
from sekisho.storage.rows import Ended, User
from sekisho.web.app import Sekisho

_PAGE: Final = 500

app = typer.Typer(help="The accounts.", no_args_is_help=True)


@app.command()
def create(
    email: Annotated[str, typer.Argument(help="The account's e-mail address.")],
    role: Annotated[list[str] | None, typer.Option(help="A role for its access tokens; may be given again.")] = None,
) -> None:
    """Create an account. The password is asked for, or read from standard input; never an argument."""
    password = _read_password()

    async def work(sekisho: Sekisho) -> User:
        return await sekisho.flows.sign_up.by_operator(email=email, password=password, roles=role or ())

    user = with_server_parts(work)
    typer.echo(f"Created {user.email} ({user.id}).")


@app.command("list")
def list_users(as_json: AsJson = False) -> None:
    """Show every account."""

    async def work(sekisho: Sekisho) -> list[User]:
        users: list[User] = []
        while page := await sekisho.flows.accounts.page(after=users[-1].email_canonical if users else "", limit=_PAGE):
            users += page
        return users

    rows = [
        {
            "id": str(user.id),
            "email": user.email,
            "roles": " ".join(user.roles),
            "created_at": time_text_us(user.created_at_us),
            "disabled_at": time_text_us(user.disabled_at_us),
        }
        for user in with_server_parts(work)
    ]
    show_rows(rows, as_json=as_json, empty="No accounts yet.")


@app.command()
def disable(email: Annotated[str, typer.Argument(help="The account's e-mail address.")]) -> None:
    """Let an account sign in no more, and end its sessions at once."""

    async def work(sekisho: Sekisho) -> int:
        user = await existing_user(sekisho, email)
        ended: list[Ended] = list(await sekisho.flows.accounts.disable(user.id))
        return len(ended)

    typer.echo(f"Disabled {email}; {with_server_parts(work)} sessions ended.")


async def existing_user(sekisho: Sekisho, email: str) -> User:
    """The account with this address. Raises ``InputError``."""
    user = await sekisho.flows.accounts.find(email)
    if user is None:
        raise InputError("email", f"there is no account with the address {email}")
    return user


def _read_password() -> str:
    if sys.stdin.isatty():
        password: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
        return password
    return line_of_input("password").rstrip("\r\n")
