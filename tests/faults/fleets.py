"""Nodes on one database: how they are started, and which a scene asks for."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import pytest
from outsiders import Rows

from servers.sekisho_server import ODD_NODE, RunningServer

# One name for all nodes; and the address of a caller is what X-Forwarded-For says, or throttles would stop the crowds.
ENV = {"SEKISHO_ISSUER": "https://auth.example.com", "SEKISHO_TRUSTED_PROXIES": "127.0.0.1/32"}
KEYS = "sekisho-keys.json"
CLOCKS_OFF_S = 600

StartNodes = Callable[..., list[RunningServer]]
"""The fixture `start_nodes`: (database_url, nodes, env)."""


class Odd(NamedTuple):
    """How a node differs from its fellows."""

    env: Mapping[str, str] = {}
    database_url: str = ""


def a_clock_off_by(seconds: float) -> Odd:
    return Odd({"TEST_CLOCK_OFFSET_S": str(seconds)})


def started(
    folders: pytest.TempPathFactory,
    running: ExitStack,
    database_url: str,
    nodes: Sequence[Odd | None],
    env: Mapping[str, str] | None = None,
) -> list[RunningServer]:
    """Nodes with one key set on one database. None: an ordinary one; else it runs through odd_node.py."""
    made: list[RunningServer] = []
    for odd in nodes:
        folder = folders.mktemp("node")
        if made:
            shutil.copy(made[0].folder / KEYS, folder)
        node = RunningServer(
            folder,
            upgrade=not made,
            database_url=(odd and odd.database_url) or database_url,
            env={**ENV, **(env or {}), **(odd.env if odd else {})},
            **({"program": ODD_NODE} if odd else {}),
        )
        running.callback(node.close)
        node.start()
        made.append(node)
    return made


class Fleet(NamedTuple):
    """Nodes that a worker's tests share. The last can be killed by a request (odd_node.py, wire_watch.py)."""

    nodes: list[RunningServer]
    rows: Rows

    @property
    def mortal(self) -> RunningServer:
        return self.nodes[-1]

    def revive(self) -> None:
        """After its death."""
        if self.mortal.process.poll() is not None:
            self.mortal.kill()  # whatever it left
            self.mortal.start()


class Setting(NamedTuple):
    """Where a scene plays."""

    database: str
    number: int
    place: int = 0

    def __str__(self) -> str:
        return f"{self.database}-{self.number}"


ONE_SQLITE, ONE_POSTGRESQL, THREE_POSTGRESQL = Setting("sqlite", 1), Setting("postgresql", 1), Setting("postgresql", 3)
LAST_POSTGRESQL = Setting("postgresql", 1, place=-1)
everywhere = pytest.mark.parametrize("setting", [ONE_SQLITE, ONE_POSTGRESQL, THREE_POSTGRESQL], ids=str)
widest = pytest.mark.parametrize("setting", [ONE_SQLITE, THREE_POSTGRESQL], ids=str)
