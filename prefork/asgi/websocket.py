"""How do the WebSockets of an application live beside its requests, and how do they end?

A WebSocket begins as a request, and until the application accepts it, it is one: it is counted and timed as one, and can be
answered as one. Then the ``Session`` takes the place of the HTTP connection: what the client sends waits for the
application, within bounds, and what it does not take makes the application wait, as with any answer.

The end is said by either side, by the server when a worker leaves, or by nobody. The application hears of it in any case.
"""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from prefork.asgi.calls import COST, HIGH, LOW, TURN, Call, Client, ClientLeft
from prefork.asgi.driver import AsgiDriver, came_of_leaving
from prefork.asgi.gateway import decoded, request_scope, websocket_scope
from prefork.config import QUICK_STOP_S
from prefork.http1.connection import Phase
from prefork.reception import AT_ONCE, NEVER
from prefork.scoreboard import BUSY
from prefork.websocket import (
    FAILED,
    GOING_AWAY,
    LOST,
    RESTART,
    Finding,
    Presence,
    Session,
    acceptance,
    read_handshake,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefork.asgi.gateway import Base
    from prefork.http1.messages import Request, Upgrade
    from prefork.websocket import Handshake

CLOSE_S = 5.0
"""How long a client has to say that it has heard of the end."""
_COST = 64
"""What a message costs in memory besides its bytes, about."""
_NORMAL = 1000
_DENIED = {"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain; charset=utf-8")]}
_CLOSED = Phase.CLOSED


class WebSocketCall(Call):
    """One call of the application for a WebSocket."""

    __slots__ = ("close_by", "connected", "end", "handshake", "presence", "session", "told")

    _driver: WebSocketDriver

    def __init__(self, driver: WebSocketDriver, client: Client, request: Request, handshake: Handshake) -> None:
        super().__init__(driver, client, request)
        self.handshake = handshake
        self.session: Session | None = None
        """What is spoken, once the application has accepted."""
        self.connected = False
        """Whether the application was told of it."""
        self.end: tuple[int, str] | None = None
        """With which code and reason it is over, as the application is told."""
        self.told = False
        """Whether it was the application that said so."""
        self.presence: Presence | None = None
        """Whether the client is still there, once the application has accepted."""
        self.close_by = NEVER
        """Until when it has to answer that this is the end."""

    def scope_of(
        self, base: Base, state: dict[str, Any] | None, peer: tuple[str, str] | None, request: Request
    ) -> dict[str, Any]:
        """Return the scope of the WebSocket."""
        return websocket_scope(request_scope(base, state, peer, request), self.handshake.subprotocols)

    def leave(self) -> None:
        """Tell the application that the client is gone."""
        if self.end is None:
            self.end = (LOST, "")
        super().leave()

    def add_message(self, message: Any) -> None:
        """Keep a message for the application."""
        self.pieces.append(message)
        self.size += len(message) + _COST

    def wake(self) -> None:
        """Let the application see what has changed."""
        super().wake()
        if self.session is not None and self.session.pong is not None:
            self._driver.answer_ping(self)

    async def receive(self) -> dict[str, Any]:
        """Return the next message, and at last that it is over."""
        if not self.connected:
            self.connected = True
            return {"type": "websocket.connect"}
        while True:
            if self.pieces:
                return self._take_message()
            if self.end is not None or self.answer.done:
                code, reason = self.end or (LOST, "")
                return {"type": "websocket.disconnect", "code": code, "reason": reason}
            await self._wait()

    def _take_message(self) -> dict[str, Any]:
        message: Any = self.pieces.pop(0)
        full = self.size >= HIGH
        self.size = max(0, self.size - len(message) - _COST)
        if full and self.size < HIGH:
            self._driver.listen_again(self.client)
        return {"type": "websocket.receive", ("text" if isinstance(message, str) else "bytes"): message}

    async def send(self, message: Mapping[str, Any]) -> None:
        """Accept, deny, send or end; wait while the client takes too little.

        Raises ``OSError`` once it is over, and ``RuntimeError`` if it was the application that said so.
        """
        kind = message["type"]
        if self.session is None:
            await self._answer(kind, message)
            return
        if self.told:
            raise RuntimeError(f"the application sent {kind!r} behind websocket.close")
        if kind not in {"websocket.send", "websocket.close"}:
            raise RuntimeError(f"the application sent {kind!r} where websocket.send or websocket.close is due")
        if self.end is not None:
            raise ClientLeft("the WebSocket is over")
        if kind == "websocket.close":
            self._driver.finish(self, message.get("code", _NORMAL), message.get("reason") or "")
            self.told = True
            return
        octets = self.session.send(_said(message))
        self.answer.size += len(octets)
        self._driver.put(self.client, octets)
        while (outbox := self.client.outbox) is not None and outbox.size > LOW:
            await self._wait()
            if self.end is not None:
                raise ClientLeft("the WebSocket is over")
        self._unbroken += len(octets) + COST
        if self._unbroken >= TURN:
            await self._give_way()

    async def _answer(self, kind: str, message: Mapping[str, Any]) -> None:
        """Answer the request that the WebSocket is so far."""
        if kind == "websocket.accept" and not (self.answer.sent or self.answer.status):
            if self.client.call is not self or self.left or self.client.eof:
                raise ClientLeft("the client is gone, or was answered for")
            self._accept(message)
        elif kind == "websocket.close":
            await super().send(_DENIED)
            await super().send({"type": "http.response.body", "body": b"Forbidden\n"})
        elif kind in {"websocket.http.response.start", "websocket.http.response.body"}:
            await super().send({**message, "type": kind.removeprefix("websocket.")})
        else:
            raise RuntimeError(f"the application sent {kind!r} where websocket.accept or websocket.close is due")

    def _accept(self, message: Mapping[str, Any]) -> None:
        driver, client, handshake = self._driver, self.client, self.handshake
        window = handshake.window if driver.config.websocket_compression else 0
        own = decoded(message.get("headers") or ())
        fields = acceptance(handshake, message.get("subprotocol"), own, compressed=bool(window))
        octets, behind = client.connection.switch("websocket", fields)
        self.answer.status, self.answer.fields = "101 Switching Protocols", fields
        self.session = Session(driver.config.websocket_max_size, window)
        client.connection = self.session  # type: ignore[assignment]  # it has what is asked of one
        driver.open(self, octets, behind)


