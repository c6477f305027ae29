"""Which source wins, for a Flask application?"""

from __future__ import annotations

import re
from typing import Any

import pytest

from prefork.contrib.flask.options import Given, join, resolve_options
from prefork.contrib.flask.serving import roots_of
from prefork.errors import ConfigError

FLAG = {"port": "1"}
OWN = {"FLASK_RUN_PREFORK_PORT": "2"}
GENERAL = {"PREFORK_BIND": "127.0.0.1:3"}
SETTING = {"PREFORK_PORT": 4}
OF_FLASK_RUN = {"FLASK_RUN_PORT": "5"}
PLATFORM = {"PORT": "6"}


@pytest.mark.parametrize(
    ("given", "settings", "environ", "asked"),
    [
        pytest.param(FLAG, {}, {}, "flag --host, --port", id="flag"),
        pytest.param({}, {}, OWN, "environment FLASK_RUN_PREFORK_*", id="FLASK_RUN_PREFORK_"),
        pytest.param({}, {}, GENERAL, "environment PREFORK_BIND", id="PREFORK_"),
        pytest.param({}, SETTING, {}, "app.config PREFORK_*", id="app.config"),
        pytest.param({}, {}, OF_FLASK_RUN, "", id="FLASK_RUN_, which is for flask run"),
        pytest.param({}, {}, PLATFORM, "", id="PORT"),
        pytest.param({}, {}, {}, "", id="the default"),
    ],
)
def test_inherited_sockets_yield_to_no_default(
    given: dict[str, Any], settings: dict[str, Any], environ: dict[str, str], asked: str
) -> None:
    resolved = resolve_options(Given(**given, settings=settings), debug=False, environ=environ)
    assert resolved.config.bind_from == asked


@pytest.mark.parametrize(
    ("given", "settings", "environ", "bind"),
    [
        pytest.param(FLAG, SETTING, OWN | GENERAL | OF_FLASK_RUN | PLATFORM, "127.0.0.1:1", id="flag"),
        pytest.param({}, SETTING, OWN | GENERAL | OF_FLASK_RUN | PLATFORM, "127.0.0.1:2", id="FLASK_RUN_PREFORK_"),
        pytest.param({}, SETTING, GENERAL | OF_FLASK_RUN | PLATFORM, "127.0.0.1:3", id="PREFORK_"),
        pytest.param({}, SETTING, OF_FLASK_RUN | PLATFORM, "127.0.0.1:4", id="app.config"),
        pytest.param({}, {}, OF_FLASK_RUN | PLATFORM, "127.0.0.1:5", id="FLASK_RUN_"),
        pytest.param({}, {}, PLATFORM, "0.0.0.0:6", id="PORT, on all addresses"),
        pytest.param({}, {}, {}, "127.0.0.1:5000", id="as flask run"),
        pytest.param({}, {}, PLATFORM | {"FLASK_RUN_HOST": "127.0.0.2"}, "127.0.0.2:6", id="PORT with a host"),
        pytest.param({"host": "0.0.0.0"}, {}, OF_FLASK_RUN, "0.0.0.0:5", id="the parts come from two sources"),
        pytest.param({"port": "1"}, {}, PLATFORM, "127.0.0.1:1", id="a port was given: PORT says nothing"),
        pytest.param({"host": "::1", "port": "0"}, {}, {}, "[::1]:0", id="IPv6"),
        pytest.param({"host": "unix:///run/shop.sock"}, {}, {}, "unix:/run/shop.sock", id="as flask run -h unix://"),
        pytest.param({}, {"PREFORK_BIND": "unix:a"}, OF_FLASK_RUN, "unix:a", id="bind in app.config"),
        pytest.param({}, {}, {"FLASK_RUN_PREFORK_BIND": "[::1]:9"} | GENERAL, "[::1]:9", id="bind in the environment"),
    ],
)
def test_the_address_comes_from_the_first_that_gives_it(
    given: dict[str, Any], settings: dict[str, Any], environ: dict[str, str], bind: str
) -> None:
    resolved = resolve_options(Given(settings=settings, **given), debug=False, environ=environ)
    assert resolved.config.bind == (bind,)


@pytest.mark.parametrize(
    ("options", "settings", "environ", "threads"),
    [
        ({"threads": "1"}, {"PREFORK_THREADS": 4}, {"FLASK_RUN_PREFORK_THREADS": "2", "PREFORK_THREADS": "3"}, 1),
        ({}, {"PREFORK_THREADS": 4}, {"FLASK_RUN_PREFORK_THREADS": "2", "PREFORK_THREADS": "3"}, 2),
        ({}, {"PREFORK_THREADS": 5}, {"PREFORK_THREADS": "3"}, 3),
        ({}, {"PREFORK_THREADS": 5}, {}, 5),
    ],
)
def test_an_option_comes_from_the_first_that_gives_it(
    options: dict[str, str], settings: dict[str, Any], environ: dict[str, str], threads: int
) -> None:
    resolved = resolve_options(Given(options=options, settings=settings), debug=False, environ=environ)
    assert resolved.config.threads == threads


