"""What do a million ended sessions cost a verifier: in memory, at the start, and at each check?

The entries come as the feed brings them, JSON of 5,000 at a time through `sekisho.verify.feed`'s own code. Memory: each
number of entries in a process of its own, before and after. Times: CPU time of one thread, medians of interleaved
rounds over new strings. Other than in verify.py each round has other tokens, of a thousand: whoever comes to a
service for the first time is in none of the processor's caches.
"""

import gc
import logging
import random
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec
import psutil

from _peers import AUDIENCE, ISSUER, LIFETIME_S, new_token
from _report import median, progress, start, table
from _rounds import Round, Times, fresh, interleaved, us_each
from sekisho.tokens.algorithms import AlgorithmName
from sekisho.tokens.keyring import Keyring
from sekisho.tokens.keys import Key, generate_key
from sekisho.tokens.revoked import RevokedSessions
from sekisho.verify import Verifier, stream
from sekisho.verify.feed import Feed
from sekisho.verify.freshness import Freshness
from sekisho.verify.held import Held
from sekisho.wire import since_boot

COUNTS = (100, 10_000, 100_000, 1_000_000)
MILLION = COUNTS[-1]
PACKS = 4
IN_AN_EVENT = 500  # sessions that end while the feed is followed
TOKENS = 250  # in a round
BEFORE = 50  # in a round, without being measured
POOL = 1000  # of HS256 tokens, from which each round takes others
POOL_EDDSA = 600
ROUNDS = 60
LOOKUPS = 20_000
LOOKUP_ROUNDS = 15
ALGS: tuple[AlgorithmName, ...] = ("HS256", "EdDSA")
NONE, ALL = "no entries", "1,000,000"
FIRST, SEEN = "first sight", "seen before"
MIB = 2**20


class Memory(NamedTuple):
    """What a verifier holds, and how its process grew. Bytes, and seconds of CPU time."""

    entries: int
    packed: int
    structures: int
    grown_at_first: int
    grown: int
    most: int | None
    took_s: float
    pack_s: float


