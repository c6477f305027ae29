"""Is new code served after HUP, by the same process id, and without anybody noticing?"""

from __future__ import annotations

import http.client
import json
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from server_process import A_MINUTE, PATIENCE, ROOT, LiveServer, Tally, lines_of, until, wait_until_gone

if TYPE_CHECKING:
    from collections.abc import Iterator

APP = """
import os, sys, time
VERSION = "{version}"
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [VERSION.encode()]
{more}
if __name__ == "__main__":
    from prefork import WorkerPool
    sys.exit(WorkerPool(app, redeploy=True, bind="127.0.0.1:0", max_workers=2, log_format="json", log_level="debug").serve())
"""


class Shop:
    """An application whose code changes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "manage.py").write_text(MANAGE)
        (folder / "site_urls.py").write_text(URLS)
        (folder / "web.py").write_text(WEB)
        self.write(1)

    def write(self, version: object, more: str = "") -> None:
        draft = self.folder / "draft"
        draft.write_text(APP.format(version=version, more=more))
        draft.rename(self.folder / "shop.py")  # at once: somebody may be reading

    def served(self, *flags: str) -> LiveServer:
        # Without a budget: with --no-preload the successor of an old worker would load the new code.
        return LiveServer.of("shop:app", "--max-workers", "2", "--max-reqs-per-child", "0", *flags, cwd=self.folder)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def deploy(server: LiveServer) -> None:
    """Deploy what is there now, and wait until the old pool is gone."""
    before = len(server.all("pool.deployed"))
    server.send(signal.SIGHUP, to=server.pid)
    new = server.wait_for("pool.deployed", count=before + 1)["generation"]
    old = server.wait_for("pool.superseded", new_generation=new)["pid"]
    server.wait_for("pool.stopped", pid=old)


def test_a_thread_of_the_application_keeps_no_old_pool_and_no_keeper(shop: Shop) -> None:
    more = "import threading\nthreading.Thread(target=time.sleep, args=(600,)).start()"
    shop.write(1, more)
    with shop.served() as server:
        old = server.wait_for("pool.ready")["pid"]
        shop.write(2, more)
        deploy(server)
        wait_until_gone([old])
        assert server.get()[1] == b"2"
        assert server.stop() == 0


# How a pool comes to have a keeper.

MANAGE = """
import sys
import django
from django.conf import settings
from django.core.management import execute_from_command_line
settings.configure(
    ROOT_URLCONF="site_urls", SECRET_KEY="x", ALLOWED_HOSTS=["*"], INSTALLED_APPS=["prefork.contrib.django"],
    WSGI_APPLICATION=None,
)
execute_from_command_line(sys.argv)
"""
URLS = """
from django.http import HttpResponse
from django.urls import path
from shop import VERSION
urlpatterns = [path("", lambda request: HttpResponse(VERSION))]
"""
WEB = """
from flask import Flask
from shop import VERSION
app = Flask("web")
app.add_url_rule("/", "version", lambda: VERSION)
"""
COMMANDS = {
    "prefork": [sys.executable, "-m", "prefork", "shop:app", "--bind", "127.0.0.1:0", "-w", "2"],
    "flask": [sys.executable, "-m", "flask", "--app", "web", "run-prefork", "--port", "0", "-w", "2"],
    "django": [sys.executable, "manage.py", "runprefork", "127.0.0.1:0", "-w", "2"],
    "script": [sys.executable, "shop.py"],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_hup_serves_new_code_under_the_same_process_id(shop: Shop, command: list[str]) -> None:
    with LiveServer(*command, cwd=shop.folder) as server:
        address = server.address
        for version in range(1, 4):
            assert server.get("/")[1] == str(version).encode()
            assert server.all("pool.starting")[-1]["keeper_pid"] == server.pid
            shop.write(version + 1)
            deploy(server)
        assert server.address == address
        assert [record["generation"] for record in server.all("pool.deployed")] == [2, 3, 4]
        assert server.stop() == 0
        assert {record["exit_code"] for record in server.all("pool.stopped")} == {0}


DOOR = "import os; from prefork import WorkerPool; os.execve = {broken}; WorkerPool(print, redeploy=True).serve()"


def test_a_keeper_that_cannot_be_started_is_an_error(tmp_path: Path) -> None:
    program = DOOR.format(broken="lambda *_: (_ for _ in ()).throw(PermissionError(13, 'Permission denied'))")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False, cwd=ROOT
    )
    assert done.returncode == 1
    assert "--no-redeploy" in done.stderr
    assert "PF420" in done.stderr


# What is wrong with new code.

GROWS = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
bytes(2**31)
"""
BROKEN = {
    "syntax": ("this is no Python", "SyntaxError"),
    "import": ("import there_is_none", "ModuleNotFoundError"),
    "raises": ("raise LookupError('no shop')", "LookupError: no shop"),
    "exit": ("sys.exit(3)", "SystemExit: 3"),
    "exit at once": ("os._exit(7)", "status 7"),
    "crash": ("import signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
    "no memory": (GROWS, "MemoryError"),
}


def refuse(server: LiveServer) -> dict[str, Any]:
    """Deploy what cannot be, and return the record of it."""
    before = len(server.all("pool.deploy_failed"))
    server.send(signal.SIGHUP, to=server.pid)
    return server.wait_for("pool.deploy_failed", count=before + 1)


def check_refusal(server: LiveServer, shop: Shop, record: dict[str, Any], text: str) -> None:
    """Fail unless all is as it was, said in one record, and the next good code is served."""
    assert text in record["reason"] + record.get("exception", "")
    assert record["pid"] == server.all("pool.starting")[0]["pid"]
    assert server.get("/")[1] == b"1"
    assert not server.all("pool.boot_failed")
    assert not server.all("worker.boot_failed")
    assert not server.output
    shop.write(2)
    deploy(server)
    assert server.get("/")[1] == b"2"
    assert len(server.all("pool.deploy_failed")) == 1


@pytest.mark.parametrize("preload", ["--preload", "--no-preload"])
@pytest.mark.parametrize("kind", BROKEN)
def test_broken_code_leaves_the_old_one_serving_and_the_next_good_one_is_served(
    shop: Shop, kind: str, preload: str
) -> None:
    code, text = BROKEN[kind]
    with shop.served(preload) as server:
        with Tally(server) as tally:
            shop.write(2, code)
            record = refuse(server)
            assert record["new_generation"] == 2
            tally.wait_for(20)
        assert not tally.lost
        assert set(tally.bodies) == {b"1"}
        check_refusal(server, shop, record, text)
        if kind in {"raises", "import", "no memory", "exit"}:
            assert "shop.py" in record["exception"]
        assert server.stop() == 0


def test_a_factory_that_raises_is_refused_with_its_traceback(shop: Shop) -> None:
    factory = "def create():\n    {}\n    return app\n"
    shop.write(1, factory.format("pass"))
    with LiveServer.of("shop:create()", "--max-workers", "2", cwd=shop.folder) as server:
        shop.write(2, factory.format("raise LookupError('no shop')"))
        record = refuse(server)
        assert "in create" in record["exception"]
        shop.write(2, factory.format("pass"))
        deploy(server)
        assert server.get("/")[1] == b"2"


@pytest.mark.parametrize("preload", ["--preload", "--no-preload"])
def test_code_that_hangs_is_given_up_with_its_stack(shop: Shop, preload: str) -> None:
    with shop.served("--boot-timeout", "8", preload) as server:
        shop.write(2, "time.sleep(600)")
        record = refuse(server)
        check_refusal(server, shop, record, "not ready after")
        assert "shop.py" in record["exception"]


@pytest.mark.parametrize("preload", ["--preload", "--no-preload"])
def test_a_stack_is_shown_of_code_that_crashes(shop: Shop, preload: str) -> None:
    with shop.served(preload) as server:
        shop.write(2, "import ctypes; ctypes.string_at(0)")
        record = refuse(server)
        assert "SIGSEGV" in record["reason"]
        assert "shop.py" in record["exception"]


@pytest.mark.over_both
@pytest.mark.parametrize("preload", ["--preload", "--no-preload"])
def test_code_that_fails_the_probe_is_never_seen_by_a_client(shop: Shop, preload: str) -> None:
    with shop.served("--deploy-probe", "/", preload) as server:
        with Tally(server) as tally:
            shop.write(2, "app = lambda environ, start: (start('500 Sick', []), [b'no database'])[1]")
            record = refuse(server)
            tally.wait_for(20)
        assert set(tally.bodies) == {b"1"}
        assert not tally.lost
        assert "PF422" in record["reason"]
        check_refusal(server, shop, record, "deploy_probe / was answered with 500: 'no database'")


@pytest.mark.over_both
@pytest.mark.parametrize("flags", [(), ("--proxy-protocol", "--trusted-proxies", "unix")], ids=["plain", "PROXY"])
def test_the_probe_is_answered_by_the_application(shop: Shop, flags: tuple[str, ...]) -> None:
    with shop.served("--deploy-probe", "/", *flags) as server:
        shop.write(2, "app = lambda environ, start: (start('500 Sick', []), [b'no database'])[1]")
        check_refusal(server, shop, refuse(server), "deploy_probe / was answered with 500: 'no database'")


def test_the_probe_asks_for_the_host_and_by_the_scheme_of_a_url(shop: Shop) -> None:
    seen = "(environ['wsgi.url_scheme'] + environ['HTTP_HOST']).encode()"
    with shop.served("--deploy-probe", "https://shop.example/", "--trusted-proxies", "none") as server:
        shop.write(2, f"app = lambda environ, start: (start('500 Sick', []), [{seen}])[1]")
        check_refusal(server, shop, refuse(server), "was answered with 500: 'httpsshop.example'")


def test_a_view_that_hangs_fails_the_probe(shop: Shop) -> None:
    with shop.served("--deploy-probe", "/", "--boot-timeout", "8") as server:
        shop.write(2, "app = lambda environ, start: time.sleep(600)")
        check_refusal(server, shop, refuse(server), "deploy_probe / was not answered: timed out")


def test_a_host_that_django_does_not_know_fails_the_probe_and_the_right_one_does_not(shop: Shop) -> None:
    manage = shop.folder / "manage.py"
    strict = 'ALLOWED_HOSTS=["127.0.0.1", "shop.example"], MIDDLEWARE=["django.middleware.common.CommonMiddleware"]'
    manage.write_text(MANAGE.replace('ALLOWED_HOSTS=["*"]', strict))
    command = [*COMMANDS["django"], "--deploy-probe"]
    with LiveServer(*command, "/", cwd=shop.folder) as server:
        record = refuse(server)
        assert "deploy_probe / was answered with 400" in record["reason"]
        assert "a URL with one that it does" in record["reason"]
    with LiveServer(*command, "http://shop.example/", cwd=shop.folder) as server:
        deploy(server)
        assert server.get("/")[1] == b"1"


@pytest.mark.parametrize(
    ("code", "text"),
    [("os._exit(7)", "died"), ("raise LookupError('no shop')", "LookupError: no shop")],
    ids=["says nothing", "says why"],
)
def test_a_worker_that_cannot_start_fails_the_probe(shop: Shop, code: str, text: str) -> None:
    with shop.served("--deploy-probe", "/", "--no-preload") as server:
        shop.write(2, code)
        check_refusal(server, shop, refuse(server), text)


@pytest.mark.parametrize(
    ("code", "text"),
    [("import ctypes; ctypes.string_at(0)", "died"), ("time.sleep(600)", "was late")],
    ids=["crashes", "hangs"],
)
def test_a_stack_is_shown_of_a_worker_that_fails_the_probe_without_a_word(shop: Shop, code: str, text: str) -> None:
    with shop.served("--deploy-probe", "/", "--no-preload", "--boot-timeout", "8") as server:
        shop.write(2, code)
        record = refuse(server)
        assert text in record["reason"]
        assert "shop.py" in record["exception"]


def test_a_configuration_that_became_invalid_is_refused(shop: Shop) -> None:
    file = shop.folder / "prefork.toml"
    file.write_text("threads = 2\n")
    with shop.served("--config", "prefork.toml") as server:
        file.write_text("threads = none\n")
        record = refuse(server)
        file.write_text("threads = 3\n")
        check_refusal(server, shop, record, "PF104")
        assert server.all("pool.starting")[-1]["threads"] == 3


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize(("code", "text"), [BROKEN["syntax"], BROKEN["raises"], BROKEN["exit at once"]])
def test_broken_code_is_told_with_its_traceback_whoever_loads_it(
    shop: Shop, command: list[str], code: str, text: str
) -> None:
    with LiveServer(*command, cwd=shop.folder) as server:
        shop.write(2, code)
        record = refuse(server)
        assert text in record["reason"] + record.get("exception", "")
        assert ("exception" in record) == ("_exit" not in code)
        assert "Traceback" not in "".join(server.output)
        shop.write(2)
        deploy(server)
        assert server.get("/")[1] == b"2"


def forbid_descriptors(pid: int) -> tuple[int, int]:
    """Let a process open nothing more; return the limit that it had."""
    there = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    free = next(number for number in range(len(there) + 1) if number not in there)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, before[1]))
    return before


