"""Which settings do not go together with several processes?"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core import checks

from prefork.config import Config, resolve
from prefork.errors import ConfigError

_SQLITE = "django.db.backends.sqlite3"
_LOCAL_CACHE = "django.core.cache.backends.locmem.LocMemCache"


@checks.register("prefork")
def check_settings(**_: Any) -> list[checks.CheckMessage]:
    """Check ``PREFORK`` and what several processes would trip over."""
    try:
        config = resolve(settings=getattr(settings, "PREFORK", {}), settings_name="settings PREFORK").config
    except ConfigError as error:
        return [checks.Error(error.message, hint=error.hint, id="prefork.E001")]
    found = _persistent_connections(config)
    if config.max_workers > 1:
        found += [*_local_caches(), *_sessions_in_local_cache(), *_sqlite()]
    return found


def _persistent_connections(config: Config) -> list[checks.CheckMessage]:
    kept = [alias for alias, database in settings.DATABASES.items() if database.get("CONN_MAX_AGE", 0) != 0]
    if not kept:
        return []
    product = f"{config.max_workers} workers x {config.threads} threads = {config.max_workers * config.threads}"
    hint = f"The database must allow {product} sessions, and more while workers are replaced."
    return [checks.Warning(f"Connections of {', '.join(kept)} are persistent.", hint=hint, id="prefork.W002")]


def _local_caches() -> list[checks.CheckMessage]:
    # Django's default is such a cache: only who asks for one may count on it.
    local = [alias for alias in settings.CACHES if _is_local(alias)] if settings.is_overridden("CACHES") else []
    if not local:
        return []
    hint = "What one worker stores or deletes, the others do not see. Use a cache that all share."
    return [checks.Warning(f"The cache {', '.join(local)} is a LocMemCache.", hint=hint, id="prefork.W004")]


def _sessions_in_local_cache() -> list[checks.CheckMessage]:
    in_cache = settings.SESSION_ENGINE == "django.contrib.sessions.backends.cache"
    if not in_cache or not _is_local(settings.SESSION_CACHE_ALIAS):
        return []
    hint = "Each worker has a cache of its own, so users are logged out at random. Use a shared cache, or the database."
    return [checks.Warning("Sessions are kept in a LocMemCache.", hint=hint, id="prefork.W005")]


def _sqlite() -> list[checks.CheckMessage]:
    files = [alias for alias, database in settings.DATABASES.items() if database.get("ENGINE") == _SQLITE]
    if not files:
        return []
    hint = "Writers wait for each other, and fail with 'database is locked' after the timeout."
    return [checks.Warning(f"The database {', '.join(files)} is SQLite.", hint=hint, id="prefork.W008")]


def _is_local(alias: str) -> bool:
    return bool(settings.CACHES.get(alias, {}).get("BACKEND") == _LOCAL_CACHE)
