"""What if there is more to do than the workers manage, or nobody waits for it any more?"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from contextlib import ExitStack
from http.client import HTTPResponse
from select import POLLOUT, poll
from typing import TYPE_CHECKING, Any

import pytest
from server_process import LiveServer, put_to_sleep, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

APP = """
import resource, socket

def wait_at_the_gate():
    with open(os.path.join(os.path.dirname(__file__), "gate")):
        pass

def app(environ, start_response):
    path = environ["PATH_INFO"]
    os.write(1, path.encode() + b"\\n")
    if path == "/gate":
        wait_at_the_gate()
    if path == "/until-gone":
        while not environ["prefork.client_gone"]():
            time.sleep(0.01)
        os.write(1, b"gone\\n")
    if path == "/descriptors":
        spare = [socket.socket() for _ in range(3)]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(environ.get("prefork.client_gone", bool)()).encode()]

async def asgi(scope, receive, send):
    if scope["type"] == "http":
        os.write(1, scope["path"].encode() + b"\\n")
        if scope["path"] == "/gate":
            wait_at_the_gate()  # so that nobody else is served meanwhile
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"False"})

def crowded(worker):
    resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))
"""
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel does not tell")


@pytest.fixture
def serve(write_app: Callable[..., Path]) -> Callable[..., LiveServer]:
    def serve(app: str = "app", *, more: str = "", **options: Any) -> LiveServer:
        options = {"max_workers": 1, "threads": 1, "max_reqs_per_child": 0, **options}
        return LiveServer.pool(f"sample:{app}", app_dir=str(write_app(APP + more)), **options)

    return serve


def send(server: LiveServer, path: str, *, method: str = "GET", body: bytes | None = None) -> socket.socket:
    client = socket.create_connection(server.address, timeout=20)
    ask(client, path, method=method, body=body)
    return client


def ask(client: socket.socket, path: str, *, method: str = "GET", body: bytes | None = None) -> None:
    length = "" if body is None else f"Content-Length: {len(body)}\r\n"
    client.sendall(f"{method} {path} HTTP/1.1\r\nHost: a\r\n{length}\r\n".encode() + (body or b""))


def answer(client: socket.socket, method: str = "GET") -> tuple[int, bytes]:
    response = HTTPResponse(client, method=method)
    response.begin()
    assert response.getheader("Retry-After") == ("1" if response.status == 503 else None)
    return response.status, response.read()


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "gate")
    return tmp_path / "gate"


BUSY = b"503 Service Unavailable: too much to do\n"


@linux
def test_who_waited_too_long_is_told_so_and_the_application_is_spared(
    serve: Callable[..., LiveServer], gate: Path
) -> None:
    with serve(queue_timeout=2.5, access_log="-") as server, ExitStack() as clients:
        kept = clients.enter_context(send(server, "/early"))
        assert answer(kept) == (200, b"False")
        busy = clients.enter_context(send(server, "/gate"))
        server.wait_for_output("/gate")
        ask(kept, "/late")
        head = clients.enter_context(send(server, "/late", method="HEAD"))
        body = clients.enter_context(send(server, "/late", method="POST", body=b"tea"))
        send(server, "/left").close()
        threading.Event().wait(2.8)
        with gate.open("w"):
            pass
        assert answer(busy) == (200, b"False")
        assert answer(kept) == answer(body) == (503, BUSY)
        assert answer(head, "HEAD") == (503, b"")
        assert body.recv(1) == b""
        ask(kept, "/again")
        assert answer(kept) == (200, b"False")
        server.stop()
        assert server.output == ["/early", "/gate", "/again"]
        told: dict[str, int] = {}
        for record in server.all("worker.overloaded", code="PF504"):
            told[record["reason"]] = told.get(record["reason"], 0) + record["turned_away"]
        assert told == {"queue_timeout": 3, "client_gone": 1}
        lines = [
            (record["method"], record["path"], record["queue_s"] > 2.5)
            for record in server.all("request.finished", outcome="turned_away", status=503)
        ]
        assert sorted(lines) == [("GET", "/late", True), ("HEAD", "/late", True)]
        assert len(server.all("request.finished", path="/left", outcome="client_gone", status=499)) == 1


@linux
def test_an_asgi_application_is_spared_as_well(serve: Callable[..., LiveServer], gate: Path) -> None:
    with serve("asgi", queue_timeout=2.5, access_log="-", request_id=True) as server, ExitStack() as clients:
        kept, busy, body = [clients.enter_context(send(server, "/early")) for _ in range(3)]
        assert answer(kept) == answer(busy) == answer(body) == (200, b"False")
        ask(busy, "/gate")
        server.wait_for_output("/gate")
        ask(kept, "/late")
        ask(body, "/late", method="POST", body=b"tea")
        send(server, "/left").close()
        threading.Event().wait(2.8)
        with gate.open("w"):
            pass
        assert answer(busy) == (200, b"False")
        assert answer(kept) == answer(body) == (503, BUSY)
        ask(kept, "/again")
        assert answer(kept) == (200, b"False")
        server.stop()
        assert not {"/late", "/left"} & set(server.output)
        (left,) = server.all("request.finished", path="/left")
        assert (left["outcome"], left["status"]) == ("client_gone", 499)
        (late,) = server.all("request.finished", path="/late")
        assert (late["outcome"], late["status"], late["response_bytes"]) == ("turned_away", 503, len(BUSY))
        assert late["queue_s"] > 2.5
        assert len({record["request_id"] for record in server.all("request.finished")}) == 7
        assert sum(record["turned_away"] for record in server.all("worker.overloaded", reason="queue_timeout")) == 2


@linux
def test_what_was_sent_ahead_waits_for_nobody_but_itself(serve: Callable[..., LiveServer], gate: Path) -> None:
    with serve(queue_timeout=2.5) as server, send(server, "/gate") as client:
        ask(client, "/next")
        server.wait_for_output("/gate")
        threading.Event().wait(2.8)
        with gate.open("w"):
            pass
        assert answer(client) == (200, b"False")
        assert server.wait_for_output("/next")


def test_an_application_may_ask_whether_its_client_is_gone(serve: Callable[..., LiveServer]) -> None:
    with serve(threads=2) as server:
        client = send(server, "/until-gone")
        server.wait_for_output("/until-gone")
        assert server.get() == (200, b"False")
        assert "gone" not in server.output
        client.close()
        server.wait_for_output("gone", count=2)
        assert not server.all("request.failed")


@pytest.mark.over_both
def test_who_is_one_too_many_is_told_at_once_and_the_others_go_on(serve: Callable[..., LiveServer]) -> None:
    with serve(limit_concurrency=3) as server, ExitStack() as clients:
        inside = [clients.enter_context(send(server, "/")) for _ in range(3)]
        assert [answer(client)[0] for client in inside] == [200] * 3
        for method in ("GET", "HEAD"):
            with send(server, "/no-room", method=method) as client:
                assert answer(client, method) == (503, BUSY if method == "GET" else b"")
                assert client.recv(1) == b""
        with socket.create_connection(server.address, timeout=20) as silent:
            assert answer(silent) == (503, BUSY)
        for client in inside:
            ask(client, "/")
            assert answer(client)[0] == 200
        inside.pop().close()
        until(lambda: server.get("/room")[0] == 200)
        assert "/no-room" not in server.output
        assert server.wait_for("worker.overloaded", reason="limit_concurrency")["turned_away"] >= 1


PATIENT = """
import prefork.reception
prefork.reception.SIBLINGS_FIRST = 2.0
"""


@pytest.mark.over_both
def test_who_is_one_too_many_for_a_worker_is_served_by_a_sibling(serve: Callable[..., LiveServer]) -> None:
    # Patient, for on a busy machine a sibling may not run for longer than it is waited for.
    with serve(limit_concurrency=5, max_workers=2, more=PATIENT) as server, ExitStack() as clients:
        crowd = [clients.enter_context(send(server, "/")) for _ in range(10)]
        assert [answer(client)[0] for client in crowd] == [200] * 10
        with send(server, "/") as client:
            assert answer(client)[0] == 503
        for client in crowd:
            ask(client, "/")
        assert [answer(client)[0] for client in crowd] == [200] * 10


def test_who_finds_the_queue_full_is_served_when_there_is_room(serve: Callable[..., LiveServer]) -> None:
    """The kernel drops what comes, and the client's kernel tries again after a second."""
    with serve(backlog=2) as server, ExitStack() as clients:
        (worker,) = server.worker_pids
        put_to_sleep(worker)
        crowd = [clients.enter_context(socket.socket()) for _ in range(8)]
        for client in crowd:
            client.setblocking(False)
            client.connect_ex(server.address)
        within = poll()
        for client in crowd:
            within.register(client, POLLOUT)
        assert len(within.poll(100)) <= 3
        os.kill(worker, signal.SIGCONT)
        until(lambda: len(within.poll(100)) == len(crowd))
        for client in crowd:
            client.settimeout(20)
            ask(client, "/")
            assert answer(client)[0] == 200


