"""Which answers of new code are good enough to serve it?"""

from __future__ import annotations

import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from prefork.config import Config
from prefork.errors import BootError
from prefork.probe import ask, config_behind, open_door

if TYPE_CHECKING:
    import socket


def probe(answer: bytes, **options: Any) -> bytes:
    """Ask for what ``options`` say, where ``answer`` is given; return what was asked."""
    asked: list[bytes] = []

    def answer_one(listener: socket.socket) -> None:
        with closing(listener.accept()[0]) as client:
            asked.append(client.recv(4096))
            client.sendall(answer)

    with open_door() as door:
        (listener,) = door
        listener.socket.setblocking(True)
        thread = threading.Thread(target=answer_one, args=(listener.socket,))
        thread.start()
        try:
            ask(door, Config(**{"deploy_probe": "/", **options}), 20)
        finally:
            thread.join()
    return asked[0]


@pytest.mark.parametrize("status", [200, 302, 401, 404, 499])
def test_a_probe_takes_any_status_below_500(status: int) -> None:
    assert probe(b"HTTP/1.1 %d Such\r\n\r\n" % status).startswith(b"GET / HTTP/1.1\r\nHost: localhost\r\n")


def test_a_probe_takes_any_number_of_hints_before_its_answer() -> None:
    assert probe(b"HTTP/1.1 103 E\r\n\r\n" * 1500 + b"HTTP/1.1 200 OK\r\n\r\n")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 500 Sick\r\n\r\nno database", r"with 500: 'no database'"),
        (b"HTTP/1.1 503 Busy\r\n\r\n", "with 503"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 500 Sick\r\n\r\n", "with 500"),
        (b"hello", "with no status: 'hello'"),
        (b"HTTP/1.1 abc\r\n\r\n", "with no status"),
        (b"", "with no status"),
    ],
    ids=["500", "503", "hints and 500", "garbage", "no number", "nothing"],
)
def test_a_probe_that_is_not_answered_well_fails(answer: bytes, told: str) -> None:
    with pytest.raises(BootError, match=told) as caught:
        probe(answer)
    assert caught.value.code == "PF422"


def test_an_answer_of_400_fails_the_probe_and_the_host_is_hinted_at() -> None:
    with pytest.raises(BootError, match=r"with 400: .*a URL with one that it does"):
        probe(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.mark.parametrize(
    ("url", "fields"),
    [
        ("http://shop.example/a?b", b"GET /a?b HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n"),
        (
            "https://shop.example",
            b"GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\nX-Forwarded-Proto: https\r\n\r\n",
        ),
    ],
)
def test_a_url_names_the_host_and_the_scheme(url: str, fields: bytes) -> None:
    assert probe(b"HTTP/1.1 200 OK\r\n\r\n", deploy_probe=url) == fields


def test_where_tls_is_spoken_the_probe_asks_by_https() -> None:
    assert b"X-Forwarded-Proto: https" in probe(b"HTTP/1.1 200 OK\r\n\r\n", cert="adhoc")


def test_who_probes_is_believed_and_needs_no_header_in_front() -> None:
    config = config_behind(Config(proxy_protocol=True, trusted_proxies=("none",), forwarded_headers=("forwarded",)))
    assert not config.proxy_protocol
    assert (config.trusted_proxies, config.forwarded_headers) == (("unix",), ("x-forwarded-proto",))
