"""The keys in use follow their source, and stay as they were while the source is wrong or away."""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from sekisho.errors import KeyRefused, KeySourceUnavailable, StartRefused
from sekisho.services.events import Events
from sekisho.sources import FileSource
from sekisho.tokens import KeySet
from sekisho.web import key_watch
from sekisho.web.key_watch import KeyWatch

pytestmark = pytest.mark.anyio

NOW = 1_800_000_000


class Source:
    """A source whose next answers the test decides."""

    name = "the vault"
    writable = True

    def __init__(self, document: bytes | None) -> None:
        self.document: bytes | Exception | None = document
        self.stored: list[bytes] = []

    def load(self) -> bytes | None:
        if isinstance(self.document, Exception):
            raise self.document
        return self.document

    def store(self, document: bytes, *, expected: bytes | None) -> None:
        if self.document != expected:
            raise KeyRefused("changed meanwhile")
        self.stored.append(document)
        self.document = document


class Watched:
    """A watch over a source, with what it told its listener and the log."""

    def __init__(self, source, **how: Any) -> None:
        self.registry = CollectorRegistry()
        self.taken: list[KeySet] = []
        self.watch = KeyWatch(
            source, events=Events(self.registry), registry=self.registry, on_change=self.taken.append, **how
        )

    @property
    def failing(self) -> float | None:
        return self.registry.get_sample_value("sekisho_keys_failing")

    def outcomes(self) -> Counter[tuple[str, str]]:
        """How often what was recorded, with its outcome."""
        samples = [sample for metric in self.registry.collect() for sample in metric.samples]
        told = [sample for sample in samples if sample.name == "sekisho_events_total"]
        return Counter({(s.labels["event"], s.labels["outcome"]): int(s.value) for s in told})

    def told(self, event: str) -> int:
        """How often this event was recorded, whatever its outcome."""
        samples = [sample for metric in self.registry.collect() for sample in metric.samples]
        return int(sum(s.value for s in samples if s.name == "sekisho_events_total" and s.labels.get("event") == event))

    @property
    def kid(self) -> str:
        return self.watch.key_set.active("sign").kid


def a_set() -> KeySet:
    return KeySet.generate("HS256", now=NOW)


FIRST, SECOND = a_set(), a_set()


def spoiled(change) -> bytes:
    document = json.loads(SECOND.to_json())
    change(document["keys"])
    return json.dumps(document).encode()


BAD = {
    "not JSON": b'{"keys": [',
    "not UTF-8": b"\xff\xfe",
    "empty": b"",
    "too deep": b"[" * 100_000,
    "a list": b"[]",
    "no keys": b'{"keys": []}',
    "a public key": spoiled(lambda keys: keys[0].pop("k")),
    "a short secret": spoiled(lambda keys: keys[0].update(k="c2hvcnQ")),
    "two active": spoiled(lambda keys: keys[1].update(purpose="sign")),
    "none active": spoiled(lambda keys: keys[0].update(state="retired")),
    "a kid twice": spoiled(lambda keys: keys.append(keys[0])),
}
WRONG = {**BAD, "gone": None, "unreadable": KeyRefused("Permission denied")}


@pytest.fixture
def source() -> Source:
    return Source(FIRST.to_json())


@pytest.fixture
def watched(source: Source) -> Watched:
    watched = Watched(source)
    watched.watch.start(algorithm="HS256", create=False)
    return watched


async def test_a_change_is_taken_up_and_told_once(source, watched):
    for _ in range(3):
        await watched.watch.poll()
    assert (len(watched.taken), watched.kid) == (1, FIRST.active("sign").kid)
    source.document = SECOND.to_json()
    for _ in range(3):
        await watched.watch.poll()
    assert (len(watched.taken), watched.kid) == (2, SECOND.active("sign").kid)
    assert (watched.told("keys_changed"), watched.told("keys_refused")) == (1, 0)


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
async def test_while_the_source_is_wrong_the_last_good_keys_stay(source, watched, wrong):
    source.document = wrong
    for _ in range(5):
        await watched.watch.poll()
    assert (len(watched.taken), watched.kid) == (1, FIRST.active("sign").kid)
    assert (watched.told("keys_changed"), watched.told("keys_refused")) == (0, 1)  # per state, not per look
    # It recovers by itself, with the old set or a new one; and a second fault is told again.
    source.document = FIRST.to_json()
    await watched.watch.poll()
    source.document = wrong
    await watched.watch.poll()
    assert watched.told("keys_refused") == 2
    source.document = SECOND.to_json()
    await watched.watch.poll()
    assert (len(watched.taken), watched.kid) == (2, SECOND.active("sign").kid)
    assert (watched.told("keys_changed"), watched.told("keys_refused")) == (1, 2)


async def test_a_source_that_stays_wrong_in_ever_new_ways_is_told_once(source, watched):
    for wrong in WRONG.values():
        source.document = wrong
        await watched.watch.poll()
    assert watched.told("keys_refused") == 1
    assert watched.kid == FIRST.active("sign").kid


