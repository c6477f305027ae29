"""What do Flask's own features do under ``flask run-prefork``?"""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pytest
from server_process import ROOT, LiveServer

if TYPE_CHECKING:
    from pathlib import Path

APP = """
import asyncio, atexit, contextvars, logging, os, threading
import flask
from flask import Flask, Response, request, stream_with_context
from prefork.contrib.flask import PreforkFlask, pool_ready, worker_started, worker_stopping

app = PreforkFlask(__name__)

@app.get("/")
def hello():
    return flask.__file__

@app.get("/async")
async def asynchronous():
    await asyncio.sleep(0)
    return "async"

@app.get("/stream")
def stream():
    def pieces():
        for number in range(3):
            yield f"{request.path} {threading.get_ident()}\\n"
    return Response(stream_with_context(pieces()))

@app.get("/log")
def log():
    app.logger.warning("the app speaks")
    logging.getLogger("library").warning("a library speaks")
    return "logged"

@app.get("/broken")
def broken():
    raise ZeroDivisionError("the view is broken")
"""


def serve(folder: Path, *flags: str, more: str = "", **where: Any) -> LiveServer:
    (folder / "shop.py").write_text(APP + more)
    command = ("--app", "shop", "run-prefork", "-p", "0", "-w", "1", *flags)
    return LiveServer(sys.executable, "-m", "flask", *command, cwd=folder, **where)


