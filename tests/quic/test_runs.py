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
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicErrorCode
from aioquic.tls import CipherSuite, Epoch
from hypothesis import example, given
from hypothesis import strategies as st

from allswell._quic.connection import ClientConnection
from allswell._quic.interface import StreamDataReceived
from allswell._quic.runs import LARGEST_DATAGRAM
from tests.quic.test_hostile import _SERVER, LongWay, Pair, stream

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
    b"\x03\x02\0\x01\0\0\0\x04\0\0",  # with two ranges
    b"\x02\x02\0\0\x03",  # with a number below 0
    b"\x02\x02\0\x01\0\x02\x02",
    b"\x02\x02\0\x11" + bytes(35),  # with many ranges
    b"\x12\x40\xc8",  # MAX_STREAMS
    b"\x12\x05",
    b"\x12\xd0" + bytes(6) + b"\x01",  # beyond 2^60
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
    yield engine._remote_max_streams_bidi, space.largest_acked_packet, list(space.sent_packets)
    yield engine._loss._rtt_smoothed, engine._loss.bytes_in_flight, engine._peer_counts
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
@example([Packet([(0, 2, 40, True, True)])], [], 0)  # the end of a stream, and not its beginning
@example([Packet([b"\x0a\x00\x05abc"])], [], 0)  # cut off
@example([Packet([b"\x0b\x00\x05abc"])], [], 0)
@example([Packet([b"\x02\x02\0\x01\0\0\0", b"\x12\x40\xc8", (0, 0, 40, True, True), (1, 0, 40, True, False)])], [], 2)
@given(st.lists(_PACKETS, max_size=24), st.lists(st.integers(1, 8), max_size=3), st.sampled_from([0, 1, 2, 3]))
@hypothesis.settings(max_examples=80, deadline=None)
def test_runs_lead_where_single_datagrams_do(packets: list[Packet], cuts: list[int], mark: int) -> None:
    _compare(packets, cuts, mark)


@example([Packet([(which, 0, 40, True, True) for which in range(3)])], 90)
@example([Packet([(0, 0, 40, True, True)])], 20)
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


@pytest.mark.parametrize("streams", [1, 3])
def test_what_follows_a_lost_packet_is_acted_on_by_the_run(monkeypatch: pytest.MonkeyPatch, streams: int) -> None:
    """It took four times as long as data in order; with the compiled loop, nine times."""
    pair = Pair()
    numbers = [pair.request() for _ in range(streams)]
    _, *others = _download(pair, numbers)
    for name in ("receive_datagram", "_payload_received"):
        monkeypatch.setattr(pair.client.engine, name, None)  # it would raise
    _send(pair, others)
    early = pair.client.take_events()
    assert sum(len(event.data) for event in early if isinstance(event, StreamDataReceived)) == (
        60_000 - 60_000 // streams
    )
    again = Script(pair.server, [pair.client.engine._host_cids[0].cid], numbers)
    again.largest += 60
    _send(pair, again.datagrams([Packet([(0, 0, 1000, False, False)])]))
    events = early + pair.client.take_events()
    assert sorted((event.stream_id, len(event.data)) for event in events if isinstance(event, StreamDataReceived)) == [
        (number, 60_000 // streams) for number in numbers
    ]
    assert pair.client.engine._local_max_data.used == 60_000
    assert pair.client.engine._held.size == 0


def test_others_have_their_turn_within_a_run() -> None:
    """A packet that aioquic judges may have cost much."""
    pair = Pair()
    script = Script(pair.server, [pair.client.engine._host_cids[0].cid], [])
    datagrams = script.datagrams([Packet([b"\x10\x80\x20\0\0"]) for _ in range(3)])
    ends = [len(datagrams[0]) * each for each in (1, 2, 3)]
    taken = pair.client.receive_run(b"".join(datagrams), ends, 0, _SERVER, pair.now, 0, lambda: True)
    assert taken == 1
    taken = pair.client.receive_run(b"".join(datagrams), ends, taken, _SERVER, pair.now, 0, lambda: False)
    assert taken == 3


def test_others_have_their_turn_among_many_small_frames() -> None:
    """A packet can hold hundreds of them only to cost time."""
    pair = Pair()
    number = pair.request()
    script = Script(pair.server, [pair.client.engine._host_cids[0].cid], [number])
    datagrams = script.datagrams([Packet([(0, 0, 1, False, True)] * 200) for _ in range(5)])
    ends = [len(b"".join(datagrams[:each])) for each in range(1, 6)]
    assert pair.client.receive_run(b"".join(datagrams), ends, 0, _SERVER, pair.now, 0, lambda: True) == 2
    assert pair.client.receive_run(b"".join(datagrams), ends, 2, _SERVER, pair.now, 0, lambda: False) == 5
    assert sum(len(event.data) for event in pair.client.take_events() if isinstance(event, StreamDataReceived)) == 1000
    [numbers] = pair.client.engine._spaces[Epoch.ONE_RTT].ack_queue
    assert numbers.stop == script.largest + 1


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
