"""What does a TLS session say, whatever pieces the wire brings its octets in?"""

from __future__ import annotations

import os
import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from prefork.config import Limits
from prefork.http1.connection import Connection
from prefork.http1.heads import HeadReader
from prefork.http1.parser_h11 import H11Parser
from prefork.tls import PIECE, Session, TlsOutbox, distinguished_name
from prefork.wsgi.tls import TlsClient

if TYPE_CHECKING:
    from pathlib import Path

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


class Peer:
    """A client without a socket."""

    def __init__(self, authority: trustme.CA, *, version: ssl.TLSVersion | None = None) -> None:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        if version is not None:
            context.maximum_version = version
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    def shake_hands(self, session: Session, size: int = 1 << 20) -> bytes:
        """Do the handshake with the client's octets in pieces of ``size``; return what the session said."""
        said = b""
        while True:
            try:
                self.tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                done = False
            octets = self.outgoing.read()
            for at in range(0, len(octets), size):
                said += session.receive(octets[at : at + size])
            self.incoming.write(session.unsent)
            if done and session.established:
                return said

    def write(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self.outgoing.read()

    def read(self, data: bytes) -> bytes:
        self.incoming.write(data)
        said = b""
        try:
            while piece := self.tls.read(1 << 20):
                said += piece
        except ssl.SSLWantReadError:
            pass
        return said


@pytest.fixture
def pair(authority: trustme.CA, context: ssl.SSLContext) -> tuple[Peer, Session]:
    peer, session = Peer(authority), Session(context)
    peer.shake_hands(session)
    return peer, session


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("size", [1, 100, 1 << 20])
def test_a_handshake_may_come_in_any_pieces(
    authority: trustme.CA, context: ssl.SSLContext, version: ssl.TLSVersion, size: int
) -> None:
    peer, session = Peer(authority, version=version), Session(context)
    assert peer.shake_hands(session, size) == b""
    assert session.receive(peer.write(REQUEST)) == REQUEST
    assert peer.read(session.send(b"tea")) == b"tea"


def test_what_is_said_is_told_as_soon_as_its_last_octet_is_there(pair: tuple[Peer, Session]) -> None:
    peer, session = pair
    octets = peer.write(REQUEST)
    assert [session.receive(octets[at : at + 1]) for at in range(len(octets) - 1)] == [b""] * (len(octets) - 1)
    assert session.receive(octets[-1:]) == REQUEST


def test_nothing_is_left_inside_where_no_poller_tells_of_it(pair: tuple[Peer, Session]) -> None:
    peer, session = pair
    octets = b"".join(peer.write(bytes([number]) * 20_000) for number in range(8))
    assert len(session.receive(octets)) == 160_000


def test_an_answer_of_any_size_arrives_whole(pair: tuple[Peer, Session]) -> None:
    peer, session = pair
    data = os.urandom(3_000_000)
    assert peer.read(session.send(data)) == data


def test_the_end_is_told_behind_what_came_before_it(pair: tuple[Peer, Session]) -> None:
    peer, session = pair
    octets = peer.write(REQUEST)
    with pytest.raises(ssl.SSLWantReadError):
        peer.tls.unwrap()
    assert session.receive(octets + peer.outgoing.read()) == REQUEST
    assert session.ended


def test_a_client_can_tell_an_end_from_a_cut(pair: tuple[Peer, Session]) -> None:
    peer, session = pair
    peer.incoming.write(session.send(b"tea") + session.end())
    assert (peer.tls.read(), peer.tls.read()) == (b"tea", b"")


def test_what_is_no_tls_is_answered_with_an_alert(context: ssl.SSLContext) -> None:
    session = Session(context)
    with pytest.raises(ssl.SSLError):
        session.receive(b"\x16\x03\x01\x00\x05hello")
    assert session.unsent.startswith(b"\x15\x03")
    assert session.end() == b""


def test_an_application_is_told_how_it_is_spoken(pair: tuple[Peer, Session]) -> None:
    _, session = pair
    facts = session.facts()
    assert facts.pop("SSL_CIPHER").startswith("TLS_")
    assert facts == {"SSL_PROTOCOL": "TLSv1.3", "SSL_CLIENT_VERIFY": "NONE"}


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ([[("countryName", "CH")], [("organizationName", "Tea")], [("commonName", "Ann")]], "CN=Ann,O=Tea,C=CH"),
        ([[("commonName", "Ann"), ("userId", "7")]], "CN=Ann+UID=7"),
        ([[("commonName", 'a,b+c"d\\e<f>g;h')]], 'CN=a\\,b\\+c\\"d\\\\e\\<f\\>g\\;h'),
        ([[("commonName", "#a ")]], "CN=\\#a\\ "),
        ([[("commonName", " ")]], "CN=\\ "),
        ([[("emailAddress", "a@b")]], "emailAddress=a@b"),
        ([], ""),
    ],
)
def test_a_name_is_written_as_in_rfc_4514(parts: Any, name: str) -> None:
    assert distinguished_name(parts) == name


def test_a_name_with_something_that_is_no_text_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="a bit string"):
        distinguished_name([[("x500UniqueIdentifier", b"tea")]])


class Pipe:
    """Takes ``room`` octets, then says that it is full."""

    def __init__(self, room: int) -> None:
        self.room, self.taken = room, b""

    def send(self, data: bytes) -> int:
        if not self.room:
            raise BlockingIOError
        taken = bytes(data[: self.room])
        self.room -= len(taken)
        self.taken += taken
        return len(taken)


class Holding:
    """A driver that holds all answers back."""

    receive = date = None

    def __init__(self) -> None:
        self.held: list[bytes] = []

    def hold_back(self, _client: TlsClient, data: bytes) -> bool:
        self.held.append(data)
        return True


def test_an_answer_that_is_held_back_is_encrypted_already(pair: tuple[Peer, Session]) -> None:
    """Another thread may send it, while this one reads what the client sent ahead: a session is not for two."""
    peer, session = pair
    driver: Any = Holding()
    here, there = socket.socketpair()
    with here, there:
        client = TlsClient(driver, here, Connection(HeadReader(Limits(), H11Parser())), {}, None)  # type: ignore[arg-type]  # no base is needed
        client.session = session
        client.complete(b"tea")
        client.complete(b"cups")
    assert b"".join(map(peer.read, driver.held)) == b"teacups"


def test_a_file_is_encrypted_as_it_is_taken(pair: tuple[Peer, Session], tmp_path: Path) -> None:
    peer, session = pair
    data = os.urandom(3 * PIECE + 5)
    (tmp_path / "file").write_bytes(b"before" + data + b"behind")
    outbox = TlsOutbox(None, session)
    outbox.add(session.send(b"head"))
    with (tmp_path / "file").open("rb") as file:
        outbox.add_file(file.fileno(), 6, len(data))
    said = b""
    while outbox:
        pipe: Any = Pipe(100_000)
        outbox.flush(pipe)
        assert outbox.size <= 2 * PIECE, "no more than a piece is in memory"
        said += peer.read(pipe.taken)
    assert said == b"head" + data
    assert outbox.size == 0


def test_a_file_that_becomes_shorter_cuts_the_connection(pair: tuple[Peer, Session], tmp_path: Path) -> None:
    _, session = pair
    (tmp_path / "file").write_bytes(b"short")
    outbox = TlsOutbox(None, session)
    with (tmp_path / "file").open("rb") as file:
        outbox.add_file(file.fileno(), 0, 100)
    pipe: Any = Pipe(1000)
    with pytest.raises(ConnectionAbortedError):
        outbox.flush(pipe)
    outbox.close()