def let_the_keeper_catch_up(server: LiveServer) -> None:
    """Wait until it has dealt with all that came before a signal."""
    before = len(server.all("worker.spawned"))
    server.send(signal.SIGTTIN, to=server.pid)
    server.wait_for("worker.spawned", count=before + 1)


def test_a_pool_that_the_system_does_not_let_the_keeper_start_is_a_deploy_that_failed(shop: Shop) -> None:
    with shop.served() as server:
        let_the_keeper_catch_up(server)  # it is sent the sockets to hold
        shop.write(2)
        there = psutil.Process(server.pid).num_fds()
        before = forbid_descriptors(server.pid)
        assert "Too many open files" in refuse(server)["reason"]
        assert server.get("/")[1] == b"1"
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, before)
        assert psutil.Process(server.pid).num_fds() == there
        deploy(server)
        assert server.get("/")[1] == b"2"
        wait_until_gone([server.parent_pid])
        for _ in range(2):  # what it buries sets descriptors free, and it tells of the first one before that
            let_the_keeper_catch_up(server)
        before = forbid_descriptors(server.pid)
        os.kill(server.all("pool.starting")[-1]["pid"], signal.SIGKILL)
        assert "Too many open files" in server.wait_for("pool.deploy_failed", role="keeper")["reason"]
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, before)
        server.wait_for("pool.deployed", reason="death")
        assert server.get("/")[1] == b"2"


