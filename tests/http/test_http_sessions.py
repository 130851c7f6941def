"""The session that a cookie carries, beside those that tokens carry: one list, and one way to end each."""

import hashlib
import secrets
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from browsing import ACCESS, DEVICE, REFRESH, SESSION, VISITOR, Opens, Page, pages_of, set_cookies, someone
from outsiders import (
    OTHER_PASSWORD,
    PASSWORD,
    Rows,
    Tokens,
    bearer,
    is_problem,
    log_in,
    me,
    new_email,
    refresh,
    seen,
    try_login,
)

IDLE_US, ABSOLUTE_US = 604_800_000_000, 2_592_000_000_000
WRONG = "not the password at all"


@pytest.fixture
def opens(connect, server) -> Opens:
    return pages_of(connect, server)


@pytest.fixture
def page(opens) -> Page:
    """A page in the browser of someone without a past here."""
    return opens()


@pytest.fixture
def email(page) -> str:
    return someone(page)


def is_dead(page: Page, cookie: str) -> None:
    """The cookie opens nothing, and nobody is told why."""
    headers = {"Cookie": f"{SESSION}={cookie}"}
    is_problem(page.get("/me", headers=headers), 401, "session_refused")
    is_problem(page.get("/sessions", headers=headers), 401, "session_refused")
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    assert page.client.get("/session", headers=raw).json()["user"] is None


def list_of(page: Page, **named) -> dict[UUID, dict]:
    response = page.get("/sessions", **named)
    assert response.status_code == 200, response.text
    return {UUID(one["id"]): one for one in response.json()["sessions"]}


# --- a day of a page -----------------------------------------------------------------------------------------------


def test_a_day_of_a_page(page, email, rows):
    opened = page.get("/session")
    assert opened.json() == {"csrf_token": page.csrf, "user": None}
    assert set(set_cookies(opened)) == {VISITOR}

    logged_in = page.post("/session", json={"email": email, "password": PASSWORD})
    assert logged_in.status_code == 200
    assert set(set_cookies(logged_in)) == {SESSION, DEVICE}
    user = logged_in.json()["user"]
    assert logged_in.json() == {"csrf_token": page.csrf, "user": user}
    assert set(user) == {"id", "email", "roles", "session_id", "created_at"}
    assert (user["email"], user["roles"]) == (email, [])
    assert "token" not in logged_in.text.replace("csrf_token", "")

    again = page.get("/session")
    assert again.json() == {"csrf_token": page.csrf, "user": user}
    assert "set-cookie" not in again.headers
    assert page.get("/me").json() == user

    cookie = page.cookies[SESSION]
    logged_out = page.delete("/session")
    assert (logged_out.status_code, logged_out.content) == (204, b"")
    assert logged_out.headers["clear-site-data"] == '"cache"'
    assert set(set_cookies(logged_out)) == {SESSION}
    assert SESSION not in page.cookies
    assert page.user is None
    is_dead(page, cookie)
    assert rows.cause(UUID(user["session_id"])) == "logout"


def test_a_visitor_keeps_the_cookie_and_every_token_for_it_works(page, email):
    first = page.opens()["csrf_token"]
    again = page.get("/session")
    assert "set-cookie" not in again.headers
    assert page.csrf != first
    assert page.post(
        "/session", json={"email": email, "password": PASSWORD}, headers={"X-CSRF-Token": first}
    ).is_success


def test_the_ids_are_random(page, email):
    cookies = set()
    for _ in range(5):
        page.logs_in(email)
        cookies.add(page.cookies[SESSION])
    assert len(cookies) == 5
    assert {len(cookie) for cookie in cookies} == {43}  # 256 bits in base64url


def test_without_a_cookie_there_is_no_session_to_end(page):
    page.opens()
    is_problem(page.delete("/session"), 401, "authentication_required")
    is_problem(page.post("/logout"), 401, "authentication_required")


def test_an_unknown_cookie_ends_none(page):
    for unknown in (secrets.token_urlsafe(32), "x", ""):
        page.cookies[SESSION] = unknown
        page.opens()
        for response in (page.delete("/session"), page.post("/logout"), page.post("/logout/all")):
            is_problem(response, 401, "session_refused")
            assert "set-cookie" not in response.headers


@pytest.mark.parametrize("call", [("DELETE", "/session"), ("POST", "/logout")])
def test_a_logout_can_be_repeated(page, email, rows, call):
    """Its answer may have been lost."""
    session_id = page.logs_in(email)
    before, csrf = dict(page.cookies), page.csrf
    for _ in range(3):
        page.cookies, page.csrf = dict(before), csrf
        response = page.send(*call)
        assert response.status_code == 204
        assert response.headers["clear-site-data"] == '"cache"'
        assert set(set_cookies(response)) == {SESSION}
    assert rows.cause(session_id) == "logout"
    assert rows.run(f"SELECT 1 FROM revocations WHERE session_id = '{session_id.hex}'") == [["1"]]


# --- wrong credentials ---------------------------------------------------------------------------------------------


def test_wrong_credentials_get_one_answer_and_no_cookie(opens, page, email, rows):
    disabled = someone(opens())
    rows.run(f"UPDATE users SET disabled_at_us = 1 WHERE email_canonical = '{disabled}'")
    answers = []
    for address, password in ((email, WRONG), (new_email(), PASSWORD), (disabled, PASSWORD), ("no address", "")):
        other = opens()
        response = other.tries(address, password)
        is_problem(response, 401, "wrong_credentials")
        assert "set-cookie" not in response.headers
        answers.append(str(seen(response)))
    assert len(set(answers)) == 1
    assert str(seen(try_login(page.client, email, WRONG))) == answers[0]  # as /login


def test_a_failed_login_leaves_the_session_as_it_was(page, email):
    page.logs_in(email)
    is_problem(page.tries(email, WRONG), 401, "wrong_credentials")
    assert page.user["email"] == email


