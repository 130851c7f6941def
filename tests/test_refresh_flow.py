"""The flow of refresh: one statement and one commit, a stall in the middle of it, and who is told of a theft."""

import asyncio
import json
import re
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from uuid import UUID

import pytest
from sqlalchemy import Connection, select, update
from starlette.middleware.base import BaseHTTPMiddleware

from sekisho.errors import RefreshTheft, TryLater
from sekisho.services.alarm import OnTheft
from sekisho.services.caller import Caller
from sekisho.services.mint import Grant
from sekisho.services.stall import StallWatch
from sekisho.storage import migrate
from sekisho.storage.schema import sessions, thefts
from sekisho.tokens.refresh import Position
from sekisho.web import Sekisho, Settings, TheftRecord
from test_serve import Person, a_client

LONG_US = 60_000_000
CALLER = Caller(address="192.0.2.1", user_agent="test")

# --- counted -------------------------------------------------------------------------------------------------------


def test_on_postgresql_it_is_one_update_and_its_commit(serve, private_postgres):
    private_postgres.execute("ALTER SYSTEM SET log_statement = 'all'")
    private_postgres.execute("ALTER SYSTEM SET log_line_prefix = '%a|'")
    private_postgres.execute("SELECT pg_reload_conf()")
    server = serve(database_url=private_postgres.create_database())
    database = server.env["SEKISHO_DATABASE_URL"].rpartition("/")[2]
    with a_client(server) as client:
        person = Person(client).signs_up().logs_in()
        for _ in range(2):  # the first prepares it
            private_postgres.execute(
                f"UPDATE sessions SET handed_out_at_us = handed_out_at_us - {LONG_US}", database=database
            )
            before = len(private_postgres.log_text())
            answer = person.refresh()
            assert answer.status_code == 200
            person.tokens = answer.json()
            statements = _statements(private_postgres.log_text()[before:])
            assert len(statements) == 3, statements
            assert (statements[0], statements[2]) == ("BEGIN;", "COMMIT;")
            assert "UPDATE sessions SET" in statements[1]


def _statements(log: str) -> list[str]:
    """Sekisho's, without the watch over the revocations, which goes on all the time."""
    found = re.findall(r"^sekisho\|LOG:  (?:statement|execute [^:]*): (.*(?:\n\t.*)*)", log, re.MULTILINE)
    return [statement for statement in found if "FROM revocations" not in statement]


@dataclass(frozen=True)
class Embedded:
    """Sekisho in this process, with one session whose token is to be replaced."""

    sekisho: Sekisho
    session_id: UUID
    salt: bytes
    token: str
    hooks: list[OnTheft]

    async def change(self, **values: object) -> None:
        await self.sekisho.database.migrate(lambda connection: connection.execute(update(sessions).values(**values)))

    async def row(self) -> tuple[object, ...]:
        found: list[tuple[object, ...]] = await self.sekisho.database.migrate(_rows)
        return found[0]

    def token_of(self, generation: int) -> str:
        return self.sekisho._mint._refresh_keys.make(self.session_id, Position(generation, 0), self.salt)

    async def refresh(self, token: str) -> Grant:
        return await self.sekisho.flows.refresh(token=token, caller=CALLER)


