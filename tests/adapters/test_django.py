"""Does a Django project get what it is used to from ``manage.py runprefork``, and no connection that is not its own?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

import httpx
import pytest
from django_project import MANAGE, URLS, runprefork, write_project
from server_process import ROOT, LiveServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WSGI = """
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
from django.core.wsgi import get_wsgi_application
application = get_wsgi_application()
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    return partial(write_project, tmp_path)


def test_the_command_serves_the_project(write: Callable[..., Path]) -> None:
    with runprefork(write()) as server:
        assert server.get() == (200, b"hello")
        assert server.wait_for("pool.starting")["app"] == "settings"


def test_a_thread_of_the_project_does_not_keep_the_command_from_ending(write: Callable[..., Path]) -> None:
    with runprefork(
        write("import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()")
    ) as server:
        assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_term_end_it_with_0(write: Callable[..., Path], number: signal.Signals) -> None:
    with runprefork(write()) as server:
        assert server.stop(number) == 0


def test_a_view_that_raises_gives_500_and_its_traceback_in_the_log(write: Callable[..., Path]) -> None:
    with runprefork(write()) as server:
        status, body = server.get("/broken")
        assert status == 500
        assert b"the view is broken" not in body
        server.stop()
        assert "ZeroDivisionError: the view is broken" in server.log
        assert server.log.count("Traceback (most recent call last)") == 1


def test_the_settings_of_the_page_show_the_traceback_of_a_view_where_prefork_serves_a_project(
    write: Callable[..., Path],
) -> None:
    page = (ROOT / "docs" / "django.md").read_text()
    shown = "LOGGING = {" + page.partition("LOGGING = {")[2].partition("```")[0]
    folder = write(shown)
    (folder / "wsgi.py").write_text(WSGI)
    with LiveServer.of("wsgi", "--workers", "1", cwd=folder) as server:
        assert server.get("/broken")[0] == 500
        server.wait_for_output("ZeroDivisionError: the view is broken")
        server.stop()
        assert server.log.count("Traceback (most recent call last)") == 1


def test_a_view_asks_the_database(write: Callable[..., Path]) -> None:
    with runprefork(write()) as server:
        status, body = server.get("/db")
        assert (status, json.loads(body)["answer"]) == (200, 42)


def test_a_connection_is_kept_by_its_thread_and_not_made_for_each_request(write: Callable[..., Path]) -> None:
    with runprefork(write(), "--workers", "1", "--threads", "1") as server:
        had = [json.loads(server.get("/db")[1])["had"] for _ in range(20)]
        assert had == [False] + [True] * 19
        assert json.loads(server.get("/place")[1])["databases"] == 1


def test_a_file_is_sent_whole(write: Callable[..., Path]) -> None:
    folder = write()
    with runprefork(folder) as server:
        assert server.get("/download") == (200, (folder / "urls.py").read_bytes())


def test_a_request_over_tls_is_secure(write: Callable[..., Path]) -> None:
    more = "urlpatterns.append(path('secure', lambda request: JsonResponse({'secure': request.is_secure()})))\n"
    with runprefork(write(urls=more), "--cert", "adhoc") as server:
        assert httpx.get(f"{server.url}/secure", verify=False).json() == {"secure": True}


def test_under_debug_a_traceback_comes_once(write: Callable[..., Path]) -> None:
    with runprefork(write("DEBUG = True\n")) as server:
        status, page = server.get("/broken")
        assert status == 500
        assert b"ZeroDivisionError" in page
        assert server.stop() == 0
        told = "\n".join(server.output) + "\n".join(str(record.get("exception")) for record in server.records)
        assert told.count("ZeroDivisionError: the view is broken") == 1


def test_no_connection_is_shared_after_the_fork(write: Callable[..., Path]) -> None:
    # An import that asks the database, as a check or AppConfig.ready() may; and again before each later fork.
    folder = write("PREFORK = {'BEFORE_FORK': 'forking:open_connection', 'MAX_REQS_PER_CHILD': 1}\n")
    (folder / "forking.py").write_text(
        "def open_connection(pool):\n    from django.db import connection\n    connection.ensure_connection()\n"
    )
    with runprefork(folder) as server:
        assert json.loads(server.get("/db")[1])["had"] is False
        server.wait_for("worker.exited")
        assert json.loads(server.get("/db")[1])["had"] is False
        assert not server.all("hook.failed")


