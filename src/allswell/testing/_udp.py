"""QUIC at an origin: one UDP socket, and the connections that its datagrams belong to.

A client's CONNECTION_CLOSE is taken from aioquic's QUIC log, which has the frame as it came, at once. aioquic's own
event comes three probe timeouts later.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
from aioquic._buffer import Buffer  # aioquic.buffer has it, and does not export it
from aioquic.h3.connection import H3_ALPN, ErrorCode
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import (
    ConnectionIdIssued,
    ConnectionIdRetired,
    ConnectionTerminated,
    HandshakeCompleted,
    ProtocolNegotiated,
    QuicEvent,
)
from aioquic.quic.logger import QuicLogger, QuicLoggerTrace
from aioquic.quic.packet import QuicPacketType, pull_quic_header
from anyio.abc import TaskGroup

from allswell._clock import monotonic
from allswell.testing._certificates import Certificates
from allswell.testing._connection import Connection, Script
from allswell.testing._events import Connected, ConnectionClose, Ended, Said, Secured, Vanished, Violation
from allswell.testing._http3 import Http3

_CID = 8
_LARGEST = 65535
_SMALLEST_INITIAL = 1200  # RFC 9000 §14.1


class QuicEndpoint:
    """The UDP socket. :meth:`run` reads it."""

    def __init__(
        self,
        script: Script,
        sock: socket.socket,
        certificates: Certificates,
        tasks: TaskGroup,
        connections: list[Connection],
    ) -> None:
        self._script = script
        self._sock = sock
        self._tasks = tasks
        self._certificates = certificates
        self._connections = connections
        self._by_cid: dict[bytes, QuicServed] = {}

    async def run(self) -> None:
        """Read datagrams until the socket is closed."""
        while True:
            try:
                data, address = self._sock.recvfrom(_LARGEST)
            except BlockingIOError:
                with suppress(anyio.ClosedResourceError):
                    await anyio.wait_readable(self._sock)
            except ConnectionError:
                continue  # an ICMP error: a client's port is closed
            except OSError:
                if self._sock.fileno() >= 0:
                    raise
                return  # it is closed
            else:
                self._receive(data, address)

    def send(self, data: bytes, address: Any) -> None:
        """Send a datagram. If the socket has no room for it, it is lost, as on any network."""
        try:
            self._sock.sendto(data, address)
        except (BlockingIOError, ConnectionError):
            pass

    def _receive(self, data: bytes, address: Any) -> None:
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=_CID)
        except ValueError:
            return
        connection = self._by_cid.get(header.destination_cid)
        if connection is None:
            if header.packet_type != QuicPacketType.INITIAL or len(data) < _SMALLEST_INITIAL:
                return
            connection = self._accept(header.destination_cid)
        connection.receive(data, address)

    def _accept(self, cid: bytes) -> QuicServed:
        number = len(self._connections) + 1
        connection = QuicServed(number, self._script, self._tasks, self, self._certificates, cid)
        self._connections.append(connection)
        self.known(cid, connection)
        self._tasks.start_soon(connection.run)
        return connection

    def known(self, cid: bytes, connection: QuicServed) -> None:
        """Give datagrams with this connection ID to this connection."""
        self._by_cid[cid] = connection

    def forgotten(self, cid: bytes) -> None:
        """Give datagrams with this connection ID to no connection any more."""
        self._by_cid.pop(cid, None)

    def forget(self, connection: QuicServed) -> None:
        """Forget all connection IDs of this connection."""
        for cid in [cid for cid, each in self._by_cid.items() if each is connection]:
            del self._by_cid[cid]


class QuicServed(Connection):
    """One connection. :meth:`run` serves its timers."""

    over = "QUIC"

    def __init__(
        self,
        number: int,
        script: Script,
        tasks: TaskGroup,
        endpoint: QuicEndpoint,
        certificates: Certificates,
        original_cid: bytes,
    ) -> None:
        super().__init__(number, script, tasks)
        self._endpoint = endpoint
        self._receiving = self._closing = self._terminated = self._forgotten = False
        self._heard_close: tuple[int, bool, str] | None = None
        configuration = QuicConfiguration(
            is_client=False, alpn_protocols=H3_ALPN, connection_id_length=_CID, quic_logger=_Log(self)
        )
        configuration.load_cert_chain(certificates.chain, certificates.key)
        self._quic = QuicConnection(configuration=configuration, original_destination_connection_id=original_cid)
        self._http: Http3 | None = None
        self._timer = anyio.Event()
        endpoint.known(self._quic.host_cid, self)
        self.note(Connected, self.over)

    async def run(self) -> None:
        """Serve its timers until it has ended."""
        while not self._terminated:
            timer, changed = self._quic.get_timer(), self._timer
            with anyio.move_on_after(None if timer is None else max(0.0, timer - monotonic())):
                await changed.wait()
                continue
            self._quic.handle_timer(monotonic())
            self._pump()

    def receive(self, data: bytes, address: Any) -> None:
        """Take a datagram."""
        self._receiving = True
        self._quic.receive_datagram(data, address, monotonic())
        self._receiving = False
        self._pump()

    def close_frame(self, code: int, frame_type: int | None, reason: str) -> None:
        """A CONNECTION_CLOSE was received, or is being sent.

        :param frame_type: the frame that caused it; ``None`` if it is the application's (type 0x1d).
        """
        if self._receiving:
            self._heard_close = self._heard_close or (code, frame_type is None, reason)
        elif not self._closing:
            self._closing = True
            if self.engine is not None and code not in (0, ErrorCode.H3_NO_ERROR):
                self.note(Violation, reason or f"{code:#x}")  # aioquic closes with an error if the client broke rules
            self.note(Said, "CONNECTION_CLOSE", True)

    def _pump(self) -> None:
        """Act on QUIC's events, and send its datagrams."""
        if self._forgotten:
            return
        while (event := self._quic.next_event()) is not None:
            self._on_event(event)
        if self._heard_close is not None and not self.ended:
            self.heard_all()
            self.cut(by_client=True)
            self.note(ConnectionClose, *self._heard_close)
            self._end()
        if not self.script.faults.silent:
            for data, address in self._quic.datagrams_to_send(monotonic()):
                self._endpoint.send(data, address)
        self._timer.set()
        self._timer = anyio.Event()

    def _on_event(self, event: QuicEvent) -> None:
        if isinstance(event, ConnectionIdIssued):
            self._endpoint.known(event.connection_id, self)
        elif isinstance(event, ConnectionIdRetired):
            self._endpoint.forgotten(event.connection_id)
        elif isinstance(event, ProtocolNegotiated):
            self._http = Http3(self._quic)
        elif isinstance(event, HandshakeCompleted):
            self.note(Secured, "TLSv1.3", event.alpn_protocol or "")
        elif isinstance(event, ConnectionTerminated):
            self._terminated = True
            if not self.ended:
                self.cut(by_client=False)
                if not self._closing:
                    self.note(Vanished)
                self._end()
            self._endpoint.forget(self)
        elif self._http is not None:
            heard = list(self._http.receive(event))
            if heard and self.engine is None:
                self.speak(self._http)
                if self.leaves_after is not None:
                    self._goaway_when_due()
            self.hear(heard)

    def _end(self) -> None:
        self.ended = True
        self.note(Ended)

    async def flush(self) -> None:
        """See the base class. It does not wait, because QUIC buffers the output."""
        self._pump()

    def once_sent(self, action: Callable[[], None]) -> None:
        """Call this now, because QUIC has taken the output."""
        self._pump()
        action()

    async def leave(self) -> None:
        """Do nothing: after HTTP/3's GOAWAY the client ends the connection."""

    async def truncate(self) -> None:
        """Send CONNECTION_CLOSE with H3_INTERNAL_ERROR."""
        self._pump()
        self.reset()

    def reset(self) -> None:
        """Send CONNECTION_CLOSE with H3_INTERNAL_ERROR."""
        if self.ended:
            return
        self.cut(by_client=False)
        self._closing = True
        self.note(Said, "CONNECTION_CLOSE", True)
        self._end()
        self._quic.close(error_code=ErrorCode.H3_INTERNAL_ERROR)
        self._pump()

    def forget(self) -> None:
        """Forget the connection, without sending anything."""
        self._terminated = self._forgotten = True
        self._endpoint.forget(self)
        self.cut(by_client=False)
        if not self.ended:
            self.note(Said, "", True)
            self._end()
        self._timer.set()


class _Log(QuicLogger):
    """A QUIC log of one connection that keeps nothing."""

    def __init__(self, connection: QuicServed) -> None:
        super().__init__()
        self._connection = connection

    def start_trace(self, is_client: bool, odcid: bytes) -> QuicLoggerTrace:
        """Return the trace of the connection."""
        return _Trace(self._connection, odcid)

    def end_trace(self, trace: QuicLoggerTrace) -> None:
        """Do nothing: the trace has kept nothing."""


class _Trace(QuicLoggerTrace):
    """Reports CONNECTION_CLOSE frames to the connection: those that are received, and those that are sent."""

    def __init__(self, connection: QuicServed, odcid: bytes) -> None:
        super().__init__(is_client=False, odcid=odcid)
        self._connection = connection

    def encode_connection_close_frame(
        self, error_code: int, frame_type: int | None, reason_phrase: str
    ) -> dict[str, Any]:
        """Report the frame."""
        self._connection.close_frame(error_code, frame_type, reason_phrase)
        return super().encode_connection_close_frame(error_code, frame_type, reason_phrase)

    def log_event(self, *, category: str, event: str, data: dict[str, Any]) -> None:
        """Keep nothing."""
