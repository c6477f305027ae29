"""Where do the objects go that a worker makes?

Where there is room. A block that is free in a page of its parent's objects costs a worker a copy of the whole page, and
each of its first objects would cost one. So the parent fills such holes before it forks: what workers make then goes to
pages of their own, one object beside the other.
"""

from __future__ import annotations

import sys

# Of CPython's allocator: pools of blocks of one size, up to 512 bytes; what is larger the C library gives.
_POOL, _POOL_HEADER, _SMALL = 16384, 48, 512
_ALIGNMENT = 16
_LARGEST = 4096
_MALLOC_HEADER = 8
_EMPTY = sys.getsizeof(b"")
_MOST = 16 * 1024 * 1024
"""So many bytes of filler mean that this is another allocator."""


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
