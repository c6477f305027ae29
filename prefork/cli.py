"""Which command line means which configuration, and with which status does the command end?"""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from prefork import __version__
from prefork.config import OPTIONS, Resolved, resolve
from prefork.errors import AppNotFound, ConfigError, PlatformUnsupported, PreforkError, report
from prefork.heap import collecting_seldom
from prefork.options_click import click_options, no_such_option

if TYPE_CHECKING:
    from prefork.config import Config
    from prefork.pool import WorkerPool

HINT = "prefork module:app, such as prefork shop.wsgi:application"
_DEFAULTS = {"redeploy": True}


class Command(click.Command):
    """Shows the common options by use, and all of them with ``--help-all``."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, grouped by what they are for."""
        everything = bool(ctx.meta.get("prefork.help_all"))
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            option = OPTIONS.get(parameter.name or "")
            if record is not None and (everything or option is None or option.common):
                groups.setdefault(option.group if option else "Command", []).append(record)
        for group, rows in groups.items():
            with formatter.section(group):
                formatter.write_dl(rows)


def _help_all(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta["prefork.help_all"] = True
        click.echo(ctx.get_help())
        ctx.exit()


def _run(app: str | None, config: str | None, **options: Any) -> int:
    show_config, check_config = options.pop("show_config"), options.pop("check_config")
    flags = {name: value for name, value in options.items() if value is not None and value != ()}
    resolved = resolve(flags=flags, file=config, defaults=_DEFAULTS)
    for line in resolved.warnings:
        click.echo(line, err=True)
    if show_config:
        click.echo(resolved.describe())
        return 0
    if app is None:
        raise AppNotFound("PF208", "no application is named", HINT)
    return _check(app, resolved) if check_config else _serve(app, resolved)


def _serve(app: str, resolved: Resolved) -> int:
    if not hasattr(os, "fork"):
        raise PlatformUnsupported("PF407", "this system cannot fork", "prefork runs on Linux and macOS")
    if resolved.config.reload:
        return _serve_and_reload(app, resolved.config)
    return _pool_class()(app, config=resolved.config).serve()


def _serve_and_reload(app: str, config: Config) -> int:
    from prefork import reloader

    if not reloader.inside():
        return reloader.run_outer(config)
    with reloader.inherited_listeners(config) as listeners:
        watch = reloader.watcher(config)
        return _pool_class()(app, config=config, listeners=listeners, files_changed=watch).serve()


def _pool_class() -> type[WorkerPool]:
    with collecting_seldom():
        from prefork.pool import WorkerPool
    # All that is there so far is ours, and stays: to look for garbage among it as well, before the first fork, would
    # take twice the time.
    gc.freeze()
    return WorkerPool


def _check(app: str, resolved: Resolved) -> int:
    from prefork.hooks import IN_WORKERS, Hooks, load_hook
    from prefork.listeners import check_addresses
    from prefork.loading import load_app
    from prefork.pid_file import check_pid_file
    from prefork.pool import directory
    from prefork.privileges import resolve_ids
    from prefork.records.outlet import check_log_files
    from prefork.warm_up import load_warm_up

    config = resolved.config
    resolve_ids(config.user, config.group)
    check_addresses(config)
    with directory(config.chdir):
        if config.pid_file is not None:
            check_pid_file(config.pid_file)
        check_log_files(config)
        loaded = load_app(app, config.app_dir, config.interface)
        load_warm_up(loaded, config)
        if config.on_record is not None:
            load_hook(config.on_record, config.app_dir)
        if config.scheme == "https":
            from prefork.certificates import make_context

            make_context(config)
        Hooks.of(config).load(config.app_dir, "before_fork", *IN_WORKERS)
    click.echo(f"{app} can be served on {', '.join(config.bind)}")
    return 0


def command() -> click.Command:
    """Return the command ``prefork``."""
    return Command(
        "prefork",
        callback=_run,
        params=[
            click.Argument(["app"], required=False),
            *click_options(defaults=_DEFAULTS),
            click.Option(["--config"], metavar="FILE", help="Read options from a TOML file."),
            click.Option(["--show-config"], is_flag=True, help="Print each effective value and where it came from."),
            click.Option(["--check-config"], is_flag=True, help="Load the application and say whether it would serve."),
            click.Option(
                ["--help-all"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_help_all,
                help="Show all options.",
            ),
            click.version_option(__version__, prog_name="prefork")(lambda: None).__click_params__[0],  # type: ignore[attr-defined]
        ],
        help="Serve the WSGI or ASGI application APP: module:attribute, module:factory(), or module with an app or application.",
    )


def _is_somewhere() -> bool:
    try:
        os.getcwd()  # noqa: PTH109 - a Path says no more
    except FileNotFoundError:
        return False
    return True


def main(args: list[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 if it cannot bind or boot, 2 for a user's mistake, 3 to reload."""
    # The console script has its own folder there; python -m prefork the current one.
    if sys.path[0] != "":
        sys.path.insert(0, "")
    try:
        result = command().main(args, prog_name="prefork", standalone_mode=False)
    except click.NoSuchOption as error:
        return report(no_such_option(error.option_name, error.possibilities))
    except click.ClickException as error:
        return report(ConfigError("PF102", error.format_message().rstrip("."), "--help-all shows what can be given"))
    except click.Abort:
        return 1
    except PreforkError as error:
        return report(error)
    except FileNotFoundError:
        # Whatever makes a path absolute fails so.
        if _is_somewhere():
            raise
        return report(ConfigError("PF418", "the current directory is gone", "start in one that is there"))
    return result if isinstance(result, int) else 0
