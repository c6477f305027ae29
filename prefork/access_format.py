r"""What does a line of the access log say, and in which form?

Pure: entries go in, lines come out. A form is compiled once, into a function; and what follows from the first line or
from the field lines of a request alone is made once for all requests that repeat them.

Whatever a client sent may stand in a line. JSON escapes it as JSON does; elsewhere quotes and backslashes get a
backslash, and all that is no printable ASCII becomes ``\xhh``, as in Apache. So one request is one line.
"""

from __future__ import annotations

import binascii
import json
import re
import time
from base64 import b64decode
from dataclasses import dataclass
from functools import cache
from json.encoder import encode_basestring_ascii as quoted
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from prefork.errors import ConfigError
from prefork.values import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import CodeType

    from prefork.http1.messages import Head, Request

COMMON = '%h %l %u %t "%r" %>s %b'
FORMATS: Mapping[str, str] = {"common": COMMON, "combined": COMMON + ' "%{Referer}i" "%{User-Agent}i"'}
"""The formats of Apache that have a name."""
FAILED = "500"
"""From which status on an answer is the server's failure (RFC 9110 section 15.6)."""

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_PLAIN = re.compile(r"[ !#-\[\]-~]*")
_ESCAPES = {
    **{code: f"\\x{code:02x}" for code in (*range(32), *range(127, 256))},
    **{ord(one): two for one, two in {"\n": r"\n", "\r": r"\r", "\t": r"\t", '"': r"\"", "\\": r"\\"}.items()},
}

Outcome: TypeAlias = Literal["complete", "client_gone", "failed", "timeout", "turned_away"]
"""How a request ended: it was answered; the client left; the application raised; it took, or had waited, too long."""


@dataclass(slots=True, eq=False)
class Entry:
    """One request that was answered, as the access log is told of it.

    ``status`` has three digits. ``duration_s`` is for how many seconds it was at the application, ``queue_s`` how many it
    had waited until then, ``None`` if nobody knows. ``received`` and ``sent`` count bytes of body. ``fields`` are those
    of the answer, ``closes`` says whether the connection ends behind it. ``environ`` is the WSGI environ, or whatever
    else has a ``REMOTE_USER``; it may be empty where no form reads it. ``context`` is what the application has bound to the request for its own log.
    """

    request: Request
    client: str
    scheme: str
    environ: Mapping[str, Any]
    status: str
    fields: Sequence[tuple[str, str]]
    received: int
    sent: int
    duration_s: float
    queue_s: float | None
    outcome: Outcome
    closes: bool
    request_id: str
    context: Mapping[str, Any]


# Forms: texts, and values between them.


Place: TypeAlias = Literal["line", "head", "now", "entry"]
"""Where a value comes from: the first line of a request, its head, the moment of writing, or anything else of the entry."""


class Atom(Value):
    """A value in a form: an expression in Python of its place, and how what it yields is formatted.

    One of the entry may look at the moment as well. The value needs no care, if ``kind`` is not ``text``, which may be
    anything, ``word``, which is a token, or ``maybe``, a number or none.
    """

    of: Place
    code: str
    spec: str = ""
    kind: Literal["", "text", "word", "maybe"] = ""


class Form:
    """A sequence of texts and atoms, compiled; call it with entries and the time, and it returns their lines.

    ``known`` are further names that its expressions use, for what is different in each process.
    """

    __slots__ = ("_fill", "_of", "reads_environ")

    def __init__(self, parts: Iterable[str | Atom], known: Mapping[str, Any]) -> None:
        parts = list(parts)
        names = {**_KNOWN, **known}
        self.reads_environ = any(isinstance(part, Atom) and "environ" in part.code for part in parts)
        """Whether an entry needs its ``environ``, which is large: it may be empty otherwise."""
        self._of: dict[Place, list[Callable[[Any], str]]] = {"line": [], "head": [], "now": []}
        whole: list[str | Atom] = []
        for run in _runs(parts):
            first = run[0]
            if isinstance(first, str) or first.of == "entry":
                whole += run
            else:
                kept = self._of[first.of]
                whole.append(Atom("entry", f"of_{first.of}[{len(kept)}]"))
                kept.append(_compiled(first.of, run, names))
        self._fill = _compiled("entry, now, of_line, of_head, of_now", whole, names)

    def __call__(self, entries: Iterable[Entry], now: float) -> list[str]:
        """Return a line for each entry, without its end; ``now`` is the time in seconds since the epoch."""
        fill = self._fill
        of_now = [make(now) for make in self._of["now"]]
        lines = []
        for entry in entries:
            line, head = entry.request.line, entry.request.head
            of_line, of_head = line.written, head.written
            if of_line is None or of_line[0] is not self:
                of_line = line.written = (self, [make(line) for make in self._of["line"]])
            if of_head is None or of_head[0] is not self:
                of_head = head.written = (self, [make(head) for make in self._of["head"]])
            lines.append(fill(entry, now, of_line[1], of_head[1], of_now))
        return lines


