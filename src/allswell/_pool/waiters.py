"""The requests that wait for a connection, and their order. All of it is synchronous.

Every waiter stands in the queue of its route. It is also either *with a dial*, which will serve it or fail it, or
*without* one, because there was no room for another dial. Those without a dial stand in one more queue, over all
routes, oldest first. When there is room, the one that has waited longest gets it. Each step is O(1).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

from allswell._clock import monotonic
from allswell._connection.connection import Connection
from allswell._connection.exchange import Exchange
from allswell._deadline import Deadline
from allswell._errors import Timeout, TimeoutPhase
from allswell._pool.freshness import ANY, UNUSED, Freshness
from allswell._request.request import Request
from allswell._tasks import Signal

Key = TypeVar("Key", bound=Hashable)
Entry = TypeVar("Entry", bound=Hashable)

#: A dial without a time limit ends so many seconds after the last waiter has given it up.
UNWANTED_FOR = 5.0


class Dial:
    """A connection in the making.

    :ivar covers: how many waiters it may serve.
    :ivar timeout: how many seconds each try may take.
    :ivar searches: it first looks for a connection of another route, and holds no place until then.
    :ivar drained: what it makes is to be replaced.
    :ivar has_place: it holds a place (`places.py`).
    :ivar owner: the waiter that needs an unused connection. There can be only one.
    """

    __slots__ = ("covers", "deadline", "drained", "has_place", "owner", "searches", "timeout", "waiters")

    def __init__(self, covers: int, *, searches: bool) -> None:
        self.covers = covers
        self.searches = searches
        self.drained = False
        self.has_place = False
        self.timeout = 0.0
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

    def drain(self) -> None:
        """What it makes is to be replaced: it serves those that wait, and then ends."""
        self.drained = True
        self.covers = 0

    def lose(self, waiter: Waiter) -> None:
        """This one does not wait for it any more."""
        self.waiters.pop(waiter, None)
        if self.timeout == math.inf:
            # If the peer is silent, nothing else would ever end this dial. So no other waiter may join it.
            self.covers = 0
            if not self.waiters:
                self.deadline.tighten(monotonic() + UNWANTED_FOR)


class Waiter:
    """A request that waits for room. It gets an exchange or an error.

    :ivar came_at: since when it waits.
    :ivar connect_timeout: how many seconds each try to connect may take.
    :ivar fresh: how fresh its connection must be.
    :ivar covered_at: since when it waits for its dial.
    :ivar searched: whether no connection of another route may serve it: the search has found none, or was not allowed.
    """

    __slots__ = (
        "came_at",
        "connect_timeout",
        "covered_at",
        "dial",
        "error",
        "exchange",
        "fresh",
        "request",
        "searched",
        "signal",
    )

    def __init__(self, request: Request, signal: Signal, *, fresh: Freshness) -> None:
        self.request = request
        self.connect_timeout = math.inf if request.timeouts.connect is None else request.timeouts.connect
        self.came_at = monotonic()
        self.covered_at = math.inf
        self.signal = signal
        self.fresh = fresh
        self.searched = fresh is not ANY  # a request that was lost or sent away gets a connection of its own route
        self.dial: Dial | None = None
        self.exchange: Exchange[Connection] | None = None
        self.error: BaseException | None = None

    def timed_out(self, phase: TimeoutPhase, *, ungranted: bool) -> Timeout:
        """The error after a timeout.

        :param ungranted: there is a connection, but the server has not allowed any request on it.
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
            told = f"no connection within the total timeout of {timeouts.total:g} s"
        return Timeout(f"{self.request.route.label}: {told}", phase=phase)


class Waiters(Generic[Key, Entry]):
    """The queues of one pool. (Python's dicts keep their order: they are queues with removal from the middle.)"""

    def __init__(self) -> None:
        self._queues: dict[Key, dict[Entry, None]] = {}
        self._without_dial: dict[Key, dict[Entry, None]] = {}
        self._all_without_dial: dict[Entry, Key] = {}

    def __bool__(self) -> bool:
        return bool(self._queues)

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def __iter__(self) -> Iterator[Entry]:
        for queue in list(self._queues.values()):
            yield from list(queue)

    def add(self, route: Key, waiter: Entry) -> None:
        """Stand at the end of the route's queue, without a dial."""
        self._queues.setdefault(route, {})[waiter] = None
        self.without_dial(route, waiter)

    def remove(self, route: Key, waiter: Entry) -> None:
        """Leave: served, failed or given up. Idempotent."""
        self.with_dial(route, waiter)
        _discard(self._queues, route, waiter)

    def with_dial(self, route: Key, waiter: Entry) -> None:
        """A dial is under way for it."""
        if self._all_without_dial.pop(waiter, None) is not None:
            _discard(self._without_dial, route, waiter)

    def without_dial(self, route: Key, waiter: Entry) -> None:
        """No dial is under way for it."""
        self._without_dial.setdefault(route, {})[waiter] = None
        self._all_without_dial[waiter] = route

    def of(self, route: Key) -> list[Entry]:
        """The route's waiters, first come first."""
        return list(self._queues.get(route, ()))

    def waiting(self, route: Key) -> bool:
        """Whether anybody waits on this route."""
        return route in self._queues

    def first(self, route: Key) -> Iterator[Entry]:
        """The route's waiters one by one, first come first. The queue must not change meanwhile."""
        return iter(self._queues.get(route, ()))

    def first_without_dial(self, route: Key) -> Entry | None:
        """The route's waiter that has been without a dial for longest."""
        return next(iter(self._without_dial.get(route, ())), None)

    def longest_without_dial(self) -> Key | None:
        """The route of the waiter that has been without a dial for longest; ``None`` when there is none."""
        return next(iter(self._all_without_dial.values()), None)

    def routes_without_dial(self) -> list[Key]:
        """The routes with waiters without a dial, in the order of their oldest."""
        return list(dict.fromkeys(self._all_without_dial.values()))


def _discard(queues: dict[Key, dict[Entry, None]], route: Key, waiter: Entry) -> None:
    queue = queues.get(route)
    if queue is not None:
        queue.pop(waiter, None)
        if not queue:
            del queues[route]
