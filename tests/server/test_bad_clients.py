"""What do clients that are slow, greedy, silent or gone cost the others? Nothing, and the worker lives on."""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
from contextlib import suppress
from http.client import HTTPResponse
from pathlib import Path
from select import poll, select
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from server_process import LiveServer, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

APP = """
import tempfile

BIG = 30_000_000
SOME = 60_000
PIECE = b"x" * 100_000

class Answer:
    def __init__(self, pieces):
        self.pieces = pieces
        self.closed = 0
    def __iter__(self):
        return self.pieces
    def close(self):
        self.closed += 1
        print("closed", self.closed, flush=True)

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/gate":
        print("at the gate", flush=True)
        with open(os.path.join(os.path.dirname(__file__), "gate")):
            pass
    if path == "/stream":
        start_response("200 OK", [("Content-Length", str(BIG))])
        return Answer(PIECE for _ in range(BIG // len(PIECE)))
    if path == "/whole":
        start_response("200 OK", [("Content-Length", str(BIG))])
        return Answer(iter([b"x" * BIG]))
    if path == "/long":
        def pieces():
            for _ in range(6):
                yield b"x" * (BIG // 6)
                time.sleep(0.3)
        start_response("200 OK", [("Content-Length", str(BIG))])
        return Answer(pieces())
    if path == "/file":
        file = tempfile.TemporaryFile()
        file.truncate(BIG)
        start_response("200 OK", [("Content-Length", str(BIG))])
        return environ["wsgi.file_wrapper"](file)
    if path == "/some":
        start_response("200 OK", [("Content-Length", str(SOME))])
        return [b"x" * SOME]
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % len(body)]
"""
LIMITED = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
"""
CROWDED = """
import resource
def crowded(worker):
    resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))
