"""Where does a request's body wait until it is complete?"""

from __future__ import annotations

import tempfile
from contextlib import suppress
from io import BytesIO
from typing import IO

MEMORY = 256 * 1024
"""How much of a body is kept in memory, in bytes; more goes to a file without a name."""


class RequestBody:
    """A body that is being received: in memory while it is small, then in a temporary file in ``spool_dir``.

    ``add`` raises ``OSError`` if the disk is full.
    """

    __slots__ = ("_pieces", "_spool_dir", "file", "size")

    def __init__(self, spool_dir: str | None) -> None:
        self._spool_dir = spool_dir
        self._pieces: list[bytes] = []
        self.file: IO[bytes] | None = None
        self.size = 0

    def add(self, data: bytes) -> None:
        """Keep the next piece."""
        self.size += len(data)
        if self.file is None and self.size <= MEMORY:
            self._pieces.append(data)
            return
        if self.file is None:
            self.file = tempfile.TemporaryFile(prefix="prefork-", dir=self._spool_dir)  # noqa: SIM115 - lives as long as the request
            self.file.writelines(self._pieces)
            self._pieces.clear()
        self.file.write(data)
        # Not later: what is still in Python's buffer when the disk is full would fail where nobody expects it.
        self.file.flush()

    def open(self) -> IO[bytes]:
        """Return the whole body, to be read from its start."""
        if self.file is None:
            return BytesIO(b"".join(self._pieces))
        self.file.seek(0)
        return self.file

    def close(self) -> None:
        """Give the file back."""
        if self.file is not None:
            # What a full disk refused is still in the buffer, and refused once more.
            with suppress(OSError):
                self.file.close()
