"""Is a value what a frozen dataclass would be?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from prefork.values import NOTHING, Value

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
