"""What has been taken back: the sessions whose access tokens are refused although their signatures still hold."""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final, NamedTuple

# Entries that are packed are dropped by spans of time; the span stands in the lowest bits of an entry's key.
_SPAN_S: Final = 256
_SPANS: Final = 32
_SPAN_BITS: Final = 5
_SPANS_AHEAD: Final = 16  # 68 minutes: a token lives for an hour at most
_HASH: Final = ~(_SPANS - 1)
_RECENT_AT_LEAST: Final = 1024
_SLICES: Final = 64  # sorted one by one: all at once would need five times the memory that is left afterwards


class Revocation(NamedTuple):
    """A session that ended. It lapses (NumericDate) when its last access token has expired by itself."""

    session_id: str
    lapses_at: int


class PackedSessions:
    """Many ended sessions in 16 to 24 bytes each. Immutable; a look-up takes less than half a microsecond.

    What is kept of a session id is 59 bits of Python's hash, which is keyed anew in each process: that one of ten
    million good sessions is taken for one of a million ended ones has a probability below 10^-4.
    """

    __slots__ = ("_filter", "_keys", "_mask")

    def __init__(self, keys: "array[int]") -> None:
        """``keys`` in ascending order."""
        self._keys = keys
        # A byte for each of eight times as many places: nine of ten ids that are not here end at an empty one.
        self._mask = (1 << (len(keys) * 8).bit_length()) - 1
        places = bytearray(self._mask + 1)
        for key in keys:
            places[key >> _SPAN_BITS & self._mask] = 1
        self._filter = bytes(places)

    def __contains__(self, session_id: str) -> bool:
        hashed = hash(session_id)
        if not self._filter[hashed >> _SPAN_BITS & self._mask]:
            return False
        key = hashed & _HASH
        place = bisect_left(self._keys, key)
        return place < len(self._keys) and self._keys[place] & _HASH == key

    def __len__(self) -> int:
        return len(self._keys)

    def without_lapsed(self, now: int, packed_in: int) -> Iterator[int]:
        """The keys whose span of time is not over; none had lapsed before the span ``packed_in``."""
        first = now // _SPAN_S
        return (key for key in self._keys if packed_in + (key - packed_in & (_SPANS - 1)) >= first)


class RevokedSessions:
    """The live entries, in memory: when each lapses (NumericDate), by session id.

    Asked on every call, from any thread: one look-up in ``lapses_at``, no lock.

    Keyed by session id, never by token text: two spellings of one token exist (a malleable ECDSA signature), so a
    list of token texts can be walked around.

    ``pack`` moves what has gathered there into ``packed``. Both are replaced, never emptied: whoever holds the two of
    before still sees every entry.
    """

    __slots__ = ("_packed_in", "lapses_at", "packed")

    def __init__(self, entries: Iterable[Revocation] = ()) -> None:
        self.lapses_at: dict[str, int] = {}
        self.packed: PackedSessions | None = None
        self._packed_in = 0  # which span of time
        self.add(entries)

    def add(self, entries: Iterable[Revocation]) -> None:
        """Adds entries; one that is there already is harmless, and never shortened."""
        for session_id, lapses_at in entries:
            self.lapses_at[session_id] = max(lapses_at, self.lapses_at.get(session_id, 0))

    def forget_lapsed(self, now: int) -> None:
        """Drops what has lapsed: every token that such an entry would refuse is refused as expired."""
        for session_id in [sid for sid, lapses_at in self.lapses_at.items() if lapses_at < now]:
            del self.lapses_at[session_id]

    def wants_packing(self, now: int) -> bool:
        """Whether many are not packed, or some that are packed may have lapsed."""
        packed = 0 if self.packed is None else len(self.packed)
        return len(self.lapses_at) > max(_RECENT_AT_LEAST, packed // 32) or (
            packed > 0 and now // _SPAN_S != self._packed_in
        )

    def pack(self, now: int, more: "array[int] | None" = None) -> None:
        """Packs all there is, and the keys ``more``; what has lapsed is dropped. Not for two threads at once."""
        recent, rest = array("q"), {}
        for session_id, lapses_at in self.lapses_at.items():
            if fits(lapses_at, now):
                recent.append(key_of(session_id, lapses_at))
            elif lapses_at >= now:
                rest[session_id] = lapses_at
        before = () if self.packed is None else self.packed.without_lapsed(now, self._packed_in)
        keys = _in_order(array("q", chain(before, recent, more or ())))
        packed = PackedSessions(keys) if keys else None
        # A fork between any two of these loses nothing: what the child packs next is read by the span of now.
        self._packed_in = now // _SPAN_S
        self.packed = packed
        self.lapses_at = rest

    def __contains__(self, session_id: str) -> bool:
        return session_id in self.lapses_at or (self.packed is not None and session_id in self.packed)

    def __len__(self) -> int:
        return len(self.lapses_at) + (0 if self.packed is None else len(self.packed))


def fits(lapses_at: int, now: int) -> bool:
    """Whether an entry can be packed: it lapses neither before ``now`` nor in the far future."""
    return lapses_at >= now and lapses_at // _SPAN_S - now // _SPAN_S <= _SPANS_AHEAD


def key_of(session_id: str, lapses_at: int) -> int:
    """A packed entry."""
    return hash(session_id) & _HASH | lapses_at // _SPAN_S & (_SPANS - 1)


def _in_order(keys: "array[int]") -> "array[int]":
    """Sorted, and of equal ones one. Slice by slice of the range of hashes."""
    slices = [array("q") for _ in range(_SLICES)]
    shift = 64 - _SLICES.bit_length() + 1
    for key in keys:
        slices[(key >> shift) + _SLICES // 2].append(key)
    del keys[:]
    for part in slices:
        keys.extend(sorted(set(part)))
        del part[:]
    return keys
