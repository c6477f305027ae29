"""Does a Flask application get what it is used to, from ``flask run-prefork`` and from its own code?"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trustme
from server_process import A_MINUTE, ROOT, LiveServer, let_everybody_read, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

APP = """
import os
from flask import Flask
{more}
app = Flask(__name__)

@app.get("/")
def hello():
    return f"hello {{app.debug}}"

@app.get("/broken")
def broken():
    raise ZeroDivisionError("the view is broken")

"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(more: str = "", end: str = "") -> Path:
        (tmp_path / "shop.py").write_text(APP.format(more=more) + end)
        return tmp_path

    return write


def run_prefork(folder: Path, *flags: str, port: str | None = "0", **where: Any) -> LiveServer:
    port_flags = () if port is None else ("--port", port)
    command = (sys.executable, "-m", "flask", "--app", "shop", "run-prefork", *port_flags, "--workers", "2", *flags)
    return LiveServer(*command, cwd=folder, **where)


def test_the_command_serves_the_app(write: Callable[..., Path]) -> None:
    with run_prefork(write()) as server:
        assert server.get() == (200, b"hello False")
        assert server.wait_for("pool.starting")["app"] == "shop"


def test_a_thread_of_the_application_does_not_keep_the_command_from_ending(write: Callable[..., Path]) -> None:
    with run_prefork(
        write("import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()")
    ) as server:
        assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_term_end_it_with_0(write: Callable[..., Path], number: signal.Signals) -> None:
    with run_prefork(write()) as server:
        assert server.stop(number) == 0


def test_its_own_port_variable_goes_before_the_one_of_flask_run(write: Callable[..., Path]) -> None:
    env = {"FLASK_RUN_PREFORK_PORT": "0", "FLASK_RUN_PORT": "1"}  # port 1 could not be bound as 0 can
    with run_prefork(write(), port=None, env=env) as server:
        assert server.address[1] > 1


def test_the_port_variable_of_flask_run_is_honoured(write: Callable[..., Path]) -> None:
    with run_prefork(write(), port=None, env={"FLASK_RUN_PORT": "0"}) as server:
        assert server.address[1] != 5000


def test_variables_may_stand_in_flaskenv(write: Callable[..., Path]) -> None:
    folder = write()
    (folder / ".flaskenv").write_text("FLASK_RUN_PREFORK_PORT=0\nFLASK_RUN_PREFORK_THREADS=3\nFLASK_RUN_PORT=1\n")
    with run_prefork(folder, port=None, env={"FLASK_RUN_PREFORK_THREADS": "5"}) as server:
        assert server.address[1] > 1
        assert server.wait_for("pool.starting")["threads"] == 5  # what is there already stands


def test_a_flag_goes_before_the_environment_and_that_before_app_config(write: Callable[..., Path]) -> None:
    folder = write(end="\napp.config.update(PREFORK_THREADS=1, PREFORK_MAX_WORKERS=7)\n")
    with run_prefork(folder, env={"PREFORK_THREADS": "3", "FLASK_RUN_PREFORK_THREADS": "5"}) as server:
        started = server.wait_for("pool.starting")
        assert (started["workers"], started["threads"]) == (2, 5)


def test_app_config_goes_before_the_default(write: Callable[..., Path]) -> None:
    with run_prefork(write(end="\napp.config['PREFORK_THREADS'] = 3\n")) as server:
        assert server.wait_for("pool.starting")["threads"] == 3


@pytest.mark.parametrize("debug", ["--debug", "--no-debug"])
def test_a_view_that_raises_gives_500_and_its_traceback_in_the_log(write: Callable[..., Path], debug: str) -> None:
    with run_prefork(write(), debug) as server:
        status, body = server.get("/broken")
        assert status == 500
        assert b"the view is broken" not in body
        server.stop()
        assert "ZeroDivisionError: the view is broken" in server.log
        assert server.log.count("Traceback (most recent call last)") == 1


