"""Which origins offer HTTP/3 by Alt-Svc (RFC 7838), and where."""

from __future__ import annotations

import re
from collections.abc import Sequence
from time import time

from allswell._alt_svc_store import Alternative, AltSvcStore
from allswell._clock import monotonic
from allswell._dial.alt_svc_store import AltSvcMemory
from allswell._dial.origin_memory import NOTHING_HEARD, OriginMemory
from allswell._request.route import Endpoint, Route

_ENTRY = re.compile(r'\s*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)="([^"]*)"((?:\s*;\s*[\w-]+=(?:"[^"]*"|[^\s;,"]*))*)\s*(?:,|$)')
_MAX_AGE = re.compile(r";\s*ma=\"?(\d{1,9})\"?")
_PERSIST = re.compile(r";\s*persist=\"?1\"?(?:\s*;|\s*$)")
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]")
_DAY = 24 * 60 * 60

#: How many alternatives of one origin are kept (the first ones), and how many bytes of a field are read.
_PER_ORIGIN = 4
_FIELD = 4096

#: After so many seconds at most, the same field is read again.
_AGAIN = 600.0


class AltSvc:
    """What a pool has learnt of alternatives.

    :param memory: the records of origins.
    :param store: keeps the alternatives; by default only as long as the pool.
    """

    def __init__(self, memory: OriginMemory, store: AltSvcStore | None = None) -> None:
        self._memory = memory
        self._store: AltSvcStore = store if store is not None else AltSvcMemory()

    def learn(self, route: Route, field: bytes, age: float = 0.0) -> None:
        """Read an Alt-Svc field (RFC 7838 §3). It replaces what was known. ``clear`` forgets that.

        :param age: the age of the response (its Age field), in seconds. The alternatives have the same age (§3.1).
        """
        # Servers send the same field with every response, so it is not read each time.
        origin = self._memory.of(route)
        known, until = origin.alt_svc
        now = monotonic()
        if known == field and now < until:
            return
        alternatives = _alternatives(field, route.host, time() - age)
        self._store.put(route.origin, alternatives)
        fresh = min((each.expires - time() for each in alternatives), default=_AGAIN)
        origin.alt_svc = (field, now + min(_AGAIN, fresh / 2))

    def alternatives(self, route: Route) -> Sequence[Endpoint]:
        """The endpoints where the origin offers HTTP/3, in its order of preference."""
        now = time()
        known = [each for each in self._store.get(route.origin) if each.expires > now]
        return [Endpoint(each.host, each.port, alternative=True) for each in known]

    def forget(self, route: Route) -> None:
        """Forget the origin's alternatives: one of them has answered 421 (RFC 7838 §6)."""
        self._memory.of(route).alt_svc = NOTHING_HEARD
        self._store.put(route.origin, ())

    def network_changed(self) -> None:
        """Forget the alternatives that hold only for the old network: all without ``persist`` (RFC 7838 §2.2)."""
        for origin in self._store.origins():
            known = self._store.get(origin)
            lasting = [each for each in known if each.persist]
            if len(lasting) < len(known):
                self._store.put(origin, lasting)

    def flush(self) -> None:
        """Have the store written: the pool closes."""
        self._store.flush()


def _alternatives(field: bytes, host: str, since: float) -> list[Alternative]:
    """The alternatives for HTTP/3, in order. If a part does not parse, only the parts before it count."""
    text = field[:_FIELD].decode("latin-1").strip()
    found: list[Alternative] = []
    position = 0
    while len(found) < _PER_ORIGIN and (match := _ENTRY.match(text, position)):
        position = match.end()
        protocol, where, parameters = match.groups()
        name, _, port = where.rpartition(":")
        if protocol != "h3" or not (port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 1 << 16):
            continue
        if name and not _HOST.fullmatch(name):
            continue
        age = _MAX_AGE.search(parameters)
        seconds = int(age.group(1)) if age else _DAY
        if seconds:
            persist = _PERSIST.search(parameters) is not None
            found.append(Alternative(name.strip("[]").lower() or host, int(port), since + seconds, persist))
    return found
