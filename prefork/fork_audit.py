"""What is in this process that would not survive a fork, or be shared by it?"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import stat
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to put right: its ``kind`` (thread, socket, executor, event_loop), name, place and remedy."""

    kind: str
    what: str
    where: str
    remedy: str


def audit() -> list[Finding]:
    """Return what should not be there before a fork; nothing for a clean application."""
    return [*_threads(), *_sockets(), *_executors(), *_event_loop()]


def _threads() -> Iterator[Finding]:
    for thread in threading.enumerate():
        if thread is threading.current_thread() or thread is threading.main_thread():
            continue
        target: Any = getattr(thread, "_target", None) or type(thread).run
        code = getattr(target, "__code__", None)
        where = f"{code.co_filename}:{code.co_firstlineno}" if code else repr(target)
        yield Finding("thread", thread.name, where, "start it in the hook worker_started: workers do not have it")


def _sockets() -> Iterator[Finding]:
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        return
    for entry in [int(name) for name in os.listdir(folder)]:  # noqa: PTH208 - names alone are wanted
        try:
            if not stat.S_ISSOCK(os.fstat(entry).st_mode):
                continue
            with socket.socket(fileno=os.dup(entry)) as sock:
                if sock.family not in {socket.AF_INET, socket.AF_INET6}:
                    continue
                peer = sock.getpeername()
                local = sock.getsockname()
        except OSError:
            continue
        remedy = "close it before the fork (hook before_fork): all workers would talk on it at once"
        yield Finding("socket", f"connection to {peer[0]}:{peer[1]}", f"{local[0]}:{local[1]}", remedy)


def _executors() -> Iterator[Finding]:
    futures = sys.modules.get("concurrent.futures.thread")
    if futures is None:
        return
    for found in gc.get_objects():
        if type(found) is futures.ThreadPoolExecutor and found._threads:  # noqa: SLF001
            name = found._thread_name_prefix  # noqa: SLF001
            yield Finding(
                "executor", name, "concurrent.futures", "make it in the hook worker_started: its threads stay behind"
            )


def _event_loop() -> Iterator[Finding]:
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    yield Finding("event_loop", type(loop).__name__, "this thread", "start the pool outside of coroutines")
