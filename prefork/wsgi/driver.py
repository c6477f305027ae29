"""Which thread serves which connection, when does a second one join, and when does a worker accept?

One thread leads: it polls, and serves what is ready itself, in place. So with quick requests one thread runs and no
interpreter lock changes hands. The main thread is the monitor: it looks every ``TICK``, only while there is work, and
if the leader has been away with the same request for a whole tick it promotes a follower, who polls on. A thread that
comes back and no longer leads gives its connection back to the poller and waits. An application that was seen to block
passes the lead on before the call.

A request is collected, head and body, before a thread is spent on it; what a client does not take of its answer waits
in an ``Outbox``. A worker whose threads are all away does not poll, so it does not accept; its monitor leads until one
comes back, and sends the clients that wait meanwhile through the ``Exchange`` to whoever in the pool is free first.

A worker that retires sends its clients through the ``Exchange`` to its siblings, as soon as each stands between two
requests. One that stops with the pool sends nobody away: it takes in what lies in the exchange, and says good-bye.
"""

from __future__ import annotations

import _socket
import math
import os
import select
import socket
import stat
import sys
import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from prefork.handover import Ticket, read, sent_at
from prefork.http1.connection import Connection, Phase, closing_answer
from prefork.http1.heads import HeadReader, Parser
from prefork.http1.messages import Body, End, Misanswered, Refused, Request
from prefork.scoreboard import BUSY, Row, mark
from prefork.wsgi.body import RequestBody
from prefork.wsgi.deadlines import Deadlines
from prefork.wsgi.gateway import Answer, request_environ, server_environ
from prefork.wsgi.outbox import SPOOL, Outbox
from prefork.wsgi.overtime import GivenUp, Running, take
from prefork.wsgi.poller import READ, WRITE, new_poller
from prefork.wsgi.queueing import waited

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prefork.config import Config
    from prefork.exit_guard import ExitGuard
    from prefork.handover import Exchange
    from prefork.listeners import Listener
    from prefork.records import Records

