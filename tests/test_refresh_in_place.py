"""Pages that are kept signed in, over real HTTP: with Sekisho inside, and in front of one elsewhere.

Time passes by making the session's row older. A node that has refreshed remembers the pair for W/4, so what is to be
decided by the row goes to another node.
"""

import gc
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
from playwright.sync_api import Page, expect
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient

from paged_world import OPEN, Gate, a_gate, django_app, served_asgi, served_wsgi, starlette_app
from sekisho import Verifier
from sekisho.integrations.starlette import RefreshInPlace
from sekisho.tokens import KeySet, access
from sekisho.tokens.keyring import Keyring
from sekisho.verify.cookies import Cookies
from sekisho.verify.issuer import RefreshAtIssuer
from sekisho.wire import now_s, since_boot
from servers.caching_proxy import CachingProxy
from servers.front import Front
from servers.ports import free_port
from servers.postgres import Postgres
from servers.proxy import Proxy, Rule
from servers.sekisho_server import RunningServer
from test_examples import GUNICORN, running
from test_serve import PASSWORD, an_address, claims_of, sekisho_here, wait_until

sys.path.append(str(Path(__file__).parent / "http"))  # its outsiders.py, when this file is tested alone

from outsiders import Rows, keys_of

W = 30
LONG = W + 5
DAYS = 3 * 86_400
NARROW_W = 4
KEYS = "sekisho-keys.json"
PAGED_NODE = (sys.executable, str(Path(__file__).parent / "servers" / "paged_node.py"))
TRUSTING = {"SEKISHO_TRUSTED_PROXIES": "127.0.0.1/32"}
OWN_PAGE, OTHER_SITE = {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "cross-site"}


# --- the worlds ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class World:
    """An application on several nodes, by their ports, and where its users sign in."""

    issuer: str
    auth: str
    """The address of Sekisho's calls."""
    answering: Sequence[str]
    """The same of every node that answers refreshes."""
    server: RunningServer
    rows: Rows
    one: int
    two: int
    narrow: int
    """Its window is 4 s wide."""
    cut_off: int
    """It reaches what a refresh needs through ``way``."""
    way: Proxy
    http: httpx2.Client

    def refreshes(self) -> float:
        """How many were done, over all sessions."""
        text = "".join(self.http.get(f"{base}/metrics").text for base in self.answering)
        return sum(map(float, re.findall(r'^sekisho_events_total\{event="refreshed".*\} (.*)$', text, re.MULTILINE)))


