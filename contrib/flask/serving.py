"""How is a Flask application served, once or anew after each edit?"""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from flask.logging import default_handler

from prefork.contrib.flask import signals
from prefork.contrib.serving import may_join_logs, when_ready
from prefork.terminal import is_terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flask import Flask

    from prefork.config import Config
    from prefork.pool import WorkerPool
    from prefork.records import Records


def serve(app: Flask, config: Config, *, name: str, quiet: bool = False, **more: Any) -> int:
    """Serve ``app`` until stopped; return the exit status. ``more`` is for the pool, ``quiet`` leaves the banner out.

    Raises ``ConfigError`` if root has loaded it, and somebody else shall serve it, or for a wrong ``PREFORK_LOGGING``.
    """
    from prefork.pool import WorkerPool
    from prefork.privileges import refuse_late

    refuse_late(config)
    joins = may_join_logs(app.config.get("PREFORK_LOGGING", "auto"), "app.config['PREFORK_LOGGING']")

    def on_listening(urls: Sequence[str]) -> None:
        if not quiet:
            show_banner(name, urls, debug=app.debug)
        if joins:
            # Not before: the application's own logging.basicConfig() does nothing if it finds a handler.
            join_logs(app, pool.records)

    if signals.pool_ready.receivers:
        config = when_ready(config, lambda: tell(signals.pool_ready, app, pool.records))
    pool = WorkerPool(app, config=config, on_listening=on_listening, app_name=name, **more)
    pass_signals_on(pool, app)
    return pool.serve()


def serve_anew(
    load: Callable[[], tuple[Flask, Config]], config: Config, *, name: str, debug: bool, import_path: str | None = None
) -> int:
    """Serve what ``load`` returns, and again after each edit; return the exit status.

    The outer process of the reloader loads nothing: ``config`` says where to listen and what to watch. Raises
    ``ConfigError`` if somebody else shall serve than root, who loads it.
    """
    from prefork import reloader
    from prefork.privileges import refuse_late

    refuse_late(config)
    roots = [str(Path(config.chdir or "", root)) for root in roots_of(import_path)]
    if not reloader.inside():
        return reloader.run_outer(config, roots=roots, on_listening=lambda urls: show_banner(name, urls, debug=debug))
    # Before the application is loaded: an edit meanwhile is an edit.
    watch = reloader.watcher(config, roots=roots)
    with reloader.inherited_listeners(config) as listeners:
        app, config = load()
        return serve(app, config, name=name, quiet=True, listeners=listeners, files_changed=watch)


def roots_of(import_path: str | None) -> list[str]:
    """Return the folder of an application that is named by its file, ``flask --app src/shop.py``."""
    # As Flask splits it: a colon before a slash is a drive's.
    file = re.split(r":(?![\\/])", import_path or "", maxsplit=1)[0]
    return [str(Path(file).parent)] if "/" in file else []


def show_banner(name: str, urls: Sequence[str], *, debug: bool) -> None:
    """Say on a terminal what ``flask run`` says; elsewhere the records do."""
    if not is_terminal(sys.stdout):
        return
    click.echo(f" * Serving Flask app '{name}'")
    click.echo(f" * Debug mode: {'on' if debug else 'off'}")
    from prefork.listeners import reachable

    for url in urls:
        for shown in reachable(url):
            click.echo(f" * Running on {shown}")
    click.secho("Press CTRL+C to quit", fg="yellow")


def join_logs(app: Flask, records: Records) -> None:
    """Make one stream of our records and the application's, unless it has set up its own."""
    root = logging.getLogger()
    before = list(root.handlers)
    records.adopt_root()
    for ours in (handler for handler in root.handlers if handler not in before):
        ours.addFilter(is_for_the_root)
        # Flask's own handler would print each line a second time.
        app.logger.removeHandler(default_handler)


def is_for_the_root(record: logging.LogRecord) -> bool:
    """Whether no other logger on the way to the root has a handler, which shows the line already."""
    logger: logging.Logger | None = logging.getLogger(record.name)
    while logger is not None and logger.parent is not None:
        if any(
            handler is not default_handler and not isinstance(handler, logging.NullHandler)
            for handler in logger.handlers
        ):
            return False
        logger = logger.parent if logger.propagate else None
    return True


def pass_signals_on(pool: WorkerPool, app: Flask) -> None:
    """Tell the receivers of our signals what the pool's hooks are told."""

    def started(worker: Any) -> None:
        tell(signals.worker_started, app, pool.records, worker=worker)

    def stopping(worker: Any) -> None:
        tell(signals.worker_stopping, app, pool.records, worker=worker)

    pool.hooks.worker_started.append(started)
    pool.hooks.worker_exiting.append(stopping)


def tell(signal: Any, app: Flask, records: Records, **facts: Any) -> None:
    """Call each receiver; one that raises is recorded, and the others are called all the same."""
    for receiver in list(signal.receivers_for(app)):
        try:
            receiver(app, **facts)
        except Exception as error:  # noqa: BLE001 - anybody's code
            records.emit("hook.failed", hook=signal.name, exc_info=error)
