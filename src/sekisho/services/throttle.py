"""How many failed logins, password changes and sign-ups are let through, and when to come back after that.

A *lane* is one counter key with growing windows (its *tiers*). A verdict, right or wrong, is given only when the
attempt fits into every tier of every lane, so whoever guesses hears at most ``amount`` times in each window that a
guess was wrong, however many run at once. The windows of an account grow from 30 s to a day: that is the growing delay.
"""

import asyncio
import contextlib
import hashlib
import heapq
import ipaddress
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerHour, RateLimitItemPerMinute
from limits import RateLimitItemPerSecond as PerSecond
from limits.aio.storage import RedisStorage, Storage
from limits.aio.strategies import FixedWindowRateLimiter
from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig

from sekisho import errors

_log = logging.getLogger("sekisho.throttle")
_T = TypeVar("_T")

REDIS_TIMEOUT_S: Final = 0.1  # for each command; a login takes some 30 ms of hashing anyway
REDIS_RETRY_S: Final = 1.0  # while Redis is down one request in a second asks it, the others are not held up
REDIS_CONNECTIONS: Final = 16  # for this process; a storm of logins waits its turn instead of opening a socket each
MEMORY_KEYS: Final = 100_000  # about 40 MB

Tiers: TypeAlias = tuple[RateLimitItem, ...]
_UsedUp: TypeAlias = tuple[str, int]  # the lane's name, seconds until its window ends


@dataclass(frozen=True)
class ThrottleLimits:
    """The numbers: so many attempts in so long a window, shortest window first."""

    # NIST SP 800-63B-4 §3.2.2 allows 100 consecutive failures at most: the day's tier. The shorter ones make a
    # person who mistypes wait half a minute, and a program 30 minutes for each 20 guesses. For a known device alike.
    account: Tiers = (
        PerSecond(5, 30),
        RateLimitItemPerMinute(10, 5),
        RateLimitItemPerMinute(20, 30),
        RateLimitItemPerDay(100),
    )
    # An office or a mobile carrier has hundreds of people behind one prefix, and some of them mistype: 30 failures in
    # a minute is more than they make on a Monday morning. A program that tries one password on each of many accounts
    # stays under every account's tiers; from one prefix it gets 1000 guesses a day.
    address: Tiers = (RateLimitItemPerMinute(30), RateLimitItemPerMinute(150, 10), RateLimitItemPerDay(1000))
    # A botnet has an address for each guess. 50 failures a second is what a service with a million sign-ins an hour
    # sees from its honest users (one in five is mistyped); people on known devices pass even while this is used up.
    overall: Tiers = (RateLimitItemPerMinute(3000),)
    # A sign-up answers whether an address is taken (409), so this also bounds the listing of accounts. A class of 40
    # pupils signs up within ten minutes; nobody but a program needs more than 500 a day from one prefix.
    signup: Tiers = (RateLimitItemPerMinute(60, 10), RateLimitItemPerHour(200), RateLimitItemPerDay(500))


@dataclass(frozen=True)
class Lane:
    """One counter key with its windows; ``forgiving``: a success clears it."""

    name: str
    key: str
    tiers: Tiers
    forgiving: bool = False


