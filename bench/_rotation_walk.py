"""Random walks for rotation.py: the tabs of an owner, and a thief who holds a copy of the owner's token.

Tabs share one jar. They refresh when the access token nears its end, at once or a while apart, and all at once when the
laptop is opened or the tabs come to the front. Requests and replies take a time with a heavy tail, overtake each other
and are lost; who has no reply after the time-out tries again, seconds later or when the laptop is opened next. A server
carries out nothing that is older than the time-out, which is a quarter of Sekisho's window. Times in seconds.
"""

import heapq
import random
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from _rotation_rules import WINDOW_S, Answer, Rule, Token

TIMEOUT_S: Final = WINDOW_S / 4
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
REFRESH_S = (10 * MINUTE, 15 * MINUTE)  # from one refresh to the next
AT_ONCE_S = 0.2
APART_S = 45.0
SLEEPS = 0.05  # share of the refreshes after which the laptop is closed
AWAKENED = 0.2  # share after which the tabs come to the front before their time
CLOSED_AFTER_LOSS = 0.1  # share of the lost messages during which the laptop is closed
TAILS = (1.1, 0.4)  # of the latencies, one for each session: seconds for one message in 200, or in 7
ANY_ROUND = -1


class Walk:
    """One session of an owner with so many tabs, under one rule."""

    def __init__(self, rule: Rule, rng: random.Random, *, tabs: int, loss: float, rounds: float) -> None:
        self.rule, self.rng = rule, rng
        self.jar = rule.first
        self.round = 0  # how often the owner has refreshed
        self.out = False  # the owner has no token that works
        self.now = self.last_sent = 0.0
        self.refreshed: Callable[[], None] | None = None  # called at each refresh of the owner
        self._tabs, self._loss, self._rounds = tabs, loss, rounds
        self._asleep_until = self._until = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._pushed = 0
        self._tail = rng.choice(TAILS)
        self._plan_round()

    def at(self, when: float, event: Callable[..., None], *arguments: object) -> None:
        self._pushed += 1
        heapq.heappush(self._events, (when, self._pushed, event, arguments))

    def run(self, until: float = float("inf")) -> None:
        """To the end of the session or of the time, or until nobody does anything any more."""
        events, rule, self._until = self._events, self.rule, until
        while events and events[0][0] <= until and not rule.ended:
            self.now, _, event, arguments = heapq.heappop(events)
            event(*arguments)

    def next_event(self) -> float:
        """When something else happens, or the time is over."""
        return min(self._events[0][0], self._until) if self._events else self._until

    def _plan_round(self) -> None:
        """When the tabs refresh next."""
        rng, draw = self.rng, self.rng.random()
        if draw < SLEEPS:
            self.at(self.now + _sleep_s(rng), self._awake, self.round)
        elif draw < SLEEPS + AWAKENED:
            self.at(self.now + rng.uniform(1, REFRESH_S[0]), self._awake, self.round)
        else:
            start = self.now + rng.uniform(*REFRESH_S)
            apart = rng.choice((AT_ONCE_S, APART_S))
            for _ in range(self._tabs):
                self.at(start + apart * rng.random(), self._send, self.round, 0, None)

    def _awake(self, round_: int) -> None:
        """All at once, and whether or not another has just done so."""
        if round_ == self.round:
            for _ in range(self._tabs):
                self.at(self.now + AT_ONCE_S * self.rng.random(), self._send, ANY_ROUND, 0, None)

    def _send(self, round_: int, attempt: int, refused: Token | None) -> None:
        if self.now < self._asleep_until:
            self.at(self._asleep_until + self.rng.uniform(0, AT_ONCE_S), self._send, round_, attempt, refused)
            return
        another_has = round_ not in (self.round, ANY_ROUND)
        if another_has or self.out or self.round >= self._rounds:
            return
        token = self.jar
        if refused is not None and token == refused:
            self.out = True
            return
        self.last_sent = self.now
        draw = self.rng.random()
        if draw < self._loss / 2:
            self._retry(self.round, attempt)
            return
        reply_lost = draw < self._loss
        took = self._latency(TIMEOUT_S if reply_lost else TIMEOUT_S / 2)
        self.at(self.now + took, self._arrive, token, self.round, attempt, reply_lost)
        if reply_lost:
            self._retry(self.round, attempt)

    def _latency(self, most: float) -> float:
        return min(0.03 * self.rng.paretovariate(self._tail), most)

    def _retry(self, round_: int, attempt: int) -> None:
        """After the time-out and a while, which doubles. The laptop may be closed meanwhile."""
        if self.rng.random() < CLOSED_AFTER_LOSS:
            self._asleep_until = self.now + _sleep_s(self.rng)
        pause = 2 ** min(attempt, 6) * self.rng.uniform(0.5, 1.5)
        self.at(self.now + TIMEOUT_S + pause, self._send, round_, attempt + 1, None)

    def _arrive(self, token: Token, round_: int, attempt: int, reply_lost: bool) -> None:
        """At the server."""
        answer = self.rule.present(token, self.now)
        if answer.token is not None and self.refreshed:
            self.refreshed()
        if not reply_lost:
            self.at(self.now + self._latency(TIMEOUT_S / 2), self._receive, token, answer, round_, attempt)

    def _receive(self, token: Token, answer: Answer, round_: int, attempt: int) -> None:
        """At the tab. A refused one looks into the jar again when what is on its way has arrived."""
        if self.now < self._asleep_until:
            self.at(self._asleep_until, self._send, round_, attempt, None)
        elif answer.token is not None:
            self.jar = answer.token
            if self.rule.sees_access:
                self.at(self.now + self._latency(TIMEOUT_S), self.rule.accessed, answer.token)
            if round_ == self.round:
                self.round += 1
                self._plan_round()
        elif answer.wait_s:
            self.at(self.now + answer.wait_s + self.rng.random(), self._send, round_, attempt, None)
        else:
            self.at(self.now + TIMEOUT_S, self._send, round_, attempt, token)


