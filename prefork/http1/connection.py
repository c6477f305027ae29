"""What does one HTTP/1.1 connection take, refuse and answer?

Bytes go in and come out; there is no socket, no clock, no thread. Rules of the house:

* Octets are judged once, by ``grammar``, before a parser sees them: the same for h11 and httptools.
* Whatever could be framed in two ways is refused, never repaired (RFC 9112 sections 6.3 and 11.2).
* After a refusal, a ``close`` or a cut the connection is closed for good: nothing behind it is looked at.
* A head is parsed only when the answer to the one before is finished: pipelined requests wait as plain bytes.
"""

from __future__ import annotations

from enum import Enum, auto
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from prefork.http1.chunks import ChunkDecoder
from prefork.http1.grammar import FIELD_NAME, STRAY_LINE_END
from prefork.http1.heads import line_too_long, options
from prefork.http1.messages import CHUNKED, Body, End, Event, Misanswered, Refused, Request

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from prefork.http1.heads import HeadReader


class Phase(Enum):
    """What the connection waits for."""

    HEAD = auto()
    """A request's head, or the rest of it."""
    BODY = auto()
    """The rest of a body of known length."""
    CHUNKS = auto()
    """The rest of a chunked body."""
    ANSWER = auto()
    """The answer to a complete request."""
    CLOSED = auto()
    """Nothing more."""


class Framing(Enum):
    """How the client learns where the answer's body ends (RFC 9112 section 6.3)."""

    NONE = auto()
    """There is no body: HEAD, 1xx, 204, 304."""
    LENGTH = auto()
    CHUNKED = auto()
    CLOSE = auto()


# Members of an Enum are looked up dearly in Python 3.11: ten of them cost a request 1 µs.
_HEAD, _BODY, _CHUNKS, _ANSWER, _CLOSED = Phase.HEAD, Phase.BODY, Phase.CHUNKS, Phase.ANSWER, Phase.CLOSED
_UNFRAMED, _BY_LENGTH, _BY_CHUNKS, _BY_CLOSE = Framing.NONE, Framing.LENGTH, Framing.CHUNKED, Framing.CLOSE

RETRY_AFTER = "1"
"""After how many seconds a client may ask again for whom there was no time (RFC 9110 section 10.2.3)."""

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_CODE_DIGITS = 3
_BODILESS = frozenset({204, 205, 304, *range(100, 200)})
_CONTROLS = bytes({*range(0x20), 0x7F} - {ord("\t")})

_LENGTH, _CONNECTION, _DATE, _SERVER, _HOP = range(1, 6)
_FRAMING = frozenset({_CONNECTION, _HOP})
_RESPONSE_FIELDS = {
    "content-length": _LENGTH,
    "connection": _CONNECTION,
    "date": _DATE,
    "server": _SERVER,
    "transfer-encoding": _HOP,
    "keep-alive": _HOP,
    "upgrade": _HOP,
    "proxy-authenticate": _HOP,
    "proxy-authorization": _HOP,
    "te": _HOP,
    "trailer": _HOP,
}
_KNOWN_HEADINGS = 512
_KNOWN_SIZE = 1024


