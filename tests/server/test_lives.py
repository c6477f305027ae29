"""Does every record of the catalogue happen, and is it then as the catalogue says?

``LIVES`` are a few real servers that together go through all that a pool can live to see. A record that is new in the
catalogue needs a life that emits it: one of these, or one more.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
from collections import defaultdict
from contextlib import closing, suppress
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from server_process import LiveServer, Record

from prefork.records import CATALOGUE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

APP = """
import errno, os, resource, sys, threading, time

MARK = os.path.join(os.path.dirname(os.path.abspath(__file__)), "mark")  # while it is there, something goes wrong

def app(environ, start_response):
    if environ["PATH_INFO"] == "/raise":
        raise LookupError("no such tea")
    if environ["PATH_INFO"] == "/nowhere":
        start_response("404 Not Found", [])
        return [b""]
    if environ["PATH_INFO"] == "/stuck":
        print("stuck", flush=True)
        time.sleep(60)
    if environ["PATH_INFO"] == "/big":
        start_response("200 OK", [])
        return (bytes(100_000) for _ in range(300))
    if environ["PATH_INFO"] == "/hold":
        environ["prefork.exit_guard"].begin("tea")
    start_response("200 OK", [])
    return [b"tea"]

def leave_thread(app):
    threading.Thread(target=time.sleep, args=(60,), name="exporter", daemon=True).start()

def raise_(subject):
    raise LookupError("no such hook")

def raise_if_marked(worker):
    if os.path.exists(MARK):
        raise LookupError("no such tea")

def limit_descriptors(worker):
    resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))

def limit_files(worker):
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

def refuse_forks():
    fork = os.fork
    def refusing():
        if os.path.exists(MARK):
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()
    os.fork = refusing

def break_exchange():
    from prefork.handover import Exchange
    def refuse(self, ticket, descriptor):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    Exchange.send = refuse

def refuse_threads(worker):
    import threading
    start, started = threading.Thread.start, []
    def refuse(thread):
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)
    threading.Thread.start = refuse

def changed():
    return MARK if os.path.exists(MARK) else None
"""
SERVE = """
import sys, tea
from prefork import WorkerPool
where = {"bind": "127.0.0.1:0", "max_workers": 1, "log_format": "json", "log_level": "debug"}
"""


def pool(folder: Path, **options: Any) -> LiveServer:
    return LiveServer.pool("tea:app", app_dir=str(folder), **{"max_workers": 1, **options})


def script(folder: Path, text: str) -> LiveServer:
    return LiveServer.script(SERVE + text, cwd=folder)


def busy_day(folder: Path) -> LiveServer:
    """Requests of all kinds, an unsafe parent, more and fewer workers, a crash after a crash, and a hard end."""
    options = {"access_log": "-", "warm_up": "tea:leave_thread", "graceful_timeout": 0.2, "trusted_proxies": "none"}
    with pool(folder, request_id=True, **options) as server:
        forged = {"X-Forwarded-For": "192.0.2.1"}
        assert [server.get(path, headers=forged)[0] for path in ("/", "/raise")] == [200, 500]
        with socket.create_connection(server.address) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")  # no Host
            assert client.recv(1000).startswith(b"HTTP/1.1 400 ")
        server.send(signal.SIGTTIN)
        server.wait_for("worker.ready", count=2)
        server.send(signal.SIGTTOU)
        server.wait_for("worker.exited")
        server.send(signal.SIGUSR2)
        server.wait_for("worker.exited", count=2)
        for count in (3, 4, 5):
            server.wait_for("worker.ready", count=count)
            server.send(signal.SIGKILL, to=server.worker_pids[-1])
            server.wait_for("worker.exited", count=count)
        server.wait_for("worker.ready", count=6)
        with socket.create_connection(server.address) as client:
            client.sendall(b"GET /stuck HTTP/1.1\r\nHost: a\r\n\r\n")
            server.wait_for_output("stuck")
            server.stop()
    return server


def files_gone(folder: Path) -> LiveServer:
    """Records in files, whose directory goes away; warmed up by what is not there; and a hook that raises at the end."""
    logs = folder / "logs"
    logs.mkdir()
    options = {"access_log": str(logs / "access"), "warm_up": "/nowhere", "worker_exiting": "tea:raise_"}
    with pool(folder, **options) as server:
        server.get()
        logs.rename(folder / "old")
        server.send(signal.SIGUSR1)
        server.wait_for("log.reopen_failed", code="PF105")
        server.stop()
    server.records += [json.loads(line) for line in (folder / "old" / "access").read_text().splitlines()]
    return server


def deaf_reader(folder: Path) -> LiveServer:
    """A pipe for the access log that nobody reads for a while."""
    path = folder / "log"
    os.mkfifo(path)
    there = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # both, or who opens it to write would wait
    fcntl.fcntl(there, fcntl.F_SETPIPE_SZ, 4096)
    options = {"access_log": str(path), "max_reqs_per_child": 0}
    with closing(os.fdopen(there, "rb")), pool(folder, **options) as server:
        for _ in range(40):
            server.get()
        while not server.all("log.lines_lost"):
            with suppress(BlockingIOError):
                os.read(there, 65536)
            server.get()  # it is told with a request
        server.stop()
    return server


def no_successor(folder: Path) -> LiveServer:
    """A worker that is to be replaced while no fork is to be had."""
    with script(folder, "tea.refuse_forks()\nsys.exit(WorkerPool(tea.app, **where).serve())") as server:
        (folder / "mark").touch()
        server.send(signal.SIGUSR2)
        server.wait_for("worker.retirement_delayed")
        (folder / "mark").unlink()
        server.wait_for("worker.exited")
        server.stop()
    assert f"[Errno {errno.EAGAIN}]" in server.all("pool.fork_failed")[0]["error"]
    return server


def bad_successor(folder: Path) -> LiveServer:
    """A successor that cannot start."""
    with pool(folder, worker_started="tea:raise_if_marked") as server:
        (folder / "mark").touch()
        server.send(signal.SIGUSR2)
        server.wait_for("worker.boot_failed")
        server.stop()
    return server


def no_exchange(folder: Path) -> LiveServer:
    """A kept-alive connection that cannot be handed over, and a stop that waits for a balancer."""
    text = "tea.break_exchange()\nsys.exit(WorkerPool(tea.app, stop_delay=0.1, **where).serve())"
    with script(folder, text) as server, closing(HTTPConnection(*server.address, timeout=20)) as client:
        client.request("GET", "/")
        client.getresponse().read()
        server.send(signal.SIGUSR2)
        server.wait_for("worker.handover_failed")
        server.stop()
    return server


def sick_worker(folder: Path) -> LiveServer:
    """A request that takes too long, and a worker that answers nobody."""
    with pool(folder, heartbeat_timeout=1.5, request_timeout=0.2, request_id=True) as server:
        assert server.get("/stuck")[0] == 504
        server.wait_for("request.timeout")
        server.wait_for("worker.exited", reason="request_timeout")
        server.send(signal.SIGSTOP, to=server.worker_pids[0])
        server.wait_for("worker.unresponsive")
        server.wait_for("worker.exited", expected=False)
        server.stop()
    return server


def unfinished_work(folder: Path) -> LiveServer:
    """A stop that does not wait for what the application still does."""
    # Told of early, for on a busy machine it is killed before it has heard of the stop and nearly used up its time.
    (folder / "tea.py").write_text(APP + "import prefork.worker\nprefork.worker._NEARLY = 0.05\n")
    with pool(folder, graceful_timeout=3) as server:
        assert server.get("/hold")[0] == 200
        server.stop()
    return server


TEA_ASYNC = """
import asyncio, time
from tea import MARK

