"""uvicorn as its users run it, in one process: httptools, uvloop, no access log."""

import gc
import sys
from importlib import import_module

import uvicorn


def main(factory: str, port: str, collector: str) -> None:
    module, _, name = factory.partition(":")
    app = getattr(import_module(module), name)()
    if collector == "frozen":
        gc.collect()
        gc.freeze()  # see gunicorn_conf.py
    uvicorn.run(
        app, host="127.0.0.1", port=int(port), loop="uvloop", http="httptools", access_log=False, log_level="error"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
