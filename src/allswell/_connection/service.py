"""What all connections to one server have in common: how much it has served."""

from __future__ import annotations


class Service:
    """What was served on the connections of one route, those that are gone included.

    :ivar answered: final responses whose heads have come.
    :ivar barren: connections that are over, and on which none came.
    """

    __slots__ = ("answered", "barren")

    def __init__(self) -> None:
        self.answered = 0
        self.barren = 0
