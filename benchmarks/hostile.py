"""What do clients that are slow, many, large or too fast cost the others?

    python benchmarks/hostile.py slow        # 500 slow heads, 500 slow bodies, 500 slow readers, and 8 good clients
    python benchmarks/hostile.py idle        # 5,000 idle connections of one worker
    python benchmarks/hostile.py transfer    # 1 GB up, 1 GB down: the worker's memory meanwhile
    python benchmarks/hostile.py overload    # three times as many requests as can be served, for 30 s
    python benchmarks/hostile.py crowd       # more silent clients than descriptors, and one that asks

Each starts `prefork` of the environment whose `python` runs it, with one worker. Linux, loopback only. `--scale 0.1` makes
all of it smaller; what follows `--` goes to prefork.
"""

import argparse
import asyncio
import multiprocessing
import os
import resource
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter, deque

import lab

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
MIB = 1024 * 1024


class Server:
    """prefork with the app of this kit, and one worker."""

    def __init__(self, *options, nofile=None):
        self.port = lab.free_port()
        self.log = open("/tmp/hostile-server.log", "w")
        command = [sys.executable, "-m", "prefork", "hostile_app:app", "--bind", f"127.0.0.1:{self.port}"]
        command += ["--max-workers", "1", "--max-reqs-per-child", "0", "--log-format", "json", *options, *MORE]
        limit = (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))) if nofile else None
        self.proc = subprocess.Popen(
            command,
            stdout=self.log,
            stderr=self.log,
            cwd=lab.APPS,
            env=dict(os.environ, PYTHONPATH=os.path.dirname(lab.HERE)),
            preexec_fn=limit,
            start_new_session=True,
        )

    def __enter__(self):
        while True:
            try:
                with self.connect() as client:
                    ask(client)
                break
            except OSError:
                if self.proc.poll() is not None:
                    sys.exit(open(self.log.name).read())
                time.sleep(0.05)
        self.worker = max(lab.tree(self.proc.pid))
        return self

    def __exit__(self, *exc):
        self.proc.terminate()
        try:
            self.proc.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.proc.pid, signal.SIGKILL)

    def connect(self, buffer=None):
        client = socket.socket()
        if buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        client.settimeout(30)
        client.connect(("127.0.0.1", self.port))
        return client

    def memory(self):
        """Pss and private memory of the worker, in KiB."""
        return [1024 * value for value in lab.memory(self.worker)]

    def cpu(self):
        return lab.tree_cpu(self.proc.pid)

    def records(self, name):
        return [line for line in open(self.log.name) if f'"event": "{name}"' in line]


def ask(client, request=REQUEST):
    """Ask, and return the status of the answer, which is read whole."""
    client.sendall(request)
    data = b""
    while b"\r\n\r\n" not in data:
        piece = client.recv(65536)
        if not piece:
            raise OSError("closed")
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
    while len(body) < length:
        piece = client.recv(65536)
        if not piece:
            raise OSError("cut")
        body += piece
    return int(head.split()[1])


def percentile(values, p):
    return sorted(values)[min(len(values) - 1, int(len(values) * p / 100))] * 1000


# ---------------------------------------------------------------- slow


def good_clients(port, seconds, pipe):
    """Eight clients, each with a connection of its own, that ask every 10 ms; all latencies."""
    latencies, lost = [], []

    def run():
        client = socket.create_connection(("127.0.0.1", port), 30)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.perf_counter()
            try:
                assert ask(client) == 200
            except (OSError, AssertionError) as error:
                lost.append(repr(error))
                client = socket.create_connection(("127.0.0.1", port), 30)
            latencies.append(time.perf_counter() - began)
            time.sleep(0.01)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pipe.send((latencies, lost))


