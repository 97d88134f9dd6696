"""A temporary CA, and a certificate for the loopback's names. They are files, which any server and client can use."""

from __future__ import annotations

import atexit
import shutil
import ssl
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files in PEM.

    :ivar ca: the CA's certificate, which a client must trust.
    :ivar chain: the origin's certificate.
    :ivar key: its private key.
    """

    ca: Path
    chain: Path
    key: Path

    def server_context(self, alpn: list[str]) -> ssl.SSLContext:
        """TLS settings for the origin."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.chain, self.key)
        context.set_alpn_protocols(alpn)
        return context


@cache
def certificates() -> Certificates:
    """The certificates of this process. They are made once, and deleted when the interpreter ends.

    :raises ImportError: if trustme is not installed.
    """
    try:
        import trustme
    except ImportError as error:
        raise ImportError("an origin with TLS needs the package trustme: install allswell[testing]") from error
    folder = Path(tempfile.mkdtemp(prefix="allswell-testing-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    authority = trustme.CA()
    leaf = authority.issue_cert(*_NAMES)
    files = Certificates(folder / "ca.pem", folder / "chain.pem", folder / "key.pem")
    authority.cert_pem.write_to_path(files.ca)
    for blob in leaf.cert_chain_pems:
        blob.write_to_path(files.chain, append=True)
    leaf.private_key_pem.write_to_path(files.key)
    return files
