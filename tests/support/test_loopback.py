"""What is overheard: all of some ports, and nothing that others send."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.capture import needs_capture
from tests.support.loopback import overhear, take_apart

pytestmark = needs_capture

_SOL_PACKET, _PACKET_STATISTICS = 263, 6
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM


@contextmanager
def speakers(kind: socket.SocketKind, host: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client and a server, connected."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, kind) as listener, socket.socket(family, kind) as client:
        listener.bind((host, 0))
        if kind is UDP:
            client.connect(listener.getsockname())
            listener.connect(client.getsockname())
            yield client, listener
            return
        listener.listen()
        client.connect(listener.getsockname())
        with listener.accept()[0] as server:
            yield client, server


def flood(client: socket.socket, server: socket.socket) -> None:
    """Send more than a small buffer takes."""
    for _ in range(100):
        client.sendall(bytes(30_000))
        left = 30_000
        while left:
            left -= len(server.recv(left))


def overheard(raw: socket.socket, count: int) -> list[tuple[int, int, bytes]]:
    """So many packets that carry anything: the ports from and to, and what is carried.

    (TCP sends again what is acknowledged late. That counts once.)
    """
    found: list[tuple[int, int, bytes]] = []
    known: set[tuple[int, bytes]] = set()
    while len(found) < count:
        crossed = take_apart(raw.recv(2000))
        assert crossed is not None
        assert crossed.size == len(crossed.data)
        header = 8 if crossed.protocol == socket.IPPROTO_UDP else 4 * (crossed.data[12] >> 4)
        segment = crossed.source[1], crossed.data[4:8]
        if crossed.data[header:] and (crossed.protocol == socket.IPPROTO_UDP or segment not in known):
            known.add(segment)
            found.append((crossed.source[1], crossed.destination[1], crossed.data[header:]))
    return found


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("kind", [TCP, UDP], ids=["tcp", "udp"])
def test_what_others_send_takes_no_room(kind: socket.SocketKind, host: str) -> None:
    """Two ports are watched. Nobody reads what is overheard until a third has sent more than the buffer takes."""
    with (
        speakers(kind, host) as (one, at_one),
        speakers(kind, host) as (two, at_two),
        speakers(kind, host) as (other, at_other),
        overhear(at_one.getsockname()[1], two.getsockname()[1]) as raw,  # as destination, and as source
    ):
        raw.settimeout(30)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        expected = []
        for word in (b"before", b"after"):
            for speaker, hearer in ((one, at_one), (two, at_two), (at_two, two)):
                speaker.send(word)
                expected.append((speaker.getsockname()[1], hearer.getsockname()[1], word))
            if word == b"before":
                flood(other, at_other)
        assert overheard(raw, len(expected)) == expected
        shown, lost = struct.unpack("@II", raw.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        assert lost == 0
        # Over TCP each has an acknowledgement, and a few may go again: far less than what the third has sent.
        assert shown == len(expected) if kind is UDP else shown < 5 * len(expected)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_packet_is_taken_apart(host: str) -> None:
    with speakers(UDP, host) as (client, server), overhear(server.getsockname()[1]) as raw:
        if ":" in host:
            client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 0xB9)
        else:
            client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0xB9)
        client.send(b"12345")
        crossed = take_apart(raw.recv(2000))
        assert crossed is not None
        assert crossed.protocol == socket.IPPROTO_UDP
        assert crossed.source == client.getsockname()[:2]
        assert crossed.destination == server.getsockname()[:2]
        assert (crossed.ecn, crossed.size, crossed.data[8:]) == (1, 13, b"12345")
