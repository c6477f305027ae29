"""Has the application started, and has it ended?

ASGI's lifespan: one task for the length of the worker's life, told when it begins and when it is over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefork.asgi.backends import failure_in
from prefork.asgi.gateway import VERSIONS
from prefork.errors import AppFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping

    from prefork.asgi.backends import Backend
    from prefork.records import Records


_LAST_TURNS = 10
"""How often it is let run behind its last word, to leave the blocks that it is in, before it is cancelled."""


class Lifespan:
    """The lifespan of an application, from ``startup`` to ``shutdown``.

    ``state`` is what the application has put there for its requests, ``None`` if it knows no lifespan.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], backend: Backend, records: Records) -> None:
        self._app = app
        self._backend = backend
        self._records = records
        self._changed = backend.signal()
        self._messages: list[str] = []  # what the application has yet to be told
        self._asked = 0  # how often the application has asked for a message
        self._ending = False
        self._answers: dict[str, Mapping[str, Any]] = {}
        self._over = False
        self._error: BaseException | None = None
        self._state: dict[str, Any] = {}
        self.handle: Any = None
        self.coroutine: Coroutine[Any, Any, None] | None = None

    @property
    def state(self) -> dict[str, Any] | None:
        """What the application has left for its requests."""
        return self._state if "startup.complete" in self._answers else None

    async def startup(self) -> None:
        """Start the application.

        Raises ``AppFailed`` if it says that it has failed. If it raises instead it is one without a lifespan, and is
        served nevertheless, as the specification demands; after it has taken the message, that is recorded.
        """
        self._messages.append("startup")
        self._backend.spawn(self)
        answer = await self._answer("startup")
        if answer is not None and answer["type"] == "lifespan.startup.failed":
            while not (self._over or self._asked > 1):  # it may show why, or go on listening
                await self._changed.wait()
            text = str(answer.get("message", "")).strip()
            reason = text.rsplit("\n", 1)[-1] or (repr(self._error) if self._error else "it does not say why")
            raise AppFailed(
                "PF213", f"the application's startup failed: {reason}", "see the traceback"
            ) from self._error
        if answer is None and self._error is not None and self._asked:
            self._records.emit("lifespan.failed", phase="startup", exc_info=self._error)

    async def shutdown(self) -> None:
        """Let the application end, if it has started."""
        if self.state is None or self._over:
            return
        self._ending = True
        self._messages.append("shutdown")
        self._changed.set()
        answer = await self._answer("shutdown")
        if answer is not None and answer["type"] == "lifespan.shutdown.complete":
            for _ in range(_LAST_TURNS):
                if not self._over:
                    await self._backend.sleep(0)
            return
        error = self._error or RuntimeError(str((answer or {}).get("message") or "it ended without an answer"))
        self._records.emit("lifespan.failed", phase="shutdown", exc_info=error)

    async def _answer(self, phase: str) -> Mapping[str, Any] | None:
        """Return what the application answers; ``None`` if it ends without."""
        while True:
            for outcome in ("complete", "failed"):
                if (answer := self._answers.get(f"{phase}.{outcome}")) is not None:
                    return answer
            if self._over:
                return None
            await self._changed.wait()

    # The task.

    async def run(self) -> None:
        """Call the application."""
        scope = {"type": "lifespan", "asgi": VERSIONS.copy(), "state": self._state}
        try:
            await self._app(scope, self._receive, self._send)
        except BaseException as error:
            failure = failure_in(error, self._backend.cancelled)
            if failure is None:
                raise
            self.fail(failure)
        finally:
            self._over = True
            self._changed.set()

    def fail(self, error: BaseException) -> None:
        """Take note that the application has raised."""
        self._error = error
        if self.state is not None and not self._ending:
            self._records.emit("lifespan.failed", phase="serving", exc_info=error)

    async def _receive(self) -> dict[str, Any]:
        self._asked += 1
        self._changed.set()
        while not self._messages:
            await self._changed.wait()
        return {"type": f"lifespan.{self._messages.pop(0)}"}

    async def _send(self, message: Mapping[str, Any]) -> None:
        kind = message["type"].removeprefix("lifespan.")
        if kind not in {"startup.complete", "startup.failed", "shutdown.complete", "shutdown.failed"}:
            raise RuntimeError(f"the application sent {message['type']!r} in answer to its lifespan")
        self._answers[kind] = message
        self._changed.set()
