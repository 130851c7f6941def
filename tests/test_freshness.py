"""How old a view is: never said to be younger than it is, whatever delays the word of it."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.verify.freshness import FRESH_S, LOST_S, Freshness
from sekisho.verify.stream import Heartbeat

BOOT = 5000.0  # since then the test's clock runs


def a_view(*, as_of=BOOT):
    """One of which all is known as of this moment."""
    freshness = Freshness(now=BOOT)
    freshness.heard(Heartbeat(age_ms=0, open_ms=0), opened_at=as_of, now=as_of)
    return freshness


# --- the four states -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age_s", "state"),
    [
        (0, "fresh"),
        (FRESH_S, "fresh"),
        (FRESH_S + 0.001, "stale"),
        (LOST_S, "stale"),
        (LOST_S + 0.001, "lost"),
        (10**9, "lost"),
    ],
)
def test_fresh_to_3_s_stale_to_30_s_then_lost(age_s, state):
    freshness = a_view()
    assert (FRESH_S, LOST_S) == (3, 30)
    assert freshness.state(now=BOOT + age_s) == state
    assert freshness.age_s(now=BOOT + age_s) == pytest.approx(age_s)
    assert freshness.lost_in_s(now=BOOT + age_s) == pytest.approx(LOST_S - age_s)


def test_before_the_first_view_it_is_starting_for_30_s_then_lost():
    freshness = Freshness(now=BOOT)
    for now, state in ((BOOT, "starting"), (BOOT + 30, "starting"), (BOOT + 30.001, "lost"), (BOOT + 1e6, "lost")):
        assert freshness.state(now=now) == state
        assert freshness.age_s(now=now) == inf
        assert freshness.lost_in_s(now=now) == -inf


def test_starting_begins_anew_with_the_process_unless_there_is_a_view():
    freshness = Freshness(now=BOOT)
    freshness.restart(now=BOOT + 100)
    assert freshness.state(now=BOOT + 130) == "starting"
    assert freshness.state(now=BOOT + 131) == "lost"
    known = a_view()
    known.restart(now=BOOT + 20)
    assert known.state(now=BOOT + 20) == "stale"
    assert known.state(now=BOOT + 31) == "lost"


def test_a_lost_view_is_fresh_at_once_when_a_young_one_comes():
    freshness = a_view()
    assert freshness.state(now=BOOT + 100) == "lost"
    freshness.heard(Heartbeat(age_ms=200, open_ms=50), opened_at=BOOT + 99.9, now=BOOT + 100)
    assert freshness.state(now=BOOT + 100) == "fresh"
    assert freshness.age_s(now=BOOT + 100) == pytest.approx(0.25)


def test_a_node_that_never_saw_the_table_gives_no_view_and_takes_none_away():
    freshness = Freshness(now=BOOT)
    freshness.heard(Heartbeat(age_ms=None, open_ms=0), opened_at=BOOT, now=BOOT)
    assert freshness.state(now=BOOT) == "starting"
    known = a_view()
    known.heard(Heartbeat(age_ms=None, open_ms=9000), opened_at=BOOT, now=BOOT + 9)
    assert known.age_s(now=BOOT + 9) == pytest.approx(9)


def test_a_view_of_the_first_second_after_the_system_started_is_one_too():
    """0.0 is a moment like any other."""
    freshness = Freshness(now=0.0)
    freshness.heard(Heartbeat(age_ms=0, open_ms=0), opened_at=0.0, now=0.0)
    freshness.heard(Heartbeat(age_ms=500, open_ms=0), opened_at=0.0, now=0.0)
    assert freshness.age_s(now=0.0) == 0


# --- what delays a word does not make it younger -------------------------------------------------------------------

some_s = st.floats(min_value=0, max_value=100, allow_nan=False)
boots = st.floats(min_value=0, max_value=1e7, allow_nan=False)


class Node:
    """An issuer's node: its own monotonic clock, which began whenever, and the moments at which it read the table."""

    def __init__(self, offset_s):
        self.offset_s = offset_s

    def heartbeat(self, *, opened_at, read_at, now):
        """All by the true time; what it says is counted by its own clock, in whole milliseconds."""
        own = [moment + self.offset_s for moment in (opened_at, read_at, now)]
        return Heartbeat(age_ms=int((own[2] - own[1]) * 1000), open_ms=int((own[2] - own[0]) * 1000))


@given(offset_s=boots, way_there=some_s, open_s=some_s, age_s=some_s, held_back_s=some_s, later_s=some_s)
def test_however_long_a_heartbeat_was_held_back_its_view_is_not_younger_than_the_truth(
    offset_s, way_there, open_s, age_s, held_back_s, later_s
):
    asked_at = BOOT
    opened_at = asked_at + way_there
    said_at = opened_at + open_s
    read_at = said_at - age_s
    heard_at = said_at + held_back_s
    freshness = Freshness(now=BOOT)
    freshness.heard(
        Node(offset_s).heartbeat(opened_at=opened_at, read_at=read_at, now=said_at), opened_at=asked_at, now=heard_at
    )
    now = heard_at + later_s
    truth = now - read_at
    assert freshness.age_s(now=now) >= truth - 0.002  # two roundings to milliseconds
    # Nor much older: by the way of the request, which nobody can know.
    assert freshness.age_s(now=now) <= truth + way_there + 0.002
    if truth > FRESH_S + 0.002:
        assert freshness.state(now=now) != "fresh"
    if truth > LOST_S + 0.002:
        assert freshness.state(now=now) == "lost"


@given(
    words=st.lists(st.tuples(some_s, some_s, some_s, some_s, some_s), min_size=1, max_size=8),
    offset_s=boots,
)
def test_of_many_words_of_several_nodes_the_youngest_view_counts_and_it_never_goes_backwards(words, offset_s):
    freshness = Freshness(now=BOOT)
    now, youngest, before = BOOT, -inf, inf
    for number, (way_there, open_s, age_s, held_back_s, later_s) in enumerate(words):
        asked_at = now
        said_at = asked_at + way_there + open_s
        read_at = said_at - age_s
        youngest = max(youngest, read_at)
        now = said_at + held_back_s
        age_before = freshness.age_s(now=now)
        freshness.heard(
            Node(offset_s * number).heartbeat(opened_at=asked_at + way_there, read_at=read_at, now=said_at),
            opened_at=asked_at,
            now=now,
        )
        assert freshness.age_s(now=now) <= age_before
        assert freshness.age_s(now=now) >= now - youngest - 0.002
        now += later_s
        before = freshness.age_s(now=now)
        assert freshness.age_s(now=now + 1) == pytest.approx(before + 1)


@given(
    age_ms=st.none() | st.integers(0, 2**53 - 1),
    open_ms=st.integers(0, 2**53 - 1),
    later_s=st.floats(min_value=0, max_value=1e6),
)
def test_whatever_a_node_says_no_view_comes_from_the_future(age_ms, open_ms, later_s):
    """One whose clock runs fast would else be young long after it fell silent."""
    freshness = Freshness(now=BOOT)
    freshness.heard(Heartbeat(age_ms=age_ms, open_ms=open_ms), opened_at=BOOT, now=BOOT + 1)
    assert freshness.age_s(now=BOOT + 1 + later_s) >= later_s - 1e-6
