"""When is a worker's silence long enough?"""

from __future__ import annotations

import math

from hypothesis import given, strategies as st

from prefork.heartbeat import AWAY_S, BUSY_S, IDLE_S, PINGS, Heartbeat


class Watch:
    """A parent that looks when it is time, and a worker that answers, or does not."""

    def __init__(self, timeout: float = 60.0) -> None:
        self.heart = Heartbeat(timeout)
        self.now, self.beat, self.looks = 1000.0, 0.0, 0
        self.heart.begin(self.now)

    def look(self, *, late: float = 0.0, served: int = 0, serving: bool = False, answers: bool = True) -> float:
        self.now = max(self.now, self.heart.look_at) + late
        self.looks += 1
        self.heart.look(self.now)
        silence = self.heart.hear(self.beat, served, serving=serving, at=self.now)
        if answers:
            self.beat = self.now + 0.001
        return silence

    @property
    def interval(self) -> float:
        return self.heart.look_at - self.now


def test_who_has_no_limit_is_never_looked_at() -> None:
    heart = Heartbeat(0.0)
    heart.begin(5.0)
    assert heart.look_at == math.inf


def test_who_answers_is_never_silent() -> None:
    watch = Watch()
    assert not any(watch.look(served=n) for n in range(100))


def test_the_idle_are_looked_at_less_often_than_the_busy() -> None:
    watch = Watch()
    watch.look(served=1)
    assert watch.interval == BUSY_S
    watch.look(served=1)
    assert watch.interval == IDLE_S
    watch.look(served=1, serving=True)
    assert watch.interval == BUSY_S


def test_who_does_not_answer_is_looked_at_often_and_silent_after_the_timeout() -> None:
    watch = Watch(timeout=60.0)
    watch.look(answers=False)
    asked = watch.now
    while not (silence := watch.look(answers=False)):
        assert watch.interval == BUSY_S
        assert watch.now < asked + 60.0
    assert silence == watch.now - asked == 60.0


def test_one_ping_without_an_answer_never_counts_however_long_ago() -> None:
    watch = Watch(timeout=0.1)
    watch.look(answers=False)
    assert watch.look(late=AWAY_S / 2, answers=False) == 0.0
    assert watch.heart.unanswered == PINGS - 1
    assert watch.look(answers=False) > 0.1


def test_a_late_answer_is_an_answer() -> None:
    watch = Watch()
    watch.look(answers=False)
    watch.look(answers=True)
    assert watch.look() == 0.0
    assert watch.heart.unanswered == 0


def test_who_looks_after_having_been_away_itself_begins_anew() -> None:
    watch = Watch(timeout=60.0)
    for _ in range(5):
        watch.look(answers=False)
    assert watch.look(late=3600.0, answers=False) == 0.0
    assert watch.look(answers=False) == 0.0
    silences = [watch.look(answers=False) for _ in range(12)]
    assert silences[-1] >= 60.0


def test_who_says_that_it_leaves_is_not_waited_for() -> None:
    watch = Watch(timeout=1.0)
    watch.look()
    watch.beat = math.inf
    assert not any(watch.look(answers=False) for _ in range(100))


@given(st.floats(0.1, 600.0), st.lists(st.booleans(), max_size=60))
def test_silence_needs_the_whole_timeout_and_two_pings_since_the_last_answer(
    timeout: float, answers: list[bool]
) -> None:
    watch = Watch(timeout)
    unanswered, since = 0, math.inf
    for answered in [True, *answers]:
        silence = watch.look(answers=answered)
        if silence:
            assert unanswered > PINGS
            assert watch.now - since >= timeout
        if answered:
            unanswered, since = 0, math.inf
        else:
            unanswered, since = unanswered + 1, min(since, watch.now)
