"""What does a request with a session cookie cost: against Redis, against SQL, and beside a plain look-up in Redis?

GET /customers of a FastAPI application with Sekisho mounted, one process on a core of its own that has all the work it
can do; 16 connections that are kept open, 200 sessions in turn. The same route with access tokens, and unguarded. The
peers do what people write by hand: ``await redis.get("session:" + cookie)`` of redis.asyncio, and json.loads.

Before each round the sessions have just been used and are in the cache, so that no round has to note that they were,
but for one line: there each of them is used for the first time in a minute, and that is written. gc.freeze() is called
in all servers but two, which show what it does. Before it is measured each server must refuse what is not good.

`BENCH_SHORT=1 make bench T=bench/session_cookies.py` takes half a minute instead of six, and shows only that it works.
"""

import json
import os
import random
import secrets
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import redis
from redis.asyncio.connection import DefaultParser

from _load import LoadProcess, request
from _report import median, progress, start, table
from sekisho.tokens.keyring import KeySet

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from _routes import NOBODY, PATH, Checks, Cores, Server, cookie
from _routes.cookie_world import HEADER, ISSUER, SESSION, TOKEN, CookieWorld
from _routes.measured import Measured, Target, show_targets
from servers.leash import remove_folder, temporary_folder
from servers.postgres import PostgresServer
from servers.redis import RedisServer

SHORT = bool(os.environ.get("BENCH_SHORT"))
STARTS, ROUNDS, ROUND_S, WARM_UP_S = (1, 1, 0.4, 0.2) if SHORT else (3, 5, 0.8, 0.4)
CLIENTS = 16
SESSIONS = 200
USE_NOTED_EVERY_S = 60
CACHE_FILLS_IN_S = 2  # at the most
REDIS_OF_PEERS = 1  # Sekisho's, number 0, is emptied
PLAIN, NONE = "plain", ""
"""Kinds of credentials beside Sekisho's: a cookie of the peers', and one that nobody asks for."""
PEERS_COOKIE = "session"
LEAST_TIMES = 1.3
MOST_P99_MS = 8


@dataclass(frozen=True, kw_only=True)
class Service:
    """A server to start. ``database``: whose sessions Sekisho knows there; "" for a server that is without Sekisho."""

    app: str
    database: str = ""
    redis: bool = False
    frozen: bool = True


PLAIN_BARE = Service(app="fastapi_apps:bare")
BARE = Service(app="cookie_apps:mounted_bare", database="PostgreSQL", redis=True)
CACHED = Service(app="cookie_apps:mounted", database="PostgreSQL", redis=True)
CACHED_UNFROZEN = Service(app="cookie_apps:mounted", database="PostgreSQL", redis=True, frozen=False)
POSTGRESQL = Service(app="cookie_apps:mounted", database="PostgreSQL")
SQLITE = Service(app="cookie_apps:mounted", database="SQLite")
LOOK_UP = Service(app="cookie_apps:look_up")
LOOK_UP_ALIKE = Service(app="cookie_apps:look_up_as_sekisho")
LOOK_UP_UNTIMED = Service(app="cookie_apps:look_up_without_timeouts")
LOOK_UP_UNFROZEN = Service(app="cookie_apps:look_up", frozen=False)


@dataclass(eq=False)
class Line(Measured):
    """A line of the table. ``due``: every session is used for the first time in a minute."""

    service: Service
    credential: str
    due: bool = False
    uses_noted: int = field(default=0, init=False)


class Lines:
    """Everybody who takes part: Sekisho beside its bare route, the peers beside theirs."""

    def __init__(self) -> None:
        self.bare = Line("FastAPI with Sekisho, no guard", BARE, NONE)
        self.cached = Line("session cookie, Redis", CACHED, SESSION)
        self.due = Line("the same, each use to be noted", CACHED, SESSION, due=True)
        self.ours = [
            Line("access token in a header", CACHED, HEADER),
            Line("access token in a cookie", CACHED, TOKEN),
            self.cached,
            self.due,
            Line("the same, without gc.freeze()", CACHED_UNFROZEN, SESSION),
            Line("session cookie, SQLite", SQLITE, SESSION),
            Line("session cookie, PostgreSQL", POSTGRESQL, SESSION),
        ]
        self.plain_bare = Line("FastAPI, no guard", PLAIN_BARE, NONE)
        self.held_to = [
            Line("look-up, redis-py's defaults", LOOK_UP, PLAIN),
            Line("look-up, Sekisho's settings", LOOK_UP_ALIKE, PLAIN),
        ]
        self.peers = [
            *self.held_to,
            Line("look-up, defaults, no timeouts", LOOK_UP_UNTIMED, PLAIN),
            Line("look-up, defaults, without gc.freeze()", LOOK_UP_UNFROZEN, PLAIN),
        ]

    @property
    def all(self) -> list[Line]:
        return [self.bare, *self.ours, self.plain_bare, *self.peers]

    @property
    def services(self) -> list[Service]:
        return list(dict.fromkeys(line.service for line in self.all))


