"""A handshake of which the network loses some: what a client sends again. No network: time is made by hand."""

from __future__ import annotations

import ssl
from functools import partial
from typing import Any

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.tls import Epoch

from allswell._quic.connection import ClientConnection
from allswell._quic.engine import Engine
from allswell._quic.settings import VERSION_1, VERSION_2
from allswell._quic.trust import check
from tests.support.certificates import certificates

_CLIENT, _SERVER = ("127.0.0.1", 1), ("127.0.0.1", 2)


class Shaking:
    """A client that begins to shake hands with a server; each datagram is passed on by hand."""

    def __init__(self, **options: Any) -> None:
        files = certificates()
        self.now = 0.0
        ours = QuicConfiguration(
            is_client=True, alpn_protocols=["x"], server_name="localhost", verify_mode=ssl.CERT_NONE
        )
        self.client = ClientConnection(Engine(ours, judge=partial(check, files.client_context(), "localhost")))
        theirs = QuicConfiguration(is_client=False, alpn_protocols=["x"], **options)
        theirs.load_cert_chain(files.chain, files.key)
        assert theirs.certificate is not None
        theirs.certificate_chain = 3 * [theirs.certificate]  # so that its first flight is several datagrams
        self.server = QuicConnection(
            configuration=theirs,
            original_destination_connection_id=self.client.engine.original_destination_connection_id,
        )
        self.client.engine.connect(_SERVER, self.now)

    def from_client(self) -> list[bytes]:
        return [datagram for datagram, _ in self.client.datagrams_to_send(self.now)]

    def from_server(self) -> list[bytes]:
        return [datagram for datagram, _ in self.server.datagrams_to_send(self.now)]

    def up(self, datagrams: list[bytes]) -> None:
        for datagram in datagrams:
            self.server.receive_datagram(datagram, _CLIENT, self.now)

    def down(self, datagrams: list[bytes]) -> None:
        for datagram in datagrams:
            self.client.receive_datagram(datagram, _SERVER, self.now)

    def probes(self) -> list[bytes]:
        """What the client sends when its next probe timeout is over."""
        probes = self.client.engine._loss._pto_count
        while self.client.engine._loss._pto_count == probes:
            timer = self.client.get_timer()
            assert timer is not None
            self.now = timer
            self.client.handle_timer(self.now)
            datagrams = self.from_client()
        return datagrams

    def finish(self) -> None:
        for _ in range(12):
            self.now += 0.5
            for each in (self.client, self.server):
                timer = each.get_timer()
                if timer is not None and timer <= self.now:
                    each.handle_timer(self.now)
            self.up(self.from_client())
            self.down(self.from_server())
        assert self.client.engine._handshake_confirmed
        assert self.server._handshake_complete


@pytest.mark.parametrize("arrives", [0, 1])
def test_each_of_two_probes_is_enough_to_begin(arrives: int) -> None:
    """RFC 9002 §6.2.4. A server that never heard of us takes nothing but a ClientHello (RFC 9000 §17.2.2)."""
    pair = Shaking()
    pair.from_client()
    probes = pair.probes()
    assert [len(each) for each in probes] == [1200, 1200]
    pair.up(probes[arrives : arrives + 1])
    assert pair.server._close_event is None
    pair.down(pair.from_server())
    pair.finish()


def test_the_probes_of_the_whole_handshake_are_two() -> None:
    """Also when nothing but a PING is left to be said: then a server that may send no more is given credit by both."""
    pair = Shaking()
    pair.up(pair.from_client())
    pair.down(pair.from_server()[:1])
    pair.up(pair.from_client())
    for _ in range(3):
        assert len(pair.probes()) == 2
    pair.down(pair.from_server())
    pair.finish()
    assert pair.client.engine._loss._pto_count == 0


@pytest.mark.parametrize("arrives", [0, 1])
def test_probes_of_the_handshake_repeat_what_was_acknowledged(arrives: int) -> None:
    """The first ACK was lost. The server waits for it, not we: nothing else would ever make us say it again."""
    pair = Shaking()
    pair.up(pair.from_client())
    first, *more = pair.from_server()
    assert more  # or all would have come
    pair.down([first])
    pair.from_client()  # lost, with its ACKs
    waiting = {epoch: len(pair.server._spaces[epoch].sent_packets) for epoch in (Epoch.INITIAL, Epoch.HANDSHAKE)}
    assert waiting[Epoch.HANDSHAKE]
    pair.up(pair.probes()[arrives : arrives + 1])
    assert len(pair.server._spaces[Epoch.HANDSHAKE].sent_packets) < waiting[Epoch.HANDSHAKE]
    pair.finish()


