"""A connection as the pool sees it: the routes that it serves, and how it stands there, in one record.

A connection serves the route that it was made for, and perhaps others (`coalescing.py`). On all of them it has one
standing, and each route keeps its members by their standing. So a request finds one with room in one step, and a
change of standing is made in one place.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import TYPE_CHECKING

from allswell._clock import monotonic
from allswell._connection.connection import Connection

if TYPE_CHECKING:
    from allswell._pool.route_state import RouteState

#: How long a connection that is about to have room again is waited for, before another one is made: in seconds. (One
#: on which the server has served nothing yet is waited for without end: another would have no more room.)
EXPECTED_WITHIN = 0.25


class Freshness:
    """How fresh a connection must be for a request: any will do, or one made after an instant, or an unused one.

    A connection that has carried nothing yet is fresh enough for all. One that has carried as much as others did before
    they left is so for whoever takes any.

    :param made_after: the instant; ``None``: only an unused one will do.
    """

    __slots__ = ("made_after",)

    def __init__(self, made_after: float | None) -> None:
        self.made_after = made_after

    def met_by(self, connection: Connection) -> bool:
        """Whether this connection is fresh enough."""
        if not connection.opened or self is ANY:
            return True
        if self.made_after is None or connection.made_at <= self.made_after:
            return False
        return connection.opened < connection.service.takes


ANY, UNUSED = Freshness(-math.inf), Freshness(None)


class Standing(IntEnum):
    """Whether there is room on a connection."""

    #: There is, for any request.
    FREE = 0
    #: Behind other exchanges of a pipeline only: for requests that may follow others.
    BEHIND = 1
    #: There is none.
    FULL = 2
    #: There is none, but some is expected without the end of what is open.
    REFILLING = 3


#: (As attributes of the class they take Python 3.11 longer than all else here.)
_FREE, _BEHIND, _FULL, _REFILLING = Standing


class Member:
    """One connection that counts: it is open.

    :ivar home: the route that it was made for.
    :ivar serves: the routes that it serves, its home first.
    :ivar standing: on all of them.
    :ivar expected_until: while it is refilling, until when it is waited for: ``inf`` where it has served nothing yet.
    """

    __slots__ = ("connection", "expected_until", "home", "serves", "standing")

    def __init__(self, connection: Connection, home: RouteState) -> None:
        self.connection = connection
        self.home = home
        self.serves: tuple[RouteState, ...] = ()
        self.standing = _FULL
        self.expected_until = math.inf
        self.join(home)

    def join(self, state: RouteState) -> None:
        """Serve this route too."""
        self.serves += (state,)
        state.members[self.standing][self] = None

    def leave(self, state: RouteState) -> None:
        """Serve this route no more."""
        del state.members[self.standing][self]
        self.serves = tuple(each for each in self.serves if each is not state)

    def has_room(self) -> None:
        """Stand where requests look for room, as the one that was used last."""
        connection = self.connection
        behind = connection.open_exchanges and not connection.multiplexes
        self._stand(_BEHIND if behind else _FREE)

    def has_none(self) -> None:
        """It has no room, for now."""
        connection = self.connection
        if not connection.capacity_expected:
            self._stand(_FULL)
            return
        if not connection.answered:
            self.expected_until = math.inf
        elif self.standing is not _REFILLING or self.expected_until == math.inf:
            self.expected_until = monotonic() + EXPECTED_WITHIN  # else it has been waited for already
        self._stand(_REFILLING)

    @property
    def ungranted(self) -> bool:
        """Whether the server has allowed nothing on it yet."""
        return self.standing is _REFILLING and self.expected_until == math.inf

    def _stand(self, standing: Standing) -> None:
        before, self.standing = self.standing, standing
        for state in self.serves:
            members = state.members
            del members[before][self]
            members[standing][self] = None
