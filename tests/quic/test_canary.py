"""Canaries: every private name of aioquic that is used here, and what it must be and do.

When one of these dies, read the name in the test's id: the release of aioquic that is installed has changed it, and
the file of ``_quic/`` that uses it must follow. Checked with aioquic 1.7.2.
"""

from __future__ import annotations

import inspect
import math
import ssl
from collections import deque
from importlib.metadata import version
from typing import Any

import pytest
from aioquic import _buffer, _crypto, tls
from aioquic.quic import connection as aioquic_connection
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.congestion import reno
from aioquic.quic.connection import Limit, QuicConnection, QuicConnectionState, QuicReceiveContext
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder, QuicSentPacket
from aioquic.quic.recovery import QuicPacketPacer, QuicPacketRecovery, QuicPacketSpace
from aioquic.quic.stream import QuicStream, QuicStreamReceiver

from allswell._quic.engine import Engine
from allswell._quic.pieces import Held
from allswell._quic.recovery import RunPacket, SentRun
from allswell._quic.settings import VERSION_1
from allswell._quic.streams import OwnStream

_BROKE = f"aioquic {version('aioquic')} broke it"

#: Attributes of a connection that has called connect(), and their types.
ATTRIBUTES: dict[str, Any] = {
    "_ack_delay": float,
    "_ack_eliciting_sent_since_receipt": bool,
    "_close_at": float,
    "_close_event": type(None),
    "_close_pending": bool,
    "_configuration": QuicConfiguration,
    "_crypto_streams": dict,
    "_cryptos": dict,
    "_cryptos_initial": dict,
    "_datagrams_pending": deque,
    "_events": None,
    "_handshake_complete": bool,
    "_handshake_confirmed": bool,
    "_host_cids": list,
    "_local_ack_delay_exponent": int,
    "_local_active_connection_id_limit": int,
    "_local_max_data": Limit,
    "_local_max_stream_data_bidi_local": int,
    "_local_max_stream_data_uni": int,
    "_local_max_streams_bidi": Limit,
    "_local_max_streams_uni": Limit,
    "_local_next_stream_id_bidi": int,
    "_logger": None,
    "_loss": None,
    "_max_datagram_size": int,
    "_network_paths": list,
    "_pacing_at": type(None),
    "_packet_number": int,
    "_peer_cid": None,
    "_peer_token": bytes,
    "_ping_pending": list,
    "_probe_pending": bool,
    "_quic_logger": type(None),
    "_remote_ack_delay_exponent": int,
    "_remote_active_connection_id_limit": int,
    "_retry_count": int,
    "_remote_max_data": int,
    "_remote_max_data_used": int,
    "_remote_max_datagram_frame_size": type(None),
    "_remote_max_stream_data_bidi_remote": int,
    "_remote_max_stream_data_uni": int,
    "_remote_max_streams_bidi": int,
    "_remote_max_streams_uni": int,
    "_remote_preferred_address": type(None),
    "_retire_connection_ids": list,
    "_spaces": dict,
    "_spin_bit": bool,
    "_spin_highest_pn": int,
    "_state": QuicConnectionState,
    "_streams": dict,
    "_streams_blocked_bidi": list,
    "_streams_blocked_pending": bool,
    "_streams_blocked_uni": list,
    "_streams_queue": list,
    "_version": int,
    "_version_negotiated_incompatible": bool,
}

#: Methods that are overridden or called, and their parameters.
METHODS = {
    "_close_begin": ["self", "is_initiator", "now"],
    "_close_end": ["self"],
    "_connect": ["self", "now"],
    "_handle_ack_frame": ["self", "context", "frame_type", "buf"],
    "_flush_builder": ["self", "builder", "network_path", "peer_cid", "now"],
    "_get_or_create_stream": ["self", "frame_type", "stream_id"],
    "_get_or_create_stream_for_send": ["self", "stream_id"],
    "_handle_connection_close_frame": ["self", "context", "frame_type", "buf"],
    "_handle_crypto_frame": ["self", "context", "frame_type", "buf"],
    "_handle_reset_stream_frame": ["self", "context", "frame_type", "buf"],
    "_idle_timeout": ["self"],
    "_initialize": ["self", "peer_cid"],
    "_on_ack_delivery": ["self", "delivery", "space", "highest_acked"],
    "_on_ping_delivery": ["self", "delivery", "uids"],
    "_on_connection_limit_delivery": ["self", "delivery", "limit"],
    "_on_max_stream_data_delivery": ["self", "delivery", "stream"],
    "_parse_transport_parameters": ["self", "data", "from_session_ticket"],
    "_receive_version_negotiation_packet": ["self", "header", "now"],
    "_send_probe": ["self"],
    "_serialize_transport_parameters": ["self"],
    "_payload_received": ["self", "context", "plain", "crypto_frame_required"],
    "_unblock_streams": ["self", "is_unidirectional"],
    "_write_ack_frame": ["self", "builder", "space", "now"],
    "_write_connection_limits": ["self", "builder", "space"],
    "_write_ping_frame": ["self", "builder", "uids", "comment"],
    "_write_stream_frame": ["self", "builder", "space", "stream", "max_offset"],
    "_write_stream_limits": ["self", "builder", "space", "stream"],
}

