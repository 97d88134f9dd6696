"""HTTP/0.9 over QUIC (ALPN ``hq-interop``), as the QUIC interop runner speaks it: ``GET /path``, bytes until the end.

No heads, no status, no errors but resets; only the interop endpoint uses it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from allswell._backends.interface import (
    BackPressure,
    BodyReceived,
    CapacityChanged,
    ConnectionBroken,
    Event,
    ExchangeFailed,
    PeerLeaving,
    ResponseCompleted,
    ResponseReceived,
)
from allswell._errors import AllswellError, ExchangeReset, LocalProtocolError, NotProcessed, TransportError
from allswell._messages import Headers, RequestHead, ResponseHead
from allswell._quic.interface import (
    ConnectionTerminated,
    Multiplexer,
    QuicEvent,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
    why_ended,
)

_CANCELLED = 0x10C


class Http09:
    """HTTP/0.9 on one QUIC connection. Every response that begins is a 200."""

    name = "hq"
    http_version = "HTTP/0.9"
    capacity_expected = False
    extended_connect: bool | None = False
    in_order = False
    back_pressure = BackPressure.CREDIT
    kept_idle = math.inf
    says_goodbye = ""
    must_abort = False
    unfinished = False

    def __init__(self, quic: Multiplexer) -> None:
        self._quic = quic
        self._begun: dict[int, bool] = {}  # open exchanges: whether anything of the response came
        self._unread: dict[int, int] = {}
        self._freed: dict[int, int] = {}
        self._max_streams = quic.max_streams
        self._over = False

    def open(self, head: RequestHead, *, end: bool) -> int:
        if self.capacity() <= 0:
            raise NotProcessed(TransportError("no more requests here", operation="write", by="peer"), proven=True)
        if head.method != b"GET" or not end or any(byte <= 0x20 for byte in head.target):
            raise LocalProtocolError("HTTP/0.9 knows GET and nothing else")
        stream_id = self._quic.get_next_available_stream_id()
        self._quic.send_stream_data(stream_id, b"GET " + head.target + b"\r\n", True)
        self._begun[stream_id] = False
        return stream_id

    def send_body(self, exchange: int, data: bytes | memoryview, *, end: bool, trailers: Headers | None = None) -> None:
        raise LocalProtocolError("HTTP/0.9 knows no bodies of requests")

    def send_window(self, exchange: int) -> int:
        return 0

    def unsent(self, exchange: int) -> int:
        return 0

    def consumed(self, exchange: int, credit: int) -> bool:
        credit = min(credit, self._unread.get(exchange, 0))
        self._unread[exchange] = self._unread.get(exchange, 0) - credit
        if not self._unread[exchange]:
            del self._unread[exchange]
        self._quic.credit(credit)
        if exchange in self._begun:
            self._freed[exchange] = self._freed.get(exchange, 0) + credit
            if self._freed[exchange] >= self._quic.stream_window >> 2:
                self._quic.credit_stream(exchange, self._freed.pop(exchange))
        return True

    def cancel(self, exchange: int) -> None:
        if self._forget(exchange):
            self._quic.stop_stream(exchange, _CANCELLED)
            self._quic.reset_stream(exchange, _CANCELLED)
        self.consumed(exchange, self._unread.get(exchange, 0))

    def reprioritize(self, exchange: int, priority: bytes) -> None:
        """There is no such thing."""

    def stop(self, exchange: int) -> None:
        """Its requests have no bodies."""

    def capacity(self) -> int:
        return 0 if self._over else self._quic.streams_left

    @property
    def exhausted(self) -> bool:
        return self._over

    def goodbye(self) -> None:
        """There is none."""

    def ping(self) -> bool:
        self._quic.send_ping(0)
        return True

    def take_output(self) -> bytes:
        return b""

    def go_on(self) -> list[Event]:
        return []

    def receive(self, data: Sequence[QuicEvent]) -> list[Event]:
        out: list[Event] = []
        for event in data:
            if isinstance(event, StreamDataReceived):
                self._on_data(event, out)
            elif isinstance(event, (StreamReset, StopSendingReceived)):
                if self._forget(event.stream_id):
                    self._quic.stop_stream(event.stream_id, _CANCELLED)
                    code = event.error_code
                    reset = ExchangeReset(f"the server reset the exchange (0x{code:x})", code=code, by="peer")
                    out.append(ExchangeFailed(event.stream_id, reset))
            elif isinstance(event, ConnectionTerminated) and not self._over:
                end = event.end
                error = why_ended(end, "the server closed the connection")
                out += self.receive_eof(error)
                out.append(ConnectionBroken(error) if end.code else PeerLeaving())
        if self._quic.max_streams != self._max_streams:
            self._max_streams = self._quic.max_streams
            out.append(CapacityChanged())
        return out

    def receive_eof(self, why: AllswellError | None) -> list[Event]:
        self._over = True
        error = why or TransportError("the QUIC connection is gone", operation="read")
        failed: list[Event] = [
            ExchangeFailed(exchange, error if begun else NotProcessed(error, proven=False))
            for exchange, begun in self._begun.items()
        ]
        self._begun.clear()
        self._unread.clear()
        self._freed.clear()
        return failed

    def _on_data(self, event: StreamDataReceived, out: list[Event]) -> None:
        stream_id, data = event.stream_id, event.data
        begun = self._begun.get(stream_id)
        if begun is None:
            self._quic.credit(len(data))
            return
        if not begun:
            self._begun[stream_id] = True
            out.append(ResponseReceived(stream_id, ResponseHead(200, [], b"HTTP/0.9")))
        if data:
            self._unread[stream_id] = self._unread.get(stream_id, 0) + len(data)
            out.append(BodyReceived(stream_id, data, len(data)))
        if event.end_stream:
            self._forget(stream_id)
            out.append(ResponseCompleted(stream_id, []))

    def _forget(self, stream_id: int) -> bool:
        self._freed.pop(stream_id, None)
        return self._begun.pop(stream_id, None) is not None
