"""Cookies as they travel: the exact text of each, and that nobody between us and the browser keeps an answer."""

import json
import re
from collections.abc import Iterator

import pytest
from browsing import Page, someone
from outsiders import (
    JSON,
    OTHER_PASSWORD,
    PASSWORD,
    Rows,
    bearer,
    exchange,
    is_problem,
    log_in,
    me,
    raw_request,
    sign_up,
)

from servers.caching_proxy import CachingProxy
from servers.sekisho_server import RunningServer

ISSUER, ALLOWED = "https://auth.example.com", "https://app.example.com"
WRONG = "not the password at all"
SESSION_S, ACCESS_S, REFRESH_S, DEVICE_S = 2_592_000, 900, 604_800, 15_552_000
RANDOM, JWS, TOKEN = r"[\w-]{43}", r"[\w-]+\.[\w-]+\.[\w-]+", r"sekisho_rt_[\w-]+"


@pytest.fixture(scope="module")
def _https_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A node behind something that ends TLS: itself it listens on http."""
    env = {
        "SEKISHO_ISSUER": ISSUER,
        "SEKISHO_ALLOWED_ORIGINS": ALLOWED,
        "SEKISHO_TRUSTED_PROXIES": "127.0.0.1/32",
    }
    folder = tmp_path_factory.mktemp("https-server")
    server = RunningServer(folder, database_url=f"sqlite:///{folder / 'sekisho.db'}", env=env)
    server.start()
    yield server
    server.close()


@pytest.fixture
def https_server(_https_server) -> RunningServer:
    return _https_server


@pytest.fixture(params=["https", "http"])
def site(request) -> RunningServer:
    """A node whose issuer is https, and one whose issuer is http on this machine."""
    return request.getfixturevalue("_https_server" if request.param == "https" else "_sqlite_server")


@pytest.fixture
def page(connect, site) -> Page:
    return Page(connect(site))


@pytest.fixture
def email(page) -> str:
    return someone(page)


@pytest.fixture
def cookies(site) -> "Names":
    return Names(is_https=site.env.get("SEKISHO_ISSUER") == ISSUER)


class Names:
    """What the cookies are called there, and how each line has to look."""

    def __init__(self, *, is_https: bool) -> None:
        prefix = "__Host-sekisho_" if is_https else "sekisho_"
        self.session, self.csrf, self.access, self.refresh, self.device = (
            prefix + name for name in ("session", "csrf", "access", "refresh", "device")
        )
        self._attributes = f"Path=/; {'Secure; ' if is_https else ''}HttpOnly; SameSite=Lax"

    def line(self, name: str, value: str, max_age_s: int | str | None) -> str:
        """A pattern for the whole line."""
        age = "" if max_age_s is None else f"Max-Age={max_age_s}; "
        return f"{re.escape(name)}={value}; {re.escape(age + self._attributes)}"

    def cleared(self, *names: str) -> list[str]:
        return [self.line(name, "", 0) for name in names]

    @property
    def token_pair(self) -> list[str]:
        return [self.line(self.access, JWS, ACCESS_S), self.line(self.refresh, TOKEN, REFRESH_S)]


def sets_exactly(response, patterns: list[str], status: int = 200) -> None:
    assert response.status_code == status, response.text
    lines = sorted(response.headers.get_list("set-cookie"))
    assert len(lines) == len(patterns), lines
    for line, pattern in zip(lines, sorted(patterns), strict=True):
        assert re.fullmatch(pattern, line, re.ASCII), (line, pattern)
        assert len(line.partition(";")[0].replace("=", "", 1)) <= 4096
        for never in ("domain", "expires", "partitioned", "samesite=none"):
            assert never not in line.lower()


# --- the exact text ------------------------------------------------------------------------------------------------


def test_the_cookies_of_a_session(page, email, cookies):
    credentials = {"email": email, "password": PASSWORD}
    sets_exactly(page.get("/session"), [cookies.line(cookies.csrf, RANDOM, None)])
    opened = [cookies.line(cookies.session, RANDOM, SESSION_S), cookies.line(cookies.device, RANDOM, DEVICE_S)]
    sets_exactly(page.post("/session", json=credentials), opened)
    sets_exactly(page.post("/session", json=credentials), opened)
    sets_exactly(page.get("/session"), [])
    passwords = {"current_password": PASSWORD, "new_password": OTHER_PASSWORD}
    sets_exactly(page.post("/password", json=passwords), [cookies.line(cookies.session, RANDOM, SESSION_S)])
    for end in (("DELETE", "/session"), ("POST", "/logout"), ("POST", "/logout/all")):
        sets_exactly(page.send(*end), cookies.cleared(cookies.session), 204)
        page.opens()
        page.logs_in(email, OTHER_PASSWORD)


def test_the_cookies_with_tokens(page, email, cookies, site):
    credentials = {"email": email, "password": PASSWORD, "cookies": True}
    device = cookies.line(cookies.device, RANDOM, DEVICE_S)
    sets_exactly(page.post("/login", json=credentials), [*cookies.token_pair, device])
    rows = Rows(site, None)
    rows.run("UPDATE sessions SET handed_out_at_us = handed_out_at_us - 900000000")
    sets_exactly(page.post("/refresh"), cookies.token_pair)
    passwords = {"current_password": PASSWORD, "new_password": OTHER_PASSWORD}
    sets_exactly(page.post("/password", json=passwords), cookies.token_pair)
    both = cookies.cleared(cookies.access, cookies.refresh)
    sets_exactly(page.post("/logout/all"), both, 204)
    for kept in (cookies.access, cookies.refresh):
        sets_exactly(
            page.post("/login", json=credentials | {"password": OTHER_PASSWORD}), [*cookies.token_pair, device]
        )
        for name in {cookies.access, cookies.refresh} - {kept}:
            del page.cookies[name]
        sets_exactly(page.post("/logout"), both, 204)


def test_a_session_that_ends_sooner_has_a_cookie_that_ends_sooner(page, email, cookies, site):
    """So does an access token: none outlives its session."""
    page.logs_in_with_tokens(email)
    Rows(site, None).run("UPDATE sessions SET ends_at_us = created_at_us + 400000000")
    left = r"(?:400|3\d\d)"
    pair = [
        cookies.line(cookies.access, JWS, "LEFT").replace("LEFT", left),
        cookies.line(cookies.refresh, TOKEN, "LEFT").replace("LEFT", left),
    ]
    sets_exactly(page.post("/refresh"), pair)


def test_only_the_sites_own_names_count(page, email, cookies):
    """``__Host-`` over http would be refused by browsers, and plain names on an https site can be planted."""
    others = Names(is_https=cookies.session == "sekisho_session")
    page.logs_in_with_tokens(email)
    page.logs_in(email)
    for name, path in (("session", "/me"), ("access", "/me"), ("refresh", "/refresh")):
        value = page.cookies[getattr(cookies, name)]
        method = "GET" if path == "/me" else "POST"
        right, wrong = ({"Cookie": f"{getattr(one, name)}={value}"} for one in (cookies, others))
        assert page.send(method, path, headers=right).status_code == 200
        is_problem(page.send(method, path, headers=wrong), 401, "authentication_required")
        planted = {"Cookie": f"{getattr(cookies, name)}={value}; {getattr(others, name)}=planted"}
        assert page.send(method, path, headers=planted).status_code == 200


def test_a_cookie_that_a_browser_would_drop_is_never_sent(page, email, cookies, site):
    """A login that seems to work and leaves the browser without its cookie helps nobody; a body has no such limit."""
    for chars, fits in ((2000, True), (3500, False)):
        Rows(site, None).run(f"UPDATE users SET roles = '[\"{'r' * chars}\"]' WHERE email_canonical = '{email}'")
        response = page.post("/login", json={"email": email, "password": PASSWORD, "cookies": True})
        if fits:
            sets_exactly(response, [*cookies.token_pair, cookies.line(cookies.device, RANDOM, DEVICE_S)])
        else:
            is_problem(response, 500, "internal_error")
            assert "set-cookie" not in response.headers
        assert len(log_in(page.client, email).access) > chars


# --- nobody keeps it -----------------------------------------------------------------------------------------------


def is_private(response) -> None:
    assert response.headers.get_list("cache-control") == ["no-store"]
    assert {part.strip() for part in response.headers["vary"].split(",")} >= {"Cookie", "Authorization"}


def answers(page: Page, email: str) -> dict[str, object]:
    """Something of every kind that carries a credential or depends on one, and errors of every kind."""
    credentials = {"email": email, "password": PASSWORD}
    tokens = log_in(page.client, email)
    told = {
        "visitor": page.get("/session"),
        "no credential": page.get("/me"),
        "login": page.post("/session", json=credentials),
        "session": page.get("/session"),
        "me": page.get("/me"),
        "sessions": page.get("/sessions"),
        "by bearer": me(page.client, tokens.access),
        "no such session": page.delete("/sessions/x"),
        "no CSRF token": page.delete("/session", headers={"X-CSRF-Token": "x"}),
        "another site": page.post("/logout/all", headers={"Sec-Fetch-Site": "cross-site"}),
        "wrong password": page.post("/session", json=credentials | {"password": WRONG}),
        "wrong shape": page.post("/session", json={}),
        "malformed": page.post("/session", content=b"{", headers=JSON),
        "wrong type": page.post("/session", content=b"{}", headers={"Content-Type": "text/plain"}),
        "too large": page.post("/session", content=b" " * 70_000, headers=JSON),
        "bad bearer": me(page.client, "x"),
        "bad cookie": page.get("/me", headers={"Cookie": "; ".join(f"{name}=x" for name in page.cookies)}),
        "plain login": page.post("/login", json=credentials),
        "login with cookies": page.post("/login", json=credentials | {"cookies": True}),
        "refresh": page.post("/refresh"),
        "refresh refused": page.post("/refresh", json={"refresh_token": "x"}),
        "password refused": page.post("/password", json={"current_password": WRONG, "new_password": OTHER_PASSWORD}),
        "logout by tokens": page.post("/logout"),
        "logout": page.delete("/session"),
        "logout by bearer": page.client.post("/logout", headers=bearer(tokens.access)),
        "taken": page.client.post("/signup", json=credentials),
        "no such path": page.get("/nothing"),
        "no such method": page.send("PUT", "/session"),
        "HEAD": page.send("HEAD", "/me"),
    }
    statuses = {response.status_code for response in told.values()}
    assert statuses == {200, 204, 400, 401, 403, 404, 405, 409, 413, 415, 422}
    return told


def test_no_answer_with_a_credential_is_kept_errors_included(page, email):
    for response in answers(page, email).values():
        is_private(response)


def test_throttled_ones_too(page, email):
    page.opens()
    for _ in range(6):
        response = page.tries(email, WRONG)
        is_private(response)
    assert response.status_code == 429


def test_a_page_of_an_allowed_origin_changes_nothing_about_that(connect, https_server):
    """The CORS middleware adds to Vary and takes nothing away."""
    page = Page(connect(https_server))
    page.client.headers["Origin"] = ALLOWED
    for response in answers(page, someone(page)).values():
        is_private(response)
        assert response.headers["access-control-allow-origin"] == ALLOWED
        assert "Origin" in response.headers["vary"]


def test_only_a_logout_clears_the_browsers_cache(page, email):
    clears = {name for name, response in answers(page, email).items() if "clear-site-data" in response.headers}
    assert clears == {"logout", "logout by tokens", "logout by bearer"}
    page.opens()
    page.logs_in(email)
    for response in (page.post("/logout/all"), page.post("/logout", headers=bearer(log_in(page.client, email).access))):
        assert response.headers.get_list("clear-site-data") == ['"cache"']


def test_a_header_that_is_too_large_is_no_reason_to_keep_the_answer(site):
    answer = exchange(site, raw_request("GET", "/me", {"Cookie": "a=" + "x" * 33_000}))
    assert answer.startswith(b"HTTP/1.1 431")
    assert b"no-store" in answer.lower()


# --- a careless cache (CVE-2025-48947, CVE-2025-64762) -------------------------------------------------------------


@pytest.fixture
def proxy(site) -> Iterator[CachingProxy]:
    with CachingProxy(site.port) as proxy:
        yield proxy


@pytest.fixture
def behind(connect, proxy):
    """A page whose calls go through the cache."""

    def make() -> Page:
        page = Page(connect(proxy))
        page.client.headers["User-Agent"] = "behind a cache"
        return page

    return make


def test_the_cache_does_cache(behind, proxy):
    """Else the tests below could not fail."""
    for _ in range(2):
        response = behind().get("/.well-known/jwks.json")
    assert (response.status_code, response.headers["x-cache"]) == (200, "HIT")
    assert proxy.keeps == {"/.well-known/jwks.json"}


PRIVATE = ["/session", "/me", "/sessions"]


def test_two_visitors_behind_a_cache_get_cookies_of_their_own(behind, proxy):
    visitors = [behind() for _ in range(3)]
    for visitor in visitors:
        visitor.opens()
    assert len({json.dumps(visitor.cookies) for visitor in visitors}) == 3
    assert len({visitor.csrf for visitor in visitors}) == 3
    assert proxy.keeps == set()


@pytest.mark.parametrize("how", ["session cookie", "token cookies", "bearer"])
def test_two_users_behind_a_cache_never_see_each_other(behind, proxy, how):
    users = {}
    for page in (behind(), behind()):
        email = sign_up(page.client)
        if how == "session cookie":
            page.logs_in(email)
        elif how == "token cookies":
            page.logs_in_with_tokens(email)
        else:
            page.client.headers.update(bearer(log_in(page.client, email).access))
        users[email] = page
    seen: dict[str, list[str]] = {path: [] for path in PRIVATE}
    for _ in range(2):
        for email, page in users.items():
            assert page.get("/me").json()["email"] == email
            (one,) = page.get("/sessions").json()["sessions"]
            assert one["current"]
            opened = page.opens()
            assert (opened["user"] or {"email": email})["email"] == email
            for path in PRIVATE:
                response = page.get(path)
                assert (response.status_code, response.headers["x-cache"]) == (200, "MISS")
                seen[path] += response.headers.get_list("set-cookie")
    assert all(len(set(lines)) == len(lines) for lines in seen.values())
    assert proxy.keeps == set()
    # And whoever comes without a credential gets neither.
    stranger = behind()
    assert stranger.user is None
    for path in ("/me", "/sessions"):
        is_problem(stranger.get(path), 401, "authentication_required")
