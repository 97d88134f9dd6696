"""Pins: the public keys that the servers of some hosts may have, whoever issued their certificates (RFC 7469's form).

A pin is of the server's own certificate, the first that it shows, as with curl's ``--pinnedpubkey``. Nothing above it
counts: a server may show any certificates besides those that lead to an authority, and a pin of an authority would let
in whatever else that one issues.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Collection, Mapping
from hashlib import sha256

from allswell._errors import ConnectFailed, PinMismatch
from allswell._given import as_host, as_host_given

_PREFIX = "sha256//"

#: Looks at a server's certificate (DER); raises :class:`PinMismatch`.
PinCheck = Callable[[bytes], None]


def read_pins(given: Mapping[str, str | Collection[str]]) -> Mapping[str, frozenset[str]]:
    """Pins by host, with each host as it is compared.

    :param given: by host name (or address): ``"sha256//…"``, or several of those.
    :raises ValueError: for what is no pin, and for a host without any.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"pins: {type(given).__name__} was given, and a mapping of hosts to pins is wanted here")
    found: dict[str, frozenset[str]] = {}
    for host, pins in given.items():
        try:
            name = as_host_given(host)
        except ValueError as error:
            raise ValueError(f"pins: {error}") from error
        each = frozenset(_pin(host, pin) for pin in ([pins] if isinstance(pins, str) else pins))
        if not each:
            raise ValueError(f"pins: {host} has none, so that no server of it would be accepted")
        found[name] = each
    return found


def _pin(host: str, pin: object) -> str:
    try:
        if isinstance(pin, str) and pin.startswith(_PREFIX):
            digest = b64decode(pin.removeprefix(_PREFIX), validate=True)
            if len(digest) == sha256().digest_size:
                return _PREFIX + b64encode(digest).decode("ascii")
    except ValueError:
        pass  # it is told below
    raise ValueError(f"pins: {pin!r}, for {host}, is no pin: 'sha256//', and a SHA-256 in base64")


def pin_of(certificate: bytes) -> str:
    """The pin of a certificate (DER): the SHA-256 of its SubjectPublicKeyInfo."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    from cryptography.x509 import load_der_x509_certificate

    key = load_der_x509_certificate(certificate).public_key()
    digest = sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    return _PREFIX + b64encode(digest).decode("ascii")


def pin_check(pins: Mapping[str, str | Collection[str]], *hosts: str) -> PinCheck | None:
    """What must look at the certificate of a server that is these hosts at once; ``None`` where none of them has pins.

    :param pins: as :func:`read_pins` returns them.
    :raises ConnectFailed: where a host is none.
    """
    if not pins:
        return None
    try:
        wanted = {host: pins[name] for host in hosts if (name := as_host(host)) in pins}
    except ValueError as error:
        raise ConnectFailed(f"whose key is pinned cannot be told: {error}", phase="tls", by="us") from error
    if not wanted:
        return None

    from cryptography.exceptions import UnsupportedAlgorithm

    def check(certificate: bytes) -> None:
        try:
            seen = pin_of(certificate)
        except (ValueError, UnsupportedAlgorithm) as error:
            host = next(iter(wanted))
            raise PinMismatch(f"the key of {host} cannot be read: {error}", host=host, seen="") from error
        for host, allowed in wanted.items():
            if seen not in allowed:
                raise PinMismatch(f"the key of {host} is {seen}, which is none of its pins", host=host, seen=seen)

    return check
