"""Raw byte streams on an exchange: what an upgrade or CONNECT hands to the caller.

:class:`NetworkStream` is what httpx2 documents as the ``network_stream`` extension: its WebSocket client runs on it.
:class:`ExchangeStream` is the same as a :class:`ByteStream`, so that filters (TLS) can sit on it.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from time import monotonic
from typing import Any

from allswell._connection.exchange import Exchange
from allswell._deadline import Deadline
from allswell._errors import LocalProtocolError, Timeout
from allswell._filters.interface import ByteStream, Carrier
from allswell._filters.stack import Stack
from allswell._report import LayerEnd, Outcome

StartTls = Callable[[ByteStream, ssl.SSLContext, str], ByteStream]


class ExchangeStream(ByteStream):
    """The bytes of an exchange that has become a tunnel, as a stream that filters can sit on."""

    name = "tunnel"

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._pending = b""
        self._outgoing = bytearray()
        self._ended = False
        self._end: LayerEnd | None = None

    async def connect(self) -> None:
        """Nothing to do: the tunnel is there."""

    def receive_nowait(self) -> memoryview | None:
        if self._ended:
            return memoryview(b"")
        if not self._pending:
            return None
        data, self._pending = self._pending, b""
        return memoryview(data)

    async def wait_readable(self) -> None:
        if not self._pending and not self._ended:
            self._pending = await self._exchange.receive()
            self._ended = not self._pending

    def transmit(self, data: bytes) -> None:
        exchange = self._exchange
        window = 0 if self._outgoing else exchange.connection.send_window(exchange)
        now, later = data[:window], data[window:]
        if now:
            exchange.connection.send_body(exchange, now, end=False, trailers=None)
        self._outgoing += later

    @property
    def unsent(self) -> int:
        return len(self._outgoing)

    async def flush(self) -> None:
        while self._outgoing:
            data = bytes(self._outgoing)
            await self._exchange.send(data)
            del self._outgoing[: len(data)]

    async def shutdown(self, deadline: Deadline) -> LayerEnd:
        began = monotonic()
        if self._end is None:
            delivered = await self.delivered(deadline)
            if delivered:
                await self._exchange.send(b"", end=True)
            outcome = Outcome.CLEAN if delivered else Outcome.TIMED_OUT
            self._end = LayerEnd(self.name, "", "", outcome, monotonic() - began)
        return self._end

    def abort(self, *, reset: bool = True) -> LayerEnd:
        if self._end is None:
            self._exchange.abandon()
            self._end = LayerEnd(self.name, "", "", Outcome.ABORTED)
        return self._end

    def extra(self, name: str) -> Any:
        return self._exchange.connection.extra(name)


class NetworkStream:
    """A raw byte stream, as httpx2 documents its ``network_stream``: read, write, ``aclose``, ``start_tls``."""

    def __init__(self, exchange: Exchange, start_tls: StartTls, stack: Stack | None = None) -> None:
        self._exchange = exchange
        self._start_tls = start_tls
        self._stack = stack
        self._pending = b""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """At most so many bytes; ``b""`` at the end of the stream.

        :raises Timeout: when nothing comes within so many seconds. The stream can still be used.
        :raises TransportError: when it was cut.
        """
        self._require_tunnel()
        if not self._pending:
            with Deadline.after(timeout).scope() as scope:
                self._pending = await self._receive()
            if scope.cancelled_caught:
                raise Timeout(f"{self._exchange.connection.label} sent nothing within {timeout:g} s", phase="read")
        data, self._pending = self._pending[:max_bytes], self._pending[max_bytes:]
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of it.

        :raises Timeout: when the peer does not take it within so many seconds; part of it may have been sent.
        :raises TransportError: when the stream is gone.
        """
        self._require_tunnel()
        with Deadline.after(timeout).scope() as scope:
            if self._stack is None:
                await self._exchange.send(bytes(buffer))
            else:
                self._stack.top.transmit(bytes(buffer))
                await self._stack.top.flush()
        if scope.cancelled_caught:
            raise Timeout(f"{self._exchange.connection.label} took nothing within {timeout:g} s", phase="write")

    async def aclose(self) -> None:
        """End the stream politely: what lies on top says goodbye, then the tunnel ends, then (h1) its connection."""
        exchange = self._exchange
        if not exchange.tunnel or exchange.uploaded:
            exchange.abandon()
        elif self._stack is not None:
            await self._stack.shutdown(Deadline.after(exchange.connection.config.grace))
        else:
            await exchange.send(b"", end=True)
        exchange.hang_up()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> NetworkStream:
        """TLS through this stream.

        :raises ConnectFailed: when the handshake fails.
        :raises Timeout: when it takes longer.
        """
        self._require_tunnel()
        lower: Carrier[Any] = ExchangeStream(self._exchange) if self._stack is None else self._stack.top
        assert isinstance(lower, ByteStream)
        stack = Stack(self._start_tls(lower, ssl_context, server_hostname or ""), lower)
        with Deadline.after(timeout).scope() as scope:
            await stack.connect()
        if scope.cancelled_caught:
            raise Timeout(f"TLS with {server_hostname} took over {timeout:g} s", phase="connect")
        return NetworkStream(self._exchange, self._start_tls, stack)

    def get_extra_info(self, info: str) -> Any:
        """``"ssl_object"``, ``"socket"``, ``"client_addr"``, ``"server_addr"``, or ``"is_readable"``."""
        if info == "is_readable":
            return self._exchange.buffered > 0 or self._exchange.complete
        fact = self._stack.extra(info) if self._stack is not None else None
        return fact if fact is not None else self._exchange.connection.extra(info)

    async def _receive(self) -> bytes:
        if self._stack is None:
            return await self._exchange.receive()
        while (data := self._stack.top.receive_nowait()) is None:
            await self._stack.top.wait_readable()
        return bytes(data)

    def _require_tunnel(self) -> None:
        if not self._exchange.tunnel:
            raise LocalProtocolError("this response's connection is HTTP's: only 101 or CONNECT give a raw stream")