def slow_clients(port, count, seconds, pipe):
    """Clients of three kinds, that send or take a little every second; what became of them."""
    selector = selectors.DefaultSelector()
    clients = {}
    heads = {
        "head": b"GET / HTTP/1.1\r\nHost: a\r\nX: ",
        "body": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n",
        "reader": b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n",
    }
    for number in range(3 * count):
        kind = list(heads)[number % 3]
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)  # not 65,483, with which the kernel buffers 3 MB
        client.connect(("127.0.0.1", port))
        client.sendall(heads[kind])
        client.setblocking(False)
        clients[client] = (kind, time.monotonic())
        if kind != "reader":
            selector.register(client, selectors.EVENT_READ)
    for client, (kind, _) in clients.items():
        if kind == "reader":
            client.setblocking(True)
            client.recv(1)  # its answer has begun
            client.setblocking(False)
    pipe.send("there")
    ends = Counter()
    lasted = []
    end = time.monotonic() + seconds
    turns = deque(clients)
    while time.monotonic() < end and clients:
        for key, _ in selector.select(0.001):
            client = key.fileobj
            kind, since = clients.pop(client)
            selector.unregister(client)
            try:
                said = client.recv(4096)
            except OSError:
                said = b""
            ends[kind, said[9:12].decode() or "cut"] += 1
            lasted.append(time.monotonic() - since)
            client.close()
        for _ in range(max(1, 3 * count // 1000)):  # each once a second or so
            client = turns[0]
            turns.rotate(-1)
            if client not in clients:
                continue
            kind, since = clients[client]
            try:
                if kind == "reader":
                    if not client.recv(100):
                        raise OSError
                else:
                    client.send(b"x")
            except BlockingIOError:
                pass
            except OSError:
                if kind == "reader":
                    clients.pop(client)
                    ends[kind, "cut"] += 1
                    lasted.append(time.monotonic() - since)
    for client, (kind, _) in clients.items():
        client.settimeout(0.001)
        try:
            while client.recv(65536):
                pass
            ends[kind, "cut"] += 1
        except TimeoutError:
            ends[kind, "still there"] += 1
        except OSError:
            ends[kind, "reset"] += 1
    pipe.send((ends, lasted))


def in_process(function, *arguments):
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=function, args=(*arguments, theirs))
    process.start()
    return ours


def slow(scale):
    count, seconds = int(500 * scale), 10
    options = ["--head-timeout", "5", "--body-timeout", "5", "--write-timeout", "5"]
    table = []
    for _ in range(3):
        with Server(*options, nofile=8000) as server:
            cpu = server.cpu()
            alone, lost = in_process(good_clients, server.port, 5).recv()
            cpu, before = (server.cpu() - cpu) / 5, server.memory()
            bad = in_process(slow_clients, server.port, count, seconds + 5)
            bad.recv()
            beside_cpu = server.cpu()
            beside, lost_beside = in_process(good_clients, server.port, seconds).recv()
            beside_cpu = (server.cpu() - beside_cpu) / seconds
            memory = server.memory()
            ends, lasted = bad.recv()
            table.append((percentile(alone, 99), percentile(beside, 99)))
            print(
                f"good clients alone: p50 {percentile(alone, 50):.2f} p99 {percentile(alone, 99):.2f} ms, lost {len(lost)}; "
                f"beside {3 * count} slow ones: p50 {percentile(beside, 50):.2f} p99 {percentile(beside, 99):.2f} ms, "
                f"lost {len(lost_beside)}; CPU {cpu:.3f} and {beside_cpu:.3f} s/s; Pss {before[0] / 1024:.1f} and {memory[0] / 1024:.1f} MiB"
            )
            print("  ", ", ".join(f"{kind} {how}: {n}" for (kind, how), n in sorted(ends.items())), end="; ")
            print(f"they lasted {min(lasted, default=0):.1f} to {max(lasted, default=0):.1f} s")
    ratio = statistics.median(b / a for a, b in table)
    print(f"p99 beside slow clients / alone, median of {len(table)}: {ratio:.2f}")


# ---------------------------------------------------------------- idle


def idle(scale):
    count = int(5000 * scale)
    with Server(nofile=20000) as server:
        for _ in range(2000):
            with server.connect() as client:
                ask(client)
        before = server.memory()
        clients = [server.connect() for _ in range(count)]
        assert {ask(client) for client in clients} == {200}
        time.sleep(0.5)
        after = server.memory()
        began = time.monotonic()
        answered = sum(ask(client) == 200 for client in clients)
        took = time.monotonic() - began
        with server.connect() as client:
            latencies = []
            for _ in range(1000):
                start = time.perf_counter()
                ask(client)
                latencies.append(time.perf_counter() - start)
        for client in clients:
            client.close()
        time.sleep(1)
        left = server.memory()
    print(
        f"{count} idle connections: Pss +{(after[0] - before[0]) / count:.2f} KiB, private +{(after[1] - before[1]) / count:.2f} KiB "
        f"each; all {answered} served again in {took:.2f} s; another client beside them p50 {percentile(latencies, 50):.2f} "
        f"p99 {percentile(latencies, 99):.2f} ms; left when they are gone: private +{(left[1] - before[1]) / count:.2f} KiB each"
    )


# ---------------------------------------------------------------- transfer


class Watch:
    """The most memory of a process within the block, above that at its beginning, in KiB."""

    def __init__(self, server):
        self.server, self.done = server, False

    def __enter__(self):
        self.before, self.most = self.server.memory(), [0, 0]
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        self.began, self.cpu = time.monotonic(), self.server.cpu()
        return self

    def look(self):
        while not self.done:
            self.most = [max(pair) for pair in zip(self.most, self.server.memory())]
            time.sleep(0.02)

    def __exit__(self, *exc):
        self.took, self.cpu = time.monotonic() - self.began, self.server.cpu() - self.cpu
        self.done = True
        self.thread.join()

    def __str__(self):
        more = [most - before for most, before in zip(self.most, self.before)]
        return f"{self.took:.1f} s, CPU {self.cpu:.2f} s, memory at most Pss +{more[0]:.0f} KiB, private +{more[1]:.0f} KiB"


def receive_all(client, pause=0.0):
    size, buffer = 0, bytearray(MIB)
    while got := client.recv_into(buffer):
        size += got
        if pause:
            time.sleep(pause)
    return size


def transfer(scale):
    size = int(1_000_000_000 * scale)
    with Server("--spool-dir", "/var/tmp", "--max-body-size", "2G") as server:
        for what, length, wrap in (
            ("up, Content-Length", f"Content-Length: {size}", False),
            ("up, chunked", "Transfer-Encoding: chunked", True),
        ):
            with server.connect() as client, Watch(server) as watch:
                client.settimeout(120)
                client.sendall(f"POST / HTTP/1.1\r\nHost: a\r\n{length}\r\n\r\n".encode())
                piece, left = b"x" * MIB, size
                while left:
                    part = piece[: min(left, MIB)]
                    client.sendall(b"%x\r\n%b\r\n" % (len(part), part) if wrap else part)
                    left -= len(part)
                if wrap:
                    client.sendall(b"0\r\n\r\n")
                assert client.recv(65536).endswith(b"\r\n\r\n%d" % size)
            print(f"{what}: {watch}")
        for what, path, pause in (
            ("down, file_wrapper", "/file", 0),
            ("down, generator", "/stream", 0),
            ("down, generator, slow reader", "/stream", 0.005),
        ):
            with server.connect() as client, Watch(server) as watch:
                client.settimeout(120)
                client.sendall(f"GET {path}?{size} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
                got = receive_all(client, pause)
                assert got >= size - 65536, got
            print(f"{what}: {watch}")


# ---------------------------------------------------------------- overload


async def ask_async(connections, port, path, patience):
    """Ask on a connection that is free, or on a new one; return status and seconds, status 0 if the client gave up."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(patience):
            if connections:
                reader, writer = connections.pop()
            else:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path)
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
                connections.append((reader, writer))
                return int(head.split()[1]), time.monotonic() - began
            except BaseException:
                writer.close()
                raise
    except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
        return type(error).__name__, time.monotonic() - began


async def offer(connections, port, path, rate, seconds, patience):
    """Ask at a rate, whatever comes back; return (when, status, seconds) of each."""
    loop, tasks, results = asyncio.get_running_loop(), set(), []
    began = time.monotonic()

    async def one(when):
        status, took = await ask_async(connections, port, path, patience)
        results.append((when - began, status, took))

    sent = 0
    while (now := time.monotonic()) < began + seconds:
        while sent < (now - began) * rate:
            task = loop.create_task(one(now))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            sent += 1
        await asyncio.sleep(0.002)
    return results, tasks


async def closed_loop(port, path, clients, seconds):
    """Return how many requests a second so many clients get answered that ask one after the other."""
    end, count = time.monotonic() + seconds, 0

    async def run():
        nonlocal count
        connections = []
        while time.monotonic() < end:
            assert (await ask_async(connections, port, path, 30))[0] == 200
            count += 1
        connections[0][1].close()

    await asyncio.gather(*(run() for _ in range(clients)))
    return count / seconds


async def measure_overload(server, path, seconds, patience):
    cpu = server.cpu()
    capacity = await closed_loop(server.port, path, 8, 5)
    alone = (server.cpu() - cpu) / (5 * capacity)
    connections, cpu = [], server.cpu()
    results, tasks = await offer(connections, server.port, path, 3 * capacity, seconds, patience)
    cpu = server.cpu() - cpu
    quiet, rest = await offer(connections, server.port, path, capacity / 3, 5, patience)
    await asyncio.gather(*tasks, *rest)
    goodput = sum(status == 200 for _, status, _ in results) / seconds
    taken = [took for _, status, took in results if status == 200]
    late = [when for when, status, took in quiet if status != 200 or took > 0.25]
    recovered = max(late, default=0.0)
    statuses = Counter(status for _, status, _ in results)
    shed = [took for _, status, took in results if status == 503]
    for _, writer in connections:
        writer.close()
    good = goodput * seconds * alone / cpu
    print(
        f"{path.decode()}: capacity {capacity:.0f}/s, offered {3 * capacity:.0f}/s for {seconds:.0f} s by clients that wait "
        f"{patience:g} s: {goodput:.0f} good answers a second = {goodput / capacity:.1%}, and {good:.1%} of what the CPU "
        f"that was used could have given ({alone * 1000:.1f} ms each); their p50 "
        f"{percentile(taken or [0], 50):.0f} p99 {percentile(taken or [0], 99):.0f} ms; "
        f"503 after p50 {percentile(shed or [0], 50):.0f} ms; {dict(statuses)}; "
        f"all well again {recovered:.2f} s behind the end"
    )


def overload(scale):
    seconds = 30 * scale
    for path, options in ((b"/work?5", ["--threads", "4"]), (b"/wait?20", ["--threads", "4"])):
        for queue in (["--queue-timeout", "0.5"], []):
            print("with" if queue else "without", "queue_timeout", end=": ", flush=True)
            with Server(*options, *queue, nofile=20000) as server:
                asyncio.run(measure_overload(server, path, seconds, 2.0))
                for line in server.records("worker.overloaded")[:2]:
                    print("  ", line.strip()[:300])


# ---------------------------------------------------------------- crowd


def crowd(scale):
    del scale
    with Server(nofile=1024) as server:
        silent, began = [], time.monotonic()
        for _ in range(3000):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", server.port))
            silent.append(client)
        cpu, waits = server.cpu(), []
        for _ in range(5):
            start = time.monotonic()
            with server.connect() as client:
                ask(client)
            waits.append(time.monotonic() - start)
        used = server.cpu() - cpu
        for client in silent:
            client.close()
    print(
        f"3,000 silent clients, 1,024 descriptors: others served after {', '.join(f'{wait:.2f}' for wait in waits)} s, one "
        f"after the other; CPU {used:.2f} s in {time.monotonic() - began:.1f} s; "
        f"{len(server.records('pool.accept_paused'))} records of a pause"
    )


PARTS = {"slow": slow, "idle": idle, "transfer": transfer, "overload": overload, "crowd": crowd}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS, nargs="+")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("more", nargs="*", help=argparse.SUPPRESS)
    arguments = sys.argv[1:]
    MORE = arguments[arguments.index("--") + 1 :] if "--" in arguments else []
    asked = parser.parse_args(arguments[: len(arguments) - len(MORE) - 1] if MORE else arguments)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20000), hard))
    for name in asked.part:
        PARTS[name](asked.scale)
