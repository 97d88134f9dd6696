"""Scripts for :func:`tests.support.peer.scripted_peer` that make it a proxy: HTTP CONNECT, forwarding, SOCKS5.

A scripted proxy relays bytes between a real client connection and a real origin connection, and like every scripted
peer it witnesses how the client ends.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable

from tests.support.peer import PeerConnection, Script

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


def relay(connection: PeerConnection, origin: socket.socket, *, polite: bool = True) -> None:
    """Pass bytes on in both directions, and each end of stream when it comes, until both have ended.

    :param polite: say goodbye to the client when the origin has ended.
    """
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
                    if polite:
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
        origin = socket.create_connection((host.strip("[]"), int(port)), timeout=30)
        with origin:
            connection.send(answer)
            carry(connection, origin)

    return script


def refusing_proxy(status: str, body: bytes) -> Script:
    """A proxy that answers CONNECT so, and hears the client out."""

    def script(connection: PeerConnection) -> None:
        if connection.read_head():
            connection.send(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    return script


class SocksProxy:
    """A script that speaks SOCKS5 (RFC 1928) by hand.

    :param user: name and password that it wants.
    :param reply: what it replies to every command, when that is not success.
    :ivar targets: what it was asked to connect to: type of address, host, port.
    """

    def __init__(
        self, user: tuple[str, str] | None = None, reply: bytes | None = None, pieces: int | None = None
    ) -> None:
        self.targets: list[tuple[int, str, int]] = []
        self._user = user
        self._reply = reply
        self._pieces = pieces

    def __call__(self, connection: PeerConnection) -> None:
        if not (head := connection.read_exactly(2)):
            return  # the client had second thoughts
        version, count = head
        methods = connection.read_exactly(count)
        wanted = 2 if self._user else 0
        assert version == 5
        if wanted not in methods:
            connection.send(b"\x05\xff", pieces=self._pieces)
            return
        connection.send(bytes((5, wanted)), pieces=self._pieces)
        if self._user is not None:
            if not (head := connection.read_exactly(2)):
                return  # the client had second thoughts
            size = head[1]
            name = connection.read_exactly(size).decode()
            password = connection.read_exactly(connection.read_exactly(1)[0]).decode()
            good = (name, password) == self._user
            connection.send(bytes((1, not good)), pieces=self._pieces)
            if not good:
                return
        if not (head := connection.read_exactly(4)):
            return
        _, command, _, kind = head
        assert command == 1
        if kind == 3:
            host = connection.read_exactly(connection.read_exactly(1)[0]).decode()
        else:
            family = socket.AF_INET if kind == 1 else socket.AF_INET6
            host = socket.inet_ntop(family, connection.read_exactly(4 if kind == 1 else 16))
        port = int.from_bytes(connection.read_exactly(2), "big")
        self.targets.append((kind, host, port))
        if self._reply is not None:
            connection.send(self._reply, pieces=self._pieces)
            return
        try:
            origin = socket.create_connection((host, port), timeout=30)
        except ConnectionRefusedError:
            connection.send(b"\x05\x05\x00\x01\x00\x00\x00\x00\x00\x00")
            return
        with origin:
            connection.send(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x12\x34", pieces=self._pieces)
            relay(connection, origin)


def socks_relay(over: threading.Event) -> Script:
    """A script that speaks SOCKS5 and relays one client's datagrams (RFC 1928 §7), to IPv4 addresses.

    :param over: once set, the connection that the relay was asked for on ends; its socket stays, and relays nothing.
    """

    def script(connection: PeerConnection) -> None:
        connection.read_exactly(connection.read_exactly(2)[1])
        connection.send(b"\x05\x00")
        assert connection.read_exactly(10)[:4] == b"\x05\x03\x00\x01"
        with socket.socket(type=socket.SOCK_DGRAM) as inside, socket.socket(type=socket.SOCK_DGRAM) as outside:
            inside.bind(("127.0.0.1", 0))
            outside.bind(("127.0.0.1", 0))
            host, port = inside.getsockname()
            connection.send(b"\x05\x00\x00\x01" + socket.inet_aton(host) + port.to_bytes(2, "big"))
            client, header = ("", 0), b""
            while not over.is_set():
                ready = select.select([inside, outside], [], [], 0.02)[0]
                if inside in ready:
                    data, client = inside.recvfrom(65535)
                    header = data[:10]
                    outside.sendto(data[10:], (socket.inet_ntoa(data[4:8]), int.from_bytes(data[8:10], "big")))
                if outside in ready:
                    inside.sendto(header + outside.recv(65535), client)
            connection.fin()
            connection.read_until_end()

    return script
