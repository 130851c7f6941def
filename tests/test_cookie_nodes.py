"""Cookie sessions over HTTP, on several nodes with one database and one Redis: what ends one ends it everywhere."""

import asyncio
import hashlib
import random
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Self

import httpx2
import pytest
import redis
from fastapi import Depends, FastAPI

from sekisho.services.cookie_sessions import hash_of
from sekisho.settings import Settings
from sekisho.storage import session_cache
from sekisho.storage.engine import Database
from sekisho.storage.migrate import upgrade
from sekisho.tokens.access import AccessClaims
from sekisho.web import Sekisho
from servers.postgres import PostgresServer
from servers.redis import RedisServer
from servers.sekisho_server import RunningServer
from test_nodes import AT_ONCE_S
from test_serve import PASSWORD, an_address, sekisho_here, wait_until

ISSUER = (
    "http://127.0.0.1:9"  # all of them, by one name; plain http, so that a browser on this machine sends its cookies
)
COOKIE = "sekisho_session"
PREFIX = f"sekisho:session:{hashlib.sha256(ISSUER.encode()).hexdigest()[:16]}:"
MOST_SESSIONS = 3


class Nodes:
    """Three of them, and what they share."""

    def __init__(self, folder: Path, env: Mapping[str, str], redis_url: str) -> None:
        self.folder = folder
        self.env = {**env, "SEKISHO_REDIS_URL": redis_url}
        self.redis = redis.Redis.from_url(redis_url)
        self.all: list[RunningServer] = []

    def operator(self, *command: str) -> None:
        done = sekisho_here(*command, folder=self.folder, env=self.env)
        assert done.status == 0, done.err


@pytest.fixture(scope="module")
def nodes(postgres, tmp_path_factory) -> Iterator[Nodes]:
    """One set for the module: nobody here stops them."""
    folder = tmp_path_factory.mktemp("shared")
    env = {
        "SEKISHO_ISSUER": ISSUER,
        "SEKISHO_KEYS": f"file:{folder / 'keys.json'}",
        "SEKISHO_MAX_SESSIONS": str(MOST_SESSIONS),
        "SEKISHO_TRUSTED_PROXIES": "127.0.0.1/32",
        "SEKISHO_DATABASE_URL": postgres.create_database(),
    }
    with ExitStack() as running:
        running.callback(postgres.drop_database, env["SEKISHO_DATABASE_URL"])
        made = Nodes(folder, env, running.enter_context(RedisServer()).url)
        running.callback(made.redis.close)
        made.operator("keys", "new")
        made.operator("db", "upgrade")
        for _ in range(3):
            node = RunningServer(tmp_path_factory.mktemp("node"), env=made.env, upgrade=False)
            running.callback(node.close)
            made.all.append(node)
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(RunningServer.start, made.all))
        yield made


class Browser:
    """It knows the nodes by one name, so it shows each of them the same cookies."""

    def __init__(self, email: str = "") -> None:
        self.email = email or an_address()
        address = f"10.{random.randrange(256)}.{random.randrange(256)}.{random.randrange(1, 255)}"
        headers = {"X-Forwarded-For": address, "Sec-Fetch-Site": "same-origin"}
        self._client = httpx2.Client(headers=headers, timeout=20, trust_env=False)
        self._csrf_token = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    @property
    def cookie(self) -> str:
        return self._client.cookies[COOKIE]

    def asks(self, node: RunningServer, what: str, **body: str) -> httpx2.Response:
        method, _, path = what.partition(" ")
        headers = {"X-CSRF-Token": self._csrf_token} if method != "GET" and self._csrf_token else {}
        return self._client.request(method, node.base_url + path, headers=headers, json=body or None)

    def signs_up(self, node: RunningServer) -> "Browser":
        assert self.asks(node, "POST /signup", email=self.email, password=PASSWORD).status_code == 201
        return self

    def logs_in(self, node: RunningServer) -> "Browser":
        self._csrf_token = self.asks(node, "GET /session").json()["csrf_token"]
        answer = self.asks(node, "POST /session", email=self.email, password=PASSWORD)
        assert answer.status_code == 200, answer.text
        self._csrf_token = answer.json()["csrf_token"]
        self.session_id = answer.json()["user"]["session_id"]
        return self

    def status(self, node: RunningServer, cookie: str = "") -> int:
        """Whether it is let in; by a call that does not look at the account itself."""
        answer = self._client.get(f"{node.base_url}/sessions", headers={"Cookie": f"{COOKIE}={cookie or self.cookie}"})
        assert answer.status_code == 200 or "set-cookie" not in answer.headers
        return answer.status_code


