"""The service of one server, over all its connections: how much it has served, how many requests a connection takes."""

from __future__ import annotations

import math


class Service:
    """What was served on the connections of one route, also on those that are gone.

    Some servers leave (GOAWAY) after a fixed number of requests on a connection, and refuse those beyond. Two
    connections in a row that ended in this way show that number. A connection that takes more shows that it no longer
    holds.

    :ivar answered: how many final responses have come.
    :ivar barren: how many connections have ended that carried no request, because the server allowed or answered none.
    :ivar takes: how many requests a connection takes; ``inf`` if that is not known.
    """

    __slots__ = ("_leavers", "answered", "barren", "takes")

    def __init__(self) -> None:
        self.answered = 0
        self.barren = 0
        self.takes = math.inf
        self._leavers: dict[float, int] = {}  # of the last two: when it was made, how many it took

    def leaves(self, made_at: float, taken: int) -> None:
        """A connection that leaves has refused some requests. (Its last word counts.)

        :param made_at: when it was made, which tells it from others.
        :param taken: how many requests it took.
        """
        leavers = self._leavers
        leavers[made_at] = taken
        if len(leavers) > 2:
            del leavers[next(iter(leavers))]
        both = list(leavers.values())
        self.takes = max(both) if len(both) == 2 and all(both) else math.inf  # one of 0 shows nothing

    def takes_more(self) -> None:
        """A connection has taken more than the known number."""
        self._leavers.clear()
        self.takes = math.inf
