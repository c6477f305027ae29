"""What becomes of what a client does not take at once, and of those who wait beside it?"""

from __future__ import annotations

import select
import signal
import socket
import struct
import threading
from contextlib import ExitStack
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from server_process import PATIENCE, LiveServer, all_asleep, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

APP = """
import threading

SIZE = 30_000_000

def wait_at_the_gate():
    sys.stderr.write("at the gate\\n")
    while not os.path.exists(os.path.join(os.path.dirname(__file__), "open")):
        time.sleep(0.01)

class Answer(list):
    def __init__(self, pieces, then):
        super().__init__(pieces)
        self.close = then

def fail():
    raise LookupError("behind the answer")

def app(environ, start_response):
    path = environ["PATH_INFO"]
    fields = [] if path == "/chunked" else [("Content-Length", str(SIZE))]
    if path == "/gate":
        wait_at_the_gate()
    if path == "/raises":
        wait_at_the_gate()
        raise LookupError("with nobody there")
    if path == "/some":
        environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Length", "12000")])
        return [b"x" * 12000]
    if path == "/later":
        sys.stderr.write("later\\n")
        time.sleep(0.1)
        start_response("200 OK", [("Content-Length", "400000")])
        return [b"x" * 400000]
    if path == "/":
        start_response("200 OK", [("Content-Length", "4")])
        return [b"tea\\n"]
    start_response("200 OK", fields if path != "/gate" else [])
    if path in ("/piece", "/chunked"):
        def pieces():
            yield b"x" * SIZE
            wait_at_the_gate()
        return pieces()
    if path == "/file":
        file = open(os.path.join(os.path.dirname(__file__), "file"), "rb")
        return Answer([b"x" * SIZE], wait_at_the_gate) if environ["QUERY_STRING"] else environ["wsgi.file_wrapper"](file)
    if path == "/closing":
        return Answer([b"x" * SIZE], wait_at_the_gate)
    if path == "/failing":
        return Answer([b"x" * (SIZE // 2), b"x" * (SIZE // 2)], fail)
    if path == "/text":
        return iter(["x" * SIZE])
    return [b"x" * SIZE] if path == "/big" else [b"open\\n"]
"""
SIZE, SOME, LATER = 30_000_000, 12000, 400_000


@pytest.fixture
def serve(write_app: Callable[..., Path]) -> Callable[..., LiveServer]:
    """Return a server of the app above, with options."""

    def serve(**options: Any) -> LiveServer:
        return LiveServer.pool("sample:app", app_dir=str(write_app(APP)), **{"max_workers": 1, **options})

    return serve


def send(server: LiveServer, path: str, *, buffer: int = 0, head: str = "") -> socket.socket:
    client = socket.socket()
    client.settimeout(PATIENCE)
    if buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    client.connect(server.address)
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n{head}\r\n".encode())
    return client


def begin(client: socket.socket) -> HTTPResponse:
    response = HTTPResponse(client)
    response.begin()
    return response


def read(response: HTTPResponse, size: int) -> int:
    """Read so many bytes of a body, or what there is of them."""
    got = 0
    while got < size and (piece := response.read1(min(size - got, 1_000_000))):
        got += len(piece)
    return got


# While the application goes on.


@pytest.mark.over_both
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("path", ["/piece", "/chunked", "/closing"])
def test_a_piece_goes_out_whole_while_the_application_makes_the_next(
    serve: Callable[..., LiveServer], tmp_path: Path, path: str, threads: int
) -> None:
    with serve(threads=threads) as server, send(server, path, buffer=65536) as client:
        response = begin(client)
        assert read(response, SIZE) == SIZE
        server.wait_for_output("at the gate")
        (tmp_path / "open").touch()
        assert response.read() == b""
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert begin(client).read() == b"tea\n"


@pytest.mark.over_both
@pytest.mark.parametrize("threads", [1, 2])
def test_a_download_goes_on_although_all_threads_are_away(
    serve: Callable[..., LiveServer], tmp_path: Path, threads: int
) -> None:
    with serve(threads=threads) as server, send(server, "/big", buffer=65536) as client:
        response = begin(client)
        others = [send(server, "/gate") for _ in range(threads)]
        server.wait_for_output("at the gate", count=threads)
        assert read(response, SIZE) == SIZE
        (tmp_path / "open").touch()
        for other in others:
            assert begin(other).read() == b"open\n"
            other.close()
        assert not server.all("worker.exited")


