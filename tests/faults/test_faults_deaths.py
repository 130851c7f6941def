"""A node dies in the middle of a refresh, by SIGKILL at a chosen point, and the client retries."""

import random
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event
from uuid import UUID

import pytest
from callers import Caller
from fleets import ONE_SQLITE, THREE_POSTGRESQL, Fleet, StartNodes, widest
from outsiders import Rows
from scene import Scene, StartScene
from wire_watch import DIE_UNHEARD

from servers.odd_node import DIE_AFTER_BYTES, DIE_AT_THEFT, DIE_BEFORE_COMMIT
from servers.sekisho_server import RunningServer
from test_serve import wait_until

BEFORE_THE_REPLY, IN_ITS_HEAD, IN_ITS_BODY = (f"{DIE_AFTER_BYTES}{number}" for number in (0, 50, 700))

_long = pytest.mark.long
POINTS = [
    pytest.param(ONE_SQLITE, DIE_BEFORE_COMMIT, id="sqlite-before the commit"),
    pytest.param(ONE_SQLITE, BEFORE_THE_REPLY, id="sqlite-after the commit"),
    pytest.param(ONE_SQLITE, IN_ITS_BODY, id="sqlite-in the reply"),
    pytest.param(ONE_SQLITE, IN_ITS_HEAD, id="sqlite-in the reply's head", marks=_long),
    pytest.param(THREE_POSTGRESQL, DIE_BEFORE_COMMIT, id="postgresql-before the commit"),
    pytest.param(THREE_POSTGRESQL, DIE_UNHEARD, id="postgresql-at the commit"),
    pytest.param(THREE_POSTGRESQL, BEFORE_THE_REPLY, id="postgresql-after the commit", marks=_long),
    pytest.param(THREE_POSTGRESQL, IN_ITS_HEAD, id="postgresql-in the reply's head", marks=_long),
    pytest.param(THREE_POSTGRESQL, IN_ITS_BODY, id="postgresql-in the reply"),
]


@pytest.mark.parametrize(("setting", "agent"), POINTS)
def test_killed_in_the_middle_of_a_refresh(scene: Scene, fleet: Fleet, agent: str):
    node = fleet.mortal
    owners = [scene.owner(f"owner {number}", door=node) for number in range(2)]
    for owner in owners:
        scene.age(owner)
    victim, witness = owners
    assert victim.refresh(agent=agent).answered is None
    assert node.process.wait(10) == -signal.SIGKILL
    committed = agent != DIE_BEFORE_COMMIT
    assert scene.rows.position(UUID(victim.session)) == (int(committed), 0)
    elsewhere = fleet.nodes[0]
    if elsewhere is node:
        fleet.revive()
    assert victim.refresh(elsewhere).status == 200
    assert scene.rows.position(UUID(victim.session)) == (1, 0)  # the same successor, or the first
    assert witness.refresh(elsewhere).status == 200
    for owner in owners:
        scene.goes_on(owner, [elsewhere])
    scene.check()


@widest
def test_killed_while_it_ends_a_stolen_session(scene: Scene, fleet: Fleet):
    """The session has ended with everything that belongs to it, or it has not."""
    owner, thief, _ = scene.stolen("owner")
    node = fleet.mortal
    assert owner.refresh(node, agent=DIE_AT_THEFT).answered is None
    assert node.process.wait(10) == -signal.SIGKILL
    assert scene.rows.cause(UUID(owner.session)) == ""
    elsewhere = fleet.nodes[0]
    if elsewhere is node:
        fleet.revive()
    assert owner.refresh(elsewhere).status == 401
    assert scene.rows.cause(UUID(owner.session)) == "theft"
    assert thief.refresh(elsewhere).status == 401
    scene.check()


@pytest.mark.long
def test_a_node_is_killed_again_and_again(stage: StartScene, start_nodes: StartNodes, postgres, postgres_url):
    """At any moment, and its clients go to another."""
    nodes = start_nodes(postgres_url, [None] * 3)
    scene = stage(nodes, Rows(nodes[0], postgres))
    owners = [scene.owner(f"owner {number}") for number in range(6)]
    for _ in range(12):
        over = Event()
        for owner in owners:
            scene.age(owner)
        with ThreadPoolExecutor(len(owners)) as threads:
            lives = [threads.submit(goes_about, owner, nodes, over) for owner in owners]
            already = len(scene.history.calls)
            wait_until(partial(has_more_calls, scene, already + random.randrange(20)), within_s=20)
            random.choice(nodes).kill()
            over.set()
            for life in lives:
                life.result(30)
        for node in nodes:
            if node.process.poll() is not None:
                node.start()
    for owner in owners:
        scene.goes_on(owner)
    scene.check()


def has_more_calls(scene: Scene, number: int) -> bool:
    return len(scene.history.calls) >= number


def goes_about(owner: Caller, nodes: Sequence[RunningServer], over: Event) -> None:
    """Refreshes anywhere, and is answered somewhere after the death too."""
    while not over.is_set():
        owner.refresh(random.choice(nodes))
    assert any(owner.insists(node, within_s=2).status == 200 for node in random.sample(nodes, len(nodes)))
