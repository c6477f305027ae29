#!/usr/bin/env python3
"""Python web servers side by side, on this machine, over loopback.  See README.md beside this file.

    python bench.py --list                              the servers, and what each one lacks here
    python bench.py raw flask                           two suites: ours and their main peers
    python bench.py raw --servers prefork,granian-wsgi  only these (NAME@DIR: programs from DIR instead of this venv)
    python bench.py raw --seconds 1 --rounds 1          a quick look

Rounds are interleaved (A B C A B C); every figure is the median over the rounds, and a ratio is the median of the
per-round ratios to the baseline.  With one worker the server is pinned to one core and the load to another; with
more, nothing is pinned.  "foreign" is the CPU used by processes outside the test, in cores: a run with more than 0.15
is repeated, twice at most, and the quietest one kept.
"""

import argparse
import asyncio
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from importlib import metadata

sys.dont_write_bytecode = True  # this folder may be read-only, and is not ours to fill

import lab  # noqa: E402
from ideal import simulate  # noqa: E402
from lab import APPS, BIN, drive, env, med, memory, paced, pct, settle, timed, tree, tree_cpu, wrk  # noqa: E402
from servers import OURS, SERVERS  # noqa: E402

# app -> kind -> (module:callable, path); a POST app also has a body size
TARGETS = {
    "raw": {"wsgi": ("raw:hello", "/"), "asgi": ("raw_asgi:hello", "/"), "a2wsgi": ("raw_a2wsgi:hello", "/")},
    "flask": {"wsgi": ("flaskapp:app", "/"), "a2wsgi": ("flask_a2wsgi:app", "/")},
    "django": {"wsgi": ("djhello:app", "/"), "asgi": ("djhello_asgi:app", "/async")},
    "starlette": {"asgi": ("starlette_app:app", "/")},
    "big": {"wsgi": ("djbig:app", "/"), "asgi": ("djbig_asgi:app", "/")},
    "io": {"wsgi": ("flaskapp:app", "/io"), "a2wsgi": ("flask_a2wsgi:app", "/io"), "asgi": ("raw_asgi:io", "/")},
    "stream": {"wsgi": ("raw:stream", "/"), "asgi": ("raw_asgi:stream", "/"), "a2wsgi": ("raw_a2wsgi:stream", "/")},
    "stream-cl": {
        "wsgi": ("raw:stream_cl", "/"),
        "asgi": ("raw_asgi:stream_cl", "/"),
        "a2wsgi": ("raw_a2wsgi:stream_cl", "/"),
    },
    "echo": {"wsgi": ("raw:echo", "/"), "asgi": ("raw_asgi:echo", "/"), "a2wsgi": ("raw_a2wsgi:echo", "/")},
    "query": {"wsgi": ("djquery:app", "/")},
    "mixed": {"wsgi": ("raw:mixed", "/"), "asgi": ("raw_asgi:mixed", "/"), "a2wsgi": ("raw_a2wsgi:mixed", "/")},
}
POST = {"echo": 102400}


