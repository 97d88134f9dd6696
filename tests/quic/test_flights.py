"""What leaves in one flush: the short way and aioquic's say the same, and no more than peer and path allow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import hypothesis
import pytest
from aioquic._buffer import Buffer
from aioquic.quic import events as theirs
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import pull_ack_frame
from aioquic.quic.recovery import QuicPacketPacer
from aioquic.tls import Epoch
from hypothesis import example, given
from hypothesis import strategies as st

from allswell._quic import flights
from allswell._quic.connection import ClientConnection
from allswell._quic.engine import Engine
from allswell._quic.recovery import Recovery, SentRun
from tests.quic.test_hostile import _CLIENT, _SERVER, Pair, stream

pytestmark = pytest.mark.usefixtures("loops")


class SentLongWay(Engine):
    """Without our short way for packets that are sent."""

    def _sealer_for_now(self) -> None:
        return None


@dataclass
class Upload:
    """A client that sends on several streams, and the aioquic server that it reaches by a network that does harm.

    :ivar sizes: of what goes on each stream.
    :ivar harm: of the n-th datagram, whichever way it goes: "" (none), "lost", "twice", "late". It begins anew at its
        end, and stops after 150 datagrams, or two seconds: in step with the probes, it would lose each answer to them.
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
        self._harmless = pair.now + 2
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
            harmful = self._seen < 150 and self.pair.now < self._harmless
            harm = self.harm[self._seen % len(self.harm)] if harmful else ""
            self._seen += 1
            if harm == "late":
                self._late.append((deliver, datagram))
            for _ in range({"": 1, "lost": 0, "twice": 2, "late": 0}[harm]):
                deliver(datagram)


def _all_arrives(sizes: list[int], harm: list[str], window: int) -> None:
    """Whatever is lost, doubled or late, with new keys, never more than the server allows; and then nothing is left."""
    upload = Upload(sizes, harm, window=window)
    assert upload.run() == upload.sent
    engine = upload.pair.client.engine
    assert engine._loss.bytes_in_flight == 0
    assert engine._spaces[Epoch.ONE_RTT].ack_eliciting_in_flight == 0


_HARM = st.lists(st.sampled_from(["", "", "", "", "", "", "lost", "twice", "late"]), min_size=1, max_size=30)
_HARM = _HARM.filter(lambda harm: 3 * harm.count("lost") <= len(harm))


@given(st.lists(st.integers(0, 120_000), min_size=1, max_size=3), _HARM, st.sampled_from([3_000, 50_000, 1 << 20]))
@example([20_981], ["late", "lost", ""], 3_000)
@hypothesis.settings(max_examples=25, deadline=None)
def test_what_is_sent_in_runs_arrives(sizes: list[int], harm: list[str], window: int) -> None:
    _all_arrives(sizes, harm, window)


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


def test_a_ping_takes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself, and with data. A packet with nothing else is long enough for its header's protection."""
    pair = Pair()
    client, server = pair.client, pair.server
    _only_short(monkeypatch, client)
    for data in (b"", b"data"):
        client.send_ping(7)
        if data:
            client.send_stream_data(client.get_next_available_stream_id(), data)
        [(datagram, _)] = client.datagrams_to_send(pair.now)
        assert not client.all_acknowledged
        server.receive_datagram(datagram, _CLIENT, pair.now)
        pair.now += 0.03
        server.handle_timer(pair.now)
        for datagram, _ in server.datagrams_to_send(pair.now):
            client.receive_datagram(datagram, _SERVER, pair.now)
        assert client.all_acknowledged
        assert client.engine._ping_pending == []


@pytest.mark.parametrize("engine", [Engine, SentLongWay])
def test_keys_are_not_used_for_more_packets_than_is_safe(monkeypatch: pytest.MonkeyPatch, engine: type[Engine]) -> None:
    """RFC 9001 §6.6, and not again before the peer has taken the last ones (§6.1)."""
    monkeypatch.setattr(flights, "_PACKETS_PER_KEY", 100)
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


