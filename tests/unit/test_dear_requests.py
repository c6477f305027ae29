"""What does a request cost that was made to be dear?

A pattern that may match in many ways tries them all: some of these kept a worker busy for 6 to 24 seconds.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from http1_oracle import PARSERS, Maker

from prefork.config import Limits
from prefork.http1.connection import Connection
from prefork.http1.forwarded import Belief, read_forwarding
from prefork.http1.heads import HeadReader
from prefork.http1.messages import Refused
from prefork.trust import TrustedProxies

if TYPE_CHECKING:
    from collections.abc import Callable

MUCH = 60_000
LIMITS = Limits(max_request_line_size=65536, max_head_size=65536)
HEADS = {
    "an address without an end": b"GET / HTTP/1.1\r\nHost: [" + b":" * MUCH,
    "one in the target": b"GET http://[" + b":" * MUCH + b" HTTP/1.1\r\nHost: a",
    "a name without an end": b"GET http://" + b"a" * MUCH + b"\\ HTTP/1.1\r\nHost: a",
    "white space within a value": b"GET / HTTP/1.1\r\nHost: a\r\nX: a" + b" " * MUCH + b"b\r\nY: c ",
    "white space before a colon": b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a" * MUCH + b" :b",
    "rows that are no fields": b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a\r\n" * (MUCH // 3),
    "empty words": b"GET / HTTP/1.1\r\nHost: a\r\nConnection: " + b"," * MUCH,
}


def cost(act: Callable[[], object]) -> float:
    """Return how many seconds of the processor's time it takes, whatever comes of it."""
    before = time.process_time()
    with suppress(Refused):
        act()
    return time.process_time() - before


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("head", HEADS)
def test_no_head_costs_the_square_of_its_size(parser: Maker, head: str) -> None:
    connection = Connection(HeadReader(LIMITS, parser()))
    connection.receive(HEADS[head] + b"\r\n\r\n")
    assert cost(connection.next_event) < 1


@pytest.mark.parametrize("line", [b"1" + b" " * 4000, b'1;a="' + b"\\" * 4000, b"1" + b" ; a = b" * 500 + b"\x01"])
def test_no_line_of_a_chunk_costs_the_square_of_its_size(line: bytes) -> None:
    connection = Connection(HeadReader(LIMITS, PARSERS[0]()))
    connection.receive(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    connection.next_event()
    connection.receive((line + b"\r\n") * 100)
    assert cost(connection.next_event) < 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"X-Forwarded-For", b":" * MUCH + b"x"),
        (b"X-Forwarded-For", b", " * (MUCH // 2)),
        (b"Forwarded", b'for="' + b"\\a" * (MUCH // 2)),
        (b"Forwarded", b"for=a;" * (MUCH // 6) + b"\x01"),
        (b"X-Forwarded-Prefix", b"/a" * (MUCH // 2) + b"\x01"),
        (b"X-Forwarded-Host", b"[" + b":" * MUCH),
    ],
)
def test_no_field_of_a_proxy_costs_the_square_of_its_size(name: bytes, value: bytes) -> None:
    belief = Belief(TrustedProxies(["127.0.0.1"]), frozenset({name.lower()}))
    assert cost(lambda: read_forwarding([(name, value)], belief)) < 1
