"""Calls that another site makes a browser send: the whole matrix, in which only the listed cells pass."""

import gc
import json
import re
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from typing import Annotated, Any, Literal
from uuid import uuid4

import pytest
from browsing import Page, someone
from csrf_world import JSON_TYPE, OWN_PAGE, Answer, Headers, InProcess, OverHttp, User, World, in_process
from fastapi import Depends, FastAPI, File, Form, Request, Response, UploadFile
from fastapi.responses import HTMLResponse
from fastapi.testclient import TestClient
from outsiders import OTHER_PASSWORD, PASSWORD, exchange, is_problem, raw_request

from sekisho.tokens.access import AccessClaims
from sekisho.web import Sekisho, Settings
from servers.sekisho_server import ODD_NODE, RunningServer
from test_serve import wait_until

# --- the rule, said once more and independently of the code --------------------------------------------------------

Rule = Literal["anyone", "own page", "own page and token"]


@dataclass(frozen=True)
class Cell:
    """What the call says of itself: the header lines of Sec-Fetch-Site and Origin, and the CSRF token it shows."""

    sites: tuple[str, ...]
    origins: tuple[str, ...]
    token: str


def passes(rule: Rule, cell: Cell, world: World) -> bool:
    """Same-origin by Sec-Fetch-Site; where that is missing, by an Origin of the issuer's or an allowed one."""
    if rule == "anyone":
        return True
    by_site = cell.sites in {("same-origin",), ("none",)}
    by_origin = not cell.sites and cell.origins in {(world.issuer,), (world.allowed,)}
    return (by_site or by_origin) and (rule == "own page" or cell.token == "right")


SITES = [
    (),
    ("same-origin",),
    ("none",),
    ("same-site",),
    ("cross-site",),
    ("garbage",),
    ("",),
    ("same-origin", "same-origin"),
    ("same-origin", "cross-site"),
]
TOKENS = ["right", "missing", "another's", "of before the login", "garbage", "empty", "twice"]


def origins_of(world: World) -> list[tuple[str, ...]]:
    allowed = [(world.allowed,)] if world.allowed else []
    host = [(world.host,)] if world.host != world.issuer else []
    foreign = [("https://evil.example",), ("null",), (f"{world.issuer}.evil.example",), (world.issuer, world.issuer)]
    return [(), (world.issuer,), *allowed, *host, *foreign]


def cells_of(world: World, rule: Rule) -> list[Cell]:
    """All of them; where no token is asked for, those with none and with a bad one are enough."""
    tokens = TOKENS if rule == "own page and token" else ["missing", "garbage"]
    return [Cell(*parts) for parts in product(SITES, origins_of(world), tokens)]


# --- the calls -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A call, what authorises it, and what it answers when it passes. ``spends``: it can be made only once."""

    method: str
    path: str
    by: str
    rule: Rule
    status: int
    body: dict[str, Any] | None = None
    with_credentials: bool = False
    spends: bool = False

    def __str__(self) -> str:
        return f"{self.method} {self.path} by {self.by}{' with cookies' if self.body == COOKIES else ''}"


COOKIES = {"cookies": True}
SAME_PASSWORD = {"current_password": PASSWORD, "new_password": PASSWORD}
READS: list[tuple[str, str]] = [("GET", "/me"), ("GET", "/sessions"), ("GET", "/session")]
CASES = [
    *(Case(*read, by, "anyone", 200) for read in READS for by in ("session", "access cookie")),
    Case("GET", "/session", "visitor", "anyone", 200),
    Case("POST", "/session", "visitor", "own page and token", 200, with_credentials=True),
    Case("POST", "/session", "session", "own page and token", 200, with_credentials=True, spends=True),
    Case("POST", "/session", "dead session", "own page and token", 200, with_credentials=True),
    Case("DELETE", "/session", "session", "own page and token", 204, spends=True),
    Case("DELETE", "/session", "dead session", "own page and token", 204),
    Case("DELETE", "/session", "visitor", "own page and token", 401),
    Case("POST", "/login", "nothing", "anyone", 200, with_credentials=True),
    Case("POST", "/login", "nothing", "own page", 200, COOKIES, with_credentials=True),
    Case("POST", "/login", "session", "own page", 200, COOKIES, with_credentials=True),
    Case("POST", "/refresh", "refresh cookie", "own page", 200),
    Case("POST", "/refresh", "body", "anyone", 200),
    Case("POST", "/logout", "refresh cookie", "own page", 204, spends=True),
    Case("POST", "/logout", "access cookie", "own page", 204, spends=True),
    Case("POST", "/logout", "session", "own page and token", 204, spends=True),
    Case("POST", "/logout", "dead session", "own page and token", 204),
    Case("POST", "/logout", "header", "anyone", 204),
    Case("POST", "/logout", "body", "anyone", 204),
    Case("POST", "/logout/all", "access cookie", "own page", 204, spends=True),
    Case("POST", "/logout/all", "session", "own page and token", 204, spends=True),
    Case("POST", "/logout/all", "header", "anyone", 204, spends=True),
    Case("POST", "/password", "access cookie", "own page", 200, SAME_PASSWORD, spends=True),
    Case("POST", "/password", "session", "own page and token", 200, SAME_PASSWORD, spends=True),
    Case("POST", "/password", "header", "anyone", 200, SAME_PASSWORD, spends=True),
    Case("DELETE", "/sessions/{id}", "access cookie", "own page", 404),
    Case("DELETE", "/sessions/{id}", "session", "own page and token", 404),
    Case("DELETE", "/sessions/{id}", "header", "anyone", 404),
]