#: What a method of aioquic's must still be made of, where ours does the same work or relies on its order.
SOURCES = {
    "_initialize": [
        "for version in self._configuration.supported_versions:",
        "pair.setup_initial(cid=peer_cid, is_client=self._is_client, version=version)",
        "self._serialize_transport_parameters()",
    ],
    "receive_datagram": [
        "if self._state in END_STATES:",
        "packet_number in space.received_packets",
        "reserved_mask = 0x18",
        "space.expected_packet_number = packet_number + 1",
        "self._spin_bit = not spin_bit",
        "self._close_at = now + self._idle_timeout()",
        "self._ack_eliciting_sent_since_receipt = False",
        "space.ack_queue.add(packet_number)",
        "space.received_packets.add(packet_number)",
        "if len(space.ack_queue) > MAX_ACK_RANGES:",
        "space.ack_at = now + self._ack_delay",
    ],
    "datagrams_to_send": ["if self._state in END_STATES:", "if self._close_pending:", "self._close_begin("],
    "_write_datagram_frame": ["frame_size = 1 + size_uint_var(length) + length"],
    "_close_end": ["self._events.append(self._close_event)"],
    "_write_ack_frame": [
        "ack_delay = now - space.largest_received_time",
        "space.ack_at = None",
        "if ranges > 1 and builder.packet_number % 8 == 0:",
    ],
    "_write_connection_limits": ["max_data.value *= 2", "limit.sent - limit.used >= limit.value - limit.sent"],
    "_write_stream_limits": ["stream.max_stream_data_local *= 2"],
    "_handle_ack_frame": [
        "except ValueError as exc:",
        "if frame_type == QuicFrameType.ACK_ECN:",
        "ack_delay = (ack_delay_encoded << self._remote_ack_delay_exponent) / 1000000",
        "self._loss.peer_completed_address_validation = True",
        "self._loss.on_ack_received(",
    ],
    "_handle_max_streams_bidi_frame": [
        "if max_streams > STREAM_COUNT_MAX:",
        "if max_streams > self._remote_max_streams_bidi:",
        "self._unblock_streams(is_unidirectional=False)",
    ],
    "_handle_connection_close_frame": ["if self._close_event is None:"],
    "_handle_stream_frame": [
        "event = stream.receiver.handle_frame(frame)",
        "self._events.append(event)",
        "except FinalSizeError as exc:",
    ],
    "_handle_reset_stream_frame": ["stream.receiver.handle_reset("],
    "_receive_retry_packet": ["self._retry_count += 1", "self._connect(now=now)"],
    "_receive_version_negotiation_packet": ["self._version_negotiated_incompatible = True", "self._connect(now=now)"],
    "_handle_crypto_frame": ["self._unblock_streams(is_unidirectional=False)"],
    "_flush_builder": [
        "self._packet_number = builder.packet_number",
        "and not self._ack_eliciting_sent_since_receipt",
        "self._close_at = now + self._idle_timeout()",
        "network_path.bytes_sent += payload_length",
    ],
    "_write_application": [
        # What it may have to write: see _others_wait and _waiting.
        "not (network_path.is_validated or network_path.local_challenge_sent)",
        "if self._handshake_done_pending:",
        "while len(network_path.remote_challenges) > 0:",
        "if not connection_id.was_sent:",
        "for sequence_number in self._retire_connection_ids[:]:",
        "if self._streams_blocked_pending:",
        "self._write_connection_limits(",
        "self._write_stream_limits(",
        "if self._ping_pending:",
        "if self._probe_pending:",
        "not crypto_stream.sender.buffer_is_empty",
        "while self._datagrams_pending:",
        "if stream.is_finished:",
        "self._streams.pop(stream.stream_id)",
        "if stream.receiver.stop_pending:",
        "if stream.sender.reset_pending:",
        "elif not stream.is_blocked and not stream.sender.buffer_is_empty:",
        "stream.sender.highest_offset",
        "- self._remote_max_data_used",
        "self._remote_max_data_used += used",
        "self._streams_queue.extend(sent)",
        "self._loss._pacer.update_after_send(now=now)",
    ],
    "_get_or_create_stream_for_send": [
        "max_stream_data_local = self._local_max_stream_data_bidi_local",
        "max_stream_data_remote = self._remote_max_stream_data_bidi_remote",
        "self._streams_queue.append(stream)",
        "self._local_next_stream_id_bidi = stream_id + 4",
        "if stream_id // 4 >= max_streams:",
        "self._streams_blocked_pending = True",
    ],
    "send_stream_data": [
        "stream = self._get_or_create_stream_for_send(stream_id)",
        "stream.sender.write(data, end_stream=end_stream)",
    ],
    "_write_stream_frame": ["return stream.sender.highest_offset - previous_send_highest"],
}

