"""What if nobody reads the pipe that the log goes to?

Then it is full, and who writes waits, for ever if need be: a worker would serve nobody because of its log. So nobody waits
here for longer than ``PATIENCE_S``. Afterwards lines that there is no room for are counted and thrown away, until the reader
has taken some.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import time

PATIENCE_S = 1.0
"""How many seconds a reader who has fallen behind is waited for."""
IMPATIENCE_S = 10.0
"""For how many seconds one who was given up is not waited for again, although he may read once more."""


class Pipe:
    """A pipe, or the socket of a stream, of which not all may be read."""

    __slots__ = ("_behind", "_fd", "_impatient_until", "_looks", "_lost", "_opened", "_socket", "_torn")

    def __init__(self, fd: int, *, owned: bool) -> None:
        """``owned``: the descriptor is nobody else's, so that it may be made not to block."""
        self._socket = socket.socket(fileno=os.dup(fd)) if stat.S_ISSOCK(os.fstat(fd).st_mode) else None
        self._fd, self._opened, self._looks = fd, False, False
        if self._socket is None:
            if owned:
                os.set_blocking(fd, False)
            else:
                self._open_anew(fd)
        self._behind = False
        self._impatient_until = 0.0
        self._torn = False  # whether a line was begun and not ended
        self._lost = 0

    def _open_anew(self, fd: int) -> None:
        """Have the pipe to ourselves: whether a descriptor blocks is the same for all who have inherited it."""
        try:
            self._fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK)
            self._opened = True
        except OSError:  # no Linux, or it is that of another user
            self._looks = True

    def write(self, octets: bytes) -> None:
        """Write whole lines, or throw them away. Raises ``OSError`` if the reader is gone."""
        if self._torn:
            octets = b"\n" + octets
        left = octets
        while True:
            try:
                left = left[self._write(left) :]
            except BlockingIOError:
                if self._is_read():
                    continue
                self._lost += octets.count(b"\n") - self._torn
                self._torn |= len(left) < len(octets)
                return
            if not left:
                self._behind = self._torn = False
                return

    def _write(self, octets: bytes) -> int:
        if self._socket is not None:
            return self._socket.send(octets, socket.MSG_DONTWAIT)
        if self._looks and not select.select([], [self._fd], [], 0)[1]:
            raise BlockingIOError
        return os.write(self._fd, octets)

    def _is_read(self) -> bool:
        """Wait for the reader; return whether there is room again."""
        now = time.monotonic()
        if self._behind or now < self._impatient_until:
            return False
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        if poll.poll(PATIENCE_S * 1000):
            return True
        self._behind = True
        self._impatient_until = now + PATIENCE_S + IMPATIENCE_S
        return False

    def take_lost(self) -> int:
        """Return how many lines were thrown away since the last call; 0 while there is no room to tell of it."""
        if self._behind or not self._lost:
            return 0
        lost, self._lost = self._lost, 0
        return lost

    def close(self) -> None:
        """Give back what it has opened."""
        if self._socket is not None:
            self._socket.close()
        elif self._opened:
            os.close(self._fd)


def pipe_of(fd: int, *, owned: bool = False) -> Pipe | None:
    """Return a pipe for a descriptor, ``None`` if it leads to something that is not read by anybody, such as a file."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError:  # it is closed
        return None
    return Pipe(fd, owned=owned) if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else None
