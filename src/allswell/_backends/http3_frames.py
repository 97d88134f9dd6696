"""The framing of HTTP/3 (RFC 9114 §6, §7): numbers, frames however they are cut, and its error codes."""

from __future__ import annotations

from allswell._backends.announcements import ORIGIN
from allswell._errors import shown
from allswell._quic import varint

# Frame types (RFC 9114 §7.2)
DATA, HEADERS, CANCEL_PUSH, SETTINGS, PUSH_PROMISE, GOAWAY, MAX_PUSH_ID = 0x0, 0x1, 0x3, 0x4, 0x5, 0x7, 0xD
#: Frame types of HTTP/2 that HTTP/3 has no use for (RFC 9114 §7.2.8).
_RESERVED = {0x2, 0x6, 0x8, 0x9}
#: PRIORITY_UPDATE for requests, and for pushes (RFC 9218 §7.2). Only a client may send it.
PRIORITY_UPDATE, _PRIORITY_UPDATE_PUSH = 0xF0700, 0xF0701
_FROM_CLIENTS = {MAX_PUSH_ID, PRIORITY_UPDATE, _PRIORITY_UPDATE_PUSH}
#: Frames that a server must not send on a request stream, and on its control stream.
NOT_ON_REQUEST = frozenset({CANCEL_PUSH, SETTINGS, GOAWAY} | _FROM_CLIENTS | _RESERVED)
NOT_ON_CONTROL = frozenset({DATA, HEADERS, PUSH_PROMISE} | _FROM_CLIENTS | _RESERVED)

# Types of unidirectional streams (RFC 9114 §6.2, RFC 9204 §4.2)
CONTROL_STREAM, PUSH_STREAM, ENCODER_STREAM, DECODER_STREAM = 0x0, 0x1, 0x2, 0x3

# Settings (RFC 9114 §7.2.4.1, RFC 9204 §5, RFC 9220 §3, RFC 9297 §2.1.1)
QPACK_MAX_TABLE_CAPACITY, MAX_FIELD_SECTION_SIZE, QPACK_BLOCKED_STREAMS = 0x1, 0x6, 0x7
ENABLE_CONNECT_PROTOCOL, H3_DATAGRAM = 0x8, 0x33
#: Settings of HTTP/2 that must not appear (RFC 9114 §7.2.4.1).
_RESERVED_SETTINGS = {0x0, 0x2, 0x3, 0x4, 0x5}

# Error codes (RFC 9114 §8.1, RFC 9204 §6, RFC 9297 §5.2)
H3_DATAGRAM_ERROR = 0x33
H3_NO_ERROR = 0x100
H3_STREAM_CREATION_ERROR = 0x103
H3_CLOSED_CRITICAL_STREAM = 0x104
H3_FRAME_UNEXPECTED = 0x105
H3_FRAME_ERROR = 0x106
H3_EXCESSIVE_LOAD = 0x107
H3_ID_ERROR = 0x108
H3_SETTINGS_ERROR = 0x109
H3_MISSING_SETTINGS = 0x10A
H3_REQUEST_REJECTED = 0x10B
H3_REQUEST_CANCELLED = 0x10C
H3_MESSAGE_ERROR = 0x10E
QPACK_DECOMPRESSION_FAILED = 0x200
QPACK_ENCODER_STREAM_ERROR = 0x201
QPACK_DECODER_STREAM_ERROR = 0x202
#: The names of all codes, also of those that only a peer says.
_NAMES = {
    H3_DATAGRAM_ERROR: "H3_DATAGRAM_ERROR",
    H3_NO_ERROR: "H3_NO_ERROR",
    0x101: "H3_GENERAL_PROTOCOL_ERROR",
    0x102: "H3_INTERNAL_ERROR",
    H3_STREAM_CREATION_ERROR: "H3_STREAM_CREATION_ERROR",
    H3_CLOSED_CRITICAL_STREAM: "H3_CLOSED_CRITICAL_STREAM",
    H3_FRAME_UNEXPECTED: "H3_FRAME_UNEXPECTED",
    H3_FRAME_ERROR: "H3_FRAME_ERROR",
    H3_EXCESSIVE_LOAD: "H3_EXCESSIVE_LOAD",
    H3_ID_ERROR: "H3_ID_ERROR",
    H3_SETTINGS_ERROR: "H3_SETTINGS_ERROR",
    H3_MISSING_SETTINGS: "H3_MISSING_SETTINGS",
    H3_REQUEST_REJECTED: "H3_REQUEST_REJECTED",
    H3_REQUEST_CANCELLED: "H3_REQUEST_CANCELLED",
    0x10D: "H3_REQUEST_INCOMPLETE",
    H3_MESSAGE_ERROR: "H3_MESSAGE_ERROR",
    0x10F: "H3_CONNECT_ERROR",
    0x110: "H3_VERSION_FALLBACK",
    QPACK_DECOMPRESSION_FAILED: "QPACK_DECOMPRESSION_FAILED",
    QPACK_ENCODER_STREAM_ERROR: "QPACK_ENCODER_STREAM_ERROR",
    QPACK_DECODER_STREAM_ERROR: "QPACK_DECODER_STREAM_ERROR",
}

