"""Has an ``ssl.SSLContext`` judge a server's certificate for QUIC, so that both transports trust exactly the same.

Theory of operation. QUIC's handshake is aioquic's, and a context cannot be asked "would you trust this chain?"; nor
does it give away what it trusts (a folder, the system's store), what it knows to be revoked, or its flags. But it can
be put to the test: it is made the client of a TLS handshake in memory, whose server presents the chain in question,
and goes no further. OpenSSL judges the chain when it has read the Certificate message (RFC 8446 §4.4.2.4), before the
proof of possession that would follow; that proof was given in QUIC's own handshake. So name, chain, dates, purpose,
revocation, key sizes and whatever else the context was told to look at are judged by the code that judges on TCP.

Silence is the verdict "trusted", so a context that judges later, or elsewhere, would let every server in (contexts of
other TLS libraries; ``truststore`` on macOS and Windows). Hence each context first has to refuse a stranger; one that
does not is believed in nothing. Of Python's own contexts one stands for all: they differ in what they trust, and not in
when they judge.

That is a tenth of what a connection costs. So a context's consent is remembered for a minute: to this name with this
chain, as long as its settings and what was loaded into it stay the same, and no longer than the certificates are valid.
A refusal is not remembered: it may be mended at once.

This is the one part of this layer that works with :mod:`ssl`. It does no I/O: the handshake is one in memory.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Hashable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import NamedTuple
from weakref import WeakKeyDictionary, WeakSet

from aioquic._buffer import Buffer
from aioquic.tls import AlertBadCertificate, CipherSuite, Group, KeySchedule, cipher_suite_hash, hkdf_expand_label
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, x448, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from allswell._clock import monotonic

_STRANGER = "stranger.invalid"
#: Bytes of a key of AES-GCM (RFC 8446 §B.4).
_KEY_SIZES = {CipherSuite.AES_128_GCM_SHA256: 16, CipherSuite.AES_256_GCM_SHA384: 32}
#: The curves of a key exchange, by their groups; and all groups that are known here (RFC 8446 §4.2.7), the cheapest
#: first. A context may be told to use any one of them, and no other.
_CURVES: dict[int, ec.EllipticCurve] = {
    Group.SECP256R1: ec.SECP256R1(),
    Group.SECP384R1: ec.SECP384R1(),
    Group.SECP521R1: ec.SECP521R1(),
}
_GROUPS = (Group.X25519, Group.SECP256R1, Group.X448, Group.SECP384R1, Group.SECP521R1)
_SERVER_HELLO, _CERTIFICATE, _ENCRYPTED_EXTENSIONS, _MESSAGE_HASH = 2, 11, 8, 254
_SUPPORTED_GROUPS, _KEY_SHARE = 10, 51
#: The random of a HelloRetryRequest (RFC 8446 §4.1.3).
_RETRY = hashlib.sha256(b"HelloRetryRequest").digest()
_TLS_1_2, _HANDSHAKE, _APPLICATION_DATA = b"\x03\x03", b"\x16\x03\x03", b"\x17\x03\x03"
#: Of the largest piece that one record carries (RFC 8446 §5.1).
_RECORD, _RECORD_HEAD = 16_000, 5

#: Seconds for which a consent is remembered; and how many of one context.
_REMEMBERED_FOR, _MOST_REMEMBERED = 60.0, 256

#: Contexts that were seen to refuse a stranger; and what makes all plain ones alike in this.
_judges: WeakSet[ssl.SSLContext] = WeakSet()
_plain_judges: set[Hashable] = set()
#: What contexts have consented to, and until when that holds.
_consents: WeakKeyDictionary[ssl.SSLContext, dict[Hashable, float]] = WeakKeyDictionary()


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
    plain = _is_plain(context)
    alike = (ssl.SSLContext.wrap_bio, ssl.SSLContext.sslobject_class, context.verify_mode) if plain else None
    if alike not in _plain_judges and context not in _judges:
        if _judge(context, _STRANGER, [_stranger()]) is None:
            raise AlertBadCertificate("this SSLContext cannot judge certificates for QUIC")
        if plain:
            _plain_judges.add(alike)
        else:
            _judges.add(context)
    if plain:
        remembered, key = _consents.setdefault(context, {}), _question(context, name, chain)
    else:
        remembered, key = dict[Hashable, float](), None
    now = monotonic()
    if now < remembered.get(key, -1.0):
        return
    verdict = _judge(context, name, chain)
    if verdict is not None:
        raise AlertBadCertificate(verdict)
    if len(remembered) >= _MOST_REMEMBERED:
        remembered.clear()
    remembered[key] = now + min(_REMEMBERED_FOR, _valid_for(chain))


def _is_plain(context: ssl.SSLContext) -> bool:
    """Whether it is Python's own, which judges by nothing but what is known here."""
    kind = type(context)
    return kind is ssl.SSLContext and kind.__module__ == "ssl" and not vars(context)


