"""Which HTTP do we speak? Each row is a line of ``http.md``, and a case that ``tests/unit/test_http_rules.py`` runs.

What is refused is refused with the status, the reason and the source that stand here; what is served gives the
application what ``facts`` say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HOST = b"Host: a\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST
POST = b"POST / HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a client may not send, and what it is told before the connection is closed."""

    what: str
    octets: bytes
    status: int
    reason: str
    source: str

    @property
    def answer(self) -> str:
        """The answer in words."""
        return f"{self.status} {self.reason}"


@dataclass(frozen=True, slots=True)
class Served:
    """What a client may send, and what becomes of it.

    ``facts`` are of the first request: ``method``, ``path``, ``query``, ``version``, ``host``, ``names`` (those of all
    fields, in lower case), ``body``, ``trailers``, ``keep_alive``, ``awaits_continue``; ``requests`` is how many there are.
    """

    what: str
    octets: bytes
    answer: str
    source: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answered:
    """What an application answers to ``asked``, and what goes out.

    ``pieces`` are its body. ``present`` and ``absent`` say what is in the octets; ``wrong`` is how the complaint begins
    if the answer must not go out.
    """

    what: str
    answer: str
    source: str
    status: str = "200 OK"
    fields: Sequence[tuple[str, str]] = ()
    pieces: Sequence[bytes] = (b"hello",)
    asked: bytes = GET + b"\r\n"
    present: Sequence[bytes] = ()
    absent: Sequence[bytes] = ()
    wrong: str = ""
    closes: bool = False


def _get(line: bytes) -> bytes:
    return line + b"\r\n" + HOST + b"\r\n"


def _field(line: bytes) -> bytes:
    return GET + line + b"\r\n\r\n"


def _length(value: bytes, body: bytes = b"") -> bytes:
    return POST + b"Content-Length: " + value + b"\r\n\r\n" + body


def _coding(value: bytes) -> bytes:
    return POST + b"Transfer-Encoding: " + value + b"\r\n\r\n0\r\n\r\n"


_LINE = "malformed request line"
_CHUNK = "malformed chunk line"
_NO_CHUNK = "chunked is not the last transfer coding"
_STRAY = "line ended by CR or LF alone"

