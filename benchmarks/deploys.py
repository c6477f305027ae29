"""Is anything lost while the server is deployed again and again, and for how long does nobody get an answer?

    python benchmarks/deploys.py [deploys] [clients]

Clients that ask on kept connections without a pause, others that pause for 2.5 s, and one that opens a connection for each
request; meanwhile so many deploys by HUP, each fifth of code that is broken in another way, and as many recycles by USR2.
Server and clients share all CPUs; as root, the clients come first, so that a gap is the server's. Linux, loopback only.
"""

import contextlib
import heapq
import json
import multiprocessing
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path

import lab

DEPLOYS = int(sys.argv[1]) if len(sys.argv) > 1 else 50
CLIENTS = int(sys.argv[2]) if len(sys.argv) > 2 else 64
PAUSING = 60
PAUSE = 2.5
WORKERS = 2
OPTIONS = f"-w {WORKERS} --max-reqs-per-child 0 --boot-timeout 2 --deploy-probe / --log-format json --log-level info"
APP = """
from flask import Flask
app = Flask(__name__)

@app.route("/")
def hello():
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
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: %s\r\n\r\n"


class Clients:
    """All clients, in one process: `run` asks until the pipe says to end, and sends what it counted."""

    def __init__(self, port):
        self.address = ("127.0.0.1", port)
        self.poll = select.epoll()
        self.clients, self.kinds, self.due = {}, {}, {}  # by descriptor; due: when a pausing client asks again
        self.told = {"answers": 0, "failed": 0, "closed": 0}
        self.gaps = [(0.0, 0.0)] * 3

    def ask(self, kind, client=None):
        if client is None:
            client = socket.create_connection(self.address)
            self.clients[client.fileno()], self.kinds[client.fileno()] = client, kind
            self.poll.register(client, select.EPOLLIN)
        client.send(REQUEST % (b"close" if kind == "closing" else b"keep-alive"))

    def leave(self, fd):
        self.due.pop(fd, None)
        self.clients.pop(fd).close()
        return self.kinds.pop(fd)

    def hear(self, fd, now):
        kind, told = self.kinds[fd], self.told
        try:
            answer = self.clients[fd].recv(4000)
        except OSError:
            answer = b""
        if not answer.startswith(b"HTTP/1.1 200 OK"):
            told["closed" if fd in self.due else "failed"] += 1
            return self.ask(self.leave(fd))
        told["answers"] += 1
        if kind == "closing":
            return self.ask(self.leave(fd))
        if kind == "pausing":
            self.due[fd] = now + PAUSE
            return None
        return self.ask(kind, self.clients[fd])

    def run(self, pipe):
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        for kind, many in (("steady", CLIENTS), ("pausing", PAUSING), ("closing", 1)):
            for _ in range(many):
                self.ask(kind)
        last = time.monotonic()
        while not pipe.poll():
            events = self.poll.poll(0.1)
            now = time.monotonic()
            if events:
                heapq.heappushpop(self.gaps, (now - last, now))
                last = now
            for fd, _ in events:
                self.hear(fd, now)
            for fd in [fd for fd, due in self.due.items() if due < now]:
                del self.due[fd]
                self.ask("pausing", self.clients[fd])
        pipe.send((self.told, sorted(self.gaps, reverse=True)))


class Deployed:
    """A server whose code changes under its feet, and its records."""

    def __init__(self, folder):
        self.module, self.port = folder / "shop.py", lab.free_port()
        self.module.write_text(APP.format(version=1))
        self.log = open(folder / "log", "a+")
        command = [sys.executable, "-m", "prefork", "shop:app", *OPTIONS.split(), "-b", f"127.0.0.1:{self.port}"]
        here = {"PYTHONPATH": f"{folder}:{Path(__file__).parent.parent}", "PYTHONDONTWRITEBYTECODE": "1"}
        self.proc = subprocess.Popen(command, env={**os.environ, **here}, stderr=self.log, cwd=folder)
        self.until("pool.ready")

    def records(self, *events):
        self.log.seek(0)
        return [r for line in self.log if line.endswith("\n") and (r := json.loads(line))["event"] in events]

    def until(self, *events, before=0):
        while len(found := self.records(*events)) <= before:
            time.sleep(0.02)
        return found[-1]

    def deploy(self, code):
        """Deploy and wait; return whether the server says that it did."""
        events = "pool.deployed", "pool.deploy_failed"
        before = len(self.records(*events))
        self.module.write_text(code)
        self.proc.send_signal(signal.SIGHUP)
        return self.until(*events, before=before)["event"] == "pool.deployed"

    def serves(self):
        """Return the version that a new client gets, by now."""
        with socket.create_connection(("127.0.0.1", self.port)) as client:
            client.sendall(REQUEST % b"close")
            return client.makefile("rb").read().rpartition(b" ")[2].decode()

    def recycle(self):
        before = len(self.records("worker.exited"))
        self.proc.send_signal(signal.SIGUSR2)
        self.until("worker.exited", before=before + WORKERS - 1)


def strain(server):
    """Deploy and recycle; return when what was done, and what went wrong."""
    done, wrong, broken, version = [], [], cycle(BROKEN.items()), 1
    for number in range(1, DEPLOYS + 1):
        good = number % 5 > 0
        name, code = ("good", APP.format(version=version + 1)) if good else next(broken)
        version += good
        done.append((time.monotonic(), f"deploy {number} ({name})"))
        if server.deploy(code) != good:
            wrong.append(f"deploy {number} ({name}) went the other way")
        time.sleep(0.3)
        if (served := server.serves()) != str(version):
            wrong.append(f"after deploy {number} version {served} serves instead of {version}")
    for number in range(1, DEPLOYS + 1):
        done.append((time.monotonic(), f"recycle {number}"))
        server.recycle()
        time.sleep(0.1)
    return done, wrong


def main():
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server = Deployed(Path(folder))
        ours, theirs = multiprocessing.Pipe()
        clients = multiprocessing.get_context("fork").Process(target=Clients(server.port).run, args=[theirs])
        clients.start()
        time.sleep(1)
        done, wrong = strain(server)
        ours.send("end")
        told, gaps = ours.recv()
        clients.join()
        server.proc.terminate()
        status = server.proc.wait()
    print(", ".join(f"{value:,} {name}" for name, value in told.items()), f"exit status {status}", sep=", ")
    for length, at in gaps:
        when, what = max(mark for mark in [(0.0, "start"), *done] if mark[0] <= at)
        print(f"no answer for {length * 1000:.1f} ms, {at - when:.2f} s after {what}")
    print(*wrong, sep="\n", end="")


main()
