"""Whose time is up, and what does it cost to know?"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, strategies as st

from prefork.deadlines import Deadlines

NEVER = float("inf")


@dataclass(eq=False)
class Thing:
    deadline: float
    listed: float = NEVER


def test_a_deadline_that_moves_back_is_looked_at_again_and_one_that_moves_forward_counts() -> None:
    deadlines: Deadlines[Thing] = Deadlines()
    thing = Thing(10.0)
    deadlines.watch(thing)
    thing.deadline = 20.0
    deadlines.watch(thing)
    assert deadlines.next == 10.0
    assert deadlines.expired(10.0) == []
    assert deadlines.next == 20.0
    thing.deadline = 15.0
    deadlines.watch(thing)
    assert deadlines.expired(15.0) == [thing]
    assert deadlines.expired(100.0) == []
    assert deadlines.next is None


def test_what_is_gone_costs_no_memory_however_far_its_deadline() -> None:
    deadlines: Deadlines[Thing] = Deadlines()
    staying = Thing(50.0)
    deadlines.watch(staying)
    for number in range(10_000):
        thing = Thing(1000.0 + number)
        deadlines.watch(thing)
        deadlines.drop(thing)
        assert len(deadlines) < 200
    assert deadlines.expired(60.0) == [staying]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["move", "drop", "pass"]), st.integers(1, 50)), max_size=300)
)
def test_each_comes_up_by_its_deadline_and_none_that_is_gone(steps: list[tuple[int, str, int]]) -> None:
    now = 0.0
    deadlines: Deadlines[Thing] = Deadlines()
    things: dict[int, Thing] = {}
    for key, what, amount in steps:
        if what == "move":
            thing = things.setdefault(key, Thing(NEVER))
            thing.deadline = now + amount
            deadlines.watch(thing)
        elif what == "drop" and key in things:
            deadlines.drop(things.pop(key))
        elif what == "pass":
            now += amount
            late = {id(thing) for thing in deadlines.expired(now)}
            assert late == {id(thing) for thing in things.values() if thing.deadline <= now}
            things = {name: thing for name, thing in things.items() if thing.deadline > now}
