"""What has named fields, at a tenth of the price of a dataclass?

The methods of a dataclass are compiled anew at each start of Python, half a millisecond for each class: all of ours were
a quarter of our own part of a start. These share theirs, which are slower: what is made for each request, or for each
connection, is a dataclass, or a ``NamedTuple`` if it does not change.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, dataclass_transform

if TYPE_CHECKING:
    from collections.abc import Mapping

    T = TypeVar("T", bound="_Named")

NOTHING: Mapping[str, Any] = MappingProxyType({})
"""What a field is by default that is a mapping."""


class _Named:
    """What all have in common."""

    __match_args__: tuple[str, ...] = ()
    declared: ClassVar[Mapping[str, Field[Any]]] = {}
    """What was given as ``field()``."""

    def __init_subclass__(cls, *, kw_only: bool = False) -> None:
        own = cls.__annotations__
        cls.__match_args__ = (*cls.__match_args__, *own)  # type: ignore[misc]  # of a dataclass it would be made by itself
        declared = {name: given for name in own if isinstance(given := cls.__dict__.get(name), Field)}
        for name, given in declared.items():
            if given.default is MISSING:
                delattr(cls, name)
            else:
                setattr(cls, name, given.default)
        cls.declared = {**cls.declared, **declared}

    def __init__(self, *values: Any, **named: Any) -> None:
        names = self.__match_args__
        given = {**dict(zip(names, values, strict=False)), **named}
        for name, declared in self.declared.items():
            if name not in given and declared.default_factory is not MISSING:
                given[name] = declared.default_factory()
        lacking = [name for name in names if name not in given and not hasattr(type(self), name)]
        if lacking or len(given) < len(values) + len(named) or not given.keys() <= set(names):
            raise TypeError(f"{type(self).__name__} has the fields {', '.join(names) or '(none)'}")
        self.__dict__.update(given)
        self.__post_init__()

    def __post_init__(self) -> None:
        """Check, or complete, the fields."""

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in fields_of(self).items())
        return f"{type(self).__name__}({shown})"

    def __replace__(self, **changes: Any) -> Self:
        return type(self)(**{**fields_of(self), **changes})


# Both are written, matched and checked by mypy like dataclasses. Of what ``field()`` takes, ``default``,
# ``default_factory`` and ``compare`` are heeded; ``kw_only=True``, behind the name of the base, is for mypy alone.


@dataclass_transform(eq_default=False, field_specifiers=(field,))
class Fields(_Named):
    """Has fields, which may change, and is equal to itself alone."""


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Value(_Named):
    """Is what its fields are: two of one class whose fields are equal are equal, and none changes."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} of a {type(self).__name__} does not change")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name} of a {type(self).__name__} does not change")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._compared() == other._compared()

    def __hash__(self) -> int:
        return hash((type(self), *self._compared()))

    def _compared(self) -> list[Any]:
        declared = self.declared
        return [value for name, value in fields_of(self).items() if name not in declared or declared[name].compare]


def fields_of(value: _Named) -> dict[str, Any]:
    """Return the fields of a value, in their order."""
    return {name: getattr(value, name) for name in value.__match_args__}


def replace(value: T, **changes: Any) -> T:
    """Return a copy in which some fields are different."""
    return value.__replace__(**changes)
