"""The database, asked as the server would ask it."""

import asyncio
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from sekisho.cli.checks.finding import Finding, Level, looked
from sekisho.cli.output import masked_url, missing_file
from sekisho.errors import StartRefused, StorageUnavailable
from sekisho.storage import migrate
from sekisho.storage.engine import Database
from sekisho.storage.rows import MICROSECONDS
from sekisho.tokens.keyring import KeySet
from sekisho.wire import now_us

_PATIENCE_S: Final = 5.0  # migrations have no limit of their own, and may wait for a lock
_OFF_S: Final = 2
_FAR_OFF_S: Final = 10


async def database_checks(url: str, key_set: KeySet | None, *, tell: Callable[[Finding], None]) -> None:
    """All that concern the database. One that does not answer is one finding, and the end."""
    place = masked_url(url)
    try:
        database = Database(url)
    except StartRefused as error:
        tell(Finding(level=Level.ERROR, name="database", seen=error.detail, do="Correct SEKISHO_DATABASE_URL."))
        return
    try:
        if (path := missing_file(database)) is not None:
            tell(_no_file(path))
            return
        if database.is_sqlite:
            for finding in looked("database_file", lambda: _files(Path(str(database.url.database)))):
                tell(finding)
        async with asyncio.timeout(_PATIENCE_S):
            await database.ping()
            tell(Finding(level=Level.OK, name="database", seen=f"{place} answers"))
            await _ask(database, key_set, tell)
    except (StorageUnavailable, TimeoutError) as error:
        why = error.detail if isinstance(error, StorageUnavailable) else "no answer in time"
        do = "See that it runs, and that SEKISHO_DATABASE_URL says where."
        tell(Finding(level=Level.ERROR, name="database", seen=f"{place} cannot be used ({why})", do=do))
    finally:
        await database.close()


def _no_file(path: str) -> Finding:
    if Path(path).absolute().parent.is_dir():
        do = "sekisho serve will make it. If there should be one, SEKISHO_DATABASE_URL names the wrong file."
        return Finding(level=Level.NOTE, name="database", seen=f"there is no database at {path} yet", do=do)
    do = "Make the folder, or correct SEKISHO_DATABASE_URL."
    return Finding(level=Level.ERROR, name="database", seen=f"there is no folder for {path}", do=do)


def _files(path: Path) -> Iterator[Finding]:
    """Sekisho makes them 0600; copies and backups that were put back come as they like."""
    found = [file for file in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))) if file.exists()]
    wide = {file: stat.S_IMODE(file.stat().st_mode) for file in found}
    wide = {file: mode for file, mode in wide.items() if mode & (stat.S_IRWXG | stat.S_IRWXO)}
    for file, mode in wide.items():
        yield Finding(
            level=Level.WARNING,
            name="database_file",
            seen=f"{file} has mode {mode:04o}, others can reach the password hashes in it",
            do=f"Type: chmod 600 {file}",
        )
    if not wide:
        yield Finding(level=Level.OK, name="database_file", seen=f"{path} belongs to its owner alone")


async def _ask(database: Database, key_set: KeySet | None, tell: Callable[[Finding], None]) -> None:
    if not database.is_sqlite:  # there the clocks are one
        tell(await _clock(database))
    schema = await _schema(database)
    tell(schema)
    if key_set is not None and schema.level is Level.OK:
        tell(await _shared_secret(database, key_set))


async def _clock(database: Database) -> Finding:
    """What the round trip cannot explain counts."""
    before = now_us()
    theirs = await database.read(lambda tx: tx.now_us())
    ahead_us, behind_us = before - theirs, theirs - now_us()
    off_s = max(ahead_us, behind_us, 0) / MICROSECONDS
    if off_s <= _OFF_S:
        return Finding(level=Level.OK, name="clock", seen=f"within {_OFF_S} s of the database's")
    return Finding(
        level=Level.ERROR if off_s > _FAR_OFF_S else Level.WARNING,
        name="clock",
        seen=f"this machine is {off_s:.1f} s {'ahead of' if ahead_us > 0 else 'behind'} the database, "
        "by whose time tokens are issued",
        do="Let both keep the time by NTP.",
    )


async def _schema(database: Database) -> Finding:
    revision = await migrate.current(database)
    if not await migrate.is_behind(database):
        newer = "" if revision == migrate.head() else ", which a newer version has made"
        return Finding(level=Level.OK, name="schema", seen=f"at {revision}{newer}")
    seen = f"at {revision or 'nothing yet'}, and this version needs {migrate.head()}"
    if database.is_sqlite:
        return Finding(level=Level.NOTE, name="schema", seen=seen, do="sekisho serve will bring it up to date.")
    return Finding(level=Level.ERROR, name="schema", seen=seen, do="Type: sekisho db upgrade")


async def _shared_secret(database: Database, key_set: KeySet) -> Finding:
    names = [row.name for row in await database.read(lambda tx: tx.verifiers.all())]
    if not names or not key_set.active("sign").is_shared_secret:
        seen = "nobody else needs the signing key" if not names else "verifiers elsewhere need public keys alone"
        return Finding(level=Level.OK, name="shared_secret", seen=seen)
    return Finding(
        level=Level.WARNING,
        name="shared_secret",
        seen=f"{len(names)} services elsewhere have a credential, and tokens are signed with HS256: to check them they "
        "need the secret, with which each can make tokens for anyone",
        do="Type: SEKISHO_SIGNING_ALGORITHM=EdDSA sekisho keys rotate, the same again ten minutes later, "
        "then set it for the server.",
    )
