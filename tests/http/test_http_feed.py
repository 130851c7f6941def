"""The feed as a verifier elsewhere follows it, from the running server."""

import secrets
import signal
import sys
import time
from contextlib import ExitStack
from itertools import pairwise

import httpx2
import pytest
from outsiders import (
    OTHER_PASSWORD,
    PASSWORD,
    Rows,
    bearer,
    is_problem,
    keys_of,
    log_in,
    me,
    refresh,
    sign_up,
)

from feed_reader import following
from sekisho.storage.rows import Cause
from servers import ports
from servers.leash import end_process, start_process
from servers.sekisho_server import RunningServer
from test_nodes import shared_settings
from test_serve import wait_until

_credentials: dict[str, str] = {}


def credential_for(server: RunningServer) -> str:
    """One for all tests of a server: the command takes a second."""
    if server.base_url not in _credentials:
        _credentials[server.base_url] = server.run("verifiers", "add", f"shop-{secrets.token_hex(4)}").strip()
    return _credentials[server.base_url]


@pytest.fixture
def credential(server):
    return credential_for(server)


def log_out(client, tokens):
    assert client.post("/logout", headers=bearer(tokens.access)).status_code == 204


def ids_of(events):
    return set().union(*(event.ids for event in events))


# --- who may follow ------------------------------------------------------------------------------------------------


def test_only_a_verifiers_credential_opens_it(client, credential):
    is_problem(client.get("/revocations"), 401, "authentication_required")
    for bad in ("garbage", f"sekisho_vc_{'A' * 43}", f"{credential}x", log_in(client).access, "é"):
        answer = client.get("/revocations", headers=[("Authorization", f"Bearer {bad}".encode())])
        is_problem(answer, 401, "verifier_refused")
        assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    for bad in (f"Basic {credential}", credential):
        is_problem(client.get("/revocations", headers={"Authorization": bad}), 401, "verifier_refused")
    twice = [("Authorization", f"Bearer {credential}"), ("Authorization", f"Bearer {credential}")]
    is_problem(client.get("/revocations", headers=twice), 401, "verifier_refused")
    is_problem(me(client, credential), 401, "invalid_token")


def test_a_removed_credential_opens_it_no_more(server, client):
    name = f"gone-{secrets.token_hex(4)}"
    credential = server.run("verifiers", "add", name).strip()
    with following(server.base_url, credential):
        server.run("verifiers", "remove", name)
        is_problem(client.get("/revocations", headers=bearer(credential)), 401, "verifier_refused")


def test_nothing_between_keeps_or_holds_it(server, credential):
    with following(server.base_url, credential) as reader:
        headers = reader.response.headers
        assert headers["content-type"] == "text/event-stream"
        assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-store", "no")


# --- what comes, in which order ------------------------------------------------------------------------------------


def test_first_all_there_is_then_what_is_new_and_a_heartbeat_each_second(server, client, credential):
    before, after = log_in(client), log_in(client)
    log_out(client, before)
    with following(server.base_url, credential) as reader:
        at_first = list(reader.all)
        log_out(client, after)
        told = reader.until(lambda event: event.name == "revoked" and str(after.session_id) in event.ids)
        beats = [reader.next("heartbeat") for _ in range(3)]
    # A snapshot may be one that was made for an earlier reader; then what has happened since follows it.
    names = [event.name for event in at_first]
    assert names == sorted(names, key=["snapshot", "revoked", "heartbeat"].index)
    assert (names[0], names.count("heartbeat")) == ("snapshot", 1)
    assert str(before.session_id) in ids_of(at_first[:-1])
    assert str(after.session_id) not in ids_of(at_first[:-1])
    snapshot = [event for event in at_first if event.name == "snapshot"]
    assert [event.entries.more for event in snapshot] == [True] * (len(snapshot) - 1) + [False]
    revoked = [event.number for event in reader.all if event.name == "revoked"]
    assert revoked == list(range(snapshot[-1].number + 1, snapshot[-1].number + 1 + len(revoked)))
    assert {event.boot for event in reader.all if event.id} == {snapshot[-1].boot}
    assert beats[0].number >= told.number
    assert all(0.5 < later.at - earlier.at < 2.5 for earlier, later in pairwise(beats))


