"""Which signal has arrived?

Signals are only noted, by the interpreter's wake-up descriptor, and read as bytes by a loop that decides: nothing
ever happens inside of a handler.
"""

from __future__ import annotations

# Where each fork comes by: what is in front of these functions makes members of enumerations, at 20 us a signal.
import _signal  # type: ignore[import-not-found]
import os
import signal
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Self

from prefork.errors import PlatformUnsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    Handler = Callable[[int, FrameType | None], object] | int | None

# Here, because all that forks imports this module first.
if not hasattr(os, "fork"):
    raise PlatformUnsupported("PF407", "this system cannot fork", "prefork runs on Linux and macOS")

#: What a pool acts upon.
ORDERS = tuple(signal.Signals[f"SIG{name}"] for name in ("TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "TTIN", "TTOU"))
STOPS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})


class StoppedEarly(KeyboardInterrupt):
    """A stop was asked for while nothing could be stopped yet; no ``Exception``, so that no app swallows it."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__()
        self.signal = number


class SignalInbox:
    """A block of code that owns the process's signals, and gives them back when it ends. For the main thread only.

    ``fileno()`` is readable when ``read()`` has something to say. While ``impatient`` is true, a signal that asks to
    stop raises ``StoppedEarly`` in the main thread instead: that is for the time in which an application is imported.
    """

    def __init__(self, *signals: signal.Signals) -> None:
        self._signals = {int(number): number for number in signals}
        self._previous: dict[signal.Signals, Handler] = {}
        self._previous_wakeup = -1
        self.impatient = False
        self._notes_itself = False

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def open(self) -> None:
        """Take the signals over."""
        # A pipe, not a socket pair: it holds 65,536 signals instead of 278 before it would lose one.
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._previous_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in self._signals.values():
            self._previous[number] = _signal.signal(number, self._note)

    def take_back(self) -> None:
        """Take the signals over again, after code that may have installed handlers of its own."""
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in self._signals.values():
            _signal.signal(number, self._note)

    def close(self) -> None:
        """Give the signals back to whoever had them."""
        # What was installed by other means than Python's (a library in C) reads as None, and cannot be put back.
        for number, handler in self._previous.items():
            if handler is not None:
                signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_wakeup)
        os.close(self._reader)
        os.close(self._writer)

    def disown(self) -> None:
        """Give the signals back in a child that was forked, where each does what it does in a new program.

        The pipe is still the one of the process that forked it: the caller must let go of ``descriptors``.
        """
        signal.set_wakeup_fd(-1)
        for number in self._signals.values():
            if signal.getsignal(number) == self._note:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def lose_patience(self) -> None:
        """Become ``impatient``; raises ``StoppedEarly`` for a stop that has arrived already."""
        self.impatient = True
        arrived = self.read()
        if stop := next((number for number in arrived if number in STOPS), None):
            raise StoppedEarly(stop)
        os.write(self._writer, bytes(arrived))

    def _note(self, number: int, _frame: FrameType | None) -> None:
        # The byte is in the pipe already. A handler is needed nevertheless, and a Python one: unlike SIG_IGN it is not
        # inherited by programs that the application starts.
        if self.impatient and number in STOPS:
            raise StoppedEarly(self._signals[number])
        if self._notes_itself:
            with suppress(BlockingIOError):  # full: it is readable
                os.write(self._writer, bytes([number]))

    def give_way(self) -> None:
        """Leave the interpreter's wake-up descriptor to an event loop in the main thread, which sets its own."""
        signal.set_wakeup_fd(-1)
        self._notes_itself = True

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._reader

    @property
    def descriptors(self) -> tuple[int, int]:
        """Both ends of the pipe, for a child to close."""
        return self._reader, self._writer

    def wake(self) -> None:
        """Make ``fileno()`` readable; from any thread, without a signal being read."""
        with suppress(BlockingIOError):  # full: it is readable
            os.write(self._writer, b"\0")

    def read(self) -> list[signal.Signals]:
        """Return the signals that have arrived since the last call, in their order."""
        try:
            numbers = os.read(self._reader, 65536)
        except BlockingIOError:
            return []
        # The application's own signals (an alarm, say) arrive here too, and are not ours to act upon.
        return [self._signals[number] for number in numbers if number in self._signals]


@contextmanager
def held_back(*signals: signal.Signals) -> Iterator[set[int]]:
    """Let no signal in for the length of a block; yields the mask that was, which is put back afterwards.

    A fork belongs in such a block: until a child has its own wake-up descriptor, its signals would go to the parent's.
    """
    before = _signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield {*before}
    finally:
        _signal.pthread_sigmask(signal.SIG_SETMASK, before)
