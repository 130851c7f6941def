#!/usr/bin/env python3
"""Writes the tables of the docs that the code already has. Usage: ``.venv/bin/python tools/tables.py``.

A table stands between ``<!-- NAME -->`` and ``<!-- end of NAME -->``. A test compares the files with ``written``.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from sekisho.cli.checks.finding import ABOUT
from sekisho.settings import settings_table

DOCS: Final = Path(__file__).resolve().parent.parent / "docs"


def settings() -> Iterator[str]:
    """Every setting, its default and its meaning."""
    yield "| variable | default | meaning |"
    yield "|---|---|---|"
    for variable, default, meaning in settings_table():
        shown = default if default in {"none", "the issuer"} else f"`{default}`"
        yield f"| `{variable}` | {shown} | {meaning} |"


def checks() -> Iterator[str]:
    """Everything that ``sekisho doctor`` looks at."""
    yield "| finding | what should be so |"
    yield "|---|---|"
    for name, meaning in ABOUT.items():
        yield f"| `{name}` | {meaning} |"


TABLES: Final[dict[str, tuple[str, Callable[[], Iterator[str]]]]] = {
    "settings": ("settings.md", settings),
    "checks": ("operations.md", checks),
}


def written(name: str, text: str) -> str:
    """The text of a document with its table as it should be."""
    _, rows = TABLES[name]
    begin, end = f"<!-- {name}: made by tools/tables.py -->\n", f"<!-- end of {name} -->\n"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    table = "".join(f"{row}\n" for row in rows())
    text, number = pattern.subn(lambda _: f"{begin}{table}{end}", text)
    if number != 1:
        raise ValueError(f"the table {name} has no place")
    return text


if __name__ == "__main__":
    for name, (file, _) in TABLES.items():
        path = DOCS / file
        path.write_text(written(name, path.read_text()))