# ---------------------------------------------------------------- reports
class Report:
    """rows[name] = one dict per round; shown as a markdown table of medians."""

    def __init__(self, args, title, key="rps"):
        self.args, self.title, self.key, self.rows, self.notes = args, title, key, {}, []

    def add(self, name, r):
        self.rows.setdefault(name, []).append(r)

    def ratio(self, name, base):
        return med([m[self.key] / b[self.key] for m, b in zip(self.rows[name], self.rows[base]) if b[self.key]])

    def show(self, columns, order=-1):
        """columns: (header, key or function of the rounds, format).  Prints the table, keeps it and the raw figures."""
        if not self.rows:
            return
        base = self.args.baseline if self.args.baseline in self.rows else next(iter(self.rows))
        head = ["server", *[c[0] for c in columns], f"ratio to {base}", "spread"]
        out = [f"\n### {self.title}\n", "| " + " | ".join(head) + " |\n|" + " --- |" * len(head)]
        for name in sorted(self.rows, key=lambda n: order * med([r[self.key] for r in self.rows[n]])):
            rounds, cells = self.rows[name], [name]
            for _, key, fmt in columns:
                cells.append(fmt.format(key(rounds) if callable(key) else med([r[key] for r in rounds])))
            vs = [r[self.key] for r in rounds]
            m = med(vs)
            cells += [f"{self.ratio(name, base):.2f}", f"±{(max(vs) - min(vs)) / 2 / m * 100:.0f}%" if m else "-"]
            out.append("| " + " | ".join(cells) + " |")
        out += ["\n" + note for note in self.notes] + ["\n" + setting(self.rows)]
        text = "\n".join(out)
        print(text, flush=True)
        name = re.sub(r"[^a-z0-9]+", "-", self.title.lower())[:100].strip("-")
        with open(os.path.join(self.args.out, self.args.suite + ".md"), "a") as f:
            f.write(text + "\n")
        with open(os.path.join(self.args.out, f"{time.strftime('%m%d-%H%M%S')}-{name}.json"), "w") as f:
            json.dump({"title": self.title, "argv": sys.argv[1:], "rows": self.rows, "notes": self.notes}, f, indent=1)


def fails(rounds):
    n, total = sum(r["errors"] for r in rounds), sum(r["n"] for r in rounds)
    kinds = sum(
        (
            Counter(r.get("failed") or {k: r.get(k, 0) for k in ("connect", "read", "write", "timeout", "status")})
            for r in rounds
        ),
        Counter(),
    )
    return f"{n}/{total}" + (" (" + ", ".join(f"{k} {v}" for k, v in kinds.items() if v) + ")" if n else "")


def together(runs):
    """One row of several: sums of what is counted, the worst of what is, and medians."""
    ways = dict.fromkeys(("n", "errors", "connect", "read", "write", "timeout", "status"), sum)
    ways |= {"max": max, "foreign": max}
    return {key: ways.get(key, med)([run[key] for run in runs]) for key in runs[0]}


def column(header, key, per=1.0, fmt="{:.0f}"):
    """A column of the median of key, divided by per."""
    return header, lambda rs: med([r[key] for r in rs]) / per, fmt


# ---------------------------------------------------------------- running servers
def split(name):
    """NAME or NAME@DIR -> the table's row and the folder its program is in."""
    name, _, where = name.partition("@")
    return SERVERS[name], os.path.abspath(os.path.expanduser(where)) if where else BIN


def usable(args, app, want=lambda row: True):
    """The servers asked for that can run the app and are installed; says which are left out, and why."""
    out = []
    for name in args.names:
        row, where = split(name)
        if (
            (args.suite == "tls" and not row.tls)
            or row.kind not in TARGETS[app]
            or row.kind not in args.kinds
            or not want(row)
        ):
            if args.servers:
                print(f"left out {name}: not for {args.suite}", file=sys.stderr)
        elif lack := lab.missing(row, where):
            print(f"left out {name}: {lack}", file=sys.stderr)
        else:
            out.append(name)
    if not out:
        print(f"{args.suite}: no server left to run", file=sys.stderr)
    return out


def start(args, name, app, **options):
    row, where = split(name)
    return lab.Server(name, row, *TARGETS[app][row.kind], os.path.join(args.out, "logs"), where, **options)


def rounds(args, names, app, body, **options):
    """Interleaves: in every round each server is started in turn and given to body(name, server)."""
    skipped = {}
    for rnd in range(args.rounds):
        for name in names:
            if name in skipped:
                continue
            try:
                srv = start(args, name, app, **options)
                try:
                    note = body(name, srv)
                    print(f"  {args.suite} {rnd + 1}/{args.rounds} {name:26} {note or ''}", file=sys.stderr)
                finally:
                    srv.stop()
            except lab.Died as e:
                skipped[name] = str(e)
                print(f"SKIPPED {e}", file=sys.stderr)
    return [f"{n} skipped: {why.splitlines()[0]}" for n, why in skipped.items()]


