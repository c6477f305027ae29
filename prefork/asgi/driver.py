"""How do the connections of a worker and the calls of its application share one event loop?

The loop runs in the worker's main thread, as applications expect it, and the worker's life goes on in a thread beside it:
so nothing that an application does makes the worker deaf, and somebody sees when the loop does not turn.

All sockets are in one poller of the driver's own, which the loop watches as one descriptor. In each turn the driver serves
who is ready: takes in what clients sent, and begins a call for each request. Each call is a task of its own; what it sends
goes to the socket at once, what the client does not take waits in an ``Outbox`` that is bounded because the call waits too.
"""

from __future__ import annotations

import errno
import math
import os
import select
import stat
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from prefork.access_format import Entry
from prefork.asgi.backends import failure_in, new_backend
from prefork.asgi.calls import HIGH, LOW, Call, Client, ClientLeft
from prefork.asgi.gateway import Base, asked_by, server_scope, tls_extension
from prefork.asgi.lifespan import Lifespan
from prefork.asgi.loop_poller import LoopPoller
from prefork.asgi.loop_watch import LoopWatch
from prefork.config import QUICK_STOP_S
from prefork.errors import AppFailed
from prefork.farewell import serving_calls, working
from prefork.http1.connection import NamedConnection, Phase, closing_answer
from prefork.http1.messages import Body, End, Refused, Request, Upgrade
from prefork.memory import EACH
from prefork.overload import GONE, QUEUED
from prefork.overtime import GivenUp, Running, take
from prefork.pace import Pace
from prefork.poller import READ, WRITE
from prefork.queueing import waited
from prefork.reception import AT_ONCE, NEVER, OVERLOADED, RECEIVE, Origin, Outfit, Reception, drain
from prefork.records.access import bound_context
from prefork.request_ids import RequestIds
from prefork.scoreboard import BUSY, mark
from prefork.stacks import stack_of_task, stack_of_thread

if TYPE_CHECKING:
    import _socket
    from collections.abc import Awaitable, Callable, Iterable

    from prefork.access_format import Outcome
    from prefork.asgi.backends import Signal
    from prefork.config import Config
    from prefork.http1.connection import Connection
    from prefork.http1.proxy_protocol import Header
    from prefork.listeners import Listener
    from prefork.outbox import Outbox
    from prefork.tls import Session

GUESTS = 16
"""How many connections are taken in from each listener in one turn: the others are left to the siblings."""
EASE_S = 0.1
"""How often a worker at work leaves half of those who wait in it to whoever is free first."""
RESIST_S = 1.0
"""How long a call that was cancelled has to end before its worker is given up for it."""
BLOCKED_S = 0.5
"""How long the loop may leave a request unanswered whose time is over before the thread beside it answers."""
LAST_S = 0.5
"""How long cancelled calls and the lifespan have at least until a pool that stops kills its workers."""
BURST = 1024 * 1024
"""How many bytes one client is sent in a turn."""
_CLIENT_GONE = "499"
_ID_FIELD = b"x-request-id"
_HANG_UP = getattr(select, "EPOLLRDHUP", 0)
_GONE = select.POLLHUP | select.POLLERR
# Members of an Enum are looked up dearly in Python 3.11.
_HEAD, _CLOSED = Phase.HEAD, Phase.CLOSED


