"""Room on a QUIC connection, as HTTP/3 sees it: for more requests, and for more of their bodies."""

from __future__ import annotations

from allswell._backends.interface import CapacityChanged, Event, SilenceChanged
from allswell._quic.interface import Multiplexer

#: Bytes of one request's body that may wait to be sent a first time; and how many must be free before it goes on.
_SEND_BUFFER, _SEND_RESUME = 256 * 1024, 64 * 1024


class RequestRoom:
    """Room for requests. It is the rest of the peer's limit of streams; 0 while the peer is silent."""

    __slots__ = ("_max_streams", "_quic", "_side_by_side", "_silent")

    def __init__(self, quic: Multiplexer) -> None:
        self._quic = quic
        self._silent = False
        self._max_streams = self._side_by_side = quic.max_streams

    def left(self) -> int:
        """How many may be opened now."""
        return 0 if self._quic.silent else self._quic.streams_left

    def expected(self, open_: int) -> bool:
        """Whether there is no room now, but the peer is about to allow more.

        The peer's limit counts all streams that were ever opened (RFC 9000 §4.6). Its first limit shows how many it
        allows at the same time. So if fewer are open, it will raise the limit.
        """
        quic = self._quic
        return not quic.silent and quic.streams_left <= 0 and open_ < max(1, self._side_by_side)

    def changes(self) -> list[Event]:
        """The events for what has changed since the last call."""
        quic = self._quic
        events: list[Event] = []
        if quic.silent != self._silent:
            self._silent = quic.silent
            events.append(SilenceChanged(self._silent))
        if quic.max_streams != self._max_streams:
            self._max_streams = quic.max_streams
            events.append(CapacityChanged())
        return events


class BodyRoom:
    """Room for the bodies of requests. Only so much of each may wait in QUIC to be sent for the first time.

    :ivar blocked: the exchanges that found no room. They must be told when there is some.
    """

    __slots__ = ("_quic", "blocked")

    def __init__(self, quic: Multiplexer) -> None:
        self._quic = quic
        self.blocked: set[int] = set()

    def left(self, stream_id: int) -> int:
        """How many bytes there is room for. All datagrams wait in one queue, so they count for each exchange."""
        return _SEND_BUFFER - self._quic.unsent(stream_id) - self._quic.unsent_datagrams

    def reopened(self, stream_id: int) -> bool:
        """Whether there is enough room again for an exchange that found none."""
        return self.left(stream_id) >= _SEND_RESUME
