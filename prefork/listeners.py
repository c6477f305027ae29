"""Which sockets do we listen on, whose are they, and who unlinks them?"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import select
import socket
import stat
import struct
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from prefork.addresses import UNIX_SERVER_NAME, Address, bracketed, parse_bind
from prefork.errors import BindError, ConfigError
from prefork.inheritance import Inheritance, Passed, forget_inheritance, inheritance_of
from prefork.obstacles import obstacle
from prefork.values import Value, replace

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    from prefork.config import Config

__all__ = ["Address", "Listener", "Listeners", "open_listeners", "parse_bind", "reachable"]

#: What a UNIX socket's file may be used for, unless told otherwise: the proxy in front often is another user.
_MODE = 0o666
_FAMILIES = {socket.AF_INET, socket.AF_INET6, socket.AF_UNIX}
#: How to find who listens on a port.
_WHO = {"linux": "ss -ltnp 'sport = :{}'", "darwin": "lsof -nP -iTCP:{} -sTCP:LISTEN"}
# Drops what begins a connection (SYN without ACK, octet 13 of the TCP header) and lets all else in. Source: filter.h.
_NO_NEWCOMERS = ((0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_USUAL_PORTS = {"http": "80", "https": "443"}
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what stands for all interfaces, and for this machine


# What is open.


class Listener(Value):
    """A listening socket, and its real ``address``.

    ``inherited`` says that somebody else made it, ``name`` how it was called if the environment passed it on. ``file``
    is the device and inode of the UNIX socket that we made. ``bind`` is what the option said, ``scheme`` what is spoken.
    """

    socket: socket.socket
    address: Address
    inherited: bool = False
    file: tuple[int, int] | None = None
    name: str = ""
    bind: str = ""
    scheme: str = "http"

    @property
    def tcp(self) -> bool:
        """Whether this is TCP, over IPv4 or IPv6; else it is a UNIX socket."""
        return bool(self.address.host)

    @property
    def server_name(self) -> str:
        """The ``SERVER_NAME`` of requests that come in here; ``localhost`` for a UNIX socket.

        Never empty (PEP 3333). It counts only for requests without a Host field.
        """
        return bracketed(self.address.host) if self.tcp else UNIX_SERVER_NAME

    @property
    def server_port(self) -> str:
        """The ``SERVER_PORT`` of requests that come in here; for a UNIX socket ``80``, or ``443`` with TLS.

        It may not be empty (PEP 3333), and Django and Werkzeug leave these out of the URLs that they build.
        """
        return str(self.address.port) if self.tcp else _USUAL_PORTS[self.scheme]

    @property
    def url(self) -> str:
        """Where to reach it, with the real port: ``http://127.0.0.1:8000``, ``http://[::1]:8000``, ``unix:/x.sock``."""
        return f"{self.scheme}://{self.address}" if self.tcp else str(self.address)


class Listeners:
    """All listening sockets of a pool. Only the process that made a UNIX socket's file, or adopted it, unlinks it.

    ``starter_generation`` is Server::Starter's count of starts, if it is the one who passed them on.
    """

    def __init__(self, listeners: Sequence[Listener], starter_generation: int | None = None) -> None:
        self._listeners = tuple(listeners)
        self.starter_generation = starter_generation
        self._owner = os.getpid()

    def __iter__(self) -> Iterator[Listener]:
        return iter(self._listeners)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def speak(self, scheme: str) -> None:
        """Take note of what is spoken on all of them: ``http``, or with TLS ``https``."""
        self._listeners = tuple(replace(listener, scheme=scheme) for listener in self._listeners)

    def close(self) -> None:
        """Close the sockets, and unlink the files that are ours. Again: nothing."""
        for listener in self._listeners:
            # The file first: while the socket is open, nobody can have a file with the same inode.
            if self._owner == os.getpid() and listener.socket.fileno() >= 0:
                _unlink(listener)
            listener.socket.close()

    @property
    def awaited(self) -> bool:
        """Whether anybody waits in a queue now."""
        poll = select.poll()
        for listener in self._listeners:
            poll.register(listener.socket, select.POLLIN)
        return bool(poll.poll(0))

    def refuse_newcomers(self) -> None:
        """Let nobody join the queues any more, in whatever process they are open, so that they can be emptied for good.

        What comes between the last look at a queue and the close of its socket would be reset. Now it waits, as for a
        packet that was lost, and is refused when it asks again, or taken in by the server that has the port by then. A
        socket that somebody else made is left alone: it outlives us.
        """
        for listener in self._listeners:
            if listener.inherited or listener.socket.fileno() < 0:
                continue
            if listener.tcp:
                _attach_filter(listener.socket)
            else:
                if self._owner == os.getpid():
                    _unlink(listener)
                # The queue stays, and is not joined any more. Source: unix(7), af_unix.c.
                with suppress(OSError):
                    listener.socket.shutdown(socket.SHUT_RD)

    def release(self) -> None:
        """Close this process's copies alone: another one goes on with the sockets, and unlinks the files."""
        for listener in self._listeners:
            listener.socket.close()

    def adopt(self) -> None:
        """Make this process the one that unlinks."""
        self._owner = os.getpid()

    def disown(self) -> None:
        """Leave it to another process to unlink."""
        self._owner = 0


