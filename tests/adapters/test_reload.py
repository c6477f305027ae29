"""Does an edit reach the browser, whatever the program, and does nothing stay behind?"""

from __future__ import annotations

import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from server_process import ROOT, LiveServer, put_to_sleep, wait_until_gone

if TYPE_CHECKING:
    from pathlib import Path

FLASK = """
from flask import Flask
app = Flask(__name__)

@app.get("/")
def hello():
    return "first"
"""

PLAIN = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return ["first".encode()]
"""

DJANGO = """
import os
from django.http import HttpResponse
from django.urls import path
SECRET_KEY, DEBUG, ROOT_URLCONF = "x" * 50, True, "shop"
INSTALLED_APPS, DATABASES, ALLOWED_HOSTS = ["prefork.contrib.django"], {}, ["*"]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "DIRS": ["templates"]}]

def hello(request):
    return HttpResponse("first")

urlpatterns = [path("", hello)]
"""

CODE = """
from flask import Flask
from prefork.contrib.flask import PreforkFlask
app = PreforkFlask(__name__)

@app.get("/")
def hello():
    return "first"

if __name__ == "__main__":
    raise SystemExit(app.run_prefork(port=0, debug=True))
"""

PROGRAMS: dict[str, tuple[str, list[str]]] = {
    "flask run-prefork": (FLASK, ["-m", "flask", "--app", "shop", "run-prefork", "-p", "0", "--debug"]),
    "manage.py runprefork": (
        DJANGO,
        ["-m", "django", "runprefork", "127.0.0.1:0", "--settings", "shop", "--pythonpath", "."],
    ),
    "prefork": (PLAIN, ["-m", "prefork", "shop:app", "--bind", "127.0.0.1:0", "--reload"]),
    "app.run_prefork()": (CODE, ["shop.py"]),
}


# The repository is on sys.path here, so a root like any other: whoever works on it must not disturb the tests.
REPOSITORY = f"{ROOT}/*"


def program(name: str, folder: Path, *flags: str, **where: Any) -> LiveServer:
    text, command = PROGRAMS[name]
    (folder / "shop.py").write_text(text)
    return start(folder, *command, *flags, **where)


def start(folder: Path, *command: str, env: dict[str, str] | None = None, **where: Any) -> LiveServer:
    environment = {"PREFORK_RELOAD_EXCLUDE_PATTERNS": REPOSITORY, **(env or {})}
    return LiveServer(sys.executable, *command, cwd=folder, env=environment, **where)


def edit(folder: Path, new: str) -> None:
    file = folder / "shop.py"
    text = file.read_text()
    word = next(word for word in ("first", "second", "third", "(((") if word in text)
    file.write_text(text.replace(word, new))


def processes(server: LiveServer) -> list[int]:
    return [record["pid"] for record in server.all("pool.starting")] + [
        record["child_pid"] for record in server.all("worker.spawned")
    ]


@pytest.mark.parametrize("name", PROGRAMS)
def test_edit_mistake_and_mend_and_nothing_stays_behind(name: str, tmp_path: Path) -> None:
    with program(name, tmp_path) as server:
        assert server.get() == (200, b"first")
        edit(tmp_path, "second")
        server.wait_for("pool.ready", count=2)
        assert server.get() == (200, b"second")

        (tmp_path / "shop.py").write_text((tmp_path / "shop.py").read_text() + "\n(((")
        server.wait_for_output("started again after the next edit [PF601]")
        assert any("SyntaxError" in line for line in server.output)
        answers: list[tuple[int, bytes]] = []
        browser = threading.Thread(target=lambda: answers.append(server.get()))
        browser.start()
        (tmp_path / "shop.py").write_text(
            (tmp_path / "shop.py").read_text().removesuffix("\n(((").replace("second", "third")
        )
        browser.join(20)
        assert answers == [(200, b"third")]

        server.wait_for("pool.ready", count=3)
        assert server.stop(signal.SIGINT) == 0
        wait_until_gone(processes(server))
        # Ctrl-C once, and not a second time by the way of the outer process.
        assert len(server.all("pool.stopping", signal="INT")) == 1


MANAGE = """
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "shop"
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""
ELSEWHERE = {
    "manage.py runprefork": (DJANGO.replace('"shop"', '"urls"'), ["manage.py", "runprefork", "127.0.0.1:0"]),
    "app.run_prefork()": ("import urls\n" + CODE, ["shop.py"]),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_mend_is_seen_although_the_program_lies_in_another_folder(name: str, tmp_path: Path) -> None:
    text, (script, *flags) = ELSEWHERE[name]
    for folder in ("project", "here"):
        (tmp_path / folder).mkdir()
    views = tmp_path / "project" / "urls.py"
    views.write_text("urlpatterns = []\n")
    (tmp_path / "project" / "shop.py").write_text(text)
    (tmp_path / "project" / "manage.py").write_text(MANAGE)
    with start(tmp_path / "here", str(tmp_path / "project" / script), *flags) as server:
        views.write_text("urlpatterns = []\n(((")
        server.wait_for_output("started again after the next edit [PF601]")
        views.write_text("urlpatterns = []\n")
        server.wait_for("pool.ready", count=2)


def test_a_connection_made_during_the_restart_waits(tmp_path: Path) -> None:
    with program("prefork", tmp_path) as server:
        edit(tmp_path, "second")
        server.wait_for("pool.stopped")
        refused = 0
        for _ in range(100):
            with socket.socket() as probe:
                refused += probe.connect_ex(server.address) != 0
        assert refused == 0
        assert server.get() == (200, b"second")


def test_there_is_one_worker_unless_more_are_asked_for(tmp_path: Path) -> None:
    with program("flask run-prefork", tmp_path) as server:
        assert server.wait_for("pool.starting")["workers"] == 1
    with program("flask run-prefork", tmp_path, "-w", "2") as server:
        assert server.wait_for("pool.starting")["workers"] == 2


def test_term_is_passed_on_and_ends_it_with_0(tmp_path: Path) -> None:
    with program("prefork", tmp_path) as server:
        assert server.stop(signal.SIGTERM) == 0
        assert server.all("pool.stopping", signal="TERM")
        wait_until_gone(processes(server))


def test_the_number_of_workers_changes_by_a_signal_to_the_outer_process(tmp_path: Path) -> None:
    with program("prefork", tmp_path) as server:
        server.process.send_signal(signal.SIGTTIN)
        server.wait_for("worker.ready", count=2)
        server.process.send_signal(signal.SIGTTOU)
        server.wait_for("worker.exited", reason="scale_down")
        assert server.stop(signal.SIGTERM) == 0


def test_a_server_that_was_stopped_hears_that_it_is_to_end(tmp_path: Path) -> None:
    with program("prefork", tmp_path) as server:
        put_to_sleep(server.parent_pid)
        assert server.stop(signal.SIGTERM) == 0
        wait_until_gone(processes(server))


def test_hup_ends_it_with_0(tmp_path: Path) -> None:
    with program("prefork", tmp_path) as server:
        assert server.stop(signal.SIGHUP) == 0
        wait_until_gone(processes(server))


def test_a_killed_reloader_leaves_no_server_behind(tmp_path: Path) -> None:
    with program("prefork", tmp_path) as server:
        server.process.kill()
        wait_until_gone(processes(server))


def test_an_extra_file_starts_it_anew_and_an_excluded_one_does_not(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("")
    (tmp_path / "generated.py").write_text("")
    flags = ("--extra-files", "a.toml", "--exclude-patterns", f"*/generated.py:{REPOSITORY}")
    with program("flask run-prefork", tmp_path, *flags) as server:
        (tmp_path / "generated.py").write_text("x = 1")
        (tmp_path / "a.toml").write_text("b = 1")
        server.wait_for("pool.ready", count=2)
        assert [record["path"] for record in server.all("pool.reloading")] == [str(tmp_path / "a.toml")]


def test_a_template_starts_django_anew(tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "cart.html").write_text("first")
    with program("manage.py runprefork", tmp_path) as server:
        (tmp_path / "templates" / "cart.html").write_text("second")
        assert server.wait_for("pool.reloading")["path"] == str(tmp_path / "templates" / "cart.html")
        server.wait_for("pool.ready", count=2)


def test_a_busy_port_ends_it_at_once(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with program("flask run-prefork", tmp_path, "-p", port, ready="") as server:
            assert server.wait() == 1
            assert "PF303" in server.log


def test_an_address_in_app_config_comes_too_late_and_it_is_said(tmp_path: Path) -> None:
    text, command = PROGRAMS["flask run-prefork"]
    (tmp_path / "shop.py").write_text(text + "\napp.config['PREFORK_HOST'] = '127.0.0.2'\n")
    environment = {"FLASK_RUN_PORT": "0"}
    command = [word for word in command if word not in {"-p", "0"}]
    with start(tmp_path, *command, env=environment) as server:
        server.wait_for_output("127.0.0.2:0")
        server.wait_for_output("PF606")
        assert server.address[0] == "127.0.0.1"


def test_reload_from_app_config_alone_works(tmp_path: Path) -> None:
    text, command = PROGRAMS["flask run-prefork"]
    (tmp_path / "shop.py").write_text(text + "\napp.config['PREFORK_RELOAD'] = True\n")
    with start(tmp_path, *command[:-1]) as server:
        edit(tmp_path, "second")
        server.wait_for("pool.ready", count=2)
        assert server.get() == (200, b"second")
