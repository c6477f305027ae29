"""How does a worker get by with few pages of its own?

Whatever it writes costs it a copy of the page, 2 µs and 4 KiB: also a new object where there was room in a page of its
parent, and the count of an object's owners. So the parent leaves no room, and lets go of what would be counted down.
"""

from __future__ import annotations

import gc
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of CPython's allocator: pools of blocks of one size, up to 512 bytes; what is larger the C library gives.
_POOL, _POOL_HEADER, _SMALL = 16384, 48, 512
_ALIGNMENT = 16
_LARGEST = 4096
_MALLOC_HEADER = 8
_EMPTY = sys.getsizeof(b"")
_MOST = 16 * 1024 * 1024
"""So many bytes of filler mean that this is another allocator."""
_SELDOM = (100_000, 10, 10)
"""How many objects are made before the first look, and how many looks before one at those that have survived some."""


@contextmanager
def collecting_seldom() -> Iterator[None]:
    """Let the garbage collector look seldom for the length of a block.

    What a program makes while it is imported is there to stay, and to look at all of it again and again takes a tenth of
    the time. Who sets thresholds of his own in the block keeps them.
    """
    before = gc.get_threshold()
    gc.set_threshold(*_SELDOM)
    try:
        yield
    finally:
        if gc.get_threshold() == _SELDOM:
            gc.set_threshold(*before)


def forget_lookups() -> None:
    """Empty the interpreter's cache of attributes of classes.

    After an import it is full of names that nobody asks for again, and each one that makes room for another is counted
    down, in its page. From Python 3.12 on names are not counted.
    """
    if sys.version_info < (3, 12):
        sys._clear_type_cache()  # noqa: SLF001 - the only way, and documented


def fill_holes() -> list[bytes]:
    """Return objects that lie in the holes, to be kept for as long as there are forks.

    That takes 3 ms, and no memory: the holes were there. Of another allocator than CPython's own nothing is known, and
    nothing is filled.
    """
    if sys.implementation.name != "cpython" or not sys.getallocatedblocks():
        return []
    filler: list[bytes] = []
    filled = 0
    for size in range(_LARGEST, _EMPTY + _ALIGNMENT - 1, -_ALIGNMENT):
        length = size - _EMPTY - (_MALLOC_HEADER if size > _SMALL else 0)
        enough = (_POOL - _POOL_HEADER) // size
        run: list[bytes] = []
        place = -1
        # So many blocks in one place, and in a row, are no hole: they are let go of.
        while len(run) < enough:
            block = bytes(length)
            if id(block) // _POOL != place:
                filler += run
                filled += len(run) * size
                if filled > _MOST:
                    return []
                run, place = [], id(block) // _POOL
            run.append(block)
    return filler
