"""aioquic's client connection: windows by consumption, a closing state that listens, typed ends.

Theory of operation. aioquic's ``QuicConnection`` is a complete sans-IO QUIC, but for a client that must be bounded and
end well it lacks seven things, and this subclass adds them by overriding as little as possible:

- **Credit.** aioquic doubles a receive window when half of it has *arrived*, so a slow reader buffers without bound.
  Here windows grow only by what :meth:`credit` and :meth:`credit_stream` say was *consumed*. What is never delivered
  (the rest of a stream that was reset) is credited to the connection here.
- **Closing.** In its closing state aioquic ignores what comes. RFC 9000 §10.2.1 has the peer's CONNECTION_CLOSE end
  that state, so input is still decrypted and parsed, by the same code as ever, and all of it forgotten save a close.
- **The end, told at once.** aioquic tells of a peer's close when the draining period is over, three PTO late. Here
  :meth:`take_events` tells it with the batch that brought it, and :attr:`ended` says who ended it and why.
- **Stateless resets** (RFC 9000 §10.3), which aioquic drops as undecipherable.
- **A handshake that gets through.** After a probe timeout aioquic sends one datagram, and it sends no ACK twice. Until
  the handshake is confirmed we send two, each with all that is not acknowledged, and with the ACKs.
- **0-RTT that was for nothing** (Retry, Version Negotiation, a ticket that is not accepted) is sent again at once. For
  aioquic it stays sent, and the limits that were remembered with the ticket stay in force.
- **Bounds on what comes in pieces** (RFC 9000 §21.6). aioquic keeps a handshake message of any length in a string, and
  copies it for each piece; for streams see ``pieces.py``. A server gets few streams, with small windows.

It uses aioquic's private names. Each is listed in ``tests/quic/test_canary.py``, which breaks first.
"""

from __future__ import annotations

import hmac
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, TextIO

from aioquic import tls
from aioquic._buffer import Buffer
from aioquic._crypto import CryptoError
from aioquic.quic import events as theirs
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    CONNECTION_LIMIT_FRAME_CAPACITY,
    END_STATES,
    MAX_STREAM_DATA_FRAME_CAPACITY,
    NetworkAddress,
    QuicConnectionError,
    QuicConnectionState,
    QuicReceiveContext,
)
from aioquic.quic.logger import QuicLogger
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicHeader,
    get_spin_bit,
    pull_quic_transport_parameters,
)
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import MAX_ACK_RANGES, QuicPacketPacer, QuicPacketSpace
from aioquic.quic.stream import QuicStream
from cryptography.x509 import Certificate

from allswell._errors import ConnectFailed, printable, shown
from allswell._quic import trust
from allswell._quic.interface import (
    ConnectionTerminated,
    DatagramFrameReceived,
    End,
    HandshakeCompleted,
    QuicEvent,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)
from allswell._quic.path_mtu import PathMtuConnection
from allswell._quic.pieces import Held, PiecesReceiver
from allswell._quic.settings import QuicSettings
from allswell._quic.tickets import Resumption


def _printable(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), None
    return True


# aioquic's log has what the peer said in it. And where a program has not set up logging at all, its warnings are not
# for standard error: they are told as errors here.
_log = logging.getLogger("quic")
_log.addFilter(_printable)
_log.addHandler(logging.NullHandler())

