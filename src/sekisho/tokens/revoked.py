"""What has been taken back: the sessions whose access tokens are refused although their signatures still hold."""

from collections.abc import Iterable
from typing import NamedTuple


class Revocation(NamedTuple):
    """A session that ended. It lapses (NumericDate) when its last access token has expired by itself."""

    session_id: str
    lapses_at: int


class RevokedSessions:
    """The live entries, in memory: when each lapses (NumericDate), by session id.

    Asked on every call, from any thread: one look-up in ``lapses_at``, no lock.

    Keyed by session id, never by token text: two spellings of one token exist (a malleable ECDSA signature), so a
    list of token texts can be walked around.
    """

    __slots__ = ("lapses_at",)

    def __init__(self, entries: Iterable[Revocation] = ()) -> None:
        self.lapses_at: dict[str, int] = {}
        self.add(entries)

    def add(self, entries: Iterable[Revocation]) -> None:
        """Adds entries; one that is there already is harmless, and never shortened."""
        for session_id, lapses_at in entries:
            self.lapses_at[session_id] = max(lapses_at, self.lapses_at.get(session_id, 0))

    def forget_lapsed(self, now: int) -> None:
        """Drops what has lapsed: every token that such an entry would refuse is refused as expired."""
        for session_id in [sid for sid, lapses_at in self.lapses_at.items() if lapses_at < now]:
            del self.lapses_at[session_id]

    def __contains__(self, session_id: str) -> bool:
        return session_id in self.lapses_at

    def __len__(self) -> int:
        return len(self.lapses_at)
