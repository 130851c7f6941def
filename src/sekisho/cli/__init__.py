"""The command line: ``sekisho --help``."""

import sys

import typer

from sekisho.cli import database, keys, serve, sessions, token, users
from sekisho.errors import InputError, SekishoError, StartRefused

app = typer.Typer(
    help="Sekisho: accounts, sessions and tokens for Python services. Settings come from SEKISHO_… variables.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # its tracebacks show local variables, and so keys and passwords
    add_completion=False,
    rich_markup_mode="rich",
)
app.command("serve")(serve.serve)
app.add_typer(keys.app, name="keys")
app.add_typer(database.app, name="db")
app.add_typer(users.app, name="users")
app.add_typer(sessions.app, name="sessions")
app.add_typer(token.app, name="token")


def main() -> None:
    """Runs the command. Exit code 0: done; 1: refused or failed, with one line why; 2: wrong usage or settings."""
    try:
        app()
    except SekishoError as error:
        sys.stderr.write(f"sekisho: {_line(error)}\n")
        sys.exit(2 if isinstance(error, StartRefused) else 1)


def _line(error: SekishoError) -> str:
    # What is wrong with an input stands in its class; the detail, where there is one, is a remark on it.
    if isinstance(error, InputError) and type(error) is not InputError and error.detail:
        return f"{error.text_en} ({error.detail})"
    return error.detail or error.text_en
