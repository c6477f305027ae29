"""Do the metrics of workers that come and go add up?"""

from __future__ import annotations

import signal
from http.client import HTTPException
from typing import TYPE_CHECKING

import pytest
from server_process import ROOT, LiveServer

if TYPE_CHECKING:
    from pathlib import Path


def served(folder: Path, *flags: str) -> LiveServer:
    flags = ("--app-dir", str(ROOT / "examples"), "--worker-started", "metrics:take_place", *flags)
    return LiveServer.of("metrics:app", *flags, env={"PROMETHEUS_MULTIPROC_DIR": str(folder)})


def told(server: LiveServer) -> dict[str, float]:
    lines = server.get("/metrics")[1].decode().splitlines()
    return {name: float(value) for name, value in (line.split() for line in lines if not line.startswith("#"))}


def test_counters_go_on_through_recycling_and_files_do_not_grow_in_number(tmp_path: Path) -> None:
    with served(tmp_path, "-w", "2", "--max-reqs-per-child", "5") as server:
        asked = 0
        while len(server.all("worker.exited")) < 12:
            assert server.get()[0] == 200
            asked += 1
        assert told(server)["shop_requests_total"] == asked
    places = {record["worker"] for record in server.all("worker.spawned")}
    # Of each kind at most one for each place, and the parent's.
    assert len(list(tmp_path.iterdir())) <= 2 * (len(places) + 1)
    assert len(places) < 12


def test_counters_go_on_through_a_deploy(tmp_path: Path) -> None:
    with served(tmp_path, "-w", "2") as server:
        for _ in range(5):
            server.get()
        server.send(signal.SIGHUP, to=server.pid)
        server.wait_for("pool.superseded")
        for _ in range(5):
            server.get()
        assert told(server)["shop_requests_total"] == 10


def test_what_ran_in_a_worker_that_died_does_not_run_any_more(tmp_path: Path) -> None:
    with served(tmp_path, "-w", "1") as server:
        with pytest.raises((HTTPException, OSError)):
            server.get("/crash")
        server.wait_for("worker.ready", count=2)
        figures = told(server)
    assert (figures["shop_running"], figures["shop_requests_total"]) == (0, 1)
