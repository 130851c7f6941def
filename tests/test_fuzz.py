"""The fuzzer finds nothing. FUZZ_SECONDS sets how long it looks: 600 unless told.

How much it looked at is in build/fuzz.txt afterwards. To look at what it found, see fuzz/fuzz_token.py.
"""

import base64
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from servers.leash import end_process, start_process

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="atheris is there for Linux"),
]

ROOT = Path(__file__).parents[1]
SECONDS = int(os.environ.get("FUZZ_SECONDS", "600"))
GRACE_S = 120


def test_the_fuzzer_finds_nothing(tmp_path):
    command = [sys.executable, ROOT / "tests/fuzz/fuzz_token.py", f"-max_total_time={SECONDS}", "-print_final_stats=1"]
    with (tmp_path / "log").open("wb") as log:
        process = start_process(command, log=log, env=os.environ | {"TMPDIR": str(tmp_path)}, cwd=tmp_path)
        try:
            status = process.wait(SECONDS + GRACE_S)
        finally:
            end_process(process, signal.SIGKILL)
    told = (tmp_path / "log").read_text("utf-8", "replace")
    (work,) = tmp_path.glob("sekisho-fuzz-*")
    found = [path for kind in ("crash", "timeout", "oom", "leak") for path in work.glob(f"{kind}-*")]
    inputs = [f"{path.name}: {path.read_bytes()!r} = {base64.b64encode(path.read_bytes()).decode()}" for path in found]
    assert status == 0, "\n".join([told[-6000:], *inputs])
    # A target in which every input is refused early would find nothing either.
    answers = json.loads((work / "answers.json").read_text("ascii"))
    one_sided = [kind for kind in answers if other_answer(kind) not in answers]
    assert len(answers) > 20, answers
    assert not one_sided, one_sided
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build/fuzz.txt").write_text(told[-1500:] + json.dumps(answers, indent=2) + "\n", "utf-8")


def other_answer(kind: str) -> str:
    what, _, answer = kind.rpartition(": ")
    return f"{what}: {'refused' if answer == 'accepted' else 'accepted'}"
