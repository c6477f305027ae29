"""Which octets may stand where in a request?

Both parsers see only what passed here, so that neither can be laxer than the other, or than the RFC. The patterns are
those of RFC 9112 (request line, field lines, chunks) and RFC 3986 (authority), with the lenient readings left out.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv6Address

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
VALUE = rb"[\t\x20-\x7e\x80-\xff]*"

# RFC 9112 section 3: one space between the words; a target has no fragment and no octets beyond ASCII (RFC 3986).
FIELD_NAME = re.compile(TOKEN.decode())
REQUEST_LINE = re.compile(rb"(%b) ([\x21\x22\x24-\x7e]+) HTTP/([0-9])\.([0-9])" % TOKEN)
FIELD_LINES = re.compile(rb"(?:%b:%b\r\n)*" % (TOKEN, VALUE))
SPACE_BEFORE_COLON = re.compile(rb"(?m)^%b[ \t]+:" % TOKEN)
FOLDED = re.compile(rb"\r\n[ \t]")
# RFC 9112 section 2.2: a recipient may take LF for a line end; two recipients that differ here are how smuggling works.
STRAY_LINE_END = re.compile(rb"\r(?!\n|\Z)|(?<!\r)\n")

# RFC 9112 section 7.1.1, with the "bad" whitespace that a recipient must parse and drop.
CHUNK_LINE = re.compile(
    rb"(?P<size>[0-9A-Fa-f]+)(?:[ \t]*;[ \t]*%b(?:[ \t]*=[ \t]*(?:%b|\"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*\"))?)*"
    % (TOKEN, TOKEN)
)

_KNOWN_HOST_SIZE = 260  # a name of 253 octets (RFC 1035) and a port; or somebody could fill the memory with long ones
_NAME = rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})"
_PORT = rb"(?::[0-9]*)?"
_LITERAL = rb"\[(?:(?P<v6>[0-9A-Fa-f:.]{2,45})|[vV][0-9A-Fa-f]+\.[A-Za-z0-9\-._~!$&'()*+,;=:]+)\]"
_HOST = re.compile(rb"(?:%b|%b*)%b" % (_LITERAL, _NAME, _PORT))
ABSOLUTE = re.compile(
    rb"(?i:https?)://(?P<host>(?:%b|%b+)%b)(?P<path>/[^?]*)?(?:\?(?P<query>.*))?" % (_LITERAL, _NAME, _PORT)
)


def is_host(value: bytes) -> bool:
    """Tell whether ``value`` is a ``Host`` by RFC 9112 section 3.2: a host of RFC 3986 and a port, or nothing."""
    return _is_known_host(value) if len(value) <= _KNOWN_HOST_SIZE else _judge_host(value)


def _judge_host(value: bytes) -> bool:
    match = _HOST.fullmatch(value)
    if match is None:
        return False
    if match["v6"] is not None:
        # An application that takes the host apart would fail on [:::].
        try:
            IPv6Address(match["v6"].decode("ascii"))
        except ValueError:
            return False
    return True


_is_known_host = lru_cache(maxsize=1024)(_judge_host)


def split_fields(block: bytes) -> list[tuple[bytes, bytes]]:
    """Return names and values of field lines that ``FIELD_LINES`` knows, without the white space around values."""
    lines = (line.partition(b":") for line in block.split(b"\r\n") if line)
    return [(name, value.strip(b" \t")) for name, _, value in lines]
