"""Which names are public?

They are loaded when they are first used: ``import prefork`` alone imports nothing from outside of the standard
library, and hardly anything of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prefork import origin as origin  # before an application changes what it reads

if TYPE_CHECKING:
    from prefork.config import Config as Config
    from prefork.errors import (
        AppFailed as AppFailed,
        AppNotFound as AppNotFound,
        BindError as BindError,
        BootError as BootError,
        ConfigError as ConfigError,
        MissingExtra as MissingExtra,
        PlatformUnsupported as PlatformUnsupported,
        PreforkError as PreforkError,
    )
    from prefork.exit_guard import ExitGuard as ExitGuard
    from prefork.pool import WorkerPool as WorkerPool
    from prefork.worker import Worker as Worker

__version__ = "0.1.0"

_HOMES = {
    "AppFailed": "errors",
    "AppNotFound": "errors",
    "BindError": "errors",
    "BootError": "errors",
    "Config": "config",
    "ConfigError": "errors",
    "ExitGuard": "exit_guard",
    "MissingExtra": "errors",
    "PlatformUnsupported": "errors",
    "PreforkError": "errors",
    "Worker": "worker",
    "WorkerPool": "pool",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
