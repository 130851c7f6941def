"""An issuer as verifiers see it, over real HTTP, that does whatever the test says: in a thread of its own.

It speaks the protocol by itself until a fault is planned for the next stream, or an answer is replaced.
"""

import asyncio
import json
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from sekisho.verify.stream import MEDIA_TYPE, Entries, Heartbeat, Position, event, grouped
from sekisho.wire import since_boot

from .ports import free_port

_PATIENCE_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a verifier has sent. Names of headers are in small letters."""

    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What it gets."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    after_s: float = 0.0
    missing_bytes: int = 0
    """So many bytes of the body are promised and never come."""


class Stream:
    """One connection to ``/revocations``."""

    def __init__(self, request: Request, reads: asyncio.StreamReader, writes: asyncio.StreamWriter) -> None:
        self.request = request
        self.last_event_id = request.headers.get("last-event-id")
        self._reads = reads
        self._writes = writes

    async def begin(self, *, status: int = 200, content_type: str = MEDIA_TYPE, more: str = "") -> None:
        await self.send(f"HTTP/1.1 {status} Odd\r\nContent-Type: {content_type}\r\nConnection: close\r\n{more}\r\n")

    async def send(self, data: bytes | str) -> None:
        self._writes.write(data if isinstance(data, bytes) else data.encode())
        await self._writes.drain()

    async def event(self, name: str, data: Any, at: Position | None = None) -> None:
        await self.send(event(name, data, at))

    async def beat(self, at: Position | None, *, age_ms: int | None = 0, open_ms: int = 0) -> None:
        await self.event("heartbeat", Heartbeat(age_ms, open_ms), at)

    async def left(self) -> None:
        """Returns when the verifier has gone."""
        with suppress(OSError):
            while await self._reads.read(65536):
                pass


Script = Callable[[Stream], Awaitable[None]]


class OddIssuer:
    """Listens while it is entered."""

    def __init__(self, *, clock: Callable[[], float] = since_boot, beat_every_s: float = 0.05) -> None:
        """``clock``: by which the age of its streams is counted."""
        self.port = free_port()
        self.requests: list[Request] = []
        self.open_streams = 0
        self.jwks = Answer(body=b'{"keys":[]}')
        self.introspection = Answer(body=b'{"active":true}')
        self.script: Script = self.follow
        """What each stream gets that nothing was planned for."""
        self.age_ms: int | None = 0
        self.boot = "boot-1"
        self.log: list[Entries] = []
        """All ``revoked`` events of this boot."""
        self.before = Entries()
        """What a snapshot has besides."""
        self._clock = clock
        self._beat_every_s = beat_every_s
        self._planned: deque[Script] = deque()
        self._streams: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._changed = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    # --- its addresses ---------------------------------------------------------------------------------------------

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def jwks_url(self) -> str:
        return f"{self.base_url}/.well-known/jwks.json"

    @property
    def revocations_url(self) -> str:
        return f"{self.base_url}/revocations"

    # --- what it does ----------------------------------------------------------------------------------------------

    def publish(self, keys: Sequence[Any]) -> None:
        self.jwks = Answer(body=json.dumps({"keys": [key.public_jwk() for key in keys]}).encode())

    def plan(self, *scripts: Script) -> None:
        """What the next streams get, one after the other."""
        self._planned.extend(scripts)

    def end(self, lapses_at: Mapping[str, int], keys: Sequence[str] = ()) -> None:
        """Sessions have ended, and keys are withdrawn: all that follow hear of it."""
        self._in_loop(self._append(grouped(lapses_at, keys)))

    def restart(self) -> None:
        """Another process with the same view: streams break, and what was numbered counts no more."""
        sessions: dict[str, list[str]] = {}
        for entries in (self.before, *self.log):
            for at, ids in entries.sessions.items():
                sessions.setdefault(at, []).extend(ids)
        keys = [key for entries in (self.before, *self.log) for key in entries.keys]
        self.before, self.log, self.boot = Entries(sessions, keys), [], self.boot + "+"
        self.cut_all()

    def cut_all(self) -> None:
        """Every connection is reset."""
        self._in_loop(self._cut_all())

    def asked_for(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path == path]

    @property
    def streams_asked_for(self) -> list[Request]:
        return self.asked_for("/revocations")

    @property
    def position(self) -> Position:
        return Position(self.boot, len(self.log))

    async def follow(self, stream: Stream) -> None:
        """As an issuer should."""
        await stream.begin()
        opened_at = self._clock()
        sent = len(self.log)
        known = [str(Position(self.boot, number)) for number in range(len(self.log) + 1)]
        if stream.last_event_id in known:
            sent = known.index(stream.last_event_id)
        else:
            for entries in self.log:
                await stream.event("snapshot", Entries(entries.sessions, entries.keys, more=True))
            await stream.event("snapshot", self.before, self.position)
        left = asyncio.ensure_future(stream.left())
        try:
            while not left.done():
                while sent < len(self.log):
                    sent += 1
                    await stream.event("revoked", self.log[sent - 1], Position(self.boot, sent))
                open_ms = int((self._clock() - opened_at) * 1000)
                await stream.beat(Position(self.boot, sent), age_ms=self.age_ms, open_ms=open_ms)
                changed = asyncio.ensure_future(self._changed.wait())
                await asyncio.wait({left, changed}, timeout=self._beat_every_s, return_when="FIRST_COMPLETED")
                changed.cancel()
        finally:
            left.cancel()

    # --- how -------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._in_loop(asyncio.start_server(self._serve, "127.0.0.1", self.port))
        return self

    def __exit__(self, _type: type[BaseException] | None, _: BaseException | None, _at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """From now on nobody listens at its address."""
        if self._loop.is_closed():
            return
        self._in_loop(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE_S)
        self._loop.close()

    def _in_loop(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE_S)

    async def _append(self, entries: Entries) -> None:
        self.log.append(entries)
        self._changed.set()
        self._changed = asyncio.Event()

    async def _cut_all(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _close(self) -> None:
        self._server.close()
        await asyncio.sleep(0)  # who came just now is begun with: asyncio takes the end of a task before it for a fault
        await self._cut_all()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reads: asyncio.StreamReader, writes: asyncio.StreamWriter) -> None:
        self._writers.add(writes)
        try:
            request = await _read_request(reads)
            self.requests.append(request)
            if request.path == "/revocations":
                script = self._planned.popleft() if self._planned else self.script
                self.open_streams += 1
                try:
                    await script(Stream(request, reads, writes))
                finally:
                    self.open_streams -= 1
            else:
                await self._answer(request, writes)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writes)
            writes.close()

    async def _answer(self, request: Request, writes: asyncio.StreamWriter) -> None:
        answers = {"/.well-known/jwks.json": self.jwks, "/introspect": self.introspection}
        answer = answers.get(request.path, Answer(status=404))
        await asyncio.sleep(answer.after_s)
        head = [f"HTTP/1.1 {answer.status} Odd", "Content-Type: application/json", "Connection: close"]
        head += [f"Content-Length: {len(answer.body) + answer.missing_bytes}"]
        head += [f"{name}: {value}" for name, value in answer.headers.items()]
        writes.write("\r\n".join([*head, "", ""]).encode() + answer.body)
        await writes.drain()


async def _read_request(reads: asyncio.StreamReader) -> Request:
    head = (await reads.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
    body = await reads.readexactly(int(headers.get("content-length", 0)))
    return Request(path=head[0].split(" ")[1], headers=headers, body=body)
