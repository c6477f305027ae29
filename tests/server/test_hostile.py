"""What do many clients that mean no good cost the others, and the machine?

The short forms of ``benchmarks/hostile.py``: they count what was answered, and what memory was taken, not how long it took.
"""

from __future__ import annotations

import resource
import socket
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from select import POLLIN, poll
from typing import TYPE_CHECKING, Any

import pytest
from server_process import LiveServer, Tally, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

APP = """
import tempfile

BIG = 64 * 1024 * 1024
PIECE = b"x" * 65536

def app(environ, start_response):
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path == "/wait":
        time.sleep(float(query))
    if path == "/stream":
        start_response("200 OK", [])
        return (bytes(PIECE) for _ in range(BIG // len(PIECE)))
    if path == "/file":
        file = tempfile.TemporaryFile()
        file.truncate(BIG)
        start_response("200 OK", [("Content-Length", str(BIG))])
        return environ["wsgi.file_wrapper"](file)
    if path == "/new":
        start_response("200 OK", [])
        return [b"x" * int(query)]
    size = 0
    while piece := environ["wsgi.input"].read(65536):
        size += len(piece)
    start_response("200 OK", [])
    return [b"%d" % size]
"""
BIG = 64 * 1024 * 1024
MIB = 1024 * 1024
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def serve(write_app: Callable[..., Path]) -> Callable[..., LiveServer]:
    def serve(**options: Any) -> LiveServer:
        options = {"max_workers": 1, "max_reqs_per_child": 0, **options}
        return LiveServer.pool("sample:app", app_dir=str(write_app(APP)), **options)

    return serve


