"""What do the two ends of a WebSocket say to each other, and what is wrong with it?

RFC 6455, with the compression of RFC 7692. Octets go in and come out; there is no socket, no clock, no task. wsproto reads
and writes the frames. What is judged here is what it leaves open: the handshake, the size of a message, also of one that was
compressed, what is answered to which mistake, and when the end has come.
"""

from __future__ import annotations

import math
import re
import zlib
from base64 import b64encode
from dataclasses import dataclass
from enum import Enum
from hashlib import sha1
from typing import TYPE_CHECKING

from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, FrameProtocol, Opcode, ParseFailed, RsvBits

from prefork.http1.connection import Phase
from prefork.http1.grammar import FIELD_NAME
from prefork.http1.messages import Misanswered, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from wsproto.frame_protocol import FrameDecoder

    from prefork.http1.messages import Request

NO_CODE = 1005
"""The code of an end that was said without one (RFC 6455 section 7.1.5)."""
LOST = 1006
"""The code of an end that nobody said."""
GOING_AWAY, FAILED, RESTART = 1001, 1011, 1012
SMALL = 128
"""How long a message may be, in bytes, that is sent as it is: to compress it would cost more than it saves."""
_BITE, _LARGEST_BITE = 4096, 65536
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")
_WINDOW = re.compile(r"8|9|1[0-5]")
_LARGEST_WINDOW = 15
_SMALLEST_WINDOW = 9  # zlib makes 9 of 8, which a client that has asked for 8 could not read
_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(rf';[ \t]*({_NAME})(?:[ \t]*=[ \t]*(?:"({_NAME})"|({_NAME})))?[ \t]*')
_OFFER = re.compile(rf"[ \t]*({_NAME})[ \t]*((?:{_PARAMETER.pattern})*)(?:,|$)")
_OURS = frozenset(
    {"sec-websocket-accept", "sec-websocket-protocol", "sec-websocket-extensions", "sec-websocket-version"}
)
_MAY_BE_SAID = frozenset({*range(1000, 1004), NO_CODE, *range(1007, 1015)})
_OF_APPLICATIONS = range(3000, 5000)
_OPEN, _OVER = Phase.ANSWER, Phase.CLOSED
_COMPRESSED, _PLAIN = RsvBits(True, False, False), RsvBits(False, False, False)
_OPCODE, _LONGEST_HEAD = 0x0F, 14
_WHOLE, _DEFLATED = 0x80, 0x40  # RFC 6455 section 5.2: FIN, and RSV1
_TEXT, _BINARY = _WHOLE | Opcode.TEXT, _WHOLE | Opcode.BINARY
_MESSAGES = frozenset({_TEXT, _BINARY})
_LEAST = {0: 0, 2: 126, 8: 65536}  # what has to be written in so many octets
_TAIL = b"\x00\x00\xff\xff"


# The handshake.


@dataclass(frozen=True, slots=True)
class Handshake:
    """What a client asks for: the ``subprotocols`` that it speaks, and in ``window`` whether, and how, it inflates.

    ``window`` is the base-2 logarithm of the window that it wants us to compress with; 0: it knows no compression.
    """

    key: bytes
    subprotocols: tuple[str, ...]
    window: int


def read_handshake(request: Request) -> Handshake:
    """Judge a request to go on as a WebSocket (RFC 6455 section 4.2.1); raises ``Refused``."""
    said: dict[bytes, list[bytes]] = {}
    for name, value in request.head.fields:
        said.setdefault(name.lower(), []).append(value)
    if request.line.method != "GET":
        raise Refused(400, "a WebSocket begins with a GET", "RFC 6455 section 4.2.1")
    if request.head.length:
        raise Refused(400, "a WebSocket begins with a request that has no body", "RFC 6455 section 4.2.1")
    if said.get(b"sec-websocket-version") != [b"13"]:
        fields = (("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket"), ("Connection", "Upgrade"))
        raise Refused(426, "WebSockets of version 13 only", "RFC 6455 section 4.2.2", fields)
    keys = said.get(b"sec-websocket-key", [])
    if len(keys) != 1 or _KEY.fullmatch(keys[0]) is None:
        raise Refused(400, "Sec-WebSocket-Key is not one text of 16 octets in base64", "RFC 6455 section 4.2.1")
    subprotocols = _tokens(said.get(b"sec-websocket-protocol", ()))
    window = _compression(b",".join(said.get(b"sec-websocket-extensions", ())).decode("latin-1"))
    return Handshake(keys[0], subprotocols, window)


