"""The server's preferred address (RFC 9000 §9.6), where a QUIC connection may move to.

aioquic probes it when the handshake is confirmed, and moves there when it answers. A socket that is connected reaches
one address, so the probe has a socket of its own. When the connection has moved, the two are swapped. The old one stays
for a while: something may be on its way to it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from allswell._addresses import SocketAddress
from allswell._clock import monotonic
from allswell._errors import ConnectFailed, TransportError
from allswell._filters.interface import Datagrams
from allswell._quic.connection import ClientConnection
from allswell._tasks import TaskHost


class PreferredAddress:
    """The way there, if it is probed.

    :param udp: what the connection sends on.
    """

    def __init__(self, udp: Datagrams) -> None:
        self._udp = udp
        self._socket: Datagrams | None = None

    def probe(
        self,
        datagram: bytes,
        address: SocketAddress,
        connection: ClientConnection,
        host: TaskHost,
        arrived: Callable[[], None],
    ) -> None:
        """Send a probe.

        :param arrived: called when the connection was given what has come from there.
        """
        if self._socket is None:
            try:
                self._socket = self._udp.sibling(address)
            except ConnectFailed:
                return  # a probe that is lost
            host.spawn(self._serve, self._socket, connection, arrived, name="allswell probes a preferred address")
        if self._socket.address == address:
            self._socket.send([datagram])

    async def _serve(self, socket: Datagrams, connection: ClientConnection, arrived: Callable[[], None]) -> None:
        with suppress(TransportError):
            while self._socket is socket:
                await socket.wait_readable()
                for run in socket.receive_nowait() or ():
                    for datagram in run.datagrams():
                        connection.receive_datagram(datagram, socket.address, monotonic(), run.mark)
                arrived()
        socket.abort()

    def reached(self, connection: ClientConnection) -> bool:
        """Whether the connection has just moved there. It is sent from there then, and not only probes (§9.6.1)."""
        socket = self._socket
        if socket is None or connection.peer_address != socket.address:
            return False
        self._udp.swap(socket)
        connection.path_changed(ours=False)
        return True

    def end(self) -> None:
        """Close the other socket."""
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.abort()
