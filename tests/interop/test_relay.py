"""The relay plays the scenarios: what is lost, spoilt, delayed and seen from elsewhere."""

from __future__ import annotations

import math
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event
from time import monotonic, sleep
from typing import Any

import interop.relay
import pytest
from interop.relay import Direction, Relay, Scenario

from tests.support.capture import needs_capture
from tests.support.test_loopback import UDP, flood, speakers


class _Clock:
    """The relay's time: it is the next moment at which something is due as soon as nothing else is to be done.

    So what comes of a scenario does not depend on when the relay's thread has its turn.

    :ivar goes_on: while it is not set, time stands still.
    """

    def __init__(self) -> None:
        self.goes_on = Event()
        self.goes_on.set()
        self._now = monotonic()

    def __call__(self) -> float:
        return self._now

    def select(self, read: Any, write: Any, other: Any, timeout: float | None) -> Any:
        """As :func:`select.select`: what is ready, or the time has passed."""
        ready = select.select(read, write, other, timeout if timeout is None else 0)
        if timeout is not None and not any(ready):
            if self.goes_on.is_set():
                self._now += timeout
            else:
                sleep(0.001)
        return ready


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    """Relays that are made from here on have it."""
    made = _Clock()
    monkeypatch.setattr(interop.relay, "monotonic", made)
    monkeypatch.setattr(interop.relay, "select", made)
    return made


@contextmanager
def _through(scenario: Scenario) -> Iterator[tuple[Relay, socket.socket, socket.socket]]:
    with socket.socket(type=socket.SOCK_DGRAM) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
        for sock in (server, client):
            sock.bind(("127.0.0.1", 0))
            sock.settimeout(30)
        with Relay([server.getsockname()], scenario) as relay:
            client.connect(relay.fronts[0])
            yield relay, client, server


def _send(client: socket.socket, server: socket.socket, count: int, lost: int = 0) -> list[bytes]:
    """Send numbered datagrams one by one; what arrives."""
    for number in range(count):
        client.send(number.to_bytes(2, "big") * 100)
    return [server.recv(2000) for _ in range(count - lost)]


def test_both_ways_and_recorded() -> None:
    with _through(Scenario()) as (relay, client, server):
        client.send(b"there")
        data, address = server.recvfrom(100)
        server.sendto(b"back", address)
        assert client.recv(100) == b"back"
    assert data == b"there"
    there, back = relay.capture
    assert (there.from_client, there.data, there.seen_as) == (True, b"there", address)
    assert (back.from_client, back.data, back.ecn) == (False, b"back", 0)
    assert there.arrived is not None
    assert back.arrived is not None


def test_drop_list() -> None:
    with _through(Scenario(to_server=Direction(drops=frozenset({2, 3})))) as (relay, client, server):
        arrived = _send(client, server, 5, lost=2)
    assert [data[1] for data in arrived] == [0, 3, 4]
    assert [datagram.arrived is None for datagram in relay.capture] == [False, True, True, False, False]


def test_bursts_are_bounded() -> None:
    with _through(Scenario(to_server=Direction(loss=1.0, burst=3))) as (_, client, server):
        arrived = _send(client, server, 8, lost=6)
    assert [data[1] for data in arrived] == [3, 7]


def test_corruption_changes_one_byte() -> None:
    with _through(Scenario(to_server=Direction(corruption=1.0, burst=2))) as (relay, client, server):
        arrived = _send(client, server, 3)
    sent = [datagram.data for datagram in relay.capture]
    differing = [sum(a != b for a, b in zip(one, other, strict=True)) for one, other in zip(sent, arrived, strict=True)]
    assert differing == [1, 1, 0]


def test_delay_and_bandwidth() -> None:
    with _through(Scenario(delay=0.05, bandwidth=200 * 8 * 100, queue=25)) as (relay, client, server):
        _send(client, server, 3)
    # 230 bytes with headers, at 20,000 bytes a second: 11.5 ms each, one after the other, whenever they came.
    free = 0.0
    for datagram in relay.capture:
        free = max(free, datagram.at) + 0.0115
        assert datagram.arrived is not None
        assert datagram.arrived >= free + 0.05 - 1e-6