RULES: Mapping[str, Sequence[Refusal | Served]] = {
    "request line": (
        Refusal("anything but three words with one space between them, such as `GET /`", b"GET /\r\n\r\n", 400, _LINE, "RFC 9112 section 3"),
        Refusal("a method that is no token", _get(b"G(T / HTTP/1.1"), 400, _LINE, "RFC 9112 section 3"),
        Refusal("a space, a control character, `#` or an octet beyond ASCII in the target", _get(b"GET /\xc3\xa9 HTTP/1.1"), 400, _LINE, "RFC 9112 section 3"),
        Refusal("`HTTP/1.10`, `HTTP/1.01`, `http/1.1`: no version", _get(b"GET / HTTP/1.10"), 400, _LINE, "RFC 9112 section 3"),
        Refusal("`HTTP/2.0`, `HTTP/0.9`, and HTTP/2's preface", _get(b"GET / HTTP/2.0"), 505, "HTTP version not supported", "RFC 9110 section 15.6.6"),
        Served("`HTTP/1.2` to `HTTP/1.9`", _get(b"GET / HTTP/1.9"), "served as HTTP/1.1, the highest that we know", "RFC 9110 section 2.5", {"version": "1.1"}),
        Served("any token for a method, `PURGE` or `get`", _get(b"PURGE / HTTP/1.1"), "served: what it means is the application's matter", "RFC 9110 section 9.1", {"method": "PURGE"}),
        Served("empty lines before the request line", b"\r\n\r\n" + _get(b"GET / HTTP/1.1"), "served: they are skipped", "RFC 9112 section 2.2"),
        Refusal("a line longer than `max_request_line_size`", b"GET /" + b"a" * 17000, 414, "request line longer than max_request_line_size", "RFC 9110 section 15.5.15"),
    ),
    "target and Host": (
        Served("a path and a query", _get(b"GET /a%20b//..?c=d?e HTTP/1.1"), "served: nothing is resolved or repaired; the path is decoded for the application once", "RFC 9112 section 3.2.1", {"path": b"/a%20b//..", "query": b"c=d?e"}),
        Served("a whole `http` or `https` URI", _get(b"GET http://b:1?c HTTP/1.1"), "served: its host replaces the field Host, its path is `/` if empty", "RFC 9112 section 3.2.2", {"host": b"b:1", "path": b"/", "query": b"c"}),
        Refusal("another URI, or one with user and password", _get(b"GET http://u:p@b/ HTTP/1.1"), 400, "malformed target", "RFC 9112 section 3.2"),
        Refusal("a target without a slash", _get(b"GET index.html HTTP/1.1"), 400, "malformed target", "RFC 9112 section 3.2"),
        Served("`OPTIONS *`", _get(b"OPTIONS * HTTP/1.1"), "served: the path is `/`, `RAW_URI` is `*`", "RFC 9112 section 3.2.4", {"path": b"/"}),
        Refusal("`*` with another method", _get(b"GET * HTTP/1.1"), 400, "asterisk-form is for OPTIONS", "RFC 9112 section 3.2.4"),
        Refusal("no Host, also beside a whole URI", b"GET http://b/ HTTP/1.1\r\n\r\n", 400, "no Host field", "RFC 9112 section 3.2"),
        Served("no Host in HTTP/1.0", b"GET / HTTP/1.0\r\n\r\n", "served: the application is told the listener's name", "RFC 9112 section 3.3", {"host": b"", "keep_alive": False}),
        Served("an empty Host", b"GET / HTTP/1.1\r\nHost:\r\n\r\n", "served likewise", "RFC 9112 section 3.3", {"host": b""}),
        Refusal("two Host fields, equal ones too", GET + HOST + b"\r\n", 400, "two Host fields", "RFC 9112 section 3.2"),
        Refusal("a Host that is no host with an optional port: with a path, a user or a space", b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, "invalid Host", "RFC 9112 section 3.2"),
        Served("a Host with other characters of a URI's host, such as `a,b` or `a%62`", b"GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", "served: which hosts are its own is the application's matter", "RFC 3986 section 3.2.2", {"host": b"a,b"}),
        Refusal("an address in brackets that is none", b"GET / HTTP/1.1\r\nHost: [:::]\r\n\r\n", 400, "invalid Host", "RFC 9112 section 3.2"),
    ),
    "field lines": (
        Refusal("a name that is no token, an empty one, or a line without a colon", _field(b"X(Y): z"), 400, "malformed field line", "RFC 9112 section 5"),
        Refusal("white space before the colon", _field(b"X : y"), 400, "white space before a colon", "RFC 9112 section 5.1"),
        Refusal("a line that goes on in the next, which begins with white space", _field(b"X: y\r\n z"), 400, "folded field line", "RFC 9112 section 5.2"),
        Refusal("a line ended by LF alone, or a CR anywhere else", _field(b"X: y\nZ: a"), 400, _STRAY, "RFC 9112 section 2.2"),
        Refusal("NUL or another control character in a value", _field(b"X: \0"), 400, "malformed field line", "RFC 9112 section 5"),
        Served("octets from 0x80 on in a value", _field(b"X: caf\xe9"), "served: latin-1, as PEP 3333 asks", "RFC 9110 section 5.5", {"names": [b"host", b"x"]}),
        Served("a field in several lines", _field(b"X: 1\r\nX: 2"), "served: joined by `,`, and Cookie by `; `", "RFC 9110 section 5.3", {"names": [b"host", b"x", b"x"]}),
        Served("an underscore in a name, `X_User`", _field(b"X_User: b"), "served without that field; see `underscores_in_headers`", "option underscores_in_headers", {"names": [b"host"]}),
        Refusal("more fields than `max_header_count`", GET + b"X: y\r\n" * 100 + b"\r\n", 431, "too many fields", "RFC 6585 section 5"),
        Refusal("a head longer than `max_head_size`", GET + b"X: " + b"y" * 66000, 431, "head longer than max_head_size", "RFC 6585 section 5"),
    ),
    "length of the body": (
        Served("neither Content-Length nor Transfer-Encoding", POST + b"\r\n" + NEXT, "served: there is no body", "RFC 9112 section 6.3", {"body": b"", "requests": 2}),
        Served("Content-Length, digits, zeros before them too", _length(b"005", b"hello") + NEXT, "served", "RFC 9112 section 6.3", {"body": b"hello", "requests": 2}),
        Refusal("Content-Length that is anything else: a sign, a list, nothing", _length(b"+5", b"hello"), 400, "Content-Length is no number", "RFC 9112 section 6.3"),
        Refusal("more than 20 digits, most of them zeros", _length(b"0" * 20 + b"5", b"hello"), 400, "Content-Length of too many digits", "RFC 9110 section 8.6"),
        Refusal("two Content-Length fields, equal ones too", POST + b"Content-Length: 1\r\n" + b"Content-Length: 1\r\n\r\nx", 400, "two Content-Length fields", "RFC 9112 section 6.3"),
        Refusal("a number beyond `max_body_size`, of any number of digits", _length(b"9" * 40), 413, "body longer than max_body_size", "RFC 9110 section 15.5.14"),
        Served("`Transfer-Encoding: chunked`", CHUNKED + b"5\r\nhello\r\n0\r\n\r\n" + NEXT, "served: CONTENT_LENGTH is what came", "RFC 9112 section 6.1", {"body": b"hello", "requests": 2}),
        Refusal("both Content-Length and Transfer-Encoding", POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "Content-Length beside Transfer-Encoding", "RFC 9112 section 6.3"),
        Refusal("another coding, also before chunked", _coding(b"gzip, chunked"), 501, "unknown transfer coding", "RFC 9112 section 6.1"),
        Refusal("chunked before another coding, or twice", _coding(b"chunked, gzip"), 400, _NO_CHUNK, "RFC 9112 section 6.3"),
        Refusal("Transfer-Encoding in HTTP/1.0", b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "Transfer-Encoding in HTTP/1.0", "RFC 9112 section 6.1"),
        Refusal("a body with TRACE", b"TRACE / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", 400, "TRACE with a body", "RFC 9110 section 9.3.8"),
    ),
    "chunks and trailers": (
        Refusal("a size that is not hexadecimal, or with anything around it", CHUNKED + b"0x5\r\nhello\r\n", 400, _CHUNK, "RFC 9112 section 7.1"),
        Refusal("LF alone behind a size", CHUNKED + b"5\nhello\r\n", 400, _CHUNK, "RFC 9112 section 7.1"),
        Refusal("more data than the size says", CHUNKED + b"5\r\nhello!\r\n", 400, "chunk longer than its size", "RFC 9112 section 7.1"),
        Refusal("a size of more than 15 digits, zeros before them not counted", CHUNKED + b"1" * 16 + b"\r\n", 413, "chunk size beyond any limit", "RFC 9112 section 7.1"),
        Refusal("chunks that are together longer than `max_body_size`", CHUNKED + b"40000001\r\n", 413, "body longer than max_body_size", "RFC 9110 section 15.5.14"),
        Served("extensions, with white space around `;` and `=`", CHUNKED + b'5 ; a = "b;\\"c" ;d\r\nhello\r\n0\r\n\r\n', "served: they are dropped", "RFC 9112 section 7.1.1", {"body": b"hello"}),
        Refusal("extensions that are none", CHUNKED + b"5;\r\nhello\r\n", 400, _CHUNK, "RFC 9112 section 7.1"),
        Refusal("a chunk line longer than 4 KiB", CHUNKED + b"5;" + b"a" * 4100, 400, "chunk line too long", "RFC 9112 section 7.1.1"),
        Refusal("extensions 16 KiB longer than the body", CHUNKED + (b"1;" + b"a" * 4000 + b"\r\nx\r\n") * 5, 400, "chunk extensions longer than the body", "RFC 9112 section 7.1.1"),
        Served("trailer fields", CHUNKED + b"0\r\nX-Sum: 1\r\nHost: b\r\n\r\n" + NEXT, "served: they are in `prefork.trailers`, and never among the header fields", "RFC 9110 section 6.5.1", {"host": b"a", "trailers": [(b"X-Sum", b"1"), (b"Host", b"b")], "requests": 2}),
        Refusal("a trailer that is no field line", CHUNKED + b"0\r\nX : 1\r\n\r\n", 400, "malformed trailer", "RFC 9112 section 7.1.2"),
        Refusal("more trailer fields than `max_header_count`", CHUNKED + b"0\r\n" + b"X: y\r\n" * 101 + b"\r\n", 431, "too many trailer fields", "RFC 6585 section 5"),
        Refusal("a trailer section longer than `max_head_size`", CHUNKED + b"0\r\nX: " + b"y" * 66000, 431, "trailer section longer than max_head_size", "RFC 6585 section 5"),
    ),
    "connection": (
        Served("a request of HTTP/1.1", GET + b"\r\n" + NEXT, "the connection stays", "RFC 9112 section 9.3", {"keep_alive": True, "requests": 2}),
        Served("`Connection: close`, in whatever spelling, list or line", GET + b"Connection: x, Close\r\n\r\n" + NEXT, "closed behind the answer, which says so; nothing behind the request is looked at", "RFC 9112 section 9.6", {"keep_alive": False, "requests": 1}),
        Served("a request of HTTP/1.0", b"GET / HTTP/1.0\r\n\r\n", "closed behind the answer", "RFC 9112 section 9.3", {"keep_alive": False}),
        Served("HTTP/1.0 with `Connection: keep-alive`", b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", "the connection stays, and the answer says so", "RFC 9112 section 9.3", {"keep_alive": True}),
        Served("requests before the answers to those before", GET + b"\r\n" + NEXT * 3, "served one after the other; while they wait, no more is read", "RFC 9112 section 9.3.2", {"requests": 4}),
        Served("`Upgrade`, to h2c or anything else", _field(b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk"), "served as HTTP/1.1, as if nothing had been asked; but `websocket` opens one to an ASGI application", "RFC 9110 section 7.8", {"keep_alive": True, "version": "1.1"}),
        Refusal("CONNECT", b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 501, "no tunnels here", "RFC 9110 section 9.3.6"),
        Served("TRACE", _get(b"TRACE / HTTP/1.1"), "served by the application; the server reflects nothing", "RFC 9110 section 9.3.8", {"method": "TRACE"}),
        Served("`Expect: 100-continue`", POST + b"Expect: 100-Continue\r\nContent-Length: 5\r\n\r\n", "100 once the head is accepted (ASGI: once the application asks for the body), unless body bytes are here already", "RFC 9110 section 10.1.1", {"awaits_continue": True}),
        Served("the same in HTTP/1.0, or without a body", b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", "never 100", "RFC 9110 section 10.1.1", {"awaits_continue": False}),
        Refusal("another expectation, also beside that one", _field(b"Expect: 100-continue\r\nExpect: tea"), 417, "unknown expectation", "RFC 9110 section 10.1.1"),
    ),
}  # fmt: skip
"""The requests."""

ANSWERS: Sequence[Answered] = (
    Answered("a body of one piece, or with Content-Length", "sent with Content-Length", "RFC 9112 section 6.3", present=[b"\r\nContent-Length: 5\r\n", b"\r\n\r\nhello"], absent=[b"Transfer-Encoding"]),
    Answered("a body of several pieces", "chunked", "RFC 9112 section 7.1", pieces=[b"he", b"llo"], present=[b"\r\nTransfer-Encoding: chunked\r\n", b"\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"], absent=[b"Content-Length"]),
    Answered("the same to HTTP/1.0", "ended by closing", "RFC 9112 section 6.3", asked=b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", pieces=[b"he", b"llo"], present=[b"\r\nConnection: close\r\n", b"\r\n\r\nhello"], absent=[b"chunked"], closes=True),
    Answered("a body to HEAD", "not sent; a Content-Length that it gives is", "RFC 9110 section 9.3.2", asked=b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", fields=[("Content-Length", "5")], present=[b"\r\nContent-Length: 5\r\n"], absent=[b"hello"]),
    Answered("a body with 204", "not sent, and no Content-Length", "RFC 9110 section 15.3.5", status="204 No Content", fields=[("Content-Length", "5")], absent=[b"Content-Length", b"hello", b"chunked"]),
    Answered("a body with 304", "not sent", "RFC 9110 section 15.4.5", status="304 Not Modified", absent=[b"Content-Length", b"hello", b"chunked"]),
    Answered("a body with 205", "not sent; `Content-Length: 0`", "RFC 9110 section 15.3.6", status="205 Reset Content", fields=[("Content-Length", "5")], present=[b"\r\nContent-Length: 0\r\n"], absent=[b"hello", b"chunked"]),
    Answered("no Date, no Server", "both are added; its own are kept", "RFC 9110 section 6.6.1", fields=[("Server", "tea")], present=[b"\r\nDate: ", b"\r\nServer: tea\r\n"]),
    Answered("`Connection: close`", "granted", "RFC 9112 section 9.6", fields=[("Connection", "close")], present=[b"\r\nConnection: close\r\n"], closes=True),
    Answered("Transfer-Encoding, Keep-Alive, Upgrade, Trailer or another hop-by-hop field", "dropped: they are the server's", "PEP 3333", fields=[("Transfer-Encoding", "gzip"), ("Keep-Alive", "timeout=5"), ("Upgrade", "tea")], absent=[b"gzip", b"timeout", b"tea"]),
    Answered("a status without a reason", "sent with the space that belongs there", "RFC 9112 section 4", status="200", present=[b"HTTP/1.1 200 \r\n"]),
    Answered("CR, LF, NUL or another control character in the status or a field", "500", "RFC 9110 section 5.5", fields=[("X", "a\r\nSet-Cookie: b")], wrong="a control character"),
    Answered("a name that is no token, a value beyond latin-1, anything but `str`", "500", "RFC 9110 section 5.1", fields=[("X Y", "a")], wrong="malformed field name"),
    Answered("a status that is no number from 200 to 599", "500", "RFC 9110 section 15", status="101 Switching Protocols", wrong="no status of an answer"),
    Answered("two different Content-Length, or one that is no number", "500", "RFC 9110 section 8.6", fields=[("Content-Length", "5"), ("Content-Length", "6")], wrong="two Content-Length"),
    Answered("more than its Content-Length", "500; cut if it has begun, and what is too much is never sent", "RFC 9110 section 8.6", fields=[("Content-Length", "4")], wrong="the body is longer"),
    Answered("less than its Content-Length", "500; cut if it has begun, so that the client knows", "RFC 9112 section 8", fields=[("Content-Length", "6")], wrong="the body is shorter"),
)  # fmt: skip
"""The answers of an application."""
