"""How a node learns of ended sessions: its own commits at once, others' at the next look, none left out."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import select, text

from sekisho.errors import StorageUnavailable
from sekisho.services import revocation_watch
from sekisho.services.events import Events
from sekisho.services.revocation_watch import RevocationWatch
from sekisho.settings import MAX_ACCESS_TTL_S, Settings
from sekisho.sources import FileSource
from sekisho.storage import connect
from sekisho.storage.engine import Database
from sekisho.storage.migrate import upgrade
from sekisho.storage.rows import MICROSECONDS, Cause, Ended
from sekisho.storage.schema import revocations
from sekisho.tokens import KeySet
from sekisho.tokens.revoked import Revocation, RevokedSessions
from sekisho.web import Sekisho
from sekisho.wire import now_s, now_us
from step_by_step import bare, writing
from test_storage import found, stored_session, stored_user

pytestmark = pytest.mark.anyio

HOUR_US = 3600 * MICROSECONDS

only_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture
async def database(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    """With time enough for a busy machine."""
    monkeypatch.setattr(connect, "POOL_WAIT_S", 20.0)
    database = Database(database_url, statement_timeout_ms=20_000)
    await upgrade(database)
    yield database
    await database.close()


class Node:
    """A watch with a clock of its own."""

    def __init__(self, storage) -> None:
        self.now = 1000.0
        self.behind_us = 0
        self.revoked = RevokedSessions()
        self.registry = CollectorRegistry()
        self.watch = RevocationWatch(
            storage=storage,
            revoked=self.revoked,
            events=Events(self.registry),
            monotonic=lambda: self.now,
            clock=lambda: now_us() - self.behind_us,
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
    await append(database, lapses_in_us=-5 * MICROSECONDS)
    await node.watch.poll()
    assert len(node.revoked) == 1


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


async def test_the_walk_through_all_entries_is_taken_every_10_s(database, node):
    await node.watch.load()
    await node.watch.poll()
    own = Ended(session_id=uuid4(), user_id=None, cause=Cause.ADMIN, lapses_at_us=MICROSECONDS)
    node.watch.announce([own])
    node.now += 9
    await node.watch.poll()
    assert node.refuses(own.session_id) == [True]
    node.now += 1
    await node.watch.poll()
    assert node.refuses(own.session_id) == [False]


async def lose_rows(database: Database, *, above: int) -> None:
    """What a failover to a standby that lagged does: the rows are gone, and their ids come again."""
    async with bare(database) as connection:
        await connection.execute(text("DELETE FROM revocations WHERE id > :above"), {"above": above})
        if database.is_sqlite:
            await connection.execute(text("UPDATE sqlite_sequence SET seq = :above"), {"above": above})
        else:
            await connection.execute(text("SELECT setval('revocations_id_seq', :next, false)"), {"next": above + 1})


@pytest.mark.parametrize("kept", [0, 2])
async def test_ids_that_come_again_after_a_failover_are_delivered(database, node, kept):
    await node.watch.load()
    known = [await append(database) for _ in range(5)]
    await node.watch.poll()
    node.now += 100  # gaps are forgotten
    await lose_rows(database, above=kept)
    first = await append(database)
    await node.watch.poll()
    second = await append(database)
    await node.watch.poll()
    assert node.refuses(first, second) == [True, True]
    assert node.refuses(*known) == [True] * 5  # what it knew it knows


async def test_a_table_that_was_emptied_is_followed_from_its_beginning(database, node):
    await node.watch.load()
    for _ in range(3):
        await append(database)
    await node.watch.poll()
    await lose_rows(database, above=0)
    await node.watch.poll()
    later = [await append(database) for _ in range(5)]  # beyond the highest it had seen, in one round
    await node.watch.poll()
    assert node.refuses(*later) == [True] * 5


async def rows_of(database: Database) -> list[UUID]:
    async with bare(database) as connection:
        found = await connection.execute(select(revocations.c.session_id).order_by(revocations.c.id))
        return list(found.scalars())


async def test_what_a_failover_lost_is_put_back(database, node):
    """For the nodes that start later, and had not heard of it."""
    await node.watch.load()
    known = [await append(database) for _ in range(5)]
    await node.watch.poll()
    node.revoked.add([Revocation(str(uuid4()), now_s() - 2)])  # one that has lapsed since; nobody needs it any more
    await lose_rows(database, above=2)
    await node.watch.poll()
    later = Node(database)
    await later.watch.load()
    assert later.refuses(*known) == [True] * 5
    assert node.refuses(*known) == [True] * 5
    assert (
        node.registry.get_sample_value("sekisho_events_total", {"event": "revocations_put_back", "outcome": "ok"}) == 1
    )
    before = await rows_of(database)
    assert sorted(before) == sorted(known)
    for _ in range(3):
        await node.watch.load()  # and what the table has is not put there again
    assert await rows_of(database) == before


async def test_a_session_that_a_failover_revived_is_ended_anew(database, node):
    """Its refreshes would go on, and its access tokens be good again once the revocation has lapsed."""
    user = await stored_user(database)
    revived, bystander = await stored_session(database, user), await stored_session(database, user)
    await node.watch.load()
    await append(database, session_id=revived.id)
    await node.watch.poll()
    await lose_rows(database, above=0)
    await node.watch.poll()
    assert (await found(database, revived)).cause == Cause.LOGOUT
    assert await found(database, bystander) == bystander
    assert await rows_of(database) == [revived.id]


async def a_round_fails(node: Node, monkeypatch: pytest.MonkeyPatch, database: Database, access: str) -> None:
    async def gone(_work):
        raise StorageUnavailable(1, "gone")

    with monkeypatch.context() as patch:
        patch.setattr(database, access, gone)
        with pytest.raises(StorageUnavailable):
            await node.watch.poll()


async def test_what_could_not_be_put_back_is_tried_in_the_next_round(database, node, monkeypatch):
    await node.watch.load()
    known = await append(database)
    await node.watch.poll()
    await lose_rows(database, above=0)
    await a_round_fails(node, monkeypatch, database, "write")
    assert node.refuses(known) == [True]
    await node.watch.poll()
    assert await rows_of(database) == [known]


async def test_the_round_after_one_that_failed_reads_everything(database, node, monkeypatch):
    """The failover can be over, and the ids beyond the highest seen, when the database answers again."""
    await node.watch.load()
    for _ in range(3):
        await append(database)
    await node.watch.poll()
    await a_round_fails(node, monkeypatch, database, "read")
    await lose_rows(database, above=0)
    later = [await append(database) for _ in range(5)]
    await node.watch.poll()
    assert node.refuses(*later) == [True] * 5


async def skip_ids(database: Database, number: int) -> None:
    async with bare(database) as connection:
        if database.is_sqlite:
            await connection.execute(text("UPDATE sqlite_sequence SET seq = seq + :number"), {"number": number})
        else:
            skip = "SELECT setval('revocations_id_seq', nextval('revocations_id_seq') + :number)"
            await connection.execute(text(skip), {"number": number})


async def test_however_many_are_missing_few_are_asked_for_and_none_is_dropped(database, monkeypatch):
    monkeypatch.setattr(revocation_watch, "_MOST_GAPS", 20)
    monkeypatch.setattr(revocation_watch, "_LOOK_BACK", 10)
    asked = _Asked(database)
    node = Node(asked)
    await append(database)
    await node.watch.load()
    ended = []
    for skipped in (3, 15, 40, 7, 7, 7):
        await skip_ids(database, skipped)
        ended.append(await append(database))
        await node.watch.poll()
        await node.watch.poll()
        assert len(asked.missing) <= 20
        assert node.refuses(*ended) == [True] * len(ended)


@only_postgresql
async def test_what_is_in_flight_below_a_wide_gap_is_still_caught(database, node):
    await append(database)
    await node.watch.load()
    await skip_ids(database, 5000)
    transaction = InFlight(database)
    below = await transaction.begin()
    above = await append(database)
    await node.watch.poll()
    assert node.refuses(below, above) == [False, True]
    await transaction.commit()
    await node.watch.poll()
    assert node.refuses(below, above) == [True, True]


async def test_a_full_load_comes_in_pages(database, node, monkeypatch):
    monkeypatch.setattr(revocation_watch, "_PAGE", 3)
    ended = [await append(database) for _ in range(9)]
    await node.watch.load()
    assert node.refuses(*ended) == [True] * 9
    later = await append(database)
    await node.watch.poll()
    assert node.refuses(later) == [True]


@pytest.mark.parametrize("behind_s", [300, -300])
async def test_tokens_expire_by_the_time_by_which_entries_lapse(database, node, behind_s):
    node.behind_us = behind_s * MICROSECONDS
    assert abs(node.watch.now_s() - (now_s() - behind_s)) <= 1  # before the first look there is only the node's clock
    await node.watch.load()
    assert abs(node.watch.now_s() - now_s()) <= 1
    node.behind_us += 60 * MICROSECONDS  # the clock is put back while the node runs
    await node.watch.poll()
    assert abs(node.watch.now_s() - now_s()) <= 1


async def test_the_servers_verifier_goes_by_the_databases_time(database_url, tmp_path):
    """On a node whose clock is behind, a revoked token was accepted once its entry had lapsed."""
    sekisho = Sekisho(Settings(database_url=database_url, keys=f"file:{tmp_path / 'keys.json'}"))
    sekisho._watch._offset_us = 300 * MICROSECONDS
    assert abs(sekisho.verifier._clock() - (now_s() + 300)) <= 1
    await sekisho.close()


async def test_an_entry_outlives_the_longest_token_that_any_node_may_issue(database_url, tmp_path):
    keys = f"file:{tmp_path / 'keys.json'}"
    sekisho = Sekisho(Settings(database_url=database_url, keys=keys, access_token_ttl_s=60))
    assert sekisho.flows.sessions.limits.entry_life_s > MAX_ACCESS_TTL_S
    await sekisho.close()


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


# --- what the feed is told -----------------------------------------------------------------------------------------


class Told:
    """What a watch passes on."""

    def __init__(self, node: Node) -> None:
        self.sessions: list[str] = []
        self.keys: list[str] = []
        node.watch._on_sessions = self.sessions.extend
        node.watch._on_key = self.keys.append


async def test_what_is_new_is_passed_on_once_wherever_it_came_from(database, node):
    before = await append(database)
    told = Told(node)
    await node.watch.load()
    assert (told.sessions, node.refuses(before)) == ([], [True])  # nobody follows yet; snapshots have it
    theirs, ours = await append(database), await append(database)
    entry = await database.read(lambda tx: tx.revocations.live(now_us=0)[-1])
    node.watch.announce([Ended(session_id=ours, user_id=None, cause=Cause.LOGOUT, lapses_at_us=entry.lapses_at_us)])
    assert told.sessions == [str(ours)]
    for _ in range(3):
        await node.watch.poll()
    await node.watch.load()
    assert told.sessions == [str(ours), str(theirs)]
    again = await append(database, session_id=theirs, lapses_in_us=2 * HOUR_US)  # it lapses later now
    await node.watch.poll()
    assert told.sessions == [str(ours), str(theirs), str(again)]


async def test_keys_are_passed_on_once_from_the_first_look_on(database, node):
    other = Node(database)
    await other.watch.withdraw_key("first")
    told = Told(node)
    await node.watch.load()
    assert told.keys == ["first"]
    await other.watch.withdraw_key("second")
    await node.watch.poll()
    await node.watch.poll()
    await node.watch.load()
    assert (told.keys, node.watch.key_ids) == (["first", "second"], {"first", "second"})
    assert len(node.revoked) == 0
    row, _ = await database.read(lambda tx: tx.revocations.live(now_us=0))
    kept_s = row.lapses_at_us // MICROSECONDS - now_s()
    assert abs(kept_s - 400 * 86_400) < 60


async def test_a_key_that_a_failover_lost_is_put_back(database, node):
    await node.watch.withdraw_key("lost")
    await node.watch.load()
    async with bare(database) as connection:
        await connection.execute(text("DELETE FROM revocations"))
    await node.watch.poll()
    await node.watch.poll()
    assert [row.key_id for row in await database.read(lambda tx: tx.revocations.live(now_us=0))] == ["lost"]


async def test_an_entry_is_of_a_session_or_of_a_key(database):
    for values in ("NULL, NULL", f"'{uuid4().hex}', 'kid'"):
        with pytest.raises(StorageUnavailable):
            async with bare(database) as connection:
                await connection.execute(
                    text(f"INSERT INTO revocations (session_id, key_id, lapses_at_us) VALUES ({values}, 1)")
                )
