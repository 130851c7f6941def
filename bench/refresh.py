"""How many refreshes a second does one node serve, and how long does a client wait for one?

8 clients over HTTP, each refresh a *rotate*: the rows are made old by SQL between the rounds. Beside it, in the same
rounds and on the same PostgreSQL: the limit, pgbench running the bare UPDATE … RETURNING; simplejwt with rotation and
blacklist. On SQLite the limit is the bare statement from its one writer. And the frame: GET /healthz of the same node.
"""

import asyncio
import random
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from sqlalchemy import update

from _load import LoadProcess, Outcome, request
from _report import cores, median, percentile, progress, start, table
from _rows import Place, add_accounts, add_sessions
from sekisho.storage.engine import Database
from sekisho.storage.rotate import SQLITE_TEXT
from sekisho.storage.schema import sessions
from sekisho.tokens.keyring import KeySet
from sekisho.tokens.refresh import RefreshKeys

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import _pgbench
import _simplejwt
from servers.leash import remove_folder, temporary_folder
from servers.postgres import PostgresServer
from servers.sekisho_server import RunningServer

CLIENTS = 8
FEWER_CLIENTS = (4, 1)
ROUNDS = 6
HTTP_S = 2.0  # about, for each round and contender
BARE_S = FRAME_S = 1.0
FEWER_S = 0.7
SESSIONS = 9000
MOST = 6000  # refreshes in a round, so that the fewer clients find sessions too
MOST_FEWER = 1500
BARE_SESSIONS = 2000  # for SQLite's one writer
TOKENS = 800  # of simplejwt, in each round
WINDOW_US = 30 * 1_000_000


@dataclass
class Rounds:
    """What each round came to."""

    rates: list[float] = field(default_factory=list)
    p50s_ms: list[float] = field(default_factory=list)
    p99s_ms: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    load_shares: list[float] = field(default_factory=list)

    def add(self, outcome: Outcome, cpu_us: float) -> None:
        self.rates.append(outcome.per_second)
        self.p50s_ms.append(percentile(outcome.latencies_ms, 50))
        self.p99s_ms.append(percentile(outcome.latencies_ms, 99))
        self.cpu_us.append(cpu_us)
        self.load_shares.append(outcome.cpu_share)

    def over(self, others: Sequence[float]) -> float:
        """How many times the others' rate: of each round, since neighbours in time saw the same machine."""
        return median([mine / other for mine, other in zip(self.rates, others, strict=True)])


@dataclass
class Contender:
    """A server, and where its requests come from: ``take`` gives up to so many, each good for one refresh."""

    name: str
    port: int
    pid: int
    take: Callable[[int], list[str]]

    def measured(self, work: Callable[[], Outcome]) -> tuple[Outcome, float]:
        """With the CPU time per request of all its processes, which others on the machine hardly change."""
        before = self._cpu_s()
        outcome = work().expect(200)
        return outcome, (self._cpu_s() - before) / len(outcome.latencies_ms) * 1e6

    def _cpu_s(self) -> float:
        server = psutil.Process(self.pid)
        times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
        return sum(time.user + time.system for time in times)


@dataclass
class Series(Rounds):
    """A line of the table: so many clients refresh at one server."""

    contender: Contender = field(kw_only=True)
    clients: int = CLIENTS
    seconds: float = HTTP_S
    most: int = MOST
    batch: int = 400  # how many refreshes a round has; adapted to the speed

    def run(self, load: LoadProcess, *, keep: bool) -> None:
        """One round. Every answer must be a 200, and so a new pair."""
        texts = self.contender.take(min(self.batch, self.most))
        shared_out = [texts[client :: self.clients] for client in range(self.clients)]
        outcome, cpu_us = self.contender.measured(lambda: load.run(self.contender.port, shared_out))
        self.batch = max(self.clients * 25, round(outcome.per_second * self.seconds))
        if keep:
            self.add(outcome, cpu_us)


@dataclass
class Frame(Rounds):
    """GET /healthz at one server."""

    contender: Contender = field(kw_only=True)

    def run(self, load: LoadProcess, *, keep: bool) -> None:
        clients = [[request("GET", "/healthz")]] * CLIENTS
        outcome, cpu_us = self.contender.measured(lambda: load.run(self.contender.port, clients, seconds=FRAME_S))
        if keep:
            self.add(outcome, cpu_us)


