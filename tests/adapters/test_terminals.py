"""Does a server start whatever its output leads to, or if it leads nowhere?"""

from __future__ import annotations

import io
import json
import os
import pty
import sys
from pathlib import Path

import psutil
import pytest
from django_project import write_project
from server_process import LiveServer, lines_of, until

from prefork.terminal import is_terminal

COMMANDS = {
    "prefork": ("-m", "prefork", "app:app", "--bind", "127.0.0.1:0"),
    "flask": ("-m", "flask", "run-prefork", "--port", "0"),
    "django": ("manage.py", "runprefork", "127.0.0.1:0", "--skip-checks"),
}


@pytest.mark.parametrize("closed", ["1", "2"], ids=["stdout", "stderr"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_stream_that_is_closed_is_no_terminal(tmp_path: Path, command: str, closed: str) -> None:
    write_project(tmp_path)
    (tmp_path / "app.py").write_text("from flask import Flask\napp = Flask(__name__)\n")
    log = tmp_path / "log"
    without = ("/bin/sh", "-c", f'exec "$@" {closed}>&-', "sh", sys.executable)
    env = {"PREFORK_LOG_FORMAT": "auto"}
    flags = ("--workers", "1", "--log-file", str(log))
    with LiveServer(*without, *COMMANDS[command], *flags, cwd=tmp_path, env=env, ready="") as server:
        until(lambda: server.process.poll() is not None or (log.exists() and "pool.ready" in log.read_text()))
        assert server.stop() == 0


CHATTY = """
import os
def app(environ, start_response):
    environ["wsgi.errors"].write("to nobody")
    for number in (1, 2):
        os.write(number, b"to nobody")
    start_response("200 OK", [])
    return [" ".join(os.readlink(f"/proc/self/fd/{number}") for number in range(3)).encode()]
"""


@pytest.mark.parametrize("flags", [(), ("--reload",), ("--no-redeploy",)], ids=["kept", "reload", "alone"])
def test_what_is_written_where_no_stream_is_goes_nowhere(tmp_path: Path, flags: tuple[str, ...]) -> None:
    (tmp_path / "app.py").write_text(CHATTY)
    log = tmp_path / "log"
    without = ("/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable)
    flags = ("--workers", "1", "--log-file", str(log), *flags)
    with LiveServer(*without, *COMMANDS["prefork"], *flags, cwd=tmp_path, ready="") as server:
        until(lambda: "pool.ready" in "".join(lines_of(log)))
        server.records += [json.loads(line) for line in lines_of(log)]
        assert server.get() == (200, b"/dev/null /dev/null /dev/null")
        for process in server.group():
            for number in range(3):
                assert Path(f"/proc/{process}/fd/{number}").readlink() == Path(os.devnull)
        assert server.stop() == 0


OCCUPIED = """
import os, sys
data = open("data", "r+b")
assert data.fileno() == 2
from prefork import WorkerPool
options = {"max_workers": 1, "bind": "127.0.0.1:0", "log_file": "log", "log_format": "json", "redeploy": True}
sys.exit(WorkerPool("app:app", **options).serve())
"""


def test_a_file_that_a_program_has_where_no_stream_is_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("def app(environ, start_response):\n    print('x', file=environ['wsgi.errors'])\n")
    log, data = tmp_path / "log", tmp_path / "data"
    data.write_bytes(b"precious" * 100)
    without = ("/bin/sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", OCCUPIED)
    with LiveServer(*without, cwd=tmp_path, ready="") as server:
        until(lambda: "pool.ready" in "".join(lines_of(log)))
        server.records += [json.loads(line) for line in lines_of(log)]
        assert server.get()[0] == 500
        assert Path(f"/proc/{server.pid}/fd/2").readlink() == Path(os.devnull)
        assert server.stop() == 0
    assert data.read_bytes() == b"precious" * 100


def test_a_reloader_that_cannot_tell_of_a_broken_program_waits_for_its_mend(tmp_path: Path) -> None:
    app, log = tmp_path / "app.py", tmp_path / "log"
    app.write_text("(((")
    without = ("/bin/sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable)
    flags = ("--workers", "1", "--reload", "--log-file", str(log))
    with LiveServer(*without, *COMMANDS["prefork"], *flags, cwd=tmp_path, ready="") as server:
        until(lambda: log.exists() and "pool.starting" in log.read_text())
        until(lambda: not psutil.Process(server.pid).children())
        app.write_text("def app(environ, start_response):\n    return []\n")
        until(lambda: server.process.poll() is not None or "pool.ready" in log.read_text())
        assert server.stop() == 0


def test_a_terminal_is_one_and_nothing_else() -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "wb", 0) as terminal, os.fdopen(theirs, "wb", 0):
        assert is_terminal(terminal)
    assert not is_terminal(terminal)  # closed
    assert not is_terminal(io.StringIO())
    assert not is_terminal(None)
    assert not is_terminal(object())
