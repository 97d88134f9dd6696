"""A server's certificate after its verification: which other hosts it covers."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, NamedTuple, cast

if TYPE_CHECKING:
    from cryptography.x509 import Certificate


class PeerCertificate(NamedTuple):
    """A certificate that was verified for the host that was asked for.

    :ivar names: the DNS names that it covers, in lower case, with wildcards (RFC 9525 §2).
    :ivar der: the whole certificate.
    """

    names: tuple[str, ...]
    der: bytes

    @classmethod
    def of_tls(cls, tls: ssl.SSLObject) -> PeerCertificate | None:
        """The certificate of a TLS connection whose context was :func:`strict` when the connection was made.

        (What ``ssl`` shows as verified depends on the context as it is now.)
        """
        told = tls.getpeercert()  # empty, if the context verifies nothing any more
        der = tls.getpeercert(binary_form=True) if told else None
        if not told or der is None:
            return None
        names = cast(tuple[tuple[str, str], ...], told.get("subjectAltName", ()))
        return cls(tuple(name.lower() for kind, name in names if kind == "DNS"), der)

    @classmethod
    def of_quic(cls, certificate: Certificate) -> PeerCertificate:
        """The certificate of a QUIC connection, which was verified before."""
        from cryptography.hazmat.primitives.serialization import Encoding
        from cryptography.x509 import DNSName, ExtensionNotFound, SubjectAlternativeName

        try:
            names = certificate.extensions.get_extension_for_class(SubjectAlternativeName).value
            found = tuple(name.lower() for name in names.get_values_for_type(DNSName))
        except (ExtensionNotFound, ValueError):
            found = ()
        return cls(found, certificate.public_bytes(Encoding.DER))

    def covers(self, host: str) -> bool:
        """Whether it also covers this host name (RFC 9525 §6)."""
        # Imported on first use: few connections are asked for this.
        from cryptography.x509 import load_der_x509_certificate
        from service_identity import CertificateError, VerificationError
        from service_identity.cryptography import verify_certificate_hostname

        try:
            verify_certificate_hostname(load_der_x509_certificate(self.der), host)
        except (CertificateError, VerificationError, ValueError):
            return False
        return True


def strict(context: ssl.SSLContext) -> bool:
    """Whether it verifies both a server's chain and its name. (Programs may change it at any time.)

    One of another library need not say so.
    """
    mode: object = getattr(context, "verify_mode", None)
    return mode is ssl.CERT_REQUIRED and getattr(context, "check_hostname", False) is True
