"""Which source says how a Flask application is served?

For each option the first that gives it: a flag or argument, ``FLASK_RUN_PREFORK_*``, ``PREFORK_*``, ``app.config``,
``FLASK_RUN_HOST``, ``_PORT``, ``_CERT`` and ``_KEY`` (which a project may have for ``flask run``), ``WEB_CONCURRENCY`` and
``PORT``, ``SERVER_NAME`` (from code only, as in ``app.run()``), the default.
"""

from __future__ import annotations

import os
import sys
from dataclasses import field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefork.addresses import PORT_HINT, is_port
from prefork.config import ADHOC, check, is_of_kubernetes, resolve
from prefork.contrib.serving import with_access_log_off
from prefork.errors import ConfigError
from prefork.terminal import is_terminal
from prefork.values import Value, replace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prefork.config import Resolved

PREFIXES = ("FLASK_RUN_PREFORK_", "PREFORK_")
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", "5000"
NOT_OURS = {"app_dir": "Flask finds the application", "preload": "the application is always loaded before the fork"}
# What the environment has for us besides the options: the address by parts, and what the command's own flag --debug reads.
_NO_STRAYS = {"PREFORK_HOST", "PREFORK_PORT", *(PREFIXES[0] + name for name in ("HOST", "PORT", "DEBUG"))}
# What is for any server of the application, or for want of a better address: no reason to refuse inherited sockets.
_UNASKED = {"environment FLASK_RUN_*", "environment PORT", "app.config SERVER_NAME"}


class Given(Value, kw_only=True):
    """What a command or a call gives: an address, other ``options``, and ``app.config`` as ``settings``."""

    host: str | None = None
    port: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    no_access_log: bool = False

    @property
    def own_settings(self) -> dict[str, Any]:
        """The settings that are ours, without their prefix."""
        return {
            str(key).removeprefix("PREFORK_"): value
            for key, value in self.settings.items()
            if str(key).startswith("PREFORK_")
        }


