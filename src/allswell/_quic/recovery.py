"""aioquic's loss recovery (RFC 9002). The work for an ACK frame depends only on the packets that it acknowledges.

aioquic lists all packets on their way for each ACK frame, and a datagram can hold hundreds of these frames.

Packets that were sent together, as a run, are one object. ``sent_packets`` has it under the number of each of them. So
an acknowledgement of many is one step. aioquic's own code needs an object for each packet only if it may be lost: then
it gets them (:meth:`Recovery.single_out`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, groupby, repeat
from typing import Any, NamedTuple

from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.recovery import QuicPacketRecovery, QuicPacketSpace
from aioquic.quic.stream import QuicStreamSender
from aioquic.tls import Epoch

_ACKED = QuicDeliveryState.ACKED


class _Sent:
    """What each packet of a run is, for aioquic."""

    __slots__ = ()

    epoch, packet_type = Epoch.ONE_RTT, QuicPacketType.ONE_RTT
    in_flight = is_ack_eliciting = True
    is_crypto_packet = False


class SentRun(_Sent):
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


class RunPacket(_Sent):
    """One of them, in the form of aioquic's recovery (``QuicSentPacket``)."""

    __slots__ = ("packet_number", "run")

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

    def on_ack_received(
        self, *, ack_rangeset: Sequence[range], ack_delay: float, now: float, space: QuicPacketSpace
    ) -> None:
        largest_acked = ack_rangeset[-1].stop - 1
        space.largest_acked_packet = max(space.largest_acked_packet, largest_acked)
        sent: dict[int, Any] = space.sent_packets  # of aioquic's packets, and of ours
        last, last_sent = -1, 0.0
        is_ack_eliciting = False
        self.newly_acknowledged = 0
        for numbers in chain.from_iterable(_numbers(sent, each) for each in ack_rangeset if sent):
            stop = numbers.start
            for _, alike in groupby(map(sent.pop, numbers, repeat(None)), id):
                packet, *others = alike
                number, count = stop, 1 + len(others)
                stop += count
                if packet is None:
                    continue
                last, last_sent = stop - 1, packet.sent_time
                self.newly_acknowledged += count
                if packet.is_ack_eliciting:
                    is_ack_eliciting = True
                    space.ack_eliciting_in_flight -= count
                if type(packet) is SentRun:
                    self._on_run_acked(packet, number, count, now)
                    continue
                if packet.in_flight:
                    self._cc.on_packet_acked(packet=packet, now=now)
                for handler, arguments in packet.delivery_handlers:
                    handler(_ACKED, *arguments)
        if last < 0:
            return
        measured = last == largest_acked and is_ack_eliciting
        if measured:
            self._measure(now - last_sent, min(ack_delay, self.max_ack_delay), now)
        self._detect_loss(now=now, space=space)
        if self.peer_completed_address_validation:
            self._pto_count = 0
        if self._quic_logger is not None:
            self._log_metrics_updated(log_rtt=measured)

    def _on_run_acked(self, run: SentRun, begin: int, count: int, now: float) -> None:
        packets: Any = _Together(count * run.sent_bytes, run.sent_time)
        self._cc.on_packet_acked(packet=packets, now=now)
        start = run.start + (begin - run.first) * run.chunk
        run.sender.on_data_delivery(_ACKED, start, start + count * run.chunk, False)

    def single_out(self, space: QuicPacketSpace, last: int) -> None:
        """Have ``sent_packets`` hold an object for each packet up to this number."""
        sent: dict[int, Any] = space.sent_packets
        for number, packet in sent.items():
            if number > last:
                break
            if type(packet) is SentRun:
                sent[number] = RunPacket(number, packet)

    def _detect_loss(self, *, now: float, space: QuicPacketSpace) -> None:
        self.single_out(space, space.largest_acked_packet)
        super()._detect_loss(now=now, space=space)

    def reschedule_data(self, *, now: float, speed_up_handshake: bool = False) -> None:
        for space in self.spaces:
            oldest = next((number for number, packet in space.sent_packets.items() if packet.is_ack_eliciting), -1)
            self.single_out(space, oldest)
        super().reschedule_data(now=now, speed_up_handshake=speed_up_handshake)

    def on_run_sent(self, run: SentRun, count: int, space: QuicPacketSpace) -> None:
        """A run of packets was sent."""
        sent: dict[int, Any] = space.sent_packets
        sent.update(dict.fromkeys(range(run.first, run.first + count), run))
        space.ack_eliciting_in_flight += count
        self._time_of_last_sent_ack_eliciting_packet = run.sent_time
        together: Any = _Together(count * run.sent_bytes, run.sent_time)
        self._cc.on_packet_sent(packet=together)
        self.on_paced(count)

    def on_paced(self, count: int) -> None:
        """So many of the packets that the pacer lets go have gone."""
        pacer = self._pacer
        if pacer.packet_time is not None:
            # After all that may go nothing is left, not even what rounding leaves: the next one has to wait.
            left = pacer.bucket_time - count * pacer.packet_time
            pacer.bucket_time = max(0.0, left) if count < pacer.bucket_time / pacer.packet_time else 0.0

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


def _numbers(sent: dict[int, Any], acknowledged: range) -> list[range]:
    """The numbers in the range, in order, hardly more than there are packets. Not all of them need have been sent."""
    start = max(acknowledged.start, next(iter(sent), acknowledged.stop))
    stop = min(acknowledged.stop, next(reversed(sent), -1) + 1)
    if stop - start <= len(sent):
        return [range(start, stop)]
    return [range(each, each + 1) for each in sent if start <= each < stop]
