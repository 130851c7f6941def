"""The ended sessions in memory: found while their time is not over, gone soon after, in little space."""

import sys
import tracemalloc
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sekisho.tokens import revoked as module
from sekisho.tokens.keyring import Keyring
from sekisho.tokens.revoked import PackedSessions, Revocation, RevokedSessions, fits, key_of
from sekisho.verify.held import Held

NOW = 1_800_000_000
SPAN_S = 256
FURTHEST_S = 3600 + 60 + 60  # access tokens live for an hour at the most; leeway; and a minute more


def a_session(number):
    return f"{number:036x}"  # as long as theirs are


def entries(*numbers, lapses_at=NOW + 900):
    return [Revocation(a_session(number), lapses_at) for number in numbers]


def held_of(revoked, clock):
    return Held(Keyring([]), revoked=revoked, allow_shared_secret=False, remember=0, clock=clock)


# --- one by one ----------------------------------------------------------------------------------------------------


def test_what_was_added_is_found_and_nothing_else():
    revoked = RevokedSessions(entries(1, 2))
    assert a_session(1) in revoked
    assert a_session(2) in revoked
    assert a_session(3) not in revoked
    assert "" not in revoked
    assert len(revoked) == 2


def test_an_entry_that_comes_again_is_never_shortened():
    revoked = RevokedSessions(entries(1, lapses_at=NOW + 900))
    revoked.add(entries(1, lapses_at=NOW + 10))
    assert revoked.lapses_at == {a_session(1): NOW + 900}
    revoked.add(entries(1, lapses_at=NOW + 901))
    assert revoked.lapses_at == {a_session(1): NOW + 901}


def test_an_entry_is_forgotten_after_its_last_second():
    revoked = RevokedSessions(entries(1, lapses_at=NOW))
    revoked.forget_lapsed(NOW)
    assert a_session(1) in revoked
    revoked.forget_lapsed(NOW + 1)
    assert a_session(1) not in revoked
    assert len(revoked) == 0


