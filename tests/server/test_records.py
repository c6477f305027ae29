"""Where do records go, whatever the program has set up? Six set-ups, each in a process of its own, and many writers."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections import Counter
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import pytest
from server_process import ROOT, LiveServer, Tally, lines_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PROGRAM = """
import logging, logging.config, os, signal, sys
{setup}
from prefork import WorkerPool

def app(environ, start_response):
    if environ["PATH_INFO"] == "/raise":
        raise LookupError("in the view")
    logging.getLogger("shop").warning("sold %s", "a cup")
    start_response("200 OK", [])
    return [b"cup"]

def on_record(name, fields):
    if name == "pool.ready":
        if os.fork() == 0:
            from urllib.request import urlopen
            try:
                urlopen(pool.url).read()
                urlopen(pool.url + "/raise").read()
            except OSError:
                pass
            os.kill(os.getppid(), signal.SIGTERM)
            os._exit(0)

before = (logging.getLogger().handlers[:], logging.getLogger("prefork").handlers[:], logging.getLogger("prefork").level)
pool = WorkerPool(app, bind="127.0.0.1:0", max_workers=1, on_record=on_record)
status = pool.serve()
after = (logging.getLogger().handlers[:], logging.getLogger("prefork").handlers[:], logging.getLogger("prefork").level)
assert before == after, (before, after)
sys.exit(status)
"""
NOTHING = ""
BASIC = "logging.basicConfig(level='INFO', format='BASIC %(name)s %(message)s')"
USERS_STRUCTLOG = """
import structlog
handler = logging.StreamHandler()
handler.setFormatter(structlog.stdlib.ProcessorFormatter(
    processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, structlog.processors.JSONRenderer()],
    foreign_pre_chain=[structlog.stdlib.add_log_level]))