def _runs(parts: Iterable[str | Atom]) -> Iterator[list[str | Atom]]:
    """Yield parts by themselves, but together what begins with an atom of anything but the entry and is of nothing else."""
    run: list[str | Atom] = []
    for part in parts:
        first = run[0] if run else "entry"
        if isinstance(first, Atom) and first.of != "entry" and (isinstance(part, str) or part.of == first.of):
            run.append(part)
        else:
            if run:
                yield run
            run = [part]
    if run:
        yield run


def _compiled(of: str, parts: Iterable[str | Atom], names: Mapping[str, Any]) -> Callable[..., str]:
    """Return a function of ``of`` that makes the text of ``parts``, by the fastest means that Python has."""
    template, statements = "", list[str]()
    for part in parts:
        if isinstance(part, str):
            template += part.replace("{", "{{").replace("}", "}}")
        else:
            template += f"{{value{len(statements)}:{part.spec}}}" if part.spec else f"{{value{len(statements)}}}"
            statements.append(f"    value{len(statements)} = {part.code}")
    space = dict(names)
    source = "\n".join([f"def make({of}):", *statements, f"    return f{template!r}"])
    exec(_code(source), space)  # noqa: S102 - as dataclasses does; what the user wrote is in it as literals alone
    made: Callable[..., str] = space["make"]
    return made


@cache
def _code(source: str) -> CodeType:
    """Return a source compiled. What the parent has compiled no worker needs to."""
    return compile(source, "<access log>", "exec")


# What there is to be said of a request.

FIELDS: Mapping[str, Atom] = {
    "method": Atom("line", "line.method", kind="word"),
    "path": Atom("line", "text(line.path)", kind="text"),
    "query": Atom("line", "text(line.query)", kind="text"),
    "http_version": Atom("line", "line.version", kind="word"),
    "status": Atom("entry", "entry.status"),
    "duration_s": Atom("entry", "entry.duration_s", ".6f"),
    "queue_s": Atom("entry", "entry.queue_s", kind="maybe"),
    "request_bytes": Atom("entry", "entry.received"),
    "response_bytes": Atom("entry", "entry.sent"),
    "client": Atom("entry", "entry.client", kind="text"),
    "scheme": Atom("entry", "entry.scheme", kind="word"),
    "host": Atom("head", "text(head.host)", kind="text"),
    "user_agent": Atom("head", "field(head, 'User-Agent')", kind="text"),
    "referer": Atom("head", "field(head, 'Referer')", kind="text"),
    "outcome": Atom("entry", "entry.outcome", kind="word"),
    "request_id": Atom("entry", "entry.request_id", kind="text"),
}
"""The fields of ``request.finished``."""


def record_of(entry: Entry, *, with_id: bool) -> dict[str, Any]:
    """Return the fields of ``request.finished``; ``with_id`` if requests have an id."""
    line, head = entry.request.line, entry.request.head
    record = {
        **entry.context,
        "method": line.method,
        "path": _text(line.path),
        "query": _text(line.query),
        "http_version": line.version,
        "status": int(entry.status),
        "duration_s": round(entry.duration_s, 6),
        "queue_s": entry.queue_s,
        "request_bytes": entry.received,
        "response_bytes": entry.sent,
        "client": entry.client,
        "scheme": entry.scheme,
        "host": _text(head.host),
        "user_agent": field(head, "User-Agent"),
        "referer": field(head, "Referer"),
        "outcome": entry.outcome,
    }
    return {**record, "request_id": entry.request_id} if with_id else record


