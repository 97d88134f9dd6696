"""Keep-alive probes: after silence the peer is probed. If it does not answer, it counts as gone."""

from __future__ import annotations

import math
from collections.abc import Callable


class Keepalive:
    """The silence of one connection.

    :param interval: the peer is probed after so many seconds of silence; ``None``: never.
    :param timeout: how many seconds the answer may take.
    :ivar interval: as given.
    :ivar timeout: as given.
    :ivar heard_at: when something came last, or the connection was made. The reader sets it.
    """

    __slots__ = ("_asked_at", "heard_at", "interval", "timeout")

    def __init__(self, interval: float | None, timeout: float, now: float) -> None:
        self.interval = interval
        self._asked_at = -math.inf
        self.timeout = timeout
        self.heard_at = now

    def look(self, now: float, ask: Callable[[], bool]) -> float:
        """Probe the peer if it is time to. Return when to look again; ``-inf``: the peer is gone.

        :param ask: sends a probe, and returns whether it could.
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
        return now + min(self.interval, self.timeout)  # the next silence may begin before this one's time is up
