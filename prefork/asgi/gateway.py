"""What does an ASGI application see, and what may it answer?

ASGI 3, HTTP, version 2.5 of its specification, with the extensions for early hints, trailers and files. The gateway knows
neither sockets nor tasks: messages go in, octets come out.
"""

from __future__ import annotations

from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote_to_bytes

from prefork.http1.forwarded import is_forwarding, read_forwarding
from prefork.http1.messages import Misanswered, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from prefork.http1.connection import Connection
    from prefork.http1.forwarded import Belief, Said
    from prefork.http1.messages import Head, Request, RequestLine
    from prefork.reception import Origin

VERSIONS = {"version": "3.0", "spec_version": "2.5"}
# The numbers of RFC 8446 section 4.2.1 and its predecessors.
_TLS_VERSIONS = {"TLSv1": 0x0301, "TLSv1.1": 0x0302, "TLSv1.2": 0x0303, "TLSv1.3": 0x0304}
_WEBSOCKET_SCHEMES = {"http": "ws", "https": "wss"}
_KNOWN = 512
_KNOWN_FIELDS = 32
_KNOWN_SIZE = 1024
_KNOWN_NAME_SIZE = 64  # or somebody could fill the memory with long ones
_NEW, _STARTED, _SENDING, _TRAILERS, _DONE = range(5)


# What it sees.


class Base(dict[str, Any]):
    """The part of the scope that all requests share whose peers came through one listener and are trusted alike."""

    __slots__ = ("belief", "on_ignored", "origin")

    def __init__(
        self,
        scope: dict[str, Any],
        origin: Origin,
        belief: Belief | None,
        on_ignored: Callable[[Sequence[bytes], str], None],
    ) -> None:
        super().__init__(scope)
        self.belief = belief
        """Which fields of these peers are believed; ``None``: they are no proxies of ours."""
        self.origin = origin
        self.on_ignored = on_ignored
        """What to call with the names of fields that are ignored, once for each, and the address of the peer."""

    def extended(self, facts: dict[str, Any]) -> Base:
        """Return the same with further facts in the scope."""
        return Base({**self, **facts}, self.origin, self.belief, self.on_ignored)


def server_scope(
    *, scheme: str, server: tuple[str, int | None], root_path: str, extensions: dict[str, Any]
) -> dict[str, Any]:
    """Return the part of the scope that all requests of one listener share.

    ``server`` is a path and ``None`` on a UNIX socket; ``root_path`` where the application is mounted, without a slash at
    its end.
    """
    return {
        "type": "http",
        "asgi": VERSIONS,
        "scheme": scheme,
        "server": server,
        "root_path": root_path,
        "extensions": {
            "http.response.early_hint": {},
            "http.response.pathsend": {},
            "http.response.trailers": {},
            **extensions,
        },
    }


def request_scope(
    base: Base, state: dict[str, Any] | None, peer: tuple[str, str] | None, request: Request
) -> dict[str, Any]:
    """Return the scope of one request: ``base`` of its listener, and what the request says.

    ``state`` is what the lifespan has left there, ``None`` where there is no lifespan; ``peer`` the client's address and
    port, ``None`` where it has none. If it is a trusted proxy, and the request says whose it is, that is the client, and
    ``prefork.peer`` among the extensions is the peer. What an application may change is its own.
    Raises ``Refused`` if what a trusted proxy says cannot be read.
    """
    head, line = request.head, request.line
    memo = head.memo
    if memo is None or memo[0] is not base:
        memo = head.memo = _judge_fields(base, peer, head)
    _, fields, said = memo
    scope: dict[str, Any] = {
        **base,
        **(line.memo or _line_scope(line, base["root_path"])),
        "asgi": base["asgi"].copy(),
        "client": None if peer is None else (peer[0], int(peer[1] or 0)),
        "headers": fields.copy(),
        "extensions": base["extensions"].copy(),
    }
    if state is not None:
        scope["state"] = state.copy()
    if said is not None:
        _add_said(scope, said, peer, line)
    return scope