#: RFC 9000 §10.3: a stateless reset is at least so long.
_SHORTEST_RESET = 21
#: RFC 9000 §17.3.1: the header form and the fixed bit.
_HEADER_FORM, _SHORT_HEADER, _LONG_HEADER = 0xC0, 0x40, 0x80
_RESERVED_BITS = 0x18
#: RFC 9000 §2.1: the two low bits of a stream's number.
_KIND, _OURS_BOTH_WAYS, _OURS_ONE_WAY = 0b11, 0b00, 0b10
#: Of a 1-RTT packet: its header, with the longest connection ID and aioquic's packet number, and the AEAD's tag.
_PACKET_OVERHEAD = 1 + 20 + 2 + 16
#: Of a DATAGRAM frame: its type and length.
_DATAGRAM_OVERHEAD = 1 + 2
#: Streams that a server may have open, and the window of each. HTTP/3 has none that go both ways (RFC 9114 §6.1), and
#: three that are one-way (§6.2.1, RFC 9204 §4.2); some servers open others, to see them ignored, and more as those end.
_SERVER_STREAMS, _SERVER_WINDOW = 16, 64 * 1024
#: Pieces of the handshake that may lie apart, waiting for what is between them.
_GAPS = 256
#: Bytes of the longest handshake message, in the main a chain of certificates (OpenSSL: 100 KiB).
_LONGEST_MESSAGE = 128 * 1024
#: Of so many unanswered probes (RFC 9002 §6.2.1: each waits twice as long as the one before), silence is made.
_SILENT_PROBES = 3
#: Packets that were sent and not acknowledged: so many, and those that ask for no acknowledgement are forgotten.
_REMEMBERED = 4096
#: What a backend is told of aioquic's events, besides those that ``pieces.py`` makes. The others are no news.
_TOLD: dict[type, Callable[[Any], QuicEvent]] = {
    StreamReset: lambda event: event,
    theirs.StopSendingReceived: lambda event: StopSendingReceived(event.stream_id, event.error_code),
    theirs.DatagramFrameReceived: lambda event: DatagramFrameReceived(event.data),
    theirs.HandshakeCompleted: lambda event: HandshakeCompleted(),
}
#: Event loops keep time to a millisecond: a pacer that is asked so seldom must hand out so many seconds' worth at once.
_PACER_BURST = 0.002


#: Raises an alert of aioquic's when a chain is not to be trusted.
Judge = Callable[[list[Certificate]], None]


class _Pacer(QuicPacketPacer):
    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        super().update_rate(congestion_window=congestion_window, smoothed_rtt=smoothed_rtt)
        self.bucket_max = max(self.bucket_max, _PACER_BURST)