def test_the_debug_flag_after_the_command_reaches_the_app(write: Callable[..., Path]) -> None:
    with run_prefork(write(), "--debug") as server:
        assert server.get() == (200, b"hello True")


def test_help_needs_no_working_app(write: Callable[..., Path]) -> None:
    with run_prefork(write(more="import nothing_of_that_name"), "--help", port=None, ready="") as server:
        assert server.wait() == 0
        assert "--max-workers" in server.log


def test_an_app_that_cannot_be_found_ends_it_with_2_and_one_line(tmp_path: Path) -> None:
    with run_prefork(tmp_path, ready="") as server:
        assert server.wait() == 2
        assert "Traceback" not in server.log


def test_an_app_that_raises_ends_it_with_1_and_its_own_traceback_alone(write: Callable[..., Path]) -> None:
    with run_prefork(write(more="1 / 0"), ready="") as server:
        assert server.wait() == 1
        told = "loading shop failed: ZeroDivisionError: division by zero: see the traceback [PF206]"
        assert server.output[-1] == f"prefork: error: {told}"
        assert "site-packages" not in server.log
        assert server.log.count("Traceback (most recent call last)") == 1


def test_a_deploy_of_an_app_that_raises_is_told_as_its_start_would_be(write: Callable[..., Path]) -> None:
    folder = write()
    with run_prefork(folder) as server:
        write(more="1 / 0")
        server.process.send_signal(signal.SIGHUP)
        told = server.wait_for("pool.deploy_failed")
        assert told["reason"] == "loading shop failed: ZeroDivisionError: division by zero: see the traceback [PF206]"
        first, *frames, last = told["exception"].splitlines()
        assert (first, last) == ("Traceback (most recent call last):", "ZeroDivisionError: division by zero")
        assert "shop.py" in frames[0]
        assert len([line for line in frames if line.startswith("  File ")]) == 1
        assert not any("ZeroDivisionError" in line for line in server.output)


@pytest.mark.parametrize("status", ["", "0", "7"])
def test_an_app_that_ends_the_program_at_import_ends_it_with_1_and_says_so(
    write: Callable[..., Path], status: str
) -> None:
    with run_prefork(write(more=f"import sys; sys.exit({status})"), ready="") as server:
        assert server.wait() == 1
        assert server.output[-1].startswith("prefork: error: loading shop failed: SystemExit")
        assert server.output[-1].endswith(": see the traceback [PF206]")
        assert server.log.count("Traceback (most recent call last)") == 1


@pytest.mark.parametrize("flags", [(), ("--no-redeploy",), ("--reload",)], ids=["kept", "alone", "reload"])
def test_ctrl_c_while_the_app_is_loaded_ends_it_with_0(write: Callable[..., Path], flags: tuple[str, ...]) -> None:
    with run_prefork(write(more=f"import time; print('loading', flush=True)\n{A_MINUTE}"), *flags, ready="") as server:
        server.wait_for_output("loading")
        os.killpg(server.pid, signal.SIGINT)  # as a terminal does
        assert server.wait() == 0
        assert "Aborted" not in server.log


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("--max-requests", "did you mean --max-reqs-per-child?"),
        ("--threds", "did you mean --threads?"),
        ("--pythonpath", "Flask finds the application"),
        ("--preload", "the application is always loaded before the fork"),
        ("--no-preload", "the application is always loaded before the fork"),
    ],
)
def test_a_flag_that_there_is_not_ends_it_with_2_and_what_to_give_instead(
    write: Callable[..., Path], flag: str, hint: str
) -> None:
    with run_prefork(write(), flag, "5", ready="") as server:
        assert server.wait() == 2
        assert server.output == [f"prefork: error: there is no option {flag}: {hint} [PF101]"]


