"""An application that Sekisho is inside of, as a process of its own: `paged_world.py` as one node.

Arguments as `RunningServer` gives them: serve --port PORT.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

    import uvicorn

    import paged_world
    from sekisho.web import Sekisho, Settings

    auth = Sekisho(Settings())
    app = paged_world.starlette_app(
        auth.verifier, refresh=auth.renew, window_s=auth.settings.replay_window_s, router=auth.router
    )
    uvicorn.run(app, port=int(sys.argv[3]), proxy_headers=False, ws="none")