def bare_rate(app, kind="wsgi", secs=1.0):
    """Calls per second of the app in a loop on one core, no HTTP: the limit for one worker."""
    target, path = TARGETS[app][kind]
    cmd = ["taskset", "-c", str(lab.SERVER_CORE), sys.executable, "bare_loop.py", target, path, str(secs), kind]
    out = subprocess.run(cmd, env=env(), cwd=APPS, capture_output=True, text=True)
    if out.returncode:
        raise SystemExit(f"{target} does not run: {out.stderr.strip().splitlines()[-1]}")
    return float(out.stdout)


# ---------------------------------------------------------------- what is measured
def bare(args):
    rep = Report(args, "the apps called in a loop, no HTTP, one process")
    for _ in range(args.rounds):
        for app, kind in (
            ("raw", "wsgi"),
            ("flask", "wsgi"),
            ("django", "wsgi"),
            ("big", "wsgi"),
            ("raw", "asgi"),
            ("django", "asgi"),
        ):
            rep.add(f"{app} ({kind})", {"rps": bare_rate(app, kind)})
    rep.show([("calls/s", "rps", "{:,.0f}"), ("µs/call", lambda rs: 1e6 / med([r["rps"] for r in rs]), "{:.1f}")])


def throughput(args):
    for app in args.app.split(","):
        names, modes, size = usable(args, app), args.modes.split(","), POST.get(app, 0)
        tls = lab.certificate(args.out) if args.suite == "tls" else None
        over = " over TLS" if tls else ""
        reps = {m: Report(args, f"{app}{over}, {m}, {args.workers} worker(s), {args.conns} connections") for m in modes}
        server_core, load_core = (lab.SERVER_CORE, lab.LOAD_CORE) if args.workers == 1 else (None, None)
        limits = {}  # kind -> calls/s of the bare app, one figure per round
        staying = {}  # servers that ignore Connection: close

        def body(name, srv):
            row, _ = split(name)
            kind = row.kind if row.kind == "asgi" else "wsgi"
            if app in ("raw", "flask", "django") and args.workers == 1 and name == names[0]:
                for k in sorted({"asgi" if split(n)[0].kind == "asgi" else "wsgi" for n in names}):
                    limits.setdefault(k, []).append(bare_rate(app, k))
            out = []
            wrk(srv, args.conns, 1, size, modes[0] == "close", load_core)  # warm-up
            for m in modes:
                if m == "close" and not lab.closes(srv):
                    staying[name] = (
                        f"{name} is not in the close table: it keeps the connection open after Connection: close"
                    )
                    continue
                r = timed(srv, args.conns, args.seconds, size, m == "close", load_core)
                r["of_bare"] = r["rps"] / limits[kind][-1] if kind in limits else float("nan")
                reps[m].add(name, r)
                out.append(f"{m} {r['rps']:8.0f} rps {r['us_req']:5.0f} us, foreign {r['foreign']:.2f}")
            return "; ".join(out)

        notes = rounds(args, names, app, body, workers=args.workers, pin=server_core, tls=tls)
        notes += [f"bare {app} ({k}): {med(v):,.0f} calls/s" for k, v in limits.items()]
        bare_column = [("of bare", "of_bare", "{:.2f}")] if limits else []
        for m, rep in reps.items():
            rep.notes = notes + list(staying.values() if m == "close" else ())
            rep.show(
                [
                    ("rps", "rps", "{:,.0f}"),
                    *bare_column,
                    ("server µs CPU/req", "us_req", "{:.0f}"),
                    column("p50 ms", "p50", 1000, "{:.2f}"),
                    column("p99 ms", "p99", 1000, "{:.2f}"),
                    ("load's core", "wrk_util", "{:.0%}"),
                    ("foreign", "foreign", "{:.2f}"),
                    ("errors", fails, "{}"),
                ]
            )