kept = []

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        raise LookupError("no kettle")
    if scope["path"] == "/block":
        time.sleep(2)
        kept.append(asyncio.create_task(asyncio.sleep(60)))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while scope["path"] == "/stream":
        await send({"type": "http.response.body", "body": b"tea", "more_body": True})
        await asyncio.sleep(0.02)
    await send({"type": "http.response.body", "body": b"tea"})
"""


def event_loop(folder: Path) -> LiveServer:
    """A loop that is held up, and a stop in the midst of a stream and of a task that nobody has waited for."""
    (folder / "async_tea.py").write_text(TEA_ASYNC)
    limits: dict[str, Any] = {"blocked_threshold": 0.1, "stream_grace": 0.1}
    with LiveServer.pool("async_tea:app", app_dir=str(folder), max_workers=1, **limits) as server:
        assert server.get("/block")[0] == 200
        with socket.create_connection(server.address) as client:
            client.sendall(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.recv(1000)
            server.stop()
    return server


def never_ready(folder: Path) -> LiveServer:
    """A pool of which no worker ever starts."""
    with pool(folder, worker_started="tea:raise_", where={"ready": ""}) as server:
        server.wait()
    return server


def crowd(folder: Path) -> LiveServer:
    """More clients than descriptors."""
    with pool(folder, worker_started="tea:limit_descriptors") as server:
        clients = [socket.create_connection(server.address) for _ in range(60)]
        server.wait_for("pool.accept_paused")
        for client in clients:
            client.close()
        server.stop()
    return server


def one_thread(folder: Path) -> LiveServer:
    """A system that lets a worker start no second thread."""
    with (
        pool(folder, worker_started="tea:refuse_threads", graceful_timeout=0.2) as server,
        socket.create_connection(server.address) as client,
    ):
        client.sendall(b"GET /stuck HTTP/1.1\r\nHost: a\r\n\r\n")
        server.wait_for("worker.thread_refused")
        server.stop()
    return server


def full_disk(folder: Path) -> LiveServer:
    """A client that takes nothing of an answer for which there is no room on the disk."""
    with (
        pool(folder, worker_started="tea:limit_files") as server,
        socket.create_connection(server.address) as client,
    ):
        client.sendall(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
        server.wait_for("worker.spool_failed")
        client.close()
        server.stop()
    return server


def full_house(folder: Path) -> LiveServer:
    """One client more than there may be."""
    with pool(folder, limit_concurrency=1) as server, socket.create_connection(server.address):
        assert server.get()[0] == 503
        server.wait_for("worker.overloaded")
        server.stop()
    return server


def edit(folder: Path) -> LiveServer:
    """A file that changes."""
    with script(folder, "sys.exit(WorkerPool(tea.app, files_changed=tea.changed, **where).serve())") as server:
        (folder / "mark").touch()
        assert server.wait() == 3
    return server


def deploys(folder: Path) -> LiveServer:
    """New code, broken and good, and the death of the workers' parent."""
    with LiveServer.of("tea:app", "--max-workers", "1", cwd=folder) as server:
        good = (folder / "tea.py").read_text()
        (folder / "tea.py").write_text("raise LookupError('no tea')")
        server.send(signal.SIGHUP, to=server.pid)
        server.wait_for("pool.deploy_failed")
        (folder / "tea.py").write_text(good)
        server.send(signal.SIGHUP, to=server.pid)
        new = server.wait_for("pool.superseded")["new_generation"]
        server.send(signal.SIGKILL, to=server.wait_for("pool.starting", generation=new)["pid"])
        server.wait_for("pool.died")
        server.wait_for("pool.deployed", reason="death")
        server.stop()
    return server


