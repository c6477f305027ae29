"""What does a WSGI application see, and what may it answer?

PEP 3333 to the letter: the environ, ``start_response``, ``write``, iteration and ``close``. The gateway knows neither
sockets nor threads; what it sends goes to a ``Stream``.
"""

from __future__ import annotations

from io import BytesIO
from typing import IO, TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote_to_bytes

from prefork.http1.messages import CHUNKED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

    from prefork.http1.connection import Connection
    from prefork.http1.messages import Head, Request, RequestLine

    ExcInfo = tuple[type[BaseException], BaseException, TracebackType]

_KNOWN_NAMES = 4096
_NOT_STARTED = "the application sent a body before it called start_response()"


class Stream(Protocol):
    """Where an answer goes."""

    def send(self, data: bytes) -> None:
        """Send ``data``; raises ``OSError`` once the client is gone."""

    def complete(self, data: bytes) -> None:
        """Send ``data``, the last of an answer; raises ``OSError`` once the client is gone."""

    def date(self) -> bytes:
        """Return the present value of ``Date``."""

    def measure(self, file: Any) -> tuple[int, int] | None:
        """Return offset and size of what is left of a regular file, ``None`` for anything else."""

    def sendfile(self, file: Any, offset: int, size: int) -> None:
        """Send a part of a regular file."""


class _EnvironKeys(dict[bytes, str]):
    """Field names as clients spell them, and their keys in the environ; empty for what must not get there."""

    def __missing__(self, name: bytes) -> str:
        # X_User would stand where X-User belongs, and override what a proxy says (CVE-2015-0219).
        key = "" if b"_" in name else name.decode("ascii").upper().replace("-", "_")
        if key not in {"", "CONTENT_TYPE", "CONTENT_LENGTH"}:
            key = "HTTP_" + key
        if len(self) < _KNOWN_NAMES:
            self[name] = key
        return key


_keys = _EnvironKeys()


class FileWrapper:
    """The ``wsgi.file_wrapper``: a file to be sent in blocks, or by the kernel where it can."""

    def __init__(self, filelike: IO[bytes], blksize: int = 65536) -> None:
        self.filelike = filelike
        self.blksize = blksize
        # PEP 3333 asks for a close method only where the file has one.
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.filelike.read(self.blksize), b"")


def server_environ(
    *, name: str, port: str, scheme: str, errors: IO[str], multithread: bool, extra: dict[str, Any]
) -> dict[str, Any]:
    """Return the part of the environ that all requests of one listener share."""
    return {
        "SCRIPT_NAME": "",
        "SERVER_NAME": name,
        "SERVER_PORT": port,
        "SERVER_SOFTWARE": "prefork",
        "REMOTE_ADDR": "",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scheme,
        **({"HTTPS": "on"} if scheme == "https" else {}),
        "wsgi.errors": errors,
        "wsgi.multithread": multithread,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "wsgi.file_wrapper": FileWrapper,
        **extra,
    }


def request_environ(
    base: dict[str, Any], peer: tuple[str, str] | None, request: Request, body: IO[bytes] | None, size: int
) -> dict[str, Any]:
    """Return the environ of one request: ``base`` of its listener, and what the request says.

    ``peer`` is the client's address and port, ``None`` where it has none.
    ``body`` is the whole body, ``size`` its length in bytes: a chunked body is given its CONTENT_LENGTH.
    """
    head = request.head
    memo = head.memo
    if memo is None or memo[0] is not base:
        memo = head.memo = (base, {**base, **_field_environ(head)})
    environ: dict[str, Any] = memo[1].copy()
    line = request.line
    said = line.memo
    if said is None:
        said = line.memo = _line_environ(line)
    environ.update(said)
    if peer is not None:
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = peer
    if body is None:
        environ["wsgi.input"] = BytesIO()
    else:
        environ["wsgi.input"] = body
        environ["CONTENT_LENGTH"] = str(size)
        if head.length == CHUNKED:
            del environ["HTTP_TRANSFER_ENCODING"]
    return environ


def _line_environ(line: RequestLine) -> dict[str, str]:
    path, target = line.path, line.target.decode("latin-1")
    return {
        "REQUEST_METHOD": line.method,
        "PATH_INFO": (unquote_to_bytes(path) if b"%" in path else path).decode("latin-1"),
        "QUERY_STRING": line.query.decode("latin-1"),
        "REQUEST_URI": target,
        "RAW_URI": target,
        "SERVER_PROTOCOL": "HTTP/" + line.version,
    }


