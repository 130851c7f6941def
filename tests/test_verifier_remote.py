"""A verifier that follows its issuer over HTTP: what it learns, and what no fault of the issuer makes it believe.

A token that is good is never refused as bad because the issuer cannot be heard, and a view that is old or has a gap is
never taken for a fresh one.
"""

import json
import logging
import subprocess
import sys
import textwrap
import threading
import time
from types import SimpleNamespace

import pytest

from sekisho.errors import (
    FeedLost,
    FeedStarting,
    KeyRefused,
    KeysUnavailable,
    MustAsk,
    TokenError,
    TokenExpired,
    TokenKeyUnknown,
    TokenMalformed,
    TokenRevoked,
    TokenSignatureInvalid,
    TryLater,
)
from sekisho.tokens import Keyring, access, algorithms
from sekisho.tokens.keys import Key
from sekisho.verify import Verifier, feed, keyset, remote
from sekisho.verify.stream import Entries, Heartbeat, Position, grouped
from sekisho.wire import since_boot
from servers.odd_issuer import Answer, OddIssuer
from servers.ports import free_port

ISSUER, AUDIENCE = "https://auth.example.com", "shop"
CREDENTIAL = "sekisho_vc_" + "c" * 43
TTL_S = 900
SOON_S = 10.0

K1, K2 = (Key(f"key-{number}", algorithms.generate("EdDSA")) for number in (1, 2))
FORGER = Key("key-1", algorithms.generate("EdDSA"))
SECRET = Key("secret", algorithms.generate("HS256"))


# --- makers --------------------------------------------------------------------------------------------------------


class Clock:
    """The time of day and the time since boot, which pass together."""

    def __init__(self):
        self.now = time.time()
        self.boot = 5000.0

    def advance(self, seconds):
        self.now += seconds
        self.boot += seconds


@pytest.fixture
def clock(monkeypatch):
    """Time stands still but for `advance`, for verifiers and issuers of the test."""
    clock = Clock()
    for module in (remote, feed):
        monkeypatch.setattr(module, "since_boot", lambda: clock.boot)
    return clock


@pytest.fixture(autouse=True)
def impatience(monkeypatch):
    """Faults are noticed and mended in tenths of a second; `test_how_patient_it_is` says what is true outside."""
    patience = {
        feed: {
            "_SILENCE_S": 0.6,
            "_TIMEOUT": feed.httpx2.Timeout(0.6),
            "_FIRST_PAUSE_S": 0.02,
            "_LONGEST_PAUSE_S": 0.1,
        },
        keyset: {"_WITHIN_S": 0.4, "_FIRST_PAUSE_S": 0.02, "_LONGEST_PAUSE_S": 0.05, "UNKNOWN_EVERY_S": 0.3},
        remote: {"_ASK_TIMEOUT_S": 0.4, "_AGAIN_S": 0.05},
    }
    true = {(module, name): getattr(module, name) for module, values in patience.items() for name in values}
    for module, values in patience.items():
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(feed.random, "randrange", lambda _: 0)  # begins with the first address
    return true


@pytest.fixture
def lines(caplog):
    """Makes the log's lines at a level and above; no line of any test holds the credential."""
    caplog.set_level(logging.DEBUG)
    yield lambda level=logging.WARNING: [
        record.getMessage() for record in caplog.records if record.name == "sekisho.verify" and record.levelno >= level
    ]
    assert CREDENTIAL not in caplog.text
    assert not [record for record in caplog.records if record.exc_info and record.name.startswith("sekisho")]


@pytest.fixture(autouse=True)
def _look_at_all_lines(lines):
    pass


@pytest.fixture
def issuer():
    with OddIssuer() as issuer:
        issuer.publish([K1])
        yield issuer


@pytest.fixture
def other():
    """Another node of it."""
    with OddIssuer() as other:
        other.boot = "boot-of-other"
        yield other


@pytest.fixture
def follower():
    """Makes verifiers that follow these nodes; their threads end with the test."""
    made = []

    def make(*nodes, **named):
        if nodes:
            named.setdefault("revocations_url", [node.revocations_url for node in nodes])
            named.setdefault("credential", CREDENTIAL)
        if "jwks_url" not in named:
            named.setdefault("keys", Keyring([K1]))
        made.append(Verifier(**{"issuer": ISSUER, "audience": AUDIENCE, **named}))
        return made[-1]

    yield make
    for verifier in made:
        verifier.close()


def a_token(session_id="s1", *, key=K1, at=None, **changed):
    at = int(time.time() if at is None else at)
    named = {"issuer": ISSUER, "audience": AUDIENCE, "subject": "u1", "issued_at": at, "expires_at": at + TTL_S}
    return access.issue(key, session_id=session_id, **{**named, **changed})


def lapsing(*session_ids):
    return {session_id: int(time.time()) + TTL_S + 70 for session_id in session_ids}


def outcome(verifier, token, **named):
    """The subject, or the kind of refusal."""
    try:
        return verifier.verify(token, **named).sub
    except (TokenError, TryLater) as error:
        return type(error)


def wait_until(holds, what=""):
    give_up_at = time.monotonic() + SOON_S
    while not (answer := holds()):
        if time.monotonic() > give_up_at:
            pytest.fail(f"not within {SOON_S} s: {what}")
        time.sleep(0.005)
    return answer


def becomes(verifier, state):
    wait_until(lambda: verifier.state == state, f"it is {state}")


def threads_of_verifiers():
    return [thread for thread in threading.enumerate() if thread.name == "sekisho-verifier"]


# --- the constructor -----------------------------------------------------------------------------------------------


def test_how_patient_it_is(impatience):
    assert impatience == {
        (feed, "_SILENCE_S"): 2.5,
        (feed, "_TIMEOUT"): feed.httpx2.Timeout(2.0, read=2.5),
        (feed, "_FIRST_PAUSE_S"): 0.25,
        (feed, "_LONGEST_PAUSE_S"): 5.0,
        (keyset, "_WITHIN_S"): 2.0,
        (keyset, "_FIRST_PAUSE_S"): 0.25,
        (keyset, "_LONGEST_PAUSE_S"): 5.0,
        (keyset, "UNKNOWN_EVERY_S"): 30.0,
        (remote, "_ASK_TIMEOUT_S"): 2.0,
        (remote, "_AGAIN_S"): 1.0,
    }


def in_a_process(script, *args):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *args], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_who_only_checks_tokens_never_loads_the_http_client():
    script = """
        import sys, sekisho, sekisho.verify
        from sekisho.tokens import KeySet
        keys = KeySet.generate("EdDSA", now=1).keyring
        sekisho.verify.Verifier(issuer="i", audience="a", keys=keys)
        print([name for name in ("httpx2", "httpcore2", "asyncio.base_events", "ssl") if name in sys.modules])
    """
    assert "httpx2" not in in_a_process(script)


def test_the_constructor_opens_nothing_and_starts_nothing():
    script = """
        import sys, threading
        import sekisho.verify.remote  # loading opens files
        from sekisho.verify import Verifier
        seen = []
        sys.addaudithook(lambda name, args: seen.append(name) if name.startswith(("socket.", "_thread.", "open", "os."))
                         else None)
        for when_lost in ("allow", "refuse", "ask"):
            Verifier(issuer="i", audience="a", jwks_url="https://i.example.com/jwks", when_lost=when_lost,
                     revocations_url=["https://a.example.com/revocations", "https://b.example.com/revocations"],
                     credential="c")
        print(sorted(set(seen)), threading.active_count())
    """
    assert in_a_process(script) == "[] 1\n"


