"""How are requests served on asyncio, or uvloop?"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import select
import sys
import time
from contextlib import suppress
from inspect import CO_COROUTINE
from typing import TYPE_CHECKING, Any

from prefork.asgi.backends import LAST_CALL_S

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from prefork.asgi.backends import Job

_NEVER = float("inf")
# A task that starts in place saves the loop a turn; it ends in place if its application never waits.
_EAGER: dict[str, Any] = {"eager_start": True} if sys.version_info >= (3, 12) else {}


class AsyncioSignal:
    """Futures, one for each who waits."""

    __slots__ = ("_loop", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[asyncio.Future[None]] = []

    async def wait(self) -> None:
        """Wait until ``set`` is called."""
        future = self._loop.create_future()
        self._waiting.append(future)
        try:
            await future
        except BaseException:  # who asks again and again how things are, and is cancelled each time
            with suppress(ValueError):
                self._waiting.remove(future)
            raise

    def set(self) -> None:
        """Wake all who wait now."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


class AsyncioBackend:
    """A loop of asyncio's, or uvloop's."""

    cancelled: type[BaseException] = asyncio.CancelledError
    refused = False

    def __init__(self, *, uvloop: bool) -> None:
        self._new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
        if uvloop:
            import uvloop as library

            self._new_loop = library.new_event_loop
        self._loop: Any = None
        self._context = contextvars.Context()
        self._left_to_tasks = False
        self._turn: Callable[[], float] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = _NEVER
        self._epoll: select.epoll | None = None
        self._shared: set[int] = set()
        self._watched: set[int] = set()
        self._stubborn: set[asyncio.Task[Any]] = set()

    def run(self, main: Callable[[], Awaitable[None]]) -> None:
        """Run ``main`` from a new loop's first turn to its last."""
        self._loop = loop = self._new_loop()
        # Whatever is to be called some day runs in this one: else it were that of the request whose task asked for it.
        self._context = contextvars.copy_context()
        self._epoll = _epoll_of(loop)
        asyncio.set_event_loop(loop)
        try:
            self._complete(main())
            self._turn_no_more()
            self._complete(loop.shutdown_asyncgens())
            self._complete(self._refuse())
        finally:
            self._turn_no_more()
            asyncio.set_event_loop(None)
            if self._epoll is not None:
                self._epoll.close()
            if self._left_to_tasks:
                gc.collect()  # a task that nobody has asked tells of its error when it is collected
            loop.close()

    def _complete(self, what: Awaitable[None]) -> None:
        """Run the loop until this is done. Who calls ``sys.exit()`` in another task meanwhile ends that one alone."""
        task = asyncio.ensure_future(what, loop=self._loop)
        while not task.done():
            try:
                self._loop.run_until_complete(task)
            except (SystemExit, KeyboardInterrupt) as error:
                self._leave_to_task(error)
        task.result()

    def _leave_to_task(self, error: BaseException) -> None:
        """Have it as with any other exception: a task keeps its own, for who awaits it, or to tell that nobody did."""
        trace = error.__traceback__
        while trace is not None and not trace.tb_frame.f_code.co_flags & CO_COROUTINE:
            trace = trace.tb_next
        if trace is None:
            self._loop.call_exception_handler({"message": "Exit in a callback", "exception": error})
        else:  # without the frames of the loop, which would keep the task
            error.with_traceback(trace)
            self._left_to_tasks = True

    def signal(self) -> AsyncioSignal:
        """Return something to wait for."""
        return AsyncioSignal(self._loop)

    def watch(self, descriptor: int, turn: Callable[[], float]) -> None:
        """Call ``turn`` when a descriptor is readable, and when the monotonic time is over that it returned."""
        self._turn = turn
        self._watched.add(descriptor)
        self._add_reader(descriptor, self._do_turn)

    def _add_reader(self, descriptor: int, callback: Callable[[], None]) -> None:
        # In a copy, for we may be within the context already, and it can be entered once.
        self._context.copy().run(self._loop.add_reader, descriptor, callback)

    def share(self, descriptor: int, turn: Callable[[], None]) -> bool:
        """Call ``turn`` when a descriptor is readable for which siblings wait too, and one of them is enough."""
        if self._epoll is None:
            return False
        self._shared.add(descriptor)

        def turn_and_look() -> None:
            turn()
            self._do_turn()

        self._add_reader(descriptor, turn_and_look)
        self._make_exclusive(descriptor)
        return True

    def _make_exclusive(self, descriptor: int) -> None:
        """Have the kernel wake one of the workers that wait, as no loop asks of it by itself."""
        if descriptor not in self._shared:
            return
        assert self._epoll is not None
        try:
            self._epoll.unregister(descriptor)
        except FileNotFoundError:  # uvloop registers it when it next waits
            self._loop.call_soon(self._make_exclusive, descriptor)
        else:
            self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLEXCLUSIVE)

    def unshare(self, descriptor: int) -> None:
        """Watch a shared descriptor no longer."""
        self._shared.discard(descriptor)
        self._loop.remove_reader(descriptor)

    def _do_turn(self) -> None:
        assert self._turn is not None
        due = self._turn()
        if due < self._alarm_at:
            self.wake_at(due)

    def wake_at(self, when: float) -> None:
        """Call ``turn`` at this monotonic time already."""
        if when < self._alarm_at:
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm_at = when
            delay = max(0.0, when - time.monotonic())
            self._alarm = self._loop.call_later(delay, self._ring, context=self._context)

    def _turn_no_more(self) -> None:
        """Leave the poller alone: who begins a call now would see it cancelled."""
        if self._alarm is not None:
            self._alarm.cancel()
        for descriptor in self._watched | self._shared:
            self._loop.remove_reader(descriptor)
        self._watched.clear()
        self._shared.clear()

    def _ring(self) -> None:
        self._alarm, self._alarm_at = None, _NEVER
        self._do_turn()

    def soon(self, callback: Callable[[], object]) -> None:
        """Call this in the loop's next turn; from any thread."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(callback, context=self._context)

    def spawn(self, job: Job) -> None:
        """Run a job as a task."""
        coroutine = job.coroutine = job.run()
        loop, context = self._loop, self._context.copy()
        if _EAGER and loop.get_task_factory() is None:
            task = asyncio.Task(coroutine, loop=loop, context=context, **_EAGER)
        else:  # a factory of the application's may not know of contexts
            task = context.run(loop.create_task, coroutine)
        job.handle = task

    def cancel(self, job: Job) -> None:
        """Cancel a job's task, behind its first step: one that has not begun would never come to its own end."""
        self._loop.call_soon(job.handle.cancel)

    async def sleep(self, seconds: float) -> None:
        """Sleep."""
        await asyncio.sleep(seconds)

    async def end_tasks(self) -> tuple[list[str], int]:
        """Cancel what the application has left running; return their names, and how many did not end."""
        left = asyncio.all_tasks(self._loop) - {asyncio.current_task(self._loop)}
        for task in left:
            task.cancel()
        if not left:
            return [], 0
        _, self._stubborn = await asyncio.wait(left, timeout=LAST_CALL_S)
        return sorted(_described(task) for task in left), len(self._stubborn)

    async def _refuse(self) -> None:
        """Cancel what threads still ask of the loop: they would wait for ever for what it leaves undone."""
        deadline = time.monotonic() + LAST_CALL_S
        done = self._stubborn | {asyncio.current_task(self._loop)}
        await asyncio.sleep(0)  # what they ask becomes a task in a turn
        while (asked := asyncio.all_tasks(self._loop) - done) and time.monotonic() < deadline:
            for task in asked:
                task.cancel()
            self.refused = True
            _, stubborn = await asyncio.wait(asked, timeout=deadline - time.monotonic())
            done |= stubborn

    def running(self) -> Any:
        """Return the coroutine of the task that the loop is at; from any thread."""
        task = asyncio.current_task(self._loop)
        return None if task is None else task.get_coro()


def _epoll_of(loop: Any) -> select.epoll | None:
    """Return the epoll that a loop waits in, if it can be had: neither library has a public way to it."""
    if not hasattr(select, "epoll"):
        return None
    if hasattr(loop, "_get_backend_id"):  # uvloop
        descriptor = loop._get_backend_id()  # noqa: SLF001
    else:
        selector = getattr(getattr(loop, "_selector", None), "_selector", None)
        if not isinstance(selector, select.epoll):
            return None
        descriptor = selector.fileno()
    return select.epoll.fromfd(os.dup(descriptor))


def _described(task: asyncio.Task[Any]) -> str:
    coroutine: Any = task.get_coro()
    return f"{task.get_name()}: {getattr(coroutine, '__qualname__', repr(coroutine))}"