@pytest.mark.parametrize("engine", [Engine, SentLongWay])
def test_keys_are_changed_again_only_when_the_server_has_taken_the_last_ones(engine: type[Engine]) -> None:
    """RFC 9001 §6.1. The server cannot open packets whose keys are two changes ahead: all would be lost."""
    pair = Pair(engine=engine)
    client, keys = pair.client, pair.server._cryptos[Epoch.ONE_RTT]
    number, size, phases = client.get_next_available_stream_id(), 0, [keys.recv.key_phase]
    for lost in (False, True, True, False, False, False):
        client.send_stream_data(number, b"data")
        size += 4
        if len(phases) < 4:
            client.update_keys()
        if lost:
            assert client.datagrams_to_send(pair.now)
        else:
            pair.exchange()
        phases.append(keys.recv.key_phase)
    assert phases == [0, 1, 1, 1, 1, 0, 0]
    for _ in range(20):  # what was lost is sent again
        if pair.server._streams[number].receiver.starting_offset() == size:
            break
        pair.now = max(pair.now, client.get_timer() or 0)
        client.handle_timer(pair.now)
        pair.exchange()
    assert pair.server._streams[number].receiver.starting_offset() == size


def test_keys_are_not_changed_before_the_handshake_is_confirmed() -> None:
    """RFC 9001 §6.1. They are then."""
    pair = Pair(connect=False)
    pair.client.update_keys()
    for _ in range(4):
        pair.exchange()
    assert pair.client.engine._handshake_confirmed
    pair.request()
    pair.exchange()
    pair.request()
    assert pair.server._cryptos[Epoch.ONE_RTT].recv.key_phase == 1


# Both ways, step by step

_STREAMS = 12
_WRITES = st.tuples(
    st.just("write"),
    st.integers(0, _STREAMS - 1),
    st.sampled_from([0, 1, 70, 105, 105, 105, 600, 1150, 3000]),
    st.sampled_from([True, True, True, False]),
)
_SAID = st.tuples(
    st.just("say"),
    st.sampled_from(
        [
            b"\x01\0\0",  # PING
            b"\x0f\x03\0\x01\x40",  # a stream of the server's, with its end
            stream(7, 0, b"x" * 900),
            b"\x10\x80\x20\0\0",  # MAX_DATA
        ]
    ),
    st.sampled_from([1, 1, 1, 3]),
    st.sampled_from([0, 0, 2]),
)
_OTHER = st.sampled_from(
    [
        ("answer", 1, 0),
        ("ping",),
        ("credit", 1 << 20),
        ("reset", 2),
        ("stop", 2),
        ("stop", 3),
        ("update",),
        ("wait", 0.03),
    ]
)
_STEPS = st.lists(st.one_of(_WRITES, _WRITES, _WRITES, _SAID, _OTHER, st.just(("flush",))), max_size=60)


