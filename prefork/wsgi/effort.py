"""Is a thread that stays with a request away, or at work?"""

from __future__ import annotations

ENOUGH = 0.01
"""For how many seconds of CPU a thread may work for one request before it is as good as away."""


class Effort:
    """The CPU time of whoever leads, looked at every ``tick`` seconds.

    A thread that waits for others leaves its CPU to them, and another should lead meanwhile. One that computes would only
    be held up by another: so it is with the first requests of a worker, which has pages to copy and caches to fill.
    """

    __slots__ = ("_least", "_spent", "_used")

    def __init__(self, tick: float) -> None:
        self._least = tick / 2
        self._used = 0.0
        self._spent = 0.0

    def look(self, used: float, *, anew: bool) -> bool:
        """Return whether it is at work, having ``used`` so many seconds of CPU in all.

        ``anew`` says that it came to the present request since the last look: nothing is known of that yet.
        """
        lately, self._used = used - self._used, used
        if anew:
            self._spent = 0.0
            return False
        self._spent += lately
        return lately > self._least and self._spent < ENOUGH