def _attach_filter(sock: socket.socket) -> None:
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _NO_NEWCOMERS))
    with suppress(OSError):  # not Linux, or not allowed: then the moment remains
        sock.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_NO_NEWCOMERS), ctypes.addressof(program))
        )


def _detach_filter(sock: socket.socket) -> None:
    """Let newcomers in again, where a pool that died while it stopped did not."""
    with suppress(OSError):  # there is none
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def _unlink(listener: Listener) -> None:
    if listener.file is None:
        return
    # A user without privileges may not write to /run any more, and finds the file dead when he starts anew.
    with suppress(OSError):
        there = os.lstat(listener.address.path)
        # Somebody may have bound the path anew meanwhile: then the file is his.
        if (there.st_dev, there.st_ino) == listener.file:
            Path(listener.address.path).unlink()


def reachable(url: str) -> tuple[str, ...]:
    """Return the URLs under which a browser reaches ``url``: for one that stands for all interfaces, this machine's.

    Those are the loopback address and, where there is a network, the one that this machine has in it.
    """
    scheme, _, rest = url.partition("://")
    for every, loopback in _ANY.items():
        start = f"{bracketed(every)}:"
        if rest.startswith(start):
            hosts = [loopback, *_outside(socket.AF_INET6 if ":" in every else socket.AF_INET)]
            return tuple(f"{scheme}://{bracketed(host)}:{rest.removeprefix(start)}" for host in hosts)
    return (url,)


def _outside(family: socket.AddressFamily) -> list[str]:
    # A connected datagram socket sends nothing: the system only looks up its route. The networks are for documentation.
    far = "2001:db8::1" if family == socket.AF_INET6 else "192.0.2.1"
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((far, 9))
        return [str(sock.getsockname()[0])]
    return []


# How it is opened.


def open_listeners(
    config: Config,
    *,
    owner: tuple[int | None, int | None] = (None, None),
    inherited: Mapping[str, Sequence[int]] | None = None,
) -> Listeners:
    """Open all sockets of ``config.bind``, non-blocking, in its order, or take those that the environment passes on.

    The environment forgets them then: they are ours. ``owner`` are the ids of the user and the group to whom files of
    UNIX sockets are given, if they are to be others. ``inherited`` are descriptors of sockets that are open already, for
    each text of ``config.bind``.
    Raises ``ConfigError`` for what cannot be an address, and ``BindError`` for one that cannot be listened on.
    """
    inheritance = inheritance_of(os.environ, os.getpid())
    if inheritance is not None:
        listeners = _inherit(inheritance, config)
        forget_inheritance(os.environ)
        return listeners
    addresses = [parse_bind(text) for text in config.bind]
    _check_unique(addresses)
    mode = _MODE if config.umask is None else _MODE & ~int(config.umask, 8)
    opened: dict[int, Listener] = {}
    there = {bind: list(descriptors) for bind, descriptors in (inherited or {}).items()}
    try:
        # Descriptors come first: what we open could take the number of one that is closed.
        for place in sorted(range(len(addresses)), key=lambda place: addresses[place].fd is None):
            bind = config.bind[place]
            if there.get(bind) and addresses[place].fd is None:
                # An earlier pool made it, and nobody else.
                listener = replace(_adopt(there[bind].pop(0), config.backlog), inherited=False)
                _detach_filter(listener.socket)
            else:
                listener = _open(addresses[place], config.backlog, mode, owner)
            opened[place] = replace(listener, bind=bind)
    except BaseException:
        Listeners(list(opened.values())).close()
        raise
    return Listeners([opened[place] for place in sorted(opened)])


