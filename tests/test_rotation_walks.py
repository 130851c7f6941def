"""The promises of refresh rotation, tried at random in seconds and days; test_rotation_model proves them in ticks."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rotation_world import MOVES
from sekisho.rotation import MICROSECONDS, Action, RotationState
from test_rotation_model import DAY_US, W_US, position, present

TIMEOUT_US, SERVER_US = W_US // 4, W_US // 2

pauses = st.sampled_from(
    [1, MICROSECONDS, TIMEOUT_US // 2, TIMEOUT_US, SERVER_US, W_US - 1, W_US, W_US + 1, 2 * W_US, 3 * DAY_US]
)
steps_back = st.sampled_from([1, MICROSECONDS, W_US, DAY_US, 30 * DAY_US])


class HonestClients(RuleBasedStateMachine):
    """Tabs on a bad network, nodes that read and write between each other's steps, a database that fails over."""

    @initialize()
    def sign_in(self):
        self.now_us = 0  # of the database; messages carry their own age
        self.row, self.jar = RotationState(0, 0, None, 0, 0), (0, 0)
        self.sent, self.read, self.replies = [], [], []  # (token, age, what was read, what was decided)
        self.commits = []  # (the row before it, the action)
        self.quiet = False  # until all messages are over

    def pick(self, data, messages):
        return messages.pop(data.draw(st.integers(0, len(messages) - 1)))

    @precondition(lambda self: not self.quiet and len(self.sent) < 6)
    @rule()
    def a_tab_sends_what_the_jar_holds(self):
        self.sent.append((self.jar, 0))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def a_node_reads_the_row(self, data):
        token, age_us = self.pick(data, self.sent)
        decision = present(self.row, token, self.now_us)
        assert decision.action is not Action.THEFT
        if decision.action is Action.WAIT:
            then_us = self.now_us + decision.retry_after_s * MICROSECONDS
            assert present(decision.state, token, then_us).action is not Action.WAIT
        if decision.state != self.row:
            self.read.append((token, age_us, self.row, decision))
        elif decision.action is not Action.WAIT:
            self.replies.append((position(self.row), age_us))

    @precondition(lambda self: self.read)
    @rule(data=st.data())
    def a_node_writes_the_row(self, data):
        token, age_us, read, (action, after, _) = self.pick(data, self.read)
        if (position(read), read.handed_out_at_us) != (position(self.row), self.row.handed_out_at_us):
            self.sent.append((token, age_us))  # decided again
            return
        assert position(after) >= position(self.row)
        self.commits.append((self.row, action))
        self.row = after
        if action is not Action.WAIT and age_us <= TIMEOUT_US:
            self.replies.append((position(after), age_us))

    @precondition(lambda self: self.replies)
    @rule(data=st.data(), lost=st.booleans())
    def a_reply_arrives_or_is_lost(self, data, lost):
        token, _ = self.pick(data, self.replies)
        self.jar = self.jar if lost else token

    @rule(us=pauses)
    def time_passes(self, us):
        self.now_us += us
        self.sent = [(token, age + us) for token, age in self.sent if age + us <= SERVER_US]
        self.read = [(token, age + us, *rest) for token, age, *rest in self.read if age + us <= SERVER_US]
        self.replies = [(token, age + us) for token, age in self.replies if age + us <= TIMEOUT_US]
        self.quiet = self.quiet and bool(self.sent or self.read or self.replies)

    @rule(us=steps_back)
    def the_clock_steps_back(self, us):
        self.now_us -= us

    @precondition(lambda self: self.commits)
    @rule(data=st.data())
    def the_database_loses_its_last_commits(self, data):
        first = data.draw(st.integers(max(0, len(self.commits) - 6), len(self.commits) - 1))
        lost = [action for _, action in self.commits[first:]]
        rotations = set(lost) <= {Action.ROTATE, Action.ADOPT}
        requests = [token for token, *_ in self.sent + self.read]
        one_in_flight = len(requests) + len(self.replies) <= 1 and set(requests) <= {self.jar}
        if rotations or one_in_flight:
            self.row = self.commits[first][0]
            self.sent += [(token, age_us) for token, age_us, *_ in self.read]  # their transactions are rolled back
            del self.read[:], self.commits[first:]
            self.quiet = (self.quiet or not rotations) and bool(self.sent or self.replies)

    @invariant()
    def of_each_generation_one_token_is_held_or_under_way(self):
        held = {self.jar, *(token for token, *_ in self.sent + self.read + self.replies)}
        assert len(held) == len({generation for generation, _ in held})


