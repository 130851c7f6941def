"""A fault, those who live through it, and the check of what they lived through."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any
from uuid import UUID

import httpx2
import pytest
from callers import Caller, Door, Keys, Visitor
from history import History, SessionRow, Snapshot, W, violations
from outsiders import Rows, keys_of

from servers.sekisho_server import RunningServer

_DECISIONS = {
    ("refreshed", "same_again"): "same again",
    ("refreshed", "rotate"): "rotate",
    ("refreshed", "branch"): "branch",
    ("refreshed", "adopt"): "adopt",
    ("refreshed", "wait"): "wait",
}
_HANDLED = re.compile(r'^sekisho_request_seconds_count\{[^}]*route="/refresh"[^}]*\} (.*)$', re.MULTILINE)
_OTHERS = {"refresh_refused": "refused", "put_off": "put off", "theft_found": "theft"}


class Scene:
    """Nodes on one database. ``record`` is pytest's record_property; the closing table reads it."""

    def __init__(
        self,
        name: str,
        nodes: Sequence[RunningServer],
        rows: Rows,
        *,
        record: Callable[[str, object], None],
        window_s: float = W,
    ) -> None:
        self.nodes = nodes
        self.rows = rows
        self.history = History(window_s=window_s)
        self.checked = False
        self._name = name
        self._record = record
        self._keys = Keys(keys_of(nodes[0]))
        self._began = time.monotonic()
        self._read = {node: len(node.log_text()) for node in nodes}

    def someone(self, who: str = "owner", *, door: Door | None = None) -> Caller:
        """A browser that nobody has signed in with."""
        return Caller(who, history=self.history, keys=self._keys, names=self._named, door=door or self.nodes[0])

    def owner(self, who: str = "owner", *, door: Door | None = None) -> Caller:
        """Somebody who has signed up and in."""
        caller = self.someone(who, door=door)
        signed_up = caller.sign_up()
        assert signed_up.status == 201, signed_up
        logged_in = caller.log_in()
        assert logged_in.status == 200, logged_in
        return caller

    def visitor(self, who: str = "visitor", *, door: Door | None = None, account_of: Caller | None = None) -> Visitor:
        """A browser that keeps a session cookie; of an account of its own, unless told. Nobody has signed in yet."""
        keys = {"history": self.history, "keys": self._keys, "names": self._named}
        visitor = Visitor(who, **keys, door=door or self.nodes[0])
        if account_of is not None:
            visitor.email, visitor.password = account_of.email, account_of.password
        return visitor

    def stolen(self, name: str) -> tuple[Caller, Caller, Caller]:
        """The owner, the thief, who was given a branch, and a friend with the token that the branch displaced.

        Owner and friend give the theft away when they come next.
        """
        owner = self.owner(name)
        thief = owner.thief()
        self.age(owner)
        assert owner.refresh().status == 200
        self.age(owner)
        assert thief.refresh(self.nodes[-1]).status == 200
        assert self.rows.cause(UUID(owner.session)) == ""
        return owner, thief, owner.thief("thief's friend")

    def age(self, caller: Caller, seconds: float | None = None) -> None:
        """Time passes for a session: more than W, unless told. Nothing of it may be in flight."""
        seconds = self.history.window_s + 1 if seconds is None else seconds
        self.rows.age(UUID(caller.session), made_s=seconds, handed_out_s=seconds)
        self.history.aged.append((time.monotonic(), caller.session, seconds))

    def goes_on(self, caller: Caller, doors: Sequence[Door] | None = None) -> None:
        """What the browser holds is answered and works, now and after a while, wherever it knocks."""
        for door in doors or self.nodes:
            assert caller.refresh(door).status == 200
            self.age(caller)
            assert caller.refresh(door).status == 200
            assert caller.me(door).status == 200

    def check(self, *, lost: Collection[str] = ()) -> None:
        """The invariants hold, and the closing table hears of it."""
        self.checked = True
        found = violations(self.history, self.snapshot(), lost=lost)
        calls = self.history.calls
        facts = {
            "scenario": self._name,
            "database": "SQLite" if self.rows.is_sqlite else "PostgreSQL",
            "nodes": len(self.nodes),
            "asked": len(calls),
            "lost": sum(call.answered is None for call in calls),
            **self.decisions(),
            "sessions": len({call.session for call in calls} - {""}),
            "violations": len(found),
            "seconds": time.monotonic() - self._began,
        }
        self._record("fault", json.dumps(facts))
        if found:
            pytest.fail("\n".join(found), pytrace=False)

    def decisions(self) -> Counter[str]:
        """What the nodes decided since the scene began, by their own account."""
        counted: Counter[str] = Counter()
        for node in self.nodes:
            for event in self.events(node):
                name = _DECISIONS.get((event["event"], event.get("outcome", ""))) or _OTHERS.get(event["event"])
                if name is not None:
                    counted[name] += 1
        return counted

    def events(self, node: RunningServer, name: str = "") -> list[dict[str, Any]]:
        """What a node has logged since the scene began. The last line of one that was killed may be torn."""
        lines = node.log_text()[self._read[node] :].splitlines()
        events = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [event for event in events if name in ("", event["event"])]

    def refreshes_handled(self) -> int:
        """Requests that the nodes are through with, by their metrics; answered or not."""
        texts = [httpx2.get(f"{node.base_url}/metrics", trust_env=False).text for node in self.nodes]
        return sum(int(float(number)) for text in texts for number in _HANDLED.findall(text))

    def snapshot(self) -> Snapshot:
        """The rows of this scene; other scenes may share the database."""
        sessions = {call.session for call in self.history.calls}
        emails = {call.email for call in self.history.calls} - {""}
        run = self.rows.run
        kept = [row for row in map(_session_row, run(_SESSIONS)) if row.id in sessions]
        users = [(_id(row[0]), row[1]) for row in run("SELECT id, email_canonical FROM users") if row[1] in emails]
        return Snapshot(
            sessions=kept,
            users=users,
            revoked={_id(row[0]) for row in run("SELECT session_id FROM revocations")},
            thefts={_id(row[0]) for row in run("SELECT session_id FROM thefts")},
            devices_of={_id(row[0]) for row in run("SELECT user_id FROM devices")},
        )

    def _named(self, door: Door) -> str:
        return f"node {self.nodes.index(door) + 1}" if door in self.nodes else "proxy"


_SESSIONS = "SELECT id, user_id, generation, branch, parent_branch, ended_at_us, cause FROM sessions"


def _session_row(row: list[str]) -> SessionRow:
    session, user, generation, branch, parent, ended, cause = row
    return SessionRow(
        _id(session), _id(user), int(generation), int(branch), int(parent) if parent else None, bool(ended), cause
    )


def _id(text: str) -> str:
    return str(UUID(text))


StartScene = Callable[..., Scene]
"""The fixture `stage`: (nodes, rows)."""
