"""What one QUIC connection leaves for the next to its server: TLS session tickets and address-validation tokens.

A session that is resumed shows no certificate, neither the server's nor ours: it goes on as what it was. So whoever
resumes it must be who began it (the key of a store names our certificate, and the way), and must trust what was shown
then. Whoever kept the ticket may have trusted everybody, so the chain is kept with it, and judged anew.
"""

from __future__ import annotations

import ssl
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol, TypeVar

from aioquic.tls import AlertBadCertificate, SessionTicket
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import Certificate, load_der_x509_certificate

from allswell._quic import trust as quic_trust

_T = TypeVar("_T")


@dataclass
class ShownTicket(SessionTicket):
    """A session ticket, and whose it is.

    :ivar chain: what the server showed when the session began, DER, its own certificate first.
    """

    chain: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, ticket: SessionTicket, chain: list[Certificate]) -> ShownTicket:
        """A ticket of a session that began with this chain."""
        return cls(**vars(ticket), chain=tuple(each.public_bytes(Encoding.DER) for each in chain))

    def certificates(self) -> list[Certificate]:
        """The chain."""
        return [load_der_x509_certificate(each) for each in self.chain]


def trusted(ticket: SessionTicket | None, trust: ssl.SSLContext, name: str) -> SessionTicket | None:
    """The ticket, if a handshake with what it stands for would be accepted now; else ``None``."""
    if ticket is None or trust.verify_mode is ssl.CERT_NONE:
        return ticket
    if not isinstance(ticket, ShownTicket) or not ticket.chain:
        return None
    try:
        quic_trust.check(trust, name, ticket.certificates())
    except AlertBadCertificate:
        return None
    return ticket


class QuicStore(Protocol):
    """Where tickets and tokens are kept. Each thing is given out once, and to its own key only.

    A key is a text that names the server, the way to it, the QUIC version, and our certificate: what differs in one of
    these is not for each other. A ticket that is used twice lets an observer link two connections (RFC 8446 appendix
    C.4), and so does a token (RFC 9000 §8.1.3): hence ``take`` and not ``get``. Tickets are dataclasses that can be
    pickled; one that comes back without its ``chain`` is used by those only who trust everybody.
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

    :param servers: how many servers (keys) to remember; the least recently seen are forgotten.
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
