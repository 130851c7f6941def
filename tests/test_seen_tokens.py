"""A verifier that remembers answers as one that does not: nothing that was true once is told again when it is not.

The memory spares the second signature check and no other question. Refused tokens never enter it, and it is bounded.
"""

import random
import sys
import threading
from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sekisho.errors import (
    TokenClaimsInvalid,
    TokenError,
    TokenExpired,
    TokenKeyUnknown,
    TokenMalformed,
    TokenNotYetValid,
    TokenRevoked,
    TokenSignatureInvalid,
)
from sekisho.tokens import Keyring, access, algorithms
from sekisho.tokens.algorithms import ALGORITHMS, EdDsa, Hs256
from sekisho.tokens.keys import Key
from sekisho.tokens.revoked import Revocation, RevokedSessions
from sekisho.verify import Verifier
from sekisho.verify.seen import DEFAULT_LIMIT, Seen

NOW = 1_800_000_000
ISSUER, AUDIENCE = "https://auth.example.com", "shop"
TTL_S, LEEWAY_S = 900, 10


@pytest.fixture(scope="module")
def keys():
    """Two of each quick algorithm, by kid."""
    return {f"{alg}-{number}": Key(f"{alg}-{number}", algorithms.generate(alg)) for alg in QUICK for number in (1, 2)}


QUICK = [alg for alg in ALGORITHMS if alg != "RS256"]


@pytest.fixture
def clock():
    return SimpleNamespace(now=NOW)


def issue(key, **changed):
    named = {
        "issuer": ISSUER,
        "audience": AUDIENCE,
        "subject": "user-1",
        "session_id": "session-1",
        "issued_at": NOW,
        "expires_at": NOW + TTL_S,
    }
    return access.issue(key, **{**named, **changed})


def verifier_of(keys, clock, **named):
    named = {"issuer": ISSUER, "audience": AUDIENCE, "leeway_s": LEEWAY_S, "allow_shared_secret": True, **named}
    return Verifier(keys=Keyring(keys), clock=lambda: clock.now, **named)


def seen_by(verifier):
    return verifier._held.in_use[1]


def outcome(verifier, token):
    """The claims, or the kind of refusal."""
    try:
        return verifier.verify(token)
    except TokenError as error:
        return type(error)


def verify_twice(verifier, token):
    """So that it is one that was seen."""
    assert verifier.verify(token) == verifier.verify(token)
    assert token in seen_by(verifier)


# --- what is spared ------------------------------------------------------------------------------------------------


@pytest.fixture
def checked(monkeypatch):
    """The signatures that were checked."""
    signatures = []
    for kind in (Hs256, EdDsa):

        def verify(self, message, signature, really=kind.verify):
            signatures.append(signature)
            really(self, message, signature)

        monkeypatch.setattr(kind, "verify", verify)
    return signatures


@pytest.mark.parametrize("kid", ["HS256-1", "EdDSA-1"])
def test_the_second_time_the_same_claims_come_without_a_signature_check(keys, clock, checked, kid):
    verifier = verifier_of([keys[kid]], clock)
    token = issue(keys[kid], roles=("admin",))
    first = verifier.verify(token)
    again = [verifier.verify("".join(token)) for _ in range(5)]
    assert again == [first] * 5
    assert len(checked) == 1
    assert (first.sub, first.sid, first.roles, first.exp) == ("user-1", "session-1", ("admin",), NOW + TTL_S)
    assert first == verifier_of([keys[kid]], clock, remember=0).verify(token)


def test_shared_claims_cannot_be_changed_by_who_got_them_first(keys, clock):
    verifier = verifier_of([keys["HS256-1"]], clock)
    token = issue(keys["HS256-1"], roles=("user",))
    claims = verifier.verify(token)
    with pytest.raises(AttributeError):
        claims.roles = ("admin",)
    with pytest.raises((AttributeError, TypeError)):
        claims.roles += ("admin",)
    assert isinstance(claims.roles, tuple)
    assert verifier.verify(token).roles == ("user",)


