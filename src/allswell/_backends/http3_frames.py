"""The framing of HTTP/3 (RFC 9114 §6, §7): numbers, frames however they are cut, header lists, and its error codes."""

from __future__ import annotations

import re
from collections.abc import Iterable

from allswell._backends.announcements import ORIGIN
from allswell._errors import shown
from allswell._messages import Headers, RequestHead

# Frame types (RFC 9114 §7.2)
DATA, HEADERS, CANCEL_PUSH, SETTINGS, PUSH_PROMISE, GOAWAY, MAX_PUSH_ID = 0x0, 0x1, 0x3, 0x4, 0x5, 0x7, 0xD
#: Frame types of HTTP/2 that HTTP/3 has no use for (RFC 9114 §7.2.8).
_RESERVED = {0x2, 0x6, 0x8, 0x9}
#: What must not be on a request stream, and on a control stream, that comes from a server.
NOT_ON_REQUEST = frozenset({CANCEL_PUSH, SETTINGS, GOAWAY, MAX_PUSH_ID} | _RESERVED)
NOT_ON_CONTROL = frozenset({DATA, HEADERS, PUSH_PROMISE, MAX_PUSH_ID} | _RESERVED)

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
_ERRORS = frozenset({H3_DATAGRAM_ERROR, *range(0x101, 0x111), *range(0x200, 0x203)})

#: RFC 9114 §4.2: fields that belong to one connection make a message malformed.
CONNECTION_SPECIFIC = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"te"}
)
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_LOWER_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
#: RFC 9110 §5.5: neither CR, LF, NUL, nor blanks at the ends.
_BAD_VALUE = re.compile(rb"[\0\r\n]|\A[ \t]|[ \t]\Z")
_VISIBLE = re.compile(rb"[^\0-\x20\x7f]+")
_STATUS = re.compile(rb"[1-9][0-9][0-9]")


#: Frames of unknown types, or DATA without content, in a row on one stream.
_MAX_EMPTY = 10_000


class H3Error(Exception):
    """The peer broke HTTP/3 for the whole connection, which must be closed with this code (RFC 9114 §8)."""

    def __init__(self, code: int, reason: str) -> None:
        self.reason = shown(reason)  # some of it is the peer's
        super().__init__(self.reason)
        self.code = code


class Malformed(Exception):
    """The peer broke one message: its stream is ended with this code (RFC 9114 §4.1.2)."""

    def __init__(self, reason: str, code: int = H3_MESSAGE_ERROR) -> None:
        super().__init__(shown(reason))
        self.code = code


def is_error(code: int) -> bool:
    """Whether a code means one. Those that nobody knows are as good as H3_NO_ERROR (RFC 9114 §8)."""
    return code in _ERRORS


def varint(value: int) -> bytes:
    """A variable-length integer (RFC 9000 §16)."""
    if value < 0x40:
        return value.to_bytes(1, "big")
    if value < 0x4000:
        return (value | 0x4000).to_bytes(2, "big")
    if value < 0x40000000:
        return (value | 0x80000000).to_bytes(4, "big")
    return (value | 0xC000000000000000).to_bytes(8, "big")


def pull_varint(data: bytes, position: int) -> tuple[int, int] | None:
    """The integer at a position and where it ends; ``None`` when it is not all there."""
    if position >= len(data):
        return None
    first = data[position]
    if first < 0x40:
        return first, position + 1
    end = position + (1 << (first >> 6))
    if end > len(data):
        return None
    size = (end - position) * 8
    return int.from_bytes(data[position:end], "big") & ((1 << (size - 2)) - 1), end


def frame(kind: int, payload: bytes) -> bytes:
    """A frame (RFC 9114 §7.1)."""
    return varint(kind) + varint(len(payload)) + payload


def one_varint(payload: bytes, what: str) -> int:
    """The payload of a frame that is one integer."""
    pulled = pull_varint(payload, 0)
    if pulled is None or pulled[1] != len(payload):
        raise H3Error(H3_FRAME_ERROR, f"a malformed {what} frame")
    return pulled[0]


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, b"".join(varint(name) + varint(value) for name, value in values.items()))


def parse_settings(payload: bytes) -> dict[int, int]:
    """The settings of a SETTINGS frame (RFC 9114 §7.2.4)."""
    values: dict[int, int] = {}
    position = 0
    while position < len(payload):
        name = pull_varint(payload, position)
        value = pull_varint(payload, name[1]) if name is not None else None
        if name is None or value is None:
            raise H3Error(H3_FRAME_ERROR, "a malformed SETTINGS frame")
        if name[0] in _RESERVED_SETTINGS:
            raise H3Error(H3_SETTINGS_ERROR, f"the setting 0x{name[0]:x} is HTTP/2's")
        if name[0] in values:
            raise H3Error(H3_SETTINGS_ERROR, f"the setting 0x{name[0]:x} comes twice")
        if name[0] in (ENABLE_CONNECT_PROTOCOL, H3_DATAGRAM) and value[0] > 1:
            raise H3Error(H3_SETTINGS_ERROR, f"the setting 0x{name[0]:x} is {value[0]}")
        values[name[0]] = value[0]
        position = value[1]
    return values


