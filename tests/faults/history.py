"""What callers did and were answered, and the invariants I1 to I6 that every such history has to keep.

I1  what was acknowledged as ended stays ended: no refresh after it, no access token a second after it, nor a session
    cookie, which the node that ended it refuses at once
I2  no honest session ends without a cause; none without a thief ends for theft
I3  a token presented honestly never has two different successors that live
I4  an acknowledged sign-up or change of password is there, once
I5  an operation is there wholly or not at all
I6  no failure clears a cookie
"""

import threading
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final, NamedTuple

W: Final = 30.0
BOUND_S: Final = 1.0  # of the revocation feed
NOBODY: Final = "nobody"  # what GET /session says instead of 401
# What has to have been called for a session to end with this cause. No test lets a session end in another way.
_CAUSES: Final = {
    "logout": {"POST /logout", "DELETE /session"},
    "logout_all": {"POST /logout/all"},
    "password_changed": {"POST /password"},
    "ended_by_user": {"DELETE /sessions"},
}
_LOGINS: Final = {"POST /login", "POST /session"}
_ENDS: Final = {"POST /logout", "DELETE /session", "DELETE /sessions"}  # of one session, the call's


class Place(NamedTuple):
    """The position that a refresh token names."""

    session: str
    generation: int
    branch: int


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request. ``who`` is a browser, or ``browser/tab``; its tabs share what they store. Times are monotonic."""

    who: str
    what: str
    sent: float
    node: str = ""
    answered: float | None = None  # None: the answer was lost
    status: int | None = None
    code: str = ""
    session: str = ""
    email: str = ""
    password: str = ""
    presented: Place | None = None
    received: Place | None = None
    cookie: bool = False  # a session cookie was shown, a genuine one
    clears: bool = False

    @property
    def browser(self) -> str:
        return self.who.partition("/")[0]

    @property
    def honest(self) -> bool:
        return not self.who.startswith("thief")

    @property
    def ok(self) -> bool:
        return self.status is not None and self.status < 300

    @property
    def refused(self) -> bool:
        """Whether somebody with a genuine credential was told that the session is over."""
        if self.what == "POST /refresh":
            return self.status == 401 and self.presented is not None
        return self.cookie and (self.status == 401 or self.code == NOBODY)

    @property
    def lets_in(self) -> bool:
        """Whether an access token or a session cookie was taken."""
        return self.ok and (
            self.what == "GET /me" or (self.what == "GET /session" and self.cookie and not self.refused)
        )


@dataclass
class History:
    """Calls in the order in which they were answered, and by how much the tests made sessions older."""

    window_s: float = W
    calls: list[Call] = field(default_factory=list)
    aged: list[tuple[float, str, float]] = field(default_factory=list)
    blind: list[tuple[float, float]] = field(default_factory=list)  # from when to when no node could read the feed
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, call: Call) -> None:
        with self._lock:
            self.calls.append(call)

    def time(self, at: float, session: str) -> float:
        """When that was for the session, whose row may have been made older since."""
        return at + sum(seconds for when, aged, seconds in self.aged if aged == session and when <= at)

    def seeing(self, start: float, end: float) -> float:
        """How many of these seconds the nodes could read the feed."""
        blind = sum(max(0.0, min(end, until) - max(start, since)) for since, until in self.blind)
        return end - start - blind


class SessionRow(NamedTuple):
    """A session as the database has it."""

    id: str
    user: str
    generation: int = 0
    branch: int = 0
    parent_branch: int | None = None
    ended: bool = False
    cause: str = ""


@dataclass(frozen=True)
class Snapshot:
    """What the database holds in the end."""

    sessions: Sequence[SessionRow] = ()
    users: Sequence[tuple[str, str]] = ()  # id, e-mail
    revoked: Collection[str] = ()
    thefts: Collection[str] = ()
    devices_of: Collection[str] = ()

    def session(self, session: str) -> SessionRow | None:
        return next((row for row in self.sessions if row.id == session), None)


def violations(history: History, rows: Snapshot, *, lost: Collection[str] = ()) -> list[str]:
    """What is wrong, one line each. ``lost``: sessions and addresses whose last writes a failover took (a limit)."""
    found: list[str] = []
    for check in (_final, _caused, _one_successor, _present, _whole, _harmless):
        found += check(history, rows, lost)
    return found


def _final(history: History, rows: Snapshot, lost: Collection[str]) -> Iterator[str]:
    for end, session in _acknowledged_ends(history):
        if session in lost:
            continue
        row = rows.session(session)
        if row is None or not row.ended:
            yield f"I1 {session} ended ({end.what} {end.status}) and lives in the database"
        assert end.answered is not None
        for call in history.calls:
            if call.session != session or not call.ok or call.what in _ENDS or call.sent <= end.answered:
                continue
            if call.what == "POST /refresh":
                yield f"I1 {call.who} refreshed {session} at {call.node} after its end"
            elif call.lets_in and history.seeing(end.answered, call.sent) > _bound_s(end, call):
                shown = "a cookie" if call.cookie else "an access token"
                yield f"I1 {call.node} took {shown} of {session} {call.sent - end.answered:.1f} s after its end"


def _bound_s(end: Call, call: Call) -> float:
    """How long after an end a call may still be let in. Only what is told from node to node takes its time."""
    return 0.0 if call.cookie and not end.refused and end.node == call.node else BOUND_S


def _acknowledged_ends(history: History) -> Iterator[tuple[Call, str]]:
    """Who said so, and the session: logouts, and refusals of genuine credentials, which say that it is over."""
    for call in history.calls:
        if call.refused or (call.what in _ENDS and call.ok):
            yield call, call.session
        elif call.what in {"POST /logout/all", "POST /password"} and call.ok:
            assert call.answered is not None
            of_user = {c.session for c in history.calls if c.email == call.email and c.what in _LOGINS and c.ok}
            opened_before = {
                c.session for c in history.calls if c.session in of_user and (c.answered or call.sent) < call.sent
            }
            yield from ((call, session) for session in sorted(opened_before))


def _caused(history: History, rows: Snapshot, lost: Collection[str]) -> Iterator[str]:
    known = {call.session for call in history.calls if call.what in {*_LOGINS, "POST /password"} and call.ok}
    for session in sorted(known - set(lost)):
        row = rows.session(session)
        of_session = [call for call in history.calls if call.session == session]
        if row is None:
            yield f"I2 {session} is gone"
        elif row.ended:
            of_user = {call.email for call in of_session if call.email}
            asked = {call.what for call in history.calls if call.session == session or call.email in of_user}
            stolen = not all(call.honest for call in of_session)
            if not (stolen if row.cause == "theft" else _CAUSES.get(row.cause, set()) & asked):
                yield f"I2 {session} ended with cause {row.cause!r}, and nobody did that"
        else:
            refused = [call for call in of_session if call.refused and call.honest]
            yield from (f"I2 {call.who} was refused at {call.node}, and {session} lives" for call in refused)


def _one_successor(history: History, rows: Snapshot, lost: Collection[str]) -> Iterator[str]:
    by_token: dict[Place, list[Call]] = {}
    last: dict[tuple[str, str], Call] = {}
    for call in history.calls:
        if call.received is None or not call.honest:
            continue
        last[call.browser, call.session] = call
        if call.what == "POST /refresh" and call.presented is not None:
            by_token.setdefault(call.presented, []).append(call)
    for token, calls in by_token.items():
        fresh = [call for call in calls if call.received != token]
        for one, other in combinations(fresh, 2):
            if one.received != other.received and _within_window(history, one, other):
                yield f"I3 {token} has two successors: {one.received}, {other.received}"
    for call in last.values():
        row = rows.session(call.session)
        assert call.received is not None
        if row is not None and not row.ended and call.session not in lost and not _taken(call.received, row):
            yield f"I3 what {call.browser} holds, {call.received}, is dead; its session lives at {row}"


def _within_window(history: History, one: Call, other: Call) -> bool:
    """Whether the decisions, each between sending and answer, were W or less apart for sure."""
    first, second = sorted((one, other), key=lambda call: call.sent)
    assert second.answered is not None
    return history.time(second.answered, second.session) - history.time(first.sent, first.session) <= history.window_s


def _taken(held: Place, row: SessionRow) -> bool:
    """Whether a session at ``row`` answers this token: current, its parent, or one from a history that was lost."""
    if (held.generation, held.branch) >= (row.generation, row.branch):
        return True
    return held.generation == row.generation - 1 and row.parent_branch in (held.branch, None)


def _present(history: History, rows: Snapshot, lost: Collection[str]) -> Iterator[str]:
    number = Counter(email for _, email in rows.users)
    for call in history.calls:
        if call.email in lost:
            continue
        if call.what == "POST /signup" and call.ok and number[call.email] != 1:
            yield f"I4 the account {call.email} is there {number[call.email]} times"
        if call.what == "POST /password" and call.ok:
            assert call.answered is not None
            for login in history.calls:
                if login.what not in _LOGINS or login.email != call.email or login.sent < call.answered:
                    continue
                if login.status == (401 if login.password == call.password else 200):
                    yield f"I4 {call.email} changed the password, and a login was answered {login.status}"


def _whole(history: History, rows: Snapshot, lost: Collection[str]) -> Iterator[str]:
    users = {user for user, _ in rows.users}
    for row in rows.sessions:
        if row.user not in users:
            yield f"I5 {row.id} is nobody's"
        if row.user not in rows.devices_of:
            yield f"I5 {row.id} was opened without a device"
        if row.ended != (row.id in rows.revoked):
            yield f"I5 {row.id} is {'ended, and not revoked' if row.ended else 'revoked, and not ended'}"
        if row.ended != bool(row.cause):
            yield f"I5 {row.id} ended {row.ended} with cause {row.cause!r}"
        if (row.cause == "theft") != (row.id in rows.thefts):
            yield f"I5 {row.id} has cause {row.cause!r} and {'a' if row.id in rows.thefts else 'no'} record of a theft"


def _harmless(history: History, rows: Snapshot, lost: Collection[str]) -> Iterator[str]:
    for call in history.calls:
        if call.clears and not call.ok:
            yield f"I6 {call.what} was answered {call.status} and clears what the browser holds"
        if call.status == 500:
            yield f"I6 {call.what} at {call.node} crashed"
