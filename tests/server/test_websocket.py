"""What do clients and applications see of WebSockets, on each event loop, plain and over TLS? RFC 6455, ASGI WebSocket 2.5."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import ssl
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import psutil
import pytest
import trustme
from server_process import POOL, LiveServer, program, until
from websocket_cases import BINARY, CASES, MOST, PONG, TEXT, Case, Heard, close, deflated, frame, hear
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

APP = """
import json, os, time
import anyio

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

woken = []

async def lifespan(receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})

async def echo(receive, send):
    while (message := await receive())["type"] == "websocket.receive":
        del message["type"]
        await send({"type": "websocket.send", **message})
    return message

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        scope["state"]["tea"] = "green"
        return await lifespan(receive, send)
    path = scope["path"]
    if scope["type"] == "http":
        if path == "/wake":
            woken.append(path)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        return await send({"type": "http.response.body", "body": b"plain"})
    assert (await receive()) == {"type": "websocket.connect"}
    if path == "/early-return":
        return
    if path == "/early-raise":
        raise LookupError("before accepting")
    if path == "/deny":
        await send({"type": "websocket.close"})
        return say("denied, then", await receive())
    if path == "/deny-with-page":
        await send({"type": "websocket.http.response.start", "status": 401, "headers": [(b"www-authenticate", b"tea")]})
        await send({"type": "websocket.http.response.body", "body": b"who ", "more_body": True})
        return await send({"type": "websocket.http.response.body", "body": b"are you?"})
    if path == "/never-accept":
        return say("waited", await receive())
    if path == "/coffee":
        return await send({"type": "websocket.accept", "subprotocol": "coffee"})
    if path == "/send-first":
        return await send({"type": "websocket.send", "text": "a"})
    await send({"type": "websocket.accept", "subprotocol": next(iter(scope["subprotocols"]), None), "headers": [(b"x-tea", b"green")]})
    match path:
        case "/echo":
            say("over", await echo(receive, send))
        case "/busy":
            await send({"type": "websocket.send", "text": str(os.getpid())})
            await receive()
            say("busy")
            time.sleep(3)
        case "/pid":
            await send({"type": "websocket.send", "text": str(os.getpid())})
            say("over", os.getpid(), await echo(receive, send))
        case "/scope":
            shown = {name: value for name, value in scope.items() if name != "extensions"}
            shown["extensions"] = sorted(scope["extensions"])
            await send({"type": "websocket.send", "text": json.dumps(shown, default=bytes.decode)})
        case "/return":
            pass
        case "/raise":
            raise LookupError("in the middle")
        case "/close":
            await send({"type": "websocket.close", "code": 4000, "reason": "enough"})
            try:
                await send({"type": "websocket.send", "text": "more"})
            except RuntimeError as error:
                say(error)
            say("closed, then", await receive())
        case "/bad-code":
            await send({"type": "websocket.close", "code": 1006})
        case "/bytes-as-text":
            await send({"type": "websocket.send", "text": b"a"})
        case "/number":
            await send({"type": "websocket.send", "bytes": 5})
        case "/accept-twice":
            await send({"type": "websocket.accept"})
        case "/late":
            say("told", await receive())
            try:
                await send({"type": "websocket.send", "text": "late"})
            except OSError as error:
                say("raised", type(error).__name__)
                raise
        case "/then-its-own-connection-fails":
            await receive()
            raise ConnectionRefusedError("the database")
        case "/flood":
            sent = 0
            try:
                while True:
                    await send({"type": "websocket.send", "bytes": bytes(65536)})
                    sent += 65536
                    if sent == 65536 * 400:
                        say("too much")
            except OSError:
                say("sent", sent)
        case "/slow":
            if (await receive())["type"] == "websocket.receive":
                while not woken:
                    await anyio.sleep(0.01)
                woken.clear()
            size = 0
            while (message := await receive())["type"] == "websocket.receive":
                size += len(message["bytes"])
            say("size", size, message["code"])
        case "/stream":
            while True:
                await send({"type": "websocket.send", "text": ""})
        case "/cleans-up":
            say("is there")
            try:
                await anyio.sleep(60)
            finally:
                with anyio.CancelScope(shield=True):
                    for _ in range(8):
                        await anyio.sleep(0.1)
                    say("cleaned up")
        case "/deaf":
            while True:
                await anyio.sleep(60)