def test_the_origin_of_an_address_in_parts_is_told() -> None:
    origins = resolve_options(Given(), debug=False, environ=OF_FLASK_RUN).origins
    assert origins["bind"] == "environment FLASK_RUN_*"


def test_the_server_name_is_a_fallback() -> None:
    for environ, bind in (({}, "shop.test:80"), (OF_FLASK_RUN, "shop.test:5")):
        resolved = resolve_options(Given(), debug=False, server_name="shop.test:80", environ=environ)
        assert resolved.config.bind == (bind,)


def test_an_address_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="PF605"):
        resolve_options(Given(port="1", options={"bind": ("a:2",)}), debug=False, environ={})


@pytest.mark.parametrize(
    ("given", "settings", "environ", "said"),
    [
        pytest.param({}, {}, {"FLASK_RUN_PORT": "web"}, "'web' (environment FLASK_RUN_PORT)", id="FLASK_RUN_"),
        pytest.param({}, {}, {"PREFORK_PORT": "70000"}, "'70000' (environment PREFORK_PORT)", id="PREFORK_"),
        pytest.param({}, {}, {"PORT": "-1"}, "'-1' (environment PORT)", id="PORT"),
        pytest.param({}, {"PREFORK_PORT": 1.5}, {}, "1.5 (app.config PREFORK_PORT)", id="app.config"),
        pytest.param({"port": "x"}, {}, {}, "'x' (flag --host, --port)", id="flag"),
        pytest.param({"host": "a"}, {}, {"FLASK_RUN_PORT": "x"}, "'x' (environment FLASK_RUN_PORT)", id="two sources"),
        pytest.param({}, {}, {"FLASK_RUN_HOST": "a/b"}, "'a/b:5000' (environment FLASK_RUN_HOST)", id="host"),
        pytest.param({"port": "1"}, {}, {"PREFORK_HOST": "a/b"}, "'a/b:1' (environment PREFORK_HOST)", id="host apart"),
        pytest.param({"host": "a:1"}, {}, {}, "'a:1' (flag --host, --port)", id="host and port"),
        pytest.param({"host": "a:1", "port": "2"}, {}, {}, "'a:1' (flag --host, --port)", id="host and port, and port"),
        pytest.param({}, {}, {"FLASK_RUN_HOST": "a:1"}, "'a:1' (environment FLASK_RUN_HOST)", id="FLASK_RUN_HOST"),
        pytest.param({}, {}, {"PREFORK_BIND": "a/b"}, "'a/b' (environment PREFORK_BIND)", id="bind"),
        pytest.param({}, {"PREFORK_HOST": 1}, {}, "1 (app.config PREFORK_HOST)", id="a host that is no text"),
    ],
)
def test_a_wrong_address_is_told_with_who_gave_it(
    given: dict[str, Any], settings: dict[str, Any], environ: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(f" is {said}: ")):
        resolve_options(Given(settings=settings, **given), debug=False, environ=environ)


def test_a_service_of_kubernetes_that_is_called_prefork_is_no_address() -> None:
    environ = {"PREFORK_PORT": "tcp://10.0.0.1:80", "PREFORK_SERVICE_HOST": "10.0.0.1", "FLASK_RUN_PORT": "8"}
    resolved = resolve_options(Given(), debug=False, environ=environ)
    assert resolved.config.bind == ("127.0.0.1:8",)
    assert not resolved.strays


def test_port_0_of_the_settings_is_any_that_is_free() -> None:
    resolved = resolve_options(Given(settings={"PREFORK_PORT": 0}), debug=False, environ={})
    assert resolved.config.bind == ("127.0.0.1:0",)


def test_an_unknown_setting_is_named_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="threads"):
        resolve_options(Given(settings={"PREFORK_TREADS": 1}), debug=False, environ={})


ABSENT = [("PRELOAD", "always loaded before the fork"), ("APP_DIR", "Flask finds the application")]


@pytest.mark.parametrize(("name", "why"), ABSENT)
def test_an_option_that_makes_no_sense_with_flask_is_none(name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=rf"no option '{name}' \(app\.config PREFORK_{name}\): .*{why}"):
        resolve_options(Given(settings={f"PREFORK_{name}": "off"}), debug=False, environ={})
    with pytest.raises(ConfigError, match=rf"no option '{name.lower()}': .*{why}"):
        resolve_options(Given(options={name.lower(): "off"}), debug=False, environ={})
    resolved = resolve_options(Given(), debug=False, environ={f"FLASK_RUN_PREFORK_{name}": "off"})
    assert (resolved.config.preload, resolved.config.app_dir) == (True, ".")
    (warning,) = resolved.warnings
    assert f"FLASK_RUN_PREFORK_{name} is no option" in warning
    assert why in warning


