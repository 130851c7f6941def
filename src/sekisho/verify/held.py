"""What a verifier checks with: keys, ended sessions, and what it verified a moment ago. Replaced, never emptied."""

import threading
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

from sekisho.errors import KeyRefused
from sekisho.tokens.keyring import Keyring
from sekisho.tokens.revoked import PackedSessions, Revocation, RevokedSessions
from sekisho.verify.seen import Seen

InUse: TypeAlias = tuple[Keyring, Seen, Mapping[str, int], PackedSessions | None]
"""Keys, what was verified by them, and the ended sessions: those of late, and those that are packed."""

ALWAYS: Final = float("inf")
# An entry lapses at least 70 s after the last token that it refuses has expired; our leeway may be 60 of them.
_ENTRIES_OUTLIVE_S: Final = 10


class Held:
    """``in_use`` is read once by each check, from any thread; everything else happens in one or two other threads."""

    __slots__ = (
        "_allow_shared_secret",
        "_changing",
        "_clock",
        "_forgotten_until",
        "_remember",
        "in_use",
        "revoked",
        "sure_from",
        "sure_until",
        "withdrawn",
    )

    def __init__(
        self,
        keys: Keyring,
        *,
        revoked: RevokedSessions,
        allow_shared_secret: bool,
        remember: int,
        clock: Callable[[], float],
    ) -> None:
        """Raises ``KeyRefused``."""
        self.revoked = revoked
        # By ``clock``: between these two moments nobody has to look how old the view of ended sessions is.
        self.sure_from, self.sure_until = -ALWAYS, ALWAYS
        self._allow_shared_secret = allow_shared_secret
        self._remember = remember
        self._clock = clock
        self.withdrawn: frozenset[str] = frozenset()
        self._forgotten_until = 0
        self._changing = threading.Lock()  # not on the way of a check
        self.replace_keys(keys)

    def after_fork(self) -> None:
        """In the child: a thread that stayed behind may have held the lock, and have packed without saying so."""
        self._changing = threading.Lock()
        self._use(self.in_use[0])

    def replace_keys(self, keys: Keyring) -> None:
        """From now on these count. Raises ``KeyRefused``."""
        if keys.has_shared_secret and not self._allow_shared_secret:
            raise KeyRefused(
                "HS256 keys let every verifier sign tokens: let the issuer sign with EdDSA, ES256 or RS256, "
                "or pass allow_shared_secret=True where issuer and verifier are one service"
            )
        with self._changing:
            self._use(keys.without(self.withdrawn))

    def withdraw_key(self, kid: str) -> None:
        """Whatever key set comes later, this key is refused."""
        with self._changing:
            if kid not in self.withdrawn:
                self.withdrawn |= {kid}
                self._use(self.in_use[0].without(self.withdrawn))

    def now(self) -> int:
        """The time by which tokens expire here, NumericDate."""
        return int(self._clock())

    def add_revoked(self, entries: Sequence[Revocation]) -> None:
        """These sessions have ended."""
        self.revoked.add(entries)
        if self.revoked.wants_packing(self.now()):
            self.pack()

    def tidy(self) -> None:
        """Drops what has lapsed."""
        now = self.now()
        self._forgotten_until = max(self._forgotten_until, now)
        self.revoked.forget_lapsed(now)
        if self.revoked.wants_packing(now):
            self.pack()

    def misses_entries(self) -> bool:
        """Whether the clock was put back, so that tokens count again whose sessions have been forgotten.

        Says so once: who asks gets all entries anew.
        """
        now = self.now()
        if now >= self._forgotten_until - _ENTRIES_OUTLIVE_S:
            return False
        self._forgotten_until = now
        return True

    def pack(self, more: "array[int] | None" = None) -> None:
        """Packs the ended sessions, and those whose packed entries are given."""
        with self._changing:
            now = self.now()
            self._forgotten_until = max(self._forgotten_until, now)
            self.revoked.pack(now, more)
            self._use(self.in_use[0])

    def trust_for(self, seconds: float) -> None:
        """For so long the view of ended sessions is not lost. By the clock of tokens: a step back is noticed."""
        now = self._clock()
        self.sure_from, self.sure_until = now, now + seconds

    def trust(self, *, always: bool) -> None:
        """Until something else is said: nobody looks, or everybody."""
        self.sure_from, self.sure_until = -ALWAYS, ALWAYS if always else -ALWAYS

    def _use(self, keys: Keyring) -> None:
        """One assignment: a check under way goes on with all that it began with.

        What is remembered was looked for among the packed sessions, so it goes when those change.
        """
        self.in_use: InUse = keys, Seen(self._remember), self.revoked.lapses_at, self.revoked.packed
