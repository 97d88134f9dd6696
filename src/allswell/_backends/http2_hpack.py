"""HPACK (RFC 7541) on the hot path: header sections put together, decoded and checked.

Theory of operation
===================

hpack keeps the tables and knows every rule. But it works octet by octet, and would take most of the time of a small
exchange. Here are short ways around it, for ordinary fields.

*Encoding.* A client sends nearly the same fields in each request. As long as the table does not change, a field in it
has the same code, and that is looked up. A field whose value changes each time would change the table each time. So it
stays out of the table (:data:`_RESTLESS`). Its value goes as it is: Huffman's code would make it a quarter shorter, but
takes as long as a third of all else that is done for a request. When the same field is sent again, it gets that code,
which is remembered from then on.

*Decoding.* A server sends nearly the same fields in each response, but for one or two values. A reference to the tables
is a field that was checked before, and is remembered as checked. References in a row are mostly the same as in an
earlier response, and are looked up together. A literal is read and checked, and put into hpack's table if it says so.
Both ways share that table. hpack reads the rest of a block from the first unusual line on: a
change of the table's size, an entry that does not exist, a line that is cut off or garbled, a section that is too
large.

The names of hpack that are used beyond its documented interface (the tables of codes, ``decode_huffman``,
``header_table`` with ``add``, ``dynamic_entries``, ``maxsize``, ``_maxsize``, ``_current_size``, ``STATIC_TABLE``) have
a canary in the tests.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, NamedTuple

from h2.errors import ErrorCodes
from hpack import Decoder, Encoder, HPACKDecodingError, HPACKError, OversizedHeaderListError
from hpack.table import HeaderTable

from allswell._backends import http2_huffman as huffman
from allswell._backends.http2_errors import PeerError, StreamError
from allswell._backends.http2_frames import CONTINUATION, END_HEADERS, END_STREAM, HAS_PRIORITY, payload
from allswell._backends.literals import integer, string
from allswell._fields import (
    MalformedSection,
    Received,
    ReceivedSections,
    check_bounds,
    never_indexed,
    received_section,
    section_size,
    telling_fields,
)
from allswell._memory import remember
from allswell._messages import Headers

# A header list that is too large costs its stream. With so many times the limit, or in so many frames, it costs the
# connection.
_HARD_LIMIT = 4
_MAX_FRAGMENTS = 64

#: Fields that are hardly ever the same twice. Indexed, they would only push the others out. (nghttp2 does the same.)
_SELDOM_THE_SAME = frozenset((b"content-length", b"if-none-match", b"if-modified-since", b"range", b"referer"))
#: After so many changes of a field's value the next one is expected to differ, too (a trace id, a signature).
_RESTLESS = 4
#: Longer strings are sent without Huffman's code.
_LONG = 1024

_REMEMBERED = 256

#: How many lines that refer to the tables are taken in one look, and how many entries of the dynamic table they know.
_IN_A_ROW = 64
#: The octets that are such lines (RFC 7541 §6.1). With 0xFF the index goes on, and 0x80 is an error.
_REFERENCES = bytes(range(0x81, 0xFF))

_UNLIMITED = sys.maxsize

_Field = tuple[bytes, bytes]

#: The static table (RFC 7541, Appendix A), by index.
_STATIC: dict[int, _Field] = dict(enumerate(HeaderTable.STATIC_TABLE, 1))
_STATIC_LENGTH = len(_STATIC)
_STATIC_FIELDS = {field: integer(index, 7, 0x80) for index, field in _STATIC.items()}
_STATIC_NAMES = {name: index for index, (name, _) in reversed(_STATIC.items())}  # the lowest of each


class FieldEncoder(Encoder):
    """hpack's encoder with a memory in front, because it searches its whole table for each field.

    Fields that would only push out others stay out of the table. (Each new entry moves all others, and so empties the
    memory.) Long strings are sent without Huffman's code, which takes more time in Python than it saves.
    """

    def __init__(self) -> None:
        super().__init__()
        self._indexed: dict[_Field, bytes] = {}  # the codes of all fields that the tables hold now
        self._names: dict[bytes, int] = {}  # the lowest index of each name in the tables
        self._moved = True  # the table has changed since these two were made
        self._restless: dict[bytes, bytes] = {}  # names whose fields enter no more, and how their lines begin now
        self._once: dict[_Field, bytes] = {}  # other fields that stay out and came once, and how their lines begin
        self._literals: dict[_Field, bytes] = {}  # the codes of those that came again
        self._entered: dict[bytes, int] = {}  # how often a field of this name has entered the table
        self._said = self._smallest = self.header_table.maxsize
        self._resized = False

    @property
    def header_table_size(self) -> int:
        return self.header_table.maxsize

    @header_table_size.setter
    def header_table_size(self, value: int) -> None:
        self.header_table.maxsize = value
        self._smallest = min(self._smallest, value)
        self._resized = True
        self._move()

    def encode(self, headers: Any, huffman: bool = True) -> bytes:
        codes = self._size_updates() if self._resized else []
        indexed, literals = self._indexed, self._literals
        for field in headers:
            codes.append(indexed.get(field) or literals.get(field) or self._new(field))
        return b"".join(codes)

    def _size_updates(self) -> list[bytes]:
        """The table's smallest size since the last section, then its size now (RFC 7541 §4.2)."""
        smallest, said, size = self._smallest, self._said, self.header_table.maxsize
        self._smallest = self._said = size
        self._resized = False
        sizes = [smallest, size] if smallest < min(said, size) else [size] if size != said else []
        return [integer(each, 5, 0x20) for each in sizes]  # §6.3

    # Three kinds of lines: indexed, or entering the table (§6.1, §6.2.1); without indexing (§6.2.2); never (§6.2.3).

    def _new(self, field: _Field) -> bytes:
        name, value = field
        begins = self._restless.get(name)
        if begins is not None:
            return begins + string(value)
        begins = self._once.get(field)
        if begins is not None:
            return remember(self._literals, field, begins + _string(value), _REMEMBERED)
        if self._moved:
            self._look_up()
            if (code := self._indexed.get(field)) is not None:
                return code
        size = len(name) + len(value) + 32  # §4.1
        secret = never_indexed(name, value)
        if not secret and name not in _SELDOM_THE_SAME and 2 * size <= self.header_table.maxsize:
            index = self._names.get(name, 0)
            if self._entered.get(name, 0) < _RESTLESS:
                return self._enter(name, value, index)
            if index > _STATIC_LENGTH:  # this changes with the table, so the code is not remembered
                return remember(self._restless, name, integer(index, 4), _REMEMBERED) + string(value)
        index = _STATIC_NAMES.get(name, 0)
        begins = integer(index, 4, 0x10 if secret else 0) + (b"" if index else _string(name))
        if size <= _LONG:
            remember(self._once, field, begins, _REMEMBERED)
        return begins + string(value)

    def _look_up(self) -> None:
        """Note the index of each field and name in the tables (§2.3.3)."""
        self._moved = False
        indexed, names = self._indexed, self._names
        indexed.clear()
        names.clear()
        entries = self.header_table.dynamic_entries
        for index in range(len(entries), 0, -1):
            entry = entries[index - 1]
            indexed[entry] = integer(_STATIC_LENGTH + index, 7, 0x80)
            names[entry[0]] = _STATIC_LENGTH + index
        indexed.update(_STATIC_FIELDS)
        names.update(_STATIC_NAMES)

    def _move(self) -> None:
        self._moved = True
        self._indexed.clear()
        self._restless.clear()

    def _enter(self, name: bytes, value: bytes, index: int) -> bytes:
        self.header_table.add(name, value)
        self._move()
        if name not in self._entered and len(self._entered) >= _REMEMBERED:
            self._entered.clear()
        self._entered[name] = self._entered.get(name, 0) + 1
        return integer(index, 6, 0x40) + (b"" if index else _string(name)) + _string(value)


