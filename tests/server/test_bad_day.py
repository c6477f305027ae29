"""What does a user get on a bad day? One line that says what to do, a status, and nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from server_process import A_MINUTE, ROOT, LiveServer, wait_until_gone

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MODULES = {
    "shop": "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'shop']\n"
    "number = 1\nnothing = None\n"
    "async def asgi(scope, receive, send): pass\n"
    "def create_app(): raise LookupError('no database')\n"
    "def create_nothing(): return None\n",
    "raising": "raise LookupError('no database')\n",
    "leaving": "import sys\nsys.exit('enough')\n",
    "broken": "def app(:\n",
    "lacking": "import there_is_no_such_module\n",
    "empty": "",
}


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return how to run the command to its end, in a directory with the modules above."""
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)

    def run(*args: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFORK_")}
        return subprocess.run(
            [sys.executable, "-m", "prefork", *args],
            cwd=tmp_path,
            env={**clean, "PYTHONPATH": str(ROOT), "PREFORK_LOG_LEVEL": "warning", **(env or {})},
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )

    return run


def told(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that the user gets."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert done.stdout == ""
    return lines[0]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("shop:app", "--max-workers", "none"), "PF102", "max_workers"),
        (("shop:app", "--max-workers", "0"), "PF102", "max_workers"),
        (("shop:app", "--threads", "-1"), "PF102", "threads"),
        (("shop:app", "--graceful-timeout", "soon"), "PF102", "graceful_timeout"),
        (("shop:app", "--bind", "127.0.0.1:http"), "PF301", "http"),
        (("shop:app", "--bind", "127.0.0.1:70000"), "PF302", "70000"),
        (("shop:app", "--bind", "fd://x"), "PF3", "fd://x"),
        (("shop:app", "--min-reqs-per-child", "9", "--max-reqs-per-child", "3"), "PF103", "lower the minimum"),
        (("shop:app", "--config", "there_is_none.toml"), "PF104", "there_is_none.toml"),
        (("shop:app", "--app-dir", "there_is_none"), "PF209", "there_is_none"),
        (("shop:app", "--user", "nobody-of-this-name"), "PF309", "nobody-of-this-name"),
        (("shop:app", "--chdir", "there_is_none"), "PF418", "there_is_none"),
        (("shop:app", "--spool-dir", "there_is_none"), "PF102", "spool_dir"),
        (("nothere:app",), "PF202", "nothere"),
        (("shop:ap",), "PF203", "did you mean"),
        (("shop:app.nothing",), "PF203", "nothing"),
        (("empty",), "PF203", "empty"),
        (("shop:number",), "PF204", "int"),
        (("shop:nothing",), "PF204", "None"),
        (("shop:create_nothing()",), "PF204", "return"),
        (("shop:create_app(1)",), "PF210", "create_app"),
        (("shop:asgi", "--interface", "wsgi"), "PF205", "ASGI"),
        (("shop:app", "--interface", "asgi"), "PF212", "(scope, receive, send)"),
        (("shop.py",), "PF202", "not a file: shop"),
        (("shop:app(",), "PF201", "app("),
    ],
)
def test_a_mistake_of_the_user_is_told_in_one_line_with_status_2(
    run: Callable[..., subprocess.CompletedProcess[str]], args: tuple[str, ...], code: str, words: str
) -> None:
    bind = () if "--bind" in args else ("--bind", "127.0.0.1:0")
    done = run(*args, *bind)
    line = told(done)
    assert line.startswith("prefork: error: ")
    assert f"[{code}" in line
    assert words in line
    assert done.returncode == 2


@pytest.mark.parametrize("flags", [(), ("--check-config",), ("--reload",), ("--chdir", "/")])
def test_a_current_directory_that_is_gone_is_told(flags: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "prefork", "shop:app", "--bind", "127.0.0.1:0", *flags]
    done = subprocess.run(
        ["sh", "-c", 'mkdir gone && cd gone && rmdir ../gone && exec "$@"', "sh", *command],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PREFORK_LOG_LEVEL": "warning"},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert told(done) == "prefork: error: the current directory is gone: start in one that is there [PF418]"
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("env", "code", "words"),
    [
        ({"PREFORK_MAX_WORKERS": "many"}, "PF102", "PREFORK_MAX_WORKERS"),
    ],
)
def test_a_mistake_in_the_environment_is_told_with_its_name(
    run: Callable[..., subprocess.CompletedProcess[str]], env: dict[str, str], code: str, words: str
) -> None:
    done = run("shop:app", "--bind", "127.0.0.1:0", "--check-config", env=env)
    assert done.returncode == 2, done
    assert f"[{code}]" in told(done)
    assert words in done.stderr


