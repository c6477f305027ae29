"""What does a connection carry along, and what if the exchange is full, or somebody else's?"""

from __future__ import annotations

import os
import resource
import select
import socket
import struct
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, strategies as st

from prefork.handover import VERSION, Exchange, Ticket, decode, encode, read, sent_at

if TYPE_CHECKING:
    from collections.abc import Iterator

here = pytest.mark.skipif(not hasattr(socket, "SOCK_SEQPACKET"), reason="this system has no such sockets")

TICKETS = [
    Ticket("http", "127.0.0.1", "8000", ("127.0.0.1", "54321"), 12.5, 0),
    Ticket("http", "[::1]", "8000", ("fe80::1%eth0", "1"), 1e9, 2**40),
    Ticket("http", "localhost", "80", None, 0.0, 7),
    Ticket("http", "127.0.0.1", "8000", ("192.0.2.1", "4711"), 1.0, 3, proxy="10.0.0.1"),
    Ticket("http", "localhost", "80", None, 1.0, 3, proxy=""),
    Ticket("http", "127.0.0.1", "8000", ("10.0.0.1", "4711"), 1.0, 0, awaits_header=True),
    Ticket("http", "127.0.0.1", "8000", ("10.0.0.1", "4711"), 1.0, 3, unnamed=True),
]


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    made = Exchange.open()
    assert made is not None
    with made:
        yield made


@pytest.mark.parametrize("ticket", TICKETS)
def test_what_is_sent_is_understood(ticket: Ticket) -> None:
    message = encode(ticket, 3.25)
    assert decode(message) == ticket
    assert sent_at(message) == 3.25


def test_when_it_was_sent_is_read_in_every_version() -> None:
    message = bytes([VERSION + 1]) + encode(TICKETS[0], 3.25)[1:]
    with pytest.raises(ValueError, match=f"version {VERSION + 1}, not {VERSION}"):
        decode(message)
    assert sent_at(message) == 3.25
    assert sent_at(b"") == 0.0


@given(st.binary(max_size=80))
def test_what_is_no_ticket_is_told_apart(message: bytes) -> None:
    try:
        decode(message)
    except ValueError:
        return
    assert message[0] == VERSION


@pytest.mark.parametrize(
    ("way", "texts"),
    [
        (0, b"http"),
        (0, b"http\0a\080"),
        (0, b"http\0a\080\0\0peer"),
        (0, b"http\0a\080\0\0b\0001\0more"),
        (4, b"http\0a\080\0"),
    ],
)
def test_a_ticket_has_all_its_fields_and_no_more(way: int, texts: bytes) -> None:
    with pytest.raises(ValueError, match="malformed"):
        decode(struct.pack("!BddQB", VERSION, 1.0, 1.0, 0, way) + texts)


@pytest.mark.parametrize("deadline", [float("inf"), float("nan")])
def test_a_connection_without_an_end_is_refused(deadline: float) -> None:
    with pytest.raises(ValueError, match="malformed"):
        decode(encode(Ticket("http", "a", "80", None, deadline, 0), 1.0))


def test_an_unreadable_message_is_made_up_for_by_what_the_connection_says() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        accepted, peer = listener.accept()
        with accepted:
            ticket = read(b"?", accepted.fileno(), 9.0)
            port = listener.getsockname()[1]
            assert ticket == Ticket("http", "127.0.0.1", str(port), ("127.0.0.1", str(peer[1])), 9.0, 0)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            gone = read(b"?", accepted.fileno(), 9.0)
            assert gone.peer in {("", ""), ticket.peer}


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_what_is_made_up_for_an_ipv4_client_of_a_socket_for_both_families_has_its_ipv4_address() -> None:
    where = ("::ffff:127.0.0.1", 0)
    with socket.create_server(where, family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client, listener.accept()[0] as accepted:
            assert read(b"?", accepted.fileno(), 9.0).peer == ("127.0.0.1", str(client.getsockname()[1]))


def test_a_local_client_has_no_address() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert read(b"", one.fileno(), 9.0) == Ticket("http", "localhost", "80", None, 9.0, 0)


def test_what_is_no_connection_is_no_ticket_either() -> None:
    reader, writer = os.pipe()
    try:
        with pytest.raises(OSError, match=r"[Ss]ocket"):
            read(b"", reader, 9.0)
    finally:
        os.close(reader)
        os.close(writer)


@here
def test_connections_come_out_in_the_order_they_went_in(exchange: Exchange) -> None:
    pairs = [socket.socketpair() for _ in range(3)]
    for number, (mine, _) in enumerate(pairs):
        assert exchange.send(Ticket("http", "a", "80", None, 1.0, number), mine.fileno())
        mine.close()
    for number, (_, theirs) in enumerate(pairs):
        taken = exchange.take()
        assert taken is not None
        message, descriptor = taken
        assert decode(message).requests == number
        assert descriptor is not None
        assert not os.get_inheritable(descriptor)
        with socket.socket(fileno=descriptor) as arrived, theirs:
            theirs.send(b"hello")
            assert arrived.recv(10) == b"hello"
    assert exchange.take() is None


@here
def test_a_full_exchange_says_so_and_loses_nothing(exchange: Exchange) -> None:
    one, other = socket.socketpair()
    with one, other:
        sent = 0
        while exchange.send(TICKETS[0], one.fileno()):
            sent += 1
        assert sent > 100
        ready = select.poll()
        ready.register(exchange.descriptors[0], select.POLLOUT)
        assert not ready.poll(0)
        for _ in range(sent):
            taken = exchange.take()
            assert taken is not None
            assert taken[1] is not None
            os.close(taken[1])
        assert exchange.take() is None
        assert ready.poll(0)


def fill_up() -> list[int]:
    """Use up all descriptors of this process, of which there may be few more from now on."""
    highest = max(int(path.name) for path in Path("/dev/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    holes = []
    with suppress(OSError):
        while True:
            holes.append(os.dup(0))
    return holes


@here
def test_a_receiver_without_a_free_descriptor_leaves_the_message(exchange: Exchange) -> None:
    one, other = socket.socketpair()
    with one, other:
        assert exchange.send(TICKETS[0], one.fileno())
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        holes = fill_up()
        try:
            with pytest.raises(OSError, match="Too many open files"):
                exchange.take()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            for hole in holes:
                os.close(hole)
        taken = exchange.take()
        assert taken is not None
        assert taken[1] is not None
        os.close(taken[1])


@here
def test_who_has_sent_knows_whether_it_was_taken(exchange: Exchange) -> None:
    one, other = socket.socketpair()
    with one, other:
        assert exchange.taken(monotonic())
        exchange.send(TICKETS[0], one.fileno())
        mine = monotonic()
        exchange.send(TICKETS[0], one.fileno())  # somebody else's, behind it
        assert not exchange.taken(mine)
        taken = exchange.take()
        assert taken is not None
        assert taken[1] is not None
        os.close(taken[1])
        assert exchange.taken(mine)
        assert not exchange.taken(float("inf"))


@here
def test_the_next_generation_takes_what_the_last_one_sent(exchange: Exchange) -> None:
    one, other = socket.socketpair()
    with one, other, Exchange.inherited([os.dup(end) for end in exchange.descriptors]) as heirs:
        assert exchange.send(TICKETS[0], one.fileno())
        taken = heirs.take()
        assert taken is not None
        assert taken[1] is not None
        os.close(taken[1])


def test_a_system_without_such_sockets_has_no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "SOCK_SEQPACKET", raising=False)
    assert Exchange.open() is None
