"""Throttling: the same behaviour in memory and on a real Redis, and what happens when that Redis goes."""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
from limits import RateLimitItemPerDay, RateLimitItemPerMinute, RateLimitItemPerSecond
from redis.asyncio import Redis

from sekisho import errors
from sekisho.services import throttle as module
from sekisho.services.throttle import Lane, Throttle, ThrottleLimits, address_prefix

pytestmark = pytest.mark.anyio

PLENTY = (RateLimitItemPerMinute(1_000_000),)
GROWING = (RateLimitItemPerSecond(2, 1), RateLimitItemPerSecond(3, 3))
BURST = (RateLimitItemPerSecond(2, 1), RateLimitItemPerDay(100))


def someone() -> str:
    return f"{uuid.uuid4().hex}@example.com"


def somewhere() -> str:
    """An address whose /56 no other test uses."""
    digits = uuid.uuid4().hex
    return f"2001:db8:{digits[:4]}:{digits[4:6]}00::1"


def lane(tiers: tuple, *, forgiving: bool = True) -> tuple[Lane, ...]:
    return (Lane("account", uuid.uuid4().hex, tiers, forgiving=forgiving),)


@pytest.fixture(params=["memory", "redis"])
async def make(request, monkeypatch) -> AsyncIterator:
    """Makes throttles that count in memory, or in the shared Redis with time enough for a busy machine."""
    monkeypatch.setattr(module, "REDIS_TIMEOUT_S", 10.0)
    url = request.getfixturevalue("redis_url") if request.param == "redis" else None
    made = []

    def make(limits: ThrottleLimits | None = None) -> Throttle:
        made.append(Throttle(limits, redis_url=url))
        return made[-1]

    yield make
    for one in made:
        await one.close()


async def refused(act: Awaitable[None]) -> errors.Throttled:
    with pytest.raises(errors.Throttled) as caught:
        await act
    return caught.value


async def guess(throttle: Throttle, lanes: Sequence[Lane], *, right: bool = False) -> bool | None:
    """What a caller of login learns: whether the guess was right, or nothing."""
    try:
        await throttle.check(lanes)
        await asyncio.sleep(0)  # the hash
        await (throttle.succeeded(lanes) if right else throttle.failed(lanes))
    except errors.Throttled:
        return None
    return right


async def guess_until_refused(throttle: Throttle, lanes: Sequence[Lane]) -> errors.Throttled:
    for _ in range(20):
        try:
            await throttle.check(lanes)
            await throttle.failed(lanes)
        except errors.Throttled as error:
            return error
    raise AssertionError("never refused")


async def test_the_sixth_failure_in_half_a_minute_waits(make) -> None:
    throttle = make()
    lanes = throttle.login_lanes(account=someone(), address=somewhere(), device=None)
    for _ in range(5):
        await throttle.check(lanes)
        await throttle.failed(lanes)
    error = await refused(throttle.check(lanes))
    assert 25 <= error.retry_after_s <= 30
    assert error.detail == "account"


async def test_the_wait_grows_and_is_neither_too_short_nor_endless(make) -> None:
    throttle = make()
    lanes = lane(GROWING)
    first = (await guess_until_refused(throttle, lanes)).retry_after_s
    await asyncio.sleep(first)
    await throttle.check(lanes)  # whoever waits as told is let in
    second = (await guess_until_refused(throttle, lanes)).retry_after_s
    assert first == 1
    assert second in {2, 3}
    await asyncio.sleep(second)
    await throttle.check(lanes)


async def test_the_longest_of_several_waits_is_told(make) -> None:
    throttle = make()
    lanes = lane((RateLimitItemPerSecond(1, 10), RateLimitItemPerSecond(1, 60)))
    await throttle.failed(lanes)
    assert (await refused(throttle.check(lanes))).retry_after_s > 50


async def test_a_success_clears_the_account_and_nothing_else(make) -> None:
    throttle = make(ThrottleLimits(account=(RateLimitItemPerMinute(5),), address=(RateLimitItemPerMinute(8),)))
    lanes = throttle.login_lanes(account=someone(), address=somewhere(), device=None)
    for _ in range(4):
        await throttle.failed(lanes)
    await throttle.succeeded(lanes)
    for _ in range(4):
        await throttle.check(lanes)
        await throttle.failed(lanes)
    assert (await refused(throttle.check(lanes))).detail == "address"


