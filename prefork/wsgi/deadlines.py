"""Whose time is up?

Costs nothing per request: a deadline is an attribute that is overwritten freely, and each connection stands in the heap
once, at a time that is not later than its deadline. What comes up too early is put back.
"""

from __future__ import annotations

import heapq
from itertools import count
from typing import Generic, Protocol, TypeVar


class Timed(Protocol):
    """Something that has a deadline.

    ``deadline`` is a time of the caller's clock, ``listed`` the time at which it stands in the heap, and ``gone`` says
    that it needs no deadline any more.
    """

    deadline: float
    listed: float
    gone: bool


T = TypeVar("T", bound=Timed)


class Deadlines(Generic[T]):
    """A heap of deadlines that are seldom reached."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._order = count()

    @property
    def next(self) -> float | None:
        """When to look again, ``None`` if there is nothing to wait for."""
        return self._heap[0][0] if self._heap else None

    def watch(self, timed: T) -> None:
        """See to it that ``timed`` comes up by its deadline. Needed at first, and when a deadline moves forward."""
        if timed.deadline < timed.listed:
            timed.listed = timed.deadline
            heapq.heappush(self._heap, (timed.deadline, next(self._order), timed))

    def expired(self, now: float) -> list[T]:
        """Return, and forget, all whose deadline has passed."""
        late = []
        while self._heap and self._heap[0][0] <= now:
            when, _, timed = heapq.heappop(self._heap)
            if timed.gone or when != timed.listed:
                continue
            timed.listed = float("inf")
            if timed.deadline <= now:
                late.append(timed)
            else:
                self.watch(timed)
        return late
