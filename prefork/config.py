"""Which options are there, what may they be, and which source wins?

Each option is declared once, as a field of ``Config``; command lines, settings keys, environment names and the options
page are made from it.
"""

from __future__ import annotations

import difflib
import math
import os
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefork.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

KIB, GIB = 1024, 1024**3
_UNITS = {"": 1, "K": KIB, "M": KIB**2, "G": GIB}
_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}
_NEAREST = 0.6
HOOKS = ("warm_up", "before_fork", "worker_started", "worker_exiting", "on_record")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What is to be known about one option.

    ``kind`` is ``int``, ``float``, ``size``, ``bool``, ``str``, ``list`` or ``hook``; ``least`` the smallest number;
    ``optional`` says that it may be ``None``; ``short`` and ``aliases`` are further spellings of its flag.
    """

    name: str
    kind: str
    help: str
    default: Any
    unit: str = ""
    least: float | None = None
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
    def environment(self) -> str:
        """The environment variable."""
        return "PREFORK_" + self.name.upper()

    @property
    def multiple(self) -> bool:
        """Whether the flag may be given several times."""
        return self.kind == "list"

    def read(self, value: Any) -> Any:
        """Return the value of the option that ``value``, a text or native, stands for; raises ``ConfigError``."""
        if value is None:
            if self.optional:
                return None
            raise self.wrong(value, "it needs a value")
        result = _READERS[self.kind](self, value)
        if self.least is not None and result < self.least:
            raise self.wrong(value, f"the smallest value is {_number(self.least)}")
        if self.choices and result not in self.choices:
            raise self.wrong(value, f"choose one of {', '.join(self.choices)}")
        return result

    def wrong(self, value: Any, hint: str) -> ConfigError:
        """Return the error for a value that is none."""
        return ConfigError("PF102", f"{self.name} is {value!r}", hint)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _read_int(option: Option, value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = str(value).strip()
    if option.name == "max_workers" and text == "auto":
        return usable_cpus()[0]
    try:
        return int(text)
    except ValueError:
        raise option.wrong(
            value, "give a whole number" + (", or auto" if option.name == "max_workers" else "")
        ) from None


def _read_float(option: Option, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise option.wrong(value, "give a number of seconds") from None
    if isinstance(value, bool) or not math.isfinite(number):
        raise option.wrong(value, "give a number of seconds")
    return number


def _read_size(option: Option, value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = str(value).strip().upper().removesuffix("B").removesuffix("I")
    unit = text[-1:] if text[-1:] in {"K", "M", "G"} else ""
    number = text.removesuffix(unit)
    if not (number.isascii() and number.isdigit()):
        raise option.wrong(value, "give a number of bytes, such as 65536, 64K, 10M or 1G")
    return int(number) * _UNITS[unit]


def _read_bool(option: Option, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text not in _TRUE | _FALSE:
        raise option.wrong(value, "give true or false")
    return text in _TRUE


def _read_str(option: Option, value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise option.wrong(value, "give a text that is not empty")
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _read_list(option: Option, value: Any) -> tuple[str, ...]:
    items = [item.strip() for item in value.split(",")] if isinstance(value, str) else list(value)
    return tuple(_read_str(option, item) for item in items if item)


def _read_hook(option: Option, value: Any) -> Any:
    if callable(value):
        return value
    if option.name == "warm_up" and isinstance(value, (list, tuple)):
        return tuple(value)
    if isinstance(value, str) and ":" in value:
        return value
    if option.name == "warm_up" and isinstance(value, str) and value.startswith("/"):
        return tuple(value.split(","))
    raise option.wrong(value, "give a callable or module:function" + (", or paths" if option.name == "warm_up" else ""))


_READERS: dict[str, Callable[[Option, Any], Any]] = {
    "int": _read_int,
    "float": _read_float,
    "size": _read_size,
    "bool": _read_bool,
    "str": _read_str,
    "list": _read_list,
    "hook": _read_hook,
}


def option(default: Any, kind: str, *, help: str, **more: Any) -> Any:  # noqa: A002 - it is the option's help
    """Declare an option (see ``Option``)."""
    return field(default=default, metadata={"option": {"kind": kind, "help": help, **more}})


@dataclass(frozen=True, slots=True)
class Limits:
    """What an HTTP connection takes at most: bytes of head, number of fields, bytes of body."""

    max_head_size: int = 64 * KIB
    max_header_count: int = 100
    max_body_size: int = GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The options of a pool, checked. Raises ``ConfigError`` for a value that cannot be."""

    # fmt: off
    bind: tuple[str, ...] = option(("127.0.0.1:8000",), "list", group="Listening", common=True, short="-b", help="Where to listen: host:port, [v6]:port, :port, unix:PATH or unix:PATH?mode=660, fd://N. Repeatable.")
    backlog: int = option(2048, "int", group="Listening", least=1, unit="connections", help="How many connections the kernel queues.")
    max_workers: int = option(10, "int", group="Workers", common=True, least=1, short="-w", aliases=("--workers",), help="How many worker processes; auto: one per usable CPU.")
    threads: int = option(4, "int", group="Workers", common=True, least=1, short="-t", help="Request threads per worker.")
    max_reqs_per_child: int = option(100, "int", group="Workers", common=True, least=0, unit="requests", help="Replace a worker after this many requests; 0: never.")
    min_reqs_per_child: int | None = option(None, "int", group="Workers", common=True, least=1, unit="requests", optional=True, help="Draw each worker's number of requests between this and max_reqs_per_child.")
    preload: bool = option(True, "bool", group="Workers", common=True, help="Load the application once, before the workers are forked.")
    graceful_timeout: float = option(30.0, "float", group="Timeouts", common=True, least=0, unit="seconds", help="How long running requests may take when the pool stops.")
    boot_timeout: float = option(60.0, "float", group="Timeouts", least=0.1, unit="seconds", help="How long a worker may take to start.")
    head_timeout: float = option(30.0, "float", group="Timeouts", least=0.1, unit="seconds", help="How long a request's head may take.")
    body_timeout: float = option(30.0, "float", group="Timeouts", least=0.1, unit="seconds", help="The longest pause between two pieces of a request's body.")
    write_timeout: float = option(60.0, "float", group="Timeouts", least=0.1, unit="seconds", help="How long a client may take nothing of its answer.")
    keep_alive_timeout: float = option(75.0, "float", group="Timeouts", common=True, least=0, unit="seconds", help="How long an idle connection stays open; longer than most balancers' 60.")
    max_head_size: int = option(64 * KIB, "size", group="Requests", least=1 * KIB, unit="bytes", help="The longest request line and header fields together.")
    max_header_count: int = option(100, "int", group="Requests", least=1, unit="fields", help="The most header fields of a request.")
    max_body_size: int = option(GIB, "size", group="Requests", common=True, least=0, unit="bytes", help="The longest body of a request.")
    spool_dir: str | None = option(None, "str", group="Requests", optional=True, help="Where large bodies wait; the system's temporary directory unless given.")
    http: str = option("auto", "str", group="Requests", choices=("auto", "h11", "httptools"), help="The HTTP parser; auto: httptools where it is installed.")
    user: str | None = option(None, "str", group="Process", optional=True, help="Run as this user, after binding and before the application is loaded.")
    group: str | None = option(None, "str", group="Process", optional=True, help="Run as this group.")
    umask: str | None = option(None, "str", group="Process", optional=True, help="The umask, in octal.")
    chdir: str | None = option(None, "str", group="Process", optional=True, help="Change to this directory first.")
    pid_file: str | None = option(None, "str", group="Process", optional=True, help="Write the parent's process id to this file.")
    proc_name: str | None = option(None, "str", group="Process", optional=True, help="What ps shows.")
    app_dir: str = option(".", "str", group="Application", common=True, help="Where to look for the application's module.")
    warm_up: Any = option(None, "hook", group="Hooks", optional=True, help="In the parent, before the first fork: module:function(app), or paths to ask the application for.")
    before_fork: Any = option(None, "hook", group="Hooks", optional=True, help="In the parent, before each fork: module:function(pool).")
    worker_started: Any = option(None, "hook", group="Hooks", optional=True, help="In a worker, before its first request: module:function(worker).")
    worker_exiting: Any = option(None, "hook", group="Hooks", optional=True, help="In a worker, after its last request: module:function(worker).")
    on_record: Any = option(None, "hook", group="Hooks", optional=True, help="For each record of the log: module:function(name, fields).")
    reload: bool = option(False, "bool", group="Development", common=True, help="Start again when a file of the application changes.")
    reload_extra_files: tuple[str, ...] = option((), "list", group="Development", help="Further files to watch. Repeatable.")
    reload_exclude_patterns: tuple[str, ...] = option((), "list", group="Development", help="Files not to watch, as patterns. Repeatable.")
    log_format: str = option("auto", "str", group="Log", common=True, choices=("auto", "console", "json", "none"), help="How records look; auto: for people on a terminal, JSON elsewhere.")
    log_level: str = option("info", "str", group="Log", common=True, choices=("debug", "info", "warning", "error"), help="The least level that is recorded.")
    log_file: str | None = option(None, "str", group="Log", optional=True, help="Where records go; stderr unless given.")
    access_log: str | None = option(None, "str", group="Log", common=True, optional=True, help="Record each request: - with the other records, or a file.")
    # fmt: on

    def __post_init__(self) -> None:
        for declared in OPTIONS.values():
            object.__setattr__(self, declared.name, declared.read(getattr(self, declared.name)))
        self._check_together()

    def _check_together(self) -> None:
        if not self.bind:
            raise ConfigError("PF102", "bind is empty", "give an address such as 127.0.0.1:8000")
        low, high = self.min_reqs_per_child, self.max_reqs_per_child
        if low is not None and high and low > high:
            raise ConfigError(
                "PF103",
                f"min_reqs_per_child is {low} but max_reqs_per_child is {high}",
                "each worker draws its budget between the two, so raise the maximum or lower the minimum",
            )
        if self.umask is not None and not (self.umask.isdigit() and set(self.umask) <= set("01234567")):
            raise OPTIONS["umask"].wrong(self.umask, "give an octal number such as 022")
        if self.spool_dir is not None and not Path(self.spool_dir).is_dir():
            raise OPTIONS["spool_dir"].wrong(self.spool_dir, "there is no such directory")

    @classmethod
    def of(cls, **options: Any) -> Config:
        """Return a configuration from options in code; raises ``ConfigError`` with the nearest name of an unknown one."""
        for name in options:
            if name not in OPTIONS:
                raise unknown(name)
        return cls(**options)

    @property
    def limits(self) -> Limits:
        """What an HTTP connection takes at most."""
        return Limits(self.max_head_size, self.max_header_count, self.max_body_size)


