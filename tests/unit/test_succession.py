"""Does a generation of Server::Starter go in the right way, and give its exchange to the right one?"""

from __future__ import annotations

import math
import os
import select
import socket
import threading
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from prefork.handover import Exchange, Ticket
from prefork.succession import ABSENCE_S, HOPE_S, LOOK_S, Door, Predecessor, Succession, address_of, has_younger_sibling
from prefork.supervisor import SignalReceived, Superseded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TERM, QUIT, INT, HUP = (SignalReceived(name) for name in ("TERM", "QUIT", "INT", "HUP"))
GONE_FOR = [Superseded(None, starter_generation=7)]


def succession_of(*expected: bool) -> Succession:
    """One for which ``expected`` are the answers to whether a generation is to come, then ``False``."""
    answers = iter(expected)
    return Succession(lambda: next(answers, False))


@pytest.mark.parametrize("signal", [TERM, QUIT, INT, HUP])
def test_without_a_next_generation_a_signal_means_what_it_says(signal: SignalReceived) -> None:
    succession = succession_of()
    assert succession.told(signal, 1.0) == [signal]
    assert succession.next_deadline == math.inf


@pytest.mark.parametrize("signal", [TERM, QUIT])
def test_who_is_asked_to_go_leaves_its_clients_to_the_one_that_serves(signal: SignalReceived) -> None:
    succession = succession_of()
    succession.came()
    assert succession.serves(7) == []
    assert succession.told(signal, 1.0) == GONE_FOR


@pytest.mark.parametrize("signal", [INT, HUP])
def test_other_signals_are_not_for_the_next_generation(signal: SignalReceived) -> None:
    succession = succession_of()
    succession.came()
    succession.serves(7)
    assert succession.told(signal, 1.0) == [signal]


def test_who_is_asked_to_go_too_early_waits_until_the_next_one_serves() -> None:
    succession = succession_of()
    succession.came()
    assert succession.told(TERM, 1.0) == []
    assert succession.next_deadline == 1.0 + LOOK_S
    assert succession.told(TERM, 1.1) == []
    for look in range(200):
        assert succession.due(2.0 + look) == []
    assert succession.serves(7) == GONE_FOR
    assert succession.next_deadline == math.inf


def test_it_waits_for_one_that_has_only_been_started() -> None:
    succession = succession_of(True, True)
    assert succession.told(TERM, 1.0) == []
    assert succession.due(1.0 + LOOK_S / 2) == []
    assert succession.due(1.0 + LOOK_S) == []
    succession.came()
    assert succession.due(1.0 + 2 * LOOK_S) == []
    assert succession.serves(7) == GONE_FOR


def test_one_that_fails_is_waited_for_until_it_is_started_again() -> None:
    succession = succession_of(False, False, True, True)
    succession.came()
    assert succession.told(TERM, 1.0) == []
    assert succession.due(2.0) == []
    assert succession.lost() == []
    assert succession.due(4.0) == []
    assert succession.due(6.9) == []
    assert succession.due(7.5) == []  # here it is expected again
    assert succession.due(12.4) == []
    succession.came()
    assert succession.serves(7) == GONE_FOR


@pytest.mark.parametrize("signal", [TERM, QUIT])
def test_it_stops_once_nobody_has_been_there_for_a_while(signal: SignalReceived) -> None:
    succession = succession_of()
    succession.came()
    assert succession.told(signal, 1.0) == []
    assert succession.due(2.0) == []
    assert succession.lost() == []
    assert succession.due(2.0 + ABSENCE_S - LOOK_S) == []
    assert succession.due(2.0 + ABSENCE_S) == [signal]
    assert succession.next_deadline == math.inf
    assert succession.due(60.0) == []


def test_a_next_generation_that_fails_changes_nothing() -> None:
    succession = succession_of()
    succession.came()
    assert succession.lost() == []
    assert succession.told(TERM, 1.0) == [TERM]


