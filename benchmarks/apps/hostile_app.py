"""What the clients of hostile.py ask for."""

import os
import tempfile
import time

BIG = b"x" * 4_000_000
_FILE = tempfile.TemporaryFile(dir=os.environ.get("PREFORK_SPOOL_DIR"))


def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/work":  # of the CPU, for as many ms as the query says
        until = time.thread_time() + float(environ["QUERY_STRING"]) / 1000
        while time.thread_time() < until:
            pass
    if path == "/wait":
        time.sleep(float(environ["QUERY_STRING"]) / 1000)
    if path == "/big":
        start_response("200 OK", [("Content-Length", str(len(BIG)))])
        return [BIG]
    if path == "/file":
        size = int(environ["QUERY_STRING"])
        _FILE.truncate(size)
        _FILE.seek(0)
        start_response("200 OK", [("Content-Length", str(size))])
        return environ["wsgi.file_wrapper"](_FILE)
    if path == "/stream":
        pieces, rest = divmod(int(environ["QUERY_STRING"]), 65536)
        start_response("200 OK", [])
        return (BIG[:65536] for _ in range(pieces))
    size = 0
    while piece := environ["wsgi.input"].read(1_000_000):
        size += len(piece)
    body = b"%d" % size
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