class Node:
    """A running `sekisho serve` and its sessions."""

    def __init__(self, name: str, server: RunningServer, url: str) -> None:
        self.url = url
        self.contender = Contender(f"Sekisho on {name}", server.port, server.process.pid, self.take)
        key_set = KeySet.from_json((server.folder / "sekisho-keys.json").read_bytes())
        self._keys = RefreshKeys(key_set.active("refresh"), key_set.used("refresh"))
        self._old: list[Place] = []
        self._used: list[Place] = []

    async def prepare(self, *, more: int = 0) -> list[Place]:
        """Adds the sessions, and so many more, which it returns."""
        database = Database(self.url)
        try:
            emails = [f"user{number}@example.com" for number in range(SESSIONS + more)]
            user_ids = await add_accounts(database, emails, password_hash="nobody logs in")
            places = await add_sessions(database, user_ids)
        finally:
            await database.close()
        self._old = places[:SESSIONS]
        return places[SESSIONS:]

    async def age(self) -> None:
        """As if twice the replay window had passed since each was handed out."""
        database = Database(self.url)
        try:
            older = {"handed_out_at_us": sessions.c.handed_out_at_us - 2 * WINDOW_US}
            await database.migrate(lambda connection: connection.execute(update(sessions).values(older)))
        finally:
            await database.close()
        self._old += self._used
        self._used = []

    def take(self, count: int) -> list[str]:
        taken, self._old = self._old[:count], self._old[count:]
        self._used += [place.rotated() for place in taken]
        return [request("POST", "/refresh", body={"refresh_token": place.token(self._keys)}) for place in taken]


class SqliteWriter:
    """SQLite's own limit: one writer, each statement a transaction that is on the disk before the next begins."""

    def __init__(self, url: str, places: list[Place]) -> None:
        self._path = url.removeprefix("sqlite:///")
        self._places = places

    def run(self) -> float:
        """Statements a second."""
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=5)
        connection.execute("PRAGMA synchronous = FULL")
        done = 0
        began = time.perf_counter()
        while time.perf_counter() - began < BARE_S:
            number = done % len(self._places)
            place = self._places[number]
            row = {
                "session_id": place.session_id.hex,
                "presented_generation": place.generation,
                "now_us": time.time_ns() // 1000,
            }
            connection.execute("BEGIN IMMEDIATE")
            rows = connection.execute(SQLITE_TEXT, {**_pgbench.GIVEN, **row}).fetchall()
            connection.execute("COMMIT")
            assert rows, "the bare statement found no row to rotate"
            self._places[number] = place.rotated()
            done += 1
        elapsed_s = time.perf_counter() - began
        connection.close()
        return done / elapsed_s


class Bench:
    """Everybody who takes part, and what was measured."""

    def __init__(self, running: ExitStack) -> None:
        folder = temporary_folder("sekisho-bench-")
        running.callback(remove_folder, folder)
        progress("starting PostgreSQL, two nodes and simplejwt")
        self.server = running.enter_context(PostgresServer(fsync=True))
        self.load = running.enter_context(LoadProcess())
        self.postgres = _started(running, "PostgreSQL", folder, self.server.create_database())
        self.sqlite = _started(running, "SQLite", folder, f"sqlite:///{folder}/sekisho.db")
        asyncio.run(self.postgres.prepare())
        self.writer = SqliteWriter(self.sqlite.url, asyncio.run(self.sqlite.prepare(more=BARE_SESSIONS)))
        self.pgbench = _pgbench.PgBench(self.server, self.postgres.url, folder, clients=CLIENTS)
        self.simplejwt = running.enter_context(
            _simplejwt.SimpleJwt(self.server, threads=_simplejwt.THREADS, tokens=TOKENS * (ROUNDS + 2))
        )
        peer = Contender("simplejwt on PostgreSQL", self.simplejwt.port, self.simplejwt.pid, self.simplejwt.take)

        self.ours = Series(contender=self.postgres.contender)
        self.fewer = [
            Series(contender=self.postgres.contender, clients=clients, seconds=FEWER_S, most=MOST_FEWER)
            for clients in FEWER_CLIENTS
        ]
        self.ours_sqlite = Series(contender=self.sqlite.contender)
        self.theirs = Series(contender=peer, most=TOKENS)
        self.frame = Frame(contender=self.postgres.contender)
        self.frame_sqlite = Frame(contender=self.sqlite.contender)
        self.bare_rates: list[float] = []
        self.bare_shares: list[float] = []
        self.writer_rates: list[float] = []

    def measure(self) -> None:
        for number in range(-1, ROUNDS):  # the round before the first warms up and finds the batches
            progress(f"round {number + 1} of {ROUNDS}" if number >= 0 else "warming up")
            for node in (self.postgres, self.sqlite):
                asyncio.run(node.age())
            self.server.execute("VACUUM sessions", database=self.postgres.url.rpartition("/")[2])
            lines = (self.ours, *self.fewer, self.ours_sqlite, self.theirs, self.frame, self.frame_sqlite)
            steps = [*(line.run for line in lines), self._limit, self._sqlite_limit]
            for step in random.sample(steps, len(steps)):  # nobody always comes after the same neighbour
                step(self.load, keep=number >= 0)
        self.simplejwt.check()

    def times_simplejwt(self) -> float:
        return self.ours.over(self.theirs.rates)

    def share_of_bare(self) -> float:
        return self.ours.over(self.bare_rates)

    def _limit(self, _load: LoadProcess, *, keep: bool) -> None:
        rate, share = self.pgbench.run()
        if keep:
            self.bare_rates.append(rate)
            self.bare_shares.append(share)

    def _sqlite_limit(self, _load: LoadProcess, *, keep: bool) -> None:
        rate = self.writer.run()
        if keep:
            self.writer_rates.append(rate)


