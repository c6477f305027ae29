"""What does systemd hear, and where?"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prefork.records import CATALOGUE
from prefork.sd_notify import NEVER, Notifier, address_of, message, notice_of, send, watchdog_period

ROOT = Path(__file__).resolve().parent.parent.parent
PID = 4711


def test_a_message_has_a_line_for_each_field_and_nothing_breaks_a_line() -> None:
    told = message(READY=1, STATUS="two\nlines\r\nand  blanks")
    assert told == b"READY=1\nSTATUS=two lines and blanks"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("/run/systemd/notify", "/run/systemd/notify"),
        ("@/org/systemd/notify", "\0/org/systemd/notify"),
        ("vsock:2:1234", ""),
        ("", ""),
    ],
)
def test_an_address_is_a_path_or_abstract(text: str, address: str) -> None:
    assert address_of(text) == address


@pytest.mark.parametrize(
    ("environ", "period"),
    [
        ({}, NEVER),
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(PID)}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, NEVER),
        ({"WATCHDOG_USEC": "0"}, NEVER),
        ({"WATCHDOG_USEC": "soon"}, NEVER),
    ],
)
def test_a_sign_of_life_comes_twice_in_the_time_that_systemd_gives(environ: dict[str, str], period: float) -> None:
    assert watchdog_period(environ, PID) == period


@pytest.mark.parametrize(
    ("record", "fields", "notice"),
    [
        ("pool.ready", {"workers": 10}, {"READY": 1, "STATUS": "10 workers serve"}),
        (
            "pool.recycling",
            {},
            {"RELOADING": 1, "MONOTONIC_USEC": 5_000_000, "STATUS": "replacing all workers"},
        ),
        ("pool.recycled", {"workers": 10}, {"READY": 1, "STATUS": "10 workers serve, all replaced"}),
        (
            "pool.deploying",
            {"new_generation": 2},
            {"RELOADING": 1, "MONOTONIC_USEC": 5_000_000, "STATUS": "starting new code"},
        ),
        ("pool.deployed", {"workers": 10}, {"READY": 1, "STATUS": "10 workers serve new code"}),
        (
            "pool.deploy_failed",
            {"reason": "no shop"},
            {"READY": 1, "STATUS": "new code was not deployed: no shop"},
        ),
        ("pool.scaling", {"workers_to": 11}, {"STATUS": "11 workers wanted"}),
        ("pool.stop_delayed", {"delay_s": 5.0}, {"STOPPING": 1, "STATUS": "stopping in 5 s"}),
        ("pool.stopping", {}, {"STOPPING": 1, "STATUS": "stopping"}),
        ("pool.boot_failed", {"reason": "app"}, {"STOPPING": 1, "STATUS": "cannot start: app"}),
        ("worker.ready", {}, {}),
    ],
)
def test_what_a_record_means_to_systemd(record: str, fields: dict[str, Any], notice: dict[str, Any]) -> None:
    assert record in CATALOGUE
    assert notice_of(record, fields, 5_000_000_999) == notice


def test_where_systemd_is_not_nothing_is_due() -> None:
    notifier = Notifier({"WATCHDOG_USEC": "1000000"}, PID)
    assert notifier.beat_at == NEVER
    notifier.beat(1e9)
    notifier.tell(READY=1)
    notifier.tell_of("pool.ready", {"workers": 1})


def test_that_nobody_listens_does_no_harm(tmp_path: Path) -> None:
    send(str(tmp_path / "nobody"), b"READY=1")
    send("/" + "x" * 200, b"READY=1")


def test_the_line_is_ours_alone() -> None:
    environ = {"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(PID), "HOME": "/"}
    notifier = Notifier.take(environ, PID)
    assert environ == {"HOME": "/"}
    assert (notifier.address, notifier.period) == ("/run/n", 1.0)


def test_it_stands_alone() -> None:
    code = "import sys; sys.path.append(sys.argv[1]); import sd_notify; print('typing' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(ROOT / "prefork")], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "False"
