"""What does this process call itself in the list of processes?"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

_PR_SET_NAME = 15


def set_process_name(name: str | None, role: str) -> None:
    """Show ``name`` and ``role`` in ``ps`` and ``top``; with ``None`` nothing is changed.

    ``setproctitle`` is used where it is installed. Without it Linux can still be told a short name (15 bytes, as
    ``top`` and ``ps -o comm`` show it), so there the name is all that fits.
    """
    if name is None:
        return
    try:
        from setproctitle import setproctitle
    except ImportError:
        if sys.platform.startswith("linux"):
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)
    else:
        setproctitle(f"{name}: {role}")