async def test_a_key_file_that_opens_to_others_or_vanishes(tmp_path: Path):
    path = tmp_path / "sekisho-keys.json"
    source = FileSource(str(path))
    source.store(FIRST.to_json(), expected=None)
    watched = Watched(source)
    watched.watch.start(algorithm="HS256", create=False)
    source.store(SECOND.to_json(), expected=FIRST.to_json())
    await watched.watch.poll()
    assert watched.kid == SECOND.active("sign").kid
    path.write_bytes(FIRST.to_json())
    path.chmod(0o644)
    await watched.watch.poll()
    assert watched.kid == SECOND.active("sign").kid
    path.unlink()
    await watched.watch.poll()
    assert (watched.kid, watched.told("keys_refused")) == (SECOND.active("sign").kid, 1)
    source.store(FIRST.to_json(), expected=None)
    await watched.watch.poll()
    assert (watched.kid, watched.told("keys_changed")) == (FIRST.active("sign").kid, 2)


def test_an_empty_source_gets_a_first_set_if_asked_for():
    source = Source(None)
    watched = Watched(source)
    with pytest.raises(StartRefused, match="type sekisho keys new"):
        watched.watch.start(algorithm="EdDSA", create=False)
    assert source.stored == []
    watched.watch.start(algorithm="EdDSA", create=True)
    [document] = source.stored
    assert watched.watch.key_set.to_json() == document
    assert watched.watch.key_set.active("sign").alg == "EdDSA"


def test_of_two_nodes_that_make_a_first_set_the_faster_ones_counts():
    class Raced(Source):
        def store(self, document: bytes, *, expected: bytes | None) -> None:
            self.document = FIRST.to_json()
            super().store(document, expected=expected)

    watched = Watched(Raced(None))
    watched.watch.start(algorithm="HS256", create=True)
    assert watched.kid == FIRST.active("sign").kid


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_a_start_with_wrong_keys_is_refused_and_names_the_source(wrong):
    source = Source(wrong)
    watched = Watched(source)
    with pytest.raises(StartRefused) as caught:
        watched.watch.start(algorithm="HS256", create=False)
    assert "the vault" in caught.value.detail
    assert (watched.taken, source.stored) == ([], [])


# --- how it is told, and when it looks -----------------------------------------------------------------------------


def test_the_alarm_rises_with_the_fault_and_falls_with_it(source, watched):
    """Both kinds of fault are told apart; each is told once; and so is the end."""
    away, bad = KeySourceUnavailable("no answer"), b"{"

    async def story() -> None:
        for document, failing, told in (
            (FIRST.to_json(), 0, []),
            (away, 1, [("keys_refused", "key_source_unavailable")]),
            (away, 1, []),
            (bad, 1, [("keys_refused", "key_refused")]),
            (bad, 1, []),
            (away, 1, [("keys_refused", "key_source_unavailable")]),
            (FIRST.to_json(), 0, [("keys_back", "ok")]),
            (FIRST.to_json(), 0, []),
            (bad, 1, [("keys_refused", "key_refused")]),
            (SECOND.to_json(), 0, [("keys_changed", "ok"), ("keys_back", "ok")]),
        ):
            before = watched.outcomes()
            source.document = document
            await watched.watch.poll()
            assert watched.failing == failing
            assert sorted((watched.outcomes() - before).elements()) == sorted(told)

    asyncio.run(story())


def test_what_crashes_raises_the_alarm_too(source, watched):
    source.document = RuntimeError("a fault of ours")
    with pytest.raises(RuntimeError):
        asyncio.run(watched.watch.poll())
    assert watched.failing == 1