def test_what_startup_left_open_is_closed_before_the_first_fork(write: Callable[..., Path]) -> None:
    folder = write()
    (folder / "urls.py").write_text(URLS + "\nconnection.ensure_connection()\n")
    with runprefork(folder) as server:
        assert json.loads(server.get("/place")[1])["databases"] == 0


def test_the_urlconf_is_loaded_before_the_fork(write: Callable[..., Path]) -> None:
    with runprefork(write(), "--skip-checks") as server:
        assert json.loads(server.get("/place")[1])["imported_in"] == server.parent_pid


def test_a_flag_goes_before_the_environment_and_that_before_the_settings(write: Callable[..., Path]) -> None:
    folder = write("PREFORK = {'MAX_WORKERS': 7, 'THREADS': 7, 'BACKLOG': 77}\n")
    with runprefork(folder, env={"PREFORK_THREADS": "5", "PREFORK_BIND": "127.0.0.1:1"}) as server:
        started = server.wait_for("pool.starting")
        assert (started["workers"], started["threads"]) == (2, 5)


def test_the_port_variable_of_a_platform_is_honoured(write: Callable[..., Path]) -> None:
    folder = write()
    for env, bind in (({"PORT": "8123"}, "0.0.0.0:8123"), ({"PORT": "8123", "PREFORK_BIND": "[::1]:9"}, "[::1]:9")):
        with runprefork(folder, "--show-config", address=None, env=env, ready="") as server:
            assert server.wait() == 0
            (shown,) = [line.split() for line in server.output if line.startswith("bind ")]
            assert shown[1] == bind


@pytest.mark.parametrize(
    ("address", "flags", "origin"),
    [("127.0.0.1:0", (), "argument addrport"), (None, ("-6",), "flag --ipv6"), (None, ("--bind", ":0"), "flag --bind")],
)
def test_who_gave_the_address_is_shown(
    write: Callable[..., Path], address: str | None, flags: tuple[str, ...], origin: str
) -> None:
    with runprefork(write(), "--show-config", *flags, address=address, ready="") as server:
        assert server.wait() == 0
        (shown,) = [line for line in server.output if line.startswith("bind ")]
        assert shown.split(maxsplit=2)[2] == origin


def test_static_files_are_served_under_debug_alone(write: Callable[..., Path]) -> None:
    folder = write("import os\nDEBUG = 'DEBUGGING' in os.environ\n")
    with runprefork(folder, env={"DEBUGGING": "1"}) as server:
        assert server.get("/static/shop.css") == (200, b"body {}")
    with runprefork(folder, "--nostatic", env={"DEBUGGING": "1"}) as server:
        assert server.get("/static/shop.css")[0] == 404
    with runprefork(folder, "--insecure") as server:
        assert server.get("/static/shop.css")[0] == 200
    with runprefork(folder) as server:
        assert server.get("/static/shop.css")[0] == 404


def test_without_allowed_hosts_it_does_not_start(write: Callable[..., Path]) -> None:
    with runprefork(write("ALLOWED_HOSTS = []\n"), ready="") as server:
        assert server.wait() == 2
        assert "ALLOWED_HOSTS is empty and DEBUG is False: name the hosts to answer for [PF608]" in server.log


@pytest.mark.parametrize("flags", [(), ("--no-redeploy",), ("--reload",)], ids=["kept", "alone", "reload"])
@pytest.mark.parametrize("code", ["1 / 0", "this is no Python"])
def test_a_project_that_cannot_be_imported_ends_it_with_1_and_its_own_traceback_alone(
    write: Callable[..., Path], code: str, flags: tuple[str, ...]
) -> None:
    with runprefork(write(urls=code), *flags, ready="") as server:
        told = server.wait_for_output("prefork: error: ")
        if flags != ("--reload",):
            assert server.wait() == 1
        assert told.startswith("prefork: error: loading the project failed: ")
        assert told.endswith(": see the traceback [PF206]")
        assert "urls.py" in server.log
        assert "site-packages" not in server.log
        assert "runprefork.py" not in server.log