@dataclass
class Shown:
    """A credential as it is sent, and the CSRF tokens that its browser, or a forger, may know."""

    headers: list[tuple[str, str]]
    tokens: dict[str, str] = field(default_factory=dict)
    body: dict[str, str] = field(default_factory=dict)


def shown(user: User, by: str) -> Shown:
    """A new credential. Every browser was a visitor before, and keeps that cookie."""
    visitor, before = user.visitor()
    tokens = {"another's": user.visitor()[1], "of before the login": before}
    if by == "nothing":
        return Shown([], tokens)
    if by == "visitor":
        other_session = user.token_for(session="x" * 43)
        return Shown([user.cookie(csrf=visitor)], tokens | {"right": before, "of before the login": other_session})
    if by in {"session", "dead session"}:
        session = user.session()
        right, other = user.token_for(session=session, csrf=visitor), user.token_for(session="x" * 43)
        made = Shown([user.cookie(csrf=visitor, session=session)], tokens | {"right": right, "another's": other})
        if by == "dead session":
            headers = [*made.headers, OWN_PAGE, ("X-CSRF-Token", right)]
            assert user.world.call("DELETE", "/session", headers).status == 204
        return made
    access, refresh = user.tokens()
    return {
        "access cookie": Shown([user.cookie(csrf=visitor, access=access)], tokens),
        "refresh cookie": Shown([user.cookie(csrf=visitor, refresh=refresh)], tokens),
        "header": Shown([("Authorization", f"Bearer {access}"), user.cookie(csrf=visitor)], tokens),
        "body": Shown([user.cookie(csrf=visitor)], tokens, {"refresh_token": refresh}),
    }[by]


def make(user: User, case: Case, made: Shown, cell: Cell) -> Answer:
    values = {
        "missing": [],
        "garbage": ["A" * 64],
        "empty": [""],
        "twice": [made.tokens.get("right", "A" * 64)] * 2,
        **{name: [value] for name, value in made.tokens.items()},
    }
    said = [
        *(("Sec-Fetch-Site", site) for site in cell.sites),
        *(("Origin", origin) for origin in cell.origins),
        *(("X-CSRF-Token", token) for token in values[cell.token]),
    ]
    body = {**(case.body or {}), **made.body, **(user.credentials if case.with_credentials else {})}
    content = json.dumps(body).encode() if body else b""
    headers: Headers = [*made.headers, *said, *([JSON_TYPE] if body else [])]
    return user.world.call(case.method, case.path.replace("{id}", str(uuid4())), headers, content)


