"""Where names lead, and where they may: resolvers of one's own, DNS over HTTPS, and addresses that are forbidden."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import anyio
import dns.message
import dns.nameserver
import dns.rcode
import httpx
import httpx2
import pytest

import allswell
import allswell.httpx
from allswell import (
    AddressNotAllowed,
    AsyncClient,
    ConnectFailed,
    ConnectionPool,
    Contact,
    DnsOverHttps,
    Hosts,
    ProxyHop,
    PublicAddresses,
    Retry,
    Timeout,
    Timeouts,
)
from allswell._dial.kit import Kit
from allswell._dial.lookups import Lookups
from allswell._dial.origin_memory import OriginMemory
from allswell._dial.proxy import ProxyBuilder
from allswell._dial.quic import QuicBuilder
from allswell._filters.udp import UdpFilter
from allswell._tasks import current_host
from allswell.testing import Origin, Response
from tests.support.certificates import certificates
from tests.support.dns_server import DnsServer, Reply, answered
from tests.support.doh import Doh
from tests.support.h2_proxy import Http2Proxy
from tests.support.h2_script import Http2Server, h2_tls
from tests.support.h3_proxy import Http3Proxy
from tests.support.lag import LAG, resolution_delay
from tests.support.peer import PeerConnection, scripted_peer
from tests.support.proxies import SocksProxy, connect_proxy, socks_relay
from tests.support.quic_server import QuicServer
from tests.support.scripts import answers

pytestmark = pytest.mark.anyio

HERE = "127.0.0.1"


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that the system's resolver was asked for. It knows ``known.example``."""
    names: list[str] = []

    async def getaddrinfo(host: str, port: int, *, family: int = 0, type: int = 0) -> list[Any]:
        names.append(host)
        if host != "known.example" or family == socket.AF_INET6:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, type, 6, "", (HERE, port))]

    monkeypatch.setattr(anyio, "getaddrinfo", getaddrinfo)
    return names


class Resolver:
    """A resolver that notes what it is asked for, and says that everything is here."""

    def __init__(self, *addresses: Any) -> None:
        self.asked: list[str] = []
        self.addresses: Any = addresses or (HERE,)

    async def __call__(self, host: str) -> Any:
        self.asked.append(host)
        await anyio.lowlevel.checkpoint()
        return self.addresses


def trusting(**settings: Any) -> dict[str, Any]:
    return {"ssl_context": certificates().client_context(), **settings}


# Resolvers


async def test_each_door_takes_one(asked: list[str]) -> None:
    async with Origin({"/a": Response(body=b"a")}, tls=False) as origin:
        url = f"http://name.example:{origin.port}/a"
        resolver = Resolver()
        async with AsyncClient(resolver=resolver) as client:
            assert (await client.get(url)).text == "a"
        async with httpx2.AsyncClient(transport=allswell.AsyncTransport(resolver=resolver)) as theirs:
            assert (await theirs.get(url)).text == "a"
        async with httpx.AsyncClient(transport=allswell.httpx.AsyncTransport(resolver=resolver)) as older:
            assert (await older.get(url)).text == "a"
        async with ConnectionPool(resolver=resolver) as pool:
            assert await (await pool.request("GET", url)).read() == b"a"
        assert resolver.asked == ["name.example"] * 4  # once for both families
        for request in origin.requests:
            assert ("host", f"name.example:{origin.port}") in request.headers
    assert asked == []


async def test_every_kind_of_connection(asked: list[str]) -> None:
    """TCP, QUIC, and what Alt-Svc leads to."""
    resolver = Resolver(IPv4Address(HERE))
    with QuicServer() as quic:
        alternative = f'Alt-Svc: h3="other.example:{quic.port}"'
        with scripted_peer(answers(fields=(alternative,)), tls=certificates().server_context()) as tcp:
            url = f"https://name.example:{tcp.port}/hello"
            async with ConnectionPool(**trusting(http3=True, resolver=resolver, max_keepalive_connections=0)) as pool:
                assert (await pool.request("GET", url)).http_version == b"HTTP/1.1"
                assert (await pool.request("GET", url)).http_version == b"HTTP/3"
    assert resolver.asked == ["name.example", "other.example"]
    assert asked == []


async def test_where_https_records_lead(asked: list[str]) -> None:
    resolver = Resolver()
    with QuicServer() as quic, DnsServer() as server:
        server.zone = f"name.example. 60 HTTPS 1 other.example. alpn=h3 port={quic.port}"
        more = trusting(http3=True, https_records=True, nameservers=[server.address], resolver=resolver)
        async with ConnectionPool(**more) as pool:
            assert (await pool.request("GET", "https://name.example/hello")).http_version == b"HTTP/3"
    assert set(resolver.asked) == {"name.example", "other.example"}
    assert asked == []


async def test_proxies_and_what_is_resolved_for_them(asked: list[str]) -> None:
    resolver = Resolver()
    with scripted_peer(answers()) as origin, scripted_peer(script := SocksProxy()) as proxy:
        hop = ProxyHop("socks5", "proxy.example", proxy.port)
        async with ConnectionPool(resolver=resolver, proxies=(hop,)) as pool:
            assert (await pool.request("GET", f"http://name.example:{origin.port}/")).status == 200
    assert script.targets == [(1, HERE, origin.port)]
    assert sorted(resolver.asked) == ["name.example", "proxy.example"]
    assert asked == []


