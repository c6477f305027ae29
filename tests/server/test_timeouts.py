"""What becomes of a request that takes too long, of its worker, and of those beside it?"""

from __future__ import annotations

import socket
import threading
from collections import Counter
from contextlib import ExitStack
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from typing import TYPE_CHECKING, Any

import pytest
from server_process import LiveServer, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZE = 12_000_000
APP = """
import io, threading

SIZE = 12_000_000

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def never_comes():
    threading.Event().wait(600)

def wait_for(name):
    while not os.path.exists(os.path.join(os.path.dirname(__file__), name)):
        time.sleep(0.01)

def say_when_this_thread_is_gone():
    thread = threading.current_thread()
    threading.Thread(target=lambda: (thread.join(), say("went its way")), daemon=True).start()

class Closing(list):
    def close(self):
        never_comes()

class ClosingFile(io.FileIO):
    def close(self):
        if not self.closed:
            never_comes()

def app(environ, start_response):
    path = environ["PATH_INFO"]
    say("in", path, os.getpid())
    if path.startswith("/stuck"):
        never_comes()
    if path == "/late":
        wait_for("open")
    if path == "/extended":
        environ["prefork.extend_deadline"](60)
        wait_for("open")
    if path.startswith("/sleep"):
        time.sleep(float(environ["QUERY_STRING"]))
    if path == "/held":
        environ["prefork.exit_guard"].begin("until it is free")
        threading.Thread(target=lambda: (wait_for("free"), environ["prefork.exit_guard"].end())).start()
    start_response("200 OK", [("Content-Type", "text/plain")])
    if path == "/begun":
        def body():
            yield b"begun"
            never_comes()
        return body()
    if path == "/closing":
        return Closing([b"whole"])
    if path == "/large":
        return Closing([b"x" * SIZE])
    if path == "/pieces":
        def pieces():
            for _ in range(12):
                yield b"x" * (SIZE // 12)
            never_comes()
        return pieces()
    if path == "/file":
        name = os.path.join(os.path.dirname(__file__), "file")
        with open(name, "wb") as file:
            file.truncate(SIZE)
        return environ["wsgi.file_wrapper"](ClosingFile(name))
    if path == "/late":
        say_when_this_thread_is_gone()
    return [path.encode() if path.startswith("/sleep") else b"%d" % os.getpid()]
"""

RETURNS = """
class Returning(list):
    def close(self):
        if self.late:
            while self.client.sock.fileno() >= 0:
                time.sleep(0.01)
            say("back")
        else:
            wait_for("open")
        raise OSError("behind the answer")

stuck_app = app
def app(environ, start_response):
    if environ["PATH_INFO"] != "/returns":
        return stuck_app(environ, start_response)
    start_response("200 OK", [])
    answer = Returning([b"x" * SIZE])
    answer.late, answer.client = environ["QUERY_STRING"] == "late", environ["prefork.client_gone"].__self__
    say_when_this_thread_is_gone()
    return answer
"""
SLOW_FILE = """
class SlowFile(io.FileIO):
    def close(self):
        if not self.closed:
            time.sleep(2.2)
            super().close()

quick_app = app
def app(environ, start_response):
    if environ["PATH_INFO"] != "/slow-file":
        return quick_app(environ, start_response)
    time.sleep(2.2)
    start_response("200 OK", [])
    return environ["wsgi.file_wrapper"](SlowFile(__file__))
"""


@pytest.fixture
def serve(write_app: Callable[..., Path]) -> Callable[..., LiveServer]:
    """Return a server of the app above, with options."""

    def serve(more: str = "", **options: Any) -> LiveServer:
        options = {"max_workers": 1, "request_timeout": 1, **options}
        return LiveServer.pool("sample:app", app_dir=str(write_app(APP + more)), **options)

    return serve


def send(server: LiveServer, path: str, *, method: str = "GET") -> socket.socket:
    client = socket.create_connection(server.address, timeout=20)
    ask(client, path, method=method)
    return client


