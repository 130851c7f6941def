"""Replies and requests that are lost on the way, and the retry after a moment, after W, and after three days."""

import re
from functools import partial
from uuid import UUID

import pytest
from callers import Caller
from fleets import LAST_POSTGRESQL, widest
from history import W
from scene import Scene
from wire_watch import LOSE_COMMIT

from servers.proxy import Proxy, Rule
from test_serve import wait_until

LATER = {"at once": 0.0, "after W": W + 1, "after three days": 3 * 86_400.0}


def reply_size(owner: Caller, proxy: Proxy) -> tuple[int, int]:
    """The bytes of a reply to a refresh: of its head, and of all."""
    pieces: list[bytes] = []
    proxy.plan(Rule(answer=lambda data: pieces.append(data) is None))
    assert owner.refresh(proxy).status == 200
    whole = b"".join(pieces)
    head = re.search(rb"\r\n\r\n", whole)
    assert head is not None
    return head.end(), len(whole)


def cut_and_retried(scene: Scene, owner: Caller, proxy: Proxy, cut_after: int, later_s: float) -> None:
    """A reply of which so many bytes come, and the retry at another node, if there is one."""
    scene.age(owner)
    generation, _ = scene.rows.position(UUID(owner.session))
    proxy.plan(Rule(cut_after=cut_after))
    assert owner.refresh(proxy).answered is None
    assert scene.rows.position(UUID(owner.session)) == (generation + 1, 0)
    if later_s:
        scene.age(owner, later_s)
    assert owner.refresh(scene.nodes[-1]).status == 200
    # Within W the same successor; after it a new branch, for nobody may ever have seen the other.
    assert scene.rows.position(UUID(owner.session)) == (generation + 1, 1 if later_s else 0)
    assert owner.me(scene.nodes[-1]).status == 200


@widest
@pytest.mark.parametrize("later", LATER)
def test_a_reply_cut_and_retried(scene: Scene, later: str):
    owner = scene.owner()
    with Proxy(scene.nodes[0].port) as proxy:
        head, size = reply_size(owner, proxy)
        for cut_after in (0, 12, head, (head + size) // 2, size - 1):
            cut_and_retried(scene, owner, proxy, cut_after, LATER[later])
    scene.goes_on(owner)
    scene.check()


@pytest.mark.long  # a thousand offsets
@widest
def test_a_reply_cut_at_every_byte(scene: Scene):
    owner = scene.owner()
    with Proxy(scene.nodes[0].port) as proxy:
        _, size = reply_size(owner, proxy)
        for cut_after in range(size):
            cut_and_retried(scene, owner, proxy, cut_after, list(LATER.values())[cut_after % 3])
    scene.goes_on(owner)
    scene.check()


def _handled(scene: Scene, number: int) -> bool:
    return scene.refreshes_handled() == number


@widest
def test_requests_that_are_lost_or_nobody_waits_for(scene: Scene):
    owner = scene.owner()
    with Proxy(scene.nodes[0].port) as proxy:
        for rule in (Rule(drop=True), Rule(hang_up=True), Rule(request=lambda _: False)) * 3:
            scene.age(owner)
            already = scene.refreshes_handled()
            proxy.plan(rule)
            assert owner.refresh(proxy, patience_s=0.2).answered is None
            assert owner.refresh(scene.nodes[-1]).status == 200
            # One that arrived though nobody waits for it must be through before time passes: a proxy that held it back
            # for longer than W could cost the session (DESIGN section 1, limits).
            arrived = 2 if rule.hang_up else 1
            wait_until(partial(_handled, scene, already + arrived), within_s=10, what="it is through")
    scene.goes_on(owner)
    scene.check()


@pytest.mark.parametrize("setting", [LAST_POSTGRESQL], ids=str)
def test_the_database_commits_and_its_answer_is_lost(scene: Scene):
    """The node cannot know; the client is told to come back, and finds what was committed."""
    owner = scene.owner()
    for number in range(3):
        scene.age(owner)
        generation, _ = scene.rows.position(UUID(owner.session))
        call = owner.refresh(agent=f"{LOSE_COMMIT}{number}")
        assert (call.status, call.code) == (503, "storage_unavailable")
        assert scene.rows.position(UUID(owner.session)) == (generation + 1, 0)
        assert owner.insists().status == 200
        assert scene.rows.position(UUID(owner.session)) == (generation + 1, 0)
    scene.goes_on(owner)
    scene.check()