def _string(text: bytes) -> bytes:
    if len(text) > _LONG:
        return string(text)
    coded = huffman.encode(text)
    return integer(len(coded), 7, 0x80) + coded  # §5.2


@cache
def _absolute(entered: int) -> bytes:
    """What makes keys of lines that refer to the tables: it gives the entries of the dynamic table fixed numbers.

    They can name the newest 65 entries. While the next 63 enter, no two that can be named have the same number.

    :param entered: how many entries have entered, modulo 128.
    """
    table = bytearray(256)
    for line in _REFERENCES:
        table[line] = (entered - (line - 190)) % 128 if line > 189 else line
    return bytes(table)


class FieldDecoder:
    """hpack's decoder, with a short way in front that reads ordinary lines and checks their fields.

    :param decoder: both ways use its table.
    :param max_size: bytes of a header list that are accepted.
    """

    def __init__(self, decoder: Decoder, max_size: int) -> None:
        self._decoder = decoder
        self._max_size = max_size
        self._hard_limit = decoder.max_header_list_size = _HARD_LIMIT * max_size
        self._received = ReceivedSections()
        self._lines: dict[bytes, tuple[_Field, Received]] = {}  # by literal lines with names of the static table
        # Fields by lines in a row that refer to the tables. Each new entry moves all others. So the keys do not have
        # the indices, but which entries these are: see `_absolute`.
        self._runs: dict[bytes, tuple[Headers, int, Headers]] = {}
        self._entered = 0  # how many entries
        self._absolute = _absolute(0)

    def decode(self, block: bytes) -> tuple[Headers, Headers]:
        """Return the fields of a block, and the telling ones, as :meth:`ReceivedSections.section` does.

        :raises HPACKError: if it is garbled, or far too large.
        :raises IndexError: if it is garbled.
        :raises MalformedSection: if it has a field that no section may have, or is too large.
        """
        entries, limit = self._decoder.header_table.dynamic_entries, self._hard_limit
        fields: Headers = []
        telling: Headers = []
        size = line = 0
        end = len(block)
        try:
            while line < end:
                kind = block[line]
                if 0x80 < kind < 0xFF:  # indexed (§6.1), and the index fits
                    piece = block[line : line + _IN_A_ROW]
                    run = piece[: len(piece) - len(piece.lstrip(_REFERENCES))]
                    if max(run) - 190 >= len(entries):
                        raise LookupError
                    found, counts, tell = self._runs.get(run.translate(self._absolute)) or self._read_run(run)
                    size += counts
                    if size > limit:
                        raise OversizedHeaderListError
                    line += len(run)
                    fields += found
                    telling += tell
                    continue
                entry, (field, counts, tells), position = self._read_line(block, line)
                size += counts
                if size > limit:
                    raise OversizedHeaderListError
                if kind & 0xC0 == 0x40:  # (§6.2.1)
                    self._enter(entry, counts)
                line = position
                fields.append(field)
                if tells:
                    telling.append(field)
        except OversizedHeaderListError:
            raise
        except (LookupError, HPACKError, MalformedSection):
            # hpack, or the check of the whole section, says what is wrong
            rest = self._decode_rest(block[line:], within=bool(fields), limit=limit - size)
            size += section_size(rest)
            fields += received_section(rest, _UNLIMITED)
            telling = telling_fields(fields)
        check_bounds(fields, size, self._max_size)
        return fields, telling

    def _read_run(self, run: bytes) -> tuple[Headers, int, Headers]:
        """The fields of lines that refer to the tables, how many bytes they count, and those that are telling.

        :raises MalformedSection: if no section may have one of them.
        """
        entries, received = self._decoder.header_table.dynamic_entries, self._received
        fields: Headers = []
        telling: Headers = []
        size = 0
        for kind in run:
            field, counts, tells = received[entries[kind - 190] if kind > 189 else _STATIC[kind - 0x80]]
            size += counts
            fields.append(field)
            if tells:
                telling.append(field)
        return remember(self._runs, run.translate(self._absolute), (fields, size, telling), _REMEMBERED)

    def _read_line(self, block: bytes, line: int) -> tuple[_Field, Received, int]:
        """The field of a line, as it came and checked, and where the line ends.

        :raises LookupError: if it is no ordinary line.
        :raises HPACKError: if its Huffman code is not valid.
        :raises MalformedSection: if no section may have it.
        """
        kind = block[line]
        if kind & 0x80:  # (§6.1)
            if kind == 0x80:  # there is no entry 0
                raise LookupError
            index, position = _integer(block, line + 1, 0x7F)
            entry = self._decoder.header_table.dynamic_entries[index - 62]
            return entry, self._received[entry], position
        if kind & 0x40:  # it enters the table (§6.2.1)
            most = 0x3F
        elif kind & 0x20:  # a change of the table's size (§6.3)
            raise LookupError
        else:  # (§6.2.2, §6.2.3)
            most = 0x0F
        index, position = kind & most, line + 1
        if index == most:
            index, position = _integer(block, position, index)
        if 0 < index < 62:
            end = position + 1 + (block[position] & 0x7F)
            text = block[line:end]  # the whole line, if the size of its value fits into one octet
            known = self._lines.get(text)
            if known is None:
                value, until = _read_string(block, position)
                entry = _STATIC[index][0], value
                known = entry, self._received.check(entry)
                if end == until:
                    remember(self._lines, text, known, _REMEMBERED)
                end = until
            return *known, end
        if index:
            name = self._decoder.header_table.dynamic_entries[index - 62][0]
        else:
            name, position = _read_string(block, position)
        value, position = _read_string(block, position)
        entry = name, value
        return entry, self._received.check(entry), position

    def _enter(self, entry: _Field, size: int) -> None:
        """Put an entry into the table (§4.4), as hpack does, which would also log each one that falls out."""
        table = self._decoder.header_table
        entries, most = table.dynamic_entries, table._maxsize
        entries.appendleft(entry)
        held = table._current_size + size
        while held > most:
            name, value = entries.pop()
            held -= len(name) + len(value) + 32
        table._current_size = held
        self._entered += 1
        if not self._entered % _IN_A_ROW:
            self._runs.clear()
        self._absolute = _absolute(self._entered % (2 * _IN_A_ROW))

    def _decode_rest(self, block: bytes, *, within: bool, limit: int) -> Headers:
        """Decode by hpack, from the first unusual line on.

        :param within: there were fields before.
        :param limit: the rest of the hard limit.
        """
        if within and block[0] & 0xE0 == 0x20:
            raise HPACKDecodingError("a dynamic table size update after a field")  # §4.2
        self._runs.clear()
        self._decoder.max_header_list_size = limit
        try:
            return [(name, value) for name, value in self._decoder.decode(block, raw=True)]
        finally:
            self._decoder.max_header_list_size = self._hard_limit


