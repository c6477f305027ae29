"""Who comes in, who goes to a sibling, and how does a worker leave?

What all drivers have in common: the listeners, the connections and what they wait for, the budget, the hand-over, the two
ways out. How a request gets to the application and its answer to the client is theirs.

A worker that retires sends its clients through the ``Exchange`` to its siblings, as soon as each stands between two
requests. One that stops with the pool sends nobody away: it takes in what lies in the exchange, and says good-bye.
"""

from __future__ import annotations

import _socket
import math
import os
import resource
import socket
import struct
import time
from collections import deque
from contextlib import suppress
from fcntl import ioctl
from functools import partial
from termios import FIONREAD
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeAlias, TypeVar

from prefork.access_format import Entry
from prefork.addresses import UNIX_SERVER_NAME
from prefork.deadlines import Deadlines
from prefork.errors import PlatformUnsupported
from prefork.handover import Ticket, read, sent_at
from prefork.http1.connection import Connection, NamedConnection, Phase, closing_answer
from prefork.http1.forwarded import Belief
from prefork.http1.heads import HeadReader, Parser
from prefork.http1.messages import Refused
from prefork.http1.proxy_protocol import LONGEST, Header, Malformed, Opening
from prefork.outbox import unsent
from prefork.overload import CROWDED, TurnedAway
from prefork.poller import READ, WRITE, new_poller
from prefork.queueing import has_left
from prefork.scoreboard import HELD, Row, hold
from prefork.trust import TrustedProxies, is_private, read_address
from prefork.values import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
    from ssl import SSLContext

    from prefork.access_format import Outcome
    from prefork.config import Config
    from prefork.exit_guard import ExitGuard
    from prefork.handover import Exchange
    from prefork.http1.messages import Request
    from prefork.listeners import Listener
    from prefork.outbox import Outbox
    from prefork.overtime import Running
    from prefork.pace import Pace
    from prefork.records import Records
    from prefork.tls import Session

