"""What does a WSGI application see, and what may it answer?

PEP 3333 to the letter: the environ, ``start_response``, ``write``, iteration and ``close``. The gateway knows neither
sockets nor threads; what it sends goes to a ``Stream``.
"""

from __future__ import annotations

from contextlib import suppress
from io import BytesIO
from traceback import walk_tb
from typing import IO, TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote_to_bytes

from prefork.http1.forwarded import is_forwarding, read_forwarding
from prefork.http1.messages import CHUNKED, Refused
from prefork.stacks import is_ours

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

    from prefork.http1.connection import Connection
    from prefork.http1.forwarded import Belief, Said
    from prefork.http1.messages import Field, Head, Request, RequestLine
    from prefork.reception import Origin

    ExcInfo = tuple[type[BaseException], BaseException, TracebackType]

_KNOWN_NAMES = 4096
_KNOWN_NAME_SIZE = 64  # or somebody could fill the memory with long ones
_LARGE = 256 * 1024
_PAIR = 2
_NOT_STARTED = "the application sent a body before it called start_response()"


class Stream(Protocol):
    """Where an answer goes."""

    def send(self, data: bytes) -> None:
        """Send ``data``; raises ``OSError`` once the client is gone."""

    def complete(self, data: bytes) -> None:
        """Send ``data``, the last of an answer; raises ``OSError`` once the client is gone."""

    def conclude(self, data: bytes) -> None:
        """Do the same where the end follows at once: neither runs the application on, nor does the client send more."""

    def date(self) -> bytes:
        """Return the present value of ``Date``."""

    def measure(self, file: Any) -> tuple[int, int] | None:
        """Return offset and size of what is left of a regular file, ``None`` for anything else."""

    def sendfile(self, file: Any, offset: int, size: int, *, last: bool) -> None:
        """Send a part of a regular file, which may be the ``last`` of an answer."""


class _EnvironKeys(dict[bytes, str]):
    """Field names as clients spell them, and their keys in the environ; empty for what must not get there."""

    def __missing__(self, name: bytes) -> str:
        key = name.decode("ascii").upper().replace("-", "_")
        # Where underscores are kept, Content_Length says nothing about the body, and X_Forwarded_For nothing at all.
        if b"_" in name:
            key = "" if is_forwarding(name.replace(b"_", b"-").lower()) else "HTTP_" + key
        elif key not in {"CONTENT_TYPE", "CONTENT_LENGTH"}:
            key = "HTTP_" + key
        if len(self) < _KNOWN_NAMES and len(name) <= _KNOWN_NAME_SIZE:
            self[name] = key
        return key


class _GuardedKeys(_EnvironKeys):
    """The same for peers that are no trusted proxies: whom they claim to speak for does not get into the environ.

    An application, or what it is wrapped in, may believe such a field.
    """

    def __init__(self) -> None:
        super().__init__()
        self.news: list[bytes] = []
        """Names of such fields that nobody was told of yet."""

    def __missing__(self, name: bytes) -> str:
        if is_forwarding(name.lower()):
            if len(self) < _KNOWN_NAMES and len(name) <= _KNOWN_NAME_SIZE:
                self[name] = ""
                self.news.append(name)
            return ""
        return super().__missing__(name)


_keys = _EnvironKeys()
_guarded_keys = _GuardedKeys()


class Base(dict[str, Any]):
    """The part of the environ that all requests share whose peers came through one listener and are trusted alike."""

    __slots__ = ("belief", "believed", "on_ignored", "origin")

    def __init__(
        self,
        environ: dict[str, Any],
        origin: Origin,
        belief: Belief | None,
        on_ignored: Callable[[Sequence[bytes], str], None],
    ) -> None:
        super().__init__(environ)
        self.belief = belief
        """Which fields of these peers are believed; ``None``: they are no proxies of ours."""
        self.believed = () if belief is None else {_keys[name] for name in belief.fields}
        self.origin = origin
        self.on_ignored = on_ignored
        """What to call with the names of fields that are ignored, once for each, and the address of the peer."""

    def extended(self, facts: dict[str, str]) -> Base:
        """Return the same with further facts in the environ: PEP 3333 wants the octets of a text there, as latin-1."""
        octets = {name: value.encode().decode("latin-1") for name, value in facts.items()}
        return Base({**self, **octets}, self.origin, self.belief, self.on_ignored)