def test_queue_overflows(clock: _Clock) -> None:
    """Time stands still until all have come."""
    with _through(Scenario(bandwidth=20_000, queue=2)) as (relay, client, server):
        clock.goes_on.clear()
        for _ in range(6):
            client.send(bytes(200))
        while len(relay.capture) < 6:
            sleep(0.001)  # between two looks: its thread tells nobody
        clock.goes_on.set()
        assert [len(server.recv(2000)) for _ in range(3)] == [200] * 3
    assert [datagram.arrived is None for datagram in relay.capture] == [False, False, False, True, True, True]


def test_rebinding_changes_port_and_address() -> None:
    with _through(Scenario(rebind=(0.05, 60), rebind_address=True)) as (_, client, server):
        client.send(b"before")
        _, before = server.recvfrom(100)
        after = before
        while after == before:
            client.send(b"after")
            _, after = server.recvfrom(100)
        server.sendto(b"to the old one", before)
        server.sendto(b"to the new one", after)
        assert client.recv(100) == b"to the new one"
    assert after[0] == "127.0.0.2"
    assert before[0] == "127.0.0.1"


def test_rebinding_ends_after_so_many_times() -> None:
    with _through(Scenario(rebind=(0.01, 0.01), rebindings=3, rebind_address=True)) as (relay, client, server):
        seen = None
        while seen != "127.0.0.4":
            client.send(b"whence?")
            _, (seen, _) = server.recvfrom(100)
        assert relay._rebind_at() == math.inf


def test_marks_pass() -> None:
    with _through(Scenario()) as (relay, client, server):
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 2)
        server.setsockopt(socket.IPPROTO_IP, 13, 1)  # IP_RECVTOS
        client.send(b"marked")
        _, ancillary, _, _ = server.recvmsg(100, 64)
    assert ancillary[0][2][0] & 3 == 2
    assert relay.capture[0].ecn == 2


def test_what_does_not_fit_is_lost() -> None:
    with _through(Scenario()) as (relay, client, server):
        for size in (1473, 1472):
            client.send(bytes(size))
        assert len(server.recv(2000)) == 1472
    assert relay.capture[0].arrived is None


def test_a_rival_takes_its_share_of_the_link(clock: _Clock) -> None:
    """Alone, it fills the link; it leaves room for those who come between."""
    scenario = Scenario(delay=0.01, bandwidth=1e6, rival=True)
    with _through(scenario) as (relay, client, server):
        client.send(b"begin")
        _, address = server.recvfrom(100)
        client.settimeout(0.05)
        assert relay.rival is not None
        began, before = clock(), relay.rival.sent
        arrived = 0
        while arrived < 20 or clock() < began + 10:
            server.sendto(bytes(1000), address)
            with suppress(TimeoutError):  # the queue was full
                arrived += len(client.recv(2000)) == 1000
        seconds, rivals = clock() - began, relay.rival.sent - before
    shared = 8 * (1500 * rivals + 1030 * arrived) / seconds
    assert 0.8e6 < shared < 1.1e6  # (what is on its way counts, too)
    assert rivals > arrived


@needs_capture
def test_what_goes_beside_it_is_recorded_whatever_others_send() -> None:
    """Before the relay reads, others send more than a small buffer takes."""
    with (
        speakers(UDP, "127.0.0.1") as (one, other),
        speakers(UDP, "127.0.0.1") as strangers,
        socket.socket(type=UDP) as server,
        socket.socket(type=UDP) as client,
    ):
        server.bind(("127.0.0.1", 0))
        server.settimeout(30)
        there, back = one.getsockname(), other.getsockname()
        relay = Relay([server.getsockname()], Scenario(), beside=back[1])
        assert relay._overheard is not None
        relay._overheard.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        one.send(b"before")
        flood(*strangers)
        other.send(b"after")
        with relay:
            client.connect(relay.fronts[0])
            _send(client, server, 1)  # by when each socket has been read once
            _send(client, server, 1)
        recorded = [(each.from_client, each.data, each.client) for each in relay.capture if each.front == back]
        assert recorded == [(True, b"before", there), (False, b"after", there)]