def test_a_program_without_us_is_refused_with_what_it_said(shop: Shop) -> None:
    with LiveServer(*COMMANDS["script"], cwd=shop.folder) as server:
        (shop.folder / "shop.py").write_text("raise LookupError('no server any more')")
        assert "no server any more" in refuse(server)["exception"]


# What else happens meanwhile.


def test_hups_during_a_deploy_are_one_more_with_the_newest_code(shop: Shop) -> None:
    with shop.served() as server:
        marker, go = shop.folder / "loading", shop.folder / "go"
        shop.write(2, f"open({str(marker)!r}, 'w')\nwhile not os.path.exists({str(go)!r}):\n    time.sleep(0.01)")
        server.send(signal.SIGHUP, to=server.pid)
        until(marker.exists)
        shop.write(3)
        server.send(signal.SIGHUP, to=server.pid)
        server.send(signal.SIGHUP, to=server.pid)
        until(lambda: psutil.Process(server.pid).status() == psutil.STATUS_SLEEPING)  # so it has heard them
        go.touch()
        server.wait_for("pool.deployed", generation=3)
        server.wait_for("pool.stopped", generation=2)
        assert server.get("/")[1] == b"3"
        assert len(server.all("pool.deploying")) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
@pytest.mark.parametrize("command", [COMMANDS["prefork"], COMMANDS["flask"]], ids=["prefork", "flask"])
def test_a_stop_during_a_deploy_stops_both(shop: Shop, command: list[str], number: signal.Signals) -> None:
    with LiveServer(*command, cwd=shop.folder) as server:
        marker = shop.folder / "loading"
        shop.write(2, f"open({str(marker)!r}, 'w')\n{A_MINUTE}")
        server.send(signal.SIGHUP, to=server.pid)
        until(marker.exists)
        assert server.stop(number) == 0
        assert not server.all("pool.deploy_failed")
        assert "Traceback" not in "".join(server.output)


