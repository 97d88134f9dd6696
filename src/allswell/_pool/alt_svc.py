"""Which origins offer HTTP/3, where and until when; and which of these offers are broken for now (RFC 7838)."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from time import monotonic

_ENTRY = re.compile(r'\s*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)="([^"]*)"((?:\s*;\s*[\w-]+=(?:"[^"]*"|[^\s;,"]*))*)\s*(?:,|$)')
_MAX_AGE = re.compile(r";\s*ma=\"?(\d{1,9})\"?")
_DAY = 24 * 60 * 60
_ORIGINS = 4096

#: Back-off after a failure: seconds, doubled each time up to the second number.
_BROKEN_FOR, _BROKEN_AT_MOST = 5.0, 300.0


@dataclass(slots=True)
class Offer:
    """HTTP/3 for one origin: where, and until which instant of :func:`time.monotonic`."""

    host: str
    port: int
    until: float


class AltSvc:
    """What a pool has learnt about its origins. Bounded; the least recently used are forgotten."""

    def __init__(self) -> None:
        self._offers: OrderedDict[str, Offer] = OrderedDict()
        self._broken: OrderedDict[str, tuple[int, float]] = OrderedDict()  # failures in a row, and broken until when

    def learn(self, origin: str, host: str, field: bytes) -> None:
        """Take in an Alt-Svc field (RFC 7838 §3): it replaces what was known; ``clear`` forgets it."""
        text = field.decode("latin-1").strip()
        self._offers.pop(origin, None)
        if text == "clear":
            return
        position = 0
        while match := _ENTRY.match(text, position):
            position = match.end()
            protocol, where, parameters = match.groups()
            alternative, _, port = where.rpartition(":")
            if protocol != "h3" or not port.isdecimal() or not 0 < int(port) < 65536:
                continue
            age = _MAX_AGE.search(parameters)
            seconds = int(age.group(1)) if age else _DAY
            if seconds:
                self._offers[origin] = Offer(alternative.strip("[]") or host, int(port), monotonic() + seconds)
                if len(self._offers) > _ORIGINS:
                    self._offers.popitem(last=False)
            return

    def offer(self, origin: str) -> Offer | None:
        """Where the origin offers HTTP/3, unless that has expired."""
        offer = self._offers.get(origin)
        if offer is not None and offer.until <= monotonic():
            del self._offers[origin]
            return None
        return offer

    def broken(self, origin: str) -> bool:
        """Whether QUIC to it failed so recently that it is not worth another try yet."""
        return origin in self._broken and monotonic() < self._broken[origin][1]

    def failed(self, origin: str) -> None:
        """QUIC failed: leave it for a while, longer each time."""
        failures = self._broken.pop(origin, (0, 0.0))[0] + 1
        pause = min(_BROKEN_AT_MOST, _BROKEN_FOR * 2 ** (failures - 1))
        self._broken[origin] = (failures, monotonic() + pause)
        if len(self._broken) > _ORIGINS:
            self._broken.popitem(last=False)

    def worked(self, origin: str) -> None:
        """QUIC worked: all is forgiven."""
        self._broken.pop(origin, None)
