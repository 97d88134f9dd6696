"""HPACK (RFC 7541) on the hot path: header sections put together, decoded and checked; what repeats is remembered.

Most of what a small exchange costs is HPACK in Python. But a client says nearly the same in each request, and a server
in each response; and as long as the dynamic table does not change, the same field has the same code, and the same block
the same meaning. So both directions keep a small memory, and forget it when the table changes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from h2.errors import ErrorCodes
from hpack import Decoder, Encoder, HPACKError, OversizedHeaderListError

from allswell._backends.http2_errors import PeerError, StreamError
from allswell._backends.http2_fields import check_received
from allswell._backends.http2_frames import CONTINUATION, END_HEADERS, END_STREAM, HAS_PRIORITY, payload
from allswell._messages import Headers

# A header list too large for us costs its stream; one of this many times the limit, or in this many frames, costs the
# connection.
_HARD_LIMIT = 4
_MAX_FRAGMENTS = 64

_REMEMBERED_FIELDS = 256
_REMEMBERED_BLOCKS = 64
_LONGEST_REMEMBERED = 256


class FieldEncoder(Encoder):
    """hpack's encoder, which searches its table from end to end for each field, with a memory in front."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[tuple[bytes, bytes], bytes] = {}
        self._known_secrets: dict[tuple[bytes, bytes], bytes] = {}

    def encode(self, headers: Any, huffman: bool = True) -> bytes:
        codes = []
        if self.header_table.resized:
            self._forget()
            codes.append(super().encode([]))  # says so (RFC 7541 §6.3)
        for field in headers:
            indexable = getattr(field, "indexable", True)
            known = self._known if indexable else self._known_secrets
            code = known.get(field)
            if code is None:
                code = self.add((field[0], field[1]), not indexable, huffman)
                if code[0] & 0xC0 == 0x40 or len(known) >= _REMEMBERED_FIELDS:
                    self._forget()  # §6.2.1: it has entered the table, and all others have moved on
                else:
                    known[field] = code
            codes.append(code)
        return b"".join(codes)

    def _forget(self) -> None:
        self._known.clear()
        self._known_secrets.clear()


class Section(NamedTuple):
    """A whole header section.

    :ivar fields: decoded and checked; not to be changed.
    :ivar error: what is malformed about them.
    """

    stream: int
    end: bool
    fields: Headers
    error: StreamError | None


class SectionReader:
    """Makes header sections of HEADERS and CONTINUATION frames (RFC 9113 §4.3).

    :param max_size: bytes of a header list that are accepted.
    """

    def __init__(self, decoder: Decoder, max_size: int) -> None:
        decoder.max_header_list_size = _HARD_LIMIT * max_size
        self._decoder = decoder
        self._max_size = max_size
        self._open: tuple[int, bool] | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._known: dict[bytes, Headers] = {}

    @property
    def unfinished(self) -> bool:
        """Whether a section has begun: nothing but its CONTINUATION may come now."""
        return self._open is not None

    def check(self, kind: int, stream: int) -> None:
        """:raises PeerError: when this frame interrupts a section (RFC 9113 §6.10)."""
        if self._open is not None and (kind != CONTINUATION or stream != self._open[0]):
            raise PeerError(ErrorCodes.PROTOCOL_ERROR, "the peer interrupted a header section")

    def receive_headers(self, stream: int, flags: int, frame: memoryview) -> Section | None:
        """A HEADERS frame; the section, if that was all of it."""
        block = payload(frame, flags)
        if flags & HAS_PRIORITY:  # deprecated (RFC 9113 §5.3.2)
            if len(block) < 5:
                raise PeerError(ErrorCodes.FRAME_SIZE_ERROR, "the peer sent HEADERS too short for its priority")
            block = block[5:]
        end = bool(flags & END_STREAM)
        if flags & END_HEADERS:
            return self._decode(stream, end, bytes(block))
        self._open = stream, end
        self._pieces = [bytes(block)]
        self._size = len(block)
        return None

    def receive_continuation(self, flags: int, frame: memoryview) -> Section | None:
        """A CONTINUATION frame; the section, if it was the last one."""
        if self._open is None:
            raise PeerError(ErrorCodes.PROTOCOL_ERROR, "the peer sent CONTINUATION with nothing to continue")
        self._pieces.append(bytes(frame[9:]))
        self._size += len(frame) - 9
        if len(self._pieces) > _MAX_FRAGMENTS or self._size > _HARD_LIMIT * self._max_size:
            raise PeerError(ErrorCodes.ENHANCE_YOUR_CALM, "the peer sent an endless header section")
        if not flags & END_HEADERS:
            return None
        stream, end = self._open
        self._open = None
        return self._decode(stream, end, b"".join(self._pieces))

    def _decode(self, stream: int, end: bool, block: bytes) -> Section:
        known = self._known.get(block)
        if known is not None:
            return Section(stream, end, known, None)
        table = self._decoder.header_table
        entries = table.dynamic_entries
        newest, count, size = entries[0] if entries else None, len(entries), table.maxsize
        try:
            decoded = self._decoder.decode(block, raw=True)
        except OversizedHeaderListError as error:
            raise PeerError(ErrorCodes.ENHANCE_YOUR_CALM, "the peer's header list is too large") from error
        except (HPACKError, IndexError) as error:
            raise PeerError(ErrorCodes.COMPRESSION_ERROR, "the peer's header section is garbled") from error
        changed = len(entries) != count or (entries[0] if entries else None) is not newest or table.maxsize != size
        if changed or len(self._known) >= _REMEMBERED_BLOCKS:
            self._known.clear()
        try:
            fields = check_received(decoded, self._max_size)
        except StreamError as error:
            return Section(stream, end, [], error)
        if not changed and len(block) <= _LONGEST_REMEMBERED:
            self._known[block] = fields
        return Section(stream, end, fields, None)
