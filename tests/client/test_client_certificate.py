"""Client certificates from memory: what servers see, on TCP and QUIC; what is refused at once; no key is left."""

from __future__ import annotations

import os
import ssl
import stat
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    pkcs12,
)
from cryptography.x509 import load_pem_x509_certificate

import allswell
import allswell.httpx
from allswell import AsyncClient, AsyncTransport, ClientCertificate, ConnectFailed, ConnectionPool, ProxyHop
from tests.support.certificates import certificates, issue
from tests.support.h2_script import Http2Server
from tests.support.h3_proxy import Http3Proxy
from tests.support.peer import scripted_peer
from tests.support.proxies import connect_proxy
from tests.support.quic_server import QuicServer
from tests.support.scripts import answers

pytestmark = pytest.mark.anyio


@cache
def parts() -> tuple[bytes, bytes]:
    """Certificate and key of the client whom the servers of these tests know."""
    key, _, rest = certificates().client.read_bytes().partition(b"-----BEGIN CERTIFICATE-----")
    return b"-----BEGIN CERTIFICATE-----" + rest, key


def locked(form: PrivateFormat = PrivateFormat.PKCS8, password: bytes | None = b"open") -> bytes:
    how: KeySerializationEncryption = NoEncryption() if password is None else BestAvailableEncryption(password)
    return load_pem_private_key(parts()[1], None).private_bytes(Encoding.PEM, form, how)


def packed(password: bytes | None = b"open") -> bytes:
    certificate, key = load_pem_x509_certificate(parts()[0]), load_pem_private_key(parts()[1], None)
    ca = load_pem_x509_certificate(certificates().ca.read_bytes())
    how: KeySerializationEncryption = NoEncryption() if password is None else BestAvailableEncryption(password)
    return pkcs12.serialize_key_and_certificates(b"me", key, certificate, [ca], how)  # type: ignore[arg-type]  # the key


FORMS: dict[str, Callable[[], ClientCertificate]] = {
    "the key behind": lambda: ClientCertificate(parts()[0] + parts()[1]),
    "the key before": lambda: ClientCertificate(parts()[1] + parts()[0]),
    "the key apart": lambda: ClientCertificate(*parts()),
    "text": lambda: ClientCertificate(parts()[0].decode(), parts()[1].decode()),
    "PKCS #8": lambda: ClientCertificate(parts()[0], locked(password=None)),
    "a password": lambda: ClientCertificate(parts()[0], locked(), "open"),
    "the older form, with a password": lambda: ClientCertificate(
        parts()[0], locked(PrivateFormat.TraditionalOpenSSL), b"open"
    ),
    "a password that is not needed": lambda: ClientCertificate(*parts(), password="open"),
    "PKCS #12": lambda: ClientCertificate.from_pkcs12(packed(), "open"),
    "PKCS #12 without a password": lambda: ClientCertificate.from_pkcs12(packed(None)),
    "files": lambda: ClientCertificate.from_files(certificates().client),
}


@pytest.mark.parametrize("form", FORMS)
async def test_what_a_server_sees(form: str) -> None:
    made = FORMS[form]()
    assert repr(made).startswith("<ClientCertificate ")
    context = certificates().server_context(alpn=["h2"], ask_client=True)
    with scripted_peer(Http2Server(), tls=context) as peer, QuicServer(ask_client=True) as quic:
        settings: dict[str, Any] = {"http3": True, "http3_origins": frozenset({f"https://localhost:{quic.port}"})}
        async with AsyncClient(verify=certificates().client_context(), cert=made, **settings) as client:
            assert (await client.get(f"{peer.url}/a")).http_version == "HTTP/2"
            assert (await client.get(f"https://localhost:{quic.port}/hello")).http_version == "HTTP/3"
    [(shown,)] = quic.all("certificate")
    assert shown == made.chain[0] == load_pem_x509_certificate(parts()[0])


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_each_door_takes_it(version: ssl.TLSVersion) -> None:
    made = ClientCertificate(*parts())
    context = certificates().server_context(ask_client=True, version=version)
    with scripted_peer(answers(), tls=context) as peer:
        trust = certificates().client_context
        async with ConnectionPool(ssl_context=trust(), cert=made) as pool:
            assert (await pool.request("GET", peer.url)).status == 200
        async with allswell.AsyncClient(transport=AsyncTransport(verify=trust(), cert=made)) as client:
            assert (await client.get(peer.url)).status_code == 200
        async with httpx.AsyncClient(transport=allswell.httpx.AsyncTransport(verify=trust(), cert=made)) as theirs:
            assert (await theirs.get(peer.url)).status_code == 200
        async with ConnectionPool(ssl_context=trust()) as pool:  # the server does ask
            with pytest.raises(allswell.AllswellError, match=r"(?i)certificate|handshake"):
                await pool.request("GET", peer.url)


