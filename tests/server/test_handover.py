"""What do clients notice when the worker that serves them is replaced?"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
import time
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import psutil
import pytest
from server_process import PATIENCE, UNHURRIED, LiveServer, all_asleep, put_to_sleep, switches, threads_of, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    not (hasattr(socket, "SOCK_SEQPACKET") and hasattr(select, "epoll")), reason="this system hands nothing over"
)

APP = """
import json, threading

def told(environ, start_response):
    shown = ("SERVER_NAME", "SERVER_PORT", "REMOTE_ADDR", "REMOTE_PORT", "wsgi.url_scheme")
    told = {"pid": os.getpid(), "thread": threading.get_ident(), **{name: environ.get(name) for name in shown}}
    if environ["PATH_INFO"] == "/slow":
        print("slow", os.getpid(), flush=True)
        time.sleep(float(environ["QUERY_STRING"]))
    body = json.dumps(told).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""

Serve = Any


@pytest.fixture
def serve(write_app: Callable[..., Path]) -> Callable[..., LiveServer]:
    """Return a server of the app above, with options."""

    def serve(more: str = "", *, app: str = "sample:told", **options: Any) -> LiveServer:
        return LiveServer.pool(
            app, app_dir=str(write_app(APP + more)), **{"max_workers": 2, "max_reqs_per_child": 0, **options}
        )

    return serve


