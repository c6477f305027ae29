"""Starting servers, accounting for their processes, and the load: used by bench.py.  Linux, loopback only."""

import asyncio
import glob
import importlib.util
import json
import os
import random
import re
import shlex
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import time
from collections import Counter

HERE = os.path.dirname(os.path.abspath(__file__))
APPS = os.path.join(HERE, "apps")
BIN = os.path.dirname(sys.executable)  # programs come from the virtual environment that runs us
TICK = os.sysconf("SC_CLK_TCK")
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOAD_CORE = CORES[0], CORES[min(1, len(CORES) - 1)]


ANYBODY = ssl.create_default_context()
ANYBODY.check_hostname, ANYBODY.verify_mode = False, ssl.CERT_NONE


def certificate(folder):
    """The paths of a new certificate (ECDSA, P-256) and its key."""
    tls = {"cert": os.path.join(folder, "cert.pem"), "key": os.path.join(folder, "key.pem")}
    kind = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 2 -subj /CN=localhost"
    subprocess.run(
        ["openssl", *kind.split(), "-out", tls["cert"], "-keyout", tls["key"]], check=True, capture_output=True
    )
    return tls


SETTINGS = ("PYTHON", "PIP", "PREFORK_", "FLASK_", "DJANGO_", "GUNICORN_", "GRANIAN_", "UVICORN_", "UWSGI_")


def env(bin_dir=BIN):
    """The caller's environment without anything that would set up a server or an app."""
    e = {k: v for k, v in os.environ.items() if not k.startswith(SETTINGS) and k not in ("PORT", "WEB_CONCURRENCY")}
    return e | {"PYTHONPATH": APPS, "PYTHONDONTWRITEBYTECODE": "1", "PATH": bin_dir + os.pathsep + e.get("PATH", "")}


def compile_ours(bin_dir=BIN):
    """Compile our package, as an installer does with a wheel: in a checkout each start would do so, and leave no trace."""
    code = "import compileall, os, prefork; compileall.compile_dir(os.path.dirname(prefork.__file__), quiet=1)"
    subprocess.run([os.path.join(bin_dir, "python"), "-c", code], env=env(bin_dir), check=True)


def missing(row, bin_dir=BIN):
    """What a server lacks in its virtual environment ("" when it can run)."""
    program = row.cmd.split()[0]
    if not os.access(os.path.join(bin_dir, program), os.X_OK):
        return "no program " + program
    if bin_dir != BIN:  # another environment: its modules cannot be looked up from here
        return ""
    return ", ".join("no module " + m for m in row.needs.split() if importlib.util.find_spec(m) is None)


def free_port():
    for _ in range(100):
        port = random.randint(20000, 29999)  # below the range that outgoing connections take
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
                return port
            except OSError:
                pass
    raise SystemExit("no free port")


