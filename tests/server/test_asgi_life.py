"""How does a worker with an event loop start, serve, hang and leave?

What both kinds of drivers have in common is tested where it is tested for WSGI, over both (see ``over_both`` in conftest).
"""

from __future__ import annotations

import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from server_process import ROOT, LiveServer, lines_of, until, wait_until_gone

from prefork.config import Config
from prefork.errors import MissingExtra

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

APP = """
import asyncio, os, signal, sys, time
import anyio

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

told = []

async def deep():
    await anyio.sleep(60)

async def answer(send, body=b"tea"):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})

async def stream(receive, send, *, listens):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    async with anyio.create_task_group() as group:
        async def drip():
            while True:
                await send({"type": "http.response.body", "body": b"tea", "more_body": True})
                await anyio.sleep(0.01)
        group.start_soon(drip)
        if listens:
            await receive()
            say("told", (await receive())["type"])
            group.cancel_scope.cancel()
    await send({"type": "http.response.body", "body": b"over"})

async def lifespan(receive, send):
    await receive()
    await anyio.sleep(0)  # imports what it needs on this loop: no request is held up by that
    say("begins", os.getpid())
    await send({"type": "lifespan.startup.complete"})
    await receive()
    say("ends", os.getpid())
    await send({"type": "lifespan.shutdown.complete"})

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return await lifespan(receive, send)
    path = scope["path"]
    if path == "/hold":
        guard = scope["extensions"]["prefork.exit_guard"]
        async with guard.hold("a job"):
            await answer(send)
            while not os.path.exists(os.path.join(os.path.dirname(__file__), "go")):
                await anyio.sleep(0.01)
            say("job done")
    elif path == "/late":
        await deep()
    elif path == "/resist":
        while True:
            try:
                await anyio.sleep(60)
            except BaseException:
                say("resists")
                time.sleep(0.001)  # trio cancels again at once
    elif path == "/more-time":
        scope["extensions"]["prefork.extend_deadline"](60)
        await anyio.sleep(0.5)
        await answer(send)
    elif path.startswith("/block"):
        time.sleep(float(path.partition("=")[2]))
        await answer(send)
    elif path == "/one-second":
        await anyio.sleep(1)
        await answer(send)
    elif path == "/stream":
        await stream(receive, send, listens=True)
    elif path == "/deaf-stream":
        await stream(receive, send, listens=False)
    elif path == "/background":
        say("background", asyncio.create_task(deep(), name="brew").get_name())
        await answer(send)
    elif path == "/told":
        while (await receive())["type"] != "http.disconnect":
            pass
        say("told")
        if scope["method"] == "GET":
            await deep()
    elif path == "/large":
        await answer(send, bytes(20_000_000))
    elif path == "/wait":
        say("waits")
        await deep()
    elif path == "/stream-until-told":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        say("streams")
        while not told:
            await send({"type": "http.response.body", "body": b"tea", "more_body": True})
        await send({"type": "http.response.body", "body": b"over"})
    elif path == "/tell":
        told.append(path)
        await answer(send)
    elif path == "/retire":
        scope["extensions"]["prefork.retire"]()
        await answer(send, b"%d" % os.getpid())
    else:
        await answer(send, b"%d" % os.getpid())
"""


@pytest.fixture
def serve(tmp_path: Path) -> Callable[..., LiveServer]:
    """Return a server of the app above, with options."""

    def serve(app: str = "sample:app", more: str = "", **options: Any) -> LiveServer:
        (tmp_path / "sample.py").write_text(APP + more)
        options = {"max_workers": 1, "max_reqs_per_child": 0, "async_backend": "uvloop", **options}
        return LiveServer.pool(app, app_dir=str(tmp_path), **options)

    return serve


def begin(server: LiveServer, path: str) -> socket.socket:
    client = socket.create_connection(server.address, timeout=20)
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    return client


# It starts and ends.


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_each_worker_has_a_lifespan_of_its_own_from_its_fork_to_its_end(
    serve: Callable[..., LiveServer], backend: str
) -> None:
    with serve(max_workers=2, async_backend=backend) as server:
        begun = server.worker_pids
        _, pid = server.get("/retire")
        server.wait_for("worker.exited", child_pid=int(pid), exit_code=0)
        server.stop()
        for worker in {*begun, *server.worker_pids}:
            assert server.wait_for_output(f"begins {worker}")
            assert server.wait_for_output(f"ends {worker}")


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_a_pool_that_is_stopped_does_not_wait_for_a_startup(serve: Callable[..., LiveServer], backend: str) -> None:
    more = """
async def starting(scope, receive, send):
    say("starts", os.getpid())
    await deep()
"""
    with serve("sample:starting", more, async_backend=backend, where={"ready": ""}) as server:
        server.wait_for_output("starts")
        assert server.stop() == 0
        (gone,) = server.all("worker.exited")
        assert (gone["exit_code"], gone["signal"], gone["expected"]) == (0, None, True)
        assert not server.all("worker.killed")


