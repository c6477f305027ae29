"""What does the head of a request say, its first line and its field lines?

Clients repeat both to the octet, request after request, so the last ones judged are remembered: the same octets get the
same verdict, and neither grammar nor parser is asked again. What is the request before once more is not even taken apart.
One reader serves a whole worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from prefork.http1.grammar import (
    ABSOLUTE,
    FIELD_LINES,
    FOLDED,
    REQUEST_LINE,
    SPACE_BEFORE_COLON,
    STRAY_LINE_END,
    is_host,
    split_fields,
)
from prefork.http1.messages import CHUNKED, Field, Head, Refused, Request, RequestLine, Upgrade

if TYPE_CHECKING:
    from prefork.config import Limits

REMEMBERED = 256
"""How many first lines, and how many blocks of field lines, are remembered before all are forgotten."""
REMEMBERED_SIZE = 4096
"""How long what is remembered may be, in bytes."""
_KNOWN_SPELLINGS = 4096
_KNOWN_SPELLING_SIZE = 64  # or somebody could fill the memory with long ones
_LENGTH_DIGITS = 18
_LENGTH_ZEROS = 20

_HOST, _LENGTH, _CODING, _CONNECTION, _EXPECT, _UNDERSCORED = range(1, 7)
_REQUEST_FIELDS = {
    b"host": _HOST,
    b"content-length": _LENGTH,
    b"transfer-encoding": _CODING,
    b"connection": _CONNECTION,
    b"expect": _EXPECT,
}


class Parser(Protocol):
    """What a library must do."""

    def fields(self, version: str, block: bytes) -> list[Field]:
        """Return the fields of a block of field lines; raises ``Refused``. Nothing of one block touches the next."""


class _Kinds(dict[bytes, int]):
    """Field names as clients spell them, and what each means for framing: a lookup instead of lower-casing."""

    def __missing__(self, name: bytes) -> int:
        kind = _REQUEST_FIELDS.get(name.lower(), _UNDERSCORED if b"_" in name else 0)
        if len(self) < _KNOWN_SPELLINGS and len(name) <= _KNOWN_SPELLING_SIZE:
            self[name] = kind
        return kind


_kinds = _Kinds()


class HeadReader:
    """Reads and judges heads, within ``limits``."""

    __slots__ = ("_heads", "_last", "_lines", "_parser", "limits", "upgrades")

    def __init__(self, limits: Limits, parser: Parser) -> None:
        self.limits = limits
        self._parser = parser
        self.upgrades = False
        """Whether those who ask for a WebSocket are told apart; else they are taken for all others."""
        self._lines: dict[bytes, RequestLine] = {}
        self._heads: dict[str, dict[bytes, Head]] = {"1.0": {}, "1.1": {}}
        self._last: tuple[bytes, Request | None] = (b"", None)

    def recall(self, octets: bytes) -> Request | None:
        """Return the request without a body that ``octets`` are, if both its line and its fields were read before."""
        known, request = self._last
        if octets == known:
            return request
        if len(octets) > self.limits.max_head_size:
            return None
        first, _, rest = octets.partition(b"\r\n")
        line = self._lines.get(first)
        if line is None:
            return None
        head = self._heads[line.version].get(rest)
        if head is None:
            return None
        request = Request(line, head)
        self._last = (octets, request)
        return request

    def read(self, first: bytes, rest: bytes) -> Request:
        """Judge a whole head: its first line, and the field lines with the empty one; raises ``Refused``."""
        line = self._lines.get(first)
        if line is None:
            line = _request_line(first)
            if len(first) > self.limits.max_request_line_size:
                raise line_too_long()
        head = self._heads[line.version].get(rest)
        if head is None:
            try:
                head = self._judge(line.version, rest)
            except Refused as refused:
                refused.line = line
                raise
        if head.length and line.method == "TRACE":
            raise Refused(400, "TRACE with a body", "RFC 9110 section 9.3.8")
        if self.upgrades and line.version == "1.1" and _asks_for_websocket(head):
            return Upgrade(line, head if line.host is None else _with_host(head, line.host))
        if line.host is not None:
            head = _with_host(head, line.host)
        elif len(first) + len(rest) <= REMEMBERED_SIZE:
            _remember(self._lines, first, line)
            if not head.length:
                _remember(self._heads[line.version], rest, head)
        return Request(line, head)

    def _judge(self, version: str, rest: bytes) -> Head:
        block = rest[:-2]
        if FIELD_LINES.fullmatch(block) is None:
            raise _malformed(block)
        if block.count(b"\r\n") > self.limits.max_header_count:
            raise Refused(431, "too many fields", "RFC 6585 section 5")
        try:
            fields = self._parser.fields(version, block)
        except Refused:
            # Where we have a verdict of our own it goes first: the same status, whichever parser is installed.
            self._head(version, split_fields(block))
            raise
        return self._head(version, fields)

    def _head(self, version: str, fields: list[Field]) -> Head:
        """Judge what the fields say together; raises ``Refused``."""
        host: bytes | None = None
        length: bytes | None = None
        codings: list[bytes] = []
        wishes: set[str] = set()
        expectations: list[bytes] = []
        underscored = False
        for name, value in fields:
            kind = _kinds[name]
            if not kind:
                continue
            if kind == _HOST:
                if host is not None:
                    raise Refused(400, "two Host fields", "RFC 9112 section 3.2")
                host = value
            elif kind == _LENGTH:
                if length is not None:
                    raise Refused(400, "two Content-Length fields", "RFC 9112 section 6.3")
                length = value
            elif kind == _CODING:
                codings.append(value)
            elif kind == _CONNECTION:
                wishes |= options(value.decode("latin-1"))
            elif kind == _EXPECT:
                expectations.append(value)
            else:
                underscored = True
        if underscored:
            fields = self._judge_underscores(fields)
        if host is None and version != "1.0":
            raise Refused(400, "no Host field", "RFC 9112 section 3.2")
        if host is not None and not is_host(host):
            raise Refused(400, "invalid Host", "RFC 9112 section 3.2")
        size = _body_length(length, codings, version)
        if any(expectation.lower() != b"100-continue" for expectation in expectations):
            raise Refused(417, "unknown expectation", "RFC 9110 section 10.1.1")
        keep_alive = "close" not in wishes and (version == "1.1" or "keep-alive" in wishes)
        # RFC 9110 section 10.1.1: HTTP/1.0 knows no 100, and who has no body waits for none.
        return Head(fields, host or b"", size, keep_alive, bool(expectations) and version == "1.1" and size != 0)

    def _judge_underscores(self, fields: list[Field]) -> list[Field]:
        """Return what is left of the fields, some of which have names with an underscore; raises ``Refused``."""
        # X_User would stand where X-User belongs, and override what a proxy says (CVE-2015-0219).
        if self.limits.underscores_in_headers == "refuse":
            raise Refused(400, "underscore in the name of a field", "option underscores_in_headers")
        if self.limits.underscores_in_headers == "keep":
            return fields
        return [(name, value) for name, value in fields if b"_" not in name]


T = TypeVar("T")


def _remember(known: dict[bytes, T], words: bytes, meaning: T) -> None:
    if len(known) >= REMEMBERED:
        known.clear()
    known[words] = meaning


def _request_line(first: bytes) -> RequestLine:
    """Judge the first line; raises ``Refused``."""
    match = REQUEST_LINE.fullmatch(first)
    if match is None:
        raise Refused(400, "malformed request line", "RFC 9112 section 3")
    word, target, major, minor = match.groups()
    if major != b"1":
        raise Refused(505, "HTTP version not supported", "RFC 9110 section 15.6.6")
    # RFC 9110 section 2.5: a higher minor version is served as the highest that we know.
    version = "1.0" if minor == b"0" else "1.1"
    method = word.decode("ascii")
    if method == "CONNECT":
        raise Refused(501, "no tunnels here", "RFC 9110 section 9.3.6")
    if target.startswith(b"/"):
        path, _, query = target.partition(b"?")
        return RequestLine(method, target, path, query, None, version, first)
    if target == b"*":
        if method != "OPTIONS":
            raise Refused(400, "asterisk-form is for OPTIONS", "RFC 9112 section 3.2.4")
        return RequestLine(method, target, b"/", b"", None, version, first)
    absolute = ABSOLUTE.fullmatch(target)
    if absolute is None or not is_host(absolute["host"]):
        raise Refused(400, "malformed target", "RFC 9112 section 3.2")
    path, query = absolute["path"] or b"/", absolute["query"] or b""
    return RequestLine(method, target, path, query, absolute["host"], version, first)


def line_too_long() -> Refused:
    """Return the refusal of a request line that passes its limit."""
    return Refused(414, "request line longer than max_request_line_size", "RFC 9110 section 15.5.15")


def _with_host(head: Head, host: bytes) -> Head:
    """Return ``head`` with the host that an absolute target names: that one counts (RFC 9112 section 3.2.2)."""
    fields = [(b"Host", host), *(field for field in head.fields if _kinds[field[0]] != _HOST)]
    return Head(fields, host, head.length, head.keep_alive, head.awaits_continue)


def _asks_for_websocket(head: Head) -> bool:
    """Whether the client wants to go on as a WebSocket, and says so to this hop (RFC 9110 section 7.8)."""
    wishes: dict[bytes, set[str]] = {b"upgrade": set(), b"connection": set()}
    for name, value in head.fields:
        if (wish := wishes.get(name.lower())) is not None:
            wish |= options(value.decode("latin-1"))
    return "websocket" in wishes[b"upgrade"] and "upgrade" in wishes[b"connection"]


def options(value: str) -> set[str]:
    """Return the options of a ``Connection`` field in lower case."""
    return {option.strip(" \t").lower() for option in value.split(",")}


def _malformed(block: bytes) -> Refused:
    """Say what is wrong with field lines that the grammar does not know."""
    if STRAY_LINE_END.search(block):
        return Refused(400, "line ended by CR or LF alone", "RFC 9112 section 2.2")
    if FOLDED.search(b"\r\n" + block):
        return Refused(400, "folded field line", "RFC 9112 section 5.2")
    if SPACE_BEFORE_COLON.search(block):
        return Refused(400, "white space before a colon", "RFC 9112 section 5.1")
    return Refused(400, "malformed field line", "RFC 9112 section 5")


def _body_length(length: bytes | None, codings: list[bytes], version: str) -> int:
    """Return how long the body is (RFC 9112 section 6.3); raises ``Refused`` where two readers could differ."""
    if codings:
        if length is not None:
            raise Refused(400, "Content-Length beside Transfer-Encoding", "RFC 9112 section 6.3")
        if version == "1.0":
            raise Refused(400, "Transfer-Encoding in HTTP/1.0", "RFC 9112 section 6.1")
        coding = b",".join(codings).lower()
        if coding == b"chunked":
            return CHUNKED
        if b"chunked," in coding or not coding:
            raise Refused(400, "chunked is not the last transfer coding", "RFC 9112 section 6.3")
        raise Refused(501, "unknown transfer coding", "RFC 9112 section 6.1")
    if length is None:
        return 0
    if not length.isdigit():
        raise Refused(400, "Content-Length is no number", "RFC 9112 section 6.3")
    digits = length.lstrip(b"0")
    if len(digits) > _LENGTH_DIGITS:
        raise Refused(413, "body longer than max_body_size", "RFC 9110 section 15.5.14")
    if len(length) > _LENGTH_ZEROS:
        # h11 takes no more, llhttp any number: one verdict for both.
        raise Refused(400, "Content-Length of too many digits", "RFC 9110 section 8.6")
    return int(digits or b"0")
