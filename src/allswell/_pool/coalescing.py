"""Connection coalescing: which connection may serve another origin too (RFC 9113 §9.1.1, RFC 9114 §3.3).

Theory of operation. A connection may serve an origin besides the one that it was made for, if

- both are https, reached directly, by names, at the same port: there are no proxies, no Unix socket, no
  ``sni_hostname``, and no client certificate, as far as we can know;
- it speaks HTTP/2; or HTTP/3, if a dial for the other origin would try HTTP/3 at the same endpoint;
- its certificate was verified, and covers the other origin's host, whose pins, if it has any, allow its key;
- the address that it is connected to (by now) is one that the other origin's host has, looked up as for a dial;
- the server has not said otherwise, by an ORIGIN frame that leaves the origin out (RFC 8336 §2.3), or by 421 to a
  request (RFC 9110 §15.5.20), which is remembered for the two origins.

RFC 8336 §2.4 lets an ORIGIN frame replace the comparison of addresses. §4 says what that risks: with a stolen
certificate an attacker need not be on the path. We cannot detect a stolen certificate. So this is for
``coalescing="origin"`` only.

A request that finds a connection on its route pays nothing for this. Any other request pays two look-ups in a dict:
connections are found by the names in their certificates. service-identity then verifies the name. If the lookup of
addresses finds no match, the dial that follows uses it. Certificates are read when a second origin first asks: most
pools have connections to one origin only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Literal

from allswell._addresses import SocketAddress, check_contact
from allswell._config import PoolConfig
from allswell._connection.connection import Connection
from allswell._dial.addresses import is_address
from allswell._dial.dialer import Dialer
from allswell._errors import AddressNotAllowed, PinMismatch
from allswell._fields import name_for_tls
from allswell._filters.certificates import PeerCertificate
from allswell._pins import pin_check
from allswell._request.route import Route

#: How many other origins one connection serves, how many one server may name, how many refusals are remembered.
_ROUTES, _NAMED, _REFUSALS = 256, 1024, 1024


class _Reach:
    """The origins that one connection may serve."""

    __slots__ = ("_address", "_connection", "certificate", "home", "origin_set", "routes")

    def __init__(
        self, connection: Connection, home: Route, certificate: PeerCertificate, address: SocketAddress
    ) -> None:
        self.home = home
        self.certificate = certificate
        self._connection = connection
        self._address = address
        self.origin_set: set[str] | None = None  # once the server has named any (RFC 8336 §2.3)
        self.routes: dict[str, Route] = {}  # the other routes that it serves, by their origins

    @property
    def address(self) -> SocketAddress:
        """The address that it is connected to now. QUIC may move to the server's preferred address (RFC 9000 §9.6)."""
        if self._connection.http_version == "HTTP/3":
            self._address = self._connection.extra("server_addr")
        return self._address


