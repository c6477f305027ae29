"""What does a WSGI application see of a request, and what may it say ahead of its answer?"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from http1_oracle import BASE

from prefork.config import Limits
from prefork.http1.connection import Connection
from prefork.http1.heads import HeadReader
from prefork.http1.messages import Misanswered, Request
from prefork.http1.parser_h11 import H11Parser
from prefork.wsgi.gateway import Answer, FileWrapper, request_environ, trailers_in_environ

HINT = ("Link", "</a.css>; rel=preload")


class Sent:
    """A stream that keeps what is sent."""

    def __init__(self) -> None:
        self.data = b""

    def send(self, data: bytes) -> None:
        self.data += data

    complete = conclude = send

    def date(self) -> bytes:
        return b"today"

    def measure(self, file: Any) -> None:
        return None

    def sendfile(self, file: Any, offset: int, size: int, *, last: bool) -> None:
        raise AssertionError


def asked(head: bytes, underscores: str = "drop") -> tuple[Connection, Request]:
    connection = Connection(HeadReader(Limits(underscores_in_headers=underscores), H11Parser()))
    connection.receive(head + b"\r\n\r\n")
    request = connection.next_event()
    assert isinstance(request, Request)
    return connection, request


GET = b"GET / HTTP/1.1\r\nHost: a"


def test_trailers_have_a_key_of_their_own() -> None:
    """RFC 9110 section 6.5.1."""
    _, request = asked(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked")
    trailers = [(b"X-Sum", b"1"), (b"Host", b"\xe9"), (b"X-Sum", b"2")]
    assert trailers_in_environ(trailers) == (("x-sum", "1"), ("host", "\xe9"), ("x-sum", "2"))
    assert request_environ(BASE, None, request, BytesIO(), 0)["prefork.trailers"] == ()


@pytest.mark.parametrize(("underscores", "user"), [("drop", "a"), ("keep", "a,b")])
def test_a_name_with_an_underscore_is_another_spelling_only_where_it_is_kept(underscores: str, user: str) -> None:
    """It never stands for what WSGI itself reads: Content_Length is not CONTENT_LENGTH."""
    _, request = asked(
        GET + b"\r\nX-User: a\r\nX_User: b\r\nContent_Length: 5\r\nContent_Type: c\r\nX_Forwarded_For: 1.2.3.4",
        underscores,
    )
    environ = request_environ(BASE, None, request, None, 0)
    assert environ["HTTP_X_USER"] == user
    assert not {"CONTENT_LENGTH", "CONTENT_TYPE", "HTTP_X_FORWARDED_FOR"} & environ.keys()
    assert ("HTTP_CONTENT_LENGTH" in environ) == (underscores == "keep")


def hinting(head: bytes = GET) -> tuple[Answer, Sent]:
    connection, _ = asked(head)
    sent = Sent()
    return Answer(connection, sent), sent


def test_hints_go_out_at_once_and_as_often_as_they_are_given() -> None:
    """RFC 8297."""
    answer, sent = hinting()
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
    answer.early_hints([HINT])
    assert sent.data == hint
    answer.early_hints([])
    answer.early_hints([HINT])
    assert sent.data == hint * 2
    answer.start_response("200 OK", [])
    answer.early_hints([HINT])
    answer.write(b"hello")
    assert sent.data.startswith(hint * 3 + b"HTTP/1.1 200 OK\r\n")


def test_hints_behind_the_head_of_the_answer_are_a_mistake() -> None:
    answer, sent = hinting()
    answer.start_response("200 OK", [])(b"hello")
    before = sent.data
    with pytest.raises(AssertionError, match="after the head"):
        answer.early_hints([HINT])
    assert sent.data == before


def test_hints_that_would_break_http_are_not_sent() -> None:
    answer, sent = hinting()
    with pytest.raises(Misanswered):
        answer.early_hints([("Link", "a\r\nSet-Cookie: b")])
    assert sent.data == b""


def test_http10_gets_no_hints() -> None:
    answer, sent = hinting(b"GET / HTTP/1.0")
    answer.early_hints([HINT])
    assert sent.data == b""


class Unread(BytesIO):
    """A file that nobody may read."""

    closings = 0

    def read(self, _size: int | None = -1) -> bytes:
        raise AssertionError

    def close(self) -> None:
        self.closings += 1


class Kernel(Sent):
    """A stream that can send files, and keeps which: the file, the offset and the size."""

    def __init__(self, offset: int, size: int) -> None:
        super().__init__()
        self.left = (offset, size)
        self.files: list[tuple[Any, int, int]] = []
        self.whole = False

    def measure(self, file: Any) -> tuple[int, int]:  # type: ignore[override]  # this is a file
        return self.left

    def sendfile(self, file: Any, offset: int, size: int, *, last: bool) -> None:
        self.files.append((file, offset, size))
        self.whole = last


def give(file: Unread, stream: Kernel, length: int | None, *, method: bytes = b"GET", status: str = "200 OK") -> None:
    """Answer with a file, whose length is declared or not."""

    def app(_environ: dict[str, Any], start_response: Any) -> FileWrapper:
        start_response(status, [] if length is None else [("Content-Length", str(length))])
        return FileWrapper(file)

    connection, _ = asked(method + b" / HTTP/1.1\r\nHost: a")
    Answer(connection, stream).run(app, {})
    assert stream.data.endswith(b"\r\n\r\n")
    assert connection.idle
    assert file.closings == 1


@pytest.mark.parametrize(
    ("left", "declared", "sent"),
    [
        pytest.param((0, 1 << 40), None, (0, 1 << 40), id="all of it"),
        pytest.param((0, 1 << 40), 1 << 40, (0, 1 << 40), id="all of it, declared"),
        pytest.param((10, 90), None, (10, 90), id="from where it was read to"),
        pytest.param((10, 90), 5, (10, 5), id="a range"),
    ],
)
def test_a_file_is_left_to_the_kernel(left: tuple[int, int], declared: int | None, sent: tuple[int, int]) -> None:
    file, stream = Unread(), Kernel(*left)
    give(file, stream, declared)
    assert stream.files == [(file, *sent)]
    assert stream.whole
    assert b"Content-Length: %d\r\n" % sent[1] in stream.data


@pytest.mark.parametrize(("method", "status"), [(b"HEAD", "200 OK"), (b"GET", "304 Not Modified")])
def test_a_file_that_is_not_sent_is_not_read(method: bytes, status: str) -> None:
    """RFC 9110 section 9.3.2: who asks for the head of something large must not make it be read."""
    stream = Kernel(0, 1 << 40)
    give(Unread(), stream, 1 << 40, method=method, status=status)
    assert not stream.files
    assert b"Content-Length: 1099511627776\r\n" in stream.data
