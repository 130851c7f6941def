"""The events of ``GET /revocations``, as the issuer writes them and a verifier reads them.

Server-sent events whose data is one JSON object each. After the request come, in this order:

``snapshot``   pieces of all live entries; ``more`` is true on all but the last, which carries the event's id. Left out
               where ``Last-Event-ID`` names an event of the same process that is still at hand: what has happened since
               then follows instead.
``heartbeat``  at once, then every second: how old the node's own view of the table is (``age_ms``), and how long this
               stream has been open (``open_ms``).
``revoked``    entries that are new, gathered for 50 ms.

Ids are ``BOOT:N``: BOOT is the process's own, N counts its ``revoked`` events without a gap. A heartbeat repeats the
id of the event before it.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Final, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta

from sekisho.wire import MAX_NUMERIC_DATE

MEDIA_TYPE: Final = "text/event-stream"
HEARTBEAT_EVERY_S: Final = 1.0
PIECE: Final = 5000
"""Entries in one event of a snapshot at the most: some 200 KB."""

_Id: TypeAlias = Annotated[str, Meta(min_length=1, max_length=256)]
_Milliseconds: TypeAlias = Annotated[int, Meta(ge=0, lt=2**53)]


class Entries(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sessions that ended, as a list for each time (NumericDate, written as text) when entries lapse; and key ids."""

    sessions: dict[str, list[_Id]] = {}
    keys: list[_Id] = []
    more: bool = False

    def by_time(self) -> Sequence[tuple[int, list[str]]]:
        """The lists of sessions, with when they lapse. Raises ``ValueError`` for what is no time."""
        dated = [(int(lapses_at), ids) for lapses_at, ids in self.sessions.items()]
        if any(not 0 < lapses_at < MAX_NUMERIC_DATE for lapses_at, _ in dated):
            raise ValueError("not a NumericDate")
        return dated


class Heartbeat(msgspec.Struct, frozen=True):
    """``age_ms`` is null while the node has never seen the table."""

    age_ms: _Milliseconds | None
    open_ms: _Milliseconds


class Position(NamedTuple):
    """An event's id."""

    boot: str
    number: int

    def __str__(self) -> str:
        return f"{self.boot}:{self.number}"


def position(text: str) -> Position | None:
    """The id that ``text`` spells, if it does."""
    boot, _, number = text.partition(":")
    is_number = number.isascii() and number.isdecimal() and len(number) < 16
    return Position(boot, int(number)) if boot and is_number else None


def grouped(lapses_at: Mapping[str, int], keys: Sequence[str] = (), *, more: bool = False) -> Entries:
    """Entries from when each session's lapses."""
    sessions: dict[str, list[str]] = {}
    for session_id, at in lapses_at.items():
        sessions.setdefault(str(at), []).append(session_id)
    return Entries(sessions, list(keys), more)


def event(name: str, data: msgspec.Struct, at: Position | None = None) -> bytes:
    """One event, as it goes over the wire. Without ``at`` it has no id."""
    id_line = f"id: {at}\n".encode() if at is not None else b""
    return b"event: " + name.encode() + b"\n" + id_line + b"data: " + msgspec.json.encode(data) + b"\n\n"


_ENTRIES: Final = msgspec.json.Decoder(Entries)
_HEARTBEAT: Final = msgspec.json.Decoder(Heartbeat)


def read_entries(data: str) -> Entries:
    """Of ``snapshot`` and ``revoked``. Raises ``ValueError`` (msgspec's errors are of that kind)."""
    try:
        return _ENTRIES.decode(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_heartbeat(data: str) -> Heartbeat:
    """Raises ``ValueError``."""
    try:
        return _HEARTBEAT.decode(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
