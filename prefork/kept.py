"""How does a pool live under a keeper?

Before anything is loaded the process that was started forks: the child goes on as if it were it, and the process itself
becomes the keeper, which has the process id and hardly any memory. From then on the two talk over a pair of sockets,
one JSON object a message: orders come down, and what the pool listens on and how its start went goes up.
"""

from __future__ import annotations

import json
import multiprocessing.process
import os
import signal
import socket
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from prefork import origin
from prefork.errors import BootError, PreforkError, traceback_of
from prefork.fork_audit import Finding, audit
from prefork.sd_notify import Notifier, message
from prefork.signals import ORDERS, held_back
from prefork.supervised import Caller
from prefork.terminal import is_terminal, open_closed_streams

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, MutableMapping, Sequence

    from prefork.config import Config
    from prefork.handover import Exchange
    from prefork.listeners import Listeners

MESSAGE_LIMIT = 128 * 1024


class Keeper(Caller):
    """The keeper, as the pool's parent sees it; ``orders`` and ``answer`` are the same socket.

    ``why`` this generation was started is ``"first"``, ``"deploy"`` or ``"restart"``; ``workers`` is how many are wanted
    if somebody has changed that, ``began`` the monotonic time of the start. ``inherited`` has the descriptors of
    listening sockets for each text of the option ``bind``, ``exchange`` those of the exchange.
    ``left_behind`` is what was not safe to fork when this process was.
    """

    generation: int = 1
    why: str = "first"
    workers: int | None = None
    began: float = field(default_factory=monotonic)
    inherited: Mapping[str, Sequence[int]] = field(default_factory=dict)
    exchange: Sequence[int] = ()
    left_behind: Sequence[Finding] = ()

    @property
    def deploying(self) -> bool:
        """Whether another generation serves, and goes on if this one fails."""
        return self.why == "deploy" and origin.waits_for_us()

    @property
    def goes_on(self) -> bool:
        """Whether the service goes on if this generation fails: another one serves, or the keeper tries again."""
        return self.why != "first" and origin.waits_for_us()

    def read(self) -> list[dict[str, Any]]:
        """Return the next order; none: the keeper is gone."""
        message = b""
        with suppress(ConnectionResetError):  # it died before it had read all that we said
            message = os.read(self.orders, MESSAGE_LIMIT)
        return [json.loads(message)] if message else []

    def tell(self, answer: dict[str, str]) -> None:
        """Say why the pool cannot be brought up; that it serves is said by ``tell_serving``."""
        if "message" in answer:
            origin.tell_failure(BootError("", ""), reason=answer["message"], trace=answer["traceback"])

    def tell_listening(self, config: Config, listeners: Listeners) -> None:
        """Let the keeper hold what the next pool inherits; it closes that, and removes the files, when all is over."""
        known = {fd for fds in self.inherited.values() for fd in fds}
        told, new = [], []
        for listener in listeners:
            fd = listener.socket.fileno()
            file = None if listener.file is None else [listener.address.path, *listener.file]
            told.append({"bind": listener.bind, "fd": fd if fd in known else None, "file": file})
            new += [] if fd in known else [fd]
            known.discard(fd)
        for fd in known:
            os.close(fd)  # nobody listens there any more, from this pool on
        log = config.log_format
        if log == "auto":
            log = "console" if config.log_file is None and is_terminal(sys.stderr) else "json"
        elif log == "none" and config.log_file is not None:
            log = "json"
        self.say(
            "listening",
            new,
            listeners=told,
            pid_file=_absolute(config.pid_file),
            boot_timeout=config.boot_timeout,
            log=log,
            # As root it would write to whatever somebody else puts there, who may write to the directory.
            log_file=_absolute(config.log_file) if config.user is config.group is None else None,
        )
        listeners.disown()

    def tell_exchange(self, exchange: Exchange) -> None:
        """Let the keeper hold the exchange for the next pool, if it is not the one that it has given to this."""
        if not self.exchange:
            self.say("exchange", exchange.descriptors)

    def tell_hearing(self, config: Config, workers: int) -> None:
        """Say that orders are read from now on, and that so many workers are wanted."""
        self.say("hears", workers=workers, boot_timeout=config.boot_timeout)

    def tell_serving(self, config: Config, workers: int) -> None:
        """Say that the pool is ready: the one that served until now may go."""
        origin.served()
        self.say("ready", workers=workers, boot_timeout=config.boot_timeout)

    def tell_leaving(self) -> None:
        """Say that this pool takes nothing new any more."""
        self.say("leaving")

    def notifier(self, environ: MutableMapping[str, str]) -> Notifier:
        """Return the line to systemd, which takes nothing but from the process that it has started."""
        return Relay(self, Notifier.take(environ, self.pid))

    def say(self, said: str, descriptors: Sequence[int] = (), **facts: Any) -> None:
        """Send one message, and descriptors along with it. That the keeper is dead is noticed elsewhere."""
        with suppress(OSError), socket.socket(fileno=os.dup(self.answer)) as line:
            socket.send_fds(line, [json.dumps({"said": said, **facts}).encode()], list(descriptors))


