"""By which id is a request known, in all logs that tell of it?

By the one that a server in front has given it in ``X-Request-ID``, if that can stand in a log and is from somebody we
believe; else by a new one. A stranger's is not believed: he could put two requests under one id.
"""

from __future__ import annotations

import re
from random import Random

_SANE = re.compile(r"[0-9A-Za-z._~+/=:@-]{1,128}")


class RequestIds:
    """Gives each request an id; to be made in the process that gives them, so that no other gives the same."""

    def __init__(self) -> None:
        self._draw = Random().getrandbits  # noqa: S311 - to be told apart, not to be kept secret

    def of(self, given: str | None, *, trusted: bool) -> str:
        """Return the id of a request: the ``given`` one, where it is sane and ``trusted``, or 32 hexadecimal digits."""
        if given and trusted and _SANE.fullmatch(given):
            return given
        return "%032x" % self._draw(128)  # noqa: UP031 - faster than any other way
