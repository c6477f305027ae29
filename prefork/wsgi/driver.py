"""Which thread serves which connection, when does a second one join, and when does a worker accept?

One thread leads: it polls, and serves what is ready itself, in place. So with quick requests one thread runs and no
interpreter lock changes hands. The main thread is the monitor: it looks every ``TICK``, only while there is work, and
if the leader has been away with the same request for a whole tick it promotes a follower, who polls on. A thread that
comes back and no longer leads gives its connection back to the poller and waits. An application that was seen to block
passes the lead on before the call.

A request is collected, head and body, before a thread is spent on it; what a client does not take of its answer waits
in an ``Outbox``. A worker whose threads are all away does not poll, so it does not accept; its monitor leads until one
comes back, and sends the clients that wait meanwhile through the ``Exchange`` to whoever in the pool is free first.
"""

from __future__ import annotations

import math
import os
import select
import stat
import sys
import threading
import time
from collections import deque
from contextlib import contextmanager
from functools import partial
from io import FileIO
from typing import TYPE_CHECKING, Any, TypeAlias

from prefork.access_format import Entry, field
from prefork.http1.connection import NamedConnection, Phase, closing_answer
from prefork.http1.messages import Body, End, Misanswered, Refused, Request
from prefork.outbox import Outbox
from prefork.overload import GONE, QUEUED
from prefork.overtime import GivenUp, Running, take
from prefork.pace import Pace
from prefork.poller import READ, WRITE
from prefork.queueing import waited
from prefork.reception import (
    AT_ONCE,
    LINGER,
    NEVER,
    OVERLOADED,
    RECEIVE,
    WITH_END,
    Guest,
    Origin,
    Outfit,
    Reception,
    Step,
    drain,
)
from prefork.records.access import bound_context
from prefork.request_ids import RequestIds
from prefork.scoreboard import BUSY, IDLE, mark
from prefork.stacks import stack_of_thread
from prefork.wsgi.body import RequestBody
from prefork.wsgi.effort import Effort
from prefork.wsgi.gateway import (
    Answer,
    Base,
    asked_by,
    request_environ,
    server_environ,
    trailers_in_environ,
)

if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable, Collection, Iterable, Iterator

    from prefork.access_format import Outcome
    from prefork.config import Config
    from prefork.http1.connection import Connection
    from prefork.listeners import Listener
    from prefork.tls import Session

TICK = 0.002
"""After how many seconds without a sign of life a leader is taken to be away."""
EASE_TICKS = 50
"""After how many ticks of work a worker leaves half of those who wait in it to whoever is free first."""
QUIET_TICKS = 50
"""After how many ticks without work the monitor sleeps until there is some."""
HOLD = 0.0005
"""How many seconds a complete answer may wait for those of the other clients that were ready at the same time."""
GUESTS = 64
"""How many connections may be taken in before those that are there are asked about again."""
TOGETHER = 16
"""How many of them a worker takes in one after the other that has no siblings."""
ARRIVED = -1
"""What stands in the batch for the events of one who was taken in so, and of whom the poller does not know yet."""
TURN = 1024 * 1024
"""How many bytes of its answer a client is given before others have their turn."""
_HOLDABLE = 16384
_NOTHING = memoryview(b"")
_BLOCKY = 16
# As nginx has it, where no status was told.
_CLIENT_GONE = "499"
# Members of an Enum are looked up dearly in Python 3.11.
_ANSWER, _CLOSED = Phase.ANSWER, Phase.CLOSED


Dispatch: TypeAlias = "Callable[[Client, Request, RequestBody | None], None]"
"""What gives a complete request to the application."""


class Client(Guest):
    """One connection, and the stream of its answers.

    It belongs to the thread that serves it, or to the leader; only what is in the outbox is sent by either.
    """

    __slots__ = ("body", "date", "driver", "lock", "request", "tap")

    def __init__(
        self,
        driver: WsgiDriver,
        sock: _socket.socket,
        connection: Connection,
        base: Base,
        peer: tuple[str, str] | None,
    ) -> None:
        Guest.__init__(self, sock, connection, base, peer, driver.receive)  # super() is dear, for each connection
        self.driver = driver
        self.date = driver.date
        self.request: Request | None = None
        """The request whose body is being collected."""
        self.body: RequestBody | None = None
        self.lock: threading.Lock | None = None
        self.tap = -1
        """A descriptor by which the poller tells when more can be sent while a thread has the client; -1 without one."""

    # The stream of an answer, called by the gateway in the thread that serves.

    def send(self, data: bytes) -> None:
        """Send, and keep what the client does not take now. Raises ``OSError`` once it is gone."""
        self.driver.send_held_back()
        self.send_now(data)

    def complete(self, data: bytes) -> None:
        """Send the last of an answer as it is, at once or together with those of others."""
        driver = self.driver
        if self.outbox is not None or self.connection.answer_close or not driver.hold_back(self, data):
            driver.send_held_back()
            self.send_octets(data)

    def conclude(self, data: bytes) -> None:
        """Send the last of a connection: in one packet with its end, if that follows at once."""
        driver = self.driver
        driver.send_held_back()
        self.send_octets(data, WITH_END if driver.ends_at_once() else AT_ONCE)

    def send_octets(self, data: bytes, flags: int = AT_ONCE) -> None:
        """Send as it is, before all that is held back."""
        if self.outbox is None:
            try:
                sent = self.sock.send(data, flags)
            except BlockingIOError:
                sent = 0
            if sent < len(data):
                outbox = self._open_outbox(memoryview(data)[sent:])
                if outbox.size > outbox.most:
                    self._push()
                self.driver.see_to_rest(self)
            return
        with self._held():
            if not self.outbox:
                self._begin_to_wait(self.outbox)
        self.outbox.add(data, self._held())
        self._push()
        self.driver.see_to_rest(self)

    send_now = send_octets
    """Send what is not encrypted yet, where that is to be, before all that is held back."""

    def sendfile(self, file: Any, offset: int, size: int, *, last: bool) -> None:  # noqa: ARG002 - for who has a limit
        """Let the kernel send a part of a file, which may be the ``last`` of an answer."""
        self.driver.send_held_back()
        outbox = self._open_outbox() if self.outbox is None else self.outbox
        with self._held():
            outbox.add_file(file.fileno(), offset, size)
        self.flush(TURN)
        self.driver.see_to_rest(self)

    def measure(self, file: Any) -> tuple[int, int] | None:
        """Return offset and size of what is left of a regular file, ``None`` for anything else."""
        # One that unpacks (gzip, bz2, lzma) has the descriptor of what is packed.
        plain = getattr(file, "file", file)  # of tempfile, or Django's
        if not isinstance(getattr(plain, "raw", plain), FileIO):
            return None
        try:
            found = os.fstat(file.fileno())
            offset = file.tell()
        except (AttributeError, OSError, ValueError):
            return None
        return (offset, max(0, found.st_size - offset)) if stat.S_ISREG(found.st_mode) else None

    def tell(self) -> bool:
        """Return whether its request is still to be written into the access log, which is up to the caller then."""
        return True

    def flush(self, most: float = NEVER) -> int:
        """Send what waits, but not more than about ``most``; return how much. Raises ``OSError`` once the client is gone."""
        with self._held():
            return 0 if self.outbox is None else self.outbox.flush(self.sock, most)

    def _open_outbox(self, first: memoryview = _NOTHING) -> Outbox:
        self.sock.setblocking(False)  # sendfile() has no flags
        if self.lock is None:  # one for all its outboxes: somebody may still wait for it
            self.lock = threading.Lock()
        outbox = self.new_outbox()
        outbox.failed = self.driver.tell_of_spool
        if first:
            outbox.add(first)
        self._begin_to_wait(outbox)
        self.outbox = outbox  # last: the thread that has the client may come back to it now, and not find it empty
        return outbox

    def _begin_to_wait(self, outbox: Outbox) -> None:
        """Have the time run in which the client has to take what comes into an outbox that is empty."""
        config = self.driver.config
        outbox.pace = Pace(config.write_timeout, config.write_min_rate, time.monotonic(), outbox.taken(self.sock))

    def new_outbox(self) -> Outbox:
        """Return what holds what the client does not take at once."""
        return Outbox(self.driver.config.spool_dir)

    def _push(self) -> None:
        while self.flush(TURN) >= TURN:
            pass  # who else has something to send to this client need not wait for all of it
        if self.outbox:
            self._see_it_take(self.outbox)

    def _see_it_take(self, outbox: Outbox) -> None:
        """Wait while too much is waiting; raises ``TimeoutError`` if the client is too slow, although its answer goes on."""
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        while True:
            if not self.takes():
                self.broken = True
                raise TimeoutError("the client takes too little")
            if outbox.size <= outbox.most:
                return
            poll.poll(max(0.0, self.deadline - time.monotonic()) * 1000)
            self.flush(TURN)

    def _held(self) -> threading.Lock:
        assert self.lock is not None
        return self.lock


