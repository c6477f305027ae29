"""Whose time is up?

Costs nothing per request: a deadline is an attribute that is overwritten freely, and each connection stands in the heap
once, at a time that is not later than its deadline. What comes up too early is put back.
"""

from __future__ import annotations

import heapq
import threading
from itertools import count
from typing import Generic, Protocol, TypeVar


class Timed(Protocol):
    """Something that has a deadline.

    ``deadline`` is a time of the caller's clock, ``listed`` the time at which it stands in the heap, at first infinity.
    """

    deadline: float
    listed: float


T = TypeVar("T", bound=Timed)

_NEVER = float("inf")
_TOLERATED = 64


class Deadlines(Generic[T]):
    """A heap of deadlines that are seldom reached."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._order = count()
        self._stale = 0  # entries that mean nothing any more
        self._lock = threading.Lock()  # threads that are not the leader settle their clients themselves

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next(self) -> float | None:
        """When to look again, ``None`` if there is nothing to wait for."""
        return self._heap[0][0] if self._heap else None

    def watch(self, timed: T) -> None:
        """See to it that ``timed`` comes up by its deadline. Needed at first, and when a deadline moves forward."""
        with self._lock:
            self._list(timed)

    def _list(self, timed: T) -> None:
        if timed.deadline < timed.listed:
            self._outdate(timed)
            timed.listed = timed.deadline
            heapq.heappush(self._heap, (timed.deadline, next(self._order), timed))

    def drop(self, timed: T) -> None:
        """Forget one that is ``gone``: connections come faster than their deadlines."""
        with self._lock:
            self._outdate(timed)
            timed.listed = _NEVER
            if self._stale > _TOLERATED and 2 * self._stale > len(self._heap):
                self._heap = [entry for entry in self._heap if entry[0] == entry[2].listed]
                heapq.heapify(self._heap)
                self._stale = 0

    def _outdate(self, timed: T) -> None:
        if timed.listed != _NEVER:
            self._stale += 1

    def expired(self, now: float) -> list[T]:
        """Return, and forget, all whose deadline has passed."""
        late = []
        with self._lock:
            while self._heap and self._heap[0][0] <= now:
                when, _, timed = heapq.heappop(self._heap)
                if when != timed.listed:
                    self._stale -= 1
                    continue
                timed.listed = _NEVER
                if timed.deadline <= now:
                    late.append(timed)
                else:
                    self._list(timed)
        return late
