"""The log and the metrics: each flow tells what happened, in one line of JSON, whatever the client sends."""

import json
import re
import time
from datetime import datetime

import pytest
from outsiders import (
    OTHER_PASSWORD,
    PASSWORD,
    Tokens,
    bearer,
    events_of,
    exchange,
    is_problem,
    log_in,
    log_lines,
    new_email,
    refresh,
    sign_up,
    try_login,
)


@pytest.fixture
def told(server):
    """What the server has told of these facts: (event, outcome) in order."""

    def told(**facts):
        return [(event["event"], event["outcome"]) for event in events_of(server, **facts)]

    return told


def test_a_day_in_the_log(client, client_address, rows, told):
    email = sign_up(client)
    tokens = log_in(client, email)
    refresh(client, tokens.refresh)
    rows.age(tokens.session_id, made_s=100, handed_out_s=100)
    later = Tokens.of(refresh(client, tokens.refresh))
    refresh(client, tokens.refresh)
    client.post("/logout", headers=bearer(later.access))
    refresh(client, later.refresh)
    assert told(address=client_address) == [
        ("signed_up", "ok"),
        ("logged_in", "ok"),
        ("refreshed", "same_again"),
        ("refreshed", "rotate"),
        ("refreshed", "same_again"),
        ("refresh_refused", "refresh_session_over"),
    ]
    session_id = str(tokens.session_id)
    assert ("session_ended", "logout") in told(session_id=session_id, user_id=str(tokens.user_id))


def test_every_line_says_when_and_how_grave(client, server, client_address):
    before = time.time()
    log_in(client)
    (line,) = events_of(server, address=client_address, event="logged_in")
    assert set(line) == {"event", "outcome", "level", "timestamp", "user_id", "session_id", "address"}
    assert line["level"] == "info"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["timestamp"])
    assert line["timestamp"] >= time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(before))


def test_refreshes_are_told_by_decision(client, rows, told):
    tokens = log_in(client)
    session_id = tokens.session_id
    rows.age(session_id, made_s=100, handed_out_s=100)
    refresh(client, tokens.refresh)
    rows.age(session_id, made_s=100, handed_out_s=10)
    refresh(client, tokens.refresh)
    rows.age(session_id, made_s=100, handed_out_s=100)
    refresh(client, tokens.refresh)
    refresh(client, rows.refresh_token(session_id, (7, 0)))
    refresh(client, tokens.refresh)
    refresh(client, tokens.refresh)
    assert told(session_id=str(session_id)) == [
        ("logged_in", "ok"),
        ("refreshed", "rotate"),
        ("refreshed", "wait"),
        ("refreshed", "branch"),
        ("refreshed", "adopt"),
        ("session_ended", "theft"),
        ("theft_found", "theft"),
        ("refresh_refused", "refresh_theft"),
        ("refresh_refused", "refresh_session_over"),
    ]


def test_a_theft_is_a_warning_that_tells_both_presentations_and_is_counted(connect, server, rows):
    owner = connect(server, address="192.0.2.10", user_agent="owner's phone")
    thief = connect(server, address="198.51.100.20", user_agent="thief's script")
    tokens = log_in(owner)
    rows.change(tokens.session_id, "generation = 9, branch = 2")
    before = thefts_counted(owner)
    refresh(thief, tokens.refresh)
    (line,) = events_of(server, event="theft_found", session_id=str(tokens.session_id))
    assert line["level"] == "warning"
    assert line["user_id"] == str(tokens.user_id)
    assert (line["address"], line["user_agent"]) == ("198.51.100.20", "thief's script")
    assert (line["generation"], line["branch"]) == (0, 0)
    assert (line["current_address"], line["current_user_agent"]) == ("192.0.2.10", "owner's phone")
    assert (line["current_generation"], line["current_branch"]) == (9, 2)
    made_at_us = int(rows.session(tokens.session_id, "made_at_us")[0])
    assert datetime.fromisoformat(line["current_since"]).timestamp() == pytest.approx(made_at_us / 1e6, abs=1e-3)
    assert thefts_counted(owner) == before + 1


def thefts_counted(client):
    """By the metric that an operator's alarm would watch."""
    found = re.search(
        r'^sekisho_events_total{event="theft_found",outcome="theft"} (\S+)$', client.get("/metrics").text, re.MULTILINE
    )
    return float(found[1]) if found else 0


