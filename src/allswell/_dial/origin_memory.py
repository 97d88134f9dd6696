"""What a pool learns of each origin: one record for each route, all of limited size.

The same server may behave otherwise on another route, so each route has its record. The least recently used are
forgotten. (Alternative services are kept where the user chooses: `alt_svc_store.py`. Answers of DNS have their own
lifetimes: `lookups.py`, `https_records.py`.)
"""

from __future__ import annotations

import math
from collections import OrderedDict

from allswell._backends.stream_limit import StreamLimit
from allswell._clock import monotonic
from allswell._connection.service import Service
from allswell._filters.goodbye_timeout import GoodbyeTimeout
from allswell._request.route import Endpoint, Route

#: How many records are kept, and how many endpoints where QUIC failed in each.
_RECORDS, _ENDPOINTS = 4096, 16

#: For how many seconds QUIC is not tried after a failure. It is doubled each time, up to the second number.
_BROKEN_FOR, _BROKEN_AT_MOST = 5.0, 300.0

#: No Alt-Svc field yet.
NOTHING_HEARD = (b"", -math.inf)


class Origin:
    """What was learnt of the end of one route.

    :ivar tls: how it answers a close_notify.
    :ivar tcp: how it answers a FIN.
    :ivar streams: how many streams it allows over HTTP/2.
    :ivar service: how much it has served over all connections.
    :ivar alt_svc: the last Alt-Svc field that it sent, and until when (monotonic) the same field need not be read.
    :ivar quic: the endpoints where QUIC failed.
    :ivar early_data: whether 0-RTT may be tried. It wins every race at once. So if it got no answer, it is not tried
        again until a handshake succeeds.
    :ivar http2: for a proxy: whether it may speak HTTP/2. If it has chosen HTTP/1.1, it is not asked again.
    :ivar extended_connect: whether extended CONNECT works, for each protocol that was tried (``b"websocket"``).
    """

    __slots__ = ("alt_svc", "early_data", "extended_connect", "http2", "quic", "service", "streams", "tcp", "tls")

    def __init__(self) -> None:
        self.tls = GoodbyeTimeout()
        self.tcp = GoodbyeTimeout()
        self.streams = StreamLimit()
        self.service = Service()
        self.alt_svc = NOTHING_HEARD
        self.quic = BrokenMarks()
        self.early_data = True
        self.http2 = True
        self.extended_connect: dict[bytes, bool] = {}

    @property
    def takes(self) -> int:
        """How many exchanges a connection will probably take at once, if it multiplexes."""
        return max(1, int(min(self.streams.taken, self.service.takes)))

    def ignores_early_data(self) -> None:
        """Note that 0-RTT got no answer."""
        self.early_data = False

    def network_changed(self) -> None:
        """Forget what was about the network and not about the origin."""
        self.alt_svc = NOTHING_HEARD
        self.quic.forget()


class BrokenMarks:
    """The endpoints where QUIC failed so recently that it is not tried again yet."""

    __slots__ = ("_marks",)

    def __init__(self) -> None:
        #: By host and port: the number of failures in a row, and until when QUIC is not tried.
        self._marks: OrderedDict[tuple[str, int], tuple[int, float]] = OrderedDict()

    def broken(self, endpoint: Endpoint) -> bool:
        """Whether QUIC must not be tried there now."""
        mark = self._marks.get((endpoint.host, endpoint.port))
        return mark is not None and monotonic() < mark[1]

    def failed(self, endpoint: Endpoint) -> None:
        """QUIC failed there. Do not try it for a while, each time longer."""
        key = endpoint.host, endpoint.port
        failures = self._marks.pop(key, (0, 0.0))[0] + 1
        pause = min(_BROKEN_AT_MOST, _BROKEN_FOR * 2 ** min(failures - 1, 16))
        self._marks[key] = (failures, monotonic() + pause)
        if len(self._marks) > _ENDPOINTS:
            self._marks.popitem(last=False)

    def worked(self, endpoint: Endpoint) -> None:
        """QUIC worked there. Forget its failures."""
        self._marks.pop((endpoint.host, endpoint.port), None)

    def forget(self) -> None:
        """Forget all failures."""
        self._marks.clear()


class OriginMemory:
    """The records of one pool."""

    def __init__(self) -> None:
        self._records: OrderedDict[Route, Origin] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def of(self, route: Route) -> Origin:
        """The record of a route's end. It is made if there is none yet."""
        record = self._records.get(route)
        if record is None:
            record = self._records[route] = Origin()
            if len(self._records) > _RECORDS:
                self._records.popitem(last=False)
        else:
            self._records.move_to_end(route)
        return record

    def network_changed(self) -> None:
        """See :meth:`Origin.network_changed`."""
        for record in self._records.values():
            record.network_changed()
