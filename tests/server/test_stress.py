"""Does every client get its own answers, whole, once and in order, whatever the others do?"""

from __future__ import annotations

import random
import signal
import socket
import threading
from collections import Counter
from http.client import HTTPResponse
from io import BytesIO
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from server_process import LiveServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

APP = """
class Answer:
    def __init__(self, body):
        self.pieces = iter([body])
    def __iter__(self):
        return self.pieces
    def close(self):
        time.sleep(0.003)

def app(environ, start_response):
    name, kind = environ["QUERY_STRING"], environ["PATH_INFO"][1:]
    size = int(environ.get("CONTENT_LENGTH") or 0)
    if size and environ["wsgi.input"].read(size) != name.encode() * (size // len(name)):
        raise AssertionError("the body of another request")
    body = name.encode() * 20
    fields = [("X-Name", name)]
    if kind == "slow":
        time.sleep(0.005)
    if kind in {"plain", "slow", "closing"}:
        fields.append(("Content-Length", str(len(body))))
    write = start_response("200 OK", fields)
    if kind == "stream":
        return (bytes([octet]) for octet in body)
    if kind == "closing":
        return Answer(body)
    if kind == "write":
        write(body[:5])
        return [body[5:]]
    if kind == "big":
        return [body * 2000]
    return [body]
"""
KINDS = ["plain"] * 6 + ["slow", "stream", "closing", "write", "big"]
names = count(1)


class Stream:
    """Lets ``HTTPResponse`` read one answer after the other from a connection."""

    def __init__(self, client: socket.socket) -> None:
        self.file = client.makefile("rb")

    def makefile(self, *_: Any) -> Any:
        return Unclosed(self.file)


class Unclosed:
    def __init__(self, file: Any) -> None:
        self.read, self.readline, self.readinto, self.flush = file.read, file.readline, file.readinto, BytesIO().flush

    def close(self) -> None:
        pass


def visit(server: LiveServer, seed: int, stop: threading.Event, tally: Counter[str]) -> None:
    chance = random.Random(seed)
    while not stop.is_set():
        with socket.create_connection(server.address, timeout=20) as client:
            stream: Any = Stream(client)
            for _ in range(chance.randrange(1, 20)):
                if not converse(client, stream, chance, tally):
                    break


def converse(client: socket.socket, stream: Any, chance: random.Random, tally: Counter[str]) -> bool:
    """Ask for one thing or several at once; return whether the connection stays open."""
    asked = []
    data = b""
    for _ in range(chance.choice([1, 1, 1, 3, 8])):
        name, kind = f"name{next(names)}-", chance.choice(KINDS)
        body = name.encode() * chance.choice([0, 0, 1, 10, 3000])
        method, length = (b"POST", b"Content-Length: %d\r\n" % len(body)) if body else (b"GET", b"")
        data += b"%b /%b?%b HTTP/1.1\r\nHost: a\r\n%b\r\n%b" % (method, kind.encode(), name.encode(), length, body)
        asked.append((name, kind))
    client.sendall(data)
    for name, kind in asked:
        response = HTTPResponse(stream)
        response.begin()
        received = response.read()
        expected = name.encode() * (40_000 if kind == "big" else 20)
        own = response.status == 200 and response.getheader("X-Name") == name and received == expected
        tally["own" if own else f"not own: {kind} {response.status}"] += 1
        if response.getheader("Connection") == "close":
            return False  # what was asked for behind it was not taken in, and may be asked for again
    return True


@pytest.mark.parametrize("life", ["in peace", "recycled", "replaced by signal"])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_nothing_is_lost_doubled_or_mixed_up(write_app: Callable[..., Path], threads: int, life: str) -> None:
    budget = 20 if life == "recycled" else 0
    options = {"max_workers": 2, "threads": threads, "max_reqs_per_child": budget}
    with LiveServer.pool("sample:app", app_dir=str(write_app(APP)), where=None, **options) as server:
        stop, tally = threading.Event(), Counter[str]()
        failures: list[BaseException] = []

        def run(seed: int) -> None:
            try:
                visit(server, seed, stop, tally)
            except BaseException as error:  # noqa: BLE001 - told below
                failures.append(error)

        visitors = [threading.Thread(target=run, args=(seed,)) for seed in range(12)]
        for visitor in visitors:
            visitor.start()
        for _ in range(6):
            stop.wait(0.25)
            if life == "replaced by signal":
                server.send(signal.SIGUSR2)
        stop.set()
        for visitor in visitors:
            visitor.join()
        assert not failures
        assert set(tally) == {"own"}
        assert tally["own"] > 100
        assert not server.all("request.failed")
