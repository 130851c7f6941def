"""Which requests need a new pair, that it is fetched once and for nobody else, and when its cookies may be written."""

import asyncio
import gc
import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.errors import FeedLost, RefreshRefused, StorageUnavailable, TryLater
from sekisho.tokens import KeySet, access
from sekisho.tokens.revoked import Revocation, RevokedSessions
from sekisho.verify import Verifier
from sekisho.verify.issuer import RefreshAtIssuer
from sekisho.verify.renewal import Bearer, Renewal, Renewals, Renewed
from servers.odd_issuer import Answer, OddIssuer

NOW = 1_800_000_000
W = 30
KEPT_S = W / 4
ISSUER, AUDIENCE = "https://auth.example.com", "shop"
ACCESS, REFRESH = "__Host-sekisho_access", "__Host-sekisho_refresh"
KEYS, OTHER_KEYS = KeySet.generate("EdDSA", now=NOW), KeySet.generate("EdDSA", now=NOW)


def token_of(key_set=KEYS, **changed):
    named = {"issuer": ISSUER, "audience": AUDIENCE, "subject": "user-1", "session_id": "session-1"}
    named |= {"issued_at": NOW, "expires_at": NOW + 900}
    return access.issue(key_set.active("sign"), **(named | changed))


GOOD = token_of()
EXPIRED = token_of(issued_at=NOW - 2000, expires_at=NOW - 1000)
NOT_HELD = {
    "expired": EXPIRED,
    "of an ended session": token_of(session_id="ended"),
    "of another key": token_of(OTHER_KEYS),
    "of another issuer": token_of(issuer="https://evil.example"),
    "garbage": "garbage",
    "empty": "",
    "not ASCII": "\xff",
}


class Clock:
    """Stands still until it is moved."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def renewals_of(clock, *, window_s=W, verifier=None):
    return Renewals(verifier or the_verifier(), window_s=window_s, monotonic=clock)


def the_verifier(kind=Verifier, issuer=ISSUER):
    revoked = RevokedSessions([Revocation("ended", NOW + 10_000)])
    return kind(issuer=issuer, audience=AUDIENCE, keys=KEYS.keyring, revoked=revoked, clock=lambda: NOW)


@pytest.fixture
def renewals(clock):
    return renewals_of(clock)


def header_of(*pairs):
    return lambda name: [value for key, value in pairs if key == name]


def cookies(*, access=None, refresh="R", more=()):
    """A request's Cookie header."""
    named = [(ACCESS, access), (REFRESH, refresh), *more]
    return ("cookie", "; ".join(f"{name}={value}" for name, value in named if value is not None))


def bearer_of(token):
    return Bearer(refresh_token=token, user_agent="test", peer="192.0.2.1", forwarded_for=[])


def pair_of(token, *, expires_in=900):
    return Renewed(
        access_token=f"access of {token}",
        expires_in=expires_in,
        refresh_token=f"next of {token}",
        refresh_expires_in=604_800,
    )


class Issuer:
    """Answers by the token, and remembers what it was asked."""

    def __init__(self):
        self.asked = []
        self.raises = None
        self.expires_in = 900

    def __call__(self, bearer):
        self.asked.append(bearer.refresh_token)
        if self.raises is not None:
            raise self.raises
        return pair_of(bearer.refresh_token, expires_in=self.expires_in)

    async def later(self, bearer):
        """The same for an event loop: all others come to their turn meanwhile."""
        for _ in range(3):
            await asyncio.sleep(0)
        return self(bearer)


@pytest.fixture
def issuer():
    return Issuer()


@pytest.fixture(params=["by thread", "by loop"])
def get(request, renewals, issuer):
    """One request's renewal, by either way."""
    if request.param == "by thread":
        return lambda token: renewals.get(bearer_of(token), issuer)
    return lambda token: asyncio.run(renewals.aget(bearer_of(token), issuer.later))


# --- which requests ------------------------------------------------------------------------------------------------


def test_a_request_that_still_holds_needs_nothing(renewals):
    assert renewals.needed("GET", header_of(cookies(access=GOOD)), peer="") is None


def test_without_an_access_cookie_it_needs_one(renewals):
    """Browsers drop the cookie when the token in it expires."""
    assert renewals.needed("GET", header_of(cookies()), peer="").refresh_token == "R"


@pytest.mark.parametrize("name", NOT_HELD)
def test_with_a_token_that_does_not_hold_it_needs_one(renewals, name):
    found = renewals.needed("GET", header_of(cookies(access=NOT_HELD[name])), peer="")
    assert found.refresh_token == "R"


