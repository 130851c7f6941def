"""The tests are tested: of the mistakes that a program can put into the tokens' code, they find nine in ten.

The survivors are listed in build/surviving-mutants.txt and build/surviving-constants.txt, each with its change.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import pytest

from servers.leash import end_process, start_process

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform == "win32", reason="mutmut forks"),
]

ROOT = Path(__file__).parents[1]
WORKERS = 2
FLOOR = 0.9
MUTMUT_S = 3000
PYTEST_S = 120


def copy_of_the_tree(folder: Path) -> Path:
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def environment(tree: Path, *sources: Path) -> dict[str, str]:
    path = os.pathsep.join(map(str, [tree / "tests/mutation", *sources]))
    return os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(tree)}


def report(name: str, killed: int, total: int, survivors: list[str]) -> None:
    """Fails below the floor; writes down in any case what survived."""
    told = f"{killed} of {total} mutants killed ({killed / total:.1%}); the survivors:\n\n" + "\n".join(survivors)
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / name).write_text(told + "\n", "utf-8")
    assert killed >= FLOOR * total, told


# --- what mutmut makes ---------------------------------------------------------------------------------------------


def mutmut(tree: Path, *words: str, timeout_s: int = 60) -> str:
    with (tree / "log").open("wb") as log:
        command = [sys.executable, "-m", "mutmut", *words]
        process = start_process(command, log=log, env=environment(tree), cwd=tree)
        try:
            status = process.wait(timeout_s)
        finally:
            end_process(process, signal.SIGKILL)
    told = (tree / "log").read_text("utf-8", "replace")
    assert status == 0, told[-4000:]
    return told


def test_mutated_functions_are_noticed(tmp_path):
    tree = copy_of_the_tree(tmp_path)
    mutmut(tree, "run", "--max-children", str(WORKERS), timeout_s=MUTMUT_S)
    mutmut(tree, "export-cicd-stats")
    stats = json.loads((tree / "mutants/mutmut-cicd-stats.json").read_text("utf-8"))
    # A mutant that made an endless loop was noticed too; one that no test reaches was not.
    killed = stats["killed"] + stats["timeout"]
    left = re.findall(r"(\S+): (\w[\w ]*)", mutmut(tree, "results"))
    survivors = []
    for name, verdict in left:
        changes = re.findall(r"^[-+] .*$", mutmut(tree, "show", name), re.MULTILINE)
        survivors.append("\n".join([f"{verdict}: {name}", *changes]))
    report("surviving-mutants.txt", killed, stats["total"], survivors)


# --- what it leaves out --------------------------------------------------------------------------------------------


def settings() -> dict[str, list[str]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["mutmut"]


def mutated_files() -> list[Path]:
    found = {path.relative_to(ROOT) for pattern in settings()["only_mutate"] for path in ROOT.glob(pattern)}
    return sorted(path for path in found if path.name != "__init__.py")


def survives(tree: Path, file: Path, source: str) -> bool:
    original = (tree / file).read_text("utf-8")
    (tree / file).write_text(source, "utf-8")
    given = settings()
    tests = [*given["pytest_add_cli_args"], *given["pytest_add_cli_args_test_selection"]]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:xdist", *tests]
    with (tree / "log").open("wb") as log:
        process = start_process(command, log=log, env=environment(tree, tree / "src"), cwd=tree)
        try:
            return process.wait(PYTEST_S) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            end_process(process, signal.SIGKILL)
            (tree / file).write_text(original, "utf-8")


@pytest.fixture
def trees(tmp_path) -> Iterator[SimpleQueue[Path]]:
    idle = SimpleQueue()
    for number in range(WORKERS):
        idle.put(copy_of_the_tree(tmp_path / str(number)))
    return idle


def test_mutated_constants_are_noticed(trees, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests/mutation"))
    from left_out import mutants

    made = [(file, mutant) for file in mutated_files() for mutant in mutants((ROOT / file).read_text("utf-8"))]

    def tried(file: Path, source: str) -> bool:
        tree = trees.get()
        try:
            return survives(tree, file, source)
        finally:
            trees.put(tree)

    with ThreadPoolExecutor(WORKERS) as pool:
        assert pool.submit(tried, *unchanged()).result(), "the tests fail without any mutant"
        verdicts = list(pool.map(lambda one: tried(one[0], one[1].source), made))
    left = [one for one, survived in zip(made, verdicts, strict=True) if survived]
    survivors = [f"{file}:{mutant.line}\n- {mutant.before}\n+ {mutant.after}" for file, mutant in left]
    report("surviving-constants.txt", len(made) - len(left), len(made), survivors)


def unchanged() -> tuple[Path, str]:
    file = mutated_files()[0]
    return file, (ROOT / file).read_text("utf-8")
