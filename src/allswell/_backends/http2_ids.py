"""The numbers of HTTP/2's streams: which is next, and what a frame means on a stream that is not open."""

from __future__ import annotations

from h2.errors import ErrorCodes

from allswell._backends.http2_errors import PeerError

_LAST = 2**31 - 1
_MAX_REMEMBERED = 4096


class StreamIds:
    """The numbers of one connection's streams. A client's are odd and only grow (RFC 9113 §5.1.1).

    :param first: the number of the first stream.
    :ivar next: the number of the next stream.
    :ivar left: how many streams may still be opened, by their numbers.
    """

    __slots__ = ("_reset", "left", "next")

    def __init__(self, first: int = 1) -> None:
        self.next = first
        self.left = (_LAST - first) // 2 + 1
        self._reset: dict[int, None] = {}  # the streams that we have reset; the oldest are forgotten

    def take(self) -> int:
        """The number for a new stream."""
        id_ = self.next
        self.next = id_ + 2
        self.left -= 1
        return id_

    def on_reset(self, id_: int) -> None:
        """We have reset this stream. The peer's frames for it may have been on their way (RFC 9113 §5.1)."""
        self._reset[id_] = None
        if len(self._reset) > _MAX_REMEMBERED:
            del self._reset[next(iter(self._reset))]

    def check_not_idle(self, id_: int) -> None:
        """A frame came that must not be on a stream that was never opened.

        :raises PeerError: if it is.
        """
        if id_ % 2 == 0 or id_ >= self.next:
            # §5.1: so are stream 0, and even ones, which only a push could open
            raise PeerError(ErrorCodes.PROTOCOL_ERROR, f"the peer sent a frame on stream {id_}, which is idle")

    def check_dead(self, id_: int) -> None:
        """A frame came that only an open stream may have, on one that is not open.

        :raises PeerError: unless it is one that we have reset.
        """
        self.check_not_idle(id_)
        if id_ not in self._reset:
            raise PeerError(ErrorCodes.STREAM_CLOSED, f"the peer sent a frame on stream {id_}, which it had ended")
