"""How a node learns of ended sessions: its own commits at once, others' at the next look, none left out."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest
from prometheus_client import CollectorRegistry

from sekisho.errors import StorageUnavailable
from sekisho.services import revocation_watch
from sekisho.services.events import Events
from sekisho.services.revocation_watch import RevocationWatch
from sekisho.settings import Settings
from sekisho.sources import FileSource
from sekisho.storage import engine
from sekisho.storage.engine import Database
from sekisho.storage.migrate import upgrade
from sekisho.storage.ports import MICROSECONDS, Cause, Ended
from sekisho.tokens import KeySet
from sekisho.tokens.revoked import RevokedSessions
from sekisho.web import Sekisho
from sekisho.wire import now_s
from step_by_step import writing

pytestmark = pytest.mark.anyio

HOUR_US = 3600 * MICROSECONDS

only_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture
async def database(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    """With time enough for a busy machine."""
    monkeypatch.setattr(engine, "_POOL_WAIT_S", 20.0)
    database = Database(database_url, statement_timeout_ms=20_000)
    await upgrade(database)
    yield database
    await database.close()


class Node:
    """A watch with a clock of its own."""

    def __init__(self, storage) -> None:
        self.now = 1000.0
        self.revoked = RevokedSessions()
        self.registry = CollectorRegistry()
        self.watch = RevocationWatch(
            storage=storage, revoked=self.revoked, events=Events(self.registry), monotonic=lambda: self.now
        )

    def refuses(self, *session_ids: UUID) -> list[bool]:
        return [str(session_id) in self.revoked for session_id in session_ids]

    def told(self, event: str) -> float:
        labels = {"event": event, "outcome": "revocations"}
        return self.registry.get_sample_value("sekisho_events_total", labels) or 0


@pytest.fixture
def node(database: Database) -> Node:
    return Node(database)


async def append(database: Database, *, lapses_in_us: int = HOUR_US, session_id: UUID | None = None) -> UUID:
    """Another node ends a session: all that this one can see of it is the row."""
    session_id = session_id or uuid4()
    async with writing(database) as tx:
        await tx.revocations.append(session_id, lapses_at_us=await tx.now_us() + lapses_in_us)
    return session_id


class InFlight:
    """A transaction that has taken its ids and is not committed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.session_id = uuid4()
        self._took, self._go = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> UUID:
        self._task = asyncio.create_task(self._run())
        await self._took.wait()
        return self.session_id

    async def commit(self) -> None:
        self._go.set()
        assert self._task is not None
        await self._task

    async def _run(self) -> None:
        async with writing(self._database) as tx:
            await tx.revocations.append(self.session_id, lapses_at_us=await tx.now_us() + HOUR_US)
            self._took.set()
            await self._go.wait()


async def test_own_commits_count_at_once(node):
    session_id = uuid4()
    entry = Ended(session_id=session_id, user_id=uuid4(), cause=Cause.LOGOUT, lapses_at_us=HOUR_US)
    node.watch.announce([entry])
    assert node.refuses(session_id) == [True]


async def test_others_commits_count_at_the_next_look(database, node):
    await node.watch.load()
    first = await append(database)
    assert node.refuses(first) == [False]
    await node.watch.poll()
    assert node.refuses(first) == [True]
    second, third = await append(database), await append(database)
    await node.watch.poll()
    await node.watch.poll()
    assert node.refuses(first, second, third) == [True, True, True]


async def test_a_start_takes_live_entries_only(database, node):
    lapsed = await append(database, lapses_in_us=-5 * MICROSECONDS)
    live = await append(database)
    lapsed_too = await append(database, lapses_in_us=-5 * MICROSECONDS)
    await node.watch.load()
    assert (node.refuses(lapsed, live, lapsed_too), len(node.revoked)) == ([False, True, False], 1)
    await node.watch.poll()
    assert (node.refuses(lapsed, live, lapsed_too), len(node.revoked)) == ([False, True, False], 1)


async def test_a_start_on_an_empty_table_misses_nothing_after_it(database, node):
    await node.watch.load()
    assert len(node.revoked) == 0
    first = await append(database)
    await node.watch.poll()
    assert node.refuses(first) == [True]


async def test_a_server_knows_them_before_its_first_request(database, database_url, tmp_path):
    ended = await append(database)
    keys = FileSource(str(tmp_path / "keys.json"))
    keys.store(KeySet.generate("HS256", now=now_s()).to_json(), expected=None)
    sekisho = Sekisho(Settings(database_url=database_url, keys=keys.name))
    async with sekisho.running():
        # No other task has run since it was started, so this is no poll's doing.
        assert str(ended) in sekisho._revoked