class FrameReader:
    """Takes a stream apart into frames, however it was cut.

    DATA goes through in pieces as it comes. Frames of unknown types are dropped as they come (RFC 9114 §9). The others
    are kept until they are whole, and must not be larger than the limit.

    :param forbidden: types that are an error on this kind of stream, seen as soon as their header is.
    :param limit: bytes of the largest whole frame.
    """

    __slots__ = ("_buffer", "_data", "_empty", "_forbidden", "_left", "_limit")

    _WHOLE = frozenset({HEADERS, CANCEL_PUSH, SETTINGS, PUSH_PROMISE, GOAWAY, MAX_PUSH_ID})

    def __init__(self, forbidden: frozenset[int], limit: int) -> None:
        self._forbidden = forbidden
        self._limit = limit
        self._buffer = b""  # the beginning of a frame
        self._left = 0  # bytes that are still to come of a frame that goes through or is dropped
        self._data = False  # which of the two
        self._empty = 0  # frames that said nothing, since the last that did

    @property
    def between_frames(self) -> bool:
        """Whether the stream may end here (RFC 9114 §7.1)."""
        return not self._buffer and not self._left

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The frames, and pieces of DATA frames, that these bytes complete.

        :raises H3Error: H3_FRAME_UNEXPECTED, H3_EXCESSIVE_LOAD.
        :raises Malformed: when a frame is too large.
        """
        frames: list[tuple[int, bytes]] = []
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
            start = position
            kind = pull_varint(data, position)
            length = pull_varint(data, kind[1]) if kind is not None else None
            if kind is None or length is None:
                self._buffer = data[start:]
                break
            what, (total, position) = kind[0], length
            if what in self._forbidden:
                raise H3Error(H3_FRAME_UNEXPECTED, f"a frame of type 0x{what:x} on the wrong stream")
            if what not in self._WHOLE or (total > self._limit and what == ORIGIN):  # (which may be ignored)
                taken = min(total, size - position)
                if what == DATA and (taken or not total):
                    frames.append((DATA, data[position : position + taken]))
                self._empty = 0 if what == DATA and total else self._empty + 1
                if self._empty > _MAX_EMPTY:  # RFC 9114 §10.5
                    raise H3Error(H3_EXCESSIVE_LOAD, f"{_MAX_EMPTY} frames to no purpose")
                position += taken
                self._left = total - taken
                self._data = what == DATA
            elif total > self._limit:
                raise Malformed(f"a frame of {total} bytes is over the limit of {self._limit}", H3_EXCESSIVE_LOAD)
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


def request_fields(headers: Iterable[tuple[bytes, bytes]], *, trailers: bool = False) -> Headers:
    """A caller's header fields as HTTP/3 wants them: lower-case, and none that belong to one connection.

    :raises ValueError: for a field that HTTP cannot say.
    """
    fields: Headers = []
    dropped = CONNECTION_SPECIFIC
    for name, value in headers:
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} is not a field name")
        value = value.strip(b" \t")
        if _BAD_VALUE.search(value):
            raise ValueError(f"the value of {name!r} has characters that no field may have")
        name = name.lower()
        if name in dropped:
            if name == b"connection":  # what it names belongs to the connection too (RFC 9110 §7.6.1)
                dropped = dropped | {option.strip().lower() for option in value.split(b",")}
            elif name == b"te" and value.lower() == b"trailers":  # the one that is allowed (RFC 9114 §4.2)
                fields.append((name, value))
        elif name != b"host":  # it is :authority
            fields.append((name, value))
    if len(dropped) > len(CONNECTION_SPECIFIC):
        fields = [field for field in fields if field[0] not in dropped or field[0] == b"te"]
    if trailers and any(name == b"content-length" for name, _ in fields):
        raise ValueError("Content-Length cannot be in a trailer section")
    return fields


def request_section(head: RequestHead) -> Headers:
    """The header section of a request, pseudo-header fields first (RFC 9114 §4.3.1, §4.4, RFC 9220 §3).

    :raises ValueError: for what HTTP cannot say.
    """
    fields: Headers = [(b":method", head.method)]
    if head.method != b"CONNECT" or head.protocol is not None:
        fields += [(b":scheme", head.scheme), (b":authority", head.authority), (b":path", head.target)]
        if head.protocol is not None:
            fields.append((b":protocol", head.protocol))
    else:
        fields.append((b":authority", head.target))
    for name, value in fields:
        if not _VISIBLE.fullmatch(value):
            raise ValueError(f"{value!r} cannot be {name.decode('ascii')}")
    return fields + request_fields(head.headers)


def response_fields(fields: Headers) -> tuple[int, Headers]:
    """The status and the header fields of a response (RFC 9114 §4.3.2).

    :raises Malformed: as RFC 9114 §4.2 and §4.3 define it.
    """
    if not fields or fields[0][0] != b":status":
        raise Malformed("a response without :status")
    status = fields[0][1]
    if not _STATUS.fullmatch(status) or status == b"101":  # RFC 9114 §4.5: there is no 101 in HTTP/3
        raise Malformed(f"a response of status {status!r}")
    del fields[0]
    check_fields(fields)
    return int(status), fields


def check_fields(fields: Headers) -> None:
    """See that none of the fields is malformed (RFC 9114 §4.2); pseudo-header fields are, here.

    :raises Malformed: for the first that is.
    """
    for name, value in fields:
        if not _LOWER_TOKEN.fullmatch(name):
            raise Malformed(f"{name!r} is not a field name")
        if _BAD_VALUE.search(value):
            raise Malformed(f"the value of {name!r} has characters that no field may have")
        if name in CONNECTION_SPECIFIC:
            raise Malformed(f"{name!r} belongs to one connection")


def section_size(fields: Headers) -> int:
    """The size of a header section, as the limit on it counts (RFC 9114 §4.2.2)."""
    return sum(len(name) + len(value) + 32 for name, value in fields)


def content_length(fields: Headers) -> int | None:
    """The Content-Length, if there is one.

    :raises Malformed: when it is no number, or there are several.
    """
    values = {value for name, value in fields if name.lower() == b"content-length"}
    if not values:
        return None
    value = values.pop()
    if values or not value.isdigit() or len(value) > 18:
        raise Malformed("a Content-Length that is none")
    return int(value)
