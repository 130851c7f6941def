"""HTTP clients in a process of their own, as cheap as Python has them: raw asyncio connections that are kept open.

``LoadProcess`` is the handle on it; the file run by itself is that process, which reads one job a line and answers it
with one line.
"""

import asyncio
import gc
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, cast

import uvloop


@dataclass(frozen=True)
class Outcome:
    """What the clients saw in one job. ``cpu_share`` is how much of a core they took themselves."""

    latencies_ms: list[float]
    statuses: dict[str, int]
    elapsed_s: float
    cpu_share: float

    @property
    def per_second(self) -> float:
        return len(self.latencies_ms) / self.elapsed_s

    def expect(self, status: int) -> Self:
        """Figures of refusals would be worth nothing."""
        if set(self.statuses) != {str(status)}:
            raise RuntimeError(f"expected {status} alone, got {self.statuses}")
        return self


class LoadProcess:
    """The process. One job at a time."""

    def __enter__(self) -> Self:
        command = [sys.executable, __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self, port: int, clients: Sequence[Sequence[str]], **pace: float) -> Outcome:
        self.start(port, clients, **pace)
        return self.finish()

    def start(
        self, port: int, clients: Sequence[Sequence[str]], *, seconds: float | None = None, pause_s: float = 0
    ) -> None:
        """Each client has a connection and sends its requests one after the other.

        For ``seconds`` it begins again when it comes to the end; otherwise each request is sent once. ``pause_s`` is
        the mean time between an answer and the next request.
        """
        job = {"port": port, "clients": clients, "seconds": seconds, "pause_s": pause_s}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()

    def finish(self) -> Outcome:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the load process has ended")
        return Outcome(**json.loads(line))


def request(
    method: str, path: str, *, token: str | None = None, headers: Mapping[str, str] | None = None, body: object = None
) -> str:
    """A whole HTTP/1.1 request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "User-Agent: bench", "Accept: */*"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    content = "" if body is None else json.dumps(body)
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    if content:
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    return "\r\n".join([*lines, "", content])


class _Client(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._received = b""
        self._answer: asyncio.Future[str] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's own does not derive from it

    def ask(self, data: bytes) -> "asyncio.Future[str]":
        """The status of the answer, once all of it is there."""
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(data)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if separator and len(body) >= _content_length(head) and self._answer is not None:
            self._received = b""
            self._answer.set_result(head[9:12].decode())

    def connection_lost(self, _error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the server closed the connection"))


def _content_length(head: bytes) -> int:
    _, found, after = head.lower().partition(b"\r\ncontent-length:")
    return int(after.partition(b"\r\n")[0]) if found else 0


async def _run(job: dict[str, Any]) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    clients = [[text.encode() for text in texts] for texts in job["clients"]]
    connections = [(await loop.create_connection(_Client, "127.0.0.1", job["port"]))[1] for _ in clients]
    latencies_ms: list[float] = []
    statuses: Counter[str] = Counter()
    began, cpu_began = time.perf_counter(), time.process_time()

    async def drive(client: _Client, requests: list[bytes]) -> None:
        sent = 0
        while time.perf_counter() - began < job["seconds"] if job["seconds"] else sent < len(requests):
            if job["pause_s"]:
                await asyncio.sleep(random.uniform(0, 2 * job["pause_s"]))
            asked = time.perf_counter()
            status = await client.ask(requests[sent % len(requests)])
            latencies_ms.append((time.perf_counter() - asked) * 1000)
            statuses[status] += 1
            sent += 1

    await asyncio.gather(*map(drive, connections, clients))
    elapsed_s = time.perf_counter() - began
    cpu_share = (time.process_time() - cpu_began) / elapsed_s
    for connection in connections:
        connection.transport.close()
    return {"latencies_ms": latencies_ms, "statuses": statuses, "elapsed_s": elapsed_s, "cpu_share": cpu_share}


def main() -> None:
    gc.disable()  # its pauses would be taken for the server's
    # Under PYTHONUNBUFFERED, sys.stdout writes a part of a long line now and then, and forgets the rest.
    with open(sys.stdout.fileno(), "w", closefd=False) as answers:
        for line in sys.stdin:
            print(json.dumps(uvloop.run(_run(json.loads(line)))), file=answers, flush=True)


if __name__ == "__main__":
    main()
