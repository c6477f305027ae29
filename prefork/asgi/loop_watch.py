"""Does the event loop turn?"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Look:
    """What comes of a look at the loop.

    ``wait`` is for how many seconds to wait until the next one, infinity if there is nothing to see. ``ask`` says that
    the loop is to be asked for a sign of life now; ``silent`` for how long it has given none, if that is to be told of.
    """

    wait: float
    ask: bool = False
    silent: float = 0.0


class LoopWatch:
    """Asks the loop for a sign of life while there is work, and tells once of each time that it gives none.

    ``threshold`` is for how many seconds it may give none.
    """

    __slots__ = ("_asked_at", "_told", "_was_busy", "threshold")

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._was_busy = False
        self._asked_at = math.inf
        self._told = False

    def look(self, now: float, *, turned: bool, busy: bool) -> Look:
        """Look at the loop: whether it has ``turned`` since it was asked, and whether it is or was ``busy`` since then."""
        if not turned and self._asked_at < math.inf:
            return self._look_at_silence(now - self._asked_at)
        self._told = False
        # A request that is answered at once is not worth to wake the loop for.
        ask, self._was_busy = busy and self._was_busy, busy
        self._asked_at = now if ask else math.inf
        return Look(self.threshold / 2 if busy else math.inf, ask)

    def _look_at_silence(self, silent: float) -> Look:
        if silent < self.threshold:
            return Look(self.threshold - silent)
        first, self._told = not self._told, True
        return Look(self.threshold, silent=silent if first else 0.0)
