"""A chain of certificates as the runner makes it: a root, so many below it, the last one the server's."""

from __future__ import annotations

import ipaddress
import random
import string
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_NAMES = ("localhost", "server4", "server6", "server46")
_ADDRESSES = ("127.0.0.1", "::1")
_LONG_NAME = 250
#: What the key of an authority is for: certificates, and nothing else.
_SIGNS = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


def make_chain(folder: Path, length: int = 1) -> None:
    """Write ``ca.pem``, ``cert.pem`` (the chain, the server's first) and ``priv.key``.

    :param length: certificates below the root; where it is more than one, they are large, to overflow what a server
        may send before the client's address is validated.
    """
    large = length > 1
    issuer_key = ec.generate_private_key(ec.SECP256R1())
    issuer = _name("allswell interop root")
    root = _certificate(issuer, issuer_key, issuer, issuer_key, authority=True)
    (folder / "ca.pem").write_bytes(root)
    chain: list[bytes] = []
    for number in range(1, length + 1):
        leaf = number == length
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name("allswell interop leaf" if leaf else f"allswell interop intermediate {number}")
        chain.insert(0, _certificate(subject, key, issuer, issuer_key, authority=not leaf, large=large))
        issuer, issuer_key = subject, key
    (folder / "cert.pem").write_bytes(b"".join(chain))
    (folder / "priv.key").write_bytes(
        issuer_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


def _certificate(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    authority: bool,
    large: bool = False,
) -> bytes:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=10))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    names: list[x509.GeneralName] = []
    if authority:
        builder = builder.add_extension(_SIGNS, critical=True)  # RFC 5280 §4.2.1.3; Python 3.13 and newer insist
    else:
        names += [x509.DNSName(name) for name in _NAMES]
        names += [x509.IPAddress(ipaddress.ip_address(address)) for address in _ADDRESSES]
    if large:
        names += [x509.DNSName("".join(random.choices(string.ascii_lowercase, k=_LONG_NAME))) for _ in range(4)]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, text)])