"""
BIG = 30_000_000


@pytest.fixture
def serve(write_app: Callable[..., Path]) -> Callable[..., LiveServer]:
    """Return a server of the app above with one worker and one thread, so that nobody can be held without being seen."""

    def serve(more: str = "", *, app: str = "sample:app", **options: Any) -> LiveServer:
        options = {"max_workers": 1, "threads": 1, "max_reqs_per_child": 0, **options}
        return LiveServer.pool(app, app_dir=str(write_app(APP + more)), **options)

    return serve


def connect(server: LiveServer, data: bytes = b"", *, room: int = 16384) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    client.settimeout(20)
    client.connect(server.address)
    client.sendall(data)
    return client


def get(path: str) -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode()


def answer(client: socket.socket) -> tuple[int, bytes]:
    response = HTTPResponse(client)
    response.begin()
    return response.status, response.read()


def until_closed(client: socket.socket) -> bytes:
    data = bytearray()
    try:
        while piece := client.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return bytes(data)


def descriptors(server: LiveServer) -> int:
    return sum(1 for _ in Path(f"/proc/{server.worker_pids[0]}/fd").iterdir())


def pause(seconds: float = 0.2) -> None:
    """Be as slow as the client of the test is to be."""
    threading.Event().wait(seconds)


def sip(client: socket.socket) -> None:
    """Read to the end, a little at a time."""
    with suppress(OSError):
        while client.recv(60):
            pause(0.02)


# Slow.


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a client has not taken")
@pytest.mark.over_both
def test_a_last_answer_that_is_taken_slowly_is_not_torn_because_its_client_sends_more(
    serve: Callable[..., LiveServer],
) -> None:
    with serve() as server, connect(server, room=1) as client:
        client.sendall(get("/some")[:-2] + b"Connection: close\r\n\r\n and more")
        received = b""
        for _ in range(45):  # of 100 ms: more than the two seconds that it has, and two more
            received += client.recv(600)
            pause(0.1)
        client.sendall(b" and still more")
        received += until_closed(client)
        assert received.endswith(b"\r\n\r\n" + b"x" * 60_000)


@pytest.mark.over_both
def test_a_client_that_takes_nothing_of_its_last_answer_is_let_go(serve: Callable[..., LiveServer]) -> None:
    with serve() as server, connect(server, room=1) as client:
        client.sendall(get("/some")[:-2] + b"Connection: close\r\n\r\n and more")
        assert client.recv(1) == b"H"
        until(lambda: len(psutil.Process(server.worker_pids[0]).net_connections("tcp")) == 1)


@pytest.mark.over_both
def test_a_pool_that_stops_does_not_wait_for_who_takes_its_last_answer_slowly(serve: Callable[..., LiveServer]) -> None:
    with serve() as server, connect(server, room=1) as client:
        client.sendall(get("/some")[:-2] + b"Connection: close\r\n\r\n and more")
        assert client.recv(1) == b"H"
        reader = threading.Thread(target=sip, args=(client,))
        reader.start()
        assert server.stop() == 0
        client.shutdown(socket.SHUT_RDWR)
        reader.join()
        assert not server.all("worker.killed")


@pytest.mark.over_both
@pytest.mark.parametrize("kept", [False, True], ids=["new connection", "kept connection"])
def test_a_head_that_comes_drop_by_drop_has_its_time_and_no_more(
    serve: Callable[..., LiveServer], *, kept: bool
) -> None:
    with serve(head_timeout=0.6) as server:
        client = connect(server)
        if kept:
            client.sendall(get("/"))
            assert answer(client) == (200, b"0")
        with client:
            for drop in (b"GET / HT", b"TP/1.1\r\n", b"Host: a\r\n"):
                client.sendall(drop)
                assert server.get() == (200, b"0")
                pause()
            received = until_closed(client)
        assert received.startswith(b"HTTP/1.1 408 ")


@pytest.mark.over_both
def test_a_body_may_take_its_time_while_it_goes_on_and_not_a_moment_longer(serve: Callable[..., LiveServer]) -> None:
    begun = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n"
    with (
        serve(body_timeout=2, body_min_rate=0) as server,
        connect(server, begun) as client,
        connect(server, begun + b"12") as silent,
    ):
        for drop in (b"1", b"2", b"3"):
            pause(0.7)
            client.sendall(drop)
            assert server.get() == (200, b"0")
        assert answer(client) == (200, b"3")
        assert until_closed(silent).startswith(b"HTTP/1.1 408 ")


@pytest.mark.over_both
@pytest.mark.parametrize(
    ("head", "drop"),
    [
        pytest.param(b"Content-Length: 100000", b"1", id="length"),
        pytest.param(b"Transfer-Encoding: chunked", b"1\r\nx\r\n", id="chunks"),
        pytest.param(b"Transfer-Encoding: chunked", b"1;much=words\r\nx\r\n", id="words instead of data"),
    ],
)
def test_a_body_that_creeps_has_its_time_and_no_more(
    serve: Callable[..., LiveServer], head: bytes, drop: bytes
) -> None:
    with serve(body_timeout=0.5, body_min_rate=50) as server:
        with connect(server, b"POST / HTTP/1.1\r\nHost: a\r\n" + head + b"\r\n\r\n") as client:
            drops = 0
            while not select([client], [], [], 0.1)[0]:
                client.sendall(drop)
                drops += 1
            assert until_closed(client).startswith(b"HTTP/1.1 408 ")
        assert drops < 20
        assert server.get() == (200, b"0")


@pytest.mark.over_both
def test_who_takes_nothing_of_a_whole_answer_is_not_let_stay_as_who_is_idle(serve: Callable[..., LiveServer]) -> None:
    with serve(write_timeout=0.5, keep_alive_timeout=60) as server, connect(server, get("/whole")) as client:
        server.wait_for_output("closed 1")
        worker, port = psutil.Process(server.worker_pids[0]), client.getsockname()[1]
        until(lambda: all(there.raddr[1:] != (port,) for there in worker.net_connections("tcp")))
        assert len(until_closed(client)) < BIG


@pytest.mark.over_both
@pytest.mark.parametrize("path", ["/stream", "/file"])
def test_who_reads_at_a_creep_is_given_up_and_who_reads_slowly_is_not(
    serve: Callable[..., LiveServer], path: str
) -> None:
    with serve(write_timeout=2, write_min_rate=100_000) as server:
        with connect(server, get(path)) as creeping, connect(server, get(path)) as slow:
            received, reset = 0, poll()
            reset.register(creeping, 0)
            while not reset.poll(10):
                received += len(slow.recv(100_000))
                creeping.recv(100)
            assert received > 1_000_000
            assert len(until_closed(creeping)) < BIG
            while received < BIG:
                received += len(slow.recv(100_000)) or pytest.fail("cut")
        assert server.get() == (200, b"0")


WAITS = """
import prefork.outbox
prefork.outbox.SPOOL = 1_000_000
"""


@pytest.mark.over_both
def test_a_thread_that_waits_for_its_client_is_free_again_and_the_application_not_to_blame(
    serve: Callable[..., LiveServer],
) -> None:
    with serve(WAITS, write_timeout=0.5) as server, connect(server, get("/stream")) as client:
        server.wait_for_output("closed 1")
        assert server.get() == (200, b"0")
        assert len(until_closed(client)) < BIG
        assert not server.all("request.failed")


DRIPS = """
def drips(environ, start_response):
    def answer():
        yield b"x" * 5_000_000
        for _ in range(int(environ["QUERY_STRING"])):
            yield b"x"
            time.sleep(0.01)
    start_response("200 OK", [])
    return Answer(answer())