def _tokens(values: Iterable[bytes]) -> tuple[str, ...]:
    """Return the names of subprotocols, the preferred one first; raises ``Refused``."""
    names = tuple(name.strip(" \t") for value in values for name in value.decode("latin-1").split(","))
    if not all(map(FIELD_NAME.fullmatch, names)) or len(set(names)) < len(names):
        raise Refused(400, "Sec-WebSocket-Protocol is no list of different names", "RFC 6455 section 4.1")
    return names


def _compression(offers: str) -> int:
    """Return the window of the first offer of compression that can be taken, 0 if there is none; raises ``Refused``."""
    at, window = 0, 0
    while at < len(offers):
        offer = _OFFER.match(offers, at)
        if offer is None:
            raise Refused(400, "Sec-WebSocket-Extensions is no list of extensions", "RFC 6455 section 9.1")
        at = offer.end()
        if not window and offer[1] == "permessage-deflate":
            window = _window(_PARAMETER.findall(offer[2]))
    return window


def _window(parameters: Sequence[tuple[str, str, str]]) -> int:
    """Return the window that an offer wants, 0 if it has to be declined (RFC 7692 section 7.1)."""
    window = _LARGEST_WINDOW
    names = [name for name, _, _ in parameters]
    if len(set(names)) < len(names):
        return 0
    for name, quoted, plain in parameters:
        value = quoted or plain
        if name in {"client_no_context_takeover", "server_no_context_takeover"}:
            if value:
                return 0
        elif name == "server_max_window_bits" and _WINDOW.fullmatch(value):
            window = int(value)
        elif name != "client_max_window_bits" or not (value == "" or _WINDOW.fullmatch(value)):
            return 0
    return window if window >= _SMALLEST_WINDOW else 0


def acceptance(
    handshake: Handshake, subprotocol: str | None, fields: Iterable[tuple[str, str]], *, compressed: bool
) -> list[tuple[str, str]]:
    """Return the fields of the answer to a handshake (RFC 6455 section 4.2.2): ours, and the application's.

    Raises ``Misanswered`` for a subprotocol that the client does not speak, and for fields that are ours to send.
    """
    said = [("Sec-WebSocket-Accept", b64encode(sha1(handshake.key + _GUID, usedforsecurity=False).digest()).decode())]
    if subprotocol is not None:
        if subprotocol not in handshake.subprotocols:
            raise Misanswered(f"the client does not speak {subprotocol!r}, but {list(handshake.subprotocols)!r}")
        said.append(("Sec-WebSocket-Protocol", subprotocol))
    if compressed:
        window = "" if handshake.window == _LARGEST_WINDOW else f"; server_max_window_bits={handshake.window}"
        # Nothing is kept between two messages: what zlib keeps is 300 KB for each connection.
        kept = "server_no_context_takeover; client_no_context_takeover"
        said.append(("Sec-WebSocket-Extensions", f"permessage-deflate; {kept}{window}"))
    for name, value in fields:
        if name.lower() in _OURS:
            raise Misanswered(f"this field of the handshake is the server's: {name!r}")
        said.append((name, value))
    return said


# What comes after it.


