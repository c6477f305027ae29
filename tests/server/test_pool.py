"""What does a program get that owns a pool?"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from functools import partial
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from server_process import A_MINUTE, ROOT, LiveServer, until, wait_until_gone

from prefork import AppFailed, AppNotFound, BindError, BootError, Config, ConfigError, MissingExtra, WorkerPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

HERE = "127.0.0.1:0"


def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]


def small(**options: Any) -> WorkerPool:
    return WorkerPool(app, **{"bind": HERE, "max_workers": 1, "log_format": "none", **options})


def ask(pool: WorkerPool) -> int:
    with urlopen(pool.url, timeout=20) as answer:
        return int(answer.read())


def stop_when(record: str, number: signal.Signals = signal.SIGTERM) -> Callable[[str, dict[str, Any]], None]:
    """Return a hook that sends this process a signal at a record."""

    def hook(name: str, _fields: dict[str, Any]) -> None:
        if name == record:
            os.kill(os.getpid(), number)

    return hook


class Log:
    """The records of a pool that serves in this process."""

    def __init__(self, *, stop_at: str = "pool.ready") -> None:
        self.records: list[tuple[str, dict[str, Any]]] = []
        self.stop = stop_when(stop_at)

    def __call__(self, name: str, fields: dict[str, Any]) -> None:
        self.records.append((name, fields))
        self.stop(name, fields)

    def names(self) -> list[str]:
        return [name for name, _ in self.records]

    def of(self, name: str) -> list[dict[str, Any]]:
        return [fields for found, fields in self.records if found == name]


# Started: the pool has a parent of its own.


def test_a_block_serves_and_then_leaves_nothing(leaves_nothing: None) -> None:
    with small(max_workers=2) as pool:
        assert ask(pool) not in {os.getpid(), pool.pid}
        address = urlsplit(pool.url)
    assert pool.wait() == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address.hostname, address.port))


def test_start_returns_when_all_workers_serve() -> None:
    with small(max_workers=3) as pool:
        assert pool.wait(timeout=0) is None
        assert pool.urls == (pool.url,)


def test_two_pools_at_a_time_do_not_know_of_each_other(leaves_nothing: None) -> None:
    with small() as first, small() as second:
        assert ask(first) != ask(second)
        first.stop()
        assert ask(second)


def test_stop_is_idempotent_and_wait_repeats_the_status(leaves_nothing: None) -> None:
    pool = small()
    pool.start()
    pool.stop()
    pool.stop(graceful=False)
    assert (pool.wait(), pool.wait(timeout=1)) == (0, 0)


def test_a_stop_that_is_not_graceful_waits_for_no_long_request(leaves_nothing: None) -> None:
    reader, writer = os.pipe()
    answers: list[object] = []

    def slow(_environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        os.write(writer, b"x")
        threading.Event().wait(60)
        start_response("200 OK", [])
        return []

    def client(url: str) -> None:
        try:
            with urlopen(url, timeout=100) as answer:
                answers.append(answer.status)
        except OSError as error:
            answers.append(error)

    pool = WorkerPool(slow, bind=HERE, max_workers=1, graceful_timeout=600, log_format="none")
    pool.start()
    thread = threading.Thread(target=client, args=(pool.url,))
    thread.start()
    assert os.read(reader, 1) == b"x"
    pool.stop(graceful=False)
    assert pool.wait() == 0
    thread.join()
    for descriptor in (reader, writer):
        os.close(descriptor)
    assert isinstance(answers[0], OSError), "it had all the time that it wanted"


def test_stop_before_start_does_nothing() -> None:
    small().stop()


@pytest.mark.parametrize("again", ["start", "serve"])
def test_a_pool_serves_once(again: str, leaves_nothing: None) -> None:
    with small() as pool, pytest.raises(BootError, match=r"started before.*PF410"):
        getattr(pool, again)()
    with pytest.raises(BootError, match=r"started before.*PF410"):
        getattr(pool, again)()


def test_a_pool_that_was_not_started_has_nothing_to_wait_for() -> None:
    with pytest.raises(RuntimeError, match="not started"):
        small().wait()
    with pytest.raises(RuntimeError, match="does not listen"):
        _ = small().url


def test_a_pool_shows_where_and_whether_it_runs() -> None:
    pool = small()
    assert repr(pool) == "<WorkerPool, not started>"
    with pool:
        assert repr(pool) == f"<WorkerPool {pool.url}, running, pid {pool.pid}>"
    assert repr(pool) == f"<WorkerPool {pool.url}, stopped>"


def test_a_pool_that_was_killed_is_shown_as_stopped() -> None:
    with small() as pool:
        assert pool.pid is not None
        os.kill(pool.pid, signal.SIGKILL)
        until(lambda: repr(pool).endswith(", stopped>"))


def test_a_pool_pickles_to_none() -> None:
    assert pickle.loads(pickle.dumps({"pool": small()})) == {"pool": None}


def test_a_pool_that_is_to_start_its_program_again_is_refused_and_told_who_can() -> None:
    with pytest.raises(ConfigError, match="reload is True") as caught:
        WorkerPool("sample:app", reload=True)
    assert "prefork --reload" in caught.value.hint
    assert "run_prefork(reload=True)" in caught.value.hint
    WorkerPool("sample:app", config=Config(reload=True), files_changed=lambda: None)


def test_options_and_a_config_exclude_each_other() -> None:
    with pytest.raises(TypeError, match="threads"):
        WorkerPool(app, config=small().config, threads=2)
    with pytest.raises(ConfigError, match="max_workers"):
        WorkerPool(app, max_worker=2)


def test_a_pool_starts_although_its_application_forks_while_it_is_imported(write_app: Callable[..., Path]) -> None:
    folder = write_app(
        "import os.path\nif os.fork() == 0:\n    while not os.path.exists(__file__ + '.go'):\n        time.sleep(0.01)\n    os._exit(0)\n"
    )
    try:
        with WorkerPool("sample:app", app_dir=str(folder), bind=HERE, max_workers=1, log_format="none") as pool:
            assert ask(pool)
    finally:
        (folder / "sample.py.go").touch()


def test_a_thread_that_the_application_starts_while_it_is_imported_does_not_outlive_the_pool(
    write_app: Callable[..., Path],
) -> None:
    folder = write_app("import threading\nthreading.Thread(target=time.sleep, args=(600,)).start()\n")
    with WorkerPool("sample:app", app_dir=str(folder), bind=HERE, max_workers=1, log_format="none") as pool:
        assert ask(pool)
    assert pool.wait(0) == 0


def test_any_thread_may_start_and_stop_a_pool(leaves_nothing: None) -> None:
    answers: list[int] = []

    def program() -> None:
        with small() as pool:
            answers.append(ask(pool))

    thread = threading.Thread(target=program)
    thread.start()
    thread.join()
    assert len(answers) == 1


def test_serve_in_a_thread_ends_when_another_one_stops_the_pool(leaves_nothing: None) -> None:
    statuses: list[int] = []
    pool = small()
    thread = threading.Thread(target=lambda: statuses.append(pool.serve()))
    thread.start()
    while pool.pid is None:  # start() has not forked yet
        thread.join(0.005)
    assert ask(pool)
    pool.stop()
    thread.join()
    assert statuses == [0]


def test_a_busy_port_is_told_to_the_caller_before_anything_is_forked(leaves_nothing: None) -> None:
    with small() as pool:
        with pytest.raises(BindError, match="in use"):
            small(bind=urlsplit(pool.url).netloc).start()
        with pytest.raises(BindError, match="in use"):
            small(bind=urlsplit(pool.url).netloc).serve()


@pytest.mark.parametrize("preload", [True, False])
def test_a_broken_app_fails_the_start_with_its_traceback(
    preload: bool, write_app: Callable[..., Path], leaves_nothing: None
) -> None:
    folder = write_app("raise LookupError('no such shop')", name=f"broken_{preload}")
    with pytest.raises(BootError) as failed:
        WorkerPool(f"broken_{preload}:app", app_dir=str(folder), bind=HERE, preload=preload, log_format="none").start()
    assert failed.value.exit_code == 1
    assert "LookupError: no such shop" in failed.value.__notes__[0]


def test_a_missing_app_fails_the_start_as_a_users_mistake(leaves_nothing: None) -> None:
    with pytest.raises(BootError, match="no module 'nowhere'") as failed:
        WorkerPool("nowhere:app", bind=HERE, log_format="none").start()
    assert failed.value.exit_code == 2
    assert not hasattr(failed.value, "__notes__")  # one line says it all


def test_a_parent_that_fails_for_reasons_of_its_own_fails_the_start_with_the_traceback(leaves_nothing: None) -> None:
    with pytest.raises(BootError, match=r"ZeroDivisionError: division by zero.*PF415") as failed:
        small(on_listening=lambda _urls: 1 / 0).start()
    assert failed.value.exit_code == 1
    assert "1 / 0" in failed.value.__notes__[0]


def test_a_parent_that_is_killed_while_it_starts_fails_the_start(leaves_nothing: None) -> None:
    with pytest.raises(BootError, match=r"the pool's parent died while it started.*PF415"):
        small(warm_up=lambda _app: os.kill(os.getpid(), signal.SIGKILL)).start()


def test_a_pool_that_is_stopped_while_it_starts_is_not_started(leaves_nothing: None) -> None:
    with pytest.raises(BootError, match=r"stopped before it was ready.*PF417"):
        small(warm_up=lambda _app: os.kill(os.getpid(), signal.SIGTERM)).start()


def test_a_fork_that_is_refused_fails_the_start(monkeypatch: pytest.MonkeyPatch, leaves_nothing: None) -> None:
    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", refuse)
    with pytest.raises(BootError, match=rf"the system refuses to fork \({os.strerror(errno.EAGAIN)}\).*PF416"):
        small().start()


def test_a_started_pool_may_be_stopped_by_a_signal_to_its_parent(leaves_nothing: None) -> None:
    with small() as pool:
        assert pool.pid is not None
        os.kill(pool.pid, signal.SIGTERM)
        assert pool.wait() == 0


def test_ctrl_c_is_the_callers_to_decide_on(leaves_nothing: None) -> None:
    with small() as pool:
        assert pool.pid is not None
        os.kill(pool.pid, signal.SIGINT)
        os.kill(ask(pool), signal.SIGINT)
        assert ask(pool)


def test_a_parent_that_is_killed_takes_its_workers_with_it(leaves_nothing: None) -> None:
    with small(max_workers=2) as pool:
        worker = ask(pool)
        assert pool.pid is not None
        os.kill(pool.pid, signal.SIGKILL)
        assert pool.wait() == -signal.SIGKILL
        wait_until_gone([worker])
        pool.stop()


def test_a_forgotten_pool_stops(leaves_nothing: None) -> None:
    pool = small()
    pool.start()
    worker = ask(pool)
    del pool
    wait_until_gone([worker])
    for process in multiprocessing.active_children():
        process.join()


# What becomes of it when the program ends: in a program, since this one goes on.

PROGRAM = """
import os, sys, time
from prefork import WorkerPool
from test_pool import app
pool = WorkerPool(app, bind="127.0.0.1:0", max_workers=2, log_format="json", log_level="debug")
pool.start()
"""


def program(text: str) -> LiveServer:
    return LiveServer.script(PROGRAM + text, env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests/server'}"})


def test_a_program_that_ends_without_stop_ends_its_pool() -> None:
    with program("") as server:
        server.wait_for("pool.stopped", exit_code=0)
        assert server.wait() == 0


def test_a_program_that_is_killed_ends_its_pool() -> None:
    with program("time.sleep(60)") as server:
        os.kill(server.pid, signal.SIGKILL)
        server.wait_for("pool.stopped", exit_code=0)
        assert server.wait() == -signal.SIGKILL
        wait_until_gone(server.group())


def test_a_child_of_the_program_does_not_keep_the_pool_alive() -> None:
    with program("os.fork() or time.sleep(60); print('forked', flush=True); time.sleep(60)") as server:
        server.wait_for_output("forked")
        os.kill(server.pid, signal.SIGKILL)
        server.wait_for("pool.stopped", exit_code=0)
        os.killpg(server.pid, signal.SIGKILL)


def test_ctrl_c_in_a_terminal_ends_program_and_pool() -> None:
    with program(A_MINUTE) as server:
        os.killpg(server.pid, signal.SIGINT)
        server.wait_for("pool.stopped", exit_code=0)
        assert server.wait() == -signal.SIGINT
        assert not server.all("worker.exited", expected=False)


# Served: this process is the parent.


def test_serve_gives_everything_back(leaves_nothing: None) -> None:
    for _ in range(2):
        log = Log()
        assert small(max_workers=2, on_record=log).serve() == 0
        assert log.names()[-1] == "pool.stopped"


def test_serve_keeps_this_process_the_parent(leaves_nothing: None) -> None:
    log = Log()
    small(on_record=log).serve()
    assert {fields["pid"] for _, fields in log.records if fields.get("role") == "parent"} == {os.getpid()}


def test_each_worker_that_was_spawned_exits_once(leaves_nothing: None) -> None:
    log = Log()
    small(max_workers=3, on_record=log).serve()
    spawned = sorted(fields["child_pid"] for fields in log.of("worker.spawned"))
    assert spawned == sorted(fields["child_pid"] for fields in log.of("worker.exited"))
    assert len(spawned) == 3


def test_a_hook_may_stop_the_pool(leaves_nothing: None) -> None:
    pools: list[WorkerPool] = []

    def hook(pool: WorkerPool) -> None:
        pools.append(pool)
        pool.stop()

    pool = small(before_fork=hook)
    assert pool.serve() == 0
    assert pools == [pool]


def test_a_parser_that_is_not_installed_is_told_before_any_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "prefork.http1.parser_httptools", raising=False)
    monkeypatch.setitem(sys.modules, "httptools", None)
    with pytest.raises(MissingExtra, match=r"'httptools', which is not installed.*PF419"):
        small(http="httptools").serve()
    assert small(http="auto", on_record=Log()).serve() == 0


@pytest.mark.parametrize(
    ("code", "error"), [("raise LookupError", AppFailed), ("app = 1", AppNotFound)], ids=["raises", "not callable"]
)
def test_what_is_wrong_with_the_app_is_raised_before_any_fork(
    code: str, error: type[Exception], write_app: Callable[..., Path], leaves_nothing: None
) -> None:
    name = f"wrong_{error.__name__}"
    log = Log()
    with pytest.raises(error):
        WorkerPool(
            f"{name}:app", app_dir=str(write_app(code, name=name)), bind=HERE, log_format="none", on_record=log
        ).serve()
    assert log.names() == ["pool.starting", "pool.listening"]


def test_a_change_of_files_ends_with_status_3(leaves_nothing: None) -> None:
    changes = iter([None, None, "shop.py"])
    log = Log(stop_at="never")
    pool = WorkerPool(
        app, bind=HERE, max_workers=1, log_format="none", on_record=log, files_changed=lambda: next(changes)
    )
    assert pool.serve() == 3
    assert log.of("pool.reloading")[0]["path"] == "shop.py"


def test_hygiene_comes_before_every_fork_and_in_each_child(tmp_path: Path, leaves_nothing: None) -> None:
    calls: list[str] = []
    marks = tmp_path / "marks"
    marks.mkdir()

    def fails() -> None:
        calls.append("parent")
        raise OSError("cannot close")

    log = Log()
    pool = WorkerPool(
        app,
        bind=HERE,
        max_workers=2,
        log_format="none",
        on_record=log,
        before_fork=lambda _pool: calls.append("hook"),
        hygiene=[fails],
        child_hygiene=[partial(_mark, marks)],
        on_listening=calls.extend,
    )
    assert pool.serve() == 0
    assert calls == [pool.url, "parent", "hook", "parent", "hook"]
    assert sorted(path.name for path in marks.iterdir()) == sorted(
        str(f["child_pid"]) for f in log.of("worker.spawned")
    )
    assert [fields["hook"] for fields in log.of("hook.failed")] == ["hygiene"] * 2


def test_warm_up_runs_once_in_the_parent(leaves_nothing: None) -> None:
    warmed: list[tuple[object, int]] = []
    assert small(warm_up=lambda app: warmed.append((app, os.getpid())), on_record=Log()).serve() == 0
    assert warmed == [(app, os.getpid())]


def test_without_preload_there_is_nothing_to_warm_up(write_app: Callable[..., Path], leaves_nothing: None) -> None:
    warmed: list[object] = []
    named: dict[str, Any] = {
        "app_dir": str(write_app(name="cold")),
        "preload": False,
        "bind": HERE,
        "log_format": "none",
    }
    pool = WorkerPool("cold:app", max_workers=1, warm_up=warmed.append, on_record=Log(), **named)
    assert pool.serve() == 0
    assert not warmed


def test_warm_up_paths_are_asked_through_the_gateway(leaves_nothing: None) -> None:
    asked: list[tuple[str, str, str]] = []

    class Answer(list[bytes]):
        def close(self) -> None:
            asked.append(("closed", "", ""))

    def shop(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        asked.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"]))
        start_response("200 OK", [])
        return Answer([b"x"])

    WorkerPool(shop, bind=HERE, max_workers=1, log_format="none", on_record=Log(), warm_up=["/", "/a?b=c"]).serve()
    assert asked == [("GET", "/", ""), ("closed", "", ""), ("GET", "/a", "b=c"), ("closed", "", "")]


@pytest.mark.parametrize("more", [{}, {"request_id": True, "request_timeout": 9}], ids=["usual", "with id and limit"])
def test_what_is_asked_for_warming_up_is_what_a_request_is(more: dict[str, Any]) -> None:
    environs: list[list[str]] = []

    def shop(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        environs.append(sorted(environ))
        start_response("200 OK", [])
        return [json.dumps(environs).encode()]

    with WorkerPool(shop, bind=HERE, max_workers=1, log_format="none", warm_up="/", **more) as pool:
        address = urlsplit(pool.url)
        with socket.create_connection((address.hostname, address.port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = HTTPResponse(client)
            answer.begin()
            warmed, asked = json.loads(answer.read())
    assert warmed == asked


def test_an_answer_of_500_to_the_warm_up_ends_the_boot(leaves_nothing: None) -> None:
    def sick(_environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        start_response("500 Sick", [])
        return [b"no database"]

    with pytest.raises(AppFailed, match=r"warm_up / was answered with 500: 'no database'.*PF414"):
        WorkerPool(sick, bind=HERE, log_format="none", on_record=Log(), warm_up="/").serve()


def test_a_warm_up_that_is_refused_is_recorded(leaves_nothing: None) -> None:
    def strict(_environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        start_response("400 Bad Request", [])
        return [b"not this host"]

    log = Log()
    WorkerPool(strict, bind=HERE, max_workers=1, log_format="none", on_record=log, warm_up="/a").serve()
    (told,) = log.of("pool.warm_up_refused")
    assert (told["path"], told["host"], told["status"]) == ("/a", "localhost", 400)


def test_a_warm_up_that_fails_ends_the_boot(leaves_nothing: None) -> None:
    with pytest.raises(AppFailed, match="warm_up") as failed:
        small(warm_up=lambda _app: 1 / 0).serve()
    assert isinstance(failed.value.__cause__, ZeroDivisionError)


def test_what_a_fork_would_break_is_told_once_with_its_remedy(leaves_nothing: None) -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="exporter")
    log = Log()

    def start_thread(_app: object) -> None:
        thread.start()

    small(max_workers=2, warm_up=start_thread, on_record=log).serve()
    done.set()
    thread.join()
    (told,) = log.of("pool.fork_unsafe")
    assert told["code"] == "PF405"
    assert [finding["what"] for finding in told["findings"]] == ["exporter"]
    assert "worker_started" in told["findings"][0]["remedy"]


def test_what_the_caller_has_running_is_told_by_a_started_pool(tmp_path: Path, leaves_nothing: None) -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="exporter")
    thread.start()
    log = tmp_path / "log"
    with small(log_format="json", log_file=str(log)) as pool:
        ask(pool)
    done.set()
    thread.join()
    records = [json.loads(line) for line in log.read_text().splitlines()]
    (told,) = [record for record in records if record["event"] == "pool.fork_unsafe"]
    assert "exporter" in [finding["what"] for finding in told["findings"]]


def test_a_clean_app_is_told_nothing(leaves_nothing: None) -> None:
    log = Log()
    small(on_record=log).serve()
    assert not log.of("pool.fork_unsafe")


def test_the_pid_file_is_there_while_the_pool_is(tmp_path: Path, leaves_nothing: None) -> None:
    path = tmp_path / "pool.pid"
    with small(pid_file=str(path)) as pool:
        assert path.read_text() == f"{pool.pid}\n"
        ask(pool)
    assert list(tmp_path.iterdir()) == []


def test_the_pid_file_of_a_living_process_is_respected(tmp_path: Path, leaves_nothing: None) -> None:
    path = tmp_path / "pool.pid"
    path.write_text(str(os.getppid()))
    with pytest.raises(BootError, match="PF411"):
        small(pid_file=str(path)).start()
    assert path.read_text() == str(os.getppid())


@pytest.mark.parametrize("left", ["", "0", "999999999"])
def test_a_stale_pid_file_is_replaced(left: str, tmp_path: Path) -> None:
    path = tmp_path / "pool.pid"
    path.write_text(left)
    with small(pid_file=str(path)) as pool:
        assert path.read_text() == f"{pool.pid}\n"


def test_a_process_that_began_after_the_file_was_written_does_not_own_it(tmp_path: Path) -> None:
    path = tmp_path / "pool.pid"
    path.write_text(str(os.getppid()))
    os.utime(path, (0, 0))
    with small(pid_file=str(path)) as pool:
        assert path.read_text() == f"{pool.pid}\n"


def test_a_pid_file_that_cannot_be_written_fails_the_boot(tmp_path: Path) -> None:
    with pytest.raises(BootError, match="PF412"):
        small(pid_file=str(tmp_path / "nowhere" / "pool.pid")).start()


def test_umask_and_directory_are_the_pools_and_not_the_programs(tmp_path: Path, leaves_nothing: None) -> None:
    def shop(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        start_response("200 OK", [])
        (tmp_path / "made").touch()
        return [f"{Path.cwd()} {(tmp_path / 'made').stat().st_mode & 0o777:o}".encode()]

    options: Any = {"bind": HERE, "max_workers": 1, "log_format": "none", "umask": "027", "chdir": str(tmp_path)}
    with WorkerPool(shop, **options) as pool, urlopen(pool.url) as answer:
        assert answer.read().decode() == f"{tmp_path} 640"
    assert WorkerPool(shop, **options, on_record=Log()).serve() == 0


def test_a_directory_that_is_not_there_is_a_users_mistake(leaves_nothing: None) -> None:
    with pytest.raises(ConfigError, match="PF418"):
        small(chdir="/nowhere").serve()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_processes_show_the_name_they_were_given() -> None:
    pytest.importorskip("setproctitle")
    with small(proc_name="shop") as pool:
        names = [Path(f"/proc/{pid}/cmdline").read_text().strip("\0") for pid in (pool.pid, ask(pool))]
    assert names == ["shop: parent", "shop: worker 0"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_the_app_is_imported_as_the_user_who_serves(write_app: Callable[..., Path]) -> None:
    folder = write_app(
        "import os\nwho = os.geteuid()\ndef tell(e, s):\n    s('200 OK', [])\n    return [b'%d' % who]\n"
    )
    for path in (folder, *folder.parents[:-1]):
        path.chmod(0o755)
    with LiveServer.pool("sample:tell", app_dir=str(folder), user="nobody", max_workers=1) as server:
        assert server.get() == (200, b"65534")


def test_the_file_of_a_unix_socket_goes_with_the_pool(tmp_path: Path, leaves_nothing: None) -> None:
    path = tmp_path / "pool.sock"
    with small(bind=f"unix:{path}") as pool:
        assert pool.url == f"unix:{path}"
        connection = HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(path))
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
        connection.close()
    assert not path.exists()


def _mark(folder: Path) -> None:
    (folder / str(os.getpid())).touch()


# Before it serves.


def test_a_stop_during_a_slow_import_is_not_waited_for(write_app: Callable[..., Path]) -> None:
    folder = write_app(f"print('importing', flush=True)\n{A_MINUTE}\n")
    for number in (signal.SIGTERM, signal.SIGINT):
        with LiveServer.pool("sample:app", app_dir=str(folder), where={"ready": ""}) as server:
            server.wait_for_output("importing")
            assert server.stop(number, timeout=5) == 0
            assert server.records[-1]["event"] == "pool.stopped"


def test_process_1_can_be_stopped_while_it_imports(write_app: Callable[..., Path]) -> None:
    folder = write_app(f"print('importing', flush=True)\n{A_MINUTE}\n")
    with in_a_container("sample:app", app_dir=str(folder), where={"ready": ""}) as server:
        server.wait_for_output("importing")
        os.kill(inner(server), signal.SIGTERM)
        assert server.wait() == 0


def test_process_1_reaps_orphans_and_keeps_the_exit_codes_of_workers(write_app: Callable[..., Path]) -> None:
    folder = write_app(ORPHANS)
    with in_a_container("sample:orphans", app_dir=str(folder), max_workers=2, max_reqs_per_child=0) as server:
        for _ in range(5):
            server.get("/orphan")
        with pytest.raises(ConnectionError):
            server.get("/exit")
        server.wait_for("worker.exited", exit_code=7)
        children = Path(f"/proc/{inner(server)}/task/{inner(server)}/children")
        until(lambda: len(children.read_text().split()) == 2)
        os.kill(inner(server), signal.SIGTERM)
        assert server.wait() == 0


ORPHANS = """
def orphans(environ, start_response):
    if environ["PATH_INFO"] == "/exit":
        os._exit(7)
    if environ["PATH_INFO"] == "/orphan" and os.fork() == 0:
        if os.fork() == 0:
            time.sleep(0.05)
        os._exit(3)
    return app(environ, start_response)
"""


def in_a_container(app: str, **options: Any) -> LiveServer:
    """Run a pool as process 1 of a process namespace."""
    server = LiveServer.pool(app, **options)
    unshare = ["unshare", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("this user cannot make a process namespace")
    server.command = ["/usr/bin/env", *unshare, *server.command]
    return server


def inner(server: LiveServer) -> int:
    """Return the process id, seen from outside, of process 1."""
    (pid,) = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return int(pid)


def test_a_system_without_fork_is_told_in_one_line() -> None:
    code = "import os; del os.fork; import prefork; prefork.WorkerPool"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert ran.stderr.strip().splitlines()[-1].startswith("prefork.errors.PlatformUnsupported: this system cannot fork")


def test_import_prefork_imports_nothing_third_party() -> None:
    code = (
        "import sys; before = set(sys.modules); import prefork;"
        "print([n for n in set(sys.modules) - before if n.partition('.')[0] not in {*sys.stdlib_module_names, 'prefork'}])"
    )
    ran = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.strip() == "[]"
