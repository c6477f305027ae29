"""Whom does a connection stand for, as the PROXY header in front of its first byte says?

Source: the PROXY protocol, versions 1 and 2, by HAProxy Technologies (doc/proxy-protocol.txt of HAProxy); the sections are
those of that text.
"""

from __future__ import annotations

import re
import struct
from functools import cache
from typing import NamedTuple

from prefork.trust import read_address

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LONGEST_LINE = 107
"""The longest header of version 1 in bytes, with its line end (section 2.1)."""
LONGEST = 16 + 4096
"""The longest header of version 2 that is taken, in bytes; it could have 64 KiB, addresses need 232."""

_LINE = re.compile(
    rb"PROXY (?:UNKNOWN(?: [^\r\n]*)?|TCP(?P<family>[46]) (?P<source>[0-9A-Fa-f:.]+) (?P<target>[0-9A-Fa-f:.]+)"
    rb" (?P<port>0|[1-9][0-9]{0,4}) (?P<target_port>0|[1-9][0-9]{0,4}))\r\n"
)
_START = struct.Struct("!12sBBH")
_TLV = struct.Struct("!BH")
_VERSION = 2
_LOCAL, _PROXY = 0, 1
_INET, _INET6, _UNIX = 1, 2, 3
_STREAM, _DGRAM = 1, 2
_ADDRESSES = {_INET: struct.Struct("!4s4xH2x"), _INET6: struct.Struct("!16s16xH2x"), _UNIX: struct.Struct("!216x")}
_CHECKSUM = 3
_CHECKSUM_SIZE = 4
_HIGHEST_PORT = 65535
_POLYNOMIAL = 0x82F63B78


class Malformed(Exception):
    """What comes is no PROXY header: the connection must not be served (section 2)."""


class Header(NamedTuple):
    """A header of ``size`` bytes.

    If it is ``relayed`` the connection stands for ``source``, the address and port of a client, ``None`` for one without
    (a UNIX socket). If not, it stands for who is connected: a proxy that asks after our health, or that does not know.
    """

    size: int
    relayed: bool
    source: tuple[str, str] | None = None


def read(octets: bytes) -> Header | None:
    """Return the header that a connection begins with, ``None`` if more is needed; raises ``Malformed``."""
    if octets[: len(SIGNATURE)] == SIGNATURE:
        return _read_binary(octets) if len(octets) >= _START.size else None
    if SIGNATURE.startswith(octets):
        return None
    return _read_line(octets)


def _read_line(octets: bytes) -> Header | None:
    """Read version 1 (section 2.1)."""
    start = b"PROXY "
    if octets[: len(start)] != start[: len(octets)]:
        raise Malformed("no PROXY header")
    end = octets.find(b"\n", 0, LONGEST_LINE)
    if end < 0:
        if len(octets) >= LONGEST_LINE:
            raise Malformed("a PROXY line that is too long")
        return None
    line = octets[: end + 1]
    match = _LINE.fullmatch(line)
    if match is None:
        raise Malformed("a malformed PROXY line")
    if match["family"] is None:
        return Header(len(line), relayed=False)
    source, target = match["source"], match["target"]
    try:
        address, _ = read_address(source.decode()), read_address(target.decode())
    except ValueError:
        raise Malformed("a PROXY line with a malformed address") from None
    if not (b":" in source) == (b":" in target) == (match["family"] == b"6"):
        raise Malformed("a PROXY line with an address of the other family")
    if max(int(match["port"]), int(match["target_port"])) > _HIGHEST_PORT:
        raise Malformed("a PROXY line with a malformed port")
    return Header(len(line), relayed=True, source=(str(address), match["port"].decode()))


def _read_binary(octets: bytes) -> Header | None:
    """Read version 2 (section 2.2)."""
    _, first, second, length = _START.unpack_from(octets)
    version, command = divmod(first, 16)
    family, protocol = divmod(second, 16)
    size = _START.size + length
    if version != _VERSION or command > _PROXY or (command == _PROXY and (family > _UNIX or protocol > _DGRAM)):
        raise Malformed("a PROXY header of a kind that there is not")
    if size > LONGEST:
        raise Malformed("a PROXY header that is too long")
    if len(octets) < size:
        return None
    header = octets[:size]
    if command == _LOCAL:
        return Header(size, relayed=False)
    addresses = _ADDRESSES.get(family)
    if addresses is None or protocol != _STREAM:
        return Header(size, relayed=False)  # of the valid combinations, those that we have no use for
    if length < addresses.size:
        raise Malformed("a PROXY header without its addresses")
    _check_additions(header, _START.size + addresses.size)
    if family == _UNIX:
        return Header(size, relayed=True)
    address, port = addresses.unpack_from(header, _START.size)
    return Header(size, relayed=True, source=(str(read_address(address)), str(port)))


def _check_additions(header: bytes, at: int) -> None:
    """Skip what comes behind the addresses, but for a checksum (section 2.2.3)."""
    while at < len(header):
        if at + _TLV.size > len(header):
            raise Malformed("a PROXY header with a torn addition")
        kind, length = _TLV.unpack_from(header, at)
        at += _TLV.size
        if at + length > len(header):
            raise Malformed("a PROXY header with a torn addition")
        if kind == _CHECKSUM:
            zeroed = header[:at] + bytes(length) + header[at + length :]
            if length != _CHECKSUM_SIZE or header[at : at + length] != crc32c(zeroed).to_bytes(4):
                raise Malformed("a PROXY header with a wrong checksum")
        at += length


def crc32c(octets: bytes) -> int:
    """Return the checksum of RFC 4960, appendix B (Castagnoli's)."""
    table = _crc32c_table()
    value = 0xFFFFFFFF
    for octet in octets:
        value = table[(value ^ octet) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


@cache
def _crc32c_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)  # noqa: PLW2901 - that is how a table of it is made
        table.append(value)
    return table


class Opening:
    """What has come of a connection's PROXY header so far.

    The header is looked at where it lies, in the queue of the socket, and no byte behind it is taken: that belongs to
    whoever is next, TLS or HTTP.
    """

    __slots__ = ("header", "octets")

    def __init__(self) -> None:
        self.octets = b""
        self.header: Header | None = None
        """The header, once it is whole."""

    def take(self, seen: bytes) -> int:
        """Return how many bytes of ``seen``, which come next, are of the header; raises ``Malformed``.

        They are remembered here: take them out of the queue.
        """
        octets = self.octets + seen
        self.header = read(octets)
        end = len(octets) if self.header is None else self.header.size
        taken = end - len(self.octets)
        self.octets = octets[:end]
        return taken
