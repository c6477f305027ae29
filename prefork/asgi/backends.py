"""On which event loop are requests served, and what does a driver need of it?

An event loop is asked for little: to call the driver when its poller has something, to run a task for each request, to let
one wait for another. So each loop serves the same connections, with the same code, and none of its streams are used.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

LAST_CALL_S = 1.0
"""How long tasks that are cancelled when the loop ends have to end themselves, in seconds."""


class Signal(Protocol):
    """What tasks wait for. Used in the loop's thread only."""

    async def wait(self) -> None:
        """Wait until ``set`` is called."""

    def set(self) -> None:
        """Wake all who wait now."""


class Job(Protocol):
    """What runs as a task: ``run`` is called once; ``handle`` and ``coroutine`` are the backend's."""

    handle: Any
    coroutine: Coroutine[Any, Any, None] | None

    async def run(self) -> None:
        """Do what is to be done. Raises nothing but the loop's own cancellation."""

    def fail(self, error: BaseException) -> None:
        """Take note of what the loop finds wrong with the task when it has ended."""


class Backend(Protocol):
    """An event loop that runs in the main thread. All but ``soon`` is called there.

    ``cancelled`` is what it raises in a task that it cancels. ``refused`` says that a thread has asked something of the loop
    at its very end: what it asks next it may wait for for ever. Trio answers at once.
    """

    cancelled: type[BaseException]
    refused: bool

    def run(self, main: Callable[[], Awaitable[None]]) -> None:
        """Run ``main`` from a new loop's first turn to its last."""

    def signal(self) -> Signal:
        """Return something to wait for."""

    def watch(self, descriptor: int, turn: Callable[[], float]) -> None:
        """Call ``turn`` when a descriptor is readable, and when the monotonic time is over that it returned."""

    def share(self, descriptor: int, turn: Callable[[], None]) -> bool:
        """Call ``turn`` when a descriptor is readable for which siblings wait too, and one of them is enough.

        Return ``False`` if that cannot be had here.
        """

    def unshare(self, descriptor: int) -> None:
        """Watch a shared descriptor no longer."""

    def wake_at(self, when: float) -> None:
        """Call ``turn`` at this monotonic time already."""

    def soon(self, callback: Callable[[], object]) -> None:
        """Call this in the loop's next turn; from any thread."""

    def spawn(self, job: Job) -> None:
        """Run a job as a task."""

    def cancel(self, job: Job) -> None:
        """Cancel a job's task."""

    async def sleep(self, seconds: float) -> None:
        """Sleep."""

    async def end_tasks(self) -> tuple[list[str], int]:
        """Cancel what the application has left running; return their names, and how many did not end."""

    def running(self) -> Any:
        """Return the coroutine that the loop is at, if it can tell; from any thread."""


def failure_in(error: BaseException, cancelled: type[BaseException]) -> BaseException | None:
    """Return what of an error is the application's own failure, if it is more than how a loop ends a task."""
    ends = (cancelled, GeneratorExit)
    if isinstance(error, BaseExceptionGroup):
        return error.split(ends)[1]
    return None if isinstance(error, ends) else error


def new_backend(name: str) -> Backend:
    """Return the backend of this name, imported but not running: it may be made before a fork."""
    if name == "trio":
        from prefork.asgi.on_trio import TrioBackend

        return TrioBackend()
    from prefork.asgi.on_asyncio import AsyncioBackend

    return AsyncioBackend(uvloop=name == "uvloop" or (name == "auto" and find_spec("uvloop") is not None))
