"""Does the gateway do what PEP 3333 says, to the letter?"""

from __future__ import annotations

import os
import socket
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from typing import IO, TYPE_CHECKING

import pytest
from server_process import LiveServer

if TYPE_CHECKING:
    from collections.abc import Iterator

APP = """
import contextvars, gzip, io, threading

HERE = os.path.dirname(__file__)
FILE = os.path.join(HERE, "file")
with open(FILE, "wb") as file:
    file.write(b"0123456789" * 1000)
with gzip.open(FILE + ".gz", "wb") as file:
    file.write(b"0123456789" * 1000)
variable = contextvars.ContextVar("variable")
asked = threading.local()

class Answer:
    def __init__(self, pieces, on_close=lambda: None):
        self.pieces, self.on_close, self.query = pieces, on_close, asked.query
    def __iter__(self):
        return iter(self.pieces)
    def close(self):
        print("closed", self.query, flush=True)
        self.on_close()

def failing():
    yield b"begun"
    raise LookupError("in the middle")

def fail():
    raise LookupError("in close")

def gated():
    yield b"one"
    with open(os.path.join(HERE, "gate")):
        pass
    yield b"two"

def lived():
    me = threading.get_ident()
    variable.set("kept")
    def told():
        for _ in range(3):
            yield f"{threading.get_ident() == me} {variable.get('lost')} ".encode()
    return Answer(told(), lambda: print("end", threading.get_ident() == me, variable.get("lost"), flush=True))

def app(environ, start_response):
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    asked.query = query
    text = [("Content-Type", "text/plain")]
    def ok(*more):
        return start_response("200 OK", [*text, *more])
    if path == "/write":
        write = ok()
        write(b"one,")
        write(b"")
        write(b"two,")
        return [b"three"]
    if path == "/replaced":
        ok()
        try:
            raise LookupError("before the headers")
        except LookupError:
            start_response("500 Replaced", text, sys.exc_info())
        return [b"replaced"]
    if path == "/too-late":
        write = ok()
        write(b"one")
        try:
            raise LookupError("after the headers")
        except LookupError:
            start_response("500 Too Late", text, sys.exc_info())
        return [b"never"]
    if path == "/twice":
        ok()
        ok()
        return [b"never"]
    if path == "/never-started":
        return [b"never"]
    if path.startswith("/returns/"):
        ok(*([("Content-Length", "3")] if path.endswith("sized") else []))
        wrong = {"str": "str", "bytes": b"str", "strs": ["str"], "strs-sized": ["str"], "none": None, "nones": [None]}
        return wrong[path.removeprefix("/returns/")]
    if path == "/yields":
        ok()
        return (piece for piece in [b"one", "two"])
    if path == "/writes":
        ok()("one")
    if path.startswith("/starts/"):
        start_response(*((200, []) if path == "/starts/number" else ("200 OK", ["X-A: b"])))
        return [b"never"]
    if path == "/raises":
        ok()
        return map(len, [1])
    if path == "/started-late":
        def late():
            ok()
            yield b"late"
        return late()
    if path == "/closed":
        ok()
        return Answer([b"one", b"two"])
    if path == "/failing":
        ok()
        return Answer(failing())
    if path == "/failing-close":
        ok()
        return Answer([b"whole"], fail)
    if path == "/gated":
        ok()
        return Answer(gated())
    if path == "/lived":
        ok()
        return lived()
    if path == "/empty":
        ok()
        return []
    if path in {"/204", "/304"}:
        start_response(path[1:] + " X", [])
        return [b"not to be sent"]
    if path == "/file":
        file = open(FILE, "rb")
        start, declared = query.split(",")
        file.seek(int(start))
        ok(*([("Content-Length", declared)] if declared else []))
        return environ["wsgi.file_wrapper"](file)
    if path == "/bytes-io":
        ok()
        return environ["wsgi.file_wrapper"](io.BytesIO(b"x" * 100_000), 1000)
    if path == "/packed":
        ok()
        return environ["wsgi.file_wrapper"](gzip.open(FILE + ".gz"))
    if path == "/short":
        ok(("Content-Length", "10"))
        return [b"short"]
    if path == "/long":
        ok(("Content-Length", "2"))
        return [b"too long"]
    if path == "/bad-field":
        ok(("X-Bad", "a\\r\\nX-Injected: b"))
        return [b"never"]
    if path == "/latin":
        ok(("X-Name", "caf\\xe9"))
        return [b""]
    if path == "/input":
        stream = environ["wsgi.input"]
        found = [stream.read(3), stream.readline(), stream.readline(2), stream.readlines(1), list(stream), stream.read()]
        ok()
        return [repr(found).encode()]
    if path == "/environ":
        ok()
        return [repr(sorted((k, v) for k, v in environ.items() if isinstance(v, (str, bool, tuple)))).encode()]
    ok()
    return [b"plain"]
"""


