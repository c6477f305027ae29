"""What is written down about a pool's life, and in which form?

structlog records on top of the loggers ``prefork``, ``prefork.access`` and ``prefork.error`` of the standard library,
configured privately: what a program has set up for its own logging is used, never replaced.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from prefork.config import Config


@dataclass(frozen=True, slots=True)
class RecordSpec:
    """A kind of record: its level, who writes it, its fields (``optional`` ones may be missing), and when it comes."""

    level: str
    by: str
    help: str
    fields: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    logger: str = "prefork"


def _spec(level: str, by: str, text: str, fields: str = "", optional: str = "", logger: str = "prefork") -> RecordSpec:
    return RecordSpec(level, by, text, tuple(fields.split()), tuple(optional.split()), logger)


CATALOGUE: Mapping[str, RecordSpec] = {
    "pool.starting": _spec("info", "parent", "The parent runs; the application is not loaded yet.", "version python app workers threads preload", "framework framework_version"),
    "pool.listening": _spec("info", "parent", "A socket is open.", "url", "address port scheme backlog inherited_fd"),
    "pool.ready": _spec("info", "parent", "All workers serve.", "workers boot_s"),
    "pool.fork_unsafe": _spec("warning", "parent", "Something in the parent would not survive the fork, or be shared by it.", "findings", "code"),
    "pool.recycling": _spec("info", "parent", "All workers are replaced, new ones first.", "signal note"),
    "pool.reloading": _spec("info", "parent", "A file changed: the program starts anew.", "reason path"),
    "pool.scaling": _spec("info", "parent", "The number of workers is changed.", "workers_from workers_to reason"),
    "pool.stopping": _spec("info", "parent", "The pool stops.", "signal graceful timeout_s"),
    "pool.stopped": _spec("info", "parent", "The last record of a pool.", "uptime_s requests exit_code"),
    "pool.boot_failed": _spec("critical", "parent", "The pool cannot be brought up.", "reason attempts code", "traceback"),
    "pool.fork_failed": _spec("error", "parent", "The system refused to fork; it is tried again.", "error delay_s code"),
    "pool.accept_paused": _spec("error", "worker", "No connection can be accepted for now: the descriptors are used up.", "reason pause_s", "code"),
    "worker.spawned": _spec("debug", "parent", "A worker was forked.", "worker child_pid"),
    "worker.ready": _spec("info", "parent", "A worker serves.", "worker child_pid boot_s"),
    "worker.boot_failed": _spec("error", "parent", "A worker could not start.", "worker child_pid reason", "traceback"),
    "worker.retiring": _spec("info", "parent", "A worker asked for its successor.", "worker child_pid reason requests"),
    "worker.exited": _spec("info", "parent", "A worker is gone; an error if nobody wanted it to go.", "worker child_pid exit_code signal expected reason requests overrun uptime_s"),
    "worker.killed": _spec("warning", "parent", "A worker took too long, and was killed.", "worker child_pid after_s"),
    "worker.respawn_delayed": _spec("warning", "parent", "Workers die too quickly: the next fork waits.", "worker child_pid delay_s failures"),
    "hook.failed": _spec("error", "both", "A hook raised.", "hook", "exc_info"),
    "request.finished": _spec("info", "worker", "A request was answered (with access_log).", "method path query status duration_s request_bytes response_bytes client scheme http_version user_agent", "", "prefork.access"),
    "request.failed": _spec("error", "worker", "The application raised.", "method path", "client exc_info", "prefork.error"),
    "request.rejected": _spec("warning", "worker", "A request was refused before the application saw it.", "reason status client"),
}  # fmt: skip
"""Every record that there is."""

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_COLOURS = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "1;31"}
_FIRST = ("timestamp", "level", "logger", "event")


class Event(dict[str, Any]):
    """A record's fields, which a plain formatter shows as ``name key=value …``."""

    def __str__(self) -> str:
        rest = " ".join(
            f"{key}={_plain(value)}" for key, value in self.items() if key not in _FIRST and key != "exc_info"
        )
        return f"{self.get('event', '')} {rest}".rstrip()


def _plain(value: Any) -> str:
    """Show a value on one line: what a client sends must not start a line of its own."""
    text = value if isinstance(value, str) else repr(value) if isinstance(value, (list, dict)) else str(value)
    return json.dumps(text) if not text.isprintable() or " " in text or not text else text


