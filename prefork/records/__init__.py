"""What is written down about a pool's life?

structlog records on top of the loggers ``prefork``, ``prefork.access`` and ``prefork.error`` of the standard library,
configured privately: what a program has set up for its own logging is used, never replaced. The catalogue says which
there are, ``outlet`` where they go, ``rendering`` what they look like.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefork.records.catalogue import CATALOGUE, EMITTER, LOGGERS, RecordSpec, render_records_markdown

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefork.config import Config
    from prefork.hooks import OnRecord
    from prefork.records.access import AccessLog
    from prefork.records.outlet import Outlet

__all__ = ["CATALOGUE", "RecordSpec", "Records", "render_records_markdown"]

UNKNOWN = RecordSpec("info", "either", "")
# A hook that is named lives with the application, none of whose code may run before privileges are dropped.
BEFORE_THE_APP = frozenset({"pool.starting", "pool.listening"})


class Records:
    """The log of one process and, after a fork, of its children. ``bind`` gives one with further fields.

    ``logger`` is a structlog logger, or one of the standard library, that shall have the records instead; ``outlet`` one
    that was opened before. Else nothing is opened or set up before the first record, so that an unused pool leaves no
    trace; that record raises ``ConfigError`` if a log file cannot be opened. No other ever raises, unless ``strict``, which is for tests and the default under
    ``python -X dev``: then it is a ``ValueError`` if a record is not as in the catalogue.
    """

    __slots__ = ("_shared", "bound")

    def __init__(
        self, config: Config, *, logger: Any = None, outlet: Outlet | None = None, strict: bool | None = None
    ) -> None:
        self.bound: dict[str, Any] = {}
        """What each record carries."""
        self._shared = _Shared(config, logger, outlet, strict=sys.flags.dev_mode if strict is None else strict)

    def bind(self, **fields: Any) -> Records:
        """Return records that carry ``fields`` as well."""
        bound = object.__new__(Records)
        bound.bound, bound._shared = {**self.bound, **fields}, self._shared
        return bound

    def emit(self, name: str, **fields: Any) -> None:
        """Write the record ``name``; an exception is given as ``exc_info``, the text of a traceback as ``traceback``."""
        # What the record says about its subject comes before what the emitter is bound to.
        self._shared.emit(name, {"pid": os.getpid(), **self.bound, **fields})
        self.tell_of_lost_lines()

    def tell_of_lost_lines(self) -> None:
        """Write how many lines were thrown away, if their reader reads again."""
        if self._shared.outlet is not None:
            for log, lines in list(self._shared.outlet.lost()):
                self.emit("log.lines_lost", log=log, lines=lines)

    def tell(self, name: str, **fields: Any) -> None:
        """Let the hook ``on_record``, if there is one, know of a record that is written in another way."""
        if self._shared.hook is not None:
            self._shared.tell(name, {"pid": os.getpid(), **self.bound, **fields})

    def failure(self, error: BaseException, **fields: Any) -> None:
        """Write that the application raised."""
        self.emit("request.failed", exc_info=error, **fields)

    def access_log(self) -> AccessLog | None:
        """Return who writes that requests were answered; to be called in the process that does. ``None``: nobody."""
        if self._shared.config.access_log is None:
            return None
        from prefork.records.access import AccessLog

        return AccessLog(self._shared.config, self)

    def choose_requests(self, wanted: Callable[[dict[str, Any]], object]) -> None:
        """Have ``wanted`` asked, with the fields of ``request.finished``, whether to write it."""
        self._shared.request_filter = wanted

    @property
    def request_filter(self) -> Callable[[dict[str, Any]], object] | None:
        """What is asked whether to write ``request.finished``."""
        return self._shared.request_filter

    @property
    def outlet(self) -> Outlet | None:
        """Where records go; ``None`` if somebody else's logger has them, or after the end."""
        return self._shared.open()

    def adopt_root(self) -> bool:
        """Make one stream with the application's log, unless it has set up its own; return whether it is so now.

        To be called after the application is loaded: its own ``basicConfig`` would do nothing any more. A handler that
        a framework has put up for want of a better one is then to be taken away, else each line comes twice.
        """
        outlet = self._shared.open()
        return outlet is not None and outlet.adopt_root()

    def prepare(self) -> None:
        """Import before a fork what each child would otherwise import for itself at its first record."""
        self._shared.prepare()

    def reopen(self) -> None:
        """Open log files anew, after they were moved away."""
        if self._shared.outlet is not None:
            for path, error in list(self._shared.outlet.reopen()):
                self.emit("log.reopen_failed", log=path, error=str(error))

    def close(self) -> None:
        """Leave all loggers as they were found, and close log files. Later records only go to others' handlers."""
        self._shared.close()


