"""In which order does a worker start, serve, retire and exit?

It runs in the child, from the fork to the exit. Its main thread never serves a request: it sleeps until the parent,
a signal, the driver or the exit guard has something to say, so nothing that an application does can make it deaf.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # see prefork.signals
import atexit
import ctypes
import enum
import fcntl
import math
import os
import select
import signal
import sys
import threading
import traceback
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import field
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, TextIO

from prefork.config import QUICK_STOP_S
from prefork.drivers import new_driver
from prefork.errors import PreforkError, traceback_of
from prefork.exit_guard import ExitGuard
from prefork.farewell import end_at_once, end_without
from prefork.hooks import IN_WORKERS
from prefork.loading import interface_of, load_app
from prefork.memory import Scales
from prefork.proc import is_alive
from prefork.process_name import set_process_name
from prefork.reception import LINGER, PARTING, Outfit, WorkerFacts
from prefork.reports import BootFailed, Leaving, Ready, Report, Retiring, encode
from prefork.signals import ORDERS, SignalInbox
from prefork.values import Value
from prefork.vitals import record_last_words, send_last_words_to_stderr
from prefork.wsgi.driver import WsgiDriver

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from ssl import SSLContext

    from prefork.config import Config
    from prefork.drivers import Driver
    from prefork.handover import Exchange
    from prefork.hooks import Hooks
    from prefork.listeners import Listeners
    from prefork.records import Records
    from prefork.scoreboard import Row

#: What the parent writes into a lifeline. The end of the file says that the parent is dead.
RELEASE, RETIRE, STOP, STOP_QUICKLY, CLOSE_AFTER_ANSWER = b"s", b"r", b"t", b"q", b"c"
REOPEN_LOGS, PING = b"l", b"p"
_NEARLY = 0.9
LAST_S = 0.5
"""How long threads that were given up have to end when their pool stops, and those of a worker that failed."""


class Birth(Value, kw_only=True):
    """All that a worker is given by its parent.

    ``worker`` is its serial number, ``number`` its place; ``born`` the monotonic time of the fork. ``app`` is a
    callable, or without preload the name of one. ``stdin`` has nothing to read. ``row`` is its place on the scoreboard, ``last_words``
    a file for the stacks of its threads if it crashes. ``foreign`` are the parent's descriptors, not for a child to keep.
    ``child_hygiene`` is called first of all, ``thread_exit`` in each request thread when the worker leaves.
    Connections are handed over by the ``exchange``, where there is one. ``keeper`` is the process id of the pool's, if any.
    ``tls`` is the context of OpenSSL that all workers share, for who speaks TLS. ``driver`` is to be reopened, if there
    is one; else the worker makes its own.
    """

    worker: int
    number: int
    generation: int
    budget: int | None
    born: float
    app: Callable[..., Any] | str
    config: Config
    listeners: Listeners
    records: Records
    hooks: Hooks
    reports: socket.socket
    stdin: TextIO
    row: Row
    last_words: int
    foreign: Iterable[int]
    child_hygiene: Sequence[Callable[[], None]]
    thread_exit: Callable[[], None] | None
    exchange: Exchange | None
    keeper: int | None
    tls: SSLContext | None
    driver: WsgiDriver | None


class Worker(Value, kw_only=True):
    """A worker process, as the hooks ``worker_started`` and ``worker_exiting`` are given it, inside of it.

    ``number`` is its place, 0 to ``max_workers`` - 1 and a few more while workers are replaced; ``generation`` counts
    the images of the application; ``app`` is the application; ``exit_guard`` keeps the process alive; ``retire()`` has
    the worker replaced, a successor first, once it has served a request: from any thread, and again does no more.
    """

    number: int
    generation: int
    app: Callable[..., Any]
    config: Config
    exit_guard: ExitGuard
    retire: Callable[[], None]
    pid: int = field(default_factory=os.getpid)


class Resignation:
    """The application's wish that its worker be replaced. Given in any thread; ``wake`` tells the main one."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self.given = False

    def give(self) -> None:
        """Have the worker replaced."""
        self.given = True
        self._wake()


class Phase(enum.Enum):
    """How far a worker is on its way out."""

    SERVING = "serving"
    ANNOUNCED = "announced"  # the parent knows that a successor is needed; serves on
    RELEASED = "released"  # the successor serves; serves on until its own budget is spent
    LEAVING = "leaving"  # takes nothing new, and goes when all is answered and the exit guard is free


