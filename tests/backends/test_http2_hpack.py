"""The memories in front of HPACK never say anything else than HPACK itself would."""

from __future__ import annotations

import pytest
from hpack import Decoder, Encoder, HeaderTuple, NeverIndexedHeaderTuple
from hypothesis import given, settings
from hypothesis import strategies as st

from allswell._backends.http2_errors import StreamError
from allswell._backends.http2_hpack import FieldEncoder, SectionReader
from allswell._messages import Headers
from tests.backends.h2_peer import encode_frame

NAMES = st.sampled_from([b":path", b"accept", b"user-agent", b"x-a", b"x-b", b"cookie"])
VALUES = st.one_of(st.sampled_from([b"", b"/", b"1", b"v" * 300]), st.binary(max_size=3).map(bytes.hex).map(str.encode))
FIELD = st.one_of(st.builds(HeaderTuple, NAMES, VALUES), st.builds(NeverIndexedHeaderTuple, NAMES, VALUES))
BLOCKS = st.lists(st.tuples(st.lists(FIELD, max_size=8), st.none() | st.integers(0, 400)), min_size=1, max_size=12)


@given(BLOCKS)
@settings(max_examples=300, deadline=None)
def test_the_encoder_says_what_a_decoder_understands(blocks: list[tuple[list[HeaderTuple], int | None]]) -> None:
    encoder, plain, decoder = FieldEncoder(), Encoder(), Decoder()
    for fields, resize in blocks:
        for _ in range(2):
            if resize is not None:
                encoder.header_table_size = resize
                plain.header_table_size = resize
            block = encoder.encode(fields)
            assert block == plain.encode(fields)
            assert list(decoder.decode(block, raw=True)) == [tuple(field) for field in fields]


@given(BLOCKS)
@settings(max_examples=300, deadline=None)
def test_the_reader_understands_what_was_said(blocks: list[tuple[list[HeaderTuple], int | None]]) -> None:
    encoder, reader = Encoder(), SectionReader(Decoder(), 100_000)
    for fields, resize in blocks:
        if resize is not None:
            encoder.header_table_size = resize
        for _ in range(3):
            frame = memoryview(encode_frame(1, 4, 1, encoder.encode(fields)))
            section = reader.receive_headers(1, 4, frame)
            assert section is not None
            assert section.fields == [tuple(field) for field in fields]
            assert section.error is None


def test_secrets_are_never_indexed_also_when_remembered() -> None:
    encoder = FieldEncoder()
    secret = NeverIndexedHeaderTuple(b"authorization", b"Basic x")
    first, second = encoder.encode([secret]), encoder.encode([secret])
    assert first == second
    assert first[0] & 0xF0 == 0x10  # RFC 7541 §6.2.3
    assert not encoder.header_table.dynamic_entries


def test_what_repeats_is_decoded_once_and_forgotten_when_the_table_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, encoder = Decoder(), Encoder()
    reader = SectionReader(decoder, 100_000)
    blocks: list[bytes] = []
    plain_decode = decoder.decode

    def decode(block: bytes, raw: bool = False) -> Headers:
        blocks.append(block)
        return [(name, value) for name, value in plain_decode(block, raw=raw)]

    monkeypatch.setattr(decoder, "decode", decode)

    def read(fields: Headers) -> Headers:
        section = reader.receive_headers(1, 4, memoryview(encode_frame(1, 4, 1, encoder.encode(fields))))
        assert section is not None
        return section.fields

    for _ in range(5):
        assert read([(b"x-a", b"1")]) == [(b"x-a", b"1")]
    assert len(blocks) == 2  # the literal, then its index
    read([(b"x-b", b"2")])
    for _ in range(5):
        assert read([(b"x-a", b"1")]) == [(b"x-a", b"1")]
        assert read([(b"x-b", b"2")]) == [(b"x-b", b"2")]
    assert len(blocks) == 5


def test_the_memories_are_bounded() -> None:
    encoder = FieldEncoder()
    for number in range(1000):
        encoder.encode([NeverIndexedHeaderTuple(b"x", b"%d" % number)])
    assert len(encoder._known_secrets) <= 256
    reader = SectionReader(Decoder(), 100_000)
    plain = Encoder()
    for number in range(1000):
        block = plain.encode([NeverIndexedHeaderTuple(b"x", b"%d" % number)])
        assert reader.receive_headers(1, 4, memoryview(encode_frame(1, 4, 1, block))) is not None
    assert len(reader._known) <= 64


def test_a_malformed_section_is_not_remembered() -> None:
    reader = SectionReader(Decoder(), 100)
    block = Encoder().encode([NeverIndexedHeaderTuple(b"X", b"")])
    for _ in range(2):
        section = reader.receive_headers(1, 4, memoryview(encode_frame(1, 4, 1, block)))
        assert section is not None
        assert isinstance(section.error, StreamError)


def test_a_block_that_changes_the_tables_size_is_not_remembered() -> None:
    """RFC 7541 §6.3: with nothing in the table only its size tells that it changed."""
    reader, plain = SectionReader(Decoder(), 100_000), Decoder()
    small, large, added, indexed = b"\x20\x88", b"\x3f\xe1\x1f\x88", b"\x88\x40\x01x\x01y", b"\x88\xbe"
    for block in (large, small, large, added, indexed):
        section = reader.receive_headers(1, 4, memoryview(encode_frame(1, 4, 1, block)))
        assert section is not None
        assert section.fields == [tuple(field) for field in plain.decode(block, raw=True)]
