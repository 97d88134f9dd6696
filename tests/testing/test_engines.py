"""HTTP/2 at the origin, without a socket: what a client's settings demand of it, and bytes that come one by one."""

from __future__ import annotations

from hpack import Decoder, Encoder
from hyperframe.frame import DataFrame, Frame, HeadersFrame, PingFrame, SettingsFrame, WindowUpdateFrame

from allswell.testing import Response
from allswell.testing._engine import Body, Complete, Head
from allswell.testing._http2 import PREFACE, Http2

_FIELDS = [(":method", "POST"), (":scheme", "https"), (":authority", "a"), (":path", "/x"), ("one", "two")]


def frames(data: bytes) -> list[Frame]:
    """All frames in it."""
    found = []
    while data:
        frame, size = Frame.parse_frame_header(memoryview(data[:9]))
        frame.parse_body(memoryview(data[9 : 9 + size]))
        found.append(frame)
        data = data[9 + size :]
    return found


def request(*settings: dict[int, int], body: bytes = b"") -> bytes:
    """A client's first flight, with a request on stream 1."""
    said: list[Frame] = [SettingsFrame(0, settings=each) for each in settings]
    flags = ["END_HEADERS"] if body else ["END_HEADERS", "END_STREAM"]
    said.append(HeadersFrame(1, Encoder().encode(_FIELDS), flags=flags))
    if body:
        said.append(DataFrame(1, body, flags=["END_STREAM"]))
    return PREFACE + b"".join(each.serialize() for each in said)


def test_byte_by_byte() -> None:
    engine = Http2()
    heard = [each for byte in request({}, body=b"abc") for each in engine.receive(bytes([byte]))]
    assert heard == [Head(1, "POST", "/x", (("one", "two"),)), Body(1, b"abc"), Complete(1)]
    credit = [each for each in frames(engine.take()) if isinstance(each, WindowUpdateFrame)]
    assert [(each.stream_id, each.window_increment) for each in credit] == [(0, 3), (1, 3)]


def test_a_client_that_keeps_no_table() -> None:
    """SETTINGS_HEADER_TABLE_SIZE of 0: nothing may refer to what was said before (RFC 9113, section 6.5.2)."""
    engine = Http2()
    list(engine.receive(request({SettingsFrame.HEADER_TABLE_SIZE: 0})))
    engine.take()
    decoder = Decoder()
    decoder.max_allowed_table_size = 0
    for _ in range(2):
        engine.head(1, "HEAD", Response(headers={"X-Same": "value"}), last=False)
        engine._windows[1] = 1  # as for another stream
        [head] = frames(engine.take())
        assert isinstance(head, HeadersFrame)
        assert dict(decoder.decode(head.data, raw=True))[b"x-same"] == b"value"


def test_windows() -> None:
    """A body goes as far as the client's windows do; a change of the initial one counts for what is under way."""
    engine = Http2()
    list(engine.receive(request({SettingsFrame.INITIAL_WINDOW_SIZE: 10})))
    engine.head(1, "POST", Response(body=bytes(100)), last=False)
    assert engine.room(1) == 10
    engine.body(1, bytes(10))
    assert engine.room(1) == 0
    list(engine.receive(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 15}).serialize()))
    assert engine.room(1) == 5
    list(engine.receive(WindowUpdateFrame(1, window_increment=85).serialize()))
    assert engine.room(1) == 90
    engine.body(1, bytes(90))
    engine.finish(1)
    data = [each for each in frames(engine.take()) if isinstance(each, DataFrame)]
    assert sum(len(each.data) for each in data) == 100
    assert ["END_STREAM" in each.flags for each in data] == [False, False, True]


def test_pings_are_answered() -> None:
    engine = Http2()
    list(engine.receive(request({})))
    engine.take()
    list(engine.receive(PingFrame(0, opaque_data=b"12345678").serialize()))
    [answer] = frames(engine.take())
    assert isinstance(answer, PingFrame)
    assert (answer.opaque_data, "ACK" in answer.flags) == (b"12345678", True)
