"""Raw byte streams on an exchange, after an upgrade or CONNECT.

:class:`NetworkStream` is the ``network_stream`` extension that httpx2 documents. httpx2's WebSocket client uses it.
:class:`ExchangeStream` is the same in the form of a :class:`ByteStream`, so that filters (TLS) can be on top of it.
"""

from __future__ import annotations

import math
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal

from allswell._clock import monotonic
from allswell._connection.connection import Connection
from allswell._connection.exchange import Exchange
from allswell._connection.tunnel import Tunnel
from allswell._deadline import Deadline
from allswell._errors import AllswellError, LocalProtocolError, Timeout, TransportError
from allswell._filters.interface import ByteStream
from allswell._filters.stack import Stack
from allswell._halves import Receive
from allswell._report import LayerEnd, Outcome
from allswell._request.extended_connect import WEBSOCKET
from allswell._tasks import Limit

StartTls = Callable[[ByteStream, ssl.SSLContext, str], ByteStream]


#: What ends one half of a tunnel that is a stream. (QUIC's FIN is a bit of a STREAM frame.)
_ENDS = {"HTTP/2": "END_STREAM", "HTTP/3": "FIN"}


#: How many seconds a WebSocket server has to end its stream after we have closed the session.
_SERVER_ENDS_WITHIN = 0.5


class ExchangeStream(ByteStream):
    """The bytes of an exchange that has become a tunnel, as a stream for filters on top.

    Over HTTP/3 it also carries HTTP datagrams. See the protocol ``HttpDatagrams`` in `_filters/connect_udp.py`.
    """

    name = "tunnel"

    def __init__(self, exchange: Exchange[Connection]) -> None:
        self.largest_datagram = exchange.connection.datagram_room(exchange)
        assert exchange.tunnel is not None
        self._exchange = exchange
        self._tunnel = exchange.tunnel
        self._outgoing = bytearray()
        self._datagrams: deque[bytes] = deque()
        self._failed = False
        self._heard = False  # whether the peer has ended the stream
        self._end: LayerEnd | None = None

    async def connect(self) -> None:
        """Do nothing: the tunnel is open."""

    def receive_nowait(self) -> memoryview | None:
        try:
            data = self._exchange.receive_nowait()
        except AllswellError as error:
            raise self._lost("read", error) from error
        return memoryview(data) if data is not None else None

    async def wait_readable(self) -> None:
        await self._exchange.readable()

    def listen(self, function: Callable[[], None] | None) -> bool:
        return self._exchange.listen(function)

    def transmit(self, data: bytes | memoryview) -> None:
        if data and not self._failed:
            self._outgoing += data
            if len(self._outgoing) == len(data):
                self._pump()

    @property
    def dead(self) -> bool:
        return self._failed

    def send_datagrams(self, payloads: Sequence[bytes]) -> None:
        if not self._failed:
            self._datagrams += payloads
            self._pump()

    def take_datagrams(self) -> list[bytes]:
        return self._exchange.take_datagrams()

    @property
    def unsent(self) -> int:
        return len(self._outgoing) + sum(map(len, self._datagrams))

    async def flush(self) -> None:
        while self._outgoing or self._datagrams:
            await self._tunnel.wait_room()
            self._pump()
        if self._failed:
            raise TransportError(
                f"the tunnel to {self._exchange.connection.label} has ended", operation="write", by="network"
            )

    def catch_up(self) -> None:
        self._exchange.connection.catch_up()
        if self._outgoing or self._datagrams:
            self._pump()

    def _pump(self) -> None:
        """Send as much as there is room for."""
        exchange, tunnel, outgoing, datagrams = self._exchange, self._tunnel, self._outgoing, self._datagrams
        try:
            if datagrams and tunnel.room():
                exchange.connection.send_datagrams(exchange, datagrams)
                datagrams.clear()
            while outgoing and (room := tunnel.room()):
                piece = bytes(outgoing[:room])
                del outgoing[:room]
                exchange.send_body(piece)
        except AllswellError:
            self._failed = True  # a read raises the error, after the last bytes from the peer
            outgoing.clear()
            datagrams.clear()

    def say_goodbye(self) -> None:
        """End our half of the stream."""
        if self._end is None and not self._failed and not self.unsent:
            self._tunnel.end()

    async def shutdown(self, deadline: Deadline) -> LayerEnd:
        """End our half of the stream, and wait for the peer's. (In HTTP/1.1 the connection's own goodbyes follow.)"""
        if self._end is not None:
            return self._end
        began = monotonic()
        with deadline.scope():
            try:
                await self.flush()
                self._heard = await self._tunnel.end_both()
            except AllswellError:
                self._failed = True
        return self._end or self._ended(monotonic() - began)

    def abort(self, *, reset: bool = True) -> LayerEnd:
        if self._end is not None:
            return self._end
        if self._exchange.lingers and not self._failed:
            self._heard = self._exchange.receiving.state is Receive.ENDED
            return self._ended(0.0)
        self._exchange.abandon()
        self._end = LayerEnd(self.name, "", "", Outcome.ABORTED)
        return self._end

    def so_far(self) -> LayerEnd:
        return self._end or self._layer_end(0.0)

    def _ended(self, seconds: float) -> LayerEnd:
        self._end = self._layer_end(seconds)
        if self._end.outcome is Outcome.TIMED_OUT:
            self._exchange.connection.stop_lingering(self._exchange)
        return self._end

    def _layer_end(self, seconds: float) -> LayerEnd:
        words = _ENDS.get(self._exchange.connection.http_version, "")
        if self._failed:
            outcome = Outcome.ABORTED
        elif self._heard or not words:
            outcome = Outcome.CLEAN
        else:
            outcome = Outcome.TIMED_OUT
        said = words if self._exchange.lingers and not self._failed else ""
        return LayerEnd(self.name, said, words if self._heard else "", outcome, seconds)

    def _lost(self, operation: Literal["read", "write"], error: AllswellError) -> TransportError:
        self._failed = True
        message = f"the tunnel to {self._exchange.connection.label} broke: {error}"
        return TransportError(message, operation=operation, by=error.by)

    def extra(self, name: str) -> Any:
        return self._exchange.connection.extra(name)


