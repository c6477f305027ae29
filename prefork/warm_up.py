"""What does the parent do with the app before it forks, so that workers start warm?"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, TypeGuard
from wsgiref.util import setup_testing_defaults

from prefork.errors import AppFailed, ConfigError
from prefork.hooks import load_hook
from prefork.loading import kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def warm_up(app: Callable[..., Any], how: Callable[..., object] | Sequence[str] | str | None, app_dir: str) -> None:
    """Run the app's first requests in the parent, so that all workers share what they have built.

    ``how`` is a function that is given the app (or its name, ``"module:function"``), or paths to be asked for.
    Raises ``AppFailed`` for what any of them raises, ``ConfigError`` if an ASGI application is to be asked for paths.
    """
    import_for_coroutines(app)
    if how is None:
        return
    if not (callable(how) or _is_name(how)) and kind_of(app) == "asgi":
        # It would need an event loop, which no fork survives.
        raise ConfigError("PF414", "warm_up names paths, and the application is ASGI", "give a function instead")
    try:
        if callable(how) or _is_name(how):
            load_hook(how, app_dir)(app)
        else:
            for path in [how] if isinstance(how, str) else how:
                ask(app, path)
    except Exception as error:
        raise AppFailed("PF414", f"warm_up failed: {type(error).__name__}: {error}", "see the traceback") from error


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


def _is_name(how: object) -> TypeGuard[str]:
    """Whether this is the name of a function, and not a path."""
    return isinstance(how, str) and not how.startswith("/")


def ask(app: Callable[..., Any], path: str) -> None:
    """Ask a WSGI app for one path, as a server would, and read the answer to its end."""
    path_info, _, query = path.partition("?")
    asked = {"REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": path_info, "QUERY_STRING": query}
    environ: dict[str, Any] = {**asked}
    setup_testing_defaults(environ)
    environ["wsgi.multiprocess"] = True
    answer = app(environ, lambda _status, _headers, _exc_info=None: lambda _data: None)
    try:
        for _ in answer:
            pass
    finally:
        if hasattr(answer, "close"):
            answer.close()
