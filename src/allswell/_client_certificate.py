"""Who we are, for servers that ask (TLS client authentication): a certificate and its key from memory, on TCP and QUIC.

OpenSSL, as Python's ``ssl`` has it, reads keys from files only. So the key is written to one that nobody else can use:
in memory (``memfd_create``), or where there is no such thing, in the folder for temporary files, readable by its owner
alone and removed at once. In both it is encrypted, with a password that is made up for the occasion and kept nowhere.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from cryptography.x509 import Certificate


class ClientCertificate:
    """A client certificate with its private key, and what leads from it to an authority that servers know.

    It is for origins: proxies are not shown it.

    :param pem: the certificate, and behind it its chain; the key, too, where it is not given by itself.
    :param key: the private key, PEM (PKCS #8, or the older forms).
    :param password: of the key.
    :raises ValueError: for what is no certificate or key, a password that is wrong or missing, or a key that is
        another certificate's.
    """

    __slots__ = ("chain", "key")

    chain: tuple[Certificate, ...]
    key: PrivateKeyTypes

    def __init__(self, pem: bytes | str, key: bytes | str | None = None, password: bytes | str | None = None) -> None:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
        from cryptography.x509 import load_pem_x509_certificates

        certificates, secret = _bytes("pem", pem), None if password is None else _bytes("password", password)
        keys = certificates if key is None else _bytes("key", key)
        try:
            chain = load_pem_x509_certificates(certificates)
        except ValueError as error:
            raise ValueError(f"pem: no certificate in PEM: {error}") from error
        if b"PRIVATE KEY-----" not in keys:
            raise ValueError(f"{'pem' if key is None else 'key'}: no private key in PEM")
        try:
            private = load_pem_private_key(keys, secret if _is_encrypted(keys) else None)
        except TypeError as error:
            raise ValueError("the private key is encrypted, and no password is given") from error
        except (ValueError, UnsupportedAlgorithm) as error:
            why = "with this password" if _is_encrypted(keys) else f": {error}"
            raise ValueError(f"the private key cannot be read {why}".replace(" :", ":")) from error
        self._take(chain, private)

    @classmethod
    def from_pkcs12(cls, data: bytes, password: bytes | str | None = None) -> Self:
        """The same from a PKCS #12 file's content (``.p12``, ``.pfx``).

        :raises ValueError: for what is none, has no certificate with its key, or has another password.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import pkcs12

        secret = None if password is None else _bytes("password", password)
        try:
            key, certificate, others = pkcs12.load_key_and_certificates(_bytes("data", data), secret)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ValueError(f"PKCS #12: {error}") from error
        if key is None or certificate is None:
            raise ValueError("PKCS #12: it has no certificate with its private key")
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
        """The same from files.

        :raises OSError: when one cannot be read.
        :raises ValueError: as above.
        """
        pem = Path(certfile).read_bytes()
        return cls(pem, None if keyfile is None else Path(keyfile).read_bytes(), password)

    def _take(self, chain: list[Certificate], key: PrivateKeyTypes) -> None:
        if chain[0].public_key() != key.public_key():
            raise ValueError("the private key is not that of the (first) certificate")
        self.chain, self.key = tuple(chain), key

    def load_into(self, context: ssl.SSLContext) -> None:
        """Have a context present it.

        :raises ssl.SSLError: when the context does not take it (a key that is too short for it, say).
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
    raise TypeError(f"{name}: {type(given).__name__} was given, and bytes are wanted here")


def _is_encrypted(pem: bytes) -> bool:
    # RFC 7468 §11; and the older form, with its header field (RFC 1421 §4.6.1.1).
    return b"BEGIN ENCRYPTED PRIVATE KEY" in pem or b"Proc-Type: 4,ENCRYPTED" in pem


def _issuers(certificate: Certificate, others: list[Certificate]) -> Iterator[Certificate]:
    """The chain above a certificate, in order, as far as it is there. (PKCS #12 keeps its certificates in none.)"""
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
    """A file with this content, that only we can read, for as long as the block lasts."""
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
    """A descriptor of a file in memory; ``None`` where there is none, or no path to it."""
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