def test_without_a_refresh_cookie_there_is_nothing_to_be_done(renewals):
    assert renewals.needed("GET", header_of(), peer="") is None
    assert renewals.needed("GET", header_of(cookies(access=EXPIRED, refresh=None)), peer="") is None
    assert renewals.needed("GET", header_of(("cookie", "sekisho_refresh=R")), peer="") is None  # of an http issuer


@pytest.mark.parametrize("authorization", ["Bearer x", f"Bearer {GOOD}", "Basic eA==", ""])
def test_with_an_authorization_header_cookies_do_not_count(renewals, authorization):
    headers = header_of(cookies(access=EXPIRED), ("authorization", authorization))
    assert renewals.needed("GET", headers, peer="") is None


def test_two_cookies_of_one_name_are_the_guards_to_refuse(renewals):
    for planted in ((REFRESH, "planted"), (ACCESS, GOOD)):
        assert renewals.needed("GET", header_of(cookies(access=EXPIRED, more=[planted])), peer="") is None
        lines = header_of(cookies(access=EXPIRED), ("cookie", "=".join(planted)))
        assert renewals.needed("GET", lines, peer="") is None
    twice = header_of(cookies(access=EXPIRED, more=[(REFRESH, "R"), (ACCESS, EXPIRED)]))
    assert renewals.needed("GET", twice, peer="").refresh_token == "R"  # the same value: which counts is plain


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "ANYTHING"])
@pytest.mark.parametrize(
    ("headers", "is_own"),
    [
        ([("sec-fetch-site", "same-origin")], True),
        ([("sec-fetch-site", "none")], True),
        ([("sec-fetch-site", "same-site")], False),
        ([("sec-fetch-site", "cross-site")], False),
        ([("sec-fetch-site", "cross-site"), ("origin", ISSUER)], False),
        ([("origin", ISSUER)], True),
        ([("origin", "https://evil.example")], False),
        ([("origin", "null")], False),
        ([("host", "auth.example.com")], False),
        ([], False),
    ],
)
def test_what_may_change_something_has_to_come_from_an_own_page(renewals, method, headers, is_own):
    found = renewals.needed(method, header_of(cookies(access=EXPIRED), *headers), peer="")
    assert (found is not None) == is_own
    assert renewals.needed("GET", header_of(cookies(access=EXPIRED), *headers), peer="") is not None


class Lost(Verifier):
    """One that has not heard of its issuer for too long."""

    def verify(self, token, *, when_lost=None):
        raise FeedLost


def test_a_verifier_that_cannot_say_leaves_it_to_the_guard(clock):
    renewals = renewals_of(clock, verifier=the_verifier(Lost))
    assert renewals.needed("GET", header_of(cookies(access=GOOD)), peer="") is None
    assert renewals.needed("GET", header_of(cookies()), peer="").refresh_token == "R"  # it need not be asked


def test_what_the_issuer_is_told(renewals):
    forwarded = ("x-forwarded-for", "203.0.113.5, 10.0.0.2"), ("x-forwarded-for", "10.0.0.3")
    agent = ("user-agent", "caf\xe9"), ("user-agent", "two")
    found = renewals.needed("GET", header_of(cookies(), *forwarded, *agent), peer="10.0.0.4")
    assert (found.user_agent, found.peer) == ("caf\xe9, two", "10.0.0.4")
    assert found.forwarded_for == ["203.0.113.5, 10.0.0.2", "10.0.0.3"]
    assert "R" not in repr(found).replace("Bearer", "")


AUTHORIZATIONS = st.sampled_from([[], [("authorization", "Bearer x")]])
ACCESS_COOKIES = st.lists(st.sampled_from([GOOD, EXPIRED, "garbage"]), max_size=2)
REFRESH_COOKIES = st.lists(st.sampled_from(["R", "S"]), max_size=3)
METHODS = st.sampled_from(["GET", "HEAD", "OPTIONS", "TRACE", "POST", "PUT", "PATCH", "DELETE", "get", ""])
SITES = st.lists(st.sampled_from(["same-origin", "none", "same-site", "cross-site"]), max_size=2)
ORIGINS = st.lists(st.sampled_from([ISSUER, "https://evil.example", "null", ISSUER + ":8443"]), max_size=2)


