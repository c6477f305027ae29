"""What does ``flask run-prefork`` do?

Flask imports this module for each of its commands, and a failure to import it would break them all: so it imports what
Flask's command has imported already, and anything else when it runs.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click
from flask import cli
from flask.cli import pass_script_info

if TYPE_CHECKING:
    from flask import Flask
    from flask.cli import ScriptInfo

    from prefork.config import Config, Resolved

# What has to be known to open sockets and files, and to become somebody else.
_BEFORE_THE_APP = (
    "bind", "backlog", "user", "group", "umask", "chdir", "pid_file", "log_file", "log_format", "log_level", "access_log"
)  # fmt: skip


class _Command(click.Command):
    """Makes its options when they are first asked for."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line; of a flag that there is not, say what to give instead."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            from prefork.contrib.flask.options import NOT_OURS
            from prefork.errors import report
            from prefork.options_click import no_such_option

            ctx.exit(report(no_such_option(error.option_name, error.possibilities, without=NOT_OURS)))

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the options."""
        if not self.params:
            self.params = _parameters()
        return super().get_params(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, grouped by what they are for; all of them with ``--help-all``."""
        from prefork.config import OPTIONS

        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            option = OPTIONS.get(parameter.name or "")
            row = parameter.get_help_record(ctx)
            if row is not None and (option is None or option.common or "prefork.help_all" in ctx.meta):
                groups.setdefault(option.group if option else "Command", []).append(row)
        for group, rows in groups.items():
            with formatter.section(group):
                formatter.write_dl(rows)


def _parameters() -> list[click.Parameter]:
    from prefork.contrib.flask.options import NOT_OURS
    from prefork.options_click import click_options

    def flag(*names: str, **more: Any) -> click.Option:
        return click.Option(list(names), **{"allow_from_autoenv": False, **more})

    ours = click_options(
        without=(*NOT_OURS, "reload_extra_files", "reload_exclude_patterns"),
        defaults={"bind": ("127.0.0.1:5000",), "redeploy": True},
    )
    for option in ours:
        option.allow_from_autoenv = False  # the environment is read by our own rules
    return [
        flag("-h", "--host", help="The interface to listen on.  [127.0.0.1; FLASK_RUN_PREFORK_HOST, FLASK_RUN_HOST]"),
        flag("-p", "--port", type=click.IntRange(0, 65535), help="The port to listen on; 0: any that is free.  [5000; FLASK_RUN_PREFORK_PORT, FLASK_RUN_PORT]"),
        flag("--debug/--no-debug", allow_from_autoenv=True, is_eager=True, expose_value=False, default=None, callback=_set_debug, help="Set debug mode, which turns --reload on.  [FLASK_DEBUG]"),
        flag("reload_extra_files", "--extra-files", "--reload-extra-files", multiple=True, callback=_split, metavar="PATH", help=f"Further files to watch, separated by {os.pathsep!r}."),
        flag("reload_exclude_patterns", "--exclude-patterns", "--reload-exclude-patterns", multiple=True, callback=_split, metavar="PATTERN", help=f"Files not to watch, as patterns separated by {os.pathsep!r}."),
        flag("--no-access-log", is_flag=True, help="Do not record requests, in debug mode or on a terminal either."),
        flag("--show-config", is_flag=True, help="Print each effective value and where it came from."),
        flag("--help-all", is_flag=True, is_eager=True, expose_value=False, callback=_help_all, help="Show all options."),
        *ours,
    ]  # fmt: skip


def _set_debug(_: click.Context, __: click.Parameter, value: bool | None) -> None:
    if value is not None:
        # In the environment, where a factory sees it as well.
        os.environ["FLASK_DEBUG"] = "1" if value else "0"


