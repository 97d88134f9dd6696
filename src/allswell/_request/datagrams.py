"""HTTP datagrams (RFC 9297) of a response: the content of its tunnel as packets, and not as bytes."""

from __future__ import annotations

import math
from collections import deque

import anyio.lowlevel

from allswell._capsules import LARGEST, CapsuleReader, DatagramTooLargeError, capsule
from allswell._clock import monotonic
from allswell._connection.connection import Connection
from allswell._connection.exchange import Exchange
from allswell._errors import LocalProtocolError, RemoteProtocolError, Timeout
from allswell._request.network_stream import ExchangeStream
from allswell._tasks import Limit


class HttpDatagrams:
    """The HTTP datagrams (RFC 9297) of a response to an upgrade or an extended CONNECT, in place of its body.

    Over HTTP/3 each is a QUIC datagram, if the server takes these and :attr:`QuicConfig.datagrams` is set. It may be
    lost or overtaken. Otherwise each is a capsule on the stream. Then none is lost, and all come in order.

    One task may send while another receives.
    """

    def __init__(self, exchange: Exchange[Connection]) -> None:
        self._exchange = exchange
        self._stream = ExchangeStream(exchange)
        self._capsules = CapsuleReader()
        self._received: deque[bytes] = deque()
        self._ended = False  # whether the peer has ended the stream

    @property
    def max_size(self) -> int:
        """How many bytes the largest datagram may have now. (Over QUIC that depends on the path.)"""
        return self._exchange.connection.datagram_room(self._exchange) or LARGEST

    @property
    def dropped(self) -> int:
        """How many QUIC datagrams were dropped on arrival, because 1024 others waited to be received."""
        return self._exchange.dropped_datagrams

    async def send(self, payload: bytes) -> None:
        """Send a datagram. If too much is unsent, wait for room first.

        :raises LocalProtocolError: if it is larger than ``max_size``. Nothing was sent.
        :raises TransportError: if the stream is gone, or the peer has ended its half and takes no more.
        """
        stream, connection = self._stream, self._exchange.connection
        beside = connection.datagram_room(self._exchange)
        most = beside or LARGEST
        if len(payload) > most:
            raise LocalProtocolError(f"{connection.label}: a datagram has at most {most} bytes, not {len(payload)}")
        await stream.flush()
        if beside:
            stream.send_datagrams([bytes(payload)])
        else:
            stream.transmit(capsule(payload))
        await stream.flush()

    async def receive(self, timeout: float | None = None) -> bytes | None:
        """Return the next datagram; ``None`` if the peer has ended the stream. A datagram may be empty.

        :param timeout: how many seconds to wait; ``None``: no limit.
        :raises Timeout: if none comes in time. You may call it again.
        :raises TransportError: if the stream was cut.
        :raises RemoteProtocolError: if the peer sent a datagram of more than 65535 bytes, or ended the stream within a
            capsule. The stream is reset.
        """
        return await self._receive(timeout, math.inf if timeout is None else monotonic() + timeout)

    async def _receive(self, timeout: float | None, at: float) -> bytes | None:
        """:param at: when the timeout has passed, on the clock of :func:`time.monotonic`."""
        connection = self._exchange.connection
        with Limit(connection.host, at, connection.catch_up) as limit:
            while not self._received and not self._ended:
                await self._take()
        if limit.passed:
            raise Timeout(f"{connection.label} sent no datagram within {timeout:g} s", phase="read")
        return self._received.popleft() if self._received else None

    async def _take(self) -> None:
        """Take what has come. If nothing has, wait until something does."""
        stream, capsules = self._stream, self._capsules
        self._received += stream.take_datagrams()
        if self._received:
            return
        try:
            if capsules.more:
                await anyio.lowlevel.checkpoint()  # an endless row of small capsules must not hold up other tasks
            elif (data := stream.receive_nowait()) is None:
                await stream.wait_readable()
            elif data:
                capsules.feed(data)
            elif capsules.between_capsules:
                self._ended = True
            else:
                raise self._broken("ended the stream within a capsule")
            self._received += capsules.take()
        except DatagramTooLargeError as error:
            raise self._broken(f"sent a datagram of {error.size} bytes") from error

    def _broken(self, what: str) -> RemoteProtocolError:
        self._exchange.abandon()
        return RemoteProtocolError(f"{self._exchange.connection.label} {what}", reach="exchange")

    def __aiter__(self) -> HttpDatagrams:
        return self

    async def __anext__(self) -> bytes:
        payload = await self.receive()
        if payload is None:
            raise StopAsyncIteration
        return payload

    async def aclose(self) -> None:
        """End the stream. The peer has the ``grace`` of the pool to end it, too. Then it is reset. This does not wait.

        Datagrams that were not sent yet are dropped. In HTTP/1.1 the connection ends, with its goodbyes.
        """
        if self._stream.unsent:
            self._exchange.abandon()  # a part of a capsule may have been sent
        else:
            self._exchange.end_tunnel()
        self._exchange.hang_up(self._exchange.connection.config.grace)