async def test_what_is_resolved_for_a_relay(asked: list[str]) -> None:
    over = threading.Event()
    resolver = Resolver()
    with QuicServer() as origin, scripted_peer(socks_relay(over)) as proxy:
        hop = ProxyHop("socks5", proxy.host, proxy.port)
        async with ConnectionPool(**trusting(resolver=resolver, proxies=(hop,), http3="only")) as pool:
            assert (await pool.request("GET", f"https://name.example:{origin.port}/hello")).status == 200
            over.set()  # or the relay's end would be waited for
    assert resolver.asked == ["name.example"]
    assert asked == []


async def test_what_it_does_not_know_the_system_is_asked_for(asked: list[str]) -> None:
    async def nothing(host: str) -> None:
        assert host == "known.example"

    async with Origin(tls=False) as origin, ConnectionPool(resolver=nothing) as pool:
        assert (await pool.request("GET", f"http://known.example:{origin.port}/")).status == 200
    assert asked == ["known.example"] * 2


async def raises(host: str) -> list[str]:
    raise LookupError(host)


async def raises_oserror(host: str) -> list[str]:
    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure")


class NoException(BaseException):
    """As ``pytest.fail`` raises one."""


async def raises_no_exception(host: str) -> list[str]:
    await anyio.lowlevel.checkpoint()
    raise NoException


def returns(value: Any) -> Any:
    async def resolver(host: str) -> Any:
        return value

    return resolver


FAILING: dict[str, tuple[Any, str]] = {
    "an error": (raises, r"the resolver failed: LookupError\('name.example'\)"),
    "an OSError": (raises_oserror, "Temporary failure"),
    "nothing": (returns([]), "gave no address"),
    "no address": (returns(["there"]), "'there' does not appear to be"),
    "text": (returns(HERE), "not a collection of addresses"),
    "no awaitable": (lambda host: [HERE], "await"),
    "no collection": (returns(7), "the resolver failed: TypeError"),
    "no Exception": (raises_no_exception, r"the resolver failed: NoException\(\)"),
}


@pytest.mark.parametrize("case", FAILING)
async def test_a_resolver_that_fails(case: str) -> None:
    resolver, words = FAILING[case]
    async with ConnectionPool(resolver=resolver) as pool:
        with pytest.raises(ConnectFailed, match=f"cannot resolve name.example: .*{words}") as caught:
            await pool.request("GET", "http://name.example/")
        assert caught.value.phase == "dns"
        assert isinstance(caught.value.__cause__, OSError)


async def test_it_has_no_longer_than_connecting_may_take_and_is_called_off_then() -> None:
    begun, ended = anyio.Event(), anyio.Event()

    async def slow(host: str) -> list[str]:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()
        raise AssertionError

    async with ConnectionPool(resolver=slow) as pool:
        with pytest.raises(Timeout) as caught:
            await pool.request("GET", "http://name.example/", timeouts=Timeouts(connect=2.0))
        assert caught.value.phase == "connect"
        assert begun.is_set()
        with anyio.fail_after(3 * LAG):
            await ended.wait()


async def test_what_cancels_itself_is_asked_twice_at_most(anyio_backend_name: str) -> None:
    """It may have been cancelled with all tasks of a loop that goes on; not again and again."""
    if anyio_backend_name == "trio":
        pytest.skip("trio's cancellation is raised by trio alone")
    asked: list[str] = []

    async def cancelled(host: str) -> Any:
        asked.append(host)
        await anyio.lowlevel.checkpoint()
        raise anyio.get_cancelled_exc_class()

    async with ConnectionPool(resolver=cancelled, retries=0) as pool:
        with pytest.raises(ConnectFailed, match=r"cannot resolve name.example: called off"):
            await pool.request("GET", "http://name.example/")
    assert len(asked) == 2


async def test_it_is_called_off_where_https_records_are_waited_for_too() -> None:
    begun, ended = anyio.Event(), anyio.Event()

    async def slow(host: str) -> Any:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((HERE, 0))
        server = f"{HERE}:{silent.getsockname()[1]}"
        async with ConnectionPool(**trusting(resolver=slow, https_records=True, nameservers=[server])) as pool:
            with pytest.raises(Timeout):
                await pool.request("GET", "https://name.example/", timeouts=Timeouts(connect=2.0))
            assert begun.is_set()
            with anyio.fail_after(3 * LAG):
                await ended.wait()


async def test_a_pool_does_not_wait_for_a_thread_that_nobody_can_cancel() -> None:
    """As in a resolver that calls what blocks."""
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def block() -> None:
        begun.set()
        go_on.wait(30)
        ended.set()

    async def in_a_thread(host: str) -> list[str]:
        await anyio.to_thread.run_sync(block)
        return [HERE]

    pool = ConnectionPool(resolver=in_a_thread)
    try:
        with pytest.raises(Timeout):
            await pool.request("GET", "http://name.example/", timeouts=Timeouts(connect=2.0))
        assert begun.is_set()
        await pool.aclose(0.1)
        assert not ended.is_set()
    finally:
        go_on.set()
    assert pool.state == "closed"