def test_an_unknown_option_is_told_with_the_nearest_one(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run("shop:app", "--max-worker", "3")
    assert done.returncode == 2
    assert told(done) == "prefork: error: there is no option --max-worker: did you mean --max-workers? [PF101]"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("--max-requests", "--max-reqs-per-child"),
        ("--timeout", "--request-timeout"),
        ("--forwarded-allow-ips", "--trusted-proxies"),
        ("--error-logfile", "--log-file"),
        ("--worker-connections", "--limit-concurrency"),
        ("--limit-request-field_size", "--max-head-size"),
        ("--timeout-graceful-shutdown", "--graceful-timeout"),
        ("--pythonpath", "--app-dir"),
        ("--processes", "--max-workers"),
        ("--worker", "--workers"),
        ("--uid", "--user"),
        ("--gid", "--group"),
        ("--harakiri", "--request-timeout"),
        ("--socket", "--bind"),
        ("--uds", "--bind"),
        ("--loop", "--async-backend"),
        ("--ws-max-size", "--websocket-max-size"),
        ("--logfile", "--log-file"),
        ("-n", "--proc-name"),
        ("-u", "--user"),
    ],
)
def test_a_flag_of_another_server_is_told_with_ours(
    run: Callable[..., subprocess.CompletedProcess[str]], theirs: str, ours: str
) -> None:
    done = run("shop:app", theirs, "5")
    assert done.returncode == 2
    assert told(done) == f"prefork: error: there is no option {theirs}: did you mean {ours}? [PF101]"


@pytest.mark.parametrize(
    ("theirs", "instead"),
    [
        ("--print-config", "--show-config prints each value"),
        ("--daemon", "systemd or a container does that"),
        ("--env", "set it where the command is started"),
        ("--worker-class", "what an application needs is seen by looking at it"),
        ("--reuse-port", "all workers accept from one socket"),
        ("--sendfile", "files of wsgi.file_wrapper are always sent so"),
        ("--worker-tmp-dir", "workers write nothing to tell that they are alive"),
        ("--master", "there always is a process above the workers"),
        ("--wsgi-file", "name the application alone, such as shop.wsgi:application"),
        ("-c", "the command prefork has --config FILE, which takes TOML"),
        ("-k", "what an application needs is seen by looking at it"),
        ("-D", "systemd or a container does that"),
        ("-p", "a file for the process id is --pid-file, a port is --bind :8000"),
        ("--factory", "call it: prefork 'shop:create_app()'"),
        ("--capture-output", "what the application prints goes to stdout and stderr"),
        ("--statsd-host", "Prometheus can be served, and on_record is told what there is to count"),
        ("--lifespan", "an application that has a lifespan is told of its start and its end"),
        ("--ws", "WebSocket is spoken where prefork[websocket] is installed, but for --no-websocket"),
        ("--no-server-header", "a Server that the application sets is kept instead of ours"),
        (
            "--max-requests-jitter",
            "for 1000 requests and a jitter of 100 give --min-reqs-per-child 1000 --max-reqs-per-child 1100",
        ),
        ("--vacuum", "--help-all shows all of them"),
        ("--paste", "--help-all shows all of them"),
        ("--syslog", "--help-all shows all of them"),
    ],
)
def test_a_flag_of_another_server_that_has_no_counterpart_is_told_why_and_no_other_flag_is_named(
    run: Callable[..., subprocess.CompletedProcess[str]], theirs: str, instead: str
) -> None:
    done = run("shop:app", theirs, "5")
    assert done.returncode == 2
    assert told(done) == f"prefork: error: there is no option {theirs}: {instead} [PF101]"


