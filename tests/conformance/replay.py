#!/usr/bin/env python3
"""Replay the cases of cases.json against an HTTP/1.1 server and judge its answers. Standard library only; see README.md."""

import argparse
import base64
import collections
import concurrent.futures
import fnmatch
import hashlib
import json
import os
import pathlib
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse

HERE = pathlib.Path(__file__).resolve().parent
TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9]\d\d) ([\t \x21-\x7e\x80-\xff]*)\r\n")
FIELD_LINE = re.compile(rb"(" + TOKEN + rb"):[ \t]*([\t \x21-\x7e\x80-\xff]*?)[ \t]*\r\n")
CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]+)[ \t]*(?:;[^\r\n]*)?\r\n")
LIMIT = 2.8  # seconds for a whole case
CLOSE_WAIT = 1.5  # how long a server that must close may take to do so
QUIET = 0.15  # after the last expected response: time for one response too many
SILENCE = 0.4  # how long an incomplete request is watched


# -- reading responses ------------------------------------------------------------------------------------------------


class Malformed(Exception):
    """The server sent something that is not an HTTP/1.1 response."""


class More(Exception):
    """The rest has not arrived yet."""


class Response:
    def __init__(self, status, fields):
        self.status, self.fields, self.body, self.framing = status, fields, b"", "none"

    def get(self, name):
        values = [v for k, v in self.fields if k == name]
        return ", ".join(values) if values else None

    @property
    def says_close(self):
        return "close" in [t.strip().lower() for t in (self.get("connection") or "").split(",")]


def read_head(raw, pos):
    if (end := raw.find(b"\r\n\r\n", pos)) < 0:
        if pos < len(raw) and not b"HTTP/1.".startswith(raw[pos : pos + 7]):
            raise Malformed(f"not a status line: {raw[pos : pos + 40]!r}")
        raise More
    line = STATUS_LINE.match(raw, pos)
    if not line:
        raise Malformed(f"not a status line: {raw[pos : pos + 40]!r}")
    fields, at = [], line.end()
    while at < end + 2:
        field = FIELD_LINE.match(raw, at)
        if not field:
            raise Malformed(f"not a field line: {raw[at : at + 40]!r}")
        fields.append((field[1].decode().lower(), field[2].decode("latin-1")))
        at = field.end()
    return Response(int(line[1]), fields), end + 4


def read_chunked(raw, pos):
    body = b""
    while True:
        line = CHUNK_LINE.match(raw, pos)
        if not line:
            if b"\n" in raw[pos:]:
                raise Malformed(f"not a chunk line: {raw[pos : pos + 40]!r}")
            raise More
        size, pos = int(line[1], 16), line.end()
        if size == 0:
            while raw[pos : pos + 2] != b"\r\n":
                field = FIELD_LINE.match(raw, pos)
                if not field:
                    raise More
                pos = field.end()
            return body, pos + 2
        if len(raw) < pos + size + 2:
            raise More
        body += raw[pos : pos + size]
        pos += size + 2
        if raw[pos - 2 : pos] != b"\r\n":
            raise Malformed("chunk data without CRLF")


def read_response(raw, pos, method, eof):
    response, pos = read_head(raw, pos)
    coding, length = response.get("transfer-encoding"), response.get("content-length")
    if response.status < 200 or response.status == 204:
        if coding is not None or length is not None:
            raise Malformed(f"{response.status} with Content-Length or Transfer-Encoding")
        return response, pos
    if coding is not None and length is not None:
        raise Malformed("both Content-Length and Transfer-Encoding")
    if length is not None and not length.isdecimal():
        raise Malformed(f"Content-Length: {length}")
    if method == "HEAD" or response.status == 304:
        return response, pos
    if coding is not None:
        response.framing = "chunked"
        if coding.lower() != "chunked":
            raise Malformed(f"Transfer-Encoding: {coding}")
        response.body, pos = read_chunked(raw, pos)
    elif length is not None:
        response.framing, end = "length", pos + int(length)
        if len(raw) < end:
            raise More
        response.body, pos = raw[pos:end], end
    else:
        response.framing = "close"
        if not eof:
            raise More
        response.body, pos = raw[pos:], len(raw)
    return response, pos


