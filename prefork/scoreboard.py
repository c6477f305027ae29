"""What does each worker do just now, and what has a dead one left undone?

A piece of memory that the parent makes before the first fork and shares with all workers: a row for each place, with one
writer, the worker that has it. What a worker wrote last is there however it died.

Nothing is locked. What a kill may cut in two, the entry of a request, counts only once its last byte is written.
"""

from __future__ import annotations

import mmap
from struct import Struct

from prefork.values import Value

_HEADER, _BEAT, _CONNECTIONS = Struct("=dQ"), Struct("=d"), Struct("=Q")
_HEADER_SIZE = 64  # a row begins where a line of the processors' caches begins: neighbours do not slow each other down
_CELL = Struct("=dQ239pB")
_SPARE_ROWS = 32

IDLE = 1
_IDLE = bytes([IDLE])
BUSY = _CELL.size - 1
"""Where in a cell stands whether a request is being served."""

HELD = _BEAT.size
hold = _CONNECTIONS.pack_into
"""Note how many connections the worker holds: ``hold(row.memory, HELD, connections)``."""

mark = _CELL.pack_into
"""Enter the n-th request: ``mark(row.memory, cell, now, n, first line, 1)``; ``row.memory[cell + BUSY] = 0`` takes it out.

Both are as cheap as they can be, for each request pays for them. The last byte is written last, and the first line is
cut to what there is room for.
"""


class InFlight(Value):
    """A request that is being served, ``since`` a time of the monotonic clock."""

    method: str
    path: str
    since: float


class Reading(Value):
    """What a row says: when the worker last answered the parent, what it holds, how many it took on and what it serves."""

    beat: float
    connections: int
    served: int
    requests: tuple[InFlight, ...]


class Idlers:
    """Which workers have nothing to do: a byte for each place, ``IDLE`` or 0, which its worker sets itself."""

    __slots__ = ("_find", "_start", "memory")

    def __init__(self, memory: bytearray | mmap.mmap, start: int = 0) -> None:
        self.memory = memory
        self._find = memory.find
        self._start = start

    def place(self, number: int) -> int:
        """Return where in ``memory`` the byte of a worker stands."""
        return self._start + number

    def any(self) -> bool:
        """Whether somebody is idle."""
        return self._find(_IDLE, self._start) >= 0


class Row:
    """The row of one worker, ``shared`` between the processes. ``cells`` are its places for requests.

    Whether it is idle stands in ``idlers.memory[place]``.
    """

    __slots__ = ("_count", "idlers", "memory", "place", "shared")

    def __init__(
        self, memory: memoryview, cells: int, idlers: Idlers | None = None, number: int = 0, *, shared: bool = True
    ) -> None:
        self.memory = memory
        self.shared = shared
        self._count = cells
        self.idlers = Idlers(bytearray(1)) if idlers is None else idlers
        self.place = self.idlers.place(number)

    @classmethod
    def alone(cls, cells: int) -> Row:
        """Return a row that nobody else can read."""
        return cls(memoryview(bytearray(_size(cells))), cells, shared=False)

    @property
    def cells(self) -> list[int]:
        """Where each of the cells begins."""
        return [_HEADER_SIZE + _CELL.size * place for place in range(self._count)]

    def clear(self) -> None:
        """Forget who had the row before."""
        self.memory[:] = bytes(len(self.memory))
        self.idlers.memory[self.place] = 0

    def beat(self, now: float) -> None:
        """Answer the parent."""
        _BEAT.pack_into(self.memory, 0, now)

    def read(self) -> Reading:
        """Return what the row says; of a worker that goes on writing, some moment of it."""
        copy = bytes(self.memory)
        requests, served = [], 0
        for cell in self.cells:
            since, number, octets, busy = _CELL.unpack_from(copy, cell)
            served = max(served, number)
            if busy:
                requests.append(InFlight(*_method_and_path(octets), since))
        beat, connections = _HEADER.unpack_from(copy)
        return Reading(beat, connections, served, tuple(requests))


class Scoreboard:
    """The rows of all workers that there may be at a time: present ones, their successors, and those that linger."""

    def __init__(self, workers: int, cells: int) -> None:
        self._rows = 4 * workers + _SPARE_ROWS
        self._count = cells
        # Memory that is never touched costs nothing. What each worker says of itself comes first, what all look at last.
        memory = mmap.mmap(-1, self._rows * (_size(cells) + 1))
        self._idlers = Idlers(memory, self._rows * _size(cells))
        self._memory = memoryview(memory)

    def row(self, number: int) -> Row:
        """Return the row of the worker at this place; beyond all expectation it has one, but nobody can read it."""
        if number >= self._rows:
            return Row.alone(self._count)
        size = _size(self._count)
        return Row(self._memory[number * size : (number + 1) * size], self._count, self._idlers, number)


def _size(cells: int) -> int:
    return _HEADER_SIZE + _CELL.size * cells


def _method_and_path(octets: bytes) -> tuple[str, str]:
    """Take a request's first line apart, which may have been cut anywhere."""
    method, _, rest = octets.decode("latin-1").partition(" ")
    target = rest.partition(" ")[0].partition("?")[0]
    if not target.startswith("/") and "://" in target:
        target = "/" + target.partition("://")[2].partition("/")[2]
    return method, target
