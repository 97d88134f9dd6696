"""aioquic's loss recovery (RFC 9002). The work for an ACK frame depends only on the packets that it acknowledges.

aioquic lists all packets on their way for each ACK frame, and a datagram can hold hundreds of these frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicDeliveryState, QuicSentPacket
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketRecovery, QuicPacketSpace
from aioquic.quic.stream import QuicStreamSender
from aioquic.tls import Epoch

_ACKED = QuicDeliveryState.ACKED


class SentRun:
    """Packets that were sent together, with equal parts of one stream.

    :ivar first: the number of the first packet.
    :ivar start: where its data begin in the stream.
    :ivar chunk: how many bytes of the stream each packet has.
    :ivar sent_bytes: the size of each packet, in bytes.
    """

    __slots__ = ("chunk", "first", "sender", "sent_bytes", "sent_time", "start")

    def __init__(
        self, sender: QuicStreamSender, first: int, start: int, chunk: int, sent_bytes: int, sent_time: float
    ) -> None:
        self.sender, self.first, self.start = sender, first, start
        self.chunk, self.sent_bytes, self.sent_time = chunk, sent_bytes, sent_time


class RunPacket:
    """One of them, in the form of aioquic's recovery (``QuicSentPacket``)."""

    __slots__ = ("packet_number", "run")

    epoch, packet_type = Epoch.ONE_RTT, QuicPacketType.ONE_RTT
    in_flight = is_ack_eliciting = True
    is_crypto_packet = False

    def __init__(self, packet_number: int, run: SentRun) -> None:
        self.packet_number, self.run = packet_number, run

    @property
    def sent_time(self) -> float:
        return self.run.sent_time

    @property
    def sent_bytes(self) -> int:
        return self.run.sent_bytes

    @property
    def delivery_handlers(self) -> list[tuple[Any, Any]]:
        run = self.run
        start = run.start + (self.packet_number - run.first) * run.chunk
        return [(run.sender.on_data_delivery, (start, start + run.chunk, False))]


class _Together(NamedTuple):
    """Several packets of a run, in the form that congestion control needs."""

    sent_bytes: int
    sent_time: float


class Recovery(QuicPacketRecovery):
    """The loss recovery of one connection.

    :ivar newly_acknowledged: how many packets the last ACK frame was the first to name.
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
        run: SentRun | None = None  # packets from begin to stop of it are acknowledged
        begin = stop = 0
        for each in ack_rangeset if sent else ():
            for number in _numbers(sent, each):
                packet = sent.pop(number, None)
                if packet is None:
                    continue
                last = packet
                self.newly_acknowledged += 1
                if isinstance(packet, RunPacket):
                    if packet.run is run and number == stop:
                        stop += 1
                        continue
                    if run is not None:
                        self._on_run_acked(run, begin, stop, now, space)
                    run, begin, stop, is_ack_eliciting = packet.run, number, number + 1, True
                    continue
                if packet.is_ack_eliciting:
                    is_ack_eliciting = True
                    space.ack_eliciting_in_flight -= 1
                if packet.in_flight:
                    self._cc.on_packet_acked(packet=packet, now=now)
                for handler, arguments in packet.delivery_handlers:
                    handler(_ACKED, *arguments)
        if run is not None:
            self._on_run_acked(run, begin, stop, now, space)
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

    def _on_run_acked(self, run: SentRun, begin: int, stop: int, now: float, space: QuicPacketSpace) -> None:
        count = stop - begin
        space.ack_eliciting_in_flight -= count
        packets: Any = _Together(count * run.sent_bytes, run.sent_time)
        self._cc.on_packet_acked(packet=packets, now=now)
        start = run.start + (begin - run.first) * run.chunk
        run.sender.on_data_delivery(_ACKED, start, start + count * run.chunk, False)

    def on_run_sent(self, run: SentRun, count: int, space: QuicPacketSpace) -> None:
        """A run of packets was sent."""
        packets: Any = {number: RunPacket(number, run) for number in range(run.first, run.first + count)}
        space.sent_packets.update(packets)
        space.ack_eliciting_in_flight += count
        self._time_of_last_sent_ack_eliciting_packet = run.sent_time
        together: Any = _Together(count * run.sent_bytes, run.sent_time)
        self._cc.on_packet_sent(packet=together)
        pacer = self._pacer
        if pacer.packet_time is not None:
            pacer.bucket_time = max(0.0, pacer.bucket_time - count * pacer.packet_time)

    def pacer_room(self, now: float) -> int:
        """How many packets the pacer lets go now."""
        pacer = self._pacer
        if pacer.packet_time is None:
            return 1 << 30
        pacer.update_bucket(now=now)
        return math.ceil(pacer.bucket_time / pacer.packet_time)

    def _measure(self, rtt: float, ack_delay: float, now: float) -> None:
        """A round trip took so long (RFC 9002 §5.3), less the peer's own delay; never below 1 ms."""
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
    """The numbers in the range, in order, hardly more than there are packets. Not all of them need have been sent."""
    start = max(acknowledged.start, next(iter(sent), acknowledged.stop))
    stop = min(acknowledged.stop, next(reversed(sent), -1) + 1)
    return range(start, stop) if stop - start <= len(sent) else [each for each in sent if start <= each < stop]
