"""What becomes of workers: recycled, signalled, crashed, stuck, orphaned?"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections import Counter
from contextlib import closing
from datetime import datetime
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from server_process import LiveServer, Tally, all_asleep, put_to_sleep, until, wait_until_gone

from prefork.config import QUICK_STOP_S

if TYPE_CHECKING:
    from collections.abc import Callable

FAULTS = """
import signal, threading, random

def faults(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/exit":
        os._exit(7)
    if path == "/system-exit":
        sys.exit(7)
    if path == "/segv":
        os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(60)
    if path == "/slow":
        print("slow", os.getpid(), flush=True)
        time.sleep(float(environ["QUERY_STRING"] or 60))
    if path == "/guard":
        guard = environ["prefork.exit_guard"]
        guard.begin("mail")
        threading.Timer(0.5, lambda: (print("mailed", flush=True), guard.end())).start()
    if path == "/random":
        start_response("200 OK", [])
        return [str(random.random()).encode()]
    if path == "/number":
        start_response("200 OK", [])
        return [str(environ["prefork.worker"]).encode()]
    return app(environ, start_response)
"""


@pytest.fixture
def faulty(write_app: Callable[..., Path]) -> Callable[..., LiveServer]:
    """Return a server of the app above, with options."""

    def serve(more: str = "", *, app: str = "sample:faults", **options: Any) -> LiveServer:
        return LiveServer.pool(app, app_dir=str(write_app(FAULTS + more)), **{"max_workers": 2, **options})

    return serve


def in_background(server: LiveServer, path: str) -> tuple[threading.Thread, list[Any]]:
    """Ask in a thread; return it, and the list that its answer, or what it raised, will be in."""
    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(server.get(path))
        except OSError as error:
            answers.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, answers


def exits_balance(server: LiveServer) -> None:
    """Check what holds at the end of every pool."""
    spawned = Counter(record["child_pid"] for record in server.all("worker.spawned"))
    exited = Counter(record["child_pid"] for record in server.all("worker.exited"))
    assert spawned == exited
    assert server.records[-1]["event"] == "pool.stopped"
    assert len(server.all("pool.stopped")) == 1


# Recycling.


@pytest.mark.over_both
def test_a_worker_serves_its_budget_and_is_replaced_before_it_leaves(faulty: Callable[..., LiveServer]) -> None:
    with faulty(max_workers=1, max_reqs_per_child=8) as server:
        workers = {server.get()[1] for _ in range(6)}
        announced = server.wait_for("worker.retiring")
        assert (announced["requests"], announced["reason"]) == (6, "max_requests")
        successor = server.wait_for("worker.ready", count=2)
        assert not server.all("worker.exited")
        assert {str(successor["child_pid"]).encode()}.isdisjoint(workers)
        left = 2
        while left:
            left -= server.get()[1] in workers
        gone = server.wait_for("worker.exited")
        assert (gone["child_pid"], gone["requests"], gone["overrun"]) == (announced["child_pid"], 8, 0)
        server.stop()
        exits_balance(server)


@pytest.mark.over_both
def test_no_request_is_lost_while_workers_are_recycled(faulty: Callable[..., LiveServer]) -> None:
    with faulty(max_reqs_per_child=20) as server, Tally(server) as tally:
        server.wait_for("worker.exited", count=20)
    assert set(tally.statuses) == {200}
    assert not tally.lost
    exits_balance(server)


def test_a_budget_of_nothing_recycles_nobody(faulty: Callable[..., LiveServer]) -> None:
    with faulty(max_reqs_per_child=0) as server, Tally(server) as tally:
        tally.wait_for(500)
    assert len(server.all("worker.spawned")) == 2


@pytest.mark.over_both
def test_a_budget_of_one_does_not_fork_without_end(faulty: Callable[..., LiveServer]) -> None:
    with faulty(max_workers=1, max_reqs_per_child=1) as server:
        server.get()
        server.wait_for("worker.exited")
        server.get()
        server.wait_for("worker.exited", count=2)
    assert len(server.all("worker.spawned")) <= 4


def test_places_are_numbered_from_0_and_taken_again(faulty: Callable[..., LiveServer]) -> None:
    with faulty(max_workers=2, max_reqs_per_child=5) as server, Tally(server, clients=2, path="/number") as tally:
        server.wait_for("worker.exited", count=20)
    # Two that serve, two successors, and whoever is about to leave.
    assert {int(number) for number in tally.bodies} <= set(range(8))
    assert {record["worker"] for record in server.all("worker.spawned")} <= set(range(8))


def test_workers_do_not_draw_the_same_random_numbers(faulty: Callable[..., LiveServer]) -> None:
    with faulty("random.seed(1)\n", max_workers=1, max_reqs_per_child=1) as server:
        drawn = set()
        for count in range(1, 5):
            drawn.add(server.get("/random"))
            server.wait_for("worker.exited", count=count)
    assert len(drawn) == 4


@pytest.mark.over_both
def test_the_exit_guard_keeps_a_retired_worker(faulty: Callable[..., LiveServer]) -> None:
    with faulty(max_workers=1) as server:
        _, worker = server.get("/guard")
        server.send(signal.SIGUSR2)
        server.wait_for("worker.ready", count=2)
        gone = server.all("worker.exited")
        while server.get()[1] == worker:  # until it has left the listeners
            assert not gone
            gone = server.all("worker.exited")
        server.wait_for_output("mailed")
        server.wait_for("worker.exited", child_pid=int(worker), exit_code=0)


# Signals.


@pytest.mark.over_both
@pytest.mark.parametrize("name", ["HUP", "USR2"])
def test_all_workers_are_replaced_new_ones_first(name: str, faulty: Callable[..., LiveServer]) -> None:
    with faulty(max_reqs_per_child=0) as server, Tally(server) as tally:
        before = set(server.worker_pids)
        for _ in range(3):
            server.send(signal.Signals[f"SIG{name}"])
            for pid in before:
                server.wait_for("worker.exited", child_pid=pid)
            before = set(server.worker_pids)
        tally.wait_for(50)
    assert not tally.lost
    assert len(server.all("worker.spawned")) == 8
    notes = [record["note"] for record in server.all("pool.recycling", signal=name)]
    assert ["redeploy" in note for note in notes] == [name == "HUP"] * 3
    exits_balance(server)


def test_ttin_and_ttou_change_the_number_of_workers(faulty: Callable[..., LiveServer]) -> None:
    with faulty(max_workers=1) as server:
        server.send(signal.SIGTTIN)
        server.wait_for("pool.scaling", workers_to=2)
        server.wait_for("worker.ready", count=2)
        for left in (1, 1):
            server.send(signal.SIGTTOU)
            server.wait_for("pool.scaling", workers_to=left)
        server.wait_for("worker.exited", exit_code=0, reason="scale_down")
        assert server.get()[0] == 200
        assert len(server.worker_pids) == 1


def test_usr1_opens_log_files_anew_in_every_process(faulty: Callable[..., LiveServer], tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    with faulty(access_log=str(log), max_workers=1, max_reqs_per_child=0) as server:
        while "/one" not in log.read_text():  # which is written after the answer
            server.get("/one")
        log.rename(tmp_path / "old.log")
        server.send(signal.SIGUSR1)
        until(lambda: server.get("/two")[0] == 200 and log.exists() and "/two" in log.read_text())
        assert "/one" in (tmp_path / "old.log").read_text()


@pytest.mark.over_both
def test_a_worker_that_gets_term_is_replaced_first(faulty: Callable[..., LiveServer]) -> None:
    with faulty(max_workers=1, max_reqs_per_child=0) as server, Tally(server) as tally:
        (worker,) = server.worker_pids
        server.send(signal.SIGTERM, to=worker)
        gone = server.wait_for("worker.exited", child_pid=worker)
        assert (gone["exit_code"], gone["expected"], gone["reason"]) == (0, True, "signal")
        tally.wait_for(20)
    assert not tally.lost


@pytest.mark.over_both
def test_signals_for_the_parent_do_nothing_to_a_worker(faulty: Callable[..., LiveServer]) -> None:
    with faulty(max_workers=1) as server:
        (worker,) = server.worker_pids
        for name in ("INT", "QUIT", "HUP", "USR1", "USR2", "TTIN", "TTOU"):
            server.send(signal.Signals[f"SIG{name}"], to=worker)
        assert server.get() == (200, str(worker).encode())
        assert server.worker_pids == [worker]


@pytest.mark.over_both
@pytest.mark.parametrize(("name", "quick"), [("TERM", False), ("QUIT", False), ("INT", True)])
def test_a_stop_lets_running_requests_finish(name: str, quick: bool, faulty: Callable[..., LiveServer]) -> None:
    with faulty() as server:
        thread, answers = in_background(server, "/slow?0.5")
        server.wait_for_output("slow")
        assert server.stop(signal.Signals[f"SIG{name}"]) == 0
        thread.join()
        assert [status for status, _ in answers] == [200]
        assert server.all("pool.stopping")[0]["graceful"] is not quick
        exits_balance(server)


@pytest.mark.over_both
def test_ctrl_c_twice_ends_at_once_and_nobody_but_the_parent_speaks(faulty: Callable[..., LiveServer]) -> None:
    with faulty() as server:
        thread, _ = in_background(server, "/slow")
        server.wait_for_output("slow")
        os.killpg(server.pid, signal.SIGINT)
        os.killpg(server.pid, signal.SIGINT)  # the same key press, as wrappers send it
        server.wait_for("pool.stopping", graceful=False)
        threading.Event().wait(0.4)  # as long as a second one takes
        assert not server.all("worker.killed")
        os.killpg(server.pid, signal.SIGINT)
        assert server.wait() == 0
        thread.join()
        began, ended = (server.all(name)[0]["timestamp"] for name in ("pool.stopping", "worker.killed"))
        assert (datetime.fromisoformat(ended) - datetime.fromisoformat(began)).total_seconds() < QUICK_STOP_S
        assert len(server.output) == 1  # what the app printed
        exits_balance(server)


def test_what_waits_in_the_queue_at_term_is_answered(faulty: Callable[..., LiveServer]) -> None:
    with faulty(max_workers=1, threads=1) as server:
        thread, answers = in_background(server, "/slow?0.5")
        server.wait_for_output("slow")
        queued = [HTTPConnection(*server.address, timeout=10) for _ in range(10)]
        for connection in queued:
            connection.request("GET", "/")
        server.send(signal.SIGTERM)
        assert [connection.getresponse().status for connection in queued] == [200] * 10
        for connection in queued:
            connection.close()
        thread.join()
        assert answers[0][0] == 200
        assert server.wait() == 0


# Faults.


@pytest.mark.over_both
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/exit", {"exit_code": 7, "signal": None}),
        ("/segv", {"exit_code": None, "signal": "SIGSEGV"}),
    ],
)
def test_a_worker_that_dies_in_a_request_is_replaced(
    path: str, fields: dict[str, Any], faulty: Callable[..., LiveServer]
) -> None:
    with faulty() as server:
        with pytest.raises(ConnectionError):
            server.get(path)
        gone = server.wait_for("worker.exited", **fields)
        assert (gone["expected"], gone["level"], gone["reason"]) == (False, "error", "crash")
        server.wait_for("worker.ready", count=3)
        assert server.get()[0] == 200
        server.stop()
        exits_balance(server)


@pytest.mark.over_both
def test_an_app_that_calls_sys_exit_costs_an_error_and_no_worker(faulty: Callable[..., LiveServer]) -> None:
    with faulty() as server:
        assert server.get("/system-exit")[0] == 500
        assert len(server.worker_pids) == 2
        assert not server.all("worker.exited")


@pytest.mark.over_both
def test_a_killed_worker_is_replaced_and_the_others_serve(faulty: Callable[..., LiveServer]) -> None:
    with faulty(max_workers=3) as server:
        for count in range(1, 4):
            server.send(signal.SIGKILL, to=server.worker_pids[0])
            server.wait_for("worker.exited", count=count, signal="SIGKILL", expected=False)
            assert server.get()[0] == 200
        server.wait_for("worker.ready", count=6)
        server.stop()
        exits_balance(server)


def test_a_death_is_seen_although_a_grandchild_lives(faulty: Callable[..., LiveServer]) -> None:
    more = "\ndef forks(e, s):\n    if e['PATH_INFO'] == '/fork' and os.fork() == 0:\n        time.sleep(60)\n        os._exit(0)\n    return app(e, s)\n"
    with faulty(more, app="sample:forks", max_workers=1) as server:
        _, worker = server.get("/fork")
        (grandchild,) = psutil.Process(int(worker)).children()
        server.send(signal.SIGKILL, to=int(worker))
        server.wait_for("worker.exited", child_pid=int(worker))
        grandchild.kill()


@pytest.mark.over_both
@pytest.mark.parametrize("pool_stops", [True, False])
def test_a_stopped_worker_holds_up_nobody(pool_stops: bool, faulty: Callable[..., LiveServer]) -> None:
    with faulty(max_workers=2, graceful_timeout=2.5) as server:
        stopped, other = server.worker_pids
        put_to_sleep(stopped)
        assert {server.get() for _ in range(10)} == {(200, b"%d" % other)}
        if not pool_stops:
            server.send(signal.SIGTTOU)
            server.send(signal.SIGCONT, to=stopped)
            server.wait_for("worker.exited", exit_code=0)
        else:
            assert server.stop() == 0
            assert server.all("worker.killed", child_pid=stopped)
            assert server.all("worker.exited", child_pid=other, exit_code=0)


@pytest.mark.over_both
def test_workers_outlive_a_killed_parent_only_to_finish_their_work(faulty: Callable[..., LiveServer]) -> None:
    with faulty(graceful_timeout=20) as server:
        thread, answers = in_background(server, "/slow?0.5")
        server.wait_for_output("slow")
        workers, address = server.worker_pids, server.address
        server.send(signal.SIGKILL)
        thread.join()
        assert answers[0][0] == 200
        wait_until_gone(workers)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)


@pytest.mark.over_both
def test_orphaned_workers_give_up_after_the_graceful_timeout(faulty: Callable[..., LiveServer]) -> None:
    with faulty(graceful_timeout=0.5) as server:
        thread, answers = in_background(server, "/slow")
        server.wait_for_output("slow")
        workers = server.worker_pids
        server.send(signal.SIGKILL)
        wait_until_gone(workers, timeout=5)
        thread.join()
        assert isinstance(answers[0], OSError)


# Starts that fail.


def test_a_broken_app_is_told_once_and_ends_the_pool(faulty: Callable[..., LiveServer]) -> None:
    with faulty("raise LookupError('no such shop')\n", preload=False, max_workers=4, where={"ready": ""}) as server:
        assert server.wait() == 1
        (told,) = server.all("pool.boot_failed", code="PF206")
        assert told["reason"].startswith("importing sample failed: LookupError: no such shop")
        first, frame, *_, last = told["exception"].splitlines()
        assert (first, last) == ("Traceback (most recent call last):", "LookupError: no such shop")
        assert "sample.py" in frame
        assert "/prefork/" not in told["exception"]
        assert not any("LookupError" in line for line in server.output)
        exits_balance(server)


def test_an_app_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    with LiveServer.pool("nomodule:app", app_dir=str(tmp_path), preload=False, where={"ready": ""}) as server:
        assert server.wait() == 1
        (told,) = server.all("pool.boot_failed", code="PF202")
        assert told["reason"].startswith("there is no module 'nomodule': ")
        assert "exception" not in told


@pytest.mark.parametrize(
    ("app", "code", "status"),
    [("sample:nothing", "PF203", 2), ("nomodule:app", "PF202", 2), ("raising:app", "PF206", 1)],
)
def test_a_pool_that_cannot_load_the_app_says_so_in_its_log(tmp_path: Path, app: str, code: str, status: int) -> None:
    (tmp_path / "sample.py").touch()
    (tmp_path / "raising.py").write_text("raise LookupError('no such shop')\n")
    with LiveServer.of(app, "--log-file", "log", cwd=tmp_path, ready="") as server:
        assert server.wait() == status
        assert server.output[-1].startswith("prefork: error: ")
        assert not server.records
    *_, failed, stopped = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert (failed["event"], failed["level"], failed["code"]) == ("pool.boot_failed", "critical", code)
    assert server.output[-1] == f"prefork: error: {failed['reason']}"
    assert ("raising.py" in failed.get("exception", "")) is (code == "PF206")
    assert (stopped["event"], stopped["exit_code"]) == ("pool.stopped", status)


def test_an_app_that_exits_while_it_is_imported_ends_the_pool(faulty: Callable[..., LiveServer]) -> None:
    with faulty("sys.exit(0)\n", preload=False, where={"ready": ""}) as server:
        assert server.wait() == 1
        assert server.all("pool.boot_failed")


def test_a_worker_started_hook_that_fails_fails_the_boot(faulty: Callable[..., LiveServer]) -> None:
    more = "def broken(worker):\n    raise LookupError(worker.number)\n"
    with faulty(more, worker_started="sample:broken", where={"ready": ""}) as server:
        assert server.wait() == 1
        (told,) = server.all("pool.boot_failed")
        assert "LookupError" in told["exception"]


def test_workers_that_die_without_a_word_end_the_pool(faulty: Callable[..., LiveServer]) -> None:
    with faulty("os._exit(9)\n", preload=False, where={"ready": ""}) as server:
        assert server.wait() == 1
        (told,) = server.all("pool.boot_failed", code="PF402", attempts=3)
        assert told["reason"] == "crash_loop: the last ended with status 9"
        exits_balance(server)


def test_workers_that_crash_end_the_pool_with_a_stack(faulty: Callable[..., LiveServer]) -> None:
    with faulty("import ctypes\nctypes.string_at(0)\n", preload=False, where={"ready": ""}) as server:
        assert server.wait() == 1
        (told,) = server.all("pool.boot_failed")
        assert told["reason"] == "crash_loop: the last was ended by SIGSEGV"
        assert "sample.py" in told["exception"]


def test_a_pool_whose_first_workers_never_boot_gives_up(faulty: Callable[..., LiveServer]) -> None:
    with faulty("time.sleep(600)\n", preload=False, boot_timeout=1, where={"ready": ""}) as server:
        assert server.wait() == 1
        late = server.all("worker.boot_failed", reason="not ready after 1 s", code="PF401")
        stacks = [record.get("exception", "") for record in late]
        assert any("sample.py" in stack for stack in stacks)  # on a busy machine not each says in time where it is
        (told,) = server.all("pool.boot_failed", reason="not ready after 1 s", code="PF401", attempts=3)
        assert told.get("exception", "") in stacks
        exits_balance(server)


def test_a_worker_that_never_boots_is_killed(faulty: Callable[..., LiveServer], tmp_path: Path) -> None:
    more = f"if os.path.exists({str(tmp_path / 'hang')!r}):\n    time.sleep(60)\n"
    with faulty(more, preload=False, max_workers=1, boot_timeout=0.5) as server:
        (tmp_path / "hang").touch()
        server.send(signal.SIGUSR2)
        late = server.wait_for("worker.boot_failed", code="PF401")
        server.wait_for("worker.exited", child_pid=late["child_pid"], signal="SIGKILL")
        assert server.get()[0] == 200
        (tmp_path / "hang").unlink()
        server.wait_for("worker.exited", exit_code=0)


def test_workers_that_die_quickly_are_forked_ever_more_slowly(faulty: Callable[..., LiveServer]) -> None:
    with faulty(max_workers=1) as server:
        for count in range(1, 4):
            server.wait_for("worker.ready", count=count)
            server.send(signal.SIGKILL, to=server.worker_pids[0])
            server.wait_for("worker.exited", count=count)
        delays = [record["delay_s"] for record in server.all("worker.respawn_delayed", code="PF402")]
        assert delays == sorted(delays)
        assert delays[-1] > 0
        assert server.stop() == 0


REFUSING = """
import errno, os, sys, prefork.children
from prefork import WorkerPool
from sample import app
real, left = os.fork, int(sys.argv[1])

def fork():
    global left
    left -= 1
    if left < 0 and left > -4:
        raise OSError(errno.EAGAIN, "no more processes")
    return real()

os.fork = fork
descriptors = lambda: sorted(os.listdir("/dev/fd"))
before = []
def hook(pool):
    before.append(descriptors())
    print(len(before[-1]), flush=True)
sys.exit(WorkerPool(app, bind="127.0.0.1:0", max_workers=2, log_format="json", log_level="debug", before_fork=hook).serve())
"""


@pytest.mark.parametrize("first", [0, 1], ids=["none at first", "one at first"])
def test_a_fork_that_is_refused_is_tried_again(first: int, write_app: Callable[..., Path]) -> None:
    folder = write_app()
    with LiveServer.script(REFUSING, str(first), cwd=folder) as server:
        assert len(server.all("pool.fork_failed", code="PF404")) >= 2
        assert "no more processes" in server.all("pool.fork_failed")[0]["error"]
        assert server.get()[0] == 200
        assert server.stop() == 0
        exits_balance(server)
        _, *failed = [int(count) for count in server.output]  # at the first fork one is opened for all
        assert max(failed) - min(failed) <= 5  # a worker costs five descriptors, a refused one none


# The parent calls it before each fork: the third one is that of a successor.
RAISING = """
import os, sys
from prefork import WorkerPool
from sample import app
calls = []
def hook(pool):
    calls.append(pool)
    if len(calls) > 2:
        raise {}
if __name__ == "__main__":
    options = dict(bind="127.0.0.1:0", max_workers=2, log_format="json", log_level="debug")
    {}
"""
RAISED = RAISING.replace("    {}\n", "    sys.exit(WorkerPool(app, before_fork=hook, **options).serve())\n")
CLEANED = RAISING.replace(
    "    {}\n", "    sys.exit(WorkerPool(app, hygiene=[lambda: hook(None)], **options).serve())\n"
)


@pytest.mark.parametrize(("program", "name"), [(RAISED, "before_fork"), (CLEANED, "hygiene")])
def test_a_hook_that_exits_is_one_that_failed(program: str, name: str, write_app: Callable[..., Path]) -> None:
    with LiveServer.script(program.format("SystemExit(3)"), cwd=write_app()) as server:
        server.send(signal.SIGKILL, to=server.worker_pids[0])
        server.wait_for("hook.failed", hook=name)
        server.wait_for("worker.ready", count=3)
        assert server.get()[0] == 200
        assert server.stop() == 0


def test_workers_of_a_parent_that_goes_by_an_exception_finish_and_leave(write_app: Callable[..., Path]) -> None:
    slow = """
def app(environ, start_response):
    start_response("200 OK", [])
    open("here", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.01)
    return [b"done"]
"""
    folder = write_app(slow)
    with LiveServer.script(RAISED.format("KeyboardInterrupt('enough')"), cwd=folder) as server:
        victim, other = server.worker_pids
        put_to_sleep(victim)
        with closing(HTTPConnection(*server.address, timeout=20)) as connection:
            connection.request("GET", "/")
            until((folder / "here").exists)
            os.kill(victim, signal.SIGKILL)
            server.wait_for_output("KeyboardInterrupt: enough")
            assert server.process.wait(20) != 0
            (folder / "go").touch()
            assert connection.getresponse().read() == b"done"
        wait_until_gone([other])


# What a worker is.


def test_a_worker_has_nothing_to_read(faulty: Callable[..., LiveServer]) -> None:
    more = """
def reading(environ, start_response):
    start_response("200 OK", [])
    return [repr((sys.stdin.name, sys.stdin.read())).encode()]
"""
    with faulty(more, app="sample:reading", max_workers=1) as server:
        assert server.get()[1] == repr((os.devnull, "")).encode()


def test_a_worker_imports_nothing_that_its_parent_could_have(faulty: Callable[..., LiveServer]) -> None:
    more = """
known = set()
def forking(pool):
    known.update(sys.modules)
def imports(environ, start_response):
    environ["wsgi.input"].read()
    start_response("200 OK", [])
    return [repr(sorted(set(sys.modules) - known)).encode()]
"""
    with faulty(
        more, app="sample:imports", before_fork="sample:forking", max_workers=1, max_reqs_per_child=4
    ) as server:
        for body in (None, b"x" * 10, b"x" * 2_000_000):
            assert server.get(method="POST", body=body) == (200, b"[]")
        server.wait_for("worker.ready", count=2)
        assert server.get() == (200, b"[]")


def test_atexit_runs_in_a_worker_what_was_registered_there(faulty: Callable[..., LiveServer]) -> None:
    more = """
import atexit
atexit.register(lambda: os.write(1, b"parent %d\\n" % os.getpid()))
def started(worker):
    atexit.register(lambda: os.write(1, b"worker %d\\n" % os.getpid()))
"""
    with faulty(more, worker_started="sample:started") as server:
        workers, parent = server.worker_pids, server.parent_pid
        assert server.stop() == 0
        assert sorted(server.output) == sorted([f"parent {parent}", *(f"worker {pid}" for pid in workers)])


def test_hooks_run_in_the_worker_at_both_ends(faulty: Callable[..., LiveServer]) -> None:
    more = """
def started(worker):
    print("started", worker.number, worker.pid == os.getpid(), worker.app is faults, flush=True)
def exiting(worker):
    print("exiting", worker.number, flush=True)
    raise LookupError
"""
    options = {"worker_started": "sample:started", "worker_exiting": "sample:exiting", "max_workers": 1}
    with faulty(more, **options) as server:
        assert server.stop() == 0
        assert server.output == ["started 0 True True", "exiting 0"]
        assert server.all("hook.failed", code="PF433")[0]["hook"] == "worker_exiting"
        (gone,) = server.all("worker.exited", exit_code=0)
        assert "code" not in gone


def test_a_used_executor_of_asgiref_is_replaced_in_the_worker(faulty: Callable[..., LiveServer]) -> None:
    pytest.importorskip("asgiref")
    more = """
from asgiref.sync import async_to_sync, sync_to_async
def use():
    return async_to_sync(sync_to_async(os.getpid, thread_sensitive=True))()
import asyncio
async def loop_use():
    return await sync_to_async(os.getpid)()
asyncio.run(loop_use())
def asks(environ, start_response):
    start_response("200 OK", [])
    return [str(asyncio.run(loop_use())).encode()]
"""
    with faulty(more, app="sample:asks", max_workers=1) as server:
        assert server.get(timeout=5) == (200, str(server.worker_pids[0]).encode())


@pytest.mark.over_both
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_worker_keeps_no_descriptor_of_its_siblings_or_its_parent(faulty: Callable[..., LiveServer]) -> None:
    with faulty(max_workers=4) as server:
        pids = server.worker_pids
        open_in = {
            pid: {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()} for pid in [server.pid, *pids]
        }
        for pid in pids:
            pipes = {name for name in open_in[pid] if name.startswith("pipe:")}
            for sibling in set(pids) - {pid}:
                shared = pipes & open_in[sibling] - open_in_start(server)
                assert not shared, f"{pid} shares {shared} with {sibling}"
            assert not any("pidfd" in name for name in open_in[pid])
        numbers = [psutil.Process(pid).num_fds() for pid in pids]
        assert max(numbers) == min(numbers)


def open_in_start(server: LiveServer) -> set[str]:
    """Return what all processes of the test share: its standard streams."""
    return {str(Path(f"/proc/{server.pid}/fd/{number}").readlink()) for number in (0, 1, 2)}


def test_descriptors_and_memory_of_the_parent_do_not_grow(faulty: Callable[..., LiveServer]) -> None:
    with faulty(max_reqs_per_child=5) as server:
        parent = psutil.Process(server.parent_pid)
        before = parent.num_fds()
        with Tally(server) as tally:
            server.wait_for("worker.exited", count=20)
            # Not what it has to itself: that shrinks and grows with the number of those whom it shares the rest with.
            memory = parent.memory_info().rss
            server.wait_for("worker.exited", count=60)
            assert parent.memory_info().rss - memory < 2 * 1024**2
        # One that is released, and has some of its budget left, stays; for each the parent holds a few.
        until(lambda: parent.num_fds() <= before + 2 + 6 * (len(server.worker_pids) - 2))
        assert parent.num_threads() == 1
        assert not tally.lost


def test_what_the_parent_has_is_frozen_in_a_worker(faulty: Callable[..., LiveServer]) -> None:
    more = "\nimport gc\ndef frozen(e, s):\n    s('200 OK', [])\n    return [b'%d' % gc.get_freeze_count()]\n"
    with faulty(more, app="sample:frozen") as server:
        assert int(server.get()[1]) > 10_000


def test_an_idle_pool_sleeps(faulty: Callable[..., LiveServer]) -> None:
    with faulty() as server:
        server.get()
        watched = [psutil.Process(pid) for pid in (server.parent_pid, *server.worker_pids)]

        def nobody_wakes() -> bool:
            before = [process.num_ctx_switches().voluntary for process in watched]
            threading.Event().wait(1.0)
            return [process.num_ctx_switches().voluntary for process in watched] == before

        until(nobody_wakes)  # the monitor of the driver needs a moment to fall asleep


WITHOUT_PIDFD = """
import os, sys
del os.pidfd_open
from prefork import WorkerPool
from sample import app
sys.exit(WorkerPool(app, bind="127.0.0.1:0", max_workers=2, log_format="json", log_level="debug").serve())
"""


def test_deaths_are_seen_on_systems_without_pidfds(write_app: Callable[..., Path]) -> None:
    with LiveServer.script(WITHOUT_PIDFD, cwd=write_app()) as server:
        server.send(signal.SIGKILL, to=server.worker_pids[0])
        server.wait_for("worker.exited", signal="SIGKILL")
        server.wait_for("worker.ready", count=3)
        assert server.stop() == 0
        exits_balance(server)


# The third fork is that of a successor.
REAPING = """
import multiprocessing, os, signal, sys
{}
from prefork import WorkerPool
from sample import app
calls = []
def reap(pool):
    calls.append(pool)
    if len(calls) == 3:
        (sibling,) = multiprocessing.active_children()
        os.kill(sibling.pid, signal.SIGKILL)
        os.waitpid(sibling.pid, 0)
options = dict(bind="127.0.0.1:0", max_workers=2, log_format="json", log_level="debug")
sys.exit(WorkerPool(app, before_fork=reap, **options).serve())
"""


@pytest.mark.parametrize("system", ["", "del os.pidfd_open"], ids=["pidfds", "no pidfds"])
def test_a_worker_that_somebody_else_has_reaped_is_dead(system: str, write_app: Callable[..., Path]) -> None:
    with LiveServer.script(REAPING.format(system), cwd=write_app()) as server:
        server.send(signal.SIGKILL, to=server.worker_pids[0])
        server.wait_for("worker.exited", exit_code=None, signal=None)
        server.wait_for("worker.ready", count=4)
        assert server.stop() == 0
        exits_balance(server)


MEDDLING = """
import signal
def meddle(*_):
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: print("terminated", flush=True))
    signal.set_wakeup_fd(-1)
