"""Raw WSGI callables, one per measure, so that no path dispatch is timed."""

import os
import time

HELLO = b"Hello, World!"  # 13 bytes
CHUNK = b"x" * 65536
_HELLO_HEADERS = [("Content-Type", "text/plain"), ("Content-Length", "13")]


def hello(environ, start_response):
    start_response("200 OK", list(_HELLO_HEADERS))
    return [HELLO]


def stream(environ, start_response):
    """1 MiB in sixteen 64 KiB chunks, no Content-Length."""
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    for _ in range(16):
        yield CHUNK


def stream_cl(environ, start_response):
    """The same with a Content-Length (no chunked coding needed)."""
    start_response("200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", "1048576")])
    for _ in range(16):
        yield CHUNK


def echo(environ, start_response):
    """Reads the request body and answers with its length."""
    want = int(environ.get("CONTENT_LENGTH") or 0)
    body = environ["wsgi.input"].read(want)
    out = str(len(body)).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(out)))])
    return [out]


def mixed(environ, start_response):
    """/slow takes 200 ms, everything else answers at once."""
    if environ["PATH_INFO"] == "/slow":
        time.sleep(0.2)
    start_response("200 OK", list(_HELLO_HEADERS))
    return [HELLO]


def pid(environ, start_response):
    out = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(out)))])
    return [out]
