"""The two halves of an exchange: how far the request has gone out, how far the response has come in.

Theory of operation. A request and its response pass each other: a server may answer before it has heard all, and one
half may end, or be cut, while the other goes on. So each half has a state of its own, in the manner of
`_connection/lifecycle.py`, and an exchange is over when both of its halves are: there is no other test of that. The
backends keep a pair for each exchange that they carry, and :class:`~allswell._connection.exchange.Exchange` keeps the
requester's.

==========  ===================================================  =====================================================
            our half (:class:`Send`)                             the peer's (:class:`Receive`)
==========  ===================================================  =====================================================
HEAD        the request waits, nothing of it was sent            the final response has not begun
BODY        the head was sent, content (or a tunnel's) follows   the final response's head has come, content follows
TUNNEL                                                           what follows are raw bytes (RFC 9110 §7.8, §9.3.6)
ENDED       all was sent                                         the response is complete
STOPPED     the rest will not be sent
FAILED                                                           the rest will not come, or is not wanted
==========  ===================================================  =====================================================

An early response
=================

A server may answer while we still upload. What becomes of the rest is decided here, for every version alike:

* A final response below 300 says that the request is being served: the upload goes on, past the end of the response
  too, as long as it makes progress.
* One of 300 or above says that the rest is wasted (RFC 9110 §9.3, §15.4, §15.5): the upload stops when its head comes.
* A server may ask us to stop: STOP_SENDING with any code (RFC 9114 §4.1), RST_STREAM after a complete response (RFC
  9113 §8.1), ``Connection: close`` (RFC 9112 §9.6). Then it stops, whatever the status.

In no case does the end of an upload cost a response that has come or is coming. When the response is complete, the
peer is told that the rest will not come: RST_STREAM(NO_ERROR), RESET_STREAM(H3_NO_ERROR), the end of the HTTP/1.1
connection. It is not told before: in HTTP/2 a reset ends the response too, and some servers take it so in HTTP/3.
"""

from __future__ import annotations

import math
from enum import Enum

from allswell._errors import Party


class Send(Enum):
    """How far our half has gone.

    :ivar moves: the states that may follow.
    :ivar open: whether there may be more to send.
    """

    moves: tuple[Send, ...]
    open: bool

    HEAD = "head"
    BODY = "body"
    ENDED = "ended"
    STOPPED = "stopped"


class Receive(Enum):
    """How far the peer's half has come.

    :ivar moves: the states that may follow.
    :ivar over: whether none may follow, because no more of the response will come.
    """

    moves: tuple[Receive, ...]
    over: bool

    HEAD = "head"
    BODY = "body"
    TUNNEL = "tunnel"
    ENDED = "ended"
    FAILED = "failed"


# The table of moves. (It is in the states and not in a dict: the hash of an Enum's member costs more than the rest.)
Send.HEAD.moves = (Send.BODY, Send.ENDED, Send.STOPPED)
Send.BODY.moves = (Send.ENDED, Send.STOPPED)
Send.ENDED.moves = (Send.BODY,)  # an upgrade: the tunnel follows the request (RFC 9110 §7.8)
Send.STOPPED.moves = ()
Receive.HEAD.moves = (Receive.BODY, Receive.TUNNEL, Receive.ENDED, Receive.FAILED)
Receive.BODY.moves = (Receive.ENDED, Receive.FAILED)
Receive.TUNNEL.moves = (Receive.ENDED, Receive.FAILED)
Receive.ENDED.moves = ()
Receive.FAILED.moves = ()
for _send in Send:
    _send.open = _send in (Send.HEAD, Send.BODY)
for _receive in Receive:
    _receive.over = not _receive.moves

# In Python 3.11 the look-up of an Enum's member takes as long as that of ten attributes. So the members have names of
# their own here, for the code that every request runs.
SEND_HEAD, SEND_BODY, SEND_ENDED, SEND_STOPPED = Send
RECEIVE_HEAD, RECEIVE_BODY, RECEIVE_TUNNEL, RECEIVE_ENDED, RECEIVE_FAILED = Receive


