"""How do options look to click?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from prefork.config import OPTIONS, Option
from prefork.values import replace

if TYPE_CHECKING:
    from collections.abc import Iterable


def click_options(*, without: Iterable[str] = (), bind: str | None = None) -> list[click.Option]:
    """Return a click option for each of ours but those in ``without``; ``bind`` is the default that is shown of that one.

    Values stay texts: ``prefork.config.resolve`` reads and checks them, with one message for every source.
    """
    left_out = set(without)
    options = {**OPTIONS, **({} if bind is None else {"bind": replace(OPTIONS["bind"], default=(bind,))})}
    return [_click_option(option) for option in options.values() if option.name not in left_out]


def _click_option(option: Option) -> click.Option:
    if option.kind == "bool":
        flag = f"{option.flag}/--no-{option.flag[2:]}"
        return click.Option([option.name, flag], help=option.help, default=None)
    return click.Option(
        [option.name, *option.flags],
        help=option.long_help,
        default=None,
        metavar=option.placeholder,
        multiple=option.multiple,
    )