class _Forwarded:
    """What becomes of a head in which a proxy says whose request it is."""

    __slots__ = ("base", "environ", "said")

    def __init__(self, base: Base, said: Said, found: dict[str, str]) -> None:
        self.base = base
        self.said = said
        environ = self.environ = {**base, **found}
        if said.scheme or said.host or said.port:
            host, name, environ["SERVER_PORT"] = said.authority(environ.get("HTTP_HOST", ""), base["wsgi.url_scheme"])
            if name:
                environ["HTTP_HOST"] = host
            if said.host is not None:
                environ["SERVER_NAME"] = name
        if said.scheme is not None:
            environ["wsgi.url_scheme"] = said.scheme
            environ.pop("HTTPS", None)
            if said.scheme == "https":
                environ["HTTPS"] = "on"
        if said.root_path is not None:
            environ["SCRIPT_NAME"] = said.root_path


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
    *, name: str, port: str, scheme: str, errors: IO[str], multithread: bool, root_path: str, extra: dict[str, Any]
) -> dict[str, Any]:
    """Return the part of the environ that all requests of one listener share.

    ``root_path`` is where the application is mounted, without a slash at its end.
    """
    return {
        "SCRIPT_NAME": root_path.encode().decode("latin-1"),
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
        "prefork.trailers": (),
        **extra,
        # Places for what each request says, so that no copy has to grow for it.
        "REQUEST_METHOD": "",
        "PATH_INFO": "",
        "QUERY_STRING": "",
        "REQUEST_URI": "",
        "RAW_URI": "",
        "SERVER_PROTOCOL": "",
        "wsgi.input": None,
        "prefork.client_gone": None,
    }


def request_environ(
    base: Base, peer: tuple[str, str] | None, request: Request, body: IO[bytes] | None, size: int
) -> dict[str, Any]:
    """Return the environ of one request: ``base`` of its listener, and what the request says.

    ``peer`` is the client's address and port, ``None`` where it has none. If it is a trusted proxy, and the request says
    whose it is, that is the client, and ``prefork.peer`` the address of the peer.
    ``body`` is the whole body, ``size`` its length in bytes: a chunked body is given its CONTENT_LENGTH.
    Raises ``Refused`` if what a trusted proxy says cannot be read.
    """
    head = request.head
    memo = head.memo
    # A head in which a proxy speaks for a client never has its base there, so that all others pay nothing for it.
    if memo is None or memo[0] is not base:
        memo = _judge_fields(base, peer, head)
        if type(memo) is _Forwarded:
            return _forwarded_environ(memo, peer, request, body, size)
    environ: dict[str, Any] = memo[1].copy()
    line = request.line
    said = line.memo
    if said is None:
        said = line.memo = _line_environ(line, base["SCRIPT_NAME"])
    environ.update(said)
    if peer is not None:
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = peer
    if body is None:
        environ["wsgi.input"] = BytesIO()
    else:
        _add_body(environ, head, body, size)
    return environ


def _add_body(environ: dict[str, Any], head: Head, body: IO[bytes], size: int) -> None:
    environ["wsgi.input"] = body
    environ["CONTENT_LENGTH"] = str(size)
    if head.length == CHUNKED:
        del environ["HTTP_TRANSFER_ENCODING"]


def _judge_fields(base: Base, peer: tuple[str, str] | None, head: Head) -> tuple[Any, ...] | _Forwarded:
    """Return what is remembered of a head, or is from now on; raises ``Refused``."""
    memo = head.memo
    if memo is not None and memo[0] is _Forwarded and memo[1].base is base:
        return memo[1]  # type: ignore[no-any-return]  # put there below
    if base.belief is None:
        found = _field_environ(head, _guarded_keys)
        if _guarded_keys.news:
            names, _guarded_keys.news = _guarded_keys.news, []
            base.on_ignored(names, "" if peer is None else peer[0])
    else:
        found = _field_environ(head, _keys)
        if not found.keys().isdisjoint(base.believed):
            said = read_forwarding(head.fields, base.belief)
            if said is not None:
                forwarded = _Forwarded(base, said, found)
                head.memo = (_Forwarded, forwarded)
                return forwarded
    memo = head.memo = (base, {**base, **found})
    return memo