def ask(client: socket.socket, path: str, *, method: str = "GET") -> None:
    client.sendall(f"{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())


def answer(client: socket.socket) -> tuple[int, bytes]:
    response = HTTPResponse(client)
    response.begin()
    return response.status, response.read()


def test_a_request_that_takes_too_long_is_answered_for_and_its_worker_replaced(
    serve: Callable[..., LiveServer],
) -> None:
    with serve() as server:
        (worker,) = server.worker_pids
        client = send(server, "/stuck?token=secret", method="PUT")
        assert answer(client) == (504, b"504 Gateway Timeout: the request took too long\n")
        assert client.recv(1) == b""
        record = server.wait_for("request.timeout", pid=worker)
        assert (record["method"], record["path"], record["status"], record["code"]) == ("PUT", "/stuck", 504, "PF502")
        assert record["level"] == "error"
        assert record["age_s"] >= 1
        assert "in never_comes" in record["stack"]
        assert server.wait_for("worker.retiring", child_pid=worker)["reason"] == "request_timeout"
        gone = server.wait_for("worker.exited", child_pid=worker)
        assert (gone["exit_code"], gone["expected"], gone["reason"], gone["stuck"]) == (0, True, "request_timeout", 1)
        assert server.get()[1] != b"%d" % worker
        client.close()


def test_the_other_requests_of_the_worker_come_to_their_end(serve: Callable[..., LiveServer], tmp_path: Path) -> None:
    with serve() as server:
        (worker,) = server.worker_pids
        extended = send(server, "/extended")
        server.wait_for_output("in /extended")
        stuck = [send(server, f"/stuck/{n}") for n in range(2)]
        for client in stuck:
            assert answer(client)[0] == 504
        until(lambda: server.get()[1] != b"%d" % worker)
        (tmp_path / "open").touch()
        assert answer(extended) == (200, b"%d" % worker)
        gone = server.wait_for("worker.exited", child_pid=worker)
        assert (gone["exit_code"], gone["stuck"]) == (0, 2)
        for client in [extended, *stuck]:
            client.close()


def test_an_answer_that_had_begun_is_cut(serve: Callable[..., LiveServer]) -> None:
    with serve() as server:
        client = send(server, "/begun")
        with pytest.raises(IncompleteRead):
            answer(client)
        assert server.wait_for("request.timeout")["status"] is None
        server.wait_for("worker.exited", exit_code=0)
        client.close()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("early", [False, True])
def test_a_client_who_has_its_whole_answer_is_served_on_although_the_application_is_stuck_behind_it(
    serve: Callable[..., LiveServer], threads: int, *, early: bool
) -> None:
    with serve(threads=threads) as server, send(server, "/closing") as client:
        assert answer(client) == (200, b"whole")
        if early:
            ask(client, "/")
        assert "in close" in server.wait_for("request.timeout")["stack"]
        if not early:
            ask(client, "/")
        assert answer(client)[0] == 200
        gone = server.wait_for("worker.exited", reason="request_timeout")
        assert (gone["exit_code"], gone["stuck"]) == (0, 1)
        ask(client, "/")
        assert answer(client)[0] == 200


@pytest.mark.parametrize("threads", [1, 4])
def test_of_several_who_have_their_whole_answers_none_is_lost_with_the_worker(
    serve: Callable[..., LiveServer], threads: int
) -> None:
    with serve(threads=threads) as server, ExitStack() as open_ones:
        clients = [open_ones.enter_context(send(server, "/closing")) for _ in range(4)]
        for client in clients:
            assert answer(client) == (200, b"whole")
            ask(client, "/")
        server.wait_for("request.timeout", count=4)
        assert [answer(client)[0] for client in clients] == [200] * 4


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("path", ["/large", "/file"])
def test_a_whole_answer_of_which_a_part_still_waits_arrives_although_the_application_is_stuck_behind_it(
    serve: Callable[..., LiveServer], path: str, threads: int
) -> None:
    with serve(threads=threads, request_timeout=3) as server, send(server, path) as client:
        record = server.wait_for("request.timeout")
        assert "in never_comes" in record["stack"]
        assert record["status"] is None
        status, body = answer(client)
        assert (status, len(body)) == (200, SIZE)
        assert client.recv(1) == b""
        server.wait_for("worker.exited", exit_code=0, stuck=1)


def test_who_comes_back_behind_a_whole_answer_takes_nothing_of_it(
    serve: Callable[..., LiveServer], tmp_path: Path
) -> None:
    with serve(RETURNS, threads=1, request_timeout=1) as server, send(server, "/returns") as client:
        server.wait_for("request.timeout")
        (tmp_path / "open").touch()
        server.wait_for("request.failed")
        server.wait_for_output("went its way")
        status, body = answer(client)
        assert (status, len(body)) == (200, SIZE)
        assert client.recv(1) == b""
        gone = server.wait_for("worker.exited", reason="request_timeout")
        assert gone["exit_code"] == 0
        assert "stuck" not in gone


def test_who_comes_back_when_the_connection_is_closed_behind_his_answer_harms_nobody(
    serve: Callable[..., LiveServer], tmp_path: Path
) -> None:
    with serve(RETURNS, request_timeout=1) as server, send(server, "/held") as held:
        assert answer(held)[0] == 200
        with send(server, "/returns?late") as client:
            server.wait_for("request.timeout")
            assert len(answer(client)[1]) == SIZE
            server.wait_for_output("back")
        server.wait_for_output("went its way")
        (tmp_path / "free").touch()
        gone = server.wait_for("worker.exited", reason="request_timeout")
        assert gone["exit_code"] == 0
        assert "stuck" not in gone


def test_an_answer_has_its_time_once_more_behind_a_file(serve: Callable[..., LiveServer], tmp_path: Path) -> None:
    with serve(SLOW_FILE, request_timeout=4) as server:
        client = send(server, "/slow-file")
        assert answer(client)[0] == 200
        ask(client, "/")
        assert answer(client)[0] == 200
        assert not server.all("request.timeout")
        client.close()


def test_the_time_for_which_a_thread_waits_for_its_client_is_not_that_of_the_application(
    serve: Callable[..., LiveServer],
) -> None:
    spool = "import prefork.outbox\nprefork.outbox.SPOOL = 1_000_000"
    with serve(spool, request_timeout=1) as server, send(server, "/pieces") as client:
        server.wait_for_output("in /pieces")
        threading.Event().wait(1.5)  # until its client takes something
        assert not server.all("request.timeout")
        with pytest.raises(IncompleteRead):
            answer(client)
        assert "in never_comes" in server.wait_for("request.timeout")["stack"]


def test_a_head_request_is_answered_for_without_a_body(serve: Callable[..., LiveServer]) -> None:
    with serve() as server:
        client = send(server, "/stuck", method="HEAD")
        received = client.makefile("rb").read()
        assert received.startswith(b"HTTP/1.1 504 ")
        assert received.endswith(b"\r\n\r\n")
        client.close()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_worker_whose_threads_are_all_stuck_passes_on_who_else_is_there(
    serve: Callable[..., LiveServer], threads: int
) -> None:
    with serve(threads=threads) as server:
        (worker,) = server.worker_pids
        idle = [send(server, "/") for _ in range(3)]
        assert [answer(client) for client in idle] == [(200, b"%d" % worker)] * 3
        stuck = [send(server, f"/stuck/{n}") for n in range(threads)]
        for n in range(threads):
            server.wait_for_output(f"in /stuck/{n}")
        for client in idle:
            ask(client, "/")
        newcomers = [send(server, "/") for _ in range(3)]
        assert [answer(client)[0] for client in [*idle, *newcomers]] == [200] * 6
        assert [answer(client)[0] for client in stuck] == [504] * threads
        gone = server.wait_for("worker.exited", child_pid=worker)
        assert (gone["exit_code"], gone["stuck"]) == (0, threads)
        for client in idle:
            ask(client, "/")
            assert answer(client)[0] == 200
        for client in [*idle, *newcomers, *stuck]:
            client.close()


def test_a_worker_without_a_limit_whose_threads_are_all_busy_leaves_who_is_idle_to_its_siblings(
    serve: Callable[..., LiveServer],
) -> None:
    with serve(threads=1, max_workers=2, request_timeout=0, graceful_timeout=0.1) as server:
        idle = [send(server, "/") for _ in range(8)]
        assert [answer(client)[0] for client in idle] == [200] * 8
        stuck = idle.pop()
        ask(stuck, "/stuck")
        server.wait_for_output("in /stuck")
        threading.Event().wait(0.5)  # longer than a monitor stays awake that has nothing to do
        for client in idle:
            ask(client, "/")
        assert [answer(client)[0] for client in idle] == [200] * 7
        for client in [*idle, stuck]:
            client.close()


def test_what_a_thread_says_that_was_given_up_is_heard_by_nobody(
    serve: Callable[..., LiveServer], tmp_path: Path
) -> None:
    with serve() as server:
        held = send(server, "/held")
        assert answer(held)[0] == 200
        client = send(server, "/late")
        assert answer(client)[0] == 504
        (tmp_path / "open").touch()
        server.wait_for_output("went its way")
        (tmp_path / "free").touch()
        assert client.recv(1) == b""
        gone = server.wait_for("worker.exited", reason="request_timeout")
        assert "stuck" not in gone
        assert not server.all("request.failed")
        held.close()
        client.close()


def test_without_a_limit_more_time_can_be_asked_for_as_well(serve: Callable[..., LiveServer], tmp_path: Path) -> None:
    (tmp_path / "open").touch()
    with serve(request_timeout=0) as server:
        assert server.get("/extended")[0] == 200


@pytest.mark.over_both
def test_each_request_is_answered_once_however_close_to_its_limit_it_ends(serve: Callable[..., LiveServer]) -> None:
    told: list[tuple[str, int, bytes]] = []
    again: list[tuple[str, int, bytes]] = []

    def ask(connection: HTTPConnection, path: str, seconds: float, answers: list[tuple[str, int, bytes]]) -> int:
        connection.request("GET", f"{path}?{seconds}")
        response = connection.getresponse()
        answers.append((path, response.status, response.read()))
        return response.status

    def ask_again_and_again(number: int) -> None:
        for turn in range(25):
            # From a little less than the limit to a little more.
            seconds = 0.046 + (turn * 7 + number) % 12 * 0.001
            path = f"/sleep/{number}/{turn}"
            host, port = server.address
            connection = HTTPConnection(host, port, timeout=20)
            if ask(connection, path, seconds, told) == 200:
                ask(connection, f"{path}/again", 0, again)
            connection.close()

    with serve(request_timeout=0.05, max_workers=2, threads=2) as server:
        clients = [threading.Thread(target=ask_again_and_again, args=(number,)) for number in range(6)]
        for client in clients:
            client.start()
        for client in clients:
            client.join(60)
        server.stop()
        statuses = Counter(status for _, status, _ in told)
        assert sum(statuses.values()) == 150
        assert len(again) == statuses[200]
        assert all(body == path.encode() for path, status, body in told + again if status == 200)
        assert set(statuses) == {200, 504}
        answered_for = Counter(record["path"] for record in server.all("request.timeout", status=504))
        assert answered_for == Counter(path for path, status, _ in told + again if status == 504)
        assert all(record["exit_code"] == 0 for record in server.all("worker.exited"))
        assert not server.all("request.failed")