@given(data=st.data())
def test_by_the_rule(data):
    """All together, against the rule as it is told."""
    authorization, method = data.draw(AUTHORIZATIONS), data.draw(METHODS)
    ours, refreshes = data.draw(ACCESS_COOKIES), data.draw(REFRESH_COOKIES)
    sites, origins = data.draw(SITES), data.draw(ORIGINS)
    pairs = data.draw(st.permutations([(ACCESS, value) for value in ours] + [(REFRESH, value) for value in refreshes]))
    headers = [*authorization, *(("cookie", "=".join(pair)) for pair in pairs)]
    headers += [("sec-fetch-site", site) for site in sites] + [("origin", origin) for origin in origins]
    found = renewals_of(Clock()).needed(method, header_of(*headers), peer="")

    own_page = sites in (["same-origin"], ["none"]) if sites else origins == [ISSUER]
    needed = (
        not authorization
        and len(set(refreshes)) == 1
        and len(set(ours)) <= 1
        and GOOD not in ours
        and (method in {"GET", "HEAD", "OPTIONS", "TRACE"} or own_page)
    )
    assert (None if found is None else found.refresh_token) == (refreshes[0] if needed else None)


def test_the_origin_is_the_issuers_without_its_path(clock):
    renewals = renewals_of(clock, verifier=the_verifier(issuer="https://shop.example/auth"))
    assert renewals.needed("POST", header_of(cookies(), ("origin", "https://shop.example")), peer="") is not None
    assert renewals.needed("POST", header_of(cookies(), ("origin", "https://shop.example/auth")), peer="") is None


# --- once, and for nobody else -------------------------------------------------------------------------------------


def test_fifty_threads_bring_it_once(renewals):
    all_here, asked = threading.Barrier(50), []

    def refresh(bearer):
        asked.append(bearer)
        return pair_of("R")

    def one(_):
        all_here.wait(10)
        return renewals.get(bearer_of("R"), refresh)

    with ThreadPoolExecutor(50) as pool:
        given = list(pool.map(one, range(50)))
    assert len(asked) == 1
    assert given == [Renewal(pair=pair_of("R"), write_until=1000.0 + KEPT_S)] * 50


class Slow(dict):
    """Every other thread has its turn between the look and what follows from it."""

    def get(self, *args):
        found = super().get(*args)
        time.sleep(0.005)
        return found


def test_threads_cannot_come_between_the_look_and_the_note(renewals):
    renewals._known = Slow()
    all_here, asked = threading.Barrier(10), []

    def refresh(bearer):
        asked.append(bearer)
        return pair_of("R")

    def one(_):
        all_here.wait(10)
        return renewals.get(bearer_of("R"), refresh)

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(one, range(10)))
    assert len(asked) == 1


def test_fifty_requests_of_a_loop_bring_it_once(renewals, issuer):
    async def all_at_once():
        return await asyncio.gather(*(renewals.aget(bearer_of("R"), issuer.later) for _ in range(50)))

    given = asyncio.run(all_at_once())
    assert issuer.asked == ["R"]
    assert not renewals._under_way
    assert given == [Renewal(pair=pair_of("R"), write_until=1000.0 + KEPT_S)] * 50


@pytest.mark.parametrize("first", ["thread", "loop"])
def test_threads_and_loops_wait_for_one_another(renewals, first):
    """As where a process serves sync and async views."""
    entered, go_on, asked = threading.Event(), threading.Event(), []

    def refresh(bearer):
        asked.append(bearer)
        entered.set()
        assert go_on.wait(10)
        return pair_of("R")

    async def refresh_later(bearer):
        return await asyncio.to_thread(refresh, bearer)

    def by_thread():
        return renewals.get(bearer_of("R"), refresh)

    def by_loop():
        return asyncio.run(renewals.aget(bearer_of("R"), refresh_later))

    ways = [by_thread, by_loop] if first == "thread" else [by_loop, by_thread]
    with ThreadPoolExecutor(5) as pool:
        begun = pool.submit(ways[0])
        assert entered.wait(10)
        others = [pool.submit(way) for way in (ways[1], ways[0], ways[1], ways[1])]
        go_on.set()
        given = [one.result(10).pair for one in (begun, *others)]
    assert given == [pair_of("R")] * 5
    assert len(asked) == 1


def test_a_pair_is_given_to_those_who_come_within_a_quarter_of_the_window(get, clock, issuer):
    first = get("R")
    clock.now += KEPT_S
    assert get("R") == first  # and may be written no longer than the first's
    clock.now += 0.001
    again = get("R")
    assert again.write_until == clock.now + KEPT_S
    assert issuer.asked == ["R", "R"]