def is_refused(answer: Answer) -> None:
    assert (answer.status, answer.code) == (403, "csrf_refused"), answer
    assert "set-cookie" not in answer.headers
    assert answer.headers["cache-control"] == ["no-store"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[InProcess]:
    with in_process(tmp_path_factory.mktemp("in-process")) as world:
        yield world


def test_the_matrix_has_both_kinds_of_cells(world):
    """And the right ones, counted by hand: 2 sites with any of 8 origins, no site with 2 origins; one token of 7."""
    cells = cells_of(world, "own page and token")
    assert len(cells) == 9 * 8 * 7
    assert sum(passes("own page and token", cell, world) for cell in cells) == 2 * 8 + 2
    assert sum(passes("own page", cell, world) for cell in cells_of(world, "own page")) == (2 * 8 + 2) * 2
    assert all(passes("anyone", cell, world) for cell in cells_of(world, "anyone"))
    unsafe = {case.method + case.path for case in CASES if case.rule != "anyone" and case.method != "GET"}
    assert len(unsafe) == 8, "every unsafe call that reads or sets a credential's cookie"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_only_the_listed_cells_pass(world, case):
    user = User(world)
    watch, _ = user.tokens()
    made = shown(user, case.by)
    before = user.live(watch)
    refused = [cell for cell in cells_of(world, case.rule) if not passes(case.rule, cell, world)]
    for cell in refused:
        is_refused(make(user, case, made, cell))
    assert user.live(watch) == before, "none of them has changed anything"
    for cell in cells_of(world, case.rule):
        if passes(case.rule, cell, world):
            answer = make(user, case, made, cell)
            assert answer.status == case.status, (cell, answer)
            if case.spends:
                made = shown(user, case.by)


@pytest.mark.parametrize("case", [case for case in CASES if case.rule != "anyone"], ids=str)
def test_a_sample_of_them_over_http(server, client_address, case):
    world = OverHttp(server, client_address)
    try:
        user = User(world)
        made = shown(user, case.by)
        cells = cells_of(world, case.rule)
        number = CASES.index(case)
        for cell in [cell for cell in cells if not passes(case.rule, cell, world)][number % 17 :: 17]:
            is_refused(make(user, case, made, cell))
        good = [cell for cell in cells if passes(case.rule, cell, world)]
        assert make(user, case, made, good[number % len(good)]).status == case.status
    finally:
        world.close()


def test_without_any_cookie_there_is_no_token_for_a_login(world):
    user = User(world)
    for token in (user.visitor()[1], user.token_for(session="x" * 43), user.token_for(csrf="")):
        is_refused(user.post("/session", user.credentials, OWN_PAGE, ("X-CSRF-Token", token)))


def test_after_a_login_and_a_logout_only_the_tokens_of_now_count(world):
    """Whoever knew the token of before the login must not speak for the session."""
    user = User(world)
    visitor, before = user.visitor()
    session = user.session()
    during = user.token_for(session=session, csrf=visitor)
    both, alone = user.cookie(session=session, csrf=visitor), user.cookie(csrf=visitor)
    for cookies, good, bad in ((both, during, before), (alone, before, during)):
        is_refused(user.post("/session", user.credentials, cookies, OWN_PAGE, ("X-CSRF-Token", bad)))
        assert user.post("/session", user.credentials, cookies, OWN_PAGE, ("X-CSRF-Token", good)).status == 200


def test_the_token_of_the_answer_to_a_login_is_the_new_sessions(world):
    user = User(world)
    visitor, before = user.visitor()
    answer = user.post("/session", user.credentials, user.cookie(csrf=visitor), OWN_PAGE, ("X-CSRF-Token", before))
    by = user.cookie(session=answer.cookies[f"{user.prefix}session"], csrf=visitor)
    is_refused(world.call("DELETE", "/session", [by, OWN_PAGE, ("X-CSRF-Token", before)]))
    assert world.call("DELETE", "/session", [by, OWN_PAGE, ("X-CSRF-Token", answer.json["csrf_token"])]).status == 204


@pytest.mark.parametrize(
    "name", ["x-csrf-token", "X-Csrf-Token", "x_csrf_token", "X-XSRF-Token", "csrf_token", "CSRF-Token"]
)
def test_the_token_counts_in_its_header_alone(world, name):
    user = User(world)
    made = shown(user, "session")
    answer = world.call("DELETE", "/session", [*made.headers, OWN_PAGE, (name, made.tokens["right"])])
    if name.lower() == "x-csrf-token":
        assert answer.status == 204
    else:
        is_refused(answer)


def test_the_token_in_the_query_or_a_cookie_or_the_json_is_none(world):
    """A cookie comes along on the forged call, too; a query stands in logs and in Referer headers."""
    user = User(world)
    made = shown(user, "session")
    token, ((_, cookies),) = made.tokens["right"], made.headers
    for name in ("csrf_token", "X-CSRF-Token", "x-csrf-token", "sekisho_csrf_token", f"{user.prefix}csrf"):
        planted = ("Cookie", f"{cookies}; {name}={token}")
        if name != f"{user.prefix}csrf":
            is_refused(world.call("DELETE", "/session", [planted, OWN_PAGE]))
        is_refused(world.call("DELETE", f"/session?{name}={token}", [*made.headers, OWN_PAGE]))
        for body in ({name: token}, user.credentials | {name: token}):
            is_refused(user.post("/session", body, *made.headers, OWN_PAGE))


# --- Host ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "evil.example:443", "auth.example.com", "app.example.com"])
def test_host_never_counts(world, host):
    """Whoever sends the request writes it: an Origin that agrees with it proves nothing."""
    user = User(world)
    made = shown(user, "session")
    headers = [*made.headers, ("X-CSRF-Token", made.tokens["right"])]
    forged = [("Host", host), ("X-Forwarded-Host", host), ("X-Forwarded-Proto", "https"), ("Forwarded", f"host={host}")]
    for origin in (f"http://{host}", f"https://{host}"):
        answer = world.call("DELETE", "/session", [*headers, *forged, ("Origin", origin)])
        if origin in {world.issuer, world.allowed}:
            assert answer.status == 204
        else:
            is_refused(answer)
    is_refused(world.call("DELETE", "/session", [*headers, *forged]))


def test_host_never_counts_over_http_either(server, connect):
    page = Page(connect(server))
    page.logs_in(someone(page))
    headers = {"Cookie": page.cookie_header, "X-CSRF-Token": page.csrf or ""}
    for host, origin in (
        ("evil.example", "http://evil.example"),
        ("evil.example", None),
        (f"127.0.0.1:{server.port}", None),
    ):
        request = raw_request("DELETE", "/session", headers | ({"Origin": origin} if origin else {}))
        answer = exchange(server, request.replace(b"Host: 127.0.0.1", f"Host: {host}".encode()))
        assert answer.startswith(b"HTTP/1.1 403"), answer
    request = raw_request("DELETE", "/session", headers | {"Origin": server.base_url})
    assert exchange(server, request.replace(b"Host: 127.0.0.1", b"Host: evil.example")).startswith(b"HTTP/1.1 204")


# --- before anybody asks who it is ---------------------------------------------------------------------------------

# What a node says to the database by itself: the time, what is new in the feed, and its chores.
OF_THE_NODE = re.compile(r"SELECT (?!.*\b(sessions|users|devices|thefts)\b)|BEGIN|COMMIT|ROLLBACK|.*\bchores\b|DELETE")


def test_a_forged_call_makes_no_statement_whoever_it_is_by(tmp_path, connect):
    """Refused with 403 and not 401, live, dead or unknown; the database does not hear of it."""
    told = tmp_path / "statements"
    env = {"TEST_STATEMENTS": str(told), "SEKISHO_TRUSTED_PROXIES": "127.0.0.1/32"}
    node = RunningServer(tmp_path, database_url=f"sqlite:///{tmp_path / 'sekisho.db'}", env=env, program=ODD_NODE)
    node.start()

    def others(since: int = 0) -> list[str]:
        return [one for one in told.read_text().splitlines()[since:] if not OF_THE_NODE.match(one)]

    try:
        page = Page(connect(node))
        email = someone(page)
        page.logs_in_with_tokens(email)
        page.logs_in(email)
        live = page.cookies["sekisho_session"]
        page.logs_out()
        page.opens()
        page.logs_in(email)
        dead, live = live, page.cookies["sekisho_session"]
        tokens = {name: value for name, value in page.cookies.items() if name in {"sekisho_access", "sekisho_refresh"}}
        already, number = len(told.read_text().splitlines()), 0
        body = {"email": email, "password": PASSWORD, "cookies": True}
        passwords = {"current_password": PASSWORD, "new_password": OTHER_PASSWORD}
        calls = [
            ("DELETE", "/session", None),
            ("POST", "/logout", None),
            ("POST", "/logout/all", None),
            ("POST", "/password", passwords),
            ("DELETE", f"/sessions/{uuid4()}", None),
        ]
        for (method, path, content), cookie, site in product(
            calls, (live, dead, "A" * 43, "x", ""), ("cross-site", "same-origin")
        ):
            headers = {"Cookie": f"sekisho_session={cookie}", "Sec-Fetch-Site": site, "X-CSRF-Token": "A" * 64}
            is_problem(page.client.request(method, path, headers=headers, json=content), 403, "csrf_refused")
            number += 1
        for path, content in (("/refresh", None), ("/logout", None), ("/logout/all", None), ("/login", body)):
            for cookies in (tokens, dict.fromkeys(tokens, "garbage")):
                jar = "; ".join(f"{name}={value}" for name, value in cookies.items())
                headers = {"Cookie": jar, "Sec-Fetch-Site": "same-site"}
                is_problem(page.client.post(path, headers=headers, json=content), 403, "csrf_refused")
                number += 1
        assert number == 58
        assert others(already) == []
        # The counter sees what a call by cookie asks; and nothing has changed.
        assert page.get("/me", headers={"Cookie": f"sekisho_session={live}"}).status_code == 200
        wait_until(lambda: others(already), within_s=10, what="the statement of a call that passes is seen")
        assert page.get("/me").status_code == 200
        assert page.post("/refresh").status_code == 200
    finally:
        node.close()


def test_a_refusal_is_told_in_the_log_without_the_token(world, caplog):
    user = User(world)
    made = shown(user, "session")
    for cell in (Cell(("cross-site",), (), "right"), Cell(("same-origin",), (), "another's")):
        is_refused(make(user, Case("DELETE", "/session", "session", "own page and token", 204), made, cell))
    assert not any(value in caplog.text for value in made.tokens.values())
    metrics = world.call("GET", "/metrics").body.decode()
    assert re.search(r'sekisho_events_total\{event="csrf_refused",outcome="csrf_refused"\} [1-9]', metrics)


# --- content types -------------------------------------------------------------------------------------------------

# The three that a form or a simple request of another site's page can have, and what is nearly JSON.
WRONG_TYPES = [
    "text/plain",
    "text/plain;charset=UTF-8",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "text/json",
    "application/jsonp",
    "application/json-seq",
    "application/problem+json",
    "text/plain, application/json",
    "text/plain; application/json",
    "",
    None,
]
JSON_CALLS = [
    ("/signup", {}),
    ("/login", {}),
    ("/login", COOKIES),
    ("/session", {}),
    ("/password", SAME_PASSWORD),
    ("/refresh", {"refresh_token": "x"}),
    ("/logout", {"refresh_token": "x"}),
]


@pytest.mark.parametrize(("path", "body"), JSON_CALLS, ids=lambda value: value if isinstance(value, str) else "")
def test_only_json_is_read_as_json(world, path, body):
    """With everything else in order. JSON in a form that another site's page can send is still JSON to a lax reader."""
    user = User(world)
    watch, _ = user.tokens()
    made = shown(user, "session")
    if path in {"/login", "/session", "/signup"}:
        body = {**user.credentials, **body}
    headers = [*made.headers, OWN_PAGE, ("X-CSRF-Token", made.tokens["right"])]
    before = user.live(watch)
    for content_type in WRONG_TYPES:
        typed = [] if content_type is None else [("Content-Type", content_type)]
        answer = world.call("POST", path, [*headers, *typed], json.dumps(body).encode())
        assert (answer.status, answer.code) == (415, "unsupported_media_type"), content_type
        assert "set-cookie" not in answer.headers
    assert user.live(watch) == before
    for content_type in ("application/json", "Application/JSON; charset=utf-8", "application/json;x=1"):
        answer = world.call("POST", path, [*headers, ("Content-Type", content_type)], json.dumps(body).encode())
        assert answer.status != 415
        made = shown(user, "session")
        headers = [*made.headers, OWN_PAGE, ("X-CSRF-Token", made.tokens["right"])]


FORM, PARTS = "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"


def part(name: str, value: str, extra: str = "") -> bytes:
    return f'--x\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n{value}\r\n--x--\r\n'.encode()


NO_BODY = [("DELETE", "/session"), ("POST", "/logout/all"), ("DELETE", "/sessions/{id}")]


@pytest.mark.parametrize(("method", "path"), NO_BODY)
def test_a_form_to_a_call_of_ours_is_not_even_read(server, connect, method, path):
    """A page of ours has the header; what else could be in it, however long, is nobody's fault but the caller's."""
    page = Page(connect(server))
    page.logs_in(someone(page))
    headers = {"Cookie": page.cookie_header, "Sec-Fetch-Site": "same-origin"}
    path = path.replace("{id}", str(uuid4()))
    token = page.csrf or ""
    for content_type, content in (
        (FORM, f"csrf_token={token}".encode()),
        (FORM, b"&".join(b"a=1" for _ in range(5000))),
        (FORM, b"csrf_token=%ff%00"),
        (FORM, b"x=" + b"y" * 70_000),
        ("multipart/form-data", b"x"),
        (PARTS, b"x"),
        (PARTS, part("csrf_token", token)),
        (PARTS, part("x", "y" * 2_000_000, '; filename="a"')),
    ):
        response = page.client.request(method, path, headers=headers | {"Content-Type": content_type}, content=content)
        is_problem(response, 403, "csrf_refused")
    assert page.user is not None


@pytest.mark.parametrize("path", ["/logout", "/session", "/password", "/logout/all", "/refresh", "/login"])
@pytest.mark.parametrize("content_type", [FORM, PARTS])
def test_an_empty_form_is_answered_at_once(world, path, content_type):
    """The client waits for the answer, and the server must not wait for the client."""
    user = User(world)
    made = shown(user, "session")
    answer = world.call("POST", path, [*made.headers, OWN_PAGE, ("Content-Type", content_type)])
    assert answer.status in {400, 401, 403, 415, 422}


# --- inside an application of one's own ----------------------------------------------------------------------------


@pytest.fixture
def auth(tmp_path, monkeypatch) -> Sekisho:
    monkeypatch.chdir(tmp_path)
    return Sekisho(Settings(database_url=f"sqlite:///{tmp_path / 'host.db'}"))


@pytest.fixture
def host(auth) -> FastAPI:
    app = FastAPI()
    app.include_router(auth.router, prefix="/auth")
    User = Annotated[AccessClaims, Depends(auth.current_user)]  # noqa: N806

    @app.get("/page")
    async def page(request: Request, response: Response) -> str:
        return auth.csrf_token(request, response)

    @app.get("/form", response_class=HTMLResponse)
    async def form(request: Request, response: Response) -> str:
        token = escape(auth.csrf_token(request, response))
        return f'<form method="post" action="/orders"><input name="csrf_token" value="{token}"></form>'

    @app.post("/orders")
    async def order(user: User, goods: Annotated[str, Form()]) -> dict[str, str]:
        return {"user": user.sub, "goods": goods}

    @app.post("/files")
    async def upload(user: User, goods: Annotated[UploadFile, File()]) -> dict[str, str]:
        return {"user": user.sub, "goods": (await goods.read()).decode()}

    @app.post("/by-hand")
    async def by_hand(user: User, request: Request) -> dict[str, str]:
        async with request.form() as fields:
            return {"user": user.sub, "goods": str(fields["goods"])}

    @app.post("/nothing")
    async def nothing(user: User) -> dict[str, str]:
        return {"user": user.sub}

    @app.post("/json")
    async def by_json(user: User, order: dict[str, str]) -> dict[str, str]:
        return {"user": user.sub, "goods": order["goods"]}

    return app


@pytest.fixture
def visitor(host) -> Iterator[TestClient]:
    with TestClient(host, base_url="http://127.0.0.1", headers=dict([OWN_PAGE])) as client:
        yield client


@pytest.fixture
def signed_in(visitor) -> TestClient:
    credentials = {"email": "host@example.com", "password": PASSWORD}
    assert visitor.post("/auth/signup", json=credentials).status_code == 201
    token = visitor.get("/page").json()
    answer = visitor.post("/auth/session", json=credentials, headers={"X-CSRF-Token": token})
    assert answer.status_code == 200, answer.text
    return visitor


GOODS = {"goods": "salt"}
FORM_ROUTES = ["/orders", "/by-hand", "/nothing"]


@pytest.mark.parametrize("how", ["urlencoded", "multipart"])
def test_a_pages_form_shows_the_token_as_a_field(signed_in, how):
    page = signed_in.get("/form").text
    token = re.search(r'name="csrf_token" value="([\w-]{64})"', page)[1]
    for path in FORM_ROUTES:
        if how == "urlencoded":
            answer = signed_in.post(path, data=GOODS | {"csrf_token": token})
        else:
            fields = {name: (None, value) for name, value in (GOODS | {"csrf_token": token}).items()}
            answer = signed_in.post(path, files=fields)
        assert answer.status_code == 200, answer.text
        assert answer.json().get("goods", "salt") == "salt"


def test_a_form_with_a_file(signed_in):
    token = signed_in.get("/page").json()
    for size in (1, 3_000_000):  # in memory, and on the disk
        files = {"goods": ("a.txt", "x" * size)}
        answer = signed_in.post("/files", data={"csrf_token": token}, files=files)
        assert (answer.status_code, len(answer.json()["goods"])) == (200, size)
        assert signed_in.post("/files", data={"csrf_token": "x"}, files=files).status_code == 403
    as_a_file = {"goods": ("a.txt", "x"), "csrf_token": ("csrf_token", token)}
    assert signed_in.post("/files", files=as_a_file).status_code == 403


@pytest.mark.parametrize("path", [*FORM_ROUTES, "/files", "/json"])
def test_a_form_without_the_right_token_is_refused(signed_in, path):
    token = signed_in.get("/page").json()
    other = TestClient(signed_in.app, base_url="http://127.0.0.1").get("/page").json()
    right = {"csrf_token": token}
    for named in (
        {"data": GOODS},
        {"data": GOODS | {"csrf_token": other}},
        {"data": GOODS | {"csrf_token": ""}},
        {"data": GOODS | {"csrf-token": token}},
        {"data": GOODS | right, "headers": {"X-CSRF-Token": other}},  # the header counts if it is there
        {"data": GOODS | right, "headers": {"X-CSRF-Token": ""}},
        {"data": GOODS | right, "headers": {"Sec-Fetch-Site": "same-site"}},
        {"data": GOODS | right, "headers": {"Content-Type": "text/plain"}},
        {"json": GOODS | right},
        {"data": GOODS, "params": right},
    ):
        answer = signed_in.post(path, **named)
        assert answer.status_code in {403, 422}, (named, answer.text)
        assert answer.status_code == 403 or path in {"/orders", "/files", "/json"}  # where FastAPI looks first


def call_of_the_host(client, headers, parts):
    """POST /nothing, a part of the body at a time: the status, and how many parts were taken."""
    left = [{"type": "http.request", "body": one, "more_body": True} for one in parts]
    left[-1]["more_body"] = False
    sent: list[dict[str, Any]] = []

    async def receive():
        return left.pop(0) if left else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in client.cookies.jar)
    lines = [("cookie", cookies), ("content-type", PARTS), *headers]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/nothing",
        "raw_path": b"/nothing",
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in lines],
        "client": ("192.0.2.1", 50_000),
        "server": ("127.0.0.1", 80),
    }
    client.portal.call(client.app, scope, receive, send)
    return sent[0]["status"], len(parts) - len(left)


