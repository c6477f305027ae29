"""Which peers are trusted proxies?"""

from __future__ import annotations

import pytest

from prefork.config import Config, resolve
from prefork.errors import ConfigError
from prefork.trust import TrustedProxies, is_private


@pytest.mark.parametrize(
    ("names", "address", "trusted"),
    [
        (["127.0.0.1"], "127.0.0.1", True),
        (["127.0.0.1"], "127.0.0.2", False),
        (["127.0.0.0/8"], "127.9.9.9", True),
        (["10.0.0.0/8", "192.168.1.7"], "192.168.1.7", True),
        (["10.0.0.0/8"], "11.0.0.1", False),
        (["::1"], "::1", True),
        (["fd00::/8"], "fd12::1", True),
        (["fe80::/10"], "fe80::1%eth0", True),
        pytest.param(["10.0.0.0/8"], "::ffff:10.1.2.3", True, id="an IPv4 client of a socket for both families"),
        (["::ffff:10.0.0.0/104"], "10.1.2.3", True),
        (["::ffff:10.1.2.3"], "::ffff:10.1.2.3", True),
        (["::ffff:10.1.2.3"], "10.1.2.4", False),
        (["::/0"], "10.1.2.3", False),
        (["unix"], "127.0.0.1", False),
        (["unix"], None, True),
        (["127.0.0.1"], None, False),
        (["*"], "203.0.113.9", True),
        (["*"], None, True),
        (["none"], "127.0.0.1", False),
        (["none"], None, False),
        ([], "127.0.0.1", False),
        (["127.0.0.1"], "", False),
    ],
)
def test_a_peer_is_trusted_if_it_is_named(names: list[str], address: str | None, trusted: bool) -> None:
    proxies = TrustedProxies(names)
    for _ in range(2):  # judged, and remembered
        assert (proxies.unix if address is None else proxies.peers[address]) is trusted


def test_everybody_who_connects_is_not_everybody_in_a_list() -> None:
    proxies = TrustedProxies(["*", "10.0.0.0/8"])
    assert proxies.peers["203.0.113.9"]
    assert "203.0.113.9" not in proxies
    assert "10.0.0.1" in proxies


def test_what_is_remembered_is_bounded() -> None:
    proxies = TrustedProxies(["10.0.0.0/8"])
    assert [f"10.0.{n // 256}.{n % 256}" in proxies for n in range(5000)] == [True] * 5000
    assert len(proxies.peers) < 5000


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ("localhost", "give addresses, networks"),
        ("10.0.0.0/40", "give addresses, networks"),
        ("10.0.0.5/8", "10.0.0.5/8 has bits behind its prefix: give 10.0.0.0/8, or 10.0.0.5 alone"),
        ("10.0.0.1,none", "none stands alone"),
    ],
)
def test_what_is_no_proxy_is_refused_with_advice(given: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=advice) as caught:
        Config.of(trusted_proxies=given)
    assert caught.value.code == "PF102"


@pytest.mark.parametrize("given", ["10.0.0.1, ::1", ["10.0.0.1", "::1"], ["10.0.0.1,::1"]])
def test_proxies_may_be_given_in_one_text_or_in_several(given: object) -> None:
    assert Config.of(trusted_proxies=given).trusted_proxies == ("10.0.0.1", "::1")


def test_what_gunicorn_and_uvicorn_read_is_read() -> None:
    resolved = resolve(environ={"FORWARDED_ALLOW_IPS": "10.0.0.1,*", "SCRIPT_NAME": "/shop/"})
    assert resolved.config.trusted_proxies == ("10.0.0.1", "*")
    assert resolved.origins["trusted_proxies"] == "environment FORWARDED_ALLOW_IPS"
    assert resolved.config.root_path == "/shop"


@pytest.mark.parametrize(
    ("address", "private"),
    [("10.0.0.1", True), ("172.17.0.2", True), ("100.64.0.1", True), ("::1", True), ("8.8.8.8", False)],
)
def test_an_address_is_private_or_of_the_internet(address: str, private: bool) -> None:
    assert is_private(address) is private
