"""Whose request is it, by what trusted proxies say?"""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from prefork.http1.forwarded import Belief, Said, is_forwarding, read_forwarding
from prefork.http1.messages import Refused
from prefork.trust import TrustedProxies

EVERY = (
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
)
USUAL = EVERY[:3]


def belief(*proxies: str, fields: tuple[str, ...] = EVERY) -> Belief:
    return Belief(TrustedProxies(proxies or ("127.0.0.1", "10.0.0.0/8")), frozenset(name.encode() for name in fields))


def said(*lines: str, whom: Belief | None = None) -> Said | None:
    fields = [tuple(part.strip().encode("latin-1") for part in line.split(":", 1)) for line in lines]
    return read_forwarding(fields, belief() if whom is None else whom)  # type: ignore[arg-type]  # pairs, as split above


@pytest.mark.parametrize(
    ("value", "client"),
    [
        ("192.0.2.1", ("192.0.2.1", "")),
        ("192.0.2.1:4711", ("192.0.2.1", "4711")),
        ("2001:DB8::1", ("2001:db8::1", "")),
        ("[2001:db8::1]", ("2001:db8::1", "")),
        ("[2001:db8::1]:4711", ("2001:db8::1", "4711")),
        ("::ffff:192.0.2.1", ("192.0.2.1", "")),
        ("unknown", ("", "")),
        pytest.param("6.6.6.6, 192.0.2.1", ("192.0.2.1", ""), id="what the client wrote is not believed"),
        pytest.param("<script>, 192.0.2.1", ("192.0.2.1", ""), id="and not looked at"),
        pytest.param(
            "10.9.9.9, 192.0.2.1, 10.0.0.2", ("192.0.2.1", ""), id="a proxy behind the client is none of ours"
        ),
        pytest.param("192.0.2.1, 10.0.0.3, 10.0.0.2", ("192.0.2.1", ""), id="over all our proxies"),
        pytest.param("10.0.0.4, 10.0.0.3", ("10.0.0.4", ""), id="all are ours: the first asked"),
        pytest.param(" , 192.0.2.1 ,,", ("192.0.2.1", ""), id="empty members: RFC 9110 5.6.1"),
    ],
)
def test_the_client_is_the_first_from_the_right_that_is_no_proxy_of_ours(value: str, client: tuple[str, str]) -> None:
    assert said(f"X-Forwarded-For: {value}") == Said(client)


def test_a_list_in_several_fields_is_one_list() -> None:
    assert said("X-Forwarded-For: 6.6.6.6", "x-forwarded-FOR: 192.0.2.1", "X-Forwarded-For: 10.0.0.2") == Said(
        ("192.0.2.1", "")
    )


def test_who_trusts_everybody_who_connects_believes_the_last_address_alone() -> None:
    assert said("X-Forwarded-For: 6.6.6.6, 192.0.2.1", whom=belief("*")) == Said(("192.0.2.1", ""))
    assert said("X-Forwarded-For: 6.6.6.6, 192.0.2.1, 10.0.0.2", whom=belief("*", "10.0.0.0/8")) == Said(
        ("192.0.2.1", "")
    )


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["X-Forwarded-Proto: HTTPS"], Said(scheme="https")),
        (["X-Forwarded-Proto: wss"], Said(scheme="https")),
        (["X-Forwarded-Host: shop.example:8443"], Said(host="shop.example:8443")),
        (["X-Forwarded-Port: 443"], Said(port="443")),
        (["X-Forwarded-Prefix: /shop/"], Said(root_path="/shop")),
        (["X-Forwarded-Prefix: /"], Said(root_path="")),
        (["X-Forwarded-Prefix: /caf%C3%A9"], Said(root_path="/cafÃ©")),
        pytest.param(
            ["X-Forwarded-For: 192.0.2.1, 10.0.0.2", "X-Forwarded-Proto: https"],
            Said(("192.0.2.1", ""), "https"),
            id="set by the first proxy, passed on by the next",
        ),
        pytest.param(
            ["X-Forwarded-For: 6.6.6.6, 192.0.2.1, 10.0.0.2", "X-Forwarded-Proto: http, https, http"],
            Said(("192.0.2.1", ""), "https"),
            id="the member beside the client",
        ),
        pytest.param(
            ["X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: https, https"],
            Said(("192.0.2.1", ""), "https"),
            id="members that all say the same",
        ),
        (["X-Forwarded-Proto: ,"], None),
        (["User-Agent: x", "X-Forwarded-Server: a"], None),
    ],
)
def test_what_was_asked_for_goes_with_the_client(lines: list[str], expected: Said | None) -> None:
    assert said(*lines) == expected


