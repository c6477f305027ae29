"""Where is the application just now?

What called it is the server, of which nobody wants to read: a stack is shown from the application on, if it is in it.
"""

from __future__ import annotations

import sys
import traceback
from itertools import dropwhile
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from types import FrameType

_Stack: TypeAlias = "list[tuple[FrameType, int]]"

_AWAITED = (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await"))


def is_ours(frame: FrameType) -> bool:
    """Whether the code of a frame is the server's, and not the application's or a library's."""
    return frame.f_globals.get("__name__", "").startswith("prefork.")  # type: ignore[no-any-return]  # a name is a str


def stack_of_thread(thread: threading.Thread, caller: Callable[..., object]) -> str:
    """Return the stack of a thread, the innermost call last, from what ``caller`` has called on; empty if it has ended."""
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 - the only way to another thread's stack
    return "" if frame is None else _written([*traceback.walk_stack(frame)][::-1], caller)


def stack_of_task(coroutine: Any, caller: Callable[..., object]) -> str:
    """Return the stack of a coroutine that is suspended, the innermost call last, from what ``caller`` has called on.

    A task knows its first frame alone: the others are found along what awaits what.
    """
    stack: _Stack = []
    while coroutine is not None:
        for frame_of, awaited_of in _AWAITED:
            if (frame := getattr(coroutine, frame_of, None)) is not None:
                stack.append((frame, frame.f_lineno))
                coroutine = getattr(coroutine, awaited_of)
                break
        else:
            break
    return _written(stack, caller)


def _written(stack: _Stack, caller: Callable[..., object]) -> str:
    codes = [frame.f_code for frame, _ in stack]
    if caller.__code__ in codes:
        called = stack[codes.index(caller.__code__) + 1 :]
        stack = [*dropwhile(lambda entry: is_ours(entry[0]), called)] or called or stack
    return "".join(traceback.StackSummary.extract(iter(stack)).format())
