"""The flows from end to end: what each does to the sessions and tokens of everyone concerned."""

import time
from uuid import uuid4

import pytest
from outsiders import (
    OTHER_PASSWORD,
    PASSWORD,
    Rows,
    Tokens,
    bearer,
    is_problem,
    keys_of,
    log_in,
    me,
    refresh,
    sign_up,
    signed,
    try_login,
)

from sekisho.tokens import access


def is_dead(client, tokens):
    """Neither token opens anything."""
    is_problem(me(client, tokens.access), 401, "invalid_token")
    is_problem(refresh(client, tokens.refresh), 401, "refresh_refused")


def lives(client, tokens):
    assert me(client, tokens.access).status_code == 200
    assert refresh(client, tokens.refresh).status_code == 200


def test_a_day_of_a_user(client, rows):
    email = sign_up(client)
    tokens = log_in(client, email)
    assert me(client, tokens.access).json()["email"] == email
    rows.age(tokens.session_id, made_s=900, handed_out_s=900)
    later = Tokens.of(refresh(client, tokens.refresh))
    assert later.refresh != tokens.refresh
    assert later.session_id == tokens.session_id
    lives(client, later)
    assert client.post("/logout", headers=bearer(later.access)).status_code == 204
    is_dead(client, later)
    is_dead(client, tokens)
    assert rows.cause(tokens.session_id) == "logout"


# --- logout --------------------------------------------------------------------------------------------------------


def test_logout_by_an_expired_access_token(client, server, rows):
    tokens = log_in(client)
    now = int(time.time())
    expired = signed(
        server, user_id=tokens.user_id, session_id=tokens.session_id, issued_at=now - 90_000, expires_at=now - 89_100
    )
    is_problem(me(client, expired), 401, "invalid_token")
    assert client.post("/logout", headers=bearer(expired)).status_code == 204
    assert rows.cause(tokens.session_id) == "logout"
    is_dead(client, tokens)


def test_logout_by_refresh_token(client, rows):
    tokens = log_in(client)
    response = client.post("/logout", json={"refresh_token": tokens.refresh})
    assert response.status_code == 204
    assert response.headers["clear-site-data"] == '"cache"'
    assert rows.cause(tokens.session_id) == "logout"
    is_dead(client, tokens)


def test_logout_by_a_displaced_refresh_token(client, rows):
    """A tab that slept may log out too; that is no theft."""
    oldest = log_in(client)
    newest = oldest
    for _ in range(3):
        rows.age(oldest.session_id, made_s=100, handed_out_s=100)
        newest = Tokens.of(refresh(client, newest.refresh))
    assert rows.position(oldest.session_id) == (3, 0)
    assert client.post("/logout", json={"refresh_token": oldest.refresh}).status_code == 204
    assert rows.cause(oldest.session_id) == "logout"
    assert rows.run(f"SELECT 1 FROM thefts WHERE session_id = '{oldest.session_id.hex}'") == []
    is_dead(client, newest)


def test_logout_twice(client, rows):
    tokens = log_in(client)
    for _ in range(2):
        assert client.post("/logout", headers=bearer(tokens.access)).status_code == 204
        assert client.post("/logout", json={"refresh_token": tokens.refresh}).status_code == 204
    assert rows.cause(tokens.session_id) == "logout"
    assert rows.run(f"SELECT 1 FROM revocations WHERE session_id = '{tokens.session_id.hex}'") == [["1"]]


def test_logout_does_not_change_why_a_session_ended(client, rows):
    tokens = log_in(client)
    client.post("/logout/all", headers=bearer(tokens.access))
    assert client.post("/logout", headers=bearer(tokens.access)).status_code == 204
    assert rows.cause(tokens.session_id) == "logout_all"


def test_logout_of_a_session_that_the_database_lost(client, server, rows):
    """Its access tokens are out there and verify, so the revocation is written all the same."""
    user = log_in(client)
    now = int(time.time())
    for by in ("access", "refresh"):
        tokens = log_in(client)
        rows.run(f"DELETE FROM sessions WHERE id = '{tokens.session_id.hex}'")
        by_it = {"headers": bearer(tokens.access)} if by == "access" else {"json": {"refresh_token": tokens.refresh}}
        assert me(client, tokens.access).status_code == 200
        assert client.post("/logout", **by_it).status_code == 204
        is_dead(client, tokens)
    unknown = signed(server, user_id=user.user_id, session_id=uuid4(), issued_at=now, expires_at=now + 900)
    assert client.post("/logout", headers=bearer(unknown)).status_code == 204
    is_problem(me(client, unknown), 401, "invalid_token")
    lives(client, user)


def test_logout_by_what_nobody_signed(client):
    tokens = log_in(client)
    head, payload, signature = tokens.access.split(".")
    for bad in ("garbage", f"{head}.{payload}.{signature[::-1]}", tokens.refresh):
        response = client.post("/logout", headers=bearer(bad))
        is_problem(response, 401, "invalid_token")
        assert "clear-site-data" not in response.headers
    for bad in ("garbage", tokens.refresh[:-4] + "AAAA", tokens.access):
        response = client.post("/logout", json={"refresh_token": bad})
        is_problem(response, 401, "refresh_refused")
        assert "clear-site-data" not in response.headers
    is_problem(client.post("/logout"), 401, "authentication_required")
    lives(client, tokens)


