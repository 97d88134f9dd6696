"""A client's QUIC connection, as the filter and HTTP/3 use it.

It *has* an engine, which speaks QUIC (see ``engine.py``). This module is the side of the users: they write, consume and
take events here, and ask whether the peer is silent and whether there is something to send.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from io import TextIOBase
from typing import Any, TextIO, cast

from aioquic import tls
from aioquic.quic import events as theirs
from aioquic.quic.connection import NetworkAddress
from aioquic.quic.logger import QuicLogger
from aioquic.quic.packet import QuicErrorCode
from cryptography.x509 import Certificate

from allswell._errors import ConnectFailed, PinMismatch
from allswell._quic.ecn import NOT_ECT
from allswell._quic.engine import Engine
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
from allswell._quic.settings import QuicSettings
from allswell._quic.tickets import Resumption

#: Bytes of a 1-RTT packet's header, with the longest connection ID and aioquic's packet number, and of the AEAD's tag.
_PACKET_OVERHEAD = 1 + 20 + 2 + 16
#: Bytes of a DATAGRAM frame's type and length.
_DATAGRAM_OVERHEAD = 1 + 2
#: After so many unanswered probes the peer counts as silent. (RFC 9002 §6.2.1: each waits twice as long as the last.)
_SILENT_PROBES = 3
#: The groups that are offered at first. RFC 8446 §9.1 demands the second and recommends the first. aioquic makes a key
#: for each group that it offers. Keys for P-384 and X448 take longer than all else in the first flight.
_USUAL_GROUPS = (tls.Group.X25519, tls.Group.SECP256R1)
#: RFC 9001 §4.8: a server sends this if it has no group, or no cipher suite, in common with us.
_HANDSHAKE_FAILURE = QuicErrorCode.CRYPTO_ERROR + tls.AlertDescription.handshake_failure
#: Makes our events of aioquic's. (``pieces.py`` makes those for stream data.) The backend does not get any others.
_TOLD: dict[type, Callable[[Any], QuicEvent]] = {
    StreamReset: lambda event: event,
    theirs.StopSendingReceived: lambda event: StopSendingReceived(event.stream_id, event.error_code),
    theirs.DatagramFrameReceived: lambda event: DatagramFrameReceived(event.data),
    theirs.HandshakeCompleted: lambda event: HandshakeCompleted(),
}


class ClientConnection:
    """One connection.

    :param engine: a new engine.
    :param all_groups: whether it offers all groups of the key exchange.
    :ivar dirty: whether :meth:`datagrams_to_send` may have datagrams, because something was done.
    :ivar handshake_complete: whether the handshake is complete here.
    :ivar silent: whether the peer has left several probes in a row unanswered.
    :ivar unpinned: the error that ended it, if the server's key is not the pinned one.
    :ivar stream_window: how many bytes of one stream the peer may send ahead of :meth:`credit_stream`.
    :ivar datagrams: whether DATAGRAM frames are accepted here (RFC 9221).
    """

    def __init__(self, engine: Engine, *, all_groups: bool = True) -> None:
        configuration = engine.configuration
        self.engine = engine
        self._all_groups = all_groups
        self.dirty = True
        self.handshake_complete = False
        self.silent = False
        self.unpinned: PinMismatch | None = None
        self.stream_window = configuration.max_stream_data
        self.datagrams = configuration.max_datagram_frame_size is not None
        self._announced = False
        self._probes_when_heard = 0
        self._silence_told = False

    # For a backend

    @property
    def ended(self) -> End | None:
        """Why it is over, or ``None`` while it lives."""
        return self.engine.ended

    @property
    def max_streams(self) -> int:
        """How many bidirectional streams the peer lets us open in all, so far."""
        return self.engine._remote_max_streams_bidi

    @property
    def streams_left(self) -> int:
        """How many bidirectional streams we may open now."""
        engine = self.engine
        if engine.ended is not None:
            return 0
        return engine._remote_max_streams_bidi - engine._local_next_stream_id_bidi // 4

    @property
    def largest_datagram(self) -> int:
        """The largest payload of a DATAGRAM frame that the peer accepts (RFC 9221 §3) and a packet holds; or 0.

        (aioquic would keep a larger one for ever, and all behind it. The path may carry less by then.)
        """
        frame = min(self.engine._remote_max_datagram_frame_size or 0, self.engine.base_size - _PACKET_OVERHEAD)
        return max(0, frame - _DATAGRAM_OVERHEAD)

    @property
    def unsent_datagrams(self) -> int:
        """About how many bytes of DATAGRAM frames were not sent yet."""
        return len(self.engine._datagrams_pending) * self.engine.base_size

    def unsent(self, stream_id: int) -> int:
        """How many bytes of a stream were not sent a first time yet."""
        stream = self.engine._streams.get(stream_id)
        return 0 if stream is None else stream.sender._buffer_stop - stream.sender.highest_offset

    def get_next_available_stream_id(self, is_unidirectional: bool = False) -> int:
        return self.engine.get_next_available_stream_id(is_unidirectional)

    def credit(self, size: int) -> bool:
        due = self.engine.credit(size)
        if due:
            self.dirty = True
        return due

    def credit_stream(self, stream_id: int, size: int) -> None:
        """The peer may send so many more bytes on this stream."""
        stream = self.engine._streams.get(stream_id)
        if stream is not None and stream.receiver._final_size is None:
            stream.max_stream_data_local += size
            self.dirty = True

    def send_stream_data(self, stream_id: int, data: bytes, end_stream: bool = False) -> None:
        engine = self.engine
        stream = engine._streams.get(stream_id)
        if stream is None:
            stream = engine._get_or_create_stream_for_send(stream_id)
        elif stream.sender._reset_error_code is not None:
            return  # the peer's STOP_SENDING has come (RFC 9000 §3.5), and the writer will hear of it
        self.dirty = engine.data_queued = True
        stream.sender.write(data, end_stream)

    def reset_stream(self, stream_id: int, error_code: int) -> None:
        self.dirty = self.engine.data_queued = True
        self.engine.reset_stream(stream_id, error_code)

    def stop_stream(self, stream_id: int, error_code: int) -> None:
        """Ask the peer to stop sending. Do nothing if it has ended the stream already (RFC 9000 §3.5)."""
        stream = self.engine._streams.get(stream_id)
        if stream is not None and stream.receiver._final_size is None:
            self.dirty = self.engine.data_queued = True
            self.engine.stop_stream(stream_id, error_code)

    def send_ping(self, uid: int) -> None:
        self.dirty = True
        self.engine.send_ping(uid)

    def send_datagram_frame(self, data: bytes) -> None:
        self.dirty = self.engine.data_queued = True
        self.engine.send_datagram_frame(data)

    def close(self, error_code: int = 0, frame_type: int | None = None, reason_phrase: str = "") -> None:
        self.dirty = True
        self.engine.close(error_code, frame_type, reason_phrase)

    # For the filter: time and datagrams

    def connect(self, address: NetworkAddress, now: float, *, largest: int, marking: bool) -> None:
        """Begin the handshake.

        :param largest: the largest datagram that can be sent, in bytes.
        :param marking: whether datagrams that are sent can carry ECT(0).
        """
        self.engine.largest_payload, self.engine.marking = largest, marking
        self.engine.connect(address, now)

    def receive_datagram(self, data: bytes, address: NetworkAddress, now: float, mark: int = NOT_ECT) -> None:
        """Take a datagram.

        :param mark: its ECN bits.
        """
        self.receive_run(data, (len(data),), 0, address, now, mark, lambda: True)

    def receive_run(
        self,
        data: bytes,
        ends: Sequence[int],
        index: int,
        address: NetworkAddress,
        now: float,
        mark: int,
        over: Callable[[], bool],
    ) -> int:
        """Take some of the datagrams that came together, one at least. Return the index of the next one.

        :param data: their bytes, one datagram behind the other.
        :param ends: where each ends.
        :param index: the first one to take.
        :param mark: the ECN bits that each has.
        :param over: returns whether others are to have their turn now.
        """
        self.dirty = True
        engine = self.engine
        engine.mark = mark
        following = engine.receive_run(data, ends, index, address, now, over)
        self.handshake_complete = engine._handshake_complete
        return following

    @property
    def data_queued(self) -> bool:
        """Whether HTTP has something to send. (If not, there may still be acknowledgements and credit.)"""
        return self.engine.data_queued

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        """Return all datagrams that may be sent now."""
        self.dirty = False
        return self.engine.datagrams_to_send(now)

    def get_timer(self) -> float | None:
        """When :meth:`handle_timer` must be called."""
        return self.engine.get_timer()

    def handle_timer(self, now: float) -> None:
        """Do what is due: acknowledge, probe, give up."""
        self.dirty = True
        self.engine.handle_timer(now)
        probes = self.engine._loss._pto_count
        self._probes_when_heard = min(self._probes_when_heard, probes)
        self.silent = probes - self._probes_when_heard >= _SILENT_PROBES

    def was_heard(self) -> None:
        """Something has come: the peer is not silent."""
        self._probes_when_heard = self.engine._loss._pto_count  # (not 0: what came may acknowledge nothing)
        self.silent = self._silence_told = False

    @property
    def silence_is_news(self) -> bool:
        """Whether the peer has fallen silent since :meth:`tell_silence` was last called."""
        return self.silent and not self._silence_told

    def tell_silence(self) -> None:
        """Note that the backend is told of the silence now."""
        self._silence_told = True

    def take_events(self) -> list[QuicEvent]:
        """Return the events. Data in order of one stream are one event, however many packets they came in."""
        events: list[QuicEvent] = []
        queue: deque[Any] = self.engine._events  # of aioquic's events, and of those that pieces.py makes
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

    # Its life

    @property
    def heard(self) -> End | None:
        """The peer's CONNECTION_CLOSE or stateless reset, heard before or after we closed."""
        return self.engine.heard

    @property
    def lacked_a_group(self) -> bool:
        """Whether the server refused the handshake, perhaps because it has none of the groups that were offered."""
        end = self.ended
        return not self._all_groups and end is not None and end.by == "peer" and end.code == _HANDSHAKE_FAILURE

    @property
    def early_data_ready(self) -> bool:
        """Whether streams can be written to before the handshake is complete (0-RTT)."""
        return self.engine._cryptos[tls.Epoch.ZERO_RTT].send.is_valid()

    @property
    def probe_timeout(self) -> float:
        """The PTO, in seconds, without back-off (RFC 9002 §6.2.1)."""
        return self.engine._loss.get_probe_timeout()

    @property
    def awaits_response(self) -> bool:
        """Whether some bidirectional stream has not ended on the peer's side."""
        streams = self.engine._streams.items()
        return any(not number & 2 and not stream.receiver.is_finished for number, stream in streams)

    @property
    def all_acknowledged(self) -> bool:
        """Whether nothing is queued, and nothing that was sent is without its acknowledgement."""
        if self.engine._ping_pending or self.engine._spaces[tls.Epoch.ONE_RTT].ack_eliciting_in_flight:
            return False
        senders = (stream.sender for stream in self.engine._streams.values())
        return all(sender.buffer_is_empty and not sender.reset_pending for sender in senders)

    @property
    def marking(self) -> bool:
        """Whether datagrams that are sent should carry ECT(0)."""
        return self.engine.marking

    @property
    def idle_timeout(self) -> float:
        """After how many seconds of silence it is forgotten: the smaller of both sides' (RFC 9000 §10.1)."""
        return self.engine.idle_timeout

    @property
    def migration_allowed(self) -> bool:
        """Whether the peer lets us move to another address (RFC 9000 §9.2)."""
        return self.engine.migration_allowed

    @property
    def judged_certificate(self) -> Certificate | None:
        """The server's certificate, once it was judged. (A resumed session shows none.)"""
        return self.engine.judged_certificate

    @property
    def peer_address(self) -> NetworkAddress:
        """The address that it sends to. It changes when the connection moves to the server's preferred address."""
        return self.engine.get_peer_address()

    def path_changed(self, *, ours: bool) -> None:
        """Datagrams go another way from now on.

        :param ours: whether we have moved. That takes another connection ID (RFC 9000 §9.5).
        """
        self.engine.path_changed()
        if ours:
            self.engine.change_connection_id()

    def update_keys(self) -> None:
        """Use new packet protection keys (RFC 9001 §6), once the peer has taken the current ones."""
        self.engine.request_key_update()

    def answer_close(self, error_code: int, now: float) -> list[bytes]:
        """The one CONNECTION_CLOSE that may be sent before draining, in answer to the peer's (RFC 9000 §10.2.2)."""
        return self.engine.answer_close(error_code, now)

    def discard(self) -> None:
        """Forget the streams, and finish the qlog."""
        self.engine.discard()