LINGER = 5.0
"""How many seconds a retiring worker waits for the next request of an idle client that it cannot hand over."""
PARTING = 1.0
"""The same for a worker that stops with its pool: who is connected may have asked already, and it is only under way."""
ASK_AGAIN = 0.005
"""After how many seconds a worker that waits to leave looks again whether all that it handed over was taken."""
READ_ANSWER = 2.0
"""How many seconds a client has to read its last answer, while what it still sends is thrown away; as many again if it takes it."""
IDLERS_FIRST = 0.002
"""For how many seconds a worker takes nobody in that has left a client to an idle one, which has to wake up first."""
PAUSE = 0.5
"""How many seconds nothing is accepted after the descriptors were used up."""
SPARE = 256
"""How many descriptors are left to the application at most; it is one in eight where there are few."""
SIBLINGS_FIRST = 0.25
"""For how many seconds a worker that is full leaves who lies in the exchange to its siblings."""
TELL_AGAIN = 1000
"""For how many milliseconds the main thread sleeps at most while there is something to record."""
OVERLOADED = Refused(503, "too much to do", "RFC 9110 section 15.6.4")
"""What is said to those for whom there is no time, or no room."""
RECEIVE = 65536
"""How many bytes are taken from the kernel at a time."""
AT_ONCE = socket.MSG_DONTWAIT
"""Instead of a system call that would make each new socket non-blocking."""
WITH_END = AT_ONCE | getattr(socket, "MSG_MORE", 0)
"""For the last that is sent on a connection: it leaves with the end, in one packet, after 200 ms at the latest (tcp(7))."""
_LOOK = socket.MSG_PEEK | AT_ONCE
# Then a socket heeds no socket.setdefaulttimeout() of an application, which is for others.
_NONBLOCK = getattr(socket, "SOCK_NONBLOCK", 0)
_KNOWN_ORIGINS = 256
NEVER = math.inf
_RESET = struct.pack("ii", 1, 0)
_INT = struct.Struct("@i")
_NONE = bytes(_INT.size)
_SPARED = "few descriptors are left, and those are for the application"
_DAYS = (b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun")
_MONTHS = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")
# Members of an Enum are looked up dearly in Python 3.11.
_ANSWER, _CLOSED = Phase.ANSWER, Phase.CLOSED


Step: TypeAlias = "Callable[[Any], bool]"
"""What may be done for a client when its turn comes; returns whether a request was answered."""


class WorkerFacts(Value, kw_only=True):
    """What an application may know about its worker, and ``retire``, with which it has it replaced."""

    number: int
    generation: int
    retire: Callable[[], None]

    def shown(self, exit_guard: ExitGuard) -> dict[str, Any]:
        """Return what an application is told about its worker, by the names that it has there."""
        return {
            "prefork.worker": self.number,
            "prefork.generation": self.generation,
            "prefork.exit_guard": exit_guard,
            "prefork.retire": self.retire,
        }


class Outfit(Value, kw_only=True):
    """What a driver has of its own process, or of its pool.

    ``thread_exit`` is called at the end of each thread that served requests, ``row`` is the worker's part of the
    scoreboard, over ``exchange`` connections go to siblings, ``tls`` is what is spoken where a listener says so.
    """

    facts: WorkerFacts
    records: Records
    exit_guard: ExitGuard
    thread_exit: Callable[[], None] | None = None
    row: Row | None = None
    exchange: Exchange | None = None
    tls: SSLContext | None = None


class Origin(NamedTuple):
    """How somebody came to us; who came alike share a base.

    ``scheme``, ``name`` and ``port`` are those of the listener. ``trusted`` says whether he may speak for others, in
    fields that are believed. ``proxy`` is the address of the one who spoke for him by the PROXY protocol, empty if that
    came by a UNIX socket, ``None`` if nobody did; ``unnamed`` says that a PROXY header named nobody, or is still to come.
    """

    scheme: str
    name: str
    port: str
    trusted: bool
    proxy: str | None = None
    unnamed: bool = False

    @property
    def unix(self) -> bool:
        """Whether it is by a UNIX socket: those alone have a name, and no address."""
        return self.name == UNIX_SERVER_NAME


def _peer_by_ipv4(address: tuple[str, int]) -> tuple[str, str]:
    return address[0], str(address[1])


def _peer_by_ipv6(address: tuple[str, int, int, int]) -> tuple[str, str]:
    # A socket for both families, which an inherited one may be.
    text = str(read_address(address[0])) if address[0].startswith("::ffff:") else address[0]
    return text, str(address[1])


def _peer_by_unix(_address: object) -> None:
    """Know nobody by the name of his socket."""


_PEERS: Mapping[int, Callable[[Any], tuple[str, str] | None]] = {
    socket.AF_INET: _peer_by_ipv4,
    socket.AF_INET6: _peer_by_ipv6,
    socket.AF_UNIX: _peer_by_unix,
}


class _Gate:
    """A listener, and what is the same for all who come through it, from a trusted proxy or not."""

    __slots__ = ("accept", "family", "of_others", "of_proxies", "peer", "socket", "type")

    def __init__(self, listener: Listener, of_proxies: Any, of_others: Any) -> None:
        self.socket = listener.socket
        self.accept: Callable[[], tuple[int, Any]] = listener.socket._accept  # type: ignore[attr-defined]  # noqa: SLF001
        self.family = int(listener.socket.family)
        self.type = int(listener.socket.type) | _NONBLOCK
        self.peer = _PEERS[self.family]
        self.of_proxies = of_proxies
        self.of_others = of_others


class Guest:
    """One connection, as far as all drivers know it.

    ``base`` is what all who came to us alike share, ``peer`` the client's address and port, ``None`` where it has none.
    ``step`` is what to do when the poller tells of it.
    """

    __slots__ = (
        "base",
        "broken",
        "connection",
        "deadline",
        "fd",
        "free_at",
        "gone",
        "in_head",
        "listed",
        "opening",
        "outbox",
        "pace",
        "peer",
        "queue_s",
        "receive",
        "requests",
        "sock",
        "step",
        "untaken",
        "watched",
    )  # fmt: skip

    untaken: int
    """How much of its last answer its system had not taken when that was looked at last, if it was."""

    def __init__(
        self,
        sock: _socket.socket,
        connection: Connection,
        base: Any,
        peer: tuple[str, str] | None,
        step: Step,
    ) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.receive: Callable[[int, int], bytes] = sock.recv
        self.connection = connection
        self.base = base
        self.peer = peer
        self.step = step
        self.opening: Opening | None = None
        """The PROXY header that it has to begin with, until that is read."""
        self.requests = 0
        """How many were given to the application, in whatever worker."""
        self.outbox: Outbox | None = None
        """What the client did not take yet."""
        self.pace: Pace | None = None
        """How it goes on with a body that is being collected."""
        self.queue_s: float | None = None
        """For how many seconds the present request waited until it was taken in; ``None`` where nobody asks or knows."""
        self.free_at = 0.0
        """When its last answer was complete, where ``queue_s`` is asked for."""
        self.broken = False
        self.gone = False
        self.in_head = True
        """Whether the time for a head runs."""
        self.watched = 0
        """For which events it is registered at the poller."""
        self.deadline = NEVER
        self.listed = NEVER

    @property
    def address(self) -> str:
        """The client's address, for records."""
        return "" if self.peer is None else self.peer[0]

    def has_left(self) -> bool:
        """Whether the client does not wait for its answer any more, as far as can be known."""
        return has_left(self.sock)

    def has_unread(self) -> bool:
        """Whether it has sent what nobody has read: to close would tear its answer away (RFC 9112 section 9.6)."""
        unread = bytearray(_INT.size)  # to be written into: a third of the price of anything else
        try:
            ioctl(self.fd, FIONREAD, unread)
        except OSError:  # there is nobody
            return False
        return unread != _NONE

    def takes(self) -> bool:
        """Whether the client takes what is in the outbox fast enough so far; if not, it is to be reset, not closed."""
        outbox = self.outbox
        if outbox is None or self.goes_on(outbox.pace, outbox.taken(self.sock)):
            return True
        self.forget_unsent()
        return False

    def forget_unsent(self) -> None:
        """Have it reset when it is closed: else the kernel would go on for minutes, with all that it has for the client."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    def goes_on(self, pace: Pace | None, moved: int) -> bool:
        """Whether it goes on fast enough if so much was moved so far; if so the next look is at its deadline."""
        assert pace is not None
        again = pace.look(time.monotonic(), moved)
        if again is not None:
            self.deadline = again
        return again is not None

    @property
    def tied(self) -> bool:
        """Whether it has to stay in this process: a part of its PROXY header was taken in."""
        return self.opening is not None and bool(self.opening.octets)

    def hang_up(self) -> None:
        """Say that nothing more will come. Raises ``OSError`` if the client is gone."""
        self.sock.shutdown(socket.SHUT_WR)

    def cut(self, last: bytes) -> None:
        """End it while another thread may be at it: the descriptor stays open, so that nobody else gets its number."""
        try:
            if last:
                self.sock.send(last, AT_ONCE)
            self.sock.shutdown(socket.SHUT_WR if last else socket.SHUT_RDWR)
        except OSError:
            return

    def close(self) -> None:
        """Give the descriptor back."""
        self.sock.close()


G = TypeVar("G", bound=Guest)


class Reception(Generic[G]):
    """What a driver is without its requests.

    The worker's ``Life`` calls ``tick`` in its loop; when ``monitor_fd`` is readable it calls ``hear`` before. Its orders
    may come from another thread; they are carried out by whoever serves.
    """

    receive: Step
    """Takes in what a client sent, and goes on with it."""
    advance: Step
    """Goes on with what was taken in."""

    def __init__(self, listeners: Iterable[Listener], config: Config, outfit: Outfit) -> None:
        self._reader = HeadReader(config.limits, new_parser(config.http))
        self._kind_of_connection = NamedConnection if config.request_id else Connection
        self.config = config
        self._begin(outfit)
        self.served = 0
        """Requests given to the application so far."""
        self.stray = False
        self._announce: float = NEVER
        self._last: float = NEVER
        self._threshold: float = NEVER
        self._proxies = TrustedProxies(config.trusted_proxies)
        self._belief = Belief(self._proxies, frozenset(name.encode() for name in config.forwarded_headers))
        self._bases: dict[Hashable, Any] = {}
        self._gates: dict[int, _Gate] = {}
        self._awaits_headers = config.proxy_protocol
        for listener in listeners:
            where = listener.scheme, listener.server_name, listener.server_port
            # What comes through by the PROXY protocol is a client's, also where the header names nobody (UNKNOWN).
            of_proxies = Origin(*where, trusted=not self._awaits_headers, unnamed=self._awaits_headers)
            of_others = Origin(*where, trusted=False)
            self._gates[listener.socket.fileno()] = _Gate(listener, self._base(of_proxies), self._base(of_others))
        self._taking = False  # whether what siblings hand over is looked for
        self._parting: deque[G] = deque()  # to be handed over as soon as the exchange has room
        self._parted_at = 0.0  # when the last one was; infinity: whatever lies there is to be taken
        self._takes_over = False  # whether one is on his way in
        self._awaits_room = False
        self._told_of_spool = False
        self._waited = 0.0  # for how many seconds the last one that was taken lay in the exchange
        self._yields_s = 0.0  # for how many seconds whoever lies there is left to siblings, full or not
        self._accepting = False
        self._resume_at = NEVER
        self._limited = config.limit_concurrency is not None
        self._most = config.limit_concurrency or NEVER
        self._full = False  # whether there are as many as there may be
        self._refused: set[G] = set()  # who was told that there is no room
        self._turned_away = TurnedAway()
        self._hurry_again = 0.0
        self._clients: dict[int, G] = {}
        self._deadlines: Deadlines[G] = Deadlines()
        self._sleeps_until = 0.0  # when another thread will look at deadlines, if it sleeps for that
        self._keep_alive = config.keep_alive_timeout
        self._batch: deque[tuple[int, int]] = deque()
        self._behind: deque[tuple[G, Step]] = deque()  # what is to be done that no event will tell of
        self._orders: deque[Callable[[], None]] = deque()
        self._leaving = False
        self._closing = not config.keep_alive_timeout  # whether connections end behind their answers
        self._handing_over = False  # it leaves, and its siblings go on
        self._stopping = False  # the pool leaves with it
        self._date_at = 0
        self._date = b""

    def _begin(self, outfit: Outfit) -> None:
        """Take, and open, what each process has for itself."""
        self.records = outfit.records
        self._access = outfit.records.access_log()
        self.tls = outfit.tls
        self._thread_exit = outfit.thread_exit
        self._exchange = exchange = outfit.exchange
        self._eases = exchange is not None and self.config.max_workers > 1
        self._out, self._into = (-1, -1) if exchange is None else exchange.descriptors
        self._row = Row.alone(2 * self.config.threads) if outfit.row is None else outfit.row
        self._idlers, self._place = self._row.idlers, self._row.place
        self._board = self._row.memory
        self._last_descriptor = last_descriptor()
        self._is_closed = False
        self.monitor_fd, self._monitor_end = os.pipe()
        self._wake_end, self._wake_fd = os.pipe()
        for end in (self.monitor_fd, self._monitor_end, self._wake_end, self._wake_fd):
            os.set_blocking(end, False)
        self._poller = new_poller()
        self._poller.register(self._wake_end, READ)

    # What a driver adds.

    def _new_base(self, origin: Origin) -> Any:
        """Return what all who came to us alike share, whichever process accepted them."""
        raise NotImplementedError

    def _origin(self, base: Any) -> Origin:
        """Return the origin that ``base`` was made of."""
        raise NotImplementedError

    def base_of_session(self, base: Any, session: Session) -> Any:
        """Return ``base`` with what an application may know of a TLS session."""
        raise NotImplementedError

    def _new_client(self, sock: _socket.socket, connection: Connection, base: Any, peer: tuple[str, str] | None) -> G:
        raise NotImplementedError

    def _request_of(self, client: G) -> Request | None:
        """Return the request whose head was taken in, and that has no answer yet, if there is one."""
        raise NotImplementedError

    def _asked_by(self, client: G, request: Request) -> tuple[str, str]:
        """Return the address of whose request it is, the client's or the one that a trusted proxy names, and the scheme."""
        raise NotImplementedError

    def _environ_for_log(self, client: G, request: Request) -> Mapping[str, Any]:
        """Return what the access log may ask of the environ of a request that has none."""
        raise NotImplementedError

    def _write_log(self, entry: Entry) -> None:
        """Have a request written into the access log, which there is."""
        raise NotImplementedError

    def _reply(self, client: G, octets: bytes) -> None:
        """Send an answer of the server's own."""
        raise NotImplementedError

    def _let_go(self, client: G) -> None:
        """Give back what is kept for a client that is refused or gone."""
        raise NotImplementedError

    def _take_up(self) -> frozenset[int]:
        """Take up those who have asked already; return the descriptors of those who are served before the next order."""
        return frozenset()

    def send_held_back(self) -> None:
        """Send what the driver holds back, if it does that, before a connection changes hands or ends."""

    # For the worker's Life.

    def announce_at(self, requests: int | None) -> None:
        """Make ``monitor_fd`` readable when ``served`` reaches ``requests``; call it before ``start``."""
        self._announce = self._threshold = NEVER if requests is None else requests

    def retire_after(self, requests: int) -> None:
        """Retire with the request that is the worker's ``requests``-th: that one is answered with a close."""
        self._order(partial(self._retire_after, requests))

    def hear(self) -> None:
        """Empty ``monitor_fd``."""
        drain(self.monitor_fd)

    @property
    def leaving(self) -> bool:
        """Whether it retires or stops."""
        return self._leaving

    @property
    def drained(self) -> bool:
        """Whether nothing is left to answer, and nothing new can come."""
        if not self._leaving or self._accepting or self._clients or not self._all_taken():
            return False
        # The one who took the last out of the exchange may not have let him in yet.
        return not self._takes_over and not self._clients

    def _all_taken(self) -> bool:
        """Whether nothing lies in the exchange that nobody might look for; to be asked when no client is left.

        A sibling may stop, and look for the last time, before it comes in: so who sent it stays until it was taken, or
        takes it back. The last of a pool that stops looks for everybody.
        """
        if self._exchange is None or not self._parted_at:
            return True
        if not self._exchange.taken(self._parted_at):
            return False
        if self._parted_at != NEVER:
            self._parted_at = 0.0  # for good, whatever others send
        return True

    def _tell_turned_away(self, patience: int | None) -> int | None:
        """Record who was turned away; return for how many milliseconds the main thread may sleep."""
        self._tell_who_was_turned_away(time.monotonic())
        if not self._turned_away.pending:
            return patience
        return TELL_AGAIN if patience is None else min(patience, TELL_AGAIN)

    def _tell_who_was_turned_away(self, now: float) -> None:
        for reason, turned_away in self._turned_away.tell(now).items():
            self.records.emit("worker.overloaded", reason=reason, turned_away=turned_away, code="PF504")

    def _until_taken(self) -> int | None:
        """Return when to ask again whether a worker that has nobody left may go; nobody tells of it."""
        return int(ASK_AGAIN * 1000) if self._leaving and not self._clients and not self._all_taken() else None

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

    @property
    def descriptors(self) -> set[int]:
        """What a child that the application forks has to let go of; nothing once this is closed."""
        if self._is_closed:
            return set()
        own = {self.monitor_fd, self._monitor_end, self._wake_end, self._wake_fd, self._out, self._into} - {-1}
        with suppress(PlatformUnsupported):  # a poller that has none
            own.add(self._poller.fileno())
        return own | {*self._clients, *self._gates}

    def _close_pipes(self) -> None:
        self._is_closed = True
        self._poller.close()
        for fd in (self.monitor_fd, self._monitor_end, self._wake_end, self._wake_fd):
            os.close(fd)

    # Orders, carried out by whoever serves.

    def _order(self, order: Callable[[], None]) -> None:
        self._orders.append(order)
        self._wake()

    def _wake(self) -> None:
        nudge(self._wake_fd)

    def _tell_monitor(self) -> None:
        nudge(self._monitor_end)

    def _stop(self, *, quick: bool, patience: float) -> None:
        if self._leaving and not self._stopping:
            # Who left before may have done so for new code: that is to answer, if there is anybody who has it.
            self._yields_s = min(LINGER, self.config.graceful_timeout / 2)
        self._stopping, self._handing_over = True, False
        if not quick:  # also while accepting is paused: the descriptors that are left for the application are for this
            for fd in list(self._gates):
                while (client := self._accept(fd)) is not None:
                    self._watch(client, READ)
        # What a sibling sends before he hears of the stop is looked for until the end.
        self._parted_at = 0.0 if quick else NEVER
        self._leave_listeners()
        if not quick:
            self._begin_to_take()
        self._part()
        self._say_good_bye(0.0 if quick else min(patience, self.config.graceful_timeout / 2))

    def _close_after_answer(self) -> None:
        self._closing = True
        for client in self._clients.values():
            client.connection.answer_close = True

    def _retire(self, *, spent: bool = False) -> None:
        """Leave; if the budget is not spent, those are served here first who have asked already.

        A successor is cold, and has to take in everybody at the same moment.
        """
        if self._leaving:
            if spent:
                self._hand_over_idle()
            return
        self._leave_listeners()
        if self._exchange is None or self.tls is not None:
            self._say_good_bye(LINGER)
            return
        self._handing_over = True
        asked = frozenset() if spent else self._take_up()
        self._hand_over_idle(but=asked)
        if asked:
            self._order(self._hand_over_idle)

    def _leave_listeners(self) -> None:
        self._leaving = True
        self._pause_accepting()
        self._resume_at = NEVER
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
            self._retire(spent=True)

    def _reach(self) -> None:
        """Do what is to be done after so many requests."""
        if self.served >= self._announce:
            self._announce = NEVER
            self._tell_monitor()
        if self.served >= self._last:
            self._last = NEVER
            self._retire(spent=True)
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
        self._resume_at = NEVER
        if not (self._leaving or self._accepting):
            self._accepting = True
            for fd in self._gates:
                self._poller.register(fd, READ, shared=True)
        if not self._leaving or self._stopping:
            self._begin_to_take()

    def _begin_to_take(self) -> None:
        if self._exchange is not None and not self._taking:
            self._taking = True
            self._poller.register(self._into, READ, shared=True)

    def _pause(self, reason: str) -> None:
        """Take nobody in for a while: the descriptors are used up. Who comes waits in the queue, where siblings look too."""
        if self._accepting:
            self.records.emit("pool.accept_paused", reason=reason, pause_s=PAUSE, code="PF501")
        self._pause_accepting()
        self._resume_at = time.monotonic() + PAUSE
        self._hurry()

    def _try_to_resume(self) -> None:
        """Accept again, if there is a descriptor for it."""
        try:
            descriptor = os.dup(self._wake_end)
        except OSError as error:
            self._pause(str(error))
            return
        os.close(descriptor)
        if descriptor < self._last_descriptor:
            self._resume_accepting()
        else:
            self._pause(_SPARED)

    def _hurry(self) -> None:
        """Let who is idle leave sooner, for others wait outside: who has said nothing yet at once, others soon."""
        now = time.monotonic()
        if now < self._hurry_again:
            return
        self._hurry_again = now + PAUSE
        for client in list(self._clients.values()):
            if self._is_idle(client):
                client.deadline = min(client.deadline, now + (LINGER if client.requests else PAUSE))
                self._watch(client, READ)

    # From one worker to another.

    def _hand_over_idle(self, but: frozenset[int] = frozenset()) -> None:
        """Hand over all who stand between two requests, and are in no thread's hands, ``but`` these descriptors."""
        if not self._handing_over:
            return
        self.send_held_back()
        for client in list(self._clients.values()):
            if client.fd not in but and self._may_go(client):
                self._hand_over(client)

    def _is_idle(self, client: G) -> bool:
        """Whether a client stands between two requests, in no thread's hands."""
        return bool(
            client.watched
            and (client.step == self.receive or client.opening is not None)
            and client.connection.idle
            and client.outbox is None
        )

    def _may_go(self, client: G) -> bool:
        """Whether an idle client is not tied to this process."""
        return self._is_idle(client) and not client.tied

    def _hand_over(self, client: G) -> None:
        """Give a client that stands between two requests to a sibling, now or when the exchange has room.

        What it sends meanwhile stays in the kernel, and travels with it.
        """
        self.send_held_back()
        if client.tied:
            self._watch(client, READ)
            return
        if client.broken:
            self._close(client)
            return
        if client.outbox is not None:
            self._watch_outbox(client)
            return
        self._unwatch(client)
        if self._parting or not self._try_to_send(client):
            self._parting.append(client)
            self._order(self._part)

    def _try_to_send(self, client: G) -> bool:
        """Send a client through the exchange, or return ``False``: that is full, or it does not work and never will."""
        try:
            return self._send_over(client)
        except OSError as error:
            self.records.emit("worker.handover_failed", reason=str(error))
            self._handing_over = False
            self._order(partial(self._say_good_bye, LINGER))
            return False

    def _send_over(self, client: G) -> bool:
        """Send a client through the exchange; return ``False`` if that is full. Raises ``OSError``."""
        assert self._exchange is not None
        origin = self._origin(client.base)
        listener = (origin.scheme, origin.name, origin.port)
        awaits_header = client.opening is not None
        header = origin.proxy, awaits_header, origin.unnamed and not awaits_header
        ticket = Ticket(*listener, client.peer, client.deadline, client.requests, *header)
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

    def _take_over(self) -> G | None:
        """Take in one client that a sibling has handed over, if there is one."""
        assert self._exchange is not None
        self._takes_over = True
        try:
            try:
                taken = self._exchange.take()
            except OSError as error:
                self._pause(str(error))
                return None
            return None if taken is None else self._let_in(*taken)
        finally:
            self._takes_over = False

    def _let_in(self, message: bytes, descriptor: int | None) -> G | None:
        self._waited = time.monotonic() - sent_at(message)
        if descriptor is None:
            self.records.emit("worker.handover_failed", reason="a message came without its connection")
            return None
        try:
            ticket = read(message, descriptor, time.monotonic() + self.config.head_timeout)
        except OSError as error:
            self._leave_taken(descriptor, str(error))
            return None
        if ticket.scheme == "https" and self.tls is None:
            self._leave_taken(descriptor, "TLS is not spoken here any more")
            return None
        deadline = ticket.deadline
        if self._leaving:
            deadline = min(deadline, time.monotonic() + self._keep_alive)
        # As it began, whatever proxy_protocol says here by now.
        unnamed = ticket.unnamed or ticket.awaits_header
        trusted = self._believes(ticket.peer, ticket.proxy, unnamed=unnamed)
        base = self._base(Origin(ticket.scheme, ticket.name, ticket.port, trusted, ticket.proxy, unnamed))
        client = self._admit_again(descriptor, base, ticket.peer, deadline, ticket.requests)
        if ticket.awaits_header:
            self._open(client)
        return client

    def _leave_taken(self, descriptor: int, reason: str) -> None:
        """Close a connection that was handed over and cannot be served."""
        self.records.emit("worker.handover_failed", reason=reason)
        os.close(descriptor)

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

    def _leave_to_idle(self, client: G) -> bool:
        """Let a worker take a client that has nothing to do, if there is one, rather than use one more thread here.

        Threads of one process hold each other up, and each has its own connection to the database.
        """
        return self._eases and self._idlers.any() and self._may_go(client) and self._pass_on(client, IDLERS_FIRST)

    def _pass_on(self, client: G, pause: float) -> bool:
        """Let a sibling take a client; nobody is taken in here for ``pause`` seconds, or it would come back at once."""
        if not self._share_out(client):
            return False
        self._take_nobody(pause)
        return True

    def _take_nobody(self, pause: float) -> None:
        """Leave what lies in the exchange to siblings, for so many seconds."""
        if self._taking:
            self._taking = False
            self._poller.unregister(self._into)
        self._resume_at = min(self._resume_at, time.monotonic() + pause)

    def _may_take(self) -> bool:
        """Whether to take in who lies in the exchange.

        A worker that is full lets siblings come first, which may not be, and so does who has left before the pool stops.
        """
        first_s = self._yields_s or (SIBLINGS_FIRST if self._full else 0.0)
        if not (self._taking and first_s):
            return self._taking
        assert self._exchange is not None
        if not self._exchange.taken(time.monotonic() - first_s):
            return True
        self._take_nobody(SIBLINGS_FIRST / 10)
        return False

    def _share_out(self, client: G) -> bool:
        """Let whoever is free first take a client; return ``False``, and keep it, if the exchange is full."""
        self._unwatch(client)
        try:
            if self._send_over(client):
                return True
        except OSError:
            pass  # too many descriptors are under way
        self._watch(client, READ)
        return False

    # Connections.

    def _look_at_deadlines(self) -> None:
        now = time.monotonic()
        if now >= self._resume_at:
            self._try_to_resume()
        for client in self._deadlines.expired(now):
            self._expire(client)

    def _accept(self, fd: int) -> G | None:
        """Take one connection in, if there is one."""
        gate = self._gates[fd]
        try:
            # Not accept(): that makes an object of the class in front of this one, at half the price of a small request.
            descriptor, address = gate.accept()
        except BlockingIOError:
            return None
        except ConnectionAbortedError:  # that one is gone: the next
            return self._accept(fd)
        except OSError as error:
            self._pause(str(error))
            return None
        try:
            sock = _socket.socket(gate.family, gate.type, 0, descriptor)
        except OSError:  # some systems say so of a client that has left already
            os.close(descriptor)
            return self._accept(fd)
        peer = gate.peer(address)
        trusted = self._proxies.unix if peer is None else self._proxies.peers[peer[0]]
        base = gate.of_proxies if trusted else gate.of_others
        client = self._admit(sock, base, peer, time.monotonic() + self.config.head_timeout)
        if trusted and self._awaits_headers:
            self._open(client)
        return client

    def _admit(self, sock: _socket.socket, base: Any, peer: tuple[str, str] | None, deadline: float) -> G:
        if not _NONBLOCK and sock.gettimeout() is not None:
            sock.setblocking(False)
        client = self._new_client(sock, self._kind_of_connection(self._reader), base, peer)
        self._clients[client.fd] = client
        self._count()
        client.deadline = deadline
        if client.fd >= self._last_descriptor:
            self._pause(_SPARED)
        return client

    def _admit_again(
        self, descriptor: int, base: Any, peer: tuple[str, str] | None, deadline: float, requests: int
    ) -> G:
        """Let in who was a client before, in whatever worker, with so many requests."""
        # Not socket(fileno=…), which asks the kernel for a family that receive and send need not know.
        sock = _socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | _NONBLOCK, 0, descriptor)
        client = self._admit(sock, base, peer, deadline)
        client.requests = requests
        client.in_head = not requests
        return client

    def _count(self) -> None:
        """Take note of how many clients there are."""
        clients = len(self._clients)
        hold(self._board, HELD, clients)
        if self._limited:
            self._full = clients - len(self._refused) >= self._most

    def _crowded(self) -> bool:
        """Whether there are more clients than there may be, those not counted that were told so and only have to go."""
        return len(self._clients) - len(self._refused) > self._most

    def _leave_to_siblings(self, client: G) -> bool:
        """Let a sibling take one that is too many here; return whether that may be. Whom none takes is turned away."""
        return self._eases and self._share_out(client)

    def turn_away(self, client: G) -> bool:
        """Answer one that is too many, whatever it wants, and have others make room."""
        self._turned_away.count(CROWDED)
        self._refused.add(client)
        self._count()
        self._hurry()
        if self._origin(client.base).scheme == "https":
            client.broken = True  # a handshake would cost more than there is
            return False
        try:
            said = client.receive(RECEIVE, AT_ONCE)
        except BlockingIOError:
            said = b""
        client.opening = None
        client.connection.close()
        self._reply(client, closing_answer(OVERLOADED, self.date(), head_only=said.startswith(b"HEAD ")))
        return False

    def _watch_outbox(self, client: G) -> None:
        """Wait until the client takes more, unless it is too slow."""
        if client.takes():
            self._watch(client, WRITE)
        else:
            self._close(client)

    # Whom a connection stands for.

    def _base(self, origin: Origin) -> Any:
        """Return what all of one origin share."""
        if (base := self._bases.get(origin)) is None:
            if len(self._bases) >= _KNOWN_ORIGINS:
                self._bases.clear()
            base = self._bases[origin] = self._new_base(origin)
        return base

    def _believes(self, peer: tuple[str, str] | None, proxy: str | None, *, unnamed: bool) -> bool:
        """Whether a client is believed about others; ``proxy`` is who spoke for it by the PROXY protocol, if anybody did."""
        if unnamed:
            return False
        if peer is None:  # behind a proxy it is none of our own UNIX sockets
            return proxy is None and self._proxies.unix
        # It is the proxy who is connected, and of whoever is connected that * speaks.
        return self._proxies.peers[peer[0]] if proxy is None else peer[0] in self._proxies

    def _open(self, client: G) -> None:
        """Have a client begin with a PROXY header."""
        client.opening = Opening()
        client.step = self._receive_opening

    def _receive_opening(self, client: G) -> bool:
        """Take in the PROXY header, and no byte behind it."""
        opening = client.opening
        assert opening is not None
        try:
            seen = client.sock.recv(LONGEST, _LOOK)
        except BlockingIOError:
            return False
        if not seen:
            client.broken = True
            return False
        try:
            client.sock.recv(opening.take(seen), AT_ONCE)
        except Malformed as malformed:
            self._refuse_opening(client, str(malformed))
            return False
        if opening.header is None:
            return False
        self._introduce(client, opening.header)
        return client.step(client)

    def _refuse_opening(self, client: G, reason: str) -> None:
        """Close a connection, and say why if a proxy that speaks HTTP can read it."""
        client.opening = None
        refused = Refused(400, reason, "PROXY protocol, section 2")
        if self._origin(client.base).scheme == "http":
            self._refuse(client, refused)
        else:
            self.records.emit(
                "request.rejected", reason=reason, source=refused.source, status=refused.status, client=client.address
            )
            client.broken = True

    def _introduce(self, client: G, header: Header) -> None:
        """Take a connection for that of the client whom its proxy names."""
        client.opening = None
        client.step = self.receive
        if header.relayed:
            proxy, client.peer = client.address, header.source
            trusted = self._believes(client.peer, proxy, unnamed=False)
            origin = self._origin(client.base)._replace(trusted=trusted, proxy=proxy, unnamed=False)
            client.base = self._base(origin)

    def _tell_of_ignored(self, names: Sequence[bytes], address: str) -> None:
        """Tell of a proxy that may have been forgotten; who is out in the internet claims what he likes."""
        if not address or is_private(address):
            for name in names:
                field = name.decode("latin-1").lower()
                self.records.emit("request.forwarding_ignored", field=field, client=address, code="PF503")

    def tell_of_spool(self, error: OSError) -> None:
        """Tell that slow clients hold threads up, since what they do not take cannot be put on a disk."""
        if not self._told_of_spool:
            self._told_of_spool = True
            self.records.emit("worker.spool_failed", reason=str(error), code="PF506")

    # What a connection waits for.

    def _watch(self, client: G, events: int) -> None:
        if client.deadline < client.listed:
            self._deadlines.watch(client)
            if client.deadline < self._sleeps_until:
                self._wake()
        if client.watched != events:
            change = self._poller.modify if client.watched else self._poller.register
            change(client.fd, events)
            client.watched = events  # last: from here on the leader may serve it, and close it

    def _unwatch(self, client: G) -> None:
        """Leave a client to somebody else.

        Not masked: the poller would still tell of one that hangs up, again and again. And not left to the kernel, which
        would keep the registration for as long as any process holds the socket.
        """
        if client.watched:
            client.watched = 0
            self._poller.unregister(client.fd)

    def await_turn(self, _client: G) -> bool:
        """Leave what a client sends while a request of it waits here for its turn."""
        return False

    def take_turn(self, client: G) -> bool:
        """Go on with a request that has waited for its turn."""
        client.step = self.receive
        return self.advance(client)

    def read_out(self, client: G) -> bool:
        """Throw away what a refused client still sends."""
        try:
            if not client.receive(RECEIVE, AT_ONCE):
                client.broken = True
        except BlockingIOError:
            pass
        return False

    # The access log.

    def _log_own_answer(
        self,
        client: G,
        request: Request,
        status: str,
        answer: bytes,
        outcome: Outcome,
        running: Running | None = None,
    ) -> None:
        """Log a request that we answer, and not the application, which may be at it all the same, and is ``running`` then."""
        address, scheme = self._asked_by(client, request)
        entry = Entry(
            request=request,
            client=address,
            scheme=scheme,
            environ=self._environ_for_log(client, request),
            status=status,
            fields=(),
            received=0 if running is None else running.received,
            sent=len(answer.partition(b"\r\n\r\n")[2]),
            duration_s=0.0 if running is None else time.monotonic() - running.since,
            queue_s=client.queue_s,
            outcome=outcome,
            closes=self._ends(client) or running is not None,
            request_id=client.connection.request_id,
            context={},
        )
        self._write_log(entry)

    def _log_taken(self, entry: Entry, made_at: float, *, whole: bool) -> None:
        """Log a request whose client has taken the rest of its answer, or has left before that."""
        entry.duration_s += time.monotonic() - made_at
        if not whole and entry.outcome == "complete":
            entry.outcome = "client_gone"
        self._write_log(entry)

    @staticmethod
    def _ends(client: G) -> bool:
        """Whether a connection ends behind the present answer, or in it."""
        return client.broken or client.connection.answer_close

    def _refuse(self, client: G, refused: Refused) -> None:
        """Answer a request that is not served, and close."""
        request = refused.request or self._request_of(client)
        line = refused.line if request is None else request.line
        self.records.emit(
            "request.rejected",
            reason=refused.reason,
            source=refused.source,
            status=refused.status,
            client=client.address if request is None else self._asked_by(client, request)[0],
            **({} if line is None else {"method": line.method, "path": line.path.decode("latin-1")}),
        )
        self._let_go(client)
        self._reply(client, client.connection.refusal(refused, self.date()))

    def _let_read(self, client: G) -> None:
        """Let the client read its last answer: to close with bytes unread would tear it away (RFC 9112 section 9.6)."""
        client.step = self.read_out
        try:
            client.hang_up()
        except OSError:
            self._close(client)
            return
        client.untaken = unsent(client.sock)
        client.deadline = time.monotonic() + READ_ANSWER
        self._watch(client, READ)

    def _see_it_read(self, client: G) -> None:
        """Close a client that had its time to read its last answer, unless it is taking that, and the pool does not stop."""
        untaken, client.untaken = client.untaken, unsent(client.sock)
        if client.untaken < untaken and not self._stopping:
            client.deadline = time.monotonic() + READ_ANSWER
            self._watch(client, READ)
        else:
            self._close(client)

    def _expire(self, client: G) -> None:
        """End what took too long: what that was, the client's state tells."""
        connection = client.connection
        if not client.watched:
            return  # in the hands of a thread, which will give it a new deadline
        if client.outbox is not None:
            self._watch_outbox(client)
        elif client.step == self.read_out:
            self._see_it_read(client)
        elif connection.idle:
            self._behind.append((client, self._look_again))
        elif connection.phase is not _ANSWER:
            self._behind.append((client, self._look_for_more))

    def _look_again(self, client: G) -> bool:
        """Answer what the client sent before it could know that its time was up, unless that was done meanwhile."""
        answered = client.step(client)
        if not answered and client.connection.idle and self._late(client):
            client.broken = True
        return answered

    def _look_for_more(self, client: G) -> bool:
        """Take in what came of an unfinished request before its time was up, and end it if that was not enough."""
        answered = self.receive(client)
        if not (answered or client.broken or client.connection.phase is _CLOSED) and self._late(client):
            self._time_out(client)
        return answered

    def _late(self, client: G) -> bool:
        """Whether a next request, or the rest of an unfinished one, has not come in time."""
        return client.deadline <= time.monotonic()

    def _time_out(self, client: G) -> None:
        self._refuse(client, Refused(408, "request not complete in time", "RFC 9110 section 15.5.9"))

    def _close(self, client: G) -> None:
        if client.gone:
            return
        self.send_held_back()
        client.gone = True
        if self._refused:
            self._refused.discard(client)
        self._let_go(client)
        if client.listed != NEVER:
            self._deadlines.drop(client)
        if client.watched:
            client.watched = 0
            self._poller.forget(client.fd)
        self._clients.pop(client.fd, None)  # who was given up is gone from there
        self._count()
        client.close()
        if client.outbox is not None:
            client.outbox.close()
            client.outbox = None
        if client.connection.phase is not _CLOSED:
            client.connection.close()
        if self._leaving and not self._clients:
            self._tell_monitor()

    def date(self) -> bytes:
        """Return the present value of ``Date`` (RFC 9110 section 5.6.7)."""
        now = int(time.time())
        if now != self._date_at:
            self._date = http_date(now)
            self._date_at = now
        return self._date