def _sleep_s(rng: random.Random) -> float:
    return rng.uniform(1 * DAY, 5 * DAY) if rng.random() < 0.1 else rng.uniform(1 * HOUR, 16 * HOUR)


class Thief:
    """Copies the token in the jar once, and then follows his strategy. His messages are not lost."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._token = walk.jar
        self.since = walk.now
        self.got = 0  # access tokens
        self.out = False  # refused, though the session lives

    def _use(self, now: float) -> Answer:
        answer = self._walk.rule.present(self._token, now)
        if answer.token is not None:
            self.got += 1
            self._walk.rule.accessed(answer.token)
        elif not answer.wait_s:
            self.out = True
        return answer

    def client(self) -> None:
        """Uses it at once and goes on like a client."""
        walk = self._walk
        answer = self._use(walk.now)
        if answer.token is not None:
            self._token = answer.token
        if not self.out:
            walk.at(walk.now + (answer.wait_s or walk.rng.uniform(*REFRESH_S)), self.client)

    def poll(self) -> None:
        """Presents the stolen token again and again, every second to every hour, and keeps none that he is given."""
        self.period = HOUR ** self._walk.rng.random()
        self._poll()

    def _poll(self) -> None:
        walk = self._walk
        when, before = walk.now, walk.next_event()
        while not (self.out or walk.rule.ended) and when <= before:
            walk.now = when
            self._use(when)
            when += self.period
        if not self.out:
            walk.at(when, self._poll)

    def away(self) -> None:
        """Waits until the owner has been quiet for half an hour, copies the token then and goes on like a client."""
        walk = self._walk
        if walk.now - walk.last_sent > 30 * MINUTE:
            self._token, self.since = walk.jar, walk.now
            self.client()
        else:
            walk.at(walk.now + 10 * MINUTE, self.away)

    def once(self) -> None:
        """Uses it once, at once, and throws away what he is given."""
        self._use(self._walk.now)

    def shadow(self) -> None:
        """Sees when the owner refreshes, and does so himself 1 to 10 seconds later."""
        self._walk.refreshed = self._follow
        self._due = False

    def _follow(self) -> None:
        if not (self._due or self.out):
            self._due = True
            self._walk.at(self._walk.now + self._walk.rng.uniform(1, 10), self._shadow_use)

    def _shadow_use(self) -> None:
        self._due = False
        self._token = self._use(self._walk.now).token or self._token


class Theft(NamedTuple):
    """What became of one thief."""

    found_after: float | None  # seconds; None: never
    inside: bool  # at the end he still holds a token that works, as far as he knows
    got: int
    period: float | None


def honest(rule: Rule, rng: random.Random, *, tabs: int, loss: float, rounds: int) -> bool:
    """Whether an owner of whom nobody has stolen anything keeps the session for so many refreshes."""
    walk = Walk(rule, rng, tabs=tabs, loss=loss, rounds=rounds)
    walk.run()
    kept = walk.round >= rounds
    if not kept and not (walk.out or rule.ended):
        raise RuntimeError(f"{rule.name}: the walk stood still at refresh {walk.round}")
    return kept


def robbed(
    new_rule: type[Rule], rng: random.Random, strategy: Callable[[Thief], None], *, loss: float, days: float
) -> Theft:
    """A theft during the first hours of a session that lives, and the days after it."""
    while True:
        walk = Walk(new_rule(), rng, tabs=rng.choice((1, 2)), loss=loss, rounds=float("inf"))
        stolen_at = rng.uniform(0, 2 * HOUR)
        walk.run(until=stolen_at)
        if not (walk.rule.ended or walk.out):
            break
    walk.now = stolen_at
    thief = Thief(walk)
    strategy(thief)
    walk.run(until=stolen_at + days * DAY)
    ended = walk.rule.ended
    inside = not (ended or thief.out or strategy is Thief.once)
    return Theft(walk.now - thief.since if ended else None, inside, thief.got, getattr(thief, "period", None))