def _field_environ(head: Head) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in head.fields:
        key = _keys[name]
        if key in found:
            # RFC 9110 section 5.3: a list in several lines is one list. RFC 6265 section 5.4: but cookies end with ";".
            separator = "; " if key == "HTTP_COOKIE" else ","
            found[key] += separator + value.decode("latin-1")
        elif key:
            found[key] = value.decode("latin-1")
    return found


class Answer:
    """The answer to one request."""

    __slots__ = ("_connection", "_fields", "_stream", "sent", "size", "status")

    def __init__(self, connection: Connection, stream: Stream) -> None:
        self._connection = connection
        self._stream = stream
        self._fields: Sequence[tuple[str, str]] = ()
        self.status: str | None = None
        """Code and reason, as the application gave them."""
        self.sent = False
        """Whether the head went out, so that nothing about it can be changed."""
        self.size = 0
        """How many bytes of body were sent."""

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        """Take status and headers; they go out with the first piece of the body (PEP 3333)."""
        if exc_info is not None:
            try:
                if self.sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self.status is not None:
            raise AssertionError("start_response() was called a second time without exc_info")
        self.status = status
        self._fields = list(headers)
        return self.write

    def write(self, data: bytes) -> None:
        """Send a piece of the body at once, behind the head if that is still to go."""
        connection = self._connection
        head = b"" if self.sent else self._head(None)
        piece = connection.data(data)
        if head or piece:
            self.sent = True
            self.size += len(data)
            if connection.complete:
                self._stream.complete(head + piece)
            else:
                self._stream.send(head + piece)

    def run(self, app: Callable[..., Iterable[bytes]], environ: dict[str, Any]) -> None:
        """Call the application and send what it answers; its iterable is closed once, whatever happens."""
        iterable = app(environ, self.start_response)
        kind = type(iterable)
        if (kind is list or kind is tuple) and len(iterable) == 1 and not self.sent:  # type: ignore[arg-type]
            if self.status is None:
                raise AssertionError(_NOT_STARTED)
            body = iterable[0]  # type: ignore[index]
            data = self._connection.whole(self.status, self._fields, self._stream.date(), body)
            self.sent = True
            self.size = len(body)
            self._stream.complete(data)
            return
        try:
            self._deliver(iterable)
        finally:
            close = getattr(iterable, "close", None)
            if close is not None:
                close()

    def _deliver(self, iterable: Iterable[bytes]) -> None:
        if type(iterable) is FileWrapper and self._file(iterable):
            return
        for chunk in iterable:
            # An empty piece is how an application says that it has nothing yet: the head may still change.
            if chunk:
                self.write(chunk)
        head = b"" if self.sent else self._head(0)
        self.sent = True
        rest = head + self._connection.finish()
        if rest:
            self._stream.complete(rest)

    def _file(self, wrapper: FileWrapper) -> bool:
        part = self._stream.measure(wrapper.filelike)
        if part is None:
            return False
        offset, size = part
        head = b"" if self.sent else self._head(size)
        # Of a file that is longer than the declared length, such as for a range, that much is meant.
        size = self._connection.room(size)
        if self._connection.opaque(size):
            self.sent = True
            self.size += size
            self._stream.send(head)
            head = b""
            self._stream.sendfile(wrapper.filelike, offset, size)
        else:
            for chunk in wrapper:
                piece = head + self._connection.data(chunk)
                self.sent = True
                head = b""
                self._stream.send(piece)
        rest = head + self._connection.finish()
        self.sent = True
        if rest:
            self._stream.send(rest)
        return True

    def _head(self, whole: int | None) -> bytes:
        if self.status is None:
            raise AssertionError(_NOT_STARTED)
        return self._connection.start(self.status, self._fields, self._stream.date(), whole)

    def fail(self) -> None:
        """Answer 500 for an application that failed before its head went out."""
        body = b"Internal Server Error\n"
        fields = [("Content-Type", "text/plain; charset=utf-8")]
        self.status = "500 Internal Server Error"
        connection = self._connection
        head = connection.start(self.status, fields, self._stream.date(), len(body))
        self.sent = True
        self._stream.send(head + connection.data(body) + connection.finish())