async def test_files_as_httpx2_takes_them(tmp_path: Path) -> None:
    """What is shown on TCP is shown over QUIC."""
    for name, content in (("pem", parts()[0]), ("key", parts()[1]), ("locked", locked()), ("both", b"".join(parts()))):
        (tmp_path / name).write_bytes(content)
    pem, key, locked_key = (str(tmp_path / name) for name in ("pem", "key", "locked"))
    given: Any
    for given in (str(tmp_path / "both"), (pem, key), (pem, locked_key, "open")):
        with (
            QuicServer(ask_client=True) as quic,
            scripted_peer(answers(), tls=certificates().server_context(ask_client=True)) as tcp,
        ):
            origins = frozenset({f"https://localhost:{quic.port}"})
            with pytest.warns(DeprecationWarning, match="cert"):
                transport = AsyncTransport(
                    verify=certificates().client_context(), cert=given, http3=True, http3_origins=origins
                )
            async with allswell.AsyncClient(transport=transport) as client:
                assert (await client.get(tcp.url)).status_code == 200
                assert (await client.get(f"https://localhost:{quic.port}/hello")).http_version == "HTTP/3"
        [(shown,)] = quic.all("certificate")
        assert shown == load_pem_x509_certificate(parts()[0])


async def test_without_a_context_it_is_loaded_into_the_default_one() -> None:
    async with ConnectionPool(cert=ClientCertificate(*parts())) as pool:
        assert pool.config.ssl_context is not None
        assert pool.config.ssl_context.verify_mode is ssl.CERT_REQUIRED


async def test_a_proxy_that_would_be_shown_it_is_not_connected_to() -> None:
    context = certificates().client_context()
    with scripted_peer(connect_proxy(), tls=certificates().server_context()) as proxy:
        hop = ProxyHop("https", "localhost", proxy.port, ssl_context=context)
        for http3 in (False, True):
            more: dict[str, Any] = {"proxies": (replace(hop, http3=http3),), "cert": ClientCertificate(*parts())}
            async with ConnectionPool(ssl_context=context, **more) as pool:
                for scheme in ("http", "https"):
                    with pytest.raises(ConnectFailed, match=r"the proxy https://localhost.* would be shown cert"):
                        await pool.request("GET", f"{scheme}://name.example/")
        by = httpx2.Proxy(f"https://localhost:{proxy.port}", ssl_context=context)
        async with AsyncClient(verify=context, proxy=by, cert=ClientCertificate(*parts())) as client:
            with pytest.raises(httpx2.ConnectError, match="would be shown cert"):
                await client.get("https://name.example/")
        assert proxy.connections == []


async def test_proxies_are_not_shown_it() -> None:
    context = certificates().client_context()
    with Http3Proxy(ask_client=True) as proxy, QuicServer(ask_client=True) as origin:
        hop = ProxyHop("https", "localhost", proxy.port, http3="only", ssl_context=certificates().client_context())
        made = ClientCertificate(*parts())
        async with ConnectionPool(ssl_context=context, proxies=(hop,), http3="only", cert=made) as pool:
            assert (await pool.request("GET", f"https://localhost:{origin.port}/hello")).status == 200
    assert proxy.all("certificate") == [(None,)]
    assert origin.all("certificate") == [(made.chain[0],)]


async def test_no_connection_serves_a_second_origin_with_it() -> None:
    server = Http2Server()
    context = certificates().server_context(alpn=["h2"])
    with scripted_peer(server, tls=context) as peer:
        made = ClientCertificate(*parts())
        resolver = allswell.Hosts({"name.example": "127.0.0.1"})
        async with ConnectionPool(
            ssl_context=certificates().client_context(), cert=made, coalescing=True, resolver=resolver
        ) as pool:
            for host in ("name.example", "localhost"):
                await pool.request("GET", f"https://{host}:{peer.port}/")
    assert len(peer.connections) == 2


def of_another() -> bytes:
    files = issue(trustme.CA(), "other.example")
    return files.key.read_bytes()


