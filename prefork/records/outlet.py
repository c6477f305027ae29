"""Where do records go, and who prints them?

Not us, if anybody else does. A program that has set up logging has its own handlers, at the root or at ``prefork``, and
then ours keeps still; it may do so at any time, also when its modules are imported after our first record. So this is
asked for each record, as the standard library's handler of last resort does, and not once.

Only for a record that somebody else wants too is structlog needed, and imported: that takes as long as all the rest of a
start that is about records, and brings asyncio along.
"""

from __future__ import annotations

import logging
import os
import select
import stat
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from select import PIPE_BUF
from typing import TYPE_CHECKING, Any

from prefork.errors import ConfigError
from prefork.obstacles import obstacle
from prefork.records.access import bound_context
from prefork.records.catalogue import LEVELS, LOGGERS
from prefork.records.pipe import PATIENCE_S, pipe_of
from prefork.records.rendering import Record, to_console, to_json
from prefork.stacks import is_ours
from prefork.terminal import is_terminal, wants_colour

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
    from io import TextIOBase

    from prefork.config import Config
    from prefork.records.pipe import Pipe

STDERR = 2
# Of syslog(3), which the journal has as well.
_PRIORITIES = {10: 7, 20: 6, 30: 4, 40: 3, 50: 2}
_NOTICE = 5
_OF_EVERY_RECORD = {*vars(logging.makeLogRecord({})), "message", "asctime"}


class Writer(logging.Handler):
    """Writes each record by one ``write``, so that the lines of several processes do not mix.

    To a file, which is opened to append and can be reopened, or to stderr, whatever that is at the moment: a program
    may have replaced ``sys.stderr``. If that leads to systemd's journal, each line begins with its priority.
    """

    def __init__(self, path: str | None, style: str) -> None:
        super().__init__()
        self.addFilter(self._is_ours_to_write)
        # Absolute, because what reopens it may stand in another directory by then.
        self.path = None if path is None else os.path.abspath(path)  # noqa: PTH100 - a Path says no more
        self.fd = None if self.path is None else _open(self.path)
        # What is appended to a file by one call stays together, whatever its length.
        self._whole = self.fd is not None and stat.S_ISREG(os.fstat(self.fd).st_mode)
        self._pipe = pipe_of(STDERR) if self.fd is None else pipe_of(self.fd, owned=True)
        terminal = self.path is None and is_terminal(sys.stderr)
        self.console = style == "console" or (style == "auto" and terminal)
        """Whether records are for people."""
        self.journal = self.path is None and _is_journal(STDERR)
        """Whether systemd's journal takes the lines: it has a clock and levels of its own."""
        self.colour = self.path is None and not self.journal and wants_colour(terminal=terminal)
        """Whether colours may be used."""
        self.setFormatter(_Form(self.shown))

    def _is_ours_to_write(self, record: logging.LogRecord) -> bool:
        """Whether to write a record: one of ours that goes to stderr only if nobody else prints it."""
        return self.fd is not None or record.name not in LOGGERS or not is_printed_by_others(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record. A full disk, or a reader that is gone, is no reason to stop serving."""
        try:
            line = getattr(record.msg, "line", None) or self.marked(self.format(record), record.levelno)
            self.write([line])
        except Exception:  # noqa: BLE001 - the log must never be what breaks a server
            self.handleError(record)

    def shown(self, record: Mapping[str, Any], at: float) -> str:
        """Return the line of a record that was made ``at`` that time."""
        return to_console(record, at, colour=self.colour, clock=not self.journal) if self.console else to_json(record)

    def marked(self, line: str, level: int) -> str:
        """Return a line as it is to be written: for systemd's journal with its priority in front (sd-daemon(3))."""
        return f"<{_PRIORITIES.get(level, _NOTICE)}>{line}" if self.journal else line

    def write(self, lines: Sequence[str]) -> None:
        """Write lines, as many at once as cannot mix with those of other processes."""
        with suppress(OSError):
            for piece in ["\n".join([*lines, ""])] if self._whole else _pieces(lines):
                if self.fd is None:
                    _write_stderr(piece, self._pipe)
                elif self._pipe is not None:
                    self._pipe.write(_encoded(piece))
                else:
                    _write(self.fd, piece)

    def take_lost(self) -> int:
        """Return how many lines were thrown away, because nobody read them, since the last call."""
        return 0 if self._pipe is None else self._pipe.take_lost()

    def reopen(self) -> None:
        """Open the file anew, under the same descriptor: no thread that writes meanwhile needs to know."""
        if self.path is not None and self.fd is not None:
            fresh = _open(self.path, os.O_NONBLOCK)  # a pipe that nobody reads would be waited for
            os.dup2(fresh, self.fd, inheritable=False)
            os.close(fresh)

    def close_file(self) -> None:
        """Close the file. Not ``close()``: ``logging.config`` calls that on every handler that it finds."""
        if self._pipe is not None:
            self._pipe.close()
        if self.fd is not None:
            os.close(self.fd)
        super().close()


def _pieces(lines: Sequence[str]) -> Iterator[str]:
    """Yield lines, as many together as a pipe is sure not to tear apart (pipe(7)); one that is longer by itself."""
    piece = ""
    for line in lines:
        if piece and _size(piece) + _size(line) >= PIPE_BUF:
            yield piece
            piece = ""
        piece += line + "\n"
    yield piece


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(_encoded(text))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _open(path: str, more: int = 0) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | more, 0o644)