def stat(pid):
    """(ppid, cpu ticks with reaped children) of a live process, or None."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            rest = f.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if rest[0] in "ZX" else (int(rest[1]), sum(map(int, rest[11:15])))


def tree(root):
    """Live descendants of root, root first."""
    kids = {}
    for d in glob.glob("/proc/[0-9]*"):
        pid = int(d[6:])
        st = stat(pid)
        if st:
            kids.setdefault(st[0], []).append(pid)
    out, todo = [], [root]
    while todo:
        pid = todo.pop()
        out.append(pid)
        todo += kids.get(pid, [])
    return out


def tree_cpu(root):
    return sum((stat(p) or (0, 0))[1] for p in tree(root)) / TICK


def host_busy():
    """CPU seconds used on this machine since boot (user, nice, system, irq, softirq, steal)."""
    with open("/proc/stat") as f:
        v = list(map(int, f.readline().split()[1:9]))
    return (v[0] + v[1] + v[2] + v[5] + v[6] + v[7]) / TICK


def memory(pid):
    """(PSS, USS) in MiB."""
    pss = uss = 0
    try:
        with open(f"/proc/{pid}/smaps_rollup") as f:
            for line in f:
                k, _, v = line.partition(":")
                if k == "Pss":
                    pss = int(v.split()[0])
                elif k in ("Private_Clean", "Private_Dirty"):
                    uss += int(v.split()[0])
    except OSError:
        pass
    return pss / 1024, uss / 1024


class Died(RuntimeError):
    """The server did not start, or went away under load."""


class Server:
    """A running server: row is its table entry, target module:callable, path the one to ask for."""

    def __init__(
        self, name, row, target, path, logs, bin_dir=BIN, workers=1, maxreq=0, idle=False, pin=None, wait=True, tls=None
    ):
        self.name, self.path, self.port = name, path, free_port()
        self.scheme = "https" if tls else "http"
        opts = (row.limit if maxreq else row.nolimit) + " " + (row.idle if idle else "")
        if tls:
            opts += " " + row.tls.format(**{part: shlex.quote(path) for part, path in tls.items()})
        cmd = shlex.split(
            row.cmd.format(
                here=shlex.quote(HERE), port=self.port, workers=workers, app=target, opts=opts.format(maxreq=maxreq)
            )
        )
        cmd[0] = os.path.join(bin_dir, cmd[0])
        if pin is not None:
            cmd = ["taskset", "-c", str(pin)] + cmd
        self.log = os.path.join(logs, name.replace(os.sep, "_") + ".log")
        self.left = True  # its process group may still be there
        self.started = time.monotonic()
        with open(self.log, "w") as log:
            log.write(shlex.join(cmd) + "\n")
            log.flush()
            self.proc = subprocess.Popen(
                cmd,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=env(bin_dir),
                cwd=APPS,
                start_new_session=True,
            )
        if wait:
            try:
                self.wait_ready()
            except BaseException:  # an interrupt too: leave no server behind
                self.stop()
                raise

    def wait_ready(self, timeout=20):
        request = f"GET {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
        while time.monotonic() - self.started < timeout:
            try:
                with self.connect() as s:
                    s.settimeout(5)
                    s.sendall(request)
                    first = s.recv(64)
                    while first and s.recv(65536):
                        pass
                    if b" 200" in first[:16]:
                        return time.monotonic() - self.started
            except OSError:
                pass
            if self.proc.poll() is not None:
                break
            time.sleep(0.002)
        self.stop()
        with open(self.log) as log:
            raise Died(f"{self.name} did not start:\n" + log.read()[-1500:])

    def connect(self):
        s = socket.create_connection(("127.0.0.1", self.port), 5)
        return ANYBODY.wrap_socket(s) if self.scheme == "https" else s

    def workers(self):
        """Descendants that are not helpers of multiprocessing."""
        out = []
        for pid in tree(self.proc.pid)[1:]:
            try:
                with open(f"/proc/{pid}/cmdline") as f:
                    cmd = f.read()
            except OSError:
                continue
            if "resource_tracker" not in cmd and "forkserver" not in cmd:
                out.append(pid)
        return out

    def stop(self):
        """SIGTERM, after 4 s SIGKILL, to this server's own process group; returns the seconds until it was gone."""
        if self.proc.returncode is not None and not self.left:
            return 0.0
        t0 = time.monotonic()
        pids = tree(self.proc.pid)
        if self.proc.poll() is None:
            self.proc.terminate()
            try:
                self.proc.wait(4)
            except subprocess.TimeoutExpired:
                pass
        took = time.monotonic() - t0
        try:
            os.killpg(self.proc.pid, signal.SIGKILL)  # our own session's group only
        except ProcessLookupError:
            pass
        self.proc.wait()
        while any(stat(p) and os.path.exists(f"/proc/{p}") and getpgid(p) == self.proc.pid for p in pids):
            time.sleep(0.01)
        self.left = False
        return took


def getpgid(pid):
    try:
        return os.getpgid(pid)
    except OSError:
        return None


