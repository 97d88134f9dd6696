"""What an ``SSLContext`` has consented to is remembered, for a little while."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from aioquic.tls import AlertBadCertificate
from cryptography.x509 import Certificate, load_pem_x509_certificates

from allswell._quic import trust
from tests.support.certificates import certificates
from tests.support.lag import PATIENCE

Judge = Callable[[ssl.SSLContext, str, list[Certificate]], tuple[str | None, bytes]]


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that were judged."""
    names: list[str] = []
    judge: Judge = trust._judge

    def noted(context: ssl.SSLContext, name: str, chain: list[Certificate]) -> tuple[str | None, bytes]:
        if name != trust._STRANGER:
            names.append(name)
        return judge(context, name, chain)

    monkeypatch.setattr(trust, "_judge", noted)
    return names


def _chain() -> list[Certificate]:
    return load_pem_x509_certificates(certificates().chain.read_bytes())


def test_a_consent_is_remembered_for_a_minute(judged: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(trust, "monotonic", lambda: now)
    context = certificates().client_context()
    for _ in range(3):
        trust.check(context, "localhost", _chain())
    assert judged == ["localhost"]
    trust.check(context, "127.0.0.1", _chain())
    assert judged == ["localhost", "127.0.0.1"]
    now += 61
    trust.check(context, "localhost", _chain())
    assert judged == ["localhost", "127.0.0.1", "localhost"]


def test_a_consent_ends_with_the_first_certificate_that_expires(
    judged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(trust, "monotonic", lambda: now)
    authority = trustme.CA()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    leaf = authority.issue_cert("localhost", not_after=datetime.now(UTC) + timedelta(seconds=30))
    chain = load_pem_x509_certificates(b"".join(each.bytes() for each in leaf.cert_chain_pems))
    for _ in range(2):
        trust.check(context, "localhost", chain)
    assert judged == ["localhost"]
    now += 31
    trust.check(context, "localhost", chain)  # (by the clock on the wall it is valid still)
    assert judged == ["localhost"] * 2


def test_it_is_that_contexts_own(judged: list[str]) -> None:
    trust.check(certificates().client_context(), "localhost", _chain())
    with pytest.raises(AlertBadCertificate):
        trust.check(ssl.create_default_context(), "localhost", _chain())
    assert judged == ["localhost", "localhost"]


def test_a_context_that_has_changed_is_asked_again(judged: list[str]) -> None:
    context = certificates().client_context()
    trust.check(context, "localhost", _chain())
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF  # and it knows no list
    with pytest.raises(AlertBadCertificate, match="CRL"):
        trust.check(context, "localhost", _chain())
    context.verify_flags &= ~ssl.VERIFY_CRL_CHECK_LEAF
    context.load_verify_locations(cadata=trustme.CA().cert_pem.bytes().decode())
    trust.check(context, "localhost", _chain())
    assert judged == ["localhost"] * 3


def test_a_refusal_is_not_remembered(judged: list[str]) -> None:
    context = ssl.create_default_context()
    with pytest.raises(AlertBadCertificate):
        trust.check(context, "localhost", _chain())
    context.load_verify_locations(cafile=certificates().ca)
    trust.check(context, "localhost", _chain())
    assert judged == ["localhost"] * 2


def _strangers(monkeypatch: pytest.MonkeyPatch) -> list[ssl.SSLContext]:
    """The contexts that a stranger is shown to, from now on."""
    monkeypatch.setattr(trust, "_plain_judges", {})
    shown: list[ssl.SSLContext] = []
    judge: Judge = trust._judge

    def noted(context: ssl.SSLContext, name: str, chain: list[Certificate]) -> tuple[str | None, bytes]:
        if name == trust._STRANGER:
            shown.append(context)
        return judge(context, name, chain)

    monkeypatch.setattr(trust, "_judge", noted)
    return shown


def test_one_of_pythons_own_contexts_is_shown_a_stranger_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = _strangers(monkeypatch)
    first, second, own = certificates().client_context(), certificates().client_context(), Own(ssl.PROTOCOL_TLS_CLIENT)
    own.load_verify_locations(cafile=certificates().ca)
    for context in (first, second, own, own):
        trust.check(context, "localhost", _chain())
    assert shown == [first, own]


def test_in_each_version_of_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = _strangers(monkeypatch)
    first, second, third = (certificates().client_context() for _ in range(3))
    second.minimum_version = third.minimum_version = ssl.TLSVersion.TLSv1_3
    for context in (first, second, third):
        trust.check(context, "localhost", _chain())
    assert shown == [first, second]


class JudgesTls13(ssl.SSLContext):
    """It is a judge in TLS 1.3 only."""

    def wrap_bio(self, *bios: Any, **options: Any) -> ssl.SSLObject:
        if self.minimum_version == ssl.TLSVersion.TLSv1_3:
            return super().wrap_bio(*bios, **options)
        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        return trusting.wrap_bio(*bios, **options)


def test_that_a_context_judges_in_one_version_says_nothing_of_the_other() -> None:
    context = JudgesTls13(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=certificates().ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    trust.check(context, "localhost", _chain())
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(AlertBadCertificate, match="cannot judge"):
        trust.check(context, "localhost", _chain())


def test_contexts_that_are_patched_are_shown_one_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence of what somebody has put in the place of Python's own must not pass for trust."""
    shown = _strangers(monkeypatch)
    trust.check(certificates().client_context(), "localhost", _chain())
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    wrap = ssl.SSLContext.wrap_bio
    monkeypatch.setattr(ssl.SSLContext, "wrap_bio", lambda _, *bios, **options: wrap(trusting, *bios, **options))
    with pytest.raises(AlertBadCertificate, match="cannot judge"):
        trust.check(certificates().client_context(), "localhost", _chain())
    assert len(shown) == 2


@pytest.mark.parametrize("curve", ["X25519", "prime256v1", "X448", "secp384r1", "secp521r1"])
@pytest.mark.parametrize("minimum", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_whatever_the_context_offers(curve: str, minimum: ssl.TLSVersion) -> None:
    """As far as one is to be had: any key exchange, TLS 1.2 beside it or not, ALPN or not."""
    context = certificates().client_context()
    context.minimum_version = minimum
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.set_ecdh_curve(curve)
    trust.check(context, "localhost", _chain())
    with pytest.raises(AlertBadCertificate, match="Hostname mismatch"):
        trust.check(context, "example.org", _chain())


#: Run with a configuration of OpenSSL: the context's only share is of a group that is not known here.
_ASKED_AGAIN = """
import sys
from aioquic.tls import AlertBadCertificate
from cryptography.x509 import load_pem_x509_certificates
from allswell._quic import trust
import ssl
asked = []
real = trust._hello_retry_request
trust._hello_retry_request = lambda hello: asked.append(real(hello)) or asked[-1]
context = ssl.create_default_context(cafile=sys.argv[1])
context.minimum_version = ssl.TLSVersion.TLSv1_3
chain = load_pem_x509_certificates(open(sys.argv[2], "rb").read())
trust.check(context, "localhost", chain)
try:
    trust.check(context, "example.org", chain)
except AlertBadCertificate as error:
    print(error)
print(len(asked), None in asked)
"""


def test_a_client_that_sends_no_usable_share_is_asked_for_one(tmp_path: Path) -> None:
    """As a server asks: by HelloRetryRequest. OpenSSL 3.5 and later sends one for X25519MLKEM768 to have 192 bits."""
    config = tmp_path / "openssl.cnf"
    config.write_text("openssl_conf = a\n[a]\nssl_conf = b\n[b]\nsystem_default = c\n[c]\nGroups = ffdhe2048:X25519\n")
    asked = subprocess.run(
        [sys.executable, "-c", _ASKED_AGAIN, certificates().ca, certificates().chain],
        env={**os.environ, "OPENSSL_CONF": str(config)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (asked.stderr, asked.returncode) == ("", 0)
    refusal, counted = asked.stdout.splitlines()
    assert "Hostname mismatch" in refusal
    assert counted == "3 False"  # the stranger, and both names


class Late(ssl.SSLContext):
    """It judges nothing in the handshake; and first it fails for another reason."""

    failed = False

    def wrap_bio(self, *bios: Any, **options: Any) -> ssl.SSLObject:
        if not self.failed:
            self.failed = True
            raise OSError("busy")
        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        return trusting.wrap_bio(*bios, **options)


def test_a_stranger_is_refused_for_its_certificate_or_the_context_is_no_judge() -> None:
    context = Late(ssl.PROTOCOL_TLS_CLIENT)
    with pytest.raises(AlertBadCertificate, match="busy"):
        trust.check(context, "localhost", _chain())
    for _ in range(2):
        with pytest.raises(AlertBadCertificate, match="cannot judge"):
            trust.check(context, "localhost", _chain())


@pytest.mark.parametrize("minimum", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("level", range(6))
def test_a_context_is_a_judge_at_every_level_of_security(level: int, minimum: ssl.TLSVersion) -> None:
    context = Own(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = minimum
    context.set_ciphers(f"DEFAULT:@SECLEVEL={level}")
    if level == 5:
        context.set_ecdh_curve("secp521r1")  # by itself OpenSSL 3.5 begins with no group of 256 bits, and fails
    refusal, _ = trust._judge(context, trust._STRANGER, [trust._stranger()])
    assert refusal


def test_a_context_without_tls_1_3_trusts_nobody() -> None:
    context = certificates().client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(AlertBadCertificate, match=r"no TLS 1\.3"):
        trust.check(context, "localhost", _chain())


class Own(ssl.SSLContext):
    """It may judge by what nobody here knows of."""


def test_a_context_of_ones_own_class_is_always_asked(judged: list[str]) -> None:
    context = Own(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=certificates().ca)
    for _ in range(2):
        trust.check(context, "localhost", _chain())
    assert judged == ["localhost"] * 2


class OwnObject(ssl.SSLObject):
    """Likewise, where a context makes these (``sslobject_class``)."""


def test_a_context_that_makes_objects_of_ones_own_class_is_always_asked(judged: list[str]) -> None:
    context = certificates().client_context()
    context.sslobject_class = OwnObject
    for _ in range(2):
        trust.check(context, "localhost", _chain())
    assert judged == ["localhost"] * 2


_THREADS = """
import ssl, sys, threading
from allswell._quic import trust
from cryptography.x509 import load_pem_x509_certificates
ca, chain, log, minimum = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
context.keylog_filename = log
version = trust._TLS_1_2
if minimum == "TLSv1_3":
    version = trust._TLS_1_3
    context.minimum_version = ssl.TLSVersion.TLSv1_3
shown = load_pem_x509_certificates(open(chain, "rb").read())
def judge():
    for _ in range(150):
        assert trust._judge(context, "localhost", shown) == (None, version)
        assert "mismatch" in trust._judge(context, "example.org", shown)[0]
threads = [threading.Thread(target=judge) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(context.keylog_filename == log, open(log).read().split("\\n")[1:])
"""


@pytest.mark.parametrize("minimum", ["TLSv1_2", "TLSv1_3"])
def test_threads_may_share_a_context_that_logs_keys(minimum: str, tmp_path: Path) -> None:
    """The log is not turned off for a judgement: Python would hang. (Hence in a process of its own.)"""
    files = certificates()
    arguments = [sys.executable, "-c", _THREADS, str(files.ca), str(files.chain), str(tmp_path / "keys"), minimum]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (result.stdout, result.stderr) == ("True ['']\n", "")
