"""``python -m servers.provision``: sees to it that everything the tests run against is on this machine."""

import sys

from . import MissingPieceError
from .browser import provide_chromium
from .postgres import find_programs
from .redis import provide_program


def main() -> int:
    try:
        find_programs()
        provide_program()
        provide_chromium()
    except MissingPieceError as missing:
        print(f"make: {missing}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