def check_addresses(config: Config) -> None:
    """Raise what ``open_listeners`` would raise of ``config.bind``, as far as that shows without opening a socket."""
    addresses = [parse_bind(text) for text in config.bind]
    _check_unique(addresses)
    for address in addresses:
        with _telling_of(address):
            if address.path:
                _check_path(Path(address.path))
            elif address.fd is None:
                _resolve(address)


def _check_path(path: Path) -> None:
    _is_socket(path)
    if (error := obstacle(path, replaced=True)) is not None:
        raise error


def _check_unique(addresses: Sequence[Address]) -> None:
    names = [str(address) for address in addresses if address.path or address.fd is not None or address.port]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError("PF314", f"bind has {twice!r} twice", "name each address once")


def _open(address: Address, backlog: int, mode: int, owner: tuple[int | None, int | None]) -> Listener:
    with _telling_of(address):
        if address.fd is not None:
            return _adopt(address.fd, backlog)
        if address.path:
            return _open_unix(Path(address.path), backlog, mode if address.mode is None else address.mode, owner)
        return _open_tcp(address, backlog)


@contextmanager
def _telling_of(address: Address) -> Iterator[None]:
    """Make ``BindError`` of what the system has against an address."""
    try:
        yield
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no name"
        raise BindError(
            "PF311", f"cannot listen on {address}", f"{address.host!r} does not resolve: {reason}"
        ) from None
    except OSError as error:
        raise _bind_error(address, error) from None


def _inherit(inheritance: Inheritance, config: Config) -> Listeners:
    if config.bind_from:
        raise ConfigError(
            "PF317",
            f"bind is given ({config.bind_from}) but {inheritance.variable} passes sockets on",
            "leave bind out: whoever passes them on says where to listen",
        )
    numbers = [passed.fd for passed in inheritance.sockets]
    if len(set(numbers)) < len(numbers):
        raise ConfigError("PF314", f"{inheritance.variable} has a descriptor twice", "name each once")
    inherited: list[Listener] = []
    try:
        for passed in inheritance.sockets:
            inherited.append(_take_over(passed, inheritance, config.backlog))  # noqa: PERF401 - what is there counts
    except BaseException:
        for listener in inherited:
            listener.socket.detach()
        raise
    return Listeners(inherited, inheritance.starter_generation)


def _take_over(passed: Passed, inheritance: Inheritance, backlog: int) -> Listener:
    try:
        return replace(_adopt(passed.fd, backlog), name=passed.name)
    except BindError as error:
        what = f"{inheritance.variable} passes on {passed.name or 'a socket'}, but {error.message}"
        raise BindError(error.code, what, error.hint) from None


def _adopt(fd: int, backlog: int) -> Listener:
    try:
        sock = socket.socket(fileno=fd)
    except (OSError, OverflowError) as error:
        what = "no socket" if isinstance(error, OSError) and error.errno == errno.ENOTSOCK else "not open"
        raise _unfit(fd, f"is {what}") from None
    try:
        _ready_to_accept(sock, backlog)
        if sock.family in {socket.AF_INET, socket.AF_INET6}:
            _send_at_once(sock)
        sock.setblocking(False)
        sock.set_inheritable(False)  # a program that the application starts would keep the port
    except BaseException:
        sock.detach()  # not ours to close
        raise
    return Listener(sock, _address_of(sock), inherited=True)


def _ready_to_accept(sock: socket.socket, backlog: int) -> None:
    if sock.family not in _FAMILIES or sock.type != socket.SOCK_STREAM:
        raise _unfit(sock.fileno(), f"is a socket of another kind ({sock.family.name}, {sock.type.name})")
    # Not listened on again: that would replace the backlog that its owner chose.
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return
    try:
        sock.listen(backlog)
    except OSError as error:
        raise _unfit(sock.fileno(), f"cannot be listened on ({error.strerror}): it may be a connection") from None


def _unfit(fd: int, what: str) -> BindError:
    hint = "pass on a TCP or UNIX socket that is bound, or listens; UDP is not served"
    return BindError("PF307", f"descriptor {fd} {what}", hint)


def _address_of(sock: socket.socket) -> Address:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        # An abstract one begins with a zero byte, and is written with an @; one without a name has its number.
        path = os.fsdecode(name).replace("\0", "@", 1)
        return Address(path=path) if path else Address(fd=sock.fileno())
    return Address(host=name[0], port=name[1])


def _resolve(address: Address) -> tuple[int, Any]:
    # As a text, for which the codec of international names is imported: werkzeug needs it at the first request, and if it
    # is not there each worker imports it for itself.
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # Of a name that has both, such as localhost, IPv4: every client tries that, as it does with Flask and Django.
    family, _, _, _, where = min(found, key=lambda one: one[0] != socket.AF_INET)
    return family, where


