"""The pool's records: one for each open connection, and one for each route. They name each other.

A connection serves the route that it was made for, and perhaps others (`coalescing.py`). On all of them it has one
standing, and each route keeps its members by standing. So a request finds a connection with room in one step, and a
standing changes in one place.
"""

from __future__ import annotations

import math
from enum import IntEnum

from allswell._clock import monotonic
from allswell._connection.connection import Connection
from allswell._pool.freshness import Freshness
from allswell._pool.waiters import Dial
from allswell._request.route import Route

#: How many seconds to wait for a connection that is about to have room again, before another one is made. (If the
#: server has served nothing on it yet, the wait has no end: another connection would have no more room.)
EXPECTED_WITHIN = 0.25


class Standing(IntEnum):
    """Whether there is room on a connection."""

    #: There is room for any request.
    FREE = 0
    #: There is room only behind other exchanges of a pipeline, for requests that may follow others.
    BEHIND = 1
    #: There is no room.
    FULL = 2
    #: There is no room, but some is expected soon, although no open exchange need end for it.
    EXPECTING = 3


#: (Python 3.11 takes long to look them up as attributes of the class.)
_FREE, _BEHIND, _FULL, _EXPECTING = Standing


class Member:
    """One connection that is open.

    :ivar home: the route that it was made for.
    :ivar serves: the routes that it serves, its home first.
    :ivar standing: its standing on all of them.
    :ivar expected_until: until when to wait for expected room; ``inf`` if it has served nothing yet.
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
        """It has room, and was used last."""
        connection = self.connection
        behind = connection.open_exchanges and not connection.multiplexes
        self._stand(_BEHIND if behind else _FREE)

    def has_none(self) -> None:
        """It has no room, for now."""
        connection = self.connection
        if not connection.capacity_expected:
            self._stand(_FULL)
            return
        if not connection.history.answered:
            self.expected_until = math.inf
        elif self.standing is not _EXPECTING or self.expected_until == math.inf:
            self.expected_until = monotonic() + EXPECTED_WITHIN  # otherwise the wait has begun already
        self._stand(_EXPECTING)

    @property
    def ungranted(self) -> bool:
        """Whether the server has allowed nothing on it yet."""
        return self.standing is _EXPECTING and self.expected_until == math.inf

    def _stand(self, standing: Standing) -> None:
        before, self.standing = self.standing, standing
        for state in self.serves:
            members = state.members
            del members[before][self]
            members[standing][self] = None


class RouteState:
    """One route: its connections and dials.

    :ivar members: the connections that serve it, by standing, in the order of their last use. ``free``, ``behind``
        and ``expecting`` are three of these.
    :ivar dials: the connections that are being made for it.
    :ivar places: how many places it holds (`places.py`).
    :ivar takes_places: whether its connections take places. Those that carry tunnels take none.
    :ivar multiplexes: whether the last connection does; ``None`` before there was one.
    """

    __slots__ = (
        "behind",
        "dials",
        "expecting",
        "free",
        "label",
        "members",
        "multiplexes",
        "places",
        "route",
        "takes_places",
    )

    def __init__(self, route: Route) -> None:
        self.route = route
        self.label = route.label
        self.members: tuple[dict[Member, None], ...] = tuple({} for _ in Standing)
        self.free, self.behind, _, self.expecting = self.members
        self.dials: dict[Dial, None] = {}
        self.places = 0
        self.takes_places = not route.for_tunnels
        self.multiplexes: bool | None = None

    @property
    def used(self) -> bool:
        """Whether a connection serves it, or is being made."""
        return any(self.members) or bool(self.dials)

    @property
    def ungranted(self) -> bool:
        """Whether there is a connection on which the server has allowed nothing yet."""
        return any(member.ungranted for member in self.expecting)

    def worth_waiting(self, fresh: Freshness) -> float | None:
        """Until when to wait for room on an existing connection; ``None``: no room is expected.

        :param fresh: how fresh the connection must be.
        """
        now = monotonic()
        fresh_enough = (each for each in self.expecting if fresh.met_by(each.connection))
        return min((each.expected_until for each in fresh_enough if each.expected_until > now), default=None)
