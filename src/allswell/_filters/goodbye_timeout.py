"""How long to wait for a peer's goodbye, learnt from its earlier ends.

Many peers never answer a close_notify (they just close, or wait for our FIN), and some never answer a FIN either. A
:class:`GoodbyeTimeout` is shared by one layer of all connections to one origin. After a wait in
vain, the next one is a quarter as long, down to 50 ms. One answer restores the full time. The grace limits all waits.
"""

from __future__ import annotations

import math


class GoodbyeTimeout:
    """How long to wait for an origin's goodbye in one layer.

    :ivar seconds: the longest wait; ``inf`` if nothing is known of the peer (the grace is the limit then).
    """

    __slots__ = ("seconds",)

    LEAST = 0.05

    def __init__(self) -> None:
        self.seconds = math.inf

    def answered(self) -> None:
        """The peer has answered: wait the full time again."""
        self.seconds = math.inf

    def unanswered(self, waited: float) -> None:
        """The peer has not answered. A wait that was too short (a close without grace) changes nothing."""
        if waited >= self.LEAST:
            self.seconds = min(self.seconds, max(self.LEAST, waited / 4))
