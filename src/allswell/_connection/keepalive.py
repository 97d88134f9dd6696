"""Signs of life: after silence the peer is asked for one, and counts as gone when none comes."""

from __future__ import annotations

import math
from collections.abc import Callable


class Keepalive:
    """The silence of one connection.

    :param interval: seconds of it after which the peer is asked; ``None``: it never is.
    :param timeout: seconds that the answer may take.
    :ivar interval: as given.
    :ivar timeout: as given.
    :ivar heard_at: when something came last, or the connection was made; the reader sets it.
    """

    __slots__ = ("_asked_at", "heard_at", "interval", "timeout")

    def __init__(self, interval: float | None, timeout: float, now: float) -> None:
        self.interval = interval
        self._asked_at = -math.inf
        self.timeout = timeout
        self.heard_at = now

    def look(self, now: float, ask: Callable[[], bool]) -> float:
        """Ask, if it is time to; when to look again. ``-inf``: the peer is gone.

        :param ask: asks for a sign of life; whether it could.
        """
        if self.interval is None:
            return math.inf
        if self.heard_at < self._asked_at:
            until = self._asked_at + self.timeout
            return until if now < until else -math.inf
        due = self.heard_at + self.interval
        if now < due:
            return due
        if not ask():
            return now + self.interval
        self._asked_at = now
        return now + min(self.interval, self.timeout)  # the next silence may end before this one's time is up
