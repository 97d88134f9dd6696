"""A pretend HTTP/2 server without a network: h2's server side for what is proper, hyperframe for what is not."""

from __future__ import annotations

from collections.abc import Sequence

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import Event as ServerEvent
from h2.settings import SettingCodes, Settings
from hpack import Encoder
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame, RstStreamFrame, SettingsFrame

from allswell._backends.http2 import Http2
from allswell._backends.http2_core import CONNECTION_WINDOW, INITIAL_WINDOW
from allswell._backends.interface import BodyReceived, Event
from allswell._messages import Headers, RequestHead
from tests.support.taken import content, taken

Fields = Sequence[tuple[bytes, bytes]]
OK: Fields = [(b":status", b"200"), (b"server", b"pretend")]


def get(path: bytes = b"/", headers: Headers | None = None, method: bytes = b"GET") -> RequestHead:
    return RequestHead(method, b"https", b"example.org", path, headers or [(b"Host", b"example.org")])


def merge(events: list[Event]) -> list[Event]:
    """Consecutive pieces of one body as one: how it was cut up is not part of what it means."""
    merged: list[Event] = []
    for event in events:
        last = merged[-1] if merged else None
        if isinstance(event, BodyReceived) and isinstance(last, BodyReceived) and last.exchange == event.exchange:
            merged[-1] = BodyReceived(event.exchange, content(last) + content(event), last.credit + event.credit)
        else:
            merged.append(event)
    return merged


def encode_frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Any frame at all, legal or not."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


class Link:
    """A client's backend and a server, joined.

    :param step: deliver to the client in pieces of this many bytes (``None``: all at once).
    :param greet: exchange SETTINGS at once.
    """

    def __init__(
        self,
        *,
        step: int | None = None,
        settings: dict[SettingCodes, int] | None = None,
        greet: bool = True,
        max_header_size: int = 65536,
        initial_window: int = INITIAL_WINDOW,
        connection_window: int = CONNECTION_WINDOW,
    ) -> None:
        self.client = Http2(
            max_header_size=max_header_size, initial_window=initial_window, connection_window=connection_window
        )
        self.step = step
        self.server = H2Connection(
            H2Configuration(
                client_side=False,
                validate_inbound_headers=True,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.server.local_settings = Settings(client=False, initial_values=settings or {})
        self.server.initiate_connection()
        self.encoder = Encoder()
        self.sent = b""
        if greet:
            self.to_server()
            self.to_client()
            self.to_server()

    def to_server(self) -> list[ServerEvent]:
        """What the client has to say reaches the server."""
        output = self.client.take_output()
        self.sent += output
        return self.server.receive_data(output)

    def deliver(self, data: bytes) -> list[Event]:
        """These bytes reach the client."""
        step = self.step or len(data) or 1
        events: list[Event] = []
        for start in range(0, len(data), step):
            piece = bytearray(data[start : start + step])
            with memoryview(piece) as view:
                events += taken(self.client, view)
            piece[:] = b"\xaa" * len(piece)  # the reader's buffer is used again
            piece.clear()  # a BufferError, if a view of it was kept
        return merge(events)

    def to_client(self) -> list[Event]:
        """What the server has to say reaches the client."""
        return self.deliver(self.server.data_to_send())

    def frames(self, *frames: Frame) -> list[Event]:
        """These frames reach the client, whatever the server thinks of it."""
        return self.deliver(b"".join(frame.serialize() for frame in frames))

    def request(self, head: RequestHead | None = None, *, end: bool = True) -> int:
        exchange = self.client.open(head or get(), end=end)
        self.to_server()
        return exchange

    def headers(self, stream: int, fields: Fields = OK, *flags: str) -> HeadersFrame:
        return HeadersFrame(stream, self.encoder.encode(fields), flags=["END_HEADERS", *flags])

    def output_frames(self) -> list[Frame]:
        """The client's output since the last look, as frames."""
        return frames(self.client.take_output())


def frames(output: bytes) -> list[Frame]:
    """Whole frames."""
    found = []
    while output:
        frame, length = Frame.parse_frame_header(memoryview(output[:9]))
        frame.parse_body(memoryview(output[9 : 9 + length]))
        found.append(frame)
        output = output[9 + length :]
    return found


def data(stream: int, content: bytes = b"", *flags: str) -> DataFrame:
    return DataFrame(stream, content, flags=list(flags))


def goaway(last: int, code: int = 0, debug: bytes = b"") -> GoAwayFrame:
    return GoAwayFrame(0, last_stream_id=last, error_code=code, additional_data=debug)


def rst(stream: int, code: int) -> RstStreamFrame:
    return RstStreamFrame(stream, error_code=code)


def settings(**values: int) -> SettingsFrame:
    return SettingsFrame(0, settings={int(SettingCodes[name]): value for name, value in values.items()})
