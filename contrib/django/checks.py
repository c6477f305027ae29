"""Which settings do not go together with several processes?

``prefork.E001`` unknown key of ``PREFORK``, ``E002`` wrong value; ``W001`` DEBUG (deploy),
``W002`` persistent connections, ``W003`` connection pools, ``W004`` a cache and ``W005`` sessions that each worker has for
itself, ``W006`` persistent connections under ASGI (deploy), ``W007`` nobody serves static files (deploy, and when
``runprefork`` starts), ``W008`` SQLite, ``W009`` no WSGI application, ``W010`` no fork on this system, ``W011`` something
else that ``PREFORK`` asks for is not there.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core import checks

from prefork.contrib.django.options import joins_logs, resolve_options
from prefork.errors import ConfigError, MissingExtra, NotHere

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefork.config import Config

_LOCAL_CACHE = "django.core.cache.backends.locmem.LocMemCache"
_POOL_SIZE = 4
"""How many connections psycopg's pool opens unless told otherwise."""
_in_use: list[Config] = []


def check_for(config: Config) -> None:
    """Let the checks suppose ``config``, which a command line may have changed, instead of what the settings give."""
    _in_use[:] = [config]


@checks.register("prefork")
def check_settings(**_: Any) -> list[checks.CheckMessage]:
    """Check ``PREFORK``, and what several processes would trip over."""
    if not hasattr(os, "fork"):
        # No error: it would keep whoever develops there from every other command. runprefork itself does not start.
        hint = "runprefork does not start here: it runs on Linux and macOS."
        return [checks.Warning("This system cannot fork.", hint=hint, id="prefork.W010")]
    try:
        config = _in_use[0] if _in_use else resolve_options().config
        joins_logs()
    except (MissingExtra, NotHere) as error:
        hint = f"runprefork does not start here: {error.hint}."
        return [checks.Warning(f"PREFORK: {error.message}.", hint=hint, id="prefork.W011")]
    except ConfigError as error:
        number = "E001" if error.code == "PF101" else "E002"
        return [checks.Error(f"PREFORK: {error.message}.", hint=error.hint, id=f"prefork.{number}")]
    found = list(_wsgi_application())
    if config.max_workers > 1:
        found += [*_persistent(config), *_pools(config), *_local_caches(), *_local_sessions(), *_sqlite()]
    return found


@checks.register("prefork", deploy=True)
def check_deployment(**_: Any) -> list[checks.CheckMessage]:
    """Check what matters in production alone."""
    return [*_debug(), *_persistent_under_asgi(), *static_files()]


def static_files() -> Iterator[checks.CheckMessage]:
    """Say that nobody serves static files: ``runprefork`` does under DEBUG."""
    middleware = any("whitenoise" in name.lower() for name in settings.MIDDLEWARE)
    if "django.contrib.staticfiles" in settings.INSTALLED_APPS and not settings.DEBUG and not middleware:
        hint = (
            "Install whitenoise, or let the web server in front do it and silence this: "
            "SILENCED_SYSTEM_CHECKS = ['prefork.W007']."
        )
        yield checks.Warning("Static files are not served while DEBUG is off.", hint=hint, id="prefork.W007")


def _debug() -> Iterator[checks.CheckMessage]:
    if settings.DEBUG:
        hint = "Set DEBUG = False: it shows sources to anybody, and each worker remembers all its database queries."
        yield checks.Warning("DEBUG is on.", hint=hint, id="prefork.W001")


def _wsgi_application() -> Iterator[checks.CheckMessage]:
    path = settings.WSGI_APPLICATION
    try:
        missing = path is not None and find_spec(path.rpartition(".")[0]) is None
    except (ImportError, ValueError):
        missing = True
    if missing:
        hint = "Correct it, or leave it out: then Django makes the application."
        yield checks.Warning(f"WSGI_APPLICATION is {path!r}, which is not there.", hint=hint, id="prefork.W009")


def _kept() -> list[str]:
    return [alias for alias, database in settings.DATABASES.items() if database.get("CONN_MAX_AGE", 0) != 0]


def _persistent(config: Config) -> Iterator[checks.CheckMessage]:
    if kept := _kept():
        product = f"{config.max_workers} workers x {config.threads} threads = {config.max_workers * config.threads}"
        hint = f"The database must allow {product} sessions, and a few more while workers are replaced."
        yield checks.Warning(f"Connections of {', '.join(kept)} are persistent.", hint=hint, id="prefork.W002")


def _persistent_under_asgi() -> Iterator[checks.CheckMessage]:
    if getattr(settings, "ASGI_APPLICATION", None) and (kept := _kept()):
        hint = "Under an ASGI server they are never closed: set CONN_MAX_AGE = 0. Without --asgi runprefork serves WSGI, where it is fine."
        yield checks.Warning(
            f"Connections of {', '.join(kept)} are persistent, beside ASGI.", hint=hint, id="prefork.W006"
        )


def _pools(config: Config) -> Iterator[checks.CheckMessage]:
    for alias, database in settings.DATABASES.items():
        pool = database.get("OPTIONS", {}).get("pool")
        if pool:
            size = (pool.get("max_size") or pool.get("min_size") if isinstance(pool, dict) else None) or _POOL_SIZE
            product = f"{config.max_workers} workers x {size} connections = {config.max_workers * size}"
            hint = f"Each worker has a pool of its own: the database must allow {product} sessions."
            yield checks.Warning(f"The database {alias} has a connection pool.", hint=hint, id="prefork.W003")


def _local_caches() -> Iterator[checks.CheckMessage]:
    # Django's default is such a cache: only who asks for one may count on it.
    local = [alias for alias in settings.CACHES if _is_local(alias)] if settings.is_overridden("CACHES") else []
    if local:
        hint = "What one worker stores or deletes, the others do not see. Use a cache that all share."
        yield checks.Warning(f"The cache {', '.join(local)} is a LocMemCache.", hint=hint, id="prefork.W004")


def _local_sessions() -> Iterator[checks.CheckMessage]:
    engines = {"django.contrib.sessions.backends.cache", "django.contrib.sessions.backends.cached_db"}
    if settings.SESSION_ENGINE in engines and _is_local(settings.SESSION_CACHE_ALIAS):
        hint = (
            "Each worker has its own, so users are logged out, or see what was, at random. Use a cache that all share."
        )
        yield checks.Warning("Sessions, and messages in them, are kept in a LocMemCache.", hint=hint, id="prefork.W005")


def _sqlite() -> Iterator[checks.CheckMessage]:
    files = [alias for alias, database in settings.DATABASES.items() if "sqlite3" in database.get("ENGINE", "")]
    if files:
        hint = "Writers wait for each other, and fail with 'database is locked' after the timeout."
        yield checks.Warning(f"The database {', '.join(files)} is SQLite.", hint=hint, id="prefork.W008")


def _is_local(alias: str) -> bool:
    return bool(settings.CACHES.get(alias, {}).get("BACKEND") == _LOCAL_CACHE)
