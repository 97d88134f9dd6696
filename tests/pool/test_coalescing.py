"""Connection coalescing: one connection for several origins, where it is safe, and only there."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trustme

from allswell import AsyncTransport, ConnectionPool, QuicConfig
from allswell._config import ProxyHop, Timeouts
from allswell._errors import ConnectFailed, ExchangeReset, PoolClosed, Timeout
from allswell._filters.udp import UdpFilter
from allswell._messages import RequestHead
from allswell._pool import coalescing
from allswell._pool.dispatcher import Dispatcher
from allswell._pool.member import RouteState
from allswell._request.request import Request as PoolRequest
from allswell._request.route import Route
from tests.backends.test_announcements import altsvc, entries
from tests.support.certificates import Certificates, issue
from tests.support.h2_script import INTERNAL_ERROR, MAX_CONCURRENT_STREAMS, Http2Server, Request, Talk
from tests.support.lag import LAG
from tests.support.names import Names, names
from tests.support.peer import PeerConnection, ScriptedPeer, scripted_peer
from tests.support.proxies import ESTABLISHED, relay
from tests.support.quic_server import QuicServer, ServedConnection
from tests.support.scripts import answers

pytestmark = pytest.mark.anyio

SOON = Timeouts(connect=30, read=30, write=30, pool=30, total=30)
ALTSVC, ORIGIN = 0xA, 0xC


@cache
def two_names() -> Certificates:
    """For ``a.test``, ``b.test`` and ``*.wild.test``; not for ``c.test``."""
    return issue(trustme.CA(), "a.test", "b.test", "*.wild.test", "127.0.0.1")


@pytest.fixture(autouse=True)
def resolver() -> Iterator[Names]:
    """All of these names have the address of the peers."""
    everywhere = dict.fromkeys(("a_test", "b_test", "c_test", "x_wild_test", "y_x_wild_test"), "127.0.0.1")
    with names(**everywhere) as made:
        yield made


def trusting(**settings: Any) -> ConnectionPool:
    context = settings.pop("ssl_context", None) or two_names().client_context()
    return ConnectionPool(ssl_context=context, **settings)


@contextmanager
def serving(server: Http2Server, **options: Any) -> Iterator[ScriptedPeer]:
    with scripted_peer(server, tls=two_names().server_context(alpn=["h2"]), **options) as peer:
        yield peer


async def get(pool: ConnectionPool, host: str, port: int, path: str = "/") -> bytes:
    response = await pool.request("GET", f"https://{host}:{port}{path}", timeouts=SOON)
    assert response.status == 200
    return await response.read()


def any_open(pool: ConnectionPool) -> bool:
    return any(each.state == "open" for route in pool.snapshot().routes for each in route.connections)


# Where it happens


async def test_one_connection_for_two_origins(resolver: Names) -> None:
    server = Http2Server()
    with serving(server) as peer:
        async with trusting() as pool:
            assert await get(pool, "a.test", peer.port, "/1") == b"/1"
            assert await get(pool, "b.test", peer.port, "/2") == b"/2"
            asked = resolver.asked["b.test"]
            for number in range(20):
                assert await get(pool, "b.test", peer.port, f"/{number}") == b"/%d" % number
            assert resolver.asked["b.test"] == asked > 0  # found at once, with no further lookup
            assert await get(pool, "x.wild.test", peer.port, "/3") == b"/3"
            [route] = pool.snapshot().routes
            [connection] = route.connections
            assert connection.serves == (f"https://b.test:{peer.port}", f"https://x.wild.test:{peer.port}")
            assert f"also for https://b.test:{peer.port}, https://x.wild.test" in str(pool.snapshot())
            assert (route.route, pool.snapshot().connections) == (f"https://a.test:{peer.port}", 1)
    assert len(peer.connections) == 1
    authorities = [request.headers[":authority"].partition(":")[0] for request in server.requests]
    assert authorities == ["a.test", *["b.test"] * 21, "x.wild.test"]
    assert not any("host" in request.headers for request in server.requests)
    [end] = pool.close_report.connections if pool.close_report else []
    assert (end.route, end.exchanges) == (f"https://a.test:{peer.port}", 23)


async def test_http3(resolver: Names) -> None:
    authorities: list[bytes] = []

    def whom(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        authorities.append(fields[b":authority"].partition(b":")[0])
        connection.respond(stream, 200, b"hello")

    with QuicServer({b"/whom": whom}, files=two_names()) as server:
        async with trusting(http3="only") as pool:
            assert await get(pool, "a.test", server.port, "/whom") == b"hello"
            assert await get(pool, "b.test", server.port, "/whom") == b"hello"
            asked = resolver.asked["b.test"]
            assert await get(pool, "b.test", server.port, "/whom") == b"hello"
            assert resolver.asked["b.test"] == asked
        assert len(server.all("handshake")) == 1
    assert authorities == [b"a.test", b"b.test", b"b.test"]


async def test_http3_only_for_who_offers_it() -> None:
    """An origin that has not offered HTTP/3 is not looked for there; one that has, is."""
    with QuicServer(files=two_names()) as server:
        origin = f"https://a.test:{server.port}"
        async with trusting(http3=True, http3_origins=frozenset({origin})) as pool:
            assert await get(pool, "a.test", server.port, "/hello") == b"hello"
            with pytest.raises(ConnectFailed):  # nobody listens on TCP
                await get(pool, "b.test", server.port, "/hello")
        assert len(server.all("request")) == 1


async def test_a_burst_shares_it() -> None:
    """Fifty at once for three origins, when the first one's connection is there: one connection."""
    server = Http2Server()
    with serving(server) as peer:
        async with trusting() as pool:
            await get(pool, "a.test", peer.port)
            async with anyio.create_task_group() as tasks:
                for number in range(50):
                    host = ("a.test", "b.test", "x.wild.test")[number % 3]
                    tasks.start_soon(get, pool, host, peer.port, f"/{number}")
    assert len(peer.connections) == 1
    assert len(server.served) == 51