def be_worker(birth: Birth, lifeline: int, parents_end: int, mask: set[int]) -> None:
    """Be a worker, from the fork to the exit; ``SystemExit`` with status 1 if it could not start."""
    # From Python 3.13 on multiprocessing does this, and the same at the end, by itself: what was registered in the
    # parent is for the parent, what the application registers in here is run in here.
    bare = sys.version_info < (3, 13)
    if bare:
        atexit._clear()  # noqa: SLF001 - as multiprocessing does
    try:
        inbox = settle(birth, parents_end, mask)
        live(birth, lifeline, inbox)
    except BaseException:
        end_without(None, LAST_S, 1)
        raise
    finally:
        if bare:
            atexit._run_exitfuncs()  # noqa: SLF001 - as multiprocessing does


def settle(birth: Birth, parents_end: int, mask: set[int]) -> SignalInbox:
    """Make the copy of the parent a process of its own."""
    sys.stdin = birth.stdin
    record_last_words(birth.last_words)
    for descriptor in (parents_end, *birth.foreign):
        os.closerange(descriptor, descriptor + 1)  # does not mind if it is closed
    inbox = SignalInbox(*ORDERS)
    inbox.open()  # and never closed: a stray thread that ends a hold at the very end must find the pipe
    _signal.signal(signal.SIGCHLD, _signal.SIG_DFL)
    _signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for clean in birth.child_hygiene:
        clean()
    replace_used_executor()
    set_process_name(birth.config.proc_name, f"worker {birth.number}")
    return inbox


def replace_used_executor() -> None:
    """Give asgiref a new executor if the parent used the present one.

    Its thread stayed in the parent, and the first ``sync_to_async`` of the child would wait for it for ever.
    """
    asgiref = sys.modules.get("asgiref.sync")
    executor = getattr(getattr(asgiref, "SyncToAsync", None), "single_thread_executor", None)
    if asgiref is not None and executor is not None and executor._threads:  # noqa: SLF001 - nothing else tells
        asgiref.SyncToAsync.single_thread_executor = type(executor)(max_workers=1)


def live(birth: Birth, lifeline: int, inbox: SignalInbox) -> None:
    """Start, serve and leave."""
    life: Life | None = None
    try:
        life = boot(birth, lifeline, inbox)
        mind_forks(life.disown)
        life.driver.run(life.begin, life.run)
    except BaseException as error:  # an app that calls sys.exit() while it is imported has failed as well
        if life is not None and life.began:
            raise
        code, summary = "PF401", "".join(traceback.format_exception_only(error)).strip()
        if isinstance(error, PreforkError):
            code, summary = error.code, str(error)
        send(birth.reports, BootFailed(birth.worker, traceback=traceback_of(error), summary=summary, code=code))
        raise SystemExit(1) from None
    life.leave()
    if life.driver.stuck:
        end_at_once()
    if life.driver.given_up:
        patience = LAST_S if life.stops else birth.config.graceful_timeout
        end_without(life.driver.given_up, patience, wait=life.await_stop)


def boot(birth: Birth, lifeline: int, inbox: SignalInbox) -> Life:
    """Do all that has to be done before the driver runs."""
    config, records = birth.config, birth.records.bind(role="worker", worker=birth.number, generation=birth.generation)
    early = bytearray()
    with ExitStack() as alone:
        # A driver that is to be reopened is one for WSGI: to look at the application once more is dear in a new process.
        may_be_asgi = birth.driver is None
        is_asgi = may_be_asgi and not isinstance(birth.app, str) and interface_of(birth.app, config) == "asgi"
        if isinstance(birth.app, str) or birth.hooks.worker_started or is_asgi:
            alone.enter_context(listening_alone(lifeline, early, birth.listeners))
        app = load_app(birth.app, config.app_dir, config.interface) if isinstance(birth.app, str) else birth.app
        birth.hooks.load(config.app_dir, *IN_WORKERS)
        for wanted in birth.hooks.access_log_filter:
            assert callable(wanted)
            records.choose_requests(wanted)
        locate = where_held if config.log_level == "debug" else str
        guard = ExitGuard(clock=monotonic, on_free=inbox.wake, locate=locate)
        resignation = Resignation(inbox.wake)
        worker = Worker(
            number=birth.number,
            generation=birth.generation,
            app=app,
            config=config,
            exit_guard=guard,
            retire=resignation.give,
        )
        birth.hooks.run_or_raise("worker_started", worker)
        outfit = Outfit(
            facts=WorkerFacts(number=birth.number, generation=birth.generation, retire=resignation.give),
            records=records,
            exit_guard=guard,
            thread_exit=birth.thread_exit,
            row=birth.row,
            exchange=birth.exchange,
            tls=birth.tls,
        )
        driver: Driver
        if birth.driver is None:
            driver = new_driver(app, birth.listeners, config, outfit)
        else:
            driver = birth.driver
            birth.driver.reopen(outfit)
        driver.announce_at(announcement(birth.budget))
        if may_be_asgi and interface_of(app, config) == "asgi":
            inbox.give_way()
        life = Life(birth, worker, driver, lifeline, inbox, records, resignation, alone.pop_all())
        life.early = early
        return life


