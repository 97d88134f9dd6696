"""The PINGs that a QUIC connection sends unasked: for a response that is silent, and to be kept alive.

A NAT that forgot us lets nothing in until something goes out, and a client that only receives sends nothing. So if a
response that is waited for is silent for half a second, a PING goes. The next one waits twice as long, but never longer
than half of the idle timeout.
"""

from __future__ import annotations

import math

from allswell._clock import monotonic
from allswell._quic.connection import ClientConnection

#: Seconds without news of a response that is waited for, before the first PING.
PING_AFTER = 0.5


class Pings:
    """Those of one connection.

    :param keepalive: seconds of silence after which one goes, whatever is waited for; ``None``: never.
    :ivar heard_at: when the peer was heard last.
    :ivar after: seconds without news after which the next one goes; ``inf``: nothing is waited for.
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
        """Something was sent. If nothing was waited for, this may be a request."""
        if self.after == math.inf:
            self.news(monotonic())

    def due(self, connection: ClientConnection) -> float:
        """When :meth:`look` is worth a call."""
        return min(self._quiet_since + self.after, self.heard_at + self.silence(connection))

    def silence(self, connection: ClientConnection) -> float:
        """Seconds of silence after which one goes; the peer may forget the connection sooner than we would."""
        return math.inf if self._keepalive is None else min(self._keepalive, connection.idle_timeout / 2)

    def look(self, connection: ClientConnection, now: float) -> None:
        """Queue what is due."""
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
        """Queue one."""
        self._count += 1
        connection.send_ping(self._count)
