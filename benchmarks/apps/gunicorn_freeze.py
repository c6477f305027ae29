"""gunicorn config: gc.freeze() before forking (the known trick to keep preloaded pages shared)."""

import gc

gc.disable()  # no collection while loading leaves fewer holes in the arenas


def when_ready(server):
    gc.collect()
    gc.freeze()


def post_fork(server, worker):
    gc.enable()
