"""The memories in front of HPACK never say anything else than HPACK itself would."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hpack import Decoder, Encoder, NeverIndexedHeaderTuple
from hyperframe.frame import Frame, HeadersFrame, SettingsFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from allswell._backends.http2 import Http2
from allswell._backends.http2_errors import StreamError
from allswell._backends.http2_hpack import FieldEncoder, SectionReader
from allswell._messages import Headers, RequestHead
from tests.backends.h2_peer import encode_frame

NAMES = st.sampled_from([b":path", b"accept", b"user-agent", b"x-a", b"x-b", b"cookie", b"range"])
VALUES = st.one_of(
    st.sampled_from([b"", b"/", b"1", b"v" * 300]),
    st.binary(max_size=3).map(bytes.hex).map(str.encode),
)
FIELD = st.tuples(NAMES, VALUES)
LONG_FIELD = st.tuples(NAMES | st.just(b"x-" + b"n" * 1100), VALUES | st.sampled_from([b"w" * 1500, b"z" * 5000]))
SIZES = st.lists(st.integers(0, 400) | st.just(4096), max_size=3)


def blocks_of(field: st.SearchStrategy[tuple[bytes, bytes]]) -> st.SearchStrategy[list[tuple[Headers, list[int]]]]:
    """Sections, and the sizes of the table before each."""
    return st.lists(st.tuples(st.lists(field, max_size=8), SIZES), min_size=1, max_size=12)


def frames(data: bytes) -> Iterator[Frame]:
    while data:
        frame, length = Frame.parse_frame_header(memoryview(data[:9]))
        frame.parse_body(memoryview(data[9 : 9 + length]))
        yield frame
        data = data[9 + length :]


def test_a_request_that_waited_for_the_settings_obeys_them() -> None:
    """Its section is the first after our ACK: it says the size that the table has shrunk to (RFC 9113 §4.3.1)."""
    backend = Http2(max_header_size=100 * 1024)
    connect = RequestHead(b"CONNECT", b"https", b"a", b"/", [(b"x-a", b"one")], b"websocket")
    backend.open(connect, end=False)
    backend.take_output()
    settings_frame = SettingsFrame(0, settings={SettingsFrame.HEADER_TABLE_SIZE: 0, 8: 1})
    backend.receive(memoryview(settings_frame.serialize()))
    [section] = [frame.data for frame in frames(backend.take_output()) if isinstance(frame, HeadersFrame)]
    decoder = Decoder()
    decoder.max_allowed_table_size = 0
    assert (b"x-a", b"one") in list(decoder.decode(section, raw=True))


@given(blocks_of(LONG_FIELD))
@settings(max_examples=300, deadline=None)
def test_the_encoder_says_what_a_decoder_understands(blocks: list[tuple[Headers, list[int]]]) -> None:
    encoder, decoder = FieldEncoder(), Decoder()
    for fields, sizes in blocks:
        for size in sizes:
            encoder.header_table_size = size
            decoder.max_allowed_table_size = size
        for _ in range(2):
            assert list(decoder.decode(encoder.encode(fields), raw=True)) == fields
            assert encoder.header_table.dynamic_entries == decoder.header_table.dynamic_entries


@pytest.mark.parametrize(
    ("sizes", "updates"),
    [
        ([100], b"\x3f\x45"),
        ([100, 100], b"\x3f\x45"),
        ([0, 4096], b"\x20\x3f\xe1\x1f"),
        ([0, 100, 50, 4096], b"\x20\x3f\xe1\x1f"),
        ([200, 100, 150], b"\x3f\x45\x3f\x77"),
        ([4096], b""),
        ([4096, 4096], b""),
    ],
)
def test_what_the_table_shrank_to_between_two_sections_is_said(sizes: list[int], updates: bytes) -> None:
    """RFC 7541 §4.2: the smallest size, then the last."""
    encoder = FieldEncoder()
    encoder.encode([(b"x-a", b"1")])
    for size in sizes:
        encoder.header_table_size = size
    assert encoder.encode([(b":method", b"GET")]) == updates + b"\x82"
    assert encoder.encode([(b":method", b"GET")]) == b"\x82"  # and once


@given(blocks_of(FIELD))
@settings(max_examples=300, deadline=None)
def test_the_reader_understands_what_was_said(blocks: list[tuple[Headers, list[int]]]) -> None:
    encoder, reader = Encoder(), SectionReader(Decoder(), 100_000)
    for fields, sizes in blocks:
        for size in sizes[:1]:
            encoder.header_table_size = size
        for _ in range(3):
            frame = memoryview(encode_frame(1, 4, 1, encoder.encode(fields)))
            section = reader.receive_headers(1, 4, frame)
            assert section is not None
            assert section.fields == fields
            assert section.error is None


def test_what_is_used_of_hpack_is_still_there() -> None:
    """A canary: these names are beyond hpack's documented interface."""
    encoder = Encoder()
    table = encoder.header_table
    assert encoder.add((b"x-a", b"b"), False, False) == b"\x40\x03x-a\x01b"
    assert list(table.dynamic_entries) == [(b"x-a", b"b")]
    assert table.search(b"x-a", b"b") == (62, b"x-a", b"b")
    assert table.search(b"x-a", b"c") == (62, b"x-a", None)
    assert table.search(b"x-b", b"c") is None
    assert encoder.add((b"x-a", b"b"), False, False) == b"\xbe"
    assert table.STATIC_TABLE_MAPPING[b":path"][0] == 4
    assert encoder.huffman_coder.encode(b"www.example.com").hex() == "f1e3c2e5f23a6ba0ab90f4ff"  # RFC 7541 §C.4.1
    table.maxsize = 10
    assert (table.maxsize, list(table.dynamic_entries)) == (10, [])