def websocket_scope(scope: dict[str, Any], subprotocols: Iterable[str]) -> dict[str, Any]:
    """Return the scope of a WebSocket, made of that of the request which asks for it."""
    del scope["method"]
    scope["type"] = "websocket"
    scope["scheme"] = _WEBSOCKET_SCHEMES[scope["scheme"]]
    scope["subprotocols"] = list(subprotocols)
    others = {name: said for name, said in scope["extensions"].items() if not name.startswith("http.")}
    scope["extensions"] = {"websocket.http.response": {}, **others}
    return scope


def _line_scope(line: RequestLine, root_path: str) -> dict[str, Any]:
    said = line.memo = _mounted(line, root_path)
    said["http_version"] = line.version
    said["method"] = line.method
    said["query_string"] = line.query
    return said


def _mounted(line: RequestLine, root_path: str) -> dict[str, Any]:
    """Return the path, in which the place where the application is mounted is always told."""
    raw = line.path
    octets = unquote_to_bytes(raw) if b"%" in raw else raw
    # As RFC 3986 section 2.5 has it; what is no UTF-8 stays distinguishable, and can be encoded back.
    path = octets.decode("utf-8", "surrogateescape")
    if root_path and not (path + "/").startswith(root_path + "/"):
        path, raw = root_path + path, quote(root_path, errors="surrogateescape").encode() + raw
    return {"path": path, "raw_path": raw}


def _judge_fields(
    base: Base, peer: tuple[str, str] | None, head: Head
) -> tuple[Base, list[tuple[bytes, bytes]], Said | None]:
    """Return what is remembered of a head; raises ``Refused``."""
    fields = [(name.lower(), value) for name, value in head.fields]
    if base.belief is None:
        ignored = [name for name, _ in fields if is_forwarding(name)]
        if ignored:
            news = {name for name in ignored if name not in _told and len(name) <= _KNOWN_NAME_SIZE}
            if news and len(_told) < _KNOWN:
                _told.update(news)
                base.on_ignored(sorted(news), "" if peer is None else peer[0])
            fields = [field for field in fields if field[0] not in ignored]
        return base, fields, None
    said = read_forwarding(head.fields, base.belief)
    if said is not None and (said.host or said.port):
        here = next((value for name, value in fields if name == b"host"), b"")
        host, name, _ = said.authority(here.decode("latin-1"), base["scheme"])
        if name:
            fields = [(b"host", host.encode("latin-1")), *(field for field in fields if field[0] != b"host")]
    return base, fields, said


_told: set[bytes] = set()
"""The fields that speak for a client and of which it was told that they are ignored."""


def _add_said(scope: dict[str, Any], said: Said, peer: tuple[str, str] | None, line: RequestLine) -> None:
    """Have a proxy's word count."""
    if said.scheme or said.host or said.port:
        here, port = scope["server"]
        host = next((value for name, value in scope["headers"] if name == b"host"), b"")
        _, name, port = said.authority(host.decode("latin-1"), scope["scheme"])
        scope["server"] = (here if said.host is None else name.strip("[]"), int(port))
    if said.scheme is not None:
        scope["scheme"] = said.scheme
    if said.root_path is not None:
        scope["root_path"] = said.root_path.encode("latin-1").decode("utf-8", "surrogateescape")
        scope.update(_mounted(line, scope["root_path"]))
    if said.client is not None:
        scope["client"] = (said.client[0], int(said.client[1] or 0))
        scope["extensions"].setdefault("prefork.peer", "" if peer is None else peer[0])


