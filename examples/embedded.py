"""A server inside of a program: python examples/embedded.py

Leaving the block stops the pool, whatever happens in it; this process is free to do its own work meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.request import urlopen

from prefork import WorkerPool

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
    return [b"Hello\n"]


if __name__ == "__main__":
    with WorkerPool(app, bind="127.0.0.1:0", max_workers=2) as pool:
        print("serving on", pool.url)
        with urlopen(pool.url) as answer:  # noqa: S310 - our own address
            print("it says", answer.read().decode().strip())