def _text(octets: bytes) -> str:
    """Return what a client sent, octet by octet."""
    return octets.decode("latin-1")


def field(head: Head, name: str) -> str:
    """Return the value of a field of a request; empty if there is none."""
    wanted = name.lower().encode("latin-1", "replace")
    return ", ".join([_text(value) for key, value in head.fields if key.lower() == wanted])


# JSON.


def json_form(writer: Mapping[str, Any], *, with_id: bool) -> Form:
    """Return the form that makes JSON of ``request.finished``; ``with_id`` if requests have an id.

    ``writer`` is what the record says of who writes it.
    """
    who = {"logger": "prefork.access", "event": "request.finished", **writer}
    names = [name for name in FIELDS if with_id or name != "request_id"]
    said = {"timestamp", "level", *who, *names}
    parts: list[str | Atom] = [
        '{"timestamp": "',
        *(Atom("now", "utc(int(now))"), ".", Atom("now", "int(now * 1_000_000) % 1_000_000", "06d")),
        'Z", "level": "',
        *(Atom("entry", f"'info' if entry.status < {FAILED!r} else 'error'"), '", ', Atom("now", "who")),
    ]
    for name in names:
        parts += [f', "{name}": ', *_in_json(FIELDS[name])]
    parts += [Atom("entry", "more(entry.context, said) if entry.context else ''"), "}"]
    return Form(parts, {"who": json.dumps(who)[1:-1], "said": said})


def _in_json(atom: Atom) -> Iterator[str | Atom]:
    match atom.kind:
        case "text":
            yield Atom(atom.of, f"quoted({atom.code})")
        case "word":
            yield from ('"', atom, '"')
        case "maybe":
            # Mostly 0, which need not be formatted.
            yield Atom(atom.of, f"{atom.code} or ('null' if {atom.code} is None else '0.0')")
        case _:
            yield atom


def _more(context: Mapping[str, Any], said: set[str]) -> str:
    """Return what the application has bound, as a part of a JSON object, without what was said already."""
    new = {str(name): value for name, value in context.items() if name not in said}
    return ", " + json.dumps(new, default=str)[1:-1] if new else ""


# Times. A second has many requests.


class _EachSecond:
    """A text that changes with the second."""

    def __init__(self, make: Callable[[int], str]) -> None:
        self._make = make
        self._known = (-1, "")

    def __call__(self, second: int) -> str:
        """Return the text of a second."""
        known = self._known  # one look: another thread may put the next second there
        if known[0] != second:
            known = self._known = (second, self._make(second))
        return known[1]


class _Clocks(dict[str, _EachSecond]):
    """Clocks by the format that they write, as strftime(3) has it, in local time."""

    def __missing__(self, style: str) -> _EachSecond:
        clock = self[style] = _EachSecond(lambda second: _shown(time.strftime(style, time.localtime(second))))
        return clock


def _common_time(second: int) -> str:
    """Return a time as the common log format has it, whatever the locale."""
    now = time.localtime(second)
    return f"[{now.tm_mday:02}/{_MONTHS[now.tm_mon - 1]}/{now.tm_year}:{time.strftime('%H:%M:%S %z', now)}]"


_clocks = _Clocks()
_common = _EachSecond(_common_time)
_utc = _EachSecond(lambda second: time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))


def _when(style: str) -> Atom:
    """Return the time of a request as ``%{style}t`` asks for it."""
    moment = "now" if style.startswith("end:") else "(now - entry.duration_s)"
    style = style.removeprefix("begin:").removeprefix("end:")
    if not style:
        return Atom("entry", f"common(int({moment}))")
    if style in _COUNTS:
        per_second, spec = _COUNTS[style]
        whole = f"int({moment} * {per_second})"
        return Atom("entry", f"{whole} % {per_second}" if spec else whole, spec)
    return Atom("entry", f"clocks[{style!r}](int({moment}))")