class _Heading:
    """The head of an answer as far as the application determines it, checked, up to the value of ``Date``."""

    __slots__ = ("bodiless", "closes", "dated", "length", "octets")

    def __init__(self, status: str, fields: Iterable[tuple[Any, Any]], *, final: bool = True) -> None:
        code = status[:3]
        if not (len(code) == _CODE_DIGITS and code.isascii() and code.isdigit() and status[3:4] in {" ", ""}):
            raise Misanswered(f"malformed status: {status!r}")
        if not ("200" <= code <= "599" if final else "100" <= code <= "199"):
            raise Misanswered(f"no status of {'an answer' if final else 'an interim answer'}: {status!r}")
        self.bodiless = int(code) in _BODILESS
        """Whether answers with this status have no body."""
        self.closes = False
        """Whether the application wishes the connection to end."""
        self.length: int | None = None
        """The size of the body in bytes, where the application says it."""
        seen = set()
        # RFC 9112 section 4: the space stands there even where no reason is given.
        lines = [f"HTTP/1.1 {status}" if status[3:] else f"HTTP/1.1 {status} "]
        for name, value in fields:
            if not (isinstance(name, str) and isinstance(value, str)):
                raise Misanswered(f"a field is no pair of str: {(name, value)!r}")
            if FIELD_NAME.fullmatch(name) is None:
                raise Misanswered(f"malformed field name: {name!r}")
            kind = _RESPONSE_FIELDS.get(name.lower(), 0)
            if kind == _LENGTH:
                if not self._take_length(value, int(code)):
                    continue
            elif kind in _FRAMING:
                # PEP 3333: hop-by-hop fields are the server's; a wish to close is granted.
                self.closes |= kind == _CONNECTION and "close" in options(value)
                continue
            seen.add(kind)
            lines.append(f"{name}: {value}")
        if code == "205":
            # RFC 9110 section 15.3.6: nothing follows, and the client is told so.
            lines.append("Content-Length: 0")
        if final and _SERVER not in seen:
            lines.append("Server: prefork")
        self.dated = _DATE in seen or not final
        """Whether the application gives the date, or none is needed."""
        try:
            octets = "\r\n".join(lines).encode("latin-1")
        except UnicodeEncodeError:
            wrong = next(line for line in lines if max(line) > "\xff")
            raise Misanswered(f"a field holds characters beyond latin-1: {wrong!r}") from None
        if len(octets) - len(octets.translate(None, _CONTROLS)) != 2 * len(lines) - 2:
            # PEP 3333 allows no control character; CR and LF would begin a field, or an answer, of somebody else's.
            wrong = next(line for line in lines if any(ord(c) in _CONTROLS for c in line))
            raise Misanswered(f"a control character in the status or a field: {wrong!r}")
        self.octets = octets + (b"\r\n" if self.dated else b"\r\nDate: ")

    def _take_length(self, value: str, code: int) -> bool:
        """Take a Content-Length; return whether to send it: once, and where there is a body, or would be (304)."""
        if not (value.isascii() and value.isdigit()):
            raise Misanswered(f"Content-Length is no number: {value!r}")
        if self.length is not None:
            if self.length != int(value):
                raise Misanswered(f"two Content-Length fields: {self.length} and {value}")
            return False
        if self.bodiless and code != HTTPStatus.NOT_MODIFIED:
            return False
        self.length = int(value)
        return True


class _Headings(dict[tuple[Any, ...], _Heading]):
    """The headings of the last answers: applications repeat them."""

    def __missing__(self, key: tuple[Any, ...]) -> _Heading:
        heading = _Heading(key[0], key[1:])
        if len(heading.octets) <= _KNOWN_SIZE:
            if len(self) >= _KNOWN_HEADINGS:
                self.clear()
            self[key] = heading
        return heading


_headings = _Headings()