def test_one_that_comes_in_the_place_of_a_failed_one_has_to_serve_itself() -> None:
    succession = succession_of()
    succession.came()
    succession.serves(6)
    succession.came()
    assert succession.told(TERM, 1.0) == []
    assert succession.serves(7) == GONE_FOR


def test_clients_that_were_left_to_a_generation_that_dies_are_looked_after_again() -> None:
    succession = succession_of()
    succession.came()
    succession.serves(7)
    assert succession.told(TERM, 1.0) == GONE_FOR
    assert succession.told(TERM, 2.0) == [TERM]
    assert succession.lost() == [TERM]


# Two of them in one process, at a real address.


@dataclass
class Listening:
    """As much of a listener as counts here."""

    socket: socket.socket


@pytest.fixture
def listeners() -> Iterator[Any]:
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        yield [Listening(sock)]


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    opened = Exchange.open()
    if opened is None:
        pytest.skip("this system has no exchange")
    with opened:
        yield opened


def door_of(listeners: Any, generation: int, exchange: Exchange) -> Door:
    door = Door.open(address_of(listeners, generation), exchange, succession_of())
    assert door is not None
    return door


def look_for(listeners: Any, generation: int, door: Door) -> Predecessor | None:
    """Look for the generation before while somebody listens at the door."""
    found: list[Predecessor | None] = []
    thread = threading.Thread(target=lambda: found.append(Predecessor.find(listeners, generation)))
    thread.start()
    while thread.is_alive():
        door.hear()
        thread.join(0.001)
    return found[0]


def test_the_next_generation_gets_the_exchange_and_is_heard(listeners: Any, exchange: Exchange) -> None:
    with closing(door_of(listeners, 4, exchange)) as door:
        found = look_for(listeners, 7, door)  # 5 and 6 have failed
        assert found is not None
        with closing(found):
            assert found.exchange.send(Ticket("http", "h", "80", None, 1.0, 0), listeners[0].socket.fileno())
            taken = exchange.take()
            assert taken is not None
            os.close(taken[1] or -1)
            found.tell_serving()
            assert door.hear() == []
            assert door.succession.told(TERM, 1.0) == GONE_FOR
        assert door.hear() == [TERM]  # it is gone
        assert door.hear() == []


def test_another_user_gets_nothing(listeners: Any, exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(door_of(listeners, 1, exchange)) as door:
        monkeypatch.setattr(os, "geteuid", lambda: 4242)
        assert look_for(listeners, 2, door) is None
        assert door.succession.told(TERM, 1.0) == [TERM]


def test_nobody_comes_in_once_the_door_is_shut(listeners: Any, exchange: Exchange) -> None:
    with closing(door_of(listeners, 1, exchange)) as door:
        assert Door.open(address_of(listeners, 1), exchange, succession_of()) is None
        door.shut()
        assert look_for(listeners, 2, door) is None
        assert door.descriptors == {door.fileno()}


def test_a_generation_that_comes_later_takes_the_place_of_an_earlier_one(listeners: Any, exchange: Exchange) -> None:
    with closing(door_of(listeners, 1, exchange)) as door:
        first, second = look_for(listeners, 2, door), look_for(listeners, 7, door)
        assert first is not None
        assert second is not None
        with closing(second):
            first.tell_serving()
            first.close()
            assert door.hear() == []
            second.tell_serving()
            door.hear()
            assert len(door.descriptors) == 3
            assert door.succession.told(TERM, 1.0) == GONE_FOR


@pytest.mark.parametrize(
    ("births", "expected"),
    [
        pytest.param({20: 500}, False, id="alone"),
        pytest.param({20: 500, 21: 400}, False, id="beside an older one, such as who writes the log"),
        pytest.param({20: 500, 19: 600}, True, id="beside a younger one"),
    ],
)
def test_who_was_started_later_by_the_same_process_is_the_next_generation(
    births: dict[int, int], expected: bool, tmp_path: Path
) -> None:
    for pid, born in births.items():
        (tmp_path / str(pid)).mkdir()
        fields = ["S", "10", *("0" for _ in range(17)), str(born), "0"]
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a ) b) {' '.join(fields)}\n")
    children = tmp_path / "10/task/10/children"
    children.parent.mkdir(parents=True)
    children.write_text(" ".join(map(str, births)))
    assert has_younger_sibling(20, 4, tmp_path) is expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param(b"A=1\0SERVER_STARTER_GENERATION=5\0B=\0", True, id="the next generation"),
        pytest.param(b"SERVER_STARTER_GENERATION=4\0", False, id="left behind by our own"),
        pytest.param(b"SERVER_STARTER_GENERATION=3\0", False, id="left behind by an older one"),
        pytest.param(b"A=1\0", False, id="an orphan of somebody's, for start_server is process 1"),
        pytest.param(b"SERVER_STARTER_GENERATION=x\0", False, id="nonsense"),
    ],
)
def test_a_younger_sibling_is_a_next_generation_only_if_start_server_has_told_it_so(
    environ: bytes, expected: bool, tmp_path: Path
) -> None:
    for pid, born in ((20, 500), (21, 600)):
        (tmp_path / str(pid)).mkdir()
        fields = ["S", "10", *("0" for _ in range(17)), str(born), "0"]
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a) {' '.join(fields)}\n")
    (tmp_path / "21/environ").write_bytes(environ)
    children = tmp_path / "10/task/10/children"
    children.parent.mkdir(parents=True)
    children.write_text("20 21")
    assert has_younger_sibling(20, 4, tmp_path) is expected


