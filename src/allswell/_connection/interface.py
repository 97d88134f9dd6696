"""What a connection tells its owner, the pool. (Downward the pool calls `driver.py` and `exchange.py` directly.)"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from allswell._backends.interface import AlternativeOffered, OriginsNamed
from allswell._report import ConnectionEnd

if TYPE_CHECKING:
    from allswell._connection.driver import Connection


class Owner(Protocol):
    """The owner of connections. Called synchronously, from whichever task made the change; must not raise."""

    def connection_available(self, connection: Connection) -> None:
        """It is open, and has capacity or is idle: an exchange ended, or the peer allows more (or less)."""

    def connection_wanted(self, connection: Connection) -> bool:
        """Whether somebody waits for room on it, of which it has none yet: then it is not idle."""

    def connection_leaving(self, connection: Connection) -> None:
        """It takes no new exchanges any more."""

    def connection_announced(self, connection: Connection, news: OriginsNamed | AlternativeOffered) -> None:
        """The server says for which origins it is ready, or where else one of them is to be had."""

    def connection_ended(self, connection: Connection, end: ConnectionEnd) -> None:
        """It is closed; this is how."""