def _started(running: ExitStack, name: str, folder: Path, url: str) -> Node:
    (folder / name).mkdir()
    server = RunningServer(folder / name, database_url=url)
    running.callback(server.close)
    server.start()
    return Node(name, server, url)


def show_refreshes(bench: Bench) -> None:
    frame_us, frame_sqlite_us = median(bench.frame.cpu_us), median(bench.frame_sqlite.cpu_us)
    beside = f"{bench.times_simplejwt():.1f} ×", f"{median(bench.theirs.cpu_us) / median(bench.ours.cpu_us):.1f} ×"
    head = ["Refresh", "clients", "per second", "p50 ms", "p99 ms", "share of bare", "× simplejwt", "by CPU"]
    head += ["CPU µs", "× healthz", "load's core"]
    rows = [
        _row(bench.ours, f"{bench.share_of_bare():.1%}", beside, frame_us),
        *(_row(series, "", ("", ""), frame_us) for series in bench.fewer),
        _row(bench.ours_sqlite, f"{bench.ours_sqlite.over(bench.writer_rates):.1%}", ("", ""), frame_sqlite_us),
        _row(bench.theirs, f"{bench.theirs.over(bench.bare_rates):.1%}", ("1.0 ×", "1.0 ×"), None),
    ]
    table(head, rows)


def _row(series: Series, share: str, beside: tuple[str, str], frame_us: float | None) -> list[str]:
    return [
        series.contender.name,
        f"{series.clients}",
        f"{median(series.rates):.0f}",
        f"{median(series.p50s_ms):.1f}",
        f"{median(series.p99s_ms):.1f}",
        share,
        *beside,
        f"{median(series.cpu_us):.0f}",
        f"{median(series.cpu_us) / frame_us:.1f} ×" if frame_us else "",
        f"{median(series.load_shares):.0%}",
    ]


def show_limits(bench: Bench) -> None:
    pgbench = [f"{median(bench.bare_rates):.0f}", "", f"{median(bench.bare_shares):.0%}"]
    rows = [
        [f"bare statement, pgbench, {CLIENTS} clients", *pgbench],
        ["bare statement, SQLite, one writer", f"{median(bench.writer_rates):.0f}", "", ""],
    ]
    for frame in (bench.frame, bench.frame_sqlite):
        figures = [f"{median(frame.rates):.0f}", f"{median(frame.cpu_us):.0f}", f"{median(frame.load_shares):.0%}"]
        rows.append([f"GET /healthz, {frame.contender.name}", *figures])
    table(["Limits and frame", "per second", "CPU µs", "load's core"], rows)


def show_targets(bench: Bench) -> None:
    times, share, p99_ms = bench.times_simplejwt(), bench.share_of_bare(), median(bench.ours.p99s_ms)
    rows = [
        ["refreshes a second, × simplejwt", "≥ 8 ×", f"{times:.1f} ×", _met(times >= 8)],
        ["share of the bare statement, per server core", "≥ 14%", f"{share:.1%}", _met(share >= 0.14)],
        [f"p99 of {CLIENTS} clients", "≤ 5 ms", f"{p99_ms:.1f} ms", _met(p99_ms <= 5)],
    ]
    table(["target, on PostgreSQL", "aim", "measured", "met"], rows)
    print("CPU: the server's processes, per request. Load's core: how busy the clients' process was; above 80 % it is")
    print(f"the limit. Clients, PostgreSQL and server share {cores()} cores, and nothing is pinned. A server is one")
    print(f"Python process and never has more than one core; pgbench has {_pgbench.THREADS} thread. What slows the")
    print("disk or takes the cores slows all of them to one speed: then believe the ratio by CPU times alone.")


def _met(reached: bool) -> str:
    return "yes" if reached else "NO"


def main() -> None:
    start(f"Refreshing over HTTP, {CLIENTS} clients")
    print(_simplejwt.versions(), flush=True)
    with ExitStack() as running:
        bench = Bench(running)
        bench.measure()
    show_refreshes(bench)
    show_limits(bench)
    show_targets(bench)


if __name__ == "__main__":
    main()