class ClientConnection(PathMtuConnection):
    """One client's QUIC connection; see the module for what it adds to aioquic's.

    :param judge: judges the chain that the server shows, its own certificate first, and raises a TLS alert.
        (``configuration`` says whether aioquic does, too.)
    :ivar ended: why it is over, or ``None`` while it lives.
    :ivar dirty: whether something was done that :meth:`datagrams_to_send` may have datagrams for.
    :ivar silent: whether the peer has left several probes in a row unanswered.
    """

    def __init__(self, configuration: QuicConfiguration, *, judge: Judge | None = None, **callbacks: Any) -> None:
        super().__init__(configuration=configuration, **callbacks)
        self._judge = judge
        self._loss._pacer = _Pacer(max_datagram_size=configuration.max_datagram_size)
        self._connection_freed = 0
        self._announced = False
        self._probes_when_heard = 0
        #: Whether there may have been 0-RTT, and limits that were remembered with the ticket.
        self._early = False
        self._second_probe = False
        self._remembered = _REMEMBERED
        self._silence_told = False
        self._state_before_close = self._state
        self.stream_window = configuration.max_stream_data
        self._held = Held(self.stream_window)
        self._local_max_streams_bidi.value = self._local_max_streams_bidi.sent = 0
        self._local_max_streams_uni.value = self._local_max_streams_uni.sent = _SERVER_STREAMS
        self._local_max_stream_data_uni = _SERVER_WINDOW
        self.connection_window = configuration.max_data
        #: Whether DATAGRAM frames are accepted here (RFC 9221).
        self.datagrams = configuration.max_datagram_frame_size is not None
        self.migration_allowed = True
        self._context: QuicReceiveContext | None = None
        #: Seconds of silence after which the connection is forgotten: the smaller of both sides' (RFC 9000 §10.1).
        self.idle_timeout = configuration.idle_timeout
        self.ended: End | None = None
        #: The peer's CONNECTION_CLOSE or stateless reset, heard before or after we closed.
        self.heard: End | None = None
        #: The server's, once it was judged. (A session that is resumed shows none.)
        self.judged_certificate: Certificate | None = None
        self.dirty = True
        self.silent = False

    # What a backend needs

    @property
    def handshake_complete(self) -> bool:
        return self._handshake_complete

    @property
    def early_data_ready(self) -> bool:
        """Whether streams can be written to before the handshake is complete (0-RTT)."""
        return self._cryptos[tls.Epoch.ZERO_RTT].send.is_valid()

    @property
    def max_streams(self) -> int:
        """Bidirectional streams that the peer lets us open in all, so far."""
        return self._remote_max_streams_bidi

    @property
    def streams_left(self) -> int:
        """Bidirectional streams that we may open now."""
        if self.ended is not None:
            return 0
        return self._remote_max_streams_bidi - self.get_next_available_stream_id() // 4

    @property
    def largest_datagram(self) -> int:
        """Bytes of the largest DATAGRAM frame's payload that the peer accepts (RFC 9221 §3) and a packet holds, or 0.

        (aioquic would keep a larger one for ever, and all behind it: what the path carries now it may not carry then.)
        """
        frame = min(self._remote_max_datagram_frame_size or 0, self.base_size - _PACKET_OVERHEAD)
        return max(0, frame - _DATAGRAM_OVERHEAD)

    @property
    def unsent_datagrams(self) -> int:
        """About how many bytes of DATAGRAM frames were not sent yet."""
        return len(self._datagrams_pending) * self.base_size

    def was_heard(self) -> None:
        """Something came: the peer is not silent."""
        self._probes_when_heard = self._loss._pto_count  # not 0: what came need not acknowledge anything
        self.silent = self._silence_told = False

    @property
    def silence_is_news(self) -> bool:
        """Whether it has fallen silent, and :meth:`tell_silence` was not called since."""
        return self.silent and not self._silence_told

    def tell_silence(self) -> None:
        """Whoever is concerned looks at ``silent`` now."""
        self._silence_told = True

    def unsent(self, stream_id: int) -> int:
        """Bytes of a stream that were not sent a first time yet."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.sender._buffer_stop - stream.sender.highest_offset

    def credit(self, size: int) -> None:
        """So many bytes of any stream were consumed: the peer may send as many more on this connection."""
        self._connection_freed += size
        if self._connection_freed >= self.connection_window >> 2:
            self._local_max_data.value += self._connection_freed
            self._connection_freed = 0
            self.dirty = True

    def credit_stream(self, stream_id: int, size: int) -> None:
        """The peer may send so many more bytes on this stream."""
        stream = self._streams.get(stream_id)
        if stream is not None and stream.receiver._final_size is None:
            stream.max_stream_data_local += size
            self.dirty = True

    def send_stream_data(self, stream_id: int, data: bytes, end_stream: bool = False) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None and stream.sender._reset_error_code is not None:
            return  # the peer's STOP_SENDING has come (RFC 9000 §3.5); the writer is about to hear of it
        self.dirty = True
        super().send_stream_data(stream_id, data, end_stream)

    def reset_stream(self, stream_id: int, error_code: int) -> None:
        self.dirty = True
        super().reset_stream(stream_id, error_code)

    def stop_stream(self, stream_id: int, error_code: int) -> None:
        """Ask the peer to stop sending; nothing when it has ended the stream already (RFC 9000 §3.5)."""
        stream = self._streams.get(stream_id)
        if stream is not None and stream.receiver._final_size is None:
            self.dirty = True
            super().stop_stream(stream_id, error_code)

    def send_ping(self, uid: int) -> None:
        self.dirty = True
        super().send_ping(uid)

    def send_datagram_frame(self, data: bytes) -> None:
        self.dirty = True
        super().send_datagram_frame(data)

    def close(
        self, error_code: int = QuicErrorCode.NO_ERROR, frame_type: int | None = None, reason_phrase: str = ""
    ) -> None:
        self.dirty = True
        super().close(error_code, frame_type, reason_phrase)
        if self._state not in END_STATES:
            self._close_pending = (
                True  # or aioquic, which closes but once, would go on with what we hear while we close
            )
        if self.ended is None:
            self.ended = End("us", int(error_code), frame_type is None, reason_phrase)

    # What the filter needs

    @property
    def probe_timeout(self) -> float:
        """The PTO, in seconds, without back-off (RFC 9002 §6.2.1)."""
        return self._loss.get_probe_timeout()

    @property
    def awaits_response(self) -> bool:
        """Whether the peer owes the rest of a bidirectional stream."""
        return any(not number & 2 and not stream.receiver.is_finished for number, stream in self._streams.items())

    @property
    def all_acknowledged(self) -> bool:
        """Whether nothing is queued, and nothing that was sent is without its acknowledgement."""
        if self._ping_pending or self._spaces[tls.Epoch.ONE_RTT].ack_eliciting_in_flight:
            return False
        senders = (stream.sender for stream in self._streams.values())
        return all(sender.buffer_is_empty and not sender.reset_pending for sender in senders)

    @property
    def version(self) -> int:
        """The QUIC version that is spoken."""
        assert self._version is not None
        return self._version

    @property
    def certificate_chain(self) -> list[Certificate]:
        """What the server showed, its own certificate first; nothing, where a session was resumed."""
        certificate = self.tls._peer_certificate
        return [] if certificate is None else [certificate, *self.tls._peer_certificate_chain]

    def take_events(self) -> list[QuicEvent]:
        """All that happened. What arrived in order on one stream is one event, in however many packets it came."""
        events: list[QuicEvent] = []
        queue: deque[Any] = self._events  # of aioquic's events, and of those that pieces.py makes
        while queue:
            event = queue.popleft()
            if type(event) is StreamDataReceived:
                following = queue[0] if queue else None
                stream_id = event.stream_id
                if type(following) is StreamDataReceived and following.stream_id == stream_id:
                    pieces = [event.data]
                    while type(following) is StreamDataReceived and following.stream_id == stream_id:
                        pieces.append(following.data)
                        event.end_stream = following.end_stream
                        queue.popleft()
                        following = queue[0] if queue else None
                    event.data = b"".join(pieces)
                events.append(event)
            elif (told := _TOLD.get(type(event))) is not None:
                events.append(told(event))
        if self.ended is not None and not self._announced:
            self._announced = True
            events.append(ConnectionTerminated(self.ended))
        return events

    def answer_close(self, error_code: int, now: float) -> list[bytes]:
        """The one CONNECTION_CLOSE that may be sent before draining, in answer to the peer's (RFC 9000 §10.2.2)."""
        state, event = self._state, self._close_event
        self._state = self._state_before_close
        self._close_event = theirs.ConnectionTerminated(error_code=error_code, frame_type=None, reason_phrase="")
        self._close_pending = True
        datagrams = [datagram for datagram, _ in super().datagrams_to_send(now)]
        self._state, self._close_event = state, event
        return datagrams

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        self.dirty = False
        datagrams = super().datagrams_to_send(now)
        if self._second_probe:
            self._second_probe = False
            if len(datagrams) < 2 and not self._close_pending and self._state not in END_STATES:
                self._loss.reschedule_data(now=now)  # all of it again, for either may be the one that is lost
                self._repeat_acknowledgements(now)
                datagrams += super().datagrams_to_send(now)
        sent = self._spaces[tls.Epoch.ONE_RTT].sent_packets
        if len(sent) > self._remembered:
            # A peer need not acknowledge those that ask for nothing (RFC 9000 §13.2.1), and some never do.
            for number in [number for number, packet in sent.items() if not packet.is_ack_eliciting]:
                del sent[number]
            self._remembered = max(_REMEMBERED, 2 * len(sent))
        return datagrams

    def receive_datagram(self, data: bytes, addr: NetworkAddress, now: float) -> None:
        self.dirty = True
        if (
            self._handshake_confirmed
            and self._state is QuicConnectionState.CONNECTED
            and self._quic_logger is None
            and addr == self._network_paths[0].addr
            and (cid := self._addressee(data)) is not None
            and data[0] & _HEADER_FORM == _SHORT_HEADER
        ):
            self._receive_packet(data, cid, now)
        elif self._is_stateless_reset(data):
            self._reset_by_peer(now)
        elif self._state is not QuicConnectionState.CLOSING:
            super().receive_datagram(data, addr, now)
        else:
            # As if we were not closing; then forget all that it did, save that a close was heard.
            close_at = self._close_at
            self._state = self._state_before_close
            super().receive_datagram(data, addr, now)
            self._state, self._close_at, self._close_pending = QuicConnectionState.CLOSING, close_at, False
            self._events.clear()

    def _addressee(self, data: bytes) -> bytes | None:
        """Which of our connection ids a packet with a short header is for. (Peers may change at will.)"""
        for each in self._host_cids:
            if data.startswith(each.cid, 1):
                return each.cid
        return None

    def _receive_packet(self, data: bytes, cid: bytes, now: float) -> None:
        """A 1-RTT packet of a connection in its prime: what downloads consist of.

        It does what ``receive_datagram`` would, without asking what cannot be: a client, past its handshake, on a
        connected socket, that keeps no qlog. That is a quarter of the time that a packet takes.
        """
        space = self._spaces[tls.Epoch.ONE_RTT]
        try:
            header, payload, number = self._cryptos[tls.Epoch.ONE_RTT].decrypt_packet(
                data, 1 + len(cid), space.expected_packet_number
            )
        except CryptoError:
            if self._is_stateless_reset(data):
                self._reset_by_peer(now)
            return
        if number in space.received_packets:
            return
        if header[0] & _RESERVED_BITS:
            self.close(QuicErrorCode.PROTOCOL_VIOLATION, QuicFrameType.PADDING, "Reserved bits must be zero")
            return
        if number > space.expected_packet_number:
            space.expected_packet_number = number + 1
        if number > self._spin_highest_pn:
            self._spin_bit = not get_spin_bit(header[0])
            self._spin_highest_pn = number
        context = self._context
        if context is None or context.time != now or context.host_cid != cid:
            context = self._context = QuicReceiveContext(
                tls.Epoch.ONE_RTT, cid, self._network_paths[0], None, now, None
            )
            self.idle_timeout = self._idle_timeout()
        try:
            is_ack_eliciting, _ = self._payload_received(context, payload)
        except QuicConnectionError as error:
            self.close(error.error_code, error.frame_type, error.reason_phrase)
            return
        if self._state is not QuicConnectionState.CONNECTED or self._close_pending:
            return
        self._close_at = now + self.idle_timeout
        self._ack_eliciting_sent_since_receipt = False
        if number > space.largest_received_packet:
            space.largest_received_packet = number
            space.largest_received_time = now
        space.ack_queue.add(number)
        space.received_packets.add(number)
        if len(space.ack_queue) > MAX_ACK_RANGES:
            space.ack_queue.shift()
        if is_ack_eliciting and space.ack_at is None:
            space.ack_at = now + self._ack_delay

    def _is_stateless_reset(self, data: bytes) -> bool:
        """RFC 9000 §10.3.1: compared in constant time, so that the token cannot be guessed byte by byte."""
        token = self._peer_cid.stateless_reset_token
        if not token or len(data) < _SHORTEST_RESET or data[0] & _LONG_HEADER:
            return False
        return hmac.compare_digest(data[-16:], token)

    def handle_timer(self, now: float) -> None:
        self.dirty = True
        before = self._loss._pto_count
        super().handle_timer(now)
        probes = self._loss._pto_count
        if probes > before and not self._handshake_confirmed:
            # RFC 9002 §6.2.4 allows two datagrams for each probe timeout: the next one is twice as far away.
            self._second_probe = True
            self._repeat_acknowledgements(now)
        self._probes_when_heard = min(self._probes_when_heard, probes)
        self.silent = probes - self._probes_when_heard >= _SILENT_PROBES

    def _repeat_acknowledgements(self, now: float) -> None:
        """With a probe of the handshake: the peer's silence may mean that it waits for what was lost (§13.2.1)."""
        for epoch in (tls.Epoch.INITIAL, tls.Epoch.HANDSHAKE):
            space = self._spaces[epoch]
            if len(space.ack_queue) and not space.discarded:
                space.ack_at = now

    def discard(self) -> None:
        """Forget the streams, and finish the qlog."""
        self._streams.clear()
        self._streams_queue.clear()
        logger = self._configuration.quic_logger
        if self._quic_logger is not None and logger is not None:
            logger.end_trace(self._quic_logger)
            self._quic_logger = None

    # Overrides of aioquic's inner works

    def _reset_by_peer(self, now: float) -> None:
        """RFC 9000 §10.3.1: the peer has lost its state. Nothing may be sent any more."""
        end = End("peer", None, False, "stateless reset")
        self.heard = self.heard or end
        if self.ended is None:
            self.ended = end
            self._close_event = theirs.ConnectionTerminated(error_code=0, frame_type=None, reason_phrase=end.reason)
            self._close_begin(is_initiator=False, now=now)

    def _connect(self, now: float) -> None:
        self._early = self._early or self._configuration.session_ticket is not None
        self._send_anew(list(self._spaces.values()), now)
        before = (self.tls, self._cryptos, self._crypto_streams) if self._retry_count else None
        if self._version_negotiated_incompatible and not self._retry_count:
            # RFC 9369 §5: both are of one version only. (What was sent with 0-RTT goes when the handshake is complete.)
            self._configuration.session_ticket, self._peer_token = None, b""
        super()._connect(now)
        if before is not None:
            # RFC 9000 §17.2.5.3: after Retry the same ClientHello again; aioquic has just made another.
            self.tls, cryptos, streams = before
            self._cryptos[tls.Epoch.ZERO_RTT] = cryptos[tls.Epoch.ZERO_RTT]
            hello = self._crypto_streams[tls.Epoch.INITIAL] = QuicStream()
            hello.sender.write(bytes(streams[tls.Epoch.INITIAL].sender._buffer))
            return
        judge = self._judge
        if judge is None:
            return
        # After the signature, before anything is answered.
        signature = self.tls._client_handle_certificate_verify

        def handle(message: Buffer) -> None:
            signature(message)
            chain = self.certificate_chain
            judge(chain)
            self.judged_certificate = chain[0]

        self.tls._client_handle_certificate_verify = handle  # type: ignore[method-assign, assignment]  # of this one context

    def _send_anew(self, spaces: list[QuicPacketSpace], now: float) -> None:
        """Nothing of what was sent in these spaces was processed, or will be (RFC 9002 §6.3, §6.4).

        Of streams, that is all that was sent so far. What is sent again counts as sent a first time.
        """
        for space in spaces:
            packets = list(space.sent_packets.values())
            self._loss._on_packets_lost(congestion_event=False, now=now, packets=packets, space=space)
        self._loss._pto_count = self._remote_max_data_used = 0
        for stream in self._streams.values():
            stream.sender.highest_offset = 0

    def _receive_version_negotiation_packet(self, header: QuicHeader, now: float) -> None:
        if not self._retry_count:  # RFC 9000 §6.2: or another packet was processed
            super()._receive_version_negotiation_packet(header, now)

    def _early_data_is_over(self, now: float) -> None:
        """The handshake is complete: the server's own transport parameters hold, not those remembered (§7.4.1)."""
        if not self.tls.early_data_accepted:
            self._send_anew([self._spaces[tls.Epoch.ONE_RTT]], now)
        bidi, uni = self._streams_blocked_bidi, self._streams_blocked_uni
        for kind, window, most, blocked in (
            (_OURS_BOTH_WAYS, self._remote_max_stream_data_bidi_remote, self._remote_max_streams_bidi, bidi),
            (_OURS_ONE_WAY, self._remote_max_stream_data_uni, self._remote_max_streams_uni, uni),
        ):
            blocked.clear()
            for number, stream in sorted(self._streams.items()):
                if number & _KIND == kind:
                    stream.max_stream_data_remote = window
                    stream.is_blocked = number // 4 >= most
                    blocked += [stream] * stream.is_blocked
        self._streams_blocked_pending = bool(bidi or uni)

    def _close_begin(self, is_initiator: bool, now: float) -> None:
        self._state_before_close = self._state
        super()._close_begin(is_initiator, now)

    def _close_end(self) -> None:
        super()._close_end()
        event = self._events.pop()  # take_events tells it, once
        if self.ended is None:
            assert isinstance(event, theirs.ConnectionTerminated)
            self.ended = End("network", None, False, event.reason_phrase)

    def _handle_connection_close_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        start = buf.tell()
        code = buf.pull_uint_var()
        buf.seek(start)
        super()._handle_connection_close_frame(context, frame_type, buf)
        reason = self._close_event.reason_phrase if self._close_event is not None else ""
        if self.heard is None:
            self.heard = End("peer", code, frame_type == QuicFrameType.APPLICATION_CLOSE, shown(reason))
        if self.ended is None:
            self.ended = self.heard

    def _handle_crypto_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        pieces = len(self._crypto_streams[context.epoch].receiver._ranges)
        if pieces > _GAPS or len(self.tls._receive_buffer) > _LONGEST_MESSAGE:
            reason = "a handshake message that is too long, or in too many pieces"
            raise QuicConnectionError(QuicErrorCode.CRYPTO_BUFFER_EXCEEDED, frame_type, reason)  # RFC 9000 §7.5
        before = self._handshake_complete
        super()._handle_crypto_frame(context, frame_type, buf)
        if self._handshake_complete and not before and self._early:
            self._early_data_is_over(context.time)

    def _get_or_create_stream(self, frame_type: int, stream_id: int) -> QuicStream:
        stream = super()._get_or_create_stream(frame_type, stream_id)
        if type(stream.receiver) is not PiecesReceiver:  # one of the peer's, of which this is the first that is heard
            stream.receiver = PiecesReceiver(stream_id, self._held)
        return stream

    def _get_or_create_stream_for_send(self, stream_id: int) -> QuicStream:
        known = stream_id in self._streams
        stream = super()._get_or_create_stream_for_send(stream_id)
        if not known and not stream_id & 2:
            stream.receiver = PiecesReceiver(stream_id, self._held)
        return stream

    def _handle_reset_stream_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        start = buf.tell()
        stream_id = buf.pull_uint_var()
        buf.seek(start)
        stream = self._streams.get(stream_id)
        over = stream is not None and stream.receiver.is_finished
        super()._handle_reset_stream_frame(context, frame_type, buf)
        if not over:
            # Up to its final size it has used the connection's window, but the rest will never be consumed.
            stream = self._streams[stream_id]  # which may be new: all that it carried before was lost
            self.credit(stream.receiver.highest_offset - stream.receiver.starting_offset())

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        super()._parse_transport_parameters(data, from_session_ticket)
        self.idle_timeout = self._idle_timeout()
        parameters = pull_quic_transport_parameters(Buffer(data=data))
        self.migration_allowed = not parameters.disable_active_migration
        if parameters.max_udp_payload_size is not None:
            self.largest_payload = min(self.largest_payload, parameters.max_udp_payload_size)

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        for limit in (self._local_max_data, self._local_max_streams_bidi, self._local_max_streams_uni):
            if limit.value == limit.sent:
                continue
            if limit is not self._local_max_data and limit.sent - limit.used >= limit.value - limit.sent:
                continue  # MAX_STREAMS in batches, as aioquic does
            buf = builder.start_frame(
                limit.frame_type,
                capacity=CONNECTION_LIMIT_FRAME_CAPACITY,
                handler=self._on_connection_limit_delivery,
                handler_args=(limit,),
            )
            buf.push_uint_var(limit.value)
            limit.sent = limit.value
            if self._quic_logger is not None and builder.quic_logger_frames is not None:
                frame = self._quic_logger.encode_connection_limit_frame(limit.frame_type, limit.value)
                builder.quic_logger_frames.append(frame)

    def _write_stream_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream) -> None:
        if stream.max_stream_data_local_sent == stream.max_stream_data_local or stream.receiver.is_finished:
            return
        buf = builder.start_frame(
            QuicFrameType.MAX_STREAM_DATA,
            capacity=MAX_STREAM_DATA_FRAME_CAPACITY,
            handler=self._on_max_stream_data_delivery,
            handler_args=(stream,),
        )
        assert stream.stream_id is not None
        buf.push_uint_var(stream.stream_id)
        buf.push_uint_var(stream.max_stream_data_local)
        stream.max_stream_data_local_sent = stream.max_stream_data_local
        if self._quic_logger is not None and builder.quic_logger_frames is not None:
            frame = self._quic_logger.encode_max_stream_data_frame(stream.max_stream_data_local, stream.stream_id)
            builder.quic_logger_frames.append(frame)