HERE = "http://127.0.0.1:9/revocations"


@pytest.mark.parametrize(
    "named",
    [
        {},
        {"keys": Keyring([K1]), "jwks_url": "https://i.example.com/jwks"},
        {"jwks_url": ""},
        {"jwks_url": "http://i.example.com/jwks"},
        {"jwks_url": "http://localhost.example.com/jwks"},
        {"jwks_url": "http://127.0.0.1.example.com/jwks"},
        {"jwks_url": "http://128.0.0.1/jwks"},
        {"jwks_url": "http://10.0.0.1/jwks"},
        {"jwks_url": "http://[2001:db8::1]/jwks"},
        {"jwks_url": "http://0.0.0.0/jwks"},
        {"jwks_url": "https://user@i.example.com/jwks"},
        {"jwks_url": "https://user:password@i.example.com/jwks"},
        {"jwks_url": "http://localhost@i.example.com/jwks"},
        {"jwks_url": "http://127.0.0.1\\@i.example.com/jwks"},
        {"jwks_url": "https://i.example.com/jwks#part"},
        {"jwks_url": "https://i.example.com:99999/jwks"},
        {"jwks_url": "https://i.example.com:port/jwks"},
        {"jwks_url": "https://i.example.com/jwks\n"},
        {"jwks_url": "https:///jwks"},
        {"jwks_url": "i.example.com/jwks"},
        {"jwks_url": "file:///etc/passwd"},
        {"jwks_url": "ftp://127.0.0.1/jwks"},
        {"keys": Keyring([K1]), "revocations_url": HERE},
        {"keys": Keyring([K1]), "revocations_url": HERE, "credential": ""},
        {"keys": Keyring([K1]), "revocations_url": [], "credential": "c"},
        {"keys": Keyring([K1]), "revocations_url": "", "credential": "c"},
        {"keys": Keyring([K1]), "revocations_url": [HERE, "http://i.example.com/revocations"], "credential": "c"},
        {"keys": Keyring([K1]), "revocations_url": [HERE, ""], "credential": "c"},
        {"keys": Keyring([K1]), "revocations_url": HERE, "credential": "c\n"},
        {"keys": Keyring([K1]), "revocations_url": HERE, "credential": "c c"},
        {"keys": Keyring([K1]), "revocations_url": HERE, "credential": "ü"},
        {"keys": Keyring([K1]), "when_lost": "Allow"},
        {"keys": Keyring([K1]), "when_lost": ""},
        {"keys": Keyring([K1]), "when_lost": None},
    ],
    ids=ascii,
)
def test_what_cannot_be_meant_is_refused_at_once(named):
    with pytest.raises(ValueError):
        Verifier(issuer=ISSUER, audience=AUDIENCE, **named)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.8.9.1:8000", "[::1]:80"])
def test_plain_http_is_for_this_machine(host):
    Verifier(issuer=ISSUER, audience=AUDIENCE, jwks_url=f"http://{host}/jwks")


def test_or_for_who_says_so():
    Verifier(issuer=ISSUER, audience=AUDIENCE, jwks_url="http://auth.internal/jwks", allow_http=True)
    with pytest.raises(ValueError):
        Verifier(issuer=ISSUER, audience=AUDIENCE, jwks_url="ftp://auth.internal/jwks", allow_http=True)


def test_a_shared_secret_of_the_issuer_needs_an_opt_in_and_is_told(lines):
    named = {"issuer": ISSUER, "audience": AUDIENCE, "revocations_url": HERE, "credential": "c"}
    with pytest.raises(KeyRefused):
        Verifier(keys=Keyring([SECRET]), **named)
    Verifier(keys=Keyring([SECRET]), allow_shared_secret=True, **named)
    assert ["could sign tokens itself" in line for line in lines()] == [True]
    Verifier(keys=Keyring([K1]), **named)
    assert len(lines()) == 1


# --- keys from a URL -----------------------------------------------------------------------------------------------


def test_keys_are_fetched_when_the_first_token_comes(issuer, follower):
    verifier = follower(jwks_url=issuer.jwks_url)
    assert issuer.requests == []
    assert verifier.wait(SOON_S)
    assert verifier.verify(a_token()).sub == "u1"
    with pytest.raises(TokenSignatureInvalid):
        verifier.verify(a_token(key=FORGER))
    assert len(issuer.requests) == 1
    assert (verifier.state, verifier.age_s) == (None, None)
    with pytest.raises(ValueError):
        verifier.ask(a_token())


def test_before_the_keys_are_there_no_token_is_called_bad_for_want_of_them(issuer, follower):
    issuer.jwks = Answer(status=500)
    verifier = follower(jwks_url=issuer.jwks_url)
    for token in (a_token(), a_token("s2", key=K2), a_token(key=FORGER)):
        assert outcome(verifier, token) is KeysUnavailable
    assert outcome(verifier, "garbage") is TokenMalformed
    assert not verifier.wait(0.05)
    issuer.publish([K1])
    assert verifier.wait(SOON_S)
    assert verifier.verify(a_token()).sub == "u1"


_with_key_2 = json.dumps({"keys": [K2.public_jwk()]}).encode()

BAD_KEY_SETS = {
    **{
        str(status): Answer(status=status, headers={"Location": "/introspect"}, body=_with_key_2)
        for status in (500, 404, 302, 301, 203)
    },
    "204": Answer(status=204),
    "garbage": Answer(body=b"<html>"),
    "not UTF-8": Answer(body=b'{"keys":["\xff"]}'),
    "nested": Answer(body=b'{"keys":' + b"[" * 60_000),
    "no object": Answer(body=b"[]"),
    "no keys": Answer(body=b"{}"),
    "keys of another type": Answer(body=b'{"keys":{}}'),
    "two readings": Answer(body=b'{"keys":[],"keys":[]}'),
    "no body": Answer(),
    "empty": Answer(body=b'{"keys":[]}'),
    "truncated": Answer(body=_with_key_2, missing_bytes=20),
    "late": Answer(body=_with_key_2, after_s=1.5),
    "larger than 64 KiB": Answer(body=json.dumps({"keys": [K2.public_jwk()], "x": ["y" * 1000] * 66}).encode()),
    "none that can be used": Answer(body=json.dumps({"keys": [{"kty": "OKP"}, 5, None]}).encode()),
    "a shared secret": Answer(body=json.dumps({"keys": [SECRET.private_jwk()]}).encode()),
    "two of one kid": Answer(body=json.dumps({"keys": [K2.public_jwk(), K2.public_jwk()]}).encode()),
}


@pytest.mark.parametrize("fault", BAD_KEY_SETS)
def test_a_key_set_that_is_none_takes_no_keys_away_and_gives_none(issuer, follower, lines, fault):
    issuer.jwks = BAD_KEY_SETS[fault]
    verifier = follower(jwks_url=issuer.jwks_url)
    assert outcome(verifier, a_token()) is KeysUnavailable
    wait_until(lambda: len(issuer.requests) > 1, "it tries again")
    assert outcome(verifier, a_token()) is outcome(verifier, a_token(key=K2)) is KeysUnavailable

    issuer.publish([K1])
    assert verifier.wait(SOON_S)
    assert outcome(verifier, a_token()) == "u1"
    issuer.jwks = BAD_KEY_SETS[fault]
    seen = len(issuer.requests)

    def asked_again():
        assert outcome(verifier, a_token(key=K2)) is TokenKeyUnknown
        return len(issuer.requests) > seen + 1

    wait_until(asked_again, "an unknown kid was asked for")
    assert outcome(verifier, a_token()) == "u1"
    issuer.publish([K1, K2])
    wait_until(lambda: outcome(verifier, a_token(key=K2)) == "u1", "the new key is known")
    assert {request.path for request in issuer.requests} == {"/.well-known/jwks.json"}  # no redirect was followed
    told = lines(logging.ERROR)
    assert len([line for line in told if "cannot be fetched" in line]) == len(told) == 2  # once for each time