"""
TRUSTING = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
TRUSTING.check_hostname, TRUSTING.verify_mode = False, ssl.CERT_NONE
FIELDS = b"Host: a:1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
VERSION = b"Sec-WebSocket-Version: 13\r\n"
DEFLATE = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"


def connected(server: LiveServer) -> socket.socket:
    """Return a connection, over TLS where that is spoken."""
    plain = socket.create_connection(server.address, timeout=20)
    return TRUSTING.wrap_socket(plain) if server.url.startswith("https") else plain


def library(server: LiveServer, path: str) -> connect:
    """Connect as a client does that knows the protocol.

    Not the one for threads: over TLS two of its threads use one session, and its handshake hangs now and then, whoever serves.
    """
    url = server.url.replace("http", "ws", 1)
    return connect(url + path, ssl=TRUSTING if url.startswith("wss") else None)


class Client:
    """A client that sends what it likes."""

    def __init__(self, server: LiveServer, path: str = "/echo", more: bytes = b"", behind: bytes = b"") -> None:
        self.socket = connected(server)
        self.socket.sendall(b"GET %b HTTP/1.1\r\n%b\r\n%b" % (path.encode(), FIELDS + KEY + VERSION + more, behind))
        said = b""
        while b"\r\n\r\n" not in said:
            said += self.receive()
        self.head, _, self.said = said.partition(b"\r\n\r\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def receive(self) -> bytes:
        """Return what comes next; nothing is the end."""
        return self.socket.recv(65536)

    def rest(self) -> Heard:
        """Return all that comes, to the end of the connection."""
        while data := self.receive():
            self.said += data
        return hear(self.said)

    def expect(self, size: int) -> bytes:
        """Return so many bytes of what comes next."""
        while len(self.said) < size:
            data = self.receive()
            assert data, "it is over"
            self.said += data
        expected, self.said = self.said[:size], self.said[size:]
        return expected


def options(folder: Path, **more: Any) -> dict[str, Any]:
    return {"app_dir": str(folder), "max_workers": 1, "max_reqs_per_child": 0, "websocket_max_size": MOST, **more}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("websocket")
    (folder / "sample.py").write_text(APP)
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(folder / "cert.pem")
    return folder


@pytest.fixture(scope="module", params=["asyncio", "uvloop", "trio", "uvloop over TLS", "trio over TLS"])
def server(request: pytest.FixtureRequest, folder: Path) -> Iterator[LiveServer]:
    backend, _, tls = request.param.partition(" ")
    cert = {"cert": str(folder / "cert.pem")} if tls else {}
    with LiveServer.pool("sample:app", **options(folder, async_backend=backend, **cert)) as live:
        yield live


# The protocol.


def say(server: LiveServer, case: Case) -> Heard:
    """Say what a case has, and good-bye if that was nothing wrong; return what comes back."""
    with Client(server, more=DEFLATE if case.compressed else b"") as client:
        assert (b"permessage-deflate" in client.head) is case.compressed
        client.socket.sendall(case.octets)
        if case.code is None:
            # A ping needs no answer any more once the good-bye was heard: RFC 6455 section 5.5.2.
            while (heard := hear_whole(client.said)).pong != case.pong or len(heard.messages) < len(case.messages):
                data = client.receive()
                assert data, case
                client.said += data
            client.socket.sendall(close())
        return client.rest()


def hear_whole(octets: bytes) -> Heard:
    """Return what of ``octets`` can be understood already."""
    try:
        return hear(octets)
    except (AssertionError, IndexError):
        return Heard([])


def test_what_a_client_says_is_judged_by_the_rfc(server: LiveServer) -> None:
    wrong = {}
    for case in CASES:
        heard = say(server, case)
        expected = Heard([*case.messages], 1000, case.pong) if case.code is None else Heard([], case.code)
        # Messages in front of an end are not sent back any more: RFC 6455 section 5.5.1.
        got = heard if case.code is None else Heard([], heard.code)
        if got != expected:
            wrong[case.rule] = got
    assert not wrong
    assert not server.all("request.failed")


def test_client_that_breaks_the_protocol_is_recorded(server: LiveServer) -> None:
    with Client(server, "/slow") as client:
        client.socket.sendall(frame(TEXT, b"a", mask=False))
        assert client.rest().code == 1002
    record = server.wait_for("websocket.failed", path="/slow")
    assert (record["close_code"], record["client"]) == (1002, "127.0.0.1")
    assert record["reason"] == "server received unexpected unmasked frame"


@pytest.mark.parametrize(
    ("line", "fields", "status"),
    [
        pytest.param(b"POST /echo HTTP/1.1", FIELDS + KEY + VERSION, 400, id="POST: 4.1"),
        pytest.param(b"GET /echo HTTP/1.1", FIELDS + KEY + VERSION + b"Content-Length: 1\r\n", 400, id="a body: 4.2.1"),
        pytest.param(b"GET /echo HTTP/1.1", FIELDS + KEY, 426, id="no version: 4.2.2"),
        pytest.param(b"GET /echo HTTP/1.1", FIELDS + VERSION, 400, id="no key: 4.2.1"),
        pytest.param(b"GET /echo HTTP/1.1", FIELDS.replace(b"Host: a:1\r\n", b"") + KEY + VERSION, 400, id="no Host: 4.2.1"),
        pytest.param(b"GET /echo HTTP/1.0", FIELDS + KEY + VERSION, 200, id="HTTP/1.0: RFC 9110 7.8"),
        pytest.param(b"GET /echo HTTP/1.1", b"Host: a\r\nUpgrade: websocket\r\n" + KEY + VERSION, 200, id="not said to this hop: RFC 9110 7.8"),
    ],
)  # fmt: skip
def test_request_that_is_no_handshake_is_answered_as_http(
    server: LiveServer, line: bytes, fields: bytes, status: int
) -> None:
    with connected(server) as client:
        client.sendall(line + b"\r\n" + fields + b"\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 %d " % status)


def test_frames_behind_the_handshake_are_frames(server: LiveServer) -> None:
    with Client(server, behind=frame(TEXT, b"early") + close(4000)) as client:
        assert client.rest().code == 4000
    with Client(server, behind=frame(TEXT, b"early")) as client:
        assert client.expect(7) == b"\x81\x05early"


def test_nothing_behind_a_denied_handshake_is_served(server: LiveServer) -> None:
    with Client(server, "/deny", behind=b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") as client:
        assert client.head.startswith(b"HTTP/1.1 403 ")
        while data := client.receive():
            client.said += data
        assert client.said == b"Forbidden\n"


# What the application sees, and may do.


def test_scope_is_that_of_the_specification(server: LiveServer) -> None:
    more = b"Sec-WebSocket-Protocol: tea, mate\r\nX-Leaf: One\r\nX-Leaf: Two\r\n"
    with Client(server, "/scope?milk=no", more) as client:
        assert b"\r\nSec-WebSocket-Protocol: tea\r\n" in client.head
        assert b"\r\nx-tea: green" in client.head
        client_port = client.socket.getsockname()[1]
        scope = json.loads(hear(_through(client)).messages[0])
    host, port = server.address
    tls = server.url.startswith("https")
    assert scope["type"] == "websocket"
    assert scope["asgi"] == {"version": "3.0", "spec_version": "2.5"}
    assert scope["scheme"] == ("wss" if tls else "ws")
    assert (scope["http_version"], scope["path"], scope["raw_path"], scope["query_string"]) == (
        "1.1", "/scope", "/scope", "milk=no",
    )  # fmt: skip
    assert (scope["client"], scope["server"]) == (["127.0.0.1", client_port], [host, port])
    assert scope["subprotocols"] == ["tea", "mate"]
    assert scope["state"] == {"tea": "green"}
    assert [pair for pair in scope["headers"] if pair[0] == "x-leaf"] == [["x-leaf", "One"], ["x-leaf", "Two"]]
    assert ["host", "a:1"] in scope["headers"]
    assert "method" not in scope
    assert {"websocket.http.response", "prefork.exit_guard"} <= {*scope["extensions"]}
    assert ("tls" in scope["extensions"]) is tls
    assert not any(name.startswith("http.") for name in scope["extensions"])


def _through(client: Client) -> bytes:
    """Return all that a client is sent; it says good-bye when the server does."""
    while not hear_whole(client.said).code:
        client.said += client.receive()
    client.socket.sendall(close())
    assert client.receive() == b""
    return client.said


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/deny", 403, b"Forbidden\n"),
        ("/deny-with-page", 401, b"who are you?"),
        ("/early-return", 500, b"Internal Server Error\n"),
        ("/early-raise", 500, b"Internal Server Error\n"),
        ("/coffee", 500, b"Internal Server Error\n"),
        ("/send-first", 500, b"Internal Server Error\n"),
    ],
)
def test_handshake_that_is_not_accepted_is_answered_as_a_request(
    server: LiveServer, path: str, status: int, body: bytes
) -> None:
    async def ask() -> None:
        async with library(server, path):
            pass

    with pytest.raises(InvalidStatus) as denied:
        asyncio.run(ask())
    response = denied.value.response
    assert (response.status_code, response.body) == (status, body)
    assert response.headers["Connection"] == "close"
    assert status != 401 or response.headers["www-authenticate"] == "tea"


def test_application_that_has_denied_is_told_that_it_is_over(server: LiveServer) -> None:
    with Client(server, "/deny"):
        server.wait_for_output("denied, then {'type': 'websocket.disconnect', 'code': 1006, 'reason': ''}")


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/return", 1000),
        ("/raise", 1011),
        ("/bad-code", 1011),
        ("/bytes-as-text", 1011),
        ("/number", 1011),
        ("/accept-twice", 1011),
    ],
)
def test_end_of_the_application_is_the_end_of_the_websocket(server: LiveServer, path: str, code: int) -> None:
    with Client(server, path) as client:
        assert hear(_through(client)).code == code
    if code == 1011:
        server.wait_for("request.failed", path=path)


def test_end_that_the_application_says_is_final(server: LiveServer) -> None:
    with Client(server, "/close") as client:
        assert _through(client)[:10] == b"\x88\x08" + (4000).to_bytes(2, "big") + b"enough"
    server.wait_for_output("the application sent 'websocket.send' behind websocket.close")
    server.wait_for_output("closed, then {'type': 'websocket.disconnect', 'code': 4000, 'reason': 'enough'}")


def test_end_that_the_client_says_comes_behind_its_messages(server: LiveServer) -> None:
    with Client(server) as client:
        client.socket.sendall(close(4321, b"genug Tee"))
        assert client.rest().code == 4321
    server.wait_for_output("over {'type': 'websocket.disconnect', 'code': 4321, 'reason': 'genug Tee'}")


def test_client_that_is_gone_has_left_without_a_word(server: LiveServer) -> None:
    before = len([line for line in server.output if line.startswith("told")])
    with Client(server, "/late"):
        pass
    line = "told {'type': 'websocket.disconnect', 'code': 1006, 'reason': ''}"
    server.wait_for_output(line, count=before + 1)
    server.wait_for_output("raised ClientLeft", count=before + 1)
    assert not server.all("request.failed", path="/late"), "that is nobody's fault"


def test_failure_behind_the_end_is_recorded_whatever_could_not_be_reached(server: LiveServer) -> None:
    with Client(server, "/then-its-own-connection-fails"):
        pass
    assert "the database" in server.wait_for("request.failed", path="/then-its-own-connection-fails")["exception"]


# Backpressure.


def test_application_waits_for_a_client_that_takes_nothing(server: LiveServer) -> None:
    before = len([line for line in server.output if line.startswith("sent")])
    with Client(server, "/flood") as client:
        client.expect(65536)
    server.wait_for_output("sent ", count=before + 1)
    assert "too much" not in server.output


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_who_sends_to_a_client_that_takes_all_leaves_the_others_their_turn(folder: Path, backend: str) -> None:
    def take_all() -> None:
        with suppress(OSError):
            while client.receive():
                pass

    chosen = options(folder, async_backend=backend)
    with LiveServer.pool("sample:app", **chosen) as server, Client(server, "/stream") as client:
        reader = threading.Thread(target=take_all)
        reader.start()
        try:
            assert server.get()[1] == b"plain"
        finally:
            client.socket.shutdown(socket.SHUT_RDWR)
            reader.join()


def test_client_waits_for_an_application_that_takes_nothing_and_nothing_is_lost(server: LiveServer) -> None:
    with Client(server, "/slow") as client:
        client.socket.sendall(frame(TEXT, b"begin"))
        client.socket.settimeout(0.2)
        piece, sent = frame(BINARY, bytes(60_000)), 0
        with suppress(TimeoutError, ssl.SSLWantWriteError):
            while sent < 400:
                client.socket.sendall(piece)
                sent += 1
        assert sent < 400, "somebody takes it all"
    with connected(server) as other:
        other.sendall(b"GET /wake HTTP/1.1\r\nHost: a\r\n\r\n")
        assert other.recv(65536).startswith(b"HTTP/1.1 200 ")
    until(lambda: re.search(r"size \d+ 1006", "\n".join(server.output)) is not None)
    size = int(re.findall(r"size (\d+) 1006", "\n".join(server.output))[-1])
    assert size == sent * 60_000, "messages in front of the end belong to the application"


# A client that is a library.


def test_real_client_and_compression(server: LiveServer) -> None:
    async def talk() -> int:
        async with library(server, "/echo") as client:
            assert [extension.name for extension in client.protocol.extensions] == ["permessage-deflate"]
            for message in ("tea", "tea " * 10_000, b"\x00" * MOST, "ä" * 300, ""):
                await client.send(message)
                assert await client.recv() == message
            await client.send(["in ", "three ", "pieces"])
            assert await client.recv() == "in three pieces"
            await (await client.ping())
            await client.send(b"x" * (MOST + 1))
            with pytest.raises(ConnectionClosed) as closed:
                await client.recv()
        assert closed.value.rcvd is not None
        return closed.value.rcvd.code

    assert asyncio.run(talk()) == 1009


# Options, with one server each.


def test_client_that_does_not_answer_pings_is_given_up(folder: Path) -> None:
    with LiveServer.pool(
        "sample:app", **options(folder, websocket_ping_interval=0.4, websocket_ping_timeout=3.0)
    ) as server:
        with Client(server) as silent, Client(server) as lively:
            for _ in range(8):  # for longer than the other has
                assert lively.expect(2) == b"\x89\x00"
                lively.socket.sendall(frame(PONG))
            assert silent.expect(2) == b"\x89\x00"
            heard = silent.rest()
            assert (heard.code, heard.messages) == (1011, [])
            lively.socket.sendall(frame(TEXT, b"a"))
            assert b"\x81\x01a" in lively.expect(3) + lively.said
        server.wait_for_output("'code': 1011, 'reason': 'no answer to a ping'")
        assert server.wait_for("websocket.failed", close_code=1011)


def test_what_is_switched_off_is_not_offered(folder: Path) -> None:
    less = options(folder, websocket_compression=False)
    with LiveServer.pool("sample:app", **less) as server, Client(server, more=DEFLATE) as client:
        assert b"permessage-deflate" not in client.head
        client.socket.sendall(frame(TEXT, deflated(b"tea"), rsv=4))
        assert client.rest().code == 1002
    with LiveServer.pool("sample:app", **options(folder, websocket=False)) as server, Client(server) as client:
        assert client.head.startswith(b"HTTP/1.1 200 ")


def test_without_the_library_a_websocket_is_refused_and_that_is_recorded_once(folder: Path) -> None:
    hidden = "import sys; sys.modules['wsproto'] = None\n" + POOL
    more = {"bind": "127.0.0.1:0", "log_format": "json", **options(folder)}
    with LiveServer.script(hidden, "sample:app", json.dumps(more)) as server:
        for _ in range(2):
            with Client(server) as client:
                assert client.head.startswith(b"HTTP/1.1 501 ")
        assert server.get()[1] == b"plain"
        server.wait_for("request.rejected", count=2, status=501)
        (record,) = server.all("websocket.unavailable")
        assert record["code"] == "PF441"


def test_request_timeout_is_for_the_handshake_and_not_for_what_follows(folder: Path) -> None:
    with LiveServer.pool("sample:app", **options(folder, request_timeout=1)) as server, Client(server) as accepted:
        with Client(server, "/never-accept") as waiting:
            assert waiting.head.startswith(b"HTTP/1.1 504 ")
        server.wait_for("request.timeout", path="/never-accept")
        accepted.socket.sendall(frame(TEXT, b"still there"))
        assert accepted.expect(13) == b"\x81\x0bstill there"


def test_access_log_has_a_websocket_when_it_is_over(folder: Path) -> None:
    with LiveServer.pool("sample:app", **options(folder, access_log="-", request_id=True)) as server:
        with Client(server, "/echo?a=b", b"User-Agent: kettle\r\n") as client:
            client.socket.sendall(frame(TEXT, b"tea"))
            client.expect(5)
            assert not server.all("request.finished")
            client.socket.sendall(close())
            client.rest()
        line = server.wait_for("request.finished")
        assert (line["method"], line["path"], line["query"], line["status"], line["outcome"], line["user_agent"]) == (
            "GET", "/echo", "a=b", 101, "complete", "kettle",
        )  # fmt: skip
        with Client(server):
            pass
        server.wait_for("request.finished", outcome="client_gone", status=101)


# The worker leaves.


def test_worker_that_is_replaced_keeps_its_websockets_until_the_drain_timeout(folder: Path) -> None:
    more = {"websocket_drain_timeout": 2.5}
    with LiveServer.pool("sample:app", **options(folder, **more)) as server, Client(server, "/pid") as early:
        first = pid_of(early)
        server.send(signal.SIGUSR2)
        server.wait_for("worker.ready", count=2)
        early.socket.sendall(frame(TEXT, b"still here"))
        assert early.expect(12) == b"\x81\x0astill here"
        # It hears of its successor a moment after the record of that, and then leaves the listener to it.
        old = psutil.Process(first)
        until(lambda: all(each.status != psutil.CONN_LISTEN for each in old.net_connections("tcp")))
        with Client(server, "/pid") as late:
            assert pid_of(late) != first
            assert hear(_through(early)).code == 1012
            record = server.wait_for("worker.exited")
            assert (record["child_pid"], record["expected"], record["exit_code"]) == (first, True, 0)
            late.socket.sendall(frame(TEXT, b"of the other"))
            assert late.expect(14) == b"\x81\x0cof the other"
            server.wait_for_output(f"over {first} {{'type': 'websocket.disconnect', 'code': 1012, ")
            late.socket.sendall(close())
            late.rest()


@pytest.mark.parametrize("how", ["HUP", "start_server"])
def test_deploy_leaves_the_websockets_of_the_old_code_until_the_drain_timeout(tmp_path: Path, how: str) -> None:
    (tmp_path / "sample.py").write_text(APP)
    flags = ("-w", "1", "--max-reqs-per-child", "0", "--websocket-drain-timeout", "3")
    with deployable(how, tmp_path, *flags) as server, Client(server, "/pid") as early:
        first = pid_of(early)
        (tmp_path / "sample.py").write_text(APP.replace("str(os.getpid())", "'-' + str(os.getpid())"))
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("pool.superseded")
        old = psutil.Process(first)
        until(lambda: all(each.status != psutil.CONN_LISTEN for each in old.net_connections("tcp")))
        early.socket.sendall(frame(TEXT, b"still here"))
        assert early.expect(12) == b"\x81\x0astill here"
        with Client(server, "/pid") as late:
            assert pid_of(late) < 0, "the new code puts a minus in front"
            assert hear(_through(early)).code == 1012
            server.wait_for("worker.exited", child_pid=first, expected=True, exit_code=0)
            server.wait_for_output(f"over {first} {{'type': 'websocket.disconnect', 'code': 1012, ")
            late.socket.sendall(frame(TEXT, b"of the new"))
            assert late.expect(12) == b"\x81\x0aof the new"


def deployable(how: str, folder: Path, *flags: str) -> LiveServer:
    """Return a server that begins with new code on HUP, its own or that of ``start_server``."""
    if how == "HUP":
        return LiveServer.of("sample:app", *flags, cwd=folder)
    command = [sys.executable, "-m", "prefork", "sample:app", *flags]
    return LiveServer(program("start_server"), "--port=127.0.0.1:0", "--interval=1", "--", *command, cwd=folder)


@pytest.mark.parametrize("backend", ["uvloop", "trio"])
def test_pool_that_stops_says_so_first_and_waits_for_nobody_for_ever(folder: Path, backend: str) -> None:
    more = {"async_backend": backend, "stream_grace": 0.2, "graceful_timeout": 3}
    with LiveServer.pool("sample:app", **options(folder, **more)) as server:
        with Client(server) as polite, Client(server) as mute, Client(server, "/deaf") as deaf:
            server.send(signal.SIGTERM)
            assert hear(_through(polite)).code == 1001
            assert hear(_through(deaf)).code == 1001
            assert mute.rest().code == 1001  # it does not answer, and is cut off
        assert server.wait() == 0
        server.wait_for_output("'code': 1001, 'reason': 'the server stops'", count=2)
        assert [record["path"] for record in server.all("request.cancelled")] == ["/deaf"]
        assert server.all("worker.exited", expected=True, exit_code=0)
        assert not server.all("worker.killed")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_application_that_was_cancelled_in_a_stop_may_clean_up(folder: Path, backend: str) -> None:
    """Longer than ``stream_grace``: it is cancelled once, and told of once."""
    more = {"async_backend": backend, "stream_grace": 0.2, "graceful_timeout": 5}
    with LiveServer.pool("sample:app", **options(folder, **more)) as server, Client(server, "/cleans-up"):
        server.wait_for_output("is there")
        assert server.stop() == 0
        server.wait_for_output("cleaned up")
        assert len(server.all("request.cancelled")) == 1


def test_worker_that_is_killed_takes_its_own_websockets_with_it_and_no_others(folder: Path) -> None:
    with LiveServer.pool("sample:app", **options(folder, max_workers=2)) as server, Client(server, "/busy") as lost:
        victim = pid_of(lost)
        lost.socket.sendall(frame(TEXT, b"be busy"))
        server.wait_for_output("busy")  # so that the other one takes the next client
        with Client(server, "/pid") as kept:
            assert pid_of(kept) != victim
            server.send(signal.SIGKILL, to=victim)
            record = server.wait_for("worker.exited", child_pid=victim)
            assert (record["connections_lost"], record["requests_lost"]) == (1, [])
            assert lost.receive() == b""
            kept.socket.sendall(frame(TEXT, b"alive"))
            assert kept.expect(7) == b"\x81\x05alive"


def pid_of(client: Client) -> int:
    """Return the worker that has greeted a client with its process id."""
    while not hear_whole(client.said).messages:
        client.said += client.receive()
    pid, client.said = int(str(hear(client.said).messages[0])), b""
    return pid


async def talk_in_room_and_hall(server: LiveServer) -> None:
    async with library(server, "/room") as one, library(server, "/room") as two:
        await two.send("hello")  # so that it is there
        assert await two.recv() == "2 hear: hello"
        assert await one.recv() == "2 hear: hello"
        await one.send("tea")
        assert [await client.recv() for client in (one, two)] == ["2 hear: tea"] * 2
    async with library(server, "/hall"):
        pass


def test_starlette_broadcasts_to_all_who_are_there(tmp_path: Path) -> None:
    (tmp_path / "room.py").write_text("""
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocketDisconnect

there = set()

async def room(websocket):
    await websocket.accept()
    there.add(websocket)
    try:
        while True:
            text = await websocket.receive_text()
            for one in list(there):
                await one.send_text(f"{len(there)} hear: {text}")
    except WebSocketDisconnect:
        there.discard(websocket)

app = Starlette(routes=[WebSocketRoute("/room", room)])
""")
    with LiveServer.pool("room:app", app_dir=str(tmp_path), max_workers=1) as server:
        with pytest.raises(InvalidStatus) as denied:
            asyncio.run(talk_in_room_and_hall(server))
        assert denied.value.response.status_code == 403
        assert not server.all("request.failed")
