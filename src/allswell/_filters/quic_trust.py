"""Checks a server's certificate as OpenSSL does for TLS over TCP: its chain, its name, its purpose.

aioquic's own check parses the trusted certificates again for every connection, one by one in Python's ``cryptography``
(10 ms and more for the usual hundred, and an error for each that is not quite RFC 5280), and does not look at the
purpose. Here OpenSSL parses them, once.
"""

from __future__ import annotations

import ipaddress
import ssl
from functools import lru_cache

import certifi
from aioquic.tls import AlertBadCertificate
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import crypto
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import verify_certificate_hostname, verify_certificate_ip_address


@lru_cache(maxsize=16)
def _store(cadata: bytes | None, cafile: str | None, capath: str | None) -> crypto.X509Store:
    store = crypto.X509Store()
    if cadata is None and cafile is None and capath is None:
        cafile = certifi.where()
    if cafile is not None or capath is not None:
        store.load_locations(cafile, capath)
    if cadata is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=cadata.decode("ascii"))
        for der in context.get_ca_certs(binary_form=True):
            store.add_cert(crypto.load_certificate(crypto.FILETYPE_ASN1, der))
    return store


def check(
    certificate: x509.Certificate,
    chain: list[x509.Certificate],
    *,
    name: str | None,
    cadata: bytes | None,
    cafile: str | None,
    capath: str | None,
) -> None:
    """Whether to talk to a server.

    :param name: the host name or IP address that the certificate must be for; ``None``: any.
    :raises AlertBadCertificate: if not.
    """
    if name is not None:
        try:
            if _is_address(name):
                verify_certificate_ip_address(certificate, name)
            else:
                verify_certificate_hostname(certificate, name)
        except (CertificateError, VerificationError, ValueError) as error:
            raise AlertBadCertificate(f"the certificate is not for {name!r}") from error
    if not _may_serve(certificate):
        raise AlertBadCertificate("the certificate is not for a server")
    context = crypto.X509StoreContext(
        _store(cadata, cafile, capath),
        crypto.X509.from_cryptography(certificate),
        [crypto.X509.from_cryptography(each) for each in chain],
    )
    try:
        context.verify_certificate()
    except crypto.X509StoreContextError as error:
        raise AlertBadCertificate(str(error)) from error


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _may_serve(certificate: x509.Certificate) -> bool:
    """Whether a certificate's purposes, if it names any, include TLS servers (RFC 5280 §4.2.1.12)."""
    try:
        purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    except ValueError:
        return False  # extensions that cannot be parsed
    return ExtendedKeyUsageOID.SERVER_AUTH in purposes