def test_guesses_are_throttled_together_with_those_at_login(opens, page, email):
    for _ in range(3):
        is_problem(page.tries(email, WRONG), 401, "wrong_credentials")
    for _ in range(2):
        is_problem(try_login(page.client, email, WRONG), 401, "wrong_credentials")
    for response in (page.tries(email), opens().tries(email), try_login(page.client, email)):
        is_problem(response, 429, "throttled")
        assert 1 <= int(response.headers["retry-after"]) <= 30
        assert "set-cookie" not in response.headers


def test_a_known_device_is_throttled_apart(opens, page, email):
    page.logs_in(email)
    page.logs_out()
    stranger = opens()
    for _ in range(5):
        is_problem(stranger.tries(email, WRONG), 401, "wrong_credentials")
    is_problem(opens().tries(email), 429, "throttled")
    device = page.cookies[DEVICE]
    page.opens()
    assert page.tries(email).status_code == 200
    assert page.cookies[DEVICE] == device


# --- a new id, and never one that the client has brought (CWE-384) -------------------------------------------------


def test_a_login_over_a_login_replaces_the_session(page, email, rows):
    first_id, first = page.logs_in(email), page.cookies[SESSION]
    second_id = page.logs_in(email)
    assert first_id != second_id
    assert page.cookies[SESSION] != first
    is_dead(page, first)
    assert rows.cause(first_id) == "logout"
    assert set(list_of(page)) == {second_id}


def test_logins_at_once_in_one_browser_end_the_old_session_once(page, email, rows):
    """Each replaces the same old session, and each has an id of its own."""
    old_id = page.logs_in(email)
    headers = {"Cookie": page.cookie_header, "X-CSRF-Token": page.csrf, "Sec-Fetch-Site": "same-origin"}
    body = {"email": email, "password": PASSWORD}
    with ThreadPoolExecutor(4) as tabs:
        responses = list(tabs.map(lambda _: page.client.post("/session", json=body, headers=headers), range(4)))
    assert [response.status_code for response in responses] == [200] * 4
    assert len({set_cookies(response)[SESSION] for response in responses}) == 4
    assert rows.cause(old_id) == "logout"
    assert rows.run(f"SELECT 1 FROM revocations WHERE session_id = '{old_id.hex}'") == [["1"]]


RIGHT_SHAPE = "A" * 43
MADE_UP = [
    "",
    "x",
    "A" * 42,
    "A" * 44,
    RIGHT_SHAPE,
    RIGHT_SHAPE[:-1] + "=",
    '"' + "A" * 41 + '"',
    "A" * 3000,
    "0",
    "null",
    "é" * 43,
    "A" * 42 + "é",
]


def test_a_made_up_cookie_is_never_adopted(page, email):
    for made_up in MADE_UP:
        page.cookies[SESSION] = made_up
        is_problem(page.get("/me"), 401, "session_refused")
        assert page.user is None
        assert page.cookies[SESSION] == made_up, "a look does not take it away"
        page.logs_in(email)
        assert page.cookies[SESSION] != made_up
        is_dead(page, made_up)
        assert page.user["email"] == email


def test_neither_the_sessions_id_nor_its_hash_nor_another_spelling_is_its_cookie(page, email):
    session_id, cookie = page.logs_in(email), page.cookies[SESSION]
    digest = hashlib.sha256(cookie.encode()).hexdigest()
    for other in (str(session_id), session_id.hex, digest, digest[:43], f"{cookie}=", cookie.swapcase(), f'"{cookie}"'):
        is_dead(page, other)


def test_somebodys_live_session_that_was_planted_ends(opens, page, email, rows):
    """The attacker waits for the victim to log in, and to work in the attacker's account or in a shared session."""
    attacker = opens()
    planted_id, planted = attacker.logs_in(someone(attacker)), attacker.cookies[SESSION]
    page.cookies[SESSION] = planted
    page.opens()
    page.logs_in(email)
    assert page.cookies[SESSION] != planted
    assert page.user["email"] == email
    assert rows.cause(planted_id) == "logout"
    is_dead(attacker, planted)


def test_a_planted_session_survives_a_login_that_fails(opens, page, email):
    """Else anybody who knows a cookie, and no password, could end its session so. They can log out, with its token."""
    other = opens()
    other.logs_in(someone(other))
    page.cookies[SESSION] = other.cookies[SESSION]
    page.opens()
    is_problem(page.tries(email, WRONG), 401, "wrong_credentials")
    assert other.user is not None


def test_a_dead_cookie_shows_nobody_and_its_page_can_log_in(page, email):
    page.logs_in(email)
    dead = page.cookies[SESSION]
    page.logs_out()
    page.cookies[SESSION] = dead
    opened = page.get("/session")
    assert opened.status_code == 200
    assert opened.json()["user"] is None
    assert "set-cookie" not in opened.headers  # no refusal takes a cookie away
    assert page.tries(email).status_code == 200
    assert page.cookies[SESSION] != dead


def test_a_session_cookie_is_no_access_token_and_an_access_token_no_session_cookie(page, email):
    tokens = log_in(page.client, email)
    page.logs_in(email)
    is_problem(me(page.client, page.cookies[SESSION]), 401, "invalid_token")
    is_problem(refresh(page.client, page.cookies[SESSION]), 401, "refresh_refused")
    for token in (tokens.access, tokens.refresh):
        is_dead(page, token)


# --- limits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["idle_ends_at_us", "ends_at_us"])
def test_a_session_over_its_limit_is_dead(opens, page, email, rows, limit):
    session_id, cookie = page.logs_in(email), page.cookies[SESSION]
    other = opens()
    other.logs_in(email)
    assert session_id in list_of(other)
    now_us = time.time_ns() // 1000
    rows.change(session_id, f"{limit} = {now_us + 60_000_000}")
    assert page.user is not None
    rows.change(session_id, f"{limit} = {now_us - 1}, handed_out_at_us = handed_out_at_us - 3600000000")
    is_dead(page, cookie)  # and its use does not revive it
    assert rows.session(session_id, limit) == [str(now_us - 1)]
    assert session_id not in list_of(other)


