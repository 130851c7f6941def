"""The keys in use follow their source, and stay as they were while the source is wrong or away."""

import json
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from sekisho.errors import KeyRefused, StartRefused
from sekisho.services.events import Events
from sekisho.sources import FileSource
from sekisho.tokens import KeySet
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

    def __init__(self, source) -> None:
        self.registry = CollectorRegistry()
        self.taken: list[KeySet] = []
        self.watch = KeyWatch(source, events=Events(self.registry), registry=self.registry, on_change=self.taken.append)

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
