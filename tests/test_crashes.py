"""The server dies in the middle of its work, or the database does: what was acknowledged stays, nothing is half done."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx2
import pytest

from servers.leash import end_process, start_process
from servers.ports import free_port
from servers.postgres import Postgres, PostgresServer
from servers.sekisho_server import RunningServer
from test_serve import PASSWORD, Person, a_client, an_address, events, is_problem, wait_until

THREADS = 6
# Addresses of clients are drawn at random, so that no throttle stands in the way of the load.
LOAD_ENV = {"SEKISHO_TRUSTED_PROXIES": "127.0.0.1/32"}


def from_anywhere() -> dict[str, str]:
    return {"X-Forwarded-For": f"10.{random.randrange(256)}.{random.randrange(256)}.1"}


# --- kill -9 in the middle of writes -------------------------------------------------------------------------------


@dataclass
class Story:
    """An account and what its owner knows about it. None: the answer never came."""

    person: Person
    signed_up: bool | None = False
    logged_in: bool | None = False
    logged_out: bool | None = False
    refreshes: int = 0
    refused: list[str] = field(default_factory=list)


class Crowd:
    """Threads in which people sign up, log in, refresh and log out as fast as they can."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self.stories: list[Story] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(THREADS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    @property
    def logged_out(self) -> int:
        return sum(story.logged_out is True for story in self.stories)

    def _run(self) -> None:
        with a_client(self._server) as client, suppress(httpx2.TransportError):
            while not self._stop.is_set():
                story = Story(Person(client))
                self.stories.append(story)
                self._live(story)

    def _live(self, story: Story) -> None:
        """Each answer counts from the moment it is here; until then it is unknown (None)."""
        person = story.person
        account = {"email": person.email, "password": PASSWORD}
        story.signed_up = None
        story.signed_up = self._post(story, "/signup", account) is not None
        if not story.signed_up:
            return
        for _ in range(random.randint(1, 2)):
            story.logged_in = None
            answer = self._post(story, "/login", account)
            story.logged_in = answer is not None
            if answer is None:
                return
            person.tokens = answer.json()
        for _ in range(random.randint(0, 3)):
            answer = self._post(story, "/refresh", {"refresh_token": person.refresh_token})
            if answer is not None:
                person.tokens = answer.json()
                story.refreshes += 1
        if random.random() < 0.6:
            story.logged_out = None
            story.logged_out = self._post(story, "/logout", {"refresh_token": person.refresh_token}) is not None

    def _post(self, story: Story, path: str, body: dict[str, str]) -> httpx2.Response | None:
        answer = story.person.client.post(path, json=body, headers=from_anywhere())
        if answer.is_success:
            return answer
        if answer.status_code != 503:  # busy is an honest answer
            story.refused.append(f"{path} {answer.status_code} {answer.text}")
        return None


def check(story: Story, client: httpx2.Client) -> None:
    """What the owner finds after the restart."""
    person = story.person
    assert story.refused == []
    login = client.post("/login", json={"email": person.email, "password": PASSWORD}, headers=from_anywhere())
    if story.signed_up:
        assert login.status_code == 200, "an acknowledged account is there"
    else:
        assert login.status_code in {200, 401}
        again = client.post("/signup", json={"email": person.email, "password": PASSWORD}, headers=from_anywhere())
        assert again.status_code == (409 if login.status_code == 200 else 201), "wholly there or wholly absent"
    if not person.tokens:
        return
    alive = (person.me(client).status_code, person.refresh(client).status_code)
    if story.logged_out:
        assert alive == (401, 401), "an acknowledged logout stays"
        is_problem(person.refresh(client), 401, "refresh_refused")
    elif story.logged_out is None:
        assert alive in {(200, 200), (401, 401)}, "wholly logged out or not at all"
    else:
        assert alive == (200, 200), "nobody else is logged out"


# Rows of which one half was written and the other not. There must be none, ever.
HALVES = {
    "ended without an entry for the verifiers": """SELECT count(*) FROM sessions
        WHERE ended_at_us IS NOT NULL AND id NOT IN (SELECT session_id FROM revocations)""",
    "an entry for the verifiers, and not ended": """SELECT count(*) FROM revocations
        WHERE session_id NOT IN (SELECT id FROM sessions WHERE ended_at_us IS NOT NULL)""",
    "ended without a cause": "SELECT count(*) FROM sessions WHERE (ended_at_us IS NULL) <> (cause IS NULL)",
    "signed in without a device": """SELECT count(*) FROM sessions
        WHERE user_id NOT IN (SELECT user_id FROM devices)""",
}


def count_in(url: str, postgres: Postgres) -> Callable[[str], int]:
    """Asks the database itself, past Sekisho."""
    if url.startswith("postgresql"):
        return lambda sql: int(postgres.execute(sql, database=url.rpartition("/")[2]))

    def ask(sql: str) -> int:
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            return connection.execute(sql).fetchone()[0]

    return ask