def test_garbage_is_told_without_being_repeated(client, server, client_address, told):
    refresh(client, "sekisho_rt_garbage")
    assert told(address=client_address) == [("refresh_refused", "refresh_token_invalid")]
    assert "sekisho_rt_garbage" not in server.log_text()


def test_sessions_end_for_a_reason(client, rows, told):
    email = sign_up(client)

    def ended_by(end):
        tokens = log_in(client, email)
        end(tokens)
        (outcome,) = [outcome for event, outcome in told(session_id=str(tokens.session_id)) if event == "session_ended"]
        return outcome

    def expire(tokens):
        rows.change(tokens.session_id, "ends_at_us = 1")
        refresh(client, tokens.refresh)

    def change_password(tokens):
        body = {"current_password": PASSWORD, "new_password": OTHER_PASSWORD}
        assert client.post("/password", json=body, headers=bearer(tokens.access)).status_code == 200

    assert ended_by(lambda tokens: client.post("/logout", headers=bearer(tokens.access))) == "logout"
    assert ended_by(lambda tokens: client.post("/logout/all", headers=bearer(tokens.access))) == "logout_all"
    end_one = ended_by(lambda tokens: client.delete(f"/sessions/{tokens.session_id}", headers=bearer(tokens.access)))
    assert end_one == "ended_by_user"
    assert ended_by(expire) == "expired"
    assert ended_by(change_password) == "password_changed"


def test_changes_of_password(client, client_address, told):
    tokens = log_in(client)
    for current in (OTHER_PASSWORD, PASSWORD):
        body = {"current_password": current, "new_password": OTHER_PASSWORD}
        client.post("/password", json=body, headers=bearer(tokens.access))
    assert [event for event in told(address=client_address) if "password" in event[0]] == [
        ("password_change_failed", "wrong_credentials"),
        ("password_changed", "ok"),
    ]


def test_failed_and_throttled_logins(client, server, client_address):
    email = sign_up(client)
    began = len(log_lines(server))
    for _ in range(6):
        last = try_login(client, email, OTHER_PASSWORD)
    is_problem(last, 429, "throttled")
    try_login(client, new_email(), OTHER_PASSWORD)
    lines = [line for line in log_lines(server)[began:] if line["event"] != "purged"]
    assert [(line["event"], line["outcome"]) for line in lines] == [
        *[("login_failed", "wrong_credentials")] * 5,
        ("throttled", "throttled"),
        ("login_failed", "wrong_credentials"),
    ]
    assert (lines[5]["route"], lines[5]["lanes"]) == ("/login", "account")
    assert [line["user_id"] is not None for line in lines if line["event"] == "login_failed"] == [True] * 5 + [False]
    assert email not in json.dumps(lines)


def test_new_keys_are_told_and_sign(serve, connect):
    server = serve()
    client = connect(server)
    tokens = log_in(client)
    server.run("keys", "rotate", "--now")
    give_up_at = time.monotonic() + 15
    while not events_of(server, event="keys_changed", outcome="ok"):
        assert time.monotonic() < give_up_at
        time.sleep(0.05)
    assert client.get("/me", headers=bearer(tokens.access)).status_code == 200
    fresh = Tokens.of(refresh(client, tokens.refresh))
    assert fresh.access.split(".")[0] != tokens.access.split(".")[0]  # another kid
    assert len(events_of(server, event="started")) == 1
    server.stop()
    assert len(events_of(server, event="stopped")) == 1


# --- what clients send breaks no line ------------------------------------------------------------------------------

HOSTILE = [
    b"x\x1b[31mred\x1b[0m",
    "x\N{RIGHT-TO-LEFT OVERRIDE}y\N{PARAGRAPH SEPARATOR}".encode(),
    b"x\x85y\x9b31m",
    b'x", "event": "logged_in", "y": "',
    b"\\n\\u000a%0a{}",
    b"\xff\xfe",
    b"z" * 5000,
]