HonestClients.TestCase.settings = settings(deadline=None, max_examples=150, stateful_step_count=50)
TestHonestClients = HonestClients.TestCase


@pytest.mark.long
class TestManyHonestClients(HonestClients.TestCase):
    settings = settings(deadline=None, max_examples=10_000, stateful_step_count=100)


# --- at random, in seconds and days: an owner and a thief ----------------------------------------------------------


class OwnerAndThief(RuleBasedStateMachine):
    """Each acts more than W after the other. The thief presents whatever he was ever given."""

    @initialize(stolen_in_use=st.booleans())
    def steal(self, stolen_in_use):
        self.now_us = self.acted_us = 0
        self.row, self.jar, self.loot = RotationState(0, 0, None, -1, -1), (0, 0), [(0, 0)]
        if stolen_in_use:
            self.row, self.jar = RotationState(1, 0, 0, -1, -1), (1, 0)
        self.before = []  # rows that a failover may go back to
        self.last = self.hand = None
        self.changes = self.mishaps = 0
        self.failed_over = self.ended = False

    def act(self, who, token):
        """What was given, if anything."""
        if self.last != who:
            self.now_us = max(self.now_us, self.acted_us + W_US + 1)
        action, after, _ = present(self.row, token, self.now_us)
        if action in MOVES or action is Action.THEFT:
            self.changes += self.hand not in {who, None}
            self.hand = who
        self.ended = action is Action.THEFT
        most = 3 + 2 * self.mishaps
        assert self.changes <= most if self.ended else self.changes < most
        self.before.append(self.row)
        self.row, self.last, self.acted_us = after, who, self.now_us
        return None if action is Action.WAIT or self.ended else position(after)

    @precondition(lambda self: not self.ended)
    @rule(arrives=st.booleans())
    def the_owner_refreshes(self, arrives):
        given = self.act("owner", self.jar)
        if given is not None:
            self.mishaps += not arrives
            self.jar = given if arrives else self.jar

    @precondition(lambda self: not self.ended)
    @rule(data=st.data())
    def the_thief_refreshes(self, data):
        given = self.act("thief", data.draw(st.sampled_from(self.loot[-4:])))
        if given is not None and given not in self.loot:
            self.loot.append(given)

    @rule(us=pauses)
    def time_passes(self, us):
        self.now_us += us

    @precondition(lambda self: self.mishaps < 3)
    @rule(us=steps_back)
    def the_clock_steps_back(self, us):
        self.now_us -= us
        self.acted_us -= us
        self.mishaps += 1

    @precondition(lambda self: self.mishaps < 3 and self.before and not self.ended)
    @rule(data=st.data())
    def the_database_loses_its_last_commits(self, data):
        first = data.draw(st.integers(max(0, len(self.before) - 4), len(self.before) - 1))
        self.row = self.before[first]
        del self.before[first:]
        self.mishaps += 1
        self.failed_over = True

    @invariant()
    def nothing_is_good_but_the_current_token_and_its_parent(self):
        parent = self.row.generation - 1, self.row.parent_branch
        if not self.failed_over:
            good = {one for one in self.loot if present(self.row, one, self.now_us).action is not Action.THEFT}
            assert good <= {position(self.row), parent, (0, 0)}


OwnerAndThief.TestCase.settings = settings(deadline=None, max_examples=150, stateful_step_count=40)
TestOwnerAndThief = OwnerAndThief.TestCase


@pytest.mark.long
class TestManyOwnersAndThieves(OwnerAndThief.TestCase):
    settings = settings(deadline=None, max_examples=10_000, stateful_step_count=60)