@pytest.mark.parametrize(
    ("flags", "env"),
    [
        (("--cert", "adhoc"), {}),
        (("--cert", "certs.context"), {}),
        (("--cert", "certs:context"), {}),
        ((), {"FLASK_RUN_CERT": "adhoc"}),
    ],
)
def test_tls_is_spelt_as_for_flask_run(
    write: Callable[..., Path], tmp_path: Path, flags: tuple[str, ...], env: dict[str, str]
) -> None:
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "cert.pem")
    (tmp_path / "certs.py").write_text(
        "import os, ssl\ncontext = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n"
        "context.load_cert_chain(os.path.join(os.path.dirname(__file__), 'cert.pem'))\n"
    )
    with run_prefork(write(), *flags, env=env) as server:
        assert httpx.get(server.url, verify=False).text == "hello False"


def test_a_key_without_its_certificate_ends_it_with_2_and_one_line(write: Callable[..., Path]) -> None:
    with run_prefork(write(), "--key", "key.pem", ready="") as server:
        assert server.wait() == 2
        assert "key is given without cert" in server.log
        assert "Traceback" not in server.log


def test_a_wrong_option_ends_it_with_2_and_one_line(write: Callable[..., Path]) -> None:
    with run_prefork(write(), "--threads", "many", ready="") as server:
        assert server.wait() == 2
        assert "threads is 'many'" in server.log
        assert "Traceback" not in server.log


def test_a_variable_that_is_nearly_an_option_is_told_once(write: Callable[..., Path]) -> None:
    with run_prefork(write(), env={"PREFORK_THREADZ": "3", "FLASK_RUN_PREFORK_WORKERZ": "3"}) as server:
        told = [line for line in server.output if "[PF101]" in line]
        assert [line.split()[-2] for line in told] == ["PREFORK_THREADS?", "FLASK_RUN_PREFORK_WORKERS?"]


def test_a_format_without_a_log_is_told_once_the_app_had_its_say(write: Callable[..., Path]) -> None:
    env = {"PREFORK_ACCESS_LOG_FORMAT": "common"}
    with run_prefork(write(), env=env) as server:
        assert len([line for line in server.output if "[PF103]" in line]) == 1
    with run_prefork(write(end="\napp.config['PREFORK_ACCESS_LOG'] = '-'\n"), env=env) as server:
        assert not [line for line in server.output if "[PF103]" in line]


@pytest.mark.parametrize("more", [(), ("--reload",)], ids=["once", "anew"])
def test_the_directory_is_changed_before_the_app_is_loaded(
    write: Callable[..., Path], tmp_path: Path, more: tuple[str, ...]
) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "greeting").write_text("at home")
    end = "\ngreeting = open('greeting').read()\napp.add_url_rule('/greeting', view_func=lambda: greeting + os.getcwd())\n"
    with run_prefork(write(end=end), "--chdir", "inner", *more) as server:
        assert server.get("/greeting") == (200, f"at home{inner}".encode())


def test_an_app_serves_itself(write: Callable[..., Path]) -> None:
    end = (
        "\nif __name__ == '__main__':\n    Prefork(app)\n    raise SystemExit(app.run_prefork(port=0, max_workers=1))\n"
    )
    folder = write(more="from prefork.contrib.flask import Prefork", end=end)
    with LiveServer(sys.executable, "shop.py", cwd=folder) as server:
        assert server.get() == (200, b"hello False")
        assert server.stop(signal.SIGINT) == 0


