"""A scripted HTTP/2 proxy: CONNECT on each stream (RFC 9113 §8.5), relayed to origins by one thread, witnessed."""

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
            if self._answer is None or not self._answer(talk, request):
                host, _, port = request.headers[":authority"].rpartition(":")
                origins[stream] = socket.create_connection((host.strip("[]"), int(port)), timeout=10)
                talk.send(talk.headers(stream, [(":status", "200")]))
        elif isinstance(frame, DataFrame) and stream in origins:
            if frame.data:
                origins[stream].sendall(frame.data)
            if "END_STREAM" in frame.flags:
                ends[stream] = "ended"
                origins[stream].shutdown(socket.SHUT_WR)
        elif isinstance(frame, RstStreamFrame):
            ends[stream] = "reset"
            if stream in origins:
                origin = origins.pop(stream)
                origin.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                origin.close()
        return True

    def _from_origin(self, talk: Talk, stream: int, origin: socket.socket, origins: dict[int, socket.socket]) -> None:
        data = origin.recv(16384)
        if data:
            talk.take_window(talk.requests[stream], len(data))
            talk.send(DataFrame(stream, data))
        else:
            del origins[stream]
            origin.close()
            if self._ends:
                talk.send(DataFrame(stream, b"", flags=["END_STREAM"]))
