"""Which peers are proxies whose word counts?"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

Network: TypeAlias = IPv4Network | IPv6Network

EVERYBODY, UNIX, NOBODY = "*", "unix", "none"
_KNOWN_ADDRESSES = 4096
# RFC 4291 section 2.5.5.2.
_MAPPED = IPv6Network("::ffff:0:0/96")
_IPV4 = 0xFFFF_FFFF


def parse_proxy(text: str) -> Network | None:
    """Return the network that an entry of ``trusted_proxies`` names, ``None`` for a word; raises ``ValueError``, with advice."""
    if text in {EVERYBODY, UNIX, NOBODY}:
        return None
    address, _, length = text.partition("/")
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError("give addresses, networks such as 10.0.0.0/8, unix, none, or * for whoever connects") from None
    if length and str(network.network_address) != str(ip_address(address)):
        raise ValueError(f"{text} has bits behind its prefix: give {network}, or {address} alone")
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):  # its peers are of IPv4, see read_address()
        return IPv4Network((int(network.network_address) & _IPV4, network.prefixlen - _MAPPED.prefixlen))
    return network


def read_address(value: str | bytes) -> IPv4Address | IPv6Address:
    """Return the address that a text or its octets are; raises ``ValueError``.

    Who listens on [::] for both families sees an IPv4 client as an IPv6 one (RFC 4291 section 2.5.5.2): it is one of IPv4.
    """
    address = ip_address(value)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def is_private(text: str) -> bool:
    """Tell whether an address is not of the public internet, as those of proxies that one forgot to name mostly are."""
    return not read_address(text).is_global


class _Verdicts(dict[str, bool]):
    """Addresses and whether they are trusted; whom ``judge`` was not asked about yet it is asked about."""

    def __init__(self, judge: Callable[[str], bool]) -> None:
        super().__init__()
        self._judge = judge

    def __missing__(self, address: str) -> bool:
        if len(self) >= _KNOWN_ADDRESSES:
            self.clear()
        verdict = self[address] = self._judge(address)
        return verdict


class TrustedProxies:
    """The peers that ``names`` stand for, the entries of the option ``trusted_proxies``.

    ``in`` tells whether an address is one of theirs. ``*`` is not asked there: it stands for whoever connects, and says
    nothing about the addresses that come in a list.
    """

    def __init__(self, names: Iterable[str]) -> None:
        names = tuple(names)
        everybody = EVERYBODY in names
        self.unix = everybody or UNIX in names
        """Whether who is connected by a UNIX socket is trusted."""
        self._networks = [network for name in names if (network := parse_proxy(name)) is not None]
        self._verdicts = _Verdicts(self._judge)
        self.peers: Mapping[str, bool] = _Verdicts(lambda _: True) if everybody else self._verdicts
        """Whether who is connected from an address is trusted."""

    def __contains__(self, address: str) -> bool:
        return self._verdicts[address]

    def _judge(self, text: str) -> bool:
        try:
            address = read_address(text)
        except ValueError:
            return False
        return any(address in network for network in self._networks)
