"""Who was turned away, and how often is that recorded?

A server that has too much to do must not spend its time on telling so.
"""

from __future__ import annotations

from collections import Counter

QUEUED, CROWDED, GONE = "queue_timeout", "limit_concurrency", "client_gone"
"""Why somebody was turned away."""
INTERVAL = 1.0
"""How many seconds lie between two records."""


class TurnedAway:
    """Counts by reason who was turned away. One thread counts, another one tells."""

    __slots__ = ("_again", "_counted", "_told", "pending")

    def __init__(self) -> None:
        self._counted: Counter[str] = Counter()
        self._told: Counter[str] = Counter()
        self._again = 0.0
        self.pending = False
        """Whether there is something to tell."""

    def count(self, reason: str) -> None:
        """Count one."""
        self._counted[reason] += 1
        self.pending = True

    def tell(self, now: float) -> Counter[str]:
        """Return how many there were since the last time, nothing if that is less than ``INTERVAL`` ago."""
        if now < self._again or not self.pending:
            return Counter()
        self._again = now + INTERVAL
        self.pending = False  # before the look: what is counted meanwhile is told now or later
        news = self._counted.copy() - self._told
        self._told += news
        return news