@pytest.mark.parametrize(
    ("options", "env", "said", "status"),
    [
        ("port=taken.getsockname()[1]", {}, "[PF303]", 1),
        ("port=0, treads=2", {}, "there is no option 'treads': did you mean 'threads'? [PF101]", 2),
        ("port=0", {"PREFORK_THREADS": "many"}, "threads is 'many' (environment PREFORK_THREADS)", 2),
        ("port=0, cert='nothing.pem'", {}, "nothing.pem", 2),
        ("port=taken.getsockname()[1], debug=True", {}, "[PF303]", 1),
        ("port=taken.getsockname()[1], redeploy=True", {}, "[PF303]", 1),
    ],
    ids=["busy port", "no such option", "wrong value", "no such file", "busy port, reload", "busy port, redeploy"],
)
def test_an_app_that_cannot_serve_itself_says_so_in_one_line(
    write: Callable[..., Path], options: str, env: dict[str, str], said: str, status: int
) -> None:
    busy = "import socket\ntaken = socket.create_server(('127.0.0.1', 0))\n"
    end = f"if __name__ == '__main__':\n    {busy.strip().replace(chr(10), '; ')}; app.run_prefork({options}, log_level='error')\n"
    folder = write(more="from prefork.contrib.flask import PreforkFlask as Flask", end=end)
    with LiveServer(sys.executable, "shop.py", cwd=folder, env=env, ready="") as server:
        assert server.wait() == status
        (line,) = server.output
        assert line.startswith("prefork: error: ")
        assert said in line


def test_reload_in_another_thread_is_refused_in_one_line(write: Callable[..., Path]) -> None:
    end = (
        "if __name__ == '__main__':\n    import threading\n"
        "    threading.Thread(target=app.run_prefork, kwargs={'port': 0, 'debug': True}).start()\n"
    )
    folder = write(more="from prefork.contrib.flask import PreforkFlask as Flask", end=end)
    with LiveServer(sys.executable, "shop.py", cwd=folder, ready="") as server:
        assert server.wait() == 0
        (line,) = server.output
        assert line.startswith("prefork: error: reload is True: ")
        assert "main thread" in line


def test_a_call_at_import_starts_no_second_server_under_the_flask_command(write: Callable[..., Path]) -> None:
    folder = write(more="from prefork.contrib.flask import run_prefork", end="\nrun_prefork(app, port=0)\n")
    with run_prefork(folder) as server:
        assert server.get()[0] == 200
        server.wait_for_output("Ignoring a call to 'run_prefork")
        server.wait_for_output("[PF603]")
        assert len(server.all("pool.starting")) == 1


def test_importing_the_command_does_not_import_the_pool() -> None:
    code = "import sys, prefork.contrib.flask.cli; raise SystemExit('structlog' in sys.modules or 'prefork.pool' in sys.modules)"
    with LiveServer.script(code, ready="") as server:
        assert server.wait() == 0


FACTORY = """
from flask import Flask

def create_app(name="nobody"):
    app = Flask(__name__)
    app.add_url_rule("/", view_func=lambda: f"hello {name}")
    return app
"""


@pytest.mark.parametrize(("app", "greeting"), [("shop", b"hello nobody"), ("shop:create_app('you')", b"hello you")])
def test_a_factory_is_called_as_flask_does(tmp_path: Path, app: str, greeting: bytes) -> None:
    (tmp_path / "shop.py").write_text(FACTORY)
    command = (sys.executable, "-m", "flask", "--app", app, "run-prefork", "--port", "0", "--workers", "1")
    with LiveServer(*command, cwd=tmp_path) as server:
        assert server.get() == (200, greeting)


def test_an_extension_that_is_made_before_the_app_gives_it_the_method(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        FACTORY
        + """
from prefork.contrib.flask import Prefork
prefork = Prefork()
if __name__ == "__main__":
    app = create_app("me")
    prefork.init_app(app)
    raise SystemExit(app.run_prefork(port=0, max_workers=1))
"""
    )
    with LiveServer(sys.executable, "shop.py", cwd=tmp_path) as server:
        assert server.get() == (200, b"hello me")


def test_the_number_of_workers_of_a_platform_is_honoured(write: Callable[..., Path]) -> None:
    command = (sys.executable, "-m", "flask", "--app", "shop", "run-prefork", "--port", "0")
    with LiveServer(*command, cwd=write(), env={"WEB_CONCURRENCY": "3"}) as server:
        assert server.all("pool.ready")[0]["workers"] == 3