"""


@pytest.mark.over_both
def test_an_endless_answer_ends_when_its_client_takes_nothing_of_it(serve: Callable[..., LiveServer]) -> None:
    with serve(DRIPS, app="sample:drips", write_timeout=0.5) as server, connect(server, get("/?1000000")) as client:
        server.wait_for_output("closed 1")
        assert len(until_closed(client)) < BIG
        assert not server.all("request.failed")


@pytest.mark.over_both
def test_an_answer_that_drips_is_not_taken_for_a_client_that_is_slow(serve: Callable[..., LiveServer]) -> None:
    options = {"app": "sample:drips", "write_timeout": 1, "write_min_rate": 100_000}
    with serve(DRIPS, **options) as server, socket.create_connection(server.address, timeout=20) as client:
        client.sendall(get("/?200"))
        assert len(answer(client)[1]) == 5_000_200


@pytest.mark.over_both
def test_an_idle_connection_is_closed_in_its_time(serve: Callable[..., LiveServer]) -> None:
    with serve(keep_alive_timeout=0.3) as server, connect(server, get("/")) as client:
        assert answer(client) == (200, b"0")
        assert client.recv(1) == b""


@pytest.mark.parametrize("path", ["/stream", "/file"])
def test_who_reads_slowly_holds_no_thread_and_gets_all(serve: Callable[..., LiveServer], path: str) -> None:
    with serve() as server, connect(server, get(path)) as client:
        for _ in range(3):
            assert server.get() == (200, b"0")
        status, body = answer(client)
        assert (status, len(body)) == (200, BIG)
        client.sendall(get("/"))
        assert answer(client) == (200, b"0")


@pytest.mark.parametrize("path", ["/stream", "/file"])
def test_who_reads_nothing_is_given_up(serve: Callable[..., LiveServer], path: str) -> None:
    with serve(write_timeout=0.5) as server, connect(server, get(path)) as client:
        # Reset, so that the kernel does not keep for minutes what it has for a client that does not want it.
        reset = poll()
        reset.register(client, 0)
        while not reset.poll(10):
            assert server.get() == (200, b"0")
        assert len(until_closed(client)) < BIG


def test_a_long_stream_outlives_the_deadline_of_its_request(serve: Callable[..., LiveServer]) -> None:
    options = {"threads": 2, "head_timeout": 1.5, "keep_alive_timeout": 1.5}
    with serve(**options) as server, connect(server, get("/")) as client:
        assert answer(client) == (200, b"0")
        client.sendall(get("/long"))
        server.wait_for_output("closed 1")
        for _ in range(3):
            assert server.get() == (200, b"0")
        status, body = answer(client)
        assert (status, len(body)) == (200, BIG)


# Greedy.


def test_a_body_that_the_disk_does_not_hold_is_refused_and_the_worker_lives_on(
    serve: Callable[..., LiveServer],
) -> None:
    with serve(LIMITED) as server:
        size = 2_000_000
        with connect(server, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size) as client:
            with suppress(OSError):
                client.sendall(b"x" * size)
            assert until_closed(client).startswith(b"HTTP/1.1 507 ")
        assert server.get(method="POST", body=b"x" * 500_000) == (200, b"500000")
        assert not server.all("worker.exited")


def test_an_answer_whose_rest_no_disk_holds_goes_out_in_the_time_of_its_client(
    serve: Callable[..., LiveServer],
) -> None:
    with serve(LIMITED) as server:
        with connect(server, get("/stream")) as client:
            server.wait_for("worker.spool_failed", code="PF506", reason="[Errno 27] File too large")
            assert not server.output  # the application is at it, for as long as nothing is read
            status, body = answer(client)
            assert (status, len(body)) == (200, BIG)
            server.wait_for_output("closed 1")
        with connect(server, get("/stream")) as client:
            assert len(answer(client)[1]) == BIG
        assert server.get() == (200, b"0")
        assert len(server.all("worker.spool_failed")) == 1
        assert not server.all("worker.exited")
        assert not server.all("request.failed")


def test_a_client_that_stalls_without_a_disk_is_given_up_in_time(serve: Callable[..., LiveServer]) -> None:
    with serve(LIMITED, write_timeout=0.5) as server, connect(server, get("/stream")) as client:
        server.wait_for_output("closed 1")
        assert server.get() == (200, b"0")
        assert len(until_closed(client)) < BIG
        assert not server.all("request.failed")


def test_without_descriptors_nothing_is_accepted_nothing_spins_and_all_is_well_afterwards(
    serve: Callable[..., LiveServer],
) -> None:
    with serve(CROWDED, worker_started="sample:crowded") as server:
        crowd = [connect(server) for _ in range(60)]
        server.wait_for("pool.accept_paused", code="PF501")
        worker = psutil.Process(server.worker_pids[0])
        before = worker.num_ctx_switches().voluntary
        pause(1.0)
        assert worker.num_ctx_switches().voluntary - before < 500  # a loop that spins makes hundreds of thousands
        for client in crowd:
            client.close()
        assert server.get() == (200, b"0")


def test_who_waits_while_nothing_is_accepted_is_answered_when_the_pool_stops(serve: Callable[..., LiveServer]) -> None:
    with serve(CROWDED, worker_started="sample:crowded") as server:
        crowd: list[socket.socket] = []
        worker = psutil.Process(server.worker_pids[0])

        def all_are_in_or_nobody_more() -> bool:
            there = [connection for connection in worker.net_connections("tcp") if connection.raddr]
            return len(there) == len(crowd) or bool(server.all("pool.accept_paused"))

        while not server.all("pool.accept_paused"):
            crowd.append(connect(server))
            until(all_are_in_or_nobody_more)  # or more would be before the late ones than it has descriptors for
        late = [connect(server, get("/")) for _ in range(3)]
        server.process.terminate()
        for client in late:
            assert client.recv(100).startswith(b"HTTP/1.1 200 OK")
            client.close()
        assert server.wait() == 0
        for client in crowd:
            client.close()


# Gone.

STAGES = {
    "before the head": b"",
    "in the head": b"GET / HTTP/1.1\r\nHo",
    "before the body": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n",
    "in the body": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345",
    "in the chunks": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n123",
    "before the answer": get("/"),
    "in the answer": get("/stream"),
    "in the file": get("/file"),
}


@pytest.fixture(params=["close", "reset"])
def leave(request: pytest.FixtureRequest) -> Callable[[socket.socket], None]:
    def leave(client: socket.socket) -> None:
        if request.param == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()

    return leave


@pytest.fixture(params=[1, 4], ids=["1 thread", "4 threads"])
def server(request: pytest.FixtureRequest, serve: Callable[..., LiveServer]) -> Iterator[LiveServer]:
    with serve(threads=request.param) as server:
        yield server


@pytest.mark.parametrize("stage", STAGES)
def test_a_client_that_leaves_takes_nothing_with_it(
    server: LiveServer, leave: Callable[[socket.socket], None], stage: str
) -> None:
    with connect(server, get("/")) as client:
        assert answer(client) == (200, b"0")
    (worker,) = server.worker_pids
    before = descriptors(server)
    for _ in range(20):
        client = connect(server, STAGES[stage])
        if stage in {"in the answer", "in the file"}:
            client.recv(1000)
        leave(client)
    assert server.get() == (200, b"0")
    while descriptors(server) > before:
        assert server.get() == (200, b"0")
    if stage == "in the answer":
        for _ in range(20):
            server.wait_for_output("closed 1")
        assert not [line for line in server.output if "closed 2" in line]
    assert server.worker_pids == [worker]
    assert not server.all("request.failed")
    assert not server.all("app.failed")


def test_a_client_that_leaves_while_the_application_works_harms_nobody(
    serve: Callable[..., LiveServer], leave: Callable[[socket.socket], None], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with serve(threads=4) as server:
        client = connect(server, get("/gate"))
        server.wait_for_output("at the gate")
        leave(client)
        assert server.get() == (200, b"0")
        with gate.open("w"):
            pass
        for _ in range(5):
            assert server.get() == (200, b"0")
        assert not server.all("worker.exited")


def test_a_thousand_that_only_knock_leave_nothing_behind(server: LiveServer) -> None:
    assert server.get() == (200, b"0")
    before = descriptors(server)
    for _ in range(1000):
        connect(server).close()
    assert server.get() == (200, b"0")
    while descriptors(server) > before:
        assert server.get() == (200, b"0")
    assert not server.all("worker.exited")
