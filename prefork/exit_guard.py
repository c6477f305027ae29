"""May a retiring worker exit yet?

The counterpart of ``psgix.exit_guard``: an application that goes on working after its answer tells the worker so, and
a worker that retires waits for it. ``environ["prefork.exit_guard"]`` is the worker's guard.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import RLock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, eq=False)
class Hold:
    """One reason not to exit yet: ``why`` in the application's words, ``since`` on the guard's clock in seconds.

    ``where`` is the stack of who took it, if the guard was asked to keep that.
    """

    why: str
    since: float
    where: str = ""


class ExitGuard:
    """Counts what must be finished before this process may exit. Safe in any thread and in async code.

    ``clock`` dates the holds, ``on_free`` is called, in the thread that ended it, whenever the last hold has ended, and
    ``locate`` whenever one is taken, for the stack.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = lambda: 0.0,
        on_free: Callable[[], object] | None = None,
        locate: Callable[[], str] = lambda: "",
    ) -> None:
        self._clock = clock
        self._locate = locate
        self._on_free = on_free
        # Reentrant, because a finalizer that ends a hold may run in the very thread that is in here.
        self._lock = RLock()
        self._begun: list[Hold] = []  # by begin(): any end() ends the oldest
        self._held: list[Hold] = []  # by hold(): each block ends its own

    @property
    def free(self) -> bool:
        """Whether nothing is held."""
        return not (self._begun or self._held)

    @property
    def holds(self) -> tuple[Hold, ...]:
        """What is held now, the oldest first."""
        with self._lock:
            return tuple(sorted((*self._begun, *self._held), key=lambda hold: hold.since))

    def begin(self, why: str = "") -> None:
        """Keep the worker alive until one matching ``end()``; ``why`` names the work in the log."""
        with self._lock:
            self._begun.append(Hold(why, self._clock(), self._locate()))

    def end(self) -> None:
        """End the oldest hold that ``begin()`` took.

        Raises ``RuntimeError`` if there is none: a surplus ``end()`` would let the worker exit under somebody's work.
        """
        with self._lock:
            if not self._begun:
                raise RuntimeError("exit guard: end() without begin()")
            del self._begun[0]
            free = self.free
        self._tell(free)

    def hold(self, why: str = "") -> Block:
        """Keep the worker alive for the length of a block, ``with`` or ``async with``."""
        return Block(self, why)

    def _take(self, why: str) -> Hold:
        hold = Hold(why, self._clock(), self._locate())
        with self._lock:
            self._held.append(hold)
        return hold

    def _give_back(self, hold: Hold) -> None:
        with self._lock:
            self._held.remove(hold)
            free = self.free
        self._tell(free)

    def _tell(self, free: bool) -> None:
        # Outside of the lock: the callback may look at the guard from another thread.
        if free and self._on_free is not None:
            self._on_free()


class Block:
    """A block of code for whose length the guard is held: usable once, in either kind of ``with``."""

    __slots__ = ("_guard", "_hold", "_why")

    def __init__(self, guard: ExitGuard, why: str) -> None:
        self._guard = guard
        self._why = why
        self._hold: Hold | None = None

    def __enter__(self) -> None:
        self._hold = self._guard._take(self._why)  # noqa: SLF001 - it is the guard's own

    def __exit__(self, *_: object) -> None:
        assert self._hold is not None
        self._guard._give_back(self._hold)  # noqa: SLF001

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()