def test_the_window_counts_from_before_the_refresh(renewals, clock, issuer):
    """However long the issuer takes."""

    def slow(bearer):
        clock.now += 5
        return issuer(bearer)

    assert renewals.get(bearer_of("R"), slow).write_until == 1000.0 + KEPT_S


def test_a_pair_whose_access_token_has_expired_meanwhile_is_not_given_again(get, clock, issuer):
    issuer.expires_in = 2
    get("R")
    clock.now += 2
    get("R")
    assert issuer.asked == ["R"]
    clock.now += 0.001
    issuer.expires_in = 900
    assert get("R").write_until == clock.now + KEPT_S
    assert issuer.asked == ["R", "R"]
    clock.now += KEPT_S
    get("R")
    assert issuer.asked == ["R", "R"]  # it is the newer one that counts now


def test_a_refused_token_is_remembered(get, clock, issuer):
    """Whatever a page brings again and again costs the issuer one look in W/4."""
    issuer.raises = RefreshRefused("the session has ended")
    for _ in range(3):
        with pytest.raises(RefreshRefused):
            get("R")
    clock.now += KEPT_S
    with pytest.raises(RefreshRefused):
        get("R")
    assert issuer.asked == ["R"]
    clock.now += 0.001
    issuer.raises = None
    assert get("R").pair == pair_of("R")


def test_what_could_not_be_done_is_tried_again_after_a_second(get, clock, issuer):
    issuer.raises = StorageUnavailable(3)
    for step_s in (0, 0.5, 0.5):
        clock.now += step_s
        with pytest.raises(TryLater) as caught:
            get("R")
        assert caught.value.retry_after_s == 3
    assert issuer.asked == ["R"]
    clock.now += 0.001
    issuer.raises = None
    assert get("R").write_until == clock.now + KEPT_S
    assert issuer.asked == ["R", "R"]


@pytest.mark.parametrize("error", [ValueError("a secret"), OSError("a secret"), KeyError("a secret")])
def test_a_fault_of_the_refresh_says_nothing_against_the_token(get, issuer, error):
    issuer.raises = error
    with pytest.raises(TryLater) as caught:
        get("R")
    assert type(error).__name__ in caught.value.detail
    assert "a secret" not in str(caught.value.detail)


def test_an_error_reaches_all_who_wait(renewals):
    gate = threading.Event()

    def refresh(_bearer):
        assert gate.wait(10)
        raise RefreshRefused("over")

    def one(_):
        with pytest.raises(RefreshRefused):
            renewals.get(bearer_of("R"), refresh)

    with ThreadPoolExecutor(10) as pool:
        waiting = [pool.submit(one, number) for number in range(10)]
        gate.set()
        for each in waiting:
            each.result(10)

    async def all_at_once():
        async def later(_bearer):
            await asyncio.sleep(0)
            raise RefreshRefused("over")

        waits = (renewals.aget(bearer_of("S"), later) for _ in range(10))
        return await asyncio.gather(*waits, return_exceptions=True)

    assert {type(error) for error in asyncio.run(all_at_once())} == {RefreshRefused}


@contextmanager
def freed_at_the_end(renewals):
    """Who would otherwise wait for ever fails the test instead of holding it up."""
    try:
        yield
    finally:
        for _, result in renewals._known.values():
            result.cancel()


def test_a_thread_that_is_interrupted_leaves_nobody_waiting(renewals):
    entered, go_on = threading.Event(), threading.Event()

    def refresh(_bearer):
        entered.set()
        assert go_on.wait(10)
        raise KeyboardInterrupt

    with ThreadPoolExecutor(2) as pool, freed_at_the_end(renewals):
        interrupted = pool.submit(renewals.get, bearer_of("R"), refresh)
        assert entered.wait(10)
        waits = pool.submit(renewals.get, bearer_of("R"), lambda _: pytest.fail("it is under way"))
        go_on.set()
        assert isinstance(interrupted.exception(10), KeyboardInterrupt)
        assert isinstance(waits.exception(10), TryLater)


@pytest.mark.parametrize("cancelled", [[0], [1], [0, 1, 3], [4], [0, 1, 2, 3]])
def test_a_request_that_is_cancelled_leaves_the_refresh_to_the_others(renewals, cancelled):
    async def story():
        entered, go_on, asked = asyncio.Event(), asyncio.Event(), []

        async def refresh(bearer):
            asked.append(bearer.refresh_token)
            entered.set()
            await go_on.wait()
            return pair_of("R")

        requests = [asyncio.create_task(renewals.aget(bearer_of("R"), refresh)) for _ in range(5)]
        await entered.wait()
        await asyncio.sleep(0)  # all have begun to wait
        for number in cancelled:
            requests[number].cancel()
        await asyncio.sleep(0)
        go_on.set()
        given = await asyncio.gather(*requests, return_exceptions=True)
        return asked, given

    asked, given = asyncio.run(story())
    assert asked == ["R"]
    for number, one in enumerate(given):
        if number in cancelled:
            assert isinstance(one, asyncio.CancelledError)
        else:
            assert one.pair == pair_of("R")


