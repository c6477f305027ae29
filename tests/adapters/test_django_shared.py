"""What of Django do workers and threads share, and what has each for itself: connections, pools, caches, contexts, logs?"""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
import sys
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from django_project import runprefork, write_project
from server_process import ROOT, LiveServer

if TYPE_CHECKING:
    from pathlib import Path

# As psycopg's pool is kept by Django: by the class of the connections, with a thread, closed by close_pool() alone.
POOLED = """
import os, threading
from pathlib import Path
from django.db.backends.sqlite3 import base
from django.db.utils import OperationalError

def note(text):
    with open(Path(__file__).parents[1] / "pools", "a") as file:
        file.write(f"{os.getpid()} {text}\\n")

class Pool:
    def __init__(self):
        self.made_in, self.done = os.getpid(), threading.Event()
        self.thread = threading.Thread(target=self.done.wait, name="pool-worker", daemon=True)
        self.thread.start()
        note("opens")

    def close(self):
        note(f"closes {self.made_in}")
        self.done.set()
        self.thread.join()

class DatabaseWrapper(base.DatabaseWrapper):
    _connection_pools = {}

    @property
    def pool(self):
        if self.alias not in self._connection_pools:
            self._connection_pools[self.alias] = Pool()
        return self._connection_pools[self.alias]

    def close_pool(self):
        if pool := self._connection_pools.pop(self.alias, None):
            pool.close()

    def get_new_connection(self, params):
        if self.pool.made_in != os.getpid() or not self.pool.thread.is_alive():
            raise OperationalError("the pool is another process's")
        return super().get_new_connection(params)
"""
FORKING = """
import os
from django.db import connection

def ask():
    with connection.cursor() as cursor:
        cursor.execute("select 42")
        return cursor.fetchone()[0]

def before_fork(pool):
    ask()  # a hook that needs the database, and leaves it open

def on_record(name, fields):
    if name == "worker.ready":
        print("parent still asks:", ask() if connection.connection is not None else "closed", flush=True)
"""
HOOKED = "PREFORK = {'BEFORE_FORK': 'forking:before_fork', 'ON_RECORD': 'forking:on_record'}\n"


def with_pool(folder: Path, settings: str = "", urls: str = "") -> Path:
    """Write a project whose database has a pool."""
    write_project(folder, "DATABASES['default'] |= {'ENGINE': 'pooled', 'CONN_MAX_AGE': 0}\n" + settings, urls)
    (folder / "pooled").mkdir()
    (folder / "pooled" / "__init__.py").touch()
    (folder / "pooled" / "base.py").write_text(POOLED)
    (folder / "forking.py").write_text(FORKING)
    return folder


def history(folder: Path) -> dict[int, list[str]]:
    """Return what each process did to pools."""
    done: dict[int, list[str]] = {}
    for line in (folder / "pools").read_text().splitlines():
        pid, _, what = line.partition(" ")
        done.setdefault(int(pid), []).append(what)
    return done


def test_a_pool_that_the_start_opened_is_closed_before_the_fork_and_each_worker_has_its_own(tmp_path: Path) -> None:
    folder = with_pool(tmp_path, urls="\nconnection.ensure_connection()\n")
    with runprefork(folder) as server:
        workers = set(server.worker_pids)
        while not workers <= history(folder).keys():
            status, body = server.get("/db")
            assert (status, json.loads(body)["answer"]) == (200, 42)
        assert not server.all("pool.fork_unsafe")
        parent = server.parent_pid
    done = history(folder)
    assert done[parent] == ["opens", f"closes {parent}"]
    assert all(done[worker][0] == "opens" for worker in workers)


def test_a_pool_that_is_open_at_the_fork_is_forgotten_by_the_worker_and_stays_the_parents(tmp_path: Path) -> None:
    folder = with_pool(tmp_path, HOOKED)
    with runprefork(folder, "--workers", "1") as server:
        server.wait_for_output("parent still asks: 42")
        assert json.loads(server.get("/db")[1])["answer"] == 42
        (unsafe,) = server.all("pool.fork_unsafe")  # what the hook did is told
        assert [finding["what"] for finding in unsafe["findings"]] == ["pool-worker"]
        parent, (worker,) = server.parent_pid, server.worker_pids
    done = history(folder)
    assert done[parent] == ["opens"]
    assert f"closes {parent}" not in done[worker]


def test_a_connection_that_is_open_at_the_fork_stays_the_parents(tmp_path: Path) -> None:
    folder = write_project(tmp_path, HOOKED)
    (folder / "forking.py").write_text(FORKING)
    with runprefork(folder, "--workers", "1") as server:
        server.wait_for_output("parent still asks: 42")
        told = json.loads(server.get("/db")[1])
        assert (told["answer"], told["had"]) == (42, False)


VIEWS = """
import threading
from django.contrib.contenttypes.models import ContentType
from django.core.cache import cache, caches
from django.core.signals import request_finished, request_started
from django.http import FileResponse, StreamingHttpResponse

request_finished.connect(lambda **_: print("finished", threading.get_ident(), flush=True), weak=False)

def models(request):
    kind, _ = ContentType.objects.get_or_create(app_label="shop", model="tea")
    return JsonResponse({"known": ContentType.objects.filter(app_label="shop").count(), "model": kind.model})

async def models_async(request):
    return JsonResponse({"known": await ContentType.objects.filter(app_label="shop").acount()})

def stream(request):
    return StreamingHttpResponse(f"{threading.get_ident()} {connection.connection is not None}\\n" for _ in range(3))

def file(request):
    response = FileResponse(open(__file__, "rb"))
    response["thread"] = str(threading.get_ident())
    return response

def cached(request):
    cache.set("a", "b")
    return JsonResponse({"made": type(caches["default"]).made})

urlpatterns += [path(view.__name__, view) for view in (models, models_async, stream, file, cached)]
"""


