"""Signs of life: after silence the peer is asked for one, and counts as gone when none comes."""

from __future__ import annotations

import math
from collections.abc import Callable


class Pulse:
    """The silence of one connection.

    :param interval: seconds of it after which the peer is asked; ``None``: it never is.
    :param timeout: seconds that the answer may take.
    :ivar heard: something has come; whoever reads sets it.
    """

    __slots__ = ("_asked_at", "_interval", "heard", "timeout")

    def __init__(self, interval: float | None, timeout: float) -> None:
        self._interval = interval
        self._asked_at: float | None = None
        self.timeout = timeout
        self.heard = False

    def look(self, now: float, ask: Callable[[], bool]) -> float:
        """Ask, if it is time to; when to look again. ``-inf``: the peer is gone.

        :param ask: asks for a sign of life; whether it could.
        """
        if self._interval is None:
            return math.inf
        if self.heard:
            self.heard, self._asked_at = False, None
        elif self._asked_at is None:
            if ask():
                self._asked_at = now
        elif now >= self._asked_at + self.timeout:
            return -math.inf
        return now + self._interval if self._asked_at is None else self._asked_at + self.timeout
