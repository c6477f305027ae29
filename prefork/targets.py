"""What is new code asked for before a client can ask, and what was its answer?

By ``warm_up`` in the parent, and by ``deploy_probe`` in a worker of new code.
"""

from __future__ import annotations

import re

from prefork.values import Value

LONGEST_ANSWER = 64 * 1024
"""How many bytes of an answer are looked at."""
WRONG, SICK = 400, 500
"""From which status on the request is to blame, or the server (RFC 9110 section 15)."""
_FIRST_WORDS = 200
# The host is printable ASCII without / ? # @: a class without its complement, which takes milliseconds to compile.
_TARGET = re.compile(r"(?:(?P<scheme>https?)://(?P<host>[!\"$-.0->A-~]+))?(?P<path>(?:/[!-\"$-~]*)?)")


class Target(Value):
    """What is asked for: a path, of a host, over ``http`` or ``https``; the scheme is empty if it was not given."""

    path: str
    host: str = "localhost"
    scheme: str = ""

    def request(self, *fields: str) -> bytes:
        """Return the octets of a request for it, with further field lines."""
        return "\r\n".join([f"GET {self.path} HTTP/1.1", f"Host: {self.host}", *fields, "", ""]).encode("ascii")


def is_target(text: object) -> bool:
    """Whether this looks like something to ask for, and not like the name of a function."""
    return isinstance(text, str) and text.startswith(("/", "http://", "https://"))


def parse_target(text: str) -> Target:
    """Return what a path, or a URL, stands for; raises ``ValueError``, with advice."""
    match = _TARGET.fullmatch(text)
    if not text or match is None:
        raise ValueError("give a path such as /, or a URL such as http://shop.example/, percent-encoded")
    if match["host"] is None:
        return Target(match["path"])
    return Target(match["path"] or "/", match["host"], match["scheme"])


def read_answer(octets: bytes) -> tuple[int, str]:
    """Return the status of an answer, 0 if there is none, and the first words of its body.

    Interim answers in front of it, such as 103 Early Hints, are passed over (RFC 9110 section 15.2).
    """
    while True:
        head, _, body = octets.partition(b"\r\n\r\n")
        match = re.match(rb"HTTP/1\.[01] ([1-5][0-9]{2}) ", head)
        if match is None:
            return 0, octets[:_FIRST_WORDS].decode(errors="replace")
        if not match[1].startswith(b"1"):
            return int(match[1]), body[:_FIRST_WORDS].decode(errors="replace")
        octets = body