def test_a_forged_form_is_refused_before_it_is_read(signed_in):
    """Another site's page, or anybody, could else have us take in what they like, cookie or not."""
    token = signed_in.get("/page").json()
    form = [part("csrf_token", token)[:50], part("csrf_token", token)[50:]]
    for forged in ([("sec-fetch-site", "cross-site")], [("origin", "https://evil.example")], []):
        assert call_of_the_host(signed_in, forged, form) == (403, 0)
    own_page = ("sec-fetch-site", "same-origin")
    assert call_of_the_host(signed_in, [own_page, ("x-csrf-token", "x")], form) == (403, 0)  # nor where a header counts
    (status, taken) = call_of_the_host(signed_in, [own_page], form)
    assert (status, taken > 0) == (200, True)


def test_a_strangers_form_with_files_does_not_fill_the_memory(signed_in):
    """Fields without a file name are held there: so many bytes of them are too many, in whatever form they come."""
    parts = [part("x", "y" * 900_000).replace(b"--x--", b"")[:-2] for _ in range(40)] + [b"--x--\r\n"]
    status, taken = call_of_the_host(signed_in, [("sec-fetch-site", "same-origin")], parts)
    assert status in {403, 413}
    assert taken <= 3, "1 MiB is the limit of a form"


def test_no_file_of_a_form_stays_open(signed_in):
    """Whose form was read for its token alone, the application does not know of it and cannot close its files."""
    files = {"goods": ("a.txt", "x" * 3_000_000)}  # on the disk
    token = signed_in.get("/page").json()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for shown_token, status in ((token, 200), ("x", 403)):
            answer = signed_in.post("/nothing", data={"csrf_token": shown_token}, files=files)
            assert answer.status_code == status
            signed_in.get("/page")  # so that nothing holds the request before
            gc.collect()
    assert [str(one.message) for one in told if one.category is ResourceWarning] == []


