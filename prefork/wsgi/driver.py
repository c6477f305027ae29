"""Which thread serves which connection, when does a second one join, and when does a worker accept?

One thread leads: it polls, and serves what is ready itself, in place. So with quick requests one thread runs and no
interpreter lock changes hands. The main thread is the monitor: it looks every ``TICK``, only while there is work, and
if the leader has been away with the same request for a whole tick it promotes a follower, who polls on. A thread that
comes back and no longer leads gives its connection back to the poller and waits. An application that was seen to block
passes the lead on before the call.

A request is collected, head and body, before a thread is spent on it; what a client does not take of its answer waits
in an ``Outbox``. A worker whose threads are all away does not poll, so it does not accept.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING, Any

from prefork.http1.connection import Connection, Parser, Phase
from prefork.http1.messages import Body, End, Misanswered, Refused, Request
from prefork.http1.parser_h11 import H11Parser
from prefork.wsgi.body import RequestBody
from prefork.wsgi.deadlines import Deadlines
from prefork.wsgi.gateway import Answer, request_environ, server_environ
from prefork.wsgi.outbox import SPOOL, Outbox
from prefork.wsgi.poller import READ, WRITE, new_poller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prefork.config import Config
    from prefork.exit_guard import ExitGuard
    from prefork.listeners import Listener
    from prefork.records import Records

TICK = 0.002
"""After how many seconds without a sign of life a leader is taken to be away."""
QUIET_TICKS = 50
"""After how many ticks without work the monitor sleeps until there is some."""
LINGER = 5.0
"""How many seconds a retiring worker waits for the next request of an idle connection, to answer it with a close."""
READ_ANSWER = 2.0
"""How many seconds a refused client has to read why, while what it still sends is thrown away."""
PAUSE = 0.5
"""How many seconds nothing is accepted after the descriptors were used up."""
_RECEIVE = 65536
_BLOCKY = 16
_NEVER = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFacts:
    """What an application may know about its worker."""

    number: int
    generation: int


class Client:
    """One connection, and the stream of its answers.

    It belongs to the thread that serves it, or to the leader; only ``flush`` may meet another thread.
    """

    __slots__ = (
        "away",
        "base",
        "body",
        "broken",
        "connection",
        "deadline",
        "driver",
        "fd",
        "gone",
        "listed",
        "lock",
        "outbox",
        "peer",
        "reading_out",
        "registered",
        "request",
        "served",
        "sock",
    )  # fmt: skip

    def __init__(
        self, driver: WsgiDriver, sock: socket.socket, connection: Connection, base: dict[str, Any], peer: str
    ) -> None:
        self.driver = driver
        self.sock = sock
        self.fd = sock.fileno()
        self.connection = connection
        self.base = base
        self.peer = peer
        self.request: Request | None = None
        self.body: RequestBody | None = None
        self.outbox: Outbox | None = None
        self.lock: threading.Lock | None = None
        self.away = False
        self.broken = False
        self.gone = False
        self.reading_out = False
        self.registered = False
        self.served = 0
        self.deadline = _NEVER
        self.listed = _NEVER

    # The stream of an answer, called by the gateway in the thread that serves.

    def send(self, data: bytes) -> None:
        """Send, and keep what the client does not take now. Raises ``OSError`` once it is gone."""
        if self.outbox is None:
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                sent = 0
            if sent == len(data):
                return
            self.lock = threading.Lock()
            self.outbox = Outbox(self.driver.config.spool_dir)
            self.outbox.add(memoryview(data)[sent:])
            return
        with self._held():
            self.outbox.add(data)
        self._push()

    def sendfile(self, file: Any, offset: int, size: int) -> None:
        """Let the kernel send a part of a file."""
        if self.outbox is None:
            self.lock = threading.Lock()
            self.outbox = Outbox(self.driver.config.spool_dir)
        with self._held():
            self.outbox.add_file(file.fileno(), offset, size)
        self._push()

    def date(self) -> str:
        """Return the present value of ``Date``."""
        return self.driver.date()

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


class WsgiDriver:
    """Serves a WSGI application on ``config.threads`` request threads.

    The worker's main thread calls ``tick`` in its loop, and again when ``monitor_fd`` is readable.
    """

    def __init__(
        self,
        app: Callable[..., Iterable[bytes]],
        listeners: Iterable[Listener],
        config: Config,
        facts: WorkerFacts,
        records: Records,
        exit_guard: ExitGuard,
        thread_exit: Callable[[], None] | None = None,
    ) -> None:
        self._new_parser = _parser(config.http)
        self.app = app
        self.config = config
        self.records = records
        self.monitor_fd, self._monitor_end = os.pipe()
        self._wake_end, self._wake_fd = os.pipe()
        for end in (self.monitor_fd, self._monitor_end, self._wake_end, self._wake_fd):
            os.set_blocking(end, False)
        self.served = 0
        """Requests given to the application so far."""
        self._threshold: float = _NEVER
        self._announce: float = _NEVER
        self._budget: float = _NEVER
        self._poller = new_poller()
        self._poller.register(self._wake_end, READ)
        self._listeners = {listener.socket.fileno(): listener for listener in listeners}
        extra = {
            "prefork.worker": facts.number,
            "prefork.generation": facts.generation,
            "prefork.exit_guard": exit_guard,
        }
        self._bases = {
            fd: server_environ(
                name=listener.server_name,
                port=listener.server_port,
                scheme="http",
                errors=sys.stderr,
                multithread=config.threads > 1,
                extra=extra,
            )
            for fd, listener in self._listeners.items()
        }
        self._limits = config.limits
        self._accepting = False
        self._resume_at = _NEVER
        self._clients: dict[int, Client] = {}
        self._deadlines: Deadlines[Client] = Deadlines()
        self._batch: deque[tuple[int, int]] = deque()
        self._behind: deque[Client] = deque()  # pipelined requests of connections that were served elsewhere
        self._orders: deque[Callable[[], None]] = deque()
        self._leaving = False
        self._done = False
        self._thread_exit = thread_exit
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()  # guards the lead, taken only when it changes hands
        self._waiting: list[
            threading.Semaphore
        ] = []  # the last to come is the first to be promoted: caches and connections stay warm
        self._leader: int | None = None
        self._serving: Client | None = None  # the connection that the leader is away with
        self._turn = 0
        self._blocky = 0  # how surely the application blocks; above 0 the lead passes on before the call
        self._monitor_sleeps = True
        self._quiet = 0
        self._seen = -1
        self._date_at = 0
        self._date = ""

    # Called by the worker's main thread.

    def start(self) -> None:
        """Begin to accept and serve."""
        for fd in self._listeners:
            self._poller.register(fd, READ, shared=True)
        self._accepting = True
        self._new_thread()

    def set_thresholds(self, announce: int | None, budget: int | None) -> None:
        """Make ``monitor_fd`` readable when ``served`` reaches ``announce``, and again at ``budget``."""
        self._announce = _NEVER if announce is None else announce
        self._budget = _NEVER if budget is None else budget
        self._threshold = min(self._announce, self._budget)

    def tick(self, now: float) -> int | None:  # noqa: ARG002 - turns are counted, not timed
        """Promote a follower if the leader is away; return for how many milliseconds the monitor may sleep."""
        _drain(self.monitor_fd)
        if self._monitor_sleeps:
            return None
        turn, serving = self._turn, self._serving
        if serving is None:
            self._quiet = self._quiet + 1 if turn == self._seen else 0
        elif turn == self._seen:
            self._blocky = min(_BLOCKY, self._blocky + 2)
            self._promote(serving)
        self._seen = turn
        if self._quiet > QUIET_TICKS:
            self._quiet = 0
            self._monitor_sleeps = True
            return None
        return int(TICK * 1000)

    @property
    def drained(self) -> bool:
        """Whether nothing is left to answer, and nothing new can come."""
        return self._leaving and not self._accepting and not self._clients

    def retire(self) -> None:
        """Leave the listeners to the siblings; what is there is answered, with ``Connection: close``."""
        self._order(partial(self._leave, LINGER))

    def stop(self, *, quick: bool) -> None:
        """Stop with the whole pool: what is queued is taken in, unless ``quick``, and nothing waits for idle clients."""
        self._order(partial(self._stop, quick=quick))

    def close(self) -> None:
        """End the threads that are not stuck, and give everything back."""
        self._done = True
        self._wake()
        with self._lock:
            for semaphore in self._waiting:
                semaphore.release()
        for thread in self._threads:
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

    def _stop(self, *, quick: bool) -> None:
        if self._accepting and not quick:
            for fd in list(self._listeners):
                while self._accept(fd):
                    pass
        self._leave(0.0)

    def _leave(self, patience: float) -> None:
        self._leaving = True
        if self._accepting or self._resume_at != _NEVER:
            self._pause_accepting()
            self._resume_at = _NEVER
            for listener in self._listeners.values():
                listener.socket.close()
            self._listeners.clear()
        now = time.monotonic()
        for client in list(self._clients.values()):
            client.connection.answer_close = True
            if client.connection.idle and client.outbox is None:
                client.deadline = min(client.deadline, now + patience)
                self._deadlines.watch(client)
        self._tell_monitor()

    def _pause_accepting(self) -> None:
        if self._accepting:
            self._accepting = False
            for fd in self._listeners:
                self._poller.unregister(fd)

    def _resume_accepting(self) -> None:
        self._resume_at = _NEVER
        if not self._leaving:
            self._accepting = True
            for fd in self._listeners:
                self._poller.register(fd, READ, shared=True)

    # The lead.

    def _new_thread(self) -> None:
        name = f"prefork-{len(self._threads)}"
        thread = threading.Thread(target=self._follow, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _follow(self) -> None:
        turn = threading.Semaphore(0)
        try:
            while not self._done:
                self._lead()
                # Before the look at `_done`: close() lets go whom it finds waiting, and says so first.
                with self._lock:
                    self._waiting.append(turn)
                if not self._done:
                    turn.acquire()
        finally:
            if self._thread_exit is not None:
                self._thread_exit()

    def _can_promote(self) -> bool:
        return bool(self._waiting) or len(self._threads) < self.config.threads

    def _promote(self, client: Client) -> None:
        """Let another thread lead, while the present one is away with ``client``."""
        with self._lock:
            if self._serving is not client or not self._can_promote():
                return
            if client.registered:
                # Not masked: the poller would still tell of a client that hangs up, again and again.
                self._poller.unregister(client.fd)
                client.registered = False
            client.away = True
            self._leader = self._serving = None
            if self._waiting:
                self._waiting.pop().release()
            else:
                self._new_thread()

    def _lead(self) -> None:
        me = self._leader = threading.get_ident()
        batch = self._batch
        clients = self._clients
        while self._leader == me and not self._done:
            if self._behind:
                self._serve(self._behind.popleft(), 0)
            elif batch:
                fd, events = batch.popleft()
                client = clients.get(fd)
                if client is not None:
                    self._serve(client, events)
                elif fd in self._listeners:
                    self._accept(fd)
            else:
                self._wait()

    def _wait(self) -> None:
        """Fill the batch, and do what is due."""
        if self._orders:
            self._orders.popleft()()
            return
        due = self._deadlines.next
        if self._resume_at != _NEVER:
            due = self._resume_at if due is None else min(due, self._resume_at)
        self._batch.extend(self._poller.poll(None if due is None else max(0.0, due - time.monotonic())))
        if due is not None and not self._batch:
            self._look_at_deadlines()
        if self._batch and self._batch[0][0] == self._wake_end:
            _drain(self._wake_end)
        if self._monitor_sleeps and self.config.threads > 1 and self._batch:
            self._monitor_sleeps = False
            self._tell_monitor()

    def _look_at_deadlines(self) -> None:
        now = time.monotonic()
        if now >= self._resume_at:
            self._resume_accepting()
        for client in self._deadlines.expired(now):
            self._expire(client)

    # Connections.

    def _accept(self, fd: int) -> bool:
        """Take one connection in and look at once for its request; return whether there was one."""
        listener = self._listeners[fd]
        try:
            sock, address = listener.socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False
        except OSError as error:
            self._pause_accepting()
            self._resume_at = time.monotonic() + PAUSE
            self.records.emit("pool.accept_paused", reason=str(error), pause_s=PAUSE, code="PF501")
            return False
        sock.setblocking(False)
        base = self._bases[fd].copy()
        if listener.tcp:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            base["REMOTE_ADDR"] = address[0]
            base["REMOTE_PORT"] = str(address[1])
            peer = address[0]
        else:
            base["REMOTE_ADDR"] = peer = ""
        client = Client(self, sock, Connection(self._limits, self._new_parser()), base, peer)
        self._clients[client.fd] = client
        client.deadline = time.monotonic() + self.config.head_timeout
        self._serve(client, READ)
        return True

    def _serve(self, client: Client, events: int) -> None:
        """Do what can be done for a client; afterwards it is closed, or back at the poller."""
        if client.gone:
            return
        self._turn += 1
        self._serving = client
        try:
            if client.outbox is not None:
                self._flush(client)
            elif client.reading_out:
                self._read_out(client)
            elif events:
                self._receive(client)
            else:
                self._advance(client)
        except OSError:
            client.broken = True
        self._settle(client)

    def _settle(self, client: Client) -> None:
        """Give a client back to the poller, or close it."""
        with self._lock:
            away = client.away
            client.away = False
            if not away:
                self._serving = None
        connection = client.connection
        if client.broken:
            self._close(client)
        elif client.outbox is not None:
            self._watch(client, WRITE, self.config.write_timeout)
        elif connection.phase is Phase.CLOSED:
            if connection.leftover and not client.reading_out:
                self._let_read(client)
            elif not client.reading_out:
                self._close(client)
        elif connection.idle:
            self._watch(client, READ, LINGER if self._leaving else self._idle_patience(client))
        elif connection.phase is Phase.HEAD and self._may_hold_head(client):
            self._behind.append(client)
        else:
            self._watch(client, READ, None)
        if away and self._behind:
            self._wake()

    def _idle_patience(self, client: Client) -> float | None:
        return self.config.keep_alive_timeout if client.served else None

    def _may_hold_head(self, client: Client) -> bool:
        """Tell whether the bytes that lie here may be a next request: they were not looked at since the last one."""
        looked, client.request = client.request is None, None
        return not looked

    def _watch(self, client: Client, events: int, patience: float | None) -> None:
        if patience is not None:
            client.deadline = time.monotonic() + patience
        self._deadlines.watch(client)
        if not client.registered:
            client.registered = True
            self._poller.register(client.fd, events)
        elif events == WRITE or client.outbox is not None:
            self._poller.modify(client.fd, events)

    def _receive(self, client: Client) -> None:
        try:
            data = client.sock.recv(_RECEIVE)
        except BlockingIOError:
            return
        if not data:
            client.broken = True
            return
        client.connection.receive(data)
        self._advance(client)

    def _advance(self, client: Client) -> None:
        """Take one request further, as far as what was received goes."""
        connection = client.connection
        try:
            while (event := connection.next_event()) is not None:
                if isinstance(event, Request):
                    client.request = event
                    if event.length == 0:
                        self._dispatch(client, event, None)
                        return
                    client.body = RequestBody(self.config.spool_dir)
                    if event.awaits_continue and not connection.buffered:
                        client.send(connection.go_on())
                elif isinstance(event, Body):
                    self._keep(client, event)
                elif isinstance(event, End):
                    request, body = client.request, client.body
                    client.body = None
                    assert request is not None
                    self._dispatch(client, request, body)
                    return
        except Refused as refused:
            self._refuse(client, refused)
            return
        if connection.phase is Phase.HEAD:
            if connection.buffered and client.request is None and client.served:
                self._shorten(client, self.config.head_timeout)
        else:
            self._shorten(client, self.config.body_timeout)

    def _shorten(self, client: Client, patience: float) -> None:
        client.deadline = time.monotonic() + patience

    def _keep(self, client: Client, event: Body) -> None:
        assert client.body is not None
        try:
            client.body.add(event.data)
        except OSError as error:
            self.records.emit(
                "request.rejected", reason=f"body cannot be kept: {error}", status=507, client=client.peer
            )
            raise Refused(507, "no room for the body", "RFC 4918 section 11.5") from None

    def _refuse(self, client: Client, refused: Refused) -> None:
        """Answer a request that is not served, and close."""
        self.records.emit("request.rejected", reason=refused.reason, status=refused.status, client=client.peer)
        self._drop_body(client)
        client.send(client.connection.refusal(refused, self.date()))

    def _let_read(self, client: Client) -> None:
        """Let the client read its last answer: to close with bytes unread would tear it away (RFC 9112 section 9.6)."""
        client.reading_out = True
        try:
            client.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(client)
            return
        self._watch(client, READ, READ_ANSWER)

    def _read_out(self, client: Client) -> None:
        try:
            if not client.sock.recv(_RECEIVE):
                client.broken = True
        except BlockingIOError:
            pass

    def _flush(self, client: Client) -> None:
        sent = client.flush()
        outbox = client.outbox
        if outbox is not None and not outbox:
            outbox.close()
            client.outbox = None
            if client.registered:
                self._poller.modify(client.fd, READ)
            client.deadline = time.monotonic() + self.config.keep_alive_timeout
        elif not sent:
            return

    def _expire(self, client: Client) -> None:
        """End what took too long: what that was, the client's state tells."""
        connection = client.connection
        if client.outbox is not None or client.reading_out:
            self._close(client)
        elif connection.idle:
            # What the client sent before it could know is still answered.
            self._serve(client, READ)
            if client.connection.idle and client.outbox is None:
                self._close(client)
        elif connection.phase is not Phase.ANSWER:
            try:
                self._refuse(client, Refused(408, "request not complete in time", "RFC 9110 section 15.5.9"))
            except OSError:
                client.broken = True
            self._settle(client)

    def _drop_body(self, client: Client) -> None:
        if client.body is not None:
            client.body.close()
            client.body = None

    def _close(self, client: Client) -> None:
        if client.gone:
            return
        client.gone = True
        self._drop_body(client)
        if client.outbox is not None:
            client.outbox.close()
            client.outbox = None
        client.connection.close()
        del self._clients[client.fd]
        client.sock.close()
        if self._leaving and not self._clients:
            self._tell_monitor()

    # Requests.

    def _dispatch(self, client: Client, request: Request, body: RequestBody | None) -> None:
        """Give a complete request to the application."""
        self.served += 1
        client.served += 1
        if self.served >= self._threshold:
            self._threshold = self._budget if self.served < self._budget else _NEVER
            self._tell_monitor()
        connection = client.connection
        if self._leaving:
            connection.answer_close = True
        if self._blocky and self._can_promote():
            self._promote(client)
            started = time.perf_counter()
            self._answer(client, request, body)
            quick = time.perf_counter() - started < TICK
            self._blocky = max(0, self._blocky - 1) if quick else min(_BLOCKY, self._blocky + 1)
        else:
            self._answer(client, request, body)

    def _answer(self, client: Client, request: Request, body: RequestBody | None) -> None:
        answer = Answer(client.connection, client)
        started = time.perf_counter() if self.records.access_on else 0.0
        if body is None:
            environ = request_environ(client.base, request, None, 0)
        else:
            environ = request_environ(client.base, request, body.open(), body.size)
        try:
            answer.run(self.app, environ)
        except OSError as error:
            # The client's fault or the application's? A socket that is broken shows it.
            if client.broken or _is_gone(client.sock):
                client.broken = True
            else:
                self._fail(client, request, answer, error)
        except BaseException as error:  # noqa: BLE001 - whatever an application raises, sys.exit() too, the worker lives on
            self._fail(client, request, answer, error)
        finally:
            if body is not None:
                body.close()
        if started:
            self._log_access(client, request, answer, time.perf_counter() - started)

    def _fail(self, client: Client, request: Request, answer: Answer, error: BaseException) -> None:
        self.records.failure(error, method=request.method, path=request.path.decode("latin-1"), client=client.peer)
        if answer.sent:
            # The answer must not look whole: neither a last chunk nor a kept connection.
            client.broken = True
        else:
            if isinstance(error, Misanswered):
                client.connection.answer_close = True
            answer.fail()

    def _log_access(self, client: Client, request: Request, answer: Answer, duration: float) -> None:
        agent = next((value for name, value in request.fields if name.lower() == b"user-agent"), b"")
        self.records.access(
            method=request.method,
            path=request.path.decode("latin-1"),
            query=request.query.decode("latin-1"),
            status=int((answer.status or "0")[:3]),
            duration_s=round(duration, 6),
            request_bytes=max(0, request.length),
            response_bytes=answer.size,
            client=client.peer,
            scheme="http",
            http_version=request.version,
            user_agent=agent.decode("latin-1"),
        )

    def date(self) -> str:
        """Return the present value of ``Date`` (RFC 9110 section 5.6.7)."""
        now = int(time.time())
        if now != self._date_at:
            self._date = formatdate(now, usegmt=True)
            self._date_at = now
        return self._date


def _parser(name: str) -> Callable[[], Parser]:
    """Return the class of parser that ``http`` names: httptools where it is installed, unless h11 is asked for."""
    if name == "h11":
        return H11Parser
    try:
        from prefork.http1.parser_httptools import HttptoolsParser
    except ImportError:
        if name == "httptools":
            raise
        return H11Parser
    return HttptoolsParser


def _is_gone(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(0))


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
