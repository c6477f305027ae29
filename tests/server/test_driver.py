"""When does an answer leave, which thread gives it, and what if a thread fails?"""

from __future__ import annotations

import _socket
import os
import signal
import socket
import sys
import threading
from collections import Counter
from fcntl import ioctl
from http.client import HTTPResponse
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
from server_process import PATIENCE, LiveServer, put_to_sleep, until

from prefork.addresses import Address
from prefork.config import Config
from prefork.exit_guard import ExitGuard
from prefork.handover import Exchange, Ticket, decode
from prefork.http1.connection import Connection
from prefork.listeners import Listener
from prefork.reception import Origin, Outfit, WorkerFacts
from prefork.records import Records
from prefork.wsgi.driver import TOGETHER, WsgiDriver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

APP = """
def wait_at_the_gate():
    with open(os.path.join(os.path.dirname(__file__), "gate")):
        pass

class Closing:
    def __init__(self, body):
        self.body = body
    def __iter__(self):
        return iter([self.body])
    def close(self):
        wait_at_the_gate()

def app(environ, start_response):
    path = environ["PATH_INFO"].encode()
    if path == b"/chunked":
        start_response("200 OK", [])
        return iter([path, path])
    write = start_response("200 OK", [("Content-Length", str(len(path)))])
    if path == b"/closing":
        return Closing(path)
    if path == b"/generator":
        def answer():
            yield path
            wait_at_the_gate()
        return answer()
    if path == b"/write":
        write(path)
        wait_at_the_gate()
        return []
    if path == b"/raises":
        def answer():
            yield path
            raise LookupError("behind the last byte")
        return answer()
    return [path]
"""


@pytest.fixture(params=[1, 2, 4], ids=["1 thread", "2 threads", "4 threads"])
def server(request: pytest.FixtureRequest, write_app: Callable[..., Path]) -> Iterator[LiveServer]:
    folder = str(write_app(APP))
    with LiveServer.pool("sample:app", app_dir=folder, max_workers=1, threads=request.param) as server:
        yield server


def ask_at_once(server: LiveServer, *paths: str) -> list[socket.socket]:
    """Ask on a connection for each, all of which the worker finds ready when it looks next."""
    clients = []
    for _ in paths:
        clients.append(socket.create_connection(server.address, timeout=20))
        assert asked(clients[-1], "/first") == b"/first"
    (worker,) = server.worker_pids
    put_to_sleep(worker)
    for client, path in zip(clients, paths, strict=True):
        client.sendall(request(path))
    os.kill(worker, signal.SIGCONT)
    return clients


def request(path: str, *, close: bool = False) -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (path.encode(), b"Connection: close\r\n" if close else b"")


def asked(client: socket.socket, path: str) -> bytes:
    client.sendall(request(path))
    return answer(client)


def answer(client: socket.socket) -> bytes:
    response = HTTPResponse(client)
    response.begin()
    return response.read()


def test_all_that_ask_at_once_are_answered(server: LiveServer) -> None:
    paths = [f"/{number}" for number in range(40)]
    clients = ask_at_once(server, *paths)
    assert [answer(client) for client in clients] == [path.encode() for path in paths]
    for client in clients:
        assert asked(client, "/again") == b"/again"
        client.close()