class Answers:
    """Everything that came back on one connection."""

    def __init__(self, methods):
        self.methods, self.raw, self.pos = methods, b"", 0
        self.interim, self.final = [], []
        self.closed = False  # by the server, in time
        self.malformed = None

    def feed(self, data=b"", eof=False):
        self.raw += data
        self.closed = self.closed or eof
        while self.pos < len(self.raw) and not self.malformed:
            method = self.methods[len(self.final)] if len(self.final) < len(self.methods) else "GET"
            try:
                response, self.pos = read_response(self.raw, self.pos, method, self.closed)
            except More:
                return
            except Malformed as e:
                self.malformed = str(e)
                return
            (self.interim if response.status < 200 else self.final).append(response)

    @property
    def rest(self):
        return self.raw[self.pos :]

    def __str__(self):
        seen = [str(r.status) for r in self.interim + self.final]
        return f"[{' '.join(seen) or 'nothing'}{', closed' if self.closed else ''}]"


# -- sending a case ---------------------------------------------------------------------------------------------------


def octets(item):
    if isinstance(item, str):
        return item.encode("latin-1")
    return base64.b64decode(item["base64"]) if "base64" in item else item["repeat"].encode("latin-1") * item["times"]


def octets_of(items):
    return b"".join(map(octets, items))


def plan(case):
    """The steps of a case: bytes to send, seconds to pause, or a kind of response to wait for."""
    steps, cut, run = [], case.get("cut"), b""
    for item in [*case["send"], {"wait": None}]:
        if isinstance(item, str) or "wait" not in item:
            run += octets(item)
            continue
        if run and cut:
            at = list(range(0, len(run), cut)) if isinstance(cut, int) else [0, *cut]
            for a, b in zip(at, [*at[1:], len(run)]):
                steps += [run[a:b], case.get("pause", 0.02)]
        elif run:
            steps.append(run)
        steps, run = [*steps, item["wait"]] if item["wait"] else steps, b""
    return steps


def exchange(address, case, enough):
    """Send a case while reading; stop when the server closes, when enough(answers) says after how long, or at the limit."""
    answers = Answers([r["method"] if r else "GET" for r in case["expect"].get("requests", [])])
    steps = collections.deque(plan(case))
    start = time.monotonic()
    not_before, last, seen, half = start, start, 0, case.get("half_close", False)
    with socket.create_connection(address, timeout=LIMIT) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        while (now := time.monotonic()) < start + LIMIT:
            while steps and now >= not_before:
                if isinstance(steps[0], (int, float)):
                    not_before = now + steps.popleft()
                elif isinstance(steps[0], str):
                    met = (answers.interim or answers.final) if steps[0] == "continue" else len(answers.final) > seen
                    if not met:
                        break
                    seen = len(answers.final)
                    steps.popleft()
                else:
                    try:
                        sent = sock.send(steps[0])
                    except BlockingIOError:
                        break
                    except OSError:  # the server has closed: whatever it said can still be read
                        steps.clear()
                        break
                    steps[0] = steps[0][sent:]
                    if not steps[0]:
                        steps.popleft()
                    last = time.monotonic()
            if not steps and half:
                half = False
                try:
                    sock.shutdown(socket.SHUT_WR)
                except OSError:
                    pass
            writing = bool(steps) and isinstance(steps[0], bytes) and now >= not_before
            poll.modify(sock, select.POLLIN | (select.POLLOUT if writing else 0))
            until = start + LIMIT
            if steps and now < not_before:
                until = not_before
            elif not steps or isinstance(steps[0], str):
                patience = enough(answers)
                if patience is not None and not (steps and answers.final == []):
                    until = min(until, last + patience)
            if until <= now:
                break
            if not poll.poll((until - now) * 1000 + 1):
                continue
            try:
                data = sock.recv(1 << 17)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            answers.feed(data, eof=not data)
            last = time.monotonic()
            if not data:
                break
    return answers


# -- judging ----------------------------------------------------------------------------------------------------------


def spaced(value):
    """A field value for comparison: runs of whitespace are one space, none around list commas."""
    return ",".join(re.sub(r"[ \t]+", " ", part).strip() for part in value.split(","))


def text(value):
    return octets_of(value["join"]).decode("latin-1") if isinstance(value, dict) else value


def one_of(want, got):
    return got in want if isinstance(want, list) else got == text(want)


