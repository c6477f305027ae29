"""How is a worker process forked, spoken to, seen dead and reaped?

Workers are ``multiprocessing`` processes and are reaped through them, so that exit codes are kept. Their deaths are
seen by pidfds: the sentinel of ``multiprocessing`` is a pipe, and stays open while a grandchild holds it.
"""

from __future__ import annotations

import ctypes
import multiprocessing.popen_fork  # which multiprocessing would import at the first fork, when it may be too late
import os
import signal
import sys
from contextlib import contextmanager, suppress
from traceback import walk_tb
from typing import TYPE_CHECKING

from prefork.proc import is_alive
from prefork.signals import ORDERS, held_back
from prefork.values import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator
    from multiprocessing.process import BaseProcess

CONTEXT = multiprocessing.get_context("fork")
HAS_PIDFD = hasattr(os, "pidfd_open")
_PR_GET_CHILD_SUBREAPER = 37


class Child(Value):
    """The parent's view of one worker process.

    ``worker`` is its serial number, never reused; ``number`` its place, reused. ``lifeline`` is the writing end of the
    pipe that tells it what to do, and, by its end, that the parent is dead. ``pidfd`` is ``None`` where there are none.
    ``inherited`` are further descriptors that belong to it in the parent: siblings must not keep them open.
    """

    worker: int
    number: int
    process: BaseProcess
    pid: int
    lifeline: int
    pidfd: int | None
    inherited: frozenset[int]

    @property
    def descriptors(self) -> frozenset[int]:
        """All that the parent holds for it."""
        own = {self.lifeline} if self.pidfd is None else {self.lifeline, self.pidfd}
        return self.inherited | own

    def tell(self, order: bytes) -> None:
        """Send one order. A worker that is dead, or stopped and deaf, does not hold the parent up."""
        with suppress(BrokenPipeError, BlockingIOError):
            os.write(self.lifeline, order)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()

    def is_gone(self) -> bool:
        """Whether it is dead, and reaped: by us, or by somebody else."""
        return self.process.exitcode is not None or not is_alive(self.pid)

    def abandon(self) -> None:
        """Let it believe that its parent is dead, and do not wait for it at the end of the program."""
        multiprocessing.process._children.discard(self.process)  # type: ignore[attr-defined]  # noqa: SLF001
        os.close(self.lifeline)

    def close(self) -> None:
        """Let go of its descriptors; it must be dead."""
        self.process.join()
        if self.process.exitcode is None:
            # Somebody else has reaped it, a hook say: to multiprocessing it would be alive for ever.
            self.process._popen.returncode = 0  # type: ignore[attr-defined]  # noqa: SLF001
        self.process.close()
        os.close(self.lifeline)
        if self.pidfd is not None:
            os.close(self.pidfd)


def fork_child(worker: int, number: int, main: Callable[[int, int, set[int]], object]) -> Child:
    """Fork a process that runs ``main(lifeline, other_end, mask)``; ``OSError`` when the system refuses.

    ``main`` starts with the signals of ``ORDERS`` held back; ``mask`` is what to restore when it can take them, and
    ``other_end`` the parent's end of the lifeline, which it must close. It starts without ``sys.stdin``.
    """
    reader, writer = os.pipe()
    with held_back(*ORDERS, signal.SIGCHLD) as mask, without_stdin():
        process = CONTEXT.Process(target=main, args=(reader, writer, mask), name=f"prefork-worker-{number}")
        try:
            process.start()
        except OSError as error:
            for descriptor in {reader, writer} | left_open(error):
                os.close(descriptor)
            raise
    os.close(reader)
    os.set_blocking(writer, False)
    # The sentinel, and the end by which the child sees that its parent is dead: nothing else tells of the second one.
    inherited = process._popen.finalizer._args  # type: ignore[attr-defined]  # noqa: SLF001
    assert process.pid is not None  # noqa: RUF100, S101
    pidfd = open_pidfd(process.pid)
    return Child(worker, number, process, process.pid, writer, pidfd, frozenset(inherited))


@contextmanager
def without_stdin() -> Iterator[None]:
    """Have no ``sys.stdin`` for the length of a block: ``multiprocessing`` would replace it in each child, at a price."""
    stdin, sys.stdin = sys.stdin, None
    try:
        yield
    finally:
        sys.stdin = stdin


def left_open(error: OSError) -> set[int]:
    """Return the pipes that ``multiprocessing`` had made for a child that could not be forked, and leaves open.

    Only the traceback knows them for certain: what else is new may have been opened by another thread.
    """
    launch = multiprocessing.popen_fork.Popen._launch.__code__  # type: ignore[attr-defined]  # noqa: SLF001
    frames = [frame for frame, _ in walk_tb(error.__traceback__) if frame.f_code is launch]
    ends = ("parent_r", "child_w", "child_r", "parent_w")
    return {frame.f_locals[end] for frame in frames for end in ends if end in frame.f_locals}


def open_pidfd(pid: int) -> int | None:
    """Return a descriptor that becomes readable when the process dies; ``None`` if the system has none to give."""
    if HAS_PIDFD:
        with suppress(OSError):
            return os.pidfd_open(pid)
    return None


def inherits_orphans() -> bool:
    """Whether orphaned processes become children of this one: process 1 of a container, or a subreaper."""
    if os.getpid() == 1:
        return True
    if not sys.platform.startswith("linux"):
        return False
    flag = ctypes.c_int(0)
    ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(flag), 0, 0, 0)
    return bool(flag.value)


def reap_orphans(ours: Container[int]) -> None:
    """Reap dead children that nobody waits for, until the next dead one is one of ``ours`` or there is none.

    A look comes first (``WNOWAIT``), then exactly that process is reaped: to reap whatever is dead would take the exit
    code of a worker away from ``multiprocessing``.
    """
    multiprocessing.active_children()  # reaps the dead ones of multiprocessing that are not workers
    with suppress(ChildProcessError):
        while (dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if dead.si_pid in ours:
                return
            os.waitpid(dead.si_pid, 0)
