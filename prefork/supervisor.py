"""When is a worker forked, retired, signalled or killed, and when do we give up?

Events in, actions out. No clock, no process, no log: time and randomness are arguments, and the parent performs.
"""

from __future__ import annotations

import math
from dataclasses import field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, TypeAlias, assert_never

from prefork.config import QUICK_STOP_S
from prefork.heartbeat import Heartbeat
from prefork.values import NOTHING, Fields, Value

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from prefork.config import Config

# What can happen.


class WorkerReady(Value):
    """A worker serves."""

    worker: int
    boot_s: float


class WorkerRetiring(Value):
    """A worker wants a successor; ``memory_bytes`` is its private memory if that is why."""

    worker: int
    reason: str
    requests: int
    memory_bytes: int = 0


class WorkerBootFailed(Value):
    """A worker could not start, and says why."""

    worker: int
    summary: str
    traceback: str
    code: str = "PF401"


class WorkerLeaving(Value):
    """A worker is about to exit, after ``requests``, ``overrun`` of them beyond its budget, with ``stuck`` threads."""

    worker: int
    requests: int
    overrun: int
    stuck: int = 0


class WorkerExited(Value):
    """A worker's process is dead: by itself with ``exit_code``, or by ``signal``.

    ``served`` are its requests, as far as is known; ``evidence`` is what to record if nobody wanted it to die.
    """

    worker: int
    exit_code: int | None
    signal: str | None
    served: int = 0
    evidence: Mapping[str, Any] = NOTHING


class WorkerPulse(Value):
    """A worker was looked at, and is pinged ``at`` that time; it had answered the last time at ``beat``."""

    worker: int
    at: float
    beat: float
    served: int
    serving: bool


class WorkerExamined(Value):
    """A worker that does not answer, or is late, was examined: ``stack`` is what its threads do, unless ``stopped``."""

    worker: int
    stopped: bool
    stack: str


class ForkFailed(Value):
    """The system refused to fork ``worker``."""

    worker: int
    error: str


class SignalReceived(Value):
    """The parent got a signal, named without SIG."""

    name: str


class FilesChanged(Value):
    """A watched file changed: the program is to be started anew."""

    path: str


class Superseded(Value):
    """Another ``generation`` serves, in whose favour this one goes; ``None``: the older one, as this came to nothing.

    Under Server::Starter it has a ``starter_generation`` instead.
    """

    generation: int | None
    starter_generation: int | None = None


class Tick(Value):
    """Nothing happened but that time went by."""


Event: TypeAlias = (
    WorkerReady
    | WorkerRetiring
    | WorkerBootFailed
    | WorkerLeaving
    | WorkerExited
    | WorkerPulse
    | WorkerExamined
    | ForkFailed
    | SignalReceived
    | FilesChanged
    | Superseded
    | Tick
)

# What the parent shall do.


class Spawn(Value):
    """Fork a worker: ``worker`` is its serial number, never reused; ``number`` its place; ``budget`` its requests."""

    worker: int
    number: int
    budget: int | None


class Release(Value):
    """Tell a worker that its successor serves: it retires when its budget is spent."""

    worker: int


class Retire(Value):
    """Tell a worker to retire now."""

    worker: int


class Stop(Value):
    """Tell a worker to stop with the pool; ``quick``: to take in nothing more."""

    worker: int
    quick: bool


class CloseAfterAnswer(Value):
    """Tell a worker to serve on, but to close each connection behind its next answer."""

    worker: int


class Kill(Value):
    """Kill a worker."""

    worker: int


class Look(Value):
    """Look whether a worker has answered: ``WorkerPulse`` follows."""

    worker: int


class Ping(Value):
    """Ask a worker for an answer: behind the look, for who is examined is best asleep, or else its stack may break off."""

    worker: int


class Examine(Value):
    """Find out what a worker is at that does not answer, or is late: ``WorkerExamined`` follows."""

    worker: int


class CloseListeners(Value):
    """Close the parent's listening sockets; the workers keep theirs."""


class LeaveListeners(Value):
    """Close the parent's listening sockets, which others go on serving."""


class ReopenLogs(Value):
    """Open log files anew, here and in the workers."""


