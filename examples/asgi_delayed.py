"""A delayed answer and a job behind it: prefork asgi_delayed:app --app-dir examples

The example of Twiggy::Prefork as an ASGI application: the answer comes half a second after the question, and a job goes on
for another half a second. The worker answers others meanwhile, and does not leave before the job is done.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from prefork import ExitGuard


async def job(guard: ExitGuard) -> None:
    try:
        await asyncio.sleep(0.5)
        print("job done", flush=True)
    finally:
        guard.end()


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    guard: ExitGuard = scope["extensions"]["prefork.exit_guard"]
    guard.begin("job")
    task = asyncio.create_task(job(guard))
    await asyncio.sleep(0.5)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"delayed\n"})
    await task