def _write(fd: int, text: str) -> None:
    left = _encoded(text)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:  # of a terminal, which somebody else has made so
            if not select.select([], [fd], [], PATIENCE_S)[1]:
                return


def _write_stderr(text: str, pipe: Pipe | None) -> None:
    stream: TextIOBase | Any = sys.stderr
    if stream is None or getattr(stream, "closed", False):
        return
    try:
        fd = stream.fileno()
    except (AttributeError, OSError, ValueError):  # a StringIO, or whatever else a program put there
        stream.write(text)
        stream.flush()
    else:
        if pipe is not None and fd == STDERR:
            pipe.write(_encoded(text))
        else:
            _write(fd, text)


def _is_journal(fd: int) -> bool:
    """Whether what is written there goes to systemd's journal, as its variable says (systemd.exec(5))."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def is_printed_by_others(record: logging.LogRecord) -> bool:
    """Whether a handler that is not ours prints this record."""
    return any(_prints(handler, record.levelno) for handler in _handlers(logging.getLogger(record.name)))


def _handlers(start: logging.Logger) -> Iterator[logging.Handler]:
    logger: logging.Logger | None = start
    while logger is not None:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None


def _prints(handler: logging.Handler, level: int) -> bool:
    if isinstance(handler, (Writer, logging.NullHandler)) or handler.level > level:
        return False
    # What only wants errors and is no stream is an alarm, a mail or an error tracker, and no log to look at.
    return isinstance(handler, logging.StreamHandler) or handler.level <= logging.WARNING


# What structlog does with a record.


def to_logging(logger: Any, name: str, event: MutableMapping[str, Any]) -> tuple[tuple[Record], dict[str, Any]]:
    """Hand a record to the standard library, so that every formatter can make something of it.

    ``ProcessorFormatter`` looks for the two extras and takes the ``dict``, JSON formatters flatten it, others call
    ``str``. A real ``exc_info`` gives all of them the traceback.
    """
    record = Record(event)
    record.line = record.pop("line", None)
    keywords: dict[str, Any] = {"extra": {"_logger": logger, "_name": name}}
    if (error := record.pop("exc_info", None)) is not None:
        record["exc_info"] = keywords["exc_info"] = (type(error), error, _beyond_us(error))
    return (record,), keywords


def _beyond_us(error: BaseException) -> Any:
    """Return the traceback from where the application was called; all of it if it is about us alone."""
    trace = error.__traceback__
    while trace is not None and is_ours(trace.tb_frame):
        trace = trace.tb_next
    return trace or error.__traceback__


def make_logger(logger: logging.Logger) -> Any:
    """Return a structlog logger on top of one of the standard library, whatever ``structlog.configure`` was told."""
    import structlog

    return structlog.wrap_logger(
        logger,
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            to_logging,
        ],
    ).bind()


class _Form(logging.Formatter):
    """Renders our records and, where ours is the handler of the root, everybody's."""

    def __init__(self, shown: Callable[[Mapping[str, Any], float], str]) -> None:
        super().__init__()
        self._shown = shown

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        # By this attribute structlog's ProcessorFormatter too knows what has passed through structlog.
        said: Any = record.msg
        structured = isinstance(said, dict) and hasattr(record, "_logger")
        fields = said.copy() if structured else foreign_fields(record)
        if error := fields.pop("exc_info", None):
            if isinstance(error, BaseException):
                error = (type(error), error, error.__traceback__)
            fields["exception"] = self.formatException(error if isinstance(error, tuple) else sys.exc_info())
        return self._shown(fields, record.created)