async def test_a_hundred_and_one_failures_in_a_row_are_not_possible(make) -> None:
    # NIST SP 800-63B-4 §3.2.2; the shorter windows are left out, they would end long before
    throttle = make(ThrottleLimits(account=ThrottleLimits().account[-1:], address=PLENTY, overall=PLENTY))
    lanes = throttle.login_lanes(account=someone(), address=somewhere(), device=None)
    assert [await guess(throttle, lanes) for _ in range(100)] == [False] * 100
    assert 86_000 < (await refused(throttle.check(lanes))).retry_after_s <= 86_400


async def test_parallel_guesses_learn_no_more_than_the_limit(make) -> None:
    throttle = make()
    lanes = throttle.login_lanes(account=someone(), address=somewhere(), device=None)
    heard = await asyncio.gather(*(guess(throttle, lanes) for _ in range(50)))
    assert heard.count(False) == 5


async def test_the_right_guess_beyond_the_limit_looks_like_the_wrong_ones(make) -> None:
    throttle = make()
    lanes = throttle.login_lanes(account=someone(), address=somewhere(), device=None)
    await throttle.check(lanes)
    for _ in range(5):
        await throttle.failed(lanes)
    wrong = await refused(throttle.failed(lanes))
    right = await refused(throttle.succeeded(lanes))
    assert abs(wrong.retry_after_s - right.retry_after_s) <= 1
    assert wrong.detail == right.detail
    await refused(throttle.check(lanes))  # and it has cleared nothing


async def test_the_right_guess_beyond_the_limit_of_the_address_is_refused_too(make) -> None:
    # one password tried on a thousand accounts at once
    throttle = make(ThrottleLimits(address=(RateLimitItemPerMinute(3),)))
    address = somewhere()
    for _ in range(3):
        await throttle.failed(throttle.login_lanes(account=someone(), address=address, device=None))
    await refused(throttle.succeeded(throttle.login_lanes(account=someone(), address=address, device=None)))


async def test_a_right_and_a_wrong_guess_beyond_the_limit_name_the_same_wait(make) -> None:
    throttle = make()
    lanes = lane((RateLimitItemPerSecond(2, 10), RateLimitItemPerSecond(2, 60)))
    for _ in range(2):
        await throttle.failed(lanes)
    wrong = await refused(throttle.failed(lanes))
    right = await refused(throttle.succeeded(lanes))
    assert wrong.retry_after_s > 50
    assert right.retry_after_s > 50


async def test_parallel_logins_of_one_person_all_succeed(make) -> None:
    throttle = make()
    lanes = throttle.login_lanes(account=someone(), address=somewhere(), device=None)
    assert await asyncio.gather(*(guess(throttle, lanes, right=True) for _ in range(50))) == [True] * 50


async def test_one_burst_does_not_lock_the_account_for_the_day(make) -> None:
    throttle = make()
    lanes = lane(BURST)
    await asyncio.gather(*(guess(throttle, lanes) for _ in range(150)))
    for _ in range(20):  # a second has to pass, and a busy machine may have begun a second window
        try:
            await throttle.check(lanes)
        except errors.Throttled as error:
            await asyncio.sleep(min(error.retry_after_s, 1))
        else:
            return
    raise AssertionError("locked")


async def test_a_known_device_is_not_locked_out_by_guesses_elsewhere(make) -> None:
    throttle = make()
    account, address = someone(), somewhere()
    elsewhere = throttle.login_lanes(account=account, address=address, device=None)
    at_home = throttle.login_lanes(account=account, address=address, device="d1")
    for _ in range(5):
        await throttle.failed(elsewhere)
    await refused(throttle.check(elsewhere))
    await throttle.check(at_home)
    await throttle.succeeded(at_home)
    await refused(throttle.check(elsewhere))  # the owner's login gives the attacker no new guesses


async def test_a_known_device_has_its_own_limit_for_this_account(make) -> None:
    throttle = make()
    account, address = someone(), somewhere()
    stolen = throttle.login_lanes(account=account, address=address, device="d1")
    for _ in range(5):
        await throttle.failed(stolen)
    assert (await refused(throttle.check(stolen))).detail == "device"
    await throttle.check(throttle.login_lanes(account=account, address=address, device="d2"))
    await throttle.check(throttle.login_lanes(account=someone(), address=address, device="d1"))
    await throttle.check(throttle.login_lanes(account=account, address=address, device=None))


