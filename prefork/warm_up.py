"""What does the parent do with the app before it forks, so that workers start warm?"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

from prefork.errors import AppFailed, ConfigError
from prefork.hooks import load_hook
from prefork.loading import kind_of
from prefork.targets import SICK, WRONG, Target, parse_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from prefork.config import Config


def warm_up(app: Callable[..., Any], config: Config) -> list[tuple[Target, int]]:
    """Run the app's first requests in the parent, so that all workers share what they have built.

    Returns what was asked for and refused, with a status from 400 to 499. Raises ``AppFailed`` for what the application,
    or the function that ``config.warm_up`` is, raises, and for an answer from 500 on; and what ``load_warm_up`` raises.
    """
    import_for_coroutines(app)
    how = load_warm_up(app, config)
    try:
        if callable(how):
            how(app)
        else:
            return ask_for(app, how, config)
    except AppFailed:
        raise
    except Exception as error:
        raise AppFailed("PF414", f"warm_up failed: {type(error).__name__}: {error}", "see the traceback") from error
    return []


def load_warm_up(app: Callable[..., Any], config: Config) -> Callable[..., object] | Sequence[str]:
    """Return the function to call, or what to ask for, which may be nothing.

    Raises ``ConfigError`` if there is no such function, or an ASGI application is to be asked.
    """
    how = config.warm_up
    if callable(how) or isinstance(how, str):
        return load_hook(how, config.app_dir)
    if how and kind_of(app) == "asgi":
        # It would need an event loop, which no fork survives.
        raise ConfigError("PF414", "warm_up names paths, and the application is ASGI", "give a function instead")
    return how or ()


def ask_for(app: Callable[..., Any], urls: Iterable[str], config: Config) -> list[tuple[Target, int]]:
    """Ask a WSGI application for each; return what it refused. Raises ``AppFailed`` for a status from 500 on."""
    # Not before: a pool that serves ASGI has no use for it.
    from prefork.wsgi.rehearsal import ask

    refused = []
    for url in urls:
        target = parse_target(url)
        status, words = ask(app, target, config)
        if status >= SICK:
            message = f"warm_up {url} was answered with {status}: {words!r}"
            raise AppFailed("PF414", message, "put the application right, or name something else")
        if status >= WRONG:
            refused.append((target, status))
    return refused


def import_for_coroutines(app: Callable[..., Any]) -> None:
    """Import what Flask imports at the first request for a view that is a coroutine function, if there is one.

    That brings asyncio along, and takes longer than all the rest of a worker's start. Without asgiref such a view fails.
    """
    views = None
    with suppress(Exception):  # anybody's code, which need not have any
        views = app.view_functions  # type: ignore[attr-defined]
    if isinstance(views, dict) and any(map(iscoroutinefunction, views.values())):
        with suppress(ImportError):
            import_module("asgiref.sync")
