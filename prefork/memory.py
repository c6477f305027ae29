"""How much memory is a process's own?

What a worker shares with its siblings, the image that it was forked from, is in its resident size as well: replacing it
gives nothing of that back. So its private pages are counted, and what of them was swapped out.
"""

from __future__ import annotations

import math
from pathlib import Path
from time import thread_time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

TOLD = Path("/proc/self/smaps_rollup")
"""Where Linux tells, from 4.14 on."""
EACH = 1.0
"""How many seconds lie between two looks at least."""
SHARE = 100
"""So many times as much CPU as a look took, the next one waits: the kernel walks through all pages."""
_OWN = (b"Private_Clean:", b"Private_Dirty:", b"Swap:")


def private_memory(path: Path = TOLD) -> int:
    """Return the private memory of this process in bytes; 0 if the system does not tell."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(_OWN))


class Scales:
    """Weighs this process now and then while it works, and once after it; an idle one is left alone."""

    def __init__(
        self,
        clock: Callable[[], float],
        weigh: Callable[[], int] = private_memory,
        effort: Callable[[], float] = thread_time,
    ) -> None:
        # Of CPU, and not of time: a look that had to wait for the processor would put off the next one by a minute.
        self._clock, self._weigh, self._effort = clock, weigh, effort
        self._again_at = -math.inf
        self._stale = False
        self.private = 0
        """How many bytes it had at the last look."""

    def look(self, patience: int | None) -> int | None:
        """Weigh if it is time, before a sleep of ``patience`` milliseconds (``None``: there is no work any more).

        Returns how long the sleep may be instead.
        """
        now = self._clock()
        self._stale = self._stale or patience is not None
        if self._stale and now >= self._again_at:
            before = self._effort()
            self.private = self._weigh()
            self._stale = patience is not None
            self._again_at = now + max(EACH, SHARE * (self._effort() - before))
        if self._stale and patience is None:
            return math.ceil(1000 * (self._again_at - now))
        return patience
