"""What `make test` and `make test-long` show of the faults: a table at the end, and a bar while a terminal looks on.

The root's conftest.py registers this: with xdist it is the controller that draws, and it loads no other.
"""

import json
from collections.abc import Iterator, Sequence
from typing import IO, Any

import pytest
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

DECISIONS = ("same again", "rotate", "branch", "adopt", "wait", "put off", "refused", "theft")
_SUMS = ("asked", "lost", *DECISIONS, "sessions", "violations", "seconds")
_SHORT = {"same again": "again", "put off": "off", "violations": "broken", "seconds": "s"}
_WIDTH = 149


def scenes_of(reports: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """What the tests have recorded of their scenes."""
    for report in reports:
        if getattr(report, "when", "") == "call":
            yield from (json.loads(value) for name, value in report.user_properties if name == "fault")


def merged(scenes: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line for each scenario, database and number of nodes, whatever the tests' other parameters."""
    lines: dict[tuple[str, str, int], dict[str, Any]] = {}
    for scene in scenes:
        about = {name: scene[name] for name in ("scenario", "database", "nodes")}
        line = lines.setdefault(tuple(about.values()), {**about, **dict.fromkeys(_SUMS, 0)})
        for name in _SUMS:
            line[name] += scene.get(name, 0)
    return [line for _, line in sorted(lines.items())]


def table(lines: Sequence[dict[str, Any]]) -> Table:
    """The answers are counted as the nodes tell of them: a node that was killed has told of less."""
    drawn = Table(box=None, padding=(0, 1, 0, 0), show_footer=True)
    drawn.add_column("scenario", "all", width=46)
    drawn.add_column("nodes", width=12)
    for name in _SUMS:
        drawn.add_column(
            _SHORT.get(name, name), _shown(sum(line[name] for line in lines)), justify="right", min_width=5
        )
    for line in lines:
        where = f"{line['nodes']} {line['database']}"
        numbers = (_shown(line[name]) for name in _SUMS)
        drawn.add_row(line["scenario"], where, *numbers, style="bold red" if line["violations"] else "")
    return drawn


def _shown(number: float) -> str:
    return f"{number:.1f}" if isinstance(number, float) else str(number or "–")


class ClosingTable:
    """The plugin that draws the table."""

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        reports = [report for category in ("passed", "failed") for report in terminalreporter.stats.get(category, [])]
        lines = merged(scenes_of(reports))
        if lines:
            terminalreporter.section("faults")
            console = Console(width=_WIDTH, no_color=not terminalreporter.hasmarkup, highlight=False)
            with console.capture() as drawn:
                console.print(table(lines))
            terminalreporter.write(drawn.get())


class Bar:
    """The plugin that draws the bar, instead of pytest's dots. What fails is named above it."""

    def __init__(self, terminal: IO[str]) -> None:
        console = Console(file=terminal, force_terminal=True)
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task("", total=None)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._start(len(session.items))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: Sequence[str]) -> None:
        self._start(len(ids))

    def _start(self, total: int) -> None:
        if total:  # xdist's controller itself collects nothing
            self._progress.update(self._task, total=total)
            self._progress.start()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._progress.console.print(f"[red]failed[/red] {escape(report.nodeid)}", highlight=False, soft_wrap=True)
        if report.when == "teardown":
            self._progress.update(self._task, advance=1, description=escape(report.nodeid.rpartition("::")[2]))

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """No letters: they would tear the bar. The same categories, so the summary stays as it is."""
        if report.passed:
            return ("passed" if report.when == "call" else "", "", "")
        return ("failed" if report.when == "call" else "error", "", "") if report.failed else ("skipped", "", "")

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        self._progress.stop()


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """The terminal reporter is there by now."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput"):
        return
    config.pluginmanager.register(ClosingTable())
    if reporter.isatty and config.option.markexpr == "long" and not config.option.verbose:
        config.pluginmanager.register(Bar(reporter._tw._file))
