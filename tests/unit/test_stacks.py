"""Is the application shown, and the server in it left out?"""

from __future__ import annotations

import threading
import types
from typing import TYPE_CHECKING, Any

from prefork.stacks import stack_of_task, stack_of_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

MIDDLEWARE: dict[str, Any] = {"__name__": "prefork.middleware"}
exec("def pass_on(app): return app()\nasync def pass_on_later(app): return await app()", MIDDLEWARE)


def serve(app: Callable[[], object]) -> None:
    app()


async def serve_later(app: Callable[[], Any]) -> None:
    await app()


@types.coroutine
def suspended() -> Any:
    yield


class Waiting:
    """A thread that waits in ``view``."""

    def __init__(self, target: Callable[[Callable[[], object]], object]) -> None:
        self._there, self._go_on = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=target, args=(self.view,))

    def view(self) -> None:
        self._there.set()
        self._go_on.wait()

    def __enter__(self) -> threading.Thread:
        self.thread.start()
        self._there.wait()
        return self.thread

    def __exit__(self, *_: object) -> None:
        self._go_on.set()
        self.thread.join()


def functions(stack: str) -> list[str]:
    return [line.rpartition(" in ")[2] for line in stack.splitlines() if line.startswith('  File "')]


def test_a_thread_in_the_application_is_shown_from_that_on() -> None:
    with Waiting(serve) as thread:
        assert functions(stack_of_thread(thread, serve))[:2] == ["view", "wait"]


def test_what_the_server_puts_around_the_application_is_left_out() -> None:
    with Waiting(lambda view: serve(lambda: MIDDLEWARE["pass_on"](view))) as thread:
        assert functions(stack_of_thread(thread, serve))[:2] == ["<lambda>", "pass_on"]
    with Waiting(lambda view: MIDDLEWARE["pass_on"](lambda: MIDDLEWARE["pass_on"](view))) as thread:
        assert functions(stack_of_thread(thread, MIDDLEWARE["pass_on"]))[:3] == ["<lambda>", "pass_on", "view"]


def test_a_thread_elsewhere_is_shown_whole() -> None:
    with Waiting(lambda view: view()) as thread:
        assert functions(stack_of_thread(thread, serve))[0] == "_bootstrap"


def test_a_thread_that_has_ended_is_nowhere() -> None:
    with Waiting(serve) as thread:
        pass
    assert stack_of_thread(thread, serve) == ""


def shown(task: Coroutine[Any, Any, None]) -> list[str]:
    task.send(None)
    try:
        return functions(stack_of_task(task, serve_later))
    finally:
        task.close()


def test_a_task_is_shown_from_the_application_on() -> None:
    async def view() -> None:
        await suspended()

    async def elsewhere() -> None:
        await view()

    assert shown(serve_later(view)) == ["view", "suspended"]
    assert shown(serve_later(lambda: MIDDLEWARE["pass_on_later"](view))) == ["view", "suspended"]
    assert shown(elsewhere()) == ["elsewhere", "view", "suspended"]