def _declared(declared: Field[Any]) -> Option:
    assert declared.default is not MISSING
    return Option(name=declared.name, default=declared.default, **declared.metadata["option"])


OPTIONS: Mapping[str, Option] = {declared.name: _declared(declared) for declared in fields(Config)}
"""All options, in the order of the documentation."""


def unknown(name: str) -> ConfigError:
    """Return the error for an option that does not exist."""
    near = difflib.get_close_matches(name.lower(), OPTIONS, n=1, cutoff=_NEAREST)
    return ConfigError(
        "PF101", f"there is no option {name!r}", f"did you mean {near[0]!r}?" if near else "see --help-all"
    )


@dataclass(frozen=True, slots=True)
class Resolved:
    """A configuration, and for each option where its value came from."""

    config: Config
    origins: Mapping[str, str]


def resolve(
    *,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    prefixes: tuple[str, ...] = ("PREFORK_",),
    settings: Mapping[str, Any] | None = None,
    settings_name: str = "settings",
    file: str | Path | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Resolved:
    """Merge all sources; for each option the first that gives it wins.

    The order is ``flags``, ``environ`` under each of ``prefixes``, ``settings`` (of a framework, keys in any case) and
    ``file`` (TOML), then WEB_CONCURRENCY and PORT, then ``defaults`` and the declared defaults. Raises ``ConfigError``.
    """
    environ = os.environ if environ is None else environ
    found: dict[str, tuple[Any, str]] = {}
    for name, value in (flags or {}).items():
        if value is not None and value != ():
            found.setdefault(_known(name), (value, f"flag {OPTIONS[_known(name)].flag}"))
    for prefix in prefixes:
        for name in OPTIONS:
            if (text := environ.get(prefix + name.upper())) not in {None, ""}:
                found.setdefault(name, (text, f"environment {prefix}{name.upper()}"))
    for key, value in (settings or {}).items():
        found.setdefault(_known(key), (value, f"{settings_name} {key}"))
    if file is not None:
        for key, value in read_file(Path(file)).items():
            found.setdefault(_known(key), (value, f"file {file}"))
    if environ.get("WEB_CONCURRENCY"):
        found.setdefault("max_workers", (environ["WEB_CONCURRENCY"], "environment WEB_CONCURRENCY"))
    if environ.get("PORT"):
        found.setdefault("bind", ((f"0.0.0.0:{environ['PORT']}",), "environment PORT"))
    for name, value in (defaults or {}).items():
        found.setdefault(name, (value, "default"))
    if found.get("reload", (False,))[0] in {True, "1", "true", "yes", "on"}:
        found.setdefault("max_workers", (1, "default under reload"))
    config = Config.of(**{name: value for name, (value, _) in found.items()})
    origins = {name: found[name][1] if name in found else "default" for name in OPTIONS}
    if str(found.get("max_workers", ("",))[0]) == "auto":
        origins["max_workers"] += f" ({usable_cpus()[1]})"
    return Resolved(config, origins)


def _known(key: str) -> str:
    name = key.lower().replace("-", "_")
    if name not in OPTIONS:
        raise unknown(key)
    return name


def read_file(path: Path) -> dict[str, Any]:
    """Return the options of a TOML file, or of ``[tool.prefork]`` in a pyproject.toml; raises ``ConfigError``."""
    import tomllib

    try:
        with path.open("rb") as file:
            table: dict[str, Any] = tomllib.load(file)
    except OSError as error:
        raise ConfigError("PF104", f"cannot read {path}", error.strerror or str(error)) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("PF104", f"{path} is no TOML", str(error)) from None
    if path.name == "pyproject.toml" or "tool" in table:
        table = table.get("tool", {}).get("prefork", {})
    return table


def usable_cpus() -> tuple[int, str]:
    """Return how many CPUs this process may use, and how that came about: its affinity and its cgroup's quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    if quota is None or quota >= affinity:
        return affinity, f"{affinity} usable CPUs"
    return max(1, math.ceil(quota)), f"cgroup quota of {quota:g} CPUs, {affinity} usable"


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return None if quota in {"max", "-1"} else int(quota) / int(period)


def render_options_markdown() -> str:
    """Return the options page of the documentation."""
    lines = [
        "# What do the options mean?",
        "",
        "Made from the code by `make docs`. In code `max_workers=4`, on the command line `--max-workers 4`, in the",
        'environment `PREFORK_MAX_WORKERS=4`, in Django\'s settings `PREFORK = {"MAX_WORKERS": 4}`, in a file',
        "`max_workers = 4`. The first that gives an option wins: code or flag, `FLASK_RUN_PREFORK_*` (Flask only),",
        "`PREFORK_*`, the framework's settings or `--config` file, `WEB_CONCURRENCY` and `PORT`, the default.",
    ]
    for group in dict.fromkeys(declared.group for declared in OPTIONS.values()):
        lines += ["", f"## {group}", "", "| option | flags | default | meaning |", "|---|---|---|---|"]
        lines += [_row(declared) for declared in OPTIONS.values() if declared.group == group]
    return "\n".join(lines) + "\n"


def _row(declared: Option) -> str:
    default = declared.default
    shown = ", ".join(default) if isinstance(default, tuple) else "" if default is None else str(default)
    unit = f" {declared.unit}" if declared.unit and shown else ""
    flags = ", ".join(f"`{flag}`" for flag in declared.flags)
    if declared.kind == "bool":
        flags = f"`--{declared.flag[2:]}/--no-{declared.flag[2:]}`"
    choices = f" One of {', '.join(declared.choices)}." if declared.choices else ""
    return f"| `{declared.name}` | {flags} | {shown}{unit} | {declared.help}{choices} |"