def test_with_remember_0_nothing_is_kept(keys, clock, checked):
    verifier = verifier_of([keys["HS256-1"]], clock, remember=0)
    token = issue(keys["HS256-1"])
    for _ in range(3):
        verifier.verify(token)
        assert len(seen_by(verifier)) == 0
    assert len(checked) == 3


@pytest.mark.parametrize("remember", [-1, -(10**9), 1.0, 0.5, float("inf"), float("nan"), True, False, "8", None, [8]])
def test_remember_is_a_whole_number_of_tokens(keys, clock, remember):
    with pytest.raises(ValueError, match="remember"):
        verifier_of([keys["HS256-1"]], clock, remember=remember)


def test_logout_reads_a_token_anew_each_time(keys, clock, checked):
    verifier = verifier_of([keys["HS256-1"]], clock)
    token = issue(keys["HS256-1"])
    verifier.verify(token)
    assert verifier.verify_signed(token).sid == "session-1"
    assert len(checked) == 2
    verifier.verify_signed(issue(keys["HS256-1"], session_id="other"))
    assert list(seen_by(verifier)) == [token]


# --- what is asked each time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kid", ["HS256-1", "EdDSA-1", "ES256-1"])
@pytest.mark.parametrize("leeway_s", [0, 1, 10, 60])
def test_a_token_that_was_seen_expires_at_its_second(keys, clock, kid, leeway_s):
    verifier = verifier_of([keys[kid]], clock, leeway_s=leeway_s)
    token = issue(keys[kid])
    verify_twice(verifier, token)
    last_second = NOW + TTL_S + leeway_s - 1
    for now, expected in (
        (last_second, None),
        (last_second + 0.999, None),
        (last_second + 1, TokenExpired),
        (last_second + 1.001, TokenExpired),
        (last_second + 10**6, TokenExpired),
        (last_second, None),  # the clock was put back
    ):
        clock.now = now
        answer = outcome(verifier, token)
        assert answer is expected if expected else answer.sub == "user-1"


def test_a_clock_that_says_no_number_lets_nothing_pass(keys, clock):
    verifier = verifier_of([keys["HS256-1"]], clock)
    token = issue(keys["HS256-1"])
    verify_twice(verifier, token)
    clock.now = float("nan")
    assert outcome(verifier, token) is outcome(verifier, issue(keys["HS256-1"])) is TokenExpired
    clock.now = float("inf")
    assert outcome(verifier, token) is TokenExpired
    clock.now = float("-inf")
    assert outcome(verifier, token) is TokenNotYetValid


@pytest.mark.parametrize("leeway_s", [0, 10])
def test_a_token_that_was_seen_is_not_yet_valid_when_the_clock_is_put_back(keys, clock, leeway_s):
    verifier = verifier_of([keys["HS256-1"]], clock, leeway_s=leeway_s)
    token = issue(keys["HS256-1"])
    verify_twice(verifier, token)
    clock.now = NOW - leeway_s
    assert verifier.verify(token)
    clock.now = NOW - leeway_s - 1
    assert outcome(verifier, token) is TokenNotYetValid
    clock.now = NOW
    assert verifier.verify(token)


@pytest.mark.parametrize("kid", ["HS256-1", "EdDSA-1", "ES256-1"])
def test_a_token_that_was_seen_is_refused_when_its_session_has_ended(keys, clock, kid):
    revoked = RevokedSessions()
    verifier = verifier_of([keys[kid]], clock, revoked=revoked)
    token, other = issue(keys[kid]), issue(keys[kid], session_id="session-2")
    verify_twice(verifier, token)
    verify_twice(verifier, other)
    revoked.add([Revocation("session-1", NOW + TTL_S + LEEWAY_S)])
    for _ in range(2):
        assert outcome(verifier, token) is TokenRevoked
    assert verifier.verify(other).sid == "session-2"
    clock.now = NOW + TTL_S + LEEWAY_S + 1
    revoked.forget_lapsed(clock.now)
    assert outcome(verifier, token) is TokenExpired


