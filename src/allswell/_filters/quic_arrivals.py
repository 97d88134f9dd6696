"""The datagrams that have arrived for a QUIC connection. They go from the socket to the connection, some at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from allswell._clock import monotonic
from allswell._filters.interface import Datagrams, Run
from allswell._quic.connection import ClientConnection

#: The connection parses for so long in one go, and so many bytes at most. The peer may send very small frames.
_TAKE_SECONDS, _TAKE_BYTES = 0.004, 128 * 1024


class Arrivals:
    """Datagrams that were taken from the socket and are not parsed yet. It is false if there are none."""

    def __init__(self, udp: Datagrams) -> None:
        self._udp = udp
        self._runs: deque[Run] = deque()
        self._looked = 0  # how many datagrams of the first run are parsed

    def __bool__(self) -> bool:
        return bool(self._runs)

    def fetch(self) -> bool:
        """Take datagrams from the socket. Return whether there may be more.

        :raises TransportError: when the peer is gone.
        """
        runs = self._udp.receive_nowait()
        if runs is None:
            return False
        self._runs += runs
        return True

    def give(self, connection: ClientConnection, now: float, over: Callable[[], bool]) -> int:
        """Have the connection parse some of the first run, one datagram at least. Return how many bytes it has parsed.

        :param over: returns whether others must have their turn now.
        """
        (data, ends, mark), looked = self._runs[0], self._looked
        start = ends[looked - 1] if looked else 0
        looked = self._looked = connection.receive_run(data, ends, looked, self._udp.address, now, mark, over)
        if looked == len(ends):
            self._runs.popleft()
            self._looked = 0
        return ends[looked - 1] - start

    def give_some(self, connection: ClientConnection, now: float) -> None:
        """Have the connection parse as many as one turn allows."""
        until, size = now + _TAKE_SECONDS, _TAKE_BYTES
        while self._runs and size > 0:
            size -= self.give(connection, now, lambda: monotonic() >= until)
            if monotonic() >= until:
                break

    def forget(self) -> None:
        """Drop all: they were for an earlier connection."""
        self._runs.clear()
        self._looked = 0
