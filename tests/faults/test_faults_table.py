"""The table and the bar say what happened."""

import io
import json
from types import SimpleNamespace

from rich.console import Console

from faults.closing_table import Bar, merged, scenes_of, table

SCENE = {"scenario": "a reply cut", "database": "SQLite", "nodes": 1, "asked": 10, "rotate": 2, "seconds": 1.5}


def report(when: str = "call", outcome: str = "passed", scene: dict | None = None) -> SimpleNamespace:
    properties = [("fault", json.dumps(scene))] if scene else [("other", "x")]
    return SimpleNamespace(
        when=when,
        nodeid="tests/test_x.py::test_y[sqlite-1]",
        user_properties=properties,
        passed=outcome == "passed",
        failed=outcome == "failed",
    )


def test_a_line_for_each_scenario_and_place():
    elsewhere = {**SCENE, "database": "PostgreSQL", "nodes": 3, "violations": 2}
    scenes = [SCENE, elsewhere, SCENE]
    # Setup and teardown tell of the same test again.
    reports = [report(when, scene=scene) for scene in scenes for when in ("setup", "call", "teardown")]
    lines = merged(scenes_of([*reports, report()]))
    assert [(line["database"], line["nodes"], line["asked"], line["seconds"]) for line in lines] == [
        ("PostgreSQL", 3, 10, 1.5),
        ("SQLite", 1, 20, 3.0),
    ]
    console = Console(width=149, file=io.StringIO())
    console.print(table(lines))
    text = console.file.getvalue().splitlines()
    assert text[1].split()[:7] == ["a", "reply", "cut", "3", "PostgreSQL", "10", "–"]
    assert text[3].split()[:2] == ["all", "30"]


def test_the_bar_counts_tests_and_names_what_fails():
    terminal = io.StringIO()
    bar = Bar(terminal)
    bar.pytest_xdist_node_collection_finished(node=None, ids=["a", "b"])
    for one in (report(), report("teardown"), report(outcome="failed"), report("teardown")):
        bar.pytest_runtest_logreport(one)
    bar.pytest_sessionfinish()
    assert "tests/test_x.py::test_y[sqlite-1]" in terminal.getvalue()
    assert "2/2" in terminal.getvalue()
    assert bar.pytest_report_teststatus(report()) == ("passed", "", "")
    assert bar.pytest_report_teststatus(report("setup", "failed")) == ("error", "", "")