class Both:
    """Two clients, one by each way, and their servers. All that is done is done to both."""

    def __init__(self, **windows: int) -> None:
        self.pairs = [Pair(engine=engine) for engine in (Engine, SentLongWay)]
        for pair in self.pairs:
            engine = pair.client.engine
            engine._loss._cc.congestion_window = 10_000_000  # how much goes is asked elsewhere
            engine._loss._pacer = Unpaced(max_datagram_size=1200)
            engine.largest_payload = 1200
            if "data" in windows:
                engine._remote_max_data = engine._remote_max_data_used + windows["data"]
            if "stream" in windows:
                engine._remote_max_stream_data_bidi_remote = windows["stream"]
            if "streams" in windows:
                engine._remote_max_streams_bidi = windows["streams"]

    def do(self, step: tuple[Any, ...]) -> None:
        for pair in self.pairs:
            client = pair.client
            match step:
                case ("write", which, size, fin):
                    held = client.engine._streams.get(4 * which)
                    if held is None and client.engine._stream_is_discarded(4 * which):
                        continue
                    if held is None or held.sender._buffer_fin is None:
                        client.send_stream_data(4 * which, bytes((which + at) % 251 for at in range(size)), fin)
                case ("say", payload, ahead, mark):
                    number = pair.server._packet_number + ahead
                    pair.server._packet_number = number + 1
                    pair.say(payload, number=number, mark=mark)
                case ("answer",):
                    for number in [each for each in pair.server._streams if not each & 3]:
                        sender = pair.server._streams[number].sender
                        if sender._buffer_fin is None and sender._reset_error_code is None:
                            pair.server.send_stream_data(number, b"answer", True)
                case ("ping",):
                    client.send_ping(7)
                case ("credit", size):
                    client.credit(size)
                case ("credit stream", which, size):
                    client.credit_stream(4 * which, size)
                case ("reset", which) if client.engine._streams.get(4 * which) is not None:
                    client.reset_stream(4 * which, 9)
                case ("stop", which):
                    client.stop_stream(4 * which, 9)
                case ("move",):
                    client.path_changed(ours=True)
                case ("update",):
                    client.update_keys()
                case ("wait", seconds):
                    pair.now += seconds
                    client.handle_timer(pair.now)
                case ("flush",):
                    self._flush(pair)
            assert client.ended is None

    def _flush(self, pair: Pair) -> None:
        pair.now += 0.001
        for datagram, _ in pair.client.datagrams_to_send(pair.now):
            assert len(datagram) <= 1200
            pair.server.receive_datagram(datagram, _CLIENT, pair.now)
        assert pair.server._close_event is None
        pair.now += 0.001
        for datagram, _ in pair.server.datagrams_to_send(pair.now):
            pair.client.receive_datagram(datagram, _SERVER, pair.now)

    def compare(self) -> None:
        short, long = self.pairs
        assert list(_sent(short)) == list(_sent(long))


class Unpaced(QuicPacketPacer):
    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        pass


def _sent(pair: Pair) -> Iterable[Any]:
    """What has been sent, and what the peer has made of it."""
    engine, server = pair.client.engine, pair.server
    space = engine._spaces[Epoch.ONE_RTT]
    yield "used", engine._remote_max_data_used, engine._local_max_data.sent, engine._local_max_streams_uni.sent
    yield "streams", engine._local_max_streams_uni.value, sorted(engine._streams)
    yield "acknowledged", space.ack_at, list(server._spaces[Epoch.ONE_RTT].sent_packets)
    yield "limits", engine._ping_pending, engine._retire_connection_ids, engine._streams_blocked_pending
    yield "timers", engine._close_at, engine._ack_eliciting_sent_since_receipt, engine._pacing_at
    for number, each in sorted(engine._streams.items()):
        sender = each.sender
        yield number, sender.highest_offset, list(sender._pending), sender._pending_eof, sender.is_finished
        yield number, sender._buffer_start, sender._buffer_stop, sender.reset_pending, each.max_stream_data_local_sent
    yield sorted(each.stream_id or 0 for each in engine._streams_queue)
    for number, each in sorted(server._streams.items()):
        receiver = each.receiver
        yield number, receiver.highest_offset, receiver.starting_offset(), receiver._final_size, receiver.is_finished
    while (event := server.next_event()) is not None:
        if not isinstance(event, theirs.StreamDataReceived):
            yield type(event), getattr(event, "stream_id", None), getattr(event, "error_code", None)


@example([("write", 2, 105, False), ("flush",), ("reset", 2), ("write", 3, 105, True)], {})
@example([("write", 2, 105, True), ("flush",), ("stop", 2), ("write", 3, 105, True)], {})
@example([("write", 2, 105, True), ("say", stream(0, 0, b"x"), 1, 0), ("ping",)], {})
@example([("write", 2, 105, True), ("write", 6, 105, True)], {"streams": 4})
@example([("write", 2, 105, True), ("move",)], {})
@example([("write", 2, 105, True), ("credit", 1 << 20)], {})
@example([("write", 2, 105, False), ("flush",), ("credit stream", 2, 1 << 20), ("write", 3, 105, True)], {})
@example([("write", 2, 105, True), ("say", b"\x0f\x03\0\x01\x40", 1, 0), ("credit", 1 << 20)], {})
@example([("write", 2, 3000, False), ("flush",), ("write", 2, 0, True)], {})
@example([("write", 2, 3000, True), ("write", 1, 105, True)], {"data": 5000, "stream": 200})
@example([("write", 2, 3000, True), ("write", 1, 105, True)], {"data": 400})
@example([("write", 2, 600, True)], {"data": 400})
@example([("write", 2, 600, True)], {"data": 5000, "stream": 200})
@given(
    _STEPS,
    st.sampled_from([{}, {}, {"data": 400}, {"data": 5000, "stream": 200}, {"streams": 4}]),
)
@hypothesis.settings(max_examples=40, deadline=None)
def test_both_ways_say_the_same(steps: list[tuple[Any, ...]], windows: dict[str, int]) -> None:
    both = Both(**windows)
    for step in [*steps, ("flush",), ("wait", 0.03), ("flush",), ("answer",), ("flush",), ("flush",)]:
        both.do(step)
        if step == ("flush",):
            both.compare()


