"""How do options look to click?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from prefork.config import OPTIONS, Option

if TYPE_CHECKING:
    from collections.abc import Iterable


def click_options(*, without: Iterable[str] = (), short: bool = True) -> list[click.Option]:
    """Return a click option for each of ours but those in ``without``; ``short`` gives them their one-letter flags too.

    Values stay texts: ``prefork.config.resolve`` reads and checks them, with one message for every source.
    """
    left_out = set(without)
    return [_click_option(option, short=short) for option in OPTIONS.values() if option.name not in left_out]


def _click_option(option: Option, *, short: bool) -> click.Option:
    text = option.help if option.kind == "bool" else f"{option.help}  [{_default(option)}{option.environment}]"
    more: dict[str, Any] = {"help": text, "default": None}
    if option.kind == "bool":
        flag = f"{option.flag}/--no-{option.flag[2:]}"
        return click.Option([option.name, flag, *([option.short] if short and option.short else [])], **more)
    if option.multiple:
        more["multiple"] = True
    elif option.kind in {"int", "float", "size"}:
        more["metavar"] = "N"
    flags = [flag for flag in option.flags if short or flag.startswith("--")]
    return click.Option([option.name, *flags], **more)


def _default(option: Option) -> str:
    default = option.default
    if default is None or default == ():
        return ""
    return (", ".join(default) if isinstance(default, tuple) else str(default)) + "; "
