"""A throw-away CA and one leaf for localhost and name.example: as files for servers, as contexts for Python."""

from __future__ import annotations

import atexit
import shutil
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import trustme

#: Also of an origin that is no real host: tests say themselves what it resolves to.
NAMES = ("localhost", "127.0.0.1", "::1", "name.example")
HTTP1 = ("http/1.1",)
ANY_HTTP = ("h2", "http/1.1")


@dataclass(frozen=True)
class Certificates:
    """Files in PEM, and contexts made from them. Every call makes a new context: a test may change what it gets.

    :ivar ca: the CA's certificate, what a client must trust (also the issuer of ``client``).
    :ivar chain: the server's leaf.
    :ivar key: the leaf's private key.
    :ivar chain_and_key: both in one file, as HAProxy and lighttpd want them.
    :ivar client: a client certificate with its key, issued by the same CA.
    """

    ca: Path
    chain: Path
    key: Path
    chain_and_key: Path
    client: Path

    def server_context(
        self,
        *,
        alpn: Sequence[str] = HTTP1,
        version: ssl.TLSVersion | None = None,
        ask_client: bool = False,
    ) -> ssl.SSLContext:
        """A server's side: ``version`` pins TLS 1.2 or 1.3, ``ask_client`` demands a client certificate."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.ca))
        context.load_cert_chain(self.chain, self.key)
        _tune(context, alpn, version)
        if ask_client:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client_context(
        self,
        *,
        alpn: Sequence[str] = (),
        version: ssl.TLSVersion | None = None,
        with_certificate: bool = False,
    ) -> ssl.SSLContext:
        """A client's side that trusts this CA and no other; ``alpn`` is empty unless given."""
        context = ssl.create_default_context(cafile=str(self.ca))
        _tune(context, alpn, version)
        if with_certificate:
            context.load_cert_chain(self.client)
        return context


def _tune(context: ssl.SSLContext, alpn: Sequence[str], version: ssl.TLSVersion | None) -> None:
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if version is not None:
        context.minimum_version = context.maximum_version = version


@cache
def certificates() -> Certificates:
    """The certificates of this test session: made once, deleted when the interpreter ends."""
    return issue(trustme.CA(), *NAMES)


def issue(ca: trustme.CA, *names: str) -> Certificates:
    """A set of files for other names, or from another CA (for tests of what must be refused)."""
    folder = Path(tempfile.mkdtemp(prefix="allswell-certificates-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    # Servers may drop root before they read these; they are worth nothing to anybody.
    folder.chmod(0o755)
    leaf, client = ca.issue_cert(*names), ca.issue_cert("client@allswell.example")
    files = Certificates(*(folder / name for name in ("ca.pem", "chain.pem", "key.pem", "both.pem", "client.pem")))
    ca.cert_pem.write_to_path(files.ca)
    for blob in leaf.cert_chain_pems:
        blob.write_to_path(files.chain, append=True)
    leaf.private_key_pem.write_to_path(files.key)
    files.chain_and_key.write_bytes(files.chain.read_bytes() + files.key.read_bytes())
    client.private_key_and_cert_chain_pem.write_to_path(files.client)
    return files
