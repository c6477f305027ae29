"""Where does an answer wait for a slow client?"""

from __future__ import annotations

import io
import os
import resource
import socket
import tempfile
import threading
import time
import tracemalloc
from contextlib import closing, suppress
from errno import EMFILE
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefork.outbox import MEMORY, SMALL, Outbox
from prefork.room import Room

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return the server's end of a connection and the client's."""
    server, client = socket.socketpair()
    with server, client:
        server.setblocking(False)
        yield server, client


def taken(outbox: Outbox, ends: tuple[socket.socket, socket.socket]) -> bytes:
    """Read as a client until nothing is left to be sent."""
    server, client = ends
    data = bytearray()
    while outbox:
        outbox.flush(server)
        data += client.recv(1 << 20)
    server.shutdown(socket.SHUT_WR)
    while more := client.recv(1 << 20):
        data += more
    return bytes(data)


def test_what_is_kept_in_memory_in_the_spool_and_in_files_goes_out_in_order(
    tmp_path: Path, ends: tuple[socket.socket, socket.socket]
) -> None:
    sent = tmp_path / "sent"
    sent.write_bytes(b"before-the file-behind")
    outbox = Outbox(str(tmp_path))
    pieces = [bytes([letter]) * (MEMORY // 2 + 1) for letter in b"abc"]
    for piece in pieces:
        outbox.add(piece)
    assert outbox.size == sum(map(len, pieces))
    with sent.open("rb") as file:
        outbox.add_file(file.fileno(), 7, 8)
    assert outbox.size == sum(map(len, pieces))
    outbox.add(b"the last")
    assert taken(outbox, ends) == b"".join(pieces) + b"the file" + b"the last"
    assert outbox.size == 0
    outbox.close()


def test_a_client_that_takes_nothing_costs_nothing_but_room(ends: tuple[socket.socket, socket.socket]) -> None:
    outbox = Outbox(None)
    outbox.add(bytes(MEMORY))
    first = outbox.flush(ends[0])
    assert 0 < first < MEMORY
    assert outbox.flush(ends[0]) == 0
    assert outbox.size == MEMORY - first
    outbox.close()
    assert (outbox.size, bool(outbox)) == (0, False)


@pytest.mark.usefixtures("leaves_nothing")
def test_what_is_thrown_away_leaves_no_descriptor(tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    sent.write_bytes(b"sent")
    outbox = Outbox(str(tmp_path))
    with sent.open("rb") as file:
        outbox.add_file(file.fileno(), 0, 4)
        outbox.add_file(file.fileno(), 4, 0)
    for _ in range(2):
        outbox.add(bytes(MEMORY))
    assert list(tmp_path.iterdir()) == [sent]
    outbox.close()


def test_a_file_that_becomes_shorter_ends_the_connection(
    tmp_path: Path, ends: tuple[socket.socket, socket.socket]
) -> None:
    sent = tmp_path / "sent"
    sent.write_bytes(b"")
    outbox = Outbox(None)
    with sent.open("rb") as file:
        outbox.add_file(file.fileno(), 0, 4)
    with pytest.raises(ConnectionAbortedError, match="shorter"):
        outbox.flush(ends[0])
    outbox.close()


def test_what_a_full_disk_refuses_is_kept_in_memory_in_its_place_and_told_of_once(
    tmp_path: Path, ends: tuple[socket.socket, socket.socket]
) -> None:
    told: list[OSError] = []
    outbox = Outbox(str(tmp_path))
    outbox.failed = told.append
    outbox.add(bytes(MEMORY))
    outbox.add(b"on disk")
    assert outbox.most > MEMORY
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # Python ignores SIGXFSZ, so a write fails
    try:
        outbox.add(b", in memory")
        outbox.add(b", and so on")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    outbox.add(b" for good")
    assert [error.strerror for error in told] == ["File too large"]
    assert outbox.most == MEMORY
    assert outbox.size == MEMORY + len(b"on disk, in memory, and so on for good")
    assert taken(outbox, ends) == bytes(MEMORY) + b"on disk, in memory, and so on for good"
    outbox.close()


@pytest.fixture
def exhaust() -> Iterator[Callable[[int], None]]:
    """Return what uses up all descriptors but so many."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []

    def exhaust(left: int) -> None:
        highest = max(int(path.name) for path in Path("/dev/fd").iterdir())
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 10, before[1]))
        with suppress(OSError):
            while True:
                taken.append(os.dup(1))
        for _ in range(left):
            os.close(taken.pop())

    yield exhaust
    for descriptor in taken:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("known", [False, True], ids=["no directory yet", "the directory is known"])