def _valid_for(chain: list[x509.Certificate]) -> float:
    """Seconds until the first of these certificates expires."""
    return (min(each.not_valid_after_utc for each in chain) - datetime.now(UTC)).total_seconds()


def _question(context: ssl.SSLContext, name: str, chain: list[x509.Certificate]) -> Hashable:
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
    """What a context has against a server's certificate; ``None`` for nothing.

    :raises AlertBadCertificate: when it has not come to judge that.
    """
    to_client, from_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        client = context.wrap_bio(to_client, from_client, server_hostname=name)
        hello = transcript = _client_hello(client, from_client)
        if (retry := _hello_retry_request(hello)) is not None:
            to_client.write(_record(_HANDSHAKE, retry))
            hello_again = _client_hello(client, from_client)
            transcript, hello = _retried(hello, retry, hello_again), hello_again
        server_hello, certificate = _first_flight(hello, transcript, chain)
        to_client.write(server_hello)
        if getattr(context, "keylog_filename", None) is not None:
            _make_keys_unlogged(client)
        to_client.write(certificate)
        client.do_handshake()
    except ssl.SSLWantReadError:
        return None  # it has read the certificates and goes on
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except (OSError, ValueError) as error:
        raise AlertBadCertificate(str(error)) from error
    raise AlertBadCertificate("the handshake went on without its other half")


def _make_keys_unlogged(client: ssl.SSLObject) -> None:
    """Have it read ServerHello, which gives it its keys, and no key log (``SSLKEYLOGFILE``) learns them.

    They are those of a handshake that no network sees. The context's log must not be turned off for that: another
    thread may be in a handshake with the same context, and Python's callback for a log that is gone keeps the GIL.
    """
    if isinstance(client, ssl.SSLObject):
        context = client.context
        client.context = _without_log()
        with suppress(ssl.SSLWantReadError):
            client.do_handshake()
        client.context = context  # by what it knows, and by its level of security, the certificate is judged


@cache
def _without_log() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _client_hello(client: ssl.SSLObject, written: ssl.MemoryBIO) -> bytes:
    """The ClientHello that it says next. A second one may have a record before it, for middleboxes (RFC 8446 §D.4)."""
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    records = written.read()
    return records[records.index(_HANDSHAKE[:1]) + _RECORD_HEAD :]


def _hello_retry_request(client_hello: bytes) -> bytes | None:
    """What asks for a share of a group that is known here, if the client supports one and sent shares of others only.

    From OpenSSL 3.5 on a client that demands 192 bits of security sends its one share for X25519MLKEM768.
    """
    offered = _offered(client_hello)
    group = next((each for each in _GROUPS if each in offered.groups), None)
    suite = offered.suite()
    if suite is None or group is None or any(each in offered.shares for each in _GROUPS):
        return None
    return _server_hello(_RETRY, offered, suite, group.to_bytes(2, "big"))


def _retried(first: bytes, retry: bytes, second: bytes) -> bytes:
    """What is hashed up to a second ClientHello (RFC 8446 §4.4.1)."""
    suite = _offered(first).suite()
    assert suite is not None  # it was asked for again
    digest = hashes.Hash(cipher_suite_hash(suite))
    digest.update(first)
    return _message(_MESSAGE_HASH, digest.finalize()) + retry + second


