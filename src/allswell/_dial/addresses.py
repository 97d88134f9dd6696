"""A host's addresses in the order in which a race tries them (RFC 8305 §3, §4).

AAAA and A are asked for at the same time. The race begins with the first answer. If that is A, it waits up to 50 ms
for AAAA, to begin with that. The families alternate, each in the resolver's order. At most 16 addresses of each family
are tried, because a DNS answer could otherwise make us connect to thousands.

If an HTTPS record has hints of the addresses (RFC 9460 §7.3), they are used if the resolver does not answer within 50
ms. Once it answers, its addresses replace the hints, and may take 16 attempts of their own.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address
from typing import Literal, TypeVar
from urllib.parse import unquote

import anyio

from allswell._addresses import AllowAddress, SocketAddress, check_contact
from allswell._deadline import Deadline
from allswell._dial.lookups import Address, Resolve, literal
from allswell._dial.race import Lost, race
from allswell._errors import AddressNotAllowed, ConnectFailed

#: How many seconds AAAA is waited for (RFC 8305 §8).
RESOLUTION_DELAY = 0.05
#: How many addresses of one family are tried.
ATTEMPTS = 16

T = TypeVar("T")


class _NoWay(ConnectFailed):
    """The system reports that it cannot reach an address. (The message does not name the host.)"""


async def connect_any(
    host: str,
    port: int,
    attempt: Callable[[Address], Awaitable[T]],
    discard: Callable[[T], object],
    *,
    ask: Resolve,
    local_address: str | None = None,
    hints: Sequence[str] = (),
    allow: AllowAddress | None = None,
    transport: Literal["tcp", "udp"] = "tcp",
) -> T:
    """Return the result of the first attempt that succeeds.

    :param attempt: connects to one address. It raises ``OSError`` or :class:`ConnectFailed`, and may be cancelled.
    :param discard: ends a connection that came second.
    :param ask: the resolver.
    :param local_address: the address to connect from. Only addresses of its family are tried.
    :param hints: addresses to begin with while the resolver has not answered.
    :param allow: which addresses may be tried; see ``PoolConfig``.
    :param transport: the transport, for ``allow``.
    :raises ConnectFailed: names the host, and each address that was tried with its error.
    :raises AddressNotAllowed: if no other address was tried.
    :raises BaseException: any other error of an attempt. It ends the race.
    """
    addresses = _Addresses(host, port, ask, local_address, hints)

    async def attempted(address: Address) -> T:
        try:
            check_contact(allow, host, address[1], transport)
            return await attempt(address)
        except OSError as error:
            raise _NoWay(f"{address[1][0]}: {words(error)}", phase="tcp") from error

    try:
        return await race(addresses, attempted, discard)
    except Lost as lost:
        failures = lost.failures
    if not failures:
        raise addresses.unknown()
    tried = [each for each in failures if not isinstance(each, AddressNotAllowed)]
    last = (tried or failures)[-1]
    if not isinstance(last, _NoWay):
        raise last  # its message names the peer and what failed, as the messages of the other addresses do
    told = "; ".join(map(str, failures))
    if addresses.left:
        told += "; its other addresses were not tried"
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    raise ConnectFailed(f"cannot connect to {where}: {told}", phase="tcp") from last.__cause__


class _Addresses:
    """The line of addresses."""

    def __init__(self, host: str, port: int, ask: Resolve, local_address: str | None, hints: Sequence[str]) -> None:
        self._host = host
        self._port = port
        self._ask = ask
        self._local_address = local_address
        self._hints = hints
        self._wanted = families(host, local_address)
        self._answers = 0
        self._first, self._last = anyio.Event(), anyio.Event()
        self._found: dict[int, list[Address]] = {socket.AF_INET6: [], socket.AF_INET: []}
        self._tried: set[SocketAddress] = set()
        self._tries: Counter[int] = Counter()
        self._prefer: int = socket.AF_INET6
        self._errors: list[OSError] = []
        if not self._wanted:
            try:
                self._take(literal(host, port))
            except OSError as error:  # its zone names no interface
                self._errors.append(error)

    @property
    def left(self) -> bool:
        """Whether there are addresses that were not tried."""
        return any(self._found.values())

    def unknown(self) -> ConnectFailed:
        """The error that says that there was no address."""
        cause = self._errors[-1] if self._errors else None
        told = words(cause) if cause else "it has no address of the local address's family"
        error = ConnectFailed(f"cannot resolve {self._host}: {told}", phase="dns")
        error.__cause__ = cause
        return error

    async def only(self) -> Address | None:
        if self.growing and len(self._wanted) == 1 and not self._hints:
            await self._look(self._wanted[0])  # there is nothing else to do meanwhile
        alone = not self.growing and sum(map(len, self._found.values())) == 1
        return self.next() if alone else None

    def next(self) -> Address | None:
        for family in (self._prefer, _other(self._prefer)):
            if self._found[family] and self._tries[family] < ATTEMPTS:
                self._tries[family] += 1
                self._prefer = _other(family)
                address = self._found[family].pop(0)
                self._tried.add(address[1])
                return address
        return None

    @property
    def growing(self) -> bool:
        return self._answers < len(self._wanted)

    async def begin(self, tasks: anyio.abc.TaskGroup, news: Callable[[], None]) -> None:
        if not self.growing:
            return
        for family in self._wanted:
            tasks.start_soon(self._look, family, news)
        hurry = Deadline.after(RESOLUTION_DELAY if self._hints else None)
        with hurry.scope():
            await self._first.wait()
        if self.growing and not self._found[socket.AF_INET6] and not hurry.passed():
            with Deadline.after(RESOLUTION_DELAY).scope():
                await self._last.wait()
        if not self.left:
            self._take_hints()

    async def _look(self, family: int, news: Callable[[], None] | None = None) -> None:
        try:
            self._take(await self._ask(self._host, self._port, family))
        except OSError as error:
            self._errors.append(error)
        self._answers += 1
        self._first.set()
        if not self.growing:
            self._last.set()
        if news is not None:
            news()

    def _take(self, found: Sequence[Address]) -> None:
        """Take the resolver's answer. It replaces hints that were not tried yet."""
        for family in {family for family, _ in found}:
            fresh = (each for each in found if each[0] == family and each[1] not in self._tried)
            self._found[family] = list(dict.fromkeys(fresh))
            self._tries[family] = 0  # attempts at hints do not count

    def _take_hints(self) -> None:
        own = _family(self._local_address) if self._local_address is not None else None
        for family in (socket.AF_INET6, socket.AF_INET):
            if own in (None, family):
                hints = [each for each in self._hints if _family(each) == family]
                self._found[family] = [address for each in hints for address in literal(each, self._port)]


