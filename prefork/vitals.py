"""How is a worker, seen from outside, and what did it leave behind?

Everything here works on a worker that cannot say anything any more: the kernel, the scoreboard and a file of the parent's
are asked.
"""

from __future__ import annotations

import ctypes
import faulthandler
import math
import mmap
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefork.proc import stat_of

if TYPE_CHECKING:
    from prefork.scoreboard import Reading, Row

DUMP = signal.SIGRTMAX - 1 if hasattr(signal, "SIGRTMAX") else None
"""The signal upon which a worker writes down where its threads are; ``None`` where there is none to spare."""
RECENT_S = 5.0
"""What the kernel has killed longer ago than twice this is no death that is yet to be seen."""
_MOST_WORDS = 64 * 1024
_DUMP_S = 0.3
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SIGNAL_STACK = 512 * 1024  # of which the system gives only the pages that are used
_signal_stack: mmap.mmap | None = None
_STDERR = 2
_place: int | None = None
"""The descriptor to which this process and its children write, if that was arranged before they were forked."""


def record_last_words(descriptor: int) -> None:
    """Let this process write its stacks to ``descriptor`` when it crashes, or is told to by ``DUMP``."""
    if _place is None:
        _write_stacks_to(descriptor)
    else:
        os.dup2(descriptor, _place, inheritable=False)


def send_last_words_to_stderr(descriptor: int) -> None:
    """Let a child of a worker, which writes its stacks to ``descriptor``, write its own where it writes everything else."""
    with suppress(OSError):  # there may be no stderr
        os.dup2(_STDERR, descriptor if _place is None else _place, inheritable=False)


def arrange_last_words() -> None:
    """Arrange in a parent what ``record_last_words`` would do in each child: there it is a tenth of the start.

    The stacks of the parent itself go to stderr meanwhile. Nothing is done where ``faulthandler`` is enabled already: in
    this process it is somebody else's.
    """
    global _place  # noqa: PLW0603 - the children find it there
    if _place is None and not faulthandler.is_enabled():
        with suppress(OSError):  # there may be no stderr
            _place = os.dup(_STDERR)
            _write_stacks_to(_place)


def give_up_last_words() -> None:
    """Undo what ``arrange_last_words`` did, if it did anything."""
    global _place  # noqa: PLW0603
    if _place is not None:
        if DUMP is not None:
            faulthandler.unregister(DUMP)
        faulthandler.disable()
        os.close(_place)
        _place = None


def _write_stacks_to(descriptor: int) -> None:
    faulthandler.enable(descriptor)
    if sys.platform == "linux":
        widen_signal_stack()
    if DUMP is not None:
        faulthandler.register(DUMP, descriptor)


class _SignalStack(ctypes.Structure):
    """The ``stack_t`` of Linux."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def widen_signal_stack() -> None:
    """Give the main thread's signal handlers a stack of ``_SIGNAL_STACK`` bytes.

    Must, because that of ``faulthandler`` has 16 KiB, all of Python's handlers run on it, and where the processor has
    wide registers each signal takes 3 KiB and more: a few that come at once would end the process.
    """
    global _signal_stack  # noqa: PLW0603 - the kernel refers to it for as long as the process lives
    if _signal_stack is not None:
        return
    _signal_stack = mmap.mmap(-1, _SIGNAL_STACK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(_signal_stack))
    ctypes.CDLL(None).sigaltstack(ctypes.byref(_SignalStack(start, 0, _SIGNAL_STACK)), None)


class Vitals:
    """What the parent watches of one worker: its row, its memory, and the file for its last words.

    ``memory`` is the resident memory in bytes when it was last looked at: of a dead process the kernel tells none.
    """

    def __init__(self, row: Row) -> None:
        row.clear()
        self.row = row
        self.memory: int | None = None
        self.last_words = _nameless_file()

    def close(self) -> None:
        """Let go of the file, and of the row: a dead worker has no time for anybody."""
        self.row.clear()
        os.close(self.last_words)

    def weigh(self, pid: int) -> None:
        """Take note of how much memory it has."""
        with suppress(OSError, ValueError, IndexError):
            # Not by pathlib: each worker that gets ready is weighed, and a recycle is to cost as little as it can.
            statm = os.open(f"/proc/{pid}/statm", os.O_RDONLY)
            try:
                self.memory = int(os.read(statm, 256).split()[1]) * _PAGE
            finally:
                os.close(statm)

    def stack(self) -> str:
        """Return what it has written down about where its threads are."""
        return os.pread(self.last_words, _MOST_WORDS, 0).decode(errors="replace").strip()

    def ask_for_stack(self, pid: int) -> str:
        """Return where the threads of a living process are; empty if it does not say so within a moment.

        What it writes is written by a signal handler in C, which asks no interpreter.
        """
        if DUMP is None:
            return ""
        before = self.stack()
        with suppress(ProcessLookupError):
            os.kill(pid, DUMP)
        last, deadline = before, time.monotonic() + _DUMP_S
        while time.monotonic() < deadline:
            time.sleep(_DUMP_S / 10)
            now = self.stack()
            if now == last != before:
                break
            last = now
        return last.removeprefix(before).strip()

    def evidence(self, reading: Reading, now: float) -> dict[str, Any]:
        """Return what there is to record of its death; ``reading`` is what its row says."""
        lost = [
            {"method": request.method, "path": request.path, "age_s": round(now - request.since, 3)}
            for request in reading.requests
        ]
        found: dict[str, Any] = {"requests_lost": lost, "connections_lost": max(0, reading.connections - len(lost))}
        return found | {"rss_bytes": self.memory, "stack": self.stack() or None}


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("prefork-last-words")
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, by a signal or a debugger: it runs nothing, and answers no signal but KILL."""
    with suppress(OSError, IndexError):
        return stat_of(pid)[0] in {"T", "t"}
    return False


class OomKills:
    """How many processes of our control group the kernel has killed for want of memory. Source: cgroups(7)."""

    def __init__(self, proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> None:
        self._counts = _where_kills_are_counted(proc, root)
        self._before = self._latest = self._count()
        self._looked_at = -math.inf

    def look(self, now: float) -> None:
        """Take note, now and then, of those that were: they may have been no processes of ours, or are recorded."""
        if now - self._looked_at >= RECENT_S:
            self._before, self._latest, self._looked_at = self._latest, self._count(), now

    def new(self) -> int:
        """Return how many there were since the last call, or of late: since the last ``look`` but one."""
        before, self._before = self._before, self._count()
        self._latest = self._before
        return self._before - before

    def _count(self) -> int:
        for path in self._counts:
            with suppress(OSError, ValueError, KeyError):
                return int(dict(line.split() for line in path.read_text().splitlines())["oom_kill"])
        return 0


def _where_kills_are_counted(proc: Path, root: Path) -> list[Path]:
    """Return the files that may tell of our group: a container may be told its path outside, and see itself as the top."""
    found: list[Path] = []
    with suppress(OSError):
        for line in proc.read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                found += (folder / "memory.events" for folder in (root / path.lstrip("/"), root))
            elif "memory" in controllers.split(","):  # version 1, where each controller has a tree of its own
                top = root / "memory"
                found += (folder / "memory.oom_control" for folder in (top / path.lstrip("/"), top))
    return found
