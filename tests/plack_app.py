"""The applications of Plack's suite for servers, as WSGI applications: the field X-Plack-Test chooses one."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from wsgiref.validate import validator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Environ = dict[str, Any]


class Start(Protocol):
    def __call__(self, status: str, headers: list[tuple[str, str]]) -> Callable[[bytes], object]: ...


TEXT = [("Content-Type", "text/plain")]
PICTURE = bytes(range(256)) * 12
BIGGER = b"0123456789" * 1475
closed: list[str] = []


def said(text: Callable[[Environ], str]) -> Callable[[Environ, Start], Iterable[bytes]]:
    """Return an application that answers 200 with a text about its environ."""

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        start("200 OK", TEXT)
        return [text(environ).encode("latin-1")]

    return app


def body(environ: Environ) -> bytes:
    data: bytes = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    return data


def echo(environ: Environ, start: Start) -> Iterable[bytes]:
    data = body(environ)
    told = [("Client-Content-Length", environ["CONTENT_LENGTH"]), ("Client-Content-Type", environ["CONTENT_TYPE"])]
    start("200 OK", [*TEXT, *told, ("X-Digest", hashlib.sha256(data).hexdigest())])
    return [data]


def file_of(path: str, kind: str, *, length: bool) -> Callable[[Environ, Start], Iterable[bytes]]:
    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        file = Path(environ["HTTP_X_FILES"], path).open("rb")  # noqa: SIM115 - the server closes it
        size = [("Content-Length", str(file.seek(0, 2)))] if length else []
        file.seek(0)
        start("200 OK", [("Content-Type", kind), *size])
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](file)
        return wrapped

    return app


def seen(environ: Environ) -> str:
    names = ("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "SERVER_NAME", "SERVER_PORT")
    return "\n".join(f"{name}:{environ[name]}" for name in names)


class Counter:
    def __init__(self) -> None:
        self.numbers = iter("1234")

    def __iter__(self) -> Iterator[bytes]:
        return (number.encode() for number in self.numbers)

    def close(self) -> None:
        closed.append("closed")


def counting(environ: Environ, start: Start) -> Iterable[bytes]:
    start("200 OK", TEXT)
    return Counter()


def dying(environ: Environ, start: Start) -> Iterable[bytes]:
    raise LookupError("Throwing an exception from app handler. Server shouldn't crash.")


def several(environ: Environ, start: Start) -> Iterable[bytes]:
    start("200 OK", [*TEXT, ("X-Foo", "foo"), ("X-Foo", "bar, baz")])
    return [b"hi"]


def not_modified(environ: Environ, start: Start) -> Iterable[bytes]:
    start("304 Not Modified", [])
    return []


def big_field(environ: Environ, start: Start) -> Iterable[bytes]:
    start("200 OK", [*TEXT, ("X-Foo", environ["HTTP_X_FOO"])])
    return [environ["HTTP_X_FOO"].encode()]


def delayed(environ: Environ, start: Start) -> Iterator[bytes]:
    time.sleep(0.01)
    start("200 OK", TEXT)
    yield b"Hello, "
    yield environ["QUERY_STRING"].encode()


def writing(environ: Environ, start: Start) -> Iterable[bytes]:
    write = start("200 OK", TEXT)
    write(b"Hello, ")
    write(environ["QUERY_STRING"].encode())
    return []


def not_found(environ: Environ, start: Start) -> Iterable[bytes]:
    start("404 Not Found", TEXT)
    return [b"Not Found"]


def authorized(environ: Environ) -> str:
    return f"{int('HTTP_AUTHORIZATION' in environ)}{environ.get('HTTP_AUTHORIZATION', 'no_auth')}"


APPS: list[Callable[[Environ, Start], Iterable[bytes]]] = [
    said(lambda environ: environ["SCRIPT_NAME"]),
    said(lambda environ: "Hello, " + environ["QUERY_STRING"]),
    echo,
    echo,
    said(lambda environ: environ["wsgi.url_scheme"]),
    file_of("text", "text/plain", length=False),
    file_of("picture", "image/jpeg", length=True),
    file_of("bigger", "image/png", length=True),
    said(lambda environ: environ["HTTP_FOO"]),
    said(lambda environ: environ["HTTP_COOKIE"]),
    said(seen),
    said(lambda environ: environ["PATH_INFO"]),
    said(lambda environ: environ["PATH_INFO"]),
    said(lambda environ: environ["PATH_INFO"]),
    said(lambda environ: environ["SERVER_PROTOCOL"]),
    said(lambda environ: str(int("SCRIPT_NAME" in environ))),
    counting,
    said(lambda environ: str(int(hasattr(environ["wsgi.errors"], "write")))),
    said(lambda _: "1"),
    dying,
    said(lambda environ: environ["HTTP_FOO"]),
    several,
    said(lambda environ: f"{int('COOKIE' in environ)}{environ['HTTP_COOKIE']}"),
    not_modified,
    said(lambda environ: environ["REQUEST_URI"]),
    file_of("picture", "image/jpeg", length=False),
    big_field,
    delayed,
    writing,
    said(lambda _: "Foo: Bar\r\n\r\nHello World"),
    said(lambda _: "Bar\nBaz"),
    not_found,
    said(lambda environ: body(environ).decode()),
    said(lambda environ: environ["wsgi.input"].read(-1).decode()),
    said(authorized),
    said(lambda environ: environ["PATH_INFO"]),
]


def app(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """Run the application that the request asks for."""
    if environ["PATH_INFO"] == "/closed":
        start_response("200 OK", TEXT)
        return [str(len(closed)).encode()]
    return APPS[int(environ["HTTP_X_PLACK_TEST"])](environ, start_response)


checked = validator(app)  # type: ignore[arg-type]