class Talk:
    """One kept-alive connection."""

    def __init__(self, address: Any, version: str = "1.1") -> None:
        family = (
            socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        )
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(address)
        self.version = version
        self.head = b""
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def ask(self, path: str = "/") -> dict[str, Any]:
        """Ask once and return the answer."""
        self.send(path)
        return self.answer()

    def send(self, path: str = "/") -> None:
        keep = "Connection: keep-alive\r\n" if self.version == "1.0" else ""
        self.sock.sendall(f"GET {path} HTTP/{self.version}\r\nHost: a\r\n{keep}\r\n".encode())

    def answer(self) -> dict[str, Any]:
        """Return what came, a JSON object; its head is in ``head``."""
        while b"\r\n\r\n" not in self._buffer:
            self._buffer += self._receive()
        self.head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        size = int(self.head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(self._buffer) < size:
            self._buffer += self._receive()
        body, self._buffer = self._buffer[:size], self._buffer[size:]
        answer: dict[str, Any] = json.loads(body)
        return answer

    @property
    def closes(self) -> bool:
        """Whether the last answer said that it was the last."""
        return b"\r\nconnection: close" in self.head.lower()

    @property
    def ended(self) -> bool:
        """Whether the server has closed the connection, once it has."""
        return self.sock.recv(1) == b""

    def _receive(self) -> bytes:
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError("closed by the server")
        return data


class Crowd:
    """Clients on kept-alive connections that ask again as soon as they have an answer, or after a pause.

    ``failed`` are requests without an answer, or with a wrong one; ``closed`` connections that the server ended.
    """

    def __init__(self, address: tuple[str, int], clients: int, *, pause: float = 0.0) -> None:
        self.pause = pause
        self.answered, self.failed, self.closed = 0, 0, 0
        self._poller = select.epoll()
        self._clients: dict[int, socket.socket] = {}
        self._due: list[tuple[float, int]] = []
        for number in range(clients):
            client = socket.create_connection(address, timeout=PATIENCE)
            self._clients[client.fileno()] = client
            self._poller.register(client, select.EPOLLIN)
            self._due.append((time.monotonic() + pause * number / clients, client.fileno()))

    def run(self, requests: int) -> None:
        """Ask so many more times in all, and wait for the answers."""
        asked = 0
        waiting: set[int] = set()
        last = time.monotonic()
        while waiting or (asked < requests and self._clients):
            now = time.monotonic()
            assert now - last < PATIENCE, f"{len(waiting)} wait for an answer"
            while self._due and self._due[0][0] <= now and asked < requests:
                _, number = self._due.pop(0)
                if number in self._clients:
                    self._clients[number].send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                    waiting.add(number)
                    asked += 1
            patience = 1.0 if not self._due or asked >= requests else max(0.0, self._due[0][0] - now)
            for number, _ in self._poller.poll(patience):
                last = time.monotonic()
                try:
                    data = self._clients[number].recv(65536)
                except ConnectionError:
                    data = b""
                if number in waiting and data.startswith(b"HTTP/1.1 200 OK\r\n") and data.endswith(b"}"):
                    self.answered += 1
                    if b"\r\nconnection: close" in data.lower():
                        self._end(number)
                    else:
                        self._due.append((last + self.pause, number))
                else:
                    self.failed += number in waiting
                    self._end(number)
                waiting.discard(number)

    def _end(self, number: int) -> None:
        self.closed += 1
        self._poller.unregister(number)
        self._clients.pop(number).close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients.values():
            client.close()
        self._poller.close()


def retired(server: LiveServer, count: int = 1) -> None:
    """Wait until so many workers have gone because they were replaced."""
    server.wait_for("worker.exited", count=count)
    assert all(record["expected"] for record in server.all("worker.exited"))


# What a client sees.

OF_A_PROCESS = {"pid": 0, "thread": 0}
"""What an answer has that differs between workers: a thread's number, too, is one of its process alone."""


@pytest.mark.over_both
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_connection_outlives_its_workers(serve: Serve, version: str) -> None:
    with serve(max_workers=1) as server, Talk(server.address, version) as client:
        first = client.ask()
        for count in range(1, 4):
            server.send(signal.SIGUSR2)
            retired(server, count)
            then = client.ask()
            assert not client.closes
            assert then["pid"] not in {first["pid"], *(r["child_pid"] for r in server.all("worker.exited"))}
            assert {**then, **OF_A_PROCESS} == {**first, **OF_A_PROCESS}
        assert not server.all("worker.handover_failed")


@pytest.mark.over_both
def test_the_last_request_of_a_budget_is_answered_like_any_other(serve: Serve) -> None:
    with serve(max_workers=1, max_reqs_per_child=10) as server, Talk(server.address) as client:
        served = Counter[int]()
        for _ in range(55):
            served[client.ask()["pid"]] += 1
            assert not client.closes
            if 8 in served.values():  # it has asked for a successor, which is there before the next request
                server.wait_for("worker.ready", count=1 + sum(count >= 8 for count in served.values()))
                until(lambda: all_asleep(server.parent_pid, *server.worker_pids))
        retired(server, 5)
        assert sorted(served.values()) == [5, 10, 10, 10, 10, 10]
        assert {(r["requests"], r["overrun"]) for r in server.all("worker.exited")} == {(10, 0)}


@pytest.mark.over_both
def test_a_client_that_has_said_nothing_yet_is_handed_over_too(serve: Serve) -> None:
    with serve(max_workers=1) as server, Talk(server.address) as silent:
        holder = server.get()[1]
        server.send(signal.SIGUSR2)
        retired(server)
        answer = silent.ask()
        assert answer["pid"] != json.loads(holder)["pid"]
        assert answer["REMOTE_PORT"] == str(silent.sock.getsockname()[1])


@pytest.mark.over_both
def test_an_unfinished_head_is_waited_for_and_the_connection_handed_over_behind_it(serve: Serve) -> None:
    with serve(max_workers=1) as server, Talk(server.address) as client:
        old = client.ask()["pid"]
        client.sock.sendall(b"GET / HT")
        assert server.get()[0] == 200  # it has been read by now
        server.send(signal.SIGUSR2)
        server.wait_for("worker.ready", count=2)
        client.sock.sendall(b"TP/1.1\r\nHost: a\r\n\r\n")
        assert client.answer()["pid"] == old
        assert not client.closes
        retired(server)
        assert client.ask()["pid"] != old


@pytest.mark.over_both
def test_requests_that_were_sent_ahead_are_answered_before_the_connection_goes(serve: Serve) -> None:
    with serve(max_workers=1, max_reqs_per_child=4) as server, Talk(server.address) as client:
        old = client.ask()["pid"]
        client.ask(), client.ask()
        server.wait_for("worker.ready", count=2)
        client.sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 5)
        answers = [client.answer()["pid"] for _ in range(5)]
        assert not client.closes
        assert answers == [old] * 5
        retired(server)
        assert client.ask()["pid"] != old
        assert server.all("worker.exited")[0]["overrun"] == 4


