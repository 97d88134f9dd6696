"""Session tickets and tokens: what a QUIC connection leaves for the next one to the same server."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Lock
from typing import Protocol, TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class QuicTicket:
    """A TLS session ticket (RFC 8446 §4.6.1): plain values that can be pickled. It is a secret.

    A store keeps all of it and looks at :attr:`is_valid` only.

    :ivar server_name: the server's name, as used for the connection.
    :ivar ticket: the ticket itself, as the server issued it.
    :ivar secret: the resumption secret.
    :ivar cipher_suite: its number (RFC 8446 §B.4).
    :ivar age_add: the number that hides the ticket's age from observers.
    :ivar not_before: when it may first be used.
    :ivar not_after: when it may last be used.
    :ivar early_data: how many bytes of 0-RTT the server accepts; ``None``: none.
    :ivar extensions: numbers and contents of its TLS extensions, with the server's QUIC transport parameters.
    :ivar chain: the certificates that the server showed when the session began, in DER, its own first. A ticket
        without them is used only by clients that verify nothing.
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
    """Keeps session tickets and tokens. Each is given out once, for the key that it was kept under.

    A key (``server``) is a text that names the server, the proxies on the way, the QUIC version, and our certificate.
    Connections that differ in one of these share nothing. A ticket or a token that is used twice lets an observer link
    two connections (RFC 8446 appendix C.4, RFC 9000 §8.1.3). So the methods are called ``take``, not ``get``.
    """

    def put_ticket(self, server: str, ticket: QuicTicket) -> None:
        """Keep a session ticket.

        :param server: the key. Its form may change with a release: do not take it apart.
        :param ticket: the ticket.
        """

    def take_ticket(self, server: str) -> QuicTicket | None:
        """Give out, and forget, the newest ticket that is still valid; ``None`` if there is none."""

    def put_token(self, server: str, token: bytes) -> None:
        """Keep a token of a NEW_TOKEN frame (RFC 9000 §8.1.3)."""

    def take_token(self, server: str) -> bytes | None:
        """Give out, and forget, the newest token; ``None`` if there is none."""


class QuicMemory:
    """A :class:`QuicStore` that lives as long as the process. Clients in several threads may share it.

    :param servers: how many keys are remembered. The least recently used are forgotten.
    :param per_server: how many tickets, and how many tokens, are kept for each. The oldest are forgotten.
    """

    def __init__(self, servers: int = 256, per_server: int = 4) -> None:
        self._servers = servers
        self._per_server = per_server
        self._lock = Lock()
        self._tickets: OrderedDict[str, list[QuicTicket]] = OrderedDict()
        self._tokens: OrderedDict[str, list[bytes]] = OrderedDict()

    def put_ticket(self, server: str, ticket: QuicTicket) -> None:
        self._keep(self._tickets, server, ticket)

    def take_ticket(self, server: str) -> QuicTicket | None:
        while (ticket := self._take(self._tickets, server)) is not None and not ticket.is_valid:
            pass  # it has expired, so it is forgotten
        return ticket

    def put_token(self, server: str, token: bytes) -> None:
        self._keep(self._tokens, server, token)

    def take_token(self, server: str) -> bytes | None:
        return self._take(self._tokens, server)

    def _keep(self, kept: OrderedDict[str, list[_T]], server: str, thing: _T) -> None:
        with self._lock:
            things = kept.setdefault(server, [])
            kept.move_to_end(server)
            things.append(thing)
            del things[: -self._per_server]
            while len(kept) > self._servers:
                kept.popitem(last=False)

    def _take(self, kept: OrderedDict[str, list[_T]], server: str) -> _T | None:
        with self._lock:
            things = kept.get(server)
            return things.pop() if things else None
