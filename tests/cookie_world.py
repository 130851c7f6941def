"""Nodes with cookie sessions, step by step: who is at which step is the test's to say, and what time it is, too."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from sqlalchemy import update

from sekisho.services.caller import Caller
from sekisho.services.cookie_sessions import CookieSessions, Entry, NewCookie, hash_of
from sekisho.services.events import Events
from sekisho.services.revocation_watch import RevocationWatch
from sekisho.services.sessions import SessionLimits, Sessions, open_session
from sekisho.storage.engine import Database
from sekisho.storage.rows import MICROSECONDS, Cause, Ended, Session
from sekisho.storage.schema import revocations, sessions
from sekisho.storage.session_cache import RedisSessionCache
from sekisho.tokens.revoked import RevokedSessions
from sekisho.wire import now_us
from step_by_step import reading, writing
from test_storage import stored_user

CALLER = Caller(address="192.0.2.7", user_agent="Mozilla/5.0 (関所)")


def caller() -> Caller:
    """Whoever looks up a session; asked when its row is told that it is in use."""
    return CALLER


LIMITS = SessionLimits(idle_s=3600, max_age_s=86_400, max_sessions=50, entry_life_s=3720)
PREFIX = "test:session:"
PATIENCE_S = 30.0


class Steps:
    """Where somebody stops on the way: at each step that is held, until the test takes it."""

    def __init__(self, *held: str) -> None:
        self._held = {name: (asyncio.Event(), asyncio.Event(), asyncio.Event()) for name in held}

    @asynccontextmanager
    async def at(self, name: str) -> AsyncIterator[None]:
        reached, go, done = self._held.get(name) or (asyncio.Event(), None, asyncio.Event())
        reached.set()
        if go is not None:
            await go.wait()
        try:
            yield
        finally:
            done.set()

    async def reach(self, name: str, task: "asyncio.Task[Any]") -> None:
        """Returns when it stands before this step, or has come to its end without it."""
        await self._until(self._held[name][0], task)

    async def take(self, name: str, task: "asyncio.Task[Any]") -> None:
        """The step is done, and whatever follows it up to the next one that is held."""
        await self.reach(name, task)
        _, go, done = self._held[name]
        go.set()
        await self._until(done, task)
        for _ in range(5):  # what it does without waiting for anybody
            await asyncio.sleep(0)

    async def _until(self, event: asyncio.Event, task: "asyncio.Task[Any]") -> None:
        waiting = asyncio.ensure_future(event.wait())
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait([waiting, task], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()


class WatchedStorage:
    """The database. It counts; `read`, `write` and, after a commit, `tell` are steps."""

    def __init__(self, database: Database, steps: Steps) -> None:
        self._database = database
        self._steps = steps
        self.reads = self.writes = 0

    async def read(self, work: Callable[[Any], Any]) -> Any:
        self.reads += 1
        async with self._steps.at("read"):
            return await self._database.read(work)

    async def write(self, work: Callable[[Any], Any]) -> Any:
        self.writes += 1
        async with self._steps.at("write"):
            result = await self._database.write(work)
        async with self._steps.at("tell"):
            return result


class WatchedCache:
    """The cache. It counts, keeps what it gave, and `got`, `put` and `drop` are steps."""

    def __init__(self, cache: RedisSessionCache, steps: Steps) -> None:
        self._cache = cache
        self._steps = steps
        self.gave: list[tuple[bytes, bytes | None]] = []
        self.puts = 0

    async def get(self, cookie_hash: bytes) -> bytes | None:
        found = await self._cache.get(cookie_hash)
        self.gave.append((cookie_hash, found))
        async with self._steps.at("got"):
            return found

    async def put(self, cookie_hash: bytes, entry: bytes, *, life_s: int) -> None:
        self.puts += 1
        async with self._steps.at("put"):
            await self._cache.put(cookie_hash, entry, life_s=life_s)

    async def drop(self, cookie_hash: bytes) -> None:
        async with self._steps.at("drop"):
            await self._cache.drop(cookie_hash)

    async def close(self) -> None:
        await self._cache.close()


class Node:
    """Its view of the revocations is as old as the test makes it; its clock shows what the test wants."""

    def __init__(self, database: Database, redis_url: str, limits: SessionLimits) -> None:
        self.now = 1000.0  # monotonic, of the view
        self.ahead_us = 0  # of the clock since the last look at the table
        self.told: list[str] = []
        self.database = database
        self._events = Events(CollectorRegistry())
        self._cache = RedisSessionCache(redis_url, PREFIX, on_lost=self.told.append, on_back=self._came_back)
        self.watch = RevocationWatch(
            storage=database,
            revoked=RevokedSessions(),
            events=self._events,
            monotonic=lambda: self.now,
            clock=lambda: now_us() + self.ahead_us,
        )
        self.limits = limits
        self.flow = self.flow_with(Steps())

    def _came_back(self) -> None:
        self.told.append("back")

    def flow_with(self, steps: Steps) -> "WatchedSessions":
        """The node's cookie sessions, for somebody whose steps are watched."""
        storage, cache = WatchedStorage(self.database, steps), WatchedCache(self._cache, steps)
        shared = Sessions(storage=storage, limits=self.limits, watch=self.watch, events=self._events)
        return WatchedSessions(storage=storage, sessions=shared, cache=cache)

    async def close(self) -> None:
        await self._cache.close()


class WatchedSessions(CookieSessions):
    """As the product's, with what it was made of at hand."""

    storage: WatchedStorage
    cache: WatchedCache

    @property
    def asked(self) -> tuple[int, int, int]:
        """How often the cache, the database to read and the database to write."""
        return len(self.cache.gave), self.storage.reads, self.storage.writes


