"""How does llhttp, behind httptools, read field lines?"""

from __future__ import annotations

import re

import httptools

from prefork.http1.messages import Field, Refused

_PADDING = re.compile(rb"[ \t]+\r\n")


class HttptoolsParser:
    """Reads the field lines of one head with llhttp, about 20 times cheaper than h11."""

    __slots__ = ("_fields", "_parser")

    def __init__(self) -> None:
        self._fields: list[Field] = []
        self._parser: httptools.HttpRequestParser | None = None

    def fields(self, version: bytes, block: bytes) -> list[Field]:
        """Return the fields of ``block``, whole field lines with their line ends; raises ``Refused``."""
        fields = self._fields = []
        parser = self._parser
        used = parser is not None
        if parser is None:
            parser = self._parser = httptools.HttpRequestParser(self)
        # llhttp drops white space before a value, keeps it behind, and refuses it behind a transfer coding.
        if b" \r\n" in block or b"\t\r\n" in block:
            block = _PADDING.sub(b"\r\n", block)
        try:
            # The request line was read by the grammar; a plain one stands for it, since llhttp knows fewer methods.
            parser.feed_data(b"GET / HTTP/%b\r\n%b\r\n" % (version, block))
        except httptools.HttpParserUpgrade:
            self._parser = None
        except httptools.HttpParserError as error:
            self._parser = None
            if used:
                # After what it reads as a "close" it takes nothing more: whether the connection goes on is not its matter.
                return self.fields(version, block)
            raise Refused(400, str(error), "llhttp") from None
        return fields

    def forget(self) -> None:
        """Start with a new llhttp: the old one waits for a body, which the connection reads itself.

        Also breaks the circle of the two objects, so that a closed connection is freed at once.
        """
        self._parser = None

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one field (called by httptools)."""
        self._fields.append((name, value))
