"""What does ``manage.py runprefork`` do?"""

from __future__ import annotations

import os
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.management.base import BaseCommand, CommandError
from django.core.servers.basehttp import get_internal_wsgi_application
from django.db import connections
from django.db.utils import OperationalError
from django.urls import get_resolver
from django.utils.module_loading import import_string

from prefork.contrib.django import checks, fork, signals
from prefork.contrib.django.options import add_options, joins_logs, no_such_flag, resolve_options
from prefork.contrib.serving import when_ready
from prefork.errors import AppFailed, ConfigError, PlatformUnsupported, PreforkError, report

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Callable, Sequence

    from prefork.config import Config
    from prefork.pool import WorkerPool


class Command(BaseCommand):
    """Serves the project; ``get_handler``, ``get_pool`` and ``on_bind`` may be overridden."""

    help = "Serves the project with a pool of preforked worker processes, in development and in production."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add what ``runserver`` has, and our options."""
        parser.add_argument("addrport", nargs="?", help="Port, or address:port.  [127.0.0.1:8000]")
        parser.add_argument("--ipv6", "-6", action="store_true", dest="use_ipv6", help="Listen on an IPv6 address.")
        parser.add_argument(
            "--asgi", action="store_true", help="Serve ASGI_APPLICATION, or get_asgi_application(), in an event loop."
        )
        parser.add_argument(
            "--nostatic", action="store_false", dest="use_static_handler", help="Do not serve static files under DEBUG."
        )
        parser.add_argument(
            "--insecure", action="store_true", dest="insecure_serving", help="Serve static files without DEBUG too."
        )
        parser.add_argument(
            "--check-migrations", action="store_true", default=None, help="Say which are missing.  [on under DEBUG]"
        )
        parser.add_argument(
            "--no-check-migrations", action="store_false", dest="check_migrations", help="Start without the database."
        )
        parser.add_argument(
            "--show-config", action="store_true", help="Print each effective value and where it is from."
        )
        add_options(parser)

    def run_from_argv(self, argv: list[str]) -> None:
        """Run the command; of a flag that there is not, say what to give instead."""
        parser = self.create_parser(argv[0], argv[1])
        parser.called_from_command_line = True
        _, unknown = parser.parse_known_args(argv[2:])
        flag = next((word.partition("=")[0] for word in unknown if word.startswith("-")), None)
        if flag is not None:
            error = no_such_flag(flag)
            self.stderr.write(f"CommandError: {error}")
            sys.exit(error.exit_code)
        super().run_from_argv(argv)

    def get_check_kwargs(self, options: dict[str, Any]) -> dict[str | None, Any]:  # noqa: ARG002
        """Check nothing yet: ``prepare`` does, each time the project is loaded."""
        return {"tags": set()}

    def handle(self, *_: Any, **options: Any) -> None:
        """Serve the project, or show how."""
        for flag, variable in (("no_color", "NO_COLOR"), ("force_color", "FORCE_COLOR")):
            if options[flag]:  # the records look there
                os.environ[variable] = "1"
        try:
            from prefork.kept import failures_told
        except PlatformUnsupported as error:
            raise CommandError(str(error), returncode=error.exit_code) from None
        try:
            with failures_told():
                self.serve_or_show(options)
        except AppFailed as error:
            sys.exit(report(error))
        except PreforkError as error:
            raise CommandError(str(error), returncode=error.exit_code) from error.__cause__

    def serve_or_show(self, options: dict[str, Any]) -> None:
        """Serve, or show how; a status other than 0 ends the process."""
        from prefork.farewell import leave_threads
        from prefork.privileges import refuse_late

        try:
            resolved = resolve_options(options)
            for line in resolved.warnings:
                self.stderr.write(self.style.WARNING(line))
            if options["show_config"]:
                self.stdout.write(resolved.describe())
                return
            if not settings.DEBUG and not settings.ALLOWED_HOSTS:
                raise ConfigError("PF608", "ALLOWED_HOSTS is empty and DEBUG is False", "name the hosts to answer for")
            refuse_late(resolved.config)
            status = (
                self.serve_anew(resolved.config, options)
                if resolved.config.reload
                else self.serve(resolved.config, options)
            )
        except KeyboardInterrupt:
            # Before the pool has taken over its signals, which end with 0 as well.
            status = 0
        leave_threads(status)
        if status:
            sys.exit(status)

    def serve_anew(self, config: Config, options: dict[str, Any]) -> int:
        """Serve the project, and again after each edit; return the exit status."""
        from prefork import reloader

        files = template_folders()
        if not reloader.inside():
            return reloader.run_outer(config, files=files, on_listening=self.on_bind)
        # Before the rest of the project is loaded: an edit meanwhile is an edit.
        watch = reloader.watcher(config, files=files)
        with reloader.inherited_listeners(config) as listeners:
            return self.serve(config, options, listeners=listeners, files_changed=watch)

    def serve(self, config: Config, options: dict[str, Any], **more: Any) -> int:
        """Serve the project until stopped; return the exit status. ``more`` is for the pool."""
        from prefork.kept import keep
        from prefork.pool import directory

        if not config.reload:
            keep(config)
        with directory(config.chdir):
            handler = self.load(config, options)
        return self.get_pool(handler, config, **more).serve()

    def load(self, config: Config, options: dict[str, Any]) -> Callable[..., Any]:
        """Return the application of the project; raises ``AppFailed`` for what its code raises."""
        try:
            self.prepare(config, options)
            return self.get_handler(**options)
        except (CommandError, PreforkError):
            raise  # a line that says what is wrong
        except (Exception, SystemExit) as error:
            from prefork.loading import failure

            via = (str(Path(django.__file__).parent), str(Path(checks.__file__).parent))
            raise failure("PF206", "loading the project", error, via=via) from error

    def prepare(self, config: Config, options: dict[str, Any]) -> None:
        """Do once, in the parent, what each worker would do again."""
        if not options["skip_checks"]:
            checks.check_for(config)
            self.check(display_num_errors=True)
            if options["use_static_handler"] and not options["insecure_serving"]:
                for message in checks.static_files():
                    if not message.is_silenced():
                        self.stderr.write(self.style.WARNING(str(message)))
        wanted = options["check_migrations"]
        if settings.DEBUG if wanted is None else wanted:
            self.look_at_migrations()
        # With --skip-checks nobody has: then each worker would, in its first request.
        _ = get_resolver().url_patterns
        fork.close_shared()

    def look_at_migrations(self) -> None:
        """Say which migrations are missing, as ``runserver`` does; that there is no database is only said."""
        try:
            self.check_migrations()
        except OperationalError as error:
            self.stderr.write(self.style.WARNING(f"Migrations could not be checked: {error}"))

    def get_handler(self, *_: Any, **options: Any) -> Callable[..., Any]:
        """Return the WSGI application, or that of ASGI, with static files exactly where ``runserver`` serves them."""
        asgi = options["asgi"]
        handler: Callable[..., Any] = asgi_application() if asgi else get_internal_wsgi_application()
        installed = "django.contrib.staticfiles" in settings.INSTALLED_APPS
        if installed and options["use_static_handler"] and (settings.DEBUG or options["insecure_serving"]):
            from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler, StaticFilesHandler

            return (ASGIStaticFilesHandler if asgi else StaticFilesHandler)(handler)  # type: ignore[arg-type]  # it acts like Django's own
        return handler

    def get_pool(self, handler: Callable[..., Any], config: Config, **more: Any) -> WorkerPool:
        """Return the pool that will serve ``handler``. ``more`` are further arguments of ``WorkerPool``."""
        from prefork.pool import WorkerPool

        def on_listening(urls: Sequence[str]) -> None:
            if joins_logs():
                pool.records.adopt_root()
            if "files_changed" not in more:  # else the reloader has said it
                self.on_bind(urls)

        if signals.pool_ready.receivers:
            config = when_ready(config, lambda: signals.pool_ready.tell(pool.records))
        pool = WorkerPool(
            handler,
            config=config,
            hygiene=(fork.close_shared,),
            child_hygiene=(fork.forget_inherited,),
            thread_exit=fork.close_thread,
            on_listening=on_listening,
            app_name=settings.SETTINGS_MODULE,
            **more,
        )
        pool.hooks.worker_started.append(lambda worker: signals.worker_started.tell(pool.records, worker=worker))
        pool.hooks.worker_exiting.append(lambda worker: signals.worker_stopping.tell(pool.records, worker=worker))
        # What a hook of the worker has opened belongs to a thread that never serves a request.
        pool.hooks.worker_exiting.append(lambda _worker: connections.close_all())
        return pool

    def on_bind(self, urls: Sequence[str]) -> None:
        """Say on a terminal what ``runserver`` says; elsewhere the records do."""
        if not self.stdout.isatty():
            return
        now = datetime.now().astimezone().strftime("%B %d, %Y - %X")
        self.stdout.write(f"{now}\nDjango version {self.get_version()}, using settings {settings.SETTINGS_MODULE!r}")
        from prefork.listeners import reachable

        for url in urls:
            for shown in reachable(url):
                self.stdout.write(f"Starting prefork at {shown}{'/' if shown.startswith('http') else ''}")
        self.stdout.write("Quit the server with CONTROL-C.")


def asgi_application() -> Callable[..., Any]:
    """Return what ``ASGI_APPLICATION`` names, a setting of channels and daphne, or else Django's own."""
    if (name := getattr(settings, "ASGI_APPLICATION", None)) is not None:
        application: Callable[..., Any] = import_string(name)
        return application
    return get_asgi_application()


def template_folders() -> list[str]:
    """Return the folders of templates: Django keeps them in memory, so an edit must reach new workers."""
    from django.template.autoreload import get_template_directories

    return sorted(str(folder) for folder in get_template_directories())