WAITS = """
def app(environ, start_response):
    name = environ["PATH_INFO"][1:]
    if name:
        os.write(1, f"in {{name}}\\n".encode())
    while name and not os.path.exists(name):
        time.sleep(0.01)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "1")])
    return [VERSION.encode()]
"""


def test_who_waits_as_all_stop_is_left_to_the_new_code_although_the_old_has_a_thread_free(shop: Shop) -> None:
    shop.write(1, WAITS.format())
    with shop.served("--max-workers", "1", "--threads", "2") as server, ExitStack() as stack:

        def ask(path: str) -> http.client.HTTPConnection:
            client = stack.enter_context(closing(http.client.HTTPConnection(*server.address, timeout=PATIENCE)))
            client.request("GET", path)
            return client

        def ask_again() -> bytes:
            waiting.request("GET", "/")
            return waiting.getresponse().read()

        asked = [ask("/first")]
        server.wait_for_output("in first")
        shop.write(2, WAITS.format())
        server.send(signal.SIGHUP, to=server.pid)
        server.wait_for("pool.superseded")
        waiting = ask("/")
        waiting.getresponse().read()
        until(lambda: ask_again() == b"2")
        asked += [ask("/second"), ask("/second")]
        until(lambda: server.output.count("in second") == 2)
        waiting.request("GET", "/")
        port = waiting.sock.getsockname()[1]
        new = server.wait_for("worker.spawned", generation=2)["child_pid"]
        until(lambda: all(at.raddr.port != port for at in psutil.Process(new).net_connections() if at.raddr))
        server.process.terminate()
        server.wait_for("pool.stopping", generation=1)
        server.wait_for("pool.stopping", generation=2)
        assert not select.select([waiting.sock], [], [], 0.5)[0]
        (shop.folder / "second").touch()
        assert waiting.getresponse().read() == b"2"
        (shop.folder / "first").touch()
        assert [client.getresponse().read() for client in asked] == [b"1", b"2", b"2"]
        assert server.wait() == 0


