"""How long does a connection live between its requests, and what does it keep?"""

from __future__ import annotations

import signal
import socket
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Any

import pytest
from server_process import PATIENCE, LiveServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

APP = """
def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/slow":
        time.sleep(0.15)
    start_response("200 OK", [])
    if path == "/stream":
        def body():
            yield b"begun"
            time.sleep(1)
        return body()
    return [f"{environ['REMOTE_ADDR']} {os.getpid()}".encode()]
"""


@pytest.fixture
def serve(write_app: Callable[..., Path]) -> Callable[..., LiveServer]:
    """Return a server of the app above, with options."""

    def serve(**options: Any) -> LiveServer:
        return LiveServer.pool("sample:app", app_dir=str(write_app(APP)), **{"max_workers": 1, **options})

    return serve


def connect(server: LiveServer) -> socket.socket:
    return socket.create_connection(server.address, timeout=PATIENCE)


def ask(client: socket.socket, path: str, behind: bytes = b"") -> bytes:
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode() + behind)
    response = HTTPResponse(client)
    response.begin()
    return response.read()


@pytest.mark.over_both
@pytest.mark.parametrize("path", ["/", "/slow"])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_an_idle_connection_ends_in_time_whichever_thread_has_answered(
    serve: Callable[..., LiveServer], path: str, threads: int
) -> None:
    with serve(threads=threads, keep_alive_timeout=0.3) as server, connect(server) as client:
        ask(client, path)
        assert client.recv(1) == b""


@pytest.mark.over_both
def test_who_may_not_stay_is_told_so(serve: Callable[..., LiveServer]) -> None:
    with serve(keep_alive_timeout=0) as server, connect(server) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        response = HTTPResponse(client)
        response.begin()
        assert response.getheader("Connection") == "close"
        response.read()
        assert client.recv(1) == b""


@pytest.mark.over_both
def test_an_empty_line_behind_a_request_takes_no_time_away(serve: Callable[..., LiveServer]) -> None:
    with serve(keep_alive_timeout=0.3) as server, connect(server) as client:
        ask(client, "/", b"\r\n")
        assert client.recv(1) == b""


@pytest.mark.over_both
def test_an_empty_line_behind_a_request_hides_from_no_sibling_whose_connection_it_is(
    serve: Callable[..., LiveServer],
) -> None:
    with serve(proxy_protocol=True, trusted_proxies=["127.0.0.1"]) as server, connect(server) as client:
        client.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 80\r\n")
        address, before = ask(client, "/", b"\r\n").split()
        assert address == b"192.0.2.7"
        server.send(signal.SIGUSR2)
        server.wait_for("worker.exited", child_pid=int(before), exit_code=0)
        assert ask(client, "/").split()[0] == b"192.0.2.7"


@pytest.mark.over_both
def test_a_stop_waits_for_no_client_longer_whose_answer_ends_meanwhile(serve: Callable[..., LiveServer]) -> None:
    with serve(threads=2, graceful_timeout=15) as server, connect(server) as client:
        client.sendall(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
        response = HTTPResponse(client)
        response.begin()
        assert response.read1() == b"begun"
        assert server.stop() == 0
        assert not server.all("worker.killed")