def test_logout_by_a_token_that_only_half_knows_the_session(client, rows):
    """The tag holds but not the secret: it was never given out for this row."""
    tokens = log_in(client)
    rows.change(tokens.session_id, "salt = " + ("x'00'" if rows.is_sqlite else r"'\x00'"))
    is_problem(client.post("/logout", json={"refresh_token": tokens.refresh}), 401, "refresh_refused")
    assert rows.cause(tokens.session_id) == ""


def test_logout_everywhere_ends_every_device(client, connect, server, rows):
    email = sign_up(client)
    devices = [connect(server) for _ in range(3)]
    sessions = [log_in(device, email) for device in devices]
    stranger = log_in(client)
    assert devices[1].post("/logout/all", headers=bearer(sessions[1].access)).status_code == 204
    for device, tokens in zip(devices, sessions, strict=True):
        is_dead(device, tokens)
        assert rows.cause(tokens.session_id) == "logout_all"
    lives(client, stranger)
    lives(client, log_in(client, email))
    is_problem(client.post("/logout/all", headers=bearer(sessions[1].access)), 401, "invalid_token")


# --- change of password --------------------------------------------------------------------------------------------


def test_a_change_of_password_ends_every_other_session(client, other_client, rows):
    email = sign_up(client)
    here, there = log_in(client, email), log_in(other_client, email)
    body = {"current_password": PASSWORD, "new_password": OTHER_PASSWORD}
    new = Tokens.of(client.post("/password", json=body, headers=bearer(here.access)))
    for tokens in (here, there):
        is_dead(client, tokens)
        assert rows.cause(tokens.session_id) == "password_changed"
    lives(client, new)
    sessions = client.get("/sessions", headers=bearer(new.access)).json()["sessions"]
    assert [session["id"] for session in sessions] == [str(new.session_id)]
    is_problem(try_login(client, email, PASSWORD), 401, "wrong_credentials")
    assert try_login(client, email, OTHER_PASSWORD).status_code == 200


def test_a_stolen_access_token_changes_no_password(client, rows):
    email = sign_up(client)
    tokens = log_in(client, email)
    body = {"current_password": "not the password at all", "new_password": OTHER_PASSWORD}
    is_problem(client.post("/password", json=body, headers=bearer(tokens.access)), 401, "wrong_credentials")
    lives(client, tokens)
    assert try_login(client, email, PASSWORD).status_code == 200


@pytest.mark.parametrize(
    ("new", "code"),
    [("too short", "password_too_short"), ("x" * 257, "password_too_long"), ("1234567890123456", "password_common")],
)
def test_a_new_password_obeys_the_policy(client, new, code):
    tokens = log_in(client)
    body = {"current_password": PASSWORD, "new_password": new}
    problem = is_problem(client.post("/password", json=body, headers=bearer(tokens.access)), 422, code)
    assert problem["fields"] == [{"field": "new_password", "code": code}]
    lives(client, tokens)


# --- the list of sessions ------------------------------------------------------------------------------------------


def test_sessions_are_listed_the_one_used_last_first(client, connect, server, rows):
    email = sign_up(client)
    devices = {name: connect(server, user_agent=name) for name in ("phone", "laptop", "desk")}
    tokens = {name: log_in(device, email) for name, device in devices.items()}
    log_in(client)  # another user's is not among them
    for name, idle_s in (("phone", 500), ("laptop", 50), ("desk", 5000)):
        rows.age(tokens[name].session_id, made_s=idle_s, handed_out_s=idle_s)

    def listed():
        sessions = client.get("/sessions", headers=bearer(tokens["laptop"].access)).json()["sessions"]
        return [(session["user_agent"], session["current"]) for session in sessions]

    assert listed() == [("laptop", True), ("phone", False), ("desk", False)]
    assert refresh(devices["desk"], tokens["desk"].refresh).status_code == 200
    assert listed() == [("desk", False), ("laptop", True), ("phone", False)]
    rows.change(tokens["phone"].session_id, "idle_ends_at_us = 1")
    assert listed() == [("desk", False), ("laptop", True)]
    client.post("/logout", headers=bearer(tokens["desk"].access))
    assert listed() == [("laptop", True)]


def test_a_refresh_shows_where_the_session_is_now(client, connect, server, rows):
    tokens = log_in(client)
    rows.age(tokens.session_id, made_s=100, handed_out_s=100)
    moved = connect(server, address="203.0.113.77", user_agent="on the train")
    fresh = Tokens.of(refresh(moved, tokens.refresh))
    (session,) = client.get("/sessions", headers=bearer(fresh.access)).json()["sessions"]
    assert (session["address"], session["user_agent"]) == ("203.0.113.77", "on the train")


