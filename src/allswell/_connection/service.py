"""What all connections to one server have in common: how much it has served, and how many requests each takes."""

from __future__ import annotations

import math


class Service:
    """What was served on the connections of one route, those that are gone included.

    Some servers leave (GOAWAY) after so many requests on a connection, and refuse those beyond. Two connections in a
    row that ended so show how many one takes; a connection that takes more than that shows that it is not so any more.

    :ivar answered: final responses whose heads have come.
    :ivar barren: connections that are over, that were asked or granted no request at all, and on which none came.
    :ivar takes: requests that a connection takes, as far as it is known; else ``inf``.
    """

    __slots__ = ("_leavers", "answered", "barren", "takes")

    def __init__(self) -> None:
        self.answered = 0
        self.barren = 0
        self.takes = math.inf
        self._leavers: dict[float, int] = {}  # the last two: when they were made, and how many requests they took

    def leaves(self, made_at: float, taken: int) -> None:
        """A connection that leaves has refused some requests. (What it says last counts.)

        :param made_at: tells it from others.
        :param taken: requests that it took.
        """
        leavers = self._leavers
        leavers[made_at] = taken
        if len(leavers) > 2:
            del leavers[next(iter(leavers))]
        both = list(leavers.values())
        self.takes = max(both) if len(both) == 2 and all(both) else math.inf  # (one that took nothing shows nothing)

    def takes_more(self) -> None:
        """A connection has taken more than that."""
        self._leavers.clear()
        self.takes = math.inf