async def test_the_age_is_that_of_the_last_good_look(source, watched, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(key_watch.time, "monotonic", lambda: clock[0])
    await watched.watch.poll()
    clock[0] = 170.0
    source.document = KeySourceUnavailable("no answer")
    await watched.watch.poll()
    assert watched.watch.stale_s == 70.0
    source.document = FIRST.to_json()
    await watched.watch.poll()
    assert watched.watch.stale_s == 0.0


class Hanging(Source):
    """A source that answers when it is let."""

    def __init__(self) -> None:
        super().__init__(FIRST.to_json())
        self.go_on = threading.Event()
        self.go_on.set()
        self.began = threading.Event()  # the second look: the first is the start's
        self.looks = 0

    def load(self) -> bytes | None:
        self.looks += 1
        if self.looks == 2:
            self.began.set()
        self.go_on.wait()
        return super().load()


async def test_a_look_that_hangs_is_a_fault_and_is_not_begun_twice(monkeypatch):
    monkeypatch.setattr(key_watch, "LOOK_S", 0.05)
    source = Hanging()
    watched = Watched(source)
    watched.watch.start(algorithm="HS256", create=False)
    source.go_on.clear()
    source.document = SECOND.to_json()
    for _ in range(3):
        await watched.watch.poll()
    assert (source.looks, watched.failing) == (2, 1)
    assert watched.outcomes()["keys_refused", "key_source_unavailable"] == 1
    monkeypatch.setattr(key_watch, "LOOK_S", 10.0)
    source.go_on.set()
    await watched.watch.poll()
    assert (source.looks, watched.failing, watched.kid) == (2, 0, SECOND.active("sign").kid)


def test_a_look_that_hangs_does_not_hold_up_the_end():
    source = Hanging()
    watched = Watched(source)
    watched.watch.start(algorithm="HS256", create=False)
    source.go_on.clear()

    async def ends() -> None:
        look = asyncio.create_task(watched.watch.poll())
        await asyncio.to_thread(source.began.wait)
        look.cancel()
        with pytest.raises(asyncio.CancelledError):
            await look

    began = time.monotonic()
    asyncio.run(ends())  # with the default executor it would wait for the thread here
    assert time.monotonic() - began < 5
    assert [thread.daemon for thread in threading.enumerate() if thread.name == "sekisho-keys"] == [True]
    source.go_on.set()


def test_a_start_asks_again_when_asking_again_can_help(monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(key_watch.time, "sleep", pauses.append)
    source = Source(None)
    answers: Iterator[Any] = iter([KeySourceUnavailable("no answer")] * 2 + [FIRST.to_json()])

    def load() -> bytes:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(source, "load", load)
    watched = Watched(source)
    watched.watch.start(algorithm="HS256", create=False)
    assert (watched.kid, len(pauses)) == (FIRST.active("sign").kid, 2)
    answers = iter([KeySourceUnavailable("no answer")] * 9)
    with pytest.raises(StartRefused, match="no answer"):
        watched.watch.start(algorithm="HS256", create=False)
    assert len(list(answers)) == 6  # bounded
    answers = iter([KeyRefused("no permission")] * 9)
    with pytest.raises(StartRefused, match="no permission"):
        watched.watch.start(algorithm="HS256", create=False)
    assert len(list(answers)) == 8  # asking again would not help
    assert len(pauses) == 4


@pytest.mark.parametrize("every_s", [3.0, 60.0])
def test_each_interval_has_one_look_and_nodes_do_not_march_in_step(monkeypatch, every_s):
    """Whoever changes the keys waits for no more than the interval; who pays for each call pays for few more."""
    first_pauses, pauses = set(), []

    async def one_node() -> None:
        slept: list[float] = []
        looks = [0]
        watched = Watched(Source(FIRST.to_json()), every_s=every_s)
        watched.watch.start(algorithm="HS256", create=False)

        async def wait_for(word, seconds: float) -> None:
            word.close()
            slept.append(seconds)
            assert len(slept) == looks[0] + 1  # a pause before each look
            if len(slept) > 20:
                raise asyncio.CancelledError
            raise TimeoutError

        async def poll() -> None:
            looks[0] += 1

        monkeypatch.setattr(key_watch.asyncio, "wait_for", wait_for)
        monkeypatch.setattr(watched.watch, "poll", poll)
        with pytest.raises(asyncio.CancelledError):
            await watched.watch.run()
        first_pauses.add(slept[0])
        pauses.extend(slept[1:])

    for _ in range(10):
        asyncio.run(one_node())
    assert len(first_pauses) == 10
    assert max(first_pauses) <= every_s
    assert max(first_pauses) - min(first_pauses) > 0.3 * every_s
    assert len(set(pauses)) > 190
    assert 0.9 * every_s <= min(pauses)
    assert max(pauses) <= every_s


async def test_the_end_takes_the_alarm_back(source, watched):
    source.document = b"{"
    await watched.watch.poll()
    assert watched.failing == 1
    task = asyncio.create_task(watched.watch.run())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert watched.failing == 0


# --- keys that leaked ----------------------------------------------------------------------------------------------


async def until(holds) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.001)


async def test_a_signing_key_that_leaked_makes_the_node_look_at_once_and_until_another_signs(monkeypatch):
    monkeypatch.setattr(key_watch, "_AGAIN_S", 0.001)
    looks = []

    class Counted(Source):
        def load(self):
            looks.append(1)
            return super().load()

    source = Counted(FIRST.to_json())
    watched = Watched(source, every_s=3600)
    watched.watch.start(algorithm="HS256", create=False)
    running = asyncio.create_task(watched.watch.run())
    try:
        watched.watch.withdraw(FIRST.active("refresh").kid)  # none that signs here
        watched.watch.withdraw(SECOND.active("sign").kid)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(looks) == 1
        watched.watch.withdraw(FIRST.active("sign").kid)
        await until(lambda: len(looks) > 4)  # the source does not show yet what was stored
        third = a_set()
        source.document = third.to_json()
        await until(lambda: watched.kid == third.active("sign").kid)
        seen = len(looks)
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert len(looks) == seen
    finally:
        running.cancel()
