"""What one QUIC connection leaves for the next to its server, and where that is kept."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol, TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class QuicTicket:
    """A TLS session ticket (RFC 8446 §4.6.1): plain values, which can be pickled or written as JSON. It is a secret.

    A store keeps all of it and looks at :attr:`is_valid` only.

    :ivar server_name: the name that the server was reached by.
    :ivar ticket: the ticket itself, as the server issued it.
    :ivar secret: the resumption secret.
    :ivar cipher_suite: its number (RFC 8446 §B.4).
    :ivar age_add: what hides the ticket's age from observers.
    :ivar not_before: from when on it may be used.
    :ivar not_after: until when.
    :ivar early_data: bytes of 0-RTT that the server accepts; ``None``: it accepts none.
    :ivar extensions: number and content of what came with it, the server's QUIC transport parameters among them.
    :ivar chain: the certificates that the server showed when the session began, DER, its own first. A ticket without
        them is used only by clients that verify nothing.
    """

    server_name: str
    ticket: bytes = field(repr=False)
    secret: bytes = field(repr=False)
    cipher_suite: int
    age_add: int
    not_before: datetime
    not_after: datetime
    early_data: int | None = None
    extensions: tuple[tuple[int, bytes], ...] = field(default=(), repr=False)
    chain: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def is_valid(self) -> bool:
        """Whether it may be used now."""
        return self.not_before <= datetime.now(UTC) <= self.not_after


class QuicStore(Protocol):
    """Where tickets and tokens are kept. Each is given out once, and only to the key that it was kept under.

    A key is a text that names the server, the way to it, the QUIC version, and our certificate: connections that differ
    in one of these share nothing. A ticket that is used twice lets an observer link two connections (RFC 8446 appendix
    C.4), and so does a token (RFC 9000 §8.1.3): hence ``take`` and not ``get``.
    """

    def put_ticket(self, server: str, ticket: QuicTicket) -> None:
        """Keep a session ticket."""

    def take_ticket(self, server: str) -> QuicTicket | None:
        """Give out the newest ticket that is still valid."""

    def put_token(self, server: str, token: bytes) -> None:
        """Keep a token of a NEW_TOKEN frame (RFC 9000 §8.1.3)."""

    def take_token(self, server: str) -> bytes | None:
        """Give out the newest token."""


class QuicMemory:
    """A :class:`QuicStore` that lives as long as the process.

    :param servers: how many servers (keys) to remember; the least recently seen are forgotten.
    :param per_server: tickets, and tokens, of one server; the oldest are forgotten.
    """

    def __init__(self, servers: int = 256, per_server: int = 4) -> None:
        self._servers = servers
        self._per_server = per_server
        self._tickets: OrderedDict[str, list[QuicTicket]] = OrderedDict()
        self._tokens: OrderedDict[str, list[bytes]] = OrderedDict()

    def put_ticket(self, server: str, ticket: QuicTicket) -> None:
        self._keep(self._tickets, server, ticket)

    def take_ticket(self, server: str) -> QuicTicket | None:
        tickets = self._tickets.get(server, [])
        while tickets:
            ticket = tickets.pop()
            if ticket.is_valid:
                return ticket
        return None

    def put_token(self, server: str, token: bytes) -> None:
        self._keep(self._tokens, server, token)

    def take_token(self, server: str) -> bytes | None:
        tokens = self._tokens.get(server)
        return tokens.pop() if tokens else None

    def _keep(self, kept: OrderedDict[str, list[_T]], server: str, thing: _T) -> None:
        things = kept.setdefault(server, [])
        kept.move_to_end(server)
        things.append(thing)
        del things[: -self._per_server]
        while len(kept) > self._servers:
            kept.popitem(last=False)
