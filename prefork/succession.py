"""How does a generation of Server::Starter give its clients to the next one?

Both are children of ``start_server``, which tells neither of the other. So each waits for the next one at an abstract
UNIX address that the sockets they share, and its own number, give it. Who comes there, and is of the same user, gets the
exchange; from then on a line stands between the two parents, over which the younger says that it serves. Then TERM does
not mean to the older that all is over: its workers retire, their connections cross, and nobody is sent away.
"""

from __future__ import annotations

import math
import os
import select
import socket
import struct
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from prefork.handover import Exchange
from prefork.inheritance import STARTER_GENERATION
from prefork.proc import stat_of
from prefork.supervisor import SignalReceived, Superseded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prefork.listeners import Listener, Listeners
    from prefork.supervisor import Event

ANSWER_S = 1.0
"""How many seconds a generation waits for the answer of the one before, which may be about to die."""
LOOK_BACK = 256
"""How many numbers are tried: those of starts that failed lie between two generations."""
LOOK_S = 0.5
"""How often a generation that is to go looks whether there is a next one, in seconds."""
ABSENCE_S = 5.0
"""How long it does without: one that fails is started again after a while."""
HOPE_S = 30.0
"""For how long it hopes for one that has been started and does not come in: that is the first thing that one does."""
_NUMBER = struct.Struct("!Q")
_MESSAGE_LIMIT = 64
_NAMED = 4  # of the sockets: an address has 108 bytes
# struct ucred of unix(7): process, user and group.
_CREDENTIALS = struct.Struct("@3i")


class Succession:
    """What a generation has to know of the next one, and what signals mean for it then.

    Who is asked to go serves on until the next one does, as long as there is one, or its start is ``expected``: this is
    asked now and then. ``start_server`` tries again and again.
    """

    def __init__(self, expected: Callable[[], bool]) -> None:
        self._expected = expected
        self._there = False
        self._serving: int | None = None
        self._left = False  # its clients are with the next one, or on their way
        self._asked: SignalReceived | None = None
        self._hoped_at = 0.0  # when there was one the last time, or its start was expected
        self._there_at = 0.0  # when there was one the last time, or it began to matter
        self.next_deadline = math.inf
        """When to ask what is ``due`` if nothing happens before."""

    def told(self, signal: SignalReceived, now: float) -> list[Event]:
        """Return what a signal means."""
        if signal.name not in {"TERM", "QUIT"} or self._left:
            return [signal]
        if self._serving is not None:
            return self._leave(self._serving)
        if self._asked is None:
            if not self._hopes():
                return [signal]
            self._asked, self._hoped_at, self._there_at, self.next_deadline = signal, now, now, now + LOOK_S
        return []

    def _hopes(self) -> bool:
        return self._there or self._expected()

    def came(self) -> None:
        """Take note that a next generation is there, and holds the exchange."""
        self._there, self._serving = True, None

    def serves(self, generation: int) -> list[Event]:
        """Return what it means that the next one serves."""
        self._serving = generation
        return [] if self._asked is None else self._leave(generation)

    def lost(self) -> list[Event]:
        """Return what it means that the next one is gone: who left for its sake has to look after its clients again."""
        self._there, self._serving = False, None
        return [SignalReceived("TERM")] if self._left else []

    def due(self, now: float) -> list[Event]:
        """Return what it means that so much time went by."""
        if now < self.next_deadline:
            return []
        if self._there:
            self._there_at = now
        if self._hopes() and now - self._there_at < HOPE_S:
            self._hoped_at = now
        elif now - self._hoped_at >= ABSENCE_S:
            asked, self._asked, self.next_deadline = self._asked, None, math.inf
            return [] if asked is None else [asked]
        self.next_deadline = now + LOOK_S
        return []

    def _leave(self, generation: int) -> list[Event]:
        self._left, self._asked, self.next_deadline = True, None, math.inf
        return [Superseded(None, starter_generation=generation)]


