"""QPACK (RFC 9204) as requests need it: ls-qpack's encoder, past which goes what must enter no dynamic table.

ls-qpack puts into the table what it sees twice, and cannot be told of exceptions. But a section is its prefix and a row
of field lines, and a literal line refers to no table entry. So what is never to be indexed is written here, as literals
with the bit that says so to the next hop (§4.5.4, §4.5.6): ``:path`` in front, where pseudo-header fields are,
the others at the end. The order of fields of different names means nothing (RFC 9110 §5.3).
"""

from __future__ import annotations

from pylsqpack import Encoder

from allswell._backends.literals import integer, integer_end, string
from allswell._fields import never_indexed
from allswell._messages import Headers

#: RFC 9204 Appendix A.
_STATIC_NAMES = {b":path": 1, b"cookie": 5, b"authorization": 84}


class SectionEncoder:
    """Encodes the sections that one connection sends."""

    def __init__(self) -> None:
        self._encoder = Encoder()

    def apply_settings(self, table: int, blocked: int) -> bytes:
        """Instructions for the encoder stream, once the peer's settings are known."""
        return self._encoder.apply_settings(table, blocked)

    def feed_decoder(self, data: bytes) -> None:
        """What came on the decoder stream.

        :raises pylsqpack.DecoderStreamError: when it makes no sense.
        """
        self._encoder.feed_decoder(data)

    def encode(self, stream_id: int, fields: Headers) -> tuple[bytes, bytes]:
        """Instructions for the encoder stream, and a section."""
        front, plain, end = b"", Headers(), b""
        for field in fields:
            name, value = field
            if not never_indexed(name, value):
                plain.append(field)
            elif name == b":path":
                front = _literal(name, value)
            else:
                end += _literal(name, value)
        instructions, section = self._encoder.encode(stream_id, plain)
        if front:
            # §4.5.1: the prefix is two integers.
            prefix = integer_end(section, integer_end(section, 0, 8), 7)
            section = section[:prefix] + front + section[prefix:]
        return instructions, section + end


def _literal(name: bytes, value: bytes) -> bytes:
    index = _STATIC_NAMES.get(name)
    if index is None:
        return integer(len(name), 3, 0b0011_0000) + name + string(value)  # §4.5.6
    return integer(index, 4, 0b0111_0000) + string(value)  # §4.5.4
