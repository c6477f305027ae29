"""Which settings do not go together with several processes?"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core import checks

from prefork.config import Config, resolve
from prefork.errors import ConfigError

_LOCAL_CACHE = "django.core.cache.backends.locmem.LocMemCache"


@checks.register("prefork")
def check_settings(**_: Any) -> list[checks.CheckMessage]:
    """Check ``PREFORK`` and what several processes would trip over."""
    try:
        config = resolve(settings=getattr(settings, "PREFORK", {}), settings_name="settings PREFORK").config
    except ConfigError as error:
        return [checks.Error(error.message, hint=error.hint, id="prefork.E001")]
    return [*_caches(config), *_connections(config)]


def _caches(config: Config) -> list[checks.CheckMessage]:
    if (
        config.max_workers == 1
        or not _uses_sessions_in_cache()
        or settings.CACHES["default"]["BACKEND"] != _LOCAL_CACHE
    ):
        return []
    hint = "each worker has a cache of its own, so users are logged out at random: use a shared cache, or the database"
    return [checks.Warning("Sessions are kept in LocMemCache.", hint=hint, id="prefork.W005")]


def _uses_sessions_in_cache() -> bool:
    return "cache" in settings.SESSION_ENGINE and "cached_db" not in settings.SESSION_ENGINE


def _connections(config: Config) -> list[checks.CheckMessage]:
    kept = [
        alias
        for alias, database in settings.DATABASES.items()
        if database.get("CONN_MAX_AGE") != 0 and "CONN_MAX_AGE" in database
    ]
    if not kept:
        return []
    sessions = config.max_workers * config.threads
    hint = f"up to {config.max_workers} workers x {config.threads} threads = {sessions} sessions stay open"
    return [checks.Info(f"Connections of {', '.join(kept)} are persistent.", hint=hint, id="prefork.I002")]
