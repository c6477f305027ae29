"""What would the system have against a file at this path?"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def obstacle(path: Path, *, replaced: bool = False) -> OSError | None:
    """Return the error with which a file could not be written, or made, at ``path``; ``None`` if it could be.

    Nothing is made. With ``replaced`` a new file takes the place of one that is there, as a rename does it.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        return _error(errno.ENOTDIR if folder.exists() else errno.ENOENT)
    if path.is_dir():
        return _error(errno.EISDIR)
    there = path.exists() and not replaced
    return None if os.access(path if there else folder, os.W_OK) else _error(errno.EACCES)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