def test_an_issuer_that_nobody_answers_at_is_no_reason_to_refuse(follower):
    verifier = follower(jwks_url=f"http://127.0.0.1:{free_port()}/jwks")
    for _ in range(3):
        with pytest.raises(KeysUnavailable) as refused:
            verifier.verify(a_token())
    assert refused.value.retry_after_s >= 1


def test_an_issuer_that_signs_with_hs256_publishes_no_keys_and_the_operator_is_told_what_to_do(issuer, follower, lines):
    issuer.publish([])
    verifier = follower(jwks_url=issuer.jwks_url)

    def detail():
        with pytest.raises(KeysUnavailable) as refused:
            verifier.verify(a_token(key=SECRET))
        return refused.value.detail

    wait_until(lambda: "SEKISHO_SIGNING_ALGORITHM=EdDSA" in detail(), "it says what to do")
    assert "sekisho keys rotate" in detail()
    assert any("SEKISHO_SIGNING_ALGORITHM" in line for line in lines())


def test_one_bad_key_does_not_drop_the_others_and_is_told(issuer, follower, lines):
    bad = {**K2.public_jwk(), "x": "AAAA"}
    issuer.jwks = Answer(body=json.dumps({"keys": [bad, K1.public_jwk(), None]}).encode())
    verifier = follower(jwks_url=issuer.jwks_url)
    assert verifier.wait(SOON_S)
    assert outcome(verifier, a_token()) == "u1"
    assert outcome(verifier, a_token(key=K2)) is TokenKeyUnknown
    assert len([line for line in lines() if "one is not used" in line]) == 2


@pytest.mark.parametrize("allow_shared_secret", [False, True])
def test_a_shared_secret_in_a_key_set_is_never_used(issuer, follower, allow_shared_secret):
    issuer.jwks = Answer(body=json.dumps({"keys": [SECRET.private_jwk(), K1.public_jwk()]}).encode())
    verifier = follower(jwks_url=issuer.jwks_url, allow_shared_secret=allow_shared_secret)
    assert verifier.wait(SOON_S)
    assert outcome(verifier, a_token()) == "u1"
    assert outcome(verifier, a_token(key=SECRET)) is TokenKeyUnknown
    assert not verifier._held.in_use[0].has_shared_secret


def test_ten_thousand_invented_kids_cost_one_fetch_at_the_most(issuer, follower, monkeypatch):
    monkeypatch.setattr(keyset, "UNKNOWN_EVERY_S", 30.0)
    pauses = []
    really = keyset.asyncio.sleep

    async def noted(seconds):
        pauses.append(seconds)
        await really(seconds)

    monkeypatch.setattr(keyset.asyncio, "sleep", noted)
    verifier = follower(jwks_url=issuer.jwks_url)
    assert verifier.wait(SOON_S)
    head, _, rest = a_token().partition(".")
    for number in range(10_000):
        kid = algorithms.b64url_encode(f'{{"alg":"EdDSA","kid":"k{number}","typ":"at+jwt"}}'.encode())
        assert outcome(verifier, f"{kid}.{rest}") is TokenKeyUnknown
    assert outcome(verifier, f"{head}.{rest}") == "u1"
    wait_until(lambda: 30.0 in pauses, "it rests after the first")
    assert len(issuer.requests) == 1
    assert verifier.refused["token_key_unknown"] == 10_000


def test_unknown_kids_that_keep_coming_cost_one_fetch_each_pause(issuer, follower):
    verifier = follower(jwks_url=issuer.jwks_url)
    assert verifier.wait(SOON_S)
    began, unknown = time.monotonic(), a_token(key=K2)

    def four_more():
        assert outcome(verifier, unknown) is TokenKeyUnknown
        return len(issuer.requests) >= 5

    wait_until(four_more)
    assert time.monotonic() - began >= 4 * 0.3 - 0.1


def test_a_new_key_is_known_after_its_first_token(issuer, follower):
    verifier = follower(jwks_url=issuer.jwks_url)
    assert verifier.wait(SOON_S)
    issuer.publish([K2, K1])
    assert (
        outcome(verifier, a_token(key=K2)) is TokenKeyUnknown
    )  # that one comes too early: the issuer waits ten minutes
    wait_until(lambda: outcome(verifier, a_token(key=K2)) == "u1", "it is known")
    assert outcome(verifier, a_token()) == "u1"


def test_a_key_that_is_retired_is_dropped_at_the_next_fetch(issuer, follower, monkeypatch):
    assert keyset._EVERY_S == 300
    monkeypatch.setattr(keyset, "_EVERY_S", 0.1)
    monkeypatch.setattr(keyset, "UNKNOWN_EVERY_S", 0.02)
    issuer.publish([K1, K2])
    verifier = follower(jwks_url=issuer.jwks_url)
    assert verifier.wait(SOON_S)
    token = a_token()
    assert outcome(verifier, token) == "u1"
    issuer.publish([K2])
    wait_until(lambda: outcome(verifier, token) is TokenKeyUnknown, "it is dropped")
    assert outcome(verifier, a_token(key=K2)) == "u1"


# --- fresh, stale, lost --------------------------------------------------------------------------------------------


def bad_tokens(clock):
    return {
        "garbage": TokenMalformed,
        a_token(key=FORGER, at=clock.now): TokenSignatureInvalid,
        a_token(key=K2, at=clock.now): TokenKeyUnknown,
        a_token(at=clock.now - TTL_S - 100): TokenExpired,
        a_token("ended", at=clock.now): TokenRevoked,
    }


def each_policy(verifier, token):
    return [outcome(verifier, token, when_lost=when_lost) for when_lost in ("allow", "refuse", "ask")]


@pytest.mark.parametrize(("when_lost", "expected"), [("allow", "u1"), ("refuse", FeedLost), ("ask", MustAsk)])
def test_starting_fresh_stale_lost(clock, follower, when_lost, expected):
    with OddIssuer(clock=lambda: clock.boot) as issuer:
        issuer.end(lapsing("ended"))
        issuer.script = lambda stream: stream.left()
        verifier = follower(issuer, clock=lambda: clock.now, when_lost=when_lost)
        kept = a_token(at=clock.now)

        def bad_ones_are_refused(*, but=()):
            for token, refusal in bad_tokens(clock).items():
                if refusal not in but:
                    assert outcome(verifier, token) is refusal

        assert (verifier.state, verifier.age_s, verifier.entries) == ("starting", float("inf"), 0)
        assert each_policy(verifier, kept) == [FeedStarting] * 3
        bad_ones_are_refused(but=[TokenRevoked])

        issuer.script = issuer.follow
        issuer.cut_all()
        assert verifier.wait(SOON_S)
        assert (verifier.state, verifier.age_s, verifier.entries) == ("fresh", 0.0, 1)
        assert each_policy(verifier, kept) == ["u1"] * 3
        bad_ones_are_refused()
        issuer.close()

    clock.advance(3.0)
    assert verifier.state == "fresh"
    clock.advance(0.01)
    assert verifier.state == "stale"
    assert verifier.age_s == pytest.approx(3.01)
    assert each_policy(verifier, kept) == each_policy(verifier, a_token(at=clock.now)) == ["u1"] * 3
    bad_ones_are_refused()
    clock.advance(26.98)
    assert verifier.state == "stale"
    assert outcome(verifier, kept) == "u1"
    clock.advance(0.02)
    assert verifier.state == "lost"
    for token in (kept, a_token(at=clock.now)):  # one that was seen before, and one that was not
        assert each_policy(verifier, token) == ["u1", FeedLost, MustAsk]
        assert outcome(verifier, token) == expected
    bad_ones_are_refused()
    clock.advance(TTL_S + 11)
    assert each_policy(verifier, kept) == [TokenExpired] * 3
    assert verifier.refused["token_expired"] > 0
    assert not {"feed_lost", "must_ask", "feed_starting"} & verifier.refused.keys()


