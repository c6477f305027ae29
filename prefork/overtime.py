"""Who answers a request that takes too long: its thread, or the monitor?

One thing can be taken once, the ``claim``: the thread takes it to begin its answer, to complete it and to come back, and
makes a new one when there is more to do; the monitor takes it to give the thread up. To take is atomic in Python, so the
thread pays for no lock, and whoever comes second knows that he was second.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import threading

    from prefork.http1.messages import Request


class GivenUp(ConnectionAbortedError):
    """The request was answered for: what its thread still has to say is heard by nobody."""


class Running:
    """A request that the application is at, in ``thread``, with the ``cell`` of the scoreboard.

    ``received`` is the size of its body.
    It has ``limit`` seconds until its answer is complete, and then as long for what the application does behind that.
    """

    __slots__ = (
        "answer",
        "cell",
        "claim",
        "deadline",
        "detached",
        "limit",
        "received",
        "request",
        "sending",
        "since",
        "thread",
        "untold",
        "whole",
    )

    def __init__(self, thread: threading.Thread, cell: int, request: Request, received: int, limit: float) -> None:
        self.thread = thread
        self.cell = cell
        self.request = request
        self.received = received
        self.limit = limit
        self.since = time.monotonic()
        self.deadline = self.since + limit
        self.sending = False
        """Whether the thread has begun to answer; it changes only in the hands of whoever has the claim."""
        self.whole = False
        """Whether all of the answer was sent, or waits for the client."""
        self.detached = False
        """Whether what waits goes out without the thread, which has nothing to do with the client any more."""
        self.answer: Any = None
        """What the application says to it, once that was called."""
        self.claim = [True]
        self.untold = [True]
        """To be taken by whoever writes it into the access log."""

    def extend(self, seconds: float) -> None:
        """Give the request at least so many seconds from now on."""
        self.deadline = max(self.deadline, time.monotonic() + seconds)

    def begin_to_send(self) -> None:
        """Begin to answer, in the request's thread; raises ``GivenUp`` if somebody else has."""
        if not self.sending:
            self._take()
            self.sending = True
            self.claim = [True]

    def complete(self) -> None:
        """Send the last of the answer, in the request's thread; raises ``GivenUp`` if somebody else has answered."""
        self._take()
        self.sending = True
        # Before the new claim: who sees that sees this.
        self.deadline = max(self.deadline, time.monotonic() + self.limit)
        self.claim = [True]

    def _take(self) -> None:
        if not take(self.claim):
            raise GivenUp("the request took longer than request_timeout, and was answered for")


def take(claim: list[bool]) -> bool:
    """Take what can be taken once; return whether it was there."""
    try:
        return claim.pop()
    except IndexError:
        return False
