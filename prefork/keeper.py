"""Who keeps the process id while pools come and go?

A small program, run as ``python -I -S keeper.py``. It holds what must outlive a pool (the process id, the listening
sockets, the files of its own), starts the next pool in a fresh interpreter when it gets HUP, and lets the present one
go when that serves. ``Keeping`` decides: events in, actions out; ``Keeper`` performs.

It imports nothing of the package and hardly anything else: it runs beside every pool, so that its memory counts, and
starts with every pool. The modules in C below are those behind ``signal``, ``socket`` and ``json``, which bring so much
along (enumerations, regular expressions) that more than half of the start would go into that.
"""

from __future__ import annotations

import _json
import _signal  # type: ignore[import-not-found]
import _socket
import os
import select
import sys
import time

TYPE_CHECKING = False  # typing's own would cost half as much memory as all the rest
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

SLACK_S = 5.0
"""How much longer than ``boot_timeout`` a new pool may take altogether."""
PATIENCE_S = 2.0
"""How long each of the means is given by which a pool that is late is ended."""
STRIKE_AGAIN_S, KILL_S = 1.0, 10.0
"""When a pool that does not serve yet, and so cannot hear, is told once more to stop, and when it is killed."""
YOUNG_S = 10.0
"""A pool that dies sooner than this after it was ready is waited for before it is started again."""
FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 30.0
WRITE_S = 1.0
"""For how long stderr is waited for that is full."""
MESSAGE_LIMIT = 128 * 1024
LAST_WORDS = 16 * 1024
"""How much is kept of what a new pool wrote to stderr before it could speak for itself, in bytes."""


class Plain:
    """Has the fields of ``__match_args__``, and is what they are."""

    __match_args__: tuple[str, ...] = ()

    def __init__(self, *values: Any) -> None:
        self.__dict__.update(zip(self.__match_args__, values, strict=True))

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.__dict__ == self.__dict__

    __hash__ = None  # type: ignore[assignment]  # some hold what can change

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.__dict__.values()))})"


# What can happen.


class Signal(Plain):
    """A signal arrived, named without SIG."""

    __match_args__ = ("name",)
    name: str


class Said(Plain):
    """A pool says that it is ``listening``, ``hears``, is ``ready``, ``failed`` or ``leaving``, or has something for systemd."""

    __match_args__ = ("generation", "what", "facts")
    generation: int
    what: str
    facts: Mapping[str, Any]


class Ended(Plain):
    """A pool's parent is dead: by itself with ``status``, or by ``signal``; ``words`` are its last."""

    __match_args__ = ("generation", "status", "signal", "words")
    generation: int
    status: int
    signal: str | None
    words: str


class Tick(Plain):
    """Nothing happened but that time went by."""


# What is to be done.


class Start(Plain):
    """Start a pool in a fresh interpreter, with so many workers (``None``: as many as it is configured to have)."""

    __match_args__ = ("generation", "why", "workers")
    generation: int
    why: str
    workers: int | None


class Tell(Plain):
    """Send an order to a pool."""

    __match_args__ = ("generation", "order", "facts")
    generation: int
    order: str
    facts: Mapping[str, Any]


class Strike(Plain):
    """Send a signal to a pool's parent."""

    __match_args__ = ("generation", "signal")
    generation: int
    signal: str


class Notify(Plain):
    """Pass a pool's message on to systemd."""

    __match_args__ = ("text",)
    text: str


class Adopt(Plain):
    """Hold what this pool listens on, and let go of what it does not."""

    __match_args__ = ("generation",)
    generation: int


class CloseListeners(Plain):
    """Close the listening sockets, and unlink their files."""


class Say(Plain):
    """Write a record, since there is no pool that could."""

    __match_args__ = ("record", "facts")
    record: str
    facts: Mapping[str, Any]


class Finish(Plain):
    """It is over."""

    __match_args__ = ("status",)
    status: int


