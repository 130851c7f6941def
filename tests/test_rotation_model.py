"""The promises of refresh rotation, proved in small worlds to the last state. test_rotation_walks tries large ones.

``rotation_world`` says what an honest client is. Proved, with W the window, TC the client's time-out, and L the longest
time from the reading of the jar to the commit of what the server decided:

- **No honest refresh is refused** while W ≥ 2 TC + L. With TC = W/4 the server has W/2. The database's clock may step
  back at any time by any amount. (Forward it may step while nothing is in flight: to the rule that is time passing.)
- A database may lose its last commits, however many, when nothing is in flight; or when one request is, with what the
  jar holds, and none is sent until it is over; or with any number in flight when what it loses are rotations
  and adoptions alone (and, while no clock steps back, a branch as the first). Beyond that a session can end, and a test shows how.
- **Never two current tokens**: of all that honest tabs hold or wait for there is one in each generation; of all that was
  ever handed out nothing is good but the current token and its parent, which leads to it.
- **Owner and thief more than W apart**: the session ends at the latest at the third change of hands. Each reply to the
  owner that is lost, each step back of the clock and each failover gives at most two more.
- **A thief who acts sooner** is found once a refresh of the owner had none of his acts within W before or after it: when
  he acts again, at the latest by the owner's next refresh. One who polls the parent is found at any period.
"""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rotation_world import FIRST, Bounds, Broken, Failover, explore, honest_canonical, honest_steps
from sekisho.rotation import MICROSECONDS, Action, RotationState, decide
from theft_world import Rules, theft_canonical, theft_steps, thefts

W = 30
W_US = W * MICROSECONDS
DAY_US = 86_400 * MICROSECONDS


def present(row, token, now_us):
    return decide(row, generation=token[0], branch=token[1], now_us=now_us, window_s=W)


def position(row):
    return row.generation, row.branch


# --- to the last state: an honest client ---------------------------------------------------------------------------


def honest_states(bounds):
    return len(explore([FIRST], lambda world: honest_steps(world, bounds), honest_canonical))


@pytest.mark.parametrize(
    ("bounds", "states"),
    [
        (Bounds(window=3, timeout=1, server=2, in_flight=4), 5_820),
        (Bounds(window=5, timeout=2, server=2, in_flight=3), 6_201),
        (Bounds(window=3, timeout=1, server=2, in_flight=3, clock_steps_back=True), 2_830),
        (Bounds(window=3, timeout=1, server=2, in_flight=2, two_steps=True), 2_958),
        (Bounds(window=4, timeout=1, server=2, in_flight=2, failover=Failover.NOTHING_IN_FLIGHT), 46_867),
        (Bounds(window=4, timeout=1, server=2, in_flight=2, failover=Failover.ONE_IN_FLIGHT), 47_700),
        (Bounds(window=4, timeout=1, server=2, in_flight=2, failover=Failover.NOTHING_RENEWED), 11_877),
        (Bounds(4, 1, 2, in_flight=2, failover=Failover.ROTATIONS_LOST, clock_steps_back=True), 17_072),
    ],
)
def test_no_honest_refresh_is_refused(bounds, states):
    """The number of states is no promise; it tells when a change of the model has made the world smaller."""
    assert honest_states(bounds) == states


@pytest.mark.long
@pytest.mark.parametrize(
    "bounds",
    [
        Bounds(window=3, timeout=1, server=2, in_flight=7),
        Bounds(window=7, timeout=2, server=4, in_flight=4),
        Bounds(window=8, timeout=3, server=3, in_flight=4),
        Bounds(window=7, timeout=2, server=4, in_flight=3, clock_steps_back=True),
        Bounds(window=3, timeout=1, server=2, in_flight=4, two_steps=True),
        Bounds(window=5, timeout=2, server=2, in_flight=3, two_steps=True),
        Bounds(window=4, timeout=1, server=2, in_flight=3, failover=Failover.NOTHING_IN_FLIGHT, clock_steps_back=True),
        Bounds(window=4, timeout=1, server=2, in_flight=3, failover=Failover.ONE_IN_FLIGHT, clock_steps_back=True),
        Bounds(window=4, timeout=1, server=2, in_flight=3, failover=Failover.NOTHING_RENEWED),
        Bounds(window=6, timeout=2, server=2, in_flight=3, failover=Failover.ROTATIONS_LOST, clock_steps_back=True),
    ],
)
def test_no_honest_refresh_is_refused_in_larger_worlds(bounds):
    assert honest_states(bounds) > 10_000


@pytest.mark.parametrize(("timeout", "server"), [(1, 1), (1, 2), (1, 3), (2, 2), (2, 3)])
def test_the_least_window_is_twice_the_time_out_and_the_servers_time(timeout, server):
    """In ticks: a reply that is overtaken comes a tick before TC, and a token is replaced a tick after the window."""
    least = 2 * timeout + server - 1
    assert honest_states(Bounds(least, timeout, server, in_flight=3)) > 500
    with pytest.raises(Broken):
        honest_states(Bounds(least - 1, timeout, server, in_flight=3))


@pytest.mark.parametrize("window", [3, 7])
def test_a_write_that_compares_only_the_position_throws_honest_users_out(window):
    """Whatever the window: a late branch displaces what another request was handed again in the meantime."""
    bounds = Bounds(window, timeout=1, server=2, in_flight=2, two_steps=True, compare_handed_out=False)
    with pytest.raises(Broken):
        honest_states(bounds)


