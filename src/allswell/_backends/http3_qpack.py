"""QPACK (RFC 9204) for requests: ls-qpack's encoder, but secrets never enter the dynamic table.

ls-qpack puts a field into the table when it comes twice, and knows no exceptions. But a section consists of a prefix
and of field lines, and a literal line refers to no table entry. So secrets are written here, as literals with the bit
that forbids the next hop to index them (§4.5.4, §4.5.6): ``:path`` in front, among the pseudo-header fields, the others
at the end. The order of fields with different names has no meaning (RFC 9110 §5.3).
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
        """Take what came on the decoder stream.

        :raises pylsqpack.DecoderStreamError: if it is malformed.
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
