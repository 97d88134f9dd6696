"""Servers that hardly break QUIC's rules and cost more than they should. No network: their packets are made by hand."""

from __future__ import annotations

import ssl
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from time import process_time
from typing import Any

import hypothesis
import pytest
from aioquic._buffer import Buffer
from aioquic.buffer import encode_uint_var
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicErrorCode, QuicStreamFrame, pull_quic_transport_parameters
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketRecovery, QuicPacketSpace
from aioquic.quic.stream import FinalSizeError, QuicStreamReceiver
from aioquic.tls import CipherSuite, Epoch
from hypothesis import given
from hypothesis import strategies as st

from allswell._quic.connection import ClientConnection
from allswell._quic.ecn import NOT_ECT
from allswell._quic.engine import Engine
from allswell._quic.interface import StopSendingReceived, StreamDataReceived
from allswell._quic.pieces import Held, PiecesReceiver
from allswell._quic.runs import LARGEST_DATAGRAM
from allswell._quic.trust import check
from tests.support.certificates import certificates

pytestmark = pytest.mark.usefixtures("loops")

_CLIENT, _SERVER = ("127.0.0.1", 1), ("127.0.0.1", 2)
_CHACHA20 = [CipherSuite.CHACHA20_POLY1305_SHA256]  # for which there is no short way


class Pair:
    """A client, and a server that says what it is told to.

    :param connect: whether to confirm the handshake.
    """

    def __init__(
        self,
        window: int = 4 * 1024 * 1024,
        engine: type[Engine] = Engine,
        connection_window: int | None = None,
        ciphers: list[CipherSuite] | None = None,
        connect: bool = True,
    ) -> None:
        files = certificates()
        self.now = 0.0
        ours = QuicConfiguration(
            is_client=True,
            alpn_protocols=["x"],
            server_name="localhost",
            verify_mode=ssl.CERT_NONE,
            max_data=connection_window or window,
            max_stream_data=window,
            cipher_suites=ciphers,
        )
        self.client = ClientConnection(engine(ours, judge=partial(check, files.client_context(), "localhost")))
        theirs = QuicConfiguration(is_client=False, alpn_protocols=["x"])
        theirs.load_cert_chain(files.chain, files.key)
        self.server = QuicConnection(
            configuration=theirs,
            original_destination_connection_id=self.client.engine.original_destination_connection_id,
        )
        self.client.engine.connect(_SERVER, self.now)
        if connect:
            for _ in range(4):
                self.exchange()
            assert self.client.engine._handshake_confirmed
            self.client.take_events()

    def exchange(self) -> None:
        """Each side hears all that the other has to say, the server first."""
        self.now += 0.01
        for datagram, _ in self.client.datagrams_to_send(self.now):
            self.server.receive_datagram(datagram, _CLIENT, self.now)
        for datagram, _ in self.server.datagrams_to_send(self.now):
            self.client.receive_datagram(datagram, _SERVER, self.now)

    def say(
        self,
        payload: bytes,
        *,
        number: int | None = None,
        bits: int = 0,
        cid: bytes | None = None,
        mark: int = NOT_ECT,
    ) -> None:
        """These frames reach the client, in a packet.

        :param bits: of the first byte, besides those that must be.
        :param cid: to which of the client's connection ids.
        :param mark: of ECN.
        """
        if number is None:
            number = self.server._packet_number
            self.server._packet_number += 1
        crypto = self.server._cryptos[Epoch.ONE_RTT]
        first = 0x41 | crypto.key_phase << 2 | bits
        header = bytes([first]) + (cid or self.server._peer_cid.cid) + (number & 0xFFFF).to_bytes(2, "big")
        self.client.receive_datagram(crypto.encrypt_packet(header, payload, number), _SERVER, self.now, mark)

    def request(self) -> int:
        """A stream of the client's, in use."""
        number = self.client.get_next_available_stream_id()
        self.client.send_stream_data(number, b"?", True)
        for datagram, _ in self.client.datagrams_to_send(self.now):
            self.server.receive_datagram(datagram, _CLIENT, self.now)
        return number


