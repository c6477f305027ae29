"""Where does an answer wait for a slow client?

In memory first, then in a temporary file, so that the thread that made it is free; where no file can be written, in
memory again, and then the thread has to wait as well. What is to be sent from a file is not read at all: the kernel sends it.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections import deque
from contextlib import nullcontext, suppress
from fcntl import ioctl
from struct import Struct
from termios import TIOCOUTQ
from typing import IO, TYPE_CHECKING

from prefork.room import Room, shared

if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from prefork.pace import Pace

MEMORY = 1024 * 1024
"""How many unsent bytes are kept in memory for one client."""
SMALL = 4096
"""Up to how many bytes a piece is joined with the one before."""
JOINED = 65536
"""How long what is joined becomes before another one is begun."""
SPOOL = 256 * 1024 * 1024
"""How many unsent bytes are kept at all, for as long as files can be written."""
FILE = 16 * 1024 * 1024
"""How long one temporary file becomes; then another one is begun, and the room of the first is free once it is sent."""
_BLOCK = 1024 * 1024
_NO_LOCK = nullcontext()
_INT = Struct("@i")


class Part:
    """Bytes ``at`` to ``end`` of a file, open for itself alone; ``spool`` is the temporary file that they are of."""

    __slots__ = ("at", "end", "file", "spool")

    def __init__(self, file: int, at: int, end: int, spool: IO[bytes] | None) -> None:
        self.file = os.dup(file)
        self.at = at
        self.end = end
        self.spool = spool


class Outbox:
    """What was answered and not yet taken by the client, in order."""

    __slots__ = (
        "_diskless",
        "_items",
        "_memory",
        "_room",
        "_sent",
        "_spool",
        "_spool_dir",
        "failed",
        "most",
        "pace",
        "size",
        "then",
    )

    def __init__(self, spool_dir: str | None, room: Room = shared) -> None:
        self._spool_dir = spool_dir
        self._room = room
        self._items: deque[bytearray | memoryview | Part] = deque()
        self._memory = 0
        self._sent = 0
        self._diskless = False
        self._spool: IO[bytes] | None = None
        self.size = 0
        """Unsent bytes, those of files that the kernel sends not counted."""
        self.most = SPOOL
        """Beyond so many unsent bytes the application's thread is to wait for the client."""
        self.pace: Pace | None = None
        """How the client goes on with it."""
        self.failed: Callable[[OSError], object] | None = None
        """Called when a file cannot be written, once."""
        self.then: Callable[..., object] | None = None
        """Called at the end, with ``whole``, which says whether all was sent."""

    def __bool__(self) -> bool:
        return bool(self._items)

    def add(self, data: bytes | memoryview, lock: AbstractContextManager[object] = _NO_LOCK) -> None:
        """Keep ``data`` behind what is there.

        ``lock`` is for whoever flushes from another thread, which shall not have to wait for a disk.
        """
        with lock:
            self.size += len(data)
            if self._keep(data, anyhow=self._diskless):
                return
        try:
            spool, at = self._write(data)
            with lock:
                last = self._items[-1] if self._items else None
                if isinstance(last, Part) and last.spool is spool and last.end == at:
                    last.end += len(data)
                else:
                    self._items.append(Part(spool.fileno(), at, at + len(data), spool))
        except OSError as error:  # for want of a disk, or of a descriptor, then of what was written no part is sent
            self._close_spool()
            with lock:
                self._diskless, self.most = True, MEMORY
                self._keep(data, anyhow=True)
            if self.failed is not None:
                self.failed(error)

    def _write(self, data: bytes | memoryview) -> tuple[IO[bytes], int]:
        """Write ``data`` to a temporary file; return that, and where in it they begin."""
        if self._spool is None or self._spool.tell() >= FILE:
            self._close_spool()
            try:
                self._spool = tempfile.TemporaryFile(prefix="prefork-", dir=self._spool_dir)  # noqa: SIM115 - closed with the outbox
            except FileNotFoundError:
                # To tempfile no directory is usable where no descriptor is left either: then the system says so here.
                for end in os.pipe():
                    os.close(end)
                raise
        at = self._spool.tell()
        self._spool.write(data)
        self._spool.flush()
        return self._spool, at

    def _keep(self, data: bytes | memoryview, *, anyhow: bool) -> bool:
        """Keep ``data`` in memory, if there is room for it or ``anyhow``."""
        # Small pieces are joined: each for itself takes up many times its size.
        item = memoryview(data) if len(data) > SMALL else bytearray(data)
        last = self._items[-1] if self._items else None
        if anyhow:
            self._room.give(-_held_by(item))
        elif not ((self._memory + len(data) <= MEMORY or last is None) and self._room.take(_held_by(item))):
            return False
        self._memory += len(data)
        if isinstance(last, bytearray) and len(last) <= JOINED and isinstance(item, bytearray):
            last += item
        else:
            self._items.append(item)
        return True

    def add_file(self, file: int, offset: int, size: int) -> None:
        """Keep a part of a file, which may be closed afterwards."""
        if size:
            self._items.append(Part(file, offset, offset + size, None))

    def _add_first(self, data: bytes) -> None:
        """Keep ``data`` in memory, before what is there."""
        self.size += len(data)
        self._memory += len(data)
        self._room.give(-len(data))
        self._items.appendleft(memoryview(data))

    def flush(self, sock: _socket.socket, most: float = math.inf) -> int:
        """Send what the client takes now, and no more if that was ``most``; return how much.

        Raises ``OSError`` once it is gone.
        """
        total = 0
        try:
            while self._items and total < most:
                sent = self._send(sock, self._items[0])
                total += sent
                self._sent += sent  # at once: another thread may ask how it goes on
        except BlockingIOError:
            pass
        return total

    def taken(self, sock: _socket.socket) -> int:
        """Return how many bytes the client has taken, give or take what was on its way when the outbox was made.

        What still lies in the kernel is not taken: of that a client may leave some MB for as long as it likes.
        """
        return self._sent - unsent(sock)

    def _send(self, sock: _socket.socket, item: bytearray | memoryview | Part) -> int:
        if isinstance(item, Part):
            return self._send_part(sock, item)
        sent = sock.send(item)
        self._memory -= sent
        self.size -= sent
        if sent == len(item):
            self._items.popleft()
            self._room.give(_held_by(item))
        elif isinstance(item, memoryview):
            self._items[0] = item[sent:]
        else:
            self._room.give(sent)
            del item[:sent]
        return sent

    def _send_part(self, sock: _socket.socket, part: Part) -> int:
        sent = os.sendfile(sock.fileno(), part.file, part.at, min(part.end - part.at, _BLOCK))
        self._passed(part, sent)
        if part.spool is not None:
            self.size -= sent
        return sent

    def _passed(self, part: Part, size: int) -> None:
        """Take note that so much of the first item, a part of a file, was dealt with."""
        if not size:
            raise ConnectionAbortedError("the file became shorter while it was sent")
        part.at += size
        if part.at >= part.end:
            self._items.popleft()
            os.close(part.file)

    def close(self) -> None:
        """Throw away what is left."""
        if self.then is not None:
            self.then(whole=not self._items)
        for item in self._items:
            if isinstance(item, Part):
                os.close(item.file)
            else:
                self._room.give(_held_by(item))
        self._items.clear()
        self._close_spool()
        self.size = self._memory = 0

    def _close_spool(self) -> None:
        if self._spool is not None:
            # What a full disk refused is still in the buffer, and refused once more.
            with suppress(OSError):
                self._spool.close()
            self._spool = None


def unsent(sock: _socket.socket) -> int:
    """Return how many bytes lie in the kernel that the client's system has not taken; 0 where nobody tells."""
    try:
        return int(_INT.unpack(ioctl(sock, TIOCOUTQ, bytes(_INT.size)))[0])
    except OSError:
        return 0


def _held_by(item: bytearray | memoryview) -> int:
    """Return how many bytes are kept in memory: by a view, all of what it is a part of."""
    return memoryview(item.obj).nbytes if isinstance(item, memoryview) else len(item)
