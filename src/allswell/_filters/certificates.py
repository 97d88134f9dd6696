"""A server's certificate, once it was verified: for which other hosts it would do."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, NamedTuple, cast

if TYPE_CHECKING:
    from cryptography.x509 import Certificate


class PeerCertificate(NamedTuple):
    """The certificate of a server that was found to be the one that was meant.

    :ivar names: the DNS names that it is for, in lower case, wildcards as they are (RFC 9525 §2).
    :ivar der: all of it.
    """

    names: tuple[str, ...]
    der: bytes

    @classmethod
    def of_tls(cls, context: ssl.SSLContext, tls: ssl.SSLObject) -> PeerCertificate | None:
        """Of a TLS connection; ``None`` where the context did not look at the chain, or not at the name."""
        told = tls.getpeercert() if strict(context) else None  # (empty, where OpenSSL was told not to verify it)
        der = tls.getpeercert(binary_form=True) if told else None
        if not told or der is None:
            return None
        names = cast(tuple[tuple[str, str], ...], told.get("subjectAltName", ()))
        return cls(tuple(name.lower() for kind, name in names if kind == "DNS"), der)

    @classmethod
    def of_quic(cls, certificate: Certificate) -> PeerCertificate:
        """Of a QUIC connection."""
        from cryptography.hazmat.primitives.serialization import Encoding
        from cryptography.x509 import DNSName, ExtensionNotFound, SubjectAlternativeName

        try:
            names = certificate.extensions.get_extension_for_class(SubjectAlternativeName).value
            found = tuple(name.lower() for name in names.get_values_for_type(DNSName))
        except (ExtensionNotFound, ValueError):
            found = ()
        return cls(found, certificate.public_bytes(Encoding.DER))

    def covers(self, host: str) -> bool:
        """Whether it is for this host name too, as RFC 9525 §6 has it."""
        # Imported when they are first needed: few connections are ever asked.
        from cryptography.x509 import load_der_x509_certificate
        from service_identity import CertificateError, VerificationError
        from service_identity.cryptography import verify_certificate_hostname

        try:
            verify_certificate_hostname(load_der_x509_certificate(self.der), host)
        except (CertificateError, VerificationError, ValueError):
            return False
        return True


def strict(context: ssl.SSLContext) -> bool:
    """Whether it verifies both a server's chain and its name."""
    return context.verify_mode is ssl.CERT_REQUIRED and context.check_hostname