def _rows(connection: Connection) -> list[tuple[object, ...]]:
    return [tuple(row) for row in connection.execute(select(sessions)).all()]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def embedded(database_url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hooks: list[OnTheft] = []

    def on_theft(theft: TheftRecord) -> Awaitable[None] | None:
        return hooks[0](theft) if hooks else None

    sekisho = Sekisho(Settings(database_url=database_url), on_theft=on_theft)
    await migrate.upgrade(sekisho.database)
    async with sekisho.running():
        credentials = {"email": "one@example.com", "password": "a gate on the old road"}
        await sekisho.flows.sign_up(**credentials, address=CALLER.address)
        grant = (await sekisho.flows.login(**credentials, caller=CALLER, carrier=sekisho.flows.mint)).grant
        session_id = sekisho._mint.read_refresh_token(grant.refresh_token).session_id
        story = await sekisho.flows.sessions.story(session_id)
        embedded = Embedded(sekisho, session_id, story.session.salt, grant.refresh_token, hooks)
        await embedded.change(handed_out_at_us=story.session.handed_out_at_us - LONG_US)
        yield embedded


@pytest.mark.anyio
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_on_sqlite_it_is_one_update_and_its_commit(embedded):
    told: list[str] = []
    database = embedded.sekisho.database
    await database.migrate(lambda connection: connection.connection.driver_connection.set_trace_callback(told.append))
    told.clear()
    await embedded.refresh(embedded.token)
    assert (told[0], told[2:]) == ("BEGIN IMMEDIATE", ["COMMIT"])
    assert told[1].startswith("UPDATE sessions SET")


# --- a stall in the middle -----------------------------------------------------------------------------------------


class Standstill(StallWatch):
    """The node stands still between taking up a request and the database's answer."""

    def __init__(self, *, for_s: float) -> None:
        readings = iter([100.0] * 4)  # its own start, and the request when it comes in
        super().__init__(window_s=30, monotonic=lambda: next(readings, 100.0 + for_s))


@pytest.mark.anyio
@pytest.mark.parametrize("case", ["rotate", "branch", "adopt", "theft"])
async def test_a_node_that_stood_still_in_the_middle_decides_nothing(embedded, case):
    """Its client has given up and refreshed elsewhere: what is presented may look like a thief's by now."""
    if case != "rotate":
        await embedded.change(generation={"branch": 1, "adopt": 0, "theft": 5}[case], parent_branch=0)
    token = embedded.token_of(3) if case == "adopt" else embedded.token
    before = await embedded.row()
    refresh = replace(embedded.sekisho.flows.refresh, stall=Standstill(for_s=3.8))
    with pytest.raises(TryLater):
        await refresh(token=token, caller=CALLER)
    assert await embedded.row() == before
    assert await embedded.sekisho.database.migrate(lambda connection: connection.execute(select(thefts)).all()) == []


@pytest.mark.anyio
async def test_a_short_one_is_none(embedded):
    refresh = replace(embedded.sekisho.flows.refresh, stall=Standstill(for_s=3.7))
    assert (await refresh(token=embedded.token, caller=CALLER)).refresh_token == embedded.token_of(1)


# --- a client that has left ----------------------------------------------------------------------------------------


async def through_middleware(request, call_next):
    """Starlette's base for middleware wraps what the application receives from, in tasks of its own."""
    return await call_next(request)


@pytest.mark.anyio
@pytest.mark.parametrize(("left", "around"), [(True, None), (False, None), (False, through_middleware)])
async def test_nothing_moves_for_a_client_that_has_left(embedded, left, around):
    app = embedded.sekisho.app()
    if around is not None:
        app.add_middleware(BaseHTTPMiddleware, dispatch=around)
    body = json.dumps({"refresh_token": embedded.token}).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    if left:
        messages.append({"type": "http.disconnect"})
    answer = []

    async def receive():
        return messages.pop(0) if messages else await asyncio.Event().wait()

    async def send(message) -> None:
        answer.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": "POST", "path": "/refresh", "headers": headers, "query_string": b""}
    before = await embedded.row()
    await app(scope, receive, send)
    assert answer[0]["status"] == (503 if left else 200)
    assert (await embedded.row() == before) == left


# --- the application around it hears of a theft --------------------------------------------------------------------


async def theft_in(embedded: Embedded, hook: OnTheft) -> None:
    embedded.hooks.append(hook)
    await embedded.change(generation=5)
    with pytest.raises(RefreshTheft):
        await embedded.refresh(embedded.token)


@pytest.mark.anyio
@pytest.mark.parametrize("asynchronous", [True, False])
async def test_the_hook_hears_of_a_theft_after_the_session_has_ended(embedded, asynchronous):
    heard: asyncio.Queue[tuple[TheftRecord, object]] = asyncio.Queue()

    async def later(theft: TheftRecord) -> None:
        story = await embedded.sekisho.flows.sessions.story(theft.session_id)
        heard.put_nowait((theft, story.session.cause))

    def at_once(theft: TheftRecord) -> None:
        heard.put_nowait((theft, "theft"))

    await theft_in(embedded, later if asynchronous else at_once)
    async with asyncio.timeout(5):
        theft, cause = await heard.get()
    assert cause == "theft"
    story = await embedded.sekisho.flows.sessions.story(embedded.session_id)
    assert list(story.thefts) == [theft]
    assert (theft.generation, theft.current_generation) == (0, 5)
    assert heard.empty()


@pytest.mark.anyio
async def test_a_theft_is_told_though_the_request_that_showed_it_was_cancelled(embedded):
    """By a middleware's time-out, for example."""
    heard, ended = [], set()
    embedded.hooks.append(lambda theft: heard.append(theft.session_id))
    sekisho = embedded.sekisho
    under_way = sekisho.flows.refresh._under_way
    for steps in range(6):
        credentials = {"email": "one@example.com", "password": "a gate on the old road"}
        grant = (await sekisho.flows.login(**credentials, caller=CALLER, carrier=sekisho.flows.mint)).grant
        session_id = sekisho._mint.read_refresh_token(grant.refresh_token).session_id
        await embedded.change(generation=5)
        request = asyncio.create_task(embedded.refresh(grant.refresh_token))
        while not under_way:  # noqa: ASYNC110 - the product has no event for it
            await asyncio.sleep(0)
        for _ in range(steps):
            await asyncio.sleep(0)
        request.cancel()
        await asyncio.wait([request, *under_way])
        assert request.cancelled()
        await sekisho._alarm.finish()
        assert (await sekisho.flows.sessions.story(session_id)).session.cause == "theft"
        ended.add(session_id)
    assert set(heard) == ended


@pytest.mark.anyio
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_hook_that_fails_changes_nothing_and_is_told_without_its_words(embedded, caplog):
    def fails(theft: TheftRecord) -> None:
        raise LookupError(f"a secret of {theft.user_id}")

    await theft_in(embedded, fails)
    await embedded.sekisho._alarm.finish()
    (line,) = [json.loads(record.message) for record in caplog.records if '"crashed"' in record.message]
    assert (line["outcome"], line["in_hook"]) == ("LookupError", "on_theft")
    assert "a secret of" not in caplog.text
    assert "fails" in line["where"]