def test_a_second_spelling_of_an_ecdsa_signature_is_another_token_of_the_same_session(keys, clock):
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    revoked = RevokedSessions()
    verifier = verifier_of([keys["ES256-1"]], clock, revoked=revoked)
    token = issue(keys["ES256-1"])
    head, _, signature = token.rpartition(".")
    raw = algorithms.b64url_decode(signature)
    twin = raw[:32] + (order - int.from_bytes(raw[32:])).to_bytes(32)
    twin = f"{head}.{algorithms.b64url_encode(twin)}"
    verify_twice(verifier, token)
    verify_twice(verifier, twin)
    revoked.add([Revocation("session-1", NOW + 10_000)])
    assert outcome(verifier, token) is outcome(verifier, twin) is TokenRevoked


@pytest.mark.parametrize("kid", ["HS256-1", "EdDSA-1", "ES256-1"])
def test_a_token_that_was_seen_is_refused_when_its_key_is_gone(keys, clock, kid):
    other = keys[kid.replace("-1", "-2")]
    verifier = verifier_of([keys[kid], other], clock)
    token, by_other = issue(keys[kid]), issue(other)
    verify_twice(verifier, token)
    verify_twice(verifier, by_other)
    verifier.replace_keys(Keyring([other]))
    assert outcome(verifier, token) is TokenKeyUnknown
    assert verifier.verify(by_other)
    verifier.replace_keys(Keyring([keys[kid], other]))  # it was retired too early, and is back
    verify_twice(verifier, token)
    verifier.withdraw_key(kid)
    assert outcome(verifier, token) is TokenRevoked
    assert verifier.verify(by_other)


@pytest.mark.parametrize("alg", ["HS256", "EdDSA", "ES256"])
def test_a_token_that_was_seen_is_refused_when_another_key_has_its_kid(keys, clock, alg):
    verifier = verifier_of([keys[f"{alg}-1"]], clock)
    token = issue(keys[f"{alg}-1"])
    verify_twice(verifier, token)
    verifier.replace_keys(Keyring([Key(f"{alg}-1", keys[f"{alg}-2"].material)]))
    assert outcome(verifier, token) is TokenSignatureInvalid
    assert verifier.verify(issue(Key(f"{alg}-1", keys[f"{alg}-2"].material)))


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({"audience": "bank"}, TokenClaimsInvalid),
        ({"audience": "sho"}, TokenClaimsInvalid),
        ({"issuer": ISSUER + "/"}, TokenClaimsInvalid),
        ({"max_lifetime_s": TTL_S - 1}, TokenClaimsInvalid),
        ({"leeway_s": 4}, TokenExpired),
        ({"revoked": RevokedSessions([Revocation("session-1", NOW + 10_000)])}, TokenRevoked),
    ],
    ids=["audience", "part of the audience", "issuer", "lifetime", "leeway", "revocations"],
)
def test_what_one_verifier_has_seen_another_has_not(keys, clock, named, expected):
    """Two routes of one process, which share the keys; the second asks for more."""
    token = issue(keys["EdDSA-1"])
    clock.now = NOW + TTL_S + 4
    one = verifier_of([keys["EdDSA-1"]], clock)
    two = verifier_of([keys["EdDSA-1"]], clock, **named)
    for _ in range(2):
        assert one.verify(token).sub == "user-1"
        assert outcome(two, token) is expected
    assert (len(seen_by(one)), len(seen_by(two))) == (1, 0)


@pytest.mark.parametrize("kid", ["HS256-1", "EdDSA-1"])
def test_a_text_that_differs_in_one_character_from_one_that_was_seen_is_refused(keys, clock, kid):
    verifier = verifier_of([keys[kid]], clock)
    token = issue(keys[kid])
    verify_twice(verifier, token)
    for position, character in enumerate(token):
        other = "B" if character == "A" else "A"
        assert issubclass(outcome(verifier, token[:position] + other + token[position + 1 :]), TokenError)
        assert issubclass(outcome(verifier, token[:position] + token[position + 1 :]), TokenError)
    for text in (token + "A", token + "=", token + " ", " " + token, token + "\n", token + "\0", token.swapcase(), ""):
        assert issubclass(outcome(verifier, text), TokenError)
    assert list(seen_by(verifier)) == [token]