@pytest.mark.parametrize("left", [0, 1, 2])
def test_what_no_descriptor_is_left_for_is_kept_in_memory_in_its_place_and_the_reason_told(
    ends: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    exhaust: Callable[[int], None],
    left: int,
    *,
    known: bool,
) -> None:
    """A file needs one, and what is to be sent of it another one."""
    told: list[OSError] = []
    monkeypatch.setattr(tempfile, "tempdir", tempfile.gettempdir() if known else None)
    with closing(Outbox(None)) as outbox:
        outbox.failed = told.append
        outbox.add(bytes(MEMORY))
        exhaust(left)
        outbox.add(b"the first, ")
        outbox.add(b"the second")
        assert outbox.size == MEMORY + len(b"the first, the second")
        assert taken(outbox, ends) == bytes(MEMORY) + b"the first, the second"
        assert outbox.size == 0
    assert [(error.errno, error.strerror) for error in told] == [(EMFILE, os.strerror(EMFILE))] * (left < 2)


def test_a_client_that_always_lags_costs_no_more_room_than_it_lags(
    tmp_path: Path, ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefork.outbox.FILE", 1_000_000)
    server, client = ends
    outbox = Outbox(str(tmp_path))
    for _ in range(3):
        outbox.add(b"x" * MEMORY)
    for number in range(100):
        outbox.add(b"%d" % (number % 10) * 100_000)
        wanted = outbox.size - 2 * MEMORY
        while outbox.size > wanted and outbox.flush(server):
            client.recv(1 << 20)
        open_files = [path.stat() for path in Path("/dev/fd").iterdir() if path.exists() and path.is_file()]
        assert sum(file.st_blocks * 512 for file in open_files if file.st_nlink == 0) < 8_000_000
    outbox.close()


def test_who_takes_all_at_once_is_given_a_part_so_that_others_have_their_turn(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    outbox = Outbox(None)
    server, client = ends
    for _ in range(20):
        outbox.add(b"x" * 5000)
    assert outbox.flush(server, 12_500) == 15_000
    assert len(client.recv(100_000)) == 15_000
    assert outbox.flush(server) > 15_000
    outbox.close()


def test_what_lies_in_the_kernel_is_not_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        server, _ = listener.accept()
        with server:
            server.setblocking(False)
            outbox = Outbox(None)
            before = outbox.taken(server)
            outbox.add(b"x" * 40_000_000)
            outbox.flush(server)
            stuck = outbox.taken(server) - before
            assert 0 < stuck < 40_000_000 - outbox.size
            size = len(client.recv(1_000_000, socket.MSG_WAITALL))
            deadline = time.monotonic() + 10
            while outbox.taken(server) - before < stuck + size // 2:
                assert time.monotonic() < deadline
            outbox.close()


def test_what_all_clients_leave_is_in_memory_as_far_as_there_is_room_and_then_on_disk(
    tmp_path: Path, ends: tuple[socket.socket, socket.socket]
) -> None:
    size = 4 * SMALL
    room = Room(2 * size + 10)
    boxes = [Outbox(str(tmp_path / folder), room) for folder in ("missing", "missing", ".")]
    answer = b"a" * size
    boxes[0].add(memoryview(answer)[SMALL:])  # which keeps all of it in memory
    boxes[1].add(memoryview(answer)[-10:])  # which is copied
    boxes[1].add(b"b" * SMALL)
    boxes[1].add(b"c" * SMALL)
    boxes[2].add(answer)
    assert boxes[2].most > MEMORY
    boxes[0].add(answer)
    assert boxes[0].most == MEMORY  # it has no disk, and goes beyond the room
    boxes[2].add(b"d")
    assert taken(boxes[2], ends) == answer + b"d"
    for outbox in boxes:
        outbox.close()
    assert room.take(2 * size + 10)
    assert not room.take(1)


def test_small_pieces_go_out_in_order_and_take_up_little_more_than_their_size(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    room = Room(MEMORY)
    outbox = Outbox(None, room)
    pieces = [b"%d," % number for number in range(100_000)]
    tracemalloc.start()
    try:
        for piece in pieces:
            outbox.add(piece)
        assert tracemalloc.get_traced_memory()[1] < 2 * sum(map(len, pieces))
    finally:
        tracemalloc.stop()
    assert taken(outbox, ends) == b"".join(pieces)
    assert outbox.size == 0
    assert room.take(MEMORY)


def test_who_flushes_beside_it_waits_for_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    lock, writes = threading.Lock(), []

    class Slow(io.BytesIO):
        def write(self, data: Any) -> int:
            writes.append(lock.locked())
            return len(data)

        def fileno(self) -> int:
            return 1

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Slow())
    with closing(Outbox(None)) as outbox:
        outbox.add(bytes(MEMORY), lock)
        outbox.add(bytes(SMALL), lock)
    assert writes == [False]
    assert not lock.locked()
