"""Does a task of asyncio's end in its own code, whenever it is cancelled, and keep its context to itself?"""

from __future__ import annotations

import asyncio
import os
import select
import threading
import time
from contextvars import ContextVar
from queue import Queue
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from prefork.asgi.on_asyncio import AsyncioBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

USER = ContextVar("USER", default="nobody")
EPOLL = pytest.mark.skipif(not hasattr(select, "epoll"), reason="each waits for itself without epoll")


class Task:
    """What a backend needs of a job."""

    handle: Any = None
    coroutine: Coroutine[Any, Any, None] | None = None

    def fail(self, error: BaseException) -> None:
        raise error


class Sleeper(Task):
    """Sleeps, and takes note of its end."""

    ended = False

    async def run(self) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            self.ended = True


class Step(Task):
    """Does one thing."""

    def __init__(self, step: Callable[[], object]) -> None:
        self._step = step

    async def run(self) -> None:
        self._step()


def test_job_that_is_cancelled_before_its_first_step_begins_and_ends() -> None:
    backend, job = AsyncioBackend(uvloop=False), Sleeper()

    async def main() -> None:
        backend.spawn(job)
        backend.cancel(job)
        await asyncio.wait([job.handle])

    backend.run(main)
    assert job.ended


@pytest.mark.parametrize("uvloop", [False, True])
@pytest.mark.parametrize("way", ["wake_at", pytest.param("share", marks=EPOLL), "soon", "spawn"])
def test_what_a_job_asks_for_is_done_in_the_servers_context(way: str, *, uvloop: bool) -> None:
    backend = AsyncioBackend(uvloop=uvloop)
    seen: list[str] = []
    sources = [os.pipe(), os.pipe()]

    async def main() -> None:
        done = backend.signal()

        def look() -> None:
            seen.append(USER.get())
            done.set()

        def turn() -> float:
            look()
            return float("inf")

        def ask() -> None:
            USER.set("alice")
            match way:
                case "wake_at":
                    backend.wake_at(time.monotonic())
                case "share":
                    assert backend.share(sources[1][0], look)
                    os.write(sources[1][1], b"a")
                case "soon":
                    backend.soon(look)
                case "spawn":
                    backend.spawn(Step(look))

        backend.watch(sources[0][0], turn)
        backend.spawn(Step(ask))
        while not seen:  # where tasks begin at once it may be over
            await done.wait()

    token = USER.set("the server")
    try:
        backend.run(main)
        assert set(seen) == {"the server"}
    finally:
        USER.reset(token)
        for descriptor in (end for source in sources for end in source):
            os.close(descriptor)


@pytest.mark.parametrize("uvloop", [False, True])
def test_thread_that_asks_something_of_a_loop_that_ends_is_answered(*, uvloop: bool) -> None:
    """Else it would wait for ever, and Python for it."""
    asked, outcome = threading.Event(), Queue[type[BaseException]]()

    async def never() -> None:
        asked.set()
        await asyncio.sleep(60)

    def ask() -> None:
        try:
            anyio.from_thread.run(never)
        except BaseException as error:
            outcome.put(type(error))
            raise

    async def main() -> None:
        job = asyncio.create_task(anyio.to_thread.run_sync(ask))
        await asyncio.to_thread(asked.wait)
        job.cancel()
        await asyncio.wait([job])

    AsyncioBackend(uvloop=uvloop).run(main)
    assert outcome.get(timeout=20).__name__ == "CancelledError"  # asyncio's, or that of concurrent.futures
