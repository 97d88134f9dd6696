"""How long a connection may be idle: as long as the settings allow, or less if its server ends it sooner."""

from __future__ import annotations

import math
from collections.abc import Callable

#: If the server says how long it keeps an idle connection, the connection ends so many seconds before that, or after
#: half of that time if that is later. (A request needs time to arrive there.)
_ON_THE_WAY = 1.0


class Idle:
    """The idle time of one connection. A new connection is idle.

    :param limit: how many seconds the settings allow; ``None``: any number.
    :ivar since: when its last exchange ended, or it was made; ``inf`` while an exchange is open.
    :ivar until: when it will have been idle for too long; ``inf`` while an exchange is open, or if there is no limit.
    """

    __slots__ = ("_kept", "_limit", "since", "until")

    def __init__(self, limit: float | None, now: float) -> None:
        self._limit = math.inf if limit is None else limit
        self.begin(now, math.inf)

    def begin(self, now: float, kept: float) -> None:
        """Its last exchange has ended.

        :param kept: how many seconds the server keeps it; ``inf``: it does not say.
        """
        self._kept = kept
        self.since = now
        self.until = now + (self._limit if kept == math.inf else self._seconds)

    def end(self) -> None:
        """An exchange was opened."""
        self.since = self.until = math.inf

    @property
    def _seconds(self) -> float:
        kept = self._kept
        return min(self._limit, kept - min(_ON_THE_WAY, kept / 2)) if kept < math.inf else self._limit

    @property
    def reason(self) -> str:
        """The reason for its end after too long an idle time."""
        why = f", and the server keeps it for {self._kept:g} s" if self._seconds < self._limit else ""
        return f"idle for {self._seconds:g} s{why}"


class WatchedIdle(Idle):
    """An :class:`Idle` that calls a function when the connection's use begins (``True``) and ends (``False``).

    (It is a class of its own, so that connections without observers check nothing at each exchange.)
    """

    __slots__ = ("_told",)

    def __init__(self, idle: Idle, told: Callable[[bool], None]) -> None:
        self._limit = idle._limit
        self._kept = idle._kept
        self.since = idle.since
        self.until = idle.until
        self._told = told

    def begin(self, now: float, kept: float) -> None:
        super().begin(now, kept)
        self._told(False)

    def end(self) -> None:
        used = self.since == math.inf
        super().end()
        if not used:
            self._told(True)