async def test_it_is_called_off_with_its_pool() -> None:
    ended = anyio.Event()

    async def slow(host: str) -> list[str]:
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()
        raise AssertionError

    async with anyio.create_task_group() as tasks:
        pool = ConnectionPool(resolver=slow)
        error: list[BaseException] = []

        async def ask() -> None:
            try:
                await pool.request("GET", "http://name.example/")
            except allswell.AllswellError as failure:
                error.append(failure)

        tasks.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        await pool.aclose()
        assert ended.is_set()
    assert isinstance(error[0], allswell.PoolClosed)


async def test_one_lookup_for_many_at_once() -> None:
    resolver = Resolver()
    async with Origin(tls=False) as origin:
        async with ConnectionPool(resolver=resolver) as pool, anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(pool.request, "GET", f"http://name.example:{origin.port}/")
        assert len(origin.requests) == 20
    assert resolver.asked == ["name.example"]


# Hosts


async def test_hosts(asked: list[str]) -> None:
    async def otherwise(host: str) -> list[str]:
        return [HERE] if host == "third.example" else []

    known = {"Name.example.": HERE, "two.example": ["127.0.0.2", HERE], "Bücher.example": HERE}
    async with Origin(tls=False) as origin:
        async with ConnectionPool(resolver=Hosts(known, otherwise)) as pool:
            for host in ("name.example", "NAME.example.", "two.example", "third.example", "bücher.example"):
                assert (await pool.request("GET", f"http://{host}:{origin.port}/")).status == 200
            with pytest.raises(ConnectFailed, match="gave no address"):
                await pool.request("GET", f"http://known.example:{origin.port}/")
        assert asked == []
        async with ConnectionPool(resolver=Hosts(known)) as pool:
            assert (await pool.request("GET", f"http://known.example:{origin.port}/")).status == 200
    assert asked == ["known.example"] * 2