TICK = 0.002
"""After how many seconds without a sign of life a leader is taken to be away."""
EASE_TICKS = 50
"""After how many ticks of work a worker leaves half of those who wait in it to whoever is free first."""
QUIET_TICKS = 50
"""After how many ticks without work the monitor sleeps until there is some."""
LINGER = 5.0
"""How many seconds a retiring worker waits for the next request of an idle client that it cannot hand over."""
PARTING = 1.0
"""The same for a worker that stops with its pool: who is connected may have asked already, and it is only under way."""
ASK_AGAIN = 0.005
"""After how many seconds a worker that waits to leave looks again whether all that it handed over was taken."""
READ_ANSWER = 2.0
"""How many seconds a refused client has to read why, while what it still sends is thrown away."""
PAUSE = 0.5
"""How many seconds nothing is accepted after the descriptors were used up."""
HOLD = 0.0005
"""How many seconds a complete answer may wait for those of the other clients that were ready at the same time."""
GUESTS = 64
"""How many connections may be taken in before those that are there are asked about again."""
_HOLDABLE = 16384
_RECEIVE = 65536
# Instead of a system call that would make each new socket non-blocking.
_AT_ONCE = socket.MSG_DONTWAIT
_BLOCKY = 16
_NEVER = float("inf")
_DAYS = (b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun")
_MONTHS = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")
# Members of an Enum are looked up dearly in Python 3.11.
_HEAD, _ANSWER, _CLOSED = Phase.HEAD, Phase.ANSWER, Phase.CLOSED


Step: TypeAlias = "Callable[[Client], bool]"
"""What may be done for a client when its turn comes; returns whether a request was answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFacts:
    """What an application may know about its worker, and ``retire``, with which it has it replaced."""

    number: int
    generation: int
    retire: Callable[[], None]


class _Gate:
    """A listener, and what is the same for all who come through it."""

    __slots__ = ("accept", "base", "family", "socket", "tcp", "type")

    def __init__(self, listener: Listener, base: dict[str, Any]) -> None:
        self.socket = listener.socket
        self.accept: Callable[[], tuple[int, Any]] = listener.socket._accept  # type: ignore[attr-defined]  # noqa: SLF001
        self.family = int(listener.socket.family)
        self.type = int(listener.socket.type)
        self.tcp = listener.tcp
        self.base = base


class Client:
    """One connection, and the stream of its answers.

    It belongs to the thread that serves it, or to the leader; only ``flush`` may meet another thread.
    """

    __slots__ = (
        "base",
        "body",
        "broken",
        "connection",
        "date",
        "deadline",
        "driver",
        "fd",
        "gone",
        "in_head",
        "listed",
        "lock",
        "outbox",
        "peer",
        "queue_s",
        "receive",
        "request",
        "requests",
        "sock",
        "step",
        "watched",
    )  # fmt: skip

    def __init__(
        self,
        driver: WsgiDriver,
        sock: _socket.socket,
        connection: Connection,
        base: dict[str, Any],
        peer: tuple[str, str] | None,
    ) -> None:
        self.driver = driver
        self.sock = sock
        self.fd = sock.fileno()
        self.receive = sock.recv
        self.date = driver.date
        self.connection = connection
        self.base = base
        self.peer = peer
        self.step: Step = driver.receive
        """What to do when the poller tells of it."""
        self.request: Request | None = None
        """The request whose body is being collected."""
        self.requests = 0
        """How many were given to the application, in whatever worker."""
        self.queue_s: float | None = None
        """For how many seconds the present request waited until a thread took it; ``None`` where nobody asks or knows."""
        self.body: RequestBody | None = None
        self.outbox: Outbox | None = None
        self.lock: threading.Lock | None = None
        self.broken = False
        self.gone = False
        self.in_head = True
        """Whether the time for a head runs."""
        self.watched = 0
        """For which events it is registered at the poller."""
        self.deadline = _NEVER
        self.listed = _NEVER

    @property
    def address(self) -> str:
        """The client's address, for records."""
        return "" if self.peer is None else self.peer[0]

    # The stream of an answer, called by the gateway in the thread that serves.

    def send(self, data: bytes) -> None:
        """Send, and keep what the client does not take now. Raises ``OSError`` once it is gone."""
        self.driver.send_held_back()
        self.send_now(data)

    def complete(self, data: bytes) -> None:
        """Send the last of an answer, at once or together with those of others."""
        driver = self.driver
        if self.outbox is not None or self.connection.answer_close or not driver.hold_back(self, data):
            driver.send_held_back()
            self.send_now(data)

    def send_now(self, data: bytes) -> None:
        """Send before all that is held back."""
        if self.outbox is None:
            try:
                sent = self.sock.send(data, _AT_ONCE)
            except BlockingIOError:
                sent = 0
            if sent == len(data):
                return
            self._open_outbox().add(memoryview(data)[sent:])
            return
        with self._held():
            self.outbox.add(data)
        self._push()

    def sendfile(self, file: Any, offset: int, size: int) -> None:
        """Let the kernel send a part of a file."""
        self.driver.send_held_back()
        outbox = self._open_outbox() if self.outbox is None else self.outbox
        with self._held():
            outbox.add_file(file.fileno(), offset, size)
        self._push()

    def measure(self, file: Any) -> tuple[int, int] | None:
        """Return offset and size of what is left of a regular file, ``None`` for anything else."""
        try:
            found = os.fstat(file.fileno())
            offset = file.tell()
        except (AttributeError, OSError, ValueError):
            return None
        return (offset, max(0, found.st_size - offset)) if stat.S_ISREG(found.st_mode) else None

    def flush(self) -> int:
        """Send what waits; return how much went out. Raises ``OSError`` once the client is gone."""
        with self._held():
            return 0 if self.outbox is None else self.outbox.flush(self.sock)

    def _open_outbox(self) -> Outbox:
        self.sock.setblocking(False)  # sendfile() has no flags
        self.lock = threading.Lock()
        self.outbox = Outbox(self.driver.config.spool_dir)
        self.step = self.driver.flush
        return self.outbox

    def _push(self) -> None:
        self.flush()
        assert self.outbox is not None
        while self.outbox.size > SPOOL:
            self._wait_until_taken()

    def _wait_until_taken(self) -> None:
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        if not poll.poll(self.driver.config.write_timeout * 1000):
            raise TimeoutError("the client takes nothing")
        self.flush()

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
        base: dict[str, Any],
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
        if self.running is not None:
            self.running.complete()
        super().complete(data)

    def sendfile(self, file: Any, offset: int, size: int) -> None:
        """Let the kernel send a part of a file, unless somebody else has answered."""
        if self.running is not None:
            self.running.begin_to_send()
        super().sendfile(file, offset, size)


class WsgiDriver:
    """Serves a WSGI application on ``config.threads`` request threads.

    The worker's main thread calls ``tick`` in its loop; when ``monitor_fd`` is readable it calls ``hear`` before.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what a worker has, each for itself
        self,
        app: Callable[..., Iterable[bytes]],
        listeners: Iterable[Listener],
        config: Config,
        facts: WorkerFacts,
        records: Records,
        exit_guard: ExitGuard,
        thread_exit: Callable[[], None] | None = None,
        row: Row | None = None,
        exchange: Exchange | None = None,
    ) -> None:
        self._reader = HeadReader(config.limits, _parser(config.http)())
        self._mine = threading.local()  # the request that a thread is at
        self.app = self._with_deadline(app) if config.request_timeout else app
        self.config = config
        self.records = records
        self.monitor_fd, self._monitor_end = os.pipe()
        self._wake_end, self._wake_fd = os.pipe()
        for end in (self.monitor_fd, self._monitor_end, self._wake_end, self._wake_fd):
            os.set_blocking(end, False)
        self.served = 0
        """Requests given to the application so far."""
        self.failure: BaseException | None = None
        """What ended a leader: a fault of the server. A worker without a leader serves nobody, so it must end."""
        self._announce: float = _NEVER
        self._last: float = _NEVER
        self._threshold: float = _NEVER
        self._poller = new_poller()
        self._poller.register(self._wake_end, READ)
        self._extra = {
            "prefork.worker": facts.number,
            "prefork.generation": facts.generation,
            "prefork.exit_guard": exit_guard,
            "prefork.retire": facts.retire,
            "prefork.extend_deadline": _no_deadline,
        }
        self._bases: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._gates = {
            listener.socket.fileno(): _Gate(listener, self._base("http", listener.server_name, listener.server_port))
            for listener in listeners
        }
        self._exchange = exchange
        self._out, self._into = (-1, -1) if exchange is None else exchange.descriptors
        self._taking = False  # whether what siblings hand over is looked for
        self._parting: deque[Client] = deque()  # to be handed over as soon as the exchange has room
        self._parted_at = 0.0  # when the last one was; infinity: whatever lies there is to be taken
        self._awaits_room = False
        self._waited = 0.0  # for how many seconds the last one that was taken lay in the exchange
        self._accepting = False
        self._resume_at = _NEVER
        self._clients: dict[int, Client] = {}
        self._deadlines: Deadlines[Client] = Deadlines()
        self._keep_alive = config.keep_alive_timeout
        self._batch: deque[tuple[int, int]] = deque()
        self._behind: deque[tuple[Client, Step]] = deque()  # what is to be done that no event will tell of
        self._round = 0  # how much of it is done before the poller is asked again: nobody waits for one that pipelines
        self._held_back: deque[tuple[Client, bytes]] = deque()  # complete answers, to go out together
        self._hold_until = _NEVER
        self._sending = threading.Lock()
        self._guests = 0  # how many were taken in since the poller was asked
        self._orders: deque[Callable[[], None]] = deque()
        self._leaving = False
        self._closing = False  # whether connections end behind their answers
        self._handing_over = False  # it leaves, and its siblings go on
        self._stopping = False  # the pool leaves with it
        self._done = False
        self._thread_exit = thread_exit
        self._threads: list[threading.Thread] = []
        self._row = Row.alone(2 * config.threads) if row is None else row
        self._board = self._row.memory
        # Of the scoreboard: for threads that are still to be started, and for those in the place of the lost.
        self._cells, self._spare_cells = self._row.cells[: config.threads], self._row.cells[config.threads :]
        self._cell = 0  # the leader's
        self.receive: Step = self._receive_measured if config.access_log else self._receive
        self._dispatch = self._call_in_time if config.request_timeout else self._call
        self._kind_of_client = TimedClient if config.request_timeout else Client
        self._running: dict[Running, Client] = {}  # what has a limit of time
        self._lost: set[threading.Thread] = set()  # threads that were given up
        self._lock = threading.Lock()  # guards the lead, taken only when it changes hands
        # The last to come is the first to be promoted: caches and connections stay warm.
        self._waiting: list[threading.Semaphore] = []
        self._leader: int | None = None
        self._vacant = False  # whether all threads are away, and the monitor leads until one comes back
        # Whom the leader serves. Who takes it out decides: the leader that comes back, or a promotion.
        self._served: set[Client] = set()
        self._turn = 0
        self._blocky = 0  # how surely the application blocks; above 0 the lead passes on before the call
        self._monitor_sleeps = True
        self._quiet = 0
        self._eases = exchange is not None and config.max_workers > 1
        self._worked = 0  # for how many ticks
        self._seen = 0
        self._date_at = 0
        self._date = b""

    # Called by the worker's main thread.

    def start(self) -> None:
        """Begin to accept and serve."""
        self._resume_accepting()
        self._new_thread()

    def announce_at(self, requests: int | None) -> None:
        """Make ``monitor_fd`` readable when ``served`` reaches ``requests``; call it before ``start``."""
        self._announce = self._threshold = _NEVER if requests is None else requests

    def retire_after(self, requests: int) -> None:
        """Retire with the request that is the worker's ``requests``-th: that one is answered with a close."""
        self._order(partial(self._retire_after, requests))

    def tick(self) -> int | None:
        """Promote a follower if the leader is away; return for how many milliseconds the monitor may sleep.

        Raises what ended a leader.
        """
        if self.failure is not None:
            raise self.failure
        patience = self._watch_leader()
        return self._end_overtime(patience) if self._running else patience

    def _watch_leader(self) -> int | None:
        if self._monitor_sleeps and self._turn != self._seen:
            self._monitor_sleeps = False  # somebody came in while it fell asleep
        if self._monitor_sleeps:
            return self._until_taken()
        turn = self._turn
        if not self._served:
            self._quiet = self._quiet + 1 if turn == self._seen and not self._vacant else 0
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

    def _until_taken(self) -> int | None:
        """Return when to ask again whether a worker that has nobody left may go; nobody tells of it."""
        return int(ASK_AGAIN * 1000) if self._leaving and not self._clients and not self._all_taken() else None

    def hear(self) -> None:
        """Empty ``monitor_fd``."""
        _drain(self.monitor_fd)

    @property
    def overdue(self) -> bool:
        """Whether a thread was given up."""
        return bool(self._lost)

    @property
    def stuck(self) -> int:
        """How many of the threads that were given up are still there."""
        return sum(thread.is_alive() for thread in self._lost)

    @property
    def leaving(self) -> bool:
        """Whether it retires or stops."""
        return self._leaving

    @property
    def drained(self) -> bool:
        """Whether nothing is left to answer, and nothing new can come."""
        return self._leaving and not self._accepting and not self._clients and self._all_taken()

    def _all_taken(self) -> bool:
        """Whether nothing lies in the exchange that nobody might look for; to be asked when no client is left.

        A sibling may stop, and look for the last time, before it comes in: so who sent it stays until it was taken, or
        takes it back. The last of a pool that stops looks for everybody.
        """
        if self._exchange is None or not self._parted_at:
            return True
        if not self._exchange.taken(self._parted_at):
            return False
        if self._parted_at != _NEVER:
            self._parted_at = 0.0  # for good, whatever others send
        return True

    def retire(self) -> None:
        """Leave the listeners to the siblings, and hand over to them who stands between two requests."""
        self._order(self._retire)

    def close_after_answer(self) -> None:
        """Serve on, and accept, but close each connection behind its next answer."""
        self._order(self._close_after_answer)

    def stop(self, *, quick: bool, patience: float = PARTING) -> None:
        """Stop with the whole pool: what is queued is taken in, and idle clients are waited for, unless ``quick``.

        For as many seconds as ``patience`` says, and half of ``graceful_timeout`` at most.
        """
        self._order(partial(self._stop, quick=quick, patience=patience))

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
        if not any(thread.is_alive() for thread in self._threads):
            self._poller.close()
            for fd in (self.monitor_fd, self._monitor_end, self._wake_end, self._wake_fd):
                os.close(fd)

    # Orders of the main thread, carried out by the leader.

    def _order(self, order: Callable[[], None]) -> None:
        self._orders.append(order)
        self._wake()

    def _wake(self) -> None:
        _nudge(self._wake_fd)

    def _tell_monitor(self) -> None:
        _nudge(self._monitor_end)

    def _stop(self, *, quick: bool, patience: float) -> None:
        self._stopping, self._handing_over = True, False
        if self._accepting and not quick:
            for fd in list(self._gates):
                while (client := self._accept(fd)) is not None:
                    self._watch(client, READ)
        # What a sibling sends before he hears of the stop is looked for until the end.
        self._parted_at = 0.0 if quick else _NEVER
        self._leave_listeners()
        if not quick:
            self._begin_to_take()
        self._part()
        self._say_good_bye(0.0 if quick else min(patience, self.config.graceful_timeout / 2))

    def _close_after_answer(self) -> None:
        self._closing = True
        for client in self._clients.values():
            client.connection.answer_close = True

    def _retire(self) -> None:
        if self._leaving:
            return
        self._leave_listeners()
        if self._exchange is None:
            self._say_good_bye(LINGER)
        else:
            self._handing_over = True
            self._hand_over_idle()

    def _leave_listeners(self) -> None:
        self._leaving = True
        self._pause_accepting()
        self._resume_at = _NEVER
        for gate in self._gates.values():
            gate.socket.close()
        self._gates.clear()
        self._tell_monitor()

    def _say_good_bye(self, patience: float) -> None:
        """Answer what is there with ``Connection: close``; who is idle may ask once more within ``patience`` seconds."""
        self._closing = True
        self._keep_alive = patience
        now = time.monotonic()
        for client in list(self._clients.values()):
            client.connection.answer_close = True
            if client.connection.idle and client.outbox is None:
                client.deadline = min(client.deadline, now + patience)
                if client.watched:
                    self._watch(client, READ)

    def _retire_after(self, requests: int) -> None:
        self._last = requests
        self._threshold = min(self._announce, requests)
        if self.served >= requests:
            self._retire()

    def _reach(self) -> None:
        """Do what is to be done after so many requests."""
        if self.served >= self._announce:
            self._announce = _NEVER
            self._tell_monitor()
        if self.served >= self._last:
            self._last = _NEVER
            self._retire()
        self._threshold = min(self._announce, self._last)

    def _pause_accepting(self) -> None:
        if self._accepting:
            self._accepting = False
            for fd in self._gates:
                self._poller.unregister(fd)
        if self._taking:
            self._taking = False
            self._poller.unregister(self._into)

    def _resume_accepting(self) -> None:
        self._resume_at = _NEVER
        if not self._leaving:
            self._accepting = True
            for fd in self._gates:
                self._poller.register(fd, READ, shared=True)
        if not self._leaving or self._stopping:
            self._begin_to_take()

    def _begin_to_take(self) -> None:
        if self._exchange is not None and not self._taking:
            self._taking = True
            self._poller.register(self._into, READ, shared=True)

    def _pause(self, error: OSError) -> None:
        """Take nobody in for a while: no descriptor is left."""
        self._pause_accepting()
        self._resume_at = time.monotonic() + PAUSE
        self.records.emit("pool.accept_paused", reason=str(error), pause_s=PAUSE, code="PF501")

    # From one worker to another.

    def _hand_over_idle(self) -> None:
        """Hand over all who stand between two requests, and are in no thread's hands."""
        if not self._handing_over:
            return
        self.send_held_back()
        for client in list(self._clients.values()):
            if self._may_go(client):
                self._hand_over(client)

    def _may_go(self, client: Client) -> bool:
        """Whether a client stands between two requests, and is in no thread's hands."""
        return bool(client.watched and client.step == self.receive and client.connection.idle and client.outbox is None)

    def _hand_over(self, client: Client) -> None:
        """Give a client that stands between two requests to a sibling, now or when the exchange has room.

        What it sends meanwhile stays in the kernel, and travels with it.
        """
        self.send_held_back()
        if client.broken:
            self._close(client)
            return
        if client.outbox is not None:
            client.deadline = time.monotonic() + self.config.write_timeout
            self._watch(client, WRITE)
            return
        self._unwatch(client)
        if self._parting or not self._try_to_send(client):
            self._parting.append(client)
            self._order(self._part)

    def _try_to_send(self, client: Client) -> bool:
        """Send a client through the exchange, or return ``False``: that is full, or it does not work and never will."""
        try:
            return self._send_over(client)
        except OSError as error:
            self.records.emit("worker.handover_failed", reason=str(error))
            self._handing_over = False
            self._order(partial(self._say_good_bye, LINGER))
            return False

    def _send_over(self, client: Client) -> bool:
        """Send a client through the exchange; return ``False`` if that is full. Raises ``OSError``."""
        assert self._exchange is not None
        base = client.base
        scheme, name, port = base["wsgi.url_scheme"], base["SERVER_NAME"], base["SERVER_PORT"]
        ticket = Ticket(scheme, name, port, client.peer, client.deadline, client.requests)
        if not self._exchange.send(ticket, client.fd):
            return False
        self._parted_at = max(self._parted_at, time.monotonic())
        self._close(client)
        return True

    def _part(self) -> None:
        """Hand over who waits for that; if it is not to be, look after them here."""
        while self._parting and self._handing_over:
            if not self._try_to_send(self._parting[0]):
                break
            self._parting.popleft()
        while self._parting and not self._handing_over:
            self._watch(self._parting.popleft(), READ)
        if self._awaits_room != bool(self._parting):
            self._awaits_room = not self._awaits_room
            if self._awaits_room:
                self._poller.register(self._out, WRITE)
            else:
                self._poller.unregister(self._out)

    def _take_over(self) -> Client | None:
        """Take in one client that a sibling has handed over, if there is one."""
        assert self._exchange is not None
        try:
            taken = self._exchange.take()
        except OSError as error:
            self._pause(error)
            return None
        if taken is None:
            return None
        message, descriptor = taken
        self._waited = time.monotonic() - sent_at(message)
        if descriptor is None:
            self.records.emit("worker.handover_failed", reason="a message came without its connection")
            return None
        try:
            ticket = read(message, descriptor, time.monotonic() + self.config.head_timeout)
        except OSError as error:
            self.records.emit("worker.handover_failed", reason=str(error))
            os.close(descriptor)
            return None
        # Not socket(fileno=…), which asks the kernel for a family that receive and send need not know.
        sock = _socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptor)
        deadline = ticket.deadline
        if self._leaving:
            deadline = min(deadline, time.monotonic() + self._keep_alive)
        client = self._admit(sock, self._base(ticket.scheme, ticket.name, ticket.port), ticket.peer, deadline)
        client.requests = ticket.requests
        client.in_head = not ticket.requests
        return client

    # The lead.

    def _new_thread(self) -> None:
        name = f"prefork-{len(self._threads)}"
        thread = threading.Thread(target=self._follow, args=(self._cells.pop(),), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _follow(self, cell: int) -> None:
        turn = threading.Semaphore(0)
        try:
            while not self._done:
                self._lead(cell)
                if self._handing_over:
                    self._order(self._hand_over_idle)  # what was in this thread's hands when all others were
                if self._lost and threading.current_thread() in self._lost:
                    return  # another has its place
                # Before the look at `_done`: close() lets go whom it finds waiting, and says so first.
                with self._lock:
                    if self._vacant:
                        self._vacant = False
                        self._batch.appendleft((self._into, 0))  # who waits there has waited longer
                        continue
                    self._waiting.append(turn)
                if self._blocky:
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
            self._pass_lead()

    def _pass_lead(self) -> None:
        """Let whoever is free lead, or else the monitor. Under the lock."""
        self._leader = None
        self._vacant = False
        if self._waiting:
            self._waiting.pop().release()
        elif self._cells:
            self._new_thread()
        else:
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
            self._batch.clear()
            if self._leaving:
                return
            for fd in ours & self._gates.keys():
                while (client := self._accept(fd)) is not None and self._share_out(client):
                    pass
            if self._into in ours and (client := self._take_over()) is not None:
                self._share_out(client)
            for fd, _ in self._poller.poll(0):
                waiting = self._clients.get(fd)
                if waiting is not None and self._may_go(waiting) and not self._share_out(waiting):
                    return

    def _ease(self) -> None:
        """Leave half of those who wait here with a request to the pool.

        Who accepts first has all who come at the same moment, and a kept-alive connection stays where it is: one worker
        would serve them all, while its siblings sleep. If none of these is free, we take most of them back ourselves.
        """
        if self._leaving:
            return
        ready = [self._clients.get(fd) for fd, _ in self._poller.poll(0)]
        waiting = [client for client in ready if client is not None and self._may_go(client)]
        for client in waiting[(len(waiting) + 1) // 2 :]:
            if not self._share_out(client):
                return

    def _share_out(self, client: Client) -> bool:
        """Let whoever is free first take a client; return ``False``, and keep it, if the exchange is full."""
        self._unwatch(client)
        try:
            if self._send_over(client):
                return True
        except OSError:
            pass  # too many descriptors are under way
        self._watch(client, READ)
        return False

    def _lead(self, cell: int) -> None:
        me = self._leader = threading.get_ident()
        self._cell = cell
        self.send_held_back()
        batch = self._batch
        clients = self._clients
        while self._leader == me and not self._done:
            if batch:
                fd, _ = batch.popleft()
                client = clients.get(fd)
                if client is not None:
                    if client.watched:  # else it is in other hands, and the event is of yesterday
                        self._serve(client, client.step)
                elif fd in self._gates:
                    self._welcome(fd)
                elif fd == self._into:
                    self._welcome_from_sibling()
                elif fd == self._out:
                    self._part()
                elif fd == self._wake_end:
                    _drain(fd)
            elif self._round:
                self._round -= 1
                client, step = self._behind.popleft()
                if client.watched:
                    self._serve(client, step)
            else:
                self._wait()

    def _wait(self) -> None:
        """Fill the batch, and do what is due."""
        self.send_held_back()
        if self._orders:
            self._orders.popleft()()
            return
        due = self._deadlines.next
        if self._resume_at != _NEVER:
            due = self._resume_at if due is None else min(due, self._resume_at)
        patience = None if due is None else max(0.0, due - time.monotonic())
        self._batch.extend(self._poller.poll(0 if self._behind else patience))
        if due is not None and time.monotonic() >= due:
            self._look_at_deadlines()
        self._round = len(self._behind)
        self._guests = 0
        if self._monitor_sleeps and (self._batch or self._round):
            self._monitor_sleeps = False
            self._tell_monitor()

    def _look_at_deadlines(self) -> None:
        now = time.monotonic()
        if now >= self._resume_at:
            self._resume_accepting()
        for client in self._deadlines.expired(now):
            self._expire(client)

    # Connections.

    def _welcome(self, fd: int) -> None:
        """Take one connection in and look at once for its request.

        The next is taken in behind the next client that is ready: who comes waits no longer than who is there, and what
        a worker cannot serve yet is left to its siblings.
        """
        client = self._accept(fd)
        if client is not None:
            self._guests += 1
            if self._guests < GUESTS:
                self._batch.insert(1, (fd, READ))
            self._serve(client, self.receive)

    def _welcome_from_sibling(self) -> None:
        """Take in one whom a sibling has handed over.

        The next has to wait for the next look at the poller: so a sibling that has less to do takes more of them. If this
        one has waited long all have to do much: then the next is taken in behind the next client that is ready.
        """
        client = self._take_over() if self._taking else None
        if client is not None:
            if self._batch and self._waited > TICK:
                self._batch.insert(1, (self._into, 0))
            self._serve(client, self.receive)

    def _accept(self, fd: int) -> Client | None:
        """Take one connection in, if there is one."""
        gate = self._gates[fd]
        try:
            # Not accept(): that makes an object of the class in front of this one, at half the price of a small request.
            descriptor, address = gate.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return None
        except OSError as error:
            self._pause(error)
            return None
        try:
            sock = _socket.socket(gate.family, gate.type, 0, descriptor)
        except OSError:  # some systems say so of a client that has left already
            os.close(descriptor)
            return None
        peer = (address[0], str(address[1])) if gate.tcp else None
        return self._admit(sock, gate.base, peer, time.monotonic() + self.config.head_timeout)

    def _admit(
        self, sock: _socket.socket, base: dict[str, Any], peer: tuple[str, str] | None, deadline: float
    ) -> Client:
        if sock.gettimeout() is not None:
            sock.setblocking(False)  # socket.setdefaulttimeout() of an application is for others
        client = self._kind_of_client(self, sock, Connection(self._reader), base, peer)
        self._clients[client.fd] = client
        self._row.hold(len(self._clients))
        client.deadline = deadline
        return client

    def _base(self, scheme: str, name: str, port: str) -> dict[str, Any]:
        """Return what all who came through one listener share in their environ, whichever process accepted them."""
        if (base := self._bases.get((scheme, name, port))) is None:
            base = self._bases[scheme, name, port] = server_environ(
                name=name,
                port=port,
                scheme=scheme,
                errors=sys.stderr,
                multithread=self.config.threads > 1,
                extra=self._extra,
            )
        return base

    def _serve(self, client: Client, step: Step) -> None:
        """Take one step for a client; afterwards it is closed, or back at the poller."""
        self._turn += 1
        answered = False
        try:
            answered = step(client)
        except OSError:
            client.broken = True
        self._settle(client, answered=answered)
        if self._behind and self._leader != threading.get_ident():
            self._wake()

    def _settle(self, client: Client, *, answered: bool) -> None:
        """Give a client back to the poller, or close it."""
        connection = client.connection
        if client.broken:
            self._close(client)
        elif client.outbox is not None and not self._emptied(client):
            client.deadline = time.monotonic() + self.config.write_timeout
            self._watch(client, WRITE)
        elif connection.phase is _CLOSED:
            if not connection.leftover:
                self._close(client)
            elif client.step == self.read_out:
                self._watch(client, READ)
            else:
                self._let_read(client)
        elif connection.idle:
            if answered:
                now = time.monotonic()
                client.deadline = now + self._keep_alive
                if now > self._hold_until:
                    self.send_held_back()
            if self._handing_over:
                self._hand_over(client)
            else:
                self._watch(client, READ)
        elif answered:
            # What lies here may be a next request. Others come first.
            self._watch(client, READ)
            self._behind.append((client, self.advance))
        else:
            self._watch(client, READ)

    def _watch(self, client: Client, events: int) -> None:
        if client.deadline < client.listed:
            self._deadlines.watch(client)
        if client.watched != events:
            change = self._poller.modify if client.watched else self._poller.register
            change(client.fd, events)
            client.watched = events  # last: from here on the leader may serve it, and close it

    def _unwatch(self, client: Client) -> None:
        """Leave a client to somebody else.

        Not masked: the poller would still tell of one that hangs up, again and again. And not left to the kernel, which
        would keep the registration for as long as any process holds the socket.
        """
        if client.watched:
            client.watched = 0
            self._poller.unregister(client.fd)

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

    def send_held_back(self) -> None:
        """Send all complete answers, in their order; another thread may be at it, and then has to be waited for."""
        if not (self._held_back or self._sending.locked()):
            return
        with self._sending:
            self._hold_until = _NEVER
            while self._held_back:
                client, data = self._held_back.popleft()
                try:
                    client.send_now(data)
                except OSError:
                    client.broken = True  # the poller tells of it
                if client.outbox is not None and client.watched:
                    client.deadline = time.monotonic() + self.config.write_timeout
                    self._watch(client, WRITE)

    # The steps that a client may take.

    def _receive_measured(self, client: Client) -> bool:
        """Take in what the client sent, and note how long it has waited for that."""
        if client.connection.idle:
            client.queue_s = waited(client.sock)
        answered = self._receive(client)
        if answered and client.queue_s:
            client.queue_s = 0.0  # what it has sent ahead waits for nobody but itself
        return answered

    def _receive(self, client: Client) -> bool:
        """Take in what the client sent."""
        try:
            data = client.receive(_RECEIVE, _AT_ONCE)
        except BlockingIOError:
            return False
        if not data:
            client.broken = True
            return False
        client.connection.receive(data)
        return self.advance(client)

    def advance(self, client: Client) -> bool:
        """Take one request further, as far as what was received goes."""
        connection = client.connection
        try:
            event = connection.next_event()
            if type(event) is Request:
                client.in_head = False
                if event.head.length == 0:
                    self._dispatch(client, event, None)
                    return True
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
                    client.request = client.body = None
                    assert request is not None
                    self._dispatch(client, request, body)
                    return True
                event = connection.next_event()
        except Refused as refused:
            self._refuse(client, refused)
            return False
        if connection.phase is not _HEAD:
            client.deadline = time.monotonic() + self.config.body_timeout
        elif connection.buffered and not client.in_head:
            # A head has its time from its first byte on, however slowly the others come.
            client.in_head = True
            client.deadline = time.monotonic() + self.config.head_timeout
        return False

    def read_out(self, client: Client) -> bool:
        """Throw away what a refused client still sends."""
        try:
            if not client.receive(_RECEIVE, _AT_ONCE):
                client.broken = True
        except BlockingIOError:
            pass
        return False

    def flush(self, client: Client) -> bool:
        """Send on what the client did not take at once; returns whether that was all."""
        client.flush()
        return self._emptied(client)

    def _emptied(self, client: Client) -> bool:
        outbox = client.outbox
        if outbox is None or outbox:
            return False
        outbox.close()
        client.outbox = None
        client.step = self.receive
        return True

    def _keep(self, client: Client, event: Body) -> None:
        assert client.body is not None
        try:
            client.body.add(event.data)
        except OSError as error:
            reason = f"no room for the body: {error.strerror}"
            raise Refused(507, reason, "RFC 4918 section 11.5") from None

    def _refuse(self, client: Client, refused: Refused) -> None:
        """Answer a request that is not served, and close."""
        self.records.emit("request.rejected", reason=refused.reason, status=refused.status, client=client.address)
        self._drop_body(client)
        client.send(client.connection.refusal(refused, self.date()))

    def _let_read(self, client: Client) -> None:
        """Let the client read its last answer: to close with bytes unread would tear it away (RFC 9112 section 9.6)."""
        client.step = self.read_out
        try:
            client.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(client)
            return
        client.deadline = time.monotonic() + READ_ANSWER
        self._watch(client, READ)

    def _expire(self, client: Client) -> None:
        """End what took too long: what that was, the client's state tells."""
        connection = client.connection
        if not client.watched:
            return  # in the hands of a thread, which will give it a new deadline
        if client.step != self.receive:
            self._close(client)
        elif connection.idle:
            self._behind.append((client, self._look_again))
        elif connection.phase is not _ANSWER:
            self._behind.append((client, self._time_out))

    def _look_again(self, client: Client) -> bool:
        """Answer what the client sent before it could know that its time was up."""
        answered = self.receive(client)
        if not answered and client.connection.idle:
            client.broken = True
        return answered

    def _time_out(self, client: Client) -> bool:
        self._refuse(client, Refused(408, "request not complete in time", "RFC 9110 section 15.5.9"))
        return False

    def _drop_body(self, client: Client) -> None:
        if client.body is not None:
            client.body.close()
            client.body = None

    def _close(self, client: Client) -> None:
        if client.gone:
            return
        self.send_held_back()
        client.gone = True
        self._drop_body(client)
        if client.outbox is not None:
            client.outbox.close()
            client.outbox = None
        if client.connection.phase is not _CLOSED:
            client.connection.close()
        if client.listed != _NEVER:
            self._deadlines.drop(client)
        if client.watched:
            client.watched = 0
            self._poller.forget(client.fd)
        self._clients.pop(client.fd, None)  # who was given up is gone from there
        self._row.hold(len(self._clients))
        client.sock.close()
        if self._leaving and not self._clients:
            self._tell_monitor()

    # Requests.

    def _call(self, client: Client, request: Request, body: RequestBody | None) -> None:
        """Give a complete request to the application."""
        self.served += 1
        client.requests += 1
        if self.served >= self._threshold:
            self._reach()
        if self._closing:
            client.connection.answer_close = True
        cell = self._cell
        mark(self._board, cell, time.monotonic(), self.served, request.line.octets, 1)
        # From here on another thread may lead: all that leaders share, parser, counts, listeners, is left alone behind it.
        self._served.add(client)
        ahead = self._blocky > 0 and self._can_promote()
        if ahead:
            self._promote()
        started = time.perf_counter() if ahead or self.records.access_on else 0.0
        answer = Answer(client.connection, client)
        if body is None:
            environ = request_environ(client.base, client.peer, request, None, 0)
        else:
            environ = request_environ(client.base, client.peer, request, body.open(), body.size)
        try:
            answer.run(self.app, environ)
        except OSError as error:
            # The client's fault or the application's? A socket that is broken shows it.
            if client.broken or isinstance(error, GivenUp) or _is_gone(client.sock):
                client.broken = True
            else:
                self._fail(client, request, answer, error)
        except BaseException as error:  # noqa: BLE001 - whatever an application raises, sys.exit() too, the worker lives on
            self._fail(client, request, answer, error)
        finally:
            if body is not None:
                body.close()
            self._board[cell + BUSY] = 0
            try:
                self._served.remove(client)
            except KeyError:
                with self._lock:
                    pass  # until the promotion is through
        if started:
            duration = time.perf_counter() - started
            if ahead:
                self._blocky = max(0, self._blocky - 1) if duration < TICK else min(_BLOCKY, self._blocky + 1)
            if self.records.access_on:
                self._log_access(client, request, answer, duration)

    # Requests that have a limit of time.

    def _with_deadline(self, app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
        mine = self._mine

        def timed(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            environ["prefork.extend_deadline"] = mine.running.extend
            return app(environ, start_response)

        return timed

    def _call_in_time(self, client: Client, request: Request, body: RequestBody | None) -> None:
        """Give a complete request to the application, and see to it that it does not take too long."""
        assert isinstance(client, TimedClient)
        line = request.line
        running = Running(threading.current_thread(), self._cell, line.method, line.path, self.config.request_timeout)
        client.running = self._mine.running = running
        self._running[running] = client
        try:
            self._call(client, request, body)
        finally:
            del self._running[running]
            client.running = None
            if not take(running.claim):
                client.broken = True
                with self._lock:
                    pass  # until the monitor is done with it

    def _end_overtime(self, patience: int | None) -> int | None:
        """Answer for those whose time is over; return for how many milliseconds the monitor may sleep."""
        now = time.monotonic()
        for running, client in list(self._running.items()):
            claim = (
                running.claim
            )  # before the look at its deadline: if both change meanwhile, this one is worth nothing
            if running.deadline <= now:
                self._give_up(running, client, claim)
            elif running.deadline < _NEVER:
                wait = math.ceil((running.deadline - now) * 1000)
                patience = wait if patience is None else min(patience, wait)
        return patience

    def _give_up(self, running: Running, client: Client, claim: list[bool]) -> None:
        """Answer for a thread, cut its connection, and have another thread in its place; unless it just comes back."""
        frame = sys._current_frames().get(running.thread.ident or 0)  # noqa: SLF001 - the only way to another thread's stack
        stack = "".join(traceback.format_stack(frame))
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
            if leads or self._vacant:
                self._pass_lead()
            self._clients.pop(client.fd, None)
            self._row.hold(len(self._clients))
            # Under the lock, which its thread has to pass: when that is back it closes the socket.
            client.broken = True
            answered = not running.sending
            late = Refused(504, "the request took too long", "RFC 9110 section 15.6.5")
            octets = closing_answer(late, self.date(), head_only=running.method == "HEAD") if answered else b""
            _cut(client.sock, octets)
        self.records.emit(
            "request.timeout",
            method=running.method,
            path=running.path.decode("latin-1"),
            client=client.address,
            status=504 if answered else None,
            age_s=age_s,
            stack=stack,
            code="PF502",
        )

    def _fail(self, client: Client, request: Request, answer: Answer, error: BaseException) -> None:
        self.records.failure(
            error, method=request.line.method, path=request.line.path.decode("latin-1"), client=client.address
        )
        if answer.sent:
            # The answer must not look whole: neither a last chunk nor a kept connection.
            client.broken = True
        else:
            if isinstance(error, Misanswered):
                client.connection.answer_close = True
            answer.fail()

    def _log_access(self, client: Client, request: Request, answer: Answer, duration: float) -> None:
        agent = next((value for name, value in request.head.fields if name.lower() == b"user-agent"), b"")
        self.records.access(
            method=request.line.method,
            path=request.line.path.decode("latin-1"),
            query=request.line.query.decode("latin-1"),
            status=int((answer.status or "0")[:3]),
            duration_s=round(duration, 6),
            request_bytes=max(0, request.head.length),
            response_bytes=answer.size,
            client=client.address,
            scheme="http",
            http_version=request.line.version,
            user_agent=agent.decode("latin-1"),
        )

    def date(self) -> bytes:
        """Return the present value of ``Date`` (RFC 9110 section 5.6.7)."""
        now = int(time.time())
        if now != self._date_at:
            self._date = http_date(now)
            self._date_at = now
        return self._date


def _no_deadline(_seconds: float) -> None:
    """Stand in the environ where requests have all the time of the world."""


def _parser(name: str) -> Callable[[], Parser]:
    """Return the class of parser that ``http`` names: httptools where it is installed, unless h11 is asked for."""
    if name != "h11":
        try:
            from prefork.http1.parser_httptools import HttptoolsParser
        except ImportError:
            if name == "httptools":
                raise
        else:
            return HttptoolsParser
    from prefork.http1.parser_h11 import H11Parser

    return H11Parser


def http_date(now: int) -> bytes:
    """Return a time in seconds as an IMF-fixdate (RFC 9110 section 5.6.7), whatever the locale."""
    year, month, day, hour, minute, second, weekday, _, _ = time.gmtime(now)
    return b"%b, %02d %b %d %02d:%02d:%02d GMT" % (_DAYS[weekday], day, _MONTHS[month - 1], year, hour, minute, second)


def _is_gone(sock: _socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(0))


def _cut(sock: _socket.socket, last: bytes) -> None:
    """End a connection that a thread may still use: the descriptor stays open, so that nobody else gets its number."""
    try:
        if last:
            sock.send(last, _AT_ONCE)
        sock.shutdown(socket.SHUT_WR if last else socket.SHUT_RDWR)
    except OSError:
        return


def _nudge(fd: int) -> None:
    try:
        os.write(fd, b".")
    except (BlockingIOError, OSError):
        return


def _drain(fd: int) -> None:
    try:
        while os.read(fd, 4096):
            pass
    except BlockingIOError:
        return