def recycle(args):
    for app in args.app.split(","):
        names = usable(args, app, lambda row: row.limit and row.workers)
        rep = Report(
            args,
            f"recycling every {args.maxreq} requests: {app}, {args.workers} workers, {args.conns} "
            f"connections, {args.modes}",
        )
        close = args.modes == "close"

        def body(name, srv):
            on = start(args, name, app, workers=args.workers, maxreq=args.maxreq)
            try:
                for each in (srv, on):
                    wrk(each, args.conns, 1, 0, close)
                # Second by second in turn: the machine's pace may have changed before a longer run is over.
                pairs = [[timed(each, args.conns, 1, 0, close) for each in (srv, on)] for _ in range(args.seconds)]
            finally:
                on.stop()
            off, r = (together(runs) for runs in zip(*pairs, strict=True))
            r["off_rps"], r["off_p99"] = off["rps"], off["p99"]
            r["kept"] = med([recycling["rps"] / max(1, without["rps"]) for without, recycling in pairs])
            r["foreign"] = max(r["foreign"], off["foreign"])
            rep.add(name, r)
            return f"off {off['rps']:.0f} on {r['rps']:.0f} errors {r['errors']} foreign {r['foreign']:.2f}"

        rep.notes = rounds(args, names, app, body, workers=args.workers)
        rep.show(
            [
                ("rps, no recycling", "off_rps", "{:,.0f}"),
                ("rps, recycling", "rps", "{:,.0f}"),
                ("kept", "kept", "{:.2f}"),
                column("p99 off ms", "off_p99", 1000),
                column("p99 on ms", "p99", 1000),
                column("max on ms", "max", 1000),
                ("foreign", "foreign", "{:.2f}"),
                ("failed", fails, "{}"),
            ]
        )


def memory_use(args):
    names = usable(args, "big", lambda row: row.workers)
    rep = Report(args, f"memory, {args.workers} workers, app big, after {args.requests:,} requests", "pss")

    def body(name, srv):
        settle(srv)
        idle = sum(memory(p)[0] for p in tree(srv.proc.pid))
        failed = lab.ask(srv, args.requests, 20)
        settle(srv)
        pids, uss = tree(srv.proc.pid), [memory(p)[1] for p in srv.workers()]
        rep.add(
            name,
            {
                "pss": sum(memory(p)[0] for p in pids),
                "idle": idle,
                "uss": statistics.mean(uss),
                "max": max(uss),
                "procs": len(pids),
                "parent": memory(srv.proc.pid)[1],
                "failed": failed,
            },
        )

    rep.notes = rounds(args, names, "big", body, workers=args.workers)
    rep.show(
        [
            ("processes", "procs", "{:.0f}"),
            ("total PSS MiB, idle", "idle", "{:.1f}"),
            ("total PSS MiB", "pss", "{:.1f}"),
            ("mean USS/worker MiB", "uss", "{:.1f}"),
            ("max USS", "max", "{:.1f}"),
            ("parent's USS", "parent", "{:.1f}"),
            ("failed", "failed", "{:.0f}"),
        ],
        order=1,
    )


def fairness(args):
    names = usable(args, "mixed", lambda row: row.workers or args.workers == 1)
    rep = Report(args, f"fairness: {args.workers} workers, {args.conns} connections, 1 request in 10 takes 200 ms")

    def body(name, srv):
        drive(srv, args.conns, 1)
        r = drive(srv, args.conns, args.seconds, False, "/slow", 10)
        rep.add(name, r)
        return f"{r['rps']:.0f} rps, fast p99 {r['p99'] * 1000:.0f} ms"

    rep.notes = rounds(args, names, "mixed", body, workers=args.workers, idle=True)
    best = simulate(4 * args.workers, args.conns, float(args.seconds), fast=0.0002)
    rep.notes.append(
        f"One queue for {4 * args.workers} threads (ideal.py): {best['rps']:.0f} rps, "
        + ", ".join(f"{name} {best[key] * 1000:.0f} ms" for name, key in [("fast p50", "p50"), ("fast p99", "p99")])
    )
    rep.show(
        [
            ("rps", "rps", "{:,.0f}"),
            column("fast p50 ms", "p50", 1e-3, "{:.1f}"),
            column("fast p99 ms", "p99", 1e-3),
            column("fast max ms", "max", 1e-3),
            column("slow p50 ms", "slow50", 1e-3),
            ("connections starved", "starved", "{:.0f}"),
            ("failed", fails, "{}"),
        ]
    )


