"""A network between Redis and one who asks it, on which answers go astray: they are repeated, kept, or others'.

It knows a request and its answer by their being one piece each, which small ones are that nobody sends ahead.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeAlias

from servers.ports import free_port

Manner: TypeAlias = Callable[[bytes, bytes], bytes]
"""From a request and its true answer to what the asker gets; nothing at all if that is empty."""


def true(_request: bytes, answer: bytes) -> bytes:
    return answer


def one_behind() -> Manner:
    """The first answer comes twice, the second time to the next request; so does every one from then on."""
    answers: deque[bytes] = deque()

    def manner(_request: bytes, answer: bytes) -> bytes:
        answers.append(answer)
        return answers[0] if len(answers) == 1 else answers.popleft()

    return manner


def forgetful(every: int) -> Manner:
    """Of so many answers the last is lost."""
    number = 0

    def manner(_request: bytes, answer: bytes) -> bytes:
        nonlocal number
        number += 1
        return answer if number % every else b""

    return manner


class Astray:
    """Listens on ``port``. Each connection gets manners of its own."""

    def __init__(self, target: int, manners: Callable[[], Manner] = lambda: true) -> None:
        self.port = free_port()
        self.manners = manners
        self.requests: list[bytes] = []
        self._target = target
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Astray"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reads: asyncio.StreamReader, writes: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        manner = self.manners()
        redis_reads, redis_writes = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            with suppress(OSError):
                while request := await reads.read(65536):
                    self.requests.append(request)
                    redis_writes.write(request)
                    writes.write(manner(request, await redis_reads.read(65536)))
        except asyncio.CancelledError:
            pass  # at the end of the test; asyncio's server would tell of it
        finally:
            self._tasks.discard(task)
            redis_writes.close()
            writes.close()
