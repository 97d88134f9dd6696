"""A resolver that asks by DNS over HTTPS (RFC 8484), over connections of the pool that it resolves for.

So the queries use any version of HTTP that the pool speaks, on one connection, which ends as all others do. That
connection serves the others, so it counts against no limit. The resolver cannot look up its own server's name, so the
server's addresses are given.

dnspython (extra ``dns``) makes and reads the messages.
"""

from __future__ import annotations

import socket
from base64 import urlsafe_b64encode
from collections.abc import Collection
from ipaddress import ip_address
from typing import TYPE_CHECKING

import anyio
import httpx2

from allswell._config import Timeouts
from allswell._dial.lookups import SEND
from allswell._errors import AllswellError
from allswell._late import Late
from allswell._messages import RequestHead
from allswell._request.request import Request
from allswell._request.route import destination

if TYPE_CHECKING:
    from dns import message
else:
    message = Late("dns.message")

#: Names that servers in the Internet do not know (RFC 6761 §6.3, RFC 6762 §3). The system may know them.
_OF_THE_SYSTEM = frozenset({"localhost", "local"})
#: Names that must not be looked up (RFC 6761 §6.4, RFC 7686 §2).
_OF_NOBODY = frozenset({"invalid", "onion"})
#: The media type of DNS messages (RFC 8484 §6).
_TYPE = b"application/dns-message"
_LARGEST_MESSAGE = 65535
#: Queries are padded to a multiple of so many bytes, so that their size reveals less (RFC 8467 §4.1).
_PADDED = 128


class DnsOverHttps:
    """A ``resolver`` that asks a server by DNS over HTTPS (RFC 8484), over the pool that it is the resolver of.

    IPv4 and IPv6 addresses are asked for at the same time. Names without a dot, ``localhost`` and names that end in
    ``.local`` are left to the system's resolver. It needs ``allswell[dns]``.

    :param url: the URL of the server: ``"https://dns.example/dns-query"``.
    :param addresses: the IP addresses of the server. They are needed if the URL has a name.
    :param timeout: how many seconds each query may take.
    :raises ValueError: if the URL is not https, an address is not valid, or addresses are needed and not given.
    :raises ImportError: if dnspython is not installed.
    """

    def __init__(self, url: str, addresses: Collection[str] = (), *, timeout: float = 5.0) -> None:
        try:
            import dns.message  # noqa: F401
        except ImportError as error:
            raise ImportError("DnsOverHttps needs the package dnspython: install allswell[dns]") from error
        if isinstance(addresses, str):
            raise TypeError("addresses must be a collection, not a str")
        self.url = url.removesuffix("{?dns}")
        parsed = httpx2.URL(self.url)
        if parsed.scheme != "https" or not parsed.host:
            raise ValueError(f"{url!r} is not the https URL of a DNS server")
        to = destination(parsed)
        # It serves other connections, so it must not wait for the room that they take.
        self._route, self._authority, self._target = to.route._replace(for_tunnels=True), to.authority, parsed.raw_path
        self._addresses = [str(ip_address(each)) for each in addresses]
        if not self._addresses and not _is_literal(self._route.host):
            raise ValueError(f"give the addresses of {self._route.host}: this resolver cannot look up its own server")
        self._timeout = timeout

    async def __call__(self, host: str) -> list[str] | None:
        name = host.removesuffix(".").lower()
        if name == self._route.host.removesuffix(".").lower():
            return self._addresses
        last = name.rpartition(".")[2]
        if last in _OF_NOBODY:
            raise OSError(f"names that end in .{last} are not in the DNS")
        if last in _OF_THE_SYSTEM or last == name:
            return None
        found: dict[str, list[str]] = {}
        failed: list[OSError] = []

        async def ask(kind: str) -> None:
            try:
                found[kind] = await self._ask(name, kind)
            except OSError as error:
                failed.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, "AAAA")
            tasks.start_soon(ask, "A")
        addresses = [*found.get("AAAA", ()), *found.get("A", ())]
        if failed and not addresses:
            raise failed[0]
        return addresses

    async def _ask(self, name: str, kind: str) -> list[str]:
        """The addresses of one kind that a name has.

        :raises OSError: if there is no such name, or the server gives no answer.
        """
        import dns.exception
        import dns.rcode

        try:
            answer = await self.ask(message.make_query(name, kind, use_edns=0))
            if answer.rcode() == dns.rcode.NXDOMAIN:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            if answer.rcode() != dns.rcode.NOERROR:
                raise OSError(f"{self.url} answered {dns.rcode.to_text(answer.rcode())}")
            assert isinstance(answer, message.QueryMessage)
            found = answer.resolve_chaining().answer
        except dns.exception.DNSException as error:
            raise OSError(f"{self.url}: {error}") from error
        return [] if found is None else [each.address for each in found]

    async def ask(self, query: message.Message) -> message.Message:
        """Ask the server any question.

        :param query: the question, with EDNS. Its id and padding are set here (RFC 8484 §4.1, RFC 8467 §4.1).
        :raises OSError: if the server gives no answer.
        :raises dns.exception.DNSException: if its answer cannot be read.
        """
        query.id, query.pad = 0, _PADDED  # RFC 8484 §4.1
        answer = message.from_wire(await self._exchange(query))
        if not query.is_response(answer):
            raise OSError(f"{self.url} answered a question that was not asked")
        return answer

    async def _exchange(self, query: message.Message) -> bytes:
        send = SEND.get(None)
        if send is None:
            raise OSError("DnsOverHttps works only as the resolver of a pool, because it asks over that pool")
        content = urlsafe_b64encode(query.to_wire()).rstrip(b"=")
        target = self._target + (b"&" if b"?" in self._target else b"?") + b"dns=" + content
        # A GET may be sent again if a connection was lost (RFC 9110 §9.2.2).
        head = RequestHead(b"GET", b"https", self._authority, target, [(b"Host", self._authority), (b"Accept", _TYPE)])
        wait = self._timeout
        try:
            response = await send(Request(head, self._route, timeouts=Timeouts(wait, wait, wait, wait, wait)))
            try:
                if response.status != 200:
                    raise OSError(f"{self.url} answered with status {response.status}")
                content = b""
                while len(content) <= _LARGEST_MESSAGE and (piece := await response.receive()):
                    content += piece
            finally:
                await response.aclose()
        except AllswellError as error:
            raise OSError(f"{self.url}: {error}") from error
        return content


def _is_literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
