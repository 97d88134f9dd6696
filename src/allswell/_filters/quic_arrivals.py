"""What has arrived for a QUIC connection, from the socket to the connection, a little at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from allswell._clock import monotonic
from allswell._filters.interface import Datagrams, Run
from allswell._quic.connection import ClientConnection

#: So much is looked into at a time, however small the frames are that the peer has made of it.
_TAKE_SECONDS, _TAKE_BYTES = 0.004, 128 * 1024


class Arrivals:
    """Datagrams that were taken from the socket and not looked into yet. It is false when there are none."""

    def __init__(self, udp: Datagrams) -> None:
        self._udp = udp
        self._runs: deque[Run] = deque()
        self._looked = 0  # datagrams of the first run that were looked into

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
        """Have the connection look into the first of them, a run at most. Return how many bytes that was.

        :param over: returns whether others are to have their turn now.
        """
        (data, ends, mark), looked = self._runs[0], self._looked
        start = ends[looked - 1] if looked else 0
        looked = self._looked = connection.receive_run(data, ends, looked, self._udp.address, now, mark, over)
        if looked == len(ends):
            self._runs.popleft()
            self._looked = 0
        return ends[looked - 1] - start

    def give_some(self, connection: ClientConnection, now: float) -> None:
        """Have the connection look into as many as one turn takes."""
        until, size = now + _TAKE_SECONDS, _TAKE_BYTES
        while self._runs and size > 0:
            size -= self.give(connection, now, lambda: monotonic() >= until)
            if monotonic() >= until:
                break

    def forget(self) -> None:
        """They were for another connection."""
        self._runs.clear()
        self._looked = 0
