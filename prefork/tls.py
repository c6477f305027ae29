"""How does a connection speak TLS?

``Session`` is OpenSSL between two buffers: what the wire brought goes in, what shall go out comes out, and it knows no
socket. So one system call reads all that is there, nothing decrypted is left where no poller tells of it, and what a
client does not take yet waits, encrypted, in the same outbox as everybody's.

A connection that has said something stays in its process, for the keys are here. One that has not can be handed over.
"""

from __future__ import annotations

import os
import socket
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from prefork.http1.connection import Phase, closing_answer
from prefork.http1.messages import Refused
from prefork.outbox import Outbox, Part
from prefork.reception import WITH_END, Guest

if TYPE_CHECKING:
    import _socket
    from collections.abc import Iterable

    from prefork.reception import Reception

RECORD_SIZE = 16384
"""The most that one record holds (RFC 8446 section 5.1)."""
PIECE = 16 * RECORD_SIZE
"""How much is encrypted at a time."""
# RFC 8446 section 5.1: the type of the record that a ClientHello comes in.
_HANDSHAKE = 22
_PLAIN = Refused(400, "this port speaks TLS: ask with https://", "RFC 9110 section 4.2.2")
# RFC 4514 section 3, and what OpenSSL calls the others.
_SHORT_NAMES = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "STREET",
    "userId": "UID",
}
_ESCAPED = {**{ord(character): f"\\{character}" for character in '"+,;<>\\'}, 0: "\\00"}


class Session:
    """One TLS connection, seen from the server. Raises ``ssl.SSLError`` where the peer breaks the protocol.

    Not for two threads at once.
    """

    __slots__ = ("_in", "_out", "_read", "_tls", "_write", "ended", "established")

    def __init__(self, context: ssl.SSLContext) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        self._read, self._write = self._tls.read, self._tls.write
        self.established = False
        """Whether the handshake is done."""
        self.ended = False
        """Whether the peer has said that nothing more will come (RFC 8446 section 6.1)."""

    def receive(self, data: bytes) -> bytes:
        """Take what the wire brought; return all that it says, which may be nothing yet."""
        said: list[bytes] = []
        read, arrived = self._read, self._in
        arrived.write(data)
        try:
            if not self.established:
                self._tls.do_handshake()
                self.established = True
            # Whole records are read, so that nothing is left of one.
            while piece := read(RECORD_SIZE):
                if not (arrived.pending or said):
                    return piece
                said.append(piece)
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        return b"".join(said)

    def send(self, data: bytes | memoryview) -> bytes:
        """Return ``data`` as it goes on the wire."""
        self._write(data)
        return self._out.read()

    def pieces(self, data: bytes) -> Iterable[bytes]:
        """Return what goes on the wire for ``data``, each piece encrypted when it is asked for: little is kept of a long one."""
        if len(data) <= PIECE:
            return (self.send(data),)
        view = memoryview(data)
        return (self.send(view[at : at + PIECE]) for at in range(0, len(view), PIECE))

    @property
    def unsent(self) -> bytes:
        """What goes on the wire without anybody's asking: handshakes, tickets, alerts. Empty when it was taken."""
        return self._out.read()

    def end(self) -> bytes:
        """Return what says that nothing more will come."""
        with suppress(ssl.SSLError):  # it waits for the peer to say so too, or is of no use after a failure
            self._tls.unwrap()
        return self._out.read()

    def facts(self) -> dict[str, str]:
        """Return what an application may know of it, with the names that mod_ssl has for it.

        Of a certificate in which a name cannot be read all names and the number are left out.
        """
        cipher, names = self._tls.cipher(), self._names()
        facts = {
            "SSL_PROTOCOL": self._tls.version() or "",
            "SSL_CIPHER": cipher[0] if cipher else "",
            "SSL_CLIENT_VERIFY": "NONE" if names is None else "SUCCESS",
        }
        if names is not None:
            facts |= names
            facts["SSL_CLIENT_CERT"] = ssl.DER_cert_to_PEM_cert(self._tls.getpeercert(binary_form=True) or b"")
        return facts

    def _names(self) -> dict[str, str] | None:
        """Return whose certificate the client has shown, as far as that can be read; ``None``: it has shown none."""
        try:
            certificate = self._tls.getpeercert()
            if not certificate:
                return None
            return {
                "SSL_CLIENT_S_DN": distinguished_name(certificate["subject"]),  # type: ignore[arg-type]  # as the documentation has it
                "SSL_CLIENT_I_DN": distinguished_name(certificate["issuer"]),  # type: ignore[arg-type]  # likewise
                "SSL_CLIENT_M_SERIAL": str(certificate["serialNumber"]),
            }
        except (ValueError, ssl.SSLError):
            # It is verified. Python reads all of it or nothing, and wants UTF-8 also where others write latin-1.
            return {}


def distinguished_name(parts: Iterable[Iterable[tuple[str, str | bytes]]]) -> str:
    """Return the name of a certificate's subject or issuer as a text (RFC 4514): the last part first."""
    named = ["+".join(f"{_SHORT_NAMES.get(kind, kind)}={_escaped(value)}" for kind, value in part) for part in parts]
    return ",".join(reversed(named))


