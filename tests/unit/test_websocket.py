"""Does a WebSocket keep to RFC 6455 and RFC 7692? The handshake, and the session behind it, without a socket."""

from __future__ import annotations

import math
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given, settings, strategies as st
from websocket_cases import BINARY, CASES, CLOSE, CONTINUATION, MOST, PING, TEXT, Case, close, frame, hear

from prefork.config import Limits
from prefork.http1.connection import Connection, Phase, closing_answer
from prefork.http1.heads import HeadReader
from prefork.http1.messages import Misanswered, Refused, Request, Upgrade
from prefork.http1.parser_h11 import H11Parser
from prefork.websocket import LOST, Finding, Handshake, Presence, Session, acceptance, read_handshake

KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
VERSION = b"Sec-WebSocket-Version: 13\r\n"
ASKS = b"Host: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
LINE = b"GET /tea HTTP/1.1\r\n"


def read(octets: bytes) -> tuple[Connection, Request]:
    """Return what comes of a request, and its connection."""
    reader = HeadReader(Limits(), H11Parser())
    reader.upgrades = True
    connection = Connection(reader)
    connection.receive(octets)
    request = connection.next_event()
    assert isinstance(request, Request)
    return connection, request


def handshake(more: bytes = b"") -> Handshake:
    """Judge a good request with further fields."""
    return read_handshake(read(LINE + ASKS + KEY + VERSION + more + b"\r\n")[1])


# The handshake.


@pytest.mark.parametrize(
    ("head", "asks"),
    [
        pytest.param(LINE + ASKS, True, id="both fields: RFC 6455 4.2.1"),
        pytest.param(
            LINE + b"Host: a\r\nupgrade: WebSocket\r\nconnection: keep-alive, UPGRADE\r\n", True, id="in any case, in a list: 4.2.1"
        ),
        pytest.param(LINE + b"Host: a\r\nUpgrade: h2c, websocket\r\nConnection: Upgrade\r\n", True, id="among others: RFC 9110 7.8"),
        pytest.param(LINE + b"Host: a\r\nUpgrade: websocket\r\n", False, id="not said to this hop: RFC 9110 7.8"),
        pytest.param(LINE + b"Host: a\r\nUpgrade: websocket/2\r\nConnection: Upgrade\r\n", False, id="something else: RFC 9110 7.8"),
        pytest.param(LINE + b"Host: a\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n", False, id="h2c: RFC 9110 7.8"),
        pytest.param(b"GET /tea HTTP/1.0\r\n" + ASKS, False, id="in HTTP/1.0: RFC 9110 7.8"),
        pytest.param(b"GET http://b/tea HTTP/1.1\r\n" + ASKS, True, id="absolute target: RFC 9112 3.2.2"),
    ],
)  # fmt: skip
def test_who_asks_for_a_websocket_is_told_apart(head: bytes, asks: bool) -> None:
    assert isinstance(read(head + b"\r\n")[1], Upgrade) is asks


def test_nobody_is_told_apart_where_that_is_not_asked_for() -> None:
    connection = Connection(HeadReader(Limits(), H11Parser()))
    connection.receive(LINE + ASKS + b"\r\n")
    assert type(connection.next_event()) is Request


