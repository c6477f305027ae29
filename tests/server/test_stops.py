"""Who is answered when the pool stops?"""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
from collections import Counter
from contextlib import suppress
from functools import partial
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Self

import pytest
from server_process import A_MINUTE, PATIENCE, UNHURRIED, LiveServer, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def ask_until_refused(address: tuple[str, int] | str, tally: Counter[str]) -> None:
    """Ask on one connection after the other, without a pause, and count what became of each."""
    while not tally["refused"]:
        with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as client:
            client.settimeout(PATIENCE)
            tally[ask(client, address)] += 1


def ask(client: socket.socket, address: tuple[str, int] | str) -> str:
    try:
        client.connect(address)
    except (ConnectionRefusedError, FileNotFoundError):
        return "refused"
    try:
        client.sendall(REQUEST)
        received = b"".join(iter(lambda: client.recv(4096), b""))
    except OSError as error:
        return type(error).__name__
    return "answered" if received.startswith(b"HTTP/1.1 200 OK") else f"got {received!r}"


@pytest.mark.parametrize(
    ("interface", "family"), [("wsgi", "tcp"), ("wsgi", "unix"), ("asgi", "tcp")], indirect=["interface"]
)
@pytest.mark.usefixtures("interface")
def test_every_connection_that_was_let_in_is_answered_when_the_pool_stops_under_load(
    write_app: Callable[..., Path], tmp_path: Path, family: str
) -> None:
    path = str(tmp_path / "sock")
    bind = "127.0.0.1:0" if family == "tcp" else f"unix:{path}"
    flags = ("--app-dir", str(write_app(UNHURRIED)), "-w", "2", "--max-reqs-per-child", "0")
    for _ in range(4):
        with LiveServer.of("sample:app", f"--bind={bind}", *flags) as server:
            address = server.address if family == "tcp" else path
            tally: Counter[str] = Counter()
            clients = [threading.Thread(target=ask_until_refused, args=(address, tally)) for _ in range(16)]
            for client in clients:
                client.start()
            while tally["answered"] < 200:
                clients[0].join(0.01)
            assert server.stop() == 0
            for client in clients:
                client.join(PATIENCE)
        assert set(tally) == {"answered", "refused"}, tally


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_that_is_asked_for_again_as_the_process_ends_does_not_change_its_status(
    write_app: Callable[..., Path], number: signal.Signals
) -> None:
    with LiveServer.of("sample:app", "--app-dir", str(write_app()), "-w", "1") as server:
        server.process.send_signal(number)
        server.wait_for("pool.stopped")
        while server.process.poll() is None:
            server.process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                server.process.wait(0.001)
        assert server.process.returncode == 0


@pytest.mark.over_both
def test_a_kept_connection_is_answered_once_more_when_the_pool_stops(write_app: Callable[..., Path]) -> None:
    with LiveServer.of("sample:app", "--app-dir", str(write_app(UNHURRIED)), "-w", "1") as server:
        request = REQUEST.replace(b"Connection: close\r\n", b"")
        with socket.create_connection(server.address, timeout=PATIENCE) as client:
            client.sendall(request)
            assert client.recv(4096).startswith(b"HTTP/1.1 200 OK")
            server.process.terminate()
            server.wait_for("pool.stopping")
            answer = b""
            while b"Connection: close" not in answer:  # the worker hears of it a moment later
                client.sendall(request)
                answer = client.recv(4096)
                assert answer.startswith(b"HTTP/1.1 200 OK")
            assert client.recv(4096) == b""
        assert server.wait() == 0


@pytest.mark.over_both
def test_who_waits_in_the_queue_when_the_pool_stops_is_answered(write_app: Callable[..., Path]) -> None:
    app = """
def slow(environ, start_response):
    sys.stderr.write("slow\\n")
    time.sleep(0.05)
    return app(environ, start_response)
"""
    flags = ("--app-dir", str(write_app(app)), "-w", "1", "-t", "1")
    with LiveServer.of("sample:slow", *flags) as server:
        clients = [socket.create_connection(server.address, timeout=PATIENCE) for _ in range(25)]
        for client in clients:
            client.sendall(REQUEST)
        server.wait_for_output("slow")  # one is served, 24 wait
        server.process.terminate()
        answers = Counter(b"".join(iter(partial(client.recv, 4096), b""))[:15] for client in clients)
        for client in clients:
            client.close()
        assert server.wait() == 0
    assert answers == {b"HTTP/1.1 200 OK": 25}


# With a delay, for a balancer that hears of the stop later.


