"""aioquic's loss recovery (RFC 9002), with acknowledgements that cost no more than what they acknowledge.

aioquic makes a list of all packets on their way for each ACK frame, and a datagram holds hundreds of those.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aioquic.quic.packet_builder import QuicDeliveryState, QuicSentPacket
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketRecovery, QuicPacketSpace

_ACKED = QuicDeliveryState.ACKED


class Recovery(QuicPacketRecovery):
    """Of one connection.

    :ivar newly_acknowledged: packets that the last ACK frame was the first to name.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.newly_acknowledged = 0

    def on_ack_received(self, *, ack_rangeset: RangeSet, ack_delay: float, now: float, space: QuicPacketSpace) -> None:
        largest_acked = ack_rangeset.bounds().stop - 1
        space.largest_acked_packet = max(space.largest_acked_packet, largest_acked)
        sent = space.sent_packets
        last: QuicSentPacket | None = None
        is_ack_eliciting = False
        self.newly_acknowledged = 0
        for each in ack_rangeset if sent else ():
            for number in _numbers(sent, each):
                packet = sent.pop(number, None)
                if packet is None:
                    continue
                last = packet
                self.newly_acknowledged += 1
                if packet.is_ack_eliciting:
                    is_ack_eliciting = True
                    space.ack_eliciting_in_flight -= 1
                if packet.in_flight:
                    self._cc.on_packet_acked(packet=packet, now=now)
                for handler, arguments in packet.delivery_handlers:
                    handler(_ACKED, *arguments)
        if last is None:
            return
        measured = last.packet_number == largest_acked and is_ack_eliciting
        if measured:
            assert last.sent_time is not None
            self._measure(now - last.sent_time, min(ack_delay, self.max_ack_delay), now)
        self._detect_loss(now=now, space=space)
        if self.peer_completed_address_validation:
            self._pto_count = 0
        if self._quic_logger is not None:
            self._log_metrics_updated(log_rtt=measured)

    def _measure(self, rtt: float, ack_delay: float, now: float) -> None:
        """A round trip took so long (RFC 9002 §5.3), of which the peer has waited a part; never below 1 ms."""
        self._rtt_latest = max(rtt, 0.001)
        self._rtt_min = min(self._rtt_min, self._rtt_latest)
        if self._rtt_latest > self._rtt_min + ack_delay:
            self._rtt_latest -= ack_delay
        if self._rtt_initialized:
            self._rtt_variance = 3 / 4 * self._rtt_variance + 1 / 4 * abs(self._rtt_min - self._rtt_latest)
            self._rtt_smoothed = 7 / 8 * self._rtt_smoothed + 1 / 8 * self._rtt_latest
        else:
            self._rtt_initialized = True
            self._rtt_first_sample_time = now
            self._rtt_variance = rtt / 2
            self._rtt_smoothed = rtt
        self._cc.on_rtt_measurement(now=now, rtt=rtt)
        self._pacer.update_rate(congestion_window=self._cc.congestion_window, smoothed_rtt=self._rtt_smoothed)


def _numbers(sent: dict[int, QuicSentPacket], acknowledged: range) -> Iterable[int]:
    """Numbers of which those that were sent are in the range, in order; hardly more than there are packets."""
    start = max(acknowledged.start, next(iter(sent), acknowledged.stop))
    stop = min(acknowledged.stop, next(reversed(sent), -1) + 1)
    return range(start, stop) if stop - start <= len(sent) else [each for each in sent if start <= each < stop]
