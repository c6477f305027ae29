"""When is a loop asked for a sign of life, and when is its silence told of?"""

from __future__ import annotations

import math

from prefork.asgi.loop_watch import Look, LoopWatch


def test_a_request_that_is_answered_at_once_wakes_nobody_twice() -> None:
    watch = LoopWatch(1.0)
    assert watch.look(0.0, turned=False, busy=True) == Look(0.5)
    assert watch.look(0.5, turned=False, busy=False) == Look(math.inf)
    assert watch.look(9.0, turned=False, busy=True) == Look(0.5)


def test_a_loop_at_work_is_asked_twice_as_often_as_it_has_to_answer() -> None:
    watch = LoopWatch(1.0)
    watch.look(0.0, turned=False, busy=True)
    assert watch.look(0.5, turned=False, busy=True) == Look(0.5, ask=True)
    assert watch.look(1.0, turned=True, busy=True) == Look(0.5, ask=True)
    assert watch.look(1.5, turned=True, busy=False) == Look(math.inf)


def test_a_silence_is_told_of_once_and_the_next_one_again() -> None:
    watch = LoopWatch(1.0)
    watch.look(0.0, turned=False, busy=True)
    for start in (10.0, 20.0):
        assert watch.look(start, turned=True, busy=True).ask
        assert watch.look(start + 0.5, turned=False, busy=True) == Look(0.5)
        assert watch.look(start + 1.0, turned=False, busy=True) == Look(1.0, silent=1.0)
        assert watch.look(start + 2.0, turned=False, busy=True) == Look(1.0)
