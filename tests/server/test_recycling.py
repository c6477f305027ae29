"""When is a worker replaced, and what does a client see of it?"""

from __future__ import annotations

import signal
import socket
import threading
from collections import Counter
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from server_process import LiveServer, Tally, all_asleep, until

if TYPE_CHECKING:
    from collections.abc import Callable

APP = """
import threading

BIG = 20_000_000
eaten, guards = [], []

def shop(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/retire":
        environ["prefork.retire"]()
    if path == "/retire-again-and-again":
        threads = [threading.Thread(target=environ["prefork.retire"]) for _ in range(20)]
        for thread in threads:
            thread.start()
        environ["prefork.retire"]()
    if path == "/eat":
        eaten.append(b"x" * 60_000_000)
    if path == "/hold":
        guards.append(environ["prefork.exit_guard"])
        guards[-1].begin("a job")
    if path == "/big":
        start_response("200 OK", [("Content-Length", str(BIG))])
        return [b"x" * BIG]
    return app(environ, start_response)
"""
BIG = 20_000_000


@pytest.fixture
def serve(write_app: Callable[..., Path]) -> Callable[..., LiveServer]:
    """Return a server of the app above, with options."""

    def serve(more: str = "", **options: Any) -> LiveServer:
        folder = write_app(APP + more)
        return LiveServer.pool("sample:shop", app_dir=str(folder), **{"max_workers": 2, **options})

    return serve


def budgets(server: LiveServer) -> dict[int, int]:
    """Return how many requests each worker was given, by process id."""
    return {record["child_pid"]: record["budget"] for record in server.all("worker.spawned")}


# Why.


@pytest.mark.over_both
def test_an_app_may_have_its_worker_replaced_with_each_request(serve: Callable[..., LiveServer]) -> None:
    with serve() as server:
        pids = set()
        for count in range(1, 24):
            status, pid = server.get("/retire")
            assert status == 200
            pids.add(pid)
            gone = server.wait_for("worker.exited", count=count)
            assert (gone["child_pid"], gone["reason"], gone["exit_code"]) == (int(pid), "app", 0)
        assert len(pids) == 23
        assert len(server.all("worker.retiring", reason="app")) == 23


def test_to_ask_for_it_in_many_threads_is_to_ask_once(serve: Callable[..., LiveServer]) -> None:
    with serve(max_workers=1) as server:
        _, pid = server.get("/retire-again-and-again")
        server.wait_for("worker.exited", child_pid=int(pid), reason="app")
        assert server.get("/")[0] == 200
        assert len(server.all("worker.spawned")) == 2


def test_a_hook_may_ask_for_it_and_each_worker_serves_a_request_nevertheless(
    serve: Callable[..., LiveServer],
) -> None:
    with serve("def started(worker):\n    worker.retire()\n", worker_started="sample:started", max_workers=1) as server:
        for count in range(1, 4):
            assert server.get()[0] == 200
            assert server.wait_for("worker.exited", count=count, reason="app")["requests"] >= 1
        assert len(server.all("worker.spawned")) <= 5


@pytest.mark.over_both
@pytest.mark.parametrize("blocked_threshold", [1, 0])
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="this system does not tell")
def test_a_worker_that_has_grown_is_replaced(serve: Callable[..., LiveServer], blocked_threshold: int) -> None:
    with serve(max_memory="40M", blocked_threshold=blocked_threshold) as server:
        _, pid = server.get("/eat")
        told = server.wait_for("worker.retiring", child_pid=int(pid), reason="max_memory")
        assert 60_000_000 < told["memory_bytes"] < 200_000_000
        server.wait_for("worker.exited", child_pid=int(pid), reason="max_memory", exit_code=0)
        assert server.get()[0] == 200
        assert len(server.all("worker.retiring")) == 1


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="this system does not tell")
def test_an_idle_pool_with_limits_of_memory_and_age_sleeps(serve: Callable[..., LiveServer]) -> None:
    with serve(max_memory="1G", max_worker_age=3600) as server:
        server.get()
        watched = [psutil.Process(pid) for pid in (server.parent_pid, *server.worker_pids)]

        def nobody_wakes() -> bool:
            before = [process.num_ctx_switches().voluntary for process in watched]
            threading.Event().wait(1.5)
            return [process.num_ctx_switches().voluntary for process in watched] == before

        until(nobody_wakes)  # the last look after work is over in a moment