def families(host: str, local_address: str | None) -> list[int]:
    """The address families to ask the resolver for; none for an address literal."""
    if _family(host) is not None:
        return []
    if local_address is not None and (family := _family(local_address)) is not None:
        return [family]
    if host.lower() == "localhost" or host.lower().endswith(".localhost"):
        # RFC 6761 §6.3: the hosts file has it, perhaps in one family. A server must not be asked for the other.
        return [socket.AF_UNSPEC]
    return [socket.AF_INET6, socket.AF_INET]


def is_address(host: str) -> bool:
    """Whether it is an address literal rather than a name."""
    return _family(host) is not None


def address_meant(host: str) -> str | None:
    """The address that a resolver or a proxy may read in a host; ``None`` if it is a name.

    Resolvers read old forms (``127.1``, ``0x7f000001``). Some proxies first decode a host (RFC 3986 §3.2.2), or remove
    dots at its end.
    """
    if is_address(host):
        return host
    try:
        return socket.inet_ntoa(socket.inet_aton(unquote(host).rstrip(".")))
    except (OSError, ValueError):
        return None


def _family(host: str) -> int | None:
    """The family of an address literal; ``None`` for a name."""
    try:
        version = ip_address(host).version
    except ValueError:
        return None
    return socket.AF_INET6 if version == 6 else socket.AF_INET


def words(error: OSError) -> str:
    """The system's words for an error."""
    return error.strerror or str(error)


def _other(family: int) -> int:
    return socket.AF_INET if family == socket.AF_INET6 else socket.AF_INET6