@pytest.mark.parametrize("user_agent", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_user_agent_breaks_no_line(client, server, rows, user_agent):
    tokens = log_in(client)
    rows.change(tokens.session_id, "generation = 9")
    body = json.dumps({"refresh_token": tokens.refresh}).encode()
    head = f"POST /refresh HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    request = head.encode() + b"Content-Type: application/json\r\nUser-Agent: " + user_agent + b"\r\n\r\n" + body
    answer = exchange(server, request)
    if answer.startswith(b"HTTP/1.1 400 "):  # the parser refuses it
        assert rows.cause(tokens.session_id) == ""
        return
    assert answer.startswith(b"HTTP/1.1 401 ")
    (line,) = events_of(server, event="theft_found", session_id=str(tokens.session_id))
    assert len(line["user_agent"]) <= 256
    assert line["user_agent"].isprintable()
    (kept,) = rows.one(f"SELECT user_agent FROM thefts WHERE session_id = '{tokens.session_id.hex}'")
    assert kept.isprintable() or "|" in kept
    (raw,) = [
        text for text in server.log_text().splitlines() if "theft_found" in text and str(tokens.session_id) in text
    ]
    assert raw.isascii()
    assert raw.isprintable()


def test_a_hostile_address_breaks_no_line(client, server):
    before = len(log_lines(server))
    for email in (
        "a\n{}@example.com",
        'a", "event": "x@example.com',
        "\x1b[2J@example.com",
        "\N{RIGHT-TO-LEFT OVERRIDE}@x",
    ):
        try_login(client, email)
    lines = log_lines(server)[before:]
    assert [line["event"] for line in lines if line["event"] != "purged"] == ["login_failed"] * 4


# --- metrics -------------------------------------------------------------------------------------------------------


def metrics(client):
    """Every sample by its name and labels."""
    samples = {}
    for line in client.get("/metrics").text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            samples[name] = float(value)
    return samples


def test_the_metrics_count_what_the_log_tells(client, server, rows):
    def counted(event, outcome):
        return metrics(client).get(f'sekisho_events_total{{event="{event}",outcome="{outcome}"}}', 0)

    did = [
        ("signed_up", "ok"),
        ("logged_in", "ok"),
        ("login_failed", "wrong_credentials"),
        ("refreshed", "same_again"),
        ("refresh_refused", "refresh_token_invalid"),
        ("session_ended", "logout"),
    ]
    before = {each: counted(*each) for each in did}
    email = sign_up(client)
    try_login(client, email, OTHER_PASSWORD)
    tokens = log_in(client, email)
    refresh(client, tokens.refresh)
    refresh(client, "garbage")
    client.post("/logout", headers=bearer(tokens.access))
    assert {each: counted(*each) - before[each] for each in did} == dict.fromkeys(did, 1)
    told = {}
    for line in log_lines(server):
        if "outcome" in line:
            each = (line["event"], line["outcome"])
            told[each] = told.get(each, 0) + 1
    assert {each: counted(*each) for each in told} == told


def test_latencies_are_measured_by_route(client):
    def count(route, method, status):
        labels = f'{{method="{method}",route="{route}",status="{status}"}}'
        return metrics(client).get(f"sekisho_request_seconds_count{labels}", 0)

    asked = [
        ("/me", "GET", 401),
        ("/sessions/{session_id}", "DELETE", 401),
        ("/login", "POST", 415),
        ("/login", "POST", 422),
    ]
    before = {each: count(*each) for each in asked}
    client.get("/me")
    client.delete("/sessions/a-path-of-the-client's-own")
    client.post("/login", content=b"{", headers={"Content-Type": "text/plain"})
    client.post("/login", json={})
    assert {each: count(*each) - before[each] for each in asked} == dict.fromkeys(asked, 1)
    assert not any("a-path-of" in name for name in metrics(client))


def test_unknown_paths_and_methods_make_no_new_series(client):
    client.get("/me")
    before = set(metrics(client))
    client.get("/nothing/of/the/kind")
    client.request("BREW", "/login")
    assert set(metrics(client)) - before <= {name for name in set(metrics(client)) if 'route="/metrics"' in name}


def test_the_gauges_move(client):
    before = metrics(client)["sekisho_revocations_live"]
    tokens = log_in(client)
    client.post("/logout", headers=bearer(tokens.access))
    samples = metrics(client)
    assert samples["sekisho_revocations_live"] >= before + 1
    assert 0 <= samples["sekisho_revocations_age_seconds"] < 10