def test_a_text_of_the_same_hash_is_another_text(keys, clock):
    """As after a collision, which nobody can make of true strings without the process's secret."""

    class Colliding(str):
        __slots__ = ()

        def __hash__(self):
            return hash(good)

        def __eq__(self, other):
            return str.__eq__(self, other)

    good = issue(keys["HS256-1"])
    verifier = verifier_of([keys["HS256-1"]], clock)
    verify_twice(verifier, good)
    head = good.rpartition(".")[0]
    forged = issue(Key("HS256-1", keys["HS256-2"].material), subject="admin")
    for text in (forged, f"{head}.AAAA", head, "x", ""):
        assert hash(Colliding(text)) == hash(good)
        for _ in range(2):
            assert issubclass(outcome(verifier, Colliding(text)), TokenError)
    assert verifier.verify(Colliding(good)).sub == "user-1"
    assert list(seen_by(verifier)) == [good]


def test_bytes_of_a_seen_text_are_verified_as_ever(keys, clock):
    """In Python their hash is the text's own."""
    verifier = verifier_of([keys["HS256-1"]], clock)
    token = issue(keys["HS256-1"])
    verify_twice(verifier, token)
    assert verifier.verify(token.encode()) == verifier.verify(token)
    assert outcome(verifier, token[:-1].encode()) is not None
    clock.now = NOW + 10**6
    assert outcome(verifier, token.encode()) is outcome(verifier, token) is TokenExpired


# --- what never enters, and how much does --------------------------------------------------------------------------


def test_no_refused_token_enters(keys, clock):
    key = keys["HS256-1"]
    stranger = Key("HS256-1", keys["HS256-2"].material)
    revoked = RevokedSessions([Revocation("ended", NOW + 10_000)])
    verifier = verifier_of([key], clock, revoked=revoked)
    good = issue(key)
    refused = {
        "garbage": TokenMalformed,
        "": TokenMalformed,
        "a.b.c": TokenMalformed,
        good[:-8] + "AAAAAAAA": TokenSignatureInvalid,
        issue(stranger): TokenSignatureInvalid,
        issue(keys["EdDSA-1"]): TokenKeyUnknown,
        issue(key, issuer="https://other.example.com"): TokenClaimsInvalid,
        issue(key, audience="bank"): TokenClaimsInvalid,
        issue(key, subject="sekisho"): TokenClaimsInvalid,
        issue(key, issued_at=NOW - 1000, expires_at=NOW - LEEWAY_S): TokenExpired,
        issue(key, issued_at=NOW + LEEWAY_S + 1, expires_at=NOW + 60): TokenNotYetValid,
        issue(key, expires_at=NOW + 3601): TokenClaimsInvalid,
        issue(key, expires_at=NOW): TokenClaimsInvalid,
        issue(key, session_id="ended"): TokenRevoked,
    }
    for _ in range(2):
        for token, expected in refused.items():
            assert outcome(verifier, token) is expected
    assert len(seen_by(verifier)) == 0


def test_a_flood_of_garbage_leaves_the_memory_as_it_is(keys, clock):
    chance = random.Random(7)
    verifier = verifier_of([keys["HS256-1"]], clock, remember=4)
    token = issue(keys["HS256-1"])
    verify_twice(verifier, token)
    head = token.rpartition(".")[0]
    for _ in range(2000):
        assert outcome(verifier, f"{head}.{chance.randbytes(32).hex()}") is TokenSignatureInvalid
        assert outcome(verifier, chance.randbytes(60).hex()) is TokenMalformed
    assert list(seen_by(verifier)) == [token]


def test_a_token_that_expired_between_two_calls_does_not_come_in_by_the_second(keys, clock):
    verifier = verifier_of([keys["HS256-1"]], clock)
    token = issue(keys["HS256-1"])
    clock.now = NOW + TTL_S + LEEWAY_S
    assert outcome(verifier, token) is TokenExpired
    assert len(seen_by(verifier)) == 0
    clock.now -= 1
    assert verifier.verify(token)
    assert list(seen_by(verifier)) == [token]