_COUNTS = {
    "sec": (1, ""),
    "msec": (1000, ""),
    "usec": (1_000_000, ""),
    "msec_frac": (1000, "03d"),
    "usec_frac": (1_000_000, "06d"),
}


# Formats of Apache and gunicorn.


def _escaped(value: str) -> str:
    r"""Return a value fit to stand in quotes: ``"`` and ``\`` escaped, and all that is no printable ASCII."""
    if _PLAIN.fullmatch(value):
        return value
    if not value.isascii() and max(value) > "\xff":
        value = value.encode("utf-8", "surrogatepass").decode("latin-1")
    return value.translate(_ESCAPES)


def _shown(value: object) -> str:
    """Return a value as it stands in a line; a hyphen if there is none."""
    return "-" if value is None or value == "" else _escaped(str(value))


def _user(environ: Mapping[str, Any]) -> str:
    """Return who asked: whom the application or a server in front says, else the unproven name of Basic authentication."""
    name = environ.get("REMOTE_USER")
    if not name:
        scheme, _, token = str(environ.get("HTTP_AUTHORIZATION", "")).partition(" ")
        if scheme.lower() != "basic":
            return "-"
        try:
            name = _text(b64decode(token.strip(), validate=True).partition(b":")[0])
        except (binascii.Error, ValueError):
            return "-"
    # It stands without quotes: a blank would begin the next column.
    return _shown(name).replace(" ", r"\x20")


def _host_name(head: Head) -> str:
    """Return the host that was asked for, without a port."""
    return re.sub(r":[0-9]*$", "", _text(head.host))


def _answered(entry: Entry, name: str) -> str:
    """Return the value of a field of the answer; empty if there is none."""
    values = [value for key, value in entry.fields if key.lower() == name]
    if not values and name == "x-request-id":
        return entry.request_id
    return ", ".join(values)


def _ending(entry: Entry) -> str:
    """Return what becomes of the connection, as ``%X`` says it."""
    return "X" if entry.outcome == "client_gone" else "-" if entry.closes else "+"


# What the expressions of atoms are made of.
_KNOWN = {
    "answered": _answered,
    "clocks": _clocks,
    "common": _common,
    "ending": _ending,
    "escaped": _escaped,
    "field": field,
    "host_name": _host_name,
    "more": _more,
    "quoted": quoted,
    "shown": _shown,
    "text": _text,
    "user": _user,
    "utc": _utc,
}


def _as_shown(of: Place, code: str) -> Atom:
    return Atom(of, f"shown({code})")


def _sent(name: str) -> Atom:
    return _as_shown("head", f"field(head, {name!r})")


_NAMED: Mapping[str, Atom] = {
    name: _as_shown(atom.of, atom.code) if atom.kind in {"text", "maybe"} else atom for name, atom in FIELDS.items()
}
_MICROSECONDS = Atom("entry", "int(entry.duration_s * 1_000_000)")
_MILLISECONDS = Atom("entry", "int(entry.duration_s * 1000)")
_SECONDS = Atom("entry", "int(entry.duration_s)")
_BOTH: Mapping[str, Atom] = {
    "B": _NAMED["response_bytes"],
    "b": Atom("entry", "entry.sent or '-'"),
    "D": _MICROSECONDS,
    "H": Atom("line", "'HTTP/' + line.version"),
    "h": _NAMED["client"],
    "l": Atom("line", "'-'"),
    "m": _NAMED["method"],
    "r": _as_shown("line", "text(line.octets)"),
    "s": _NAMED["status"],
    "T": _SECONDS,
    "t": _when(""),
    "U": _NAMED["path"],
    "u": Atom("entry", "user(entry.environ)"),
}
_GUNICORN: Mapping[str, Atom] = {
    **_NAMED,
    **{name: Atom("now", name) for name in ("worker", "generation", "pid")},
    **_BOTH,
    "a": _NAMED["user_agent"],
    "f": _NAMED["referer"],
    "L": _NAMED["duration_s"],
    "M": _MILLISECONDS,
    "p": Atom("now", "f'<{pid}>'"),
    "q": _NAMED["query"],
}
_APACHE: Mapping[str, Atom] = {
    **_BOTH,
    "a": _NAMED["client"],
    "L": _NAMED["request_id"],
    "P": Atom("now", "pid"),
    "p": _as_shown("entry", "entry.environ.get('SERVER_PORT')"),
    "q": Atom("line", "'?' + escaped(text(line.query)) if line.query else ''"),
    "V": _as_shown("head", "host_name(head)"),
    "v": _as_shown("head", "host_name(head)"),
    "X": Atom("entry", "ending(entry)"),
}
_WITH_ARGUMENT: Mapping[str, Callable[[str], Atom | None]] = {
    "e": lambda name: _as_shown("entry", f"entry.environ.get({name!r})"),
    "i": _sent,
    "o": lambda name: _as_shown("entry", f"answered(entry, {name.lower()!r})"),
    "T": {"s": _SECONDS, "ms": _MILLISECONDS, "us": _MICROSECONDS}.get,
    "t": _when,
}
# Compiled where a format is: most starts have none.
_SPELLING = r"""%(?: (?P<percent>%)
                 | \( (?: \{ (?P<field>[^{}()]+) \} (?P<of>[ioe]) | (?P<name>[^(){}]*) ) \) [sd]
                 | [<>]? (?: \{ (?P<argument>[^{}]*) \} )? (?P<letter>[A-Za-z]) )"""