def test_the_limits_of_a_new_session(page, email, rows):
    session_id = page.logs_in(email)
    created, idle_ends, ends, used = map(
        int, rows.session(session_id, "created_at_us, idle_ends_at_us, ends_at_us, handed_out_at_us")
    )
    assert abs(created / 1e6 - time.time()) < 60
    assert (idle_ends - created, ends - created, used) == (IDLE_US, ABSOLUTE_US, created)


def times_of(rows: Rows, session_id: UUID) -> tuple[int, int, int]:
    used, idle_ends, ends = map(int, rows.session(session_id, "handed_out_at_us, idle_ends_at_us, ends_at_us"))
    return used, idle_ends, ends


READS = ["/me", "/session", "/sessions"]


@pytest.mark.parametrize("path", READS)
def test_use_keeps_a_session_alive_with_at_most_one_write_a_minute(page, email, rows, path):
    session_id = page.logs_in(email)
    rows.age(session_id, handed_out_s=55)
    rows.change(session_id, "idle_ends_at_us = idle_ends_at_us - 55000000, last_address = '198.51.100.7'")
    before = times_of(rows, session_id)
    assert page.get(path).status_code == 200
    assert times_of(rows, session_id) == before

    rows.age(session_id, handed_out_s=5)
    began = time.time_ns() // 1000
    assert page.get(path, headers={"User-Agent": "another"}).status_code == 200
    used, idle_ends, ends = times_of(rows, session_id)
    assert began - 1_000_000 < used < began + 60_000_000
    assert idle_ends - used == IDLE_US
    assert ends == before[2]
    address, agent = rows.session(session_id, "last_address, last_user_agent")
    assert (address, agent) == (page.client.headers["x-forwarded-for"], "another")

    assert page.get(path).status_code == 200
    assert times_of(rows, session_id)[0] == used


def test_a_last_use_in_the_future_counts_as_now(page, email, rows):
    """A clock was put back. The session must not wait for the future to come."""
    session_id = page.logs_in(email)
    rows.change(session_id, "handed_out_at_us = handed_out_at_us + 86400000000, idle_ends_at_us = idle_ends_at_us - 1")
    assert page.get("/me").status_code == 200
    used, idle_ends, _ = times_of(rows, session_id)
    assert abs(used / 1e6 - time.time()) < 60
    assert idle_ends - used == IDLE_US


@contextmanager
def written(rows: Rows, session_id: UUID) -> Iterator[Callable[[], int]]:
    """How often the session's row is written from now on."""
    name = f"written_{session_id.hex}"
    rows.run(f"CREATE TABLE {name} (n INTEGER)")
    if rows.is_sqlite:
        rows.run(
            f"CREATE TRIGGER {name}_t AFTER UPDATE ON sessions WHEN NEW.id = '{session_id.hex}' "
            f"BEGIN INSERT INTO {name} VALUES (1); END"
        )
    else:
        rows.run(
            f"CREATE FUNCTION {name}_f() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$BEGIN INSERT INTO {name} VALUES (1); RETURN NEW; END$$"
        )
        rows.run(
            f"CREATE TRIGGER {name}_t AFTER UPDATE ON sessions FOR EACH ROW WHEN (NEW.id = '{session_id.hex}') "
            f"EXECUTE FUNCTION {name}_f()"
        )
    try:
        yield lambda: int(rows.one(f"SELECT count(*) FROM {name}")[0])
    finally:
        rows.run(f"DROP TRIGGER {name}_t" + ("" if rows.is_sqlite else " ON sessions"))
        rows.run(f"DROP TABLE {name}")


def test_many_requests_at_once_are_one_write(page, email, rows):
    session_id = page.logs_in(email)
    rows.age(session_id, handed_out_s=3600)
    headers = {"Cookie": page.cookie_header}
    with written(rows, session_id) as count, ThreadPoolExecutor(24) as people:
        statuses = list(people.map(lambda _: page.client.get("/me", headers=headers).status_code, range(96)))
        assert set(statuses) == {200}
        assert count() == 1
        rows.age(session_id, handed_out_s=3600)
        assert count() == 2  # the counter sees each write
        page.get("/me")
        assert count() == 3


# --- by the session cookie -----------------------------------------------------------------------------------------


def test_everybody_ends_by_logout_all(opens, page, email, rows):
    session_id = page.logs_in(email)
    other, tokens, stranger = opens(), log_in(page.client, email), opens()
    other_id, other_cookie = other.logs_in(email), other.cookies[SESSION]
    stranger.logs_in(someone(stranger))
    cookie = page.cookies[SESSION]
    response = page.post("/logout/all")
    assert response.status_code == 204
    assert response.headers["clear-site-data"] == '"cache"'
    assert set(set_cookies(response)) == {SESSION}
    for dead in (cookie, other_cookie):
        is_dead(page, dead)
    is_problem(me(page.client, tokens.access), 401, "invalid_token")
    is_problem(refresh(page.client, tokens.refresh), 401, "refresh_refused")
    assert {rows.cause(one) for one in (session_id, other_id, tokens.session_id)} == {"logout_all"}
    assert stranger.user is not None


def change_password(page: Page, current: str = PASSWORD, new: str = OTHER_PASSWORD, **named):
    return page.post("/password", json={"current_password": current, "new_password": new}, **named)


