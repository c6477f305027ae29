"""Where does a request's body wait, and what if there is no room?"""

from __future__ import annotations

import resource
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from prefork.room import Room
from prefork.wsgi.body import MEMORY, SMALL, RequestBody

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Let no file of this process grow beyond what is kept in memory: Python ignores SIGXFSZ, so a write fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_small_body_stays_in_memory_and_is_read_from_its_start(tmp_path: Path) -> None:
    body = RequestBody(str(tmp_path / "missing"))  # a file there would be an error
    body.add(b"a" * (MEMORY - 1))
    body.add(b"b")
    assert body.file is None
    assert body.open().read() == b"a" * (MEMORY - 1) + b"b"
    body.close()


def test_a_long_body_goes_to_a_file_without_a_name_and_is_given_back(tmp_path: Path) -> None:
    body = RequestBody(str(tmp_path))
    body.add(b"a" * MEMORY)
    body.add(b"b\n")
    body.add(b"c\n")
    file = body.file
    assert file is not None
    assert list(tmp_path.iterdir()) == []
    assert body.size == MEMORY + 4
    assert body.open().read() == b"a" * MEMORY + b"b\nc\n"
    body.close()
    assert file.closed


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_told_of_by_the_piece_that_it_refuses_and_not_again(tmp_path: Path) -> None:
    body = RequestBody(str(tmp_path))
    body.add(b"a" * MEMORY)
    # Shorter than Python's buffer, which would keep it until somebody reads or closes.
    with pytest.raises(OSError, match="File too large"):
        body.add(b"b")
    file = body.file
    assert file is not None
    body.close()
    assert file.closed


def test_a_body_of_tiny_pieces_takes_up_little_more_than_its_size(tmp_path: Path) -> None:
    body = RequestBody(str(tmp_path / "missing"))
    tracemalloc.start()
    try:
        for _ in range(MEMORY // 2):
            body.add(bytes(bytearray(b"ab")))
        assert tracemalloc.get_traced_memory()[1] < 2 * MEMORY
    finally:
        tracemalloc.stop()
    assert body.open().read() == b"ab" * (MEMORY // 2)


def test_without_room_a_body_goes_to_a_file_unless_it_is_small(tmp_path: Path) -> None:
    room = Room(SMALL + 1)
    bodies = [RequestBody(str(tmp_path), room) for _ in range(3)]
    for body in bodies:
        body.add(b"a" * SMALL)
    bodies[0].add(b"b")
    bodies[1].add(b"b")
    assert [body.file is None for body in bodies] == [True, False, True]
    assert bodies[0].open().read() == bodies[1].open().read() == b"a" * SMALL + b"b"
    for body in bodies:
        body.close()
    assert room.take(SMALL + 1)
