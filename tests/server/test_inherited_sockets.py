"""Do we serve on the sockets that somebody else opened, and leave them as they are?"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from server_process import PATIENCE, POOL, ROOT, UNHURRIED, LiveServer, Tally, program, until, wait_until_gone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

APP = """
import json, os, socket, time
from pathlib import Path

FOLDER = Path(__file__).parent
if (FOLDER / "broken").exists():
    raise LookupError("this generation is broken")
while (FOLDER / "slow").exists():
    time.sleep(0.05)
HERE = ("SERVER_STARTER_", "LISTEN_")

def app(environ, start_response):
    seen = {name: value for name, value in os.environ.items() if name.startswith(HERE)}
    body = json.dumps({"pid": os.getpid(), "parent": os.getppid(), "environ": seen})
    start_response("200 OK", [("Content-Type", "application/json")])
    if environ["PATH_INFO"] == "/hold":
        (FOLDER / "holding").touch()
        while (FOLDER / "held").exists():
            time.sleep(0.05)
    return [body.encode()]

try:
    from flask import Flask
except ImportError:
    pass
else:
    flask_app = Flask("shop")
    flask_app.add_url_rule("/", view_func=lambda: "shop")
"""
STARTED = "import sys; sys.argv[1:1] = ['shop:app', '{}']; " + POOL.replace(
    "sys.exit(WorkerPool(app, **options).serve())",
    "pool = WorkerPool(app, **options); pool.start(); sys.exit(pool.wait())",
)

PREFORK = [sys.executable, "-m", "prefork", "shop:app", "-w", "2"]
COMMANDS = {
    "prefork": PREFORK,
    "flask run-prefork": [sys.executable, "-m", "flask", "--app", "shop:flask_app", "run-prefork", "-w", "2"],
    "manage.py runprefork": [
        sys.executable,
        str(ROOT / "examples/django_site/manage.py"),
        "runprefork",
        "-w",
        "2",
        "--noreload",
    ],
    "serve()": [sys.executable, "-c", POOL, "shop:app", '{"max_workers": 2}'],
    "start()": [sys.executable, "-c", STARTED],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path


def ask(where: str | tuple[str, int]) -> dict[str, Any]:
    """Ask on a connection of its own, by TCP or at the path of a UNIX socket."""
    connection = HTTPConnection("localhost" if isinstance(where, str) else where[0], 0, timeout=20)
    connection.sock = socket.socket(socket.AF_UNIX) if isinstance(where, str) else socket.create_connection(where, 20)
    if isinstance(where, str):
        connection.sock.settimeout(20)
        connection.sock.connect(where)
    try:
        connection.request("GET", "/", headers={"Connection": "close"})
        body = connection.getresponse().read()
    finally:
        connection.close()
    answer: dict[str, Any] = json.loads(body) if body.startswith(b"{") else {"body": body.decode()}
    return answer


def queue_length(port: int) -> int:
    """Return how many connections the kernel queues for a listening socket, IPv4 on this machine."""
    shown = subprocess.run(
        [program("ss"), "-ltnH", f"sport = :{port}"], capture_output=True, text=True, check=True
    ).stdout
    return int(shown.split()[2])


# Under the real start_server.


class Starter(LiveServer):
    """A server under ``start_server``, which is the process that is started here."""

    def __init__(self, *flags: str, command: list[str] = PREFORK, folder: Path, **more: Any) -> None:
        self.status = folder / "status"
        command = [self.served(word) if word == "shop:app" else word for word in command]
        super().__init__(
            program("start_server"), *flags, f"--status-file={self.status}", "--", *command, cwd=folder, **more
        )
        self.env |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(folder)])}

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = PATIENCE) -> int:
        """Stop all, as soon as ``start_server`` can be told: until its first generation is up it would leave that behind."""
        if self.process.poll() is None and self.all("pool.starting"):
            until(lambda: self.status.exists() and self.status.read_text().strip() != "")
            self.wait_until_it_waits()
        return super().stop(number, timeout)

    def deploy(self) -> None:
        """Ask for the next generation."""
        self.wait_until_it_waits()
        self.process.send_signal(signal.SIGHUP)

    def wait_until_it_waits(self) -> None:
        """Wait until ``start_server``, which looks for signals and then waits for a child, is beyond the look.

        What came in between would be heard with the next one.
        """
        until(lambda: psutil.Process(self.pid).status() == psutil.STATUS_SLEEPING)

    def pid_of(self, generation: int) -> int:
        """Return the process id of a generation."""
        return int(self.wait_for("pool.starting", starter_generation=generation)["pid"])

    def wait_for_generation(self, number: int) -> None:
        """Wait until a generation serves, and those before it are gone."""
        self.wait_for("pool.starting", starter_generation=number)
        until(lambda: [line.split(":")[0] for line in self.status.read_text().split()] == [str(number)])


@pytest.fixture
def starter(folder: Path) -> Callable[..., Starter]:
    def start(*flags: str, **more: Any) -> Starter:
        return Starter(*(flags or ("--port=127.0.0.1:0",)), folder=folder, **more)

    return start


@pytest.mark.parametrize("command", COMMANDS)
def test_every_way_to_serve_takes_the_sockets(command: str, starter: Callable[..., Starter]) -> None:
    environment = {"PORT": "1", "FLASK_RUN_PORT": "1", "DEBUG": ""}
    environment |= {"DJANGO_ALLOWED_HOSTS": "127.0.0.1"} if "manage" in command else {}
    with starter(command=COMMANDS[command], env=environment) as server:
        assert ask(server.address)
        listening = server.wait_for("pool.listening")
        assert listening["inherited_as"] == "127.0.0.1:0"
        assert server.wait_for("pool.starting")["starter_generation"] == 1


def test_d10_all_kinds_of_sockets_are_served(starter: Callable[..., Starter], tmp_path: Path) -> None:
    path = tmp_path / "shop.sock"
    with starter("--port=127.0.0.1:0", "--port=[::1]:0", "--port=127.0.0.1:0=19", f"--path={path}") as server:
        server.wait_for("pool.listening", count=4)
        found = {record["inherited_as"]: record for record in server.all("pool.listening")}
        assert found["127.0.0.1:0"]["inherited_fd"] == 19
        assert found[str(path)]["url"] == f"unix:{path}"
        for record in server.all("pool.listening"):
            where = str(path) if record["url"].startswith("unix:") else (record["address"].strip("[]"), record["port"])
            for _ in range(3):  # D10: of a UNIX socket the original resets every connection
                assert ask(where)["parent"] == server.parent_pid
        assert not server.all("worker.exited")


def test_programs_that_the_app_starts_are_not_told_of_the_sockets(starter: Callable[..., Starter]) -> None:
    with starter() as server:
        assert ask(server.address)["environ"] == {}


def test_d12_the_queue_of_an_inherited_socket_keeps_its_length(starter: Callable[..., Starter]) -> None:
    """D12: the original listens again, with 128."""
    with starter("--port=127.0.0.1:0", "--backlog=77") as server:
        assert ask(server.address)
        assert queue_length(server.address[1]) == 77


def test_d11_a_generation_that_leaves_removes_no_socket(starter: Callable[..., Starter], tmp_path: Path) -> None:
    """D11: the original's workers unlink the file when they retire."""
    path = tmp_path / "shop.sock"
    with starter(f"--path={path}", "--interval=1") as server:
        made = path.stat().st_ino
        for worker in server.worker_pids:
            server.send(signal.SIGTERM, to=worker)
            server.wait_for("worker.exited", child_pid=worker)
        server.deploy()
        server.wait_for_generation(2)
        assert path.stat().st_ino == made
        assert ask(str(path))["parent"] == server.pid_of(2)
        server.stop()
        assert not path.exists()  # start_server made it, and removes it