class Balancer:
    """Goes on sending, on kept connections and on new ones, and opens a new one where the answer said to close."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.answers: Counter[tuple[str, bool]] = Counter()  # what came, and whether it said to close
        self.told = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(place % 2 == 0,)) for place in range(8)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.told.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def total(self, *, close: bool) -> int:
        return sum(count for (_, said), count in self.answers.items() if said is close)

    def _send(self, keep: bool) -> None:
        connection = HTTPConnection(*self.address, timeout=PATIENCE)
        while not self.told.wait(0.002):
            if not keep:
                connection.close()
            try:
                connection.request("GET", "/")
                response = connection.getresponse()
                response.read()
                self.answers[str(response.status), response.getheader("Connection") == "close"] += 1
            except (OSError, HTTPException) as error:
                self.answers[type(error).__name__, False] += 1
                connection.close()
        connection.close()


@pytest.mark.over_both
def test_a_balancer_that_hears_late_of_the_stop_sees_no_error(write_app: Callable[..., Path]) -> None:
    # Few requests each, so that workers are replaced while the stop waits.
    flags = ("--app-dir", str(write_app()), "-w", "2", "--max-reqs-per-child", "40", "--stop-delay", "600")
    with LiveServer.of("sample:app", *flags) as server:
        with Balancer(server.address) as balancer:
            until(lambda: balancer.total(close=False) > 100)
            server.process.terminate()
            delayed = server.wait_for("pool.stop_delayed")
            assert (delayed["signal"], delayed["delay_s"]) == ("TERM", 600.0)
            server.wait_for("worker.ready", count=len(server.all("worker.ready")) + 2)
            server.process.terminate()
            before = balancer.total(close=True)
            until(lambda: balancer.total(close=True) > before + 100)
        assert not server.all("pool.stopping")
        assert server.stop(signal.SIGINT) == 0  # sooner than the delay, for the test's sake
        assert len(server.all("pool.stopping")) == 1
    assert {what for what, _ in balancer.answers} == {"200"}


@pytest.mark.over_both
def test_an_interrupt_ends_a_stop_that_waits(write_app: Callable[..., Path]) -> None:
    with LiveServer.of("sample:app", "--app-dir", str(write_app()), "-w", "1", "--stop-delay", "600") as server:
        server.process.terminate()
        server.wait_for("pool.stop_delayed")
        assert server.get()[0] == 200
        assert server.stop(signal.SIGINT) == 0


def test_a_pool_that_is_stopped_does_not_wait_for_an_import(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(f"import os, time\nos.write(1, b'imports\\n')\n{A_MINUTE}\n")
    with LiveServer.pool("slow:app", app_dir=str(tmp_path), preload=False, where={"ready": ""}) as server:
        server.wait_for_output("imports")
        assert server.stop() == 0
        assert server.all("worker.exited", exit_code=0, expected=True)
        assert not server.all("worker.killed")


@pytest.mark.parametrize(("name", "graceful"), [("TERM", True), ("INT", False)])
def test_a_pool_that_is_stopped_while_its_parent_imports_says_by_what(
    tmp_path: Path, name: str, *, graceful: bool
) -> None:
    (tmp_path / "slow.py").write_text(f"import os, time\nos.write(1, b'imports\\n')\n{A_MINUTE}\n")
    with LiveServer.pool("slow:app", app_dir=str(tmp_path), where={"ready": ""}) as server:
        server.wait_for_output("imports")
        assert server.stop(signal.Signals[f"SIG{name}"]) == 0
        assert server.all("pool.stopping", signal=name, graceful=graceful, timeout_s=0)
        assert [record["event"] for record in server.records][-2:] == ["pool.stopping", "pool.stopped"]


def test_who_waits_for_the_first_worker_is_answered_although_the_pool_stops(
    write_app: Callable[..., Path], tmp_path: Path
) -> None:
    app_dir = write_app("os.write(1, b'imports\\n')\nwhile not os.path.exists('go'): time.sleep(0.01)\n")
    where = {"ready": "pool.listening", "cwd": tmp_path}
    with LiveServer.pool("sample:app", app_dir=str(app_dir), preload=False, max_workers=1, where=where) as server:
        server.wait_for_output("imports")
        with socket.create_connection(server.address, timeout=PATIENCE) as client:
            client.sendall(REQUEST)
            server.process.terminate()
            server.wait_for("pool.stopping")
            (tmp_path / "go").touch()
            assert client.recv(4096).startswith(b"HTTP/1.1 200 OK")
        assert server.wait() == 0