class NetworkStream:
    """A raw byte stream after an upgrade or CONNECT, with the methods of httpx2's ``network_stream``."""

    def __init__(
        self, exchange: Exchange[Connection], start_tls: StartTls, stack: Stack[ByteStream] | None = None
    ) -> None:
        self._exchange = exchange
        self._start_tls = start_tls
        self._stack = stack
        self._pending = b""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read at most ``max_bytes`` bytes; ``b""`` is the end of the stream.

        :param timeout: how many seconds to wait; ``None``: no limit.
        :raises Timeout: if nothing comes in time. The stream can still be used.
        :raises TransportError: if the stream was cut.
        :raises LocalProtocolError: if the response has no raw stream.
        """
        self._require_tunnel()
        if not self._pending:
            with self._limit(timeout) as limit:
                self._pending = await self._receive()
            if limit.passed:
                raise Timeout(f"{self._exchange.connection.label} sent nothing within {timeout:g} s", phase="read")
        data, self._pending = self._pending[:max_bytes], self._pending[max_bytes:]
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of ``buffer``.

        :param timeout: how many seconds to wait; ``None``: no limit.
        :raises Timeout: if the peer does not take it in time. Part of it may have been sent.
        :raises TransportError: if the stream is gone.
        :raises LocalProtocolError: if the response has no raw stream.
        """
        tunnel = self._require_tunnel()
        with self._limit(timeout) as limit:
            if self._stack is None:
                await tunnel.send(bytes(buffer))
            else:
                self._stack.top.transmit(bytes(buffer))
                await self._stack.top.flush()
        if limit.passed:
            raise Timeout(f"{self._exchange.connection.label} took nothing within {timeout:g} s", phase="write")

    async def aclose(self) -> None:
        """End the stream politely: first TLS on top, then the tunnel, then (in HTTP/1.1) its connection.

        In HTTP/2 and HTTP/3 our half of the stream ends (RFC 8441 §5), and the peer has the ``grace`` of the pool to
        end its half. For a WebSocket the server ends first (RFC 6455 §7.1.1), and has half a second at most. This does
        not wait for either. When the time is over, the stream is reset.
        """
        exchange, within = self._exchange, self._exchange.connection.config.grace
        if exchange.tunnel is None or not exchange.sending.open:
            exchange.abandon()
        elif self._stack is not None:
            await self._stack.shutdown(Deadline.after(within))
        elif exchange.request.protocol != WEBSOCKET or exchange.receiving.over:
            exchange.tunnel.end()
        else:
            # (hypercorn 0.18 loses the whole connection if the client ends its half first.)
            within = min(within, _SERVER_ENDS_WITHIN)
        exchange.hang_up(within)

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> NetworkStream:
        """Begin TLS on this stream.

        :param ssl_context: the TLS settings.
        :param server_hostname: the name for SNI and for the certificate's check.
        :param timeout: how many seconds the handshake may take; ``None``: no limit.
        :return: the stream inside TLS.
        :raises ConnectFailed: if the handshake fails.
        :raises Timeout: if it takes too long.
        :raises LocalProtocolError: if the response has no raw stream.
        """
        self._require_tunnel()
        stack = self._stack or Stack[ByteStream](ExchangeStream(self._exchange))
        with self._limit(timeout) as limit:
            stack = await stack.push(self._start_tls(stack.top, ssl_context, server_hostname or ""))
        if limit.passed:
            raise Timeout(f"TLS with {server_hostname} took longer than {timeout:g} s", phase="connect")
        return NetworkStream(self._exchange, self._start_tls, stack)

    def get_extra_info(self, info: str) -> Any:
        """Look up ``"ssl_object"``, ``"socket"``, ``"client_addr"``, ``"server_addr"`` or ``"is_readable"``."""
        if info == "is_readable":
            return self._exchange.body.buffered > 0 or self._exchange.receiving.over
        fact = self._stack.extra(info) if self._stack is not None else None
        return fact if fact is not None else self._exchange.connection.extra(info)

    def _limit(self, seconds: float | None) -> Limit:
        connection = self._exchange.connection
        return Limit(connection.host, math.inf if seconds is None else monotonic() + seconds, connection.catch_up)

    async def _receive(self) -> bytes:
        if self._stack is None:
            return await self._exchange.receive()
        while (data := self._stack.top.receive_nowait()) is None:
            await self._stack.top.wait_readable()
        return bytes(data)

    def _require_tunnel(self) -> Tunnel:
        tunnel = self._exchange.tunnel
        if tunnel is None:
            raise LocalProtocolError(
                "this response has no raw stream: only one with status 101, or to CONNECT, has one"
            )
        return tunnel
