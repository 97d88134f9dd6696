"""Path MTU discovery for a QUIC connection (RFC 9000 §14.3, RFC 8899). aioquic has none.

Theory of operation. A connection begins with datagrams of a size that every path carries. When it has much to send, an
upload's flight of several datagrams, it asks for more: a probe is a PING, padded to the size in question, in a datagram
of its own, so that all that can be lost with it is the question. Once it is acknowledged, datagrams are as large; when
it is lost, it is sent once more, and then a smaller one. That is no sign of congestion (RFC 9000 §14.4): probes do not
count as in flight. A path that ceases to carry what it carried (three probe timeouts in a row, RFC 8899 §4.3) gets the
first size again, and the search begins anew; so does that of another path.
"""

from __future__ import annotations

from typing import Any

from aioquic.quic.connection import NetworkAddress, QuicConnectionState
from aioquic.quic.packet import QuicFrameType, QuicPacketType
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder
from aioquic.tls import Epoch

from allswell._quic.runs import RunConnection

#: UDP payloads worth asking for: what Ethernet carries over IPv6 (and the largest that many servers receive), and what
#: WireGuard does.
_SIZES = (1500 - 48, 1420 - 48)
#: RFC 8899 §5.1.2, MAX_PROBES: the loss of one can mean anything.
_TRIES = 2
#: So many datagrams at once are much to send.
_FLIGHT = 8
#: RFC 8899 §4.3: a black hole is suspected.
_SUSPICIOUS_PROBES = 3


class PathMtuConnection(RunConnection):
    """aioquic's connection, with path MTU discovery.

    :ivar base_size: bytes of the datagrams with which it begins.
    :ivar largest_payload: bytes of the largest datagram to ask for: what carries it and the peer take no more.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.largest_payload = 65527
        self.base_size = self._max_datagram_size
        self.path_changed()

    def path_changed(self) -> None:
        """The path is another one, or carries less than before: begin anew."""
        self._resize(self.base_size)
        self._sizes_to_try = [size for size in _SIZES for _ in range(_TRIES)]
        self._asking = False

    def _resize(self, size: int) -> None:
        self._max_datagram_size = size
        self._loss._cc._max_datagram_size = size  # type: ignore[attr-defined]  # every algorithm's, not the interface's
        self._loss._pacer._max_datagram_size = size

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        datagrams = super().datagrams_to_send(now)
        if len(datagrams) >= _FLIGHT and self._sizes_to_try and not self._asking:
            datagrams += self._ask(now)
        return datagrams

    def _ask(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        if not self._handshake_confirmed or self._state is not QuicConnectionState.CONNECTED:
            return []
        size = self._sizes_to_try.pop(0)
        if not self._max_datagram_size < size <= self.largest_payload:
            return []
        assert self._version is not None
        builder = QuicPacketBuilder(
            host_cid=self.host_cid,
            is_client=True,
            max_datagram_size=size,
            packet_number=self._packet_number,
            peer_cid=self._peer_cid.cid,
            quic_logger=self._quic_logger,
            spin_bit=self._spin_bit,
            version=self._version,
        )
        builder.start_packet(QuicPacketType.ONE_RTT, self._cryptos[Epoch.ONE_RTT])
        sizes = self._sizes_to_try
        buf = builder.start_frame(QuicFrameType.PING, handler=self._on_answer, handler_args=(size, sizes))
        buf.push_bytes(bytes(builder.remaining_buffer_space))
        if self._quic_logger is not None and builder.quic_logger_frames is not None:
            builder.quic_logger_frames += [
                self._quic_logger.encode_ping_frame(),
                self._quic_logger.encode_padding_frame(),
            ]
        assert builder._packet is not None
        builder._packet.in_flight = False
        self._asking = True
        return self._flush_builder(builder, self._network_paths[0], self._peer_cid.cid, now)

    def _on_answer(self, delivery: QuicDeliveryState, size: int, sizes: list[int]) -> None:
        if sizes is not self._sizes_to_try:
            return  # it was about another path
        self._asking = False
        if delivery is QuicDeliveryState.ACKED:
            sizes.clear()
            self._resize(size)

    def handle_timer(self, now: float) -> None:
        super().handle_timer(now)
        if self._max_datagram_size > self.base_size and self._loss._pto_count >= _SUSPICIOUS_PROBES:
            self.path_changed()