class Connection:
    """One connection, from its first byte to its last.

    Drive it with ``receive`` or ``recall`` and ``next_event`` until a request is complete, answer with ``start``, ``data``
    and ``finish``, then go on with ``next_event``. ``Refused`` is raised where a request must not be served: send
    ``refusal`` and close. ``Misanswered`` is raised where an answer would break HTTP.
    """

    __slots__ = (
        "_at",
        "_buffer",
        "_chunks",
        "_ends",
        "_framing",
        "_left",
        "_owed",
        "_reader",
        "_seen",
        "_version",
        "answer_close",
        "client_ends",
        "head_only",
        "leftover",
        "phase",
    )

    request_id = ""
    """By which id the present request is known, where it has one (see ``NamedConnection``)."""

    def __init__(self, reader: HeadReader) -> None:
        self._reader = reader
        self._buffer = b""
        self._at = 0
        self._seen = 0  # bytes of an unfinished head that were looked at
        self._left = 0  # bytes of the request's body that are still to come
        self._owed = 0  # bytes of the answer's body that are still to go out
        self._chunks: ChunkDecoder | None = None
        self._framing = _UNFRAMED
        self._version = "1.1"
        self.phase = _HEAD
        self._ends = False
        self.leftover = False
        """Whether bytes of the client were thrown away: it must be let to read its answer before the socket goes."""
        self.answer_close = False
        """Whether the connection ends after the present answer; set it to make it so."""
        self.client_ends = False
        """Whether the client has asked for that, and sends nothing more. Behind a body some do: a line end."""
        self.head_only = False
        """Whether the present request is a HEAD."""

    # What comes in

    @property
    def buffered(self) -> bool:
        """Whether bytes lie here that belong to no complete request yet."""
        return self._at < len(self._buffer)

    @property
    def idle(self) -> bool:
        """Whether the connection stands between two requests, without a byte of the next."""
        return self.phase is _HEAD and self._at >= len(self._buffer)

    @property
    def awaits_body(self) -> bool:
        """Whether a part of the present request's body is still to come."""
        return self.phase is _BODY or self.phase is _CHUNKS

    def receive(self, data: bytes) -> None:
        """Take what the client sent."""
        self._buffer = self._buffer[self._at :] + data if self._at < len(self._buffer) else data
        self._at = 0

    def recall(self, data: bytes) -> Request | None:
        """Take what the client sent; return the request, if it is whole, has no body, and the like was read before.

        If not, ask ``next_event``. It is the short way for those who repeat themselves to the octet.
        """
        request = self._reader.recall(data) if self.phase is _HEAD and self._at >= len(self._buffer) else None
        if request is None:
            self.receive(data)
            return None
        self._version = request.line.version
        self.head_only = request.line.method == "HEAD"
        self.answer_close = self.client_ends = not request.head.keep_alive
        self.phase = _ANSWER
        return request

    def next_event(self) -> Event | None:
        """Return the next event, or ``None`` if more bytes (or an answer) are needed; raises ``Refused``."""
        phase = self.phase
        try:
            if phase is _HEAD:
                return self._head()
            if phase is _BODY:
                return self._body()
            if phase is _CHUNKS:
                return self._chunk()
        except Refused:
            self.close()
            raise
        return None

    def _head(self) -> Request | None:
        buffer, at, reader = self._buffer, self._at, self._reader
        limit = at + reader.limits.max_head_size
        # RFC 9112 section 2.2: an empty line before the request line is skipped (old clients end a body so).
        while buffer.startswith(b"\r\n", at):
            at += 2
        # Nothing is looked at twice, or a head that comes octet by octet would cost the square of its length.
        new = self._at + self._seen
        limit += at - self._at
        self._at = at
        # An answer to HEAD has no body, even if it says that the rest of the head is wrong.
        self.head_only = buffer.startswith(b"HEAD ", at)
        end = buffer.find(b"\r\n\r\n", max(at, new - 3), limit)
        if end < 0:
            if at < len(buffer):
                self._check_unfinished(max(at, new - 1), limit)
                self._seen = len(buffer) - at
            else:
                self._move_to(at)
            return None
        self._seen = 0
        cut = buffer.find(b"\r\n", at)
        request = reader.read(buffer[at:cut], buffer[cut + 2 : end + 4])
        self._move_to(end + 4)
        self._version = request.line.version
        self.answer_close = not request.head.keep_alive
        self.client_ends = self.answer_close and not request.head.length
        if request.head.length:
            try:
                self._expect(request.head.length)
            except Refused as refused:
                refused.request = request
                raise
        else:
            self.phase = _ANSWER
        return request

    def _check_unfinished(self, new: int, limit: int) -> None:
        """Refuse a head that can only become worse, of which all before ``new`` was looked at."""
        buffer, at = self._buffer, self._at
        # The pattern would take a CR at the end of the body before for the other half of a first LF.
        if buffer.startswith(b"\n", at) or STRAY_LINE_END.search(buffer, new):
            raise Refused(400, "line ended by CR or LF alone", "RFC 9112 section 2.2")
        line_limit = min(at + self._reader.limits.max_request_line_size + 2, limit)
        if len(buffer) >= line_limit and buffer.find(b"\r\n", at, line_limit) < 0:
            raise line_too_long()
        if len(buffer) >= limit:
            raise Refused(431, "head longer than max_head_size", "RFC 6585 section 5")

    def _expect(self, length: int) -> None:
        """Make ready for the request's body."""
        limits = self._reader.limits
        if length > limits.max_body_size:
            raise Refused(413, "body longer than max_body_size", "RFC 9110 section 15.5.14")
        if length == CHUNKED:
            self._chunks = ChunkDecoder(limits)
            self.phase = _CHUNKS
        else:
            self._left = length
            self.phase = _BODY

    def _body(self) -> Body | End | None:
        if not self._left:
            self.phase = _ANSWER
            return End([])
        at = self._at
        data = self._buffer[at : at + self._left]
        if not data:
            return None
        self._move_to(at + len(data))
        self._left -= len(data)
        return Body(data)

    def _chunk(self) -> Body | End | None:
        assert self._chunks is not None
        event, at = self._chunks.next(self._buffer, self._at)
        self._move_to(at)
        if isinstance(event, End):
            self._chunks = None
            self.phase = _ANSWER
        return event

    def _move_to(self, at: int) -> None:
        """Go on behind what was taken in, and keep none of it: a connection may be idle for long."""
        if at == len(self._buffer):
            self._buffer, at = b"", 0
        self._at = at

    def go_on(self) -> bytes:
        """Return the interim answer to a client that holds its body back (RFC 9110 section 15.2.1)."""
        return _CONTINUE

    def informational(self, status: str, fields: Sequence[tuple[str, str]]) -> bytes:
        """Return an interim answer to the present request, such as 103 Early Hints (RFC 8297).

        It is empty for HTTP/1.0, which knows none (RFC 9110 section 15.2). Raises ``Misanswered`` for what must not go
        on the wire.
        """
        octets = _Heading(status, fields, final=False).octets
        return octets + b"\r\n" if self._version == "1.1" else b""

    def switch(self, protocol: str, fields: Sequence[tuple[str, str]]) -> tuple[bytes, bytes]:
        """Return the answer that ends HTTP on this connection (RFC 9110 section 15.2.2), and what came behind the request.

        Raises ``Misanswered`` for fields that must not go on the wire.
        """
        octets = _Heading("101 Switching Protocols", fields, final=False).octets
        behind = self._buffer[self._at :]
        self.close()
        return b"%bUpgrade: %b\r\nConnection: Upgrade\r\n\r\n" % (octets, protocol.encode()), behind

    def close(self) -> None:
        """End the connection: nothing more is read from it, and the parser is let go."""
        if self.phase is not _ANSWER or self._at < len(self._buffer):
            self.leftover = True
        self.answer_close = self._ends = True
        self.phase = _CLOSED
        self._buffer = b""
        self._at = 0

    # What goes out

    def start(self, status: str, fields: Sequence[tuple[str, str]], date: bytes, whole: int | None = None) -> bytes:
        """Return the head of the answer.

        ``status`` is code and reason; ``date`` the value of ``Date`` for an application that gives none; ``whole`` the
        size of the body where it is known although no Content-Length says so. Framing is decided here: by the length,
        by chunks for HTTP/1.1, else by closing. Raises ``Misanswered`` for what must not go on the wire.
        """
        try:
            heading = _headings[(status, *fields)]
        except TypeError:  # something in it cannot be hashed, which PEP 3333 does not ask for
            heading = _Heading(status, fields)
        if heading.closes:
            self.answer_close = True
        extra = b""
        if self.head_only or heading.bodiless:
            self._framing = _UNFRAMED
        elif heading.length is not None:
            self._framing = _BY_LENGTH
            self._owed = heading.length
        elif whole is not None:
            extra = b"Content-Length: %d\r\n" % whole
            self._framing = _BY_LENGTH
            self._owed = whole
        elif self._version == "1.1":
            extra = b"Transfer-Encoding: chunked\r\n"
            self._framing = _BY_CHUNKS
        else:
            self._framing = _BY_CLOSE
            self.answer_close = True
        if self.answer_close:
            extra += b"Connection: close\r\n"
        elif self._version == "1.0":
            extra += b"Connection: keep-alive\r\n"
        self._ends = self.answer_close
        if heading.dated:
            return b"%b%b\r\n" % (heading.octets, extra)
        return b"%b%b\r\n%b\r\n" % (heading.octets, date, extra)

    def whole(self, status: str, fields: Sequence[tuple[str, str]], date: bytes, body: bytes) -> bytes:
        """Return a whole answer, as ``start``, ``data`` and ``finish`` would."""
        head = self.start(status, fields, date, len(body))
        if self._owed == len(body) and self._framing is _BY_LENGTH:
            if self._ends:
                self.close()
            else:
                self.phase = _HEAD
            return head + body
        return head + self.data(body) + self.finish()

    def data(self, chunk: bytes) -> bytes:
        """Return ``chunk`` as it goes on the wire; raises ``Misanswered`` if it passes the declared length."""
        framing = self._framing
        if framing is _BY_LENGTH:
            self._owed -= len(chunk)
            if self._owed < 0:
                raise Misanswered(f"the body is longer than its Content-Length by {-self._owed} bytes or more")
            return chunk
        if framing is _BY_CHUNKS:
            return b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunk else b""
        return chunk if framing is _BY_CLOSE else b""

    @property
    def complete(self) -> bool:
        """Whether the present answer lacks nothing but ``finish``: its body has the length that was declared."""
        return self._owed == 0 and self._framing is _BY_LENGTH

    @property
    def endless(self) -> bool:
        """Whether nobody knows how long the present answer becomes."""
        return self._framing is _BY_CHUNKS or self._framing is _BY_CLOSE

    def room(self, size: int) -> int:
        """Return how many of ``size`` further bytes the declared length leaves room for."""
        return min(size, self._owed) if self._framing is _BY_LENGTH else size

    @property
    def bodiless(self) -> bool:
        """Whether the present answer has no body, whatever the application gives."""
        return self._framing is _UNFRAMED

    def opaque(self, size: int) -> bool:
        """Tell whether ``size`` bytes may go out as they are, without passing through ``data``; if so count them."""
        if self._framing is _BY_LENGTH and size <= self._owed:
            self._owed -= size
            return True
        return self._framing is _BY_CLOSE

    def finish(self, trailers: Iterable[tuple[str, str]] = ()) -> bytes:
        """Return what ends the answer, and make ready for the next request.

        ``trailers`` go out where the body is chunked, and nowhere else (RFC 9110 section 6.5). Raises ``Misanswered`` if
        less came than was declared: the connection must be cut, so that the client knows.
        """
        if self._framing is _BY_LENGTH and self._owed:
            raise Misanswered(f"the body is shorter than its Content-Length by {self._owed} bytes")
        tail = b"0\r\n%b\r\n" % _field_lines(trailers) if self._framing is _BY_CHUNKS else b""
        if self._ends:
            self.close()
        else:
            self.phase = _HEAD
        return tail

    def refusal(self, refused: Refused, date: bytes) -> bytes:
        """Return the whole answer to a request that is not served; the connection is closed behind it."""
        self.close()
        return closing_answer(refused, date, head_only=self.head_only)

    def decline(self, refused: Refused, date: bytes) -> bytes:
        """Return the whole answer to a complete request that is not served; the connection goes on if it may."""
        status, fields, body = _in_words(refused)
        return self.whole(status, fields, date, body)


