"""Connections as the pool sees them, and the routes that they serve: a record for each, which name each other.

A connection serves the route that it was made for, and perhaps others (`coalescing.py`). On all of them it has one
standing, and each route keeps its members by their standing. So a request finds one with room in one step, and a
change of standing is made in one place.
"""

from __future__ import annotations

import math
from enum import IntEnum

from allswell._clock import monotonic
from allswell._connection.connection import Connection
from allswell._pool.freshness import Freshness
from allswell._pool.waiters import Dial
from allswell._request.route import Route

#: How long a connection that is about to have room again is waited for, before another one is made: in seconds. (One
#: on which the server has served nothing yet is waited for without end: another would have no more room.)
EXPECTED_WITHIN = 0.25


class Standing(IntEnum):
    """Whether there is room on a connection."""

    #: There is, for any request.
    FREE = 0
    #: Behind other exchanges of a pipeline only: for requests that may follow others.
    BEHIND = 1
    #: There is none.
    FULL = 2
    #: There is none, but some is expected without the end of what is open.
    EXPECTING = 3


#: (As attributes of the class they take Python 3.11 longer than all else here.)
_FREE, _BEHIND, _FULL, _EXPECTING = Standing


class Member:
    """One connection that is open.

    :ivar home: the route that it was made for.
    :ivar serves: the routes that it serves, its home first.
    :ivar standing: on all of them.
    :ivar expected_until: until when room that is expected is waited for; ``inf`` where it has served nothing yet.
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
        elif self.standing is not _EXPECTING or self.expected_until == math.inf:
            self.expected_until = monotonic() + EXPECTED_WITHIN  # else it has been waited for already
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
    """What the pool has on one route.

    :ivar members: the connections that serve it, by their standing; the last one was used last. ``free``, ``behind``
        and ``expecting`` are three of these.
    :ivar dials: the connections that are being made for it.
    :ivar places: how many it holds (`places.py`).
    :ivar takes_places: whether its connections take any. Those that carry others' tunnels take none.
    :ivar multiplexes: as the last connection turned out; ``None`` before there was one.
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
        """Until when to wait for room on a connection that there is; ``None``: there will be none so soon.

        :param fresh: how fresh it must be.
        """
        now = monotonic()
        fresh_enough = (each for each in self.expecting if fresh.met_by(each.connection))
        return min((each.expected_until for each in fresh_enough if each.expected_until > now), default=None)
