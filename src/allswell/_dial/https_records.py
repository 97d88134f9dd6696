"""HTTPS records (RFC 9460): DNS says where an origin offers its service, and by which protocols.

Theory of operation. There is one query for each origin. All dials share it. Its answer is kept for its TTL, also if it
has no records. AliasMode leads to another name, ServiceMode lists services in order of priority. Records are
optional (§3, "SVCB-optional"): if anything goes wrong, there are none.

A dial waits for no longer than the resolution delay of Happy Eyeballs v3. Addresses are looked up meanwhile. When they
are known, the query has 50 ms more. A later answer serves the next dial.

dnspython (extra ``dns``) speaks DNS. It asks the name servers of the settings. If there are none, it asks the settings'
resolver if that is a :class:`DnsOverHttps`, because no other server should learn the names. Otherwise it asks the
system's name servers. This module is imported only if records are wanted.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import anyio
import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.message
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver
from dns.rdtypes.svcbbase import ALPNParam, IPv4HintParam, IPv6HintParam, MandatoryParam, ParamKey, PortParam, SVCBBase

from allswell._addresses import Hosts, Resolver
from allswell._dial.addresses import RESOLUTION_DELAY, is_address
from allswell._dial.dns_over_https import DnsOverHttps
from allswell._dial.lookups import Lookups, SharedFinds
from allswell._request.route import DEFAULT_PORTS, Endpoint
from allswell._tasks import TaskHost, logger

#: Names that servers do not know, or must not be asked for (RFC 6761 §6.3, §6.4; RFC 6762 §3; RFC 7686 §2).
_SPECIAL = frozenset({"localhost", "local", "invalid", "onion"})

#: For how many origins answers are kept; for how many seconds at most, and if there was no answer (RFC 9520 §3.2).
_ORIGINS = 1024
_AT_MOST, _NOTHING_AT_MOST, _FAILURE = 86400.0, 900.0, 30.0

#: How many seconds each query may take, with all repetitions.
_LIFETIME = 5.0

#: How many aliases are followed (§2.4.2), and how many services, and hints of each family, are kept.
_ALIASES, _SERVICES, _HINTS = 8, 4, 4

#: The keys that we know. A record whose ``mandatory`` names any other (ECH, for example) is skipped (§8).
_KNOWN = {ParamKey.ALPN, ParamKey.NO_DEFAULT_ALPN, ParamKey.PORT, ParamKey.IPV4HINT, ParamKey.IPV6HINT}

#: The protocol that a service speaks unless it says ``no-default-alpn`` (§7.1.1, §9).
_DEFAULT_ALPN = b"http/1.1"


class Service(NamedTuple):
    """A service of an origin.

    :ivar alpn: the protocols that it speaks: its SVCB ALPN set (§7.1.1).
    """

    endpoint: Endpoint
    alpn: frozenset[bytes]


Services = tuple[Service, ...]


class HttpsRecords:
    """The HTTPS records that one pool looks up.

    :param nameservers: see ``PoolConfig``.
    :param lookups: looks up addresses.
    :param resolver: the settings' resolver.
    :raises ValueError: if a name server is not an address.
    :raises ImportError: if dnspython cannot use this event loop's library as it is installed.
    """

    def __init__(
        self, host: TaskHost, nameservers: Sequence[str], lookups: Lookups, resolver: Resolver | None = None
    ) -> None:
        self.finds: SharedFinds[tuple[str, int], Services] = SharedFinds(host, _ORIGINS)
        self._lookups = lookups
        self._nameservers = [_nameserver(each) for each in nameservers]
        while isinstance(resolver, Hosts):
            resolver = resolver.otherwise
        if not nameservers and isinstance(resolver, DnsOverHttps):
            self._nameservers = [_OverHttps(resolver)]
        self._resolver: dns.asyncresolver.Resolver | None = None
        self._backend = dns.asyncbackend.get_backend(dns.asyncbackend.sniff())

    async def find(self, name: str, port: int, addresses: Callable[[], Awaitable[None]] | None) -> Services:
        """The services of ``https://name:port``, best first, as far as DNS tells in time.

        :param addresses: returns when the name's first addresses are known, or it is known that there are none. After
            that, little time is left. ``None``: wait as long as DNS takes.
        """
        _, dot, last = name.removesuffix(".").rpartition(".")
        if is_address(name) or not dot or last.lower() in _SPECIAL:
            return ()
        find = partial(self._find, name, port)
        asked = self.finds.get((name, port), find, name=f"allswell asks for the HTTPS records of {name}")
        if addresses is None:
            await asked.ended()
        elif not asked.over:
            async with anyio.create_task_group() as tasks:

                async def long_enough() -> None:
                    await addresses()
                    await anyio.sleep(RESOLUTION_DELAY)
                    tasks.cancel_scope.cancel()

                tasks.start_soon(long_enough)
                await asked.ended()
                tasks.cancel_scope.cancel()
        return asked.found or ()

    def network_changed(self) -> None:
        """Forget all: other name servers may have other answers."""
        self._resolver = None
        self.finds.forget()

    async def _find(self, name: str, port: int) -> tuple[Services, float]:
        """Follow the records of an origin (§3). It runs in a task of its own. It raises nothing if DNS fails."""
        self._lookups.lend()
        # §9.1: an origin at another port has names of its own.
        query = name if port == DEFAULT_PORTS["https"] else f"_{port}._https.{name}"
        target, seconds = "", _AT_MOST
        services: Services = ()
        try:
            for _ in range(_ALIASES):
                records, owner, ttl = await self._query(query)
                seconds = min(seconds, ttl)
                aliases = [each for each in records if each.priority == 0]
                if not aliases:
                    services = _services(records, owner, port)
                    break
                # §2.4.1: if there are aliases, other records do not count. One alias is chosen at random.
                alias = random.choice(aliases).target
                if alias == dns.name.root:
                    break  # §2.5.1: it means "not available", but it is only a hint
                target = query = _text(alias)
        except (dns.exception.DNSException, OSError) as error:
            logger.debug("allswell: no HTTPS record of %s: %r", query, error)
            seconds = min(seconds, _FAILURE)
        if target:
            # §3: after the services comes the name that the alias leads to, as it is.
            services += (Service(Endpoint(target, port), frozenset({b"h2", _DEFAULT_ALPN})),)
        return services, seconds

    async def _query(self, name: str) -> tuple[list[SVCBBase], dns.name.Name, float]:
        """The records of a name, the name that has them after all CNAMEs, and their TTL in seconds.

        :raises DNSException: if the servers did not answer, or not well.
        """
        if self._resolver is None:
            self._resolver = dns.asyncresolver.Resolver(configure=not self._nameservers)
            if self._nameservers:
                self._resolver.nameservers = self._nameservers
            self._resolver.use_edns(0, 0, dns.message.DEFAULT_EDNS_PAYLOAD)
        try:
            answer = await self._resolver.resolve(
                dns.name.from_text(name),
                dns.rdatatype.HTTPS,
                raise_on_no_answer=False,
                lifetime=_LIFETIME,
                backend=self._backend,
            )
        except dns.resolver.NXDOMAIN as nobody:
            (response, *_) = nobody.responses().values()  # type: ignore[no-untyped-call]  # dnspython's alone has no types
            return [], dns.name.root, min(response.resolve_chaining().minimum_ttl, _NOTHING_AT_MOST)
        chain = answer.chaining_result
        if answer.rrset is None:
            return [], answer.canonical_name, min(chain.minimum_ttl, _NOTHING_AT_MOST)
        return list(answer.rrset), answer.canonical_name, chain.minimum_ttl


def _services(records: Sequence[SVCBBase], owner: dns.name.Name, port: int) -> Services:
    """The services that we can use, best first. Equal ones are in random order (§2.4.1)."""
    usable = [each for each in records if _understood(each)]
    usable.sort(key=lambda each: (each.priority, random.random()))
    return tuple(_service(each, owner, port) for each in usable[:_SERVICES])


def _understood(record: SVCBBase) -> bool:
    mandatory = record.params.get(ParamKey.MANDATORY)
    return not isinstance(mandatory, MandatoryParam) or set(mandatory.keys) <= _KNOWN


def _service(record: SVCBBase, owner: dns.name.Name, port: int) -> Service:
    parameters = record.params
    alpn, other = parameters.get(ParamKey.ALPN), parameters.get(ParamKey.PORT)
    speaks = set(alpn.ids) if isinstance(alpn, ALPNParam) else set()
    if ParamKey.NO_DEFAULT_ALPN not in parameters:
        speaks.add(_DEFAULT_ALPN)
    hints: list[str] = []
    for key, kind in ((ParamKey.IPV6HINT, IPv6HintParam), (ParamKey.IPV4HINT, IPv4HintParam)):
        hint = parameters.get(key)
        if isinstance(hint, kind):
            hints += hint.addresses[:_HINTS]
    # §2.5.2: "." stands for the name that has the record.
    target = owner if record.target == dns.name.root else record.target
    where = Endpoint(_text(target), other.port if isinstance(other, PortParam) else port, tuple(hints))
    return Service(where, frozenset(speaks))


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()


class _OverHttps(dns.nameserver.Nameserver):
    """The DNS server behind the settings' resolver, for dnspython."""

    def __init__(self, resolver: DnsOverHttps) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # dnspython's alone has no types
        self._resolver = resolver

    def __str__(self) -> str:
        return self._resolver.url

    def kind(self) -> str:
        return "DoH"

    def is_always_max_size(self) -> bool:
        return True

    def answer_nameserver(self) -> str:
        return self._resolver.url

    def answer_port(self) -> int:
        return 443

    async def async_query(self, request: dns.message.QueryMessage, *args: Any, **options: Any) -> dns.message.Message:
        return await self._resolver.ask(request)


def _nameserver(address: str) -> dns.nameserver.Nameserver:
    host, _, port = address.rpartition(":")
    if not host or is_address(address):
        host, port = address, "53"
    host = host.removeprefix("[").removesuffix("]")
    if not is_address(host) or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"{address!r} is not the address of a name server")
    return dns.nameserver.Do53Nameserver(host, int(port))
