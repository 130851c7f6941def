"""Nodes that the scenes of a worker share, and scenes."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "http"))  # its outsiders.py, when this folder is tested alone

from fleets import CLOCKS_OFF_S, Fleet, Odd, Setting, StartNodes, a_clock_off_by, started
from outsiders import Rows
from scene import Scene, StartScene
from wire_watch import doomed_at_commit

from servers.postgres import Postgres, PostgresServer
from servers.proxy import Proxy
from servers.sekisho_server import RunningServer


@pytest.fixture
def start_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartNodes]:
    """Starts nodes of the test's own: (database_url, nodes, env)."""
    with ExitStack() as running:
        yield lambda *args, **named: started(tmp_path_factory, running, *args, **named)


@pytest.fixture(scope="session")
def _sqlite_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    url = f"sqlite:///{tmp_path_factory.mktemp('database') / 'sekisho.db'}"
    with ExitStack() as running:
        nodes = started(tmp_path_factory, running, url, [Odd()])
        yield Fleet(nodes, Rows(nodes[0], None))


@pytest.fixture(scope="session")
def _postgresql_fleet(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[Fleet]:
    url = postgres.create_database()
    nodes: list[RunningServer] = []
    with ExitStack() as running:
        running.callback(postgres.drop_database, url)
        rule = doomed_at_commit(lambda: nodes[-1].process.pid)
        proxy = running.enter_context(Proxy(postgres.port, rule=rule))
        by_proxy = url.replace(f":{postgres.port}/", f":{proxy.port}/")
        # Their clocks differ by ten minutes, which none of the scenes may notice.
        mortal = a_clock_off_by(CLOCKS_OFF_S)._replace(database_url=by_proxy)
        nodes += started(tmp_path_factory, running, url, [None, a_clock_off_by(-CLOCKS_OFF_S), mortal])
        yield Fleet(nodes, Rows(nodes[0], postgres))


@pytest.fixture(scope="session")
def _own_postgres(postgres: Postgres) -> Iterator[PostgresServer]:
    """One for the worker, safe against crashes, that writes every statement into its log."""
    settings = {"log_statement": "all", "log_line_prefix": "%d "}
    with PostgresServer(fsync=True, programs=postgres.programs, settings=settings) as server:
        yield server


@pytest.fixture
def own_postgres(_own_postgres: PostgresServer) -> PostgresServer:
    """The same, running, whatever the test before has done to it."""
    _own_postgres.stop()
    _own_postgres.start()
    return _own_postgres


@pytest.fixture
def fleet(request: pytest.FixtureRequest, setting: Setting) -> Fleet:
    """The shared nodes of the test's setting."""
    fleet: Fleet = request.getfixturevalue(f"_{setting.database}_fleet")
    fleet.revive()
    # One node is an ordinary one; but for those that ask for the last.
    return fleet if setting.number == 3 else fleet._replace(nodes=[fleet.nodes[setting.place]])


@pytest.fixture
def stage(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Iterator[StartScene]:
    """Opens the test's scene: (nodes, rows). A test that forgets `check` has shown nothing."""
    scenes: list[Scene] = []

    def open_scene(nodes: Sequence[RunningServer], rows: Rows, **named: object) -> Scene:
        name = request.node.originalname.removeprefix("test_").replace("_", " ")
        scenes.append(Scene(name, nodes, rows, record=record_property, **named))
        return scenes[-1]

    yield open_scene
    assert scenes, "no scene was opened"
    assert request.node.stash.get(FAILED, False) or all(scene.checked for scene in scenes), "nobody checked the scene"


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture
def scene(stage: StartScene, fleet: Fleet) -> Scene:
    """A scene on the shared nodes."""
    return stage(fleet.nodes, fleet.rows)
