"""Does new code answer, before anybody else can ask it?

A worker of the new pool is forked with one listening socket, which nobody but its parent knows, and asked for one path.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from prefork.addresses import Address
from prefork.errors import BootError
from prefork.listeners import Listener, Listeners
from prefork.targets import LONGEST_ANSWER, SICK, WRONG, parse_target, read_answer
from prefork.trust import UNIX
from prefork.values import replace

if TYPE_CHECKING:
    from prefork.config import Config

_HINT = "put the application right, or name another path"
_HOST_HINT = (
    "mostly the application does not know the host, then give a URL with one that it does, such as http://shop.example/"
)


def open_door() -> Listeners:
    """Open the socket. The kernel chooses its name, which is none of the file system's. Source: unix(7), autobind."""
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    door.bind("")
    door.listen()
    door.setblocking(False)
    return Listeners([Listener(door, Address(path="@deploy-probe"))])


def config_behind(config: Config) -> Config:
    """Return the options of the worker behind the door: it believes who comes through which scheme he asks by."""
    return replace(config, proxy_protocol=False, trusted_proxies=(UNIX,), forwarded_headers=("x-forwarded-proto",))


def ask(door: Listeners, config: Config, patience: float) -> None:
    """Ask for ``config.deploy_probe``; ``BootError`` if the answer is no good, or takes longer than ``patience``."""
    (listener,) = door
    assert config.deploy_probe is not None
    target = parse_target(config.deploy_probe)
    fields = ["Connection: close"]
    if (target.scheme or config.scheme) == "https":
        fields.append("X-Forwarded-Proto: https")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(max(patience, 0.1))
        try:
            client.connect(listener.socket.getsockname())
            client.sendall(target.request(*fields))
            status, words = read_answer(_read(client))
        except OSError as error:
            raise BootError("PF422", f"deploy_probe {config.deploy_probe} was not answered: {error}", _HINT) from None
    if not status or status == WRONG or status >= SICK:
        message = f"deploy_probe {config.deploy_probe} was answered with {status or 'no status'}: {words!r}"
        raise BootError("PF422", message, _HOST_HINT if status == WRONG else _HINT)


def _read(client: socket.socket) -> bytes:
    answer = b""
    while len(answer) < LONGEST_ANSWER and (data := client.recv(LONGEST_ANSWER)):
        answer += data
    return answer
