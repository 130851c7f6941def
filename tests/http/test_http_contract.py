"""The HTTP contract, call by call: status, body, headers; and which credential counts."""

import re
import time
from datetime import datetime
from uuid import UUID

import pytest
from outsiders import (
    OTHER_PASSWORD,
    PASSWORD,
    Tokens,
    bearer,
    is_problem,
    keys_of,
    log_in,
    me,
    new_email,
    refresh,
    seen,
    sign_up,
    signed,
    try_login,
)

INVALID = 'Bearer error="invalid_token"'


def is_private(response):
    assert response.headers["cache-control"] == "no-store"
    assert {part.strip() for part in response.headers["vary"].split(",")} >= {"Cookie", "Authorization"}


def is_token_pair(response):
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    is_private(response)
    body = response.json()
    assert set(body) == {"access_token", "token_type", "expires_in", "refresh_token", "refresh_expires_in"}
    assert body["token_type"] == "Bearer"
    assert body["expires_in"] == 900
    assert 604_800 - 60 <= body["refresh_expires_in"] <= 604_800  # the same token again does not prolong it
    assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", body["access_token"], re.ASCII)
    assert re.fullmatch(r"sekisho_rt_[\w-]+", body["refresh_token"], re.ASCII)
    return Tokens.of(response)


# --- call by call --------------------------------------------------------------------------------------------------


def test_sign_up(client):
    email = new_email()
    response = client.post("/signup", json={"email": email, "password": PASSWORD})
    assert response.status_code == 201
    assert response.headers["content-type"] == "application/json"
    is_private(response)
    assert set(response.json()) == {"id", "email"}
    assert response.json()["email"] == email
    assert str(UUID(response.json()["id"])) == response.json()["id"]
    assert "set-cookie" not in response.headers


def test_login_gives_a_pair_of_tokens_and_names_the_device(client, server):
    email = sign_up(client)
    response = try_login(client, email)
    tokens = is_token_pair(response)
    assert response.headers.get_list("set-cookie") == [
        f"sekisho_device={client.cookies['sekisho_device']}; Max-Age=15552000; Path=/; HttpOnly; SameSite=Lax"
    ]
    claims = tokens.claims
    assert set(claims) == {"iss", "sub", "aud", "exp", "iat", "jti", "client_id", "sid"}
    assert (claims["iss"], claims["aud"], claims["client_id"]) == (server.base_url, server.base_url, "sekisho")
    assert claims["exp"] - claims["iat"] == 900
    assert abs(claims["iat"] - time.time()) < 60


def test_refresh(client):
    tokens = log_in(client)
    response = refresh(client, tokens.refresh)
    fresh = is_token_pair(response)
    assert "set-cookie" not in response.headers
    assert fresh.session_id == tokens.session_id
    assert fresh.access != tokens.access
    assert fresh.claims["jti"] != tokens.claims["jti"]


def test_logout(client):
    response = client.post("/logout", headers=bearer(log_in(client).access))
    assert response.status_code == 204
    assert response.content == b""
    assert response.headers["clear-site-data"] == '"cache"'
    is_private(response)


def test_logout_everywhere(client):
    response = client.post("/logout/all", headers=bearer(log_in(client).access))
    assert response.status_code == 204
    assert response.content == b""
    assert response.headers["clear-site-data"] == '"cache"'
    is_private(response)


def test_change_of_password(client):
    tokens = log_in(client)
    body = {"current_password": PASSWORD, "new_password": OTHER_PASSWORD}
    new = is_token_pair(client.post("/password", json=body, headers=bearer(tokens.access)))
    assert new.session_id != tokens.session_id
    assert new.user_id == tokens.user_id


def test_me(client):
    email = sign_up(client)
    tokens = log_in(client, email)
    response = me(client, tokens.access)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    is_private(response)
    body = response.json()
    assert set(body) == {"id", "email", "roles", "session_id", "created_at"}
    assert body["id"] == str(tokens.user_id)
    assert body["email"] == email
    assert body["roles"] == []
    assert body["session_id"] == str(tokens.session_id)
    assert abs(datetime.fromisoformat(body["created_at"]).timestamp() - time.time()) < 60


def test_list_of_sessions(client, client_address):
    tokens = log_in(client)
    response = client.get("/sessions", headers=bearer(tokens.access))
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    is_private(response)
    assert set(response.json()) == {"sessions"}
    (session,) = response.json()["sessions"]
    assert set(session) == {"id", "current", "created_at", "last_used_at", "expires_at", "address", "user_agent"} | {
        "kind",
        "device",
    }
    assert session["id"] == str(tokens.session_id)
    assert session["current"] is True
    assert session["address"] == client_address
    assert session["user_agent"] == client.headers["user-agent"]
    times = {name: datetime.fromisoformat(session[name]) for name in ("created_at", "last_used_at", "expires_at")}
    assert all(at.utcoffset() is not None for at in times.values())
    assert times["created_at"] == times["last_used_at"]
    assert (times["expires_at"] - times["created_at"]).total_seconds() == 604_800


