"""The places of a pool: how many connections there may be, which are idle, and which one goes to make room.

Theory of operation. An open connection holds a place, and so does a dial. Connections that carry tunnels hold none.
There is a limit for each route, and one for all.

Idle connections stand in a line. The first one has been idle for longest. If a new connection needs a place and none is
free, the first one has to go, whichever route it serves. Idle connections beyond the keep-alive limit are surplus, and
end after a moment. They all say their goodbyes in the background, without a place.
"""

from __future__ import annotations

import math

from allswell._clock import monotonic
from allswell._config import PoolConfig
from allswell._pool.member import Member, RouteState
from allswell._report import counted
from allswell._tasks import Alarm, TaskHost, weak_method

#: How many seconds a surplus connection is kept.
_SURPLUS_FOR = 0.5


class Places:
    """The places of one pool.

    :ivar idle: the idle connections. The first has been idle for longest.
    :ivar limited: whether there is a limit for all.
    """

    __slots__ = ("__weakref__", "_host", "_keeps", "_most", "_per_route", "_surplus", "_taken", "idle", "limited")

    def __init__(self, host: TaskHost, config: PoolConfig) -> None:
        self.idle: dict[Member, None] = {}
        self.limited = config.max_connections is not None
        self._host = host
        self._most = _limit(config.max_connections)
        self._per_route = _limit(config.max_connections_per_route)
        self._keeps = 0 if config.keepalive_expiry == 0 else _limit(config.max_keepalive_connections)
        self._taken = 0
        self._surplus: Alarm | None = None  # when the first surplus one ends

    def take(self, route: RouteState) -> None:
        """One more connection or dial of this route holds a place."""
        if route.takes_places:
            route.places += 1
            self._taken += 1

    def give_back(self, route: RouteState) -> None:
        """A connection or dial of this route holds its place no more."""
        if route.takes_places:
            route.places -= 1
            self._taken -= 1

    @property
    def full(self) -> bool:
        """Whether no place is free. (An idle connection may have to give its place.)"""
        return self._taken >= self._most

    def free_for(self, route: RouteState) -> bool:
        """Whether a new connection of this route may have a place."""
        return not route.takes_places or (route.places < self._per_route and not self.full)

    def in_the_way(self, route: RouteState) -> Member | None:
        """The idle connection that has to go to make a place for this route; ``None`` if none can."""
        idle = self.idle
        if route.places >= self._per_route:
            # It is idle, yet not fresh enough for the waiter: it can go.
            return next((each for each in route.free if each in idle and each.home is route), None)
        # But not one of this route that has no room: the peer would allow a new connection no more.
        others = (each for each in idle if each.connection.capacity() or route not in each.serves)
        return next(others, None)

    def is_idle(self, member: Member) -> None:
        """It has become idle. It goes to the end of the line."""
        self.idle[member] = None

    def is_used(self, member: Member) -> None:
        """It is not idle (any more)."""
        self.idle.pop(member, None)

    def thin_out(self) -> None:
        """End the surplus connections after a moment. With a limit of 0, none is kept.

        (After fifty answers at once, fifty connections are idle until the fifty requesters have had their turn.)
        """
        keeps = self._keeps
        if len(self.idle) <= keeps:
            return
        kept_for = _SURPLUS_FOR if keeps else 0.0
        now = monotonic()
        while len(self.idle) > keeps:
            first = next(iter(self.idle)).connection
            if first.idle_since + kept_for > now:
                if self._surplus is None:
                    self._surplus = Alarm(self._host, weak_method(self.thin_out))
                self._surplus.set(min(self._surplus.at, first.idle_since + kept_for))
                return
            first.close(f"more than {counted(keeps, 'idle connection')}")  # its owner takes it out of the line

    def stop(self) -> None:
        """The pool closes. The surplus ends with all other connections."""
        if self._surplus is not None:
            self._surplus.stop()


def _limit(most: int | None) -> float:
    return math.inf if most is None else most
