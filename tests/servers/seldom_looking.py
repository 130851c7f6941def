"""Runs the command line of Sekisho as it is, but for a node that looks at its key file once an hour.

What it takes up sooner than that, somebody has told it to look for.
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder, of which the program knows nothing
    from sekisho.cli import main
    from sekisho.web import app

    app.EVERY_S = 3600.0
    sys.argv[0] = "sekisho"
    main()
