"""The capture sees what crosses the wire, and waits for it."""

from __future__ import annotations

import socket
import threading

import pytest

from tests.support.capture import Packet, capture, endings, needs_capture
from tests.support.peer import scripted_peer
from tests.support.plain_client import GET, plain, receive, reset, secure
from tests.support.scripts import answers, never_ends, response
from tests.support.test_loopback import flood, speakers

pytestmark = needs_capture

ANSWER = response(b"/hello")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_handshake_data_and_both_fins(host: str) -> None:
    with scripted_peer(answers(), host=host) as peer, capture(peer.port) as seen:
        with plain(peer) as client:
            client.sendall(GET)
            receive(client, len(ANSWER))
            port = client.getsockname()[1]
        seen.settle()
        assert seen.clients() == [port]
        assert [packet.flags for packet in seen.packets[:3]] == [{"SYN"}, {"SYN", "ACK"}, {"ACK"}]
        assert sum(packet.size for packet in seen.packets if packet.from_client) == len(GET)
        assert sum(packet.size for packet in seen.packets if not packet.from_client) == len(ANSWER)
        assert seen.flags(from_client=True) == ["FIN"]
        assert seen.flags(from_client=False) == ["FIN"]
        assert not seen.any_rst()
        assert seen.first("FIN", from_client=True).time <= seen.first("FIN", from_client=False).time
        with pytest.raises(LookupError, match="no RST from the client"):
            seen.first("RST", from_client=True)


def test_rst_of_a_client() -> None:
    with scripted_peer(answers()) as peer, capture(peer.port) as seen:
        with plain(peer) as client:
            client.sendall(GET)
            receive(client, len(ANSWER))
            reset(client)
        seen.settle()
        assert seen.any_rst()
        assert seen.flags(from_client=True) == ["RST"]
        assert seen.flags(from_client=False) == []


def test_rst_that_answers_a_late_goodbye() -> None:
    """The witnesses agree on the commonest bad end: FIN, then RST."""
    with scripted_peer(answers(), tls=True) as peer, capture(peer.port) as seen:
        with secure(peer) as client:
            client.sendall(GET)
            receive(client, len(ANSWER))
        peer.wait_ended()
        seen.settle()
        assert seen.flags(from_client=True)[:2] == peer.connections[0].saw == ["FIN", "RST"]


def packets(*lines: str) -> list[Packet]:
    """``"-> FIN+ACK SEQ ACK SIZE"``; ``<-`` is the server's."""
    made = []
    for line in lines:
        arrow, flags, seq, ack, size = line.split()
        ports = (40000, 443) if arrow == "->" else (443, 40000)
        made.append(
            Packet(0.0, "tcp", *ports, int(size), frozenset(flags.split("+")), int(seq), int(ack), arrow == "->")
        )
    return made


FULL_END = ("<- ACK+FIN+PSH 500 100 85", "-> ACK 100 586 0", "-> ACK+FIN+PSH 100 586 24", "<- ACK 586 125 0")


@pytest.mark.parametrize("acknowledged", [125, 100])  # 100: it was made before the client's FIN came
def test_rst_that_answers_a_repeat_is_the_kernels(acknowledged: int) -> None:
    """As seen on a busy machine: the acknowledgement of the server's FIN was 7 ms late, so its kernel sent it again."""
    seen = packets(*FULL_END, f"<- ACK+FIN+PSH 500 {acknowledged} 85", f"-> RST {acknowledged} 0 0")
    assert [flag for flag, _ in endings(seen)] == ["FIN", "FIN", "FIN"]


@pytest.mark.parametrize(
    "lines",
    [
        (*FULL_END, "-> RST 125 0 0"),  # nobody repeats anything
        (*FULL_END, "<- ACK+PSH 586 125 24", "-> RST 125 0 0"),  # new bytes
        (*FULL_END[:2], "<- ACK+FIN+PSH 500 100 85", "-> RST 100 0 0"),  # the client has not ended
        (*FULL_END[:3], "<- ACK+FIN+PSH 500 100 85", "-> RST 125 0 0"),  # its FIN is not acknowledged
        (FULL_END[0], *FULL_END[2:], "<- ACK+FIN+PSH 500 125 86", "-> RST 125 0 0"),  # one byte more than acknowledged
        (*FULL_END, "<- ACK+FIN+PSH 500 125 85", "<- RST 586 0 0"),  # its own
    ],
)
def test_every_other_rst_counts(lines: tuple[str, ...]) -> None:
    assert [flag for flag, _ in endings(packets(*lines))][-1] == "RST"


def test_settle_waits_for_the_last_acknowledgement() -> None:
    with scripted_peer(never_ends()) as peer, capture(peer.port) as seen, plain(peer) as client:
        client.shutdown(socket.SHUT_WR)
        with pytest.raises(TimeoutError, match="FIN"):
            seen.settle(0.1)
        waiting = threading.Thread(target=seen.settle)
        waiting.start()
        peer.release()
        waiting.join(30)
        assert not waiting.is_alive()
        assert seen.flags(from_client=False) == ["FIN"]


def test_only_one_address() -> None:
    with scripted_peer(answers()) as peer, capture(peer.port) as all_seen, capture(peer.port, "127.0.0.1") as seen:
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("::1", peer.port)):
            pass
        all_seen.settle()
        seen.sync()
        assert all_seen.any_rst()
        assert seen.packets == []


def test_settle_wants_as_many_connections_as_said() -> None:
    with scripted_peer(answers()) as peer, capture(peer.port) as seen:
        with plain(peer):
            pass
        seen.settle(connections=1)
        with pytest.raises(TimeoutError):
            seen.settle(0.1, connections=2)


def test_datagrams_and_nothing_of_other_ports() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
        server.bind(("127.0.0.1", 0))
        with capture(server.getsockname()[1]) as seen:
            client.sendto(b"12345", server.getsockname())
            server.sendto(b"123", client.getsockname())
            with socket.socket(type=socket.SOCK_DGRAM) as stranger:
                stranger.sendto(b"not ours", client.getsockname())
            seen.sync()
        assert [(packet.protocol, packet.size, packet.from_client) for packet in seen.packets] == [
            ("udp", 5, True),
            ("udp", 3, False),
        ]


def test_a_flood_of_others_loses_nothing() -> None:
    """Not even while nobody reads, which is how a busy machine is."""
    with speakers(socket.SOCK_DGRAM, "127.0.0.1") as (client, server), capture(server.getsockname()[1]) as seen:
        seen._raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        with seen._changed, speakers(socket.SOCK_STREAM, "127.0.0.1") as others:  # the thread waits for the first
            client.send(b"12345")
            flood(*others)
            server.send(b"123")
        seen.sync()
        assert [packet.size for packet in seen.packets] == [5, 3]