# ---------------------------------------------------------------- load
def wrk(server, conns, secs, size=0, close=False, pin=None):
    """size: POST that many bytes instead of a GET."""
    cmd = ["taskset", "-c", str(pin)] if pin is not None else []
    cmd += [
        "wrk",
        "-t1",
        f"-c{conns}",
        f"-d{secs}s",
        "--timeout",
        "5s",
        "-s",
        os.path.join(HERE, "wrk.lua"),
        f"{server.scheme}://127.0.0.1:{server.port}{server.path}",
        "--",
        "POST" if size else "GET",
        str(size),
        str(int(close)),
    ]
    p = subprocess.Popen(cmd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    out = p.stdout.read().decode()
    _, status, usage = os.wait4(p.pid, 0)
    p.returncode = status
    line = [x for x in out.splitlines() if x.startswith("JSON ")]
    if not line:
        raise Died(f"{server.name}: wrk: {out[-500:]}")
    r = json.loads(line[0][5:])
    r["rps"] = r["n"] / (r["us"] / 1e6)
    r["wrk_cpu"] = usage.ru_utime + usage.ru_stime
    r["errors"] = r["connect"] + r["read"] + r["write"] + r["timeout"] + r["status"]
    return r


def timed(server, conns, secs, size=0, close=False, pin=None, limit=0.15, tries=3):
    """wrk with the CPU accounts; repeated while others used more than `limit` of a core, the quietest run kept."""
    best = None
    for _ in range(tries):
        c0, b0, t0 = tree_cpu(server.proc.pid), host_busy(), time.monotonic()
        r = wrk(server, conns, secs, size, close, pin)
        wall = time.monotonic() - t0
        cpu = tree_cpu(server.proc.pid) - c0
        r["foreign"] = (host_busy() - b0 - cpu - r["wrk_cpu"]) / wall
        r["us_req"] = cpu / max(1, r["n"]) * 1e6  # the server's CPU per request
        r["wrk_util"] = r["wrk_cpu"] / wall
        if best is None or r["foreign"] < best["foreign"]:
            best = r
        if best["foreign"] <= limit:
            break
        time.sleep(1)
    return best


class Conn(asyncio.Protocol):
    """One closed-loop client connection: sends the next request as soon as the last answer is complete."""

    def __init__(self, client, slot):
        self.client, self.slot, self.fresh = client, slot, True
        self.transport, self.buf, self.need, self.keep, self.t0 = None, b"", None, True, 0.0
        self.waiting = False

    def connection_made(self, transport):
        self.transport = transport
        self.client.live.add(transport)
        self.send()

    def send(self):
        c = self.client
        if c.stopping:
            return self.transport.abort()
        n = c.sent[self.slot] = c.sent[self.slot] + 1
        self.slow = c.slow_every and (n + self.slot) % c.slow_every == 0
        self.buf, self.need, self.waiting, self.t0 = b"", None, True, time.perf_counter()
        self.transport.write(c.slow_req if self.slow else c.fast_req)

    def data_received(self, data):
        self.buf += data
        if self.need is None:
            head, sep, _ = self.buf.partition(b"\r\n\r\n")
            if not sep:
                return
            low = head.lower()
            i = low.find(b"content-length:")
            self.need = 1 << 60 if i < 0 else len(head) + 4 + int(low[i + 15 :].split(b"\r\n", 1)[0])
            self.keep = i >= 0 and b"connection: close" not in low and not low.startswith(b"http/1.0")
        if len(self.buf) >= self.need:
            self.finish()
            if self.keep and not self.client.close:
                self.fresh = False
                self.send()
            else:
                self.transport.close()

    def finish(self):
        now = time.perf_counter()
        self.waiting = False
        c = self.client
        if not self.buf.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")):
            c.failed["status"] += 1
        else:
            (c.slow_lat if self.slow else c.fast_lat).append(now - self.t0)
        c.gap = max(c.gap, now - c.last)
        c.last = now

    def connection_lost(self, exc):
        c = self.client
        c.live.discard(self.transport)
        if self.waiting and not c.stopping:
            if self.need == 1 << 60:
                self.finish()  # body ended by the close
            else:
                self.waiting = False
                c.failed["truncated" if self.buf else ("fresh" if self.fresh else "reused") + "-closed"] += 1
        if not c.stopping:
            c.spawn(self.slot)


class Client:
    """N closed-loop connections; counts failures by kind (refused, reused-closed = retriable, fresh-closed, ...)."""

    def __init__(self, port, path, conns, close=False, slow_path=None, slow_every=0):
        tail = " HTTP/1.1\r\nHost: 127.0.0.1\r\n" + ("Connection: close\r\n" if close else "") + "\r\n"
        self.port, self.conns, self.close, self.slow_every = port, conns, close, slow_every
        self.fast_req, self.slow_req = f"GET {path}{tail}".encode(), f"GET {slow_path}{tail}".encode()
        self.fast_lat, self.slow_lat, self.failed = [], [], Counter()
        self.sent, self.stopping, self.gap, self.open = [0] * conns, False, 0.0, set()
        self.last, self.live = 0.0, set()

    def spawn(self, slot):
        task = asyncio.ensure_future(self.connect(slot))
        self.open.add(task)
        task.add_done_callback(self.open.discard)

    async def connect(self, slot):
        while not self.stopping:
            try:
                await asyncio.get_running_loop().create_connection(lambda: Conn(self, slot), "127.0.0.1", self.port)
                return
            except OSError:
                self.failed["refused"] += 1
                await asyncio.sleep(0.02)

    async def run(self, secs, during=None):
        self.last = t0 = time.perf_counter()
        for slot in range(self.conns):
            self.spawn(slot)
        extra = asyncio.ensure_future(during()) if during else None
        if extra:  # until it is done and a second more, at most secs
            await asyncio.wait([extra], timeout=secs)
            await asyncio.sleep(1)
        else:
            await asyncio.sleep(secs)
        self.stopping, took = True, time.perf_counter() - t0
        self.gap = max(self.gap, time.perf_counter() - self.last)
        value = await extra if extra else None
        starved = 0
        for transport in list(self.live):  # leave no connection open behind us
            conn = transport.get_protocol()
            waited = time.perf_counter() - conn.t0
            if conn.waiting and waited > 1:  # never answered: at least that long, and never left out
                starved += 1
                (self.slow_lat if conn.slow else self.fast_lat).append(waited)
            transport.abort()
        await asyncio.gather(*self.open, return_exceptions=True)
        await asyncio.sleep(0.05)
        n = len(self.fast_lat) + len(self.slow_lat) - starved
        return {
            "n": n,
            "rps": n / took,
            "gap": self.gap,
            "failed": dict(self.failed),
            "starved": starved,
            "errors": sum(self.failed.values()),
            "extra": value,
            "p50": pct(self.fast_lat, 50),
            "p99": pct(self.fast_lat, 99),
            "max": max(self.fast_lat or [0]),
            "slow50": pct(self.slow_lat, 50),
        }


def pct(values, q):
    v = sorted(values)
    return v[min(len(v) - 1, int(len(v) * q / 100))] if v else float("nan")


def drive(server, conns, secs, close=False, slow_path=None, slow_every=0, during=None):
    return asyncio.run(Client(server.port, server.path, conns, close, slow_path, slow_every).run(secs, during))


def paced(server, conns, secs, rate):
    """Requests that come by chance, so many a second, each on whichever of the kept connections is free.

    Returns how long each took from the moment that it was due, what the answers said, and how many failed.
    """
    request = f"GET {server.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    took, said, failed = [], Counter(), 0

    async def one(due, free):
        nonlocal failed
        reader, writer = await free.get()
        try:
            writer.write(request)
            head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).lower()
            body = await reader.readexactly(int(re.search(rb"content-length: *(\d+)", head)[1]))
            failed += b" 200 " not in head[:16]
            said[body] += 1
            took.append(time.perf_counter() - due)
        except (OSError, EOFError, asyncio.TimeoutError):
            failed += 1
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        free.put_nowait((reader, writer))

    async def everyone():
        chance = random.Random(conns)
        connections = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(conns)]
        chance.shuffle(connections)
        free = asyncio.Queue()
        for connection in connections:
            free.put_nowait(connection)
        for _ in range(2 * conns):  # one after the other: what is new to a worker makes it slow
            await one(time.perf_counter(), free)
        took.clear()
        due, end, asked = time.perf_counter(), time.perf_counter() + secs, []
        while due < end:
            await asyncio.sleep(due - time.perf_counter())
            asked.append(asyncio.create_task(one(due, free)))
            due += chance.expovariate(rate)
        await asyncio.gather(*asked)
        while not free.empty():
            free.get_nowait()[1].close()

    asyncio.run(everyone())
    return took, said, failed


