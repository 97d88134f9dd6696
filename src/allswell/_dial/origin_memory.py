"""What a pool learns of each origin from dealing with it: one record of each, all bounded here.

A record is a route's: the same server, reached another way, may behave otherwise. The least recently used are
forgotten. (Where alternatives are kept is the user's choice: `alt_svc_store.py`. What DNS says is not learnt but asked
for, and has a lifetime of its own: `lookups.py`.)
"""

from __future__ import annotations

import math
from collections import OrderedDict

from allswell._backends.stream_limit import StreamLimit
from allswell._clock import monotonic
from allswell._connection.service import Service
from allswell._filters.goodbye_timeout import GoodbyeTimeout
from allswell._request.route import Endpoint, Route

#: Records that are kept; and in each, endpoints where QUIC failed.
_RECORDS, _ENDPOINTS = 4096, 16

#: Back-off after a failure of QUIC: seconds, doubled each time up to the second number.
_BROKEN_FOR, _BROKEN_AT_MOST = 5.0, 300.0

#: No Alt-Svc field yet.
NOTHING_HEARD = (b"", -math.inf)


class Origin:
    """What was learnt of one route's end.

    :ivar tls: how it answers a close_notify.
    :ivar tcp: how it answers a FIN.
    :ivar streams: how many streams it allows over HTTP/2.
    :ivar service: what it served.
    :ivar alt_svc: the last Alt-Svc field that it sent, and until when (monotonic) the same one is no news.
    :ivar quic: where QUIC to it failed.
    :ivar early_data: whether 0-RTT is worth a try. It wins every race, so where it was left without an answer it is
        not, until a handshake succeeds.
    :ivar http2: a proxy's: whether it may speak HTTP/2. One that was asked and does not is asked no more.
    :ivar extended_connect: by protocol (``b"websocket"``), whether it goes by extended CONNECT: what was tried.
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
        """How many exchanges a connection that multiplexes is likely to take."""
        return max(1, int(min(self.streams.value, self.service.takes)))

    def ignores_early_data(self) -> None:
        """It left 0-RTT without an answer."""
        self.early_data = False

    def network_changed(self) -> None:
        """Forget what was true of the network rather than of the origin."""
        self.alt_svc = NOTHING_HEARD
        self.quic.forget()


class BrokenMarks:
    """Where QUIC failed so recently that it is not worth another try yet."""

    __slots__ = ("_marks",)

    def __init__(self) -> None:
        #: By host and port: failures in a row, and until when to leave it alone.
        self._marks: OrderedDict[tuple[str, int], tuple[int, float]] = OrderedDict()

    def broken(self, endpoint: Endpoint) -> bool:
        """Whether it is to be left alone for now."""
        mark = self._marks.get((endpoint.host, endpoint.port))
        return mark is not None and monotonic() < mark[1]

    def failed(self, endpoint: Endpoint) -> None:
        """QUIC failed: leave it for a while, longer each time."""
        key = endpoint.host, endpoint.port
        failures = self._marks.pop(key, (0, 0.0))[0] + 1
        pause = min(_BROKEN_AT_MOST, _BROKEN_FOR * 2 ** min(failures - 1, 16))
        self._marks[key] = (failures, monotonic() + pause)
        if len(self._marks) > _ENDPOINTS:
            self._marks.popitem(last=False)

    def worked(self, endpoint: Endpoint) -> None:
        """QUIC worked: all is forgiven."""
        self._marks.pop((endpoint.host, endpoint.port), None)

    def forget(self) -> None:
        """What did not work may work now."""
        self._marks.clear()


class OriginMemory:
    """The records of one pool."""

    def __init__(self) -> None:
        self._records: OrderedDict[Route, Origin] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def of(self, route: Route) -> Origin:
        """What is known of the route's end; an empty record, where that is nothing yet."""
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
