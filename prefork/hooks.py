"""Who is called when, and what if it raises?"""

from __future__ import annotations

import sys
from dataclasses import field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from prefork.errors import AppFailed, ConfigError
from prefork.values import Fields

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from prefork.config import Config
    from prefork.pool import WorkerPool
    from prefork.records import Records
    from prefork.worker import Worker

WarmUp: TypeAlias = "Callable[[Callable[..., Any]], object] | Sequence[str]"
"""Is given the application; or paths to ask it for."""
BeforeFork: TypeAlias = "Callable[[WorkerPool], object]"
InWorker: TypeAlias = "Callable[[Worker], object]"
OnRecord: TypeAlias = "Callable[[str, dict[str, Any]], object]"
"""Is given the name of a record, and its fields."""
RequestFilter: TypeAlias = "Callable[[dict[str, Any]], object]"
"""Says of the fields of ``request.finished`` whether to write that."""

Moment: TypeAlias = Literal["before_fork", "worker_started", "worker_exiting", "access_log_filter"]

IN_WORKERS: tuple[Moment, ...] = ("worker_started", "worker_exiting", "access_log_filter")
"""Those that are called in workers alone."""


class Hooks(Fields):
    """What to call at the turns of a pool's life, each list in its order.

    ``before_fork(pool)`` runs in the parent before each fork, ``worker_started(worker)`` and ``worker_exiting(worker)``
    in the worker, and ``access_log_filter(fields)``, of which there is one at most, there for each request. An entry may
    be the name of a function, ``"module:function"``, which ``load()`` replaces: named hooks live with the app, and without
    preload the parent must not import that.
    """

    before_fork: list[BeforeFork | str] = field(default_factory=list)
    worker_started: list[InWorker | str] = field(default_factory=list)
    worker_exiting: list[InWorker | str] = field(default_factory=list)
    access_log_filter: list[RequestFilter | str] = field(default_factory=list)

    @classmethod
    def of(cls, config: Config) -> Hooks:
        """Take over what the configuration names."""
        hooks = cls()
        for moment in get_args(Moment):
            if hook := getattr(config, moment):
                getattr(hooks, moment).append(hook)
        return hooks

    def load(self, app_dir: str, *moments: Moment) -> None:
        """Import what is only named, from ``app_dir`` first; ``ConfigError`` if there is no such function."""
        for moment in moments:
            setattr(self, moment, [load_hook(hook, app_dir) for hook in getattr(self, moment)])

    def run(self, moment: Moment, *subject: Any, records: Records) -> None:
        """Call the hooks of a moment. One that raises is recorded, and the others are called all the same."""
        for hook in getattr(self, moment):
            try:
                hook(*subject)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - anybody's code
                records.emit("hook.failed", hook=moment, exc_info=error)

    def run_or_raise(self, moment: Moment, *subject: Any) -> None:
        """Call the hooks of a moment after which a process whose hook failed cannot be trusted."""
        for hook in getattr(self, moment):
            hook(*subject)


def load_hook(hook: Callable[..., object] | str, app_dir: str) -> Callable[..., object]:
    """Return the function that ``"module:function"`` names; a callable is returned as it is."""
    if not isinstance(hook, str):
        return hook
    found = load_object(hook, app_dir)
    if not callable(found):
        raise ConfigError("PF413", f"the hook {hook!r} is a {type(found).__name__}", "name a function")
    return found  # type: ignore[no-any-return]  # callable() narrows Any to Any


def load_object(hook: str, app_dir: str) -> Any:
    """Return what ``"module:name"`` names, looked for in ``app_dir`` first; ``ConfigError`` if there is no such thing."""
    module, _, path = hook.partition(":")
    if (folder := str(Path(app_dir).resolve())) not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            "PF413", f"the hook {hook!r} cannot be loaded ({error})", "name it as module:function"
        ) from error
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise AppFailed("PF413", f"the hook {hook!r} cannot be loaded ({why})", "see the traceback") from error
    return found
