"""How does a connection change its process, and what does it carry along?

All workers of a pool, and those of its next generation, share one *exchange*: a pair of sockets. Who retires sends its
idle connections in at one end, and whoever has a thread free takes them out at the other.
"""

from __future__ import annotations

import math
import os
import select
import socket
import struct
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, Self

from prefork.addresses import UNIX_SERVER_NAME, bracketed
from prefork.trust import read_address

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

VERSION = 3
MESSAGE_LIMIT = 4096
"""How many bytes of a message are read: more than any has."""

# In each version to come a message begins so: its version, and when it was sent.
_START = struct.Struct("!Bd")
_NUMBERS = struct.Struct("!dQB")
_TEXTS = (4, 6)
_DIRECT, _RELAYED, _AWAITS_HEADER, _UNNAMED = range(4)
_DESCRIPTOR = struct.Struct("@i")


class Ticket(NamedTuple):
    """What the receiver of a connection cannot see by looking at it.

    ``scheme``, ``name`` and ``port`` are those of the listener it came through, ``peer`` the client's address and port,
    ``None`` where it has none. ``deadline`` is when its idle time ends, on the monotonic clock, which all processes of
    a machine share. ``requests`` were answered on it so far; 0: its client has said nothing yet. ``proxy`` is the address
    of the proxy whose PROXY header told the peer, empty if that came by a UNIX socket, ``None`` where there was no header;
    ``awaits_header`` says that it is still to come, ``unnamed`` that it named nobody.
    """

    scheme: str
    name: str
    port: str
    peer: tuple[str, str] | None
    deadline: float
    requests: int
    proxy: str | None = None
    awaits_header: bool = False
    unnamed: bool = False


def encode(ticket: Ticket, now: float) -> bytes:
    """Return the message that travels with a connection."""
    texts = (ticket.scheme, ticket.name, ticket.port, ticket.proxy or "", *(ticket.peer or ()))
    if ticket.awaits_header:
        way = _AWAITS_HEADER
    elif ticket.proxy is not None:
        way = _RELAYED
    else:
        way = _UNNAMED if ticket.unnamed else _DIRECT
    numbers = _NUMBERS.pack(ticket.deadline, ticket.requests, way)
    return _START.pack(VERSION, now) + numbers + "\0".join(texts).encode("utf-8", "surrogateescape")


def decode(message: bytes) -> Ticket:
    """Return the ticket of a message; raises ``ValueError`` if it is none, or of a version that is not known."""
    try:
        version, _ = _START.unpack_from(message)
        deadline, requests, way = _NUMBERS.unpack_from(message, _START.size)
    except struct.error:
        raise ValueError("not a ticket: too short") from None
    texts = message[_START.size + _NUMBERS.size :].decode("utf-8", "surrogateescape").split("\0")
    if version != VERSION:
        raise ValueError(f"a ticket of version {version}, not {VERSION}")
    if len(texts) not in _TEXTS or not math.isfinite(deadline) or way > _UNNAMED:
        raise ValueError("not a ticket: malformed")
    scheme, name, port, proxy, *peer = texts
    return Ticket(
        scheme,
        name,
        port,
        (peer[0], peer[1]) if peer else None,
        deadline,
        requests,
        proxy if way == _RELAYED else None,
        way == _AWAITS_HEADER,
        way == _UNNAMED,
    )


def read(message: bytes, descriptor: int, deadline: float) -> Ticket:
    """Return the ticket of a message; if it is of another version, what the connection says of itself, and ``deadline``.

    Raises ``OSError`` if the descriptor is no connection.
    """
    try:
        return decode(message)
    except ValueError:
        return _ticket_of(descriptor, deadline)


def _ticket_of(descriptor: int, deadline: float) -> Ticket:
    peer = None
    sock = socket.socket(fileno=descriptor)
    try:
        here = sock.getsockname()
        with suppress(OSError):  # the client is gone, which is found out soon enough
            peer = sock.getpeername()
    finally:
        sock.detach()
    if not isinstance(here, tuple):
        return Ticket("http", UNIX_SERVER_NAME, "80", None, deadline, 0)
    there = ("", "") if peer is None else (str(read_address(peer[0])), str(peer[1]))
    return Ticket("http", bracketed(here[0]), str(here[1]), there, deadline, 0)


def sent_at(message: bytes) -> float:
    """Return when a message was sent, whatever its version; 0.0 if it does not say."""
    return float(_START.unpack_from(message)[1]) if len(message) >= _START.size else 0.0


class Exchange:
    """The two ends, both of which every worker holds. Nothing blocks; messages come out in the order they went in."""

    def __init__(self, sending: socket.socket, receiving: socket.socket) -> None:
        for end in (sending, receiving):
            end.setblocking(False)
        self._sending, self._receiving = sending, receiving

    @classmethod
    def open(cls) -> Self | None:
        """Return a new one; ``None`` on a system that has no such sockets."""
        if not (hasattr(select, "epoll") and hasattr(socket, "SOCK_SEQPACKET")):
            return None
        return cls(*socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))

    @classmethod
    def inherited(cls, descriptors: Sequence[int]) -> Self:
        """Return the one whose ``descriptors`` came from an earlier generation."""
        sending, receiving = (socket.socket(fileno=descriptor) for descriptor in descriptors)
        return cls(sending, receiving)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def descriptors(self) -> tuple[int, int]:
        """Those of the sending and of the receiving end, to be passed on to a next generation."""
        return self._sending.fileno(), self._receiving.fileno()

    def send(self, ticket: Ticket, descriptor: int) -> bool:
        """Send a connection; return ``False`` if the exchange is full. The sender must close its own descriptor."""
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _DESCRIPTOR.pack(descriptor))]
        try:
            self._sending.sendmsg([encode(ticket, monotonic())], passed)
        except BlockingIOError:
            return False
        return True

    def take(self) -> tuple[bytes, int | None] | None:
        """Return the next message and its connection's descriptor, or ``None`` if there is nothing.

        Raises ``OSError`` if this process has no descriptor free: then the message stays for the siblings.
        """
        # The kernel throws away a descriptor for which the receiver has no number left.
        os.close(os.dup(self._receiving.fileno()))
        try:
            message, passed, _, _ = self._receiving.recvmsg(
                MESSAGE_LIMIT, socket.CMSG_SPACE(_DESCRIPTOR.size), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        return message, next((_DESCRIPTOR.unpack_from(data)[0] for _, _, data in passed), None)

    def taken(self, since: float) -> bool:
        """Whether everything that was sent before the time ``since`` has been taken by somebody."""
        try:
            first = self._receiving.recv(MESSAGE_LIMIT, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        return sent_at(first) > since

    def close(self) -> None:
        """Close both ends of this process."""
        self._sending.close()
        self._receiving.close()
