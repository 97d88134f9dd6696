"""What waits for a connection, in which order: pure and synchronous.

Every waiter stands in the queue of its route. Besides, it is either *with a dial* under way, which will serve it or
fail it, or *without* one: there was no room for another dial. Those without a dial stand in one more queue, over all
routes, oldest first: when room comes, the one that has waited longest has it. Each step costs O(1).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Waiter = TypeVar("Waiter", bound=Hashable)


class Waiters(Generic[Waiter]):
    """The queues of one pool. (Python's dicts keep their order: they are queues with removal from the middle.)"""

    def __init__(self) -> None:
        self._queues: dict[Hashable, dict[Waiter, None]] = {}
        self._without_dial: dict[Hashable, dict[Waiter, None]] = {}
        self._all_without_dial: dict[Waiter, Hashable] = {}

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def __iter__(self) -> Iterator[Waiter]:
        for queue in list(self._queues.values()):
            yield from list(queue)

    def add(self, route: Hashable, waiter: Waiter) -> None:
        """Stand at the end of the route's queue, without a dial."""
        self._queues.setdefault(route, {})[waiter] = None
        self.without_dial(route, waiter)

    def remove(self, route: Hashable, waiter: Waiter) -> None:
        """Leave: served, failed or given up. Idempotent."""
        self.with_dial(route, waiter)
        _discard(self._queues, route, waiter)

    def with_dial(self, route: Hashable, waiter: Waiter) -> None:
        """A dial is under way for it."""
        if self._all_without_dial.pop(waiter, None) is not None:
            _discard(self._without_dial, route, waiter)

    def without_dial(self, route: Hashable, waiter: Waiter) -> None:
        """No dial is under way for it."""
        self._without_dial.setdefault(route, {})[waiter] = None
        self._all_without_dial[waiter] = route

    def of(self, route: Hashable) -> list[Waiter]:
        """The route's waiters, first come first."""
        return list(self._queues.get(route, ()))

    def waiting(self, route: Hashable) -> bool:
        """Whether anybody waits on this route."""
        return route in self._queues

    def first(self, route: Hashable) -> Iterator[Waiter]:
        """The route's waiters one by one, first come first; the queue must not change while one goes through them."""
        return iter(self._queues.get(route, ()))

    def first_without_dial(self, route: Hashable) -> Waiter | None:
        """The route's waiter that has been without a dial for longest."""
        return next(iter(self._without_dial.get(route, ())), None)

    def longest_without_dial(self) -> Hashable | None:
        """The route of the waiter that has been without a dial for longest; ``None`` when there is none."""
        return next(iter(self._all_without_dial.values()), None)

    def routes_without_dial(self) -> list[Hashable]:
        """The routes with waiters without a dial, in the order of their oldest."""
        return list(dict.fromkeys(self._all_without_dial.values()))


def _discard(queues: dict[Hashable, dict[Waiter, None]], route: Hashable, waiter: Waiter) -> None:
    queue = queues.get(route)
    if queue is not None:
        queue.pop(waiter, None)
        if not queue:
            del queues[route]
