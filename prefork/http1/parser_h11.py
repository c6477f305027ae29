"""How does h11 read field lines?"""

from __future__ import annotations

import h11

from prefork.http1.grammar import split_fields
from prefork.http1.messages import Field, Refused

# One more than any head that the connection lets through: its limits decide, not h11's.
_SIZE = 1 << 30


class H11Parser:
    """Reads the field lines of one head with h11, the reference of strictness."""

    def fields(self, version: str, block: bytes) -> list[Field]:
        """Return the fields of ``block``, whole field lines with their line ends; raises ``Refused``."""
        reader = h11.Connection(h11.SERVER, max_incomplete_event_size=_SIZE)
        # The request line was read by the grammar; a plain one stands for it, so that any method and form may come.
        reader.receive_data(b"GET / HTTP/%b\r\n%b\r\n" % (version.encode(), block))
        try:
            event = reader.next_event()
        except h11.RemoteProtocolError as error:
            raise Refused(error.error_status_hint, str(error), "h11") from None
        if not isinstance(event, h11.Request):  # pragma: no cover - the block is whole, so h11 has all it needs
            raise Refused(400, "unfinished head", "h11")
        # Not h11's own list, which makes one of equal lengths: that is for the connection to judge.
        return split_fields(block)
