"""PostgreSQL is killed and comes back, or fails over to a standby that is behind; SQLite's file is an older copy."""

import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Event

import pytest
from callers import Caller
from fleets import StartNodes
from outsiders import Rows
from scene import Scene, StartScene

from servers.postgres import PostgresServer
from servers.proxy import Proxy
from test_serve import wait_until

RECOVERY_S = 10.0
PAUSE_S = 0.03  # between two calls of a person: the fault is the database's, not a flood


class Life:
    """People who refresh, sign up and leave in threads of their own, whatever happens to the database."""

    def __init__(self, scene: Scene, *, owners: int = 6, leavers: int = 3) -> None:
        self._scene = scene
        self.owners = [self._arrives(f"owner {number}", number) for number in range(owners)]
        self.leavers = [self._arrives(f"leaver {number}", number) for number in range(leavers)]

    def _arrives(self, name: str, number: int) -> Caller:
        return self._scene.owner(name, door=self._scene.nodes[number % len(self._scene.nodes)])

    def goes_through(self, disaster: Callable[[], None]) -> None:
        """All of them are busy before, during and after; in the end each is answered within the time to recover."""
        over, already = Event(), len(self._scene.history.calls)
        for owner in self.owners:
            self._scene.age(owner)
        with ThreadPoolExecutor(len(self.owners) + 3) as threads:
            lives = [threads.submit(self._refreshes, owner, over) for owner in self.owners]
            lives.append(threads.submit(self._sign_up, over))
            lives.append(threads.submit(self._leaves, over))
            wait_until(lambda: len(self._scene.history.calls) > already + 20, within_s=20, what="they are busy")
            lives.append(threads.submit(self._changes_the_password, self._arrives("changer", 0), over))
            disaster()
            over.set()
            for life in lives:
                life.result(RECOVERY_S + 20)

    def _refreshes(self, owner: Caller, over: Event) -> None:
        while not over.wait(PAUSE_S):
            owner.refresh()
        assert owner.insists(within_s=RECOVERY_S).status == 200

    def _sign_up(self, over: Event) -> None:
        while not over.wait(PAUSE_S):
            newcomer = self._scene.someone("newcomer", door=self._scene.nodes[-1])
            newcomer.sign_up()

    def _leaves(self, over: Event) -> None:
        """One before it, acknowledged, and one whenever it works."""
        assert self.leavers.pop().log_out().status == 204
        leaver = self.leavers.pop()
        give_up_at = time.monotonic() + RECOVERY_S + 20
        while leaver.log_out().status != 204:
            assert time.monotonic() < give_up_at
        assert leaver.insists(within_s=RECOVERY_S).status == 401

    def _changes_the_password(self, changer: Caller, over: Event) -> None:
        """In the middle of it. What was not acknowledged is there or not, never both or neither."""
        new = "another gate on the road"
        acknowledged = changer.change_password(new).ok
        over.wait(RECOVERY_S + 20)
        answers = [self._logs_in(changer, password) for password in (changer.password, new)]
        assert answers == [401, 200] or (answers == [200, 401] and not acknowledged)

    def _logs_in(self, person: Caller, password: str) -> int | None:
        give_up_at = time.monotonic() + RECOVERY_S
        while (call := person.log_in(password=password)).status in {None, 503} and time.monotonic() < give_up_at:
            time.sleep(0.05)
        return call.status


def killed_and_restarted(scene: Scene, postgres: PostgresServer, *, times: int) -> None:
    life = Life(scene, leavers=2 * times)
    for _ in range(times):

        def disaster() -> None:
            postgres.stop("immediate")
            witness = scene.someone("witness")
            assert witness.log_in().status == 503
            postgres.start()

        life.goes_through(disaster)
    for owner in life.owners:
        scene.goes_on(owner, scene.nodes[-1:])
    scene.check()


def test_postgresql_killed_and_restarted(stage: StartScene, start_nodes: StartNodes, own_postgres):
    nodes = start_nodes(own_postgres.create_database(), [None])
    killed_and_restarted(stage(nodes, Rows(nodes[0], own_postgres)), own_postgres, times=1)