@pytest.mark.parametrize(
    ("octets", "status"),
    [
        pytest.param(b"POST /tea HTTP/1.1\r\n" + ASKS + KEY + VERSION, 400, id="POST: 4.1"),
        pytest.param(LINE + ASKS + KEY + VERSION + b"Content-Length: 1\r\n", 400, id="a body: 4.2.1"),
        pytest.param(LINE + ASKS + KEY + VERSION + b"Transfer-Encoding: chunked\r\n", 400, id="a chunked body: 4.2.1"),
        pytest.param(LINE + ASKS + KEY, 426, id="no version: 4.2.2"),
        pytest.param(LINE + ASKS + KEY + b"Sec-WebSocket-Version: 8\r\n", 426, id="version 8: 4.2.2"),
        pytest.param(LINE + ASKS + KEY + b"Sec-WebSocket-Version: 13, 8\r\n", 426, id="two versions: 11.3.5"),
        pytest.param(LINE + ASKS + KEY + VERSION * 2, 426, id="two fields with a version: 11.3.5"),
        pytest.param(LINE + ASKS + VERSION, 400, id="no key: 4.2.1"),
        pytest.param(LINE + ASKS + VERSION + KEY * 2, 400, id="two keys: 11.3.1"),
        pytest.param(LINE + ASKS + VERSION + b"Sec-WebSocket-Key: dGhl\r\n", 400, id="a short key: 4.2.1"),
        pytest.param(LINE + ASKS + VERSION + b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZ!==\r\n", 400, id="no base64: 4.2.1"),
        pytest.param(LINE + ASKS + KEY + VERSION + b"Sec-WebSocket-Protocol: a b\r\n", 400, id="subprotocol of two words: 4.1"),
        pytest.param(LINE + ASKS + KEY + VERSION + b"Sec-WebSocket-Protocol: a, a\r\n", 400, id="subprotocol twice: 4.1"),
        pytest.param(LINE + ASKS + KEY + VERSION + b"Sec-WebSocket-Extensions: a b\r\n", 400, id="no list of extensions: 9.1"),
    ],
)  # fmt: skip
def test_handshake_that_breaks_a_rule_is_refused(octets: bytes, status: int) -> None:
    _, request = read(octets + b"\r\n")
    with pytest.raises(Refused) as refused:
        read_handshake(request)
    assert refused.value.status == status


def test_who_speaks_another_version_is_told_which_one_to_speak() -> None:
    _, request = read(LINE + ASKS + KEY + b"\r\n")
    with pytest.raises(Refused) as refused:
        read_handshake(request)
    answer = closing_answer(refused.value, b"today")
    assert answer.startswith(b"HTTP/1.1 426 Upgrade Required\r\n")
    assert {b"Sec-WebSocket-Version: 13", b"Upgrade: websocket", b"Connection: Upgrade"} <= set(answer.split(b"\r\n"))


def test_key_is_answered_as_in_the_rfc() -> None:
    fields = acceptance(handshake(), None, [("x-tea", "green")], compressed=False)
    assert fields == [("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), ("x-tea", "green")]


def test_subprotocols_are_those_of_all_fields_in_their_order() -> None:
    asked = handshake(b"Sec-WebSocket-Protocol: tea, mate\r\nSec-WebSocket-Protocol: rooibos\r\n")
    assert asked.subprotocols == ("tea", "mate", "rooibos")
    assert ("Sec-WebSocket-Protocol", "mate") in acceptance(asked, "mate", [], compressed=False)


@pytest.mark.parametrize("field", ["Sec-WebSocket-Accept", "sec-websocket-protocol", "Sec-WebSocket-Extensions"])
def test_fields_of_the_handshake_are_not_the_applications(field: str) -> None:
    with pytest.raises(Misanswered, match=field):
        acceptance(handshake(), None, [(field, "a")], compressed=False)


def test_subprotocol_that_the_client_does_not_speak_is_not_chosen() -> None:
    with pytest.raises(Misanswered, match="coffee"):
        acceptance(handshake(b"Sec-WebSocket-Protocol: tea\r\n"), "coffee", [], compressed=False)


@pytest.mark.parametrize(
    ("offer", "window"),
    [
        pytest.param(b"permessage-deflate", 15, id="plain: RFC 7692 7.1"),
        pytest.param(b"permessage-deflate; client_max_window_bits", 15, id="as browsers do: 7.1.2.2"),
        pytest.param(b"permessage-deflate; client_max_window_bits=10; server_no_context_takeover", 15, id="with values: 7.1"),
        pytest.param(b'permessage-deflate ; server_max_window_bits="11"', 11, id="quoted: RFC 6455 9.1"),
        pytest.param(b"x-tea, permessage-deflate", 15, id="the second is known: 9.1"),
        pytest.param(b"permessage-deflate; tea, permessage-deflate", 15, id="the second can be taken: 7.1"),
        pytest.param(b"permessage-deflate; server_max_window_bits=9, permessage-deflate", 9, id="the first counts: 5"),
        pytest.param(b"permessage-deflate; server_max_window_bits=8", 0, id="a window that zlib has not: 7.1.2.1"),
        pytest.param(b"permessage-deflate; server_max_window_bits", 0, id="no value: 7.1.2.1"),
        pytest.param(b"permessage-deflate; server_max_window_bits=16", 0, id="too large: 7.1.2.1"),
        pytest.param(b"permessage-deflate; client_max_window_bits=09", 0, id="a leading zero: 7.1.2.2"),
        pytest.param(b"permessage-deflate; server_no_context_takeover=1", 0, id="a value too many: 7.1.1.1"),
        pytest.param(b"permessage-deflate; tea", 0, id="unknown parameter: 7.1"),
        pytest.param(b"permessage-deflate; server_no_context_takeover; server_no_context_takeover", 0, id="twice: 7.1"),
        pytest.param(b"x-webkit-deflate-frame", 0, id="another extension: 9.1"),
    ],
)  # fmt: skip
def test_offers_of_compression_are_taken_or_declined(offer: bytes, window: int) -> None:
    assert handshake(b"Sec-WebSocket-Extensions: " + offer + b"\r\n").window == window


def test_compression_keeps_nothing_between_two_messages_and_the_window_that_was_asked_for() -> None:
    asked = handshake(b"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=10\r\n")
    said = dict(acceptance(asked, None, [], compressed=True))["Sec-WebSocket-Extensions"]
    assert (
        said == "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=10"
    )


def test_what_comes_behind_the_handshake_is_no_request() -> None:
    connection, _ = read(LINE + ASKS + KEY + VERSION + b"\r\n" + LINE + b"Host: a\r\n\r\n")
    head, behind = connection.switch("websocket", [("Sec-WebSocket-Accept", "a"), ("connection", "close")])
    assert head == (
        b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    )
    assert behind == LINE + b"Host: a\r\n\r\n"
    assert connection.phase is Phase.CLOSED


def test_field_that_would_break_the_handshake_is_not_sent() -> None:
    connection, _ = read(LINE + ASKS + KEY + VERSION + b"\r\n")
    with pytest.raises(Misanswered):
        connection.switch("websocket", [("x-tea", "green\r\nx-tea: black")])


# The session.


def run(case: Case, *pieces: bytes) -> tuple[list[str | bytes], int | None, bytes | None]:
    """Return what comes of pieces: messages, the code that was said, the last pong."""
    session = Session(MOST, 15 if case.compressed else 0)
    messages: list[str | bytes] = []
    for piece in pieces:
        messages += session.receive(piece)
    heard = hear(session.unsent)
    assert (heard.code is not None) is (session.phase is Phase.CLOSED)
    return messages, heard.code, session.pong


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_a_client_says_is_judged_by_the_rfc(case: Case) -> None:
    assert run(case, case.octets) == ([*case.messages], case.code, case.pong)


@pytest.mark.parametrize("case", [case for case in CASES if len(case.octets) < 3000], ids=str)
def test_it_is_judged_alike_octet_by_octet(case: Case) -> None:
    octets = case.octets
    assert run(case, *(octets[at : at + 1] for at in range(len(octets)))) == ([*case.messages], case.code, case.pong)


FRAMES = st.builds(
    frame,
    st.sampled_from([TEXT, BINARY, CONTINUATION, PING, CLOSE, 3]),
    st.binary(max_size=20) | st.binary(min_size=124, max_size=140) | st.text(max_size=20).map(str.encode),
    fin=st.sampled_from([True, True, False]),
    rsv=st.sampled_from([0, 0, 0, 4]),
    mask=st.sampled_from([True] * 9 + [False]),
)


@settings(deadline=None)
@given(st.lists(FRAMES, max_size=6).map(b"".join), st.lists(st.integers(0, 400), max_size=5), st.booleans())
def test_the_verdict_does_not_depend_on_how_the_octets_come(octets: bytes, cuts: list[int], compressed: bool) -> None:
    case = Case("", octets, compressed=compressed)
    places = sorted({0, len(octets), *(cut for cut in cuts if cut < len(octets))})
    assert run(case, octets) == run(case, *(octets[a:b] for a, b in pairwise(places)))


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
@pytest.mark.parametrize("window", [0, 9, 15])
def test_messages_go_out_in_one_frame_each_and_come_back_the_same(size: int, window: int) -> None:
    session = Session(MOST, window)
    octets = session.send("ä" * (size // 2)) + session.send(b"\xff" * size)
    assert hear(octets).messages == ["ä" * (size // 2), b"\xff" * size]
    assert not window or size < 200 or len(octets) < size / 10


def test_message_in_the_smallest_frames_is_kept_in_its_size() -> None:
    session = Session(MOST, 0)
    session.receive(frame(BINARY, b"", fin=False))
    more = frame(CONTINUATION, b"ab", fin=False) * 50
    session.receive(more)
    tracemalloc.start()
    try:
        for _ in range(100):
            session.receive(more)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 3 * 2 * 5000


def test_end_said_here_is_over_when_the_client_says_so_too() -> None:
    session = Session(MOST, 0)
    assert hear(session.finish(4000, "enough")).code == 4000
    assert session.phase is Phase.ANSWER
    assert session.receive(frame(TEXT, b"still on its way")) == []
    assert session.receive(close(4000)) == []
    assert (session.phase, session.end, session.unsent, session.leftover) == (
        Phase.CLOSED,
        (4000, "enough"),
        b"",
        False,
    )


def test_end_said_by_the_client_is_answered_with_its_code() -> None:
    session = Session(MOST, 0)
    session.receive(close(4001, b"genug"))
    assert (hear(session.unsent).code, session.end, session.leftover) == (4001, (4001, "genug"), False)


def test_end_that_nobody_has_said_has_the_code_for_that() -> None:
    session = Session(MOST, 0)
    session.close()
    assert session.end == (LOST, "")
    assert session.receive(frame(TEXT, b"late")) == []


def test_mistake_behind_an_end_said_here_is_not_answered() -> None:
    session = Session(MOST, 0)
    session.finish(1000)
    session.receive(frame(TEXT, b"a", mask=False))
    assert (session.unsent, session.phase) == (b"", Phase.CLOSED)


def test_who_was_cut_off_is_let_to_read_why() -> None:
    session = Session(MOST, 0)
    session.receive(frame(TEXT, b"a", mask=False))
    assert session.leftover


def test_long_reason_is_cut_at_a_character() -> None:
    said = Session(MOST, 0).finish(1000, "ä" * 100)
    assert said[4:].decode() == "ä" * 61


@pytest.mark.parametrize("code", [0, 999, 1004, 1006, 1015, 1016, 2999, 5000])
def test_code_that_must_not_be_said_is_not_said(code: int) -> None:
    session = Session(MOST, 0)
    with pytest.raises(Misanswered, match=str(code)):
        session.finish(code)
    assert session.said is None


def test_end_without_a_code_says_none() -> None:
    assert Session(MOST, 0).finish(1005, "no reason without a code") == b"\x88\x00"


def test_pings_and_pongs_are_those_of_the_rfc() -> None:
    session = Session(MOST, 0)
    assert session.ping() == b"\x89\x00"
    session.receive(frame(PING, b"Hello"))
    assert session.take_pong() == b"\x8a\x05Hello"
    assert session.pong is None


# Is it there?


def test_silent_client_is_asked_once_and_given_up_when_its_time_is_over() -> None:
    presence = Presence(20, 5, 100.0)
    assert presence.due == 120
    assert (presence.look(119.9, unread=False), presence.due) == (Finding.PRESENT, 120)
    assert (presence.look(120, unread=False), presence.due) == (Finding.SILENT, 125)
    assert (presence.look(124.9, unread=False), presence.due) == (Finding.PRESENT, 125)
    assert presence.look(125, unread=False) is Finding.GONE


def test_whatever_a_client_says_is_an_answer() -> None:
    presence = Presence(20, 5, 100.0)
    presence.look(120, unread=False)
    presence.heard_at = 124.0
    assert (presence.look(125, unread=False), presence.due) == (Finding.PRESENT, 144)
    assert presence.look(144, unread=False) is Finding.SILENT


def test_nobody_is_given_up_while_the_answer_may_lie_unread() -> None:
    presence = Presence(20, 5, 100.0)
    presence.look(120, unread=False)
    assert (presence.look(125, unread=True), presence.due) == (Finding.PRESENT, 145)
    assert presence.look(145, unread=False) is Finding.GONE


@pytest.mark.parametrize(("interval", "patience"), [(math.inf, 5), (20, math.inf)])
def test_nobody_is_given_up_where_nobody_is_asked_or_nobody_has_to_answer(interval: float, patience: float) -> None:
    presence = Presence(interval, patience, 0.0)
    found = {presence.look(now, unread=False) for now in (0.0, 20.0, 1e9)}
    assert Finding.GONE not in found
    assert (Finding.SILENT in found) is (interval == 20)
