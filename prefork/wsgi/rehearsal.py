"""What does a WSGI application answer before there is a client?

It is asked as a client would: request, environ and answer pass through the same code. What only a worker can do for it,
such as being replaced, is there and does nothing.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from prefork.exit_guard import ExitGuard
from prefork.http1.connection import Connection
from prefork.http1.forwarded import Said
from prefork.http1.heads import HeadReader
from prefork.http1.messages import Request
from prefork.reception import Origin, WorkerFacts, new_parser
from prefork.request_ids import RequestIds
from prefork.targets import LONGEST_ANSWER, Target, read_answer
from prefork.wsgi.driver import no_deadline
from prefork.wsgi.gateway import Answer, Base, request_environ, server_environ

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prefork.config import Config

_PEER = ("127.0.0.1", "0")


class _Reader:
    """A client who takes everything at once, and keeps the beginning."""

    def __init__(self) -> None:
        self.kept = b""

    def send(self, data: bytes) -> None:
        self.kept += data[: LONGEST_ANSWER - len(self.kept)]

    complete = conclude = send

    def date(self) -> bytes:
        return b"Thu, 01 Jan 1970 00:00:00 GMT"

    def measure(self, _file: Any) -> None:
        return None

    def sendfile(self, _file: Any, _offset: int, _size: int, *, last: bool) -> None:  # noqa: ARG002 - no file is measured
        raise AssertionError("no file was measured")


def ask(app: Callable[..., Iterable[bytes]], target: Target, config: Config) -> tuple[int, str]:
    """Ask an application, and read its answer to the end; return its status and its first words.

    Raises what the application raises, ``Refused`` for a target that no client would be served, and ``Misanswered``.
    """
    connection, reader = Connection(HeadReader(config.limits, new_parser(config.http))), _Reader()
    connection.receive(target.request())
    request = connection.next_event()
    assert isinstance(request, Request)
    environ = request_environ(_base(target, config), _PEER, request, None, 0)
    if config.request_id:
        environ["prefork.request_id"] = environ["HTTP_X_REQUEST_ID"] = RequestIds().of(None, trusted=False)
    answer = Answer(connection, reader)
    environ["wsgi.early_hints"] = answer.early_hints
    environ["prefork.client_gone"] = lambda: False
    answer.run(app, environ)
    return read_answer(reader.kept)


def _base(target: Target, config: Config) -> Base:
    scheme = target.scheme or config.scheme
    _, name, port = Said().authority(target.host, scheme)
    origin = Origin(scheme, name, port, trusted=False)
    facts = WorkerFacts(number=0, generation=0, retire=lambda: None)
    environ = server_environ(
        name=origin.name,
        port=origin.port,
        scheme=scheme,
        errors=sys.stderr,
        multithread=config.threads > 1,
        root_path=config.root_path,
        extra={**facts.shown(ExitGuard()), "prefork.extend_deadline": no_deadline},
    )
    return Base(environ, origin, None, lambda _names, _address: None)