def secrets(folder: Path) -> LiveServer:
    """A client that does not speak TLS well, and a certificate that cannot be renewed."""
    trustme.CA().issue_cert("tea.example").private_key_and_cert_chain_pem.write_to_path(folder / "cert.pem")
    with pool(folder, cert=str(folder / "cert.pem")) as server:
        with socket.create_connection(server.address) as client:
            client.sendall(b"\x16\x03\x01\x00\x05hello")
            assert client.recv(1000).startswith(b"\x15")  # an alert
        (folder / "cert.pem").unlink()
        server.send(signal.SIGHUP)
        server.wait_for("tls.not_renewed")
        server.stop()
    return server


def sockets(folder: Path) -> LiveServer:
    """A WebSocket that breaks the protocol, and one for which the library is missing in the next image."""
    (folder / "tea.py").write_text("""
async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        await receive(), await receive()
""")
    ask = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\n"
    ask += b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    with LiveServer.of("tea:app", "--max-workers", "1", cwd=folder) as server:
        with socket.create_connection(server.address) as client:
            client.sendall(ask + b"\x81\x00")  # not masked
            server.wait_for("websocket.failed")
        (folder / "tea.py").write_text("import sys\nsys.modules['wsproto'] = None\nasync def app(*_): pass\n")
        server.send(signal.SIGHUP, to=server.pid)
        server.wait_for("worker.exited")  # until then the old code may take the next client in
        with socket.create_connection(server.address) as client:
            client.sendall(ask)
            server.wait_for("websocket.unavailable")
        server.stop()
    return server


LIVES: tuple[Callable[[Path], LiveServer], ...] = (
    busy_day,
    files_gone,
    deaf_reader,
    no_successor,
    bad_successor,
    no_exchange,
    sick_worker,
    unfinished_work,
    event_loop,
    never_ready,
    crowd,
    one_thread,
    full_disk,
    full_house,
    edit,
    deploys,
    secrets,
    sockets,
)


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, list[Record]]:
    """Return all records of all lives, by name."""
    found: dict[str, list[Record]] = defaultdict(list)
    for life in LIVES:
        folder = tmp_path_factory.mktemp(life.__name__)
        (folder / "tea.py").write_text(APP)
        for record in life(folder).records:
            found[record["event"]].append(record)
    return found


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_record_happens_and_is_as_in_the_catalogue(name: str, emitted: Mapping[str, list[Record]]) -> None:
    spec = CATALOGUE[name]
    assert name in emitted, f"no life emits {name}: let one of LIVES do so"
    for record in emitted[name]:
        assert spec.problems(record) == [], record
        assert list(record)[:4] == ["timestamp", "level", "logger", "event"]
        assert (record["level"], record["logger"]) == (spec.level_of(record), spec.logger)
        assert spec.by in {record["role"], "either"}
        assert record.get("code", "") == spec.code_of(record) or "code" in spec.fields
        assert {"pid", "role", "generation"} <= record.keys()


ELSEWHERE = {
    "pool.starting": {"starter_generation", "workers_counted"},  # test_inherited_sockets, test_workers
    "pool.listening": {"inherited_as"},  # test_inherited_sockets
    "pool.superseded": {"new_starter_generation"},  # test_inherited_sockets
    "pool.stop_delayed": {"reason"},  # test_inherited_sockets
    "worker.retiring": {"memory_bytes"},  # test_recycling
    "worker.exited": {"oom_kill"},  # test_stuck
    "tls.not_renewed": {"exception"},  # test_tls
}
"""The optional fields that no life has, and where there is one that has them."""


def test_every_optional_field_happens(emitted: Mapping[str, list[Record]]) -> None:
    never = {name: set(spec.optional).difference(*emitted[name]) for name, spec in CATALOGUE.items()}
    assert {name: fields for name, fields in never.items() if fields} == ELSEWHERE


def test_nothing_else_is_emitted(emitted: Mapping[str, list[Record]]) -> None:
    assert set(emitted) <= set(CATALOGUE)
