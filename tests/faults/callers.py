"""Those who call: browsers with tabs, and thieves. Every call they make is written down."""

import base64
import http.client
import json
import random
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from history import NOBODY, Call, History, Place

from sekisho.errors import RefreshTokenInvalid
from sekisho.tokens.keyring import KeySet
from sekisho.tokens.refresh import RefreshKeys

PASSWORD = "a gate on the old road"
SESSION_COOKIE = "__Host-sekisho_session"


class Door(Protocol):
    """Where one can knock: a node, or the proxy before it."""

    port: int


class Reply(NamedTuple):
    """What came back, whole."""

    status: int
    headers: http.client.HTTPMessage
    body: dict[str, Any]

    @property
    def clears(self) -> bool:
        cookies = self.headers.get_all("set-cookie", [])
        return "clear-site-data" in self.headers or any("max-age=0" in cookie.lower() for cookie in cookies)


def send(
    door: Door,
    method: str,
    path: str,
    *,
    headers: Mapping[str, str],
    body: Mapping[str, Any] | None = None,
    patience_s: float = 20.0,
    ready: Callable[[], object] | None = None,
) -> tuple[float, float, Reply | None]:
    """When it went out, when it ended, and the answer; None when it was lost. ``ready``: called once connected."""
    connection = http.client.HTTPConnection("127.0.0.1", door.port, timeout=patience_s)
    text = None if body is None else json.dumps(body)
    sent, reply = time.monotonic(), None
    try:
        connection.connect()
        if ready is not None:
            ready()
        sent = time.monotonic()
        connection.request(method, path, text, {**headers, "Content-Type": "application/json"} if text else headers)
        response = connection.getresponse()
        data = response.read()
        if response.status != 204 and "content-length" not in response.headers:
            raise http.client.IncompleteRead(data)  # cut in its head, which the library takes for a whole answer
        reply = Reply(response.status, response.headers, json.loads(data) if data else {})
    except (OSError, http.client.HTTPException):
        pass
    finally:
        connection.close()
    return sent, time.monotonic(), reply


class Keys:
    """Reads where a token stands in its session's history, as only the server's operator can."""

    def __init__(self, key_set: KeySet) -> None:
        self._refresh = RefreshKeys(key_set.active("refresh"), key_set.used("refresh"))

    def place(self, token: str) -> Place | None:
        try:
            presented = self._refresh.read(token)
        except RefreshTokenInvalid:
            return None
        return Place(str(presented.session_id), *presented.position)


