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
from typing import TYPE_CHECKING, Protocol

from prefork.http1.chunks import ChunkDecoder
from prefork.http1.grammar import (
    ABSOLUTE,
    FOLDED,
    HEAD,
    REQUEST_LINE,
    SPACE_BEFORE_COLON,
    STRAY_LINE_END,
    is_host,
    split_fields,
)
from prefork.http1.messages import CHUNKED, Body, End, Event, Field, Misanswered, Refused, Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefork.config import Limits


class Parser(Protocol):
    """What a library must do for a connection."""

    def fields(self, version: bytes, block: bytes) -> list[Field]:
        """Return the fields of a block of field lines; raises ``Refused``."""

    def forget(self) -> None:
        """Drop what was kept between two heads."""


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


_LENGTH_DIGITS = 18
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_BODILESS = frozenset({204, 304, *range(100, 200)})

_HOST, _LENGTH, _CODING, _CONNECTION, _EXPECT = range(1, 6)
_REQUEST_FIELDS = {
    b"host": _HOST,
    b"content-length": _LENGTH,
    b"transfer-encoding": _CODING,
    b"connection": _CONNECTION,
    b"expect": _EXPECT,
}
_DATE, _SERVER, _HOP = range(6, 9)
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
_KNOWN_SPELLINGS = 4096


class _Kinds(dict[bytes, int]):
    """Field names as clients spell them, and what each means for framing: a lookup instead of lower-casing."""

    def __missing__(self, name: bytes) -> int:
        kind = _REQUEST_FIELDS.get(name.lower(), 0)
        if len(self) < _KNOWN_SPELLINGS:
            self[name] = kind
        return kind


class _AnswerKinds(dict[str, int]):
    """The same for the field names of applications."""

    def __missing__(self, name: str) -> int:
        kind = _RESPONSE_FIELDS.get(name.lower(), 0)
        if len(self) < _KNOWN_SPELLINGS:
            self[name] = kind
        return kind


class _StatusCodes(dict[str, int]):
    """The code of each status line that applications use."""

    def __missing__(self, status: str) -> int:
        code = status[:3]
        if not (code.isascii() and code.isdigit() and status[3:4] in {" ", ""} and "100" <= code <= "999"):
            raise Misanswered(f"malformed status: {status!r}")
        if len(self) < _KNOWN_SPELLINGS:
            self[status] = int(code)
        return int(code)


_kinds = _Kinds()
_answer_kinds = _AnswerKinds()
_status_codes = _StatusCodes()