def test_a_deploy_loses_nothing_and_a_broken_one_changes_nothing(starter: Callable[..., Starter], folder: Path) -> None:
    # The interval is long enough for a generation to fail within it, on a machine that is busy with other tests.
    with (
        starter("--port=127.0.0.1:0", "--interval=5") as server,
        Tally(server, clients=2) as kept,
        Tally(server, clients=2, keep_alive=False) as new,
    ):
        server.deploy()
        server.wait_for_generation(2)
        (folder / "broken").touch()
        server.deploy()
        assert status_of_failure(server) == 1
        server.wait_for("pool.starting", starter_generation=4)  # a second attempt
        assert ask(server.address)["parent"] == server.pid_of(2)
        (folder / "broken").unlink()
        server.wait_for("pool.stopped", pid=server.pid_of(2), exit_code=0)
        for tally in (kept, new):
            tally.wait_for(20)
            tally.stop()
    for tally in (kept, new):
        assert not tally.lost
        assert set(tally.statuses) == {200}
        served_by = {json.loads(body)["parent"] for body in tally.bodies}
        assert served_by == {record["pid"] for record in server.all("pool.ready")}
    assert not kept.goodbyes


def status_of_failure(server: Starter) -> int:
    """Return with which status ``start_server`` says that a generation has ended which was to serve."""
    line = server.wait_for_output("seems to have failed to start, exit status:")
    return os.waitstatus_to_exitcode(int(line.rpartition(":")[2]))