@pytest.mark.parametrize("http3", [False, "only"])
async def test_a_thousand_requests_for_two_origins(http3: Any) -> None:
    """Fifty at once; over HTTP/3 the server grants streams as others end, which both origins wait for."""

    def echo(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        connection.respond(stream, 200, fields[b":path"])

    server = Http2Server()
    with QuicServer({b"/r": echo}, files=two_names()) as quic, serving(server) as tcp:
        port = quic.port if http3 else tcp.port
        async with trusting(http3=http3) as pool:
            for host in ("a.test", "b.test"):
                await get(pool, host, port, "/r")
            numbers = iter(range(1000))

            async def work() -> None:
                for number in numbers:
                    path = f"/r/{number}"
                    assert await get(pool, "ab"[number % 2] + ".test", port, path) == path.encode()

            async with anyio.create_task_group() as tasks:
                for _ in range(50):
                    tasks.start_soon(work)
            assert pool.snapshot().connections == 1
        assert len(quic.all("handshake")) + len(tcp.connections) == 1


async def test_within_the_limits() -> None:
    """A connection that serves two origins counts once, and to find it needs no place."""
    server = Http2Server(lambda talk, request: talk.answer(request, end=request.path != "/hang"))
    with serving(server) as peer:
        url = f"https://a.test:{peer.port}/hang"
        async with trusting(max_connections=1) as pool, pool.stream("GET", url) as response:
            assert await response.receive() == b"/hang"
            assert await get(pool, "b.test", peer.port, "/2") == b"/2"
            assert await get(pool, "x.wild.test", peer.port, "/3") == b"/3"
            assert pool.snapshot().connections == 1
            with pytest.raises(Timeout, match=r"c\.test.*no room"):  # which none covers
                await pool.request("GET", f"https://c.test:{peer.port}/", timeouts=Timeouts(pool=0.05))
    assert len(peer.connections) == 1


async def test_when_it_is_full_a_dial_follows() -> None:
    """The room is whoever's comes first; when there is none, the other origin gets a connection of its own."""
    server = Http2Server(
        lambda talk, request: talk.answer(request, end=request.path != "/hang"), settings={MAX_CONCURRENT_STREAMS: 2}
    )
    with serving(server) as peer:
        async with trusting() as pool:
            await get(pool, "a.test", peer.port)
            assert await get(pool, "b.test", peer.port) == b"/"
            async with (
                pool.stream("GET", f"https://a.test:{peer.port}/hang"),
                pool.stream("GET", f"https://b.test:{peer.port}/hang"),
            ):
                assert await get(pool, "b.test", peer.port, "/own") == b"/own"
                assert await get(pool, "a.test", peer.port, "/own") == b"/own"
            snapshot = pool.snapshot()
            assert [len(each.connections) for each in snapshot.routes] == [1, 1]
    assert len(peer.connections) == 2


async def test_room_serves_all_its_origins_in_turn() -> None:
    """At the pool's limit, who waits for another origin is served by the connection's room too."""
    server = Http2Server(
        lambda talk, request: talk.answer(request, end=request.path != "/hang"), settings={MAX_CONCURRENT_STREAMS: 1}
    )
    with serving(server) as peer:
        async with trusting(max_connections=1) as pool:
            await get(pool, "a.test", peer.port)
            await get(pool, "b.test", peer.port)
            url = f"https://a.test:{peer.port}/hang"
            async with anyio.create_task_group() as tasks, pool.stream("GET", url):
                for number in range(10):
                    tasks.start_soon(get, pool, "ab"[number % 2] + ".test", peer.port, f"/{number}")
                with anyio.fail_after(30):
                    while pool.snapshot().waiting < 10:
                        await anyio.lowlevel.checkpoint()
    assert len(peer.connections) == 1
    assert sorted(server.served[3:]) == sorted(f"/{number}" for number in range(10))


async def test_a_search_that_comes_to_nothing_at_the_limit(resolver: Names) -> None:
    """Who has looked in vain waits for a place like everybody else, without looking again, and gets it."""
    resolver.addresses["b.test"] = ["127.0.0.2"]
    server = Http2Server(lambda talk, request: talk.answer(request, end=request.path != "/hang"))
    with serving(server) as peer, serving(Http2Server(), host="127.0.0.2", port=peer.port) as other:
        url = f"https://a.test:{peer.port}/hang"
        async with trusting(max_connections=1) as pool, anyio.create_task_group() as tasks, pool.stream("GET", url):
            for number in range(3):
                tasks.start_soon(get, pool, "b.test", peer.port, f"/{number}")
            with anyio.fail_after(30):
                while pool.snapshot().waiting < 3 or pool.snapshot().dials:
                    await anyio.lowlevel.checkpoint()
            asked = resolver.asked["b.test"]
            assert pool.snapshot().connections == 1
            with pytest.raises(Timeout, match=r"b\.test.*no room"):
                await pool.request("GET", f"https://b.test:{peer.port}/", timeouts=Timeouts(pool=0.05))
            assert resolver.asked["b.test"] == asked
    assert (len(peer.connections), len(other.connections)) == (1, 1)


@pytest.mark.parametrize("ending", ["cancelled", "closed", "timed out"])
async def test_a_search_that_is_given_up(ending: str, resolver: Names) -> None:
    with serving(Http2Server()) as peer:
        async with trusting() as pool:
            await get(pool, "a.test", peer.port)
            event = resolver.held["b.test"] = anyio.Event()
            url = f"https://b.test:{peer.port}/"
            if ending == "cancelled":
                with anyio.move_on_after(0.05) as scope:
                    await pool.request("GET", url)
                assert scope.cancelled_caught
                event.set()  # what it began is for whoever comes next
                assert await get(pool, "b.test", peer.port) == b"/"
            elif ending == "closed":
                async with anyio.create_task_group() as tasks:

                    async def refused() -> None:
                        with pytest.raises(PoolClosed):
                            await pool.request("GET", url)

                    tasks.start_soon(refused)
                    while not pool.snapshot().dials:
                        await anyio.lowlevel.checkpoint()
                    report = await pool.aclose(3 * LAG)
                assert report.clean
                assert report.seconds < LAG
            else:
                with pytest.raises(Timeout, match=r"b\.test.*no connection within 0\.05 s"):
                    await pool.request("GET", url, timeouts=Timeouts(connect=0.05))
                event.set()
                assert await get(pool, "b.test", peer.port) == b"/"
            assert pool.snapshot().dials == 0
    assert len(peer.connections) == 1


async def test_so_many_origins_and_no_more(resolver: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a connection remembers is bounded; origins beyond that have connections of their own."""
    monkeypatch.setattr(coalescing, "_ROUTES", 2)
    with serving(Http2Server()) as peer:
        async with trusting() as pool:
            for host in ("a.test", "b.test", "x.wild.test", "b.test"):
                await get(pool, host, peer.port)
            assert len(peer.connections) == 1
            resolver.addresses["z.wild.test"] = ["127.0.0.1"]
            await get(pool, "z.wild.test", peer.port)
    assert len(peer.connections) == 2


async def test_searches_at_once_find_the_same(resolver: Names) -> None:
    """A route whose last connection took one request at a time looks with several dials; the one found counts once."""
    server = Http2Server()
    with serving(server) as peer:
        async with trusting() as pool:
            await get(pool, "a.test", peer.port)
            event = resolver.held["b.test"] = anyio.Event()
            dispatcher = pool._dispatcher
            assert dispatcher is not None
            state = dispatcher._routes[Route("https", "b.test", peer.port)] = RouteState(
                Route("https", "b.test", peer.port)
            )
            state.multiplexes = False
            async with anyio.create_task_group() as tasks:
                for number in range(3):
                    tasks.start_soon(get, pool, "b.test", peer.port, f"/{number}")
                with anyio.fail_after(30):
                    while pool.snapshot().dials < 3:
                        await anyio.lowlevel.checkpoint()
                event.set()
            [member] = dispatcher._members.values()
            assert [each.label for each in member.serves] == [
                f"https://a.test:{peer.port}",
                f"https://b.test:{peer.port}",
            ]
    assert len(peer.connections) == 1


# When it ends


async def test_when_it_leaves_all_its_routes_forget_it() -> None:
    def leave(talk: Talk, request: Request) -> None:
        talk.answer(request)
        if request.path == "/last":
            talk.goaway(request.stream)

    server = Http2Server(leave)
    with serving(server) as peer:
        async with trusting() as pool:
            for host in ("a.test", "b.test", "x.wild.test"):
                await get(pool, host, peer.port)
            await get(pool, "b.test", peer.port, "/last")
            with anyio.fail_after(30):
                while any_open(pool):
                    await anyio.lowlevel.checkpoint()
            dispatcher = pool._dispatcher
            assert isinstance(dispatcher, Dispatcher)
            assert dispatcher._routes == {}
            assert (dispatcher._coalescing._reaches, dispatcher._coalescing._by_name) == ({}, {})
            for host in ("b.test", "a.test"):
                assert await get(pool, host, peer.port, "/next") == b"/next"
            [end] = [each for route in pool.snapshot().routes for each in route.connections if each.state == "open"]
            assert end.serves == (f"https://a.test:{peer.port}",)  # now b's is the one
    assert len(peer.connections) == 2


async def test_errors_name_the_origin_that_was_asked() -> None:
    def reset(talk: Talk, request: Request) -> None:
        if request.path == "/silent":
            return
        talk.answer(request) if request.path == "/" else talk.rst(request.stream, INTERNAL_ERROR)

    with serving(Http2Server(reset)) as peer:
        async with trusting() as pool:
            await get(pool, "a.test", peer.port)
            await get(pool, "b.test", peer.port)
            with pytest.raises(Timeout, match=f"https://b.test:{peer.port} sent nothing"):
                await pool.request("GET", f"https://b.test:{peer.port}/silent", timeouts=Timeouts(read=0.05))
            with pytest.raises(ExchangeReset):
                await get(pool, "b.test", peer.port, "/reset")
            assert await get(pool, "a.test", peer.port) == b"/"
    assert len(peer.connections) == 1


# Where it does not happen


async def connections_of_two(peer: ScriptedPeer, pool: ConnectionPool, first: str, second: str) -> int:
    """How many connections it takes to ask both."""
    async with pool:
        await get(pool, first, peer.port, "/1")
        assert await get(pool, second, peer.port, "/2") == b"/2"
    return len(peer.connections)


@pytest.mark.parametrize(
    ("first", "second", "count"),
    [
        ("a.test", "b.test", 1),
        ("b.test", "a.test", 1),
        ("a.test", "x.wild.test", 1),
        ("a.test", "A.TEST", 1),
        ("a.test", "127.0.0.1", 2),  # the certificate covers it; an address proves nothing besides
        ("127.0.0.1", "a.test", 2),
    ],
)
async def test_by_name(first: str, second: str, count: int) -> None:
    with serving(Http2Server()) as peer:
        assert await connections_of_two(peer, trusting(), first, second) == count


async def test_switched_off() -> None:
    with serving(Http2Server()) as peer:
        assert await connections_of_two(peer, trusting(coalescing=False), "a.test", "b.test") == 2


async def test_http1_is_not_shared() -> None:
    with scripted_peer(answers(), tls=two_names().server_context()) as peer:
        async with trusting() as pool:
            for host in ("a.test", "b.test"):
                assert (await pool.request("GET", f"https://{host}:{peer.port}/")).status == 200
    assert len(peer.connections) == 2


@pytest.mark.parametrize("host", ["c.test", "y.x.wild.test", "wild.test"])
async def test_a_certificate_that_does_not_cover_it(host: str, resolver: Names) -> None:
    resolver.addresses["wild.test"] = ["127.0.0.1"]
    with serving(Http2Server()) as peer:
        async with trusting() as pool:
            await get(pool, "a.test", peer.port)
            with pytest.raises(ConnectFailed, match="certificate"):  # its own connection's, which was tried
                await get(pool, host, peer.port)
    assert len(peer.connections) == 2
    assert len(peer.connections[0].saw) > 0


@pytest.mark.parametrize("checks", ["nothing", "no name"])
async def test_certificates_that_are_not_verified(checks: str) -> None:
    context = two_names().client_context()
    context.check_hostname = False
    if checks == "nothing":
        context.verify_mode = ssl.CERT_NONE
    with serving(Http2Server()) as peer:
        assert await connections_of_two(peer, trusting(ssl_context=context), "a.test", "b.test") == 2
    with QuicServer(files=two_names()) as server:
        async with trusting(http3="only", ssl_context=context) as pool:
            await get(pool, "a.test", server.port, "/hello")
            await get(pool, "b.test", server.port, "/hello")
        assert len(server.all("handshake")) == 2


@pytest.mark.parametrize("http3", [False, "only"])
async def test_a_certificate_that_would_be_verified_only_now(http3: Any) -> None:
    """The context was changed after the handshake. OpenSSL then shows the certificate as if it had been verified."""
    context = two_names().client_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with serving(Http2Server()) as peer, QuicServer(files=issue(trustme.CA(), "a.test", "b.test")) as server:
        async with trusting(http3=http3, ssl_context=context) as pool:
            port = server.port if http3 else peer.port
            await get(pool, "a.test", port, "/hello")
            context.verify_mode = ssl.CERT_REQUIRED
            context.check_hostname = True
            if http3:
                with pytest.raises(ConnectFailed, match="certificate"):
                    await get(pool, "b.test", port, "/hello")
            else:
                await get(pool, "b.test", port, "/hello")
                assert len(peer.connections) == 2


async def test_a_client_certificate() -> None:
    assert AsyncTransport(two_names().client_context()).pool.config.coalescing is True
    with pytest.warns(DeprecationWarning, match="cert"):
        assert AsyncTransport(cert=str(two_names().client)).pool.config.coalescing is False


async def test_a_client_certificate_over_quic() -> None:
    with QuicServer(files=two_names()) as server:
        async with trusting(http3="only", quic=QuicConfig(certfile=str(two_names().client))) as pool:
            await get(pool, "a.test", server.port, "/hello")
            await get(pool, "b.test", server.port, "/hello")
        assert len(server.all("handshake")) == 2


async def test_another_address(resolver: Names) -> None:
    """The same certificate elsewhere is another server; of several addresses, one has to be the one."""
    resolver.addresses["b.test"] = ["127.0.0.2"]
    with serving(Http2Server(), host="127.0.0.1") as peer:
        async with trusting() as pool:
            await get(pool, "a.test", peer.port)
            with pytest.raises(ConnectFailed, match=r"b\.test"):
                await get(pool, "b.test", peer.port)
            resolver.addresses["x.wild.test"] = ["127.0.0.2", "::1", "127.0.0.1"]
            assert await get(pool, "x.wild.test", peer.port) == b"/"
    assert len(peer.connections) == 1


async def test_http3_that_has_moved(resolver: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    """To where the server would rather be reached (RFC 9000 §9.6): that is the address that counts from then on."""
    facts, moved = UdpFilter.extra, False

    def extra(udp: UdpFilter, name: str) -> Any:
        return ("127.0.0.2", server.port) if moved and name == "server_addr" else facts(udp, name)

    monkeypatch.setattr(UdpFilter, "extra", extra)
    resolver.addresses["x.wild.test"] = ["127.0.0.2"]
    with QuicServer(files=two_names()) as server:
        async with trusting(http3="only") as pool:
            await get(pool, "a.test", server.port, "/hello")
            moved = True
            await get(pool, "x.wild.test", server.port, "/hello")
            assert len(server.all("handshake")) == 1
            await get(pool, "b.test", server.port, "/hello")
            assert len(server.all("handshake")) == 2


async def test_another_port() -> None:
    with serving(Http2Server()) as first, serving(Http2Server()) as second:
        async with trusting() as pool:
            await get(pool, "a.test", first.port)
            await get(pool, "b.test", second.port)
        assert (len(first.connections), len(second.connections)) == (1, 1)


async def test_a_name_that_does_not_exist_is_an_error_of_its_own() -> None:
    with serving(Http2Server()) as peer:
        async with trusting() as pool:
            await get(pool, "a.test", peer.port)
            with pytest.raises(ConnectFailed, match=r"cannot resolve z\.wild\.test"):
                await get(pool, "z.wild.test", peer.port)
    assert len(peer.connections) == 1


async def test_a_server_name_that_was_forced() -> None:
    with serving(Http2Server()) as peer:
        async with trusting() as pool:
            await get(pool, "a.test", peer.port)
            head = RequestHead(b"GET", b"https", b"c.test", b"/", [])
            forced = PoolRequest(head, Route("https", "c.test", peer.port, server_name="b.test"))
            response = await pool.send(forced)
            assert await response.read() == b"/"
    assert len(peer.connections) == 2


async def test_through_a_proxy() -> None:
    """(Which finds 127.0.0.1 by the names that its own resolver has.)"""
    server = Http2Server()
    with serving(server) as peer:

        def tunnel(connection: PeerConnection) -> None:
            connection.read_head()
            connection.send(ESTABLISHED)
            relay(connection, socket.create_connection(("127.0.0.1", peer.port)))

        with scripted_peer(tunnel) as proxy:
            hop = ProxyHop("http", "127.0.0.1", proxy.port)
            assert await connections_of_two(peer, trusting(proxies=(hop,)), "a.test", "b.test") == 2


# What servers say


async def test_421_goes_to_a_connection_of_its_own_and_is_remembered(resolver: Names) -> None:
    def choosy(talk: Talk, request: Request) -> None:
        mine = next(iter(talk.requests.values())).headers[":authority"]
        talk.answer(request, status=200 if request.headers[":authority"] == mine else 421)

    server = Http2Server(choosy)
    with serving(server) as peer:
        async with trusting() as pool:
            await get(pool, "a.test", peer.port, "/1")
            response = await pool.request("POST", f"https://b.test:{peer.port}/2", content=b"body", timeouts=SOON)
            assert (response.status, await response.read()) == (200, b"/2")
            assert [each.processed for each in response.attempts] == ["declined"]
            assert len(peer.connections) == 2
            assert await get(pool, "b.test", peer.port, "/3") == b"/3"
            assert all(not each.serves for route in pool.snapshot().routes for each in route.connections)
            # a's connection is there, b's leaves: b must not come back to a's.
            server.talk(1).goaway(2**31 - 1)
            with anyio.fail_after(30):
                while pool.snapshot().routes[-1].route.startswith("https://b.test"):  # noqa: ASYNC110  it is told by data
                    await anyio.sleep(0.005)
            assert await get(pool, "b.test", peer.port, "/4") == b"/4"
    assert [request.headers[":path"] for request in server.talks[0].requests.values()] == ["/1", "/2"]
    assert len(peer.connections) == 3


async def test_421_to_a_body_that_is_spent_is_remembered_too() -> None:
    async def once() -> AsyncIterator[bytes]:
        yield b"body"

    server = Http2Server(
        lambda talk, request: talk.answer(request, status=421 if request.path == "/up" else 200), complete=True
    )
    with serving(server) as peer:
        async with trusting() as pool:
            await get(pool, "a.test", peer.port)
            response = await pool.request("POST", f"https://b.test:{peer.port}/up", content=once(), timeouts=SOON)
            assert (response.status, response.attempts) == (421, [])
            assert await get(pool, "b.test", peer.port) == b"/"
    assert len(peer.connections) == 2


def _announce(talk: Talk, request: Request, frames: list[tuple[int, bytes]]) -> None:
    """Say so with the first answer of each connection."""
    for kind, payload in frames if len(talk.requests) == 1 else ():
        talk.raw(kind, 0, 0, payload)
    talk.answer(request)


@pytest.mark.parametrize(
    ("origins", "connections"), [(["a.test"], 2), ([], 2), (["b.test"], 1), (["c.test", "b.test"], 1)]
)
@pytest.mark.parametrize("mode", [True, "origin"])
async def test_an_origin_frame_is_obeyed(origins: list[str], connections: int, mode: Any) -> None:
    """RFC 8336 §2.3: what it leaves out must go elsewhere."""
    frames: list[tuple[int, bytes]] = []
    server = Http2Server(lambda talk, request: _announce(talk, request, frames))
    with serving(server) as peer:
        frames.append((ORIGIN, entries(*[f"https://{host}:{peer.port}".encode() for host in origins])))
        assert await connections_of_two(peer, trusting(coalescing=mode), "a.test", "b.test") == connections


async def test_an_origin_frame_that_comes_late_ends_it() -> None:
    """What is under way goes on, the next request goes elsewhere."""

    def answer(talk: Talk, request: Request) -> None:
        talk.answer(request, end=request.path != "/hang")
        if request.path == "/hang":
            talk.raw(ORIGIN, 0, 0, b"")
            talk.body(request, b"more")

    with serving(Http2Server(answer)) as peer:
        async with trusting() as pool:
            await get(pool, "a.test", peer.port)
            await get(pool, "b.test", peer.port)
            assert await get(pool, "b.test", peer.port, "/hang") == b"/hangmore"
            assert len(peer.connections) == 1
            assert await get(pool, "b.test", peer.port, "/own") == b"/own"
            assert await get(pool, "a.test", peer.port, "/same") == b"/same"
    assert len(peer.connections) == 2


@pytest.mark.parametrize(("mode", "count"), [(True, 2), ("origin", 1)])
async def test_an_origin_frame_in_place_of_the_address(mode: Any, count: int, resolver: Names) -> None:
    """RFC 8336 §2.4, for who asked for it; the certificate must cover it all the same."""
    frames: list[tuple[int, bytes]] = []
    server = Http2Server(lambda talk, request: _announce(talk, request, frames))
    with serving(server) as peer, serving(Http2Server(), host="127.0.0.2") as other:
        resolver.addresses["b.test"] = ["127.0.0.2"]
        named = [f"https://{host}.test:{peer.port}".encode() for host in "bc"]
        frames.append((ORIGIN, entries(*named)))
        async with trusting(coalescing=mode) as pool:
            await get(pool, "a.test", peer.port)
            if count == 1:
                assert await get(pool, "b.test", peer.port) == b"/"
                assert resolver.asked["b.test"] == 0
                with pytest.raises(ConnectFailed, match="certificate"):
                    await get(pool, "c.test", peer.port)
            else:
                with pytest.raises(ConnectFailed):  # there is nobody at that port of the other address
                    await get(pool, "b.test", peer.port)
        assert other.connections == []


async def test_an_origin_frame_of_http3() -> None:
    """RFC 9412: the control stream's; here without the other origin."""

    def route(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        connection.raw(connection.control_stream, bytes((ORIGIN, 0)))
        connection.respond(stream, 200, b"ok")

    with QuicServer({b"/o": route}, files=two_names()) as server:
        async with trusting(http3="only") as pool:
            await get(pool, "a.test", server.port, "/o")
            with anyio.fail_after(30):
                dispatcher = pool._dispatcher
                assert dispatcher is not None
                reaches = dispatcher._coalescing._reaches
                while any(each.origin_set is None for each in reaches.values()):  # noqa: ASYNC110  a server's thread
                    await anyio.sleep(0.005)
            await get(pool, "b.test", server.port, "/hello")
        assert len(server.all("handshake")) == 2


async def test_a_server_that_names_a_million_origins() -> None:
    frames = [
        (ORIGIN, entries(*[b"https://%d.test" % number for number in range(start, start + 500)]))
        for start in range(0, 20_000, 500)
    ]
    server = Http2Server(lambda talk, request: _announce(talk, request, frames))
    with serving(server) as peer:
        async with trusting() as pool:
            await get(pool, "a.test", peer.port)
            dispatcher = pool._dispatcher
            assert dispatcher is not None
            [reach] = dispatcher._coalescing._reaches.values()
            assert reach.origin_set is not None
            assert len(reach.origin_set) == 1024


async def test_alternatives_of_the_origins_that_it_serves() -> None:
    """RFC 7838 §4: on its stream, or by name; not for an origin that it does not serve."""
    with QuicServer(files=two_names()) as quic:
        field = b'h3=":%d"; ma=60' % quic.port

        def answer(talk: Talk, request: Request) -> None:
            if request.path == "/stream":
                talk.raw(ALTSVC, 0, request.stream, altsvc(field=field))
            elif request.path == "/named":
                port = peer.port
                for host in ("x.wild.test", "c.test"):
                    talk.raw(ALTSVC, 0, 0, altsvc(f"https://{host}:{port}".encode(), field))
            talk.answer(request)
            if request.path == "/leave":
                talk.goaway(request.stream)

        with serving(Http2Server(answer)) as peer:
            async with trusting(http3=True) as pool:
                await get(pool, "a.test", peer.port)
                await get(pool, "x.wild.test", peer.port, "/named")
                await get(pool, "b.test", peer.port, "/stream")
                await get(pool, "b.test", peer.port, "/leave")
                with anyio.fail_after(30):
                    while any_open(pool):  # noqa: ASYNC110  a server's thread
                        await anyio.sleep(0.005)
                versions = {}
                for host in ("b.test", "x.wild.test", "a.test"):
                    url = f"https://{host}:{peer.port}/hello"
                    versions[host] = (await pool.request("GET", url, timeouts=SOON)).http_version
                assert versions == {"a.test": b"HTTP/2", "b.test": b"HTTP/3", "x.wild.test": b"HTTP/3"}
        assert len(quic.all("handshake")) == 1  # both are at that endpoint


async def test_who_has_waited_longest_comes_first_whichever_origin() -> None:
    """One connection, one stream at a time, and a queue for the first origin that does not end."""
    answers_left = threading.Semaphore(2)

    def handle(talk: Talk, request: Request) -> None:
        assert answers_left.acquire(timeout=60)
        talk.answer(request)

    server = Http2Server(handle, settings={MAX_CONCURRENT_STREAMS: 1})
    with serving(server) as peer:
        async with trusting(max_connections=1) as pool:
            await get(pool, "a.test", peer.port)
            await get(pool, "b.test", peer.port)
            async with anyio.create_task_group() as tasks:
                for host, path in [("a.test", "/1"), ("a.test", "/2"), ("b.test", "/3"), ("a.test", "/4")]:
                    tasks.start_soon(get, pool, host, peer.port, path)
                    await anyio.wait_all_tasks_blocked()
                answers_left.release(4)
            assert server.served[2:] == ["/1", "/2", "/3", "/4"]