def _said(message: Mapping[str, Any]) -> str | bytes:
    """Return what is to be sent; raises ``TypeError`` for what is neither text nor bytes."""
    text = message.get("text")
    if text is None:
        octets = message.get("bytes")
        return octets if isinstance(octets, bytes) else bytes(memoryview(octets))  # type: ignore[arg-type]  # anything
    if not isinstance(text, str):
        raise TypeError(f"the text of websocket.send is {text!r}")
    return text


class WebSocketDriver(AsgiDriver):
    """Serves WebSockets too."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._last_word: tuple[int, str] | None = None  # what WebSockets are told that are still open, or open now
        self._close_s = CLOSE_S
        self._interval = self.config.websocket_ping_interval or NEVER
        self._patience_s = self.config.websocket_ping_timeout or NEVER

    def _upgrade(self, client: Client, request: Upgrade) -> None:
        """Begin with a WebSocket, as a request whose connection serves no other one."""
        handshake = read_handshake(request)
        client.in_head = False
        client.connection.answer_close = True
        if client.queue_s is not None and client.queue_s > self._patience:
            self._turn_away_late(client, request)
            return
        client.pace = None
        client.call = call = WebSocketCall(self, client, request, handshake)
        self._start(call)

    def open(self, call: WebSocketCall, octets: bytes, behind: bytes) -> None:
        """Speak WebSocket from now on; ``behind`` came behind the handshake. Raises ``OSError`` if the client is gone."""
        client = call.client
        client.step = self.receive_frames
        # The request is answered: neither the limit of its time counts any more, nor does it take a place.
        call.running = None
        self._timed.pop(call, None)
        if call.cell:
            self._board[call.cell + BUSY] = 0
            self._cells.append(call.cell)
            call.cell = 0
        if self._access is None:
            # The application has its fields: a kilobyte for as long as it is open. Nobody else has this head.
            head = call.request.head
            head.fields, head.memo = [], (head.memo[0], [], head.memo[2])
        call.presence = Presence(self._interval, self._patience_s, time.monotonic())
        client.deadline = call.presence.due
        self.put(client, octets)
        if self._last_word is not None:
            self.finish(call, *self._last_word)
        elif behind:
            self._take_in(call, behind)
        self._settle(client)

    # What comes in.

    def receive_frames(self, client: Client) -> bool:
        """Take in what the client sent."""
        call = client.call
        if not isinstance(call, WebSocketCall) or call.session is None:
            return False  # it was found gone when the application sent something, and is about to be closed
        try:
            data = client.receive(call.session.bite, AT_ONCE)
        except BlockingIOError:
            return False
        if data:
            self._take_in(call, data)
        else:
            client.broken = True
        return False

    def _take_in(self, call: WebSocketCall, data: bytes) -> None:
        client, session, presence = call.client, call.session, call.presence
        assert session is not None
        assert presence is not None
        presence.heard_at = time.monotonic()
        call.received += len(data)
        for message in session.receive(data):
            call.add_message(message)
        if session.unsent:
            octets, session.unsent = session.unsent, b""
            self.put(client, octets)
        if session.phase is _CLOSED:
            self._end_session(call)
        call.wake()

    def _end_session(self, call: WebSocketCall) -> None:
        """Take note that both ends have said that it is over, or one that it goes on no more."""
        client, session = call.client, call.session
        assert session is not None
        if call.end is None:
            call.end = session.end
            if session.said is not None:
                self._tell_of_mistake(call, *session.said)
        client.call = None
        self._log(call, "complete")

    def _tell_of_mistake(self, call: WebSocketCall, code: int, reason: str) -> None:
        path, client = call.request.line.path.decode("latin-1"), self._asked_by(call.client, call.request)[0]
        self.records.emit("websocket.failed", path=path, client=client, close_code=code, reason=reason)

    def answer_ping(self, call: WebSocketCall) -> None:
        """Answer the client's last ping, unless it does not even take what it was sent already."""
        client, session = call.client, call.session
        assert session is not None
        if call.end is None and (client.outbox is None or client.outbox.size < HIGH):
            with suppress(OSError):
                self.put(client, session.take_pong())

    def listen_again(self, client: Client) -> None:
        """Go on with a client whose application has caught up."""
        self._settle(client)

    # The end.

    def finish(self, call: WebSocketCall, code: int, reason: str) -> None:
        """Say that this is the end, and wait until the client says so too. Raises ``Misanswered`` for no such code."""
        client, session = call.client, call.session
        assert session is not None
        octets = session.finish(code, reason)
        call.end = code, reason
        call.size = 0  # nothing that still comes is kept
        call.close_by = time.monotonic() + self._close_s
        client.deadline = min(client.deadline, call.close_by)
        with suppress(OSError):
            self.put(client, octets)
        call.wake()
        self._settle(client)

    def _left_undone(self, call: Call) -> None:
        if not isinstance(call, WebSocketCall) or call.session is None:
            super()._left_undone(call)
        elif call.end is None:
            self.finish(call, _NORMAL, "")

    def _fail(self, call: Call, error: BaseException) -> None:
        if not isinstance(call, WebSocketCall) or call.session is None:
            super()._fail(call, error)
            return
        if call.end is not None and came_of_leaving(error):
            return
        self._tell_of_failure(call, error)
        self._log(call, "failed")
        if call.end is None:
            self.finish(call, FAILED, "")

    def _expire(self, client: Client) -> None:
        """See whether a client is still there, and took in time what it had to."""
        call = client.call
        if not isinstance(call, WebSocketCall) or call.session is None:
            super()._expire(client)
            return
        now = time.monotonic()
        due = self._look_whether_there(call, now)
        if client.outbox is not None:
            client.broken |= not client.takes()
            due = min(due, client.deadline)
        client.deadline = due
        self._settle(client)

    def _look_whether_there(self, call: WebSocketCall, now: float) -> float:
        """Ask a client that says nothing whether it is there, or give it up; return when to look again."""
        client, session, presence = call.client, call.session, call.presence
        assert session is not None
        assert presence is not None
        if call.end is not None:
            if now >= call.close_by:
                self._give_up_websocket(client)
            return call.close_by
        match presence.look(now, unread=call.size >= HIGH):
            case Finding.SILENT:
                with suppress(OSError):
                    self.put(client, session.ping())
            case Finding.GONE:
                self._tell_of_mistake(call, FAILED, "it did not answer a ping")
                self.finish(call, FAILED, "no answer to a ping")
                self._give_up_websocket(client)
            case Finding.PRESENT:
                pass
        return presence.due

    @staticmethod
    def _give_up_websocket(client: Client) -> None:
        if client.outbox is not None:
            client.forget_unsent()
        client.broken = True

    # The worker leaves.

    def _retire(self, *, spent: bool = False) -> None:
        fresh = not self._leaving
        super()._retire(spent=spent)
        if fresh:
            when = time.monotonic() + self.config.websocket_drain_timeout
            self._at(when, partial(self._finish_all, RESTART, "the service restarts"))

    def _stop(self, *, quick: bool, patience: float) -> None:
        self._close_s = min(CLOSE_S, (QUICK_STOP_S if quick else self.config.graceful_timeout) / 2)
        super()._stop(quick=quick, patience=patience)

    def _end_streams(self) -> None:
        for call in list(self._calls):
            if isinstance(call, WebSocketCall) and call.session is not None:
                if call.warned:
                    self._cancel_in_stop(call)
                call.warned = True
        self._finish_all(GOING_AWAY, "the server stops")
        super()._end_streams()

    def _finish_all(self, code: int, reason: str) -> None:
        self._last_word = code, reason
        for call in list(self._calls):
            if isinstance(call, WebSocketCall) and call.session is not None and call.end is None:
                self.finish(call, code, reason)