def test_a_field_that_nobody_asked_to_believe_says_nothing() -> None:
    usual = belief(fields=USUAL)
    assert said("X-Forwarded-Host: evil.example", "X-Forwarded-Prefix: /evil", whom=usual) is None
    assert said("X-Forwarded-For: 192.0.2.1", "Forwarded: garbage", whom=belief(fields=USUAL[1:])) == Said(
        ("192.0.2.1", "")
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("for=192.0.2.1", Said(("192.0.2.1", ""))),
        ("For=192.0.2.1;Proto=https;By=203.0.113.43", Said(("192.0.2.1", ""), "https")),
        ('for="192.0.2.1:4711"', Said(("192.0.2.1", "4711"))),
        ('for="[2001:db8:cafe::17]"', Said(("2001:db8:cafe::17", ""))),
        ('for="[2001:db8:cafe::17]:4711"', Said(("2001:db8:cafe::17", "4711"))),
        ("for=unknown;proto=http", Said(("", ""), "http")),
        ("for=_hidden", Said(("", ""))),
        ('for="_SEVKISEK:_obfport"', Said(("", ""))),
        ('for="192.0.2.1:_port"', Said(("192.0.2.1", ""))),
        (r'for="\1\92.0.2.1"', Said(("192.0.2.1", ""))),
        ('for=192.0.2.1;host="shop.example:8443"', Said(("192.0.2.1", ""), None, "shop.example:8443")),
        ('for=192.0.2.1;ext="a,b;c=\\"d"', Said(("192.0.2.1", ""))),
        ("for=192.0.2.1 ; proto=https", Said(("192.0.2.1", ""), "https")),
        (";;for=192.0.2.1;", Said(("192.0.2.1", ""))),
        pytest.param(
            "for=6.6.6.6;proto=http, for=192.0.2.1;proto=https;host=a, for=10.0.0.2;proto=http;host=b",
            Said(("192.0.2.1", ""), "https", "a"),
            id="the element of the client",
        ),
        pytest.param(
            "for=192.0.2.1;proto=https, proto=http", Said(None, "http"), id="who says for whom no more ends it"
        ),
        ("for=192.0.2.1, , ", Said(("192.0.2.1", ""))),
        (" , ", None),
    ],
)
def test_forwarded_is_read_by_the_grammar_of_rfc_7239(value: str, expected: Said | None) -> None:
    assert said(f"Forwarded: {value}") == expected


@pytest.mark.parametrize(
    "line",
    [
        "X-Forwarded-For: 192.0.2.256",
        "X-Forwarded-For: 192.0.02.1",
        "X-Forwarded-For: 192.0.2",
        "X-Forwarded-For: 192.0.2.1:65536",
        "X-Forwarded-For: 192.0.2.1:x",
        "X-Forwarded-For: fe80::1%eth0",
        "X-Forwarded-For: fe80::1%<script>",
        "X-Forwarded-For: localhost",
        "X-Forwarded-For: 192.0.2.1 6.6.6.6",
        "X-Forwarded-For: ' OR 1=1, 10.0.0.2",
        "X-Forwarded-Proto: javascript",
        "X-Forwarded-Proto: http, https",
        "X-Forwarded-Host: a b",
        "X-Forwarded-Host: shop.example/path",
        "X-Forwarded-Host: user@shop.example",
        "X-Forwarded-Host: :80",
        "X-Forwarded-Host: :",
        "X-Forwarded-Port: 0",
        "X-Forwarded-Port: 65536",
        "X-Forwarded-Port: 44x",
        "X-Forwarded-Prefix: shop",
        "X-Forwarded-Prefix: //evil.example",
        "X-Forwarded-Prefix: /%2Fevil.example",
        "X-Forwarded-Prefix: /%5Cevil.example",
        "X-Forwarded-Prefix: /a/../b",
        "X-Forwarded-Prefix: /a/%2e%2e/b",
        "X-Forwarded-Prefix: /a?b",
        "X-Forwarded-Prefix: /a%0D%0Ab",
        "X-Forwarded-Prefix: https://evil.example",
        "Forwarded: for",
        "Forwarded: for=",
        'Forwarded: for="192.0.2.1',
        "Forwarded: for=192.0.2.1:80",
        "Forwarded: for=[::1]",
        'Forwarded: for="::1"',
        'Forwarded: for="192.0.2.1";proto=ftp',
        'Forwarded: for=192.0.2.1;host="a b"',
        'Forwarded: for=192.0.2.1;host=""',
        'Forwarded: for=192.0.2.1;host=":80"',
        "Forwarded: for=192.0.2.1;for=192.0.2.2",
        "Forwarded: for=192.0.2.1 proto=https",
        "Forwarded: for =192.0.2.1",
        'Forwarded: for="192.0.2.1"x',
        pytest.param('Forwarded: for=", for=192.0.2.1', id="a client's quote that swallows what the proxy added"),
        pytest.param("Forwarded: " + "," * 200, id="a Forwarded without an end"),
    ],
)
def test_what_cannot_be_read_is_refused_and_not_ignored(line: str) -> None:
    with pytest.raises(Refused) as caught:
        said(line)
    assert caught.value.status == 400


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(Refused, match="different lengths"):
        said("X-Forwarded-For: 6.6.6.6, 192.0.2.1, 10.0.0.2", "X-Forwarded-Proto: https, http")


