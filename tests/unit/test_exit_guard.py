"""Does the exit guard keep a worker exactly as long as something is held?"""

from __future__ import annotations

import asyncio
import threading
from itertools import count

import pytest
from hypothesis import given, strategies as st

from prefork.exit_guard import ExitGuard


def test_a_new_guard_is_free() -> None:
    assert ExitGuard().free


def test_each_begin_needs_its_own_end() -> None:
    guard = ExitGuard()
    guard.begin()
    guard.begin()
    guard.end()
    assert not guard.free
    guard.end()
    assert guard.free


def test_end_without_begin_raises_and_changes_nothing() -> None:
    guard = ExitGuard()
    with pytest.raises(RuntimeError, match="without begin"):
        guard.end()
    assert guard.free


def test_end_never_ends_the_hold_of_a_block() -> None:
    guard = ExitGuard()
    with guard.hold("report"), pytest.raises(RuntimeError):
        guard.end()


def test_a_block_lets_go_when_it_raises() -> None:
    guard = ExitGuard()
    with pytest.raises(ZeroDivisionError), guard.hold():
        raise ZeroDivisionError
    assert guard.free


def test_holds_are_listed_by_age_with_their_reason() -> None:
    guard = ExitGuard(clock=count(10.0, 1.0).__next__)
    with guard.hold("mail"):
        guard.begin("index")
        with guard.hold():
            assert [(hold.why, hold.since) for hold in guard.holds] == [("mail", 10.0), ("index", 11.0), ("", 12.0)]


def test_on_free_is_told_once_for_each_time_the_guard_becomes_free() -> None:
    told: list[bool] = []
    guard = ExitGuard(on_free=lambda: told.append(guard.free))
    with guard.hold():
        guard.begin()
        guard.end()
    assert told == [True]
    guard.begin()
    guard.end()
    assert told == [True, True]


def test_async_code_may_hold_across_an_await() -> None:
    guard = ExitGuard()

    async def work() -> bool:
        with guard.hold("async"):
            await asyncio.sleep(0)
            return guard.free

    assert asyncio.run(work()) is False
    assert guard.free


def test_many_threads_leave_the_guard_free() -> None:
    told: list[int] = []
    guard = ExitGuard(on_free=lambda: told.append(1))

    def work() -> None:
        for _ in range(300):
            guard.begin()
            with guard.hold():
                pass
            guard.end()

    threads = [threading.Thread(target=work) for _ in range(8)]
    with guard.hold("until all are started"):
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join()
    assert guard.free
    assert told


@given(st.lists(st.booleans()))
def test_it_is_free_exactly_when_begins_and_ends_balance(steps: list[bool]) -> None:
    guard, depth = ExitGuard(), 0
    for begins in steps:
        if begins:
            guard.begin()
            depth += 1
        elif depth:
            guard.end()
            depth -= 1
        else:
            with pytest.raises(RuntimeError):
                guard.end()
        assert guard.free is (depth == 0)
