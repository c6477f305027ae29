"""Does the event loop turn?"""

from __future__ import annotations

import math


class LoopWatch:
    """Asks the loop for a sign of life while there is work, and counts for how long it gives none.

    ``threshold`` is for how many seconds that is well; 0: for ever. ``served`` is the watcher's own note.
    """

    __slots__ = ("_asked_at", "_told", "served", "threshold")

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.served = 0
        self._asked_at = math.inf
        self._told = False

    def look(self, now: float, *, turned: bool, busy: bool) -> tuple[float, float]:
        """Return for how long the loop has been silent, if that is to be told of, and how long to wait until the next look.

        ``turned`` says that the loop has answered since it was asked; then it is to be asked again, unless nothing is
        ``busy``: then the wait is endless.
        """
        if turned:
            self._told = False
            self._asked_at = now if busy else math.inf
            return 0.0, self.threshold / 2 if busy else math.inf
        silent = now - self._asked_at
        if silent < self.threshold:
            return 0.0, self.threshold - silent
        first, self._told = not self._told, True
        return (silent if first else 0.0), self.threshold
