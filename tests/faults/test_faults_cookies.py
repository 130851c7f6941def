"""Sessions by cookie and by token side by side, while nodes die, Redis comes and goes, and PostgreSQL restarts."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import count
from threading import Event

import pytest
from callers import Caller, Visitor
from fleets import StartNodes
from history import Call
from outsiders import Rows
from scene import Scene, StartScene

from servers.postgres import PostgresServer
from servers.redis import RedisServer
from servers.sekisho_server import RunningServer
from test_serve import wait_until

RECOVERY_S = 10.0
PAUSE_S = 0.04  # between two calls of one person: the faults are those below, not a flood


class Town:
    """Those who stay and those who come and go, some with a cookie and some with tokens, on any node."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self.scene = scene
        self.seed = seed
        self.over = Event()
        self.staying: list[tuple[Caller, Visitor]] = []
        self.gone: list[Visitor] = []
        for number in range(2):
            owner = scene.owner(f"owner {number}", door=self._node(number))
            visitor = scene.visitor(f"visitor {number}", door=self._node(number + 1), account_of=owner)
            assert visitor.log_in().status == 200
            self.staying.append((owner, visitor))

    def lives(self) -> list[Callable[[], None]]:
        """What each of them does until it is over, in a thread of its own."""
        stays = [partial(self._stays, caller) for pair in self.staying for caller in pair]
        return [*stays, *(partial(self._come_and_go, number) for number in range(2))]

    def calls(self) -> int:
        return len(self.scene.history.calls)

    def finds_itself_whole(self) -> None:
        """Who stayed is let in everywhere. Who left knocks everywhere; the check of the history looks at the answers."""
        for owner, visitor in self.staying:
            for node in self.scene.nodes:
                for asks in (visitor.me, visitor.page, owner.refresh, owner.me):
                    assert insisted(partial(asks, node)).status == 200
        for visitor in self.gone:
            for node in self.scene.nodes:
                assert insisted(partial(visitor.me, node)).status in {200, 401}

    def _node(self, number: int) -> RunningServer:
        return self.scene.nodes[number % len(self.scene.nodes)]

    def _stays(self, caller: Caller) -> None:
        rng = random.Random(f"{self.seed} {caller.who}")
        acts = [caller.me, caller.page] if isinstance(caller, Visitor) else [caller.me, caller.refresh]
        while not self.over.wait(PAUSE_S):
            rng.choice(acts)(rng.choice(self.scene.nodes))
            if not isinstance(caller, Visitor) and rng.random() < 0.1:
                caller.insists(rng.choice(self.scene.nodes))  # with a token that lives on, whatever was lost

    def _come_and_go(self, who: int) -> None:
        """In on one node, about on another, out on the third; and then at every door again."""
        rng = random.Random(f"{self.seed} guests {who}")
        host, _ = self.staying[who]
        for number in count():
            if self.over.is_set():
                return
            one, two, three = rng.sample(self.scene.nodes, 3)
            guest = self.scene.visitor(f"guest {who}.{number}", door=one, account_of=host)
            if insisted(partial(guest.log_in, one)).status != 200:
                continue
            for _ in range(rng.randrange(4)):
                rng.choice([guest.me, guest.page])(two)
            leaves = rng.choice([guest.log_out, guest.log_out, partial(host.ends, guest.session)])
            if insisted(partial(leaves, three)).status not in {204, 404}:  # 404: ended, by a call that was lost
                continue
            self.gone.append(guest)
            for node in (three, *rng.choices(self.scene.nodes, k=5)):
                rng.choice([guest.me, guest.page])(node)
                self.over.wait(PAUSE_S)


def insisted(asks: Callable[[], Call]) -> Call:
    """Again and again, as people do, while nobody answers."""
    give_up_at = time.monotonic() + RECOVERY_S
    while (call := asks()).status in {None, 503} and time.monotonic() < give_up_at:
        time.sleep(random.uniform(0.02, 0.1))
    return call


# --- what befalls them ---------------------------------------------------------------------------------------------