def test_entries_lapse_when_the_last_token_has(server, client, credential):
    tokens = log_in(client)
    with following(server.base_url, credential) as reader:
        log_out(client, tokens)
        event = reader.until(lambda event: event.name == "revoked" and str(tokens.session_id) in event.ids)
        (lapses_at,) = [at for at, ids in event.entries.by_time() if str(tokens.session_id) in ids]
    assert lapses_at > tokens.claims["iat"] + 3600


def test_each_session_is_told_once(server, client, credential):
    tokens = [log_in(client) for _ in range(5)]
    with following(server.base_url, credential) as reader:
        for one in tokens:
            log_out(client, one)
            log_out(client, one)
        reader.hears_of(*[one.session_id for one in tokens])
        for _ in range(2):  # the table was read again meanwhile
            reader.next("heartbeat")
    told = [sid for event in reader.all if event.name == "revoked" for sid in event.ids]
    for one in tokens:
        assert told.count(str(one.session_id)) == 1


def test_metrics_count_readers_and_events(server, client, credential):
    def value(name):
        lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
        return float(lines[0].split()[1])

    before = value("sekisho_feed_events_sent_total")
    with following(server.base_url, credential), following(server.base_url, credential):
        assert value("sekisho_feed_readers") >= 2
        assert value("sekisho_feed_events_sent_total") >= before + 4
    wait_until(lambda: value("sekisho_feed_readers") == 0, within_s=10, what="readers that left are noticed")


# --- coming back ---------------------------------------------------------------------------------------------------


def test_who_comes_back_hears_what_was_missed_and_no_snapshot(server, client, credential):
    first, missed, later = log_in(client), log_in(client), log_in(client)
    with following(server.base_url, credential) as reader:
        log_out(client, first)
        seen = reader.until(lambda event: event.name == "revoked" and str(first.session_id) in event.ids)
    log_out(client, missed)
    with following(server.base_url, credential, last_event_id=seen.id) as reader:
        names = [event.name for event in reader.all]
        log_out(client, later)
        reader.hears_of(later.session_id)
    assert "snapshot" not in names
    revoked = [event for event in reader.all if event.name == "revoked"]
    assert [event.number for event in revoked] == list(range(seen.number + 1, seen.number + 1 + len(revoked)))
    assert str(missed.session_id) in ids_of(revoked)
    assert str(first.session_id) not in ids_of(revoked)


@pytest.mark.parametrize("other", ["0123456789abcdef:0", "{boot}:999999", "{boot}:-1", "{boot}", ":", "x" * 5000])
def test_who_comes_from_elsewhere_gets_a_snapshot(server, credential, other):
    with following(server.base_url, credential) as reader:
        boot = reader.all[0].boot if reader.all[0].id else reader.next("heartbeat").boot
    with following(server.base_url, credential, last_event_id=other.format(boot=boot)) as reader:
        assert reader.all[0].name == "snapshot"


def test_after_a_restart_the_ids_are_others(serve):
    server = serve()
    credential = credential_for(server)
    with following(server.base_url, credential) as reader:
        seen = reader.all[0]
    server.stop()
    server.start()
    with following(server.base_url, credential, last_event_id=seen.id) as reader:
        assert reader.all[0].name == "snapshot"
        assert reader.all[0].boot != seen.boot


# --- every path that ends a session --------------------------------------------------------------------------------


