"""Which edit starts the program anew, and what outlives it?

Two processes: the outer one opens the listening sockets, runs the same command again as its child with the sockets
inherited, and starts it anew whenever it ends with exit status 3. So each start has a fresh interpreter, and a client
that comes in between waits in the queue of a socket that was never closed. The inner one is an ordinary server that
looks at the files in its parent's loop (no thread: a process that forks must not have any).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from prefork.config import OPTIONS
from prefork.errors import BindError
from prefork.listeners import open_listeners
from prefork.signals import ORDERS
from prefork.terminal import open_closed_streams
from prefork.values import replace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import FrameType

    from prefork.config import Config
    from prefork.listeners import Listeners

# Not PREFORK_RELOAD: that is the option.
MARK = "_PREFORK_RELOADER"
CHANGED = 3
"""The exit status of a server that wants to be started anew."""
_LOOK = 0.25
"""How often, in seconds, files are looked at while there is no program."""
_RESPITE = 1.0
"""A program that ends at once with status 3 is not started more often than this many seconds apart."""
_PATIENCE = 5.0
"""How much longer than ``stop_delay`` and ``graceful_timeout`` the inner process may take to end before it is killed."""
_MOST_FOLDERS = 2000
"""Beyond so many folders only imported modules are watched: somebody's home is the root."""
_RACY = 2 * 10**9
"""How many nanoseconds old a time stamp must be to be trusted: file systems count in steps of up to two seconds."""
_AGAIN = "it is started again after the next edit"
_FOREIGN = {"__pycache__", "node_modules", "site-packages"}
_ENDING = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP}


# Which files changed?