def test_a_name_in_the_environment_that_is_nearly_an_option_is_warned_of(
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = run("shop:app", "--check-config", env={"PREFORK_MAX_WORKER": "3", "PREFORK_SERVICE_HOST": "10.0.0.1"})
    assert done.returncode == 0
    (warning,) = done.stderr.splitlines()
    assert "PREFORK_MAX_WORKER is no option" in warning
    assert "PREFORK_MAX_WORKERS" in warning


def test_a_flag_without_its_value_is_told(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run("shop:app", "--max-workers")
    assert done.returncode == 2
    assert "[PF102]" in told(done)


def test_check_config_looks_where_the_server_would(
    run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "site.toml").write_text("")
    (tmp_path / "inner" / "deep.py").write_text("open('site.toml')\nfrom shop import app\ndef hook(worker): ...\n")
    done = run("deep:app", "--check-config", "--chdir", "inner", "--worker-started", "deep:hook")
    assert done.returncode == 0, done.stderr


def test_a_hook_that_is_not_there_is_found_by_check_config(
    run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "hooks.toml").write_text('before_fork = "shop:nothere"\n')
    done = run("shop:app", "--check-config", "--config", "hooks.toml")
    assert done.returncode == 2
    assert "[PF413]" in told(done)


@pytest.mark.parametrize(
    ("flags", "status", "code", "words"),
    [
        (("--on-record", "shop:nothere"), 2, "PF413", "shop:nothere"),
        (("--warm-up", "shop:nothere"), 2, "PF413", "shop:nothere"),
        (("--interface", "asgi", "--warm-up", "/"), 2, "PF414", "warm_up"),
        (("--user", "nobody-of-this-name"), 2, "PF309", "nobody-of-this-name"),
        (("--group", "nobody-of-this-name"), 2, "PF309", "nobody-of-this-name"),
        (("--log-file", "nowhere/shop.log"), 2, "PF105", "log_file is 'nowhere/shop.log': No such file or directory"),
        (("--access-log", "empty.py/shop.log"), 2, "PF105", "access_log is 'empty.py/shop.log': Not a directory"),
        (("--access-log", "."), 2, "PF105", "access_log is '.': Is a directory"),
        (("--pid-file", "nowhere/shop.pid"), 1, "PF412", "nowhere/shop.pid"),
        (("--pid-file", "shop.py"), 1, "PF412", "shop.py"),
        (("--bind", "no..name:8000"), 1, "PF311", "no..name"),
        (("--bind", "unix:nowhere/shop.sock"), 1, "PF312", "there is no directory nowhere"),
        (("--bind", "unix:shop.py"), 1, "PF306", "a file is there"),
        (("--bind", ":8000", "--bind", ":8000"), 2, "PF314", "twice"),
    ],
)
def test_check_config_refuses_what_a_start_would_and_writes_nothing(
    flags: tuple[str, ...],
    status: int,
    code: str,
    words: str,
    run: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    app = "shop:asgi" if "asgi" in flags else "shop:app"
    before = sorted(tmp_path.iterdir())
    checked = run(app, *flags, "--check-config")
    assert checked.returncode == status
    assert f"[{code}]" in told(checked)
    assert words in told(checked)
    if "--on-record" not in flags:  # a pool serves without that hook, and says so
        started = run(app, *(() if "--bind" in flags else ("--bind", "127.0.0.1:0")), *flags)
        assert (told(started), started.returncode) == (told(checked), status)
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "__pycache__"] == before


def test_check_config_makes_no_file_where_a_start_would(
    run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "old.log").write_text("tea\n")
    files = ("--log-file", "old.log", "--access-log", "new.log", "--pid-file", "shop.pid", "--bind", "unix:shop.sock")
    before = sorted(tmp_path.iterdir())
    done = run("shop:app", "--check-config", *files, "--on-record", "shop:create_app")
    assert done.returncode == 0, done.stderr
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "__pycache__"] == before


def test_each_value_is_shown_with_where_it_came_from(
    run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.prefork]\nmax_workers = 5\nthreads = 6\nbacklog = 7\n")
    env = {"PREFORK_THREADS": "3", "PREFORK_MAX_WORKERS": "4", "WEB_CONCURRENCY": "9", "PORT": "8123"}
    done = run("shop:app", "-w", "2", "--config", "pyproject.toml", "--show-config", env=env)
    assert done.returncode == 0
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in done.stdout.splitlines()}
    assert rows["max_workers"] == ["2", "flag --max-workers"]
    assert rows["threads"] == ["3", "environment PREFORK_THREADS"]
    assert rows["backlog"][0] == "7"
    assert "pyproject.toml" in rows["backlog"][1]
    assert rows["bind"] == ["0.0.0.0:8123", "environment PORT"]
    assert rows["boot_timeout"][1] == "default"


