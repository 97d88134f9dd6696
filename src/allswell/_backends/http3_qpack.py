"""QPACK (RFC 9204) on one connection: ls-qpack does the work, but secrets never enter its dynamic table.

The dynamic table is used for requests, which repeat their fields. It is not used for responses: we announce a capacity
of 0. A reference into it is a byte that can stand for 4 KiB, so a small header section could fill our memory. And
without it no response ever waits for another stream. RFC 9204 §3.2.3 and §4.2 leave that choice to the decoder.

ls-qpack puts a field into the table when it comes twice, and knows no exceptions. But a section consists of a prefix
and of field lines, and a literal line refers to no table entry. So secrets are written here, as literals with the bit
that forbids the next hop to index them (§4.5.4, §4.5.6): ``:path`` in front, among the pseudo-header fields, the others
at the end. The order of fields with different names has no meaning (RFC 9110 §5.3).
"""

from __future__ import annotations

from pylsqpack import Decoder, DecoderStreamError, DecompressionFailed, Encoder, EncoderStreamError, StreamBlocked

from allswell._backends import http3_frames as h3
from allswell._backends.literals import integer, integer_end, string
from allswell._fields import SOMETIMES_NEVER_INDEXED
from allswell._messages import Headers
from allswell._quic import varint
from allswell._quic.interface import Multiplexer

#: The most that the encoder's table may hold, in bytes, if the peer allows as much.
_ENCODER_TABLE = 4096

#: RFC 9204 Appendix A.
_STATIC_NAMES = {b"cookie": 5, b"authorization": 84}
#: A literal line for ``:path`` begins so (§4.5.4): never indexed; the name is in the static table, at 1.
_PATH = integer(1, 4, 0b0111_0000)
#: The static table has ``:path: /``, at 1. So that is an indexed line (§4.5.2), and nothing enters a table.
_ROOT = integer(1, 6, 0b1100_0000)
_HEADERS = varint.encode(h3.HEADERS)


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
            if name not in SOMETIMES_NEVER_INDEXED:
                plain.append(field)
            elif name == b":path":
                front = _PATH + string(value) if value != b"/" else _ROOT
            else:
                end += _literal(name, value)
        instructions, section = self._encoder.encode(stream_id, plain)
        if front:
            # §4.5.1: the prefix is two integers, mostly of one byte each.
            short = section[0] < 0xFF and section[1] & 0x7F < 0x7F
            prefix = 2 if short else integer_end(section, integer_end(section, 0, 8), 7)
            section = section[:prefix] + front + section[prefix:]
        return instructions, section + end


class Qpack:
    """Sends and reads the header and trailer sections of one connection.

    It opens our encoder stream when there is something to say on it. There is no decoder stream of ours: without a
    dynamic table for responses it has nothing to say (§4.2).

    :ivar stream: our encoder stream; ``None`` until it is opened.
    """

    __slots__ = ("_decoder", "_encoder", "_quic", "stream")

    def __init__(self, quic: Multiplexer) -> None:
        self._quic = quic
        self._decoder = Decoder(0, 0)
        self._encoder = SectionEncoder()
        self.stream: int | None = None

    def apply(self, settings: dict[int, int]) -> None:
        """The peer's settings have come: use the table that they allow."""
        table = min(settings.get(h3.QPACK_MAX_TABLE_CAPACITY, 0), _ENCODER_TABLE)
        self._instruct(self._encoder.apply_settings(table, settings.get(h3.QPACK_BLOCKED_STREAMS, 0)))

    def send(self, stream_id: int, fields: Headers, end: bool) -> None:
        """Send a section on a request's stream."""
        instructions, section = self._encoder.encode(stream_id, fields)
        if instructions:
            self._instruct(instructions)
        self._quic.send_stream_data(stream_id, _HEADERS + varint.encode(len(section)) + section, end)

    def decode(self, stream_id: int, section: bytes) -> Headers:
        """The fields of a section that came.

        :raises H3Error: if it is malformed, or refers to the table that it must not use.
        """
        try:
            _, fields = self._decoder.feed_header(stream_id, section)
        except (DecompressionFailed, StreamBlocked) as error:
            raise h3.H3Error(h3.QPACK_DECOMPRESSION_FAILED, "a header section that QPACK cannot decode") from error
        return fields

    def receive(self, kind: int, data: bytes) -> None:
        """Take what came on the peer's encoder stream or decoder stream.

        :raises H3Error: if it is malformed.
        """
        try:
            if kind == h3.ENCODER_STREAM:
                self._decoder.feed_encoder(data)
            else:
                self._encoder.feed_decoder(data)
        except EncoderStreamError as error:
            raise h3.H3Error(h3.QPACK_ENCODER_STREAM_ERROR, "QPACK instructions that make no sense") from error
        except DecoderStreamError as error:
            raise h3.H3Error(h3.QPACK_DECODER_STREAM_ERROR, "QPACK instructions that make no sense") from error

    def _instruct(self, instructions: bytes) -> None:
        if not instructions:
            return
        if self.stream is None:
            self.stream = self._quic.get_next_available_stream_id(is_unidirectional=True)
            instructions = varint.encode(h3.ENCODER_STREAM) + instructions
        self._quic.send_stream_data(self.stream, instructions)


def _literal(name: bytes, value: bytes) -> bytes:
    index = _STATIC_NAMES.get(name)
    if index is None:
        return integer(len(name), 3, 0b0011_0000) + name + string(value)  # §4.5.6
    return integer(index, 4, 0b0111_0000) + string(value)  # §4.5.4
