"""Path MTU discovery for a QUIC connection (RFC 9000 §14.3, RFC 8899). aioquic has none.

Theory of operation. A connection begins with datagrams of a size that every path carries. When it has much to send (an
upload's flight of several datagrams), it probes the path for a larger size. A probe is a PING, padded to that size, in
a datagram of its own, so nothing else can be lost with it. Once the probe is acknowledged, datagrams have that size. If
it is lost, it is sent once more, and then a smaller one is sent. A lost probe is no sign of congestion (RFC 9000
§14.4), so probes do not count as in flight. After three probe timeouts in a row (RFC 8899 §4.3) the path may carry less
than before. Then, and on another path, the first size is used again and the search begins anew.
"""

from __future__ import annotations

from typing import Any

from aioquic.quic.connection import NetworkAddress, QuicConnectionState
from aioquic.quic.packet import QuicFrameType, QuicPacketType
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder
from aioquic.tls import Epoch

from allswell._quic.flights import FlightConnection

#: UDP payloads worth a probe: what Ethernet carries over IPv6 (and the largest that many servers receive), and what
#: WireGuard carries.
_SIZES = (1500 - 48, 1420 - 48)
#: RFC 8899 §5.1.2, MAX_PROBES: a single loss can have any cause.
_TRIES = 2
#: A flight of so many datagrams is much to send.
_FLIGHT = 8
#: RFC 8899 §4.3: after so many probe timeouts a black hole is suspected.
_SUSPICIOUS_PROBES = 3


class PathMtuConnection(FlightConnection):
    """aioquic's connection, with path MTU discovery.

    :ivar base_size: the size of datagrams at first, in bytes.
    :ivar largest_payload: the largest size to probe for, in bytes: the filter below and the peer take no more.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.largest_payload = 65527
        self.base_size = self._max_datagram_size
        self.path_changed()

    def path_changed(self) -> None:
        """Begin anew, because the path is another one, or carries less than before."""
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
            return  # it was for another path
        self._asking = False
        if delivery is QuicDeliveryState.ACKED:
            sizes.clear()
            self._resize(size)

    def handle_timer(self, now: float) -> None:
        super().handle_timer(now)
        if self._max_datagram_size > self.base_size and self._loss._pto_count >= _SUSPICIOUS_PROBES:
            self.path_changed()
