"""How long did a request wait for a thread, and does its client still wait for the answer?

The kernel knows both, without any field that a proxy would have to add.
"""

from __future__ import annotations

import select
import socket
from struct import Struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import _socket

# linux/tcp.h: in struct tcp_info tcpi_last_data_recv, in milliseconds, begins at byte 52.
_LAST_DATA_RECV = Struct("=52xI")
_INFO: int | None = getattr(socket, "TCP_INFO", None)
_LEFT = getattr(select, "POLLRDHUP", 0)


def waited(sock: _socket.socket) -> float | None:
    """Return for how many seconds what the client sent last has been here; ``None`` where the kernel does not tell.

    To be asked before that is read. The kernel counts in ticks of its own, of 1 to 10 ms. It tells on Linux, for TCP.
    """
    if _INFO is None:
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, _INFO, _LAST_DATA_RECV.size)
    except OSError:  # a UNIX socket, or the client is gone
        return None
    return _LAST_DATA_RECV.unpack(info)[0] / 1000 if len(info) == _LAST_DATA_RECV.size else None


def has_left(sock: _socket.socket) -> bool:
    """Whether the client sends no more: it closed the connection, or its half of it, or was cut off.

    One that closes its half and still reads (RFC 9112 section 9.6 leaves that to it) looks like one that left.
    """
    poll = select.poll()
    try:
        poll.register(sock, _LEFT)
    except ValueError:  # closed on our side
        return True
    return bool(poll.poll(0))