def test_the_header_works_for_forms_and_json(signed_in):
    headers = {"X-CSRF-Token": signed_in.get("/page").json()}
    for path in FORM_ROUTES:
        assert signed_in.post(path, data=GOODS, headers=headers).status_code == 200
        assert signed_in.post(path, data=GOODS | {"csrf_token": "x"}, headers=headers).status_code == 200
    assert signed_in.post("/json", json=GOODS, headers=headers).status_code == 200


def test_the_hosts_refusal_is_in_its_own_form(signed_in):
    answer = signed_in.post("/nothing")
    assert (answer.status_code, set(answer.json())) == (403, {"detail"})
    assert answer.headers["cache-control"] == "no-store"
    assert {"Cookie", "Authorization"} <= {part.strip() for part in answer.headers["vary"].split(",")}


def test_the_token_of_a_page_is_bound_to_whoever_looks_at_it(host, visitor):
    first = visitor.get("/page")
    assert [line.partition("=")[0] for line in first.headers.get_list("set-cookie")] == ["sekisho_csrf"]
    again = visitor.get("/page")
    assert "set-cookie" not in again.headers
    credentials = {"email": "host@example.com", "password": PASSWORD}
    assert visitor.post("/auth/signup", json=credentials).status_code == 201
    stranger = TestClient(host, base_url="http://127.0.0.1").get("/page").json()
    for token, status in ((stranger, 403), (first.json(), 200)):
        answer = visitor.post("/auth/session", json=credentials, headers={"X-CSRF-Token": token})
        assert answer.status_code == status
    after = visitor.get("/page")
    assert "set-cookie" not in after.headers
    for token, status in ((again.json(), 403), (after.json(), 200)):
        assert visitor.post("/nothing", data={"csrf_token": token}).status_code == status


