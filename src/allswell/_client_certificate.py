"""A client certificate and its key, for TLS client authentication on TCP and QUIC. Both may come from memory.

Python's ``ssl`` reads keys from files only. So :meth:`ClientCertificate.load_into` writes the key to a file for a
moment: a file in memory (``memfd_create``), or if the system has none, a temporary file that only its owner can read.
The key in it is encrypted with a random password that is used once.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from allswell._late import Late

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import types
else:
    x509, types = Late("cryptography.x509"), Late("cryptography.hazmat.primitives.asymmetric.types")


class ClientCertificate:
    """A client certificate with its private key, and the chain from it to an authority that servers trust.

    It is shown to origins, and not to proxies.

    :param pem: in PEM: the certificate, then its chain. If ``key`` is not given, the private key, too.
    :param key: the private key in PEM: PKCS #8, or the older forms.
    :param password: the password of the key, if it is encrypted.
    :raises ValueError: if there is no certificate or no key, the password is wrong or missing, or the key belongs to
        another certificate.
    """

    __slots__ = ("chain", "key")

    chain: tuple[x509.Certificate, ...]
    key: types.PrivateKeyTypes

    def __init__(self, pem: bytes | str, key: bytes | str | None = None, password: bytes | str | None = None) -> None:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
        from cryptography.x509 import load_pem_x509_certificates

        certificates, secret = _bytes("pem", pem), None if password is None else _bytes("password", password)
        keys = certificates if key is None else _bytes("key", key)
        try:
            chain = load_pem_x509_certificates(certificates)
        except ValueError as error:
            raise ValueError(f"pem has no certificate in PEM: {error}") from error
        if b"PRIVATE KEY-----" not in keys:
            raise ValueError(f"{'pem' if key is None else 'key'} has no private key in PEM")
        try:
            private = load_pem_private_key(keys, secret if _is_encrypted(keys) else None)
        except TypeError as error:
            raise ValueError("the private key is encrypted, and no password was given") from error
        except (ValueError, UnsupportedAlgorithm) as error:
            why = "with this password" if _is_encrypted(keys) else f": {error}"
            raise ValueError(f"the private key cannot be read {why}".replace(" :", ":")) from error
        self._take(chain, private)

    @classmethod
    def from_pkcs12(cls, data: bytes, password: bytes | str | None = None) -> Self:
        """Make one from the content of a PKCS #12 file (``.p12``, ``.pfx``; RFC 7292).

        :param data: the content of the file.
        :param password: its password.
        :raises ValueError: if the data is not PKCS #12, has no certificate with its key, or has another password.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import pkcs12

        secret = None if password is None else _bytes("password", password)
        try:
            key, certificate, others = pkcs12.load_key_and_certificates(_bytes("data", data), secret)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ValueError(f"cannot read the PKCS #12 data: {error}") from error
        if key is None or certificate is None:
            raise ValueError("the PKCS #12 data has no certificate with its private key")
        made = cls.__new__(cls)
        made._take([certificate, *_issuers(certificate, others)], key)
        return made

    @classmethod
    def from_files(
        cls,
        certfile: str | os.PathLike[str],
        keyfile: str | os.PathLike[str] | None = None,
        password: bytes | str | None = None,
    ) -> Self:
        """Make one from files in PEM.

        :param certfile: the path of a file with the certificate and its chain.
        :param keyfile: the path of a file with the private key; ``None``: the key is in ``certfile``.
        :param password: the password of the key, if it is encrypted.
        :raises OSError: if a file cannot be read.
        :raises ValueError: as the constructor.
        """
        pem = Path(certfile).read_bytes()
        return cls(pem, None if keyfile is None else Path(keyfile).read_bytes(), password)

    def _take(self, chain: list[x509.Certificate], key: types.PrivateKeyTypes) -> None:
        if chain[0].public_key() != key.public_key():
            raise ValueError("the private key does not belong to the (first) certificate")
        self.chain, self.key = tuple(chain), key

    def load_into(self, context: ssl.SSLContext) -> None:
        """Have a context show this certificate to servers that ask for one.

        :raises ssl.SSLError: if the context does not accept it, for example because its key is too short.
        """
        from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

        password = os.urandom(32).hex()
        key = self.key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password.encode("ascii"))
        )
        with _file(key + b"".join(each.public_bytes(Encoding.PEM) for each in self.chain)) as path:
            context.load_cert_chain(path, password=password)

    def __repr__(self) -> str:
        return f"<ClientCertificate {self.chain[0].subject.rfc4514_string()}>"


def _bytes(name: str, given: object) -> bytes:
    if isinstance(given, str):
        return given.encode()
    if isinstance(given, (bytes, bytearray, memoryview)):
        return bytes(given)
    raise TypeError(f"{name} must be bytes or str, not {type(given).__name__}")


def _is_encrypted(pem: bytes) -> bool:
    # RFC 7468 §11, or the older form with a header field (RFC 1421 §4.6.1.1).
    return b"BEGIN ENCRYPTED PRIVATE KEY" in pem or b"Proc-Type: 4,ENCRYPTED" in pem


def _issuers(certificate: x509.Certificate, others: list[x509.Certificate]) -> Iterator[x509.Certificate]:
    """The chain above a certificate, in order, as far as ``others`` has it. (In PKCS #12 they have no order.)"""
    left = list(others)
    while certificate.issuer != certificate.subject:
        above = next((each for each in left if each.subject == certificate.issuer), None)
        if above is None:
            return
        left.remove(above)
        yield above
        certificate = above


@contextmanager
def _file(content: bytes) -> Iterator[str]:
    """The path of a file with this content that only this user can read. It exists while the block runs."""
    number = _in_memory()
    if number is not None:
        with os.fdopen(number, "wb") as file:
            file.write(content)
            file.flush()
            yield f"/proc/self/fd/{number}"
        return
    number, path = tempfile.mkstemp(prefix="allswell-")  # with mode 0600
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
        yield path
    finally:
        os.unlink(path)


def _in_memory() -> int | None:
    """The descriptor of a new file in memory; ``None`` if the system has no such files, or no path to them."""
    if not hasattr(os, "memfd_create"):
        return None
    try:
        number = os.memfd_create("allswell")
    except OSError:
        return None
    if os.path.exists(f"/proc/self/fd/{number}"):
        return number
    os.close(number)
    return None
