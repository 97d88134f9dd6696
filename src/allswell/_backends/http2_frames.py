"""HTTP/2's frame layer: it cuts input into frames, and writes the few frames that we write ourselves."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from h2.errors import ErrorCodes

from allswell._backends.http2_errors import PeerError

# Frame types (RFC 9113 §6).
DATA = 0x0
HEADERS = 0x1
PRIORITY = 0x2
RST_STREAM = 0x3
SETTINGS = 0x4
PUSH_PROMISE = 0x5
PING = 0x6
GOAWAY = 0x7
WINDOW_UPDATE = 0x8
CONTINUATION = 0x9
PRIORITY_UPDATE = 0x10  # RFC 9218 §7.1

# Flags.
ACK = 0x1
END_STREAM = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

#: The largest frame that a peer may send (RFC 9113 §6.5.2). It is twice the default: servers in Go write 32 KiB of a
#: body at once, which is then one frame, in three records of TLS instead of four.
MAX_FRAME_SIZE = 32768

# The settings that we use (RFC 9113 §6.5.2, RFC 8441 §3). Our encoder's table stays within the default size (RFC 7541
# §4.2 permits that), because hpack searches it from end to end.
_KNOWN_SETTINGS = frozenset((2, 3, 4, 5, 6, 8))
_HEADER_TABLE_SIZE = 1
_MAX_ENCODER_TABLE = 4096
#: Whether a peer does without the priorities of RFC 7540 (RFC 9218 §2.1). h2 does not know it.
NO_RFC7540_PRIORITIES = 9

_HEADER = struct.Struct(">HBBBL")
_HEADER_IN_FOUR = struct.Struct(">HBHL")  # type and flags as one
_SETTING = struct.Struct(">HL")
_FRAME_OF_A_WORD = struct.Struct(">HBBBLL")
_TWO_WORDS = struct.Struct(">LL")

_LARGEST = 9 + MAX_FRAME_SIZE

#: One whole frame: its type, its flags, its stream, and all its octets from the frame header on.
Frame = tuple[int, int, int, memoryview]


class FrameSplitter:
    """Cuts input into whole frames, however it is cut itself.

    A frame within one piece of input is returned as a view of it, without a copy. A frame in several pieces is put
    together in a buffer, which :data:`MAX_FRAME_SIZE` limits.

    :ivar position: where in the input the last returned frame ends.
    """

    def __init__(self) -> None:
        self._partial = bytearray()
        self.position = 0

    def split(self, data: memoryview) -> Iterator[Frame]:
        """The frames that ``data`` completes. Their views are valid until the caller's buffer is used again.

        A caller that stops gives the input behind :attr:`position` to the next call.

        :raises PeerError: FRAME_SIZE_ERROR, as soon as a frame announces too great a length (RFC 9113 §4.2).
        """
        pos, end = 0, len(data)
        partial = self._partial
        if partial:
            pos = self._fill(data, 0, 9)
            if len(partial) < 9:
                return
            high, low, kind, flags, stream = _HEADER.unpack_from(partial)
            size = 9 + _checked(high << 8 | low)
            pos = self._fill(data, pos, size)
            if len(partial) < size:
                return
            frame, self._partial = partial, bytearray()
            self.position = pos
            yield kind, flags, stream & 0x7FFFFFFF, memoryview(frame)
            pos = self.position
        unpack = _HEADER.unpack_from
        while end - pos >= 9:
            high, low, kind, flags, stream = unpack(data, pos)
            until = pos + 9 + (high << 8 | low)
            if until - pos > _LARGEST:
                _checked(until - pos - 9)
            if until > end:
                break
            self.position = until
            yield kind, flags, stream & 0x7FFFFFFF, data[pos:until]
            pos = self.position
        self._partial += data[pos:]

    def run(
        self, frame: memoryview, data: memoryview, stream: int, *, room: float, most: int
    ) -> tuple[list[memoryview], int]:
        """Take the last frame, and those behind it, as long as they are DATA of this stream without flags.

        :param frame: the last one, which is known to be such a frame.
        :param room: how many bytes of content may be taken.
        :param most: how many frames behind it may be taken.
        :return: the contents, and their size. If the last frame is empty, or too long for the room, nothing is taken.
        """
        size = len(frame) - 9
        if not 0 < size <= room:
            return [], 0
        contents = [frame[9:]]
        unpack = _HEADER_IN_FOUR.unpack_from
        pos, end = self.position, len(data) - 9
        while pos <= end and len(contents) <= most:
            high, low, kind, of = unpack(data, pos)
            length = high << 8 | low
            size += length
            if kind or of != stream or not length or length > MAX_FRAME_SIZE or size > room or pos + length > end:
                size -= length
                break
            pos += 9
            contents.append(data[pos : pos + length])
            pos += length
        self.position = pos
        return contents, size

    def _fill(self, data: memoryview, pos: int, size: int) -> int:
        taken = max(0, size - len(self._partial))
        self._partial += data[pos : pos + taken]
        return min(pos + taken, len(data))


def _checked(length: int) -> int:
    if length > MAX_FRAME_SIZE:
        raise PeerError(
            ErrorCodes.FRAME_SIZE_ERROR, f"the peer sent a frame of {length} bytes, {MAX_FRAME_SIZE} allowed"
        )
    return length


def payload(frame: memoryview, flags: int) -> memoryview:
    """The content of a DATA or HEADERS frame without its padding.

    :raises PeerError: when the padding leaves no room for itself (RFC 9113 §6.1).
    """
    if not flags & PADDED:
        return frame[9:]
    if len(frame) < 10:
        raise PeerError(ErrorCodes.FRAME_SIZE_ERROR, "the peer sent a padded frame without its pad length")
    padding = frame[9]
    if padding >= len(frame) - 9:
        raise PeerError(ErrorCodes.PROTOCOL_ERROR, "the peer sent more padding than its frame holds")
    return frame[10 : len(frame) - padding]


class KnownSettings(NamedTuple):
    """The contents of SETTINGS.

    :ivar table_sizes: the sizes of HPACK's table, in order. (h2 would see only the last one, but each must be obeyed:
        RFC 9113 §6.5.3, RFC 7541 §4.2.)
    :ivar no_priorities: the value of :data:`NO_RFC7540_PRIORITIES`, if it is there.
    :ivar frame: the frame without these, and without unknown settings, which h2 would keep for ever.
    """

    table_sizes: list[int]
    no_priorities: bool | None
    frame: bytes


def known_settings(frame: memoryview) -> KnownSettings:
    """SETTINGS, taken apart.

    :raises PeerError: when the frame's length is wrong (RFC 9113 §6.5), or a value that h2 does not look at.
    """
    body = frame[9:]
    if len(body) % 6 or (body and frame[4] & ACK):
        raise PeerError(ErrorCodes.FRAME_SIZE_ERROR, f"the peer sent SETTINGS of {len(body)} bytes")
    sizes, no_priorities = [], None
    kept = bytearray()
    for name, value in _SETTING.iter_unpack(body):
        if name == _HEADER_TABLE_SIZE:
            sizes.append(min(value, _MAX_ENCODER_TABLE))
        elif name == NO_RFC7540_PRIORITIES:
            if value > 1:
                raise PeerError(ErrorCodes.PROTOCOL_ERROR, f"the peer sent NO_RFC7540_PRIORITIES = {value}")
            no_priorities = value == 1
        elif name in _KNOWN_SETTINGS:
            kept += _SETTING.pack(name, value)
    head = frame_header(len(kept), SETTINGS, frame[4], int.from_bytes(frame[5:9], "big"))
    return KnownSettings(sizes, no_priorities, head + kept)


def increment(frame: memoryview) -> int:
    """By how much a WINDOW_UPDATE opens a window (RFC 9113 §6.9); 0 if the frame is malformed."""
    return int.from_bytes(frame[9:], "big") & 0x7FFFFFFF if len(frame) == 13 else 0


def without_reserved_bit(frame: memoryview) -> bytes | memoryview:
    """A WINDOW_UPDATE without the reserved bit (RFC 9113 §6.9), which h2 takes for a part of the increment."""
    if len(frame) != 13 or not frame[9] & 0x80:
        return frame
    return b"".join((frame[:9], bytes((frame[9] & 0x7F,)), frame[10:]))


def goaway(frame: memoryview, stream: int) -> tuple[int, int, bytes]:
    """The contents of a GOAWAY: last stream id, error code, debug data (RFC 9113 §6.8).

    :raises PeerError: if it is not on stream 0, or too short.
    """
    if stream:
        raise PeerError(ErrorCodes.PROTOCOL_ERROR, "the peer sent GOAWAY on a stream")
    if len(frame) < 17:
        raise PeerError(ErrorCodes.FRAME_SIZE_ERROR, "the peer sent a GOAWAY that is too short")
    last, code = _TWO_WORDS.unpack_from(frame, 9)
    return last & 0x7FFFFFFF, code, bytes(frame[17:])


def frame_header(length: int, kind: int, flags: int, stream: int) -> bytes:
    return _HEADER.pack(length >> 8, length & 0xFF, kind, flags, stream)


def window_update(stream: int, increment: int) -> bytes:
    return _FRAME_OF_A_WORD.pack(0, 4, WINDOW_UPDATE, 0, stream, increment)


def rst_stream(stream: int, code: int) -> bytes:
    return _FRAME_OF_A_WORD.pack(0, 4, RST_STREAM, 0, stream, code)


def priority_update(stream: int, value: bytes) -> bytes:
    """A PRIORITY_UPDATE frame for the response on this stream (RFC 9218 §7.1)."""
    return frame_header(4 + len(value), PRIORITY_UPDATE, 0, 0) + stream.to_bytes(4, "big") + value


def section_frames(stream: int, block: bytes, size: int, end: bool) -> list[bytes]:
    """A HEADERS frame for a block, and as many CONTINUATION frames as it needs (RFC 9113 §4.3, §6.10)."""
    flags = END_STREAM if end else 0
    length = len(block)
    if length <= size:
        return [_HEADER.pack(length >> 8, length & 0xFF, HEADERS, flags | END_HEADERS, stream), block]
    pieces = [frame_header(size, HEADERS, flags, stream), block[:size]]
    for start in range(size, len(block), size):
        chunk = block[start : start + size]
        last = start + size >= len(block)
        pieces += (frame_header(len(chunk), CONTINUATION, END_HEADERS if last else 0, stream), chunk)
    return pieces


def data_frames(stream: int, data: bytes | memoryview, size: int, *, end: bool) -> list[bytes | memoryview]:
    """DATA frames for all of ``data``, at most ``size`` bytes each; the last one with END_STREAM if ``end``."""
    if len(data) <= size:
        return [frame_header(len(data), DATA, END_STREAM if end else 0, stream), data]
    pieces: list[bytes | memoryview] = []
    view = memoryview(data)  # a slice of a view is no copy
    for start in range(0, len(data), size):
        chunk = view[start : start + size]
        last = end and start + size >= len(data)
        pieces += (frame_header(len(chunk), DATA, END_STREAM if last else 0, stream), chunk)
    return pieces