class Other:
    """Another device of the same account, with tokens."""

    def __init__(self, node: RunningServer, email: str) -> None:
        answer = httpx2.post(
            f"{node.base_url}/login", json={"email": email, "password": PASSWORD}, trust_env=False, timeout=20
        )
        self._headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}

    def asks(self, node: RunningServer, what: str, **body: str) -> int:
        method, _, path = what.partition(" ")
        url = node.base_url + path
        return httpx2.request(
            method, url, headers=self._headers, json=body or None, trust_env=False, timeout=20
        ).status_code


def logged_out(nodes: Nodes, browser: Browser, _: Other) -> None:
    assert browser.asks(nodes.all[2], "DELETE /session").status_code == 204


def logged_out_everywhere(nodes: Nodes, _: Browser, other: Other) -> None:
    assert other.asks(nodes.all[2], "POST /logout/all") == 204


def ended_from_elsewhere(nodes: Nodes, browser: Browser, other: Other) -> None:
    assert other.asks(nodes.all[2], f"DELETE /sessions/{browser.session_id}") == 204


def password_changed(nodes: Nodes, _: Browser, other: Other) -> None:
    new = f"{PASSWORD}, again"
    assert other.asks(nodes.all[2], "POST /password", current_password=PASSWORD, new_password=new) == 200


def password_changed_by_itself(nodes: Nodes, browser: Browser, _: Other) -> None:
    """It goes on with a new cookie."""
    new = f"{PASSWORD}, again"
    answer = browser.asks(nodes.all[2], "POST /password", current_password=PASSWORD, new_password=new)
    assert answer.status_code == 200
    for node in nodes.all:
        assert browser.status(node) == 200


def evicted(nodes: Nodes, browser: Browser, _: Other) -> None:
    for _ in range(MOST_SESSIONS - 1):
        Other(nodes.all[2], browser.email)


def replaced_by_another_login(nodes: Nodes, browser: Browser, _: Other) -> None:
    browser.logs_in(nodes.all[2])
    for node in nodes.all:
        assert browser.status(node) == 200


def ended_by_the_operator(nodes: Nodes, browser: Browser, _: Other) -> None:
    nodes.operator("sessions", "end", browser.session_id)


def user_disabled(nodes: Nodes, browser: Browser, _: Other) -> None:
    nodes.operator("users", "disable", browser.email)


ENDS: list[Callable[[Nodes, Browser, Other], None]] = [
    logged_out,
    logged_out_everywhere,
    ended_from_elsewhere,
    password_changed,
    password_changed_by_itself,
    evicted,
    replaced_by_another_login,
    ended_by_the_operator,
    user_disabled,
]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__.replace("_", " "))
def test_what_ends_a_session_ends_it_on_every_node_whatever_redis_says(nodes, end):
    with Browser() as browser, Browser() as witness:
        browser.signs_up(nodes.all[0]).logs_in(nodes.all[0])
        witness.signs_up(nodes.all[0]).logs_in(nodes.all[0])
        other = Other(nodes.all[1], browser.email)
        cookie = browser.cookie
        key = PREFIX + hash_of(cookie).hex()
        assert [browser.status(node) for node in nodes.all] == [200] * 3
        entry = nodes.redis.get(key)
        assert entry is not None

        end(nodes, browser, other)
        since = time.monotonic()
        nodes.redis.set(key, entry, ex=600)  # as a reader that was slow would
        for node in nodes.all:
            wait_until(
                lambda node=node: browser.status(node, cookie) == 401,
                within_s=since + AT_ONCE_S - time.monotonic(),
                what=f"{node.base_url} refuses",
            )
        for node in nodes.all * 5:
            assert browser.status(node, cookie) == 401
        assert nodes.redis.get(key) == entry
        assert [witness.status(node) for node in nodes.all] == [200] * 3