@only_postgresql
async def test_ids_that_commit_out_of_order_are_delivered(database, node):
    await node.watch.load()
    first, second = InFlight(database), InFlight(database)
    early = [await first.begin(), await second.begin()]
    late = [await append(database), await append(database)]
    await node.watch.poll()
    assert node.refuses(*early, *late) == [False, False, True, True]
    node.now += 20
    await second.commit()
    await node.watch.poll()
    assert node.refuses(*early) == [False, True]
    node.now += 20
    later = await append(database)
    await first.commit()
    await node.watch.poll()
    assert node.refuses(*early, later) == [True, True, True]


@only_postgresql
async def test_a_start_still_catches_what_was_in_flight(database, node):
    transaction = InFlight(database)
    below = await transaction.begin()
    above = await append(database)
    await node.watch.load()
    assert node.refuses(below, above) == [False, True]
    await transaction.commit()
    await node.watch.poll()
    assert node.refuses(below, above) == [True, True]


@only_postgresql
async def test_a_start_that_saw_nothing_still_catches_what_was_in_flight(database, node):
    transaction = InFlight(database)
    session_id = await transaction.begin()
    await node.watch.load()
    await transaction.commit()
    await node.watch.poll()
    assert node.refuses(session_id) == [True]


class _Asked:
    """The database, remembering which missing ids were asked for."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.missing: list[int] = []

    async def read(self, work):
        def noting(tx):
            newer = tx.revocations.newer

            def noted(*, than_id: int, missing):
                self.missing = list(missing)
                return newer(than_id=than_id, missing=missing)

            tx.revocations.newer = noted
            return work(tx)

        return await self._database.read(noting)


@only_postgresql
async def test_a_gap_that_stays_is_forgotten_after_a_minute(database, postgres, database_url):
    asked = _Asked(database)
    node = Node(asked)
    await node.watch.load()
    # A rollback takes its id with it.
    postgres.execute("SELECT nextval('revocations_id_seq')", database=database_url.rpartition("/")[2])
    first = await append(database)
    await node.watch.poll()
    assert node.refuses(first) == [True]
    await node.watch.poll()
    assert asked.missing == [1]
    node.now += 59
    await node.watch.poll()
    assert asked.missing == [1]
    node.now += 2
    await node.watch.poll()
    assert asked.missing == []


async def test_lapsed_entries_leave_the_memory(database, node):
    await node.watch.load()
    soon, later = await append(database, lapses_in_us=-5 * MICROSECONDS), await append(database)
    own = Ended(session_id=uuid4(), user_id=None, cause=Cause.ADMIN, lapses_at_us=MICROSECONDS)
    node.watch.announce([own])
    assert node.refuses(own.session_id) == [True]
    await node.watch.poll()
    assert node.refuses(soon, later, own.session_id) == [False, True, False]
    assert len(node.revoked) == 1


async def test_the_age_is_that_of_the_last_look_that_succeeded(database, node, monkeypatch):
    assert node.watch.age_s == float("inf")
    await node.watch.load()
    assert node.watch.age_s == 0
    node.now += 7
    assert node.watch.age_s == 7
    await node.watch.poll()
    assert node.watch.age_s == 0
    node.now += 5

    async def gone(_work):
        raise StorageUnavailable(1, "gone")

    monkeypatch.setattr(database, "read", gone)
    with pytest.raises(StorageUnavailable):
        await node.watch.poll()
    node.now += 1
    assert node.watch.age_s == 6


async def test_the_loop_survives_a_database_that_is_away_and_tells_it_once(database, node, monkeypatch):
    monkeypatch.setattr(revocation_watch, "POLL_S", 0.005)
    await node.watch.load()
    read, tries = database.read, 0

    async def gone(_work):
        nonlocal tries
        tries += 1
        raise StorageUnavailable(1, "gone")

    async def until(holds):
        async with asyncio.timeout(10):
            while not holds():  # noqa: ASYNC110 - what is waited for is no event of ours
                await asyncio.sleep(0.005)

    monkeypatch.setattr(database, "read", gone)
    loop = asyncio.create_task(node.watch.run())
    await until(lambda: tries >= 4)
    assert (node.told("storage_failed"), node.told("storage_back")) == (1, 0)
    session_id = await append(database)
    monkeypatch.setattr(database, "read", read)
    await until(lambda: node.refuses(session_id) == [True])
    await until(lambda: node.told("storage_back") == 1)
    assert node.told("storage_failed") == 1
    loop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loop
