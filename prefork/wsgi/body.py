"""Where does a request's body wait until it is complete?"""

from __future__ import annotations

import tempfile
from contextlib import suppress
from io import SEEK_END, BytesIO
from typing import IO, TYPE_CHECKING

from prefork.room import Room, shared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefork.http1.messages import Field

MEMORY = 256 * 1024
"""How much of a body is kept in memory, in bytes; more goes to a file without a name."""
SMALL = 16 * 1024
"""Up to how many bytes a body is kept in memory whatever the others keep there."""


class RequestBody:
    """A body that is being received: in memory while it is small, then in a temporary file in ``spool_dir``.

    ``add`` raises ``OSError`` if the disk is full.
    """

    __slots__ = ("_memory", "_room", "_spool_dir", "_taken", "file", "size", "trailers")

    def __init__(self, spool_dir: str | None, room: Room = shared) -> None:
        self._spool_dir = spool_dir
        self._room = room
        self._taken = 0  # of the room
        self._memory: BytesIO | None = None
        self.file: IO[bytes] | None = None
        self.size = 0
        self.trailers: Sequence[Field] = ()
        """The fields that stood behind it."""

    def add(self, data: bytes) -> None:
        """Keep the next piece."""
        self.size += len(data)
        if self.file is None and self.size <= MEMORY and self._has_room():
            # One buffer, and no list of pieces: those of a byte each would take up many times their size.
            if self._memory is None:
                self._memory = BytesIO(data)
                self._memory.seek(0, SEEK_END)
            else:
                self._memory.write(data)
            return
        if self.file is None:
            self.file = tempfile.TemporaryFile(prefix="prefork-", dir=self._spool_dir)  # noqa: SIM115 - lives as long as the request
            if self._memory is not None:
                self.file.write(self._memory.getvalue())
                self._leave_room()
        self.file.write(data)
        # Not later: what is still in Python's buffer when the disk is full would fail where nobody expects it.
        self.file.flush()

    def _has_room(self) -> bool:
        """Whether what there is may stay in memory. Small ones are not counted."""
        if self.size <= SMALL:
            return True
        if not self._room.take(self.size - self._taken):
            return False
        self._taken = self.size
        return True

    def _leave_room(self) -> None:
        self._memory = None
        if self._taken:
            self._room.give(self._taken)
            self._taken = 0

    def open(self) -> IO[bytes]:
        """Return the whole body, to be read from its start."""
        whole = self.file or self._memory or BytesIO()
        whole.seek(0)
        return whole

    def close(self) -> None:
        """Give back what it took."""
        self._leave_room()
        if self.file is not None:
            # What a full disk refused is still in the buffer, and refused once more.
            with suppress(OSError):
                self.file.close()
