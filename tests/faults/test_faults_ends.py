"""The end of a session is final: whatever is in flight when it ends, and whichever node it goes to."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import permutations
from threading import Barrier
from uuid import UUID

import pytest
from callers import Caller
from fleets import THREE_POSTGRESQL, widest
from history import BOUND_S, Call
from row_lock import in_this_order
from scene import Scene

from test_serve import wait_until

ROUNDS = 8


def refused_everywhere(scene: Scene, owner: Caller, *tokens: str) -> None:
    """Nothing of the session works: not what the browser holds, not the access tokens that it held before."""
    for node in scene.nodes:
        for token in {owner.access_token, *tokens}:
            wait_until(
                lambda node=node, token=token: owner.me(node, token=token).status == 401,
                within_s=BOUND_S,
                what="the access token is refused",
            )
        assert owner.refresh(node).status == 401
    for node in scene.nodes:
        assert owner.me(node).status == 401


def out_at_once(threads: ThreadPoolExecutor, *acts: Callable[..., Call]) -> list[Call]:
    """Both are connected, then both send."""
    ready = Barrier(len(acts))
    return [act.result(30) for act in [threads.submit(act, ready=ready.wait) for act in acts]]


@widest
def test_logout_while_a_refresh_is_in_flight(scene: Scene):
    with ThreadPoolExecutor(2) as threads:
        for number in range(ROUNDS):
            owner = scene.owner(f"owner {number}")
            if number % 4:
                scene.age(owner)
            here, there, before = scene.nodes[0], scene.nodes[-1], owner.access_token
            acts = [partial(owner.refresh, here), partial(owner.log_out, there)]
            calls = out_at_once(threads, *(acts if number % 2 else acts[::-1]))
            assert sorted(call.status for call in calls) in ([200, 204], [204, 401])
            refused_everywhere(scene, owner, before)
    scene.check()


@pytest.mark.parametrize("setting", [THREE_POSTGRESQL], ids=str)
@pytest.mark.parametrize("first", ["refresh", "logout"])
def test_logout_and_refresh_wait_for_one_row(scene: Scene, first: str):
    with ThreadPoolExecutor(2) as threads:
        for number, (here, there) in enumerate(permutations(scene.nodes, 2)):
            owner = scene.owner(f"owner {number}", door=here)
            before = owner.access_token
            scene.age(owner)
            acts = [partial(owner.refresh, here), partial(owner.log_out, there)]
            acts = acts if first == "refresh" else acts[::-1]
            calls = in_this_order(scene.rows.url, owner.session, threads, *acts)
            assert [call.status for call in calls] == ([200, 204] if first == "refresh" else [204, 401])
            refused_everywhere(scene, owner, before)
    scene.check()


# --- theft ---------------------------------------------------------------------------------------------------------


def over_for_all(scene: Scene, owner: Caller, *others: Caller) -> None:
    assert scene.rows.cause(_uuid(owner)) == "theft"
    for who in (owner, *others):
        refused_everywhere(scene, who)


@widest
@pytest.mark.parametrize("aged", [False, True], ids=["within W", "after W"])
def test_a_replay_does_not_revive_a_stolen_session(scene: Scene, aged: bool):
    owner, thief, friend = scene.stolen("owner")
    if aged:
        scene.age(owner)
    assert owner.refresh().status == 401
    over_for_all(scene, owner, thief, friend)
    for position in ((0, 0), (1, 0), (1, 1), (2, 0), (7, 3)):
        token = scene.rows.refresh_token(_uuid(owner), position)
        for node in scene.nodes:
            assert thief.refresh(node, token=token).status == 401
    over_for_all(scene, owner, thief, friend)
    scene.check()


@widest
@pytest.mark.parametrize("aged", [False, True], ids=["within W", "after W"])
def test_a_theft_is_found_while_the_thief_refreshes(scene: Scene, aged: bool):
    with ThreadPoolExecutor(2) as threads:
        for number in range(ROUNDS // 2):
            owner, thief, friend = scene.stolen(f"owner {number}")
            if aged:
                scene.age(owner)
            acts = [partial(owner.refresh, scene.nodes[0]), partial(thief.refresh, scene.nodes[-1])]
            found, _ = out_at_once(threads, *acts)
            assert found.status == 401
            over_for_all(scene, owner, thief, friend)
    scene.check()


@pytest.mark.parametrize("setting", [THREE_POSTGRESQL], ids=str)
@pytest.mark.parametrize("first", ["theft", "thief"])
def test_theft_and_refresh_wait_for_one_row(scene: Scene, first: str):
    with ThreadPoolExecutor(2) as threads:
        owner, thief, friend = scene.stolen("owner")
        scene.age(owner)
        acts = [partial(owner.refresh, scene.nodes[0]), partial(thief.refresh, scene.nodes[-1])]
        calls = in_this_order(scene.rows.url, owner.session, threads, *(acts if first == "theft" else acts[::-1]))
        assert [call.status for call in calls] == ([401, 401] if first == "theft" else [200, 401])
        over_for_all(scene, owner, thief, friend)
    scene.check()


def _uuid(caller: Caller) -> UUID:
    return UUID(caller.session)
