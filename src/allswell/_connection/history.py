"""What one connection has carried since it was made, and what that shows of its server."""

from __future__ import annotations

from allswell._clock import monotonic
from allswell._connection.service import Service


class History:
    """The exchanges of one connection, counted. What they show of the server goes to its service.

    :param service: what all connections to this server have in common.
    :ivar made_at: when the connection was made, as :func:`time.monotonic` tells.
    :ivar opened: how many exchanges were opened.
    :ivar answered: of how many the final response's head has come.
    :ivar cut_short: how many ended because the connection did.
    """

    __slots__ = ("_taken", "answered", "cut_short", "made_at", "opened", "service")

    def __init__(self, service: Service) -> None:
        self.service = service
        self.made_at = monotonic()
        self.opened = 0
        self.answered = 0
        self.cut_short = 0
        self._taken = 0  # of those that were opened: how many the server did not refuse

    def room(self, room: int, *, busy: bool) -> int:
        """How many exchanges may be opened now.

        They are no more than earlier connections took before the server left them. When so many are over, one more is
        allowed, to find out whether that still holds.

        :param room: for how many the protocol has room.
        :param busy: whether an exchange is open.
        """
        left = self.service.takes - self._taken
        return room if not room or room <= left else max(int(left), 0 if busy else 1)

    def on_opened(self) -> None:
        """An exchange was opened."""
        self.opened += 1
        self._taken += 1

    def on_answered(self) -> None:
        """The head of a final response has come."""
        service = self.service
        self.answered += 1
        service.answered += 1
        if self.answered > service.takes:
            service.takes_more()

    def on_refused(self, *, leaving: bool) -> None:
        """The server has provably not processed an exchange. If it is leaving, this shows how many it takes."""
        self._taken -= 1
        if leaving:
            self.service.leaves(self.made_at, self._taken)

    def on_ended(self) -> None:
        """No exchange will be opened any more, and none is open."""
        if self.opened and not self.answered:  # (a connection that was never used shows nothing)
            self.service.barren += 1