@pytest.mark.over_both
def test_workers_are_replaced_when_they_are_of_age_each_at_its_own_time(serve: Callable[..., LiveServer]) -> None:
    with serve(max_worker_age=1.0, max_reqs_per_child=0) as server, Tally(server) as tally:
        server.wait_for("worker.exited", count=4, reason="max_age", exit_code=0)
        ages = [record["uptime_s"] for record in server.all("worker.exited")]
        assert min(ages) >= 0.75
    assert not tally.lost
    assert set(tally.statuses) == {200}


# When.


@pytest.mark.over_both
def test_workers_that_start_together_do_not_retire_together(serve: Callable[..., LiveServer]) -> None:
    with serve(max_workers=4, max_reqs_per_child=40) as server:
        assert list(budgets(server).values()) == [40, 30, 20, 10]
        with Tally(server, keep_alive=False) as tally:
            server.wait_for("worker.exited", count=12)
            # Before the stop, which lets nobody finish its budget.
            left = server.all("worker.exited", reason="max_requests")
            given = list(budgets(server).values())
        assert given[4:] == [40] * (len(given) - 4)
    assert not tally.lost
    assert all(record["requests"] == budgets(server)[record["child_pid"]] + record["overrun"] for record in left)


@pytest.mark.over_both
def test_a_worker_whose_successors_do_not_start_serves_on_and_says_so_once(
    serve: Callable[..., LiveServer], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    more = f"if os.path.exists({str(broken)!r}):\n    raise LookupError('no database')\n"
    with serve(more, preload=False, max_workers=1, max_reqs_per_child=4) as server:
        broken.touch()
        _, pid = server.get()
        while not server.all("worker.retirement_delayed"):
            assert server.get() == (200, pid)
        server.wait_for("worker.boot_failed", count=3)
        for _ in range(10):
            assert server.get() == (200, pid)
        broken.unlink()
        gone = server.wait_for("worker.exited", child_pid=int(pid))
        assert gone["overrun"] == gone["requests"] - 4 >= 10
        (told,) = server.all("worker.retirement_delayed")
        assert (told["child_pid"], told["reason"]) == (int(pid), "its successors end before they serve")


@pytest.mark.over_both
def test_no_more_than_max_retiring_linger_and_the_next_serves_on(serve: Callable[..., LiveServer]) -> None:
    with serve(max_workers=1, max_retiring=1, max_reqs_per_child=2, graceful_timeout=0.2) as server:
        first = server.get("/hold")[1]
        server.wait_for("worker.ready", count=2)
        while (second := server.get()[1]) == first:
            pass
        told = server.wait_for("worker.retirement_delayed", code="PF435")
        assert told["child_pid"] == int(second)
        assert "max_retiring 1" in told["reason"]
        # The first may have one request of its budget left, and hears a moment later that its successor serves.
        until(lambda: {server.get() for _ in range(10)} == {(200, second)})
        assert len(server.all("worker.spawned")) == 2
        server.send(signal.SIGUSR2)  # does not wait
        server.wait_for("worker.exited", child_pid=int(second), reason="max_requests")
        assert server.get()[0] == 200


# What clients see.


@pytest.mark.parametrize(
    ("interface", "cause"),
    [("wsgi", "USR2"), ("wsgi", "app"), ("wsgi", "max_requests"), ("asgi", "max_requests")],
    indirect=["interface"],
)
@pytest.mark.usefixtures("interface")
def test_a_slow_download_through_a_retired_worker_ends_in_its_own_time(
    cause: str, serve: Callable[..., LiveServer]
) -> None:
    with serve(max_workers=1, max_reqs_per_child=4, graceful_timeout=0.2) as server:
        (worker,) = server.worker_pids
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.settimeout(20)
        client.connect(server.address)
        client.sendall(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
        response = HTTPResponse(client)
        response.begin()
        body = response.read(BIG // 10)
        if cause == "USR2":
            server.send(signal.SIGUSR2)
        elif cause == "app":
            server.get("/retire")
        else:
            for _ in range(3):
                server.get()
        server.wait_for("worker.ready", count=2)
        while server.get("/")[1] == b"%d" % worker:
            pass
        for _ in range(9):
            threading.Event().wait(0.25)  # in all ten times as long as a stop would leave it
            body += response.read(BIG // 10)
            assert server.get()[0] == 200
        assert len(body) == BIG
        client.close()
        gone = server.wait_for("worker.exited", child_pid=worker)
        assert (gone["exit_code"], gone["expected"]) == (0, True)
        assert not server.all("worker.killed")


# The acceptance tests of the original.


@pytest.mark.over_both
def test_sixty_requests_meet_more_than_four_workers(serve: Callable[..., LiveServer]) -> None:
    with serve(max_workers=3, max_reqs_per_child=10) as server:
        served = Counter[int]()
        for _ in range(60):
            status, pid = server.get()
            assert status == 200
            served[int(pid)] += 1
            # Who has served three quarters of its budget asks for a successor, which is there before the next request.
            given = budgets(server)
            asked = sum(count >= given[pid] - max(1, given[pid] // 4) for pid, count in served.items())
            server.wait_for("worker.ready", count=3 + asked)
    assert len(served) > 4


def test_without_a_limit_sixty_requests_meet_three_workers_at_most(serve: Callable[..., LiveServer]) -> None:
    with serve(max_workers=3, max_reqs_per_child=0) as server:
        answers = [server.get() for _ in range(60)]
    assert {status for status, _ in answers} == {200}
    assert len({pid for _, pid in answers}) <= 3


ECHO = "def shop(e, s):\n    s('200 OK', [])\n    return [e['wsgi.input'].read()]\n"


@pytest.mark.parametrize("size", [100, 10_000, 1_000_000])
@pytest.mark.parametrize("pause", [0, 0.1])
def test_a_body_may_come_later_than_its_head(size: int, pause: float, serve: Callable[..., LiveServer]) -> None:
    with serve(ECHO, max_workers=1) as server:
        body = b"x" * size
        connection = HTTPConnection(*server.address, timeout=20)
        connection.putrequest("POST", "/")
        connection.putheader("Content-Length", str(size))
        connection.endheaders()
        threading.Event().wait(pause)
        connection.send(body)
        response = connection.getresponse()
        assert (response.status, response.read() == body) == (200, True)
        connection.close()


@pytest.mark.parametrize("sent", [b"", b"GET / HT"], ids=["nothing", "half a line"])
def test_who_leaves_before_a_request_is_whole_is_told_nothing(sent: bytes, serve: Callable[..., LiveServer]) -> None:
    with serve(max_workers=1) as server:
        with socket.create_connection(server.address, timeout=20) as client:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1000) == b""
        assert server.get()[0] == 200


def test_a_thousand_connections_one_after_the_other_leave_nothing_open(serve: Callable[..., LiveServer]) -> None:
    with serve(max_workers=1, max_reqs_per_child=0) as server:
        server.get()
        worker = psutil.Process(server.worker_pids[0])
        until(lambda: all_asleep(worker.pid))
        before = worker.num_fds()
        for _ in range(1024):
            assert server.get()[0] == 200
        until(lambda: worker.num_fds() <= before)  # the last few may not be closed yet
