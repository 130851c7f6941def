"""What does a storm of logins cost: itself, and everyone who does not log in?

(a) Logins a second of 8 clients beside the limit: bare argon2id checks a second by as many threads as Sekisho's pool
has, at the same priority, in the same run. (b) The time of a GET that only verifies an access token, idle and while
the 8 clients log in. Sekisho is mounted in a small FastAPI application, the clients are processes of their own.
"""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil

from _load import LoadProcess, Outcome, request
from _report import cores, median, percentile, progress, start, table
from _rows import add_accounts
from sekisho.passwords import OWASP, PasswordHasher
from sekisho.storage.engine import Database

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from servers.leash import remove_folder, temporary_folder
from servers.ports import free_port

CLIENTS = 8
ACCOUNTS = CLIENTS * 64  # each client has its own; so many that none gathers as many sessions as the limit is
READERS = 4
READER_PAUSE_S = 0.01  # so that they wait for answers and not for one another: some 350 requests a second
ROUNDS = 10
PASSWORD = "a gate on the old road"
START_S = 60

APP = """
import os
import sys
import threading
from typing import Annotated

from fastapi import Depends, FastAPI

from sekisho import AccessClaims
from sekisho.web import Sekisho, Settings
from sekisho.web.standalone import configure_logging

threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()  # the benchmark has gone
configure_logging()
auth = Sekisho(Settings())
app = FastAPI()
app.include_router(auth.router, prefix="/auth")


@app.get("/customers")
async def customers(user: Annotated[AccessClaims, Depends(auth.current_user)]) -> dict[str, str]:
    return {"user": user.sub}
"""


@dataclass
class Figures:
    """Round by round."""

    bare_rates: list[float] = field(default_factory=list)
    login_rates: list[float] = field(default_factory=list)
    login_p99s_ms: list[float] = field(default_factory=list)
    rates_beside_reads: list[float] = field(default_factory=list)
    idle_ms: list[list[float]] = field(default_factory=list)
    storm_ms: list[list[float]] = field(default_factory=list)
    hash_cpu_ms: list[float] = field(default_factory=list)
    login_hash_cpu_ms: list[float] = field(default_factory=list)
    login_other_cpu_ms: list[float] = field(default_factory=list)
    read_shares: list[float] = field(default_factory=list)


