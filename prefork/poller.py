"""Which descriptors are ready?

One interface over epoll and, where there is none, poll: both take registrations from other threads while one waits.
"""

from __future__ import annotations

import os
import select
import threading
from typing import Protocol

from prefork.errors import PlatformUnsupported

READ = 1  # EPOLLIN and POLLIN
WRITE = 4  # EPOLLOUT and POLLOUT


class Poller(Protocol):
    """What the driver asks of a poller."""

    def register(self, descriptor: int, events: int, *, shared: bool = False) -> None:  # noqa: ARG002, RUF100
        """Watch a descriptor; ``shared`` says that other processes wait for it too and one of them is enough."""

    def modify(self, descriptor: int, events: int) -> None:
        """Watch it for something else."""

    def unregister(self, descriptor: int) -> None:
        """Watch it no longer."""

    def forget(self, descriptor: int) -> None:
        """Take note that a descriptor is about to be closed."""

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        """Wait for at most ``timeout`` seconds, or shorter; return descriptors and events."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when ``poll`` would not wait."""

    def close(self) -> None:
        """Give everything back."""


class EpollPoller:
    """Linux."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.modify = self._epoll.modify
        self.unregister = self._epoll.unregister
        self.close = self._epoll.close
        self.fileno = self._epoll.fileno

    def register(self, descriptor: int, events: int, *, shared: bool = False) -> None:  # noqa: ARG002, RUF100
        """Watch a descriptor. ``EPOLLEXCLUSIVE`` spares the siblings a wake-up for nothing."""
        self._epoll.register(descriptor, events | select.EPOLLEXCLUSIVE if shared else events)

    def forget(self, descriptor: int) -> None:
        """Do nothing: the kernel forgets what is closed."""

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        """Wait for at most ``timeout`` seconds; return descriptors and events."""
        return self._epoll.poll(timeout)


class PollPoller:
    """Everything else. Who watches something while another thread waits wakes that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[int, int] = {}
        self._waits = False
        self._woken, self._wake = os.pipe()
        for end in (self._woken, self._wake):
            os.set_blocking(end, False)

    def register(self, descriptor: int, events: int, *, shared: bool = False) -> None:  # noqa: ARG002 - poll cannot
        """Watch a descriptor."""
        with self._lock:
            self._watched[descriptor] = events
            if self._waits:
                self._waits = False
                os.write(self._wake, b".")

    def modify(self, descriptor: int, events: int) -> None:
        """Watch it for something else."""
        self.register(descriptor, events)

    def unregister(self, descriptor: int) -> None:
        """Watch it no longer."""
        with self._lock:
            del self._watched[descriptor]

    def forget(self, descriptor: int) -> None:
        """Watch it no longer, if it is watched."""
        with self._lock:
            self._watched.pop(descriptor, None)

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        """Wait for at most ``timeout`` seconds; return descriptors and events."""
        poll = select.poll()
        poll.register(self._woken, READ)
        with self._lock:
            for descriptor, events in self._watched.items():
                poll.register(descriptor, events)
            self._waits = True
        found = poll.poll(None if timeout is None else timeout * 1000)
        with self._lock:
            self._waits = False
        ready = [event for event in found if event[0] != self._woken]
        if len(ready) < len(found):
            os.read(self._woken, 1)
        return ready

    def fileno(self) -> int:
        """Raise ``PlatformUnsupported``: an event loop could not wait for it."""
        raise PlatformUnsupported("PF442", "ASGI applications need epoll", "serve them on Linux")

    def close(self) -> None:
        """Give everything back."""
        self._watched.clear()
        os.close(self._woken)
        os.close(self._wake)


def new_poller() -> Poller:
    """Return the best poller of this system."""
    return EpollPoller() if hasattr(select, "epoll") else PollPoller()