"""


@pytest.mark.parametrize(
    ("more", "options"),
    [
        ("meddle()", {}),
        ("", {"warm_up": "sample:meddle"}),
        ("", {"before_fork": "sample:meddle"}),
        ("", {"before_fork": "sample:meddle", "preload": False}),
    ],
    ids=["import", "warm_up", "before_fork", "without preload"],
)
def test_the_parents_signals_are_its_own_whatever_the_application_does_to_them(
    more: str, options: dict[str, Any], write_app: Callable[..., Path]
) -> None:
    folder = write_app(MEDDLING + more)
    with LiveServer.pool("sample:app", app_dir=str(folder), max_workers=2, **options) as server:
        server.send(signal.SIGKILL, to=server.worker_pids[0])
        server.wait_for("worker.exited", signal="SIGKILL")
        server.wait_for("worker.ready", count=3)
        assert server.stop() == 0
        assert "terminated" not in server.output
        exits_balance(server)


def test_auto_says_how_the_number_of_workers_came_about(faulty: Callable[..., LiveServer]) -> None:
    with faulty(max_workers="auto") as server:
        (starting,) = server.all("pool.starting")
        assert "affinity" in starting["workers_counted"]
        assert server.all("pool.ready")[0]["workers"] == starting["workers"]


FORKS = """
import contextlib, multiprocessing, signal

