"""The short ways of HTTP/2, and who judges them: h2 itself, and the same said at greater length.

We write HEADERS and DATA, open windows and read responses by ourselves, and give h2 what is not ordinary. Whatever
happens, a plain h2 connection that sees all of it must come to the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hpack import Decoder, Encoder
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, GoAwayFrame, HeadersFrame
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from allswell._backends.http2 import Http2
from allswell._backends.interface import ConnectionBroken, Event
from allswell._messages import Headers, RequestHead
from tests.backends.h2_peer import encode_frame, get
from tests.backends.test_http2_hostile import shape
from tests.support.taken import taken

HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0x1, 0x3, 0x4, 0x6, 0x8
INITIAL_WINDOW = 65_535


class Both:
    """Our backend and a plain h2 connection, which are told the same."""

    def __init__(self) -> None:
        self.ours = Http2(max_header_size=65_536, initial_window=INITIAL_WINDOW, connection_window=INITIAL_WINDOW)
        self.judge = H2Connection(
            H2Configuration(
                validate_inbound_headers=False, validate_outbound_headers=False, normalize_outbound_headers=False
            )
        )
        self.judge.local_settings = Settings(client=True, initial_values={SettingCodes.ENABLE_PUSH: 0})
        self.judge.initiate_connection()
        self.decoders = Decoder(), Decoder()
        self.streams: list[int] = []
        self.broken = False
        self.ours.take_output()
        self.judge.clear_outbound_data_buffer()
        self.receive(encode_frame(SETTINGS, 0, 0, b""))

    def receive(self, frame: bytes) -> list[Event]:
        """The peer says it."""
        _ = self.judge.open_outbound_streams  # (this is what makes h2 forget those that are over)
        events = taken(self.ours, memoryview(frame))
        try:
            self.judge.receive_data(frame)
        except ProtocolError:
            self.broken = True
        assert any(isinstance(event, ConnectionBroken) for event in events) == self.broken
        self.compare()
        return events

    def open(self, size: int, end: bool) -> None:
        if self.ours.capacity():
            head = RequestHead(b"POST", b"https", b"a.example", b"/%d" % size, [(b"x-long", b"v" * size)])
            stream = self.ours.open(head, end=end)
            fields = [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"a.example")]
            fields += [(b":path", b"/%d" % size), (b"x-long", b"v" * size)]
            self.judge.send_headers(stream, fields, end_stream=end)
            self.streams.append(stream)
        self.compare()

    def send(self, number: int, size: int, ending: str) -> None:
        """Send so much, or as much as may be."""
        end = bool(ending)
        stream = self.stream(number)
        window = self.ours.send_window(stream)
        data = b"d" * min(size, window)
        given = memoryview(data) if len(data) % 2 else data
        if not window and not (stream in self.ours._streams and self.ours._streams[stream].sending.open):
            return
        fields: Headers = [(b"x-sum", b"1")] if ending == "trailers" else []
        last = end and not fields
        self.ours.send_body(stream, given, end=end, trailers=fields)
        most = self.judge.max_outbound_frame_size
        pieces = [data[start : start + most] for start in range(0, len(data), most)] or [b""][: not fields]
        for piece in pieces:
            if piece or last:
                self.judge.send_data(stream, piece, end_stream=last and piece is pieces[-1])
        if fields:
            self.judge.send_headers(stream, fields, end_stream=True)
        self.compare()

    def respond(self, number: int) -> None:
        stream = self.stream(number)
        if stream in self.ours._streams and not self.ours._streams[stream].receiving.over:
            self.receive(encode_frame(HEADERS, 0x5, stream, b"\x88"))

    def stream(self, number: int) -> int:
        return self.streams[number % len(self.streams)] if self.streams else 1

    def compare(self) -> None:
        """What went out is the same, and so is what may."""
        most = self.judge.max_outbound_frame_size
        said = [
            list(meant(output, decoder, most))
            for output, decoder in zip((self.ours.take_output(), self.judge.data_to_send()), self.decoders, strict=True)
        ]
        assert said[0] == said[1]
        if self.broken:
            return
        for id_, stream in self.ours._streams.items():
            if stream.sending.open:
                assert self.ours.send_window(id_) == max(0, self.judge.local_flow_control_window(id_))
                assert self.ours._send_window_of(stream) == self.judge.streams[id_].outbound_flow_control_window


def meant(output: bytes, decoder: Decoder, most: int) -> Iterator[tuple[Any, ...]]:
    """What frames say: sections decoded, runs of DATA as one."""
    block, ends, data = b"", False, b""
    while output:
        frame, length = Frame.parse_frame_header(memoryview(output[:9]))
        assert length <= most
        frame.parse_body(memoryview(output[9 : 9 + length]))
        output = output[9 + length :]
        if isinstance(frame, DataFrame):
            data += frame.data
            if "END_STREAM" in frame.flags or not output:
                yield DataFrame, frame.stream_id, data, "END_STREAM" in frame.flags
                data = b""
        elif isinstance(frame, HeadersFrame | ContinuationFrame):
            block += frame.data
            ends = ends or "END_STREAM" in frame.flags
            if data:
                yield DataFrame, frame.stream_id, data, False
                data = b""
            if "END_HEADERS" in frame.flags:
                yield HeadersFrame, frame.stream_id, list(decoder.decode(block, raw=True)), ends
                block, ends = b"", False
        elif isinstance(frame, GoAwayFrame):
            yield GoAwayFrame, frame.error_code
        else:
            yield type(frame), frame.stream_id, frame.serialize_body(), tuple(frame.flags)


def setting(both: Both, code: SettingCodes, value: int) -> None:
    both.receive(encode_frame(SETTINGS, 0, 0, int(code).to_bytes(2, "big") + value.to_bytes(4, "big")))


def reset(both: Both, number: int, code: int) -> None:
    both.receive(encode_frame(RST_STREAM, 0, both.stream(number), code.to_bytes(4, "big")))


def ping(both: Both) -> None:
    both.receive(encode_frame(PING, 0, 0, b"12345678"))


def window_update(both: Both, number: int | None, increment: int) -> None:
    stream = 0 if number is None else both.stream(number)
    both.receive(encode_frame(WINDOW_UPDATE, 0, stream, increment.to_bytes(4, "big")))


NUMBER = st.integers(0, 2)
INCREMENT = st.sampled_from([1, 1000, 70_000, 2**30]) | st.sampled_from([0, 2**31 - 65_536, 2**31 - 1])
WINDOW = st.sampled_from([0, 1, 1000, 65_535, 100_000, 2**30]) | st.sampled_from([0, 2**31 - 1, 2**31])
FRAME_SIZE = st.sampled_from([16_384, 20_000, 30_000, 2**24 - 1, 16_383])
SIZE = st.sampled_from([0, 1, 1000, 20_001, 10**6])

Step = Callable[[Both], object]


def step(function: Callable[..., object], *given: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    return st.tuples(*given).map(lambda values: lambda both: function(both, *values))


STEP = st.one_of(
    step(Both.open, st.sampled_from([0, 100, 17_000, 40_000]), st.booleans()),
    step(Both.send, NUMBER, SIZE, st.sampled_from(["", "", "end", "trailers"])),
    step(window_update, st.none() | NUMBER, INCREMENT),
    step(window_update, NUMBER, INCREMENT),
    step(setting, st.just(SettingCodes.INITIAL_WINDOW_SIZE), WINDOW),
    step(setting, st.just(SettingCodes.MAX_FRAME_SIZE), FRAME_SIZE),
    step(reset, NUMBER, st.integers(0, 14)),
    step(Both.respond, NUMBER),
    step(ping),
)


@given(st.lists(STEP, min_size=4, max_size=25))
@hypothesis_settings(max_examples=150, deadline=None)
def test_we_say_and_may_say_what_h2_would(steps: list[Step]) -> None:
    both = Both()
    both.open(0, False)
    for step in steps:
        if not both.broken:
            step(both)


# What is received: the same, said at greater length, goes the long way

BLOCK = st.sampled_from(
    [
        [(b":status", b"200")],
        [(b":status", b"200"), (b"content-length", b"300"), (b"etag", b'"1"')],
        [(b":status", b"200"), (b"content-length", b"10"), (b"x-a", b"b" * 50)],
        [(b":status", b"103"), (b"link", b"</a>")],
        [(b":status", b"204")],
        [(b"x-sum", b"1")],
        [(b":status", b"200"), (b"te", b"x")],
        [(b":status", b"200"), (b"x-large", b"x" * 3000)],
    ]
)


class Said(NamedTuple):
    """A frame of a response: a header section, or a piece of body where that is ``None``."""

    stream: int
    fields: Headers | None
    size: int
    end: bool


SAID = st.builds(
    Said, st.sampled_from([1, 3, 5]), st.none() | BLOCK, st.sampled_from([0, 1, 10, 100, 290, 5000]), st.booleans()
)


def ordinary(start: int) -> st.SearchStrategy[list[Said]]:
    """A response that may well be right."""
    pieces = st.lists(st.sampled_from([1, 10, 100, 290]), max_size=8)
    return st.tuples(BLOCK, pieces).map(
        lambda given: [
            Said(start, given[0], 0, end=not given[1]),
            *(Said(start, None, size, end=False) for size in given[1][:-1]),
            *(Said(start, None, size, end=True) for size in given[1][-1:]),
        ]
    )


RESPONSES = st.tuples(
    st.tuples(ordinary(1), ordinary(3), ordinary(5)).map(lambda given: [said for each in given for said in each]),
    st.lists(SAID, max_size=3),
    st.randoms(use_true_random=False),
    st.integers(0, 3),
).map(lambda given: mixed(*given))


def mixed(said: list[Said], more: list[Said], rng: random.Random, swaps: int) -> list[Said]:
    """The same, with something more in it, and not in this order."""
    said = [*said]
    for each in more:
        said.insert(rng.randrange(len(said) + 1), each)
    for _ in range(swaps):
        one, other = rng.randrange(len(said)), rng.randrange(len(said))
        said[one], said[other] = said[other], said[one]
    return said


def at_length(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """The same frame, with padding, priority, and the section in two."""
    padded = bytes((3,)) + payload + bytes(3)
    if kind != HEADERS:
        return encode_frame(kind, flags | 0x8, stream, padded)
    first = bytes((2,)) + b"\0\0\0\0\1" + payload[:1] + bytes(2)
    return encode_frame(1, flags & 0x1 | 0x28, stream, first) + encode_frame(9, 0x4, stream, payload[1:])


def frames(said: list[Said], form: Callable[[int, int, int, bytes], bytes]) -> list[bytes]:
    encoder = Encoder()
    return [
        form(0, int(each.end), each.stream, b"d" * each.size)
        if each.fields is None
        else form(HEADERS, 0x4 | each.end, each.stream, encoder.encode(each.fields))
        for each in said
    ]


def meaning(portions: list[bytes], window: int) -> tuple[list[object], bytes]:
    """What they mean to us, and what we say to them."""
    client = Http2(max_header_size=2000, initial_window=window, connection_window=70_000)
    for _ in range(3):
        client.open(get(), end=True)
    taken(client, memoryview(encode_frame(SETTINGS, 0, 0, b"")))
    client.take_output()
    events: list[Event] = []
    for portion in portions:
        events += taken(client, memoryview(portion))
    return shape(events), client.take_output()


@given(RESPONSES)
@hypothesis_settings(max_examples=150, deadline=None)
def test_the_same_at_greater_length_means_the_same(said: list[Said]) -> None:
    plain, long = frames(said, encode_frame), frames(said, at_length)
    assert meaning([b"".join(plain)], 2**20) == meaning([b"".join(long)], 2**20)


def test_a_frame_of_malformed_content_opens_no_window() -> None:
    """It is given back to the connection when its stream ends, and not taken for padding."""
    said = [Said(1, [(b":status", b"200"), (b"content-length", b"300")], 0, False), Said(1, None, 290, True)]
    _, output = meaning(frames(said, encode_frame), 300)
    assert output == encode_frame(RST_STREAM, 0, 1, b"\0\0\0\1")


@given(RESPONSES, st.sampled_from([50, 300, 1000, 2**20]))
@hypothesis_settings(max_examples=150, deadline=None)
def test_frames_in_a_row_mean_what_each_means(said: list[Said], window: int) -> None:
    """Content-Length and windows end a row where they end a frame."""
    plain = b"".join(frames(said, encode_frame))
    whole = meaning([plain], window)
    assert whole == meaning(frames(said, encode_frame), window)
    assert whole == meaning([plain[start : start + 1] for start in range(len(plain))], window)
