"""Clients made of nothing but a socket and ssl, which end as they are told: what the witnesses are tested with."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.certificates import certificates
from tests.support.peer import ScriptedPeer

GET = b"GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n"


@contextmanager
def plain(peer: ScriptedPeer) -> Iterator[socket.socket]:
    """A TCP connection to the peer."""
    with socket.create_connection((peer.host, peer.port), timeout=30) as client:
        yield client


@contextmanager
def secure(peer: ScriptedPeer, version: ssl.TLSVersion | None = None) -> Iterator[ssl.SSLSocket]:
    """A TLS connection to the peer. Leaving the block closes the socket, without close_notify."""
    context = certificates().client_context(alpn=["http/1.1"], version=version)
    with plain(peer) as raw, context.wrap_socket(raw, server_hostname="localhost") as client:
        yield client


def receive(client: socket.socket, size: int) -> bytes:
    """That many bytes, or fewer at the end of the stream."""
    data = b""
    while len(data) < size and (more := client.recv(size - len(data))):
        data += more
    return data


def reset(client: socket.socket) -> None:
    """End by RST."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