@pytest.mark.over_both
def test_an_answer_that_takes_its_time_is_finished_first(serve: Serve) -> None:
    with serve(max_workers=1) as server, Talk(server.address) as client:
        client.send("/slow?0.5")
        server.wait_for_output("slow")
        server.send(signal.SIGUSR2)
        server.wait_for("worker.ready", count=2)
        old = client.answer()["pid"]
        assert not client.closes
        retired(server)
        assert client.ask()["pid"] != old


@pytest.mark.parametrize("bind", ["unix:{}/x.sock", "[::1]:0"])
def test_every_kind_of_listener_hands_over(serve: Serve, tmp_path: Path, bind: str) -> None:
    if not socket.has_dualstack_ipv6() and "::1" in bind:
        pytest.skip("no IPv6 here")
    with serve(max_workers=1, bind=bind.format(tmp_path)) as server:
        address = str(tmp_path / "x.sock") if "unix" in bind else server.address
        with Talk(address) as client:
            first = client.ask()
            server.send(signal.SIGUSR2)
            retired(server)
            second = client.ask()
            assert second["pid"] != first["pid"]
            assert {**second, **OF_A_PROCESS} == {**first, **OF_A_PROCESS}


@pytest.mark.over_both
def test_idle_connections_still_end_when_their_time_is_up(serve: Serve) -> None:
    with serve(max_workers=1, keep_alive_timeout=1.5) as server, Talk(server.address) as client:
        client.ask()
        server.send(signal.SIGUSR2)
        retired(server)
        assert client.ended


@pytest.mark.over_both
def test_a_retired_worker_goes_before_an_idle_client_speaks_again(serve: Serve) -> None:
    with serve(max_workers=1) as server, Talk(server.address) as client:
        client.ask()
        server.send(signal.SIGUSR2)
        retired(server)
        client.ask()


# Many of them.


@pytest.mark.parametrize("workers", [2, 4])
def test_nothing_is_lost_or_closed_while_workers_are_replaced_all_the_time(serve: Serve, workers: int) -> None:
    options = {"max_workers": workers, "max_reqs_per_child": 20}
    with serve(**options) as server, Crowd(server.address, 64) as crowd:
        crowd.run(6000)
        assert (crowd.answered, crowd.failed, crowd.closed) == (6000, 0, 0)
        retired(server, workers)
        assert not server.all("worker.handover_failed")


@pytest.mark.over_both
def test_clients_that_pause_notice_nothing(serve: Serve) -> None:
    with serve(max_reqs_per_child=50) as server, Crowd(server.address, 60, pause=0.2) as crowd:
        crowd.run(1500)
        assert (crowd.answered, crowd.failed, crowd.closed) == (1500, 0, 0)
        retired(server, 4)


def test_more_connections_than_the_exchange_holds_cross_it(serve: Serve) -> None:
    with serve(max_workers=1) as server, Crowd(server.address, 900) as crowd:
        crowd.run(900)
        for count in range(1, 4):
            server.send(signal.SIGUSR2)
            retired(server, count)
            crowd.run(900)
        assert (crowd.answered, crowd.failed, crowd.closed) == (3600, 0, 0)


@pytest.mark.over_both
def test_who_finds_no_room_in_the_exchange_waits_for_it_asleep(serve: Serve) -> None:
    with serve(max_workers=1) as server, Crowd(server.address, 700) as crowd:
        crowd.run(700)
        (old,) = server.worker_pids
        put_to_sleep(old)
        server.send(signal.SIGUSR2)
        new = server.wait_for("worker.ready", count=2)["child_pid"]
        put_to_sleep(new)
        os.kill(old, signal.SIGCONT)
        process = psutil.Process(old)
        until(lambda: all_asleep(old))
        before = process.cpu_times()
        threading.Event().wait(1.0)
        after = process.cpu_times()
        assert after.user + after.system - before.user - before.system < 0.1
        assert not server.all("worker.exited")
        os.kill(new, signal.SIGCONT)
        retired(server)
        crowd.run(700)
        assert (crowd.answered, crowd.failed, crowd.closed) == (1400, 0, 0)