def test_models_are_asked_by_views_of_both_kinds(tmp_path: Path) -> None:
    folder = write_project(tmp_path, urls=VIEWS)
    subprocess.run(
        [sys.executable, "manage.py", "migrate", "--verbosity", "0"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    with runprefork(folder) as server:
        for _ in range(5):
            assert json.loads(server.get("/models")[1]) == {"known": 1, "model": "tea"}
            assert json.loads(server.get("/models_async")[1]) == {"known": 1}


def test_an_answer_is_made_and_finished_by_one_thread(tmp_path: Path) -> None:
    folder = write_project(tmp_path, urls=VIEWS)
    with runprefork(folder, "--workers", "1", "--threads", "4") as server:
        lines = server.get("/stream")[1].decode().splitlines()
        assert len(lines) == 3
        assert len(set(lines)) == 1
        assert server.wait_for_output("finished").split()[1] == lines[0].split()[0]
        assert server.get("/file") == (200, (folder / "urls.py").read_bytes())


CACHES = """
CACHES = {"default": {"BACKEND": "caching.Counted"}}
"""
COUNTED = """
from django.core.cache.backends.locmem import LocMemCache

class Counted(LocMemCache):
    made = 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        Counted.made += 1
"""


def test_a_thread_keeps_its_client_of_the_cache(tmp_path: Path) -> None:
    folder = write_project(tmp_path, CACHES, VIEWS)
    (folder / "caching.py").write_text(COUNTED)
    with runprefork(folder, "--workers", "1", "--threads", "1") as server:
        made = [json.loads(server.get("/cached")[1])["made"] for _ in range(20)]
        assert made == [made[0]] * 20


# The log.


def tracebacks(server: LiveServer) -> int:
    """Return how often the log tells of the view that raised, by whomsoever."""
    return server.log.count("ZeroDivisionError: the view is broken")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("", 1),
        ("PREFORK = {'LOGGING': 'auto'}\n", 1),
        ("PREFORK = {'LOGGING': 'off'}\n", 0),
        ("LOGGING = {'version': 1}\n", 0),
    ],
    ids=["nothing set", "auto", "off", "set, without a handler"],
)
def test_a_view_that_raises_is_told_as_the_settings_of_the_log_say(tmp_path: Path, settings: str, told: int) -> None:
    with runprefork(write_project(tmp_path, settings), "--workers", "1") as server:
        assert server.get("/broken")[0] == 500
        server.stop()
        assert tracebacks(server) == told


def test_a_handler_of_the_projects_own_is_used_and_nothing_is_told_twice(tmp_path: Path) -> None:
    handler = "{'class': 'logging.StreamHandler', 'formatter': 'own'}"
    own = (
        "'formatters': {'own': {'format': 'OWN %(name)s %(message)s'}}, 'root': {'handlers': ['own'], 'level': 'INFO'}"
    )
    settings = (
        f"LOGGING = {{'version': 1, 'disable_existing_loggers': False, 'handlers': {{'own': {handler}}}, {own}}}\n"
    )
    with runprefork(write_project(tmp_path, settings), "--workers", "1", ready="") as server:
        server.wait_for_output("OWN prefork pool.ready")
        url = server.wait_for_output("pool.listening").split("url=")[1].split()[0]
        with pytest.raises(HTTPError):
            urlopen(f"{url}/broken")
        server.stop()
        assert tracebacks(server) == 1
        assert server.records == []


def test_another_word_for_the_log_is_refused(tmp_path: Path) -> None:
    with runprefork(write_project(tmp_path, "PREFORK = {'LOGGING': 'loud'}\n"), ready="") as server:
        assert server.wait() == 1
        assert "PREFORK['LOGGING'] is 'loud'" in server.log
        assert "choose one of auto, off" in server.log
        assert "Traceback" not in server.log


# The first minute.


def test_a_busy_port_is_one_line_and_status_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with runprefork(write_project(tmp_path), address=address, ready="") as server:
            assert server.wait() == 1
            assert f"cannot listen on {address}: it is in use" in server.log
            assert "[PF303]" in server.log
            assert "Traceback" not in server.log


def test_a_port_out_of_range_is_a_usage_error(tmp_path: Path) -> None:
    with runprefork(write_project(tmp_path), address="99999", ready="") as server:
        assert server.wait() == 2
        assert "a port is a number from 0 to 65535 [PF302]" in server.log
        assert "Traceback" not in server.log


def test_the_banner_names_addresses_that_a_browser_reaches(tmp_path: Path) -> None:
    write_project(tmp_path)
    terminal, theirs = pty.openpty()
    command = [sys.executable, "manage.py", "runprefork", "0:0", "--workers", "1"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    server = subprocess.Popen(command, cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
    os.close(theirs)
    try:
        text = ""
        while "pool.ready" not in text:
            text += os.read(terminal, 4096).decode()
    finally:
        server.terminate()
        assert server.wait() == 0
        os.close(terminal)
    assert "using settings 'settings'" in text
    assert "Starting prefork at http://127.0.0.1:" in text
    assert "http://0.0.0.0:" not in text.split("pool.listening")[0]
    assert "Quit the server with CONTROL-C." in text
