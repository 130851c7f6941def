"""How long after a logout was acknowledged does the last verifier still accept the session's access token?

Three nodes of Sekisho on one PostgreSQL; five services that check tokens (FastAPI, Starlette twice, Django, Flask),
each a process under its usual server with a verifier that follows one of the nodes; logouts at the nodes in turn, while
clients call a guarded route. Measured inside each service: from the acknowledgement to the first refusal, and whether
anything refused is ever accepted again. The same with Redis, with Redis killed in the middle, with a node killed in
the middle, and with the line to one service cut without a word for 40 seconds.
"""

import http.client
import itertools
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from _load import LoadProcess, request
from _report import percentile, progress, start, table
from _rows import add_accounts, add_sessions
from sekisho.storage.engine import Database
from sekisho.tokens import access
from sekisho.tokens.keyring import KeySet

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from servers.leash import end_process, remove_folder, start_process, temporary_folder
from servers.ports import free_port
from servers.postgres import PostgresServer
from servers.proxy import Proxy, Rule
from servers.redis import RedisServer
from servers.sekisho_server import RunningServer

ISSUER = "https://auth.example.com"
KINDS = ("fastapi", "starlette", "starlette decorator", "django", "flask")
LOGOUTS = int(os.environ.get("BENCH_LOGOUTS", "2000"))
PER_SECOND = 120
CLIENTS = 6
READERS = 4
READER_PAUSE_S = 0.02
CUT_S = 40.0
PATIENCE_S = 60.0
WITHIN_MS = {"p50": 100, "p99": 1000, "max": 2000}


