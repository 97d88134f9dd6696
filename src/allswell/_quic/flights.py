"""What leaves in one flush: packets full of one stream's data, and packets with an ACK and the data of many streams.

Theory of operation. aioquic writes packets frame by frame, by code for every frame that QUIC has. For each packet it
asks all streams whether they have something to say. In a busy connection nearly all that is said are ACKs and STREAM
frames. They take a short way here:

- *Runs.* Where one stream has much to send, many full packets with equal parts of it are made together, sixteen if
  other streams wait for their turn (:meth:`FlightConnection._runs_to_send`).
- *Packed packets.* An ACK that is due, a PING, and what the streams have besides, go into as few packets as possible:
  small requests, the ends of uploads (:meth:`FlightConnection._packed`). All but the last are full, so that the socket
  takes them in one call.

Congestion control, the pacer and flow control allow as much as they always do.

aioquic sends all other frames (:meth:`FlightConnection._others_wait`). If there are some, it also sends the ACK and
what the runs have left. The short way has no ChaCha20, whose masks are made one by one, and no qlog, which names each
packet. It is closed before the handshake is confirmed, while probes are due, and when the connection closes.
"""

from __future__ import annotations

from typing import Any

from aioquic._crypto import AEAD
from aioquic.quic.connection import NetworkAddress, QuicConnectionState
from aioquic.quic.packet import QuicFrameType, QuicPacketType
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream
from aioquic.tls import Epoch

from allswell._quic import native, varint
from allswell._quic.recovery import SentRun
from allswell._quic.runs import FIN, LEN, NUMBER_SIZE, OFF, STREAM, TAG, NativeSealer, RunConnection, Sealer

#: RFC 9001 §6.6: AES-GCM may protect 2^23 packets with one key. After half of them the keys are changed.
_PACKETS_PER_KEY = 1 << 22
#: How many packets of one stream are sent before another stream has its turn.
_TURN = 16
#: How many packets are made in one go.
_MOST_MADE = 64
#: A STREAM frame begins only if the packet has so many bytes left.
LEAST_FRAME = 32
#: RFC 9000 §16: the first bits of an integer of two bytes.
_TWO_BYTES = 0x4000
#: The type of a STREAM frame with a length and the end of its stream, and without an offset.
_WHOLE = bytes((STREAM | LEN | FIN,))
#: The bytes that such a frame has besides data, at most.
_MOST_OVERHEAD = 1 + 8 + 2
_PING = b"\x01"
#: RFC 9001 §5.4.2: a header's protection takes a sample of what follows it, so a packet has no shorter payload.
_LEAST_PAYLOAD = 4 - NUMBER_SIZE
#: RFC 9000 §2.1: the bit that the numbers of a server's streams have.
OF_SERVER = 0b01