@pytest.mark.long
def test_postgresql_killed_again_and_again(stage: StartScene, start_nodes: StartNodes, own_postgres):
    nodes = start_nodes(own_postgres.create_database(), [None] * 3)
    killed_and_restarted(stage(nodes, Rows(nodes[0], own_postgres)), own_postgres, times=6)


# --- the last commits are lost -------------------------------------------------------------------------------------


class Travellers:
    """People who are at different points when the database forgets what came last."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.resting, self.one_ahead, self.two_ahead, self.with_a_branch = self.stayers = [
            scene.owner(name) for name in ("resting", "one ahead", "two ahead", "with a branch")
        ]
        self.left_before, self.left_after = scene.owner("left before"), scene.owner("left after")
        assert self.left_before.log_out().status == 204

    def go_on(self) -> None:
        """What the database will forget."""
        for owner, times in ((self.one_ahead, 1), (self.two_ahead, 2)):
            for _ in range(times):
                self.scene.age(owner)
                assert owner.refresh().status == 200
        parent = self.with_a_branch.refresh_token
        for _ in range(2):  # the reply is lost, and retried late
            self.scene.age(self.with_a_branch)
            assert self.with_a_branch.refresh(token=parent).status == 200
        assert [owner.held[1:] for owner in self.stayers] == [(0, 0), (1, 0), (2, 0), (1, 1)]
        assert self.left_after.log_out().status == 204
        self.newcomer = self.scene.owner("newcomer")

    def find_themselves_as_they_were(self) -> None:
        held = [owner.held for owner in self.stayers]
        for owner in self.stayers:
            assert owner.insists().status == 200
        assert [owner.held for owner in self.stayers] == held  # adopted, and handed out again
        assert self.scene.decisions()["adopt"] == 3
        for owner in self.stayers:
            self.scene.goes_on(owner)
        assert self.left_before.refresh().status == 401
        assert self.newcomer.refresh().status == 401  # a limit of asynchronous replication, stated
        self.scene.check(lost={self.left_after.session, self.newcomer.session, self.newcomer.email})


@pytest.mark.parametrize("number", [1, pytest.param(3, marks=pytest.mark.long)])
def test_a_failover_that_loses_the_last_commits(
    stage: StartScene, start_nodes: StartNodes, own_postgres: PostgresServer, number: int
):
    with ExitStack() as running:
        proxy = running.enter_context(Proxy(own_postgres.port))
        url = own_postgres.create_database()
        nodes = start_nodes(url.replace(f":{own_postgres.port}/", f":{proxy.port}/"), [None] * number)
        scene = stage(nodes, Rows(nodes[0], own_postgres))
        travellers = Travellers(scene)
        standby = PostgresServer(programs=own_postgres.programs, standby_of=own_postgres)
        running.callback(standby.close)  # never started before the loss: it is as far behind as its copy is old
        travellers.go_on()

        own_postgres.stop("immediate")
        standby.start()
        standby.promote()
        proxy.target = standby.port
        proxy.cut_all()
        scene.rows = Rows(nodes[0], standby)
        travellers.find_themselves_as_they_were()


def test_sqlite_restored_from_an_earlier_copy(stage: StartScene, start_nodes: StartNodes, tmp_path: Path):
    file, copy = tmp_path / "sekisho.db", tmp_path / "copy.db"
    (node,) = nodes = start_nodes(f"sqlite:///{file}", [None])
    travellers = Travellers(stage(nodes, Rows(node, None)))
    node.stop()
    assert not Path(f"{file}-wal").exists()  # all of it is in the file
    shutil.copy(file, copy)
    node.start()
    travellers.go_on()
    node.kill()
    for suffix in ("-wal", "-shm"):
        Path(f"{file}{suffix}").unlink(missing_ok=True)  # of the newer history; they would not fit the copy
    shutil.copy(copy, file)
    node.start()
    travellers.find_themselves_as_they_were()