def _forwarded_environ(
    memo: _Forwarded, peer: tuple[str, str] | None, request: Request, body: IO[bytes] | None, size: int
) -> dict[str, Any]:
    environ, said, line = memo.environ.copy(), memo.said, request.line
    if said.root_path is not None:
        environ.update(_line_environ(line, said.root_path))
    else:
        if line.memo is None:
            line.memo = _line_environ(line, memo.base["SCRIPT_NAME"])
        environ.update(line.memo)
    if said.client is not None:
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = said.client
        environ.setdefault("prefork.peer", "" if peer is None else peer[0])
    elif peer is not None:
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = peer
    if body is None:
        environ["wsgi.input"] = BytesIO()
    else:
        _add_body(environ, request.head, body, size)
    return environ


def asked_by(base: Base, peer: tuple[str, str] | None, request: Request) -> tuple[str, str]:
    """Return by whom a request comes: the address, empty if it is not known, and the scheme.

    What a proxy says and cannot be read is taken for nothing.
    """
    memo = request.head.memo
    client: tuple[str, str] | None
    if memo is not None and memo[0] is base:
        client, scheme = peer, base["wsgi.url_scheme"]
    elif memo is not None and memo[0] is _Forwarded and memo[1].base is base:
        client, scheme = memo[1].said.client or peer, memo[1].environ["wsgi.url_scheme"]
    else:
        # Nothing is remembered yet, or what a peer has said who sent the same head and is trusted otherwise.
        client, scheme = _ask_whose(base, peer, request.head)
    return client[0] if client else "", scheme


def _ask_whose(base: Base, peer: tuple[str, str] | None, head: Head) -> tuple[tuple[str, str] | None, str]:
    with suppress(Refused):
        memo = _judge_fields(base, peer, head)
        if type(memo) is _Forwarded:
            return memo.said.client or peer, memo.environ["wsgi.url_scheme"]
    return peer, base["wsgi.url_scheme"]


def _line_environ(line: RequestLine, root_path: str) -> dict[str, str]:
    path, target = line.path, line.target.decode("latin-1")
    shown = (unquote_to_bytes(path) if b"%" in path else path).decode("latin-1")
    if root_path and (shown + "/").startswith(root_path + "/"):
        shown = shown[len(root_path) :]
    return {
        "REQUEST_METHOD": line.method,
        "PATH_INFO": shown,
        "QUERY_STRING": line.query.decode("latin-1"),
        "REQUEST_URI": target,
        "RAW_URI": target,
        "SERVER_PROTOCOL": "HTTP/" + line.version,
    }


def _field_environ(head: Head, keys: _EnvironKeys) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in head.fields:
        key = keys[name]
        if key in found:
            # RFC 9110 section 5.3: a list in several lines is one list. RFC 6265 section 5.4: but cookies end with ";".
            separator = "; " if key == "HTTP_COOKIE" else ","
            found[key] += separator + value.decode("latin-1")
        elif key:
            found[key] = value.decode("latin-1")
    return found


def trailers_in_environ(trailers: Sequence[Field]) -> tuple[tuple[str, str], ...]:
    """Return the value of ``prefork.trailers``: a key of their own, for RFC 9110 section 6.5.1 forbids to merge them."""
    return tuple((name.decode("ascii").lower(), value.decode("latin-1")) for name, value in trailers)