def connections(args):
    names = usable(args, "query", lambda row: row.workers)
    for conns in (20, 64):
        title = f"connections: {args.workers} workers, {args.rate} requests a second of 5 ms, {conns} clients"
        rep = Report(args, title, "open")

        def body(name, srv, conns=conns, rep=rep):
            took, said, failed = paced(srv, conns, args.seconds, args.rate)
            workers = len({word.split(b"-")[0] for word in said})
            rep.add(name, {"open": len(said), "at": workers, "p50": pct(took, 50), "p99": pct(took, 99), "bad": failed})
            return f"{len(said)} connections"

        rep.notes = rounds(args, names, "query", body, workers=args.workers)
        rep.show(
            [
                ("open at the database", "open", "{:.0f}"),
                ("workers that have one", "at", "{:.0f}"),
                column("p50 ms", "p50", 1e-3, "{:.1f}"),
                column("p99 ms", "p99", 1e-3, "{:.1f}"),
                ("failed", "bad", "{:.0f}"),
            ],
            order=1,
        )


def startup(args):
    names = usable(args, "big", lambda row: row.workers)
    rep = Report(args, f"start-up, {args.workers} workers, app big", "first")

    def body(name, srv):
        first = srv.wait_ready()
        quiet, cpu = settle(srv)
        rep.add(name, {"first": first, "quiet": quiet, "cpu": cpu, "stop": srv.stop()})
        return f"first {first:.2f}"

    rep.notes = rounds(args, names, "big", body, workers=args.workers, wait=False)
    rep.show(
        [
            ("first 200, s", "first", "{:.2f}"),
            ("all quiet, s", "quiet", "{:.2f}"),
            ("CPU s", "cpu", "{:.2f}"),
            ("SIGTERM to exit, s", "stop", "{:.2f}"),
        ],
        order=1,
    )


def reload(args):
    names = usable(args, args.app, lambda row: row.hup and row.workers)
    for mode in args.modes.split(","):
        rep = Report(
            args, f"HUP reload under load: {args.app}, {args.workers} workers, {args.conns} connections, {mode}", "secs"
        )

        def body(name, srv):
            async def hup():
                await asyncio.sleep(1.5)
                old, t0 = set(srv.workers()), time.monotonic()
                os.kill(srv.proc.pid, signal.SIGHUP)
                while time.monotonic() - t0 < args.seconds:
                    await asyncio.sleep(0.05)
                    now = set(srv.workers())
                    if not old & now and len(now) >= len(old):
                        return time.monotonic() - t0
                return float("nan")

            drive(srv, args.conns, 0.5, mode == "close")
            r = drive(srv, args.conns, args.seconds + 1.5, mode == "close", during=hup)
            r["secs"] = r["extra"]
            rep.add(name, r)
            return f"{r['secs']:.2f} s {r['failed']} gap {r['gap']:.2f}"

        rep.notes = rounds(args, names, args.app, body, workers=args.workers, idle=True)
        rep.show(
            [
                ("old workers gone, s", "secs", "{:.2f}"),
                ("rps", "rps", "{:,.0f}"),
                column("longest gap ms", "gap", 1e-3),
                column("p99 ms", "p99", 1e-3),
                column("max ms", "max", 1e-3),
                ("failed", fails, "{}"),
            ],
            order=1,
        )


