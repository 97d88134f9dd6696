"""One exchange on an HTTP/2 connection: its two halves, its windows, and the checks of its response."""

from __future__ import annotations

from dataclasses import dataclass, field

from h2.errors import ErrorCodes

from allswell._backends.http2_errors import PeerError, StreamError
from allswell._fields import MalformedSection, response_section, trailer_section
from allswell._halves import (
    RECEIVE_ENDED,
    RECEIVE_HEAD,
    SEND_BODY,
    SEND_ENDED,
    Halves,
    LengthError,
    ReceiveHalf,
    SendHalf,
)
from allswell._messages import Headers, ResponseHead

_WRONG_LENGTH = "a body that is not as long as its content-length"  # RFC 9113 §8.1.1


class Window:
    """What a peer may still send, on a stream or on the connection (RFC 9113 §6.9); it opens as content is consumed.

    Credit goes back in portions of half a window: often enough to keep the peer sending, seldom enough to cost nothing.

    :ivar left: how many bytes it may send now.
    """

    __slots__ = ("_credit", "_portion", "left")

    def __init__(self, size: int) -> None:
        self.left = size
        self._credit = 0
        self._portion = max(1, size // 2)

    def receive(self, size: int) -> None:
        """:raises PeerError: when the peer sent more than it may (§6.9.1)."""
        self.left -= size
        if self.left < 0:
            raise PeerError(ErrorCodes.FLOW_CONTROL_ERROR, "the peer sent more than the window allows")

    def consume(self, size: int) -> int:
        """Note that so many bytes were consumed. Return by how much to open the window now; 0: not yet."""
        self._credit += size
        if self._credit < self._portion:
            return 0
        increment, self._credit = self._credit, 0
        self.left += increment
        return increment


class Stream(Halves):
    """A stream.

    :param window: how many bytes the peer may send here at first.
    :ivar send_window_opened: the window that limits what we send, less the peer's SETTINGS_INITIAL_WINDOW_SIZE.
    """

    __slots__ = ("_window", "id", "send_window_opened")

    def __init__(self, id_: int, *, window: int, method: bytes, to_send: int | None, end: bool) -> None:
        self.sending = SendHalf(SEND_ENDED if end else SEND_BODY, to_send)
        self.receiving = ReceiveHalf(method)
        self.id = id_
        self.send_window_opened = 0
        self._window: Window | int = window  # most responses have one frame of content: they need no window

    @property
    def window(self) -> Window:
        """What the peer may still send here."""
        window = self._window
        if not isinstance(window, Window):
            window = self._window = Window(window)
        return window

    @property
    def window_left(self) -> int:
        """How many bytes that is."""
        window = self._window
        return window.left if isinstance(window, Window) else window

    def receive_head(self, fields: Headers, telling: Headers, end: bool) -> ResponseHead:
        """:raises StreamError: for a malformed head."""
        try:
            status, headers, content = response_section(fields, self.receiving.method, telling)
        except MalformedSection as error:
            raise StreamError(str(error)) from None
        if status < 200:
            if end:
                raise StreamError("an informational response that ends its stream")  # RFC 9113 §8.1
            return ResponseHead(status, headers, b"HTTP/2")
        self.receiving.begin(status, content)
        if end:
            self._receive_end()
        return ResponseHead(status, headers, b"HTTP/2")

    def receive_data(self, size: int, end: bool) -> None:
        """:raises StreamError: for content that may not come here or now."""
        half = self.receiving
        if half.state is RECEIVE_ENDED:
            raise StreamError("a frame after the end of its stream", ErrorCodes.STREAM_CLOSED)
        if half.state is RECEIVE_HEAD:
            raise StreamError("a body before its response")
        try:
            half.count(size)
        except LengthError:
            raise StreamError(_WRONG_LENGTH) from None
        if end:
            self._receive_end()

    def receive_trailers(self, fields: Headers, end: bool) -> None:
        """:raises StreamError: for a malformed trailer section."""
        if self.receiving.state is RECEIVE_ENDED:
            raise StreamError("a frame after the end of its stream", ErrorCodes.STREAM_CLOSED)
        if self.receiving.tunnel:
            raise StreamError("a header section in a tunnel")  # RFC 9113 §8.5
        if not end:
            raise StreamError("a header section in the middle of a body")  # RFC 9113 §8.1
        try:
            trailer_section(fields)
        except MalformedSection as error:
            raise StreamError(str(error)) from None
        self._receive_end()

    def _receive_end(self) -> None:
        try:
            self.receiving.end()
        except LengthError:
            raise StreamError(_WRONG_LENGTH) from None


class Run:
    """DATA frames of one stream that came in a row. They make one event.

    :ivar contents: of the frames, in order, without those that are empty.
    :ivar credit: what they take of the windows, in bytes. (Padding counts.)
    """

    __slots__ = ("contents", "credit", "stream")

    def __init__(self, stream: Stream, contents: list[memoryview], credit: int) -> None:
        self.stream = stream
        self.contents = contents
        self.credit = credit

    def joined(self) -> bytes:
        """The content, copied once."""
        contents = self.contents
        return bytes(contents[0]) if len(contents) == 1 else b"".join(contents)


@dataclass(slots=True)
class Held:
    """A request that may not go yet. It has no window, so nothing of its body can have come but the end.

    :ivar trailers: what ends the body.
    """

    protocol: bytes | None
    fields: Headers
    stream: Stream
    trailers: Headers = field(default_factory=list)
