"""Has an ``ssl.SSLContext`` judge a server's certificate for QUIC, so that both transports trust exactly the same.

Theory of operation. aioquic does QUIC's handshake. A context has no call that judges a chain. Nor does it show all that
it trusts (a folder, the system's store), what is revoked, or all of its flags. So it is tested: it becomes the client
of a TLS handshake in memory. The server there presents the chain in question, and then stops. OpenSSL judges the chain
as soon as it has read the Certificate message (RFC 8446 §4.4.2.4). The proof of possession of the key would come next;
QUIC's own handshake has checked that. So the code that judges on TCP judges here, too: name, chain, dates, purpose,
revocation, key sizes, and whatever else the context was told to check.

This handshake is TLS 1.2 if the context offers that beside TLS 1.3, as it does by default. TLS 1.2 sends certificates
in the clear (RFC 5246 §7.3), so neither side makes a key. OpenSSL judges them by the same function, in less time.
Otherwise it is TLS 1.3.

If the context raises nothing, the server is trusted. A context that judges later, or elsewhere, would then trust every
server (contexts of other TLS libraries; ``truststore`` on macOS and Windows). So its consent counts only if it refuses
a certificate that nobody can trust, in the same version of TLS. Python's own contexts need one such test for all: they
differ in what they trust, and not in when they judge.

A test takes a tenth of the time of a connection. So a context's consent to a name with a chain is remembered for a
minute. It ends earlier if the context's settings change, if something is loaded into the context, or if a certificate
expires. A refusal is not remembered, because its cause may be mended at once.

No other file of this layer has a context of :mod:`ssl` do anything. There is no I/O here: the handshake is in memory.
"""

from __future__ import annotations

import hashlib
import ssl
import struct
from collections.abc import Hashable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import NamedTuple
from weakref import WeakKeyDictionary

from aioquic._buffer import Buffer
from aioquic.tls import AlertBadCertificate, CipherSuite, Group, KeySchedule, cipher_suite_hash, hkdf_expand_label
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, x448, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from allswell._clock import monotonic
from allswell._memory import remember

_STRANGER = "stranger.invalid"
_NO_TLS_1_3 = "this SSLContext offers no TLS 1.3 with a known cipher suite and group"
#: Cipher suites of TLS 1.2: for certificates with keys of elliptic curves, and of RSA (RFC 5289, RFC 7905).
_SUITES_1_2 = ((0xC02B, 0xC02F), (0xC02C, 0xC030), (0xCCA9, 0xCCA8))
_RSA_KEYS = (x509.PublicKeyAlgorithmOID.RSAES_PKCS1_v1_5, x509.PublicKeyAlgorithmOID.RSASSA_PSS)
#: Bytes of a key of AES-GCM (RFC 8446 §B.4).
_KEY_SIZES = {CipherSuite.AES_128_GCM_SHA256: 16, CipherSuite.AES_256_GCM_SHA384: 32}
#: The curves of a key exchange, by their groups. Then all groups that are known here (RFC 8446 §4.2.7), the cheapest
#: first. A context may be set to use only one of them, whichever that is.
_CURVES: dict[int, ec.EllipticCurve] = {
    Group.SECP256R1: ec.SECP256R1(),
    Group.SECP384R1: ec.SECP384R1(),
    Group.SECP521R1: ec.SECP521R1(),
}
_GROUPS = (Group.X25519, Group.SECP256R1, Group.X448, Group.SECP384R1, Group.SECP521R1)
_SERVER_HELLO, _CERTIFICATE, _ENCRYPTED_EXTENSIONS, _MESSAGE_HASH = 2, 11, 8, 254
_SUPPORTED_GROUPS, _SUPPORTED_VERSIONS, _KEY_SHARE = 10, 43, 51
#: The random of a HelloRetryRequest (RFC 8446 §4.1.3).
_RETRY = hashlib.sha256(b"HelloRetryRequest").digest()
_TLS_1_2, _TLS_1_3 = b"\x03\x03", b"\x03\x04"
_HANDSHAKE, _APPLICATION_DATA = b"\x16\x03\x03", b"\x17\x03\x03"
#: TLS 1.2: no session, no compression, and the extension renegotiation_info, which OpenSSL demands (RFC 5746 §3.6).
_NO_SESSION, _RENEGOTIATION_INFO = b"\0", bytes.fromhex("00 0005 ff01 0001 00")
#: Bytes of the largest piece that one record carries (RFC 8446 §5.1), and of a record's header.
_RECORD, _RECORD_HEAD = 16_000, 5

#: How many seconds a consent is remembered, and how many consents of one context.
_REMEMBERED_FOR, _MOST_REMEMBERED = 60.0, 256

