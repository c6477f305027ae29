"""How was this process started, and how would it be started again?

Imported together with the package, before an application can change directory or environment. In a process that a
keeper has started, this takes the keeper's mark out of the environment, so that no program which the application
starts believes itself to be one.
"""

from __future__ import annotations

import os
import sys
from typing import Any

MARK = "_PREFORK_KEEPER"
"""The variable by which a keeper tells a pool what it inherits."""


def _directory() -> str:
    """Return the directory by the name under which a shell entered it: a link in there may lead elsewhere by the next start."""
    name = os.environ.get("PWD", "")
    try:
        if os.path.isabs(name) and os.path.samefile(name, "."):
            return name
    except OSError:
        pass
    try:
        return os.getcwd()
    except OSError:
        return "/"


def _environment() -> dict[bytes, bytes]:
    """Return the environment of the very start, where the system tells."""
    try:
        with open("/proc/self/environ", "rb") as file:
            entries = file.read().split(b"\0")
    except OSError:
        # Not os.environb: Windows has none, and imports this for each command of Flask and Django.
        return {os.fsencode(name): os.fsencode(value) for name, value in os.environ.items()}
    return {name: value for name, equals, value in (entry.partition(b"=") for entry in entries) if equals}


def _umask() -> int:
    """Return the umask, which elsewhere can only be read by changing it."""
    try:
        with open("/proc/self/status", "rb") as file:
            return next(int(line.split()[1], 8) for line in file if line.startswith(b"Umask:"))
    except (OSError, StopIteration):
        return 0o022


def _take_mark() -> dict[str, Any] | None:
    text = os.environ.pop(MARK, None)
    if text is None:
        return None
    import json

    mark: dict[str, Any] = json.loads(text)
    if mark["pid"] != os.getpid():
        return None  # meant for a process that has started this one before it could take it
    _keep_to_ourselves(mark)
    return mark


def _keep_to_ourselves(mark: dict[str, Any]) -> None:
    """Let no program that the application starts have the descriptors, and give stderr back."""
    for number in (mark["line"], mark["words"], *(fd for _, fd in mark["listeners"]), *mark["exchange"]):
        os.set_inheritable(number, False)
    os.dup2(mark["stderr"], 2)
    os.close(mark["stderr"])
    # From now on we can speak for ourselves. What was said so far, warnings most likely, was meant for all to see.
    size = os.fstat(mark["words"]).st_size
    if said := os.pread(mark["words"], size, 0):
        os.write(2, said)
        os.ftruncate(mark["words"], 0)
        os.lseek(mark["words"], 0, os.SEEK_SET)


DIRECTORY, ENVIRONMENT, UMASK = _directory(), _environment(), _umask()
COMMAND = (sys.executable, *sys.orig_argv[1:])
mark: dict[str, Any] | None = _take_mark()
"""What the keeper that started this process says; ``None`` in any other."""


# What is said when nothing is served yet.

_LONGEST_TRACE = 16 * 1024


def tell(said: str, **facts: Any) -> bool:
    """Tell the keeper that started this process; return whether there is one who could be told."""
    if mark is None:
        return False
    import json

    try:
        os.write(mark["line"], json.dumps({"said": said, **facts}).encode())
    except OSError:
        return False
    return True


def tell_failure(error: BaseException, *, reason: str = "", trace: str | None = None) -> bool:
    """Tell the keeper why nothing will be served; ``trace`` is the traceback, if it is not that of the error."""
    if not waits_for_us():
        return False
    import traceback

    reason = reason or traceback.format_exception_only(error)[-1].strip()
    trace = "".join(traceback.format_exception(error)) if trace is None else trace
    return tell("failed", reason=reason[:1000], traceback=trace[-_LONGEST_TRACE:])


def waits_for_us() -> bool:
    """Whether a keeper has started this process, and it has not said that it serves."""
    return mark is not None and "served" not in mark


def served() -> None:
    """Take note that the pool serves, and whatever goes wrong from now on goes wrong in it."""
    if mark is not None:
        mark["served"] = True


def _last_words(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    # What the keeper knows is recorded by the pool that goes on serving, and need not be said twice.
    if issubclass(kind, KeyboardInterrupt) or not tell_failure(error):
        sys.__excepthook__(kind, error, trace)


def _prepare_last_words(given: dict[str, Any]) -> None:
    import faulthandler

    sys.excepthook = _last_words
    # A crash shows its stack, and so does a process that is ended because it takes too long.
    given["shows_crashes"] = not faulthandler.is_enabled()
    if given["shows_crashes"]:
        faulthandler.enable(given["words"])


def forget_last_words() -> None:
    """Show no crash to the keeper any more: to be called before workers are forked, who do not speak for the pool."""
    if mark is not None:
        import faulthandler

        os.dup2(2, mark["words"], inheritable=False)
        if mark["shows_crashes"]:
            faulthandler.disable()


if mark is not None:
    _prepare_last_words(mark)
