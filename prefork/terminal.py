"""Is there somebody who reads what is written to a stream, and would he like it in colour?"""

from __future__ import annotations

import os
import sys
from typing import Any


def open_closed_streams() -> None:
    """Let /dev/null stand where this process was started without stdin, stdout or stderr.

    Else the next socket gets the number, and into that goes what a library, or the interpreter when it dies, has to say.
    And ``wsgi.errors`` is a stream (PEP 3333).
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)


def is_terminal(stream: Any) -> bool:
    """Whether a stream leads to a terminal: there may be none, or one that a program has put in its place."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


def wants_colour(*, terminal: bool) -> bool:
    """Whether to colour: on a terminal that can, unless the user said otherwise.

    Sources: no-color.org, force-color.org, and ``DJANGO_COLORS``, which ``manage.py … --no-color`` sets to nocolor.
    """
    environ = os.environ
    if environ.get("NO_COLOR") or environ.get("DJANGO_COLORS") == "nocolor":
        return False
    return bool(environ.get("FORCE_COLOR")) or (terminal and environ.get("TERM") != "dumb")