def idle(args):
    names = usable(args, "raw")
    rep = Report(args, "idle keep-alive connections, 1 worker, app raw", "p50_5000")
    request = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

    def active(port, count=1000):
        """Latencies in ms of one client's sequential requests on its own connection."""
        lat, s, end = [], None, time.monotonic() + 15
        while len(lat) < count and time.monotonic() < end:
            reused, t0 = s is not None, time.perf_counter()
            try:
                s = s or socket.create_connection(("127.0.0.1", port), 2)
                lab.ping(s, request)
            except OSError:
                s = None
                if reused:  # closed by the server: once more on a new connection
                    continue
            lat.append((time.perf_counter() - t0) * 1000)
        return lat or [float("nan")]

    def body(name, srv):
        r, held = {}, []
        try:
            active(srv.port)
            mem0 = sum(memory(p)[0] for p in tree(srv.proc.pid))
            for goal in (0, 1000, 5000):
                refused, end = 0, time.monotonic() + 25
                while len(held) < goal and refused < 3 and time.monotonic() < end:
                    try:
                        held.append(socket.create_connection(("127.0.0.1", srv.port), 3))
                        lab.ping(held[-1], request)
                    except OSError:
                        refused += 1
                r[f"mem{goal}"] = sum(memory(p)[0] for p in tree(srv.proc.pid)) - mem0
                cpu0, lat = tree_cpu(srv.proc.pid), active(srv.port)
                r[f"cpu{goal}"] = (tree_cpu(srv.proc.pid) - cpu0) / len(lat) * 1e6
                r[f"p50_{goal}"], r[f"p99_{goal}"] = pct(lat, 50), pct(lat, 99)
                r[f"held{goal}"] = sum(map(lab.still_open, held))
        finally:
            for h in held:
                h.close()
        rep.add(name, r)
        return f"held {r['held5000']} {r['mem5000']:.1f} MiB p50 {r['p50_5000']:.2f}"

    rep.notes = rounds(args, names, "raw", body, idle=True, pin=lab.SERVER_CORE)
    rep.show(
        [
            ("still open of 1000", "held1000", "{:.0f}"),
            ("of 5000", "held5000", "{:.0f}"),
            ("MiB at 1000", "mem1000", "{:+.1f}"),
            ("MiB at 5000", "mem5000", "{:+.1f}"),
            ("KiB/conn", lambda rs: med([r["mem5000"] * 1024 / max(1, r["held5000"]) for r in rs]), "{:.1f}"),
            *[
                (
                    f"p50/p99 ms at {n}",
                    lambda rs, n=n: f"{med([r[f'p50_{n}'] for r in rs]):.2f}/{med([r[f'p99_{n}'] for r in rs]):.2f}",
                    "{}",
                )
                for n in (0, 1000, 5000)
            ],
        ],
        order=1,
    )


