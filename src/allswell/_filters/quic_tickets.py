"""What one QUIC connection leaves for the next to its server: TLS session tickets and address-validation tokens."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol, TypeVar

from aioquic.tls import SessionTicket

_T = TypeVar("_T")


class QuicStore(Protocol):
    """Where tickets and tokens are kept. Keys are servers (``host:port``); each thing is given out once.

    A ticket that is used twice lets an observer link two connections (RFC 8446 appendix C.4), and so does a token
    (RFC 9000 §8.1.3): hence ``take`` and not ``get``.
    """

    def put_ticket(self, server: str, ticket: SessionTicket) -> None:
        """Keep a session ticket."""

    def take_ticket(self, server: str) -> SessionTicket | None:
        """Give out the newest ticket that is still valid."""

    def put_token(self, server: str, token: bytes) -> None:
        """Keep a token of a NEW_TOKEN frame."""

    def take_token(self, server: str) -> bytes | None:
        """Give out the newest token."""


class MemoryStore:
    """A :class:`QuicStore` that lives as long as the process.

    :param servers: how many servers to remember; the least recently seen are forgotten.
    :param per_server: tickets, and tokens, of one server; the oldest are forgotten.
    """

    def __init__(self, servers: int = 256, per_server: int = 4) -> None:
        self._servers = servers
        self._per_server = per_server
        self._tickets: OrderedDict[str, list[SessionTicket]] = OrderedDict()
        self._tokens: OrderedDict[str, list[bytes]] = OrderedDict()

    def put_ticket(self, server: str, ticket: SessionTicket) -> None:
        self._keep(self._tickets, server, ticket)

    def take_ticket(self, server: str) -> SessionTicket | None:
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