def test_log_in_on_one_use_on_another_log_out_on_the_third(nodes):
    one, two, three = nodes.all
    for _ in range(3):
        with Browser() as browser:
            browser.signs_up(one).logs_in(one)
            assert browser.asks(two, "GET /session").json()["user"]["email"] == browser.email
            assert browser.asks(three, "DELETE /session").status_code == 204
            since = time.monotonic()
            assert COOKIE not in browser._client.cookies
            for node in (one, two):
                wait_until(
                    lambda node=node, browser=browser: browser.asks(node, "GET /session").json()["user"] is None,
                    within_s=since + AT_ONCE_S - time.monotonic(),
                )


def test_every_node_lists_when_a_session_was_last_used(nodes, postgres):
    database = nodes.env["SEKISHO_DATABASE_URL"].rpartition("/")[2]
    with Browser() as browser, ThreadPoolExecutor(12) as threads:
        browser.signs_up(nodes.all[0]).logs_in(nodes.all[0])
        hour_us = 3_600_000_000
        postgres.execute(
            f"UPDATE sessions SET handed_out_at_us = handed_out_at_us - {hour_us},"
            f" idle_ends_at_us = idle_ends_at_us - {hour_us} WHERE id = '{browser.session_id}'",
            database=database,
        )
        nodes.redis.flushdb()
        assert list(threads.map(browser.status, nodes.all * 8)) == [200] * 24
        row = postgres.execute(
            f"SELECT handed_out_at_us, idle_ends_at_us FROM sessions WHERE id = '{browser.session_id}'",
            database=database,
        )
        used_at_us, idle_ends_at_us = map(int, row.split("|"))
        listed = [browser.asks(node, "GET /sessions").json()["sessions"] for node in nodes.all]
        assert listed[0] == listed[1] == listed[2]
        (session,) = listed[0]
        assert (session["id"], session["kind"], session["current"]) == (browser.session_id, "cookie", True)
        used_at, ends_at = (datetime.fromisoformat(session[name]) for name in ("last_used_at", "expires_at"))
        assert used_at == datetime.fromtimestamp(used_at_us // 1_000_000, tz=UTC)
        assert ends_at == datetime.fromtimestamp(idle_ends_at_us // 1_000_000, tz=UTC)
        assert abs(time.time() - used_at.timestamp()) < 60


@pytest.mark.anyio
async def test_an_application_around_is_served_without_the_database_while_the_view_is_fresh(
    private_postgres: PostgresServer, redis_url, tmp_path, monkeypatch
):
    """Three seconds long. Then it is told to come again, and never that nobody is signed in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session_cache, "_TIMEOUT_S", 5.0)  # a busy machine is not what this is about
    url = private_postgres.create_database()
    database = Database(url)
    await upgrade(database)
    await database.close()
    auth = Sekisho(Settings(database_url=url, redis_url=redis_url, issuer=ISSUER))
    app = FastAPI()
    app.include_router(auth.router, prefix="/auth")

    @app.get("/orders")
    async def orders(user: Annotated[AccessClaims, Depends(auth.current_user)]) -> str:
        return user.sub

    transport = httpx2.ASGITransport(app=app)
    headers = {"Sec-Fetch-Site": "same-origin"}
    async with auth.running(), httpx2.AsyncClient(transport=transport, base_url=ISSUER, headers=headers) as client:
        account = {"email": an_address(), "password": PASSWORD}
        assert (await client.post("/auth/signup", json=account)).status_code == 201
        token = (await client.get("/auth/session")).json()["csrf_token"]
        answer = await client.post("/auth/session", json=account, headers={"X-CSRF-Token": token})
        assert answer.status_code == 200
        assert (await client.get("/orders")).json() == answer.json()["user"]["id"]

        private_postgres.stop("immediate")
        stopped, last_served, statuses = time.monotonic(), 0.0, []
        while statuses[-10:] != [503] * 10:
            sent = time.monotonic() - stopped
            statuses.append((await client.get("/orders")).status_code)
            if statuses[-1] == 200:
                last_served = sent
            assert sent < 15
            await asyncio.sleep(0.02)
        assert set(statuses) == {200, 503}
        assert 2.0 < last_served < 3.5
        private_postgres.start()
        async with asyncio.timeout(15):
            while (status := (await client.get("/orders")).status_code) != 200:
                assert status == 503
                await asyncio.sleep(0.02)