@pytest.mark.over_both
def test_a_failure_behind_a_whole_answer_takes_nothing_of_it_back(serve: Callable[..., LiveServer]) -> None:
    with serve() as server, send(server, "/failing", buffer=65536) as client:
        response = begin(client)
        server.wait_for("request.failed")
        assert read(response, SIZE) == SIZE


def test_text_instead_of_bytes_is_answered_with_500_whatever_the_framing(serve: Callable[..., LiveServer]) -> None:
    with serve() as server, send(server, "/text") as client:
        assert begin(client).status == 500


@pytest.mark.over_both
def test_an_answer_that_ends_the_connection_arrives_although_its_client_has_sent_more(
    serve: Callable[..., LiveServer], tmp_path: Path
) -> None:
    with serve() as server, send(server, "/gate", head="Connection: close\r\n") as client:
        server.wait_for_output("at the gate")
        client.sendall(b"\r\n")
        (tmp_path / "open").touch()
        assert begin(client).read() == b"open\n"
        assert client.recv(1) == b""  # and no reset


@pytest.mark.over_both
def test_a_request_whose_client_is_gone_when_its_application_fails_is_logged(
    serve: Callable[..., LiveServer], tmp_path: Path
) -> None:
    with serve(access_log="-", access_log_format="json") as server:
        client = send(server, "/raises")
        server.wait_for_output("at the gate")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        (tmp_path / "open").touch()
        server.wait_for("request.failed")
        assert server.wait_for("request.finished", path="/raises")["status"] in {499, 500}


# Ahead of its answers.


def chat(server: LiveServer, path: str, over: threading.Event) -> None:
    """Ask again and again, so that there is always somebody else who is ready."""
    with connect(server) as client:
        while not over.is_set():
            client.sendall(request(path))
            begin(client).read()


def connect(server: LiveServer) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE)
    client.connect(server.url.removeprefix("unix:"))
    return client


def request(path: str, body: bytes = b"") -> bytes:
    method = "POST" if body else "GET"
    return f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.over_both
@pytest.mark.parametrize("body", [b"", b"xxx"], ids=["GET", "POST"])
def test_who_sends_pairs_ahead_and_reads_late_gets_all_and_costs_nothing(
    serve: Callable[..., LiveServer], tmp_path: Path, body: bytes
) -> None:
    """An answer that is held back meets a full socket while the next request of its client lies here already."""
    over = threading.Event()
    options: dict[str, Any] = {"threads": 2, "max_reqs_per_child": 0, "bind": f"unix:{tmp_path}/socket"}
    with serve(**options) as server, ExitStack() as stack:
        others = [threading.Thread(target=chat, args=(server, "/", over)) for _ in range(6)]
        for other in others:
            other.start()
        clients = [stack.enter_context(connect(server)) for _ in range(30)]
        for client in clients:
            client.sendall(request("/some", body))
            for _ in range(9):
                client.sendall(request("/some", body) * 2)
                over.wait(0.002)
        over.set()
        for other in others:
            other.join()
        worker = psutil.Process(server.worker_pids[0])
        until(lambda: all_asleep(worker.pid))
        for client in clients:
            with client.makefile("rb") as answers:
                for _ in range(19):
                    assert next(answers).startswith(b"HTTP/1.1 200 OK")
                    assert any(line == b"\r\n" for line in answers)
                    assert answers.read(SOME) == b"x" * SOME
        until(lambda: all_asleep(worker.pid))
        assert not server.all("request.failed")
        assert not server.all("worker.exited")


@pytest.mark.over_both
def test_a_large_last_answer_arrives_whole_although_its_client_asks_on(serve: Callable[..., LiveServer]) -> None:
    with serve(keep_alive_timeout=0) as server, send(server, "/later", buffer=4096) as client:
        server.wait_for_output("later")
        client.sendall(request("/"))
        threading.Event().wait(0.3)  # until it is answered, and the second one read and thrown away
        client.sendall(request("/"))
        threading.Event().wait(0.1)
        assert read(begin(client), LATER) == LATER


