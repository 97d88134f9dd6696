"""How fresh a connection must be for a request that was sent before and was not processed."""

from __future__ import annotations

import math

from allswell._connection.connection import Connection


class Freshness:
    """How fresh a connection must be for a request: any will do, or one made after an instant, or an unused one.

    A connection that has carried nothing yet is fresh enough for all. One that has carried as much as others did before
    they left is fresh enough only if any will do.

    :param made_after: the instant; ``None``: only an unused one will do.
    """

    __slots__ = ("made_after",)

    def __init__(self, made_after: float | None) -> None:
        self.made_after = made_after

    def met_by(self, connection: Connection) -> bool:
        """Whether this connection is fresh enough."""
        history = connection.history
        if not history.opened or self is ANY:
            return True
        if self.made_after is None or history.made_at <= self.made_after:
            return False
        return history.opened < history.service.takes


ANY, UNUSED = Freshness(-math.inf), Freshness(None)
