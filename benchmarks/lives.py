"""Is anything lost while workers and pools are replaced, killed and stopped? Clients count, and say for how long none is answered.

    python benchmarks/lives.py [budget] [pauses] [deploys] [starter] [kills] [term] [rolls]        # all of them: 13 minutes

The exit status is 1 if any count is not what it has to be (times are for you to judge). Server and clients share all CPUs; as root, the clients come first, so that a gap is the server's. Linux, loopback only;
`starter` needs `start_server` (Debian: libserver-starter-perl).
"""

import argparse
import contextlib
import heapq
import json
import multiprocessing
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from itertools import count, cycle
from pathlib import Path

import lab

HERE = Path(__file__).parent
PAUSE = 2.5
APP = """
import os, time
from flask import Flask
app = Flask(__name__)

@app.route("/<kind>/<number>")
def hello(kind, number):
    if kind == "slow":
        os.write(2, b"in /slow/%d\\n" % int(number))
        time.sleep(0.02)
        os.write(2, b"out /slow/%d\\n" % int(number))
    return "version {version}"
"""
BROKEN = {
    "syntax": "def app(:",
    "import": "import there_is_no_such_module",
    "exit": "raise SystemExit(3)",
    "crash": "import os; os.kill(os.getpid(), 11)",
    "hang": "import time; time.sleep(60)",
    "probe": "def app(environ, start_response): raise ValueError",
}
REQUEST = b"GET /%s/%d HTTP/1.1\r\nHost: a\r\nConnection: %s\r\n\r\n"


class Clients:
    """All clients, in a process of their own. ``kinds`` says how many there are of each.

    Those of the kind ``pausing`` wait between an answer and the next request, each request of ``closing`` has a connection
    of its own, all others ask again at once, on another connection if they are told to close, unless they ``obey``.
    """

    def __init__(self, port, *, obey=False, **kinds):
        self.address, self.kinds, self.obey = ("127.0.0.1", port), kinds, obey
        self.ours, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("fork").Process(target=self.run, args=[theirs])
        self.process.start()

    def counted(self):
        """End; return what was counted, and the longest gaps between two answers with their ends."""
        self.ours.send("end")
        result = self.ours.recv()
        self.process.join()
        return result

    def run(self, pipe):
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        self.poll, self.numbers = select.epoll(), count(1)
        self.clients, self.asked, self.due = {}, {}, {}  # by descriptor; due: when a pausing client asks again
        self.told = {"answers": 0, "failed": [], "closed": 0, "refused": 0, "last": 0.0}
        gaps, last = [(0.0, 0.0)] * 3, time.monotonic()
        for kind, many in self.kinds.items():
            for _ in range(many):
                self.ask(kind)
        while not pipe.poll():
            events = self.poll.poll(0.1)
            now = time.monotonic()
            if events:
                heapq.heappushpop(gaps, (now - last, now))
                last = now
            for fd, _ in events:
                self.hear(fd, now)
            for fd in [fd for fd, due in self.due.items() if due < now]:
                del self.due[fd]
                self.ask("pausing", self.clients[fd])
        pipe.send((self.told, sorted(gaps, reverse=True)))

    def ask(self, kind, client=None):
        try:
            if client is None:
                client = socket.create_connection(self.address)
                self.clients[client.fileno()] = client
                self.poll.register(client, select.EPOLLIN)
            number = next(self.numbers)
            self.asked[client.fileno()] = kind, number
            client.send(REQUEST % (kind.encode(), number, b"close" if kind == "closing" else b"keep-alive"))
        except ConnectionRefusedError:
            self.told["refused"] += 1
        except OSError:
            pass  # it is heard of

    def leave(self, fd):
        self.due.pop(fd, None)
        self.clients.pop(fd).close()

    def hear(self, fd, now):
        kind, number = self.asked[fd]
        try:
            answer = self.clients[fd].recv(4000)
        except OSError:
            answer = b""
        if answer.startswith(b"HTTP/1.1 200 OK"):
            self.told["answers"] += 1
            self.told["last"] = now
        elif fd in self.due:
            self.told["closed"] += 1
        else:
            self.told["failed"].append(f"/{kind}/{number}")
        told_to_close = kind != "closing" and b"\r\nConnection: close\r\n" in answer
        if kind == "closing" or told_to_close or not answer:
            self.told["closed"] += told_to_close
            self.leave(fd)
            if not (told_to_close and self.obey):
                self.ask(kind)
        elif kind == "pausing":
            self.due[fd] = now + PAUSE
        else:
            self.ask(kind, self.clients[fd])


