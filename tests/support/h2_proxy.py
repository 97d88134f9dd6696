"""A scripted HTTP/2 proxy: CONNECT on each stream (RFC 9113 §8.5), relayed to origins by one thread, witnessed.

It knows CONNECT-UDP too (RFC 9298), where its SETTINGS offer extended CONNECT.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable

from hyperframe.frame import DataFrame, HeadersFrame, RstStreamFrame

from tests.support.h2_script import Request, Talk
from tests.support.peer import PeerConnection

Answer = Callable[[Talk, Request], bool]


class _Talk(Talk):
    @property
    def pending(self) -> bool:
        """Whether reading on needs no byte from the socket."""
        whole = len(self._data) >= 9 and len(self._data) >= 9 + int.from_bytes(self._data[:3], "big")
        return whole or self.connection.pending


class Http2Proxy:
    """The script.

    :param answer: called with each CONNECT; says whether it has answered it itself (with a refusal).
    :param ends: whether the end of an origin's stream is passed on.
    :param credits_at_once: give credit for what comes (to a client that has closed that fails, and all is over).
    :ivar talks: one for each connection.
    :ivar streams: for each connection, what became of each stream: ``"ended"`` by the client, ``"reset"`` by it.
    """

    def __init__(
        self,
        answer: Answer | None = None,
        *,
        settings: dict[int, int] | None = None,
        ends: bool = True,
        credits_at_once: bool = True,
    ) -> None:
        self.talks: list[Talk] = []
        self.streams: list[dict[int, str]] = []
        self._answer = answer
        self._settings = settings
        self._ends = ends
        self._credits = credits_at_once
        self._capsules: dict[int, bytes] = {}  # by stream, of one connection: what is not whole yet

    @property
    def tunnels(self) -> list[str]:
        """The targets that were asked for, in order."""
        return [request.headers[":authority"] for talk in self.talks for request in talk.requests.values()]

    def __call__(self, connection: PeerConnection) -> None:
        talk = _Talk(connection, credits_at_once=self._credits)
        ends: dict[int, str] = {}
        self.talks.append(talk)
        self.streams.append(ends)
        origins: dict[int, socket.socket] = {}
        connection.raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        talk.greet(self._settings)
        try:
            while not connection.stopping:
                ready = select.select([connection.raw, *origins.values()], [], [], 0 if talk.pending else 5)[0]
                spoke = connection.raw in ready or talk.pending
                if spoke and not self._from_client(talk, origins, ends):
                    return
                for stream, origin in list(origins.items()):
                    if origin in ready:
                        self._from_origin(talk, stream, origin, origins)
        finally:
            for origin in origins.values():
                origin.close()

    def _from_client(self, talk: Talk, origins: dict[int, socket.socket], ends: dict[int, str]) -> bool:
        frame = talk.read()
        if frame is None:
            return False
        stream = frame.stream_id
        if isinstance(frame, HeadersFrame):
            request = talk.requests[stream]
            assert request.headers[":method"] == "CONNECT", request.headers
            if self._answer is not None and self._answer(talk, request):
                return True
            if request.headers.get(":protocol") == "connect-udp":
                origins[stream] = _udp_to(request)
                talk.send(talk.headers(stream, [(":status", "200"), ("capsule-protocol", "?1")]))
            else:
                host, _, port = request.headers[":authority"].rpartition(":")
                origins[stream] = socket.create_connection((host.strip("[]"), int(port)), timeout=30)
                talk.send(talk.headers(stream, [(":status", "200")]))
        elif isinstance(frame, DataFrame) and stream in origins:
            if origins[stream].type == socket.SOCK_DGRAM:
                self._capsules[stream] = _relay_capsules(self._capsules.get(stream, b"") + frame.data, origins[stream])
            elif frame.data:
                origins[stream].sendall(frame.data)
            if "END_STREAM" in frame.flags:
                ends[stream] = "ended"
                if origins[stream].type == socket.SOCK_DGRAM:
                    origins.pop(stream).close()
                    talk.send(DataFrame(stream, b"", flags=["END_STREAM"]))
                    return True
                origins[stream].shutdown(socket.SHUT_WR)
        elif isinstance(frame, RstStreamFrame):
            ends[stream] = "reset"
            if stream in origins:
                origin = origins.pop(stream)
                origin.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                origin.close()
        return True

    def _from_origin(self, talk: Talk, stream: int, origin: socket.socket, origins: dict[int, socket.socket]) -> None:
        if origin.type == socket.SOCK_DGRAM:
            capsule = _capsule(origin.recv(65535))
            talk.take_window(talk.requests[stream], len(capsule))
            pieces = [capsule[start : start + 16384] for start in range(0, len(capsule), 16384)]
            talk.send(*(DataFrame(stream, piece) for piece in pieces))
            return
        data = origin.recv(16384)
        if data:
            talk.take_window(talk.requests[stream], len(data))
            talk.send(DataFrame(stream, data))
        else:
            del origins[stream]
            origin.close()
            if self._ends:
                talk.send(DataFrame(stream, b"", flags=["END_STREAM"]))


def _udp_to(request: Request) -> socket.socket:
    assert request.headers[":scheme"] == "https"
    *_, host, port, end = request.headers[":path"].split("/")
    assert end == ""
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.connect((host, int(port)))
    return sock


def _capsule(datagram: bytes) -> bytes:
    # Behind a capsule of a type that nobody knows (RFC 9297 §5.4).
    return b"\x17\x03abc\x00" + (0x80000000 | (1 + len(datagram))).to_bytes(4, "big") + b"\x00" + datagram


def _relay_capsules(data: bytes, sock: socket.socket) -> bytes:
    while len(data) > 1:
        assert data[0] == 0
        start = 1 + (1 << (data[1] >> 6))  # RFC 9000 §16
        end = start + (int.from_bytes(data[1:start], "big") & ((1 << (8 * (start - 1) - 2)) - 1))
        if len(data) < end:
            break
        assert data[start] == 0
        sock.send(data[start + 1 : end])
        data = data[end:]
    return data