COMING, CURRENT, LEAVING = "coming", "current", "leaving"
"""The lives of a pool: not ready yet; the one that serves; nothing is expected of it but its end."""
FIRST, DEPLOY, RESTART = "first", "deploy", "restart"
"""Why a pool was started."""
MEANS = (None, "ABRT", "KILL")
"""How a pool that is late is ended: by an order, if it can hear; by a signal that makes it show its stack; for good."""
NEVER = float("inf")


class Pool:
    """What is known of one pool."""

    def __init__(self, generation: int, why: str, due: float = NEVER) -> None:
        self.generation, self.why, self.life = generation, why, COMING
        self.hears = False  # it is in its loop: it reads orders, and looks after its workers itself
        self.due = due  # when to lose patience with it
        self.means = 0  # how many have been tried
        self.kill_at = NEVER
        self.began = due
        self.ready_at = NEVER
        self.workers = 0
        self.failure: dict[str, str] | None = None

    @property
    def present(self) -> bool:
        """Whether it serves, or does so as well as it can: one that is no new code need not be complete for that."""
        return self.life == CURRENT or (self.life == COMING and self.hears and self.why != DEPLOY)


class Keeping:
    """Decides which pools there are."""

    def __init__(self) -> None:
        self.pools = {1: Pool(1, FIRST)}
        self.finished = False
        self.status = 0
        self.boot_timeout = 60.0
        self._newest = 1
        self._workers: int | None = None  # how many are wanted, once somebody has changed it
        self._counted = 0  # how many there were, or are, to be changed; 0: that is not known yet
        self._unheard: list[str] = []  # what the first pool was told before it could say so
        self._again = False  # a HUP came while another deploy was under way
        self._stopping = False
        self._chief = 0  # the pool whose status is ours
        self._failures = 0
        self._start_at = NEVER

    @property
    def next_deadline(self) -> float:
        """When to send a ``Tick`` if nothing happens before."""
        coming = [min(pool.due, pool.kill_at) for pool in self.pools.values() if pool.life == COMING]
        return min([self._start_at, *coming])

    @property
    def alone(self) -> bool:
        """Whether there is no pool that could give signs of life for the service, which is to go on."""
        return self._counted > 0 and not self._stopping and self._present() is None

    def handle(self, event: Any, now: float) -> list[Any]:
        """Return what to do about an event."""
        match event:
            case Signal(name):
                return self._signalled(name, now)
            case Said(generation, what, facts) if generation in self.pools:
                return self._said(self.pools[generation], what, facts, now)
            case Ended(generation) if generation in self.pools:
                return self._ended(self.pools.pop(generation), event, now)
            case Tick():
                return self._late(now)
            case _:
                return []

    def _the(self, life: str) -> Pool | None:
        return next((pool for pool in self.pools.values() if pool.life == life), None)

    def _present(self) -> Pool | None:
        return next((pool for pool in self.pools.values() if pool.present), None)

    # Signals.

    def _signalled(self, name: str, now: float) -> list[Any]:
        match name:
            case "HUP":
                return self._renew(now)
            case "TERM" | "INT" | "QUIT":
                return self._stop(name, now)
            case "USR1":
                return [Tell(generation, name, {}) for generation in self.pools]
            case "TTIN" | "TTOU" | "USR2":
                return self._pass_on(name)
            case _:
                return []

    def _pass_on(self, name: str) -> list[Any]:
        pool = self._present()
        if name == "USR2":
            pool = pool or self._the(COMING)
        elif self._counted:
            # For the next pool as well: what somebody has chosen outlives a deploy, and a death.
            self._workers = self._counted = next_number(self._counted, name)
            if pool is not None:
                pool.workers = self._counted
        else:
            pool = self._the(COMING)  # the first: it reads this as soon as it hears
            self._unheard.append(name)
        return [] if pool is None else [Tell(pool.generation, name, {})]

    def _renew(self, now: float) -> list[Any]:
        """Deploy. One that is asked for during another is remembered: the code may have changed since that has read it."""
        if self._stopping:
            return []
        present = self._present()
        if any(pool.life == COMING and not pool.present for pool in self.pools.values()):
            self._again = True
            return []
        self._again = False
        if present is None:
            return self._start(RESTART, now)
        start = self._start(DEPLOY, now)
        return [Tell(present.generation, "deploying", {"new_generation": self._newest}), *start]

    def _start(self, why: str, now: float) -> list[Any]:
        self._start_at = NEVER
        self._newest += 1
        pool = self.pools[self._newest] = Pool(self._newest, why, now + self.boot_timeout + SLACK_S)
        pool.began = now
        return [Start(pool.generation, why, self._workers)]

    def _stop(self, name: str, now: float) -> list[Any]:
        """Stop all pools. One that does not serve yet may be busy with the application's code: that a signal ends."""
        self._stopping, self._again, self._start_at = True, False, NEVER
        actions: list[Any] = []
        for pool in self.pools.values():
            actions.append(Tell(pool.generation, name, {}))
            pool.due = NEVER
            if pool.life == COMING and not pool.hears:
                actions.append(Strike(pool.generation, "INT" if name == "INT" else "TERM"))
                pool.due = now + STRIKE_AGAIN_S
                pool.kill_at = min(pool.kill_at, now + KILL_S)
        return actions + self._finish_if_empty()

    # What pools say.

    def _said(self, pool: Pool, what: str, facts: Mapping[str, Any], now: float) -> list[Any]:
        if what == "leaving":
            return self._leaves(pool, now)
        if what == "notify":
            speaks = pool.generation == self._chief or (pool.life == COMING and self._present() in (None, pool))
            return [Notify(facts["text"])] if speaks else []
        if pool.life != COMING:
            return []
        match what:
            case "listening" if pool.why != FIRST and not self._stopping:
                pool.due = pool.began + facts["boot_timeout"] + SLACK_S  # its own configuration may say otherwise
            case "hears":
                return self._hears(pool, facts)
            case "failed" if pool.failure is None:
                pool.failure = {"reason": facts["reason"], "traceback": facts["traceback"]}
            case "ready" if pool.means <= 1:  # asked to go alone it may serve, but not once a signal is on its way
                return self._ready(pool, facts, now)
        return []

    def _hears(self, pool: Pool, facts: Mapping[str, Any]) -> list[Any]:
        pool.hears, pool.workers = True, facts["workers"]
        if self._stopping or pool.why == RESTART:
            pool.due = pool.kill_at = NEVER
        return self._count(pool, facts) if pool.present else []

    def _count(self, pool: Pool, facts: Mapping[str, Any]) -> list[Any]:
        """Take note of how many workers there are, and tell a pool of what has changed while it started."""
        self.boot_timeout = facts["boot_timeout"]
        for name in self._unheard:
            self._workers = pool.workers = next_number(pool.workers, name)
        self._unheard.clear()
        self._counted = pool.workers if self._workers is None else self._workers
        step, missing = ("TTIN" if self._counted > pool.workers else "TTOU"), abs(self._counted - pool.workers)
        pool.workers = self._counted
        return [Tell(pool.generation, step, {})] * missing

    def _ready(self, pool: Pool, facts: Mapping[str, Any], now: float) -> list[Any]:
        old = self._present()
        pool.life, pool.ready_at = CURRENT, now
        if not pool.hears:
            pool.workers = facts["workers"]
        self._chief = pool.generation
        actions: list[Any] = [Adopt(pool.generation)]
        if old is not None and old is not pool:
            old.life = LEAVING
            actions.append(Tell(old.generation, "superseded", {"new_generation": pool.generation}))
        actions += self._count(pool, facts)
        return actions + (self._renew(now) if self._again else [])

    def _leaves(self, pool: Pool, now: float) -> list[Any]:
        before, pool.life = pool.life, LEAVING
        if before == LEAVING:
            return []
        if before == COMING and pool.why != FIRST and not self._stopping:
            return self._failed(pool, {"reason": "it was stopped", "traceback": ""}, now)
        if before == CURRENT or pool.why == FIRST:
            self._chief = pool.generation
            return [CloseListeners(), *([] if self._stopping else self._stop("TERM", now))]
        return []

    # Ends.

    def _ended(self, pool: Pool, event: Any, now: float) -> list[Any]:
        if pool.life == COMING and pool.why == FIRST and not self.pools:
            # That it died of the stop that it was sent is as good as an end by itself.
            self._chief = 0 if self._stopping and event.signal in {"SIGTERM", "SIGINT"} else pool.generation
            self._stopping = True
        if self._stopping and pool.generation == self._chief:
            self.status = event.status
        actions: list[Any] = []
        if not self._stopping and pool.present:
            actions = self._revive(pool, event, now)
        elif not self._stopping and pool.life == COMING:
            actions = self._failed(pool, last_words(event), now)
        return actions + self._finish_if_empty()

    def _failed(self, pool: Pool, otherwise: dict[str, str], now: float) -> list[Any]:
        """Let the current pool, which has noticed nothing, tell about the one that came to nothing."""
        told = {"new_generation": pool.generation, **(pool.failure or otherwise)}
        if pool.failure is not None and not told["traceback"]:
            told["traceback"] = otherwise["traceback"]
        present = self._present()
        if present is not None:
            tell = [Tell(present.generation, "deploy_failed", told)]
            return tell + (self._renew(now) if self._again else [])
        later = [] if self._the(COMING) is not None else self._start_later(now, least=1)
        return [*later, Say("pool.deploy_failed", {**told, "code": "PF421"})]

    def _revive(self, pool: Pool, event: Any, now: float) -> list[Any]:
        """Start a pool in the place of one that died as a whole."""
        died = {"generation": pool.generation, "reason": last_words(event)["reason"], "code": "PF423"}
        if now - pool.ready_at > YOUNG_S:
            self._failures = 0
        later = [] if self._the(COMING) is not None else self._start_later(now)
        return [*later, Say("pool.died", died)]  # in this order: nobody may be there who reads what we write

    def _start_later(self, now: float, least: int = 0) -> list[Any]:
        delay = back_off(max(least, self._failures))
        self._failures = max(least, self._failures) + 1
        if not delay:
            return self._start(RESTART, now)
        self._start_at = now + delay
        return []

    def _finish_if_empty(self) -> list[Any]:
        if self.pools or not self._stopping:
            return []
        self.finished = True
        return [Finish(self.status)]

    # Time.

    def _late(self, now: float) -> list[Any]:
        actions = self._start(RESTART, now) if self._start_at <= now else []
        for pool in self.pools.values():
            if pool.life == COMING and pool.kill_at <= now:
                pool.kill_at = pool.due = NEVER
                actions.append(Strike(pool.generation, "KILL"))
            elif pool.life == COMING and pool.due <= now:
                actions += self._stop_again(pool, now) if self._stopping else self._lose_patience(pool, now)
        return actions

    def _stop_again(self, pool: Pool, now: float) -> list[Any]:
        pool.due = now + STRIKE_AGAIN_S
        return [Strike(pool.generation, "TERM")]

    def _lose_patience(self, pool: Pool, now: float) -> list[Any]:
        taken = f"{pool.due - pool.began:g}"
        means = MEANS[pool.means]
        pool.means += 1
        pool.due = now + PATIENCE_S if pool.means < len(MEANS) else NEVER
        if means is not None:
            return [Strike(pool.generation, means)]
        pool.failure = pool.failure or {"reason": f"not ready after {taken} s", "traceback": ""}
        return [Tell(pool.generation, "superseded", {"new_generation": pool.generation})]