def mind_forks(disown: Callable[[], None]) -> None:
    """Have ``disown`` called in each child that the application forks, before a signal can come in there."""
    own = threading.local()

    def hold_signals() -> None:
        own.mask = {*_signal.pthread_sigmask(signal.SIG_BLOCK, ORDERS)}

    def let_signals_in() -> None:
        _signal.pthread_sigmask(signal.SIG_SETMASK, own.mask)

    def be_a_child() -> None:
        try:
            disown()
        finally:
            let_signals_in()

    os.register_at_fork(before=hold_signals, after_in_parent=let_signals_in, after_in_child=be_a_child)


def where_held() -> str:
    """Return the stack of who takes a hold, without the guard's own part of it."""
    return "".join(traceback.format_stack()[:-2])


@contextmanager
def listening_alone(lifeline: int, early: bytearray, listeners: Listeners) -> Iterator[None]:
    """End the process if its parent dies within the block, or the pool stops; other orders are kept in ``early``.

    A worker that starts serves nobody yet, and is busy with the application's code: it cannot watch the lifeline, so the
    system is asked to tell of it. If somebody waits in the queues when the pool stops it goes on, and serves him.
    """

    def look(*_: object) -> None:
        with suppress(BlockingIOError):
            while orders := os.read(lifeline, 64):
                early.extend(orders)
            os._exit(1)
        if STOP_QUICKLY in early or (STOP in early and not listeners.awaited):
            end_at_once()

    before = signal.signal(signal.SIGIO, look)
    flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC | os.O_NONBLOCK)
    try:
        look()
        yield
    finally:
        # In this order: what comes meanwhile is looked at, and a look never waits.
        fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_NONBLOCK)
        signal.signal(signal.SIGIO, before)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, flags)


def rehearse(
    app: Callable[..., Any] | str,
    listeners: Listeners,
    config: Config,
    records: Records,
    thread_exit: Callable[[], None] | None,
    exchange: Exchange | None,
    tls: SSLContext | None,
) -> WsgiDriver | None:
    """Do in the parent, once, what in each worker would cost as much as all the rest: import modules, make a driver.

    Returns the driver, for the workers to reopen; ``None`` if the application is not there yet.
    """
    known = callable(app)
    target = app if callable(app) else _app_of(config.interface)
    outfit = Outfit(
        facts=WorkerFacts(number=0, generation=0, retire=lambda: None),
        records=records,
        exit_guard=ExitGuard(),
        thread_exit=thread_exit,
        exchange=exchange,
        tls=tls,
    )
    driver = new_driver(target, listeners if known else (), config, outfit)
    driver.close()
    return driver if known and isinstance(driver, WsgiDriver) else None


def _app_of(interface: str) -> Callable[..., Any]:
    """Return something that looks like an application which is not loaded yet."""
    if interface == "asgi":
        return lambda _scope, _receive, _send: None
    return lambda _environ, _start: ()


def send(reports: socket.socket, report: Report) -> None:
    """Tell the parent, and wait until it has room. That it is dead is noticed by the lifeline, not here."""
    with suppress(OSError):
        reports.send(encode(report))