def test_what_was_never_heard_is_lost_after_30_s(clock, follower):
    verifier = follower(clock=lambda: clock.now, revocations_url=HERE, credential=CREDENTIAL)
    token = a_token(at=clock.now)
    for seconds, state, outcomes in (
        (0, "starting", [FeedStarting] * 3),
        (30, "starting", [FeedStarting] * 3),
        (0.01, "lost", ["u1", FeedLost, MustAsk]),
        (500, "lost", ["u1", FeedLost, MustAsk]),
    ):
        clock.advance(seconds)
        assert verifier.state == state
        assert each_policy(verifier, token) == outcomes
    assert outcome(verifier, a_token(key=FORGER, at=clock.now)) is TokenSignatureInvalid
    assert not verifier.wait(0.01)


def test_a_lost_feed_that_comes_back_is_fresh_and_has_what_ended_meanwhile(clock, follower):
    with OddIssuer(clock=lambda: clock.boot) as issuer:
        verifier = follower(issuer, clock=lambda: clock.now, when_lost="refuse")
        assert verifier.wait(SOON_S)
        issuer.script = lambda stream: stream.begin(status=503)
        issuer.cut_all()
        wait_until(lambda: len(issuer.streams_asked_for) > 1, "it was refused")
        clock.advance(31)
        assert outcome(verifier, a_token(at=clock.now)) is FeedLost
        issuer.end(lapsing("s1"))
        issuer.script = issuer.follow
        becomes(verifier, "fresh")
        assert outcome(verifier, a_token(at=clock.now)) is TokenRevoked
        assert outcome(verifier, a_token("s2", at=clock.now)) == "u1"


def test_a_system_that_slept_looks_before_it_accepts(clock, issuer, follower):
    """Its clocks have gone on, and nothing was heard meanwhile."""
    verifier = follower(issuer, clock=lambda: clock.now, when_lost="refuse")
    assert verifier.wait(SOON_S)
    assert outcome(verifier, a_token(at=clock.now)) == "u1"
    issuer.close()
    clock.advance(60)
    assert outcome(verifier, a_token(at=clock.now)) is FeedLost


def test_a_clock_of_day_that_steps_does_not_make_the_view_younger(clock, issuer, follower):
    verifier = follower(issuer, clock=lambda: clock.now, when_lost="refuse")
    assert verifier.wait(SOON_S)
    issuer.close()
    clock.advance(31)
    clock.now -= 40
    assert outcome(verifier, a_token(at=clock.now)) is FeedLost


def test_a_clock_that_was_ahead_for_a_while_loses_no_ended_session(follower, lines):
    """Put right, it makes tokens good again whose sessions were forgotten."""
    ahead = SimpleNamespace(s=0)
    with OddIssuer() as issuer:
        issuer.end(lapsing("s1"))
        verifier = follower(issuer, clock=lambda: time.time() + ahead.s)
        assert verifier.wait(SOON_S)
        token = a_token()
        assert outcome(verifier, token) is TokenRevoked
        ahead.s = 3000
        verifier._held.tidy()
        assert verifier.entries == 0
        assert outcome(verifier, token) is TokenExpired
        ahead.s = 0
        wait_until(lambda: outcome(verifier, token) is TokenRevoked, "it is known again")
        wait_until(lambda: issuer.open_streams == 1 and verifier.state == "fresh", "and followed")
        assert verifier.reconnects == 1
        assert len([line for line in lines() if "clock was put back" in line]) == 1


# --- asking --------------------------------------------------------------------------------------------------------


@pytest.fixture
def asks(clock, follower):
    """Makes a verifier that has lost its feed and asks about each token."""

    def make(*nodes):
        for node in nodes:
            node.script = lambda stream: stream.begin(status=503)
        verifier = follower(*nodes, clock=lambda: clock.now, when_lost="ask")
        assert verifier.state == "starting"
        clock.advance(31)
        assert outcome(verifier, a_token(at=clock.now)) is MustAsk
        return verifier

    return make


def answer_to_question(verifier, token):
    try:
        return verifier.ask(token).sub
    except (TokenError, TryLater) as error:
        return type(error)


def test_the_issuer_is_asked_with_the_credential_and_the_token_in_the_body(clock, issuer, asks):
    verifier, token = asks(issuer), a_token(at=clock.now)
    assert verifier.ask(token).sub == "u1"
    [request] = issuer.asked_for("/introspect")
    assert request.headers["authorization"] == f"Bearer {CREDENTIAL}"
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert request.body == f"token={token}".encode()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(body=b'{"active":true,"sub":"u1"}'), "u1"),
        (Answer(body=b'{"active":false}'), TokenRevoked),
        (Answer(status=500, body=b'{"active":true}'), FeedLost),
        (Answer(status=401, body=b'{"active":false}'), FeedLost),
        (Answer(status=302, headers={"Location": "/elsewhere"}, body=b'{"active":true}'), FeedLost),
        (Answer(body=b'{"active":true}', after_s=1), FeedLost),
        (Answer(body=b'{"active":true}', missing_bytes=1), FeedLost),
        (Answer(body=b""), FeedLost),
        (Answer(body=b"true"), FeedLost),
        (Answer(body=b"{}"), FeedLost),
        (Answer(body=b'{"active":1}'), FeedLost),
        (Answer(body=b'{"active":"true"}'), FeedLost),
        (Answer(body=b'{"active":null}'), FeedLost),
        (Answer(body=b'{"active":true'), FeedLost),
        (Answer(body=b'{"x":"\xff","active":"\xff"}'), FeedLost),
        (Answer(body=b'{"x":' + b"[" * 100_000), FeedLost),
    ],
    ids=lambda value: ascii(value)[:70],
)
def test_only_what_the_issuer_says_counts(clock, issuer, asks, answer, expected):
    verifier = asks(issuer)
    issuer.introspection = answer
    assert answer_to_question(verifier, a_token(at=clock.now)) == expected
    assert issuer.asked_for("/elsewhere") == []


def test_a_node_that_does_not_answer_is_no_reason_not_to_ask_the_next(clock, issuer, other, asks):
    verifier = asks(issuer, other)
    issuer.introspection = Answer(status=500)
    other.introspection = Answer(body=b'{"active":false}')
    assert answer_to_question(verifier, a_token(at=clock.now)) is TokenRevoked
    issuer.close()
    assert answer_to_question(verifier, a_token(at=clock.now)) is TokenRevoked
    other.close()
    assert answer_to_question(verifier, a_token(at=clock.now)) is FeedLost


def test_an_issuer_that_could_not_be_asked_is_left_alone_for_a_second(clock, issuer, asks):
    """Else each request would hold a thread for as long as the issuer hangs."""
    verifier = asks(issuer)
    issuer.introspection = Answer(status=500)
    for _ in range(5):
        assert answer_to_question(verifier, a_token(at=clock.now)) is FeedLost
    assert len(issuer.asked_for("/introspect")) == 1
    issuer.introspection = Answer(body=b'{"active":true}')
    clock.advance(1.1)
    assert answer_to_question(verifier, a_token(at=clock.now)) == "u1"


