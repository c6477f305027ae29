"""Is work finished that goes on after the answer, and is it named if it is not?"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from server_process import LiveServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WORK = """
import os, threading, time

FOLDER = os.path.dirname(os.path.abspath(__file__))

def work(guard):
    try:
        while not os.path.exists(os.path.join(FOLDER, "go")):
            time.sleep(0.01)
        os.write(1, b"job done\\n")
    finally:
        guard.end()

def begin(environ):
    environ["prefork.exit_guard"].begin("job")
    threading.Thread(target=work, args=(environ["prefork.exit_guard"],)).start()
"""
APPS = {
    "plain": """
def application(environ, start_response):
    begin(environ)
    start_response("202 Accepted", [("Content-Length", "8")])
    return [b"accepted"]
""",
    "flask": """
from flask import Flask, request
application = Flask("shop")

@application.get("/")
def index():
    begin(request.environ)
    return "accepted", 202
""",
    "django": """
from django.conf import settings
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"])
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

def index(request):
    begin(request.META)
    return HttpResponse("accepted", status=202)

urlpatterns = [path("", index)]
application = get_wsgi_application()
""",
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
@pytest.mark.parametrize("framework", APPS)
def test_a_job_is_finished_behind_its_answer_however_its_worker_goes(
    write_app: Callable[..., Path], framework: str, number: signal.Signals
) -> None:
    folder = write_app(WORK + APPS[framework])
    with LiveServer.of("sample:application", "--app-dir", str(folder), "-w", "1") as server:
        (worker,) = server.worker_pids
        assert server.get() == (202, b"accepted")
        server.send(number, to=server.pid)
        if number is signal.SIGUSR2:
            server.wait_for("worker.ready", count=2)
        else:
            server.wait_for("pool.stopping")
        assert not server.all("worker.exited")
        assert "job done" not in server.output
        (folder / "go").touch()
        gone = server.wait_for("worker.exited", child_pid=worker)
        assert (gone["exit_code"], gone["expected"]) == (0, True)
        assert server.wait_for_output("job done")
        assert server.stop() == 0


TELLS_EARLY = """
import prefork.worker
prefork.worker._NEARLY = 0.25
"""
"""Code of an application whose worker has, on a busy machine too, time to tell of what holds it before it is killed."""


@pytest.mark.over_both
@pytest.mark.parametrize("level", ["debug", "info"])
def test_a_hold_that_outlives_the_patience_of_a_stop_is_named(write_app: Callable[..., Path], level: str) -> None:
    folder = write_app(WORK + APPS["plain"] + TELLS_EARLY)
    flags = ("--app-dir", str(folder), "-w", "1", "--graceful-timeout", "2", "--log-level", level)
    with LiveServer.of("sample:application", *flags) as server:
        assert server.get() == (202, b"accepted")
        server.process.terminate()
        (hold,) = server.wait_for("worker.held", code="PF431")["holds"]
        assert hold["why"] == "job"
        assert hold["age_s"] > 0.4
        assert ("in application" in hold["where"]) == (level == "debug")
        assert server.wait_for("worker.exited")["signal"] == "SIGKILL"
        assert server.wait() == 0


def test_a_guard_that_is_free_in_time_is_not_told_of(write_app: Callable[..., Path]) -> None:
    folder = write_app(WORK + APPS["plain"])
    with LiveServer.of("sample:application", "--app-dir", str(folder), "-w", "1") as server:
        assert server.get() == (202, b"accepted")
        (folder / "go").touch()
        assert server.stop() == 0
        assert not server.all("worker.held")