class Visitor:
    """A user's browser. It keeps cookies by itself, so that a test sees and loses each one."""

    def __init__(self, world: World, address: str, *, user_agent: str | bytes = "browser") -> None:
        self.world = world
        self.cookies: dict[str, str] = {}
        self.names = Cookies(world.issuer)
        self._headers = {"X-Forwarded-For": address, "User-Agent": user_agent}

    def signs_in(self) -> "Visitor":
        body = {"email": an_address(), "password": PASSWORD}
        assert self.call("/signup", json=body).status_code == 201
        answer = self.call("/login", json={**body, "cookies": True})
        assert answer.status_code == 200, answer.text
        assert {self.names.access, self.names.refresh} <= set(self.cookies)
        claims = claims_of(self.cookies[self.names.access])
        self.user, self.session_id = claims["sub"], UUID(claims["sid"])
        return self

    def call(self, path: str, **named: Any) -> httpx2.Response:
        """One of Sekisho's own calls, by a script of a page."""
        return self._send("POST", f"{self.world.auth}{path}", OWN_PAGE, keep=True, **named)

    def get(self, port: int, path: str = "/", **named: Any) -> httpx2.Response:
        return self.send("GET", port, path, **named)

    def send(
        self, method: str, port: int, path: str = "/", *, headers: Mapping[str, str] | None = None, keep: bool = True
    ) -> httpx2.Response:
        """``keep``: whether the answer's cookies arrive."""
        return self._send(method, f"http://127.0.0.1:{port}{path}", headers or {}, keep=keep)

    def _send(self, method: str, url: str, headers: Mapping[str, str], *, keep: bool, **named: Any) -> httpx2.Response:
        cookies = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
        sent = {**self._headers, **(cookies if self.cookies else {}), **headers}
        answer = self.world.http.request(method, url, headers=sent, **named)
        if keep:
            self.take(answer)
        return answer

    def take(self, answer: httpx2.Response) -> None:
        for line in answer.headers.get_list("set-cookie"):
            name, _, value = line.partition(";")[0].partition("=")
            if "max-age=0" in line.lower():
                self.cookies.pop(name, None)
            else:
                self.cookies[name] = value

    def fans_out(self, *ports: int, keep: bool = True, number: int = 20) -> list[httpx2.Response]:
        """A page and all that it asks for, at once, from these nodes in turn."""
        all_here = threading.Barrier(number)

        def one(index: int) -> httpx2.Response:
            all_here.wait(20)
            return self.get(ports[index % len(ports)], keep=False)

        with ThreadPoolExecutor(number) as pool:
            answers = list(pool.map(one, range(number)))
        if keep:
            for answer in answers:
                self.take(answer)
        return answers

    # --- what happens to its cookies and its session ---

    def loses_access(self) -> "Visitor":
        """The browser dropped the cookie when its time was over."""
        self.cookies.pop(self.names.access, None)
        return self

    def expires(self) -> "Visitor":
        """The browser's clock is behind: it has kept a token that has expired."""
        now = now_s()
        self.cookies[self.names.access] = access.issue(
            keys_of(self.world.server).active("sign"),
            issuer=self.world.issuer,
            audience=self.world.issuer,
            subject=self.user,
            session_id=str(self.session_id),
            issued_at=now - 2000,
            expires_at=now - 1000,
        )
        return self

    @property
    def refresh_token(self) -> str:
        return self.cookies[self.names.refresh]

    def ages(self, seconds: float) -> None:
        self.world.rows.age(self.session_id, made_s=seconds, handed_out_s=seconds)

    @property
    def position(self) -> tuple[int, int]:
        return self.world.rows.position(self.session_id)

    @property
    def row(self) -> list[str]:
        return self.world.rows.session(self.session_id, "*")

    def is_seen_as(self) -> list[str]:
        return self.world.rows.session(self.session_id, "last_address, last_user_agent")

    def is_still_signed_in(self) -> bool:
        """Sekisho itself says so, for the cookies as they are."""
        assert self.world.rows.cause(self.session_id) == ""
        self.ages(LONG)
        answer = self.call("/refresh")
        return answer.status_code == 200 and self.get(self.world.one).json()["user"] == self.user


def ours(answer: httpx2.Response, names: Cookies) -> dict[str, str]:
    """The Set-Cookie lines for the tokens, by name. None comes twice."""
    lines = answer.headers.get_list("set-cookie")
    found = {line.partition("=")[0]: line for line in lines}
    assert len(found) == len(lines), lines
    return {name: line for name, line in found.items() if name in {names.access, names.refresh}}


INSIDE = "Sekisho inside"
BUILDS: Mapping[str, tuple[Callable[..., Any], Callable[[Any], Any]]] = {
    "Starlette": (starlette_app, served_asgi),
    "Django, ASGI": (lambda *args, **named: django_app(*args, **named, is_async=True), served_asgi),
    "Django, WSGI": (lambda *args, **named: django_app(*args, **named, is_async=False), served_wsgi),
}
ELSEWHERE = "https://shop.example"


@pytest.fixture(scope="module")
def http() -> Iterator[httpx2.Client]:
    """It keeps no cookies: whose they are is the visitors' affair."""
    nobodys = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
    with httpx2.Client(timeout=20, trust_env=False, verify=False, cookies=nobodys) as client:
        yield client