class AsgiDriver(Reception[Client]):
    """Serves an ASGI application in the event loop of ``config.async_backend``."""

    def __init__(
        self, app: Callable[..., Awaitable[None]], listeners: Iterable[Listener], config: Config, outfit: Outfit
    ) -> None:
        self._extra = outfit.facts.shown(outfit.exit_guard)
        self.receive = self._receive_measured if config.access_log or config.queue_timeout else self._receive
        super().__init__(listeners, config, outfit)
        self._kinds_of_clients = _kinds_of_clients(tls=self.tls is not None)
        self._reader.upgrades = config.websocket
        self.app = app
        self.backend = new_backend(config.async_backend)
        self._poller = LoopPoller(self._poller, self.backend)
        self.failure: BaseException | None = None
        """What ended the loop or the thread beside it: a fault of the server."""
        self._state: dict[str, Any] | None = None
        self._calls: set[Call] = set()
        self._cells = self._row.cells
        self._ids = RequestIds() if config.request_id else None
        self._patience = config.queue_timeout or NEVER
        self._ease_at = 0.0
        self._dates: list[tuple[float, Callable[[], None]]] = []  # what is to be done at which time
        self._watch_loop = LoopWatch(config.blocked_threshold)
        # A request that begins later than a look has its time for longer than until the next one.
        self._look_each = min(EACH if config.max_memory else NEVER, config.request_timeout or NEVER)
        self._watches_work = bool(config.blocked_threshold) or self._look_each < NEVER
        self._watch_sleeps = self._watches_work  # who begins a call wakes it
        self._loop_turned = True
        self._seen = 0  # how many were served at the last look
        self._thread = threading.main_thread()
        self._at_end: Signal | None = None
        self.over = False
        self._told_of_upgrade = False
        self._timed: dict[Call, float] = {}  # requests whose time is over, and since when the loop knows
        self._resisting: set[Call] = set()
        self._resist_s = RESIST_S
        self._stubborn = 0
        self.given_up = WeakSet[threading.Thread]()

    # The loop's thread: from its first turn to its last.

    def run(self, started: Callable[[], None], lead: Callable[[], None]) -> None:
        """Serve in this thread, beside ``lead`` in another."""
        beside = threading.Thread(target=self._lead, args=(lead,), name="prefork-life", daemon=True)
        try:
            self.backend.run(partial(self._main, started, beside))
        except BaseException as error:  # noqa: BLE001 - raised below, and before that beside: it may be serving yet
            self.failure = self.failure or error
        if self.backend.refused:
            self.given_up.update(working())
        self.over = True
        self._tell_monitor()
        if beside.ident is not None:
            beside.join()
        if self.failure is not None:
            raise self.failure

    async def _main(self, started: Callable[[], None], beside: threading.Thread) -> None:
        lifespan = Lifespan(self.app, self.backend, self.records)
        try:
            await lifespan.startup()
        except AppFailed:
            await self.backend.end_tasks()
            raise
        self._state = lifespan.state
        try:
            self._at_end = self.backend.signal()
            self.backend.watch(self._poller.fileno(), self._turn)
            self._resume_accepting()
            started()
            beside.start()
            await self._at_end.wait()
            await self._end_calls()
        finally:
            await lifespan.shutdown()
            names, self._stubborn = await self.backend.end_tasks()
            if names:
                self.records.emit("worker.tasks_cancelled", tasks=names)
            if self._thread_exit is not None:
                self._thread_exit()

    def _lead(self, lead: Callable[[], None]) -> None:
        try:
            lead()
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            self.failure = error

    def end(self) -> None:
        """Let the calls that are left end, and the lifespan."""
        assert self._at_end is not None
        self.backend.soon(self._at_end.set)

    async def _end_calls(self) -> None:
        """Cancel what a fault of the server has left running."""
        for call in self._calls - self._resisting:
            self._cancel(call)
        deadline = time.monotonic() + RESIST_S
        while not self._calls <= self._resisting and time.monotonic() < deadline:
            await self.backend.sleep(RESIST_S / 20)

    def close(self) -> None:
        """Give everything back; the loop is over."""
        for client in list(self._clients.values()):
            self._close(client)
        self._tell_who_was_turned_away(NEVER)
        self._close_pipes()

    # Beside the loop.

    def tick(self) -> int | None:
        """See whether the loop turns, and whose time is over; return for how many milliseconds to sleep."""
        if self.failure is not None:
            raise self.failure
        now = time.monotonic()
        waits = [self._look_at_loop(now), self._end_overtime(now)]
        least = min(waits)
        patience = self._until_taken() if least == NEVER else max(1, math.ceil(least * 1000))
        return self._tell_turned_away(patience) if self._turned_away.pending else patience

    def _look_at_loop(self, now: float) -> float:
        if self._watch_sleeps:
            return NEVER
        busy = bool(self._calls) or self.served != self._seen
        self._seen = self.served
        wait = self._look_each if busy else NEVER
        if self._watch_loop.threshold:
            look = self._watch_loop.look(now, turned=self._loop_turned, busy=busy)
            if look.ask:
                self._loop_turned = False
                self.backend.soon(self._say_that_loop_turns)
            if look.silent:
                self._tell_of_block(look.silent)
            wait = min(wait, look.wait)
        if wait < NEVER or not self._watches_work:
            return wait
        self._watch_sleeps = True
        if not self._calls and self.served == self._seen:
            return NEVER
        self._watch_sleeps = False  # somebody came in while it fell asleep
        return 0.0

    def _say_that_loop_turns(self) -> None:
        self._loop_turned = True

    def _tell_of_block(self, blocked_s: float) -> None:
        coroutine = self.backend.running()
        call = next((call for call in list(self._calls) if call.coroutine is coroutine), None)
        named = {} if call is None else _named(call)
        stack = stack_of_thread(self._thread, AsgiDriver.call)
        self.records.emit("worker.blocked", blocked_s=round(blocked_s, 3), stack=stack, code="PF432", **named)

    def pulse(self, beat: Callable[[], None]) -> None:
        """Call ``beat`` in the loop: a worker whose loop does not turn has no pulse."""
        self._order(beat)

    @property
    def overdue(self) -> bool:
        """Whether a request was given up, and its task goes on."""
        return bool(self._resisting)

    @property
    def stuck(self) -> int:
        """How many tasks did not end when they were told to."""
        return max(len(self._resisting & self._calls), self._stubborn)  # who resists to the end is among both

    @property
    def drained(self) -> bool:
        """Whether nothing is left to answer, no task of a request is left, and nothing new can come."""
        return super().drained and self._calls <= self._resisting

    # A turn of the loop.

    def _turn(self) -> float:
        """Serve who is ready; return when to be called again if nothing happens until then."""
        try:
            self._serve_who_is_ready()
            self._do_what_is_due()
            return self._next_due()
        except BaseException as error:  # noqa: BLE001 - the thread beside raises it, and the worker ends
            self.failure = error
            self._tell_monitor()
            return NEVER

    def _serve_who_is_ready(self) -> None:
        clients = self._clients
        batch = self._poller.poll(0)
        if self._eases and len(batch) > 1:
            self._ease_now_and_then()
        for fd, events in batch:
            client = clients.get(fd)
            if client is not None:
                if client.watched:
                    self._serve(client, events)
            elif fd in self._gates:
                self._welcome(fd)
            elif fd == self._into:
                self._welcome_from_sibling()
            elif fd == self._out:
                self._part()
            elif fd == self._wake_end:
                drain(fd)

    def _do_what_is_due(self) -> None:
        while self._orders:
            self._orders.popleft()()
        for _ in range(len(self._behind)):
            client, step = self._behind.popleft()
            # Who is to be handed over is not watched either, and has nothing to do here.
            if client.watched or (client.eof and not client.gone):
                self._step(client, step)
        if self._behind:
            self._wake()
        now = time.monotonic()
        if ((due := self._deadlines.next) is not None and due <= now) or now >= self._resume_at:
            self._look_at_deadlines()
        while self._dates and self._dates[0][0] <= now:
            self._dates.pop(0)[1]()

    def _next_due(self) -> float:
        due = self._deadlines.next
        dates = self._dates[0][0] if self._dates else NEVER
        return min(NEVER if due is None else due, self._resume_at, dates)

    def _at(self, when: float, what: Callable[[], None]) -> None:
        self._dates.append((when, what))
        self._dates.sort(key=lambda date: date[0])
        self.backend.wake_at(when)

    def _ease_now_and_then(self) -> None:
        now = time.monotonic()
        if now >= self._ease_at:
            if now < self._ease_at + EASE_S:  # it was at work all the time
                self._ease()
            self._ease_at = now + EASE_S

    def _welcome(self, fd: int) -> None:
        for _ in range(GUESTS):
            if not self._accepting or (client := self._accept(fd)) is None:
                return
            if not self._crowded():
                self._serve(client, READ)
            elif not self._leave_to_siblings(client):
                self._step(client, self.turn_away)

    def _welcome_from_sibling(self) -> None:
        client = self._take_over() if self._may_take() else None
        if client is not None:
            self._step(client, client.step if client.requests or not self._crowded() else self.turn_away)

    def _serve(self, client: Client, events: int) -> None:
        """Take one step for a client."""
        try:
            if events & WRITE and client.outbox is not None:
                self._flush(client)
            if events & READ:
                client.step(client)
            elif events & _GONE:
                client.broken = True
            elif events & _HANG_UP:
                self._see_hang_up(client)
        except OSError:
            client.broken = True
        self._settle(client)

    def _step(self, client: Client, step: Callable[[Client], bool]) -> None:
        try:
            step(client)
        except OSError:
            client.broken = True
        self._settle(client)

    def _settle(self, client: Client) -> None:
        """Close a client, hand it over, or go on listening to it."""
        if client.gone:
            return
        if client.broken:
            self._close(client)
            return
        connection = client.connection
        if client.outbox is None and client.call is None:
            if connection.phase is _CLOSED:
                if client.step == self.read_out and not client.eof:
                    self._watch(client, READ)
                elif client.eof or not (connection.leftover or client.has_unread()):
                    self._close(client)
                else:
                    self._let_read(client)
                return
            if client.eof and client.step != self.await_turn:
                self._close(client)  # what is left of a request will never be whole
                return
            if self._handing_over and connection.idle:
                self._hand_over(client)
                return
        self._watch(client, self._interest(client))

    def _interest(self, client: Client) -> int:
        """Return for which events a client is to be watched."""
        events = 0 if client.outbox is None else WRITE
        call = client.call
        if client.eof:
            return events
        if call is None:
            reads = client.outbox is None
        elif client.connection.awaits_body:
            reads = call.size < HIGH
        else:
            reads = not client.connection.buffered
        if reads:
            return events | READ
        return events if client.hung_up else events | _HANG_UP

    def _watch(self, client: Client, events: int) -> None:
        if client.deadline < client.listed:
            self.backend.wake_at(client.deadline)
        if events:
            super()._watch(client, events)
        else:
            self._unwatch(client)

    # What comes in.

    def _receive_measured(self, client: Client) -> bool:
        """Take in what the client sent, and note how long it has waited for that."""
        if client.call is None and client.connection.idle:
            client.queue_s = waited(client.sock)
            if client.queue_s:
                # It waits for nobody but itself while its last request is being served.
                client.queue_s = min(client.queue_s, time.monotonic() - client.free_at)
        return self._receive(client)

    def _receive(self, client: Client) -> bool:
        """Take in what the client sent."""
        try:
            data = client.receive(RECEIVE, AT_ONCE)
        except BlockingIOError:
            return False
        if not data:
            self._see_end(client)
            return False
        if client.call is None and client.outbox is None:
            return self.advance(client, client.connection.recall(data))
        client.connection.receive(data)
        return self.advance(client)

    def _let_wait(self, client: Client) -> None:
        """Let a client wait with what may be its next request: others come first, and nothing more is read meanwhile."""
        client.step = self.await_turn
        self._behind.append((client, self.take_turn))
        self._wake()

    def _see_end(self, client: Client) -> None:
        """Take note that the client sends nothing more. Who has asked may still read its answer."""
        if client.call is None and client.outbox is None:
            client.broken = True
            return
        client.eof = True
        if client.call is not None:
            client.call.leave()

    def _see_hang_up(self, client: Client) -> None:
        """Take note that the client sends nothing more. What it sent before is read when there is room for it."""
        client.hung_up = True
        if client.call is not None and not client.connection.awaits_body:
            client.call.leave()

    def advance(self, client: Client, request: Request | None = None) -> bool:
        """Go on with what was received: give it to the application, or begin with the next request, if ``request`` is none."""
        connection, call = client.connection, client.call
        try:
            if call is None:
                if client.outbox is not None:
                    return False
                event = connection.next_event() if request is None else request
                if type(event) is Request:
                    client.in_head = False
                    if client.queue_s and self._turns_away(client, event):
                        return False
                    call = Call(self, client, event)
                    if not call.ended:
                        client.pace = None
                        self._collect(call)
                    client.call = call
                    call.left = client.eof and not call.ended  # seen while the answer before was still to be taken
                    client.hung_up = False  # each call is told of it
                    self._start(call)
                elif type(event) is Upgrade:
                    try:
                        self._upgrade(client, event)
                    except Refused as refused:
                        refused.request = event
                        raise
                elif connection.buffered and not client.in_head:
                    # A head has its time from its first byte on, however slowly the others come.
                    client.in_head = True
                    client.deadline = time.monotonic() + self.config.head_timeout
            elif not call.ended:
                self._collect(call)
                call.wake()
        except Refused as refused:
            if call is not None:
                refused.request = call.request
            self._refuse(client, refused)
            return False
        if call is not None and not call.ended and client.call is call:
            self._expect_more(call)
        return False

    def _upgrade(self, client: Client, request: Upgrade) -> None:  # noqa: ARG002 - who can speak it needs both
        """Go on as a WebSocket; here that cannot be done."""
        if not self._told_of_upgrade:
            self._told_of_upgrade = True
            self.records.emit("websocket.unavailable", path=request.line.path.decode("latin-1"), code="PF441")
        raise Refused(501, "no WebSockets here", "RFC 9110 section 15.6.2")

    def _turns_away(self, client: Client, request: Request) -> bool:
        """Do without a request that has waited for longer than ``queue_timeout``, or for nobody, where that is set."""
        assert client.queue_s is not None
        if self._patience == NEVER:
            return False
        gone = client.has_left()
        if not gone and client.queue_s <= self._patience:
            return False
        connection = client.connection
        if isinstance(connection, NamedConnection):
            assert self._ids is not None
            given = next((value for name, value in request.head.fields if name.lower() == _ID_FIELD), b"")
            connection.request_id = self._ids.of(given.decode("latin-1"), trusted=client.base.origin.trusted)
        if gone:
            self._turned_away.count(GONE)
            client.broken = True
            if self._access is not None:
                self._log_own_answer(client, request, _CLIENT_GONE, b"", "client_gone")
                client.queue_s = 0.0  # for what it has sent ahead
        else:
            self._turn_away_late(client, request)
        return True

    def _turn_away_late(self, client: Client, request: Request) -> None:
        """Answer a request that has waited for longer than ``queue_timeout``."""
        self._turned_away.count(QUEUED)
        connection = client.connection
        if request.head.length:
            # Not when the body is here: its client would have sent it for nothing.
            self.put(client, connection.refusal(OVERLOADED, self.date()))
            return
        if self._closing:
            connection.answer_close = True
        answer = connection.decline(OVERLOADED, self.date())
        self.put(client, answer)
        if self._access is not None:
            self._log_own_answer(client, request, str(OVERLOADED.status), answer, "turned_away")
            client.queue_s = 0.0  # for what it has sent ahead
        if client.outbox is None:
            client.deadline = time.monotonic() + self._keep_alive
            if connection.buffered:
                self._let_wait(client)

    def _expect_more(self, call: Call) -> None:
        """See that the rest of a body comes fast enough, unless its application makes it wait."""
        client, config = call.client, self.config
        if client.outbox is not None:
            return  # it is measured by what it takes, until it has taken all
        if not _awaits_client(call):
            client.pace, client.deadline = None, NEVER
            return
        if client.pace is None:
            client.pace = Pace(config.body_timeout, config.body_min_rate, time.monotonic(), call.received)
        if not client.goes_on(client.pace, call.received):
            self._time_out(client)

    def _late(self, client: Client) -> bool:
        call = client.call
        if call is None:
            return super()._late(client)
        measured = not call.ended and _awaits_client(call) and client.outbox is None
        return measured and not client.goes_on(client.pace, call.received)

    def _collect(self, call: Call) -> None:
        connection = call.client.connection
        while call.size < HIGH:
            event = connection.next_event()
            if isinstance(event, Body):
                call.add(event.data)
            elif isinstance(event, End):
                call.ended = True
                return
            else:
                return

    def read_on(self, client: Client) -> None:
        """Go on with a body whose application has caught up."""
        if not client.gone and client.call is not None:
            client.pace = None
            self._step(client, self.advance)

    def _refuse(self, client: Client, refused: Refused) -> None:
        """Answer a request that is not served, and close; its application may have begun already."""
        call = client.call
        if call is not None:
            client.connection.answer_close = True
            if call.answer.sent:
                client.broken = True
            else:
                self._log(call, "complete", str(refused.status))
        super()._refuse(client, refused)

    def _request_of(self, client: Client) -> Request | None:
        return None if client.call is None else client.call.request

    def _asked_by(self, client: Client, request: Request) -> tuple[str, str]:
        return asked_by(client.base, client.peer, request)

    def _environ_for_log(self, client: Client, request: Request) -> dict[str, str]:
        said = next((value for name, value in request.head.fields if name.lower() == b"authorization"), b"")
        return {"SERVER_PORT": str(client.base["server"][1] or ""), "HTTP_AUTHORIZATION": said.decode("latin-1")}

    def _reply(self, client: Client, octets: bytes) -> None:
        if not client.broken:
            try:
                self.put(client, octets)
            except OSError:
                # A client that sends no more is not watched, so its reset is news here, where a task or an order calls.
                client.broken = True

    def _let_go(self, client: Client) -> None:
        call, client.call = client.call, None
        if call is not None:
            call.leave()
            if self._timed.get(call) == NEVER:
                self._log(call, "timeout", "504")
            else:
                self._log(call, "client_gone")

    # What goes out.

    def put(self, client: Client, octets: bytes) -> None:
        """Send, and keep what the client does not take now. Raises ``ClientLeft`` once it is gone."""
        if client.session is not None:
            octets = client.encrypted(octets)
        self.put_octets(client, octets)

    def put_octets(self, client: Client, octets: bytes) -> None:
        """Send as it is, or keep what the client does not take now."""
        if client.outbox is None:
            try:
                sent = client.sock.send(octets, AT_ONCE)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._lose(client)
                raise ClientLeft("the client is gone") from error
            if sent == len(octets):
                return
            self._open_outbox(client).add(memoryview(octets)[sent:])
        else:
            client.outbox.add(octets)
        self._watch(client, self._interest(client))

    def _open_outbox(self, client: Client) -> Outbox:
        client.sock.setblocking(False)  # sendfile() has no flags
        client.outbox, config = client.new_outbox(self.config.spool_dir), self.config
        client.outbox.failed = self.tell_of_spool
        client.outbox.pace = Pace(
            config.write_timeout, config.write_min_rate, time.monotonic(), client.outbox.taken(client.sock)
        )
        client.takes()
        return client.outbox

    def put_file(self, call: Call, path: Any) -> None:
        """Answer with a file, which the kernel sends.

        Raises ``ClientLeft`` once the client is gone, and another ``OSError`` if the file cannot be read.
        """
        client = call.client
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # of a pipe it would hold the loop up
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "http.response.pathsend is for regular files", path)
            file = call.answer.file(found.st_size, self.date())
            if call.running is not None:
                call.running.begin_to_send()
            self.put(client, file.head)
            if file.size:
                outbox = client.outbox or self._open_outbox(client)
                outbox.add_file(descriptor, 0, file.size)
        finally:
            os.close(descriptor)
        if file.tail:
            self.put(client, file.tail)
        self._watch(client, self._interest(client))

    def _flush(self, client: Client) -> None:
        """Send on what the client did not take at once."""
        outbox = client.outbox
        assert outbox is not None
        outbox.flush(client.sock, BURST)
        if not client.takes():
            client.broken = True
            return
        call = client.call
        if outbox:
            if call is not None and outbox.size <= LOW:
                call.wake()
            return
        outbox.close()
        client.outbox = client.pace = None
        if call is not None:
            if not call.ended:
                self._expect_more(call)
            call.wake()
        elif client.connection.phase is _HEAD:
            client.deadline = time.monotonic() + self._keep_alive
            if client.connection.buffered:
                self._let_wait(client)

    def _lose(self, client: Client) -> None:
        """Let go of a client that is gone; not here and now, for a call may be under way with it."""
        client.broken = True
        self._let_go(client)
        self._order(partial(self._settle, client))

    # Calls.

    def _start(self, call: Call) -> None:
        """Give a request to the application."""
        client = call.client
        self.served += 1
        client.requests += 1
        if self.served >= self._threshold:
            self._reach()
        if self._closing:
            client.connection.answer_close = True
        # With more requests than cells, the others are not on the scoreboard.
        call.cell = self._cells.pop() if self._cells else 0
        call.since = time.monotonic()
        if call.cell:
            mark(self._board, call.cell, call.since, self.served, call.request.line.octets, 1)
        if self.config.request_timeout:
            call.running = Running(self._thread, call.cell, call.request, 0, self.config.request_timeout)
        self._calls.add(call)
        if self._watch_sleeps:
            self._watch_sleeps = False
            self._tell_monitor()
        self.backend.spawn(call)

    async def call(self, call: Call) -> None:
        """Call the application, and see to what it leaves undone."""
        client = call.client
        try:
            scope = call.scope_of(client.base, self._state, client.peer, call.request)
            scope["extensions"]["prefork.extend_deadline"] = call.extend_deadline
            if self._ids is not None:
                self._name(call, scope, self._ids)
            await self.app(scope, call.receive, call.send)
            if client.call is call:
                self._left_undone(call)
        except Refused as refused:
            refused.request = call.request
            self._refuse(client, refused)
            self._settle(client)
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 - whatever it raises, the worker lives on
            self._fail(call, error)
        except BaseException as error:
            failure = failure_in(error, self.backend.cancelled)
            if failure is not None:
                self._fail(call, failure)
                return
            if client.call is call:
                self._fail(call, RuntimeError("the application was cancelled"))
            raise
        finally:
            if self.stray:
                os._exit(1)
            self._end(call)

    def fail_behind_its_end(self, call: Call, error: BaseException) -> None:
        """Take note of what the loop finds wrong with the task of a call that has ended."""
        self._fail(call, error)

    def _left_undone(self, call: Call) -> None:
        """Answer for an application that has returned too early, unless it was told that nobody waits."""
        if call.left:
            call.client.broken = True
            self._settle(call.client)
        else:
            self._fail(call, call.answer.fault or RuntimeError("the application has returned without a whole answer"))

    def _end(self, call: Call) -> None:
        if call.cell:
            self._board[call.cell + BUSY] = 0
            self._cells.append(call.cell)
        self._calls.discard(call)
        if self._leaving and not self._calls:
            self._tell_monitor()

    def answered(self, call: Call) -> None:
        """Take note that an answer is complete, and make ready for the client's next request."""
        client = call.client
        client.call = None
        call.answered = True
        call.wake()
        if self._access is not None:
            client.free_at = time.monotonic()
            self._log(call, "complete")
        connection = client.connection
        if connection.phase is _HEAD and client.outbox is None:
            client.deadline = time.monotonic() + self._keep_alive
            if not connection.idle:
                self._let_wait(client)
            elif client.watched == READ and client.deadline >= client.listed and not (self._handing_over or client.eof):
                return
        self._settle(client)

    def _fail(self, call: Call, error: BaseException) -> None:
        """Answer for an application that did not; cut the connection if it has begun to."""
        client = call.client
        if call.answered:
            self._tell_of_failure(call, error)
            return
        gone = call.left or client.call is not call
        if (gone and came_of_leaving(error)) or (call.left and not call.ended):
            client.broken |= client.call is call
            self._settle(client)
            return
        self._tell_of_failure(call, error)
        if client.call is not call:
            return
        if call.answer.sent:
            client.broken = True
            self._log(call, "failed")
            self._settle(client)
            return
        try:
            if call.running is not None:
                call.running.begin_to_send()
            self.put(client, call.answer.fail(self.date()))
        except OSError:
            return
        self._log(call, "failed")
        self.answered(call)

    def _tell_of_failure(self, call: Call, error: BaseException) -> None:
        line = call.request.line
        self.records.failure(
            error,
            method=line.method,
            path=line.path.decode("latin-1"),
            client=self._asked_by(call.client, call.request)[0],
            **_id_of(call),
        )

    def _name(self, call: Call, scope: dict[str, Any], ids: RequestIds) -> None:
        """Give a request its id."""
        connection = call.client.connection
        assert isinstance(connection, NamedConnection)
        given = next((value.decode("latin-1") for name, value in scope["headers"] if name == _ID_FIELD), None)
        name = call.request_id = connection.request_id = ids.of(given, trusted=call.client.base.origin.trusted)
        scope["extensions"]["prefork.request_id"] = name
        others = [field for field in scope["headers"] if field[0] != _ID_FIELD]
        scope["headers"] = [*others, (_ID_FIELD, name.encode())]

    # The access log.

    def _log(self, call: Call, outcome: Outcome, status: str = "") -> None:
        """Have a request written into the access log, once."""
        if self._access is None or call.logged:
            return
        call.logged = True
        client, answer, request = call.client, call.answer, call.request
        address, scheme = asked_by(client.base, client.peer, request)
        entry = Entry(
            request=request,
            client=address,
            scheme=scheme,
            environ=self._environ_for_log(client, request),
            status=status or (answer.status or _CLIENT_GONE)[:3],
            fields=answer.fields,
            received=call.received,
            sent=answer.size,
            duration_s=time.monotonic() - call.since,
            queue_s=client.queue_s,
            outcome=outcome,
            closes=self._ends(client),
            request_id=call.request_id,
            context=bound_context(),
        )
        client.queue_s = client.queue_s and 0.0  # for what it has sent ahead
        if client.outbox and not client.broken:
            client.outbox.then = partial(self._log_taken, entry, time.monotonic())
        else:
            self._write_log(entry)

    def _write_log(self, entry: Entry) -> None:
        assert self._access is not None
        self._access.take(entry)
        self._access.flush()

    # Whose time is up.

    def _expire(self, client: Client) -> None:
        """End what took too long: what that was, the client's state tells."""
        call, connection = client.call, client.connection
        if not client.watched or client.step == self.await_turn:
            return
        if client.outbox is not None:
            client.broken = not client.takes()
            self._settle(client)
        elif client.step == self.read_out:
            self._see_it_read(client)
        elif call is None and connection.idle:
            self._behind.append((client, self._look_again))
        elif call is None or not call.ended:
            self._behind.append((client, self._look_for_more))
        if self._behind:
            self._wake()

    def _end_overtime(self, now: float) -> float:
        """Have those given up whose time is over; return how long to wait for the next. In the thread beside the loop."""
        if not self.config.request_timeout:
            return NEVER
        wait = NEVER
        for call in list(self._calls):
            running = call.running
            if running is None or call.client.call is not call:
                continue
            known = self._timed.get(call)
            if known is None and running.deadline <= now:
                known = self._timed[call] = now
                self._order(partial(self._give_up, call))
            if known is None:
                wait = min(wait, running.deadline - now)
            elif now - known < BLOCKED_S:
                wait = min(wait, BLOCKED_S - (now - known))
            elif known < NEVER and take(running.claim):
                self._timed[call] = NEVER
                self._answer_for(call)
                self._order(partial(self._end_answered_for, call))
        return wait

    def _give_up(self, call: Call) -> None:
        """Answer for a call whose time is over, and cancel it."""
        running, client = call.running, call.client
        if running is None or client.call is not call or running.deadline > time.monotonic():
            self._timed.pop(call, None)
            return
        if not take(running.claim):  # it is answered for beside
            return
        self._tell_of_timeout(call, stack_of_task(call.coroutine, AsgiDriver.call))
        self._log(call, "timeout", "504")
        if running.sending:
            client.broken = True
        else:
            self._let_go(client)
            late = Refused(504, "the request took too long", "RFC 9110 section 15.6.5")
            head_only = running.request.line.method == "HEAD"
            client.connection.close()
            self._reply(client, closing_answer(late, self.date(), head_only=head_only))
        self._settle(client)
        self._cancel(call)
        self._at(time.monotonic() + self._resist_s, partial(self._see_whether_ended, call))

    def _answer_for(self, call: Call) -> None:
        """Answer for a call that holds the loop up. In the thread beside it: the descriptor stays open, for it is not ours."""
        running, client = call.running, call.client
        assert running is not None
        call.left = True
        self._tell_of_timeout(call, stack_of_thread(self._thread, AsgiDriver.call))
        self._resisting.add(call)
        late = Refused(504, "the request took too long", "RFC 9110 section 15.6.5")
        head_only = running.request.line.method == "HEAD"
        client.broken = True
        client.cut(b"" if running.sending else closing_answer(late, self.date(), head_only=head_only))

    def _end_answered_for(self, call: Call) -> None:
        """Cancel a call that was answered for beside the loop, now that this turns again."""
        self._settle(call.client)
        self._timed.pop(call, None)
        self._cancel(call)

    def _tell_of_timeout(self, call: Call, stack: str) -> None:
        assert call.running is not None
        status = None if call.running.sending else 504
        self.records.emit("request.timeout", **_named(call), status=status, stack=stack, code="PF502")

    def _see_whether_ended(self, call: Call) -> None:
        self._timed.pop(call, None)
        if call in self._calls:
            self.given_up.update(serving_calls())  # it may wait for another one by now
            self._resisting.add(call)
            self._tell_monitor()

    def _cancel(self, call: Call) -> None:
        if call in self._calls:
            self.given_up.update(serving_calls())  # for which of them it waits, nothing tells
            call.cancelled = True
            self.backend.cancel(call)

    # The pool stops.

    def _stop(self, *, quick: bool, patience: float) -> None:
        super()._stop(quick=quick, patience=patience)
        limit = QUICK_STOP_S if quick else self.config.graceful_timeout
        last = max(limit / 10, min(LAST_S, limit / 2))
        self._resist_s = min(RESIST_S, last / 2)
        self._at(time.monotonic() + limit - last, self._cancel_all)
        self._end_streams()

    def _end_streams(self) -> None:
        """Tell the streams that nobody knows the end of that it has come; cancel those that were told long enough ago."""
        for call in list(self._calls):
            if call.client.call is call and call.answer.sent and call.client.connection.endless:
                if call.warned:
                    self._cancel_in_stop(call)
                else:
                    call.warned = True
                    call.leave()
        self._at(time.monotonic() + self.config.stream_grace, self._end_streams)

    def _cancel_all(self) -> None:
        left = self._calls - self._resisting
        for call in left:
            self._cancel_in_stop(call)
        self._at(time.monotonic() + self._resist_s, partial(self._see_who_resists, left))

    def _cancel_in_stop(self, call: Call) -> None:
        if call.cancelled:
            return  # it may be cleaning up
        self.records.emit(
            "request.cancelled", **_named(call), stack=stack_of_task(call.coroutine, AsgiDriver.call), code="PF510"
        )
        if call.client.call is call:
            call.client.broken = True
            self._settle(call.client)
        self._cancel(call)

    def _see_who_resists(self, cancelled: Iterable[Call]) -> None:
        for call in cancelled:
            self._see_whether_ended(call)

    # What all who came through one listener share.

    def _new_client(
        self, sock: _socket.socket, connection: Connection, base: Base, peer: tuple[str, str] | None
    ) -> Client:
        if base.origin.unix:
            base = self._base_on_unix(base, sock)
        return self._kinds_of_clients[base.origin.scheme](self, sock, connection, base, peer)

    def _introduce(self, client: Client, header: Header) -> None:
        super()._introduce(client, header)
        if client.base.origin.unix:
            client.base = self._base_on_unix(client.base, client.sock)

    def _origin(self, base: Base) -> Origin:
        return base.origin

    def _new_base(self, origin: Origin) -> Base:
        scope = server_scope(
            scheme=origin.scheme,
            server=(origin.name.strip("[]"), int(origin.port)),
            root_path=self.config.root_path,
            extensions=self._extra if origin.proxy is None else {**self._extra, "prefork.peer": origin.proxy},
        )
        return Base(scope, origin, self._belief if origin.trusted else None, self._tell_of_ignored)

    def _base_on_unix(self, base: Base, sock: _socket.socket) -> Base:
        path = os.fsdecode(sock.getsockname())
        key = (base.origin, path)
        if (found := self._bases.get(key)) is None:
            found = self._bases[key] = base.extended({"server": (path, None)})
        return found

    def base_of_session(self, base: Base, session: Session) -> Base:
        """Return ``base`` with the facts of a TLS session, the same for all that have the same."""
        facts = session.facts()
        key = (base.origin, base["server"], *facts.values())
        if "SSL_CLIENT_CERT" in facts or (found := self._bases.get(key)) is None:
            found = base.extended({"extensions": {**base["extensions"], "tls": tls_extension(facts)}})
            if "SSL_CLIENT_CERT" not in facts:
                self._bases[key] = found
        return found