def _first_flight(client_hello: bytes, transcript: bytes, chain: list[x509.Certificate]) -> tuple[bytes, bytes]:
    """A server's records: ServerHello, and what follows it up to Certificate (RFC 8446 §2, §5).

    Nobody will see them, so nothing is random.

    :param transcript: all messages so far, as they are hashed.
    :raises AlertBadCertificate: when there is no TLS 1.3 to be had with this client.
    """
    offered = _offered(client_hello)
    suite = offered.suite()
    group = next((each for each in _GROUPS if each in offered.shares), None)
    if suite is None or group is None:
        raise AlertBadCertificate("this SSLContext offers no TLS 1.3 that is known here")
    ours, shared = _exchanged(group, offered.shares[group])
    server_hello = _server_hello(bytes(32), offered, suite, group.to_bytes(2, "big") + _counted(ours, 2))
    keys = KeySchedule(suite)
    keys.extract(None)
    keys.update_hash(transcript + server_hello)
    keys.extract(shared)
    certificates = b"".join(_counted(each.public_bytes(Encoding.DER), 3) + b"\0\0" for each in chain)
    encrypted = _message(_ENCRYPTED_EXTENSIONS, b"\0\0") + _message(_CERTIFICATE, b"\0" + _counted(certificates, 3))
    return _record(_HANDSHAKE, server_hello), _protect(suite, keys.derive_secret(b"s hs traffic"), encrypted)


def _server_hello(random: bytes, offered: _Offered, suite: CipherSuite, share: bytes) -> bytes:
    """A ServerHello, or a HelloRetryRequest, of TLS 1.3 (RFC 8446 §4.1.3).

    :param share: the content of its key_share.
    """
    extensions = bytes.fromhex("002b00020304 0033") + _counted(share, 2)
    chosen = _TLS_1_2 + random + _counted(offered.session_id, 1) + suite.to_bytes(2, "big") + b"\0"
    return _message(_SERVER_HELLO, chosen + _counted(extensions, 2))


class _Offered(NamedTuple):
    """What a ClientHello offers (RFC 8446 §4.1.2, §4.2.7, §4.2.8)."""

    session_id: bytes
    suites: set[int]
    groups: set[int]
    shares: dict[int, bytes]

    def suite(self) -> CipherSuite | None:
        return next((each for each in _KEY_SIZES if each in self.suites), None)


def _offered(client_hello: bytes) -> _Offered:
    buf = Buffer(data=client_hello)
    buf.pull_bytes(4 + 2 + 32)
    session_id = buf.pull_bytes(buf.pull_uint8())
    suites = {buf.pull_uint16() for _ in range(buf.pull_uint16() // 2)}
    buf.pull_bytes(buf.pull_uint8())
    end = buf.pull_uint16() + buf.tell()
    groups: set[int] = set()
    shares: dict[int, bytes] = {}
    while buf.tell() < end:
        kind, size = buf.pull_uint16(), buf.pull_uint16()
        until = buf.tell() + size
        if kind == _SUPPORTED_GROUPS:
            groups.update(buf.pull_uint16() for _ in range(buf.pull_uint16() // 2))
        if kind == _KEY_SHARE:
            buf.pull_uint16()
            while buf.tell() < until:
                group = buf.pull_uint16()
                shares[group] = buf.pull_bytes(buf.pull_uint16())
        buf.seek(until)
    return _Offered(session_id, suites, groups, shares)


def _exchanged(group: int, theirs: bytes) -> tuple[bytes, bytes]:
    """Our share of a key exchange, always the same; and the secret."""
    key = _key(group)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        ours = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return ours, key.exchange(ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(key.curve, theirs))
    ours = key.public_key().public_bytes_raw()
    if isinstance(key, x448.X448PrivateKey):
        return ours, key.exchange(x448.X448PublicKey.from_public_bytes(theirs))
    return ours, key.exchange(x25519.X25519PublicKey.from_public_bytes(theirs))


def _counted(data: bytes, size: int) -> bytes:
    return len(data).to_bytes(size, "big") + data


def _message(kind: int, content: bytes) -> bytes:
    """A handshake message (RFC 8446 §4)."""
    return bytes((kind,)) + _counted(content, 3)


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
def _key(group: int) -> ec.EllipticCurvePrivateKey | x25519.X25519PrivateKey | x448.X448PrivateKey:
    if group == Group.X25519:
        return x25519.X25519PrivateKey.generate()
    if group == Group.X448:
        return x448.X448PrivateKey.generate()
    return ec.generate_private_key(_CURVES[group])


@cache
def _stranger() -> x509.Certificate:
    """A certificate, sound in itself, that there is no reason to trust."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, _STRANGER)])
    now = datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=365 * 20))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(_STRANGER)]), critical=False)
        .sign(key, hashes.SHA256())
    )