def test_one_that_is_expected_and_never_comes_is_not_waited_for_without_end() -> None:
    succession = Succession(lambda: True)
    assert succession.told(TERM, 1.0) == []
    assert succession.due(HOPE_S) == []
    succession.came()
    assert succession.due(100.0) == []
    assert succession.lost() == []
    assert succession.due(99.0 + HOPE_S) == []
    assert succession.due(100.0 + HOPE_S + ABSENCE_S) == [TERM]


def test_where_the_system_does_not_tell_there_is_no_next_generation(tmp_path: Path) -> None:
    assert not has_younger_sibling(20, 4, tmp_path)


def test_the_end_of_a_line_is_heard_once_although_a_child_has_it_open_still(listeners: Any, exchange: Exchange) -> None:
    with closing(door_of(listeners, 1, exchange)) as door:
        alone = door.descriptors
        found = look_for(listeners, 2, door)
        assert found is not None
        (line,) = door.descriptors - alone
        child = os.dup(line)
        found.close()
        assert door.hear() == []
        assert door.descriptors == alone
        assert not select.select([door], [], [], 0)[0]
        assert door.hear() == []
        assert door.succession.told(TERM, 1.0) == [TERM]
        os.close(child)


def test_a_door_that_a_child_has_open_still_is_shut(listeners: Any, exchange: Exchange) -> None:
    with (
        closing(door_of(listeners, 1, exchange)) as door,
        closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as late,
    ):
        (waiting,) = door.descriptors - {door.fileno()}
        child = os.dup(waiting)
        door.shut()
        late.connect(address_of(listeners, 1))
        assert not select.select([door], [], [], 0)[0]
        os.close(child)


def test_who_comes_in_while_another_goes_is_heard(listeners: Any, exchange: Exchange) -> None:
    with closing(door_of(listeners, 1, exchange)) as door:
        (waiting,) = door.descriptors - {door.fileno()}
        first = look_for(listeners, 2, door)
        assert first is not None
        first.close()
        found: list[Predecessor | None] = []
        thread = threading.Thread(target=lambda: found.append(Predecessor.find(listeners, 7)))
        thread.start()
        assert select.select([waiting], [], [], 20)[0]
        assert door.hear() == []
        thread.join()
        assert found[0] is not None
        with closing(found[0]) as second:
            second.tell_serving()
            door.hear()
            assert door.succession.told(TERM, 1.0) == GONE_FOR
