"""Is every octet taken where the grammar of RFC 9110, 9112 and 3986 has it, and nowhere else? With both parsers.

The sets are written down from the RFCs, not from ``prefork.http1.grammar``.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

import pytest
from http1_oracle import PARSERS, SMALL, Transcript, listen

from prefork.config import Limits
from prefork.http1.chunks import EXTENSIONS_LIMIT, LINE_LIMIT
from prefork.http1.heads import HeadReader

if TYPE_CHECKING:
    from collections.abc import Iterable

ALPHA, DIGIT, HEXDIG = string.ascii_letters.encode(), string.digits.encode(), string.hexdigits.encode()
TCHAR = frozenset(b"!#$%&'*+-.^_`|~" + DIGIT + ALPHA)  # RFC 9110 section 5.6.2
VCHAR = frozenset(range(0x21, 0x7F))
OBS_TEXT = frozenset(range(0x80, 0x100))
FIELD_CONTENT = VCHAR | OBS_TEXT | frozenset(b" \t")  # RFC 9110 section 5.5
UNRESERVED, SUB_DELIMS = frozenset(ALPHA + DIGIT + b"-._~"), frozenset(b"!$&'()*+,;=")  # RFC 3986 section 2
PCHAR = UNRESERVED | SUB_DELIMS | frozenset(b":@")
BROWSERS = frozenset(b'"<>[\\]^`{|}')  # no pchar, and sent as they are: docs/http.md, where we differ
ALL = frozenset(range(0x100))

GET = b"GET / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

PLACES: dict[str, tuple[bytes, bytes, frozenset[int]]] = {
    "method: RFC 9110 9.1": (b"G", b"T / HTTP/1.1\r\nHost: a\r\n\r\n", TCHAR),
    "path: RFC 9112 3.2.1": (b"GET /a", b"b HTTP/1.1\r\nHost: a\r\n\r\n", PCHAR | BROWSERS | frozenset(b"/?%")),
    "query: RFC 9112 3.2.1": (b"GET /?a", b"b HTTP/1.1\r\nHost: a\r\n\r\n", PCHAR | BROWSERS | frozenset(b"/?%")),
    "absolute host: RFC 3986 3.2.2": (b"GET http://a", b"b HTTP/1.1\r\nHost: a\r\n\r\n", UNRESERVED | SUB_DELIMS | frozenset(b"/?")),
    "version, major: RFC 9112 2.3": (b"GET / HTTP/", b".1\r\nHost: a\r\n\r\n", frozenset(b"1")),
    "version, minor: RFC 9112 2.3": (b"GET / HTTP/1.", b"\r\nHost: a\r\n\r\n", frozenset(DIGIT)),
    "before the version: RFC 9112 3": (b"GET /", b"HTTP/1.1\r\nHost: a\r\n\r\n", frozenset(b" ")),
    "behind the version: RFC 9112 3": (b"GET / HTTP/1.1", b"\r\nHost: a\r\n\r\n", frozenset()),
    "first of all: RFC 9112 2.2": (b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", TCHAR),
    "field name: RFC 9110 5.1": (GET + b"X", b"Y: z\r\n\r\n", TCHAR | frozenset(b":")),
    "first of a field name: RFC 9110 5.1": (GET, b"Y: z\r\n\r\n", TCHAR),
    "last of a field name: RFC 9112 5.1": (GET + b"X", b": z\r\n\r\n", TCHAR | frozenset(b":")),
    "field value: RFC 9110 5.5": (GET + b"X: a", b"b\r\n\r\n", FIELD_CONTENT),
    "first of a field value: RFC 9110 5.5": (GET + b"X:", b"b\r\n\r\n", FIELD_CONTENT),
    "last of a field value: RFC 9110 5.5": (GET + b"X: a", b"\r\n\r\n", FIELD_CONTENT),
    "host: RFC 3986 3.2.2": (b"GET / HTTP/1.1\r\nHost: a", b"b\r\n\r\n", UNRESERVED | SUB_DELIMS),
    "port: RFC 3986 3.2.3": (b"GET / HTTP/1.1\r\nHost: a:1", b"2\r\n\r\n", frozenset(DIGIT)),
    "IPv6 address: RFC 3986 3.2.2": (b"GET / HTTP/1.1\r\nHost: [1::", b"2]\r\n\r\n", frozenset(HEXDIG)),
    "behind a bracket: RFC 3986 3.2.2": (b"GET / HTTP/1.1\r\nHost: [::1]", b"\r\n\r\n", frozenset(b": \t")),
    "length: RFC 9110 8.6": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: ", b"\r\n\r\n" + b"x" * 9, frozenset(DIGIT)),
    "inside of a length: RFC 9110 8.6": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0", b"0\r\n\r\n" + b"x" * 90, frozenset(DIGIT)),
    "coding: RFC 9112 6.1": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunke", b"\r\n\r\n0\r\n\r\n", frozenset(b"dD")),
    "behind a coding: RFC 9112 6.1": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked", b"\r\n\r\n0\r\n\r\n", frozenset(b" \t")),
    "expectation: RFC 9110 10.1.1": (GET + b"Expect: 100-continu", b"\r\n\r\n", frozenset(b"eE")),
    "first of a chunk size: RFC 9112 7.1": (CHUNKED, b"\r\n" + b"x" * 15 + b"\r\n0\r\n\r\n", frozenset(b"fF")),
    "behind a chunk size: RFC 9112 7.1": (CHUNKED + b"0", b"\r\n\r\n", frozenset(b"0")),
    "behind chunk data: RFC 9112 7.1": (CHUNKED + b"1\r\nx", b"\n0\r\n\r\n", frozenset(b"\r")),
    "last octet behind chunk data: RFC 9112 7.1": (CHUNKED + b"1\r\nx\r", b"0\r\n\r\n", frozenset(b"\n")),
    "chunk extension's name: RFC 9112 7.1.1": (CHUNKED + b"1;a", b"b\r\nx\r\n0\r\n\r\n", TCHAR | frozenset(b"=;")),
    "chunk extension's value: RFC 9112 7.1.1": (CHUNKED + b"1;a=b", b"c\r\nx\r\n0\r\n\r\n", TCHAR | frozenset(b";")),
    "quoted string: RFC 9110 5.6.4": (CHUNKED + b'1;a="b', b'c"\r\nx\r\n0\r\n\r\n', FIELD_CONTENT - frozenset(b'"')),
    "quoted pair: RFC 9110 5.6.4": (CHUNKED + b'1;a="\\', b'"\r\nx\r\n0\r\n\r\n', FIELD_CONTENT),
    "trailer name: RFC 9112 7.1.2": (CHUNKED + b"0\r\nX", b"Y: z\r\n\r\n", TCHAR | frozenset(b":")),
    "trailer value: RFC 9112 7.1.2": (CHUNKED + b"0\r\nX: a", b"b\r\n\r\n", FIELD_CONTENT),
    "end of the trailers: RFC 9112 7.1": (CHUNKED + b"0\r\n\r", b"", frozenset(b"\n")),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_each_octet_is_taken_where_the_grammar_has_it_and_nowhere_else(place: str) -> None:
    before, behind, allowed = PLACES[place]
    taken = {octet for octet in ALL if serves(before + bytes([octet]) + behind)}
    assert taken == allowed, (bytes(sorted(taken - allowed)), bytes(sorted(allowed - taken)))


def hear(*pieces: bytes, limits: Limits = SMALL) -> Transcript:
    """Return what a connection tells of these pieces; that must be the same with both parsers."""
    seen, other = (listen(HeadReader(limits, parser()), pieces) for parser in PARSERS)
    assert seen.outline() == other.outline()
    assert refusal(seen) == refusal(other)
    return seen


def refusal(seen: Transcript) -> tuple[int, str] | None:
    return None if seen.refused is None else (seen.refused.status, seen.refused.reason)


def serves(octets: bytes) -> bool:
    """Tell whether the first request of these is served, and whole."""
    seen = hear(octets)
    return bool(seen.requests and seen.requests[0].whole)


@pytest.mark.parametrize(
    "octet", [pytest.param(bytes([octet]), id=f"{octet:#04x}") for octet in b'\0\t\n\r ",-.0:;=A_\x7f\xff']
)
def test_an_octet_too_much_is_judged_by_one_parser_as_by_the_other(octet: bytes) -> None:
    octets = (
        b"POST /?a HTTP/1.1\r\nHost: a:1\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n1;a=b\r\nx\r\n0\r\nT: u\r\n\r\n"
    )
    for at in range(len(octets)):
        hear(octets[:at] + octet + octets[at:])


HOSTS = {
    b"a": True, b"A.B-c_d~e": True, b"a.": True, b"127.0.0.1": True, b"999.999.999.999": True, b"a:0": True,
    b"a:": True, b"a:80": True, b"a:080": True, b"a:99999": True, b"%41%c3%a4": True, b"a!$&'()*+,;=": True,
    b"": True, b":80": True, b"xn--4ca.de": True, b"0x7f.1": True,
    b"[::]": True, b"[::1]:80": True, b"[1:2:3:4:5:6:7:8]": True, b"[1:2:3:4:5:6:7::]": True, b"[::2:3:4:5:6:7:8]": True,
    b"[fe80::ABCD]": True, b"[::1.2.3.4]": True, b"[1:2:3:4:5:6:1.2.3.4]": True, b"[v1.a:b]": True, b"[vF.~]": True,
    b"[::1]:": True,
    b"a b": False, b"a,b": True, b"a/b": False, b"a?b": False, b"a#b": False, b"a@b": False, b"@a": False,
    b"u:p@a": False, b"a:b": False, b"a:-1": False, b"a:+1": False, b"a:1:2": False, b"a: 1": False, b"a:1 ": True,
    b"http://a": False, b"//a": False, b"a\\b": False, b"a\"": False, b"a<b>": False, b"a^b": False, b"a|b": False,
    b"%": False, b"%4": False, b"%zz": False, b"a%": False, b"a\xc3\xa4": False, b"a\x7f": False,
    b"::1": False, b"[::1": False, b"::1]": False, b"[]": False, b"[a]": False, b"[1]": False, b"[1:2]": False,
    b"[:::]": False, b"[1::2::3]": False, b"[1:2:3:4:5:6:7:8:9]": False, b"[12345::]": False, b"[::1]a": False,
    b"[::1]]": False, b"[[::1]]": False, b"[::256.1.1.1]": False, b"[::1.2.3]": False, b"[::1.2.3.04]": False,
    b"[1.2.3.4]": False, b"[::%25eth0]": False, b"[v.a]": False, b"[v1.]": False, b"[vg.a]": False, b"[v1]": False,
    b"[::1]:b": False, b"[1:2:3:4:5:6:7:1.2.3.4]": False,
}  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_is_a_host_of_rfc_3986_with_or_without_a_port_and_nothing_else(host: bytes) -> None:
    """RFC 9112 section 3.2, RFC 3986 section 3.2; the version makes no difference."""
    for version in (b"1.0", b"1.1"):
        assert serves(b"GET / HTTP/%b\r\nHost: %b\r\n\r\n" % (version, host)) is HOSTS[host]


@pytest.mark.parametrize("host", [host for host in HOSTS if not host.startswith(b":") and host.strip() == host])
def test_the_host_of_an_absolute_target_is_judged_as_the_field_is(host: bytes) -> None:
    """RFC 9110 section 4.2.1: but it may not be empty, and what is not in an authority ends it."""
    head = b"GET http://%b/ HTTP/1.1\r\nHost: b\r\n\r\n" % host
    ends = any(octet in b"/?" for octet in host)
    expected = bool(host) and (HOSTS[host] or ends) and not host.startswith(b"//")
    assert serves(head) is expected


@pytest.mark.parametrize("fields", [b"", b"Host: c\r\n", b"X: y\r\nHost: c\r\n"])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_the_application_sees_the_host_of_an_absolute_target_alone(fields: bytes, version: bytes) -> None:
    """RFC 9112 section 3.2.2: also where HTTP/1.0 has no Host."""
    seen = hear(b"GET http://b:1/ HTTP/%b\r\n%b\r\n" % (version, fields))
    if not fields and version == b"1.1":
        assert refusal(seen) == (400, "no Host field")
    else:
        assert [value for name, value in seen.requests[0].fields if name == b"host"] == [b"b:1"]
        assert seen.requests[0].host == b"b:1"


REFUSED: dict[str, tuple[bytes, int]] = {
    # Request lines.
    **{f"RFC 9112 3: {line!r}": (line + b"\r\nHost: a\r\n\r\n", 400) for line in (
        b"GET", b"GET ", b"GET /", b"GET / ", b"GET / HTTP", b"GET / HTTP/", b"GET / HTTP/1", b"GET / HTTP/1.",
        b"GET / HTTP/.1", b"GET / HTTP/11", b"GET / HTTP/1,1", b"GET / HTTP/1.1.1", b"GET / HTTP/ 1.1", b"GET / HTTP /1.1",
        b"GET / http/1.1", b"GET / Http/1.1", b"GET / HTTPS/1.1", b"GET / HTTP/1.1 ", b" GET / HTTP/1.1", b"GET  / HTTP/1.1",
        b"GET /  HTTP/1.1", b"GET\t/ HTTP/1.1", b"GET /\tHTTP/1.1", b"GET / a HTTP/1.1", b"GET HTTP/1.1", b"/ HTTP/1.1",
        b"GET / HTTP/1.10", b"GET / HTTP/1.01", b"GET / HTTP/01.1", b"GET / HTTP/10.1", b"GET / HTTP/+1.1", b"GET / HTTP/1.-1",
        b"GET / HTTP/1.1\x0b", b"GET /\x0c HTTP/1.1", b"GET /\xa0 HTTP/1.1", b"GET / HTTP/1.\xb9", b"GET /#a HTTP/1.1",
        b"GET /a#b HTTP/1.1", b"GET / RTSP/1.1", b"HTTP/1.1 200 OK", b"GET / HTTP/1.1 HTTP/1.1", b"\x16\x03\x01\x02",
        b"{}", b"GET, / HTTP/1.1", b"(GET) / HTTP/1.1", b"G\xc3\x89T / HTTP/1.1", b"GET / HTTP/1.1\0",
    )},
    **{f"RFC 9112 3.2: {target!r}": (b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n", 400) for target in (
        b"a", b"index.html", b"?a", b"a:80", b"www.example.com", b"*", b"**", b"*/", b"http:", b"http:/", b"http://", b"http:///",
        b"http:///a", b"http://?a", b"http://:80/", b"http://a:b/", b"http://u@a/", b"http://u:p@a/", b"http://a\\b/",
        b"ftp://a/", b"ws://a/", b"file:///a", b"httpx://a/", b"http//a", b"mailto:a", b"data:,a", b"http://[::1/",
        b"http://a b/", b"http://%/", b"http://[:::]/", b"http://[::1]a/", b"//a/b"[1:2] + b"\x7f",
    )},
    **{f"RFC 9112 3.2.3: {target!r}": (b"CONNECT " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n", 501) for target in (
        b"a:80", b"[::1]:443", b"a", b"/", b"*", b"http://a/",
    )},
    **{f"RFC 9110 15.6.6: HTTP/{version.decode()}": (b"GET / HTTP/" + version + b"\r\nHost: a\r\n\r\n", 505) for version in (
        b"0.0", b"0.9", b"2.0", b"2.1", b"3.0", b"9.9",
    )},
    "RFC 9113 3.4: the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    # Field lines.
    **{f"RFC 9112 5: {line!r}": (GET + line + b"\r\n\r\n", 400) for line in (
        b"X", b":", b": y", b"X y", b"X y: z", b"X\xe9: y", b"X\0: y", b"X: \0", b"X: y\0z", b"X: \x01", b"X: \x1b[2J", b"X: \x7f",
        b"X : y", b"X\t: y", b" X: y", b"\tX: y", b"X: y\r\n z", b"X: y\r\n\tz", b"X:\r\n y", b"X: y\r\n ", b"X: y\r\n :z",
        b"X: y\nZ: a", b"X: y\rZ: a", b"X: y\r\rZ: a", b"X: y\n\r\nZ: a", b"\nX: y", b"X\r: y", b"X\n: y", b"X: y\n", b"X: y\r",
        b"X(): y", b"X/Y: z", b"X[]: y", b"X{}: y", b'"X": y', b"X@: y", b"X,Y: z", b"X;Y: z", b"X=: y", b"X?: y", b"<X>: y", b"X\\: y",
        b"GET / HTTP/1.1",
    )},
    **{f"RFC 9112 3.2: {name}": (b"GET / HTTP/1.1\r\n" + lines + b"\r\n", 400) for name, lines in {
        "none": b"", "another field": b"Hosts: a\r\n", "with an underscore": b"Ho_st: a\r\n", "two": b"Host: a\r\nHost: b\r\n",
        "two, equal": b"Host: a\r\nHost: a\r\n", "two, in other letters": b"Host: a\r\nhOST: a\r\n", "two, one empty": b"Host:\r\nHost: a\r\n",
        "two, apart": b"Host: a\r\nX: y\r\nHost: a\r\n",
    }.items()},
    # Length.
    **{f"RFC 9112 6.3: Content-Length: {value!r}": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + value + b"\r\n\r\n12345", 400) for value in (
        b"", b"-1", b"-0", b"+5", b"5.0", b"5,", b",5", b"5,5", b"5, 5", b"5,6", b"5;5", b"5 5", b"0x5", b"5e0", b"5_0", b"five", b'"5"',
        b"5\xb9", b"\xb2", b"\xd9\xa5", b"5\t5", b"1'000", b"5h", b"NaN", b"1" * 17 + b"x", b"000000000000000000005",
    )},
    **{f"RFC 9112 6.3: twice {lines!r}": (b"POST / HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n12345", 400) for lines in (
        b"Content-Length: 5\r\nContent-Length: 5\r\n", b"Content-Length: 5\r\nContent-Length: 6\r\n", b"content-length: 5\r\nCONTENT-LENGTH: 5\r\n",
        b"Content-Length: 5\r\nX: y\r\nContent-Length: 05\r\n", b"Content-Length: 0\r\nContent-Length: 0\r\n", b"Content-Length: 5\r\nContent-Length:\r\n",
    )},
    **{f"RFC 9110 15.5.14: {value!r}": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + value + b"\r\n\r\n", 413) for value in (
        b"1001", b"01001", b"2147483648", b"4294967296", b"4294967301", b"9223372036854775808", b"18446744073709551616", b"18446744073709551621", b"9" * 500,
    )},
    # Codings.
    **{f"RFC 9112 6.1: Transfer-Encoding: {value!r}": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: " + value + b"\r\n\r\n0\r\n\r\n", status) for value, status in {
        b"": 400, b"gzip": 501, b"identity": 501, b"deflate": 501, b"compress": 501, b"x": 501, b"chunke": 501, b"chunkedd": 501, b"xchunked": 501,
        b"chunked;q=1": 501, b"chunked ; a=b": 501, b'"chunked"': 501, b"gzip, chunked": 501, b"gzip,chunked": 501, b"identity, chunked": 501,
        b", chunked": 501, b"chunked,": 400, b"chunked,,": 400, b"chunked, chunked": 400, b"chunked,gzip": 400, b"chunked, identity": 400,
        b"chunked, gzip, chunked": 400, b"chunked chunked": 501, b"chun\xe9ked": 501, b"chunked\xa0": 501, b"chunked\x0b": 400, b"\x0bchunked": 400, b"chu\0nked": 400,
    }.items()},
    **{f"RFC 9112 6.3: {lines!r}": (b"POST / HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n0\r\n\r\n", status) for lines, status in {
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n": 400, b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n": 400,
        b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n": 501, b"Transfer-Encoding: chunked\r\ntransfer-encoding:\r\n": 400,
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n": 400, b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n": 400,
        b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n": 400, b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n": 400,
        b"Transfer-Encoding: chunked\r\nContent-Length: x\r\n": 400, b"Transfer-Encoding:\r\nContent-Length: 5\r\n": 400,
        b"Transfer-Encoding: gzip\r\nContent-Length: 5\r\n": 400,
    }.items()},
    **{f"RFC 9112 6.1, HTTP/1.0: {value!r}": (b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: " + value + b"\r\n\r\n0\r\n\r\n", 400) for value in (
        b"chunked", b"gzip", b"identity",
    )},
    # Chunks.
    **{f"RFC 9112 7.1: {chunks!r}": (CHUNKED + chunks, 400) for chunks in (
        b"\r\n", b" 5\r\nhello\r\n", b"5 \r\nhello\r\n", b"\t5\r\nhello\r\n", b"+5\r\nhello\r\n", b"-5\r\nhello\r\n", b"0x5\r\nhello\r\n", b"5h\r\nhello\r\n",
        b"5_\r\nhello\r\n", b"g\r\n", b"\xb2\r\nhe\r\n", b"5\0\r\nhello\r\n", b"5\nhello\r\n", b"5\rhello\r\n", b"5\n\r\nhello\r\n", b"5\r\r\nhello\r\n",
        b"5\r\nhelloX", b"5\r\nhello\n0\r\n\r\n", b"5\r\nhello\r0\r\n\r\n", b"5\r\nhello0\r\n\r\n", b"5\r\nhello\r\r\n", b"5\r\nhello \r\n",
        b"4\r\nhello\r\n0\r\n\r\n", b"6\r\nhello\r\n0\r\n\r\n", b"5\r\nhello\r\n\r\n", b";\r\n", b";a\r\n", b";a=b\r\n",
    )},
    **{f"RFC 9112 7.1.1: {line!r}": (CHUNKED + line + b"\r\nhello\r\n0\r\n\r\n", 400) for line in (
        b"5;", b"5;;a", b"5;a;", b"5;=b", b"5;a=", b"5;a=b=c", b'5;a="b', b'5;a="b"c', b'5;"a"', b"5;a b", b"5 a", b"5;a=b c", b"5;a\0", b"5;a=\0", b'5;a="\0"',
        b"5;\xe9", b"5;a=\xe9", b"5;a,b", b'5;a="\\', b'5;a="\\"', b"5;a=(b)", b"5;a\n;b", b"5;a\r;b", b'5;a="\n"', b"5 ; ", b"5;a ",
    )},
    **{f"RFC 9112 7.1, too large: {size!r}": (CHUNKED + size + b"\r\n", 413) for size in (
        b"3e9", b"fffffff", b"ffffffff", b"100000000", b"100000005", b"ffffffffffffffff", b"10000000000000000", b"f" * 40, b"0" * 50 + b"f" * 16,
    )},
    "RFC 9110 15.5.14: chunks that are together too long": (CHUNKED + (b"64\r\n" + b"x" * 100 + b"\r\n") * 10 + b"1\r\n", 413),
    **{f"RFC 9112 7.1.2: {lines!r}": (CHUNKED + b"0\r\n" + lines, 400) for lines in (
        b"X\r\n\r\n", b":\r\n\r\n", b": y\r\n\r\n", b"X : y\r\n\r\n", b" X: y\r\n\r\n", b"X: y\r\n z\r\n\r\n", b"X: \0\r\n\r\n", b"X\0: y\r\n\r\n", b"X: y\n\r\n\r\n",
        b"X: y\nZ: a\r\n\r\n", b"X: y\rZ: a\r\n\r\n", b"X Y: z\r\n\r\n", b"X: \x7f\r\n\r\n", b"\n", b"\r\r\n", b"GET / HTTP/1.1\r\n\r\n",
    )},
    # Expectations, methods.
    **{f"RFC 9110 10.1.1: {lines!r}": (GET + lines + b"\r\n", 417) for lines in (
        b"Expect: tea\r\n", b"Expect:\r\n", b"Expect: 100\r\n", b"Expect: 100-continue, tea\r\n", b"Expect: tea\r\nExpect: 100-continue\r\n",
        b"Expect: 100-continue\r\nExpect: tea\r\n", b"Expect: 100-continue;a=b\r\n", b"Expect: 101-continue\r\n", b"Expect: 100-continues\r\n",
    )},
    "RFC 9110 10.1.1: in HTTP/1.0": (b"GET / HTTP/1.0\r\nExpect: tea\r\n\r\n", 417),
    "RFC 9110 9.3.8: TRACE with a body": (b"TRACE / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", 400),
    "RFC 9110 9.3.8: TRACE with chunks": (b"TRACE / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_malformed_is_refused_and_nothing_behind_it_is_served(name: str) -> None:
    octets, status = REFUSED[name]
    seen = hear(octets + GET + b"\r\n")
    assert refusal(seen) is not None, seen.requests
    assert refusal(seen)[0] == status  # type: ignore[index]
    assert not [told for told in seen.requests if told.whole]
    assert seen.closed


ACCEPTED: dict[str, tuple[bytes, dict[str, object]]] = {
    **{f"RFC 9112 3.2.1: {target!r}": (b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n", {"path": path, "query": query}) for target, path, query in (
        (b"/", b"/", b""), (b"/?", b"/", b""), (b"/??", b"/", b"?"), (b"//a", b"//a", b""), (b"/a/../b/./c", b"/a/../b/./c", b""), (b"/%2f%00%", b"/%2f%00%", b""),
        (b"/a;b=c", b"/a;b=c", b""), (b"/a:b@c", b"/a:b@c", b""), (b"/?a=b&c=/?d", b"/", b"a=b&c=/?d"), (b"/http://b/", b"/http://b/", b""), (b"/*", b"/*", b""),
    )},
    **{f"RFC 9112 3.2.2: {target!r}": (b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n", {"path": path, "query": query, "host": host}) for target, path, query, host in (
        (b"http://b", b"/", b"", b"b"), (b"http://b/", b"/", b"", b"b"), (b"http://b?c", b"/", b"c", b"b"), (b"http://b/?c", b"/", b"c", b"b"), (b"HTTP://B:80/c", b"/c", b"", b"B:80"),
        (b"https://b/c", b"/c", b"", b"b"), (b"http://[::1]:8/", b"/", b"", b"[::1]:8"), (b"http://b:/", b"/", b"", b"b:"), (b"http://b//c", b"//c", b"", b"b"),
    )},
    **{f"RFC 9110 9: {method.decode()}": (method + b" / HTTP/1.1\r\nHost: a\r\n\r\n", {"method": method.decode()}) for method in (
        b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"PATCH", b"QUERY", b"PURGE", b"M-SEARCH", b"get", b"X", b"!", b"PRI", b"BASELINE-CONTROL", b"A" * 500,
    )},
    **{f"RFC 9110 2.5: HTTP/1.{minor}": (b"GET / HTTP/1.%d\r\nHost: a\r\n\r\n" % minor, {"version": "1.1" if minor else "1.0", "keep_alive": minor > 0}) for minor in range(10)},
    **{f"RFC 9110 5.5: {line!r}": (GET + line + b"\r\n\r\n", {"fields": [(b"host", b"a"), (b"x", value)]}) for line, value in (
        (b"X:", b""), (b"X: ", b""), (b"X:\t \t", b""), (b"X:y", b"y"), (b"X: y", b"y"), (b"X: \ty \t", b"y"), (b"X: y z", b"y z"), (b"X: y\tz", b"y\tz"), (b"X: :", b":"),
        (b"X: \"", b'"'), (b"X: (", b"("), (b"X: a,b,,c", b"a,b,,c"), (b"X: \xff\x80", b"\xff\x80"), (b"X: Host: b", b"Host: b"), (b"X:" + b"y" * 1500, b"y" * 1500),
    )},
    **{f"RFC 9112 6.3: Content-Length: {value!r}": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + value + b"\r\n\r\n12345", {"body": b"12345"}) for value in (
        b"5", b"05", b"00000000000000000005", b" 5", b"5 ", b"\t5\t",
    )},
    **{f"RFC 9112 6.1: {line!r}": (b"POST / HTTP/1.1\r\nHost: a\r\n" + line + b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n", {"body": b"hello"}) for line in (
        b"Transfer-Encoding: chunked", b"transfer-encoding:chunked", b"TRANSFER-ENCODING: CHUNKED", b"Transfer-Encoding: \tchunked \t",
    )},
    **{f"RFC 9112 7.1: {chunks!r}": (CHUNKED + chunks, {"body": b"hello"}) for chunks in (
        b"5\r\nhello\r\n0\r\n\r\n", b"05\r\nhello\r\n00\r\n\r\n", b"1\r\nh\r\n4\r\nello\r\n0\r\n\r\n", b"5;a\r\nhello\r\n0;b\r\n\r\n", b"5 ;a\r\nhello\r\n0\r\n\r\n", b"5; a\r\nhello\r\n0\r\n\r\n",
        b"5;a=b\r\nhello\r\n0\r\n\r\n", b"5;a =\tb\r\nhello\r\n0\r\n\r\n", b'5;a="b c"\r\nhello\r\n0\r\n\r\n', b'5;a="\\"";b\r\nhello\r\n0\r\n\r\n', b'5;a="\xe9;\\\\"\r\nhello\r\n0\r\n\r\n',
        b'5;a=""\r\nhello\r\n0\r\n\r\n', b"5;a;b;c=d\r\nhello\r\n0;e=f\r\n\r\n", b"0" * 100 + b"5\r\nhello\r\n0\r\n\r\n",
    )},
    **{f"RFC 9112 7.1.2: {lines!r}": (CHUNKED + b"0\r\n" + lines + b"\r\n", {"trailers": trailers, "body": b""}) for lines, trailers in (
        (b"", []), (b"X: y\r\n", [(b"X", b"y")]), (b"X:\r\nX: y\r\n", [(b"X", b""), (b"X", b"y")]), (b"Content-Length: 5\r\n", [(b"Content-Length", b"5")]),
        (b"Transfer-Encoding: gzip\r\nHost: b\r\n", [(b"Transfer-Encoding", b"gzip"), (b"Host", b"b")]), (b"X_Y: z\r\n", [(b"X_Y", b"z")]),
    )},
    **{f"RFC 9112 9.3: {version.decode()} {lines!r}": (b"GET / HTTP/" + version + b"\r\nHost: a\r\n" + lines + b"\r\n", {"keep_alive": stays}) for version, lines, stays in (
        (b"1.1", b"", True), (b"1.1", b"Connection: keep-alive\r\n", True), (b"1.1", b"Connection: close\r\n", False), (b"1.1", b"Connection: CLOSE\r\n", False),
        (b"1.1", b"Connection: x,close\r\n", False), (b"1.1", b"Connection: x , close ,y\r\n", False), (b"1.1", b"Connection: x\r\nConnection: close\r\n", False),
        (b"1.1", b"Connection: keep-alive, close\r\n", False), (b"1.1", b"Connection: closed\r\n", True), (b"1.1", b"Connection: not-close\r\n", True), (b"1.1", b"Connection:\r\n", True),
        (b"1.1", b"Connection: ,,\r\n", True), (b"1.1", b"Keep-Alive: close\r\n", True), (b"1.1", b"Proxy-Connection: close\r\n", True), (b"1.1", b"Connection: \"close\"\r\n", True),
        (b"1.0", b"", False), (b"1.0", b"Connection: keep-alive\r\n", True), (b"1.0", b"Connection: Keep-Alive\r\n", True), (b"1.0", b"Connection: keep-alive, close\r\n", False),
        (b"1.0", b"Keep-Alive: timeout=5\r\n", False), (b"1.0", b"Proxy-Connection: keep-alive\r\n", False), (b"1.0", b"Connection: x\r\n", False),
    )},
    **{f"RFC 9110 7.8: {lines!r}": (GET + lines + b"\r\n", {"keep_alive": True, "body": b""}) for lines in (
        b"Upgrade: h2c\r\n", b"Connection: Upgrade\r\nUpgrade: websocket\r\n", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        b"Connection: upgrade\r\n", b"Upgrade: TLS/1.2, HTTP/2.0\r\nConnection: Upgrade\r\n",
    )},
    **{f"RFC 9110 10.1.1: {lines!r}": (b"POST / HTTP/" + version + b"\r\nHost: a\r\n" + lines + b"\r\n12345", {"awaits_continue": awaits}) for version, lines, awaits in (
        (b"1.1", b"Expect: 100-continue\r\nContent-Length: 5\r\n", True), (b"1.1", b"Expect: 100-CONTINUE\r\nContent-Length: 5\r\n", True), (b"1.0", b"Expect: 100-continue\r\nContent-Length: 5\r\n", False),
        (b"1.1", b"Expect: 100-continue\r\nExpect: 100-continue\r\nContent-Length: 5\r\n", True), (b"1.1", b"Content-Length: 5\r\n", False),
    )},
    "RFC 9110 10.1.1: no body": (GET + b"Expect: 100-continue\r\n\r\n", {"awaits_continue": False}),
    "RFC 9110 10.1.1: an empty body": (GET + b"Expect: 100-continue\r\nContent-Length: 0\r\n\r\n", {"awaits_continue": False}),
    "RFC 9112 2.2: empty lines": (b"\r\n\r\n\r\n" + GET + b"\r\n", {"path": b"/"}),
    "RFC 9112 3.3: no Host in HTTP/1.0": (b"GET / HTTP/1.0\r\n\r\n", {"host": b""}),
    "RFC 9110 9.3.1: GET with a body": (GET + b"Content-Length: 2\r\n\r\nhi", {"body": b"hi"}),
    "RFC 9110 9.3.2: HEAD with a body": (b"HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi", {"body": b"hi"}),
}  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_well_formed_is_served_and_what_is_behind_it_too(name: str) -> None:
    octets, facts = ACCEPTED[name]
    seen = hear(octets + GET.replace(b"/ ", b"/next ") + b"\r\n")
    told = seen.requests[0]
    assert {key: getattr(told, key) for key in facts} == facts
    assert told.whole
    assert [told.path for told in seen.requests[1:]] == ([b"/next"] if told.keep_alive else [])
    assert seen.closed is not told.keep_alive


# Sizes: what is just within is served, what is one more is refused.

LIMITS = Limits(max_request_line_size=100, max_head_size=300, max_header_count=3, max_body_size=50)


def sized(line: int = 14, fields: Iterable[bytes] = (), host: int = 1) -> bytes:
    return b"GET /" + b"a" * (line - 14) + b" HTTP/1.1\r\n" + b"".join(fields) + b"Host: " + b"b" * host + b"\r\n\r\n"


@pytest.mark.parametrize(
    ("octets", "within", "status"),
    [
        pytest.param(sized(100), True, 414, id="line: RFC 9110 15.5.15"),
        pytest.param(sized(101), False, 414, id="line, one more: RFC 9110 15.5.15"),
        pytest.param(sized(101)[:102], False, 414, id="line without an end: RFC 9110 15.5.15"),
        pytest.param(sized(100)[:101], True, 0, id="line without an end, just within: RFC 9110 15.5.15"),
        pytest.param(sized(14, host=300 - 26), True, 431, id="head: RFC 6585 5"),
        pytest.param(sized(14, host=301 - 26), False, 431, id="head, one more: RFC 6585 5"),
        pytest.param(sized(14, host=301 - 26)[:300], False, 431, id="head without an end: RFC 6585 5"),
        pytest.param(sized(fields=[b"X: y\r\n"] * 2), True, 431, id="fields: RFC 6585 5"),
        pytest.param(sized(fields=[b"X: y\r\n"] * 3), False, 431, id="fields, one more: RFC 6585 5"),
        pytest.param(CHUNKED + b"32\r\n" + b"x" * 50 + b"\r\n0\r\n\r\n", True, 413, id="chunks: RFC 9110 15.5.14"),
        pytest.param(CHUNKED + b"33\r\n", False, 413, id="chunks, one more: RFC 9110 15.5.14"),
        pytest.param(CHUNKED + b"1;" + b"a" * (LINE_LIMIT - 2) + b"\r\nx\r\n0\r\n\r\n", True, 400, id="chunk line: RFC 9112 7.1.1"),
        pytest.param(CHUNKED + b"1;" + b"a" * (LINE_LIMIT - 1) + b"\r\nx\r\n0\r\n\r\n", False, 400, id="chunk line, one more: RFC 9112 7.1.1"),
        pytest.param(CHUNKED + b"1;" + b"a" * LINE_LIMIT, False, 400, id="chunk line without an end: RFC 9112 7.1.1"),
        pytest.param(CHUNKED + b"".join(b"1;" + b"a" * size + b"\r\nx\r\n" for size in [4094] * 4) + b"0;" + b"a" * (EXTENSIONS_LIMIT - 4 * 4095 + 3) + b"\r\n\r\n", True, 400, id="extensions: RFC 9112 7.1.1"),
        pytest.param(CHUNKED + b"".join(b"1;" + b"a" * size + b"\r\nx\r\n" for size in [4094] * 4) + b"0;" + b"a" * (EXTENSIONS_LIMIT - 4 * 4095 + 4) + b"\r\n\r\n", False, 400, id="extensions, one more: RFC 9112 7.1.1"),
        pytest.param(CHUNKED + b"0\r\n" + b"X: y\r\n" * 3 + b"\r\n", True, 431, id="trailers: RFC 6585 5"),
        pytest.param(CHUNKED + b"0\r\n" + b"X: y\r\n" * 4 + b"\r\n", False, 431, id="trailers, one more: RFC 6585 5"),
        pytest.param(CHUNKED + b"0\r\nX:" + b"y" * 294 + b"\r\n\r\n", True, 431, id="trailer section: RFC 6585 5"),
        pytest.param(CHUNKED + b"0\r\nX:" + b"y" * 295 + b"\r\n\r\n", False, 431, id="trailer section, one more: RFC 6585 5"),
    ],
)  # fmt: skip
def test_a_limit_is_what_is_served_and_one_more_is_refused(octets: bytes, status: int, *, within: bool) -> None:
    for sizes in ([len(octets)], [1], [64]):
        pieces = [octets[at : at + sizes[0]] for at in range(0, len(octets), sizes[0])]
        seen = hear(*pieces, limits=LIMITS)
        if within:
            assert seen.refused is None
        else:
            assert refusal(seen) is not None
            assert refusal(seen)[0] == status  # type: ignore[index]


@pytest.mark.parametrize(
    ("policy", "names"),
    [("drop", [b"host", b"x-user"]), ("keep", [b"host", b"x-user", b"x_user", b"content_length"]), ("refuse", None)],
)
def test_a_name_with_an_underscore_is_dropped_kept_or_refused(policy: str, names: list[bytes] | None) -> None:
    octets = GET + b"X-User: a\r\nX_User: b\r\nContent_Length: 5\r\n\r\n"
    seen = hear(octets, limits=Limits(underscores_in_headers=policy))
    if names is None:
        assert refusal(seen) == (400, "underscore in the name of a field")
    else:
        assert [name for name, _ in seen.requests[0].fields] == names
        assert seen.requests[0].length == 0
