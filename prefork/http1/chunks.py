"""Where does a chunked body end?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefork.http1.grammar import CHUNK_LINE, FIELD_LINES, STRAY_LINE_END, split_fields
from prefork.http1.messages import Body, End, Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefork.config import Limits

LINE_LIMIT = 4096
"""The longest chunk line, extensions included, in bytes: nobody needs more, and an endless one must end."""

EXTENSIONS_LIMIT = 16384
"""How many bytes longer than the body all chunk extensions together may be (RFC 9112 section 7.1.1)."""

_SIZE_DIGITS = 15


class ChunkDecoder:
    """Reads a body in the chunked coding (RFC 9112 section 7.1), bounded in every part by ``limits``."""

    __slots__ = ("_left", "_limits", "_padding", "_phase", "_seen", "_total")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._phase: Callable[[bytes, int], tuple[bytes | End | None, int, bool]] = self._size
        self._left = 0
        self._total = 0
        self._padding = 0  # bytes of chunk lines that say nothing about the body
        self._seen = 0  # bytes of an unfinished line, or of the trailer section, that were looked at

    def next(self, buffer: bytes, at: int) -> tuple[Body | End | None, int]:
        """Read on at ``at``; return what was found, or ``None`` if more is needed, and where to go on.

        The data of all chunks that are there come as one piece: whoever sends chunks of an octet must not cost a call and
        a write for each. Raises ``Refused`` when the coding is broken or a limit is passed.
        """
        pieces: list[bytes] = []
        while True:
            found, advanced, more = self._phase(buffer, at)
            if isinstance(found, End):
                if not pieces:
                    return found, advanced
                break  # the pieces go first, and the end is found again
            if found is not None:
                pieces.append(found)
            at = advanced
            if not more:
                break
        return Body(b"".join(pieces)) if pieces else None, at

    def _size(self, buffer: bytes, at: int) -> tuple[None, int, bool]:
        new = at + max(0, self._seen - 1)
        end = buffer.find(b"\r\n", new, at + LINE_LIMIT + 2)
        if end < 0:
            if len(buffer) - at >= LINE_LIMIT + 2:
                raise Refused(400, "chunk line too long", "RFC 9112 section 7.1.1")
            if STRAY_LINE_END.search(buffer, new):
                raise Refused(400, "malformed chunk line", "RFC 9112 section 7.1")
            self._seen = len(buffer) - at
            return None, at, False
        self._seen = 0
        match = CHUNK_LINE.fullmatch(buffer, at, end)
        if match is None:
            raise Refused(400, "malformed chunk line", "RFC 9112 section 7.1")
        digits = match[1]
        if len(digits) > _SIZE_DIGITS and len(digits := digits.lstrip(b"0")) > _SIZE_DIGITS:
            raise Refused(413, "chunk size beyond any limit", "RFC 9112 section 7.1")
        self._left = int(digits or b"0", 16)
        self._total += self._left
        if self._total > self._limits.max_body_size:
            raise Refused(413, "body longer than max_body_size", "RFC 9110 section 15.5.14")
        self._padding += end - at - len(digits)
        if self._padding > EXTENSIONS_LIMIT + self._total:
            raise Refused(400, "chunk extensions longer than the body", "RFC 9112 section 7.1.1")
        self._phase = self._data if self._left else self._trailers
        return None, end + 2, True

    def _data(self, buffer: bytes, at: int) -> tuple[bytes | None, int, bool]:
        data = buffer[at : at + self._left]
        if not data:
            return None, at, False
        self._left -= len(data)
        at += len(data)
        if not self._left:
            if buffer.startswith(b"\r\n", at):
                self._phase = self._size
                return data, at + 2, True
            self._phase = self._data_end
        return data, at, True

    def _data_end(self, buffer: bytes, at: int) -> tuple[None, int, bool]:
        if buffer.startswith(b"\r\n", at):
            self._phase = self._size
            return None, at + 2, True
        if buffer[at : at + 2] not in (b"", b"\r"):
            raise Refused(400, "chunk longer than its size", "RFC 9112 section 7.1")
        return None, at, False

    def _trailers(self, buffer: bytes, at: int) -> tuple[End | None, int, bool]:
        if buffer.startswith(b"\r\n", at):
            return End([]), at + 2, True
        limit = self._limits.max_head_size
        end = buffer.find(b"\r\n\r\n", at + max(0, self._seen - 3), at + limit)
        if end < 0:
            if STRAY_LINE_END.search(buffer, at + max(0, self._seen - 1)):
                raise Refused(400, "malformed trailer", "RFC 9112 section 7.1.2")
            if len(buffer) - at >= limit:
                raise Refused(431, "trailer section longer than max_head_size", "RFC 6585 section 5")
            self._seen = len(buffer) - at
            return None, at, False
        block = buffer[at : end + 2]
        if FIELD_LINES.fullmatch(block) is None:
            raise Refused(400, "malformed trailer", "RFC 9112 section 7.1.2")
        if block.count(b"\r\n") > self._limits.max_header_count:
            raise Refused(431, "too many trailer fields", "RFC 6585 section 5")
        return End(split_fields(block)), end + 4, True
