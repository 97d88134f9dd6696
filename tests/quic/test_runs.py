"""Packets by the run: the short way and aioquic's own take the same packets, and are compared.

A script of packets is made once. To one client each goes as a datagram of its own, by aioquic's ``receive_datagram``;
to another they go in runs. Whatever the script has, both must come to the same: what the streams deliver, what is to be
acknowledged, credit, marks, errors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import pytest
from aioquic.quic import events as theirs
from aioquic.quic.connection import QuicConnection
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicErrorCode
from aioquic.tls import CipherSuite, Epoch
from hypothesis import example, given
from hypothesis import strategies as st

from allswell._quic import runs
from allswell._quic.connection import ClientConnection
from allswell._quic.engine import Engine
from allswell._quic.interface import StreamDataReceived
from allswell._quic.recovery import Recovery, SentRun
from allswell._quic.runs import LARGEST_DATAGRAM
from tests.quic.test_hostile import _CLIENT, _SERVER, LongWay, Pair, stream

pytestmark = pytest.mark.usefixtures("loops")

_STREAMS = 3


@dataclass
class Packet:
    """One of a script.

    :ivar step: its number, from the largest so far on: 1 follows, 0 is sent again, more is a gap.
    :ivar length: bytes of its number.
    :ivar frames: ``(which stream, offset from what follows, size, fin, with its length)``, or bytes as they are.
    :ivar bits: of the first byte, besides those that must be.
    :ivar cid: which of the client's connection IDs it is for.
    :ivar harm: what becomes of it: nothing, an altered byte, keys that were updated before it, a late arrival.
    """

    frames: list[tuple[int, int, int, bool, bool] | bytes]
    step: int = 1
    length: int = 2
    bits: int = 0
    cid: int = 0
    harm: str = ""


_OTHERS = [
    b"\x01",  # PING
    b"\0\0",  # PADDING
    b"\x02\x02\0\0\x02",  # ACK
    b"\x03\x02\0\0\x02\x01\0\0",  # ACK with the counts of ECN
    b"\x10\x80\x20\0\0",  # MAX_DATA
    b"\x04\x00\x41\x00\x40\x60",  # RESET_STREAM
    b"\x18\x09\x01\x08abcdefgh" + b"t" * 16,  # NEW_CONNECTION_ID, which retires the first
    b"\x19\x01",  # RETIRE_CONNECTION_ID
    b"\x1d\x41\0\0",  # CONNECTION_CLOSE
    b"\x40\xff\0",  # a frame of an unknown type
    b"\x0e\x03\0\x01\x40",  # a stream of the server's
    b"\x0e\x00",  # cut off
    b"\x0e\x00\x80\0",
    b"\x0a\x00\x05abc",
    b"\x08\x00",  # STREAM without anything
    b"\x0c\x00\xff\xff\xff\xff\xff\xff\xff\xffx",  # beyond 2^62
    b"",
]
_FRAME = st.tuples(
    st.integers(0, _STREAMS - 1),
    st.sampled_from([0, 0, 0, 0, 0, 0, 0, -3, 2]),
    st.sampled_from([0, 1, 5, 40, 40]),
    st.sampled_from([False] * 9 + [True]),
    st.booleans(),
)
_FRAMES = st.lists(st.one_of(_FRAME, _FRAME, _FRAME, st.sampled_from(_OTHERS)), max_size=3)
_PACKETS = st.builds(
    Packet,
    _FRAMES,
    st.sampled_from([1, 1, 1, 1, 1, 1, 1, 0, -1, -2, 2, 3, 70, -130]),
    st.sampled_from([2, 2, 2, 1, 3, 4]),
    st.sampled_from([0, 0, 0, 0, 0x20, 0x08]),
    st.sampled_from([0, 0, 0, 0, 1, 2]),
    st.sampled_from([""] * 9 + ["altered", "keys", "late"]),
)


@dataclass
class Script:
    """Makes the packets, as a server with these keys would."""

    server: QuicConnection
    cids: list[bytes]
    streams: list[int]
    largest: int = 0
    offsets: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.largest = self.server._packet_number - 1

    def datagrams(self, packets: Iterable[Packet]) -> list[bytes]:
        made: list[bytes] = []
        late: list[bytes] = []
        for packet in packets:
            datagram = self._datagram(packet)
            (late if packet.harm == "late" else made).append(datagram)
        return made + late

    def _datagram(self, packet: Packet) -> bytes:
        number = max(0, self.largest + packet.step)
        self.largest = max(self.largest, number)
        crypto = self.server._cryptos[Epoch.ONE_RTT]
        if packet.harm == "keys":
            crypto.update_key()
            crypto._update_key("test")
        first = 0x40 | crypto.key_phase << 2 | packet.bits | packet.length - 1
        header = bytes([first]) + self.cids[packet.cid % len(self.cids)]
        header += (number & (1 << 8 * packet.length) - 1).to_bytes(packet.length, "big")
        payload = b"".join(map(self._frame, packet.frames)) + bytes(4 - packet.length) * (not packet.frames)
        datagram = crypto.encrypt_packet(header, payload + bytes(max(0, 4 - len(payload))), number)
        if packet.harm == "altered":
            datagram = datagram[:-1] + bytes([datagram[-1] ^ 1])
        return datagram

    def _frame(self, frame: tuple[int, int, int, bool, bool] | bytes) -> bytes:
        if isinstance(frame, bytes):
            return frame
        which, shift, size, fin, with_length = frame
        stream_id = self.streams[which]
        offset = max(0, self.offsets.get(stream_id, 0) + shift)
        self.offsets[stream_id] = max(self.offsets.get(stream_id, 0), offset + size)
        data = bytes((offset + each) % 251 for each in range(size))
        made = stream(stream_id, offset, data)
        if fin:
            made = b"\x0f" + made[1:]
        if not with_length:
            made = bytes([made[0] & ~2]) + made[1 : len(made) - size - (1 if size < 64 else 2)] + data
        return made


def _state(client: ClientConnection) -> Iterable[Any]:
    """All that the packets may have changed."""
    engine = client.engine
    space = engine._spaces[Epoch.ONE_RTT]
    delivered: dict[int, list[Any]] = {}
    others = []
    for event in client.take_events():
        if isinstance(event, StreamDataReceived):
            data, end = delivered.get(event.stream_id, (b"", False))
            delivered[event.stream_id] = [data + event.data, end or event.end_stream]
        else:
            others.append(event)
    yield delivered
    yield others
    yield client.ended, client.heard, engine._state, engine._close_pending, engine._close_at
    yield list(space.ack_queue), space.largest_received_packet, space.largest_received_time, space.ack_at
    yield space.expected_packet_number, engine._marks.get(space), engine.marking
    yield [number for number in range(space.largest_received_packet + 2) if number in space.received_packets]
    yield engine._spin_bit, engine._spin_highest_pn, engine._ack_eliciting_sent_since_receipt
    yield len(engine._host_cids), engine._peer_cid.sequence_number
    yield engine._local_max_data.used, engine._held.size
    yield engine._cryptos[Epoch.ONE_RTT].key_phase
    for number, each in sorted(engine._streams.items()):
        receiver = each.receiver
        yield number, receiver.highest_offset, receiver.starting_offset(), receiver._final_size, receiver.is_finished


def _send(pair: Pair, datagrams: list[bytes], mark: int = 0, *, impatient: bool = False) -> None:
    ends = [sum(map(len, datagrams[: index + 1])) for index in range(len(datagrams))]
    index = 0
    while index < len(datagrams):
        taken = pair.client.receive_run(b"".join(datagrams), ends, index, _SERVER, pair.now, mark, lambda: impatient)
        assert taken > index
        index = taken


def _compare(packets: list[Packet], cuts: list[int], mark: int = 0, **options: Any) -> None:
    short, long = Pair(**options), Pair(engine=LongWay, **options)
    scripts = []
    for pair in (short, long):
        streams = [pair.request() for _ in range(_STREAMS)]
        scripts.append(Script(pair.server, [each.cid for each in pair.client.engine._host_cids], streams))
    largest = max(script.largest for script in scripts)
    for script in scripts:
        script.largest = largest
    start = 0
    for cut in [*cuts, len(packets)]:
        part = packets[start : start + cut]
        start += cut
        for pair, script in zip((short, long), scripts, strict=True):
            pair.now += 0.001
            _send(pair, script.datagrams(part), mark, impatient=cut % 2 == 1)
        assert list(_state(short.client)) == list(_state(long.client))
        # And what they have to say of it:
        assert [len(each) for each, _ in short.client.datagrams_to_send(short.now + 0.002)] == [
            len(each) for each, _ in long.client.datagrams_to_send(long.now + 0.002)
        ]


@example([Packet([(0, 0, 0, False, False)]), Packet([(1, 0, 0, False, False)])], [], 0)  # a stretch of two
@given(st.lists(_PACKETS, max_size=24), st.lists(st.integers(1, 8), max_size=3), st.sampled_from([0, 1, 2, 3]))
@hypothesis.settings(max_examples=80, deadline=None)
def test_runs_lead_where_single_datagrams_do(packets: list[Packet], cuts: list[int], mark: int) -> None:
    _compare(packets, cuts, mark)


@given(st.lists(_PACKETS, max_size=12), st.integers(20, 120))
@hypothesis.settings(max_examples=30, deadline=None)
def test_credit_is_what_it_is_for_single_datagrams(packets: list[Packet], window: int) -> None:
    _compare(packets, [3], window=window, connection_window=window + 20)


def _download(pair: Pair, streams: list[int], count: int = 60) -> list[bytes]:
    """Packets that a server sends of its responses: each is of the stream whose turn it is."""
    script = Script(pair.server, [pair.client.engine._host_cids[0].cid], streams)
    return script.datagrams(Packet([(index % len(streams), 0, 1000, False, False)]) for index in range(count))


@pytest.mark.parametrize("streams", [1, 3])
def test_a_download_is_acted_on_by_the_run(monkeypatch: pytest.MonkeyPatch, streams: int) -> None:
    pair = Pair()
    numbers = [pair.request() for _ in range(streams)]
    datagrams = _download(pair, numbers)
    for name in ("receive_datagram", "_payload_received"):
        monkeypatch.setattr(pair.client.engine, name, None)  # it would raise
    _send(pair, datagrams, mark=2)
    events = pair.client.take_events()
    assert [(event.stream_id, len(event.data)) for event in events if isinstance(event, StreamDataReceived)] == [
        (number, 60_000 // streams) for number in numbers
    ]
    space = pair.client.engine._spaces[Epoch.ONE_RTT]
    assert pair.client.engine._marks[space][0] == 60
    assert len(space.ack_queue) == 1


def test_others_have_their_turn_within_a_run() -> None:
    """A packet that aioquic judges may have cost much."""
    pair = Pair()
    script = Script(pair.server, [pair.client.engine._host_cids[0].cid], [])
    datagrams = script.datagrams([Packet([b"\x01\0\0"]) for _ in range(3)])
    ends = [len(datagrams[0]) * each for each in (1, 2, 3)]
    taken = pair.client.receive_run(b"".join(datagrams), ends, 0, _SERVER, pair.now, 0, lambda: True)
    assert taken == 1
    taken = pair.client.receive_run(b"".join(datagrams), ends, taken, _SERVER, pair.now, 0, lambda: False)
    assert taken == 3


def test_many_small_frames_are_aioquics() -> None:
    """There is no short way for what is made to cost time: then others could not have their turn within it."""
    pair = Pair()
    number = pair.request()
    script = Script(pair.server, [pair.client.engine._host_cids[0].cid], [number])
    datagrams = script.datagrams([Packet([(0, 0, 1, False, True)] * 200) for _ in range(2)])
    ends = [len(datagrams[0]), len(datagrams[0]) + len(datagrams[1])]
    assert pair.client.receive_run(b"".join(datagrams), ends, 0, _SERVER, pair.now, 0, lambda: True) == 1
    assert sum(len(event.data) for event in pair.client.take_events() if isinstance(event, StreamDataReceived)) == 200


def test_what_is_larger_than_agreed_is_ignored_in_a_run_too() -> None:
    pair = Pair()
    [number] = numbers = [pair.request()]
    script = Script(pair.server, [pair.client.engine._host_cids[0].cid], numbers)
    sizes = [1000, LARGEST_DATAGRAM, 1000]
    datagrams = script.datagrams(Packet([(0, 0, size, False, False)]) for size in sizes)
    assert len(datagrams[1]) > LARGEST_DATAGRAM
    _send(pair, datagrams)
    assert [len(event.data) for event in pair.client.take_events() if isinstance(event, StreamDataReceived)] == [1000]
    assert pair.client.engine._streams[number].receiver.highest_offset == 2000 + LARGEST_DATAGRAM


def test_more_than_was_allowed_ends_the_connection() -> None:
    pair = Pair(window=20_000)
    _send(pair, _download(pair, [pair.request()]))
    assert pair.client.ended is not None
    assert pair.client.ended.code == QuicErrorCode.FLOW_CONTROL_ERROR


def test_there_is_no_short_way_for_chacha20() -> None:
    pair = Pair(ciphers=[CipherSuite.CHACHA20_POLY1305_SHA256])
    [number] = numbers = [pair.request()]
    _send(pair, _download(pair, numbers))
    assert pair.client.engine._opener is None
    events = [event for event in pair.client.take_events() if isinstance(event, StreamDataReceived)]
    assert [(event.stream_id, len(event.data)) for event in events] == [(number, 60_000)]


# Sending


class SentLongWay(Engine):
    """Without our short way for packets that are sent."""

    def _runs_to_send(self, now: float) -> list[bytes]:
        return []


@dataclass
class Upload:
    """A client that sends on several streams, and the aioquic server that it reaches by a network that does harm.

    :ivar sizes: of what goes on each stream.
    :ivar harm: of the n-th datagram, whichever way it goes: "" (none), "lost", "twice", "late".
    """

    sizes: list[int]
    harm: list[str]
    engine: type[Engine] = Engine
    window: int = 1 << 20

    def run(self) -> dict[int, bytes]:
        pair = self.pair = Pair(engine=self.engine)
        server, client = pair.server, pair.client
        server._local_max_data.value = server._local_max_data.sent = self.window
        client.engine._remote_max_data = client.engine._remote_max_data_used + self.window
        self.lengths: list[int] = []
        self.received: dict[int, bytes] = {}
        self._ended: set[int] = set()
        self._seen = 0
        self._late: list[tuple[Any, bytes]] = []
        streams = [client.get_next_available_stream_id() + 4 * index for index in range(len(self.sizes))]
        self.sent = {}
        for index, (stream_id, size) in enumerate(zip(streams, self.sizes, strict=True)):
            self.sent[stream_id] = bytes((index + each * 7) % 251 for each in range(size))
            client.send_stream_data(stream_id, self.sent[stream_id], True)
        for turn in range(6000):
            pair.now += 0.005
            for one in (client, server):
                timer = one.get_timer()
                if timer is not None and timer <= pair.now:
                    one.handle_timer(pair.now)
            if turn == 3:
                client.update_keys()
            late, self._late = self._late, []
            for deliver, datagram in late:
                deliver(datagram)
            datagrams = [datagram for datagram, _ in client.datagrams_to_send(pair.now)]
            self.lengths += map(len, datagrams)
            self._carry(datagrams, lambda datagram: server.receive_datagram(datagram, _CLIENT, pair.now))
            while (event := server.next_event()) is not None:
                if isinstance(event, theirs.StreamDataReceived):
                    self.received[event.stream_id] = self.received.get(event.stream_id, b"") + event.data
                    if event.end_stream:
                        self._ended.add(event.stream_id)
            answers = [datagram for datagram, _ in server.datagrams_to_send(pair.now)]
            self._carry(answers, lambda datagram: client.receive_datagram(datagram, _SERVER, pair.now))
            if self._ended == set(streams) and client.all_acknowledged:
                break
        assert client.ended is None
        assert client.all_acknowledged
        assert self._ended == set(streams)
        return self.received

    def _carry(self, datagrams: list[bytes], deliver: Any) -> None:
        for datagram in datagrams:
            harm = self.harm[self._seen % len(self.harm)] if self._seen < 150 else ""
            self._seen += 1
            if harm == "late":
                self._late.append((deliver, datagram))
            for _ in range({"": 1, "lost": 0, "twice": 2, "late": 0}[harm]):
                deliver(datagram)


_HARM = st.lists(st.sampled_from(["", "", "", "", "", "", "lost", "twice", "late"]), min_size=1, max_size=30)
_HARM = _HARM.filter(lambda harm: 3 * harm.count("lost") <= len(harm))


@given(st.lists(st.integers(0, 120_000), min_size=1, max_size=3), _HARM, st.sampled_from([3_000, 50_000, 1 << 20]))
@hypothesis.settings(max_examples=25, deadline=None)
def test_what_is_sent_in_runs_arrives(sizes: list[int], harm: list[str], window: int) -> None:
    """Whatever is lost, doubled or late, with new keys, and never more than the server allows."""
    upload = Upload(sizes, harm, window=window)
    assert upload.run() == upload.sent
    engine = upload.pair.client.engine
    assert engine._loss.bytes_in_flight == 0
    assert engine._spaces[Epoch.ONE_RTT].ack_eliciting_in_flight == 0


def test_runs_take_what_congestion_control_gives_and_no_more() -> None:
    """The same bytes go at the same times, with and without them."""
    flights = []
    for engine in (Engine, SentLongWay):
        pair = Pair(engine=engine)
        loss = pair.client.engine._loss
        number = pair.client.get_next_available_stream_id()
        pair.client.send_stream_data(number, bytes(300_000))
        flight = []
        for turn in range(12):
            pair.now += 0.02
            datagrams = [datagram for datagram, _ in pair.client.datagrams_to_send(pair.now)]
            assert loss.bytes_in_flight <= loss.congestion_window
            flight.append(sum(len(each) >= 1200 for each in datagrams))
            for index, datagram in enumerate(datagrams):
                if (turn, index) != (5, 3):  # one is lost
                    pair.server.receive_datagram(datagram, _CLIENT, pair.now)
            pair.now += 0.02
            for datagram, _ in pair.server.datagrams_to_send(pair.now):
                pair.client.receive_datagram(datagram, _SERVER, pair.now)
        flights.append(flight)
    assert max(flights[0]) > 12
    for short, long in zip(*flights, strict=True):
        assert abs(short - long) <= 1


def test_several_uploads_take_turns() -> None:
    pair = Pair()
    numbers = [pair.client.get_next_available_stream_id() + 4 * index for index in range(3)]
    for number in numbers:
        pair.client.send_stream_data(number, bytes(200_000))
    pair.client.engine._loss._cc.congestion_window = 200_000
    pair.client.engine._loss._pacer.packet_time = None
    pair.client.datagrams_to_send(pair.now)
    sent = [pair.client.engine._streams[number].sender.highest_offset for number in numbers]
    assert max(sent) - min(sent) <= 16 * 1200
    assert sum(sent) > 180_000


def test_an_upload_alone_is_sent_in_longer_runs_and_sends_again_what_is_lost_of_them() -> None:
    pair = Pair()
    number = pair.client.get_next_available_stream_id()
    pair.client.send_stream_data(number, bytes(200_000))
    engine = pair.client.engine
    engine._loss._cc.congestion_window = 100_000
    engine._loss._pacer.packet_time = None
    datagrams = [datagram for datagram, _ in pair.client.datagrams_to_send(pair.now)]
    sent: dict[int, Any] = engine._spaces[Epoch.ONE_RTT].sent_packets
    made = [each for each in sent.values() if isinstance(each, SentRun)]
    assert (len(made), len({*map(id, made)})) == (82, 2)
    first = made[0]
    pair.now += 0.02
    for index, datagram in enumerate(datagrams):
        if index not in (5, 6, 40):
            pair.server.receive_datagram(datagram, _CLIENT, pair.now)
    pair.now += 0.1  # its acknowledgement is due
    for datagram, _ in pair.server.datagrams_to_send(pair.now):
        pair.client.receive_datagram(datagram, _SERVER, pair.now)
    lost = [
        range(first.start + index * first.chunk, first.start + (index + size) * first.chunk)
        for index, size in ((5, 2), (40, 1))
    ]
    assert list(engine._streams[number].sender._pending)[:2] == lost
    assert not sent
    assert engine._loss.bytes_in_flight == engine._spaces[Epoch.ONE_RTT].ack_eliciting_in_flight == 0


def test_a_probe_sends_the_first_packet_of_a_run_again() -> None:
    pair = Pair()
    number = pair.client.get_next_available_stream_id()
    pair.client.send_stream_data(number, bytes(9000))
    pair.client.datagrams_to_send(pair.now)
    engine = pair.client.engine
    first: Any = next(iter(engine._spaces[Epoch.ONE_RTT].sent_packets.values()))
    assert isinstance(first, SentRun)
    timer = pair.client.get_timer()
    assert timer is not None
    pair.client.handle_timer(timer)
    assert engine._streams[number].sender._pending[0] == range(first.start, first.start + first.chunk)


def test_a_ping_has_room_beside_an_upload() -> None:
    pair = Pair()
    pair.client.send_stream_data(pair.client.get_next_available_stream_id(), bytes(200_000))
    pair.client.send_ping(7)
    for datagram, _ in pair.client.datagrams_to_send(pair.now):
        pair.server.receive_datagram(datagram, _CLIENT, pair.now)
    assert pair.client.engine._ping_pending == []


@pytest.mark.parametrize("engine", [Engine, SentLongWay])
def test_keys_are_not_used_for_more_packets_than_is_safe(monkeypatch: pytest.MonkeyPatch, engine: type[Engine]) -> None:
    """RFC 9001 §6.6, and not again before the peer has taken the last ones (§6.1)."""
    monkeypatch.setattr(runs, "_PACKETS_PER_KEY", 100)
    monkeypatch.setattr(Recovery, "congestion_window", 20_000)
    upload = Upload([600_000], [""], engine=engine)
    begun: list[int] = []
    update = CryptoPair._update_key

    def noted(pair: CryptoPair, trigger: str) -> None:
        if trigger == "local_update":
            connection = upload.pair.client.engine
            begun.append(connection._packet_number)
            assert len(begun) < 2 or connection._spaces[Epoch.ONE_RTT].largest_acked_packet >= begun[-2]
        update(pair, trigger)

    monkeypatch.setattr(CryptoPair, "_update_key", noted)
    assert upload.run() == upload.sent
    last = upload.pair.client.engine._packet_number
    used = [after - before for before, after in zip(begun, [*begun[1:], last], strict=True)]
    assert len(used) > 3
    assert max(used) < 100 + 2 * 20  # of which congestion control lets no more go at once
