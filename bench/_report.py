"""What every benchmark prints: the machine, a line of progress, tables; and the two numbers it makes of many."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence


def start(title: str) -> None:
    """The heading, with what the figures depend on."""
    python = f"{platform.python_implementation()} {platform.python_version()}, {platform.python_compiler()}"
    load = "/".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{title}\n{python}; {cores()} CPUs, load {load}; {platform.system()} {platform.machine()}", flush=True)
    if os.getloadavg()[0] > cores() / 2:
        print("The machine is busy: believe the ratios of CPU times, and the others only from a quiet run.", flush=True)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def progress(text: str) -> None:
    """Where it stands. In a terminal each line replaces the one before; in a log there is one every few seconds."""
    if sys.stdout.isatty():
        print(f"\r\033[K{text}", end="", flush=True)
    elif time.monotonic() - _last_line[0] > _LOG_EVERY_S:
        _last_line[0] = time.monotonic()
        print(text, flush=True)


_LOG_EVERY_S = 5
_last_line = [0.0]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The first column is text, the others are numbers."""
    if sys.stdout.isatty():
        print("\r\033[K", end="")
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, ["-" * width for width in widths], *rows):
        first, *others = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]
        print("  ".join(cells).rstrip())
    print(flush=True)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