FAILS = """
from contextlib import asynccontextmanager
from starlette.applications import Starlette

@asynccontextmanager
async def lifespan(app):
    raise LookupError("no kettle")
    yield

failing = Starlette(lifespan=lifespan)
"""


def test_a_startup_that_fails_fails_the_boot_with_its_traceback(serve: Callable[..., LiveServer]) -> None:
    with serve("sample:failing", FAILS, where={"ready": ""}) as server:
        assert server.wait() == 1
        (failed,) = server.all("pool.boot_failed")
        assert "LookupError: no kettle" in failed["reason"]
        assert "[PF213]" in failed["reason"]
        assert "in lifespan" in failed["exception"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_startup_may_fail_and_go_on_listening(serve: Callable[..., LiveServer], backend: str) -> None:
    more = """
async def failing(scope, receive, send):
    while True:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no kettle"})
"""
    with serve("sample:failing", more, async_backend=backend, boot_timeout=60, where={"ready": ""}) as server:
        assert server.wait() == 1
        (failed,) = server.all("pool.boot_failed")
        assert "no kettle" in failed["reason"]
        assert not server.output


@pytest.mark.parametrize("backend", ["uvloop", "trio"])
def test_a_lifespan_that_fails_while_requests_are_served_is_recorded(
    serve: Callable[..., LiveServer], backend: str
) -> None:
    more = """
async def brewing(scope, receive, send):
    if scope["type"] != "lifespan":
        return await app(scope, receive, send)
    await receive()
    await send({"type": "lifespan.startup.complete"})
    async with anyio.create_task_group() as group:
        async def brew():
            await anyio.sleep(0.01)
            raise LookupError("no water")
        group.start_soon(brew)
        await receive()
"""
    with serve("sample:brewing", more, async_backend=backend) as server:
        told = server.wait_for("lifespan.failed", phase="serving", code="PF434")
        assert "no water" in told["exception"]
        assert server.get()[0] == 200
        assert server.stop() == 0
        assert len(server.all("lifespan.failed")) == 1


def test_a_lifespan_is_ended_although_the_server_itself_fails(serve: Callable[..., LiveServer]) -> None:
    more = """
from prefork.asgi.driver import AsgiDriver
def fail(self, fd):
    raise RuntimeError("a fault of the server")
AsgiDriver._accept = fail
"""
    with serve(more=more) as server:
        (worker,) = server.worker_pids
        with socket.create_connection(server.address, timeout=20):
            exited = server.wait_for("worker.exited", child_pid=worker)
        assert (exited["exit_code"], exited["expected"]) == (1, False)
        assert server.wait_for_output(f"ends {worker}")
        assert "a fault of the server" in server.log


def test_an_application_may_be_a_class_that_is_called_twice(serve: Callable[..., LiveServer]) -> None:
    more = """
class Old:
    def __init__(self, scope):
        self.scope = scope
    async def __call__(self, receive, send):
        await app(self.scope, receive, send)
"""
    with serve("sample:Old", more) as server:
        assert server.get()[0] == 200


@pytest.mark.parametrize("library", ["uvloop", "trio"])
def test_a_loop_that_is_not_installed_is_asked_for(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setattr("prefork.config.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=rf"'{library}', which is not installed.*pip install.*PF440"):
        Config(async_backend=library)


@pytest.mark.over_both
def test_what_is_to_be_tried_over_both_is_tried_over_both(write_app: Callable[..., Path], interface: str) -> None:
    with LiveServer.pool("sample:app", app_dir=str(write_app())) as server:
        assert server.get()[0] == 200
        assert server.wait_for("pool.starting")["app"].startswith("as_asgi:") is (interface == "asgi")


def test_paths_to_warm_up_with_are_not_for_an_event_loop(serve: Callable[..., LiveServer]) -> None:
    with serve(warm_up=["/"], where={"ready": ""}) as server:
        assert server.wait() == 1
        assert "PF414" in server.log


def test_a_wsgi_application_needs_no_event_loop(serve: Callable[..., LiveServer]) -> None:
    text = "import sys\nfrom prefork.worker import rehearse\nfrom prefork.config import Config\n"
    text += "from prefork.records import Records\nconfig = Config()\nrehearse(lambda e, s: (), (), config, Records(config), None, None, None)\n"
    text += "print(sorted({'uvloop', 'trio', 'anyio', 'prefork.asgi.driver'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# Many at once.


def test_a_thousand_requests_wait_side_by_side_in_one_worker(serve: Callable[..., LiveServer]) -> None:
    with serve() as server:
        clients = [socket.create_connection(server.address, timeout=20) for _ in range(1000)]
        began = time.monotonic()
        for client in clients:
            client.sendall(b"GET /one-second HTTP/1.1\r\nHost: a\r\n\r\n")
        for client in clients:
            assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")
        assert time.monotonic() - began < 20  # 1.2 on a quiet machine, see the benchmarks; one behind the other 1000
        for client in clients:
            client.close()


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_who_streams_to_a_client_that_takes_all_leaves_the_others_their_turn(
    serve: Callable[..., LiveServer], backend: str
) -> None:
    with serve(async_backend=backend) as server, socket.create_connection(server.address, timeout=20) as client:
        # Nothing is sent to HEAD, so its application never has to wait for a client.
        client.sendall(b"HEAD /stream-until-told HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        server.wait_for_output("streams")
        assert server.get("/tell")[0] == 200
        assert b"".join(iter(lambda: client.recv(65536), b"")).startswith(b"HTTP/1.1 200 OK")


REMEMBERS = """
import resource
from contextvars import ContextVar

USER = ContextVar("USER", default="nobody")

def allow(descriptors):
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

async def remembering(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    seen, path = USER.get(), scope["path"]
    if path == "/login":
        USER.set("alice")
        await anyio.sleep(0)
        assert USER.get() == "alice"
    elif path == "/narrow":
        USER.set("alice")
        before = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        allow(3)
        say("narrow")
        await receive()
        allow(before)
    elif path == "/block":
        time.sleep(0.5)
        await anyio.sleep(0)  # the loop sees that the time of an alarm is over, and nobody who has sent something
        say("blocks")
        time.sleep(1)
    await answer(send, seen.encode())
"""


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_what_a_request_sets_in_its_context_is_seen_by_no_other(serve: Callable[..., LiveServer], backend: str) -> None:
    """The alarm of a connection that is kept alive rings in the same turn of the loop in which others come in."""
    with (
        serve("sample:remembering", REMEMBERS, async_backend=backend, keep_alive_timeout=0.3) as server,
        ExitStack() as stack,
    ):
        user = stack.enter_context(begin(server, "/login"))
        assert user.recv(1000).endswith(b"nobody")
        blocker, *others = (
            stack.enter_context(socket.create_connection(server.address, timeout=20)) for _ in range(12)
        )
        blocker.sendall(b"GET /block HTTP/1.1\r\nHost: a\r\n\r\n")
        server.wait_for_output("blocks")
        others += (stack.enter_context(socket.create_connection(server.address, timeout=20)) for _ in range(40))
        for client in others:
            client.sendall(2 * b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        answers = [b"".join(iter(partial(client.recv, 1000), b"")) for client in others]
        assert {answer.count(b"nobody") for answer in answers} == {2}


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_what_a_request_has_set_is_not_seen_by_those_who_come_in_after_a_pause(
    serve: Callable[..., LiveServer], backend: str
) -> None:
    with (
        serve("sample:remembering", REMEMBERS, async_backend=backend, keep_alive_timeout=0.01) as server,
        socket.create_connection(server.address, timeout=20) as client,
    ):
        client.sendall(b"POST /narrow HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n")
        server.wait_for_output("narrow")
        with ThreadPoolExecutor() as pool:
            outside = pool.submit(server.get)
            server.wait_for("pool.accept_paused")
            client.sendall(b"a")
            assert client.recv(1000).endswith(b"nobody")
            assert outside.result()[1] == b"nobody"
        assert {server.get()[1] for _ in range(5)} == {b"nobody"}


# A request fails.

FAILING = """
from contextlib import asynccontextmanager

class Odd(BaseException):
    pass

async def fail_at_the_end():
    try:
        await anyio.sleep(60)
    finally:
        raise ValueError("the cleanup failed")

async def leave():
    sys.exit("enough")

async def failing(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    path = scope["path"]
    if path == "/cleanup":
        async with anyio.create_task_group() as group:
            group.start_soon(fail_at_the_end)
            group.start_soon(anyio.sleep, 60)
    elif path == "/odd":
        raise Odd("of its own kind")
    elif path == "/exit":
        async with anyio.create_task_group() as group:
            group.start_soon(leave)
    elif path == "/gone":
        raise GeneratorExit
    elif path == "/kept":
        import trio
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.sleep(1)
            except trio.Cancelled as error:
                kept = error
        raise kept
    elif path == "/stops":
        await anyio.to_thread.run_sync(int)  # its thread waits for more
        asyncio.get_running_loop().stop()
    elif path == "/forks":
        if child := os.fork():
            await answer(send, b"%d" % child)
            return
    elif path == "/unclosed":
        import trio
        trio.CancelScope().__enter__()
    await app(scope, receive, send)
"""


@pytest.mark.parametrize(
    ("backend", "path"),
    [("asyncio", "/gone"), ("uvloop", "/gone"), ("trio", "/gone"), ("trio", "/kept")],
)
def test_a_request_that_raises_what_ends_tasks_ends_none_but_its_own(
    serve: Callable[..., LiveServer], backend: str, path: str
) -> None:
    with serve("sample:failing", FAILING, async_backend=backend) as server:
        (worker,) = server.worker_pids
        other = begin(server, "/one-second")
        assert server.get(path)[0] == 500
        assert other.recv(1000).endswith(b"tea")
        other.close()
        assert server.get()[1] == b"%d" % worker
        assert server.stop() == 0
        assert len(server.all("request.failed")) == 1


@pytest.mark.parametrize("backend", ["asyncio", "uvloop"])
def test_a_worker_whose_loop_is_ended_by_the_application_is_replaced_at_once(
    serve: Callable[..., LiveServer], backend: str
) -> None:
    with serve("sample:failing", FAILING, async_backend=backend, heartbeat_timeout=0) as server:
        client = begin(server, "/stops")
        assert server.wait_for("worker.exited", expected=False)["exit_code"] == 1
        assert any("Event loop stopped before" in line for line in server.output)
        server.wait_for("worker.ready", count=2)
        assert server.get()[0] == 200
        client.close()


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_a_child_that_a_request_forks_and_that_comes_back_ends(serve: Callable[..., LiveServer], backend: str) -> None:
    with serve("sample:failing", FAILING, async_backend=backend) as server:
        wait_until_gone([int(server.get("/forks")[1])])
        assert server.get()[0] == 200


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [("/cleanup", 504, "the cleanup failed"), ("/odd", 500, "of its own kind"), ("/exit", 500, "SystemExit: enough")],
)
def test_a_request_fails_alone_in_whatever_way_it_does(
    serve: Callable[..., LiveServer], backend: str, path: str, status: int, reason: str
) -> None:
    with serve("sample:failing", FAILING, async_backend=backend, request_timeout=4) as server:
        (worker,) = server.worker_pids
        other = begin(server, "/one-second")
        assert server.get(path)[0] == status
        assert reason in server.wait_for("request.failed", path=path)["exception"]
        assert other.recv(1000).endswith(b"tea")
        other.close()
        assert server.get()[1] == b"%d" % worker
        assert server.stop() == 0
        assert len(server.all("request.failed")) == 1
        assert [gone["child_pid"] for gone in server.all("worker.exited", exit_code=0)] == [worker]


def test_a_request_that_leaves_a_scope_open_fails_alone(serve: Callable[..., LiveServer]) -> None:
    with serve("sample:failing", FAILING, async_backend="trio") as server:
        (worker,) = server.worker_pids
        assert server.get("/unclosed")[1] == b"%d" % worker
        assert "Cancel scope" in server.wait_for("request.failed", path="/unclosed")["exception"]
        assert server.get()[1] == b"%d" % worker


GROUPED = """
async def grouped(scope, receive, send):
    if scope["type"] == "lifespan":
        async with anyio.create_task_group():
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
    else:
        await answer(send)
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_lifespan_that_has_a_turn_to_go_is_let_end(serve: Callable[..., LiveServer], backend: str) -> None:
    with serve("sample:grouped", GROUPED, async_backend=backend) as server:
        assert server.get()[0] == 200
        assert server.stop() == 0
        assert not server.all("worker.tasks_cancelled")


@pytest.mark.parametrize("backend", ["asyncio", "uvloop"])
@pytest.mark.parametrize("way", ["create_task(leave())", "get_running_loop().call_soon(sys.exit, 'enough')"])
def test_who_exits_behind_an_answer_ends_nobody_and_is_told_of(
    serve: Callable[..., LiveServer], backend: str, way: str
) -> None:
    more = f"""
async def failing(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    if scope["path"] == "/exit":
        asyncio.{way}
    await app(scope, receive, send)
"""
    with serve("sample:failing", FAILING + more, async_backend=backend) as server:
        (worker,) = server.worker_pids
        assert server.get("/exit")[1] == b"%d" % worker
        assert server.get()[1] == b"%d" % worker
        assert server.stop() == 0
        assert [gone["child_pid"] for gone in server.all("worker.exited", exit_code=0)] == [worker]
        assert "SystemExit: enough" in server.log


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
@pytest.mark.parametrize("failure", ["raise Odd('no water')", "sys.exit('no water')"])
def test_a_lifespan_fails_alone_in_whatever_way_it_does(
    serve: Callable[..., LiveServer], backend: str, failure: str
) -> None:
    more = f"""
async def brew():
    await anyio.sleep(0.01)
    {failure}

async def brewing(scope, receive, send):
    if scope["type"] != "lifespan":
        return await app(scope, receive, send)
    await receive()
    await send({{"type": "lifespan.startup.complete"}})
    async with anyio.create_task_group() as group:
        group.start_soon(brew)
        await receive()
"""
    with serve("sample:brewing", FAILING + more, async_backend=backend) as server:
        (worker,) = server.worker_pids
        assert "no water" in server.wait_for("lifespan.failed", phase="serving", code="PF434")["exception"]
        assert server.get()[1] == b"%d" % worker
        assert server.stop() == 0
        assert [gone["child_pid"] for gone in server.all("worker.exited", exit_code=0)] == [worker]


# It hangs.


def test_what_holds_the_loop_up_is_named(serve: Callable[..., LiveServer]) -> None:
    with serve(blocked_threshold=0.4) as server:
        assert server.get("/block=1.8")[0] == 200
        told = server.wait_for("worker.blocked", path="/block=1.8", code="PF432")
        assert told["method"] == "GET"
        assert "time.sleep" in told["stack"]
        assert 0.4 <= told["blocked_s"] < 1.8

        def who_waits_is_not_named() -> bool:
            before = len(server.all("worker.blocked"))
            with ThreadPoolExecutor(20) as pool:
                assert {status for status, _ in pool.map(server.get, ["/one-second"] * 20)} == {200}
            return len(server.all("worker.blocked")) == before

        until(who_waits_is_not_named)  # again, for a busy machine holds a loop up too
        assert len(server.all("worker.blocked", path="/block=1.8")) == 1


def test_a_worker_whose_loop_is_held_up_for_too_long_is_replaced_and_killed(serve: Callable[..., LiveServer]) -> None:
    with serve(heartbeat_timeout=2) as server:
        (worker,) = server.worker_pids
        with begin(server, "/block=60"):
            sick = server.wait_for("worker.unresponsive", child_pid=worker)
            assert "in app" in sick["stack"]
            gone = server.wait_for("worker.exited", child_pid=worker)
            assert [lost["path"] for lost in gone["requests_lost"]] == ["/block=60"]
            assert server.get()[0] == 200


@pytest.mark.parametrize("backend", ["uvloop", "trio"])
def test_a_request_that_takes_too_long_is_answered_for_and_cancelled(
    serve: Callable[..., LiveServer], backend: str
) -> None:
    with serve(request_timeout=0.2, async_backend=backend) as server:
        (worker,) = server.worker_pids
        assert server.get("/late")[0] == 504
        told = server.wait_for("request.timeout", path="/late", status=504, code="PF502")
        assert "in deep" in told["stack"]
        assert "in app" in told["stack"]
        assert server.get("/more-time")[0] == 200
        assert server.get()[1] == b"%d" % worker
        client = begin(server, "/deaf-stream")
        assert b"".join(iter(lambda: client.recv(65536), b"")).startswith(b"HTTP/1.1 200 OK")
        client.close()
        assert server.wait_for("request.timeout", path="/deaf-stream")["status"] is None


def test_a_limit_of_time_counts_where_nothing_else_is_watched(serve: Callable[..., LiveServer]) -> None:
    with serve(request_timeout=0.2, blocked_threshold=0, heartbeat_timeout=0) as server:
        (worker,) = server.worker_pids
        for _ in range(2):
            assert server.get("/late")[0] == 504
            assert server.get()[1] == b"%d" % worker


def test_what_is_done_behind_an_answer_has_no_limit_of_time(serve: Callable[..., LiveServer], tmp_path: Path) -> None:
    with serve(request_timeout=0.2) as server:
        assert server.get("/hold")[0] == 200
        assert server.get("/late")[0] == 504  # so the time of the first one would be over too
        (tmp_path / "go").touch()
        server.wait_for_output("job done")
        assert not server.all("request.timeout", path="/hold")


@pytest.mark.parametrize("begun", [b"POST /told HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\ntea", b"GET / HTTP/1."])
def test_what_was_begun_behind_a_large_answer_and_is_never_ended_keeps_nobody(
    serve: Callable[..., LiveServer], begun: bytes
) -> None:
    """The end of what a client sends is seen while its last answer is still to be taken, before what came ahead has its turn."""
    with serve() as server, socket.create_connection(server.address, timeout=20) as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n" + begun)
        client.shutdown(socket.SHUT_WR)
        assert server.get()[0] == 200  # so the end was seen
        assert len(b"".join(iter(lambda: client.recv(1 << 20), b""))) > 20_000_000


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_client_that_left_in_two_steps_before_its_time_was_up_harms_nobody(
    serve: Callable[..., LiveServer], backend: str
) -> None:
    """Whoever has sent its last byte is not listened to any more, so its reset is noticed when it is answered."""
    with serve(request_timeout=1, async_backend=backend) as server:
        (worker,) = server.worker_pids
        client = begin(server, "/told")
        client.shutdown(socket.SHUT_WR)
        server.wait_for_output("told")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        server.wait_for("request.timeout", path="/told")
        assert server.get()[1] == b"%d" % worker
        server.stop()
        (gone,) = server.all("worker.exited")
        assert (gone["child_pid"], gone["exit_code"]) == (worker, 0)


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
@pytest.mark.parametrize("path", ["/late-wait", "/late-answer"])
def test_a_request_that_held_the_loop_up_is_told_of_once_and_cancelled_when_that_turns_again(
    serve: Callable[..., LiveServer], tmp_path: Path, backend: str, path: str
) -> None:
    more = """
async def held_up(scope, receive, send):
    if scope.get("path", "").startswith("/late"):
        time.sleep(3)
    if scope.get("path") == "/late-wait":
        try:
            await anyio.sleep(60)
        finally:
            say("cancelled")
    await app(scope, receive, send)
"""
    log = tmp_path / "access.log"
    options: dict[str, Any] = {"request_timeout": 0.2, "async_backend": backend, "access_log": str(log)}
    with serve("sample:held_up", more, **options) as server, begin(server, path) as client:
        (worker,) = server.worker_pids
        assert b"".join(iter(lambda: client.recv(65536), b"")).startswith(b"HTTP/1.1 504 ")
        gone = server.wait_for("worker.exited", child_pid=worker)  # its client is there yet
        assert (gone["reason"], gone["exit_code"], "stuck" in gone) == ("request_timeout", 0, False)
        if path == "/late-wait":
            server.wait_for_output("cancelled")
        assert len(server.all("request.timeout", path=path, status=504)) == 1
        assert not server.all("request.failed")
        (line,) = map(json.loads, lines_of(log))
        assert (line["path"], line["status"], line["outcome"]) == (path, 504, "timeout")


@pytest.mark.parametrize("path", ["/resist", "/block=4"])
def test_a_request_that_cannot_be_cancelled_costs_the_worker(serve: Callable[..., LiveServer], path: str) -> None:
    with serve(request_timeout=0.2) as server:
        (worker,) = server.worker_pids
        began = time.monotonic()
        assert server.get(path)[0] == 504
        assert time.monotonic() - began < 4
        server.wait_for("request.timeout", path=path, status=504)
        gone = server.wait_for("worker.exited", child_pid=worker)
        assert (gone["reason"], gone["exit_code"]) == ("request_timeout", 0)
        assert server.get()[0] == 200


@pytest.mark.parametrize(
    ("backend", "wait"),
    [
        ("asyncio", "deaf()"),
        ("trio", "anyio.to_thread.run_sync(time.sleep, 60)"),
        ("trio", "shielded()"),
        ("trio", "deaf()"),
    ],
)
def test_a_request_that_cannot_be_cancelled_does_not_keep_its_worker(
    serve: Callable[..., LiveServer], backend: str, wait: str
) -> None:
    more = f"""
async def shielded():
    with anyio.CancelScope(shield=True):
        await deep()

async def deaf():
    while True:
        try:
            await anyio.sleep(60)
        except BaseException:
            pass

async def stubborn(scope, receive, send):
    if scope.get("path") == "/stubborn":
        await {wait}
    await app(scope, receive, send)
"""
    with serve("sample:stubborn", more, request_timeout=0.2, async_backend=backend) as server:
        (worker,) = server.worker_pids
        assert server.get("/stubborn")[0] == 504
        gone = server.wait_for("worker.exited", child_pid=worker)
        assert (gone["reason"], gone["exit_code"], gone["stuck"]) == ("request_timeout", 0, 1)
        assert server.wait_for_output(f"ends {worker}")
        assert server.get()[0] == 200


@pytest.mark.parametrize("backend", ["asyncio", "uvloop"])
def test_a_thread_of_a_request_whose_time_was_over_does_not_keep_its_worker(
    serve: Callable[..., LiveServer], backend: str
) -> None:
    more = """
async def blocking(scope, receive, send):
    if scope.get("path") == "/thread":
        await anyio.to_thread.run_sync(time.sleep, 60)
    if scope.get("path") == "/executor":
        await asyncio.to_thread(time.sleep, 60)
    if scope.get("path") == "/late":
        time.sleep(1)
        await asyncio.to_thread(time.sleep, 60)
    await app(scope, receive, send)
"""
    with serve("sample:blocking", more, request_timeout=0.2, graceful_timeout=5, async_backend=backend) as server:
        (worker,) = server.worker_pids
        assert server.get("/thread")[0] == 504
        assert server.get("/executor")[0] == 504
        assert server.get()[1] == b"%d" % worker
        server.process.send_signal(signal.SIGUSR2)
        server.wait_for("worker.retiring", child_pid=worker)
        server.wait_for("worker.ready", count=2)
        assert server.get("/thread")[0] == 504
        assert server.get("/late")[0] == 504
        assert server.stop() == 0
        assert {(record["signal"], record["exit_code"]) for record in server.all("worker.exited")} == {(None, 0)}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_thread_that_no_request_waits_for_comes_to_its_end_although_another_request_was_given_up(
    serve: Callable[..., LiveServer], tmp_path: Path, backend: str
) -> None:
    more = """
import atexit, threading

def job():
    while not os.path.exists(__file__ + ".go"):
        time.sleep(0.01)
    say("job done")

async def working(scope, receive, send):
    if scope.get("path") == "/job":
        atexit.register(say, "job over")
        threading.Thread(target=job).start()
    await app(scope, receive, send)
"""
    with serve("sample:working", more, request_timeout=0.2, async_backend=backend) as server:
        (worker,) = server.worker_pids
        assert server.get("/job")[0] == 200
        assert server.get("/late")[0] == 504
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_output(f"ends {worker}")
        threading.Event().wait(0.8)  # longer than who was given up has
        assert not server.all("worker.exited")
        (tmp_path / "sample.py.go").touch()
        assert server.wait() == 0
        assert any(line == "job done" for line in server.output)
        assert any(line == "job over" for line in server.output)


# It leaves.


@pytest.mark.parametrize("backend", ["uvloop", "trio"])
@pytest.mark.parametrize(("path", "rest"), [("/stream", "over"), ("/deaf-stream", "tea")])
def test_a_stream_without_an_end_is_told_that_the_pool_stops_and_then_cancelled(
    serve: Callable[..., LiveServer], backend: str, path: str, rest: str
) -> None:
    with serve(stream_grace=0.3, async_backend=backend) as server:
        client = begin(server, path)
        assert client.recv(1)
        server.process.terminate()
        body = b"".join(iter(lambda: client.recv(65536), b""))
        assert rest in body.decode()
        client.close()
        assert server.wait() == 0
        assert server.all("worker.exited")[0]["exit_code"] == 0
        named = [record["path"] for record in server.all("request.cancelled", code="PF510")]
        assert named == ([] if path == "/stream" else [path])
        assert any(line.startswith("ends") for line in server.output)


def test_a_stream_goes_on_through_a_worker_that_retires(serve: Callable[..., LiveServer]) -> None:
    with serve(stream_grace=0.1, graceful_timeout=0.2) as server:
        (worker,) = server.worker_pids
        client = begin(server, "/stream")
        assert client.recv(1)
        server.send(signal.SIGUSR2)
        server.wait_for("worker.ready", count=2)
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            assert client.recv(65536)
        assert not server.all("worker.exited")
        client.close()
        server.wait_for("worker.exited", child_pid=worker, exit_code=0)


CANCELS_EARLY = """
import prefork.asgi.driver
prefork.asgi.driver.LAST_S, prefork.asgi.driver.RESIST_S = 4, 0.2
"""
"""Code of an application whose worker has, on a busy machine too, time to end between its cancellation and its kill."""


def test_a_request_that_outlasts_the_stop_is_named_and_the_lifespan_ends(serve: Callable[..., LiveServer]) -> None:
    with serve(more=CANCELS_EARLY, graceful_timeout=6) as server:
        client = begin(server, "/wait")
        server.wait_for_output("waits")
        assert server.stop() == 0
        assert "in deep" in server.wait_for("request.cancelled", path="/wait", code="PF510")["stack"]
        assert server.all("worker.exited", exit_code=0)
        assert any(line.startswith("ends") for line in server.output)
        client.close()


@pytest.mark.parametrize("backend", ["uvloop", "trio"])
def test_a_lifespan_ends_although_a_request_cannot_be_cancelled(serve: Callable[..., LiveServer], backend: str) -> None:
    with serve(more=CANCELS_EARLY, graceful_timeout=4, async_backend=backend) as server:
        client = begin(server, "/resist")
        assert server.get()[0] == 200
        server.stop()
        assert server.wait_for("request.cancelled", path="/resist")
        assert any(line.startswith("ends") for line in server.output)
        client.close()


def test_a_job_under_the_exit_guard_is_finished_behind_its_answer(
    serve: Callable[..., LiveServer], tmp_path: Path
) -> None:
    with serve() as server:
        assert server.get("/hold")[0] == 200
        server.process.terminate()
        server.wait_for("pool.stopping")
        (tmp_path / "go").touch()
        assert server.wait() == 0
        assert server.wait_for_output("job done")


def test_a_task_that_nobody_waits_for_is_cancelled_by_name(serve: Callable[..., LiveServer]) -> None:
    with serve() as server:
        assert server.get("/background")[0] == 200
        assert server.stop() == 0
        assert server.wait_for("worker.tasks_cancelled")["tasks"] == ["brew: deep"]


def test_a_worker_whose_whole_pool_was_killed_ends(serve: Callable[..., LiveServer]) -> None:
    with serve(graceful_timeout=0.5) as server:
        (worker,) = server.worker_pids
        client = begin(server, "/block=60")
        server.send(signal.SIGKILL, to=server.pid)
        server.process.wait()
        deadline = time.monotonic() + 10
        while worker in server.group():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        client.close()


SLOW_TO_LEAVE = """
async def lingering(scope, receive, send):
    if scope["type"] != "lifespan":
        return await app(scope, receive, send)
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    say("goes", os.getpid())
    while not os.path.exists(os.path.join(os.path.dirname(__file__), "go")):
        await anyio.sleep(0.01)
    await send({"type": "lifespan.shutdown.complete"})
    say("gone")
"""


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_a_lifespan_takes_its_time_to_end_when_its_worker_is_replaced(
    serve: Callable[..., LiveServer], tmp_path: Path, backend: str
) -> None:
    with serve("sample:lingering", SLOW_TO_LEAVE, async_backend=backend, heartbeat_timeout=1.5) as server:
        (worker,) = server.worker_pids
        server.send(signal.SIGUSR2)
        server.wait_for_output(f"goes {worker}")
        threading.Event().wait(4)  # far longer than a worker that serves may be silent
        (tmp_path / "go").touch()
        assert server.wait_for("worker.exited", child_pid=worker)["exit_code"] == 0
        assert server.wait_for_output("gone")
        assert not server.all("worker.unresponsive", child_pid=worker)


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_a_lifespan_that_does_not_end_does_not_outlive_the_pool(serve: Callable[..., LiveServer], backend: str) -> None:
    with serve("sample:lingering", SLOW_TO_LEAVE, async_backend=backend, graceful_timeout=0.5) as server:
        (worker,) = server.worker_pids
        server.send(signal.SIGUSR2)
        server.wait_for_output(f"goes {worker}")
        for process in dict.fromkeys([server.pid, server.parent_pid]):
            server.send(signal.SIGKILL, to=process)
        server.process.wait()
        wait_until_gone([worker])
