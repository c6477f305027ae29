"""Is what a worker wrote last there to be read, and nothing else?"""

from __future__ import annotations

import os
import signal
from itertools import pairwise

import pytest

from prefork.scoreboard import BUSY, HELD, IDLE, InFlight, Reading, Row, Scoreboard, hold, mark


def entered(octets: bytes) -> tuple[str, str]:
    row = Row.alone(cells=1)
    mark(row.memory, row.cells[0], 1.0, 1, octets, 1)
    (request,) = row.read().requests
    return request.method, request.path


def test_a_new_row_says_nothing() -> None:
    assert Scoreboard(2, 4).row(0).read() == Reading(0.0, 0, 0, ())


def test_a_request_is_there_from_its_mark_until_its_last_byte_is_taken_away() -> None:
    row = Row.alone(cells=2)
    first, second = row.cells
    mark(row.memory, second, 7.5, 3, b"GET /a?b=c HTTP/1.1", 1)
    assert row.read().requests == (InFlight("GET", "/a", 7.5),)
    mark(row.memory, first, 8.5, 4, b"POST /d HTTP/1.1", 1)
    assert row.read().requests == (InFlight("POST", "/d", 8.5), InFlight("GET", "/a", 7.5))
    row.memory[second + BUSY] = 0
    assert row.read().requests == (InFlight("POST", "/d", 8.5),)


@pytest.mark.parametrize(
    ("octets", "read"),
    [
        pytest.param(b"GET /" + b"a" * 300 + b" HTTP/1.1", ("GET", "/" + "a" * 233), id="cut"),
        pytest.param(b"GET http://shop/a/b?c HTTP/1.1", ("GET", "/a/b"), id="absolute"),
        pytest.param(b"OPTIONS * HTTP/1.1", ("OPTIONS", "*"), id="asterisk"),
        pytest.param(b"GET /%E4\xe4 HTTP/1.1", ("GET", "/%E4\xe4"), id="octets"),
        pytest.param(b"PROPFI", ("PROPFI", ""), id="torn"),
        pytest.param(b"", ("", ""), id="empty"),
    ],
)
def test_method_and_path_are_read_from_the_first_line(octets: bytes, read: tuple[str, str]) -> None:
    assert entered(octets) == read


def test_an_entry_that_was_cut_in_two_does_not_count() -> None:
    row = Row.alone(cells=1)
    (cell,) = row.cells
    mark(row.memory, cell, 7.5, 3, b"GET /a HTTP/1.1", 1)
    whole = bytes(row.memory[cell : cell + BUSY + 1])
    for cut in range(len(whole)):
        row.clear()
        row.memory[cell : cell + cut] = whole[:cut]
        assert row.read().requests == ()


def test_the_last_request_tells_how_many_were_taken_on() -> None:
    row = Row.alone(cells=2)
    for number, cell in [(1, row.cells[0]), (2, row.cells[1]), (3, row.cells[0])]:
        mark(row.memory, cell, 1.0, number, b"GET / HTTP/1.1", 1)
        row.memory[cell + BUSY] = 0
    assert row.read() == Reading(0.0, 0, 3, ())


def test_counts_and_beats_stand_beside_each_other_until_the_row_is_cleared() -> None:
    row = Scoreboard(1, 1).row(3)
    row.beat(2.5)
    hold(row.memory, HELD, 3)
    row.beat(3.5)
    assert row.read() == Reading(3.5, 3, 0, ())
    row.clear()
    assert row.read() == Reading(0.0, 0, 0, ())


def test_rows_do_not_overlap_and_their_cells_neither() -> None:
    board = Scoreboard(2, 3)
    rows = [board.row(number) for number in range(8)]
    for number, row in enumerate(rows):
        row.beat(float(number))
        for cell in row.cells:
            mark(row.memory, cell, 1.0, 1, b"%d%b" % (number, b"x" * 400), 1)
    for number, row in enumerate(rows):
        assert row.read().beat == number
        assert [request.method[0] for request in row.read().requests] == [str(number)] * 3
    assert all(b - a > BUSY for a, b in pairwise(rows[0].cells))


def test_what_a_child_wrote_is_read_by_its_parent_after_its_death() -> None:
    row = Scoreboard(1, 1).row(0)
    pid = os.fork()
    if not pid:
        mark(row.memory, row.cells[0], 1.0, 1, b"GET /a HTTP/1.1", 1)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert row.read().requests == (InFlight("GET", "/a", 1.0),)


def test_a_worker_beyond_the_last_row_has_one_of_its_own() -> None:
    board = Scoreboard(1, 1)
    far = board.row(1000)
    far.beat(1.0)
    assert far.read().beat == 1.0
    assert board.row(1000).read().beat == 0.0


def test_all_rows_see_whether_somebody_is_idle_until_that_one_has_died() -> None:
    board = Scoreboard(2, 1)
    first, last = board.row(0), board.row(4 * 2 + 31)
    assert not first.idlers.any()
    last.idlers.memory[last.place] = IDLE
    assert first.idlers.any()
    assert not Row.alone(1).idlers.any()
    first.clear()
    assert first.idlers.any()
    last.clear()
    assert not first.idlers.any()
