"""How does a program hold a pool that has a parent of its own?

By a process and a pipe: the pipe carries the orders to stop, and its end tells the pool that the program is gone,
however it went. So the program need not do anything for the pool to end with it.
"""

from __future__ import annotations

import json
import os
import select
import signal
from contextlib import suppress
from multiprocessing.util import Finalize
from threading import Lock
from typing import TYPE_CHECKING, Any

from prefork.children import CONTEXT, left_open, open_pidfd
from prefork.errors import BootError, PreforkError, traceback_of
from prefork.farewell import leave_threads
from prefork.signals import ORDERS, held_back
from prefork.values import Fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from multiprocessing.process import BaseProcess

#: What a caller writes into the pipe. Its end means the same as ``STOP``.
STOP, STOP_QUICKLY = b"t", b"q"
#: How much longer than the pool may take to stop a caller waits, in seconds, before it kills it.
PATIENCE = 10.0
_DIED = {
    "code": "PF415",
    "message": "the pool's parent died while it started",
    "hint": "look for what it has written last, and whether the system killed it for want of memory (dmesg)",
}


class Caller(Fields):
    """The program, as its pool's parent sees it.

    ``orders`` is the reading end of the pipe, ``answer`` the writing end of another one, which is closed (-1) as soon
    as the caller knows how the start went. ``mask`` is the signal mask to restore when signals can be taken.
    """

    pid: int
    orders: int
    answer: int
    mask: set[int]

    @property
    def descriptors(self) -> set[int]:
        """What no worker may keep open, or the caller would not see the end of it."""
        return {self.orders, self.answer} - {-1}

    def read(self) -> list[dict[str, Any]]:
        """Return the next order; none: the caller is gone."""
        order = os.read(self.orders, 1)
        return [{"order": "INT" if order == STOP_QUICKLY else "TERM"}] if order else []

    def tell(self, answer: dict[str, str]) -> None:
        """Say how the start went; only the first answer counts."""
        if self.answer < 0:
            return
        with suppress(BrokenPipeError), open(self.answer, "w") as pipe:  # noqa: PTH123 - a descriptor
            self.answer = -1
            pipe.write(json.dumps(answer) + "\n")

    def tell_ready(self) -> None:
        """Say that the pool serves."""
        self.tell({"ready": "yes"})

    def tell_failed(self, error: BaseException, trace: str = "") -> None:
        """Say why the pool cannot be brought up; ``trace`` is the traceback of what is to blame, if not the error's."""
        known = error if isinstance(error, PreforkError) else BootError("PF415", f"{type(error).__name__}: {error}")
        trace, status = trace or traceback_of(error), str(known.exit_code)
        told = {"code": known.code, "message": known.message, "hint": known.hint, "status": status, "traceback": trace}
        self.tell(told)


class Supervised:
    """A pool's parent process, as the program sees it. Safe in any thread."""

    def __init__(self, process: BaseProcess, orders: int, answer: int, patience: float) -> None:
        assert process.pid is not None  # noqa: RUF100, S101
        self.pid = process.pid
        self.patience = patience
        self._process, self._orders, self._answer = process, orders, answer
        self._pidfd = open_pidfd(process.pid)
        self._end = process.sentinel if self._pidfd is None else self._pidfd
        self._lock = Lock()
        self._status: int | None = None
        ends = [orders] if self._pidfd is None else [orders, self._pidfd]
        # When this object is forgotten, or the program ends without a word. multiprocessing, which would wait for the
        # process at the end of the program, calls this first.
        self._abandon = Finalize(self, close_all, args=(ends,), exitpriority=100)

    def await_ready(self) -> bool:
        """Return whether the pool serves, or was stopped before it did.

        Raises ``BootError`` if it cannot; where code that is not ours raised, its notes have the traceback.
        """
        # Not until the end of the pipe: what the application forks while it is imported may keep it open.
        either = select.poll()
        with open(self._answer) as pipe:  # noqa: PTH123 - a descriptor
            either.register(pipe, select.POLLIN)
            either.register(self._end, select.POLLIN)
            told = any(descriptor == pipe.fileno() for descriptor, _ in either.poll())
            text = pipe.readline() if told else ""
        answer: dict[str, str] = json.loads(text) if text else _DIED
        if "ready" in answer:
            return bool(answer["ready"])
        error = BootError(answer["code"], answer["message"], answer.get("hint", ""))
        error.exit_code = int(answer.get("status", "1"))
        if trace := answer.get("traceback"):
            error.add_note(trace)
        raise error

    def stop(self, order: bytes) -> None:
        """Order the pool to stop, and wait for its end."""
        with self._lock:
            if self._status is None:
                with suppress(BrokenPipeError):
                    os.write(self._orders, order)
        if self.wait(self.patience + PATIENCE) is None:
            self._process.kill()  # stopped itself, or stuck; its workers notice and drain
            self.wait()

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end; return the exit status, or ``None`` after ``timeout`` seconds."""
        if self._status is None:
            end = select.poll()
            end.register(self._end, select.POLLIN)
            end.poll(None if timeout is None else max(0.0, timeout) * 1000)
        with self._lock:  # not while waiting, or nobody could stop what somebody waits for
            if self._status is None:
                self._bury()
            return self._status

    @property
    def ended(self) -> bool:
        """Whether the process is dead."""
        end = select.poll()
        with self._lock:  # or the descriptor might be another's by now
            if self._status is not None:
                return True
            end.register(self._end, select.POLLIN)
            return bool(end.poll(0))

    def _bury(self) -> None:
        self._process.join(0)
        self._status = self._process.exitcode
        if self._status is None:
            return
        self._abandon()
        self._process.close()


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors."""
    for descriptor in descriptors:
        os.close(descriptor)


def supervise(main: Callable[[Caller], int], patience: float) -> Supervised:
    """Fork a process that runs ``main``, as a pool's parent, and takes ``patience`` seconds to stop at most."""
    orders, our_orders = os.pipe()
    our_answer, answer = os.pipe()
    with held_back(*ORDERS, signal.SIGCHLD) as mask:
        caller = Caller(os.getpid(), orders, answer, mask)
        process = CONTEXT.Process(
            target=be_parent, args=(main, caller, (our_orders, our_answer)), name="prefork-parent"
        )
        try:
            process.start()
        except OSError as error:
            close_all({orders, our_orders, our_answer, answer} | left_open(error))
            raise BootError(
                "PF416",
                f"the system refuses to fork ({error.strerror})",
                "raise the limit of processes (ulimit -u) or of memory",
            ) from error
    os.close(orders)
    os.close(answer)
    return Supervised(process, our_orders, our_answer, patience)


def be_parent(main: Callable[[Caller], int], caller: Caller, foreign: tuple[int, ...]) -> None:
    """Be a pool's parent, in a process that was forked for it."""
    # A signal must not wake the event loop of the caller, whose descriptor this process has inherited.
    signal.set_wakeup_fd(-1)
    close_all(foreign)
    status = 1
    try:
        status = main(caller)
    except Exception as error:  # noqa: BLE001 - the caller raises it
        caller.tell_failed(error)
        status = error.exit_code if isinstance(error, PreforkError) else 1
    finally:
        leave_threads(status)
    if status == 0:
        caller.tell({"ready": ""})
    raise SystemExit(status)
