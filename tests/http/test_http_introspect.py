"""``POST /introspect``: whether a token is good now, by the database's word (RFC 7662)."""

import secrets

import pytest
from outsiders import bearer, exchange, is_problem, log_in, raw_request, sign_up, signed
from test_http_feed import credential_for

from sekisho.wire import now_s

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture
def ask(server, client):
    credential = credential_for(server)

    def ask(token, **more):
        return client.post("/introspect", data={"token": token, **more}, headers=bearer(credential))

    return ask


def is_not_active(answer):
    assert answer.status_code == 200
    assert answer.json() == {"active": False}
    assert answer.headers["cache-control"] == "no-store"


def test_of_a_good_token_it_tells_the_claims(server, client, ask):
    tokens = log_in(client)
    answer = ask(tokens.access, token_type_hint="access_token")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json() == {"active": True, "token_type": "Bearer", **tokens.claims}


def test_roles_are_told(server, client, ask):
    import subprocess

    from outsiders import PASSWORD, try_login

    from test_serve import PROGRAM

    email = f"{secrets.token_hex(6)}@example.com"
    create = [PROGRAM, "users", "create", email, "--role", "admin"]
    subprocess.run(create, env=server.env, cwd=server.folder, input=PASSWORD.encode(), check=True, timeout=60)
    answer = ask(try_login(client, email).json()["access_token"])
    assert answer.json()["roles"] == ["admin"]


def test_of_any_other_it_says_no_more_than_that(server, client, ask, rows):
    tokens, ended, expired = log_in(client), log_in(client), log_in(client)
    client.post("/logout", headers=bearer(ended.access))
    rows.change(expired.session_id, "idle_ends_at_us = 1")
    for token in ("garbage", f"{tokens.access}x", tokens.refresh, ended.access, expired.access, "a" * 20_000, "é"):
        is_not_active(ask(token))
    now, ids = now_s(), {"user_id": tokens.user_id, "session_id": tokens.session_id}
    is_not_active(ask(signed(server, **ids, issued_at=now - 900, expires_at=now - 60)))
    other = {**ids, "user_id": ended.user_id}
    is_not_active(ask(signed(server, **other, issued_at=now, expires_at=now + 60)))
    assert ask(signed(server, **ids, issued_at=now, expires_at=now + 60)).json()["active"] is True


def test_the_row_has_the_last_word(client, ask, rows):
    """A node that has not heard of it would still let the token pass."""
    tokens, gone = log_in(client), log_in(client)
    rows.change(tokens.session_id, "ended_at_us = 1, cause = 'admin'")
    is_not_active(ask(tokens.access))
    rows.run(f"DELETE FROM sessions WHERE id = '{gone.session_id.hex}'")
    is_not_active(ask(gone.access))


def test_of_a_disabled_user_nothing_is_active(client, ask, rows):
    tokens = log_in(client)
    rows.run(f"UPDATE users SET disabled_at_us = 1 WHERE id = '{tokens.user_id.hex}'")
    is_not_active(ask(tokens.access))


def test_only_a_verifier_may_ask(client):
    tokens = log_in(client)
    is_problem(client.post("/introspect", data={"token": tokens.access}), 401, "authentication_required")
    for bad in (tokens.access, "garbage", f"sekisho_vc_{'A' * 43}"):
        answer = client.post("/introspect", data={"token": tokens.access}, headers=bearer(bad))
        is_problem(answer, 401, "verifier_refused")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 422, "invalid_body"),
        (b"token=", 422, "invalid_body"),
        (b"tok=x", 422, "invalid_body"),
        (b"token=x&token=x", 400, "malformed_form"),
        (b"token=x&token_type_hint=a&token_type_hint=b", 400, "malformed_form"),
        (b"token=%ff", 400, "malformed_form"),
        ("token=é".encode(), 400, "malformed_form"),
        (b"&".join(b"a%d=x" % number for number in range(30)), 400, "malformed_form"),
        (b"token=" + b"x" * 70_000, 413, "body_too_large"),
    ],
)
def test_a_form_that_is_none_is_refused(server, client, body, status, code):
    headers = {**bearer(credential_for(server)), **FORM}
    is_problem(client.post("/introspect", content=body, headers=headers), status, code)


@pytest.mark.parametrize("media_type", ["application/json", "multipart/form-data; boundary=x", "text/plain", ""])
def test_another_media_type_is_refused(server, client, media_type):
    headers = {**bearer(credential_for(server)), "Content-Type": media_type}
    is_problem(client.post("/introspect", content=b"token=x", headers=headers), 415, "unsupported_media_type")


def test_what_streams_in_is_counted(server):
    headers = {**bearer(credential_for(server)), **FORM, "Transfer-Encoding": "chunked"}
    chunks = b"".join(b"1000\r\n" + b"x" * 0x1000 + b"\r\n" for _ in range(20)) + b"0\r\n\r\n"
    assert exchange(server, raw_request("POST", "/introspect", headers, chunks)).startswith(b"HTTP/1.1 413")


def test_without_a_database_nobody_knows(serve, connect, private_postgres):
    server = serve(database_url=private_postgres.create_database())
    client = connect(server)
    credential = credential_for(server)
    sign_up(client)
    private_postgres.stop("immediate")
    answer = client.post("/introspect", data={"token": "garbage"}, headers=bearer(credential))
    is_problem(answer, 503, "storage_unavailable")
