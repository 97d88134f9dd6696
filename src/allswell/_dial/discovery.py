"""Finds where an origin offers its service, over QUIC and over TCP: by settings, Alt-Svc fields and DNS.

HTTP/3 is tried where the settings name the origin, then where its Alt-Svc fields (`alt_svc.py`) and its HTTPS records
(`https_records.py`) offer it, but not where it has just failed. TCP goes where the records say, and last to the origin
itself. Any server that answers must have a certificate of the origin. For a proxy only the proxy's settings count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import anyio

from allswell._addresses import SocketAddress
from allswell._clock import monotonic
from allswell._config import PoolConfig
from allswell._deadline import Deadline
from allswell._dial.addresses import families
from allswell._dial.alt_svc import AltSvc
from allswell._dial.lookups import Lookups
from allswell._dial.origin_memory import OriginMemory
from allswell._errors import ConnectFailed
from allswell._messages import ResponseHead
from allswell._request.route import Endpoint, Route
from allswell._tasks import TaskHost

if TYPE_CHECKING:
    from allswell._dial.https_records import HttpsRecords, Services

#: How many endpoints one dial tries over QUIC.
_AT_MOST = 4

#: How many seconds cancelled lookups have to end, even if a pool closes at once.
_LAST_MOMENT = 0.1


class Ways(NamedTuple):
    """Endpoints to try, in order."""

    quic: Sequence[Endpoint]
    tcp: Sequence[Endpoint]

    def besides(self, tried: Ways) -> Ways:
        """The endpoints of these that were not tried yet."""
        ways = [[each for each in ours if each not in theirs] for ours, theirs in zip(self, tried, strict=True)]
        return Ways(*ways)


class Discovery:
    """What one pool knows of its origins.

    :param memory: the records of origins.
    :ivar lookups: looks up their addresses.
    :ivar alt_svc: knows their Alt-Svc fields.
    """

    def __init__(self, host: TaskHost, config: PoolConfig, memory: OriginMemory, lookups: Lookups) -> None:
        self._config = config
        self._memory = memory
        self.lookups = lookups
        self.alt_svc = AltSvc(memory, config.alt_svc)
        self._records: HttpsRecords | None = None
        if config.https_records:
            # Imported late: it needs an extra.
            from allswell._dial.https_records import HttpsRecords

            self._records = HttpsRecords(host, config.nameservers, lookups, config.resolver)

    async def find(
        self,
        route: Route,
        *,
        datagrams: bool,
        patient: bool = False,
        around: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> Ways:
        """The endpoints for a dial.

        :param datagrams: whether the route's way can carry datagrams.
        :param patient: whether to wait for HTTPS records as long as they take.
        :param around: makes a context in which HTTPS records are waited for.
        :raises ConnectFailed: if only HTTP/3 is allowed, and the route cannot have it.
        """
        config, hop = self._config, route.proxy
        http3 = config.http3 if hop is None else hop.http3
        quic = route.scheme == "https" and not route.upgrades and datagrams and config.uds is None
        if http3 == "only" and not quic:
            needs = "it needs https, UDP all the way, no Upgrade and no uds"
            message = f"{route.label}: HTTP/3 only is set, and this request cannot use HTTP/3: {needs}"
            raise ConnectFailed(message, phase="quic", by="us")
        services = await self._services(route, patient, around)
        here = Endpoint(route.host, route.port)
        over_quic: Sequence[Endpoint] = ()
        if http3 and quic:
            offered = [service.endpoint for service in services if b"h3" in service.alpn]
            if http3 == "only":
                return Ways(_different([*offered, here])[:_AT_MOST], ())
            known = [here] if hop is not None or route.origin in config.http3_origins else []
            alternatives = self.alt_svc.alternatives(route) if hop is None else ()
            offers = _different([*known, *alternatives, *offered])
            marks = self._memory.of(route).quic
            over_quic = [each for each in offers if not marks.broken(each)]
        spoken = {b"http/1.1"} if config.http1 else set()
        if config.http2 and not (route.upgrades and config.http1):
            spoken.add(b"h2")
        over_tcp = _different([*(each.endpoint for each in services if each.alpn & spoken), here])
        return Ways(over_quic[:_AT_MOST], over_tcp)

    async def destinations(self, route: Route) -> dict[str, set[SocketAddress]]:
        """The socket addresses to which a dial for a route without proxies would go, by the version of HTTP.

        (The dial asks for the same again, and gets the answers at once.)
        """
        quic, tcp = await self.find(route, datagrams=True)
        return {"HTTP/3": await self._addresses(quic), "HTTP/2": await self._addresses(tcp)}

    async def _addresses(self, endpoints: Iterable[Endpoint]) -> set[SocketAddress]:
        found: set[SocketAddress] = set()

        async def look(host: str, port: int, family: int) -> None:
            with suppress(OSError):  # the dial will ask again, and raise the error
                found.update(address for _, address in await self.lookups.addresses(host, port, family))

        async with anyio.create_task_group() as tasks:
            for host, port, *_ in endpoints:
                for family in families(host, self._config.local_address):
                    tasks.start_soon(look, host, port, family)
        return found

    async def _services(
        self, route: Route, patient: bool, around: Callable[[], AbstractContextManager[object]]
    ) -> Services:
        """The services that HTTPS records name. There are none through a proxy, which resolves names itself."""
        elsewhere = route.proxies or route.proxy is not None or route.for_tunnels or self._config.uds is not None
        if self._records is None or route.scheme != "https" or elsewhere:
            return ()
        wanted = families(route.host, self._config.local_address)
        addresses = partial(self.lookups.any_address, route.host, route.port, wanted)
        try:
            with around():
                found = await self._records.find(route.host, route.port, None if patient else addresses)
        except BaseException:
            self.lookups.leave(route.host)  # the dial ends here, and will not ask for addresses
            raise
        if self._config.resolver is None:
            return found
        # Only the settings' resolver knows the addresses of names. So hints are dropped.
        return tuple(each._replace(endpoint=each.endpoint._replace(hints=())) for each in found)

    def heard(self, route: Route, head: ResponseHead) -> None:
        """Note the alternatives in the fields of a response."""
        fields: list[bytes] = []
        age = 0.0
        for name, value in head.headers:
            lower = name.lower()
            if lower == b"alt-svc":
                fields.append(value)
            elif lower == b"age" and value.isdigit():
                age = float(value[:9])
        if fields and head.status != 421:  # RFC 7838 §6
            self.learn(route, b", ".join(fields), age)

    def learn(self, route: Route, field: bytes, age: float = 0.0) -> None:
        """Note an Alt-Svc field of a response (RFC 7838 §3), or of an ALTSVC frame (§4)."""
        if self._config.http3 is True and route.scheme == "https" and route.proxy is None:
            self.alt_svc.learn(route, field, age)

    def network_changed(self) -> None:
        """Forget what was learnt on the old network."""
        self._call_off()
        self.alt_svc.network_changed()
        self._memory.network_changed()

    async def aclose(self, deadline: Deadline) -> None:
        """The pool closes: write down what was learnt, and cancel lookups.

        :param deadline: how long to wait for the ends of lookups. (The thread of a resolver cannot be cancelled.)
        """
        self.alt_svc.flush()
        self._call_off()
        if self.lookups.finds or (self._records is not None and self._records.finds):
            with Deadline(max(deadline.at, monotonic() + _LAST_MOMENT)).scope():
                await self.lookups.finds.ended()
                if self._records is not None:
                    await self._records.finds.ended()

    def _call_off(self) -> None:
        self.lookups.finds.forget()
        if self._records is not None:
            self._records.network_changed()


def _different(endpoints: Iterable[Endpoint]) -> list[Endpoint]:
    """The endpoints without duplicates. Each has the hints of its duplicates."""
    found: dict[tuple[str, int], Endpoint] = {}
    for each in endpoints:
        known = found.setdefault((each.host, each.port), each)
        if each.hints and not known.hints:
            found[each.host, each.port] = each
    return list(found.values())