def foreign_fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields of somebody else's record, by the names that ours have."""
    extra = {name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD}
    trace = {name: value for name in ("exc_info", "stack_info") if (value := getattr(record, name))}
    at = datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z")
    head = {"timestamp": at, "level": record.levelname.lower(), "logger": record.name, "event": record.getMessage()}
    return {**trace, **head, **extra, "pid": os.getpid()}


class Outlet:
    """Our handlers, and what else was changed on the loggers; ``close()`` leaves all as it was found.

    Raises ``ConfigError`` if a file cannot be opened.
    """

    def __init__(self, config: Config) -> None:
        self._silent = config.log_format == "none" and config.log_file is None
        style = "json" if config.log_format == "none" else config.log_format
        self._writer: logging.Handler = (
            logging.NullHandler() if self._silent else _make_writer("log_file", config.log_file, style)
        )
        self._home = logging.getLogger("prefork")
        self._undo: list[Callable[[], object]] = []
        self._requests: Writer | None = None
        if config.access_log not in {None, "-"}:
            self._requests = _make_writer("access_log", config.access_log, style)
        self._loggers = {name: logging.getLogger(name) for name in LOGGERS}
        self._set_levels(config)
        if self._requests is not None:
            self._set_apart(logging.getLogger("prefork.access"), self._requests)

    def _set_levels(self, config: Config) -> None:
        wanted = {"prefork": config.log_level}
        if config.access_log is not None and LEVELS[config.log_level] > LEVELS["info"]:
            wanted["prefork.access"] = "info"  # asked for by itself
        for name, level in wanted.items():
            logger = logging.getLogger(name)
            # A level that the program has set stands, unless the option asks for more than its default.
            if logger.level == logging.NOTSET or (name == "prefork" and level != "info"):
                self._undo.append(_level_setter(logger, logger.level))
                logger.setLevel(LEVELS[level])

    def _set_apart(self, logger: logging.Logger, writer: Writer) -> None:
        """Let requests have a file of their own, and be nowhere else."""
        before = logger.propagate
        logger.addHandler(writer)
        logger.propagate = False

        def undo() -> None:
            logger.removeHandler(writer)
            logger.propagate = before

        self._undo.append(undo)

    @property
    def has_file(self) -> bool:
        """Whether records go to a file."""
        return isinstance(self._writer, Writer) and self._writer.path is not None

    @property
    def access_writer(self) -> Writer | None:
        """What writes that requests were answered; ``None`` if it is not us."""
        writer = self._requests or self._writer
        return writer if isinstance(writer, Writer) else None

    def others_want_requests(self) -> bool:
        """Whether somebody else has put up a handler, a filter or a level for the logger of requests."""
        logger = logging.getLogger("prefork.access")
        theirs = (one for one in _handlers(logger) if not isinstance(one, (Writer, logging.NullHandler)))
        return bool(logger.filters) or not logger.isEnabledFor(logging.INFO) or any(theirs)

    def write(self, logger: str, level: str, name: str, fields: Mapping[str, Any]) -> bool:
        """Write a record if it concerns nobody but us; else return ``False``, and structlog shall have it.

        The line is the same. To go through structlog costs five times as much, and a worker that is replaced four
        records.
        """
        source, number = self._loggers[logger], LEVELS[level]
        if not source.isEnabledFor(number):
            return True
        if self.others_listen(logger) or bound_context():
            return False
        now = datetime.now(UTC)
        stamp = now.isoformat().replace("+00:00", "Z")
        record = {"timestamp": stamp, "level": level, "logger": logger, "event": name, **fields}
        if "exc_info" in fields:
            # Through logging: what collects errors (Sentry) hears of them there without any handler.
            (made,), keywords = to_logging(source, level, record)
            about = keywords["exc_info"], None, keywords["extra"]
            source.handle(source.makeRecord(logger, number, "", 0, made, (), *about))
            return True
        for handler in _handlers(source):
            if isinstance(handler, Writer) and handler.level <= number:
                handler.write([handler.marked(handler.shown(record, now.timestamp()), number)])
        return True

    def others_listen(self, logger: str) -> bool:
        """Whether anybody else has put up a handler or a filter for what goes through ``logger``."""
        source = self._loggers[logger]
        ours = (Writer, logging.NullHandler)
        return bool(source.filters) or not all(isinstance(handler, ours) for handler in _handlers(source))

    def settle(self) -> None:
        """Put right what a program's own set-up has done to ours since the last record.

        ``logging.config`` removes the handlers of the loggers that it configures, and disables those that it does not
        know, which is its default and never meant for a server's log.
        """
        for logger in self._loggers.values():
            logger.disabled = False
        if self._writer in self._home.handlers:
            return
        if self._home.name == "root" and self._home.handlers:
            self._home = self._loggers["prefork"]
        self._home.addHandler(self._writer)

    def adopt_root(self) -> bool:
        """Move our handler to the root, unless the program has one there; return whether it is there now."""
        root = logging.getLogger()
        if self._silent or self._home is root or root.handlers:
            return self._home is root
        self._home.removeHandler(self._writer)
        self._home = root
        root.addHandler(self._writer)
        return True

    def lost(self) -> Iterator[tuple[str, int]]:
        """Yield the names of logs, and how many of their lines were thrown away since the last call."""
        for writer in (self._writer, self._requests):
            if isinstance(writer, Writer) and (lines := writer.take_lost()):
                yield writer.path or "stderr", lines

    def reopen(self) -> Iterator[tuple[str, OSError]]:
        """Open the files anew; yield those that cannot be: what is open stays in use."""
        for writer in (self._writer, self._requests):
            if isinstance(writer, Writer) and writer.path is not None:
                try:
                    writer.reopen()
                except OSError as error:
                    yield writer.path, error

    def close(self) -> None:
        """Take our handlers away, and undo what was changed."""
        self._home.removeHandler(self._writer)
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
        for writer in (self._writer, self._requests):
            if isinstance(writer, Writer):
                writer.close_file()


def _make_writer(option: str, path: str | None, style: str) -> Writer:
    try:
        return Writer(path, style)
    except OSError as error:
        raise _unwritable(option, path, error) from None


def _unwritable(option: str, path: str | None, error: OSError) -> ConfigError:
    return ConfigError("PF105", f"{option} is {path!r}: {error.strerror}", "name a file that can be written")


def check_log_files(config: Config) -> None:
    """Raise ``ConfigError`` if a log file cannot be opened. None is made."""
    for option in ("log_file", "access_log"):
        path = getattr(config, option)
        if path not in {None, "-"} and (error := obstacle(Path(path))) is not None:
            raise _unwritable(option, path, error)


def _level_setter(logger: logging.Logger, level: int) -> Callable[[], None]:
    return lambda: logger.setLevel(level)
