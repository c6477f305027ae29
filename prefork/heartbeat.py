"""Does a worker's interpreter still answer?

The parent pings, the worker's main thread answers by noting the time on the scoreboard. That thread serves no request, so
only what holds the whole interpreter makes it silent: compiled code that keeps the lock, a deadlock in there, SIGSTOP.
"""

from __future__ import annotations

import math

from prefork.values import Fields

BUSY_S, IDLE_S = 5.0, 30.0
"""How often a worker is pinged that has something to do, and one that has not: to be woken costs it something."""
PINGS = 2
"""So many pings must have remained without an answer: on a busy machine one may be late."""
AWAY_S = 2.0
"""If the parent is later than this, it was asleep itself, and most likely the whole machine: then nothing is proved."""


class Heartbeat(Fields):
    """The answers of one worker that has ``timeout`` seconds for each; 0: for ever.

    ``look_at`` is when to look for an answer and ping again; ``asked_at`` when the first ping without an answer was sent;
    ``answered`` whether the last look found an answer.
    """

    timeout: float
    look_at: float = math.inf
    asked_at: float = math.inf
    unanswered: int = 0
    answered: bool = False
    served: int = 0

    def begin(self, now: float) -> None:
        """Take note that the worker can answer from now on."""
        if self.timeout:
            self.look_at = now + self._interval(idle=False)

    def look(self, now: float) -> None:
        """Take note that somebody looks; ``hear`` is called with what was seen."""
        if now - self.look_at > AWAY_S:
            self.asked_at, self.unanswered = math.inf, 0
        self.look_at = math.inf

    def hear(self, beat: float, served: int, *, serving: bool, at: float) -> float:
        """Return for how long the worker has been silent if that is too long, else 0; it was pinged ``at`` that time.

        ``beat`` is when it answered last; ``served`` its requests so far; ``serving`` whether it is at one now.
        """
        self.answered = beat >= self.asked_at
        if self.answered:
            self.asked_at, self.unanswered = math.inf, 0
        elif self.asked_at < math.inf:
            self.unanswered += 1
        idle = served == self.served and not serving and not self.unanswered
        self.served, self.look_at = served, at + self._interval(idle=idle)
        self.asked_at = min(self.asked_at, at)
        silence = at - self.asked_at
        return silence if self.unanswered >= PINGS and silence >= self.timeout else 0.0

    def _interval(self, *, idle: bool) -> float:
        return min(IDLE_S, self.timeout / 2) if idle else min(BUSY_S, self.timeout / 4)
