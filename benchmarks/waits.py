"""How long do many requests take that all wait for a second, side by side in one worker?

    python benchmarks/waits.py [requests] [rounds]

Each on a connection of its own; all are opened, then asked on one after the other. The server runs on the first CPU, the
client on the second. Linux, loopback only.
"""

import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

import lab

MANY = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
ROUNDS = int(sys.argv[2]) if len(sys.argv) > 2 else 5
HERE = Path(__file__).parent
ADDRESS = ("127.0.0.1", lab.free_port())
COMMAND = "-m prefork raw_asgi:wait -w 1 --max-reqs-per-child 0 --log-level warning -b {}:{} --async-backend"


def ask_all():
    """Ask so many times at once; print what took how long."""
    began = time.perf_counter()
    clients = [socket.create_connection(ADDRESS) for _ in range(MANY)]
    connected = time.perf_counter()
    answers, asked = select.epoll(), {}
    for client in clients:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        asked[client.fileno()] = time.perf_counter()
        answers.register(client, select.EPOLLIN)
    sent = time.perf_counter()
    took = []
    while len(took) < MANY:
        for fd, _ in answers.poll():
            answers.unregister(fd)
            took.append(time.perf_counter() - asked[fd])
    ended = time.perf_counter()
    assert all(client.recv(1000).startswith(b"HTTP/1.1 200 OK") for client in clients)
    for client in clients:
        client.close()
    print(
        f"all within {ended - began:.3f} s: connecting {connected - began:.3f}, asking {sent - connected:.3f}, "
        f"from the first question to the last answer {ended - connected:.3f}; the slowest answer {max(took):.3f}",
        flush=True,
    )


def main():
    for backend in ("uvloop", "asyncio", "trio"):
        print(backend)
        command = ["taskset", "-c", "0", sys.executable, *COMMAND.format(*ADDRESS).split(), backend]
        path = os.pathsep.join([str(HERE / "apps"), str(HERE.parent)])
        server = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})
        os.sched_setaffinity(0, {1})
        while True:
            try:
                socket.create_connection(ADDRESS).close()
                break
            except OSError:
                time.sleep(0.1)
        for _ in range(ROUNDS):
            ask_all()
        server.terminate()
        server.wait()


main()