class Emit(Value):
    """Write a record; about ``worker``, if that is given."""

    record: str
    fields: Mapping[str, Any] = NOTHING
    worker: int | None = None


class Finish(Value):
    """It is over."""

    exit_code: int


Action: TypeAlias = (
    Spawn
    | Release
    | Retire
    | Stop
    | CloseAfterAnswer
    | Kill
    | Look
    | Ping
    | Examine
    | CloseListeners
    | LeaveListeners
    | ReopenLogs
    | Emit
    | Finish
)


class Life(Enum):
    """How far a worker's life has come."""

    STARTING = auto()
    SERVING = auto()
    RETIRING = auto()
    """Has a successor that serves, and leaves when its work is done."""
    STOPPING = auto()
    GONE = auto()


NEXT: Mapping[Life, Mapping[type, Life]] = {
    # Who is not ready hears of it later: only a pool that goes as a whole retires one.
    Life.STARTING: {
        WorkerReady: Life.SERVING,
        Retire: Life.RETIRING,
        Stop: Life.STOPPING,
        WorkerExited: Life.GONE,
    },
    Life.SERVING: {Retire: Life.RETIRING, Release: Life.RETIRING, Stop: Life.STOPPING, WorkerExited: Life.GONE},
    Life.RETIRING: {Stop: Life.STOPPING, WorkerExited: Life.GONE},
    Life.STOPPING: {Stop: Life.STOPPING, WorkerExited: Life.GONE},
    # The report socket may be read after the exit was seen: what a dead worker said last changes nothing.
    Life.GONE: {},
}
COUNTED = {Life.STARTING, Life.SERVING}
"""A retiring worker has left the count: its successor is in it already."""

SECOND_S = 0.25
"""What comes sooner after INT is the same key press: terminals and wrappers such as timeout(1) send it twice."""
KILL_AGAIN_S = 5.0
"""After how long a worker that did not die is killed once more."""
YOUNG_S = 1.0
"""A worker that dies sooner than this after it became ready has died quickly."""
CALM_S = 10.0
"""After so long without a quick death the next one is the first again."""
FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 30.0
AGE_SPREAD = 0.25
"""Workers have come of age somewhere in the last quarter of ``max_worker_age``."""
TOGETHER_S = 1.0
"""Who is to be looked at within this time is looked at now: the parent sleeps longer at a stretch."""
SILENT_DEATHS = 3
"""So many waves of deaths before the first worker was ready, and without a word, end the pool."""


class Worker(Fields):
    """What is known of one worker. ``successor_of`` is the worker it shall relieve, ``successor`` who relieves it.

    ``reason`` says why it is to be replaced, empty as long as it is not; ``ordered`` that a signal wants it, which waits
    for no room; ``retire_at_once`` that nothing is left of its budget; ``delay_told`` that a record said why it serves on;
    ``sick`` that it does not answer, so that it is killed as soon as its successor serves.
    """

    worker: int
    number: int
    born: float
    life: Life = Life.STARTING
    ready_at: float | None = None
    most_age: float = math.inf
    successor_of: int | None = None
    successor: int | None = None
    retire_at_once: bool = False
    ordered: bool = False
    delay_told: bool = False
    reason: str = ""
    requests: int = 0
    overrun: int = 0
    stuck: int = 0
    kill_at: float | None = None
    killed: bool = False
    sick: bool = False
    heart: Heartbeat = field(default_factory=lambda: Heartbeat(0.0))

    @property
    def of_age_at(self) -> float:
        """When it is too old; never, as long as it does not serve, and once it retires anyway."""
        return math.inf if self.ready_at is None or self.retire_at_once else self.ready_at + self.most_age


class BackOff(Fields):
    """Waits longer after each failure: what fails at once must not eat the machine."""

    failures: int = 0
    last: float = -math.inf
    not_before: float = -math.inf
    wave: int = 0
    """The first serial number of those that were forked after the last failure."""

    def fail(self, now: float, worker: int, newest: int, *, least: int = 0) -> float | None:
        """Take note that ``worker`` failed when ``newest`` was the next serial number; return how long to wait.

        ``None``: it had been forked before the last failure, so it is of the same wave, and counts no more.
        """
        if worker < self.wave:
            return None
        self.wave = newest
        if now - self.last > CALM_S + back_off(self.failures):
            self.failures = 0
        delay = back_off(max(self.failures, least))
        self.failures += 1
        self.last = now
        self.not_before = now + delay
        return delay


