"""Is a value what a frozen dataclass would be?"""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Any

import pytest

from prefork.values import NOTHING, Fields, Value, replace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Left(Value):
    worker: int
    why: str = "age"


class Went(Value):
    worker: int
    why: str = "age"


class Bare(Value):
    """Has no fields."""


class Told(Value):
    fields: Mapping[str, Any] = NOTHING


class Noted(Value, kw_only=True):
    worker: int
    seen: list[int] = field(default_factory=list)
    source: str = field(default="", compare=False)


class Counted(Fields):
    served: int = 0


class Named(Counted):
    name: str = "worker"


def test_values_are_equal_if_class_and_fields_are() -> None:
    assert Left(1) == Left(worker=1, why="age")
    assert hash(Left(1)) == hash(Left(1, "age"))
    assert Left(1) != Left(2)
    assert Left(1) != Went(1)
    assert Left(1) != (1, "age")
    assert Bare() == Bare()
    assert Told() == Told({})


def test_a_value_is_matched_by_position_and_shown_by_name() -> None:
    match Left(3):
        case Left(worker, why):
            assert (worker, why) == (3, "age")
        case _:
            pytest.fail("is matched by position")
    assert repr(Left(3)) == "Left(worker=3, why='age')"
    assert repr(Bare()) == "Bare()"


def test_a_value_does_not_change() -> None:
    value: Any = Left(1)
    with pytest.raises(AttributeError, match="worker of a Left does not change"):
        value.worker = 2
    with pytest.raises(AttributeError, match="does not change"):
        del value.worker
    assert value == Left(1)


@pytest.mark.parametrize(
    "make",
    [
        lambda made: made(),
        lambda made: made(1, "age", 2),
        lambda made: made(1, worker=2),
        lambda made: made(1, when=2),
    ],
)
def test_fields_that_lack_or_that_there_are_not_are_refused(make: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError, match="Left has the fields worker, why"):
        make(Left)


def test_a_default_is_made_anew_for_each_value() -> None:
    first, second = Noted(worker=1), Noted(worker=1)
    first.seen.append(2)
    assert (first.seen, second.seen) == ([2], [])


def test_a_field_may_be_left_out_of_the_comparison() -> None:
    assert Noted(worker=1, source="flag") == Noted(worker=1)
    assert Noted(worker=1, seen=[1]) != Noted(worker=1)


def test_a_copy_may_differ_in_some_fields() -> None:
    assert replace(Left(1, "flag"), worker=2) == Left(2, "flag")
    with pytest.raises(TypeError, match="has the fields"):
        replace(Left(1), when=2)


def test_fields_may_change_and_make_nobody_equal() -> None:
    counted = Named(3)
    counted.served += 1
    assert repr(counted) == "Named(served=4, name='worker')"
    assert counted != Named(4)
    assert len({counted, Named(4)}) == 2