@pytest.mark.over_both
def test_a_retired_worker_goes_however_late_its_connections_are_taken(serve: Serve) -> None:
    with serve(max_workers=1) as server, Crowd(server.address, 5) as crowd:
        crowd.run(5)
        (old,) = server.worker_pids
        put_to_sleep(old)
        server.send(signal.SIGUSR2)
        new = server.wait_for("worker.ready", count=2)["child_pid"]
        put_to_sleep(new)
        os.kill(old, signal.SIGCONT)
        until(lambda: not psutil.Process(old).net_connections("tcp"))
        threading.Event().wait(0.5)  # longer than its monitor stays awake without work
        os.kill(new, signal.SIGCONT)
        retired(server)
        crowd.run(5)
        assert (crowd.answered, crowd.failed, crowd.closed) == (10, 0, 0)


# A worker that is busy.


def on_one_worker(server: LiveServer, stack: ExitStack, count: int) -> list[Talk]:
    """Return so many connections that the same worker has."""
    by_worker: dict[int, list[Talk]] = {}
    while True:
        talk = stack.enter_context(Talk(server.address))
        mates = by_worker.setdefault(talk.ask()["pid"], [])
        mates.append(talk)
        if len(mates) == count:
            return mates


@pytest.mark.parametrize("threads", [1, 4])
def test_who_waits_at_a_busy_worker_is_served_by_an_idle_one(threads: int, serve: Serve) -> None:
    with serve(max_workers=2, threads=threads) as server, ExitStack() as stack:
        busy, *waiting = on_one_worker(server, stack, 4)
        busy.send("/slow?5")
        owner = int(server.wait_for_output("slow").split()[1])
        (other,) = set(server.worker_pids) - {owner}
        for talk in waiting:
            # It has to be back from the one before, which its client hears of earlier.
            until(lambda: all(thread.status() == psutil.STATUS_SLEEPING for thread in threads_of(other)))
            assert talk.ask()["pid"] == other
        assert busy.answer()["pid"] == owner


def test_a_worker_is_idle_again_when_its_view_has_returned(serve: Serve) -> None:
    with serve(max_workers=2) as server, ExitStack() as stack:
        busy, *waiting = on_one_worker(server, stack, 3)
        owner = busy.ask()["pid"]
        (other,) = set(server.worker_pids) - {owner}
        put_to_sleep(owner)
        assert stack.enter_context(Talk(server.address)).ask("/slow?0.1")["pid"] == other
        os.kill(owner, signal.SIGCONT)
        busy.send("/slow?5")
        server.wait_for_output(f"slow {owner}")
        for talk in waiting:
            while talk.ask()["pid"] != other:
                pass  # it may come back later than its client hears


@pytest.mark.parametrize("workers", [1, 2])
def test_one_thread_serves_what_comes_one_after_the_other(workers: int, serve: Serve) -> None:
    """Each thread has its own connection to a database."""
    with serve(max_workers=workers) as server, Talk(server.address) as talk:
        for _ in range(3):
            talk.ask("/slow?0.02")  # here it is learned that the application blocks
        answers = [talk.ask("/slow?0.01") for _ in range(20)]
        assert len({(answer["pid"], answer["thread"]) for answer in answers}) == 1


