"""Does a client send, or take, fast enough?"""

from __future__ import annotations

from prefork.pace import Pace


def test_who_stands_still_for_the_whole_time_is_too_slow() -> None:
    pace = Pace(10, 0, now=100.0, moved=0)
    assert pace.look(104.0, 1) == 110.0
    assert pace.look(110.0, 1) == 114.0
    assert pace.look(114.0, 1) is None


def test_without_a_rate_any_progress_is_enough() -> None:
    pace = Pace(10, 0, now=0.0, moved=0)
    assert all(pace.look(float(now), now) is not None for now in range(1, 200, 9))


def test_who_creeps_is_too_slow_at_the_end_of_the_time() -> None:
    pace = Pace(10, 5, now=0.0, moved=0)
    assert all(pace.look(float(now), now) == 10.0 for now in range(1, 10))
    assert pace.look(10.0, 49) is None


def test_each_stretch_of_time_counts_for_itself() -> None:
    pace = Pace(10, 5, now=0.0, moved=0)
    assert pace.look(9.0, 1_000_000) == 10.0
    assert pace.look(10.0, 1_000_000) == 19.0
    assert pace.look(18.0, 1_000_040) == 20.0
    assert pace.look(20.0, 1_000_049) is None


def test_what_was_moved_before_does_not_count() -> None:
    pace = Pace(10, 5, now=0.0, moved=-500)
    assert pace.look(10.0, -451) is None
    assert Pace(10, 5, now=0.0, moved=-500).look(10.0, -450) == 20.0
