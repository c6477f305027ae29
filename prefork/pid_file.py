"""Which process is the pool, and is there one already?"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from prefork.errors import BootError
from prefork.obstacles import obstacle
from prefork.proc import is_alive, stat_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_LAST_PID = 2**31 - 1
_MOST_READ = 1024


@contextmanager
def pid_file(name: str | None, keeper: int | None = None, *, replaces_sibling: bool = False) -> Iterator[None]:
    """Keep this process's id in a file for the length of a block; with ``None`` do nothing.

    With the id of a ``keeper``, that one is written, and it is left to him to remove the file. A file that a dead process
    left is replaced, and with ``replaces_sibling`` that of a process which has the same parent; ``BootError`` if the process
    in it is alive otherwise, if the file holds something else, or cannot be written.
    """
    if name is None:
        yield
        return
    path = Path(name).absolute()  # the directory may change meanwhile
    owner = os.getpid() if keeper is None else keeper
    refuse_other_content(path)
    living = living_owner(path)
    if living is not None and living != owner and not (replaces_sibling and are_siblings(living, owner)):
        raise BootError(
            "PF411",
            f"{path} belongs to process {living}, which is alive",
            "stop that pool first, or remove the file if the process is something else",
        )
    write(path, owner)
    try:
        yield
    finally:
        # By its owner only: a worker is a copy of this process, and a later pool may have replaced the file.
        if os.getpid() == owner and read_pid(path) == owner:
            # After privileges were dropped the directory may refuse; the next start replaces it.
            with suppress(OSError):
                path.unlink()


def check_pid_file(name: str) -> None:
    """Raise what ``pid_file`` would, unless that is because a pool is alive. Nothing is written."""
    path = Path(name).absolute()
    refuse_other_content(path)
    if (error := obstacle(path, replaced=True)) is not None:
        raise _unwritable(path, error)


def refuse_other_content(path: Path) -> None:
    """Raise ``BootError`` if something is there that is no pid file: whose it is would miss it."""
    try:
        replaceable = may_be_replaced(path)
    except OSError as error:
        raise BootError("PF412", f"cannot read the pid file {path}: {error.strerror}", "name another file") from error
    if not replaceable:
        hint = "name another file, or remove this one"
        raise BootError("PF412", f"{path} is there, and holds no process id", hint)


def may_be_replaced(path: Path) -> bool:
    """Whether there is nothing, or a regular file that is empty or begins with a number; ``OSError`` if it cannot be told."""
    if not path.is_file():
        return not path.exists()
    with path.open("rb") as file:
        # Zeros are what a power cut may have left.
        words = file.read(_MOST_READ).replace(b"\0", b"").split(maxsplit=1)
    with suppress(ValueError):
        int(words[0] if words else b"0")
        return True
    return False


def write(path: Path, pid: int) -> None:
    """Write the file at once as a whole: who reads it never sees half a number."""
    draft = path.with_name(f".{path.name}.{pid}")
    try:
        draft.write_text(f"{pid}\n")
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> BootError:
    hint = "make its directory writable for this user"
    return BootError("PF412", f"cannot write the pid file {path}: {error.strerror}", hint)


def read_pid(path: Path) -> int | None:
    """Return the process id in the file, ``None`` without one."""
    try:
        pid = int(path.read_text())
    except (OSError, ValueError):
        return None
    # Other numbers stand for groups of processes, or for none.
    return pid if 0 < pid <= _LAST_PID else None


def living_owner(path: Path) -> int | None:
    """Return the id of the process that wrote the file, if it is alive and is not this one.

    A process that began after the file was written has only inherited the number: that is what a container that keeps
    the file on a volume meets at each start.
    """
    pid = read_pid(path)
    if pid in (None, os.getpid()):
        return None
    if not is_alive(pid):
        return None
    began = beginning_of(pid)
    return None if began is not None and began > path.stat().st_mtime + 1 else pid


def are_siblings(*pids: int) -> bool:
    """Whether processes have the same parent; not where the system does not tell."""
    with suppress(OSError, IndexError):
        return len({stat_of(pid)[1] for pid in pids}) == 1
    return False


def beginning_of(pid: int) -> float | None:
    """Return when a process began, in seconds since the epoch; ``None`` where the system does not tell."""
    with suppress(OSError, ValueError, IndexError, StopIteration):
        ticks = int(stat_of(pid)[19])
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
        return int(boot.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")
    return None