class LengthError(Exception):
    """A body is not as long as its Content-Length says."""


class SendHalf:
    """Our half of one exchange.

    :param state: the state in which it begins.
    :param promised: the request's Content-Length.
    :ivar state: how far it has gone.
    :ivar open: as its state says: whether there may be more to send.
    :ivar by: which side stopped it.
    """

    __slots__ = ("_owed", "by", "open", "state")

    def __init__(self, state: Send = SEND_HEAD, promised: int | None = None) -> None:
        self.state = state
        self.open = state.open
        self.by: Party | None = None
        self._owed = promised

    def move(self, to: Send) -> bool:
        """Move, if the table allows it. Return whether it does."""
        if to not in self.state.moves:
            return False
        self.state = to
        self.open = to.open
        return True

    def stop(self, by: Party) -> bool:
        """Send no more. Return whether there may have been more to send."""
        stopped = self.move(SEND_STOPPED)
        if stopped:
            self.by = by
        return stopped

    def count(self, size: int, *, end: bool) -> None:
        """A piece of content is about to be sent.

        :raises LengthError: if the content would not be as long as promised.
        """
        owed = self._owed
        if owed is not None:
            if size > owed or (end and size < owed):
                raise LengthError
            self._owed = owed - size


class ReceiveHalf:
    """The peer's half of one exchange.

    :ivar method: the request's method. It decides what a response may contain.
    :ivar state: how far it has come.
    :ivar answered: whether the final response's head has come, and the half has not failed since.
    :ivar over: as its state says: whether no more of it will come.
    :ivar tunnel: whether it is, or was, a tunnel's half.
    """

    __slots__ = ("_left", "answered", "method", "over", "state", "tunnel")

    def __init__(self, method: bytes) -> None:
        self.state = RECEIVE_HEAD
        self.answered = self.over = False
        self.tunnel = False
        self.method = method
        self._left: int | None = None

    @property
    def left(self) -> float:
        """How many bytes of announced content have not come yet; ``inf`` if that is not known."""
        return math.inf if self._left is None else self._left

    @property
    def whole(self) -> bool:
        """Whether all content that was announced has come; only trailers can be missing."""
        return self._left == 0 and self.state is RECEIVE_BODY

    def move(self, to: Receive) -> bool:
        """Move, if the table allows it. Return whether it does."""
        if to not in self.state.moves:
            return False
        self.state = to
        self.answered = to is not RECEIVE_FAILED  # (none leads back to HEAD)
        self.over = to.over
        if to is RECEIVE_TUNNEL:
            self.tunnel = True
        return True

    def begin(self, status: int, content: int | None) -> None:
        """The final response's head came.

        :param content: how many bytes of content follow; ``None`` if that is not known.
        """
        if self.method == b"CONNECT" and status < 300:
            self.move(RECEIVE_TUNNEL)
        elif self.state is RECEIVE_HEAD:
            self.state = RECEIVE_BODY
            self.answered = True
            self._left = content

    def count(self, size: int) -> None:
        """So many bytes of content came.

        :raises LengthError: when it is more than was announced.
        """
        if self._left is not None:
            self._left -= size
            if self._left < 0:
                raise LengthError

    def end_whole(self) -> None:
        """The rest of the content came, as much as was announced, and the end with it."""
        self._left = 0
        self.state = RECEIVE_ENDED
        self.over = True

    def end(self) -> None:
        """The peer has ended its half.

        :raises LengthError: when less content came than was announced.
        """
        if self._left:
            raise LengthError
        self.move(RECEIVE_ENDED)


class Halves:
    """An exchange, as a backend or a requester knows it: two halves.

    :ivar sending: our half.
    :ivar receiving: the peer's half.
    """

    __slots__ = ("receiving", "sending")

    def __init__(self, sending: SendHalf, receiving: ReceiveHalf) -> None:
        self.sending = sending
        self.receiving = receiving

    @property
    def over(self) -> bool:
        """Whether both halves are over."""
        return self.receiving.over and not self.sending.open


def wants_rest(status: int) -> bool:
    """Whether the rest of a request is sent after an early response with this status."""
    return status < 300
