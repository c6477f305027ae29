"""Who writes the line of a request, when, and does anybody want it?

It is made and written behind its answer: at once, or together with those of the other answers that go out together. It
goes past ``logging``, unless somebody has put up a handler or a filter there; that is looked at once a second, for a
program may do so at any time.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from contextvars import Context, copy_context
from dataclasses import replace
from logging import ERROR, INFO
from typing import TYPE_CHECKING, Any, TypeAlias

from prefork.access_format import FAILED, Entry, compile_format, json_form, record_of
from prefork.records.rendering import to_console, to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prefork.config import Config
    from prefork.records import Records
    from prefork.records.outlet import Writer

    Render: TypeAlias = Callable[[Iterable[Entry], float], list[str]]

_NOTHING: Mapping[str, Any] = {}


def bound_context() -> Mapping[str, Any]:
    """Return what the program has bound for all records of this context, with structlog's ``bind_contextvars``."""
    if not len(copy_context()):
        return _NOTHING
    structlog = sys.modules.get("structlog.contextvars")  # who has bound something has imported it
    bound: Mapping[str, Any] = _NOTHING if structlog is None else structlog.get_contextvars()
    return bound


class AccessLog:
    """The access log of one process; to be made in the process that writes it.

    ``take`` each entry in the thread that served it, and ``flush`` as soon as the answers so far have gone out.
    """

    def __init__(self, config: Config, records: Records) -> None:
        self._records = records
        self._with_id = config.request_id
        self._style = config.access_log_format
        self._who = {"pid": os.getpid(), **records.bound}
        paths = [path.encode("latin-1", "replace") for path in config.access_log_skip]
        self._skipped = frozenset(path for path in paths if not path.endswith(b"*"))
        self._skipped_below = tuple(path[:-1] for path in paths if path.endswith(b"*"))
        self._filter = records.request_filter
        self._selects = bool(paths or self._filter)
        self._tells = config.on_record is not None
        self._kept: deque[Entry] = deque()
        self._writer: Writer | None = None
        self._render: Render | None = None
        self._passes_on = False
        self._looked_at = 0
        self.reads_environ = False
        """Whether an entry needs its ``environ``."""
        self.prompt = True
        """Whether ``take`` may call somebody else's code, which may last: send before what is to be sent."""
        self._look(time.time())

    def take(self, entry: Entry) -> None:
        """Keep an entry until it is flushed, or let whoever else wants it have it."""
        if self._selects and not self._wants(entry):
            return
        if not self.prompt:
            self._kept.append(entry)
            return
        self._look(time.time())
        if self._passes_on:
            # What is bound in the context of the entry is in the entry, and this thread may have another one.
            Context().run(self._pass_on, entry)
            return
        self._kept.append(entry)
        if self._tells:
            self._records.tell("request.finished", **self._record(entry))

    def flush(self) -> None:
        """Write what is kept."""
        kept = self._kept
        entries: list[Entry] = []
        try:
            while True:
                entries.append(kept.popleft())
        except IndexError:
            pass  # who asks for the length first is told of what another thread then takes
        if entries and self._writer is not None:
            now = time.time()
            self._writer.write(self._lines(entries, now))
            self._look(now)

    def _look(self, now: float) -> None:
        """See who wants the records of requests, once a second."""
        if int(now) == self._looked_at:
            return
        self._looked_at = int(now)
        outlet = self._records.outlet
        if outlet is not None:
            outlet.settle()
            self._records.tell_of_lost_lines()
            if self._render is None and outlet.access_writer is not None:
                self._writer = outlet.access_writer
                self._render = self._renderer(self._writer)
        self._passes_on = outlet is None or self._render is None or outlet.others_want_requests()
        self.prompt = self._passes_on or self._tells or self._filter is not None

    def _renderer(self, writer: Writer) -> Render:
        style = self._style or ("console" if writer.console else "json")
        if style == "json":
            return json_form(self._who, with_id=self._with_id)
        if style == "console":
            return lambda entries, now: [
                to_console(self._record(entry), now, colour=writer.colour, clock=not writer.journal)
                for entry in entries
            ]
        form = compile_format(style, self._who)
        self.reads_environ = form.reads_environ
        return form

    def _lines(self, entries: list[Entry], now: float) -> list[str]:
        writer = self._writer
        assert writer is not None
        assert self._render is not None
        try:
            lines = self._render(entries, now)
        except Exception:  # noqa: BLE001 - what an application puts into its environ may do anything when it is shown
            lines = [self._plainly(entry) for entry in entries]
        if writer.journal:
            levels = (ERROR if entry.status >= FAILED else INFO for entry in entries)
            return list(map(writer.marked, lines, levels))
        return lines

    def _wants(self, entry: Entry) -> bool:
        """Whether the user wants an entry: what failed is never left out for its path."""
        path = entry.request.line.path
        if entry.status < FAILED and (path in self._skipped or path.startswith(self._skipped_below)):
            return False
        if self._filter is None:
            return True
        try:
            return bool(self._filter(self._record(entry)))
        except Exception as error:  # noqa: BLE001 - anybody's code
            # Once: a filter that is broken would be so for each request.
            self._filter = None
            self._records.emit("hook.failed", hook="access_log_filter", exc_info=error)
            return True

    def _record(self, entry: Entry) -> dict[str, Any]:
        return {"event": "request.finished", **record_of(entry, with_id=self._with_id)}

    def _plainly(self, entry: Entry) -> str:
        """Return a line that has nothing of the application in it."""
        return to_json({"event": "request.finished", **record_of(replace(entry, context={}), with_id=self._with_id)})

    def _pass_on(self, entry: Entry) -> None:
        """Let ``logging`` have an entry; our own handlers write the line that is made of it."""
        line = self._lines([entry], time.time())[0] if self._render is not None else None
        self._records.emit("request.finished", **record_of(entry, with_id=self._with_id), line=line)