def test_a_deploy_of_a_project_that_raises_is_told_as_its_start_would_be(write: Callable[..., Path]) -> None:
    folder = write()
    with runprefork(folder) as server:
        (folder / "urls.py").write_text(URLS + "1 / 0")
        server.process.send_signal(signal.SIGHUP)
        told = server.wait_for("pool.deploy_failed")
        summary = "loading the project failed: ZeroDivisionError: division by zero"
        assert told["reason"] == f"{summary}: see the traceback [PF206]"
        frames = [line for line in told["exception"].splitlines() if line.startswith("  File ")]
        assert len(frames) == 1
        assert "urls.py" in frames[0]
        assert not any("ZeroDivisionError" in line for line in server.output)


def test_what_is_wrong_with_the_options_of_a_deploy_is_one_line(write: Callable[..., Path]) -> None:
    folder = write()
    with runprefork(folder) as server:
        settings = (folder / "settings.py").read_text()
        (folder / "settings.py").write_text(settings + "ALLOWED_HOSTS = []\n")
        server.process.send_signal(signal.SIGHUP)
        told = server.wait_for("pool.deploy_failed")
        assert told["reason"].startswith("ALLOWED_HOSTS is empty and DEBUG is False: ")
        assert "exception" not in told


def test_an_unknown_setting_is_named_with_the_nearest_one(write: Callable[..., Path]) -> None:
    with runprefork(write("PREFORK = {'MAX_WORKER': 2}\n"), ready="") as server:
        assert server.wait() != 0
        assert "max_workers" in server.log.lower()
        assert "Traceback" not in server.log


def test_an_option_that_makes_no_sense_with_django_is_none(write: Callable[..., Path]) -> None:
    with runprefork(write("PREFORK = {'INTERFACE': 'asgi'}\n"), ready="") as server:
        assert server.wait() == 2
        said = "there is no option 'INTERFACE' (settings PREFORK INTERFACE): --asgi says how it is called [PF101]"
        assert server.output == [f"CommandError: {said}"]


def test_a_variable_for_an_option_that_makes_no_sense_with_django_is_told_and_ignored(
    write: Callable[..., Path],
) -> None:
    with runprefork(write(), env={"PREFORK_INTERFACE": "asgi", "PREFORK_PRELOAD": "0"}) as server:
        assert server.get() == (200, b"hello")
        assert server.wait_for("pool.starting")["preload"]
        told = [line for line in server.output if "[PF101]" in line]
        assert ["--asgi says" in told[0], "always loaded before the fork" in told[1]] == [True, True]


def test_a_variable_that_is_nearly_an_option_is_told(write: Callable[..., Path]) -> None:
    with runprefork(write(), env={"PREFORK_THREADZ": "3"}) as server:
        assert [line.split()[-2] for line in server.output if "[PF101]" in line] == ["PREFORK_THREADS?"]


def test_the_directory_is_changed_before_the_urls_are_loaded(write: Callable[..., Path]) -> None:
    more = "GREETING = open('greeting').read()\nurlpatterns.append(path('home', lambda request: HttpResponse(GREETING + os.getcwd())))\n"
    folder = write(urls=more)
    inner = folder / "inner"
    inner.mkdir()
    (inner / "greeting").write_text("at home")
    with runprefork(folder, "--chdir", "inner") as server:
        assert server.get("/home") == (200, f"at home{inner}".encode())


def test_with_reload_an_edit_is_served(write: Callable[..., Path]) -> None:
    folder = write()
    with runprefork(folder, "--reload") as server:
        assert server.get() == (200, b"hello")
        (folder / "urls.py").write_text(URLS.replace('"hello"', '"good morning"'))
        server.wait_for("pool.ready", count=2)
        assert server.get() == (200, b"good morning")
        assert server.stop(signal.SIGINT) == 0


@pytest.mark.parametrize(
    ("flags", "url"),
    [
        (("0",), "http://127.0.0.1:"),
        (("0:0",), "http://0.0.0.0:"),
        (("localhost:0",), "http://127.0.0.1:"),
        (("127.0.0.1:0",), "http://127.0.0.1:"),
        (("[::1]:0",), "http://[::1]:"),
        (("-6", "0"), "http://[::1]:"),
        (("-6", "0:0"), "http://[::]:"),
    ],
    ids=" ".join,
)
def test_an_address_is_given_as_to_runserver(write: Callable[..., Path], flags: tuple[str, ...], url: str) -> None:
    with runprefork(write(), *flags, address=None) as server:
        assert server.url.startswith(url)