class Sessions:
    """Those that Sekisho knows, in each database, and the peers' in Redis."""

    def __init__(self, databases: dict[str, str], store: RedisServer) -> None:
        key_set = KeySet.generate("HS256", now=int(time.time()))
        self.worlds = {name: CookieWorld(url, key_set, size=SESSIONS) for name, url in databases.items()}
        self._store = store
        self._keys = key_set.to_json().decode()
        self._plain = {secrets.token_urlsafe(32): json.dumps({"sub": NOBODY, "roles": []}) for _ in range(SESSIONS)}
        with redis.Redis.from_url(store.database_url(REDIS_OF_PEERS)) as client:
            client.mset({f"session:{name}": content for name, content in self._plain.items()})
        self._cache = redis.Redis.from_url(store.url)

    def env(self, service: Service) -> dict[str, str]:
        if not service.database:
            return {}
        return {
            "SEKISHO_DATABASE_URL": self.worlds[service.database].url,
            "SEKISHO_ISSUER": ISSUER,
            "SEKISHO_ACCESS_TOKEN_TTL_S": "3600",
            "SEKISHO_KEYS": "env:BENCH_KEYS",
            "BENCH_KEYS": self._keys,
            **({"SEKISHO_REDIS_URL": self._store.url} if service.redis else {}),
        }

    def checks(self, line: Line) -> Checks:
        if line.credential in {PLAIN, NONE}:
            foreign = cookie(PEERS_COOKIE, secrets.token_urlsafe(32))
            return Checks(good=cookie(PEERS_COOKIE, next(iter(self._plain))), user=NOBODY, bad=[foreign])
        return self.worlds[line.service.database].checks(line.credential)

    def clients(self, line: Line) -> list[list[str]]:
        """Each has its own sessions, as users have. They are shown to bare routes too."""
        if line.service.database:
            headers = self.worlds[line.service.database].credentials(line.credential or SESSION)
        else:
            headers = [cookie(PEERS_COOKIE, value) for value in self._plain]
        texts = [request("GET", PATH, headers=one) for one in headers]
        return [texts[client::CLIENTS] for client in range(CLIENTS)]

    def forget_cached(self) -> None:
        self._cache.flushdb()


class Bench:
    """Runs the lines in rounds."""

    def __init__(self, running: ExitStack, cores: Cores, lines: Lines) -> None:
        self._cores = cores
        self._lines = lines
        self._folder = temporary_folder("sekisho-bench-")
        running.callback(remove_folder, self._folder)
        progress("starting PostgreSQL and Redis")
        with cores.on(cores.load):
            self._load = running.enter_context(LoadProcess())
        with cores.on(cores.redis):
            store = running.enter_context(RedisServer())
            postgres = running.enter_context(PostgresServer(fsync=True))
        databases = {"PostgreSQL": postgres.create_database(), "SQLite": f"sqlite:///{self._folder}/sekisho.db"}
        self._sessions = Sessions(databases, store)
        self._given = self._folder / "given.json"
        self._given.write_text(json.dumps({"nobody": NOBODY, "redis_url": store.database_url(REDIS_OF_PEERS)}))

    def measure(self) -> None:
        for number in range(STARTS):
            with ExitStack() as running:
                progress(f"start {number + 1} of {STARTS}")
                self._measure(self._started(running, number), number)

    def _started(self, running: ExitStack, number: int) -> dict[Service, Server]:
        """New processes, and so another layout of memory and another seed of hashes."""
        servers: dict[Service, Server] = {}
        for service in self._lines.services:
            folder = self._folder / f"{number}-{len(servers)}"
            folder.mkdir()
            env = self._sessions.env(service)
            with self._cores.on(self._cores.server):
                server = Server(service.app, folder=folder, given=self._given, env=env, frozen=service.frozen)
                servers[service] = running.enter_context(server)
        for server in servers.values():
            server.wait()
        return servers

    def _measure(self, servers: dict[Service, Server], number: int) -> None:
        lines = self._lines.all
        for line in lines:
            server = servers[line.service]
            server.check(self._sessions.checks(line), guarded=line.credential != NONE)
            self._load.run(server.port, self._sessions.clients(line), seconds=WARM_UP_S).expect(200)
        for round_ in range(ROUNDS):
            progress(f"start {number + 1} of {STARTS}, round {round_ + 1} of {ROUNDS}")
            for line in random.sample(lines, len(lines)):  # nobody always has the same neighbour
                self._round(line, servers[line.service])

    def _round(self, line: Line, server: Server) -> None:
        clients = self._sessions.clients(line)
        if line.credential != SESSION:
            line.measure(server, self._load, clients, seconds=ROUND_S)
            return
        world = self._sessions.worlds[line.service.database]
        began = time.monotonic()
        world.use(ago_s=USE_NOTED_EVERY_S - CACHE_FILLS_IN_S if line.due else 0)
        self._sessions.forget_cached()
        self._load.run(server.port, clients).expect(200)  # each session once
        if world.uses_noted():
            raise RuntimeError(f"{line.name}: uses were noted too early")
        if line.due:
            time.sleep(max(0, began + CACHE_FILLS_IN_S + 0.1 - time.monotonic()))
        line.measure(server, self._load, clients, seconds=ROUND_S)
        noted = world.uses_noted()
        if bool(noted) != line.due:  # a machine that has other work may not come to all of them
            raise RuntimeError(f"{line.name}: {noted} uses were noted")
        line.uses_noted += noted