class _Output(logging.Handler):
    """Writes each record with one ``write``, so that the lines of several processes do not mix."""

    def __init__(self, path: str | None, style: str) -> None:
        super().__init__()
        self.path = path
        self.fd = _open(path)
        terminal = path is None and os.isatty(self.fd)
        self.style = ("console" if terminal else "json") if style == "auto" else style
        self.colour = (terminal and "NO_COLOR" not in os.environ) or "FORCE_COLOR" in os.environ

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, ours or a foreign one."""
        try:
            event = record.msg if isinstance(record.msg, Event) else _foreign(record)
            line = _json(event) if self.style == "json" else _console(event, colour=self.colour)
            os.write(self.fd, line.encode("utf-8", "backslashreplace"))
        except Exception:  # noqa: BLE001 - the log must never be what breaks a server
            self.handleError(record)

    def reopen(self) -> None:
        """Open the file anew, after it was renamed."""
        if self.path is not None:
            fresh = _open(self.path)
            os.dup2(fresh, self.fd)
            os.close(fresh)


def _open(path: str | None) -> int:
    return 2 if path is None else os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def _foreign(record: logging.LogRecord) -> Event:
    event = Event(
        timestamp=_now(), level=record.levelname.lower(), logger=record.name, event=record.getMessage(), pid=os.getpid()
    )
    if record.exc_info and record.exc_info[1] is not None:
        event["exc_info"] = record.exc_info[1]
    return event


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _traceback(event: Mapping[str, Any]) -> str:
    error = event.get("exc_info")
    return (
        "".join(traceback.format_exception(error))
        if isinstance(error, BaseException)
        else str(event.get("traceback") or "")
    )


def _json(event: Event) -> str:
    fields = {key: event[key] for key in _FIRST if key in event}
    fields |= {key: value for key, value in event.items() if key not in _FIRST and key not in {"exc_info", "traceback"}}
    if trace := _traceback(event):
        fields["exception"] = trace
    return json.dumps(fields, default=str, ensure_ascii=False) + "\n"


def _console(event: Event, *, colour: bool) -> str:
    def paint(code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if colour else text

    level = event.get("level", "info")
    clock = paint("2", time.strftime("%H:%M:%S"))
    if event.get("event") == "request.finished":
        line = '{client} "{method} {target} HTTP/{http_version}" {status} {response_bytes} {ms:.1f}ms'.format(
            target=_plain(event["path"] + ("?" + event["query"] if event["query"] else "")).strip('"'),
            ms=event["duration_s"] * 1000,
            **{key: event[key] for key in ("client", "method", "http_version", "status", "response_bytes")},
        )
        return f"{clock} {line}\n"
    hidden = {*_FIRST, "exc_info", "traceback", "pid", "role", "generation"}
    rest = " ".join(
        f"{paint('36', key)}={_plain(value)}" for key, value in event.items() if key not in hidden and value is not None
    )
    trace = _traceback(event)
    name = paint("1", f"{event.get('event', ''):<22}")
    return f"{clock} {paint(_COLOURS.get(level, '0'), f'{level:<8}')} {name} {rest}".rstrip() + "\n" + trace


class Records:
    """The log of one process. ``bind`` gives one with further fields; all share where they write to."""

    def __init__(self, config: Config, *, logger: Any = None) -> None:
        self._config = config
        self._logger = logger
        self._bound: dict[str, Any] = {}
        self._hook = config.on_record
        self._outputs = _Outputs(config)
        self.access_on = config.access_log is not None
        """Whether requests are recorded."""

    def bind(self, **fields: Any) -> Records:
        """Return records that carry ``fields`` as well."""
        bound = object.__new__(Records)
        bound.__dict__.update(self.__dict__)
        bound._bound = {**self._bound, **fields}
        return bound

    def emit(self, name: str, **fields: Any) -> None:
        """Write the record ``name`` (see ``CATALOGUE``); never raises."""
        spec = CATALOGUE[name]
        level = "error" if name == "worker.exited" and not fields.get("expected", True) else spec.level
        # What the record says about its subject comes before what the emitter is bound to.
        event = Event(timestamp=_now(), level=level, logger=spec.logger, event=name)
        event |= {**self._bound, "pid": os.getpid(), **fields}
        if self._hook is not None:
            self._call_hook(name, event)
        with contextlib.suppress(Exception):
            self._write(spec, level, event)

    def failure(self, error: BaseException, **fields: Any) -> None:
        """Write that the application raised."""
        self.emit("request.failed", exc_info=error, **fields)

    def access(self, **fields: Any) -> None:
        """Write that a request was answered."""
        self.emit("request.finished", **fields)

    def reopen(self) -> None:
        """Open log files anew."""
        self._outputs.reopen()

    def close(self) -> None:
        """Take our handlers away again."""
        self._outputs.close()

    def adopt_root(self, *loggers: logging.Logger) -> None:
        """Make one stream with the application's logging, unless it has set up its own.

        To be called after the application is loaded; handlers of ``loggers`` that only print are replaced.
        """
        self._outputs.adopt_root(loggers)

    def _call_hook(self, name: str, event: Event) -> None:
        hook: Callable[..., Any] | str = self._hook
        try:
            if isinstance(hook, str):
                from importlib import import_module

                module, _, attribute = hook.partition(":")
                hook = self._hook = getattr(import_module(module), attribute)
            assert callable(hook)
            hook(name, dict(event))
        except Exception:  # noqa: BLE001 - the log must never be what breaks a server
            self._hook = None
            self.emit("hook.failed", hook="on_record", exc_info=sys.exc_info()[1])

    def _write(self, spec: RecordSpec, level: str, event: Event) -> None:
        if self._logger is not None:
            getattr(self._logger, level)(
                event["event"], **{key: value for key, value in event.items() if key not in _FIRST}
            )
            return
        self._outputs.prepare()
        logger = logging.getLogger(spec.logger)
        if logger.isEnabledFor(_LEVELS[level]):
            error = event.get("exc_info")
            info = (type(error), error, error.__traceback__) if isinstance(error, BaseException) else None
            record = logger.makeRecord(
                spec.logger,
                _LEVELS[level],
                "prefork",
                0,
                event,
                (),
                info,
                extra={"_logger": logger, "_name": event["event"]},
            )
            logger.handle(record)


class _Outputs:
    """Our handlers, put up when the first record is written: by then a program has set up its own."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._mounted: list[tuple[logging.Logger, _Output]] = []
        self._levels: list[tuple[logging.Logger, int]] = []
        self._ready = False

    def prepare(self) -> None:
        if self._ready:
            return
        self._ready = True
        config = self._config
        logger = logging.getLogger("prefork")
        if logger.level == logging.NOTSET:
            self._levels.append((logger, logger.level))
            logger.setLevel(_LEVELS[config.log_level])
        if config.log_format != "none" and (config.log_file is not None or not logger.hasHandlers()):
            self._mount(logger, _Output(config.log_file, config.log_format))
        if config.access_log not in {None, "-"}:
            access = logging.getLogger("prefork.access")
            self._mount(access, _Output(config.access_log, config.log_format))
            access.propagate = False

    def _mount(self, logger: logging.Logger, output: _Output) -> None:
        logger.addHandler(output)
        self._mounted.append((logger, output))

    def adopt_root(self, loggers: tuple[logging.Logger, ...]) -> None:
        root = logging.getLogger()
        ours = [output for logger, output in self._mounted if logger.name == "prefork"]
        if root.handlers or not ours:
            return
        prefork = logging.getLogger("prefork")
        prefork.removeHandler(ours[0])
        self._mounted = [(logger, output) for logger, output in self._mounted if output is not ours[0]]
        self._mount(root, ours[0])
        for logger in loggers:
            for handler in list(logger.handlers):
                if type(handler) is logging.StreamHandler:
                    logger.removeHandler(handler)

    def reopen(self) -> None:
        for _, output in self._mounted:
            output.reopen()

    def close(self) -> None:
        for logger, output in self._mounted:
            logger.removeHandler(output)
            if output.path is not None:
                os.close(output.fd)
        for logger, level in self._levels:
            logger.setLevel(level)
        logging.getLogger("prefork.access").propagate = True
        self._mounted.clear()
        self._levels.clear()
        self._ready = False


def render_records_markdown() -> str:
    """Return the table of records for the documentation."""
    lines = [
        "# What do the records say?",
        "",
        "Made from the code by `make docs`. Each record also has `timestamp`, `level`, `logger`, `event`, and `pid`, `role`,",
        "`worker`, `generation` of the process that wrote it. On a terminal records are for people, elsewhere JSON, one a line.",
        "",
        "| record | level | by | when | fields |",
        "|---|---|---|---|---|",
    ]
    for name, spec in CATALOGUE.items():
        shown = ", ".join([*(f"`{field}`" for field in spec.fields), *(f"`{field}`?" for field in spec.optional)])
        lines.append(f"| `{name}` | {spec.level} | {spec.by} | {spec.help} | {shown} |")
    return "\n".join(lines) + "\n"
