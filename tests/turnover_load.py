"""People at work while keys turn over: access tokens at nodes and at verifiers elsewhere, refreshes, cookies, CSRF."""

import asyncio
import json
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from pathlib import Path
from threading import Event, Thread
from typing import Any, Self
from uuid import uuid4

import httpx2
import pytest

from servers.leash import end_process, start_process
from servers.ports import free_port
from test_serve import PASSWORD, Person, header_of, wait_until

PROGRAM = Path(__file__).parent / "servers" / "checkpoint.py"
# So often in a second; with the second request that a page makes, 200 requests.
PACE = {"verify": 66, "me": 66, "refresh": 20, "cookie": 12, "page": 16, "unsafe": 4}
_AT_ONCE = 12  # under way at a time: a machine that cannot keep the pace is not buried under requests


class Checkpoint:
    """A verifier in a process of its own (servers/checkpoint.py), and a line to it."""

    def __init__(self, folder: Path, env: Mapping[str, str], *, named: Mapping[str, Any], **constants: float) -> None:
        self.port = free_port()
        command = [sys.executable, PROGRAM, str(self.port), json.dumps(named), json.dumps(constants)]
        self._log = folder / "checkpoint.log"
        with self._log.open("wb") as log:
            self._process = start_process(command, log=log, env=env, cwd=folder)
        self._socket: socket.socket | None = None
        try:
            self._socket = wait_until(self._connected, within_s=60, what="the verifier answers")
            self._line = self._socket.makefile("rw", encoding="ascii", newline="\n")
        except BaseException as error:
            error.add_note(self.log_text())
            self.close()
            raise

    def _connected(self) -> socket.socket | None:
        assert self._process.poll() is None, self.log_text()
        try:
            return socket.create_connection(("127.0.0.1", self.port), timeout=20)
        except OSError:
            return None

    def ask(self, line: str) -> str:
        """What it says of a token."""
        self._line.write(line + "\n")
        self._line.flush()
        return self._line.readline().strip()

    def report(self, **constants: float) -> dict[str, Any]:
        """What its verifier knows, and from now on it goes by these constants."""
        return json.loads(self.ask(json.dumps(constants)))

    def log_text(self) -> str:
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        if self._socket is not None:
            self._line.close()
            self._socket.close()
        end_process(self._process, signal.SIGKILL)


@dataclass(eq=False)
class TokenSession:
    """A sign-in that tokens carry. It keeps an access token of each key that has signed one, as many tabs would."""

    tokens: dict[str, str]  # kid → access token
    newest: str
    refresh_token: str
    asked_at: float = 0.0  # when the refresh that was answered last was sent
    busy: bool = False

    @classmethod
    def of(cls, person: Person) -> Self:
        kid = header_of(person.access_token)["kid"]
        return cls({kid: person.access_token}, kid, person.refresh_token)

    @property
    def access_token(self) -> str:
        return self.tokens[self.newest]


@dataclass(eq=False)
class CookieSession:
    """A sign-in that a cookie carries, with the CSRF token of the page that was opened first and is open still."""

    headers: dict[str, str]
    first_page: str


def a_page(client: httpx2.Client, origin: str) -> tuple[dict[str, str], str]:
    """What somebody who opens a page with a login gets: the headers that their browser sends on, and the CSRF token."""
    shown = client.get("/session")
    assert shown.status_code == 200, shown.text
    return {"Origin": origin, "Cookie": _cookie(shown, "csrf")}, shown.json()["csrf_token"]


def signed_in(client: httpx2.Client, email: str, page: tuple[dict[str, str], str]) -> CookieSession:
    headers, csrf_token = page
    answer = client.post(
        "/session", json={"email": email, "password": PASSWORD}, headers={**headers, "X-CSRF-Token": csrf_token}
    )
    assert answer.status_code == 200, answer.text
    return CookieSession({**headers, "Cookie": _cookie(answer, "session")}, answer.json()["csrf_token"])