# ---------------------------------------------------------------- the suites
WSGI = "gunicorn-gthread-h1c gunicorn-sync-h1c granian-wsgi granian-wsgi-bt4 uwsgi-http11-t4 uwsgi-router bjoern fastpysgi waitress"
WSGI_MORE = (
    "gunicorn-sync gunicorn-gthread gunicorn-gevent cheroot uwsgi-http-socket uwsgi-http11 fastwsgi meinheld "
    "hypercorn-wsgi uvicorn-wsgi uvicorn-a2wsgi"
)
SOME_MORE = "cheroot meinheld uvicorn-a2wsgi"
ASGI = "uvicorn-httptools uvicorn-h11 gunicorn-asgi granian-asgi"
ASGI_MORE = "uvicorn-zttp hypercorn hypercorn-uvloop granian-asgi-rust fastpysgi-asgi"
TLS = "granian-wsgi-bt4 gunicorn-gthread uvicorn-httptools"
W, A = ("wsgi", "a2wsgi"), ("asgi",)
# suite -> what to run, kinds of server, main peers, peers added by --full, baseline, defaults of the options
SUITES = {
    "bare": (bare, W, "", "", None, {}),
    "raw": (throughput, W, WSGI, WSGI_MORE, "gunicorn-gthread-h1c", {"app": "raw"}),
    "tls": (throughput, W + A, TLS, "", "granian-wsgi-bt4", {"app": "raw"}),
    "flask": (throughput, W, WSGI, WSGI_MORE, "gunicorn-gthread-h1c", {"app": "flask"}),
    "django": (throughput, W, WSGI, WSGI_MORE, "gunicorn-gthread-h1c", {"app": "django"}),
    "asgi": (throughput, A, ASGI, ASGI_MORE, "uvicorn-httptools", {"app": "raw,starlette,django"}),
    "io": (throughput, W, WSGI, SOME_MORE, "gunicorn-gthread-h1c", {"app": "io", "modes": "keepalive"}),
    "body": (
        throughput,
        W,
        WSGI,
        SOME_MORE,
        "gunicorn-gthread-h1c",
        {"app": "stream,stream-cl,echo", "modes": "keepalive"},
    ),
    "asgi-body": (
        throughput,
        A,
        ASGI,
        ASGI_MORE,
        "uvicorn-httptools",
        {"app": "stream,stream-cl,echo", "modes": "keepalive"},
    ),
    "multi": (
        throughput,
        W,
        WSGI,
        SOME_MORE,
        "gunicorn-gthread-h1c",
        {"app": "flask", "modes": "keepalive", "workers": 2},
    ),
    "recycle": (
        recycle,
        W + A,
        "gunicorn-gthread-preload gunicorn-sync-preload uwsgi-router gunicorn-asgi-preload",
        "gunicorn-gthread-h1c gunicorn-sync-h1c uwsgi-http-socket uwsgi-router-lazy hypercorn-wsgi uvicorn-httptools",
        "gunicorn-gthread-preload",
        {"app": "flask,django", "seconds": 3, "workers": 4, "modes": "keepalive"},
    ),
    "memory": (
        memory_use,
        W + A,
        "gunicorn-gthread-preload gunicorn-sync-preload gunicorn-sync-freeze granian-wsgi uwsgi-router",
        "gunicorn-gthread-freeze gunicorn-gthread-h1c gunicorn-sync-h1c granian-wsgi-bt4 granian-asgi uwsgi-router-lazy "
        "uwsgi-http-socket bjoern fastpysgi uvicorn-httptools hypercorn-wsgi gunicorn-asgi gunicorn-asgi-preload",
        "gunicorn-gthread-preload",
        {"workers": 10, "rounds": 2},
    ),
    "startup": (
        startup,
        W + A,
        "gunicorn-gthread-preload gunicorn-sync-preload granian-wsgi uwsgi-router",
        "gunicorn-sync-h1c gunicorn-gthread-h1c granian-asgi uwsgi-router-lazy bjoern uvicorn-httptools hypercorn-wsgi "
        "gunicorn-asgi-preload",
        "gunicorn-gthread-preload",
        {"workers": 10},
    ),
    "fairness": (
        fairness,
        W + A,
        "gunicorn-gthread-h1c granian-wsgi-bt4 uwsgi-router uwsgi-http11-t4 bjoern uvicorn-httptools",
        "gunicorn-sync-h1c gunicorn-gevent granian-wsgi fastpysgi uvicorn-a2wsgi gunicorn-asgi hypercorn granian-asgi",
        "gunicorn-gthread-h1c",
        {"seconds": 5, "workers": 4, "conns": 64},
    ),
    "connections": (
        connections,
        ("wsgi",),
        "gunicorn-gthread-h1c granian-wsgi-bt4",
        "",
        "gunicorn-gthread-h1c",
        {"seconds": 10, "workers": 10},
    ),
    "reload": (
        reload,
        W + A,
        "gunicorn-gthread-preload gunicorn-sync-preload granian-wsgi uwsgi-router",
        "gunicorn-sync-h1c gunicorn-gthread-h1c uwsgi-http-socket uvicorn-httptools gunicorn-asgi",
        "gunicorn-gthread-preload",
        {"app": "django", "seconds": 20, "workers": 4, "conns": 16},
    ),
    "idle": (
        idle,
        W + A,
        "gunicorn-gthread-h1c granian-wsgi uwsgi-router bjoern uvicorn-httptools granian-asgi",
        "gunicorn-gevent waitress cheroot uwsgi-http11-t4 fastpysgi fastwsgi meinheld hypercorn uvicorn-h11 uvicorn-a2wsgi "
        "gunicorn-asgi",
        "granian-wsgi",
        {"rounds": 2},
    ),
}
DEFAULTS = {"app": "raw", "seconds": 2, "rounds": 3, "workers": 1, "conns": 32, "modes": "keepalive,close"}


