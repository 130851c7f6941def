"""The rule of refresh rotation: an example for each row of its table, what always holds, and why each row is there."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.rotation import Action, RotationState, decide

W = 30
SECOND = 1_000_000
W_US = W * SECOND
NOW = 1_800_000_000 * SECOND
AGO, LONG_AGO = NOW - W_US, NOW - W_US - 1  # at most W ago, and a microsecond more

quick = settings(deadline=None, max_examples=500)


def state_of(generation=5, branch=2, parent_branch=1, made_at_us=LONG_AGO, handed_out_at_us=LONG_AGO):
    return RotationState(generation, branch, parent_branch, made_at_us, handed_out_at_us)


def present(state, generation, branch, now_us=NOW):
    return decide(state, generation=generation, branch=branch, now_us=now_us, window_s=W)


# --- one example for each row --------------------------------------------------------------------------------------


@pytest.mark.parametrize("handed_out_at_us", [AGO, AGO + 1, NOW - 1, NOW])
@pytest.mark.parametrize("made_at_us", [0, LONG_AGO, NOW])
def test_the_current_token_handed_out_lately_is_given_the_same_again(made_at_us, handed_out_at_us):
    state = state_of(made_at_us=made_at_us, handed_out_at_us=handed_out_at_us)
    assert present(state, 5, 2) == (Action.SAME_AGAIN, state, 0)


@pytest.mark.parametrize("handed_out_at_us", [LONG_AGO, LONG_AGO - 1, 0])
@pytest.mark.parametrize("made_at_us", [0, LONG_AGO, AGO, NOW])
def test_the_current_token_handed_out_longer_ago_is_replaced(made_at_us, handed_out_at_us):
    state = state_of(made_at_us=made_at_us, handed_out_at_us=handed_out_at_us)
    assert present(state, 5, 2) == (Action.ROTATE, RotationState(6, 0, 2, NOW, NOW), 0)


@pytest.mark.parametrize("handed_out_at_us", [AGO, NOW - 1, NOW])
@pytest.mark.parametrize("made_at_us", [AGO, NOW - 1, NOW])
def test_the_parent_within_the_window_is_given_the_current_token_again_and_that_is_noted(made_at_us, handed_out_at_us):
    state = state_of(made_at_us=made_at_us, handed_out_at_us=handed_out_at_us)
    assert present(state, 4, 1) == (Action.SAME_AGAIN, replace(state, handed_out_at_us=NOW), 0)


@pytest.mark.parametrize(
    ("handed_out_at_us", "retry_after_s"), [(NOW, 31), (NOW - 1, 30), (NOW - SECOND, 30), (AGO + 1, 1), (AGO, 1)]
)
@pytest.mark.parametrize("made_at_us", [LONG_AGO, 0])
def test_the_parent_waits_while_the_current_token_may_be_on_its_way(made_at_us, handed_out_at_us, retry_after_s):
    state = state_of(made_at_us=made_at_us, handed_out_at_us=handed_out_at_us)
    assert present(state, 4, 1) == (Action.WAIT, state, retry_after_s)
    # After that time the wait is over, and a microsecond of it is not enough to be told to wait for nothing.
    assert present(state, 4, 1, now_us=NOW + retry_after_s * SECOND).action is Action.BRANCH


@pytest.mark.parametrize("handed_out_at_us", [LONG_AGO, 0])
@pytest.mark.parametrize("made_at_us", [LONG_AGO, 0, AGO, NOW])
def test_the_parent_after_the_window_starts_another_branch(made_at_us, handed_out_at_us):
    state = state_of(made_at_us=made_at_us, handed_out_at_us=handed_out_at_us)
    assert present(state, 4, 1) == (Action.BRANCH, RotationState(5, 3, 1, NOW, NOW), 0)


@pytest.mark.parametrize("branch", [0, 1, 2, 7, 2**32 - 1])
def test_any_parent_counts_when_the_parents_branch_is_not_known(branch):
    after_adoption = state_of(parent_branch=None)
    assert present(after_adoption, 4, branch) == (Action.BRANCH, RotationState(5, 3, None, NOW, NOW), 0)
    fresh = state_of(parent_branch=None, made_at_us=AGO, handed_out_at_us=AGO)
    assert present(fresh, 4, branch).action is Action.SAME_AGAIN
    waiting = state_of(parent_branch=None, handed_out_at_us=AGO)
    assert present(waiting, 4, branch).action is Action.WAIT


@pytest.mark.parametrize(("generation", "branch"), [(6, 0), (6, 9), (7, 0), (5, 3), (5, 2**32 - 1), (2**64 - 1, 0)])
@pytest.mark.parametrize("handed_out_at_us", [0, LONG_AGO, AGO, NOW])
def test_a_position_ahead_of_the_row_is_adopted(generation, branch, handed_out_at_us):
    """We signed it, in a history that the database lost."""
    state = state_of(handed_out_at_us=handed_out_at_us)
    assert present(state, generation, branch) == (Action.ADOPT, RotationState(generation, branch, None, NOW, NOW), 0)


@pytest.mark.parametrize(
    ("generation", "branch"),
    [
        (3, 0),  # a grandparent
        (3, 1),
        (0, 0),
        (5, 1),  # a branch that was displaced
        (5, 0),
        (4, 0),  # the parent generation, in a branch that was displaced before
        (4, 2),  # or in one that never became the parent
        (4, 2**32 - 1),
    ],
)
@pytest.mark.parametrize("handed_out_at_us", [0, LONG_AGO, AGO, NOW])
@pytest.mark.parametrize("made_at_us", [0, LONG_AGO, AGO, NOW])
def test_anything_else_is_theft_whenever_it_comes(generation, branch, made_at_us, handed_out_at_us):
    """No grace for a grandparent or a displaced branch: a thief could live on it."""
    state = state_of(made_at_us=made_at_us, handed_out_at_us=handed_out_at_us)
    assert present(state, generation, branch) == (Action.THEFT, state, 0)


def test_grandparents_are_theft_after_an_adoption_too():
    assert present(state_of(parent_branch=None), 3, 0).action is Action.THEFT
    assert present(state_of(parent_branch=None), 5, 1).action is Action.THEFT


def test_the_first_generation_has_no_parent():
    first = RotationState(0, 0, None, LONG_AGO, LONG_AGO)
    assert present(first, 0, 0).action is Action.ROTATE
    assert present(replace(first, branch=1), 0, 0).action is Action.THEFT


# --- a clock that stepped back -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead_us", [1, SECOND, W_US, 10**15])
def test_a_time_in_the_future_counts_as_now_and_is_written_back(ahead_us):
    ahead = state_of(made_at_us=NOW + ahead_us, handed_out_at_us=NOW + ahead_us)
    mended = replace(ahead, made_at_us=NOW, handed_out_at_us=NOW)
    assert present(ahead, 5, 2) == (Action.SAME_AGAIN, mended, 0)
    assert present(ahead, 4, 1) == (Action.SAME_AGAIN, mended, 0)
    assert present(ahead, 3, 0) == (Action.THEFT, mended, 0)
    # Written back, it lets the window close W later, and not when the clock has caught up.
    assert present(mended, 5, 2, now_us=NOW + W_US + 1).action is Action.ROTATE


def test_each_of_the_two_times_is_mended_by_itself():
    handed_out_ahead = state_of(made_at_us=LONG_AGO, handed_out_at_us=NOW + 1)
    assert present(handed_out_ahead, 4, 1) == (Action.WAIT, replace(handed_out_ahead, handed_out_at_us=NOW), 31)
    made_ahead = state_of(made_at_us=NOW + 1, handed_out_at_us=AGO)
    assert present(made_ahead, 5, 2) == (Action.SAME_AGAIN, replace(made_ahead, made_at_us=NOW), 0)
    assert present(made_ahead, 4, 1) == (Action.SAME_AGAIN, RotationState(5, 2, 1, NOW, NOW), 0)


# --- what always holds ---------------------------------------------------------------------------------------------

generations = st.integers(0, 2**64 - 2) | st.integers(0, 6)
branches = st.integers(0, 2**32 - 2) | st.integers(0, 4)
near = st.sampled_from([-W_US - 1, -W_US, -1, 0, 1, W_US, W_US + 1]).map(lambda shift: NOW + shift)
times = st.integers(0, 2**62) | near
states = st.builds(RotationState, generations, branches, st.none() | branches, times, times)
windows = st.integers(1, 600) | st.just(W)


@quick
@given(
    state=states,
    presented=st.tuples(generations, branches) | st.just("parent") | st.just("current"),
    now_us=times,
    window_s=windows,
)
def test_every_presentation_has_one_decision_that_keeps_the_rules(state, presented, now_us, window_s):
    if presented == "parent":
        presented = (max(0, state.generation - 1), state.parent_branch or 0)
    elif presented == "current":
        presented = (state.generation, state.branch)
    generation, branch = presented
    action, after, retry_after_s = decide(state, generation=generation, branch=branch, now_us=now_us, window_s=window_s)
    before_position, position = (state.generation, state.branch), (after.generation, after.branch)

    assert position >= before_position  # a position never goes backwards
    assert after.made_at_us <= now_us
    assert after.handed_out_at_us <= now_us
    if action in {Action.SAME_AGAIN, Action.WAIT, Action.THEFT}:
        assert position == before_position
        assert after.parent_branch == state.parent_branch
        assert after.made_at_us == min(state.made_at_us, now_us)
    else:
        assert position > before_position
        assert after.made_at_us == after.handed_out_at_us == now_us
    if action is Action.ADOPT:
        assert position == presented
    if action is Action.ROTATE:
        assert presented == before_position
        assert (position, after.parent_branch) == ((state.generation + 1, 0), state.branch)
    if action is Action.BRANCH:
        assert (position, after.parent_branch) == ((state.generation, state.branch + 1), state.parent_branch)
    if action is Action.WAIT:
        assert 1 <= retry_after_s <= window_s + 1
    else:
        assert retry_after_s == 0
    if presented > before_position:
        assert action is Action.ADOPT
    if generation < state.generation - 1:
        assert action is Action.THEFT


@quick
@given(state=states, now_us=times, later_us=st.integers(0, W_US))
def test_what_was_just_handed_out_is_good_at_once_and_throughout_the_window(state, now_us, later_us):
    """Whatever a request is given, the next request that brings it within W gets the same."""
    for presented in ((state.generation, state.branch), (state.generation + 1, 0)):
        _, after, _ = decide(state, generation=presented[0], branch=presented[1], now_us=now_us, window_s=W)
        again = decide(
            after,
            generation=after.generation,
            branch=after.branch,
            now_us=after.handed_out_at_us + later_us,
            window_s=W,
        )
        assert again.action is Action.SAME_AGAIN
        assert (again.state.generation, again.state.branch) == (after.generation, after.branch)


@quick
@given(state=states, now_us=times)
def test_at_most_one_successor_within_a_window(state, now_us):
    """Ten requests at once with the current token: all get one and the same token."""
    answers = set()
    for _ in range(10):
        _, state, _ = decide(state, generation=state.generation, branch=state.branch, now_us=now_us, window_s=W)
        answers.add((state.generation, state.branch))
    assert len(answers) == 1


def test_a_thief_who_keeps_presenting_the_parent_does_not_keep_it_alive():
    state = state_of(made_at_us=NOW, handed_out_at_us=NOW)
    actions = []
    for seconds in range(20, 101, 20):
        action, state, _ = present(state, 4, 1, now_us=NOW + seconds * SECOND)
        actions.append(action)
    assert actions[:2] == [Action.SAME_AGAIN, Action.WAIT]  # handed out again at 20 s, not at 40 s
    assert Action.BRANCH in actions


def test_owner_and_thief_who_act_more_than_w_apart_do_not_both_go_on():
    """The thief copied the owner's token; each refreshes in turn. At the third change of hands it is over."""
    state = RotationState(0, 0, None, NOW, NOW)
    held = {"owner": (0, 0), "thief": (0, 0)}
    now_us, changes = NOW, 0
    while True:
        for who in ("owner", "thief"):
            now_us += W_US + SECOND
            action, state, _ = present(state, *held[who], now_us=now_us)
            if action is Action.THEFT:
                assert changes <= 3
                return
            held[who] = (state.generation, state.branch)
            changes += 1