@pytest.mark.parametrize(
    "forwarded",
    [
        pytest.param("for=6.6.6.6;proto=http", id="another client"),
        pytest.param("for=192.0.2.1;proto=https", id="another scheme"),
        pytest.param("for=192.0.2.1", id="no scheme"),
        pytest.param("proto=http", id="no client"),
        pytest.param("by=_x", id="nothing"),
    ],
)
def test_forwarded_beside_fields_that_say_something_else_is_refused(forwarded: str) -> None:
    """A proxy that sets only one kind lets the other pass as the client wrote it."""
    with pytest.raises(Refused, match="differ"):
        said("X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: http", f"Forwarded: {forwarded}")


def test_forwarded_beside_fields_that_say_the_same_adds_nothing() -> None:
    lines = ["X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: http"]
    assert said(*lines, 'Forwarded: for="192.0.2.1:4711";proto=http;host=evil.example') == Said(
        ("192.0.2.1", ""), "http"
    )


@pytest.mark.parametrize(
    ("told", "host", "scheme", "expected"),
    [
        (Said(scheme="https"), "a", "http", ("a", "a", "443")),
        (Said(scheme="https"), "a:8443", "http", ("a:8443", "a", "8443")),
        (Said(host="b"), "a:1", "http", ("b", "b", "80")),
        (Said(host="[::1]"), "a", "https", ("[::1]", "[::1]", "443")),
        (Said(host="[::1]:81"), "a", "https", ("[::1]:81", "[::1]", "81")),
        (Said(scheme="https", port="443"), "a:8000", "http", ("a", "a", "443")),
        (Said(scheme="https", port="8443"), "a", "http", ("a:8443", "a", "8443")),
        (Said(port="80"), "a", "http", ("a", "a", "80")),
        (Said(port="81"), "", "http", ("", "", "81")),
        (Said(scheme="https"), "", "http", ("", "", "443")),
        (Said(scheme="https"), "a:", "http", ("a:", "a", "443")),
        pytest.param(Said(scheme="https"), "a:" + "9" * 5000, "http", ("a:" + "9" * 5000, "a", "443"), id="no port"),
    ],
)
def test_host_and_port_are_those_that_the_client_asked(
    told: Said, host: str, scheme: str, expected: tuple[str, str, str]
) -> None:
    assert told.authority(host, scheme) == expected


def test_a_verdict_that_is_remembered_is_that_of_the_same_fields() -> None:
    whom = belief()
    for _ in range(2):
        for number in range(1500):
            address = f"192.0.{number // 256}.{number % 256}"
            assert said(f"X-Forwarded-For: {address}", whom=whom) == Said((address, ""))
            assert said(f"Forwarded: for={address}", whom=whom) == Said((address, ""))
        with pytest.raises(Refused):
            said("X-Forwarded-For: nobody", whom=whom)
    assert len(whom.verdicts) <= 1024
    said("X-Forwarded-For: " + "6.6.6.6, " * 100 + "192.0.2.1", whom=whom)
    assert max(len(value) for fields in whom.verdicts for _, value in fields) < 512


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"forwarded", True),
        (b"x-forwarded-for", True),
        (b"x-forwarded-ssl", True),
        (b"x-real-ip", True),
        (b"x-request-id", False),
    ],
)
def test_a_field_speaks_for_a_client_or_not(name: bytes, expected: bool) -> None:
    assert is_forwarding(name) is expected


QUOTED = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12).map(
    lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
)


@given(st.lists(QUOTED, max_size=4), st.ip_addresses())
def test_nothing_that_a_client_may_quote_hides_what_our_proxy_adds(before: list[str], address: object) -> None:
    whom = belief("none")
    node = f'"[{address}]"' if ":" in str(address) else str(address)
    value = ", ".join([*(f"ext={text}" for text in before), f"for={node}"])
    found = said(f"Forwarded: {value}", whom=whom)
    assert found is not None
    assert found.client is not None
    assert ":" not in found.client[0] or found.client[0] == str(address)


@given(
    st.sampled_from([name.title() for name in EVERY]),
    st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=40)
    | st.text(st.sampled_from('for="\\,;:[]1a_ \t/%'), max_size=40),
)
def test_whatever_comes_is_read_or_refused(name: str, value: str) -> None:
    try:
        found = read_forwarding([(name.encode(), value.encode("latin-1"))], belief())
    except Refused:
        return
    assert found is None or found != Said()
