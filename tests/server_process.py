"""What does a real server do, seen from outside: its records, its processes, its answers?"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import psutil
import pytest

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 20.0
# For an application that a signal is to interrupt. Python acts upon one that comes just before a call behind that call only.
A_MINUTE = "for _ in range(600): time.sleep(0.1)"

# A shell starts what it puts into the background with INT and QUIT ignored; what a test starts must not inherit that.
for _number in (number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN):
    if _number not in {signal.SIGPIPE, signal.SIGXFSZ}:  # Python's own, which subprocess undoes
        signal.signal(_number, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, ())

POOL = """
import json, sys
from prefork import WorkerPool
app, options = sys.argv[1], json.loads(sys.argv[2])
sys.exit(WorkerPool(app, **options).serve())
"""
UNHURRIED = """
import prefork.worker
prefork.worker.PARTING = 5
"""
"""Code of an application with which a pool that stops waits longer for idle clients than a busy machine keeps them."""

Record = dict[str, Any]


def lines_of(path: Path) -> list[str]:
    """Return the lines of a file, if it is there, without one that is just being written: of that a part may be seen."""
    with suppress(FileNotFoundError):
        text = path.read_text()
        return text[: text.rfind("\n") + 1].splitlines()
    return []


def until(condition: Callable[[], bool]) -> None:
    """Wait for what no event tells of; fails if it does not come."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


def program(name: str) -> str:
    """Return the path of a tool; skip the test if it is not here, and fail where it counts."""
    if (path := shutil.which(name)) is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name} is not installed")
    return path


def let_everybody_read(folder: Path) -> None:
    """Let also those users read a folder of a test as whom a server may run."""
    for path in (folder, *folder.parents):
        path.chmod(path.stat().st_mode | 0o055)


