"""simplejwt beside us: rotation with its blacklist, on Django and Django REST framework, served by gunicorn.

One worker process, as a node of ours is one, and on the same PostgreSQL. The worker has threads: the one that gunicorn
takes by default closes the connection after each answer, and does nothing while the database works.
"""

import http.client
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Self

from _load import request
from servers.leash import end_process, remove_folder, start_process, temporary_folder
from servers.ports import free_port
from servers.postgres import Postgres

THREADS = 4
"""Of 1, 2, 4 and 8 the fastest with 8 clients."""

_PROJECT = Path(__file__).parent
_PATH = "/api/token/refresh/"
_APPLICATION = "django.core.wsgi:get_wsgi_application()"
_START_S = 60.0


class SimpleJwt:
    """The running server, and refresh tokens that each serve for one refresh."""

    def __init__(self, postgres: Postgres, *, threads: int, tokens: int) -> None:
        self._folder = temporary_folder("sekisho-bench-")
        self._postgres = postgres
        self._database = postgres.create_database().rpartition("/")[2]
        self._threads = threads
        self._used = 0
        self.port = free_port()
        self._env = {
            "PATH": os.defpath,
            "HOME": str(self._folder),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(_PROJECT),
            "DJANGO_SETTINGS_MODULE": "settings",
            "BENCH_SECRET": secrets.token_urlsafe(48),
            "BENCH_PORT": str(postgres.port),
            "BENCH_DATABASE": self._database,
        }
        self._tokens = self._made(tokens)

    @property
    def pid(self) -> int:
        return self._process.pid

    def take(self, count: int) -> list[str]:
        """So many requests. Tokens that have been used are never sent again."""
        tokens = self._tokens[self._used : self._used + count]
        self._used += len(tokens)
        return [request("POST", _PATH, body={"refresh": token}) for token in tokens]

    def check(self) -> None:
        """Each token sent is blacklisted, and for each there is a new one."""
        counts = "(SELECT count(*) FROM token_blacklist_blacklistedtoken), "
        counts += "(SELECT count(*) FROM token_blacklist_outstandingtoken)"
        found = self._postgres.execute(f"SELECT {counts}", database=self._database)
        if found != f"{self._used}|{len(self._tokens) + self._used}":
            raise RuntimeError(f"simplejwt: {self._used} refreshes, but blacklisted|outstanding is {found}")

    def __enter__(self) -> Self:
        bind = ["--bind", f"127.0.0.1:{self.port}"]
        workers = ["--workers", "1", "--worker-class", "gthread", "--threads", str(self._threads)]
        with self._log.open("ab") as log:
            self._process = start_process(
                [sys.executable, "-m", "gunicorn", *bind, *workers, _APPLICATION],
                log=log,
                env=self._env,
                cwd=self._folder,
            )
        give_up_at = time.monotonic() + _START_S
        while not self._answers_with_a_new_token():
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                raise RuntimeError(f"gunicorn did not start:\n{self._log.read_text(errors='replace')}")
            time.sleep(0.05)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        end_process(self._process, signal.SIGKILL)
        remove_folder(self._folder)

    @property
    def _log(self) -> Path:
        return self._folder / "server.log"

    def _made(self, count: int) -> Sequence[str]:
        command = [sys.executable, _PROJECT / "prepare.py", str(count)]
        done = subprocess.run(command, env=self._env, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"simplejwt's tables and tokens:\n{done.stderr}")
        return json.loads(done.stdout)

    def _answers_with_a_new_token(self) -> bool:
        token = self._tokens[self._used]
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("POST", _PATH, json.dumps({"refresh": token}), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            body = answer.read()
        except OSError:
            return False
        finally:
            connection.close()
        if answer.status != 200 or json.loads(body)["refresh"] == token:
            raise RuntimeError(f"simplejwt answered {answer.status} {body!r}\n{self._log.read_text(errors='replace')}")
        self._used += 1
        return True


def versions() -> str:
    names = ("djangorestframework-simplejwt", "Django", "djangorestframework", "psycopg", "gunicorn")
    return ", ".join(f"{name} {version(name)}" for name in names)