#: Pieces of DATA below this size are put together: an event costs more than what is in it.
_SMALL = 1024
#: Frames of unknown types, or DATA without content, in a row on one stream.
_MAX_EMPTY = 10_000


class H3Error(Exception):
    """The peer broke HTTP/3 for the whole connection, which must be closed with this code (RFC 9114 §8)."""

    def __init__(self, code: int, reason: str) -> None:
        self.reason = shown(reason)  # a part of it may be the peer's words
        super().__init__(self.reason)
        self.code = code


class Malformed(Exception):
    """The peer broke one message: its stream is ended with this code (RFC 9114 §4.1.2)."""

    def __init__(self, reason: str, code: int = H3_MESSAGE_ERROR) -> None:
        super().__init__(shown(reason))
        self.code = code


def is_error(code: int) -> bool:
    """Whether a code means an error. An unknown code means the same as H3_NO_ERROR (RFC 9114 §8)."""
    return code in _NAMES and code != H3_NO_ERROR


def error_name(code: int) -> str:
    """The RFCs' name of an error code; in hex if it has none."""
    return _NAMES.get(code, f"0x{code:x}")


def frame(kind: int, payload: bytes) -> bytes:
    """A frame (RFC 9114 §7.1)."""
    return varint.encode(kind) + varint.encode(len(payload)) + payload


def one_varint(payload: bytes, what: str) -> int:
    """The payload of a frame that is one integer."""
    try:
        value, end = varint.decode(payload, 0)
    except IndexError:
        end = -1
    if end != len(payload):
        raise H3Error(H3_FRAME_ERROR, f"a malformed {what} frame")
    return value


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, b"".join(varint.encode(name) + varint.encode(value) for name, value in values.items()))


def parse_settings(payload: bytes) -> dict[int, int]:
    """The settings of a SETTINGS frame (RFC 9114 §7.2.4)."""
    values: dict[int, int] = {}
    position = 0
    while position < len(payload):
        try:
            name, position = varint.decode(payload, position)
            value, position = varint.decode(payload, position)
        except IndexError:
            raise H3Error(H3_FRAME_ERROR, "a malformed SETTINGS frame") from None
        if name in _RESERVED_SETTINGS:
            raise H3Error(H3_SETTINGS_ERROR, f"the setting 0x{name:x}, which only HTTP/2 has")
        if name in values:
            raise H3Error(H3_SETTINGS_ERROR, f"the setting 0x{name:x} twice")
        if name in (ENABLE_CONNECT_PROTOCOL, H3_DATAGRAM) and value > 1:
            raise H3Error(H3_SETTINGS_ERROR, f"the setting 0x{name:x} with the value {value}")
        values[name] = value
    return values


