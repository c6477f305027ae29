"""What does a client see of the rules that need a server: hints, trailers, refusals, requests ahead of their answers?"""

from __future__ import annotations

import os
import re
import socket
import threading
from http.client import HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from server_process import LiveServer

if TYPE_CHECKING:
    from collections.abc import Iterator

APP = """
import os

def app(environ, start_response):
    if environ["PATH_INFO"] == "/hints":
        environ["wsgi.early_hints"]([("Link", "</a.css>; rel=preload")])
        with open(os.path.join(os.path.dirname(__file__), "gate")):
            pass
    if environ["PATH_INFO"] == "/bad-hints":
        environ["wsgi.early_hints"]([("Link", "a\\r\\nSet-Cookie: b")])
    if environ["PATH_INFO"] == "/late-hints":
        start_response("200 OK", [])(b"begun")
        environ["wsgi.early_hints"]([("Link", "</a.css>; rel=preload")])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [repr(environ["prefork.trailers"]).encode()]
"""
ASGI_APP = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"()"})
"""
ROOM = 4_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("app")
    (folder / "ruled.py").write_text(APP)
    os.mkfifo(folder / "gate")
    options = {"max_workers": 1, "threads": 1, "max_reqs_per_child": 0}
    with LiveServer.pool("ruled:app", app_dir=str(folder), where=None, **options) as server:
        server.cwd = folder
        yield server


@pytest.fixture(scope="module")
def asgi_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("asgi")
    (folder / "ruled_asgi.py").write_text(ASGI_APP)
    with LiveServer.pool("ruled_asgi:app", app_dir=str(folder), max_workers=1, max_reqs_per_child=0) as server:
        yield server


def get(path: str) -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode()


def connect(server: LiveServer, data: bytes) -> socket.socket:
    client = socket.create_connection(server.address, timeout=20)
    client.sendall(data)
    return client


def answer(client: socket.socket) -> tuple[int, bytes]:
    response = HTTPResponse(client)
    response.begin()
    return response.status, response.read()


def test_hints_are_there_before_the_application_has_its_answer(server: LiveServer) -> None:
    """RFC 8297."""
    with connect(server, get("/hints")) as client:
        assert client.recv(1000) == b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
        assert server.cwd is not None
        (server.cwd / "gate").write_text("")
        assert answer(client) == (200, b"()")


def test_hints_that_would_break_http_are_a_500_and_hints_that_come_too_late_cut_the_answer(server: LiveServer) -> None:
    with connect(server, get("/bad-hints")) as client:
        assert client.recv(1000).startswith(b"HTTP/1.1 500 ")
    with connect(server, get("/late-hints")) as client:
        octets = b"".join(iter(lambda: client.recv(1000), b""))
    assert octets.count(b"HTTP/1.1 ") == 1
    assert not octets.endswith(b"0\r\n\r\n")


def test_trailers_reach_the_application_by_their_key(server: LiveServer) -> None:
    """RFC 9110 section 6.5."""
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connect(server, head + b"5\r\nhello\r\n0\r\nX-Sum: 1\r\nX-Sum: 2\r\n\r\n") as client:
        assert answer(client) == (200, repr((("x-sum", "1"), ("x-sum", "2"))).encode())


def test_a_refusal_is_small_says_why_and_is_recorded_with_its_rule(server: LiveServer) -> None:
    with connect(server, b"GET / HTTP/1.1\r\n\r\n" + get("/never")) as client:
        octets = b"".join(iter(lambda: client.recv(1000), b""))
    assert octets.startswith(b"HTTP/1.1 400 ")
    assert octets.endswith(b"\r\n\r\n400 Bad Request: no Host field\n")
    assert len(octets) < 300
    record = server.wait_for("request.rejected", reason="no Host field")
    assert (record["status"], record["source"]) == (400, "RFC 9112 section 3.2")


@pytest.mark.parametrize("kind", ["server", "asgi_server"], ids=["WSGI", "ASGI"])
def test_who_sends_ahead_of_its_answers_is_answered_in_turn_and_costs_no_memory(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """RFC 9112 section 9.3.2: what is not yet to be served stays in the kernel, which makes the client wait."""
    server: LiveServer = request.getfixturevalue(kind)
    asked = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 500 + b"\r\n\r\n"
    count = 10_000
    before = peak_memory(server)
    with socket.create_connection(server.address, timeout=20) as client:
        client.sendall(asked)
        size = len(client.recv(1000))
        sender = threading.Thread(target=client.sendall, args=(asked * count,))
        sender.start()
        received = 0
        while received < count * size:
            received += len(client.recv(1_000_000))
        sender.join()
    assert server.get() == (200, b"()")
    assert peak_memory(server) - before < ROOM


def peak_memory(server: LiveServer) -> int:
    """Return the most memory that the worker has had, in bytes."""
    status = Path(f"/proc/{server.worker_pids[0]}/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak is not None
    return 1024 * int(peak[1])
