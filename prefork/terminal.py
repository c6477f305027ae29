"""Is there somebody who reads what is written to a stream, and would he like it in colour?"""

from __future__ import annotations

import os
from typing import Any


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
