"""Requests through proxies: which connection they take, what the proxy and the origin see, what fails and how."""

from __future__ import annotations

import socket
import ssl
from contextlib import ExitStack
from typing import Any

import anyio
import httpx2
import pytest
from hyperframe.frame import ContinuationFrame, HeadersFrame

import allswell
from allswell import AsyncClient, CloseReport, ConnectFailed, ConnectionPool, ProxyHop, ProxyRefused, Timeout, Timeouts
from allswell._request.route import Route, proxy_hops
from allswell.testing import Origin, Response
from tests.support.certificates import certificates
from tests.support.h2_proxy import Http2Proxy
from tests.support.h2_script import REFUSED_STREAM, Http2Server, Request, Talk, h2_tls
from tests.support.leaks import no_leaked_sockets  # noqa: F401  a fixture
from tests.support.names import names
from tests.support.peer import PeerConnection, Script, ScriptedPeer, scripted_peer
from tests.support.proxies import SocksProxy, connect_proxy, refusing_proxy
from tests.support.scripts import answers, response, says

pytestmark = pytest.mark.anyio


def hop_to(peer: ScriptedPeer, *, auth: tuple[bytes, bytes] | None = None, http2: bool = True) -> ProxyHop:
    scheme = peer.url.partition(":")[0]
    host = "localhost" if scheme == "https" else peer.host
    trust = certificates().client_context() if scheme == "https" else None
    return ProxyHop(scheme, host, peer.port, auth=auth, ssl_context=trust, http2=http2)  # type: ignore[arg-type]  # http(s)


def pool_through(*hops: ProxyHop, to: Origin | None = None, **settings: Any) -> ConnectionPool:
    return ConnectionPool(ssl_context=(to or certificates()).client_context(), proxies=hops, **settings)


def tls_of(kind: str) -> ssl.SSLContext | bool:
    return h2_tls() if kind == "https-h2" else kind == "https"


def report_of(closed: ConnectionPool | AsyncClient) -> CloseReport:
    assert closed.close_report is not None
    return closed.close_report


@pytest.fixture
def trusting() -> ssl.SSLContext:
    return certificates().client_context()


# Plain http


async def test_http_is_forwarded_in_absolute_form() -> None:
    """One connection to the proxy serves all http origins."""
    with scripted_peer(answers()) as proxy:
        async with pool_through(hop_to(proxy, auth=(b"ada", b"b:c"))) as pool:
            assert (await (await pool.request("GET", "http://one.example/a?b")).read()) == b"http://one.example/a?b"
            assert (await (await pool.request("GET", "http://two.example:81/")).read()) == b"http://two.example:81/"
            await pool.request("OPTIONS", "http://three.example/")
        await proxy.ended()
        [connection] = proxy.connections
        assert connection.requests[0] == (
            b"GET http://one.example/a?b HTTP/1.1\r\nHost: one.example\r\n"
            b"Proxy-Authorization: Basic YWRhOmI6Yw==\r\n\r\n"
        )
        assert b"Host: two.example:81\r\n" in connection.requests[1]


async def test_a_forwarded_request_says_each_field_once() -> None:
    """As under httpx2: what the request says itself stands for what the hop would say."""
    with scripted_peer(answers()) as proxy:
        hop = httpx2.Proxy(proxy.url, auth=("ada", "secret"), headers={"X-Team": "red", "User-Agent": "hop"})
        async with AsyncClient(proxy=hop) as client:
            own = {"x-team": "blue", "Proxy-Authorization": "mine"}
            await client.get("http://one.example/", headers=own)
        names = [line.split(b":")[0].lower() for line in proxy.connections[0].requests[0].split(b"\r\n")[1:-2]]
        assert len(set(names)) == len(names)
        assert b"x-team: blue\r\n" in proxy.connections[0].requests[0]
        assert b"Proxy-Authorization: mine\r\n" in proxy.connections[0].requests[0]


async def test_a_407_for_a_forwarded_request_is_a_response(trusting: ssl.SSLContext) -> None:
    with scripted_peer(says(response(b"who?", status="407 Who"))) as proxy:
        async with AsyncClient(proxy=proxy.url) as client:
            answer = await client.get("http://one.example/")
        assert (answer.status_code, answer.text) == (407, "who?")