#: The same of loss recovery.
RECOVERY_SOURCES = {
    "on_ack_received": [
        "if largest_acked > space.largest_acked_packet:",
        "packet = space.sent_packets.pop(packet_number)",
        "space.ack_eliciting_in_flight -= 1",
        "self._cc.on_packet_acked(packet=packet, now=now)",
        "handler(QuicDeliveryState.ACKED, *args)",
        "if largest_acked == largest_newly_acked and is_ack_eliciting:",
        "ack_delay = min(ack_delay, self.max_ack_delay)",
        "self._rtt_latest = max(latest_rtt, 0.001)",
        "self._rtt_first_sample_time = now",
        "self._rtt_variance = latest_rtt / 2",
        "self._cc.on_rtt_measurement(now=now, rtt=latest_rtt)",
        "self._detect_loss(now=now, space=space)",
        "if self.peer_completed_address_validation:",
    ],
    "on_packet_sent": [
        "space.sent_packets[packet.packet_number] = packet",
        "space.ack_eliciting_in_flight += 1",
        "self._time_of_last_sent_ack_eliciting_packet = packet.sent_time",
        "self._cc.on_packet_sent(packet=packet)",
    ],
}

RECOVERY_OPTIONS = [
    "congestion_control_algorithm",
    "initial_rtt",
    "max_datagram_size",
    "peer_completed_address_validation",
    "send_probe",
    "logger",
    "quic_logger",
]

#: Private names of the other parts, which :func:`test_parts` looks at, and the private modules.
PARTS = {
    "_acked_fin",
    "_aead",
    "_buffer_fin",
    "_buffer",
    "_buffer_start",
    "_buffer_stop",
    "_cc",
    "_client_handle_certificate_verify",
    "_crypto",
    "_detect_loss",
    "_encryptor",
    "_final_size",
    "_is_chacha20",
    "_iv",
    "_log_metrics_updated",
    "_on_packets_lost",
    "_pacer",
    "_pending",
    "_pending_eof",
    "_packet",
    "_peer_certificate",
    "_peer_certificate_chain",
    "_pto_count",
    "_ranges",
    "_receive_buffer",
    "_received",
    "_reset_error_code",
    "_rtt_first_sample_time",
    "_rtt_initialized",
    "_rtt_latest",
    "_rtt_min",
    "_rtt_smoothed",
    "_rtt_variance",
    "_stop_error_code",
    "_stream_id",
    "_supported_groups",
    "_time_of_last_sent_ack_eliciting_packet",
    "_update_key_requested",
}

NAMES = {*ATTRIBUTES, *METHODS, *PARTS}


@pytest.fixture
def connection() -> Engine:
    """A client that has sent its first flight."""
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=["h3"], server_name="localhost", verify_mode=ssl.CERT_NONE
    )
    client = Engine(configuration, judge=lambda chain: None)
    client.connect(("127.0.0.1", 443), 0.0)
    return client


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attribute(connection: Engine, name: str) -> None:
    kind = ATTRIBUTES[name]
    assert hasattr(connection, name), _BROKE
    assert kind is None or isinstance(getattr(connection, name), kind), _BROKE


@pytest.mark.parametrize("name", METHODS)
def test_method(name: str) -> None:
    method = getattr(QuicConnection, name, None)
    assert method is not None, _BROKE
    assert list(inspect.signature(method).parameters) == METHODS[name], _BROKE


@pytest.mark.parametrize("name", SOURCES)
def test_source(name: str) -> None:
    source = inspect.getsource(getattr(QuicConnection, name))
    for line in SOURCES[name]:
        assert line in source, f"{_BROKE}: {line}"