class FrameReader:
    """Reads the frames of a stream, however the stream was cut.

    DATA goes through in pieces as it comes. Frames of unknown types are dropped as they come (RFC 9114 §9). The others
    are kept until they are whole, and must not be larger than the limit.

    :param forbidden: types that are an error on this kind of stream, as soon as the frame's header has come.
    :param limit: bytes of the largest whole frame.
    :ivar rest: what :meth:`feed` has not looked into.
    """

    __slots__ = ("_buffer", "_data", "_empty", "_forbidden", "_left", "_limit", "rest")

    _WHOLE = frozenset({HEADERS, CANCEL_PUSH, SETTINGS, PUSH_PROMISE, GOAWAY, MAX_PUSH_ID})

    def __init__(self, forbidden: frozenset[int], limit: int) -> None:
        self._forbidden = forbidden
        self._limit = limit
        self._buffer = b""  # the beginning of a frame
        self._left = 0  # bytes that are still to come of a frame that goes through or is dropped
        self._data = False  # whether that frame goes through
        self._empty = 0  # unknown frames and empty DATA frames since the last content
        self.rest = b""

    @property
    def between_frames(self) -> bool:
        """Whether the stream may end here (RFC 9114 §7.1)."""
        return not self._buffer and not self._left

    def feed(self, data: bytes, most: int = 1 << 62) -> list[tuple[int, bytes]]:
        """The frames, and pieces of DATA frames, that these bytes complete. Small pieces in a row are one.

        :param most: frames to look into. What is left then is ``rest``, to be fed again.
        :raises H3Error: H3_FRAME_UNEXPECTED, H3_EXCESSIVE_LOAD.
        :raises Malformed: when a frame is too large.
        """
        frames: list[tuple[int, bytes]] = []
        self.rest = b""
        position = 0
        if left := self._left:
            if len(data) <= left:
                self._left = left - len(data)
                return [(DATA, data)] if self._data and data else frames
            if self._data:
                frames.append((DATA, data[:left]))
            position = left
            self._left = 0
        elif self._buffer:
            data = self._buffer + data
            self._buffer = b""
        size = len(data)
        while position < size:
            if most == 0:
                self.rest = data[position:]
                break
            most -= 1
            start = position
            try:
                what, total = data[position], data[position + 1]
                if what < 0x40 and total < 0x40:  # one byte each
                    position += 2
                elif what < 0x40 and total < 0x80:  # one and two
                    total = (total & 0x3F) << 8 | data[position + 2]
                    position += 3
                else:
                    what, position = varint.decode(data, position)
                    total, position = varint.decode(data, position)
            except IndexError:  # it is not all there
                self._buffer = data[start:]
                break
            if what in self._forbidden:
                raise H3Error(H3_FRAME_UNEXPECTED, f"a frame of type 0x{what:x} on the wrong stream")
            if what not in self._WHOLE or (total > self._limit and what == ORIGIN):  # (ORIGIN may be ignored)
                taken = min(total, size - position)
                if what == DATA and (taken or not total):
                    piece = data[position : position + taken]
                    if taken < _SMALL and frames and frames[-1][0] == DATA and len(frames[-1][1]) < _SMALL:
                        piece = frames.pop()[1] + piece
                    frames.append((DATA, piece))
                self._empty = 0 if what == DATA and total else self._empty + 1
                if self._empty > _MAX_EMPTY:  # RFC 9114 §10.5
                    raise H3Error(H3_EXCESSIVE_LOAD, f"{_MAX_EMPTY} frames without content in a row")
                position += taken
                self._left = total - taken
                self._data = what == DATA
            elif total > self._limit:
                raise Malformed(f"a frame of {total} bytes, {self._limit} allowed", H3_EXCESSIVE_LOAD)
            elif size - position < total:
                self._buffer = data[start:]
                break
            else:
                frames.append((what, data[position : position + total]))
                position += total
        return frames


class ControlReader(FrameReader):
    """The same for the peer's control stream, where ORIGIN means something too (RFC 9412 §2).

    :param limit: bytes of the largest whole frame.
    """

    __slots__ = ()

    _WHOLE = FrameReader._WHOLE | {ORIGIN}

    def __init__(self, limit: int) -> None:
        super().__init__(NOT_ON_CONTROL, limit)