def _escaped(value: str | bytes) -> str:
    """Return a value as RFC 4514 section 2.4 has it; raises ``ValueError`` for one that is no text."""
    if isinstance(value, bytes):
        raise ValueError("a bit string")  # noqa: TRY004 - as for what cannot be decoded
    text = value.translate(_ESCAPED)
    if value.endswith(" ") and len(value) > 1:
        text = f"{text[:-1]}\\ "
    return f"\\{text}" if value.startswith((" ", "#")) else text


class TlsOutbox(Outbox):
    """Holds what is encrypted already, and files, which are encrypted as the client takes them."""

    def __init__(self, spool_dir: str | None, session: Session) -> None:
        super().__init__(spool_dir)
        self._session = session

    def _send_part(self, sock: _socket.socket, part: Part) -> int:
        if part.spool is not None:
            return super()._send_part(sock, part)
        # Nothing is said behind a file until it is gone: records must leave in the order in which they were made.
        block = os.pread(part.file, min(part.end - part.at, PIECE), part.at)
        self._passed(part, len(block))
        self._add_first(self._session.send(block))
        return 0


class TlsGuest(Guest):
    """A connection that speaks TLS, for a class that also is one of a driver's.

    ``receive`` looks for a handshake at first, then goes on with it. It raises ``BlockingIOError`` where what came says
    nothing yet, as a socket does.
    """

    session: Session | None = None

    def speak(self, reception: Reception[Any]) -> None:
        """Begin; ``reception`` is the driver."""
        self.reception = reception
        self.receive = self._begin

    def send_octets(self, octets: bytes) -> None:
        """Send as it is, or keep what the client does not take now."""
        raise NotImplementedError

    @property
    def tied(self) -> bool:
        """Whether it has to stay in this process."""
        return self.session is not None or super().tied

    # What comes in.

    def _begin(self, size: int, flags: int) -> bytes:
        data = self.sock.recv(size, flags)
        if not data:
            return data
        if data[0] != _HANDSHAKE:
            self._answer_plainly()
            raise BlockingIOError
        assert self.reception.tls is not None
        self.session = Session(self.reception.tls)
        self.receive = self._shake_hands
        return self._shake(self.session, data)

    def _shake_hands(self, size: int, flags: int) -> bytes:
        assert self.session is not None
        data = self.sock.recv(size, flags)
        return self._shake(self.session, data) if data else data

    def _shake(self, session: Session, data: bytes) -> bytes:
        try:
            said = session.receive(data)
        except ssl.SSLError as error:
            reason = error.reason or str(error)
            self.reception.records.emit("tls.handshake_failed", reason=reason, client=self.address)
            self._fail(session)
            raise BlockingIOError from None
        if unsent := session.unsent:
            self.send_octets(unsent)
        if session.established:
            self.receive = self._decrypt
            self.base = self.reception.base_of_session(self.base, session)
        if not (said or session.ended):
            raise BlockingIOError
        return self._said(session, said)

    def _decrypt(self, size: int, flags: int) -> bytes:
        session = self.session
        assert session is not None
        data = self.sock.recv(size, flags)
        if not data:
            return data
        try:
            said = session.receive(data)
        except ssl.SSLError:
            self._fail(session)
            raise BlockingIOError from None
        if not (said or session.ended):
            # Where something was said, what OpenSSL has to say besides goes out with the answer.
            if unsent := session.unsent:
                self._send_behind(unsent)
            raise BlockingIOError
        return self._said(session, said)

    def _said(self, session: Session, said: bytes) -> bytes:
        """Return what was said; if it was the last, have the poller tell so, as it does of a client who hangs up."""
        if session.ended and said:
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RD)
        return said

    def _answer_plainly(self) -> None:
        """Say to somebody who does not speak TLS what is spoken here, in words that he understands."""
        records, date = self.reception.records, self.reception.date()
        records.emit(
            "request.rejected",
            reason=_PLAIN.reason,
            source=_PLAIN.source,
            status=_PLAIN.status,
            client=self.address,
        )
        self.send_octets(closing_answer(_PLAIN, date))
        self.connection.close()

    def _fail(self, session: Session) -> None:
        """Say what is wrong, by an alert (RFC 8446 section 6.2), and close."""
        self._send_behind(session.unsent)
        self.connection.close()

    def _send_behind(self, octets: bytes) -> None:
        """Send what was encrypted behind answers that may still be held back: records have their order."""
        self.reception.send_held_back()
        self.send_octets(octets)

    # The end.

    def hang_up(self) -> None:
        """Say that nothing more will come; what the client still sends is not decrypted any more."""
        self._say_end()
        self.receive = self.sock.recv
        super().hang_up()

    def close(self) -> None:
        """Close it. The client learns whether its answer was whole: only then the end is announced."""
        if self.outbox is None and self.connection.phase is not Phase.ANSWER:
            self._say_end()
        self.receive = self.sock.recv  # else it would hold itself in memory
        super().close()

    def _say_end(self) -> None:
        if self.session is not None and self.session.established:
            with suppress(OSError):
                self.sock.send(self.session.end(), WITH_END)
