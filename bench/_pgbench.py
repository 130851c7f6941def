"""The physical limit on PostgreSQL: pgbench, which runs the bare UPDATE … RETURNING and nothing else.

pgbench is PostgreSQL's own and written in C. It has the statement prepared, knows row and generation as the holder of a
token does, and throws the answer away. What it reaches is what the database can do on this machine: a service that
settles each refresh with such a statement, and makes it durable before it answers, has all its own work on top. One
indexed row, the service's whole condition, all columns that it needs back; each statement is a transaction, committed
with fsync and synchronous_commit on.
"""

import os
import re
import resource
import signal
import time
from pathlib import Path

from sekisho.storage.rotate import POSTGRESQL_ORDER, POSTGRESQL_TEXT
from sekisho.storage.schema import sessions
from servers.leash import end_process, start_process
from servers.postgres import Postgres

THREADS = 1
"""``-j``: pgbench drives all its connections from so many threads, and takes at most so many cores."""

_SECONDS = 2
_ROWS_OF_A_CLIENT = 250
_COLUMNS = [column.name for column in sessions.c]

GIVEN = {
    "presented_branch": 0,
    "window_us": -1_000_000,  # negative, so that the same rows rotate again and again
    "idle_us": 7 * 86_400 * 1_000_000,
    "address": "127.0.0.1",
    "user_agent": "bench",
}
"""What the service's own statement is told each time, beside the row, its generation and the time."""

# pgbench's variables are numbers, so the id is made of the row's number: less than 1 % of what the statement costs.
# Each client goes round its own rows, which all begin at generation 0.
_SCRIPT = """
\\set n :n + 1
\\set number (:n % :rows) * :clients + :client_id
\\set generation :n / :rows
"""


def _in_pgbenchs_words() -> str:
    """The service's statement with its $1, $2, … as variables of pgbench."""
    words = {"session_id": "md5(:number::text)::uuid", "presented_generation": ":generation"}
    return re.sub(
        r"\$(\d+)",
        lambda place: words.get(name := POSTGRESQL_ORDER[int(place[1]) - 1], f":{name}"),
        POSTGRESQL_TEXT,
    )


class PgBench:
    """pgbench and the rows that it works on, in a database that has sessions already."""

    def __init__(self, postgres: Postgres, url: str, folder: Path, *, clients: int) -> None:
        self._postgres = postgres
        self._url = url
        self._folder = folder
        self._clients = clients
        rows = clients * _ROWS_OF_A_CLIENT
        self._mine = f"id IN (SELECT md5(n::text)::uuid FROM generate_series(0, {rows - 1}) AS n)"
        others = ", ".join(name for name in _COLUMNS if name != "id")
        self._sql(
            f"INSERT INTO sessions (id, {others}) "
            f"SELECT md5((row_number() OVER () - 1)::text)::uuid, {others} FROM sessions LIMIT {rows}"
        )
        (folder / "bare.sql").write_text(_SCRIPT + _in_pgbenchs_words())

    def run(self) -> tuple[float, float]:
        """Statements a second, and how much of a core pgbench took."""
        self._sql(f"UPDATE sessions SET generation = 0 WHERE {self._mine}")
        self._sql("VACUUM sessions")
        given = {**GIVEN, "n": -1, "rows": _ROWS_OF_A_CLIENT, "clients": self._clients}
        variables = [word for name, value in given.items() for word in ("--define", f"{name}={value}")]
        sizes = [f"--client={self._clients}", f"--jobs={THREADS}", f"--time={_SECONDS}"]
        script = f"--file={self._folder / 'bare.sql'}"
        began, cpu_began = time.perf_counter(), _cpu_s()
        printed = self._printed("--no-vacuum", "--protocol=prepared", *sizes, *variables, script)
        share = (_cpu_s() - cpu_began) / (time.perf_counter() - began)
        self._check(int(_number("transactions actually processed: ", printed)))
        return _number("tps = ", printed), share

    def _check(self, transactions: int) -> None:
        """One that finds no row is no error to pgbench."""
        rotated = int(self._sql(f"SELECT sum(generation) FROM sessions WHERE {self._mine}"))
        if rotated != transactions:
            raise RuntimeError(f"pgbench: {transactions} transactions rotated {rotated} times")

    def _printed(self, *options: str) -> str:
        path = self._folder / "pgbench.log"
        command = [self._postgres.programs.bin / "pgbench", *options, self._url]
        with path.open("wb") as log:
            process = start_process(command, log=log, env={"LC_ALL": "C", "PATH": os.defpath}, cwd=self._folder)
        try:
            status = process.wait(_SECONDS + 30)
        finally:
            end_process(process, signal.SIGKILL)
        printed = path.read_text(errors="replace")
        if status != 0:
            raise RuntimeError(f"pgbench failed:\n{printed}")
        return printed

    def _sql(self, sql: str) -> str:
        return self._postgres.execute(sql, database=self._url.rpartition("/")[2])


def _number(after: str, printed: str) -> float:
    found = re.search(re.escape(after) + r"([\d.]+)", printed)
    if found is None:
        raise RuntimeError(f"pgbench did not say {after!r}:\n{printed}")
    return float(found[1])


def _cpu_s() -> float:
    """Of the processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