def new_parser(name: str) -> Parser:
    """Return a parser as ``http`` names it: httptools where it is installed, unless h11 is asked for."""
    if name != "h11":
        try:
            from prefork.http1.parser_httptools import HttptoolsParser
        except ImportError:
            if name == "httptools":
                raise
        else:
            return HttptoolsParser()
    from prefork.http1.parser_h11 import H11Parser

    return H11Parser()


def http_date(now: int) -> bytes:
    """Return a time in seconds as an IMF-fixdate (RFC 9110 section 5.6.7), whatever the locale."""
    year, month, day, hour, minute, second, weekday, _, _ = time.gmtime(now)
    return b"%b, %02d %b %d %02d:%02d:%02d GMT" % (_DAYS[weekday], day, _MONTHS[month - 1], year, hour, minute, second)


def last_descriptor() -> float:
    """Return the highest descriptor that a client should have: some are left to the application, and for spooling."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return NEVER if soft == resource.RLIM_INFINITY else soft - 1 - min(soft // 8, SPARE)


def nudge(fd: int) -> None:
    """Make the other end of a pipe readable."""
    try:
        os.write(fd, b".")
    except (BlockingIOError, OSError):
        return


def drain(fd: int) -> None:
    """Empty a pipe."""
    try:
        while os.read(fd, 4096):
            pass
    except BlockingIOError:
        return