@pytest.fixture(scope="module")
def inside(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory, http: httpx2.Client) -> Iterator[World]:
    """Two nodes as in examples/pages.py on one PostgreSQL, and one that differs."""
    issuer = "http://127.0.0.1:8000/auth"
    keys = KeySet.generate("HS256", now=now_s()).to_json()
    with ExitStack() as open_ones:
        url = postgres.create_database()
        open_ones.callback(postgres.drop_database, url)
        way = open_ones.enter_context(Proxy(postgres.port))

        def node(url: str = url, **env: str) -> RunningServer:
            folder = tmp_path_factory.mktemp("paged-node")
            (folder / KEYS).touch(0o600)
            (folder / KEYS).write_bytes(keys)
            env = {"SEKISHO_ISSUER": issuer, **env}
            made = RunningServer(folder, database_url=url, env=env, program=PAGED_NODE, upgrade=False)
            open_ones.callback(made.close)
            return made

        by_proxy = url.replace(f":{postgres.port}/", f":{way.port}/")
        nodes = [
            node(**TRUSTING),
            node(**TRUSTING),
            node(by_proxy, SEKISHO_REPLAY_WINDOW_S=str(NARROW_W)),  # and nobody's X-Forwarded-For counts
        ]
        assert sekisho_here("db", "upgrade", folder=nodes[0].folder, env=nodes[0].env).status == 0
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(RunningServer.start, nodes))
        one, two, odd = (node.port for node in nodes)
        bases = [f"{node.base_url}/auth" for node in nodes[:2]]
        rows = Rows(nodes[0], postgres)
        named: dict[str, Any] = {"one": one, "two": two, "narrow": odd, "cut_off": odd, "way": way}
        yield World(issuer=issuer, auth=bases[0], answering=bases, server=nodes[0], rows=rows, http=http, **named)


@dataclass(frozen=True)
class Elsewhere:
    """A Sekisho that is a server of its own, and a verifier that follows it."""

    server: RunningServer
    verifier: Verifier


@contextmanager
def elsewhere(folder: Path, **env: str) -> Iterator[Elsewhere]:
    env = {"SEKISHO_ISSUER": ELSEWHERE, "SEKISHO_SIGNING_ALGORITHM": "EdDSA", **env}
    server = RunningServer(folder, database_url=f"sqlite:///{folder / 'sekisho.db'}", env=env)
    with ExitStack() as open_ones:
        open_ones.callback(server.close)
        server.start()
        base_url = server.base_url
        verifier = Verifier(
            issuer=ELSEWHERE,
            audience=ELSEWHERE,
            jwks_url=f"{base_url}/.well-known/jwks.json",
            revocations_url=f"{base_url}/revocations",
            credential=sekisho_here("verifiers", "add", "shop", folder=folder, env=server.env).out.strip(),
        )
        open_ones.callback(verifier.close)
        assert verifier.wait(20)
        yield Elsewhere(server, verifier)


@pytest.fixture(scope="module")
def trusting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    with elsewhere(tmp_path_factory.mktemp("trusting"), **TRUSTING) as sekisho:
        yield sekisho


def close_connections() -> None:
    """Of the middlewares that served until now: they keep them as long as a process lives."""
    for found in gc.get_objects():
        if type(found) is RefreshAtIssuer and found._client is not None:
            found._client[1].close()


@contextmanager
def in_front_of(sekisho: Elsewhere, name: str, http: httpx2.Client) -> Iterator[World]:
    """Nodes of an application that has a verifier, the address of ``/refresh`` and no more. They share nothing else."""
    build, served = BUILDS[name]
    with ExitStack() as open_ones:
        open_ones.callback(close_connections)
        way = open_ones.enter_context(Proxy(sekisho.server.port))

        def node(base_url: str = sekisho.server.base_url, **named: Any) -> int:
            app = build(sekisho.verifier, refresh=f"{base_url}/refresh", **named)
            return open_ones.enter_context(served(app))

        yield World(
            issuer=ELSEWHERE,
            auth=sekisho.server.base_url,
            answering=[sekisho.server.base_url],
            server=sekisho.server,
            rows=Rows(sekisho.server, None),
            one=node(),
            two=node(),
            narrow=node(window_s=NARROW_W),
            cut_off=node(way.base_url),
            way=way,
            http=http,
        )


@pytest.fixture(scope="module", params=[INSIDE, *BUILDS])
def world(request: pytest.FixtureRequest, http: httpx2.Client) -> Iterator[World]:
    """Each test runs in each of them."""
    if request.param == INSIDE:
        yield request.getfixturevalue("inside")
    else:
        with in_front_of(request.getfixturevalue("trusting"), request.param, http) as world:
            yield world


@pytest.fixture
def visitor(world: World, client_address: str) -> Visitor:
    return Visitor(world, client_address).signs_in()


@pytest.fixture
def other_visitor(world: World, _client_addresses: Iterator[str]) -> Visitor:
    return Visitor(world, next(_client_addresses)).signs_in()


@pytest.fixture
def gate() -> Iterator[Gate]:
    with a_gate() as gate:
        yield gate


# --- a page and all that it asks for -------------------------------------------------------------------------------


