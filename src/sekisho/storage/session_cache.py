"""``ports.SessionCache`` on Redis: look-ups that wait for one another's round trip travel together."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from sekisho.storage.redis import REDIS_FAILURES, redis_pool

_T = TypeVar("_T")
_TIMEOUT_S: Final = 0.1  # for each command; the database answers sooner than that
_WRITES_AT_ONCE: Final = 16
_AGAIN_S: Final = 1.0  # while Redis is down it is tried once in a second; other look-ups are not held up


class RedisSessionCache:
    """Keys are hashes of cookies, values whatever the service makes of a session. The constructor does no I/O."""

    def __init__(self, url: str, prefix: str, *, on_lost: Callable[[str], None], on_back: Callable[[], None]) -> None:
        """``on_lost`` hears why, once, and ``on_back`` once, whenever Redis goes and comes. Raises ``StartRefused``."""
        # One limit around each command, and none within: redis-py's own costs as much again.
        self._pool = redis_pool(url, timeout_s=_TIMEOUT_S, answer_timeout_s=None)
        self._redis: Redis = Redis(connection_pool=self._pool)
        self._prefix = prefix.encode("ascii")
        self._on_lost = on_lost
        self._on_back = on_back
        self._lost = False
        self._wanted: dict[bytes, list[asyncio.Future[bytes | None]]] = {}
        self._fetching: asyncio.Task[None] | None = None
        self._off_until = float("-inf")
        self._writing = asyncio.Semaphore(_WRITES_AT_ONCE)

    async def get(self, cookie_hash: bytes) -> bytes | None:
        """What was put, or None. Requests that are cancelled leave the look-up to the others that wait for it."""
        if self._is_off():
            return None
        found: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._wanted.setdefault(cookie_hash, []).append(found)
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch())
        return await found

    async def put(self, cookie_hash: bytes, entry: bytes, *, life_s: int) -> None:
        """Keeps it for ``life_s`` seconds, unless Redis refuses: it may be full, or a replica."""
        await self._write(lambda: self._redis.set(self._key(cookie_hash), entry, ex=life_s))

    async def drop(self, cookie_hash: bytes) -> None:
        """Forgets it."""
        await self._write(lambda: self._redis.delete(self._key(cookie_hash)))

    async def close(self) -> None:
        """Gives back the connections."""
        await self._pool.disconnect()

    async def _fetch(self) -> None:
        # One MGET at a time: what comes in meanwhile is the next one's, so that under load a round trip serves many.
        while self._wanted:
            wanted, self._wanted = self._wanted, {}
            entries: Sequence[bytes | None] = [None] * len(wanted)
            try:
                if not self._is_off():  # it may be since these were asked for
                    entries = await self._attempt(self._mget([*wanted])) or entries
            finally:  # whatever happens, nobody may wait for ever
                for entry, futures in zip(entries, wanted.values(), strict=True):
                    for future in futures:
                        if not future.done():  # it is, if its request was cancelled
                            future.set_result(entry)

    async def _mget(self, cookie_hashes: Sequence[bytes]) -> Sequence[bytes | None]:
        answer: Any = await self._redis.mget([self._key(one) for one in cookie_hashes])
        if not isinstance(answer, list) or len(answer) != len(cookie_hashes):
            await self._pool.disconnect()  # it is the answer to something else, and so would be all that follow
            raise RedisError("an answer of the wrong kind")
        return [entry if isinstance(entry, bytes) else None for entry in answer]

    async def _write(self, command: Callable[[], Awaitable[Any]]) -> None:
        async with self._writing:  # redis-py counts more commands than connections as a failure
            if not self._is_off():
                await self._attempt(_unless_refused(command()))

    async def _attempt(self, command: Awaitable[_T]) -> _T | None:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                result = await command
        except REDIS_FAILURES as error:
            again_s = _AGAIN_S * random.uniform(0.5, 1.5)  # noqa: S311 - nodes must not march in step
            self._off_until = asyncio.get_running_loop().time() + again_s
            if not self._lost:
                self._on_lost(type(error).__name__)  # its text may hold the address
            self._lost = True
            return None
        if self._lost:
            self._lost = False
            self._on_back()
        return result

    def _is_off(self) -> bool:
        return asyncio.get_running_loop().time() < self._off_until

    def _key(self, cookie_hash: bytes) -> bytes:
        return self._prefix + cookie_hash.hex().encode("ascii")


async def _unless_refused(command: Awaitable[Any]) -> None:
    with contextlib.suppress(ResponseError):
        await command
