"""What do applications see, and proxies meet, when a proxy stands before us? The configurations are those of docs/proxy.md."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
from contextlib import ExitStack, suppress
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any, Self

import psutil
import pytest
from server_process import PATIENCE, ROOT, LiveServer, until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as websocket

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

APP = """
import json

SHOWN = ("REMOTE_ADDR", "REMOTE_PORT", "wsgi.url_scheme", "HTTP_HOST", "SERVER_PORT", "prefork.peer", "PATH_INFO")

def told(environ, start_response):
    told = {name: value for name, value in environ.items() if name in SHOWN or "FORWARDED" in name or "REAL" in name}
    body = json.dumps({"pid": os.getpid(), **told}).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

async def atold(scope, receive, send):
    if scope["type"] not in {"http", "websocket"}:
        raise NotImplementedError
    address, port = scope["client"] or ("", "")
    fields = {"HTTP_" + name.decode().upper().replace("-", "_"): value.decode() for name, value in scope["headers"]}
    told = {"REMOTE_ADDR": address, "REMOTE_PORT": str(port), "wsgi.url_scheme": scope["scheme"], **fields}
    told["SERVER"], told["SERVER_PORT"] = scope["server"], str(scope["server"][1])
    if "prefork.peer" in scope["extensions"]:
        told["prefork.peer"] = scope["extensions"]["prefork.peer"]
    body = json.dumps({"pid": os.getpid(), **told}).encode()
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": body.decode()})
        await receive()
        said = await receive()
        return await send({"type": "websocket.close", "code": 4000, "reason": said["text"]})
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""
CLIENT, PROXY = "127.0.0.9", "127.0.0.1"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
REQUEST = b"GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n"