def test_twenty_at_once_over_two_nodes_keep_the_session(world, visitor):
    rounds = [visitor.loses_access, visitor.expires, visitor.expires, visitor.loses_access]
    for number, expires in enumerate(rounds, start=1):
        visitor.ages(LONG)
        expires()
        answers = visitor.fans_out(world.one, world.two)
        assert [answer.status_code for answer in answers] == [200] * 20
        assert visitor.position == (number, 0)  # one rotation, however many nodes
        # Each view saw the new pair, and each answer brings it.
        assert {answer.json()["user"] for answer in answers} == {visitor.user}
        assert {answer.json()["refresh"] for answer in answers} == {visitor.refresh_token}
        for answer in answers:
            lines = ours(answer, visitor.names)
            assert lines[visitor.names.refresh].startswith(f"{visitor.names.refresh}={visitor.refresh_token};")
            assert lines[visitor.names.access].startswith(f"{visitor.names.access}={answer.json()['access']};")
            assert answer.headers["cache-control"] == "no-store"
    assert visitor.is_still_signed_in()


def test_within_the_window_the_refresh_token_stays(world, visitor):
    before, token = visitor.row, visitor.refresh_token
    visitor.expires()
    assert {answer.status_code for answer in visitor.fans_out(world.one, world.two)} == {200}
    assert (visitor.row, visitor.refresh_token) == (before, token)
    assert visitor.is_still_signed_in()


def test_twenty_at_once_of_one_node_refresh_once(world, visitor):
    visitor.ages(LONG)
    visitor.loses_access()
    before = world.refreshes()
    answers = visitor.fans_out(world.one)
    assert [answer.status_code for answer in answers] == [200] * 20
    assert world.refreshes() - before == 1
    assert len({answer.json()["access"] for answer in answers}) == 1
    assert visitor.position == (1, 0)


def test_the_lines_are_those_of_sekisho_itself(world, visitor):
    visitor.ages(LONG)
    own = visitor.call("/refresh")
    visitor.loses_access()
    in_place = visitor.get(world.one)

    def attributes(answer: httpx2.Response) -> dict[str, set[str]]:
        lines = ours(answer, visitor.names)
        return {name: {part.strip() for part in line.split(";")[1:]} for name, line in lines.items()}

    lives_s = {visitor.names.access: 900, visitor.names.refresh: 604_800}
    for answer in (own, in_place):
        found = attributes(answer)
        for name, life_s in lives_s.items():
            (age,) = [part for part in found[name] if part.startswith("Max-Age=")]
            assert life_s - 30 < int(age.removeprefix("Max-Age=")) <= life_s
            found[name].remove(age)
        expected = {"HttpOnly", "Path=/", "SameSite=Lax", *(["Secure"] if world.issuer.startswith("https") else [])}
        assert found == dict.fromkeys(lives_s, expected)


def test_other_cookies_come_through(world, visitor):
    visitor.loses_access()
    visitor.cookies = {"theme": "dark", **visitor.cookies, "a": "b=c"}
    seen = visitor.get(world.one).json()
    assert {name: seen["all"].get(name) for name in ("theme", "a")} == {"theme": "dark", "a": "b=c"}
    assert seen["refresh"] == visitor.refresh_token
    new = {name: visitor.cookies[name] for name in (visitor.names.access, visitor.names.refresh)}
    others = {name: value for name, value in visitor.cookies.items() if name not in new}
    assert seen["header"] == "; ".join(f"{name}={value}" for name, value in {**others, **new}.items())


def test_while_the_access_token_holds_nothing_happens(world, visitor):
    before = visitor.row
    answer = visitor.get(world.one)
    assert (answer.status_code, answer.headers.get_list("set-cookie")) == (200, [])
    assert answer.json()["refresh"] == visitor.refresh_token
    assert visitor.row == before


# --- what is lost, and what comes late -----------------------------------------------------------------------------


@pytest.mark.parametrize("later_s", [0, W + 1, DAYS], ids=["at once", "after the window", "after days"])
def test_cookies_that_were_lost_cost_nothing(world, visitor, later_s):
    visitor.ages(LONG)
    visitor.loses_access()
    lost = visitor.fans_out(world.one, keep=False)
    assert {answer.status_code for answer in lost} == {200}
    assert visitor.position == (1, 0)
    visitor.ages(later_s)
    answers = visitor.fans_out(world.two)  # which knows nothing of the first
    assert [answer.status_code for answer in answers] == [200] * 20
    assert visitor.position == (1, 1 if later_s else 0)
    assert visitor.refresh_token == answers[0].json()["refresh"]
    assert visitor.is_still_signed_in()


