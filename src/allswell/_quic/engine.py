"""aioquic's connection for clients: windows by consumption, a closing state that listens, typed ends.

Theory of operation. aioquic's ``QuicConnection`` is a complete QUIC without I/O. A client that has limits and ends well
needs seven things more. This subclass adds them, and overrides as little as possible. (Others use
:class:`~allswell._quic.connection.ClientConnection`, which has one.)

- **Credit.** aioquic doubles a receive window when half of it has *arrived*, so a slow reader buffers without limit.
  Here windows grow only by *consumed* bytes. Bytes that are never delivered (the rest of a stream that was reset) are
  credited to the connection here.
- **Closing.** In its closing state aioquic ignores input. By RFC 9000 §10.2.1 the peer's CONNECTION_CLOSE ends that
  state. So input is still decrypted and parsed by the usual code, and all of it is dropped but a close.
- **The end, known at once.** aioquic reports a peer's close after the draining period, three PTO late. Here
  :attr:`ended` says at once which side ended it, and why.
- **Stateless resets** (RFC 9000 §10.3), which aioquic drops as undecipherable.
- **A handshake that survives loss.** After a probe timeout aioquic sends one datagram, and it sends no ACK twice. Until
  the handshake is confirmed this sends two, each with all that is not acknowledged, and with the ACKs.
- **0-RTT that is lost** (by Retry, Version Negotiation, a rejected ticket) is sent again at once. aioquic
  counts it as sent, and keeps the limits that were remembered with the ticket.
- **Limits for data in pieces** (RFC 9000 §21.6). aioquic keeps a handshake message of any length in a string, and
  copies it for each piece. For streams see ``pieces.py``. A server gets few streams, with small windows.

It uses aioquic's private names. Each is listed in ``tests/quic/test_canary.py``, which breaks first.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.buffer import encode_uint_var
from aioquic.quic import connection as aioquic_connection
from aioquic.quic import events as theirs
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    CONNECTION_LIMIT_FRAME_CAPACITY,
    END_STATES,
    MAX_STREAM_DATA_FRAME_CAPACITY,
    Limit,
    NetworkAddress,
    QuicConnectionError,
    QuicConnectionState,
    QuicReceiveContext,
)
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicHeader,
    pull_quic_transport_parameters,
)
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketPacer, QuicPacketSpace
from aioquic.quic.stream import QuicStream
from cryptography.x509 import Certificate

from allswell._errors import printable, shown
from allswell._quic.flights import LEAST_FRAME, OF_SERVER
from allswell._quic.interface import (
    End,
)
from allswell._quic.path_mtu import PathMtuConnection
from allswell._quic.pieces import Held, PiecesReceiver
from allswell._quic.runs import LARGEST_DATAGRAM
from allswell._quic.streams import OwnStream


def _printable(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), None
    return True


# aioquic's log has the peer's words in it. If a program has not set up logging, aioquic's warnings must not go to
# standard error: here they are raised as errors.
_log = logging.getLogger("quic")
_log.addFilter(_printable)
_log.addHandler(logging.NullHandler())

# For each connection aioquic makes the same sets of epochs: for each type of frame, those in which it is allowed. That
# takes longer than the rest of the constructor. The sets cannot change, so each is made once.
aioquic_connection.EPOCHS = cache(aioquic_connection.EPOCHS)

#: RFC 9000 §10.3: the least length of a stateless reset.
_SHORTEST_RESET = 21
#: RFC 9000 §17.2: the header form.
_LONG_HEADER = 0x80
#: RFC 9000 §2.1: the two low bits of a stream's number say its kind.
_KIND, _OURS_BOTH_WAYS, _OURS_ONE_WAY = 0b11, 0b00, 0b10
#: How many streams a server may have open, and the window of each. HTTP/3 has no bidirectional ones (RFC 9114 §6.1),
#: and three unidirectional ones (§6.2.1, RFC 9204 §4.2). Some servers open more, to test that they are ignored.
_SERVER_STREAMS, _SERVER_WINDOW = 16, 64 * 1024
#: How many connection IDs either side has at a time: one in use, and spare ones for other paths (RFC 9000 §5.1.1).
_CONNECTION_IDS = 4
#: How many pieces of the handshake may wait for the data before them.
_GAPS = 256
#: The longest handshake message that is accepted, in bytes. It is a chain of certificates (OpenSSL: 100 KiB).
_LONGEST_MESSAGE = 128 * 1024
#: If more packets than this are unacknowledged, those that ask for no acknowledgement are forgotten. An honest peer
#: names them in its next ACK, so there are never many. Each search takes longer, the more are remembered.
_REMEMBERED = 256
#: The id of the transport parameter max_udp_payload_size (RFC 9000 §18.2).
_MAX_UDP_PAYLOAD_SIZE = 0x03
#: Event loops keep time to a millisecond. So the pacer is asked seldom. It must allow at once what so many
#: seconds allow.
_PACER_BURST = 0.002


#: Raises an alert of aioquic if a chain is not trusted.
Judge = Callable[[list[Certificate]], None]


class _Pacer(QuicPacketPacer):
    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        super().update_rate(congestion_window=congestion_window, smoothed_rtt=smoothed_rtt)
        self.bucket_max = max(self.bucket_max, _PACER_BURST)


class _InitialKeys(dict[int, CryptoPair]):
    """The keys of Initial packets (RFC 9001 §5.2), by QUIC version. They are made when they are first asked for.

    aioquic would make those of every version. But few servers change the version (RFC 9368 §2.3).

    :param keys: those of the first flight.
    :param cid: the connection ID that the first flight goes to.
    """

    def __init__(self, keys: dict[int, CryptoPair], cid: bytes) -> None:
        super().__init__(keys)
        (self._first,) = keys.values()
        self._cid = cid

    def __missing__(self, version: int) -> CryptoPair:
        pair = self[version] = CryptoPair()
        if self._first.recv.is_valid():  # else Initial keys are discarded (RFC 9001 §4.9.1)
            pair.setup_initial(cid=self._cid, is_client=True, version=version)
        return pair


class Engine(PathMtuConnection):
    """aioquic's connection with our overrides; see the module.

    :param groups: the groups of the key exchange (RFC 8446 §4.2.7) to offer; empty: all.
    :param judge: judges the chain that the server shows, its own certificate first, and raises a TLS alert.
        (``configuration`` says whether aioquic does, too.)
    :ivar data_queued: whether data of HTTP wait to be sent: of a stream, its end, or a datagram.
    :ivar ended: why it is over, or ``None`` while it lives.
    :ivar heard: the peer's CONNECTION_CLOSE or stateless reset, heard before or after we closed.
    :ivar judged_certificate: the server's certificate, once it was judged. (A resumed session shows none.)
    """

    def __init__(
        self,
        configuration: QuicConfiguration,
        *,
        judge: Judge | None = None,
        groups: Sequence[tls.Group] = (),
        **callbacks: Any,
    ) -> None:
        super().__init__(configuration=configuration, **callbacks)
        self._groups = groups
        self._judge = judge
        self._versions = configuration.supported_versions
        self._loss._pacer = _Pacer(max_datagram_size=configuration.max_datagram_size)
        self._freed = 0
        self.data_queued = False
        #: Whether there may have been 0-RTT, with limits that were remembered with the ticket.
        self._early = False
        self._second_probe = False
        self._remembered = _REMEMBERED
        self._state_before_close = self._state
        self._held = Held(configuration.max_stream_data)
        self._local_max_streams_bidi.value = self._local_max_streams_bidi.sent = 0
        self._local_max_streams_uni.value = self._local_max_streams_uni.sent = _SERVER_STREAMS
        self._local_max_stream_data_uni = _SERVER_WINDOW
        self._local_active_connection_id_limit = _CONNECTION_IDS
        self.migration_allowed = True
        self.ended: End | None = None
        self.heard: End | None = None
        self.judged_certificate: Certificate | None = None

    @property
    def certificate_chain(self) -> list[Certificate]:
        """The certificates that the server showed, its own first; empty for a resumed session."""
        certificate = self.tls._peer_certificate
        return [] if certificate is None else [certificate, *self.tls._peer_certificate_chain]

    @property
    def version(self) -> int:
        """The QUIC version that is spoken."""
        assert self._version is not None
        return self._version

    def credit(self, size: int) -> bool:
        """Note that so many bytes of any stream were consumed. Return whether it is time to tell the peer."""
        self._freed += size
        if self._freed < self._configuration.max_data >> 2:
            return False
        self._local_max_data.value += self._freed
        self._freed = 0
        return True

    def close(
        self, error_code: int = QuicErrorCode.NO_ERROR, frame_type: int | None = None, reason_phrase: str = ""
    ) -> None:
        super().close(error_code, frame_type, reason_phrase)
        if self._state not in END_STATES:
            # aioquic closes only once. Otherwise it would act on what comes while we close.
            self._close_pending = True
        if self.ended is None:
            self.ended = End("us", int(error_code), frame_type is None, reason_phrase)

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
        space = self._spaces[tls.Epoch.ONE_RTT]
        if self.data_queued:
            self.data_queued = False
            if space.ack_at is not None:
                space.ack_at = now  # RFC 9000 §13.2.1: the ACK goes with these data, in no packet of its own
        datagrams = super().datagrams_to_send(now)
        if self._second_probe:
            self._second_probe = False
            if len(datagrams) < 2 and not self._close_pending and self._state not in END_STATES:
                self._loss.reschedule_data(now=now)  # send all of it again: either may be lost
                self._repeat_acknowledgements(now)
                datagrams += super().datagrams_to_send(now)
        sent = space.sent_packets
        if len(sent) > self._remembered:
            # A peer need not acknowledge packets that ask for no ACK (RFC 9000 §13.2.1), and some never do.
            for number in [number for number, packet in sent.items() if not packet.is_ack_eliciting]:
                del sent[number]
            self._remembered = max(_REMEMBERED, 2 * len(sent))
        return datagrams

    def receive_datagram(self, data: bytes, addr: NetworkAddress, now: float) -> None:
        if len(data) > LARGEST_DATAGRAM:
            return
        if self._is_stateless_reset(data):
            self._reset_by_peer(now)
        elif self._state is not QuicConnectionState.CLOSING:
            super().receive_datagram(data, addr, now)
        else:
            # Parse it as if we were not closing. Then undo all of that, but keep a close.
            close_at = self._close_at
            self._state = self._state_before_close
            super().receive_datagram(data, addr, now)
            self._state, self._close_at, self._close_pending = QuicConnectionState.CLOSING, close_at, False
            self._events.clear()

    def _is_stateless_reset(self, data: bytes) -> bool:
        """Whether it is one (RFC 9000 §10.3.1). The time is constant, so the token cannot be guessed byte by byte."""
        token = self._peer_cid.stateless_reset_token
        if not token or len(data) < _SHORTEST_RESET or data[0] & _LONG_HEADER:
            return False
        return hmac.compare_digest(data[-16:], token)

    def handle_timer(self, now: float) -> None:
        before = self._loss._pto_count
        super().handle_timer(now)
        if self._loss._pto_count > before and not self._handshake_confirmed:
            # RFC 9002 §6.2.4 allows two datagrams for each probe timeout. The next timeout is twice as far away.
            self._second_probe = True
            self._repeat_acknowledgements(now)

    def _repeat_acknowledgements(self, now: float) -> None:
        """Send ACKs again with a probe of the handshake. The peer may wait for ACKs that were lost (§13.2.1)."""
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

    # Overrides of aioquic's private methods

    def _reset_by_peer(self, now: float) -> None:
        """RFC 9000 §10.3.1: the peer has lost its state. Nothing may be sent any more."""
        end = End("peer", None, False, "stateless reset")
        self.heard = self.heard or end
        if self.ended is None:
            self.ended = end
            self._close_event = theirs.ConnectionTerminated(error_code=0, frame_type=None, reason_phrase=end.reason)
            self._close_begin(is_initiator=False, now=now)

    def _initialize(self, peer_cid: bytes) -> None:
        configuration = self._configuration
        configuration.supported_versions = [self.version]  # aioquic makes keys for these
        try:
            super()._initialize(peer_cid)
        finally:
            configuration.supported_versions = self._versions
        self._cryptos_initial = _InitialKeys(self._cryptos_initial, peer_cid)
        if self._groups:
            self.tls._supported_groups = list(self._groups)

    def _connect(self, now: float) -> None:
        self._early = self._early or self._configuration.session_ticket is not None
        self._send_anew(list(self._spaces.values()), now)
        before = (self.tls, self._cryptos, self._crypto_streams) if self._retry_count else None
        if self._version_negotiated_incompatible and not self._retry_count:
            # RFC 9369 §5: ticket and token are for one version only. (The 0-RTT data go again after the handshake.)
            self._configuration.session_ticket, self._peer_token = None, b""
        super()._connect(now)
        if before is not None:
            # RFC 9000 §17.2.5.3: after Retry the same ClientHello is sent again. aioquic has just made another.
            self.tls, cryptos, streams = before
            self._cryptos[tls.Epoch.ZERO_RTT] = cryptos[tls.Epoch.ZERO_RTT]
            hello = self._crypto_streams[tls.Epoch.INITIAL] = QuicStream()
            hello.sender.write(bytes(streams[tls.Epoch.INITIAL].sender._buffer))
            return
        judge = self._judge
        if judge is None:
            return
        # The chain is judged after the signature is checked, and before we answer.
        signature = self.tls._client_handle_certificate_verify

        def handle(message: Buffer) -> None:
            signature(message)
            chain = self.certificate_chain
            judge(chain)
            self.judged_certificate = chain[0]

        self.tls._client_handle_certificate_verify = handle  # type: ignore[method-assign, assignment]  # of this one context

    def _send_anew(self, spaces: list[QuicPacketSpace], now: float) -> None:
        """Send again all that was sent in these spaces: it is not processed (RFC 9002 §6.3, §6.4).

        Of streams, that is all that was sent so far. It then counts as sent a first time.
        """
        for space in spaces:
            packets = list(space.sent_packets.values())
            self._loss._on_packets_lost(congestion_event=False, now=now, packets=packets, space=space)
        self._loss._pto_count = self._remote_max_data_used = 0
        for stream in self._streams.values():
            stream.sender.highest_offset = 0

    def _receive_version_negotiation_packet(self, header: QuicHeader, now: float) -> None:
        if not self._retry_count:  # RFC 9000 §6.2: unless another packet was processed
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

    def _write_stream_frame(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream, max_offset: int
    ) -> int:
        if builder.remaining_flight_space < LEAST_FRAME:
            return 0
        used = super()._write_stream_frame(builder, space, stream, max_offset)
        sender = stream.sender
        if not len(sender._pending) and not sender._pending_eof:
            sender.buffer_is_empty = True  # so aioquic does not ask this stream again for the next packet
        return used

    def _get_or_create_stream(self, frame_type: int, stream_id: int) -> QuicStream:
        stream = super()._get_or_create_stream(frame_type, stream_id)
        if type(stream.receiver) is not PiecesReceiver:  # this is the first frame of a stream of the peer
            stream.receiver = PiecesReceiver(stream_id, self._held)
        return stream

    def _get_or_create_stream_for_send(self, stream_id: int) -> QuicStream:
        if stream_id & _KIND != _OURS_BOTH_WAYS or stream_id < self._local_next_stream_id_bidi:
            return super()._get_or_create_stream_for_send(stream_id)
        stream = self._streams[stream_id] = OwnStream(
            stream_id, self._local_max_stream_data_bidi_local, self._remote_max_stream_data_bidi_remote, self._held
        )
        self._streams_queue.append(stream)
        self._local_next_stream_id_bidi = stream_id + 4
        if stream_id // 4 >= self._remote_max_streams_bidi:
            stream.is_blocked = self._streams_blocked_pending = True
            self._streams_blocked_bidi.append(stream)
        return stream

    def _handle_reset_stream_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        start = buf.tell()
        stream_id = buf.pull_uint_var()
        buf.seek(start)
        stream = self._streams.get(stream_id)
        over = stream is not None and stream.receiver.is_finished
        super()._handle_reset_stream_frame(context, frame_type, buf)
        if not over:
            # The stream uses the connection's window up to its final size, but the rest will never be consumed.
            stream = self._streams[stream_id]  # it may be new, if all earlier frames were lost
            self.credit(stream.receiver.highest_offset - stream.receiver.starting_offset())

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        super()._parse_transport_parameters(data, from_session_ticket)
        self.idle_timeout = self._idle_timeout()
        parameters = pull_quic_transport_parameters(Buffer(data=data))
        self.migration_allowed = not parameters.disable_active_migration
        self._remote_active_connection_id_limit = min(_CONNECTION_IDS, self._remote_active_connection_id_limit)
        if parameters.max_udp_payload_size is not None:
            self.largest_payload = min(self.largest_payload, parameters.max_udp_payload_size)

    def _serialize_transport_parameters(self) -> bytes:
        configuration = self._configuration
        versions, configuration.supported_versions = configuration.supported_versions, self._versions
        try:
            parameters = super()._serialize_transport_parameters()
        finally:
            configuration.supported_versions = versions
        size = encode_uint_var(LARGEST_DATAGRAM)
        parameter = encode_uint_var(_MAX_UDP_PAYLOAD_SIZE) + encode_uint_var(len(size)) + size
        return parameters + parameter

    def _limits_due(self) -> list[Limit]:
        data = self._local_max_data
        streams = self._local_max_streams_bidi, self._local_max_streams_uni
        due = [data] if data.value != data.sent else []
        # MAX_STREAMS in batches, as aioquic does
        return due + [each for each in streams if 0 < each.value - each.sent > each.sent - each.used]

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        for limit in self._limits_due():
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

    def _stream_limit_due(self, stream: QuicStream) -> bool:
        credit = stream.max_stream_data_local - stream.max_stream_data_local_sent
        if credit == 0 or stream.receiver.is_finished:
            return False
        assert stream.stream_id is not None
        # A stream of the server brings a few bytes in a connection's life. For others the backend saves credit up.
        return credit >= _SERVER_WINDOW >> 2 or not stream.stream_id & OF_SERVER

    def _write_stream_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream) -> None:
        if not self._stream_limit_due(stream):
            return
        assert stream.stream_id is not None
        buf = builder.start_frame(
            QuicFrameType.MAX_STREAM_DATA,
            capacity=MAX_STREAM_DATA_FRAME_CAPACITY,
            handler=self._on_max_stream_data_delivery,
            handler_args=(stream,),
        )
        buf.push_uint_var(stream.stream_id)
        buf.push_uint_var(stream.max_stream_data_local)
        stream.max_stream_data_local_sent = stream.max_stream_data_local
        if self._quic_logger is not None and builder.quic_logger_frames is not None:
            frame = self._quic_logger.encode_max_stream_data_frame(stream.max_stream_data_local, stream.stream_id)
            builder.quic_logger_frames.append(frame)