def test_end_of_one_session(client):
    email = sign_up(client)
    here, there = log_in(client, email), log_in(client, email)
    response = client.delete(f"/sessions/{there.session_id}", headers=bearer(here.access))
    assert response.status_code == 204
    assert response.content == b""
    is_private(response)


def test_the_published_keys_hold_no_shared_secret(client):
    response = client.get("/.well-known/jwks.json")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "public, max-age=60"
    assert response.json() == {"keys": []}


def test_the_published_keys_are_the_public_halves(serve, connect):
    server = serve(env={"SEKISHO_SIGNING_ALGORITHM": "EdDSA"})
    client = connect(server)
    (key,) = client.get("/.well-known/jwks.json").json()["keys"]
    assert set(key) == {"kty", "crv", "x", "use", "alg", "kid"}
    assert (key["kty"], key["crv"], key["use"], key["alg"]) == ("OKP", "Ed25519", "sig", "EdDSA")
    assert key["kid"] == keys_of(server).active("sign").kid
    tokens = log_in(client)
    assert me(client, tokens.access).status_code == 200


@pytest.mark.parametrize(("path", "status"), [("/healthz", "alive"), ("/readyz", "ready")])
def test_health(client, path, status):
    response = client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    assert response.json() == {"status": status}


def test_metrics(client):
    log_in(client)
    me(client, "garbage")
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    names = {line.partition("{")[0].partition(" ")[0] for line in response.text.splitlines() if line[0] != "#"}
    assert names >= {
        "sekisho_events_total",
        "sekisho_request_seconds_bucket",
        "sekisho_revocations_live",
        "sekisho_revocations_age_seconds",
        "sekisho_hashing_waiting",
        "sekisho_access_tokens_refused_total",
    }


def test_refused_access_tokens_are_counted_by_code(client):
    def counted(code):
        name = f'sekisho_access_tokens_refused_total{{code="{code}"}} '
        return sum(
            float(line.removeprefix(name)) for line in client.get("/metrics").text.splitlines() if line.startswith(name)
        )

    tokens = log_in(client)
    malformed, forged = counted("token_malformed"), counted("token_signature_invalid")
    assert me(client, tokens.access).status_code == 200
    for token in ("garbage", "garbage", "a.b", tokens.access[:-8] + "AAAAAAAA"):
        is_problem(me(client, token), 401, "invalid_token")
    assert counted("token_malformed") == malformed + 3
    assert counted("token_signature_invalid") == forged + 1
    assert "garbage" not in client.get("/metrics").text


# --- errors of the flows -------------------------------------------------------------------------------------------


def test_a_taken_address(client):
    email = sign_up(client)
    response = client.post("/signup", json={"email": email, "password": OTHER_PASSWORD})
    is_problem(response, 409, "email_taken")
    assert try_login(client, email).status_code == 200


def test_wrong_credentials_carry_a_challenge(client):
    response = try_login(client, new_email())
    is_problem(response, 401, "wrong_credentials")
    assert response.headers["www-authenticate"] == "Bearer"
    assert "set-cookie" not in response.headers


CALLS_FOR_USERS = [
    ("GET", "/me"),
    ("GET", "/sessions"),
    ("DELETE", "/sessions/c0ffee00-0000-4000-8000-000000000000"),
    ("POST", "/logout"),
    ("POST", "/logout/all"),
    ("POST", "/password"),
]


@pytest.mark.parametrize(("method", "path"), CALLS_FOR_USERS)
def test_calls_for_users_ask_for_a_credential(client, method, path):
    """Without one the challenge holds no error (RFC 6750 §3.1)."""
    response = client.request(method, path)
    is_problem(response, 401, "authentication_required")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(("method", "path"), CALLS_FOR_USERS)
@pytest.mark.parametrize("credential", ["Bearer garbage", "Basic dXNlcjpwYXNz", "Bearer", "Bearer a.b.c"])
def test_a_bad_credential_is_said_to_be_one(client, method, path, credential):
    response = client.request(method, path, headers={"Authorization": credential})
    is_problem(response, 401, "invalid_token")
    assert response.headers["www-authenticate"] == INVALID


@pytest.mark.parametrize(("method", "path"), CALLS_FOR_USERS)
def test_two_authorization_headers_are_none(client, method, path):
    good = f"Bearer {log_in(client).access}"
    for pair in ((good, good), (good, "Bearer garbage"), ("Bearer garbage", good)):
        response = client.request(method, path, headers=[("Authorization", value) for value in pair])
        is_problem(response, 401, "invalid_token")