def test_cookies_that_are_lost_again_and_again_cost_nothing(world, visitor):
    for number in range(4):
        visitor.ages(LONG)
        visitor.loses_access()
        assert visitor.get((world.one, world.two)[number % 2], keep=False).status_code == 200
    assert visitor.is_still_signed_in()


def test_a_late_answer_brings_no_cookies(world, visitor, gate):
    """What it would bring is older than what the browser has by now."""
    visitor.ages(LONG)
    visitor.loses_access()
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(visitor.get, world.narrow, f"/late?gate={gate.port}", keep=False)
        open_gate = gate.wait_for_one()
        refreshed_by = since_boot()
        # Meanwhile the browser's other pages go on, twice.
        assert visitor.call("/refresh").status_code == 200
        visitor.ages(LONG)
        assert visitor.call("/refresh").status_code == 200
        newest = dict(visitor.cookies)
        time.sleep(max(0.0, refreshed_by + NARROW_W / 4 + 0.01 - since_boot()))  # time itself is what it is about
        open_gate()
        answer = late.result(20)
    assert answer.status_code == 200
    assert answer.json()["user"] == visitor.user  # the page itself is as it should be
    assert answer.headers.get_list("set-cookie") == []
    assert "Cookie" in answer.headers["vary"]
    visitor.take(answer)
    assert visitor.cookies == newest
    assert visitor.position == (2, 0)
    assert visitor.is_still_signed_in()


def test_after_a_late_answer_the_next_one_brings_them(world, visitor, gate):
    """Nobody else was there to bring them."""
    visitor.ages(LONG)
    visitor.loses_access()
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(visitor.get, world.narrow, f"/late?gate={gate.port}")
        open_gate = gate.wait_for_one()
        refreshed_by = since_boot()
        time.sleep(max(0.0, refreshed_by + NARROW_W / 4 + 0.01 - since_boot()))
        open_gate()
        assert ours(late.result(20), visitor.names) == {}
    answer = visitor.get(world.one)
    assert answer.status_code == 200
    assert len(ours(answer, visitor.names)) == 2
    assert visitor.position == (1, 0)
    assert visitor.is_still_signed_in()


def test_an_answer_brings_none_of_a_session_that_has_ended_meanwhile(world, visitor, gate):
    """The user signed out on another page, and may have signed in again: what came then must not be overwritten."""
    good = visitor.cookies[visitor.names.access]
    visitor.ages(LONG)
    visitor.loses_access()
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(visitor.get, world.one, f"/late?gate={gate.port}", keep=False)
        open_gate = gate.wait_for_one()
        assert visitor.call("/logout").status_code == 204
        visitor.cookies = {visitor.names.access: good}
        wait_until(lambda: visitor.get(world.one).status_code == 401, within_s=2, what="it has heard")
        open_gate()
        answer = waits.result(20)
    assert (answer.status_code, ours(answer, visitor.names)) == (200, {})


def test_an_answer_in_time_brings_them(world, visitor, gate):
    visitor.loses_access()
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(visitor.get, world.one, f"/late?gate={gate.port}")
        gate.wait_for_one()()
        assert len(ours(waits.result(20), visitor.names)) == 2


# --- what the application says itself ------------------------------------------------------------------------------


def test_the_applications_own_logout_wins(world, visitor):
    visitor.ages(LONG)
    visitor.loses_access()
    answer = visitor.get(world.one, "/leave")
    assert answer.status_code == 200
    lines = ours(answer, visitor.names)
    assert {"max-age=0" in line.lower() for line in lines.values()} == {True}
    assert len(lines) == 2
    assert visitor.cookies.keys().isdisjoint(lines)