def test_an_answer_without_an_end_is_not_read_on(clock, issuer, asks):
    verifier = asks(issuer)
    issuer.introspection = Answer(body=b'{"active":true}' + b" " * 70_000)
    assert answer_to_question(verifier, a_token(at=clock.now)) is FeedLost


def test_a_bad_token_is_refused_and_nobody_asked(clock, issuer, asks):
    verifier = asks(issuer)
    for token in (a_token(key=FORGER, at=clock.now), a_token(at=clock.now - 2000), "garbage"):
        assert issubclass(answer_to_question(verifier, token), TokenError)
    assert issuer.asked_for("/introspect") == []


# --- following -----------------------------------------------------------------------------------------------------


def test_what_ends_is_refused_and_nothing_else(issuer, follower, lines):
    issuer.end(lapsing("before"))
    verifier = follower(issuer)
    assert verifier.wait(SOON_S)
    assert outcome(verifier, a_token("before")) is TokenRevoked
    token, witness = a_token("s1"), a_token("s2")
    assert outcome(verifier, token) == outcome(verifier, witness) == "u1"
    issuer.end(lapsing("s1", "s3"))
    wait_until(lambda: outcome(verifier, token) is TokenRevoked, "it is refused")
    assert outcome(verifier, a_token("s3")) is TokenRevoked
    assert outcome(verifier, witness) == "u1"
    assert verifier.entries == 3
    assert verifier.reconnects == 0
    assert verifier.refused["token_revoked"] >= 3
    [request] = issuer.requests
    assert request.headers["authorization"] == f"Bearer {CREDENTIAL}"
    assert request.headers["accept"] == "text/event-stream"
    assert "last-event-id" not in request.headers
    assert [line for line in lines() if "cannot" in line] == []


