"""How does an answer of an ASGI application go out over TLS?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefork.asgi.calls import Client
from prefork.tls import TlsGuest, TlsOutbox

if TYPE_CHECKING:
    import _socket

    from prefork.asgi.driver import AsgiDriver
    from prefork.asgi.gateway import Base
    from prefork.http1.connection import Connection
    from prefork.outbox import Outbox
    from prefork.tls import Session


class TlsClient(TlsGuest, Client):
    """A connection that speaks TLS."""

    def __init__(
        self,
        driver: AsgiDriver,
        sock: _socket.socket,
        connection: Connection,
        base: Base,
        peer: tuple[str, str] | None,
    ) -> None:
        Client.__init__(self, driver, sock, connection, base, peer)
        self._put_octets = driver.put_octets
        self.speak(driver)

    def send_octets(self, octets: bytes) -> None:
        """Send as it is, or keep what the client does not take now."""
        self._put_octets(self, octets)

    def _fail(self, session: Session) -> None:
        """Say what is wrong, by an alert, and close; an application that is at it has nobody left to answer."""
        super()._fail(session)
        self.broken |= self.call is not None

    def encrypted(self, octets: bytes) -> bytes:
        """Return what goes on the wire for ``octets``."""
        assert self.session is not None
        return b"".join(self.session.pieces(octets))

    def new_outbox(self, spool_dir: str | None) -> Outbox:
        """Return what holds what is encrypted, and files that are not yet."""
        return super().new_outbox(spool_dir) if self.session is None else TlsOutbox(spool_dir, self.session)

    def cut(self, last: bytes) -> None:
        """End it while another thread may be at it, which does not use the session: it holds the loop up."""
        session = self.session
        super().cut(session.send(last) + session.end() if last and session is not None else b"")
