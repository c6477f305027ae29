"""What does systemd hear of a service, from its start to its end?"""

from __future__ import annotations

import configparser
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from server_process import PATIENCE, ROOT, LiveServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

UNITS = sorted((ROOT / "examples" / "systemd").iterdir())


class Systemd:
    """A stand-in for systemd's end of the line."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("")  # the system chooses an abstract name
        self.socket.settimeout(PATIENCE)
        self.heard: list[dict[str, str]] = []

    @property
    def environment(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": os.fsdecode(self.socket.getsockname()).replace("\0", "@", 1)}

    def drain(self) -> None:
        """Forget what was said so far."""
        self.socket.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                self.socket.recv(4096)
        self.socket.settimeout(PATIENCE)

    def wait_for(self, name: str) -> dict[str, str]:
        """Return the next message that has this field; what comes before it is kept too."""
        while True:
            lines = self.socket.recv(4096).decode().splitlines()
            self.heard.append(dict(line.split("=", 1) for line in lines))
            if name in self.heard[-1]:
                return self.heard[-1]


@pytest.fixture
def systemd() -> Iterator[Systemd]:
    stand_in = Systemd()
    with stand_in.socket:
        yield stand_in


@pytest.fixture
def flags(write_app: Callable[..., Path]) -> tuple[str, ...]:
    return ("sample:app", "--app-dir", str(write_app()), "-w", "2")


def test_it_hears_of_start_reload_and_stop(systemd: Systemd, flags: tuple[str, ...]) -> None:
    before = time.monotonic_ns() // 1000
    with LiveServer.of(*flags, env=systemd.environment) as server:
        assert systemd.wait_for("READY") == {"READY": "1", "STATUS": "2 workers serve"}
        server.process.send_signal(signal.SIGHUP)
        reloading = systemd.wait_for("RELOADING")
        assert before < int(reloading["MONOTONIC_USEC"]) < time.monotonic_ns() // 1000
        assert systemd.wait_for("READY")["STATUS"].startswith("2 workers serve")
        server.process.send_signal(signal.SIGTTIN)
        assert "3" in systemd.wait_for("STATUS")["STATUS"]
        server.stop()
        assert systemd.wait_for("STOPPING")["STATUS"] == "stopping"
    assert [sum(name in heard for heard in systemd.heard) for name in ("READY", "RELOADING", "STOPPING")] == [2, 1, 1]


def test_a_deploy_that_fails_ends_the_reload(
    systemd: Systemd, flags: tuple[str, ...], write_app: Callable[..., Path]
) -> None:
    with LiveServer.of(*flags, env=systemd.environment) as server:
        systemd.wait_for("READY")
        write_app("raise LookupError('no shop')")
        server.process.send_signal(signal.SIGHUP)
        assert systemd.wait_for("RELOADING")["STATUS"] == "starting new code"
        told = systemd.wait_for("READY")["STATUS"]
        assert told.startswith("new code was not deployed: importing sample failed: LookupError: no shop")
        assert server.get()[0] == 200


def test_the_watchdog_hears_of_a_pool_that_is_idle(systemd: Systemd, flags: tuple[str, ...]) -> None:
    environment = {**systemd.environment, "WATCHDOG_USEC": "200000"}
    with LiveServer.of(*flags, env=environment):
        for _ in range(5):
            assert systemd.wait_for("WATCHDOG") == {"WATCHDOG": "1"}


# Imported again, it waits until it may go on, and then fails.
FAILS_ANEW = """
from pathlib import Path
here = Path(__file__).parent
if (here / "anew").exists():
    while not (here / "on").exists():
        time.sleep(0.01)
    if not (here / "mended").exists():
        raise LookupError("no shop")
