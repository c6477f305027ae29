"""What is in this process that would not survive a fork, or be shared by it?

Only the thread that forks lives on in the child. Whoever waits there for one of the others waits for ever; and a
connection that two processes use answers the one what the other has asked.
"""

# ruff: noqa: SLF001 - no public name says whether an executor, a thread or a loop is at work

from __future__ import annotations

import gc
import inspect
import os
import socket
import stat
import sys
import threading
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from prefork.values import Value

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Set as AbstractSet

_STDERR = 2
#: Where the system lists the descriptors of this process; a process that has changed its user may not read it.
_DESCRIPTORS = "/dev/fd"
_MOST_DESCRIPTORS = 1024
_STREAMS = {socket.SOCK_STREAM, socket.SOCK_SEQPACKET}
_PLACES = 3


class Finding(Value):
    """One thing to put right: what kind it is, its name, its place, and what to do."""

    kind: Literal["thread", "socket", "executor", "event_loop"]
    what: str
    where: str
    remedy: str


def audit(ours: Container[int] = ()) -> list[Finding]:
    """Return what should not be there before a fork; nothing for a clean application.

    It looks only, and imports nothing: what is not imported has nothing running. Descriptors of ``ours`` are as they
    should be. Never raises.
    """
    executors = list(_executors())
    theirs = {thread for executor in executors for thread in executor._threads}
    return [
        *(_executor_finding(executor) for executor in executors),
        *_threads(theirs),
        *_sockets(ours),
        *_event_loop(),
    ]


# Threads, and executors that have started some.


def _threads(known: AbstractSet[threading.Thread]) -> Iterator[Finding]:
    remedy = "start it in the hook worker_started: a worker does not have the threads of its parent"
    for thread in threading.enumerate():
        if thread not in {threading.current_thread(), threading.main_thread(), *known}:
            yield Finding("thread", thread.name, _work_of(thread), remedy)


def _work_of(thread: threading.Thread) -> str:
    """Return the function that a thread runs, and where that is written."""
    target: Any = getattr(thread, "_target", None)
    while isinstance(target, partial):
        target = target.func
    if target is None:
        target = type(thread).run  # a subclass; or a thread that Python has not started, and knows nothing of
        if target is threading.Thread.run:
            return "it was not started by Python"
    code = getattr(inspect.unwrap(target), "__code__", None)
    name = f"{getattr(target, '__module__', '?')}.{getattr(target, '__qualname__', repr(target))}"
    return f"{name} ({code.co_filename}:{code.co_firstlineno})" if code else name


def _executors() -> Iterator[Any]:
    """Return the executors of ``concurrent.futures`` that have live threads."""
    futures = sys.modules.get("concurrent.futures.thread")
    # Looking at every object is not for nothing: only if there are such threads.
    if futures is None or not any(thread.is_alive() for thread in list(futures._threads_queues)):
        return
    for found in gc.get_objects():
        if issubclass(type(found), futures.ThreadPoolExecutor) and any(t.is_alive() for t in found._threads):
            yield found


def _executor_finding(executor: Any) -> Finding:
    names = ", ".join(sorted(thread.name for thread in executor._threads))
    sync = getattr(sys.modules.get("asgiref.sync"), "SyncToAsync", None)
    if executor is getattr(sync, "single_thread_executor", None):
        remedy = "call sync_to_async and asynchronous views in workers only, not while the application is loaded"
        return Finding("executor", names, "asgiref.sync.SyncToAsync.single_thread_executor", remedy)
    remedy = "make it, or use it first, in the hook worker_started: in a worker its submit() would wait for ever"
    return Finding("executor", names, _places(executor), remedy)


def _places(held: object) -> str:
    """Return by which names the program knows an object: variables of modules, attributes of what these hold."""
    found: set[str] = set()
    for module in list(sys.modules.values()):
        for name, value in _attributes(module):
            if value is held:
                found.add(f"{module.__name__}.{name}")
            # Not isinstance(): that asks the value for its class, and a lazy object of Django's would be set up for it.
            elif not issubclass(type(value), ModuleType):
                found.update(f"{module.__name__}.{name}.{inner}" for inner, it in _attributes(value) if it is held)
    return ", ".join(sorted(found)[:_PLACES]) or "known by no name: a local variable, or in a list or the like"


def _attributes(value: object) -> list[tuple[str, object]]:
    try:
        # Not vars(): a proxy, such as Flask's current_app, would look for what it stands for.
        return list(object.__getattribute__(value, "__dict__").items())
    except AttributeError:
        return []


# Connections.


def _sockets(ours: Container[int]) -> Iterator[Finding]:
    remedy = "close it in the hook before_fork: all workers would talk on it at once"
    for descriptor in _descriptors():
        with suppress(OSError):
            known = descriptor <= _STDERR or descriptor in ours
            if not known and stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                ends = _ends(descriptor)
                if ends is not None:
                    local, peer = ends
                    where = f"descriptor {descriptor}" + (f", from {local}" if local else "")
                    yield Finding("socket", f"connection to {peer}", where, remedy)


def _descriptors() -> Iterable[int]:
    try:
        return sorted(map(int, os.listdir(_DESCRIPTORS)))  # noqa: PTH208 - names alone are wanted
    except OSError:
        return range(_MOST_DESCRIPTORS)


def _ends(descriptor: int) -> tuple[str, str] | None:
    """Return the two ends of a connection; ``None`` for what may be shared.

    That is a socket that listens, a pair that the program keeps to itself, and one for datagrams, each of which is
    whole whoever sends it (statsd, syslog). Raises ``OSError`` for a socket that is not connected.
    """
    sock = socket.socket(fileno=descriptor)
    try:
        if sock.type not in _STREAMS:
            return None
        local, peer = _shown(sock.getsockname()), _shown(sock.getpeername())
    finally:
        sock.detach()
    return (local, peer) if peer else None


def _shown(name: Any) -> str:
    if isinstance(name, tuple):
        return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
    return os.fsdecode(name).replace("\0", "@", 1)


# Event loops.


def _event_loop() -> Iterator[Finding]:
    remedy = "start the pool outside of coroutines: the fork would copy a loop that runs"
    asyncio, trio = sys.modules.get("asyncio"), sys.modules.get("trio")
    loop = asyncio._get_running_loop() if asyncio is not None else None
    if loop is not None:
        yield Finding("event_loop", f"{type(loop).__module__}.{type(loop).__qualname__}", "this thread", remedy)
    if trio is not None and trio.lowlevel.in_trio_run():
        yield Finding("event_loop", "trio", "this thread", remedy)
