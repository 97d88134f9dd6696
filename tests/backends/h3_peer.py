"""A pretend HTTP/3 server without a network: a QUIC that only takes notes, and what a server says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pylsqpack import Encoder

from allswell._backends import http3_frames as h3
from allswell._backends.http3 import Http3
from allswell._backends.interface import Event
from allswell._messages import Headers, RequestHead
from allswell._quic import varint
from allswell._quic.interface import End, QuicEvent, StopSendingReceived, StreamDataReceived
from tests.support.taken import taken

CONTROL = 3


class Quic:
    """What a backend asks of QUIC.

    :ivar did: in order: ``("reset", stream, code)``, ``("stop", stream, code)``, ``("close", code)``.
    :ivar sent: bytes by stream.
    :ivar stopped: streams that the peer wants no more of.
    :ivar tells: whether credit of the connection is told at once.
    """

    stream_window = 1 << 20
    datagrams = False
    silent = False
    largest_datagram = 0
    unsent_datagrams = 0
    max_streams = 100
    ended: End | None = None

    def __init__(self, *, handshake_complete: bool) -> None:
        self.handshake_complete = handshake_complete
        self.did: list[tuple[Any, ...]] = []
        self.credited = 0
        self.sent: dict[int, bytes] = {}
        self.stopped: set[int] = set()
        self.tells = True
        self._next = {False: 0, True: 2}

    @property
    def streams_left(self) -> int:
        """As the interface says, like all that follow."""
        return self.max_streams - self._next[False] // 4

    def get_next_available_stream_id(self, is_unidirectional: bool = False) -> int:
        """."""
        return self._next[is_unidirectional]

    def send_stream_data(self, stream_id: int, data: bytes, end_stream: bool = False) -> None:
        """."""
        assert ("reset", stream_id) not in [entry[:2] for entry in self.did]
        if stream_id in self.stopped:
            return
        if stream_id not in self.sent:
            self._next[bool(stream_id & 2)] += 4
        self.sent[stream_id] = self.sent.get(stream_id, b"") + data

    def send_datagram_frame(self, data: bytes) -> None:
        """."""

    def reset_stream(self, stream_id: int, error_code: int) -> None:
        """."""
        self.did.append(("reset", stream_id, error_code))

    def stop_stream(self, stream_id: int, error_code: int) -> None:
        """."""
        self.did.append(("stop", stream_id, error_code))

    def send_ping(self, uid: int) -> None:
        """."""

    def unsent(self, stream_id: int) -> int:
        """."""
        return 0

    def credit(self, size: int) -> bool:
        """."""
        self.credited += size
        return self.tells

    def credit_stream(self, stream_id: int, size: int) -> None:
        """."""

    def close(self, error_code: int = 0, frame_type: int | None = None, reason_phrase: str = "") -> None:
        """."""
        self.did.append(("close", error_code))


class Link:
    """A backend on such a QUIC, and what a server says."""

    def __init__(self, *, greet: bool = True, handshake_complete: bool = True) -> None:
        self.quic = Quic(handshake_complete=handshake_complete)
        self.client = Http3(self.quic)
        self._encoder = Encoder()
        if greet:
            assert self.say(CONTROL, varint.encode(h3.CONTROL_STREAM) + h3.settings({})) == []

    def open(self, method: bytes = b"GET", *, end: bool = True, protocol: bytes | None = None) -> int:
        """A request."""
        return self.client.open(RequestHead(method, b"https", b"example.org", b"/", [], protocol), end=end)

    def hear(self, *events: QuicEvent) -> list[Event]:
        """One batch."""
        for event in events:
            if isinstance(event, StopSendingReceived):  # QUIC resets our half before anybody hears of it
                self.quic.stopped.add(event.stream_id)
        return taken(self.client, events)

    def say(self, stream: int, data: bytes, *, end: bool = False) -> list[Event]:
        """Bytes on a stream."""
        return self.hear(StreamDataReceived(data=data, end_stream=end, stream_id=stream))

    def head(self, stream: int, status: int = 200, fields: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
        """A HEADERS frame."""
        section: Headers = [(b":status", b"%d" % status), *fields]
        return h3.frame(h3.HEADERS, self._encoder.encode(stream, section)[1])
