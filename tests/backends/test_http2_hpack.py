"""The short ways in front of hpack never say anything else than hpack itself would."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from hpack import Decoder, Encoder, HPACKError, NeverIndexedHeaderTuple, OversizedHeaderListError
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable
from hyperframe.frame import Frame, HeadersFrame, SettingsFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from allswell._backends import http2_huffman as huffman
from allswell._backends.http2 import Http2
from allswell._backends.http2_errors import StreamError
from allswell._backends.http2_hpack import FieldDecoder, FieldEncoder, SectionReader
from allswell._backends.literals import integer, string
from allswell._fields import MalformedSection, field_of_section, received_section, telling_fields
from allswell._messages import Field, Headers, RequestHead
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
@settings(max_examples=300)
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
@settings(max_examples=300)
def test_the_reader_understands_what_was_said(blocks: list[tuple[Headers, list[int]]]) -> None:
    encoder, reader = Encoder(), SectionReader(Decoder(), 100_000)
    for fields, sizes in blocks:
        for size in sizes[:1]:
            encoder.header_table_size = size
        for _ in range(3):
            frame = memoryview(encode_frame(1, 4, 1, encoder.encode(fields)))
            section = reader.receive_headers(1, 4, frame)
            assert section is not None
            assert reader.decode(section.block)[0] == fields


def test_what_is_used_of_hpack_is_still_there() -> None:
    """A canary: these names are beyond hpack's documented interface."""
    encoder = Encoder()
    table = encoder.header_table
    table.add(b"x-a", b"b")
    table.add(b"x-a", b"c")
    assert list(table.dynamic_entries) == [(b"x-a", b"c"), (b"x-a", b"b")]
    assert HeaderTable.STATIC_TABLE[3] == (b":path", b"/")
    assert len(HeaderTable.STATIC_TABLE) == 61
    assert (len(REQUEST_CODES), len(REQUEST_CODES_LENGTH)) == (257, 257)
    assert decode_huffman(bytes.fromhex("f1e3c2e5f23a6ba0ab90f4ff")) == b"www.example.com"  # RFC 7541 §C.4.1
    assert (table._current_size, table._maxsize) == (72, 4096)  # RFC 7541 §4.1: 36 each
    table.maxsize = 10
    assert (table.maxsize, list(table.dynamic_entries)) == (10, [])
    assert (table._current_size, table._maxsize) == (0, 10)


def test_secrets_are_never_indexed_also_when_remembered() -> None:
    encoder = FieldEncoder()
    for name, value in [(b"authorization", b"Basic x"), (b"cookie", b"a=" + b"b" * 30), (b":path", b"/?key=1")]:
        blocks = [encoder.encode([(name, value)]) for _ in range(3)]
        assert all(block[0] & 0xF0 == 0x10 for block in blocks)  # RFC 7541 §6.2.3
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


