"""What does the parent do with the app before it forks, so that workers start warm?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults

from prefork.errors import AppFailed
from prefork.hooks import load_hook

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def warm_up(app: Callable[..., Any], how: Callable[..., object] | Sequence[str] | str | None, app_dir: str) -> None:
    """Run the app's first requests in the parent, so that all workers share what they have built.

    ``how`` is a function that is given the app (or its name, ``"module:function"``), or paths to be asked for.
    Raises ``AppFailed`` for what any of them raises.
    """
    if how is None:
        return
    try:
        if callable(how) or (isinstance(how, str) and not how.startswith("/")):
            load_hook(how, app_dir)(app)
        else:
            for path in [how] if isinstance(how, str) else how:
                ask(app, path)
    except Exception as error:
        raise AppFailed("PF414", f"warm_up failed: {type(error).__name__}: {error}", "see the traceback") from error


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