def next_number(workers: int, name: str) -> int:
    """Return how many workers there are after a TTIN or a TTOU."""
    return max(1, workers + (1 if name == "TTIN" else -1))


def back_off(failures: int) -> float:
    """Return how long to wait after so many failures: nothing, 0.5 s, 1 s, 2 s … 30 s."""
    return min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(failures - 1, 10)) if failures else 0.0


def last_words(event: Any) -> dict[str, str]:
    """Return what there is to say about the end of a pool that said nothing itself."""
    how = f"ended with status {event.status}" if event.signal is None else f"was ended by {event.signal}"
    return {"reason": f"its process {how}", "traceback": event.words}


# What does it.

NAMES = ("TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "TTIN", "TTOU", "CHLD")
SIGNALS = {int(getattr(_signal, f"SIG{name}")): name for name in NAMES}


class Process:
    """A pool's parent process: its id, our end of the line to it, and what it listens on."""

    def __init__(self, pid: int, line: _socket.socket, words: int | None = None) -> None:
        line.setblocking(False)
        self.pid, self.line, self.words = pid, line, words
        self.held: list[dict[str, Any]] = []
        self.exchange: list[int] = []
        self.pid_file: str | None = None


class Keeper:
    """The process that performs what ``Keeping`` decides."""

    def __init__(self, given: Mapping[str, Any], command: list[str]) -> None:
        self.given, self.command = given, command
        self.keeping = Keeping()
        self.processes = {1: Process(given["pool"], _socket.socket(fileno=given["line"]))}
        self.holder = self.processes[1]  # holds what the next pool inherits
        self.log = "console"
        self.log_file: str | None = None
        self.beat_period = watchdog_period()
        self.beat_at = NEVER if self.beat_period == NEVER else 0.0
        self.poller = select.poll()
        self.wake, self.waker = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(self.waker, False)

    def run(self) -> int:
        """Keep until it is over; return the exit status."""
        os.set_inheritable(self.processes[1].line.fileno(), False)
        if self.given["name"]:
            name_process(self.given["name"])
        _signal.set_wakeup_fd(self.waker, warn_on_full_buffer=False)
        for number in SIGNALS:
            _signal.signal(number, lambda *_: None)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, self.given["mask"])
        self.poller.register(self.wake, select.POLLIN)
        self.poller.register(self.processes[1].line, select.POLLIN)
        events = self.reap()  # what died before there was a handler
        while not self.keeping.finished:
            for event in events:
                for action in self.keeping.handle(event, time.monotonic()):
                    self.perform(action)
            if not self.keeping.finished:
                events = self.wait()
        return self.keeping.status

    # What can happen.

    def wait(self) -> Iterator[Any]:
        """Sleep until something happens, and give all that did, one by one: the next when the one before was dealt with."""
        left = min(self.keeping.next_deadline, self.beat_at if self.keeping.alone else NEVER) - time.monotonic()
        self.poller.poll(None if left == NEVER else max(0, int(left * 1000) + 1))
        if self.keeping.alone and time.monotonic() >= self.beat_at:
            self.beat_at = time.monotonic() + self.beat_period
            notify(os.environ.get("NOTIFY_SOCKET", ""), "WATCHDOG=1")
        signals = self.read_signals()
        # What was said before somebody sent a signal is there by now, and comes first: the signal may be because of it.
        yield from [event for generation in list(self.processes) for event in self.listen_to(generation)]
        yield from [Signal(name) for name in signals if name != "CHLD"]
        if "CHLD" in signals:
            yield from self.reap()
        yield Tick()

    def read_signals(self) -> list[str]:
        """Return the signals that have arrived, in their order."""
        try:
            return [SIGNALS[number] for number in os.read(self.wake, 65536) if number in SIGNALS]
        except BlockingIOError:
            return []

    def listen_to(self, generation: int) -> list[Any]:
        """Return what a pool has said."""
        process = self.processes[generation]
        events: list[Any] = []
        while True:
            try:
                data, passed, _, _ = process.line.recvmsg(MESSAGE_LIMIT, _socket.CMSG_SPACE(256 * 4))
            except OSError:  # nothing there, or nobody
                return events
            descriptors = [number for _, _, numbers in passed for number in integers(numbers)]
            if not data:
                if process.line.fileno() >= 0:
                    self.poller.unregister(process.line)
                    process.line.close()
                return events
            try:
                said = decode(data)
                if said["said"] == "listening":
                    self.take(process, said, descriptors)
                elif said["said"] == "exchange":
                    process.exchange = [self.own(number) for number in descriptors]
                events.append(Said(generation, said["said"], said))
            except (ValueError, LookupError, TypeError):
                pass  # an application may write to a descriptor that it finds open: that must not end us

    def take(self, process: Process, said: Mapping[str, Any], descriptors: list[int]) -> None:
        """Hold what a pool listens on: what is new to us came along."""
        descriptors = [self.own(number) for number in descriptors]
        known = {listener["fd"]: listener for listener in self.holder.held}
        process.held = [
            known.get(listener["fd"]) or {**listener, "fd": descriptors.pop(0)} for listener in said["listeners"]
        ]
        process.exchange = self.holder.exchange
        process.pid_file = said["pid_file"]
        self.log, self.log_file = said["log"], said["log_file"]

    def own(self, descriptor: int) -> int:
        """Let no program have a descriptor that came along, unless it is told of it."""
        os.set_inheritable(descriptor, False)
        return descriptor

    def reap(self) -> Iterator[Any]:
        """Take the exit codes of the dead. As process 1 of a container, those of strangers as well."""
        while True:
            try:
                pid, code = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for generation, process in list(self.processes.items()):
                if process.pid == pid:
                    # Its last words first, while it is still there: it may have died in the moment in which it was ready.
                    yield from self.listen_to(generation)
                    yield self.bury(generation, code)

    def bury(self, generation: int, code: int) -> Any:
        """Let go of a process that is dead, but not of what the next one inherits."""
        process = self.processes.pop(generation)
        words = read_words(process.words)
        if process.line.fileno() >= 0:
            self.poller.unregister(process.line)
            process.line.close()
        if process is not self.holder:
            self.let_go(process)
        if os.WIFSIGNALED(code):
            number = os.WTERMSIG(code)
            return Ended(generation, 128 + number, signal_name(number), words)
        return Ended(generation, os.WEXITSTATUS(code), None, words)

    # What can be done about it.

    def perform(self, action: Any) -> None:
        """Do one thing."""
        match action:
            case Start():
                self.start(action)
            case Tell(generation, order, facts):
                self.tell(generation, {"order": order, **facts})
            case Strike(generation, name):
                self.strike(generation, name)
            case Adopt(generation):
                before, self.holder = self.holder, self.processes[generation]
                if before is not self.holder:
                    self.let_go(before)
            case Notify(text):
                notify(os.environ.get("NOTIFY_SOCKET", ""), text)
            case CloseListeners():
                self.close_listeners()
            case Say(record, facts):
                self.say(record, facts)
            case Finish():
                self.end()

    def strike(self, generation: int, name: str) -> None:
        """Send a signal to a pool's parent, unless it is gone."""
        if generation in self.processes:
            try:
                os.kill(self.processes[generation].pid, getattr(_signal, f"SIG{name}"))
            except ProcessLookupError:
                pass

    def start(self, order: Any) -> None:
        """Start a pool in a fresh interpreter: the same command, directory, environment and umask as at the first."""
        try:
            self.open_and_fork(order)
        except OSError as error:
            why = {"reason": f"the system does not let it start: {error}", "traceback": ""}
            for event in (Said(order.generation, "failed", why), Ended(order.generation, 1, None, "")):
                for action in self.keeping.handle(event, time.monotonic()):
                    self.perform(action)

    def open_and_fork(self, order: Any) -> None:
        """Start a pool; ``OSError`` if the system refuses, and nothing stays open."""
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        words = os.memfd_create("last words")
        kept = [listener["fd"] for listener in self.holder.held]
        mark = {
            "generation": order.generation,
            "why": order.why,
            "workers": order.workers,
            "began": time.monotonic(),
            "keeper": os.getpid(),
            "line": theirs.fileno(),
            "words": words,
            "listeners": [[listener["bind"], listener["fd"]] for listener in self.holder.held],
            "exchange": self.holder.exchange,
        }
        try:
            with_signals_held(lambda: self.fork(order.generation, ours, words, mark, kept))
        except OSError:
            os.close(words)
            ours.close()
            raise
        finally:
            theirs.close()

    def fork(
        self, generation: int, ours: _socket.socket, words: int, mark: dict[str, Any], kept: Sequence[int]
    ) -> None:
        """Fork, and become the fresh interpreter in the child."""
        pid = os.fork()
        if pid:
            process = self.processes[generation] = Process(pid, ours, words)
            self.poller.register(process.line, select.POLLIN)
            return
        try:
            _signal.set_wakeup_fd(-1)
            for number in SIGNALS:
                _signal.signal(number, _signal.SIG_DFL)
            # Whatever it writes before it can speak for itself is its last word if it dies.
            mark["stderr"] = os.dup(2)
            os.dup2(words, 2)
            for number in (mark["line"], mark["stderr"], words, *kept, *mark["exchange"]):
                os.set_inheritable(number, True)
            environment = {**os.environ, self.given["mark"]: encode({**mark, "pid": os.getpid()})}
            if environment.get("LISTEN_PID") == str(mark["keeper"]):  # systemd's descriptors are among those
                environment["LISTEN_PID"] = str(os.getpid())
            os.chdir(self.given["directory"])
            os.umask(self.given["umask"])
            _signal.pthread_sigmask(_signal.SIG_SETMASK, self.given["mask"])
            os.execve(self.command[0], self.command, environment)  # noqa: S606 - it is the command that started us
        except BaseException as error:  # noqa: BLE001 - whatever it is, this must not go on as a second keeper
            os.write(2, f"{error}\n".encode(errors="replace"))
        finally:
            os._exit(1)

    def tell(self, generation: int, message: Mapping[str, Any]) -> None:
        """Send an order. A pool that is dead, or stopped and deaf, does not hold us up."""
        process = self.processes.get(generation)
        if process is not None and process.line.fileno() >= 0:
            try:
                process.line.send(encode(message).encode())
            except OSError:
                pass

    def say(self, record: str, facts: Mapping[str, Any]) -> None:
        """Write a record to where the others go, and in their form."""
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06}Z"
        head = {"timestamp": stamp, "level": "error", "logger": "prefork", "event": record, "pid": os.getpid()}
        fields = {name: value for name, value in facts.items() if value != ""}
        trace = fields.pop("traceback", None)
        if self.log == "json":
            line = encode({**head, "role": "keeper", **fields, **({"exception": trace} if trace else {})}) + "\n"
        else:
            pairs = " ".join(f"{name}={shown(value)}" for name, value in fields.items())
            lines = [f"{time.strftime('%H:%M:%S')} {'error':<7} {record:<22} {pairs}", *(trace or "").splitlines()]
            line = "\n  ".join(lines) + "\n"
        text = line.encode(errors="backslashreplace")
        if self.log != "none" and not (self.log_file is not None and write_to_file(self.log_file, text)):
            write_to_stderr(text)

    def let_go(self, process: Process) -> None:
        """Close and unlink what a pool listened on, but for what the holder does too."""
        kept = {listener["fd"] for listener in self.holder.held} if process is not self.holder else set()
        for listener in process.held:
            if listener["fd"] not in kept:
                unlink(listener["file"])
                os.close(listener["fd"])
        process.held = []
        if process.pid_file not in {None, self.holder.pid_file}:
            unlink_pid_file(process.pid_file)

    def close_listeners(self) -> None:
        """Close the listening sockets: whoever comes now is refused, and need not wait for nothing."""
        others = [process for process in self.processes.values() if process is not self.holder]
        for process in [*others, self.holder]:  # in this order: others share what the holder has
            self.let_go(process)

    def end(self) -> None:
        """Leave nothing behind."""
        self.close_listeners()
        if self.holder.pid_file is not None:
            unlink_pid_file(self.holder.pid_file)