def test_ctrl_c_in_a_terminal_is_heard_once(shop: Shop) -> None:
    with shop.served() as server:
        deploy(server)
        os.killpg(server.pid, signal.SIGINT)
        assert server.wait() == 0
        assert len(server.all("pool.stopping")) == 1


def test_the_number_of_workers_that_was_chosen_outlives_a_deploy(shop: Shop) -> None:
    with shop.served() as server:
        server.send(signal.SIGTTIN, to=server.pid)
        server.wait_for("pool.scaling", workers_to=3)
        server.wait_for("worker.ready", count=3)
        deploy(server)
        assert server.wait_for("pool.ready", generation=2)["workers"] == 3


def test_usr1_and_usr2_reach_the_pool(shop: Shop) -> None:
    flags = ("--bind", "127.0.0.1:0", "-w", "2", "--log-file", "log")
    with LiveServer(sys.executable, "-m", "prefork", "shop:app", *flags, cwd=shop.folder, ready="") as server:
        until(lambda: "pool.ready" in ((shop.folder / "log").read_text() if (shop.folder / "log").exists() else ""))
        (shop.folder / "log").rename(shop.folder / "old")
        server.send(signal.SIGUSR1, to=server.pid)
        until((shop.folder / "log").exists)
        server.send(signal.SIGUSR2, to=server.pid)
        until(lambda: "pool.recycled" in (shop.folder / "log").read_text())


# Deaths.


def test_what_the_keeper_records_is_in_the_log_file_with_the_rest(shop: Shop) -> None:
    log = shop.folder / "log"
    log.touch()
    flags = ("--bind", "127.0.0.1:0", "-w", "2", "--log-file", "log")
    with LiveServer(sys.executable, "-m", "prefork", "shop:app", *flags, cwd=shop.folder, ready="") as server:

        def recorded(event: str) -> list[dict[str, Any]]:
            lines = [json.loads(line) for line in lines_of(log)]
            return [line for line in lines if line["event"] == event]

        until(lambda: bool(recorded("pool.ready")))
        os.kill(recorded("pool.ready")[0]["pid"], signal.SIGKILL)
        until(lambda: bool(recorded("pool.deployed")))
        (died,) = recorded("pool.died")
        assert (died["pid"], died["role"], died["code"]) == (server.pid, "keeper", "PF423")
        assert not server.records


@pytest.mark.over_both
def test_a_pool_whose_parent_is_killed_is_started_anew(shop: Shop) -> None:
    with shop.served() as server:
        old = server.worker_pids
        kept = http.client.HTTPConnection(*server.address, timeout=20)
        kept.request("GET", "/")
        assert kept.getresponse().read() == b"1"
        connection = kept.sock
        shop.write(2)
        os.kill(server.parent_pid, signal.SIGKILL)
        died = server.wait_for("pool.died", code="PF423")
        assert (died["pid"], died["role"]) == (server.pid, "keeper")
        assert "SIGKILL" in died["reason"]
        server.wait_for("pool.deployed", reason="death")
        wait_until_gone(old)
        kept.request("GET", "/")
        assert kept.getresponse().read() == b"2"
        assert kept.sock is connection, "it was closed"
        kept.close()
        deploy(server)
        assert server.stop() == 0


def test_what_the_keeper_says_to_a_person_looks_like_all_the_rest(shop: Shop) -> None:
    text = {"PREFORK_LOG_FORMAT": "console"}
    with LiveServer.of("shop:app", cwd=shop.folder, env=text, ready="") as server:
        server.wait_for_output("pool.ready")
        shop.write(2, "raise LookupError('no shop')")
        (parent,) = psutil.Process(server.pid).children()
        parent.kill()
        line = server.wait_for_output("pool.died")
        reason = 'reason="its process was ended by SIGKILL" code=PF423'
        assert re.fullmatch(rf"\d\d:\d\d:\d\d error   pool\.died {{14}}generation=1 {reason}", line)
        server.wait_for_output("pool.deploy_failed")
        server.wait_for_output("  LookupError: no shop")


