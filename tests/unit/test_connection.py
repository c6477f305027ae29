"""What does a connection take, refuse and answer? With both parsers, one row a rule."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from prefork.config import Limits
from prefork.http1.chunks import LINE_LIMIT
from prefork.http1.connection import Connection, NamedConnection, Phase
from prefork.http1.heads import HeadReader
from prefork.http1.messages import CHUNKED, Body, End, Misanswered, Refused, Request
from prefork.http1.parser_h11 import H11Parser
from prefork.http1.parser_httptools import HttptoolsParser

# The rules of requests, row by row: test_http_grammar.py and test_http_rules.py.
PARSERS = [pytest.param(H11Parser, id="h11"), pytest.param(HttptoolsParser, id="httptools")]
DATE = b"Tue, 24 Nov 2026 00:00:00 GMT"
CHUNKS = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
LIMITS = Limits(max_head_size=2048, max_header_count=8, max_body_size=1000)

pytestmark = pytest.mark.parametrize("parser", PARSERS)
Maker = type[H11Parser] | type[HttptoolsParser]


def connection(parser: Maker, data: bytes = b"") -> Connection:
    made = Connection(HeadReader(LIMITS, parser()))
    made.receive(data)
    return made


def read(made: Connection) -> Request:
    event = made.next_event()
    assert isinstance(event, Request)
    return event


def sent(made: Connection, data: bytes) -> Request:
    """Return the request that a client sends, read or recalled."""
    return made.recall(data) or read(made)


def body_of(made: Connection) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    data = b""
    while isinstance(event := made.next_event(), Body):
        data += event.data
    assert isinstance(event, End)
    return data, event.trailers


def test_plain_request_is_complete_without_an_end(parser: Maker) -> None:
    made = connection(parser, b"GET /a%20b?c=d HTTP/1.1\r\nHost: x:80\r\nX-A:  1 \t\r\n\r\n")
    request = read(made)
    assert (request.line.method, request.line.path, request.line.query, request.line.version) == (
        "GET",
        b"/a%20b",
        b"c=d",
        "1.1",
    )
    assert (request.head.host, request.head.length, request.head.keep_alive, request.head.awaits_continue) == (
        b"x:80",
        0,
        True,
        False,
    )
    assert [(name.lower(), value) for name, value in request.head.fields] == [(b"host", b"x:80"), (b"x-a", b"1")]
    assert made.phase is Phase.ANSWER
    assert made.next_event() is None


@pytest.mark.parametrize(
    ("head", "status"),
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, id="no Host: RFC 9112 3.2"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400, id="two Hosts: RFC 9112 3.2"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, id="bad Host: RFC 9112 3.2"),
        pytest.param(b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400, id="space before colon: RFC 9112 5.1"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", 400, id="folded line: RFC 9112 5.2"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nX(: b\r\n\r\n", 400, id="name no token: RFC 9110 5.1"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400, id="bare LF: RFC 9112 2.2"),
        pytest.param(b"GET / HTTP/1.1\nHost: a\n\n", 400, id="bare LF everywhere: RFC 9112 2.2"),
        pytest.param(b"GET /\r\n\r\n", 400, id="HTTP/0.9: RFC 9112 3"),
        pytest.param(b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505, id="major version: RFC 9110 15.6.6"),
        pytest.param(b"GET foo HTTP/1.1\r\nHost: a\r\n\r\n", 400, id="relative target: RFC 9112 3.2"),
        pytest.param(b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400, id="asterisk for GET: RFC 9112 3.2.4"),
        pytest.param(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 501, id="CONNECT: RFC 9110 9.3.6"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1x\r\n\r\n", 400, id="length: RFC 9112 6.3"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400, id="twice"),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n", 413, id="too long: RFC 9110 15.5.14"
        ),
        pytest.param(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n", 413, id="overflow"),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            id="CL and TE",
        ),
        pytest.param(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400, id="TE in 1.0: RFC 9112 6.1"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501, id="unknown coding"),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n", 400, id="chunked not last"
        ),
        pytest.param(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n", 400, id="empty coding"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: else\r\n\r\n", 417, id="expectation: RFC 9110 10.1.1"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 9 + b"\r\n", 431, id="too many fields: RFC 6585 5"),
        pytest.param(b"GET / HTTP/1.1\r\nX: " + b"a" * 3000, 431, id="head too long: RFC 6585 5"),
        pytest.param(b"GET /" + b"a" * 3000, 414, id="request line too long: RFC 9110 15.5.15"),
    ],
)
def test_request_that_must_not_be_served_is_refused_and_the_connection_ends(
    parser: Maker, head: bytes, status: int
) -> None:
    made = connection(parser, head)
    with pytest.raises(Refused) as caught:
        made.next_event()
    assert caught.value.status == status
    answer = made.refusal(caught.value, DATE)
    assert answer.startswith(b"HTTP/1.1 %d " % caught.value.status)
    assert b"\r\nConnection: close\r\n" in answer
    assert made.phase is Phase.CLOSED
    assert made.leftover
    made.receive(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert made.next_event() is None


@pytest.mark.parametrize(
    ("target", "host", "path", "query"),
    [
        (b"http://b:1/c?d", b"b:1", b"/c", b"d"),
        (b"HTTPS://b", b"b", b"/", b""),
        (b"*", b"a", b"/", b""),
    ],
)
def test_target_that_is_no_path_is_taken_apart(
    parser: Maker, target: bytes, host: bytes, path: bytes, query: bytes
) -> None:
    request = read(connection(parser, b"OPTIONS %b HTTP/1.1\r\nHost: a\r\nX-B: 2\r\n\r\n" % target))
    assert (request.head.host, request.line.path, request.line.query) == (host, path, query)
    assert [value for name, value in request.head.fields if name.lower() == b"host"] == [host]


def test_head_may_come_octet_by_octet_behind_an_empty_line(parser: Maker) -> None:
    made = connection(parser)
    for octet in b"\r\nGET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r":
        made.receive(bytes([octet]))
        assert made.next_event() is None
    assert made.buffered
    made.receive(b"\n")
    request = read(made)
    assert (request.line.version, request.head.keep_alive, request.head.host) == ("1.0", True, b"")


def told(made: Connection) -> object:
    """Return what the connection makes of what it has received, ``None`` if it waits for more."""
    said: list[object] = []
    try:
        while (event := made.next_event()) is not None:
            if isinstance(event, Request):
                said.append((event.line.octets, event.head.fields))
            elif isinstance(event, Body):
                said += event.data
            else:
                said.append(event.trailers)
    except Refused as refused:
        return refused.status
    return said


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\r\nGET / HTTP/1.1\r\nHost: a\r\nX: b\r\n\r\nGET", id="head"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", id="bare LF"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", id="bare CR"),
        pytest.param(b"GET / HTTP/1.1\r\nX: " + b"x" * 2048, id="too long"),
        pytest.param(CHUNKS + b"3;a=b\r\nabc\r\n0\r\nX: y\r\nY: z\r\n\r\n", id="chunks"),
        pytest.param(CHUNKS + b"3;a=b\nabc\r\n0\r\n\r\n", id="bare LF behind a chunk size"),
        pytest.param(CHUNKS + b"3;a=b\rabc\r\n0\r\n\r\n", id="bare CR behind a chunk size"),
        pytest.param(CHUNKS + b"0\r\nX: y\nY: z\r\n\r\n", id="bare LF in a trailer"),
        pytest.param(CHUNKS + b"0\r\nX: y\rY: z\r\n\r\n", id="bare CR in a trailer"),
    ],
)
def test_where_the_octets_are_cut_changes_nothing(parser: Maker, data: bytes) -> None:
    whole = told(connection(parser, data))
    for cut in range(1, len(data)):
        made = connection(parser, data[:cut])
        begun = told(made)
        if isinstance(begun, list):
            made.receive(data[cut:])
            ended = told(made)
            assert (begun + ended if isinstance(ended, list) else ended) == whole, cut
        else:
            assert begun == whole, cut


def test_octets_that_come_one_by_one_are_searched_once(parser: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    searched = 0

    class Counting:
        def search(self, data: bytes, start: int) -> None:
            nonlocal searched
            searched += len(data) - start

    monkeypatch.setattr("prefork.http1.connection.STRAY_LINE_END", Counting())
    monkeypatch.setattr("prefork.http1.chunks.STRAY_LINE_END", Counting())
    line = b"x" * 1900
    for begun in (b"GET / HTTP/1.1\r\nX: ", CHUNKS + b"1;", CHUNKS + b"0\r\nX: "):
        made = connection(parser, begun)
        told(made)
        searched = 0
        for octet in line:
            made.receive(bytes([octet]))
            told(made)
        assert searched <= 2 * len(line)


def test_who_is_declined_may_ask_again_if_the_connection_goes_on(parser: Maker) -> None:
    busy = Refused(503, "too much to do", "RFC 9110 section 15.6.4")
    body = b"503 Service Unavailable: too much to do\n"
    made = connection(parser, b"GET / HTTP/1.1\r\nHost: a\r\n\r\nHEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
    read(made)
    answer = made.decline(busy, DATE)
    assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"\r\nRetry-After: 1\r\n" in answer
    assert answer.endswith(b"\r\n\r\n" + body)
    assert read(made).line.method == "HEAD"
    assert made.decline(busy, DATE).endswith(b"\r\n\r\n")
    made.receive(b"GET / HTTP/1.0\r\n\r\n")
    read(made)
    assert b"\r\nConnection: close\r\n" in made.decline(busy, DATE)
    assert made.phase is Phase.CLOSED


@pytest.mark.parametrize("value", [b"close", b"keep-alive, Close"])
def test_client_may_ask_for_the_end(parser: Maker, value: bytes) -> None:
    made = connection(parser, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: " + value + b"\r\n\r\n")
    assert not read(made).head.keep_alive
    assert b"Connection: close" in made.start("200 OK", [], DATE, 0)
    made.finish()
    assert made.phase is Phase.CLOSED
    assert not made.leftover


def test_body_of_known_length_ends_where_the_next_request_begins(parser: Maker) -> None:
    made = connection(parser, b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 005\r\nExpect: 100-Continue\r\n\r\nhel")
    request = read(made)
    assert (request.head.length, request.head.awaits_continue) == (5, True)
    assert made.go_on().startswith(b"HTTP/1.1 100 ")
    assert isinstance(made.next_event(), Body)
    assert made.next_event() is None
    made.receive(b"loGET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert body_of(made) == (b"lo", [])
    made.start("200 OK", [], DATE, 0)
    made.finish()
    assert read(made).line.path == b"/2"


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_chunked_body_is_read_however_it_is_cut(parser: Maker, size: int) -> None:
    whole = b'5;a="b\\"c" ; d = e\r\nhello\r\n006\r\n world\r\n0\r\nX-T:  1 \r\n\r\n'
    made = connection(parser, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n")
    assert read(made).head.length == CHUNKED
    data = b""
    event = None
    for at in range(0, len(whole), size):
        made.receive(whole[at : at + size])
        while isinstance(event := made.next_event(), Body):
            data += event.data
    assert data == b"hello world"
    assert isinstance(event, End)
    assert event.trailers == [(b"X-T", b"1")]
    assert made.phase is Phase.ANSWER


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"x\r\n", 400),
        (b"5 \r\n", 400),
        (b"5\nhello", 400),
        (b"5\r\nhelloX", 400),
        (b"f" * 20 + b"\r\n", 413),
        (b"3e9\r\n", 413),
        (b"1;" + b"a" * (LINE_LIMIT + 2), 400),
        (b"0\r\nX : 1\r\n\r\n", 400),
        (b"0\r\nX\n", 400),
        (b"0\r\n" + b"X: 1\r\n" * 400, 431),
    ],
)
def test_broken_chunks_are_refused(parser: Maker, body: bytes, status: int) -> None:
    made = connection(parser, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
    read(made)
    with pytest.raises(Refused) as caught:
        list(iter(made.next_event, None))
    assert caught.value.status == status


def asked(parser: Maker, line: bytes = b"GET / HTTP/1.1") -> Connection:
    made = connection(parser, line + b"\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")
    read(made)
    return made


def test_answer_is_framed_by_its_length(parser: Maker) -> None:
    made = asked(parser)
    head = made.start("200 OK", [("Content-Length", "2"), ("X-A", "é")], DATE)
    start = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: é\r\nServer: prefork\r\nDate: ".encode("latin-1")
    assert head == start + DATE + b"\r\n\r\n"
    assert [made.complete, made.data(b"ab"), made.complete, made.finish()] == [False, b"ab", True, b""]
    assert made.idle


def test_answer_of_unknown_length_is_chunked(parser: Maker) -> None:
    made = asked(parser)
    assert b"Transfer-Encoding: chunked" in made.start("200 OK", [("Date", "x"), ("Server", "y")], DATE)
    assert not made.opaque(3)
    assert made.room(3) == 3
    assert made.data(b"abc") + made.data(b"") + made.finish() == b"3\r\nabc\r\n0\r\n\r\n"


def test_answer_of_unknown_length_to_http10_ends_with_the_connection(parser: Maker) -> None:
    made = asked(parser, b"GET / HTTP/1.0")
    head = made.start("200 OK", [], DATE)
    assert b"chunked" not in head
    assert b"Connection: close" in head
    assert made.opaque(10)
    assert made.data(b"abc") + made.finish() == b"abc"
    assert made.phase is Phase.CLOSED


def test_http10_is_told_that_the_connection_stays(parser: Maker) -> None:
    assert b"Connection: keep-alive" in asked(parser, b"GET / HTTP/1.0").start("200 OK", [], DATE, 2)


@pytest.mark.parametrize(
    ("line", "status"),
    [(b"HEAD / HTTP/1.1", "200 OK"), (b"GET / HTTP/1.1", "204 No Content"), (b"GET / HTTP/1.1", "304 Not Modified")],
)
def test_answer_without_a_body_has_none(parser: Maker, line: bytes, status: str) -> None:
    made = asked(parser, line)
    head = made.start(status, [("Content-Length", "5")], DATE)
    assert (b"Content-Length" in head) == ("204" not in status)
    assert b"chunked" not in head
    assert made.data(b"hello") + made.finish() == b""
    assert made.idle


def test_hop_by_hop_fields_of_an_application_are_dropped_but_a_close_is_granted(parser: Maker) -> None:
    made = asked(parser)
    head = made.start(
        "200 OK", [("Transfer-Encoding", "x"), ("Connection", "Close"), ("Connection", "x"), ("X-A", "1")], DATE, 0
    )
    assert b"Transfer-Encoding" not in head
    assert head.count(b"Connection: close") == 1
    assert b"X-A: 1" in head


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        ("200 OK\r\nX: y", []),
        ("200 OK", [("X", "a\nb")]),
        ("200 OK", [("X\r", "a")]),
        ("200 OK", [("X", "a\0")]),
        ("200 OK", [("X", "\u20ac")]),
        ("OK", []),
        ("2000", []),
        ("3", []),
        ("25", []),
        ("100 Continue", []),
        ("101 Switching Protocols", []),
        ("103 Early Hints", []),
        ("199 x", []),
        ("600 x", []),
        ("099 x", []),
        ("\u0662\u0660\u0660 OK", []),
        ("200 O\x1bK", []),
        ("200 OK", [("X", "\x01")]),
        ("200 OK", [("X", "\x7f")]),
        ("200 OK", [("Content-Length", "1"), ("content-length", "2")]),
        ("200 OK", [("Content-Length", "+1")]),
        ("200 OK", [("X Y", "a")]),
        ("200 OK", [("", "a")]),
        ("200 OK", [(b"X", b"a")]),
        ("200 OK", [("X", 1)]),
        ("200 OK", [("X", ["a"])]),
    ],
)
def test_answer_that_would_break_http_is_not_sent(parser: Maker, status: str, fields: list[tuple[str, str]]) -> None:
    with pytest.raises(Misanswered):
        asked(parser).start(status, fields, DATE)


def test_an_answer_carries_the_id_of_its_request_unless_it_has_one(parser: Maker) -> None:
    made = NamedConnection(HeadReader(LIMITS, parser()))
    for name, fields, ids in (("", [], 0), ("a1", [], 1), ("a1", [("x-request-id", "b2")], 0)):
        made.receive(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        read(made)
        made.request_id = name
        octets = made.whole("200 OK", fields, DATE, b"hello")
        assert octets.count(b"\r\nX-Request-ID: a1\r\n\r\nhello") == ids
        assert octets.endswith(b"\r\n\r\nhello")


@pytest.mark.parametrize(
    ("line", "whole", "endless"),
    [
        (b"GET / HTTP/1.1", None, True),
        (b"GET / HTTP/1.0", None, True),
        (b"GET / HTTP/1.1", 5, False),
        (b"HEAD / HTTP/1.1", None, False),
    ],
)
def test_an_answer_is_endless_that_says_no_length(
    parser: Maker, line: bytes, whole: int | None, *, endless: bool
) -> None:
    made = asked(parser, line)
    made.start("200 OK", [], DATE, whole)
    assert made.endless is endless


def test_205_has_no_body_and_says_so(parser: Maker) -> None:
    """RFC 9110 section 15.3.6."""
    made = asked(parser)
    octets = made.whole("205 Reset Content", [("Content-Length", "5")], DATE, b"hello")
    assert octets.count(b"Content-Length: 0\r\n") == octets.count(b"Content-Length") == 1
    assert octets.endswith(b"\r\n\r\n")
    assert made.idle


def test_a_status_without_a_reason_keeps_its_space(parser: Maker) -> None:
    """RFC 9112 section 4."""
    assert asked(parser).start("200", [], DATE, 0).startswith(b"HTTP/1.1 200 \r\n")


def test_a_tab_and_octets_beyond_ascii_may_be_in_a_field(parser: Maker) -> None:
    assert b"\r\nX: a\tb\xff\r\n" in asked(parser).start("200 OK", [("X", "a\tb\xff")], DATE, 0)


HINTS = [
    ("Link", "</a.css>; rel=preload"),
    ("Content-Length", "5"),
    ("Connection", "close"),
    ("Transfer-Encoding", "x"),
]


def test_an_interim_answer_goes_ahead_of_the_answer_and_changes_nothing_about_it(parser: Maker) -> None:
    """RFC 8297, and RFC 9110 section 8.6: without what frames."""
    made = asked(parser)
    interim = made.informational("103 Early Hints", HINTS)
    assert interim == b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
    assert b"Connection: close" not in made.start("200 OK", [], DATE, 0)


def test_http10_gets_no_interim_answer(parser: Maker) -> None:
    """RFC 9110 section 15.2."""
    assert asked(parser, b"GET / HTTP/1.0").informational("103 Early Hints", HINTS) == b""


@pytest.mark.parametrize("line", [b"GET / HTTP/1.1", b"GET / HTTP/1.0"])
@pytest.mark.parametrize(
    ("status", "fields"),
    [("200 OK", []), ("103 a\r\nb", []), ("103 Early Hints", [("X", "a\nb")]), ("103 Early Hints", [("X Y", "a")])],
)
def test_interim_answer_that_would_break_http_is_not_sent(
    parser: Maker, line: bytes, status: str, fields: list[tuple[str, str]]
) -> None:
    with pytest.raises(Misanswered):
        asked(parser, line).informational(status, fields)


@pytest.mark.parametrize(
    "head", [b"HEAD / HTTP/1.1\r\n\r\n", b"HEAD / HTTP/2.0\r\nHost: a\r\n\r\n", b"HEAD /" + b"a" * 3000]
)
def test_a_head_that_is_refused_is_refused_without_a_body(parser: Maker, head: bytes) -> None:
    """RFC 9110 section 9.3.2."""
    made = asked(parser)
    made.start("200 OK", [], DATE, 0)
    made.finish()
    made.receive(head)
    with pytest.raises(Refused) as caught:
        made.next_event()
    assert made.refusal(caught.value, DATE).endswith(b"\r\n\r\n")


def test_body_may_neither_pass_nor_miss_its_length(parser: Maker) -> None:
    made = asked(parser)
    made.start("200 OK", [("Content-Length", "2"), ("Content-Length", "2")], DATE)
    assert not made.opaque(3)
    assert (made.room(3), made.room(1)) == (2, 1)
    with pytest.raises(Misanswered):
        made.data(b"abc")
    made = asked(parser)
    made.start("200 OK", [("Content-Length", "4")], DATE)
    assert made.opaque(2)
    with pytest.raises(Misanswered):
        made.finish()


def test_a_field_that_cannot_be_hashed_is_taken(parser: Maker) -> None:
    assert b"X-A: 1\r\n" in asked(parser).start("200 OK", [["X-A", "1"]], DATE, 0)  # type: ignore[list-item]


@pytest.mark.parametrize("line", [b"GET / HTTP/1.1", b"HEAD / HTTP/1.1", b"GET / HTTP/1.0"])
@pytest.mark.parametrize("status", ["200 OK", "204 No Content"])
@pytest.mark.parametrize("fields", [[], [("Content-Length", "5")], [("Connection", "close")]])
def test_whole_answer_is_the_same_as_one_in_pieces(
    parser: Maker, line: bytes, status: str, fields: list[tuple[str, str]]
) -> None:
    one, other = asked(parser, line), asked(parser, line)
    whole = one.whole(status, fields, DATE, b"hello")
    assert whole == other.start(status, fields, DATE, 5) + other.data(b"hello") + other.finish()
    assert (one.phase, one.leftover) == (other.phase, other.leftover)


def test_whole_answer_of_another_length_than_declared_is_not_sent(parser: Maker) -> None:
    for body in (b"four", b"sixsix"):
        with pytest.raises(Misanswered):
            asked(parser).whole("200 OK", [("Content-Length", "5")], DATE, body)


def test_what_is_remembered_is_bounded(parser: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefork.http1.heads.REMEMBERED", 2)
    monkeypatch.setattr("prefork.http1.heads._KNOWN_SPELLINGS", 0)
    monkeypatch.setattr("prefork.http1.connection._KNOWN_HEADINGS", 2)
    reader = HeadReader(LIMITS, parser())
    for number in [*range(5), *range(5)]:
        made = Connection(reader)
        request = sent(made, b"GET /%d HTTP/1.1\r\nHost: a\r\nX-%d: b\r\n\r\n" % (number, number))
        assert request.line.target == b"/%d" % number
        assert b"X-A: %d\r\n" % number in made.start("200 OK", [("X-A", str(number))], DATE, 0)
    assert b"X-A: a" in asked(parser).start("200 OK", [("X-A", "a" * 2000)], DATE, 0)
    monkeypatch.setattr("prefork.http1.heads.REMEMBERED_SIZE", 10)
    assert read(connection(parser, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")).head.host == b"a"


def test_the_same_octets_again_are_the_same_request(parser: Maker) -> None:
    reader = HeadReader(LIMITS, parser())
    seen = []
    for path in [b"/a", b"/a", b"/a", b"/b", b"/b", b"/b", b"/a"]:
        made = Connection(reader)
        seen.append(sent(made, b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path))
        assert not made.buffered
    assert [request.line.path for request in seen] == [b"/a", b"/a", b"/a", b"/b", b"/b", b"/b", b"/a"]
    assert len({id(request.head) for request in seen}) == 1


def test_a_head_is_not_taken_for_short_because_its_parts_were_seen_in_short_ones(parser: Maker) -> None:
    long_line, long_field = b"/" + b"a" * 1500, b"X: " + b"b" * 1500
    reader = HeadReader(LIMITS, parser())
    for path, field in [(long_line, b"X: b"), (b"/a", long_field)] * 2:
        made = Connection(reader)
        assert sent(made, b"GET %b HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n" % (path, field)).line.path == path
    made = Connection(reader)
    with pytest.raises(Refused) as caught:
        sent(made, b"GET %b HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n" % (long_line, long_field))
    assert caught.value.status == 431


@pytest.mark.parametrize(
    ("head", "ends"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", False),
        (b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", True),
        (b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1\r\n\r\n", False),
    ],
)
def test_a_client_that_asks_for_the_end_sends_nothing_more(parser: Maker, head: bytes, ends: bool) -> None:
    """But for the line end behind a body, which old ones send (RFC 9112 section 2.2)."""
    reader = HeadReader(LIMITS, parser())
    for _ in range(3):  # read, recalled, and the last once more
        made = Connection(reader)
        sent(made, head)
        assert made.client_ends is ends


def test_what_comes_behind_a_part_or_a_request_is_not_recalled(parser: Maker) -> None:
    data = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    reader = HeadReader(LIMITS, parser())
    for _ in range(2):
        assert sent(Connection(reader), data).line.path == b"/"
    made = Connection(reader)
    assert made.recall(data[:9]) is None
    assert made.recall(data[9:]) is None
    first = read(made)
    assert made.recall(data) is None
    assert made.next_event() is None
    made.whole("200 OK", [], DATE, b"")
    assert read(made).line is first.line


HEADS = st.binary(max_size=40) | st.sampled_from(
    [
        b"Host: a",
        b"Host: b",
        b"Content-Length: 3",
        b"Transfer-Encoding: chunked",
        b"Connection: close",
        b"X: \t y \t",
        b"Connection: upgrade",
        b"Upgrade: h2c",
        b"Proxy-Connection: close",
    ]
)


@given(
    line=st.sampled_from([b"GET / HTTP/1.1", b"POST /x HTTP/1.0", b"ODD http://a/ HTTP/1.1", b"GET / HTTP/1.7"])
    | st.binary(max_size=30),
    fields=st.lists(HEADS, max_size=6),
    rest=st.binary(max_size=20),
)
def test_both_parsers_decide_alike(parser: Maker, line: bytes, fields: list[bytes], rest: bytes) -> None:
    data = b"\r\n".join([line, *fields, b"", rest])
    seen = []
    for make in (parser, H11Parser):
        made = connection(make, data)
        found: list[object] = []
        try:
            while (event := made.next_event()) is not None:
                if isinstance(event, Request):
                    found.append(
                        (
                            event.line.method,
                            event.line.target,
                            event.head.length,
                            event.head.keep_alive,
                            [(n.lower(), v) for n, v in event.head.fields],
                        )
                    )
                else:
                    found.append(event.data if isinstance(event, Body) else event.trailers)
        except Refused as refused:
            found.append(refused.status)
        seen.append(found)
    assert seen[0] == seen[1]


def verdict(reader: HeadReader, data: bytes) -> list[object]:
    made = Connection(reader)
    made.receive(data)
    found: list[object] = []
    try:
        while (event := made.next_event()) is not None:
            found.append((event.line, event.head) if isinstance(event, Request) else event)
    except Refused as refused:
        found.append((refused.status, refused.reason))
    return [repr(part) for part in found]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"GET / HTTP/1.1", b"POST /x?y HTTP/1.0", b"GET http://b/ HTTP/1.1", b"HEAD / HTTP/1.1"]),
            st.lists(HEADS, max_size=4),
            st.sampled_from([b"", b"abc", b"\r\n", b"3\r\nabc\r\n0\r\n\r\n"]),
        ),
        max_size=8,
    )
)
def test_a_reader_that_has_read_others_decides_as_a_new_one(
    parser: Maker, requests: list[tuple[bytes, list[bytes], bytes]]
) -> None:
    reader = HeadReader(LIMITS, parser())
    for line, fields, body in requests * 2:
        data = b"\r\n".join([line, *fields, b"", body])
        assert verdict(reader, data) == verdict(HeadReader(LIMITS, parser()), data)


def test_what_the_library_alone_refuses_is_refused(parser: Maker) -> None:
    class Picky(parser):  # type: ignore[misc, valid-type]
        def fields(self, version: str, block: bytes) -> list[tuple[bytes, bytes]]:
            raise Refused(400, "a matter of taste", "library")

    with pytest.raises(Refused, match="taste"):
        connection(Picky, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").next_event()


# An answer that begins before its request is complete; what goes out beside the body.


def test_a_body_may_come_while_its_answer_goes_out(parser: Maker) -> None:
    made = connection(parser, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabc")
    read(made)
    assert isinstance(made.next_event(), Body)
    assert made.awaits_body
    made.answer_close = True
    made.start("200 OK", [("content-length", "4")], DATE)
    assert made.data(b"12") == b"12"
    made.receive(b"def")
    assert body_of(made) == (b"def", [])
    assert made.data(b"34") + made.finish() == b"34"
    assert made.phase is Phase.CLOSED


def test_trailers_stand_behind_the_last_chunk_and_nowhere_else(parser: Maker) -> None:
    chunked = connection(parser, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    read(chunked)
    chunked.start("200 OK", [], DATE)
    assert chunked.finish([("x-sum", "1"), ("x-b", "\xe9")]) == b"0\r\nx-sum: 1\r\nx-b: \xe9\r\n\r\n"
    plain = connection(parser, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    read(plain)
    plain.start("200 OK", [("content-length", "0")], DATE)
    assert plain.finish([("x-sum", "1")]) == b""


@pytest.mark.parametrize(
    "field", [("a b", "1"), ("x", "1\r\ny: 2"), ("x", "\x01"), ("x", "\u20ac"), ("content-length", "1")]
)
def test_a_trailer_that_would_break_the_framing_is_misanswered(parser: Maker, field: tuple[str, str]) -> None:
    made = connection(parser, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    read(made)
    made.start("200 OK", [], DATE)
    with pytest.raises(Misanswered):
        made.finish([field])
