"""What does systemd want to hear from its service?

Source: sd_notify(3). It stands alone and needs the standard library only, so that the keeper can use it too.
"""

from __future__ import annotations

import os
import socket
import time

TYPE_CHECKING = False  # typing's own would cost the keeper half as much memory as all the rest
if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping
    from typing import Any

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
NEVER = float("inf")


class Notifier:
    """The line to systemd; where there is none, nothing is sent.

    ``beat_at`` is the monotonic time of the next sign of life, infinity where no watchdog waits for one.
    """

    def __init__(self, environ: Mapping[str, str], pid: int) -> None:
        self.address = address_of(environ.get("NOTIFY_SOCKET", ""))
        self.period = watchdog_period(environ, pid) if self.address else NEVER
        self.beat_at = -NEVER if self.period < NEVER else NEVER

    @classmethod
    def take(cls, environ: MutableMapping[str, str], pid: int) -> Notifier:
        """Return the line that the environment names for ``pid``; no program that it starts shall use it."""
        notifier = cls(environ, pid)
        for variable in VARIABLES:
            environ.pop(variable, None)
        return notifier

    def tell(self, **fields: Any) -> None:
        """Send a message. That nobody listens is systemd's affair."""
        if self.address:
            send(self.address, message(**fields))

    def tell_of(self, record: str, fields: Mapping[str, Any]) -> None:
        """Send what a record of the pool means to systemd, if it means anything."""
        if self.address and (notice := notice_of(record, fields, time.monotonic_ns())):
            self.tell(**notice)

    def beat(self, now: float) -> None:
        """Send a sign of life, when it is time."""
        if now >= self.beat_at:
            self.beat_at = now + self.period
            self.tell(WATCHDOG=1)


def notice_of(record: str, fields: Mapping[str, Any], monotonic_ns: int) -> dict[str, Any]:
    """Return the fields of the message that goes with a record of the pool; nothing for most."""
    match record:
        case "pool.ready":
            return {"READY": 1, "STATUS": f"{fields['workers']} workers serve"}
        case "pool.recycling":
            return {**reloading(monotonic_ns), "STATUS": "replacing all workers"}
        case "pool.deploying":
            return {**reloading(monotonic_ns), "STATUS": "starting new code"}
        case "pool.deployed":
            return {"READY": 1, "STATUS": f"{fields['workers']} workers serve new code"}
        case "pool.deploy_failed":
            return {"READY": 1, "STATUS": f"new code was not deployed: {fields['reason']}"}
        case "pool.recycled":
            return {"READY": 1, "STATUS": f"{fields['workers']} workers serve, all replaced"}
        case "pool.scaling":
            return {"STATUS": f"{fields['workers_to']} workers wanted"}
        case "pool.stop_delayed":
            return {"STOPPING": 1, "STATUS": f"stopping in {fields['delay_s']:g} s"}
        case "pool.stopping":
            return {"STOPPING": 1, "STATUS": "stopping"}
        case "pool.boot_failed":
            return {"STOPPING": 1, "STATUS": f"cannot start: {fields['reason']}"}
        case _:
            return {}


def reloading(monotonic_ns: int) -> dict[str, Any]:
    """Return the fields that announce a reload, which a later ``READY`` ends."""
    return {"RELOADING": 1, "MONOTONIC_USEC": monotonic_ns // 1000}


def message(**fields: Any) -> bytes:
    """Return a message: a line each. A value is one line, whatever is in it."""
    return "\n".join(f"{name}={' '.join(str(value).split())}" for name, value in fields.items()).encode()


def address_of(text: str) -> str:
    """Return the address of a socket as the system has it: an abstract one, written with an @, begins with a zero byte.

    What is neither a path nor that, such as vsock, is not understood, and empty.
    """
    return text.replace("@", "\0", 1) if text.startswith("@") else text if text.startswith("/") else ""


def watchdog_period(environ: Mapping[str, str], pid: int) -> float:
    """Return how many seconds may pass between two signs of life, half of what systemd asks for; infinity if it does not."""
    text = environ.get("WATCHDOG_USEC", "")
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid) or not (text.isascii() and text.isdigit() and int(text)):
        return NEVER
    return int(text) / 2_000_000


def send(address: str, data: bytes) -> None:
    """Send one datagram, without waiting for anybody."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto(data, os.fsencode(address))
    except OSError:
        pass
