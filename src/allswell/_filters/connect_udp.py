"""Datagrams through an HTTP proxy (CONNECT-UDP, RFC 9298).

Over HTTP/3 each is an HTTP datagram (RFC 9297 §2.1) in one packet of the outer connection, and is lost with it. The
inner QUIC recovers what it needs. A datagram that does not fit the packet is dropped silently. RFC 9298 §6.1 forbids to
send it as a capsule, because a probe of the path's MTU would then succeed wrongly.

Over HTTP/2 they are capsules (RFC 9297 §3.2) on the stream. So are they over HTTP/3, if the proxy takes no datagrams or
these could not hold the 1200 bytes that QUIC needs (RFC 9000 §14). On a stream nothing is lost or overtaken. QUIC's
recovery has nothing to do there, and its congestion control sees one long queue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import anyio.lowlevel

from allswell._capsules import CapsuleReader, DatagramTooLargeError, capsule, from_udp, to_udp
from allswell._deadline import Deadline
from allswell._errors import TransportError
from allswell._filters.interface import ByteStream, Datagrams, OverAnother, Run
from allswell._report import LayerEnd, Outcome
from allswell._tasks import TaskHost

_SMALLEST = 1200 + 1


class HttpDatagrams(Protocol):
    """HTTP datagrams beside a stream (RFC 9297 §2.1). Those that have not left count as ``unsent`` of the stream.

    :ivar largest_datagram: the size of the largest that can be sent, in bytes; 0: none can.
    """

    largest_datagram: int

    def send_datagrams(self, payloads: Sequence[bytes]) -> None:
        """Send these. Those that are too large are dropped, and others may be lost."""

    def take_datagrams(self) -> list[bytes]:
        """Return those that have come."""


class ConnectUdpFilter(OverAnother, Datagrams):
    """Datagrams to and from one host.

    :param lower: the tunnel, which carries capsules.
    :param outside: the tunnel's HTTP datagrams outside of its stream, if it has any.
    :param proxy: the proxy's name in errors.
    """

    name = "connect-udp"

    def __init__(
        self, lower: ByteStream, outside: HttpDatagrams | None = None, *, proxy: str, host: str, port: int
    ) -> None:
        self.address = (host, port)
        self._outside = outside
        self._sends_outside = outside is not None and outside.largest_datagram >= _SMALLEST
        if outside is not None and self._sends_outside:
            self.largest = outside.largest_datagram - 1
        self._lower: ByteStream = lower
        self._proxy = proxy
        self._capsules = CapsuleReader()
        self._end: LayerEnd | None = None

    async def connect(self) -> None:
        """Nothing to do: the proxy has agreed."""

    # Receiving

    def receive_nowait(self) -> list[Run] | None:
        if self._outside is not None:
            runs = _runs(self._outside.take_datagrams())
            if runs:
                return runs
        capsules = self._capsules
        while True:
            if not capsules.more:
                data = self._lower.receive_nowait()
                if data is None:
                    return None
                if not len(data):
                    raise TransportError(f"the proxy {self._proxy} ended the relay", operation="read", by="peer")
                capsules.feed(data)
            try:
                runs = _runs(capsules.take())
            except DatagramTooLargeError as error:
                words = f"the proxy {self._proxy} sent a datagram of {error.size} bytes"
                raise TransportError(words, operation="read", by="peer") from error
            if runs or capsules.more:
                return runs

    def listen(self, host: TaskHost, function: Callable[[], None] | None) -> bool:
        return self._lower.listen(function)

    async def wait_readable(self) -> None:
        if self._capsules.more:
            await anyio.lowlevel.checkpoint()
        else:
            await self._lower.wait_readable()

    # Sending

    def send(self, datagrams: Sequence[bytes]) -> None:
        if self._outside is not None and self._sends_outside:
            self._outside.send_datagrams(list(map(from_udp, datagrams)))
        else:
            self._lower.transmit(b"".join(capsule(from_udp(datagram)) for datagram in datagrams))

    @property
    def failed(self) -> bool:
        return self._lower.dead

    # Ending

    async def shutdown(self, deadline: Deadline) -> LayerEnd:
        """Nothing is said: the relay ends with its tunnel."""
        return self.abort()

    def abort(self, *, reset: bool = True) -> LayerEnd:
        if self._end is None:
            self._end = LayerEnd(self.name, "", "", Outcome.CLEAN)
        return self._end


def _runs(datagrams: list[bytes]) -> list[Run]:
    return [Run.of_one(payload) for each in datagrams if (payload := to_udp(each)) is not None]
