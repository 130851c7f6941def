"""The commands, put together."""

import typer

from sekisho.cli import database, doctor, keys, serve, sessions, settings, token, users, verifiers

app = typer.Typer(
    help="Sekisho: accounts, sessions and tokens for Python services. Settings come from SEKISHO_… variables.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # its tracebacks show local variables, and so keys and passwords
    add_completion=False,
    rich_markup_mode="rich",
)
app.command("serve")(serve.serve)
app.command("doctor")(doctor.doctor)
app.command("settings")(settings.settings)
app.add_typer(keys.app, name="keys")
app.add_typer(database.app, name="db")
app.add_typer(users.app, name="users")
app.add_typer(sessions.app, name="sessions")
app.add_typer(verifiers.app, name="verifiers")
app.add_typer(token.app, name="token")