class Life:
    """A worker that serves, and then leaves."""

    def __init__(
        self,
        birth: Birth,
        worker: Worker,
        driver: Driver,
        lifeline: int,
        inbox: SignalInbox,
        records: Records,
        resignation: Resignation,
        alone: ExitStack,
    ) -> None:
        self.birth, self.worker, self.driver, self.records = birth, worker, driver, records
        self.lifeline, self.inbox, self.resignation = lifeline, inbox, resignation
        self.alone = alone  # what is in force while nobody watches the lifeline
        self.early = bytearray()  # what was ordered meanwhile
        self.began = False
        self.ended = False
        self.stops = False  # with the whole pool, which kills who does not
        self.scales = Scales(monotonic) if birth.config.max_memory else None
        self.phase = Phase.SERVING
        self.tell_at = math.inf  # when to tell of what keeps a worker that is to stop
        self.due = birth.budget  # requests after which it retires, once it is released; None: never by itself
        self.announce_at = announcement(birth.budget)
        self.poller = select.poll()
        self.sources = {lifeline: self.obey, inbox.fileno(): self.heed, driver.monitor_fd: driver.hear}
        for descriptor in self.sources:
            self.poller.register(descriptor, select.POLLIN)

    def begin(self) -> None:
        """Report ready: the driver serves, and ``run`` comes next."""
        self.alone.close()
        self.began = True
        send(self.birth.reports, Ready(self.birth.worker, boot_s=monotonic() - self.birth.born))

    def disown(self) -> None:
        """Let go of all that is a worker's, in a child that the application has forked.

        It has copies of everything: clients would not see the end of their connections as long as it lives, nor would the
        port be free without us, and we should hear the signals that are for it.
        """
        self.driver.stray = True
        self.inbox.disown()
        send_last_words_to_stderr(self.birth.last_words)
        ours = {self.lifeline, self.birth.reports.fileno(), *self.inbox.descriptors, *self.driver.descriptors}
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in ours:
            # Not closed: the objects that have these would some day close what has the same number by then.
            os.dup2(nothing, descriptor, inheritable=False)
        os.close(nothing)

    def run(self) -> None:
        """Watch over what is served, until there is nothing left to do, and over its end."""
        try:
            self.carry_out(self.early)
            self.watch_over()
            self.ended = True
            self.beat()
        finally:
            self.driver.end()
            while not self.driver.over:
                self.listen(None)

    def watch_over(self) -> None:
        """Watch over what is served, until there is nothing left to do."""
        while True:
            patience = self.driver.tick()
            if self.scales is not None:
                patience = self.scales.look(patience)
            patience = self.tell_of_holds(patience)
            self.take_stock()
            if self.phase is Phase.LEAVING and self.driver.drained and self.worker.exit_guard.free:
                return
            self.listen(patience)

    def listen(self, patience: int | None) -> None:
        """Wait for what anybody has to say, for so many milliseconds, and act upon it."""
        for descriptor, _ in self.poller.poll(patience):
            self.sources[descriptor]()

    def beat(self) -> None:
        """Show that this worker answers; when nothing is served any more the application may take its time, without."""
        self.birth.row.beat(math.inf if self.ended else monotonic())

    # The way out, in its order: announce, be released, retire, leave.

    def take_stock(self) -> None:
        """Compare what has been served with the budget."""
        served = self.driver.served
        if self.phase is Phase.SERVING and self.announce_at is not None and served >= self.announce_at:
            self.announce("max_requests")
        # At least one request comes first: workers that want to go at once would be replaced without end.
        if self.resignation.given and served:
            self.resign("app")
        if self.driver.overdue:
            self.resign("request_timeout")
        if self.scales is not None and self.scales.private > self.birth.config.max_memory and served:
            self.resign("max_memory", memory_bytes=self.scales.private)
        if self.phase is Phase.RELEASED and self.driver.leaving:
            self.phase = Phase.LEAVING

    def announce(self, reason: str, memory_bytes: int = 0) -> None:
        """Ask for a successor, and serve on until it is there."""
        self.phase = Phase.ANNOUNCED
        send(self.birth.reports, Retiring(self.birth.worker, reason, self.driver.served, memory_bytes))

    def resign(self, reason: str, memory_bytes: int = 0) -> None:
        """Retire as soon as a successor serves, whatever is left of the budget."""
        if self.due == 0:
            return
        self.due = 0
        if self.phase is Phase.SERVING:
            self.announce(reason, memory_bytes)
        elif self.phase is Phase.RELEASED:
            self.driver.retire_after(0)

    def release(self) -> None:
        """Retire when the budget is spent: the successor serves, so that nothing is lost."""
        if self.phase is not Phase.LEAVING:
            self.phase = Phase.RELEASED
            if self.due is not None:
                self.driver.retire_after(self.due)

    def retire(self) -> None:
        """Leave the listeners to the others, and finish politely what is there."""
        if self.phase is not Phase.LEAVING:
            self.phase = Phase.LEAVING
            self.driver.retire()

    def stop(self, *, quick: bool) -> None:
        """Stop together with the whole pool: there is nobody to leave anything to."""
        self.phase, self.stops = Phase.LEAVING, True
        # Under Server::Starter the next generation serves already: nobody waits for us to be gone.
        limit = QUICK_STOP_S if quick else self.birth.config.graceful_timeout
        self.tell_at = min(self.tell_at, monotonic() + _NEARLY * limit)
        patience = PARTING if self.birth.listeners.starter_generation is None else LINGER
        self.driver.stop(quick=quick, patience=patience)

    def tell_of_holds(self, patience: int | None) -> int | None:
        """Record what keeps a worker whose time to stop is nearly over; return for how many milliseconds to sleep."""
        left = self.tell_at - monotonic()
        if left == math.inf:
            return patience
        if left > 0:
            wait = math.ceil(left * 1000)
            return wait if patience is None else min(patience, wait)
        self.tell_at = math.inf
        if holds := self.worker.exit_guard.holds:
            now = monotonic()
            told = [{"why": hold.why, "age_s": round(now - hold.since, 3), "where": hold.where} for hold in holds]
            self.records.emit("worker.held", holds=told, code="PF431")
        return patience

    def leave(self) -> None:
        """Say goodbye: nothing is served any more."""
        self.birth.hooks.run("worker_exiting", self.worker, records=self.records)
        self.driver.close()
        served, budget = self.driver.served, self.birth.budget
        overrun = 0 if budget is None else max(0, served - budget)
        send(self.birth.reports, Leaving(self.birth.worker, served, overrun, self.driver.stuck))

    # Who may say so: the parent, a signal, the parent's death.

    def obey(self) -> None:
        """Do what the parent has written into the lifeline."""
        orders = os.read(self.lifeline, 64)
        if not orders:
            self.outlive_parent()
        self.carry_out(orders)

    def carry_out(self, orders: Iterable[int]) -> None:
        """Carry out orders, in their order."""
        for order in orders:
            self.perform(bytes([order]))

    def perform(self, order: bytes) -> None:
        """Carry out one order; one that is not known is from a newer parent and not for us."""
        match order:
            case b"s":
                self.release()
            case b"r":
                self.retire()
            case b"t":
                self.stop(quick=False)
            case b"q":
                self.stop(quick=True)
            case b"l":
                self.records.reopen()
            case b"c":
                self.driver.close_after_answer()
            case b"p":
                self.driver.pulse(self.beat)

    def heed(self) -> None:
        """Act upon signals sent to this worker alone. Only TERM means something: retire, a successor first."""
        if signal.SIGTERM in self.inbox.read():
            self.resign("signal")

    def await_stop(self, patience: float) -> None:
        """Wait so many seconds when all else is over, or until the pool stops too, which kills who does not."""
        orders, until = select.poll(), monotonic() + patience
        orders.register(self.lifeline, select.POLLIN)
        while (left := until - monotonic()) > 0 and orders.poll(left * 1000):
            said = os.read(self.lifeline, 64)
            if not said or STOP in said or STOP_QUICKLY in said:
                sleep(min(left, LAST_S))
                return

    def outlive_parent(self) -> None:
        """Leave without a parent, which would have set the limit: the kernel does, whatever this process is stuck in."""
        self.poller.unregister(self.lifeline)
        # Not signal.signal(): that is for the main thread, where an event loop may be.
        ctypes.CDLL(None).signal(int(signal.SIGALRM), None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.setitimer(signal.ITIMER_REAL, max(self.birth.config.graceful_timeout, 0.001))
        if self.birth.keeper is not None and is_alive(self.birth.keeper):
            # It starts the next pool at once: who is idle waits for that in the exchange, and newcomers in the queues.
            self.retire()
        else:
            self.stop(quick=False)


def announcement(budget: int | None) -> int | None:
    """Return after how many requests a worker asks for its successor: a quarter of the budget before its end.

    At least one request comes first: workers that ask at once would be replaced without end, and without serving.
    """
    return None if budget is None else max(1, budget - max(1, budget // 4))