def test_what_is_another_each_time_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path, a trace's id, a signature: in the table it would push the others out, and all out of the memory.

    Huffman's code would take long, for a value that is sent once.
    """
    encoder, decoder = FieldEncoder(), Decoder()
    coded: list[bytes] = []
    encode = huffman.encode

    def encoding(text: bytes) -> bytes:
        coded.append(text)
        return encode(text)

    monkeypatch.setattr(huffman, "encode", encoding)
    same = [(b":path", b"/"), (b"user-agent", b"me"), (b"x-token", b"t" * 900), (b"authorization", b"s" * 900)]
    for number in range(1000):
        varying = [(b":path", b"/%d" % number), (b"traceparent", b"00-%032d-01" % number)]
        if number == 10:
            coded.clear()
            entries = list(encoder.header_table.dynamic_entries)
        assert list(decoder.decode(encoder.encode([*same, *varying]), raw=True)) == [*same, *varying]
        assert number < 10 or not coded
    assert list(encoder.header_table.dynamic_entries) == entries


@pytest.mark.parametrize("name", [b":path", b"authorization", b"x-api-key", b"range"])
def test_what_comes_again_gets_huffmans_code(name: bytes) -> None:
    encoder, decoder = FieldEncoder(), Decoder()
    again = (name, b"/the/same" * 5)
    blocks = []
    for number in range(20):
        assert list(decoder.decode(encoder.encode([(name, b"/%d" % number)]), raw=True)) == [(name, b"/%d" % number)]
        blocks.append(encoder.encode([again]))
        assert list(decoder.decode(blocks[-1], raw=True)) == [again]
    assert again[1] in blocks[0]
    assert len(blocks[1]) < len(blocks[0])
    assert set(blocks[1:]) == {blocks[1]}


def test_what_the_tables_hold_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that is another in each response costs the others nothing."""
    decoder, encoder = FieldDecoder(Decoder(), 100_000), Encoder()
    check = field_of_section
    checked: list[bytes] = []

    def checking(name: bytes, value: bytes) -> Field:
        checked.append(name)
        return check(name, value)

    monkeypatch.setattr("allswell._fields.field_of_section", checking)
    for number in range(20):
        fields = [(b":status", b"200"), (b"x-a", b"1"), (b"etag", b"%d" % number)]
        assert decoder.decode(encoder.encode(fields)) == (fields, fields[:1])
    assert {name: checked.count(name) for name in checked} == {b":status": 1, b"x-a": 1, b"etag": 1}