@pytest.mark.parametrize("remember", [1, 2, 3, 4, 7, 64])
def test_the_memory_is_never_larger_than_it_was_told(keys, clock, checked, remember):
    verifier = verifier_of([keys["HS256-1"]], clock, remember=remember)
    newest_kept = 0
    largest = 0
    for number in range(5 * remember + 10):
        token = issue(keys["HS256-1"], session_id=f"session-{number}")
        verifier.verify(token)
        assert len(seen_by(verifier)) <= remember
        largest = max(largest, len(seen_by(verifier)))
        newest_kept += token in seen_by(verifier)
    assert largest == remember  # it uses what it was given
    assert newest_kept > remember


def test_the_older_half_goes_first(keys, clock, checked):
    verifier = verifier_of([keys["HS256-1"]], clock, remember=10)
    tokens = [issue(keys["HS256-1"]) for _ in range(11)]
    for token in tokens:
        verifier.verify(token)
    assert list(seen_by(verifier)) == tokens[6:]
    checked.clear()
    for token in tokens[6:]:
        verifier.verify(token)
    assert checked == []
    for token in tokens[:5]:  # forgotten, and as good as ever
        assert verifier.verify(token).sub == "user-1"
    assert len(checked) == 5


def test_without_being_told_it_remembers_some_thousands(keys, clock):
    verifier = Verifier(issuer=ISSUER, audience=AUDIENCE, keys=Keyring([keys["EdDSA-1"]]))
    assert verifier._held._remember == DEFAULT_LIMIT == 8192


def test_the_memory_does_not_show_what_it_holds(keys, clock):
    verifier = verifier_of([keys["HS256-1"]], clock)
    token = issue(keys["HS256-1"])
    verifier.verify(token)
    for text in (repr(seen_by(verifier)), str(seen_by(verifier)), f"{seen_by(verifier)}", repr([seen_by(verifier)])):
        assert text in {"<Seen 1>", "[<Seen 1>]"}
    assert not any(part in repr(verifier) for part in token.split("."))


def test_a_token_may_vanish_while_the_older_half_is_forgotten():
    """Another thread forgot it."""

    class Vanishing(str):
        __slots__ = ()

        def __hash__(self):
            if len(seen) == 4:
                seen.clear()
            return str.__hash__(self)

    seen = Seen(3)
    for name in "abcd":
        seen.remember(Vanishing(name), None)
    assert seen == {}


@pytest.mark.parametrize("limit", [1, 2, 10])
def test_what_threads_left_too_many_goes_with_the_next(limit):
    """Two of them may have forgotten the same token for two new ones."""
    seen = Seen(limit)
    for number in range(limit + 3):
        seen[f"token-{number}"] = None
    for number in range(3):
        seen.remember(f"new-{number}", None)
    assert len(seen) <= limit


def test_the_longest_tokens_are_not_remembered(keys, clock, checked):
    """Thousands of them would fill the memory."""
    verifier = verifier_of([keys["HS256-1"]], clock)
    shortest = len(issue(keys["HS256-1"], roles=("",)))
    padding = (2048 - shortest) * 3 // 4
    kept = [
        token
        for more in range(-3, 4)
        for token in [issue(keys["HS256-1"], roles=("r" * (padding - 900 + more), "s" * 897))]
    ]
    for token in kept:
        checked.clear()
        for _ in range(3):
            assert verifier.verify(token).sub == "user-1"
        assert len(checked) == (1 if len(token) <= 2048 else 3)
        assert (token in seen_by(verifier)) is (len(token) <= 2048)
    assert {len(token) <= 2048 for token in kept} == {True, False}
    seen = Seen(4)
    for length in (2047, 2048, 2049, 8192):
        seen.remember("x" * length, None)
    assert [len(token) for token in seen] == [2047, 2048]


# --- a remembering verifier beside one that forgets ----------------------------------------------------------------

MACHINE_KEYS = [Key(f"key-{number}", (Hs256 if number % 2 else EdDsa).generate()) for number in range(6)]
SESSIONS = [f"session-{number}" for number in range(4)]


class Issued(SimpleNamespace):
    """A token with what it says, and whose key it was really signed by."""