def test_a_token_in_the_query_or_another_cookie_is_none(client):
    tokens = log_in(client)
    for response in (
        client.get("/me", params={"access_token": tokens.access}),
        client.get("/me", headers={"Cookie": f"access_token={tokens.access}; __Host-sekisho_access={tokens.access}"}),
    ):
        is_problem(response, 401, "authentication_required")


def test_every_refused_access_token_gets_one_answer(client, server):
    tokens = log_in(client)
    ended = log_in(client)
    client.post("/logout", headers=bearer(ended.access))
    now = int(time.time())
    times = {"issued_at": now - 2000, "expires_at": now - 1100}
    expired = signed(server, user_id=tokens.user_id, session_id=tokens.session_id, **times)
    head, payload, signature = tokens.access.split(".")
    refused = [
        ended.access,
        expired,
        tokens.refresh,
        f"{head}.{payload}.{signature[::-1]}",
        f"{head}.{payload}.",
        f"{tokens.access}=",
        "garbage",
    ]
    answers = {str(seen(me(client, token))) for token in refused}
    assert len(answers) == 1
    is_problem(me(client, "garbage"), 401, "invalid_token")


def test_every_refused_refresh_token_gets_one_answer(client, rows):
    """Whoever tries tokens learns nothing from the answers, not even that a theft was found."""
    theirs = log_in(client)
    tokens = log_in(client)
    refused = {
        "garbage": "garbage",
        "empty": "",
        "prefix alone": "sekisho_rt_",
        "access token": tokens.access,
        "changed": tokens.refresh[:-3] + "AAA",
        "padded": tokens.refresh + "=",
        "space": tokens.refresh + " ",
        "long": "sekisho_rt_" + "A" * 60_000,
        "not ASCII": "sekisho_rt_é関",
        "NUL": "sekisho_rt_\0",
    }
    answers = {name: seen(refresh(client, token)) for name, token in refused.items()}

    spliced = theirs.refresh[:60] + tokens.refresh[60:]
    answers["another session's"] = seen(refresh(client, spliced))

    ended = log_in(client)
    client.post("/logout", headers=bearer(ended.access))
    answers["ended"] = seen(refresh(client, ended.refresh))

    expired = log_in(client)
    rows.change(expired.session_id, "idle_ends_at_us = 1")
    answers["expired"] = seen(refresh(client, expired.refresh))

    rows.change(theirs.session_id, "generation = 5")
    answers["theft"] = seen(refresh(client, theirs.refresh))
    assert rows.cause(theirs.session_id) == "theft"
    answers["after the theft"] = seen(refresh(client, theirs.refresh))

    gone = log_in(client)
    rows.run(f"DELETE FROM sessions WHERE id = '{gone.session_id.hex}'")
    answers["unknown session"] = seen(refresh(client, gone.refresh))

    assert len({str(answer) for answer in answers.values()}) == 1, answers
    response = refresh(client, "garbage")
    is_problem(response, 401, "refresh_refused")
    assert response.headers["www-authenticate"] == "Bearer"
    assert "set-cookie" not in response.headers
    assert refresh(client, tokens.refresh).status_code == 200  # and nobody's session has ended by it


# --- which credential counts ---------------------------------------------------------------------------------------


def test_at_logout_a_bad_header_is_not_passed_over_for_a_good_body(client, rows):
    tokens = log_in(client)
    for value in ("Bearer garbage", "Basic dTpw", "Bearer", ""):
        response = client.post("/logout", json={"refresh_token": tokens.refresh}, headers={"Authorization": value})
        is_problem(response, 401, "invalid_token")
        assert "clear-site-data" not in response.headers
    assert rows.cause(tokens.session_id) == ""


def test_at_logout_the_header_counts_before_the_body(client, rows):
    first, second = log_in(client), log_in(client)
    response = client.post("/logout", json={"refresh_token": second.refresh}, headers=bearer(first.access))
    assert response.status_code == 204
    assert rows.cause(first.session_id) == "logout"
    assert rows.cause(second.session_id) == ""


def test_refresh_takes_no_notice_of_an_access_token(client):
    """Clients send the header with every call, and it is the expired token that makes them refresh."""
    tokens = log_in(client)
    for value in ("Bearer garbage", f"Bearer {tokens.access}"):
        response = client.post("/refresh", json={"refresh_token": tokens.refresh}, headers={"Authorization": value})
        assert response.status_code == 200


def test_the_bearer_scheme_is_read_in_any_case(client):
    tokens = log_in(client)
    for scheme in ("bearer", "BEARER", "BeArEr"):
        assert client.get("/me", headers={"Authorization": f"{scheme} {tokens.access}"}).status_code == 200
