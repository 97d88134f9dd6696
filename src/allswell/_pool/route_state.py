"""What the pool has on one route: connections with room, those being made, and who waits for them."""

from __future__ import annotations

import math

from allswell._clock import monotonic
from allswell._connection.connection import Connection
from allswell._connection.exchange import Exchange
from allswell._deadline import Deadline
from allswell._errors import Timeout, TimeoutPhase
from allswell._pool.member import ANY, UNUSED, Freshness, Member, Standing
from allswell._request.request import Request
from allswell._request.route import Route
from allswell._tasks import Signal

#: How long a dial that was allowed any time goes on when nobody waits for it any more: in seconds.
UNWANTED_FOR = 5.0


class Dial:
    """A connection in the making.

    :ivar covers: how many waiters it may serve.
    :ivar patience: seconds that each try may take.
    :ivar searches: it looks for a connection of another route's first, and counts against no limit until it has.
    :ivar counts: against the limits.
    :ivar owner: the waiter that needs an unused connection; there can be one such.
    """

    __slots__ = ("counts", "covers", "deadline", "owner", "patience", "searches", "waiters")

    def __init__(self, covers: int, *, searches: bool) -> None:
        self.covers = covers
        self.searches = searches
        self.counts = False
        self.patience = 0.0
        self.owner: Waiter | None = None
        self.waiters: dict[Waiter, None] = {}
        self.deadline = Deadline()  # none, until the pool closes

    def takes(self, waiter: Waiter) -> bool:
        """Whether it may serve this one too."""
        return len(self.waiters) < self.covers and (waiter.fresh is not UNUSED or self.owner not in self.waiters)

    def cover(self, waiter: Waiter) -> None:
        """This one waits for it from now on."""
        self.waiters[waiter] = None
        if waiter.fresh is UNUSED:
            self.owner = waiter

    def lose(self, waiter: Waiter) -> None:
        """This one does not wait for it any more."""
        self.waiters.pop(waiter, None)
        if self.patience == math.inf:
            # Nothing else would ever end it, if the peer says nothing: it must not be what others wait for, too.
            self.covers = 0
            if not self.waiters:
                self.deadline.tighten(monotonic() + UNWANTED_FOR)


class Waiter:
    """A request that waits for room; served, it has an exchange, else an error.

    :ivar came_at: since when it waits.
    :ivar patience: seconds that each try to connect may take.
    :ivar fresh: how fresh its connection must be.
    :ivar covered_at: since when it waits for its dial.
    :ivar searched: other routes' connections were looked at for it, to no avail.
    """

    __slots__ = (
        "came_at",
        "covered_at",
        "dial",
        "error",
        "exchange",
        "fresh",
        "patience",
        "request",
        "searched",
        "signal",
    )

    def __init__(self, request: Request, signal: Signal, *, fresh: Freshness) -> None:
        self.request = request
        self.patience = math.inf if request.timeouts.connect is None else request.timeouts.connect
        self.came_at = monotonic()
        self.covered_at = math.inf
        self.signal = signal
        self.fresh = fresh
        self.searched = fresh is not ANY  # a request that was lost or sent away gets one of its own
        self.dial: Dial | None = None
        self.exchange: Exchange[Connection] | None = None
        self.error: BaseException | None = None

    def timed_out(self, phase: TimeoutPhase, *, ungranted: bool) -> Timeout:
        """The error that says so.

        :param ungranted: there is a connection, and the server has not allowed any request on it.
        """
        timeouts = self.request.timeouts
        if ungranted and phase != "connect":
            seconds = timeouts.pool if phase == "pool" else timeouts.total
            told = f"the server has allowed no request on its connection within {seconds:g} s"
        elif phase == "pool":
            told = f"no room in the pool within {timeouts.pool:g} s"
        elif phase == "connect":
            told = f"no connection within {timeouts.connect:g} s"
        else:
            told = f"no connection within the total {timeouts.total:g} s"
        return Timeout(f"{self.request.route.label}: {told}", phase=phase)


class RouteState:
    """What the pool has on one route.

    :ivar members: the connections that serve it, by their standing; the last one was used last. ``free``, ``behind``
        and ``refilling`` are three of these.
    :ivar connections: how many were made for it, and count against the limits.
    :ivar dialling: dials that count against the limits.
    :ivar multiplexes: as the last connection turned out.
    :ivar counts: whether connections of this route do, at all.
    """

    __slots__ = (
        "behind",
        "connections",
        "counts",
        "dialling",
        "dials",
        "free",
        "label",
        "members",
        "multiplexes",
        "refilling",
        "route",
    )

    def __init__(self, route: Route) -> None:
        self.route = route
        self.label = route.label
        self.members: tuple[dict[Member, None], ...] = tuple({} for _ in Standing)
        self.free, self.behind, _, self.refilling = self.members
        self.connections = 0
        self.dialling = 0
        self.dials: dict[Dial, None] = {}
        self.multiplexes: bool | None = None
        self.counts = not route.carries

    @property
    def used(self) -> bool:
        """Whether a connection serves it, or is being made."""
        return any(self.members) or bool(self.dials)

    @property
    def ungranted(self) -> bool:
        """Whether there is a connection on which the server has allowed nothing yet."""
        return any(member.ungranted for member in self.refilling)

    def worth_waiting(self, waiter: Waiter) -> float | None:
        """Until when to wait for room on a connection that there is; ``None``: there will be none so soon."""
        now = monotonic()
        fitting = (each for each in self.refilling if waiter.fresh.met_by(each.connection))
        return min((each.expected_until for each in fitting if each.expected_until > now), default=None)


def may_join(connection: Connection, request: Request) -> bool:
    """Whether it may be sent while others are under way there."""
    return connection.multiplexes or request.may_follow