async def test_http_through_an_https_proxy(trusting: ssl.SSLContext) -> None:
    with scripted_peer(answers(), tls=True) as proxy:
        async with AsyncClient(proxy=httpx2.Proxy(proxy.url, ssl_context=trusting)) as client:
            assert (await client.get("http://one.example/a")).text == "http://one.example/a"
        assert [end.layer for end in report_of(client).connections[0].layers] == ["h1", "tls", "tcp"]


async def test_http_through_an_http2_proxy() -> None:
    """There the request's parts are fields of their own (RFC 9113 §8.3.1)."""
    server = Http2Server()
    with scripted_peer(server, tls=h2_tls()) as proxy:
        async with pool_through(hop_to(proxy, auth=(b"a", b"b"))) as pool:
            for origin in ("one", "two"):
                await pool.request("GET", f"http://{origin}.example/path")
        [first, second] = server.requests
        assert first.headers[":scheme"] == "http"
        assert first.headers[":authority"] == "one.example"
        assert first.headers[":path"] == "/path"
        assert first.headers["proxy-authorization"] == "Basic YTpi"
        assert second.headers[":authority"] == "two.example"
        assert len(proxy.connections) == 1


async def test_an_upgrade_goes_through_a_tunnel() -> None:
    def talk(connection: PeerConnection) -> None:
        connection.read_head()
        connection.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: talk\r\nConnection: upgrade\r\n\r\nhello")

    with scripted_peer(talk) as origin, scripted_peer(connect_proxy()) as proxy:
        async with pool_through(hop_to(proxy)) as pool:
            headers = [(b"Connection", b"upgrade"), (b"Upgrade", b"talk")]
            async with pool.stream("GET", origin.url, headers=headers) as answer:
                assert answer.status == 101
                assert await answer.network_stream.read(100) == b"hello"
                await answer.network_stream.aclose()
        await proxy.ended()
        assert proxy.connections[0].requests[0].startswith(b"CONNECT 127.0.0.1:")


# Tunnels


@pytest.mark.parametrize("over", ["http", "https", "https-h2"])
@pytest.mark.parametrize("inner", ["http/1.1", "h2"])
async def test_https_through_each_proxy(over: str, inner: str, trusting: ssl.SSLContext) -> None:
    """Each version in each kind of tunnel; what is for the proxy stays with the proxy."""
    script = Http2Proxy() if over == "https-h2" else connect_proxy()
    tls = tls_of(over)
    server = Http2Server()
    origin_script, origin_tls = (server, h2_tls()) if inner == "h2" else (answers(), True)
    with scripted_peer(script, tls=tls) as proxy, scripted_peer(origin_script, tls=origin_tls) as origin:
        proxied = httpx2.Proxy(proxy.url, auth=("ada", "l"), headers={"X-For": "proxy"}, ssl_context=trusting)
        async with AsyncClient(proxy=proxied, verify=trusting) as client:
            for number in range(3):
                answer = await client.get(f"{origin.url}/{number}")
                assert answer.text == f"/{number}"
                assert answer.http_version == {"h2": "HTTP/2", "http/1.1": "HTTP/1.1"}[inner]
        assert report_of(client).clean
        await origin.ended()
        await proxy.ended()
        assert len(origin.connections) == len(proxy.connections) == 1
        if isinstance(script, Http2Proxy):
            [told] = [request.headers for request in script.talks[0].requests.values()]
            assert told["proxy-authorization"] == "Basic YWRhOmw="
            assert told["x-for"] == "proxy"
            assert {":scheme", ":path"}.isdisjoint(told)  # RFC 9113 §8.5
        else:
            [head] = proxy.connections[0].requests
            assert b"\r\nX-For: proxy\r\n" in head
            assert b"\r\nProxy-Authorization: Basic YWRhOmw=\r\n" in head
        seen = str(server.talks[0].requests) if inner == "h2" else str(origin.connections[0].requests)
        assert "roxy" not in seen


async def test_the_picture() -> None:
    """tls > http-connect > tls > tcp"""
    with Origin(versions=["h1"]) as origin, scripted_peer(connect_proxy(), tls=True) as proxy:
        async with pool_through(hop_to(proxy, http2=False), to=origin) as pool:
            await pool.request("GET", origin.url)
        [end] = report_of(pool).connections
        assert [layer.layer for layer in end.layers] == ["h1", "tls", "http-connect", "tls", "tcp"]
        assert end.route == f"https://localhost:{origin.port} through https://localhost:{proxy.port}"