def _kinds_of_clients(*, tls: bool) -> dict[str, type[Client]]:
    """Return the class of client for each scheme that is spoken."""
    kinds: dict[str, type[Client]] = {"http": Client}
    if tls:
        from prefork.asgi.tls import TlsClient

        kinds["https"] = TlsClient
    return kinds


def _awaits_client(call: Call) -> bool:
    """Whether it is for the client to send more of a body: it may wait to be told so, and the application may be slow."""
    return call.size < HIGH and not (call.held_back and not call.received)


def _named(call: Call) -> dict[str, Any]:
    line = call.request.line
    return {
        "method": line.method,
        "path": line.path.decode("latin-1"),
        "client": asked_by(call.client.base, call.client.peer, call.request)[0],
        "age_s": call.age(),
    }


def _id_of(call: Call) -> dict[str, str]:
    """Return the id of a request for a record, if it has one."""
    return {"request_id": call.request_id} if call.request_id else {}


def came_of_leaving(error: BaseException | None) -> bool:
    """Whether an application raised this because its client was gone, in whatever words of its own."""
    while error is not None:
        if isinstance(error, BaseExceptionGroup):
            return all(came_of_leaving(inner) for inner in error.exceptions)
        if isinstance(error, (ClientLeft, GivenUp)):
            return True
        error = error.__cause__ or error.__context__
    return False
