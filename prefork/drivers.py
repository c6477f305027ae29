"""What does a worker ask of whatever serves its requests?"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from prefork.loading import as_single, interface_of

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Collection, Iterable

    from prefork.asgi.driver import AsgiDriver
    from prefork.config import Config
    from prefork.listeners import Listener
    from prefork.reception import Outfit


class Driver(Protocol):
    """What serves. Orders are given by the thread that ``run`` lets lead, and return before they are carried out."""

    served: int
    """Requests given to the application so far."""
    monitor_fd: int
    """Readable when ``tick`` should be called, and when it is ``over``; ``hear`` empties it."""
    stray: bool
    """To be set in a child that the application has forked: a request that comes back to the driver there ends it."""
    over: bool
    """Whether nothing that ``end`` has begun goes on."""

    def run(self, started: Callable[[], None], lead: Callable[[], None]) -> None:
        """Begin to serve, call ``started`` once that is so, and serve until ``lead`` returns.

        In the main thread, as ``started`` is; where that is needed for serving ``lead`` is called in another one.
        Raises what kept the application from starting, or ended the server.
        """

    def announce_at(self, requests: int | None) -> None:
        """Make ``monitor_fd`` readable when ``served`` reaches ``requests``; call it before ``run``."""

    def retire_after(self, requests: int) -> None:
        """Retire with the request that is the worker's ``requests``-th."""

    def retire(self) -> None:
        """Leave the listeners to the siblings, and hand over to them who stands between two requests."""

    def close_after_answer(self) -> None:
        """Serve on, and accept, but close each connection behind its next answer."""

    def stop(self, *, quick: bool, patience: float) -> None:
        """Stop with the whole pool; idle clients are waited for, for ``patience`` seconds, unless ``quick``."""

    def tick(self) -> int | None:
        """See to what is due; return for how many milliseconds to sleep. Raises what ended the server."""

    def pulse(self, beat: Callable[[], None]) -> None:
        """Call ``beat`` if requests are served: at once, or where and when they are."""

    def end(self) -> None:
        """Begin to end what is not served any more, or cannot be; ``lead`` has to stay until it is ``over``."""

    def hear(self) -> None:
        """Empty ``monitor_fd``."""

    def close(self) -> None:
        """Give everything back, when nothing is served any more."""

    @property
    def descriptors(self) -> set[int]:
        """What a child that the application forks has to let go of."""

    @property
    def overdue(self) -> bool:
        """Whether a request was given up, and is still there."""

    @property
    def stuck(self) -> int:
        """How many of the requests that were given up are still there."""

    @property
    def given_up(self) -> Collection[threading.Thread]:
        """Threads of the application, among which are those that requests waited for that were given up."""

    @property
    def leaving(self) -> bool:
        """Whether it retires or stops."""

    @property
    def drained(self) -> bool:
        """Whether nothing is left to answer, and nothing new can come."""


def new_driver(app: Callable[..., Any], listeners: Iterable[Listener], config: Config, outfit: Outfit) -> Driver:
    """Return the driver for an application, by ``config.interface`` or by what the application looks like."""
    if interface_of(app, config) == "asgi":
        return _asgi_driver(config)(as_single(app), listeners, config, outfit)
    from prefork.wsgi.driver import WsgiDriver

    return WsgiDriver(app, listeners, config, outfit)


def _asgi_driver(config: Config) -> type[AsgiDriver]:
    """Return the driver that speaks WebSocket, if it is asked for and can be had."""
    if config.websocket and find_spec("wsproto") is not None:
        from prefork.asgi.websocket import WebSocketDriver

        return WebSocketDriver
    from prefork.asgi.driver import AsgiDriver

    return AsgiDriver
