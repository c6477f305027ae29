"""The smallest WSGI application: `prefork wsgi_hello --app-dir examples`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    body = f"Hello from worker {environ['prefork.worker']}\n".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
