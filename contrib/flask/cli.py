"""What does ``flask run-prefork`` do?

Flask imports this module for every one of its commands, so it imports what that has imported already, and the pool only
when it is to serve.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click
from flask.cli import pass_script_info

from prefork.errors import PreforkError, report
from prefork.options_click import click_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flask.cli import ScriptInfo


def _set_debug(_: click.Context, __: click.Parameter, value: bool | None) -> bool | None:
    # Before the application is loaded, which reads it.
    if value is not None:
        os.environ["FLASK_DEBUG"] = "1" if value else "0"
    return value


def _no_tls(_: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        raise click.UsageError(
            f"--{parameter.name} needs TLS, which comes with a later release: put a proxy in front. [PF603]"
        )


@pass_script_info
def _run(info: ScriptInfo, /, host: str | None, port: int | None, **options: Any) -> None:
    """Load the application and serve it."""
    from prefork.contrib.flask import resolve_options

    os.environ["FLASK_RUN_FROM_CLI"] = "true"
    try:
        app = info.load_app()
        flags = {name: value for name, value in options.items() if value is not None and value != ()}
        config = resolve_options(app, host, port, flags).config
        status = _serve(info, app, config)
    except PreforkError as error:
        status = report(error)
    sys.exit(status)


def _serve(info: ScriptInfo, app: Any, config: Any) -> int:
    from prefork.pool import WorkerPool

    def banner(urls: Sequence[str]) -> None:
        if sys.stderr.isatty():
            click.echo(
                f" * Serving Flask app '{info.app_import_path or app.name}'\n * Debug mode: {'on' if app.debug else 'off'}",
                err=True,
            )
            for url in urls:
                click.echo(f" * Running on {url}", err=True)
            click.echo("Press CTRL+C to quit", err=True)

    if not config.reload:
        return WorkerPool(app, config=config, on_listening=banner).serve()
    from prefork import reloader

    if not reloader.inside():
        return reloader.run_outer(config)
    watch = reloader.watcher(config)
    return WorkerPool(
        app, config=config, on_listening=banner, listeners=reloader.inherited_listeners(), files_changed=watch
    ).serve()


run_prefork = click.Command(
    "run-prefork",
    callback=_run,
    params=[
        click.Option(
            ["-h", "--host"], help="The interface to bind to.  [127.0.0.1; FLASK_RUN_PREFORK_HOST, FLASK_RUN_HOST]"
        ),
        click.Option(
            ["-p", "--port"],
            type=click.IntRange(0, 65535),
            help="The port to bind to.  [5000; FLASK_RUN_PREFORK_PORT, FLASK_RUN_PORT]",
        ),
        click.Option(
            ["--debug/--no-debug"],
            default=None,
            is_eager=True,
            expose_value=False,
            callback=_set_debug,
            help="Set debug mode.",
        ),
        click.Option(["--cert"], expose_value=False, callback=_no_tls, hidden=True),
        click.Option(["--key"], expose_value=False, callback=_no_tls, hidden=True),
        *click_options(without=("app_dir",)),
    ],
    short_help="Run a pool of prefork workers.",
    help="Serve the application with a pool of preforked worker processes: fit for production.",
)
