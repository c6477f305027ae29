"""Does the server do what Plack's suite asks of every server? Its 36 cases, by their names."""

from __future__ import annotations

import hashlib
from http.client import HTTPConnection
from typing import TYPE_CHECKING, NamedTuple

import pytest
from plack_app import BIGGER, PICTURE
from server_process import LiveServer, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEXT = b"package Plack::Test::Suite;\n" + b"x" * 5000 + b"\nEND_OF_TEXT\n"


class Reply(NamedTuple):
    status: int
    reason: str
    fields: list[tuple[str, str]]
    body: bytes

    def field(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key.lower() == name.lower()]


class Client:
    def __init__(self, server: LiveServer, files: Path) -> None:
        self.server, self.files = server, files

    def ask(
        self,
        case: int,
        path: str = "/",
        *,
        method: str = "GET",
        fields: tuple[tuple[str, str], ...] = (),
        body: bytes | None = None,
    ) -> Reply:
        connection = HTTPConnection(*self.server.address, timeout=20)
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in (("X-Plack-Test", str(case)), ("X-Files", str(self.files)), *fields):
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        reply = Reply(response.status, response.reason, response.getheaders(), response.read())
        connection.close()
        return reply

    def text(self, case: int, path: str = "/", *fields: tuple[str, str]) -> bytes:
        """Ask, see that it is 200 OK and text/plain as sent, and return the body."""
        reply = self.ask(case, path, fields=fields)
        assert (reply.status, reply.reason, reply.field("Content-Type")) == (200, "OK", ["text/plain"])
        return reply.body


