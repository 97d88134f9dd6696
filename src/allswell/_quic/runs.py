"""Runs of 1-RTT packets: those that came together are opened together. (For those that are sent see ``flights.py``.)

Theory of operation. aioquic takes one datagram at a time, by code for every case that QUIC has. In a long transfer
nearly all packets are alike: the datagrams of a run hold one packet each, with the same connection ID and keys, and the
packets hold consecutive STREAM frames. Such packets take a short way:

- :class:`Opener` takes the protection off the packets of a run. One call makes the masks of all headers
  (RFC 9001 §5.4.3: they are AES-ECB of samples of the packets).
- :class:`RunConnection` acts on those that hold only ordinary frames: STREAM, ACK, MAX_STREAMS, PING, PADDING. It joins
  contiguous data, and does the bookkeeping once: flow control, the streams' offsets, the numbers to acknowledge, the
  ECN marks, the timers.

Data out of order go to the stream's receiver at once. (After a loss all data of a stream are out of order, until the
lost ones have come again.)

aioquic handles all other packets. A packet that does not open (another connection ID, other keys, garbage) goes to
``receive_datagram``, which takes every datagram. A payload with other frames, or with data beyond the limits, goes to
``_payload_received``, after all that came before it has been booked. A part of it may have been acted on already. That
does no harm: data, limits and ACKs may come twice (RFC 9000 §2.2). The bookkeeping of a packet is always that of
``receive_datagram``. A test gives both ways the same packets, and compares.

There is no short way for ChaCha20, whose masks are made one by one, or with a qlog, which names each packet.

If the distribution ``allswell-native`` is there, its compiled loop makes the packets, and opens them
(:class:`NativeSealer`, :class:`NativeOpener`). It also joins the data of packets that follow each other and hold STREAM
frames only (a *stretch*). All decisions are made here. A stretch that does not fit whole is opened again in Python,
packet by packet. Python is the judge: tests give both the same packets, and compare.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from aioquic._crypto import AEAD, HeaderProtection
from aioquic.quic.connection import NetworkAddress, QuicConnectionError, QuicConnectionState, QuicReceiveContext
from aioquic.quic.packet import QuicStreamFrame, decode_packet_number, get_spin_bit
from aioquic.quic.recovery import MAX_ACK_RANGES, QuicPacketSpace
from aioquic.quic.stream import FinalSizeError
from aioquic.tls import Epoch
from cryptography.exceptions import InvalidTag

from allswell._quic import native, varint
from allswell._quic.ecn import EcnConnection
from allswell._quic.interface import StreamDataReceived
from allswell._quic.pieces import PiecesReceiver

#: The largest UDP payload that is accepted, in bytes (RFC 9000 §18.2): that of an Ethernet packet. Nothing else limits
#: the work for one datagram. Jumbo frames and the loopback carry up to 64 KB, and 64 KB of the smallest frames take 240
#: ms.
LARGEST_DATAGRAM = 1500
#: RFC 9001 §5.4.2: where a sample begins, from the packet number on, and how long it is.
_SAMPLE_OFFSET, _SAMPLE = 4, 16
#: RFC 9000 §17.3.1: the header form, the fixed bit, the reserved bits and the key phase; and the fixed bit alone.
_FORM, _FIXED_BIT = 0b11011100, 0b01000000
_KEY_PHASE_SHIFT, _SPIN_BIT_SHIFT = 2, 5
#: How many bytes a sent packet number has: as many as aioquic uses.
NUMBER_SIZE = 2
#: How many bytes the AEAD's tag has (RFC 9001 §5.3).
TAG = 16
#: RFC 9001 §5.4.1: the bits of a short header's first byte that are protected.
_PROTECTED_BITS = 0b00011111
#: How many packets are opened in one go. Those of one batch of datagrams should fit: each call has its own costs.
_MOST = 192
#: Below this distance from the expected packet number even one byte says which number is meant.
_NEAR = 64
#: RFC 9000 §19.8: the frame types of STREAM, and their bits.
STREAM, _STREAM_TYPES = 0x08, 0b11111000
OFF, LEN, FIN = 0x04, 0x02, 0x01
#: RFC 9000 §16: the first bits of an integer, by how many bytes it has.
_INTEGERS = {4: 0x80000000, 8: 0xC000000000000000}
#: Other frame types (RFC 9000 §19).
_PADDING, _PING, _ACK, _ACK_ECN, _MAX_STREAMS_BIDI = 0x00, 0x01, 0x02, 0x03, 0x12
#: RFC 9000 §19.11: no limit of streams is larger.
_MOST_STREAMS = 1 << 60
#: The most ranges, but for the first, of an ACK frame on the short way.
_FEW_RANGES = 16
#: After so many frames (a fifth of a millisecond) others may have their turn.
_MANY = 256
#: What became of a packet: it is for aioquic; it was acted on, and asks for an acknowledgement, or does not.
_NOT_TAKEN, _ELICITS, _QUIET = 0, 1, 2

#: Data of one stream, in order: the stream, where they begin, the data, and whether (not 0) the stream ends with them.
Piece = tuple[int, int, bytes, int]
#: Packets that follow each other, without their protection: the first byte of the last one's header, the number of the
#: first one, and how many there are. Then the payload of one packet; or all data of several that hold nothing else.
Opened = tuple[int, int, int, bytes | list[Piece]]


class _Protection:
    """The protection (RFC 9001 §5) of packets that have one connection ID and are of one key phase.

    :param aead: with the keys of that phase.
    :param protection: of headers, with AES.
    """

    def __init__(self, aead: AEAD, protection: HeaderProtection, cid: bytes, key_phase: int) -> None:
        self.aead, self.cid = aead, cid
        self._iv = aead._iv
        self._masks = protection._encryptor.update
        self._form = _FIXED_BIT | key_phase << _KEY_PHASE_SHIFT  # of a header's first byte, without what varies


class Opener(_Protection):
    """Takes the protection off packets."""

    def __init__(self, aead: AEAD, protection: HeaderProtection, cid: bytes, key_phase: int) -> None:
        super().__init__(aead, protection, cid, key_phase)
        self._decrypt = aead._aead.decrypt
        self._headers: dict[int, bytes] = {}  # without the packet number, by their first byte

    def open(self, run: bytes, ends: Sequence[int], index: int, expected: int) -> list[Opened]:
        """The packets of a run, one by one, up to the first that is not one of these.

        :param ends: where each ends.
        :param index: of the first one.
        :param expected: the packet number that is expected next.
        """
        form, iv, decrypt = self._form, self._iv, self._decrypt
        number_at = 1 + len(self.cid)
        sample_at = number_at + _SAMPLE_OFFSET
        sample_end = sample_at + _SAMPLE
        stops = ends[index : index + _MOST]
        starts = [ends[index - 1] if index else 0, *stops[:-1]]
        samples = [run[start + sample_at : start + sample_end] for start in starts]
        while samples and len(samples[-1]) < _SAMPLE:
            samples.pop()
        masks = self._masks(b"".join(samples))
        packets: list[Opened] = []
        headers = self._headers
        for start, stop, mask in zip(starts, stops, range(0, len(masks), _SAMPLE), strict=False):
            if not sample_end <= stop - start <= LARGEST_DATAGRAM:
                break
            first = run[start] ^ masks[mask] & _PROTECTED_BITS
            header = headers.get(first)
            if header is None:
                if first & _FORM != form:
                    break
                header = headers[first] = bytes((first,)) + self.cid
            if not run.startswith(self.cid, start + 1):
                break
            at = start + number_at
            if first & 3 == 1:  # as most often: two bytes
                truncated = (run[at] ^ masks[mask + 1]) << 8 | run[at + 1] ^ masks[mask + 2]
                header += truncated.to_bytes(2, "big")
                at += 2
                ahead = truncated - expected & 0xFFFF
                number = expected + ahead if ahead < _NEAR else decode_packet_number(truncated, 16, expected)
            else:
                length = (first & 3) + 1
                truncated = int.from_bytes(run[at : at + length], "big")
                truncated ^= int.from_bytes(masks[mask + 1 : mask + 1 + length], "big")
                header += truncated.to_bytes(length, "big")
                at += length
                number = decode_packet_number(truncated, 8 * length, expected)
            try:
                payload = decrypt((iv ^ number).to_bytes(12, "big"), run[at:stop], header)
            except InvalidTag:
                break
            packets.append((first, number, 1, payload))
            if number > expected:
                expected = number + 1
        return packets


class NativeOpener(Opener):
    """Takes the protection off packets, and their data out of them, by the compiled loop."""

    def __init__(self, aead: AEAD, protection: HeaderProtection, cid: bytes, key_phase: int) -> None:
        super().__init__(aead, protection, cid, key_phase)
        assert native.loops is not None
        self._open_run = native.loops.open_run
        iv = self._iv.to_bytes(12, "big")
        self._keys = aead._aead.decrypt_into, self._masks, iv, cid, self._form, InvalidTag

    def open(self, run: bytes, ends: Sequence[int], index: int, expected: int) -> list[Opened]:
        opened: list[Opened] = self._open_run(self._keys, run, ends, index, expected)
        return opened


class Sealer(_Protection):
    """Makes packets, and protects them."""

    def __init__(self, aead: AEAD, protection: HeaderProtection, cid: bytes, key_phase: int) -> None:
        super().__init__(aead, protection, cid, key_phase)
        self._encrypt = aead._aead.encrypt
        self._form |= NUMBER_SIZE - 1

    def seal(
        self, head: bytes, offset: int, width: int, data: memoryview, chunk: int, number: int, spin_bit: bool
    ) -> list[bytes]:
        """Make packets with equal parts of a stream's data.

        :param head: what their STREAM frames begin with: the type, the stream ID.
        :param offset: where the data begin in the stream.
        :param width: how many bytes the offsets have in the frames: 4 or 8.
        :param data: what is sent, so many times:
        :param chunk: how many bytes each packet gets.
        :param number: of the first packet.
        """
        bits = _INTEGERS[width]
        payloads = [
            b"".join((head, (offset + at | bits).to_bytes(width, "big"), data[at : at + chunk]))
            for at in range(0, len(data), chunk)
        ]
        return self.protect(payloads, number, spin_bit)

    def protect(self, payloads: Sequence[bytes], number: int, spin_bit: bool) -> list[bytes]:
        """Make packets with these payloads.

        :param number: of the first packet.
        """
        iv, encrypt = self._iv, self._encrypt
        size = 1 + len(self.cid) + NUMBER_SIZE
        # Headers as numbers: masking them is then one operation.
        shift = 8 * (size - 1)
        header = int.from_bytes(bytes((self._form | spin_bit << _SPIN_BIT_SHIFT,)) + self.cid, "big") << 8 * NUMBER_SIZE
        bodies = [
            encrypt((iv ^ at).to_bytes(12, "big"), payload, (header | at & 0xFFFF).to_bytes(size, "big"))
            for at, payload in enumerate(payloads, number)
        ]
        begin = _SAMPLE_OFFSET - NUMBER_SIZE
        end = begin + _SAMPLE
        masks = self._masks(b"".join([body[begin:end] for body in bodies]))
        firsts, seconds, thirds = masks[::_SAMPLE], masks[1::_SAMPLE], masks[2::_SAMPLE]
        return [
            ((header | at & 0xFFFF) ^ ((first & _PROTECTED_BITS) << shift | second << 8 | third)).to_bytes(size, "big")
            + body
            for at, first, second, third, body in zip(
                itertools.count(number), firsts, seconds, thirds, bodies, strict=False
            )
        ]


class NativeSealer(Sealer):
    """Makes packets, and protects them, by the compiled loop."""

    def __init__(self, aead: AEAD, protection: HeaderProtection, cid: bytes, key_phase: int) -> None:
        super().__init__(aead, protection, cid, key_phase)
        assert native.loops is not None
        self._seal_run = native.loops.seal_run
        self._keys = aead._aead.encrypt_into, self._masks, self._iv.to_bytes(12, "big"), cid

    def seal(
        self, head: bytes, offset: int, width: int, data: memoryview, chunk: int, number: int, spin_bit: bool
    ) -> list[bytes]:
        first = self._form | spin_bit << _SPIN_BIT_SHIFT
        packets: list[bytes] = self._seal_run(self._keys, first, number, head, offset, width, data, chunk)
        return packets


class _InOrder:
    """Data that came in order on one stream, and are in no event yet.

    :ivar stop: where they end.
    :ivar limit: the limit of flow control for the stream.
    :ivar fin: whether the stream ends with them.
    :ivar apart: whether what follows is for the receiver to judge: it holds data out of order, or knows the end.
    """

    __slots__ = ("apart", "fin", "limit", "pieces", "receiver", "stop")

    def __init__(self, receiver: PiecesReceiver, limit: int) -> None:
        self.receiver, self.limit = receiver, limit
        self.pieces: list[bytes] = []
        self.fin = 0
        self.look()

    def look(self) -> None:
        """Take over what the receiver has."""
        self.stop = self.receiver._buffer_start
        self.apart = self.receiver.is_apart


class RunConnection(EcnConnection):
    """aioquic's connection, with a short way for packets that come in runs.

    :ivar idle_timeout: after how many seconds of silence the connection is forgotten: the smaller of both sides'
        (RFC 9000 §10.1).
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.idle_timeout: float = self._configuration.idle_timeout
        self._opener: Opener | None = None
        self._in_order: dict[int, _InOrder] = {}
        self._unbooked = 0  # bytes that came in order and are not booked yet
        self._frames = 0  # how many more are read before others may have their turn

    def receive_run(
        self, run: bytes, ends: Sequence[int], index: int, addr: NetworkAddress, now: float, over: Callable[[], bool]
    ) -> int:
        """Take datagrams of a run, one at least. Return the index of the next one.

        :param ends: where each ends.
        :param index: the first one to take.
        :param over: returns whether others are to have their turn. It is called after packets that may take long.
        """
        start = ends[index - 1] if index else 0
        space = self._spaces[Epoch.ONE_RTT]
        expected = space.expected_packet_number
        self._frames = _MANY
        opener = self._opener_for(run, start, addr)
        packets = [] if opener is None else opener.open(run, ends, index, expected)
        if opener is None or not packets:
            self.receive_datagram(run[start : ends[index]], addr, now)
            return index + 1
        self.idle_timeout = self._idle_timeout()
        context = None
        begin = stop = booked = space.largest_received_packet + 1  # numbers from begin to stop are not booked yet
        merged = last = 0
        elicits = False
        packets.reverse()
        while packets:
            bits, number, count, content = packets.pop()
            if number != stop or number < booked:
                if begin < stop:
                    self._book(space, begin, stop, last, now, elicits=elicits)
                    booked, elicits = space.largest_received_packet + 1, False
                begin = stop = number
                if count == 1 and number < booked and number in space.received_packets:
                    index += 1
                    continue
            if isinstance(content, bytes):
                taken = self._take_frames(content, space, now)
            elif number >= booked and self._take_pieces(content):
                taken = _ELICITS
            else:
                packets += reversed(Opener.open(opener, run, ends[: index + count], index, number))
                continue
            index += count
            if number + count - 1 > expected:
                # As aioquic counts: the number that is expected does not raise it, the next one does.
                expected = number + count - (number + count - 1 - max(number, expected + 1) & 1)
            if taken:
                merged += count
                elicits |= taken is _ELICITS
                if self._frames < 0 and over():
                    packets.clear()
                    stop, last = number + count, bits
                    break
            else:
                self._tell(space, merged)
                merged = 0
                if begin < stop:
                    self._book(space, begin, stop, last, now, elicits=elicits)
                    booked, begin = space.largest_received_packet + 1, stop
                space.expected_packet_number = expected
                if number > self._spin_highest_pn:
                    self._spin_bit, self._spin_highest_pn = not get_spin_bit(bits), number
                if context is None:
                    context = QuicReceiveContext(Epoch.ONE_RTT, opener.cid, self._network_paths[0], None, now, None)
                assert isinstance(content, bytes)
                try:
                    elicits, _ = self._payload_received(context, content)
                except QuicConnectionError as error:
                    self.close(error.error_code, error.frame_type, error.reason_phrase)
                if self._state is not QuicConnectionState.CONNECTED or self._close_pending:
                    return index
                if over() or not self._goes_on(opener, addr):
                    self._book(space, begin, number + 1, bits, now, elicits=elicits)
                    return index
            stop, last = number + count, bits
        self._tell(space, merged)
        if begin < stop:
            self._book(space, begin, stop, last, now, elicits=elicits)
        space.expected_packet_number = expected
        return index

    def _opener_for(self, run: bytes, start: int, addr: NetworkAddress) -> Opener | None:
        """The opener for the packet that begins there, and perhaps for those that follow it."""
        if not (
            self._handshake_confirmed
            and self._state is QuicConnectionState.CONNECTED
            and self._quic_logger is None
            and not self._close_pending
            and addr == self._network_paths[0].addr
        ):
            return None
        crypto, opener = self._cryptos[Epoch.ONE_RTT].recv, self._opener
        if opener is not None and opener.aead is crypto.aead and run.startswith(opener.cid, start + 1):
            return opener if self._goes_on(opener, addr) else None
        aead, protection = crypto.aead, crypto.hp
        if aead is None or protection is None or protection._is_chacha20:
            return None
        for each in self._host_cids:
            if run.startswith(each.cid, start + 1):
                kind = Opener if native.loops is None else NativeOpener
                self._opener = kind(aead, protection, each.cid, crypto.key_phase)
                return self._opener
        return None

    def _goes_on(self, opener: Opener, addr: NetworkAddress) -> bool:
        """Whether opened packets are still valid, after others were acted on."""
        return addr == self._network_paths[0].addr and any(each.cid == opener.cid for each in self._host_cids)

    def _take_frames(self, payload: bytes, space: QuicPacketSpace, now: float) -> int:
        """Act on a packet, if it holds nothing but ordinary frames (see the module), all within limits.

        :return: :data:`_ELICITS` or :data:`_QUIET`; :data:`_NOT_TAKEN` if aioquic must act on the packet.
        """
        in_order, allowed = self._in_order, self._local_max_data
        at, end, frames = 0, len(payload), 0
        taken = _QUIET
        try:
            while at < end:
                kind = payload[at]
                frames += 1
                if kind & _STREAM_TYPES == STREAM:
                    taken = _ELICITS
                    stream_id = payload[at + 1]
                    at += 2
                    if stream_id > 0x3F:
                        if stream_id < 0x80:
                            stream_id = (stream_id & 0x3F) << 8 | payload[at]
                            at += 1
                        else:
                            stream_id, at = varint.decode(payload, at - 1)
                    offset = 0
                    if kind & OFF:
                        offset = payload[at]
                        if 0x80 <= offset < 0xC0:
                            offset = (
                                (offset & 0x3F) << 24 | payload[at + 1] << 16 | payload[at + 2] << 8 | payload[at + 3]
                            )
                            at += 4
                        else:
                            offset, at = varint.decode(payload, at)
                    if kind & LEN:
                        size = payload[at]
                        at += 1
                        if size > 0x3F:
                            size, at = varint.decode(payload, at - 1)
                        stop = at + size
                    else:
                        size, stop = end - at, end
                    unbooked = self._unbooked + size
                    if stop > end or unbooked > allowed.value - allowed.used:
                        return _NOT_TAKEN
                    fin = kind & FIN
                    one = in_order.get(stream_id)
                    if one is None:
                        stream = self._streams.get(stream_id)
                        if stream is None or type(stream.receiver) is not PiecesReceiver:
                            return _NOT_TAKEN
                        receiver, limit = stream.receiver, stream.max_stream_data_local
                        if fin and size and not offset and receiver.is_untouched and size <= limit:
                            # All of a stream at once: a small response.
                            self._unbooked = unbooked
                            self._events.append(receiver.take_whole(payload[at:stop]))  # type: ignore[arg-type]  # ours
                            at = stop
                            continue
                        one = in_order[stream_id] = _InOrder(receiver, limit)
                    if offset + size > one.limit:
                        return _NOT_TAKEN
                    if offset != one.stop or one.apart or one.fin or not (size or fin):
                        if not self._give(stream_id, one, offset, payload[at:stop], fin):
                            return _NOT_TAKEN
                        at = stop
                        continue
                    self._unbooked = unbooked
                    one.stop, one.fin = offset + size, fin
                    one.pieces.append(payload[at:stop])
                    at = stop
                elif kind == _MAX_STREAMS_BIDI:
                    # Some servers send one of these for each request that is over.
                    taken = _ELICITS
                    most, at = varint.decode(payload, at + 1)
                    if most > _MOST_STREAMS:
                        return _NOT_TAKEN
                    if most > self._remote_max_streams_bidi:
                        self._remote_max_streams_bidi = most
                        if self._streams_blocked_bidi:
                            self._unblock_streams(is_unidirectional=False)
                elif kind in (_ACK, _ACK_ECN):
                    at = self._take_ack(payload, at, space, now)
                    if not at:
                        return _NOT_TAKEN
                elif kind == _PADDING:
                    at = end - len(payload[at:].lstrip(b"\0"))
                elif kind == _PING:
                    taken = _ELICITS
                    at += 1
                else:
                    return _NOT_TAKEN
        except IndexError:  # a frame that is cut off
            return _NOT_TAKEN
        self._frames -= frames
        return taken if end else _NOT_TAKEN

    def _take_ack(self, payload: bytes, at: int, space: QuicPacketSpace, now: float) -> int:
        """Act on an ACK frame (RFC 9000 §19.3). Return where it ends; 0 if aioquic must act on it.

        :raises IndexError: when it is cut off.
        """
        kind = payload[at]
        largest, at = varint.decode(payload, at + 1)
        delay, at = varint.decode(payload, at)
        more, at = varint.decode(payload, at)
        size, at = varint.decode(payload, at)
        if more > _FEW_RANGES or self._were_not_sent(largest):
            return 0
        start = largest - size
        ranges = [range(start, largest + 1)]
        for _ in range(more):
            gap, at = varint.decode(payload, at)
            size, at = varint.decode(payload, at)
            stop = start - gap - 1
            start = stop - size - 1
            ranges.append(range(start, stop))
        if start < 0:
            return 0
        counts = None
        if kind == _ACK_ECN:
            ect_0, at = varint.decode(payload, at)
            ect_1, at = varint.decode(payload, at)
            ce, at = varint.decode(payload, at)
            counts = ect_0, ect_1, ce
        ranges.reverse()
        self._acknowledged(space, ranges, (delay << self._remote_ack_delay_exponent) / 1000000, counts, now)
        return at

    def _take_pieces(self, pieces: list[Piece]) -> bool:
        """Act on packets that hold these. Return whether they do: whether all is within limits."""
        in_order, allowed = self._in_order, self._local_max_data
        unbooked = self._unbooked
        for stream_id, offset, data, fin in pieces:
            one = in_order.get(stream_id)
            if one is None:
                stream = self._streams.get(stream_id)
                if stream is None or type(stream.receiver) is not PiecesReceiver:
                    return False
                one = in_order[stream_id] = _InOrder(stream.receiver, stream.max_stream_data_local)
            end = offset + len(data)
            if end > one.limit:
                return False
            if offset == one.stop and not one.apart:
                if one.fin:
                    return False
                unbooked += len(data)
            elif fin or one.fin or one.receiver._final_size is not None:
                return False
            else:
                unbooked += max(0, end - max(one.stop, one.receiver.highest_offset))
        if unbooked > allowed.value - allowed.used:
            return False
        for stream_id, offset, data, fin in pieces:
            one = in_order[stream_id]
            if offset == one.stop and not one.apart:
                self._unbooked += len(data)
                one.stop, one.fin = offset + len(data), fin
                one.pieces.append(data)
            elif not self._give(stream_id, one, offset, data, fin):
                return False
        return True

    def _give(self, stream_id: int, one: _InOrder, offset: int, data: bytes, fin: int) -> bool:
        """Give the receiver data that are out of order, perhaps. Return whether it takes them.

        :param data: within the stream's limit.
        """
        if one.pieces:
            self._tell_of(stream_id, one)
            one.look()
        receiver, allowed = one.receiver, self._local_max_data
        unbooked = self._unbooked + max(0, offset + len(data) - receiver.highest_offset)
        if unbooked > allowed.value - allowed.used:
            return False
        try:
            event = receiver.handle_frame(QuicStreamFrame(data, bool(fin), offset))
        except (FinalSizeError, QuicConnectionError):
            return False  # aioquic gives them again, and ends the connection
        if event is not None:
            self._events.append(event)  # type: ignore[arg-type]  # ours, as those of PiecesReceiver are
        self._unbooked = unbooked
        one.look()
        return True

    def _tell(self, space: QuicPacketSpace, packets: int) -> None:
        """Book the data that some packets have brought in order, and make events of them."""
        self._count_marks(space, packets)
        self._local_max_data.used += self._unbooked
        self._unbooked = 0
        for stream_id, one in self._in_order.items():
            if one.pieces:
                self._tell_of(stream_id, one)
        self._in_order.clear()

    def _tell_of(self, stream_id: int, one: _InOrder) -> None:
        """Make an event of the data that have come in order on one stream."""
        receiver, pieces = one.receiver, one.pieces
        receiver._buffer_start = receiver.highest_offset = one.stop
        if one.fin:
            receiver._final_size, receiver.is_finished = one.stop, True
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        event = StreamDataReceived(stream_id, data, bool(one.fin))
        self._events.append(event)  # type: ignore[arg-type]  # ours, as those of PiecesReceiver are
        one.pieces, one.fin = [], 0

    def _book(self, space: QuicPacketSpace, begin: int, stop: int, bits: int, now: float, *, elicits: bool) -> None:
        """Book packets with these numbers.

        :param bits: the first byte of the last one.
        :param elicits: whether any of them asks for an acknowledgement.
        """
        self._close_at = now + self.idle_timeout
        self._ack_eliciting_sent_since_receipt = False
        last = stop - 1
        if last > self._spin_highest_pn:
            self._spin_bit, self._spin_highest_pn = not get_spin_bit(bits), last
        if last > space.largest_received_packet:
            space.largest_received_packet, space.largest_received_time = last, now
        space.ack_queue.add(begin, stop)
        if len(space.ack_queue) > MAX_ACK_RANGES:
            space.ack_queue.shift()
        received = space.received_packets
        received._received.update(range(begin, last))
        received.add(last)
        if elicits and space.ack_at is None:
            space.ack_at = now + self._ack_delay