#: Contexts that have refused the untrusted certificate, with the version of TLS. Of plain ones: what those have in
#: common that behave alike.
_judges: WeakKeyDictionary[ssl.SSLContext, set[bytes]] = WeakKeyDictionary()
_plain_judges: dict[Hashable, set[bytes]] = {}
#: The consents of contexts, and the instants at which they end.
_consents: WeakKeyDictionary[ssl.SSLContext, dict[Hashable, float]] = WeakKeyDictionary()


def accepts_all(context: ssl.SSLContext) -> bool:
    """Whether the context verifies nothing. Then nothing is verified here, as on TCP."""
    return context.verify_mode is ssl.CERT_NONE


def check(context: ssl.SSLContext, name: str, chain: list[x509.Certificate]) -> None:
    """Have a context judge a server.

    :param name: the host name or IP address that was to be reached.
    :param chain: the certificates that the server presented, its own first.
    :raises AlertBadCertificate: if the context does not trust it, or cannot judge.
    """
    if accepts_all(context):
        return
    if _is_plain(context):
        alike = (ssl.SSLContext.wrap_bio, ssl.SSLContext.sslobject_class, context.verify_mode)
        versions = _plain_judges.setdefault(alike, set())
        remembered, key = _consents.setdefault(context, {}), (alike, _question(context, name, chain))
    else:
        versions = _judges.setdefault(context, set())
        remembered, key = dict[Hashable, float](), None
    now = monotonic()
    if now < remembered.get(key, -1.0):
        return
    refusal, version = _judge(context, name, chain)
    if refusal is not None:
        raise AlertBadCertificate(refusal)
    if version not in versions:
        refusal, same = _judge(context, _STRANGER, [_stranger()])
        if refusal is None or same != version:
            raise AlertBadCertificate("this SSLContext cannot judge certificates for QUIC")
        versions.add(version)
    remember(remembered, key, now + min(_REMEMBERED_FOR, _valid_for(chain)), _MOST_REMEMBERED)


def _is_plain(context: ssl.SSLContext) -> bool:
    """Whether it is Python's own class, unchanged. Then its verdicts depend only on what :func:`_question` names."""
    kind = type(context)
    return kind is ssl.SSLContext and kind.__module__ == "ssl" and not vars(context)


def _valid_for(chain: list[x509.Certificate]) -> float:
    """Seconds until the first of these certificates expires."""
    return (min(each.not_valid_after_utc for each in chain) - datetime.now(UTC)).total_seconds()


def _question(context: ssl.SSLContext, name: str, chain: list[x509.Certificate]) -> Hashable:
    """The key of a consent: the name, the chain, and all of the context on which the verdict depends."""
    settings = (
        context.verify_mode,
        context.verify_flags,
        context.check_hostname,
        context.hostname_checks_common_name,
        tuple(context.cert_store_stats().items()),
        context.security_level,
    )
    return name, tuple(hashlib.sha256(each.public_bytes(Encoding.DER)).digest() for each in chain), settings


def _judge(context: ssl.SSLContext, name: str, chain: list[x509.Certificate]) -> tuple[str | None, bytes]:
    """Why a context refuses a server's certificate (``None`` if it does not), and in which version of TLS it was asked.

    :raises AlertBadCertificate: if the handshake does not get as far as the certificate.
    """
    to_client, from_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    version = _TLS_1_2
    try:
        client = context.wrap_bio(to_client, from_client, server_hostname=name)
        hello = transcript = _client_hello(client, from_client)
        offered = _offered(hello)
        if (clear := _clear_flight(offered, chain)) is not None:
            to_client.write(clear)
        else:
            version = _TLS_1_3
            if (retry := _hello_retry_request(offered)) is not None:
                to_client.write(_record(_HANDSHAKE, retry))
                hello_again = _client_hello(client, from_client)
                transcript, offered = _retried(hello, retry, hello_again), _offered(hello_again)
            server_hello, certificate = _first_flight(offered, transcript, chain)
            to_client.write(server_hello)
            if getattr(context, "keylog_filename", None) is not None:
                _make_keys_unlogged(client)
            to_client.write(certificate)
        client.do_handshake()
    except ssl.SSLWantReadError:
        return None, version  # it has accepted the certificates, and wants the next message
    except ssl.SSLCertVerificationError as error:
        return error.verify_message, version
    except (OSError, ValueError) as error:
        raise AlertBadCertificate(str(error)) from error
    raise AlertBadCertificate("this SSLContext completed a handshake of which only the first half was there")


def _make_keys_unlogged(client: ssl.SSLObject) -> None:
    """Have the client read ServerHello, from which it makes its keys, without writing them to a key log.

    No network sees this handshake, so its keys do not belong in ``SSLKEYLOGFILE``. The context's own log must not be
    switched off meanwhile: another thread may be in a handshake with the same context, and Python's callback for a log
    that is gone keeps the GIL.
    """
    if isinstance(client, ssl.SSLObject):
        context = client.context
        client.context = _without_log()
        with suppress(ssl.SSLWantReadError):
            client.do_handshake()
        client.context = context  # this one judges the certificate: by its trust, and its level of security


