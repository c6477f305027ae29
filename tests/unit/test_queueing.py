"""How long did a request wait for a thread, and does its client still wait for the answer?"""

from __future__ import annotations

import socket
import sys
import time

import pytest

from prefork.queueing import has_left, waited


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel does not tell")
def test_the_kernel_tells_how_long_bytes_have_been_here() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        sock, _ = listener.accept()
        with sock:
            before = time.monotonic()
            client.sendall(b"tea")
            assert sock.recv(3, socket.MSG_PEEK) == b"tea"
            seconds = waited(sock)
            assert seconds is not None
            assert 0 <= seconds <= time.monotonic() - before + 0.02  # a tick of the kernel and some


def test_of_a_unix_socket_nothing_is_known() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert waited(one) is None


def test_who_sends_no_more_has_left() -> None:
    one, other = socket.socketpair()
    with one:
        with other:
            assert not has_left(one)
            other.sendall(b"tea")
            assert not has_left(one)
        assert has_left(one)
    assert has_left(one)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel does not tell")
def test_who_leaves_behind_what_nobody_has_read_yet_has_left_as_well() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        sock, _ = listener.accept()
        with sock:
            client.sendall(b"tea")
            client.shutdown(socket.SHUT_WR)
            assert sock.recv(4, socket.MSG_PEEK | socket.MSG_WAITALL) == b"tea"
            assert has_left(sock)
