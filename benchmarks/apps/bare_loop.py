"""Calls an app in a loop, no HTTP: bare_loop.py module:app PATH SECONDS wsgi|asgi; prints calls per second."""

import asyncio
import importlib
import io
import sys
import time

try:
    from uvloop import run as run_async  # as most servers run it: cheaper wake-ups, so a higher limit
except ImportError:
    run_async = asyncio.run

module, _, attr = sys.argv[1].partition(":")
path, secs, kind = sys.argv[2], float(sys.argv[3]), sys.argv[4]
app = getattr(importlib.import_module(module), attr)
ENVIRON = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "",
    "PATH_INFO": path,
    "QUERY_STRING": "",
    "SERVER_NAME": "127.0.0.1",
    "SERVER_PORT": "8000",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "HTTP_HOST": "127.0.0.1:8000",
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "http",
    "wsgi.errors": sys.stderr,
    "wsgi.multithread": False,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
    "REMOTE_ADDR": "127.0.0.1",
    "REMOTE_PORT": "4000",
}
SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": path,
    "raw_path": path.encode(),
    "query_string": b"",
    "root_path": "",
    "headers": [(b"host", b"127.0.0.1:8000")],
    "client": ("127.0.0.1", 4000),
    "server": ("127.0.0.1", 8000),
}


def start_response(status, headers, exc_info=None):
    return None


def call():
    it = app(ENVIRON | {"wsgi.input": io.BytesIO(b"")}, start_response)
    for _ in it:
        pass
    if hasattr(it, "close"):
        it.close()


async def send(message):
    pass


async def acall():
    first = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive():
        if first:
            return first.pop()
        await asyncio.sleep(3600)

    await app(dict(SCOPE), receive, send)


def wsgi(secs):
    t0, n = time.perf_counter(), 0
    while time.perf_counter() - t0 < secs:
        for _ in range(20):
            call()
        n += 20
    return n / (time.perf_counter() - t0)


async def asgi(secs):
    t0, n = time.perf_counter(), 0
    while time.perf_counter() - t0 < secs:
        for _ in range(20):
            await acall()
        n += 20
    return n / (time.perf_counter() - t0)


def run(secs):
    return run_async(asgi(secs)) if kind == "asgi" else wsgi(secs)


run(0.3)
print(run(secs))