def stream(number: int, offset: int, data: bytes) -> bytes:
    """A STREAM frame (RFC 9000 §19.8)."""
    return b"\x0e" + encode_uint_var(number) + encode_uint_var(offset) + encode_uint_var(len(data)) + data


def crypto(offset: int, data: bytes) -> bytes:
    """A CRYPTO frame (RFC 9000 §19.6)."""
    return b"\x06" + encode_uint_var(offset) + encode_uint_var(len(data)) + data


def test_a_stream_in_ever_more_pieces_ends_the_connection() -> None:
    """RFC 9000 §21.6: every other byte of a stream; 2 MB of them cost hours."""
    pair = Pair()
    number = pair.request()
    began = process_time()
    for start in range(0, 20_000, 100):
        pair.say(b"".join(stream(number, 2 * offset + 1, b"x") for offset in range(start, start + 100)))
    assert pair.client.ended is not None
    assert pair.client.ended.code == QuicErrorCode.INTERNAL_ERROR
    assert process_time() - began < 2


@contextmanager
def memory_of_at_most(size: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


def test_a_byte_at_the_end_of_each_window_costs_no_more_than_a_byte() -> None:
    """Of responses, of the server's own streams, and of those that are reset then, which gives the window back."""
    pair = Pair(window=2 * 1024 * 1024, connection_window=256 * 1024 * 1024)
    numbers = [pair.request() for _ in range(100)]
    with memory_of_at_most(1 << 20):
        for number in numbers:
            pair.say(stream(number, 2 * 1024 * 1024 - 1, b"x"))
            pair.say(b"\x04" + encode_uint_var(number) + encode_uint_var(0x100) + encode_uint_var(2 * 1024 * 1024))
        for number in range(3, 3 + 4 * 16, 4):
            pair.say(stream(number, 64 * 1024 - 1, b"x"))
            pair.say(b"\x04" + encode_uint_var(number) + encode_uint_var(0x100) + encode_uint_var(64 * 1024))
    assert pair.client.ended is None
    assert pair.client.engine._held.size == 0


def test_a_server_that_sends_all_but_the_first_byte_is_cut_off() -> None:
    pair = Pair(window=2 * 1024 * 1024, connection_window=256 * 1024 * 1024)
    numbers = [pair.request() for _ in range(30)]
    data = bytes(1400)
    with memory_of_at_most(40 << 20):
        for number in numbers:
            for offset in range(1, 2 * 1024 * 1024 - len(data), len(data)):
                if pair.client.ended is None:
                    pair.say(stream(number, offset, data))
    assert pair.client.ended is not None
    assert pair.client.ended.code == QuicErrorCode.INTERNAL_ERROR


@pytest.mark.parametrize("number", [1, 3 + 4 * 16])
def test_streams_that_a_server_was_not_allowed_end_the_connection(number: int) -> None:
    """HTTP/3 has none that go both ways (RFC 9114 §6.1)."""
    pair = Pair()
    pair.say(stream(number, 0, b"x"))
    assert pair.client.ended is not None
    assert pair.client.ended.code == QuicErrorCode.STREAM_LIMIT_ERROR


def test_a_server_may_open_more_streams_as_others_end() -> None:
    """Some open one now and then, of a type that nobody knows (RFC 9114 §6.2.3)."""
    pair = Pair()
    for number in range(3, 3 + 4 * 100, 4):
        assert number in range(3, 4 * pair.server._remote_max_streams_uni + 3, 4)
        pair.say(b"\x0f" + stream(number, 0, b"!greased")[1:])
        for datagram, _ in pair.client.datagrams_to_send(pair.now):
            pair.server.receive_datagram(datagram, _CLIENT, pair.now)
    assert pair.client.ended is None
    assert len(pair.client.take_events()) == 100


_PIECES = st.tuples(st.integers(0, 24), st.integers(0, 12), st.sampled_from([False, False, False, True]))


@given(st.lists(_PIECES, max_size=14))
@hypothesis.settings(max_examples=500)
def test_pieces_are_put_together_as_aioquic_does(pieces: list[tuple[int, int, bool]]) -> None:
    whole = bytes(range(40))
    ours, theirs = PiecesReceiver(0, Held(1000)), QuicStreamReceiver(0, readable=True)
    for offset, size, fin in pieces:
        outcomes: list[Any] = []
        for receiver in (ours, theirs):
            try:
                event: Any = receiver.handle_frame(QuicStreamFrame(whole[offset : offset + size], fin, offset))
            except FinalSizeError:
                event = None
                outcomes.append("refused")
            outcomes.append(event and (event.stream_id, event.data, event.end_stream))
            outcomes += [receiver.is_finished, receiver.starting_offset(), receiver.highest_offset]
        half = len(outcomes) // 2
        assert outcomes[:half] == outcomes[half:]
        if "refused" in outcomes:
            return
        assert ours._held.size == sum(len(each) for each in ours._pieces) + 128 * len(ours._pieces)
    ours.handle_reset(final_size=max(ours.highest_offset, ours._final_size or 0))
    assert ours._held.size == 0


def test_a_network_that_loses_every_tenth_packet_and_delays_the_rest_is_no_attack() -> None:
    pair = Pair()
    number, size = pair.request(), 1000
    lost = list(range(0, 4000, 10))
    for index in range(4000):
        if index % 10:
            pair.say(stream(number, index * size, b"x" * size))
    for index in reversed(lost):
        pair.say(stream(number, index * size, b"x" * size))
    assert pair.client.ended is None
    events = pair.client.take_events()
    assert sum(len(getattr(event, "data", b"")) for event in events) == 4000 * size


@pytest.mark.parametrize("way", ["long", "in pieces"])
def test_an_endless_handshake_message_ends_the_connection(way: str) -> None:
    pair = Pair()
    announced = b"\x04\xff\xff\xff"  # a NewSessionTicket of 16 MiB
    pair.say(crypto(0, announced))
    assert pair.client.ended is None
    began = process_time()
    for index in range(200):
        if way == "long":
            pair.say(crypto(4 + 1000 * index, b"x" * 1000))
        else:
            pair.say(b"".join(crypto(5 + 2 * (10 * index + each), b"x") for each in range(10)))
    assert pair.client.ended is not None
    assert pair.client.ended.code == QuicErrorCode.CRYPTO_BUFFER_EXCEEDED
    assert len(pair.client.engine.tls._receive_buffer) < 200_000
    assert process_time() - began < 2


def test_a_stream_that_is_reset_before_anything_of_it_came_gives_its_window_back() -> None:
    """What it carried counts for the connection's window (RFC 9000 §4.5), and nobody will ever consume it."""
    pair = Pair(window=100_000)
    for number in range(3, 3 + 4 * 40, 4):
        pair.say(b"\x04" + encode_uint_var(number) + encode_uint_var(0x100) + encode_uint_var(10_000))
        pair.client.datagrams_to_send(pair.now)
    assert pair.client.ended is None
    limit = pair.client.engine._local_max_data
    assert limit.used == 400_000
    assert limit.value - limit.used > 70_000


def test_what_is_written_between_stop_sending_and_the_news_of_it_is_dropped() -> None:
    """RFC 9000 §3.5: QUIC has reset the stream already. aioquic raises RuntimeError for a write then."""
    pair = Pair()
    number = pair.client.get_next_available_stream_id()
    pair.client.send_stream_data(number, b"some")
    pair.client.datagrams_to_send(pair.now)
    pair.say(b"\x05" + encode_uint_var(number) + encode_uint_var(0x100))
    pair.client.send_stream_data(number, b"more", True)
    [event] = pair.client.take_events()
    assert event == StopSendingReceived(error_code=0x100, stream_id=number)
    assert pair.client.unsent(number) == 0


def test_whatever_is_heard_while_we_close_raises_nothing() -> None:
    pair = Pair()
    pair.client.close(0x100)
    assert len(pair.client.datagrams_to_send(pair.now)) == 1
    pair.say(b"\x40\xff\0")  # a frame of an unknown type: aioquic would close for it
    pair.say(stream(0, 1 << 40, b"x"))  # of a stream that never was
    assert pair.client.heard is None
    assert pair.client.datagrams_to_send(pair.now) == []
    pair.say(b"\x1d\x41\x0c\0")
    assert pair.client.heard is not None
    assert pair.client.heard.code == 0x10C
    assert pair.client.ended is not None
    assert pair.client.ended.code == 0x100


class LongWay(Engine):
    """Without our short way for packets that come in runs."""

    def receive_run(self, run: bytes, ends: Any, index: int, addr: Any, now: float, over: Any) -> int:
        self.receive_datagram(run[ends[index - 1] if index else 0 : ends[index]], addr, now)
        return index + 1


_FRAMES = st.sampled_from(
    [
        b"\x01\0\0",  # PING
        b"\0\0\0",  # PADDING
        b"\x10\x80\x20\0\0",  # MAX_DATA
        b"\x1a12345678",  # PATH_CHALLENGE
        b"\x18\x09\x01\x08abcdefgh" + b"t" * 16,  # NEW_CONNECTION_ID, which retires the first
        b"\x19\x01",  # RETIRE_CONNECTION_ID
        b"\x19\x40\x63",  # the same, of one that was never given out
        b"\x1c\x07\0\0",  # CONNECTION_CLOSE
        b"\x1d\x41\0\0",  # the application's
        b"\x40\xff\0",  # a frame of an unknown type
        b"\x08\x00x",  # STREAM
        b"\x0e\x00\x03\x01y",
        b"\x0f\x00\x04\x01z",
        b"\x0a\x03\x02ab",
        b"\x02\x02\0\0\x02",  # ACK
        b"\x03\x02\0\0\x02\x01\0\0",  # ACK with the counts of ECN
        b"\x02\x7f\xff\0\0\0",  # of what was not sent
    ]
)
_PACKETS = st.tuples(
    _FRAMES,
    st.integers(-3, 6),  # its number, from the last one on
    st.sampled_from([0, 0, 0, 0x20, 0x20, 0x08]),  # spin bit, a reserved bit
    st.sampled_from([0, 0, 0, 1, 2]),  # which of our connection ids
    st.sampled_from([0, 0, 1, 2, 3]),  # the mark of ECN
    st.sampled_from(["", "", "", "", "garble", "update keys", "flush"]),
)


def _state(client: ClientConnection) -> Iterable[Any]:
    space = client.engine._spaces[Epoch.ONE_RTT]
    yield client.take_events()
    yield client.ended, client.heard, client.engine._state, client.engine._close_pending, client.engine._close_at
    yield list(space.ack_queue), space.largest_received_packet, space.largest_received_time, space.ack_at
    yield space.expected_packet_number, client.engine._marks.get(space), client.engine.marking
    yield client.engine._spin_bit, client.engine._spin_highest_pn, client.engine._ack_eliciting_sent_since_receipt
    yield len(client.engine._host_cids), client.engine._peer_cid.sequence_number, client.engine._local_max_data.used
    yield client.engine._cryptos[Epoch.ONE_RTT].key_phase, list(client.engine._network_paths[0].remote_challenges)
    yield [path.addr for path in client.engine._network_paths], client.get_timer() is None


@given(st.lists(_PACKETS, max_size=12))
@hypothesis.settings(max_examples=150)
def test_the_short_way_of_a_packet_leads_where_the_long_one_does(packets: list[tuple[Any, ...]]) -> None:
    pairs = [Pair(), Pair(engine=LongWay)]
    numbers = {pair.request() for pair in pairs}
    assert len(numbers) == 1
    last = max(pair.server._packet_number for pair in pairs)
    for frames, step, bits, which, mark, extra in packets:
        number = max(0, last + step)
        last = max(last, number)
        for pair in pairs:
            pair.now += 0.001
            if extra == "update keys":
                pair.server._cryptos[Epoch.ONE_RTT].update_key()
            cids = pair.client.engine._host_cids
            cid = cids[which % len(cids)].cid
            if extra == "garble":
                pair.client.receive_datagram(b"\x41" + cid + b"?" * 40, _SERVER, pair.now)
            pair.say(frames, number=number, bits=bits, cid=cid, mark=mark)
            if extra == "flush":
                pair.client.datagrams_to_send(pair.now)
        assert list(_state(pairs[0].client)) == list(_state(pairs[1].client))


def test_a_peer_that_acknowledges_nothing_costs_no_more_for_each_acknowledgement_of_ours() -> None:
    """aioquic remembers each packet until it is acknowledged, also those that ask for no acknowledgement."""
    pair = Pair()
    for _ in range(10_000):
        pair.now += 0.01
        pair.say(b"\x01\0\0")
        assert len(pair.client.datagrams_to_send(pair.now)) <= 1
    assert len(pair.client.engine._spaces[Epoch.ONE_RTT].sent_packets) <= 256
    assert pair.client.ended is None


@pytest.mark.parametrize("way", ["short", "long", "no runs", "with other frames", "many ranges"])
@pytest.mark.parametrize("kind", [2, 3], ids=["ACK", "ACK_ECN"])
def test_an_acknowledgement_of_what_was_not_sent_ends_the_connection(kind: int, way: str) -> None:
    """RFC 9000 §13.1. It would open the congestion window for nothing. The last packet that was sent may be named."""
    pair = Pair(engine=LongWay if way == "long" else Engine, ciphers=_CHACHA20 if way == "no runs" else None)
    for _ in range(50):
        pair.request()
    following = pair.client.engine._packet_number
    other = b"\x10\x80\x20\0\0" if way == "with other frames" else b""  # MAX_DATA
    ranges = b"\x14\0" + b"\0\0" * 20 if way == "many ranges" else b"\0\0"
    counts = b"\x40\xff\0\0" if kind == 3 else b""
    for largest in (following - 1, following):
        assert pair.client.ended is None
        pair.say(bytes([kind]) + (largest | 0x4000).to_bytes(2, "big") + b"\0" + ranges + counts + other)
    assert pair.client.ended is not None
    assert pair.client.ended.code == QuicErrorCode.PROTOCOL_VIOLATION
    pair.exchange()
    seen = pair.server._close_event
    assert seen is not None
    assert (seen.error_code, seen.frame_type) == (QuicErrorCode.PROTOCOL_VIOLATION, kind)


def test_an_acknowledgement_of_what_was_not_sent_ends_the_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(connect=False)
    write = pair.server._write_ack_frame

    def lie(builder: QuicPacketBuilder, space: QuicPacketSpace, now: float) -> None:
        space.ack_queue.add(40, 41)
        write(builder, space, now)

    monkeypatch.setattr(pair.server, "_write_ack_frame", lie)
    pair.exchange()
    assert pair.client.ended is not None
    assert pair.client.ended.code == QuicErrorCode.PROTOCOL_VIOLATION
    pair.exchange()
    assert pair.server._close_event is not None
    assert pair.server._close_event.error_code == QuicErrorCode.PROTOCOL_VIOLATION


def test_a_datagram_that_is_larger_than_agreed_is_ignored() -> None:
    """What the frames of one may cost, nothing else bounds: 64 KB of them held the event loop for 240 ms."""
    pair = Pair()
    number = pair.request()
    ours = pull_quic_transport_parameters(Buffer(data=pair.client.engine._serialize_transport_parameters()))
    assert ours.max_udp_payload_size == LARGEST_DATAGRAM
    overhead = 1 + len(pair.server._peer_cid.cid) + 2 + 16
    frames = stream(number, 0, b"x")
    frames += bytes(LARGEST_DATAGRAM - overhead - len(frames))
    pair.say(frames + b"\0")
    assert pair.client.take_events() == []
    pair.say(frames)
    assert pair.client.take_events() == [StreamDataReceived(number, b"x", False)]


_SENT = st.lists(st.sampled_from(["data", "bulk", "ping", "ack", "flush"]), min_size=1, max_size=40)
_ACKS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 6)), min_size=1, max_size=6)