@pytest.mark.parametrize("lives_s", [0, 1, 255, 256, 900, FURTHEST_S])
@pytest.mark.parametrize("now", [NOW, NOW + 1, NOW + SPAN_S - 1, NOW + 17 * SPAN_S])
def test_a_packed_entry_is_found_to_its_last_second_and_gone_a_span_later(now, lives_s):
    revoked = RevokedSessions(entries(1, lapses_at=now + lives_s))
    for at in range(now, now + lives_s + 1, max(1, lives_s // 9)):
        revoked.pack(at)
        assert a_session(1) in revoked
        assert len(revoked.lapses_at) == 0
    revoked.pack(now + lives_s)
    assert a_session(1) in revoked
    revoked.pack(now + lives_s + SPAN_S)
    assert a_session(1) not in revoked
    assert revoked.packed is None


@pytest.mark.parametrize("later_s", [FURTHEST_S + SPAN_S, 2 * 3600, 3 * 3600, 86_400, 365 * 86_400])
def test_a_system_that_slept_for_long_does_not_take_lapsed_entries_for_new_ones(later_s):
    """The spans of time go in a circle of two hours and a quarter."""
    revoked = RevokedSessions(Revocation(a_session(n), NOW + n) for n in range(FURTHEST_S))
    revoked.pack(NOW)
    assert len(revoked) == FURTHEST_S
    revoked.pack(NOW + later_s)
    assert len(revoked) == 0


@pytest.mark.parametrize("back_s", [1, 60, 600, 1800, 3000])
def test_a_clock_that_was_put_back_drops_nothing(back_s):
    revoked = RevokedSessions(Revocation(a_session(n), NOW + n) for n in range(FURTHEST_S))
    revoked.pack(NOW)
    revoked.pack(NOW - back_s)
    assert all(a_session(n) in revoked for n in range(FURTHEST_S))
    revoked.add(entries(FURTHEST_S, lapses_at=NOW - back_s + 900))
    revoked.pack(NOW)
    assert all(a_session(n) in revoked for n in range(FURTHEST_S))


def test_what_lapses_in_the_far_future_is_kept_unpacked():
    far = NOW + 86_400
    assert not fits(far, NOW)
    revoked = RevokedSessions([*entries(1), *entries(2, lapses_at=far)])
    revoked.pack(NOW)
    assert revoked.lapses_at == {a_session(2): far}
    assert a_session(1) in revoked
    for at in range(NOW, far + 1, 3600):
        revoked.pack(at)
        assert a_session(2) in revoked
    revoked.pack(far)
    assert revoked.lapses_at == {}  # by now it fits
    assert a_session(2) in revoked


def test_what_has_lapsed_or_lies_far_ahead_does_not_fit():
    assert fits(NOW, NOW)
    assert not fits(NOW - 1, NOW)
    assert fits(NOW + FURTHEST_S, NOW)
    assert not fits(NOW + 17 * SPAN_S, NOW)


def test_keys_that_come_ready_made_are_packed_with_the_rest():
    revoked = RevokedSessions(entries(1))
    revoked.pack(NOW, array("q", [key_of(a_session(n), NOW + n) for n in (2, 3, 3)]))
    assert [a_session(n) in revoked for n in (1, 2, 3, 4)] == [True, True, True, False]
    assert len(revoked) == 3


def test_a_session_that_is_packed_with_two_times_is_found_until_the_later():
    revoked = RevokedSessions(entries(1, lapses_at=NOW + 3000))
    revoked.pack(NOW)
    revoked.add(entries(1, lapses_at=NOW + 300))
    revoked.pack(NOW)
    revoked.pack(NOW + 2 * SPAN_S + 300)
    assert a_session(1) in revoked


def test_packing_is_wanted_when_many_are_not_and_when_a_span_of_time_is_over():
    revoked = RevokedSessions(entries(*range(1024)))
    assert not revoked.wants_packing(NOW)
    revoked.add(entries(1024))
    assert revoked.wants_packing(NOW)
    revoked.pack(NOW)
    assert not revoked.wants_packing(NOW)
    assert not revoked.wants_packing(NOW // SPAN_S * SPAN_S + SPAN_S - 1)
    assert revoked.wants_packing(NOW // SPAN_S * SPAN_S + SPAN_S)


def test_of_many_packed_ones_a_thirty_second_part_may_wait():
    """Else each twentieth of a second would sort a million; and more of them would take most of the memory."""
    revoked = RevokedSessions(entries(*range(80_000)))
    revoked.pack(NOW)
    revoked.add(entries(*range(80_000, 82_500)))
    assert not revoked.wants_packing(NOW)
    revoked.add(entries(82_500))
    assert revoked.wants_packing(NOW)


def test_who_holds_the_two_of_before_still_sees_every_entry():
    """As a check under way does while another thread packs."""
    revoked = RevokedSessions(entries(*range(2000)))
    revoked.pack(NOW)
    revoked.add(entries(*range(2000, 2500)))
    ended, packed = revoked.lapses_at, revoked.packed
    revoked.pack(NOW)
    revoked.add(entries(2500))
    revoked.pack(NOW + 2 * FURTHEST_S)
    assert len(revoked) == 0
    assert all(a_session(n) in ended or a_session(n) in packed for n in range(2500))
    assert a_session(2500) not in ended
    assert a_session(2500) not in packed


@pytest.mark.parametrize("hashes", [[-1 << 63, (1 << 63) - 1], [0, -1, 31, -32], [1 << 58, (1 << 58) - 1], [5] * 3])
def test_a_hash_at_any_border_is_found(monkeypatch, hashes):
    by_name = {str(number): hashed for number, hashed in enumerate(hashes)}
    monkeypatch.setattr(module, "hash", by_name.__getitem__, raising=False)
    revoked = RevokedSessions(Revocation(name, NOW + 900) for name in by_name)
    revoked.pack(NOW)
    assert all(name in revoked for name in by_name)
    assert list(revoked.packed._keys) == sorted(set(revoked.packed._keys))
    by_name["other"] = 1 << 40
    assert "other" not in revoked


def test_a_place_of_the_filter_that_is_taken_is_not_yet_an_entry(monkeypatch):
    """Two ids may share a place; the hash decides."""
    hashes = {"ended": 1 << 40, "alive": 1 << 41}
    monkeypatch.setattr(module, "hash", hashes.__getitem__, raising=False)
    packed = PackedSessions(array("q", [key_of("ended", NOW)]))
    assert packed._mask < 1 << 35  # so that both lie at place 0
    assert "ended" in packed
    assert "alive" not in packed


@given(st.sets(st.integers(min_value=0, max_value=2**128 - 1), max_size=300), st.integers(0, FURTHEST_S))
def test_any_set_of_sessions_is_the_same_set_packed(numbers, lives_s):
    revoked = RevokedSessions(entries(*numbers, lapses_at=NOW + lives_s))
    revoked.pack(NOW)
    assert len(revoked) == len(numbers)
    for number in numbers:
        assert a_session(number) in revoked
        for other in {number ^ 1, number ^ 1 << 127} - numbers:
            assert a_session(other) not in revoked


# --- against a dictionary ------------------------------------------------------------------------------------------


class AgainstDict(RuleBasedStateMachine):
    """Both get the same."""

    def __init__(self):
        super().__init__()
        self.now = NOW
        self.real = RevokedSessions()
        self.model = {}
        self.held = held_of(self.real, lambda: self.now)
        self.tidied_at = None

    @initialize(at=st.integers(0, SPAN_S))
    def begin(self, at):
        self.now += at

    @rule(
        numbers=st.lists(st.integers(0, 400), min_size=1, max_size=40),
        lives_s=st.one_of(st.integers(-600, FURTHEST_S), st.integers(0, 10**6)),
    )
    def end(self, numbers, lives_s):
        self._end(numbers, self.now + lives_s)
        self.held.add_revoked(entries(*numbers, lapses_at=self.now + lives_s))

    @rule(first=st.integers(500, 600), lives_s=st.integers(1, 900))
    def end_many(self, first, lives_s):
        """Beyond the number at which they are packed at once."""
        numbers = range(first, first + 1200)
        self._end(numbers, self.now + lives_s)
        self.held.add_revoked(entries(*numbers, lapses_at=self.now + lives_s))

    @rule(numbers=st.lists(st.integers(0, 400), min_size=1, max_size=40), lives_s=st.integers(0, FURTHEST_S))
    def take_piece_of_a_snapshot(self, numbers, lives_s):
        at = self.now + lives_s
        self._end(numbers, at)
        self.held.pack(array("q", [key_of(a_session(number), at) for number in numbers]))

    @rule(seconds=st.one_of(st.integers(1, 10), st.integers(1, 3 * SPAN_S), st.integers(1, 40 * SPAN_S)))
    def pass_time(self, seconds):
        self.now += seconds

    @precondition(lambda self: self.model)
    @rule(seconds=st.integers(1, 60))
    def put_clock_back(self, seconds):
        self.now -= seconds

    @rule()
    def tidy(self):
        self.held.tidy()
        self.tidied_at = self.now

    @rule()
    def pack(self):
        self.held.pack()

    def _end(self, numbers, lapses_at):
        for number in numbers:
            self.model[number] = max(lapses_at, self.model.get(number, 0))
        self.tidied_at = None

    def _seen(self, number):
        _, _, ended, packed = self.held.in_use
        return a_session(number) in ended or (packed is not None and a_session(number) in packed)

    @invariant()
    def whose_time_is_not_over_is_found(self):
        # A minute's step back of the clock is within what entries outlive tokens by; they may be gone then.
        latest = self.held._forgotten_until
        for number, lapses_at in self.model.items():
            if lapses_at >= max(self.now, latest):
                assert self._seen(number)

    @invariant()
    def what_lapsed_is_gone_a_span_later(self):
        if self.tidied_at is not None:
            for number, lapses_at in self.model.items():
                if lapses_at + SPAN_S <= self.tidied_at:
                    assert not self._seen(number)

    @invariant()
    def nobody_else_is_found(self):
        assert not any(self._seen(number) for number in range(10**6, 10**6 + 50))


AgainstDict.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestAgainstDict = AgainstDict.TestCase


# --- the clock of the service is put back --------------------------------------------------------------------------


def test_whoever_tidied_by_a_clock_that_was_ahead_misses_entries_once_it_is_right_again():
    now = NOW
    held = held_of(RevokedSessions(entries(1)), lambda: now)
    held.tidy()
    assert not held.misses_entries()
    now = NOW + 2000  # by which all tokens of that session have expired
    held.tidy()
    assert a_session(1) not in held.revoked
    now -= 10  # entries outlive their tokens by more
    assert not held.misses_entries()
    now = NOW
    assert held.misses_entries()
    assert not held.misses_entries()  # said once


def test_at_the_longest_leeway_no_token_counts_again_before_entries_are_asked_for_anew():
    now, life_s, leeway_s = NOW, 3600, 60
    held = held_of(RevokedSessions([Revocation("s1", NOW + life_s + 70)]), lambda: now)
    now = NOW + life_s + 71
    held.tidy()
    assert "s1" not in held.revoked
    now = NOW + life_s + leeway_s - 1  # the clock is put back, and the session's last token is accepted
    assert held.misses_entries()


# --- a fork in the middle ------------------------------------------------------------------------------------------


class _ForkedError(Exception):
    pass


class _Forking(RevokedSessions):
    """Is left in the middle, after so many assignments."""

    __slots__ = ("left",)

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name != "left" and getattr(self, "left", 0):
            self.left -= 1
            if not self.left:
                raise _ForkedError


@pytest.mark.parametrize("assignments", [1, 2, 3])
def test_wherever_a_fork_falls_into_packing_the_child_loses_nothing(assignments):
    revoked = _Forking(entries(*range(50)))
    revoked.left = assignments
    with pytest.raises(_ForkedError):
        revoked.pack(NOW)
    for later in (NOW, NOW + 1):
        revoked.pack(later)
        assert all(a_session(number) in revoked for number in range(50))


# --- space ---------------------------------------------------------------------------------------------------------


def test_a_million_takes_at_most_24_bytes_each():
    number = 1_000_000
    revoked = RevokedSessions()
    revoked.pack(NOW, array("q", (key_of(a_session(n), NOW + n % FURTHEST_S) for n in range(number))))
    packed = revoked.packed
    assert len(packed) == number
    assert sys.getsizeof(packed._keys) + sys.getsizeof(packed._filter) <= 24 * number
    assert all(a_session(n) in packed for n in range(0, number, 997))
    assert not any(a_session(n) in packed for n in range(number, number + 10_000))


@pytest.mark.parametrize("number", [2**10, 2**14, 2**14 + 1, 50_000, 2**17 - 1, 2**17])
def test_at_every_number_it_is_16_to_24_bytes_each(number):
    packed = PackedSessions(array("q", range(0, 32 * number, 32)))
    size = sys.getsizeof(packed._filter) + packed._keys.itemsize * len(packed)
    assert 16 * number <= size <= 24 * number + 100


def test_a_hundred_thousand_as_they_come_over_the_feed_take_at_most_100_bytes_each():
    number = 100_000
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        held = held_of(RevokedSessions(), lambda: NOW)
        for first in range(0, number, 10_000):
            held.add_revoked(entries(*range(first, first + 10_000)))
        assert tracemalloc.get_traced_memory()[0] - before <= 100 * number
    finally:
        tracemalloc.stop()
    assert len(held.revoked) == number
