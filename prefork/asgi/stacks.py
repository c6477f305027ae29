"""Where is a task that waits?"""

from __future__ import annotations

import traceback
from typing import Any

_AWAITED = (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await"))


def stack_of(coroutine: Any) -> str:
    """Return the stack of a coroutine that is suspended, the innermost call last.

    A task knows its first frame alone: the others are found along what awaits what.
    """
    entries = []
    while coroutine is not None:
        for frame_of, awaited_of in _AWAITED:
            if (frame := getattr(coroutine, frame_of, None)) is not None:
                entries.append((frame, frame.f_lineno))
                coroutine = getattr(coroutine, awaited_of)
                break
        else:
            break
    return "".join(traceback.StackSummary.extract(iter(entries)).format())