@dataclass(slots=True)
class Watch:
    """Looks, when it is called, whether a file has changed since the last call, and returns its path.

    Watched are ``files`` (a folder among them stands for all that is in it, of any kind), and the Python files below
    ``roots``; new ones below a root or in such a folder count as changed. ``exclude`` are patterns of whole paths.
    """

    roots: tuple[str, ...]
    files: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    _stamps: dict[str, tuple[int, int] | None] = field(init=False, default_factory=dict)
    _seen: dict[tuple[str, str], tuple[int, list[str]]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._find_new()

    def __call__(self) -> str | None:
        """Return a file that has changed, was removed or is new, ``None`` if nothing happened."""
        for path, stamp in self._stamps.items():
            if (now := _stamp(path)) != stamp:
                self._stamps[path] = now
                return path
        return self._find_new()

    def learn(self, paths: Iterable[str]) -> None:
        """Watch further files, from now on."""
        for path in paths:
            if path not in self._stamps and not any(fnmatch(path, pattern) for pattern in self.exclude):
                self._stamps[path] = _stamp(path)

    def _find_new(self) -> str | None:
        known = len(self._stamps)
        for root in self.roots:
            self._walk(root, only=".py")
        for path in self.files:
            if Path(path).is_dir():
                self._walk(path, only="")
            else:
                self.learn([path])
        return list(self._stamps)[known] if len(self._stamps) > known else None

    def _walk(self, root: str, *, only: str) -> None:
        pending, left = [root], _MOST_FOLDERS
        while pending and left:
            pending += self._look_into(pending.pop(), only)
            left -= 1

    def _look_into(self, folder: str, only: str) -> list[str]:
        """Learn the files of a folder, if it is not as it was when it was read last; return the folders in it."""
        changed, inside = self._seen.get((folder, only), (None, []))
        now = _stamp(folder)
        if now is None or now[0] == changed:
            return inside
        files, inside = _list(folder)
        self.learn(path for path in files if path.endswith(only))
        # A folder that has just changed may change again within the same time stamp: it is read again next time.
        self._seen[folder, only] = (now[0] if time.time_ns() - now[0] > _RACY else -1, inside)
        return inside


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - thousands of them, twice a second  # noqa: PTH116
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _list(folder: str) -> tuple[list[str], list[str]]:
    """Return the files and the folders in a folder, without what is no part of a project."""
    try:
        with os.scandir(folder) as entries:
            inside = list(entries)
    except OSError:
        return [], []
    if any(entry.name == "pyvenv.cfg" for entry in inside):
        return [], []
    # Not the hidden ones: an editor's lock (".#shop.py") is no module.
    shown = [entry for entry in inside if not entry.name.startswith(".")]
    folders = [entry.path for entry in shown if entry.is_dir(follow_symlinks=False) and entry.name not in _FOREIGN]
    return [entry.path for entry in shown if entry.is_file()], folders


def project_roots(folders: Iterable[str]) -> tuple[str, ...]:
    """Return those of ``folders`` that hold somebody's project: no library, not inside of another root."""
    libraries = [os.path.realpath(path) for path in set(sysconfig.get_paths().values())]
    wanted = {os.path.realpath(folder or ".") for folder in folders if os.path.isdir(folder or ".")}  # noqa: PTH112
    # An environment inside of the project is skipped by its pyvenv.cfg; a project inside of /usr/src is none of Python's.
    own = {folder for folder in wanted if folder != "/" and not any(_within(folder, library) for library in libraries)}
    return tuple(
        sorted(folder for folder in own if not any(other != folder and _within(folder, other) for other in own))
    )


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def imported_files() -> list[str]:
    """Return the files of the modules that are loaded, without the standard library's."""
    standard = [os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")]
    installed = {os.path.realpath(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    found = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return sorted(
        path
        for path in found
        if isinstance(path, str)
        and (any(_within(path, place) for place in installed) or not any(_within(path, place) for place in standard))
    )


# In the inner process.


@cache
def _mark() -> str | None:
    # Taken out: a program that the application starts is not inside of this reloader.
    return os.environ.pop(MARK, None)


def inside() -> bool:
    """Return whether this process is the inner one."""
    return _mark() is not None


def inherited_listeners(config: Config) -> Listeners:
    """Return the sockets that the outer process has opened for ``config``; ``BindError`` if they are not there."""
    descriptors = [int(text) for text in (_mark() or "").split(",") if text]
    if not descriptors:
        raise BindError("PF602", "there are no sockets of a reloader", "do not set " + MARK + " yourself")
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return open_listeners(replace(config, bind=tuple(f"fd://{descriptor}" for descriptor in descriptors)))


def watcher(config: Config, *, roots: Sequence[str] = (), files: Sequence[str] = ()) -> Callable[[], str | None]:
    """Return what a pool is given as ``files_changed``: called now and then, it returns the path of a file that changed.

    To be made before the application is loaded, so that an edit meanwhile counts. Modules from outside of the roots
    are watched from the first call on; ``roots`` and ``files`` come on top of what the options name. It also tells if
    the outer process is gone: nobody could stop the server by its terminal any more.
    """
    outer = os.getppid()
    watch = _new_watch(config, roots=roots, files=files)
    modules_known = False

    def look() -> str | None:
        nonlocal modules_known
        if not modules_known:
            modules_known = True
            watch.learn(imported_files())
        return "(the reloader has ended)" if inside() and os.getppid() != outer else watch()

    return look


def _new_watch(config: Config, *, roots: Sequence[str], files: Sequence[str]) -> Watch:
    top = Path(config.chdir or "", config.app_dir)
    return Watch(
        # The folder of the program is on the path, and need not be the current one.
        roots=project_roots([str(top), *roots, *sys.path]),
        files=tuple(str(Path(path).absolute()) for path in (*config.reload_extra_files, *files)),
        exclude=config.reload_exclude_patterns,
    )


# In the outer process.


def run_outer(
    config: Config,
    argv: Sequence[str] | None = None,
    *,
    roots: Sequence[str] = (),
    files: Sequence[str] = (),
    on_listening: Callable[[Sequence[str]], None] | None = None,
) -> int:
    """Run this command, or ``argv``, as a child, anew after each edit; return the exit status.

    A child that ends with status 3 is started anew at once, one that fails after the next edit; 0 is passed on. TERM
    and INT are forwarded, and end it with 0. ``roots`` and ``files`` are watched besides what the options name, and the
    folders of the import path, while there is no child that could. For the main thread. Raises ``BindError`` or
    ``ConfigError``.
    """
    if threading.current_thread() is not threading.main_thread():
        raise OPTIONS["reload"].wrong(True, "no other thread than the main thread gets signals: serve from that one")
    open_closed_streams()
    with open_listeners(config) as listeners:
        listeners.speak(config.scheme)
        if on_listening is not None:
            on_listening([listener.url for listener in listeners])
        outer = _Outer(config, list(argv or [sys.executable, *sys.orig_argv[1:]]), listeners)
        return outer.run(_new_watch(config, roots=roots, files=files))


class _Outer:
    """The process that stays."""

    def __init__(self, config: Config, argv: list[str], listeners: Listeners) -> None:
        self.config, self.argv = config, argv
        self.descriptors = [listener.socket.fileno() for listener in listeners]
        self.child: subprocess.Popen[bytes] | None = None
        self.ending = False

    def run(self, watch: Watch) -> int:
        """Start the child again and again until somebody ends it."""
        before = {number: signal.signal(number, self.forward) for number in ORDERS}
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self.kill)
        try:
            while not self.is_ending():
                began = time.monotonic()
                status = self.run_child()
                if self.is_ending() or status == 0:
                    return 0
                if status != CHANGED:
                    with suppress(OSError, ValueError):  # nobody may read it any more
                        sys.stderr.write(f"prefork: the program ended with status {status}: {_AGAIN} [PF601]\n")
                    self.await_edit(watch)
                elif not edited(watch) and time.monotonic() - began < _RESPITE:
                    time.sleep(_RESPITE)
            return 0
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

    def is_ending(self) -> bool:
        """Tell whether a signal has said that it is over; asked anew each time."""
        return self.ending

    def run_child(self) -> int:
        """Run the child to its end; return the exit status."""
        environment = {**os.environ, MARK: ",".join(map(str, self.descriptors))}
        # A process group of its own: Ctrl-C reaches the outer process alone, and is passed on once and not twice.
        self.child = subprocess.Popen(self.argv, env=environment, pass_fds=self.descriptors, process_group=0)  # noqa: S603
        if self.ending:  # the signal came before there was a child to pass it on to
            self.child.terminate()
        status = self.child.wait()
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.child = None
        return status

    def await_edit(self, watch: Watch) -> None:
        """Return after the next edit, or when it is over. One that was made while the program was loaded counts."""
        while not self.is_ending() and not edited(watch):
            time.sleep(_LOOK)

    def forward(self, number: int, _: FrameType | None) -> None:
        """Pass a signal on. HUP ends: the terminal is gone, and the child is not of its group."""
        if number in _ENDING and not self.ending:
            self.ending = True
            signal.setitimer(signal.ITIMER_REAL, self.config.stop_delay + self.config.graceful_timeout + _PATIENCE)
        if self.child is not None:
            self.child.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)
            if self.ending:  # TTIN stops a child that does not act upon signals yet
                self.child.send_signal(signal.SIGCONT)

    def kill(self, _number: int, _: FrameType | None) -> None:
        """End a child that does not stop."""
        if self.child is not None:
            os.killpg(self.child.pid, signal.SIGKILL)


def edited(watch: Watch) -> bool:
    """Return whether any file has changed, and take note of all that have."""
    found = False
    while watch() is not None:
        found = True
    return found
