"""How do options look to click?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from prefork.config import OPTIONS, Option, nearest, needless
from prefork.errors import ConfigError
from prefork.values import NOTHING, replace

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


def click_options(*, without: Iterable[str] = (), defaults: Mapping[str, Any] = NOTHING) -> list[click.Option]:
    """Return a click option for each of ours but those in ``without``; ``defaults`` are shown where they are others.

    Values stay texts: ``prefork.config.resolve`` reads and checks them, with one message for every source.
    """
    left_out = set(without)
    options = {**OPTIONS, **{name: replace(OPTIONS[name], default=default) for name, default in defaults.items()}}
    return [_click_option(option) for option in options.values() if option.name not in left_out]


def _click_option(option: Option) -> click.Option:
    if option.kind == "bool":
        flag = f"{option.flag}/--no-{option.flag[2:]}"
        return click.Option([option.name, flag], help=option.long_help, default=None)
    return click.Option(
        [option.name, *option.flags],
        help=option.long_help,
        default=None,
        metavar=option.placeholder,
        multiple=option.multiple,
    )


def no_such_option(
    flag: str, likely: Sequence[str] | None = (), *, without: Mapping[str, str] = NOTHING
) -> ConfigError:
    """Return the error for a flag that there is not, which says what to give instead: the first of ``likely``.

    Of another server's flag it is ours that does the same, which by its spelling alone may be far. The options in
    ``without`` are none here, for the reason that is said there.
    """
    name = flag.lstrip("-").replace("-", "_")
    ours = nearest(name, ()) or name
    why = without.get(ours.removeprefix("no_"))
    if ours in OPTIONS:
        likely = [OPTIONS[ours].flag]
    else:
        flags = {there.lstrip("-").replace("-", "_"): there for there in likely or ()}
        near = nearest(name, flags)
        likely = (flags[near],) if near in flags else ()
    hint = why or needless(name) or (f"did you mean {likely[0]}?" if likely else "--help-all shows all of them")
    return ConfigError("PF101", f"there is no option {flag}", hint)
