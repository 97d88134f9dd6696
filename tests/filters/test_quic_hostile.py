"""Servers that hardly break QUIC's rules and cost more than they should. No network: their packets are made by hand."""

from __future__ import annotations

from time import process_time

import pytest
from aioquic.buffer import encode_uint_var
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import StopSendingReceived
from aioquic.quic.packet import QuicErrorCode
from aioquic.tls import Epoch

from allswell._filters.quic_connection import ClientConnection
from tests.support.certificates import certificates

_CLIENT, _SERVER = ("127.0.0.1", 1), ("127.0.0.1", 2)


class Pair:
    """A client whose handshake is confirmed, and a server that says what it is told to."""

    def __init__(self, window: int = 4 * 1024 * 1024) -> None:
        files = certificates()
        self.now = 0.0
        ours = QuicConfiguration(
            is_client=True, alpn_protocols=["x"], server_name="localhost", max_data=window, max_stream_data=window
        )
        self.client = ClientConnection(ours, trust=files.client_context())
        theirs = QuicConfiguration(is_client=False, alpn_protocols=["x"])
        theirs.load_cert_chain(files.chain, files.key)
        self.server = QuicConnection(
            configuration=theirs, original_destination_connection_id=self.client.original_destination_connection_id
        )
        self.client.connect(_SERVER, self.now)
        for _ in range(4):
            self.now += 0.01
            for datagram, _ in self.client.datagrams_to_send(self.now):
                self.server.receive_datagram(datagram, _CLIENT, self.now)
            for datagram, _ in self.server.datagrams_to_send(self.now):
                self.client.receive_datagram(datagram, _SERVER, self.now)
        assert self.client._handshake_confirmed
        self.client.take_events()

    def say(self, payload: bytes) -> None:
        """These frames reach the client, in a packet."""
        number = self.server._packet_number
        self.server._packet_number += 1
        header = b"\x41" + self.server._peer_cid.cid + (number & 0xFFFF).to_bytes(2, "big")
        packet = self.server._cryptos[Epoch.ONE_RTT].encrypt_packet(header, payload, number)
        self.client.receive_datagram(packet, _SERVER, self.now)

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
    assert len(pair.client.tls._receive_buffer) < 200_000
    assert process_time() - began < 2


def test_a_stream_that_is_reset_before_anything_of_it_came_gives_its_window_back() -> None:
    """What it carried counts for the connection's window (RFC 9000 §4.5), and nobody will ever consume it."""
    pair = Pair(window=100_000)
    for number in range(3, 3 + 4 * 40, 4):
        pair.say(b"\x04" + encode_uint_var(number) + encode_uint_var(0x100) + encode_uint_var(10_000))
        pair.client.datagrams_to_send(pair.now)
    assert pair.client.ended is None
    limit = pair.client._local_max_data
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
