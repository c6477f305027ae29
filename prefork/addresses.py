"""Which addresses does the option ``bind`` name?"""

from __future__ import annotations

from prefork.errors import ConfigError
from prefork.values import Value

_PORTS = 65536
PORT_HINT = "a port is a number from 0 to 65535"
UNIX_SERVER_NAME = "localhost"
"""The server's name where it is reached by a UNIX socket. By TCP it is an address."""


class Address(Value):
    """Where to listen: ``host`` and ``port``, or ``path``, or the descriptor ``fd`` of an open socket.

    ``mode`` are the permissions of the file at ``path``; ``None``: 0o666, less the umask if the configuration has one.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    mode: int | None = None
    fd: int | None = None

    def __str__(self) -> str:
        if self.fd is not None:
            return f"fd://{self.fd}"
        return f"unix:{self.path}" if self.path else f"{bracketed(self.host)}:{self.port}"


def bracketed(host: str) -> str:
    """Return a host as URLs and ``SERVER_NAME`` have it: IPv6 addresses in brackets (RFC 3986 3.2.2, RFC 3875 4.1.14)."""
    return f"[{host}]" if ":" in host else host


def parse_bind(text: str) -> Address:
    """Return the address that an option ``bind`` names; raises ``ConfigError``."""
    if text.startswith("unix:"):
        return _parse_unix(text)
    if text.startswith("fd://"):
        number = text.removeprefix("fd://")
        if not _is_number(number):
            raise _wrong(text, "after fd:// comes the number of an open descriptor")
        return Address(fd=int(number))
    return _parse_tcp(text)


def _parse_unix(text: str) -> Address:
    path, question, query = text.removeprefix("unix:").partition("?")
    name, _, mode = query.partition("=")
    if question and (name != "mode" or not mode or not set(mode) <= set("01234567") or int(mode, 8) > 0o777):  # noqa: PLR2004 - all permissions
        raise _wrong(text, "after the path may come ?mode= and permissions in octal, such as ?mode=660")
    if path.startswith("//"):
        path = "/" + path.lstrip("/")  # unix:///run/x.sock, as others write it
    if not path or "\0" in path:
        raise _wrong(text, "after unix: comes the path of the socket")
    return Address(path=path, mode=int(mode, 8) if mode else None)


def _parse_tcp(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    inside = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not _is_number(port) or "/" in host or "[" in inside or (":" in inside and inside == host):
        raise _wrong(text, _advice(text))
    if not is_port(port):
        raise ConfigError("PF302", f"bind is {text!r}", PORT_HINT)
    return Address(host=inside or "0.0.0.0", port=int(port))  # noqa: S104 - asked for by ":port"


def is_port(text: str) -> bool:
    """Whether this is the number of a port."""
    return _is_number(text) and len(text) <= len(str(_PORTS)) and int(text) < _PORTS


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _advice(text: str) -> str:
    """Return what somebody who wrote this is likely to want."""
    host, _, port = text.rpartition(":")
    if _is_number(text):
        return f"give 127.0.0.1:{text} for this machine alone, or :{text} for all interfaces"
    if "://" in text:
        return "leave the scheme away: host:port"
    if "/" in text:
        return f"give unix:{text} if this is a path"
    if ":" in host and _is_number(port):
        return f"give [{host}]:{port}, an IPv6 address stands in brackets"
    return "give host:port, [v6]:port, :port, unix:PATH or fd://N"


def _wrong(text: str, hint: str) -> ConfigError:
    return ConfigError("PF301", f"bind is {text!r}", hint)
