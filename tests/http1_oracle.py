"""What must hold of a connection, whatever it is sent? For the tests of rules, the property tests and ``make fuzz``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from io import BytesIO, StringIO
from typing import TYPE_CHECKING, Any

from prefork.config import Limits
from prefork.http1.chunks import LINE_LIMIT
from prefork.http1.connection import Connection, Phase
from prefork.http1.forwarded import Belief
from prefork.http1.heads import HeadReader
from prefork.http1.messages import CHUNKED, Body, Misanswered, Refused, Request
from prefork.http1.parser_h11 import H11Parser
from prefork.http1.parser_httptools import HttptoolsParser
from prefork.reception import Origin
from prefork.trust import TrustedProxies
from prefork.wsgi.gateway import Base, request_environ, server_environ

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Maker = type[H11Parser] | type[HttptoolsParser]
PARSERS: tuple[Maker, ...] = (H11Parser, HttptoolsParser)
OCTET_BY_OCTET = 250
"""How long an input may be, in octets, that is also tried octet by octet: it takes a while."""
DATE = b"Tue, 24 Nov 2026 00:00:00 GMT"
SMALL = Limits(max_request_line_size=1024, max_head_size=2048, max_header_count=8, max_body_size=1000)
_BELIEF = Belief(
    TrustedProxies(["1.2.3.4"]),
    frozenset({b"forwarded", *(b"x-forwarded-" + what for what in (b"for", b"proto", b"host", b"port", b"prefix"))}),
)


def _base(belief: Belief | None) -> Base:
    environ = server_environ(
        name="a", port="80", scheme="http", errors=StringIO(), multithread=False, root_path="", extra={}
    )
    return Base(environ, Origin("http", "a", "80", trusted=belief is not None), belief, lambda _names, _address: None)


BASE, TRUSTED = _base(None), _base(_BELIEF)
"""What requests of a stranger, and of a proxy that is believed, have in their environ."""

Field = tuple[bytes, bytes]


@dataclass(slots=True)
class Told:
    """A request as a connection tells of it; names of fields are in lower case."""

    method: str
    target: bytes
    path: bytes
    query: bytes
    version: str
    host: bytes
    fields: list[Field]
    length: int
    keep_alive: bool
    awaits_continue: bool
    body: bytes = b""
    trailers: list[Field] = field(default_factory=list)
    whole: bool = False


@dataclass(slots=True)
class Transcript:
    """All that a connection tells, and what it refused in the end."""

    requests: list[Told] = field(default_factory=list)
    refused: Refused | None = None
    closed: bool = False

    def outline(self) -> tuple[list[Told], bool]:
        """Return what must not depend on how the octets were cut, or on the parser."""
        if self.requests and not self.requests[-1].whole:
            # How much of a body was told before the rest was refused, or did not come, may depend on the cut.
            self.requests[-1].body = b""
        return self.requests, self.refused is not None


def listen(reader: HeadReader, pieces: Iterable[bytes]) -> Transcript:
    """Return what a new connection tells of ``pieces``, with each request answered as soon as it is complete."""
    made, seen = Connection(reader), Transcript()
    try:
        for piece in pieces:
            take_in(made, made.recall(piece), seen)
            if made.phase is Phase.CLOSED:
                break
            assert held(made) <= room(made, reader.limits), "it keeps more than it needs"
    except Refused as refused:
        seen.refused = refused
    if seen.refused is not None:
        assert made.refusal(seen.refused, DATE).startswith(b"HTTP/1.1 %d " % seen.refused.status)
    seen.closed = made.phase is Phase.CLOSED
    return seen


def take_in(made: Connection, recalled: Request | None, seen: Transcript) -> None:
    event = made.next_event() if recalled is None else recalled
    while event is not None:
        if isinstance(event, Request):
            line, head = event.line, event.head
            fields = [(name.lower(), value) for name, value in head.fields]
            told = Told(line.method, line.target, line.path, line.query, line.version, head.host, fields, head.length,
                        head.keep_alive, head.awaits_continue)  # fmt: skip
            seen.requests.append(told)
            told.whole = not head.length
            check_environ(event)
        elif isinstance(event, Body):
            assert event.data
            seen.requests[-1].body += event.data
        else:
            seen.requests[-1].trailers = event.trailers
            seen.requests[-1].whole = True
        if made.phase is Phase.ANSWER:
            made.whole("200 OK", [], DATE, b"")
        event = made.next_event()


def held(made: Connection) -> int:
    """Return how many bytes a connection keeps: behind the last one that was taken in nothing, for it may be idle."""
    return len(made._buffer) - made._at if made.buffered else len(made._buffer)


def room(made: Connection, limits: Limits) -> int:
    """Return how many bytes a connection may keep when it has told all that it can."""
    if made.phase is Phase.HEAD:
        return limits.max_head_size
    return max(limits.max_head_size, LINE_LIMIT) + 4 if made.phase is Phase.CHUNKS else 0


def check_environ(request: Request) -> None:
    """Hold that the application is told what PEP 3333 lets it expect."""
    body = BytesIO() if request.head.length else None
    for base in (BASE, TRUSTED):
        try:
            environ = request_environ(base, ("1.2.3.4", "5"), request, body, 0)
        except Refused:
            assert base is TRUSTED
        else:
            check_keys(request, environ)


def check_keys(request: Request, environ: dict[str, Any]) -> None:
    for key, value in environ.items():
        if key.isupper():
            assert isinstance(value, str), key
            assert re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Z]+", key), key
            value.encode("latin-1")
    assert environ["REQUEST_METHOD"] == request.line.method
    assert "CONTENT_LENGTH" not in environ or environ["CONTENT_LENGTH"].isdecimal()
    assert not (request.head.length == CHUNKED and "HTTP_TRANSFER_ENCODING" in environ)


def cut(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """Return ``data`` in pieces of these sizes, again and again."""
    pieces, at, turn = [], 0, 0
    while at < len(data):
        pieces.append(data[at : at + sizes[turn % len(sizes)]])
        at += sizes[turn % len(sizes)]
        turn += 1
    return pieces


def written(told: Told) -> bytes:
    """Return a request of this meaning, from what was told alone."""
    lines = [b"%b %b HTTP/%b" % (told.method.encode(), told.target, told.version.encode())]
    lines += [b"%b: %b" % pair for pair in told.fields]
    head = b"\r\n".join([*lines, b"", b""])
    if told.length != CHUNKED:
        return head + told.body
    chunk = b"%x\r\n%b\r\n" % (len(told.body), told.body) if told.body else b""
    return b"".join([head, chunk, b"0\r\n", *(b"%b: %b\r\n" % pair for pair in told.trailers), b"\r\n"])


def check_request(data: bytes, sizes: Sequence[int], limits: Limits = SMALL) -> Transcript:
    """Hold what must hold of a connection that is sent ``data``; return what it tells."""
    ways = [[data], cut(data, sizes), *([cut(data, [1])] if len(data) <= OCTET_BY_OCTET else [])]
    expected = [listen(HeadReader(limits, H11Parser()), pieces) for pieces in ways]
    whole = expected[0]
    for parser in PARSERS:
        reader = HeadReader(limits, parser())
        for pieces, twin in zip((*ways, ways[0]), (*expected, whole), strict=True):
            seen = listen(reader, pieces)
            assert seen.outline() == whole.outline(), (parser, pieces, seen, whole)
            # What is wrong in two ways is refused for what is seen first: that depends on the cut, and on nothing else.
            assert str(seen.refused) == str(twin.refused), (parser, pieces, seen.refused, twin.refused)
        for told in whole.requests:
            if told.whole:
                again = listen(HeadReader(limits, parser()), [written(told)])
                assert again.refused is None, (told, again.refused)
                assert again.requests == [told], (told, again.requests)
    return whole


# Answers.

_HEAD = re.compile(
    rb"HTTP/1\.1 [2-5][0-9]{2} [\t\x20-\x7e\x80-\xff]*\r\n(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+: [\t\x20-\x7e\x80-\xff]*\r\n)*\r\n"
)
_CHUNK = re.compile(rb"([0-9a-f]+)\r\n")


def check_answer(asked: bytes, status: str, fields: list[tuple[str, str]], pieces: list[bytes]) -> bytes | None:
    """Hold what must hold of an answer: it is well framed, or nothing of it goes out; return its octets."""
    made = Connection(HeadReader(SMALL, H11Parser()))
    made.receive(asked)
    request = made.next_event()
    assert isinstance(request, Request)
    try:
        if len(pieces) == 1:
            octets = made.whole(status, fields, DATE, pieces[0])
        else:
            octets = made.start(status, fields, DATE)
            octets += b"".join([made.data(piece) for piece in pieces]) + made.finish()
    except Misanswered:
        return None
    head = _HEAD.match(octets)
    assert head is not None, octets
    lines = octets[: head.end()].split(b"\r\n")[1:-2]
    names = [line.partition(b":")[0].lower() for line in lines]
    # Nobody's field came in but the application's and ours.
    assert len(lines) <= len(fields) + 4, lines
    assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1, lines
    code, body = octets[9:12], octets[head.end() :]
    if request.line.method == "HEAD" or code in {b"204", b"205", b"304"}:
        assert body == b""
        assert code != b"204" or b"content-length" not in names
    elif b"transfer-encoding" in names:
        assert request.line.version == "1.1"
        assert unchunked(body) == b"".join(pieces)
    else:
        assert body == b"".join(pieces)
        length = next((line for line in lines if line.lower().startswith(b"content-length:")), None)
        assert length is None or int(length.partition(b":")[2]) == len(body)
        assert length is not None or made.phase is Phase.CLOSED
    assert (made.phase is Phase.CLOSED) == (b"Connection: close" in lines)
    return octets


def unchunked(data: bytes) -> bytes:
    """Return what a chunked body says."""
    body, at = b"", 0
    while True:
        line = _CHUNK.match(data, at)
        assert line is not None, data
        size, at = int(line[1], 16), line.end()
        body += data[at : at + size]
        at += size
        assert data[at : at + 2] == b"\r\n"
        at += 2
        if not size:
            assert at == len(data), "octets behind the last chunk"
            return body
