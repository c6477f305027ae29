"""Is there one line for each answer, whatever becomes of the request, of its worker and of the file?"""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from server_process import PATIENCE, ROOT, LiveServer, Tally, lines_of, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

APP = """
import os, signal, time

BIG = b"x" * 50_000_000

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/raise":
        raise LookupError("no such tea")
    if path == "/stuck":
        time.sleep(30)
    if path == "/crash":
        os.kill(os.getpid(), signal.SIGKILL)
    own = [("X-Request-ID", "my-own")] if path == "/own" else []
    start_response("204 No" if path == "/none" else "200 OK", [("Content-Type", "text/plain"), *own])
    if path == "/late":
        return late()
    if path == "/big":
        return [BIG]
    if path.startswith("/closing"):
        return Closing([BIG if path == "/closing/big" else b"tea"])
    return [environ.get("prefork.request_id", "tea").encode()]

def late():
    yield b"tea"
    raise LookupError("no such tea")

class Closing(list):
    def close(self):
        time.sleep(30)

def wanted(fields):
    return "bot" not in fields["user_agent"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("tea")
    (found / "tea.py").write_text(APP)
    return found


def records_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines_of(path)]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "access.log"


@pytest.fixture(scope="module")
def server(folder: Path, log: Path) -> Iterator[LiveServer]:
    options: dict[str, Any] = {"app_dir": str(folder), "access_log": str(log), "request_timeout": 1, "request_id": True}
    with LiveServer.pool("tea:app", max_workers=1, max_reqs_per_child=0, **options) as server:
        yield server


def line_of(log: Path, path: str, count: int = 1) -> dict[str, Any]:
    """Wait for the line of a path, which comes behind the answer."""
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        found[:] = [record for record in records_of(log) if record["path"] == path]
        return len(found) >= count

    until(is_there)
    assert len(found) == count
    return found[-1]


def test_a_request_with_a_body(server: LiveServer, log: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"milk"
        yield b"sugar"

    fields = {"User-Agent": 'a "b" \\', "Referer": "http://tea/é\x80", "Transfer-Encoding": "chunked"}
    encoded = {name: value.encode("latin-1") for name, value in fields.items()}
    assert server.get("/chunked?x=%22", method="POST", body=pieces(), headers=encoded, encode_chunked=True)[0] == 200
    record = line_of(log, "/chunked")
    host, port = server.address
    assert {name: record[name] for name in ("method", "query", "status", "outcome", "http_version", "scheme")} == {
        "method": "POST",
        "query": "x=%22",
        "status": 200,
        "outcome": "complete",
        "http_version": "1.1",
        "scheme": "http",
    }
    assert (record["request_bytes"], record["response_bytes"]) == (9, 32)
    assert (record["client"], record["host"]) == ("127.0.0.1", f"{host}:{port}")
    assert (record["user_agent"], record["referer"]) == (fields["User-Agent"], fields["Referer"])
    assert 0 <= record["duration_s"] < PATIENCE
    assert 0 <= record["queue_s"] < PATIENCE
    assert (record["worker"], record["role"], record["level"]) == (0, "worker", "info")


def test_an_application_that_raises(server: LiveServer, log: Path) -> None:
    assert server.get("/raise")[0] == 500
    record = line_of(log, "/raise")
    assert (record["status"], record["outcome"], record["level"]) == (500, "failed", "error")
    assert server.wait_for("request.failed")["request_id"] == record["request_id"]


def test_an_application_that_raises_late(server: LiveServer, log: Path) -> None:
    with suppress(HTTPException):
        server.get("/late")
    record = line_of(log, "/late")
    assert (record["status"], record["outcome"], record["response_bytes"]) == (200, "failed", 3)


def test_a_body_that_may_not_be_sent_is_not_counted(server: LiveServer, log: Path) -> None:
    assert server.get("/none") == (204, b"")
    assert line_of(log, "/none")["response_bytes"] == 0


def test_a_client_that_leaves_before_it_has_its_answer(server: LiveServer, log: Path) -> None:
    with socket.create_connection(server.address, timeout=PATIENCE) as client:
        client.sendall(b"GET /big HTTP/1.1\r\nHost: a\r\nX-Request-ID: left\r\n\r\n")
        client.recv(1000)
    record = line_of(log, "/big")
    assert (record["status"], record["outcome"], record["request_id"]) == (200, "client_gone", "left")


def test_a_client_that_takes_its_time(server: LiveServer, log: Path) -> None:
    before = len([record for record in records_of(log) if record["path"] == "/big"])
    with closing(HTTPConnection(*server.address, timeout=PATIENCE)) as client:
        client.request("GET", "/big")
        response = client.getresponse()
        began = time.monotonic()
        # The application is done, and serves others.
        assert server.get("/meanwhile")[0] == 200
        line_of(log, "/meanwhile")
        made = time.monotonic() - began
        assert len([record for record in records_of(log) if record["path"] == "/big"]) == before
        assert len(response.read()) == 50_000_000
    record = line_of(log, "/big", count=before + 1)
    assert (record["outcome"], record["response_bytes"]) == ("complete", 50_000_000)
    assert record["duration_s"] >= made - 0.1


def test_a_request_that_takes_too_long_has_one_line(server: LiveServer, log: Path) -> None:
    assert server.get("/stuck", headers={"X-Request-ID": "late-1"})[0] == 504
    told = server.wait_for("request.timeout")
    record = line_of(log, "/stuck")
    assert (record["status"], record["outcome"]) == (504, "timeout")
    assert record["duration_s"] >= 1
    assert record["response_bytes"] > 0
    assert told["request_id"] == record["request_id"] == "late-1"


def test_a_whole_answer_has_its_own_line_although_the_application_is_stuck_behind_it(
    server: LiveServer, log: Path
) -> None:
    assert server.get("/closing") == (200, b"tea")
    record = line_of(log, "/closing")
    assert (record["status"], record["outcome"], record["response_bytes"]) == (200, "complete", 3)
    assert record["duration_s"] >= 1
    with closing(HTTPConnection(*server.address, timeout=PATIENCE)) as client:
        client.request("GET", "/closing/big", headers={"X-Request-ID": "late-2"})
        response = client.getresponse()
        server.wait_for("request.timeout", request_id="late-2")
        assert not [record for record in records_of(log) if record["path"] == "/closing/big"]
        assert len(response.read()) == 50_000_000
    record = line_of(log, "/closing/big")
    assert (record["status"], record["outcome"], record["response_bytes"]) == (200, "complete", 50_000_000)


COMES_BACK = """
import threading, time
from prefork.records import Records

