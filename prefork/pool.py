"""What does a program own that serves an application?

A ``WorkerPool``: ``serve()`` makes the calling process the parent of the workers, ``start()`` gives the pool a parent
of its own, and leaves the caller free.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from prefork.config import OPTIONS, Config
from prefork.errors import BootError, ConfigError
from prefork.fork_audit import Finding, audit
from prefork.handover import Exchange
from prefork.hooks import Hooks
from prefork.kept import Keeper, keep, keeper_here
from prefork.listeners import Listeners, open_listeners
from prefork.parent import Adapter, Charge, Parent
from prefork.privileges import resolve_ids
from prefork.records import Records
from prefork.supervised import STOP, STOP_QUICKLY, Caller, Supervised, supervise
from prefork.terminal import open_closed_streams
from prefork.values import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from ssl import SSLContext
    from types import TracebackType

    from prefork.records.outlet import Outlet


class Opened(Value, kw_only=True):
    """What was opened with rights that this process has given up since. Its pid file is written as well.

    ``outlet`` takes the records, ``tls`` is made from the option ``cert``.
    """

    outlet: Outlet | None
    tls: SSLContext | None


class WorkerPool:
    """A pool of worker processes that serve one application.

    ``app`` is a WSGI callable, or the name of one: ``"module:attribute"``, ``"module"`` or ``"module:factory()"``.
    Options are given one by one (``bind="127.0.0.1:8000"``, ``max_workers=4``) or as a ``config``.

    The remaining arguments are for frameworks' adapters. ``hygiene`` is called in the parent before every fork,
    ``child_hygiene`` first of all in each worker, ``thread_exit`` in each request thread when its worker leaves,
    ``on_listening`` with the URLs before the app is imported, and ``files_changed`` twice a second: it returns the path
    of a file whose change shall end the pool with exit status 3. ``app_name`` is what the records call ``app``.
    ``listeners`` are open already, and what is ``opened``.

    A pool is used once. It pickles to ``None``: whoever receives a copy of an object that refers to it has no pool.
    Raises ``ConfigError`` for options that are unknown, wrong, or contradict each other.
    """

    def __init__(  # noqa: PLR0913 - keywords, each for itself
        self,
        app: Callable[..., Any] | str,
        *,
        config: Config | None = None,
        hygiene: Sequence[Callable[[], None]] = (),
        child_hygiene: Sequence[Callable[[], None]] = (),
        thread_exit: Callable[[], None] | None = None,
        files_changed: Callable[[], str | None] | None = None,
        on_listening: Callable[[Sequence[str]], None] | None = None,
        app_name: str | None = None,
        listeners: Listeners | None = None,
        opened: Opened | None = None,
        logger: Any = None,
        **options: Any,
    ) -> None:
        if config is not None and options:
            raise TypeError(f"give a config, or options ({', '.join(sorted(options))}), not both")
        self.config = Config.of(**options) if config is None else config
        if self.config.reload and files_changed is None:
            hint = "a pool cannot start its program again: prefork --reload can, or run_prefork(reload=True) with Flask"
            raise OPTIONS["reload"].wrong(True, hint)
        self.hooks = Hooks.of(self.config)
        self._app = app
        self._listeners = listeners
        self._opened = opened
        self.records = Records(self.config, logger=logger, outlet=None if opened is None else opened.outlet)
        self._adapter = Adapter(hygiene, child_hygiene, thread_exit, files_changed, on_listening, app_name)
        self._urls: tuple[str, ...] = ()
        self._began = False
        self._parent_here: int | None = None  # this process, while it serves
        self._supervised: Supervised | None = None

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()

    def __repr__(self) -> str:
        where = " ".join(("WorkerPool", *self._urls))
        runs = self._parent_here is not None or (self._supervised is not None and not self._supervised.ended)
        state = f"running, pid {self.pid}" if runs else "stopped" if self._began else "not started"
        return f"<{where}, {state}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def urls(self) -> tuple[str, ...]:
        """Where the pool listens, with real port numbers; empty before it does."""
        return self._urls

    @property
    def url(self) -> str:
        """The first of ``urls``. Raises ``RuntimeError`` before the pool listens."""
        if not self._urls:
            raise RuntimeError("the pool does not listen yet: call start() first")
        return self._urls[0]

    def serve(self) -> int:
        """Serve until stopped by a signal; return the exit status: 0, 1 if no worker could start, 3 to be reloaded.

        This process becomes the parent of the workers, takes over its signals, and gives them back in the end. In a
        thread other than the main one, which gets no signals, this is ``start()`` and ``wait()``.

        Raises ``BindError``, ``AppNotFound``, ``AppFailed``, ``BootError`` or ``ConfigError`` if the pool cannot be
        brought up.
        """
        if threading.current_thread() is not threading.main_thread():
            self._start()
            status = self.wait()
            assert status is not None  # noqa: RUF100, S101
            return status
        self._begin()
        open_closed_streams()
        keeper = keep(self.config) if self._adapter.files_changed is None else None
        self._parent_here = os.getpid()
        try:
            with self._listening() as listeners:
                return self._lead(listeners, () if keeper is None else keeper.left_behind, keeper, keeper)
        finally:
            self._parent_here = None
            self.records.close()

    def start(self) -> None:
        """Start the pool under a parent of its own, a child of this process, and return when it is ready.

        From any thread; this process's signals stay as they are. The pool stops when ``stop()`` is called, when this
        process ends in whatever way, or by a signal sent to ``pid``.

        Raises what ``serve()`` raises; for what went wrong in the new process that is ``BootError``, whose notes hold
        the traceback.
        """
        if not self._start():
            self.wait()
            raise BootError("PF417", "the pool was stopped before it was ready", "start another one")

    def _start(self) -> bool:
        """Start the pool; return whether it serves, or was stopped before it did."""
        self._begin()
        with self._listening() as listeners:
            known = audit()
            self._supervised = supervise(
                lambda caller: self._be_supervised(listeners, known, caller),
                self.config.stop_delay + self.config.graceful_timeout,
            )
            listeners.release()
        try:
            return self._supervised.await_ready()
        except BaseException:
            self._supervised.stop(STOP_QUICKLY)
            raise

    def stop(self, *, graceful: bool = True) -> None:
        """Stop the pool and wait for its end; a second call does nothing.

        Running requests get ``graceful_timeout`` seconds, or 3 if not ``graceful``. Of a pool that ``serve()``s, this
        asks for the stop and returns at once.
        """
        if self._parent_here == os.getpid():
            os.kill(self._parent_here, signal.SIGTERM if graceful else signal.SIGINT)
        elif self._supervised is not None:
            self._supervised.stop(STOP if graceful else STOP_QUICKLY)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end of a started pool; return its exit status, or ``None`` after ``timeout`` seconds.

        The status is negative, the number of a signal, if its parent was killed. Raises ``RuntimeError`` for a pool
        that was not started.
        """
        if self._supervised is None:
            raise RuntimeError("the pool was not started")
        return self._supervised.wait(timeout)

    @property
    def pid(self) -> int | None:
        """The process id of the parent of the workers, ``None`` while there is none."""
        return self._parent_here if self._supervised is None else self._supervised.pid

    def _begin(self) -> None:
        """Make sure that a pool is used once."""
        if self._began:
            raise BootError("PF410", "the pool was started before", "make a new WorkerPool: each serves once")
        self._began = True

    @contextmanager
    def _listening(self) -> Iterator[Listeners]:
        """Listen for the length of a block."""
        with umask(self.config.umask):
            if self._listeners is None:
                there = keeper_here()
                opened = open_listeners(
                    self.config,
                    owner=resolve_ids(self.config.user, self.config.group),
                    inherited=None if there is None else there.inherited,
                )
            else:
                opened = self._listeners
        with opened as listeners:
            listeners.speak(self.config.scheme)
            self._urls = tuple(listener.url for listener in listeners)
            yield listeners

    def _lead(
        self, listeners: Listeners, known: Sequence[Finding], caller: Caller | None, keeper: Keeper | None = None
    ) -> int:
        """Be the parent of the workers."""
        with umask(self.config.umask), directory(self.config.chdir), _exchange(keeper) as exchange:
            tls = (self._opened and self._opened.tls) or read_certificate(self.config)
            path = self.config.pid_file if self._opened is None else None
            charge = Charge(self, self._app, listeners, self._adapter, known, caller, exchange, keeper, tls, path)
            return Parent(charge).run()

    def _be_supervised(self, listeners: Listeners, known: Sequence[Finding], caller: Caller) -> int:
        """Be the parent of the workers in a process of its own."""
        self._parent_here = os.getpid()  # a hook that stops the pool stops this
        open_closed_streams()
        listeners.adopt()
        with listeners:
            return self._lead(listeners, known, caller)


def _exchange(keeper: Keeper | None) -> AbstractContextManager[Exchange | None]:
    """Return the exchange of an earlier generation, or a new one; of nothing where the system has no such thing."""
    if keeper is not None and keeper.exchange:
        return Exchange.inherited(keeper.exchange)
    return Exchange.open() or nullcontext()


def read_certificate(config: Config) -> SSLContext | None:
    """Return the context of the option ``cert``, if that is given. Its key may be readable to root alone.

    Raises ``ConfigError``, or ``MissingExtra``.
    """
    if config.cert is None:
        return None
    from prefork.certificates import make_context

    return make_context(config)


@contextmanager
def umask(octal: str | None) -> Iterator[None]:
    """Set the umask for the length of a block."""
    if octal is None:
        yield
        return
    before = os.umask(int(octal, 8))
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def directory(path: str | None) -> Iterator[None]:
    """Change the directory for the length of a block; ``ConfigError`` if it cannot be entered."""
    if path is None:
        yield
        return
    before = Path.cwd()
    try:
        os.chdir(path)
    except OSError as error:
        raise ConfigError("PF418", f"chdir is {path!r}", error.strerror or str(error)) from None
    try:
        yield
    finally:
        os.chdir(before)
