"""gunicorn with one worker of several threads; see bench/_simplejwt."""

import gc

workers = 1
worker_class = "gthread"
threads = 4
keepalive = 60
loglevel = "error"


def post_worker_init(_worker: object) -> None:
    # What lives for ever need not be walked through by each full collection.
    gc.collect()
    gc.freeze()