def test_an_ipv4_address_is_none_of_ipv6(write: Callable[..., Path]) -> None:
    with runprefork(write(), "-6", ready="") as server:
        assert server.wait() == 2
        assert "'127.0.0.1' is not a valid IPv6 address: leave -6 out, or give one in brackets [PF607]" in server.log


# Not everywhere has localhost both.
BOTH = """
import socket
asked = socket.getaddrinfo

def of_both(host, port, family=0, *rest, **more):
    known = {"localhost": "::1" if family == socket.AF_INET6 else "127.0.0.1"}
    return asked(known.get(host, host), port, family, *rest, **more)

socket.getaddrinfo = of_both
"""


@pytest.mark.parametrize(("flags", "url"), [((), "http://127.0.0.1:"), (("-6",), "http://[::1]:")], ids=["", "-6"])
def test_of_a_name_that_has_both_the_flag_chooses(write: Callable[..., Path], flags: tuple[str, ...], url: str) -> None:
    with runprefork(write(BOTH), *flags, address="localhost:0") as server:
        assert server.url.startswith(url)


def test_a_name_without_an_ipv6_address_is_none_of_ipv6(write: Callable[..., Path]) -> None:
    with runprefork(write(), "-6", address="nothing.invalid:0", ready="") as server:
        assert server.wait() == 2
        assert "'nothing.invalid' has no IPv6 address: leave -6 out, or give one in brackets [PF607]" in server.log


def test_migrations_that_are_missing_are_told_under_debug_alone(write: Callable[..., Path]) -> None:
    apps = "INSTALLED_APPS += ['django.contrib.auth']\n"
    folder = write(f"import os\nDEBUG = 'DEBUGGING' in os.environ\n{apps}")
    for env in ({}, {"DEBUGGING": "1"}):
        with runprefork(folder, "--noreload", env=env) as server:
            if env:
                server.wait_for_output("unapplied migration")
        assert ("unapplied migration" in server.log) == bool(env)


def test_an_asgi_application_beside_changes_nothing(write: Callable[..., Path]) -> None:
    with runprefork(write("ASGI_APPLICATION = 'shop.asgi.application'\n")) as server:
        assert server.get() == (200, b"hello")


def test_a_port_that_is_none_is_told_with_who_gave_it(write: Callable[..., Path]) -> None:
    with runprefork(write(), address="70000", ready="") as server:
        assert server.wait() == 2
        assert "bind is '127.0.0.1:70000' (argument addrport): " in server.log


def test_a_wrong_address_is_one_line(write: Callable[..., Path]) -> None:
    with runprefork(write(), address="nowhere:", ready="") as server:
        assert server.wait() == 2
        assert "'nowhere:' is not a valid port number or address:port pair" in server.log
        assert "[PF607]" in server.log
        assert "Traceback" not in server.log


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (("--max-requests", "100"), "did you mean --max-reqs-per-child?"),
        (("--timeout=5",), "did you mean --request-timeout?"),
        (("--port", "8000"), "did you mean --bind?"),
        (("--threds", "2"), "did you mean --threads?"),
        (("--workres", "2"), "did you mean --workers?"),
        (("--preload",), "the project is always loaded before the fork"),
        (("--no-preload",), "the project is always loaded before the fork"),
    ],
)
def test_a_flag_that_there_is_not_ends_it_with_2_and_what_to_give_instead(
    write: Callable[..., Path], flags: tuple[str, ...], hint: str
) -> None:
    with runprefork(write(), *flags, ready="") as server:
        assert server.wait() == 2
        flag = flags[0].partition("=")[0]
        assert server.output == [f"CommandError: there is no option {flag}: {hint} [PF101]"]


def test_what_is_wrong_otherwise_with_the_command_line_django_tells(write: Callable[..., Path]) -> None:
    with runprefork(write(), "--threads", ready="") as server:
        assert server.wait() == 2
        assert server.output[-1].endswith("--threads: expected one argument")