def asked_by(base: Base, peer: tuple[str, str] | None, request: Request) -> tuple[str, str]:
    """Return by whom a request comes: the address, empty if it is not known, and the scheme.

    What a proxy says and cannot be read is taken for nothing.
    """
    memo, said = request.head.memo, None
    # Nothing may be remembered yet, or what a peer was told who sent the same head and is trusted otherwise.
    if memo is None or memo[0] is not base:
        with suppress(Refused):
            said = _judge_fields(base, peer, request.head)[2]
    else:
        said = memo[2]
    client, scheme = peer, base["scheme"]
    if said is not None:
        client, scheme = said.client or peer, said.scheme or scheme
    return "" if client is None else client[0], scheme


def tls_extension(facts: dict[str, str]) -> dict[str, Any]:
    """Return what the TLS extension of ASGI says of a session, as far as it is known here."""
    certificate = facts.get("SSL_CLIENT_CERT")
    return {
        "server_cert": None,
        "client_cert_chain": [] if certificate is None else [certificate],
        "client_cert_name": facts.get("SSL_CLIENT_S_DN"),
        "client_cert_error": None,
        "tls_version": _TLS_VERSIONS.get(facts["SSL_PROTOCOL"]),
        "cipher_suite": None,
    }


# What it may answer.


class _Starts(dict[tuple[Any, ...], tuple[str, tuple[tuple[str, str], ...]]]):
    """Status and fields of the last answers, as the connection wants them: applications repeat them."""

    def __missing__(self, key: tuple[Any, ...]) -> tuple[str, tuple[tuple[str, str], ...]]:
        made = _start(key[0], key[1:])
        if len(key) <= _KNOWN_FIELDS and sum(len(name) + len(value) for name, value in made[1]) <= _KNOWN_SIZE:
            if len(self) >= _KNOWN:
                self.clear()
            self[key] = made
        return made


def _start(status: int, fields: Iterable[Any]) -> tuple[str, tuple[tuple[str, str], ...]]:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"{status} {phrase}", decoded(fields)


def decoded(fields: Iterable[Any]) -> tuple[tuple[str, str], ...]:
    """Return an application's fields as the connection wants them; raises ``Misanswered``."""
    try:
        return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in fields)
    except (AttributeError, TypeError, ValueError):
        raise Misanswered(f"headers are no pairs of bytes: {fields!r}") from None


_starts = _Starts()


class File:
    """A file that is to be sent behind ``head``, as far as ``size`` says; ``tail`` ends the answer."""

    __slots__ = ("head", "size", "tail")

    def __init__(self, head: bytes, size: int, tail: bytes) -> None:
        self.head = head
        self.size = size
        self.tail = tail


