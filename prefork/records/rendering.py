"""What does a record look like, to a person and to a machine?

Whatever a client has sent may stand in a record. It must not end a line, begin one, or speak to the terminal: what is
not printable is escaped, and what takes several lines is indented behind the first.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from prefork.records.catalogue import FIRST, LOGGERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Shown as text below the line, not as fields within it.
_BLOCKS = ("findings", "exception", "stack_info", "stack")
# For a person who looks at one server these are the same in each line, or say nothing.
_QUIET = frozenset({*FIRST, *_BLOCKS, "exc_info", "pid", "role", "generation"})
_LEVEL_STYLES = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "1;37;41"}
_STATUS_STYLES = {2: "32", 3: "36", 4: "33", 5: "1;31"}
_DIM, _BOLD, _KEY, _ERROR = "2", "1", "36", "1;31"
_SUCCESS = 2
_encode = json.JSONEncoder(default=str).encode  # which json.dumps() would make anew for each record
_NAME_WIDTH = 22  # of worker.respawn_delayed, the longest name that comes often


class Record(dict[str, Any]):
    """The fields of a record, which a plain formatter shows as ``name key=value …``."""

    __slots__ = ("line",)

    line: str | None
    """What our own handlers write of it, where that is made already."""

    def __str__(self) -> str:
        hidden = {*FIRST, "exc_info", "exception"}
        pairs = (f"{name}={shown(value)}" for name, value in self.items() if name not in hidden and value is not None)
        return " ".join([str(self.get("event", "")), *pairs])


def to_json(record: Mapping[str, Any]) -> str:
    """Return a record as one JSON object on one line, in ASCII, its first four fields first."""
    ordered = {name: record[name] for name in FIRST if name in record}
    ordered |= {name: value for name, value in record.items() if name not in ordered and name != "exc_info"}
    try:
        return _encode(ordered)
    except (TypeError, ValueError):  # keys that are no text, or a value that contains itself
        return json.dumps({str(name): str(value) for name, value in ordered.items()})


def to_console(record: Mapping[str, Any], at: float, *, colour: bool, clock: bool = True) -> str:
    """Return a record for a person: local time (``at`` is in seconds since the epoch), level, name, fields.

    Without ``clock`` the time is left out, where whoever takes the line has his own.
    """
    paint = _painted if colour else _plain
    now = paint(_DIM, time.strftime("%H:%M:%S", time.localtime(at))) + " " if clock else ""
    head = _access(record, paint) if record.get("event") == "request.finished" else _head(record, paint)
    return "\n".join([f"{now}{head}", *(f"  {line}" for line in _blocks(record, paint))])


def _painted(style: str, text: str) -> str:
    return f"\x1b[{style}m{text}\x1b[0m"


def _plain(_style: str, text: str) -> str:
    return text


def _head(record: Mapping[str, Any], paint: Any) -> str:
    level = str(record.get("level", "info"))
    text = str(record.get("event", ""))
    pairs = [
        f"{paint(_DIM, name + '=')}{paint(_KEY, shown(value))}"
        for name, value in record.items()
        if value is not None and (name not in _QUIET or (name == "generation" and _may_be_mistaken(record)))
    ]
    if record.get("logger") not in LOGGERS:
        # Somebody else's: what we show as the name is his sentence, so his logger takes its place.
        name, text = str(record.get("logger", "")), escaped(text.split("\n", 1)[0])
        pairs.insert(0, text)
    else:
        name = text
    style = _LEVEL_STYLES.get(level, _BOLD)
    named = f"{name:<{_NAME_WIDTH}}" if pairs else name
    return " ".join([paint(style, f"{level:<7}"), paint(_BOLD, named), *pairs])


def _may_be_mistaken(record: Mapping[str, Any]) -> bool:
    """Whether a line tells of a pool beside which there may be another: "stopped" is not said of the whole service."""
    name = str(record.get("event", ""))
    return record.get("logger") in LOGGERS and (
        name == "pool.stopped" or (name.startswith("pool.") and record["generation"] > 1)
    )


def _access(record: Mapping[str, Any], paint: Any) -> str:
    """Return the line that ``flask run`` and ``runserver`` have made familiar, in the colour of its status."""
    target = escaped(f"{record['path']}?{record['query']}" if record.get("query") else str(record["path"]))
    request = f'"{escaped(str(record["method"]))} {target} HTTP/{record["http_version"]}"'
    kind = int(record["status"]) // 100
    status = paint(_STATUS_STYLES.get(kind, _BOLD), str(record["status"]))
    if kind > _SUCCESS:
        request = paint(_STATUS_STYLES.get(kind, _BOLD), request)
    size, took = record["response_bytes"], paint(_DIM, _duration(float(record["duration_s"])))
    parts = [escaped(record["client"] or "-"), request, status, size, took]
    if record["outcome"] != "complete":
        parts.append(paint(_ERROR, record["outcome"]))
    if record.get("request_id"):
        parts.append(paint(_DIM, escaped(str(record["request_id"]))))
    return " ".join(map(str, parts))


def _duration(seconds: float) -> str:
    return f"{seconds:.1f}s" if seconds >= 1 else f"{seconds * 1000:.1f}ms"


def _blocks(record: Mapping[str, Any], paint: Any) -> Iterator[str]:
    """Yield the lines below the line."""
    if record.get("logger") not in LOGGERS:
        yield from map(visible, str(record.get("event", "")).split("\n")[1:])
    for finding in record.get("findings") or ():
        words = {name: visible(str(text)) for name, text in dict(finding).items()}
        place = paint(_DIM, "at {where}".format_map(words))
        yield "{} {} {}: {}".format(paint("33", words["kind"]), paint(_BOLD, words["what"]), place, words["remedy"])
    for name in ("exception", "stack_info"):
        if text := str(record.get(name) or "").rstrip("\n"):
            *frames, last = map(visible, text.split("\n"))
            yield from frames
            yield paint(_ERROR, last)
    yield from map(visible, str(record.get("stack") or "").splitlines())


def shown(value: Any) -> str:
    """Return a value as it stands behind ``key=``: one word, in quotes if it is not."""
    if isinstance(value, str):
        whole = value and value.isprintable() and not any(mark in value for mark in ' "=\\')
        return value if whole else f'"{escaped(value)}"'
    if value is None or isinstance(value, (bool, dict, list, tuple)):
        return to_line(value)
    return visible(str(value))


def to_line(value: Any) -> str:
    """Return a value as JSON."""
    return _encode(value)


def escaped(text: str) -> str:
    r"""Return ``text`` fit to stand in quotes on one line: what is not printable, ``"`` and ``\`` escaped."""
    return visible(text.replace("\\", "\\\\").replace('"', '\\"'))


def visible(text: str) -> str:
    r"""Return ``text`` with all that is not printable escaped, ``\x1b`` and the like; a tab may stay."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one == "\t" else one.encode("unicode_escape").decode("ascii") for one in text
    )