def test_though_all_are_cancelled_the_pair_is_there_for_who_comes_next(renewals, issuer):
    """The browser has gone, and comes back with what it had."""

    async def story():
        request = asyncio.create_task(renewals.aget(bearer_of("R"), issuer.later))
        await asyncio.sleep(0)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        return await renewals.aget(bearer_of("R"), issuer.later)

    assert asyncio.run(story()).pair == pair_of("R")
    assert issuer.asked == ["R"]


@pytest.mark.parametrize("error", [RefreshRefused, TryLater])
def test_a_failure_that_nobody_waits_for_any_more_is_no_news(renewals, error):
    """Else each client that leaves early would put a traceback into the application's log."""

    async def story():
        reported = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["message"]))
        entered, go_on = asyncio.Event(), asyncio.Event()

        async def refresh(_bearer):
            entered.set()
            await go_on.wait()
            raise error

        request = asyncio.create_task(renewals.aget(bearer_of("R"), refresh))
        await entered.wait()
        request.cancel()
        await asyncio.wait([request])
        go_on.set()
        await asyncio.wait(set(renewals._under_way))
        for _ in range(3):
            await asyncio.sleep(0)
        del request
        renewals._known.clear()  # as after W/4
        gc.collect()
        return reported

    assert asyncio.run(story()) == []


def test_a_loop_that_ends_in_the_middle_leaves_nobody_waiting(renewals, clock):
    """A worker thread's own loop, say. Who comes next in time is told to come later, and later brings it anew."""

    async def never(_bearer):
        await asyncio.Event().wait()

    async def story():
        request = asyncio.create_task(renewals.aget(bearer_of("R"), never))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        request.cancel()

    asyncio.run(story())
    with ThreadPoolExecutor(1) as pool, freed_at_the_end(renewals):
        waits = pool.submit(renewals.get, bearer_of("R"), lambda _: pytest.fail("it is too early"))
        assert isinstance(waits.exception(10), TryLater)
    clock.now += 1.001
    assert renewals.get(bearer_of("R"), lambda bearer: pair_of(bearer.refresh_token)).pair == pair_of("R")


@given(order=st.permutations([(user, tab) for user in range(6) for tab in range(3)]), data=st.data())
def test_users_who_come_at_once_never_get_each_others_pair(order, data):
    """CVE-2025-67490: a cache of requests in flight, kept by less than the whole credential."""
    tokens = [f"sekisho_rt_{'A' * 60}{user}" for user in range(6)]
    finishing = data.draw(st.permutations(range(6)))
    renewals = renewals_of(Clock())

    async def story():
        gates, asked = [asyncio.Event() for _ in tokens], []

        async def refresh(bearer):
            asked.append(bearer.refresh_token)
            await gates[tokens.index(bearer.refresh_token)].wait()
            return pair_of(bearer.refresh_token)

        waiting = [
            (tokens[user], asyncio.create_task(renewals.aget(bearer_of(tokens[user]), refresh))) for user, _ in order
        ]
        for user in finishing:
            await asyncio.sleep(0)
            gates[user].set()
        for token, task in waiting:
            assert (await task).pair == pair_of(token)
        assert sorted(asked) == tokens

    asyncio.run(story())


OUTCOMES = st.sampled_from(["pair", "short pair", "later", "refused"])
STEPS = st.lists(
    st.tuples(st.sampled_from([0, 0.4, 1.001, 2.5, KEPT_S, 40]), st.sampled_from("RSTU"), OUTCOMES), max_size=30
)


