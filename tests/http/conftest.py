"""Fixtures of the tests that talk to the running server."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx2
import pytest
from outsiders import Rows

from servers.postgres import Postgres
from servers.sekisho_server import RunningServer


@pytest.fixture
def rows(server: RunningServer, postgres: Postgres) -> Rows:
    """The database of the shared server."""
    return Rows(server, postgres)


@pytest.fixture
def connect(_client_addresses: Iterator[str]) -> Iterator[Callable[..., httpx2.Client]]:
    """Makes clients of any server, each with cookies and, unless told, a network of its own."""
    with ExitStack() as open_clients:

        def make(server: RunningServer, *, address: str | None = None, user_agent: str = "test") -> httpx2.Client:
            headers = {"X-Forwarded-For": address or next(_client_addresses), "User-Agent": user_agent}
            # Without certificates, whose loading would take longer than most of these tests.
            client = httpx2.Client(base_url=server.base_url, headers=headers, timeout=30, trust_env=False, verify=False)
            return open_clients.enter_context(client)

        yield make


@pytest.fixture
def client(connect: Callable[..., httpx2.Client], server: RunningServer, client_address: str) -> httpx2.Client:
    """A client of the shared server."""
    return connect(server, address=client_address)


@pytest.fixture
def other_client(connect: Callable[..., httpx2.Client], server: RunningServer) -> httpx2.Client:
    """A second client of the shared server, in another network."""
    return connect(server)
