"""What may an option be, where does its value come from, and how many CPUs are there?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from prefork.addresses import Address, parse_bind
from prefork.config import OPTIONS, Config, resolve, usable_cpus
from prefork.errors import ConfigError
from prefork.values import replace

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("max_workers", "4", 4),
        ("threads", 2, 2),
        ("graceful_timeout", "0.5", 0.5),
        ("graceful_timeout", 3, 3.0),
        ("max_body_size", "64K", 64 * 1024),
        ("max_body_size", "10m", 10 * 1024**2),
        ("max_body_size", "1G", 1024**3),
        ("max_body_size", 5, 5),
        ("preload", "off", False),
        ("preload", "YES", True),
        ("umask", "022", "022"),
        ("umask", 0o27, "027"),
        ("umask", "0o77", "77"),
        ("user", 1000, "1000"),
        ("access_log", True, "-"),
        ("access_log", "off", None),
        ("access_log", "none", None),
        ("access_log", "/var/log/access", "/var/log/access"),
        ("log_file", "/var/log/shop", "/var/log/shop"),
        ("log_file", "-", None),
        ("http", "H11", "h11"),
        ("bind", "127.0.0.1:1, [::1]:2", ("127.0.0.1:1", "[::1]:2")),
        ("bind", (":1,:2", "unix:/run/a"), (":1", ":2", "unix:/run/a")),
        ("bind", ["unix:/run/a"], ("unix:/run/a",)),
        ("warm_up", "/a,/b", ("/a", "/b")),
        ("warm_up", "shop:warm", "shop:warm"),
        ("before_fork", "shop:hook", "shop:hook"),
    ],
)
def test_a_value_is_understood_as_code_and_as_text(name: str, given: Any, value: Any) -> None:
    assert getattr(Config.of(**{name: given}), name) == value


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("max_workers", "few"),
        ("max_workers", True),
        ("max_workers", 0),
        ("threads", 1.5),
        ("graceful_timeout", "nan"),
        ("graceful_timeout", -1),
        ("boot_timeout", 0),
        ("max_body_size", "1T5"),
        ("preload", "maybe"),
        ("umask", "9"),
        ("umask", "7777"),
        ("user", ""),
        ("log_level", "loud"),
        ("bind", ()),
        ("bind", 8000),
        ("warm_up", "no path"),
        ("before_fork", "module"),
        ("chdir", "a\0b"),
    ],
)
def test_what_cannot_be_is_refused_with_the_name_of_the_option(name: str, given: Any) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        Config.of(**{name: given})
    assert caught.value.code in {"PF102", "PF301"}
    assert caught.value.hint


@pytest.mark.parametrize(
    ("given", "level"), [("warn", "warning"), ("WARN", "warning"), ("Warning", "warning"), ("critical", "critical")]
)
def test_levels_are_called_as_in_logging(given: str, level: str) -> None:
    assert Config.of(log_level=given).log_level == level


def test_an_unknown_option_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="max_workers") as caught:
        Config.of(max_worker=3)
    assert caught.value.code == "PF101"
    with pytest.raises(ConfigError, match="did you mean 'max_workers'"):
        Config.of(wokers=3)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("DAEMON", "systemd or a container does that"),
        ("SENDFILE", "files of wsgi.file_wrapper are always sent so"),
        ("initgroups", "see --help-all"),
        ("processes", "did you mean 'max_workers'?"),
        ("worker", "did you mean 'max_workers'?"),
        ("app", "the application is named on the command line: prefork shop:app, or flask --app shop"),
        ("wokers", "did you mean 'max_workers'?"),
    ],
)
def test_the_advice_for_an_option_of_another_server_is_its_counterpart_or_why_there_is_none(
    name: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(settings={name: 1}, environ={})
    assert (caught.value.code, caught.value.hint) == ("PF101", hint)


def test_every_option_has_help_and_can_be_written_and_read_again() -> None:
    for name, option in OPTIONS.items():
        assert option.help.endswith(".")
        if option.default is not None and option.default != ():
            assert getattr(Config.of(**{name: option.default}), name) == getattr(Config.of(), name)


@pytest.mark.parametrize(
    ("name", "placeholder", "shown"),
    [
        ("graceful_timeout", "SECONDS", "[30 seconds; PREFORK_GRACEFUL_TIMEOUT]"),
        ("max_body_size", "SIZE", "[1G bytes; PREFORK_MAX_BODY_SIZE]"),
        ("max_workers", "N|auto", "[10; PREFORK_MAX_WORKERS]"),
        ("bind", "ADDRESS", "[127.0.0.1:8000; PREFORK_BIND]"),
        ("log_format", "auto|console|json|none", "[auto; PREFORK_LOG_FORMAT]"),
        ("pid_file", "PATH", "[PREFORK_PID_FILE]"),
    ],
)
def test_help_tells_what_is_to_be_given_and_the_default_with_its_unit(name: str, placeholder: str, shown: str) -> None:
    assert OPTIONS[name].placeholder == placeholder
    assert OPTIONS[name].long_help == f"{OPTIONS[name].help}  {shown}"


@pytest.mark.parametrize(
    ("sources", "value", "origin"),
    [
        ({"flags", "environment", "settings", "file", "platform", "defaults"}, 1, "flag --max-workers"),
        ({"environment", "settings", "file", "platform", "defaults"}, 2, "environment PREFORK_MAX_WORKERS"),
        ({"settings", "file", "platform", "defaults"}, 3, "settings MAX_WORKERS"),
        ({"file", "platform", "defaults"}, 4, "file"),
        ({"platform", "defaults"}, 5, "environment WEB_CONCURRENCY"),
        ({"defaults"}, 6, "default"),
        (set(), 10, "default"),
    ],
)
def test_the_first_that_gives_an_option_wins(sources: set[str], value: int, origin: str, tmp_path: Path) -> None:
    file = tmp_path / "prefork.toml"
    file.write_text("max_workers = 4\n")
    environ = {"PREFORK_MAX_WORKERS": "2"} if "environment" in sources else {}
    environ |= {"WEB_CONCURRENCY": "5"} if "platform" in sources else {}
    resolved = resolve(
        flags={"max_workers": 1} if "flags" in sources else {"max_workers": None},
        environ=environ,
        settings={"MAX_WORKERS": 3} if "settings" in sources else {},
        file=file if "file" in sources else None,
        defaults={"max_workers": 6} if "defaults" in sources else {},
    )
    assert resolved.config.max_workers == value
    assert resolved.origins["max_workers"].startswith(origin)


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("a.toml", "max_worker = 3", "PF101"),
        ("a.toml", "max_workers = 'many'", "PF102"),
        ("a.toml", "max_workers = = 3", "PF104"),
        ("pyproject.toml", "[project]\nname = 'shop'", "PF104"),
        ("a.toml", "[prefork]\nmax_workers = 3", "PF104"),
        ("a.toml", "workers = 3\n[tool.prefork]\nthreads = 3", "PF104"),
        ("a.toml", "workers = 3\nmax_workers = 4", "PF103"),
    ],
)
def test_a_mistake_in_a_file_names_the_file(name: str, text: str, code: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        resolve(environ={}, file=file)
    assert caught.value.code == code
    assert name in str(caught.value)


KUBERNETES = {
    "PREFORK_SERVICE_HOST": "10.0.0.1",
    "PREFORK_SERVICE_PORT": "80",
    "PREFORK_SERVICE_PORT_HTTP": "80",
    "PREFORK_PORT": "tcp://10.0.0.1:80",
    "PREFORK_PORT_80_TCP": "tcp://10.0.0.1:80",
    "PREFORK_PORT_80_TCP_PROTO": "tcp",
    "PREFORK_PORT_80_TCP_PORT": "80",
    "PREFORK_PORT_80_TCP_ADDR": "10.0.0.1",
    # Of services named prefork-thread and prefork-bin.
    "PREFORK_THREAD_PORT": "tcp://10.0.0.1:80",
    "PREFORK_BIN_SERVICE_HOST": "10.0.0.1",
}


def test_what_kubernetes_puts_into_the_environment_is_no_mistake() -> None:
    environ = {**KUBERNETES, "PREFORK_THREADZ": "3"}
    assert resolve(environ=environ).strays == {"PREFORK_THREADZ": "did you mean PREFORK_THREADS?"}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("THREADZ", "did you mean PREFORK_THREADS?"),
        ("MAX_REQ_PER_CHILD", "did you mean PREFORK_MAX_REQS_PER_CHILD?"),
        ("TRUSTED_PROXY", "did you mean PREFORK_TRUSTED_PROXIES?"),
        ("WORKER", "did you mean PREFORK_WORKERS?"),
        ("PORT", "did you mean PREFORK_BIND?"),
        ("TIMEOUT", "did you mean PREFORK_REQUEST_TIMEOUT?"),
        ("APP", "the application is named on the command line: prefork shop:app, or flask --app shop"),
        ("CONFIG", "the command prefork has --config FILE, which takes TOML"),
        ("DAEMON", "systemd or a container does that"),
        ("DEBUG", "see --help-all"),
    ],
)
def test_a_variable_that_is_no_option_is_told_with_what_to_give_instead(name: str, hint: str) -> None:
    resolved = resolve(environ={f"PREFORK_{name}": "3", "PREFORK_NOTHING": ""})
    assert resolved.strays == {f"PREFORK_{name}": hint}
    assert resolved.warnings == [f"prefork: warning: PREFORK_{name} is no option, and ignored: {hint} [PF101]"]


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"PREFORK_ACCESS_LOG_FORMAT": "common"}, True),
        ({"PREFORK_ACCESS_LOG_FORMAT": "common", "PREFORK_ACCESS_LOG": "-"}, False),
        ({"PREFORK_ACCESS_LOG_FORMAT": "common", "PREFORK_ACCESS_LOG": "off"}, False),
        ({}, False),
    ],
)
def test_a_format_without_a_log_is_told_unless_that_is_turned_off(environ: dict[str, str], told: bool) -> None:
    said = "prefork: warning: access_log_format is given, and no request is recorded: give access_log too [PF103]"
    assert resolve(environ=environ).warnings == [said] * told


def test_no_option_is_a_mistake() -> None:
    environ = {option.environment: option.write(option.default) for option in OPTIONS.values()}
    assert not resolve(environ={**environ, "PREFORK_WORKERS": "3"}).strays


@pytest.mark.parametrize("source", ["environment", "settings", "file"])
def test_a_second_spelling_of_a_flag_is_one_of_the_option_everywhere(source: str, tmp_path: Path) -> None:
    (tmp_path / "prefork.toml").write_text("workers = 3\n")
    resolved = resolve(
        environ={"PREFORK_WORKERS": "3"} if source == "environment" else {},
        settings={"WORKERS": 3} if source == "settings" else {},
        file=tmp_path / "prefork.toml" if source == "file" else None,
    )
    assert resolved.config.max_workers == 3
    assert resolved.origins["max_workers"].startswith(source)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8000", Address(host="127.0.0.1", port=8000)),
        (":80", Address(host="0.0.0.0", port=80)),
        ("[::1]:8000", Address(host="::1", port=8000)),
        ("localhost:0", Address(host="localhost", port=0)),
    ],
)
def test_an_address_is_understood(text: str, address: Address) -> None:
    assert parse_bind(text) == address


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("8000", "127.0.0.1:8000"),
        ("http://127.0.0.1:8000", "without|leave the scheme"),
        ("/run/shop.sock", "unix:/run/shop.sock"),
        ("::1:8000", r"\[::1\]:8000"),
        ("shop", "host:port"),
        ("127.0.0.1:70000", "65535"),
        ("fd://x", "fd://"),
        ("unix:", "unix"),
    ],
)
def test_an_address_that_is_none_comes_with_advice(text: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=advice):
        parse_bind(text)


@pytest.mark.parametrize(
    ("files", "cgroup", "quota"),
    [
        ({"cpu.max": "max 100000"}, "0::/", None),
        ({"cpu.max": "50000 100000"}, "0::/", 0.5),
        ({"app/cpu.max": "max 100000", "cpu.max": "150000 100000"}, "0::/app", 1.5),
        ({"cpu/app/cpu.cfs_quota_us": "200000", "cpu/app/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/app", 2.0),
        ({"cpu/app/cpu.cfs_quota_us": "-1", "cpu/app/cpu.cfs_period_us": "100000"}, "4:cpu:/app", None),
    ],
)
def test_the_quota_of_a_container_counts(
    files: dict[str, str], cgroup: str, quota: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr("os.process_cpu_count", lambda: 8, raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "self").write_text(cgroup + "\n")
    count, why = usable_cpus(tmp_path / "self", tmp_path)
    assert count == (8 if quota is None else max(1, round(quota + 0.49)))
    assert "affinity 8" in why
    assert ("no cgroup quota" in why) == (quota is None)


@pytest.mark.parametrize(
    ("config", "asked"),
    [
        pytest.param(Config(), "", id="nobody"),
        pytest.param(Config(bind=("127.0.0.1:8000",)), "code", id="code, for the default"),
        pytest.param(resolve(environ={}).config, "", id="no source"),
        pytest.param(resolve(environ={"PORT": "80"}).config, "", id="PORT"),
        pytest.param(resolve(environ={}, defaults={"bind": (":5000",)}).config, "", id="a framework's default"),
        pytest.param(resolve(environ={}, flags={"bind": (":80",)}).config, "flag --bind", id="a flag"),
        pytest.param(resolve(environ={"PREFORK_BIND": ":80"}).config, "environment PREFORK_BIND", id="a variable"),
        pytest.param(resolve(environ={}, settings={"BIND": ":80"}).config, "settings BIND", id="settings"),
    ],
)
def test_who_asked_for_the_address_is_known(config: Config, asked: str) -> None:
    assert config.bind_from == asked
    assert replace(config, bind=("fd://3",)).bind_from == asked
