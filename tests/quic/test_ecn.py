"""ECN over a pretend path: counted, reported, validated, and given up where the path or the peer does not bear it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import HandshakeCompleted
from aioquic.tls import Epoch

from allswell._quic.ecn import CE, ECT_0, ECT_1, NOT_ECT, EcnConnection
from tests.support.certificates import certificates

_ADDRESSES = ("127.0.0.1", 1), ("127.0.0.1", 2)
Path = Callable[[int], int]


class _Pair:
    """A client and a server, and a path that may change the marks of what crosses it."""

    def __init__(self, path: Path, *, server: type[QuicConnection] = EcnConnection) -> None:
        files = certificates()
        self.now = 0.0
        self.path = path
        ours = QuicConfiguration(is_client=True, alpn_protocols=["x"], server_name="localhost")
        ours.load_verify_locations(cafile=str(files.ca))
        self.client = EcnConnection(configuration=ours)
        theirs = QuicConfiguration(is_client=False, alpn_protocols=["x"])
        theirs.load_cert_chain(files.chain, files.key)
        self.server = server(
            configuration=theirs, original_destination_connection_id=self.client.original_destination_connection_id
        )
        self.client.connect(_ADDRESSES[1], self.now)

    def run(self, rounds: int = 10) -> None:
        """Let what each has to say reach the other, so many times."""
        for _ in range(rounds):
            self.now += 0.05
            self._cross(self.client, self.server, _ADDRESSES[0])
            self._cross(self.server, self.client, _ADDRESSES[1])

    def _cross(self, sender: QuicConnection, receiver: QuicConnection, address: tuple[str, int]) -> None:
        timer = sender.get_timer()
        if timer is not None and timer <= self.now:
            sender.handle_timer(self.now)
        marked = isinstance(sender, EcnConnection) and sender.marking
        for datagram, _ in sender.datagrams_to_send(self.now):
            if isinstance(receiver, EcnConnection):
                receiver.mark = self.path(ECT_0 if marked else NOT_ECT)
            receiver.receive_datagram(datagram, address, self.now)

    def upload(self) -> None:
        """The client sends some."""
        self.client.send_stream_data(self.client.get_next_available_stream_id(), b"x" * 20_000, True)
        self.run()


def _shaken(pair: _Pair) -> bool:
    events = iter(pair.client.next_event, None)
    return any(isinstance(event, HandshakeCompleted) for event in events)


def test_a_path_that_bears_it() -> None:
    pair = _Pair(lambda mark: mark)
    pair.run()
    pair.upload()
    assert _shaken(pair)
    assert pair.client.marking
    assert isinstance(pair.server, EcnConnection)
    assert pair.server.marking
    told = pair.client._peer_counts[pair.client._spaces[Epoch.ONE_RTT]]
    assert told[0] >= 20_000 // 1200  # every packet was counted by the server
    assert told[1:] == (0, 0)


@pytest.mark.parametrize("becomes", [NOT_ECT, ECT_1], ids=["cleared", "ECT(1)"])
def test_a_path_that_changes_the_marks(becomes: int) -> None:
    pair = _Pair(lambda mark: becomes)
    pair.run()
    assert _shaken(pair)
    assert not pair.client.marking


def test_a_path_that_clears_them_later() -> None:
    pair = _Pair(lambda mark: mark)
    pair.run()
    assert pair.client.marking
    pair.path = lambda mark: NOT_ECT
    pair.upload()
    assert not pair.client.marking


def test_a_peer_that_does_not_report() -> None:
    pair = _Pair(lambda mark: mark, server=QuicConnection)
    pair.run()
    assert _shaken(pair)
    assert not pair.client.marking


def test_experienced_congestion_halves_the_window() -> None:
    pair = _Pair(lambda mark: mark)
    pair.run()
    before = pair.client._loss.congestion_window
    pair.path = lambda mark: CE
    pair.upload()
    assert pair.client.marking
    assert pair.client._loss.congestion_window <= before // 2 + 20_000
    assert pair.client._loss._cc.ssthresh is not None
    assert pair.client._peer_counts[pair.client._spaces[Epoch.ONE_RTT]][2] > 0


def test_no_answer_to_marked_packets() -> None:
    pair = _Pair(lambda mark: mark)
    for _ in range(3):
        pair.client.datagrams_to_send(pair.now)
        assert pair.client.marking
        timer = pair.client.get_timer()
        assert timer is not None
        pair.now = timer
        pair.client.handle_timer(pair.now)
    assert not pair.client.marking
    pair.run(40)
    assert _shaken(pair)