class _Reading:
    """How JSON is read: as by ``json.loads``."""

    strict = True
    object_hook = object_pairs_hook = parse_constant = None
    parse_float, parse_int = float, int


_read = _json.make_scanner(_Reading)  # type: ignore[arg-type]  # it takes whatever has these
_write = _json.make_encoder(None, repr, _json.encode_basestring_ascii, None, ": ", ", ", False, False, True)


def decode(data: bytes) -> Any:
    """Return what JSON says; raises ``ValueError`` for what is none."""
    text = data.decode()
    try:
        value, end = _read(text, 0)
        if end == len(text):
            return value
    except (StopIteration, SystemError):  # for its errors it needs the module json
        pass
    import json

    return json.loads(text)


def encode(value: Any) -> str:
    """Return a value as JSON."""
    return "".join(_write(value, 0))


def shown(value: Any) -> str:
    """Return a value as it stands behind ``key=`` in a line for a person: one word, in quotes if it is not."""
    text = str(value)
    return text if text.isprintable() and not any(mark in text for mark in ' "=\\') else encode(text)


def signal_name(number: int) -> str:
    """Return the name of a signal; of several that one which ``signal.Signals`` has."""
    names = sorted(name for name in vars(_signal) if name.startswith("SIG") and not name.startswith("SIG_"))
    return next((name for name in names if getattr(_signal, name) == number), f"SIG{number}")


