"""An ``SSLContext`` judges a certificate in TLS 1.2, which is cheaper, as it does in TLS 1.3."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from allswell._quic import trust

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
Made = tuple[Key, x509.Certificate]
DAY = timedelta(days=1)


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _issue(
    key: Key,
    by: Made | None = None,
    *,
    names: Sequence[str] = ("localhost",),
    days: tuple[int, int] = (-1, 1),
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH,
    is_ca: bool = False,
) -> x509.Certificate:
    issuer_key, issuer = by or (key, None)
    subject = _name("a CA" if is_ca else names[0] if names else "localhost")
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + days[0] * DAY)
        .not_valid_after(now + days[1] * DAY)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if is_ca:
        signs = dict.fromkeys(("key_cert_sign", "crl_sign"), True)
        others = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
        no = dict.fromkeys((*others, "encipher_only", "decipher_only"), False)
        made = made.add_extension(x509.KeyUsage(**signs, **no), critical=True)
    else:
        made = made.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if names:
            made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(each) for each in names]), False)
    own_digest = isinstance(issuer_key, (ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey))
    return made.sign(issuer_key, None if own_digest else hashes.SHA256())


@cache
def _authority() -> Made:
    key = ec.generate_private_key(ec.SECP256R1())
    return key, _issue(key, is_ca=True, days=(-30, 30))


def _list(*revoked: x509.Certificate) -> x509.CertificateRevocationList:
    key, ca = _authority()
    now = datetime.now(UTC)
    made = x509.CertificateRevocationListBuilder().issuer_name(ca.subject).last_update(now - DAY)
    for each in revoked:
        serial = x509.RevokedCertificateBuilder().serial_number(each.serial_number)
        made = made.add_revoked_certificate(serial.revocation_date(now - DAY).build())
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return made.next_update(now + DAY).sign(key, hashes.SHA256())


def _leaf(key: Key | None = None, by: Made | None = None, **what: object) -> list[x509.Certificate]:
    return [_issue(key or ec.generate_private_key(ec.SECP256R1()), by or _authority(), **what)]  # type: ignore[arg-type]


def _below(intermediate_days: tuple[int, int] = (-1, 1), *, is_ca: bool = True) -> list[x509.Certificate]:
    key = ec.generate_private_key(ec.SECP384R1())
    between = _issue(key, _authority(), is_ca=is_ca, days=intermediate_days)
    return [*_leaf(by=(key, between)), between]


class Case(NamedTuple):
    """A chain, and what the context is told beside the CA.

    :ivar refusal: a part of why it refuses; empty if it does not.
    """

    chain: Callable[[], list[x509.Certificate]]
    refusal: str = ""
    flags: int = 0
    level: int | None = None
    revokes: bool = False
    trusts: bool = True


CASES = {
    "P-256": Case(_leaf),
    "P-384": Case(lambda: _leaf(ec.generate_private_key(ec.SECP384R1()))),
    "P-521": Case(lambda: _leaf(ec.generate_private_key(ec.SECP521R1()))),
    "RSA": Case(lambda: _leaf(rsa.generate_private_key(65537, 2048))),
    "Ed25519": Case(lambda: _leaf(ed25519.Ed25519PrivateKey.generate())),
    "Ed448": Case(lambda: _leaf(ed448.Ed448PrivateKey.generate())),
    "an intermediate": Case(_below),
    "more than a record": Case(lambda: _leaf(names=["localhost", *(f"{each}.example" for each in range(2000))])),
    "strict": Case(_leaf, flags=ssl.VERIFY_X509_STRICT),
    "not revoked": Case(_leaf, flags=ssl.VERIFY_CRL_CHECK_LEAF, revokes=True),
    "untrusted": Case(_leaf, "unable to get local issuer", trusts=False),
    "self-signed": Case(lambda: [_issue(ec.generate_private_key(ec.SECP256R1()))], "self-signed"),
    "another name": Case(lambda: _leaf(names=["example.org"]), "Hostname mismatch"),
    "no name but the common one": Case(lambda: _leaf(names=[])),
    "expired": Case(lambda: _leaf(days=(-3, -2)), "expired"),
    "not yet valid": Case(lambda: _leaf(days=(2, 3)), "not yet valid"),
    "an expired intermediate": Case(lambda: _below((-3, -2)), "expired"),
    "an intermediate that is no CA": Case(lambda: _below(is_ca=False), "invalid CA certificate"),
    "of a client": Case(lambda: _leaf(usage=ExtendedKeyUsageOID.CLIENT_AUTH), "unsuitable certificate purpose"),
    "a short key": Case(lambda: _leaf(rsa.generate_private_key(65537, 1024)), "too weak", level=2),
    "a level above the key": Case(_leaf, "too weak", level=4),
    "no list": Case(_leaf, "CRL", flags=ssl.VERIFY_CRL_CHECK_LEAF),
    "revoked": Case(_leaf, "revoked", flags=ssl.VERIFY_CRL_CHECK_LEAF, revokes=True),
}


def _context(case: Case, minimum: ssl.TLSVersion, folder: Path, revoked: list[x509.Certificate]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = minimum
    if case.level is not None:
        context.set_ciphers(f"DEFAULT:@SECLEVEL={case.level}")
    context.verify_flags |= ssl.VerifyFlags(case.flags)
    if case.trusts:
        context.load_verify_locations(cadata=_authority()[1].public_bytes(Encoding.DER))
    if case.revokes:
        (folder / "list").write_bytes(_list(*revoked).public_bytes(Encoding.PEM))
        context.load_verify_locations(cafile=folder / "list")
    return context


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_verdict_is_the_same(case: Case, tmp_path: Path) -> None:
    chain = case.chain()
    told = []
    for minimum, version in ((ssl.TLSVersion.TLSv1_2, trust._TLS_1_2), (ssl.TLSVersion.TLSv1_3, trust._TLS_1_3)):
        context = _context(case, minimum, tmp_path, chain if case.refusal else [])
        refusal, asked_in = trust._judge(context, "localhost", chain)
        assert asked_in == version
        told.append(refusal)
    assert told[0] == told[1]
    if case.refusal:
        assert re.search(case.refusal, str(told[0]))
    else:
        assert told[0] is None


@pytest.mark.parametrize("ciphers", ["ECDHE+AES128", "ECDHE+AES256", "ECDHE+CHACHA20"])
def test_whatever_ciphers_are_left(ciphers: str) -> None:
    context = _context(CASES["RSA"], ssl.TLSVersion.TLSv1_2, Path(), [])
    context.set_ciphers(ciphers)
    for chain in (CASES["RSA"].chain(), CASES["P-256"].chain()):
        assert trust._judge(context, "localhost", chain) == (None, trust._TLS_1_2)


def test_without_a_cipher_for_each_kind_of_key_it_is_tls_1_3() -> None:
    context = _context(CASES["RSA"], ssl.TLSVersion.TLSv1_2, Path(), [])
    context.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")
    for chain in (CASES["RSA"].chain(), CASES["P-256"].chain()):
        assert trust._judge(context, "localhost", chain) == (None, trust._TLS_1_3)