@pytest.mark.parametrize(
    ("known", "kind"),
    [
        ({"a": "b"}, ValueError),
        ({"a": []}, ValueError),
        ({"ä b": HERE}, ValueError),
        ({"a:80": HERE}, ValueError),
        ({"a": HERE, "A": HERE}, ValueError),
        ([("a", HERE)], TypeError),
    ],
)
async def test_what_is_no_host_with_its_addresses(known: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        Hosts(known)


# DNS over HTTPS


@pytest.fixture
async def doh() -> AsyncIterator[tuple[Doh, int]]:
    """One for each test, over HTTP/2."""
    made = Doh()
    with made.serve("h2") as port:
        yield made, port


def by(port: int, host: str = "name.example", **more: Any) -> DnsOverHttps:
    return DnsOverHttps(f"https://{host}:{port}/dns-query", [HERE], **more)


@pytest.mark.parametrize("version", ["h1", "h2"])
async def test_dns_over_https(version: str, asked: list[str]) -> None:
    """Over the pool itself: its connection is one of the pool's, ends like all of them, and counts against no limit."""
    server = Doh()
    server.zone = "a.example. 60 CNAME b.example.\nb.example. 60 A 127.0.0.1"
    with server.serve(version) as port, scripted_peer(answers()) as origin:
        async with ConnectionPool(
            **trusting(resolver=by(port), max_connections=1, max_keepalive_connections=None)
        ) as pool:
            for path in ("/1", "/2"):
                response = await pool.request("GET", f"http://a.example:{origin.port}{path}")
                assert await response.read() == path.encode()
            assert sorted(server.queries) == ["a.example A", "a.example AAAA"]
            with pytest.raises(ConnectFailed, match=r"cannot resolve no\.example: Name or service not known"):
                await pool.request("GET", f"http://no.example:{origin.port}/")
    report = pool.close_report
    assert report is not None
    assert report.clean
    assert {end.route for end in report.connections} >= {f"https://name.example:{port}"}
    assert asked == []


async def test_dns_over_http3(asked: list[str]) -> None:
    server = Doh()
    server.zone = f"name.example. 60 A {HERE}"
    with server.serve("h3") as port, QuicServer() as origin:
        async with ConnectionPool(**trusting(resolver=by(port, "localhost"), http3="only")) as pool:
            response = await pool.request("GET", f"https://name.example:{origin.port}/hello")
            assert response.http_version == b"HTTP/3"
    assert sorted(server.queries) == ["name.example A", "name.example AAAA"]
    assert asked == []


async def test_the_dns_servers_name_is_asked_for_nowhere(doh: tuple[Doh, int], asked: list[str]) -> None:
    """Not even for its HTTPS records: it is where its addresses say."""
    server, port = doh
    server.zone = f"a.example. 60 A {HERE}"
    with DnsServer() as records, scripted_peer(answers(), tls=certificates().server_context()) as origin:
        more = trusting(resolver=by(port), http3=True, https_records=True, nameservers=[records.address])
        async with ConnectionPool(**more) as pool:
            with pytest.raises(ConnectFailed, match="certificate"):
                await pool.request("GET", f"https://a.example:{origin.port}/")
        assert records.queries == [f"_{origin.port}._https.a.example"]
    assert asked == []


@pytest.mark.parametrize("behind", [False, True], ids=["itself", "behind Hosts"])
async def test_https_records_are_asked_for_by_https_too(
    doh: tuple[Doh, int], asked: list[str], behind: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks by HTTPS wants nobody else to learn the names: the system's name servers are not told."""
    server, port = doh
    resolver: Any = by(port, "localhost")
    with DnsServer() as system, QuicServer() as origin:
        told = [dns.nameserver.Do53Nameserver(HERE, system.port)]
        monkeypatch.setattr(
            "dns.resolver.BaseResolver.read_resolv_conf", lambda self, _: setattr(self, "nameservers", told)
        )
        server.zone = f"name.example. 60 A {HERE}\nname.example. 60 HTTPS 1 . alpn=h3 port={origin.port}"
        more = trusting(resolver=Hosts({"b.example": HERE}, resolver) if behind else resolver, http3=True)
        async with ConnectionPool(https_records=True, **more) as pool:
            response = await pool.request("GET", "https://name.example/hello")
            assert response.http_version == b"HTTP/3"
        assert system.queries == []
    assert sorted(server.queries) == ["name.example A", "name.example AAAA", "name.example HTTPS"]
    assert asked == []


async def test_behind_hosts_and_resolvers_of_ones_own(doh: tuple[Doh, int], asked: list[str]) -> None:
    server, port = doh
    server.zone = f"a.example. 60 A {HERE}"
    by_https = by(port)

    async def wrapped(host: str) -> Any:
        return await by_https(host)

    resolver = Hosts({"b.example": HERE}, wrapped)
    async with Origin(tls=False) as origin, ConnectionPool(**trusting(resolver=resolver)) as pool:
        for host in ("a.example", "b.example"):
            assert (await pool.request("GET", f"http://{host}:{origin.port}/")).status == 200
    assert {each.partition(" ")[0] for each in server.queries} == {"a.example"}
    assert asked == []


async def test_names_of_the_system(doh: tuple[Doh, int], asked: list[str]) -> None:
    """They are in no public DNS, and it is not told of them."""
    server, port = doh
    async with ConnectionPool(**trusting(resolver=by(port))) as pool:
        for host in ("printer", "nas.local", "db.localhost"):
            with pytest.raises(ConnectFailed, match="Name or service not known"):
                await pool.request("GET", f"http://{host}:1/")
        for host in ("abc.onion", "x.invalid"):
            with pytest.raises(ConnectFailed, match="are not in the DNS"):
                await pool.request("GET", f"http://{host}/")
    assert server.queries == []
    assert set(asked) == {"printer", "nas.local", "db.localhost"}


def servfail(query: dns.message.Message) -> bytes:
    response = dns.message.make_response(query)
    response.set_rcode(dns.rcode.SERVFAIL)
    return response.to_wire()


def another_question(query: dns.message.Message) -> bytes:
    return answered(dns.message.make_query("other.example", "A", id=0), f"other.example. 60 A {HERE}").to_wire()


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (servfail, "answered SERVFAIL"),
        (another_question, "answered a question that was not asked"),
        (lambda query: b"junk", "/dns-query: "),
        (lambda query: bytes(70_000), "/dns-query: "),
        (lambda query: b"", "/dns-query: "),
    ],
)
async def test_what_is_no_answer(doh: tuple[Doh, int], reply: Reply, words: str) -> None:
    server, port = doh
    server.reply = reply
    async with ConnectionPool(**trusting(resolver=by(port))) as pool:
        with pytest.raises(ConnectFailed, match=rf"cannot resolve a\.example: .*{words}") as caught:
            await pool.request("GET", "http://a.example/")
        assert caught.value.phase == "dns"


async def test_a_status_that_is_no_answer(doh: tuple[Doh, int]) -> None:
    server, port = doh
    server.status = 429
    async with ConnectionPool(**trusting(resolver=by(port))) as pool:
        with pytest.raises(ConnectFailed, match="answered with status 429"):
            await pool.request("GET", "http://a.example/")


async def test_a_dns_server_that_is_not_there_or_not_trusted() -> None:
    with socket.socket() as taken:
        taken.bind((HERE, 0))
        async with ConnectionPool(**trusting(resolver=by(taken.getsockname()[1]))) as pool:
            with pytest.raises(ConnectFailed, match=r"cannot resolve a\.example: .*refused"):
                await pool.request("GET", "http://a.example/")
    with scripted_peer(Http2Server(), tls=h2_tls()) as peer:
        async with ConnectionPool(**trusting(resolver=by(peer.port, "dns.example"))) as pool:
            with pytest.raises(ConnectFailed, match=r"cannot resolve a\.example: .*certificate"):
                await pool.request("GET", "http://a.example/")


async def test_a_dns_server_that_says_nothing() -> None:
    with scripted_peer(Http2Server(lambda talk, request: None), tls=h2_tls()) as peer:
        async with ConnectionPool(**trusting(resolver=by(peer.port, timeout=0.3))) as pool:
            with pytest.raises(ConnectFailed, match=r"cannot resolve a\.example: .*0\.3 s"):
                await pool.request("GET", "http://a.example/")
        async with ConnectionPool(**trusting(resolver=by(peer.port, timeout=60))) as pool:
            with pytest.raises(Timeout, match="no connection within"):
                await pool.request("GET", "http://a.example/", timeouts=Timeouts(connect=0.3))


