"""Has an ``ssl.SSLContext`` judge a server's certificate for QUIC, so that both transports trust exactly the same.

Theory of operation. QUIC's handshake is aioquic's, and a context cannot be asked "would you trust this chain?"; nor
does it give away what it trusts (a folder, the system's store), what it knows to be revoked, or its flags. But it can
be put to the test: it is made the client of a TLS handshake in memory, whose server presents the chain in question,
and goes no further. OpenSSL judges the chain when it has read the Certificate message (RFC 8446 §4.4.2.4), before the
proof of possession that would follow; that proof was given in QUIC's own handshake. So name, chain, dates, purpose,
revocation, key sizes and whatever else the context was told to look at are judged by the code that judges on TCP.

Silence is the verdict "trusted", so a context that judges later, or elsewhere, would let every server in (contexts of
other TLS libraries; ``truststore`` on macOS and Windows). Hence each context first has to refuse a stranger; one that
does not is believed in nothing.

That is a quarter of what a connection costs. So a context's consent is remembered for a minute: to this name with this
chain, as long as its settings and what was loaded into it stay the same, and no longer than the certificates are valid.
A refusal is not remembered: it may be mended at once.

This is the one part of this layer that works with :mod:`ssl`. It does no I/O: the handshake is one in memory.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from aioquic._buffer import Buffer
from aioquic.tls import (
    AlertBadCertificate,
    CipherSuite,
    Context,
    Direction,
    Epoch,
    cipher_suite_hash,
    hkdf_expand_label,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding

from allswell._clock import monotonic

_STRANGER = "stranger.invalid"
#: Bytes of a key of AES-GCM (RFC 8446 §B.4).
_KEY_SIZES = {CipherSuite.AES_128_GCM_SHA256: 16, CipherSuite.AES_256_GCM_SHA384: 32}
_CERTIFICATE, _ENCRYPTED_EXTENSIONS = 11, 8
_HANDSHAKE, _APPLICATION_DATA = b"\x16\x03\x03", b"\x17\x03\x03"
#: Of the largest piece that one record carries (RFC 8446 §5.1).
_RECORD = 16_000

#: Seconds for which a consent is remembered; and how many of one context.
_REMEMBERED_FOR, _MOST_REMEMBERED = 60.0, 256

#: Contexts that were seen to refuse a stranger.
_judges: WeakSet[ssl.SSLContext] = WeakSet()
#: What contexts have consented to, and until when that holds.
_consents: WeakKeyDictionary[ssl.SSLContext, dict[Any, float]] = WeakKeyDictionary()


def accepts_all(context: ssl.SSLContext) -> bool:
    """Whether it verifies nothing, here as on TCP."""
    return context.verify_mode is ssl.CERT_NONE


def check(context: ssl.SSLContext, name: str, chain: list[x509.Certificate]) -> None:
    """Have a context judge a server.

    :param name: the host name or IP address that was to be reached.
    :param chain: what the server presented, its own certificate first.
    :raises AlertBadCertificate: when it is not to be trusted, or the context cannot tell.
    """
    if accepts_all(context):
        return
    if context not in _judges:
        if _judge(context, _STRANGER, [_stranger()]) is None:
            raise AlertBadCertificate("this SSLContext cannot judge certificates for QUIC")
        _judges.add(context)
    if type(context) is not ssl.SSLContext or vars(context):  # one that may judge by more than is known here
        remembered, key = dict[Any, float](), None
    else:
        remembered, key = _consents.setdefault(context, {}), _question(context, name, chain)
    now = monotonic()
    if now < remembered.get(key, -1.0):
        return
    verdict = _judge(context, name, chain)
    if verdict is not None:
        raise AlertBadCertificate(verdict)
    if len(remembered) >= _MOST_REMEMBERED:
        remembered.clear()
    remembered[key] = now + min(_REMEMBERED_FOR, _valid_for(chain))


def _valid_for(chain: list[x509.Certificate]) -> float:
    """Seconds until the first of these certificates expires."""
    return (min(each.not_valid_after_utc for each in chain) - datetime.now(UTC)).total_seconds()


def _question(context: ssl.SSLContext, name: str, chain: list[x509.Certificate]) -> Any:
    """What a context was asked, and all of it that may change its mind."""
    settings = (
        context.verify_mode,
        context.verify_flags,
        context.check_hostname,
        context.hostname_checks_common_name,
        tuple(context.cert_store_stats().items()),
        context.security_level,
    )
    return name, tuple(each.fingerprint(hashes.SHA256()) for each in chain), settings


def _judge(context: ssl.SSLContext, name: str, chain: list[x509.Certificate]) -> str | None:
    """What a context has against a server; ``None`` for nothing."""
    to_client, from_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        with _keys_not_logged(context):
            client = context.wrap_bio(to_client, from_client, server_hostname=name)
            try:
                client.do_handshake()
            except ssl.SSLWantReadError:
                to_client.write(_first_flight(from_client.read(), chain))
            client.do_handshake()
    except ssl.SSLWantReadError:
        return None  # it has read the certificates and goes on
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except (OSError, ValueError) as error:
        return str(error)
    return "the handshake went on without its other half"


@contextmanager
def _keys_not_logged(context: ssl.SSLContext) -> Iterator[None]:
    """The secrets of a handshake that no network sees have no place in a key log (``SSLKEYLOGFILE``)."""
    log = getattr(context, "keylog_filename", None)
    if log is None:
        yield
        return
    context.keylog_filename = None  # type: ignore[assignment]  # which turns it off; typeshed doesn't know
    try:
        yield
    finally:
        with suppress(OSError):  # that it cannot be written is no word about the certificate
            os.close(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))  # OpenSSL would let all read it
            context.keylog_filename = log


def _first_flight(client_hello: bytes, chain: list[x509.Certificate]) -> bytes:
    """A server's records from ServerHello to Certificate (RFC 8446 §2, §5).

    :raises AlertBadCertificate: when there is no TLS 1.3 to be had with this client.
    """
    server = Context(is_client=False, cipher_suites=list(_KEY_SIZES))
    server.certificate, *server.certificate_chain = chain
    server.certificate_private_key = _key()  # for the signature, which is not sent
    secrets: list[tuple[CipherSuite, bytes]] = []

    def on_key(direction: Direction, epoch: Epoch, suite: CipherSuite, secret: bytes) -> None:
        if direction is Direction.ENCRYPT and epoch is Epoch.HANDSHAKE:
            secrets.append((suite, secret))

    server.update_traffic_key_cb = on_key
    size = 4096 + sum(len(each.public_bytes(Encoding.DER)) + 16 for each in chain)
    plain, encrypted, later = Buffer(capacity=4096), Buffer(capacity=size), Buffer(capacity=4096)
    server.handle_message(client_hello[5:], {Epoch.INITIAL: plain, Epoch.HANDSHAKE: encrypted, Epoch.ONE_RTT: later})
    [(suite, secret)] = secrets
    return _record(_HANDSHAKE, plain.data) + _protect(suite, secret, _until_certificate(encrypted.data))


def _until_certificate(messages: bytes) -> bytes:
    """EncryptedExtensions and Certificate, without what follows them."""
    position = 0
    for wanted in (_ENCRYPTED_EXTENSIONS, _CERTIFICATE):
        if messages[position] != wanted:
            raise AlertBadCertificate("an unexpected handshake message")
        position += 4 + int.from_bytes(messages[position + 1 : position + 4], "big")
    return messages[:position]


def _protect(suite: CipherSuite, secret: bytes, messages: bytes) -> bytes:
    """Handshake messages in protected records (RFC 8446 §5.2, §5.3, §7.3)."""
    algorithm = cipher_suite_hash(suite)
    aead = AESGCM(hkdf_expand_label(algorithm, secret, b"key", b"", _KEY_SIZES[suite]))
    iv = int.from_bytes(hkdf_expand_label(algorithm, secret, b"iv", b"", 12), "big")
    records = []
    for number, start in enumerate(range(0, len(messages), _RECORD)):
        inner = messages[start : start + _RECORD] + _HANDSHAKE[:1]
        head = _APPLICATION_DATA + (len(inner) + 16).to_bytes(2, "big")
        records.append(head + aead.encrypt((iv ^ number).to_bytes(12, "big"), inner, head))
    return b"".join(records)


def _record(head: bytes, data: bytes) -> bytes:
    return head + len(data).to_bytes(2, "big") + data


@cache
def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@cache
def _stranger() -> x509.Certificate:
    """A certificate, sound in itself, that there is no reason to trust."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, _STRANGER)])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(_key().public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=365 * 20))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(_STRANGER)]), critical=False)
        .sign(_key(), hashes.SHA256())
    )