async def test_one_address_is_limited_over_all_accounts(make) -> None:
    throttle = make(ThrottleLimits(address=(RateLimitItemPerMinute(3),)))
    address = somewhere()
    for _ in range(3):
        await throttle.failed(throttle.login_lanes(account=someone(), address=address, device=None))
    error = await refused(throttle.check(throttle.login_lanes(account=someone(), address=address, device=None)))
    assert error.detail == "address"
    await throttle.check(throttle.login_lanes(account=someone(), address=somewhere(), device=None))


async def test_many_addresses_are_limited_overall(make) -> None:
    number = 3 + uuid.uuid4().int % 1000 * 1_000_000  # the amount is part of the key: a counter of this test's own
    throttle = make(ThrottleLimits(overall=(RateLimitItemPerMinute(number),)))
    await throttle._count(
        lambda counters: counters._limiter.hit(RateLimitItemPerMinute(number), "overall", cost=number)
    )
    error = await refused(throttle.check(throttle.login_lanes(account=someone(), address=somewhere(), device=None)))
    assert error.detail == "overall"
    await throttle.check(throttle.login_lanes(account=someone(), address=somewhere(), device="d1"))


async def test_password_changes_are_limited_by_user_and_address(make) -> None:
    throttle = make(ThrottleLimits(address=(RateLimitItemPerMinute(7),)))
    user_id, address = uuid.uuid4().hex, somewhere()
    lanes = throttle.password_lanes(user_id=user_id, address=address)
    for _ in range(5):
        await throttle.failed(lanes)
    assert (
        await refused(throttle.check(throttle.password_lanes(user_id=user_id, address=somewhere())))
    ).detail == "user"
    for _ in range(2):  # failed logins count for the same address
        await throttle.failed(throttle.login_lanes(account=someone(), address=address, device=None))
    other = throttle.password_lanes(user_id=uuid.uuid4().hex, address=address)
    assert (await refused(throttle.check(other))).detail == "address"


async def test_every_signup_counts(make) -> None:
    throttle = make(ThrottleLimits(signup=(RateLimitItemPerMinute(3),)))
    lanes = throttle.signup_lanes(address=somewhere())
    for _ in range(3):
        await throttle.attempt(lanes)
    assert (await refused(throttle.attempt(lanes))).detail == "signup"
    await throttle.attempt(throttle.signup_lanes(address=somewhere()))


async def test_a_refused_attempt_counts_nowhere_else(make) -> None:
    throttle = make()
    full, other = lane((RateLimitItemPerMinute(1),)), lane((RateLimitItemPerMinute(2),))
    await throttle.failed(full)
    for _ in range(5):
        await refused(throttle.attempt(other + full))
    await throttle.attempt(other)


@pytest.mark.parametrize(
    ("address", "prefix"),
    [
        ("203.0.113.7", "203.0.113.0/24"),
        ("203.0.113.255", "203.0.113.0/24"),
        ("203.0.114.7", "203.0.114.0/24"),
        ("::ffff:203.0.113.9", "203.0.113.0/24"),
        ("2001:db8:0:1200::1", "2001:db8:0:1200::/56"),
        ("2001:db8:0:12ff:ffff::1", "2001:db8:0:1200::/56"),
        ("2001:db8:0:1300::1", "2001:db8:0:1300::/56"),
        ("fe80::1%eth0", "fe80::/56"),
        ("unknown", "unknown"),
    ],
)
async def test_address_prefix(address, prefix) -> None:
    assert address_prefix(address) == prefix


@pytest.mark.parametrize(
    ("one", "neighbour", "stranger"),
    [("203.0.113.7", "203.0.113.99", "203.0.114.7"), ("2001:db8::1", "2001:db8:0:ff::2", "2001:db8:0:100::1")],
)
async def test_neighbours_share_the_lanes_of_their_prefix(one, neighbour, stranger) -> None:
    throttle = Throttle()

    def keys(address: str) -> list[str]:
        return [
            throttle.login_lanes(account="a", address=address, device=None)[1].key,
            throttle.password_lanes(user_id="a", address=address)[1].key,
            throttle.signup_lanes(address=address)[0].key,
        ]

    assert keys(one) == keys(neighbour)
    assert not set(keys(one)) & set(keys(stranger))