def put_to_sleep(pid: int) -> None:
    """Stop a process, and wait until all its threads have heard of it."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: all(thread.status() == psutil.STATUS_STOPPED for thread in threads_of(pid)))


def switches(pids: Sequence[int]) -> dict[str, int]:
    """Return how often each thread of some processes has gone to sleep so far."""
    return {path: int(fields["voluntary_ctxt_switches"]) for path, fields in _statuses(pids)}


def all_asleep(*pids: int) -> bool:
    """Whether nobody did anything for a moment; who waits for a processor is not asleep."""
    before = switches(pids)
    threading.Event().wait(0.05)
    runs = any(fields["State"].startswith("R") for _, fields in _statuses(pids))
    return not runs and switches(pids) == before


def _statuses(pids: Sequence[int]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield what the kernel tells of each thread of some processes, with the path where it does."""
    for pid in pids:
        for status in Path(f"/proc/{pid}/task").glob("*/status"):
            with suppress(OSError):  # it has ended
                lines = status.read_text().splitlines()
                yield str(status), {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def threads_of(pid: int) -> list[psutil.Process]:
    return [psutil.Process(int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir()]


class LiveServer:
    """A server in a process group of its own, from its ready record to its clean end.

    It logs JSON to stderr, where ``wait_for()`` reads; whatever else it writes is kept in ``output``. Leaving the block
    stops it, fails if a process of the group is left behind, and prints the log if the test failed. ``ready`` is the
    record to wait for before the block begins; empty: none.
    """

    def __init__(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        ready: str = "pool.ready",
    ) -> None:
        self.command = [*command]
        self.cwd = ROOT / "tests" if cwd is None else cwd
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PREFORK_", "FLASK_"))},
            # Tests write an application anew within the second that tells old bytecode from new.
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            "PREFORK_LOG_FORMAT": "json",
            "PREFORK_LOG_LEVEL": "debug",
            **(env or {}),
        }
        self.ready = ready
        self.records: list[Record] = []
        self.output: list[str] = []
        self._changed = threading.Condition()
        self._unended = 0  # pipes that may say more

    interface = "wsgi"
    """``"asgi"`` while the applications of tests, which are WSGI, are to be served as ASGI ones."""

    @classmethod
    def served(cls, app: str) -> str:
        """Return how to name an application of a test, so that it is served as ``interface`` says."""
        return app if cls.interface == "wsgi" else f"as_asgi:of({app!r})"

    @classmethod
    def of(cls, app: str, *flags: str, **where: Any) -> Self:
        """Run the ``prefork`` command, on a port that is free."""
        bind = () if any(flag.startswith("--bind") for flag in flags) else ("--bind", "127.0.0.1:0")
        return cls(sys.executable, "-m", "prefork", cls.served(app), *bind, *flags, **where)

    @classmethod
    def pool(cls, app: str, *, where: Mapping[str, Any] | None = None, **options: Any) -> Self:
        """Run ``WorkerPool(app, **options).serve()``, on a port that is free; what can be written as JSON can be given."""
        options = {"bind": "127.0.0.1:0", "log_format": "json", "log_level": "debug", **options}
        return cls(sys.executable, "-c", POOL, cls.served(app), json.dumps(options), **(where or {}))

    @classmethod
    def script(cls, text: str, *arguments: str, **where: Any) -> Self:
        """Run a Python program."""
        return cls(sys.executable, "-c", text, *arguments, **where)

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self.command,
            cwd=self.cwd,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._readers = [
            threading.Thread(target=self._read, args=(pipe,), daemon=True)
            for pipe in (self.process.stdout, self.process.stderr)
        ]
        self._unended = len(self._readers)
        for reader in self._readers:
            reader.start()
        if self.ready:
            try:
                self.wait_for(self.ready)
            except BaseException:
                self._clean_up()
                print(self.log)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.stop()
                wait_until_gone(self.group())  # a pool's parent of its own outlives the program by a moment
        except BaseException:
            print(self.log)
            raise
        finally:
            status = self.process.poll()
            self._clean_up()
            if kind is not None:
                print(self.log)
                print("--- it still ran" if status is None else f"--- it had ended with status {status}")

    # What it said.

    @property
    def log(self) -> str:
        """All that it wrote."""
        lines = [json.dumps(record) for record in self.records]
        return "\n".join(["--- records", *lines, "--- other output", *self.output])

    def all(self, record: str, **fields: Any) -> list[Record]:
        """Return the records so far that have this name and these fields."""
        wanted = {"event": record, **fields}.items()
        with self._changed:
            return [entry for entry in self.records if wanted <= _hashable(entry).items()]

    def wait_for(self, record: str, *, count: int = 1, timeout: float = PATIENCE, **fields: Any) -> Record:
        """Wait until a record with these fields was written ``count`` times; return the last of them."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while len(found := self.all(record, **fields)) < count:
                left = deadline - time.monotonic()
                if left <= 0 or not self._unended:
                    why = f"{timeout} s passed" if self._unended else "the server ended"
                    raise AssertionError(f"{why} without {record} {fields or ''} (wanted {count}, got {len(found)})")
                self._changed.wait(left)
        return found[count - 1]

    def wait_for_output(self, text: str, *, count: int = 1, timeout: float = PATIENCE) -> str:
        """Wait for a line, of those that are no records, that contains ``text``, or for so many; return the first."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while len(found := [line for line in self.output if text in line]) < count:
                left = deadline - time.monotonic()
                if left <= 0 or not self._unended:
                    raise AssertionError(f"no output with {text!r}")
                self._changed.wait(left)
        return found[0]

    # What it is.

    @property
    def pid(self) -> int:
        """The process that was started."""
        return self.process.pid

    @property
    def parent_pid(self) -> int:
        """The parent of the workers, which is another process if the pool was started by a program."""
        return int(self.wait_for("pool.starting")["pid"])

    @property
    def url(self) -> str:
        """Where it listens."""
        return str(self.wait_for("pool.listening")["url"])

    @property
    def address(self) -> tuple[str, int]:
        """The host and the port of ``url``."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    @property
    def worker_pids(self) -> list[int]:
        """The workers that were spawned and have not exited."""
        gone = {record["child_pid"] for record in self.all("worker.exited")}
        return [record["child_pid"] for record in self.all("worker.spawned") if record["child_pid"] not in gone]

    def group(self) -> list[int]:
        """Return the live processes of its group."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):
                if os.getpgid(process.pid) == self.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
        return found

    # What is done to it.

    def get(self, path: str = "/", *, method: str = "GET", timeout: float = PATIENCE, **kw: Any) -> tuple[int, bytes]:
        """Ask once, on a connection of its own; return status and body."""
        connection = HTTPConnection(*self.address, timeout=timeout)
        try:
            connection.request(method, path, **kw)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def send(self, number: signal.Signals, *, to: int | None = None) -> None:
        """Send a signal, to the workers' parent if nobody else is named."""
        os.kill(self.parent_pid if to is None else to, number)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for its end, and for the end of what it had to say; return the exit status."""
        status = self.process.wait(timeout)
        for reader in self._readers:
            reader.join(PATIENCE)
        return status

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = PATIENCE) -> int:
        """Send a signal, if it still runs, and wait for the end."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait(timeout)

    def _read(self, pipe: Any) -> None:
        with pipe:
            for line in pipe:
                text = line.decode(errors="replace").rstrip("\n")
                with self._changed:
                    record = _record(text)
                    if record is None:
                        self.output.append(text)
                    else:
                        self.records.append(record)
                    self._changed.notify_all()
        with self._changed:
            self._unended -= 1
            self._changed.notify_all()

    def _clean_up(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        for reader in self._readers:
            reader.join(PATIENCE)


def _record(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "event" in record else None


def _hashable(record: Record) -> dict[str, Any]:
    return {name: value for name, value in record.items() if not isinstance(value, (list, dict))}


class Tally:
    """Clients that ask without a pause, in the background, and count what they got and what they lost.

    Each asks on one kept-alive connection after another, or with ``keep_alive=False`` on a new one each time. A request
    counts as lost if it was not answered, for whatever reason; ``goodbyes`` are answers with ``Connection: close``. With
    ``tls`` they speak that.
    """

    def __init__(
        self,
        server: LiveServer,
        *,
        clients: int = 4,
        path: str = "/",
        keep_alive: bool = True,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.address, self.path, self.keep_alive, self.tls = server.address, path, keep_alive, tls
        self.statuses: dict[int, int] = {}
        self.bodies: dict[bytes, int] = {}
        self.lost: list[str] = []
        self.goodbyes = 0
        self._changed = threading.Condition()
        self._stop = False
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ask no more."""
        self._stop = True
        for thread in self._threads:
            thread.join(PATIENCE)

    @property
    def answered(self) -> int:
        """How many requests were answered."""
        return sum(self.statuses.values())

    def wait_for(self, more: int, timeout: float = PATIENCE) -> None:
        """Wait until so many more requests were answered or lost."""
        with self._changed:
            wanted = self.answered + len(self.lost) + more
            assert self._changed.wait_for(lambda: self.answered + len(self.lost) >= wanted, timeout), (
                f"{more} more answers did not come: {self.statuses}, lost {self.lost[:5]}"
            )

    def _ask(self) -> None:
        connection = (
            HTTPConnection(*self.address, timeout=PATIENCE)
            if self.tls is None
            else HTTPSConnection(*self.address, timeout=PATIENCE, context=self.tls)
        )
        headers = {} if self.keep_alive else {"Connection": "close"}
        while not self._stop:
            try:
                connection.request("GET", self.path, headers=headers)
                response = connection.getresponse()
                self.goodbyes += response.will_close
                self._count(response.status, response.read())
            except (OSError, HTTPException) as error:
                self._lose(f"{type(error).__name__}: {error}")
                connection.close()
        connection.close()

    def _count(self, status: int, body: bytes) -> None:
        with self._changed:
            self.statuses[status] = self.statuses.get(status, 0) + 1
            self.bodies[body] = self.bodies.get(body, 0) + 1
            self._changed.notify_all()

    def _lose(self, why: str) -> None:
        with self._changed:
            self.lost.append(why)
            self._changed.notify_all()


def wait_until_gone(pids: Sequence[int], timeout: float = PATIENCE) -> None:
    """Wait for the end of processes that are not our children; who has ended is gone, whether his parent knows it or not."""
    processes = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(pid))
    deadline = time.monotonic() + timeout
    while left := [process for process in processes if _runs(process)]:
        assert time.monotonic() < deadline, f"still alive: {left}"
        time.sleep(0.01)


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False
