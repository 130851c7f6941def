"""The documents say what the code does: tables are compared, examples are the files that a test runs."""

import re
import runpy
from pathlib import Path

import pytest
import typer

from sekisho import errors
from sekisho.cli.commands import app
from sekisho.settings import settings_table
from sekisho.web import problems

ROOT = Path(__file__).parent.parent
NOT_OVER_HTTP = {errors.KeyRefused, errors.KeySourceUnavailable, errors.StartRefused, problems.RequestError}


def error_classes() -> list[type[errors.SekishoError]]:
    found: list[type[errors.SekishoError]] = [errors.SekishoError]
    for kind in found:
        found += kind.__subclasses__()
    return [kind for kind in found if not kind.__name__.startswith("_") and kind not in NOT_OVER_HTTP]


def test_the_reference_has_every_setting_with_its_default_and_meaning() -> None:
    table = (ROOT / "docs/settings.md").read_text().split("<!-- settings")[1].split("<!-- end of settings -->")[0]
    rows = re.findall(r"^\| `(SEKISHO_\w+)` \| `?(.*?)`? \| (.*) \|$", table, re.MULTILINE)
    assert rows == settings_table()


@pytest.mark.parametrize("name", ["settings", "checks"])
def test_tables_are_as_the_code_has_them(name: str) -> None:
    """If not: .venv/bin/python tools/tables.py."""
    tables = runpy.run_path(str(ROOT / "tools/tables.py"))
    text = (ROOT / "docs" / tables["TABLES"][name][0]).read_text()
    assert tables["written"](name, text) == text


@pytest.mark.parametrize("name", ["README.md", "docs/settings.md", "docs/operations.md"])
def test_settings_and_commands_that_are_named_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    known = {variable for variable, _, _ in settings_table()}
    assert set(re.findall(r"SEKISHO_[A-Z][A-Z_]+\b", text)) <= known
    commands = typer.main.get_command(app).commands
    assert set(re.findall(r"`sekisho ([a-z]+)", text)) <= set(commands)


@pytest.mark.parametrize("kind", error_classes(), ids=lambda kind: kind.__name__)
def test_every_error_is_listed_with_status_and_codes(kind: type[errors.SekishoError]) -> None:
    status = problems.status_of(kind.__new__(kind))
    own = "" if kind.code == kind.public_code else f"`{kind.code}`"
    assert f"| {status} | `{kind.public_code}` | {own} |" in (ROOT / "docs/errors.md").read_text()


def test_codes_name_one_error_each() -> None:
    codes = [kind.code for kind in error_classes()]
    assert len(codes) == len(set(codes))


def test_every_error_speaks_both_languages() -> None:
    for kind in error_classes():
        assert kind.text_en.isascii()
        assert re.search("[ぁ-ん]", kind.text_ja), kind


@pytest.mark.parametrize("name", ["mounted", "guarded"])
def test_the_readmes_examples_are_the_ones_that_run(name: str) -> None:
    readme = (ROOT / "README.md").read_text()
    shown = re.search(rf"<!-- examples/{name}.py -->\n```python\n(.*?)```", readme, re.DOTALL)
    code = (ROOT / f"examples/{name}.py").read_text().split('"""\n', 1)[1].lstrip("\n")
    assert shown is not None
    assert shown[1] == code


def test_the_architecture_names_every_room() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    rooms = {path.stem for path in (ROOT / "src/sekisho").iterdir() if not path.name.startswith(("_", "py.", "data"))}
    assert {room for room in rooms if not re.search(rf"\b{room}\b", text)} == set()
