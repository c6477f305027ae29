"""How much may all clients of a worker keep in its memory together?"""

from __future__ import annotations

import threading

SIZE = 64 * 1024 * 1024
"""How many bytes there is room for; beyond that bodies and answers wait on disk, however short."""


class Room:
    """Room for so many bytes."""

    __slots__ = ("_left", "_lock")

    def __init__(self, size: int) -> None:
        self._left = size
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Take so much, or return ``False`` if less is left."""
        with self._lock:
            if size > self._left:
                return False
            self._left -= size
            return True

    def give(self, size: int) -> None:
        """Give so much back; what is less than nothing is taken without asking."""
        with self._lock:
            self._left += size


shared = Room(SIZE)
"""The room of this process."""