@pytest.mark.over_both
def test_clients_that_all_came_to_one_worker_are_shared_out_when_they_keep_it_busy(serve: Serve) -> None:
    with serve() as server, ExitStack() as stack:
        asleep, awake = server.worker_pids
        put_to_sleep(asleep)
        talks = [stack.enter_context(Talk(server.address)) for _ in range(16)]
        assert {talk.ask()["pid"] for talk in talks} == {awake}
        os.kill(asleep, signal.SIGCONT)
        seen: Counter[int] = Counter()

        def talk_on(talk: Talk) -> None:
            while not seen[asleep]:
                seen[talk.ask()["pid"]] += 1

        threads = [threading.Thread(target=talk_on, args=(talk,)) for talk in talks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert seen[asleep]
        assert seen[awake]


def test_who_waits_at_the_only_worker_waits_for_it(serve: Serve) -> None:
    with serve(max_workers=1, threads=2) as server, ExitStack() as stack:
        talks = on_one_worker(server, stack, 8)
        for talk in talks:
            talk.send("/slow?0.05")
        assert len({talk.answer()["pid"] for talk in talks}) == 1
        assert not any(talk.closes for talk in talks)


def test_who_waits_at_a_busy_worker_survives_it(serve: Serve) -> None:
    with serve(max_workers=1, threads=1) as server, ExitStack() as stack:
        busy, *waiting = on_one_worker(server, stack, 4)
        busy.send("/slow?60")
        owner = int(server.wait_for_output("slow").split()[1])
        for talk in waiting:
            talk.send()
        until(lambda: all_handed_over(owner, waiting))
        server.send(signal.SIGKILL, to=owner)
        assert owner not in {talk.answer()["pid"] for talk in waiting}
        with pytest.raises(OSError, match=r"closed|reset"):
            busy.answer()


def all_handed_over(pid: int, talks: Sequence[Talk]) -> bool:
    """Whether a process no longer has the other ends of connections."""
    ports = {talk.sock.getsockname()[1] for talk in talks}
    there = {connection.raddr.port for connection in psutil.Process(pid).net_connections("tcp") if connection.raddr}
    return ports.isdisjoint(there)


def test_a_worker_whose_threads_are_all_away_hands_its_idle_connections_over(serve: Serve) -> None:
    with serve(max_workers=1, threads=1) as server, ExitStack() as stack:
        busy, *idle = on_one_worker(server, stack, 3)
        busy.send("/slow?5")
        owner = int(server.wait_for_output("slow").split()[1])
        server.send(signal.SIGUSR2)
        until(lambda: all_handed_over(owner, idle))
        assert busy.answer()["pid"] == owner
        assert not busy.closes
        retired(server)
        assert busy.ask()["pid"] != owner


# Nobody is woken for nothing.


def cpu(pids: Iterable[int]) -> float:
    """Return how many seconds of CPU processes have used."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


@pytest.mark.over_both
def test_idle_workers_sleep_and_one_client_wakes_one_of_them(serve: Serve) -> None:
    with serve(max_workers=10, blocked_threshold=0) as server:
        workers = server.worker_pids
        until(lambda: all_asleep(*workers))
        before, used = switches(workers), cpu(workers)
        threading.Event().wait(10.0)
        # One of each thread at most, for the parent's first ping; it may have to wait for the interpreter's lock as well.
        assert all(now - before[thread] <= 3 for thread, now in switches(workers).items())
        assert cpu(workers) - used < 0.1  # as the kernel counts, a tick of a few; one that spins uses seconds
        for _ in range(50):
            server.get()
        until(lambda: all_asleep(*workers))
        before = switches(workers)
        server.get()
        until(lambda: all_asleep(*workers) and switches(workers) != before)
        after = switches(workers)
        assert len({path.split("/")[2] for path in after if after[path] != before.get(path)}) == 1


# The end of the pool.


@pytest.mark.over_both
def test_a_client_that_is_idle_when_the_pool_stops_may_ask_once_more(serve: Serve) -> None:
    with serve(UNHURRIED, max_workers=2) as server, Talk(server.address) as client, Talk(server.address) as busy:
        client.ask()
        busy.send("/slow?2")
        server.wait_for_output("slow")
        server.send(signal.SIGTERM)
        server.wait_for("pool.stopping")
        until(lambda: bool(client.ask()) and client.closes)
        assert client.ended
        busy.answer()
        assert busy.closes
        assert server.wait() == 0


def test_nobody_is_left_in_the_exchange_when_the_pool_stops(serve: Serve) -> None:
    """Retire and stop at once, again and again: who is under way is answered all the same."""
    for _ in range(5):
        with serve(UNHURRIED, max_workers=2) as server, Crowd(server.address, 40) as crowd:
            crowd.run(40)
            server.send(signal.SIGUSR2)
            server.wait_for("worker.ready", count=3)
            server.send(signal.SIGTERM)
            crowd.run(1_000_000)
            assert (crowd.failed, crowd.closed) == (0, 40)
            assert server.wait() == 0


@pytest.mark.over_both
def test_a_stop_does_not_wait_for_who_stays_silent(serve: Serve) -> None:
    with serve(max_workers=2, graceful_timeout=PATIENCE * 2) as server, Talk(server.address) as client:
        client.ask()
        assert server.stop() == 0
        assert client.ended
        assert not server.all("worker.killed")


# The worst.


DIES = """
import os, sys, signal
from prefork import WorkerPool
from prefork.handover import Exchange
from sample import told
take = Exchange.take
def take_and_die(self):
    first = not os.path.exists("died")
    found = None if first and sys.argv[1] == "queue" else take(self)
    if first:
        open("died", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return found
Exchange.take = take_and_die
sys.exit(WorkerPool(told, bind="127.0.0.1:0", max_workers=1, log_format="json", log_level="debug").serve())
"""


@pytest.mark.parametrize(("where", "lost"), [("queue", 0), ("hand", 1)])
def test_a_receiver_that_dies_takes_along_what_it_has_in_its_hand_and_nothing_else(
    write_app: Callable[..., Path], where: str, lost: int
) -> None:
    with LiveServer.script(DIES, where, cwd=write_app(APP)) as server, ExitStack() as stack:
        talks = [stack.enter_context(Talk(server.address)) for _ in range(10)]
        for talk in talks:
            talk.ask()
        server.send(signal.SIGUSR2)
        server.wait_for("worker.exited", signal="SIGKILL")
        server.wait_for("worker.exited", signal=None)
        failed = 0
        for talk in talks:
            try:
                talk.ask()
            except OSError:
                failed += 1
        assert failed == lost


STRANGE = """
import os, socket, sys, threading
from prefork import WorkerPool
from prefork.handover import Exchange
import prefork.pool
from sample import told

exchange = Exchange.open()
class Fixed(Exchange):
    @classmethod
    def open(cls):
        return exchange
prefork.pool.Exchange = Fixed

def app(environ, start_response):
    if environ["PATH_INFO"] == "/litter":
        sending = socket.socket(fileno=os.dup(exchange.descriptors[0]))
        reader, writer = os.pipe()
        sending.send(b"")
        sending.send(b"nonsense")
        socket.send_fds(sending, [b"a pipe"], [reader])
        ours, theirs = socket.socketpair()
        socket.send_fds(sending, [b"\\x63 from the future"], [theirs.fileno()])
        theirs.close()
        ours.sendall(b"GET / HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n")
        global last
        last = ours
    if environ["PATH_INFO"] == "/look":
        last.settimeout(20)
        found = b""
        while data := last.recv(4096):
            found += data
        print("found", found[:15], flush=True)
    return told(environ, start_response)

sys.exit(WorkerPool(app, bind="127.0.0.1:0", max_workers=1, log_format="json", log_level="debug").serve())
"""


def test_what_is_strange_in_the_exchange_harms_nobody_and_a_connection_is_served(
    write_app: Callable[..., Path],
) -> None:
    with LiveServer.script(STRANGE, cwd=write_app(APP)) as server:
        assert server.get("/litter")[0] == 200
        assert server.get("/look")[0] == 200
        assert server.wait_for_output("found") == "found b'HTTP/1.1 200 OK'"
        server.wait_for("worker.handover_failed", count=3, code="PF437")
        assert len(server.worker_pids) == 1
        assert not server.all("worker.exited")


NO_EXCHANGE = """
import sys
from prefork import WorkerPool
from prefork.handover import Exchange
Exchange.open = classmethod(lambda cls: None)
from sample import told
sys.exit(WorkerPool(told, bind="127.0.0.1:0", max_workers=1, log_format="json", log_level="debug").serve())
"""


@pytest.mark.over_both
def test_a_system_without_an_exchange_finishes_politely(write_app: Callable[..., Path]) -> None:
    with LiveServer.script(NO_EXCHANGE, cwd=write_app(APP)) as server, Talk(server.address) as client:
        old = client.ask()["pid"]
        server.send(signal.SIGUSR2)
        server.wait_for("worker.ready", count=2)
        until(lambda: client.ask()["pid"] == old and client.closes)
        assert client.ended
        retired(server)