def unlike(want, response):
    """What the application reports must be what was asked; returns the first difference."""
    if want is None or want["method"] == "HEAD":
        return None
    try:
        saw = json.loads(response.body)
        saw["headers"]
    except (ValueError, KeyError, TypeError):
        return f"answer is not the app's: {response.body[:40]!r}"
    saw["target"] = (saw["target"] or "").split("?")[0] or want.get("target")  # not every interface tells
    for key in ("method", "path", "target", "query", "protocol"):
        if want.get(key) is not None and not one_of(want[key], saw[key]):
            return f"{key} is {saw[key]!r}, not {want[key]!r}"
    body = want.get("body", "")
    if isinstance(body, str):
        body = {"length": len(body), "sha256": hashlib.sha256(body.encode("latin-1")).hexdigest()}
    if (saw["length"], saw["sha256"]) != (body["length"], body["sha256"]):
        have = base64.b64decode(saw["body"]) if saw["body"] else b""
        return f"body of {saw['length']} octets {have[:30]!r}, not the {body['length']} sent"
    have = {}
    for name, value in saw["headers"]:
        have.setdefault(name.lower(), []).append(spaced(value))
    have = {name: ",".join(values) for name, values in have.items()}
    for name, value in want.get("headers", {}).items():
        if value is None:
            if name in have:
                return f"{name} reached the app: {have[name]!r}"
        elif have.get(name) not in [spaced(text(v)) for v in (value if isinstance(value, list) else [value])]:
            return f"{name} is {have.get(name)!r}, not {value!r}"
    return None


def misframed(want, response):
    """For the paths that do not echo: status, body, framing and fields of the response itself."""
    if "status" in want and not one_of(want["status"], response.status):
        return f"status is {response.status}, not {want['status']}"
    if "body" in want and response.body != want["body"].encode("latin-1"):
        return f"response body is {response.body[:40]!r}"
    if "framing" in want and not one_of(want["framing"], response.framing):
        return f"response is framed by {response.framing}, not {want['framing']}"
    for name, value in want.get("fields", {}).items():
        have = response.get(name)
        if value is True and have is None:
            return f"response lacks {name}"
        if value is None and have is not None:
            return f"response has {name}: {have}"
        if isinstance(value, str) and (have or "").lower() != value:
            return f"response has {name}: {have}, not {value}"
    return None


def refusal(status, expect):
    allowed = expect.get("status")
    if allowed is None:
        return 400 <= status < 500 or status in (501, 505) or status == 500 and expect.get("in_body", False)
    return status in allowed


def served(case, answers, count):
    """The first `count` requests must each have their proper final response."""
    expect = case["expect"]
    wants = expect.get("requests", [])[:count]
    special = expect.get("responses", [])
    for i, want in enumerate(wants):
        if i >= len(answers.final):
            if i and expect.get("may_close") and answers.closed:
                return None
            return f"{i} of {len(wants)} responses" + (
                f", then cut short: {answers.rest[:40]!r}" if answers.rest else ""
            )
        response = answers.final[i]
        if i < len(special) and special[i] is not None:
            problem = misframed(special[i], response)
        elif not 200 <= response.status < 300:
            problem = f"refused with {response.status}"
        else:
            problem = unlike(want, response)
        if problem:
            return f"request {i + 1}: {problem}" if len(wants) > 1 else problem
    return None


def accepted(case, answers):
    expect = case["expect"]
    count = len(expect.get("requests", []))
    if problem := served(case, answers, count):
        return problem
    if len(answers.final) > count:
        return f"{len(answers.final) - count} responses too many: {answers.final[count].status}"
    if answers.rest:
        return f"octets after the last response: {answers.rest[:40]!r}"
    if "interim" in expect and not one_of(expect["interim"], [r.status for r in answers.interim]):
        return f"interim responses {[r.status for r in answers.interim]}, not {expect['interim']}"
    if expect.get("close") and not answers.closed:
        return "connection not closed"
    return None


def refused(case, answers):
    expect = case["expect"]
    before = expect.get("before", 0)
    if problem := served(case, answers, before):
        return problem
    errors = answers.final[before:]
    if any(r.status < 400 for r in errors):
        return f"accepted with {errors[0].status}"
    if answers.interim and expect.get("interim") == []:
        return "100 (Continue) before the refusal"
    if len(errors) > 1:
        return f"{len(errors)} responses where one refusal ends it"
    if errors and not refusal(errors[0].status, expect):
        return f"refused with {errors[0].status}, not {expect.get('status', '4xx, 501 or 505')}"
    if not errors and "status" in expect:
        return f"{'closed' if answers.closed else 'silent'} without {' or '.join(map(str, expect['status']))}"
    if not answers.closed:
        return "connection not closed" if errors else "neither answered nor closed"
    return None