@cache
def _without_log() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _client_hello(client: ssl.SSLObject, written: ssl.MemoryBIO) -> bytes:
    """The client's next ClientHello. In front of a second one, middleboxes may be sent a record (RFC 8446 §D.4)."""
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    records = written.read()
    return records[records.index(_HANDSHAKE[:1]) + _RECORD_HEAD :]


def _clear_flight(offered: _Offered, chain: list[x509.Certificate]) -> bytes | None:
    """A server's records in TLS 1.2: ServerHello and Certificate (RFC 5246 §7.4); ``None`` if they are of no use.

    :raises AlertBadCertificate: if the client does not offer TLS 1.3, too. QUIC demands that.
    """
    if _TLS_1_3 not in offered.versions:
        raise AlertBadCertificate(_NO_TLS_1_3)
    suites = next((pair for pair in _SUITES_1_2 if offered.suites.issuperset(pair)), None)
    if suites is None or _TLS_1_2 not in offered.versions:
        return None
    suite = suites[chain[0].public_key_algorithm_oid in _RSA_KEYS].to_bytes(2, "big")
    server_hello = _message(_SERVER_HELLO, _TLS_1_2 + bytes(32) + _NO_SESSION + suite + _RENEGOTIATION_INFO)
    certificates = b"".join(_counted(each.public_bytes(Encoding.DER), 3) for each in chain)
    messages = server_hello + _message(_CERTIFICATE, _counted(certificates, 3))
    return b"".join(_record(_HANDSHAKE, messages[at : at + _RECORD]) for at in range(0, len(messages), _RECORD))


def _hello_retry_request(offered: _Offered) -> bytes | None:
    """A request for a key share of a group that is known here; ``None`` if there is such a share, or no such group.

    From OpenSSL 3.5 on, a client that demands 192 bits of security sends its one share for X25519MLKEM768.
    """
    group = next((each for each in _GROUPS if each in offered.groups), None)
    suite = offered.suite()
    if suite is None or group is None or any(each in offered.shares for each in _GROUPS):
        return None
    return _server_hello(_RETRY, offered, suite, group.to_bytes(2, "big"))


def _retried(first: bytes, retry: bytes, second: bytes) -> bytes:
    """The transcript up to a second ClientHello (RFC 8446 §4.4.1)."""
    suite = _offered(first).suite()
    assert suite is not None  # the HelloRetryRequest has named it
    digest = hashes.Hash(cipher_suite_hash(suite))
    digest.update(first)
    return _message(_MESSAGE_HASH, digest.finalize()) + retry + second


def _first_flight(offered: _Offered, transcript: bytes, chain: list[x509.Certificate]) -> tuple[bytes, bytes]:
    """A server's records in TLS 1.3: ServerHello, and then EncryptedExtensions and Certificate (RFC 8446 §2, §5).

    No network sees them, so nothing in them is random.

    :param offered: by the last ClientHello.
    :param transcript: all messages so far, in the form in which they are hashed.
    :raises AlertBadCertificate: if the client offers no TLS 1.3 that is known here.
    """
    suite = offered.suite()
    group = next((each for each in _GROUPS if each in offered.shares), None)
    if suite is None or group is None:
        raise AlertBadCertificate(_NO_TLS_1_3)
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
    """What a ClientHello offers (RFC 8446 §4.1.2, §4.2.1, §4.2.7, §4.2.8)."""

    versions: set[bytes]
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
    suites = _numbers(buf)
    buf.pull_bytes(buf.pull_uint8())
    end = buf.pull_uint16() + buf.tell()
    versions: set[bytes] = set()
    groups: set[int] = set()
    shares: dict[int, bytes] = {}
    while buf.tell() < end:
        kind, size = buf.pull_uint16(), buf.pull_uint16()
        until = buf.tell() + size
        if kind == _SUPPORTED_VERSIONS:
            versions.update(buf.pull_bytes(2) for _ in range(buf.pull_uint8() // 2))
        if kind == _SUPPORTED_GROUPS:
            groups = _numbers(buf)
        if kind == _KEY_SHARE:
            buf.pull_uint16()
            while buf.tell() < until:
                group = buf.pull_uint16()
                shares[group] = buf.pull_bytes(buf.pull_uint16())
        buf.seek(until)
    return _Offered(versions, session_id, suites, groups, shares)


def _numbers(buf: Buffer) -> set[int]:
    """A list of numbers of two bytes, behind its size in bytes."""
    size = buf.pull_uint16()
    return set(struct.unpack(f"!{size // 2}H", buf.pull_bytes(size)))


def _exchanged(group: int, theirs: bytes) -> tuple[bytes, bytes]:
    """Our share of a key exchange, which is always the same, and the shared secret."""
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
    """A valid certificate that no context has a reason to trust."""
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