def integers(data: bytes) -> list[int]:
    """Return the numbers that are packed in ``data``, C ints."""
    return [int.from_bytes(data[at : at + 4], sys.byteorder) for at in range(0, len(data), 4)]


def with_signals_held(call: Any) -> None:
    """Let no signal in while something is called."""
    before = _signal.pthread_sigmask(_signal.SIG_BLOCK, SIGNALS)
    try:
        call()
    finally:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, before)


def write_to_file(path: str, text: bytes) -> bool:
    """Append to a file that is there, and tell whether that went well. One of ours the workers could not open."""
    try:
        number = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
        try:
            os.write(number, text)
        finally:
            os.close(number)
    except OSError:
        return False
    return True


def write_to_stderr(text: bytes) -> None:
    """Write what somebody reads in time: as much as is free whenever the system says that something is."""
    poller = select.poll()
    poller.register(2, select.POLLOUT)
    try:
        while text and poller.poll(int(WRITE_S * 1000)):
            text = text[os.write(2, text[: select.PIPE_BUF]) :]
    except OSError:
        pass


def read_words(words: int | None) -> str:
    """Return the end of what a pool wrote, and close the file."""
    if words is None:
        return ""
    size = os.fstat(words).st_size
    text = os.pread(words, LAST_WORDS, max(0, size - LAST_WORDS)).decode(errors="replace")
    os.close(words)
    return text