def test_help_shows_the_common_options_and_help_all_the_rest(
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    some, all_of_them = run("--help").stdout, run("--help-all").stdout
    assert "--max-workers" in some
    assert "--spool-dir" not in some
    assert "--spool-dir" in all_of_them


def test_help_tells_the_default_and_the_variable_of_a_yes_or_no_too(
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    words = " ".join(run("--help-all").stdout.split())
    for shown in ("[true; PREFORK_PRELOAD]", "[false; PREFORK_RELOAD]", "[true; PREFORK_REDEPLOY]"):
        assert shown in words


def test_without_an_application_one_line_says_how_to_name_one(
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = run()
    assert done.returncode == 2
    assert "[PF208]" in told(done)
    assert "module:app" in done.stderr


@pytest.mark.parametrize(
    ("app", "code", "traceback"),
    [
        ("raising:app", "PF206", "LookupError: no database"),
        ("leaving:app", "PF206", "SystemExit: enough"),
        ("broken:app", "PF206", "SyntaxError"),
        ("lacking:app", "PF206", "ModuleNotFoundError"),
        ("shop:create_app()", "PF207", "LookupError: no database"),
    ],
)
def test_a_failure_of_the_application_is_told_with_its_traceback_once_and_status_1(
    run: Callable[..., subprocess.CompletedProcess[str]], app: str, code: str, traceback: str
) -> None:
    done = run(app, "--bind", "127.0.0.1:0")
    assert done.returncode == 1
    assert f"[{code}]" in done.stderr
    assert done.stderr.count("Traceback (most recent call last)") <= 1
    assert traceback in done.stderr
    assert "importlib" not in done.stderr  # neither our own frames


@pytest.mark.parametrize("options", [(), ("--max-workers", "1")])
def test_a_port_in_use_is_told_with_status_1(
    run: Callable[..., subprocess.CompletedProcess[str]], options: tuple[str, ...], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("shop:app", "--bind", f"127.0.0.1:{port}", "--pid-file", str(tmp_path / "pid"), *options)
    assert done.returncode == 1
    assert "[PF303]" in told(done)
    assert str(port) in done.stderr
    assert not (tmp_path / "pid").exists()


def test_an_address_that_is_not_ours_is_told(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run("shop:app", "--bind", "192.0.2.1:8000")
    assert done.returncode == 1
    assert "[PF305]" in told(done)


UNPRIVILEGED = """
import os, sys
sys.path.insert(0, sys.argv.pop(1))
import encodings.idna, prefork.cli, prefork.pool
os.setgid(65534)
os.setuid(65534)
sys.exit(prefork.cli.main())
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) == 0,
    reason="only root can become somebody who may not",
)
def test_a_privileged_port_is_told() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, str(ROOT), "shop:app", "--bind", "127.0.0.1:81"],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1, done
    assert "[PF304]" in told(done)


def test_a_path_that_is_taken_by_a_file_or_a_living_socket_is_told_and_left_alone(
    run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    done = run("shop:app", "--bind", f"unix:{file}")
    assert (done.returncode, file.read_text()) == (1, "precious")
    assert "[PF306]" in told(done)
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(tmp_path / "living"))
        living.listen()
        done = run("shop:app", "--bind", f"unix:{tmp_path / 'living'}")
        assert done.returncode == 1
        assert "[PF3" in told(done)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "living"))


def test_a_path_with_a_dead_socket_is_taken_over_and_given_back(write_app: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "dead"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = LiveServer.of("sample:app", "--bind", f"unix:{path}", cwd=write_app())
    with server, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert not path.exists()


@pytest.mark.parametrize("flags", [(), ("--no-preload",)], ids=["preload", "no preload"])
def test_a_parent_that_is_killed_takes_workers_that_still_import_with_it(
    write_app: Callable[..., Path], flags: tuple[str, ...]
) -> None:
    folder = write_app(f"print('importing', flush=True)\n{A_MINUTE}\n")
    with LiveServer.of("sample:app", *flags, "--graceful-timeout", "1", cwd=folder, ready="") as server:
        server.wait_for_output("importing")
        group = server.group()
        server.send(signal.SIGKILL)
        wait_until_gone(group)


def test_windows_is_told_in_one_line() -> None:
    code = "import os, sys; del os.fork; from prefork.cli import main; sys.exit(main(['shop:app']))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "[PF407]" in told(done)
