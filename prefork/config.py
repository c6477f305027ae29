"""Which options are there, what may they be, and which source wins?

Each option is declared once, as a field of ``Config``; command lines, settings keys, environment names and the options
page are made from it.
"""

from __future__ import annotations

import math
import os
import re
import sys
from dataclasses import field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from prefork import memory
from prefork.access_format import FORMATS, compile_format
from prefork.addresses import parse_bind
from prefork.errors import ConfigError, MissingExtra, NotHere
from prefork.targets import is_target, parse_target
from prefork.trust import NOBODY, UNIX, parse_proxy
from prefork.values import NOTHING, Value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prefork.hooks import BeforeFork, InWorker, OnRecord, RequestFilter, WarmUp

QUICK_STOP_S = 3.0
"""How long running requests get after INT."""
ADHOC = "adhoc"
"""The certificate that is made up."""
KIB, GIB = 1024, 1024**3
_UNITS = {"G": GIB, "M": KIB**2, "K": KIB}
_SIZE = re.compile(r"(?P<number>[0-9]{1,18})(?:(?P<unit>[KMG])(?:I?B)?)?")
_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}
_PERMISSIONS = 0o777
# poll() takes milliseconds in a C int: no wait is longer than 24 days.
_LONGEST = 1_000_000
# listen() takes a C int.
_MOST_QUEUED = 2**31 - 1
# How much alike two names must be of which one is meant by the other: less if they have a word in common.
_TYPING_ERROR = 0.8
_RELATED = 0.6
# What other servers call it, where spelling alone would not lead there; letters are gunicorn's flags.
_ELSEWHERE = {
    "access_logfile": "access_log",
    "access_logformat": "access_log_format",
    "accesslog": "access_log",
    "cert_reqs": "ssl_verify",
    "certfile": "cert",
    "error_logfile": "log_file",
    "errorlog": "log_file",
    "exclude_patterns": "reload_exclude_patterns",
    "extra_files": "reload_extra_files",
    "forwarded_allow_ips": "trusted_proxies",
    "gid": "group",
    "harakiri": "request_timeout",
    "header_map": "underscores_in_headers",
    "host": "bind",
    "http_socket": "bind",
    "keepalive": "keep_alive_timeout",
    "keyfile": "key",
    "limit_max_requests": "max_reqs_per_child",
    "limit_request_field_size": "max_head_size",
    "limit_request_fields": "max_header_count",
    "limit_request_line": "max_request_line_size",
    "loop": "async_backend",
    "max_requests": "max_reqs_per_child",
    "max_worker_lifetime": "max_worker_age",
    "n": "proc_name",
    "pid": "pid_file",
    "port": "bind",
    "processes": "max_workers",
    "proxy_allow_from": "trusted_proxies",
    "proxy_allow_ips": "trusted_proxies",
    "proxy_headers": "forwarded_headers",
    "pythonpath": "app_dir",
    "reload_dir": "reload_extra_files",
    "reload_include": "reload_extra_files",
    "reload_on_rss": "max_memory",
    "script_name": "root_path",
    "socket": "bind",
    "ssl_ca_certs": "ca_certs",
    "ssl_cert_reqs": "ssl_verify",
    "ssl_certfile": "cert",
    "ssl_certificate": "cert",
    "ssl_keyfile": "key",
    "ssl_version": "ssl_context",
    "timeout": "request_timeout",
    "timeout_graceful_shutdown": "graceful_timeout",
    "timeout_keep_alive": "keep_alive_timeout",
    "trusted_proxy": "trusted_proxies",
    "trusted_proxy_headers": "forwarded_headers",
    "u": "user",
    "uds": "bind",
    "uid": "user",
    "url_prefix": "root_path",
    "worker_connections": "limit_concurrency",
    "workers_lifetime": "max_worker_age",
    "workers_max_rss": "max_memory",
}
# What other servers have an option for, and here goes without.
_NEEDLESS = {
    "app": "the application is named on the command line: prefork shop:app, or flask --app shop",
    "c": "the command prefork has --config FILE, which takes TOML",
    "capture_output": "what the application prints goes to stdout and stderr",
    "config": "the command prefork has --config FILE, which takes TOML",
    "d": "systemd or a container does that",
    "daemon": "systemd or a container does that",
    "daemonize": "systemd or a container does that",
    "env": "set it where the command is started",
    "env_file": "set it where the command is started",
    "factory": "call it: prefork 'shop:create_app()'",
    "k": "what an application needs is seen by looking at it",
    "lifespan": "an application that has a lifespan is told of its start and its end",
    "log_config": "the logging that the application sets up is used",
    "master": "there always is a process above the workers",
    "max_requests_jitter": "for 1000 requests and a jitter of 100 give --min-reqs-per-child 1000 --max-reqs-per-child 1100",
    "module": "name the application alone, such as shop.wsgi:application",
    "no_sendfile": "files of wsgi.file_wrapper are always sent so",
    "no_server_header": "a Server that the application sets is kept instead of ours",
    "p": "a file for the process id is --pid-file, a port is --bind :8000",
    "print_config": "--show-config prints each value",
    "reuse_port": "all workers accept from one socket",
    "sendfile": "files of wsgi.file_wrapper are always sent so",
    "server_header": "a Server that the application sets is kept instead of ours",
    "statsd_host": "Prometheus can be served, and on_record is told what there is to count",
    "worker_class": "what an application needs is seen by looking at it",
    "worker_tmp_dir": "workers write nothing to tell that they are alive",
    "ws": "WebSocket is spoken where prefork[websocket] is installed, but for --no-websocket",
    "wsgi_file": "name the application alone, such as shop.wsgi:application",
}
_ALL = "see --help-all"
# What Kubernetes says of a service, which may be called prefork or prefork-something, with links of old in the values.
_OF_A_SERVICE = re.compile(r"(.*_)?(SERVICE_(HOST|PORT(_.*)?)|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_LINK = re.compile(r"(tcp|udp|sctp)://")
# An address from here is for want of a better one: who passes a socket on knows better.
_UNASKED = {"default", "environment PORT"}


# One option.


class Option(Value, kw_only=True):
    """What is to be known about one option.

    ``kind`` says how a value is read (one of ``_READERS``); ``least`` and ``most`` are the smallest and the largest
    number; ``optional`` says that it may be ``None``; ``short`` and ``aliases`` are further spellings of its flag.
    """

    name: str
    kind: str
    help: str
    default: Any
    unit: str = ""
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    group: str = "More"
    common: bool = False
    short: str = ""
    aliases: tuple[str, ...] = ()
    optional: bool = False

    @property
    def flag(self) -> str:
        """The long flag."""
        return "--" + self.name.replace("_", "-")

    @property
    def flags(self) -> tuple[str, ...]:
        """All spellings of the flag, the long one first."""
        return (self.flag, *([self.short] if self.short else []), *self.aliases)

    @property
    def names(self) -> tuple[str, ...]:
        """All spellings of its name in the environment, settings and files: of a long flag each is one, too."""
        return (self.name, *(alias.removeprefix("--").replace("-", "_") for alias in self.aliases))

    @property
    def environment(self) -> str:
        """The environment variable."""
        return "PREFORK_" + self.name.upper()

    @property
    def multiple(self) -> bool:
        """Whether the flag may be given several times."""
        return self.kind in {"list", "addresses", "choices", "proxies"}

    @property
    def placeholder(self) -> str:
        """What stands for the value in a help text."""
        return "|".join(self.choices) or _PLACEHOLDERS.get(self.kind, "TEXT")

    @property
    def shown_default(self) -> str:
        """The default with its unit; empty if there is none."""
        shown = self.write(self.default)
        return f"{shown} {self.unit}" if shown and self.unit else shown

    @property
    def long_help(self) -> str:
        """The help text of a flag that takes a value: what it means, the default, and the environment variable."""
        return f"{self.help}  [{'; '.join(filter(None, (self.shown_default, self.environment)))}]"

    def read(self, value: Any) -> Any:
        """Return the value of the option that ``value``, a text or native, stands for; raises ``ConfigError``."""
        if value is None:
            if self.optional:
                return None
            raise self.wrong(value, "it needs a value")
        result = _READERS[self.kind](self, value)
        if self.least is not None and result < self.least:
            raise self.wrong(value, f"the smallest value is {_plain(self.least)}")
        if self.most is not None and result > self.most:
            raise self.wrong(value, f"the largest value is {_plain(self.most)}")
        return result

    def write(self, value: Any) -> str:
        """Return a text from which ``read`` makes ``value`` again; it is empty for ``None`` and for an empty list."""
        if self.kind == "size":
            return _write_size(value)
        if isinstance(value, tuple):
            return ",".join(value)
        if callable(value):
            return f"{value.__module__}:{value.__qualname__}" if hasattr(value, "__qualname__") else repr(value)
        return "" if value is None else _plain(value)

    def wrong(self, value: Any, hint: str, kind: type[ConfigError] = ConfigError) -> ConfigError:
        """Return the error for a value that is none."""
        return kind("PF102", f"{self.name} is {value!r}", hint)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value == int(value) else str(value)


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _read_int(option: Option, value: Any) -> int:
    try:
        return value if _is_int(value) else int(str(value))
    except ValueError:
        raise option.wrong(value, "give a whole number") from None


def _read_workers(option: Option, value: Any) -> int:
    if _is_auto(value):
        return usable_cpus()[0]
    try:
        return _read_int(option, value)
    except ConfigError:
        raise option.wrong(value, "give a whole number, or auto for one per usable CPU") from None


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() == "auto"


def _read_seconds(option: Option, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise option.wrong(value, "give a number of seconds, such as 30 or 0.5")
    return number


def _read_size(option: Option, value: Any) -> int:
    if _is_int(value):
        return value
    match = _SIZE.fullmatch(str(value).strip().upper())
    if match is None:
        raise option.wrong(value, "give a number of bytes, such as 65536, 64K, 10M or 1G")
    return int(match["number"]) * _UNITS.get(match["unit"], 1)


def _write_size(size: int) -> str:
    for unit, factor in _UNITS.items():
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def _read_bool(option: Option, value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in _TRUE | _FALSE:
        raise option.wrong(value, "give true or false")
    return text in _TRUE


def _read_str(option: Option, value: Any) -> str:
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not text or "\0" in text:
        raise option.wrong(value, "give a text that is not empty")
    return text


def _read_choice(option: Option, value: Any) -> str:
    text = str(value).strip().lower()
    if text not in option.choices:
        raise option.wrong(value, f"choose one of {', '.join(option.choices)}")
    return text


def _read_level(option: Option, value: Any) -> str:
    """Return a level, which may be written as logging.warn() is."""
    return "warning" if str(value).strip().lower() == "warn" else _read_choice(option, value)


def _read_account(option: Option, value: Any) -> str:
    """Return a user or a group, which may be given by its number."""
    return str(value) if _is_int(value) else _read_str(option, value)


def _read_octal(option: Option, value: Any) -> str:
    """Return octal digits; a number has been read by Python or TOML already: ``0o022`` is 18."""
    text = format(value, "03o") if _is_int(value) else str(value).strip()
    digits = text.lower().removeprefix("0o")
    if not digits or not set(digits) <= set("01234567") or int(digits, 8) > _PERMISSIONS:
        raise option.wrong(value, "give an octal number up to 777, such as 022")
    return digits


def _read_log(option: Option, value: Any) -> str | None:
    """Return where a log goes: a path, ``-``, or nowhere; true and false are understood."""
    text = str(value).strip().lower()
    if text in _TRUE:
        return "-"
    return None if text in {*_FALSE, "none"} else _read_str(option, value)


def _read_log_file(option: Option, value: Any) -> str | None:
    """Return a path, or nothing for stderr, which many write as ``-``."""
    path = _read_str(option, value)
    return None if path == "-" else path


def _read_list(option: Option, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(item for part in value.split(",") if (item := part.strip()))
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise option.wrong(value, "give a text, or a list of them")
    return tuple(_read_str(option, item) for item in value)


def _read_addresses(option: Option, value: Any) -> tuple[str, ...]:
    addresses = _read_joined(option, value)
    if not addresses:
        raise option.wrong(value, "give an address such as 127.0.0.1:8000")
    for address in addresses:
        parse_bind(address)
    return addresses


def _read_choices(option: Option, value: Any) -> tuple[str, ...]:
    chosen = tuple(dict.fromkeys(item.lower() for item in _read_joined(option, value)))
    if not set(chosen) <= set(option.choices):
        raise option.wrong(value, f"choose among {', '.join(option.choices)}")
    return chosen


def _read_proxies(option: Option, value: Any) -> tuple[str, ...]:
    proxies = _read_joined(option, value)
    for proxy in proxies:
        try:
            parse_proxy(proxy)
        except ValueError as error:
            raise option.wrong(value, str(error)) from None
    if NOBODY in proxies and len(proxies) > 1:
        raise option.wrong(value, f"{NOBODY} stands alone")
    return proxies


def _read_joined(option: Option, value: Any) -> tuple[str, ...]:
    """Return a list whose members may be lists: ``--flag a,b --flag c``."""
    return tuple(item for part in _read_list(option, value) for item in _read_list(option, part))


def _read_root_path(option: Option, value: Any) -> str:
    path = "" if value == "" else _read_str(option, value).rstrip("/")
    if path and (not path.startswith("/") or "//" in path or set(path) & set("?#\\ \t\r\n")):
        raise option.wrong(value, "give a path such as /shop")
    return path


def _read_hook(option: Option, value: Any) -> Callable[..., Any] | str:
    if callable(value) or (isinstance(value, str) and all(value.partition(":"))):
        return value  # type: ignore[no-any-return]  # one of the two, as just seen
    raise option.wrong(value, "give a callable, or its name as module:function")


def _read_ssl_context(option: Option, value: Any) -> Any:
    # Who has such a context has imported the module, and nobody else need have it in memory.
    ssl = sys.modules.get("ssl")
    if ssl is not None and isinstance(value, ssl.SSLContext):
        return value
    try:
        return _read_hook(option, value)
    except ConfigError:
        hint = "give an ssl.SSLContext, a function that returns one, or the name of either as module:name"
        raise option.wrong(value, hint) from None


def _read_target(option: Option, value: Any) -> str:
    text = _read_str(option, value)
    try:
        parse_target(text)
    except ValueError as error:
        raise option.wrong(value, str(error)) from None
    return text


def _read_warm_up(option: Option, value: Any) -> Callable[..., Any] | str | tuple[str, ...]:
    if isinstance(value, (list, tuple)) or is_target(value):
        return tuple(_read_target(option, target) for target in _read_list(option, value))
    try:
        return _read_hook(option, value)
    except ConfigError:
        raise option.wrong(value, "give a callable, its name as module:function, or paths such as /") from None


def _read_access_format(option: Option, value: Any) -> str:
    text = _read_str(option, value)
    if text.lower() in {"json", "console", *FORMATS}:
        return text.lower()
    if "%" not in text:
        raise option.wrong(value, "give json, console, common, combined, or a format string such as '%h %t %s'")
    compile_format(text)
    return text


_READERS: dict[str, Callable[[Option, Any], Any]] = {
    "int": _read_int,
    "workers": _read_workers,
    "float": _read_seconds,
    "size": _read_size,
    "bool": _read_bool,
    "str": _read_str,
    "path": _read_str,
    "choice": _read_choice,
    "level": _read_level,
    "account": _read_account,
    "octal": _read_octal,
    "log": _read_log,
    "log_file": _read_log_file,
    "access_format": _read_access_format,
    "list": _read_list,
    "addresses": _read_addresses,
    "choices": _read_choices,
    "proxies": _read_proxies,
    "root_path": _read_root_path,
    "hook": _read_hook,
    "target": _read_target,
    "ssl_context": _read_ssl_context,
    "warm_up": _read_warm_up,
}
_PLACEHOLDERS = {
    "int": "N",
    "workers": "N|auto",
    "float": "SECONDS",
    "size": "SIZE",
    "path": "PATH",
    "account": "NAME",
    "octal": "OCTAL",
    "log": "-|PATH",
    "log_file": "-|PATH",
    "access_format": "FORMAT",
    "addresses": "ADDRESS",
    "proxies": "ADDRESS|NETWORK|unix|*",
    "root_path": "PATH",
    "hook": "MODULE:FUNCTION",
    "target": "/PATH|URL",
    "ssl_context": "MODULE:NAME",
    "warm_up": "MODULE:FUNCTION|/,…",
}


def option(default: Any, kind: str, *, help: str, **more: Any) -> Any:  # noqa: A002 - it is the option's help
    """Declare an option (see ``Option``)."""
    return field(default=default, metadata={"option": {"kind": kind, "help": help, **more}})


# All options.


class Limits(Value):
    """What an HTTP connection takes, by the options of the same names."""

    max_request_line_size: int = 16 * KIB
    max_head_size: int = 64 * KIB
    max_header_count: int = 100
    max_body_size: int = GIB
    underscores_in_headers: str = "drop"


class Config(Value, kw_only=True):
    """The options of a pool, checked. Raises ``ConfigError`` for a value that cannot be.

    ``workers_from`` says how the number of workers came about if ``max_workers`` was given as ``"auto"``;
    ``bind_from`` who asked for the addresses in ``bind``, and is empty if nobody did.
    """

    # fmt: off
    bind: tuple[str, ...] = option(("127.0.0.1:8000",), "addresses", group="Listening", common=True, short="-b", help="Where to listen: host:port, [v6]:port, :port, unix:PATH or unix:PATH?mode=660, fd://N. Repeatable.")
    backlog: int = option(2048, "int", group="Listening", least=1, most=_MOST_QUEUED, unit="connections", help="How many connections the kernel queues.")
    max_workers: int = option(10, "workers", group="Workers", common=True, least=1, short="-w", aliases=("--workers",), help="How many worker processes; auto: one per usable CPU.")
    threads: int = option(4, "int", group="Workers", common=True, least=1, short="-t", help="Request threads per worker.")
    max_reqs_per_child: int = option(100, "int", group="Workers", common=True, least=0, unit="requests", help="Replace a worker after this many requests; 0: never.")
    min_reqs_per_child: int | None = option(None, "int", group="Workers", common=True, least=1, unit="requests", optional=True, help="Draw each worker's number of requests between this and max_reqs_per_child.")
    max_worker_age: float = option(0.0, "float", group="Workers", least=0, most=_LONGEST, unit="seconds", help="Replace a worker when it has served for so long; each draws its own age, from three quarters of this on. 0: never.")
    max_memory: int = option(0, "size", group="Workers", least=0, unit="bytes", help="Replace a worker whose private memory, what it does not share with the others, is more than this; looked at while it works. Linux. 0: never.")
    max_retiring: int | None = option(None, "int", group="Workers", least=1, unit="workers", optional=True, help="How many replaced workers may still be finishing their work; further ones wait, those of HUP and USR2 do not. Twice max_workers unless given.")
    preload: bool = option(True, "bool", group="Workers", common=True, help="Load the application once, before the workers are forked.")
    graceful_timeout: float = option(30.0, "float", group="Timeouts", common=True, least=0, most=_LONGEST, unit="seconds", help="How long running requests may take when the pool stops.")
    stop_delay: float = option(0.0, "float", group="Timeouts", least=0, most=_LONGEST, unit="seconds", help="How long to accept on after TERM, closing each connection behind its answer: a balancer needs time to hear of the stop.")
    boot_timeout: float = option(60.0, "float", group="Timeouts", least=0.1, most=_LONGEST, unit="seconds", help="How long a worker may take to start.")
    request_timeout: float = option(0.0, "float", group="Timeouts", common=True, least=0, most=_LONGEST, unit="seconds", help="How long a request may keep a thread before it is answered for and its worker replaced; 0: for ever.")
    blocked_threshold: float = option(1.0, "float", group="Timeouts", least=0, most=_LONGEST, unit="seconds", help="ASGI: for how long a call may hold up the event loop before that is recorded; 0: for ever.")
    stream_grace: float = option(5.0, "float", group="Timeouts", least=0.1, most=_LONGEST, unit="seconds", help="ASGI: how long an answer without a known end may go on when the pool stops, after its application was told http.disconnect.")
    heartbeat_timeout: float = option(60.0, "float", group="Timeouts", least=0, most=_LONGEST, unit="seconds", help="How long a worker may not answer its parent before it is replaced and killed; 0: for ever.")
    head_timeout: float = option(30.0, "float", group="Timeouts", least=0.1, most=_LONGEST, unit="seconds", help="How long a request's head may take, for the first one of a connection with the TLS handshake before it.")
    body_timeout: float = option(30.0, "float", group="Timeouts", least=0.1, most=_LONGEST, unit="seconds", help="The longest pause between two pieces of a request's body.")
    body_min_rate: int = option(240, "size", group="Timeouts", least=0, unit="bytes per second", help="How fast a request's body must come, in each body_timeout; 0: as slowly as the client likes.")
    write_timeout: float = option(60.0, "float", group="Timeouts", least=0.1, most=_LONGEST, unit="seconds", help="How long a client may take nothing of its answer.")
    write_min_rate: int = option(240, "size", group="Timeouts", least=0, unit="bytes per second", help="How fast a client must take its answer, in each write_timeout; 0: as slowly as it likes.")
    keep_alive_timeout: float = option(75.0, "float", group="Timeouts", common=True, least=0, most=_LONGEST, unit="seconds", help="How long an idle connection stays open; longer than most balancers' 60.")
    queue_timeout: float = option(0.0, "float", group="Timeouts", least=0, most=_LONGEST, unit="seconds", help="How long a request may have waited for a thread: one that is older is answered with 503 instead of being served, and dropped if its client has left. Linux, TCP. 0: for ever.")
    limit_concurrency: int | None = option(None, "int", group="Requests", least=1, unit="connections", optional=True, help="How many connections a worker holds; who comes beyond is answered with 503.")
    max_request_line_size: int = option(16 * KIB, "size", group="Requests", least=1 * KIB, unit="bytes", help="The longest request line: method, target with its query, and version.")
    max_head_size: int = option(64 * KIB, "size", group="Requests", least=1 * KIB, unit="bytes", help="The longest request line and header fields together; also the longest trailer section.")
    max_header_count: int = option(100, "int", group="Requests", least=1, unit="fields", help="The most header fields of a request, and the most trailer fields.")
    underscores_in_headers: str = option("drop", "choice", group="Requests", choices=("drop", "keep", "refuse"), help="What becomes of a header field with an underscore in its name, which WSGI cannot tell from one with a hyphen.")
    max_body_size: int = option(GIB, "size", group="Requests", common=True, least=0, unit="bytes", help="The longest body of a request.")
    spool_dir: str | None = option(None, "path", group="Requests", optional=True, help="Where large bodies wait; the system's temporary directory unless given.")
    http: str = option("auto", "choice", group="Requests", choices=("auto", "h11", "httptools"), help="The HTTP parser; auto: httptools where it is installed.")
    cert: str | None = option(None, "path", group="TLS", common=True, optional=True, help="Speak TLS with this certificate, and those that it is signed by behind it (PEM); adhoc: one that is made up for development.")
    key: str | None = option(None, "path", group="TLS", common=True, optional=True, help="The certificate's private key (PEM), if it is not in the same file.")
    key_password_file: str | None = option(None, "path", group="TLS", optional=True, help="A file whose first line is the password of the key.")
    ca_certs: str | None = option(None, "path", group="TLS", optional=True, help="Who may sign the certificates of clients: a file (PEM), or a directory of them as OpenSSL hashes it.")
    ssl_verify: str = option("auto", "choice", group="TLS", choices=("auto", "none", "optional", "required"), help="Whether clients must show a certificate; auto: required with ca_certs, else none.")
    ssl_context: Any = option(None, "ssl_context", group="TLS", optional=True, help="An ssl.SSLContext to speak TLS with instead of cert, or what returns one: module:name.")
    trusted_proxies: tuple[str, ...] = option(("127.0.0.0/8", "::1", UNIX), "proxies", group="Proxies", common=True, help="Whose word on the client is believed: addresses, networks, unix for UNIX sockets, none, or * for whoever connects. Repeatable.")
    forwarded_headers: tuple[str, ...] = option(("forwarded", "x-forwarded-for", "x-forwarded-proto"), "choices", group="Proxies", choices=("forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "x-forwarded-prefix"), help="Which fields of a trusted proxy are believed: those that it sets itself, since others come from the client. Repeatable.")
    proxy_protocol: bool = option(False, "bool", group="Proxies", help="Each connection of a trusted proxy begins with a PROXY header, of version 1 or 2.")
    root_path: str = option("", "root_path", group="Proxies", help="The path where the application is mounted, its SCRIPT_NAME; it may be in the path of a request or left out.")
    user: str | None = option(None, "account", group="Process", optional=True, help="Run as this user, after binding and before the application is loaded. Refused where root has loaded it by then: by manage.py, by app.run_prefork(), or by Flask to read its settings.")
    group: str | None = option(None, "account", group="Process", optional=True, help="Run as this group.")
    umask: str | None = option(None, "octal", group="Process", optional=True, help="The umask, in octal, such as 022. Where Python or TOML has read a number, that is it: write 0o022, for 22 is 026.")
    chdir: str | None = option(None, "path", group="Process", optional=True, help="Change to this directory first.")
    pid_file: str | None = option(None, "path", group="Process", optional=True, help="Write the parent's process id to this file.")
    proc_name: str | None = option(None, "str", group="Process", optional=True, help="What ps shows.")
    redeploy: bool = option(False, "bool", group="Process", help="HUP starts new code beside the old, on Linux; the commands do so unless told otherwise.")
    deploy_probe: str | None = option(None, "target", group="Process", optional=True, help="The path, or the URL with the host to ask for, that a worker of new code must answer before the pool of it serves: with a status below 500, but not with 400.")
    interface: str = option("auto", "choice", group="Application", common=True, choices=("auto", "wsgi", "asgi"), help="How the application is called; auto: seen by looking at it.")
    async_backend: str = option("auto", "choice", group="Application", choices=("auto", "asyncio", "uvloop", "trio"), help="The event loop of an ASGI application; auto: uvloop where it is installed, else asyncio.")
    websocket: bool = option(True, "bool", group="WebSocket", help="ASGI: speak WebSocket, for which prefork[websocket] has to be installed; false: who asks for it is served as if he had not.")
    websocket_max_size: int = option(KIB**2, "size", group="WebSocket", least=1, unit="bytes", help="The longest message that a client may send, in whatever pieces, and inflated: it is closed with 1009.")
    websocket_compression: bool = option(True, "bool", group="WebSocket", help="Compress messages longer than 128 bytes, where the client can (permessage-deflate).")
    websocket_ping_interval: float = option(20.0, "float", group="WebSocket", least=0, most=_LONGEST, unit="seconds", help="A client of which nothing was heard for so long is sent a ping; 0: never.")
    websocket_ping_timeout: float = option(20.0, "float", group="WebSocket", least=0, most=_LONGEST, unit="seconds", help="How long a client may take to answer a ping before it is closed with 1011; 0: for ever.")
    websocket_drain_timeout: float = option(60.0, "float", group="WebSocket", least=0, most=_LONGEST, unit="seconds", help="How long WebSockets stay open in a worker that was replaced, before they are closed with 1012.")
    app_dir: str = option(".", "path", group="Application", common=True, help="Where to look for the application's module.")
    warm_up: WarmUp | None = option(None, "warm_up", group="Hooks", optional=True, help="In the parent, before the first fork: module:function(app), or what to ask the application for: paths such as /, or URLs such as http://shop.example/ where it minds the host, which is localhost else.")
    before_fork: BeforeFork | str | None = option(None, "hook", group="Hooks", optional=True, help="In the parent, before each fork: module:function(pool).")
    worker_started: InWorker | str | None = option(None, "hook", group="Hooks", optional=True, help="In a worker, before its first request: module:function(worker).")
    worker_exiting: InWorker | str | None = option(None, "hook", group="Hooks", optional=True, help="In a worker, after its last request: module:function(worker).")
    on_record: OnRecord | str | None = option(None, "hook", group="Hooks", optional=True, help="For each record of the log: module:function(name, fields).")
    reload: bool = option(False, "bool", group="Development", common=True, help="Start again when a file of the application changes.")
    reload_extra_files: tuple[str, ...] = option((), "list", group="Development", help="Further files to watch. Repeatable.")
    reload_exclude_patterns: tuple[str, ...] = option((), "list", group="Development", help="Files not to watch, as patterns. Repeatable.")
    log_format: str = option("auto", "choice", group="Log", common=True, choices=("auto", "console", "json", "none"), help="How records look; auto: for people on a terminal, JSON elsewhere.")
    log_level: str = option("info", "level", group="Log", common=True, choices=("debug", "info", "warning", "error", "critical"), help="The least level that is recorded; warn means warning.")
    log_file: str | None = option(None, "log_file", group="Log", optional=True, help="Where records go: - for stderr, as unless given, or a file.")
    access_log: str | None = option(None, "log", group="Log", common=True, optional=True, help="Record each request: - with the other records, or a file.")
    access_log_format: str | None = option(None, "access_format", group="Log", optional=True, help="How these records look: json, console, common or combined (as Apache's), or a format string of Apache's or gunicorn's; as log_format unless given.")
    access_log_skip: tuple[str, ...] = option((), "list", group="Log", help="Paths whose requests are not recorded unless they fail, such as /health or /static/*. Repeatable.")
    access_log_filter: RequestFilter | str | None = option(None, "hook", group="Hooks", optional=True, help="Whether to record a request: module:function(fields).")
    request_id: bool = option(False, "bool", group="Log", help="Give each request an id, that of X-Request-ID or a new one: in the environ, in the answer and in the records.")
    # fmt: on
    workers_from: str = field(default="", compare=False)
    bind_from: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.bind_from is None:
            object.__setattr__(self, "bind_from", "" if self.bind is OPTIONS["bind"].default else "code")
        if _is_auto(self.max_workers):
            object.__setattr__(self, "workers_from", usable_cpus()[1])
        for declared in OPTIONS.values():
            object.__setattr__(self, declared.name, declared.read(getattr(self, declared.name)))
        self._check_together()

    def _check_together(self) -> None:
        low, high = self.min_reqs_per_child, self.max_reqs_per_child
        if low is not None and 0 < high < low:
            raise ConfigError(
                "PF103",
                f"min_reqs_per_child is {low} but max_reqs_per_child is {high}",
                "each worker draws its budget between the two, so raise the maximum or lower the minimum",
            )
        if self.max_memory and not memory.TOLD.exists():
            hint = f"this system does not tell: there is no {memory.TOLD}"
            raise OPTIONS["max_memory"].wrong(self.max_memory, hint, NotHere)
        self._check_tls()
        for path in self.access_log_skip:
            if not path.startswith("/"):
                raise OPTIONS["access_log_skip"].wrong(path, "a path begins with /")
        if self.spool_dir is not None and not Path(self.spool_dir).is_dir():
            raise OPTIONS["spool_dir"].wrong(self.spool_dir, "there is no such directory", NotHere)
        if self.http == "httptools" and find_spec("httptools") is None:
            raise MissingExtra(
                "PF419", "http is 'httptools', which is not installed", "install prefork[fast], or leave http alone"
            )

        if self.async_backend in {"uvloop", "trio"} and find_spec(self.async_backend) is None:
            extra = "prefork[fast]" if self.async_backend == "uvloop" else "prefork[trio]"
            raise MissingExtra(
                "PF440",
                f"async_backend is {self.async_backend!r}, which is not installed",
                f"pip install '{extra}', or leave async_backend alone",
            )

    def _check_tls(self) -> None:
        about = [name for name in ("key", "key_password_file", "ca_certs") if getattr(self, name) is not None]
        about += ["ssl_verify"] if self.ssl_verify != "auto" else []
        if self.ssl_context is not None and (self.cert is not None or about):
            what = ", ".join(["cert", *about] if self.cert is not None else about)
            raise ConfigError("PF103", f"ssl_context is given beside {what}", "a context has all of that in it")
        if self.cert is None and about:
            raise ConfigError("PF103", f"{', '.join(about)} is given without cert", "give the certificate too")
        if self.cert == ADHOC and self.key is not None:
            raise ConfigError("PF103", "key is given beside cert adhoc", "the certificate that is made up has its own")
        if self.ssl_verify in {"optional", "required"} and self.ca_certs is None:
            hint = "say with ca_certs who may sign the certificates of clients"
            raise ConfigError("PF103", f"ssl_verify is {self.ssl_verify} without ca_certs", hint)

    @classmethod
    def of(cls, **options: Any) -> Config:
        """Return a configuration from options in code; raises ``ConfigError`` with the nearest name of an unknown one."""
        for name in options:
            if name not in OPTIONS:
                raise unknown(name)
        return cls(**options)

    @property
    def scheme(self) -> str:
        """What is spoken: ``http``, or with TLS ``https``."""
        return "http" if self.cert is None and self.ssl_context is None else "https"

    @property
    def limits(self) -> Limits:
        """What an HTTP connection takes at most."""
        return Limits(**{name: getattr(self, name) for name in Limits.__match_args__})


OPTIONS: Mapping[str, Option] = {
    name: Option(name=name, default=declared.default, **declared.metadata["option"])
    for name, declared in Config.declared.items()
    if "option" in declared.metadata
}
"""All options, in the order of the documentation."""
NAMES: Mapping[str, str] = {spelt: name for name, option in OPTIONS.items() for spelt in option.names}
"""The option of each name by which one may be called in the environment, settings and files."""


def nearest(name: str, names: Iterable[str] = OPTIONS, related: float = _RELATED) -> str | None:
    """Return which of ``names`` somebody is likely to mean who wrote ``name``, ``None`` if no one can tell.

    ``related`` is how much alike, from 0 to 1, one that shares a word with it has to be.
    """
    import difflib

    name, names = _spelt(name), list(names)
    near = difflib.get_close_matches(name, names, cutoff=_TYPING_ERROR)
    near += [other for other in difflib.get_close_matches(name, names, cutoff=related) if _words(name) & _words(other)]
    return _ELSEWHERE.get(name) or (near[0] if near else None)


def needless(name: str) -> str | None:
    """Return what to do instead of giving an option that other servers have, and here is not needed."""
    return _NEEDLESS.get(_spelt(name))


def _spelt(name: str) -> str:
    return name.lower().replace("-", "_")


def _words(name: str) -> set[str]:
    return {word.rstrip("s") for word in name.split("_")}


def unknown(name: str) -> ConfigError:
    """Return the error for an option that does not exist."""
    near = nearest(name, NAMES)
    return _none_such(name, needless(name) or (f"did you mean {NAMES[near]!r}?" if near else _ALL))


def _none_such(name: str, hint: str) -> ConfigError:
    return ConfigError("PF101", f"there is no option {name!r}", hint)


# Where they come from.


class Resolved(Value):
    """A configuration, and for each option where its value came from.

    ``strays`` are variables of the environment that look like an option's but are none, each with what to give instead.
    """

    config: Config
    origins: Mapping[str, str]
    strays: Mapping[str, str] = field(default_factory=dict)

    @property
    def warnings(self) -> list[str]:
        """What to tell the user, a line each: of the ``strays``, and of a format for an access log that nobody wants."""
        found = [f"{variable} is no option, and ignored: {hint} [PF101]" for variable, hint in self.strays.items()]
        if self.config.access_log_format and self.config.access_log is None and self.origins["access_log"] == "default":
            found.append("access_log_format is given, and no request is recorded: give access_log too [PF103]")
        return [f"prefork: warning: {what}" for what in found]

    def describe(self) -> str:
        """Return each effective value, a line each, and where it came from."""
        rows = [
            (name, option.write(getattr(self.config, name)), self.origins[name]) for name, option in OPTIONS.items()
        ]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return "\n".join(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin}" for name, value, origin in rows)


def resolve(
    *,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    prefixes: tuple[str, ...] = ("PREFORK_",),
    settings: Mapping[str, Any] | None = None,
    settings_name: str = "settings ",
    file: str | Path | None = None,
    defaults: Mapping[str, Any] | None = None,
    without: Mapping[str, str] = NOTHING,
) -> Resolved:
    """Merge all sources; for each option the first that gives it wins.

    The order is ``flags``, ``environ`` under each of ``prefixes``, ``settings`` (of a framework, keys in any case) and
    ``file`` (TOML), then WEB_CONCURRENCY, PORT, FORWARDED_ALLOW_IPS and SCRIPT_NAME, then ``defaults`` and the declared
    defaults. A flag that is ``None`` or an empty list was not given, nor was a variable that is empty. What comes before
    a key of ``settings`` where it is told is ``settings_name``. The options in ``without`` are none here, for the reason
    that is said there. Raises ``ConfigError``.
    """
    environ = os.environ if environ is None else environ
    found: dict[str, tuple[Any, str]] = {}
    for name, value, origin in [
        *_of_flags(flags or {}, without),
        *_of_environment(environ, prefixes, without),
        *_of_table(settings or {}, settings_name, without),
        *(_of_table(read_file(Path(file)), f"file {file} ", without) if file is not None else ()),
        *_of_platform(environ),
        *((name, value, "default") for name, value in (defaults or {}).items()),
    ]:
        found.setdefault(name, (value, origin))
    for name, (value, origin) in found.items():
        check(name, value, origin)
    if "reload" in found and OPTIONS["reload"].read(found["reload"][0]):
        found.setdefault("max_workers", (1, "default under --reload"))
    origins = {name: found[name][1] if name in found else "default" for name in OPTIONS}
    bind_from = "" if origins["bind"] in _UNASKED else origins["bind"]
    config = Config(**{name: value for name, (value, _) in found.items()}, bind_from=bind_from)
    if config.workers_from:
        origins["max_workers"] += f" ({config.workers_from})"
    return Resolved(config, origins, dict(_strays(environ, prefixes, without)))


def _of_flags(flags: Mapping[str, Any], without: Mapping[str, str]) -> Iterator[tuple[str, Any, str]]:
    for key, value in flags.items():
        if value is not None and value != ():
            name = _known(key, "", without)
            yield name, value, f"flag {OPTIONS[name].flag}"


def _of_environment(
    environ: Mapping[str, str], prefixes: tuple[str, ...], without: Mapping[str, str]
) -> Iterator[tuple[str, Any, str]]:
    for prefix in prefixes:
        for spelt, name in NAMES.items():
            variable = prefix + spelt.upper()
            if environ.get(variable) and name not in without:
                yield name, environ[variable], f"environment {variable}"


def _of_table(table: Mapping[str, Any], source: str, without: Mapping[str, str]) -> Iterator[tuple[str, Any, str]]:
    keys: dict[str, str] = {}
    for key, value in table.items():
        origin = f"{source}{key}"
        name = _known(key, origin, without)
        if (other := keys.setdefault(name, key)) != key:
            twice = ConfigError("PF103", f"{key} is given beside {other}", "they are one option: give either")
            raise _in(twice, origin)
        yield name, value, origin


def _of_platform(environ: Mapping[str, str]) -> Iterator[tuple[str, Any, str]]:
    if environ.get("WEB_CONCURRENCY"):
        yield "max_workers", environ["WEB_CONCURRENCY"], "environment WEB_CONCURRENCY"
    if environ.get("PORT"):
        yield "bind", (f"0.0.0.0:{environ['PORT']}",), "environment PORT"
    if environ.get("FORWARDED_ALLOW_IPS"):
        yield "trusted_proxies", environ["FORWARDED_ALLOW_IPS"], "environment FORWARDED_ALLOW_IPS"
    if environ.get("SCRIPT_NAME"):
        yield "root_path", environ["SCRIPT_NAME"], "environment SCRIPT_NAME"


def _known(key: str, source: str, without: Mapping[str, str]) -> str:
    name = NAMES.get(_spelt(str(key)))
    if name is None:
        raise _in(unknown(str(key)), source)
    if name in without:
        raise _in(_none_such(str(key), without[name]), source)
    return name


def check(name: str, value: Any, origin: str) -> None:
    """Raise ``ConfigError``, naming ``origin`` as who gave it, if ``value`` is none of the option ``name``."""
    try:
        OPTIONS[name].read(value)
    except ConfigError as error:
        raise _in(error, origin) from None


def _in(error: ConfigError, source: str) -> ConfigError:
    """Return the same error, saying where the mistake is."""
    return ConfigError(error.code, f"{error.message} ({source})" if source else error.message, error.hint)


def _strays(
    environ: Mapping[str, str], prefixes: tuple[str, ...], without: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Find what is below our prefix and no option, each with what to give instead."""
    for variable, value in environ.items():
        for prefix in prefixes:
            name = variable.removeprefix(prefix)
            if name == variable or not value or is_of_kubernetes(name, value):
                continue
            ours = NAMES.get(name.lower())
            if ours is not None and ours in without:
                yield variable, without[ours]
            elif ours is None:
                near = nearest(name, NAMES, _TYPING_ERROR)
                yield variable, needless(name) or (f"did you mean {prefix}{near.upper()}?" if near else _ALL)


def is_of_kubernetes(name: str, value: str) -> bool:
    """Whether a variable, here without its prefix, is what Kubernetes says of a service that is called like us."""
    return bool(_OF_A_SERVICE.fullmatch(name) or _LINK.match(value))


def read_file(path: Path) -> Mapping[str, Any]:
    """Return the options of a TOML file, or of ``[tool.prefork]`` in a pyproject.toml; raises ``ConfigError``."""
    import tomllib

    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("PF104", f"cannot read {path}", error.strerror or str(error)) from None
    except ValueError as error:  # tomllib's own, and what is not UTF-8
        raise ConfigError("PF104", f"{path} is no TOML", str(error)) from None
    if path.name != "pyproject.toml" and "tool" not in table:
        if isinstance(table.get("prefork"), dict):
            hint = "put its options at the top, or call it [tool.prefork]"
            raise ConfigError("PF104", f"{path} has a table [prefork]", hint)
        return table
    above = next((key for key, value in table.items() if _spelt(key) in NAMES and not isinstance(value, dict)), None)
    if above is not None:
        raise ConfigError("PF104", f"{path} has {above} above its tables", "put it below [tool.prefork]")
    tool = table.get("tool")
    ours = tool.get("prefork") if isinstance(tool, dict) else None
    if not isinstance(ours, dict):
        raise ConfigError("PF104", f"{path} has no table [tool.prefork]", "add one, or give another file")
    return ours


# How many CPUs are there for us?


def usable_cpus(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> tuple[int, str]:
    """Return how many CPUs this process may use, and how that came about: ``4: affinity 8, cgroup quota 4.0``."""
    if hasattr(os, "process_cpu_count"):
        affinity = os.process_cpu_count() or 1
    else:
        affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = min(_cgroup_quotas(proc, root), default=None)
    if quota is None:
        return affinity, f"{affinity}: affinity {affinity}, no cgroup quota"
    # Rounded up, for a share of a CPU is to be used as well.
    usable = max(1, min(affinity, math.ceil(quota)))
    return usable, f"{usable}: affinity {affinity}, cgroup quota {quota:.1f}"


def _cgroup_quotas(proc: Path, root: Path) -> Iterator[float]:
    """Find the quotas, in CPUs, of our cgroup and of those around it: the smallest binds. Source: cgroups(7)."""
    try:
        groups = [line.split(":", 2) for line in proc.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in groups:
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "cpu" if controllers else root
        group = top / path.lstrip("/")
        # A container may see its own cgroup as the top, and yet be told its path outside.
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(top))):
            yield from _quota_v1(folder) if controllers else _quota_v2(folder)


def _quota_v2(folder: Path) -> Iterator[float]:
    yield from _share(*_first_line(folder / "cpu.max").partition(" ")[::2])


def _quota_v1(folder: Path) -> Iterator[float]:
    yield from _share(_first_line(folder / "cpu.cfs_quota_us"), _first_line(folder / "cpu.cfs_period_us"))


def _share(quota: str, period: str) -> Iterator[float]:
    """Give the quotient, unless there is no limit, which is ``max`` or -1."""
    if quota.isdigit() and period.isdigit() and int(period):
        yield int(quota) / int(period)


def _first_line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


# The page of the documentation.


def render_options_markdown() -> str:
    """Return the options page of the documentation."""
    lines = [
        "# What do the options mean?",
        "",
        "Made from the code by `make docs`. In code `max_workers=4`, on the command line `--max-workers 4`, in the",
        'environment `PREFORK_MAX_WORKERS=4`, in Django\'s settings `PREFORK = {"MAX_WORKERS": 4}`, in a file',
        "`max_workers = 4`. Where a second long flag is named, it is a name there as well, but in code: `PREFORK_WORKERS=4`.",
        "The first that gives an option wins: code or flag, `FLASK_RUN_PREFORK_*` (Flask only), `PREFORK_*`, the",
        "framework's settings or `--config` file, the variables that other servers read too (`PORT`, `WEB_CONCURRENCY`,",
        "`FORWARDED_ALLOW_IPS`, `SCRIPT_NAME`), the default.",
        "`prefork --show-config` prints each value in effect, and where it came from.",
        "",
        "Times are in seconds. Sizes are in bytes, or `64K`, `10M`, `1G`. Lists are separated by commas in the environment,",
        "or the flag is repeated. Yes and no are `true`/`false`, `yes`/`no`, `on`/`off` or `1`/`0`.",
    ]
    for group in dict.fromkeys(declared.group for declared in OPTIONS.values()):
        lines += ["", f"## {group}", "", "| option | flags | default | meaning |", "|---|---|---|---|"]
        lines += [_row(declared) for declared in OPTIONS.values() if declared.group == group]
    return "\n".join(lines) + "\n"


def _row(declared: Option) -> str:
    flags = ", ".join(f"`{flag}`" for flag in declared.flags)
    if declared.kind == "bool":
        flags = f"`{declared.flag}`, `--no-{declared.flag[2:]}`"
    quantity = "Some" if declared.multiple else "One"
    choices = f" {quantity} of {', '.join(f'`{choice}`' for choice in declared.choices)}." if declared.choices else ""
    return f"| `{declared.name}` | {flags} | {declared.shown_default} | {declared.help}{choices} |"
