"""Whose request is it, by the environ that the application sees?"""

from __future__ import annotations

import sys
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest

from prefork.config import Limits
from prefork.http1.forwarded import Belief
from prefork.http1.heads import HeadReader
from prefork.http1.messages import Refused, Request
from prefork.http1.parser_h11 import H11Parser
from prefork.reception import Origin
from prefork.trust import TrustedProxies
from prefork.wsgi.gateway import Base, asked_by, request_environ, server_environ

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BELIEF = Belief(
    TrustedProxies(["127.0.0.1"]),
    frozenset({b"forwarded", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-prefix"}),
)
PEER = ("127.0.0.1", "50000")


def base(
    belief: Belief | None = BELIEF,
    *,
    scheme: str = "http",
    root_path: str = "",
    on_ignored: Callable[[Sequence[bytes], str], None] = lambda _names, _address: None,
    extra: dict[str, Any] | None = None,
) -> Base:
    environ = server_environ(
        name="10.0.0.5",
        port="8000",
        scheme=scheme,
        errors=sys.stderr,
        multithread=True,
        root_path=root_path,
        extra=extra or {},
    )
    return Base(environ, Origin(scheme, "10.0.0.5", "8000", trusted=belief is not None), belief, on_ignored)


@pytest.fixture
def ask() -> Callable[..., Request]:
    """Return a reader of requests that remembers heads, as one serves all connections of a worker."""
    reader = HeadReader(Limits(), H11Parser())

    def ask(*fields: str, target: str = "/tea", host: str = "shop.example") -> Request:
        lines = "".join(f"{field}\r\n" for field in (f"Host: {host}", *fields))
        return reader.read(f"GET {target} HTTP/1.1".encode(), f"{lines}\r\n".encode("latin-1"))

    return ask


Ask = Any


def test_a_peer_that_speaks_for_nobody_is_the_client(ask: Ask) -> None:
    request = ask()
    environ = request_environ(base(), PEER, request, None, 0)
    assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == PEER
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == ("10.0.0.5", "8000")
    assert "prefork.peer" not in environ
    assert asked_by(base(), PEER, request) == ("127.0.0.1", "http")


def test_a_trusted_peer_speaks_for_the_client(ask: Ask) -> None:
    request = ask("X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: https")
    environ = request_environ(base(), PEER, request, None, 0)
    assert environ["REMOTE_ADDR"] == "192.0.2.1"
    assert environ["REMOTE_PORT"] == ""
    assert environ["prefork.peer"] == "127.0.0.1"
    assert environ["wsgi.url_scheme"] == "https"
    assert environ["HTTPS"] == "on"
    assert environ["HTTP_HOST"] == "shop.example"
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == ("10.0.0.5", "443")
    assert environ["HTTP_X_FORWARDED_FOR"] == "192.0.2.1"
    assert asked_by(base(), PEER, request) == ("192.0.2.1", "https")


def test_the_scheme_of_the_client_takes_the_place_of_that_of_the_connection(ask: Ask) -> None:
    environ = request_environ(
        base(scheme="https", extra={"HTTPS": "on"}), PEER, ask("X-Forwarded-Proto: http"), None, 0
    )
    assert environ["wsgi.url_scheme"] == "http"
    assert "HTTPS" not in environ
    assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == PEER
    assert environ["SERVER_PORT"] == "80"


def test_host_and_prefix_are_those_that_the_client_asked(ask: Ask) -> None:
    fields = ("Forwarded: for=192.0.2.1", "X-Forwarded-For: 192.0.2.1")
    more = ("X-Forwarded-Host: tea.example:8443", "X-Forwarded-Prefix: /shop")
    environ = request_environ(base(), PEER, ask(*fields, *more, target="/shop/tea%20pot"), None, 0)
    assert environ["HTTP_HOST"] == "tea.example:8443"
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == ("tea.example", "8443")
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/shop", "/tea pot")


def test_a_client_on_a_unix_socket_has_a_peer_without_an_address(ask: Ask) -> None:
    environ = request_environ(base(), None, ask("X-Forwarded-For: 192.0.2.1"), None, 0)
    assert (environ["REMOTE_ADDR"], environ["prefork.peer"]) == ("192.0.2.1", "")
    environ = request_environ(base(), None, ask("X-Forwarded-Proto: https"), None, 0)
    assert environ["REMOTE_ADDR"] == ""
    assert "REMOTE_PORT" not in environ


def test_who_came_by_the_proxy_protocol_keeps_the_address_of_that_proxy(ask: Ask) -> None:
    told = base(extra={"prefork.peer": "10.0.0.9"})
    environ = request_environ(told, PEER, ask("X-Forwarded-For: 192.0.2.1"), None, 0)
    assert (environ["REMOTE_ADDR"], environ["prefork.peer"]) == ("192.0.2.1", "10.0.0.9")


def test_a_body_is_given_to_who_is_spoken_for(ask: Ask) -> None:
    body = BytesIO(b"tea")
    environ = request_environ(base(), PEER, ask("X-Forwarded-For: 192.0.2.1", "Content-Length: 3"), body, 3)
    assert environ["wsgi.input"] is body
    assert environ["CONTENT_LENGTH"] == "3"


def test_what_an_untrusted_peer_claims_is_not_in_the_environ(ask: Ask) -> None:
    told: list[tuple[Sequence[bytes], str]] = []
    stranger = base(None, on_ignored=lambda names, address: told.append((names, address)))
    forged = ("X-Forwarded-FOR: 192.0.2.1", "Forwarded: for=192.0.2.1", "X-Real-Ip: 192.0.2.1", "X-Forwarded-Ssl: on")
    for _ in range(2):
        environ = request_environ(stranger, PEER, ask(*forged, "X-Request-ID: 7"), None, 0)
        assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == PEER
        assert [name for name in environ if "FORWARDED" in name or "REAL" in name] == []
        assert environ["HTTP_X_REQUEST_ID"] == "7"
    assert [address for _, address in told] == ["127.0.0.1"]


def test_the_same_fields_mean_nothing_from_one_peer_and_much_from_another(ask: Ask) -> None:
    trusted, stranger = base(), base(None)
    for _ in range(3):
        for which, address in ((trusted, "192.0.2.1"), (stranger, "127.0.0.1")):
            request = ask("X-Forwarded-For: 192.0.2.1")
            assert request_environ(which, PEER, request, None, 0)["REMOTE_ADDR"] == address
            assert asked_by(which, PEER, request) == (address, "http")


def test_who_asked_is_told_whoever_else_sends_the_same_head_meanwhile(ask: Ask) -> None:
    trusted, stranger = base(), base(None)
    for which, other, address in ((trusted, stranger, "192.0.2.1"), (stranger, trusted, "127.0.0.1")):
        request = ask("X-Forwarded-For: 192.0.2.1")
        request_environ(which, PEER, request, None, 0)
        request_environ(other, PEER, ask("X-Forwarded-For: 192.0.2.1"), None, 0)
        assert asked_by(which, PEER, request) == (address, "http")


def test_who_asked_is_told_of_a_request_that_never_had_an_environ(ask: Ask) -> None:
    assert asked_by(base(), PEER, ask("X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: https")) == (
        "192.0.2.1",
        "https",
    )
    assert asked_by(base(), PEER, ask("X-Forwarded-For: nobody")) == ("127.0.0.1", "http")


def test_an_environ_is_nobody_elses(ask: Ask) -> None:
    for fields in ((), ("X-Forwarded-For: 192.0.2.1",)):
        first = request_environ(base(), PEER, ask(*fields), None, 0)
        first["SCRIPT_NAME"] = first["REMOTE_ADDR"] = "changed"
        assert "changed" not in request_environ(base(), PEER, ask(*fields), None, 0).values()


def test_what_cannot_be_read_is_refused_each_time(ask: Ask) -> None:
    for _ in range(2):
        with pytest.raises(Refused, match="malformed X-Forwarded-For"):
            request_environ(base(), PEER, ask("X-Forwarded-For: nobody"), None, 0)


@pytest.mark.parametrize(
    ("root_path", "target", "script_name", "path_info"),
    [
        ("", "/tea", "", "/tea"),
        ("/shop", "/shop/tea", "/shop", "/tea"),
        ("/shop", "/shop/", "/shop", "/"),
        ("/shop", "/shop", "/shop", ""),
        ("/shop", "/tea", "/shop", "/tea"),
        ("/shop", "/shopping", "/shop", "/shopping"),
        ("/shop", "/sh%6Fp/tea", "/shop", "/tea"),
        ("/café", "/caf%C3%A9/tea", "/cafÃ©", "/tea"),
    ],
)
@pytest.mark.parametrize("fields", [(), ("X-Forwarded-Proto: https",)])
def test_the_root_path_is_taken_off_the_path_where_it_stands_there(
    ask: Ask, fields: tuple[str, ...], root_path: str, target: str, script_name: str, path_info: str
) -> None:
    environ = request_environ(base(root_path=root_path), PEER, ask(*fields, target=target), None, 0)
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == (script_name, path_info)


def test_a_prefix_of_the_proxy_takes_the_place_of_the_root_path(ask: Ask) -> None:
    told = base(root_path="/shop")
    environ = request_environ(told, PEER, ask("X-Forwarded-Prefix: /other", target="/shop/tea"), None, 0)
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/other", "/shop/tea")
