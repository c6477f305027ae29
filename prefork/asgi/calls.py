"""What does the application say and hear about one request?"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from prefork.asgi.gateway import Answer, request_scope
from prefork.outbox import Outbox
from prefork.reception import Guest

if TYPE_CHECKING:
    import _socket
    from collections.abc import Coroutine, Mapping

    from prefork.asgi.backends import Signal
    from prefork.asgi.driver import AsgiDriver
    from prefork.http1.connection import Connection
    from prefork.http1.messages import Request
    from prefork.overtime import Running
    from prefork.tls import Session

HIGH = 65536
"""How many bytes may wait, of a body for the application, or of an answer for the client, before their sender waits."""
LOW = 16384
"""How many bytes of an answer are still to be sent when the application goes on."""

TURN = 262144
"""How many bytes an application may send before the others have their turn, although its client takes all at once."""
COST = 256
"""As how many bytes a message counts besides those that it brings."""


class ClientLeft(ConnectionError):
    """The client is gone: what the application still has to say is heard by nobody."""


class Client(Guest):
    """One connection, and the call that is answered on it now."""

    __slots__ = ("call", "eof", "hung_up")

    session: Session | None = None
    """Its TLS session, where it speaks TLS."""

    def __init__(
        self,
        driver: AsgiDriver,
        sock: _socket.socket,
        connection: Connection,
        base: dict[str, Any],
        peer: tuple[str, str] | None,
    ) -> None:
        super().__init__(sock, connection, base, peer, driver.receive)
        self.call: Call | None = None
        self.eof = False
        """Whether the client's last byte was read; it may still read itself."""
        self.hung_up = False
        """Whether it is known to send nothing more, while what it has sent may be unread."""

    def new_outbox(self, spool_dir: str | None) -> Outbox:
        """Return what holds what the client does not take at once."""
        return Outbox(spool_dir)

    def encrypted(self, octets: bytes) -> bytes:
        """Return what goes on the wire for ``octets``."""
        raise NotImplementedError


class Call:
    """One call of the application, and its two ways to speak about the request: ``receive`` and ``send``."""

    __slots__ = (
        "_driver",
        "_signal",
        "_told",
        "_unbroken",
        "answer",
        "answered",
        "cancelled",
        "cell",
        "client",
        "coroutine",
        "ended",
        "handle",
        "held_back",
        "left",
        "logged",
        "pieces",
        "received",
        "request",
        "request_id",
        "running",
        "since",
        "size",
        "warned",
    )

    scope_of = staticmethod(request_scope)

    def __init__(self, driver: AsgiDriver, client: Client, request: Request) -> None:
        self._driver = driver
        self._signal: Signal | None = None
        self._told = False  # that the body is over
        self._unbroken = 0  # what was sent since others had their turn
        self.client = client
        self.request = request
        self.answer = Answer(client.connection, request.head)
        self.pieces: list[bytes] = []
        """What was received of the body and not yet taken."""
        self.size = 0
        """How many bytes that is."""
        self.ended = request.head.length == 0
        """Whether the whole body was received."""
        self.held_back = request.head.awaits_continue
        """Whether its client may hold the body back, for the application has not asked for it yet."""
        self.left = False
        """Whether the application is told that the client is gone."""
        self.warned = False
        """Whether it was told so because the pool stops."""
        self.cancelled = False
        """Whether its task was told to end."""
        self.answered = False
        """Whether the whole answer went out, or waits for nothing but the client."""
        self.received = 0
        """How many bytes of the body have come."""
        self.logged = False
        self.request_id = ""
        self.cell = 0
        self.since = 0.0
        self.running: Running | None = None
        """Its limit of time, where there is one."""
        self.handle: Any = None
        self.coroutine: Coroutine[Any, Any, None] | None = None

    async def run(self) -> None:
        """Call the application."""
        await self._driver.call(self)

    def fail(self, error: BaseException) -> None:
        """Take note of what the loop finds wrong with its task when it has ended."""
        self._driver.fail_behind_its_end(self, error)

    def add(self, data: bytes) -> None:
        """Keep a piece of the body for the application."""
        self.pieces.append(data)
        self.size += len(data)
        self.received += len(data)

    def wake(self) -> None:
        """Let the application see what has changed."""
        if self._signal is not None:
            self._signal.set()

    def leave(self) -> None:
        """Tell the application that the client is gone."""
        self.left = True
        self.wake()

    async def _wait(self) -> None:
        if self._signal is None:
            self._signal = self._driver.backend.signal()
        await self._signal.wait()

    async def receive(self) -> dict[str, Any]:
        """Return the next piece of the body, then wait until the client is gone or has its answer."""
        if self.held_back:
            self.held_back = False
            if not (self.pieces or self.ended or self.answer.sent or self.left):
                with suppress(OSError):  # of a client that has left, as is told in a moment
                    self._driver.put(self.client, self.client.connection.go_on())
            if self.client.call is self:
                self._driver.read_on(self.client)
        while True:
            if self.answer.done:
                return {"type": "http.disconnect"}
            if self.pieces or (self.ended and not self._told):
                return self._take()
            if self.left:
                return {"type": "http.disconnect"}
            await self._wait()

    def _take(self) -> dict[str, Any]:
        pieces = self.pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        full = self.size >= HIGH
        self.pieces, self.size = [], 0
        self._told = self.ended
        if full:
            self._driver.read_on(self.client)
        return {"type": "http.request", "body": body, "more_body": not self._told}

    async def send(self, message: Mapping[str, Any]) -> None:
        """Send a part of the answer; wait while the client takes too little of it.

        Raises ``OSError`` once the client is gone.
        """
        driver, client, answer = self._driver, self.client, self.answer
        if driver.stray:
            os._exit(1)
        if client.call is not self and not answer.done:
            raise ClientLeft("the client is gone, or was answered for")
        if message["type"] == "http.response.pathsend":
            driver.put_file(self, message["path"])
        else:
            octets = answer.take(message, driver.date())
            self._unbroken += len(octets) + COST
            if octets:
                if self.running is not None:
                    self.running.begin_to_send()
                driver.put(client, octets)
        if answer.done:
            driver.answered(self)
        else:
            while (outbox := client.outbox) is not None and outbox.size > LOW:
                await self._wait()
                if client.call is not self:
                    raise ClientLeft("the client is gone")
            if self._unbroken >= TURN:
                await self._give_way()

    async def _give_way(self) -> None:
        """Let the others have their turn: a client that takes all at once would never make its application wait."""
        self._unbroken = 0
        await self._driver.backend.sleep(0)

    def extend_deadline(self, seconds: float) -> None:
        """Give the request at least so many seconds from now on, where it has a limit of time."""
        if self.running is not None:
            self.running.extend(seconds)

    def age(self) -> float:
        """Return for how many seconds the application has been at it."""
        return round(time.monotonic() - self.since, 3)
