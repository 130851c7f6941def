"""A place to make calls in by the thousand: Sekisho in this process, or a running server; and what a browser would say.

``Call`` is everything about a call that a forger may or may not be able to choose.
"""

import asyncio
import http.client
import itertools
import json
import threading
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
from outsiders import PASSWORD, new_email

from sekisho.passwords import CHEAPEST
from sekisho.tokens import KeySet
from sekisho.web import Sekisho, Settings
from servers.sekisho_server import RunningServer

T = TypeVar("T")
Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, list[str]]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        return self.json.get("code") if self.body else None

    @property
    def cookies(self) -> dict[str, str]:
        pairs = [line.partition(";")[0].partition("=") for line in self.headers.get("set-cookie", [])]
        return {name: value for name, _, value in pairs}


class World(Protocol):
    """``host``: what the Host header says, as an origin. ``allowed``: an origin that is allowed, if there is one."""

    issuer: str
    allowed: str | None
    host: str

    def call(self, method: str, path: str, headers: Headers = (), body: bytes = b"") -> Answer: ...


class InProcess:
    """The application itself, in an event loop of its own thread. Its hashes are cheap: it is not they that are tested."""

    issuer, allowed, host = "https://auth.example.com", "https://app.example.com", "http://127.0.0.1:8400"

    def __init__(self, sekisho: Sekisho, loop: asyncio.AbstractEventLoop) -> None:
        self.sekisho = sekisho
        self._loop = loop
        self._app = sekisho.app()
        self._networks = itertools.cycle(range(1 << 16))  # each call from another, so that nobody is throttled

    def call(self, method: str, path: str, headers: Headers = (), body: bytes = b"") -> Answer:
        return self.run(self._call(method, path, headers, body))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _call(self, method: str, path: str, headers: Headers, body: bytes) -> Answer:
        sent: list[dict[str, Any]] = []
        incoming = [{"type": "http.request", "body": body}]

        async def receive() -> dict[str, Any]:
            if incoming:
                return incoming.pop()
            await asyncio.Event().wait()  # the client stays, as clients do
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        all_headers = [("Host", "127.0.0.1:8400"), *headers]
        plain, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": plain,
            "raw_path": plain.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in all_headers],
            "client": (str(ip_address(0x0A000001 + (next(self._networks) << 8))), 50_000),
            "server": ("127.0.0.1", 8400),
        }
        await self._app(scope, receive, send)
        grouped: dict[str, list[str]] = {}
        for name, value in sent[0]["headers"]:
            grouped.setdefault(name.decode(), []).append(value.decode("latin-1"))
        return Answer(sent[0]["status"], grouped, b"".join(part.get("body", b"") for part in sent[1:]))


@contextmanager
def in_process(folder: Path) -> Iterator[InProcess]:
    settings = Settings(
        database_url=f"sqlite:///{folder / 'sekisho.db'}",
        issuer=InProcess.issuer,
        allowed_origins=[InProcess.allowed],
        keys=f"file:{folder / 'keys.json'}",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sekisho.web.app.OWASP", CHEAPEST)
        sekisho = Sekisho(settings)
    (folder / "keys.json").write_bytes(KeySet.generate("HS256", now=1_800_000_000).to_json())
    (folder / "keys.json").chmod(0o600)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    world = InProcess(sekisho, loop)
    running = sekisho.running()
    world.run(running.__aenter__())
    try:
        yield world
    finally:
        world.run(running.__aexit__(None, None, None))
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


class OverHttp:
    """A running server, over one connection that is kept."""

    allowed = None

    def __init__(self, server: RunningServer, address: str) -> None:
        self.issuer = self.host = server.base_url
        self._address = address
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)

    def call(self, method: str, path: str, headers: Headers = (), body: bytes = b"") -> Answer:
        self._connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in [*headers, ("X-Forwarded-For", self._address), ("Content-Length", str(len(body)))]:
            self._connection.putheader(name, value)
        self._connection.endheaders(body or None)
        response = self._connection.getresponse()
        grouped: dict[str, list[str]] = {}
        for name, value in response.getheaders():
            grouped.setdefault(name.lower(), []).append(value)
        return Answer(response.status, grouped, response.read())

    def close(self) -> None:
        self._connection.close()


# --- people --------------------------------------------------------------------------------------------------------

JSON_TYPE = ("Content-Type", "application/json")
OWN_PAGE = ("Sec-Fetch-Site", "same-origin")


class User:
    """An account, and the browsers and clients that it signs in with."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.prefix = "__Host-sekisho_" if world.issuer.startswith("https") else "sekisho_"
        self.credentials = {"email": new_email(), "password": PASSWORD}
        assert self.post("/signup", self.credentials).status == 201

    def post(self, path: str, body: dict[str, Any] | None, *headers: tuple[str, str]) -> Answer:
        content = b"" if body is None else json.dumps(body).encode()
        return self.world.call("POST", path, [JSON_TYPE, *headers], content)

    def cookie(self, **values: str) -> tuple[str, str]:
        """One Cookie header of these cookies, by the names without their prefix."""
        return "Cookie", "; ".join(f"{self.prefix}{name}={value}" for name, value in values.items())

    def visitor(self) -> tuple[str, str]:
        """A new visitor's cookie, and a token for it."""
        answer = self.world.call("GET", "/session")
        return answer.cookies[f"{self.prefix}csrf"], answer.json["csrf_token"]

    def token_for(self, **cookies: str) -> str:
        token: str = self.world.call("GET", "/session", [self.cookie(**cookies)]).json["csrf_token"]
        return token

    def session(self) -> str:
        """A new session's cookie."""
        visitor, token = self.visitor()
        headers = [self.cookie(csrf=visitor), OWN_PAGE, ("X-CSRF-Token", token)]
        answer = self.post("/session", self.credentials, *headers)
        assert answer.status == 200, answer.body
        return answer.cookies[f"{self.prefix}session"]

    def tokens(self) -> tuple[str, str]:
        """The access and refresh token of a new session."""
        answer = self.post("/login", self.credentials)
        assert answer.status == 200, answer.body
        return answer.json["access_token"], answer.json["refresh_token"]

    def live(self, access_token: str) -> set[str]:
        """The ids of the live sessions."""
        answer = self.world.call("GET", "/sessions", [("Authorization", f"Bearer {access_token}")])
        assert answer.status == 200, answer.body
        return {one["id"] for one in answer.json["sessions"]}