@pytest.fixture(scope="module", params=[1, 4], ids=["1 thread", "4 threads"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("app")
    (folder / "letter.py").write_text("import os, sys\n" + APP)
    os.mkfifo(folder / "gate")
    options = {"max_workers": 1, "max_reqs_per_child": 0, "threads": request.param}
    with LiveServer.pool("letter:app", app_dir=str(folder), where=None, **options) as server:
        server.cwd = folder
        yield server


def ask(server: LiveServer, path: str, method: str = "GET", body: bytes | None = None) -> tuple[HTTPResponse, bytes]:
    with closing(HTTPConnection(*server.address, timeout=20)) as connection:
        connection.request(method, path, body=body)
        with connection.getresponse() as response:
            return response, response.read()


def raw(server: LiveServer, data: bytes) -> bytes:
    with socket.create_connection(server.address, timeout=20) as client:
        client.sendall(data)
        received = b""
        while piece := client.recv(65536):
            received += piece
    return received


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/write", 200, b"one,two,three"),
        ("/replaced", 500, b"replaced"),
        ("/started-late", 200, b"late"),
        ("/empty", 200, b""),
        ("/file?0,", 200, b"0123456789" * 1000),
        ("/file?9995,", 200, b"56789"),
        ("/file?0,5", 200, b"01234"),
        ("/file?9995,5", 200, b"56789"),
        ("/bytes-io", 200, b"x" * 100_000),
        ("/packed", 200, b"0123456789" * 1000),
    ],
)
def test_an_answer_is_what_the_application_gave(server: LiveServer, path: str, status: int, body: bytes) -> None:
    response, received = ask(server, path)
    assert (response.status, received) == (status, body)


@pytest.mark.parametrize("path", ["/twice", "/never-started", "/short", "/long", "/bad-field"])
def test_an_answer_that_must_not_be_is_a_500_and_the_worker_lives_on(server: LiveServer, path: str) -> None:
    response, received = ask(server, path)
    assert (response.status, received) == (500, b"Internal Server Error\n")
    assert response.getheader("X-Injected") is None
    assert ask(server, "/")[1] == b"plain"
    assert not server.all("worker.exited")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/returns/str", "the application returned str, which has to be an iterable of bytes"),
        ("/returns/bytes", "the application returned bytes, which has to be an iterable of bytes"),
        ("/returns/none", "the application returned NoneType, which has to be an iterable of bytes"),
        ("/returns/strs", "the application gave str as a piece of the body, which has to be bytes"),
        ("/returns/strs-sized", "the application gave str as a piece of the body, which has to be bytes"),
        ("/returns/nones", "the application gave NoneType as a piece of the body, which has to be bytes"),
        ("/writes", "the application gave str as a piece of the body, which has to be bytes"),
        ("/starts/number", "start_response() was given the status 200, which has to be a str such as '200 OK'"),
        ("/starts/fields", "start_response() was given the header 'X-A: b', which has to be a pair of str"),
    ],
)
def test_an_application_that_gives_what_is_no_answer_is_told_what_it_has_to_be(
    server: LiveServer, path: str, words: str
) -> None:
    assert ask(server, path)[0].status == 500
    told = server.wait_for("request.failed", path=path)
    assert told["exception"].splitlines()[-1] == f"TypeError: {words} (PEP 3333)"
    assert ("letter.py" in told["exception"]) is (path == "/writes")
    assert ("connection.py" in told["exception"]) is (path == "/writes")


def test_what_is_no_piece_of_the_body_is_told_in_the_middle_of_an_answer_too(server: LiveServer) -> None:
    with pytest.raises(IncompleteRead):
        ask(server, "/yields")
    told = server.wait_for("request.failed", path="/yields")
    assert "gave str as a piece of the body" in told["exception"]


def test_a_type_error_of_what_an_application_calls_stays_as_it_is(server: LiveServer) -> None:
    assert ask(server, "/raises")[0].status == 500
    told = server.wait_for("request.failed", path="/raises")
    assert told["exception"].endswith("object of type 'int' has no len()")


@pytest.mark.parametrize("path", ["/too-late", "/failing", "/file?0,20000"])
def test_an_answer_that_fails_in_the_middle_is_seen_to_be_cut(server: LiveServer, path: str) -> None:
    with pytest.raises(IncompleteRead):
        ask(server, path)
    assert ask(server, "/")[1] == b"plain"


