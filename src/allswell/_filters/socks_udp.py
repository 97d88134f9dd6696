"""Datagrams through a SOCKS5 proxy (RFC 1928 §7): each has a header that says where it goes, or where it came from.

The relay lives as long as the connection on which it was requested. That connection carries nothing more, so only its
end can be heard. We listen for it (by a task, if the event loop does not call us). Its end wakes the wait for
datagrams, because nothing else would tell an idle connection that it is dead.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address

import anyio.lowlevel

from allswell._addresses import SocketAddress
from allswell._deadline import Deadline
from allswell._errors import ConnectFailed, TransportError
from allswell._filters.interface import ByteStream, Datagrams, OverAnother, Run
from allswell._report import LayerEnd, Outcome
from allswell._tasks import TaskHost, current_host

_ADDRESS_SIZES = {1: 4, 4: 16}


class SocksDatagrams(OverAnother, Datagrams):
    """Datagrams to and from one host behind a relay.

    :param lower: datagrams to and from the relay.
    :param control: the connection on which the relay was requested.
    :param proxy: the proxy's name in errors.
    """

    name = "socks5-udp"

    def __init__(self, lower: Datagrams, control: ByteStream, *, proxy: str, host: str, port: int) -> None:
        self.address = (host, port)
        self._lower: Datagrams = lower
        self._control = control
        self._proxy = proxy
        self._ready = False
        self._over = False
        self._listener: Callable[[], None] | None = None
        self._waiting: anyio.CancelScope | None = None
        self._watching = anyio.CancelScope()
        self._watched = anyio.Event()
        self._end: LayerEnd | None = None

    async def connect(self) -> None:
        host, port = self.address[:2]
        try:
            packed = ip_address(host).packed
            target = bytes([1 if len(packed) == 4 else 4]) + packed
        except ValueError:
            name = host.encode("ascii")
            if len(name) > 255:
                message = f"the proxy {self._proxy}: SOCKS5 takes names of at most 255 bytes"
                raise ConnectFailed(message, phase="proxy", by="us") from None
            target = bytes([3, len(name)]) + name
        self._header = b"\0\0\0" + target + port.to_bytes(2, "big")
        self._ready = True
        if self._control.listen(self._look_at_control):
            self._watched.set()  # there is no task to wait for
            self._look_at_control()
        else:
            current_host().spawn(self._watch_control, name=f"allswell watches a relay of {self._proxy}")

    def _look_at_control(self) -> None:
        more = self._hear_control()
        if self._over:
            self._control.listen(None)
            self._tell_over()
        elif more and self._end is None:
            current_host().call_soon(self._look_at_control)

    def _hear_control(self) -> bool:
        """Take what has come. Return whether there may be more."""
        try:
            data = self._control.receive_nowait()
        except TransportError:
            data = memoryview(b"")  # a reset is an end like any other
        self._over = data is not None and not len(data)
        return data is not None and len(data) > 0

    async def _watch_control(self) -> None:
        try:
            with self._watching:
                while not self._over:
                    more = self._hear_control()
                    if more:
                        await anyio.lowlevel.checkpoint()
                    elif not self._over:
                        with suppress(TransportError):  # the next read raises it
                            await self._control.wait_readable()
        finally:
            self._watched.set()
        if self._over:
            self._tell_over()

    def _tell_over(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        elif self._listener is not None:
            self._listener()

    def _stop_watching(self) -> None:
        self._watching.cancel()
        self._control.listen(None)

    # Receiving

    def receive_nowait(self) -> list[Run] | None:
        received = self._lower.receive_nowait()
        if received is None:
            if self._over:
                raise TransportError(f"the proxy {self._proxy} ended the relay", operation="read", by="peer")
            return None
        each_alone = ((datagram, run.mark) for run in received for datagram in run.datagrams())
        payloads = ((datagram, _payload(datagram), mark) for datagram, mark in each_alone)
        return [Run.of_one(datagram[start:], mark) for datagram, start, mark in payloads if start is not None]

    def listen(self, host: TaskHost, function: Callable[[], None] | None) -> bool:
        listening = self._lower.listen(host, function)
        self._listener = function if listening else None
        return listening

    async def wait_readable(self) -> None:
        if self._over:
            return
        # Not a deadline, but the way to be woken by _watch_control.
        with anyio.CancelScope() as self._waiting:
            try:
                await self._lower.wait_readable()
            finally:
                self._waiting = None

    # Sending

    def send(self, datagrams: Sequence[bytes]) -> None:
        header = self._header
        self._lower.send([header + datagram for datagram in datagrams])

    @property
    def lost(self) -> int:
        return self._lower.lost

    @property
    def failed(self) -> bool:
        return self._lower.failed

    # Ending

    async def shutdown(self, deadline: Deadline) -> LayerEnd:
        """Say nothing: the relay ends with the connection on which it was requested."""
        if self._ready:
            self._stop_watching()
            await self._watched.wait()  # it is that connection's turn to be waited for
        return self.abort()

    def abort(self, *, reset: bool = True) -> LayerEnd:
        self._stop_watching()
        if self._end is None:
            self._end = LayerEnd(self.name, "", "", Outcome.CLEAN if self._ready else Outcome.SKIPPED)
        return self._end


def _payload(datagram: bytes) -> int | None:
    """Where the payload begins; ``None`` if the datagram is not complete. (Fragments are optional, §7.)"""
    if len(datagram) < 7 or datagram[2]:
        return None
    kind = datagram[3]
    start = 6 + (1 + datagram[4] if kind == 3 else _ADDRESS_SIZES.get(kind, len(datagram)))
    return start if start <= len(datagram) else None


def relay_address(bound: tuple[str, int], proxy: str) -> tuple[int, SocketAddress]:
    """Family and address of a relay. If the proxy names none, it is the proxy's own address.

    :param proxy: the proxy's address.
    """
    host, port = bound
    try:
        unspecified = ip_address(host).is_unspecified
    except ValueError:
        unspecified = True  # a name: the proxy itself, in any case
    host = proxy if unspecified else host
    return (socket.AF_INET6 if ":" in host else socket.AF_INET), (host, port)
