"""What does the kernel tell of a process, ours or another?"""

from __future__ import annotations

import os
from pathlib import Path


def stat_of(pid: int, proc: Path = Path("/proc")) -> list[str]:
    """Return what the kernel tells of a process, from its state on (proc(5)); raises ``OSError`` if it does not."""
    # The name before that, in brackets, may hold anything.
    return (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()


def is_alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's, but there
        return True
    return True