def check_closed_once(server: LiveServer, visit: str) -> None:
    """Fail unless the answer to a visit is closed, and not once more by the time that others are answered."""
    server.wait_for_output(f"closed {visit}")
    for _ in range(5):
        ask(server, "/")
    assert server.output.count(f"closed {visit}") == 1


@pytest.mark.parametrize("path", ["/closed", "/failing", "/failing-close"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_is_iterated_is_closed_once(server: LiveServer, path: str, method: str) -> None:
    visit = f"{method}-{path[1:]}"
    try:
        ask(server, f"{path}?{visit}", method)
    except IncompleteRead:
        assert path == "/failing"
    check_closed_once(server, visit)


def test_what_is_iterated_is_closed_once_though_the_client_leaves(server: LiveServer) -> None:
    with socket.create_connection(server.address, timeout=20) as client:
        client.sendall(b"GET /gated?left HTTP/1.1\r\nHost: a\r\n\r\n")
        received = b""
        while b"one" not in received:
            received += client.recv(65536)
    with open_gate(server):
        pass
    check_closed_once(server, "left")


def open_gate(server: LiveServer) -> IO[str]:
    assert server.cwd is not None
    return (server.cwd / "gate").open("w")


def test_a_piece_is_sent_before_the_next_is_asked_for(server: LiveServer) -> None:
    connection = HTTPConnection(*server.address, timeout=20)
    connection.request("GET", "/gated")
    response = connection.getresponse()
    assert response.read(3) == b"one"
    with open_gate(server):
        assert response.read() == b"two"
    connection.close()


@pytest.mark.parametrize(
    "path", ["/", "/write", "/empty", "/204", "/file?0,", "/file?0,5", "/file?10000,", "/bytes-io"]
)
def test_nothing_stands_between_an_answer_and_the_next(server: LiveServer, path: str) -> None:
    # Not by http.client, which throws away what it has read too much.
    with socket.create_connection(server.address, timeout=20) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        client.sendall(b"GET /write HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        received = b""
        while piece := client.recv(65536):
            received += piece
    assert received.count(b"HTTP/1.1 ") == 2
    assert received.endswith(b"4\r\none,\r\n4\r\ntwo,\r\n5\r\nthree\r\n0\r\n\r\n")


@pytest.mark.parametrize("path", ["/closed", "/write", "/file?0,", "/latin"])
def test_head_is_answered_as_get_without_the_body(server: LiveServer, path: str) -> None:
    response, received = ask(server, path, "HEAD")
    assert (response.status, received) == (200, b"")


@pytest.mark.parametrize("path", ["/204", "/304"])
def test_some_statuses_have_no_body(server: LiveServer, path: str) -> None:
    response, received = ask(server, path)
    assert (response.status, received, response.getheader("Transfer-Encoding")) == (int(path[1:]), b"", None)


def test_unknown_lengths_are_chunked_for_11_and_ended_by_a_close_for_10(server: LiveServer) -> None:
    new = raw(server, b"GET /closed HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert new.endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
    old = raw(server, b"GET /closed HTTP/1.0\r\n\r\n")
    assert old.endswith(b"\r\n\r\nonetwo")
    assert b"Transfer-Encoding" not in old


def test_a_field_may_hold_latin_1(server: LiveServer) -> None:
    assert b"X-Name: caf\xe9\r\n" in raw(server, b"GET /latin HTTP/1.0\r\n\r\n")


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_the_input_is_a_file(server: LiveServer, *, chunked: bool) -> None:
    body = b"abcdef\nghijkl\nm\nn\no"
    start = b"POST /input HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    if chunked:
        data = start + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    else:
        data = start + b"Content-Length: %d\r\n\r\n" % len(body) + body
    found = [b"abc", b"def\n", b"gh", [b"ijkl\n"], [b"m\n", b"n\n", b"o"], b""]
    assert repr(found).encode() in raw(server, data)


def test_the_environ_says_what_the_server_is(server: LiveServer) -> None:
    found = dict(eval(ask(server, "/environ?a=b")[1]))
    threads = server.all("pool.starting")[0]["threads"]
    assert found["wsgi.version"] == (1, 0)
    assert found["wsgi.multiprocess"] is True
    assert found["wsgi.multithread"] is (threads > 1)
    assert found["wsgi.run_once"] is False
    assert found["wsgi.input_terminated"] is True
    assert found["QUERY_STRING"] == "a=b"
    assert found["SERVER_PROTOCOL"] == "HTTP/1.1"


def test_a_request_stays_on_one_thread_and_in_one_context_to_its_end(server: LiveServer) -> None:
    assert ask(server, "/lived")[1] == b"True kept " * 3
    assert "True kept" in server.wait_for_output("end ")