class Supervisor:
    """Decides for one pool."""

    def __init__(self, config: Config, random: Random, workers: int | None = None, keeper: int | None = None) -> None:
        """``workers`` are wanted if that is not as in ``config``; ``keeper`` is the process id of the pool's."""
        self._config = config
        self._random = random
        self._keeper = keeper
        self._serial = 0
        self._wanted = config.max_workers if workers is None else workers
        self._first_ready = False
        self._announced_ready = False
        self._began = self._started_at = 0.0
        self._silent_deaths = 0
        # Two, so that a worker which dies again and again does not keep the others from being relieved.
        self._vacancies = BackOff()
        self._successions = BackOff()
        self._hindrance = ""  # why there was no successor the last time
        self._max_retiring = config.max_retiring or 2 * config.max_workers
        self._to_replace: set[int] = set()  # who serves, but is to go since all are recycled
        self._delayed_stop = ""  # the signal whose stop waits
        self._stop_at = math.inf
        self._superseded = False
        self._stopping = False
        self._quick = False
        self._hurried_at = 0.0
        self.workers: dict[int, Worker] = {}
        self.finished = False
        self.exit_code = 0

    @property
    def next_deadline(self) -> float | None:
        """When to send a ``Tick`` if nothing happens before."""
        times = [worker.kill_at for worker in self.workers.values() if worker.kill_at is not None]
        if not self._stopping:
            times.append(self._stop_at)
            times += [worker.heart.look_at for worker in self._live(Life.SERVING, Life.RETIRING)]
        if not self._ending:
            times += [self._vacancies.not_before] if self._missing() else []
            times += [self._successions.not_before] if self._unrelieved() else []
            times += [worker.of_age_at for worker in self._live(Life.SERVING, Life.RETIRING)]
        return min((time for time in times if time < math.inf), default=None)

    def start(self, now: float, began: float | None = None) -> list[Action]:
        """Return what to do first; the application was loaded since the pool ``began``, if that is given."""
        self._began, self._started_at = now if began is None else began, now
        return self._restore(now)

    def handle(self, event: Event, now: float) -> list[Action]:  # noqa: PLR0911, RUF100
        """Return what to do about an event."""
        if self.finished:
            return []
        actions = self._decide(event, now)
        return actions + self._recycled() if self._to_replace else actions

    def _decide(self, event: Event, now: float) -> list[Action]:
        match event:
            case WorkerReady():
                return self._ready(event, now)
            case WorkerRetiring():
                return self._asks_for_successor(event, now)
            case WorkerBootFailed():
                return self._boot_failed(event, now)
            case WorkerLeaving():
                return self._leaving(event)
            case WorkerExited():
                return self._exited(event, now)
            case WorkerPulse():
                return self._pulse(event)
            case WorkerExamined():
                return self._examined(event, now)
            case ForkFailed():
                return self._fork_failed(event, now)
            case SignalReceived():
                return self._signalled(event.name, now)
            case FilesChanged():
                return self._file_changed(event, now)
            case Superseded():
                return self._supersede(event)
            case Tick():
                aged = self._recycle(self._aged(now), "max_age", now)
                return self._late(now) + self._looks(now) + aged + self._end_delay(now)
            case _:
                assert_never(event)

    # The number of workers.

    @property
    def workers_wanted(self) -> int:
        """How many workers there shall be."""
        return self._wanted

    @property
    def _ending(self) -> bool:
        """Whether nothing is forked any more."""
        return self._stopping or self._superseded

    def _live(self, *lives: Life) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.life in lives]

    def _missing(self) -> int:
        """Return how many workers to fork so that capacity does not drop; successors come on top."""
        counted = [worker for worker in self._live(*COUNTED) if worker.successor_of is None]
        return max(0, self._wanted - len(counted))

    def _waiting(self) -> list[Worker]:
        """Return who waits for a successor that is not even under way; first those for whom there need be no room."""
        waiting = [w for w in self._live(Life.SERVING) if w.reason and w.successor is None]
        return sorted(waiting, key=lambda worker: not worker.ordered)

    def _under_way(self) -> int:
        return sum(worker.successor_of is not None for worker in self._live(Life.STARTING))

    def _room(self) -> int:
        """Return how many more workers may retire, without those whose successors start already."""
        return max(0, self._max_retiring - len(self._live(Life.RETIRING)) - self._under_way())

    def _unrelieved(self) -> list[Worker]:
        """Return whose successors may be forked."""
        waiting = self._waiting()
        may_start = max(0, self._config.max_workers - self._under_way())
        return waiting[: min(may_start, max(self._room(), sum(worker.ordered for worker in waiting)))]

    def _restore(self, now: float) -> list[Action]:
        """Fork what is missing, unless workers die too quickly."""
        if self._ending:
            return []
        wave: list[Worker | None] = [None] * self._missing() if now >= self._vacancies.not_before else []
        wave += self._unrelieved() if now >= self._successions.not_before else []
        spawns = [self._spawn(now, old, place, len(wave)) for place, old in enumerate(wave)]
        return spawns + self._tell_who_waits(now)

    def _tell_who_waits(self, now: float) -> list[Action]:
        """Say, once of each, who serves on for want of a successor."""
        waiting, retiring = self._waiting(), len(self._live(Life.RETIRING))
        if now < self._successions.not_before:
            reason = self._hindrance
        elif retiring >= self._max_retiring:
            reason = f"{retiring} replaced workers are still at work (max_retiring {self._max_retiring})"
            waiting = [worker for worker in waiting if not worker.ordered]
        else:
            return []
        untold = [worker for worker in waiting if not worker.delay_told]
        for worker in untold:
            worker.delay_told = True
        return [Emit("worker.retirement_delayed", {"reason": reason}, worker.worker) for worker in untold]

    def _spawn(self, now: float, old: Worker | None, place: int, of: int) -> Action:
        """Fork a worker, the ``place``-th ``of`` so many that are forked in one go."""
        serial = self._serial
        self._serial += 1
        taken = {worker.number for worker in self.workers.values()}
        number = next(n for n in range(len(taken) + 1) if n not in taken)
        worker = Worker(serial, number, now, kill_at=now + self._config.boot_timeout)
        worker.heart = Heartbeat(self._config.heartbeat_timeout)
        worker.most_age = draw_age(self._config, self._random, place, of)
        if old is not None:
            worker.successor_of = old.worker
            old.successor = serial
        self.workers[serial] = worker
        return Spawn(serial, number, draw_budget(self._config, self._random, place, of))

    # Lives.

    def _go(self, worker: Worker, cause: type) -> None:
        worker.life = NEXT[worker.life].get(cause, worker.life)

    def _ready(self, event: WorkerReady, now: float) -> list[Action]:
        worker = self.workers.get(event.worker)
        if worker is not None and worker.life is Life.RETIRING:
            worker.kill_at = None  # it has heard by now, and may finish what it took in
        if worker is None or worker.life is not Life.STARTING or worker.killed:
            return []
        self._go(worker, WorkerReady)
        worker.ready_at = now
        worker.kill_at = None
        worker.heart.begin(now)
        self._first_ready = True
        actions: list[Action] = [Emit("worker.ready", {"boot_s": round(event.boot_s, 4)}, worker.worker)]
        actions += self._announce(now)
        if self._delayed_stop:
            actions.append(CloseAfterAnswer(worker.worker))
        return actions + self._relieve(worker, now) + self._dismiss() + self._restore(now)

    def _announce(self, now: float) -> list[Action]:
        """Say, once, that as many serve as are wanted."""
        serving = len(self._live(Life.SERVING))
        if self._announced_ready or serving < self._wanted:
            return []
        self._announced_ready = True
        return [Emit("pool.ready", {"workers": serving, "boot_s": round(now - self._began, 3)})]

    def _relieve(self, successor: Worker, now: float) -> list[Action]:
        """Let the one retire whom ``successor`` relieves; from now on it counts in his place."""
        old = self.workers.get(-1 if successor.successor_of is None else successor.successor_of)
        successor.successor_of = None
        if old is None or old.life is not Life.SERVING:
            return []
        action = Retire(old.worker) if old.retire_at_once else Release(old.worker)
        self._go(old, type(action))
        if old.sick:
            old.kill_at = now
            return self._late(now)
        return [action]

    def _asks_for_successor(self, event: WorkerRetiring, now: float) -> list[Action]:
        worker = self.workers.get(event.worker)
        if worker is None or worker.life is not Life.SERVING or worker.reason:
            return []
        worker.requests = event.requests
        told = {"memory_bytes": event.memory_bytes} if event.memory_bytes else {}
        return [*self._retiring(worker, event.reason, requests=event.requests, **told), *self._restore(now)]

    def _aged(self, now: float) -> list[Worker]:
        return [worker for worker in self._live(Life.SERVING, Life.RETIRING) if worker.of_age_at <= now]

    def _recycle(self, workers: list[Worker], reason: str, now: float, *, ordered: bool = False) -> list[Action]:
        """Replace workers, whatever is left of their budgets."""
        actions: list[Action] = []
        for worker in workers:
            if worker.life is Life.RETIRING and not worker.retire_at_once:
                actions.append(Retire(worker.worker))  # released, it serves on until its budget is spent
            worker.retire_at_once = True
            worker.ordered = worker.ordered or ordered
            actions += self._retiring(worker, reason)
        return actions + self._restore(now)

    def _recycled(self) -> list[Action]:
        """Say that all are replaced who were to be."""
        serving = self._live(Life.SERVING)
        self._to_replace.intersection_update(worker.worker for worker in serving)
        if self._to_replace or self._ending:
            return []
        return [Emit("pool.recycled", {"workers": len(serving)})]

    def _retiring(self, worker: Worker, reason: str, **told: int) -> list[Action]:
        """Take note, once, why a worker is to be replaced: what else comes up changes nothing."""
        if worker.reason:
            return []
        worker.reason = reason
        return [Emit("worker.retiring", {"reason": reason, **told}, worker.worker)]

    def _leaving(self, event: WorkerLeaving) -> list[Action]:
        worker = self.workers.get(event.worker)
        if worker is not None:
            worker.requests, worker.overrun, worker.stuck = event.requests, event.overrun, event.stuck
        return []

    def _boot_failed(self, event: WorkerBootFailed, now: float) -> list[Action]:
        worker = self.workers.get(event.worker)
        if worker is None or self._ending:
            return []
        worker.reason = "boot"
        told = {"reason": event.summary, "traceback": event.traceback, "code": event.code}
        if self._first_ready:
            return [Emit("worker.boot_failed", told, event.worker)]
        # The first word on it is enough: the others fail for the same reason.
        failed = Emit("pool.boot_failed", {**told, "attempts": 1})
        return [failed, *self._stop(now, quick=True, exit_code=1)]

    def _exited(self, event: WorkerExited, now: float) -> list[Action]:
        worker = self.workers.pop(event.worker, None)
        if worker is None:
            return []
        before = worker.life
        self._go(worker, WorkerExited)
        expected = before in {Life.RETIRING, Life.STOPPING} and event.exit_code == 0
        # Who was about to retire, and crashes, has crashed.
        planned = expected or before in {Life.STARTING, Life.STOPPING}
        fields = {
            "exit_code": event.exit_code if event.signal is None else None,
            "signal": event.signal,
            "expected": expected,
            "reason": worker.reason
            if (planned or worker.sick) and worker.reason
            else "stop"
            if before is Life.STOPPING
            else "crash",
            "requests": max(worker.requests, event.served),
            "overrun": worker.overrun,
            "uptime_s": round(now - worker.born, 3),
            **({"stuck": worker.stuck} if worker.stuck else {}),
            **({} if expected else event.evidence),
        }
        actions: list[Action] = [Emit("worker.exited", fields, event.worker)]
        if (old := self.workers.get(-1 if worker.successor_of is None else worker.successor_of)) is not None:
            old.successor = None
        if (heir := self.workers.get(-1 if worker.successor is None else worker.successor)) is not None:
            heir.successor_of = None
        if self._ending:
            return actions + self._finish_if_empty()
        if before is Life.STARTING or (before is Life.SERVING and now - (worker.ready_at or now) < YOUNG_S):
            actions += self._died_quickly(worker, event, now)
        return actions + self._restore(now)

    def _died_quickly(self, worker: Worker, event: WorkerExited, now: float) -> list[Action]:
        """Wait before the next fork, longer each time: an application that dies at once must not eat the machine."""
        delay = self._back_off_of(worker).fail(now, worker.worker, self._serial)
        self._hindrance = "its successors end before they serve"
        if delay is not None and not self._first_ready:
            self._silent_deaths += 1
            if self._silent_deaths >= SILENT_DEATHS:
                why = {"reason": f"crash_loop: the last {how_it_ended(event)}", "code": "PF402"}
                if worker.reason == "boot_timeout":
                    why = {"reason": self._too_late, "code": "PF401"}
                told = {**why, "attempts": self._silent_deaths, "traceback": event.evidence.get("stack") or ""}
                return [Emit("pool.boot_failed", told), *self._stop(now, quick=True, exit_code=1)]
        if not delay:
            return []
        told = {"delay_s": delay, "failures": self._back_off_of(worker).failures}
        return [Emit("worker.respawn_delayed", told, worker.worker)]

    def _back_off_of(self, worker: Worker) -> BackOff:
        return self._vacancies if worker.successor_of is None else self._successions

    def _fork_failed(self, event: ForkFailed, now: float) -> list[Action]:
        worker = self.workers.pop(event.worker, None)
        if worker is None:
            return []
        if (old := self.workers.get(-1 if worker.successor_of is None else worker.successor_of)) is not None:
            old.successor = None
        if self._ending:
            return self._finish_if_empty()
        delay = self._back_off_of(worker).fail(now, worker.worker, self._serial, least=1)
        told = {"error": event.error, "delay_s": delay, "code": "PF404"}
        actions: list[Action] = [Emit("pool.fork_failed", told)] if delay else []
        if not self.workers and not self._first_ready and now - self._started_at > self._config.boot_timeout:
            told = {"reason": event.error, "attempts": self._back_off_of(worker).failures, "code": "PF404"}
            return [*actions, Emit("pool.boot_failed", told), *self._stop(now, quick=True, exit_code=1)]
        self._hindrance = f"the system refused to fork: {event.error}"
        return actions + self._tell_who_waits(now)

    # Who does not answer.

    def _looks(self, now: float) -> list[Action]:
        """Look at those whose time it is."""
        watched = [] if self._stopping else self._live(Life.SERVING, Life.RETIRING)
        if all(worker.heart.look_at > now for worker in watched):
            return []
        due = [worker for worker in watched if worker.heart.look_at <= now + TOGETHER_S]
        for worker in due:
            worker.heart.look(now)
        return [Look(worker.worker) for worker in due]

    def _pulse(self, event: WorkerPulse) -> list[Action]:
        worker = self.workers.get(event.worker)
        if worker is None or worker.killed:
            return []
        silent = worker.heart.hear(event.beat, event.served, serving=event.serving, at=event.at)
        if silent and not worker.sick:
            return [Examine(worker.worker)]
        if worker.sick and worker.heart.answered and not self._stopping:
            worker.sick, worker.kill_at = False, None  # it is replaced nevertheless, but not killed
        return [Ping(worker.worker)]

    def _examined(self, event: WorkerExamined, now: float) -> list[Action]:
        """Replace a worker that does not answer, and kill it when its successor serves, or could not be had in time."""
        worker = self.workers.get(event.worker)
        if worker is None or self._stopping:
            return []
        if worker.life is Life.STARTING:
            return self._never_ready(worker, event.stack)
        worker.sick = worker.ordered = worker.retire_at_once = True
        worker.reason = worker.reason or "unresponsive"
        worker.kill_at = now + self._config.boot_timeout if worker.life is Life.SERVING else now
        told: dict[str, Any] = {
            "silent_s": round(now - worker.heart.asked_at, 3),
            "stopped": event.stopped,
            "stack": event.stack or None,
        }
        told["code"] = "PF430"
        return [Emit("worker.unresponsive", told, worker.worker), *self._late(now), *self._restore(now)]

    # Signals and stops.

    def _signalled(self, name: str, now: float) -> list[Action]:
        match name:
            case "TERM" | "QUIT":
                return self._stop_in_time(now, name)
            case "INT":
                return self._stop(now, quick=True, exit_code=0, signal=name)
            case "USR1":
                return [ReopenLogs()]
            case "HUP" | "USR2" | "TTIN" | "TTOU" if self._ending or self._delayed_stop:
                return []
            case "HUP" | "USR2":
                note = "the workers are replaced" + (self._where_to_deploy if name == "HUP" else "")
                everybody = self._live(Life.SERVING, Life.RETIRING)
                recycling = Emit("pool.recycling", {"signal": name, "note": note})
                self._to_replace.update(worker.worker for worker in self._live(Life.SERVING))
                return [recycling, *self._recycle(everybody, name.lower(), now, ordered=True)]
            case "TTIN" | "TTOU":
                return self._scale(1 if name == "TTIN" else -1, now, name)
            case _:
                return []

    @property
    def _where_to_deploy(self) -> str:
        """What to tell somebody who may have wanted new code."""
        if self._keeper is None:
            return "; new code needs the option redeploy, or a restart"
        return f"; for new code send HUP to {self._keeper}"

    def _scale(self, step: int, now: float, name: str) -> list[Action]:
        before, self._wanted = self._wanted, max(1, self._wanted + step)
        told = {"workers_from": before, "workers_to": self._wanted, "reason": name}
        actions: list[Action] = [Emit("pool.scaling", told)]
        return actions + self._announce(now) + self._dismiss() + self._restore(now)

    def _dismiss(self) -> list[Action]:
        """Let the oldest go if more serve than are wanted. Who still starts is not missed, so that nobody goes too soon."""
        serving = sorted(self._live(Life.SERVING), key=lambda worker: worker.worker)
        actions: list[Action] = []
        for oldest in serving[: max(0, len(serving) - self._wanted)]:
            actions += self._retiring(oldest, "scale_down")
            if (heir := self.workers.get(-1 if oldest.successor is None else oldest.successor)) is not None:
                heir.successor_of = None
            self._go(oldest, Retire)
            actions.append(Retire(oldest.worker))
        return actions

    def _file_changed(self, event: FilesChanged, now: float) -> list[Action]:
        if self._ending:
            return []
        reloading = Emit("pool.reloading", {"reason": "file", "path": event.path})
        return [reloading, *self._stop(now, quick=True, exit_code=3)]

    def _stop_in_time(self, now: float, signal: str) -> list[Action]:
        """Stop after ``stop_delay``: until then whoever sends requests here has time to hear that it is over."""
        if not self._config.stop_delay or self._ending:
            return self._stop(now, quick=False, exit_code=0, signal=signal)
        if self._delayed_stop:
            return []
        self._delayed_stop, self._stop_at = signal, now + self._config.stop_delay
        delayed = Emit("pool.stop_delayed", {"signal": signal, "delay_s": self._config.stop_delay})
        serving = self._live(Life.SERVING, Life.RETIRING)
        return [delayed, *(CloseAfterAnswer(worker.worker) for worker in serving)]

    def _end_delay(self, now: float) -> list[Action]:
        if self._stopping or now < self._stop_at:
            return []
        return self._stop(now, quick=False, exit_code=0, signal=self._delayed_stop)

    def _supersede(self, event: Superseded) -> list[Action]:
        """Let every worker retire, however long that takes: others serve, so nothing presses."""
        if self._ending:
            return []
        self._superseded = True
        told = {"new_generation": event.generation, "new_starter_generation": event.starter_generation}
        told = {name: number for name, number in told.items() if number is not None}
        actions: list[Action] = [Emit("pool.superseded", told)] if told else []
        actions.append(LeaveListeners())
        for worker in self.workers.values():
            self._go(worker, Retire)
            worker.retire_at_once = True
            worker.reason = worker.reason or "deploy"
            actions.append(Retire(worker.worker))
        return actions + self._finish_if_empty()

    def _stop(self, now: float, *, quick: bool, exit_code: int, signal: str = "") -> list[Action]:
        """Stop the pool. TERM again is the same drain; INT again is the end of patience."""
        if self._stopping:
            if quick and self._quick and signal:
                return self._kill_all(now) if now - self._hurried_at >= SECOND_S else []
            if not quick:
                return []
        actions: list[Action] = []
        patience = QUICK_STOP_S if quick else self._config.graceful_timeout
        if not self._stopping:
            self.exit_code = exit_code
            if signal:
                told = {"signal": signal, "graceful": not quick, "timeout_s": patience}
                actions.append(Emit("pool.stopping", told))
            actions.append(CloseListeners())
        self._stopping, self._quick, self._hurried_at = True, quick, now
        for worker in self.workers.values():
            self._go(worker, Stop)
            worker.kill_at = now + patience
            actions.append(Stop(worker.worker, quick=quick))
        return actions + self._finish_if_empty()

    def _kill_all(self, now: float) -> list[Action]:
        for worker in self.workers.values():
            worker.kill_at = now
        return self._late(now)

    def _late(self, now: float) -> list[Action]:
        """Kill whose time is up."""
        actions: list[Action] = []
        for worker in self.workers.values():
            if worker.kill_at is None or worker.kill_at > now:
                continue
            worker.kill_at = now + KILL_AGAIN_S
            if worker.life is Life.STARTING and not worker.killed:
                actions.append(Examine(worker.worker))  # once it is killed nobody can tell what it was at
                continue
            actions.append(Kill(worker.worker))
            if worker.killed:
                continue
            worker.killed = True
            actions.append(Emit("worker.killed", {"after_s": round(now - worker.born, 3)}, worker.worker))
        return actions

    def _never_ready(self, worker: Worker, stack: str) -> list[Action]:
        """Kill a worker that takes too long to start; ``stack`` is what it was at."""
        worker.killed, worker.reason = True, "boot_timeout"
        told = {"reason": self._too_late, "traceback": stack}
        return [Kill(worker.worker), Emit("worker.boot_failed", told, worker.worker)]

    @property
    def _too_late(self) -> str:
        return f"not ready after {self._config.boot_timeout:g} s"

    def _finish_if_empty(self) -> list[Action]:
        if self.workers:
            return []
        self.finished = True
        return [Finish(self.exit_code)]