told = threading.Event()
emit = Records.emit

def emit_slowly(self, name, **fields):
    if name == "request.timeout":
        told.set()
        time.sleep(0.2)
    emit(self, name, **fields)

Records.emit = emit_slowly

class Closing(list):
    def close(self):
        told.wait()

def app(environ, start_response):
    start_response("200 OK", [])
    return Closing([b"tea"])
"""


def test_a_thread_that_comes_back_while_it_is_answered_for_tells_nothing_twice(tmp_path: Path) -> None:
    (tmp_path / "back.py").write_text(COMES_BACK)
    log = tmp_path / "access.log"
    options: dict[str, Any] = {"app_dir": str(tmp_path), "access_log": str(log), "request_timeout": 1}
    with LiveServer.pool("back:app", max_workers=1, **options) as server:
        assert server.get("/") == (200, b"tea")
        assert server.wait_for("worker.exited", reason="request_timeout")["exit_code"] == 0
        record = line_of(log, "/")
        assert (record["status"], record["outcome"], record["response_bytes"]) == (200, "complete", 3)


def test_the_id_is_the_same_everywhere(server: LiveServer, log: Path) -> None:
    with closing(HTTPConnection(*server.address, timeout=PATIENCE)) as client:
        seen = []
        for given in ("from-nginx", 'no "sane" one', None):
            client.request("GET", "/id", headers={} if given is None else {"X-Request-ID": given})
            response = client.getresponse()
            seen.append((given, response.headers.get_all("X-Request-ID"), response.read().decode()))
    line_of(log, "/id", count=3)
    logged = [record["request_id"] for record in records_of(log) if record["path"] == "/id"]
    assert [answered for _, answered, _ in seen] == [[name] for name in logged]
    assert [in_environ for _, _, in_environ in seen] == logged
    assert logged[0] == "from-nginx"
    assert all(re.fullmatch("[0-9a-f]{32}", name) for name in logged[1:])
    assert len(set(logged)) == 3


def test_an_application_may_answer_with_an_id_of_its_own(server: LiveServer) -> None:
    with closing(HTTPConnection(*server.address, timeout=PATIENCE)) as client:
        client.request("GET", "/own")
        assert client.getresponse().headers.get_all("X-Request-ID") == ["my-own"]


def test_nginx_gives_the_id_and_has_it_in_its_own_log(server: LiveServer, log: Path, tmp_path: Path) -> None:
    nginx = tool("nginx")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    text = documented("nginx").replace("listen 80", f"listen 127.0.0.1:{port}")
    text = text.replace("127.0.0.1:8000", "{}:{}".format(*server.address)).replace("access.log", f"{tmp_path}/log")
    paths = "".join(f"{part}_temp_path {tmp_path};" for part in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    user = "user root;" if os.geteuid() == 0 else ""
    start = f"{user} daemon off; pid {tmp_path}/pid; error_log {tmp_path}/error; events {{}}"
    (tmp_path / "conf").write_text(f"{start}\nhttp {{ {paths}\n{text}}}\n")
    with subprocess.Popen([nginx, "-p", str(tmp_path), "-c", str(tmp_path / "conf")]) as process:
        until((tmp_path / "pid").exists)
        try:
            with closing(HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as client:
                client.request("GET", "/by-nginx", headers={"X-Request-ID": "stranger"})
                told = client.getresponse().headers["X-Request-ID"]
        finally:
            process.terminate()
    assert line_of(log, "/by-nginx")["request_id"] == told
    assert lines_of(tmp_path / "log")[0].endswith(f" 200 {told}")


def test_a_stranger_cannot_give_an_id(folder: Path) -> None:
    flags = ("--request-id", "--trusted-proxies", "192.0.2.1", "--max-workers", "1")
    with LiveServer.of("tea:app", *flags, cwd=folder) as server:
        status, body = server.get("/", headers={"X-Request-ID": "stranger"})
        assert status == 200
        assert re.fullmatch(b"[0-9a-f]{32}", body)


def test_flags_choose_the_form_and_what_is_left_out(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    form = r"%h %U %>s %(worker)s \"%{User-Agent}i\" %p %{X-None}o"
    flags = ("--access-log", str(log), "--access-log-format", form, "--access-log-filter", "tea:wanted")
    more = ("--access-log-skip", "/health", "--access-log-skip", "/static/*", "--max-workers", "1")
    with LiveServer.of("tea:app", *flags, *more, cwd=folder) as server:
        for path, agent in [("/health", "x"), ("/static/a", "x"), ("/", "bot"), ("/tea", 'a "cup"')]:
            assert server.get(path, headers={"User-Agent": agent})[0] == 200
        port = server.address[1]
        server.stop()
    assert lines_of(log) == [rf'127.0.0.1 /tea 200 0 "a \"cup\"" {port} -']


@pytest.mark.over_both
def test_what_becomes_of_the_connection_is_known(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    options: dict[str, Any] = {"access_log": str(log), "access_log_format": "%U %s %X", "max_workers": 1}
    asked = {
        "/tea": ({}, "200 +"),
        "/close": ({"Connection": "close"}, "200 -"),
        "/late": ({}, "200 -"),  # it is cut
        "/forged": ({"X-Forwarded-For": "nobody"}, "400 -"),
    }
    with LiveServer.pool("tea:app", app_dir=str(folder), **options) as server:
        for path, (fields, _) in asked.items():
            with suppress(HTTPException):
                server.get(path, headers=fields)
        until(lambda: len(lines_of(log)) >= len(asked))
    told = dict(line.split(" ", 1) for line in lines_of(log))
    assert told == {path: ending for path, (_, ending) in asked.items()}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--access-log-format", "%(statuss)s"), "did you mean %(status)s?"),
        (("--access-log-format", "apache"), "combined"),
        (("--access-log-filter", "tea:nope", "--bind", "127.0.0.1:0"), "has no attribute 'nope'"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(folder: Path, flags: tuple[str, ...], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefork", "tea:app", *flags],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(errors) == 1
    assert said in errors[0]


def test_no_line_is_lost_with_a_worker_that_crashes(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    options: dict[str, Any] = {"app_dir": str(folder), "access_log": str(log), "threads": 1, "max_reqs_per_child": 0}
    with LiveServer.pool("tea:app", max_workers=1, **options) as server:
        with Tally(server, clients=8) as tally:
            for count in range(1, 4):
                tally.wait_for(200)
                with suppress(OSError, HTTPException):
                    server.get("/crash")
                server.wait_for("worker.ready", count=count + 1)
            tally.wait_for(200)
        answered = tally.answered
        server.stop()
    assert len(server.all("worker.exited", expected=False)) == 3
    assert len(records_of(log)) == answered


def unpacked(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def holders(server: LiveServer, path: Path) -> list[int]:
    """Return which processes of a server have a file open."""
    found = []
    for pid in server.group():
        with suppress(psutil.Error):
            found += [pid for file in psutil.Process(pid).open_files() if file.path == str(path)]
    return found


def documented(kind: str) -> str:
    """Return a configuration of the documentation."""
    (text,) = re.findall(rf"```{kind}\n(.*?)```", (ROOT / "docs" / "access-log.md").read_text(), re.DOTALL)
    return str(text)


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        assert "CI" not in os.environ, f"{name} is not installed"
        pytest.skip(f"{name} is not installed")
    return found


def test_logrotate_loses_no_line_while_workers_come_and_go(folder: Path, tmp_path: Path) -> None:
    logrotate = tool("logrotate")
    logs = tmp_path / "logs"
    logs.mkdir(mode=0o755)
    log, rules, pid_file = logs / "access.log", tmp_path / "rules", tmp_path / "pid"
    flags = ("--access-log", str(log), "--access-log-format", "combined", "--pid-file", str(pid_file))
    with LiveServer.of("tea:app", *flags, "--max-workers", "3", "--max-reqs-per-child", "100", cwd=folder) as server:
        text = documented("logrotate").replace("/var/log/shop/access.log", str(log))
        rules.write_text(text.replace("/run/shop.pid", str(pid_file)))
        rules.chmod(0o644)
        with Tally(server) as tally:
            for _ in range(4):
                tally.wait_for(300)
                command = [logrotate, "--force", "--state", str(tmp_path / "state"), str(rules)]
                subprocess.run(command, check=True, timeout=PATIENCE)
                # The next rotation compresses this file, and so must not come before all have left it.
                until(lambda: log.exists() and not holders(server, logs / "access.log.1"))
            tally.wait_for(300)
        assert not tally.lost
        answered = tally.answered
        assert len(server.all("worker.exited")) > 3
        server.stop()
    files = sorted(logs.iterdir())
    assert len(files) == 5
    lines = [line for path in files for line in unpacked(path).splitlines()]
    assert all(re.fullmatch(rb'127\.0\.0\.1 - - \[.+\] "GET / HTTP/1\.1" 200 3 "-" "-"', line) for line in lines)
    assert len(lines) == answered


def test_a_file_that_is_copied_and_truncated_is_written_on_from_its_start(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    with LiveServer.of("tea:app", "--access-log", str(log), "--max-workers", "2", cwd=folder) as server:
        for _ in range(5):
            server.get("/before")
        until(lambda: len(lines_of(log)) == 5)
        os.truncate(log, 0)
        server.get("/after")
        until(lambda: [record["path"] for record in records_of(log)] == ["/after"])


@pytest.mark.over_both
def test_a_log_that_nobody_reads_stops_nobody_and_what_is_lost_is_told(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "log"
    os.mkfifo(path)
    there = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # both, or who opens it to write would wait
    fcntl.fcntl(there, fcntl.F_SETPIPE_SZ, 4096)
    options: dict[str, Any] = {"access_log": str(path), "max_workers": 1, "max_reqs_per_child": 0}
    with closing(os.fdopen(there, "rb")), LiveServer.pool("tea:app", app_dir=str(folder), **options) as server:
        with Tally(server, clients=4) as clients:
            clients.wait_for(200)
            server.send(signal.SIGUSR1)
            clients.wait_for(200)
        assert (set(clients.statuses), clients.lost) == ({200}, [])
        answered = clients.answered
        lines: list[bytes] = []

        def all_is_known() -> bool:
            nonlocal answered
            with suppress(BlockingIOError):
                lines.extend(os.read(there, 65536).splitlines())
            lost: int = sum(record["lines"] for record in server.all("log.lines_lost", log=str(path), code="PF106"))
            if lost and len(lines) + lost == answered:
                return True
            answered += server.get()[0] == 200  # it is told with the line of a request
            return False

        until(all_is_known)
        assert all(json.loads(line)["event"] == "request.finished" for line in lines)


PATIENT = """
import prefork.records.pipe
from tea import app
prefork.records.pipe.PATIENCE_S = 20
"""


def test_an_answer_does_not_wait_for_its_line(folder: Path, tmp_path: Path) -> None:
    """Nobody reads the log, a pipe; so at some time a line cannot be written. Its answer is there all the same."""
    log = tmp_path / "pipe"
    os.mkfifo(log)
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    path = "/" + "x" * 6000
    read = b""
    try:
        (folder / "patient.py").write_text(PATIENT)
        with LiveServer.of("patient:app", "--access-log", str(log), "--max-workers", "1", cwd=folder) as server:
            asked = 0
            while True:
                with socket.create_connection(server.address, timeout=PATIENCE) as client:
                    client.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
                    assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
                    asked += 1
                    client.settimeout(5)
                    try:
                        client.recv(1)  # the end, which comes when the line is written
                    except TimeoutError:
                        break
            os.set_blocking(reader, True)
            collector = threading.Thread(target=server.stop)
            collector.start()
            while piece := os.read(reader, 65536):
                read += piece
            collector.join(PATIENCE)
    finally:
        os.close(reader)
    assert asked > 5
    assert [json.loads(line)["path"] for line in read.splitlines()] == [path] * asked


AS_A_SERVICE = """
import os, sys
journal = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.dup2(journal, 2)
found = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino}"
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def test_the_journal_hears_the_level(folder: Path, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    command = ("-m", "prefork", "tea:app", "--bind", "127.0.0.1:0", "--access-log", "-", "--max-workers", "1")
    with LiveServer.script(AS_A_SERVICE, str(journal), *command, cwd=folder, ready="") as server:
        until(lambda: '"pool.ready"' in "".join(lines_of(journal)))
        listening = next(line for line in lines_of(journal) if '"pool.listening"' in line)
        for path in ("/", "/raise"):
            with closing(HTTPConnection("127.0.0.1", json.loads(listening[3:])["port"], timeout=PATIENCE)) as client:
                client.request("GET", path)
                client.getresponse().read()
        server.stop()
    levels = {(line[:3], json.loads(line[3:])["event"]) for line in lines_of(journal)}
    assert {("<6>", "request.finished"), ("<3>", "request.finished"), ("<3>", "request.failed")} <= levels
