"""What does ``manage.py runprefork`` do?"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.cache import caches
from django.core.management.base import BaseCommand, CommandError
from django.core.servers.basehttp import get_internal_wsgi_application
from django.db import connections
from django.urls import get_resolver

from prefork.config import OPTIONS, Config, resolve
from prefork.errors import PreforkError, report

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Callable, Sequence

    from prefork.pool import WorkerPool

_ADDRPORT = re.compile(r"(?:(?P<host>\[[0-9A-Fa-f:]+\]|[^:]+):)?(?P<port>[0-9]+)")


class Command(BaseCommand):
    """Serves the project; ``get_handler``, ``get_pool`` and ``on_bind`` may be overridden."""

    help = "Serves the project with a pool of preforked worker processes: fit for production."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the address, Django's own options, and ours."""
        parser.add_argument("addrport", nargs="?", help="Port, or address:port; 127.0.0.1:8000 unless given.")
        parser.add_argument(
            "--nostatic", action="store_false", dest="use_static_handler", help="Do not serve static files under DEBUG."
        )
        parser.add_argument(
            "--insecure", action="store_true", dest="insecure_serving", help="Serve static files without DEBUG too."
        )
        for option in OPTIONS.values():
            flags = [flag for flag in option.flags if flag.startswith("--") or flag in {"-w", "-b"}]
            if option.kind == "bool":
                parser.add_argument(option.flag, dest=option.name, action="store_true", default=None, help=option.help)
                parser.add_argument(
                    f"--no-{option.flag[2:]}", dest=option.name, action="store_false", help="The opposite."
                )
            else:
                action = "append" if option.multiple else "store"
                parser.add_argument(
                    *flags, dest=option.name, action=action, default=None, help=option.help.replace("%", "%%")
                )

    def handle(self, *_: Any, **options: Any) -> None:
        """Check the project, and serve it."""
        try:
            config = self.get_config(options)
            if not settings.DEBUG and not settings.ALLOWED_HOSTS:
                raise CommandError("You must set settings.ALLOWED_HOSTS if DEBUG is False.")
            self.prepare()
            status = self.serve(config, options)
        except PreforkError as error:
            status = report(error)
        if status:
            sys.exit(status)

    def get_config(self, options: dict[str, Any]) -> Config:
        """Merge flags, environment and ``settings.PREFORK``; raises ``ConfigError``."""
        flags = {name: options[name] for name in OPTIONS if options.get(name) is not None}
        if options["addrport"]:
            match = _ADDRPORT.fullmatch(options["addrport"])
            if match is None:
                raise CommandError(f"{options['addrport']!r} is not a valid port number or address:port pair.")
            flags["bind"] = (f"{match['host'] or '127.0.0.1'}:{match['port']}",)
        return resolve(flags=flags, settings=getattr(settings, "PREFORK", {}), settings_name="settings PREFORK").config

    def prepare(self) -> None:
        """Do once, in the parent, what each worker would do again."""
        if settings.DEBUG:
            self.check_migrations()
        _ = get_resolver().url_patterns
        close_shared()

    def serve(self, config: Config, options: dict[str, Any]) -> int:
        """Serve, and look after changed files with ``--reload``."""
        handler = self.get_handler(**options)
        if not config.reload:
            return self.get_pool(handler, config).serve()
        from prefork import reloader

        if not reloader.inside():
            return reloader.run_outer(config)
        with reloader.inherited_listeners(config) as listeners:
            watch = reloader.watcher(config)
            return self.get_pool(handler, config, listeners=listeners, files_changed=watch).serve()

    def get_handler(self, **options: Any) -> Callable[..., Any]:
        """Return the WSGI application, with static files as ``runserver`` serves them."""
        handler: Any = get_internal_wsgi_application()
        static = "django.contrib.staticfiles" in settings.INSTALLED_APPS
        if static and options["use_static_handler"] and (settings.DEBUG or options["insecure_serving"]):
            from django.contrib.staticfiles.handlers import StaticFilesHandler

            return StaticFilesHandler(handler)
        return handler  # type: ignore[no-any-return]  # Django's stubs leave it open

    def get_pool(self, handler: Callable[..., Any], config: Config, **more: Any) -> WorkerPool:
        """Return the pool that will serve ``handler``."""
        from prefork.pool import WorkerPool

        def listening(urls: Sequence[str]) -> None:
            # Else Django says nothing at all about a view that raises: its own handlers are for DEBUG.
            if not settings.DEBUG and not settings.LOGGING:
                pool.records.adopt_root()
            self.on_bind(urls)

        pool = WorkerPool(
            handler,
            config=config,
            hygiene=(close_shared,),
            child_hygiene=(forget_connections,),
            thread_exit=connections.close_all,
            on_listening=listening,
            **more,
        )
        return pool

    def on_bind(self, urls: Sequence[str]) -> None:
        """Say where the project is served, on a terminal."""
        if self.stderr.isatty():
            for url in urls:
                self.stderr.write(f"Serving {settings.SETTINGS_MODULE} at {url}", self.style.SUCCESS)
            self.stderr.write("Quit with CONTROL-C.", self.style.SUCCESS)


def close_shared() -> None:
    """Close what a worker must not share with the parent: connections, their pools, and caches. Before every fork."""
    for connection in connections.all(initialized_only=True):
        connection.close()
        if hasattr(connection, "close_pool"):
            connection.close_pool()
    caches.close_all()


def forget_connections() -> None:
    """Forget, in a worker, whatever connection a hook may have left: to close it would end the parent's session."""
    for connection in connections.all(initialized_only=True):
        del connections[connection.alias]