def test_what_says_that_it_may_be_kept_is_not_kept_with_cookies_in_it(world, visitor, other_visitor):
    """CVE-2025-48947, CVE-2025-64762: two users, and a cache between that looks at no more than Cache-Control."""
    with CachingProxy(world.one) as cache:
        port = int(cache.base_url.rpartition(":")[2])
        for one in (visitor, other_visitor):
            one.ages(LONG)
            one.loses_access()
            token = one.refresh_token
            answer = one.get(port, "/public")
            assert answer.headers["cache-control"] == "no-store"
            assert "Cookie" in answer.headers["vary"]
            assert answer.json()["user"] == one.user
            assert answer.json()["refresh"] == one.refresh_token != token
            assert not cache.keeps
        # Without cookies in it, it is what the page says that it is.
        first = visitor.get(port, "/public")
        assert first.headers["cache-control"] == "public, max-age=600"
        other_visitor.loses_access()
        again = other_visitor.get(port, "/public")
        assert (again.headers["x-cache"], again.content) == ("HIT", first.content)
        assert again.headers.get_list("set-cookie") == []
    assert other_visitor.is_still_signed_in()
    assert visitor.is_still_signed_in()


# --- when it cannot be done, and when it must not -------------------------------------------------------------------


def test_while_the_issuer_is_down_nobody_is_signed_out(world, visitor):
    visitor.ages(LONG)
    visitor.loses_access()
    before = dict(visitor.cookies)
    target = world.way.target
    world.way.target = free_port()  # where nobody listens
    world.way.cut_all()
    try:
        for _ in range(3):
            answer = visitor.get(world.cut_off)
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers.get_list("set-cookie") == []
    finally:
        world.way.target = target
    answer = wait_until(
        lambda: (answer := visitor.get(world.cut_off)).status_code != 503 and answer, within_s=10, what="it is back"
    )
    assert answer.status_code == 200
    assert visitor.cookies[visitor.names.refresh] != before[visitor.names.refresh]
    assert visitor.is_still_signed_in()


@pytest.mark.parametrize("name", BUILDS)
def test_while_the_issuer_takes_its_time_others_are_served(trusting, http, client_address, name):
    """The node's event loop does not wait with the one who waits."""
    with in_front_of(trusting, name, http) as world, ThreadPoolExecutor(1) as pool:
        waits, other = (Visitor(world, client_address).signs_in() for _ in range(2))
        waits.loses_access()
        world.way.plan(Rule(hold=True))
        waiting = pool.submit(waits.get, world.cut_off)
        (held,) = world.way.wait_for_held(1)
        assert other.get(world.cut_off).status_code == 200
        assert not waiting.done()
        held.release()
        assert waiting.result(20).status_code == 200


def test_a_refused_token_goes_on_to_the_guard(world, visitor):
    """Which answers as it answers anybody; and no cookie is cleared, for a race's loser would clear the winner's."""
    kept = dict(visitor.cookies)
    assert visitor.call("/logout").status_code == 204
    visitor.cookies = dict(kept)
    for cookies in (kept, {visitor.names.refresh: kept[visitor.names.refresh]}, {visitor.names.refresh: "garbage"}):
        visitor.cookies = dict(cookies)
        answer = wait_until(
            lambda: (answer := visitor.get(world.one)).status_code != 200 and answer, within_s=2, what="it has heard"
        )
        assert answer.status_code == 401
        assert answer.headers.get_list("set-cookie") == []
        assert answer.json()["code"] in {"invalid_token", "authentication_required"}
    assert visitor.get(world.one, OPEN).status_code == 200


def test_garbage_is_refused_and_not_put_off(world):
    name = Cookies(world.issuer).refresh
    for value in ("", "x", "sekisho_rt_", "caf\xe9", "a" * 4000, "%00", '"q"', "sekisho_rt_" + "A" * 150):
        raw = [(b"Cookie", f"{name}={value}".encode("latin-1"))]
        answer = world.http.get(f"http://127.0.0.1:{world.one}/", headers=raw)
        assert (answer.status_code, answer.headers.get_list("set-cookie")) == (401, []), value


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_from_another_sites_page_nothing_is_refreshed(world, visitor, method):
    visitor.ages(LONG)
    visitor.expires()
    before = visitor.row
    for headers in (OTHER_SITE, {"Origin": "https://evil.example"}, {}):
        answer = visitor.send(method, world.one, headers=headers)
        assert answer.status_code == 403
        assert answer.json()["code"] == "csrf_refused"
        assert answer.headers.get_list("set-cookie") == []
    assert visitor.row == before
    origin = re.match(r"https?://[^/]*", world.issuer)
    assert origin is not None
    answer = visitor.send("POST", world.one, headers={"Origin": origin[0]})
    assert answer.json()["user"] == visitor.user
    assert visitor.position == (1, 0)