def _integer(block: bytes, position: int, value: int) -> tuple[int, int]:
    """The rest of an integer that its prefix has no room for (§5.1), and where it ends.

    :raises LookupError: when it does not end soon.
    """
    for shift in (0, 7, 14, 21):
        octet = block[position]
        position += 1
        value += (octet & 0x7F) << shift
        if octet < 0x80:
            return value, position
    raise LookupError


def _read_string(block: bytes, position: int) -> tuple[bytes, int]:
    """The string that begins there (§5.2), and where it ends.

    :raises LookupError: when it ends behind the block.
    :raises HPACKError: if its Huffman code is not valid.
    """
    length = block[position]
    position += 1
    coded = length & 0x80
    length &= 0x7F
    if length == 0x7F:
        length, position = _integer(block, position, length)
    end = position + length
    if end > len(block):
        raise LookupError
    text = block[position:end]
    return (huffman.decode(text) if coded else text), end


class Section(NamedTuple):
    """A whole header section, as it came.

    :ivar end: whether its stream ends with it.
    :ivar block: its fields, encoded. Each block must be decoded, in order.
    """

    stream: int
    end: bool
    block: bytes


class SectionReader:
    """Makes header sections of HEADERS and CONTINUATION frames (RFC 9113 §4.3).

    :param max_size: bytes of a header list that are accepted.
    :ivar unfinished: whether a section has begun: nothing but its CONTINUATION may come now.
    """

    def __init__(self, decoder: Decoder, max_size: int) -> None:
        self._decoder = FieldDecoder(decoder, max_size)
        self._max_size = max_size
        self.unfinished = False
        self._open = 0, False  # its stream, and whether that ends with it
        self._pieces: list[bytes] = []
        self._size = 0

    def check(self, kind: int, stream: int) -> None:
        """:raises PeerError: when this frame interrupts a section (RFC 9113 §6.10)."""
        if self.unfinished and (kind != CONTINUATION or stream != self._open[0]):
            raise PeerError(ErrorCodes.PROTOCOL_ERROR, "the peer interrupted a header section")

    def receive_headers(self, stream: int, flags: int, frame: memoryview) -> Section | None:
        """Take a HEADERS frame. Return the section if it is complete."""
        block = payload(frame, flags)
        if flags & HAS_PRIORITY:  # deprecated (RFC 9113 §5.3.2)
            if len(block) < 5:
                raise PeerError(ErrorCodes.FRAME_SIZE_ERROR, "the peer sent HEADERS too short for its priority")
            block = block[5:]
        end = bool(flags & END_STREAM)
        if flags & END_HEADERS:
            return Section(stream, end, bytes(block))
        self.unfinished = True
        self._open = stream, end
        self._pieces = [bytes(block)]
        self._size = len(block)
        return None

    def receive_continuation(self, flags: int, frame: memoryview) -> Section | None:
        """Take a CONTINUATION frame. Return the section if it is complete."""
        if not self.unfinished:
            raise PeerError(ErrorCodes.PROTOCOL_ERROR, "the peer sent CONTINUATION without HEADERS before it")
        self._pieces.append(bytes(frame[9:]))
        self._size += len(frame) - 9
        if len(self._pieces) > _MAX_FRAGMENTS or self._size > _HARD_LIMIT * self._max_size:
            raise PeerError(ErrorCodes.ENHANCE_YOUR_CALM, "the peer sent a header section that is far too large")
        if not flags & END_HEADERS:
            return None
        self.unfinished = False
        stream, end = self._open
        return Section(stream, end, b"".join(self._pieces))

    def decode(self, block: bytes) -> tuple[Headers, Headers]:
        """Decode the fields of a section, and check them. They are not to be changed. The second are the telling ones.

        :raises PeerError: if it is not HPACK, or far too large.
        :raises StreamError: if it is malformed.
        """
        try:
            return self._decoder.decode(block)
        except OversizedHeaderListError as error:
            raise PeerError(ErrorCodes.ENHANCE_YOUR_CALM, "the peer sent a header list far too large") from error
        except (HPACKError, IndexError) as error:
            raise PeerError(ErrorCodes.COMPRESSION_ERROR, "the peer sent a header section that is not HPACK") from error
        except MalformedSection as error:
            raise StreamError(str(error)) from None
