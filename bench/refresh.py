"""How many refreshes a second does one node serve, and how long does a client wait for one?

8 clients over HTTP, each refresh a *rotate*: the rows are made old by SQL between the rounds. Beside it, in the same
rounds, the limit: the bare UPDATE … RETURNING on the same kind of row, committed as durably, from 8 asyncpg connections
or by SQLite's one writer. And the frame: GET /healthz of the same node.
"""

import asyncio
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import asyncpg
import psutil
import uvloop
from sqlalchemy import update

from _load import LoadProcess, Outcome, request
from _report import median, percentile, progress, start, table
from _rows import Place, add_accounts, add_sessions
from sekisho.storage.engine import Database
from sekisho.storage.schema import sessions
from sekisho.tokens.keyring import KeySet
from sekisho.tokens.refresh import RefreshKeys

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from servers.leash import remove_folder, temporary_folder
from servers.postgres import PostgresServer
from servers.sekisho_server import RunningServer

CLIENTS = 8
ROUNDS = 6
HTTP_S = 2.0  # about, for each round and database
BARE_S = 1.0
SESSIONS = 6000  # refreshed over HTTP: at most so many in a round
BARE_SESSIONS = CLIENTS * 250
WINDOW_US = 30 * 1_000_000
IDLE_US = 7 * 86_400 * 1_000_000


@dataclass
class Node:
    """A running `sekisho serve`, its sessions, and what was measured."""

    name: str
    server: RunningServer
    url: str
    places: list[Place]
    bare_places: list[Place]
    keys: RefreshKeys
    batch: int = 400  # how many refreshes a round has; adapted to the speed
    rates: list[float] = field(default_factory=list)
    p50s_ms: list[float] = field(default_factory=list)
    p99s_ms: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    bare_rates: list[float] = field(default_factory=list)
    frame_rates: list[float] = field(default_factory=list)
    frame_cpu_us: list[float] = field(default_factory=list)
    load_shares: list[float] = field(default_factory=list)

    @classmethod
    async def prepare(cls, name: str, server: RunningServer, url: str) -> Self:
        database = Database(url)
        try:
            emails = [f"user{number}@example.com" for number in range(SESSIONS + BARE_SESSIONS)]
            user_ids = await add_accounts(database, emails, password_hash="nobody logs in")
            places = await add_sessions(database, user_ids)
        finally:
            await database.close()
        key_set = KeySet.from_json((server.folder / "sekisho-keys.json").read_bytes())
        keys = RefreshKeys(key_set.active("refresh"), key_set.used("refresh"))
        return cls(name, server, url, places[:SESSIONS], places[SESSIONS:], keys)

    async def age(self) -> None:
        """As if twice the replay window had passed since each was handed out."""
        database = Database(self.url)
        try:
            older = {"handed_out_at_us": sessions.c.handed_out_at_us - 2 * WINDOW_US}
            await database.migrate(lambda connection: connection.execute(update(sessions).values(older)))
        finally:
            await database.close()

    def refresh(self, load: LoadProcess, *, keep: bool) -> None:
        """One round. Every answer must be a 200, and so a new pair."""
        batch = self.places[: self.batch]
        texts = [request("POST", "/refresh", body={"refresh_token": place.token(self.keys)}) for place in batch]
        outcome, cpu_us = self._measured(lambda: load.run(self.server.port, _shared_out(texts)))
        self.places[: self.batch] = [place.rotated() for place in batch]
        self.batch = min(SESSIONS, max(CLIENTS * 25, round(outcome.per_second * HTTP_S)))
        if keep:
            self.rates.append(outcome.per_second)
            self.p50s_ms.append(percentile(outcome.latencies_ms, 50))
            self.p99s_ms.append(percentile(outcome.latencies_ms, 99))
            self.cpu_us.append(cpu_us)
            self.load_shares.append(outcome.cpu_share)

    def frame(self, load: LoadProcess) -> None:
        clients = [[request("GET", "/healthz")]] * CLIENTS
        outcome, cpu_us = self._measured(lambda: load.run(self.server.port, clients, seconds=BARE_S))
        self.frame_rates.append(outcome.per_second)
        self.frame_cpu_us.append(cpu_us)

    def _measured(self, work: Callable[[], Outcome]) -> tuple[Outcome, float]:
        """With the server's CPU time per request, which other programs on the machine hardly change."""
        process = psutil.Process(self.server.process.pid)
        before = process.cpu_times()
        outcome = work().expect(200)
        after = process.cpu_times()
        cpu_s = after.user + after.system - before.user - before.system
        return outcome, cpu_s / len(outcome.latencies_ms) * 1e6


def _shared_out(texts: Sequence[str]) -> list[Sequence[str]]:
    return [texts[client::CLIENTS] for client in range(CLIENTS)]


# The service's own condition and columns; {…} is filled in where the two databases differ. The window is negative, so
# that the same rows rotate again and again.
_BARE = """
UPDATE sessions SET generation = generation + 1, branch = 0, parent_branch = branch, made_at_us = {now},
    handed_out_at_us = {now}, idle_ends_at_us = {now} + $4, last_address = $5, last_user_agent = $6
FROM {clock}
WHERE sessions.id = $1 AND generation = $2 AND branch = 0 AND ended_at_us IS NULL
    AND handed_out_at_us < {now} - $3 AND idle_ends_at_us > {now} AND ends_at_us > {now}
    AND EXISTS (SELECT 1 FROM users WHERE users.id = sessions.user_id AND users.disabled_at_us IS NULL)
RETURNING {columns}, (SELECT roles FROM users WHERE users.id = sessions.user_id)
"""
_COLUMNS = ", ".join(column.name for column in sessions.c)
_PG_CLOCK = "WITH clock AS MATERIALIZED (SELECT (extract(epoch from clock_timestamp()) * 1000000)::bigint AS now_us)"
_BARE_PG = _PG_CLOCK + _BARE.format(now="clock.now_us", clock="clock", columns=_COLUMNS)
_BARE_SQLITE = _BARE.replace("$", "?").format(now="?7", clock="(SELECT 1) AS clock", columns=_COLUMNS)
_NEGATIVE_WINDOW_US = -1_000_000


