"""In which order does the parent make its system calls around fork, wait and stop?

One process, one thread, one loop: what happens becomes events, the supervisor answers with actions, and ``perform``
lists all that a parent can do. No decision is made here.
"""

from __future__ import annotations

import gc
import math
import os
import select
import signal
import sys
from collections import deque
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random
from time import monotonic
from typing import TYPE_CHECKING, Any, assert_never

from prefork import __version__, origin
from prefork.children import Child, fork_child, inherits_orphans, open_pidfd, reap_orphans
from prefork.config import QUICK_STOP_S
from prefork.errors import BootError, PreforkError, traceback_of
from prefork.fork_audit import audit
from prefork.heap import fill_holes, forget_lookups
from prefork.hooks import IN_WORKERS
from prefork.loading import load_app
from prefork.pid_file import pid_file
from prefork.privileges import drop
from prefork.probe import ask, config_behind, open_door
from prefork.process_name import set_process_name
from prefork.reports import MESSAGE_LIMIT, BootFailed, Leaving, Ready, Report, Retiring, decode, open_reports
from prefork.scoreboard import Scoreboard
from prefork.sd_notify import Notifier
from prefork.signals import ORDERS, SignalInbox, StoppedEarly
from prefork.succession import Door, Predecessor, Succession, address_of, has_younger_sibling
from prefork.supervisor import (
    Action,
    CloseAfterAnswer,
    CloseListeners,
    Emit,
    Event,
    Examine,
    FilesChanged,
    Finish,
    ForkFailed,
    Kill,
    LeaveListeners,
    Look,
    Ping,
    Release,
    ReopenLogs,
    Retire,
    SignalReceived,
    Spawn,
    Stop,
    Superseded,
    Supervisor,
    Tick,
    WorkerBootFailed,
    WorkerExamined,
    WorkerExited,
    WorkerLeaving,
    WorkerPulse,
    WorkerReady,
    WorkerRetiring,
)
from prefork.values import Value, fields_of
from prefork.vitals import OomKills, Vitals, arrange_last_words, give_up_last_words, is_stopped
from prefork.warm_up import warm_up
from prefork.worker import (
    CLOSE_AFTER_ANSWER,
    PING,
    RELEASE,
    REOPEN_LOGS,
    RETIRE,
    STOP,
    STOP_QUICKLY,
    Birth,
    be_worker,
    rehearse,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
    from ssl import SSLContext

    from prefork.fork_audit import Finding
    from prefork.handover import Exchange
    from prefork.kept import Keeper
    from prefork.listeners import Listener, Listeners
    from prefork.pool import WorkerPool
    from prefork.supervised import Caller
    from prefork.wsgi.driver import WsgiDriver

#: What ends a pool that is started in the place of one that died: the keeper tells of it, and tries again.
POOL_FAILURES = frozenset({"pool.boot_failed"})
#: What ends a deploy: the generation that serves goes on.
BOOT_FAILURES = POOL_FAILURES | {"worker.boot_failed"}
#: How often the door is tried in which an older pool of the same generation of Server::Starter stands, in seconds.
TRY_DOOR_S = 0.05
#: How often changed files are looked for, in seconds.
LOOK_AT_FILES = 0.5


class Adapter(Value):
    """What a framework's adapter has its say in (see ``WorkerPool``)."""

    hygiene: Sequence[Callable[[], None]] = ()
    child_hygiene: Sequence[Callable[[], None]] = ()
    thread_exit: Callable[[], None] | None = None
    files_changed: Callable[[], str | None] | None = None
    on_listening: Callable[[Sequence[str]], None] | None = None
    app_name: str | None = None


class Charge(Value):
    """What a parent is given to look after.

    ``known`` is what an earlier fork audit has found; ``caller`` is there when another process orders what is to be
    done: the program that has started the pool, or its ``keeper``.
    ``exchange`` is what workers hand connections over by, ``None`` where the system has no such thing. ``tls`` is the
    context that is made from the option ``cert``, ``pid_file`` is still to be written.
    """

    pool: WorkerPool
    app: Callable[..., Any] | str
    listeners: Listeners
    adapter: Adapter
    known: Sequence[Finding] = ()
    caller: Caller | None = None
    exchange: Exchange | None = None
    keeper: Keeper | None = None
    tls: SSLContext | None = None
    pid_file: str | None = None


class Parent:
    """The process that forks the workers and sees them die."""

    def __init__(self, charge: Charge) -> None:
        self.charge, self.adapter, self.config = charge, charge.adapter, charge.pool.config
        self.keeper = charge.keeper
        self.generation = 1 if self.keeper is None else self.keeper.generation
        self.hooks = charge.pool.hooks
        self.records = charge.pool.records.bind(role="parent", generation=self.generation)
        workers, keeper = (None, None) if self.keeper is None else (self.keeper.workers, self.keeper.pid)
        self.supervisor = Supervisor(self.config, Random(), workers, keeper)  # noqa: S311 - it spreads budgets, it keeps no secret
        self.scoreboard = Scoreboard(self.supervisor.workers_wanted, 2 * self.config.threads)
        self.oom_kills = OomKills()
        self.killed: set[int] = set()  # by our order
        self.children: dict[int, Child] = {}
        self.vitals: dict[int, Vitals] = {}
        self.dead: list[Child] = []  # told to the supervisor; let go of once their records are written
        self.unasked: deque[Event] = deque()  # what an action has led to
        self.signals = SignalInbox(*ORDERS, signal.SIGCHLD)
        self.poller = select.poll()
        self.caller_pidfd = None if charge.caller is None else open_pidfd(charge.caller.pid)
        # Who was started by a program, or is one of Server::Starter's generations, does not speak for the whole service.
        speaks = charge.caller in {None, charge.keeper} and charge.listeners.starter_generation is None
        notifier = Notifier.take(os.environ, os.getpid()) if self.keeper is None else self.keeper.notifier(os.environ)
        self.notifier = notifier if speaks else Notifier({}, os.getpid())
        self.app = charge.app
        self.driver: WsgiDriver | None = None  # for the workers to reopen
        self.tls = charge.tls
        self.exchange = charge.exchange
        self.older: Predecessor | None = None
        self.door: Door | None = None
        self.doorstep = ""  # where to open it, while it is not
        self.began = monotonic()
        self.requests = 0  # of workers that have left
        self.look_at = 0.0  # when to look for changed files
        self.forked = False
        self.filler: list[bytes] = []  # lies where new objects of workers should not
        self.thawed = gc.get_freeze_count() == 0  # whether what is frozen is ours to thaw in the end

    def run(self) -> int:
        """Serve until the supervisor says that it is over; return the exit status.

        Raises ``PreforkError`` if the pool cannot be brought up, before any worker was forked.
        """
        with ExitStack() as stack:
            stack.callback(self.part)
            stack.enter_context(self.signals)
            if self.charge.caller is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, self.charge.caller.mask)
            self.reports, self.workers_end = (stack.enter_context(end) for end in open_reports())
            self.stdin = stack.enter_context(Path(os.devnull).open(encoding="utf-8"))
            keeper, started = None if self.keeper is None else self.keeper.pid, self.charge.listeners.starter_generation
            stack.enter_context(pid_file(self.charge.pid_file, keeper, replaces_sibling=started is not None))
            if self.keeper is not None:
                self.keeper.tell_listening(self.config, self.charge.listeners)
            stack.callback(self.restore)
            self.init = inherits_orphans()
            try:
                self.boot()
                with self.workers_cared_for():
                    self.loop()
            except StoppedEarly as early:
                name = early.signal.name.removeprefix("SIG")
                self.records.emit("pool.stopping", signal=name, graceful=name != "INT", timeout_s=0)  # nobody serves
            self.end()
        return self.supervisor.exit_code

    @contextmanager
    def workers_cared_for(self) -> Iterator[None]:
        """Let the workers go as if this process were dead, if what looks after them ends by an exception."""
        try:
            yield
        except BaseException:
            for child in [*self.children.values(), *self.dead]:
                child.abandon()
            raise

    # Before the first fork.

    def boot(self) -> None:
        """Drop privileges, then load the app: its code never runs with those of the socket's owner."""
        self.announce()
        set_process_name(self.config.proc_name, "parent")
        drop(self.config)
        if (number := self.charge.listeners.starter_generation) is not None:
            self.meet(number)
        if self.keeper is not None and self.exchange is not None:
            self.keeper.tell_exchange(self.exchange)
        try:
            self.signals.lose_patience()
            if self.config.ssl_context is not None:
                self.tls = self.new_context()
            self.hooks.load(self.config.app_dir, "before_fork")
            if self.config.preload or callable(self.app):
                self.app = load_app(self.app, self.config.app_dir, self.config.interface)
            if callable(self.app):
                for target, status in warm_up(self.app, self.config):
                    self.records.emit("pool.warm_up_refused", path=target.path, host=target.host, status=status)
                self.hooks.load(self.config.app_dir, *IN_WORKERS)
            self.driver = rehearse(
                self.app,
                self.charge.listeners,
                self.config,
                self.records,
                self.adapter.thread_exit,
                self.exchange,
                self.tls,
            )
            if self.keeper is not None and self.keeper.deploying and self.config.deploy_probe is not None:
                self.probe(self.keeper)
        except PreforkError as error:
            self.record_failure(error)
            raise
        finally:
            self.signals.impatient = False

    def record_failure(self, error: PreforkError) -> None:
        """Record in a log file that the pool cannot be brought up. On stderr our caller says it, once."""
        outlet = self.records.outlet
        if outlet is None or not outlet.has_file or (self.keeper is not None and self.keeper.goes_on):
            return
        self.supervisor.exit_code = error.exit_code
        trace = traceback_of(error)
        self.record("pool.boot_failed", reason=str(error), attempts=1, code=error.code, traceback=trace)
        self.end()

    def meet(self, generation: int) -> None:
        """Share the exchange of the generation of Server::Starter before this one, and let the next one share it."""
        listeners = self.charge.listeners
        if self.exchange is None:
            return
        # During a deploy the line to the older generation is held by the pool that serves.
        if self.keeper is None or self.keeper.why != "deploy":
            self.older = Predecessor.find(listeners, generation)
        if self.older is not None and (self.keeper is None or not self.keeper.exchange):
            self.exchange = self.older.exchange
        self.doorstep = address_of(listeners, generation)
        self.open_door(self.exchange)

    def open_door(self, exchange: Exchange) -> None:
        """Wait for the next generation, unless another pool of this one still does."""
        started = os.getpid() if self.keeper is None else self.keeper.pid
        expected = partial(has_younger_sibling, started, self.charge.listeners.starter_generation or 0)
        self.door = Door.open(self.doorstep, exchange, Succession(expected))
        if self.door is not None:
            self.doorstep = ""
            self.poller.register(self.door.fileno(), select.POLLIN)

    def part(self) -> None:
        """Let go of the generations before and behind this one."""
        if self.door is not None:
            self.door.close()
        if self.older is not None:
            self.older.close()

    def new_context(self) -> SSLContext:
        """Return what the options make of certificates; raises what ``make_context`` raises."""
        from prefork.certificates import make_context

        return make_context(self.config)

    def probe(self, keeper: Keeper) -> None:
        """Have new code answer before it serves, by a worker whom nobody else can reach. ``BootError`` if it does not."""
        self.prepare_fork()
        end = keeper.began + self.config.boot_timeout
        with open_door() as door, closing(Vitals(self.scoreboard.row(0))) as vitals:
            birth = self.birth(Spawn(worker=-1, number=0, budget=None), vitals, door)
            child = fork_child(-1, 0, partial(be_worker, birth))
            try:
                self.await_probe(keeper, child, vitals, end)
                ask(door, self.config, end - monotonic())
                child.tell(STOP_QUICKLY)
                child.process.join(QUICK_STOP_S)
            finally:
                child.kill()
                child.close()

    def await_probe(self, keeper: Keeper, child: Child, vitals: Vitals, end: float) -> None:
        """Return when the worker serves; ``BootError`` if it says why it cannot, dies or is late."""
        self.poller.register(self.reports, select.POLLIN)
        if child.pidfd is not None:
            self.poller.register(child.pidfd, select.POLLIN)
        awake = self.poller.poll(max(0.0, end - monotonic()) * 1000)
        for descriptor in (self.reports.fileno(), child.pidfd):
            if descriptor is not None:
                self.poller.unregister(descriptor)
        for event in self.read_reports():
            match event:
                case WorkerReady():
                    return
                case WorkerBootFailed(summary=summary, traceback=trace):
                    keeper.tell({"message": summary, "traceback": trace})
        how, stack = ("died", vitals.stack()) if awake else ("was late", vitals.ask_for_stack(child.pid))
        hint = "look at what the application does at its start"
        error = BootError("PF422", f"the worker for deploy_probe {how}", hint)
        keeper.tell({"message": str(error), "traceback": stack})
        raise error

    def announce(self) -> None:
        """Say what starts, and where, before the app is imported."""
        self.records.emit("pool.starting", **facts(self.charge))
        for listener in self.charge.listeners:
            self.records.emit("pool.listening", **listener_facts(listener))
        if self.adapter.on_listening is not None:
            self.adapter.on_listening([listener.url for listener in self.charge.listeners])

    def loop(self) -> None:
        """Let the supervisor decide, and perform."""
        for descriptor in self.sources():
            self.poller.register(descriptor, select.POLLIN)
        if self.keeper is not None:
            self.keeper.tell_hearing(self.config, self.supervisor.workers_wanted)
        began = self.began if self.keeper is None else self.keeper.began
        self.obey(self.supervisor.start(monotonic(), began))
        while not self.supervisor.finished:
            for event in self.wait():
                self.obey(self.supervisor.handle(event, monotonic()))
            self.bury()

    def obey(self, actions: Iterable[Action]) -> None:
        """Perform actions, and let the supervisor know what came of them."""
        for action in actions:
            self.perform(action)
        while self.unasked:
            self.obey(self.supervisor.handle(self.unasked.popleft(), monotonic()))

    def end(self) -> None:
        """Say the last word."""
        uptime_s, status = round(monotonic() - self.began, 3), self.supervisor.exit_code
        self.records.emit("pool.stopped", uptime_s=uptime_s, requests=self.requests, exit_code=status)

    def restore(self) -> None:
        """Leave the garbage collector and ``faulthandler`` as they were."""
        if self.forked and self.thawed:
            gc.unfreeze()
        self.filler.clear()
        give_up_last_words()

    # What can happen.

    def sources(self) -> list[int]:
        """Return the descriptors to watch that are there all the time."""
        return [self.signals.fileno(), self.reports.fileno(), *self.caller_ends()]

    def caller_ends(self) -> list[int]:
        """Return what tells of the caller's orders and death.

        Of his death twice: a process that he forks keeps his end of the pipe open, but is not him.
        """
        caller = self.charge.caller
        return [] if caller is None else [caller.orders, *([] if self.caller_pidfd is None else [self.caller_pidfd])]

    def wait(self) -> list[Event]:
        """Sleep until something happens, and return all that did, in an order in which it can have happened."""
        awake = {descriptor for descriptor, _ in self.poller.poll(self.patience())}
        self.notifier.beat(monotonic())
        self.oom_kills.look(monotonic())
        # Deaths are looked for first and told last: what a worker has said before it died is in the socket by now.
        dead = [child for child in self.children.values() if has_died(child, awake)]
        events = [*self.read_signals(), *self.read_caller(awake)]
        if self.doorstep and self.exchange is not None:
            self.open_door(self.exchange)
        if self.door is not None:
            events = self.hear_next_generation(self.door, events)
        events += self.read_reports()
        events += [self.reap(child) for child in dead]
        if self.init:
            reap_orphans({child.pid for child in self.children.values()})
        if (path := self.changed_file()) is not None:
            events.append(FilesChanged(path))
        return events or [Tick()]

    def hear_next_generation(self, door: Door, orders: list[Event]) -> list[Event]:
        """Return what ``orders`` mean in view of the next generation of Server::Starter, and what that has to say."""
        events, succession, now = door.hear(), door.succession, monotonic()
        for order in orders:
            meant = succession.told(order, now) if isinstance(order, SignalReceived) else [order]
            if not meant and isinstance(order, SignalReceived):
                self.records.emit(
                    "pool.stop_delayed", signal=order.name, reason="the next generation does not serve yet"
                )
            events += meant
        return events + succession.due(now)

    def patience(self) -> int | None:
        """Return how long to sleep at most, in milliseconds."""
        deadline = self.supervisor.next_deadline
        waits = [] if deadline is None else [max(0.0, deadline - monotonic())]
        if self.door is not None and self.door.succession.next_deadline < math.inf:
            waits.append(max(0.0, self.door.succession.next_deadline - monotonic()))
        if self.doorstep:
            waits.append(TRY_DOOR_S)
        if self.adapter.files_changed is not None and self.look_at < math.inf:
            waits.append(LOOK_AT_FILES)
        if self.notifier.beat_at < math.inf:
            waits.append(max(0.0, self.notifier.beat_at - monotonic()))
        return math.ceil(min(waits) * 1000) if waits else None

    def read_signals(self) -> list[Event]:
        """Return the signals that came in. A started pool leaves Ctrl-C to its caller, who is asked as well."""
        mine = [number for number in self.signals.read() if number is not signal.SIGCHLD]
        if self.charge.caller is not None:
            mine = [number for number in mine if number is not signal.SIGINT]
        return [event for number in mine for event in self.signalled(number.name.removeprefix("SIG"))]

    def signalled(self, name: str) -> list[Event]:
        """Return what a signal means to the supervisor: HUP means nothing if the certificate cannot be renewed."""
        return [SignalReceived(name)] if name != "HUP" or self.renew_certificate() else []

    def renew_certificate(self) -> bool:
        """Read certificates anew, for the workers to come; return ``False``, and record why, if they cannot be used."""
        if self.tls is None:
            return True
        try:
            self.tls = self.new_context()
        except (PreforkError, OSError) as error:
            why = {} if error.__cause__ is None else {"exc_info": error.__cause__}
            self.record("tls.not_renewed", reason=str(error), code="PF323", **why)
            return False
        return True

    def read_caller(self, awake: set[int]) -> list[Event]:
        """Return the caller's orders; his death is an order to stop."""
        caller = self.charge.caller
        if caller is None or awake.isdisjoint(self.caller_ends()):
            return []
        orders = caller.read() if caller.orders in awake else []
        if not orders:
            for descriptor in self.caller_ends():
                self.poller.unregister(descriptor)
            return [SignalReceived("TERM")]
        return [event for order in orders for event in self.heed(**order)]

    def heed(self, order: str, **facts: Any) -> list[Event]:
        """Return what an order means to the supervisor; that of a record is carried out at once."""
        match order:
            case "superseded":
                by: int = facts["new_generation"]
                if by != self.generation:
                    return [Superseded(by)]
                # It was given up as too late, and the keeper believes who has said since that it serves.
                return [Superseded(None)] if origin.waits_for_us() else []
            case "deploying":
                self.record("pool.deploying", reason="signal", **facts)
            case "deploy_failed":
                self.record("pool.deploy_failed", code="PF421", **facts)
            case _:
                return self.signalled(order)
        return []

    def read_reports(self) -> list[Event]:
        """Return what the workers have reported."""
        events: list[Event] = []
        with suppress(BlockingIOError):
            while True:
                message = self.reports.recv(MESSAGE_LIMIT)
                # An application may write to a descriptor that it finds open: that must not end the pool.
                with suppress(ValueError):
                    events.append(event_of(decode(message)))
        for event in events:
            if isinstance(event, WorkerReady):
                self.weigh(event.worker)
        return events

    def reap(self, child: Child) -> Event:
        """Take a dead worker's exit code."""
        self.dead.append(child)
        del self.children[child.worker]
        if child.pidfd is not None:
            self.poller.unregister(child.pidfd)
        code = child.process.exitcode
        served, evidence = self.dissect(child.worker, self.vitals.pop(child.worker), code)
        return WorkerExited(child.worker, code, signal_name(code), served, evidence)

    def dissect(self, worker: int, vitals: Vitals, code: int | None) -> tuple[int, dict[str, Any]]:
        """Return how many requests a dead worker has served, and what there is to say of its death."""
        with closing(vitals):
            reading = vitals.row.read()
            evidence = vitals.evidence(reading, monotonic())
            if code == -signal.SIGKILL and worker not in self.killed and (kills := self.oom_kills.new()):
                evidence["oom_kill"] = kills
            self.killed.discard(worker)
            return reading.served, evidence

    def weigh(self, worker: int) -> None:
        """Take note of how much memory a worker has, for the case that it dies."""
        if (child := self.children.get(worker)) is not None:
            self.vitals[worker].weigh(child.pid)

    def changed_file(self) -> str | None:
        """Return a file that changed since the last look."""
        if self.adapter.files_changed is None or monotonic() < self.look_at:
            return None
        path = self.adapter.files_changed()
        self.look_at = monotonic() + LOOK_AT_FILES if path is None else math.inf  # one change is enough
        return path

    # What can be done about it.

    def perform(self, action: Action) -> None:
        """Do one thing."""
        match action:
            case Spawn():
                self.spawn(action)
            case Release(worker=worker):
                self.tell(worker, RELEASE)
            case Retire(worker=worker):
                self.tell(worker, RETIRE)
            case Stop(worker=worker, quick=quick):
                self.tell(worker, STOP_QUICKLY if quick else STOP)
            case CloseAfterAnswer(worker=worker):
                self.tell(worker, CLOSE_AFTER_ANSWER)
            case Kill(worker=worker):
                self.kill(worker)
            case Look(worker=worker):
                self.look(worker)
            case Ping(worker=worker):
                self.tell(worker, PING)
            case Examine(worker=worker):
                self.examine(worker)
            case CloseListeners() | LeaveListeners():
                self.leave_listeners(for_good=isinstance(action, CloseListeners))
            case ReopenLogs():
                self.reopen_logs()
            case Emit():
                self.emit(action)
            case Finish():
                pass  # the loop asks the supervisor
            case _:
                assert_never(action)

    def leave_listeners(self, *, for_good: bool) -> None:
        """Close the listening sockets here; ``for_good``: no other process serves them."""
        # The queues belong to the generation that serves, or will: what refuses newcomers is never undone.
        if for_good and (self.keeper is None or not self.keeper.goes_on):
            self.charge.listeners.refuse_newcomers()
        self.charge.listeners.close()
        if self.keeper is not None:
            self.keeper.tell_leaving()
        self.doorstep = ""
        if self.door is not None:
            self.door.shut()

    def spawn(self, order: Spawn) -> None:
        """Fork a worker, or say that the system refused."""
        self.prepare_fork()
        with ExitStack() as undo:
            try:
                vitals = undo.enter_context(closing(Vitals(self.scoreboard.row(order.number))))
                child = fork_child(order.worker, order.number, partial(be_worker, self.birth(order, vitals)))
            except OSError as error:
                self.unasked.append(ForkFailed(order.worker, error=str(error)))
                return
            undo.pop_all()
        self.children[order.worker], self.vitals[order.worker] = child, vitals
        if child.pidfd is not None:
            self.poller.register(child.pidfd, select.POLLIN)
        self.records.emit("worker.spawned", worker=child.number, child_pid=child.pid, budget=order.budget)

    def prepare_fork(self) -> None:
        """Leave nothing open or running that a child would share. Before every fork: hooks run in between."""
        for clean in self.adapter.hygiene:
            try:
                clean()
            except (Exception, SystemExit) as error:  # noqa: BLE001 - anybody's code
                self.records.emit("hook.failed", hook="hygiene", exc_info=error)
        self.hooks.run("before_fork", self.charge.pool, records=self.records)
        # With SIGCHLD ignored a worker's exit code would be lost, and a handler of the application for TERM would never
        # stop the pool.
        self.signals.take_back()
        if not self.forked:
            self.forked = True
            origin.forget_last_words()
            self.warn_of_leftovers()
            self.records.prepare()
            arrange_last_words()
            # What is there now is there for good: the collector of a child need not touch, and so copy, its pages.
            gc.collect()
            self.filler = fill_holes()
            forget_lookups()
            gc.freeze()

    def warn_of_leftovers(self) -> None:
        """Record, once, what would not survive a fork or be shared by it."""
        findings = [finding for finding in audit(self.private_descriptors()) if finding not in self.charge.known]
        if findings := [*self.charge.known, *findings]:
            self.records.emit("pool.fork_unsafe", findings=[fields_of(finding) for finding in findings], code="PF405")

    def birth(self, order: Spawn, vitals: Vitals, listeners: Listeners | None = None) -> Birth:
        """Put together what a worker is given."""
        return Birth(
            worker=order.worker,
            number=order.number,
            generation=self.generation,
            budget=order.budget,
            born=monotonic(),
            app=self.app,
            config=self.config if listeners is None else config_behind(self.config),
            listeners=listeners or self.charge.listeners,
            records=self.charge.pool.records,
            hooks=self.hooks,
            reports=self.workers_end,
            stdin=self.stdin,
            row=vitals.row,
            last_words=vitals.last_words,
            foreign=self.private_descriptors(),
            child_hygiene=self.adapter.child_hygiene,
            thread_exit=self.adapter.thread_exit,
            exchange=self.exchange if listeners is None else None,
            keeper=None if self.keeper is None else self.keeper.pid,
            tls=self.tls,
            driver=self.driver if listeners is None else None,
        )

    def private_descriptors(self) -> set[int]:
        """Return what no child may keep open, or a death would go unnoticed by who waits for the end of a pipe."""
        private = {*self.signals.descriptors, self.reports.fileno()}
        private |= {vitals.last_words for vitals in self.vitals.values()}
        if self.charge.caller is not None:
            private |= {*self.charge.caller.descriptors, *self.caller_ends()}
        private |= set() if self.door is None else self.door.descriptors
        private |= set() if self.older is None else {self.older.fileno()}
        return private.union(*(child.descriptors for child in [*self.children.values(), *self.dead]))

    def tell(self, worker: int, order: bytes) -> None:
        """Send an order, unless the worker is gone."""
        if (child := self.children.get(worker)) is not None:
            child.tell(order)

    def kill(self, worker: int) -> None:
        """Kill a worker, unless it is gone."""
        if (child := self.children.get(worker)) is not None:
            self.killed.add(worker)
            child.kill()

    def look(self, worker: int) -> None:
        """Look for the answer to the last ping."""
        child, vitals = self.children.get(worker), self.vitals.get(worker)
        if child is None or vitals is None or not vitals.row.shared:
            return
        vitals.weigh(child.pid)
        at, seen = monotonic(), vitals.row.read()
        self.unasked.append(WorkerPulse(worker, at, seen.beat, seen.served, serving=bool(seen.requests)))

    def examine(self, worker: int) -> None:
        """Find out what a worker is at that does not answer."""
        child, vitals = self.children.get(worker), self.vitals.get(worker)
        if child is not None and vitals is not None:
            stopped = is_stopped(child.pid)
            stack = "" if stopped else vitals.ask_for_stack(child.pid)
            self.unasked.append(WorkerExamined(worker, stopped, stack))

    def reopen_logs(self) -> None:
        """Open the log files anew, here and in each worker."""
        self.records.reopen()
        for child in self.children.values():
            child.tell(REOPEN_LOGS)

    def emit(self, order: Emit) -> None:
        """Write a record, with the place and the process id of the worker that it is about."""
        if self.keeper is not None and order.record in self.fatal(self.keeper):
            self.give_up(self.keeper, order)
            return
        fields = dict(order.fields)
        child = next((child for child in [*self.children.values(), *self.dead] if child.worker == order.worker), None)
        if child is not None:
            fields |= {"worker": child.number, "child_pid": child.pid}
        self.notifier.tell_of(order.record, fields)
        if self.keeper is not None and order.record == "pool.ready":
            # Before the record: who has read that may send the keeper a signal, or kill this process.
            self.keeper.tell_serving(self.config, self.supervisor.workers_wanted)
        if self.older is not None and order.record == "pool.ready":
            self.older.tell_serving()
        self.records.emit(order.record, **fields)
        if order.record == "worker.exited":
            self.requests += fields["requests"]
        elif self.keeper is not None:
            self.tell_of_deploy(self.keeper, order)
        elif self.charge.caller is not None:
            answer(self.charge.caller, order.record, fields)

    def fatal(self, keeper: Keeper) -> frozenset[str]:
        """Return the records of what ends this generation alone: with an old one that serves, each failure does."""
        return BOOT_FAILURES if keeper.deploying else POOL_FAILURES if keeper.goes_on else frozenset()

    def tell_of_deploy(self, keeper: Keeper, order: Emit) -> None:
        """Record that another generation serves, when it does."""
        if order.record == "pool.ready" and keeper.why != "first":
            reason, boot_s = "signal" if keeper.why == "deploy" else "death", round(monotonic() - keeper.began, 3)
            self.record("pool.deployed", reason=reason, workers=order.fields["workers"], boot_s=boot_s)

    def record(self, name: str, **fields: Any) -> None:
        """Write a record that is no decision of the supervisor."""
        self.records.emit(name, **fields)
        self.notifier.tell_of(name, fields)

    def give_up(self, keeper: Keeper, order: Emit) -> None:
        """Leave the service, and what there is to say, to the generation that is there; the record is its own."""
        keeper.tell({"message": order.fields["reason"], "traceback": order.fields.get("traceback", "")})
        self.unasked.append(Superseded(None))

    def bury(self) -> None:
        """Let go of the dead, whose records are written."""
        while self.dead:
            self.dead.pop().close()