def test_an_own_page_may_post(world, visitor):
    visitor.ages(LONG)
    visitor.loses_access()
    answer = visitor.send("POST", world.one, headers=OWN_PAGE)
    assert (answer.status_code, len(ours(answer, visitor.names))) == (200, 2)
    assert visitor.position == (1, 0)


def test_with_an_authorization_header_cookies_do_not_count(world, visitor):
    visitor.ages(LONG)
    visitor.loses_access()
    before = visitor.row
    answer = visitor.get(world.one, headers={"Authorization": "Bearer garbage"})
    assert (answer.status_code, answer.headers.get_list("set-cookie")) == (401, [])
    assert visitor.row == before


def test_exempt_paths_are_left_alone(world, visitor):
    visitor.ages(LONG)
    visitor.loses_access()
    before = visitor.row
    answer = visitor.get(world.one, OPEN)
    assert (answer.status_code, answer.headers.get_list("set-cookie")) == (200, [])
    assert answer.json()["refresh"] == visitor.refresh_token
    assert visitor.row == before


def refuses_to_refresh(_bearer):
    pytest.fail("it refreshes")


def a_verifier():
    return Verifier(issuer=ELSEWHERE, audience=ELSEWHERE, keys=Keyring([]))


def test_a_websocket_is_left_alone():
    """Its handshake takes no cookies from us; who needs a user there says so."""

    async def echo(websocket):
        await websocket.accept()
        await websocket.send_text(websocket.headers["cookie"])
        await websocket.close()

    app = Starlette(routes=[WebSocketRoute("/", echo)])
    app.add_middleware(RefreshInPlace, verifier=a_verifier(), refresh=refuses_to_refresh)
    cookie = "__Host-sekisho_refresh=R"
    with TestClient(app).websocket_connect("/", headers={"Cookie": cookie}) as websocket:
        assert websocket.receive_text() == cookie


async def renewed(bearer):
    from sekisho.verify.renewal import Renewed

    return Renewed(access_token="A", expires_in=900, refresh_token="S", refresh_expires_in=604_800)


@pytest.mark.parametrize("named", [{}, {"headers": ()}, {"headers": ((b"vary", b"Accept"),)}])
def test_an_answer_that_has_hardly_any_headers(named):
    """ASGI lets applications leave them out, or give what cannot be changed."""

    async def app(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, **named})
        await send({"type": "http.response.body", "body": b"page"})

    around = RefreshInPlace(app, verifier=a_verifier(), refresh=renewed)
    answer = TestClient(around).get("/", headers={"Cookie": "__Host-sekisho_refresh=R"})
    assert answer.text == "page"
    assert len(answer.headers.get_list("set-cookie")) == 2
    assert answer.headers["vary"] == ("Accept, Cookie" if named.get("headers") else "Cookie")


# --- whom the session's row names -----------------------------------------------------------------------------------


def test_the_row_names_the_users_address_and_browser(world, visitor, client_address):
    visitor.ages(LONG)
    visitor.loses_access()
    visitor.get(world.one, headers={"User-Agent": "another browser"})
    assert visitor.is_seen_as() == [client_address, "another browser"]
    assert visitor.position == (1, 0)


def test_what_a_stranger_claims_does_not_count(world, visitor):
    """The application is trusted, and whoever speaks to it is not."""
    visitor.ages(LONG)
    visitor.loses_access()
    transport = httpx2.HTTPTransport(local_address="127.0.0.2", verify=False)
    headers = {
        "X-Forwarded-For": "203.0.113.9",
        "Cookie": "; ".join(f"{name}={value}" for name, value in visitor.cookies.items()),
        "User-Agent": "stranger",
    }
    with httpx2.Client(transport=transport, headers=headers) as stranger:
        assert stranger.get(f"http://127.0.0.1:{world.one}/").status_code == 200
    assert visitor.is_seen_as() == ["127.0.0.2", "stranger"]


def test_where_the_application_is_not_trusted_its_word_does_not_count(inside, http, tmp_path):
    def expect_no_belief(world: World) -> None:
        visitor = Visitor(world, "203.0.113.9").signs_in()
        visitor.ages(LONG)
        visitor.loses_access()
        wait_until(lambda: visitor.get(world.cut_off).status_code == 200, within_s=5)
        assert visitor.is_seen_as() == ["127.0.0.1", "browser"]
        assert visitor.position == (1, 0)

    expect_no_belief(inside)
    with elsewhere(tmp_path) as suspicious:
        for name in BUILDS:
            with in_front_of(suspicious, name, http) as world:
                expect_no_belief(world)


