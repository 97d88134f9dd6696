"""The server's preferred address (RFC 9000 §9.6), to which a QUIC connection may move.

aioquic probes the address when the handshake is confirmed, and moves there when the server answers. A connected socket
reaches one address only, so the probe has a socket of its own. When the connection has moved, the two sockets are
swapped. The old one stays open for a while, because datagrams may be on their way to it.
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
    """The socket for the preferred address, once that is probed.

    :param udp: carries the connection's datagrams.
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

        :param arrived: called when something has come from there, and the connection has taken it.
        """
        if self._socket is None:
            try:
                self._socket = self._udp.sibling(address)
            except ConnectFailed:
                return  # as if the probe was lost
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
        """Return whether the connection has just moved there. If so, swap the sockets: all goes there now (§9.6.1)."""
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