logging.getLogger().addHandler(handler)
logging.getLogger().setLevel("INFO")
"""
DICT_CONFIG = """
logging.config.dictConfig({
    "version": 1,
    "formatters": {"plain": {"format": "DICT %(name)s %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "loggers": {"prefork": {"handlers": ["console"], "level": "INFO"}},
})
"""
OWN_STRUCTLOG = """
import structlog
structlog.configure(processors=[structlog.processors.JSONRenderer(sort_keys=True)],
                    logger_factory=structlog.PrintLoggerFactory(sys.stderr))
"""


def run(setup: str, env: dict[str, str] | None = None) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFORK_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("{setup}", setup)],
        env={**clean, "PYTHONPATH": str(ROOT), **(env or {})},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr.splitlines()


def names(lines: list[str], words: str) -> int:
    return sum(words in line for line in lines)


LIFE = ["pool.starting", "pool.listening", "pool.ready", "pool.stopping", "worker.exited", "pool.stopped"]


def test_nothing_set_up_gives_one_object_a_line() -> None:
    records = [json.loads(line) for line in run(NOTHING) if line.startswith("{")]
    seen = Counter(record["event"] for record in records)
    assert all(seen[name] == 1 for name in LIFE), seen
    (failed,) = [record for record in records if record["event"] == "request.failed"]
    assert failed["exception"].endswith("LookupError: in the view")
    assert failed["logger"] == "prefork.error"
    assert all(list(record)[:4] == ["timestamp", "level", "logger", "event"] for record in records)


def test_a_basic_config_prints_all_and_we_nothing() -> None:
    lines = run(BASIC)
    assert [names(lines, f"BASIC prefork {name}") for name in LIFE] == [1] * len(LIFE)
    assert names(lines, "BASIC shop sold a cup") == 1
    assert names(lines, "LookupError: in the view") == 1
    assert not [line for line in lines if line.startswith("{")]


def test_a_structlog_formatter_at_the_root_gets_the_fields() -> None:
    lines = run(USERS_STRUCTLOG)
    records = [json.loads(line) for line in lines if line.startswith("{")]
    assert len(records) == len(lines)
    seen = Counter(record["event"] for record in records)
    assert all(seen[name] == 1 for name in LIFE), seen
    assert seen["sold a cup"] == 1
    (exited,) = [record for record in records if record["event"] == "worker.exited"]
    assert exited["exit_code"] == 0


def test_a_dict_config_for_our_logger_is_used() -> None:
    lines = run(DICT_CONFIG)
    assert [names(lines, f"DICT prefork {name}") for name in LIFE] == [1] * len(LIFE)
    assert names(lines, "LookupError: in the view") == 1
    assert not [line for line in lines if line.startswith("{")]


def test_the_programs_own_structlog_is_left_alone_and_not_printed_to() -> None:
    lines = run(OWN_STRUCTLOG)
    records = [json.loads(line) for line in lines if line.startswith("{")]
    seen = Counter(record["event"] for record in records)
    assert all(seen[name] == 1 for name in LIFE), seen
    assert all("timestamp" in record for record in records)


@pytest.mark.parametrize(("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)], ids=["colour", "NO_COLOR"])
def test_a_terminal_gets_lines_for_people(env: dict[str, str], coloured: bool) -> None:
    ours, theirs = pty.openpty()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFORK_")}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.replace("{setup}", NOTHING)],
        env={**clean, "PYTHONPATH": str(ROOT), "TERM": "xterm", **env},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    ) as program:
        os.close(theirs)
        text = b""
        try:
            while piece := os.read(ours, 65536):
                text += piece
        except OSError:  # the other end of a pty is closed
            pass
    os.close(ours)
    assert program.returncode == 0, text
    assert text.count(b"pool.ready") == 1
    assert b'{"timestamp"' not in text
    assert (b"\x1b[" in text) == coloured


LONG = "/" + "x" * 6000  # more than a pipe takes at once without mixing


def records_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines_of(path)]


def test_files_that_are_moved_away_are_opened_anew_and_no_request_is_missing(
    write_app: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write_app()
    log = tmp_path / "access.log"
    moved = [tmp_path / f"access.log.{number}" for number in range(3)]
    options: dict[str, Any] = {
        "max_workers": 3,
        "access_log": str(log),
        "app_dir": str(folder),
        "max_reqs_per_child": 0,
    }
    with LiveServer.pool("sample:app", **options) as server:
        with Tally(server) as tally:
            for target in moved:
                tally.wait_for(200)
                log.rename(target)
                server.send(signal.SIGUSR1)
                while not log.exists():
                    tally.wait_for(1)
            tally.wait_for(200)
        answered = tally.answered
        assert not tally.lost
    records = [record for path in (*moved, log) for record in records_of(path)]
    assert {record["event"] for record in records} == {"request.finished"}
    assert len(records) == answered


def test_lines_of_several_workers_do_not_mix(write_app: Callable[..., Path], tmp_path: Path) -> None:
    log = tmp_path / "log"
    flags = ("--max-workers", "4", "--log-file", str(log), "--access-log", "-")
    server = LiveServer.of("sample:app", *flags, cwd=write_app(), ready="")
    with server:
        while "pool.ready" not in "".join(lines_of(log)):
            assert server.process.poll() is None
        (listening,) = [record for record in records_of(log) if record["event"] == "pool.listening"]
        threads = [threading.Thread(target=ask, args=(listening["port"], 25)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        server.stop()
    assert sum(record.get("path") == LONG for record in records_of(log)) == 200


def ask(port: int, times: int) -> None:
    for _ in range(times):
        connection = HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", LONG)
        connection.getresponse().read()
        connection.close()


def test_a_disk_that_is_full_stops_no_request(write_app: Callable[..., Path]) -> None:
    with LiveServer.of("sample:app", "--access-log", "/dev/full", cwd=write_app()) as server:
        for _ in range(5):
            assert server.get()[0] == 200
        assert not server.all("worker.exited")