def unlink(file: Sequence[Any] | None) -> None:
    """Unlink the file of a UNIX socket, unless somebody has bound the path anew."""
    if file is None:
        return
    path, device, inode = file
    try:
        there = os.lstat(path)
        if (there.st_dev, there.st_ino) == (device, inode):
            os.unlink(path)
    except OSError:
        pass


def unlink_pid_file(path: str | None) -> None:
    """Unlink the file with our process id, if it is still ours."""
    try:
        with open(path or "") as file:
            ours = file.read().strip() == str(os.getpid())
        if ours:
            os.unlink(path or "")
    except OSError:
        pass


def notify(address: str, text: str) -> None:
    """Send a message to systemd, which takes none but from the process that it has started. Source: sd_notify(3)."""
    try:
        line = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
        line.setblocking(False)
        line.sendto(text.encode(), address.replace("@", "\0", 1) if address.startswith("@") else address)
        line.close()
    except OSError:
        pass


def watchdog_period() -> float:
    """Return how many seconds may pass between two signs of life: half of what systemd asks for. Source: sd_notify(3)."""
    asked = os.environ.get("WATCHDOG_USEC", "")
    ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(asked) / 2_000_000 if ours and asked.isascii() and asked.isdigit() and int(asked) else NEVER


def name_process(name: str) -> None:
    """Show a name in ``top`` and ``ps -o comm``: as many as 15 bytes."""
    try:
        with open("/proc/self/comm", "wb") as file:
            file.write(name.encode()[:15])
    except OSError:
        pass


def main() -> int:
    """Keep what the process that became this one has left in a pipe; the command to run is in the arguments."""
    with open(int(sys.argv[1]), "rb") as pipe:
        given = decode(pipe.read())
    status = Keeper(given, sys.argv[2:]).run()
    # The interpreter gives the signals back before it ends: one more that asks to stop would be what it has died of.
    _signal.pthread_sigmask(_signal.SIG_BLOCK, SIGNALS)
    return status


if __name__ == "__main__":
    sys.exit(main())
