"""Does new code answer, before anybody else can ask it?

A worker of the new pool is forked with one listening socket, which nobody but its parent knows, and asked for one path.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from prefork.addresses import Address
from prefork.errors import BootError
from prefork.listeners import Listener, Listeners

if TYPE_CHECKING:
    from prefork.config import Config

_FIRST_WORDS = 200
_LONGEST_ANSWER = 64 * 1024
_SICK = 500


def open_door() -> Listeners:
    """Open the socket. The kernel chooses its name, which is none of the file system's. Source: unix(7), autobind."""
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    door.bind("")
    door.listen()
    door.setblocking(False)
    return Listeners([Listener(door, Address(path="@deploy-probe"))])


def ask(door: Listeners, config: Config, patience: float) -> None:
    """Ask for ``config.deploy_probe``; ``BootError`` if the answer is no good, or takes longer than ``patience``."""
    (listener,) = door
    path = config.deploy_probe
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(max(patience, 0.1))
        try:
            client.connect(listener.socket.getsockname())
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            answer = _read(client)
        except OSError as error:
            raise BootError("PF422", f"deploy_probe {path} was not answered: {error}", _HINT) from None
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b"\r\n", 1)[0].split(b" ", 2)[1:2]
    if not status or int(status[0]) >= _SICK:
        shown = status[0].decode() if status else "no status"
        words = body[:_FIRST_WORDS].decode(errors="replace")
        raise BootError("PF422", f"deploy_probe {path} was answered with {shown}: {words!r}", _HINT)


_HINT = "put the application right, or name another path"


def _read(client: socket.socket) -> bytes:
    answer = b""
    while len(answer) < _LONGEST_ANSWER and (data := client.recv(_LONGEST_ANSWER)):
        answer += data
    return answer