class Answer:
    """The answer to one request."""

    __slots__ = ("_connection", "_stream", "fields", "sent", "size", "status")

    def __init__(self, connection: Connection, stream: Stream) -> None:
        self._connection = connection
        self._stream = stream
        self.status: str | None = None
        """Code and reason, as the application gave them."""
        self.fields: Sequence[tuple[str, str]] = ()
        """What the application gave besides."""
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
        self.fields = list(headers)
        return self.write

    def early_hints(self, headers: Sequence[tuple[str, str]]) -> None:
        """Send fields ahead of the answer, with status 103 (RFC 8297): ``environ["wsgi.early_hints"]``.

        May be called several times. To HTTP/1.0, and for no fields, nothing is sent.
        """
        if self.sent:
            raise AssertionError("early hints were given after the head of the answer was sent")
        if headers and (hints := self._connection.informational("103 Early Hints", headers)):
            self._stream.send(hints)

    def write(self, data: bytes) -> None:
        """Send a piece of the body at once, behind the head if that is still to go."""
        connection = self._connection
        head = b"" if self.sent else self._head(None)
        piece = connection.data(data)
        if head or piece:
            octets = head + piece  # before anything is said to be sent: the application may give what is no bytes
            self.sent = True
            self.size += len(data)
            if connection.complete:
                self._stream.complete(octets)
            else:
                self._stream.send(octets)

    def run(self, app: Callable[..., Iterable[bytes]], environ: dict[str, Any]) -> None:
        """Call the application and send what it answers; its iterable is closed once, whatever happens."""
        iterable = app(environ, self.start_response)
        kind = type(iterable)
        if (kind is list or kind is tuple) and len(iterable) == 1 and not self.sent:  # type: ignore[arg-type]
            if self.status is None:
                raise AssertionError(_NOT_STARTED)
            body = iterable[0]  # type: ignore[index]
            if len(body) > _LARGE:
                self._send_large(self.status, body)
                return
            connection = self._connection
            data = connection.whole(self.status, self.fields, self._stream.date(), body)
            self.sent = True
            self.size = len(body)
            if connection.client_ends:
                self._stream.conclude(data)
            else:
                self._stream.complete(data)
            return
        try:
            self._deliver(iterable)
        finally:
            close = getattr(iterable, "close", None)
            if close is not None:
                close()

    def _send_large(self, status: str, body: bytes) -> None:
        """Send a whole body that is too large to be copied behind its head, and so to be in memory twice."""
        connection = self._connection
        head = connection.start(status, self.fields, self._stream.date(), len(body))
        rest = connection.data(body) + connection.finish()
        self.sent = True
        self.size = len(body)
        self._stream.send(head)
        self._stream.complete(rest)

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
            self._stream.sendfile(wrapper.filelike, offset, size, last=self._connection.complete)
        elif not self._connection.bodiless:
            for chunk in wrapper:
                piece = head + self._connection.data(chunk)
                self.sent = True
                head = b""
                self._stream.send(piece)
        rest = head + self._connection.finish()
        self.sent = True
        if rest:
            self._stream.complete(rest)
        return True

    def _head(self, whole: int | None) -> bytes:
        if self.status is None:
            raise AssertionError(_NOT_STARTED)
        return self._connection.start(self.status, self.fields, self._stream.date(), whole)

    def explained(self, error: BaseException) -> BaseException:
        """Return the error that says what the application gave which is no answer, if ``error`` comes from that.

        Found in the frames that the failure has left, so that whoever gives what is one pays nothing for it.
        """
        frames = [frame for frame, _ in walk_tb(error.__traceback__)]
        if not isinstance(error, (TypeError, ValueError)) or not frames or not is_ours(frames[-1]):
            return error
        here = (frame.f_locals.items() for frame in frames if frame.f_globals is globals())
        wrong = self._misgiven({name: value for items in here for name, value in items})
        if wrong is None:
            return error
        ours_alone = all(is_ours(frame) for frame in frames)
        return TypeError(f"{wrong} (PEP 3333)").with_traceback(None if ours_alone else error.__traceback__)

    def _misgiven(self, found: dict[str, Any]) -> str | None:
        """Return what is wrong with that which the application has given, ``found`` by the names that it has here."""
        status: Any = self.status
        fields: Sequence[Any] = self.fields
        if status is not None and not isinstance(status, str):
            return f"start_response() was given the status {status!r}, which has to be a str such as '200 OK'"
        for given in fields:
            if not (isinstance(given, tuple) and len(given) == _PAIR):
                return f"start_response() was given the header {given!r}, which has to be a pair of str"
        iterable = found.get("iterable", ())
        if isinstance(iterable, (str, bytes)) or not (
            hasattr(iterable, "__iter__") or hasattr(iterable, "__getitem__")
        ):
            return f"the application returned {type(iterable).__name__}, which has to be an iterable of bytes"
        piece = next((found[name] for name in ("data", "chunk", "body") if name in found), b"")
        if not isinstance(piece, (bytes, bytearray, memoryview)):
            return f"the application gave {type(piece).__name__} as a piece of the body, which has to be bytes"
        return None

    def fail(self) -> None:
        """Answer 500 for an application that failed before its head went out."""
        body = b"Internal Server Error\n"
        fields = [("Content-Type", "text/plain; charset=utf-8")]
        self.status, self.fields = "500 Internal Server Error", fields
        connection = self._connection
        head = connection.start(self.status, fields, self._stream.date(), len(body))
        self.sent = True
        self._stream.send(head + connection.data(body) + connection.finish())
