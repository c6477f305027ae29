"""Does a task of asyncio's end in its own code, whenever it is cancelled?"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from prefork.asgi.on_asyncio import AsyncioBackend

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Sleeper:
    """Sleeps, and takes note of its end."""

    handle: Any = None
    coroutine: Coroutine[Any, Any, None] | None = None
    ended = False

    async def run(self) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            self.ended = True


def test_job_that_is_cancelled_before_its_first_step_begins_and_ends() -> None:
    backend, job = AsyncioBackend(uvloop=False), Sleeper()

    async def main() -> None:
        backend.spawn(job)
        backend.cancel(job)
        await asyncio.wait([job.handle])

    backend.run(main)
    assert job.ended
