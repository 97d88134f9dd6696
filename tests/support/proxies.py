"""Scripts for :func:`tests.support.peer.scripted_peer` that make it a proxy: HTTP CONNECT, forwarding, SOCKS5.

A scripted proxy relays bytes between a real client connection and a real origin connection, and like every scripted
peer it witnesses how the client ends.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

from tests.support.peer import PeerConnection, Script

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


def relay(connection: PeerConnection, origin: socket.socket) -> None:
    """Pass bytes on in both directions, and each end of stream when it comes, until both have ended."""
    client_open = origin_open = True
    with origin:
        while client_open or origin_open:
            watched: list[socket.socket] = [connection.raw] * client_open + [origin] * origin_open
            ready = select.select(watched, [], [], 0 if connection.pending else 10)[0]
            if connection.stopping:
                return
            if client_open and (connection.raw in ready or connection.pending):
                data = connection.recv()
                if data:
                    origin.sendall(data)
                else:
                    client_open = False
                    if "RST" in connection.saw:
                        return
                    origin.shutdown(socket.SHUT_WR)
            if origin in ready:
                data = origin.recv(256 * 1024)
                if data:
                    connection.send(data)
                else:
                    origin_open = False
                    connection.send_close_notify()
                    connection.fin()


def connect_proxy(
    answer: bytes = ESTABLISHED, *, carry: Callable[[PeerConnection, socket.socket], None] = relay
) -> Script:
    """A proxy for CONNECT: dials what it is asked for, answers, and relays."""

    def script(connection: PeerConnection) -> None:
        head = connection.read_head()
        if not head:
            return
        connection.requests.append(head)
        method, target, _ = head.split(b" ", 2)
        assert method == b"CONNECT"
        host, _, port = target.decode().rpartition(":")
        origin = socket.create_connection((host.strip("[]"), int(port)), timeout=10)
        connection.send(answer)
        carry(connection, origin)

    return script


def refusing_proxy(status: str, body: bytes) -> Script:
    """A proxy that answers CONNECT so, and hears the client out."""

    def script(connection: PeerConnection) -> None:
        if connection.read_head():
            connection.send(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    return script