def test_a_user_ends_one_session(client, other_client, rows):
    email = sign_up(client)
    here, there = log_in(client, email), log_in(other_client, email)
    assert client.delete(f"/sessions/{there.session_id}", headers=bearer(here.access)).status_code == 204
    assert rows.cause(there.session_id) == "ended_by_user"
    is_dead(other_client, there)
    lives(client, here)
    is_problem(client.delete(f"/sessions/{there.session_id}", headers=bearer(here.access)), 404, "session_not_found")
    assert client.delete(f"/sessions/{here.session_id}", headers=bearer(here.access)).status_code == 204
    is_dead(client, here)


def test_nobody_ends_a_session_of_others(client, other_client, rows):
    mine, theirs = log_in(client), log_in(other_client)
    responses = [
        client.delete(f"/sessions/{session_id}", headers=bearer(mine.access))
        for session_id in (theirs.session_id, uuid4(), "1", "x" * 5000, "%00", "a'%20OR%201=1--", "%ED%A0%80")
    ]
    for response in responses:
        is_problem(response, 404, "session_not_found")
    assert len({response.content for response in responses}) == 1
    assert rows.cause(theirs.session_id) == ""
    lives(other_client, theirs)


def test_a_user_has_fifty_sessions(client, rows):
    email = sign_up(client)
    oldest = log_in(client, email)
    columns = "user_id, created_at_us, idle_ends_at_us, ends_at_us, generation, branch, parent_branch, made_at_us"
    columns += ", handed_out_at_us, salt, last_address, last_user_agent"
    for _ in range(49):
        rows.run(
            f"INSERT INTO sessions (id, {columns}) SELECT '{uuid4().hex}', {columns} FROM sessions "
            f"WHERE id = '{oldest.session_id.hex}'"
        )
    rows.age(oldest.session_id, made_s=60, handed_out_s=60)
    lives(client, oldest)  # there may be fifty; the refresh makes it the one used last
    rows.age(oldest.session_id, made_s=600, handed_out_s=600)
    newest = log_in(client, email)
    assert rows.cause(oldest.session_id) == "evicted"
    assert len(client.get("/sessions", headers=bearer(newest.access)).json()["sessions"]) == 50


def test_one_login_too_many_ends_the_session_idle_longest(serve, connect, postgres, database_url):
    env = {"SEKISHO_MAX_SESSIONS": "3", "SEKISHO_TRUSTED_PROXIES": "127.0.0.1/32"}
    server = serve(database_url=database_url, env=env)
    rows = Rows(server, postgres)
    client = connect(server)
    email = sign_up(client)
    sessions = [log_in(client, email) for _ in range(3)]
    for tokens, idle_s in zip(sessions, (100, 900, 300), strict=True):
        rows.age(tokens.session_id, made_s=idle_s, handed_out_s=idle_s)
    other_user = log_in(client)
    newest = log_in(client, email)
    is_dead(client, sessions[1])
    assert rows.cause(sessions[1].session_id) == "evicted"
    for tokens in (sessions[0], sessions[2], newest, other_user):
        lives(client, tokens)
    listed = client.get("/sessions", headers=bearer(newest.access)).json()["sessions"]
    assert {session["id"] for session in listed} == {
        str(tokens.session_id) for tokens in (sessions[0], sessions[2], newest)
    }


# --- disabled accounts ---------------------------------------------------------------------------------------------


def test_a_disabled_account_is_out_at_once(client, server, rows):
    email = sign_up(client)
    tokens = log_in(client, email)
    server.run("users", "disable", email)
    is_problem(me(client, tokens.access), 401, "invalid_token")  # its row is asked
    is_problem(refresh(client, tokens.refresh), 401, "refresh_refused")
    is_problem(try_login(client, email), 401, "wrong_credentials")
    assert rows.cause(tokens.session_id) == "user_disabled"
    wait_until(lambda: client.get("/sessions", headers=bearer(tokens.access)).status_code == 401, within_s=5)


def wait_until(holds, *, within_s):
    give_up_at = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < give_up_at, "did not come in time"
        time.sleep(0.02)


def test_logout_takes_the_header_whatever_else_the_body_leaves_out(client):
    """Some clients send {} with every POST."""
    tokens = log_in(client)
    assert client.post("/logout", json={}, headers=bearer(tokens.access)).status_code == 204
    is_problem(me(client, tokens.access), 401, "invalid_token")
    is_problem(client.post("/logout", json={}), 401, "authentication_required")


def test_a_genuine_token_that_names_nobody_of_ours_is_refused(client, server):
    """Signed by hand with the server's key: its claims are read like anyone's."""
    now = int(time.time())
    token = access.issue(
        keys_of(server).active("sign"),
        issuer=server.base_url,
        audience=server.base_url,
        subject="bob",
        session_id="x",
        issued_at=now,
        expires_at=now + 60,
    )
    for method, path in (("GET", "/me"), ("GET", "/sessions"), ("POST", "/logout"), ("POST", "/logout/all")):
        is_problem(client.request(method, path, headers=bearer(token)), 401, "invalid_token")