def has_died(child: Child, awake: Container[int]) -> bool:
    """Whether a worker is dead; where there is no pidfd to be awake, each is asked."""
    return child.is_gone() if child.pidfd is None else child.pidfd in awake


def signal_name(exit_code: int | None) -> str | None:
    """Return the name of the signal that a process died of, if it did."""
    if exit_code is None or exit_code >= 0:
        return None
    try:
        return signal.Signals(-exit_code).name
    except ValueError:  # a real-time signal has none
        return f"SIG{-exit_code}"


def event_of(report: Report) -> Event:
    """Return what a report means to the supervisor."""
    match report:
        case Ready(worker=worker, boot_s=boot_s):
            return WorkerReady(worker, boot_s)
        case Retiring(worker=worker, reason=reason, requests=requests, memory_bytes=memory_bytes):
            return WorkerRetiring(worker, reason, requests, memory_bytes)
        case BootFailed(worker=worker, traceback=traceback, summary=summary, code=code):
            return WorkerBootFailed(worker, summary, traceback, code)
        case Leaving(worker=worker, requests=requests, overrun=overrun, stuck=stuck):
            return WorkerLeaving(worker, requests, overrun, stuck)


def answer(caller: Caller, record: str, fields: Mapping[str, Any]) -> None:
    """Tell the caller of a pool how its start went."""
    if record == "pool.ready":
        caller.tell_ready()
    elif record == "pool.boot_failed":
        why = f"{fields['reason']}, attempts: {fields['attempts']}"
        hint = "see the traceback" if fields.get("traceback") else "the records tell of each attempt"
        error = BootError(fields["code"], f"no worker could be started ({why})", hint)
        caller.tell_failed(error, fields.get("traceback", ""))


def facts(charge: Charge) -> dict[str, Any]:
    """Return what there is to say about a pool before it runs."""
    app, config = charge.app, charge.pool.config
    name = charge.adapter.app_name
    if name is None:
        name = app if isinstance(app, str) else getattr(app, "__qualname__", type(app).__qualname__)
    python = sys.version.partition(" ")[0]  # as platform says, which takes 2 ms to import
    shown = {"workers": config.max_workers, "threads": config.threads, "preload": config.preload}
    counted = {"workers_counted": config.workers_from} if config.workers_from else {}
    generation = charge.listeners.starter_generation
    started = {} if generation is None else {"starter_generation": generation}
    kept = {} if charge.keeper is None else {"keeper_pid": charge.keeper.pid}
    return {"version": __version__, "python": python, "app": name, **shown, **counted, **started, **kept}


def listener_facts(listener: Listener) -> dict[str, Any]:
    """Return what there is to say about a listener."""
    url = {"url": listener.url, "inherited_fd": listener.socket.fileno() if listener.inherited else None}
    if listener.name:
        url["inherited_as"] = listener.name
    if not listener.tcp:
        return url
    return {**url, "scheme": listener.scheme, "address": listener.server_name, "port": int(listener.server_port)}