def test_a_page_with_a_token_is_kept_by_nobody(visitor):
    """Its cookie would be everybody's, and so would the token (CVE-2025-48947)."""
    for path in ("/page", "/form", "/page"):
        answer = visitor.get(path)
        assert answer.headers["cache-control"] == "no-store"
        assert {"Cookie", "Authorization"} <= {part.strip() for part in answer.headers["vary"].split(",")}


# --- in a browser --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """Somebody else's pages. ``127.0.0.1``: another origin of the same site as the server; ``localhost``: another site."""

    port: int

    def url(self, host: str) -> str:
        return f"http://{host}:{self.port}/"


@pytest.fixture
def node(_sqlite_server) -> RunningServer:
    return _sqlite_server


@pytest.fixture
def somebody_elses() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>gifts</title><iframe name=hidden></iframe>")

        def log_message(self, *_: object) -> None:
            pass

    site = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.daemon_threads = True
    thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield Site(site.server_port)
    site.shutdown()
    site.server_close()
    thread.join(10)


# One call from a page: fetch, with everything that it is let to set.
FETCH = """async ([method, url, body, headers]) => {
    const response = await fetch(url, {method, headers, body: body === null ? undefined : JSON.stringify(body),
                                       credentials: 'include'});
    return [response.status, response.status === 204 ? null : await response.json()];
}"""