def new_connection(settings: QuicSettings, *, qlog: QuicLogger | None, keylog: TextIO | None) -> ClientConnection:
    """A connection with these settings, that has sent nothing yet.

    :raises OSError: when a certificate file cannot be read.
    :raises ValueError: when one cannot be parsed.
    """
    configuration = settings.configuration()
    configuration.quic_logger, configuration.secrets_log_file = qlog, keylog
    callbacks: dict[str, Any] = {}
    if settings.store is not None:
        resumption = Resumption(settings, settings.store, configuration)
        callbacks["session_ticket_handler"] = lambda ticket: resumption.keep_ticket(
            ticket, connection.version, connection.certificate_chain
        )
        callbacks["token_handler"] = lambda token: resumption.keep_token(token, connection.version)
    judge = partial(trust.check, settings.trust, settings.server_name)
    connection: ClientConnection = ClientConnection(configuration, judge=judge, **callbacks)
    return connection


def handshake_error(end: End, server: str) -> ConnectFailed:
    """The end of a connection that was to be made, as an error."""
    message, tls_alert = str(end), False
    if end.code is not None and not end.application and end.code & ~0xFF == QuicErrorCode.CRYPTO_ERROR:
        alert = end.code & 0xFF
        names = {int(description): description.name for description in tls.AlertDescription}
        message, tls_alert = f"TLS alert {names.get(alert, alert)}", True
    elif end.code is not None:
        message = f"{end} from the {'peer' if end.by == 'peer' else 'client'}"
    if end.reason and end.reason != message:
        message += f": {end.reason}"
    return ConnectFailed(f"no QUIC connection to {server}: {message}", phase="tls" if tls_alert else "quic", by=end.by)