def test_one_probe_is_enough_once_the_handshake_is_confirmed() -> None:
    pair = Shaking()
    pair.finish()
    pair.client.send_ping(1)
    assert len(pair.from_client()) == 1
    assert len(pair.probes()) == 1


def test_a_close_is_said_once_where_a_probe_was_due() -> None:
    pair = Shaking()
    pair.up(pair.from_client())
    pair.down(pair.from_server())
    timer = pair.client.get_timer()
    assert timer is not None
    pair.client.handle_timer(timer + 10)
    pair.client.close(0x100)
    assert len(pair.from_client()) == 1


def test_an_acknowledgement_goes_with_data() -> None:
    """RFC 9000 §13.2.1: alone it takes a packet of its own, a millisecond later."""
    pair = Shaking()
    pair.finish()
    space = pair.client.engine._spaces[Epoch.ONE_RTT]
    pair.server.send_ping(1)
    pair.down(pair.from_server())
    assert space.ack_at is not None
    assert space.ack_at > pair.now
    assert pair.from_client() == []  # it is not due
    pair.client.send_stream_data(0, b"x")
    [datagram] = pair.from_client()
    assert space.ack_at is None
    pair.up([datagram])
    assert pair.server._spaces[Epoch.ONE_RTT].ack_eliciting_in_flight == 0
    assert pair.from_client() == []


def test_a_few_bytes_on_a_stream_of_the_server_are_credited_later() -> None:
    pair = Shaking()
    pair.finish()
    pair.server.send_stream_data(3, b"settings")
    pair.down(pair.from_server())
    stream = pair.client.engine._streams[3]
    window = stream.max_stream_data_local_sent
    for credit, told in ((8, 0), (window // 4 - 9, 0), (1, window // 4), (8, window // 4)):
        pair.client.credit_stream(3, credit)
        pair.from_client()
        assert stream.max_stream_data_local_sent == window + told


@pytest.mark.parametrize("way", ["short", "long"])
def test_small_requests_share_packets(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    pair = Shaking()
    pair.finish()
    asked: list[int] = []
    write = QuicConnection._write_stream_frame

    def noted(self: QuicConnection, builder: Any, space: Any, stream: Any, max_offset: int) -> int:
        asked.append(stream.stream_id)
        return write(self, builder, space, stream, max_offset)

    monkeypatch.setattr(QuicConnection, "_write_stream_frame", noted)
    if way == "long":
        monkeypatch.setattr(Engine, "_sealer_for_now", lambda self: None)
    requests = [4 * number for number in range(30)]
    for each in requests:
        pair.client.send_stream_data(each, b"x" * 105, end_stream=True)
    datagrams = pair.from_client()
    assert len(datagrams) == 3
    # Once each, but for those at the end of a packet. (aioquic asks all of them for each packet.)
    assert sorted(set(asked)) == (requests if way == "long" else [])
    assert len(asked) < len(requests) + len(datagrams)
    pair.up(datagrams[::2])  # the second is lost, and sent again
    pair.finish()
    streams = pair.server._streams
    assert all(streams[each].receiver._final_size == 105 for each in requests)
    assert all(streams[each].receiver.starting_offset() == 105 for each in requests)
    assert pair.client.all_acknowledged


@pytest.mark.parametrize("confirmed", [False, True])
def test_the_initial_keys_of_another_version_are_made_if_it_comes_before_they_are_discarded(confirmed: bool) -> None:
    """RFC 9368 §2.3: the server may change the version. RFC 9001 §4.9.1: later there are no Initial keys any more."""
    both = Shaking()
    keys = both.client.engine._cryptos_initial
    assert list(keys) == [VERSION_1]
    if confirmed:
        both.finish()
    assert keys[VERSION_1].recv.is_valid() is not confirmed
    assert keys[VERSION_2].recv.is_valid() is keys[VERSION_2].send.is_valid() is not confirmed


def test_all_versions_are_offered() -> None:
    both = Shaking()
    both.up(both.from_client())
    told = both.server._remote_version_information
    assert told is not None
    assert (told.chosen_version, told.available_versions) == (VERSION_1, [VERSION_1, VERSION_2])