# All that a page of another origin can do; what it may not, it tries as well. The answers are kept from it.
ATTACK = """async ([base, credentials, token]) => {
    const text = JSON.stringify(credentials);
    const done = [];
    const fetched = (method, path, body, headers, mode) =>
        fetch(base + path, {method, body, headers, mode, credentials: 'include'})
            .then(response => done.push([path, mode, response.type, response.status]),
                  error => done.push([path, mode, 'failed', 0]));
    const form = (path, enctype, fields) => new Promise(resolve => {
        const form = document.createElement('form');
        form.method = 'post'; form.action = base + path; form.enctype = enctype; form.target = 'hidden';
        for (const [name, value] of Object.entries(fields)) {
            const input = document.createElement('input');
            input.name = name; input.value = value; form.append(input);
        }
        document.body.append(form);
        document.querySelector('iframe').addEventListener('load', resolve, {once: true});
        form.submit();
    });
    const types = ['text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data'];
    for (const path of ['/session', '/logout', '/login', '/logout/all', '/refresh', '/password']) {
        const body = ['/logout', '/logout/all', '/refresh'].includes(path) ? '' : text;
        for (const type of types) {
            await form(path, type, {...credentials, csrf_token: token});
            await fetched('POST', path, body, {'Content-Type': type}, 'no-cors');
            done.push([path, 'beacon', navigator.sendBeacon(base + path, new Blob([body], {type}))]);
        }
        await fetched('POST', path, undefined, {}, 'no-cors');
        await fetched('POST', path, body, {'Content-Type': 'application/json', 'X-CSRF-Token': token}, 'cors');
        await form(path, 'text/plain', {});
        await form(path, 'text/plain', {[text.slice(0, -1) + ',"x":"']: '"}'});
    }
    await fetched('DELETE', '/session', undefined, {'X-CSRF-Token': token}, 'cors');
    await fetched('DELETE', '/session', undefined, {}, 'no-cors');
    return done;
}"""


