"""A pool inside of a program: `python examples/embedded.py`."""

from __future__ import annotations

from urllib.request import urlopen

from wsgi_hello import app

from prefork import WorkerPool

if __name__ == "__main__":
    with WorkerPool(app, bind="127.0.0.1:0", max_workers=2) as pool, urlopen(pool.url) as answer:
        print(answer.read().decode(), end="")
