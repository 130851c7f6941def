"""``sekisho keys``: the key set in its source. No command prints key bytes."""

from math import ceil
from typing import Annotated, Final

import typer

from sekisho.cli.output import AsJson, show_rows, there_is_a_database, time_text, with_server_parts
from sekisho.errors import KeyRefused, StartRefused, StorageUnavailable
from sekisho.settings import Settings
from sekisho.sources import KeySource
from sekisho.tokens.algorithms import AlgorithmName
from sekisho.tokens.keyring import KeySet
from sekisho.tokens.keys import Key, Purpose
from sekisho.tokens.turnover import PUBLISHED_FIRST_S, turned
from sekisho.web.app import LEEWAY_S, Sekisho, key_source, keys_every_s
from sekisho.wire import now_s

_MARGIN_S: Final = 60

app = typer.Typer(help="The keys: make, show, rotate and retire them.", no_args_is_help=True)

ForPurpose = Annotated[Purpose, typer.Option(help="What the key is for.")]


@app.command()
def new(purpose: ForPurpose = "sign") -> None:
    """Make a key that is published but does not sign yet. Where there are no keys at all, make the first set."""
    settings, source = _source()
    document = source.load()
    if document is None:
        key_set = KeySet.generate(settings.signing_algorithm, now=now_s())
        source.store(key_set.to_json(), expected=None)
        typer.echo(f"Made a first set of {len(key_set.keys)} keys in {source.name}.")
        return
    key_set, key = KeySet.from_json(document).with_next(purpose, _algorithm(settings, purpose), now=now_s())
    source.store(key_set.to_json(), expected=document)
    typer.echo(f"Made {_named(key)}. It signs after: sekisho keys rotate --purpose {purpose}")


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """Show the keys: ids, algorithms, purposes and states, never the bytes."""
    *_, key_set = _loaded()
    rows = [
        {
            "kid": key.kid,
            "algorithm": key.alg,
            "purpose": key.purpose,
            "state": key.state,
            "created_at": time_text(key.created_at),
            "state_since": time_text(key.state_since),
        }
        for key in key_set.keys
    ]
    show_rows(rows, as_json=as_json, empty="No keys.")


@app.command()
def rotate(
    purpose: ForPurpose = "sign",
    now: Annotated[bool, typer.Option("--now", help="Do not wait until every verifier knows the new key.")] = False,
) -> None:
    """Let the next key sign, and publish another for the time after. Nobody is signed out.

    The first run only publishes a key; run it again ten minutes later, and from then on as often as you like (a
    weekly cron job, say): each run promotes the key that the run before has published.
    """
    settings, source, document, key_set = _loaded()
    turn = turned(key_set, purpose, _algorithm(settings, purpose), now=now_s(), at_once=now)
    source.store(turn.key_set.to_json(), expected=document)
    if turn.active is None:
        typer.echo(f"Published {_named(turn.waiting)}. Run this again in {PUBLISHED_FIRST_S // 60} min: then it signs.")
    else:
        within_s = ceil(keys_every_s(settings))
        typer.echo(f"From now on {_named(turn.active)} signs; running servers take it up within {within_s} s.")


@app.command()
def retire(
    kid: Annotated[str, typer.Argument(help="The key's id, as sekisho keys list shows it.")],
    now: Annotated[
        bool, typer.Option("--now", help="It leaked: at once, although it signs or tokens made with it are in use.")
    ] = False,
) -> None:
    """Stop accepting what a key has signed.

    With --now the next key signs in its place. A signing key's tokens are refused everywhere within a second, and every
    session goes on with its next refresh. Without a leaked refresh key everyone has to sign in again; without a leaked
    CSRF key open pages have to be loaded again.
    """
    settings, source, document, key_set = _loaded()
    key, time = key_set.find(kid), now_s()
    needed_until = key.state_since + life_s(settings, key.purpose)
    if key.state == "verify_only" and needed_until > time and not now:
        raise KeyRefused(
            f"tokens made with {_named(key)} may be in use until {time_text(needed_until)}: "
            "wait, or use --now if it leaked"
        )
    if key.state == "active" and now:
        # Whatever SEKISHO_SIGNING_ALGORITHM says here: the key that everybody knows already is the one to sign.
        successor = key_set.next(key.purpose) or key
        key_set = turned(key_set, key.purpose, successor.alg, now=time, at_once=True).key_set
    if key.state != "retired":
        source.store(key_set.retired(kid, now=time).to_json(), expected=document)
    if key.purpose == "sign":
        _announce(key)
    typer.echo(f"Retired {_named(key)}.")


def _announce(key: Key) -> None:
    """Verifiers elsewhere drop the key at once, whatever key set they still hold."""

    async def work(sekisho: Sekisho) -> None:
        await sekisho.withdraw_key(key.kid)

    if not there_is_a_database():
        return  # and so no server that anyone could follow
    try:
        with_server_parts(work)
    except (StorageUnavailable, StartRefused) as error:
        raise KeyRefused(
            f"{_named(key)} is retired in the key set, but verifiers elsewhere were not told "
            f"({error.detail}): run this command again"
        ) from None


def _source() -> tuple[Settings, KeySource]:
    settings = Settings()
    return settings, key_source(settings)


def _loaded() -> tuple[Settings, KeySource, bytes, KeySet]:
    settings, source = _source()
    document = source.load()
    if document is None:
        raise KeyRefused(f"there are no keys in {source.name}: type sekisho keys new")
    return settings, source, document, KeySet.from_json(document)


def _algorithm(settings: Settings, purpose: Purpose) -> AlgorithmName:
    return settings.signing_algorithm if purpose == "sign" else "HS256"


def life_s(settings: Settings, purpose: Purpose) -> int:
    """How long something made with a key of this purpose can be in use."""
    longest = settings.access_token_ttl_s if purpose == "sign" else settings.session_max_age_s
    return longest + 2 * LEEWAY_S + _MARGIN_S


def _named(key: Key) -> str:
    return f"{key.purpose} key {key.kid} ({key.alg})"
