"""A node stands still while the client goes on elsewhere; then it thaws and finds the old requests in its sockets."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import psutil
import pytest
from fleets import THREE_POSTGRESQL, Fleet, StartNodes
from outsiders import Rows
from scene import Scene, StartScene
from wire_watch import STOP_BEFORE_COMMIT

from servers.sekisho_server import RunningServer
from test_serve import wait_until


@contextmanager
def stopped(node: RunningServer, *, at_least_s: float) -> Iterator[None]:
    """The node stands still for so long, or longer."""
    began = time.monotonic()
    os.kill(node.process.pid, signal.SIGSTOP)
    try:
        yield
        time.sleep(max(0.0, began + at_least_s - time.monotonic()))  # the fault itself: that long it lasts
    finally:
        os.kill(node.process.pid, signal.SIGCONT)


def frozen_with_requests_in_its_sockets(scene: Scene, *, for_s: float) -> None:
    """Three callers knock at a node that stands still: one waits, one hangs up, one leaves it at a half request."""
    frozen, elsewhere = scene.nodes[0], scene.nodes[-1]
    patient, hasty, later = owners = [scene.owner(name) for name in ("patient", "hasty", "later")]
    for owner in owners:
        scene.age(owner)
    with ThreadPoolExecutor(1) as threads:
        with stopped(frozen, at_least_s=for_s):
            old = threads.submit(patient.refresh, token=patient.refresh_token, tab="old", patience_s=for_s + 30)
            wait_until(lambda: _unread(frozen) == 1, within_s=5, what="the request is in the socket")
            assert hasty.refresh(tab="old", patience_s=0.1).answered is None
            if elsewhere is not frozen:
                for owner in (patient, hasty):
                    assert owner.refresh(elsewhere).status == 200
                    scene.age(owner)  # as long as the node stands still, or longer
        late = old.result(for_s + 60)
    assert (late.status, late.code) == (503, "try_later")
    assert later.insists(frozen).status == 200  # by now the old ones are through
    moved = int(elsewhere is not frozen)
    for owner in (patient, hasty):
        assert scene.rows.position(UUID(owner.session)) == (moved, 0), "what was old is not carried out"
    assert {event["outcome"] for event in scene.events(frozen, "put_off")} == {"try_later"}
    for owner in owners:
        scene.goes_on(owner)
    scene.check()


def _unread(node: RunningServer) -> int:
    """Connections to the node in which bytes wait that it has not read."""
    fields = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()][1:]
    mine = f":{node.port:04X}"
    return sum(f[1].endswith(mine) and f[3] == "01" and int(f[4].split(":")[1], 16) > 0 for f in fields)


@pytest.mark.parametrize("number", [2])
def test_a_node_stopped_and_thawed(stage: StartScene, start_nodes: StartNodes, postgres, postgres_url, number):
    """With W at 6 s a stall longer than 1.5 s is one."""
    nodes = start_nodes(postgres_url, [None] * number, {"SEKISHO_REPLAY_WINDOW_S": "6"})
    frozen_with_requests_in_its_sockets(stage(nodes, Rows(nodes[0], postgres), window_s=6), for_s=2)


@pytest.mark.long
def test_a_lone_node_stopped_and_thawed(stage: StartScene, start_nodes: StartNodes, tmp_path):
    nodes = start_nodes(f"sqlite:///{tmp_path / 'sekisho.db'}", [None], {"SEKISHO_REPLAY_WINDOW_S": "6"})
    frozen_with_requests_in_its_sockets(stage(nodes, Rows(nodes[0], None), window_s=6), for_s=2)


@pytest.mark.long  # the whole minute, with nothing set
def test_a_node_stopped_for_a_minute_and_thawed(stage: StartScene, start_nodes: StartNodes, postgres, postgres_url):
    nodes = start_nodes(postgres_url, [None] * 3)
    frozen_with_requests_in_its_sockets(stage(nodes, Rows(nodes[0], postgres)), for_s=60)


@pytest.mark.long  # PostgreSQL waits 10 s for a transaction that does nothing
@pytest.mark.parametrize("setting", [THREE_POSTGRESQL], ids=str)
def test_a_node_stopped_while_it_holds_the_row(scene: Scene, fleet: Fleet):
    """In the middle of its transaction. The others go on when PostgreSQL has given it up, and it changes nothing."""
    node, elsewhere = fleet.mortal, fleet.nodes[0]
    owner = scene.owner(door=node)
    scene.age(owner)
    with ThreadPoolExecutor(1) as threads:
        old = threads.submit(owner.refresh, agent=STOP_BEFORE_COMMIT, patience_s=60)
        wait_until(lambda: psutil.Process(node.process.pid).status() == psutil.STATUS_STOPPED, within_s=10)
        try:
            assert owner.insists(elsewhere, within_s=15).status == 200
        finally:
            os.kill(node.process.pid, signal.SIGCONT)
        assert old.result(60).status in {200, 503}
    assert scene.rows.position(UUID(owner.session)) == (1, 0)
    assert owner.insists(node).status == 200
    scene.goes_on(owner)
    scene.check()