def test_flasks_own_debug_flag_may_be_in_the_environment() -> None:
    environ = {"FLASK_RUN_PREFORK_DEBUG": "1", "PREFORK_DEBUG": "1"}
    assert list(resolve_options(Given(), debug=True, environ=environ).strays) == ["PREFORK_DEBUG"]


def test_a_host_and_a_port_in_the_environment_are_no_mistake_and_what_is_nearly_an_option_is() -> None:
    names = ("HOST", "PORT", "WORKERS", "TRUSTED_PROXY")
    environ = {prefix + name: "1" for prefix in ("FLASK_RUN_PREFORK_", "PREFORK_") for name in names}
    resolved = resolve_options(Given(), debug=False, environ=environ)
    assert resolved.strays == {
        "FLASK_RUN_PREFORK_TRUSTED_PROXY": "did you mean FLASK_RUN_PREFORK_TRUSTED_PROXIES?",
        "PREFORK_TRUSTED_PROXY": "did you mean PREFORK_TRUSTED_PROXIES?",
    }


def test_debug_turns_on_reload_with_one_worker_and_an_access_log() -> None:
    config = resolve_options(Given(), debug=True, environ={}).config
    assert (config.reload, config.max_workers, config.access_log) == (True, 1, "-")


@pytest.mark.parametrize("source", ["flag", "environment", "app.config"])
def test_reload_can_be_turned_off_in_debug(source: str) -> None:
    options = {"reload": False} if source == "flag" else {}
    environ = {"PREFORK_RELOAD": "0"} if source == "environment" else {}
    settings = {"PREFORK_RELOAD": False} if source == "app.config" else {}
    config = resolve_options(Given(options=options, settings=settings), debug=True, environ=environ).config
    assert (config.reload, config.max_workers) == (False, 10)


def test_the_access_log_can_be_turned_off_in_debug() -> None:
    resolved = resolve_options(Given(no_access_log=True), debug=True, environ={"PREFORK_ACCESS_LOG": "-"})
    assert (resolved.config.access_log, resolved.origins["access_log"]) == (None, "flag --no-access-log")


def test_host_and_port_make_an_address() -> None:
    assert [join("a", 1), join("::1", 2), join("[::1]", 3)] == ["a:1", "[::1]:2", "[::1]:3"]


def test_the_folder_of_an_app_that_is_named_by_its_file_is_watched() -> None:
    assert roots_of("src/shop.py:create_app('a:b')") == ["src"]
    assert roots_of("shop:app") == roots_of(None) == []


@pytest.mark.parametrize(
    ("options", "environ", "said"),
    [
        ({"cert": "adhoc"}, {}, {"cert": "adhoc"}),
        ({"ssl_context": "adhoc"}, {}, {"cert": "adhoc"}),
        ({"ssl_context": ("a.pem", "b.pem")}, {}, {"cert": "a.pem", "key": "b.pem"}),
        ({"ssl_context": "certs:context"}, {}, {"ssl_context": "certs:context"}),
        ({"cert": "certs:context"}, {}, {"ssl_context": "certs:context"}),
        ({"cert": "os.path"}, {}, {"ssl_context": "os:path"}),
        ({"cert": "cert.pem"}, {}, {"cert": "cert.pem"}),
        ({}, {"FLASK_RUN_CERT": "a.pem", "FLASK_RUN_KEY": "b.pem"}, {"cert": "a.pem", "key": "b.pem"}),
        ({}, {"FLASK_RUN_CERT": "a.pem", "FLASK_RUN_PREFORK_CERT": "c.pem"}, {"cert": "c.pem"}),
        ({"cert": "c.pem"}, {"FLASK_RUN_CERT": "a.pem", "FLASK_RUN_KEY": "b.pem"}, {"cert": "c.pem"}),
        ({"ssl_context": "a:b"}, {"FLASK_RUN_CERT": "a.pem"}, {"ssl_context": "a:b"}),
    ],
)
def test_tls_is_spelt_as_flask_and_werkzeug_do(
    options: dict[str, Any], environ: dict[str, str], said: dict[str, Any]
) -> None:
    config = resolve_options(Given(options=options), debug=False, environ=environ).config
    found = {name: getattr(config, name) for name in ("cert", "key", "ssl_context")}
    assert {name: value for name, value in found.items() if value is not None} == said


def test_what_is_said_to_flask_run_is_told_as_the_origin() -> None:
    resolved = resolve_options(Given(), debug=False, environ={"FLASK_RUN_CERT": "adhoc"})
    assert resolved.origins["cert"] == "environment FLASK_RUN_*"
