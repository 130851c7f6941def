"""The real ``sekisho serve``, as a process of its own."""

import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from .leash import end_process, start_process
from .ports import free_port

_PROGRAM = Path(sys.executable).with_name("sekisho")
ODD_NODE = (sys.executable, str(Path(__file__).with_name("odd_node.py")))
_START_S = 60.0
_STOP_S = 20.0


class RunningServer:
    """One node: a folder, a port and, between start and stop, a process in a process group of its own."""

    def __init__(
        self,
        folder: Path,
        *,
        database_url: str | None = None,
        env: Mapping[str, str] | None = None,
        args: Sequence[str] = (),
        program: Sequence[str | Path] = (),
        upgrade: bool = True,
    ) -> None:
        """``program``: how its process is started if not as ever; `ODD_NODE` for one whose environment has a fault.

        ``upgrade``: PostgreSQL is given its tables before the first start.
        """
        self.folder = folder
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.env = {"PATH": os.defpath, "HOME": str(folder), "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1", **(env or {})}
        if database_url is not None:
            self.env["SEKISHO_DATABASE_URL"] = database_url
        self._args = list(args)
        self._program = program
        self._to_upgrade = upgrade and self.env.get("SEKISHO_DATABASE_URL", "").startswith("postgresql")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process last started. It may have ended."""
        assert self._process is not None, "never started"
        return self._process

    def start(self) -> None:
        """Starts it, again in the same folder and on the same port; returns when /healthz answers 200."""
        assert self._process is None or self._process.poll() is not None, "runs already"
        if self._to_upgrade:
            self.run("db", "upgrade")
            self._to_upgrade = False
        with self._log.open("ab") as log:
            self._process = start_process(
                [*(self._program or (_PROGRAM,)), "serve", "--port", str(self.port), *self._args],
                log=log,
                env=self.env,
                cwd=self.folder,
            )
        give_up_at = time.monotonic() + _START_S
        while not self._healthy():
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                status = self._process.poll()
                self.kill()
                how = "did not answer /healthz in time" if status is None else f"ended with status {status}"
                raise RuntimeError(f"sekisho serve {how}:\n{self.log_text()}")
            time.sleep(0.02)

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> int:
        """Asks it to stop and returns its exit status. Not going in time is an error."""
        return end_process(self.process, signum, patience_s=_STOP_S)

    def kill(self) -> None:
        """SIGKILL to it and its workers."""
        end_process(self.process, signal.SIGKILL)

    def close(self) -> None:
        """Kills it if it still runs. For the end of a test."""
        if self._process is not None and self._process.returncode is None:
            self.kill()

    def run(self, *args: str) -> str:
        """Runs another ``sekisho`` command in the same folder and environment, and returns what it prints."""
        done = subprocess.run(
            [_PROGRAM, *args],
            env=self.env,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"sekisho {' '.join(args)}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def log_text(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def _log(self) -> Path:
        return self.folder / "server.log"

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
