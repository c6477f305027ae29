"""What is known of a worker that died, hangs or is stopped, and what becomes of its requests?"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from server_process import LiveServer, Tally, all_asleep, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

APP = """
import ctypes, signal, threading

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # whole, whoever else speaks

def hold_the_interpreter():
    ctypes.PyDLL(None).sleep(60)

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path.startswith("/wait"):
        say("in", path, os.getpid())
        threading.Event().wait(60)
    if path == "/hold":
        hold_the_interpreter()
    if path == "/segv":
        say("in", path, os.getpid())
        ctypes.string_at(0)
    if path == "/grow":
        hoard = [bytearray(2**20)]
        while hoard.append(bytearray(2**20)) is None:
            pass
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]
"""


@pytest.fixture
def serve(write_app: Callable[..., Path]) -> Callable[..., LiveServer]:
    """Return a server of the app above, with options."""

    def serve(more: str = "", **options: Any) -> LiveServer:
        return LiveServer.pool("sample:app", app_dir=str(write_app(APP + more)), **{"max_workers": 1, **options})

    return serve


def send(server: LiveServer, path: str, *, method: str = "GET") -> socket.socket:
    """Ask, and do not wait for an answer."""
    client = socket.create_connection(server.address, timeout=20)
    client.sendall(f"{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    return client


@pytest.mark.over_both
@pytest.mark.parametrize("name", ["SEGV", "ABRT", "KILL"])
def test_a_crash_names_each_request_that_was_being_served(serve: Callable[..., LiveServer], name: str) -> None:
    with serve(threads=4) as server:
        idle = [send(server, "/") for _ in range(3)]
        for client in idle:
            assert client.recv(1)
        busy = [send(server, f"/wait/{n}?token=secret", method="POST") for n in range(3)]
        for n in range(3):
            server.wait_for_output(f"in /wait/{n} ")
        (worker,) = server.worker_pids
        until(lambda: all_asleep(worker))  # an application may return a moment after its answer was taken
        server.send(signal.Signals[f"SIG{name}"], to=worker)
        gone = server.wait_for("worker.exited")
        assert gone["signal"] == f"SIG{name}"
        assert gone["level"] == "error"
        assert gone["requests"] == 6
        assert sorted(lost["path"] for lost in gone["requests_lost"]) == ["/wait/0", "/wait/1", "/wait/2"]
        assert {lost["method"] for lost in gone["requests_lost"]} == {"POST"}
        assert all(0 <= lost["age_s"] < 20 for lost in gone["requests_lost"])
        assert gone["connections_lost"] == 3
        assert gone["rss_bytes"] > 2**20
        if name == "KILL":
            assert gone["stack"] is None
        else:
            assert gone["stack"].startswith("Fatal Python error")
            assert gone["stack"].count("in app") == 3
        for client in [*idle, *busy]:
            client.close()


@pytest.fixture
def confined() -> Iterator[Path]:
    """Return a control group in which there is little memory."""
    top = Path("/sys/fs/cgroup")
    mine = {line.split(":")[1]: line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines()}
    old = "memory" in mine
    group = top / "memory" / mine["memory"][1:] if old else top / mine[""][1:]
    group /= f"prefork-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        try:
            (group / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(128 * 2**20))
        except OSError as error:
            pytest.skip(f"memory cannot be limited here: {error}")
        yield group
    finally:
        until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def test_a_worker_that_the_kernel_kills_for_want_of_memory_is_said_to_be(
    confined: Path, write_app: Callable[..., Path]
) -> None:
    enter = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
    command = [sys.executable, "-m", "prefork", "sample:app", "--bind", "127.0.0.1:0", "-w", "1"]
    with LiveServer("/bin/sh", "-c", enter, str(confined), *command, cwd=write_app(APP)) as server:
        for n in range(1, 3):
            client = send(server, "/grow")
            gone = server.wait_for("worker.exited", count=n)
            assert gone["signal"] == "SIGKILL"
            assert gone["oom_kill"] == 1
            assert [lost["path"] for lost in gone["requests_lost"]] == ["/grow"]
            client.close()
        assert server.get()[0] == 200


def test_a_crash_in_compiled_code_shows_its_stack(serve: Callable[..., LiveServer]) -> None:
    with serve() as server:
        client = send(server, "/segv")
        gone = server.wait_for("worker.exited", signal="SIGSEGV")
        assert "string_at" in gone["stack"]
        assert [lost["path"] for lost in gone["requests_lost"]] == ["/segv"]
        client.close()


@pytest.mark.over_both
def test_a_worker_that_left_as_it_should_has_lost_nothing(serve: Callable[..., LiveServer]) -> None:
    with serve(max_reqs_per_child=2) as server:
        for _ in range(3):
            server.get()
        gone = server.wait_for("worker.exited")
        assert gone["expected"]
        assert "requests_lost" not in gone


def test_requests_that_outlive_the_stop_are_named(serve: Callable[..., LiveServer]) -> None:
    with serve(graceful_timeout=0.2) as server:
        client = send(server, "/wait")
        server.wait_for_output("in /wait")
        server.stop()
        (gone,) = server.all("worker.exited")
        assert [lost["path"] for lost in gone["requests_lost"]] == ["/wait"]
        client.close()


@pytest.mark.over_both
def test_a_worker_that_is_stopped_is_killed_when_its_successor_serves(serve: Callable[..., LiveServer]) -> None:
    with serve(heartbeat_timeout=0.5) as server:
        (worker,) = server.worker_pids
        server.send(signal.SIGSTOP, to=worker)
        sick = server.wait_for("worker.unresponsive", child_pid=worker)
        assert (sick["stopped"], sick["stack"], sick["code"]) == (True, None, "PF430")
        assert sick["silent_s"] >= 0.5
        gone = server.wait_for("worker.exited", child_pid=worker)
        assert (gone["signal"], gone["reason"], gone["expected"]) == ("SIGKILL", "unresponsive", False)
        names = [record["event"] for record in server.records if record["event"].startswith("worker.")]
        assert names[-4:] == ["worker.spawned", "worker.ready", "worker.killed", "worker.exited"]
        assert server.get()[1] != b"%d" % worker


@pytest.mark.over_both
def test_a_worker_whose_interpreter_is_held_shows_where_and_is_killed(serve: Callable[..., LiveServer]) -> None:
    with serve(heartbeat_timeout=0.5) as server:
        (worker,) = server.worker_pids
        client = send(server, "/hold")
        sick = server.wait_for("worker.unresponsive", child_pid=worker)
        assert not sick["stopped"]
        gone = server.wait_for("worker.exited", child_pid=worker)
        assert "in hold_the_interpreter" in (sick["stack"] or gone["stack"])  # on a busy machine it is written late
        assert [lost["path"] for lost in gone["requests_lost"]] == ["/hold"]
        assert server.get()[0] == 200
        client.close()


@pytest.mark.parametrize("timeout", [0, 3])
def test_workers_that_answer_or_are_not_asked_are_left_alone(serve: Callable[..., LiveServer], timeout: float) -> None:
    with serve(heartbeat_timeout=timeout, max_workers=2, graceful_timeout=0.1) as server:
        waiting = send(server, "/wait")
        with Tally(server) as tally:
            tally.wait_for(1000)
            threading.Event().wait(1.3 * timeout)  # who does not answer is told of after 1.25 of it
        assert not tally.lost
        assert not server.all("worker.unresponsive")
        waiting.close()


@pytest.mark.over_both
def test_many_signals_at_once_do_not_end_a_worker(serve: Callable[..., LiveServer]) -> None:
    with serve() as server:
        (worker,) = server.worker_pids
        for _ in range(40):
            for name in ("INT", "QUIT", "HUP", "USR1", "USR2", "TTIN", "TTOU"):
                server.send(signal.Signals[f"SIG{name}"], to=worker)
            assert server.get() == (200, b"%d" % worker)


FORKED = """
import os, signal, sys, tempfile
from prefork.vitals import record_last_words
record_last_words(tempfile.TemporaryFile().fileno())
signals = (1, 3, 10, 12, 21, 22)
for number in signals:
    signal.signal(number, lambda *_: None)
child = os.fork()
while not child:
    sum(range(1000))
if os.fork() == 0:
    for _ in range(20_000):
        for number in signals:
            os.kill(child, number)
            os.kill(os.getppid(), number)
    os.kill(child, signal.SIGTERM)
    os._exit(0)
print("ends by", os.waitpid(child, 0)[1], flush=True)
"""


def test_a_process_that_the_application_forks_handles_its_signals_by_itself() -> None:
    with LiveServer.script(FORKED, ready="") as program:
        assert program.wait() == 0
        assert program.output == [f"ends by {signal.SIGTERM}"]


def test_a_place_that_is_taken_again_does_not_show_what_its_last_worker_served(
    serve: Callable[..., LiveServer],
) -> None:
    with serve() as server:
        client = send(server, "/wait")
        server.wait_for_output("in /wait")
        for count in (1, 2):
            os.kill(server.worker_pids[-1], signal.SIGKILL)
            server.wait_for("worker.ready", count=count + 1)
        first, second = server.all("worker.exited")
        assert [lost["path"] for lost in first["requests_lost"]] == ["/wait"]
        assert second["requests_lost"] == []
        client.close()