@contextmanager
def descriptors(number: int) -> Iterator[None]:
    """Let this process, and those that it starts, have so many descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < number:
        pytest.skip(f"no more than {hard} descriptors are to be had")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, number), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def private(server: LiveServer) -> int:
    """Return how many bytes of memory the worker has to itself."""
    lines = Path(f"/proc/{server.worker_pids[0]}/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private"))


def highest(server: LiveServer) -> int:
    """Return the most memory, in bytes, that the worker ever had."""
    lines = Path(f"/proc/{server.worker_pids[0]}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def connect(server: LiveServer, data: bytes, buffer: int = 0) -> socket.socket:
    client = socket.socket()
    if buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    client.settimeout(20)
    client.connect(server.address)
    client.sendall(data)
    return client


def answer(client: socket.socket) -> tuple[int, bytes]:
    response = HTTPResponse(client)
    response.begin()
    return response.status, response.read()


def test_slow_clients_are_ended_and_cost_the_others_nothing(serve: Callable[..., LiveServer]) -> None:
    begun = {
        "head": b"GET / HTTP/1.1\r\nHost: a\r\nX: ",
        "body": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n",
        "reader": b"GET /new?3000000 HTTP/1.1\r\nHost: a\r\n\r\n",
    }
    with serve(head_timeout=1.5, body_timeout=1.5, write_timeout=1.5) as server, ExitStack() as clients:
        slow = [(kind, clients.enter_context(connect(server, begun[kind], 4096))) for _ in range(50) for kind in begun]
        for kind, client in slow:
            if kind == "reader":
                client.recv(1)
        with Tally(server) as tally:
            over, deadline = poll(), time.monotonic() + 20
            for kind, client in slow:
                over.register(client, 0 if kind == "reader" else POLLIN)
            while len(over.poll(0)) < len(slow):
                assert time.monotonic() < deadline
                tally.wait_for(20)
                threading.Event().wait(0.02)  # or on a fast machine they are not slow
                for kind, client in slow:
                    with suppress(OSError):
                        client.send(b"x") if kind != "reader" else client.recv(1)
            tally.wait_for(20)
        assert not tally.lost
        assert set(tally.statuses) == {200}
        for kind, client in slow:
            if kind != "reader":
                assert client.recv(65536).startswith(b"HTTP/1.1 408 "), kind
        assert len(server.all("request.rejected", status=408)) == 100


def test_thousands_of_idle_connections_cost_little_and_are_all_served_again(
    serve: Callable[..., LiveServer],
) -> None:
    count = 5000
    with descriptors(count + 1000), serve() as server, ExitStack() as clients:
        for _ in range(100):
            assert server.get()[0] == 200
        before = private(server)
        idle = [clients.enter_context(connect(server, GET)) for _ in range(count)]
        assert {answer(client) for client in idle} == {(200, b"0")}
        assert private(server) - before <= 4096 * count
        for client in idle:
            client.sendall(GET)
        assert {answer(client) for client in idle} == {(200, b"0")}
        assert not server.all("pool.accept_paused")


def test_what_is_large_goes_through_little_memory(serve: Callable[..., LiveServer]) -> None:
    with serve() as server:
        assert server.get("/new?1000000")[0] == 200
        for path in ("/stream", "/file"):
            before = highest(server)
            with connect(server, b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode()) as client:
                response, size = HTTPResponse(client), 0
                response.begin()
                while piece := response.read(MIB):
                    size += len(piece)
                assert size == BIG
            assert highest(server) - before < 8 * MIB, path
        for chunked in (False, True):
            before = highest(server)
            sender = HTTPConnection(*server.address, timeout=20)
            pieces = (b"x" * MIB for _ in range(BIG // MIB))
            headers = {} if chunked else {"Content-Length": str(BIG)}
            sender.request("POST", "/", pieces, headers, encode_chunked=chunked)
            response = sender.getresponse()
            assert (response.status, response.read()) == (200, b"%d" % BIG)
            sender.close()
            assert highest(server) - before < 8 * MIB, chunked


def test_what_many_slow_readers_leave_is_not_kept_in_memory(serve: Callable[..., LiveServer]) -> None:
    with serve(threads=1) as server, ExitStack() as clients:
        assert server.get("/new?4000000")[0] == 200
        before = private(server)
        for _ in range(50):
            slow = clients.enter_context(connect(server, b"GET /new?8000000 HTTP/1.1\r\nHost: a\r\n\r\n", 4096))
            assert slow.recv(1) == b"H"
        assert server.get()[0] == 200
        assert private(server) - before < 128 * MIB  # of 400 MB, some of which the kernel has


@pytest.mark.over_both
def test_who_sends_ahead_without_end_is_served_in_turn_with_the_others(serve: Callable[..., LiveServer]) -> None:
    ahead = 20_000
    with serve(threads=1) as server:
        assert server.get()[0] == 200
        before = private(server)
        with connect(server, b"") as flood, Tally(server, clients=2) as tally:
            sender = threading.Thread(target=flood.sendall, args=(GET * ahead,))
            sender.start()
            tally.wait_for(50)
            size, received = 0, b""
            whole = size_of_an_answer(server)
            while size < whole * ahead:
                received = flood.recv(MIB)
                size += len(received)
            sender.join()
            assert size == whole * ahead
            assert received.endswith(b"\r\n\r\n0")
            assert not tally.lost
        assert private(server) - before < 16 * MIB


def size_of_an_answer(server: LiveServer) -> int:
    with connect(server, GET) as client:
        received = b""
        while not received.endswith(b"\r\n\r\n0"):
            received += client.recv(65536)
        return len(received)


def test_names_and_hosts_that_never_come_again_are_not_kept(serve: Callable[..., LiveServer]) -> None:
    # By one thread: the C library keeps some of what was freed, 4 MB of this, for each thread that ever served.
    with serve(threads=1) as server, connect(server, b"") as client:
        before = private(server)
        for number in range(300):
            text = b"%d" % number + b"x" * 30_000
            client.sendall(b"GET / HTTP/1.1\r\nHost: %b\r\n%b: y\r\n\r\n" % (text, text))
            assert answer(client) == (200, b"0")
        assert private(server) - before < 6 * MIB


@pytest.mark.over_both
def test_a_body_of_countless_chunks_keeps_nobody_waiting(serve: Callable[..., LiveServer]) -> None:
    count = 100_000
    with serve(threads=1) as server, connect(server, b"") as client:
        assert server.get()[0] == 200
        before = private(server)
        with Tally(server, clients=2) as tally:
            client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
            client.sendall(b"1\r\nx\r\n" * count)
            tally.wait_for(20)
            client.sendall(b"0\r\n\r\n")
            assert answer(client) == (200, b"%d" % count)
            assert not tally.lost
        assert private(server) - before < 8 * MIB


def test_three_times_as_much_as_can_be_done_leaves_what_can_be_done(serve: Callable[..., LiveServer]) -> None:
    with serve(threads=1, queue_timeout=0.2) as server:
        alone = good_answers(server, clients=1, seconds=1.5)
        # Again, if the machine did something else meanwhile.
        until(lambda: good_answers(server, clients=60, seconds=1.5) >= 0.6 * alone)
        # For whichever reason: on a busy machine most have left before they can be told.
        assert server.wait_for("worker.overloaded")["turned_away"] >= 1
        until(lambda: server.get()[0] == 200)  # and not turned away itself


def good_answers(server: LiveServer, *, clients: int, seconds: float) -> int:
    """Return how many requests of 20 ms were answered with 200, by clients that wait no longer than 0.5 s."""
    end, good = time.monotonic() + seconds, [0] * clients

    def ask(number: int) -> None:
        client = HTTPConnection(*server.address, timeout=0.5)
        while time.monotonic() < end:
            try:
                client.request("GET", "/wait?0.02")
                response = client.getresponse()
                response.read()
                good[number] += response.status == 200
                if response.status == 503:
                    threading.Event().wait(0.3)
            except TimeoutError:
                client.close()
        client.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(good)