async def test_an_http1_proxy_is_asked_for_http2_once() -> None:
    with scripted_peer(connect_proxy(), tls=True) as proxy, ExitStack() as origins:
        peers = [origins.enter_context(scripted_peer(answers(), tls=True)) for _ in range(3)]
        async with pool_through(hop_to(proxy)) as pool:
            for peer in peers:
                await pool.request("GET", peer.url)
        kinds = [[layer.layer for layer in end.layers] for end in report_of(pool).connections]
        assert kinds.count(["h1", "tls", "http-connect", "tls", "tcp"]) == 2
        assert kinds.count(["h1", "tls", "tunnel"]) == kinds.count(["h1", "tls", "tcp"]) == 1
        assert report_of(pool).clean


@pytest.mark.parametrize("second", ["http", "https", "https-h2"])
@pytest.mark.parametrize("first", ["http", "https", "https-h2"])
async def test_a_chain_of_two(first: str, second: str) -> None:
    def proxy(kind: str) -> tuple[Script, ssl.SSLContext | bool]:
        return Http2Proxy() if kind == "https-h2" else connect_proxy(), tls_of(kind)

    (script_1, tls_1), (script_2, tls_2) = proxy(first), proxy(second)
    with (
        scripted_peer(script_1, tls=tls_1) as proxy_1,
        scripted_peer(script_2, tls=tls_2) as proxy_2,
        scripted_peer(answers(), tls=True) as origin,
    ):
        async with pool_through(hop_to(proxy_1), hop_to(proxy_2)) as pool:
            assert await (await pool.request("GET", f"{origin.url}/far")).read() == b"/far"
        assert report_of(pool).clean
        for peer in (origin, proxy_2, proxy_1):
            await peer.ended()
            assert "RST" not in peer.connections[0].saw


async def test_a_hundred_tunnels_to_twenty_origins_over_one_connection() -> None:
    script = Http2Proxy()
    with scripted_peer(script, tls=h2_tls()) as proxy, ExitStack() as entered:
        origins = [entered.enter_context(scripted_peer(answers(together=5), tls=True)) for _ in range(20)]
        async with pool_through(hop_to(proxy), grace=5) as pool:
            good = 0

            async def get(url: str) -> None:
                nonlocal good
                answer = await pool.request("GET", url, timeouts=Timeouts())
                good += await answer.read() == b"/x"

            async with anyio.create_task_group() as tasks:
                for origin in origins:
                    for _ in range(5):
                        tasks.start_soon(get, f"{origin.url}/x")
        assert good == 100
        assert len(proxy.connections) == 1
        assert len(script.tunnels) == 100
        assert report_of(pool).clean
        assert set(script.streams[0].values()) == {"ended"}
        await proxy.ended()
        assert proxy.connections[0].saw == ["close_notify", "FIN"]


async def test_tunnels_need_no_second_place_under_the_limits() -> None:
    with scripted_peer(Http2Proxy(), tls=h2_tls()) as proxy, ExitStack() as entered:
        origins = [entered.enter_context(scripted_peer(answers(), tls=True)) for _ in range(4)]
        limits: dict[str, Any] = {"max_connections": 1, "max_connections_per_route": 1}
        async with pool_through(hop_to(proxy), **limits) as pool, anyio.create_task_group() as tasks:
            for origin in origins:
                tasks.start_soon(pool.request, "GET", origin.url)
        assert len(proxy.connections) == 1


async def test_more_tunnels_than_a_connection_takes() -> None:
    script = Http2Proxy(settings={3: 2})  # MAX_CONCURRENT_STREAMS
    with scripted_peer(script, tls=h2_tls()) as proxy, scripted_peer(answers(together=6), tls=True) as origin:
        async with pool_through(hop_to(proxy)) as pool, anyio.create_task_group() as tasks:
            for number in range(6):
                tasks.start_soon(pool.request, "GET", f"{origin.url}/{number}")
        assert len(script.tunnels) >= 6
        assert len(proxy.connections) >= 3
        assert report_of(pool).clean


