"""What do the adapters have in common when they serve?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefork.errors import ConfigError
from prefork.values import replace

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefork.config import Config, Resolved


def with_access_log_off(resolved: Resolved) -> Resolved:
    """Return the same without an access log, for a flag that overrules every other source."""
    origins = {**resolved.origins, "access_log": "flag --no-access-log"}
    return replace(resolved, config=replace(resolved.config, access_log=None), origins=origins)


def may_join_logs(wanted: object, name: str) -> bool:
    """Return whether our records and the application's log may be one stream: a setting says ``"auto"`` or ``"off"``.

    Raises ``ConfigError`` for anything else, with the ``name`` of the setting.
    """
    word = str(wanted).lower()
    if word not in {"auto", "off"}:
        raise ConfigError("PF102", f"{name} is {word!r}", "choose one of auto, off")
    return word == "auto"


def when_ready(config: Config, tell: Callable[[], object]) -> Config:
    """Return a configuration that calls ``tell`` in the parent when all workers serve, besides its own ``on_record``."""
    from prefork.hooks import load_hook

    theirs = None if config.on_record is None else load_hook(config.on_record, config.app_dir)

    def on_record(name: str, fields: dict[str, Any]) -> None:
        if theirs is not None:
            theirs(name, fields)
        if name == "pool.ready":
            tell()

    return replace(config, on_record=on_record)
