"""How are sockets watched for which other workers wait too?

A poller within a poller wakes everybody: the kernel sees that somebody waits for the inner one, and not whether a single one
would do. So what is shared is watched by the loop itself, and all else by the driver's own poller, which the loop watches.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from prefork.poller import READ

if TYPE_CHECKING:
    from prefork.asgi.backends import Backend
    from prefork.poller import Poller


class LoopPoller:
    """A poller that leaves what is shared to the ``backend``, and all else to ``own``."""

    def __init__(self, own: Poller, backend: Backend) -> None:
        self._own = own
        self._backend = backend
        self._shared: set[int] = set()
        self._ready: list[int] = []
        self.modify = own.modify
        self.forget = own.forget
        self.fileno = own.fileno
        self.close = own.close

    def register(self, descriptor: int, events: int, *, shared: bool = False) -> None:
        """Watch a descriptor; ``shared`` says that other processes wait for it too and one of them is enough."""
        if shared and self._backend.share(descriptor, partial(self._ready.append, descriptor)):
            self._shared.add(descriptor)
        else:
            self._own.register(descriptor, events, shared=shared)

    def unregister(self, descriptor: int) -> None:
        """Watch it no longer."""
        if descriptor in self._shared:
            self._shared.remove(descriptor)
            self._backend.unshare(descriptor)
        else:
            self._own.unregister(descriptor)

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        """Return descriptors and events; it never waits for what is shared."""
        found = self._own.poll(timeout)
        if self._ready:
            found += [(descriptor, READ) for descriptor in self._ready if descriptor in self._shared]
            self._ready.clear()
        return found
