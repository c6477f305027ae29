"""How does a test's WSGI application run behind the ASGI driver? Each request in a thread of anyio's."""

from __future__ import annotations

import sys
from importlib import import_module
from io import BytesIO
from typing import TYPE_CHECKING, Any
from wsgiref.util import FileWrapper

import anyio
import anyio.from_thread
import anyio.to_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable


def of(spec: str) -> Callable[..., Awaitable[None]]:
    """Return the WSGI application that ``"module:attribute"`` names as an ASGI application."""
    module, _, name = spec.partition(":")
    app = getattr(import_module(module), name)

    async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        anyio.to_thread.current_default_thread_limiter().total_tokens = 200
        await anyio.to_thread.run_sync(answer, app, environ_of(scope, body), send, abandon_on_cancel=True)

    return asgi


def answer(app: Callable[..., Any], environ: dict[str, Any], send: Any) -> None:
    """Call the application, and pass on what it answers."""
    start: list[dict[str, Any]] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
        pairs = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        start[:] = [{"type": "http.response.start", "status": int(status[:3]), "headers": pairs}]
        return lambda data: None

    iterable = app(environ, start_response)
    try:
        pass_on(iterable, start, send)
    finally:
        if hasattr(iterable, "close"):
            iterable.close()


def pass_on(iterable: Iterable[bytes], start: list[dict[str, Any]], send: Any) -> None:
    """Send an answer whole if it is a list, or else piece by piece."""
    if isinstance(iterable, list):
        anyio.from_thread.run(send, start[0])
        anyio.from_thread.run(send, {"type": "http.response.body", "body": b"".join(iterable)})
        return
    sent = False
    for piece in iterable:
        if not sent:
            anyio.from_thread.run(send, start[0])
            sent = True
        anyio.from_thread.run(send, {"type": "http.response.body", "body": piece, "more_body": True})
    if not sent:
        anyio.from_thread.run(send, start[0])
    anyio.from_thread.run(send, {"type": "http.response.body"})


def environ_of(scope: dict[str, Any], body: bytes) -> dict[str, Any]:
    """Return the environ of a request, as far as tests look at it."""
    fields = {f"HTTP_{name.decode().upper().replace('-', '_')}": value.decode() for name, value in scope["headers"]}
    extensions = {name: value for name, value in scope["extensions"].items() if name.startswith("prefork.")}
    peer = scope["client"] or ("", 0)
    return {
        **fields,
        **extensions,
        "REQUEST_METHOD": scope["method"],
        "PATH_INFO": scope["path"],
        "QUERY_STRING": scope["query_string"].decode(),
        "CONTENT_LENGTH": str(len(body)),
        "REMOTE_ADDR": peer[0],
        "REMOTE_PORT": str(peer[1]),
        "wsgi.input": BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.file_wrapper": FileWrapper,
        "wsgi.url_scheme": scope["scheme"],
    }