async def test_lanes_that_must_not_meet_do_not() -> None:
    throttle = Throttle()
    keys = [
        throttle.login_lanes(account="a", address="192.0.2.1", device="bc")[0].key,
        throttle.login_lanes(account="ab", address="192.0.2.1", device="c")[0].key,
        *(one.key for one in throttle.login_lanes(account="a", address="192.0.2.1", device=None)),
        *(one.key for one in throttle.signup_lanes(address="192.0.2.1")),
        throttle.password_lanes(user_id="a", address="192.0.2.1")[0].key,
    ]
    assert len(set(keys)) == len(keys)


# --- Redis ---------------------------------------------------------------------------------------------------------


async def test_redis_learns_no_address(redis_url) -> None:
    throttle = Throttle(redis_url=redis_url)
    account = someone()
    await throttle.failed(throttle.login_lanes(account=account, address="192.0.2.77", device=None))
    await throttle.failed(throttle.login_lanes(account=account, address="192.0.2.77", device="device-1"))
    await throttle.close()
    async with Redis.from_url(redis_url) as client:
        keys = [key.decode() async for key in client.scan_iter("sekisho:throttle:*")]
    assert len(keys) >= 8
    assert not [key for key in keys if "@" in key or account[:32] in key or "192.0.2" in key or "device-1" in key]


async def test_the_constructor_does_not_connect_nor_need_a_loop() -> None:
    throttle = await asyncio.to_thread(Throttle, redis_url="redis://127.0.0.1:1")
    await throttle.close()


@pytest.mark.parametrize(
    "query", ["foo=canary", "socket_timeout=canary", "protocol=9", "retry=3", "connection_class=canary"]
)
async def test_an_option_that_redis_does_not_have_is_refused_at_the_start(query) -> None:
    with pytest.raises(errors.StartRefused, match="SEKISHO_REDIS_URL") as caught:
        Throttle(redis_url=f"redis://127.0.0.1:1/0?{query}")
    assert "canary" not in caught.value.detail


@pytest.mark.parametrize(
    "url",
    ["redis://127.0.0.1:1/0?health_check_interval=3", "rediss://127.0.0.1:1?ssl_cert_reqs=none", "unix:///x?db=1"],
)
async def test_options_that_redis_has_are_taken(url) -> None:
    await Throttle(redis_url=url).close()


async def test_an_unreadable_url_is_refused_without_its_password() -> None:
    with pytest.raises(errors.StartRefused) as caught:
        Throttle(redis_url="redis://:canary/hunter2@127.0.0.1:6379")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert "canary" not in str(caught.value) + caught.value.detail


