"""Datagrams through a SOCKS5 proxy (RFC 1928 §7): each with a header that says where it goes, or where it came from.

The relay lives as long as the connection it was asked for on. That connection carries nothing more, so all there is to
hear on it is its end, and that is looked for whenever datagrams are: no waiting is spent on it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any

from allswell._deadline import Deadline
from allswell._errors import ConnectFailed, TransportError
from allswell._filters.interface import ByteStream, Datagrams
from allswell._report import LayerEnd, Outcome
from allswell._tasks import TaskHost

_ADDRESS_SIZES = {1: 4, 4: 16}


class SocksDatagrams(Datagrams):
    """Datagrams to and from one host behind a relay.

    :param lower: datagrams to and from the relay.
    :param control: the connection that the relay was asked for on.
    :param proxy: what errors call it.
    """

    name = "socks5-udp"

    def __init__(self, lower: Datagrams, control: ByteStream, *, proxy: str, host: str, port: int) -> None:
        self.address = (host, port)
        self.marks: list[int] = []
        self._lower = lower
        self._control = control
        self._proxy = proxy
        self._ready = False
        self._over = False
        self._end: LayerEnd | None = None

    async def connect(self) -> None:
        host, port = self.address
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

    # Receiving

    def receive_nowait(self) -> list[bytes] | None:
        received = self._lower.receive_nowait()
        if received is None:
            self._check_control()
            return None
        datagrams: list[bytes] = []
        marks = self.marks = []
        for datagram, mark in zip(received, self._lower.marks, strict=True):
            start = _payload(datagram)
            if start is not None:
                datagrams.append(datagram[start:])
                marks.append(mark)
        return datagrams or None

    def _check_control(self) -> None:
        if not self._over:
            data = self._control.receive_nowait()
            self._over = data is not None and not data
        if self._over:
            raise TransportError(f"the proxy {self._proxy} ended the relay", operation="read", by="peer")

    def listen(self, host: TaskHost, function: Callable[[], None] | None) -> bool:
        listening = self._lower.listen(host, function)
        if listening or function is None:
            self._control.listen(function)
        return listening

    async def wait_readable(self) -> None:
        await self._lower.wait_readable()

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

    @property
    def unsent(self) -> int:
        return self._lower.unsent

    async def flush(self) -> None:
        await self._lower.flush()

    # Ending

    async def shutdown(self, deadline: Deadline) -> LayerEnd:
        """Nothing is said: the relay ends with the connection that it was asked for on."""
        return self.abort()

    def abort(self, *, reset: bool = True) -> LayerEnd:
        if self._end is None:
            self._end = LayerEnd(self.name, "", "", Outcome.CLEAN if self._ready else Outcome.SKIPPED)
        return self._end

    def extra(self, name: str) -> Any:
        return self._lower.extra(name)


def _payload(datagram: bytes) -> int | None:
    """Where the payload begins; ``None`` for what is no whole datagram (fragments are optional, §7)."""
    if len(datagram) < 7 or datagram[2]:
        return None
    kind = datagram[3]
    start = 6 + (1 + datagram[4] if kind == 3 else _ADDRESS_SIZES.get(kind, len(datagram)))
    return start if start <= len(datagram) else None


def relay_address(bound: tuple[str, int], proxy: str) -> tuple[int, tuple[Any, ...]]:
    """Family and address of a relay: where the proxy names no address of its own, the one that it was reached at.

    :param proxy: the proxy's address.
    """
    host, port = bound
    try:
        unspecified = ip_address(host).is_unspecified
    except ValueError:
        unspecified = True  # a name: the proxy itself, in any case
    host = proxy if unspecified else host
    return (socket.AF_INET6 if ":" in host else socket.AF_INET), (host, port)
