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
    """The settings of one QUIC connection.

    :ivar server_name: the server to expect: a host name (sent as SNI too) or an IP address.
    :ivar server: its name in errors and in ``store``: ``host:port``.
    :ivar way: the way to it, for ``store``. Tickets of one way are not used on another.
    :ivar alpn: application protocols to offer.
    :ivar trust: judges the server's certificate, as on TCP. (Its client certificate cannot be read.)
    :ivar pinned: also judges the server's own certificate, and that with which a resumed session began.
    :ivar certificate: our certificate.
    :ivar certfile: the same as a PEM file with its chain. The key may be in the same file.
    :ivar versions: in order of preference.
    :ivar original_version: the version of the first flight; ``None``: the most preferred one. The server may change to
        a more preferred one (compatible version negotiation, RFC 9368 §2.3).
    :ivar cipher_suites: cipher suites of TLS 1.3 to offer, by number (RFC 8446 §B.4); ``None``: all.
    :ivar no_error: the code of a close without an error. The application on top defines it.
    :ivar idle_timeout: both sides forget the connection after so many seconds of silence (RFC 9000 §10.1).
    :ivar keepalive: a PING is sent after so many seconds of silence; ``None``: never.
    :ivar stream_window: how many bytes of one stream may be on their way or unread.
    :ivar connection_window: the same for all streams together.
    :ivar max_datagram_size: the largest datagram, in bytes, until the path has shown to carry larger ones.
    :ivar ecn: whether packets are marked ECT(0), as long as the path and the peer support it.
    :ivar datagrams: whether DATAGRAM frames are accepted (RFC 9221).
    :ivar store: keeps session tickets and tokens for the next connection; ``None``: they are not kept.
    :ivar early_data: whether 0-RTT may be used. An attacker can replay what it carries (RFC 9001 §9.2).
    :ivar unanswered: called when 0-RTT has had no answer after several probes, and the connection ends.
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
        """Judge a server.

        :param chain: the certificates that it has shown, its own first.
        :raises AlertBadCertificate: it is not trusted.
        :raises PinMismatch: it is not pinned.
        """
        trust.check(self.trust, self.server_name, chain)
        if self.pinned is not None:
            self.pinned(chain[0].public_bytes(Encoding.DER))

    def configuration(self) -> QuicConfiguration:
        """The same for aioquic, without tickets, tokens and log files.

        :raises OSError: if a certificate file cannot be read.
        :raises ValueError: if one cannot be parsed.
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