def test_the_real_flask_is_served(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        assert "site-packages" in server.get()[1].decode()


def test_async_views_and_streams_with_context_work(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        assert server.get("/async") == (200, b"async")
        status, body = server.get("/stream")
        lines = body.decode().splitlines()
        assert (status, len(lines), len(set(lines))) == (200, 3, 1)
        assert server.get("/async") == (200, b"async")


def test_the_apps_log_is_in_one_stream_with_ours_and_each_line_is_there_once(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        server.get("/log")
        server.wait_for("the app speaks", logger="shop")
        server.wait_for("a library speaks", logger="library")
        server.stop()
        assert server.log.count("the app speaks") == server.log.count("a library speaks") == 1


def test_the_apps_own_logging_stays_in_force(tmp_path: Path) -> None:
    more = "\nlogging.basicConfig(format='OWN %(name)s %(message)s', level='INFO')\n"
    with serve(tmp_path, more=more, ready="") as server:
        server.wait_for_output("OWN prefork pool.ready")
        url = server.wait_for_output("pool.listening").split("url=")[1].split()[0]
        urlopen(url + "/log").close()
        server.wait_for_output("OWN shop the app speaks")
        server.stop()
        assert server.log.count("the app speaks") == 1


HANDLER = """
handler = logging.StreamHandler()
handler.setFormatter(logging.Formatter("OWN %(name)s %(message)s"))
"""


@pytest.mark.parametrize(
    ("more", "said"),
    [
        pytest.param("logging.getLogger('shop').addHandler(handler)", "OWN shop the app speaks", id="app"),
        pytest.param("app.logger.handlers[:] = [handler]", "OWN shop the app speaks", id="app without Flask's"),
        pytest.param("logging.getLogger('library').addHandler(handler)", "OWN library a library speaks", id="library"),
    ],
)
def test_what_has_a_handler_of_its_own_is_there_once(tmp_path: Path, more: str, said: str) -> None:
    with serve(tmp_path, more=HANDLER + more) as server:
        server.get("/log")
        server.wait_for_output(said)
        server.stop()
        assert server.log.count("the app speaks") == server.log.count("a library speaks") == 1


def test_a_handler_that_does_nothing_changes_nothing(tmp_path: Path) -> None:
    with serve(tmp_path, more="\nlogging.getLogger('library').addHandler(logging.NullHandler())\n") as server:
        server.get("/log")
        server.wait_for("a library speaks", logger="library")


def test_the_apps_log_can_be_left_alone(tmp_path: Path) -> None:
    with serve(tmp_path, more="\napp.config['PREFORK_LOGGING'] = 'off'\n") as server:
        server.get("/log")
        server.wait_for_output("WARNING in shop: the app speaks")


def test_a_wrong_word_about_the_log_is_one_line_and_status_2(tmp_path: Path) -> None:
    with serve(tmp_path, more="\napp.config['PREFORK_LOGGING'] = 'of'\n", ready="") as server:
        assert server.wait() == 2
        told = "app.config['PREFORK_LOGGING'] is 'of': choose one of auto, off [PF102]"
        assert server.output == [f"prefork: error: {told}"]


@pytest.mark.parametrize("flags", [["--debug", "--no-reload"], []])
def test_a_view_that_raises_is_answered_and_traced_once(tmp_path: Path, flags: list[str]) -> None:
    with serve(tmp_path, *flags) as server:
        status, body = server.get("/broken")
        server.stop()
        assert status == 500
        assert b"the view is broken" not in body
        assert server.log.count("Traceback (most recent call last)") == 1
        assert server.log.count("ZeroDivisionError: the view is broken") == 1


def test_requests_are_recorded_in_debug_and_not_else(tmp_path: Path) -> None:
    with serve(tmp_path, "--debug", "--no-reload") as server:
        server.get("/async")
        assert server.wait_for("request.finished", path="/async")["status"] == 200
    with serve(tmp_path) as server:
        server.get("/async")
        server.stop()
        assert not server.all("request.finished")


SIGNALS = """
@pool_ready.connect
def ready(sender):
    print("ready", sender.name, os.getpid())

@worker_started.connect
def broken_receiver(sender, worker):
    raise LookupError("the receiver is broken")

@worker_started.connect
def started(sender, worker):
    print("started", worker.number)
    atexit.register(print, "at the worker's exit")

@worker_stopping.connect
def stopping(sender, worker):
    print("stopping", worker.number)
"""


def test_signals_are_sent_and_a_receiver_that_raises_is_recorded(tmp_path: Path) -> None:
    with serve(tmp_path, more=SIGNALS) as server:
        server.wait_for_output(f"ready shop {server.parent_pid}")
        server.wait_for_output("started 0")
        assert "the receiver is broken" in server.wait_for("hook.failed", hook="prefork.worker_started")["exception"]
        assert server.get("/async") == (200, b"async")
        assert server.stop() == 0
        assert "stopping 0" in server.output
        assert server.output.count("at the worker's exit") == 1


def test_the_settings_are_shown_with_their_origin(tmp_path: Path) -> None:
    with serve(tmp_path, "--show-config", more="\napp.config['PREFORK_THREADS'] = 3\n", ready="") as server:
        assert server.wait() == 0
        shown = dict(line.split(maxsplit=1) for line in server.output)
        assert shown["threads"].split() == ["3", "app.config", "PREFORK_THREADS"]
        assert shown["bind"].split()[0] == "127.0.0.1:0"
        assert [shown[name].split()[0] for name in ("preload", "max_body_size")] == ["true", "1G"]


FILES = {
    "flags of flask run": ([f"--extra-files=a.toml{os.pathsep}b.toml"], {}, "flag --reload-extra-files"),
    "flags of ours": (["--reload-extra-files=a.toml", "--reload-extra-files=b.toml"], {}, "flag --reload-extra-files"),
    "environment": ([], {"FLASK_RUN_PREFORK_RELOAD_EXTRA_FILES": "a.toml,b.toml"}, "environment FLASK_RUN_PREFORK_"),
}


@pytest.mark.parametrize("how", FILES)
def test_files_to_watch_are_given_as_to_flask_run_and_as_everywhere(tmp_path: Path, how: str) -> None:
    flags, env, origin = FILES[how]
    for option in ("extra_files", "exclude_patterns"):
        given = [flag.replace("extra-files", option.replace("_", "-")) for flag in flags]
        variables = {name.replace("EXTRA_FILES", option.upper()): value for name, value in env.items()}
        with serve(tmp_path, "--show-config", *given, env=variables, ready="") as server:
            assert server.wait() == 0
            (shown,) = [line for line in server.output if line.startswith(f"reload_{option} ")]
            assert shown.split()[1] == "a.toml,b.toml"
            assert origin.replace("extra-files", option.replace("_", "-")) in shown


def test_a_variable_that_only_looks_like_a_flag_is_told(tmp_path: Path) -> None:
    env = {"FLASK_RUN_PREFORK_NO_ACCESS_LOG": "1", "FLASK_RUN_PREFORK_EXTRA_FILES": "a.toml"}
    with serve(tmp_path, "--show-config", env=env, ready="") as server:
        assert server.wait() == 0
        told = {line.split()[-2] for line in server.output if "[PF101]" in line}
        assert told == {"FLASK_RUN_PREFORK_ACCESS_LOG?", "FLASK_RUN_PREFORK_RELOAD_EXTRA_FILES?"}


def test_a_busy_port_is_one_line_and_status_1(tmp_path: Path) -> None:
    with serve(tmp_path) as first:
        port = str(first.address[1])
        command = (sys.executable, "-m", "flask", "--app", "shop", "run-prefork", "-p", port)
        with LiveServer(*command, cwd=tmp_path, ready="") as second:
            assert second.wait() == 1
            assert "PF303" in second.log
            assert "Traceback" not in second.log


def test_a_port_out_of_range_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    command = (sys.executable, "-m", "flask", "--app", "shop", "run-prefork", "-p", "70000")
    with LiveServer(*command, cwd=tmp_path, ready="") as server:
        assert server.wait() == 2
        assert "Traceback" not in server.log


def test_on_a_terminal_the_banner_is_the_one_of_flask(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    terminal, theirs = pty.openpty()
    command = [sys.executable, "-m", "flask", "--app", "shop", "run-prefork", "-p", "0", "-w", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    try:
        text = ""
        deadline = time.monotonic() + 20
        while "pool.ready" not in text:
            assert time.monotonic() < deadline, text
            text += os.read(terminal, 4096).decode()
    finally:
        server.terminate()
        assert server.wait() == 0
        os.close(terminal)
    lines = [line.strip() for line in text.splitlines()]
    assert "* Serving Flask app 'shop'" in lines
    assert "* Debug mode: off" in lines
    assert any(line.startswith("* Running on http://127.0.0.1:") for line in lines)
    assert "Press CTRL+C to quit" in text


IMPORTED = """
import sys
import flask.cli
before = set(sys.modules)
import prefork.contrib.flask.cli
print(*sorted(set(sys.modules) - before))
"""


def test_the_flask_command_imports_nothing_more_than_our_names(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", IMPORTED],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    # And origin, which has to read how the process was started before an application changes it.
    names = ["prefork", "prefork.contrib", "prefork.contrib.flask", "prefork.contrib.flask.cli", "prefork.origin"]
    assert found.stdout.split() == names


FIRST_REQUEST = """
import sys
from flask import Flask
from prefork import WorkerPool

app, known = Flask("shop"), set()

@app.get("/")
{kind} index():
    return " ".join(sorted(set(sys.modules) - known))

def remember(worker):
    known.update(sys.modules)

with WorkerPool(app, bind="127.0.0.1:0", max_workers=1, worker_started=remember, log_format="none") as pool:
    from urllib.request import urlopen
    urlopen(pool.url).close()
    print(urlopen(pool.url).read().decode())
"""


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_first_request_imports_nothing_that_the_parent_could_have_had(kind: str) -> None:
    program = FIRST_REQUEST.replace("{kind}", kind)
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout == "\n"