def too_short() -> tuple[bytes, bytes]:
    """OpenSSL's security level 2 wants RSA keys of 2048 bits."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.x509 import CertificateBuilder, Name, random_serial_number

    key = rsa.generate_private_key(65537, 1024)
    given = load_pem_x509_certificate(parts()[0])
    builder = CertificateBuilder(
        Name(given.issuer.rdns), given.subject, key.public_key(), random_serial_number(), *_dates(given)
    )
    certificate = builder.sign(key, hashes.SHA256())
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM), secret


def _dates(given: Any) -> tuple[Any, Any]:
    return given.not_valid_before_utc, given.not_valid_after_utc


WRONG: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "no certificate": (lambda: ClientCertificate(parts()[1]), ValueError, "pem has no certificate in PEM"),
    "nothing": (lambda: ClientCertificate(b""), ValueError, "pem has no certificate in PEM"),
    "no key": (lambda: ClientCertificate(parts()[0]), ValueError, "pem has no private key in PEM"),
    "no key apart": (lambda: ClientCertificate(parts()[0], b"x"), ValueError, "key has no private key in PEM"),
    "a broken key": (
        lambda: ClientCertificate(parts()[0], parts()[1].replace(b"M", b"A", 1)),
        ValueError,
        "the private key cannot be read: ",
    ),
    "another's key": (lambda: ClientCertificate(parts()[0], of_another()), ValueError, "does not belong to the"),
    "no password": (
        lambda: ClientCertificate(parts()[0], locked()),
        ValueError,
        "encrypted, and no password was given",
    ),
    "another password": (lambda: ClientCertificate(parts()[0], locked(), "x"), ValueError, "with this password"),
    "no PKCS #12": (lambda: ClientCertificate.from_pkcs12(b"x"), ValueError, "cannot read the PKCS #12 data: "),
    "another password of PKCS #12": (
        lambda: ClientCertificate.from_pkcs12(packed(), b"x"),
        ValueError,
        "cannot read the PKCS #12 data: ",
    ),
    "no key in PKCS #12": (
        lambda: ClientCertificate.from_pkcs12(
            pkcs12.serialize_key_and_certificates(
                None, None, load_pem_x509_certificate(parts()[0]), None, NoEncryption()
            )
        ),
        ValueError,
        "no certificate with its private key",
    ),
    "a file that is not there": (lambda: ClientCertificate.from_files("nowhere.pem"), OSError, "nowhere.pem"),
    "a path": (lambda: ClientCertificate(Path("a.pem")), TypeError, "pem must be bytes or str, not PosixPath"),  # type: ignore[arg-type]  # that is the test
    "files for a pool": (
        lambda: ConnectionPool(cert=("a.pem", "b.key")),  # type: ignore[arg-type]  # that is the test
        TypeError,
        r"cert must be allswell\.ClientCertificate, not tuple",
    ),
    "a key that the context does not take": (
        lambda: ConnectionPool(cert=ClientCertificate(*too_short())),
        ssl.SSLError,
        "(?i)key.too.small",
    ),
}


@pytest.mark.parametrize("case", WRONG)
async def test_what_is_wrong_is_told_at_once(case: str) -> None:
    make, kind, words = WRONG[case]
    with pytest.raises(kind, match=words):
        make()


@pytest.mark.parametrize("in_memory", [True, False])
async def test_no_key_lies_about(in_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What OpenSSL is given to read nobody else can, and it is gone afterwards; also when OpenSSL refuses it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if not in_memory:
        monkeypatch.delattr(os, "memfd_create")
    seen: list[tuple[str, int, bytes]] = []

    class Watching(ssl.SSLContext):
        def load_cert_chain(self, certfile: Any, keyfile: Any = None, password: Any = None) -> None:
            seen.append((certfile, stat.S_IMODE(os.stat(certfile).st_mode), Path(certfile).read_bytes()))
            super().load_cert_chain(certfile, keyfile, password)

    before = set(os.listdir("/proc/self/fd"))
    ClientCertificate(*parts()).load_into(Watching(ssl.PROTOCOL_TLS_CLIENT))
    with pytest.raises(ssl.SSLError):
        ClientCertificate(*too_short()).load_into(Watching(ssl.PROTOCOL_TLS_CLIENT))
    assert len(seen) == 2
    for path, mode, content in seen:
        assert path.startswith("/proc/self/fd/" if in_memory else str(tmp_path))
        assert in_memory or mode == 0o600
        assert content.count(b"PRIVATE KEY") == content.count(b"ENCRYPTED PRIVATE KEY") == 2
    assert list(tmp_path.iterdir()) == []
    assert set(os.listdir("/proc/self/fd")) == before