class Throttle:
    """Counts attempts in Redis where there is one, else in this process (then each process counts by itself).

    The constructor does no I/O. Used from one event loop.
    """

    def __init__(self, limits: ThrottleLimits | None = None, *, redis_url: str | None = None) -> None:
        """``redis_url``: ``redis://``, ``rediss://`` or ``unix://``; None counts in memory."""
        self._limits = limits or ThrottleLimits()
        self._slots = asyncio.Semaphore(REDIS_CONNECTIONS)
        self._ask_redis_again_at: float | None = None  # monotonic; None: Redis answers
        self._pool = None if redis_url is None else _pool(redis_url)
        self._redis = None if self._pool is None else _in_redis(self._pool)
        # When Redis fails, each of n nodes counts alone and an attacker has n times the limit: hence half of it, which
        # people can still live with.
        self._local = _Counters(_Memory(), divisor=1 if self._redis is None else 2)

    def login_lanes(self, *, account: str, address: str, device: str | None) -> tuple[Lane, ...]:
        """The lanes of a login to ``account`` (its e-mail in canonical form) from the client's ``address``.

        ``device`` is the id of a device that has signed in to this very account before; the caller has verified that.
        It is counted apart from everything else, so that whoever guesses elsewhere cannot lock the owner out.
        """
        if device is not None:
            key = _key("login:device", account, device)
            return (Lane("device", key, self._limits.account, forgiving=True),)
        return (
            Lane("account", _key("login:account", account), self._limits.account, forgiving=True),
            self._address_lane(address),
            Lane("overall", "overall", self._limits.overall),
        )

    def password_lanes(self, *, user_id: str, address: str) -> tuple[Lane, ...]:
        """The lanes of a password change, where the current password can be guessed with a stolen access token."""
        return (
            Lane("user", _key("password:user", user_id), self._limits.account, forgiving=True),
            self._address_lane(address),
        )

    def signup_lanes(self, *, address: str) -> tuple[Lane, ...]:
        """The lane of a sign-up from the client's ``address``."""
        return (Lane("signup", _key("signup:address", address_prefix(address)), self._limits.signup),)

    def _address_lane(self, address: str) -> Lane:
        return Lane("address", _key("failed:address", address_prefix(address)), self._limits.address)

    async def check(self, lanes: Sequence[Lane]) -> None:
        """Before the work: raises ``Throttled`` if any tier of any lane is used up. Counts nothing."""
        await self._refuse(lanes, ())

    async def failed(self, lanes: Sequence[Lane]) -> None:
        """After a failure: counts it, and raises ``Throttled`` if parallel attempts have used up the limit meanwhile.

        Call it before the failure is told to anyone: a guess beyond the limit must learn nothing.
        """
        if over := await self._count(lambda counters: counters.hit(lanes)):
            await self._refuse(lanes, over)

    async def succeeded(self, lanes: Sequence[Lane]) -> None:
        """After a success, before it is told: clears the account's, user's or device's lane, and no other.

        Raises ``Throttled``, as ``failed`` would, if parallel attempts have used up the limit meanwhile: the right
        guess among a thousand sent at once must not stand out.
        """
        # It only looks: were a success to take a place, parallel logins of one person would not fit. A guess whose hash
        # ends while the counts of others are on their way to Redis slips through; that is about one for each core.
        if over := await self._count(lambda counters: counters.used_up(lanes)):
            await self._count(lambda counters: counters.hit(lanes))  # as after a failure: takes as long
            await self._refuse(lanes, over)
        await self._count(lambda counters: counters.clear([lane for lane in lanes if lane.forgiving]))

    async def attempt(self, lanes: Sequence[Lane]) -> None:
        """Where every attempt counts (sign-ups): counts this one, raises ``Throttled`` when it is over the limit."""
        await self.check(lanes)  # an attempt that one lane refuses is not counted in the others
        await self.failed(lanes)

    async def close(self) -> None:
        """Closes the connections to Redis."""
        if self._pool is not None:
            with contextlib.suppress(RedisError, OSError):  # a connection that does not even close is gone anyway
                await self._pool.disconnect()

    async def _refuse(self, lanes: Sequence[Lane], over: Sequence[_UsedUp]) -> None:
        """``over``: for when nothing is used up any more (a window has just ended)."""
        if used_up := await self._count(lambda counters: counters.used_up(lanes)) or over:
            names = ", ".join(dict.fromkeys(name for name, _ in used_up))
            raise errors.Throttled(max(wait_s for _, wait_s in used_up), names)

    async def _count(self, act: "Callable[[_Counters], Awaitable[_T]]") -> _T:
        if self._redis is not None:
            async with self._slots:
                probing = self._ask_redis_again_at is not None
                if self._may_ask_redis():
                    try:
                        result = await act(self._redis)
                    except (RedisError, OSError, TimeoutError) as error:
                        self._redis_failed(error)
                    else:
                        self._redis_answered(probing=probing)
                        return result
        return await act(self._local)

    def _may_ask_redis(self) -> bool:
        if self._ask_redis_again_at is None:
            return True
        if time.monotonic() < self._ask_redis_again_at:
            return False
        self._ask_redis_again_at = time.monotonic() + REDIS_RETRY_S  # one asks; the others need not wait for it
        return True

    def _redis_failed(self, error: Exception) -> None:
        if self._ask_redis_again_at is None:  # the class alone: the text of a connection error names the server
            _log.warning("Redis failed (%s): counting in this process, at half the limits", type(error).__name__)
        self._ask_redis_again_at = time.monotonic() + REDIS_RETRY_S

    def _redis_answered(self, *, probing: bool) -> None:
        if probing and self._ask_redis_again_at is not None:  # an answer that was on its way when it failed says little
            self._ask_redis_again_at = None
            _log.warning("Redis answers again: counting there, at the full limits")


