"""Processes and temporary folders that do not outlive the test run, however it ends.

A watcher process holds the reading end of a pipe and is told what exists. When this process ends, by a signal that
nothing can catch too, the pipe closes, and the watcher stops and removes what is left. (Linux can tie a child to
its parent by itself, but ties it to the thread that started it, and tests start servers from worker threads.)
"""

import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_PATIENCE_S = 10.0


class _Leash:
    """This process's end of the pipe. The watcher is started at the first use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watcher: subprocess.Popen[str] | None = None

    def tell(self, *words: str | int) -> None:
        with self._lock:
            if self._watcher is None:
                # A session of its own: Ctrl-C in a terminal must not reach it before its work begins.
                self._watcher = subprocess.Popen(
                    [sys.executable, "-I", __file__],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    text=True,
                )
                atexit.register(self._close, os.getpid())
            assert self._watcher.stdin is not None
            self._watcher.stdin.write(json.dumps(words) + "\n")
            self._watcher.stdin.flush()

    def _close(self, owner: int) -> None:
        if self._watcher is not None and self._watcher.stdin is not None and os.getpid() == owner:
            self._watcher.stdin.close()
            self._watcher.wait(_PATIENCE_S)


_leash = _Leash()


def start_process(
    command: Sequence[str | Path],
    *,
    log: IO[bytes],
    env: Mapping[str, str],
    cwd: Path,
    user: str | None = None,
    orphan_signal: signal.Signals = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """Starts a server in a process group of its own. ``orphan_signal`` is what it gets if this process dies."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=dict(env),
        cwd=cwd,
        user=user,
        group=None if user is None else _group_of(user),
        extra_groups=None if user is None else [],
        start_new_session=True,
    )
    _leash.tell("hold", process.pid, int(orphan_signal))
    return process


def end_process(process: subprocess.Popen[bytes], signum: signal.Signals, *, patience_s: float = _PATIENCE_S) -> int:
    """Ends a process and returns its exit status. One that does not go in time is killed, and that is an error."""
    try:
        if process.poll() is None:
            if signum == signal.SIGKILL:
                os.killpg(process.pid, signum)
            else:
                process.send_signal(signum)
        return process.wait(patience_s)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{process.args!r} still ran {patience_s} s after {signum.name}") from None
    finally:
        # Also after an orderly end: workers of a server that went without them.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _leash.tell("forget", process.pid)


def temporary_folder(prefix: str, *, reachable_by_all: bool = False) -> Path:
    """Makes a folder that is gone after the run. ``reachable_by_all``: any user may pass through its parents."""
    parents = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]
    parent = next((p for p in parents if not reachable_by_all or _anyone_may_pass(p)), None)
    if parent is None:
        raise RuntimeError(f"no temporary folder that every user can reach; set TMPDIR to one ({parents[0]} is not)")
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    _leash.tell("hold", str(folder), 0)
    return folder


def remove_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    _leash.tell("forget", str(folder))


def _anyone_may_pass(folder: Path) -> bool:
    resolved = folder.resolve()
    return resolved.is_dir() and all(p.stat().st_mode & 0o001 for p in (resolved, *resolved.parents))


def _group_of(user: str) -> int:
    import pwd  # not on Windows, where nobody is root

    return pwd.getpwnam(user).pw_gid


def _watch() -> None:
    """The watcher: remembers what it is told until the pipe closes, then ends and removes whatever is left."""
    held: dict[str | int, int] = {}
    for line in sys.stdin:
        match json.loads(line):
            case ["hold", pid_or_folder, signum]:
                held[pid_or_folder] = signum
            case ["forget", pid_or_folder]:
                held.pop(pid_or_folder, None)
    pids = {pid: signum for pid, signum in held.items() if isinstance(pid, int)}
    for pid, signum in pids.items():
        _send(pid, signum)
    give_up_at = time.monotonic() + 5
    while time.monotonic() < give_up_at and any(_send(pid, 0) for pid in pids):
        time.sleep(0.05)
    for pid in pids:
        _send(pid, signal.SIGKILL)
    for folder in held:
        if isinstance(folder, str):
            shutil.rmtree(folder, ignore_errors=True)


def _send(pid: int, signum: int) -> bool:
    """Whether there was anyone to receive it."""
    try:
        os.killpg(pid, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    _watch()
