"""The settings of a QUIC connection."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import QuicProtocolVersion
from aioquic.tls import CipherSuite
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import Certificate

from allswell._client_certificate import ClientCertificate
from allswell._pins import PinCheck
from allswell._quic import trust
from allswell._quic_store import QuicStore

VERSION_1 = int(QuicProtocolVersion.VERSION_1)
VERSION_2 = int(QuicProtocolVersion.VERSION_2)

#: RFC 9114 §8.1.
H3_NO_ERROR = 0x100


@dataclass(frozen=True, slots=True)
class QuicSettings:
    """What a QUIC connection is told.

    :ivar server_name: the server to expect: a host name (sent as SNI too) or an IP address.
    :ivar server: as errors name it, and ``store``: ``host:port``.
    :ivar way: how it is reached, for ``store``: what one way left is not used on another.
    :ivar alpn: application protocols to offer.
    :ivar trust: judges the server's certificate, as it would on TCP. (It does not give away a client certificate.)
    :ivar pinned: looks at the server's own certificate besides, when a session began with it, too.
    :ivar certificate: ours.
    :ivar certfile: the same as a file with its chain, PEM; the key may be in the same file.
    :ivar versions: in order of preference.
    :ivar original_version: of the first flight; ``None``: the most preferred one. From another the server may go over
        to a more preferred one (compatible version negotiation, RFC 9368 §2.3).
    :ivar cipher_suites: of TLS 1.3 to offer, by number (RFC 8446 §B.4); ``None``: all there are.
    :ivar no_error: the code with which to close when nothing went wrong; the application on top defines it.
    :ivar idle_timeout: seconds of silence after which both sides forget the connection (RFC 9000 §10.1).
    :ivar keepalive: seconds of silence after which to send a PING, so that it never comes to that; ``None``: never.
    :ivar stream_window: bytes of one stream that may be on their way to, or unread by, the application.
    :ivar connection_window: the same for all streams together.
    :ivar max_datagram_size: bytes of the largest datagram that is sent before the path has shown to carry larger ones.
    :ivar ecn: whether packets are marked ECT(0), as long as the path and the peer turn out to bear it.
    :ivar datagrams: whether DATAGRAM frames are accepted (RFC 9221).
    :ivar store: where session tickets and tokens are kept for the next connection; ``None``: nowhere.
    :ivar early_data: whether 0-RTT may be used: what it carries can be replayed by an attacker (RFC 9001 §9.2).
    :ivar unanswered: called when several probes after it there was no answer to 0-RTT at all, and the connection ends.
    :ivar qlog_dir: a directory to write a qlog file into when the connection is over.
    :ivar keylog_file: a file to append the TLS secrets to (the format of ``SSLKEYLOGFILE``).
    """

    server_name: str
    server: str = ""
    way: str = ""
    alpn: tuple[str, ...] = ("h3",)
    trust: ssl.SSLContext = field(default_factory=ssl.create_default_context)
    pinned: PinCheck | None = None
    certificate: ClientCertificate | None = None
    certfile: str | None = None
    keyfile: str | None = None
    key_password: str | None = field(default=None, repr=False)
    versions: tuple[int, ...] = (VERSION_1, VERSION_2)
    original_version: int | None = None
    cipher_suites: tuple[int, ...] | None = None
    no_error: int = H3_NO_ERROR
    idle_timeout: float = 30.0
    keepalive: float | None = None
    stream_window: int = 4 * 1024 * 1024
    connection_window: int = 8 * 1024 * 1024
    max_datagram_size: int = 1200
    ecn: bool = True
    datagrams: bool = False
    store: QuicStore | None = None
    early_data: bool = False
    unanswered: Callable[[], object] | None = None
    qlog_dir: str | None = None
    keylog_file: str | None = None

    def judge(self, chain: list[Certificate]) -> None:
        """Have a server judged.

        :param chain: what it has shown, its own certificate first.
        :raises AlertBadCertificate: it is not trusted.
        :raises PinMismatch: it is not pinned.
        """
        trust.check(self.trust, self.server_name, chain)
        if self.pinned is not None:
            self.pinned(chain[0].public_bytes(Encoding.DER))

    def configuration(self) -> QuicConfiguration:
        """The same in aioquic's words, but for tickets, tokens and log files.

        :raises OSError: when a certificate file cannot be read.
        :raises ValueError: when one cannot be parsed.
        """
        configuration = QuicConfiguration(
            is_client=True,
            alpn_protocols=list(self.alpn),
            server_name=self.server_name,
            supported_versions=list(self.versions),
            original_version=self.original_version,
            cipher_suites=None if self.cipher_suites is None else [CipherSuite(each) for each in self.cipher_suites],
            idle_timeout=self.idle_timeout,
            max_data=self.connection_window,
            max_stream_data=self.stream_window,
            max_datagram_size=self.max_datagram_size,
            max_datagram_frame_size=65535 if self.datagrams else None,
            verify_mode=ssl.CERT_NONE,  # ``trust`` judges, see trust.py
        )
        ours = self.certificate
        if self.certfile is not None:
            ours = ClientCertificate.from_files(self.certfile, self.keyfile, self.key_password)
        if ours is not None:
            configuration.certificate, *configuration.certificate_chain = ours.chain
            configuration.private_key = cast(Any, ours.key)  # of a kind that TLS has, or it signs nothing
        return configuration