async def test_a_pool_that_closes_does_not_wait_for_it() -> None:
    silent = Http2Server(lambda talk, request: None)
    with scripted_peer(silent, tls=h2_tls()) as peer:
        pool = ConnectionPool(**trusting(resolver=by(peer.port, timeout=120), grace=120))
        failed: list[BaseException] = []

        async def ask() -> None:
            try:
                await pool.request("GET", "http://a.example/", timeouts=Timeouts(None, None, None, None))
            except allswell.AllswellError as error:
                failed.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            with anyio.fail_after(30):
                while len([*silent.requests]) < 2:  # noqa: ASYNC110  it happens in a thread
                    await anyio.sleep(0.01)
            report = await pool.aclose()
        assert isinstance(failed[0], allswell.PoolClosed)
        assert report.seconds < 3 * LAG
        [end] = report.connections
        assert [layer.said for layer in end.layers][:2] == ["GOAWAY", "close_notify"]


async def test_it_is_nothing_by_itself() -> None:
    with pytest.raises(OSError, match="works only as the resolver of a pool"):
        await by(1)("a.example")


@pytest.mark.parametrize(
    ("url", "addresses", "kind", "words"),
    [
        ("http://127.0.0.1/dns-query", [], ValueError, "is not the https URL"),
        ("https:///dns-query", [], ValueError, "is not the https URL"),
        ("https://dns.example/dns-query", [], ValueError, "give the addresses of dns.example"),
        ("https://dns.example/dns-query", ["there"], ValueError, "there"),
        ("https://dns.example/dns-query", HERE, TypeError, "must be a collection"),
    ],
)
async def test_what_is_no_dns_server(url: str, addresses: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        DnsOverHttps(url, addresses)
    DnsOverHttps("https://127.0.0.1/dns-query{?dns}")


# Addresses that are forbidden


class Guard:
    """An ``allow_address`` that notes what it is asked, and forbids some."""

    def __init__(self, *forbidden: str) -> None:
        self.contacts: list[Contact] = []
        self.forbidden = {ip_address(each) for each in forbidden}

    def __call__(self, contact: Contact) -> bool:
        self.contacts.append(contact)
        return contact.address not in self.forbidden

    @property
    def asked(self) -> list[tuple[str, str, int, str]]:
        return [(each.host, str(each.address), each.port, each.transport) for each in self.contacts]


@pytest.mark.parametrize(
    "host",
    ["name.example", "127.0.0.1", "127.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"],
)
async def test_an_address_that_is_forbidden(host: str) -> None:
    """As it is connected to, however it was written. Somebody listens there, and would answer."""
    async with Origin(tls=False) as origin:
        guard = Guard(HERE)

        async def old_forms(name: str) -> list[str]:
            return [HERE]

        async with ConnectionPool(resolver=old_forms, allow_address=guard, retries=5) as pool:
            with pytest.raises(AddressNotAllowed, match=r"forbids the address 127\.0\.0\.1") as caught:
                await pool.request("GET", f"http://{host}:{origin.port}/")
            error = caught.value
            assert (error.address, error.port, error.by) == (HERE, origin.port, "us")
            assert error.host in (host.strip("[]"), HERE, "::ffff:127.0.0.1", "::ffff:7f00:1")
            assert isinstance(error, ConnectFailed)
            assert len(guard.contacts) == 1  # and that was that: nothing is tried again
        assert origin.record.connections == ()


@pytest.mark.parametrize("zone", ["%25lo", "%251"])
async def test_zones(zone: str) -> None:
    guard = Guard()
    with scripted_peer(answers(), host="::1") as peer:
        async with ConnectionPool(allow_address=guard) as pool:
            assert (await pool.request("GET", f"http://[::1{zone}]:{peer.port}/")).status == 200
        async with ConnectionPool(allow_address=PublicAddresses()) as pool:
            with pytest.raises(AddressNotAllowed):
                await pool.request("GET", f"http://[::1{zone}]:{peer.port}/")
    [contact] = guard.contacts
    assert isinstance(contact.address, IPv6Address)
    assert (contact.address.scope_id, str(contact.address).partition("%")[0]) == ("1", "::1")


async def test_where_others_are_allowed_they_are_tried() -> None:
    guard = Guard("127.0.0.2", "::1")
    hosts = Hosts({"name.example": ["::1", "127.0.0.2", HERE]})
    async with Origin(tls=False) as origin, ConnectionPool(resolver=hosts, allow_address=guard) as pool:
        assert (await pool.request("GET", f"http://name.example:{origin.port}/")).status == 200
    assert {each.host for each in guard.contacts} == {"name.example"}
    with socket.socket() as taken:
        taken.bind((HERE, 0))
        async with ConnectionPool(resolver=hosts, allow_address=guard) as pool:
            with pytest.raises(ConnectFailed, match=r"refused") as caught:
                await pool.request("GET", f"http://name.example:{taken.getsockname()[1]}/")
            assert not isinstance(caught.value, AddressNotAllowed)


async def test_a_clients_retries_do_not_try_it_again() -> None:
    guard = Guard(HERE)
    async with AsyncClient(allow_address=guard, retry=Retry(attempts=5), retries=5) as client:
        with pytest.raises(httpx2.ConnectError, match=r"allow_address forbids") as caught:
            await client.get("http://127.0.0.1:1/")
        assert isinstance(caught.value.__cause__, AddressNotAllowed)
    assert len(guard.contacts) == 1


async def test_quic() -> None:
    with QuicServer() as server:
        url = f"https://localhost:{server.port}/hello"
        resolver = Hosts({"localhost": HERE})
        async with ConnectionPool(**trusting(http3="only", resolver=resolver, allow_address=Guard(HERE))) as pool:
            with pytest.raises(AddressNotAllowed, match=r"127\.0\.0\.1 of localhost \(port \d+, udp\)"):
                await pool.request("GET", url)
        guard = Guard()
        async with ConnectionPool(**trusting(http3="only", resolver=resolver, allow_address=guard)) as pool:
            assert (await pool.request("GET", url)).status == 200
        assert guard.asked == [("localhost", HERE, server.port, "udp")]
        assert len(server.all("handshake")) == 1


async def test_an_address_that_a_quic_server_prefers() -> None:
    """RFC 9000 §9.6: no probe goes to one that is forbidden."""
    guard = Guard("127.0.0.2")
    host = current_host()
    kit = Kit(allswell.PoolConfig(allow_address=guard), Lookups(host, returns([])), OriginMemory(), host)
    builder = QuicBuilder(kit, ProxyBuilder(kit))
    with socket.socket(type=socket.SOCK_DGRAM) as peer, socket.socket(type=socket.SOCK_DGRAM) as other:
        for each, address in ((peer, HERE), (other, "127.0.0.2")):
            each.bind((address, 0))
        udp = UdpFilter(
            socket.AF_INET, peer.getsockname(), check=lambda address: builder._check_other("name.example", address)
        )
        await udp.connect()
        with pytest.raises(AddressNotAllowed, match=r"127\.0\.0\.2 of name\.example"):
            udp.sibling(other.getsockname())
        udp.sibling(peer.getsockname()).abort()
        udp.abort()


async def test_alternatives() -> None:
    """What Alt-Svc leads to is asked for, too; where it is forbidden the origin itself serves on."""
    resolver = Hosts({"name.example": HERE, "other.example": "127.0.0.2"})
    guard = Guard("127.0.0.2")
    fields = ('Alt-Svc: h3="other.example:1"',)
    with scripted_peer(answers(fields=fields), tls=certificates().server_context()) as peer:
        more = trusting(http3=True, resolver=resolver, allow_address=guard, max_keepalive_connections=0)
        async with ConnectionPool(**more) as pool:
            for _ in range(3):
                response = await pool.request("GET", f"https://name.example:{peer.port}/")
                assert response.http_version == b"HTTP/1.1"
    assert guard.asked.count(("other.example", "127.0.0.2", 1, "udp")) == 1  # it failed, and is left alone for a while


async def test_hints_of_https_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are addresses that no lookup gave."""
    resolution_delay(monkeypatch)
    guard = Guard("127.0.0.2")
    with DnsServer("name.example. 60 HTTPS 1 . alpn=h3 ipv4hint=127.0.0.2") as server:
        more = trusting(http3="only", https_records=True, nameservers=[server.address])
        async with ConnectionPool(**more, allow_address=guard) as pool:
            with pytest.raises(AddressNotAllowed, match=r"127\.0\.0\.2 of name\.example"):
                await pool.request("GET", "https://name.example/")
    assert guard.asked == [("name.example", "127.0.0.2", 443, "udp")]


async def test_hints_do_not_stand_in_for_what_a_resolver_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    resolution_delay(monkeypatch)
    guard = Guard()
    with QuicServer() as quic, DnsServer() as server:
        server.zone = f"name.example. 60 HTTPS 1 . alpn=h3 port={quic.port} ipv4hint=127.0.0.1"
        more = trusting(http3="only", https_records=True, nameservers=[server.address], allow_address=guard)
        async with ConnectionPool(**more, resolver=raises) as pool:
            with pytest.raises(ConnectFailed, match=r"cannot resolve name\.example"):
                await pool.request("GET", "https://name.example/hello")
        async with ConnectionPool(**more) as pool:  # where there is none, they do
            assert (await pool.request("GET", "https://name.example/hello")).status == 200
    assert guard.asked == [("name.example", HERE, quic.port, "udp")]


@pytest.mark.parametrize("scheme", ["http", "https", "socks5", "socks5h"])
async def test_proxies(scheme: Any) -> None:
    """The proxy itself; and the addresses that it would be given: those in URLs, and those that we look up for it."""
    resolver = Hosts({"proxy.example": HERE, "name.example": "127.0.0.2", "localhost": HERE})
    with ExitStack() as stack:
        if scheme.startswith("socks"):
            proxy = stack.enter_context(scripted_peer(SocksProxy()))
        else:
            tls: Any = certificates().server_context() if scheme == "https" else False
            proxy = stack.enter_context(scripted_peer(connect_proxy(), tls=tls))
        host = "localhost" if scheme == "https" else "proxy.example"
        hop = ProxyHop(scheme, host, proxy.port, ssl_context=certificates().client_context())
        more: dict[str, Any] = {"proxies": (hop,), "resolver": resolver}
        async with ConnectionPool(**more, allow_address=Guard(HERE)) as pool:
            with pytest.raises(AddressNotAllowed, match=rf"the proxy .*127\.0\.0\.1 of {host}"):
                await pool.request("GET", "https://name.example/")
        inside = ("127.0.0.3", "[::ffff:127.0.0.3]", "127.3", "2130706435", "0x7f.3", "127.0.0.3.", "%3127.0.0.3%2e")
        for url in (f"{kind}://{form}/" for kind in ("http", "https") for form in inside):
            async with ConnectionPool(**more, allow_address=Guard("127.0.0.3")) as pool:
                with pytest.raises(AddressNotAllowed, match=r"127\.0\.0\.3"):
                    await pool.request("GET", url)
        if scheme == "socks5":
            async with ConnectionPool(**more, allow_address=Guard("127.0.0.2")) as pool:
                with pytest.raises(AddressNotAllowed, match=r"127\.0\.0\.2 of name.example"):
                    await pool.request("GET", "https://name.example/")
            # A name that only the proxy may know has addresses that nobody here can judge.
            for http3 in (False, "only"):
                async with ConnectionPool(**more, http3=http3, allow_address=Guard()) as pool:
                    with pytest.raises(ConnectFailed, match=r"cannot resolve elsewhere\.example") as caught:
                        await pool.request("GET", "https://elsewhere.example/")
                    assert caught.value.phase == "dns"
        heads = [request for connection in proxy.connections for request in connection.requests]
        assert heads == []


@pytest.mark.parametrize("kind", ["h2", "h3"])
async def test_tunnels_through_multiplexing_proxies(kind: str) -> None:
    """CONNECT and CONNECT-UDP to an address that is forbidden are not asked for."""
    with ExitStack() as stack:
        if kind == "h3":
            proxy: Any = stack.enter_context(Http3Proxy())
        else:
            proxy = stack.enter_context(scripted_peer(Http2Proxy(), tls=h2_tls()))
        hop = ProxyHop(
            "https",
            "localhost",
            proxy.port,
            ssl_context=certificates().client_context(),
            http3="only" if kind == "h3" else False,
        )
        for http3 in (False, "only"):
            more = trusting(proxies=(hop,), http3=http3, resolver=Hosts({"localhost": HERE}))
            async with ConnectionPool(**more, allow_address=Guard("127.0.0.3")) as pool:
                with pytest.raises(AddressNotAllowed, match=r"127\.0\.0\.3"):
                    await pool.request("GET", "https://127.0.0.3/")
        assert (proxy.all("request") if kind == "h3" else proxy.connections) == []


def naming(relay: str) -> Callable[[PeerConnection], None]:
    """A SOCKS proxy that has its relay elsewhere."""

    def script(connection: PeerConnection) -> None:
        connection.read_exactly(connection.read_exactly(2)[1])
        connection.send(b"\x05\x00")
        connection.read_exactly(10)
        connection.send(b"\x05\x00\x00\x01" + socket.inet_aton(relay) + (53).to_bytes(2, "big"))
        connection.read_until_end()

    return script


async def test_the_relay_that_a_socks_proxy_names() -> None:
    guard = Guard("127.0.0.9")
    with scripted_peer(naming("127.0.0.9")) as proxy:
        hop = ProxyHop("socks5h", HERE, proxy.port)
        async with ConnectionPool(**trusting(proxies=(hop,), http3="only", allow_address=guard)) as pool:
            with pytest.raises(AddressNotAllowed, match=r"127\.0\.0\.9 of 127\.0\.0\.1 \(port 53, udp\)"):
                await pool.request("GET", "https://name.example/")
        assert guard.asked == [(HERE, HERE, proxy.port, "tcp"), (HERE, "127.0.0.9", 53, "udp")]


async def test_the_first_address_for_a_relay_that_is_allowed() -> None:
    resolver = Hosts({"name.example": "127.0.0.2"})
    with scripted_peer(naming(HERE)) as proxy:
        hop = ProxyHop("socks5", HERE, proxy.port)
        more = trusting(proxies=(hop,), http3="only", resolver=resolver, allow_address=Guard("127.0.0.2"))
        async with ConnectionPool(**more) as pool:
            with pytest.raises(AddressNotAllowed, match=r"127\.0\.0\.2 of name\.example"):
                await pool.request("GET", "https://name.example/")
        assert proxy.connections == []


@pytest.mark.parametrize("version", ["h2", "h3"])
async def test_a_connection_serves_a_second_host_only_where_that_is_allowed(version: str) -> None:
    """The address is the same, and yet it may be one host's only."""

    def allow(contact: Contact) -> bool:
        return contact.host != "name.example"

    hosts = Hosts({"name.example": HERE, "localhost": HERE})
    with ExitStack() as stack:
        if version == "h3":
            port = stack.enter_context(QuicServer()).port
        else:
            port = stack.enter_context(scripted_peer(Http2Server(), tls=h2_tls())).port
        more = trusting(http3="only" if version == "h3" else False, resolver=hosts, allow_address=allow)
        async with ConnectionPool(**more) as pool:
            assert (await pool.request("GET", f"https://localhost:{port}/hello")).status == 200
            with pytest.raises(AddressNotAllowed, match=r"of name\.example"):
                await pool.request("GET", f"https://name.example:{port}/hello")


async def test_the_dns_servers_address_is_asked_for_too() -> None:
    async with ConnectionPool(**trusting(resolver=by(1), allow_address=Guard(HERE))) as pool:
        with pytest.raises(ConnectFailed, match=r"cannot resolve a\.example: .*forbids the address 127\.0\.0\.1"):
            await pool.request("GET", "http://a.example/")


async def test_a_guard_that_fails_lets_nothing_pass() -> None:
    def broken(contact: Contact) -> bool:
        raise ZeroDivisionError

    def vague(contact: Contact) -> Any:
        return "yes"

    async with Origin(tls=False) as origin:
        for guard, words in ((broken, "ZeroDivisionError"), (vague, "must return a bool, not str")):
            async with ConnectionPool(allow_address=guard) as pool:
                with pytest.raises(ConnectFailed, match=words):
                    await pool.request("GET", origin.url)
            async with ConnectionPool(allow_address=guard, proxies=(ProxyHop("http", HERE, origin.port),)) as pool:
                for url in ("http://127.0.0.3/", "https://127.0.0.3/", "http://name.example/"):
                    with pytest.raises(ConnectFailed, match=words):
                        await pool.request("GET", url)
        assert origin.record.connections == ()


async def test_what_is_no_guard_and_no_resolver() -> None:
    async def asynchronous(contact: Contact) -> bool:
        return False

    class Also:
        async def __call__(self, contact: Contact) -> bool:
            return False

    wrong: Any
    for door in (ConnectionPool, allswell.AsyncTransport, AsyncClient, allswell.PoolConfig):
        for wrong in (asynchronous, Also()):
            with pytest.raises(TypeError, match="allow_address must be an ordinary function, not an async one"):
                door(allow_address=wrong)
        with pytest.raises(TypeError, match="allow_address must be callable, and list is not"):
            door(allow_address=["10.0.0.0/8"])  # type: ignore[arg-type]  # that is the test
        with pytest.raises(TypeError, match="resolver must be callable, and dict is not"):
            door(resolver={"a": "b"})  # type: ignore[arg-type]  # that is the test


# Public addresses


PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "2002:808:808::1", "64:ff9b::808:808"]
PRIVATE = [
    *("127.0.0.1", "127.255.255.254", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254"),
    *("100.64.0.1", "100.127.255.255", "0.0.0.0", "0.1.2.3", "192.0.0.8", "192.0.2.1", "198.18.0.1", "198.51.100.1"),
    *("203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.88.99.1"),
    *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12:3456::1", "fec0::1", "ff02::1", "ff0e::1", "100::1"),
    *("3fff::1", "2001:20::1"),
    *("2001:db8::1", "2001::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254"),
    *("64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::a00:1", "2002:7f00:1::1", "2002:a00:1::1", "2002:c0a8:1::"),
]


@pytest.mark.parametrize("address", [*PUBLIC, *PRIVATE])
async def test_public_addresses(address: str) -> None:
    contact = Contact("name.example", ip_address(address), 443, "tcp")
    assert PublicAddresses()(contact) is (address in PUBLIC)
    assert PublicAddresses(["0.0.0.0/0", "::/0"])(contact)


async def test_public_addresses_and_some_others() -> None:
    async with Origin(tls=False) as origin:
        for besides, served in (([HERE], True), (["127.0.0.0/8", "fd00::/8"], True), (["127.0.0.2"], False)):
            async with AsyncClient(allow_address=PublicAddresses(besides)) as client:
                if served:
                    assert (await client.get(origin.url)).status_code == 200
                else:
                    with pytest.raises(httpx2.ConnectError):
                        await client.get(origin.url)
    for wrong in (["10.0.0.1/8"], ["there"]):
        with pytest.raises(ValueError, match=wrong[0]):
            PublicAddresses(wrong)
    with pytest.raises(TypeError, match="besides must be a collection"):
        PublicAddresses("10.0.0.1")
    assert repr(PublicAddresses([HERE])) == "PublicAddresses(besides=['127.0.0.1/32'])"


async def test_a_redirect_to_an_address_inside() -> None:
    """What the guard is for: a server that others name leads to where only we can go."""

    def script(connection: PeerConnection) -> None:
        if connection.read_request():
            connection.send(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.7:1/secret\r\nContent-Length: 0\r\n\r\n")

    with scripted_peer(script) as peer:
        async with AsyncClient(allow_address=PublicAddresses([HERE]), follow_redirects=True) as client:
            with pytest.raises(httpx2.ConnectError, match=r"forbids the address 127\.0\.0\.7"):
                await client.get(peer.url)