CONTEXTS = """
seen = []

@app.teardown_request
def end_of_request(error):
    seen.append("request")

@app.teardown_appcontext
def end_of_context(error):
    seen.append("context")

@app.get("/seen")
def told():
    from flask import g
    had = g.pop("had", None)
    g.had = True
    return {"seen": list(seen), "had": had}
"""


def test_each_request_has_contexts_of_its_own_that_are_torn_down(write: Callable[..., Path]) -> None:
    with run_prefork(write(end=CONTEXTS), "--workers", "1") as server:
        for number in range(5):
            told = json.loads(server.get("/seen")[1])
            assert told == {"seen": ["request", "context"] * number, "had": None}


# As somebody else.

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
NOBODY = 65534
WHO = """
LOADED_BY = os.geteuid()

@app.get("/who")
def who():
    return f"{LOADED_BY} {os.geteuid()}"
"""


@only_root
def test_what_root_alone_may_do_is_done_before_the_app_is_loaded_as_somebody_else(write: Callable[..., Path]) -> None:
    folder = write(end=WHO)
    let_everybody_read(folder)
    (folder / "roots").mkdir(mode=0o700)
    names = ("shop.sock", "shop.pid", "shop.log", "access.log")
    sock, pid_file, log, access_log = (folder / "roots" / name for name in names)
    bind = ("--bind", f"unix:{sock}?mode=660", "--bind", "127.0.0.1:0")
    where = (*bind, "--pid-file", str(pid_file), "--log-file", str(log), "--access-log", str(access_log))
    server = run_prefork(folder, "--user", "nobody", "--umask", "027", *where, port=None, ready="")
    with server, httpx.Client(transport=httpx.HTTPTransport(uds=str(sock))) as client:
        until(lambda: log.exists() and '"pool.ready"' in log.read_text())
        assert client.get("http://shop/who").text == f"{NOBODY} {NOBODY}"
        file = sock.stat()
        assert (file.st_uid, file.st_gid, stat.S_IMODE(file.st_mode)) == (NOBODY, NOBODY, 0o660)
        assert pid_file.read_text() == f"{server.pid}\n"
        assert {path.stat().st_mode & 0o777 for path in (log, access_log)} == {0o640}
        until(lambda: "/who" in access_log.read_text())
    assert not pid_file.exists()
    assert not sock.exists()


@only_root
def test_the_settings_of_an_app_that_is_loaded_as_somebody_else_count_where_they_can(
    write: Callable[..., Path],
) -> None:
    folder = write(end=WHO + 'app.config.update(PREFORK_BIND="127.0.0.1:1", PREFORK_THREADS=3, PREFORK_UMASK="077")\n')
    let_everybody_read(folder)
    with run_prefork(folder, "--user", "nobody", port=None, env={"FLASK_RUN_PORT": "0"}) as server:
        assert "not asked for bind, umask" in server.wait_for_output("app.config")
        server.wait_for_output("PF606")
        assert server.all("pool.starting")[0]["threads"] == 3
        assert server.get("/who")[1] == b"%d %d" % (NOBODY, NOBODY)


SETTING = 'app.config["PREFORK_USER"] = "nobody"\n'
CODE = "from prefork.contrib.flask import run_prefork\nrun_prefork(app, port=0, user='nobody')\n"


@only_root
@pytest.mark.parametrize(
    ("end", "command"),
    [
        (SETTING, ("flask", "--app", "shop", "run-prefork", "--port", "0")),
        ("", ("flask", "--app", "shop", "run-prefork", "--port", "0", "--reload", "--user", "nobody")),
        (CODE, ("shop",)),
    ],
    ids=["setting", "reload", "code"],
)
def test_a_user_that_comes_when_root_has_loaded_the_app_is_refused(
    write: Callable[..., Path], end: str, command: tuple[str, ...]
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=write(end=end),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 2
    assert "user 'nobody' comes too late: root has loaded the application" in done.stderr
    assert "PF310" in done.stderr