class _Deflated(Extension):
    """Messages that may be compressed, each for itself (RFC 7692 section 7), and of at most ``most`` bytes.

    Not wsproto's own: that one inflates whatever comes, to whatever size, and loses its way at a ping between two frames.
    """

    __slots__ = ("_inflater", "_left", "_most", "_within_control")

    name = "permessage-deflate"

    def __init__(self, most: int) -> None:
        self._most = most
        self._left = 0
        self._inflater: zlib._Decompress | None = None
        self._within_control = False

    def enabled(self) -> bool:
        """Whether it was agreed upon."""
        return True

    def offer(self) -> bool:
        """Say nothing: that is for clients."""
        return False

    def frame_inbound_header(
        self,
        proto: FrameDecoder | FrameProtocol,  # noqa: ARG002 - as wsproto calls it
        opcode: Opcode,
        rsv: RsvBits,
        payload_length: int,  # noqa: ARG002 - likewise
    ) -> RsvBits:
        """Return which of the reserved bits may be set."""
        self._within_control = opcode.iscontrol()
        if self._within_control or opcode is Opcode.CONTINUATION:
            return _PLAIN
        self._inflater = zlib.decompressobj(-_LARGEST_WINDOW) if rsv.rsv1 else None
        self._left = self._most
        return _COMPRESSED

    def frame_inbound_payload_data(
        self,
        proto: FrameDecoder | FrameProtocol,  # noqa: ARG002 - as wsproto calls it
        data: bytes,
    ) -> bytes | CloseReason:
        """Inflate a piece."""
        if self._inflater is None or self._within_control:
            return data
        try:
            inflated = self._inflater.decompress(data, self._left + 1)
        except zlib.error:
            return CloseReason.INVALID_FRAME_PAYLOAD_DATA
        self._left -= len(inflated)
        return inflated if self._left >= 0 else CloseReason.MESSAGE_TOO_BIG

    def frame_inbound_complete(self, proto: FrameDecoder | FrameProtocol, fin: bool) -> bytes | CloseReason | None:
        """Inflate what is left at the end of a message."""
        if self._inflater is None or self._within_control or not fin:
            return None
        last = self.frame_inbound_payload_data(proto, _TAIL)
        self._inflater = None
        return last


