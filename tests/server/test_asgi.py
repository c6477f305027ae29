"""What does an ASGI application see and answer, on each event loop? ASGI 3, HTTP 2.5."""

from __future__ import annotations

import json
import os
import re
import select
import socket
import struct
import threading
import time
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from server_process import LiveServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

APP = """
import gc, json, os, sys, time
import anyio, sniffio

FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "file")

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def futures():
    gc.collect()
    return sum(type(kept).__name__ == "Future" for kept in gc.get_objects())

async def start(send, *headers, status=200, **more):
    await send({"type": "http.response.start", "status": status, "headers": headers, **more})

async def body(send, data=b"", more_body=False):
    await send({"type": "http.response.body", "body": data, "more_body": more_body})

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        scope["state"]["tea"] = "green"
        scope["state"]["loop"] = sniffio.current_async_library()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    match scope["path"].removeprefix(scope["root_path"]):
        case "/scope":
            shown = {name: value for name, value in scope.items() if name != "extensions"}
            data = json.dumps(shown | {"extensions": sorted(scope["extensions"])}, default=bytes.decode).encode()
            scope["state"]["tea"] = "spilt"
            scope["extensions"].clear()
            scope["headers"].clear()
            await start(send, (b"content-type", b"application/json"))
            await body(send, data)
        case "/echo":
            await start(send)
            more = True
            while more:
                message = await receive()
                more = message.get("more_body", False)
                await body(send, message["body"], more)
            say("then", (await receive())["type"])
        case "/slow-reader":
            await anyio.sleep(0.3)
            size = 0
            while True:
                message = await receive()
                assert len(message["body"]) < 200_000, "more than is to be kept"
                size += len(message["body"])
                if not message["more_body"]:
                    break
            await start(send)
            await body(send, b"%d" % size)
        case "/both-ways":
            await start(send)
            await anyio.sleep(0.2)  # as much of the body comes as is kept
            async with anyio.create_task_group() as group:
                group.start_soon(body, send, b"x" * 12_000_000, True)
                await anyio.sleep(0.2)
                more = True
                while more:
                    message = await receive()
                    say("takes in", len(message["body"]))
                    more = message["more_body"]
            await body(send)
        case "/reads-at-last":
            while not os.path.exists(FILE + ".go"):
                await anyio.sleep(0.01)
            size, more = 0, True
            while more:
                message = await receive()
                size, more = size + len(message["body"]), message["more_body"]
            await start(send)
            await body(send, b"%d" % size)
        case "/early":
            await start(send, (b"content-length", b"5"))
            await body(send, b"early")
        case "/wait":
            say("waits")
            say("heard", (await receive())["type"], (await receive())["type"])
            try:
                await start(send)
                await body(send, b"late")
            except OSError as error:
                say("raised", type(error).__name__)
                raise
        case "/patient":
            while (await receive())["type"] != "http.disconnect":
                pass
            await start(send)
            await body(send, b"x" * 8_000_000)
        case "/flood":
            await start(send)
            sent = 0
            try:
                while True:
                    await body(send, b"x" * 65536, True)
                    sent += 65536
                    if sent == 65536 * 200:
                        say("too much")
            except OSError:
                say("sent", sent)
                raise
        case "/file":
            await start(send, (b"content-length", str(os.stat(FILE).st_size).encode()))
            await send({"type": "http.response.pathsend", "path": FILE})
        case "/no-file":
            await start(send)
            await send({"type": "http.response.pathsend", "path": FILE + ".none"})
        case "/trailers":
            await start(send, (b"trailer", b"x-sum"), trailers=True)
            await body(send, b"one")
            await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"1")], "more_trailers": True})
            await send({"type": "http.response.trailers", "headers": [(b"x-more", b"2")]})
        case "/hint":
            await send({"type": "http.response.early_hint", "links": [b"</style.css>; rel=preload"]})
            await start(send)
            await body(send, b"page")
        case "/lists":
            await start(send, [b"x-a", b"1"], [b"x-a", b"2"], status=299)
            await body(send, b"listed")
        case "/generated-lists":
            pairs = ([name, b"1"] for name in (b"x-a", b"x-b"))
            await send({"type": "http.response.start", "status": 200, "headers": pairs})
            await body(send, b"listed")
        case "/buffers":
            await start(send, (b"content-length", b"6"))
            await body(send, bytearray(b"ab"), True)
            await body(send, memoryview(b"cd"), True)
            await body(send, memoryview(b"e-f-")[::2])
        case "/buffers-in-chunks":
            await start(send)
            await body(send, memoryview(b"ab"), True)
            await body(send, bytearray(b"cd"))
        case "/one-buffer":
            await start(send, (b"content-length", b"15000000"))
            buffer = bytearray(15000)
            for number in range(1000):
                buffer[:] = bytes([number % 256]) * 15000
                await body(send, memoryview(buffer), True)
            await body(send)
        case "/number":
            await start(send)
            await body(send, 5)
        case "/long-piece":
            await start(send, (b"content-length", b"1"))
            await body(send, b"12", True)
            await body(send)
        case "/long-end":
            await start(send, (b"content-length", b"1"), trailers=True)
            await body(send, b"12")
        case "/short-file":
            await start(send, (b"content-length", b"5000000"))
            await send({"type": "http.response.pathsend", "path": FILE})
        case "/folder":
            await start(send)
            await send({"type": "http.response.pathsend", "path": os.path.dirname(FILE)})
        case "/pipe":
            await start(send)
            await send({"type": "http.response.pathsend", "path": FILE + ".pipe"})
        case "/twice":
            await start(send)
            await body(send, b"once")
            try:
                await body(send, b"more")
            except RuntimeError as error:
                say(error)
        case "/text":
            await start(send, ("x-a", "1"))
            await body(send, b"text")
        case "/caught":
            try:
                await start(send, (b"content-length", b"1"))
                await body(send, b"12")
            except Exception:
                pass
        case "/unknown":
            await send({"type": "http.response.tea"})
        case "/exit":
            sys.exit(3)
        case "/impatient":
            await receive()
            before = futures()
            for _ in range(100):
                with anyio.move_on_after(0):
                    await receive()
            kept = futures() - before
            await start(send)
            await body(send, b"few" if kept < 10 else b"%d" % kept)
        case "/blocks-then-reads":
            say("blocks")
            time.sleep(0.5)
            say("was told", (await receive())["type"])
        case "/then-its-own-connection-fails":
            await start(send)
            await body(send, b"done")
            try:
                raise ConnectionRefusedError("the mail server")
            except OSError:
                raise LookupError("no mail was sent")
        case "/leaves-then-fails":
            await receive()
            say("hears", (await receive())["type"])
            await start(send)
            await body(send, b"done")
            raise LookupError("behind the answer")
        case "/flood-then-own-words":
            await start(send)
            try:
                while True:
                    await body(send, b"x" * 65536, True)
            except OSError:
                say("flooded")
                raise LookupError("the client left")
        case "/early-then-fails":
            await start(send)
            await body(send, b"early")
            raise LookupError("behind the answer")
        case "/background":
            await start(send)
            await body(send, b"done")
            say("behind", (await receive())["type"])
            await anyio.sleep(0.05)
            raise LookupError("behind the answer")
"""


