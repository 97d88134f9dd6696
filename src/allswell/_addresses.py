"""Two settings: ``resolver`` finds the addresses of a host, ``allow_address`` says which may be connected to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal

from allswell._errors import AddressNotAllowed
from allswell._given import as_host, by_host

#: Returns the addresses of a host, or ``None`` to have the system's resolver asked. Raises if the host has none.
Resolver = Callable[[str], Awaitable[Iterable[str | IPv4Address | IPv6Address] | None]]


@dataclass(frozen=True, slots=True)
class Contact:
    """An address that is about to be connected to.

    :ivar host: the host that has this address: a name that was looked up, or an IP address from a URL, a proxy or a
        server. It differs from the URL's host for a proxy, and for the alternatives of Alt-Svc and HTTPS records.
    :ivar address: the address. An IPv4-mapped IPv6 address (``::ffff:10.0.0.1``) is given as the IPv4 address.
    :ivar port: the port.
    :ivar transport: ``"tcp"`` or ``"udp"`` (QUIC, and the relays of SOCKS proxies).
    """

    host: str
    address: IPv4Address | IPv6Address
    port: int
    transport: Literal["tcp", "udp"]


#: An address of IPv4 or IPv6, as :mod:`socket` has them. For the peer of a SOCKS relay it may begin with a name.
SocketAddress = tuple[str, int] | tuple[str, int, int, int]
#: Returns whether an address may be connected to.
AllowAddress = Callable[[Contact], bool]


def check_contact(
    allow: AllowAddress | None, host: str, sockaddr: SocketAddress, transport: Literal["tcp", "udp"]
) -> None:
    """Ask ``allow_address`` whether a socket address may be connected to.

    :raises AddressNotAllowed: if it may not.
    :raises TypeError: if the answer is not a bool. (The coroutine of an ``async def`` would count as true.)
    """
    if allow is None:
        return
    address: IPv4Address | IPv6Address = ip_address(sockaddr[0])
    if isinstance(address, IPv6Address):
        if len(sockaddr) == 4 and sockaddr[3] and address.scope_id is None:
            address = IPv6Address(f"{address}%{sockaddr[3]}")
        address = address.ipv4_mapped or address
    contact = Contact(host, address, sockaddr[1], transport)
    allowed = allow(contact)
    if not isinstance(allowed, bool):
        raise TypeError(f"allow_address must return a bool, not {type(allowed).__name__}")
    if not allowed:
        whose = "" if host == str(address) else f" of {host}"
        raise AddressNotAllowed(
            f"allow_address forbids the address {address}{whose} (port {contact.port}, {transport})",
            host=host,
            address=str(address),
            port=contact.port,
        )


#: The part of IPv6 that IANA assigns for use in the Internet (RFC 4291 §2.4).
_GLOBAL_UNICAST = IPv6Network("2000::/3")
#: IPv6 networks whose addresses contain an IPv4 address, and how many bits follow it: NAT64 (RFC 6052 §2.1), 6to4
#: (RFC 3056 §2), IPv4-mapped (RFC 4291 §2.5.5.2).
_EMBEDDED = (
    (IPv6Network("64:ff9b::/96"), 0),
    (IPv6Network("2002::/16"), 80),
    (IPv6Network("::ffff:0:0/96"), 0),
)
#: Some versions of ``ipaddress`` call these public, but no server in the Internet has such an address: 6to4's relays
#: (RFC 7526), protocol assignments (RFC 6890 §2.2.2, RFC 2928), documentation (RFC 9637).
_NOT_PUBLIC = (
    IPv4Network("192.88.99.0/24"),
    IPv4Network("192.0.0.0/24"),
    IPv6Network("2001::/23"),
    IPv6Network("3fff::/20"),
)


class PublicAddresses:
    """An ``allow_address`` that lets only public addresses pass: a guard against server-side request forgery (SSRF).

    It forbids loopback, private (RFC 1918, ``fc00::/7``), link-local and shared addresses (``100.64.0.0/10``),
    multicast and unspecified addresses, and those for documentation, tests and protocols. It also forbids IPv6
    addresses that contain such an IPv4 address: IPv4-mapped, NAT64, 6to4.

    It judges the address itself, right before the connection is made. So a name whose addresses change cannot get
    round it. It does not see what a proxy connects to.

    :param besides: addresses and networks that are allowed in spite of that: ``"10.1.2.3"``, ``"fd00:1::/32"``.
    :raises ValueError: if one of these is neither an address nor a network.
    """

    def __init__(self, besides: Collection[str] = ()) -> None:
        if isinstance(besides, str):
            raise TypeError("besides must be a collection, not a str")
        self._besides = tuple(ip_network(each) for each in besides)

    def __call__(self, contact: Contact) -> bool:
        address = contact.address
        return _is_public(address) or any(address in each for each in self._besides)

    def __repr__(self) -> str:
        return f"PublicAddresses(besides={[str(each) for each in self._besides]})"


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address):
        for network, shift in _EMBEDDED:
            if address in network:
                return _is_public(IPv4Address((int(address) >> shift) & 0xFFFFFFFF))
        if address not in _GLOBAL_UNICAST:
            return False
    return address.is_global and not address.is_multicast and not any(address in each for each in _NOT_PUBLIC)


class Hosts:
    """A ``resolver`` with a table of hosts, like the hosts file of a system. It asks another resolver for the rest.

    :param addresses: for each host name, one address or several.
    :param otherwise: a ``resolver`` for all other hosts; ``None``: the system's.
    :raises ValueError: if an address is not valid, or a name has none, or is there in two spellings.
    :ivar otherwise: the resolver for all other hosts.
    """

    def __init__(self, addresses: Mapping[str, str | Collection[str]], otherwise: Resolver | None = None) -> None:
        if not isinstance(addresses, Mapping):
            raise TypeError(f"addresses must be a mapping of names to addresses, not {type(addresses).__name__}")
        self._known = {name: _addresses(host, given) for name, host, given in by_host(addresses)}
        self.otherwise = otherwise

    async def __call__(self, host: str) -> Iterable[str | IPv4Address | IPv6Address] | None:
        known = self._known.get(as_host(host))
        if known is not None or self.otherwise is None:
            return known
        return await self.otherwise(host)


def _addresses(name: str, given: str | Collection[str]) -> tuple[str, ...]:
    found = tuple(str(ip_address(each)) for each in ([given] if isinstance(given, str) else given))
    if not found:
        raise ValueError(f"addresses: the host {name!r} has no address")
    return found
