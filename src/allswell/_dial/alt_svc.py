"""Which origins offer HTTP/3 by Alt-Svc (RFC 7838), and where; and which of all such offers are broken for now."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from time import time

from allswell._alt_svc_store import Alternative, AltSvcStore
from allswell._clock import monotonic
from allswell._dial.alt_svc_store import AltSvcMemory
from allswell._request.route import Endpoint

_ENTRY = re.compile(r'\s*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)="([^"]*)"((?:\s*;\s*[\w-]+=(?:"[^"]*"|[^\s;,"]*))*)\s*(?:,|$)')
_MAX_AGE = re.compile(r";\s*ma=\"?(\d{1,9})\"?")
_PERSIST = re.compile(r";\s*persist=\"?1\"?(?:\s*;|\s*$)")
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]")
_DAY = 24 * 60 * 60
_ORIGINS = 4096

#: Alternatives of one origin that are kept, the first ones; and bytes of a field that are read.
_PER_ORIGIN = 4
_FIELD = 4096

#: Seconds after which the same field is taken in again, at the latest.
_AGAIN = 600.0

#: Back-off after a failure: seconds, doubled each time up to the second number.
_BROKEN_FOR, _BROKEN_AT_MOST = 5.0, 300.0


class AltSvc:
    """What a pool has learnt from its origins. Bounded; the least recently used are forgotten.

    :param store: where it is kept; the pool's memory by default.
    """

    def __init__(self, store: AltSvcStore | None = None) -> None:
        self._store: AltSvcStore = store if store is not None else AltSvcMemory()
        self._fields: OrderedDict[str, tuple[bytes, float]] = OrderedDict()  # the last one, and until when it is news

    def learn(self, origin: str, host: str, field: bytes, age: float = 0.0) -> None:
        """Take in an Alt-Svc field (RFC 7838 §3): it replaces what was known; ``clear`` forgets it.

        :param host: the origin's: alternatives that name none are there.
        :param age: the response's (its Age field), in seconds: the alternatives are as old (§3.1).
        """
        # Servers send the same field with every response.
        known = self._fields.get(origin)
        now = monotonic()
        if known is not None and known[0] == field and now < known[1]:
            return
        alternatives = _alternatives(field, host, time() - age)
        self._store.put(origin, alternatives)
        fresh = min((each.expires - time() for each in alternatives), default=_AGAIN)
        self._fields[origin] = (field, now + min(_AGAIN, fresh / 2))
        self._fields.move_to_end(origin)
        if len(self._fields) > _ORIGINS:
            self._fields.popitem(last=False)

    def alternatives(self, origin: str) -> Sequence[Endpoint]:
        """Where the origin offers HTTP/3, in its order of preference."""
        now = time()
        known = [each for each in self._store.get(origin) if each.expires > now]
        return [Endpoint(each.host, each.port, alternative=True) for each in known]

    def forget(self, origin: str) -> None:
        """An alternative said that it is none (RFC 7838 §6)."""
        self._fields.pop(origin, None)
        self._store.put(origin, ())

    def network_changed(self) -> None:
        """Forget the alternatives that were for the network as it was: all without ``persist`` (RFC 7838 §2.2)."""
        self._fields.clear()
        for origin in self._store.origins():
            known = self._store.get(origin)
            lasting = [each for each in known if each.persist]
            if len(lasting) < len(known):
                self._store.put(origin, lasting)

    def flush(self) -> None:
        """The pool closes."""
        self._store.flush()


def _alternatives(field: bytes, host: str, since: float) -> list[Alternative]:
    """The alternatives for HTTP/3, in order. What does not parse ends the field: what came before it counts."""
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


class BrokenMarks:
    """Where QUIC failed so recently that it is not worth another try yet. Keys are an endpoint and whom it served."""

    def __init__(self) -> None:
        self._marks: OrderedDict[tuple[str, str, int], tuple[int, float]] = (
            OrderedDict()
        )  # failures in a row; until when

    def broken(self, label: str, endpoint: Endpoint) -> bool:
        """Whether it is to be left alone for now."""
        mark = self._marks.get((label, endpoint.host, endpoint.port))
        return mark is not None and monotonic() < mark[1]

    def failed(self, label: str, endpoint: Endpoint) -> None:
        """QUIC failed: leave it for a while, longer each time."""
        key = label, endpoint.host, endpoint.port
        failures = self._marks.pop(key, (0, 0.0))[0] + 1
        pause = min(_BROKEN_AT_MOST, _BROKEN_FOR * 2 ** min(failures - 1, 16))
        self._marks[key] = (failures, monotonic() + pause)
        if len(self._marks) > _ORIGINS:
            self._marks.popitem(last=False)

    def worked(self, label: str, endpoint: Endpoint) -> None:
        """QUIC worked: all is forgiven."""
        self._marks.pop((label, endpoint.host, endpoint.port), None)

    def forget(self) -> None:
        """The network has changed: what did not work may work now."""
        self._marks.clear()