class Coalescing:
    """The connections of one pool that may serve other origins too.

    :param dialer: says where a dial would go.
    """

    def __init__(self, config: PoolConfig, dialer: Dialer) -> None:
        self._mode = config.coalescing if config.uds is None and config.cert is None else False
        self._quic_identity = config.quic.certfile is not None
        self._config = config
        self._dialer = dialer
        #: Connections of one route, and their addresses, whose certificates were not read yet.
        self._unread: dict[Connection, SocketAddress] = {}
        self._unread_route: Route | None = None
        self._reaches: dict[Connection, _Reach] = {}
        self._by_name: dict[str, dict[Connection, None]] = {}
        self._refused: OrderedDict[tuple[Route, Route], None] = OrderedDict()

    def add(self, connection: Connection, route: Route) -> None:
        """A connection was made for this route."""
        if not connection.multiplexes or not self._eligible(route):
            return
        if connection.http_version == "HTTP/3" and self._quic_identity:
            return
        address = connection.extra("server_addr")
        if address is None:
            return
        self._read_for(route)
        self._unread[connection], self._unread_route = address, route

    def _read_for(self, route: Route) -> None:
        """Read the certificates of connections to others, if that was not done yet."""
        if self._unread and self._unread_route != route:
            self._read()

    def _read(self) -> None:
        assert self._unread_route is not None
        for connection, address in self._unread.items():
            certificate = connection.extra("certificate")
            if certificate is not None:
                self._reaches[connection] = _Reach(connection, self._unread_route, certificate, address)
                for name in certificate.names:
                    self._by_name.setdefault(name, {})[connection] = None
        self._unread.clear()

    def remove(self, connection: Connection) -> None:
        """It takes no more requests."""
        self._unread.pop(connection, None)
        reach = self._reaches.pop(connection, None)
        if reach is not None:
            for name in dict.fromkeys(reach.certificate.names):
                named = self._by_name[name]
                del named[connection]
                if not named:
                    del self._by_name[name]

    def routes(self, connection: Connection) -> list[Route]:
        """The other routes that it serves."""
        reach = self._reaches.get(connection)
        return list(reach.routes.values()) if reach is not None else []

    # Finding one

    def promises(self, route: Route) -> bool:
        """Whether some connection may serve this route, so :meth:`find` is worth it."""
        return next(self._candidates(route), None) is not None

    async def find(self, route: Route) -> Connection | None:
        """Find a connection with room that may serve the route. From now on it does."""
        found = [each for each in self._candidates(route) if self._may_serve(each, route)]
        if self._mode == "origin":
            for connection in found:
                if self._reaches[connection].origin_set is not None:  # which has it, for it is a candidate
                    return self._take(connection, route)
        if not found:
            return None
        destinations = await self._dialer.discovery.destinations(route)
        still = set(self._candidates(route))
        for connection in found:
            there = destinations.get(connection.http_version, ())
            if connection in still and self._reaches[connection].address in there:
                return self._take(connection, route)
        return None

    def _candidates(self, route: Route) -> Iterator[Connection]:
        self._read_for(route)
        host = _host(route)
        for name in (host, f"*.{host.partition('.')[2]}"):
            for connection in self._by_name.get(name, ()):
                reach = self._reaches[connection]
                if (
                    reach.home.port == route.port
                    and reach.home != route
                    and len(reach.routes) < _ROUTES
                    and (reach.home, route) not in self._refused
                    and (reach.origin_set is None or route.origin in reach.origin_set)
                    and connection.capacity()
                    and self._eligible(route)
                ):
                    yield connection

    def _may_serve(self, connection: Connection, route: Route) -> bool:
        """Whether it may serve this route: by its certificate, the host's pins, and ``allow_address``."""
        reach, config = self._reaches[connection], self._config
        if not reach.certificate.covers(_host(route)):
            return False
        pinned = pin_check(config.pins, route.host)
        transport: Literal["tcp", "udp"] = "udp" if connection.http_version == "HTTP/3" else "tcp"
        try:
            if pinned is not None:
                pinned(reach.certificate.der)
            check_contact(config.allow_address, route.host, reach.address, transport)
        except (PinMismatch, AddressNotAllowed):
            return False
        return True

    def _take(self, connection: Connection, route: Route) -> Connection:
        self._reaches[connection].routes[route.origin] = route
        return connection

    def _eligible(self, route: Route) -> bool:
        plain = Route(route.scheme, route.host, route.port)  # nothing forced, and no proxies
        return bool(self._mode) and route.scheme == "https" and route == plain and not is_address(route.host)

    # What servers say

    def name(self, connection: Connection, origins: list[str]) -> list[Route]:
        """An ORIGIN frame has come (RFC 8336 §2.3). Return the routes that it must no longer serve."""
        if connection in self._unread:
            self._read()
        reach = self._reaches.get(connection)
        if reach is None:
            return []
        if reach.origin_set is None:
            reach.origin_set = {reach.home.origin}
        reach.origin_set.update(origins[: _NAMED - len(reach.origin_set)])
        gone = [origin for origin in reach.routes if origin not in reach.origin_set]
        return [reach.routes.pop(origin) for origin in gone]

    def refuse(self, connection: Connection, route: Route) -> bool:
        """It answered 421 (Misdirected Request). Return whether that was for another route than its own."""
        reach = self._reaches.get(connection)
        if reach is None or reach.routes.pop(route.origin, None) is None:
            return False
        self._refused[reach.home, route] = None
        if len(self._refused) > _REFUSALS:
            self._refused.popitem(last=False)
        return True


def _host(route: Route) -> str:
    """As certificates have it."""
    return name_for_tls(route.host).lower()
