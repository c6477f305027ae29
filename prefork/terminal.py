"""Is there somebody who reads what is written to a stream, and would he like it in colour?"""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import Any


@cache
def open_closed_streams() -> None:
    """Let /dev/null stand where stdin, stdout or stderr is closed; a second call does nothing.

    Else the next socket gets the number, and into that goes what a library, or the interpreter when it dies, has to say.
    And ``wsgi.errors`` is a stream (PEP 3333). A number that the program has given to a file of its own meanwhile is left
    alone.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        missing = getattr(sys, name) is None
        if missing or not _is_open(number):
            null = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(null, null == number)
            if missing:
                stream = os.fdopen(null, "w" if number else "r", errors="backslashreplace", closefd=False)
                setattr(sys, name, stream)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


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
