"""How are our options spelt for ``manage.py``, and which source gives them?"""

from __future__ import annotations

import re
import socket
import sys
from argparse import SUPPRESS, Action, ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

from django.conf import settings

from prefork.config import OPTIONS, Option, check, resolve
from prefork.contrib.serving import may_join_logs, with_access_log_off
from prefork.errors import ConfigError
from prefork.terminal import is_terminal
from prefork.values import replace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prefork.config import Resolved

IPV4 = re.compile(r"\d+(\.\d+){3}")
ADDRPORT = re.compile(r"(?:(?P<host>\[[0-9A-Fa-f:]+\]|[A-Za-z0-9.-]+):)?(?P<port>[0-9]+)")
NOT_OURS = {
    "app_dir": "manage.py has imported the project already",
    "preload": "the project is always loaded before the fork",
    "interface": "--asgi says how it is called",
}
# What a dictionary of settings may have besides the options.
LOGGING = "LOGGING"
_NO_IPV6 = "leave -6 out, or give one in brackets"
_LOG_LEVELS = {0: "warning", 1: None, 2: "debug", 3: "debug"}


def own_settings() -> dict[str, Any]:
    """Return the options in ``settings.PREFORK``. Raises ``ConfigError`` if that is no dictionary."""
    given = getattr(settings, "PREFORK", {})
    if not isinstance(given, dict):
        raise ConfigError("PF102", f"settings.PREFORK is {given!r}", 'give a dictionary such as {"MAX_WORKERS": 4}')
    return {key: value for key, value in given.items() if key != LOGGING}


def joins_logs() -> bool:
    """Return whether records and the project's own log lines shall be one stream.

    Only where the project has not set up logging: Django would not show at all that a view raised. Under ``DEBUG`` it
    does. ``PREFORK = {"LOGGING": "off"}`` leaves logging alone.
    """
    wanted = getattr(settings, "PREFORK", {}).get(LOGGING, "auto")
    return may_join_logs(wanted, "PREFORK['LOGGING']") and not settings.LOGGING and not settings.DEBUG


def resolve_options(options: Mapping[str, Any] | None = None) -> Resolved:
    """Merge ``options`` of the command line, the environment, and ``settings.PREFORK``. Raises ``ConfigError``."""
    options = options or {}
    flags = {name: options[name] for name in OPTIONS if options.get(name) is not None}
    origin = "argument addrport" if options.get("addrport") else "flag --ipv6"
    if (address := _address(options)) is not None:
        if "bind" in flags:
            raise ConfigError("PF605", "--bind is given beside an address", "give either of them")
        check("bind", (address,), origin)
        flags["bind"] = (address,)
    if (level := _LOG_LEVELS[options.get("verbosity", 1)]) is not None:
        flags.setdefault("log_level", level)
    people = settings.DEBUG or is_terminal(sys.stderr)
    resolved = resolve(
        flags=flags,
        settings=own_settings(),
        settings_name="settings PREFORK ",
        defaults={"reload": bool(settings.DEBUG), "access_log": "-" if people else None, "redeploy": True},
        without=NOT_OURS,
    )
    if address is not None:
        config = replace(resolved.config, bind_from=origin)
        resolved = replace(resolved, config=config, origins={**resolved.origins, "bind": origin})
    return with_access_log_off(resolved) if options.get("no_access_log") else resolved


def _address(options: Mapping[str, Any]) -> str | None:
    six = bool(options.get("use_ipv6"))
    default = "[::1]" if six else "127.0.0.1"
    text = options.get("addrport")
    if not text:
        return f"{default}:8000" if six else None
    match = ADDRPORT.fullmatch(text)
    if match is None:
        raise ConfigError(
            "PF607", f"{text!r} is not a valid port number or address:port pair", "such as 8000 or [::1]:8000"
        )
    # As runserver has it: 0 stands for all addresses, and an IPv4 address is none of IPv6.
    host = {None: default, "0": "[::]" if six else "0.0.0.0"}.get(match["host"], match["host"])  # noqa: S104
    if six and IPV4.fullmatch(host):
        raise ConfigError("PF607", f"{host!r} is not a valid IPv6 address", _NO_IPV6)
    if six and not host.startswith("["):
        host = f"[{_ipv6_of(host)}]"
    return f"{host}:{match['port']}"


def _ipv6_of(name: str) -> str:
    """Return the address to which a name leads; left to whoever opens the socket, one of IPv4 would do."""
    try:
        return str(socket.getaddrinfo(name, None, socket.AF_INET6, socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError):
        raise ConfigError("PF607", f"{name!r} has no IPv6 address", _NO_IPV6) from None


def no_such_flag(flag: str) -> ConfigError:
    """Return the error for a flag that ``manage.py runprefork`` does not have."""
    from difflib import get_close_matches

    from prefork.options_click import no_such_option

    ours = [option for option in OPTIONS.values() if option.name not in NOT_OURS]
    flags = [flag for option in ours for flag in (option.flag, *option.aliases)]
    return no_such_option(flag, get_close_matches(flag, flags), without=NOT_OURS)


class _HelpAll(Action):
    """Shows all options."""

    def __init__(self, option_strings: Sequence[str], dest: str, **more: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **more)
        self.hidden: list[tuple[Action, str]] = []

    def __call__(self, parser: ArgumentParser, _: Namespace, __: Any, ___: str | None = None) -> None:
        for action, text in self.hidden:
            action.help = text
        parser.print_help()
        parser.exit()


def add_options(parser: ArgumentParser) -> None:
    """Add our options, grouped by what they are for; those that few need are shown by ``--help-all`` alone."""
    parser.add_argument(
        "--no-access-log", action="store_true", help="Record no requests, under DEBUG or on a terminal."
    )
    help_all = parser.add_argument("--help-all", action=_HelpAll, default=SUPPRESS, help="Show all options.")
    assert isinstance(help_all, _HelpAll)
    groups: dict[str, Any] = {}
    for option in OPTIONS.values():
        if option.name in NOT_OURS:
            continue
        group = groups.setdefault(option.group, None) or parser.add_argument_group(option.group)
        groups[option.group] = group
        for action, text in _add(group, option):
            if not option.common:
                help_all.hidden.append((action, text))
                action.help = SUPPRESS


def _add(group: Any, option: Option) -> list[tuple[Action, str]]:
    if option.kind == "bool":
        opposite = [f"--no-{option.flag[2:]}", *(["--noreload"] if option.name == "reload" else [])]
        shown = {"reload": "on under DEBUG", "redeploy": "true"}.get(option.name, option.shown_default)
        text = f"{option.help}  [{shown}; {option.environment}]"
        return [
            (group.add_argument(option.flag, dest=option.name, action="store_true", default=None, help=text), text),
            (
                group.add_argument(*opposite, dest=option.name, action="store_false", help="The opposite."),
                "The opposite.",
            ),
        ]
    action = "append" if option.multiple else "store"
    flags, text = [*option.flags[1:], option.flag], option.long_help.replace("%", "%%")
    added = group.add_argument(
        *flags, dest=option.name, action=action, default=None, metavar=option.placeholder, help=text
    )
    return [(added, text)]
