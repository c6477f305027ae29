"""Where does a chunked body end?"""

from __future__ import annotations

from prefork.http1.grammar import CHUNK_LINE, FIELD_LINES, STRAY_LINE_END, split_fields
from prefork.http1.messages import Body, End, Refused

LINE_LIMIT = 4096
"""The longest chunk line, extensions included, in bytes: nobody needs more, and an endless one must end."""

_SIZE_DIGITS = 15


class ChunkDecoder:
    """Reads a body in the chunked coding (RFC 9112 section 7.1), bounded in every part.

    ``limit`` bounds the body and ``trailer_limit`` the trailer section, in bytes.
    """

    __slots__ = ("_left", "_limit", "_phase", "_seen", "_total", "_trailer_limit")

    def __init__(self, limit: int, trailer_limit: int) -> None:
        self._limit = limit
        self._trailer_limit = trailer_limit
        self._phase = self._size
        self._left = 0
        self._seen = 0  # how much of an unfinished line or trailer section was searched
        self._total = 0

    def next(self, buffer: bytes, at: int) -> tuple[Body | End | None, int]:
        """Read on at ``at``; return what was found, or ``None`` if more is needed, and where to go on.

        Raises ``Refused`` when the coding is broken or a limit is passed.
        """
        while True:
            event, advanced, more = self._phase(buffer, at)
            if event is not None or not more:
                return event, advanced
            at = advanced

    def _size(self, buffer: bytes, at: int) -> tuple[Body | End | None, int, bool]:
        unseen = at + max(0, self._seen - 1)
        end = buffer.find(b"\r\n", unseen, at + LINE_LIMIT + 2)
        if end < 0:
            if len(buffer) - at > LINE_LIMIT:
                raise Refused(400, "chunk line too long", "RFC 9112 section 7.1.1")
            if STRAY_LINE_END.search(buffer, unseen):
                raise Refused(400, "malformed chunk line", "RFC 9112 section 7.1")
            self._seen = len(buffer) - at
            return None, at, False
        self._seen = 0
        match = CHUNK_LINE.fullmatch(buffer, at, end)
        if match is None:
            raise Refused(400, "malformed chunk line", "RFC 9112 section 7.1")
        digits = match["size"].lstrip(b"0")
        if len(digits) > _SIZE_DIGITS:
            raise Refused(413, "chunk size beyond any limit", "RFC 9112 section 7.1")
        self._left = int(digits or b"0", 16)
        self._total += self._left
        if self._total > self._limit:
            raise Refused(413, "body longer than max_body_size", "RFC 9110 section 15.5.14")
        self._phase = self._data if self._left else self._trailers
        return None, end + 2, True

    def _data(self, buffer: bytes, at: int) -> tuple[Body | End | None, int, bool]:
        data = buffer[at : at + self._left]
        if not data:
            return None, at, False
        self._left -= len(data)
        if not self._left:
            self._phase = self._data_end
        return Body(data), at + len(data), True

    def _data_end(self, buffer: bytes, at: int) -> tuple[Body | End | None, int, bool]:
        if buffer.startswith(b"\r\n", at):
            self._phase = self._size
            return None, at + 2, True
        if buffer[at : at + 2] not in (b"", b"\r"):
            raise Refused(400, "chunk longer than its size", "RFC 9112 section 7.1")
        return None, at, False

    def _trailers(self, buffer: bytes, at: int) -> tuple[Body | End | None, int, bool]:
        if buffer.startswith(b"\r\n", at):
            return End([]), at + 2, True
        end = buffer.find(b"\r\n\r\n", at + max(0, self._seen - 3), at + self._trailer_limit + 4)
        if end < 0:
            if len(buffer) - at > self._trailer_limit:
                raise Refused(431, "trailer section too long", "RFC 6585 section 5")
            if STRAY_LINE_END.search(buffer, at + max(0, self._seen - 1)):
                raise Refused(400, "malformed trailer", "RFC 9112 section 7.1.2")
            self._seen = len(buffer) - at
            return None, at, False
        block = buffer[at : end + 2]
        if FIELD_LINES.fullmatch(block) is None:
            raise Refused(400, "malformed trailer", "RFC 9112 section 7.1.2")
        return End(split_fields(block)), end + 4, True