class Answer:
    """The answer to one request, as the application makes it message by message."""

    __slots__ = ("_connection", "_head", "_state", "_trailers", "fault", "fields", "size", "status")

    def __init__(self, connection: Connection, head: Head) -> None:
        self._connection = connection
        self._state = _NEW
        self._trailers: list[tuple[str, str]] | None = None
        self._head = head
        self.status = ""
        """Code and reason."""
        self.fields: Sequence[tuple[str, str]] = ()
        self.size = 0
        """How many bytes of body were sent."""
        self.fault: Misanswered | None = None
        """What was wrong with it; an application may have caught that."""

    @property
    def sent(self) -> bool:
        """Whether the head went out, so that nothing about it can be changed."""
        return self._state > _STARTED

    @property
    def done(self) -> bool:
        """Whether it is complete."""
        return self._state == _DONE

    def take(self, message: Mapping[str, Any], date: bytes) -> bytes:
        """Return the octets that a message puts on the wire, perhaps none.

        Raises ``Misanswered`` for what would break HTTP, and ``RuntimeError`` for a message that is not due.
        """
        kind = message["type"]
        try:
            if kind == "http.response.body":
                return self._body(message, date)
            if kind == "http.response.start" and self._state == _NEW:
                self._begin(message)
                return b""
            if kind == "http.response.trailers" and self._state == _TRAILERS:
                return self._trail(message)
            if kind == "http.response.early_hint" and self._state == _NEW:
                links = [("Link", _link(link)) for link in message["links"]]
                return self._connection.informational("103 Early Hints", links)
        except Misanswered as fault:
            self.fault = fault
            raise
        raise self._unexpected(kind)

    def _unexpected(self, kind: str) -> RuntimeError:
        due = (
            "http.response.start",
            "http.response.body",
            "http.response.body",
            "http.response.trailers",
            "nothing more",
        )
        return RuntimeError(f"the application sent {kind!r} where {due[self._state]} is due")

    def _begin(self, message: Mapping[str, Any]) -> None:
        # What is equal to a number is not always written as one; and fields may come one by one, which can be done once.
        key = (int(message["status"]), *message.get("headers", ()))
        try:
            self.status, self.fields = _starts[key]
        except TypeError:  # pairs may be lists
            self.status, self.fields = _start(key[0], key[1:])
        if message.get("trailers"):
            self._trailers = []
        self._state = _STARTED

    def _body(self, message: Mapping[str, Any], date: bytes) -> bytes:
        state = self._state
        body = message.get("body", b"")
        if type(body) is not bytes:
            body = bytes(memoryview(body))  # the application may fill its buffer anew while this one waits
        if state == _STARTED:
            connection = self._connection
            self._end_behind_unread()
            if not message.get("more_body") and self._trailers is None:
                octets = connection.whole(self.status, self.fields, date, body)
                self.size = 0 if connection.bodiless else len(body)
                self._state = _DONE
                return octets
            head = connection.start(self.status, self.fields, date)
            return head + self._piece(body, more=message.get("more_body", False))
        if state == _SENDING:
            return self._piece(body, more=message.get("more_body", False))
        raise self._unexpected("http.response.body")

    def _end_behind_unread(self) -> None:
        """See that what is still to come of the request does not stand where the next one begins."""
        if self._connection.awaits_body:
            self._connection.answer_close = True

    def _piece(self, body: bytes, *, more: bool) -> bytes:
        octets = self._connection.data(body)
        self.size += 0 if self._connection.bodiless else len(body)
        if more:
            self._state = _SENDING
            return octets
        if self._trailers is not None:
            self._state = _TRAILERS
            return octets
        octets += self._connection.finish()
        self._state = _DONE
        return octets

    def _trail(self, message: Mapping[str, Any]) -> bytes:
        assert self._trailers is not None
        self._trailers += decoded(message.get("headers", ()))
        if message.get("more_trailers"):
            return b""
        octets = self._connection.finish(self._trailers if _takes_trailers(self._head) else ())
        self._state = _DONE
        return octets

    def file(self, size: int, date: bytes) -> File:
        """Begin an answer whose body is a file of so many bytes (``http.response.pathsend``), and end it behind that."""
        if self._state != _STARTED:
            raise self._unexpected("http.response.pathsend")
        connection = self._connection
        self._end_behind_unread()
        try:
            head = connection.start(self.status, self.fields, date, size)
            # Of a file that is longer than the declared length, that much is meant.
            size = connection.room(size)
            size = size if connection.opaque(size) else 0
            self.size = size
            file = File(head, size, connection.finish())
        except Misanswered as fault:
            self.fault = fault
            raise
        self._state = _DONE
        return file

    def fail(self, date: bytes) -> bytes:
        """Return 500 for an application that failed before its head went out."""
        body = b"Internal Server Error\n"
        self.status = "500 Internal Server Error"
        self.fields = (("content-type", "text/plain; charset=utf-8"),)
        connection = self._connection
        self._end_behind_unread()
        if self.fault is not None:
            connection.answer_close = True
        self._state = _DONE
        self.size = len(body)
        return connection.whole(self.status, self.fields, date, body)


def _link(link: Any) -> str:
    return link.decode("latin-1") if isinstance(link, bytes) else str(link)


def _takes_trailers(head: Head) -> bool:
    """Whether the client says that it reads trailers (RFC 9110 section 6.5.1)."""
    return any(name.lower() == b"te" and b"trailers" in value.lower() for name, value in head.fields)