@given(
    st.lists(st.integers(0, 1300), min_size=1, max_size=300),
    _HARM,
    st.sampled_from([3_000, 50_000, 1 << 20]),
)
@hypothesis.settings(max_examples=25, deadline=None)
def test_what_is_packed_arrives(sizes: list[int], harm: list[str], window: int) -> None:
    _all_arrives(sizes, harm, window)


def _requests(pair: Pair, count: int, size: int = 105) -> list[int]:
    numbers = [pair.client.get_next_available_stream_id() + 4 * index for index in range(count)]
    pair.client.engine._remote_max_streams_bidi = pair.server._local_max_streams_bidi.value = 10_000
    for number in numbers:
        pair.client.send_stream_data(number, bytes(size), True)
    return numbers


def _only_short(monkeypatch: pytest.MonkeyPatch, client: ClientConnection) -> None:
    monkeypatch.setattr(client.engine, "_write_application", None)  # it would raise


def test_small_requests_leave_in_full_packets_that_one_call_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux takes datagrams of one size together; only the last may be shorter."""
    pair = Pair()
    numbers = _requests(pair, 50)
    pair.say(b"\x01\0\0")
    _only_short(monkeypatch, pair.client)
    datagrams = [datagram for datagram, _ in pair.client.datagrams_to_send(pair.now)]
    assert [len(each) for each in datagrams][:-1] == [1200] * 4
    assert pair.client.engine._spaces[Epoch.ONE_RTT].ack_at is None  # the ACK went with them
    for datagram in datagrams:
        pair.server.receive_datagram(datagram, _CLIENT, pair.now)
    assert pair.server._spaces[Epoch.ONE_RTT].largest_acked_packet == pair.server._packet_number - 1
    assert all(pair.server._streams[number].receiver.is_finished for number in numbers)


def test_packets_that_hold_no_more_requests_are_filled_up() -> None:
    pair = Pair()
    pair.client.engine._loss._pacer.packet_time = None
    _requests(pair, 4, 1146)
    assert [len(datagram) for datagram, _ in pair.client.datagrams_to_send(pair.now)] == [1200, 1200, 1200, 1177]


def test_the_pacer_says_when_the_rest_may_go() -> None:
    pair = Pair()
    engine = pair.client.engine
    loss = engine._loss
    loss._cc.congestion_window = 1 << 20
    loss._pacer = Unpaced(max_datagram_size=1200)
    loss._pacer.packet_time, loss._pacer.bucket_max = 0.0001, 0.0005
    _requests(pair, 30, 300)
    pair.now += 0.02
    assert len(pair.client.datagrams_to_send(pair.now)) == 5
    assert engine._pacing_at == pytest.approx(pair.now + 0.0001)
    assert pair.client.datagrams_to_send(pair.now) == []
    pair.now += 0.02
    assert len(pair.client.datagrams_to_send(pair.now)) == 3
    assert engine._pacing_at is None


def test_the_pacer_says_when_the_rest_may_go_although_numbers_are_rounded() -> None:
    pair = Pair()
    engine = pair.client.engine
    loss = engine._loss
    loss._cc.congestion_window = 1 << 20
    pacer = loss._pacer = Unpaced(max_datagram_size=1200)
    window, rtt = next(
        (window, rtt)
        for window in range(12 * 1200, 64 * 1200, 4 * 1200)
        for rtt in (each / 1000 for each in range(10, 200))
        if window / 4 / (window / rtt) > window // 4 // 1200 * (1200 / (window / rtt))
    )
    pacer.packet_time, pacer.bucket_max = 1200 / (window / rtt), window / 4 / (window / rtt)
    _requests(pair, 200, 300)
    pair.now += 1
    assert len(pair.client.datagrams_to_send(pair.now)) == window // 4 // 1200
    assert engine._pacing_at == pytest.approx(pair.now + pacer.packet_time)


def test_an_acknowledgement_alone_asks_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair()
    pair.say(b"\x01\0\0")
    _only_short(monkeypatch, pair.client)
    assert pair.client.datagrams_to_send(pair.now) == []  # it is not due
    pair.now += 0.03
    pair.client.handle_timer(pair.now)
    [(datagram, _)] = pair.client.datagrams_to_send(pair.now)
    pair.server.receive_datagram(datagram, _CLIENT, pair.now)
    assert pair.server._spaces[Epoch.ONE_RTT].ack_at is None
    loss = pair.client.engine._loss
    assert (loss.bytes_in_flight, pair.client.engine._spaces[Epoch.ONE_RTT].ack_eliciting_in_flight) == (0, 0)
    assert pair.client.datagrams_to_send(pair.now) == []


@pytest.mark.parametrize("engine", [Engine, SentLongWay])
def test_gaps_that_were_acknowledged_are_forgotten(engine: type[Engine]) -> None:
    """An ACK of several ranges asks for an ACK of its own now and then. Else they would be sent for ever."""
    pair = Pair(engine=engine)
    space = pair.client.engine._spaces[Epoch.ONE_RTT]
    longest = 0
    for _ in range(40):
        pair.server._packet_number += 2  # numbers that were skipped
        pair.say(b"\x01\0\0")
        pair.now += 0.03
        pair.client.handle_timer(pair.now)
        longest = max(longest, len(space.ack_queue))
        for datagram, _ in pair.client.datagrams_to_send(pair.now):
            pair.server.receive_datagram(datagram, _CLIENT, pair.now)
        pair.now += 0.03
        pair.server.handle_timer(pair.now)
        for datagram, _ in pair.server.datagrams_to_send(pair.now):
            pair.client.receive_datagram(datagram, _SERVER, pair.now)
    assert 3 < longest < 12


@pytest.mark.parametrize("mark", [0, 2])
def test_an_acknowledgement_names_all_ranges_and_marks(mark: int) -> None:
    pair = Pair()
    space = pair.client.engine._spaces[Epoch.ONE_RTT]
    for ahead in (0, 0, 3, 70, 1, 20_000):
        pair.server._packet_number += ahead
        pair.say(b"\x01\0\0", mark=mark)
    pair.now += 0.008
    buffer = Buffer(data=pair.client.engine._ack_frame(space, pair.now))
    assert buffer.pull_uint_var() == (3 if mark else 2)
    ranges, delay = pull_ack_frame(buffer)
    assert list(ranges) == list(space.ack_queue)
    assert len(ranges) == 5
    assert delay << 3 == pytest.approx(8000, abs=8)
    if mark:
        assert [buffer.pull_uint_var() for _ in range(3)] == [6, 0, 0]
    assert buffer.eof()


@pytest.mark.parametrize("packet_time", [None, 0.0001])
def test_small_requests_take_what_congestion_control_gives_and_no_more(packet_time: float | None) -> None:
    flown = []
    for engine in (Engine, SentLongWay):
        pair = Pair(engine=engine)
        loss = pair.client.engine._loss
        loss._cc.congestion_window, loss._cc.ssthresh = 20_500, 20_500
        _requests(pair, 400, 300)
        loss._pacer = Unpaced(max_datagram_size=1200)
        loss._pacer.packet_time, loss._pacer.bucket_max = packet_time, 0.0005
        flights_ = []
        for _ in range(12):
            pair.now += 0.02
            datagrams = [datagram for datagram, _ in pair.client.datagrams_to_send(pair.now)]
            assert loss.bytes_in_flight <= loss.congestion_window
            assert pair.client.engine._pacing_at is None or packet_time is not None
            flights_.append(len(datagrams))
            for datagram in datagrams:
                pair.server.receive_datagram(datagram, _CLIENT, pair.now)
            pair.now += 0.02
            for datagram, _ in pair.server.datagrams_to_send(pair.now):
                pair.client.receive_datagram(datagram, _SERVER, pair.now)
        flown.append(flights_)
    short, long = flown
    assert max(short) == 5 if packet_time else max(short) > 15
    assert all(abs(one - other) <= 1 for one, other in zip(short, long, strict=True))


def test_what_is_sent_again_counts_once_for_flow_control() -> None:
    pair = Pair()
    lost = _requests(pair, 3, 1000)
    pair.client.datagrams_to_send(pair.now)
    for _ in range(4):
        _requests(pair, 1, 100)
        pair.now += 0.03
        for datagram, _ in pair.client.datagrams_to_send(pair.now):
            pair.server.receive_datagram(datagram, _CLIENT, pair.now)
        pair.now += 0.03
        pair.server.handle_timer(pair.now)
        for datagram, _ in pair.server.datagrams_to_send(pair.now):
            pair.client.receive_datagram(datagram, _SERVER, pair.now)
    for datagram, _ in pair.client.datagrams_to_send(pair.now):
        pair.server.receive_datagram(datagram, _CLIENT, pair.now)
    assert all(pair.server._streams[number].receiver.starting_offset() == 1000 for number in lost)
    assert pair.client.engine._remote_max_data_used == 3400


def test_streams_that_were_not_served_are_first_next_time() -> None:
    pair = Pair()
    loss = pair.client.engine._loss
    numbers = _requests(pair, 100)
    loss._pacer.packet_time = None
    loss._cc.congestion_window = loss.bytes_in_flight + 2400
    pair.client.datagrams_to_send(pair.now)
    sent = [number for number in numbers if pair.client.engine._streams[number].sender.highest_offset]
    assert 15 < len(sent) < 25
    assert [each.stream_id for each in pair.client.engine._streams_queue][-len(sent) :] == sent


def test_an_upload_that_runs_take_whole_has_nothing_left_to_send() -> None:
    pair = Pair()
    number = pair.client.get_next_available_stream_id()
    pair.client.engine._loss._pacer.packet_time = None
    pair.client.engine._loss._cc.congestion_window = 1 << 20
    overhead = 1 + 8 + 2 + 16 + 1 + 1 + 4  # of each packet: header, tag, and the frame's type, stream and offset
    pair.client.send_stream_data(number, bytes(4 * (1200 - overhead)))
    assert [len(datagram) for datagram, _ in pair.client.datagrams_to_send(pair.now)] == [1200] * 4
    sender = pair.client.engine._streams[number].sender
    assert not len(sender._pending)
    assert sender.buffer_is_empty


def test_a_large_upload_does_not_keep_small_requests_waiting() -> None:
    pair = Pair()
    upload = pair.client.get_next_available_stream_id()
    pair.client.send_stream_data(upload, bytes(1_000_000))
    _requests(pair, 8)
    pair.client.datagrams_to_send(pair.now)
    senders = [each.sender for number, each in pair.client.engine._streams.items() if not number & 2]
    assert all(sender.highest_offset for sender in senders)


def test_streams_that_are_over_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair()
    numbers = _requests(pair, 50)
    for datagram, _ in pair.client.datagrams_to_send(pair.now):
        pair.server.receive_datagram(datagram, _CLIENT, pair.now)
    for number in numbers:
        pair.server.send_stream_data(number, b"answer", True)
    pair.now += 0.03
    pair.server.handle_timer(pair.now)
    for datagram, _ in pair.server.datagrams_to_send(pair.now):
        pair.client.receive_datagram(datagram, _SERVER, pair.now)
    _only_short(monkeypatch, pair.client)
    pair.client.datagrams_to_send(pair.now)
    assert not {*pair.client.engine._streams} & {*numbers}
    assert not {each.stream_id for each in pair.client.engine._streams_queue} & {*numbers}
