"""Who is answered when the pool stops?"""

from __future__ import annotations

import socket
import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from server_process import PATIENCE, LiveServer, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def ask_until_refused(address: tuple[str, int] | str, tally: Counter[str]) -> None:
    """Ask on one connection after the other, without a pause, and count what became of each."""
    while not tally["refused"]:
        with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as client:
            client.settimeout(PATIENCE)
            tally[ask(client, address)] += 1


def ask(client: socket.socket, address: tuple[str, int] | str) -> str:
    try:
        client.connect(address)
    except (ConnectionRefusedError, FileNotFoundError):
        return "refused"
    try:
        client.sendall(REQUEST)
        received = b"".join(iter(lambda: client.recv(4096), b""))
    except OSError as error:
        return type(error).__name__
    return "answered" if received.startswith(b"HTTP/1.1 200 OK") else f"got {received!r}"


def is_refused(address: tuple[str, int]) -> bool:
    with socket.socket() as client:
        client.settimeout(PATIENCE)
        return ask(client, address) == "refused"


@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_every_connection_that_was_let_in_is_answered_when_the_pool_stops_under_load(
    write_app: Callable[..., Path], tmp_path: Path, family: str
) -> None:
    path = str(tmp_path / "sock")
    bind = "127.0.0.1:0" if family == "tcp" else f"unix:{path}"
    flags = ("--app-dir", str(write_app()), "-w", "2", "--max-reqs-per-child", "0")
    for _ in range(4):
        with LiveServer.of("sample:app", f"--bind={bind}", *flags) as server:
            address = server.address if family == "tcp" else path
            tally: Counter[str] = Counter()
            clients = [threading.Thread(target=ask_until_refused, args=(address, tally)) for _ in range(16)]
            for client in clients:
                client.start()
            while tally["answered"] < 200:
                clients[0].join(0.01)
            assert server.stop() == 0
            for client in clients:
                client.join(PATIENCE)
        assert set(tally) == {"answered", "refused"}, tally


def test_a_kept_connection_is_answered_once_more_when_the_pool_stops(write_app: Callable[..., Path]) -> None:
    with LiveServer.of("sample:app", "--app-dir", str(write_app()), "-w", "1") as server:
        request = REQUEST.replace(b"Connection: close\r\n", b"")
        with socket.create_connection(server.address, timeout=PATIENCE) as client:
            client.sendall(request)
            assert client.recv(4096).startswith(b"HTTP/1.1 200 OK")
            server.process.terminate()
            until(lambda: is_refused(server.address))
            client.sendall(request)
            answer = b"".join(iter(lambda: client.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b"Connection: close" in answer
        assert server.wait() == 0