def _open_tcp(address: Address, backlog: int) -> Listener:
    family, where = _resolve(address)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # Or [::]:8000 would take 0.0.0.0:8000 too, on some systems.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        _send_at_once(sock)
        sock.bind(where)
        sock.listen(backlog)
        sock.setblocking(False)
        return Listener(sock, _address_of(sock))
    except BaseException:
        sock.close()
        raise


def _send_at_once(sock: socket.socket) -> None:
    """Let nothing small wait for an acknowledgement. The connections that are accepted inherit it."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _open_unix(path: Path, backlog: int, mode: int, owner: tuple[int | None, int | None]) -> Listener:
    _make_room(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound = False
    try:
        with suppress(OSError):  # Linux makes the file with these permissions, so that it is never open to more
            os.fchmod(sock.fileno(), mode)
        sock.bind(str(path))
        bound = True
        if owner != (None, None):
            os.chown(path, *(-1 if number is None else number for number in owner))
        path.chmod(mode)  # and this is without the umask
        sock.listen(backlog)
        sock.setblocking(False)
        made = path.lstat()
        address = Address(path=str(path.absolute()), mode=mode)  # the directory may change
        return Listener(sock, address, file=(made.st_dev, made.st_ino))
    except BaseException:
        sock.close()
        if bound:
            path.unlink(missing_ok=True)
        raise


def _make_room(path: Path) -> None:
    """Remove the socket of a server that is dead; leave anything else alone."""
    if not _is_socket(path):
        return
    if _is_listened_on(path):
        hint = f"another server listens there: find who with: ss -lxp src {path}, or choose another path"
        raise BindError("PF303", f"cannot listen on unix:{path}", hint)
    path.unlink(missing_ok=True)


def _is_socket(path: Path) -> bool:
    """Whether there is a socket; ``False`` if there is nothing, ``BindError`` if there is something else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(mode):
        raise BindError("PF306", f"cannot listen on unix:{path}", "a file is there: choose another path, or remove it")
    return True


def _is_listened_on(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        match probe.connect_ex(str(path)):
            case 0 | errno.EAGAIN | errno.EINPROGRESS:  # EAGAIN: its queue is full, but it has one
                return True
            case errno.ECONNREFUSED | errno.ENOENT:
                return False
            case errno.EPROTOTYPE:
                raise BindError("PF306", f"cannot listen on unix:{path}", "a datagram socket is there: choose another")
            case code:
                raise OSError(code, os.strerror(code))


# What the system had against it.


def _bind_error(address: Address, error: OSError) -> BindError:
    code, hint = _diagnosis(address, error)
    return BindError(code, f"cannot listen on {address}", hint)


def _diagnosis(address: Address, error: OSError) -> tuple[str, str]:
    """Return the code, and what to do."""
    match error.errno:
        case errno.EADDRINUSE:
            return "PF303", f"it is in use: find who with: {_who_listens(address)}, or choose another"
        case errno.EACCES | errno.EPERM:
            return "PF304", _permission(address)
        case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
            return "PF305", f"this machine has no address {address.host}: see them with: ip address"
        case errno.ENOENT | errno.ENOTDIR:
            return "PF312", f"there is no directory {Path(address.path).parent}: make it, or choose another path"
        case _ if "too long" in str(error):  # Python finds some paths so itself, and has no number for it
            size = len(os.fsencode(address.path))
            return "PF312", f"the path has {size} bytes, more than a socket's may have (107, elsewhere 103): shorten it"
        case errno.EMFILE | errno.ENFILE:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            return "PF313", f"too many files are open: raise the limit, now {limit} (ulimit -n), or close some"
        case _:
            return "PF308", error.strerror or str(error)


def _who_listens(address: Address) -> str:
    if address.path:
        return f"ss -lxp src {address.path}"
    return _WHO.get(sys.platform, _WHO["darwin"]).format(address.port)


def _permission(address: Address) -> str:
    if address.path:
        return f"permission denied: this user may not write to {Path(address.path).absolute().parent}"
    first = _first_free_port()
    if address.port < first:
        return f"permission denied: ports below {first} are for root; take a higher one, or start as root with --user"
    return "permission denied, although the port is for everybody: look for a sandbox or SELinux"


def _first_free_port() -> int:
    """Return the lowest port that is not reserved for root."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    except (OSError, ValueError):
        return 1024
