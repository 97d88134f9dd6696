"""The life of a connection: its states, the one table of moves between them, and why it last moved.

``OPEN``      takes new exchanges, as many as its backend has capacity for.
``DRAINING``  takes none; those under way go on. Because the peer is leaving (GOAWAY, ``Connection: close``), the ids
              are spent, it was idle too long, or the pool closes.
``CLOSING``   no exchange is open; the goodbyes are being said, top-down.
``CLOSED``    nothing is left, not even a socket.

Any state may fall to ``CLOSED``: the connection was lost, or aborted.
"""

from __future__ import annotations

from enum import Enum

#: Why a connection ended that nobody closed before its event loop did.
LOOP_ENDED = "the event loop ended"

#: Seconds that the end of an event loop is held up, at most, by servers that have yet to answer our goodbyes.
LAST_MOMENT = 0.5


class State(Enum):
    """Where a connection is in its life."""

    OPEN = "open"
    DRAINING = "draining"
    CLOSING = "closing"
    CLOSED = "closed"


#: The states by names of their own: see `_halves.py`.
OPEN, DRAINING, CLOSED = State.OPEN, State.DRAINING, State.CLOSED

_MOVES: dict[State, frozenset[State]] = {
    State.OPEN: frozenset({State.DRAINING, State.CLOSED}),
    State.DRAINING: frozenset({State.CLOSING, State.CLOSED}),
    State.CLOSING: frozenset({State.CLOSED}),
    State.CLOSED: frozenset(),
}


class Lifecycle:
    """One connection's state.

    :ivar state: the state.
    :ivar reason: why it left ``OPEN`` (the first reason: what came after followed from it), or ``""``.
    """

    __slots__ = ("reason", "state")

    def __init__(self) -> None:
        self.state = State.OPEN
        self.reason = ""

    def move(self, to: State, reason: str = "") -> bool:
        """Move, if the table allows it. Return whether it does."""
        if to not in _MOVES[self.state]:
            return False
        self.state = to
        self.reason = self.reason or reason
        return True