def _cookie(answer: httpx2.Response, name: str) -> str:
    """By hand: the nodes are behind a name with https, so a client of plain http would keep it to itself."""
    for line in answer.headers.get_list("set-cookie"):
        for cookie, morsel in SimpleCookie(line).items():
            if cookie.endswith(f"sekisho_{name}"):
                return f"{cookie}={morsel.value}"
    raise AssertionError(f"no cookie {name}")


@dataclass
class Load:
    """All of it, in a thread of its own. ``wrong``: every answer that was not as it should be."""

    nodes: Sequence[str]  # base URLs
    checkpoints: Sequence[int]  # ports
    by_tokens: list[TokenSession]
    by_cookie: list[CookieSession]
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    algorithms: set[str] = field(default_factory=set)  # of tokens that were accepted, at nodes and elsewhere
    under_way: Counter[str] = field(default_factory=Counter)
    without_keys = True
    """Verifiers elsewhere cannot know any key yet: the issuer signs with HS256 and publishes none."""

    def __post_init__(self) -> None:
        self._stop = Event()
        self._refused_from: dict[str, float] = {}
        self._thread = Thread(target=lambda: asyncio.run(self._run()), name="load")

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        self.seconds = time.monotonic() - self._began

    @property
    def number(self) -> int:
        """Requests answered so far."""
        return self.answers.total()

    def may_refuse(self, kid: str) -> None:
        """This key is about to be withdrawn."""
        self._refused_from[kid] = float("inf")

    def must_refuse(self, kid: str) -> None:
        """From now on."""
        self._refused_from[kid] = time.monotonic()

    def goes_on(self, requests: int) -> None:
        """Until so many more requests were answered."""
        aim = self.number + requests
        self._until(lambda: self.number >= aim, "the load goes on")

    def all_refresh(self) -> None:
        """Until every session has refreshed, by a request that was sent after this call."""
        now = time.monotonic()
        self._until(lambda: all(session.asked_at > now for session in self.by_tokens), "every session refreshes")

    def no_more_without_keys(self) -> None:
        """Tokens that verifiers elsewhere can never check are for the issuer's nodes alone from now on."""
        self.without_keys = False
        self._until(lambda: not self.under_way["verify"], "the last one is answered")

    def _until(self, holds: Callable[[], object], what: str) -> None:
        wait_until(lambda: holds() or self.wrong or not self._thread.is_alive(), within_s=60, what=what)
        if self.wrong or not self._thread.is_alive():
            pytest.fail(f"the load has met {len(self.wrong)} wrong answers; the first: {self.wrong[:5]}")

    # --- in its thread ------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        limits = httpx2.Limits(max_connections=_AT_ONCE, max_keepalive_connections=_AT_ONCE)
        self._clients = [
            httpx2.AsyncClient(base_url=url, timeout=20, trust_env=False, limits=limits) for url in self.nodes
        ]
        self._lines = [_Line(*await asyncio.open_connection("127.0.0.1", port)) for port in self.checkpoints]
        acts = {
            "verify": self._verify,
            "me": self._me,
            "refresh": self._refresh,
            "cookie": self._cookie,
            "page": self._page,
            "unsafe": self._unsafe,
        }
        room = asyncio.Semaphore(_AT_ONCE)
        try:
            async with asyncio.TaskGroup() as tasks:
                for name, a_second in PACE.items():
                    tasks.create_task(self._pace(acts[name], a_second, tasks, room))
        finally:
            for line in self._lines:
                line.writer.close()
            for client in self._clients:
                await client.aclose()

    async def _pace(
        self, act: Callable[[], Awaitable[None]], a_second: int, tasks: asyncio.TaskGroup, room: asyncio.Semaphore
    ) -> None:
        async def one() -> None:
            try:
                await act()
            except (httpx2.HTTPError, OSError) as error:
                self.wrong.append(f"{act.__name__} {error!r}")
            finally:
                room.release()

        loop = asyncio.get_running_loop()
        due = loop.time() + random.random() / a_second
        while not self._stop.is_set():
            await asyncio.sleep(due - loop.time())
            due += 1 / a_second
            await room.acquire()
            tasks.create_task(one())

    def _client(self) -> httpx2.AsyncClient:
        return random.choice(self._clients)

    def _note(self, kind: str, answer: object, *, fits: bool, about: str = "") -> None:
        self.answers[kind, str(answer)] += 1
        if not fits:
            self.wrong.append(f"{kind} {answer} {about}".strip())

    def _note_token(self, kind: str, answer: str, token: str, sent_at: float) -> None:
        header = header_of(token)
        refused_from = self._refused_from.get(header["kid"])
        fits = answer == "200"
        if fits:
            self.algorithms.add(f"{kind} {header['alg']}")
        if refused_from is not None:
            kind = f"{kind}, withdrawn key"
            fits = answer.startswith("401") or (fits and sent_at < refused_from)
        self._note(kind, answer, fits=fits, about=f"{header['alg']} {header['kid']}")

    async def _verify(self) -> None:
        token = random.choice(list(random.choice(self.by_tokens).tokens.values()))
        is_secret = header_of(token)["alg"] == "HS256"
        if is_secret and not self.without_keys:
            await self._me(token)
            return
        self.under_way["verify"] += 1
        sent_at = time.monotonic()
        answer = await random.choice(self._lines).ask(token)
        self.under_way["verify"] -= 1
        if is_secret:
            self._note("verify, no keys published", answer, fits=answer == "503 keys_unavailable")
        else:
            self._note_token("verify", answer, token, sent_at)

    async def _me(self, token: str = "") -> None:
        token = token or random.choice(list(random.choice(self.by_tokens).tokens.values()))
        sent_at = time.monotonic()
        answer = await self._client().get("/me", headers={"Authorization": f"Bearer {token}"})
        self._note_token("me", str(answer.status_code), token, sent_at)

    async def _refresh(self) -> None:
        session = min(self.by_tokens, key=lambda session: (session.busy, session.asked_at))
        if session.busy:
            return
        session.busy, sent_at = True, time.monotonic()
        try:
            answer = await self._client().post("/refresh", json={"refresh_token": session.refresh_token})
            self._note("refresh", answer.status_code, fits=answer.status_code == 200, about=answer.text[:200])
            if answer.status_code == 200:
                tokens = answer.json()
                session.refresh_token = tokens["refresh_token"]
                kid = header_of(tokens["access_token"])["kid"]
                session.tokens = {**session.tokens, kid: tokens["access_token"]}
                session.newest, session.asked_at = kid, sent_at
        finally:
            session.busy = False

    async def _cookie(self) -> None:
        answer = await self._client().get("/me", headers=random.choice(self.by_cookie).headers)
        self._note("cookie", answer.status_code, fits=answer.status_code == 200)

    async def _page(self) -> None:
        session = random.choice(self.by_cookie)
        answer = await self._client().get("/session", headers=session.headers)
        shown = answer.json()
        self._note("page", answer.status_code, fits=answer.status_code == 200 and shown["user"] is not None)
        if answer.status_code == 200:
            await self._unsafe(session, shown["csrf_token"])

    async def _unsafe(self, session: CookieSession | None = None, csrf_token: str = "") -> None:
        """Ends a session that there is not: 404 comes after the CSRF token held, which else is 403."""
        session = session or random.choice(self.by_cookie)
        headers = {**session.headers, "X-CSRF-Token": csrf_token or session.first_page}
        answer = await self._client().delete(f"/sessions/{uuid4()}", headers=headers)
        self._note("unsafe", answer.status_code, fits=answer.status_code == 404)


@dataclass
class _Line:
    """A connection to a checkpoint: one question at a time."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def ask(self, token: str) -> str:
        async with self.lock:
            self.writer.write(token.encode() + b"\n")
            await self.writer.drain()
            return (await self.reader.readline()).decode().strip()
