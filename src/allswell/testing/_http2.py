"""HTTP/2 at an origin, without I/O: hyperframe's frames, hpack's compression, and the windows.

It does not use h2, for two reasons. h2 enforces the rules, but this engine must also break them. And after a GOAWAY h2
neither reads nor writes, but exchanges that are under way must still be answered.
"""

from __future__ import annotations

from collections.abc import Iterator

from hpack import Decoder, Encoder, HPACKError
from hyperframe.exceptions import HyperframeError
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from allswell.testing._engine import Body, Broken, Complete, GivenUp, Head, Heard, Leaving, Streams
from allswell.testing._script import Response

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_INITIAL_WINDOW, _MAX_FRAME = 65535, 16384
_FRAME_HEAD, _HEADER_TABLE = 9, 4096
_INTERNAL_ERROR, _REFUSED_STREAM = 2, 7


class Http2:
    """The engine of one connection."""

    version = "HTTP/2"
    last = False  # HTTP/2 has GOAWAY for that

    def __init__(self) -> None:
        self._encoder, self._decoder = Encoder(), Decoder()
        self._out = bytearray()
        self._in = bytearray()
        self._preface = len(PREFACE)  # how many bytes of it are still to come
        self._block: tuple[int, bytearray, bool] | None = (
            None  # a header section that is not complete: stream, data, END_STREAM
        )
        self._window = _INITIAL_WINDOW
        self._initial = _INITIAL_WINDOW
        self._windows: dict[int, int] = {}  # of the streams that we have not ended
        self._highest = 0
        self._say(SettingsFrame(0, settings={SettingsFrame.MAX_CONCURRENT_STREAMS: 100}))

    @property
    def streams(self) -> Streams:
        """This engine has these methods itself."""
        return self

    def _say(self, *frames: Frame) -> None:
        for frame in frames:
            self._out += frame.serialize()

    @property
    def unfinished(self) -> str:
        """The beginning of a frame, of a header section, or of the preface."""
        if self._preface:
            return "the connection preface"
        return "a frame" if self._in else "a header section" if self._block is not None else ""

    def take(self) -> bytes:
        """See the base class."""
        out = bytes(self._out)
        self._out.clear()
        return out

    def receive(self, data: bytes) -> Iterator[Heard]:
        """See the base class."""
        self._in += data
        if self._preface:
            if len(self._in) < self._preface:
                return
            if not self._in.startswith(PREFACE):
                yield Broken("the connection preface is not HTTP/2's")
                return
            del self._in[: len(PREFACE)]
            self._preface = 0
        while len(self._in) >= _FRAME_HEAD:
            try:
                frame, size = Frame.parse_frame_header(memoryview(bytes(self._in[:_FRAME_HEAD])))
                if size > _MAX_FRAME:
                    yield Broken(f"a frame of {size} bytes, and at most {_MAX_FRAME} are allowed")
                    return
                if len(self._in) < _FRAME_HEAD + size:
                    return
                frame.parse_body(memoryview(bytes(self._in[_FRAME_HEAD : _FRAME_HEAD + size])))
                del self._in[: _FRAME_HEAD + size]
                yield from self._on_frame(frame, size)
            except (HyperframeError, HPACKError) as error:
                yield Broken(f"{type(error).__name__}: {error}")
                return

    def _on_frame(self, frame: Frame, size: int) -> Iterator[Heard]:
        if self._block is not None and not isinstance(frame, ContinuationFrame):
            yield Broken("a header section was interrupted by another frame")
        elif isinstance(frame, HeadersFrame):
            self._block = (frame.stream_id, bytearray(frame.data), "END_STREAM" in frame.flags)
            yield from self._on_block("END_HEADERS" in frame.flags)
        elif isinstance(frame, ContinuationFrame):
            if self._block is None or self._block[0] != frame.stream_id:
                yield Broken("CONTINUATION without a header section to continue")
            else:
                self._block[1].extend(frame.data)
                yield from self._on_block("END_HEADERS" in frame.flags)
        elif isinstance(frame, DataFrame):
            if size:
                self._say(WindowUpdateFrame(0, window_increment=size))
                self._say(WindowUpdateFrame(frame.stream_id, window_increment=size))
            yield Body(frame.stream_id, frame.data)
            if "END_STREAM" in frame.flags:
                yield Complete(frame.stream_id)
        elif isinstance(frame, RstStreamFrame):
            yield GivenUp(frame.stream_id, "RST_STREAM", frame.error_code)
        elif isinstance(frame, GoAwayFrame):
            yield Leaving(frame.last_stream_id, frame.error_code)
        else:
            self._on_other(frame)

    def _on_other(self, frame: Frame) -> None:
        if isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
            initial = frame.settings.get(SettingsFrame.INITIAL_WINDOW_SIZE, self._initial)
            for stream in self._windows:
                self._windows[stream] += initial - self._initial
            self._initial = initial
            if (size := frame.settings.get(SettingsFrame.HEADER_TABLE_SIZE)) is not None:
                self._encoder.header_table_size = min(size, _HEADER_TABLE)
            self._say(SettingsFrame(0, flags=["ACK"]))
        elif isinstance(frame, PingFrame) and "ACK" not in frame.flags:
            self._say(PingFrame(0, opaque_data=frame.opaque_data, flags=["ACK"]))
        elif isinstance(frame, WindowUpdateFrame):
            if frame.stream_id == 0:
                self._window += frame.window_increment
            elif frame.stream_id in self._windows:
                self._windows[frame.stream_id] += frame.window_increment

    def _on_block(self, finished: bool) -> Iterator[Heard]:
        if not finished:
            return
        assert self._block is not None
        (stream, data, end), self._block = self._block, None
        fields = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in self._decoder.decode(bytes(data), raw=True)
        ]
        if stream > self._highest:  # else they are trailers
            self._highest = stream
            self._windows[stream] = self._initial
            pseudo = dict(fields)
            others = tuple((name, value) for name, value in fields if not name.startswith(":"))
            if ":method" not in pseudo or ":path" not in pseudo:
                yield Broken("a request without :method or :path")
                return
            yield Head(stream, pseudo[":method"], pseudo[":path"], others)
        if end:
            yield Complete(stream)

    def head(self, stream: int, method: str, response: Response, *, last: bool) -> None:
        """See the base class."""
        fields = [(":status", str(response.status))]
        fields += [(name.lower(), value) for name, value in response.fields]
        if response.framing == "length" and response.status not in (204, 304):
            fields.append(("content-length", str(len(response.body))))
        flags = ["END_HEADERS"]
        if not response.body or response.bodiless(method):
            flags.append("END_STREAM")
            del self._windows[stream]
        self._say(HeadersFrame(stream, self._encoder.encode(fields), flags=flags))

    def room(self, stream: int) -> int:
        """As much as the client's windows and one frame allow."""
        return max(0, min(self._window, self._windows.get(stream, 0), _MAX_FRAME))

    def body(self, stream: int, data: bytes) -> None:
        """See the base class."""
        self._window -= len(data)
        self._windows[stream] -= len(data)
        self._say(DataFrame(stream, data))

    def finish(self, stream: int) -> None:
        """See the base class."""
        if self._windows.pop(stream, None) is not None:
            self._say(DataFrame(stream, b"", flags=["END_STREAM"]))

    def done(self, stream: int) -> Iterator[Heard]:
        """The exchange is over."""
        self._windows.pop(stream, None)
        return iter(())

    def refuse(self, stream: int) -> None:
        """Send RST_STREAM(REFUSED_STREAM)."""
        self._say(RstStreamFrame(stream, error_code=_REFUSED_STREAM))

    def reset(self, stream: int) -> None:
        """Send RST_STREAM(INTERNAL_ERROR)."""
        self._say(RstStreamFrame(stream, error_code=_INTERNAL_ERROR))

    def goaway(self, last: int) -> None:
        """Send GOAWAY(NO_ERROR)."""
        self._say(GoAwayFrame(0, last_stream_id=last))