def test_whatever_a_browser_calls_itself(world, visitor, client_address):
    agents = ["caf\xe9".encode("latin-1"), "日本語".encode(), b"", b"a" * 3000, b"\x80\xff"]
    for number, agent in enumerate(agents, start=1):
        visitor.ages(LONG)
        visitor.loses_access()
        assert visitor.get(world.one, headers={"User-Agent": agent}).status_code == 200
        assert visitor.position == (number, 0)
        seen = "".join(char if char.isprintable() else "\ufffd" for char in agent.decode("latin-1")[:256])
        assert visitor.is_seen_as() == [client_address, seen]


# --- as a user meets it --------------------------------------------------------------------------------------------


@contextmanager
def pages(folder: Path) -> Iterator[str]:
    """examples/pages.py"""
    port = free_port()
    env = {"SEKISHO_ISSUER": f"http://127.0.0.1:{port}/auth", "SEKISHO_ACCESS_TOKEN_TTL_S": "2"}
    with running("pages:app", port=port, folder=folder, env=env) as url:
        yield url


@contextmanager
def pages_django(folder: Path) -> Iterator[str]:
    """examples/pages_django.py, two workers, with a Sekisho beside it behind one origin"""
    front = free_port()
    issuer = f"http://127.0.0.1:{front}/auth"
    env = {"SEKISHO_ISSUER": issuer, "SEKISHO_ACCESS_TOKEN_TTL_S": "2", "SEKISHO_SIGNING_ALGORITHM": "EdDSA"}
    server = RunningServer(folder, env={**env, **TRUSTING})
    try:
        server.start()
        credential = server.run("verifiers", "add", "shop").strip()
        env = {"ISSUER": issuer, "SEKISHO": server.base_url, "CREDENTIAL": credential}
        command, port = [*GUNICORN, "--threads", "8"], free_port()
        with (
            running("pages_django:app", port=port, folder=folder, env=env, command=command),
            Front({"/auth": server.port, "": port}, port=front) as origin,
        ):
            yield origin.base_url
    finally:
        server.close()


@pytest.mark.parametrize("example", [pages, pages_django])
def test_a_user_signs_in_stays_signed_in_and_signs_out(page: Page, tmp_path, example):
    with example(tmp_path) as url:
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        email = an_address()
        body = {"email": email, "password": PASSWORD}
        assert httpx2.post(f"{url}/auth/signup", json=body, trust_env=False).status_code == 201

        page.goto(url if example is pages else f"{url}/login")
        expect(page).to_have_url(f"{url}/login")  # nobody is signed in yet
        page.get_by_placeholder("E-mail").fill(email)
        page.get_by_placeholder("Password").fill("a gate on another road")
        page.get_by_role("button", name="Sign in").click()
        expect(page.locator("output")).to_have_text("The e-mail address or the password is wrong.")
        page.screenshot(path=tmp_path / "wrong.png")
        page.get_by_placeholder("Password").fill(PASSWORD)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_text("You are user")).to_be_visible()
        page.screenshot(path=tmp_path / "home.png")

        def has_expired() -> bool:
            return "sekisho_access" not in {cookie["name"] for cookie in page.context.cookies()}

        wait_until(has_expired, within_s=5, what="the cookie's time is over")
        page.reload()
        expect(page.get_by_text("You are user")).to_be_visible()
        wait_until(has_expired, within_s=5, what="the cookie's time is over")
        twenty = "Promise.all([...Array(20)].map(() => fetch('/').then((answer) => answer.status)))"
        assert page.evaluate(twenty) == [200] * 20
        assert not has_expired()
        assert errors == []

        if example is pages:
            kept = page.context.cookies()
            page.get_by_role("button", name="Sign out").click()
            expect(page).to_have_url(f"{url}/login")
            assert {cookie["name"] for cookie in page.context.cookies()} <= {"sekisho_device"}
            page.context.add_cookies(kept)  # somebody has a copy of them
            page.goto(url)
            expect(page).to_have_url(f"{url}/login")