def _field_lines(fields: Iterable[tuple[str, str]]) -> bytes:
    """Return fields that stand for themselves, outside of a head, as they go on the wire."""
    lines = b""
    for name, value in fields:
        line = f"{name}: {value}"
        if FIELD_NAME.fullmatch(name) is None or name.lower() in _RESPONSE_FIELDS:
            raise Misanswered(f"this field cannot stand here: {name!r}")
        if max(line) > "\xff" or any(ord(c) in _CONTROLS for c in line):
            raise Misanswered(f"a control character, or one beyond latin-1, in a field: {line!r}")
        lines += line.encode("latin-1") + b"\r\n"
    return lines


class NamedConnection(Connection):
    """A connection whose answers carry the id of their request, unless the application has given one itself."""

    __slots__ = ("request_id",)

    def __init__(self, reader: HeadReader) -> None:
        super().__init__(reader)
        self.request_id = ""

    def start(self, status: str, fields: Sequence[tuple[str, str]], date: bytes, whole: int | None = None) -> bytes:
        """Return the head of the answer, with the id in it."""
        head = super().start(status, fields, date, whole)
        if not self.request_id or b"\r\nx-request-id:" in head.lower():
            return head
        # Put in behind the fields: these are remembered as a whole, and would be no more if one were new each time.
        return head[:-2] + f"X-Request-ID: {self.request_id}\r\n\r\n".encode("ascii")


def closing_answer(refused: Refused, date: bytes, *, head_only: bool = False) -> bytes:
    """Return the whole answer to a request that is not served, whatever state its connection is in."""
    status, fields, body = _in_words(refused)
    said = "".join(f"{name}: {value}\r\n" for name, value in fields)
    head = (
        f"HTTP/1.1 {status}\r\nServer: prefork\r\nDate: {date.decode()}\r\n"
        f"{said}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (b"" if head_only else body)


def _in_words(refused: Refused) -> tuple[str, list[tuple[str, str]], bytes]:
    """Return status, fields and body of the answer to a request that is not served."""
    status = f"{refused.status} {HTTPStatus(refused.status).phrase}"
    fields = [("Content-Type", "text/plain; charset=latin-1")]
    if refused.status == HTTPStatus.SERVICE_UNAVAILABLE:
        fields.append(("Retry-After", RETRY_AFTER))
    fields += refused.fields
    return status, fields, f"{status}: {refused.reason}\n".encode("latin-1", "replace")