class Source:
    """The issuer's side: sessions that have ended, in the events that say so."""

    def __init__(self) -> None:
        self._number = 0

    def snapshot(self, count: int) -> Iterator[tuple[str, str]]:
        """Data and id of each event."""
        for begun in range(0, count, stream.PIECE):
            more = begun + stream.PIECE < count
            yield self._data(min(stream.PIECE, count - begun), more=more), "" if more else f"bench:{self._number}"

    def revoked(self, count: int) -> Iterator[tuple[str, str]]:
        for begun in range(0, count, IN_AN_EVENT):
            self._number += 1
            yield self._data(min(IN_AN_EVENT, count - begun), more=False), f"bench:{self._number}"

    def _data(self, count: int, *, more: bool) -> str:
        now = int(time.time())
        ended = {str(uuid4()): now + random.randint(LIFETIME_S // 2, LIFETIME_S) for _ in range(count)}
        return msgspec.json.encode(stream.grouped(ended, more=more)).decode()


class Follower:
    """What a verifier does with these events, and the CPU time that it took."""

    def __init__(self) -> None:
        self.verifier = Verifier(issuer=ISSUER, audience=AUDIENCE, keys=Keyring([]))
        self.held: Held = self.verifier._held  # noqa: SLF001 - what is measured is not public
        self._feed = Feed(
            ["https://auth.example.com/revocations"],
            credential="none",
            held=self.held,
            freshness=Freshness(now=since_boot()),
            on_heartbeat=lambda: None,
        )
        self._gathered = array("q")
        self.took_s = 0.0

    def take_snapshot(self, events: Iterator[tuple[str, str]]) -> None:
        for data, event_id in events:
            self.took_s += _timed(partial(self._take, data, event_id))

    def _take(self, data: str, event_id: str) -> None:
        self._feed._take_snapshot(data, event_id, self._gathered)  # noqa: SLF001

    def take_revoked(self, events: Iterator[tuple[str, str]]) -> None:
        for data, event_id in events:
            self._feed._take_revoked(data, event_id)  # noqa: SLF001


def memory(count: int, since: int) -> Memory:
    """Of a snapshot, packed anew as time passes, and of what ends after that. To be run in a new process."""
    Follower().take_snapshot(Source().snapshot(min(count, stream.PIECE)))  # a piece comes and goes: not what is held
    follower, source = Follower(), Source()
    before = _now()
    follower.take_snapshot(source.snapshot(count))
    grown_at_first = _now() - before
    held, packs_s = follower.held, [0.0]
    if held.revoked.packed is not None:
        packs_s = [_timed(held.pack) for _ in range(PACKS)]
    follower.take_revoked(source.revoked(since))
    if len(held.revoked) != count + since:
        raise RuntimeError(f"{len(held.revoked)} entries are held of {count + since}")
    grown, most = _now() - before, _most()
    return Memory(
        entries=count + since,
        packed=0 if held.revoked.packed is None else len(held.revoked.packed),
        structures=structures(held.revoked),
        grown_at_first=grown_at_first,
        grown=grown,
        most=None if most is None else max(grown, most - before),
        took_s=follower.took_s,
        pack_s=median(packs_s),
    )


def _timed(act: Callable[[], object]) -> float:
    began = time.thread_time()
    act()
    return time.thread_time() - began


def _now() -> int:
    gc.collect()
    return psutil.Process().memory_info().rss


def _most() -> int | None:
    """The most memory that this process ever had. Linux alone says so."""
    if sys.platform != "linux":
        return None
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def structures(revoked: RevokedSessions) -> int:
    """Bytes, as Python counts them."""
    recent, packed = revoked.lapses_at, revoked.packed
    times = {id(lapses_at): lapses_at for lapses_at in recent.values()}
    parts: list[Any] = [recent, *recent, *times.values()]
    if packed is not None:
        parts += [packed, packed._keys, packed._filter]  # noqa: SLF001
    return sum(map(sys.getsizeof, parts))


def measured_memory() -> list[Memory]:
    """Each in a process of its own, and there in a second thread as the feed is: malloc treats those differently."""
    found = []
    # The last: as much as there can be before it is packed.
    for count, since in (*((count, 0) for count in COUNTS), (MILLION, MILLION // 8)):
        progress(f"memory of {count + since} entries")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            found.append(process.submit(_in_a_thread, count, since).result())
    return found


def _in_a_thread(count: int, since: int) -> Memory:
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(memory, count, since).result()


# --- times ---------------------------------------------------------------------------------------------------------


def lookup_ns(revoked: RevokedSessions) -> dict[str, float]:
    """Nanoseconds to find that a session has not ended, without the loop around it."""
    packed = revoked.packed
    if packed is None or revoked.lapses_at:
        raise RuntimeError("not all is packed")
    recent = dict.fromkeys((str(uuid4()) for _ in range(1000)), 0)
    rounds: dict[str, list[float]] = {name: [] for name in ("recent, a new string", "recent", "packed", "loop")}
    gc.disable()
    for _ in range(LOOKUP_ROUNDS):
        ids = [str(uuid4()) for _ in range(LOOKUPS)]
        for name, container in {"recent, a new string": recent, "recent": recent, "packed": packed}.items():
            rounds[name].append(_ns_each(container, ids))
        began = time.thread_time_ns()
        for _ in ids:
            pass
        rounds["loop"].append((time.thread_time_ns() - began) / len(ids))
    gc.enable()
    medians = {name: median(values) for name, values in rounds.items()}
    return {name: value - medians["loop"] for name, value in medians.items() if name != "loop"}


def _ns_each(container: Any, ids: Sequence[str]) -> float:
    began = time.thread_time_ns()
    for session_id in ids:
        if session_id in container:
            raise RuntimeError("a session is taken for one that has ended")
    return (time.thread_time_ns() - began) / len(ids)


def contenders(key: Key, now: int, revoked: RevokedSessions) -> dict[str, Round]:
    tokens = [new_token(key, now) for _ in range(POOL if key.is_shared_secret else POOL_EDDSA)]
    found: dict[str, Round] = {}
    for entries, held in ((NONE, RevokedSessions()), (ALL, revoked)):
        new_verifier = partial(_new_verifier, key, held, now)
        old = new_verifier()
        for token in tokens:
            old.verify(token)
        found[f"{FIRST}, {entries}"] = partial(_round, new_verifier, tokens)
        found[f"{SEEN}, {entries}"] = partial(_round, partial(_itself, old), tokens)
    return found


def _new_verifier(key: Key, revoked: RevokedSessions, now: int) -> Verifier:
    keys = Keyring([key])
    made = Verifier(issuer=ISSUER, audience=AUDIENCE, keys=keys, revoked=revoked, allow_shared_secret=True)
    made.verify(new_token(key, now))  # its issuer's header is known from now on
    return made


def _itself(verifier: Verifier) -> Verifier:
    return verifier


def _round(verifier: Callable[[], Verifier], tokens: Sequence[str]) -> float:
    drawn = fresh(random.sample(tokens, BEFORE + TOKENS))
    return us_each(verifier().verify, drawn[BEFORE:], before=drawn[:BEFORE])


# --- tables --------------------------------------------------------------------------------------------------------


def show_memory(found: Sequence[Memory]) -> None:
    rows = []
    for one in found:
        sizes = one.structures, one.grown_at_first, one.grown, one.most
        mib = ["–" if size is None else f"{size / MIB:.1f}" for size in sizes]
        rows.append(
            [f"{one.entries:,}", f"{one.packed:,}", *mib, f"{one.took_s * 1000:.0f}", f"{one.pack_s * 1000:.0f}"]
        )
    head = ["entries", "of them packed", "structures, MiB", "process, MiB", "packed again", "at the most"]
    table([*head, "snapshot, CPU ms", "pack, CPU ms"], rows)


def _pairs(times: Times) -> Iterator[tuple[str, float, float]]:
    """Each way of verifying, with its µs beside no entries and beside a million."""
    for alg in ALGS:
        for sight in (FIRST, SEEN):
            yield f"{alg}, {sight}", times[alg][f"{sight}, {NONE}"], times[alg][f"{sight}, {ALL}"]


def show_times(times: Times, lookups: dict[str, float]) -> None:
    rows = [
        [way, f"{without:.3f}", f"{beside:.3f}", f"{beside / without:.3f}", f"{beside - without:+.3f}"]
        for way, without, beside in _pairs(times)
    ]
    table(["µs for a verify", NONE, ALL, "ratio", "added µs"], rows)
    rows = [[name, f"{ns:.0f}"] for name, ns in lookups.items()]
    table(["look-up of a session that has not ended", "ns"], rows)


def show_targets(found: Sequence[Memory], times: Times) -> None:
    rows = []
    for one in found:
        most = 100 if one.entries <= 100_000 else 24
        each = {"structures": one.structures / one.entries}
        if one.entries >= 10_000:  # of a handful, the pages of a process say nothing
            each["process"] = one.grown / one.entries
        for what, size in each.items():
            rows.append(
                [f"bytes each, {one.entries:,} entries, {what}", f"≤ {most}", f"{size:.1f}", _yes(size <= most)]
            )
    for way, without, beside in _pairs(times):
        ratio, added_us = beside / without, beside - without
        found_text = f"{ratio:.2f} ×, {added_us:+.2f} µs"
        rows.append([f"a million: {way}", "≤ 1.1 ×, ≤ 0.1 µs", found_text, _yes(ratio <= 1.1 and added_us <= 0.1)])
    table(["target", "aim", "measured", "met"], rows)
    print("Structures: as Python counts them. Process: how it grew by the snapshot; then by packing the same entries")
    print(
        f"{PACKS} times again, as happens every 256 s, and in the last line by all that can be there unpacked. At the"
    )
    print("most: at any moment. The snapshot comes in 200 events; the last one packs it. Times: with cold caches, so")
    print("those of verify.py are lower.")


def _yes(met: bool) -> str:
    return "yes" if met else "NO"


def main() -> None:
    logging.disable()
    start("A verifier that holds a million ended sessions")
    found = measured_memory()
    progress("the million for the times")
    follower = Follower()
    follower.take_snapshot(Source().snapshot(MILLION))
    follower.held.pack()  # the last piece too
    revoked = follower.held.revoked
    lookups = lookup_ns(revoked)
    now = int(time.time())
    keys = {alg: generate_key(alg, purpose="sign", state="active", now=now) for alg in ALGS}
    times = interleaved({alg: contenders(key, now, revoked) for alg, key in keys.items()}, ROUNDS)
    show_memory(found)
    show_times(times, lookups)
    show_targets(found, times)


if __name__ == "__main__":
    main()