SIGNALS = """
import atexit
from django.dispatch import receiver
from prefork.contrib.django.signals import pool_ready, worker_started, worker_stopping

@receiver(pool_ready)
def ready(sender, **facts):
    print("ready", sender, os.getpid(), flush=True)

@receiver(worker_started)
def broken_receiver(sender, worker, **facts):
    raise LookupError("the receiver is broken")

@receiver(worker_started)
def started(sender, worker, **facts):
    print("started", worker.number, flush=True)
    atexit.register(print, "at the worker's exit")

@receiver(worker_stopping)
def stopping(sender, worker, **facts):
    print("stopping", worker.number, flush=True)
"""


def test_signals_are_sent_and_a_receiver_that_raises_is_recorded(write: Callable[..., Path]) -> None:
    with runprefork(write(urls=SIGNALS), "--workers", "1") as server:
        server.wait_for_output(f"ready None {server.parent_pid}")
        server.wait_for_output("started 0")
        assert "the receiver is broken" in server.wait_for("hook.failed", hook="worker_started")["exception"]
        assert server.get() == (200, b"hello")
        assert server.stop() == 0
        assert "stopping 0" in server.output
        assert server.output.count("at the worker's exit") == 1
        assert server.log.count("LookupError: the receiver is broken") == 1


OVERRIDDEN = """
from prefork.contrib.django.management.commands import runprefork

class Command(runprefork.Command):
    def get_handler(self, *args, **options):
        handler = super().get_handler(*args, **options)

        def marked(environ, start_response):
            return handler(environ, lambda status, fields, *rest: start_response(status, [*fields, ("X-Mark", "1")], *rest))

        return marked

    def get_pool(self, handler, config, **more):
        pool = super().get_pool(handler, config, **more)
        pool.hooks.worker_started.append(lambda worker: print("a hook of mine", flush=True))
        return pool

    def on_bind(self, urls):
        print("bound to", *urls, flush=True)
"""


def test_a_project_may_override_the_handler_the_pool_and_what_is_said_at_the_start(write: Callable[..., Path]) -> None:
    folder = write("INSTALLED_APPS.insert(0, 'own')\n")
    commands = folder / "own" / "management" / "commands"
    commands.mkdir(parents=True)
    (folder / "own" / "__init__.py").write_text("")
    (commands / "runprefork.py").write_text(OVERRIDDEN)
    with runprefork(folder) as server:
        server.wait_for_output("a hook of mine")
        server.wait_for_output(f"bound to {server.url}")
        assert httpx.get(server.url).headers["X-Mark"] == "1"


@pytest.mark.parametrize(
    ("settings", "flags", "told"),
    [
        ("", (), False),
        ("", ("--check-migrations",), True),
        ("DEBUG = True\n", ("--noreload", "--no-check-migrations"), False),
    ],
    ids=["", "asked for", "not wanted"],
)
def test_migrations_that_are_missing_are_told_where_it_is_wanted(
    write: Callable[..., Path], settings: str, flags: tuple[str, ...], told: bool
) -> None:
    with runprefork(write(settings), *flags) as server:
        if told:
            server.wait_for_output("unapplied migration")
    assert ("unapplied migration" in server.log) == told


def test_a_database_that_is_away_is_told_and_keeps_nobody_from_starting(write: Callable[..., Path]) -> None:
    folder = write("DATABASES['default']['NAME'] = '/there/is/none/db.sqlite3'\n")
    with runprefork(folder, "--check-migrations") as server:
        assert "Migrations could not be checked: unable to open database file" in server.log
        assert server.get() == (200, b"hello")


def messages(folder: Path, *flags: str) -> str:
    with LiveServer(sys.executable, "manage.py", "check", *flags, cwd=folder, ready="") as server:
        server.wait()
        return server.log


@pytest.mark.parametrize(
    ("settings", "identity"),
    [
        ("PREFORK = {'TREADS': 2}", "prefork.E001"),
        ("PREFORK = {'THREADS': 'many'}", "prefork.E002"),
        ("PREFORK = {'INTERFACE': 'asgi'}", "--asgi says how it is called"),
        ("", "prefork.W002"),
        ("DATABASES['default']['OPTIONS'] = {'pool': True}", "prefork.W003"),
        ("WSGI_APPLICATION = 'shop.wsgi.application'", "prefork.W009"),
        ("CACHES = {'default': {'BACKEND': 'django.core.cache.backends.locmem.LocMemCache'}}", "prefork.W004"),
        ("SESSION_ENGINE = 'django.contrib.sessions.backends.cache'", "prefork.W005"),
        ("", "prefork.W008"),
    ],
)
def test_the_checks_find_what_processes_would_trip_over(
    write: Callable[..., Path], settings: str, identity: str
) -> None:
    assert identity in messages(write(settings + "\n"))


