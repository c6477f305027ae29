"""What is an immutable value, at a tenth of the price of a frozen dataclass?"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, dataclass_transform

if TYPE_CHECKING:
    from collections.abc import Mapping

NOTHING: Mapping[str, Any] = MappingProxyType({})
"""What a field is by default that is a mapping."""


@dataclass_transform(frozen_default=True)
class Value:
    """Is what its fields are: two of one class whose fields are equal are equal, and none changes.

    Written, matched and checked by mypy like a frozen dataclass. The methods of those are compiled anew at each start, and
    there are so many events, actions and reports that this was a tenth of our own part of it.
    """

    __match_args__: tuple[str, ...] = ()

    def __init_subclass__(cls) -> None:
        cls.__match_args__ = tuple(cls.__annotations__)  # type: ignore[misc]  # of a dataclass it would be made by itself

    def __init__(self, *values: Any, **named: Any) -> None:
        names = self.__match_args__
        given = {**dict(zip(names, values, strict=False)), **named}
        lacking = [name for name in names if name not in given and not hasattr(type(self), name)]
        if lacking or len(given) != len(values) + len(named) or not given.keys() <= set(names):
            raise TypeError(f"{type(self).__name__} has the fields {', '.join(names) or '(none)'}")
        self.__dict__.update(given)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} of a {type(self).__name__} does not change")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name} of a {type(self).__name__} does not change")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and fields_of(self) == fields_of(other)

    def __hash__(self) -> int:
        return hash((type(self), *fields_of(self).values()))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in fields_of(self).items())
        return f"{type(self).__name__}({shown})"


def fields_of(value: Any) -> dict[str, Any]:
    """Return the fields of a value, in their order."""
    return {name: getattr(value, name) for name in value.__match_args__}
