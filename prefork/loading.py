"""Where is the application, and is it one?"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import traceback
from dataclasses import field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from prefork.errors import AppFailed, AppNotFound
from prefork.heap import collecting_seldom
from prefork.values import Value

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from types import TracebackType

    from prefork.config import Config

_NAMES = ("app", "application")
_FACTORIES = ("create_app", "make_app")
#: Where Django's startproject puts the applications of a package.
_MODULES = ("wsgi", "asgi")
_EXAMPLE = "give module:attribute, such as shop.wsgi:application"
#: What an application's own code may raise; KeyboardInterrupt is the user's, and a stop while we import is ours.
_FAILURES = (Exception, SystemExit)


def load_app(spec: str | Callable[..., Any], app_dir: str = ".", interface: str = "auto") -> Callable[..., Any]:
    """Return the application that ``spec`` names, looked for in ``app_dir`` first.

    ``spec`` is ``module:attribute`` (or ``module:object.attribute``), ``module:factory(...)`` with literals as
    arguments, or ``module`` with an ``app`` or ``application`` in it; a callable stands for itself. ``app_dir`` is put
    at the head of ``sys.path``, and stays there: the application may import more of itself later. ``interface`` is
    ``"wsgi"`` or ``"asgi"`` where that is known, else ``"auto"``.

    Raises ``AppNotFound`` where there is nothing to serve, which is a mistake in ``spec``, and ``AppFailed``, whose
    cause is what the application's own code raised.
    """
    name = spec if isinstance(spec, str) else getattr(spec, "__name__", type(spec).__name__)
    with collecting_seldom():
        app = _find(spec, app_dir) if isinstance(spec, str) else spec
    if not callable(app):
        raise AppNotFound("PF204", f"{name} is {_described(app)}, not callable", _what_else(name, app))
    kind = kind_of(app)
    if interface == "asgi":
        if not (_takes(app, 3) or _is_double(app)):
            raise AppNotFound("PF212", f"{name} does not take (scope, receive, send)", "leave interface alone")
        return app
    if kind == "asgi":
        if interface == "wsgi":
            raise AppNotFound("PF205", f"{name} is an ASGI application", "leave interface alone, or name the WSGI one")
        return app
    if (inspect.isfunction(app) or inspect.isclass(app)) and not _takes(app, 2):
        hint = f"did you mean {name}()?" if isinstance(spec, str) else "call it, if it makes the application"
        raise AppNotFound("PF211", f"{name} does not take (environ, start_response)", hint)
    return app


def kind_of(app: Callable[..., Any]) -> Literal["wsgi", "asgi"]:
    """Return which protocol ``app`` speaks.

    ``"asgi"`` is what is called as a coroutine function, or takes three arguments where WSGI gives two, or is a class
    of ASGI 2; all else is ``"wsgi"``, among it a class whose instances are the answers.
    """
    call = app if inspect.isroutine(app) or inspect.isclass(app) else getattr(app, "__call__", app)  # noqa: B004 - the method itself is wanted
    if inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(app):
        return "asgi"
    return "asgi" if (_takes(app, 3) and not _takes(app, 2)) or _is_double(app) else "wsgi"


def interface_of(app: Callable[..., Any], config: Config) -> str:
    """Return ``"wsgi"`` or ``"asgi"``: as ``config`` says, or as it looks."""
    return kind_of(app) if config.interface == "auto" else config.interface


def _is_double(app: Callable[..., Any]) -> bool:
    """Whether this is a class of ASGI 2, called twice: with the scope, then as a coroutine function."""
    return inspect.isclass(app) and inspect.iscoroutinefunction(app.__call__) and _takes(app, 1)


def as_single(app: Callable[..., Any]) -> Callable[..., Awaitable[None]]:
    """Return an ASGI application as version 3 of the specification has it, called once."""
    if _takes(app, 3) and not _is_double(app):
        return app

    async def single(scope: Any, receive: Any, send: Any) -> None:
        await app(scope)(receive, send)

    return single


def _takes(app: Callable[..., Any], count: int) -> bool:
    """Whether ``app`` can be called with so many arguments; of what does not say, yes."""
    try:
        # Of a decorated function the outer one counts: that is what will be called.
        signature = inspect.signature(app, follow_wrapped=False)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _described(app: object) -> str:
    if isinstance(app, ModuleType):
        return "a module"
    return "None" if app is None else f"of type {type(app).__name__}"


def _what_else(name: str, app: object) -> str:
    if isinstance(app, ModuleType):
        return f"give {app.__name__}:NAME"
    return "does the factory return the application?" if name.endswith(")") else "name a WSGI application"


# What the text says.


class _Target(Value):
    """The part behind the colon: a chain of attributes, and the arguments if what they lead to is to be called."""

    path: tuple[str, ...]
    call: bool = False
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return ".".join(self.path)


def _find(spec: str, app_dir: str) -> Any:
    name, colon, expression = spec.strip().partition(":")
    if not name or not all(part.isidentifier() for part in name.split(".")):
        raise AppNotFound("PF201", f"{spec!r} names no module", _instead_of_path(name, expression))
    target = _parse(expression) if colon else None
    module = _import(name, app_dir)
    if target is None:
        return _default(module)
    found = _attribute(module, target)
    return _make(found, f"{name}:{target}", target) if target.call else found


def _instead_of_path(name: str, expression: str) -> str:
    """Return the name of the module that lies at a path, if it is one."""
    parts = Path(name).with_suffix("").parts if name.endswith(".py") or "/" in name else ()
    if parts and all(part.isidentifier() for part in parts):
        return f"give a module, not a path: {'.'.join(parts)}:{expression or 'app'}"
    return _EXAMPLE


def _parse(expression: str) -> _Target:
    """Return what the part behind the colon says. Nothing of it is run: the arguments of a factory are literals."""
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
        if not isinstance(tree, ast.Call):
            return _Target(_names(tree))
        kwargs = {_keyword(word): ast.literal_eval(word.value) for word in tree.keywords}
        return _Target(_names(tree.func), True, tuple(ast.literal_eval(arg) for arg in tree.args), kwargs)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        hint = "give an attribute, or a factory with literals as arguments: create_app('test')"
        raise AppNotFound("PF201", f"{expression!r} names no attribute", hint) from None


def _names(tree: ast.expr) -> tuple[str, ...]:
    match tree:
        case ast.Name(id=name):
            return (name,)
        case ast.Attribute(value=value, attr=name):
            return (*_names(value), name)
    raise ValueError(tree)


def _keyword(word: ast.keyword) -> str:
    if word.arg is None:
        raise ValueError(word)
    return word.arg


# What is there.


def _import(name: str, app_dir: str) -> ModuleType:
    directory = Path(app_dir)
    if not directory.is_dir():
        raise AppNotFound("PF209", f"there is no directory {app_dir!r}", "check the option app_dir")
    where = str(directory.resolve())
    if sys.path[:1] != [where]:
        sys.path.insert(0, where)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if _is_missing_itself(name, error):
            raise AppNotFound("PF202", f"there is no module {name!r}", _nearest_module(name, where)) from None
        raise failure("PF206", f"importing {name}", error) from error
    except _FAILURES as error:
        raise failure("PF206", f"importing {name}", error) from error


def _is_missing_itself(name: str, error: ModuleNotFoundError) -> bool:
    """Whether it is this module, or a package of it, that is missing, and not one that it imports."""
    missing = error.name
    if missing is None or not (name == missing or name.startswith(f"{missing}.")):
        return False
    return _theirs(error.__traceback__) is None  # its package may ask for it, and then is to blame


def _nearest_module(name: str, directory: str) -> str:
    package, _, last = name.rpartition(".")
    if name.endswith(".py"):
        return f"give a module, not a file: {package}"
    loaded = sys.modules.get(package)
    if loaded is not None and last in vars(loaded):
        return f"did you mean {package}:{last}?"
    if loaded is not None and not hasattr(loaded, "__path__"):
        return f"{package!r} is a module and not a package"
    import pkgutil

    there = [found.name for found in pkgutil.iter_modules(loaded.__path__ if loaded else [directory])]
    there += [entry.name for entry in Path(directory).iterdir() if entry.is_dir()] if not package else []
    near = _near(last, there)
    if near:
        return f"did you mean {f'{package}.{near}'.lstrip('.')!r}?"
    return f"looked in {directory} and on the import path; --app-dir names another directory"


def _near(name: str, names: Iterable[str]) -> str | None:
    """Return which of ``names`` somebody is likely to mean who wrote ``name``."""
    import difflib  # takes a millisecond, and hardly anybody misspells

    return next(iter(difflib.get_close_matches(name, names, n=1)), None)


def _default(module: ModuleType) -> Any:
    """Return the ``app`` or ``application`` of a module; a module of that name is none."""
    found = [getattr(module, name) for name in _NAMES if hasattr(module, name)]
    for app in found:
        if not isinstance(app, ModuleType):
            return app
    name = module.__name__
    if found:
        raise AppNotFound("PF203", f"{name}.{_NAMES[0]} is a module", f"give {name}.{_NAMES[0]}:{_NAMES[0]}")
    from importlib.util import find_spec

    likely = [f"{name}:{factory}()" for factory in _FACTORIES if hasattr(module, factory)]
    likely += [f"{name}.{inner}" for inner in _MODULES if hasattr(module, "__path__") and find_spec(f"{name}.{inner}")]
    hint = f"did you mean {likely[0]}?" if likely else f"give {name}:NAME"
    raise AppNotFound("PF203", f"module {name!r} has neither app nor application", hint)


def _attribute(module: ModuleType, target: _Target) -> Any:
    found: Any = module
    for name in target.path:
        try:
            found = getattr(found, name)
        except AttributeError:
            near = _near(name, dir(found))
            hint = f"did you mean {near!r}?" if near else "check the spelling"
            raise AppNotFound("PF203", f"module {module.__name__!r} has no {str(target)!r}", hint) from None
        except _FAILURES as error:
            raise failure("PF206", f"{module.__name__}:{target}", error) from error
    return found


def _make(factory: Any, name: str, target: _Target) -> Any:
    if not callable(factory):
        raise AppNotFound("PF204", f"{name} is {_described(factory)}, not callable", "leave the parentheses away")
    if inspect.iscoroutinefunction(factory):
        raise AppNotFound("PF204", f"{name} is a coroutine function", "make it a plain function")
    try:
        inspect.signature(factory, follow_wrapped=False).bind(*target.args, **target.kwargs)
    except TypeError as error:
        raise AppNotFound("PF210", f"{name} cannot be called like this", str(error)) from None
    except ValueError:
        pass  # it does not say what it takes
    try:
        return factory(*target.args, **target.kwargs)
    except _FAILURES as error:
        raise failure("PF207", f"{name}()", error) from error


# Whose fault it is.


def failure(code: str, what: str, error: BaseException, *, via: Iterable[str] = ()) -> AppFailed:
    """Return the error for what the application's code raised, whose traceback then begins with that code.

    ``via`` are the files or folders of a framework, or an adapter, by whose way the application was called.
    """
    summary = traceback.format_exception_only(error)[-1].strip()
    error.__traceback__ = _theirs(error.__traceback__, via)
    return AppFailed(code, f"{what} failed: {summary}", "see the traceback")


def _theirs(trace: TracebackType | None, via: Iterable[str] = ()) -> TracebackType | None:
    """Return the rest of a traceback from where it leaves this module and the import machinery; ``None``: it does not."""
    ours = (__file__, importlib.__file__, "<frozen importlib", *via)
    while trace is not None:
        if not trace.tb_frame.f_code.co_filename.startswith(ours):
            return trace
        trace = trace.tb_next
    return None