LEAVE = """action => {
    const form = document.createElement('form');
    form.method = 'post'; form.action = action; form.enctype = 'text/plain';
    document.body.append(form);
    form.submit();
}"""


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_another_origins_page_moves_nothing_in_a_real_browser(page, node, somebody_elses, connect, host):
    """A form, fetch with credentials and sendBeacon, with cookies of one site and of another, and a token it stole."""
    email = someone(Page(connect(node)))
    credentials = {"email": email, "password": PASSWORD}
    # Our own page can log in, by session and by tokens.
    page.goto(f"{node.base_url}/healthz")
    token = page.evaluate(FETCH, ["GET", "/session", None, {}])[1]["csrf_token"]
    json_type = {"Content-Type": "application/json"}
    status, opened = page.evaluate(FETCH, ["POST", "/session", credentials, json_type | {"X-CSRF-Token": token}])
    assert (status, opened["user"]["email"]) == (200, email)
    assert page.evaluate(FETCH, ["POST", "/login", credentials | {"cookies": True}, json_type])[0] == 200
    assert page.evaluate("document.cookie") == "", "no script sees one"
    jar = sorted((cookie["name"], cookie["value"]) for cookie in page.context.cookies())
    assert [name for name, _ in jar] == [
        f"sekisho_{name}" for name in ("access", "csrf", "device", "refresh", "session")
    ]
    (_, listed) = page.evaluate(FETCH, ["GET", "/sessions", None, {}])
    before = {one["id"] for one in listed["sessions"]}
    assert len(before) == 2

    # Somebody else's cannot.
    attack = page.context.new_page()
    answered: list[tuple[str, str, int]] = []
    attack.on("response", lambda response: answered.append((response.request.method, response.url, response.status)))
    attack.goto(somebody_elses.url(host))
    done = attack.evaluate(ATTACK, [node.base_url, credentials | {"cookies": True}, opened["csrf_token"]])
    assert len(done) > 40
    arrived = [status for method, url, status in answered if url.startswith(node.base_url) and method != "OPTIONS"]
    assert len(arrived) > 40, "the attack reached the server"
    assert {403} < set(arrived) <= {401, 403, 415, 422}
    for path in ("/logout", "/session", "/login", "/refresh", "/logout/all"):  # as a form, the whole window goes there
        attack.goto(somebody_elses.url(host))
        with attack.expect_navigation(url=f"{node.base_url}{path}", wait_until="commit") as gone:
            attack.evaluate(LEAVE, node.base_url + path)
        assert gone.value.status in {401, 403, 415, 422}
    attack.close()

    # Nothing has happened.
    assert sorted((cookie["name"], cookie["value"]) for cookie in page.context.cookies()) == jar
    (_, listed) = page.evaluate(FETCH, ["GET", "/sessions", None, {}])
    assert {one["id"] for one in listed["sessions"]} == before
    assert page.evaluate(FETCH, ["POST", "/refresh", None, {}])[0] == 200

    # Our own page can log out, of both.
    right = {"X-CSRF-Token": opened["csrf_token"]}
    assert page.evaluate(FETCH, ["DELETE", "/session", None, right])[0] == 204
    assert page.evaluate(FETCH, ["POST", "/logout", None, {}])[0] == 204
    assert [cookie["name"] for cookie in page.context.cookies()] == ["sekisho_csrf", "sekisho_device"]
    assert page.evaluate(FETCH, ["GET", "/session", None, {}])[1]["user"] is None