async def test_a_proxy_that_leaves_keeps_its_tunnels_and_gets_no_more() -> None:
    script = Http2Proxy()
    with scripted_peer(script, tls=h2_tls()) as proxy, ExitStack() as entered:
        one, two = (entered.enter_context(scripted_peer(answers(), tls=True)) for _ in range(2))
        async with pool_through(hop_to(proxy)) as pool:
            await pool.request("GET", one.url)
            script.talks[0].goaway(1)
            with anyio.fail_after(30):
                while len(proxy.connections) < 2:
                    await pool.request("GET", f"{two.url}/", headers=[(b"Connection", b"close")])
            assert await (await pool.request("GET", f"{one.url}/still")).read() == b"/still"
            assert len(one.connections) == 1
        assert report_of(pool).clean


# Failures


@pytest.mark.parametrize("kind", ["http", "https", "https-h2"])
async def test_refusals(kind: str, trusting: ssl.SSLContext) -> None:
    def refuse(talk: Talk, request: Request) -> bool:
        talk.answer(request, b"who are you?", status=407, fields=[("proxy-authenticate", "Basic")])
        return True

    tls = tls_of(kind)
    script = Http2Proxy(refuse) if kind == "https-h2" else refusing_proxy("407 Who", b"who are you?")
    with scripted_peer(script, tls=tls) as proxy:
        proxied = httpx2.Proxy(proxy.url, auth=("ada", "lovelace"), ssl_context=trusting)
        async with AsyncClient(proxy=proxied, verify=trusting) as client:
            with pytest.raises(httpx2.ProxyError) as caught:
                await client.get("https://origin.example/")
        cause = caught.value.__cause__
        assert isinstance(cause, ProxyRefused)
        assert cause.status == 407
        assert cause.body == b"who are you?"
        assert str(proxy.port) in str(cause)
        assert "lovelace" not in str(cause)


@pytest.mark.parametrize("status", [302, 502])
async def test_refusals_over_http2(status: int) -> None:
    """A redirect is one: nobody is followed with a tunnel."""

    def refuse(talk: Talk, request: Request) -> bool:
        talk.answer(request, b"not so", status=status, fields=[("location", "https://elsewhere.example/")])
        return True

    script = Http2Proxy(refuse)
    with scripted_peer(script, tls=h2_tls()) as proxy:
        async with pool_through(hop_to(proxy)) as pool:
            with pytest.raises(ProxyRefused, match=f"localhost:{proxy.port} refused the tunnel: {status}") as caught:
                await pool.request("GET", "https://origin.example/")
        assert (caught.value.status, caught.value.body) == (status, b"not so")
        assert (b"location", b"https://elsewhere.example/") in caught.value.headers
        assert script.tunnels == ["origin.example:443"]


@pytest.mark.parametrize("connect", [60.0, None])
async def test_a_proxy_that_refuses_streams_is_asked_a_few_times(connect: float | None) -> None:
    def refuse(talk: Talk, request: Request) -> bool:
        talk.rst(request.stream, REFUSED_STREAM)
        return True

    script = Http2Proxy(refuse)
    with scripted_peer(script, tls=h2_tls()) as proxy:
        async with pool_through(hop_to(proxy)) as pool:
            with pytest.raises(ConnectFailed, match="REFUSED_STREAM") as caught:
                await pool.request("GET", "https://origin.example/", timeouts=Timeouts(connect=connect))
        assert caught.value.phase == "proxy"
        assert f"the proxy https://localhost:{proxy.port}" in str(caught.value)
        assert len(script.tunnels) == 5


@pytest.mark.parametrize("how", ["garbage", "endless header", "silence, then its end"])
async def test_nonsense_over_http2(how: str) -> None:
    def babble(talk: Talk, request: Request) -> bool:
        if how == "garbage":
            talk.connection.send(b"HTTP/1.1 200 OK\r\n\r\n" * 20)
        elif how == "endless header":
            talk.send(HeadersFrame(request.stream, b"\x00\x01a\x7f\x81\x7f" + b"b" * 10_000))
            for _ in range(30):
                talk.send(ContinuationFrame(request.stream, b"b" * 16_000))
        else:
            talk.connection.send_close_notify()
            talk.connection.fin()
        return True

    with scripted_peer(Http2Proxy(babble), tls=h2_tls()) as proxy:
        async with pool_through(hop_to(proxy)) as pool:
            with pytest.raises(ConnectFailed, match=f"the proxy https://localhost:{proxy.port}") as caught:
                await pool.request("GET", "https://origin.example/")
        assert caught.value.phase == "proxy"
        assert not isinstance(caught.value, ProxyRefused)