class RememberingAndForgetting(RuleBasedStateMachine):
    """Every answer of verifiers that remember is that of new ones that do not, and what the rules say by themselves.

    Two routes of a process share keys, clock and revocations; each has an audience, a leeway and a memory of its own.
    """

    ROUTES = (
        {"audience": "shop", "leeway_s": 10, "remember": 3, "max_lifetime_s": 900},
        {"audience": "bank", "leeway_s": 0, "remember": 1, "max_lifetime_s": 3600},
        {"audience": "shop", "leeway_s": 60, "remember": 100, "max_lifetime_s": 3600},
    )

    @initialize()
    def begin(self):
        self.clock = SimpleNamespace(now=NOW)
        self.revoked = RevokedSessions()
        self.keys = MACHINE_KEYS[:3]
        self.withdrawn = set()
        self.tokens = []
        self.routes = [self.route(named) for named in self.ROUTES]

    def route(self, named, **changed):
        named = {"revoked": self.revoked, **named, **changed}
        return verifier_of(self.keys, self.clock, **named)

    # What happens in the world.

    @rule(
        key=st.sampled_from(MACHINE_KEYS),
        forged=st.sampled_from([False, False, False, True]),
        session=st.sampled_from(SESSIONS),
        audience=st.sampled_from(["shop", "shop", "bank", "other"]),
        lifetime_s=st.sampled_from([1, 30, 300, 900, 901, 3601]),
        ahead_s=st.sampled_from([0, 0, 0, -5, 10, 11, 61]),
    )
    def a_token_is_issued(self, key, forged, session, audience, lifetime_s, ahead_s):
        issued_at = int(self.clock.now) + ahead_s
        signer = Key(key.kid, type(key.material).generate()) if forged else key
        text = issue(
            signer,
            audience=audience,
            session_id=session,
            issued_at=issued_at,
            expires_at=issued_at + lifetime_s,
        )
        self.tokens.append(
            Issued(
                text=text,
                kid=key.kid,
                forged=forged,
                session=session,
                audience=audience,
                iat=issued_at,
                exp=issued_at + lifetime_s,
            )
        )
        self.tokens = self.tokens[-12:]

    @rule(step_s=st.sampled_from([1, 5, 60, 300, 900, 0.5, -1, -30, -1000]))
    def time_passes_or_a_clock_is_put_back(self, step_s):
        self.clock.now += step_s

    @precondition(lambda self: self.tokens)
    @rule(number=st.integers(0, 11), leeway_s=st.sampled_from([0, 10, 60]), off_s=st.sampled_from([-1, -0.5, 0, 1]))
    def it_is_about_the_second_at_which_a_token_expires(self, number, leeway_s, off_s):
        self.clock.now = self.tokens[number % len(self.tokens)].exp + leeway_s + off_s

    @rule(session=st.sampled_from(SESSIONS), more_s=st.sampled_from([0, 960, 4000]))
    def a_session_ends(self, session, more_s):
        self.revoked.add([Revocation(session, int(self.clock.now) + more_s)])

    @rule()
    def what_lapsed_is_forgotten(self):
        self.revoked.forget_lapsed(int(self.clock.now))

    @rule(which=st.sets(st.integers(0, len(MACHINE_KEYS) - 1), min_size=1))
    def the_keys_are_replaced(self, which):
        self.keys = [MACHINE_KEYS[number] for number in sorted(which)]
        ring = Keyring(self.keys)  # one for all routes, as a watch hands it out
        for route in self.routes:
            route.replace_keys(ring)

    @precondition(lambda self: len(self.withdrawn) < 3)
    @rule(key=st.sampled_from(MACHINE_KEYS))
    def a_key_is_withdrawn(self, key):
        self.withdrawn.add(key.kid)
        for route in self.routes:
            route.withdraw_key(key.kid)

    # What must be true of every answer.

    @precondition(lambda self: self.tokens)
    @rule(number=st.integers(0, 11), times=st.integers(1, 3))
    def a_token_is_shown(self, number, times):
        token = self.tokens[number % len(self.tokens)]
        for named, route in zip(self.ROUTES, self.routes, strict=True):
            expected = outcome(self.forgetting(named), token.text)
            assert (expected if isinstance(expected, type) else None) is self.by_the_rules(token, named)
            for _ in range(times):
                assert outcome(route, token.text) == expected

    @precondition(lambda self: self.tokens)
    @rule(number=st.integers(0, 11), position=st.integers(0, 10**6), other=st.sampled_from("AQg_.="))
    def a_changed_token_is_shown(self, number, position, other):
        text = self.tokens[number % len(self.tokens)].text
        position %= len(text)
        changed = text[:position] + other + text[position + 1 :]
        if changed != text:
            for route in self.routes:
                assert issubclass(outcome(route, changed), TokenError)

    def forgetting(self, named):
        verifier = self.route(named, remember=0)
        for kid in self.withdrawn:
            verifier.withdraw_key(kid)
        return verifier

    def by_the_rules(self, token, named):
        if token.kid in self.withdrawn:
            return TokenRevoked
        if token.kid not in {key.kid for key in self.keys}:
            return TokenKeyUnknown
        if token.forged:
            return TokenSignatureInvalid
        if token.audience != named["audience"]:
            return TokenClaimsInvalid
        if self.clock.now >= token.exp + named["leeway_s"]:
            return TokenExpired
        if token.iat > self.clock.now + named["leeway_s"]:
            return TokenNotYetValid
        if token.exp - token.iat > named["max_lifetime_s"]:
            return TokenClaimsInvalid
        return TokenRevoked if token.session in self.revoked else None

    @invariant()
    def the_memory_is_bounded_and_holds_good_tokens_of_these_keys_alone(self):
        if not hasattr(self, "routes"):
            return
        in_use = {key.kid for key in self.keys} - self.withdrawn
        known = {token.text: token for token in self.tokens}
        for named, route in zip(self.ROUTES, self.routes, strict=True):
            assert len(seen_by(route)) <= named["remember"]
            for text in seen_by(route):
                if text in known:
                    assert known[text].kid in in_use
                    assert known[text].audience == named["audience"]
                    assert not known[text].forged


