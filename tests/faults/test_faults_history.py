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
PAGE = Call(
    who="visitor", what="POST /session", sent=0, answered=1, status=200, session="s3", email=EMAIL, password="old"
)
PAGE_ROW = SessionRow("s3", "u1")
PAGE_ENDED = PAGE_ROW._replace(ended=True, cause="logout")


def by_cookie(what: str, sent: float, status: int | None, **named) -> Call:
    answered = None if status is None else sent + 0.1
    named = {"who": "visitor", "answered": answered, "session": "s3", "cookie": True, "node": "node 1", **named}
    return Call(what=what, sent=sent, status=status, **named)


PAGE_ELSEWHERE = PAGE_ENDED._replace(cause="ended_by_user")
PAGE_LOGOUT = by_cookie("DELETE /session", 5, 204)
BLIND = [(7.5, 12.5)]  # the database was away
NOBODY = {"status": 200, "code": "nobody"}
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
    "a page": ([PAGE, by_cookie("GET /me", 2, 200), by_cookie("GET /session", 3, 200)], database(PAGE_ROW)),
    "a page's logout": (
        [
            PAGE,
            PAGE_LOGOUT,
            by_cookie("GET /me", 5.05, 200),
            by_cookie("GET /me", 6, 200, node="node 2"),
            by_cookie("GET /me", 5.2, 401),
            by_cookie("GET /session", 7, **NOBODY),
            by_cookie("DELETE /session", 8, 204),
        ],
        database(PAGE_ENDED),
    ),
    "a page ended from another device": (
        [PAGE, by_cookie("DELETE /sessions", 5, 204, cookie=False)],
        database(PAGE_ELSEWHERE),
    ),
    "a page after a long outage": (
        [PAGE, by_cookie("DELETE /session", 7, 204), by_cookie("GET /me", 12.9, 200, node="node 2")],
        database(PAGE_ENDED),
    ),
    "a page without an answer": (
        [PAGE, by_cookie("GET /me", 2, 503), by_cookie("GET /me", 3, None)],
        database(PAGE_ROW),
    ),
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
    "I1 node 1 took a cookie of s3 0.1 s after": (
        [PAGE, PAGE_LOGOUT, by_cookie("GET /me", 5.2, 200)],
        database(PAGE_ENDED),
    ),
    "I1 node 2 took a cookie of s3 1.2 s after": (
        [PAGE, PAGE_LOGOUT, by_cookie("GET /me", 6.3, 200, node="node 2")],
        database(PAGE_ENDED),
    ),
    "I1 node 3 took a cookie of s3 2.1 s after": (  # revived by the page itself
        [PAGE, PAGE_LOGOUT, by_cookie("GET /session", 7.2, 200, node="node 3")],
        database(PAGE_ENDED),
    ),
    "I1 node 2 took a cookie of s3 6.2 s after": (  # the outage counts, and the time after it, too
        [PAGE, by_cookie("DELETE /session", 7, 204), by_cookie("GET /me", 13.3, 200, node="node 2")],
        database(PAGE_ENDED),
    ),
    "I1 node 2 took a cookie of s3 4.9 s after": (  # refused and taken again
        [PAGE, by_cookie("GET /session", 2, **NOBODY), by_cookie("GET /me", 7, 200, node="node 2")],
        database(PAGE_ROW),
    ),
    "I1 node 1 took a cookie of s3 3.9 s after": (
        [PAGE, by_cookie("DELETE /sessions", 5, 204, cookie=False), by_cookie("GET /me", 9, 200)],
        database(PAGE_ELSEWHERE),
    ),
    "I1 s3 ended .DELETE /session 204. and lives": ([PAGE, PAGE_LOGOUT], database(PAGE_ROW)),
    "I1 s3 ended .DELETE /sessions 204. and lives": (
        [PAGE, by_cookie("DELETE /sessions", 5, 204, cookie=False)],
        database(PAGE_ROW),
    ),
    "I2 visitor was refused at node 1": ([PAGE, by_cookie("GET /me", 2, 401)], database(PAGE_ROW)),
    "I2 visitor was refused at node 2": (
        [PAGE, by_cookie("GET /session", 2, node="node 2", **NOBODY)],
        database(PAGE_ROW),
    ),
    "I2 s3 ended with cause 'logout'": ([PAGE, by_cookie("GET /me", 2, 200)], database(PAGE_ENDED)),
    "I2 s3 ended with cause 'ended_by_user'": ([PAGE, PAGE_LOGOUT], database(PAGE_ELSEWHERE)),
    "I2 s3 is gone": ([PAGE], database(sessions=[])),
    "I4 .* changed the password, and a login was answered 200": (
        [PASSWORD, by_cookie("POST /session", 7, 200, email=EMAIL, password="old", cookie=False)],
        database(**CHANGED),
    ),
    "I6 DELETE /session was answered 503 and clears": (
        [PAGE, by_cookie("DELETE /session", 2, 503, clears=True)],
        database(PAGE_ROW),
    ),
    "I6 GET /me at node 1 crashed": ([PAGE, by_cookie("GET /me", 2, 500)], database(PAGE_ROW)),
}


def found_in(calls: list[Call], rows: Snapshot) -> list[str]:
    opened = [LOGIN] if PAGE not in calls else []
    return violations(History(calls=[SIGN_UP, *opened, *calls], blind=BLIND), rows)


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
