"""How does an answer of a WSGI application go out over TLS?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefork.reception import AT_ONCE
from prefork.tls import RECORD_SIZE, TlsGuest, TlsOutbox
from prefork.wsgi.driver import Client, TimedClient

if TYPE_CHECKING:
    import _socket

    from prefork.http1.connection import Connection
    from prefork.outbox import Outbox
    from prefork.wsgi.driver import WsgiDriver
    from prefork.wsgi.gateway import Base


class TlsClient(TlsGuest, Client):
    """A connection that speaks TLS."""

    def __init__(
        self,
        driver: WsgiDriver,
        sock: _socket.socket,
        connection: Connection,
        base: Base,
        peer: tuple[str, str] | None,
    ) -> None:
        Client.__init__(self, driver, sock, connection, base, peer)
        self.speak(driver)

    def send_octets(self, octets: bytes, flags: int = AT_ONCE) -> None:
        """Send as it is, or keep what the client does not take now."""
        Client.send_octets(self, octets, flags)

    def complete(self, data: bytes) -> None:
        """Send the last of an answer, at once or together with those of others.

        It is encrypted here: what is held back may be sent by another thread, while this one reads what the client has
        sent ahead, and a session is not for two threads.
        """
        if self.outbox is not None or len(data) > RECORD_SIZE:
            Client.send(self, data)
            return
        assert self.session is not None
        Client.complete(self, self.session.send(data))

    def conclude(self, data: bytes) -> None:
        """Send the last of a connection."""
        if self.outbox is not None or len(data) > RECORD_SIZE:
            Client.send(self, data)
            return
        assert self.session is not None
        Client.conclude(self, self.session.send(data))

    def send_now(self, data: bytes, flags: int = AT_ONCE) -> None:
        """Encrypt, and send before all that is held back."""
        assert self.session is not None
        for piece in self.session.pieces(data):
            self.send_octets(piece, flags)

    def new_outbox(self) -> Outbox:
        """Return what holds what is encrypted, and files that are not yet."""
        return super().new_outbox() if self.session is None else TlsOutbox(self.driver.config.spool_dir, self.session)

    def cut(self, last: bytes) -> None:
        """End it while a thread may be at it: nobody but that one may use the session, if it has begun to answer."""
        assert self.session is not None
        super().cut(self.session.send(last) + self.session.end() if last else b"")


class TimedTlsClient(TimedClient, TlsClient):
    """The same for requests that have a limit of time."""
