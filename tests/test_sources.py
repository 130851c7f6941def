"""Where keys come from: what is refused, that two writers never overwrite each other, that no crash leaves half a file."""

import os
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from sekisho import errors
from sekisho.sources import EnvSource, FileSource, KeySource, local, source_from

CANARY = b'{"keys":[{"k":"canary-canary-canary"}]}'
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def stored(path) -> FileSource:
    source = FileSource(str(path))
    source.store(CANARY, expected=None)
    return source


def refusal(act) -> str:
    with pytest.raises(errors.KeyRefused) as caught:
        act()
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + caught.value.detail
    assert "canary" not in told
    return caught.value.detail


# --- reading a file ------------------------------------------------------------------------------------------------


def test_no_file_yet(path) -> None:
    assert FileSource(str(path)).load() is None
    assert FileSource(str(path / "deeper")).load() is None


def test_what_was_stored_is_loaded(stored) -> None:
    assert stored.load() == CANARY


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o610, 0o700, 0o4600, 0o777])
def test_a_file_that_others_can_use_is_refused_with_the_command(stored, path, mode) -> None:
    path.chmod(mode)
    detail = refusal(stored.load)
    assert f"chmod 600 {path}" in detail
    refusal(lambda: stored.store(b"{}", expected=CANARY))


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_file_that_only_its_owner_can_use_is_fine(stored, path, mode) -> None:
    path.chmod(mode)
    assert stored.load() == CANARY


def test_another_owners_file_is_refused(stored, path, monkeypatch) -> None:
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    detail = refusal(stored.load)
    assert f"chmod 600 {path}" in detail
    assert f"chown {owner + 1} {path}" in detail


@needs_root
def test_not_even_root_reads_another_owners_file(stored, path) -> None:
    os.chown(path, 12345, 12345)
    assert "12345" in refusal(stored.load)


def test_a_folder_is_refused(tmp_path) -> None:
    assert "regular file" in refusal(FileSource(str(tmp_path)).load)


def test_a_named_pipe_is_refused_at_once(path) -> None:
    os.mkfifo(path, 0o600)
    assert "regular file" in refusal(FileSource(str(path)).load)


def test_a_socket_and_a_device_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        refusal(FileSource("s").load)
    refusal(FileSource("/dev/null").load)


def test_a_path_that_is_none_is_refused(tmp_path) -> None:
    refusal(FileSource("nul\0byte").load)
    refusal(lambda: FileSource("nul\0byte").store(CANARY, expected=None))
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    refusal(FileSource(str(loop)).load)
    refusal(lambda: FileSource(str(loop)).store(CANARY, expected=None))


def test_more_than_a_mebibyte_is_refused(path) -> None:
    source = FileSource(str(path))
    source.store(b"x" * local.MAX_BYTES, expected=None)
    assert len(source.load() or b"") == local.MAX_BYTES
    with path.open("ab") as file:
        file.write(b"x")
    assert "1048576" in refusal(source.load)
    refusal(lambda: FileSource(str(path) + "2").store(b"x" * (local.MAX_BYTES + 1), expected=None))


def test_a_link_is_judged_by_its_target_and_stays_a_link(stored, path, tmp_path) -> None:
    link = tmp_path / "elsewhere" / "link"
    link.parent.mkdir()
    link.symlink_to(path)
    source = FileSource(str(link))
    assert source.load() == CANARY
    source.store(b"{}", expected=CANARY)
    assert link.is_symlink()
    assert stored.load() == b"{}"
    path.chmod(0o644)
    refusal(source.load)


@pytest.mark.parametrize("opened_mode", [0o600, 0o644])
def test_what_is_checked_is_what_is_read(stored, path, tmp_path, monkeypatch, opened_mode) -> None:
    """The path is swapped for another file right after it was opened: the opened one counts, for good and ill."""
    path.chmod(opened_mode)
    other = tmp_path / "other"
    other.write_bytes(b"other")
    other.chmod(0o600 if opened_mode == 0o644 else 0o644)
    real = os.open

    def swap(*args: object, **kwargs: object) -> int:
        descriptor = real(*args, **kwargs)
        other.replace(path)
        return descriptor

    monkeypatch.setattr(os, "open", swap)
    if opened_mode == 0o600:
        assert stored.load() == CANARY
    else:
        refusal(stored.load)


# --- writing a file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_the_file_is_0600_whatever_the_umask(path, umask) -> None:
    before = os.umask(umask)
    try:
        FileSource(str(path)).store(CANARY, expected=None)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o7777 == 0o600
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["keys.json", "keys.json.lock"]


def test_store_replaces_only_what_was_expected(stored) -> None:
    stored.store(b"second", expected=CANARY)
    assert "changed meanwhile" in refusal(lambda: stored.store(b"third", expected=CANARY))
    assert "changed meanwhile" in refusal(lambda: stored.store(b"third", expected=None))
    assert stored.load() == b"second"


def test_store_does_not_bring_back_a_file_that_was_removed(stored, path) -> None:
    path.unlink()
    refusal(lambda: stored.store(b"second", expected=CANARY))
    assert not path.exists()


def test_a_new_file_never_overwrites_one_that_came_without_the_lock(path, monkeypatch) -> None:
    fsync = os.fsync

    def an_editor_saves(descriptor: int) -> None:
        path.write_bytes(b"theirs")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", an_editor_saves)
    refusal(lambda: FileSource(str(path)).store(CANARY, expected=None))
    assert path.read_bytes() == b"theirs"


def test_a_missing_or_closed_folder_is_refused(tmp_path) -> None:
    refusal(lambda: FileSource(str(tmp_path / "no" / "keys.json")).store(CANARY, expected=None))