def test_one_thread_serves_all_who_ask(issuer, follower):
    verifier = follower(issuer, jwks_url=issuer.jwks_url)
    askers = [threading.Thread(target=outcome, args=(verifier, a_token())) for _ in range(20)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert verifier.wait(SOON_S)
    assert len(threads_of_verifiers()) == 1
    assert len(issuer.streams_asked_for) == 1


def test_it_resumes_where_it_was_cut(issuer, follower):
    issuer.end(lapsing("s1"))
    issuer.end(lapsing("s2"))
    verifier = follower(issuer)
    assert verifier.wait(SOON_S)
    issuer.end(lapsing("s3"))
    wait_until(lambda: outcome(verifier, a_token("s3")) is TokenRevoked)
    issuer.cut_all()
    issuer.end(lapsing("s4"))
    wait_until(lambda: outcome(verifier, a_token("s4")) is TokenRevoked, "it goes on")
    assert issuer.streams_asked_for[1].headers["last-event-id"] == "boot-1:3"
    assert verifier.reconnects == 1
    assert verifier.entries == 4


def test_after_a_restart_of_the_issuer_it_takes_a_snapshot(issuer, follower):
    issuer.end(lapsing("s1"))
    verifier = follower(issuer)
    assert verifier.wait(SOON_S)
    issuer.restart()
    issuer.end(lapsing("s2"))
    wait_until(lambda: outcome(verifier, a_token("s2")) is TokenRevoked, "it goes on")
    assert issuer.streams_asked_for[1].headers["last-event-id"] == "boot-1:1"
    issuer.cut_all()
    wait_until(lambda: len(issuer.streams_asked_for) == 3)
    assert issuer.streams_asked_for[2].headers["last-event-id"] == "boot-1+:1"
    assert outcome(verifier, a_token("s1")) is TokenRevoked


def test_events_of_a_later_version_and_comments_are_passed_over(issuer, follower):
    async def newer(stream):
        await stream.begin()
        await stream.send(": hello\n\nevent: policy\ndata: {\n\nretry: 5\n\n")
        await stream.event("snapshot", Entries(grouped(lapsing("s1")).sessions), Position("b", 7))
        await stream.send("data: a message\n\n")
        for _ in range(20):
            await stream.beat(Position("b", 7))
        await stream.left()

    issuer.plan(newer)
    verifier = follower(issuer)
    assert verifier.wait(SOON_S)
    assert outcome(verifier, a_token()) is TokenRevoked
    assert verifier.reconnects == 0


def test_a_withdrawn_key_stays_refused_though_the_key_set_brings_it_again(issuer, follower):
    issuer.publish([K1, K2])
    verifier = follower(issuer, jwks_url=issuer.jwks_url)
    assert verifier.wait(SOON_S)
    token = a_token()
    assert outcome(verifier, token) == outcome(verifier, a_token(key=K2)) == "u1"
    issuer.end({}, keys=["key-1"])
    wait_until(lambda: outcome(verifier, token) is TokenRevoked, "the key is withdrawn")
    third = Key("key-3", algorithms.generate("EdDSA"))
    issuer.publish([K1, K2, third])
    wait_until(lambda: outcome(verifier, a_token(key=third)) == "u1", "the new key set is there")
    assert outcome(verifier, token) is outcome(verifier, a_token("s9")) is TokenRevoked
    # And for the life of the process: also when the issuer forgot it, and after the thread began anew.
    issuer.log.clear()
    issuer.restart()
    verifier.close()
    assert verifier.wait(SOON_S)
    assert outcome(verifier, token) is TokenRevoked
    assert outcome(verifier, a_token(key=K2)) == "u1"


def test_a_key_that_a_snapshot_names_is_refused_before_the_keys_are_even_there(issuer, follower):
    good = issuer.jwks
    issuer.jwks = Answer(status=500)
    issuer.end({}, keys=["key-1"])
    verifier = follower(issuer, jwks_url=issuer.jwks_url)
    becomes(verifier, "fresh")
    assert not verifier.wait(0.01)
    issuer.jwks = good
    assert verifier.wait(SOON_S)
    assert outcome(verifier, a_token()) is TokenRevoked


# --- a long snapshot -----------------------------------------------------------------------------------------------


def in_pieces(session_ids):
    """A stream that begins with all these, in pieces."""
    at, piece = Position("big", 0), 5000
    lapses_at = int(time.time()) + TTL_S

    async def script(stream):
        await stream.begin()
        for first in range(0, len(session_ids), piece):
            ids = session_ids[first : first + piece]
            is_last = first + piece >= len(session_ids)
            by_time = {session_id: lapses_at + number % 60 for number, session_id in enumerate(ids)}
            await stream.event("snapshot", grouped(by_time, more=not is_last), at if is_last else None)
        await stream.beat(at)
        await stream.left()

    return script


def test_twenty_thousand_sessions_in_pieces_are_all_refused(issuer, follower):
    sessions = [f"{number:036x}" for number in range(20_000)]
    issuer.plan(in_pieces(sessions))
    verifier = follower(issuer)
    assert verifier.wait(SOON_S)
    _, _, ended, packed = verifier._held.in_use
    assert all(session_id in ended or session_id in packed for session_id in sessions)
    assert len(packed) >= 15_000
    for number in range(0, 20_000, 997):
        assert outcome(verifier, a_token(sessions[number])) is TokenRevoked
    assert outcome(verifier, a_token(f"{20_000:036x}")) == "u1"
    assert verifier.entries == 20_000


def test_a_token_that_was_seen_is_refused_when_its_session_comes_packed(issuer, follower):
    verifier = follower(issuer)
    assert verifier.wait(SOON_S)
    sessions = [f"{number:036x}" for number in range(12_000)]
    tokens = [a_token(session_id) for session_id in sessions[::1000]]
    assert [outcome(verifier, token) for token in tokens * 2] == ["u1"] * 24
    issuer.plan(in_pieces(sessions))
    issuer.cut_all()
    wait_until(lambda: verifier.entries >= 12_000, "the snapshot is there")
    assert {outcome(verifier, token) for token in tokens} == {TokenRevoked}
    _, _, ended, packed = verifier._held.in_use
    assert not any(session_id in ended for session_id in sessions[:10_000:1000])
    assert sessions[0] in packed


def test_a_snapshot_in_which_sessions_lapse_late_or_have_lapsed_is_taken_too(issuer, follower):
    now = int(time.time())

    async def odd_times(stream):
        await stream.begin()
        await stream.event("snapshot", grouped({"far": now + 86_400, "old": now - 5, "s1": now + 900}, more=True))
        await stream.event("snapshot", grouped({"s2": now + 86_400}), Position("b", 0))
        await stream.beat(Position("b", 0))
        await stream.left()

    issuer.plan(odd_times)
    verifier = follower(issuer)
    assert verifier.wait(SOON_S)
    for session_id, expected in (("far", TokenRevoked), ("s1", TokenRevoked), ("s2", TokenRevoked), ("s3", "u1")):
        assert outcome(verifier, a_token(session_id)) == expected


# --- faults of the protocol ----------------------------------------------------------------------------------------

AT = Position("b", 7)
NO_ENTRIES = Entries()


async def _answers(stream, status):
    """With all that would be needed."""
    await stream.begin(status=status, more="Location: /elsewhere\r\n")
    await stream.send(SNAPSHOT + BEAT)
    await stream.left()


async def _says(stream, *texts):
    await stream.begin()
    for text in texts:
        await stream.send(text)
    await stream.left()


async def _says_and_ends(stream, *texts):
    await stream.begin()
    for text in texts:
        await stream.send(text)


def _text(name, data, at=None):
    return feed.stream.event(name, data, at)


SNAPSHOT = _text("snapshot", NO_ENTRIES, AT)
PIECE = _text("snapshot", Entries(more=True))
BEAT = _text("heartbeat", Heartbeat(0, 0), AT)
BEAT_WITHOUT_ID = _text("heartbeat", Heartbeat(0, 0))


async def _is_not_http(stream):
    await stream.send("SSH-2.0-OpenSSH_9.9\r\n\r\n")
    await stream.left()


async def _sends(stream, content_type):
    await stream.begin(content_type=content_type)
    await stream.send(SNAPSHOT + BEAT)
    await stream.left()


async def _is_cut_in_a_chunk(stream):
    await stream.begin(more="Transfer-Encoding: chunked\r\n")
    await stream.send(b"FFFF\r\n" + SNAPSHOT + BEAT[:20])


async def _sends_without_end(stream):
    await stream.begin()
    await stream.send("event: snapshot\ndata: ")
    while True:
        await stream.send(b"x" * 100_000)


def _for_ever(text, before=b""):
    async def script(stream):
        await stream.begin()
        await stream.send(before)
        while True:
            await stream.send(text)
            await feed.asyncio.sleep(0.05)

    return script


# What the first node does, before a word of which anything could be known.
BEFORE_THE_VIEW = {
    "401": lambda stream: _answers(stream, 401),
    "302": lambda stream: _answers(stream, 302),
    "500": lambda stream: _answers(stream, 500),
    "203": lambda stream: _answers(stream, 203),
    "204": lambda stream: stream.begin(status=204),
    "it hangs up": lambda stream: stream.send(b""),
    "it is silent": lambda stream: stream.left(),
    "it is no HTTP": _is_not_http,
    "wrong type": lambda stream: _sends(stream, "application/json"),
    "no type": lambda stream: _sends(stream, ""),
    "ends at once": _says_and_ends,
    "half-open": _says,
    "comments alone": _for_ever(b": I live\n\n"),
    "events that nobody knows": _for_ever(b"event: weather\ndata: fine\n\n"),
    "a snapshot and then comments": _for_ever(b": I live\n\n", before=SNAPSHOT),
    "a snapshot without a heartbeat": lambda stream: _says(stream, SNAPSHOT),
    "a snapshot, and ends": lambda stream: _says_and_ends(stream, SNAPSHOT),
    "a snapshot without id": lambda stream: _says(stream, _text("snapshot", NO_ENTRIES), BEAT),
    "a snapshot that ends in the middle": lambda stream: _says_and_ends(stream, PIECE, PIECE),
    "a snapshot that stops in the middle": lambda stream: _says(stream, PIECE, PIECE),
    "a heartbeat in the middle of a snapshot": lambda stream: _says(stream, PIECE, BEAT),
    "a heartbeat in the middle, without id": lambda stream: _says(stream, PIECE, BEAT_WITHOUT_ID),
    "a heartbeat alone": lambda stream: _says(stream, BEAT),
    "a heartbeat alone, without id": lambda stream: _says(stream, BEAT_WITHOUT_ID),
    "a heartbeat of another event": lambda stream: _says(
        stream, SNAPSHOT, _text("heartbeat", Heartbeat(0, 0), Position("b", 8))
    ),
    "a heartbeat of another process": lambda stream: _says(
        stream, SNAPSHOT, _text("heartbeat", Heartbeat(0, 0), Position("c", 7))
    ),
    "revoked before the snapshot": lambda stream: _says(
        stream, _text("revoked", NO_ENTRIES, Position("b", 1)), SNAPSHOT, BEAT
    ),
    "revoked in the middle of a snapshot": lambda stream: _says(
        stream, PIECE, _text("revoked", NO_ENTRIES, Position("b", 8)), SNAPSHOT, BEAT
    ),
    "garbage": lambda stream: _says(stream, b"event: snapshot\nid: b:7\ndata: {\n\n", BEAT),
    "no time": lambda stream: _says(stream, b'event: snapshot\nid: b:7\ndata: {"sessions":{"x":["s"]}}\n\n', BEAT),
    "not UTF-8": lambda stream: _says(stream, b'event: snapshot\nid: b:7\ndata: {"keys":"\xff"}\n\n', BEAT),
    "nested": lambda stream: _says(stream, b"event: snapshot\nid: b:7\ndata: " + b"[" * 100_000 + b"\n\n", BEAT),
    "a heartbeat that is garbage": lambda stream: _says(stream, SNAPSHOT, b"event: heartbeat\nid: b:7\ndata: 1\n\n"),
    "the node never saw the table": lambda stream: _says(stream, SNAPSHOT, _text("heartbeat", Heartbeat(None, 0), AT)),
    "an event without end": _sends_without_end,
    "cut in a chunk": _is_cut_in_a_chunk,
}


@pytest.mark.parametrize("fault", BEFORE_THE_VIEW)
def test_a_node_that_gives_no_whole_view_is_left_for_the_next(issuer, other, follower, lines, fault):
    issuer.script = BEFORE_THE_VIEW[fault]
    gate = threading.Event()

    async def waits(stream):
        while not gate.is_set():
            await feed.asyncio.sleep(0.01)
        await other.follow(stream)

    other.plan(waits)
    other.end(lapsing("s1"))
    verifier = follower(issuer, other)
    try:
        assert outcome(verifier, a_token("s2")) is FeedStarting
        wait_until(lambda: other.requests, "it asks the next")
        # All that the first has said is over: nothing of it counts.
        assert verifier.state == "starting"
        assert verifier.age_s == float("inf")
        assert outcome(verifier, a_token("s2")) is FeedStarting
    finally:
        gate.set()
    assert verifier.wait(SOON_S)
    assert outcome(verifier, a_token("s1")) is TokenRevoked
    assert outcome(verifier, a_token("s2")) == "u1"
    assert len(issuer.requests) == len(other.requests) == 1
    assert "boot" not in other.requests[0].headers.get("last-event-id", "")
    assert verifier.reconnects == 1
    told = [line for line in lines() if "access tokens refused" not in line]
    assert len(told) == 1
    assert told[0].startswith(f"the feed at {issuer.revocations_url} cannot be followed")
    wait_until(lambda: any("followed again" in line for line in lines(logging.INFO)), "it says that it is well again")


AFTER_THE_VIEW = {
    "a number is missing": _text("revoked", NO_ENTRIES, Position("b", 9)),
    "a number comes twice": _text("revoked", NO_ENTRIES, AT),
    "a number of before": _text("revoked", NO_ENTRIES, Position("b", 6)),
    "another process": _text("revoked", NO_ENTRIES, Position("c", 8)),
    "no number": b"event: revoked\nid\ndata: {}\n\n",
    "a number that is none": b"event: revoked\nid: b:eight\ndata: {}\n\n",
    "garbage": b"event: revoked\nid: b:8\ndata: {\n\n",
    "no time": b'event: revoked\nid: b:8\ndata: {"sessions":{"0":["s"]}}\n\n',
    "a heartbeat of an event that never came": _text("heartbeat", Heartbeat(0, 0), Position("b", 8)),
}


@pytest.mark.parametrize("fault", AFTER_THE_VIEW)
def test_a_gap_is_never_passed_over(issuer, other, follower, lines, fault):
    go = threading.Event()

    async def breaks(stream):
        await stream.begin()
        await stream.send(SNAPSHOT)
        await stream.beat(AT)
        while not go.is_set():
            await feed.asyncio.sleep(0.01)
            await stream.beat(AT)
        await stream.send(AFTER_THE_VIEW[fault])
        while True:  # and goes on as if nothing had been: without an id of its own an event has that of the last
            await stream.beat(None)
            await feed.asyncio.sleep(0.01)

    issuer.script = breaks
    other.end(lapsing("s1"))
    verifier = follower(issuer, other)
    assert verifier.wait(SOON_S)
    assert outcome(verifier, a_token("s1")) == "u1"  # the event that would have told it is missing
    go.set()
    wait_until(lambda: outcome(verifier, a_token("s1")) is TokenRevoked, "the next node tells")
    assert "last-event-id" not in other.requests[0].headers  # from the beginning
    assert len(issuer.requests) == len(other.requests) == verifier.reconnects == 1
    assert len([line for line in lines() if "cannot be followed" in line]) == 1


def test_a_heartbeat_in_the_middle_of_a_later_snapshot_proves_nothing(issuer, other, follower):
    """Though it has the id of the last event that was known before."""
    issuer.boot = "b"
    other.script = lambda stream: stream.begin(status=503)
    verifier = follower(issuer, other)
    assert verifier.wait(SOON_S)
    beaten = threading.Event()

    async def stops_in_the_middle(stream):
        await stream.begin()
        await stream.send(PIECE)
        await stream.beat(Position("b", 0))
        await stream.left()
        beaten.set()

    issuer.script = stops_in_the_middle
    issuer.cut_all()
    began = time.monotonic()
    wait_until(beaten.is_set, "it leaves")
    assert time.monotonic() - began < 0.5  # for what was said, not for the silence
    issuer.script = issuer.follow
    issuer.end(lapsing("s1"))
    wait_until(lambda: outcome(verifier, a_token()) is TokenRevoked, "it goes on")
    assert "last-event-id" not in issuer.requests[-1].headers


def test_a_stream_that_lives_is_kept(issuer, follower):
    verifier = follower(issuer)
    assert verifier.wait(SOON_S)
    began = since_boot()
    wait_until(lambda: since_boot() - began > 2 * feed._SILENCE_S and verifier.age_s < 0.2, "it beats")
    assert (verifier.reconnects, len(issuer.requests)) == (0, 1)


def test_a_node_that_is_behind_is_heard_and_left(clock, follower, lines):
    with OddIssuer(clock=lambda: clock.boot) as behind, OddIssuer(clock=lambda: clock.boot) as other:
        behind.age_ms = 5000
        behind.end(lapsing("s1"))
        other.script = lambda stream: stream.begin(status=503)
        verifier = follower(behind, other, clock=lambda: clock.now)
        becomes(verifier, "stale")
        wait_until(lambda: len(behind.requests) > 2, "it looks for a better one")
        assert verifier.age_s == 5
        assert outcome(verifier, a_token("s1")) is TokenRevoked
        assert outcome(verifier, a_token("s2")) == "u1"
        other.script = other.follow
        becomes(verifier, "fresh")
        wait_until(lambda: other.open_streams == 1)
        # A view never goes backwards: what was known stays known.
        assert outcome(verifier, a_token("s1")) is TokenRevoked
        assert len([line for line in lines() if "cannot be followed" in line]) == 1


def test_heartbeats_that_come_late_do_not_make_the_view_young(clock, follower):
    """By its own word the node is always right; the stream was held back on its way."""
    with OddIssuer(clock=lambda: 0.0) as issuer:  # each of its heartbeats says: just opened
        verifier = follower(issuer, clock=lambda: clock.now)
        becomes(verifier, "fresh")
        clock.advance(4)
        wait_until(lambda: len(issuer.requests) > 1, "it asks anew")
        becomes(verifier, "fresh")
        assert verifier.reconnects >= 1


@pytest.mark.parametrize("ends", ["reset", "orderly"])
def test_a_node_that_goes_down_is_left_for_the_next(issuer, other, follower, ends):
    over = threading.Event()

    async def goes(stream):
        following = feed.asyncio.ensure_future(issuer.follow(stream))
        while not over.is_set():
            await feed.asyncio.sleep(0.01)
        following.cancel()

    if ends == "orderly":
        issuer.plan(goes)
    verifier = follower(issuer, other)
    assert verifier.wait(SOON_S)
    other.end(lapsing("s1"))
    assert outcome(verifier, a_token()) == "u1"
    over.set()
    if ends == "reset":
        issuer.close()
    wait_until(lambda: outcome(verifier, a_token()) is TokenRevoked, "it follows the other")
    # The other does not know that event, and answers with a snapshot.
    assert other.requests[0].headers["last-event-id"] == "boot-1:0"
    assert verifier.reconnects == 1
    assert verifier.state == "fresh"


def test_addresses_are_tried_in_turn_until_one_answers(issuer, follower, lines):
    nobody = [f"http://127.0.0.1:{free_port()}/revocations" for _ in range(3)]
    verifier = follower(revocations_url=[*nobody, issuer.revocations_url], credential=CREDENTIAL)
    assert verifier.wait(SOON_S)
    assert verifier.reconnects == 3
    assert len([line for line in lines() if "cannot be followed" in line]) == 1


def test_verifiers_begin_at_different_addresses(monkeypatch, follower):
    asked = []
    monkeypatch.setattr(feed.random, "randrange", lambda number: asked.append(number) or 1)
    with OddIssuer() as one, OddIssuer() as two:
        assert follower(one, two).wait(SOON_S)
        assert (asked, len(one.requests), len(two.requests)) == ([2], 0, 1)


@pytest.mark.parametrize("fault", ["silent", "comments"])
def test_a_half_open_connection_is_noticed_by_its_silence(issuer, other, follower, fault):
    """No FIN ever says that it is one."""

    async def falls_silent(stream):
        await stream.begin()
        await stream.send(SNAPSHOT)
        await stream.beat(AT)
        while fault == "comments":  # of a proxy on the way
            await stream.send(b": \n\n")
            await feed.asyncio.sleep(0.05)
        await stream.left()

    issuer.script = falls_silent
    verifier = follower(issuer, other)
    assert verifier.wait(SOON_S)
    began = time.monotonic()
    wait_until(lambda: other.open_streams == 1, "it has moved on")
    assert time.monotonic() - began < 0.6 + 1
    becomes(verifier, "fresh")


# --- the thread ----------------------------------------------------------------------------------------------------


def test_close_ends_the_thread_and_the_next_call_begins_anew(issuer, follower):
    verifier = follower(issuer)
    assert verifier.wait(SOON_S)
    [thread] = threads_of_verifiers()
    verifier.close()
    assert not thread.is_alive()
    assert threads_of_verifiers() == []
    wait_until(lambda: issuer.open_streams == 0, "the connection is closed")
    issuer.end(lapsing("s1"))
    assert outcome(verifier, a_token()) == "u1"  # by what it knew
    wait_until(lambda: outcome(verifier, a_token()) is TokenRevoked, "it follows again")
    assert len(threads_of_verifiers()) == 1
    assert issuer.streams_asked_for[1].headers["last-event-id"] == "boot-1:0"


@pytest.mark.parametrize("begin", ["start", "verify", "state"])
def test_close_at_once_after_the_start_ends_it_too(issuer, follower, begin):
    verifier = follower(issuer)
    for _ in range(5):
        if begin == "start":
            verifier.start()
        elif begin == "verify":
            outcome(verifier, a_token())
        else:
            _ = verifier.state
        began = time.monotonic()
        verifier.close()
        assert time.monotonic() - began < 3
        assert threads_of_verifiers() == []


def test_close_is_harmless_when_nothing_runs(issuer, follower):
    verifier = follower(issuer)
    verifier.close()
    verifier.close()
    assert issuer.requests == []
    follower(keys=Keyring([K1])).close()


def test_close_does_not_wait_for_an_issuer_that_hangs(issuer, follower):
    issuer.script = lambda stream: stream.left()
    issuer.jwks = Answer(after_s=10)
    verifier = follower(issuer, jwks_url=issuer.jwks_url)
    verifier.start()
    wait_until(lambda: len(issuer.requests) == 2)
    began = time.monotonic()
    verifier.close()
    assert time.monotonic() - began < 2
    assert threads_of_verifiers() == []


def test_wait_says_whether_keys_and_ended_sessions_are_known(issuer, follower):
    good = issuer.jwks
    issuer.jwks, issuer.script = Answer(status=500), lambda stream: stream.begin(status=500)
    verifier = follower(issuer, jwks_url=issuer.jwks_url)
    assert not verifier.wait(0.05)
    issuer.jwks = good
    wait_until(lambda: not verifier._remote.keys.fault, "the keys are there")
    assert not verifier.wait(0.05)
    issuer.script = issuer.follow
    assert verifier.wait(SOON_S)
    assert verifier.wait(0)
    assert follower(keys=Keyring([K1])).wait(0)  # nothing to wait for


def test_a_fault_of_ours_does_not_leave_it_deaf(issuer, follower, monkeypatch, caplog):
    really = feed.Feed._take_heartbeat
    faults = iter([RuntimeError("ours"), KeyError("ours")])

    def faulty(self, *args):
        for fault in faults:
            raise fault
        really(self, *args)

    monkeypatch.setattr(feed.Feed, "_take_heartbeat", faulty)
    verifier = follower(issuer)
    assert verifier.wait(SOON_S)
    assert len([record for record in caplog.records if "following the issuer has failed" in record.message]) == 2
    caplog.clear()  # with tracebacks, as it should


FORKS = """
    import os, sys, time
    from sekisho.errors import TokenRevoked
    from sekisho.tokens import Keyring
    from sekisho.verify import Verifier
    _, jwks_url, revocations_url, credential, issuer, audience, token = sys.argv
    verifier = Verifier(issuer=issuer, audience=audience, jwks_url=jwks_url, revocations_url=revocations_url,
                        credential=credential)
    assert verifier.wait(20)
    assert verifier.verify(token).sub == "u1"
    held_locks = verifier._held._changing, verifier._remote._starting
    for lock in held_locks:  # as a thread that stays behind may
        lock.acquire()
    child = os.fork()
    who = "parent" if child else "child"
    if child:
        for lock in held_locks:
            lock.release()
    assert verifier.verify(token).sub == "u1"  # by the view of before
    os.write(1, f"{who} runs\\n".encode())
    give_up_at = time.monotonic() + 20
    while time.monotonic() < give_up_at:
        try:
            verifier.verify(token)
        except TokenRevoked:
            verifier.withdraw_key("another")
            os.write(1, f"{who} refuses, {verifier.state}\\n".encode())
            break
        time.sleep(0.01)
    if child:
        assert os.waitpid(child, 0)[1] == 0
    verifier.close()
    os._exit(0)
"""


def test_the_child_of_a_fork_starts_a_thread_of_its_own(issuer):
    script = textwrap.dedent(FORKS)
    args = [issuer.jwks_url, issuer.revocations_url, CREDENTIAL, ISSUER, AUDIENCE, a_token()]
    with subprocess.Popen([sys.executable, "-c", script, *args], stdout=-1, stderr=-1, text=True) as process:
        try:
            said = [process.stdout.readline() for _ in range(2)]
            wait_until(lambda: issuer.open_streams == 2, "both follow")
            issuer.end(lapsing("s1"))
            said += [process.stdout.readline() for _ in range(2)]
        finally:
            process.kill() if process.poll() is None and len(said) < 4 else None
            _, errors = process.communicate(timeout=30)
    assert sorted(said) == ["child refuses, fresh\n", "child runs\n", "parent refuses, fresh\n", "parent runs\n"], (
        errors
    )
    assert process.returncode == 0, errors
    # The child goes on where the parent was.
    assert issuer.streams_asked_for[1].headers["last-event-id"] == "boot-1:0"


def test_the_child_of_a_fork_in_the_middle_of_packing_hears_of_all(issuer, follower):
    """What the thread that stayed behind had packed already, but not yet said."""
    verifier = follower(issuer)
    assert verifier.wait(SOON_S)
    verifier._held.revoked.pack(verifier._held.now())
    verifier.close()
    verifier._after_fork()
    issuer.end(lapsing("s1"))
    assert verifier.wait(SOON_S)
    wait_until(lambda: outcome(verifier, a_token()) is TokenRevoked, "it is refused")


def test_two_verifiers_of_one_process_do_not_disturb_each_other(issuer, other, follower):
    one, two = follower(issuer), follower(other)
    assert one.wait(SOON_S)
    assert two.wait(SOON_S)
    issuer.end(lapsing("s1"))
    wait_until(lambda: outcome(one, a_token()) is TokenRevoked)
    assert outcome(two, a_token()) == "u1"
    one.close()
    other.end(lapsing("s2"))
    wait_until(lambda: outcome(two, a_token("s2")) is TokenRevoked)


def test_the_age_is_counted_while_the_feed_is_followed(issuer, follower):
    verifier = follower(issuer)
    assert verifier.wait(SOON_S)
    issuer.age_ms = 700
    began = since_boot()
    wait_until(lambda: verifier.age_s >= 0.7, "it is as old as the node's view")
    assert verifier.age_s <= 0.7 + since_boot() - began + 1
    assert verifier.state == "fresh"