def forks(environ, start_response):
    if environ["PATH_INFO"] == "/child":
        if not (child := os.fork()):
            os.setsid()
            # Whoever reads what the server writes waits for the end of that.
            pipes = {os.fstat(1).st_ino, os.fstat(2).st_ino}
            for descriptor in range(1, 100):
                with contextlib.suppress(OSError):
                    if os.fstat(descriptor).st_ino in pipes:
                        os.close(descriptor)
            signal.pause()
        body = str(child)
    if environ["PATH_INFO"] == "/terminated":
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=[60])
        child.start()
        child.terminate()
        child.join()
        body = f"{child.exitcode} {os.getpid()}"
    if environ["PATH_INFO"] == "/crash":
        if not (child := os.fork()):
            os.abort()
        body = str(os.waitpid(child, 0)[1])
    if environ["PATH_INFO"] in ("/returning", "/raising"):
        child = os.fork()
        if not child and environ["PATH_INFO"] == "/raising":
            raise LookupError("no such tea")
        body = str(os.waitpid(child, 0)[1]) if child else "child"
    if environ["PATH_INFO"] == "/pid":
        body = str(os.getpid())
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body.encode()]
"""


@pytest.mark.over_both
def test_a_child_that_a_view_forks_keeps_no_client_and_no_port(write_app: Callable[..., Path]) -> None:
    children = []
    with LiveServer.pool("sample:forks", app_dir=str(write_app(FORKS)), max_workers=1) as server:
        (worker,) = server.worker_pids
        with socket.create_connection(server.address, timeout=20) as client:
            client.sendall(b"GET /child HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            answer = client.makefile("rb").read()  # to the end of the connection
            children.append(int(answer.rpartition(b"\r\n")[2]))
        kept = HTTPConnection(*server.address, timeout=20)
        kept.request("GET", "/child")
        children.append(int(kept.getresponse().read()))
        kept.close()
        until(lambda: all_asleep(worker))
        server.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(server.address, timeout=20)
        for child in children:
            os.kill(child, signal.SIGTERM)


@pytest.mark.over_both
def test_a_signal_for_a_child_that_a_view_forks_is_for_that_alone(write_app: Callable[..., Path]) -> None:
    with LiveServer.pool("sample:forks", app_dir=str(write_app(FORKS)), max_workers=1) as server:
        status, worker = server.get("/terminated")[1].split()
        assert int(status) == -signal.SIGTERM
        assert server.get("/pid")[1] == worker
        assert not server.all("worker.retiring")


def test_the_crash_of_a_child_that_a_view_forks_is_not_told_of_its_worker(write_app: Callable[..., Path]) -> None:
    with LiveServer.pool("sample:forks", app_dir=str(write_app(FORKS)), max_workers=1) as server:
        assert server.get("/crash")[1] == b"%d" % signal.SIGABRT
        server.wait_for_output("Fatal Python error: Aborted")
        os.kill(server.worker_pids[0], signal.SIGKILL)
        assert server.wait_for("worker.exited", signal="SIGKILL")["stack"] is None


@pytest.mark.parametrize("path", ["/returning", "/raising"])
def test_a_child_that_a_view_forks_and_that_comes_back_from_it_ends_without_a_word(
    path: str, write_app: Callable[..., Path]
) -> None:
    options: dict[str, Any] = {"app_dir": str(write_app(FORKS)), "max_workers": 1, "access_log": "-"}
    with LiveServer.pool("sample:forks", **options) as server:
        assert os.waitstatus_to_exitcode(int(server.get(path)[1])) == 1
        server.wait_for("request.finished", status=200)
        assert server.stop() == 0
        assert len(server.all("request.finished")) == 1
        assert not server.all("request.failed")