def test_secrets_are_never_indexed_also_when_remembered() -> None:
    encoder = FieldEncoder()
    for name, value in [(b"authorization", b"Basic x"), (b"cookie", b"a=" + b"b" * 30), (b":path", b"/?key=1")]:
        first, second = encoder.encode([(name, value)]), encoder.encode([(name, value)])
        assert first == second
        assert first[0] & 0xF0 == 0x10  # RFC 7541 §6.2.3
    assert not encoder.header_table.dynamic_entries


def test_long_values_go_as_they_are() -> None:
    """Huffman's code in Python takes a second for 64 KB."""
    for name, size in [(b"cookie", 64_000), (b"authorization", 3_000), (b"x-long", 1_500), (b"x-long", 20_000)]:
        encoder, value = FieldEncoder(), b"0" * size  # (which Huffman's code would make shorter)
        block = encoder.encode([(name, value)])
        assert value in block
        assert list(Decoder().decode(encoder.encode([(b"x-a", b"1")]) and block, raw=True)) == [(name, value)]


def test_what_does_not_fit_the_table_does_not_empty_it() -> None:
    """RFC 7541 §4.4: an entry larger than the table would."""
    encoder = FieldEncoder()
    encoder.encode([(b"x-a", b"1")])
    encoder.encode([(b"x-large", b"v" * 5000)])
    assert list(encoder.header_table.dynamic_entries) == [(b"x-a", b"1")]


def test_a_field_that_is_another_each_time_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace's id, a signature: in the table it would push the others out, and out of the memory."""
    encoder, decoder = FieldEncoder(), Decoder()
    coded: list[bytes] = []
    huffman = encoder.huffman_coder.encode

    def encode(text: bytes) -> bytes:
        coded.append(text)
        return huffman(text)

    monkeypatch.setattr(encoder.huffman_coder, "encode", encode)
    searched: list[bytes] = []
    search = encoder.header_table.search

    def searching(name: bytes, value: bytes) -> Any:
        searched.append(name)
        return search(name, value)

    monkeypatch.setattr(encoder.header_table, "search", searching)
    same = [(b"user-agent", b"me"), (b"x-token", b"t" * 900), (b"authorization", b"s" * 900)]
    for number in range(1000):
        fields = [*same, (b"traceparent", b"00-%032d-01" % number)]
        if number == 10:
            searched.clear()
            coded.clear()
            entries = list(encoder.header_table.dynamic_entries)
        assert list(decoder.decode(encoder.encode(fields), raw=True)) == fields
    assert list(encoder.header_table.dynamic_entries) == entries
    # Once more where the memory, which is bounded, is full of what came only once.
    assert searched.count(b"user-agent") + searched.count(b"x-token") == 0
    assert sum(text.startswith(b"s") for text in coded) <= 1000 // 200
    assert b"t" * 900 not in coded
    assert b"traceparent" not in coded


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
        encoder.encode([(b"cookie", b"%d" % number), (b"x-%d" % number, b"y" * 8), (b"x-a", b"%d" % number)])
        encoder.encode([(b"x-%d" % number, b"y" * 8)])
    assert max(len(memory) for memory in (encoder._literals, encoder._indexes, encoder._entered)) <= 256
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
