"""A request that was answered, as the access log is told of it."""

from __future__ import annotations

from typing import Any

from prefork.access_format import Entry
from prefork.http1.messages import Head, Request, RequestLine


def entry(
    method: str = "GET",
    path: bytes = b"/cups",
    query: bytes = b"size=2",
    asked_with: list[tuple[bytes, bytes]] | None = None,
    **more: Any,
) -> Entry:
    target = path + (b"?" + query if query else b"")
    line = RequestLine(method, target, path, query, None, "1.1", b"%b %b HTTP/1.1" % (method.encode(), target))
    given = [(b"Host", b"tea.example:8000"), *(asked_with or [])]
    values: dict[str, Any] = {
        "request": Request(line, Head(given, b"tea.example:8000", 0, keep_alive=True, awaits_continue=False)),
        "client": "192.0.2.7",
        "scheme": "http",
        "environ": {},
        "status": "200",
        "fields": [("Content-Type", "text/plain")],
        "received": 5,
        "sent": 1234,
        "duration_s": 1.25,
        "queue_s": 0.004,
        "outcome": "complete",
        "closes": False,
        "request_id": "",
        "context": {},
    }
    return Entry(**{**values, **more})
