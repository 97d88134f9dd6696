"""A tunnel. An exchange becomes one by 101 (Switching Protocols) or 2xx to CONNECT (RFC 9110 §7.8, §9.3.6).

Its two halves are raw bytes, each with an end of its own. HTTP's timeouts do not apply: the caller decides how long to
wait for the peer.
"""

from __future__ import annotations

from typing import Protocol

from allswell._errors import TransportError
from allswell._halves import Receive, ReceiveHalf, SendHalf
from allswell._messages import Headers
from allswell._tasks import Signal


class Tunnels(Protocol):
    """The calls of a tunnel to its exchange."""

    label: str
    sending: SendHalf
    receiving: ReceiveHalf

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

    def receive_nowait(self) -> bytes | None:
        """Return what has come."""

    async def delivered(self) -> None:
        """Wait until anything is delivered."""


class Tunnel:
    """Our half of one tunnel, and the end of both. (The peer's half is read like a body.)

    :param room: set when more may be sent, or when there never will be room again.
    """

    __slots__ = ("_exchange", "_room")

    def __init__(self, exchange: Tunnels, room: Signal) -> None:
        self._exchange = exchange
        self._room = room

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

    async def wait_room(self) -> None:
        """Wait until :meth:`room` is worth another call.

        :raises TransportError: when there is no room, and the peer has ended its half, or a write has failed. Nobody
            may be reading then, so nobody would notice the end of the rest.
        """
        exchange = self._exchange
        if not exchange.writable or (exchange.receiving.over and exchange.send_window() <= 0):
            raise self._over()
        await self._room.wait()

    def on_room(self) -> None:
        """More may be sent, or there never will be room again, or the peer has ended its half."""
        self._room.set()

    async def send(self, data: bytes) -> None:
        """Send all of this, and wait for room.

        :raises AllswellError: when the tunnel is over.
        """
        offset = 0
        while offset < len(data):
            window = self.room()
            if window <= 0:
                await self.wait_room()
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

    def _over(self) -> TransportError:
        return TransportError(f"the tunnel to {self._exchange.label} has ended", operation="write")