def how_it_ended(event: WorkerExited) -> str:
    """Return how a worker's process came to its end, in words."""
    return f"ended with status {event.exit_code}" if event.signal is None else f"was ended by {event.signal}"


def draw_budget(config: Config, random: Random, place: int = 0, of: int = 1) -> int | None:
    """Return how many requests one worker serves before it retires, or ``None`` for no limit.

    Drawn for each worker, uniformly from ``min_reqs_per_child`` to ``max_reqs_per_child``, both included. With a maximum
    alone, those that are forked in one go share it out, so that they do not retire together: four that are to serve 100
    get 100, 75, 50 and 25, and their successors, who come one by one, 100 each. Counts requests, not connections.

    Source: the options of Twiggy::Prefork, in the inclusive reading of Starlet and Gazelle.
    """
    most, least = config.max_reqs_per_child, config.min_reqs_per_child
    if not most:
        return None
    return math.ceil(most * (of - place) / of) if least is None else random.randint(least, most)


def draw_age(config: Config, random: Random, place: int, of: int) -> float:
    """Return for how many seconds one worker serves, from three quarters of ``max_worker_age`` to the whole.

    Those that are forked in one go draw each from a slice of its own.
    """
    if not config.max_worker_age:
        return math.inf
    return config.max_worker_age * (1 - AGE_SPREAD * (place + random.random()) / of)


def back_off(failures: int) -> float:
    """Return how long to wait after so many failures: nothing, 0.5 s, 1 s, 2 s … 30 s."""
    return min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(failures - 1, 10)) if failures else 0.0