@given(_SENT, st.lists(_ACKS, max_size=4), st.integers(0, 3))
@hypothesis.settings(max_examples=60)
def test_acknowledgements_do_what_aioquic_has_them_do(sent: list[str], acks: list[Any], fewer: int) -> None:
    """They are parsed once, and the packets that they name found without a look at all others."""
    pairs = [Pair(), Pair(engine=AioquicAcks)]
    for pair in pairs:
        stream_id = pair.client.get_next_available_stream_id()
        first = pair.client.engine._packet_number
        for what in sent:
            pair.now += 0.001
            if what == "data":
                pair.client.send_stream_data(stream_id, b"x" * 1500)
            elif what == "bulk":
                pair.client.send_stream_data(stream_id, b"x" * 9000)
            elif what == "ping":
                pair.client.send_ping(1)
            elif what == "ack":
                pair.say(b"\x01\0\0")
            pair.client.datagrams_to_send(pair.now)
        largest = pair.client.engine._packet_number - 1
        hypothesis.assume(largest >= first)  # an acknowledgement alone may still wait to be sent
        for each in acks:
            pair.now += 0.01
            pair.say(ack(max(0, largest - first), each, first, max(0, len(sent) - fewer)))
    seen = []
    for pair in pairs:
        engine = pair.client.engine
        space, loss = engine._spaces[Epoch.ONE_RTT], engine._loss
        seen.append(
            (
                [*_state(pair.client)],
                list(space.sent_packets),
                space.ack_eliciting_in_flight,
                space.largest_acked_packet,
                space.loss_time,
                (loss.bytes_in_flight, loss.congestion_window, loss._cc.ssthresh),
                (loss._rtt_latest, loss._rtt_min, loss._rtt_smoothed, loss._rtt_variance, loss._pto_count),
                [(stream.sender._buffer_start, list(stream.sender._pending)) for stream in engine._streams.values()],
                engine._peer_counts,
            )
        )
    assert seen[0] == seen[1]