async def test_without_redis_it_counts_here_and_stricter_until_redis_is_back(
    private_redis, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(module, "REDIS_TIMEOUT_S", 10.0)
    monkeypatch.setattr(module, "REDIS_RETRY_S", 0.05)
    caplog.set_level(logging.DEBUG, "sekisho.throttle")
    throttle = Throttle(ThrottleLimits(address=PLENTY), redis_url=private_redis.url)

    def fresh() -> tuple[Lane, ...]:
        return throttle.login_lanes(account=someone(), address="192.0.2.1", device=None)

    async def wrong_guesses(number: int) -> int:
        lanes = fresh()
        return [await guess(throttle, lanes) for _ in range(number)].count(False)

    assert await wrong_guesses(10) == 5
    private_redis.stop()
    assert await wrong_guesses(10) == 2
    assert await guess(throttle, fresh(), right=True) is True
    private_redis.start()
    async with asyncio.timeout(20):
        while len(caplog.records) < 2:
            await throttle.check(fresh())
            await asyncio.sleep(0.01)
    assert await wrong_guesses(10) == 5
    await throttle.close()
    assert len(caplog.records) == 2, caplog.text  # one line for each change
    assert "@" not in caplog.text


async def test_a_limit_of_one_stays_one_without_redis() -> None:
    throttle = Throttle(ThrottleLimits(account=(RateLimitItemPerMinute(1),)), redis_url="redis://127.0.0.1:1")
    lanes = throttle.login_lanes(account=someone(), address=somewhere(), device=None)
    assert [await guess(throttle, lanes) for _ in range(3)] == [False, None, None]
    await throttle.close()


@contextlib.asynccontextmanager
async def something_else(answer: Callable[..., Awaitable[None]]) -> AsyncIterator[str]:
    """A server that takes connections and is no Redis. Its URL; at the end every connection of it is closed."""
    serving = []

    async def serve(reader, writer) -> None:
        serving.append(asyncio.current_task())
        await answer(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    await server.wait_closed()
    await asyncio.gather(*serving)


@pytest.mark.parametrize("close_at_once", [False, True])
async def test_a_redis_that_does_not_answer_holds_up_one_request_alone(monkeypatch, close_at_once) -> None:
    monkeypatch.setattr(module, "REDIS_RETRY_S", 3600.0)
    connections = 0
    gone = asyncio.Event()

    async def silence(_reader, _writer) -> None:
        nonlocal connections
        connections += 1
        if not close_at_once:
            await gone.wait()

    async with something_else(silence) as place:
        throttle = Throttle(redis_url=f"redis://{place}")
        lanes = throttle.login_lanes(account=someone(), address=somewhere(), device=None)
        async with asyncio.timeout(3):  # redis-py itself would wait for seconds, and try ten times
            for _ in range(20):
                await throttle.check(lanes)
        assert connections == 1
        gone.set()
        await throttle.close()


async def test_while_redis_is_down_one_asks_and_the_others_go_on(monkeypatch) -> None:
    monkeypatch.setattr(module, "REDIS_RETRY_S", 3600.0)
    throttle = Throttle(redis_url="redis://127.0.0.1:1")
    throttle._ask_redis_again_at = 0.0  # down, and the pause is over
    asked = []

    async def slow(_lanes) -> list:
        asked.append(1)
        await asyncio.sleep(0.2)
        raise TimeoutError

    monkeypatch.setattr(throttle._redis, "used_up", slow)
    await asyncio.gather(*(throttle.check(lane(PLENTY)) for _ in range(10)))
    assert len(asked) == 1
    await throttle.close()


async def test_an_answer_that_was_on_its_way_does_not_bring_redis_back(monkeypatch) -> None:
    monkeypatch.setattr(module, "REDIS_RETRY_S", 3600.0)
    throttle = Throttle(redis_url="redis://127.0.0.1:1")
    late, early = lane(PLENTY), lane(PLENTY)
    fallen = asyncio.Event()

    async def used_up(lanes) -> list:
        if lanes == early:
            raise TimeoutError
        await fallen.wait()
        return []

    monkeypatch.setattr(throttle._redis, "used_up", used_up)
    waiting = asyncio.create_task(throttle.check(late))
    await asyncio.sleep(0)
    await throttle.check(early)
    fallen.set()
    await waiting
    assert throttle._ask_redis_again_at is not None
    await throttle.close()


async def test_a_redis_that_is_slow_at_every_step_is_given_up_as_a_whole() -> None:
    async def slow(reader, writer) -> None:
        while await reader.read(1000):
            await asyncio.sleep(0.08)  # each step stays within its own time-out
            writer.write(b"+OK\r\n")

    async with something_else(slow) as place:
        throttle = Throttle(redis_url=f"redis://:secret@{place}/5")
        await throttle.check(lane(PLENTY))
        assert throttle._ask_redis_again_at is not None
        await throttle.close()


# --- memory --------------------------------------------------------------------------------------------------------


async def test_a_flood_of_new_keys_fills_no_memory_and_pushes_out_no_old_counter(monkeypatch) -> None:
    monkeypatch.setattr(module, "MEMORY_KEYS", 200)
    throttle = Throttle()
    target = throttle.login_lanes(account=someone(), address=somewhere(), device=None)
    for _ in range(5):
        await throttle.failed(target)
    counts = throttle._local._limiter.storage
    for _ in range(500):
        await throttle.failed(throttle.login_lanes(account=someone(), address=somewhere(), device=None))
        assert len(counts._counts) <= 200
    await refused(throttle.check(target))


async def test_memory_that_is_full_is_cleared_of_what_has_expired_first(monkeypatch) -> None:
    monkeypatch.setattr(module, "MEMORY_KEYS", 4)
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    memory = module._Memory()
    for key in ("a", "b"):
        await memory.incr(key, 10, 100)
    for key in ("c", "d"):
        await memory.incr(key, 100)
    now += 10
    assert [await memory.get(key) for key in "abcd"] == [0, 0, 1, 1]
    await memory.incr("e", 100)
    assert sorted(memory._counts) == ["c", "d", "e"]
