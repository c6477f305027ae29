"""Does a client send, or take, fast enough?"""

from __future__ import annotations


class Pace:
    """One transfer, which may neither stand still nor creep.

    It may stand still for ``timeout`` seconds, and in each ``timeout`` seconds it has to bring ``rate`` bytes a second.
    """

    __slots__ = ("_due", "_least", "_moved", "_moved_at", "_start", "_timeout")

    def __init__(self, timeout: float, rate: int, now: float, moved: int) -> None:
        self._timeout = timeout
        self._least = timeout * rate
        self._moved = self._start = moved
        self._moved_at = now
        self._due = now + timeout

    def look(self, now: float, moved: int) -> float | None:
        """Return when to look again if ``moved`` bytes have come so far; ``None`` if that is too slow."""
        if moved > self._moved:
            self._moved, self._moved_at = moved, now
        if now >= self._due:
            if moved - self._start < self._least:
                return None
            self._start, self._due = moved, now + self._timeout
        again = min(self._due, self._moved_at + self._timeout)
        return again if again > now else None
