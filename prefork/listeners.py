"""Which sockets do we listen on, whose are they, and who unlinks them?"""

from __future__ import annotations

import errno
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from prefork.errors import BindError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from prefork.config import Config

_PORTS = 65536
_MODE = 0o666


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: ``host`` and ``port``, or ``path`` with ``mode``, or the descriptor ``fd`` of an open socket."""

    host: str = ""
    port: int = 0
    path: str = ""
    mode: int = _MODE
    fd: int | None = None

    @property
    def family(self) -> socket.AddressFamily:
        """The family of a socket that is to be made."""
        if self.path:
            return socket.AF_UNIX
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket. ``inherited`` says that somebody else made it, ``unlink`` which file goes with it."""

    socket: socket.socket
    inherited: bool = False
    unlink: str = ""
    inode: int = 0

    @property
    def tcp(self) -> bool:
        """Whether this is TCP, over IPv4 or IPv6."""
        return self.socket.family in {socket.AF_INET, socket.AF_INET6}

    @property
    def server_name(self) -> str:
        """The ``SERVER_NAME`` of requests that come in here; never empty (PEP 3333)."""
        return str(self.socket.getsockname()[0]) if self.tcp else "localhost"

    @property
    def server_port(self) -> str:
        """The ``SERVER_PORT`` of requests that come in here; 80 for a UNIX socket, since it may not be empty."""
        return str(self.socket.getsockname()[1]) if self.tcp else "80"

    @property
    def url(self) -> str:
        """Where to reach it, with the real port."""
        if not self.tcp:
            return f"unix:{os.fsdecode(self.socket.getsockname())}"
        host, port = self.socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Listeners:
    """All listening sockets of a pool. Only the process that made a UNIX socket's file unlinks it."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = tuple(listeners)
        self._owner = os.getpid()

    def __iter__(self) -> Iterator[Listener]:
        return iter(self._listeners)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the sockets, and unlink the files that are ours."""
        for listener in self._listeners:
            if listener.unlink and self._owner == os.getpid() and listener.socket.fileno() >= 0:
                _unlink(listener)
            listener.socket.close()

    def release(self) -> None:
        """Close this process's copies alone: another one goes on with the sockets, and unlinks the files."""
        for listener in self._listeners:
            listener.socket.close()

    def adopt(self) -> None:
        """Make this process the one that unlinks."""
        self._owner = os.getpid()


def _unlink(listener: Listener) -> None:
    path = Path(listener.unlink)
    try:
        # Somebody may have bound the path anew meanwhile: then the file is his.
        if path.stat().st_ino == listener.inode:
            path.unlink()
    except FileNotFoundError:
        return


def parse_bind(text: str) -> Address:
    """Return the address that an option ``bind`` names; raises ``ConfigError``."""
    if text.startswith("unix:"):
        path, _, query = text.removeprefix("unix:").partition("?")
        mode = query.removeprefix("mode=") if query else f"{_MODE:o}"
        if not path or not mode.isdigit() or not set(mode) <= set("01234567"):
            raise _wrong(text)
        return Address(path=path, mode=int(mode, 8))
    if text.startswith("fd://"):
        number = text.removeprefix("fd://")
        if not number.isdigit():
            raise _wrong(text)
        return Address(fd=int(number))
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()):
        raise _wrong(text)
    if int(port) >= _PORTS:
        raise ConfigError("PF302", f"bind is {text!r}", "a port is a number from 0 to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise _wrong(text)
    return Address(host=host or "0.0.0.0", port=int(port))  # noqa: S104 - asked for by ":port"


def _wrong(text: str) -> ConfigError:
    return ConfigError("PF301", f"bind is {text!r}", "give host:port, [v6]:port, :port, unix:PATH or fd://N")


def open_listeners(config: Config) -> Listeners:
    """Open all sockets of ``config.bind``, non-blocking; raises ``BindError`` or ``ConfigError``."""
    opened: list[Listener] = []
    try:
        addresses = [parse_bind(text) for text in config.bind]
        opened.extend(_open(address, config.backlog) for address in addresses)
    except BaseException:
        Listeners(opened).close()
        raise
    return Listeners(opened)


def _open(address: Address, backlog: int) -> Listener:
    try:
        if address.fd is not None:
            return _adopt(address.fd, backlog)
        if address.path:
            return _open_unix(address, backlog)
        return _open_tcp(address, backlog)
    except OSError as error:
        raise _bind_error(address, error) from None


def _adopt(fd: int, backlog: int) -> Listener:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise BindError("PF307", f"descriptor {fd} is no socket", error.strerror or str(error)) from None
    if sock.type != socket.SOCK_STREAM:
        sock.detach()
        raise BindError("PF307", f"descriptor {fd} is no stream socket", "pass one that listens, TCP or UNIX")
    # Not listened on again: that would replace the backlog that its owner chose.
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.listen(backlog)
    sock.setblocking(False)
    return Listener(sock, inherited=True)


def _open_tcp(address: Address, backlog: int) -> Listener:
    family, _, _, _, where = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(where)
        sock.listen(backlog)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return Listener(sock)


def _open_unix(address: Address, backlog: int) -> Listener:
    path = Path(address.path)
    _make_room(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(address.path)
        path.chmod(address.mode)
        sock.listen(backlog)
        sock.setblocking(False)
        return Listener(sock, unlink=str(path.absolute()), inode=path.stat().st_ino)
    except BaseException:
        sock.close()
        raise


def _make_room(path: Path) -> None:
    """Remove the socket of a server that is dead; leave anything else alone."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise BindError("PF306", f"{path} is there and is no socket", "choose another path, or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise BindError(
                "PF303", f"{path} is in use", "another server listens there: stop it, or choose another path"
            )


def _bind_error(address: Address, error: OSError) -> BindError:
    where = address.path or f"{address.host}:{address.port}"
    if isinstance(error, socket.gaierror):
        return BindError(
            "PF305", f"cannot listen on {where}", f"{address.host!r} does not resolve to an address of ours"
        )
    match error.errno:
        case errno.EADDRINUSE:
            hint = f"it is in use; find who with: ss -ltnp 'sport = :{address.port}', or choose another port"
            return BindError("PF303", f"cannot listen on {where}", hint)
        case errno.EACCES | errno.EPERM:
            hint = (
                "permission denied; ports below 1024 are for root: use a higher one"
                if not address.path
                else "permission denied"
            )
            return BindError("PF304", f"cannot listen on {where}", hint)
        case errno.EADDRNOTAVAIL:
            return BindError("PF305", f"cannot listen on {where}", "this machine has no such address")
        case _:
            return BindError("PF308", f"cannot listen on {where}", error.strerror or str(error))