def kill_and_check(server: RunningServer, url: str, postgres: Postgres, *, after: int) -> list[Story]:
    """Kills under load when this many logouts are acknowledged, restarts, and checks every story."""
    with Crowd(server) as crowd:
        wait_until(lambda: crowd.logged_out >= after, within_s=60, what="people come and go")
        time.sleep(random.uniform(0, 0.2))  # not always just after an answer: death comes at any moment
        server.kill()
    assert server.process.returncode == -signal.SIGKILL
    count = count_in(url, postgres)
    assert {what: count(sql) for what, sql in HALVES.items()} == dict.fromkeys(HALVES, 0)
    server.start()
    with a_client(server) as client:
        for story in crowd.stories:
            check(story, client)
    assert not events(server, "crashed")
    return crowd.stories


def test_killed_in_the_middle_of_writes_it_has_lost_nothing_it_acknowledged(serve, database_url, postgres):
    server = serve(database_url=database_url, env=LOAD_ENV)
    stories = kill_and_check(server, database_url, postgres, after=15)
    assert sum(story.refreshes for story in stories) > 0
    # Somebody was in the middle of something, or this test shows nothing.
    assert any(None in (story.signed_up, story.logged_in, story.logged_out) for story in stories)


@pytest.mark.long  # ten deaths of a server take a minute; each hits other moments
def test_killed_again_and_again_it_has_lost_nothing(serve, database_url, postgres):
    server = serve(database_url=database_url, env=LOAD_ENV)
    told = [story for _ in range(10) for story in kill_and_check(server, database_url, postgres, after=20)]
    with a_client(server) as client:
        for story in random.sample(told, min(40, len(told))):
            if story.logged_out:
                is_problem(story.person.refresh(client), 401, "refresh_refused")


@pytest.mark.long  # the supervisor takes its time to notice, and a worker to start
def test_a_killed_worker_is_replaced_and_its_people_go_on(serve, postgres_url):
    server = serve(database_url=postgres_url, args=["--workers", "2"])
    wait_until(lambda: len(events(server, "started")) == 2, within_s=30)
    with a_client(server) as client:
        person = Person(client).signs_up().logs_in()
        gone = Person(client, person.email).logs_in()
        assert gone.log_out().status_code == 204
    victims = [
        int(line["event"].split("[")[1].rstrip("]"))
        for line in _lines(server)
        if line["event"].startswith("Started server process")
    ]
    os.kill(victims[0], signal.SIGKILL)
    wait_until(lambda: len(events(server, "started")) == 3, within_s=30, what="the worker is replaced")
    for _ in range(10):
        with a_client(server) as client:
            assert person.me(client).status_code == 200
            is_problem(gone.me(client), 401, "invalid_token")
    with a_client(server) as client:
        assert person.refresh(client).status_code == 200


def _lines(server: RunningServer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log_text().splitlines() if line.startswith("{")]


# --- PostgreSQL goes away ------------------------------------------------------------------------------------------

_EMBEDDED = """
from typing import Annotated

from fastapi import Depends, FastAPI

from sekisho import AccessClaims
from sekisho.web import Sekisho, Settings

auth = Sekisho(Settings())
app = FastAPI()
app.include_router(auth.router, prefix="/auth")


@app.get("/customers")
async def customers(user: Annotated[AccessClaims, Depends(auth.current_user)]) -> dict[str, str]:
    return {"user": user.sub}
"""


class Embedded:
    """An application of someone's own with Sekisho under /auth, run by uvicorn."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        (folder / "shop.py").write_text(_EMBEDDED)
        env = {
            "PATH": os.defpath,
            "HOME": str(folder),
            "SEKISHO_DATABASE_URL": database_url,
            "SEKISHO_ISSUER": f"{self.base_url}/auth",
            "SEKISHO_SIGNING_ALGORITHM": "ES256",
        }
        program = Path(sys.executable)
        subprocess.run([program.with_name("sekisho"), "db", "upgrade"], env=env, cwd=folder, check=True, timeout=60)
        command = [program, "-m", "uvicorn", "shop:app", "--port", str(self.port)]
        with (folder / "log").open("ab") as log:
            self._process = start_process(command, log=log, env=env, cwd=folder)

    def answers(self) -> bool:
        with suppress(httpx2.TransportError), httpx2.Client(trust_env=False) as client:
            return client.get(f"{self.base_url}/auth/healthz").status_code == 200
        assert self._process.poll() is None, self.log_text()
        return False

    def log_text(self) -> str:
        return (self.folder / "log").read_text()

    def close(self) -> None:
        end_process(self._process, signal.SIGKILL)


@pytest.fixture
def shop(tmp_path: Path, private_postgres: PostgresServer) -> Iterator[Embedded]:
    shop = Embedded(tmp_path, private_postgres.create_database())
    with closing(shop):
        wait_until(shop.answers, within_s=30, what="the application is up")
        yield shop


class Visitor:
    """The calls of the application, with Sekisho's below /auth."""

    def __init__(self, shop: Embedded, client: httpx2.Client) -> None:
        self.client = client
        self._root = shop.base_url

    def customers(self, person: Person) -> int:
        """The guarded route."""
        bearer = {"Authorization": f"Bearer {person.access_token}"}
        return self.client.get(f"{self._root}/customers", headers=bearer).status_code

    def calls_that_need_the_database(self, person: Person) -> dict[str, httpx2.Response]:
        account = {"email": an_address(), "password": PASSWORD}
        bearer = {"Authorization": f"Bearer {person.access_token}"}
        return {
            "sign up": self.client.post("/signup", json=account),
            "log in": self.client.post("/login", json={**account, "email": person.email}),
            "log in as nobody": self.client.post("/login", json=account),
            "refresh": person.refresh(self.client),
            "log out": person.log_out(self.client),
            "log out by refresh token": self.client.post("/logout", json={"refresh_token": person.refresh_token}),
            "log out everywhere": self.client.post("/logout/all", headers=bearer),
            "change the password": self.client.post(
                "/password", json={"current_password": PASSWORD, "new_password": PASSWORD[::-1]}, headers=bearer
            ),
            "me": person.me(self.client),
            "sessions": self.client.get("/sessions", headers=bearer),
            "end a session": self.client.delete(f"/sessions/{person.session_id}", headers=bearer),
            "readyz": self.client.get("/readyz"),
        }