class Connection:
    """One connection, from its first byte to its last.

    Drive it with ``receive`` and ``next_event`` until a request is complete, answer with ``start``, ``data`` and
    ``finish``, then go on with ``next_event``. ``Refused`` is raised where a request must not be served: send
    ``refusal`` and close. ``Misanswered`` is raised where an answer would break HTTP.
    """

    __slots__ = (
        "_at",
        "_buffer",
        "_chunks",
        "_ends",
        "_framing",
        "_left",
        "_limits",
        "_parser",
        "_version",
        "answer_close",
        "head_only",
        "leftover",
        "phase",
    )

    def __init__(self, limits: Limits, parser: Parser) -> None:
        self._limits = limits
        self._parser = parser
        self._buffer = b""
        self._at = 0
        self._left = 0
        self._chunks: ChunkDecoder | None = None
        self._framing = Framing.NONE
        self._version = "1.1"
        self.phase = Phase.HEAD
        self._ends = False
        self.leftover = False
        """Whether bytes of the client were thrown away: it must be let to read its answer before the socket goes."""
        self.answer_close = False
        """Whether the connection ends after the present answer; set it to make it so."""
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
        return self.phase is Phase.HEAD and self._at >= len(self._buffer)

    def receive(self, data: bytes) -> None:
        """Take what the client sent."""
        self._buffer = self._buffer[self._at :] + data if self._at < len(self._buffer) else data
        self._at = 0

    def next_event(self) -> Event | None:
        """Return the next event, or ``None`` if more bytes (or an answer) are needed; raises ``Refused``."""
        phase = self.phase
        try:
            if phase is Phase.HEAD:
                return self._head()
            if phase is Phase.BODY:
                return self._body()
            if phase is Phase.CHUNKS:
                return self._chunk()
        except Refused:
            self.close()
            raise
        return None

    def _head(self) -> Request | None:
        buffer, at = self._buffer, self._at
        # RFC 9112 section 2.2: an empty line before the request line is skipped (old clients end a body so).
        while buffer.startswith(b"\r\n", at):
            at += 2
        self._at = at
        limit = at + self._limits.max_head_size
        end = buffer.find(b"\r\n\r\n", at, limit)
        if end < 0:
            if at < len(buffer):
                self._check_unfinished(limit)
            return None
        match = HEAD.fullmatch(buffer, at, end + 4)
        if match is None:
            raise _malformed(buffer[at : end + 2])
        method, target, major, minor, block = match.group("method", "target", "major", "minor", "fields")
        if major != b"1":
            raise Refused(505, "HTTP version not supported", "RFC 9110 section 15.6.6")
        if block.count(b"\r\n") > self._limits.max_header_count:
            raise Refused(431, "too many fields", "RFC 6585 section 5")
        self._at = end + 4
        # RFC 9110 section 2.5: a higher minor version is served as the highest that we know.
        version = "1.0" if minor == b"0" else "1.1"
        request = self._parse(method.decode("ascii"), target, version, block)
        if request.length > self._limits.max_body_size:
            raise Refused(413, "body longer than max_body_size", "RFC 9110 section 15.5.14")
        self._expect(request)
        return request

    def _parse(self, method: str, target: bytes, version: str, block: bytes) -> Request:
        try:
            fields = self._parser.fields(version.encode(), block)
        except Refused:
            # Where we have a verdict of our own it goes first: the same status, whichever parser is installed.
            _request(method, target, version, split_fields(block))
            raise
        return _request(method, target, version, fields)

    def _check_unfinished(self, limit: int) -> None:
        buffer, at = self._buffer, self._at
        if len(buffer) >= limit:
            if buffer.find(b"\r\n", at, limit) < 0:
                raise Refused(414, "request line too long", "RFC 9110 section 15.5.15")
            raise Refused(431, "head longer than max_head_size", "RFC 6585 section 5")
        if STRAY_LINE_END.search(buffer, at):
            raise Refused(400, "line ended by CR or LF alone", "RFC 9112 section 2.2")

    def _expect(self, request: Request) -> None:
        """Make ready for the request's body and its answer."""
        self._version = request.version
        self.head_only = request.method == "HEAD"
        self.answer_close = not request.keep_alive
        length = request.length
        if length == 0:
            self.phase = Phase.ANSWER
            return
        self._parser.forget()
        if length == CHUNKED:
            self._chunks = ChunkDecoder(self._limits.max_body_size, self._limits.max_head_size)
            self.phase = Phase.CHUNKS
        else:
            self._left = length
            self.phase = Phase.BODY

    def _body(self) -> Body | End | None:
        if not self._left:
            self.phase = Phase.ANSWER
            return End([])
        at = self._at
        data = self._buffer[at : at + self._left]
        if not data:
            return None
        self._at = at + len(data)
        self._left -= len(data)
        return Body(data)

    def _chunk(self) -> Body | End | None:
        assert self._chunks is not None
        event, self._at = self._chunks.next(self._buffer, self._at)
        if isinstance(event, End):
            self._chunks = None
            self.phase = Phase.ANSWER
        return event

    def go_on(self) -> bytes:
        """Return the interim answer to a client that holds its body back (RFC 9110 section 15.2.1)."""
        return _CONTINUE

    def close(self) -> None:
        """End the connection: nothing more is read from it, and the parser is let go."""
        if self.phase is not Phase.ANSWER or self.buffered:
            self.leftover = True
        self.phase = Phase.CLOSED
        self._buffer = b""
        self._at = 0
        self._parser.forget()

    # What goes out

    def start(  # noqa: C901
        self, status: str, fields: Sequence[tuple[str, str]], date: str, whole: int | None = None
    ) -> bytes:
        """Return the head of the answer.

        ``status`` is code and reason; ``date`` the value of ``Date`` for an application that gives none; ``whole`` the
        size of the body where it is known although no Content-Length says so. Framing is decided here: by the length,
        by chunks for HTTP/1.1, else by closing. Raises ``Misanswered`` for what must not go on the wire.
        """
        code = _status_codes[status]
        declared: str | None = None
        has_date = has_server = False
        dropped = False
        for name, value in fields:
            kind = _answer_kinds[name]
            if not kind:
                continue
            if kind == _LENGTH:
                if declared is not None and declared != value:
                    raise Misanswered(f"two Content-Length fields: {declared} and {value}")
                declared = value
            elif kind == _DATE:
                has_date = True
            elif kind == _SERVER:
                has_server = True
            else:
                # PEP 3333: hop-by-hop fields are the server's; a wish to close is granted.
                dropped = True
                if kind == _CONNECTION and "close" in _options(value):
                    self.answer_close = True
        if dropped:
            fields = [(name, value) for name, value in fields if _answer_kinds[name] not in {_CONNECTION, _HOP}]
        bodiless = code in _BODILESS
        if bodiless and declared is not None and code != HTTPStatus.NOT_MODIFIED:
            fields = [(name, value) for name, value in fields if _answer_kinds[name] != _LENGTH]
            declared = None
        lines = [f"HTTP/1.1 {status}"]
        lines += [f"{name}: {value}" for name, value in fields]
        expected = len(lines)
        if not has_server:
            lines.append("Server: prefork")
        if not has_date:
            lines.append("Date: " + date)
        if self.head_only or bodiless:
            self._framing = Framing.NONE
        elif declared is not None:
            if not (declared.isascii() and declared.isdigit()):
                raise Misanswered(f"Content-Length is no number: {declared!r}")
            self._framing = Framing.LENGTH
            self._left = int(declared)
        elif whole is not None:
            lines.append(f"Content-Length: {whole}")
            self._framing = Framing.LENGTH
            self._left = whole
        elif self._version == "1.1":
            lines.append("Transfer-Encoding: chunked")
            self._framing = Framing.CHUNKED
        else:
            self._framing = Framing.CLOSE
            self.answer_close = True
        if self.answer_close:
            lines.append("Connection: close")
        elif self._version == "1.0":
            lines.append("Connection: keep-alive")
        lines.append("\r\n")
        try:
            head = "\r\n".join(lines).encode("latin-1")
        except UnicodeEncodeError as error:
            raise Misanswered(
                f"a field holds characters beyond latin-1: {error.object[error.start : error.end]!r}"
            ) from None
        breaks = len(lines)
        if head.count(b"\n") != breaks or head.count(b"\r") != breaks or b"\0" in head:
            raise Misanswered(f"CR, LF or NUL in the status or a field: {_culprit(lines[:expected])!r}")
        self._ends = self.answer_close
        return head

    def data(self, chunk: bytes) -> bytes:
        """Return ``chunk`` as it goes on the wire; raises ``Misanswered`` if it passes the declared length."""
        framing = self._framing
        if framing is Framing.LENGTH:
            self._left -= len(chunk)
            if self._left < 0:
                raise Misanswered(f"the body is longer than its Content-Length by {-self._left} bytes or more")
            return chunk
        if framing is Framing.CHUNKED:
            return b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunk else b""
        return chunk if framing is Framing.CLOSE else b""

    def opaque(self, size: int) -> bool:
        """Tell whether ``size`` bytes may go out as they are, without passing through ``data``; if so count them."""
        if self._framing is Framing.LENGTH and size <= self._left:
            self._left -= size
            return True
        return self._framing is Framing.CLOSE

    def finish(self) -> bytes:
        """Return what ends the answer, and make ready for the next request.

        Raises ``Misanswered`` if less came than was declared: the connection must be cut, so that the client knows.
        """
        if self._framing is Framing.LENGTH and self._left:
            raise Misanswered(f"the body is shorter than its Content-Length by {self._left} bytes")
        tail = b"0\r\n\r\n" if self._framing is Framing.CHUNKED else b""
        if self._ends:
            self.close()
        else:
            self.phase = Phase.HEAD
        return tail

    def refusal(self, refused: Refused, date: str) -> bytes:
        """Return the whole answer to a request that is not served; the connection is closed behind it."""
        self.close()
        phrase = HTTPStatus(refused.status).phrase
        body = f"{refused.status} {phrase}: {refused.reason}\n".encode("latin-1", "replace")
        head = (
            f"HTTP/1.1 {refused.status} {phrase}\r\nServer: prefork\r\nDate: {date}\r\n"
            f"Content-Type: text/plain; charset=latin-1\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode("latin-1") + body


def _malformed(head: bytes) -> Refused:
    """Say what is wrong with a head that the grammar does not know."""
    line, _, fields = head.partition(b"\r\n")
    if REQUEST_LINE.fullmatch(line) is None:
        return Refused(400, "malformed request line", "RFC 9112 section 3")
    if STRAY_LINE_END.search(fields):
        return Refused(400, "line ended by CR or LF alone", "RFC 9112 section 2.2")
    if FOLDED.search(b"\r\n" + fields):
        return Refused(400, "folded field line", "RFC 9112 section 5.2")
    if SPACE_BEFORE_COLON.search(fields):
        return Refused(400, "white space before a colon", "RFC 9112 section 5.1")
    return Refused(400, "malformed field line", "RFC 9112 section 5")


def _request(  # noqa: C901
    method: str, target: bytes, version: str, fields: list[Field]
) -> Request:
    """Judge what the fields say together; raises ``Refused``."""
    host: bytes | None = None
    length: bytes | None = None
    codings: list[bytes] = []
    options: set[str] = set()
    expect: bytes | None = None
    for name, value in fields:
        kind = _kinds[name]
        if not kind:
            continue
        if kind == _HOST:
            if host is not None:
                raise Refused(400, "two Host fields", "RFC 9112 section 3.2")
            host = value
        elif kind == _LENGTH:
            if length is not None:
                raise Refused(400, "two Content-Length fields", "RFC 9112 section 6.3")
            length = value
        elif kind == _CODING:
            codings.append(value)
        elif kind == _CONNECTION:
            options |= _options(value.decode("latin-1"))
        else:
            expect = value
    if host is None:
        if version != "1.0":
            raise Refused(400, "no Host field", "RFC 9112 section 3.2")
        host = b""
    elif not is_host(host):
        raise Refused(400, "invalid Host", "RFC 9112 section 3.2")
    size = _body_length(length, codings, version)
    if expect is not None and expect.lower() != b"100-continue":
        raise Refused(417, "unknown expectation", "RFC 9110 section 10.1.1")
    if method == "CONNECT":
        raise Refused(501, "no tunnels here", "RFC 9110 section 9.3.6")
    if target.startswith(b"/"):
        path, _, query = target.partition(b"?")
    else:
        host, path, query = _other_target(method, target, host)
        fields = [(name, host if _kinds[name] == _HOST else value) for name, value in fields]
    return Request(
        method=method,
        target=target,
        path=path,
        query=query,
        version=version,
        fields=fields,
        host=host,
        length=size,
        keep_alive="close" not in options and (version == "1.1" or "keep-alive" in options),
        awaits_continue=expect is not None and version == "1.1" and size != 0,
    )


def _body_length(length: bytes | None, codings: list[bytes], version: str) -> int:
    """Return how long the body is (RFC 9112 section 6.3); raises ``Refused`` where two readers could differ."""
    if codings:
        if length is not None:
            raise Refused(400, "Content-Length beside Transfer-Encoding", "RFC 9112 section 6.3")
        if version == "1.0":
            raise Refused(400, "Transfer-Encoding in HTTP/1.0", "RFC 9112 section 6.1")
        coding = b",".join(codings).lower()
        if coding == b"chunked":
            return CHUNKED
        if b"chunked," in coding or not coding:
            raise Refused(400, "chunked is not the last transfer coding", "RFC 9112 section 6.3")
        raise Refused(501, "unknown transfer coding", "RFC 9112 section 6.1")
    if length is None:
        return 0
    if not length.isdigit():
        raise Refused(400, "Content-Length is no number", "RFC 9112 section 6.3")
    digits = length.lstrip(b"0")
    if len(digits) > _LENGTH_DIGITS:
        raise Refused(413, "body longer than max_body_size", "RFC 9110 section 15.5.14")
    return int(digits or b"0")


def _other_target(method: str, target: bytes, host: bytes) -> tuple[bytes, bytes, bytes]:
    """Return host, path and query of a target that is no path (RFC 9112 section 3.2); raises ``Refused``."""
    if target == b"*":
        if method != "OPTIONS":
            raise Refused(400, "asterisk-form is for OPTIONS", "RFC 9112 section 3.2.4")
        return host, b"/", b""
    match = ABSOLUTE.fullmatch(target)
    if match is None:
        raise Refused(400, "malformed target", "RFC 9112 section 3.2")
    return match["host"], match["path"] or b"/", match["query"] or b""


def _options(value: str) -> set[str]:
    return {option.strip(" \t").lower() for option in value.split(",")}


def _culprit(lines: list[str]) -> str:
    return next(line for line in lines if any(c in line for c in "\r\n\0"))
