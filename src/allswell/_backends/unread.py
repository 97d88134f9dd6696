"""What has come of responses and was not read: in HTTP/2 and HTTP/3 it takes up the peer's credit."""

from __future__ import annotations


class Unread(dict[int, int]):
    """Bytes by exchange, also of exchanges that are over. Where nothing is unread, there is no entry."""

    __slots__ = ()

    def add(self, exchange: int, size: int) -> None:
        """So much more has come."""
        self[exchange] = self.get(exchange, 0) + size

    def take(self, exchange: int, credit: int) -> int:
        """The application has read so much, or dropped it. Return the credit that goes back to the peer for it."""
        unread = self.pop(exchange, 0)
        if credit >= unread:
            return unread
        self[exchange] = unread - credit
        return credit

    def drop(self, exchange: int) -> int:
        """Nobody will read the rest. Return its credit."""
        return self.pop(exchange, 0)