@pytest.mark.parametrize("path", ["/closing", "/generator", "/write"])
def test_a_complete_answer_does_not_wait_for_what_the_application_does_behind_it(
    server: LiveServer, path: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    paths = ["/a", "/b", path, "/c", "/d"]
    clients = ask_at_once(server, *paths)
    assert answer(clients[2]) == path.encode()
    with gate.open("w"):
        assert [answer(client) for client in clients if client is not clients[2]] == [b"/a", b"/b", b"/c", b"/d"]
    for client in clients:
        client.close()


def test_complete_answers_leave_although_every_thread_is_away(write_app: Callable[..., Path], tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with LiveServer.pool("sample:app", app_dir=str(write_app(APP)), max_workers=1, threads=2) as server:
        clients = ask_at_once(server, "/closing", "/a", "/closing", "/b")
        assert [answer(client) for client in clients[:3]] == [b"/closing", b"/a", b"/closing"]
        opened = os.open(gate, os.O_RDWR)  # who comes to it later passes too
        assert answer(clients[3]) == b"/b"
        for client in clients:
            client.close()
    os.close(opened)


def come_at_once(server: LiveServer, *paths: str, close: bool = False) -> list[socket.socket]:
    """Ask on a new connection for each, all of which the worker finds in its queue when it looks next."""
    (worker,) = server.worker_pids
    put_to_sleep(worker)
    clients = []
    for path in paths:
        clients.append(socket.create_connection(server.address, timeout=20))
        clients[-1].sendall(request(path, close=close))
    os.kill(worker, signal.SIGCONT)
    return clients


@pytest.mark.parametrize("close", [False, True])
def test_all_who_come_at_once_are_answered(server: LiveServer, close: bool) -> None:
    paths = [f"/{number}" for number in range(100)]
    clients = come_at_once(server, *paths, close=close)
    assert [answer(client) for client in clients] == [path.encode() for path in paths]
    for client in clients:
        if close:
            assert client.recv(1) == b""
        else:
            assert asked(client, "/again") == b"/again"
        client.close()


@pytest.mark.skipif(not hasattr(socket, "SOCK_SEQPACKET"), reason="this system hands nothing over")
def test_who_comes_at_once_waits_for_a_thread_if_all_are_away(write_app: Callable[..., Path], tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    folder = str(write_app(APP))
    paths = ["/closing", "/closing", *(f"/{number}" for number in range(12))]
    with LiveServer.pool("sample:app", app_dir=folder, max_workers=1, threads=2, keep_alive_timeout=1) as server:
        with socket.create_connection(server.address, timeout=20) as idle:
            assert asked(idle, "/first") == b"/first"
            clients = come_at_once(server, *paths)
            assert [answer(client) for client in clients[:2]] == [b"/closing"] * 2
            assert idle.recv(1) == b"", "nobody leads but the monitor, and ends it"
        with gate.open("w"):
            assert [answer(client) for client in clients[2:]] == [path.encode() for path in paths[2:]]
        for client in clients:
            client.close()


def test_pipelined_requests_are_answered_in_their_order(server: LiveServer) -> None:
    with socket.create_connection(server.address, timeout=20) as client:
        others = ask_at_once(server, "/a", "/b")
        client.sendall(b"".join(map(request, ["/1", "/chunked", "/2", "/3", "/chunked"])))
        client.sendall(b"GET /4 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        received = client.makefile("rb").read()
        places = [received.index(b"\r\n\r\n/%d" % number) for number in range(1, 5)]
        assert places == sorted(places)
        assert received.count(b"8\r\n/chunked\r\n8\r\n/chunked\r\n0\r\n\r\n") == 2
        assert [answer(other) for other in others] == [b"/a", b"/b"]
        for other in others:
            other.close()


def test_a_failure_behind_the_last_byte_takes_no_answer_back(server: LiveServer) -> None:
    clients = ask_at_once(server, "/a", "/raises", "/b")
    assert [answer(client) for client in clients] == [b"/a", b"/raises", b"/b"]
    assert clients[1].recv(1) == b""
    for client in clients:
        client.close()


@pytest.mark.parametrize("seconds", ["None", "0.0", "60"])
def test_the_default_timeout_of_an_application_holds_no_thread(write_app: Callable[..., Path], seconds: str) -> None:
    folder = str(write_app(APP + f"\nimport socket\nsocket.setdefaulttimeout({seconds})\n"))
    with LiveServer.pool("sample:app", app_dir=folder, max_workers=1, threads=1) as server:
        silent = socket.create_connection(server.address, timeout=20)
        assert server.get("/a") == (200, b"/a")
        assert asked(silent, "/b") == b"/b"
        assert server.get("/c") == (200, b"/c")
        silent.close()


BROKEN = """
import sys
from prefork import WorkerPool
from prefork.wsgi.driver import WsgiDriver

accept = WsgiDriver._accept
def fail(self, fd):
    if self.served == 2:
        raise RuntimeError("a fault of the server")
    return accept(self, fd)
WsgiDriver._accept = fail

def app(environ, start_response):
    start_response("200 OK", [])
    return [b"answer"]

sys.exit(WorkerPool(app, bind="127.0.0.1:0", max_workers=1, log_format="json", log_level="debug").serve())
"""


def test_a_worker_whose_leader_fails_is_replaced_and_says_why() -> None:
    with LiveServer.script(BROKEN) as server:
        for _ in range(2):
            assert server.get() == (200, b"answer")
        with socket.create_connection(server.address, timeout=20) as client:  # waits for the next worker
            exited = server.wait_for("worker.exited")
            assert exited["exit_code"] == 1
            assert not exited["expected"]
            assert asked(client, "/") == b"answer"
        assert "a fault of the server" in server.log


@pytest.mark.skipif(not hasattr(socket, "SOCK_SEQPACKET"), reason="this system hands nothing over")
@pytest.mark.parametrize(("budget", "served"), [(None, 7), (6, 6), (5, 5)])
def test_a_worker_that_retires_answers_who_has_asked_already_as_far_as_its_budget_goes(
    budget: int | None, served: int
) -> None:
    entered, gate = threading.Event(), threading.Event()
    exchange = Exchange.open()
    assert exchange

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        path = environ["PATH_INFO"].encode()
        if path == b"/gate":
            entered.set()
            gate.wait(PATIENCE)
        start_response("200 OK", [("Content-Length", str(len(path)))])
        return [path]

    def take_all() -> list[Ticket]:
        while (taken := exchange.take()) is not None:
            message, descriptor = taken
            tickets.append(decode(message))
            assert descriptor is not None
            os.close(descriptor)
        return tickets

    def talk() -> None:
        for client in clients:
            assert asked(client, "/first") == b"/first"
        clients[0].sendall(request("/gate"))
        assert entered.wait(PATIENCE)
        for client in clients[1:3]:
            client.sendall(request("/asked"))
        if budget is not None:
            driver.retire_after(budget)
        driver.retire()
        gate.set()
        assert answer(clients[0]) == b"/gate"
        until(lambda: len(take_all()) == len(clients))

    tickets: list[Ticket] = []
    config = Config.of(threads=1, log_format="none")
    facts = WorkerFacts(number=0, generation=1, retire=lambda: None)
    outfit = Outfit(facts=facts, records=Records(config), exit_guard=ExitGuard(), exchange=exchange)
    driver = WsgiDriver(app, (), config, outfit)
    clients = []
    for number in range(4):
        client, theirs = socket.socketpair()
        client.settimeout(PATIENCE)
        clients.append(client)
        with theirs:
            exchange.send(
                Ticket("http", "a", "80", ("client", str(number)), monotonic() + PATIENCE, 0), theirs.fileno()
            )
    driver.run(lambda: None, talk)
    driver.close()
    exchange.close()
    for client in clients:
        client.close()
    assert driver.served == served
    requests = {ticket.peer[1]: ticket.requests for ticket in tickets if ticket.peer}
    assert (requests["0"], requests["3"], requests["1"] + requests["2"]) == (2, 1, served - 3)


@pytest.mark.skipif(not hasattr(socket, "SOCK_SEQPACKET"), reason="this system hands nothing over")
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("ended_by", "slow"), [("budget", False), ("budget", True), ("order", True)])
def test_those_who_come_at_once_and_had_no_turn_before_a_worker_retires_go_to_its_siblings(
    full: bool, ended_by: str, slow: bool
) -> None:
    entered, gate = threading.Event(), threading.Event()
    exchange = Exchange.open()
    assert exchange

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        path = environ["PATH_INFO"].encode()
        if path == b"/2" and full:
            while exchange.send(Ticket("http", "a", "80", None, monotonic() + PATIENCE, 0), nobody):
                pass
        if path == b"/3":
            if ended_by == "order":
                driver.retire()
            entered.set()
            assert gate.wait(PATIENCE)
        start_response("200 OK", [("Content-Length", str(len(path)))])
        return [path]

    def all_are_handed_over() -> bool:
        driver.tick()
        while (taken := exchange.take()) is not None:
            message, descriptor = taken
            assert descriptor is not None
            os.close(descriptor)
            if (peer := decode(message).peer) is not None:
                handed_over[peer[1]] += 1
        return handed_over.total() >= len(clients)

    def talk() -> None:
        assert entered.wait(PATIENCE)
        if slow:
            until(lambda: bool(driver.tick() and driver._vacant))
            driver.tick()
        gate.set()
        assert [answer(client) for client in clients[:4]] == [b"/0", b"/1", b"/2", b"/3"]
        until(all_are_handed_over)

    handed_over: Counter[str] = Counter()
    nobody = os.open(os.devnull, os.O_RDONLY)
    with socket.create_server(("127.0.0.1", 0), backlog=10) as accepting:
        accepting.setblocking(False)
        listener = Listener(socket=accepting, address=Address(host="127.0.0.1", port=accepting.getsockname()[1]))
        driver = alone(exchange, (listener,), app, max_workers=1)
        if ended_by == "budget":
            driver.retire_after(4)
        clients = []
        for number in range(6):
            clients.append(socket.create_connection(accepting.getsockname(), timeout=PATIENCE))
            clients[-1].sendall(request(f"/{number}"))
        driver.run(lambda: None, talk)
        driver.close()
    exchange.close()
    os.close(nobody)
    assert driver.served == 4
    assert handed_over == {str(client.getsockname()[1]): 1 for client in clients}
    for client in clients:
        client.close()


def test_many_who_come_at_one_address_do_not_keep_those_of_another_waiting() -> None:
    order = []

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        order.append(environ["SERVER_PORT"])
        return echo(environ, start_response)

    def talk() -> None:
        for client in clients:
            assert answer(client) == b"/"
            client.close()

    clients = []
    with socket.create_server(("127.0.0.1", 0)) as crowded, socket.create_server(("127.0.0.1", 0)) as quiet:
        listeners = []
        for accepting, comers in ((crowded, 100), (quiet, 1)):
            accepting.setblocking(False)
            address = Address(host="127.0.0.1", port=accepting.getsockname()[1])
            listeners.append(Listener(socket=accepting, address=address))
            for _ in range(comers):
                clients.append(socket.create_connection(accepting.getsockname(), timeout=PATIENCE))
                clients[-1].sendall(request("/"))
        driver = alone(listeners=listeners, app=app, max_workers=1)
        driver.run(lambda: None, talk)
        driver.close()
    assert order.index(listeners[1].server_port) <= TOGETHER


SIOCOUTQNSD = 0x894B


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has MSG_MORE, and tells what was not sent")
@pytest.mark.parametrize("away", [0, 1])
def test_the_last_of_a_connection_leaves_with_its_end_unless_other_threads_may_come_between(away: int) -> None:
    """One packet instead of two: each costs the kernel as much as a small request costs us."""
    driver = alone()
    driver._away = away
    origin = Origin("http", "127.0.0.1", "80", trusted=False)
    waiting = set()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(10):  # for the kernel waits 200 ms, which may pass between two steps of ours
            with socket.create_connection(listener.getsockname()) as client:
                sock = _socket.socket(fileno=listener.accept()[0].detach())
                served = driver._admit(sock, driver._base(origin), None, monotonic() + PATIENCE)
                served.conclude(b"goodbye")
                waiting.add(int.from_bytes(ioctl(sock, SIOCOUTQNSD, bytes(4)), sys.byteorder))
                driver._close(served)
                assert client.makefile("rb").read() == b"goodbye"
    driver.close()
    assert waiting == {0} if away else 7 in waiting


def echo(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    path: bytes = environ["PATH_INFO"].encode()
    start_response("200 OK", [("Content-Length", str(len(path)))])
    return [path]


def alone(
    exchange: Exchange | None = None,
    listeners: Iterable[Listener] = (),
    app: Callable[..., list[bytes]] = echo,
    **options: Any,
) -> WsgiDriver:
    """Return a driver in this process that answers each request with its path, and is sent its clients by ``exchange``."""
    config = Config.of(threads=1, log_format="none", **options)
    facts = WorkerFacts(number=0, generation=1, retire=lambda: None)
    outfit = Outfit(facts=facts, records=Records(config), exit_guard=ExitGuard(), exchange=exchange)
    return WsgiDriver(app, listeners, config, outfit)


def hand_over(exchange: Exchange, *, deadline: float, buffer: int = 0) -> socket.socket:
    """Return a client whose connection was sent into the exchange."""
    client, theirs = socket.socketpair()
    client.settimeout(PATIENCE)
    with theirs:
        if buffer:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        assert exchange.send(Ticket("http", "a", "80", ("client", "1"), deadline, 0), theirs.fileno())
    return client


@pytest.mark.skipif(not hasattr(socket, "SOCK_SEQPACKET"), reason="this system hands nothing over")
def test_a_worker_that_stops_does_not_leave_while_somebody_is_on_his_way_in() -> None:
    taken, go_on = threading.Event(), threading.Event()

    class Slow(Exchange):
        def take(self) -> tuple[bytes, int | None] | None:
            found = super().take()
            if found is not None:
                taken.set()
                assert go_on.wait(PATIENCE)
            return found

    exchange = Slow.open()
    assert exchange

    def talk() -> None:
        driver.stop(quick=False)
        until(lambda: driver.drained)
        with hand_over(exchange, deadline=monotonic() + PATIENCE) as client:
            assert taken.wait(PATIENCE)
            assert not driver.drained
            go_on.set()
            assert asked(client, "/late") == b"/late"
        until(lambda: driver.drained)

    driver = alone(exchange)
    driver.run(lambda: None, talk)
    driver.close()
    exchange.close()


@pytest.mark.skipif(not hasattr(socket, "SOCK_SEQPACKET"), reason="this system hands nothing over")
def test_who_asks_at_the_moment_in_which_his_time_is_up_is_answered_and_may_ask_again() -> None:
    exchange = Exchange.open()
    assert exchange

    def talk() -> None:
        with hand_over(exchange, deadline=monotonic() + 1) as client:
            assert asked(client, "/first") == b"/first"
            with driver._sending:  # until this is free the leader cannot come to its poller, and then finds both
                driver._wake()
                threading.Event().wait(2.2)
                client.sendall(request("/second"))
            assert answer(client) == b"/second"
            threading.Event().wait(0.1)  # or the third is found by the last look, and answered then
            assert asked(client, "/third") == b"/third"

    driver = alone(exchange, keep_alive_timeout=2)
    driver.run(lambda: None, talk)
    driver.close()
    exchange.close()


# Two threads and the rest of one answer.


def test_a_thread_that_is_back_has_the_rest_of_its_answer_for_itself() -> None:
    """Also when the leader was told before that more can be sent, and comes to it only now."""
    driver = alone()
    ours, theirs = socket.socketpair()
    origin = Origin("http", "a", "80", trusted=False)
    client = driver._admit(
        _socket.socket(fileno=theirs.detach()), driver._base(origin), ("client", "1"), monotonic() + PATIENCE
    )
    client.send_octets(bytes(1_000_000))
    outbox = client.outbox
    assert outbox
    (told,) = driver._taps.values()
    driver._close_tap(client)
    before = outbox.size
    ours.recv(1_000_000)
    driver._drip(told)
    assert outbox.size == before
    driver._close(client)
    driver._drip(told)
    driver.close()
    ours.close()


@pytest.mark.skipif(not hasattr(socket, "SOCK_SEQPACKET"), reason="this system hands nothing over")
def test_the_rest_of_an_answer_that_another_thread_sent_goes_out_behind_whatever_its_leader_is_at() -> None:
    exchange = Exchange.open()
    assert exchange
    meanwhile = threading.Event()

    class Interrupted(Connection):
        @property
        def idle(self) -> bool:
            """Have the monitor send what is held back at a moment when the leader gives the client back."""
            if any(client.connection is self for client, _ in driver._held_back):
                monitor = threading.Thread(target=driver.send_held_back)
                monitor.start()
                monitor.join(PATIENCE)
                meanwhile.set()
            return super().idle

    def talk() -> None:
        with (
            hand_over(exchange, deadline=monotonic() + PATIENCE, buffer=1) as client,
            hand_over(exchange, deadline=monotonic() + PATIENCE) as other,
        ):
            assert [asked(one, "/first") for one in (client, other)] == [b"/first"] * 2
            with driver._sending:  # until this is free the leader cannot come to its poller, and then finds both
                driver._wake()
                threading.Event().wait(0.2)  # or it is in its poller yet, and finds only the first
                client.sendall(request(long) * 2)
                other.sendall(request("/other"))
            assert meanwhile.wait(PATIENCE)
            assert answer(other) == b"/other"
            with client.makefile("rb") as answers:
                for _ in range(2):
                    assert any(line == b"\r\n" for line in answers)
                    assert answers.read(len(long)) == long.encode()

    long = "/" + "x" * 5000
    driver = alone(exchange)
    driver._kind_of_connection = Interrupted
    driver.run(lambda: None, talk)
    driver.close()
    exchange.close()
