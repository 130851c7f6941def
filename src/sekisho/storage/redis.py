"""``ports.Grapevine`` on Redis: a message without content, by which nodes look at the table at once."""

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig

from sekisho.errors import StartRefused

_TIMEOUT_S: Final = 1.0
_RETRY_S: Final = 1.0
_PING_EVERY_S: Final = 5.0
REDIS_FAILURES: Final = (RedisError, OSError, TimeoutError)


class RedisGrapevine:
    """One channel. The constructor does no I/O; used from one event loop."""

    def __init__(self, url: str, channel: str, *, on_lost: Callable[[str], None], on_back: Callable[[], None]) -> None:
        """``on_lost`` hears why, once, and ``on_back`` once, whenever Redis goes and comes. Raises ``StartRefused``."""
        self._channel = channel
        self._on_lost = on_lost
        self._on_back = on_back
        self._lost = False
        self._pool = redis_pool(url, timeout_s=_TIMEOUT_S, answer_timeout_s=_TIMEOUT_S)
        self._redis: Redis = Redis(connection_pool=self._pool)
        self._untold = False
        self._telling: asyncio.Task[None] | None = None

    def tell(self) -> None:
        """However slow Redis is, nobody waits for it, and what gathers meanwhile is one message."""
        self._untold = True
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell())

    async def listen(self, heard: Callable[[], None]) -> None:
        """Subscribes again, a while later, whenever the connection is lost."""
        while True:
            try:
                await self._follow(heard)
            except REDIS_FAILURES as error:
                if not self._lost:
                    self._on_lost(type(error).__name__)  # its text may hold the address
                self._lost = True
            await asyncio.sleep(_RETRY_S * random.uniform(0.5, 1.5))  # noqa: S311 - nodes must not march in step

    async def close(self) -> None:
        """Waits for the last message, a second at most."""
        if self._telling is not None:
            await self._telling
        await self._pool.disconnect()

    async def _tell(self) -> None:
        while self._untold:
            self._untold = False
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    await self._redis.publish(self._channel, b"")
            except REDIS_FAILURES:
                pass  # the listener tells of it

    async def _follow(self, heard: Callable[[], None]) -> None:
        async with self._redis.pubsub() as subscriber:
            async with asyncio.timeout(_TIMEOUT_S):
                await subscriber.subscribe(self._channel)
            patience_s = _TIMEOUT_S  # the answer to what was sent last
            while True:
                message: dict[str, Any] | None = await subscriber.get_message(timeout=patience_s)
                if message is None:
                    if patience_s == _TIMEOUT_S:
                        raise TimeoutError
                    async with asyncio.timeout(_TIMEOUT_S):
                        await subscriber.ping()
                    patience_s = _TIMEOUT_S
                    continue
                patience_s = _PING_EVERY_S
                if message["type"] in {"message", "subscribe"}:  # what was told before, nobody has heard
                    heard()
                if self._lost:
                    self._lost = False
                    self._on_back()


def redis_pool(url: str, *, timeout_s: float, answer_timeout_s: float | None) -> ConnectionPool:
    """Connections without retries of their own. No I/O yet. Raises ``StartRefused`` for a URL that cannot be read.

    ``timeout_s``: for connecting. ``answer_timeout_s``: for each piece of an answer.
    """
    try:
        pool = ConnectionPool.from_url(
            url,
            socket_timeout=answer_timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            driver_info=None,
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )
        pool.make_connection()  # type: ignore[no-untyped-call]  # no I/O
    except (TypeError, ValueError, AttributeError, RedisError):  # their texts can hold a piece of the password
        raise StartRefused("SEKISHO_REDIS_URL cannot be read, or has an option that does not exist") from None
    return pool
