"""Which listening sockets does the program pass on that started us?

Server::Starter and systemd each say it in the environment; here that is read, and nothing is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefork.errors import ConfigError
from prefork.values import Value

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

STARTER_PORT, STARTER_GENERATION = "SERVER_STARTER_PORT", "SERVER_STARTER_GENERATION"
LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES = "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"
#: All that is said so, by either. The last is systemd's second way of naming the process that is meant.
VARIABLES = (STARTER_PORT, STARTER_GENERATION, LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES, "LISTEN_PIDFDID")
#: The first descriptor that systemd passes. Source: sd_listen_fds(3).
FIRST_FD = 3


class Passed(Value):
    """One socket: its descriptor, and the name under which it is passed on."""

    fd: int
    name: str


class Inheritance(Value):
    """The sockets, and the ``variable`` that says so; ``starter_generation`` is Server::Starter's count of starts."""

    variable: str
    sockets: tuple[Passed, ...]
    starter_generation: int | None = None


def inheritance_of(environ: Mapping[str, str], pid: int) -> Inheritance | None:
    """Return what the environment passes on to the process ``pid``, ``None`` if there is nothing.

    Raises ``ConfigError`` for what cannot be understood, or if both pass something on.
    """
    starter, systemd = _of_starter(environ), _of_systemd(environ, pid)
    if starter is not None and systemd is not None:
        hint = "run start_server from a systemd service without a socket unit, or prefork itself from one with it"
        raise ConfigError("PF316", f"both {STARTER_PORT} and {LISTEN_FDS} pass sockets on", hint)
    return starter or systemd


def forget_inheritance(environ: MutableMapping[str, str]) -> None:
    """Take out what was meant for this process, so that a program which it starts does not take it for its own."""
    for variable in VARIABLES:
        environ.pop(variable, None)


def _of_starter(environ: Mapping[str, str]) -> Inheritance | None:
    """Read ``KEY=FD;KEY=FD``, where a key is a port, host:port, [v6]:port or a path.

    The descriptor alone counts: the sockets know best where they listen. Source: Server::Starter 0.35.
    """
    text = environ.get(STARTER_PORT)
    if text is None:
        return None
    if not text:
        hint = "start_server was given neither --port nor --path: give it one, such as start_server --port 8080 --"
        raise ConfigError("PF315", f"{STARTER_PORT} is empty", hint)
    sockets = []
    for entry in text.split(";"):
        # The family splits at the first of these signs; at the last one a path may have them too.
        key, _, number = entry.rpartition("=")
        if not key or not _is_number(number):
            hint = "each entry is KEY=NUMBER; the variable is for start_server to set"
            raise ConfigError("PF315", f"{STARTER_PORT} has {entry!r}", hint)
        sockets.append(Passed(int(number), key))
    generation = environ.get(STARTER_GENERATION, "")
    return Inheritance(STARTER_PORT, tuple(sockets), int(generation) if _is_number(generation) else None)


def _of_systemd(environ: Mapping[str, str], pid: int) -> Inheritance | None:
    """Read how many descriptors there are, from the third on, and their names. Source: sd_listen_fds(3)."""
    # Variables that are meant for another process have only been passed on by it.
    if environ.get(LISTEN_PID) != str(pid):
        return None
    text = environ.get(LISTEN_FDS, "0")
    if not _is_number(text, digits=5):
        raise ConfigError("PF315", f"{LISTEN_FDS} is {text!r}", "it is a number, and for systemd to set")
    names = environ.get(LISTEN_FDNAMES, "").split(":")
    count = int(text)
    names += [""] * (count - len(names))
    sockets = tuple(Passed(FIRST_FD + place, names[place]) for place in range(count))
    return Inheritance(LISTEN_FDS, sockets) if sockets else None


def _is_number(text: str, digits: int = 9) -> bool:
    """Whether this is a number that a C int can hold, or one of fewer digits."""
    return text.isascii() and text.isdigit() and len(text) <= digits