def _as_ours(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options in which TLS may be spelt as for ``flask run`` and ``app.run()``, in our spelling.

    There ``cert`` may be the name of a context that is imported, and ``ssl_context`` "adhoc" or a pair of files.
    """
    ours = {key: value for key, value in options.items() if value is not None}
    names = {str(key).lower(): key for key in ours}
    if "cert" in names and (name := _context_name(ours[names["cert"]])) is not None:
        del ours[names["cert"]]
        ours["ssl_context"] = name
    elif "ssl_context" in names:
        match ours[names["ssl_context"]]:
            case "adhoc":
                del ours[names["ssl_context"]]
                ours["cert"] = "adhoc"
            case (cert, key):
                del ours[names["ssl_context"]]
                ours |= {"cert": cert, "key": key}
    return ours


def _of_flask_run(environ: Mapping[str, str], given: Iterable[str]) -> dict[str, Any]:
    """Return what the environment says of TLS to ``flask run``, if nobody says anything of it to us."""
    ours = {prefix + name for prefix in PREFIXES for name in ("CERT", "SSL_CONTEXT")}
    if {"cert", "ssl_context"} & {name.lower() for name in given} or any(map(environ.get, ours)):
        return {}
    return _as_ours({name: environ.get(f"FLASK_RUN_{name.upper()}") or None for name in ("cert", "key")})


def _context_name(cert: Any) -> str | None:
    """Return ``module:name`` if this is the name of something to import, as ``module:name`` or ``module.name``."""
    if not isinstance(cert, str) or cert == ADHOC or Path(cert).exists():
        return None
    module, colon, name = cert.partition(":") if ":" in cert else cert.rpartition(".")
    if not (module and all(part.isidentifier() for part in [*module.split("."), *name.split(".")])):
        return None
    if colon == ".":  # or it is a file that is not there
        try:
            there = find_spec(module) is not None
        except (ImportError, ValueError):
            there = False
        if not there:
            return None
    return f"{module}:{name}"


class _Source(Value):
    """One place where an address may be given: by parts, or as ``bind``."""

    origin: str
    host: Any = None
    port: Any = None
    bind: Any = None
    whole: bool = False  # its host goes with its port alone

    def of(self, part: str) -> str:
        """Return who gave one part of the address."""
        return self.origin.replace("*", part)


def resolve_options(
    given: Given,
    *,
    debug: bool,
    server_name: str | None = None,
    environ: Mapping[str, str] | None = None,
    redeploy: bool = False,
) -> Resolved:
    """Merge all sources; ``redeploy`` is the default of that option. Raises ``ConfigError``."""
    environ = os.environ if environ is None else environ
    if given.options.get("bind") and (given.host is not None or given.port is not None):
        raise ConfigError("PF605", "bind is given beside a host or a port", "give either --bind, or --host and --port")
    settings = given.own_settings
    flags = dict(given.options)
    origin = None
    if (address := _address(_sources(given, settings, environ, server_name))) is not None:
        flags["bind"], origin = (address[0],), address[1]
    flags, settings = _as_ours(flags), _as_ours(settings)
    others = _of_flask_run(environ, {*flags, *settings})
    settings = {key: value for key, value in settings.items() if key not in {"HOST", "PORT", "LOGGING"}}
    people = debug or is_terminal(sys.stderr)
    resolved = resolve(
        flags=flags,
        environ=environ,
        prefixes=PREFIXES,
        settings=settings,
        settings_name="app.config PREFORK_",
        defaults={
            "bind": (join(DEFAULT_HOST, DEFAULT_PORT),),
            "reload": debug,
            "access_log": "-" if people else None,
            "redeploy": redeploy,
            **others,
        },
        without=NOT_OURS,
    )
    origins = {name: "environment FLASK_RUN_*" for name in others if resolved.origins[name] == "default"}
    strays = {variable: hint for variable, hint in resolved.strays.items() if variable not in _NO_STRAYS}
    resolved = replace(resolved, origins={**resolved.origins, **origins}, strays=strays)
    if origin is not None:
        config = replace(resolved.config, bind_from="" if origin in _UNASKED else origin)
        resolved = replace(resolved, config=config, origins={**resolved.origins, "bind": origin})
    return with_access_log_off(resolved) if given.no_access_log else resolved


def _sources(
    given: Given, settings: Mapping[str, Any], environ: Mapping[str, str], server_name: str | None
) -> Iterator[_Source]:
    yield _Source("flag --host, --port", given.host, given.port, given.options.get("bind"))
    for prefix in PREFIXES:
        host, port, bind = (environ.get(prefix + name) for name in ("HOST", "PORT", "BIND"))
        link = port is not None and is_of_kubernetes("PORT", port)
        yield _Source(f"environment {prefix}*", host, None if link else port, bind)
    yield _Source("app.config PREFORK_*", settings.get("HOST"), settings.get("PORT"), settings.get("BIND"))
    yield _Source("environment FLASK_RUN_*", environ.get("FLASK_RUN_HOST"), environ.get("FLASK_RUN_PORT"))
    if environ.get("PORT"):
        yield _Source("environment PORT", "0.0.0.0", environ["PORT"], whole=True)  # noqa: S104 - as platforms expect
    if server_name:
        name, _, number = server_name.partition(":")
        yield _Source("app.config SERVER_NAME", name, number)


def _address(sources: Iterator[_Source]) -> tuple[str, str] | None:
    """Return the address that is given by its parts and by whom, ``None`` if there is none or a ``bind`` comes first.

    Raises ``ConfigError`` for a part that cannot be.
    """
    host = port = origin = None
    of_host = ""
    for source in sources:
        if source.bind and host is None and port is None:
            return None
        if source.whole and port is not None:
            continue
        if host is None and source.host:
            host, origin, of_host = source.host, origin or source.origin, source.of("HOST")
            if not isinstance(host, str):
                raise ConfigError("PF301", f"the host is {host!r} ({of_host})", "give a text such as '127.0.0.1'")
        if port is None and source.port not in {None, ""}:
            port, origin = source.port, origin or source.origin
            if not is_port(str(port)):
                raise ConfigError("PF302", f"the port is {port!r} ({source.of('PORT')})", PORT_HINT)
    if origin is None:
        return None
    if host is not None and host.count(":") == 1 and not host.startswith("unix://"):
        raise ConfigError("PF301", f"the host is {host!r} ({of_host})", "give --bind, or --host and --port")
    address = join(host or DEFAULT_HOST, DEFAULT_PORT if port is None else port)
    check("bind", (address,), of_host)
    return address, origin


def join(host: str, port: Any) -> str:
    """Return host and port as a value of ``bind``; ``unix://PATH`` is a host as well, as for ``flask run``."""
    if host.startswith("unix://"):
        return "unix:" + host.removeprefix("unix://")
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
