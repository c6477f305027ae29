"""Who was turned away, and how often is that recorded?"""

from __future__ import annotations

import math

from prefork.overload import TurnedAway


def is_pending(turned_away: TurnedAway) -> bool:
    return turned_away.pending


def test_each_one_is_told_once_and_at_most_once_a_second() -> None:
    turned_away = TurnedAway()
    assert not is_pending(turned_away)
    turned_away.count("late")
    assert is_pending(turned_away)
    assert turned_away.tell(100.0) == {"late": 1}
    assert not is_pending(turned_away)
    for _ in range(3):
        turned_away.count("late")
    turned_away.count("crowd")
    assert turned_away.tell(100.9) == {}
    assert is_pending(turned_away)
    assert turned_away.tell(101.0) == {"late": 3, "crowd": 1}
    assert turned_away.tell(102.0) == {}


def test_to_ask_for_the_rest_when_there_is_none_keeps_nothing_back_for_later() -> None:
    turned_away = TurnedAway()
    assert turned_away.tell(math.inf) == {}
    turned_away.count("late")
    assert turned_away.tell(100.0) == {"late": 1}
    turned_away.count("late")
    assert turned_away.tell(math.inf) == {"late": 1}
