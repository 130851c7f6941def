"""Servers of one guarded route, each a process on a core of its own as far as there are any."""

import http.client
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from servers.leash import end_process, start_process
from servers.ports import free_port

PATH = "/customers"
NOBODY = "00000000-0000-4000-8000-000000000000"
"""Whom the bare routes greet: as long as a user's id."""

_HERE = Path(__file__).parent
_START_S = 60.0


class Cores:
    """Which core does what. Where the system cannot be told, or has but one, nothing is pinned."""

    def __init__(self) -> None:
        free = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []
        self.pinned = len(free) > 1
        self._free = free
        self.server, self.load, self.redis = (free[0], free[1], free[-1]) if self.pinned else (0, 0, 0)

    @contextmanager
    def on(self, core: int) -> Iterator[None]:
        """Processes that are started here stay on this core."""
        if self.pinned:
            os.sched_setaffinity(0, {core})
        try:
            yield
        finally:
            if self.pinned:
                os.sched_setaffinity(0, self._free)

    def text(self) -> str:
        if not self.pinned:
            return "Nothing is pinned to a core."
        return f"Pinned: the servers to core {self.server}, the clients to {self.load}, Redis to {self.redis}."


@dataclass(frozen=True)
class Checks:
    """What every server is asked before it is measured. ``bad`` are credentials that it must refuse.

    A credential is the header that carries it.
    """

    good: Mapping[str, str]
    user: str
    bad: Sequence[Mapping[str, str]]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def cookie(name: str, value: str) -> dict[str, str]:
    return {"Cookie": f"{name}={value}"}


def forged(token: str) -> str:
    """The same JWT with a signature that does not hold."""
    message, _, signature = token.rpartition(".")
    return f"{message}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"


class Server:
    """uvicorn for a factory of an ASGI application, gunicorn for one of WSGI's (``module:factory(...)``)."""

    def __init__(
        self, app: str, *, folder: Path, given: Path, env: Mapping[str, str] | None = None, frozen: bool = True
    ) -> None:
        """``frozen`` False: uvicorn's application does without gc.freeze()."""
        self._app = app
        self._more_env = env or {}
        self._frozen = frozen
        self._folder = folder
        self._log = folder / f"{''.join(filter(str.isalnum, app))}.log"
        self._given = given
        self.port = free_port()

    def __enter__(self) -> Self:
        if self._app.endswith(")"):
            options = ["--config", str(_HERE / "gunicorn_conf.py"), "--bind", f"127.0.0.1:{self.port}", self._app]
            command = ["-m", "gunicorn", *options]
        else:
            collector = "frozen" if self._frozen else "unfrozen"
            command = [str(_HERE / "serve_asgi.py"), self._app, str(self.port), collector]
        env = {
            "PATH": os.defpath,
            "HOME": str(self._folder),
            "LANG": "C.UTF-8",
            # What this process was given counts for the servers too: PYTHONPATH=COPY measures a copy of src.
            "PYTHONPATH": os.pathsep.join(filter(None, [str(_HERE), os.environ.get("PYTHONPATH")])),
            "BENCH_GIVEN": str(self._given),
            **self._more_env,
        }
        with self._log.open("ab") as log:
            self._process = start_process([sys.executable, *command], log=log, env=env, cwd=self._folder)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        end_process(self._process, signal.SIGKILL)

    def wait(self) -> None:
        give_up_at = time.monotonic() + _START_S
        while self._process.poll() is None and time.monotonic() < give_up_at:
            try:
                self._status_and_user(None)
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise RuntimeError(f"{self._app} did not start:\n{self._text()}")

    def check(self, checks: Checks, *, guarded: bool) -> None:
        """It greets whom it should, and a guarded one nobody else. RuntimeError otherwise."""
        found = {"good": self._status_and_user(checks.good), "none": self._status_and_user(None)}
        expected = {"good": (200, checks.user), "none": (401, None)}
        if not guarded:
            expected = dict.fromkeys(expected, (200, NOBODY))
        if found != expected:
            raise RuntimeError(f"{self._app}: {found}, not {expected}\n{self._text()}")
        for number, credential in enumerate(checks.bad if guarded else ()):
            status, _ = self._status_and_user(credential)
            if status not in {401, 422}:  # Flask-JWT-Extended answers 422 to a signature that does not hold
                raise RuntimeError(f"{self._app} answers {status} to bad credential number {number}")

    def cpu_s(self) -> float:
        """CPU time of all its processes."""
        server = psutil.Process(self._process.pid)
        times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
        return sum(time.user + time.system for time in times)

    def _status_and_user(self, credential: Mapping[str, str] | None) -> tuple[int, str | None]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", PATH, headers=dict(credential or {}))
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        return answer.status, json.loads(body)["user"] if answer.status == 200 else None

    def _text(self) -> str:
        return self._log.read_text(errors="replace")
