"""Pins: the public keys that the servers of some hosts may have. They are written as in RFC 7469.

A pin is compared with the key of the server's own certificate, the first in its chain, as with curl's
``--pinnedpubkey``. The rest of the chain is not looked at, for two reasons: a server may add any certificate to it, and
a pin of an authority would accept every certificate that the authority issues.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Collection, Mapping
from hashlib import sha256

from allswell._errors import ConnectFailed, PinMismatch
from allswell._given import as_host, by_host

_PREFIX = "sha256//"

#: Checks a server's certificate (DER). It raises :class:`PinMismatch`.
PinCheck = Callable[[bytes], None]


def read_pins(given: Mapping[str, str | Collection[str]]) -> Mapping[str, frozenset[str]]:
    """Check the setting ``pins``, and bring it into the form that is compared.

    :param given: for each host name or address, one pin ``"sha256//…"`` or several.
    :return: the pins by host, each host as :func:`as_host` has it.
    :raises TypeError: if it is not a mapping.
    :raises ValueError: if a pin or a host is not valid, or a host has no pin, or is there in two spellings.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"pins must be a mapping of hosts to pins, not {type(given).__name__}")
    found: dict[str, frozenset[str]] = {}
    try:
        entries = list(by_host(given))
    except ValueError as error:
        raise ValueError(f"pins: {error}") from error
    for name, host, pins in entries:
        each = frozenset(_pin(host, pin) for pin in ([pins] if isinstance(pins, str) else pins))
        if not each:
            raise ValueError(f"pins: {host} has no pin, so none of its servers would be accepted")
        found[name] = each
    return found


def _pin(host: str, pin: object) -> str:
    try:
        if isinstance(pin, str) and pin.startswith(_PREFIX):
            digest = b64decode(pin.removeprefix(_PREFIX), validate=True)
            if len(digest) == sha256().digest_size:
                return _PREFIX + b64encode(digest).decode("ascii")
    except ValueError:
        pass  # raised below
    raise ValueError(f"pins: {pin!r}, for {host}, is not a pin: 'sha256//' and a SHA-256 hash in base64")


def pin_of(certificate: bytes) -> str:
    """The pin of a certificate (DER): the SHA-256 of its SubjectPublicKeyInfo."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    from cryptography.x509 import load_der_x509_certificate

    key = load_der_x509_certificate(certificate).public_key()
    digest = sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    return _PREFIX + b64encode(digest).decode("ascii")


def pin_check(pins: Mapping[str, str | Collection[str]], *hosts: str) -> PinCheck | None:
    """Make the check for a server that must be allowed to serve all these hosts; ``None`` if none of them has pins.

    :param pins: as :func:`read_pins` returns them.
    :raises ConnectFailed: if a host is not a valid name.
    """
    if not pins:
        return None
    try:
        wanted = {host: pins[name] for host in hosts if (name := as_host(host)) in pins}
    except ValueError as error:
        raise ConnectFailed(f"cannot look up the pins of the host: {error}", phase="tls", by="us") from error
    if not wanted:
        return None

    from cryptography.exceptions import UnsupportedAlgorithm

    def check(certificate: bytes) -> None:
        try:
            seen = pin_of(certificate)
        except (ValueError, UnsupportedAlgorithm) as error:
            host = next(iter(wanted))
            raise PinMismatch(f"cannot read the key of {host}: {error}", host=host, seen="") from error
        for host, allowed in wanted.items():
            if seen not in allowed:
                raise PinMismatch(f"the key of {host} is {seen}, which is none of its pins", host=host, seen=seen)

    return check