class Caller:
    """A browser whose tabs share what they store: the tokens of the answer that came last."""

    def __init__(self, who: str, *, history: History, keys: Keys, names: Callable[[Door], str], door: Door) -> None:
        self.who = who
        self.door = door  # where it goes unless told otherwise
        self.email = f"{secrets.token_hex(8)}@example.com"
        self.password = PASSWORD
        self.access_token = ""
        self.refresh_token = ""
        self._history = history
        self._keys = keys
        self._names = names
        self._storage = threading.Lock()
        # In a network of its own, so that no throttle stands in the way.
        self._address = f"10.{random.randrange(256)}.{random.randrange(256)}.{random.randrange(1, 255)}"

    @property
    def session(self) -> str:
        return _session_of(self.access_token)

    @property
    def held(self) -> Place | None:
        return self._keys.place(self.refresh_token)

    def sign_up(self, door: Door | None = None) -> Call:
        return self._call(door, "POST /signup", {"email": self.email, "password": self.password})

    def log_in(self, door: Door | None = None, *, password: str = "") -> Call:
        return self._call(door, "POST /login", {"email": self.email, "password": password or self.password})

    def refresh(self, door: Door | None = None, *, token: str = "", **how: Any) -> Call:
        """Of what the browser holds, unless it is an older token. ``how``: `tab`, `agent`, `patience_s`, `ready`."""
        return self._call(door, "POST /refresh", {"refresh_token": token or self.refresh_token}, **how)

    def insists(self, door: Door | None = None, *, within_s: float = 20.0, **how: Any) -> Call:
        """Refreshes again and again, as clients do, while the node is busy (503) or the answer is lost."""
        give_up_at = time.monotonic() + within_s
        while (call := self.refresh(door, **how)).status in {None, 503} and time.monotonic() < give_up_at:
            how.pop("ready", None)
            time.sleep(random.uniform(0.02, 0.2))
        return call

    def me(self, door: Door | None = None, *, token: str = "") -> Call:
        return self._call(door, "GET /me", bearer=token or self.access_token)

    def log_out(self, door: Door | None = None, **how: Any) -> Call:
        return self._call(door, "POST /logout", {"refresh_token": self.refresh_token}, **how)

    def change_password(self, new: str, door: Door | None = None) -> Call:
        body = {"current_password": self.password, "new_password": new}
        return self._call(door, "POST /password", body, bearer=self.access_token)

    def ends(self, session: str, door: Door | None = None) -> Call:
        """Another session of the same account, from the list of devices."""
        path = f"/sessions/{session}"
        return self._call(door, "DELETE /sessions", path=path, bearer=self.access_token, session=session)

    def log_out_everywhere(self, door: Door | None = None) -> Call:
        return self._call(door, "POST /logout/all", bearer=self.access_token)

    def thief(self, name: str = "thief") -> "Caller":
        """Somebody else who holds what this browser holds now."""
        thief = Caller(name, history=self._history, keys=self._keys, names=self._names, door=self.door)
        thief.access_token, thief.refresh_token = self.access_token, self.refresh_token
        return thief

    def _call(
        self,
        door: Door | None,
        what: str,
        body: Mapping[str, str] | None = None,
        *,
        path: str = "",
        bearer: str = "",
        session: str = "",
        extra: Mapping[str, str] | None = None,
        tab: str = "",
        agent: str = "",
        **how: Any,
    ) -> Call:
        """``path`` and ``session`` where neither ``what`` nor a credential tells them."""
        door = door or self.door
        headers = {"X-Forwarded-For": self._address, "User-Agent": agent or self.who, "Connection": "close"}
        headers.update(extra or {})
        if bearer:
            headers["Authorization"] = f"Bearer {bearer}"
        method, _, route = what.partition(" ")
        sent, ended, reply = send(door, method, path or route, headers=headers, body=body, **how)
        got = reply.body if reply is not None and reply.status == 200 else {}
        body = body or {}
        presented = self._keys.place(body["refresh_token"]) if "refresh_token" in body else None
        received = self._keys.place(got["refresh_token"]) if "refresh_token" in got else None
        cookie = f"{SESSION_COOKIE}=" in headers.get("Cookie", "")
        user = got.get("user")
        call = Call(
            who=f"{self.who}/{tab}" if tab else self.who,
            what=what,
            sent=sent,
            node=self._names(door),
            answered=None if reply is None else ended,
            status=None if reply is None else reply.status,
            code=NOBODY if cookie and "user" in got and user is None else reply.body.get("code", "") if reply else "",
            session=(user or {}).get("session_id")
            or next((place.session for place in (received, presented) if place), session or _session_of(bearer)),
            email=body.get("email", self.email if what in {"POST /password", "POST /logout/all"} else ""),
            password=body.get("new_password") or body.get("password", ""),
            presented=presented,
            received=received,
            cookie=cookie,
            clears=reply is not None and reply.clears,
        )
        with self._storage:  # what is stored last is what is written down last
            self._history.add(call)
            if reply is not None and reply.status == 200:
                self._keep(reply)
        return call

    def _keep(self, reply: Reply) -> None:
        """What the browser stores of an answer."""
        if "refresh_token" in reply.body:
            self.access_token, self.refresh_token = reply.body["access_token"], reply.body["refresh_token"]


class Visitor(Caller):
    """A browser with pages that the server renders: it keeps a session cookie, and that after its logout, too."""

    def __init__(self, who: str, **named: Any) -> None:
        super().__init__(who, **named)
        self.cookies: dict[str, str] = {}
        self._csrf_token = ""
        self._session = ""

    @property
    def session(self) -> str:
        return self._session

    def log_in(self, door: Door | None = None, *, password: str = "") -> Call:
        self.page(door)  # for the CSRF token
        return self._by_cookie(door, "POST /session", {"email": self.email, "password": password or self.password})

    def page(self, door: Door | None = None) -> Call:
        return self._by_cookie(door, "GET /session")

    def me(self, door: Door | None = None, *, token: str = "") -> Call:
        assert not token
        return self._by_cookie(door, "GET /me")

    def log_out(self, door: Door | None = None, **how: Any) -> Call:
        return self._by_cookie(door, "DELETE /session", **how)

    def _by_cookie(self, door: Door | None, what: str, body: Mapping[str, str] | None = None, **how: Any) -> Call:
        extra = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
        if not what.startswith("GET"):
            extra.update({"X-CSRF-Token": self._csrf_token, "Sec-Fetch-Site": "same-origin"})
        return self._call(door, what, body, extra=extra, session=self._session, **how)

    def _keep(self, reply: Reply) -> None:
        for header in reply.headers.get_all("set-cookie", []):
            name, _, value = header.partition(";")[0].partition("=")
            self.cookies[name] = value
        self._csrf_token = reply.body.get("csrf_token", self._csrf_token)
        if reply.body.get("user"):
            self._session = reply.body["user"]["session_id"]


def _session_of(access_token: str) -> str:
    if access_token.count(".") != 2:
        return ""
    payload = access_token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["sid"]