@contextmanager
def kept_connections(address: tuple[str, int], count: int) -> Iterator[list[HTTPConnection]]:
    """Connections that were asked on once; each must outlive the block, or the next request on it fails."""
    with ExitStack() as stack:
        connections = [stack.enter_context(closing(HTTPConnection(*address, timeout=20))) for _ in range(count)]
        for connection in connections:
            connection.connect()
            connection.auto_open = 0
            served_by(connection)
        yield connections


def served_by(connection: HTTPConnection, path: str = "/") -> int:
    """Ask once more, and return the process id of the pool's parent."""
    connection.request("GET", path)
    return int(json.loads(connection.getresponse().read())["parent"])


@pytest.mark.parametrize(
    ("interface", "host"),
    [("wsgi", "127.0.0.1"), ("wsgi", "[::1]"), ("asgi", "127.0.0.1")],
    indirect=["interface"],
)
@pytest.mark.usefixtures("interface")
def test_idle_connections_cross_to_the_next_generation(host: str, starter: Callable[..., Starter]) -> None:
    with starter(f"--port={host}:0", "--interval=1") as server, kept_connections(server.address, 40) as connections:
        for number in (2, 3):
            server.deploy()
            server.wait_for_generation(number)
            assert {served_by(connection) for connection in connections} == {server.pid_of(number)}
        told = [record["new_starter_generation"] for record in server.all("pool.superseded")]
        assert told == [2, 3]
        assert not server.all("pool.stopping")


@pytest.mark.over_both
def test_a_generation_serves_on_until_the_next_one_has_loaded(starter: Callable[..., Starter], folder: Path) -> None:
    with starter("--port=127.0.0.1:0", "--interval=1") as server, kept_connections(server.address, 4) as connections:
        (folder / "slow").touch()
        server.deploy()
        server.wait_for("pool.stop_delayed", signal="TERM", reason="the next generation does not serve yet")
        assert {served_by(connection) for connection in connections} == {server.pid_of(1)}
        assert ask(server.address)["parent"] == server.pid_of(1)
        (folder / "slow").unlink()
        server.wait_for_generation(2)
        assert {served_by(connection) for connection in connections} == {server.pid_of(2)}


def test_a_generation_that_goes_for_another_finishes_politely_if_that_dies(
    starter: Callable[..., Starter], folder: Path
) -> None:
    with starter("--port=127.0.0.1:0", "--interval=1") as server:
        (folder / "held").touch()
        connection = HTTPConnection(*server.address, timeout=20)
        connection.request("GET", "/hold")
        until((folder / "holding").exists)
        server.deploy()
        server.wait_for("pool.superseded", new_starter_generation=2)
        server.wait_for("pool.ready", count=2)
        server.send(signal.SIGKILL, to=server.pid_of(2))
        server.wait_for("pool.stopping", pid=server.pid_of(1))
        (folder / "held").unlink()
        assert json.loads(connection.getresponse().read())["parent"] == server.pid_of(1)
        server.wait_for("pool.stopped", pid=server.pid_of(1), exit_code=0)
        connection.close()
        server.wait_for("pool.ready", count=3)  # by its keeper
        assert ask(server.address)["parent"] not in {server.pid_of(1), server.pid_of(2)}


