"""What is left of a mob that does everything at once: sends ahead, reads half, says half, breaks TLS, resets, leaves?"""

from __future__ import annotations

import os
import random
import socket
import ssl
import struct
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import trustme
from server_process import LiveServer, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

APP = """
import tempfile

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/raise":
        raise LookupError("in vain")
    if path == "/sleep":
        time.sleep(0.05)
    if path == "/file":
        file = tempfile.TemporaryFile()
        file.truncate(300_000)
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](file)
    body = environ["wsgi.input"].read()
    start_response("200 OK", [])
    return [b"x" * 300_000] if path == "/big" else [body or b"tea"]
"""
REQUESTS = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /sleep HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /raise HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /file HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"HEAD /file HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\nhel",
    b"GET /\x01 HTTP/1.1\r\n\r\n",
    b"GET / HT",
]
LIMITS = {"head_timeout": 0.1, "body_timeout": 0.1, "write_timeout": 0.1, "keep_alive_timeout": 0.1}
MOB = 12
SECONDS = 1.5


class Rascal:
    """A client that comes again and again, and behaves badly by chance."""

    def __init__(self, address: tuple[str, int], tls: ssl.SSLContext | None, seed: int) -> None:
        self.address, self.tls, self.chance = address, tls, random.Random(seed)

    def come_until(self, end: float) -> None:
        while time.monotonic() < end:
            with suppress(OSError), socket.create_connection(self.address, timeout=0.5) as plain:
                if self.tls is None:
                    self.visit(plain, plain)
                else:
                    with self.tls.wrap_socket(plain.dup()) as client:
                        self.visit(client, plain)

    def visit(self, client: socket.socket, plain: socket.socket) -> None:
        data = b"".join(self.chance.choices(REQUESTS, k=self.chance.randint(1, 6)))
        while data:
            size = self.chance.choice([1, 7, 50, 1000, 10**6])
            client.sendall(data[:size])
            data = data[size:]
        self.chance.choice([self.leave, self.read_little, self.read_much, self.close_half, self.reset, self.break_tls])(
            client, plain
        )

    def leave(self, client: socket.socket, plain: socket.socket) -> None:
        pass

    def read_little(self, client: socket.socket, plain: socket.socket) -> None:
        client.recv(100)

    def read_much(self, client: socket.socket, plain: socket.socket) -> None:
        while client.recv(65536):
            pass

    def close_half(self, client: socket.socket, plain: socket.socket) -> None:
        plain.shutdown(socket.SHUT_WR)
        client.recv(100)
        if self.chance.random() < 0.5:
            time.sleep(0.2)
            self.reset(client, plain)

    def reset(self, client: socket.socket, plain: socket.socket) -> None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def break_tls(self, client: socket.socket, plain: socket.socket) -> None:
        plain.sendall(self.chance.randbytes(200))
        client.recv(1000)


def connections(server: LiveServer) -> list[Any]:
    """Return the connections of its workers."""
    found: list[Any] = []
    for pid in server.worker_pids:
        with suppress(psutil.Error):
            found += (each for each in psutil.Process(pid).net_connections("tcp") if each.raddr)
    return found


def serves(server: LiveServer, tls: ssl.SSLContext | None) -> bool:
    """Whether a request is answered, and not held up on a busy machine for longer than the mob may be."""
    with (
        suppress(OSError),
        socket.create_connection(server.address, timeout=5) as plain,
        plain if tls is None else tls.wrap_socket(plain) as client,
    ):
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return client.recv(100).startswith(b"HTTP/1.1 200 ")
    return False


@pytest.mark.over_both
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize(
    "options",
    [
        {"queue_timeout": 0.05, "limit_concurrency": 4},
        {"request_timeout": 0.03},
    ],
    ids=["few at once", "short requests"],
)
def test_nothing_is_left_of_a_mob_and_the_pool_serves_on(
    options: dict[str, Any], write_app: Callable[..., Path], *, tls: bool
) -> None:
    folder = write_app(APP)
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if tls else None
    if trusting is not None:
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        options = {**options, "cert": str(folder / "cert.pem")}
        trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(options["cert"])
    options = {"max_workers": 2, "threads": 3, "access_log": os.devnull, **LIMITS, **options}
    seed = random.randrange(2**32)
    print("seed", seed)
    with LiveServer.pool("sample:app", app_dir=str(folder), **options) as server:
        end = time.monotonic() + SECONDS
        mob = [
            threading.Thread(target=Rascal(server.address, trusting, seed + n).come_until, args=(end,))
            for n in range(MOB)
        ]
        for rascal in mob:
            rascal.start()
        for rascal in mob:
            rascal.join()
        until(lambda: not connections(server))
        until(lambda: serves(server, trusting))
        assert not [gone for gone in server.all("worker.exited") if gone["signal"] or gone["exit_code"]]
        assert server.stop() == 0
        assert not server.all("worker.killed")
