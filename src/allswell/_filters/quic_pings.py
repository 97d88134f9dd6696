"""The PINGs of a QUIC connection: for a response that is silent, and to keep the connection alive.

If a NAT has forgotten us, it lets nothing in until we send something, and a client that only receives sends nothing.
So if an expected response is silent for half a second, a PING is sent. Each next one waits twice as long, up to half of
the idle timeout.
"""

from __future__ import annotations

import math

from allswell._clock import monotonic
from allswell._quic.connection import ClientConnection

#: After so many seconds without news of an expected response, the first PING is sent.
PING_AFTER = 0.5


class Pings:
    """The PINGs of one connection.

    :param keepalive: after how many seconds of silence one is sent, also if no response is expected; ``None``: never.
    :ivar heard_at: when the peer was heard last.
    :ivar after: after how many seconds without news the next one is sent; ``inf``: no response is expected.
    """

    def __init__(self, keepalive: float | None) -> None:
        self.heard_at = 0.0
        self.after = PING_AFTER
        self._keepalive = keepalive
        self._quiet_since = 0.0  # the last news, or the last PING that asked for some
        self._count = 0

    def begin(self, now: float) -> None:
        """The connection begins."""
        self.heard_at = self._quiet_since = now

    def news(self, now: float) -> None:
        """Something has come that HTTP learns of."""
        self._quiet_since, self.after = now, PING_AFTER

    def sent(self) -> None:
        """Something was sent. It may be a request, so a response may be expected from now on."""
        if self.after == math.inf:
            self.news(monotonic())

    def due(self, connection: ClientConnection) -> float:
        """When :meth:`look` must be called next."""
        return min(self._quiet_since + self.after, self.heard_at + self.silence(connection))

    def silence(self, connection: ClientConnection) -> float:
        """After how many seconds of silence one is sent. The peer may have a shorter idle timeout than we do."""
        return math.inf if self._keepalive is None else min(self._keepalive, connection.idle_timeout / 2)

    def look(self, connection: ClientConnection, now: float) -> None:
        """Queue the PINGs that are due."""
        if now >= self._quiet_since + self.after:
            if connection.handshake_complete and connection.awaits_response:
                self._quiet_since, self.after = now, min(2 * self.after, connection.idle_timeout / 2)
                self.ping(connection)
            else:
                self.after = math.inf
        if now >= self.heard_at + self.silence(connection) and connection.ended is None:
            self.heard_at = now
            self.ping(connection)

    def ping(self, connection: ClientConnection) -> None:
        """Queue a PING."""
        self._count += 1
        connection.send_ping(self._count)
