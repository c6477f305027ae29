"""Whose request is it, by the scope that an ASGI application sees?"""

from __future__ import annotations

import tracemalloc
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import pytest

from prefork.asgi.gateway import Answer, Base, asked_by, request_scope, server_scope
from prefork.config import Limits
from prefork.http1.connection import Connection
from prefork.http1.forwarded import Belief
from prefork.http1.heads import HeadReader
from prefork.http1.messages import Refused, Request
from prefork.http1.parser_h11 import H11Parser
from prefork.reception import Origin
from prefork.trust import TrustedProxies

if TYPE_CHECKING:
    from collections.abc import Sequence

NAMES = (b"forwarded", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port")
BELIEF = Belief(TrustedProxies(["127.0.0.1"]), frozenset({*NAMES, b"x-forwarded-prefix"}))
PEER = ("127.0.0.1", "50000")


class Told(list[tuple[list[bytes], str]]):
    """What was said to be ignored."""

    def __call__(self, names: Sequence[bytes], address: str) -> None:
        self.append((list(names), address))


def base(*, trusted: bool = True, root_path: str = "", told: Told | None = None, **extensions: Any) -> Base:
    scope = server_scope(scheme="http", server=("10.0.0.5", 8000), root_path=root_path, extensions=extensions)
    origin = Origin("http", "10.0.0.5", "8000", trusted)
    return Base(scope, origin, BELIEF if trusted else None, Told() if told is None else told)


def ask(*fields: str, target: str = "/tea", host: str = "shop.example") -> Request:
    head = "".join(f"{field}\r\n" for field in (f"Host: {host}", *fields, ""))
    return HeadReader(Limits(), H11Parser()).read(f"GET {target} HTTP/1.1".encode(), head.encode("latin-1"))


def scope_of(*fields: str, where: Base | None = None, **more: Any) -> dict[str, Any]:
    return request_scope(base() if where is None else where, None, PEER, ask(*fields, **more))


def test_a_trusted_peer_speaks_for_the_client() -> None:
    request, where = ask("X-Forwarded-For: 192.0.2.1:4711", "X-Forwarded-Proto: https"), base()
    scope = request_scope(where, None, PEER, request)
    assert scope["client"] == ("192.0.2.1", 4711)
    assert scope["scheme"] == "https"
    assert scope["server"] == ("10.0.0.5", 443)
    assert scope["extensions"]["prefork.peer"] == "127.0.0.1"
    assert asked_by(where, PEER, request) == ("192.0.2.1", "https")


def test_who_asked_is_told_whoever_else_sends_the_same_head_meanwhile() -> None:
    trusted, stranger = base(), base(trusted=False)
    for which, other, address in ((trusted, stranger, "192.0.2.1"), (stranger, trusted, "127.0.0.1")):
        request = ask("X-Forwarded-For: 192.0.2.1")
        request_scope(which, None, PEER, request)
        request_scope(other, None, PEER, request)
        assert asked_by(which, PEER, request) == (address, "http")


def test_who_asked_is_told_of_a_request_that_never_had_a_scope() -> None:
    assert asked_by(base(), PEER, ask("X-Forwarded-For: 192.0.2.1")) == ("192.0.2.1", "http")
    assert asked_by(base(), PEER, ask("X-Forwarded-For: nobody")) == ("127.0.0.1", "http")


def test_a_client_whose_port_is_not_told_has_none() -> None:
    assert scope_of("X-Forwarded-For: 192.0.2.1")["client"] == ("192.0.2.1", 0)
    assert scope_of()["client"] == ("127.0.0.1", 50000)


@pytest.mark.parametrize(
    ("fields", "host", "server"),
    [
        (["X-Forwarded-Host: tea.example:8443"], b"tea.example:8443", ("tea.example", 8443)),
        (["X-Forwarded-Host: [::1]"], b"[::1]", ("::1", 80)),
        (["X-Forwarded-Port: 8443"], b"shop.example:8443", ("10.0.0.5", 8443)),
        (["X-Forwarded-Proto: https", "X-Forwarded-Port: 443"], b"shop.example", ("10.0.0.5", 443)),
    ],
)
def test_host_and_port_are_those_that_the_client_asked(fields: list[str], host: bytes, server: tuple[str, int]) -> None:
    scope = scope_of(*fields)
    assert [value for name, value in scope["headers"] if name == b"host"] == [host]
    assert scope["server"] == server


def test_a_host_whose_port_is_none_is_no_fault_of_ours() -> None:
    assert scope_of("X-Forwarded-Proto: https", host="a:" + "9" * 5000)["server"] == ("10.0.0.5", 443)


def test_a_prefix_of_the_proxy_takes_the_place_of_the_root_path() -> None:
    scope = scope_of("X-Forwarded-Prefix: /caf%C3%A9", where=base(root_path="/x"))
    assert (scope["root_path"], scope["path"]) == ("/café", "/café/tea")


def test_what_an_untrusted_peer_claims_is_not_in_the_scope() -> None:
    told = Told()
    forged = [f"X-Forwarded-Untold-{number}: x" for number in range(3)]
    for _ in range(2):
        scope = scope_of(*forged, "X-Forwarded-Proto: https", where=base(trusted=False, told=told))
        assert (scope["scheme"], scope["client"]) == ("http", ("127.0.0.1", 50000))
        assert scope["headers"] == [(b"host", b"shop.example")]
    assert [address for _, address in told] == ["127.0.0.1"]
    assert b"x-forwarded-untold-2" in told[0][0]


def test_what_is_remembered_of_the_ignored_is_bounded() -> None:
    told = Told()
    for number in range(1000):
        scope_of(
            f"X-Forwarded-{number:0500}: x", f"X-Forwarded-Bound-{number}: x", where=base(trusted=False, told=told)
        )
    assert len(told) <= 512


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(Refused, match="malformed X-Forwarded-For"):
        scope_of("X-Forwarded-For: nobody")


def test_what_an_application_notes_about_the_server_is_not_seen_by_the_next() -> None:
    where = base()
    scope_of(where=where)["asgi"]["seen"] = True
    assert scope_of(where=where)["asgi"] == {"version": "3.0", "spec_version": "2.5"}


class Code(int, Enum):
    FINE = 200


def begun(status: Any, *fields: tuple[bytes, bytes]) -> Answer:
    answer = Answer(Connection(HeadReader(Limits(), H11Parser())), ask().head)
    assert answer.take({"type": "http.response.start", "status": status, "headers": fields}, b"") == b""
    return answer


@pytest.mark.parametrize("status", [200.0, Code.FINE, HTTPStatus.OK, "200"])
def test_a_status_is_its_number_whatever_an_application_takes_for_one(status: Any) -> None:
    fields = (b"x-status", repr(status).encode())
    assert begun(status, fields).status == begun(200, fields).status == "200 OK"


def test_what_is_remembered_of_answers_is_bounded() -> None:
    tracemalloc.start()
    try:
        for number in range(400):
            begun(200, (b"content-security-policy", b"%d" % number + b"x" * 30_000))
        assert tracemalloc.get_traced_memory()[0] < 5_000_000
    finally:
        tracemalloc.stop()
