"""moto's server: AWS over HTTP on this machine. It checks no signature; what it holds is gone with it."""

import http.client
import os
import signal
import subprocess
import sys
import time
from types import TracebackType
from typing import Self

from .leash import end_process, remove_folder, start_process, temporary_folder
from .ports import free_port

_START_S = 60.0

# What boto3 needs so as not to look anywhere else: at a home folder, or at the machine's metadata service.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_SESSION_TOKEN": "testing",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


class MotoServer:
    """Runs while it is entered."""

    def __init__(self) -> None:
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self._folder = temporary_folder("sekisho-moto-")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        log_path = self._folder / "moto.log"
        with log_path.open("ab") as log:
            self._process = start_process(
                command, log=log, env={"PATH": os.defpath, "HOME": str(self._folder), **CREDENTIALS}, cwd=self._folder
            )
        give_up_at = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                text = log_path.read_text(errors="replace")
                self._end()
                raise RuntimeError(f"moto did not start:\n{text}")
            time.sleep(0.02)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        if self._process is not None:
            end_process(self._process, signal.SIGKILL)
        remove_folder(self._folder)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/moto-api/")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