def test_a_change_of_password_gives_the_page_a_new_session_and_ends_every_other(opens, page, email, rows):
    old_id, old = page.logs_in(email), page.cookies[SESSION]
    old_csrf = page.csrf
    other, tokens = opens(), log_in(page.client, email)
    other_id, other_cookie = other.logs_in(email), other.cookies[SESSION]
    response = change_password(page)
    assert response.status_code == 200, response.text
    assert set(set_cookies(response)) == {SESSION}
    body = response.json()
    assert set(body) == {"csrf_token", "user"}
    assert body["user"] == page.get("/me").json()
    assert UUID(body["user"]["session_id"]) not in {old_id, other_id, tokens.session_id}
    assert page.cookies[SESSION] != old
    for dead in (old, other_cookie):
        is_dead(page, dead)
    is_problem(me(page.client, tokens.access), 401, "invalid_token")
    is_problem(refresh(page.client, tokens.refresh), 401, "refresh_refused")
    assert {rows.cause(one) for one in (old_id, other_id, tokens.session_id)} == {"password_changed"}
    assert page.csrf == body["csrf_token"]
    is_problem(page.delete("/session", headers={"X-CSRF-Token": old_csrf}), 403, "csrf_refused")
    assert page.logs_out().status_code == 204
    is_problem(opens().tries(email), 401, "wrong_credentials")
    opens().logs_in(email, OTHER_PASSWORD)


def test_a_change_of_password_that_fails_changes_nothing(page, email):
    page.logs_in(email)
    for response, status, code in (
        (change_password(page, current=WRONG), 401, "wrong_credentials"),
        (change_password(page, new="short"), 422, "password_too_short"),
    ):
        is_problem(response, status, code)
        assert "set-cookie" not in response.headers
    assert page.user is not None


def test_a_session_that_is_ended_by_its_id(opens, page, email, rows):
    page.logs_in(email)
    other = opens()
    other_id, cookie = other.logs_in(email), other.cookies[SESSION]
    response = page.delete(f"/sessions/{other_id}")
    assert (response.status_code, response.content) == (204, b"")
    assert "set-cookie" not in response.headers
    is_dead(page, cookie)
    assert rows.cause(other_id) == "ended_by_user"
    is_problem(page.delete(f"/sessions/{other_id}"), 404, "session_not_found")
    for unknown in (uuid4(), "no-id", "%2e%2e"):
        is_problem(page.delete(f"/sessions/{unknown}"), 404, "session_not_found")


def test_nobody_ends_a_strangers_session(opens, page, email):
    page.logs_in(email)
    stranger = opens()
    stranger_id = stranger.logs_in(someone(stranger))
    is_problem(page.delete(f"/sessions/{stranger_id}"), 404, "session_not_found")
    assert stranger.user is not None


# --- one list ------------------------------------------------------------------------------------------------------