# Lower than the kernel's, which it gives to whoever asks for any; and not those of the tests that run beside.
PORTS = iter(range(20_000 + 500 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")), 32_000))


def free_port() -> int:
    for port in PORTS:
        with suppress(OSError), socket.create_server((PROXY, port)):
            return port
    raise LookupError("no port is free")


def documented(kind: str, number: int = 0, page: str = "proxy.md") -> str:
    """Return a configuration of the documentation."""
    blocks: list[tuple[str, str]] = BLOCK.findall((ROOT / "docs" / page).read_text())
    return [text for name, text in blocks if name == kind][number]


class Proxy:
    """A proxy in front of the server at ``port``, as documented, but with retries off; on leaving, it had no error."""

    def __init__(
        self,
        name: str,
        port: int,
        folder: Path,
        *,
        number: int = 0,
        protocol: str = "send-proxy-v2",
        page: str = "proxy.md",
    ) -> None:
        if shutil.which(name) is None:
            if "CI" in os.environ:
                pytest.fail(f"{name} is not installed")
            pytest.skip(f"{name} is not installed")
        self.port = free_port()
        self.folder = folder
        self.name = name
        text = (
            documented(name, number, page)
            .replace("127.0.0.1:8000", f"{PROXY}:{port}")
            .replace("send-proxy-v2", protocol)
        )
        if name == "nginx":
            text = text.replace("listen 80", f"listen {PROXY}:{self.port}")
            paths = "".join(f"{part}_temp_path {folder};" for part in ("proxy", "fastcgi", "uwsgi", "scgi"))
            user = "user root;" if os.geteuid() == 0 else ""
            text = (
                f"{user} daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log error; events {{}}\n"
                f"http {{ access_log off; proxy_next_upstream off; client_body_temp_path {folder}; {paths}\n{text}}}\n"
            )
        else:
            text = text.replace("bind :80", f"bind {PROXY}:{self.port}")
            text = (
                f"global\n    stats socket {folder}/stats\ndefaults\n    retries 0\n    timeout connect 10s\n"
                f"    timeout client 30s\n    timeout server 30s\n{text}"
            )
        (folder / f"{name}.conf").write_text(text)

    def __enter__(self) -> Self:
        conf = str(self.folder / f"{self.name}.conf")
        command = (
            ["nginx", "-p", str(self.folder), "-c", conf] if self.name == "nginx" else ["haproxy", "-db", "-f", conf]
        )
        self.said = (self.folder / f"{self.name}.out").open("wb")
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.said, stderr=self.said)
        until(self._listens)
        return self

    def _listens(self) -> bool:
        assert self.process.poll() is None, (self.folder / f"{self.name}.out").read_text()
        with socket.socket() as probe:
            return probe.connect_ex((PROXY, self.port)) == 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        errors = self.errors()
        self.process.terminate()
        self.process.wait(PATIENCE)
        self.said.close()
        if kind is None:
            assert errors == []

    def errors(self) -> list[str]:
        """Return what went wrong between the proxy and the server."""
        if self.name == "nginx":
            return (self.folder / "nginx.log").read_text().splitlines()
        with socket.socket(socket.AF_UNIX) as stats:
            stats.connect(str(self.folder / "stats"))
            stats.sendall(b"show stat\n")
            lines = b"".join(iter(lambda: stats.recv(65536), b"")).decode().lstrip("# ").splitlines()
        names = lines[0].split(",")
        app = next(
            row for line in lines[1:] if (row := dict(zip(names, line.split(","), strict=False)))["svname"] == "app"
        )
        counters = ("econ", "eresp", "wretr", "wredis", "srv_abrt", "hrsp_4xx", "hrsp_5xx")
        return [f"{name}: {app[name]}" for name in counters if app[name] not in {"", "0"}]


def ask(port: int, fields: dict[str, str] | None = None, path: str = "/") -> dict[str, Any]:
    """Ask from an address that is no trusted proxy's; return what the application was told."""
    connection = HTTPConnection(PROXY, port, timeout=PATIENCE, source_address=(CLIENT, 0))
    try:
        connection.request("GET", path, headers={"Host": "shop.example", **(fields or {})})
        response = connection.getresponse()
        assert response.status == 200
        told: dict[str, Any] = json.loads(response.read())
        return told
    finally:
        connection.close()


def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("app")
    (folder / "sample.py").write_text("import os\n" + APP)
    return folder


BOTH = ["sample:told", "sample:atold"]


@pytest.fixture(scope="module", params=BOTH, ids=["wsgi", "asgi"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = str(module(tmp_path_factory))
    with LiveServer.pool(request.param, app_dir=folder, max_workers=1, trusted_proxies=PROXY, access_log="-") as live:
        yield live


@pytest.fixture(scope="module", params=BOTH, ids=["wsgi", "asgi"])
def relayed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Return a server that speaks the PROXY protocol with 127.0.0.1."""
    flags = ("--proxy-protocol", "--trusted-proxies", PROXY, "--max-workers", "1", "--max-reqs-per-child", "0")
    with LiveServer.of(request.param, *flags, cwd=module(tmp_path_factory)) as live:
        yield live


# Fields.


@pytest.mark.parametrize("name", ["nginx", "haproxy"])
def test_behind_a_proxy_the_client_is_the_client(name: str, server: LiveServer, tmp_path: Path) -> None:
    with Proxy(name, server.address[1], tmp_path) as proxy:
        forged = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "https", "Forwarded": "for=6.6.6.6;proto=https"}
        told = ask(proxy.port, forged)
    assert told["REMOTE_ADDR"] == CLIENT
    assert told["prefork.peer"] == PROXY
    assert told["wsgi.url_scheme"] == "http"
    assert told["HTTP_HOST"] == "shop.example"
    assert told["SERVER_PORT"] == "80"
    assert "HTTP_FORWARDED" not in told
    server.wait_for("request.finished", client=CLIENT)


@pytest.mark.parametrize(("name", "page"), [("nginx", "websockets.md"), ("haproxy", "proxy.md")])
@pytest.mark.parametrize("server", ["sample:atold"], indirect=True, ids=["asgi"])
def test_behind_a_proxy_a_websocket_is_one(name: str, page: str, server: LiveServer, tmp_path: Path) -> None:
    with Proxy(name, server.address[1], tmp_path, page=page) as proxy:
        url = f"ws://{PROXY}:{proxy.port}/socket"
        with websocket(url, source_address=(CLIENT, 0), additional_headers={"X-Forwarded-For": "6.6.6.6"}) as client:
            told = json.loads(client.recv())
            client.send("enough")
            with pytest.raises(ConnectionClosed) as closed:
                client.recv()
    assert (told["REMOTE_ADDR"], told["wsgi.url_scheme"]) == (CLIENT, "ws")
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4000, "enough")


def test_an_untrusted_peer_is_not_believed_and_it_is_told_once(server: LiveServer) -> None:
    for _ in range(2):
        forged = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "https", "X-Real-IP": "6.6.6.6"}
        told = ask(server.address[1], forged)
        assert (told["REMOTE_ADDR"], told["wsgi.url_scheme"]) == (CLIENT, "http")
        assert not [name for name in told if name.startswith("HTTP_X")]
    record = server.wait_for("request.forwarding_ignored", field="x-forwarded-for")
    assert (record["client"], record["code"]) == (CLIENT, "PF503")
    assert len(server.all("request.forwarding_ignored", field="x-forwarded-for")) == 1


def test_a_trusted_peer_that_cannot_be_understood_is_refused(server: LiveServer) -> None:
    status, body = server.get(headers={"X-Forwarded-For": "nobody"})
    assert (status, body) == (400, b"400 Bad Request: malformed X-Forwarded-For\n")
    server.wait_for("request.rejected", reason="malformed X-Forwarded-For", status=400)
    status, _ = server.get(method="POST", body=b"x" * 100_000, headers={"Forwarded": 'for="'})
    assert status == 400
    status, body = server.get(headers={"Forwarded": 'for=192.0.2.1;host=":80"'})
    assert (status, body) == (400, b"400 Bad Request: malformed host\n")
    assert server.get()[0] == 200


MAPPED = """
import os, socket, sys
held = socket.create_server(("::ffff:127.0.0.1", 0), family=socket.AF_INET6, dualstack_ipv6=True)
held.set_inheritable(True)
os.execv(sys.executable, [sys.executable, "-m", "prefork", *sys.argv[1:], "--bind", f"fd://{held.fileno()}"])
"""


@pytest.mark.parametrize("app", BOTH, ids=["wsgi", "asgi"])
def test_an_ipv4_client_of_a_socket_for_both_families_is_one_of_ipv4(
    app: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    flags = ("--trusted-proxies", f"::ffff:{PROXY}", "--max-workers", "1", "--access-log", "-")
    with LiveServer.script(MAPPED, app, *flags, cwd=module(tmp_path_factory)) as server:
        port = server.wait_for("pool.listening")["port"]
        for source, client in ((CLIENT, CLIENT), (PROXY, "192.0.2.7")):
            with socket.create_connection((PROXY, port), timeout=PATIENCE, source_address=(source, 0)) as asking:
                told = told_on(asking, REQUEST.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n"))
            assert (told["REMOTE_ADDR"], told.get("prefork.peer", source)) == (client, source)
            server.wait_for("request.finished", client=client)
        assert [record["client"] for record in server.all("request.forwarding_ignored")] == [CLIENT]


FOR = "X-Forwarded-For: 192.0.2.1"


@pytest.mark.parametrize(
    ("reason", "said", "told"),
    [
        ("body longer than max_body_size", (FOR, f"Content-Length: {1 << 40}"), "192.0.2.1"),
        ("malformed chunk line", (FOR, "Transfer-Encoding: chunked", "", "tea", ""), "192.0.2.1"),
        # These heads are not in order, so what they say of the client is not either.
        ("two Host fields", (FOR, "Host: b"), PROXY),
        ("malformed X-Forwarded-For", ("X-Forwarded-For: \xff",), PROXY),
    ],
)
def test_who_asked_for_what_is_told_of_a_request_that_is_refused(
    server: LiveServer, reason: str, said: tuple[str, ...], told: str
) -> None:
    lines = ("POST /tea%0Acups?size=2 HTTP/1.1", "Host: a", *said, "", "")
    already = len(server.all("request.rejected", reason=reason))
    with connect(server) as client:
        client.sendall("\r\n".join(lines).encode("latin-1"))
        assert client.recv(12) in {b"HTTP/1.1 400", b"HTTP/1.1 413"}
    record = server.wait_for("request.rejected", reason=reason, count=already + 1)
    assert (record["method"], record["path"], record["client"]) == ("POST", "/tea%0Acups", told)


# The PROXY protocol.


def line(address: str = "192.0.2.1") -> bytes:
    return b"PROXY TCP4 %b 198.51.100.2 4711 443\r\n" % address.encode()


def connect(server: LiveServer, source: str = PROXY) -> socket.socket:
    return socket.create_connection(server.address, timeout=PATIENCE, source_address=(source, 0))


def told_on(client: socket.socket, request: bytes = REQUEST) -> dict[str, Any]:
    """Send a request, or the rest of one, on an open connection."""
    client.sendall(request)
    answer = b""
    while not (match := re.search(rb"(?i)Content-Length: (\d+)\r\n.*?\r\n\r\n", answer, re.DOTALL)) or (
        len(answer) < match.end() + int(match[1])
    ):
        piece = client.recv(65536)
        assert piece, answer
        answer += piece
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    told: dict[str, Any] = json.loads(answer[match.end() :])
    return told


@pytest.mark.parametrize("protocol", ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id"])
def test_haproxy_names_the_client_in_front_of_the_connection(
    protocol: str, relayed: LiveServer, tmp_path: Path
) -> None:
    with Proxy("haproxy", relayed.address[1], tmp_path, number=1, protocol=protocol) as proxy:
        told = ask(proxy.port, {"X-Forwarded-For": "6.6.6.6"})
    assert told["REMOTE_ADDR"] == CLIENT
    assert told["REMOTE_PORT"].isdigit()
    assert told["prefork.peer"] == PROXY
    assert "HTTP_X_FORWARDED_FOR" not in told


def test_a_header_may_come_in_pieces_and_with_the_request(relayed: LiveServer) -> None:
    with connect(relayed) as client:
        for octet in line():
            client.sendall(bytes([octet]))
        assert told_on(client)["REMOTE_ADDR"] == "192.0.2.1"
        assert told_on(client, REQUEST)["REMOTE_PORT"] == "4711"
    with connect(relayed) as client:
        assert told_on(client, line() + REQUEST)["REMOTE_ADDR"] == "192.0.2.1"


@pytest.mark.parametrize("header", [SIGNATURE + bytes([0x20, 0, 0, 0]), b"PROXY UNKNOWN\r\n"])
def test_who_names_nobody_is_the_client_and_not_believed(header: bytes, relayed: LiveServer) -> None:
    request = REQUEST.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n")
    with connect(relayed) as client:
        told = told_on(client, header + request)
    assert told["REMOTE_ADDR"] == PROXY
    assert "prefork.peer" not in told
    assert "HTTP_X_FORWARDED_FOR" not in told


def test_a_client_behind_the_proxy_may_be_a_proxy_itself(relayed: LiveServer) -> None:
    request = REQUEST.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n")
    with connect(relayed) as client:
        told = told_on(client, line(PROXY) + request)
    assert (told["REMOTE_ADDR"], told["prefork.peer"]) == ("192.0.2.7", PROXY)


def test_a_client_without_an_address_is_nobody_of_ours(relayed: LiveServer) -> None:
    request = REQUEST.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n")
    header = SIGNATURE + bytes([0x21, 0x31]) + struct.pack("!H", 216) + bytes(216)
    with connect(relayed) as client:
        told = told_on(client, header + request)
    assert (told["REMOTE_ADDR"], told["prefork.peer"]) == ("", PROXY)
    assert "HTTP_X_FORWARDED_FOR" not in told


@pytest.mark.parametrize(
    ("source", "octets", "reason"),
    [
        pytest.param(PROXY, REQUEST, b"no PROXY header", id="none from a proxy"),
        pytest.param(PROXY, b"PROXY TCP5 a b 1 2\r\n", b"a malformed PROXY line", id="a malformed one from a proxy"),
        pytest.param(CLIENT, line() + REQUEST, b"malformed request line", id="one from somebody else"),
        pytest.param(CLIENT, SIGNATURE + bytes([0x20, 0, 0, 0]), b"line ended by CR or LF alone", id="a binary one"),
    ],
)
def test_a_header_is_required_of_proxies_and_refused_from_others(
    source: str, octets: bytes, reason: bytes, relayed: LiveServer
) -> None:
    with connect(relayed, source) as client:
        client.sendall(octets)
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b"400 Bad Request: " + reason + b"\n")


@pytest.mark.parametrize("octets", [REQUEST, b"PROXY UNKNOWN\r\nHEAD / HTTP/1.1\r\nHost: a\r\n\r\n"])
@pytest.mark.parametrize("app", BOTH)
def test_who_is_turned_away_with_his_header_is_closed_although_he_stays(
    app: str, octets: bytes, tmp_path: Path
) -> None:
    (tmp_path / "sample.py").write_text("import os\n" + APP)
    flags = ("--proxy-protocol", "--trusted-proxies", PROXY, "--max-workers", "1", "--limit-concurrency", "1")
    with LiveServer.of(f"sample:{app.removeprefix('sample:')}", *flags, cwd=tmp_path) as server, ExitStack() as stack:
        if octets != REQUEST:
            assert told_on(stack.enter_context(connect(server)), b"PROXY UNKNOWN\r\n" + REQUEST)
        stays = stack.enter_context(connect(server))
        stays.sendall(octets)
        assert stays.makefile("rb").read().startswith(b"HTTP/1.1 400 " if octets == REQUEST else b"HTTP/1.1 503 ")
        worker, port = psutil.Process(server.worker_pids[0]), stays.getsockname()[1]
        until(lambda: all(there.raddr[1:] != (port,) for there in worker.net_connections("tcp")))
        assert server.stop() == 0


def test_everybody_is_who_connects_and_not_whom_a_header_names(tmp_path: Path) -> None:
    (tmp_path / "sample.py").write_text("import os\n" + APP)
    flags = ("--proxy-protocol", "--trusted-proxies", "*", "--max-workers", "1")
    request = REQUEST.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\n\r\n")
    with LiveServer.of("sample:told", *flags, cwd=tmp_path) as server, connect(server) as client:
        told = told_on(client, line("203.0.113.9") + request)
    assert (told["REMOTE_ADDR"], told["wsgi.url_scheme"], told["prefork.peer"]) == ("203.0.113.9", "http", PROXY)
    assert "HTTP_X_FORWARDED_FOR" not in told


def test_a_connection_stays_as_it_began_when_a_deploy_changes_the_protocol(tmp_path: Path) -> None:
    (tmp_path / "sample.py").write_text("import os\n" + APP)
    config = tmp_path / "prefork.toml"
    config.write_text("proxy_protocol = true\n")
    flags = ("--config", "prefork.toml", "--trusted-proxies", PROXY, "--max-workers", "1")
    forwarded = REQUEST.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n")
    with LiveServer.of("sample:told", *flags, cwd=tmp_path) as server, ExitStack() as stack:

        def deploy(setting: str, count: int) -> None:
            config.write_text(setting)
            server.send(signal.SIGHUP, to=server.pid)
            server.wait_for("pool.deployed", count=count)
            server.wait_for("pool.stopped", count=count)

        unnamed, awaits = (stack.enter_context(connect(server)) for _ in range(2))
        assert told_on(unnamed, b"PROXY UNKNOWN\r\n" + forwarded)["REMOTE_ADDR"] == PROXY
        deploy("", 1)
        assert told_on(unnamed, forwarded)["REMOTE_ADDR"] == PROXY
        assert told_on(awaits, b"PROXY UNKNOWN\r\n" + forwarded)["REMOTE_ADDR"] == PROXY
        plain = stack.enter_context(connect(server))
        assert told_on(plain, forwarded)["REMOTE_ADDR"] == "192.0.2.7"
        deploy("proxy_protocol = true\n", 2)
        assert told_on(unnamed, forwarded)["REMOTE_ADDR"] == PROXY
        assert told_on(plain, forwarded)["REMOTE_ADDR"] == "192.0.2.7"


def test_the_server_of_a_scope_is_the_socket_whoever_is_named_on_it(tmp_path: Path) -> None:
    (tmp_path / "sample.py").write_text("import os\n" + APP)
    path = str(tmp_path / "shop.sock")
    flags = (f"--bind=unix:{path}", "--proxy-protocol", "--max-workers", "1")
    with (
        LiveServer.of("sample:atold", *flags, cwd=tmp_path) as server,
        socket.socket(socket.AF_UNIX) as client,
    ):
        client.settimeout(PATIENCE)
        client.connect(path)
        before = told_on(client, line() + REQUEST)
        assert (before["REMOTE_ADDR"], before["SERVER"]) == ("192.0.2.1", [path, None])
        server.send(signal.SIGUSR2, to=server.pid)
        server.wait_for("worker.exited")
        after = told_on(client)
        assert after["pid"] != before["pid"]
        assert {**after, "pid": before["pid"]} == before


def test_somebody_else_is_served_without_a_header(relayed: LiveServer) -> None:
    assert ask(relayed.address[1])["REMOTE_ADDR"] == CLIENT


def test_a_connection_keeps_its_addresses_in_the_next_generation(relayed: LiveServer) -> None:
    with ExitStack() as stack:
        kept, silent, torn, gone = (stack.enter_context(connect(relayed)) for _ in range(4))
        before = told_on(kept, line() + REQUEST)
        torn.sendall(line()[:9])
        relayed.send(signal.SIGHUP, to=relayed.pid)
        relayed.wait_for("pool.deployed")
        until(lambda: bool(told_on(kept)["pid"] != before["pid"]))
        after = told_on(kept)
        assert {**after, "pid": 0} == {**before, "pid": 0}
        assert told_on(silent, line() + REQUEST) == after
        assert told_on(torn, line()[9:] + REQUEST)["REMOTE_ADDR"] == "192.0.2.1"
        gone.shutdown(socket.SHUT_WR)
        assert gone.recv(1) == b""


def test_a_header_comes_before_tls(tmp_path: Path) -> None:
    (tmp_path / "sample.py").write_text("import os\n" + APP)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    flags = ("--cert", "adhoc", "--proxy-protocol", "--trusted-proxies", PROXY, "--max-workers", "1")
    with LiveServer.of("sample:told", *flags, cwd=tmp_path) as server:
        with connect(server) as plain:
            plain.sendall(line())
            with context.wrap_socket(plain) as client:
                told = told_on(client)
        assert (told["REMOTE_ADDR"], told["prefork.peer"], told["wsgi.url_scheme"]) == ("192.0.2.1", PROXY, "https")
        with connect(server, CLIENT) as plain, context.wrap_socket(plain) as client:
            assert told_on(client)["REMOTE_ADDR"] == CLIENT
        with connect(server) as plain, pytest.raises((ssl.SSLError, ConnectionError)):
            context.wrap_socket(plain)
        server.wait_for("request.rejected", reason="no PROXY header")


def test_a_proxy_behind_a_unix_socket_speaks_for_the_client(tmp_path: Path) -> None:
    (tmp_path / "sample.py").write_text("import os\n" + APP)
    path = str(tmp_path / "shop.sock")
    with (
        LiveServer.of("sample:told", f"--bind=unix:{path}", "--max-workers", "1", cwd=tmp_path),
        socket.socket(socket.AF_UNIX) as client,
    ):
        client.settimeout(PATIENCE)
        client.connect(path)
        told = told_on(client, REQUEST.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n"))
    assert (told["REMOTE_ADDR"], told["prefork.peer"]) == ("192.0.2.7", "")


# Kept connections.


def loads(stack: ExitStack, port: int, folder: Path) -> list[tuple[Proxy, subprocess.Popen[str]]]:
    """Put both proxies in front of a server, and clients in front of them, which ask until they are told to stop."""
    if shutil.which("wrk") is None:
        if "CI" in os.environ:
            pytest.fail("wrk is not installed")
        pytest.skip("wrk is not installed")
    found = []
    for name in ("nginx", "haproxy"):
        (folder / name).mkdir()
        proxy = stack.enter_context(Proxy(name, port, folder / name))
        command = ["wrk", "-t1", "-c8", f"-d{PATIENCE:g}s", "--timeout", "10s", f"http://{PROXY}:{proxy.port}/"]
        found.append((proxy, subprocess.Popen(command, stdout=subprocess.PIPE, text=True)))
    return found


def assert_all_answered(clients: list[tuple[Proxy, subprocess.Popen[str]]]) -> None:
    for _, client in clients:
        client.send_signal(signal.SIGINT)
    for proxy, client in clients:
        said, _ = client.communicate(timeout=PATIENCE)
        assert int(re.findall(r"(\d+) requests in", said)[0]) > 100
        assert "Non-2xx" not in said
        assert "Socket errors" not in said
        assert proxy.errors() == []


def test_recycles_and_deploys_are_no_error_for_a_proxy_that_keeps_connections(tmp_path: Path) -> None:
    (tmp_path / "sample.py").write_text("import os\n" + APP)
    flags = ("--max-workers", "2", "--max-reqs-per-child", "20")
    with LiveServer.of("sample:told", *flags, cwd=tmp_path) as server, ExitStack() as stack:
        clients = loads(stack, server.address[1], tmp_path)
        server.wait_for("worker.exited", count=4)
        server.send(signal.SIGUSR2, to=server.pid)
        server.wait_for("pool.recycled")
        server.send(signal.SIGHUP, to=server.pid)
        server.wait_for("pool.deployed")
        server.wait_for("pool.stopped")
        assert_all_answered(clients)


def test_a_new_generation_under_start_server_is_no_error_either(tmp_path: Path) -> None:
    program = shutil.which("start_server")
    if program is None:
        if "CI" in os.environ:
            pytest.fail("start_server is not installed")
        pytest.skip("start_server is not installed")
    (tmp_path / "sample.py").write_text("import os\n" + APP)
    port = free_port()
    command = [program, f"--port={PROXY}:{port}", "--interval=1", "--", sys.executable, "-m", "prefork", "sample:told"]
    flags = ["--max-workers", "2", "--max-reqs-per-child", "20"]
    with LiveServer(*command, *flags, cwd=tmp_path) as server, ExitStack() as stack:
        clients = loads(stack, port, tmp_path)
        server.send(signal.SIGHUP, to=server.pid)
        server.wait_for("pool.ready", count=2)
        server.wait_for("pool.stopped")
        assert_all_answered(clients)
