"""How much of a path an upload uses. The path is a model with a clock of its own: the figures are the same anywhere."""

from __future__ import annotations

import heapq
import math
import random
import ssl
from dataclasses import dataclass, field

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import StreamDataReceived

from allswell._quic.connection import ClientConnection
from allswell._quic.engine import Engine
from tests.support.certificates import certificates

pytestmark = pytest.mark.usefixtures("loops")

_CLIENT, _SERVER = ("127.0.0.1", 1), ("127.0.0.1", 2)
_PIECE, _AHEAD = 96 * 1024, 256 * 1024


@dataclass
class Wire:
    """One direction of a path: what it carries arrives in order.

    :ivar rate: bits per second.
    :ivar delay: seconds.
    :ivar queue: bytes that may wait; what comes beyond is lost.
    :ivar jitter: seconds that the delay varies by.
    """

    rate: float
    delay: float
    queue: int
    jitter: float
    _random: random.Random = field(default_factory=lambda: random.Random(1))
    _free: float = 0.0
    _last: float = 0.0

    def arrival(self, now: float, size: int) -> float | None:
        """When so many bytes arrive that are sent now, in one go; ``None``: they are lost."""
        if max(0.0, self._free - now) * self.rate / 8 + size > self.queue:
            return None
        self._free = max(self._free, now) + 8 * size / self.rate
        self._last = max(self._last, self._free + self.delay + self._random.random() * self.jitter)
        return self._last


@dataclass
class Upload:
    """What came of it.

    :ivar used: how much of the path's capacity, from the first byte to the last.
    :ivar slow_start: bytes of the congestion window with which slow start ended; ``None``: it did not.
    """

    used: float
    slow_start: int | None


def upload(size: int, *, rate: float, round_trip: float, queue: int, jitter: float, burst: int) -> Upload:
    """Send so much on one stream.

    :param burst: datagrams that the path takes for one (UDP_SEGMENT).
    """
    ours = QuicConfiguration(is_client=True, alpn_protocols=["x"], verify_mode=ssl.CERT_NONE)
    client = ClientConnection(Engine(ours, judge=None))
    theirs = QuicConfiguration(is_client=False, alpn_protocols=["x"], max_data=2 * size, max_stream_data=2 * size)
    theirs.load_cert_chain(certificates().chain, certificates().key)
    server = QuicConnection(
        configuration=theirs, original_destination_connection_id=client.engine.original_destination_connection_id
    )
    up, down = (Wire(rate, round_trip / 2, queue, jitter) for _ in range(2))
    client.engine.connect(_SERVER, 0.0)
    now = began = 0.0
    given = got = number = 0
    stream: int | None = None
    slow_start: int | None = None
    under_way: list[tuple[float, int, bool, list[bytes]]] = []
    while got < size:
        if stream is None and client.engine._handshake_confirmed:
            stream, began = client.get_next_available_stream_id(), now
        while stream is not None and given < size and (not given or client.unsent(stream) < _AHEAD - _PIECE):
            piece = min(_PIECE, size - given)
            given += piece
            client.send_stream_data(stream, bytes(piece), given == size)
        out = [datagram for datagram, _ in client.datagrams_to_send(now)]
        bursts = [(up, out[start : start + burst]) for start in range(0, len(out), burst)]
        if server._network_paths:
            bursts += [(down, [datagram]) for datagram, _ in server.datagrams_to_send(now)]
        for wire, datagrams in bursts:
            arrives = wire.arrival(now, sum(map(len, datagrams)))
            if arrives is not None:
                number += 1
                heapq.heappush(under_way, (arrives, number, wire is up, datagrams))
        if slow_start is None:
            slow_start = client.engine._loss._cc.ssthresh
        alarms = [timer for timer in (client.get_timer(), server.get_timer()) if timer]
        alarms = [math.ceil(timer * 1000 - 1e-6) / 1000 for timer in alarms]  # as event loops have it
        now = max(now, min(alarms + [each[0] for each in under_way[:1]]))
        while under_way and under_way[0][0] <= now:
            *_, to_server, datagrams = heapq.heappop(under_way)
            for datagram in datagrams:
                if to_server:
                    server.receive_datagram(datagram, _CLIENT, now)
                else:
                    client.receive_datagram(datagram, _SERVER, now)
        for end in (client, server):
            timer = end.get_timer() if end is client or server._network_paths else None
            if timer is not None and timer <= now:
                end.handle_timer(now)
        client.take_events()
        while (event := server.next_event()) is not None:
            got += len(event.data) if isinstance(event, StreamDataReceived) else 0
    return Upload(8 * size / (now - began) / rate, slow_start)


@pytest.mark.parametrize("burst", [1, 44])
@pytest.mark.parametrize("jitter", [0.0, 0.005])
@pytest.mark.parametrize("round_trip", [0.010, 0.030])
def test_an_upload_uses_four_fifths_of_a_fast_path(round_trip: float, jitter: float, burst: int) -> None:
    """100 Mbit/s, with a queue of four round trips: slow start ends when the path is full, and not before."""
    rate = 100e6
    full = int(rate * round_trip / 8)
    done = upload(10_000_000, rate=rate, round_trip=round_trip, queue=4 * full, jitter=jitter, burst=burst)
    assert done.used > 0.79
    assert done.slow_start is None or done.slow_start > full


def test_an_upload_finds_its_way_with_a_short_queue() -> None:
    """A fourth of a round trip: what slow start loses at its end is made good."""
    done = upload(10_000_000, rate=100e6, round_trip=0.030, queue=93_750, jitter=0.0, burst=1)
    assert done.used > 0.75