def waited(case, answers):
    bad = [r.status for r in answers.final if r.status < 400 or r.status == 500 and not case["expect"].get("in_body")]
    return f"answered an incomplete request with {bad[0]}" if bad else None


def cut_short(case, answers):
    whole = case["expect"].get("responses")  # also good: exactly this complete response
    if whole and len(answers.final) == 1 and not answers.rest and not misframed(whole[0], answers.final[0]):
        return None
    if any(r.status < 500 for r in answers.final):
        return f"a response that looks complete: {answers.final[0].body[:40]!r}"
    if not answers.closed:
        return "connection not closed"
    return None if answers.final or answers.rest else "closed without a word"


def judge(case, answers, calls):
    """Returns (must problem or None, should problem or None); the tier of a case decides which of them counts."""
    expect, verdict = case["expect"], case["expect"]["verdict"]
    ok, no = accepted(case, answers), refused(case, answers)
    problem = {
        "accept": ok,
        "close-after": ok,
        "reject": no,
        "either": ok and no and f"{ok}; {no}",
        "wait": waited(case, answers),
        "cut": cut_short(case, answers),
    }[verdict]
    if expect.get("may_wait") and not answers.raw and not answers.closed:
        problem = None
    if answers.malformed:
        problem = answers.malformed
    most = expect.get("calls")
    if most is None:
        most = {"reject": expect.get("before", 0) + expect.get("in_body", False), "wait": 1, "cut": 1}.get(
            verdict, len(expect.get("requests", []))
        )
    if not problem and calls > most:
        problem = f"the app was called {calls} times, not {most}"
    prefer = expect.get("prefer")
    taste = None
    if prefer and not problem:
        taste = (no and "taken, better refused") if prefer == "reject" else (ok and f"refused, better taken: {ok}")
    return problem, taste


def patience(case):
    """How long to go on reading, given what has come so far (None: as long as it takes)."""
    expect, verdict = case["expect"], case["expect"]["verdict"]
    count = len(expect.get("requests", []))

    def enough(answers):
        if answers.malformed or len(answers.final) > count + 1:
            return 0
        if verdict == "wait":
            return CLOSE_WAIT if case.get("half_close") else SILENCE
        if answers.final and (answers.final[-1].status >= 400 and verdict != "accept" or answers.final[-1].says_close):
            return CLOSE_WAIT
        if len(answers.final) >= count and verdict in ("accept", "either") and not expect.get("close"):
            return QUIET
        return CLOSE_WAIT if verdict != "accept" else None

    return enough


# -- real clients -----------------------------------------------------------------------------------------------------


def echo_of(raw):
    return json.loads(raw)