async def bare_postgresql(node: Node) -> float:
    """Statements a second from 8 connections."""
    settings = {"statement_timeout": "1000", "jit": "off"}
    connections = [await asyncpg.connect(node.url, server_settings=settings) for _ in range(CLIENTS)]
    statements = [await connection.prepare(_BARE_PG) for connection in connections]
    began = time.perf_counter()

    async def drive(statement: Any, mine: Sequence[int]) -> int:
        done = 0
        while time.perf_counter() - began < BARE_S:
            number = mine[done % len(mine)]
            place = node.bare_places[number]
            row = await statement.fetchrow(
                place.session_id, place.generation, _NEGATIVE_WINDOW_US, IDLE_US, "127.0.0.1", "bench"
            )
            assert row is not None, "the bare statement found no row to rotate"
            node.bare_places[number] = place.rotated()
            done += 1
        return done

    numbers = range(len(node.bare_places))
    done = await asyncio.gather(
        *(drive(statement, numbers[client::CLIENTS]) for client, statement in enumerate(statements))
    )
    elapsed_s = time.perf_counter() - began
    for connection in connections:
        await connection.close()
    return sum(done) / elapsed_s


def bare_sqlite(node: Node) -> float:
    """Statements a second of one writer."""
    path = node.url.removeprefix("sqlite:///")
    connection = sqlite3.connect(path, isolation_level=None, timeout=5)
    connection.execute("PRAGMA synchronous = FULL")
    done = 0
    began = time.perf_counter()
    while time.perf_counter() - began < BARE_S:
        number = done % len(node.bare_places)
        place = node.bare_places[number]
        given = (place.session_id.hex, place.generation, _NEGATIVE_WINDOW_US, IDLE_US, "127.0.0.1", "bench")
        connection.execute("BEGIN IMMEDIATE")
        rows = connection.execute(_BARE_SQLITE, (*given, time.time_ns() // 1000)).fetchall()
        connection.execute("COMMIT")
        assert rows, "the bare statement found no row to rotate"
        node.bare_places[number] = place.rotated()
        done += 1
    elapsed_s = time.perf_counter() - began
    connection.close()
    return done / elapsed_s


def measure(nodes: Sequence[Node], load: LoadProcess, postgres: PostgresServer) -> None:
    for number in range(-1, ROUNDS):  # the round before the first warms up and finds the batch
        for node in nodes:
            progress(f"{node.name}: " + (f"round {number + 1} of {ROUNDS}" if number >= 0 else "warming up"))
            asyncio.run(node.age())
            if node.url.startswith("postgresql"):
                postgres.execute("VACUUM sessions", database=node.url.rpartition("/")[2])
            node.refresh(load, keep=number >= 0)
            if number >= 0:
                is_sqlite = node.url.startswith("sqlite")
                node.bare_rates.append(bare_sqlite(node) if is_sqlite else uvloop.run(bare_postgresql(node)))
                node.frame(load)


def show(nodes: Sequence[Node]) -> None:
    rows = []
    for node in nodes:
        rate, bare, frame = median(node.rates), median(node.bare_rates), median(node.frame_rates)
        rows.append(
            [
                node.name,
                f"{median([mine / limit for mine, limit in zip(node.rates, node.bare_rates, strict=True)]):.1%}",
                f"{median(node.cpu_us) / median(node.frame_cpu_us):.1f} ×",
                f"{rate:.0f}",
                f"{bare:.0f}",
                f"{frame:.0f}",
                f"{median(node.p50s_ms):.1f}",
                f"{median(node.p99s_ms):.1f}",
                f"{median(node.cpu_us):.0f}",
                f"{median(node.frame_cpu_us):.0f}",
                f"{median(node.load_shares):.0%}",
            ]
        )
    ratios = ["share of bare", "CPU, × healthz"]
    rates = ["refresh/s", "bare/s", "healthz/s"]
    table(["", *ratios, *rates, "p50 ms", "p99 ms", "CPU µs", "healthz µs", "load's core"], rows)
    print("CPU: the server's, per request. Load's core: how busy the load process was; above 80 % it is the limit.")
    print("Targets: on PostgreSQL ≥ 14 % of the bare statement per server core, p99 ≤ 5 ms.")


def main() -> None:
    start(f"Refreshing over HTTP, {CLIENTS} clients")
    with ExitStack() as running:
        folder = temporary_folder("sekisho-bench-")
        running.callback(remove_folder, folder)
        progress("starting PostgreSQL and two nodes")
        postgres = running.enter_context(PostgresServer(fsync=True))
        nodes = []
        for name, url in (("PostgreSQL", postgres.create_database()), ("SQLite", f"sqlite:///{folder}/sekisho.db")):
            (folder / name).mkdir()
            server = RunningServer(folder / name, database_url=url)
            running.callback(server.close)
            server.start()
            nodes.append(asyncio.run(Node.prepare(name, server, url)))
        measure(nodes, running.enter_context(LoadProcess()), postgres)
    show(nodes)


if __name__ == "__main__":
    main()