def test_a_pool_that_cannot_be_started_anew_is_tried_again_until_it_can(shop: Shop) -> None:
    with shop.served() as server:
        shop.write(2, "raise LookupError('no shop')")
        os.kill(server.parent_pid, signal.SIGKILL)
        record = server.wait_for("pool.deploy_failed", count=2)
        assert record["role"] == "keeper"
        assert "shop.py" in record["exception"]
        shop.write(3)
        server.wait_for("pool.deployed", reason="death")
        assert server.get("/")[1] == b"3"


@pytest.mark.parametrize("family", ["tcp", "unix"])
@pytest.mark.parametrize("kind", ["raises", "exit at once"])
def test_a_pool_whose_workers_cannot_be_started_anew_leaves_the_sockets_to_the_next(
    shop: Shop, kind: str, family: str
) -> None:
    code, text = BROKEN[kind]
    place = shop.folder / "shop.sock"
    with shop.served("--no-preload", *([f"--bind=unix:{place}"] if family == "unix" else [])) as server:
        shop.write(2, code)
        os.kill(server.parent_pid, signal.SIGKILL)
        record = server.wait_for("pool.deploy_failed")
        assert record["role"] == "keeper"
        assert text in record["reason"] + record.get("exception", "")
        assert not server.all("pool.boot_failed")
        shop.write(3)
        server.wait_for("pool.deployed", reason="death")
        with socket.socket(socket.AF_UNIX if family == "unix" else socket.AF_INET) as client:
            client.settimeout(20)
            client.connect(str(place) if family == "unix" else server.address)
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert client.makefile("rb").read().endswith(b"3")


def test_a_pool_is_started_anew_although_nobody_reads_stderr(shop: Shop) -> None:
    log = shop.folder / "log"

    def written(event: str) -> list[dict[str, Any]]:
        records = [json.loads(line) for line in lines_of(log)]
        return [record for record in records if record["event"] == event]

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    command = [*COMMANDS["prefork"], "--log-file", str(log), "--log-format", "json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=shop.folder, env=environment, stderr=writer) as process:
        try:
            until(lambda: bool(written("pool.ready")))
            os.kill(written("pool.ready")[0]["pid"], signal.SIGKILL)
            until(lambda: bool(written("pool.deployed")))
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()
            os.close(reader)
            os.close(writer)


@pytest.mark.over_both
def test_pools_drain_and_leave_when_the_keeper_is_killed(shop: Shop) -> None:
    with shop.served() as server:
        address, group = server.address, server.group()
        os.kill(server.pid, signal.SIGKILL)
        server.wait_for("pool.stopped", exit_code=0)
        assert server.wait() == -signal.SIGKILL
        wait_until_gone(group)
        with socket.create_server(address):
            pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_stop_that_is_sent_to_the_pool_itself_ends_all(shop: Shop, number: signal.Signals) -> None:
    with shop.served() as server:
        deploy(server)
        server.send(number, to=server.all("pool.starting")[-1]["pid"])
        assert server.wait() == 0


# A pool that serves as well as it can, although one of its workers cannot start.

# The second worker fails, as soon as the first one serves.
HALF = """
def started(worker):
    if worker.number:
        while not os.path.exists("serves"):
            time.sleep(0.01)
        raise LookupError("no place")
"""


@contextmanager
def incomplete(shop: Shop, *flags: str) -> Iterator[LiveServer]:
    """Run a server whose first pool has one worker that serves, and wants two."""
    shop.write(1, HALF)
    hook = ("--worker-started", "shop:started", "--max-reqs-per-child", "0", "-w", "2", *flags)
    with LiveServer.of("shop:app", *hook, cwd=shop.folder, ready="worker.ready") as server:
        (shop.folder / "serves").touch()
        server.wait_for("worker.boot_failed")
        yield server


def test_new_code_takes_the_place_of_a_pool_that_is_incomplete(shop: Shop) -> None:
    with incomplete(shop) as server:
        shop.write(2, "raise LookupError('no shop')")
        assert "no shop" in refuse(server)["reason"]
        shop.write(2, "def started(worker): pass")
        deploy(server)
        assert server.get("/")[1] == b"2"


def test_an_incomplete_pool_is_stopped_in_its_own_time(shop: Shop) -> None:
    with incomplete(shop, "--stop-delay", "11") as server:
        assert server.stop() == 0
        assert server.all("pool.stopped", exit_code=0)


def test_an_incomplete_pool_is_complete_when_fewer_workers_are_wanted(shop: Shop) -> None:
    with incomplete(shop) as server:
        server.send(signal.SIGTTOU, to=server.pid)
        assert server.wait_for("pool.ready")["workers"] == 1
        deploy(server)
        assert server.all("pool.ready")[-1]["workers"] == 1


# What a pool inherits, and what not.


def test_a_unix_socket_and_the_pid_file_last_as_long_as_the_keeper(shop: Shop) -> None:
    place, pid = shop.folder / "shop.sock", shop.folder / "pid"
    with shop.served(f"--bind=unix:{place}", "--pid-file", str(pid)) as server:
        inode = place.stat().st_ino
        for _ in range(2):
            deploy(server)
            assert place.stat().st_ino == inode
            assert int(pid.read_text()) == server.pid
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(place))
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
        assert server.stop() == 0
    assert not place.exists()
    assert not pid.exists()


