"""The rotation rule over HTTP. Time passes by making the session's row older."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from outsiders import PASSWORD, Tokens, is_problem, log_in, me, new_email, refresh, sign_up

W = 30
LONG = W + 5


def theft_rows(rows, session_id):
    return rows.run(
        "SELECT generation, branch, address, user_agent, current_generation, current_branch, current_address, "
        f"current_user_agent FROM thefts WHERE session_id = '{session_id.hex}'"
    )


def test_the_same_token_again_within_the_window(client, rows):
    tokens = log_in(client)
    before = rows.session(tokens.session_id, "*")
    for _ in range(3):
        assert Tokens.of(refresh(client, tokens.refresh)).refresh == tokens.refresh
    rows.age(tokens.session_id, made_s=W - 5, handed_out_s=W - 5)
    assert Tokens.of(refresh(client, tokens.refresh)).refresh == tokens.refresh
    rows.age(tokens.session_id, made_s=5 - W, handed_out_s=5 - W)
    assert rows.session(tokens.session_id, "*") == before  # nothing was written


def test_a_new_token_after_the_window(client, rows):
    tokens = log_in(client)
    rows.age(tokens.session_id, made_s=LONG, handed_out_s=LONG)
    fresh = Tokens.of(refresh(client, tokens.refresh))
    assert fresh.refresh != tokens.refresh
    assert rows.position(tokens.session_id) == (1, 0)
    assert fresh.refresh == rows.refresh_token(tokens.session_id, (1, 0))


def test_the_parent_within_the_window_gets_the_same_answer(client, rows):
    """Tabs that race, and replies that are lost."""
    parent = log_in(client)
    rows.age(parent.session_id, made_s=LONG, handed_out_s=LONG)
    child = Tokens.of(refresh(client, parent.refresh))
    rows.age(parent.session_id, made_s=W - 10, handed_out_s=W - 10)
    before = int(rows.session(parent.session_id, "handed_out_at_us")[0])
    assert Tokens.of(refresh(client, parent.refresh)).refresh == child.refresh
    assert int(rows.session(parent.session_id, "handed_out_at_us")[0]) > before  # handed out now
    assert rows.position(parent.session_id) == (1, 0)


def test_the_parent_waits_while_the_child_may_be_on_its_way(client, rows):
    parent = log_in(client)
    rows.age(parent.session_id, made_s=LONG, handed_out_s=LONG)
    child = Tokens.of(refresh(client, parent.refresh))
    rows.age(parent.session_id, made_s=LONG, handed_out_s=10)
    before = rows.session(parent.session_id, "*")
    response = refresh(client, parent.refresh)
    is_problem(response, 503, "refresh_wait")
    assert W - 15 <= int(response.headers["retry-after"]) <= W - 9
    assert rows.session(parent.session_id, "*") == before  # nothing was written
    assert Tokens.of(refresh(client, child.refresh)).refresh == child.refresh


def test_a_late_retry_branches(client, rows):
    """The reply was lost, and the laptop slept."""
    parent = log_in(client)
    rows.age(parent.session_id, made_s=LONG, handed_out_s=LONG)
    lost = Tokens.of(refresh(client, parent.refresh))
    rows.age(parent.session_id, made_s=3 * 86_400, handed_out_s=3 * 86_400)
    branch = Tokens.of(refresh(client, parent.refresh))
    assert rows.position(parent.session_id) == (1, 1)
    assert branch.refresh not in {lost.refresh, parent.refresh}
    assert me(client, branch.access).status_code == 200
    # Nobody honest has what was displaced.
    is_problem(refresh(client, lost.refresh), 401, "refresh_refused")
    assert rows.cause(parent.session_id) == "theft"


def test_a_position_that_the_database_lost_is_adopted(client, rows):
    tokens = log_in(client)
    ahead = rows.refresh_token(tokens.session_id, (4, 2))
    assert Tokens.of(refresh(client, ahead)).refresh == ahead
    assert rows.position(tokens.session_id) == (4, 2)
    assert rows.session(tokens.session_id, "parent_branch") == [""]


def test_theft_ends_the_session_and_is_recorded(client, connect, server, rows):
    owner = connect(server, address="192.0.2.10", user_agent="owner's phone")
    thief = connect(server, address="198.51.100.20", user_agent="thief's script")
    stolen = log_in(owner)
    session_id = stolen.session_id
    issued = [stolen]
    for who in (owner, thief, owner):
        rows.age(session_id, made_s=LONG, handed_out_s=LONG)
        # Each holds the token of the login; the owner goes on from what the owner was given last.
        token = issued[-1].refresh
        issued.append(Tokens.of(refresh(who, token)))
    assert all(me(client, tokens.access).status_code == 200 for tokens in issued)
    rows.age(session_id, made_s=LONG, handed_out_s=LONG)
    is_problem(refresh(thief, stolen.refresh), 401, "refresh_refused")
    assert rows.cause(session_id) == "theft"
    assert theft_rows(rows, session_id) == [
        ["0", "0", "198.51.100.20", "thief's script", "3", "0", "192.0.2.10", "owner's phone"]
    ]
    for tokens in issued:
        is_problem(me(client, tokens.access), 401, "invalid_token")
        is_problem(refresh(owner, tokens.refresh), 401, "refresh_refused")
    assert len(theft_rows(rows, session_id)) == 1
    assert len(rows.run(f"SELECT id FROM revocations WHERE session_id = '{session_id.hex}'")) == 1


def test_a_thief_who_lives_beside_the_owner_is_found_out(client, rows):
    """Both go on from the same token, more than W apart: the second is two generations behind when the owner is back."""
    stolen = log_in(client)
    rows.age(stolen.session_id, made_s=LONG, handed_out_s=LONG)
    thief = Tokens.of(refresh(client, stolen.refresh))
    rows.age(stolen.session_id, made_s=LONG, handed_out_s=LONG)
    owner = Tokens.of(refresh(client, stolen.refresh))  # looks as a lost reply does, so it is answered …
    assert rows.position(stolen.session_id) == (1, 1)
    rows.age(stolen.session_id, made_s=LONG, handed_out_s=LONG)
    is_problem(refresh(client, thief.refresh), 401, "refresh_refused")  # … and this gives it away
    for tokens in (stolen, thief, owner):
        is_problem(me(client, tokens.access), 401, "invalid_token")
        is_problem(refresh(client, tokens.refresh), 401, "refresh_refused")


@pytest.mark.parametrize("position", [(0, 0), (3, 0), (9, 0)], ids=["displaced", "current", "ahead"])
def test_a_secret_that_does_not_hold_ends_nothing(client, rows, position):
    """The tag alone holds: a plain refusal, whichever position the token names, and nothing is written."""
    tokens = log_in(client)
    rows.change(tokens.session_id, "generation = 3, parent_branch = 0")
    rows.age(tokens.session_id, made_s=LONG, handed_out_s=LONG)
    wrong = rows.refresh_token(tokens.session_id, position)
    right = rows.refresh_token(tokens.session_id, (3, 0))
    salt = "00" * 16
    (kept,) = rows.session(tokens.session_id, "hex(salt)" if rows.is_sqlite else "encode(salt, 'hex')")
    rows.change(tokens.session_id, f"salt = x'{salt}'" if rows.is_sqlite else rf"salt = '\x{salt}'")
    before = rows.session(tokens.session_id, "*")
    is_problem(refresh(client, wrong), 401, "refresh_refused")
    assert rows.session(tokens.session_id, "*") == before
    assert theft_rows(rows, tokens.session_id) == []
    assert me(client, tokens.access).status_code == 200
    rows.change(tokens.session_id, f"salt = x'{kept}'" if rows.is_sqlite else rf"salt = '\x{kept}'")
    assert refresh(client, right).status_code == 200


@pytest.mark.parametrize("limit", ["idle_ends_at_us", "ends_at_us"])
@pytest.mark.parametrize("aged_s", [0, LONG], ids=["same again", "rotate"])
def test_a_limit_ends_the_session(client, rows, limit, aged_s):
    tokens = log_in(client)
    rows.age(tokens.session_id, made_s=aged_s, handed_out_s=aged_s)
    (now,) = rows.session(tokens.session_id, "created_at_us")
    rows.change(tokens.session_id, f"{limit} = {now}")
    is_problem(refresh(client, tokens.refresh), 401, "refresh_refused")
    assert rows.cause(tokens.session_id) == "expired"
    is_problem(me(client, tokens.access), 401, "invalid_token")
    assert theft_rows(rows, tokens.session_id) == []


def test_the_idle_limit_slides_and_the_absolute_one_does_not(client, rows):
    tokens = log_in(client)
    idle, end = map(int, rows.session(tokens.session_id, "idle_ends_at_us, ends_at_us"))
    rows.age(tokens.session_id, made_s=LONG, handed_out_s=LONG)
    rows.change(tokens.session_id, "idle_ends_at_us = idle_ends_at_us - 600000000000")
    assert refresh(client, tokens.refresh).json()["refresh_expires_in"] == 604_800
    slid, same = map(int, rows.session(tokens.session_id, "idle_ends_at_us, ends_at_us"))
    assert slid >= idle
    assert same == end


def days_pass(rows, tokens, days, *, seconds=0):
    """The whole row gets older."""
    by = int((days * 86_400 + seconds) * 1e6)
    times = ("created_at_us", "idle_ends_at_us", "ends_at_us", "made_at_us", "handed_out_at_us")
    rows.change(tokens.session_id, ", ".join(f"{name} = {name} - {by}" for name in times))


def test_a_session_that_is_refreshed_daily_lives_for_thirty_days_and_no_longer(client, rows):
    tokens = log_in(client)
    for _ in range(29):
        days_pass(rows, tokens, 1)
        tokens = Tokens.of(refresh(client, tokens.refresh))
    days_pass(rows, tokens, 1)
    is_problem(refresh(client, tokens.refresh), 401, "refresh_refused")
    assert rows.cause(tokens.session_id) == "expired"


@pytest.mark.parametrize(("seconds", "status"), [(-60, 200), (1, 401)])
def test_a_session_that_is_not_refreshed_lives_for_seven_days(client, rows, seconds, status):
    tokens = log_in(client)
    days_pass(rows, tokens, 7, seconds=seconds)
    assert refresh(client, tokens.refresh).status_code == status
    assert rows.cause(tokens.session_id) == ("" if status == 200 else "expired")


def test_no_token_outlives_the_session(client, rows):
    tokens = log_in(client)
    rows.age(tokens.session_id, made_s=LONG, handed_out_s=LONG)
    rows.change(tokens.session_id, "ends_at_us = created_at_us + 100000000")
    body = refresh(client, tokens.refresh).json()
    assert 1 <= body["expires_in"] <= 100
    assert 1 <= body["refresh_expires_in"] <= 100
    fresh = Tokens(body["access_token"], body["refresh_token"])
    assert fresh.claims["exp"] <= tokens.claims["iat"] + 100


@pytest.mark.parametrize("aged_s", [0, LONG], ids=["within the window", "after it"])
def test_forty_refreshes_at_once_have_one_successor(client, rows, aged_s):
    tokens = log_in(client)
    rows.age(tokens.session_id, made_s=aged_s, handed_out_s=aged_s)
    with ThreadPoolExecutor(40) as tabs:
        responses = list(tabs.map(lambda _: refresh(client, tokens.refresh), range(40)))
    assert [response.status_code for response in responses] == [200] * 40
    successors = {response.json()["refresh_token"] for response in responses}
    assert len(successors) == 1
    assert (successors == {tokens.refresh}) == (aged_s == 0)
    assert rows.position(tokens.session_id) == ((1, 0) if aged_s else (0, 0))
    assert rows.cause(tokens.session_id) == ""
    assert len({response.json()["access_token"] for response in responses}) == 40


def test_tokens_carry_the_roles_of_now(client, server, rows):
    email = new_email()
    sign_up(client, email)
    tokens = log_in(client, email, PASSWORD)
    assert "roles" not in tokens.claims
    rows.run(f"""UPDATE users SET roles = '["admin", "審査"]' WHERE id = '{tokens.user_id.hex}'""")
    for aged_s in (0, LONG):
        rows.age(tokens.session_id, made_s=aged_s, handed_out_s=aged_s)
        fresh = Tokens.of(refresh(client, tokens.refresh))
        assert fresh.claims["roles"] == ["admin", "審査"]
        assert me(client, fresh.access).json()["roles"] == ["admin", "審査"]