# As it stands in httpd.conf.
_WRITTEN = {r"\"": '"', r"\\": "\\", r"\t": "\t"}
_GLIMPSE = 12


def compile_format(text: str, writer: Mapping[str, Any] | None = None) -> Form:
    r"""Return the form that a format string describes, Apache's, gunicorn's, or both in one.

    ``%h`` and ``%{Referer}i`` are Apache's, ``%(h)s`` and ``%({Referer}i)s`` gunicorn's; ``%(path)s`` is a field of the
    record. ``\"`` is a quote. ``writer`` has ``worker``, ``generation`` and ``pid`` of who writes. Raises
    ``ConfigError`` for what stands for nothing.
    """
    known = {name: (writer or {}).get(name, "-") for name in ("worker", "generation", "pid")}
    return Form(_parts(FORMATS.get(text, text)), known)


def _parts(text: str) -> Iterator[str | Atom]:
    at, spelling = 0, re.compile(_SPELLING, re.VERBOSE)
    while (percent := text.find("%", at)) >= 0:
        yield _literal(text[at:percent])
        match = spelling.match(text, percent)
        if match is None:
            raise _nothing(text[percent : percent + _GLIMPSE], "")
        at = match.end()
        name, sent, letter, argument = match.group("name", "field", "letter", "argument")
        found: str | Atom | None
        if match["percent"]:
            found = "%"
        elif sent is not None:
            found = _WITH_ARGUMENT[match["of"]](sent)
        elif name is not None:
            found = _GUNICORN.get(name)
        elif argument is not None:
            found = _WITH_ARGUMENT[letter](argument) if letter in _WITH_ARGUMENT else None
        else:
            found = _APACHE.get(letter)
        if found is None:
            near = _nearest(letter, _APACHE, "%{}") if name is None else _nearest(name, _GUNICORN, "%({})s")
            raise _nothing(match[0], near)
        yield found
    yield _literal(text[at:])


def _literal(text: str) -> str:
    """Return what stands between the atoms; a line end in it would make two lines of one."""
    return re.sub(r'\\["\\t]', lambda match: _WRITTEN[match[0]], text).replace("\n", r"\n").replace("\r", r"\r")


def _nearest(name: str, known: Iterable[str], spelling: str) -> str:
    from difflib import get_close_matches

    near = [one for one in known if one.lower() == name.lower()] or get_close_matches(name, known, n=1)
    return spelling.format(near[0]) if near else ""


def _nothing(atom: str, near: str) -> ConfigError:
    hint = f"did you mean {near}?" if near else "docs/access-log.md lists what can stand there; %% is a percent sign"
    return ConfigError("PF102", f"access_log_format has {atom!r}, which stands for nothing", hint)