class Relay(Notifier):
    """A line to systemd that leads through the keeper."""

    def __init__(self, keeper: Keeper, line: Notifier) -> None:
        self.address, self.period, self.beat_at = line.address, line.period, line.beat_at
        self._keeper = keeper

    def tell(self, **fields: Any) -> None:
        """Send a message."""
        if self.address:
            self._keeper.say("notify", text=message(**fields).decode())


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).absolute())


_known: list[Keeper] = []


def keeper_here() -> Keeper | None:
    """Return the keeper of this process, ``None`` if it has none."""
    if not _known and origin.mark is not None:
        _known.append(_of_mark(origin.mark))
    return _known[0] if _known else None


def _of_mark(mark: Mapping[str, Any]) -> Keeper:
    inherited: dict[str, list[int]] = {}
    for bind, fd in mark["listeners"]:
        inherited.setdefault(bind, []).append(fd)
    return Keeper(
        pid=mark["keeper"],
        orders=mark["line"],
        answer=mark["line"],
        mask={*signal.pthread_sigmask(signal.SIG_BLOCK, ())},
        generation=mark["generation"],
        why=mark["why"],
        workers=mark["workers"],
        began=mark["began"],
        inherited=inherited,
        exchange=mark["exchange"],
    )


# How there comes to be one.


def keep(config: Config) -> Keeper | None:
    """Return the keeper of this process; make it one first if it shall have one and can.

    For the main thread, and before the application is loaded where that is possible: the caller is another process
    afterwards, without the threads of the one that it was.
    """
    open_closed_streams()
    if (known := keeper_here()) is not None or not config.redeploy or config.reload or not _can_be_kept():
        return known
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # there may be none, or one that is closed
            stream.flush()
    began, pid = monotonic(), os.getpid()
    left_behind = audit() if threading.active_count() > 1 else ()
    with held_back(*ORDERS, signal.SIGCHLD) as mask:
        if child := os.fork():
            theirs.close()
            _become_keeper(ours, child, mask, config.proc_name)
    ours.close()
    multiprocessing.process._children.clear()  # type: ignore[attr-defined]  # noqa: SLF001 - they are not this process's
    if os.environ.get("LISTEN_PID") == str(pid):
        os.environ["LISTEN_PID"] = str(os.getpid())  # what systemd passes on is for whoever serves
    line = theirs.detach()
    _known.append(Keeper(pid, line, line, mask, began=began, left_behind=left_behind))
    return _known[0]


def _can_be_kept() -> bool:
    return (
        sys.platform == "linux"
        and threading.current_thread() is threading.main_thread()
        and os.access(sys.executable or "", os.X_OK)
        and _program() is not None
    )


def _program() -> str | None:
    from prefork import keeper

    return runnable(keeper.__file__, getattr(keeper, "__cached__", None))


def runnable(source: str, compiled: str | None) -> str | None:
    """Return the file to run of a module: its bytecode if it can be, for the compiler would leave 2 MB behind in it.

    Where no bytecode is written, that of an older source may lie there (PEP 552). ``None`` if there is no file.
    """
    with suppress(OSError):
        now = Path(source).stat()
        with Path(compiled or "").open("rb") as file:
            _, flags, made_at, size = (int.from_bytes(file.read(4), "little") for _ in range(4))
        if flags or (made_at, size) == (int(now.st_mtime) & 0xFFFFFFFF, now.st_size & 0xFFFFFFFF):
            return compiled
    return source if Path(source).is_file() else None


def _become_keeper(line: socket.socket, pool: int, mask: set[int], name: str | None) -> None:
    given = {
        "pool": pool,
        "line": line.fileno(),
        "mark": origin.MARK,
        "mask": sorted(mask),
        "directory": origin.DIRECTORY,
        "umask": origin.UMASK,
        "name": name,
    }
    reader, writer = os.pipe()
    os.write(writer, json.dumps(given).encode())
    os.close(writer)
    for number in range(3):
        if not os.get_inheritable(number):  # the program was started without the stream, and has a file there
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
    line.set_inheritable(True)
    os.set_inheritable(reader, True)
    program = [sys.executable, "-I", "-S", _program() or "", str(reader), *origin.COMMAND]
    try:
        os.execve(sys.executable, program, origin.ENVIRONMENT)  # noqa: S606 - it is this very interpreter
    except OSError as error:
        os.kill(pool, signal.SIGKILL)
        os.waitpid(pool, 0)
        hint = "give --no-redeploy to do without"
        raise BootError("PF420", f"the keeper cannot be started: {error}", hint) from error


# What goes wrong before a pool serves.


@contextmanager
def failures_told() -> Iterator[None]:
    """Tell the keeper what is raised in a block, besides."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        known = isinstance(error, PreforkError)
        origin.tell_failure(error, reason=str(error) if known else "", trace=traceback_of(error))
        raise