SAFARI = "AppleWebKit/605.1.15 (KHTML, like Gecko)"
WEBKIT, GECKO = "AppleWebKit/537.36 (KHTML, like Gecko)", "Gecko/20100101 Firefox/128.0"
DEVICES = [
    (f"Mozilla/5.0 (X11; Linux x86_64; rv:128.0) {GECKO}", "Firefox, Linux"),
    (f"Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:128.0) {GECKO}", "Firefox, Ubuntu"),
    (f"Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:128.0) {GECKO}", "Firefox, Windows"),
    (f"Mozilla/5.0 (Macintosh; Intel Mac OS X 14.5; rv:128.0) {GECKO}", "Firefox, Mac OS X"),
    ("Mozilla/5.0 (Android 14; Mobile; rv:128.0) Gecko/128.0 Firefox/128.0", "Firefox Mobile, Android"),
    (f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {WEBKIT} Chrome/126.0.0.0 Safari/537.36", "Chrome, Windows"),
    (f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {WEBKIT} Chrome/126.0.0.0 Safari/537.36", "Chrome, Mac OS X"),
    (f"Mozilla/5.0 (Linux; Android 10; K) {WEBKIT} Chrome/126.0.0.0 Mobile Safari/537.36", "Chrome Mobile, Android"),
    (
        f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {WEBKIT} Chrome/126.0.0.0 Safari/537.36 Edg/126.0.0.0",
        "Edge, Windows",
    ),
    (
        f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {SAFARI} Version/17.5 Safari/605.1.15",
        "Safari, Mac OS X",
    ),
    (
        f"Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) {SAFARI} Version/17.5 Mobile/15E148 Safari/604.1",
        "Mobile Safari, iOS",
    ),
    ("curl/8.7.1", "curl"),
    ("<script>alert(1)</script>", ""),
    ("%00 ' OR 1=1 --", ""),
    ("", ""),
]


def test_the_list_names_every_device_however_its_session_is_carried(opens, page, email, rows):
    expected = {}
    for number, (agent, name) in enumerate(DEVICES):
        device = opens(user_agent=agent)
        address = device.client.headers["x-forwarded-for"]
        if number % 2:
            session_id, kind = device.logs_in(email), "cookie"
        else:
            session_id, kind = log_in(device.client, email).session_id, "tokens"
        expected[session_id] = (kind, name, agent, address, False)
    own_id = page.logs_in(email)
    expected[own_id] = ("cookie", "", "test", page.client.headers["x-forwarded-for"], True)
    listed = list_of(page)
    assert {
        session_id: (one["kind"], one["device"], one["user_agent"], one["address"], one["current"])
        for session_id, one in listed.items()
    } == expected
    assert next(iter(listed)) == own_id  # the one used last first
    for one in listed.values():
        created, used, expires = (
            datetime.fromisoformat(one[name]).timestamp() for name in ("created_at", "last_used_at", "expires_at")
        )
        assert abs(created - time.time()) < 60
        assert (used, expires) == (created, created + IDLE_US / 1e6)


def test_the_times_in_the_list_are_those_of_the_row(page, email, rows):
    session_id = page.logs_in(email)
    now = int(time.time())
    rows.change(
        session_id,
        f"created_at_us = {(now - 5000) * 1000000}, handed_out_at_us = {(now - 20) * 1000000}, "
        f"idle_ends_at_us = {(now + 900) * 1000000}, ends_at_us = {(now + 300) * 1000000}",
    )
    one = list_of(page)[session_id]
    times = [datetime.fromisoformat(one[name]).timestamp() for name in ("created_at", "last_used_at", "expires_at")]
    assert times == [now - 5000, now - 20, now + 300]


def test_a_user_agent_is_cut_and_never_breaks_the_list(opens, page, email):
    page.logs_in(email)
    session_id = opens(user_agent="x" * 5000).logs_in(email)
    assert list_of(page)[session_id]["user_agent"] == "x" * 256


@pytest.mark.parametrize("ender", ["tokens", "cookie"])
@pytest.mark.parametrize("ended", ["tokens", "cookie"])
def test_any_session_ends_any_other(opens, page, email, rows, ender, ended):
    by = {"headers": bearer(log_in(page.client, email).access)} if ender == "tokens" else {}
    if ender == "cookie":
        page.logs_in(email)
    other = opens()
    tokens = None if ended == "cookie" else log_in(other.client, email)
    other_id = other.logs_in(email) if tokens is None else tokens.session_id
    (one,) = [one for one in list_of(page, **by).values() if not one["current"]]
    assert (UUID(one["id"]), one["kind"]) == (other_id, ended)
    assert page.delete(f"/sessions/{other_id}", **by).status_code == 204
    if tokens is None:
        is_dead(page, other.cookies[SESSION])
    else:
        is_problem(me(page.client, tokens.access), 401, "invalid_token")
        is_problem(refresh(page.client, tokens.refresh), 401, "refresh_refused")
    assert rows.cause(other_id) == "ended_by_user"
    assert len(list_of(page, **by)) == 1


# --- every way a session ends --------------------------------------------------------------------------------------


def by_logout(page, session_id, rows, server, email):
    assert page.logs_out().status_code == 204


def by_logout_all(page, session_id, rows, server, email):
    assert page.client.post("/logout/all", headers=bearer(log_in(page.client, email).access)).status_code == 204


def by_another_session(page, session_id, rows, server, email):
    headers = bearer(log_in(page.client, email).access)
    assert page.client.delete(f"/sessions/{session_id}", headers=headers).status_code == 204


def by_itself(page, session_id, rows, server, email):
    assert page.delete(f"/sessions/{session_id}").status_code == 204


def by_change_of_password(page, session_id, rows, server, email):
    body = {"current_password": PASSWORD, "new_password": OTHER_PASSWORD}
    assert page.client.post("/password", json=body, headers=bearer(log_in(page.client, email).access)).is_success


def by_too_many(page, session_id, rows, server, email):
    """49 others, used later, and one more login."""
    rows.change(session_id, "handed_out_at_us = handed_out_at_us - 1000000")
    new_id = "lower(hex(randomblob(16)))" if rows.is_sqlite else "gen_random_uuid()"
    columns = (
        "user_id, created_at_us, idle_ends_at_us, ends_at_us, generation, branch, made_at_us, salt, last_address, "
        "last_user_agent"
    )
    rows.run(
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 49) "
        f"INSERT INTO sessions (id, handed_out_at_us, {columns}) "
        f"SELECT {new_id}, handed_out_at_us + i, {columns} FROM sessions, n WHERE id = '{session_id.hex}'"
    )
    assert page.user is not None
    log_in(page.client, email)


def by_disabling_the_user(page, session_id, rows, server, email):
    server.run("users", "disable", email)


def by_the_operator(page, session_id, rows, server, email):
    server.run("sessions", "end", str(session_id))


ENDS = {
    by_logout: "logout",
    by_logout_all: "logout_all",
    by_another_session: "ended_by_user",
    by_itself: "ended_by_user",
    by_change_of_password: "password_changed",
    by_too_many: "evicted",
    by_disabling_the_user: "user_disabled",
    by_the_operator: "admin",
}


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_whatever_ends_a_session_its_cookie_is_dead(page, email, rows, server, end):
    """Expiry is tested above; theft cannot be of a cookie, which nothing rotates."""
    session_id, cookie = page.logs_in(email), page.cookies[SESSION]
    end(page, session_id, rows, server, email)
    assert rows.cause(session_id) == ENDS[end]
    is_dead(page, cookie)
    assert rows.run(f"SELECT 1 FROM revocations WHERE session_id = '{session_id.hex}'") == [["1"]]


def test_a_disabled_user_has_no_session_even_if_its_row_lives(page, email, rows):
    session_id, cookie = page.logs_in(email), page.cookies[SESSION]
    rows.run(f"UPDATE users SET disabled_at_us = 1 WHERE email_canonical = '{email}'")
    is_dead(page, cookie)
    assert rows.cause(session_id) == ""


def test_a_row_that_came_back_revives_no_session(page, email, rows):
    """A failover lost the logout; the node has heard of it."""
    session_id, cookie = page.logs_in(email), page.cookies[SESSION]
    assert page.logs_out().status_code == 204
    rows.change(session_id, "ended_at_us = NULL, cause = NULL")
    is_dead(page, cookie)


# --- which credential counts ---------------------------------------------------------------------------------------

CALLS = [
    ("GET", "/me"),
    ("GET", "/sessions"),
    ("DELETE", "/sessions/c0ffee00-0000-4000-8000-000000000000"),
    ("POST", "/logout"),
    ("POST", "/logout/all"),
    ("POST", "/password"),
]
BODIES = {"/password": {"current_password": PASSWORD, "new_password": OTHER_PASSWORD}}


def call_each(page: Page, status: int, code: str, **named) -> None:
    for method, path in CALLS:
        response = page.send(method, path, json=BODIES.get(path), **named)
        is_problem(response, status, code)
        assert "set-cookie" not in response.headers


def test_a_bad_header_is_not_passed_over_for_a_cookie(page, email):
    page.logs_in_with_tokens(email)
    page.logs_in(email)
    for bad in ("Bearer garbage", "Basic dXNlcjpwYXNz", "Bearer", "Bearer a.b.c"):
        call_each(page, 401, "invalid_token", headers={"Authorization": bad})
    assert page.user is not None


def test_a_bad_access_cookie_is_not_passed_over_for_the_sessions(page, email):
    page.logs_in(email)
    page.cookies[ACCESS] = "garbage"
    call_each(page, 401, "invalid_token")
    del page.cookies[ACCESS]
    assert page.user is not None


def test_a_bad_refresh_cookie_is_not_passed_over_at_logout(page, email):
    page.logs_in_with_tokens(email)
    page.logs_in(email)
    good, page.cookies[REFRESH] = page.cookies[REFRESH], "garbage"
    is_problem(page.post("/logout"), 401, "refresh_refused")
    is_problem(page.post("/refresh"), 401, "refresh_refused")
    page.cookies[REFRESH] = good
    assert page.post("/refresh").status_code == 200
    assert page.user is not None


def test_of_several_good_ones_the_first_counts(opens, page):
    """Header, access cookie, session cookie: of three users."""
    emails = [someone(page) for _ in range(3)]
    tokens = log_in(page.client, emails[0])
    page.logs_in_with_tokens(emails[1])
    page.logs_in(emails[2])
    assert page.get("/me", headers=bearer(tokens.access)).json()["email"] == emails[0]
    assert page.get("/me").json()["email"] == emails[1]
    del page.cookies[ACCESS]
    assert page.get("/me").json()["email"] == emails[2]
    assert page.user["email"] == emails[2]


def test_a_logout_ends_the_session_of_the_credential_that_counts(page, rows):
    """Header, body, refresh cookie, access cookie, session cookie."""
    ids = {}
    by_header, by_body = log_in(page.client), log_in(page.client)
    email = someone(page)
    page.logs_in_with_tokens(email)
    ids["refresh cookie"] = Tokens(page.cookies[ACCESS], page.cookies[REFRESH]).session_id
    refresh_cookie = page.cookies.pop(REFRESH)
    page.logs_in_with_tokens(email)
    ids["access cookie"] = Tokens(page.cookies[ACCESS], "").session_id
    page.cookies[REFRESH] = refresh_cookie
    ids["session cookie"] = page.logs_in(email)
    body = {"refresh_token": by_body.refresh}

    def live():
        everyone = {"header": by_header.session_id, "body": by_body.session_id, **ids}
        return [name for name, session_id in everyone.items() if rows.cause(session_id) == ""]

    jar = dict(page.cookies)
    response = page.post("/logout", json=body, headers=bearer(by_header.access))
    assert (response.status_code, live()) == (204, ["body", "refresh cookie", "access cookie", "session cookie"])
    assert page.post("/logout", json=body).status_code == 204
    assert live() == ["refresh cookie", "access cookie", "session cookie"]
    assert page.cookies == jar
    assert set(set_cookies(page.post("/logout"))) == {ACCESS, REFRESH}
    assert live() == ["access cookie", "session cookie"]
    page.cookies[ACCESS] = jar[ACCESS]
    assert set(set_cookies(page.post("/logout"))) == {ACCESS, REFRESH}
    assert live() == ["session cookie"]
    assert set(set_cookies(page.post("/logout"))) == {SESSION}
    assert live() == []


def test_a_bad_token_in_the_body_is_not_passed_over_for_a_cookie(page, email, rows):
    page.logs_in_with_tokens(email)
    session_id = page.logs_in(email)
    for bad in ("garbage", ""):
        for path in ("/refresh", "/logout"):
            response = page.post(path, json={"refresh_token": bad})
            is_problem(response, 401, "refresh_refused")
            assert "set-cookie" not in response.headers
    assert rows.cause(session_id) == ""


def test_a_body_without_a_token_is_no_credential(page, email):
    page.logs_in_with_tokens(email)
    assert page.post("/refresh", json={}).status_code == 200
    assert page.post("/logout", json={}).status_code == 204


def twice(page: Page, name: str, planted: str) -> dict[str, str]:
    return {"Cookie": f"{page.cookie_header}; {name}={planted}"}


def test_two_session_cookies_are_none(opens, page, email):
    page.logs_in(email)
    other = opens()
    other.logs_in(someone(other))
    for planted in ("garbage", "", other.cookies[SESSION]):
        headers = twice(page, SESSION, planted)
        call_each(page, 401, "session_refused", headers=headers)
        for method in ("GET", "POST", "DELETE"):
            body = {"email": email, "password": PASSWORD} if method == "POST" else None
            response = page.send(method, "/session", headers=headers, json=body)
            is_problem(response, 401, "session_refused")
            assert "set-cookie" not in response.headers
    assert page.user is not None
    assert other.user is not None


def test_two_visitors_are_none(page, email):
    page.opens()
    headers = twice(page, VISITOR, "planted")
    is_problem(page.get("/session", headers=headers), 401, "session_refused")
    response = page.post("/session", json={"email": email, "password": PASSWORD}, headers=headers)
    is_problem(response, 401, "session_refused")


def test_two_access_or_refresh_cookies_are_none(page, email):
    page.logs_in_with_tokens(email)
    other = log_in(page.client, email)
    refresh_cookie = page.cookies.pop(REFRESH)
    for planted in ("garbage", "", other.access):
        call_each(page, 401, "invalid_token", headers=twice(page, ACCESS, planted))
    page.cookies[REFRESH] = refresh_cookie
    for planted in ("garbage", "", other.refresh):
        for path in ("/refresh", "/logout"):
            response = page.post(path, headers=twice(page, REFRESH, planted))
            is_problem(response, 401, "refresh_refused")
            assert "set-cookie" not in response.headers
    assert page.post("/refresh").status_code == 200


def test_two_devices_are_none_but_open_no_door_either(page, email):
    page.logs_in(email)
    response = page.post(
        "/session", json={"email": email, "password": PASSWORD}, headers=twice(page, DEVICE, "planted")
    )
    assert response.status_code == 200


def test_the_same_cookie_twice_misleads_nobody(page, email):
    page.logs_in(email)
    assert page.get("/me", headers=twice(page, SESSION, page.cookies[SESSION])).status_code == 200


# --- tokens in cookies ---------------------------------------------------------------------------------------------


def is_lifetimes(response, *, refresh_expires_in: int = 604_800) -> None:
    """No token in the body: scripts cannot read it."""
    assert response.status_code == 200, response.text
    body = response.json()
    assert set(body) == {"token_type", "expires_in", "refresh_expires_in"}
    assert (body["token_type"], body["expires_in"]) == ("Bearer", 900)
    assert refresh_expires_in - 60 <= body["refresh_expires_in"] <= refresh_expires_in


def test_tokens_go_into_cookies_if_asked(page, email):
    response = page.logs_in_with_tokens(email)
    is_lifetimes(response)
    assert set(set_cookies(response)) == {ACCESS, REFRESH, DEVICE}
    assert page.get("/me").json()["email"] == email
    (one,) = list_of(page).values()
    assert (one["kind"], one["current"]) == ("tokens", True)
    assert me(page.client, page.cookies[ACCESS]).status_code == 200  # the same kind of token as ever


@pytest.mark.parametrize("cookies", [False, None])
def test_and_into_the_body_if_not(page, email, cookies):
    asked = {} if cookies is None else {"cookies": cookies}
    response = page.post("/login", json={"email": email, "password": PASSWORD, **asked})
    assert set(set_cookies(response)) == {DEVICE}
    Tokens.of(response)


@pytest.mark.parametrize("wrong", ["true", 1, "yes", None, []])
def test_what_is_neither_true_nor_false_is_refused(page, email, wrong):
    response = page.post("/login", json={"email": email, "password": PASSWORD, "cookies": wrong})
    is_problem(response, 422, "invalid_body")
    assert "set-cookie" not in response.headers


def test_a_failed_login_sets_none(page, email):
    response = page.post("/login", json={"email": email, "password": WRONG, "cookies": True})
    is_problem(response, 401, "wrong_credentials")
    assert "set-cookie" not in response.headers


def test_refresh_from_the_cookie_goes_back_into_cookies(page, email, rows):
    page.logs_in_with_tokens(email)
    old = dict(page.cookies)
    session_id = Tokens(old[ACCESS], "").session_id
    same_again = page.post("/refresh")
    is_lifetimes(same_again)
    assert page.cookies[REFRESH] == old[REFRESH]
    rows.age(session_id, made_s=900, handed_out_s=900)
    response = page.post("/refresh")
    is_lifetimes(response)
    assert set(set_cookies(response)) == {ACCESS, REFRESH}
    assert page.cookies[REFRESH] != old[REFRESH]
    assert page.cookies[ACCESS] != old[ACCESS]
    assert rows.position(session_id) == (1, 0)
    assert page.get("/me").status_code == 200


def test_refresh_from_the_body_goes_back_into_the_body(page, email):
    """Also where there are cookies, and bad ones."""
    page.logs_in_with_tokens(email)
    tokens = log_in(page.client, email)
    for headers in ({}, {"Cookie": f"{REFRESH}=garbage; {ACCESS}=a; {ACCESS}=b; {REFRESH}=c"}):
        response = page.post("/refresh", json={"refresh_token": tokens.refresh}, headers=headers)
        assert Tokens.of(response).session_id == tokens.session_id
        assert "set-cookie" not in response.headers


def test_a_refused_refresh_takes_no_cookie_away(page, email, rows):
    page.logs_in_with_tokens(email)
    session_id = Tokens(page.cookies[ACCESS], "").session_id
    jar = dict(page.cookies)
    rows.age(session_id, made_s=900, handed_out_s=900)
    assert page.post("/refresh").status_code == 200
    newest = dict(page.cookies)
    assert page.delete(f"/sessions/{session_id}").status_code == 204
    answers = []
    for cookies in (jar, newest, {REFRESH: "garbage"}, {REFRESH: ""}):
        page.cookies = dict(cookies)
        response = page.post("/refresh")
        is_problem(response, 401, "refresh_refused")
        assert "set-cookie" not in response.headers
        assert "clear-site-data" not in response.headers
        answers.append(str(seen(response)))
    assert len(set(answers)) == 1


def test_refresh_of_nothing(page, email):
    is_problem(page.post("/refresh"), 401, "authentication_required")
    page.logs_in(email)
    is_problem(page.post("/refresh"), 401, "authentication_required")  # a cookie session has nothing to refresh
    is_problem(page.post("/refresh", json={}), 422, "invalid_body")


@pytest.mark.parametrize("by", [ACCESS, REFRESH])
def test_logout_from_either_cookie(page, email, rows, by):
    page.logs_in_with_tokens(email)
    tokens = Tokens(page.cookies[ACCESS], page.cookies[REFRESH])
    jar = {by: page.cookies[by]}
    for _ in range(2):  # a repeated one too
        page.cookies = dict(jar)
        response = page.post("/logout")
        assert response.status_code == 204
        assert response.headers["clear-site-data"] == '"cache"'
        assert set(set_cookies(response)) == {ACCESS, REFRESH}
    assert rows.cause(tokens.session_id) == "logout"
    is_problem(me(page.client, tokens.access), 401, "invalid_token")
    is_problem(refresh(page.client, tokens.refresh), 401, "refresh_refused")


def test_logout_by_header_or_body_neither_reads_nor_takes_cookies(page, email):
    page.logs_in_with_tokens(email)
    page.logs_in(email)
    jar = dict(page.cookies)
    foul = {"Cookie": f"{page.cookie_header}; {SESSION}=a; {ACCESS}=b; {REFRESH}=c", "Sec-Fetch-Site": "cross-site"}
    for headers in ({}, foul):
        first, second = log_in(page.client, email), log_in(page.client, email)
        for response in (
            page.post("/logout", headers={**headers, **bearer(first.access)}),
            page.post("/logout", json={"refresh_token": second.refresh}, headers=headers),
        ):
            assert response.status_code == 204
            assert "set-cookie" not in response.headers
        is_problem(me(page.client, first.access), 401, "invalid_token")
        is_problem(me(page.client, second.access), 401, "invalid_token")
    assert page.cookies == jar
    assert page.get("/me").status_code == 200
    assert page.user is not None


def test_a_refused_logout_takes_no_cookie_away(page):
    for cookies in ({REFRESH: "garbage"}, {ACCESS: "garbage"}, {REFRESH: "", ACCESS: ""}, {SESSION: "garbage"}):
        page.cookies = dict(cookies)
        page.opens()
        response = page.post("/logout")
        assert response.status_code == 401
        assert "set-cookie" not in response.headers
        assert "clear-site-data" not in response.headers


def test_logout_all_takes_away_what_it_was_asked_by(page, email):
    page.logs_in_with_tokens(email)
    page.logs_in(email)
    response = page.post("/logout/all", headers=bearer(log_in(page.client, email).access))
    assert (response.status_code, "set-cookie" in response.headers) == (204, False)
    page.logs_in_with_tokens(email)
    assert set(set_cookies(page.post("/logout/all"))) == {ACCESS, REFRESH}


def test_a_change_of_password_goes_back_where_it_came_from(page, email):
    page.logs_in_with_tokens(email)
    old = dict(page.cookies)
    response = change_password(page)
    is_lifetimes(response)
    assert set(set_cookies(response)) == {ACCESS, REFRESH}
    assert page.get("/me").json()["email"] == email
    is_problem(me(page.client, old[ACCESS]), 401, "invalid_token")

    tokens = log_in(page.client, email, OTHER_PASSWORD)
    response = change_password(page, OTHER_PASSWORD, PASSWORD, headers=bearer(tokens.access))
    assert Tokens.of(response).session_id != tokens.session_id
    assert "set-cookie" not in response.headers


def test_the_whole_life_of_tokens_in_cookies_and_a_session_beside_them(page, email):
    """One browser may hold both; each is its own session."""
    page.logs_in_with_tokens(email)
    page.logs_in(email)
    assert sorted(one["kind"] for one in list_of(page).values()) == ["cookie", "tokens"]
    assert page.logs_out().status_code == 204
    assert page.get("/me").status_code == 200
    assert page.post("/refresh").status_code == 200


# --- the database ---------------------------------------------------------------------------------------------------


def dump(rows: Rows) -> bytes:
    """All that the database holds."""
    if rows.is_sqlite:
        file = Path(rows.url.removeprefix("sqlite:///"))
        return b"".join(one.read_bytes() for one in file.parent.glob(f"{file.name}*") if one.suffix != ".db-shm")
    tables = rows.run("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    return "\n".join(str(rows.run(f"SELECT * FROM {name}")) for (name,) in tables).encode()


def test_a_dump_of_the_database_holds_no_cookie(page, email, rows):
    page.logs_in_with_tokens(email)
    session_id = page.logs_in(email)
    held = dump(rows)
    shown = (lambda data: data) if rows.is_sqlite else (lambda data: data.hex().encode())
    for name, value in page.cookies.items():
        assert value.encode() not in held, name
        if name in {SESSION, DEVICE, VISITOR}:
            raw = urlsafe_b64decode(value + "=")
            assert shown(raw) not in held, name
            assert raw.hex().encode() not in held, name
    assert page.csrf.encode() not in held
    # What is there instead; and the search finds what is there.
    digest = hashlib.sha256(page.cookies[SESSION].encode()).digest()
    assert shown(digest) in held
    as_hex = "hex(cookie_hash)" if rows.is_sqlite else "encode(cookie_hash, 'hex')"
    assert rows.session(session_id, as_hex)[0].lower() == digest.hex()


def test_while_the_database_is_away_no_cookie_is_taken(serve, connect, private_postgres):
    """They are all that can repeat a logout."""
    server = serve(database_url=private_postgres.create_database())
    page = Page(connect(server))
    email = someone(page)
    page.logs_in_with_tokens(email)
    page.logs_in(email)
    jar = dict(page.cookies)
    own = {"Sec-Fetch-Site": "same-origin", "X-CSRF-Token": page.csrf}
    everything, of_session = {**own, "Cookie": page.cookie_header}, {**own, "Cookie": f"{SESSION}={jar[SESSION]}"}
    credentials = {"email": email, "password": PASSWORD}
    passwords = {"current_password": PASSWORD, "new_password": OTHER_PASSWORD}
    calls = [
        ("POST", "/refresh", everything, None),
        ("POST", "/logout", everything, None),
        ("POST", "/logout", {**own, "Cookie": f"{ACCESS}={jar[ACCESS]}"}, None),
        ("POST", "/logout", of_session, None),
        ("DELETE", "/session", everything, None),
        ("GET", "/session", everything, None),
        ("POST", "/session", everything, credentials),
        ("POST", "/login", everything, {**credentials, "cookies": True}),
        ("POST", "/logout/all", everything, None),
        ("POST", "/logout/all", of_session, None),
        ("DELETE", f"/sessions/{uuid4()}", of_session, None),
        ("GET", "/me", of_session, None),
        ("POST", "/password", of_session, passwords),
    ]
    private_postgres.stop("immediate")
    with ThreadPoolExecutor(len(calls)) as people:
        responses = people.map(lambda call: page.client.request(*call[:2], headers=call[2], json=call[3]), calls)
        for response in responses:
            is_problem(response, 503, "storage_unavailable")
            assert int(response.headers["retry-after"]) >= 1
            assert "set-cookie" not in response.headers
            assert "clear-site-data" not in response.headers
    private_postgres.start()
    assert page.user["email"] == email
    assert page.post("/refresh").status_code == 200
    assert page.logs_out().status_code == 204
    assert page.post("/logout").status_code == 204