@pytest.mark.parametrize("step", ["fsync", "replace", "link"])
def test_a_failure_leaves_the_old_file_and_nothing_else(path, monkeypatch, step) -> None:
    source = FileSource(str(path))
    before = None
    if step != "link":
        source.store(CANARY, expected=None)
        before = CANARY

    def fails(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fails)
    assert "No space left" in refusal(lambda: source.store(b"second", expected=before))
    assert source.load() == before
    assert not path.with_name("keys.json.new").exists()


def test_document_and_folder_are_on_the_disk_before_store_returns(stored, path, monkeypatch) -> None:
    steps = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: steps.append(Path(f"/proc/self/fd/{fd}").readlink().name) or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda *a, **k: steps.append("rename") or replace(*a, **k))
    stored.store(b"second", expected=CANARY)
    assert steps == ["keys.json.new", "rename", path.parent.name]


def test_what_a_killed_process_left_is_no_obstacle(stored, path) -> None:
    path.with_name("keys.json.new").write_bytes(b"half a d")
    stored.store(b"second", expected=CANARY)
    assert stored.load() == b"second"
    assert not path.with_name("keys.json.new").exists()


KILLED = """
import os, signal, sys
from sekisho.sources import FileSource
step = sys.argv[2]
real = getattr(os, step)
def killed(*args, **kwargs):
    if step == "fsync" and args and not os.readlink(f"/proc/self/fd/{args[0]}").endswith(".new"):
        return real(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, step, killed)
FileSource(sys.argv[1]).store(b"second" * 1000, expected=sys.stdin.buffer.read())
"""


@pytest.mark.parametrize("step", ["fchmod", "fsync", "replace"])
def test_a_kill_in_the_middle_leaves_the_old_file_whole(stored, path, step) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, path, step], input=CANARY, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert stored.load() == CANARY
    stored.store(b"third", expected=CANARY)  # nor does its lock outlive it
    assert stored.load() == b"third"


RACING = """
import sys
from sekisho import errors
from sekisho.sources import FileSource
source = FileSource(sys.argv[1])
before = source.load()
print("ready", flush=True)
sys.stdin.readline()
try:
    source.store(sys.argv[2].encode(), expected=before)
except errors.KeyRefused:
    print("refused")
else:
    print("stored")
"""


@pytest.mark.parametrize("first", [None, CANARY])
def test_of_processes_that_store_at_once_exactly_one_wins(path, first) -> None:
    source = FileSource(str(path))
    if first is not None:
        source.store(first, expected=None)
    for turn in range(3):
        racers = [
            subprocess.Popen(
                [sys.executable, "-c", RACING, path, f"{turn}{number}" * 1000],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(4)
        ]
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        answers = [racer.communicate(timeout=60)[0].strip() for racer in racers]
        assert sorted(answers) == ["refused"] * 3 + ["stored"]
        assert source.load() == f"{turn}{answers.index('stored')}".encode() * 1000


def test_the_second_looks_only_after_the_first_is_done(stored, monkeypatch) -> None:
    """The second process compares while the first is between comparing and renaming: the lock makes it wait."""
    replace = os.replace
    racers = []

    def start_another(*args: object, **kwargs: object) -> None:
        racer = subprocess.Popen(
            [sys.executable, "-c", RACING, stored.path, "other"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        racers.append(racer)
        assert racer.stdout is not None
        assert racer.stdin is not None
        assert racer.stdout.readline() == "ready\n"
        racer.stdin.write("go\n")
        racer.stdin.flush()
        with pytest.raises(subprocess.TimeoutExpired):
            racer.wait(0.3)
        replace(*args, **kwargs)

    monkeypatch.setattr(os, "replace", start_another)
    stored.store(b"first", expected=CANARY)
    assert racers[0].communicate(timeout=60)[0].strip() == "refused"
    assert stored.load() == b"first"


# --- environment ---------------------------------------------------------------------------------------------------


def test_the_environment_is_read_and_never_written(monkeypatch) -> None:
    source = EnvSource("AUTH_KEYS")
    monkeypatch.delenv("AUTH_KEYS", raising=False)
    assert source.load() is None
    monkeypatch.setenv("AUTH_KEYS", "")
    assert source.load() is None
    monkeypatch.setenv("AUTH_KEYS", CANARY.decode())
    assert source.load() == CANARY
    assert not source.writable
    detail = refusal(lambda: source.store(CANARY, expected=CANARY))
    assert "AUTH_KEYS" in detail
    assert "file:PATH" in detail
    assert "canary" not in repr(source) + source.name


def test_the_environment_takes_no_more_than_a_mebibyte(monkeypatch) -> None:
    monkeypatch.setattr(local, "MAX_BYTES", len(CANARY) - 1)
    monkeypatch.setenv("AUTH_KEYS", CANARY.decode())
    assert "AUTH_KEYS" in refusal(EnvSource("AUTH_KEYS").load)


# --- the port ------------------------------------------------------------------------------------------------------


def test_a_spec_names_its_source() -> None:
    specs = ["file:a:b/keys.json", "env:AUTH_KEYS", "aws:auth/keys"]
    sources: list[KeySource] = [source_from(spec) for spec in specs]
    assert sources[:2] == [FileSource("a:b/keys.json"), EnvSource("AUTH_KEYS")]
    assert [source.name for source in sources] == specs
    assert [source.writable for source in sources] == [True, False, True]


@pytest.mark.parametrize("spec", ["", "file:", "env:", "aws:", "file", "AWS:canary", "FILE:x", CANARY.decode(), ":x"])
def test_any_other_spec_is_refused_unseen(spec) -> None:
    assert "file:PATH" in refusal(lambda: source_from(spec))
