"""What becomes of a log that nobody reads?"""

from __future__ import annotations

import fcntl
import os
import socket
from typing import TYPE_CHECKING

import pytest

from prefork.records import pipe as module
from prefork.records.pipe import Pipe, pipe_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LINE = b"x" * 999 + b"\n"


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.0)
    monkeypatch.setattr(module, "IMPATIENCE_S", 0.0)


@pytest.fixture(params=["pipe", "socket"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """Return what is read and what is written, as a program inherits it: it blocks."""
    if request.param == "pipe":
        found = os.pipe()
        fcntl.fcntl(found[1], fcntl.F_SETPIPE_SZ, 4096)
    else:
        found = tuple(end.detach() for end in socket.socketpair())  # type: ignore[assignment]  # two of them
    yield found
    for end in found:
        os.close(end)


def fill(pipe: Pipe) -> int:
    """Write lines until one does not get through; return how many did."""
    for count in range(10_000):
        pipe.write(LINE)
        if pipe._lost:
            return count
    raise AssertionError("it is never full")


def read_all(end: int) -> bytes:
    os.set_blocking(end, False)
    said = b""
    try:
        while piece := os.read(end, 1 << 20):
            said += piece
    except BlockingIOError:
        pass
    return said


def test_who_writes_does_not_wait_and_what_is_lost_is_counted(ends: tuple[int, int]) -> None:
    there, here = ends
    pipe = Pipe(here, owned=False)
    kept = fill(pipe)
    pipe.write(LINE * 2)
    assert pipe.take_lost() == 0  # there is no room to tell of it
    assert read_all(there) == LINE * kept
    pipe.write(b"tea\n")
    assert pipe.take_lost() == 3
    assert pipe.take_lost() == 0
    assert read_all(there) == b"tea\n"
    pipe.close()


def test_what_others_have_inherited_blocks_as_before(ends: tuple[int, int]) -> None:
    pipe = Pipe(ends[1], owned=False)
    assert os.get_blocking(ends[1])
    pipe.close()
    os.fstat(ends[1])


def test_a_line_that_went_out_in_part_is_ended_before_the_next() -> None:
    there, here = os.pipe()
    fcntl.fcntl(here, fcntl.F_SETPIPE_SZ, 4096)
    pipe = Pipe(here, owned=True)
    pipe.write(b"x" * 10_000 + b"\n")
    assert read_all(there) == b"x" * 4096
    pipe.write(b"tea\n")
    assert read_all(there) == b"\ntea\n"
    assert pipe.take_lost() == 1
    pipe.close()
    os.close(there)


def test_one_that_cannot_be_opened_anew_is_looked_at_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr("prefork.records.pipe.os.open", refuse)
    there, here = os.pipe()
    fcntl.fcntl(here, fcntl.F_SETPIPE_SZ, 4096)
    pipe = Pipe(here, owned=False)
    kept = fill(pipe)
    assert read_all(there) == LINE * kept
    pipe.write(b"tea\n")
    assert pipe.take_lost() == 1
    for end in (there, here):
        os.close(end)


def test_a_reader_who_is_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Poll:
        """A reader who begins to read when he is waited for."""

        def register(self, *_: int) -> None:
            pass

        def poll(self, _: float) -> list[bytes]:
            read.append(os.read(there, 4096))
            return [b""]

    there, here = os.pipe()
    fcntl.fcntl(here, fcntl.F_SETPIPE_SZ, 4096)
    read: list[bytes] = []
    monkeypatch.setattr("prefork.records.pipe.select.poll", Poll)
    pipe = Pipe(here, owned=True)
    for _ in range(10):
        pipe.write(LINE)
    assert b"".join([*read, read_all(there)]) == LINE * 10
    assert pipe.take_lost() == 0
    pipe.close()
    os.close(there)


def test_a_file_and_what_is_closed_is_no_pipe(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        assert pipe_of(file.fileno()) is None
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    assert pipe_of(writer) is None