def curl(url, *args, data=b""):
    command = ["curl", "--silent", "--show-error", "--http1.1", "--noproxy", "*", "--max-time", "3", *args, url]
    done = subprocess.run(command, input=data, capture_output=True, timeout=5)
    if done.returncode:
        raise AssertionError(f"curl: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def client_curl(base):
    if not shutil.which("curl"):
        return
    big = b"0123456789abcdef" * 65536
    digest = hashlib.sha256(big).hexdigest()
    yield "get", lambda: echo_of(curl(base + "/curl?a=b"))["query"] == "a=b"
    yield "head", lambda: curl(base + "/curl", "--head").startswith(b"HTTP/1.1 200")
    yield "post-form", lambda: echo_of(curl(base + "/curl", "--data", "a=1&b=2"))["length"] == 7
    yield (
        "put-1m",
        lambda: (
            echo_of(
                curl(
                    base + "/curl", "-T", "-", "-H", "Transfer-Encoding:", "-H", f"Content-Length: {len(big)}", data=big
                )
            )["sha256"]
            == digest
        ),
    )
    yield "put-1m-chunked", lambda: echo_of(curl(base + "/curl", "-T", "-", data=big))["sha256"] == digest
    yield (
        "post-expect",
        lambda: (
            echo_of(curl(base + "/curl", "--data-binary", "@-", "-H", "Expect: 100-continue", data=big))["sha256"]
            == digest
        ),
    )
    yield "http10", lambda: echo_of(curl(base + "/curl", "--http1.0"))["protocol"] == "HTTP/1.0"
    yield "stream", lambda: curl(base + "/stream") == b"one\ntwo\nthree\n"
    yield "stream-http10", lambda: curl(base + "/stream", "--http1.0") == b"one\ntwo\nthree\n"
    yield (
        "two-on-one-connection",
        lambda: (
            curl(
                base + "/curl",
                "-o",
                os.devnull,
                base + "/curl",
                "-o",
                os.devnull,
                "-w",
                "%{http_code}:%{num_connects} ",
            )
            == b"200:1 200:0 "
        ),
    )


def client_stdlib(base):
    import http.client

    where = urllib.parse.urlsplit(base).netloc

    def many():
        connection = http.client.HTTPConnection(where, timeout=2)
        for i in range(20):
            connection.request(
                "POST",
                f"/many/{i}",
                body=iter([b"a" * i, b"b"]),
                encode_chunked=True,
                headers={"Transfer-Encoding": "chunked"},
            )
            saw = echo_of(connection.getresponse().read())
            if (saw["path"], saw["length"]) != (f"/many/{i}", i + 1):
                return False
        return True

    def clients():
        connections = [http.client.HTTPConnection(where, timeout=2.5) for _ in range(30)]
        for i, connection in enumerate(connections):
            connection.request("GET", f"/clients/{i}")
        saw = [echo_of(connection.getresponse().read())["path"] for connection in connections]
        for connection in connections:
            connection.close()
        return saw == [f"/clients/{i}" for i in range(30)]

    yield "20-posts-on-one-connection", many
    yield "30-connections-at-once", clients


def client_httpx(base):
    try:
        import httpx
    except ImportError:
        return

    def one_client():
        with httpx.Client(base_url=base, timeout=2.5, trust_env=False) as client:
            first = client.get("/httpx", params={"q": "ä b"}).json()
            second = client.post("/httpx", files={"f": ("n", b"x" * 100000)}).json()
            third = client.put("/httpx", content=iter([b"a", b"b" * 70000])).json()
            head = client.head("/httpx")
        return (
            (first["query"] == "q=%C3%A4+b" or first["query"] == "q=%C3%A4%20b")
            and second["length"] > 100000
            and third["length"] == 70001
            and head.status_code == 200
            and not head.content
        )

    yield "one-client", one_client

    def stream():
        with httpx.stream("GET", base + "/stream", timeout=2.5, trust_env=False) as response:
            return b"".join(response.iter_raw()) == b"one\ntwo\nthree\n"

    yield "stream", stream


def client_checks(base):
    for kind, checks in (("curl", client_curl), ("stdlib", client_stdlib), ("httpx", client_httpx)):
        for name, check in checks(base):
            yield f"client-{kind}-{name}", check


# -- the server under test --------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """The server under test, started from a command template in a process group of its own."""

    def __init__(self, command, log):
        self.port = free_port()
        self.folder = tempfile.mkdtemp(prefix="conformance-")
        self.calls = os.path.join(self.folder, "calls")
        self.log = open(log or os.path.join(self.folder, "log"), "w+b")
        path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "CONFORMANCE_CALLS": self.calls, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            self.process = subprocess.Popen(
                shlex.split(command.format(port=self.port)),
                cwd=HERE,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as e:
            sys.exit(f"the server did not start: {e}")

    def ended(self):
        """Whether the leader has ended; it is not reaped where that can be avoided, so that its number stays taken."""
        if hasattr(os, "waitid"):
            return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        return self.process.poll() is not None

    def __enter__(self):
        end = time.monotonic() + 20
        while time.monotonic() < end and not self.ended():
            try:
                if b" 200 " in self.ask():
                    return self
            except OSError:
                pass
            time.sleep(0.1)
        self.log.seek(0)
        tail = self.log.read()[-2000:].decode(errors="replace")
        self.__exit__()
        sys.exit(f"the server did not start:\n{tail}")

    def ask(self):
        with socket.create_connection(("127.0.0.1", self.port), timeout=2) as s:
            s.sendall(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return s.recv(4096)

    def __exit__(self, *_):
        """End the leader, then whatever is left of its group: nothing that this object did not start."""
        if not self.ended():
            self.process.terminate()
        end = time.monotonic() + 5
        while not self.ended() and time.monotonic() < end:
            time.sleep(0.05)
        if self.process.returncode is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
            self.process.wait()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def read_calls(path):
    """How often the app was called for each case; a case is known by its id, one segment of its paths."""
    count = collections.Counter()
    if path and os.path.exists(path):
        for line in open(path, "rb"):
            count.update(set(json.loads(line)[1].split("?")[0].split("/")))
    return count


# -- command line -----------------------------------------------------------------------------------------------------


def select_cases(args):
    cases = json.loads((HERE / "cases.json").read_text())
    if args.only:
        cases = [c for c in cases if any(fnmatch.fnmatch(c["id"], p) or p in c["id"] for p in args.only)]
    if args.section:
        cases = [c for c in cases if c["section"].startswith(args.section) or c["section"].split()[-1] == args.section]
    return cases


def run(args, address, calls_file, cases):
    results = []

    def one(case):
        try:
            return case, exchange(address, case, patience(case))
        except OSError as e:
            return case, f"{type(e).__name__}: {e}"

    with concurrent.futures.ThreadPoolExecutor(args.threads) as pool:
        done = list(pool.map(one, cases))
    if not args.section:
        base = f"http://{address[0]}:{address[1]}"
        for name, check in client_checks(base):
            if args.only and not any(fnmatch.fnmatch(name, p) or p in name for p in args.only):
                continue
            try:
                problem = None if check() else "the answer is not the expected one"
            except Exception as e:
                problem = f"{type(e).__name__}: {e}"
            results.append({"id": name, "tier": "must", "section": "clients", "problem": problem, "got": ""})
    time.sleep(0.2)
    calls = read_calls(calls_file)
    for case, answers in done:
        row = {"id": case["id"], "tier": case["tier"], "section": case["section"], "got": str(answers)}
        if isinstance(answers, str):
            results.append({**row, "problem": answers})
            continue
        problem, taste = judge(case, answers, calls[case["id"]])
        results.append({**row, "problem": problem})
        if case["expect"].get("prefer"):
            results.append({**row, "id": case["id"] + "~prefer", "tier": "should", "problem": problem or taste})
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--command", help="start this server; {port} is replaced by a free port")
    target.add_argument("--url", help="talk to a server that already runs, such as http://127.0.0.1:8000")
    parser.add_argument("--calls", help="with --url: the file named by CONFORMANCE_CALLS in the server's environment")
    parser.add_argument(
        "--only", action="append", metavar="PATTERN", help="only cases whose id contains or matches this"
    )
    parser.add_argument("--section", help='only this section, such as "RFC 9112 7.1" or 7.1')
    parser.add_argument("--threads", type=int, default=16, help="cases at a time (default 16)")
    parser.add_argument("--json", metavar="OUT", help="write every result to this file")
    parser.add_argument("--log", metavar="OUT", help="keep the server's output in this file")
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    args = parser.parse_args()
    cases = select_cases(args)
    if args.list:
        for case in cases:
            print(f"{case['id']:42} {case['tier']:6} {case['expect']['verdict']:11} {case['section']:15} {case['why']}")
        return 0
    if args.url:
        parts = urllib.parse.urlsplit(args.url)
        results = run(args, (parts.hostname, parts.port or 80), args.calls, cases)
    elif args.command:
        with Server(args.command, args.log) as server:
            results = run(args, ("127.0.0.1", server.port), server.calls, cases)
            alive = b" 200 " in server.ask()
        results.append(
            {
                "id": "alive-afterwards",
                "tier": "must",
                "section": "server",
                "got": "",
                "problem": None if alive else "the server no longer answers",
            }
        )
    else:
        parser.error("one of --command and --url is needed")
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(results, indent=1))
    for row in sorted(results, key=lambda r: (r["tier"], r["section"])):
        if row["problem"]:
            print(f"{row['tier']:6} {row['id']:42} {row['section']:15} {row['problem']} {row['got']}")
    for tier, label in (("must", ""), ("should", "should: ")):
        bad = [r["problem"] is not None for r in results if r["tier"] == tier]
        print(f"{label}{len(bad) - sum(bad)} passed, {sum(bad)} failed")
    return 1 if any(r["problem"] and r["tier"] == "must" for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
