"""How is a Flask application served from its own code?

``Prefork(app)`` gives an application the method ``run_prefork``, ``PreforkFlask`` is an application that has it, and
``run_prefork(app)`` does the same for any. Flask imports this package for each of its commands: what it needs to serve
is imported when it serves.
"""

from __future__ import annotations

if __name__ == "flask":
    raise ImportError("this is prefork.contrib.flask: run from the repository root, not from contrib/")

import os
import sys
from typing import TYPE_CHECKING, Any, cast

import click
from flask import Flask

if TYPE_CHECKING:
    from prefork.contrib.flask.signals import (
        pool_ready as pool_ready,
        worker_started as worker_started,
        worker_stopping as worker_stopping,
    )

_SIGNALS = {"pool_ready", "worker_started", "worker_stopping"}


def __getattr__(name: str) -> Any:
    if name not in _SIGNALS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from prefork.contrib.flask import signals

    return getattr(signals, name)


class Prefork:
    """The extension: ``Prefork(app)``, or ``prefork.init_app(app)`` where there is a factory.

    The application gets a method ``run_prefork``, which takes what the function of that name takes. Options are read
    from ``app.config["PREFORK_MAX_WORKERS"]`` and so on when the application is served.
    """

    def __init__(self, app: Flask | None = None) -> None:
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Give ``app`` the method ``run_prefork``."""
        app.extensions["prefork"] = self

        def bound(host: str | None = None, port: int | None = None, **options: Any) -> int:
            return run_prefork(app, host, port, **options)

        app.run_prefork = bound  # type: ignore[attr-defined]


class PreforkMixin:
    """For typed code, ``class Shop(PreforkMixin, Flask)``: an application that has the method ``run_prefork``."""

    def run_prefork(
        self,
        host: str | None = None,
        port: int | None = None,
        *,
        debug: bool | None = None,
        load_dotenv: bool = True,
        **options: Any,
    ) -> int:
        """Serve this application; see the function ``run_prefork``."""
        app = cast("Flask", self)
        return run_prefork(app, host, port, debug=debug, load_dotenv=load_dotenv, **options)


class PreforkFlask(PreforkMixin, Flask):
    """A Flask application that has the method ``run_prefork``."""


def run_prefork(
    app: Flask,
    host: str | None = None,
    port: int | None = None,
    *,
    debug: bool | None = None,
    load_dotenv: bool = True,
    **options: Any,
) -> int:
    """Serve ``app`` until stopped; return the exit status, 0 after a clean stop.

    ``host`` and ``port`` fall back to what ``FLASK_RUN_PREFORK_HOST`` and the like say, then to ``SERVER_NAME``, then
    to 127.0.0.1 and 5000. ``debug`` sets debug mode, which turns ``reload`` on unless that is given; ``load_dotenv``
    reads ``.env`` and ``.flaskenv`` where python-dotenv is installed. ``options`` are those of ``WorkerPool``.

    Under a ``flask`` command it only says that it does nothing, as ``app.run()`` does. No ``__main__`` guard is needed
    for the workers' sake: they are forked, and import nothing again.

    What a user can mend, such as a wrong option or a port in use, is told in one line and ends the program with status
    1 or 2 (``SystemExit``), as with ``app.run()``. ``WorkerPool(app).serve()`` raises it instead.
    """
    if os.environ.get("FLASK_RUN_FROM_CLI") == "true":
        _say_ignored()
        return 0
    from prefork.errors import PreforkError, report

    try:
        return _run(app, host, port, debug=debug, load_dotenv=load_dotenv, options=options)
    except PreforkError as error:
        sys.exit(report(error))


def _run(
    app: Flask, host: str | None, port: int | None, *, debug: bool | None, load_dotenv: bool, options: dict[str, Any]
) -> int:
    from flask import cli
    from flask.helpers import get_debug_flag, get_load_dotenv

    from prefork.contrib.flask.options import Given, resolve_options
    from prefork.contrib.flask.serving import serve, serve_anew

    if get_load_dotenv(load_dotenv):
        cli.load_dotenv()
        if "FLASK_DEBUG" in os.environ:
            app.debug = get_debug_flag()
    if debug is not None:
        app.debug = debug
    given = Given(host=host, port=None if port is None else str(port), options=options, settings=app.config)
    config = resolve_options(given, debug=app.debug, server_name=app.config.get("SERVER_NAME")).config
    if not config.reload:
        return serve(app, config, name=app.name)
    status = serve_anew(lambda: (app, config), config, name=app.name, debug=app.debug)
    from prefork import reloader

    if reloader.inside() and status:
        # The program that called must not go on as if it had been served: it is about to be started anew.
        sys.exit(status)
    return status


def _say_ignored() -> None:
    from prefork import reloader

    if not reloader.inside():
        click.secho(
            " * Ignoring a call to 'run_prefork()' that would block the current 'flask' CLI command.\n"
            "   Only call it in an 'if __name__ == \"__main__\"' guard. [PF603]",
            fg="red",
            err=True,
        )