@pytest.mark.parametrize("kind", ["http", "https", "https-h2"])
async def test_a_proxy_that_stalls_is_named(kind: str) -> None:
    def stall(talk: Talk, request: Request) -> bool:
        return True

    def silent(connection: PeerConnection) -> None:
        connection.read_until_end()

    tls = tls_of(kind)
    with scripted_peer(Http2Proxy(stall) if kind == "https-h2" else silent, tls=tls) as proxy:
        async with pool_through(hop_to(proxy)) as pool:
            with pytest.raises(Timeout, match=f"through .*:{proxy.port}.* no connection within 0.3 s") as caught:
                await pool.request("GET", "https://origin.example/", timeouts=Timeouts(connect=0.3))
            assert caught.value.phase == "connect"


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_is_not_there(scheme: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        hop = ProxyHop(scheme, "127.0.0.1", taken.getsockname()[1])  # type: ignore[arg-type]  # http(s)
        async with pool_through(hop) as pool:
            for origin in ("http", "https"):
                with pytest.raises(ConnectFailed, match=f"the proxy {hop}"):
                    await pool.request("GET", f"{origin}://origin.example/")


async def test_an_untrusted_proxy() -> None:
    """The pool's context is for origins: it vouches for no proxy."""
    with scripted_peer(connect_proxy(), tls=True) as proxy:
        async with pool_through(ProxyHop("https", "localhost", proxy.port)) as pool:
            with pytest.raises(ConnectFailed, match="the certificate of the proxy") as caught:
                await pool.request("GET", "https://origin.example/")
            assert caught.value.phase == "tls"


async def test_a_proxy_may_ask_for_a_certificate() -> None:
    tls = certificates().server_context(ask_client=True)
    with Origin(versions=["h1"]) as origin, scripted_peer(connect_proxy(), tls=tls) as proxy:
        mine = certificates().client_context(with_certificate=True)
        async with pool_through(ProxyHop("https", "localhost", proxy.port, ssl_context=mine), to=origin) as pool:
            assert (await pool.request("GET", origin.url)).status == 200


async def test_a_proxy_that_dies_under_a_request() -> None:
    def kill(connection: PeerConnection, origin: socket.socket) -> None:
        origin.close()
        connection.recv()
        connection.reset()

    with scripted_peer(connect_proxy(carry=kill)) as proxy, scripted_peer(answers(), tls=True) as origin:
        async with pool_through(hop_to(proxy)) as pool:
            with pytest.raises(ConnectFailed):
                await pool.request("GET", origin.url)


# Settings


def test_credentials_stay_out_of_what_is_shown() -> None:
    [hop] = proxy_hops(httpx2.Proxy("http://ada:lovelace@proxy.example", headers={"X": "secret"}))
    assert hop == ProxyHop("http", "proxy.example", 80, (b"ada", b"lovelace"), ((b"X", b"secret"),))
    route = Route("https", "origin.example", 443, proxies=(hop,))
    for shown in (repr(hop), str(hop), repr(route), route.label, route.origin):
        assert "lovelace" not in shown
        assert "secret" not in shown
    assert hash(route) == hash(Route("https", "origin.example", 443, proxies=(hop,)))
    assert route != route._replace(proxies=())


def test_ways_to_name_proxies() -> None:
    assert proxy_hops(None) == ()
    assert [str(hop) for hop in proxy_hops(["https://[::1]:8080", httpx2.URL("socks5h://a")])] == [
        "https://[::1]:8080",
        "socks5h://a:1080",
    ]
    with pytest.raises(ValueError, match="Unknown scheme"):
        proxy_hops("ftp://a")
    with pytest.raises(ValueError, match="not the URL of a proxy"):
        proxy_hops("http://:80")


async def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As httpx2 reads it; one pool, one report for what went direct and what did not."""
    with (
        Origin({"/a": Response(body=b"a")}, versions=["h1"]) as origin,
        Origin({"/b": Response(body=b"b")}, tls=False) as near,
        scripted_peer(connect_proxy()) as proxy,
    ):
        monkeypatch.setenv("https_proxy", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        async with AsyncClient(verify=origin.client_context()) as client:
            assert (await client.get(f"{origin.url}/a")).text == "a"
            assert (await client.get(f"{near.url}/b")).text == "b"
        assert len(proxy.connections) == 1
        routes = sorted(end.route for end in report_of(client).connections)
        assert routes == [near.url, f"{origin.url} through {proxy.url}"]
        async with AsyncClient(verify=origin.client_context(), trust_env=False) as client:
            assert (await client.get(f"{origin.url}/a")).text == "a"
        assert len(proxy.connections) == 1


async def test_mounts_share_nothing_but_the_report() -> None:
    with Origin({"/a": Response(body=b"a")}, versions=["h1"]) as origin, scripted_peer(connect_proxy()) as proxy:
        mounts = {"https://": allswell.AsyncTransport(origin.client_context(), proxy=proxy.url)}
        async with AsyncClient(mounts=mounts) as client:
            assert (await client.get(f"{origin.url}/a")).text == "a"
        assert [end.route for end in report_of(client).connections] == [f"{origin.url} through {proxy.url}"]


async def test_a_proxy_that_fell_silent_once_is_asked_again() -> None:
    """The connection that carries tunnels is made without a timeout: who comes later does not wait for it in vain."""
    speaks = Http2Proxy()

    def script(connection: PeerConnection) -> None:
        if connection.index == 0:
            connection.read_until_end()
            return
        connection.handshake()
        speaks(connection)

    with Origin(versions=["h1"]) as origin, scripted_peer(script, tls=h2_tls(), handshake=False) as proxy:
        async with pool_through(hop_to(proxy), to=origin) as pool:
            with pytest.raises(Timeout):
                await pool.request("GET", origin.url, timeouts=Timeouts(connect=3))
            assert (await pool.request("GET", origin.url)).status == 200
        assert len(speaks.tunnels) == 1


# What is told


async def test_a_trace_names_each_tls_layers_own_end(trusting: ssl.SSLContext) -> None:
    """Through an https proxy there are two: with the proxy, and with the origin."""
    told: dict[str, list[dict[str, Any]]] = {}

    async def trace(name: str, info: dict[str, Any]) -> None:
        told.setdefault(name, []).append(info)

    with Origin(versions=["h1"]) as origin, scripted_peer(connect_proxy(), tls=True) as proxy:
        url, hop = f"https://127.0.0.1:{origin.port}/", httpx2.Proxy(proxy.url, ssl_context=trusting)
        ours = origin.client_context()
        async with AsyncClient(proxy=hop, verify=ours, http2=False) as client:
            await client.get(url, extensions={"trace": trace})
    started = told["connection.start_tls.started"]
    assert [each["server_hostname"] for each in started] == [httpx2.URL(proxy.url).host, "127.0.0.1"]
    assert [each["ssl_context"] for each in started] == [trusting, ours]
    assert told["connection.connect_tcp.started"][0]["port"] == proxy.port
    assert [each["layer"] for each in told["connection.connect_via_proxy.started"]] == ["http-connect"]


# Lookups


async def test_names_are_looked_up_once_for_all_tunnels_through_socks() -> None:
    """``socks5`` has us resolve: for many dials at once, once in each family (as without a proxy)."""
    with (
        names(localhost_test="127.0.0.1") as known,
        Origin(tls=False) as origin,
        scripted_peer(SocksProxy()) as proxy,
    ):
        known.held["localhost.test"] = anyio.Event()
        async with (
            pool_through(ProxyHop("socks5", "127.0.0.1", proxy.port)) as pool,
            anyio.create_task_group() as tasks,
        ):
            for number in range(5):
                tasks.start_soon(pool.request, "GET", f"http://localhost.test:{origin.port}/{number}")
            await anyio.wait_all_tasks_blocked()
            assert pool.snapshot().dials == 5
            known.held["localhost.test"].set()
        await proxy.ended()
    # A request that waits takes the first connection that is free: a dial that is late ends before the proxy saw it.
    assert 1 <= len(proxy.connections) <= 5
    assert known.asked == {"localhost.test": 2}