@contextmanager
def application() -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A running application with its accounts. Gives the port."""
    folder = temporary_folder("sekisho-bench-")
    url = f"sqlite:///{folder / 'sekisho.db'}"
    (folder / "app.py").write_text(APP)
    port = free_port()
    env = {"PATH": os.defpath, "HOME": str(folder), "LANG": "C.UTF-8", "SEKISHO_DATABASE_URL": url}
    options = [
        "--port",
        str(port),
        "--loop",
        "uvloop",
        "--http",
        "httptools",
        "--no-access-log",
        "--log-level",
        "error",
    ]
    log = folder / "server.log"
    with log.open("wb") as stream:
        # In this session: Linux weighs sessions against each other first (autogroups), and against clients in another
        # one the low priority of the hashing threads would count for nothing.
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "app:app", *options],
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=folder,
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/auth/healthz", process, log)
        asyncio.run(_add_accounts(url))
        yield port, process
    finally:
        process.kill()
        process.wait()
        remove_folder(folder)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up_at = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < give_up_at:
        try:
            if httpx2.get(url, trust_env=False).status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.05)
    raise RuntimeError(f"the application did not start:\n{log.read_text()}")


async def _add_accounts(url: str) -> None:
    database = Database(url)
    try:
        password_hash = PasswordHasher(OWASP).hash(PASSWORD)
        await add_accounts(database, [_email(number) for number in range(ACCOUNTS)], password_hash=password_hash)
    finally:
        await database.close()


def _email(number: int) -> str:
    return f"user{number}@example.com"


def _login(number: int) -> str:
    return request("POST", "/auth/login", body={"email": _email(number), "password": PASSWORD})


def bare_hashes(seconds: float) -> tuple[float, float]:
    """Checks per second, and the CPU time of one in milliseconds."""
    hasher = PasswordHasher(OWASP)
    stored = hasher.hash(PASSWORD)
    counts: list[int] = []
    began, cpu_began = time.perf_counter(), time.process_time()

    def check() -> None:
        if sys.platform == "linux":  # as in services/hashing.py: on a busy machine the priority counts
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        count = 0
        while time.perf_counter() - began < seconds:
            hasher.verify(PASSWORD, stored)
            count += 1
        counts.append(count)

    threads = [threading.Thread(target=check) for _ in range(cores())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed_s = time.perf_counter() - began
    return sum(counts) / elapsed_s, (time.process_time() - cpu_began) / sum(counts) * 1000


def measure() -> Figures:
    figures = Figures()
    with ExitStack() as running:
        progress("starting the application")
        port, server = running.enter_context(application())
        storm, readers = running.enter_context(LoadProcess()), running.enter_context(LoadProcess())
        answer = httpx2.post(
            f"http://127.0.0.1:{port}/auth/login", json={"email": _email(0), "password": PASSWORD}, trust_env=False
        )
        read = request("GET", "/customers", token=answer.raise_for_status().json()["access_token"])
        logins = [[_login(number) for number in range(client, ACCOUNTS, CLIENTS)] for client in range(CLIENTS)]
        next_account = 0

        def start_storm(seconds: float) -> None:
            nonlocal next_account
            turned = [texts[next_account:] + texts[:next_account] for texts in logins]
            next_account = (next_account + 17) % (ACCOUNTS // CLIENTS)
            storm.start(port, turned, seconds=seconds)

        def reads(seconds: float) -> Outcome:
            outcome = readers.run(port, [[read]] * READERS, seconds=seconds, pause_s=READER_PAUSE_S).expect(200)
            figures.read_shares.append(outcome.cpu_share)
            return outcome

        start_storm(1)  # warms up
        storm.finish().expect(200)
        for number in range(ROUNDS):
            tell(number, "argon2id alone")
            rate, cpu_ms = bare_hashes(1)
            figures.bare_rates.append(rate)
            figures.hash_cpu_ms.append(cpu_ms)
            tell(number, "logins alone")
            before = cpu_ms_by_priority(server)
            start_storm(1.5)
            outcome = storm.finish().expect(200)
            hashing, other = (after - at for after, at in zip(cpu_ms_by_priority(server), before, strict=True))
            figures.login_hash_cpu_ms.append(hashing / len(outcome.latencies_ms))
            figures.login_other_cpu_ms.append(other / len(outcome.latencies_ms))
            figures.login_rates.append(outcome.per_second)
            figures.login_p99s_ms.append(percentile(outcome.latencies_ms, 99))
            tell(number, "GETs alone")
            figures.idle_ms.append(reads(2).latencies_ms)
            tell(number, "GETs and logins")
            start_storm(2.5)
            time.sleep(0.3)  # the queue fills
            figures.storm_ms.append(reads(2).latencies_ms)
            figures.rates_beside_reads.append(storm.finish().expect(200).per_second)
    return figures


def tell(number: int, what: str) -> None:
    progress(f"round {number + 1} of {ROUNDS}: {what}")


def cpu_ms_by_priority(server: subprocess.Popen[bytes]) -> tuple[float, float]:
    """CPU time of the hashing threads, which have the lowest priority, and of all others. Elsewhere than on Linux 0."""
    hashing = other = 0.0
    for thread in psutil.Process(server.pid).threads() if sys.platform == "linux" else ():
        cpu_ms = (thread.user_time + thread.system_time) * 1000
        if os.getpriority(os.PRIO_PROCESS, thread.id) == 19:
            hashing += cpu_ms
        else:
            other += cpu_ms
    return hashing, other


def show(figures: Figures) -> None:
    shares = [mine / bare for mine, bare in zip(figures.login_rates, figures.bare_rates, strict=True)]
    beside = [mine / bare for mine, bare in zip(figures.rates_beside_reads, figures.bare_rates, strict=True)]
    login_cpu_ms = median(figures.login_hash_cpu_ms), median(figures.login_other_cpu_ms)
    rows = [
        [
            "argon2id alone",
            "100%",
            "100%",
            f"{median(figures.bare_rates):.1f}",
            f"{median(figures.hash_cpu_ms):.1f}",
            "",
            "",
        ],
        [
            f"{CLIENTS} clients log in",
            f"{median(shares):.0%}",
            f"{login_cpu_ms[0] / (sum(login_cpu_ms) or 1):.0%}",
            f"{median(figures.login_rates):.1f}",
            *(f"{cpu_ms:.1f}" for cpu_ms in login_cpu_ms),
            f"{median(figures.login_p99s_ms):.0f}",
        ],
        ["the same, beside GETs", f"{median(beside):.0%}", "", f"{median(figures.rates_beside_reads):.1f}", "", "", ""],
    ]
    table(["Logins", "share of limit", "by CPU", "per second", "hashing CPU ms", "other CPU ms", "p99 ms"], rows)

    rows = []
    idle_p50, idle_p99 = (_round_median(figures.idle_ms, percent) for percent in (50, 99))
    for name, rounds in (("idle", figures.idle_ms), ("in a login storm", figures.storm_ms)):
        p50, p99 = _round_median(rounds, 50), _round_median(rounds, 99)
        ratios = [f"{p50 / idle_p50:.1f} ×", f"{p99 / idle_p99:.1f} ×"]
        rows.append([name, *ratios, f"{p50:.2f}", f"{p99:.2f}", f"{sum(map(len, rounds))}"])
    table(["Guarded GET", "p50, × idle", "p99, × idle", "p50 ms", "p99 ms", "requests"], rows)
    print(f"Targets: logins ≥ 90 % of the limit; p99 in a storm ≤ 2 × idle. The GETs took {_share(figures)} of a core")
    print("in their own process. By CPU: the hashing threads' part of the server's CPU time, which is what the share")
    print("comes to on two full cores, whatever else the machine does. Above 100 %: it did something else meanwhile.")


def _round_median(rounds: list[list[float]], percent: float) -> float:
    return median([percentile(latencies_ms, percent) for latencies_ms in rounds])


def _share(figures: Figures) -> str:
    return f"{median(figures.read_shares):.0%}"


def main() -> None:
    start(f"Logins in a storm, {CLIENTS} clients, argon2id {OWASP.memory_kib} KiB t={OWASP.iterations}")
    show(measure())


if __name__ == "__main__":
    main()
