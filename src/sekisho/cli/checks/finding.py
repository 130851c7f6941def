"""What a check has found."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Literal, TypeAlias, get_args

from sekisho.services.events import where


class Level(IntEnum):
    """How bad it is."""

    OK = 0
    NOTE = 1  # worth knowing; nothing has to be done
    WARNING = 2  # works, and should not stay so
    ERROR = 3  # does not start, does not work, or lets in whom it should not


Name: TypeAlias = Literal[
    "settings",
    "user",
    "issuer",
    "audience",
    "proxies",
    "origins",
    "lifetimes",
    "nodes",
    "keys",
    "key_algorithm",
    "key_age",
    "key_waiting",
    "key_retirable",
    "database",
    "database_file",
    "schema",
    "clock",
    "shared_secret",
    "redis",
]

ABOUT: Final[dict[Name, str]] = {
    "settings": "Each `SEKISHO_…` variable is one and can be read. If not, nothing else can be looked at.",
    "user": "It runs as the user that the server runs as, which should not be root: files are judged as that user's.",
    "issuer": "`https`, or `http` on this machine, where cookies are plain.",
    "audience": "Not left over from a trial on this machine.",
    "proxies": "Your own proxies are named, and nobody else is: whose `X-Forwarded-For` is believed.",
    "origins": "Whose pages may call the service: others than the issuer's own, and none by `http` in production.",
    "lifetimes": "No lifetime that another one makes void.",
    "nodes": "What several nodes need: PostgreSQL, one key set, and Redis to count failed attempts together.",
    "keys": "The key set can be read by Sekisho and by nobody else, no key is weak, each purpose has its active key.",
    "key_algorithm": "The active signing key is for `SEKISHO_SIGNING_ALGORITHM`; else the server does not start.",
    "key_age": "The signing key signs for no longer than 90 days.",
    "key_waiting": "No next key waits for longer than 90 days.",
    "key_retirable": "No key is still accepted when nothing that it has signed can be in use.",
    "database": "It answers.",
    "database_file": "SQLite's files belong to their owner alone.",
    "schema": "It is what this version needs.",
    "clock": "This machine's clock is within 2 s of the database's (warning), or 10 s (error). PostgreSQL alone.",
    "shared_secret": "Services that check tokens elsewhere have no key with which they could make some.",
    "redis": "It answers within a second, if it is set.",
}
assert set(ABOUT) == set(get_args(Name))


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line. ``seen`` and ``do`` hold nothing secret: URLs are masked, and no error's text is passed on unread."""

    level: Level
    name: Name
    seen: str
    do: str = ""


def looked(name: Name, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What the check finds; of one that crashes, that: it must not take the others along."""
    try:
        return list(check())
    except Exception as error:  # noqa: BLE001 - whatever it is, the other checks are worth having
        return [crashed(name, error)]


def crashed(name: Name, error: Exception) -> Finding:
    """The place alone: the error's text may quote a secret."""
    seen = f"this check failed itself, with {type(error).__name__} ({where(error)})"
    return Finding(level=Level.ERROR, name=name, seen=seen, do="Report this line to whoever maintains Sekisho.")
