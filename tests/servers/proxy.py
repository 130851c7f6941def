"""A TCP proxy that loses, cuts and holds back what passes through it: the network between two parts.

It runs in a thread of its own and stands before a node (HTTP) or between a node and its database.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from .ports import free_port

_PATIENCE_S = 20.0
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of zero seconds: closing sends RST instead of FIN

Look = Callable[[bytes], bool]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What happens to one connection. Nothing, unless said."""

    cut_after: int | None = None
    """So many bytes of the answer get through, then the caller sees a reset."""
    hold: bool = False
    """The answer waits in `Proxy.held` until it is released."""
    drop: bool = False
    """The request goes nowhere; the caller waits."""
    hang_up: bool = False
    """Both sides are closed once the first piece of the request was forwarded."""
    request: Look | None = None
    """Sees each piece of the request; when it says False, the piece goes nowhere and the connection is cut."""
    answer: Look | None = None
    """The same for the answer."""


PASS = Rule()


class Held:
    """An answer that waits."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.gate = asyncio.Event()

    def release(self) -> None:
        """It goes on its way."""
        self._loop.call_soon_threadsafe(self.gate.set)


class Proxy:
    """Listens on ``port`` while it is entered. ``target`` may change; connections that exist keep theirs."""

    def __init__(self, target: int, *, rule: Callable[[], Rule] = lambda: PASS) -> None:
        """``target``: a port of this machine. ``rule`` is asked for each connection that none was planned for."""
        self.target = target
        self.port = free_port()
        self.rule = rule
        self.held: list[Held] = []
        self._planned: deque[Rule] = deque()
        self._writers: set[asyncio.StreamWriter] = set()
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def plan(self, *rules: Rule) -> None:
        """What happens to the next connections, one rule for each."""
        self._planned.extend(rules)

    def wait_for_held(self, number: int) -> Sequence[Held]:
        """Returns when so many answers wait, in the order in which they came, and forgets them."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.held) >= number, _PATIENCE_S):
                raise TimeoutError(f"{len(self.held)} of {number} answers came in {_PATIENCE_S} s")
            held, self.held = self.held, []
        return held

    def cut_all(self) -> None:
        """Resets every connection there is."""
        self._in_loop(self._cut_all())

    @contextlib.contextmanager
    def stalled(self) -> Iterator[None]:
        """Meanwhile nothing passes and nobody is told: connections neither go on nor end, and new ones wait."""
        go_on = threading.Event()
        self._loop.call_soon_threadsafe(go_on.wait)
        try:
            yield
        finally:
            go_on.set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._in_loop(asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=512))
        return self

    def __exit__(self, _type: type[BaseException] | None, _: BaseException | None, _at: TracebackType | None) -> None:
        self._in_loop(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE_S)
        self._loop.close()

    def _in_loop(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE_S)

    async def _close(self) -> None:
        self._server.close()
        await self._cut_all()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _cut_all(self) -> None:
        for writer in list(self._writers):
            _reset(writer)

    async def _serve(self, caller_reads: asyncio.StreamReader, caller: asyncio.StreamWriter) -> None:
        rule = self._planned.popleft() if self._planned else self.rule()
        self._writers.add(caller)
        server: asyncio.StreamWriter | None = None
        try:
            if rule.drop:
                while await caller_reads.read(65536):
                    pass
                return
            server_reads, server = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers.add(server)
            pumps = [
                asyncio.ensure_future(self._forward(caller_reads, server, rule)),
                asyncio.ensure_future(self._return(server_reads, caller, rule)),
            ]
            done, rest = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if pumps[1] not in done and not rule.hang_up:  # half closed: the answer may still come
                await pumps[1]
            for pump in rest:
                pump.cancel()
        except (OSError, asyncio.CancelledError):
            _reset(caller)
        finally:
            for writer in filter(None, (caller, server)):
                self._writers.discard(writer)
                writer.close()

    async def _forward(self, reads: asyncio.StreamReader, server: asyncio.StreamWriter, rule: Rule) -> None:
        with contextlib.suppress(OSError):
            while data := await reads.read(65536):
                if rule.request is not None and not rule.request(data):
                    _reset(server)
                    return
                server.write(data)
                await server.drain()
                if rule.hang_up:
                    return
            server.write_eof()

    async def _return(self, reads: asyncio.StreamReader, caller: asyncio.StreamWriter, rule: Rule) -> None:
        gate, left = (Held(self._loop), rule.cut_after)
        with contextlib.suppress(OSError):
            while data := await reads.read(65536):
                if rule.hold and not gate.gate.is_set():
                    with self._changed:
                        self.held.append(gate)
                        self._changed.notify_all()
                    await gate.gate.wait()
                if rule.answer is not None and not rule.answer(data):
                    _reset(caller)
                    return
                caller.write(data if left is None else data[:left])
                await caller.drain()
                if left is not None:
                    left -= len(data)
                    if left <= 0:
                        _reset(caller)
                        return


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None and not writer.is_closing():
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
