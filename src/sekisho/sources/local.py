"""The key set in a file, or in an environment variable, of this machine."""

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sekisho import errors

MAX_BYTES: Final = 1024 * 1024
_MODE: Final = 0o600


@dataclass(frozen=True)
class FileSource:
    """A file that its owner, the user Sekisho runs as, alone can read. ``PATH.lock`` beside it serves ``store``."""

    path: str

    @property
    def name(self) -> str:
        """``file:PATH``."""
        return f"file:{self.path}"

    @property
    def writable(self) -> bool:
        """True; whether the folder lets us is seen when storing."""
        return True

    def load(self) -> bytes | None:
        """The file's content; None if there is no file.

        Raises ``KeyRefused`` for what others could have read or written: wider than 0600, or another owner's. Also for
        what is no regular file, or larger than 1 MiB.
        """
        try:
            # Without O_NONBLOCK, opening a named pipe would wait for its writer for ever.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise self._refused(error) from None
        try:
            self._check(os.fstat(descriptor))  # what is checked is what is read, whatever the path leads to by then
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                document = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise self._refused(error) from None
        finally:
            os.close(descriptor)
        self._check_size(len(document))
        return document

    def store(self, document: bytes, *, expected: bytes | None) -> None:
        """Writes the file anew, mode 0600; a reader or a crash at any moment finds the old one or the new one, whole.

        Raises ``KeyRefused`` if the file is not ``expected`` (None: absent) any more, or cannot be written.
        """
        self._check_size(len(document))
        try:
            target = Path(self.path).resolve()  # of a symbolic link, the target is replaced and the link stays
            with _locked(target.with_name(target.name + ".lock")):
                if self.load() != expected:
                    raise errors.KeyRefused(f"{self.path} has changed meanwhile: read it again and repeat")
                _write(target, document, new=expected is None)
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: symbolic links in a circle
            raise self._refused(error) from None

    def _check(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise errors.KeyRefused(f"{self.path} is not a regular file")
        if status.st_uid != os.geteuid():
            raise errors.KeyRefused(
                f"{self.path} belongs to user {status.st_uid}, Sekisho runs as {os.geteuid()}: "
                f"chown {os.geteuid()} {self.path} && chmod 600 {self.path}"
            )
        if stat.S_IMODE(status.st_mode) & ~_MODE:
            raise errors.KeyRefused(
                f"{self.path} has mode {stat.S_IMODE(status.st_mode):04o}, others could use the keys in it: "
                f"chmod 600 {self.path}"
            )

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > MAX_BYTES:
            raise errors.KeyRefused(f"{self.path}: a key set of more than {MAX_BYTES} bytes is none")

    def _refused(self, error: Exception) -> errors.KeyRefused:
        reason = error.strerror if isinstance(error, OSError) else None
        return errors.KeyRefused(f"{self.path}: {reason or type(error).__name__}")


@dataclass(frozen=True)
class EnvSource:
    """An environment variable, set by whatever starts Sekisho (its own name is none of Sekisho's settings)."""

    variable: str

    @property
    def name(self) -> str:
        """``env:NAME``."""
        return f"env:{self.variable}"

    @property
    def writable(self) -> bool:
        """False: a process cannot change the environment that the next one starts with."""
        return False

    def load(self) -> bytes | None:
        """The variable's text as bytes; None if it is not set, or empty. Raises ``KeyRefused`` beyond 1 MiB."""
        document = os.environ.get(self.variable, "").encode("utf-8", "surrogateescape")
        if len(document) > MAX_BYTES:
            raise errors.KeyRefused(f"{self.name}: a key set of more than {MAX_BYTES} bytes is none")
        return document or None

    def store(self, document: bytes, *, expected: bytes | None) -> None:  # noqa: ARG002  the protocol's
        """Raises ``KeyRefused``, always."""
        raise errors.KeyRefused(
            f"{self.name} cannot be written: keep the keys in a file (SEKISHO_KEYS=file:PATH), "
            f"or change {self.variable} where it is set"
        )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time, between processes too. The lock ends with the process; the file stays.

    Were it removed, one process could hold the removed file's lock and another the new file's.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(target: Path, document: bytes, *, new: bool) -> None:
    draft = target.with_name(target.name + ".new")  # in the same folder, so that it can be renamed
    draft.unlink(missing_ok=True)  # of a process that was killed; under the lock it is nobody's
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, _MODE)  # whatever the umask took away
            file.write(document)
            file.flush()
            os.fsync(descriptor)
        if new:
            os.link(draft, target)  # unlike a rename it never overwrites what an editor or a deployment has put there
        else:
            draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)  # until then a power cut can bring the old name back, and new tokens would have no key
    finally:
        os.close(folder)
