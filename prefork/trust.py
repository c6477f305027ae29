"""Which peers are proxies whose word counts?"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

Network: TypeAlias = IPv4Network | IPv6Network

EVERYBODY, UNIX, NOBODY = "*", "unix", "none"
_KNOWN_ADDRESSES = 4096


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


class TrustedProxies:
    """The peers that ``names`` stand for, the entries of the option ``trusted_proxies``.

    ``in`` tells whether an address is one of theirs. ``*`` is not asked there: it stands for whoever connects, and says
    nothing about the addresses that come in a list.
    """

    def __init__(self, names: Iterable[str]) -> None:
        names = tuple(names)
        self.everybody = EVERYBODY in names
        self.unix = self.everybody or UNIX in names
        self._networks = [network for name in names if (network := parse_proxy(name)) is not None]
        self._known: dict[str, bool] = {}

    def __contains__(self, address: str) -> bool:
        known = self._known.get(address)
        if known is None:
            if len(self._known) >= _KNOWN_ADDRESSES:
                self._known.clear()
            known = self._known[address] = self._look_up(address)
        return known

    def trusts_peer(self, address: str | None) -> bool:
        """Tell whether who is connected from ``address`` is believed; ``None`` stands for a UNIX socket."""
        if address is None:
            return self.unix
        return self.everybody or address in self

    def _look_up(self, text: str) -> bool:
        try:
            address = read_address(text)
        except ValueError:
            return False
        return any(address in network for network in self._networks)