class Door:
    """Where the next generation comes in. ``fileno()`` is readable when there is something to ``hear``."""

    def __init__(self, waiting: socket.socket, exchange: Exchange, succession: Succession) -> None:
        self.succession = succession
        self._exchange = exchange
        self._waiting = waiting
        self._line: socket.socket | None = None
        self._poller = select.epoll()
        self._poller.register(waiting, select.EPOLLIN)

    @classmethod
    def open(cls, address: str, exchange: Exchange, succession: Succession) -> Self | None:
        """Return a door at ``address``; ``None`` if somebody else stands there already."""
        waiting = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            waiting.bind(address)
            waiting.listen()
        except OSError:
            waiting.close()
            return None
        return cls(waiting, exchange, succession)

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._poller.fileno()

    @property
    def descriptors(self) -> set[int]:
        """What no worker may keep open, or nobody would see the end of a line."""
        sockets = [self._waiting] if self._line is None else [self._waiting, self._line]
        return {self._poller.fileno(), *(sock.fileno() for sock in sockets)} - {-1}

    def hear(self) -> list[Event]:
        """Return what it means what was said at the door."""
        events: list[Event] = []
        for descriptor, _ in self._poller.poll(0):
            if descriptor == self._waiting.fileno():
                self._let_in()
            elif self._line is not None and descriptor == self._line.fileno():
                events += self._read(self._line)
        return events

    def _let_in(self) -> None:
        """Give the exchange to who comes, if it is of our own user."""
        with suppress(OSError), ExitStack() as undo:
            line = undo.enter_context(self._waiting.accept()[0])
            if not _is_of_our_user(line):
                return
            socket.send_fds(line, [b"exchange"], list(self._exchange.descriptors))
            self._poller.register(line, select.EPOLLIN)
            undo.pop_all()
            if self._line is not None:
                self._let_go(self._line)
            self._line = line
            self.succession.came()

    def _read(self, line: socket.socket) -> list[Event]:
        with suppress(OSError):
            if said := line.recv(_NUMBER.size, socket.MSG_DONTWAIT):
                return self.succession.serves(_NUMBER.unpack(said)[0])
        self._let_go(line)
        self._line = None
        return self.succession.lost()

    def _let_go(self, sock: socket.socket) -> None:
        """Close a socket that a child may have open still which was just forked: to close it here alone ends no events."""
        self._poller.unregister(sock)
        sock.close()

    def shut(self) -> None:
        """Let nobody in any more; who came is still heard."""
        if self._waiting.fileno() >= 0:
            self._let_go(self._waiting)

    def close(self) -> None:
        """Give everything back."""
        self.shut()
        if self._line is not None:
            self._line.close()
        self._poller.close()


class Predecessor:
    """The generation before, as the present one sees it: its ``exchange``, and the line to it."""

    def __init__(self, line: socket.socket, exchange: Exchange, generation: int) -> None:
        self._line = line
        self._generation = generation
        self.exchange = exchange

    @classmethod
    def find(cls, listeners: Listeners, generation: int) -> Self | None:
        """Return the youngest before ``generation`` that is still there, and of our own user; ``None`` if there is none."""
        for number in range(generation - 1, max(0, generation - 1 - LOOK_BACK), -1):
            with suppress(OSError), ExitStack() as undo:
                line = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                line.settimeout(ANSWER_S)
                line.connect(address_of(listeners, number))
                if not _is_of_our_user(line):
                    continue
                _, descriptors, _, _ = socket.recv_fds(line, _MESSAGE_LIMIT, 2)
                if len(descriptors) == 2:  # noqa: PLR2004 - the two ends
                    undo.pop_all()
                    return cls(line, Exchange.inherited(descriptors), generation)
        return None

    def fileno(self) -> int:
        """Return the descriptor of the line, which no worker may keep open."""
        return self._line.fileno()

    def tell_serving(self) -> None:
        """Say that the present generation serves. That the older one is gone by now changes nothing."""
        with suppress(OSError):
            self._line.send(_NUMBER.pack(self._generation))

    def close(self) -> None:
        """Let go of the line and the exchange."""
        self._line.close()
        self.exchange.close()


def address_of(listeners: Iterable[Listener], generation: int) -> str:
    """Return where a generation waits for the next one: both have the same sockets, and nobody else has."""
    sockets = sorted(os.fstat(listener.socket.fileno()).st_ino for listener in listeners)
    return f"\0prefork/{'-'.join(map(str, sockets[:_NAMED]))}/{generation}"


def has_younger_sibling(pid: int, generation: int, proc: Path = Path("/proc")) -> bool:
    """Whether the parent of a process of this ``generation`` has a child that is younger, and of a later one.

    ``start_server`` may be process 1 of a container, who has orphans too. Of another user's the generation is not known.
    """
    with suppress(OSError, ValueError, IndexError):
        parent, born = _parent_and_birth(proc, pid)
        children = (proc / str(parent) / "task" / str(parent) / "children").read_text().split()
        return any(
            _parent_and_birth(proc, int(child))[1] > born and _is_later(proc / child / "environ", generation)
            for child in children
        )
    return False


def _is_later(environ: Path, generation: int) -> bool:
    """Whether a process was started as a later generation, as far as its environment may be read."""
    try:
        variables = environ.read_bytes().split(b"\0")
    except OSError:
        return True
    start = f"{STARTER_GENERATION}=".encode()
    number = next((entry.removeprefix(start) for entry in variables if entry.startswith(start)), b"")
    return number.isdigit() and int(number) > generation


def _parent_and_birth(proc: Path, pid: int) -> tuple[int, int]:
    """Return the parent of a process, and when it was started, in ticks of the clock."""
    fields = stat_of(pid, proc)
    return int(fields[1]), int(fields[19])


def _is_of_our_user(line: socket.socket) -> bool:
    """Whether the process at the other end is of the same user: any may stand at an abstract address."""
    _, user, _ = _CREDENTIALS.unpack(line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return bool(user == os.geteuid())
