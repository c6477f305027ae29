"""What may a client of a WebSocket say, and what does it hear? RFC 6455 and RFC 7692, rule by rule.

The same rows are held against the session alone and against a server that sends back what it gets. The numbers in front are
those of the groups of the Autobahn test suite.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY = b"\x37\xfa\x21\x3d"
MOST = 65536 + 100
"""How long a message may be where these rows are tried."""


def masked(payload: bytes) -> bytes:
    """Return what a client sends for ``payload``."""
    return bytes(octet ^ KEY[at % 4] for at, octet in enumerate(payload))


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bool = True, wide: int = 0
) -> bytes:
    """Return one frame; ``wide`` is in how many octets its length is written, if not in as few as can be."""
    size = len(payload)
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    bit = 0x80 if mask else 0
    wide = wide or (0 if size < 126 else 2 if size < 65536 else 8)
    length = (
        bytes([bit | size]) if not wide else bytes([bit | (126 if wide == 2 else 127)]) + size.to_bytes(wide, "big")
    )
    return bytes([first]) + length + (KEY + masked(payload) if mask else payload)


def close(code: int | None = 1000, reason: bytes = b"") -> bytes:
    """Return what says that this is the end."""
    return frame(CLOSE, b"" if code is None else code.to_bytes(2, "big") + reason)


def deflated(payload: bytes) -> bytes:
    """Return ``payload`` as a compressed message has it."""
    deflater = zlib.compressobj(wbits=-15)
    return (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


def last_block(payload: bytes) -> bytes:
    """Return the same with its last block marked as that (RFC 7692 section 7.2.3.4)."""
    deflater = zlib.compressobj(wbits=-15)
    return deflater.compress(payload) + deflater.flush() + b"\0"


@dataclass(frozen=True)
class Case:
    """What the client sends, which messages the application gets, and with which code the server says the end.

    ``code`` is ``None`` where the WebSocket stays open; ``pong`` is what the last pong says, ``None`` without one.
    """

    rule: str
    octets: bytes
    messages: tuple[str | bytes, ...] = ()
    code: int | None = None
    pong: bytes | None = None
    compressed: bool = False

    def __str__(self) -> str:
        return self.rule


SIZES = (0, 1, 125, 126, 127, 65535, 65536)
BOMB = deflated(bytes(10_000_000))
GREETING = "κόσμε".encode()
GOOD_TEXTS = {
    "ASCII": b"Hello-\xc2\xb5@\xc3\x9f", "one to four octets": "aä€𐍈".encode(), "the last of each length": "\x7f\u07ff\uffff\U0010ffff".encode(),
    "the first of each length": "\x00\x80\u0800\U00010000".encode(), "no characters": "\ufffe\uffff\U0001fffe".encode(), "a byte order mark": "\ufefftext".encode(),
}  # fmt: skip
BAD_TEXTS = {
    "a lone continuation": b"a\x80", "an overlong slash": b"\xc0\xaf", "an overlong NUL of three": b"\xe0\x80\x80", "an overlong NUL of four": b"\xf0\x80\x80\x80",
    "a surrogate": b"\xed\xa0\x80", "two surrogates": b"\xed\xa0\x80\xed\xb0\x80", "beyond the last character": b"\xf4\x90\x80\x80", "FE": b"\xfe", "FF": b"\xff",
    "cut short": b"a\xe2\x82", "five octets": b"\xf8\x88\x80\x80\x80",
}  # fmt: skip

CASES = [
    *(Case(f"1.1 text of {size}: 5.6", frame(TEXT, b"*" * size), ("*" * size,)) for size in SIZES),
    *(Case(f"1.2 binary of {size}: 5.6", frame(BINARY, b"\xfe" * size), (b"\xfe" * size,)) for size in SIZES),
    Case("1.3 two messages at once: 5.2", frame(TEXT, b"one") + frame(BINARY, b"two"), ("one", b"two")),
    Case("1.4 no mask: 5.1", frame(TEXT, b"one", mask=False), code=1002),
    Case("1.4 length of 125 in two octets: 5.2", frame(TEXT, b"*" * 125, wide=2), code=1002),
    Case("1.4 length of 65535 in eight octets: 5.2", frame(TEXT, b"*" * 65535, wide=8), code=1002),
    Case("2.1 empty ping: 5.5.2", frame(PING), pong=b""),
    Case("2.2 ping with text: 5.5.2", frame(PING, b"tea"), pong=b"tea"),
    Case("2.3 ping with octets: 5.5.2", frame(PING, b"\x00\xff\xfe"), pong=b"\x00\xff\xfe"),
    Case("2.4 ping of 125: 5.5", frame(PING, b"p" * 125), pong=b"p" * 125),
    Case("2.5 ping of 126: 5.5", frame(PING, b"p" * 126), code=1002),
    Case("2.7 pong that nobody asked for: 5.5.3", frame(PONG, b"?") + frame(PING, b"!"), pong=b"!"),
    Case("2.10 ten pings, the last is answered: 5.5.3", b"".join(frame(PING, b"%d" % n) for n in range(10)), pong=b"9"),
    *(Case(f"3.1 reserved bits {rsv:03b} on a text: 5.2", frame(TEXT, b"a") + frame(TEXT, b"b", rsv=rsv), ("a",), 1002) for rsv in range(1, 8)),
    *(Case(f"3.5 reserved bits {rsv:03b} on a ping: 5.2", frame(PING, b"", rsv=rsv), code=1002) for rsv in (1, 2, 4)),
    Case("3.7 reserved bit on a close: 5.2", frame(CLOSE, b"", rsv=4), code=1002),
    *(Case(f"4 opcode {opcode}: 5.2", frame(TEXT, b"a") + frame(opcode, b"b") + frame(PING), ("a",), 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
    Case("5.1 ping in two frames: 5.5", frame(PING, b"a", fin=False) + frame(CONTINUATION, b"b"), code=1002),
    Case("5.2 pong in two frames: 5.5", frame(PONG, b"a", fin=False) + frame(CONTINUATION, b"b"), code=1002),
    Case("5.3 text in two frames: 5.4", frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"b"), ("ab",)),
    Case("5.6 ping between two frames: 5.4", frame(TEXT, b"a", fin=False) + frame(PING, b"p") + frame(CONTINUATION, b"b"), ("ab",), pong=b"p"),
    Case("5.9 continuation of nothing: 5.4", frame(CONTINUATION, b"a"), code=1002),
    Case("5.10 continuation of nothing, and not the last: 5.4", frame(CONTINUATION, b"a", fin=False), code=1002),
    Case("5.15 continuation behind a whole message: 5.4", frame(TEXT, b"a") + frame(CONTINUATION, b"b"), ("a",), 1002),
    Case("5.18 text within a text: 5.4", frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), code=1002),
    Case("5.18 binary within a text: 5.4", frame(TEXT, b"a", fin=False) + frame(BINARY, b"b"), code=1002),
    Case("5.19 five frames and pings: 5.4", frame(BINARY, b"1", fin=False) + frame(PING, b"a") + b"".join(frame(CONTINUATION, b"%d" % n, fin=False) for n in (2, 3, 4)) + frame(PING, b"b") + frame(CONTINUATION, b"5"), (b"12345",), pong=b"b"),
    Case("5.20 empty frames: 5.4", frame(TEXT, b"", fin=False) + frame(CONTINUATION, b"", fin=False) + frame(CONTINUATION, b""), ("",)),
    *(Case(f"6.1 text, {name}: 8.1", frame(TEXT, text), (text.decode(),)) for name, text in GOOD_TEXTS.items()),
    Case("6.2 text cut within a character: 8.1", b"".join(frame(TEXT if not at else CONTINUATION, GREETING[at : at + 1], fin=at == len(GREETING) - 1) for at in range(len(GREETING))), ("κόσμε",)),
    *(Case(f"6.3 text, {name}: 8.1", frame(TEXT, text), code=1007) for name, text in BAD_TEXTS.items()),
    *(Case(f"6.3 text in two frames, {name}: 8.1", frame(TEXT, b"a", fin=False) + frame(CONTINUATION, text), code=1007) for name, text in BAD_TEXTS.items()),
    Case("6.4 wrong before the last frame: 8.1", frame(TEXT, GREETING + b"\xed\xa0\x80", fin=False), code=1007),
    Case("6.5 binary need not be text: 5.6", frame(BINARY, b"\xed\xa0\x80"), (b"\xed\xa0\x80",)),
    Case("7.1 close, and something behind it: 5.5.1", close() + frame(TEXT, b"a") + frame(PING, b"p"), code=1000),
    Case("7.1 close within a message: 5.5.1", frame(TEXT, b"a", fin=False) + close(), code=1000),
    Case("7.1 close behind a message: 5.5.1", frame(TEXT, b"a") + close(), ("a",), 1000),
    Case("7.3 close without a code: 7.1.5", close(None), code=1005),
    Case("7.3 close of one octet: 5.5.1", frame(CLOSE, b"\x03"), code=1002),
    Case("7.3 close with a reason: 5.5.1", close(1000, b"tea is ready"), code=1000),
    Case("7.3 close with a reason of 123: 5.5", close(1000, b"r" * 123), code=1000),
    Case("7.3 close with a reason of 124: 5.5", close(1000, b"r" * 124), code=1002),
    Case("7.5 close with a reason that is no text: 8.1", close(1000, b"\xed\xa0\x80"), code=1007),
    *(Case(f"7.7 close with {code}: 7.4", close(code), code=code) for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 3999, 4000, 4999)),
    *(Case(f"7.9 close with {code}: 7.4", close(code), code=1002) for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)),
    Case("9.1 the longest message: 10.4", frame(BINARY, b"x" * MOST), (b"x" * MOST,)),
    Case("9.2 one more: 10.4", frame(BINARY, b"x" * (MOST + 1)), code=1009),
    Case("9.2 one more, in characters fewer: 10.4", frame(TEXT, "ä".encode() * (MOST // 2 + 1)), code=1009),
    Case("9.3 one more, in frames: 10.4", frame(BINARY, b"x" * MOST, fin=False) + frame(CONTINUATION, b"x"), code=1009),
    Case("9.4 nothing but the head of one that is too long: 10.4", frame(TEXT, b"", fin=False) + bytes([0x80, 0xFF]) + (1 << 40).to_bytes(8, "big"), code=1009),
    Case("10.1 many short frames: 5.4", frame(TEXT, b"x", fin=False) + frame(CONTINUATION, b"x", fin=False) * 1000 + frame(CONTINUATION), ("x" * 1001,)),
    Case("12.1 short, compressed: RFC 7692 7.2.1", frame(TEXT, deflated(b"tea"), rsv=4), ("tea",), compressed=True),
    Case("12.1 empty, compressed: RFC 7692 7.2.3.6", frame(TEXT, b"\0", rsv=4), ("",), compressed=True),
    Case("12.1 long, compressed: RFC 7692 7.2.1", frame(TEXT, deflated(b"tea " * 10000), rsv=4), ("tea " * 10000,), compressed=True),
    Case("12.1 not compressed although it might: RFC 7692 6", frame(TEXT, b"tea") + frame(BINARY, b"t" * 300), ("tea", b"t" * 300), compressed=True),
    Case("12.2 each for itself: RFC 7692 7.2.3.2", frame(TEXT, deflated(b"tea"), rsv=4) * 2, ("tea", "tea"), compressed=True),
    Case("12.3 two blocks, the last marked as such: RFC 7692 7.2.3.4", frame(BINARY, last_block(b"tea"), rsv=4), (b"tea",), compressed=True),
    Case("13.1 compressed, in frames: RFC 7692 6.1", frame(TEXT, deflated(b"tea")[:2], fin=False, rsv=4) + frame(CONTINUATION, deflated(b"tea")[2:]), ("tea",), compressed=True),
    Case("13.1 compressed, in frames with a ping between: RFC 7692 6.1", frame(TEXT, deflated(b"tea")[:2], fin=False, rsv=4) + frame(PING, b"p") + frame(CONTINUATION, deflated(b"tea")[2:]), ("tea",), pong=b"p", compressed=True),
    Case("13.2 bit on a continuation: RFC 7692 6.1", frame(TEXT, deflated(b"tea")[:2], fin=False, rsv=4) + frame(CONTINUATION, deflated(b"tea")[2:], rsv=4), code=1002, compressed=True),
    Case("13.2 bit on a ping: RFC 7692 6.1", frame(PING, b"", rsv=4), code=1002, compressed=True),
    Case("13.3 another bit: RFC 7692 6", frame(TEXT, b"tea", rsv=2), code=1002, compressed=True),
    Case("13.4 nothing that can be inflated: RFC 7692 7.2.2", frame(BINARY, b"\xff\xff\xff\xff", rsv=4), code=1007, compressed=True),
    Case("13.5 compressed, and no text: 8.1", frame(TEXT, deflated(b"\xff"), rsv=4), code=1007, compressed=True),
    Case("13.6 short, and long once inflated: RFC 7692 8", frame(BINARY, BOMB, rsv=4), code=1009, compressed=True),
    Case("13.6 the longest, inflated: RFC 7692 8", frame(BINARY, deflated(b"x" * MOST), rsv=4), (b"x" * MOST,), compressed=True),
    Case("13.6 one more, inflated: RFC 7692 8", frame(BINARY, deflated(b"x" * (MOST + 1)), rsv=4), code=1009, compressed=True),
]  # fmt: skip


@dataclass
class Heard:
    """What a client has heard: messages, the code of the end, the last pong."""

    messages: list[str | bytes]
    code: int | None = None
    pong: bytes | None = None


def hear(octets: bytes) -> Heard:
    """Read what a server has sent, which may not mask, nor use frames that nobody asked for."""
    heard, at = Heard([]), 0
    while at < len(octets):
        first, size = octets[at], octets[at + 1]
        assert first & 0x80, "a server of ours sends each message in one frame"
        assert size < 128, "RFC 6455 section 5.1: a server must not mask"
        at += 2
        if size > 125:
            wide = 2 if size == 126 else 8
            size, at = int.from_bytes(octets[at : at + wide], "big"), at + wide
        payload, at = octets[at : at + size], at + size
        assert len(payload) == size, "a frame is cut"
        assert heard.code is None, "RFC 6455 section 5.5.1: nothing comes behind a close"
        if first & 0x40:
            payload = zlib.decompress(payload + b"\0\0\xff\xff\x03\0", wbits=-15)
        opcode = first & 0x0F
        if opcode == TEXT:
            heard.messages.append(payload.decode())
        elif opcode == BINARY:
            heard.messages.append(payload)
        elif opcode == PONG:
            heard.pong = payload
        elif opcode == CLOSE:
            heard.code = int.from_bytes(payload[:2], "big") if payload else 1005
    return heard