class Served:
    """A server whose code may change under its feet, and its records."""

    def __init__(self, folder, options, launcher=()):
        self.folder, self.module, self.port, self.version = folder, folder / "shop.py", lab.free_port(), 1
        self.write(self.good())
        self.log = folder / "log"
        bind = [] if launcher else ["--bind", f"127.0.0.1:{self.port}"]
        command = [sys.executable, "-m", "prefork", "shop:app", *bind, *options.split(), "--log-format", "json"]
        launcher = [word.format(port=self.port) for word in launcher]
        paths = {"PYTHONPATH": f"{folder}:{HERE.parent}", "PYTHONDONTWRITEBYTECODE": "1"}
        with self.log.open("a") as log:
            self.proc = subprocess.Popen([*launcher, *command], env={**os.environ, **paths}, stderr=log, cwd=folder)
        self.until("pool.ready")

    def good(self):
        return APP.format(version=self.version)

    def write(self, code):
        self.module.write_text(code)

    def lines(self):
        """What was written so far, but for a line that is being written."""
        return [line for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def records(self, *events):
        found = [json.loads(line) for line in self.lines() if line.startswith("{")]
        return [record for record in found if record["event"] in events]

    def until(self, *events, before=0):
        while len(found := self.records(*events)) <= before:
            time.sleep(0.02)
        return found[-1]

    def until_it_says(self, words):
        before = sum(words in line for line in self.lines())
        while sum(words in line for line in self.lines()) == before:
            time.sleep(0.02)

    def workers(self):
        gone = {record["child_pid"] for record in self.records("worker.exited")}
        return [pid for record in self.records("worker.ready") if (pid := record["child_pid"]) not in gone]

    def serves(self):
        """Return the version that a new client gets."""
        with socket.create_connection(("127.0.0.1", self.port)) as client:
            client.sendall(REQUEST % (b"closing", 0, b"close"))
            return client.makefile("rb").read().rpartition(b" ")[2].decode()

    def stop(self):
        self.proc.terminate()
        return self.proc.wait()


@contextlib.contextmanager
def served(options, launcher=()):
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server = Served(Path(folder), options, launcher)
        try:
            yield server
        finally:
            server.proc.kill()


missed = []


def tell(name, told, *more, right=True):
    """Print what clients have counted; nothing may have failed, and what else there is to count must be ``right``."""
    failed = len(told["failed"])
    print(
        f"{name}: {told['answers']:,} answers, {failed} failed, {told['closed']} closed, {told['refused']} refused",
        *more,
    )
    if failed or told["closed"] or told["refused"] or not right:
        missed.append(name)


def tell_gaps(gaps, done):
    for length, at in gaps:
        when, what = max(mark for mark in [(0.0, "start"), *done] if mark[0] <= at)
        print(f"    no answer for {length * 1000:.1f} ms, {at - when:.2f} s after {what}")


def budget(args):
    """Each worker serves 20 requests."""
    for workers in (2, 10):
        with served(f"-w {workers} --max-reqs-per-child 20") as server:
            began = time.monotonic()
            clients = Clients(server.port, steady=64)
            while sum(record["requests"] for record in server.records("worker.exited")) < args.requests:
                time.sleep(1)
            told, _ = clients.counted()
            took = time.monotonic() - began
            status = server.stop()
            more = f"by {workers} workers at a time in {took:.0f} s, exit status {status}"
            tell("budget", told, more, right=not status)


def pauses(args):
    """Each worker serves 50 requests, of clients that pause between theirs."""
    with served("-w 2 --max-reqs-per-child 50") as server:
        clients = Clients(server.port, pausing=60)
        time.sleep(args.seconds)
        told, _ = clients.counted()
        gone = len(server.records("worker.exited"))
        status = server.stop()
        tell("pauses", told, f"{gone} workers gone, exit status {status}", right=not status)


def deploys(args):
    """Deploys by HUP, each fifth of code that is broken in another way, and as many recycles by USR2."""
    done, wrong, broken, workers = [], [], cycle(BROKEN.items()), 2
    options = f"-w {workers} --max-reqs-per-child 0 --boot-timeout 2 --deploy-probe /closing/0"
    with served(options) as server:
        clients = Clients(server.port, steady=64, pausing=60, closing=1)
        time.sleep(1)
        for number in range(1, args.deploys + 1):
            good = number % 5 > 0
            server.version += good
            name, code = ("good", server.good()) if good else next(broken)
            events = "pool.deployed", "pool.deploy_failed"
            before = len(server.records(*events))
            server.write(code)
            done.append((time.monotonic(), f"deploy {number} ({name})"))
            server.proc.send_signal(signal.SIGHUP)
            if (server.until(*events, before=before)["event"] == events[0]) != good:
                wrong.append(f"deploy {number} ({name}) went the other way")
            time.sleep(0.3)
            if (version := server.serves()) != str(server.version):
                wrong.append(f"after deploy {number} ({name}) version {version} serves, not {server.version}")
        for number in range(1, args.deploys + 1):
            before = len(server.records("worker.exited"))
            done.append((time.monotonic(), f"recycle {number}"))
            server.proc.send_signal(signal.SIGUSR2)
            server.until("worker.exited", before=before + workers - 1)
            time.sleep(0.1)
        told, gaps = clients.counted()
        status = server.stop()
        tell("deploys", told, f"exit status {status}", *wrong, right=not (status or wrong))
        tell_gaps(gaps, done)


def starter(args):
    """Deploys with start_server, each fourth of code that fails to boot until it is put right."""
    if (program := shutil.which("start_server")) is None:
        sys.exit("starter needs start_server: apt-get install libserver-starter-perl")
    wrong, many = [], 20
    with served(
        "-w 2 --max-reqs-per-child 0", [program, "--port", "127.0.0.1:{port}", "--interval", "1", "--"]
    ) as server:
        clients = Clients(server.port, steady=64, pausing=60, closing=1)
        for number in range(1, many + 1):
            before = len(server.records("pool.stopped"))
            server.version += 1
            if number % 4 == 0:
                server.write(BROKEN["import"])
                server.proc.send_signal(signal.SIGHUP)
                server.until_it_says("failed to start")
                before = len(server.records("pool.stopped"))
                server.write(server.good())
            else:
                server.write(server.good())
                server.proc.send_signal(signal.SIGHUP)
            server.until("pool.stopped", before=before)
            if (version := server.serves()) != str(server.version):
                wrong.append(f"after deploy {number} version {version} serves, not {server.version}")
        told, _ = clients.counted()
        tell("starter", told, f"exit status {server.stop()}", *wrong, right=not wrong)


def kills(args):
    """Each second a worker is killed."""
    with served("-w 4 --max-reqs-per-child 0") as server:
        clients = Clients(server.port, slow=16, pausing=60)
        killed = set()
        for _ in range(args.seconds):
            time.sleep(1)
            os.kill(worker := random.choice(server.workers()), signal.SIGKILL)
            killed.add(worker)
        time.sleep(1)
        told, _ = clients.counted()
        exited = [record for record in server.records("worker.exited") if record["child_pid"] in killed]
        status = server.stop()
        words = [line.split() for line in server.lines() if line.startswith(("in ", "out "))]
        begun, ended = ({path for word, path in words if word == which} for which in ("in", "out"))
        named = {lost["path"] for record in exited for lost in record.get("requests_lost", ())}
        held = len(named) + sum(record.get("connections_lost", 0) for record in exited)
        right = not status and len(exited) == len(killed) and begun - ended <= named
        failed, idle = told["failed"], told["closed"]
        # Of what is named some were answered just then, and their connections ended while they were idle.
        right = right and len(failed) + idle <= held and set(failed) <= named | (set(failed) - begun)
        told = {**told, "failed": [], "closed": 0}
        more = f"{len(failed)} requests failed, {idle} idle connections ended, "
        tell("kills", told, f"{more}{len(exited)} of {len(killed)} workers killed, exit status {status}", right=right)
        print(
            f"    {len(begun - ended)} requests begun and not ended, of which {len((begun - ended) & named)} are named; "
            f"{len(named)} named, of which {len(named - set(failed))} were answered; connections lost by the "
            f"records {held}"
        )


def term(args):
    """The pool is told to stop under load, while 24 more clients wait to be accepted with their requests."""
    for _ in range(10):
        with served("-w 2 --max-reqs-per-child 0") as server:
            clients = Clients(server.port, obey=True, slow=16)
            time.sleep(0.5)
            for worker in (workers := server.workers()):
                os.kill(worker, signal.SIGSTOP)
            waiting = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(24)]
            for client in waiting:
                client.sendall(REQUEST % (b"closing", 0, b"close"))
            server.proc.terminate()
            time.sleep(0.2)
            for worker in workers:
                os.kill(worker, signal.SIGCONT)
            good = sum(client.recv(4000).startswith(b"HTTP/1.1 200 OK") for client in waiting)
            answered = time.monotonic()
            status = server.proc.wait()
            gone = time.monotonic()
            told, _ = clients.counted()
            told["closed"] = 0  # they were told so
            after = 1000 * (gone - max(answered, told["last"]))
            tell(
                "term",
                told,
                f"{good} of {len(waiting)} answered, exit status {status} {after:.0f} ms after the last answer",
                right=good == len(waiting) and not status,
            )


def rolls(args):
    """A balancer hears late of a stop, and goes on sending for five seconds."""
    for _ in range(20):
        with served("-w 2 --max-reqs-per-child 0 --stop-delay 6") as server:
            clients = Clients(server.port, steady=16, closing=4)
            time.sleep(0.5)
            server.proc.terminate()
            time.sleep(5)
            told, _ = clients.counted()
            told["closed"] = 0  # each answer says so, and the balancer comes again
            status = server.proc.wait()
            tell("rolls", told, f"exit status {status}", right=not status)


SUITES = {suite.__name__: suite for suite in (budget, pauses, deploys, starter, kills, term, rolls)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", choices=[*SUITES, []], metavar="suite", help=", ".join(SUITES))
    parser.add_argument("--requests", type=int, default=200_000, help="of budget, for each number of workers")
    parser.add_argument("--deploys", type=int, default=50, help="of deploys, and as many recycles")
    parser.add_argument("--seconds", type=int, default=60, help="of pauses and of kills")
    args = parser.parse_args()
    for name in args.suites or SUITES:
        SUITES[name](args)
    sys.exit(f"missed: {', '.join(missed)}" if missed else 0)


main()
