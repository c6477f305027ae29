"""Is anything left of clients that stall or leave, at whatever stage? On each event loop.

    python tests/leavers.py --times 10000 uvloop trio

At each stage so many clients connect, come so far, and leave: one half in order, one half by a reset; or they stay, and
are given up. Before and after that the worker counts its tasks, its descriptors, its private memory, and what it keeps
of its clients.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import ssl
import struct
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trustme
from server_process import PATIENCE, LiveServer
from websocket_cases import TEXT, frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

APP = """
import asyncio, gc, json, os, sys
from collections import Counter
import anyio

FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "file")
OF_CLIENTS = {"Client", "TlsClient", "Call", "WebSocketCall", "Session", "Connection", "Outbox", "Pace"}

def tasks():
    if "trio" in sys.modules:
        import trio
        try:
            return trio.lowlevel.current_statistics().tasks_living
        except RuntimeError:
            pass
    return len(asyncio.all_tasks())

def kept():
    gc.collect()
    rollup = open("/proc/self/smaps_rollup").read().splitlines()
    return {
        "tasks": tasks(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "private_kib": sum(int(line.split()[1]) for line in rollup if line.startswith("Private_")),
        **Counter(name for kept in gc.get_objects() if (name := type(kept).__name__) in OF_CLIENTS),
    }

async def start(send):
    await send({"type": "http.response.start", "status": 200, "headers": []})

async def body(send, data=b"", more_body=False):
    await send({"type": "http.response.body", "body": data, "more_body": more_body})

async def until_gone(receive):
    while (await receive())["type"] != "http.disconnect":
        pass

async def websocket(path, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while path == "/flood":
        await send({"type": "websocket.send", "bytes": bytes(65536)})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    path = scope["path"]
    if scope["type"] == "websocket":
        await websocket(path, receive, send)
    elif path == "/wait":
        await until_gone(receive)
    elif path == "/flood":
        await start(send)
        while True:
            await body(send, b"x" * 65536, True)
    elif path == "/stream":
        await start(send)
        async with anyio.create_task_group() as group:
            async def drip():
                while True:
                    await body(send, b"tea", True)
                    await anyio.sleep(0.05)
            group.start_soon(drip)
            await until_gone(receive)
            group.cancel_scope.cancel()
    elif path == "/file":
        await start(send)
        await send({"type": "http.response.pathsend", "path": FILE})
    else:
        while (message := await receive()).get("more_body"):
            pass
        if message["type"] == "http.request":
            await start(send)
            await body(send, json.dumps(kept()).encode() if path == "/kept" else b"tea")
"""
LIMITS = {
    "head_timeout": 1.2,
    "body_timeout": 1.2,
    "write_timeout": 1.2,
    "keep_alive_timeout": 1.2,
    "websocket_ping_interval": 0.6,
    "websocket_ping_timeout": 0.6,
}
CROWD = 500
"""How many are there at once; the server has to have descriptors for them."""
HANDSHAKE = (
    b"Host: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
TRUSTING = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
TRUSTING.check_hostname, TRUSTING.verify_mode = False, ssl.CERT_NONE


@dataclass(frozen=True)
class Stage:
    """How far a client comes: what it says, whether it hears an answer begin, what it says then.

    ``ends`` says that the server gives up who stays; ``tls`` that all of it is said in TLS, if not ``raw``.
    """

    name: str
    says: bytes = b""
    hears: bool = False
    then: bytes = b""
    ends: bool = True
    tls: bool = False
    raw: bool = False


def get(path: str) -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode()


def opening(path: str) -> bytes:
    return b"GET %b HTTP/1.1\r\n" % path.encode() + HANDSHAKE


def client_hello() -> bytes:
    """Return the first message of a TLS handshake."""
    outgoing = ssl.MemoryBIO()
    try:
        TRUSTING.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError


POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n"
STAGES = [
    Stage("connected"),
    Stage("half a head", b"GET / HTTP/1.1\r\nHo"),
    Stage("half a body", POST + b"12345"),
    Stage("half a chunk", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n123"),
    Stage("no answer yet", get("/wait"), ends=False),
    Stage("answered, and idle", get("/"), hears=True),
    Stage("several sent ahead", get("/") * 5),
    Stage("in the answer", get("/flood"), hears=True),
    Stage("never reads", get("/flood")),
    Stage("in a file", get("/file"), hears=True),
    Stage("in a stream", get("/stream"), hears=True, ends=False),
    Stage("half a handshake", opening("/echo")[:-30]),
    Stage("a WebSocket", opening("/echo"), hears=True),
    Stage("half a frame", opening("/echo"), hears=True, then=frame(TEXT, b"x" * 1000)[:500]),
    Stage("half a message", opening("/echo"), hears=True, then=frame(TEXT, b"x" * 1000, fin=False)),
    Stage("in many messages", opening("/flood"), hears=True),
    Stage("half a TLS handshake", client_hello()[:100], tls=True, raw=True),
    Stage("a TLS handshake without its end", client_hello(), tls=True, raw=True),
    Stage("TLS, and half a head", b"GET / HTTP/1.1\r\nHo", tls=True),
    Stage("TLS, and no answer yet", get("/wait"), ends=False, tls=True),
    Stage("TLS, in the answer", get("/flood"), hears=True, tls=True),
    Stage("TLS, half a frame", opening("/echo"), hears=True, then=frame(TEXT, b"x" * 1000)[:500], tls=True),
]
Kept = dict[str, Any]
Address = tuple[str, int]


def connect(address: Address, stage: Stage) -> socket.socket:
    """Let one client come as far as its stage."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    client.settimeout(PATIENCE)
    client.connect(address)
    if stage.tls and not stage.raw:
        client = TRUSTING.wrap_socket(client)
    client.sendall(stage.says)
    if stage.hears:
        assert client.recv(1000)
        client.sendall(stage.then)
    return client


def leave(clients: list[socket.socket]) -> None:
    """Leave, one half of them by a reset."""
    for number, client in enumerate(clients):
        if number % 2:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()


def stay(clients: list[socket.socket]) -> None:
    """Say and read nothing, until the server gives each of them up."""
    ends = select.poll()
    for client in clients:
        ends.register(client, select.POLLRDHUP)
    left, deadline = len(clients), time.monotonic() + PATIENCE
    while left:
        for descriptor, _ in ends.poll(1000):
            ends.unregister(descriptor)
            left -= 1
        assert time.monotonic() < deadline, f"{left} were not given up"
    for client in clients:
        client.close()


def send_crowds(
    address: Address, stages: Sequence[Stage], times: int, go: Callable[[list[socket.socket]], None]
) -> None:
    """Let so many clients come to each of these stages, many at once, and go."""
    while times:
        size = min(times, CROWD)
        go([connect(address, stage) for stage in stages for _ in range(size)])
        times -= size


def ask_what_is_kept(address: Address, *, tls: bool) -> Kept:
    """Ask the worker what it has, until nothing of that is of a client that has left a moment ago.

    By one connection: who asked and left would be among those, for the place of its deadline is kept until that has passed.
    """
    deadline = time.monotonic() + PATIENCE
    with connect(address, Stage("", tls=tls)) as client:
        while True:
            client.sendall(get("/kept"))
            kept: Kept = json.loads(client.recv(10_000).partition(b"\r\n\r\n")[2])
            if kept.get("Client", 0) + kept.get("TlsClient", 0) == 1 or time.monotonic() > deadline:
                return kept


def visits(server: LiveServer, times: int, *, at_once: bool = False) -> Iterator[tuple[str, Kept, Kept]]:
    """Let so many clients come to each stage, and leave, or stay; yield what the worker kept before and after that.

    To one stage after the other, or to all ``at_once``.
    """
    address, tls = server.address, server.url.startswith("https")
    stages = [stage for stage in STAGES if stage.tls is tls]
    for go in (leave, stay):
        those = [stage for stage in stages if stage.ends or go is leave]
        for group in [those] if at_once else [[stage] for stage in those]:
            # What is loaded or remembered once, and what so many need at the same time, is no leak.
            send_crowds(address, group, min(times, CROWD), go)
            before = ask_what_is_kept(address, tls=tls)
            send_crowds(address, group, times, go)
            names = "; ".join(stage.name for stage in group)
            yield f"{names}: {go.__name__}", before, ask_what_is_kept(address, tls=tls)


def served(folder: Path, backend: str, *, tls: bool) -> LiveServer:
    """Return a server of the application above, with one worker."""
    (folder / "sample.py").write_text(APP)
    (folder / "file").write_bytes(bytes(10_000_000))
    options: dict[str, Any] = {"max_workers": 1, "max_reqs_per_child": 0, "async_backend": backend, **LIMITS}
    if tls:
        options["cert"] = str(folder / "cert.pem")
        trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(options["cert"])
    return LiveServer.pool("sample:app", app_dir=str(folder), log_level="info", **options)


def grown(before: Kept, after: Kept) -> dict[str, int]:
    """Return what there is more of than before, memory left out."""
    return {name: more for name in after if name != "private_kib" and (more := after[name] - before.get(name, 0)) > 0}


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=10_000)
    parser.add_argument("backends", nargs="*", default=["asyncio", "uvloop", "trio"])
    arguments = parser.parse_args()
    leaks = 0
    for backend in arguments.backends:
        for tls in (False, True):
            with tempfile.TemporaryDirectory() as name, served(Path(name), backend, tls=tls) as server:
                for what, before, after in visits(server, arguments.times):
                    more = grown(before, after)
                    leaks += bool(more)
                    memory = f"private {before['private_kib']:,} to {after['private_kib']:,} KiB"
                    print(f"{backend}: {arguments.times:,} x {what}: {memory}, {more or 'nothing left'}", flush=True)
    return 1 if leaks else 0


if __name__ == "__main__":
    sys.exit(main())
