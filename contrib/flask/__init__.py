"""How is a Flask application served from its own code?

``Prefork(app)`` gives an application the method ``run_prefork``; ``run_prefork(app)`` does the same without it.
"""

from __future__ import annotations

if __name__ == "flask":
    raise ImportError("this is prefork.contrib.flask: run from the repository root, not from contrib/")

import os
from typing import TYPE_CHECKING, Any

import click
from flask import Flask

from prefork.config import resolve

if TYPE_CHECKING:
    from prefork.config import Resolved

PREFIXES = ("FLASK_RUN_PREFORK_", "PREFORK_")
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 5000


class Prefork:
    """The extension: ``Prefork(app)``, or ``Prefork().init_app(app)`` in a factory."""

    def __init__(self, app: Flask | None = None) -> None:
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Give ``app`` the method ``run_prefork(host=None, port=None, **options)``."""
        app.extensions["prefork"] = self

        def run(host: str | None = None, port: int | None = None, **options: Any) -> int:
            return run_prefork(app, host, port, **options)

        app.run_prefork = run  # type: ignore[attr-defined]


class PreforkMixin:
    """For a class of applications with a typed ``run_prefork``: ``class Shop(PreforkMixin, Flask)``."""

    def run_prefork(self, host: str | None = None, port: int | None = None, **options: Any) -> int:
        """Serve this application until stopped; return the exit status."""
        assert isinstance(self, Flask)
        return run_prefork(self, host, port, **options)


class PreforkFlask(PreforkMixin, Flask):
    """A Flask application that can serve itself."""


def run_prefork(app: Flask, host: str | None = None, port: int | None = None, **options: Any) -> int:
    """Serve ``app`` until stopped; return the exit status. ``options`` are those of a pool.

    Under the ``flask`` command it does nothing but say so, as ``app.run()``: else the call would start a server while
    the command only wants to import the application. Raises what ``WorkerPool.serve()`` raises.
    """
    if os.environ.get("FLASK_RUN_FROM_CLI") == "true":
        click.secho(
            " * Ignoring a call to 'run_prefork' that would block the current 'flask' CLI command.", fg="red", err=True
        )
        return 0
    from prefork.pool import WorkerPool

    return WorkerPool(app, config=resolve_options(app, host, port, options).config).serve()


def resolve_options(app: Flask, host: str | None, port: int | None, flags: dict[str, Any]) -> Resolved:
    """Merge flags, environment, ``app.config`` and Flask's own variables and defaults; raises ``ConfigError``."""
    settings = {key.removeprefix("PREFORK_"): value for key, value in app.config.items() if key.startswith("PREFORK_")}
    name, _, number = (app.config.get("SERVER_NAME") or "").partition(":")
    default_host = os.environ.get("FLASK_RUN_HOST") or name or DEFAULT_HOST
    default_port = os.environ.get("FLASK_RUN_PORT") or number or str(DEFAULT_PORT)
    environ = dict(os.environ)
    host = host or environ.get("FLASK_RUN_PREFORK_HOST")
    chosen = port if port is not None else environ.get("FLASK_RUN_PREFORK_PORT")
    if host is not None or chosen is not None:
        flags = {"bind": (join(host or default_host, chosen if chosen is not None else default_port),), **flags}
    if app.debug:
        flags.setdefault("access_log", "-")
    return resolve(
        flags=flags,
        environ=environ,
        prefixes=PREFIXES,
        settings=settings,
        settings_name="app.config PREFORK_*",
        defaults={"bind": (join(default_host, default_port),)},
    )


def join(host: str, port: int | str) -> str:
    """Return host and port as an option ``bind``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
