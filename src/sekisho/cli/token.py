"""``sekisho token``."""

import json
import logging
import sys
from typing import Any

import typer

from sekisho.cli.output import AsJson, line_of_input, show_fields, time_text
from sekisho.errors import KeyRefused, SekishoError, TokenClaimsInvalid, TokenMalformed
from sekisho.settings import Settings
from sekisho.sources import source_from
from sekisho.tokens import refresh
from sekisho.tokens.keyring import KeySet
from sekisho.tokens.refresh import RefreshKeys
from sekisho.verify import Verifier
from sekisho.web.app import LEEWAY_S
from sekisho.wire import WireError, b64url_decode, json_object

app = typer.Typer(help="Tokens, looked at from inside.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps ``inspect`` a subcommand although it is the only one."""


@app.command()
def inspect(as_json: AsJson = False) -> None:
    """Show what a token says and whether the configured keys accept it.

    The token is read from standard input, not from an argument: arguments stand in the shell's history and in the
    list of processes. Whether its session has ended is the database's to say: sekisho sessions show.
    """
    if sys.stdin.isatty():
        typer.echo("Paste the token, then Enter:", err=True)
    text = line_of_input("token").strip()
    fields = _refresh_token(text) if text.startswith(refresh.PREFIX) else _access_token(text)
    show_fields(fields, as_json=as_json)


def _access_token(text: str) -> dict[str, Any]:
    parts = text.split(".")
    try:
        header, payload = (json_object(b64url_decode(part)) for part in parts[:2])
    except (WireError, ValueError):
        raise TokenMalformed("this is neither an access token nor a refresh token") from None
    fields: dict[str, Any] = {"kind": "access token", "header": json.dumps(header)}
    for name, value in payload.items():
        is_time = name in {"exp", "iat", "nbf"} and isinstance(value, int)
        fields[name] = _with_date(value) if is_time else value
    return {**fields, "verdict": _verdict(text, issuer=payload.get("iss"))}


def _with_date(seconds: int) -> str:
    try:
        return f"{seconds} ({time_text(seconds)})"
    except (ValueError, OverflowError, OSError):  # past the year 9999
        return str(seconds)


def _verdict(text: str, *, issuer: object) -> str:
    settings = Settings()
    log = logging.getLogger("sekisho.verify")
    log.disabled = True  # the verdict says it
    try:
        verifier = Verifier(
            issuer=settings.issuer,
            audience=settings.audience,
            keys=_key_set(settings).keyring,
            allow_shared_secret=True,
            leeway_s=LEEWAY_S,
        )
        verifier.verify(text)
    except SekishoError as error:
        foreign = isinstance(error, TokenClaimsInvalid) and issuer != settings.issuer
        detail = f"{error.detail}; SEKISHO_ISSUER is {settings.issuer}" if foreign else error.detail
        return f"refused: {error.code}" + (f" ({detail})" if detail else "")
    finally:
        log.disabled = False
    return "good, unless its session has ended"


def _refresh_token(text: str) -> dict[str, Any]:
    key_set = _key_set(Settings())
    presented = RefreshKeys(key_set.active("refresh"), key_set.used("refresh")).read(text)
    return {
        "kind": "refresh token",
        "session": str(presented.session_id),
        "generation": presented.position.generation,
        "branch": presented.position.branch,
        "kid": presented.kid,
        "verdict": "its tag holds: one of our keys made it; the session's row decides the rest",
    }


def _key_set(settings: Settings) -> KeySet:
    source = source_from(settings.keys)
    document = source.load()
    if document is None:
        raise KeyRefused(f"there are no keys in {source.name}")
    return KeySet.from_json(document)