def address_prefix(address: str) -> str:
    """The network that one person or household can move about in: /24 of an IPv4 address, /56 of an IPv6 address.

    A provider gives each customer about a /56 (RFC 6177), and every address in it is theirs to use. What is no address
    is returned as it is: clients of which no address is known share one lane.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip
    return str(ipaddress.ip_network((ip.packed, 24 if ip.version == 4 else 56), strict=False))


def _key(kind: str, *parts: str) -> str:
    """Hashed: the store of the counters learns no e-mail address, and a key is never longer than this."""
    digest = hashlib.sha256("".join(f"{len(part)}:{part}" for part in parts).encode("utf-8", "surrogatepass"))
    return f"{kind}:{digest.hexdigest()}"


def _pool(redis_url: str) -> ConnectionPool:
    try:
        pool = ConnectionPool.from_url(
            redis_url,
            max_connections=REDIS_CONNECTIONS,
            socket_timeout=REDIS_TIMEOUT_S,
            socket_connect_timeout=REDIS_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),  # Redis() itself would try ten times, waiting longer each time
            protocol=2,  # no hellos, here and below: each were a round trip within the time-out of the first command
            driver_info=None,
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )
        pool.make_connection()  # type: ignore[no-untyped-call]  # no I/O; a wrong option must not fail every login
    except (TypeError, ValueError, AttributeError, RedisError):  # their texts can hold a piece of the password
        raise errors.StartRefused("SEKISHO_REDIS_URL cannot be read, or has an option that does not exist") from None
    return pool


def _in_redis(pool: ConnectionPool) -> "_Counters":
    storage = RedisStorage(
        "async+redis://",  # without the address: the pool has it, and limits would quote it in its errors
        implementation="redispy",
        key_prefix="sekisho:throttle",
        connection_pool=pool,  # type: ignore[arg-type]  # documented by limits, missing in its annotation
    )
    return _Counters(storage, timeout_s=REDIS_TIMEOUT_S)


class _Counters:
    """The lanes, counted in one storage."""

    def __init__(self, storage: Storage, *, divisor: int = 1, timeout_s: float | None = None) -> None:
        self._limiter = FixedWindowRateLimiter(storage)
        self._divisor = divisor
        self._timeout_s = timeout_s

    async def used_up(self, lanes: Sequence[Lane]) -> list[_UsedUp]:
        return [
            await self._reset(lane, tier)
            for lane in lanes
            for tier in self._tiers(lane)
            if not await self._in_time(self._limiter.test(tier, lane.key))
        ]

    async def hit(self, lanes: Sequence[Lane]) -> list[_UsedUp]:
        """A lane is counted from its shortest window on, up to the first where the attempt does not fit.

        It gets no verdict then, so the longer windows need not hear of it: a burst of a hundred guesses at once must
        not lock the account's owner out for the day.
        """
        full = []
        for lane in lanes:
            for tier in self._tiers(lane):
                if not await self._in_time(self._limiter.hit(tier, lane.key)):
                    full.append(await self._reset(lane, tier))
                    break
        return full

    async def clear(self, lanes: Sequence[Lane]) -> None:
        for lane in lanes:
            for tier in self._tiers(lane):
                await self._in_time(self._limiter.clear(tier, lane.key))

    def _tiers(self, lane: Lane) -> Iterable[RateLimitItem]:
        for tier in lane.tiers:
            yield type(tier)(max(1, tier.amount // self._divisor), tier.multiples, tier.namespace)

    async def _reset(self, lane: Lane, tier: RateLimitItem) -> _UsedUp:
        stats = await self._in_time(self._limiter.get_window_stats(tier, lane.key))
        # One second more, because Redis rounds to whole seconds (TTL): nobody is told to come back too early.
        left_s = math.ceil(stats.reset_time - time.time()) + 1
        return lane.name, max(1, min(left_s, tier.get_expiry()))

    async def _in_time(self, answer: Awaitable[_T]) -> _T:
        # Around connecting and every step of it too, where the time-outs of redis-py begin anew each time.
        async with asyncio.timeout(self._timeout_s):
            return await answer


class _Memory(Storage):
    """Counters in this process, at most ``MEMORY_KEYS`` of them.

    Not the MemoryStorage of limits: that one does expire its entries, but only after their window, here up to a day,
    so an attacker who sends a new address with each guess fills the memory meanwhile; and it looks through all of them
    at each count (26 ms with 100,000). Here a full table is cleared of what has expired, and then of the lowest
    counts until it is half full: a flood of new keys pushes out new keys, not the counter that stands near its limit.
    """

    STORAGE_SCHEME = None  # not for storage_from_string

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[str, tuple[int, float]] = {}  # key: (count, end of its window by the monotonic clock)

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        now = time.monotonic()
        count, until = self._counts.get(key, (0, 0.0))
        if until <= now:
            count, until = 0, now + expiry
            if len(self._counts) >= MEMORY_KEYS:
                self._make_room(now)
        self._counts[key] = (count + amount, until)
        return count + amount

    async def get(self, key: str) -> int:
        count, until = self._counts.get(key, (0, 0.0))
        return count if until > time.monotonic() else 0

    async def get_expiry(self, key: str) -> float:
        _, until = self._counts.get(key, (0, 0.0))
        return time.time() + max(0.0, until - time.monotonic())

    async def clear(self, key: str) -> None:
        self._counts.pop(key, None)

    async def check(self) -> bool:
        return True

    async def reset(self) -> int | None:
        number = len(self._counts)
        self._counts.clear()
        return number

    def _make_room(self, now: float) -> None:
        live = [(count, until, key) for key, (count, until) in self._counts.items() if until > now]
        kept = heapq.nlargest(MEMORY_KEYS // 2, live)
        self._counts = {key: (count, until) for count, until, key in kept}
