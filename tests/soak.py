"""Is anything lost when everything happens at once?

    python tests/soak.py --minutes 15 --seed 7

A server with small budgets, clients of all kinds, and every few hundred milliseconds something bad or usual happens to
it: deploys of good and of broken code, recycles, killed and stopped workers, one more and one fewer of them; in the end
it is stopped while they ask. What may fail is what a killed worker held, and the record of its death counts and names
that; anything else is unexplained, and makes this fail, as does memory or a number of descriptors that grows.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import math
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from server_process import LiveServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

APP = """
import hashlib, os, time
VERSION = {version}

def pieces(body):
    for at in range(0, len(body), 1 + len(body) // 10):
        yield body[at:at + 1 + len(body) // 10]

def app(environ, start_response):
    _, kind, name = environ["PATH_INFO"].split("/")
    body = name.encode() * 4
    if kind == "slow":
        time.sleep(0.05)
    elif kind == "upload":
        body = hashlib.sha256(environ["wsgi.input"].read()).hexdigest().encode()
    elif kind == "big":
        body = name.encode() * (1_000_000 // len(name))
    fields = [("X-Name", name), ("X-Version", str(VERSION))]
    if kind != "stream":
        fields.append(("Content-Length", str(len(body))))
    start_response("200 OK", fields)
    return pieces(body) if kind == "stream" else [body]
"""
BROKEN = {
    "syntax": "def app(:\n",
    "import": "import there_is_no_such_module\n",
    "raises": "raise RuntimeError('broken on purpose')\n",
    "exits": "import sys\nsys.exit(3)\n",
    "dies": "import os\nos._exit(5)\n",
    "crashes": "import os\nos.kill(os.getpid(), 11)\n",
}
AT_A_DEATH = 2.0
"""How many seconds may lie between the end of a connection and the record of the death that ended it."""
LOOK_S = 0.05
"""How often this process takes note that it looks at its connections."""
ENOUGH, GROWTH = 10, 1.25
IN_HAND = 1
"""A worker that is killed may just have let one in, and not have counted it yet."""
names = count(1)


@dataclass
class Tally:
    """What the clients saw."""

    answered: Counter[str] = field(default_factory=Counter)
    lost: list[Loss] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    closed: int = 0
    """Connections that the server closed while nothing was asked."""
    version: int = 0
    since: float = 0.0
    """Which version every request that begins later than this has to see, at least."""
    over: float = math.inf
    """When the server was told to stop: nothing is owed to who begins to ask later."""
    looked_at: float = 0.0
    """When this process last looked at its connections (time of day)."""


@dataclass
class Loss:
    """A request that failed: how, when its connection was seen to have ended (time of day), and how long before it may have."""

    path: str
    how: str
    ended_at: float
    late_s: float = 0.0


class Lost(Exception):
    """The connection ended before the answer did."""


class Line(asyncio.StreamReaderProtocol):
    """A connection that knows when it ended, for its client may find out much later."""

    ended_at = math.inf
    late_s = 0.0

    def __init__(self, reader: asyncio.StreamReader, tally: Tally) -> None:
        super().__init__(reader)
        self._tally = tally

    def eof_received(self) -> bool | None:
        self._end()
        return super().eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        self._end()
        super().connection_lost(error)

    def _end(self) -> None:
        if self.ended_at == math.inf:
            self.ended_at = time.time()
            self.late_s = self.ended_at - self._tally.looked_at


@dataclass
class Client:
    """One connection after another, and one request after another on each."""

    address: tuple[str, int]
    tally: Tally
    chance: random.Random
    stop: asyncio.Event
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None
    line: Line | None = None

    async def live(self, step: Callable[[Client], Awaitable[None]]) -> None:
        """Take one step after the other until it is over."""
        while not self.stop.is_set():
            await step(self)
        self.leave()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.reader is None or self.writer is None:
            loop = asyncio.get_running_loop()
            self.reader = asyncio.StreamReader(limit=4 * 1024 * 1024)
            line = self.line = Line(self.reader, self.tally)
            transport, _ = await loop.create_connection(lambda: line, *self.address)
            self.writer = asyncio.StreamWriter(transport, line, self.reader, loop)
        return self.reader, self.writer

    def leave(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None

    async def ask(self, kind: str, *, body: bytes = b"", pace: float = 0.0, close: bool = False) -> None:
        """Ask once; ``pace`` is how many seconds pass between the pieces of what is sent and read."""
        name = f"{kind}{next(names)}-"
        began = time.monotonic()
        try:
            async with asyncio.timeout(60):
                reader, writer = await self.connect()
                method = "POST" if body else "GET"
                head = f"{method} /{kind}/{name} HTTP/1.1\r\nHost: soak\r\nContent-Length: {len(body)}\r\n"
                head += "Connection: close\r\n\r\n" if close else "\r\n"
                await self.send(writer, head.encode() + body, pace)
                fields, received = await self.read_answer(reader, pace)
        except (OSError, EOFError, Lost, TimeoutError) as error:
            line = self.line
            ended = (time.time(), 0.0) if line is None or line.ended_at == math.inf else (line.ended_at, line.late_s)
            if began < self.tally.over:
                self.tally.lost.append(Loss(f"/{kind}/{name}", f"{type(error).__name__}: {error}", *ended))
            self.leave()
            return
        expected = hashlib.sha256(body).hexdigest().encode() if kind == "upload" else name.encode()
        if fields.get(b"x-name") != name.encode() or not received.startswith(expected):
            self.tally.wrong.append(f"{name}: {fields} {received[:80]!r}")
        version = int(fields.get(b"x-version", b"-1"))
        if began > self.tally.since and version < self.tally.version:
            self.tally.wrong.append(f"{name}: version {version} after {self.tally.version} was deployed")
        self.tally.answered[kind] += 1
        if close or fields.get(b"connection") == b"close":
            self.tally.closed += not close and time.monotonic() < self.tally.over
            self.leave()

    async def send(self, writer: asyncio.StreamWriter, data: bytes, pace: float) -> None:
        step = max(1, len(data) // 10) if pace else len(data)
        for at in range(0, len(data), step):
            writer.write(data[at : at + step])
            await writer.drain()
            await asyncio.sleep(pace)

    async def read_answer(self, reader: asyncio.StreamReader, pace: float) -> tuple[dict[bytes, bytes], bytes]:
        lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        if not lines[0].startswith(b"HTTP/1.1 200 "):
            raise Lost(lines[0].decode("latin-1"))
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
        if fields.get(b"transfer-encoding") == b"chunked":
            return fields, await self.read_chunks(reader)
        left = int(fields[b"content-length"])
        received = bytearray()
        while left:
            piece = await reader.read(min(left, 65536 if pace else left))
            if not piece:
                raise Lost(f"{left} bytes are missing")
            received += piece
            left -= len(piece)
            await asyncio.sleep(pace / 10)
        return fields, bytes(received)

    async def read_chunks(self, reader: asyncio.StreamReader) -> bytes:
        received = b""
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            received += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
        return received


# What kinds of clients there are: each takes one step after the other.


async def steady(client: Client) -> None:
    await client.ask(client.chance.choice(["fast", "fast", "fast", "slow", "stream", "big"]))


async def pausing(client: Client) -> None:
    await client.ask("fast")
    await asyncio.sleep(client.chance.uniform(0.5, 3))


async def closing(client: Client) -> None:
    await client.ask("fast", close=True)


async def uploading(client: Client) -> None:
    await client.ask("upload", body=client.chance.randbytes(client.chance.choice([10, 50_000, 2_000_000])))


async def dribbling(client: Client) -> None:
    await client.ask("upload", body=b"x" * 3000, pace=client.chance.uniform(0.05, 0.4))


async def sipping(client: Client) -> None:
    await client.ask("big", pace=client.chance.uniform(0.1, 1.0))


async def leaving(client: Client) -> None:
    """Leave in the middle of a request or of its answer; nothing is owed to such a client."""
    with suppress(OSError):
        _, writer = await client.connect()
        data = b"POST /upload/gone HTTP/1.1\r\nHost: soak\r\nContent-Length: 100\r\n\r\n" + b"x" * 100
        writer.write(data[: client.chance.randrange(1, len(data) + 1)])
        await asyncio.sleep(client.chance.uniform(0, 0.1))
    client.leave()


KINDS: dict[Callable[[Client], Awaitable[None]], int] = {
    steady: 8,
    pausing: 20,
    closing: 2,
    uploading: 2,
    dribbling: 4,
    sipping: 4,
    leaving: 2,
}


# What happens to the server.


class Fate:
    """Does something to the server, again and again."""

    def __init__(self, server: LiveServer, folder: Path, tally: Tally, chance: random.Random) -> None:
        self.server, self.folder, self.tally, self.chance = server, folder, tally, chance
        self.done: Counter[str] = Counter()
        self.version = 1
        self.killed: set[int] = set()
        self.scaled_up = False
        self.events: dict[Callable[[], Awaitable[None]], int] = {
            self.deploy: 4,
            self.deploy_broken: 2,
            self.recycle: 3,
            self.kill_worker: 3,
            self.stop_worker: 2,
            self.kill_parent: 1,
            self.scale: 2,
            self.reopen: 1,
        }

    def choose(self, names: str) -> None:
        """Leave away what is not named, unless nothing is."""
        if names:
            self.events = {event: often for event, often in self.events.items() if event.__name__ in names.split(",")}

    async def strike(self) -> None:
        """Let one thing happen, and see it through."""
        event = self.chance.choices(list(self.events), list(self.events.values()))[0]
        await event()
        self.done[event.__name__] += 1

    @property
    def pool(self) -> int:
        """The process id of the present pool's parent."""
        return int(self.server.all("pool.ready")[-1]["pid"])

    def worker(self) -> int | None:
        # Who has lost his parent leaves, and nobody would record his death.
        parents = {record["pid"] for record in self.server.all("pool.ready")}
        pids = [pid for pid in self.server.worker_pids if pid not in self.killed and parent_of(pid) in parents]
        return self.chance.choice(pids) if pids else None

    async def until(self, record: str, before: int) -> None:
        deadline = time.monotonic() + 60
        while len(self.server.all(record)) <= before:
            assert time.monotonic() < deadline, f"no {record}"
            await asyncio.sleep(0.02)

    def write(self, text: str) -> None:
        new = self.folder / "new"
        new.write_text(text)
        new.rename(self.folder / "shop.py")

    async def deploy(self) -> None:
        before = len(self.server.all("pool.deployed"))
        self.version += 1
        self.write(APP.format(version=self.version))
        os.kill(self.server.pid, signal.SIGHUP)
        await self.until("pool.deployed", before)
        # An old worker may still answer who asked it before it could pass the connection on.
        self.tally.since, self.tally.version = time.monotonic() + 2, self.version

    async def deploy_broken(self) -> None:
        before = len(self.server.all("pool.deploy_failed"))
        self.write(self.chance.choice(list(BROKEN.values())))
        os.kill(self.server.pid, signal.SIGHUP)
        await self.until("pool.deploy_failed", before)
        self.write(APP.format(version=self.version))

    async def recycle(self) -> None:
        os.kill(self.server.pid, signal.SIGUSR2)

    async def kill_worker(self) -> None:
        if (pid := self.worker()) is not None:
            self.killed.add(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def stop_worker(self) -> None:
        if (pid := self.worker()) is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                await asyncio.sleep(self.chance.uniform(0.1, 1.5))
                os.kill(pid, signal.SIGCONT)

    async def kill_parent(self) -> None:
        before = len(self.server.all("pool.ready"))
        os.kill(self.pool, signal.SIGKILL)
        await self.until("pool.ready", before)

    async def scale(self) -> None:
        os.kill(self.server.pid, signal.SIGTTOU if self.scaled_up else signal.SIGTTIN)
        self.scaled_up = not self.scaled_up

    async def reopen(self) -> None:
        os.kill(self.server.pid, signal.SIGUSR1)


def parent_of(pid: int) -> int | None:
    try:
        return int(psutil.Process(pid).ppid())
    except psutil.NoSuchProcess:
        return None


def usage(server: LiveServer) -> dict[str, float]:
    """Return what the processes that stay take: memory in MiB, descriptors."""
    found: dict[str, float] = {}
    for who, pid in (("keeper", server.pid), ("parent", int(server.all("pool.ready")[-1]["pid"]))):
        with suppress(psutil.Error, FileNotFoundError, PermissionError):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            match = re.search(r"^Pss: +([0-9]+) kB", rollup, re.MULTILINE)
            assert match is not None
            found[f"{who} MiB"] = round(int(match[1]) / 1024, 1)
            found[f"{who} descriptors"] = psutil.Process(pid).num_fds()
    return found


def unexplained(losses: Iterable[Loss], deaths: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what failed, and is not owed to the death of a worker: each can have cost what it held, and at that time."""
    left = [
        (
            datetime.fromisoformat(death["timestamp"]).timestamp(),
            {lost["path"] for lost in death["requests_lost"]},
            [None] * (death["connections_lost"] + len(death["requests_lost"]) + IN_HAND),
        )
        for death in deaths
    ]
    strange = []
    # Who is named first: the others may be any of those whom the death counts.
    named = {path for _, paths, _ in left for path in paths}
    for loss in sorted(losses, key=lambda loss: loss.path not in named):
        for died_at, paths, held in left:
            if held and (loss.path in paths or -AT_A_DEATH < loss.ended_at - died_at < AT_A_DEATH + loss.late_s):
                held.pop()
                break
        else:
            strange.append(f"{loss.path}: {loss.how} at {loss.ended_at:.3f}")
    return strange


def growing(samples: Sequence[Mapping[str, float]]) -> list[str]:
    """Return what is never again as little in the last third of the samples as it was at most in the first, nor nearly."""
    found = []
    for name in sorted({name for sample in samples for name in sample}):
        values = [sample[name] for sample in samples if name in sample]
        third = len(values) // 3
        if third >= ENOUGH and min(values[-third:]) > GROWTH * max(values[:third]):
            found.append(f"{name}: {max(values[:third])} at most at first, {min(values[-third:])} at least in the end")
    return found


async def look(tally: Tally) -> None:
    """Take note of how far behind this process is: what it sees may have happened since it looked last."""
    while True:
        tally.looked_at = time.time()
        await asyncio.sleep(LOOK_S)


async def soak(minutes: float, seed: int, events: str, server: LiveServer, folder: Path) -> int:
    """Run; print the tally; return the exit status."""
    chance = random.Random(seed)
    tally, stop, fate_chance = Tally(), asyncio.Event(), random.Random(seed)
    fate = Fate(server, folder, tally, fate_chance)
    fate.choose(events)
    looking = asyncio.create_task(look(tally))
    clients = [
        asyncio.create_task(Client(server.address, tally, random.Random(chance.random()), stop).live(kind))
        for kind, number in KINDS.items()
        for _ in range(number)
    ]
    deadline = time.monotonic() + minutes * 60
    samples = []
    while time.monotonic() < deadline:
        await asyncio.sleep(fate_chance.uniform(0.1, 1.5))
        await fate.strike()
        samples.append(usage(server))
    tally.over = time.monotonic()
    os.kill(server.pid, signal.SIGTERM)
    stop.set()
    await asyncio.gather(*clients)
    looking.cancel()
    status = await asyncio.to_thread(server.wait)
    return tell(server, tally, fate, samples, status)


def tell(server: LiveServer, tally: Tally, fate: Fate, samples: list[dict[str, float]], status: int) -> int:
    """Print what came of it; return the exit status."""
    deaths = [record for record in server.all("worker.exited") if not record["expected"]]
    strange = tally.wrong + unexplained(tally.lost, deaths)
    print(f"answered {tally.answered.total():,}: {dict(tally.answered)}")
    gone = len(server.all("worker.exited"))
    print(f"happened: {dict(fate.done)}; workers gone: {gone - len(deaths)} expected, {len(deaths)} not")
    print(f"lost {len(tally.lost)} with killed workers, closed by the server {tally.closed}, exit status {status}")
    for name in sorted({name for sample in samples for name in sample}):
        values = [sample[name] for sample in samples if name in sample]
        third = max(1, len(values) // 3)
        print(f"{name}: first third {max(values[:third])}, last third {max(values[-third:])}")
    for line in strange[:20]:
        print(f"UNEXPLAINED {line}")
    if strange:
        print("deaths: ", *deaths, sep="\n")
    grown = growing(samples)
    for line in grown:
        print(f"GROWS {line}")
    print(f"{len(strange)} unexplained failures")
    return 1 if strange or grown or status else 0


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--events", default="", help="only these, separated by commas")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "shop.py").write_text(APP.format(version=1))
        flags = ("--app-dir", name, "-w", "4", "--max-reqs-per-child", "20", "--graceful-timeout", "60")
        # Two versions within a second would otherwise be one to the cache of compiled modules.
        with LiveServer.of("shop:app", *flags, env={"PYTHONDONTWRITEBYTECODE": "1"}) as server:
            return asyncio.run(soak(arguments.minutes, arguments.seed, arguments.events, server, folder))


if __name__ == "__main__":
    sys.exit(main())