def show(lines: Lines) -> None:
    for bare, others in ((lines.bare, lines.ours), (lines.plain_bare, lines.peers)):
        rows = [[bare.name, f"{median(bare.rates):.0f}", "", "", *_times_and_cpu(bare), ""]]
        for line in others:
            beside = f"{line.times(bare):.2f}", f"{line.added_us(bare):+.0f}"
            added = f"{line.cpu_us - bare.cpu_us:+.0f}"
            rows.append([line.name, f"{median(line.rates):.0f}", *beside, *_times_and_cpu(line), added])
        head = ["Sekisho" if others is lines.ours else "peers", "per second", "share of bare", "added µs"]
        table([*head, "p50 ms", "p99 ms", "CPU µs", "added CPU µs"], rows)


def _times_and_cpu(line: Line) -> list[str]:
    return [f"{median(line.p50s_ms):.2f}", f"{median(line.p99s_ms):.1f}", f"{line.cpu_us:.0f}"]


def show_beside_peers(lines: Lines) -> None:
    """A peer's guard by CPU: what it adds to its bare route, over what ours adds to its own."""
    ours = lines.cached
    rows = []
    for peer in lines.peers:
        guards = (peer.cpu_us - lines.plain_bare.cpu_us) / (ours.cpu_us - lines.bare.cpu_us)
        rows.append([peer.name, f"{ours.times(peer):.2f} ×", f"{peer.cpu_us / ours.cpu_us:.2f} ×", f"{guards:.2f} ×"])
    table([f"{ours.name}, times", "per second", "by CPU", "guard alone, by CPU"], rows)


def targets(lines: Lines) -> list[Target]:
    wanted = []
    for peer in lines.held_to:
        times = lines.cached.times(peer)
        text = f"{lines.cached.name}: × {peer.name}"
        wanted.append(Target(text, f"≥ {LEAST_TIMES:.2f}", f"{times:.2f}", times >= LEAST_TIMES))
    p99_ms = median(lines.cached.p99s_ms)
    return [
        *wanted,
        Target(f"{lines.cached.name}: p99", f"≤ {MOST_P99_MS} ms", f"{p99_ms:.1f} ms", p99_ms <= MOST_P99_MS),
    ]


def explain(lines: Lines, cores: Cores) -> None:
    due = lines.due
    each_us = (due.cpu_us - lines.cached.cpu_us) * due.requests / due.uses_noted
    busiest = max(lines.all, key=lambda line: median(line.load_shares))
    noted = due.uses_noted / len(due.rates)
    print(cores.text().replace("Redis to", "Redis and PostgreSQL to"))
    print(f"{CLIENTS} clients, {SESSIONS} sessions, {STARTS} starts of {ROUNDS} rounds of {ROUND_S} s.")
    print(f"Load: at the most {median(busiest.load_shares):.0%} of its core. With Redis, the rows are in PostgreSQL.")
    print(f"Uses noted, in each round of that line: {noted:.0f}, one in {due.requests / due.uses_noted:.1f} requests;")
    print(f"each costs the server {each_us:.0f} CPU µs. In all other rounds none, as the rows say before and after.")
    print("Share, added µs and times: of each round's rates, beside the other's in the same round. CPU: the time of")
    print("the server's process per request, which others on the machine change less. What Sekisho does beside the")
    print("requests (looking for revocations five times a second) is in it, and weighs more the fewer there are.")
    print("gc.freeze() everywhere but where it says without.")


def main() -> None:
    start("Session cookies")
    names = ("fastapi", "starlette", "uvicorn", "redis", "hiredis", "SQLAlchemy", "asyncpg")
    print(", ".join(f"{name} {version(name)}" for name in names) + f"; redis-py's parser: {DefaultParser.__name__}")
    cores, lines = Cores(), Lines()
    with ExitStack() as running:
        Bench(running, cores, lines).measure()
    show(lines)
    show_beside_peers(lines)
    show_targets(targets(lines))
    explain(lines, cores)


if __name__ == "__main__":
    main()
