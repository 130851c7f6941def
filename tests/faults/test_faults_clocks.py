"""Nodes whose clocks are wrong. On PostgreSQL the database's clock counts; on SQLite the node's, which may step."""

from pathlib import Path
from uuid import UUID

import pytest
from fleets import CLOCKS_OFF_S, THREE_POSTGRESQL, StartNodes, a_clock_off_by
from history import BOUND_S, W
from outsiders import Rows
from scene import Scene, StartScene

from servers.sekisho_server import RunningServer
from test_serve import wait_until


@pytest.mark.parametrize("setting", [THREE_POSTGRESQL], ids=str)
def test_nodes_whose_clocks_differ_by_ten_minutes(scene: Scene):
    """The shared nodes' do, so every other scene of three shows it too."""
    nodes = scene.nodes
    offsets = [float(node.env.get("TEST_CLOCK_OFFSET_S", 0)) for node in nodes]
    assert sorted(offsets) == [-CLOCKS_OFF_S, 0, CLOCKS_OFF_S]
    for home in nodes:
        owner = scene.owner(f"owner at {nodes.index(home)}", door=home)
        for made_at in nodes:
            for used_at in nodes:
                assert owner.me(used_at).status == 200
            before = owner.held
            scene.age(owner, W - 5)
            assert owner.refresh(made_at).status == 200
            assert owner.held == before  # W is measured by the database, not yet over for anyone
            scene.age(owner)
            assert owner.refresh(made_at).status == 200
            assert owner.held != before
        # A logout bites everywhere within the bound, in the eyes of every clock.
        assert owner.log_out(home).status == 204
        for node in nodes:
            wait_until(lambda node=node, owner=owner: owner.me(node).status == 401, within_s=BOUND_S, what="it refuses")
    scene.check()


def test_a_lone_node_whose_clock_steps_by_ten_minutes(stage: StartScene, start_nodes: StartNodes, tmp_path: Path):
    (node,) = nodes = start_nodes(f"sqlite:///{tmp_path / 'sekisho.db'}", [a_clock_off_by(0)])
    scene = stage(nodes, Rows(node, None))
    owner, gone = scene.owner(), scene.owner("gone")
    assert gone.log_out().status == 204
    made, handed_out = times(scene.rows, owner.session)
    for step in (-CLOCKS_OFF_S, CLOCKS_OFF_S):
        before = owner.held
        step_to(node, step)
        assert owner.refresh().status == 200
        # Back: the time in the future counts as now, so the window is open. Ahead: it is long over.
        assert (owner.held == before) == (step < 0)
        assert owner.me().status == 200
        assert gone.refresh().status == 401
        if step < 0:  # not left in the future, where the window would stay open until the clock has caught up
            written = times(scene.rows, owner.session)
            assert max(written) < min(made, handed_out) - (CLOCKS_OFF_S - 60) * 1_000_000
        scene.goes_on(owner)
    scene.check()


def step_to(node: RunningServer, seconds: float) -> None:
    node.stop()
    node.env["TEST_CLOCK_OFFSET_S"] = str(seconds)
    node.start()


def times(rows: Rows, session: str) -> tuple[int, int]:
    made, handed_out = rows.session(UUID(session), "made_at_us, handed_out_at_us")
    return int(made), int(handed_out)