def test_a_failover_at_any_time_can_end_a_session():
    """The stated limit: two requests in flight, and what is lost is that the token was handed out again."""
    with pytest.raises(Broken, match=r"same_again.*fail over.*branch"):
        honest_states(Bounds(window=4, timeout=1, server=2, in_flight=2, failover=Failover.ANY_TIME))


# --- to the last state: an owner and a thief -----------------------------------------------------------------------


def theft_states(rules):
    def canonical(theft):
        return theft_canonical(theft, rules.window)

    return len(explore(thefts(rules.window), lambda theft: theft_steps(theft, rules), canonical))


@pytest.mark.parametrize(
    ("mishaps", "states"), [(0, 1_451), (1, 4_647), (2, 10_524), pytest.param(9, 0, marks=pytest.mark.long)]
)
def test_more_than_w_apart_the_session_ends_at_the_third_change_of_hands(mishaps, states):
    """Two more for each mishap."""
    assert theft_states(Rules(window=2, apart=True, mishaps=mishaps)) >= states


@pytest.mark.parametrize("window", [1, 2, 4, pytest.param(12, marks=pytest.mark.long)])
def test_one_refresh_of_the_owner_without_the_thief_near_it_is_enough(window):
    assert theft_states(Rules(window, apart=False)) > 1_000


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_the_third_change_of_hands_can_be_reached(lost):
    """The thief presents what he stole again and again: the branches that he displaces are the owner's."""
    now_us, stolen = 0, (0, 0)
    row, jar, changes = RotationState(0, 0, None, 0, 0), stolen, -1
    while True:
        for who, token in (("thief", stolen), ("owner", jar)):
            now_us, changes = now_us + W_US + 1, changes + 1
            action, row, _ = present(row, token, now_us)
            if action is Action.THEFT:
                assert changes == 3 + 2 * lost
                return
            if who == "owner" and changes > 2 * lost:
                jar = position(row)


# --- a thief who polls ---------------------------------------------------------------------------------------------


def polled(*, owner, thief, thief_keeps_up, until_s):
    """When the session ended, if it did, and when the two acted. Each of them: (every so many seconds, first at).

    The thief stole the current token. He presents it each time, or keeps up: presents the last that he was given.
    """
    row, held = RotationState(0, 0, None, -W_US - 1, -W_US - 1), [(0, 0), (0, 0)]
    (every, due), acts = map(list, zip(owner, thief, strict=True)), ([], [])
    while min(due) < until_s:
        who = due.index(min(due))
        now_s = due[who]
        action, row, retry_after_s = present(row, held[who], now_s * MICROSECONDS)
        if action is Action.THEFT:
            return now_s, acts
        acts[who].append(now_s)
        is_owner, waits = who == 0, action is Action.WAIT
        due[who] += retry_after_s if is_owner and waits else every[who]
        if not waits and (is_owner or thief_keeps_up):
            held[who] = position(row)
    return None, acts


@pytest.mark.parametrize("owner_every_s", [31, 45, 60, 90, 900, 3600])
def test_a_thief_who_polls_the_parent_is_found_at_any_period(owner_every_s):
    """The owner's next refresh makes the stolen token the parent; if the thief does not branch, the one after ends it."""
    for thief_every_s in [*range(1, 130), *range(130, 3600, 41), 899, 900, 901, 1800, 3600]:
        for owner_first_s in {1, owner_every_s // 2, owner_every_s}:
            latest_s = owner_first_s + 3 * owner_every_s + thief_every_s + W
            for thief_first_s in {0, 1, thief_every_s}:
                owner, thief = (owner_every_s, owner_first_s), (thief_every_s, thief_first_s)
                assert polled(owner=owner, thief=thief, thief_keeps_up=False, until_s=latest_s + 1)[0] is not None


@settings(deadline=None, max_examples=200)
@given(
    owner=st.tuples(st.integers(W + 1, 3600), st.integers(0, 3600)),
    thief=st.tuples(st.integers(1, 3600), st.integers(0, 3600)),
)
@example(owner=(45, 0), thief=(1, 0))
@example(owner=(900, 0), thief=(900, 10))
@example(owner=(900, 0), thief=(450, 10))
def test_a_thief_who_keeps_up_is_found_unless_he_acts_within_w_of_every_refresh_of_the_owner(owner, thief):
    found_s, (owner_acts, thief_acts) = polled(owner=owner, thief=thief, thief_keeps_up=True, until_s=30_000)
    if found_s is None:
        last = thief_acts[-1]
        assert all(any(abs(one - other) <= W for other in thief_acts) for one in owner_acts if one < last - W)


@pytest.mark.parametrize(("owner_every_s", "thief_every_s", "thief_first_s"), [(900, 900, W), (45, 1, 0)])
def test_a_thief_who_acts_within_w_of_every_refresh_is_not_found(owner_every_s, thief_every_s, thief_first_s):
    """The stated limit: to the server the two are one client with two tabs."""
    owner, thief = (owner_every_s, 0), (thief_every_s, thief_first_s)
    assert polled(owner=owner, thief=thief, thief_keeps_up=True, until_s=DAY_US // MICROSECONDS)[0] is None