class Session:
    """One WebSocket behind its handshake, until both ends have said that it is over.

    It stands where the HTTP connection stood, so it has what the driver asks of one: ``phase`` is ``ANSWER`` until it is
    over. ``most`` is the size of a message in bytes, ``window`` the one of ``Handshake``, 0 to speak without compression.
    """

    __slots__ = (
        "_begun",
        "_held",
        "_most",
        "_owed",
        "_proto",
        "_window",
        "_within",
        "answer_close",
        "heard",
        "phase",
        "pong",
        "said",
        "unsent",
    )

    # What HTTP would say of it.
    idle = buffered = head_only = False
    awaits_body = endless = True
    request_id = ""

    def __init__(self, most: int, window: int) -> None:
        self._proto = FrameProtocol(client=False, extensions=[_Deflated(most)] if window else [])
        self._most = most
        self._window = window
        self._held = b""  # the beginning of a frame, too short to tell how long that is
        self._owed = 0  # bytes of a frame that wsproto has the beginning of
        self._within = False  # whether there is a message of which wsproto has the beginning
        self._begun = bytearray()  # the octets of that message
        self.phase = _OPEN
        self.answer_close = True
        self.said: tuple[int, str] | None = None
        """Code and reason of the end that was said here first."""
        self.heard: tuple[int, str] | None = None
        """Code and reason with which the client has said that this is the end."""
        self.pong: bytes | None = None
        """What the client's last ping said, until ``take_pong``."""
        self.unsent = b""
        """What is to go on the wire because of what came in; whoever sends it clears it."""

    @property
    def leftover(self) -> bool:
        """Whether the client must be let to read why it was cut off."""
        return self.said is not None and self.heard is None

    @property
    def end(self) -> tuple[int, str]:
        """Code and reason of the end: as the client said, or as was said here, or that nobody said it."""
        return self.said or self.heard or (LOST, "")

    @property
    def bite(self) -> int:
        """How many bytes to take in at a time: many if they are of one frame, few if each may be one of many."""
        return min(max(self._owed, _BITE), _LARGEST_BITE)

    def receive(self, data: bytes) -> list[str] | list[bytes]:
        """Take what the client sent; return the messages that are complete. What it means for the end, see ``phase``."""
        messages: list[str] | list[bytes] = []
        if self._held:
            data, self._held = self._held + data, b""
        at = 0
        try:
            while at < len(data) and self.phase is _OPEN:
                if not self._owed:
                    bounds = _next_frame(data, at)
                    if bounds is None:
                        self._held = data[at:]
                        break
                    body, end = bounds
                    if body and end <= len(data) and not self._within:
                        self._take(_plain_message(data, at, body, end), messages, last=True)
                        at = end
                        continue
                    if end - at > self._most + _LONGEST_HEAD and data[at] & _OPCODE <= Opcode.BINARY:
                        raise self._too_big()
                    self._owed = end - at
                piece = data[at : at + self._owed]
                self._owed -= len(piece)
                self._read(piece, messages)
                at += len(piece)
        except ParseFailed as error:
            self._fail(int(error.code), str(error))
        return messages

    def _read(self, piece: bytes, messages: list[str] | list[bytes]) -> None:
        """Have wsproto read a frame, or a piece of one; raises ``ParseFailed``."""
        self._proto.receive_bytes(piece)
        for frame in self._proto.received_frames():
            opcode = frame.opcode
            if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
                self._within = not frame.message_finished
                self._take(frame.payload, messages, last=frame.message_finished)  # type: ignore[arg-type]  # by its opcode
            elif opcode is Opcode.PING:
                self.pong = bytes(frame.payload)  # type: ignore[arg-type]  # likewise
            elif opcode is Opcode.CLOSE:
                self._hear_end(*frame.payload)

    def _take(self, payload: str | bytes, messages: list[str] | list[bytes], *, last: bool) -> None:
        if self.said is not None:
            return
        text, begun = isinstance(payload, str), self._begun
        if last and not begun and len(payload) * (4 if text else 1) <= self._most:
            messages.append(payload)  # type: ignore[arg-type]  # both kinds may come together
            return
        # Not a list of pieces: of a message that comes octet by octet that would be thirty times as much.
        begun += payload.encode() if isinstance(payload, str) else payload
        if len(begun) > self._most:
            raise self._too_big()
        if last:
            messages.append(begun.decode() if text else bytes(begun))  # type: ignore[arg-type]  # likewise
            self._begun = bytearray()

    def _too_big(self) -> ParseFailed:
        return ParseFailed(f"a message longer than {self._most} bytes", CloseReason.MESSAGE_TOO_BIG)

    def _hear_end(self, code: int, reason: str) -> None:
        self.heard = int(code), reason
        if self.said is None:
            # RFC 6455 section 5.5.1: the code is sent back.
            self.unsent += bytes(self._proto.close(None if code == NO_CODE else code))
        self.phase = _OVER

    def _fail(self, code: int, reason: str) -> None:
        """Fail the connection (RFC 6455 section 7.1.7)."""
        if self.said is None:
            self.unsent += self.finish(code, reason)
        self.phase = _OVER

    def send(self, message: str | bytes) -> bytes:
        """Return a message as it goes on the wire."""
        if isinstance(message, str):
            first, payload = _TEXT, message.encode()
        else:
            first, payload = _BINARY, message
        if self._window and len(payload) > SMALL:
            deflater = zlib.compressobj(wbits=-self._window)
            payload = (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[: -len(_TAIL)]
            first |= _DEFLATED
        return _frame(first, payload)

    def ping(self) -> bytes:
        """Return what asks the client for a sign of life."""
        return bytes(self._proto.ping())

    def take_pong(self) -> bytes:
        """Return the answer to the client's last ping: the others need none (RFC 6455 section 5.5.3)."""
        payload, self.pong = self.pong or b"", None
        return bytes(self._proto.pong(payload))

    def finish(self, code: int, reason: str = "") -> bytes:
        """Return what says that this is the end. It is over when the client has said so too.

        Raises ``Misanswered`` for a code that must not be said (RFC 6455 section 7.4).
        """
        if code not in _MAY_BE_SAID and code not in _OF_APPLICATIONS:
            raise Misanswered(f"{code} is no code that may be sent")
        self.said = code, reason
        self._begun = bytearray()
        return bytes(self._proto.close(None, None) if code == NO_CODE else self._proto.close(code, reason))

    def close(self) -> None:
        """End it for good."""
        self.phase = _OVER
        self._begun = bytearray()


class Finding(Enum):
    """What comes of a look whether a client is there."""

    PRESENT = "it is, or has still time to say so"
    SILENT = "it is to be asked by a ping"
    GONE = "it was asked, and has not answered"


class Presence:
    """Is the client of a WebSocket still there, although it says nothing?

    Who has said nothing for ``interval`` seconds is asked, and has ``patience`` seconds to say anything at all; infinity
    asks nobody, or gives nobody up. ``due`` is when to look again, ``heard_at`` when the client has last said something.
    """

    __slots__ = ("_asked_at", "_interval", "_patience", "due", "heard_at")

    def __init__(self, interval: float, patience: float, now: float) -> None:
        self._interval = interval
        self._patience = patience
        self._asked_at = -math.inf
        self.heard_at = now
        self.due = now + interval

    def look(self, now: float, *, unread: bool) -> Finding:
        """See whether it is there; ``unread`` says that what it has sent may not have been read, its answer among it."""
        if unread:
            self.due = now + self._interval
            return Finding.PRESENT
        if self._asked_at >= self.heard_at:
            self.due = self._asked_at + self._patience
            return Finding.GONE if now >= self.due else Finding.PRESENT
        self.due = self.heard_at + self._interval
        if now < self.due:
            return Finding.PRESENT
        self._asked_at, self.due = now, now + self._patience
        return Finding.SILENT


def _next_frame(data: bytes, at: int) -> tuple[int, int] | None:
    """Return where the payload of the frame at ``at`` begins and ends, ``None`` if too little is there to tell.

    The beginning is 0 for all frames but those that clients mostly send: a whole message, uncompressed. They need no
    judge, and wsproto takes ten times as long for one.
    """
    head = data[at : at + 10]
    if len(head) < 2:  # noqa: PLR2004 - RFC 6455 section 5.2
        return None
    size, wide = head[1] & 0x7F, 0
    if size > 125:  # noqa: PLR2004 - likewise
        wide = 2 if size == 126 else 8  # noqa: PLR2004 - likewise
        if len(head) < 2 + wide:
            return None
        size = int.from_bytes(head[2 : 2 + wide], "big")
    masked = head[1] & 0x80
    body = at + 2 + wide + (4 if masked else 0)
    plain = masked and head[0] in _MESSAGES and size >= _LEAST[wide]
    return (body if plain else 0), body + size


def _plain_message(data: bytes, at: int, body: int, end: int) -> str | bytes:
    """Return the message that is one frame; raises ``ParseFailed``."""
    size = end - body
    mask = (data[body - 4 : body] * (size // 4 + 1))[:size]
    payload = (int.from_bytes(data[body:end], "little") ^ int.from_bytes(mask, "little")).to_bytes(size, "little")
    if data[at] == _BINARY:
        return payload
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        raise ParseFailed(str(error), CloseReason.INVALID_FRAME_PAYLOAD_DATA) from None


def _frame(first: int, payload: bytes) -> bytes:
    """Return one frame of the server's (RFC 6455 section 5.2)."""
    size = len(payload)
    if size < 126:  # noqa: PLR2004 - as the section has it
        return bytes((first, size)) + payload
    if size < 65536:  # noqa: PLR2004 - likewise
        return bytes((first, 126)) + size.to_bytes(2, "big") + payload
    return bytes((first, 127)) + size.to_bytes(8, "big") + payload