class Paths:
    """For each cause one way to it, over HTTP or by the command line; each gives the session that ended."""

    def __init__(self, server: RunningServer, client: httpx2.Client, rows: Rows) -> None:
        self.server, self.client, self.rows = server, client, rows

    def logout(self):
        tokens = log_in(self.client)
        log_out(self.client, tokens)
        return tokens

    def logout_all(self):
        tokens = log_in(self.client)
        assert self.client.post("/logout/all", headers=bearer(tokens.access)).status_code == 204
        return tokens

    def ended_by_user(self):
        email = sign_up(self.client)
        tokens, here = log_in(self.client, email), log_in(self.client, email)
        gone = self.client.delete(f"/sessions/{tokens.session_id}", headers=bearer(here.access))
        assert gone.status_code == 204
        return tokens

    def expired(self):
        tokens = log_in(self.client)
        self.rows.change(tokens.session_id, "idle_ends_at_us = 1")
        is_problem(refresh(self.client, tokens.refresh), 401, "refresh_refused")
        return tokens

    def evicted(self):
        email = sign_up(self.client)
        tokens = log_in(self.client, email)
        for _ in range(int(self.server.env["SEKISHO_MAX_SESSIONS"])):
            log_in(self.client, email)
        return tokens

    def password_changed(self):
        tokens = log_in(self.client)
        body = {"current_password": PASSWORD, "new_password": OTHER_PASSWORD}
        assert self.client.post("/password", json=body, headers=bearer(tokens.access)).status_code == 200
        return tokens

    def user_disabled(self):
        email = sign_up(self.client)
        tokens = log_in(self.client, email)
        self.server.run("users", "disable", email)
        return tokens

    def theft(self):
        tokens = log_in(self.client)
        for _ in range(2):
            self.rows.age(tokens.session_id, made_s=100, handed_out_s=100)
            assert refresh(self.client, tokens.refresh).status_code == 200
        self.rows.change(tokens.session_id, "generation = 7")
        is_problem(refresh(self.client, tokens.refresh), 401, "refresh_refused")
        return tokens

    def admin(self):
        tokens = log_in(self.client)
        self.server.run("sessions", "end", str(tokens.session_id))
        return tokens


@pytest.fixture(params=["sqlite", "postgresql"])
def small(request, serve, postgres, tmp_path):
    """A node where two sessions are the most that a user may have; and its rows."""
    url = f"sqlite:///{tmp_path / 'small.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    server = serve(database_url=url, env={"SEKISHO_MAX_SESSIONS": "2", "SEKISHO_TRUSTED_PROXIES": "127.0.0.1/32"})
    return server, Rows(server, postgres)


def test_every_way_in_which_a_session_ends_is_told(small, connect):
    server, rows = small
    ways = Paths(server, connect(server), rows)
    with following(server.base_url, credential_for(server)) as reader:
        for cause in Cause:
            tokens = getattr(ways, cause.value)()
            assert rows.cause(tokens.session_id) == cause.value
            reader.hears_of(tokens.session_id)
            is_problem(me(ways.client, tokens.access), 401, "invalid_token")


def test_a_key_that_is_retired_is_told_and_stays_in_the_snapshots(small, connect):
    server, _ = small
    client = connect(server)
    old = keys_of(server).active("sign").kid
    tokens = log_in(client)
    credential = credential_for(server)
    with following(server.base_url, credential) as reader:
        server.run("keys", "retire", old, "--now")
        reader.hears_of(old)
        is_problem(me(client, tokens.access), 401, "invalid_token")
    with following(server.base_url, credential) as reader:
        assert old in ids_of(reader.all[:-1])
    server.stop()
    server.start()
    with following(server.base_url, credential) as reader:
        assert reader.all[0].entries.keys == [old]


def test_keys_that_sign_nothing_for_others_are_not_told(small):
    server, _ = small
    old = keys_of(server).active("refresh").kid
    credential = credential_for(server)
    server.run("keys", "rotate", "--purpose", "refresh", "--now")
    server.run("keys", "retire", old, "--now")
    with following(server.base_url, credential) as reader:
        assert all(old not in event.entries.keys for event in reader.all if event.name == "snapshot")