@pytest.mark.over_both
def test_idle_connections_outlive_the_death_of_a_generations_parent(starter: Callable[..., Starter]) -> None:
    with starter("--port=127.0.0.1:0", "--interval=1") as server, kept_connections(server.address, 4) as connections:
        server.deploy()
        server.wait_for_generation(2)
        old = server.worker_pids
        server.send(signal.SIGKILL, to=server.pid_of(2))
        new = server.wait_for("pool.deployed", reason="death")["pid"]
        wait_until_gone(old)
        assert {served_by(connection) for connection in connections} == {new}
        server.deploy()
        server.wait_for_generation(3)
        assert {served_by(connection) for connection in connections} == {server.pid_of(3)}


def test_idle_connections_cross_from_a_generation_that_got_new_code_by_itself(starter: Callable[..., Starter]) -> None:
    with starter("--port=127.0.0.1:0", "--interval=1") as server, kept_connections(server.address, 4) as connections:
        server.send(signal.SIGHUP, to=server.all("pool.starting")[0]["keeper_pid"])
        new = server.wait_for("pool.deployed", generation=2)["pid"]
        server.wait_for("pool.stopped", pid=server.pid_of(1))
        assert {served_by(connection) for connection in connections} == {new}
        server.deploy()
        server.wait_for_generation(2)
        assert {served_by(connection) for connection in connections} == {server.all("pool.ready")[-1]["pid"]}
        assert server.all("pool.superseded")[-1]["new_starter_generation"] == 2


@pytest.mark.parametrize("redeploy", [[], ["--no-redeploy"]], ids=["keeper", "no keeper"])
def test_the_pid_file_is_that_of_the_newest_generation(
    redeploy: list[str], starter: Callable[..., Starter], folder: Path
) -> None:
    file = folder / "pid"
    command = [*PREFORK, "--pid-file", str(file), *redeploy]
    with starter("--port=127.0.0.1:0", "--interval=1", command=command) as server:
        for number in (1, 2, 3):
            if number > 1:
                server.deploy()
                server.wait_for_generation(number)
                server.wait_for_output("died, status", count=number - 1)  # until then it may miss the next signal
            starting = server.wait_for("pool.starting", starter_generation=number)
            assert int(file.read_text()) == starting.get("keeper_pid", starting["pid"])
        (folder / "elsewhere").mkdir()
        with Starter("--port=127.0.0.1:0", command=command, folder=folder / "elsewhere", ready="") as other:
            other.wait_for_output("PF411")
        assert server.stop() == 0
    assert not file.exists()


def test_term_again_is_the_same_drain(starter: Callable[..., Starter]) -> None:
    with starter() as server:
        parent = server.parent_pid
        for _ in range(3):
            server.send(signal.SIGTERM, to=parent)
        server.wait_for("pool.stopped", exit_code=0)
        assert len(server.all("pool.stopping")) == 1
        server.wait_for("pool.starting", starter_generation=2)
        server.wait_for("pool.ready", count=2)


