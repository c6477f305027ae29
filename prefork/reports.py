"""What can a worker tell its parent, and in which form?

A pair of datagram sockets carries one report a message: whole, in order, and never lost while the parent lives.
"""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, TypeAlias

from prefork.values import Value, fields_of

MESSAGE_LIMIT = 64 * 1024
"""How many bytes a message may have. What is said of an error is cut until it fits: the end of the traceback stays."""


class Ready(Value):
    """The worker serves; starting took ``boot_s`` seconds."""

    worker: int
    boot_s: float


class Retiring(Value):
    """The worker wants a successor, because of ``reason``, after ``requests`` so far.

    ``memory_bytes`` is its private memory if that is the reason, else 0.
    """

    worker: int
    reason: str
    requests: int
    memory_bytes: int = 0


class BootFailed(Value):
    """The worker could not start: ``summary`` in one line, the ``traceback`` of what is to blame, and our ``code``."""

    worker: int
    traceback: str
    summary: str
    code: str


class Leaving(Value):
    """The worker is about to exit after ``requests``, ``overrun`` of them beyond its budget, with ``stuck`` threads."""

    worker: int
    requests: int
    overrun: int
    stuck: int = 0


Report: TypeAlias = Ready | Retiring | BootFailed | Leaving
_TYPES = {
    "worker": int,
    "requests": int,
    "overrun": int,
    "stuck": int,
    "memory_bytes": int,
    "boot_s": float,
    "reason": str,
    "summary": str,
    "traceback": str,
    "code": str,
}
_KINDS: dict[str, type[Report]] = {kind.__name__: kind for kind in (Ready, Retiring, BootFailed, Leaving)}


def open_reports() -> tuple[socket.socket, socket.socket]:
    """Return the parent's end, which does not block, and the end that all workers share."""
    parent, workers = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    parent.setblocking(False)
    return parent, workers


def encode(report: Report) -> bytes:
    """Return the message of a report, of at most ``MESSAGE_LIMIT`` bytes."""
    values = fields_of(report)
    while len(message := _written(type(report).__name__, values)) > MESSAGE_LIMIT:
        values["traceback"] = values["traceback"][len(values["traceback"]) // 2 + 1 :]
        values["summary"] = values["summary"][:1000]
    return message


def _written(kind: str, values: dict[str, Any]) -> bytes:
    """Return what ``json.dumps`` would, which in a process that is just forked costs more than all the rest of a report."""
    pairs = [f'"{name}": {_quoted(it) if isinstance(it, str) else repr(it)}' for name, it in values.items()]
    return f'["{kind}", {{{", ".join(pairs)}}}]'.encode("ascii")


def decode(message: bytes) -> Report:
    """Return the report of a message; raises ``ValueError`` if it is none."""
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        kind, values = json.loads(message.decode("ascii"))
        report = _KINDS[kind](**values)
        if all(isinstance(value, _TYPES[field]) for field, value in values.items()):
            return report
    raise ValueError(f"not a report: {message[:100]!r}")
