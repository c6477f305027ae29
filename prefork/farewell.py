"""How does a process end although threads are at work in it?

Python waits for all threads before it exits, but for daemons. That is right for work that nobody has called off, and it
may be for ever for a request that was given up: nothing ends a thread.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

FLUSH_S = 1.0
"""How long a process with stuck threads tries to write what its application has printed, and to run what is to be at its exit."""
LOOK_S = 0.1
"""How often to look whether somebody else's work is done."""
PATIENCE_S = 1.0
"""How long threads have that keep a command from ending when it has served."""


def working() -> set[threading.Thread]:
    """Return the threads for which Python would wait."""
    main = threading.main_thread()
    return {thread for thread in threading.enumerate() if not thread.daemon and thread is not main}


def serving_calls() -> set[threading.Thread]:
    """Return those among them that an event loop may be waiting for: anyio's, and those of executors."""
    executors = sys.modules.get("concurrent.futures.thread")
    queues = () if executors is None else executors._threads_queues  # noqa: SLF001 - nothing else tells
    return {thread for thread in working() if thread in queues or type(thread).__module__.startswith("anyio.")}


def leave_threads(status: int) -> None:
    """Have the process end with this status although threads are at work, as an application may start when it is imported."""
    if working():
        end_without(None, PATIENCE_S, status)


def end_without(
    given_up: Collection[threading.Thread] | None,
    patience: float,
    status: int = 0,
    wait: Callable[[float], object] = time.sleep,
) -> None:
    """Have the process end although threads are at work that were ``given_up``, or any with ``None``.

    They have ``patience`` seconds from the moment on at which Python waits for nothing else, or until ``wait`` returns.
    """
    ends = threading.Event()
    # What is registered last is called first: the next one waits for all executors.
    threading._register_atexit(ends.set)  # type: ignore[attr-defined]  # noqa: SLF001 - the main thread is not over yet

    def wait_for_others() -> None:
        ends.wait()
        there = working()  # whom a handler of atexit starts is none of them
        wait(patience)
        _end_without(given_up, there, status)

    threading.Thread(target=wait_for_others, daemon=True).start()


def _end_without(given_up: Collection[threading.Thread] | None, there: set[threading.Thread], status: int) -> None:
    while left := working() & there:
        if given_up is None or left.issubset(given_up):
            _try(atexit._run_exitfuncs)  # noqa: SLF001 - Python would behind it
            end_at_once(status)
        time.sleep(LOOK_S)


def end_at_once(status: int = 0) -> None:
    """End the process although threads are stuck, or it starts: nothing may wait for these, or for what they hold."""
    _try(flush)
    os._exit(status)


def _try(what: Callable[[], object]) -> None:
    """Do what a stuck thread may hold up, and wait for it no longer than is said."""
    thread = threading.Thread(target=what, daemon=True)
    thread.start()
    thread.join(FLUSH_S)


def flush() -> None:
    """Write what the application has printed."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