def new_connection(
    settings: QuicSettings, *, qlog: QuicLogger | None, keylog: TextIOBase | None, all_groups: bool
) -> ClientConnection:
    """Make a connection with these settings. It has sent nothing yet.

    :param all_groups: offer all groups of the key exchange, and not only those that nearly every server has.
    :raises OSError: when a certificate file cannot be read.
    :raises ValueError: when one cannot be parsed.
    """
    configuration = settings.configuration()
    configuration.quic_logger = qlog
    configuration.secrets_log_file = cast(TextIO | None, keylog)
    callbacks: dict[str, Any] = {}
    if settings.store is not None:
        resumption = Resumption(settings, settings.store, configuration)
        callbacks["session_ticket_handler"] = lambda ticket: resumption.keep_ticket(
            ticket, engine.version, engine.certificate_chain
        )
        callbacks["token_handler"] = lambda token: resumption.keep_token(token, engine.version)

    def judge(chain: list[Certificate]) -> None:
        try:
            settings.judge(chain)
        except PinMismatch as error:
            connection.unpinned = error
            raise tls.AlertBadCertificate("the key is not pinned") from error

    engine: Engine = Engine(configuration, judge=judge, groups=() if all_groups else _USUAL_GROUPS, **callbacks)
    connection = ClientConnection(engine, all_groups=all_groups)
    return connection


def handshake_error(connection: ClientConnection, server: str) -> ConnectFailed:
    """The error for a connection that ended before it was made."""
    if connection.unpinned is not None:
        return connection.unpinned
    end = connection.ended
    assert end is not None
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
