"""Whom does a connection stand for, by the header of the PROXY protocol? Sections are those of its text."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, strategies as st

from prefork.http1.proxy_protocol import LONGEST, SIGNATURE, Header, Malformed, Opening, crc32c, read

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
INET = bytes([192, 0, 2, 1, 198, 51, 100, 2]) + struct.pack("!HH", 4711, 443)
INET6 = bytes.fromhex("20010db8000000000000000000000001" * 2) + struct.pack("!HH", 4711, 443)


def binary(command: int, family: int, rest: bytes = b"", *, length: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest) if length is None else length) + rest


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def checked(octets: bytes) -> bytes:
    """Return a header with the right checksum in its last four octets."""
    return octets[:-4] + struct.pack("!I", crc32c(octets))


CHECKED = checked(binary(0x21, 0x11, INET + tlv(3, bytes(4))))


@pytest.mark.parametrize(
    ("octets", "relayed", "source"),
    [
        (b"PROXY TCP4 192.0.2.1 198.51.100.2 4711 443\r\n", True, ("192.0.2.1", "4711")),
        (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", True, ("255.255.255.255", "65535")),
        (b"PROXY TCP4 192.0.2.1 198.51.100.2 0 0\r\n", True, ("192.0.2.1", "0")),
        (b"PROXY TCP6 2001:DB8::1 ::1 4711 443\r\n", True, ("2001:db8::1", "4711")),
        (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 4711 443\r\n", True, ("192.0.2.1", "4711")),
        (b"PROXY UNKNOWN\r\n", False, None),
        (b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n", False, None),
        (binary(0x20, 0x00), False, None),
        pytest.param(binary(0x20, 0x11, INET), False, None, id="LOCAL, whatever its addresses say"),
        pytest.param(binary(0x20, 0xFF, b"?"), False, None, id="LOCAL, of a family that there is not"),
        pytest.param(binary(0x21, 0x00, b"any"), False, None, id="UNSPEC"),
        pytest.param(binary(0x21, 0x10, INET), False, None, id="UNSPEC transport"),
        pytest.param(binary(0x21, 0x12, INET), False, None, id="UDP: a combination that we have no use for"),
        (binary(0x21, 0x11, INET), True, ("192.0.2.1", "4711")),
        (binary(0x21, 0x21, INET6), True, ("2001:db8::1", "4711")),
        (binary(0x21, 0x31, bytes(216)), True, None),
        (binary(0x21, 0x11, INET + tlv(4, bytes(9)) + tlv(0x20, b"ssl")), True, ("192.0.2.1", "4711")),
        (CHECKED, True, ("192.0.2.1", "4711")),
    ],
)
@pytest.mark.parametrize("behind", [b"", REQUEST])
def test_a_header_is_understood_and_nothing_behind_it_taken(
    octets: bytes, relayed: bool, source: tuple[str, str] | None, behind: bytes
) -> None:
    assert read(octets + behind) == Header(len(octets), relayed, source)


@pytest.mark.parametrize(
    "octets",
    [
        REQUEST,
        b"\x16\x03\x01",
        b"proxy TCP4 192.0.2.1 198.51.100.2 1 2\r\n",
        b"PROXY  TCP4 192.0.2.1 198.51.100.2 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 1\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2 \r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2\r\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 01 2\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 1 65536\r\n",
        b"PROXY TCP4 192.0.2.01 198.51.100.2 1 2\r\n",
        b"PROXY TCP4 192.0.2.256 198.51.100.2 1 2\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 ::1 1 2\r\n",
        b"PROXY TCP6 192.0.2.1 198.51.100.2 1 2\r\n",
        b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
        b"PROXY UDP4 192.0.2.1 198.51.100.2 1 2\r\n",
        b"PROXY UNKNOWN\rx\r\n",
        pytest.param(b"PROXY UNKNOWN " + b"f" * 94, id="no line end in 107 octets"),
        pytest.param(binary(0x11, 0x11, INET), id="version 1 in the binary form"),
        pytest.param(binary(0x22, 0x11, INET), id="an unknown command"),
        pytest.param(binary(0x21, 0x41, INET), id="an unknown family"),
        pytest.param(binary(0x21, 0x13, INET), id="an unknown transport"),
        pytest.param(binary(0x21, 0x11, INET[:-1]), id="torn addresses"),
        pytest.param(binary(0x21, 0x31, bytes(215)), id="torn paths"),
        pytest.param(binary(0x21, 0x11, INET + b"\x04\x00"), id="a torn addition"),
        pytest.param(binary(0x21, 0x11, INET + b"\x04\x00\x02x"), id="an addition without its end"),
        pytest.param(CHECKED[:-1] + bytes([CHECKED[-1] ^ 1]), id="a wrong checksum"),
        pytest.param(binary(0x21, 0x11, INET + tlv(3, bytes(3))), id="a checksum of another size"),
        pytest.param(binary(0x21, 0x00, length=LONGEST), id="too long"),
    ],
)
def test_what_is_no_header_is_refused(octets: bytes) -> None:
    with pytest.raises(Malformed):
        read(octets)


def test_the_checksum_is_the_one_of_the_rfc() -> None:
    assert crc32c(b"123456789") == 0xE3069283


@given(st.data())
def test_a_header_in_pieces_is_read_as_one_in_one_piece(data: st.DataObject) -> None:
    header = data.draw(st.sampled_from([b"PROXY TCP6 ::1 ::1 1 2\r\n", b"PROXY UNKNOWN\r\n", CHECKED, binary(0x20, 0)]))
    queue, opening = header + REQUEST, Opening()
    while opening.header is None:
        seen = queue[: data.draw(st.integers(1, len(queue)))]
        queue = queue[opening.take(seen) :]
    assert queue == REQUEST
    assert opening.header == read(header)


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda octets: SIGNATURE + octets))
def test_whatever_comes_is_a_header_or_refused_or_unfinished(octets: bytes) -> None:
    try:
        header = read(octets)
    except Malformed:
        return
    assert header is None or header.size <= len(octets)