@given(steps=STEPS)
def test_what_is_known_is_what_came_within_the_window(steps):
    """Against the rule as it is told: what is given, when the issuer is asked, and that nothing older is kept."""
    clock = Clock()
    renewals = renewals_of(clock)
    known = {}
    for number, (step_s, token, outcome) in enumerate(steps):
        clock.now += step_s
        asked = []

        def refresh(bearer, asked=asked, outcome=outcome, number=number):
            asked.append(bearer.refresh_token)
            if outcome == "later":
                raise TryLater
            if outcome == "refused":
                raise RefreshRefused
            return pair_of(f"{bearer.refresh_token} at {number}", expires_in=900 if outcome == "pair" else 2)

        lives_s = {"pair": KEPT_S, "short pair": 2, "later": 1, "refused": KEPT_S}
        fresh = token in known and clock.now - known[token][0] <= lives_s[known[token][1]]
        if not fresh:
            known[token] = clock.now, outcome, number
        began, expected, at = known[token]
        if expected in {"later", "refused"}:
            with pytest.raises(TryLater if expected == "later" else RefreshRefused):
                renewals.get(bearer_of(token), refresh)
        else:
            renewal = renewals.get(bearer_of(token), refresh)
            assert renewal.write_until == began + KEPT_S
            assert renewal.pair.refresh_token == f"next of {token} at {at}"
        assert asked == ([] if fresh else [token])
        held = {token: began for token, (began, _) in renewals._known.items()}
        assert held == {
            token: began for token, (began, *_) in known.items() if clock.now - began <= KEPT_S
        }  # nothing else holds them


def test_memory_is_bounded_by_the_rate_in_a_quarter_of_the_window(clock):
    """A crowd that passes through leaves nothing behind."""
    renewals = renewals_of(clock, window_s=4)
    for number in range(1000):
        clock.now += 0.1
        renewals.get(bearer_of(f"token {number}"), lambda bearer: pair_of(bearer.refresh_token))
    assert len(renewals._known) <= 11
    assert not renewals._under_way


def test_one_that_never_ends_blocks_nobody_for_longer(renewals, clock):
    """Those who wait for it do; who comes after W/4 brings the token again."""
    entered, go_on = threading.Event(), threading.Event()

    def stuck(_bearer):
        entered.set()
        assert go_on.wait(10)
        return pair_of("late")

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(renewals.get, bearer_of("R"), stuck)
        assert entered.wait(10)
        clock.now += KEPT_S + 0.001
        assert renewals.get(bearer_of("R"), lambda _: pair_of("R")).pair == pair_of("R")
        go_on.set()
        late = waiting.result(10)
    assert not renewals.may_write(late, [])
    assert renewals.get(bearer_of("R"), lambda _: pytest.fail("it is known")).pair == pair_of("R")


# --- the cookies ---------------------------------------------------------------------------------------------------

NAMES = st.sampled_from([ACCESS, REFRESH, "a", "b", "sekisho_access", "sekisho_refresh", ACCESS.lower(), ACCESS + "x"])
VALUES = st.text("abc=.%\"'é", max_size=5)


@given(lines=st.lists(st.lists(st.tuples(NAMES, VALUES), max_size=5), max_size=3), data=st.data())
def test_the_cookie_header_says_what_it_said_but_for_ours(lines, data):
    separators = st.sampled_from(["; ", ";", " ; ", ";\t", ";;"])
    said = [data.draw(separators).join("=".join(pair) for pair in pairs) for pairs in lines]
    renewals = renewals_of(Clock())
    header = renewals.cookie_header(header_of(*(("cookie", line) for line in said)), pair_of("R"))
    others = [f"{name}={value}" for pairs in lines for name, value in pairs if name not in {ACCESS, REFRESH}]
    assert header.split("; ") == [*others, f"{ACCESS}=access of R", f"{REFRESH}=next of R"]


def test_what_is_behind_needs_no_renewal(renewals):
    """The new pair is what counts there."""
    pair = Renewed(access_token=GOOD, expires_in=900, refresh_token="S", refresh_expires_in=1)
    header = renewals.cookie_header(header_of(cookies(access=EXPIRED, more=[("theme", "dark")])), pair)
    assert header == f"theme=dark; {ACCESS}={GOOD}; {REFRESH}=S"
    assert renewals.needed("GET", header_of(("cookie", header)), peer="") is None


@pytest.mark.parametrize(
    ("issuer", "prefix", "secure"),
    [(ISSUER, "__Host-sekisho_", "; Secure"), ("http://127.0.0.1:8400/auth", "sekisho_", "")],
)
def test_the_set_cookie_lines(clock, issuer, prefix, secure):
    renewals = renewals_of(clock, verifier=the_verifier(issuer=issuer))
    assert renewals.set_cookies(pair_of("R")) == [
        f"{prefix}access=access of R; Max-Age=900; Path=/{secure}; HttpOnly; SameSite=Lax",
        f"{prefix}refresh=next of R; Max-Age=604800; Path=/{secure}; HttpOnly; SameSite=Lax",
    ]


