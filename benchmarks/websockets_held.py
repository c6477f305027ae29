"""What does an open WebSocket cost in memory, and a message in CPU time, beside uvicorn?

    python benchmarks/websockets_held.py [connections] [rounds]

One worker of each server holds so many WebSockets, all with an application that sends back what it gets. Memory is the
growth of the worker's Pss; then, in rounds one server after the other, each connection has one message of 64 bytes under way,
for two seconds. The servers run on the first CPU, the client on the second. The peer is uvicorn, with each
of the libraries that it can speak by.
"""

import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

HELD = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
ROUNDS = int(sys.argv[2]) if len(sys.argv) > 2 else 5
SECONDS = 2.0
APPS = Path(__file__).parent / "apps"
TICKS = os.sysconf("SC_CLK_TCK")
PREFORK = "-P -m prefork raw_websocket:echo --app-dir {apps} -w 1 --max-reqs-per-child 0 -b 127.0.0.1:{port} --websocket-ping-interval 0"
UVICORN = "-m uvicorn raw_websocket:echo --app-dir {apps} --port {port} --log-level warning --ws-ping-interval 3600 --loop uvloop --http httptools --ws {ws}"
SERVERS = {
    "prefork": PREFORK,
    "uvicorn-websockets": UVICORN.replace("{ws}", "websockets"),
    "uvicorn-websockets-sansio": UVICORN.replace("{ws}", "websockets-sansio"),
    "uvicorn-wsproto": UVICORN.replace("{ws}", "wsproto"),
}
HANDSHAKE = (
    b"GET /echo HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench\r\nAccept: */*\r\nOrigin: http://127.0.0.1\r\n"
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
KEY = b"\x21\x43\x65\x87"
PAYLOAD = b"m" * 64
FRAME = b"\x81\xc0" + KEY + bytes(byte ^ KEY[at % 4] for at, byte in enumerate(PAYLOAD))
ANSWER = b"\x81\x40" + PAYLOAD


class Server:
    def __init__(self, name, port):
        self.name = name
        self.address = ("127.0.0.1", port)
        command = SERVERS[name].format(apps=APPS, port=port)
        self.process = subprocess.Popen(["taskset", "-c", "0", sys.executable, *command.split()])
        while True:
            try:
                socket.create_connection(self.address).close()
                break
            except OSError:
                time.sleep(0.1)
        self.open(1)[0].close()  # what is loaded at the first one is not of those that are counted
        time.sleep(0.5)
        self.pids = [self.process.pid, *self.children(self.process.pid)]

    def children(self, pid):
        found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return [*found, *(one for child in found for one in self.children(child))]

    def pss(self):
        return sum(
            int(line.split()[1])
            for pid in self.pids
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            if line.startswith("Pss:")
        )

    def cpu(self):
        fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self.pids]
        return sum(int(field[11]) + int(field[12]) for field in fields) / TICKS

    def open(self, count):
        opened = []
        for _ in range(count):
            connection = socket.create_connection(self.address)
            connection.sendall(HANDSHAKE)
            said = b""
            while b"\r\n\r\n" not in said:
                said += connection.recv(4096)
            assert said.startswith(b"HTTP/1.1 101"), said
            opened.append(connection)
        return opened


def echo(connections, seconds):
    """Keep a message under way on each connection; return how many came back."""
    poll = select.epoll()
    by_fd = {}
    for connection in connections:
        by_fd[connection.fileno()] = connection
        poll.register(connection, select.EPOLLIN)
        connection.send(FRAME)
    came, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        for fd, _ in poll.poll(1):
            answer = by_fd[fd].recv(4096)
            assert answer == ANSWER, answer
            came += 1
            by_fd[fd].send(FRAME)
    for connection in connections:
        assert connection.recv(4096) == ANSWER
    poll.close()
    return came


def main():
    os.sched_setaffinity(0, {1})
    servers = [Server(name, 48200 + place) for place, name in enumerate(SERVERS)]
    try:
        held, settled, total = {}, {}, dict.fromkeys(SERVERS, 0)
        for server in servers:
            before = server.pss()
            connections = held[server.name] = server.open(HELD)
            echo(connections, 0.5)
            after = settled[server.name] = server.pss()
            print(
                f"{server.name}: {(after - before) / HELD:.1f} KiB for each of {HELD}",
                flush=True,
            )
        rates = {name: [] for name in SERVERS}
        costs = {name: [] for name in SERVERS}
        for _ in range(ROUNDS):
            for server in servers:
                cpu, start = server.cpu(), time.perf_counter()
                came = echo(held[server.name], SECONDS)
                total[server.name] += came
                rates[server.name].append(came / (time.perf_counter() - start))
                costs[server.name].append((server.cpu() - cpu) / came * 1e6)
        for server in servers:
            rate, cost = statistics.median(rates[server.name]), statistics.median(costs[server.name])
            ratios = [ours / theirs for ours, theirs in zip(costs["prefork"], costs[server.name])]
            print(
                f"{server.name}: {rate:,.0f} messages/s, {cost:.1f} us CPU each, "
                f"prefork takes {min(ratios):.2f} to {max(ratios):.2f} of that; "
                f"Pss grew by {server.pss() - settled[server.name]:,} KiB in {total[server.name]:,} messages"
            )
    finally:
        for server in servers:
            server.process.send_signal(signal.SIGTERM)
            server.process.wait()


main()