RememberingAndForgetting.TestCase.settings = settings(deadline=None, max_examples=100, stateful_step_count=40)
test_a_remembering_verifier_answers_as_a_forgetting_one = RememberingAndForgetting.TestCase


# --- many threads --------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient_threads():
    """They take turns as often as Python lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def run_together(*works):
    """All at once; what one of them raises, the test raises."""
    errors = []
    start = threading.Barrier(len(works))

    def run(work):
        start.wait()
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - the test raises it
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("remember", [0, 1, 3, 1000])
def test_many_threads_get_right_answers_while_sessions_end_and_keys_change(keys, clock, impatient_threads, remember):
    stays, comes_and_goes, leaks = keys["HS256-1"], keys["HS256-2"], keys["EdDSA-1"]
    revoked = RevokedSessions()
    verifier = verifier_of([stays, comes_and_goes, leaks], clock, revoked=revoked, remember=remember)
    good = [issue(stays, session_id=f"open-{number}", subject=f"user-{number}") for number in range(6)]
    ending = [issue(stays, session_id=f"ending-{number}", subject=f"user-{number}") for number in range(40)]
    by_other = [issue(comes_and_goes, subject=f"user-{number}") for number in range(2)]
    by_leaked = issue(leaks)
    forged = issue(Key(stays.kid, comes_and_goes.material), subject="admin")
    ended, withdrawn, finished = set(), set(), set()

    def check(seed):
        chance = random.Random(seed)
        try:
            for _ in range(600):
                number = chance.randrange(6)
                assert verifier.verify(good[number]).sub == f"user-{number}"
                number = chance.randrange(len(ending))
                over = number in ended  # asked before: whatever had ended by now must be refused
                answer = outcome(verifier, ending[number])
                assert answer is TokenRevoked or (not over and answer.sub == f"user-{number}")
                number = chance.randrange(2)
                answer = outcome(verifier, by_other[number])
                assert answer is TokenKeyUnknown or answer.sub == f"user-{number}"
                gone = bool(withdrawn)
                answer = outcome(verifier, by_leaked)
                assert answer is TokenRevoked or (not gone and answer.sub == "user-1")
                assert outcome(verifier, forged) is TokenSignatureInvalid
                assert len(seen_by(verifier)) <= remember + 8  # each thread may be about to tidy up
        finally:
            finished.add(seed)

    def end_sessions():
        for number in range(len(ending)):
            revoked.add([Revocation(f"ending-{number}", NOW + 10_000)])
            ended.add(number)

    def change_keys():
        turn = 0
        while len(finished) < 3 or turn < 20:
            turn += 1
            verifier.replace_keys(Keyring([stays, leaks] if turn % 2 else [stays, comes_and_goes, leaks]))
            if turn == 20:
                verifier.withdraw_key(leaks.kid)
                withdrawn.add(leaks.kid)

    run_together(*(lambda seed=seed: check(seed) for seed in range(3)), end_sessions, change_keys)
    assert len(seen_by(verifier)) <= remember
    assert withdrawn


def test_threads_that_replace_and_withdraw_at_once_never_bring_a_key_back(keys, clock, impatient_threads):
    kept, new = keys["EdDSA-1"], keys["EdDSA-2"]
    by_kept = issue(kept)
    for round_number in range(40):
        leaked = [Key(f"leaked-{round_number}-{number}", keys["HS256-1"].material) for number in range(4)]
        verifier = verifier_of([kept, *leaked], clock)
        tokens = [issue(key) for key in leaked]

        def replace(verifier=verifier, leaked=leaked):
            for _ in range(10):
                verifier.replace_keys(Keyring([kept, new, *leaked]))

        def withdraw(verifier=verifier, leaked=leaked, tokens=tokens):
            for key, token in zip(leaked, tokens, strict=True):
                verifier.withdraw_key(key.kid)
                assert outcome(verifier, token) is TokenRevoked

        run_together(replace, withdraw, replace)
        assert [outcome(verifier, token) for token in tokens] == [TokenRevoked] * 4
        assert verifier.verify(by_kept)
        assert verifier.verify(issue(new))


def in_the_middle_of(monkeypatch, act):
    """Runs ``act`` in another thread while the next change of keys is half done, and waits until it can go on."""
    without = Keyring.without
    threads = []

    def interrupted(self, withdrawn):
        left = without(self, withdrawn)
        if not threads:
            threads.append(threading.Thread(target=act))
            threads[0].start()
            threads[0].join(timeout=0.1)  # it ends now, or waits for us
        return left

    monkeypatch.setattr(Keyring, "without", interrupted)
    return threads


def test_a_key_that_is_withdrawn_while_keys_are_replaced_stays_withdrawn(keys, clock, monkeypatch):
    leaked, kept = keys["HS256-1"], keys["EdDSA-1"]
    verifier = verifier_of([leaked, kept], clock)
    threads = in_the_middle_of(monkeypatch, lambda: verifier.withdraw_key(leaked.kid))
    verifier.replace_keys(Keyring([leaked, kept]))
    threads[0].join()
    assert outcome(verifier, issue(leaked)) is TokenRevoked
    assert verifier.verify(issue(kept))


def test_keys_that_are_replaced_while_one_is_withdrawn_are_not_lost(keys, clock, monkeypatch):
    leaked, kept, new = keys["HS256-1"], keys["EdDSA-1"], keys["EdDSA-2"]
    verifier = verifier_of([leaked, kept], clock)
    threads = in_the_middle_of(monkeypatch, lambda: verifier.replace_keys(Keyring([leaked, new])))
    verifier.withdraw_key(leaked.kid)
    threads[0].join()
    assert outcome(verifier, issue(leaked)) is TokenRevoked
    assert verifier.verify(issue(new))
    assert outcome(verifier, issue(kept)) is TokenKeyUnknown


def test_a_check_that_began_with_the_old_keys_leaves_nothing_with_the_new_ones(keys, clock, monkeypatch):
    """Its answer is true as of its beginning; it must not be remembered beyond it."""
    verifier = verifier_of([keys["HS256-1"]], clock)
    token = issue(keys["HS256-1"])
    really = access.read

    def read(text, ring):
        claims = really(text, ring)
        verifier.withdraw_key("HS256-1")  # just now
        return claims

    monkeypatch.setattr(access, "read", read)
    assert verifier.verify(token).sub == "user-1"
    monkeypatch.setattr(access, "read", really)
    assert len(seen_by(verifier)) == 0
    assert outcome(verifier, token) is TokenRevoked