class _Shared:
    """What all bound records have in common: where they go, and the hook."""

    def __init__(self, config: Config, logger: Any, outlet: Outlet | None, *, strict: bool) -> None:
        self.config = config
        self._logger = logger
        self._strict = strict
        self.hook: OnRecord | str | None = config.on_record
        self._early: list[tuple[str, dict[str, Any]]] = []
        self._makers: dict[str, Any] = {}
        self._closed = False
        self.request_filter: Callable[[dict[str, Any]], object] | None = None
        self.outlet = outlet

    def open(self) -> Outlet | None:
        """Set up what is needed, once; there is no outlet if somebody else's logger has the records."""
        if self.outlet is None and self._logger is None and not self._closed:
            from prefork.records.outlet import Outlet

            self.outlet = Outlet(self.config)
        return self.outlet

    def prepare(self) -> None:
        """Import what records need that others have asked for."""
        outlet = self.open()
        for name in LOGGERS:
            if outlet is None or outlet.others_listen(name):
                self._maker(name)

    def _maker(self, name: str) -> Any:
        """Return the structlog logger of that name."""
        if not self._makers:
            self._makers = self._make_loggers()
        return self._makers[name]

    def _make_loggers(self) -> dict[str, Any]:
        import logging

        from prefork.records.outlet import make_logger

        if self._logger is None:
            return {name: make_logger(logging.getLogger(name)) for name in LOGGERS}
        own = make_logger(self._logger) if isinstance(self._logger, logging.Logger) else self._logger
        return dict.fromkeys(LOGGERS, own)

    def close(self) -> None:
        self._closed = True
        if self.outlet is not None:
            self.outlet.close()
            self.outlet = None

    def emit(self, name: str, fields: dict[str, Any]) -> None:
        spec = CATALOGUE.get(name, UNKNOWN)
        # A line that is made already is for our own handlers alone.
        made = {"line": line} if (line := fields.pop("line", None)) else {}
        if self._strict and (wrong := ["is not in the catalogue"] if spec is UNKNOWN else spec.problems(fields)):
            raise ValueError(f"the record {name}: {', '.join(wrong)}")
        if code := spec.code_of(fields):
            fields.setdefault("code", code)
        if trace := fields.pop("traceback", None):
            fields["exception"] = trace
        outlet, level = self.open(), spec.level_of(fields)
        try:
            if outlet is not None:
                outlet.settle()
            if outlet is None or made or not outlet.write(spec.logger, level, name, fields):
                getattr(self._maker(spec.logger), level)(name, **fields, **made)
        except Exception:  # noqa: BLE001, S110 - the log must never be what breaks a server
            pass
        if self.hook is not None:
            self.tell(name, fields)

    def tell(self, name: str, fields: dict[str, Any]) -> None:
        """Call the hook, if it can be had by now."""
        spec = CATALOGUE.get(name, UNKNOWN)
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        about = {"timestamp": now, "level": spec.level_of(fields), "logger": spec.logger, "event": name}
        fields = {**about, **fields}
        if isinstance(self.hook, str) and name in BEFORE_THE_APP:
            self._early.append((name, fields))
            return
        waiting, self._early = [*self._early, (name, fields)], []
        try:
            if isinstance(self.hook, str):
                self.hook = load(self.hook, self.config.app_dir)
            for record in waiting:
                self.hook(*record)  # type: ignore[misc]  # not None: asked by who calls this
        except Exception as error:  # noqa: BLE001 - anybody's code
            # Once: a hook that is broken would be so for each request.
            self.hook = None
            emitter = {name: fields[name] for name in EMITTER if name in fields}
            self.emit("hook.failed", {**emitter, "hook": "on_record", "exc_info": error})


def load(name: str, app_dir: str) -> Callable[..., object]:
    """Return the function that ``"module:function"`` names, looked for in ``app_dir`` first."""
    if (folder := str(Path(app_dir).resolve())) not in sys.path:
        sys.path.insert(0, folder)
    module, _, path = name.partition(":")
    found: Any = attrgetter(path)(import_module(module))
    return found  # type: ignore[no-any-return]  # what it is shows when it is called
