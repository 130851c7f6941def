"""``sekisho sessions show``: a session's story, as an operator would tell it to the user who asks."""

import json
import re

import pytest
from outsiders import PASSWORD, Tokens, bearer, log_in, refresh, sign_up

W = 30
DAY = 86_400
TIME = r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\dZ"


@pytest.fixture
def story(server):
    """The story, its times replaced by T."""

    def told(tokens):
        text = server.run("sessions", "show", str(tokens.session_id))
        assert text.isascii()
        return [re.sub(TIME, "T", line).strip() for line in text.splitlines()]

    return told


@pytest.fixture
def phone(connect, server):
    return connect(server, address="192.0.2.10", user_agent="owner's phone")


@pytest.fixture
def refreshed(phone, rows):
    """Refreshes, the row made old enough to rotate."""

    def step(tokens, client=phone, *, after_s=W + 1):
        rows.age(tokens.session_id, made_s=after_s, handed_out_s=after_s)
        return Tokens.of(refresh(client, tokens.refresh))

    return step


def test_a_new_one(phone, story):
    email = sign_up(phone)
    tokens = log_in(phone, email)
    assert story(tokens) == [
        f"Session {tokens.session_id} of {email}",
        "T  Signed in.",
        'Not refreshed yet; signed in from 192.0.2.10, "owner\'s phone".',
        "Live. Ends at T unless it is refreshed, and at T in any case.",
    ]


def test_one_that_went_on(phone, refreshed, story):
    tokens = log_in(phone)
    once = refreshed(tokens)
    assert (
        story(tokens)[2]
        == 'T  Refreshed from 192.0.2.10, "owner\'s phone": the token was replaced once since the sign-in.'
    )
    refreshed(once)
    assert "the token was replaced 2 times since the sign-in" in story(tokens)[2]


def test_one_whose_reply_was_lost(phone, refreshed, story):
    tokens = log_in(phone)
    refreshed(tokens)
    refreshed(tokens, after_s=3 * DAY)
    assert story(tokens)[3] == (
        "Of those, the last new token was made anew once: its receiver came back with the one before it."
    )


def test_a_theft(phone, connect, server, refreshed, story, rows):
    thief = connect(server, address="198.51.100.20", user_agent="thief's script")
    stolen = log_in(phone)
    refreshed(refreshed(stolen))
    rows.age(stolen.session_id, made_s=W + 1, handed_out_s=W + 1)
    assert refresh(thief, stolen.refresh).status_code == 401
    found, ended = story(stolen)[3:]
    assert found == (
        "T  Theft: two hold tokens of this session. A token that was 2 replacements old came from "
        '198.51.100.20, "thief\'s script"; the current token had been given at T to 192.0.2.10, "owner\'s phone". '
        "Which of them is the user, the tokens do not tell."
    )
    assert ended == "T  Ended for theft, its access tokens included."
    (theft,) = json.loads(server.run("sessions", "show", str(stolen.session_id), "--json"))["thefts"]
    assert {name: theft[name] for name in ("generation", "address", "current_generation", "current_address")} == {
        "generation": 0,
        "address": "198.51.100.20",
        "current_generation": 2,
        "current_address": "192.0.2.10",
    }
    assert re.fullmatch(TIME, theft["at"])
    assert re.fullmatch(TIME, theft["current_since"])


def test_a_displaced_branch(phone, refreshed, story, rows):
    tokens = log_in(phone)
    lost = refreshed(tokens)
    refreshed(tokens, after_s=DAY)
    assert refresh(phone, lost.refresh).status_code == 401
    assert any("A token that had been displaced came from" in line for line in story(tokens))


def test_every_other_end(phone, story, rows):
    email = sign_up(phone)
    endings = {
        "T  Signed out.": lambda tokens: phone.post("/logout", headers=bearer(tokens.access)),
        "T  Ended by the user, from the list of sessions.": lambda tokens: phone.delete(
            f"/sessions/{tokens.session_id}", headers=bearer(tokens.access)
        ),
        "T  Signed out, with every session of the user.": lambda tokens: phone.post(
            "/logout/all", headers=bearer(tokens.access)
        ),
        "T  Ended because the password was changed.": lambda tokens: phone.post(
            "/password",
            headers=bearer(tokens.access),
            json={"current_password": PASSWORD, "new_password": PASSWORD[::-1]},
        ),
    }
    for told, end in endings.items():
        tokens = log_in(phone, email)
        assert end(tokens).is_success
        assert story(tokens)[-1] == told


@pytest.mark.parametrize("told_of", [False, True], ids=["nobody noticed yet", "a refresh noticed"])
@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("ends_at_us", r"it had reached its greatest age, 0 days\."),
        ("idle_ends_at_us", r"it was not used after T\."),
    ],
)
def test_one_that_ran_out(phone, story, rows, limit, words, told_of):
    tokens = log_in(phone)
    rows.change(tokens.session_id, f"{limit} = created_at_us")
    if told_of:
        assert refresh(phone, tokens.refresh).status_code == 401
    assert re.fullmatch(f"T  Ended: {words}" if told_of else f"Over: {words}", story(tokens)[-1])


def test_one_that_ran_out_of_both_tells_what_came_first(phone, story, rows):
    tokens = log_in(phone)
    rows.change(tokens.session_id, "idle_ends_at_us = created_at_us + 1, ends_at_us = created_at_us + 2")
    assert story(tokens)[-1] == "Over: it was not used after T."


def test_a_user_agent_cannot_pass_for_the_story(connect, server, story):
    liar = connect(server, user_agent='x"). T  Ended by an operator.')
    tokens = log_in(liar)
    assert "from 192.0.2." not in story(tokens)[2]
    assert story(tokens)[2].endswith('"x\\"). T  Ended by an operator.".')