@pytest.mark.parametrize(
    ("flags", "more", "code", "status"),
    [
        pytest.param([], [], "PF315", 2, id="no socket"),
        pytest.param(["--port=127.0.0.1:u0"], [], "PF307", 1, id="UDP"),
        pytest.param(["--port=127.0.0.1:0"], ["--bind", "127.0.0.1:8000"], "PF317", 2, id="bind as well"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(
    flags: list[str], more: list[str], code: str, status: int, starter: Callable[..., Starter]
) -> None:
    with starter("--interval=1", *flags, command=[*PREFORK, *more], ready="") as server:
        line = server.wait_for_output(f"[{code}]")
        assert line.startswith("prefork: error: ")
        assert status_of_failure(server) == status
        assert not server.all("pool.starting")


# In systemd's way. It is a matter of two variables and descriptors from the third on, so anybody can do it.

ACTIVATE = """
import os, socket, sys
count, kind, for_whom = int(sys.argv[1]), sys.argv[2], sys.argv[3]
sockets = []
for place in range(count):
    sock = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
    sock.bind("\\0prefork-test-%d-%d" % (os.getpid(), place) if kind == "unix" else ("127.0.0.1", 0))
    if kind != "udp":
        sock.listen(55)
    sockets.append(sock)
high = [os.dup2(sock.fileno(), 40 + place) for place, sock in enumerate(sockets)]
for place, number in enumerate(high):
    os.dup2(number, 3 + place)
if kind == "closed":
    os.close(3)
if kind == "file":
    os.dup2(os.open("/dev/null", os.O_RDONLY), 3)
os.environ |= {"LISTEN_FDS": sys.argv[1], "LISTEN_FDNAMES": "web:admin", "LISTEN_PID": str(os.getpid()) if for_whom == "us" else for_whom}
os.execv(sys.argv[4], sys.argv[4:])
"""


class Activated(LiveServer):
    """A server that systemd's socket units might have started."""

    def __init__(
        self, *command: str, folder: Path, count: int = 1, kind: str = "tcp", whom: str = "us", **more: Any
    ) -> None:
        super().__init__(sys.executable, "-c", ACTIVATE, str(count), kind, whom, *command, cwd=folder, **more)
        self.env |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_way_to_serve_takes_systemds_sockets(command: str, folder: Path) -> None:
    with Activated(*COMMANDS[command], folder=folder) as server:
        listening = server.wait_for("pool.listening")
        assert (listening["inherited_fd"], listening["inherited_as"]) == (3, "web")
        assert "starter_generation" not in server.wait_for("pool.starting")
        assert ask(server.address)
        assert queue_length(server.address[1]) == 55


def test_systemds_sockets_may_be_several_and_abstract(folder: Path) -> None:
    with Activated(*PREFORK, folder=folder, count=2, kind="unix") as server:
        server.wait_for("pool.listening", count=2)
        assert [record["inherited_as"] for record in server.all("pool.listening")] == ["web", "admin"]
        for record in server.all("pool.listening"):
            assert ask(record["url"].removeprefix("unix:").replace("@", "\0", 1))["environ"] == {}


def test_sockets_for_another_process_are_not_ours(folder: Path) -> None:
    with Activated(*PREFORK, folder=folder, whom="1", env={"PREFORK_BIND": "127.0.0.1:0"}) as server:
        assert server.wait_for("pool.listening")["inherited_fd"] is None


@pytest.mark.parametrize(
    ("kind", "more", "code"),
    [("udp", {}, "PF307"), ("closed", {}, "PF307"), ("file", {}, "PF307"), ("tcp", {"PREFORK_BIND": ":0"}, "PF317")],
)
def test_what_systemd_should_not_have_passed_ends_the_command(
    kind: str, more: dict[str, str], code: str, folder: Path
) -> None:
    with Activated(*PREFORK, folder=folder, kind=kind, env=more, ready="") as server:
        assert server.wait() == (2 if code == "PF317" else 1)
        (line,) = server.output
        assert f"[{code}]" in line
        assert "LISTEN_FDS passes" in line


TWICE = """
import os, socket, sys
held = socket.create_server(("127.0.0.1", 0), backlog=55)
os.dup2(held.fileno(), 3)
os.set_inheritable(3, True)
for _ in range(2):
    if (child := os.fork()) == 0:
        os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
        os.execv(sys.argv[1], sys.argv[1:])
    os.waitpid(child, 0)
"""


def test_a_restart_on_a_socket_that_is_held_refuses_and_loses_nobody(folder: Path) -> None:
    (folder / "shop.py").write_text(APP + UNHURRIED)
    server = LiveServer.script(TWICE, *PREFORK, cwd=folder)
    server.env |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    with server, Tally(server, keep_alive=False) as new, Tally(server, clients=2) as kept:
        new.wait_for(20)
        server.send(signal.SIGTERM)
        server.wait_for("pool.stopped", exit_code=0)
        server.wait_for("pool.ready", count=2)
        new.wait_for(20)
        kept.wait_for(20)
        for tally in (new, kept):
            tally.stop()
        server.send(signal.SIGTERM, to=server.all("pool.starting")[1]["pid"])
        assert server.wait() == 0
    assert not new.lost
    assert not kept.lost
