"""Ports where packets vanish: as behind a firewall that drops them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def tcp_hole() -> Iterator[int]:
    """A TCP port where the listener's queue is full: the kernel answers no SYN."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for each in (first, second):
            each.setblocking(False)
            each.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


class UdpHole:
    """A UDP port where nobody answers.

    :raises OSError: somebody has the port.
    """

    def __init__(self, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> None:
        self._sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            self._sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", port))
        except OSError:
            self._sock.close()
            raise
        self._sock.setblocking(False)
        self.port: int = self._sock.getsockname()[1]

    def __enter__(self) -> UdpHole:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def swallowed(self) -> list[bytes]:
        """The datagrams that came since it was last asked."""
        datagrams = []
        while True:
            try:
                datagrams.append(self._sock.recv(65535))
            except BlockingIOError:
                return datagrams