@pytest.fixture(scope="module", params=["asyncio", "uvloop", "trio"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "sample.py").write_text(APP)
    (folder / "file").write_bytes(b"0123456789" * 300_000)
    os.mkfifo(folder / "file.pipe")
    options = {"app_dir": str(folder), "max_workers": 1, "max_reqs_per_child": 0, "async_backend": request.param}
    with LiveServer.pool("sample:app", **options) as live:
        yield live


def talk(server: LiveServer, *pieces: bytes, half_close: bool = False) -> bytes:
    """Send, and read until the server closes."""
    with socket.create_connection(server.address, timeout=20) as client:
        for piece in pieces:
            client.sendall(piece)
        if half_close:
            client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


def ask(path: str, *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    """Return a request that is answered with a close."""
    lines = (f"{method} {path} HTTP/{version}", "Host: a", "Connection: close", *fields, "", "")
    return "\r\n".join(lines).encode()


def answer_to(server: LiveServer, path: str, *fields: str, **more: str) -> tuple[bytes, bytes]:
    head, _, body = talk(server, ask(path, *fields, **more)).partition(b"\r\n\r\n")
    return head, body


# What it sees.


def test_client_that_has_closed_its_half_gets_its_answer_however_slowly_it_reads(server: LiveServer) -> None:
    with socket.create_connection(server.address, timeout=20) as client:
        client.sendall(ask("/patient"))
        client.shutdown(socket.SHUT_WR)
        answer = client.recv(100)
        time.sleep(0.1)  # the server has more to send than the kernel takes
        answer += b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.count(b"x") >= 8_000_000


def test_the_scope_says_what_the_request_says(server: LiveServer) -> None:
    for _ in range(2):  # what one application changes is not seen by the next
        connection = HTTPConnection(*server.address, timeout=20)
        connection.request("GET", "/scop%65?a=%20b", headers={"X-Mixed": "1"})
        scope: dict[str, Any] = json.loads(connection.getresponse().read())
        here = connection.sock.getsockname()
        connection.close()
        assert scope.pop("state").pop("loop") == ("trio" if "trio" in str(server.command) else "asyncio")
        assert dict(scope.pop("headers"))["x-mixed"] == "1"
        assert scope.pop("extensions")[:3] == [
            "http.response.early_hint", "http.response.pathsend", "http.response.trailers",
        ]  # fmt: skip
        assert scope == {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.5"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/scope",
            "raw_path": "/scop%65",
            "query_string": "a=%20b",
            "root_path": "",
            "server": list(server.address),
            "client": list(here),
        }


def test_a_unix_socket_is_the_server_and_its_client_has_no_name(tmp_path: Path) -> None:
    (tmp_path / "sample.py").write_text(APP)
    path = str(tmp_path / "s")
    with LiveServer.pool("sample:app", app_dir=str(tmp_path), max_workers=1, bind=f"unix:{path}") as server:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            client.sendall(ask("/scope"))
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        scope = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert (scope["server"], scope["client"], scope["state"]["tea"]) == ([path, None], None, "green")
        assert server.wait_for("pool.ready")


# Bodies, both ways.


def test_a_body_is_streamed_in_and_out(server: LiveServer) -> None:
    with socket.create_connection(server.address, timeout=20) as client:
        client.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\none")
        answer = client.recv(1000)
        while b"one" not in answer:
            answer += client.recv(1000)
        client.sendall(b"two")
        while b"two" not in answer:
            answer += client.recv(1000)
        client.sendall(b"six")
        answer += b"".join(iter(lambda: client.recv(1000), b""))
    assert answer.endswith(b"3\r\none\r\n3\r\ntwo\r\n3\r\nsix\r\n0\r\n\r\n")
    server.wait_for_output("then http.disconnect")


def test_a_body_waits_in_the_kernel_for_who_reads_slowly(server: LiveServer) -> None:
    for framing in ({}, {"Transfer-Encoding": "chunked"}):
        connection = HTTPConnection(*server.address, timeout=20)
        body: Any = iter([b"x" * 100_000] * 50) if framing else b"x" * 5_000_000
        connection.request("POST", "/slow-reader", body=body, headers=framing, encode_chunked=bool(framing))
        assert connection.getresponse().read() == b"5000000"
        connection.close()


@pytest.mark.parametrize("expects", [(), ("Expect: 100-continue",)])
def test_a_body_is_taken_in_beside_an_answer_that_waits_for_its_client(
    server: LiveServer, expects: tuple[str, ...]
) -> None:
    with socket.create_connection(server.address, timeout=20) as client:
        client.sendall(ask("/both-ways", "Content-Length: 200000", *expects, method="POST") + b"x" * 200_000)
        server.wait_for_output("takes in")
        answer = client.makefile("rb").read()
    assert len(answer) > 12_000_000
    assert not server.all("worker.exited")


def impatient(folder: Path) -> LiveServer:
    """Return a server that waits for no client for longer than a second and a half."""
    (folder / "sample.py").write_text(APP)
    return LiveServer.pool("sample:app", app_dir=str(folder), max_workers=1, head_timeout=1.5, body_timeout=1.5)


def test_a_client_is_not_to_blame_for_an_application_that_reads_late(tmp_path: Path) -> None:
    with impatient(tmp_path) as server, socket.create_connection(server.address, timeout=20) as client:
        sent = 70_000
        client.sendall(ask("/reads-at-last", "Content-Length: 50000000", method="POST") + bytes(sent))
        client.setblocking(False)
        while taken := send_while_it_is_taken(client):  # again, for a busy machine takes its time
            sent += taken
            assert sent < 25_000_000, "the kernel takes 10 MB, and the server no more"
        threading.Event().wait(2.2)  # longer than a client may be silent
        assert send_while_it_is_taken(client) == 0, "what the application does not read has to wait in the kernel"
        (tmp_path / "file.go").touch()
        client.settimeout(20)
        client.sendall(bytes(50_000_000 - sent))
        assert client.makefile("rb").read().endswith(b"50000000")


def test_a_client_that_waits_to_be_told_to_go_on_has_its_time_from_then_on(tmp_path: Path) -> None:
    """It may hold its body back until 100 Continue comes (RFC 9110 section 10.1.1)."""
    with impatient(tmp_path) as server, socket.create_connection(server.address, timeout=20) as client:
        client.sendall(ask("/reads-at-last", "Expect: 100-continue", "Content-Length: 3", method="POST"))
        threading.Event().wait(2.2)  # longer than a client may be silent
        (tmp_path / "file.go").touch()
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"tea")
        assert client.makefile("rb").read().endswith(b"\r\n\r\n3")
        with socket.create_connection(server.address, timeout=20) as silent:
            silent.sendall(ask("/reads-at-last", "Expect: 100-continue", "Content-Length: 3", method="POST"))
            answers = silent.makefile("rb").read()
        assert answers.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 408 ")


def send_while_it_is_taken(client: socket.socket) -> int:
    """Send until nothing was taken for a moment; return how much was."""
    sent, writable = 0, select.poll()
    writable.register(client, select.POLLOUT)
    while writable.poll(200):
        sent += client.send(bytes(65536))
    return sent


def test_send_waits_for_the_client_and_raises_when_it_is_gone(server: LiveServer) -> None:
    with socket.create_connection(server.address, timeout=20) as client:
        client.sendall(b"GET /flood HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.recv(1000)
        assert server.get("/early")[1] == b"early"
    line = server.wait_for_output("sent ")
    assert int(line.split()[1]) < 65536 * 200
    assert not server.all("request.failed", path="/flood")


def test_an_answer_may_come_before_the_body_and_ends_the_connection(server: LiveServer) -> None:
    head = b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
    answer = talk(server, head, b"x" * 1_000_000)
    assert b"Connection: close" in answer
    assert answer.endswith(b"\r\n\r\nearly")


def test_who_holds_its_body_back_is_told_to_go_on_when_it_is_read(server: LiveServer) -> None:
    with socket.create_connection(server.address, timeout=20) as client:
        client.sendall(ask("/echo", "Expect: 100-continue", "Content-Length: 3", method="POST"))
        answer = b""
        while b"100 Continue" not in answer:
            answer += client.recv(1000)
        client.sendall(b"tea")
        answer += b"".join(iter(lambda: client.recv(1000), b""))
    assert answer.endswith(b"\r\n\r\ntea")
    answer = talk(server, ask("/early", "Expect: 100-continue", "Content-Length: 3", method="POST"))
    assert answer.startswith(b"HTTP/1.1 200 OK")


# Who leaves.


def test_an_application_that_waits_hears_at_once_of_a_client_that_leaves(server: LiveServer) -> None:
    before = sum("heard" in line for line in server.output)
    with socket.create_connection(server.address, timeout=20) as client:
        client.sendall(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        server.wait_for_output("waits")
    server.wait_for_output("heard http.request http.disconnect", count=before + 1)
    assert not server.all("request.failed", path="/wait")


def test_who_leaves_before_its_body_is_whole_is_nobodys_failure(server: LiveServer) -> None:
    before = sum("then" in line for line in server.output)
    for path in ("/echo", "/slow-reader"):
        with socket.create_connection(server.address, timeout=20) as client:
            client.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\none".encode())
    assert server.get("/early")[1] == b"early"
    assert sum("then" in line for line in server.output) == before
    assert not server.all("request.failed", path="/echo")
    assert not server.all("request.failed", path="/slow-reader")


def test_who_leaves_before_it_was_told_to_go_on_has_left(server: LiveServer) -> None:
    with socket.create_connection(server.address, timeout=20) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(ask("/blocks-then-reads", "Content-Length: 5", "Expect: 100-continue", method="POST"))
        server.wait_for_output("blocks")
    server.wait_for_output("was told http.disconnect")
    assert not server.all("request.failed", path="/blocks-then-reads")


def test_to_ask_again_and_again_whether_the_client_is_there_leaves_nothing_behind(server: LiveServer) -> None:
    assert answer_to(server, "/impatient")[1] == b"few"


def test_failure_behind_an_answer_is_recorded_whatever_the_client_still_sends(server: LiveServer) -> None:
    head, body = answer_to(server, "/early-then-fails", "Content-Length: 5", method="POST")
    assert (head[:15], body) == (b"HTTP/1.1 200 OK", b"early")
    assert "LookupError" in server.wait_for("request.failed", path="/early-then-fails")["exception"]


def test_failure_behind_an_answer_is_recorded_whatever_else_could_not_be_reached(server: LiveServer) -> None:
    assert answer_to(server, "/then-its-own-connection-fails")[1] == b"done"
    told = server.wait_for("request.failed", path="/then-its-own-connection-fails")
    assert "no mail was sent" in told["exception"]


def test_failure_behind_an_answer_is_recorded_although_the_body_was_never_whole(server: LiveServer) -> None:
    began = ask("/leaves-then-fails", "Content-Length: 5", method="POST") + b"tea"
    assert talk(server, began, half_close=True).endswith(b"\r\n\r\ndone")
    assert "LookupError" in server.wait_for("request.failed", path="/leaves-then-fails")["exception"]


def test_who_fails_because_its_client_has_left_is_no_failure_in_whatever_words(server: LiveServer) -> None:
    with socket.create_connection(server.address, timeout=20) as client:
        client.sendall(b"GET /flood-then-own-words HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.recv(1000)
    server.wait_for_output("flooded")
    assert server.get("/early")[1] == b"early"
    assert not server.all("request.failed", path="/flood-then-own-words")


def test_who_only_stops_sending_still_reads_its_answer(server: LiveServer) -> None:
    assert talk(server, b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n", half_close=True).endswith(b"\r\n\r\nlate")


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_body_is_whole_although_its_client_has_closed_its_half_before_it_was_read(
    server: LiveServer, framing: str
) -> None:
    """What a client sent before its FIN is to be read (RFC 9112 section 9.6), however late the application asks for it."""
    if framing == "length":
        body = ask("/slow-reader", "Content-Length: 170000", method="POST") + b"x" * 170_000
    else:
        piece = b"84d0\r\n" + b"x" * 34_000 + b"\r\n"
        body = ask("/slow-reader", "Transfer-Encoding: chunked", method="POST") + piece * 5 + b"0\r\n\r\n"
    assert talk(server, body, half_close=True).endswith(b"\r\n\r\n170000")


def test_many_requests_that_are_sent_ahead_are_answered_to_who_sends_nothing_more(server: LiveServer) -> None:
    """More than is taken from the kernel at a time."""
    ahead = ask("/slow-reader").replace(b"Connection: close\r\n", b"")
    ahead += b"GET /early HTTP/1.1\r\nHost: a\r\n\r\n" * 4000
    assert talk(server, ahead, half_close=True).count(b"HTTP/1.1 200 OK") == 4001


def test_each_request_that_was_sent_ahead_hears_of_a_client_that_sends_nothing_more(server: LiveServer) -> None:
    ahead = b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n" * 3
    assert talk(server, ahead, half_close=True).count(b"\r\n\r\nlate") == 3


def test_who_leaves_in_the_middle_of_a_body_that_was_not_read_has_left(server: LiveServer) -> None:
    began = ask("/slow-reader", "Content-Length: 900000", method="POST") + b"x" * 170_000
    assert talk(server, began, half_close=True) == b""
    assert server.get("/early")[1] == b"early"
    assert not server.all("request.failed", path="/slow-reader")


# Answers.


def test_a_file_is_sent_by_its_path(server: LiveServer) -> None:
    head, body = answer_to(server, "/file")
    assert (head[:15], body) == (b"HTTP/1.1 200 OK", b"0123456789" * 300_000)
    assert answer_to(server, "/file", method="HEAD")[1] == b""
    assert answer_to(server, "/no-file")[0].startswith(b"HTTP/1.1 500 ")


@pytest.mark.parametrize(("path", "end"), [("/file", b"0123456789"), ("/early", b"early")])
def test_an_answer_before_the_body_is_here_ends_the_connection_and_the_body_is_no_request(
    path: str, end: bytes, server: LiveServer
) -> None:
    inner = b"GET /early HTTP/1.1\r\nHost: evil\r\n\r\n"
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(inner) + 1)
    answers = talk(server, head, inner)
    assert answers.count(b"HTTP/1.1 ") == 1
    assert b"\r\nConnection: close\r\n" in answers
    assert answers.endswith(end)


def test_trailers_go_to_who_takes_them(server: LiveServer) -> None:
    assert answer_to(server, "/trailers", "TE: trailers")[1] == b"3\r\none\r\n0\r\nx-sum: 1\r\nx-more: 2\r\n\r\n"
    assert answer_to(server, "/trailers")[1] == b"3\r\none\r\n0\r\n\r\n"


def test_early_hints_go_before_the_answer(server: LiveServer) -> None:
    head, rest = answer_to(server, "/hint")
    assert head == b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload"
    assert rest.endswith(b"\r\n\r\npage")
    assert answer_to(server, "/hint", version="1.0")[0].startswith(b"HTTP/1.1 200 OK")


def test_pairs_may_be_lists_and_any_status_has_its_line(server: LiveServer) -> None:
    head, body = answer_to(server, "/lists")
    assert head.startswith(b"HTTP/1.1 299 \r\nx-a: 1\r\nx-a: 2\r\n")
    assert body == b"listed"


def test_pairs_may_be_made_one_by_one(server: LiveServer) -> None:
    for _ in range(2):
        assert b"\r\nx-a: 1\r\nx-b: 1\r\n" in answer_to(server, "/generated-lists")[0]


def test_a_body_may_be_any_buffer_of_bytes(server: LiveServer) -> None:
    assert answer_to(server, "/buffers")[1] == b"abcdef"
    assert answer_to(server, "/buffers-in-chunks")[1] == b"2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n"


def test_a_buffer_goes_out_as_it_was_when_it_was_sent(server: LiveServer) -> None:
    with socket.create_connection(server.address, timeout=20) as client:
        client.sendall(ask("/one-buffer"))
        assert client.recv(1)
        time.sleep(0.1)  # the server has more to send than the kernel takes
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    body = answer.partition(b"\r\n\r\n")[2]
    assert body == b"".join(bytes([number % 256]) * 15_000 for number in range(1000))


UNFIT = ["/long-piece", "/long-end", "/short-file", "/folder", "/pipe"]


@pytest.mark.parametrize("path", ["/text", "/caught", "/unknown", "/exit", "/nowhere", "/number", *UNFIT])
def test_what_is_no_answer_is_500_and_recorded_and_the_worker_lives_on(server: LiveServer, path: str) -> None:
    head, body = answer_to(server, path)
    assert head.startswith(b"HTTP/1.1 500 ")
    assert body == b"Internal Server Error\n"
    assert server.wait_for("request.failed", path=path)["exception"]
    assert len(server.worker_pids) == 1


def test_to_send_behind_the_end_is_refused(server: LiveServer) -> None:
    assert answer_to(server, "/twice")[1] == b"once"
    server.wait_for_output("sent 'http.response.body' where nothing more is due")


def test_the_next_request_does_not_wait_for_what_an_application_does_behind_its_answer(server: LiveServer) -> None:
    connection = HTTPConnection(*server.address, timeout=20)
    for _ in range(2):
        connection.request("GET", "/background")
        assert connection.getresponse().read() == b"done"
    connection.close()
    server.wait_for_output("behind http.disconnect", count=2)
    server.wait_for("request.failed", path="/background", count=2)


@pytest.mark.parametrize("last", [b"", b"GET /scope HT"], ids=["whole", "half"])
def test_requests_that_are_sent_ahead_are_answered_to_who_sends_nothing_more(server: LiveServer, last: bytes) -> None:
    ahead = b"GET /slow-reader HTTP/1.1\r\nHost: a\r\n\r\n" * 3
    assert talk(server, ahead + last, half_close=True).count(b"HTTP/1.1 200 OK") == 3


def test_requests_that_are_sent_ahead_are_answered_in_their_order(server: LiveServer) -> None:
    ahead = [f"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n{n}".encode() for n in range(5)]
    answer = talk(server, b"".join(ahead) + ask("/early"))
    assert re.findall(rb"\r\n\r\n(\d)HTTP", answer) == [b"0", b"1", b"2", b"3", b"4"]
    assert answer.endswith(b"early")


# What other parts of the server say to an application, over ASGI too.


def serve(folder: Path, **options: Any) -> LiveServer:
    (folder / "sample.py").write_text(APP)
    (folder / "file").write_bytes(b"0123456789" * 300_000)
    return LiveServer.pool("sample:app", app_dir=str(folder), max_workers=1, **options)


def test_tls_is_spoken_and_told_of(tmp_path: Path) -> None:
    with serve(tmp_path, cert="adhoc") as server, httpx.Client(verify=False) as client:
        scope = client.get(f"{server.url}/scope").json()
        assert (scope["scheme"], "tls" in scope["extensions"]) == ("https", True)
        assert client.get(f"{server.url}/file").content == b"0123456789" * 300_000
        assert client.post(f"{server.url}/echo", content=b"tea" * 100_000).content == b"tea" * 100_000
        assert client.get(f"{server.url}/no-file").status_code == 500


FIELDS = ["forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"]


def test_a_trusted_proxy_is_believed(tmp_path: Path) -> None:
    said = ["X-Forwarded-For: 203.0.113.7", "X-Forwarded-Proto: https", "X-Forwarded-Host: shop.example:444"]
    with serve(tmp_path, trusted_proxies="127.0.0.1", root_path="/shop", forwarded_headers=FIELDS) as server:
        scope = json.loads(answer_to(server, "/scope", *said)[1])
        assert (scope["client"], scope["scheme"]) == (["203.0.113.7", 0], "https")
        assert scope["server"] == ["shop.example", 444]
        assert (scope["root_path"], scope["path"], scope["raw_path"]) == ("/shop", "/shop/scope", "/shop/scope")
        assert ["host", "shop.example:444"] in scope["headers"]
        assert answer_to(server, "/scope", "Forwarded: for=")[0].startswith(b"HTTP/1.1 400 ")


def test_a_stranger_speaks_for_nobody(tmp_path: Path) -> None:
    with serve(tmp_path, trusted_proxies="none") as server:
        scope = json.loads(answer_to(server, "/scope", "X-Forwarded-For: 203.0.113.7", "X-Forwarded-Proto: https")[1])
        assert (scope["client"][0], scope["scheme"]) == ("127.0.0.1", "http")
        assert not any(name.startswith("x-forwarded") for name, _ in scope["headers"])
        server.wait_for("request.forwarding_ignored", count=2)


def test_each_request_is_logged_once_with_its_outcome_and_its_id(tmp_path: Path) -> None:
    with serve(tmp_path, access_log="-", request_id=True, request_timeout=1) as server:
        head, body = answer_to(server, "/scope")
        name = server.wait_for("request.finished", path="/scope", status=200, outcome="complete")["request_id"]
        assert f"X-Request-ID: {name}".encode() in head
        assert ["x-request-id", name] in json.loads(body)["headers"]
        answer_to(server, "/exit")
        assert server.wait_for("request.failed", path="/exit")["request_id"]
        server.wait_for("request.finished", path="/exit", status=500, outcome="failed")
        with socket.create_connection(server.address, timeout=20) as client:
            client.sendall(b"GET /flood HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.recv(1000)
        server.wait_for("request.finished", path="/flood", outcome="client_gone")
        for path in ("/scope", "/exit", "/flood"):
            assert len(server.all("request.finished", path=path)) == 1
