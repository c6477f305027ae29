"""Is a thread that stays with a request away, or at work?"""

from __future__ import annotations

import pytest

from prefork.wsgi.effort import ENOUGH, Effort

TICK = 0.002


def seen(*looks: float) -> list[bool]:
    """Return what is said at each look at the CPU time of a thread that has just come to a request, having used 1 s."""
    effort = Effort(TICK)
    effort.look(1.0, anew=True)
    return [effort.look(1.0 + used, anew=False) for used in looks]


def test_a_thread_that_computes_is_at_work() -> None:
    assert seen(0.002, 0.004, 0.0059) == [True, True, True]


def test_a_thread_that_waits_is_away() -> None:
    assert seen(0.0, 0.0001) == [False, False]


def test_a_thread_that_begins_to_wait_is_away_from_then_on() -> None:
    assert seen(0.002, 0.0021) == [True, False]


def test_a_thread_that_computes_for_long_is_as_good_as_away() -> None:
    assert seen(ENOUGH - 0.001, ENOUGH) == [True, False]


@pytest.mark.parametrize("used", [1.002, 2.0, 0.5], ids=["the same thread", "another thread", "a younger thread"])
def test_of_a_request_that_has_just_begun_nothing_is_known(used: float) -> None:
    effort = Effort(TICK)
    effort.look(1.0, anew=True)
    assert not effort.look(used, anew=True)


def test_each_request_may_compute_as_long_as_the_one_before() -> None:
    effort = Effort(TICK)
    effort.look(0.0, anew=True)
    assert effort.look(0.009, anew=False)
    effort.look(0.010, anew=True)
    assert effort.look(0.019, anew=False)