# Beside threads that are away.


@pytest.mark.skipif(not hasattr(socket, "SOCK_SEQPACKET"), reason="this system hands nothing over")
def test_all_clients_of_a_retiring_worker_whose_threads_are_away_are_handed_over(
    serve: Callable[..., LiveServer], tmp_path: Path
) -> None:
    """More than the exchange holds at a time."""
    with serve(threads=1, max_reqs_per_child=0) as server:
        crowd = [send(server, "/") for _ in range(600)]
        for client in crowd:
            assert begin(client).read() == b"tea\n"
        (worker,) = server.worker_pids
        held = send(server, "/gate")
        server.wait_for_output("at the gate")
        server.send(signal.SIGUSR2)
        server.wait_for("worker.retiring", child_pid=worker)
        for client in crowd:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert begin(client).read() == b"tea\n"
            client.close()
        (tmp_path / "open").touch()
        assert begin(held).read() == b"open\n"
        held.close()


@pytest.mark.skipif(not hasattr(socket, "SOCK_SEQPACKET"), reason="this system hands nothing over")
@pytest.mark.parametrize("threads", [1, 2])
def test_who_is_late_while_all_threads_are_away_costs_nothing_any_more_and_who_is_not_is_served_by_the_next(
    serve: Callable[..., LiveServer], tmp_path: Path, threads: int
) -> None:
    limits = dict.fromkeys(("head_timeout", "body_timeout", "write_timeout", "keep_alive_timeout"), 3)
    with serve(threads=threads, **limits) as server, ExitStack() as stack:
        stalled = stack.enter_context(send(server, "/big", buffer=65536))
        assert begin(stalled).status == 200
        idle = stack.enter_context(send(server, "/"))
        assert begin(idle).read() == b"tea\n"
        body = stack.enter_context(send(server, "/", head="Content-Length: 4\r\n"))
        slow, silent = (stack.enter_context(socket.create_connection(server.address, PATIENCE)) for _ in range(2))
        slow.sendall(b"GET /")
        silent.sendall(b"GET /")
        assert server.get() == (200, b"tea\n")  # who came before is taken in before
        held = [stack.enter_context(send(server, "/gate")) for _ in range(threads)]
        server.wait_for_output("at the gate", count=threads)
        slow.sendall(b" HTTP/1.1\r\nHost: a\r\n\r\n")
        assert [begin(client).status for client in (body, silent)] == [408, 408]
        assert idle.recv(1) == b""
        reset = select.poll()
        reset.register(stalled, 0)
        until(lambda: bool(reset.poll(0)))
        assert len(server.all("request.rejected")) == 2
        (tmp_path / "open").touch()
        assert [begin(client).read() for client in held] == [b"open\n"] * threads
        assert begin(slow).read() == b"tea\n"


REFUSED = """
import threading

start = threading.Thread.start
started = []

def refuse(thread):
    if thread.name.startswith("prefork-") and started:
        raise RuntimeError("can't start new thread")
    started.append(thread)
    start(thread)

def worker_started(worker):
    threading.Thread.start = refuse
"""


@pytest.mark.parametrize("max_workers", [1, 2])
def test_a_worker_that_may_start_no_further_thread_goes_on_with_those_it_has(
    write_app: Callable[..., Path], tmp_path: Path, max_workers: int
) -> None:
    folder = str(write_app(APP + REFUSED))
    options: dict[str, Any] = {"max_workers": max_workers, "threads": 4, "worker_started": "sample:worker_started"}
    with LiveServer.pool("sample:app", app_dir=folder, **options) as server:
        held = [send(server, "/gate") for _ in range(max_workers)]
        server.wait_for_output("at the gate", count=max_workers)
        server.wait_for("worker.thread_refused", code="PF505", threads=1)
        other = send(server, "/")
        (tmp_path / "open").touch()
        for client in held:
            assert begin(client).read() == b"open\n"
            client.close()
        assert begin(other).read() == b"tea\n"
        other.close()
        assert not server.all("worker.exited")