def closes(server):
    """Whether the server closes the connection when the request says Connection: close."""
    with server.connect() as s:
        s.settimeout(1)
        s.sendall(f"GET {server.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        try:
            while s.recv(65536):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True


def ask(server, count, conns):
    """count requests in all, each on a connection of its own, conns at a time; returns how many failed."""
    request = f"GET {server.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
    left, failed = count, 0

    async def one():
        nonlocal left, failed
        while left > 0:
            left -= 1
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(request)
                answer = await asyncio.wait_for(reader.read(), 10)
                writer.close()
                failed += b" 200" not in answer[:16]
            except (OSError, asyncio.TimeoutError):
                failed += 1

    async def everyone():
        await asyncio.gather(*(one() for _ in range(conns)))

    asyncio.run(everyone())
    return failed


def med(values):
    v = [x for x in values if x == x]
    return statistics.median(v) if v else float("nan")


def settle(srv, quiet=0.4, limit=15):
    """Waits until the tree uses no CPU; returns (when it went quiet, CPU seconds used in all)."""
    t_last, cpu = time.monotonic(), tree_cpu(srv.proc.pid)
    end = t_last + limit
    while time.monotonic() < end:
        time.sleep(0.05)
        now = tree_cpu(srv.proc.pid)
        if now > cpu + 0.015:
            cpu, t_last = now, time.monotonic()
        elif time.monotonic() - t_last > quiet:
            break
    return t_last - srv.started, tree_cpu(srv.proc.pid)


def ping(sock, request):
    """Seconds until the 13-byte answer is complete."""
    t0, data = time.perf_counter(), b""
    sock.sendall(request)
    while b"Hello, World!" not in data:
        chunk = sock.recv(65536)
        if not chunk:
            raise OSError("closed")
        data += chunk
    return time.perf_counter() - t0


def still_open(sock):
    try:
        sock.setblocking(False)
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except OSError:
        return False
