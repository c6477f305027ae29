"""What do trusted proxies say of a request: whose it is, and what was asked for?

``Forwarded`` (RFC 7239) and the ``X-Forwarded-*`` fields. Rules of the house:

* The list of addresses is read from its right end, which the nearest proxy wrote. The first address that is none of our
  proxies is the client: what stands to its left comes from the client, and is never looked at.
* The scheme, host, port and prefix that belong to that address count.
* What cannot be read, or contradicts itself, is refused. Were it ignored, a request would seem to come from the proxy
  itself, so that whoever spoils a field on purpose had the proxy's address.
"""

from __future__ import annotations

import re
from dataclasses import field
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_to_bytes

from prefork.http1.grammar import is_host
from prefork.http1.messages import Refused
from prefork.trust import read_address
from prefork.values import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prefork.http1.messages import Field
    from prefork.trust import TrustedProxies

FORWARDED = b"forwarded"
FOR, PROTO, HOST, PORT, PREFIX = (b"x-forwarded-" + what for what in (b"for", b"proto", b"host", b"port", b"prefix"))

_RFC = "RFC 7239 section 4"
_CUSTOM = "docs/proxy.md"
_SCHEMES = {b"http": "http", b"https": "https", b"ws": "http", b"wss": "https"}
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_HIGHEST_PORT = 65535
_MOST_ELEMENTS = 100
_REMEMBERED = 1024
_REMEMBERED_SIZE = 512

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
# RFC 7239 section 4: one pair of an element, and what ends it. Possessive, so that no field takes more than one look at it.
_PAIR = re.compile(
    rb"[ \t]*+(?:(?P<name>%b)=(?:(?P<token>%b)|\"(?P<quoted>(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*+)\"))?"
    rb"[ \t]*+(?P<end>[;,]|\Z)" % (_TOKEN, _TOKEN)
)
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
# RFC 7239 section 6, and for X-Forwarded-For an IPv6 address without brackets.
_OCTET = rb"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_NODE = re.compile(
    rb"(?:(?P<v4>%b(?:\.%b){3})|\[(?P<v6>[0-9A-Fa-f:.]+)\]|unknown|_[0-9A-Za-z._-]+)(?::(?:(?P<port>[0-9]{1,5})|_[0-9A-Za-z._-]+))?"
    % (_OCTET, _OCTET)
)
_BARE_IPV6 = re.compile(rb"(?=[^:]*:[^:]*:)[0-9A-Fa-f:.]{2,45}")
_PORT = re.compile(rb"[1-9][0-9]{0,4}")
# RFC 3986 section 3.3, path-absolute: nothing that a browser could take for the name of a host.
_PATH = re.compile(rb"(?:/(?:[A-Za-z0-9\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})+)*/?")
_UNSAFE_PATH = re.compile(rb"//|\\|[\x00-\x1f\x7f]|/\.\.?(?:/|\Z)")

Client = tuple[str, str]
"""Address and port, empty where they are not told."""


class Belief(Value):
    """Whom to believe, and what: ``proxies``, and the names of ``fields`` in lower case."""

    proxies: TrustedProxies
    fields: frozenset[bytes]
    verdicts: dict[tuple[Field, ...], Said | None] = field(default_factory=dict, compare=False)
    """What was said of late, by the fields that said it: the heads of a client differ, but not in these."""


class Said(NamedTuple):
    """What trusted proxies say of a request; ``None``: nothing about that.

    ``client`` is whose it is. ``scheme`` ("http" or "https"), ``host`` (as a ``Host`` field has it) and ``port`` are what
    the client asked for. ``root_path`` is where the application is mounted, without a slash at its end, percent-decoded
    octets as latin-1.
    """

    client: Client | None = None
    scheme: str | None = None
    host: str | None = None
    port: str | None = None
    root_path: str | None = None

    def authority(self, host: str, scheme: str) -> tuple[str, str, str]:
        """Return the ``Host`` that the client sent, its name, and the port it asked, where ``host`` came in by ``scheme``."""
        host = host if self.host is None else self.host
        usual = _DEFAULT_PORTS[scheme if self.scheme is None else self.scheme]
        name, port = _split_host(host)
        if self.port is None or not name:
            return host, name, self.port or (port if _PORT.fullmatch(port.encode()) else usual)
        return (name if self.port == usual else f"{name}:{self.port}"), name, self.port


_NOTHING = Said()


def _split_host(host: str) -> tuple[str, str]:
    """Return name and port of a ``Host``; empty where there is none."""
    name, colon, port = host.rpartition(":")
    return (name, port) if colon and not port.endswith("]") else (host, "")


def is_forwarding(name: bytes) -> bool:
    """Tell whether a field, by its name in lower case, speaks for a client that is not the peer."""
    return name in {FORWARDED, b"x-real-ip"} or name.startswith(b"x-forwarded-")


def read_forwarding(fields: Iterable[Field], belief: Belief) -> Said | None:
    """Return what the fields of a request say whose peer is trusted, ``None`` if nothing; raises ``Refused``."""
    believed = belief.fields
    found = tuple([(lower, value) for name, value in fields if (lower := name.lower()) in believed])
    verdicts = belief.verdicts
    try:
        return verdicts[found]
    except KeyError:
        said = _judge(found, belief)
    if sum(len(value) for _, value in found) <= _REMEMBERED_SIZE:
        if len(verdicts) >= _REMEMBERED:
            verdicts.clear()
        verdicts[found] = said
    return said


