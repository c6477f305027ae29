"""How are a record and its fields called in OpenTelemetry?

Its semantic conventions call the start, reload and end of a service *events*, with dotted lower-case names: ours are
those of the catalogue behind ``prefork.``. What has no name there keeps its own.

Source: the registry of attributes (process, HTTP, URL, exception) of the semantic conventions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

NAMES: Mapping[str, str] = {
    "method": "http.request.method",
    "path": "url.path",
    "query": "url.query",
    "status": "http.response.status_code",
    "scheme": "url.scheme",
    "client": "client.address",
    "address": "server.address",
    "port": "server.port",
    "http_version": "network.protocol.version",
    "user_agent": "user_agent.original",
    "host": "http.request.header.host",
    "referer": "http.request.header.referer",
    "request_bytes": "http.request.body.size",
    "response_bytes": "http.response.body.size",
    "pid": "process.pid",
    "exit_code": "process.exit.code",
    "exception": "exception.stacktrace",
    "python": "process.runtime.version",
}
"""Our fields, and what they are called there."""


def rename(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Rename the fields of our records; others pass. A structlog processor."""
    if not str(event.get("logger", "")).startswith("prefork"):
        return event
    renamed = {NAMES.get(name, name): value for name, value in event.items()}
    renamed["event"] = f"prefork.{event.get('event', '')}"
    if event.get("event") == "pool.reloading":
        renamed["file.path"] = renamed.pop("url.path", None)
    if "child_pid" in renamed:
        # The subject of the record is the worker; who wrote it is the parent.
        renamed["process.parent_pid"] = renamed.pop("process.pid", None)
        renamed["process.pid"] = renamed.pop("child_pid")
    return renamed
