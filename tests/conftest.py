"""What every test can ask for: real servers, fresh databases, running nodes of Sekisho, a browser.

The controller starts one PostgreSQL and one Redis for the whole run and tells the workers where they are.
"""

import ctypes
import itertools
import json
import os
import random
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import httpx2
import pytest

from servers import MissingPieceError, ports
from servers.aws_proxy import AwsProxy
from servers.moto import MotoServer
from servers.postgres import Postgres, PostgresServer, Programs
from servers.redis import Redis, RedisServer
from servers.sekisho_server import RunningServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytest_plugins = ["faults.closing_table"]

# How workers learn the addresses. Not SEKISHO_…: the server refuses names of that kind that it does not know.
_SHARED_SERVERS = "TEST_SHARED_SERVERS"


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        _die_with_the_controller()
        return
    if config.option.collectonly:
        return
    running = ExitStack()
    config.add_cleanup(running.close)
    try:
        postgres = running.enter_context(PostgresServer())
        redis = running.enter_context(RedisServer())
    except MissingPieceError as missing:
        raise pytest.UsageError(str(missing)) from None
    os.environ[_SHARED_SERVERS] = json.dumps(
        {
            "programs": str(postgres.programs.bin),
            "user": postgres.programs.user,
            "postgres": postgres.port,
            "redis": redis.port,
        }
    )


def _die_with_the_controller() -> None:
    """A worker in the middle of a test would not notice that the run was killed, and keep its servers up."""
    if sys.platform == "linux":
        parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def free_port() -> int:
    return ports.free_port()


# --- databases -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgres() -> Postgres:
    """The run's shared PostgreSQL. It cannot be stopped from here; `private_postgres` can."""
    shared = json.loads(os.environ[_SHARED_SERVERS])
    return Postgres(Programs(bin=Path(shared["programs"]), user=shared["user"]), shared["postgres"])


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """A fresh, empty database on the shared PostgreSQL."""
    url = postgres.create_database()
    yield url
    postgres.drop_database(url)


@pytest.fixture
def private_postgres(postgres: Postgres) -> Iterator[PostgresServer]:
    """A running PostgreSQL of the test's own, safe against crashes (fsync), to stop and start at will."""
    with PostgresServer(fsync=True, programs=postgres.programs) as server:
        yield server


@pytest.fixture
def redis_url(worker_id: str) -> str:
    """An empty database on the shared Redis, the worker's own. (Pub/sub reaches across databases: Redis has it so.)"""
    redis = Redis(json.loads(os.environ[_SHARED_SERVERS])["redis"])
    number = 0 if worker_id == "master" else 1 + int(worker_id.removeprefix("gw"))
    redis.flush(number)
    return redis.database_url(number)


@pytest.fixture
def private_redis() -> Iterator[RedisServer]:
    """A running Redis of the test's own, to stop and start at will. A stop loses its data."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[MotoServer]:
    """AWS as moto plays it, for all tests of a worker: each takes a secret of a name of its own."""
    with MotoServer() as server:
        yield server


@pytest.fixture
def aws(moto: MotoServer) -> Iterator[AwsProxy]:
    """The way to it, where calls can meet every trouble."""
    with AwsProxy(moto.base_url) as proxy:
        yield proxy


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh database, without tables; the test runs once on each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'sekisho.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


# --- Sekisho -------------------------------------------------------------------------------------------------------


class Serve(Protocol):
    def __call__(
        self, *, database_url: str | None = None, env: Mapping[str, str] | None = None, args: Sequence[str] = ()
    ) -> RunningServer: ...


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Starts nodes of `sekisho serve`, each in a folder of its own; all are killed after the test."""
    with ExitStack() as running:

        def start(
            *, database_url: str | None = None, env: Mapping[str, str] | None = None, args: Sequence[str] = ()
        ) -> RunningServer:
            folder = tmp_path_factory.mktemp("node")
            server = RunningServer(folder, database_url=database_url, env=env, args=args)
            running.callback(server.close)
            server.start()
            return server

        yield start


# The address of a test is in its X-Forwarded-For, so that tests which share a server share no throttle.
_SHARED_SERVER_ENV = {"SEKISHO_TRUSTED_PROXIES": "127.0.0.1/32"}


@pytest.fixture(scope="session")
def _sqlite_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("sqlite-server")
    server = RunningServer(folder, database_url=f"sqlite:///{folder / 'sekisho.db'}", env=_SHARED_SERVER_ENV)
    server.start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def _postgresql_server(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[RunningServer]:
    url = postgres.create_database()
    server = RunningServer(tmp_path_factory.mktemp("postgresql-server"), database_url=url, env=_SHARED_SERVER_ENV)
    server.start()
    yield server
    server.close()
    postgres.drop_database(url)


# Not itself the owner of the processes: pytest ends a fixture when its parameter changes, and tests of both kinds mix.
@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest) -> RunningServer:
    """A running node that the worker's tests share; the test runs once on each kind of database."""
    running: RunningServer = request.getfixturevalue(f"_{request.param}_server")
    return running


@pytest.fixture(scope="session")
def _client_addresses() -> Iterator[str]:
    """10.x.y.1 in random order, no /24 twice in a worker."""
    networks = random.sample(range(1 << 16), 1 << 16)
    return (f"10.{network >> 8}.{network & 0xFF}.1" for network in itertools.cycle(networks))


@pytest.fixture
def client_address(_client_addresses: Iterator[str]) -> str:
    """The address that `client` comes from, in a /24 that no other test of this worker is in."""
    return next(_client_addresses)


@pytest.fixture
def client(server: RunningServer, client_address: str) -> Iterator[httpx2.Client]:
    """An HTTP client of the shared node, with cookies and an address of its own."""
    with httpx2.Client(
        base_url=server.base_url, headers={"X-Forwarded-For": client_address}, timeout=30, trust_env=False
    ) as client:
        yield client


# --- browser -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Headless Chromium. One for a module, not for the run: while it lives no other event loop runs in the thread."""
    from playwright.sync_api import sync_playwright

    from servers.browser import launch

    with sync_playwright() as playwright, launch(playwright) as browser:
        yield browser


@pytest.fixture
def page(browser: "Browser") -> "Iterator[Page]":
    """An empty page of a browser profile without a past."""
    with browser.new_context() as profile:
        yield profile.new_page()