def setting(names):
    """One line on the machine and the versions, to stand under a table."""
    found, dists = [], set()
    for row in (split(n)[0] for n in names if n.partition("@")[0] in SERVERS):
        dists |= {row.cmd.split()[0].removesuffix("-serve"), *row.needs.split()}
    for dist in sorted(dists):
        try:
            found.append(f"{dist} {metadata.version(dist)}")
        except metadata.PackageNotFoundError:
            pass
    return f"Python {platform.python_version()}, {len(lab.CORES)} cores" + (": " + ", ".join(found) if found else "")


def known(text):
    for name in text.split(","):
        if name.partition("@")[0] not in SERVERS:
            raise argparse.ArgumentTypeError(f"no server {name!r} (see --list)")
    return text.split(",")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("suites", nargs="*", metavar="SUITE", help="all, or any of: " + ", ".join(SUITES))
    ap.add_argument("--list", action="store_true", help="list the servers of servers.py and stop")
    ap.add_argument(
        "--servers", type=known, help="only these, comma-separated (default: ours and the suite's main peers)"
    )
    ap.add_argument("--add", type=known, default=[], help="these besides the default ones")
    ap.add_argument("--full", action="store_true", help="all the suite's peers, not only the main ones")
    ap.add_argument("--baseline", help="ratios are to this server (default: the suite's own, or the first that ran)")
    ap.add_argument("--out", default="bench-results", help="folder for tables, raw figures and logs (./bench-results)")
    ap.add_argument("--rounds", type=int)
    ap.add_argument("--seconds", type=int, help="length of one timed run; reload: the longest wait for the old workers")
    ap.add_argument("--workers", type=int)
    ap.add_argument("--conns", type=int, help="connections of the load")
    ap.add_argument("--modes", help="keepalive,close")
    ap.add_argument("--app", help="comma-separated: " + ", ".join(TARGETS))
    ap.add_argument("--maxreq", type=int, default=100, help="recycle: requests per worker")
    ap.add_argument("--rate", type=int, default=200, help="connections: requests a second")
    ap.add_argument("--requests", type=int, default=2000, help="memory: requests before the second reading")
    asked = ap.parse_args()
    if asked.list:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        for name, row in SERVERS.items():
            print(f"{name:26} {row.kind:7} {lab.missing(row) or 'ready'}")
        return
    if not asked.suites:
        ap.error("name a suite, or all, or --list")
    for word in set(asked.suites) - set(SUITES) - {"all"}:
        ap.error(f"no suite {word!r}; there are: {', '.join(SUITES)}")
    for tool in ("wrk", "taskset"):
        if not shutil.which(tool):
            ap.error(f"{tool} is not installed (apt-get install wrk util-linux)")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that servers are stopped
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.makedirs(os.path.join(asked.out, "logs"), exist_ok=True)
    for suite in SUITES if "all" in asked.suites else asked.suites:
        measure, kinds, peers, more, baseline, options = SUITES[suite]
        args = argparse.Namespace(**vars(asked), suite=suite, kinds=kinds)
        args.out = os.path.abspath(asked.out)
        for key, value in (DEFAULTS | options).items():
            if getattr(args, key) is None:
                setattr(args, key, value)
        args.baseline = asked.baseline or baseline
        wanted = asked.servers or [*OURS, *peers.split(), *(more.split() if asked.full else [])]
        args.names = list(dict.fromkeys(wanted + asked.add))
        for where in {split(name)[1] for name in args.names if name.partition("@")[0] in OURS}:
            lab.compile_ours(where)
        open(os.path.join(args.out, suite + ".md"), "w").close()
        measure(args)


if __name__ == "__main__":
    main()