@pytest.mark.parametrize("flags", [0x00, 0x10, 0x40])
def test_a_line_that_comes_again_is_decoded_once(flags: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some servers (nginx) have no table: they write each field anew."""
    decoder, decoded = FieldDecoder(Decoder(), 100_000), []
    decode = huffman.decode

    def decoding(coded: bytes) -> bytes:
        decoded.append(coded)
        return decode(coded)

    monkeypatch.setattr(huffman, "decode", decoding)
    values = b"Sat, 28 Nov 2026 10:46:00 GMT", b"Sat, 28 Nov 2026 10:46:01 GMT"
    for value in values * 2:
        coded = huffman.encode(value)
        line = integer(33, 6 if flags == 0x40 else 4, flags)
        block = b"\x88" + line + integer(len(coded), 7, 0x80) + coded
        assert decoder.decode(block)[0] == [(b":status", b"200"), (b"date", value)]
    assert decoded == [huffman.encode(value) for value in values]


def test_the_memories_are_bounded() -> None:
    encoder = FieldEncoder()
    for number in range(1000):
        encoder.encode([(b"cookie", b"%d" % number), (b"x-%d" % number, b"y" * 8), (b"x-a", b"%d" % number)])
        encoder.encode([(b"x-%d" % number, b"y" * 8)])
    memories = (
        encoder._literals,
        encoder._once,
        encoder._restless,
        encoder._indexed,
        encoder._names,
        encoder._entered,
    )
    assert max(len(memory) for memory in memories) <= 256
    decoder, plain = FieldDecoder(Decoder(), 100_000), Encoder()
    for number in range(1000):
        fields = [(b"x-%d" % number, b"1")]
        for _ in range(2):
            assert decoder.decode(plain.encode([*fields, (b"etag", b"%d" % number)]))[0][:1] == fields
    assert len(decoder._received) <= 128
    assert len(decoder._runs) <= 256
    assert 100 < len(decoder._lines) <= 256


def test_a_malformed_section_is_not_remembered() -> None:
    reader = SectionReader(Decoder(), 100)
    block = Encoder().encode([NeverIndexedHeaderTuple(b"X", b"")])
    for _ in range(2):
        section = reader.receive_headers(1, 4, memoryview(encode_frame(1, 4, 1, block)))
        assert section is not None
        with pytest.raises(StreamError):
            reader.decode(section.block)


# The short way, and hpack as its judge

INDEXED = st.integers(0, 140).map(lambda index: integer(index, 7, 0x80))
STRING = st.tuples(st.sampled_from([b"", b"/", b"x", b" b ", b"\n", b"3f7a-91", b"v" * 200]), st.booleans()).map(
    lambda given: integer(len(coded := huffman.encode(given[0])), 7, 0x80) + coded if given[1] else string(given[0])
)
NAME = st.sampled_from([b"x-a", b"etag", b"X", b"te", b":status", b"", b"x-" + b"n" * 150]).map(string)
KIND = st.sampled_from([(6, 0x40), (4, 0x00), (4, 0x10)])
NAMED = st.tuples(KIND, NAME, STRING).map(lambda line: bytes((line[0][1],)) + line[1] + line[2])
REFERRING = st.tuples(KIND, st.integers(1, 90), STRING).map(lambda line: integer(line[1], *line[0]) + line[2])
SIZE = st.integers(0, 5000).map(lambda size: integer(size, 5, 0x20))
LINES = st.lists(st.one_of(INDEXED, REFERRING, NAMED, SIZE), max_size=10).map(b"".join)
ORDINARY = st.lists(st.one_of(st.sampled_from([b"\x88", b"\xbe", b"\xbf"]), NAMED), max_size=10).map(b"".join)


def outcome(decode: Callable[[bytes], object], block: bytes) -> object:
    """What comes of it, comparable."""
    try:
        return decode(block)
    except OversizedHeaderListError:
        return OversizedHeaderListError
    except (HPACKError, IndexError):
        return HPACKError
    except MalformedSection as error:
        return str(error)


def same_as_hpack(blocks: list[bytes], max_size: int) -> None:
    judge, table = Decoder(), Decoder()
    judge.max_header_list_size = 4 * max_size
    decoder = FieldDecoder(table, max_size)
    for block in blocks:
        said = outcome(lambda block: received_section(judge.decode(block, raw=True), max_size), block)
        found = outcome(decoder.decode, block)
        if isinstance(found, tuple):
            found, telling = found
            assert telling == telling_fields(found)
        assert found == said
        if said in (HPACKError, OversizedHeaderListError):
            return  # the end of the connection
        assert table.header_table.dynamic_entries == judge.header_table.dynamic_entries
        assert table.header_table.maxsize == judge.header_table.maxsize


@given(st.lists(LINES | ORDINARY, min_size=1, max_size=6), st.sampled_from([100, 400, 100_000]))
@settings(max_examples=500, deadline=None)
def test_the_decoder_reads_what_hpack_reads(blocks: list[bytes], max_size: int) -> None:
    same_as_hpack(blocks, max_size)


@given(st.lists(ORDINARY, min_size=1, max_size=4), st.randoms(use_true_random=False))
@settings(max_examples=400, deadline=None)
def test_the_decoder_refuses_what_hpack_refuses(blocks: list[bytes], rng: random.Random) -> None:
    block = bytearray(blocks.pop())
    for _ in range(rng.randrange(1, 4)):
        where = rng.randrange(len(block) + 1)
        block[where : where + rng.randrange(3)] = rng.randbytes(rng.randrange(4))
    same_as_hpack([*blocks, bytes(block), *blocks], 1000)


@pytest.mark.parametrize("seed", range(8))
def test_references_mean_the_same_however_many_entries_have_entered(seed: int) -> None:
    """The decoder remembers several in a row, by the entries that they refer to. Their indices are others each time."""
    rng = random.Random(seed)
    named = [b"x-%d" % number for number in range(seed + 2)]
    judge, table = Decoder(), Decoder()
    decoder = FieldDecoder(table, 100_000)
    judge.max_header_list_size = 400_000
    entered = 0
    number = 0
    for number in range(800):
        entries = len(judge.header_table.dynamic_entries)
        since = [entered - rng.choice((1, 2, 60, 63, 64, 65, 66, entered // 64 * 64)) for _ in range(2)]
        wanted = [61 + entered - position for place in since for position in (place, place + 1, place + 2)]
        lines = [b"\x88", *(integer(index, 7, 0x80) for index in wanted if 61 < index <= 61 + entries)]
        for _ in range(rng.choice((0, 1, 1, 1, 2))):
            name = string(rng.choice(named))
            lines.insert(
                rng.randrange(len(lines) + 1), b"\x40" + name + string(b"%d" % (entered % (7 + 64 * (seed % 3))))
            )
            entered += 1
        if number == 600 + 20 * seed:
            lines.insert(0, integer(3000, 5, 0x20))
        block = b"".join(lines)
        said = outcome(lambda block: received_section(judge.decode(block, raw=True), 100_000), block)
        found = outcome(decoder.decode, block)
        if said is HPACKError:
            assert found is HPACKError
            break  # a change of the table's size has made one of the references bad
        assert isinstance(found, tuple)
        assert found[0] == said
        assert table.header_table.dynamic_entries == judge.header_table.dynamic_entries
    assert number >= 600


def test_an_entry_that_has_fallen_out_is_none_even_if_it_is_remembered() -> None:
    decoder = FieldDecoder(Decoder(), 100_000)
    enters = b"\x40" + string(b"x-a") + string(b"1")
    assert decoder.decode(enters + b"\x88\xbe")[0] == [(b"x-a", b"1"), (b":status", b"200"), (b"x-a", b"1")]
    assert decoder.decode(b"\x88\xbe")[0] == [(b":status", b"200"), (b"x-a", b"1")]
    large = b"\x40" + string(b"x-l") + string(b"l" * 2500)
    decoder.decode(large)
    assert decoder.decode(b"\x88\xbf")[0] == [(b":status", b"200"), (b"x-a", b"1")]
    decoder.decode(large)
    with pytest.raises(HPACKError):
        decoder.decode(b"\x88\xc0")


def test_a_table_that_changes_its_size_in_the_middle_is_garbled() -> None:
    """RFC 7541 §4.2: only at the beginning. hpack, which is given the rest, would take it for one."""
    same_as_hpack([b"\x20\x3f\xe1\x1f\x88", b"\x88\x20"], 1000)


@pytest.mark.parametrize("line", [b"\x80\x3e", b"\x80\x3d", b"\x80\x02", b"\x80\xbe\x00", b"\x80"])
def test_a_reference_to_no_entry_is_garbled(line: bytes) -> None:
    """RFC 7541 §6.1: the index 0. It has no second octet, which would be one of the table."""
    same_as_hpack([b"\x40" + string(b"x-a") + string(b"1"), line], 1000)
    same_as_hpack([b"\x40" + string(b"x-a") + string(b"1"), b"\x88" + line], 1000)


def test_blanks_count_also_if_hpack_reads_the_rest() -> None:
    """A field with blanks around its value counts as it came, in every way."""
    blanks = b"\x00" + string(b"x-a") + string(b" " * 100)
    cut_off = b"\x00" + string(b"x-a") + integer(1, 7)
    long = b"\x00" + string(b"x-a") + b"\x7f\x80\x80\x80\x80\x00" + b"v" * 127  # hpack reads such an integer
    for lines in ([blanks, long], [blanks] * 3 + [long], [blanks] * 5, [blanks, cut_off]):
        same_as_hpack([b"".join(lines)], 200)


@given(st.binary(max_size=80) | st.text('abcdef0123456789-"/ ', max_size=80).map(str.encode))
@settings(max_examples=500, deadline=None)
def test_huffmans_code_is_that_of_hpack(text: bytes) -> None:
    coded = huffman.encode(text)
    assert coded == HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(text)
    assert huffman.decode(coded) == text


@given(st.binary(max_size=12) | st.binary(max_size=4).map(lambda end: huffman.encode(b"etag") + end))
@settings(max_examples=400, deadline=None)
def test_what_is_no_huffman_code_is_refused_as_by_hpack(coded: bytes) -> None:
    assert outcome(huffman.decode, coded) == outcome(decode_huffman, coded)
