"""A tunnel. An exchange becomes one by 101 (Switching Protocols) or 2xx to CONNECT (RFC 9110 §7.8, §9.3.6).

Its two halves are raw bytes, each with an end of its own. HTTP's timeouts do not apply: the caller decides how long to
wait for the peer.

There is one exception. A peer that has ended its half may go on reading (RFC 9113 §5.1, RFC 9114 §4.4). But many do
not, and do not say so. So a caller that sets no limit of its own waits for such a peer within the request's write
timeout. If there is none either, it does not wait.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from allswell._clock import monotonic
from allswell._config import Timeouts
from allswell._errors import TransportError
from allswell._halves import Receive, ReceiveHalf, SendHalf
from allswell._messages import Headers
from allswell._tasks import Limit, TaskHost


class Tunnels(Protocol):
    """The calls of a tunnel to its exchange."""

    label: str
    sending: SendHalf
    receiving: ReceiveHalf

    timeouts: Timeouts

    @property
    def error(self) -> BaseException | None:
        """The error that the exchange has failed with."""

    @property
    def under_way(self) -> bool:
        """Whether its connection still carries it."""

    def send_window(self) -> int:
        """How many bytes may be sent now."""

    def send_body(self, data: bytes, *, end: bool = False, trailers: Headers | None = None) -> None:
        """Send some, at most :meth:`send_window` bytes."""

    @property
    def writable(self) -> bool:
        """Whether no write of its connection has failed."""

    def unsent(self) -> int:
        """How many unsent bytes keep it from sending more."""

    def receive_nowait(self) -> bytes | None:
        """Return what has come."""

    async def delivered(self) -> None:
        """Wait until anything is delivered."""


class Tunnel:
    """Our half of one tunnel, and the end of both. (The peer's half is read like a body.)

    :param host: the event loop.
    :param look: processes what has come. See :class:`~allswell._tasks.Limit`.
    """

    __slots__ = ("_exchange", "_host", "_look", "_room")

    def __init__(self, exchange: Tunnels, host: TaskHost, look: Callable[[], object]) -> None:
        self._exchange = exchange
        self._host = host
        self._look = look
        self._room = host.signal()  # more may be sent, or there never will be room again

    def room(self) -> int:
        """How many bytes may be sent now.

        :raises AllswellError: when there never will be room again.
        """
        exchange = self._exchange
        if exchange.error is not None:
            raise exchange.error
        if not exchange.sending.open:
            raise self._over()
        return exchange.send_window()

    async def wait_room(self, *, limited: bool = False) -> None:
        """Wait until :meth:`room` is worth another call.

        :param limited: whether the caller limits the wait.
        :raises TransportError: when there never will be room again, or nobody waits for it: see the module.
        """
        exchange = self._exchange
        if not exchange.receiving.over or exchange.send_window() > 0:
            await self._room.wait()
        elif exchange.receiving.state is not Receive.ENDED or not (exchange.sending.open and exchange.writable):
            raise self._over()
        elif limited:
            await self._room.wait()
        else:
            await self._wait_within(exchange.timeouts.write)

    async def _wait_within(self, seconds: float | None) -> None:
        """Wait for room as long as the peer takes something within so many seconds."""
        if seconds is None:
            raise self._over()
        exchange, before = self._exchange, math.inf
        while (unsent := exchange.unsent()) < before:
            before = unsent
            with Limit(self._host, monotonic() + seconds, self._look) as limit:
                await self._room.wait()
            if not limit.passed:
                return
        raise self._over(f": its peer took nothing within {seconds:g} s")

    def on_room(self) -> None:
        """More may be sent, or there never will be room again, or the peer has ended its half."""
        self._room.set()

    async def send(self, data: bytes, *, limited: bool = False) -> None:
        """Send all of this, and wait for room.

        :param limited: whether the caller limits the wait.
        :raises AllswellError: when the tunnel is over, or as :meth:`wait_room` does.
        """
        offset = 0
        while offset < len(data):
            window = self.room()
            if window <= 0:
                await self.wait_room(limited=limited)
                continue
            piece = data if len(data) <= window and not offset else data[offset : offset + window]
            offset += len(piece)
            self._exchange.send_body(piece)

    def end(self) -> None:
        """End our half."""
        if self._exchange.sending.open:
            self._exchange.send_body(b"", end=True)

    async def end_both(self) -> bool:
        """End our half, then drop what comes until the peer has ended its own. Return whether it has.

        In HTTP/1.1 a tunnel is the connection. It has no end to wait for before the layers below say goodbye.
        """
        exchange = self._exchange
        self.end()
        while exchange.under_way:
            while exchange.receive_nowait():
                pass
            if not exchange.receiving.over:
                await exchange.delivered()
        return exchange.receiving.state is Receive.ENDED

    def _over(self, why: str = "") -> TransportError:
        return TransportError(f"the tunnel to {self._exchange.label} has ended{why}", operation="write")