class TimedClient(Client):
    """A connection whose requests have a limit of time: who is late has nothing to say any more."""

    __slots__ = ("running",)

    def __init__(
        self,
        driver: WsgiDriver,
        sock: _socket.socket,
        connection: Connection,
        base: Base,
        peer: tuple[str, str] | None,
    ) -> None:
        super().__init__(driver, sock, connection, base, peer)
        self.running: Running | None = None

    def send(self, data: bytes) -> None:
        """Send, unless somebody else has answered."""
        if self.running is not None:
            self.running.begin_to_send()
        super().send(data)

    def complete(self, data: bytes) -> None:
        """Send the last of an answer, unless somebody else has answered."""
        running = self.running
        if running is not None:
            running.complete()
        super().complete(data)
        if running is not None:
            running.whole = True

    def conclude(self, data: bytes) -> None:
        """Send the last of a connection, unless somebody else has answered."""
        running = self.running
        if running is not None:
            running.complete()
        super().conclude(data)
        if running is not None:
            running.whole = True

    def sendfile(self, file: Any, offset: int, size: int, *, last: bool) -> None:
        """Let the kernel send a part of a file, unless somebody else has answered."""
        running = self.running
        if running is None:
            super().sendfile(file, offset, size, last=last)
            return
        if last:
            running.complete()
        else:
            running.begin_to_send()
        super().sendfile(file, offset, size, last=last)
        running.whole = last

    def tell(self) -> bool:
        """Return the same: whoever answers for a late thread tells as well."""
        return self.running is None or take(self.running.untold)

    def _see_it_take(self, outbox: Outbox) -> None:
        if self.running is None or outbox.size <= outbox.most:
            super()._see_it_take(outbox)
            return
        with self.driver.paused(self.running):
            super()._see_it_take(outbox)


class _Detached(Exception):
    """The client is the leader's: its thread was given up behind a whole answer."""


class _Turn(threading.Semaphore):
    """What a thread waits for that does not lead."""

    veteran = False
    """Whether it has been away with a request before."""

    clock: int | None = None
    """The clock of its CPU time, where there is one."""