class World:
    """One database, one Redis, and nodes on them."""

    def __init__(self, database: Database, redis_url: str) -> None:
        self.database = database
        self.redis_url = redis_url
        self.redis: Redis = Redis.from_url(redis_url)
        self._nodes: list[Node] = []

    async def node(self, limits: SessionLimits = LIMITS) -> Node:
        """A node that has just started."""
        node = await self.starting(limits)
        await node.watch.load()
        return node

    async def starting(self, limits: SessionLimits = LIMITS) -> Node:
        """A node that has not looked at the table yet."""
        node = Node(self.database, self.redis_url, limits)
        self._nodes.append(node)
        return node

    async def close(self) -> None:
        for node in self._nodes:
            await node.close()
        with suppress(OSError):
            await self.redis.aclose()

    # --- sessions

    async def opens(self, limits: SessionLimits = LIMITS, user: Any = None) -> str:
        """Somebody signs in; the cookie."""
        user = user or await stored_user(self.database)
        carrier = NewCookie()

        def work(tx: Any) -> tuple[Session, int]:
            now = tx.now_us()
            session, _ = open_session(
                tx, user, limits=limits, caller=CALLER, cookie_hash=carrier.cookie_hash, now_us=now
            )
            return session, now

        session, now = await self.database.write(work)
        return carrier.grant(session, now_us=now).cookie

    async def row(self, cookie: str) -> Session:
        async with reading(self.database) as tx:
            row = await tx.sessions.by_cookie(hash_of(cookie))
        assert row is not None
        return row

    async def change(self, cookie: str, **values: Any) -> None:
        """Changes the row behind everybody's back. Integers are added to what is there."""
        changed = {
            name: value if value is None or isinstance(value, str) else sessions.c[name] + value
            for name, value in values.items()
        }
        statement = update(sessions).where(sessions.c.cookie_hash == hash_of(cookie)).values(changed)
        await self.database.migrate(lambda connection: connection.execute(statement).close())

    async def unused_for(self, cookie: str, seconds: float) -> None:
        """Time passes for a session; what the cache says of it is forgotten."""
        by_us = -int(seconds * MICROSECONDS)
        await self.change(cookie, handed_out_at_us=by_us, idle_ends_at_us=by_us)
        await self.redis.delete(self.key(cookie))

    async def ends(self, cookie: str, *, lapses_in_s: int = 3720) -> Ended:
        """The session is ended by a node that this test does not look at."""
        row = await self.row(cookie)
        async with writing(self.database) as tx:
            now = await tx.now_us()
            lapses_at_us = now + lapses_in_s * MICROSECONDS
            (ended,) = await tx.sessions.end(
                cause=Cause.LOGOUT, now_us=now, lapses_at_us=lapses_at_us, session_ids=[row.id]
            )
        return ended

    async def loses_the_end(self, cookie: str) -> None:
        """The database fails over to a history without the end of this session."""
        row = await self.row(cookie)
        await self.change(cookie, ended_at_us=None, cause=None)
        gone = revocations.delete().where(revocations.c.session_id == row.id)
        await self.database.migrate(lambda connection: connection.execute(gone).close())

    async def loses_the_beginning(self, cookie: str) -> None:
        """It fails over to a history in which this session was never opened."""
        gone = sessions.delete().where(sessions.c.cookie_hash == hash_of(cookie))
        await self.database.migrate(lambda connection: connection.execute(gone).close())

    # --- the cache

    @staticmethod
    def key(cookie: str) -> str:
        return PREFIX + hash_of(cookie).hex()

    async def kept(self, cookie: str) -> bytes | None:
        """What Redis has for a cookie."""
        return await self.redis.get(self.key(cookie))

    async def keeps(self, cookie: str, entry: bytes) -> None:
        await self.redis.set(self.key(cookie), entry)

    # --- the rows' changes

    async def count_moves(self) -> None:
        """From now on the database writes down each change of a session's row."""
        sqlite = [
            "CREATE TABLE moves (at_us BIGINT)",
            "CREATE TRIGGER moved AFTER UPDATE ON sessions BEGIN INSERT INTO moves VALUES (NEW.handed_out_at_us); END",
        ]
        postgresql = [
            "CREATE TABLE moves (at_us BIGINT)",
            """CREATE FUNCTION moved() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN INSERT INTO moves VALUES (NEW.handed_out_at_us); RETURN NEW; END'""",
            "CREATE TRIGGER moved AFTER UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION moved()",
        ]
        for statement in sqlite if self.database.is_sqlite else postgresql:
            await self.database.migrate(lambda connection, sql=statement: connection.exec_driver_sql(sql).close())

    async def moves(self) -> int:
        """How many there were since it was last asked."""

        def count(connection: Any) -> int:
            number = connection.exec_driver_sql("SELECT count(*) FROM moves").scalar_one()
            connection.exec_driver_sql("DELETE FROM moves").close()
            return number

        return await self.database.migrate(count)


def entry_of(row: Session, *, read_at_us: int, **changes: Any) -> Entry:
    """What a node would keep of a row."""
    values = {
        "cookie_hash": row.cookie_hash,
        "session_id": row.id,
        "user_id": row.user_id,
        "roles": row.roles,
        "created_at_us": row.created_at_us,
        "used_at_us": row.handed_out_at_us,
        "ends_at_us": min(row.idle_ends_at_us, row.ends_at_us),
        "read_at_us": read_at_us,
    }
    return Entry(**{**values, **changes})


def orders(one: Sequence[str], other: Sequence[str]) -> list[list[str]]:
    """Every order in which two who each go their own steps can come along."""
    if not one or not other:
        return [[*one, *other]]
    return [[one[0], *rest] for rest in orders(one[1:], other)] + [[other[0], *rest] for rest in orders(one, other[1:])]