@pytest.fixture(scope="module", params=["app", "checked"], ids=["plain", "behind wsgiref.validate"])
def app(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return f"plack_app:{name}"


@pytest.fixture(scope="module", params=["h11", "httptools"])
def client(request: pytest.FixtureRequest, app: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    files = tmp_path_factory.mktemp("files")
    for name, data in (("text", TEXT), ("picture", PICTURE), ("bigger", BIGGER)):
        (files / name).write_bytes(data)
    with LiveServer.pool(app, max_workers=1, max_reqs_per_child=0, http=request.param) as server:
        yield Client(server, files)


def test_00_script_name(client: Client) -> None:
    assert client.text(0) == b""


def test_01_get(client: Client) -> None:
    assert client.text(1, "/?name=miyagawa") == b"Hello, name=miyagawa"


@pytest.mark.parametrize(
    ("case", "kind", "body"),
    [(2, "application/x-www-form-urlencoded", b"name=tatsuhiko"), (3, "application/octet-stream", b"abcdefgh" * 12000)],
    ids=["02 post", "03 big post"],
)
def test_post(client: Client, case: int, kind: str, body: bytes) -> None:
    reply = client.ask(case, method="POST", fields=(("Content-Type", kind),), body=body)
    assert (reply.status, reply.reason, reply.body) == (200, "OK", body)
    assert reply.field("Client-Content-Length") == [str(len(body))]
    assert reply.field("Client-Content-Type") == [kind]
    assert reply.field("X-Digest") == [hashlib.sha256(body).hexdigest()]


def test_04_url_scheme(client: Client) -> None:
    assert client.ask(4, method="POST").body == b"http"


def test_05_return_glob(client: Client) -> None:
    body = client.text(5)
    assert body.startswith(b"package Plack::Test::Suite;")
    assert body.endswith(b"END_OF_TEXT\n")
    assert body == TEXT


@pytest.mark.parametrize(
    ("case", "kind", "body"),
    [(6, "image/jpeg", PICTURE), (7, "image/png", BIGGER), (25, "image/jpeg", PICTURE)],
    ids=["06 filehandle", "07 bigger file", "25 filehandle with path"],
)
def test_file(client: Client, case: int, kind: str, body: bytes) -> None:
    reply = client.ask(case, "/foo.jpg")
    assert (reply.status, reply.field("Content-Type"), reply.body) == (200, [kind], body)
    if case != 25 or reply.field("Content-Length"):
        assert reply.field("Content-Length") == [str(len(body))]


def test_08_handle_http_header(client: Client) -> None:
    assert client.text(8, "/foo/?dankogai=kogaidan", ("Foo", "Bar")) == b"Bar"


def test_09_handle_http_cookie(client: Client) -> None:
    assert client.text(9, "/foo/?dankogai=kogaidan", ("Cookie", "foo")) == b"foo"


def test_10_validate_env(client: Client) -> None:
    host, port = client.server.address
    assert client.text(10, "/foo/?dankogai=kogaidan").decode().split("\n") == [
        "REQUEST_METHOD:GET",
        "SCRIPT_NAME:",
        "PATH_INFO:/foo/",
        "QUERY_STRING:dankogai=kogaidan",
        f"SERVER_NAME:{host}",
        f"SERVER_PORT:{port}",
    ]


@pytest.mark.parametrize(
    ("case", "path", "seen"),
    [
        pytest.param(11, "/foo/bar%2cbaz", b"/foo/bar,baz", id="11 % encoding in PATH_INFO"),
        pytest.param(12, "/foo/bar%252cbaz", b"/foo/bar%2cbaz", id="12 % double encoding in PATH_INFO"),
        pytest.param(13, "/foo%E3%81%82", b"/foo\xe3\x81\x82", id="13 % encoding outside of URI characters"),
        pytest.param(35, "//foo///bar/baz", b"//foo///bar/baz", id="35 repeated slashes"),
    ],
)
def test_path_info(client: Client, case: int, path: str, seen: bytes) -> None:
    assert client.text(case, path) == seen


def test_14_server_protocol_is_required(client: Client) -> None:
    assert client.text(14, "/foo/?dankogai=kogaidan") == b"HTTP/1.1"


def test_15_script_name_should_not_be_undef(client: Client) -> None:
    assert client.text(15, "/foo/?dankogai=kogaidan") == b"1"


def test_16_call_close_after_read_file_like(client: Client) -> None:
    before = int(client.ask(0, "/closed").body)
    assert client.text(16, "/call_close") == b"1234"
    until(lambda: int(client.ask(0, "/closed").body) == before + 1)  # it may be asked for before that is done


def test_17_has_errors(client: Client) -> None:
    assert client.text(17, "/has_errors") == b"1"


def test_18_status_line(client: Client) -> None:
    reply = client.ask(18)
    assert (reply.status, reply.reason) == (200, "OK")


def test_19_do_not_crash_when_the_app_dies(client: Client) -> None:
    reply = client.ask(19)
    assert (reply.status, reply.reason) == (500, "Internal Server Error")
    assert client.text(18) == b"1"
    assert len(client.server.worker_pids) == 1
    assert not client.server.all("worker.exited")


def test_20_multi_headers_of_the_request(client: Client) -> None:
    assert client.text(20, "/", ("Foo", "bar"), ("Foo", "baz")).replace(b" ", b"") == b"bar,baz"


def test_21_multi_headers_of_the_response(client: Client) -> None:
    assert ", ".join(client.ask(21).field("X-Foo")) == "foo, bar, baz"


def test_22_do_not_set_cookie(client: Client) -> None:
    assert client.text(22, "/", ("Cookie", "foo=bar")) == b"0foo=bar"


def test_23_no_entity_headers_on_304(client: Client) -> None:
    reply = client.ask(23)
    assert (reply.status, reply.reason, reply.body) == (304, "Not Modified", b"")
    assert not [
        reply.field(name) for name in ("Content-Type", "Content-Length", "Transfer-Encoding") if reply.field(name)
    ]


def test_24_request_uri_is_set(client: Client) -> None:
    assert client.text(24, "/foo/bar%20baz%73?x=a") == b"/foo/bar%20baz%73?x=a"


def test_26_a_big_header_value(client: Client) -> None:
    big = "x" * 128
    reply = client.ask(26, fields=(("X-Foo", big),))
    assert (reply.field("X-Foo"), reply.body) == ([big], big.encode())


@pytest.mark.parametrize("case", [27, 28], ids=["27 coderef res", "28 coderef streaming"])
def test_delayed_and_streamed(client: Client, case: int) -> None:
    assert client.text(case, "/?name=miyagawa") == b"Hello, name=miyagawa"


def test_29_crlf_output(client: Client) -> None:
    reply = client.ask(29)
    assert (reply.field("Foo"), reply.body) == ([], b"Foo: Bar\r\n\r\nHello World")


def test_30_newlines(client: Client) -> None:
    assert client.text(30) == b"Bar\nBaz"


def test_31_test_404(client: Client) -> None:
    reply = client.ask(31)
    assert (reply.status, reply.reason, reply.body) == (404, "Not Found", b"Not Found")


def test_32_request_input(client: Client) -> None:
    assert client.ask(32, method="POST", body=b"body").body == b"body"


def test_33_content_on_get(client: Client) -> None:
    assert client.text(33) == b""


def test_34_handle_authorization_header(client: Client) -> None:
    assert client.text(34, "/", ("Authorization", "Basic XXXX")) == b"1Basic XXXX"
    assert client.text(34) == b"0no_auth"