def test_they_are_written_within_a_quarter_of_the_window_alone(get, renewals, clock):
    renewal = get("R")
    assert renewals.may_write(renewal, [])
    clock.now += KEPT_S
    assert renewals.may_write(renewal, [])
    clock.now += 0.001
    assert not renewals.may_write(renewal, [])


@pytest.mark.parametrize(
    ("set_already", "free"),
    [
        ([f"{ACCESS}=; Max-Age=0; Path=/; Secure"], False),
        ([f"{REFRESH}=another; Path=/; Secure"], False),
        (["theme=dark", f" {REFRESH} =another"], False),
        ([ACCESS], False),  # the name alone, as Django has it
        (["theme", REFRESH], False),
        (["theme=dark; Path=/", "sekisho_access=x", f"{ACCESS}x=1", f"x{REFRESH}=1"], True),
        ([f"note={ACCESS}=x"], True),
        (["__Host-sekisho_session=x; Path=/", "__Host-sekisho_csrf=x", "__Host-sekisho_device=x"], True),
    ],
)
def test_what_the_application_sets_itself_is_newer(get, renewals, set_already, free):
    assert renewals.may_write(get("R"), set_already) is free


def test_a_pair_does_not_print_its_tokens(get):
    assert "of R" not in repr(get("R"))


# --- at the issuer -------------------------------------------------------------------------------------------------

PAIR = {
    "access_token": "A",
    "token_type": "Bearer",
    "expires_in": 900,
    "refresh_token": "S",
    "refresh_expires_in": 604_800,
}


@pytest.fixture
def odd():
    with OddIssuer() as odd:
        odd.introspection = Answer(body=json.dumps(PAIR).encode())
        yield odd


def at(odd, *, window_s=W):
    return RefreshAtIssuer(f"{odd.base_url}/introspect", window_s=window_s)  # which of its addresses is all the same


def test_the_issuer_is_brought_the_token_and_told_by_whom(odd):
    bearer = Bearer(
        refresh_token="R", user_agent="caf\xe9", peer="192.0.2.7", forwarded_for=["203.0.113.5, 10.0.0.2", "10.0.0.3"]
    )
    assert at(odd)(bearer) == Renewed(access_token="A", expires_in=900, refresh_token="S", refresh_expires_in=604_800)
    (request,) = odd.requests
    assert json.loads(request.body) == {"refresh_token": "R"}
    assert request.headers["x-forwarded-for"] == "203.0.113.5, 10.0.0.2, 10.0.0.3, 192.0.2.7"
    assert request.headers["user-agent"] == "caf\xe9"
    assert request.headers["content-type"] == "application/json"
    assert "cookie" not in request.headers


@pytest.mark.parametrize("user_agent", ["", "日本語", "\U0001f600", "a" * 5000])
def test_whatever_a_browser_calls_itself(odd, user_agent):
    bearer = Bearer(refresh_token="R", user_agent=user_agent, peer="", forwarded_for=[])
    assert at(odd)(bearer).refresh_token == "S"


def test_a_refused_token_is_refused(odd):
    odd.introspection = Answer(status=401, body=b"{}")
    with pytest.raises(RefreshRefused):
        at(odd)(bearer_of("R"))


LATER = {
    "503": (Answer(status=503, headers={"Retry-After": "7"}), 7),
    "503 at a date": (Answer(status=503, headers={"Retry-After": "Fri, 31 Dec 2027 23:59:59 GMT"}), 1),
    "500": (Answer(status=500), 1),
    "404": (Answer(status=404), 1),
    "403": (Answer(status=403), 1),
    "422": (Answer(status=422), 1),
    "201": (Answer(status=201, body=json.dumps(PAIR).encode()), 1),
    "a redirect": (Answer(status=302, headers={"Location": "/introspect"}), 1),
    "no JSON": (Answer(body=b"<html>"), 1),
    "nothing": (Answer(), 1),
    "a part": (Answer(body=json.dumps({**PAIR, "refresh_token": None}).encode()), 1),
    "cut off": (Answer(body=json.dumps(PAIR).encode(), missing_bytes=1), 1),
    "without end": (Answer(body=json.dumps(PAIR).encode() + b" " * 65_536), 1),
}


@pytest.mark.parametrize("name", LATER)
def test_every_other_answer_says_nothing_against_the_token(odd, name):
    """What a proxy or a misdirected address answers must not sign anybody out."""
    odd.introspection, retry_after_s = LATER[name]
    with pytest.raises(TryLater) as caught:
        at(odd)(bearer_of("sekisho_rt_secret"))
    assert caught.value.retry_after_s == retry_after_s
    assert "secret" not in str(caught.value.detail)
    assert len(odd.requests) == 1 or name == "cut off"  # which may be tried again