def ack(span: int, ranges: list[tuple[int, int]], first: int, marked: int) -> bytes:
    """An ACK frame with the counts of ECN (RFC 9000 §19.3): of packets from ``first`` to ``first + span``.

    :param ranges: where each range begins, and how many packets more it has.
    """
    numbers = sorted({first + (start + each) % (span + 1) for start, more in ranges for each in range(more + 1)})
    spans: list[list[int]] = []
    for number in reversed(numbers):
        if spans and spans[-1][0] == number + 1:
            spans[-1][0] = number
        else:
            spans.append([number, number])
    frame = b"\x03" + encode_uint_var(spans[0][1]) + b"\0" + encode_uint_var(len(spans) - 1)
    frame += encode_uint_var(spans[0][1] - spans[0][0])
    for above, below in pairwise(spans):
        frame += encode_uint_var(above[0] - below[1] - 2) + encode_uint_var(below[1] - below[0])
    return frame + encode_uint_var(marked) + b"\0\0"


class AioquicAcks(Engine):
    """With aioquic's own way of taking ACK frames."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        theirs = partial(QuicPacketRecovery.on_ack_received, self._loss)

        def on_ack_received(*, ack_rangeset: Sequence[range], space: QuicPacketSpace, **more: Any) -> None:
            ranges = RangeSet(ack_rangeset)
            self._loss.newly_acknowledged = sum(number in ranges for number in space.sent_packets)
            self._loss.single_out(space, self._packet_number)
            theirs(ack_rangeset=ranges, space=space, **more)

        self._loss.on_ack_received = on_ack_received  # type: ignore[method-assign]  # of this one