# --- several nodes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_redis", [False, True])
def test_a_logout_on_another_node_is_told(serve, connect, postgres_url, redis_url, tmp_path, with_redis):
    env = shared_settings(tmp_path) | ({"SEKISHO_REDIS_URL": redis_url} if with_redis else {})
    one, two = serve(database_url=postgres_url, env=env), serve(database_url=postgres_url, env=env)
    client = connect(one)
    email = sign_up(client)
    with following(two.base_url, credential_for(two)) as reader:
        for _ in range(10):
            tokens = log_in(client, email)
            log_out(client, tokens)
            acknowledged = time.monotonic()
            event = reader.until(
                lambda event, tokens=tokens: event.name == "revoked" and str(tokens.session_id) in event.ids
            )
            assert event.at - acknowledged < 1
    numbers = [event.number for event in reader.all if event.name == "revoked"]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_a_transaction_that_took_its_id_first_and_commits_much_later_is_told(serve, connect, postgres_url, postgres):
    import asyncio

    import asyncpg

    server = serve(database_url=postgres_url)
    client = connect(server)
    late, quick = log_in(client), log_in(client)

    async def held(reader):
        connection = await asyncpg.connect(postgres_url)
        try:
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute(
                "INSERT INTO revocations (session_id, lapses_at_us) VALUES ($1, $2)",
                late.session_id,
                int((time.time() + 3600) * 1e6),
            )
            await asyncio.to_thread(log_out, client, quick)
            await asyncio.to_thread(reader.hears_of, quick.session_id)
            for _ in range(2):  # the table is read ten times meanwhile
                await asyncio.to_thread(reader.next, "heartbeat")
            assert me(client, late.access).status_code == 200
            await transaction.commit()
        finally:
            await connection.close()
        await asyncio.to_thread(reader.hears_of, late.session_id)

    with following(server.base_url, credential_for(server)) as reader:
        asyncio.run(held(reader))
    is_problem(me(client, late.access), 401, "invalid_token")


def test_heartbeats_say_how_long_the_database_has_been_away(serve, private_postgres):
    from sekisho.verify.stream import read_heartbeat

    server = serve(database_url=private_postgres.create_database())
    with following(server.base_url, credential_for(server)) as reader:
        assert read_heartbeat(reader.next("heartbeat").data).age_ms < 1000
        private_postgres.stop("immediate")
        grown = reader.until(
            lambda event: event.name == "heartbeat" and read_heartbeat(event.data).age_ms > 2500, within_s=20
        )
        opened = [read_heartbeat(event.data).open_ms for event in reader.all if event.name == "heartbeat"]
        assert opened == sorted(opened)
        private_postgres.start()
        reader.until(lambda event: event.name == "heartbeat" and read_heartbeat(event.data).age_ms < 1000, within_s=20)
        assert grown.number == reader.all[-1].number
    with httpx2.Client(base_url=server.base_url, trust_env=False, verify=False) as client:
        private_postgres.stop("immediate")
        is_problem(client.get("/revocations", headers=bearer(credential_for(server))), 503, "storage_unavailable")


# --- the end -------------------------------------------------------------------------------------------------------

_EMBEDDED = """
import sys
import uvicorn
from fastapi import FastAPI
from sekisho.web import Sekisho, Settings

auth = Sekisho(Settings())
app = FastAPI()
app.include_router(auth.router, prefix="/auth")
uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", [1, 2])
def test_streams_end_when_the_server_is_told_to(serve, postgres_url, workers, signum):
    server = serve(database_url=postgres_url, args=["--workers", str(workers)])
    credential = credential_for(server)
    with ExitStack() as stack:
        readers = [stack.enter_context(following(server.base_url, credential)) for _ in range(6)]
        began = time.monotonic()
        status = server.stop(signum)
        took_s = time.monotonic() - began
        assert [reader.end() for reader in readers] == ["complete"] * 6
    assert status == 0
    assert took_s < 2.5  # after 3 s uvicorn would cut them


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_streams_end_inside_another_application_too(serve, tmp_path, signum):
    maker = serve()  # its keys, its database, and a verifier in it
    credential = credential_for(maker)
    maker.stop()
    port = ports.free_port()
    with (tmp_path / "log").open("wb") as log:
        process = start_process([sys.executable, "-c", _EMBEDDED, str(port)], log=log, env=maker.env, cwd=maker.folder)
    try:
        base_url = f"http://127.0.0.1:{port}/auth/"
        wait_until(lambda: _healthy(base_url), within_s=30, what="it starts")
        with following(base_url, credential) as reader:
            began = time.monotonic()
            end_process(process, signum, patience_s=10)
            assert time.monotonic() - began < 2.5  # uvicorn itself would wait for ever
            assert reader.end() == "complete"
    finally:
        if process.poll() is None:
            end_process(process, signal.SIGKILL)


def _healthy(base_url: str) -> bool:
    try:
        return httpx2.get(f"{base_url}healthz", trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False