def test_nobody_there(odd):
    odd.close()
    with pytest.raises(TryLater) as caught:
        at(odd)(bearer_of("sekisho_rt_secret"))
    assert "secret" not in str(caught.value.detail)
    assert caught.value.__cause__ is None


def test_an_issuer_that_says_nothing_is_not_waited_for(odd):
    odd.introspection = Answer(body=json.dumps(PAIR).encode(), after_s=10)
    began = time.monotonic()
    with pytest.raises(TryLater):
        at(odd, window_s=2)(bearer_of("R"))
    assert time.monotonic() - began < 5


@contextmanager
def dripping(head, piece):
    """An issuer whose answer never ends, in small pieces."""
    gone = threading.Event()
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(head)
                try:
                    while not gone.wait(0.02):
                        connection.sendall(piece)
                except OSError:
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/refresh"
        finally:
            gone.set()
            thread.join(10)


def test_an_answer_that_never_ends_is_not_waited_for():
    """W/4 in all, for by then whoever asked has given up, however steadily it comes."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n"
    with dripping(head, b" ") as url:
        began = time.monotonic()
        with pytest.raises(TryLater):
            RefreshAtIssuer(url, window_s=4)(bearer_of("R"))
        assert 0.9 < time.monotonic() - began < 3


@pytest.mark.parametrize(
    "url",
    ["http://auth.example.com/refresh", "ftp://127.0.0.1/", "refresh", "https://u:p@auth.example.com/refresh", ""],
)
def test_addresses_over_which_no_token_goes(url):
    with pytest.raises(ValueError, match="address"):
        RefreshAtIssuer(url, window_s=W)


def test_plain_http_where_it_is_asked_for():
    RefreshAtIssuer("http://auth.internal/refresh", window_s=W, allow_http=True)
    RefreshAtIssuer("https://auth.example.com/refresh", window_s=W)


def test_a_fork_shares_no_connection_with_its_parent(odd, monkeypatch):
    refresh = at(odd)
    of_parent = refresh._of_process()
    assert refresh._of_process() is of_parent
    monkeypatch.setattr(os, "getpid", lambda: -1)  # as it is in the child, which has a copy of all this
    of_child = refresh._of_process()
    assert of_child is not of_parent
    assert refresh(bearer_of("R")).refresh_token == "S"
    for client in (of_parent, of_child):
        client.close()


def test_a_proxy_of_the_environment_is_not_asked(odd, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert at(odd)(bearer_of("R")).refresh_token == "S"


def test_a_peer_without_an_address(odd):
    """Behind a proxy on a Unix socket; the proxy has written whom it saw."""
    without = {"refresh_token": "R", "user_agent": "test", "peer": ""}
    assert at(odd)(Bearer(**without, forwarded_for=["203.0.113.5"])).refresh_token == "S"
    assert odd.requests[-1].headers["x-forwarded-for"] == "203.0.113.5"
    assert at(odd)(Bearer(**without, forwarded_for=[])).refresh_token == "S"
    assert odd.requests[-1].headers.get("x-forwarded-for", "") == ""


@pytest.mark.parametrize("text", ["a\x0bb", "a\x0cb"])
def test_what_a_server_lets_through_and_a_client_does_not_send(odd, text):
    """It decides nothing, so it must not cost anybody a page."""
    assert at(odd)(Bearer(refresh_token="R", user_agent=text, peer="", forwarded_for=[text])).refresh_token == "S"


def test_a_connection_that_the_issuer_closes_meanwhile_costs_nobody_a_page():
    """As servers do with idle ones and at a restart. To bring the token twice does no harm."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        answer = json.dumps(PAIR).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(answer)}\r\n\r\n".encode()

        def read(connection):
            request = b""
            while not request.endswith(b"}"):
                request += connection.recv(65536)

        def serve():
            for closes_at_the_second in (True, False):
                connection, _ = listener.accept()
                with connection:
                    read(connection)
                    connection.sendall(head + answer)
                    if closes_at_the_second:
                        read(connection)

        threading.Thread(target=serve, daemon=True).start()
        refresh = RefreshAtIssuer(f"http://127.0.0.1:{listener.getsockname()[1]}/refresh", window_s=W)
        for _ in range(2):
            assert refresh(bearer_of("R")).refresh_token == "S"