class WsgiDriver(Reception[Client]):
    """Serves a WSGI application on ``config.threads`` request threads; the worker's main thread is the monitor."""

    over = True
    given_up: Collection[threading.Thread] = ()

    def __init__(
        self, app: Callable[..., Iterable[bytes]], listeners: Iterable[Listener], config: Config, outfit: Outfit
    ) -> None:
        self._extra = {**outfit.facts.shown(outfit.exit_guard), "prefork.extend_deadline": no_deadline}
        super().__init__(listeners, config, outfit)
        self._mine = threading.local()  # the request that a thread is at
        self.app = self._with_deadline(app) if config.request_timeout else app
        if config.request_id:
            self.app = self._with_id(self.app)
        self.failure: BaseException | None = None
        """What ended a leader: a fault of the server. A worker without a leader serves nobody, so it must end."""
        self._round = 0  # how much of it is done before the poller is asked again: nobody waits for one that pipelines
        self._held_back: deque[tuple[Client, bytes]] = deque()  # complete answers, to go out together
        self._hold_until = NEVER
        self._sending = threading.Lock()
        self._taps: dict[int, Client] = {}
        self._guests = 0  # how many were taken in since the poller was asked
        # Where there is a limit each has its turn before it is seen whether there are too many.
        self._alone = config.max_workers == 1 and not self._limited
        self._done = False
        self._threads: list[threading.Thread] = []
        # Of the scoreboard: for threads that are still to be started, and for those in the place of the lost.
        self._cells, self._spare_cells = self._row.cells[: config.threads], self._row.cells[config.threads :]
        self._cell = 0  # the leader's
        measures = config.access_log or config.queue_timeout
        self.receive: Step = self._receive_measured if measures else self._receive
        self.advance: Step = self._advance_measured if measures else self._advance
        self._call_now = self._call_in_time if config.request_timeout else self._call
        self._dispatch: Dispatch = self._call_in_turn if config.queue_timeout else self._call_now
        if config.request_id:
            self._dispatch = self._naming(self._dispatch)
        self._patience = config.queue_timeout or NEVER
        self._kinds_of_clients = _kinds_of_clients(timed=bool(config.request_timeout), tls=self.tls is not None)
        self._running: dict[Running, Client] = {}  # what has a limit of time
        self._lost: set[threading.Thread] = set()  # threads that were given up
        self._moving = 0  # clients on their way from such a thread's descriptor to another
        self._hopeless_from = NEVER  # when nobody is waited for any more who was given up, if that is all of them
        self._lock = threading.Lock()  # guards the lead, taken only when it changes hands
        # The last to come is the first to be promoted: caches stay warm, and connections to the database few.
        self._waiting: list[_Turn] = []
        self._leader: int | None = None
        self._told_of_refusal = False  # that the system lets no further thread start
        self._vacant = False  # whether all threads are away, and the monitor leads until one comes back
        # Whom the leader serves. Who takes it out decides: the leader that comes back, or a promotion.
        self._served: set[Client] = set()
        self._away = 0  # how many threads were left alone with their requests
        self._looks_out = False  # whether the leader waits for whoever comes, and would be idle if nobody were away
        self._turn = 0
        self._clock: int | None = None  # the leader's CPU time
        self._effort = Effort(TICK)
        self._blocky = 0  # how surely the application blocks; above 0 the lead passes on before the call
        self._monitor_sleeps = True
        self._quiet = 0
        self._worked = 0  # for how many ticks
        self._seen = 0

    def reopen(self, outfit: Outfit) -> None:
        """Be the driver of a process that was forked after ``close``: what is the same for all its siblings is there."""
        self._begin(outfit)
        self._done = False
        self._extra.update(outfit.facts.shown(outfit.exit_guard))
        for base in self._bases.values():
            base.update(self._extra, **{"wsgi.errors": sys.stderr})

    # Called by the worker's main thread.

    def end(self) -> None:
        """Do nothing: the threads have ended, or nobody can end them."""

    def run(self, started: Callable[[], None], lead: Callable[[], None]) -> None:
        """Serve, beside ``lead`` in this thread."""
        self._resume_accepting()
        self._new_thread()
        started()
        lead()

    def tick(self) -> int | None:
        """Promote a follower if the leader is away; return for how many milliseconds the monitor may sleep.

        Raises what ended a leader.
        """
        if self.failure is not None:
            raise self.failure
        patience = self._watch_leader()
        if self._turned_away.pending:
            patience = self._tell_turned_away(patience)
        return self._end_overtime(patience) if self._running else patience

    def _watch_leader(self) -> int | None:
        if self._monitor_sleeps and self._turn != self._seen:
            self._monitor_sleeps = False  # somebody came in while it fell asleep
        if self._monitor_sleeps:
            return self._until_taken()
        turn = self._turn
        if not self._served:
            self._quiet = self._quiet + 1 if turn == self._seen and not self._vacant else 0
        elif self._is_at_work(anew=turn != self._seen):
            self.send_held_back()
        elif turn == self._seen:
            self._blocky = min(_BLOCKY, self._blocky + 2)
            self._promote(vacate=self._exchange is not None)
            self.send_held_back()
        if self._vacant:
            self._share()
        if self._eases and turn != self._seen:
            self._worked += 1
            if self._worked >= EASE_TICKS:
                self._worked = 0
                self._order(self._ease)
        self._seen = turn
        if self._quiet > QUIET_TICKS:
            self._quiet = 0
            self._monitor_sleeps = True
        return int(TICK * 1000)

    def _is_at_work(self, *, anew: bool) -> bool:
        """Whether the leader is not away but computes, and no sibling could do it sooner."""
        if self._clock is None:
            return False
        return self._effort.look(time.clock_gettime(self._clock), anew=anew) and not self._idlers.any()

    def pulse(self, beat: Callable[[], None]) -> None:
        """Call ``beat``: this thread serves no request, and while it runs so do the others."""
        beat()

    @property
    def descriptors(self) -> set[int]:
        """What a child that the application forks has to let go of."""
        own = super().descriptors
        return own | {*self._taps} if own else own

    @property
    def overdue(self) -> bool:
        """Whether a thread was given up."""
        return bool(self._lost)

    @property
    def drained(self) -> bool:
        """Whether nothing is left to answer, and nothing new can come."""
        return not self._moving and super().drained

    @property
    def stuck(self) -> int:
        """How many of the threads that were given up are still there."""
        return sum(thread.is_alive() for thread in self._lost)

    def close(self) -> None:
        """End the threads that are not stuck, and give everything back."""
        self._done = True
        self._wake()
        self.send_held_back()
        with self._lock:
            for semaphore in self._waiting:
                semaphore.release()
        for thread in self._threads:
            if thread not in self._lost:
                thread.join(1.0)
        for client in list(self._clients.values()):
            self._close(client)
        self._tell_who_was_turned_away(NEVER)
        if not any(thread.is_alive() for thread in self._threads):
            self._close_pipes()

    # The lead.

    def _new_thread(self) -> None:
        """Start a thread; raises ``RuntimeError`` if the system refuses one more."""
        name = f"prefork-{len(self._threads)}"
        thread = threading.Thread(target=self._follow, args=(self._cells[-1],), name=name, daemon=True)
        thread.start()
        self._cells.pop()
        self._threads.append(thread)

    def _follow(self, cell: int) -> None:
        turn = _Turn(0)
        if hasattr(time, "pthread_getcpuclockid"):  # not on macOS
            turn.clock = time.pthread_getcpuclockid(threading.get_ident())
        try:
            while not self._done:
                was_away = self._lead(cell, turn)
                if self._handing_over:
                    self._order(self._hand_over_idle)  # what was in this thread's hands when all others were
                if self._lost and threading.current_thread() in self._lost and not self._take_place_back():
                    return  # another has its place
                # Before the look at `_done`: close() lets go whom it finds waiting, and says so first.
                with self._lock:
                    if was_away:
                        self._away -= 1
                        turn.veteran = True
                        if self._looks_out and not self._away:
                            self._idlers.memory[self._place] = IDLE
                    if self._vacant:
                        self._vacant = False
                        if self._accepting:
                            self._begin_to_take()
                        self._batch.appendleft((self._into, 0))  # who waits there has waited longer
                        continue
                    self._waiting.insert(len(self._waiting) if turn.veteran else 0, turn)
                if self._blocky and was_away:
                    self._promote()  # the leader is away as well, or will be: this thread need not wait for the monitor
                if not self._done:
                    turn.acquire()
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            self.send_held_back()
            self.failure = error
            self._tell_monitor()
        finally:
            if self._thread_exit is not None:
                self._thread_exit()

    def _take_place_back(self) -> bool:
        """Return whether a thread that was given up, and is back, goes on: if nobody leads, and nobody else can."""
        with self._lock:
            if not self._vacant or self._can_promote():
                return False
            self._lost.discard(threading.current_thread())
            self._away += 1  # as it is for all who come back
            return True

    def _can_promote(self) -> bool:
        return bool(self._waiting or self._cells)

    def _promote(self, *, vacate: bool = False) -> None:
        """Let another thread lead, while the present one is away with its client; if all are, ``vacate`` the lead."""
        with self._lock:
            if not (self._can_promote() or vacate):
                return
            try:
                client = self._served.pop()
            except KeyError:
                return
            self._unwatch(client)
            if client.outbox:
                self._open_tap(client, waits=False)
            self._away += 1
            self._pass_lead()

    def _pass_lead(self) -> None:
        """Let whoever is free lead, or else the monitor. Under the lock."""
        self._leader = None
        self._vacant = False
        if self._waiting:
            self._waiting.pop().release()
            return
        if self._cells:
            try:
                self._new_thread()
            except RuntimeError as error:
                if not self._told_of_refusal:
                    self._told_of_refusal = True
                    self.records.emit(
                        "worker.thread_refused", reason=str(error), threads=len(self._threads), code="PF505"
                    )
            else:
                return
        self._vacant = True

    def _share(self) -> None:
        """Lead for the threads, which are all away: leave to the pool who waits here with a request."""
        with self._lock:
            if not self._vacant:
                return
            while self._orders:
                self._orders.popleft()()
            # The kernel woke only us for these, and we cannot serve them.
            ours = {fd for fd, events in self._batch if events}
            self._watch_arrived()
            self._batch.clear()
            self._see_if_hopeless()
            self._end_late()
            if self._parting:
                self._part()
            if self._exchange is None:
                return
            if not self._leaving:
                self._share_newcomers(ours)
            room = not self._leaving
            for fd, _ in self._poller.poll(0):
                room = self._share_one(fd, room=room)

    def _see_if_hopeless(self) -> None:
        if len(self._lost) < len(self._threads):
            self._hopeless_from = NEVER
        elif self._hopeless_from == NEVER:
            self._hopeless_from = time.monotonic() + LINGER
        elif time.monotonic() >= self._hopeless_from:
            # Nobody serves them, nor looks at their deadlines, and the worker would stay for them for ever.
            for given_up in list(self._clients.values()):
                self._close(given_up)

    def _end_late(self) -> None:
        """End what took too long, as far as that takes no thread: what came of a request may be all of it."""
        due, now = self._deadlines.next, time.monotonic()
        if due is None or now < due:
            return
        for client in self._deadlines.expired(now):
            asks = client.outbox is None and (client.step == self.receive or client.opening is not None)
            if client.watched and asks and not client.has_unread():
                self._serve(client, self._end_silent)
            else:
                self._expire(client)

    def _end_silent(self, client: Client) -> bool:
        """End a connection on which nothing came in time."""
        if self._late(client):
            if client.connection.idle:
                client.broken = True
            else:
                self._time_out(client)
        return False

    def _share_newcomers(self, ready: set[int]) -> None:
        for fd in ready & self._gates.keys() if self._accepting else ():
            while (client := self._accept(fd)) is not None and self._share_out(client):
                pass
        if self._into in ready and (client := self._take_over()) is not None:
            self._share_out(client)

    def _share_one(self, fd: int, *, room: bool) -> bool:
        """Leave one who is ready to the pool, if that has ``room``, or send what waits for it: that takes no thread.

        Returns whether there is room for the next.
        """
        client = self._clients.get(fd)
        if client is None:
            if (thirsty := self._taps.get(fd)) is not None:
                self._drip(thirsty)
        elif client.watched and client.outbox is not None:
            self._serve(client, self.flush)
        elif room and self._may_go(client):
            return self._share_out(client)
        return room

    def _lead(self, cell: int, turn: _Turn) -> bool:
        """Lead; return whether somebody else was promoted meanwhile, and not only given the lead."""
        me = self._leader = threading.get_ident()
        self._clock = turn.clock
        self._cell = cell
        self.send_held_back()
        batch = self._batch
        clients = self._clients
        while self._leader == me and not self._done:
            if batch:
                fd, events = batch.popleft()
                if not turn.veteran and self._waiting and self._give_lead_to_veteran((fd, events)):
                    return False
                client = clients.get(fd)
                if client is not None:
                    # If it is not watched it has just arrived, or is in other hands, and the event is of yesterday.
                    if (client.watched and not (self._away and self._leave_to_idle(client))) or events == ARRIVED:
                        self._serve(client, client.step)
                elif fd in self._gates:
                    self._welcome(fd)
                elif fd == self._into:
                    self._welcome_from_sibling()
                elif fd == self._out:
                    self._part()
                elif fd == self._wake_end:
                    drain(fd)
                elif (thirsty := self._taps.get(fd)) is not None:
                    self._drip(thirsty)
            elif self._round:
                self._round -= 1
                client, step = self._behind.popleft()
                if client.watched:
                    self._serve(client, step)
            else:
                self._wait()
        return True

    def _take_up(self) -> frozenset[int]:
        if self._vacant:
            return frozenset()
        self._batch.extend(self._poller.poll(0))
        return frozenset(fd for fd, _ in self._batch)

    def _give_lead_to_veteran(self, event: tuple[int, int]) -> bool:
        """Let a thread serve that has done so before, if one waits: this one has no connection to the database yet."""
        with self._lock:
            if not (self._waiting and self._waiting[-1].veteran):
                return False
            self._batch.appendleft(event)
            self._leader = None
            self._waiting.pop().release()
        return True

    def _wait(self) -> None:
        """Fill the batch, and do what is due."""
        self.send_held_back()
        if self._orders:
            self._orders.popleft()()
            return
        self._sleeps_until = NEVER  # first: who lists a deadline from now on sees that, or is seen here
        due = self._deadlines.next
        if self._resume_at != NEVER:
            due = self._resume_at if due is None else min(due, self._resume_at)
        patience = None if due is None else max(0.0, due - time.monotonic())
        if due is not None:
            self._sleeps_until = due
        if self._behind:
            self._batch.extend(self._poller.poll(0))
        elif self._eases and self._taking and not self._full:
            self._looks_out = True
            if not self._away:
                self._idlers.memory[self._place] = IDLE
            self._batch.extend(self._poller.poll(patience))
            self._looks_out = False
            self._idlers.memory[self._place] = 0
        else:
            self._batch.extend(self._poller.poll(patience))
        self._sleeps_until = 0.0
        if due is not None and time.monotonic() >= due:
            self._look_at_deadlines()
        self._round = len(self._behind)
        self._guests = 0

    # Connections.

    def _welcome(self, fd: int) -> None:
        """Take connections in, and look for their requests.

        One, and at once; the next is taken in behind the next client that is ready: who comes waits no longer than who is
        there, and what a worker cannot serve yet is left to its siblings. One that has none takes some in together, to
        serve them in their turn: doing one thing many times is cheaper than doing many things in turn.
        """
        if self._alone:
            for _ in range(TOGETHER):
                if not self._accepting or (client := self._accept(fd)) is None:
                    return
                self._batch.append((client.fd, ARRIVED))
            return
        client = self._accept(fd) if self._accepting else None  # since the poller told of it, too many may have come
        if client is not None:
            self._guests += 1
            if self._guests < GUESTS:
                self._batch.insert(1, (fd, READ))
            if not (self._limited and self._crowded()):
                self._serve_or_leave(client)
            elif not self._leave_to_siblings(client):
                self._serve(client, self.turn_away)

    def _watch_arrived(self) -> None:
        """Leave to the poller those who were taken in and had no turn yet; they stand in the batch no longer."""
        batch = self._batch
        for _ in range(len(batch)):
            fd, events = batch.popleft()
            if events == ARRIVED:
                self._watch(self._clients[fd], READ)
            else:
                batch.append((fd, events))

    def _retire(self, *, spent: bool = False) -> None:
        self._watch_arrived()  # so that they are handed over as well
        super()._retire(spent=spent)

    def _serve_or_leave(self, client: Client) -> None:
        """Look for the request of one who came in."""
        if self._away:
            self._watch(client, READ)
            if self._leave_to_idle(client):
                return
        self._serve(client, client.step)

    def _welcome_from_sibling(self) -> None:
        """Take in one whom a sibling has handed over.

        The next has to wait for the next look at the poller: so a sibling that has less to do takes more of them. If this
        one has waited long all have to do much: then the next is taken in behind the next client that is ready.
        """
        client = self._take_over() if self._may_take() else None
        if client is not None:
            if self._batch and self._waited > TICK:
                self._batch.insert(1, (self._into, 0))
            if client.requests or not self._crowded():
                self._serve_or_leave(client)
            else:
                self._serve(client, self.turn_away)

    def _new_client(
        self, sock: _socket.socket, connection: Connection, base: Base, peer: tuple[str, str] | None
    ) -> Client:
        return self._kinds_of_clients[base["wsgi.url_scheme"]](self, sock, connection, base, peer)

    def _request_of(self, client: Client) -> Request | None:
        return client.request

    def _asked_by(self, client: Client, request: Request) -> tuple[str, str]:
        return asked_by(client.base, client.peer, request)

    def _environ_for_log(self, client: Client, _request: Request) -> Base:
        base: Base = client.base
        return base

    def _reply(self, client: Client, octets: bytes) -> None:
        client.send(octets)

    def base_of_session(self, base: Base, session: Session) -> Base:
        """Return ``base`` with the facts of a TLS session, the same for all that have the same."""
        facts = session.facts()
        if "SSL_CLIENT_CERT" in facts:
            return base.extended(facts)
        key = (base.origin, *facts.values())
        if (found := self._bases.get(key)) is None:
            found = self._bases[key] = base.extended(facts)
        return found

    def _origin(self, base: Base) -> Origin:
        return base.origin

    def _new_base(self, origin: Origin) -> Base:
        environ = server_environ(
            name=origin.name,
            port=origin.port,
            scheme=origin.scheme,
            errors=sys.stderr,
            multithread=self.config.threads > 1,
            root_path=self.config.root_path,
            extra=self._extra if origin.proxy is None else {**self._extra, "prefork.peer": origin.proxy},
        )
        return Base(environ, origin, self._belief if origin.trusted else None, self._tell_of_ignored)

    def _serve(self, client: Client, step: Step) -> None:
        """Take one step for a client; afterwards it is closed, or back at the poller."""
        self._turn += 1
        if self._monitor_sleeps:  # behind the turn: if it falls asleep just now, it sees that one
            self._monitor_sleeps = False
            self._tell_monitor()
        answered = False
        try:
            answered = step(client)
        except OSError:
            client.broken = True
        except _Detached:
            return
        self._settle(client, answered=answered)
        if self._behind and self._leader != threading.get_ident():
            self._wake()

    def _settle(self, client: Client, *, answered: bool) -> None:
        """Give a client back to the poller, or close it."""
        connection = client.connection
        if client.tap >= 0:
            self._close_tap(client)
        if client.broken:
            self._close(client)
        elif client.outbox is not None and not self._emptied(client):
            self._watch_outbox(client)
        elif connection.phase is _CLOSED:
            if not (connection.leftover or client.has_unread()):
                self._close(client)
            elif client.step == self.read_out:
                self._watch(client, READ)
            else:
                connection.leftover = True  # until it leaves, or its time is up
                self._let_read(client)
        elif connection.idle:
            if answered or client.deadline == NEVER:  # of what lay here behind its last request nothing was one
                now = time.monotonic()
                client.deadline = now + self._keep_alive
                if now > self._hold_until:
                    self.send_held_back()
            if self._handing_over:
                self._hand_over(client)
            else:
                self._watch(client, READ)
        elif answered:
            # What lies here may be a next request. Others come first, and nothing more is read meanwhile: what a client
            # sends ahead of its answers stays in the kernel, which makes it wait.
            client.deadline = NEVER
            client.step = self.await_turn
            self._watch(client, READ)
            self._behind.append((client, self.take_turn))
        else:
            self._watch(client, READ)

    # Answers that go out together. A client that waits for an answer sleeps; to wake it costs the kernel as much as a
    # small request costs us. So while others are ready to be served, complete answers are held back for a moment.

    def hold_back(self, client: Client, data: bytes) -> bool:
        """Keep an answer until the others that are ready have theirs; return ``False`` if it must go out at once.

        Only for a leader, which will see to it; if it stays away with the same request for a tick, the monitor does.
        """
        if not self._batch or client not in self._served or len(data) > _HOLDABLE:
            return False
        if not self._held_back:
            self._hold_until = time.monotonic() + HOLD
        self._held_back.append((client, data))
        if client not in self._served:
            self.send_held_back()
        return True

    def ends_at_once(self) -> bool:
        """Whether nothing comes between the last of a connection and its end: no other thread, nobody who reads its log."""
        return not (self._away or self._lost or (self._access is not None and self._access.prompt))

    def send_held_back(self) -> None:
        """Send all complete answers, in their order; another thread may be at it, and then has to be waited for."""
        if not (self._held_back or self._sending.locked()):
            return
        leads = self._leader == threading.get_ident()
        with self._sending:
            self._hold_until = NEVER
            while self._held_back:
                client, data = self._held_back.popleft()
                try:
                    client.send_octets(data)
                except OSError:
                    client.broken = True  # the poller tells of it
                # Who leads may have a client in its hands, or have closed it: to anybody else there is the tap.
                if client.outbox is not None and client.watched and leads and client.takes():
                    client.step = self.flush
                    self._watch(client, WRITE)
            if self._access is not None:
                self._access.flush()

    # What a client did not take of an answer whose thread is away. It must not wait until the application goes on (PEP
    # 3333, "Handling Transmission"), so the leader sends it: by a second descriptor, for the client itself is not watched.

    def see_to_rest(self, client: Client) -> None:
        """Have what waits for a client be sent, also while its thread does something else."""
        # One that is served leads, and will see to it, or be found to be away; who is watched is the leader's.
        if client not in self._served and not (client.watched and self._leader == threading.get_ident()):
            self._open_tap(client)

    def _open_tap(self, client: Client, *, waits: bool = True) -> None:
        """Open one, if there is something to send; one that does not wait leaves it to the thread that is at it just now."""
        assert client.lock is not None
        if not client.lock.acquire(blocking=waits):
            return
        try:
            if client.tap < 0 and client.outbox:
                tap = os.dup(client.fd)
                try:
                    self._poller.register(tap, WRITE)
                except OSError:
                    os.close(tap)
                    raise
                client.tap = tap
                self._taps[tap] = client
        except OSError:
            pass  # the system has no more of them: then it is sent when the thread comes back
        finally:
            client.lock.release()

    def _close_tap(self, client: Client) -> None:
        assert client.lock is not None
        with client.lock:
            self._shut(client)

    def _shut(self, client: Client) -> None:
        tap, client.tap = client.tap, -1
        if tap >= 0:
            self._poller.unregister(tap)
            del self._taps[tap]
            os.close(tap)

    def _drip(self, client: Client) -> None:
        """Send what a client takes now."""
        if client.watched:  # no thread has it: its answer was held back, and sent by one that does not lead
            self._serve(client, self.flush)
            return
        assert client.lock is not None
        with client.lock:
            if client.tap < 0:
                return  # its thread came back meanwhile, and has the outbox for itself
            try:
                if client.outbox is not None:
                    client.outbox.flush(client.sock, TURN)
            except OSError:  # its thread will see that it is gone
                self._shut(client)
            if not client.outbox:
                self._shut(client)

    # The steps that a client may take.

    def _receive_measured(self, client: Client) -> bool:
        """Take in what the client sent, and note how long it has waited for that."""
        if client.connection.idle:
            client.queue_s = waited(client.sock)
            if client.queue_s:
                # It waits for nobody but itself while its last request is being served.
                client.queue_s = min(client.queue_s, time.monotonic() - client.free_at)
        return self._noted(client, answered=self._receive(client))

    def _advance_measured(self, client: Client) -> bool:
        return self._noted(client, answered=self._advance(client))

    @staticmethod
    def _noted(client: Client, *, answered: bool) -> bool:
        if answered:
            client.free_at = time.monotonic()
            client.queue_s = client.queue_s and 0.0  # for what it has sent ahead
        return answered

    def _receive(self, client: Client) -> bool:
        """Take in what the client sent."""
        try:
            data = client.receive(RECEIVE, AT_ONCE)
        except BlockingIOError:
            return False
        if not data:
            client.broken = True
            return False
        request = client.connection.recall(data)
        if request is None:
            return self._advance(client)
        client.in_head = False
        self._dispatch(client, request, None)
        return True

    def _advance(self, client: Client) -> bool:
        """Take one request further, as far as what was received goes."""
        connection = client.connection
        try:
            event = connection.next_event()
            if type(event) is Request:
                client.in_head = False
                if event.head.length == 0:
                    self._dispatch(client, event, None)
                    return True
                if client.queue_s is not None and client.queue_s > self._patience:
                    # Not when the body is here: its client would have sent it for nothing.
                    self._turned_away.count(QUEUED)
                    client.send(connection.refusal(OVERLOADED, self.date()))
                    return False
                client.request = event
                client.body = RequestBody(self.config.spool_dir)
                if event.head.awaits_continue and not connection.buffered:
                    client.send(connection.go_on())
                event = connection.next_event()
            while event is not None:
                if isinstance(event, Body):
                    self._keep(client, event)
                elif isinstance(event, End):
                    request, body = client.request, client.body
                    client.request = client.body = client.pace = None
                    assert request is not None
                    assert body is not None
                    body.trailers = event.trailers
                    self._dispatch(client, request, body)
                    return True
                event = connection.next_event()
        except Refused as refused:
            self._refuse(client, refused)
            return False
        if client.body is not None:
            if client.pace is None:
                client.pace = Pace(self.config.body_timeout, self.config.body_min_rate, time.monotonic(), 0)
            if not client.goes_on(client.pace, client.body.size):
                self._time_out(client)
        elif connection.buffered and not client.in_head:
            # A head has its time from its first byte on, however slowly the others come.
            client.in_head = True
            client.deadline = time.monotonic() + self.config.head_timeout
        return False

    def take_turn(self, client: Client) -> bool:
        """Go on with a request that has waited for its turn, behind what is left of the answer before."""
        return super().take_turn(client) if client.outbox is None else self.flush(client)

    def flush(self, client: Client) -> bool:
        """Send on what the client did not take at once; returns whether that was all."""
        client.flush(TURN)
        return self._emptied(client)

    def _watch_outbox(self, client: Client) -> None:
        # Here, and not where an outbox is opened: that may be another thread, and whose the client is has a step as well.
        client.step = self.flush
        super()._watch_outbox(client)

    def _emptied(self, client: Client) -> bool:
        outbox = client.outbox
        if outbox is None or outbox:
            return False
        outbox.close()
        client.outbox = client.pace = None
        client.step = self.receive
        return True

    def _keep(self, client: Client, event: Body) -> None:
        assert client.body is not None
        try:
            client.body.add(event.data)
        except OSError as error:
            reason = f"no room for the body: {error.strerror}"
            raise Refused(507, reason, "RFC 4918 section 11.5") from None

    def _late(self, client: Client) -> bool:
        return super()._late(client) if client.body is None else not client.goes_on(client.pace, client.body.size)

    def _let_go(self, client: Client) -> None:
        if client.tap >= 0:
            self._close_tap(client)
        if client.body is not None:
            client.body.close()
            client.body = None

    # Requests.

    def _call(self, client: Client, request: Request, body: RequestBody | None) -> None:  # noqa: C901 - one way, and hot
        """Give a complete request to the application."""
        self.served += 1
        client.requests += 1
        if self.served >= self._threshold:
            self._reach()
        if self._closing:
            client.connection.answer_close = True
        cell = self._cell
        started = time.monotonic()
        mark(self._board, cell, started, self.served, request.line.octets, 1)
        # From here on another thread may lead: all that leaders share, parser, counts, listeners, is left alone behind it.
        self._served.add(client)
        ahead = self._blocky > 0 and self._can_promote()
        if ahead:
            self._promote()
        outcome: Outcome = "complete"
        environ: dict[str, Any] = client.base
        answer = Answer(client.connection, client)
        try:
            if body is None:
                environ = request_environ(client.base, client.peer, request, None, 0)
            else:
                environ = request_environ(client.base, client.peer, request, body.open(), body.size)
                environ["prefork.trailers"] = trailers_in_environ(body.trailers)
            environ["wsgi.early_hints"] = answer.early_hints
            environ["prefork.client_gone"] = client.has_left
            answer.run(self.app, environ)
        except Refused as refused:
            refused.request = request
            answer.status = str(refused.status)
            self._send_to_one_who_may_be_gone(client, partial(self._refuse, client, refused))
        except OSError as error:
            # The client's fault or the application's? A socket that is broken shows it.
            if client.broken or isinstance(error, GivenUp) or _is_gone(client.sock):
                client.broken = True
                outcome = "client_gone"
            else:
                self._fail(client, request, answer, error)
                outcome = "failed"
        except BaseException as error:  # noqa: BLE001 - whatever an application raises, sys.exit() too, the worker lives on
            self._fail(client, request, answer, error)
            outcome = "failed"
        finally:
            if self.stray:
                os._exit(1)  # all that it would go on with is the worker's
            if body is not None:
                body.close()
            self._board[cell + BUSY] = 0
            try:
                self._served.remove(client)
            except KeyError:
                with self._lock:
                    pass  # until the promotion is through
        if ahead or self._access is not None:
            duration = time.monotonic() - started
            if ahead:
                self._blocky = max(0, self._blocky - 1) if duration < TICK else min(_BLOCKY, self._blocky + 1)
            if self._access is not None and client.tell():
                received = 0 if body is None else body.size
                self._log(client, request, environ, answer, received, duration, outcome)

    # Requests that have an id.

    def _naming(self, dispatch: Dispatch) -> Dispatch:
        mine, ids = self._mine, RequestIds()

        def dispatch_by_name(client: Client, request: Request, body: RequestBody | None) -> None:
            trusted = client.base.origin.trusted
            given = field(request.head, "X-Request-ID") if trusted else ""
            connection = client.connection
            assert isinstance(connection, NamedConnection)
            connection.request_id = mine.request_id = ids.of(given, trusted=trusted)
            dispatch(client, request, body)

        return dispatch_by_name

    def _with_id(self, app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
        mine = self._mine

        def named(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            environ["prefork.request_id"] = environ["HTTP_X_REQUEST_ID"] = mine.request_id
            return app(environ, start_response)

        return named

    def _call_in_turn(self, client: Client, request: Request, body: RequestBody | None) -> None:
        """Give a complete request to the application, unless it has waited too long, or for nobody."""
        if client.queue_s and client.has_left():
            self._turned_away.count(GONE)
            client.broken = True
            if body is not None:
                body.close()
            if self._access is not None:
                self._log_own_answer(client, request, _CLIENT_GONE, b"", "client_gone")
        elif body is None and client.queue_s is not None and client.queue_s > self._patience:
            self._turned_away.count(QUEUED)
            if self._closing:
                client.connection.answer_close = True
            answer = client.connection.decline(OVERLOADED, self.date())
            client.send(answer)
            if self._access is not None:
                self._log_own_answer(client, request, str(OVERLOADED.status), answer, "turned_away")
        else:
            self._call_now(client, request, body)

    # Requests that have a limit of time.

    def _with_deadline(self, app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
        mine = self._mine

        def timed(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            running = mine.running
            running.answer = start_response.__self__
            environ["prefork.extend_deadline"] = running.extend
            return app(environ, start_response)

        return timed

    def _call_in_time(self, client: Client, request: Request, body: RequestBody | None) -> None:
        """Give a complete request to the application, and see to it that it does not take too long."""
        assert isinstance(client, TimedClient)
        received = 0 if body is None else body.size
        running = Running(threading.current_thread(), self._cell, request, received, self.config.request_timeout)
        client.running = self._mine.running = running
        self._running[running] = client
        try:
            self._call(client, request, body)
        finally:
            del self._running[running]
            client.running = None
        if not take(running.claim):
            with self._lock:
                pass  # until the monitor is done with it
            if running.detached:
                raise _Detached
            client.broken = True

    @contextmanager
    def paused(self, running: Running) -> Iterator[None]:
        """Let a request's time stand still while its thread waits for its client, which has limits of its own."""
        left = running.deadline - time.monotonic()
        running.deadline = NEVER
        try:
            yield
        finally:
            running.deadline = time.monotonic() + left
            self._tell_monitor()  # which may sleep, for it knew of no deadline

    def _end_overtime(self, patience: int | None) -> int | None:
        """Answer for those whose time is over; return for how many milliseconds the monitor may sleep."""
        now = time.monotonic()
        for running, client in list(self._running.items()):
            claim = (
                running.claim
            )  # before the look at its deadline: if both change meanwhile, this one is worth nothing
            if running.deadline <= now:
                self._give_up(running, client, claim)
            elif running.deadline < NEVER:
                wait = math.ceil((running.deadline - now) * 1000)
                patience = wait if patience is None else min(patience, wait)
        return patience

    def _give_up(self, running: Running, client: Client, claim: list[bool]) -> None:
        """Answer for a thread, and have another thread in its place; unless it just comes back.

        Its connection is cut, but if only a client that takes its time is left of the request: what waits for that goes out.
        """
        stack = stack_of_thread(running.thread, Answer.run)
        age_s = round(time.monotonic() - running.since, 3)
        self.send_held_back()
        with self._lock:
            leads = self._leader == running.thread.ident
            if (leads and client not in self._served) or not take(claim):
                return  # it is just coming back
            self._served.discard(client)
            self._lost.add(running.thread)
            self._board[running.cell + BUSY] = 0
            if self._spare_cells:
                self._cells.append(self._spare_cells.pop())
            self._unwatch(client)
            if client.tap >= 0:
                self._close_tap(client)
            if not leads:
                self._away -= 1
            if leads or self._vacant:
                self._pass_lead()
            # Under the lock, which its thread has to pass: when that is back it closes the socket, or leaves it alone.
            answered = not (running.sending or client.outbox)
            late = Refused(504, "the request took too long", "RFC 9110 section 15.6.5")
            head_only = running.request.line.method == "HEAD"
            octets = closing_answer(late, self.date(), head_only=head_only) if answered else b""
            whole = running.whole
            if whole and client.outbox:
                running.detached = True
                client.connection.close()
                self._log_late(client, running)  # first, for the leader may see it empty at once
                self._watch_outbox(client)
            else:
                self._clients.pop(client.fd, None)
                self._count()
                client.broken = True
                if whole and client.connection.idle and not client.tied:
                    self._part_from_thread(client)
                else:
                    client.cut(octets)
        self.records.emit(
            "request.timeout",
            method=running.request.line.method,
            path=running.request.line.path.decode("latin-1"),
            client=self._asked_by(client, running.request)[0],
            status=late.status if answered else None,
            age_s=age_s,
            stack=stack,
            **_id_of(client),
            code="PF502",
        )
        if whole:
            self._log_late(client, running)
        elif self._access is not None and take(running.untold):
            self._log_own_answer(client, running.request, str(late.status), octets, "timeout", running)

    def _part_from_thread(self, client: Client) -> None:
        """Go on with a client who has its whole answer, and may have asked again: only the thread that gave it is late.

        By another descriptor: that of the thread leads nowhere from now on.
        """
        try:
            descriptor = os.dup(client.fd)
        except OSError:  # there are too many
            client.cut(b"")
            return
        try:
            nowhere = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            os.close(descriptor)
            client.cut(b"")
            return
        os.dup2(nowhere, client.fd, inheritable=False)
        os.close(nowhere)
        self._moving += 1
        self._order(partial(self._go_on, descriptor, client))

    def _go_on(self, descriptor: int, given_up: Client) -> None:
        now = time.monotonic()
        client = self._admit_again(descriptor, given_up.base, given_up.peer, now + self._keep_alive, given_up.requests)
        client.free_at = now
        self._moving -= 1
        self._settle(client, answered=False)

    @staticmethod
    def _send_to_one_who_may_be_gone(client: Client, send: Callable[[], None]) -> None:
        """Give an answer of ours in the place of the application: that its client has left is no reason not to log it."""
        try:
            send()
        except OSError:
            client.broken = True

    def _fail(self, client: Client, request: Request, answer: Answer, error: BaseException) -> None:
        if self.stray:
            os._exit(1)
        self.records.failure(
            answer.explained(error),
            method=request.line.method,
            path=request.line.path.decode("latin-1"),
            client=self._asked_by(client, request)[0],
            **_id_of(client),
        )
        connection = client.connection
        if answer.sent and (connection.phase is not _ANSWER or connection.complete):
            # The answer is whole: who has not taken all of it yet may do so.
            self.send_held_back()
            connection.close()
        elif answer.sent:
            # The answer must not look whole: neither a last chunk nor a kept connection.
            client.broken = True
        else:
            if isinstance(error, Misanswered):
                connection.answer_close = True
            self._send_to_one_who_may_be_gone(client, answer.fail)

    # The access log.

    def _log(
        self,
        client: Client,
        request: Request,
        environ: dict[str, Any],
        answer: Answer,
        received: int,
        duration: float,
        outcome: Outcome,
    ) -> None:
        """Have a request written into the access log, as soon as its answer has gone out."""
        access = self._access
        assert access is not None
        address, scheme = asked_by(client.base, client.peer, request)
        # By place, for the sake of speed: in the order in which Entry has them.
        entry = Entry(
            request,
            address,
            scheme,
            environ if access.reads_environ else client.base,
            (answer.status or _CLIENT_GONE)[:3],
            answer.fields,
            received,
            0 if client.connection.bodiless else answer.size,
            duration,
            client.queue_s,
            outcome,
            self._ends(client),
            client.connection.request_id,
            bound_context(),
        )
        outbox = client.outbox  # once: if the thread is given up just now, the leader may have thrown it away
        if outbox and not client.broken:
            outbox.then = partial(self._log_taken, entry, time.monotonic())
        else:
            self._write_log(entry)

    def _log_late(self, client: Client, running: Running) -> None:
        """Have a request logged whose answer is whole, although its thread is not back yet."""
        if self._access is not None and take(running.untold):
            age_s = time.monotonic() - running.since
            self._log(client, running.request, client.base, running.answer, running.received, age_s, "complete")

    def _write_log(self, entry: Entry) -> None:
        access = self._access
        assert access is not None
        if access.prompt:
            self.send_held_back()
        access.take(entry)
        # Else it is written as soon as these answers are sent.
        if not self._held_back:
            access.flush()


def _kinds_of_clients(*, timed: bool, tls: bool) -> dict[str, type[Client]]:
    """Return the class of client for each scheme that is spoken."""
    kinds: dict[str, type[Client]] = {"http": TimedClient if timed else Client}
    if tls:
        from prefork.wsgi.tls import TimedTlsClient, TlsClient

        kinds["https"] = TimedTlsClient if timed else TlsClient
    return kinds


def _id_of(client: Client) -> dict[str, str]:
    """Return the id of the present request for a record, if it has one."""
    name = client.connection.request_id
    return {"request_id": name} if name else {}


def no_deadline(_seconds: float) -> None:
    """Stand in the environ where requests have all the time of the world."""


def _is_gone(sock: _socket.socket) -> bool:
    poll = select.poll()
    try:
        poll.register(sock, 0)
    except ValueError:  # the leader had it, and has closed it
        return True
    return bool(poll.poll(0))
