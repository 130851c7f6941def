"""The checker finds each kind of violation in a made-up history, and nothing in a good one."""

import re

import pytest
from history import Call, History, Place, SessionRow, Snapshot, violations

SESSION, EMAIL = "s1", "a@example.com"
ROOT, CHILD, BRANCH = Place(SESSION, 0, 0), Place(SESSION, 1, 0), Place(SESSION, 1, 1)
LOGIN = Call(
    who="owner", what="POST /login", sent=0, answered=1, status=200, session=SESSION, email=EMAIL, received=ROOT
)
SIGN_UP = Call(who="owner", what="POST /signup", sent=-1, answered=0, status=201, email=EMAIL)
LIVE = SessionRow(SESSION, "u1", generation=1, parent_branch=0)
ENDED = LIVE._replace(ended=True, cause="logout")


def refreshed(sent: float, presented: Place = ROOT, received: Place | None = CHILD, **named) -> Call:
    named = {"who": "owner", "answered": sent + 0.1, "status": 200, **named}
    return Call(what="POST /refresh", sent=sent, session=SESSION, presented=presented, received=received, **named)


def called(what: str, sent: float, status: int | None, who: str = "owner", **named) -> Call:
    answered = None if status is None else sent + 0.1
    return Call(who=who, what=what, sent=sent, answered=answered, status=status, session=SESSION, **named)


def database(row: SessionRow = LIVE, **named) -> Snapshot:
    """One session, whole."""
    ended = {row.id} if row.ended else set()
    whole = {
        "sessions": [row],
        "users": [("u1", EMAIL)],
        "revoked": ended,
        "thefts": ended if row.cause == "theft" else set(),
        "devices_of": {"u1"},
    }
    return Snapshot(**{**whole, **named})


LOGOUT = called("POST /logout", 5, 204)
REFUSED = {"status": 401, "received": None}
PASSWORD = Call(
    who="owner", what="POST /password", sent=5, answered=6, status=200, session="s2", email=EMAIL, password="new"
)
OTHER = SessionRow("s2", "u1")
CHANGED = {"sessions": [LIVE._replace(ended=True, cause="password_changed"), OTHER], "revoked": {SESSION}}

GOOD = {
    "a refresh": ([refreshed(2), refreshed(3, CHILD)], database()),
    "the same again, then a successor": ([refreshed(2, received=ROOT), refreshed(3)], database()),
    "a logout": ([refreshed(2), LOGOUT, called("GET /me", 5.5, 200), refreshed(7, **REFUSED)], database(ENDED)),
    "a refresh that was under way": ([LOGOUT, refreshed(4.9)], database(ENDED)),
    "a lost logout that was carried out": ([called("POST /logout", 5, None)], database(ENDED)),
    "a late branch": ([refreshed(2), refreshed(40, received=BRANCH)], database(LIVE._replace(branch=1))),
    "a theft": (
        [refreshed(2), refreshed(3, who="thief"), refreshed(60, **REFUSED)],
        database(ENDED._replace(cause="theft")),
    ),
    "a changed password": (
        [PASSWORD, called("POST /login", 7, 401, email=EMAIL, password="old")],
        database(**CHANGED),
    ),
    "a failure": ([called("POST /refresh", 2, 503)], database()),
}

BAD = {
    "I1 .* after its end": ([LOGOUT, refreshed(5.2)], database(ENDED)),
    "I1 .* took an access token of s1 1.4 s after": ([LOGOUT, called("GET /me", 6.5, 200)], database(ENDED)),
    "I1 .* lives in the database": ([LOGOUT], database()),
    "I1 .* refreshed s1 at .* after its end": (
        [refreshed(2, who="thief", **REFUSED), refreshed(3)],
        database(ENDED._replace(cause="theft")),
    ),
    "I1 s1 ended .POST /password 200. and lives": ([PASSWORD], database(sessions=[LIVE, OTHER])),
    "I2 s1 is gone": ([], database(sessions=[])),
    "I2 s1 ended with cause 'logout'": ([], database(ENDED)),
    "I2 s1 ended with cause 'theft'": ([refreshed(2)], database(ENDED._replace(cause="theft"))),
    "I2 s1 ended with cause 'evicted'": ([refreshed(2)], database(ENDED._replace(cause="evicted"))),
    "I2 owner was refused": ([refreshed(2, **REFUSED)], database()),
    "I3 .* has two successors": ([refreshed(2), refreshed(3, received=BRANCH)], database(LIVE._replace(branch=1))),
    "I3 what owner holds, .* is dead": ([refreshed(2)], database(LIVE._replace(generation=1, branch=1))),
    "I3 what owner holds, .*generation=0": ([], database(LIVE._replace(generation=2))),
    "I4 the account .* is there 0 times": ([], database(users=[])),
    "I4 the account .* is there 2 times": ([], database(users=[("u1", EMAIL), ("u2", EMAIL)])),
    "I4 .* a login was answered 200": (
        [PASSWORD, called("POST /login", 7, 200, email=EMAIL, password="old")],
        database(**CHANGED),
    ),
    "I4 .* a login was answered 401": (
        [PASSWORD, called("POST /login", 7, 401, email=EMAIL, password="new")],
        database(**CHANGED),
    ),
    "I5 s1 is nobody's": ([], database(LIVE._replace(user="u2"), devices_of={"u2"})),
    "I5 s1 was opened without a device": ([], database(devices_of=())),
    "I5 s1 is ended, and not revoked": ([LOGOUT], database(ENDED, revoked=())),
    "I5 s1 is revoked, and not ended": ([], database(revoked={SESSION})),
    "I5 s1 ended True with cause ''": ([LOGOUT], database(ENDED._replace(cause=""))),
    "I5 .* no record of a theft": (
        [refreshed(2, who="thief")],
        database(ENDED._replace(cause="theft"), thefts=()),
    ),
    "I6 .* was answered 503 and clears": ([called("POST /logout", 2, 503, clears=True)], database()),
    "I6 .* crashed": ([called("POST /refresh", 2, 500)], database()),
}


def found_in(calls: list[Call], rows: Snapshot) -> list[str]:
    return violations(History(calls=[SIGN_UP, LOGIN, *calls]), rows)


@pytest.mark.parametrize("what", GOOD)
def test_a_good_history_has_no_violation(what):
    assert found_in(*GOOD[what]) == []


@pytest.mark.parametrize("expected", BAD)
def test_a_violation_is_found(expected):
    assert any(re.match(expected, line) for line in found_in(*BAD[expected])), found_in(*BAD[expected])


def test_time_that_the_test_let_pass_counts():
    history = History(calls=[SIGN_UP, LOGIN, refreshed(2), refreshed(3, received=BRANCH)])
    history.aged.append((2.5, SESSION, 31))
    assert violations(history, database(LIVE._replace(branch=1))) == []


def test_what_a_failover_took_is_left_out():
    history = History(calls=[SIGN_UP, LOGIN, LOGOUT, refreshed(7)])
    assert violations(history, database())
    assert violations(history, database(), lost={SESSION}) == []
    assert violations(history, Snapshot(), lost={SESSION, EMAIL}) == []
