"""How a connection uses what an earlier one to its server has left: a TLS session, a validated address.

In a resumed session neither side shows a certificate. So a session is resumed only by connections like the one that
began it (the key in a store names our certificate, and the way), and only if the server's certificates of that time are
trusted now. The client that kept the ticket may have trusted every server. So the chain is kept with the ticket and
judged anew, by the pins of its host too.
"""

from __future__ import annotations

from aioquic.quic.configuration import QuicConfiguration
from aioquic.tls import AlertBadCertificate, CipherSuite, SessionTicket
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import Certificate, load_der_x509_certificate

from allswell._errors import PinMismatch
from allswell._quic import trust
from allswell._quic.settings import QuicSettings
from allswell._quic_store import QuicStore, QuicTicket


class Resumption:
    """The tickets and tokens that one connection takes from a store, and puts there.

    :param settings: the connection's settings.
    :param configuration: the same for aioquic. The ticket and the token that are used are written into it.
    """

    def __init__(self, settings: QuicSettings, store: QuicStore, configuration: QuicConfiguration) -> None:
        self._settings = settings
        self._store = store
        certificate = configuration.certificate
        self._ourselves = "nobody" if certificate is None else certificate.fingerprint(SHA256()).hex()
        self._taken: QuicTicket | None = None
        self._take_up(configuration)

    def _take_up(self, configuration: QuicConfiguration) -> None:
        """Take a ticket or token of the first version that has one. It also decides the version (RFC 9369 §5)."""
        settings, store = self._settings, self._store
        for version in settings.versions if settings.original_version is None else (settings.original_version,):
            self._taken = _trusted(store.take_ticket(self._key(version)), settings)
            token = store.take_token(self._key(version))
            if self._taken is not None or token is not None:
                configuration.token = token or b""
                configuration.original_version = version
                if self._taken is not None:
                    configuration.session_ticket = _session(self._taken, early_data=settings.early_data)
                return

    def keep_ticket(self, ticket: SessionTicket, version: int, chain: list[Certificate]) -> None:
        """Keep a ticket of this connection.

        :param chain: the certificates that the server has shown; empty for a resumed session.
        """
        shown = tuple(each.public_bytes(Encoding.DER) for each in chain)
        if not shown and self._taken is not None:
            shown = self._taken.chain
        self._store.put_ticket(self._key(version), _plain(ticket, shown))

    def keep_token(self, token: bytes, version: int) -> None:
        """Keep a token of this connection."""
        self._store.put_token(self._key(version), token)

    def _key(self, version: int) -> str:
        settings = self._settings
        return f"{settings.server} ({settings.server_name}) {settings.way} QUIC 0x{version:x} as {self._ourselves}"


def _trusted(ticket: QuicTicket | None, settings: QuicSettings) -> QuicTicket | None:
    """The ticket, if a full handshake with its certificates would be accepted now; else ``None``."""
    if ticket is None or (trust.accepts_all(settings.trust) and settings.pinned is None):
        return ticket
    if not ticket.chain:
        return None
    try:
        chain = [load_der_x509_certificate(each) for each in ticket.chain]
        settings.judge(chain)
    except (AlertBadCertificate, PinMismatch):
        return None
    return ticket


def _plain(ticket: SessionTicket, chain: tuple[bytes, ...]) -> QuicTicket:
    return QuicTicket(
        server_name=ticket.server_name,
        ticket=ticket.ticket,
        secret=ticket.resumption_secret,
        cipher_suite=int(ticket.cipher_suite),
        age_add=ticket.age_add,
        not_before=ticket.not_valid_before,
        not_after=ticket.not_valid_after,
        early_data=ticket.max_early_data_size,
        extensions=tuple(ticket.other_extensions),
        chain=chain,
    )


def _session(ticket: QuicTicket, *, early_data: bool) -> SessionTicket:
    return SessionTicket(
        age_add=ticket.age_add,
        cipher_suite=CipherSuite(ticket.cipher_suite),
        not_valid_after=ticket.not_after,
        not_valid_before=ticket.not_before,
        resumption_secret=ticket.secret,
        server_name=ticket.server_name,
        ticket=ticket.ticket,
        max_early_data_size=ticket.early_data if early_data else None,
        other_extensions=list(ticket.extensions),
    )