"""


def test_a_pool_that_cannot_be_started_anew_yet_is_no_stop_of_the_service(
    systemd: Systemd, write_app: Callable[..., Path]
) -> None:
    folder = write_app(FAILS_ANEW)
    flags = ("sample:app", "--app-dir", str(folder), "-w", "2", "--no-preload", "--max-reqs-per-child", "0")
    with LiveServer.of(*flags, env=systemd.environment) as server:
        systemd.wait_for("READY")
        (folder / "anew").touch()
        (folder / "on").touch()
        os.kill(server.parent_pid, signal.SIGKILL)
        server.wait_for("pool.deploy_failed")
        (folder / "mended").touch()
        server.wait_for("pool.deployed")
        systemd.wait_for("READY")
        assert not any("STOPPING" in heard for heard in systemd.heard)


def test_the_watchdog_hears_of_a_service_whose_pool_died_and_is_not_there_again_yet(
    systemd: Systemd, write_app: Callable[..., Path]
) -> None:
    folder = write_app(FAILS_ANEW)
    environment = {**systemd.environment, "WATCHDOG_USEC": "200000"}
    with LiveServer.of("sample:app", "--app-dir", str(folder), "-w", "1", env=environment) as server:
        systemd.wait_for("READY")
        (folder / "anew").touch()
        os.kill(server.parent_pid, signal.SIGKILL)
        server.wait_for("pool.died")
        systemd.drain()
        for _ in range(5):
            assert systemd.wait_for("WATCHDOG") == {"WATCHDOG": "1"}
        assert not server.all("pool.deployed")
        (folder / "mended").touch()
        (folder / "on").touch()
        server.wait_for("pool.deployed")


def test_the_application_and_its_programs_have_no_line_to_systemd(
    systemd: Systemd, write_app: Callable[..., Path]
) -> None:
    app = """
def spy(environ, start_response):
    start_response("200 OK", [])
    return [repr([name for name in os.environ if name.startswith(("NOTIFY_", "WATCHDOG_"))]).encode()]
"""
    folder = write_app(app)
    environment = {**systemd.environment, "WATCHDOG_USEC": "60000000"}
    with LiveServer.of("sample:spy", "--app-dir", str(folder), "-w", "1", env=environment) as server:
        assert server.get() == (200, b"[]")


def test_a_pool_that_a_program_started_does_not_speak_for_the_program(
    systemd: Systemd, write_app: Callable[..., Path]
) -> None:
    program = """
import sys
from prefork import WorkerPool
with WorkerPool("sample:app", bind="127.0.0.1:0", app_dir=sys.argv[1], max_workers=1, log_format="json") as pool:
    pass
"""
    with LiveServer.script(program, str(write_app()), env=systemd.environment, ready="") as server:
        assert server.wait() == 0
    systemd.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        systemd.socket.recv(4096)


def test_a_generation_of_server_starter_does_not_speak_for_start_server(
    systemd: Systemd, flags: tuple[str, ...]
) -> None:
    program = """
import os, socket, sys
held = socket.create_server(("127.0.0.1", 0))
os.dup2(held.fileno(), 9)
os.environ |= {"SERVER_STARTER_PORT": "8080=9", "SERVER_STARTER_GENERATION": "1"}
os.execv(sys.executable, [sys.executable, "-m", "prefork", *sys.argv[1:]])
"""
    with LiveServer.script(program, *flags, env=systemd.environment) as server:
        assert server.get()[0] == 200
    systemd.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        systemd.socket.recv(4096)


# The example units.


def test_there_are_example_units() -> None:
    assert {unit.suffix for unit in UNITS} == {".service", ".socket"}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_an_example_unit_is_what_systemd_takes(unit: Path, tmp_path: Path) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit.read_text())
    assert {"Unit", unit.suffix[1:].title(), "Install"} <= set(parser.sections())
    if (analyze := shutil.which("systemd-analyze")) is not None:
        for each in UNITS:  # they name each other; the program that they start is elsewhere
            text = each.read_text().replace("/srv/shop/.venv/bin/prefork", sys.executable)
            (tmp_path / each.name).write_text(text.replace("/srv/shop", str(ROOT)).replace("User=shop", "User=root"))
        ran = subprocess.run(
            [analyze, "verify", str(tmp_path / unit.name)], capture_output=True, text=True, check=False
        )
        ours = [line for line in ran.stderr.splitlines() if str(tmp_path) in line or unit.name in line]
        assert ours == []