# --- an honest client: why each row stands in the table ------------------------------------------------------------


class Server:
    """One session's row, and the answers to what is presented."""

    def __init__(self):
        self.now_us = NOW
        self.row = RotationState(0, 0, None, NOW, NOW)

    def answer(self, token):
        """The token that is given out, or none for a wait."""
        action, self.row, _ = present(self.row, *token, now_us=self.now_us)
        assert action is not Action.THEFT
        assert action is not Action.ADOPT
        return None if action is Action.WAIT else (self.row.generation, self.row.branch)

    def pass_s(self, seconds):
        self.now_us += int(seconds * SECOND)


def test_a_slow_second_tab_is_not_two_generations_behind():
    server = Server()
    server.pass_s(W + 1)
    slow_tab = (0, 0)  # sent now, taken up after the other tab has refreshed twice
    first = server.answer((0, 0))
    server.pass_s(1)
    assert server.answer(first) == first
    server.pass_s(1)
    assert server.answer(slow_tab) == first


def test_a_tab_that_was_helped_late_in_the_window_does_not_throw_out_the_other():
    server = Server()
    server.pass_s(W + 1)
    current = server.answer((0, 0))  # this reply is lost
    server.pass_s(W - 1)
    assert server.answer((0, 0)) == current  # the retry of one tab; the other's is on its way
    server.pass_s(2)
    assert server.answer(current) == current  # not replaced yet, for the sake of the other tab
    server.pass_s(2)
    assert server.answer((0, 0)) in {current, None}


def test_a_retry_three_days_after_a_lost_reply_is_answered():
    server = Server()
    server.pass_s(W + 1)
    lost = server.answer((0, 0))
    server.pass_s(3 * 86_400)
    found = server.answer((0, 0))
    assert found > lost
    server.pass_s(W + 1)
    assert server.answer(found) == (2, 0)


def test_replies_may_be_lost_again_and_again():
    server = Server()
    for _ in range(20):
        server.pass_s(W + 1)
        assert server.answer((0, 0)) > (0, 0)