@pytest.mark.over_both
def test_who_says_nothing_makes_room_for_who_does(serve: Callable[..., LiveServer]) -> None:
    with serve(limit_concurrency=3) as server, ExitStack() as clients:
        silent = [clients.enter_context(socket.create_connection(server.address, timeout=20)) for _ in range(3)]
        until(lambda: server.get()[0] == 200)
        assert [client.recv(1) for client in silent] == [b""] * 3


@pytest.mark.over_both
def test_a_crowd_takes_neither_the_descriptors_of_the_application_nor_its_place(
    serve: Callable[..., LiveServer],
) -> None:
    with serve(worker_started="sample:crowded") as server, ExitStack() as clients:
        friend = clients.enter_context(send(server, "/"))
        assert answer(friend)[0] == 200
        silent = [clients.enter_context(socket.create_connection(server.address, timeout=20)) for _ in range(60)]
        server.wait_for("pool.accept_paused", code="PF501")
        ask(friend, "/descriptors")
        assert answer(friend)[0] == 200
        assert server.get("/") == (200, b"False")  # long before the silent ones have had their head_timeout
        assert [client.recv(1) for client in silent[:20]] == [b""] * 20
        # One for each round in which some leave and others come: fewer at a time where a loop has descriptors of its own.
        assert len(server.all("pool.accept_paused")) < 8
