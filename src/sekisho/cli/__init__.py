"""The command line: ``sekisho --help``."""

import sys

from sekisho.errors import InputError, SekishoError, StartRefused


def main() -> None:
    """Runs the command. Exit code 0: done; 1: refused or failed, with one line why; 2: wrong usage or settings."""
    try:
        from sekisho.cli.commands import app  # noqa: PLC0415 - the program is there without its libraries, too
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("sekisho"):
            raise
        sys.exit(f"sekisho: {error.name} is missing, the program needs more than the library: install sekisho[server]")
    try:
        app()
    except SekishoError as error:
        sys.stderr.write(f"sekisho: {_line(error)}\n")
        sys.exit(2 if isinstance(error, StartRefused) else 1)


def _line(error: SekishoError) -> str:
    # What is wrong with an input stands in its class; the detail, where there is one, is a remark on it.
    if isinstance(error, InputError) and type(error) is not InputError and error.detail:
        return f"{error.text_en} ({error.detail})"
    return error.detail or error.text_en
