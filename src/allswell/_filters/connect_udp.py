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
from contextlib import suppress
from typing import Protocol

import anyio.lowlevel

from allswell._deadline import Deadline
from allswell._errors import TransportError
from allswell._filters.interface import ByteStream, Datagrams, OverAnother, Run
from allswell._quic import varint
from allswell._report import LayerEnd, Outcome
from allswell._tasks import TaskHost

_DATAGRAM = 0  # the capsule type (RFC 9297 §3.5) and the context id of plain UDP payloads (RFC 9298 §5)
_LARGEST = 65527 + 8  # a UDP payload (RFC 9298 §5) behind its context id
_SMALLEST = 1200 + 1
#: How many capsules are read in one go.
_CAPSULES = 256


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
        self._received = bytearray()
        self._more = False  # perhaps, in what was received
        self._skip = 0  # bytes of a capsule that is not for us
        self._end: LayerEnd | None = None

    async def connect(self) -> None:
        """Nothing to do: the proxy has agreed."""

    # Receiving

    def receive_nowait(self) -> list[Run] | None:
        if self._outside is not None:
            # An unknown context id: dropped (RFC 9298 §4).
            runs = [Run.of_one(each[1:]) for each in self._outside.take_datagrams() if each[:1] == b"\0"]
            if runs:
                return runs
        while True:
            if not self._more:
                data = self._lower.receive_nowait()
                if data is None:
                    return None
                if not len(data):
                    raise TransportError(f"the proxy {self._proxy} ended the relay", operation="read", by="peer")
                skipped = min(self._skip, len(data))
                self._skip -= skipped
                self._received += data[skipped:]
            datagrams = self._take()
            if datagrams or self._more:
                return [Run.of_one(each) for each in datagrams]

    def _take(self) -> list[bytes]:
        """The datagrams that are complete, from a limited number of capsules."""
        received, datagrams, start = self._received, list[bytes](), 0
        self._more = False
        capsules = 0
        while True:
            if capsules == _CAPSULES:
                self._more = True
                break
            capsules += 1
            try:
                kind, position = varint.decode(received, start)
                size, position = varint.decode(received, position)
            except IndexError:  # it is not complete
                break
            end = position + size
            if kind != _DATAGRAM:
                if end > len(received):  # RFC 9297 §3.2: unknown capsules are skipped, however long
                    self._skip = end - len(received)
                    start = len(received)
                    break
            elif size > _LARGEST:
                raise TransportError(
                    f"the proxy {self._proxy} sent a datagram of {size} bytes", operation="read", by="peer"
                )
            elif end > len(received):
                break
            else:
                with suppress(IndexError):  # without a complete context ID it is dropped
                    payload = bytes(received[position:end])
                    context, position = varint.decode(payload, 0)
                    if context == _DATAGRAM:
                        datagrams.append(payload[position:])
            start = end
        del received[:start]
        return datagrams

    def listen(self, host: TaskHost, function: Callable[[], None] | None) -> bool:
        return self._lower.listen(function)

    async def wait_readable(self) -> None:
        if self._more:
            await anyio.lowlevel.checkpoint()
        else:
            await self._lower.wait_readable()

    # Sending

    def send(self, datagrams: Sequence[bytes]) -> None:
        if self._outside is not None and self._sends_outside:
            self._outside.send_datagrams([b"\0" + datagram for datagram in datagrams])
        else:
            self._lower.transmit(b"".join(_capsule(datagram) for datagram in datagrams))

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


def _capsule(datagram: bytes) -> bytes:
    size = 1 + len(datagram)
    length = (size | 0x4000).to_bytes(2, "big") if size < 0x4000 else (size | 0x80000000).to_bytes(4, "big")
    return b"\0" + length + b"\0" + datagram