@pytest.mark.parametrize("name", RECOVERY_SOURCES)
def test_recovery_source(name: str) -> None:
    source = inspect.getsource(getattr(QuicPacketRecovery, name))
    for line in RECOVERY_SOURCES[name]:
        assert line in source, f"{_BROKE}: {line}"


def test_parts(connection: Engine) -> None:
    stream = QuicStream(stream_id=0, max_stream_data_local=10, max_stream_data_remote=10)
    stream.sender.write(b"abc")
    assert (stream.sender._buffer_stop, stream.sender.highest_offset) == (3, 0), _BROKE
    assert (list(stream.sender._pending), stream.sender._buffer_fin) == ([range(3)], None), _BROKE
    assert stream.sender._pending_eof is False, _BROKE
    assert "self.buffer_is_empty = True" in inspect.getsource(type(stream.sender).get_frame), _BROKE
    assert "self.buffer_is_empty = False" in inspect.getsource(type(stream.sender).on_data_delivery), _BROKE
    assert "not stream.sender.buffer_is_empty" in inspect.getsource(QuicConnection._write_application), _BROKE
    assert "self._pending.subtract(start, stop)" in inspect.getsource(type(stream.sender).get_frame), _BROKE
    assert stream.receiver._final_size is None, _BROKE
    assert (len(stream.receiver._ranges), len(stream.receiver._buffer)) == (0, 0), _BROKE
    assert (stream.receiver._buffer_start, stream.receiver._stream_id) == (0, 0), _BROKE
    assert (stream.receiver.highest_offset, stream.receiver.is_finished) == (0, False), _BROKE
    # Ours are made without their constructors.
    ours = OwnStream(0, 10, 10, Held(10))
    assert vars(ours).keys() == vars(stream).keys(), _BROKE
    assert vars(ours.sender).keys() == vars(stream.sender).keys(), _BROKE
    made = vars(QuicStreamReceiver(0, readable=True))
    assert {**made, **vars(ours.receiver)}.items() >= {"stop_pending": False, "_stop_error_code": None}.items(), _BROKE
    assert made.keys() - vars(ours.receiver).keys() == {"_buffer", "_ranges"}, _BROKE
    delivered = inspect.getsource(type(stream.sender).on_data_delivery)
    assert "self._acked_fin = True" in delivered, _BROKE
    assert "if self._buffer_start == self._buffer_fin and self._acked_fin:" in delivered, _BROKE
    receiver = inspect.getsource(QuicStreamReceiver.handle_frame)
    assert "if pos == 0 and count and not self._buffer:" in receiver, _BROKE
    assert stream.sender._reset_error_code is None, _BROKE
    assert connection.tls._receive_buffer == b"", _BROKE
    assert stream.max_stream_data_local_sent == 10, _BROKE
    assert isinstance(connection._loss._pacer, QuicPacketPacer), _BROKE
    assert connection._loss._pacer.bucket_max == 0.0, _BROKE
    pacer = inspect.getsource(QuicPacketPacer)
    assert "if self.bucket_time <= 0:" in pacer, _BROKE
    assert "self.bucket_time -= self.packet_time" in pacer, _BROKE
    assert connection._loss._time_of_last_sent_ack_eliciting_packet > -1, _BROKE
    assert not connection._cryptos[tls.Epoch.ONE_RTT]._update_key_requested, _BROKE
    # What aioquic asks of a packet that was sent, those of runs know; what congestion control does, of several.
    asked = {*QuicSentPacket.__dataclass_fields__} - {"quic_logger_frames"}
    assert asked <= {*dir(RunPacket)}, _BROKE
    assert asked - {"packet_number", "delivery_handlers"} <= {*dir(SentRun)}, _BROKE
    looking = {
        name
        for name, each in vars(QuicPacketRecovery).items()
        if inspect.isfunction(each) and ".sent_packets" in inspect.getsource(each)
    }
    known = {
        "discard_space",
        "on_ack_received",
        "on_packet_sent",
        "reschedule_data",
        "_detect_loss",
        "_on_packets_lost",
    }
    assert looking == known, _BROKE
    control = inspect.getsource(reno)
    for part in ("sent_bytes", "sent_time"):
        control = control.replace(f"packet.{part}", "")
    assert "packet." not in control, _BROKE
    assert connection._loss._pacer._max_datagram_size == 1200, _BROKE
    assert connection._loss._cc._max_datagram_size == 1200, _BROKE  # type: ignore[attr-defined]  # that is what is asked
    assert connection._loss.get_probe_timeout() > 0, _BROKE
    assert (connection._loss._pto_count, connection._loss._rtt_latest) == (0, 0.0), _BROKE
    loss = connection._loss
    assert (loss._rtt_min, loss._rtt_smoothed, loss._rtt_variance) == (math.inf, 0.0, 0.0), _BROKE
    assert (loss._rtt_initialized, loss._rtt_first_sample_time) == (False, 0.0), _BROKE
    assert list(inspect.signature(loss._detect_loss).parameters) == ["now", "space"], _BROKE
    assert list(inspect.signature(loss._log_metrics_updated).parameters) == ["log_rtt"], _BROKE
    assert list(inspect.signature(QuicPacketRecovery).parameters) == RECOVERY_OPTIONS, _BROKE
    assert connection._loss._cc.ssthresh is None, _BROKE
    lost = inspect.signature(connection._loss._on_packets_lost)
    assert list(lost.parameters) == ["congestion_event", "now", "packets", "persistent_congestion", "space"], _BROKE
    assert list(inspect.signature(connection._loss.reschedule_data).parameters) == ["now", "speed_up_handshake"], _BROKE
    assert connection._spaces[tls.Epoch.ONE_RTT].ack_eliciting_in_flight == 0, _BROKE
    assert not connection._peer_cid.stateless_reset_token, _BROKE
    assert connection.tls._verify_mode == ssl.CERT_NONE, _BROKE
    assert connection.tls._peer_certificate_chain == [], _BROKE
    assert {tls.Group.X25519, tls.Group.SECP256R1} < set(connection.tls._supported_groups), _BROKE
    assert "for group in self._supported_groups:" in inspect.getsource(tls.Context._client_send_hello), _BROKE
    handler = inspect.getsource(tls.Context._client_handle_certificate_verify)
    assert "if self._verify_mode != ssl.CERT_NONE:" in handler, _BROKE
    assert "self._client_handle_certificate_verify(input_buf)" in inspect.getsource(tls.Context), _BROKE
    assert connection.tls._peer_certificate is None, _BROKE
    assert connection._cryptos[tls.Epoch.ZERO_RTT].send.is_valid() is False, _BROKE
    assert connection._cryptos_initial.keys() == {VERSION_1}, _BROKE
    assert aioquic_connection.EPOCHS("I0") == frozenset({tls.Epoch.INITIAL, tls.Epoch.ZERO_RTT}), _BROKE
    fields = ["epoch", "host_cid", "network_path", "quic_logger_frames", "time", "version"]
    assert list(QuicReceiveContext.__dataclass_fields__) == fields, _BROKE
    aead = _crypto.AEAD(b"aes-128-gcm", bytes(16), bytes(11) + b"\1")
    hp = _crypto.HeaderProtection(b"aes-128-ecb", bytes(16))
    assert aead._iv == 1, _BROKE
    assert aead._aead.decrypt(bytes(11) + b"\6", aead.encrypt(b"data", b"header", 7), b"header") == b"data", _BROKE
    assert not hp._is_chacha20, _BROKE
    assert _crypto.HeaderProtection(b"chacha20", bytes(32))._is_chacha20, _BROKE
    assert len(hp._encryptor.update(bytes(32))) == 32, _BROKE
    window = QuicPacketSpace().received_packets
    assert window._received == set(), _BROKE
    assert "if packet_number < self._lower:" in inspect.getsource(type(window).add), _BROKE
    space = QuicPacketSpace()
    assert (space.largest_received_packet, space.ack_at, len(space.ack_queue)) == (-1, None, 0), _BROKE
    assert 5 not in space.received_packets, _BROKE
    assert _crypto.CryptoError is vars(aioquic_connection)["CryptoError"], _BROKE
    assert _buffer.Buffer is vars(aioquic_connection)["Buffer"], _BROKE
    builder = QuicPacketBuilder(
        host_cid=b"", peer_cid=b"", version=VERSION_1, is_client=True, max_datagram_size=1200, packet_number=0
    )
    builder.start_packet(QuicPacketType.INITIAL, connection._cryptos[tls.Epoch.INITIAL])
    assert builder._packet is not None, _BROKE
    assert builder._packet.in_flight is False, _BROKE
    ends = {QuicConnectionState.CLOSING, QuicConnectionState.DRAINING, QuicConnectionState.TERMINATED}
    assert ends == aioquic_connection.END_STATES, _BROKE