@dataclass
class Service:
    """A process that checks tokens, and what its informer has told."""

    kind: str
    port: int
    process: subprocess.Popen[bytes]
    line: socket.socket | None = None
    refused_at: dict[str, float] = field(default_factory=dict)
    samples: list[tuple[float, str, float]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def watch(self, tokens: dict[str, str]) -> None:
        assert self.line is not None
        self.line.sendall(json.dumps(tokens).encode() + b"\n")

    def hear(self, line: socket.socket) -> None:
        for text in line.makefile("rb"):
            fact = json.loads(text)
            if "refused" in fact:
                self.refused_at[fact["refused"]] = fact["at"]
                if fact["answer"] != "revoked":
                    self.faults.append(f"refused as {fact['answer']}")
            elif "accepted_again" in fact:
                self.faults.append("accepted again")
            elif "state" in fact:
                self.samples.append((fact["at"], fact["state"], fact["age_s"]))

    def states(self) -> str:
        """In the order in which they came."""
        return " ".join(state for state, _ in itertools.groupby(state for _, state, _ in self.samples))


class Scene:
    """Nodes, services and sessions for one run."""

    def __init__(self, stack: ExitStack, postgres: PostgresServer, *, redis: RedisServer | None, cut: bool) -> None:
        self._stack = stack
        self.folder = temporary_folder("sekisho-bench-")
        stack.callback(remove_folder, self.folder)
        url = postgres.create_database()
        env = {
            "SEKISHO_ISSUER": ISSUER,
            "SEKISHO_KEYS": f"file:{self.folder / 'keys.json'}",
            "SEKISHO_SIGNING_ALGORITHM": "EdDSA",
        }
        if redis is not None:
            env["SEKISHO_REDIS_URL"] = redis.url
        self.nodes = []
        for number in range(3):
            folder = self.folder / f"node{number}"
            folder.mkdir()
            node = RunningServer(folder, database_url=url, env=env)
            stack.callback(node.close)
            if number == 0:
                node.run("keys", "new")
            self.nodes.append(node)
            node.start()
        self.tokens = anyio.run(self._sessions, url)
        self.credential = self.nodes[0].run("verifiers", "add", "bench").strip()
        self.gate = threading.Event()
        self.gate.set()
        self.services = self._services(cut=cut)

    async def _sessions(self, url: str) -> dict[str, str]:
        database = Database(url)
        users = await add_accounts(
            database, [f"{number}@example.com" for number in range(LOGOUTS + 1)], password_hash="!"
        )
        places = await add_sessions(database, users)
        await database.close()
        key = KeySet.from_json((self.folder / "keys.json").read_bytes()).active("sign")
        now = int(time.time())
        return {
            str(place.session_id): access.issue(
                key,
                issuer=ISSUER,
                audience=ISSUER,
                subject=str(user),
                session_id=str(place.session_id),
                issued_at=now,
                expires_at=now + 3000,
            )
            for user, place in zip(users, places, strict=True)
        }

    def _services(self, *, cut: bool) -> list[Service]:
        listener = self._stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        doors = [f"http://127.0.0.1:{node.port}" for node in self.nodes]
        services: dict[int, Service] = {}
        for kind in KINDS:
            feeds = doors
            if cut and kind == KINDS[0]:
                feeds = [self._stack.enter_context(Proxy(self.nodes[0].port, rule=self._gated)).base_url]
                self._stack.callback(self.gate.set)
            port = free_port()
            process = self._start(kind, port, feeds, listener.getsockname()[1])
            line, _ = listener.accept()
            hello = json.loads(_line_of(line))
            services[hello["pid"]] = service = Service(kind, port, process, line)
            threading.Thread(target=service.hear, args=[line], daemon=True).start()
        for service in services.values():
            self._wait(lambda service=service: service.samples and service.samples[-1][1] == "fresh", service.kind)
        return list(services.values())

    def _gated(self) -> Rule:
        """While the gate is closed the proxy stands still: connections are made, and nothing comes or goes."""
        return Rule(answer=lambda _: self.gate.wait(), request=lambda _: self.gate.wait())

    def _start(self, kind: str, port: int, feeds: Sequence[str], control: int) -> subprocess.Popen[bytes]:
        folder = Path(__file__).parent / "_reach"
        env = {
            "PATH": os.defpath,
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(folder),
            "BENCH_KIND": kind,
            "BENCH_ISSUER": ISSUER,
            "BENCH_JWKS": f"{feeds[0]}/.well-known/jwks.json",
            "BENCH_FEEDS": ",".join(f"{feed}/revocations" for feed in feeds),
            "BENCH_CREDENTIAL": self.credential,
            "BENCH_CONTROL": str(control),
        }
        if kind in {"django", "flask"}:
            options = ["--bind", f"127.0.0.1:{port}", "--workers", "1", "--worker-class", "gthread", "--threads", "4"]
            command = [sys.executable, "-m", "gunicorn", *options, "app:app"]
        else:
            options = ["--port", str(port), "--no-access-log", "--log-level", "warning"]
            command = [sys.executable, "-m", "uvicorn", *options, "app:app"]
        with (self.folder / f"{kind}.log").open("ab") as log:
            process = start_process(command, log=log, env=env, cwd=self.folder)
        self._stack.callback(end_process, process, signal.SIGKILL)
        return process

    def _wait(self, done: Callable[[], object], what: str) -> None:
        give_up_at = time.monotonic() + PATIENCE_S
        while not done():
            if time.monotonic() > give_up_at:
                logs = "\n".join(log.read_text(errors="replace")[-2000:] for log in self.folder.glob("*.log"))
                raise RuntimeError(f"{what}: not in time\n{logs}")
            time.sleep(0.01)

    def run(self, half_way: Callable[[], None] = lambda: None, *, title: str) -> "Result":
        """Logs all out but one, whose token the readers use meanwhile."""
        (_, readers_token), *rest = self.tokens.items()
        acked: dict[str, float] = {}
        jobs: queue.SimpleQueue[tuple[str, str] | None] = queue.SimpleQueue()
        threads = [threading.Thread(target=self._log_out, args=[jobs, acked, number]) for number in range(CLIENTS)]
        with LoadProcess() as load:
            reads = [[request("GET", "/customers", token=readers_token)]] * READERS
            load.start(self.services[1].port, reads, seconds=len(rest) / PER_SECOND, pause_s=READER_PAUSE_S)
            for thread in threads:
                thread.start()
            began = time.monotonic()
            for number, (session_id, token) in enumerate(rest):
                if number == len(rest) // 2:
                    half_way()
                for service in self.services:
                    service.watch({session_id: token})
                time.sleep(max(0.0, began + number / PER_SECOND - time.monotonic()))
                jobs.put((session_id, token))
                progress(f"{title}: {number} of {len(rest)}")
            for _ in threads:
                jobs.put(None)
            for thread in threads:
                thread.join()
            read = load.finish()
        for service in self.services:
            self._wait(lambda service=service: acked.keys() <= service.refused_at.keys(), f"{title}: {service.kind}")
        time.sleep(1.0)  # whatever would be accepted again has this time to show it
        self._over_http(acked)
        if set(read.statuses) != {"200"}:
            raise RuntimeError(f"the readers got {read.statuses}")
        return Result(title, self.services, acked)

    def _log_out(self, jobs: "queue.SimpleQueue[tuple[str, str] | None]", acked: dict[str, float], number: int) -> None:
        """What is not acknowledged, because its node died, is not counted."""
        nodes = itertools.cycle(self.nodes[number % 3 :] + self.nodes[: number % 3])
        while (job := jobs.get()) is not None:
            connection = http.client.HTTPConnection("127.0.0.1", next(nodes).port, timeout=5)
            try:
                connection.request("POST", "/logout", headers={"Authorization": f"Bearer {job[1]}"})
                if connection.getresponse().status == 204:
                    acked[job[0]] = time.monotonic()
            except (OSError, http.client.HTTPException):
                pass
            finally:
                connection.close()

    def _over_http(self, acked: dict[str, float]) -> None:
        """A sample of them, at the route itself."""
        for service in self.services:
            connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=5)
            for session_id in list(acked)[:: max(1, len(acked) // 100)]:
                headers = {"Authorization": f"Bearer {self.tokens[session_id]}"}
                connection.request("GET", "/customers", headers=headers)
                response = connection.getresponse()
                response.read()
                if response.status != 401:
                    service.faults.append(f"answered {response.status} after the logout")
            connection.close()


@dataclass
class Result:
    title: str
    services: list[Service]
    acked: dict[str, float]

    def delays_ms(self, service: Service) -> list[float]:
        return [max(0.0, service.refused_at[session_id] - at) * 1000 for session_id, at in self.acked.items()]

    def falsely_fresh(self, service: Service) -> int:
        """Times at which it said *fresh*, and did not know a logout of more than 3 s ago."""
        late = [
            (at + 3, service.refused_at[name]) for name, at in self.acked.items() if service.refused_at[name] > at + 3
        ]
        return sum(
            state == "fresh" and any(since < at < until for since, until in late) for at, state, _ in service.samples
        )

    def row(self, services: Sequence[Service], name: str) -> list[str]:
        delays = [delay for service in services for delay in self.delays_ms(service)]
        faults = sum(len(service.faults) + self.falsely_fresh(service) for service in services)
        figures = [percentile(delays, 50), percentile(delays, 99), max(delays)]
        return [f"{self.title}: {name}", str(len(delays)), *(f"{figure:.0f}" for figure in figures), str(faults)]

    def met(self, services: Sequence[Service]) -> list[list[str]]:
        delays = [delay for service in services for delay in self.delays_ms(service)]
        measured = {"p50": percentile(delays, 50), "p99": percentile(delays, 99), "max": max(delays)}
        return [
            [
                f"{self.title}, {name}",
                f"{limit} ms",
                f"{measured[name]:.0f} ms",
                "yes" if measured[name] < limit else "NO",
            ]
            for name, limit in WITHIN_MS.items()
        ]


def _line_of(connection: socket.socket) -> bytes:
    """Byte by byte: what comes after belongs to the next reader."""
    line = b""
    while not line.endswith(b"\n"):
        line += connection.recv(1)
    return line


def measured(postgres: PostgresServer, title: str, *, with_redis: bool, fault: str = "") -> Result:
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer()) if with_redis else None
        scene = Scene(stack, postgres, redis=redis, cut=fault == "cut")

        def strike() -> None:
            if fault == "redis" and redis is not None:
                redis.stop(signal.SIGKILL)
            elif fault == "node":
                scene.nodes[0].kill()
            elif fault == "cut":
                scene.gate.clear()
                threading.Timer(CUT_S, scene.gate.set).start()

        return scene.run(strike, title=title)


def main() -> None:
    start(f"From the acknowledged logout to the first refusal, {LOGOUTS} logouts, {PER_SECOND} a second")
    results = []
    with PostgresServer(fsync=True) as postgres:
        for title, with_redis, fault in (
            ("PostgreSQL alone", False, ""),
            ("with Redis", True, ""),
            ("Redis killed half way", True, "redis"),
            ("a node killed half way", False, "node"),
            ("one line cut half way", False, "cut"),
        ):
            results.append(measured(postgres, title, with_redis=with_redis, fault=fault))
    rows, targets = [], []
    for result in results:
        cut = result.services[:1] if result is results[-1] else []
        others = [service for service in result.services if service not in cut]
        if result is results[0]:
            rows += [result.row([service], service.kind) for service in result.services]
        rows.append(result.row(others, "all" if not cut else "the other four"))
        targets += result.met(others)
        if cut:
            rows.append(result.row(cut, f"cut off for {CUT_S:.0f} s"))
    table(["ms from the 204 to the first refusal", "refusals", "p50", "p99", "max", "faults"], rows)
    print("Faults: refused for another reason, accepted again, or called fresh while more than 3 s behind.")
    print(f"States of the service that was cut off: {results[-1].services[0].states()}\n")
    table(["target", "below", "measured", "met"], targets)
    for result in results:
        for service in result.services:
            for fault in sorted(set(service.faults)):
                print(f"{result.title}, {service.kind}: {fault}")


if __name__ == "__main__":
    main()
