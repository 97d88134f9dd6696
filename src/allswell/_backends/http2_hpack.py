"""HPACK (RFC 7541) on the hot path: header sections put together, decoded and checked; what repeats is remembered.

Most of what a small exchange costs is HPACK in Python. But a client says nearly the same in each request, and a server
in each response; and as long as the dynamic table does not change, the same field has the same code, and the same block
the same meaning. So both directions keep a small memory, and forget it when the table changes.

What is used of hpack beyond its documented interface (``Encoder.add``, ``huffman_coder``, ``header_table`` with
``search``, ``dynamic_entries``, ``maxsize``, ``STATIC_TABLE_MAPPING``) has a canary in the tests.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from h2.errors import ErrorCodes
from hpack import Decoder, Encoder, HPACKError, OversizedHeaderListError

from allswell._backends.http2_errors import PeerError, StreamError
from allswell._backends.http2_frames import CONTINUATION, END_HEADERS, END_STREAM, HAS_PRIORITY, payload
from allswell._backends.literals import integer, string
from allswell._fields import MalformedSection, never_indexed, received_section
from allswell._messages import Headers

# A header list too large for us costs its stream; one of this many times the limit, or in this many frames, costs the
# connection.
_HARD_LIMIT = 4
_MAX_FRAGMENTS = 64

#: As good as never the same twice: indexed they would only push the others out (nghttp2 does the same).
_SELDOM_THE_SAME = frozenset((b"content-length", b"if-none-match", b"if-modified-since", b"range", b"referer"))
#: A name whose value has been another so often will be another again (a trace's id, a signature).
_RESTLESS = 4
#: Strings above this go without Huffman's code.
_LONG = 1024

_REMEMBERED_FIELDS = 256
_REMEMBERED_BLOCKS = 64
_LONGEST_REMEMBERED = 256


class FieldEncoder(Encoder):
    """hpack's encoder, which searches its table from end to end for each field, with a memory in front.

    It leaves out of the table what would only push the rest out. (Each entry moves all others, so it also empties the
    memory.) It writes long strings as they are: in Python, Huffman's code costs more per byte the longer a string is.
    """

    def __init__(self) -> None:
        super().__init__()
        self._indexes: dict[tuple[bytes, bytes], bytes] = {}  # as the table is now
        self._literals: dict[tuple[bytes, bytes], bytes] = {}  # which refer to the static table, if at all
        self._entered: dict[bytes, int] = {}  # how often a field of this name has entered the table
        self._said = self._smallest = self.header_table.maxsize

    @property
    def header_table_size(self) -> int:
        return self.header_table.maxsize

    @header_table_size.setter
    def header_table_size(self, value: int) -> None:
        self.header_table.maxsize = value
        self._smallest = min(self._smallest, value)
        self._indexes.clear()

    def encode(self, headers: Any, huffman: bool = True) -> bytes:
        codes = []
        size = self.header_table.maxsize
        if size != self._said or self._smallest != size:
            codes += self._size_updates(size)
        indexes, literals = self._indexes, self._literals
        for field in headers:
            code = indexes.get(field) or literals.get(field)
            if code is None:
                code = self._new(*field)
            codes.append(code)
        return b"".join(codes)

    def _size_updates(self, size: int) -> list[bytes]:
        """RFC 7541 §4.2: the smallest that it was since the last section, then the one that it is."""
        smallest, said = self._smallest, self._said
        self._smallest = self._said = size
        sizes = [smallest, size] if smallest < min(said, size) else [size]
        return [integer(each, 5, 0x20) for each in sizes]  # §6.3

    # Three kinds of lines: indexed, or entering the table (§6.1, §6.2.1); without indexing (§6.2.2); never (§6.2.3).

    def _new(self, name: bytes, value: bytes) -> bytes:
        table = self.header_table
        size = len(name) + len(value) + 32  # §4.1
        secret = never_indexed(name, value)
        if not secret and name not in _SELDOM_THE_SAME and 2 * size <= table.maxsize:
            if self._entered.get(name, 0) < _RESTLESS:
                return self._index((name, value))
            known = table.search(name, value)
            if known is not None:
                index, _, same = known
                return self._index((name, value)) if same is not None else integer(index, 4) + self._string(value)
        index, _ = table.STATIC_TABLE_MAPPING.get(name, (0, {}))
        code = integer(index, 4, 0x10 if secret else 0) + (b"" if index else self._string(name)) + self._string(value)
        if size <= _LONG:
            _remember(self._literals, (name, value), code)
        return code

    def _index(self, field: tuple[bytes, bytes]) -> bytes:
        name, value = field
        code = self.add(field, False, len(value) <= _LONG)
        if code[0] & 0xC0 == 0x40:  # §6.2.1: it has entered the table, and all others have moved on
            self._indexes.clear()
            if name not in self._entered and len(self._entered) >= _REMEMBERED_FIELDS:
                self._entered.clear()
            self._entered[name] = self._entered.get(name, 0) + 1
        else:
            _remember(self._indexes, field, code)
        return code

    def _string(self, text: bytes) -> bytes:
        if len(text) > _LONG:
            return string(text)
        coded = self.huffman_coder.encode(text)
        return integer(len(coded), 7, 0x80) + coded  # §5.2


def _remember(memory: dict[tuple[bytes, bytes], bytes], field: tuple[bytes, bytes], code: bytes) -> None:
    if len(memory) >= _REMEMBERED_FIELDS:
        del memory[next(iter(memory))]
    memory[field] = code


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
            fields = received_section(decoded, self._max_size)
        except MalformedSection as error:
            return Section(stream, end, [], StreamError(str(error)))
        if not changed and len(block) <= _LONGEST_REMEMBERED:
            self._known[block] = fields
        return Section(stream, end, fields, None)
