"""Which addresses a host has, and which of them may be connected to, where the user wants a say in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal

from allswell._errors import AddressNotAllowed
from allswell._given import as_host, as_host_given

#: Finds the addresses of a host; ``None``: the system's resolver is to be asked. Raises an error where there are none.
Resolver = Callable[[str], Awaitable["Iterable[str | IPv4Address | IPv6Address] | None"]]


@dataclass(frozen=True, slots=True)
class Contact:
    """An address that is about to be connected to.

    :ivar host: whose it is: the name that was looked up, or an address that a URL, a proxy or a server named. It need
        not be the URL's host: a proxy has its own, and so have the alternatives of Alt-Svc and HTTPS records.
    :ivar address: the address. An IPv6 address that stands for one of IPv4 (``::ffff:10.0.0.1``) is given as that one.
    :ivar port: the port.
    :ivar transport: ``"tcp"`` or ``"udp"`` (QUIC, and the relays of SOCKS proxies).
    """

    host: str
    address: IPv4Address | IPv6Address
    port: int
    transport: Literal["tcp", "udp"]


#: Of IPv4 and IPv6, as :mod:`socket` has them. A relay's peer may have a name.
SocketAddress = tuple[str, int] | tuple[str, int, int, int]
#: Whether an address may be connected to.
AllowAddress = Callable[[Contact], bool]


def check_contact(
    allow: AllowAddress | None, host: str, sockaddr: SocketAddress, transport: Literal["tcp", "udp"]
) -> None:
    """Ask whether a socket address may be connected to.

    :raises AddressNotAllowed: it may not.
    :raises TypeError: the answer is no bool. (An ``async def`` returns what counts as true.)
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
        raise TypeError(f"allow_address returned {type(allowed).__name__}, and a bool is wanted")
    if not allowed:
        whose = "" if host == str(address) else f" of {host}"
        raise AddressNotAllowed(
            f"allow_address forbids the address {address}{whose} (port {contact.port}, {transport})",
            host=host,
            address=str(address),
            port=contact.port,
        )


#: All that is handed out for use in the Internet (RFC 4291 §2.4, and IANA's registry).
_GLOBAL_UNICAST = IPv6Network("2000::/3")
#: IPv6 addresses that stand for one of IPv4, and where in them it is, in bits from the right: NAT64 (RFC 6052 §2.1),
#: 6to4 (RFC 3056 §2), and the IPv4-mapped ones (RFC 4291 §2.5.5.2).
_EMBEDDED = (
    (IPv6Network("64:ff9b::/96"), 0),
    (IPv6Network("2002::/16"), 80),
    (IPv6Network("::ffff:0:0/96"), 0),
)
#: Public by ``ipaddress``, in some versions, and yet no servers in the Internet: 6to4's relays (RFC 7526), what is for
#: protocols (RFC 6890 §2.2.2, RFC 2928), and for documentation (RFC 9637).
_NOT_PUBLIC = (
    IPv4Network("192.88.99.0/24"),
    IPv4Network("192.0.0.0/24"),
    IPv6Network("2001::/23"),
    IPv6Network("3fff::/20"),
)


class PublicAddresses:
    """An ``allow_address`` that lets only public addresses pass: a guard against server-side request forgery (SSRF).

    Forbidden are loopback, private (RFC 1918, ``fc00::/7``), link-local and shared addresses (``100.64.0.0/10``), those
    for documentation, tests and protocols, multicast and unspecified ones; and IPv6 addresses that stand for such an
    address of IPv4: IPv4-mapped, NAT64, 6to4. It judges each address as it is connected to, whatever the name said
    before; and what a proxy connects to it does not see.

    :param besides: addresses and networks that may be connected to all the same: ``"10.1.2.3"``, ``"fd00:1::/32"``.
    :raises ValueError: for one that is none.
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
    """A ``resolver`` that knows some hosts, as the hosts file of a system does, and asks another one for the rest.

    :param addresses: by host name: an address, or several.
    :param otherwise: a ``resolver`` for all other hosts; ``None``: the system's.
    :raises ValueError: for what is no address, and for a name without any.
    :ivar otherwise: that one.
    """

    def __init__(self, addresses: Mapping[str, str | Collection[str]], otherwise: Resolver | None = None) -> None:
        if not isinstance(addresses, Mapping):
            raise TypeError(f"addresses must be a mapping of names to addresses, not {type(addresses).__name__}")
        self._known = {as_host_given(name): _addresses(name, given) for name, given in addresses.items()}
        self.otherwise = otherwise

    async def __call__(self, host: str) -> Iterable[str | IPv4Address | IPv6Address] | None:
        known = self._known.get(as_host(host))
        if known is not None or self.otherwise is None:
            return known
        return await self.otherwise(host)


def _addresses(name: str, given: str | Collection[str]) -> tuple[str, ...]:
    found = tuple(str(ip_address(each)) for each in ([given] if isinstance(given, str) else given))
    if not found:
        raise ValueError(f"{name!r} has no address")
    return found