class FlightConnection(RunConnection):
    """aioquic's connection, with a short way for ACKs and for data of streams."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._sealer: Sealer | None = None
        self._sends_with: AEAD | None = None  # since this packet:
        self._first_of_key = 0
        self._new_keys_asked = False

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        self._renew_keys()
        sealer = self._sealer_for_now()
        if sealer is None:
            return super().datagrams_to_send(now)
        waiting, others = self._ask_streams()
        others = others or self._others_wait()
        packets = self._runs_to_send(sealer, waiting, now)
        if not others:
            packets += self._packed(sealer, waiting, now)
        address = self._network_paths[0].addr
        datagrams = [(packet, address) for packet in packets]
        return datagrams + super().datagrams_to_send(now) if others else datagrams

    def request_key_update(self) -> None:
        """Change the keys as soon as that is allowed."""
        self._new_keys_asked = True

    def _renew_keys(self) -> None:
        """Change the keys in time or when asked, but not before the peer has taken the current ones (RFC 9001 §6.1)."""
        aead, number = self._cryptos[Epoch.ONE_RTT].send.aead, self._packet_number
        if aead is not self._sends_with:
            self._sends_with, self._first_of_key = aead, number
        elif (
            (self._new_keys_asked or number - self._first_of_key >= _PACKETS_PER_KEY)
            and self._handshake_confirmed
            and self._spaces[Epoch.ONE_RTT].largest_acked_packet >= self._first_of_key
        ):
            self._new_keys_asked = False
            super().request_key_update()

    def _sealer_for_now(self) -> Sealer | None:
        """What seals packets on the short way; ``None`` while that is closed."""
        pair = self._cryptos[Epoch.ONE_RTT]
        aead, protection = pair.send.aead, pair.send.hp
        if (
            not self._handshake_confirmed
            or self._state is not QuicConnectionState.CONNECTED
            or self._close_pending
            or self._quic_logger is not None
            or self._probe_pending
            or self._datagrams_pending
            or pair._update_key_requested
            or not self._network_paths[0].is_validated
            or aead is None
            or protection is None
            or protection._is_chacha20
        ):
            return None
        sealer, cid = self._sealer, self._peer_cid.cid
        if sealer is None or sealer.aead is not aead or sealer.cid != cid:
            kind = Sealer if native.loops is None else NativeSealer
            sealer = self._sealer = kind(aead, protection, cid, pair.key_phase)
        return sealer

    def _others_wait(self) -> bool:
        """Whether frames wait to be sent that have no short way, but for those of single streams."""
        return bool(
            self._retire_connection_ids
            or self._streams_blocked_pending
            or len(self._network_paths) > 1
            or self._network_paths[0].remote_challenges
            or self._remote_preferred_address is not None
            or not self._crypto_streams[Epoch.ONE_RTT].sender.buffer_is_empty
            or not all(each.was_sent for each in self._host_cids)
            or self._limits_due()
        )

    def _limits_due(self) -> list[Any]:
        """The limits of the connection that the peer is to learn of now: MAX_DATA, MAX_STREAMS."""
        raise NotImplementedError

    def _stream_limit_due(self, stream: QuicStream) -> bool:
        """Whether the peer is to learn of the stream's limit now (MAX_STREAM_DATA)."""
        raise NotImplementedError

    def _ask_streams(self) -> tuple[list[QuicStream], bool]:
        """The streams that have data to send, and whether any has other frames to send. Forget those that are over."""
        waiting: list[QuicStream] = []
        over: list[QuicStream] = []
        others = False
        for stream in self._streams_queue:
            sender, receiver = stream.sender, stream.receiver
            if receiver.is_finished and sender.is_finished:
                over.append(stream)
                assert stream.stream_id is not None
                if stream.stream_id & OF_SERVER:
                    others = True  # aioquic allows another one in its place
            elif receiver.stop_pending or sender.reset_pending:
                others = True
            elif not sender.buffer_is_empty and not stream.is_blocked:
                waiting.append(stream)
            if stream.max_stream_data_local != stream.max_stream_data_local_sent and self._stream_limit_due(stream):
                others = True
        if over and not others:
            gone = set(over)
            for stream in gone:
                del self._streams[stream.stream_id]  # type: ignore[arg-type]  # every one has a number
            self._streams_queue = [stream for stream in self._streams_queue if stream not in gone]
        return waiting, others

    # Runs

    def _runs_to_send(self, sealer: Sealer, waiting: list[QuicStream], now: float) -> list[bytes]:
        """Make packets full of one stream's data, as many as may go, less one for other frames.

        Streams that were served move to the end, here and in aioquic's queue.
        """
        size = self._max_datagram_size
        loss = self._loss
        most = min((loss.congestion_window - loss.bytes_in_flight) // size, loss.pacer_room(now)) - 1
        packets: list[bytes] = []
        while most - len(packets) > 1:
            run = self._next_run(waiting, min(_MOST_MADE, most - len(packets)))
            if run is None:
                break
            stream, head, start, width, data, chunk = run
            with data:
                sealed = sealer.seal(head, start, width, data, chunk, self._packet_number, self._spin_bit)
            sent = SentRun(stream.sender, self._packet_number, start, chunk, size, now)
            loss.on_run_sent(sent, len(sealed), self._spaces[Epoch.ONE_RTT])
            self._left(sealed, now, elicits=True)
            packets += sealed
        return packets

    def _left(self, packets: list[bytes], now: float, *, elicits: bool) -> None:
        """Note that these packets leave.

        :param elicits: whether any of them asks for an acknowledgement.
        """
        self._packet_number += len(packets)
        self._network_paths[0].bytes_sent += sum(map(len, packets))
        if elicits and not self._ack_eliciting_sent_since_receipt:  # RFC 9000 §10.1
            self._close_at = now + self._idle_timeout()
            self._ack_eliciting_sent_since_receipt = True

    def _next_run(
        self, waiting: list[QuicStream], most: int
    ) -> tuple[QuicStream, bytes, int, int, memoryview, int] | None:
        """The next stream, and what its packets are made of: see :meth:`Sealer.seal`."""
        for stream in waiting:
            sender = stream.sender
            if sender._buffer_stop - sender._buffer_start < self._max_datagram_size or not len(sender._pending):
                continue  # as small requests are
            pending = sender._pending[0]
            start = pending.start
            allowed = sender.highest_offset + self._remote_max_data - self._remote_max_data_used
            limit = min(pending.stop, stream.max_stream_data_remote, allowed)
            assert stream.stream_id is not None
            head = bytes((STREAM | OFF,)) + varint.encode(stream.stream_id)
            width = 8 if limit > 0x3FFFFFFF else 4
            room = self._max_datagram_size - 1 - len(self._peer_cid.cid) - NUMBER_SIZE - TAG
            chunk = room - len(head) - width
            # The end of the stream, with its FIN, goes the other way.
            count = min(most, (limit - start - (limit == sender._buffer_fin)) // chunk)
            if len(waiting) > 1:
                count = min(count, _TURN)
            if count < 2:
                continue
            stop = start + count * chunk
            first = start - sender._buffer_start
            data = memoryview(sender._buffer)[first : first + stop - start]
            sender._pending.subtract(start, stop)
            if stop > sender.highest_offset:
                self._remote_max_data_used += stop - sender.highest_offset
                sender.highest_offset = stop
            for queue in (waiting, self._streams_queue):
                queue.remove(stream)
                queue.append(stream)
            return stream, head, start, width, data, chunk
        return None

    # Packed packets

    def _packed(self, sealer: Sealer, waiting: list[QuicStream], now: float) -> list[bytes]:
        """Make packets of an ACK and a PING, if due, and of what these streams have to send, as much as may go."""
        space, loss = self._spaces[Epoch.ONE_RTT], self._loss
        acknowledges = space.ack_at is not None and space.ack_at <= now
        self._pacing_at = None
        if not waiting and not acknowledges and not self._ping_pending:
            return []
        overhead = 1 + len(sealer.cid) + NUMBER_SIZE + TAG
        flight = loss.congestion_window - loss.bytes_in_flight
        # The pacer does not hold up an ACK, nor what goes with it.
        most = max(loss.pacer_room(now), 1 if acknowledges else 0)
        payloads: list[bytes] = []
        served: list[QuicStream] = []
        elicited = False
        index = 0  # of the stream whose turn it is
        while acknowledges or ((self._ping_pending or index < len(waiting)) and len(payloads) < most):
            number = self._packet_number + len(payloads)
            frames: list[bytes | bytearray] = []
            handlers: list[tuple[Any, Any]] = []
            left = min(self._max_datagram_size, flight) - overhead
            if acknowledges:
                acknowledges = False
                frames.append(self._ack_frame(space, now))
                handlers.append((self._on_ack_delivery, (space, space.largest_received_packet)))
                left -= len(frames[0])
            before = len(frames)
            if self._ping_pending and left >= LEAST_FRAME:
                frames.append(_PING)
                handlers.append((self._on_ping_delivery, (tuple(self._ping_pending),)))
                self._ping_pending = []
                left -= 1
            while index < len(waiting) and left >= LEAST_FRAME:
                stream = waiting[index]
                sender = stream.sender
                size, high = sender._buffer_fin, sender.highest_offset
                allowed = min(stream.max_stream_data_remote, high + self._remote_max_data - self._remote_max_data_used)
                if size and size <= min(left - _MOST_OVERHEAD, allowed) and not high and not sender._buffer_start:
                    # All of a stream at once: a small request.
                    sender._pending.shift()
                    sender._pending_eof = False
                    sender.buffer_is_empty = True
                    sender.highest_offset = size
                    self._remote_max_data_used += size
                    assert stream.stream_id is not None
                    head = _WHOLE + varint.encode(stream.stream_id) + (size | _TWO_BYTES).to_bytes(2, "big")
                    frames += (head, sender._buffer)
                    handlers.append((sender.on_data_delivery, (0, size, True)))
                elif (part := self._part(stream, left, allowed)) is not None:
                    head, data, start, fin = part
                    size = len(data)
                    frames += (head, data)
                    handlers.append((sender.on_data_delivery, (start, start + size, fin)))
                else:
                    index += 1
                    continue
                left -= len(head) + size
                served.append(stream)
                if sender.buffer_is_empty:
                    index += 1
            elicits = len(frames) > before
            if not elicits and before and len(space.ack_queue) > 1 and number % 8 == 0 and left > 0:
                frames.append(_PING)  # as in aioquic: else ranges would never go away
                elicits = True
            if not frames:
                break
            if elicits and index < len(waiting) and left > 0:
                frames.append(bytes(left))  # PADDING: see the module
                left = 0
            payload = b"".join(frames).ljust(_LEAST_PAYLOAD, b"\0")
            payloads.append(payload)
            if elicits:
                flight -= overhead + len(payload)
            elicited |= elicits
            loss.on_packet_sent(
                packet=QuicSentPacket(
                    epoch=Epoch.ONE_RTT,
                    in_flight=elicits,
                    is_ack_eliciting=elicits,
                    is_crypto_packet=False,
                    packet_number=number,
                    packet_type=QuicPacketType.ONE_RTT,
                    sent_time=now,
                    sent_bytes=overhead + len(payload),
                    delivery_handlers=handlers,
                ),
                space=space,
            )
        packets = sealer.protect(payloads, self._packet_number, self._spin_bit)
        loss.on_paced(len(packets))
        self._left(packets, now, elicits=elicited)
        if index < len(waiting) or self._ping_pending:
            self._pacing_at = loss._pacer.next_send_time(now=now)
            behind = set(served)
            self._streams_queue = [stream for stream in self._streams_queue if stream not in behind]
            self._streams_queue += dict.fromkeys(served)
        return packets

    def _part(self, stream: QuicStream, most: int, allowed: int) -> tuple[bytes, bytearray, int, bool] | None:
        """A STREAM frame with what a stream has to send next; ``None`` if nothing may go.

        :param most: how many bytes it may have.
        :param allowed: where flow control stops the stream.
        :return: what it begins with, its data, where they begin in the stream, and whether it has the stream's end.
        """
        sender = stream.sender
        pending = sender._pending
        assert stream.stream_id is not None
        kind, head = STREAM | LEN, varint.encode(stream.stream_id)
        if len(pending):
            start, stop = pending[0].start, pending[0].stop
        elif sender._pending_eof:
            assert sender._buffer_fin is not None
            start = stop = sender._buffer_fin
        else:
            sender.buffer_is_empty = True  # a run has taken all
            return None
        if start:
            kind |= OFF
            head += varint.encode(start)
        if stop > start:
            stop = min(stop, start + most - 3 - len(head), allowed)
            if stop <= start:
                return None  # flow control lets nothing go
            pending.subtract(start, stop)
            if stop > sender.highest_offset:
                self._remote_max_data_used += stop - sender.highest_offset
                sender.highest_offset = stop
        fin = stop == sender._buffer_fin
        if fin:
            kind |= FIN
            sender._pending_eof = False
        sender.buffer_is_empty = not len(pending) and not sender._pending_eof
        size, first = stop - start, start - sender._buffer_start
        data = sender._buffer[first : first + size]
        return b"%c%b%b" % (kind, head, (size | _TWO_BYTES).to_bytes(2, "big")), data, start, fin

    def _ack_frame(self, space: QuicPacketSpace, now: float) -> bytes:
        """An ACK frame (RFC 9000 §19.3) with all that came. It fits into every packet (see ``MAX_ACK_RANGES``)."""
        assert space.largest_received_time is not None
        space.ack_at = None
        queue, marks = space.ack_queue, self._marks.get(space)
        count = len(queue)
        last = queue[count - 1]
        delay = int((now - space.largest_received_time) * 1000000) >> self._local_ack_delay_exponent
        numbers = [QuicFrameType.ACK_ECN if marks else QuicFrameType.ACK, last.stop - 1, delay, count - 1]
        numbers.append(last.stop - 1 - last.start)
        for index in range(count - 2, -1, -1):
            each = queue[index]
            numbers += (last.start - each.stop - 1, each.stop - each.start - 1)
            last = each
        return b"".join(map(varint.encode, numbers + marks if marks else numbers))
