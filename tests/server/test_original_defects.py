"""Are the defects of the original absent? One test for each: what it does wrong stands above.

D10 and D12 are about sockets of Server::Starter: see test_inherited_sockets.py.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from collections import Counter
from contextlib import suppress
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import pytest
from server_process import LiveServer, Tally, all_asleep, until, wait_until_gone

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

APP = """
def shop(environ, start_response):
    path = environ["PATH_INFO"]
    if path.startswith("/gate"):
        print("at the gate", os.getpid(), flush=True)
        with open(os.path.join(os.path.dirname(__file__), path.strip("/"))):
            pass
    if path == "/stuck":
        print("stuck", os.getpid(), flush=True)
        time.sleep(60)
    if path == "/write":
        write = start_response("200 OK", [])
        write(b"first")
        return [b"second"]
    if path == "/late":
        return late(start_response)
    if path == "/large":
        start_response("200 OK", [])
        return [b"x" * 30_000_000]
    if path == "/multiprocess":
        start_response("200 OK", [])
        return [str(environ["wsgi.multiprocess"]).encode()]
    return app(environ, start_response)

def late(start_response):
    start_response("200 OK", [])
    for _ in range(3):
        yield b"x"
        time.sleep(0.01)
"""


@pytest.fixture
def serve(write_app: Callable[..., Path]) -> Callable[..., LiveServer]:
    """Return a server of the app above, with options."""

    def serve(**options: Any) -> LiveServer:
        folder = str(write_app(APP))
        return LiveServer.pool("sample:shop", app_dir=folder, **{"max_workers": 1, "max_reqs_per_child": 0, **options})

    return serve


class Gate:
    """A request that is being served until it is let through."""

    def __init__(self, server: LiveServer, folder: Path, number: int = 1, on: HTTPConnection | None = None) -> None:
        self.file = folder / f"gate{number}"
        os.mkfifo(self.file)
        self.connection = HTTPConnection(*server.address, timeout=20) if on is None else on
        self.connection.request("GET", f"/{self.file.name}")
        server.wait_for_output("at the gate", count=number)

    def open(self) -> int:
        """Let it through; return the status of its answer."""
        with self.file.open("w"):
            pass
        response = self.connection.getresponse()
        assert response.read()
        self.connection.close()
        return response.status


# After TERM it goes on accepting, and under steady load never exits.
@pytest.mark.over_both
@pytest.mark.parametrize("who", ["worker", "pool"])
def test_d01_who_is_to_leave_takes_nothing_new_and_leaves_under_steady_load(
    who: str, serve: Callable[..., LiveServer]
) -> None:
    with serve(graceful_timeout=60) as server, Tally(server, keep_alive=False) as tally:
        tally.wait_for(50)
        if who == "worker":
            (worker,) = server.worker_pids
            server.send(signal.SIGTERM, to=worker)
            server.wait_for("worker.exited", child_pid=worker, exit_code=0)
            tally.wait_for(50)
            assert not tally.lost
        else:
            assert server.stop() == 0
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(server.address)
        assert not server.all("worker.killed")


# A connection that was closed because its head was late keeps its worker for ever.
@pytest.mark.parametrize("sent", [b"", b"GET / HT"], ids=["nothing", "half a head"])
def test_d02_a_connection_that_was_late_keeps_no_worker(sent: bytes, serve: Callable[..., LiveServer]) -> None:
    with serve(head_timeout=0.2) as server:
        (worker,) = server.worker_pids
        with socket.create_connection(server.address, timeout=20) as client:
            client.sendall(sent)
            while client.recv(1000):
                pass
        server.send(signal.SIGTERM, to=worker)
        server.wait_for("worker.exited", child_pid=worker, exit_code=0)


# An answer that begins after the application returned keeps its worker for ever.
@pytest.mark.parametrize("path", ["/write", "/late"])
def test_d03_an_answer_in_pieces_keeps_no_worker(path: str, serve: Callable[..., LiveServer]) -> None:
    with serve() as server:
        (worker,) = server.worker_pids
        assert server.get(path)[0] == 200
        server.send(signal.SIGTERM, to=worker)
        server.wait_for("worker.exited", child_pid=worker, exit_code=0)


# TERM after the budget was spent cuts what is being answered.
@pytest.mark.over_both
def test_d04_two_reasons_to_leave_cut_nothing(serve: Callable[..., LiveServer], tmp_path: Path) -> None:
    with serve(max_reqs_per_child=2) as server:
        (worker,) = server.worker_pids
        connection = HTTPConnection(*server.address, timeout=20)
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"%d" % worker
        server.wait_for("worker.ready", count=2)
        last = Gate(server, tmp_path, on=connection)
        server.send(signal.SIGTERM, to=worker)
        server.send(signal.SIGUSR2)
        server.wait_for("pool.recycling")
        server.send(signal.SIGTERM, to=worker)
        assert last.open() == 200
        gone = server.wait_for("worker.exited", child_pid=worker)
        assert (gone["exit_code"], gone["reason"], gone["requests"]) == (0, "max_requests", 2)
        assert len(server.all("worker.retiring", child_pid=worker)) == 1


# A second TERM kills a worker at once.
@pytest.mark.over_both
@pytest.mark.parametrize("who", ["worker", "pool"])
def test_d05_term_twice_is_the_same_drain(who: str, serve: Callable[..., LiveServer], tmp_path: Path) -> None:
    with serve() as server:
        (worker,) = server.worker_pids
        running = Gate(server, tmp_path)
        for record in ("worker.retiring", "") if who == "worker" else ("pool.stopping", ""):
            server.send(signal.SIGTERM, to=worker if who == "worker" else None)
            if record:
                server.wait_for(record)
        assert running.open() == 200
        server.wait_for("worker.exited", child_pid=worker, exit_code=0)


# The range of budgets shrinks to its minimum.
@pytest.mark.over_both
def test_d06_budgets_are_drawn_from_the_whole_range_for_ever(serve: Callable[..., LiveServer]) -> None:
    with serve(min_reqs_per_child=5, max_reqs_per_child=40) as server, Tally(server, clients=1) as tally:
        server.wait_for("worker.exited", count=12)
        exited = server.all(
            "worker.exited", reason="max_requests"
        )  # before the stop, which lets nobody finish its budget
    assert not tally.lost
    budgets = {record["child_pid"]: record["budget"] for record in server.all("worker.spawned")}
    assert all(5 <= budget <= 40 for budget in budgets.values())
    assert len(set(list(budgets.values())[6:])) > 1
    for gone in exited:
        assert gone["requests"] - gone["overrun"] == budgets[gone["child_pid"]]


# A worker serves one more than its budget.
@pytest.mark.over_both
def test_d07_a_budget_is_spent_to_the_last_request_and_not_beyond(serve: Callable[..., LiveServer]) -> None:
    with serve(max_reqs_per_child=40) as server:
        served = Counter[bytes]()
        successors = 0
        for _ in range(240):
            served[server.get()[1]] += 1
            # Whoever has served thirty asks for a successor, which is there before the next request, and it knows of it.
            if (due := sum(count >= 30 for count in served.values())) > successors:
                successors = due
                server.wait_for("worker.ready", count=1 + due)
                until(lambda: all_asleep(server.parent_pid, *server.worker_pids))
        server.wait_for("worker.exited", count=3)
        spent = [(record["requests"], record["overrun"]) for record in server.all("worker.exited")]
        assert set(spent) == {(40, 0)}


# Workers that drain fill their places: when all do, nobody accepts.
def test_d08_while_all_workers_drain_others_serve(serve: Callable[..., LiveServer], tmp_path: Path) -> None:
    with serve(max_workers=2, threads=1, max_reqs_per_child=1) as server:
        slow = [Gate(server, tmp_path, number) for number in (1, 2)]
        busy = {line.split()[-1].encode() for line in server.output}
        assert len(busy) == 2
        assert server.get()[1] not in busy
        assert [gate.open() for gate in slow] == [200, 200]


# INT or QUIT kills the parent alone, and leaves orphans that serve.
@pytest.mark.parametrize("name", ["INT", "QUIT"])
def test_d09_no_signal_to_the_parent_leaves_orphans(name: str, serve: Callable[..., LiveServer]) -> None:
    with serve(max_workers=2) as server:
        workers, address = server.worker_pids, server.address
        server.send(signal.Signals[f"SIG{name}"])
        assert server.wait() == 0
        wait_until_gone(workers)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)


# The first worker that retires removes the file of the UNIX socket, and nobody reaches the server any more.
def test_d11_a_worker_that_retires_leaves_the_socket_where_it_is(
    serve: Callable[..., LiveServer], tmp_path: Path
) -> None:
    path = tmp_path / "shop.sock"
    with serve(bind=f"unix:{path}") as server:
        made = path.stat().st_ino
        for _ in range(2):
            (worker,) = server.worker_pids
            server.send(signal.SIGTERM, to=worker)
            server.wait_for("worker.exited", child_pid=worker)
            assert path.stat().st_ino == made
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(20)
                client.connect(str(path))
                client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
        server.stop()
        assert not path.exists()  # the process that made it removes it


# The parent waits without limit for its workers, even for an idle client, and a second TERM changes nothing.
def test_d13_what_outlives_the_graceful_timeout_is_killed_and_named(serve: Callable[..., LiveServer]) -> None:
    with serve(max_workers=2, graceful_timeout=5) as server:
        idle, stuck = (HTTPConnection(*server.address, timeout=20) for _ in range(2))
        idle.request("GET", "/")
        idle.getresponse().read()
        stuck.request("GET", "/stuck")
        worker = int(server.wait_for_output("stuck").split()[1])
        assert server.stop() == 0
        with pytest.raises(ConnectionError):
            stuck.getresponse()
        assert [record["child_pid"] for record in server.all("worker.killed", code="PF436")] == [worker]
        assert server.all("worker.exited", child_pid=worker, signal="SIGKILL", code="PF438")
        idle.close()
        stuck.close()


def test_d13_an_idle_client_does_not_hold_a_stop_up(serve: Callable[..., LiveServer]) -> None:
    with serve(graceful_timeout=60) as server:
        idle = HTTPConnection(*server.address, timeout=20)
        idle.request("GET", "/")
        idle.getresponse().read()
        assert server.stop(timeout=10) == 0
        assert not server.all("worker.killed")
        idle.close()


# Nothing but the time for a head is limited.
@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(b"GET /" + b"x" * 100_000, 414, id="length of the request line"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100_000, 431, id="length of the fields"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 101 + b"\r\n", 431, id="number of fields"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n", 413, id="length of the body"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n", 413, id="chunks"),
    ],
)
def test_d14_each_phase_of_a_request_has_its_limit(data: bytes, status: int, serve: Callable[..., LiveServer]) -> None:
    with serve(max_body_size=1000) as server:
        assert exchange(server, data).startswith(b"HTTP/1.1 %d " % status)
        assert server.get()[0] == 200


@pytest.mark.parametrize(
    ("data", "limit"),
    [
        pytest.param(b"GET / HT", "head_timeout", id="head"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n1", "body_timeout", id="body"),
    ],
)
def test_d14_each_phase_of_a_request_has_its_time(data: bytes, limit: str, serve: Callable[..., LiveServer]) -> None:
    with serve(**{limit: 1.5}) as server:
        assert exchange(server, data).startswith(b"HTTP/1.1 408 ")
        assert server.get()[0] == 200


def test_d14_an_answer_that_nobody_takes_has_its_limit(serve: Callable[..., LiveServer]) -> None:
    with serve(write_timeout=0.5) as server, socket.create_connection(server.address, timeout=20) as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        reset = select.poll()
        reset.register(client, 0)
        assert reset.poll(20_000)
        assert server.get()[0] == 200


# It is preforked, and says that it is not.
def test_d15_multiprocess_is_true(serve: Callable[..., LiveServer]) -> None:
    with serve() as server:
        assert server.get("/multiprocess") == (200, b"True")


# What two readers may read differently is answered.
@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", id="length and chunks"),
        pytest.param(b"Content-Length: 3\r\nContent-Length: 5\r\n", id="two lengths"),
        pytest.param(b"Content-Length : 3\r\n", id="space before the colon"),
        pytest.param(b"X: a\r\n b\r\nContent-Length: 3\r\n", id="folded line"),
    ],
)
@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_d16_an_ambiguous_request_is_refused_and_the_connection_closed(
    fields: bytes, http: str, serve: Callable[..., LiveServer]
) -> None:
    with serve(http=http) as server:
        received = exchange(server, b"POST / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n")
        assert received.startswith(b"HTTP/1.1 400 ")
        assert received.count(b"HTTP/1.1") == 1


def exchange(server: LiveServer, data: bytes) -> bytes:
    """Send, and return all that comes until the server closes."""
    received = b""
    with socket.create_connection(server.address, timeout=20) as client, suppress(ConnectionResetError):
        client.sendall(data)
        while piece := client.recv(65536):
            received += piece
    return received