@pytest.mark.parametrize(
    ("settings", "identity"),
    [
        ("DEBUG = True", "prefork.W001"),
        ("ASGI_APPLICATION = 'shop.asgi.application'", "prefork.W006"),
        ("", "prefork.W007"),
    ],
)
def test_the_checks_for_a_deployment_find_what_matters_in_production_alone(
    write: Callable[..., Path], settings: str, identity: str
) -> None:
    folder = write(settings + "\n")
    assert identity in messages(folder, "--deploy")
    assert identity not in messages(folder)


def test_the_checks_find_a_system_that_cannot_fork(write: Callable[..., Path]) -> None:
    folder = write()
    (folder / "manage.py").write_text(MANAGE.replace("import os, sys", "import os, sys\ndel os.fork"))
    assert "prefork.W010" in messages(folder)


MISSING = "import sys\nsys.modules['httptools'] = sys.modules['trio'] = None\n"
UNTOLD = "import pathlib\nfrom prefork import memory\nmemory.TOLD = pathlib.Path('/there/is/none')\n"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (MISSING + "PREFORK = {'HTTP': 'httptools'}\n", "PF419"),
        (MISSING + "PREFORK = {'ASYNC_BACKEND': 'trio'}\n", "PF440"),
        (UNTOLD + "PREFORK = {'MAX_MEMORY': '100M'}\n", "PF102"),
        ("PREFORK = {'SPOOL_DIR': '/there/is/none'}\n", "PF102"),
    ],
    ids=["http", "async_backend", "max_memory", "spool_dir"],
)
def test_what_only_the_server_has_stops_runprefork_and_no_other_command(
    write: Callable[..., Path], settings: str, said: str
) -> None:
    folder = write(settings)
    with LiveServer(sys.executable, "manage.py", "migrate", cwd=folder, ready="") as server:
        assert server.wait() == 0
        assert "prefork.W011" in server.log
        assert "Traceback" not in server.log
    with runprefork(folder, ready="") as server:
        assert server.wait() == 2
        assert f"[{said}]" in server.log
        assert "Traceback" not in server.log


def test_the_checks_are_silent_for_one_worker(write: Callable[..., Path]) -> None:
    log = messages(write("PREFORK = {'MAX_WORKERS': 1}\nDATABASES['default']['CONN_MAX_AGE'] = 0\n"))
    assert "prefork." not in log


# ASGI.

VIEW = """
import asyncio
from django.http import StreamingHttpResponse

async def waiting(request):
    await asyncio.sleep(0)
    request.scope["extensions"]["prefork.exit_guard"]
    return HttpResponse(request.scope["type"])

urlpatterns = [*urlpatterns, path("waiting", waiting)]
"""


@pytest.mark.parametrize("setting", ["", "ASGI_APPLICATION = 'asgi.application'\n"])
def test_asynchronous_views_are_served_with_asgi(write: Callable[..., Path], setting: str) -> None:
    folder = write(setting)
    (folder / "urls.py").write_text((folder / "urls.py").read_text() + VIEW)
    (folder / "asgi.py").write_text(
        "from django.core.asgi import get_asgi_application\napplication = get_asgi_application()\n"
    )
    with runprefork(folder, "--asgi") as server:
        assert server.get("/waiting") == (200, b"http")
        assert server.get("/") == (200, b"hello")
        assert server.get("/broken")[0] == 500


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(
    ("settings", "flags"),
    [("", ["--user", "nobody"]), ("PREFORK = {'GROUP': 'nogroup'}\n", [])],
    ids=["flag", "setting"],
)
def test_a_user_that_comes_when_root_has_loaded_the_project_is_refused(
    write: Callable[..., Path], settings: str, flags: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "manage.py", "runprefork", "127.0.0.1:0", *flags],
        cwd=write(settings),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 2
    assert "comes too late: root has loaded the application" in done.stderr
    assert "PF310" in done.stderr
    assert "Traceback" not in done.stderr