def _split(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(item for value in values for item in value.split(os.pathsep) if item)


def _help_all(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta["prefork.help_all"] = True
        click.echo(ctx.get_help())
        ctx.exit()


def _interrupt_once(*_: object) -> None:
    import signal

    # The terminal sends Ctrl-C to the whole group, and the keeper passes it on: the second would strike the way out.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


@pass_script_info
def _run(info: ScriptInfo, /, **options: Any) -> None:
    import signal
    import threading

    from prefork import errors

    context = click.get_current_context()
    try:
        from prefork.farewell import leave_threads
        from prefork.kept import failures_told
    except errors.PlatformUnsupported as error:
        context.exit(errors.report(error))
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt_once)
    try:
        with failures_told():
            status = _Run(info, options).run()
            leave_threads(status)
    except errors.PreforkError as error:
        status = errors.report(error)
    except KeyboardInterrupt:
        # Before the pool has taken over its signals, which end with 0 as well.
        status = 0
    context.exit(status)


class _Run:
    """One run of the command."""

    def __init__(self, info: ScriptInfo, options: dict[str, Any]) -> None:
        self.info = info
        self.show_config = options.pop("show_config")
        self.no_access_log = options.pop("no_access_log")
        self.host, self.port = options.pop("host"), options.pop("port")
        self.options = {name: value for name, value in options.items() if value is not None and value != ()}

    def run(self) -> int:
        """Serve, or show how; return the exit status."""
        from prefork.contrib.flask.serving import serve
        from prefork.kept import keep
        from prefork.values import replace

        if self.show_config:
            return self.show()
        # Without the application's settings: the outer process of the reloader must not load it, nor must root.
        early = self.resolve()
        # Whether there is an access log, the application may say.
        self.warned(replace(early, origins={**early.origins, "access_log": ""}))
        config = early.config
        if config.reload:
            return self.serve_anew(config)
        if config.user is not None or config.group is not None:
            return self.serve_as_somebody_else(config)
        keep(config)  # before there is an application, whose threads would be left behind
        app = self.load_app(config)
        config = self.warned(replace(self.resolve(app), strays={})).config
        return self.serve_anew(config) if config.reload else serve(app, config, name=self.name(app))

    def resolve(self, app: Flask | None = None) -> Resolved:
        """Merge what the command was given with everything else; raises ``ConfigError``."""
        from flask.helpers import get_debug_flag

        from prefork.contrib.flask.options import Given, resolve_options

        port = None if self.port is None else str(self.port)
        given = Given(
            host=self.host,
            port=port,
            options=self.options,
            settings={} if app is None else app.config,
            no_access_log=self.no_access_log,
        )
        return resolve_options(given, debug=get_debug_flag() if app is None else app.debug, redeploy=True)

    def show(self) -> int:
        """Print the options in effect."""
        app = self.load_app(self.resolve().config)
        click.echo(self.warned(self.resolve(app)).describe())
        return 0

    def warned(self, resolved: Resolved) -> Resolved:
        """Tell the user what has no effect; return the same."""
        for line in resolved.warnings:
            click.echo(line, err=True)
        return resolved

    def load_app(self, config: Config) -> Flask:
        """Return the application as Flask finds it in ``chdir``; raises ``AppFailed`` for what its code raises."""
        from prefork.pool import directory

        with directory(config.chdir):
            try:
                return self.info.load_app()
            except click.ClickException:
                raise  # Flask's own line on what it did not find
            except (Exception, SystemExit) as error:
                from prefork.loading import failure

                via = (__file__, cli.__file__)
                raise failure("PF206", f"loading {self.name()}", error, via=via) from error

    def serve_anew(self, config: Config) -> int:
        """Serve under the reloader."""
        from flask.helpers import get_debug_flag

        from prefork.contrib.flask.serving import serve_anew

        return serve_anew(
            lambda: self.load(config),
            config,
            name=self.name(),
            debug=get_debug_flag(),
            import_path=self.info.app_import_path,
        )

    def load(self, listening: Config) -> tuple[Flask, Config]:
        """Return the application, and the options with its settings; say if they ask for another address."""
        app = self.load_app(listening)
        config = self.resolve(app).config
        if config.bind != listening.bind:
            click.secho(
                f" * app.config asks for {', '.join(config.bind)}, but with --reload the address is chosen before the "
                f"application is loaded: it is {', '.join(listening.bind)}.\n"
                "   Set FLASK_RUN_PREFORK_BIND, for instance in .flaskenv. [PF606]",
                fg="yellow",
                err=True,
            )
        return app, config

    def serve_as_somebody_else(self, config: Config) -> int:
        """Do what only root may and become the user, before the application's code runs."""
        from prefork.contrib.flask.serving import serve
        from prefork.kept import keep
        from prefork.listeners import open_listeners
        from prefork.pid_file import pid_file
        from prefork.pool import Opened, directory, read_certificate, umask
        from prefork.privileges import drop, resolve_ids
        from prefork.records import Records

        keeper = keep(config)
        with ExitStack() as stack:
            stack.enter_context(umask(config.umask))
            owner = resolve_ids(config.user, config.group)
            inherited = None if keeper is None else keeper.inherited
            listeners = stack.enter_context(open_listeners(config, owner=owner, inherited=inherited))
            with directory(config.chdir):
                opened = Opened(outlet=Records(config).outlet, tls=read_certificate(config))
                started = listeners.starter_generation is not None
                stack.enter_context(
                    pid_file(config.pid_file, None if keeper is None else keeper.pid, replaces_sibling=started)
                )
            drop(config)
            app = self.load_app(config)
            late = self.with_first(config, self.resolve(app))
            return serve(app, late, name=self.name(app), listeners=listeners, opened=opened)

    def with_first(self, first: Config, resolved: Resolved) -> Config:
        """Return the options with the application's settings, but for those that had to be known before it was loaded.

        Says which of its settings are ignored.
        """
        from prefork.values import replace

        late = [name for name in _BEFORE_THE_APP if resolved.origins[name].startswith("app.config ")]
        if late:
            click.secho(
                f" * app.config is not asked for {', '.join(late)}: with --user the application is loaded after that is "
                "needed.\n   Give flags, or set PREFORK_BIND and so on. [PF606]",
                fg="yellow",
                err=True,
            )
        known = {name: getattr(first, name) for name in _BEFORE_THE_APP}
        return replace(resolved.config, **known, bind_from=first.bind_from)

    def name(self, app: Flask | None = None) -> str:
        """Return what the banner calls the application."""
        return self.info.app_import_path or (app.name if app is not None else "app")


run_prefork = _Command(
    "run-prefork",
    callback=_run,
    short_help="Run a pool of prefork workers.",
    help="Serve the application with a pool of preforked worker processes, in development and in production.",
)