def _judge(found: tuple[Field, ...], belief: Belief) -> Said | None:
    values: dict[bytes, list[bytes]] = {}
    for name, value in found:
        values.setdefault(name, []).append(value)
    forwarded = _read_forwarded(b",".join(values.pop(FORWARDED)), belief) if FORWARDED in values else None
    custom = _read_custom({name: _members(lines) for name, lines in values.items()}, belief) if values else None
    if custom is None or forwarded is None:
        said = forwarded or custom
        return None if said == _NOTHING else said
    # Most proxies set one kind and let the other pass as the client sent it: which one is believed must make no difference.
    if (_address(custom), custom.scheme) != (_address(forwarded), forwarded.scheme):
        raise Refused(400, "Forwarded and X-Forwarded-* differ", _CUSTOM)
    return custom


def _address(said: Said) -> str | None:
    return None if said.client is None else said.client[0]


def _members(lines: list[bytes]) -> list[bytes]:
    """Return the members of a list (RFC 9110 section 5.6.1), without the empty ones."""
    return [member for part in b",".join(lines).split(b",") if (member := part.strip(b" \t"))]


# RFC 7239.


def _read_forwarded(value: bytes, belief: Belief) -> Said | None:
    elements = [element for element in _elements(value) if element]
    for index in range(len(elements) - 1, -1, -1):
        element = elements[index]
        node = element.get(b"for")
        client = None if node is None else _node(node, "for", _RFC)
        if client is None or not index or client[0] not in belief.proxies:
            scheme, host = element.get(b"proto"), element.get(b"host")
            return Said(
                client,
                None if scheme is None else _scheme(scheme, "proto", _RFC),
                None if host is None else _host(host, "host", _RFC),
            )
    return None


def _elements(value: bytes) -> list[dict[bytes, bytes]]:
    """Return the elements, each with the values of its parameters by their names in lower case."""
    elements: list[dict[bytes, bytes]] = [{}]
    at, end = 0, b","
    while end:
        match = _PAIR.match(value, at)
        if match is None:
            raise Refused(400, "malformed Forwarded", _RFC)
        name, token, quoted, end = match.groups()
        at = match.end()
        if name is not None:
            name = name.lower()
            if name in elements[-1]:
                raise Refused(400, "a parameter of Forwarded that comes twice", _RFC)
            elements[-1][name] = _ESCAPE.sub(rb"\1", quoted) if token is None else token
        if end == b",":
            elements.append({})
            if len(elements) > _MOST_ELEMENTS:
                raise Refused(400, "Forwarded is too long", _CUSTOM)
    return elements


# X-Forwarded-*.


def _read_custom(lists: dict[bytes, list[bytes]], belief: Belief) -> Said | None:
    addresses = lists.get(FOR, [])
    client, index = None, 0
    for index in range(len(addresses) - 1, -1, -1):
        client = _node(addresses[index], "X-Forwarded-For", _CUSTOM, bare=True)
        if client[0] not in belief.proxies:
            break

    def pick(name: bytes, read: Callable[[bytes, str, str], str]) -> str | None:
        values = lists.get(name)
        if not values:
            return None
        shown = name.decode().title()
        if len(set(values)) == 1:
            return read(values[0], shown, _CUSTOM)  # the first proxy set it, and the others passed it on
        if len(values) != len(addresses):
            raise Refused(400, f"{shown} and X-Forwarded-For are lists of different lengths", _CUSTOM)
        return read(values[index], shown, _CUSTOM)

    said = Said(client, pick(PROTO, _scheme), pick(HOST, _host), pick(PORT, _port), pick(PREFIX, _prefix))
    return None if said == _NOTHING else said


# Single values.


def _node(value: bytes, name: str, source: str, *, bare: bool = False) -> Client:
    """Return the address and port of a node (RFC 7239 section 6); what is unknown or obfuscated has none."""
    if bare and _BARE_IPV6.fullmatch(value):
        value = b"[%b]" % value
    match = _NODE.fullmatch(value)
    if match is None:
        raise Refused(400, f"malformed {name}", source)
    four, six, port = match.groups()
    try:
        address = four.decode() if four else "" if six is None else str(read_address(six.decode()))
    except ValueError:
        raise Refused(400, f"malformed {name}", source) from None
    if port is None:
        return address, ""
    if int(port) > _HIGHEST_PORT:
        raise Refused(400, f"malformed {name}", source)
    return address, port.decode()


def _scheme(value: bytes, name: str, source: str) -> str:
    scheme = _SCHEMES.get(value.lower())
    if scheme is None:
        raise Refused(400, f"unknown scheme in {name}", source)
    return scheme


def _host(value: bytes, name: str, source: str) -> str:
    # One without a name would leave SERVER_NAME empty, which PEP 3333 forbids.
    if not value.partition(b":")[0] or not is_host(value):
        raise Refused(400, f"malformed {name}", source)
    return value.decode("ascii")


def _port(value: bytes, name: str, source: str) -> str:
    if _PORT.fullmatch(value) is None or int(value) > _HIGHEST_PORT:
        raise Refused(400, f"malformed {name}", source)
    return value.decode()


def _prefix(value: bytes, name: str, source: str) -> str:
    if _PATH.fullmatch(value) is None:
        raise Refused(400, f"malformed {name}", source)
    path = unquote_to_bytes(value)
    if _UNSAFE_PATH.search(path):
        raise Refused(400, f"malformed {name}", source)
    return path.rstrip(b"/").decode("latin-1")
