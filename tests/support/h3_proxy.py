"""A proxy that is spoken to by HTTP/3 (over aioquic): CONNECT (RFC 9114 §4.4) and CONNECT-UDP (RFC 9298), recorded.

Beside what every :class:`QuicServer` records, ``seen`` has ``("connect", stream, target or path)`` for each tunnel, and
``("end", stream)`` when the client has ended its half.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from aioquic._buffer import Buffer
from aioquic.buffer import encode_uint_var
from aioquic.h3.connection import H3Connection, Setting
from aioquic.h3.events import DatagramReceived, DataReceived, HeadersReceived
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import QuicEvent, StreamReset

from tests.support.quic_server import QuicServer, ServedConnection

#: Says whether it has answered by itself.
Answer = Callable[[ServedConnection, int, dict[bytes, bytes]], bool]


class _WithDatagrams(H3Connection):
    def _get_local_settings(self) -> dict[int, int]:
        return {**super()._get_local_settings(), Setting.H3_DATAGRAM: 1}


class Http3Proxy(QuicServer):
    """The proxy: a context manager.

    :param answer: called with each CONNECT.
    :param datagrams: whether it takes HTTP datagrams (RFC 9297 §2.1); else there are capsules only.
    :param ends: whether the end of an origin's stream is passed on.
    :ivar up: how what clients sent to origins by UDP came: ``"datagram"`` or ``"capsule"``, and its size.
    """

    def __init__(
        self,
        answer: Answer | None = None,
        *,
        datagrams: bool = True,
        ends: bool = True,
        max_datagram_size: int = 1350,
        **options: Any,
    ) -> None:
        if datagrams:
            options.setdefault("max_datagram_frame_size", 65536)
        super().__init__(max_datagram_size=max_datagram_size, **options)
        self.up: list[tuple[str, int]] = []
        self._decide = answer
        self._datagrams = datagrams
        self._ends = ends
        self._fits = max_datagram_size - 60  # of a payload: what is larger is dropped (RFC 9298 §6.1)
        self._tunnels: dict[tuple[ServedConnection, int], socket.socket | None] = {}  # None: its origin has ended
        self._capsules: dict[tuple[ServedConnection, int], bytes] = {}

    @property
    def targets(self) -> list[str]:
        """What was asked for, in order."""
        return [target for _, target in self.all("connect")]

    def __exit__(self, *how: Any) -> None:
        super().__exit__(*how)
        for sock in self._tunnels.values():
            if sock is not None:
                sock.close()

    # In the thread

    def _speak(self, quic: QuicConnection) -> H3Connection:
        return _WithDatagrams(quic) if self._datagrams else H3Connection(quic)

    def _on_event(self, connection: ServedConnection, event: QuicEvent) -> None:
        super()._on_event(connection, event)
        if isinstance(event, StreamReset):
            self._end_tunnel(connection, event.stream_id)

    def _on_http(self, connection: ServedConnection, event: object) -> None:
        if isinstance(event, DatagramReceived):
            assert event.data[:1] == b"\0"
            self._to_udp(connection, event.stream_id, "datagram", event.data[1:])
        elif isinstance(event, HeadersReceived) and dict(event.headers)[b":method"] == b"CONNECT":
            self._on_connect(connection, event.stream_id, dict(event.headers))
        elif isinstance(event, DataReceived) and (connection, event.stream_id) in self._tunnels:
            self._on_data(connection, event.stream_id, event.data, event.stream_ended)
        else:
            super()._on_http(connection, event)

    def _on_connect(self, connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        over_udp = fields.get(b":protocol") == b"connect-udp"
        self.seen.append(("connect", stream, fields[b":path" if over_udp else b":authority"].decode()))
        if self._decide is not None and self._decide(connection, stream, fields):
            return
        if over_udp:
            assert fields[b":scheme"] == b"https"
            assert fields[b"capsule-protocol"] == b"?1"
            *_, host, port, nothing = fields[b":path"].decode().split("/")
            assert nothing == ""
            sock = socket.socket(type=socket.SOCK_DGRAM)
            sock.connect((host, int(port)))
            connection.head(stream, 200, (b"capsule-protocol", b"?1"))
        else:
            assert {b":scheme", b":path"}.isdisjoint(fields)
            host, _, port = fields[b":authority"].decode().rpartition(":")
            try:
                sock = socket.create_connection((host.strip("[]"), int(port)), timeout=30)
            except ConnectionRefusedError:
                connection.respond(stream, 502, b"nobody there")
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.head(stream, 200)
        self._tunnels[connection, stream] = sock
        self._others[sock] = lambda: self._from_origin(connection, stream, sock)

    def _on_data(self, connection: ServedConnection, stream: int, data: bytes, end: bool) -> None:
        sock = self._tunnels[connection, stream]
        if end:
            self.seen.append(("end", stream))
        if sock is None:
            return
        over_udp = sock.type == socket.SOCK_DGRAM
        if over_udp:
            buf = Buffer(data=self._capsules.get((connection, stream), b"") + data)
            start = 0
            while not buf.eof():
                start = buf.tell()
                try:
                    kind, size = buf.pull_uint_var(), buf.pull_uint_var()
                    payload = buf.pull_bytes(size)
                except ValueError:
                    break
                start = buf.tell()
                assert (kind, payload[:1]) == (0, b"\0")
                self._to_udp(connection, stream, "capsule", payload[1:])
            self._capsules[connection, stream] = buf.data_slice(start, buf.capacity)
        elif data:
            sock.sendall(data)
        if end:
            if over_udp:
                self._end_tunnel(connection, stream)
                if self._ends:
                    connection.data(stream, b"", end=True)
            else:
                sock.shutdown(socket.SHUT_WR)

    def _to_udp(self, connection: ServedConnection, stream: int, how: str, payload: bytes) -> None:
        self.up.append((how, len(payload)))
        sock = self._tunnels.get((connection, stream))
        if sock is not None:
            sock.send(payload)

    def _from_origin(self, connection: ServedConnection, stream: int, sock: socket.socket) -> None:
        assert connection.h3 is not None
        try:
            data = sock.recv(65535)
        except (ConnectionRefusedError, ConnectionResetError):
            return
        if sock.type == socket.SOCK_DGRAM:
            if not self._datagrams:
                capsule = b"\0" + encode_uint_var(1 + len(data)) + b"\0" + data
                connection.data(stream, b"\x17\x03abc" + capsule)  # behind one that nobody knows (RFC 9297 §5.4)
            elif len(data) <= self._fits:
                connection.h3.send_datagram(stream, b"\x02what context?")
                connection.h3.send_datagram(stream, b"\0" + data)
        elif data:
            connection.data(stream, data)
        else:
            self._end_tunnel(connection, stream)
            if self._ends:
                connection.data(stream, b"", end=True)

    def _end_tunnel(self, connection: ServedConnection, stream: int) -> None:
        sock = self._tunnels.get((connection, stream))
        if sock is not None:
            self._tunnels[connection, stream] = None
            del self._others[sock]
            sock.close()