def test_a_deploy_may_change_where_the_server_listens(shop: Shop) -> None:
    file, first, second = (shop.folder / name for name in ("prefork.toml", "first.sock", "second.sock"))
    file.write_text(f'bind = ["127.0.0.1:0", "unix:{first}"]\n')
    with LiveServer(sys.executable, "-m", "prefork", "shop:app", "--config", "prefork.toml", cwd=shop.folder) as server:
        port = server.address
        file.write_text(f'bind = ["unix:{second}", "127.0.0.1:0"]\n')
        deploy(server)
        assert not first.exists()
        assert second.exists()
        assert server.address == port
        file.write_text(f'bind = ["127.0.0.1:0", "unix:{first}"]\n')
        shop.write(2, "raise LookupError")
        refuse(server)
        assert not first.exists(), "what came to nothing leaves nothing"
        assert second.exists()
        shop.write(2)
        deploy(server)
        assert first.exists()
        assert not second.exists()
        with socket.socket(socket.AF_UNIX) as client, pytest.raises(FileNotFoundError):
            client.connect(str(second))


ASYNC = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
    await send({"type": "http.response.body", "body": VERSION.encode()})
"""
OTHERWISE = {
    "parser": ('http = "h11"', 'http = "httptools"', ""),
    "trusted": ('trusted_proxies = "none"', 'trusted_proxies = "127.0.0.1"', ""),
    "request_timeout": ("", "request_timeout = 5\nrequest_id = true", ""),
    "threads": ("threads = 4", "threads = 1", ""),
    "asgi": ("", "", ASYNC),
    "listener": ('bind = "127.0.0.1:0"', 'bind = "unix:elsewhere.sock"', ""),
    "limits": ("", "max_head_size = 4096\nlimit_concurrency = 1", ""),
}


@pytest.mark.parametrize(("first", "second", "code"), OTHERWISE.values(), ids=OTHERWISE)
def test_a_kept_connection_crosses_to_a_generation_that_is_configured_otherwise(
    shop: Shop, first: str, second: str, code: str
) -> None:
    file = shop.folder / "prefork.toml"
    bind = "" if "bind" in first else 'bind = "127.0.0.1:0"\n'
    file.write_text(f"{bind}{first}\nmax_reqs_per_child = 0\nmax_workers = 2\n")
    with (
        LiveServer(sys.executable, "-m", "prefork", "shop:app", "--config", "prefork.toml", cwd=shop.folder) as server,
        closing(http.client.HTTPConnection(*server.address, timeout=20)) as client,
    ):
        assert version_at(client) == b"1"
        kept = client.sock
        file.write_text(f"{bind}{second}\nmax_reqs_per_child = 0\nmax_workers = 2\n")
        shop.write(2, code)
        deploy(server)
        assert version_at(client) == b"2"
        assert client.sock is kept


def version_at(client: http.client.HTTPConnection) -> bytes:
    client.request("GET", "/")
    return client.getresponse().read()


def test_a_kept_connection_ends_sooner_where_new_code_waits_less(shop: Shop) -> None:
    file = shop.folder / "prefork.toml"
    file.write_text('bind = "127.0.0.1:0"\nmax_workers = 1\n')
    with (
        LiveServer(sys.executable, "-m", "prefork", "shop:app", "--config", "prefork.toml", cwd=shop.folder) as server,
        closing(http.client.HTTPConnection(*server.address, timeout=20)) as client,
    ):
        assert version_at(client) == b"1"
        file.write_text('bind = "127.0.0.1:0"\nmax_workers = 1\nkeep_alive_timeout = 0.3\n')
        shop.write(2)
        deploy(server)
        assert version_at(client) == b"2"
        assert client.sock.recv(1) == b""


def test_new_code_starts_where_and_with_what_the_program_was_started(shop: Shop) -> None:
    more = "import prefork; os.environ['SHOP'] = os.environ.get('SHOP', '') + 'x'; VERSION = os.environ['SHOP'] + os.getcwd(); os.chdir('/')"
    shop.write(1, more)
    with LiveServer(*COMMANDS["script"], cwd=shop.folder, env={"SHOP": "shop"}) as server:
        for _ in range(2):
            assert server.get("/")[1].decode() == f"shopx{shop.folder}"
            deploy(server)


@pytest.mark.parametrize("way", ["entered by a shell", "by chdir"])
def test_new_code_is_that_behind_a_link_which_was_switched(tmp_path: Path, way: str) -> None:
    link = tmp_path / "current"

    def switch(version: int) -> None:
        release = tmp_path / f"release-{version}"
        release.mkdir()
        Shop(release).write(version)
        (tmp_path / "next").symlink_to(release.name)
        (tmp_path / "next").rename(link)

    switch(1)
    where: dict[str, Any] = {"cwd": link, "env": {"PWD": str(link)}}
    flags = ("--chdir", str(link)) if way == "by chdir" else ()
    with LiveServer.of("shop:app", "-w", "2", *flags, **({"cwd": tmp_path} if flags else where)) as server:
        for version in (2, 3):
            switch(version)
            deploy(server)
            assert server.get("/")[1] == str(version).encode()


@pytest.mark.parametrize("pwd", ["elsewhere", "there is none", "."])
def test_a_name_of_the_directory_that_is_not_its_own_counts_for_nothing(shop: Shop, pwd: str) -> None:
    (shop.folder / "elsewhere").mkdir()
    name = pwd if pwd == "." else str(shop.folder / pwd)
    with LiveServer(*COMMANDS["prefork"], cwd=shop.folder, env={"PWD": name}) as server:
        shop.write(2)
        deploy(server)
        assert server.get("/")[1] == b"2"


def test_no_process_keeps_what_it_does_not_need(shop: Shop) -> None:
    with shop.served() as server:
        deploy(server)

        def descriptors() -> int:
            until(lambda: len(server.group()) == 4)  # an old pool ends a moment after its last record
            return sum(psutil.Process(pid).num_fds() for pid in server.group())

        before = descriptors()
        for _ in range(3):
            deploy(server)
        shop.write(2, "raise LookupError")
        refuse(server)
        until(lambda: descriptors() <= before)


def test_threads_that_stay_behind_are_named(shop: Shop) -> None:
    shop.write(
        1, "import threading; threading.Thread(target=time.sleep, args=(60,), name='exporter', daemon=True).start()"
    )
    with LiveServer(*COMMANDS["script"], cwd=shop.folder) as server:
        (finding,) = server.wait_for("pool.fork_unsafe")["findings"]
        assert "exporter" in finding["what"]
    with LiveServer(*COMMANDS["flask"], cwd=shop.folder) as server:
        pool = psutil.Process(server.parent_pid)
        assert pool.num_threads() > 1, "loaded behind the fork, the application keeps its thread"


# Under load.


@pytest.mark.over_both
def test_nothing_is_lost_in_deploys_under_load(shop: Shop) -> None:
    with LiveServer.of("shop:app", "--max-workers", "2", cwd=shop.folder) as server, Tally(server, clients=8) as alive:
        with Tally(server, clients=4, keep_alive=False) as brief:
            for version in range(2, 7):
                if version % 3 == 0:
                    shop.write("broken", "raise LookupError")
                    refuse(server)
                shop.write(version)
                deploy(server)
                assert server.get("/")[1] == str(version).encode()
                alive.wait_for(50)
        assert not alive.lost
        assert not brief.lost
        assert b"broken" not in {*alive.bodies, *brief.bodies}
        assert set(alive.statuses) == set(brief.statuses) == {200}


@pytest.mark.over_both
def test_a_kept_alive_connection_outlives_deploys(shop: Shop) -> None:
    with shop.served() as server, socket.create_connection(server.address, timeout=20) as client:
        for version in range(1, 4):
            client.sendall(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
            answer = client.recv(4096)
            assert answer.endswith(str(version).encode())
            assert b"Connection: close" not in answer
            shop.write(version + 1)
            deploy(server)


@pytest.mark.over_both
def test_a_long_answer_of_an_old_pool_is_finished(shop: Shop) -> None:
    slow = "app = lambda environ, start: (start('200 OK', []), (time.sleep(0.1) or b'x' for _ in range(30)))[1]"
    shop.write(1, slow)
    with shop.served() as server, socket.create_connection(server.address, timeout=20) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert client.recv(1) == b"H"
        shop.write(2)
        deploy(server)
        answer = b""
        while data := client.recv(4096):
            answer += data
        assert answer.count(b"x") == 30
