"""ECN for a QUIC connection (RFC 9000 §13.4, §19.3.2). aioquic has none.

Theory of operation. Every datagram is sent marked ECT(0). So all packets that the peer acknowledges were marked, and
its counts must cover them. If they do not, the path clears or changes the marks, or the peer does not report them. If
three probes in a row get no answer at the start, the path may drop marked packets. In both cases
:attr:`EcnConnection.marking` turns false for good, and the owner of the socket stops marking. Marks that arrive are
counted for each packet number space and reported in each ACK. A rising count of CE is a sign of congestion, as a lost
packet is (RFC 9002 §7.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aioquic._buffer import Buffer
from aioquic.quic.connection import ACK_FRAME_CAPACITY, QuicConnection, QuicConnectionError, QuicReceiveContext
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, QuicPacketType, pull_ack_frame, push_ack_frame
from aioquic.quic.packet_builder import QuicPacketBuilder, QuicSentPacket
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.tls import Epoch

from allswell._quic.recovery import Recovery

#: The two bits of RFC 3168 §5.
NOT_ECT, ECT_1, ECT_0, CE = 0, 1, 2, 3
#: Three counts of at most eight bytes.
_COUNTS_CAPACITY = 24
#: RFC 9000 §13.4.2: the marks are suspected after so many probes without any answer.
_SUSPICIOUS_PROBES = 3


class EcnConnection(QuicConnection):
    """aioquic's connection, with ECN.

    :ivar mark: the ECN bits of the next datagram for ``receive_datagram``.
    :ivar marking: whether datagrams that are sent should carry ECT(0).
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        configuration = self._configuration
        self._loss: Recovery = Recovery(
            congestion_control_algorithm=configuration.congestion_control_algorithm,
            initial_rtt=configuration.initial_rtt,
            max_datagram_size=configuration.max_datagram_size,
            peer_completed_address_validation=False,
            quic_logger=self._quic_logger,
            send_probe=self._send_probe,
            logger=self._logger,
        )
        self.mark = NOT_ECT
        self.marking = True
        self._marks: dict[QuicPacketSpace, list[int]] = {}  # received by us: ECT(0), ECT(1), CE
        self._peer_counts: dict[QuicPacketSpace, tuple[int, int, int]] = {}  # the same, received by the peer

    def _payload_received(self, context: QuicReceiveContext, plain: bytes, *args: Any, **options: Any) -> Any:
        self._count_marks(self._spaces[context.epoch], 1)
        return super()._payload_received(context, plain, *args, **options)

    def _count_marks(self, space: QuicPacketSpace, packets: int) -> None:
        """Some packets came in datagrams with ``mark``."""
        if self.mark != NOT_ECT and packets:
            self._marks.setdefault(space, [0, 0, 0])[(0, 1, 0, 2)[self.mark]] += packets

    def handle_timer(self, now: float) -> None:
        super().handle_timer(now)
        if self.marking and not self._peer_counts and self._loss._pto_count >= _SUSPICIOUS_PROBES:
            self.marking = False

    def _write_ack_frame(self, builder: QuicPacketBuilder, space: QuicPacketSpace, now: float) -> None:
        marks = self._marks.get(space)
        if marks is None:
            super()._write_ack_frame(builder, space, now)
            return
        assert space.largest_received_time is not None
        delay = now - space.largest_received_time
        buf = builder.start_frame(
            QuicFrameType.ACK_ECN,
            capacity=ACK_FRAME_CAPACITY + _COUNTS_CAPACITY,
            handler=self._on_ack_delivery,
            handler_args=(space, space.largest_received_packet),
        )
        ranges = push_ack_frame(
            buf,
            space.ack_queue,
            int(delay * 1000000) >> self._local_ack_delay_exponent,
            builder.remaining_buffer_space - _COUNTS_CAPACITY,
        )
        for count in marks:
            buf.push_uint_var(count)
        space.ack_at = None
        if self._quic_logger is not None and builder.quic_logger_frames is not None:
            frame = self._quic_logger.encode_ack_frame(ranges=list(space.ack_queue)[-ranges:], delay=delay)
            frame |= dict(zip(("ect0", "ect1", "ce"), marks, strict=True))
            builder.quic_logger_frames.append(frame)
        if ranges > 1 and builder.packet_number % 8 == 0:  # as in aioquic: else ranges would never go away
            self._write_ping_frame(builder, comment="ACK-of-ACK trigger")

    def _handle_ack_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        # As aioquic does it, with the counts. (Parsing the frame takes longer than the rest.)
        try:
            acknowledged, delay = pull_ack_frame(buf)
        except ValueError as error:  # RFC 9000 §19.3.1: a negative packet number
            raise QuicConnectionError(QuicErrorCode.FRAME_ENCODING_ERROR, frame_type, str(error)) from error
        counts = None
        if frame_type == QuicFrameType.ACK_ECN:
            counts = (buf.pull_uint_var(), buf.pull_uint_var(), buf.pull_uint_var())
        seconds = (delay << self._remote_ack_delay_exponent) / 1000000
        if self._quic_logger is not None and context.quic_logger_frames is not None:
            context.quic_logger_frames.append(self._quic_logger.encode_ack_frame(acknowledged, seconds))
        if context.epoch is not Epoch.INITIAL:
            self._loss.peer_completed_address_validation = True
        if self._were_not_sent(acknowledged[-1][-1]):
            words = "an ACK of packets that were not sent"  # RFC 9000 §13.1
            raise QuicConnectionError(QuicErrorCode.PROTOCOL_VIOLATION, frame_type, words)
        self._acknowledged(self._spaces[context.epoch], acknowledged, seconds, counts, context.time)

    def _were_not_sent(self, largest: int) -> bool:
        """Whether an ACK frame with this largest number names packets that were not sent.

        (aioquic counts the packets of all spaces together.)
        """
        return largest >= self._packet_number

    def _acknowledged(
        self,
        space: QuicPacketSpace,
        acknowledged: Sequence[range],
        delay: float,
        counts: tuple[int, int, int] | None,
        now: float,
    ) -> None:
        """An ACK frame came.

        :param acknowledged: the numbers that it names, in ascending order. Not all need have been sent in this space.
        :param delay: of the peer, in seconds.
        :param counts: of ECN.
        """
        loss, largest = self._loss, space.largest_acked_packet
        loss.on_ack_received(ack_rangeset=acknowledged, ack_delay=delay, now=now, space=space)
        if self.marking and space.largest_acked_packet > largest:
            # Older frames come out of order, and their counts mean nothing.
            self._validate(space, loss.newly_acknowledged, counts, now)

    def _validate(self, space: QuicPacketSpace, newly: int, counts: tuple[int, int, int] | None, now: float) -> None:
        """RFC 9000 §13.4.2.1."""
        if counts is None:
            self.marking = self.marking and newly == 0
            return
        before = self._peer_counts.get(space, (0, 0, 0))
        self._peer_counts[space] = counts
        ect_0, ect_1, ce = (now_ - then for now_, then in zip(counts, before, strict=True))
        if min(ect_0, ect_1, ce) < 0 or ect_1 or ect_0 + ce < newly:
            self.marking = False
        elif ce:
            # This is no packet. It makes congestion control act as if this one had been lost, an RTT ago.
            signal = QuicSentPacket(
                epoch=Epoch.ONE_RTT,
                in_flight=False,
                is_ack_eliciting=False,
                is_crypto_packet=False,
                packet_number=space.largest_acked_packet,
                packet_type=QuicPacketType.ONE_RTT,
                sent_time=now - self._loss._rtt_latest,
            )
            self._loss._cc.on_packets_lost(now=now, packets=[signal])
