"""Which words do a connection and its driver share?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

Field: TypeAlias = tuple[bytes, bytes]

CHUNKED = -1
"""The ``Request.length`` of a body whose end is told by its last chunk."""


@dataclass(slots=True, eq=False)
class RequestLine:
    """The first line of a request. Requests that repeat it share it: it is never changed.

    ``target`` is what the client sent, ``path`` and ``query`` are its two parts, still percent-encoded. ``host`` is the
    one that an absolute target names, else ``None``. ``version`` is "1.0" or "1.1", the highest that we know. ``octets``
    is the whole line as it came.
    """

    method: str
    target: bytes
    path: bytes
    query: bytes
    host: bytes | None
    version: str
    octets: bytes
    memo: Any = None
    """A place for what a gateway makes of it, so that it is made once."""
    written: Any = None
    """The same for an access log."""


@dataclass(slots=True, eq=False)
class Head:
    """What the field lines of a request say together. Requests that repeat them share it: it is never changed.

    ``fields`` are in order of arrival, with names in whatever case the parser gives and values without padding.
    ``length`` is the size of the body in bytes, 0 without one, ``CHUNKED`` where only its end tells.
    ``keep_alive`` is what the client wishes, ``awaits_continue`` that it holds its body back (RFC 9110 10.1.1).
    """

    fields: list[Field]
    host: bytes
    length: int
    keep_alive: bool
    awaits_continue: bool
    memo: Any = None
    """A place for what a gateway makes of it, so that it is made once."""
    written: Any = None
    """The same for an access log."""


@dataclass(slots=True, eq=False)
class Request:
    """One request, checked against RFC 9112 and RFC 9110; its body comes apart."""

    line: RequestLine
    head: Head


class Upgrade(Request):
    """A request to go on as a WebSocket, for those who asked to be told of them."""

    __slots__ = ()


@dataclass(slots=True, eq=False)
class Body:
    """A piece of a request's body, never empty."""

    data: bytes


@dataclass(slots=True, eq=False)
class End:
    """The body is complete; a request without a body has no ``End``."""

    trailers: list[Field]


class Refused(Exception):
    """A request that must not be served: answer with ``status`` and close the connection.

    ``reason`` says in a few words what was wrong, ``source`` names the rule, ``fields`` go with the answer.
    """

    line: RequestLine | None = None
    """The first line of the request, where that was in order."""
    request: Request | None = None
    """The request, where its whole head was in order."""

    def __init__(self, status: int, reason: str, source: str, fields: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(f"{reason} ({source})")
        self.status = status
        self.reason = reason
        self.source = source
        self.fields = fields


class Misanswered(Exception):
    """An answer that would break HTTP: the application's mistake, told in words for its log."""


Event: TypeAlias = Request | Body | End
