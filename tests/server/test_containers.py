"""What does process 1 of a container do about signals, orphans and a balancer that hears late of the stop?"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from server_process import LiveServer, Tally, until

if TYPE_CHECKING:
    from collections.abc import Callable

APP = """
def orphans(environ, start_response):
    if environ["PATH_INFO"] == "/orphan" and os.fork() == 0:
        if os.fork() == 0:
            time.sleep(0.05)
        os._exit(3)
    return app(environ, start_response)
"""
UNSHARE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


class Container(LiveServer):
    """The command as process 1 of a process namespace, with the /proc of that."""

    def __init__(self, *command: str, **more: object) -> None:
        if subprocess.run([*UNSHARE, "true"], check=False, capture_output=True).returncode != 0:
            pytest.skip("this user cannot make a process namespace")
        super().__init__(*command, **more)  # type: ignore[arg-type]  # as it was given
        self.command = ["/usr/bin/env", *UNSHARE, *self.command]

    @property
    def process_1(self) -> int:
        """Its id, seen from outside."""
        (pid,) = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return int(pid)

    def zombies(self) -> int:
        """How many dead processes nobody has asked for, below process 1."""
        children = Path(f"/proc/{self.process_1}/task/{self.process_1}/children").read_text().split()
        states = []
        for child in children:
            with suppress(FileNotFoundError, ProcessLookupError):  # it was asked for meanwhile
                states.append(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0])
        return states.count("Z")


@pytest.fixture
def container(write_app: Callable[..., Path]) -> Callable[..., Container]:
    def start(*flags: str) -> Container:
        return Container.of("sample:orphans", "--app-dir", str(write_app(APP)), "-w", "2", *flags)

    return start


def test_process_1_stays_when_hup_replaces_all_that_serve(container: Callable[..., Container]) -> None:
    with container("--max-reqs-per-child", "0") as server, Tally(server) as tally:
        tally.wait_for(20)
        before, process_1 = set(tally.bodies), server.process_1
        os.kill(process_1, signal.SIGHUP)
        for pid in before:
            server.wait_for("worker.exited", child_pid=int(pid))
        until(lambda: bool(set(tally.bodies) - before))  # a worker that was not there
        assert server.process_1 == process_1
        tally.stop()
        os.kill(process_1, signal.SIGTERM)
        assert server.wait() == 0
    assert not tally.lost
    assert set(tally.statuses) == {200}


def test_process_1_takes_its_time_where_stop_delay_says_so(container: Callable[..., Container]) -> None:
    with container("--stop-delay", "5") as server, Tally(server, keep_alive=False) as tally:
        os.kill(server.process_1, signal.SIGTERM)
        server.wait_for("pool.stop_delayed")
        tally.wait_for(20)
        tally.stop()
        assert server.wait() == 0
    assert not tally.lost


def test_process_1_leaves_no_orphan_unburied(container: Callable[..., Container]) -> None:
    with container() as server:
        for _ in range(5):
            assert server.get("/orphan")[0] == 200
        until(lambda: server.zombies() == 0)
        os.kill(server.process_1, signal.SIGHUP)
        server.wait_for("worker.ready", count=4)
        for _ in range(5):
            assert server.get("/orphan")[0] == 200
        until(lambda: server.zombies() == 0)
        os.kill(server.process_1, signal.SIGTERM)
        assert server.wait() == 0
