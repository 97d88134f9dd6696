"""How long it is worth waiting for a peer's goodbye: learnt from how it behaved before.

Many peers never answer a close_notify (they just close, or wait for our FIN), and some never answer a FIN either. A
:class:`GoodbyeTimeout` is shared by one layer of all connections to one origin. A peer that let us wait in vain is
waited for a quarter of that the next time, down to 50 ms; a single answer restores the trust. The grace bounds it all.
"""

from __future__ import annotations

import math


class GoodbyeTimeout:
    """How long it is worth waiting for an origin's goodbye in one layer.

    :ivar seconds: the most to wait; ``inf`` for a peer of which nothing is known (the grace is the bound).
    """

    __slots__ = ("seconds",)

    LEAST = 0.05

    def __init__(self) -> None:
        self.seconds = math.inf

    def answered(self) -> None:
        """It does answer: trust it again."""
        self.seconds = math.inf

    def unanswered(self, waited: float) -> None:
        """It let us wait in vain. Waits too short to tell anything (a close without grace) change nothing."""
        if waited >= self.LEAST:
            self.seconds = min(self.seconds, max(self.LEAST, waited / 4))
