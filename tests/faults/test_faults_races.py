"""Many at once, and answers that come in another order than they were given."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Barrier
from uuid import UUID

import pytest
from fleets import THREE_POSTGRESQL, StartNodes, everywhere, widest
from outsiders import Rows
from row_lock import in_this_order
from scene import Scene, StartScene

from servers.proxy import Held, Proxy, Rule
from test_serve import wait_until

AT_ONCE = 200


@everywhere
@pytest.mark.parametrize("aged", [False, True], ids=["within W", "after W"])
def test_two_hundred_requests_at_once(scene: Scene, aged: bool):
    at_once(scene, aged=aged)


@pytest.mark.long
def test_two_hundred_requests_at_once_on_one_file(stage: StartScene, start_nodes: StartNodes, tmp_path: Path):
    """Three processes share SQLite's file, which nobody is told to do, and which does no harm."""
    nodes = start_nodes(f"sqlite:///{tmp_path / 'sekisho.db'}", [None] * 3)
    at_once(stage(nodes, Rows(nodes[0], None)), aged=True)


def at_once(scene: Scene, *, aged: bool) -> None:
    owner = scene.owner()
    token, before = owner.refresh_token, owner.held
    if aged:
        scene.age(owner)
    all_connected = Barrier(AT_ONCE)

    def refresh(number: int):
        node = scene.nodes[number % len(scene.nodes)]
        return owner.insists(node, token=token, tab=f"tab {number}", ready=all_connected.wait)

    with ThreadPoolExecutor(AT_ONCE) as tabs:
        calls = list(tabs.map(refresh, range(AT_ONCE)))
    assert {call.status for call in calls} == {200}
    (successor,) = {call.received for call in calls}
    assert (successor == before) == (not aged)
    scene.goes_on(owner)
    scene.check()


@widest
@pytest.mark.parametrize("number", [2, 50])
def test_tabs_whose_replies_come_out_of_order(scene: Scene, number: int):
    owner = scene.owner()
    with ThreadPoolExecutor(number) as tabs, Proxies(scene) as proxies:
        for _ in range(6 if number == 2 else 2):
            old = owner.refresh_token
            scene.age(owner, scene.history.window_s - 2)

            def ask(number: int, old: str = old):
                return owner.refresh(proxies[number % len(proxies)], token=old, tab=f"tab {number}")

            # Half of them just before W is over, who are given the same token again, half just after it.
            early = [tabs.submit(ask, tab) for tab in range(number // 2)]
            held = proxies.held(number // 2)
            scene.age(owner, 4)
            late = [tabs.submit(ask, tab) for tab in range(number // 2, number)]
            held += proxies.held(number - number // 2)
            random.shuffle(held)
            for answer in held:
                answer.release()
            calls = [tab.result(20) for tab in early + late]
            # A tab that holds the parent, while the child may still be on its way to another, is told to wait for W.
            assert {(call.status, call.code) for call in calls} <= {(200, ""), (503, "refresh_wait")}
            assert len({call.received for call in calls} - {None}) <= 2
            if any(call.code == "refresh_wait" for call in calls):
                scene.age(owner)
                assert owner.refresh().status == 200
    scene.goes_on(owner)
    scene.check()


# --- two statements that wait for one row, and were decided on what they found before it changed -------------------


@pytest.mark.parametrize("setting", [THREE_POSTGRESQL], ids=str)
@pytest.mark.parametrize("first", ["current", "parent"])
def test_the_parent_and_the_current_token_meet_after_w(scene: Scene, first: str):
    """Nobody honest has both by then. Whichever is second is found out, though it was first when it was decided."""
    owner = scene.owner()
    thief = owner.thief()
    scene.age(owner)
    assert owner.refresh().status == 200
    scene.age(owner)
    acts = [partial(owner.refresh, scene.nodes[0]), partial(thief.refresh, scene.nodes[-1])]
    with ThreadPoolExecutor(2) as threads:
        calls = in_this_order(scene.rows.url, owner.session, threads, *(acts if first == "current" else acts[::-1]))
    assert [call.status for call in calls] == [200, 401]
    assert scene.rows.cause(UUID(owner.session)) == "theft"
    scene.check()


@pytest.mark.parametrize("setting", [THREE_POSTGRESQL], ids=str)
def test_two_retries_meet_as_w_ends(scene: Scene):
    """The first is within W and is handed the successor again; the second, decided after W, must not displace it."""
    owner = scene.owner()
    window_s, left_s = scene.history.window_s, 0.5
    with ThreadPoolExecutor(2) as threads:
        for _ in range(10):  # until the first was taken up in what was left of W
            parent = owner.refresh_token
            scene.age(owner)
            began = time.monotonic()
            assert owner.refresh().status == 200
            scene.age(owner, window_s - left_s)
            acts = [partial(owner.refresh, node, token=parent) for node in (scene.nodes[0], scene.nodes[-1])]

            def till_w_is_over(began: float = began) -> None:
                time.sleep(max(0.0, began + left_s + 0.1 - time.monotonic()))  # no luck in it: W is a time

            calls = in_this_order(scene.rows.url, owner.session, threads, *acts, meanwhile=till_w_is_over)
            assert {(call.status, call.code) for call in calls} <= {(200, ""), (503, "refresh_wait")}
            if [call.status for call in calls] == [200, 503]:
                break
            scene.age(owner)
            assert owner.refresh().status == 200
        else:
            pytest.fail("the first never came within W")
    scene.goes_on(owner)
    scene.check()


class Proxies(list[Proxy]):
    """One before each node of a scene; all answers wait in it."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(Proxy(node.port, rule=lambda: Rule(hold=True)) for node in scene.nodes)
        self._entered = ExitStack()

    def __enter__(self):
        for proxy in self:
            self._entered.enter_context(proxy)
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.close()

    def held(self, number: int) -> list[Held]:
        """So many answers, wherever they came by."""
        wait_until(lambda: sum(len(proxy.held) for proxy in self) >= number, within_s=20, what=f"{number} answers")
        return [held for proxy in self for held in proxy.wait_for_held(0)]