def unavailable(response: httpx2.Response) -> None:
    is_problem(response, 503, "storage_unavailable")
    assert int(response.headers["retry-after"]) >= 1
    assert "set-cookie" not in response.headers


@pytest.mark.parametrize("mode", ["immediate", "fast"])
def test_without_postgresql_checking_goes_on_and_the_rest_says_when_to_come_back(shop, private_postgres, mode):
    with httpx2.Client(base_url=f"{shop.base_url}/auth", timeout=20, trust_env=False) as client:
        visitor = Visitor(shop, client)
        person = Person(client).signs_up().logs_in()
        gone = Person(client, person.email).logs_in()
        assert gone.log_out().status_code == 204
        assert (visitor.customers(person), visitor.customers(gone)) == (200, 401)

        private_postgres.stop(mode)
        for _ in range(2):
            for what, response in visitor.calls_that_need_the_database(person).items():
                assert response.status_code == 503, what
                unavailable(response)
            assert (visitor.customers(person), visitor.customers(gone)) == (200, 401)
            assert client.get("/healthz").status_code == 200
            assert len(client.get("/.well-known/jwks.json").json()["keys"]) == 1
            assert client.get("/metrics").status_code == 200

        private_postgres.start()
        wait_until(lambda: client.get("/readyz").status_code == 200, within_s=10, what="it is ready again")
        assert (visitor.customers(person), visitor.customers(gone)) == (200, 401)
        is_problem(gone.refresh(), 401, "refresh_refused")
        assert person.refresh().status_code == 200  # what answered 503 has ended no session
        newcomer = Person(client).signs_up().logs_in()
        assert visitor.customers(newcomer) == 200

        # The end of a session that this node did not see itself: the watch over the table is back too.
        _end_elsewhere(shop, newcomer)
        wait_until(lambda: visitor.customers(newcomer) == 401, within_s=1, what="the watch goes on")
        assert visitor.customers(person) == 200
        assert person.log_out().status_code == 204
        assert visitor.customers(person) == 401
    assert '" 500' not in shop.log_text()


def _end_elsewhere(shop: Embedded, person: Person) -> None:
    folder = shop.folder
    environ = Path(f"/proc/{shop._process.pid}/environ").read_text().split("\0")
    env = dict(line.split("=", 1) for line in environ if line)
    program = Path(sys.executable).with_name("sekisho")
    subprocess.run([program, "sessions", "end", person.session_id], env=env, cwd=folder, check=True, timeout=60)


# --- SQLite is locked ----------------------------------------------------------------------------------------------


def test_while_another_process_holds_sqlite_writes_are_put_off_and_reads_go_on(serve):
    server = serve()
    with ExitStack() as stack:
        client = stack.enter_context(a_client(server))
        person = Person(client).signs_up().logs_in()
        other = stack.enter_context(closing(sqlite3.connect(server.folder / "sekisho.db", isolation_level=None)))
        other.execute("BEGIN IMMEDIATE")
        account = {"email": an_address(), "password": PASSWORD}
        for response in (
            client.post("/signup", json=account),
            client.post("/login", json={**account, "email": person.email}),
            person.refresh(),
            person.log_out(),
        ):
            began = time.monotonic()
            unavailable(response)
            assert response.elapsed.total_seconds() < 3
        assert time.monotonic() - began < 1
        assert person.me().status_code == 200  # readers do not wait for the writer
        assert client.get("/readyz").status_code == 200
        other.execute("ROLLBACK")
        assert client.post("/signup", json=account).status_code == 201
        assert person.refresh().status_code == 200
        assert person.log_out().status_code == 204
    assert not events(server, "crashed")