class Misfortunes:
    """Each begins at a moment of its own, lasts while people go on calling, and is over when it returns."""

    def __init__(self, town: Town, redis: RedisServer, postgres: PostgresServer) -> None:
        self._town = town
        self._redis = redis
        self._postgres = postgres
        self._rng = random.Random(town.seed)

    def befall(self, *names: str) -> None:
        """All of these, in an order of their own."""
        for name in self._rng.sample(names, len(names)):
            self._calls_go_on(self._rng.randrange(10, 30))
            getattr(self, name.replace(" ", "_"))()
        self._calls_go_on(20)

    def node_killed(self) -> None:
        node = self._rng.choice(self._town.scene.nodes)
        node.kill()
        self._calls_go_on(self._rng.randrange(10))
        node.start()

    def redis_flushed(self) -> None:
        self._redis.flush()

    def redis_killed(self) -> None:
        self._redis.stop(signal.SIGKILL)
        self._calls_go_on(self._rng.randrange(10, 30))
        self._redis.start()

    def redis_stalled(self) -> None:
        process = self._redis._process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        try:
            self._calls_go_on(self._rng.randrange(10, 30))
        finally:
            process.send_signal(signal.SIGCONT)

    def redis_rewound(self) -> None:
        """It comes back with what it knew a while ago."""
        assert self._redis._ask("SAVE\r\n", lines=1) == "+OK\r\n"
        self._calls_go_on(self._rng.randrange(20, 50))
        self._redis.stop(signal.SIGKILL)
        self._redis.start()

    def postgresql_restarted(self) -> None:
        with self._nobody_reads_the_feed():
            self._postgres.stop("immediate")
            self._calls_go_on(self._rng.randrange(5, 20))
            self._postgres.start()

    @contextmanager
    def _nobody_reads_the_feed(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._town.scene.history.blind.append((began, time.monotonic()))

    def _calls_go_on(self, number: int) -> None:
        already = self._town.calls()
        wait_until(lambda: self._town.calls() >= already + number, within_s=30, what="they go on calling")


EACH_OF_THEM = (
    "node killed",
    "redis flushed",
    "redis killed",
    "redis stalled",
    "redis rewound",
    "postgresql restarted",
)


def befallen(
    scene: Scene, redis: RedisServer, postgres: PostgresServer, *, seed: int, times: int, misfortunes: tuple[str, ...]
) -> None:
    town = Town(scene, seed)
    lives = town.lives()
    with ThreadPoolExecutor(len(lives)) as threads:
        running = [threads.submit(life) for life in lives]
        try:
            fate = Misfortunes(town, redis, postgres)
            for _ in range(times):
                fate.befall(*misfortunes)
        finally:
            town.over.set()
        for life in running:
            life.result(RECOVERY_S + 30)
    town.finds_itself_whole()
    assert len(town.gone) >= 2
    lost = [event for node in scene.nodes for event in scene.events(node, "session_cache_lost")]
    assert lost, "Redis was missed"
    scene.check()


@pytest.fixture
def on_redis(private_redis: RedisServer) -> dict[str, str]:
    return {"SEKISHO_REDIS_URL": private_redis.url, "SEKISHO_MAX_SESSIONS": "1000"}


def test_cookies_and_tokens_through_one_misfortune_each(
    stage: StartScene, start_nodes: StartNodes, private_postgres, private_redis, on_redis
):
    nodes = start_nodes(private_postgres.create_database(), [None] * 3, on_redis)
    scene = stage(nodes, Rows(nodes[0], private_postgres))
    befallen(scene, private_redis, private_postgres, seed=1, times=1, misfortunes=EACH_OF_THEM)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_cookies_and_tokens_through_one_misfortune_after_another(
    stage: StartScene, start_nodes: StartNodes, private_postgres, private_redis, on_redis, seed
):
    nodes = start_nodes(private_postgres.create_database(), [None] * 3, on_redis)
    scene = stage(nodes, Rows(nodes[0], private_postgres))
    befallen(
        scene,
        private_redis,
        private_postgres,
        seed=seed,
        times=6,
        misfortunes=(*EACH_OF_THEM, "node killed", "node killed"),
    )
