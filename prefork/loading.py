"""Where is the application, and is it one?"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefork.errors import AppFailed, AppNotFound

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

_NAMES = ("app", "application")


def load_app(spec: str | Callable[..., Any], app_dir: str = ".") -> Callable[..., Any]:
    """Return the WSGI application that ``spec`` names, looked for in ``app_dir`` first.

    ``spec`` is ``module:attribute``, ``module:factory(...)`` with literal arguments, or ``module`` with an ``app`` or
    ``application`` in it; a callable stands for itself. Raises ``AppNotFound`` where there is nothing to serve, and
    ``AppFailed``, whose cause is what the application raised.
    """
    app = spec if callable(spec) else _find(spec, app_dir)
    if not callable(app):
        raise AppNotFound("PF204", f"{spec} is {type(app).__name__}, not callable", "name a WSGI application")
    if kind_of(app) == "asgi":
        raise AppNotFound("PF205", f"{spec} is an ASGI application", "this version serves WSGI; ASGI comes later")
    return app


def kind_of(app: Callable[..., Any]) -> str:
    """Return ``"asgi"`` for a coroutine function or an object that is called as one, else ``"wsgi"``."""
    call = app if inspect.isroutine(app) or inspect.isclass(app) else getattr(app, "__call__", app)  # noqa: B004
    return "asgi" if inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(app) else "wsgi"


def _find(spec: str, app_dir: str) -> Any:
    name, _, expression = spec.partition(":")
    if not all(part.isidentifier() for part in name.split(".")):
        raise AppNotFound("PF201", f"{spec!r} names no module", "give module:attribute, such as shop.wsgi:application")
    module = _import(name, app_dir)
    if not expression:
        found = next((attribute for attribute in _NAMES if hasattr(module, attribute)), None)
        if found is None:
            raise AppNotFound("PF203", f"module {name!r} has neither app nor application", f"give {name}:NAME")
        return getattr(module, found)
    return _evaluate(module, expression)


def _import(name: str, app_dir: str) -> ModuleType:
    directory = str(Path(app_dir).resolve())
    if directory not in sys.path:
        sys.path.insert(0, directory)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # The module itself, or one of its packages; not one that it imports.
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise AppNotFound("PF202", f"there is no module {name!r}", _nearest_module(name, directory)) from None
        raise AppFailed("PF206", f"importing {name} failed") from error
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise AppFailed("PF206", f"importing {name} failed") from error


def _nearest_module(name: str, directory: str) -> str:
    there = [path.stem for path in Path(directory).iterdir() if path.suffix == ".py" or path.is_dir()]
    near = difflib.get_close_matches(name, there, n=1)
    return f"did you mean {near[0]!r}?" if near else f"looked in {directory} and on the import path"


def _evaluate(module: ModuleType, expression: str) -> Any:
    """Return the attribute, or what the factory makes; literals alone may be its arguments."""
    call: ast.Call | None = None
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    try:
        tree = ast.parse(expression, mode="eval").body
        call = tree if isinstance(tree, ast.Call) else None
        path = ast.unparse(call.func if call else tree).split(".")
        args = [ast.literal_eval(arg) for arg in call.args] if call else []
        kwargs = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords} if call else {}
    except (SyntaxError, ValueError):
        path = [""]
    if not all(part.isidentifier() for part in path):
        raise AppNotFound(
            "PF201", f"{expression!r} names no attribute", "give an attribute, or a factory with literals"
        )
    target: Any = module
    for part in path:
        if not hasattr(target, part):
            near = difflib.get_close_matches(part, dir(target), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "check the spelling"
            raise AppNotFound("PF203", f"{module.__name__!r} has no attribute {'.'.join(path)!r}", hint)
        target = getattr(target, part)
    if call is None:
        return target
    if not callable(target):
        raise AppNotFound("PF204", f"{'.'.join(path)} is not callable", "name a factory")
    try:
        return target(*args, **kwargs)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise AppFailed("PF207", f"the factory {'.'.join(path)} failed") from error
