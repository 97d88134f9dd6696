"""WebSocket servers for scripted peers: an echo on a stream of HTTP/2 or HTTP/3, or on a connection of HTTP/1.1."""

from __future__ import annotations

import base64
import hashlib
import re

from hyperframe.frame import DataFrame
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Message, Ping

from tests.support.h2_script import Request, Talk
from tests.support.peer import PeerConnection

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Echo:
    """What an echoing server answers to the bytes of a session.

    :ivar closed: the code of the client's Close frame.
    """

    def __init__(self) -> None:
        self._frames = Connection(ConnectionType.SERVER)
        self.closed: int | None = None

    def __call__(self, data: bytes) -> bytes:
        """The answer to these."""
        answer = b""
        self._frames.receive_data(data)
        for event in self._frames.events():
            if isinstance(event, (Ping, CloseConnection)):
                if isinstance(event, CloseConnection):
                    self.closed = event.code
                answer += self._frames.send(event.response())
            elif isinstance(event, Message):
                answer += self._frames.send(event)
        return answer


def converse(talk: Talk, request: Request, *, ends: bool = True) -> Echo:
    """Accept a session on a stream of HTTP/2, and echo, until the client has ended the stream or reset it.

    :param ends: whether we end the stream behind our answer to its Close frame (RFC 6455 §7.1.1).
    """
    echo, done, ended = Echo(), 0, False
    talk.send(talk.headers(request.stream, [(":status", "200")]))
    while not request.ended and request.reset is None:
        if talk.read() is None:
            return echo
        new = bytes(request.body[done:])
        done += len(new)
        answer = echo(new) if new else b""
        if answer:
            talk.body(request, answer, end=False)
        if ends and echo.closed is not None and not ended and request.reset is None:
            ended = True
            talk.send(DataFrame(request.stream, b"", flags=["END_STREAM"]))
    return echo


def upgrades(connection: PeerConnection) -> None:
    """A script: an echo after an Upgrade (RFC 6455 §4.2)."""
    found = re.search(rb"(?i)sec-websocket-key: (\S+)", connection.read_request())
    assert found is not None
    accept = base64.b64encode(hashlib.sha1(found[1] + _GUID, usedforsecurity=False).digest())
    connection.send(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )
    echo = Echo()
    while data := connection.recv():
        if answer := echo(data):
            connection.send(answer)
        if echo.closed is not None:
            return
