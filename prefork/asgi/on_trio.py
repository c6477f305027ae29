"""How are requests served on trio?"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import trio

from prefork.asgi.backends import LAST_CALL_S, failure_in

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from prefork.asgi.backends import Job


class TrioSignal:
    """A parking lot."""

    __slots__ = ("_lot",)

    def __init__(self) -> None:
        self._lot = trio.lowlevel.ParkingLot()

    async def wait(self) -> None:
        """Wait until ``set`` is called."""
        await self._lot.park()

    def set(self) -> None:
        """Wake all who wait now."""
        self._lot.unpark_all()


class _Clock(trio.abc.Clock):
    """The monotonic clock, as the driver has it. Once it is ``stopped`` a run ends that asks it, whoever is left in there.

    It has no other way out than an error of its scheduler's: tasks that do not heed their cancellation keep it for ever.
    """

    stopped = False

    def start_clock(self) -> None:
        """Do nothing."""

    def current_time(self) -> float:
        """Return the monotonic time."""
        if self.stopped:
            trio.lowlevel.current_task()  # raises if it is none who asks
        return time.monotonic()

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Return for how many seconds to sleep."""
        return deadline - self.current_time()


class TrioBackend:
    """A run of trio's."""

    cancelled: type[BaseException] = trio.Cancelled
    refused = False

    def __init__(self) -> None:
        self._clock = _Clock()
        self._error: BaseException | None = None
        self._left: BaseException | None = None
        self._jobs: set[Job] = set()
        self._job_ended = TrioSignal()
        self._nursery: trio.Nursery | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._alarm: trio.CancelScope | None = None

    def run(self, main: Callable[[], Awaitable[None]]) -> None:
        """Run ``main`` from a new loop's first turn to its last."""
        try:
            trio.run(self._root, main, clock=self._clock)
        except trio.TrioInternalError as error:
            if not self._clock.stopped:
                raise
            self._left = error  # it holds the tasks that are left, which would hear of it if they were collected
            if self._error is not None:
                raise self._error from None
        except BaseExceptionGroup as group:
            raise _alone(group) from None

    async def _root(self, main: Callable[[], Awaitable[None]]) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self._nursery:
            try:
                await main()
            except BaseException as error:
                self._error = error
                raise
            finally:
                self._nursery.cancel_scope.cancel()
                self._clock.stopped = bool(self._jobs)  # they have had their time in end_tasks()

    def signal(self) -> TrioSignal:
        """Return something to wait for."""
        return TrioSignal()

    def watch(self, descriptor: int, turn: Callable[[], float]) -> None:
        """Call ``turn`` when a descriptor is readable, and when the monotonic time is over that it returned."""
        assert self._nursery is not None
        self._nursery.start_soon(self._keep_turning, descriptor, turn)

    async def _keep_turning(self, descriptor: int, turn: Callable[[], float]) -> None:
        while True:
            due = turn()
            with trio.CancelScope(deadline=due) as self._alarm:
                await trio.lowlevel.wait_readable(descriptor)

    def share(self, descriptor: int, turn: Callable[[], None]) -> bool:  # noqa: ARG002 - as the others have it
        """Return ``False``: trio waits for a descriptor anew each time."""
        return False

    def unshare(self, descriptor: int) -> None:
        """Do nothing."""

    def wake_at(self, when: float) -> None:
        """Call ``turn`` at this monotonic time already."""
        if self._alarm is not None:
            self._alarm.deadline = min(self._alarm.deadline, when)

    def soon(self, callback: Callable[[], object]) -> None:
        """Call this in the loop's next turn; from any thread."""
        assert self._token is not None
        try:
            self._token.run_sync_soon(callback)
        except trio.RunFinishedError:
            return

    def spawn(self, job: Job) -> None:
        """Run a job as a task."""
        assert self._nursery is not None
        job.handle = trio.CancelScope()
        self._jobs.add(job)
        self._nursery.start_soon(self._run, job)

    async def _run(self, job: Job) -> None:
        try:
            with job.handle:
                coroutine = job.coroutine = job.run()
                await coroutine
        except BaseException as error:
            failure = failure_in(error, self.cancelled)
            if failure is not None:  # from trio itself: the application has left a scope open, say
                job.fail(failure)
            elif self._nursery is None or self._nursery.cancel_scope.cancel_called:
                raise
            # Else nobody has cancelled it: it is one that the application has kept, and told of by the job.
        finally:
            self._jobs.discard(job)
            self._job_ended.set()

    def cancel(self, job: Job) -> None:
        """Cancel a job's task."""
        job.handle.cancel()

    async def sleep(self, seconds: float) -> None:
        """Sleep."""
        await trio.sleep(seconds)

    async def end_tasks(self) -> tuple[list[str], int]:
        """Cancel the jobs that are left; trio lets no other task outlive the one that has started it."""
        left = [*self._jobs]
        for job in left:
            job.handle.cancel()
        with trio.move_on_after(LAST_CALL_S):
            while self._jobs:
                await self._job_ended.wait()
        return sorted(type(job).__qualname__ for job in left), len(self._jobs)

    def running(self) -> Any:
        """Return nothing: trio does not tell other threads."""
        return None


def _alone(group: BaseException) -> BaseException:
    """Return what a group has in it, if that is one."""
    while isinstance(group, BaseExceptionGroup) and len(group.exceptions) == 1:
        group = group.exceptions[0]
    return group
