"""How connections end through proxies, from both sides: what the origin hears, then the proxy, in one grace."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from time import monotonic
from typing import Any, Literal

import anyio
import pytest

from allswell import CloseReport, ConnectFailed, ConnectionPool, ProxyHop, ProxyRefused
from allswell._config import Timeouts
from allswell._report import ConnectionEnd, Outcome
from tests.support.capture import Capture, capture
from tests.support.certificates import certificates
from tests.support.h2_proxy import Http2Proxy
from tests.support.h2_script import Request, Talk, h2_tls
from tests.support.lag import LAG
from tests.support.loopback import capture_available
from tests.support.peer import ClientGoneError, PeerConnection, ScriptedPeer, scripted_peer
from tests.support.proxies import SocksProxy, connect_proxy, refusing_proxy, relay
from tests.support.scripts import answers, never_ends

pytestmark = pytest.mark.anyio

CLEAN, TIMED_OUT, ABORTED = Outcome.CLEAN, Outcome.TIMED_OUT, Outcome.ABORTED


def pool_through(proxy: ScriptedPeer, *, http2: bool = False, **settings: Any) -> ConnectionPool:
    settings.setdefault("grace", 3 * LAG)  # what answers is not waited for that long, on the slowest machine
    trust = certificates().client_context()
    hop = ProxyHop("https", "localhost", proxy.port, ssl_context=trust, http2=http2)
    return ConnectionPool(ssl_context=certificates().client_context(), proxies=(hop,), **settings)


def layers(end: ConnectionEnd) -> list[tuple[str, str, str, Outcome]]:
    return [(layer.layer, layer.said, layer.heard, layer.outcome) for layer in end.layers]


def by_route(report: CloseReport) -> tuple[list[ConnectionEnd], list[ConnectionEnd]]:
    """Those to origins, and those to proxies."""
    to_proxies = [end for end in report.connections if end.route.startswith("the proxy")]
    return [end for end in report.connections if end not in to_proxies], to_proxies


@contextmanager
def no_rst(*peers: ScriptedPeer) -> Iterator[None]:
    seen: list[Capture] = []
    if not capture_available():
        yield
        return
    with capture(peers[0].port) as first, capture(peers[1].port) if len(peers) > 1 else nullcontext() as second:
        seen = [each for each in (first, second) if each is not None]
        yield
        for each in seen:
            each.settle()
            assert not each.any_rst(), f"\n{each}"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_the_origin_hears_it_first_then_the_proxy(version: ssl.TLSVersion) -> None:
    tls = certificates().server_context(version=version)
    with scripted_peer(answers(), tls=tls) as origin, scripted_peer(connect_proxy(), tls=tls) as proxy:
        with no_rst(origin, proxy):
            pool = pool_through(proxy)
            await pool.request("GET", origin.url)
            report = await pool.aclose()
            await origin.ended()
            await proxy.ended()
        [at_origin], [at_proxy] = origin.connections, proxy.connections
        assert at_origin.saw == at_proxy.saw == ["close_notify", "FIN"]
        assert at_origin.when("close_notify") <= at_proxy.when("close_notify") <= at_proxy.when("FIN")
        assert layers(report.connections[0]) == [
            ("h1", "", "", CLEAN),
            ("tls", "close_notify", "close_notify", CLEAN),
            ("http-connect", "", "", CLEAN),
            ("tls", "close_notify", "close_notify", CLEAN),
            ("tcp", "FIN", "FIN", CLEAN),
        ]
        assert report.clean
        assert report.seconds < LAG


async def test_through_an_http2_proxy() -> None:
    script = Http2Proxy()
    with scripted_peer(answers(), tls=True) as origin, scripted_peer(script, tls=h2_tls()) as proxy:
        with no_rst(origin, proxy):
            pool = pool_through(proxy, http2=True)
            await pool.request("GET", origin.url)
            report = await pool.aclose()
            await origin.ended()
            await proxy.ended()
        [at_origin], [at_proxy] = origin.connections, proxy.connections
        assert at_origin.saw == at_proxy.saw == ["close_notify", "FIN"]
        assert at_origin.when("close_notify") <= at_proxy.when("close_notify")
        assert script.streams == [{1: "ended"}]
        assert script.talks[0].said_last == "GOAWAY 0"
        [to_origin], [to_proxy] = by_route(report)
        assert layers(to_origin) == [
            ("h1", "", "", CLEAN),
            ("tls", "close_notify", "close_notify", CLEAN),
            ("tunnel", "END_STREAM", "END_STREAM", CLEAN),
        ]
        assert [layer[0::3] for layer in layers(to_proxy)] == [("h2", CLEAN), ("tls", CLEAN), ("tcp", CLEAN)]
        assert report.clean
        assert report.seconds < LAG


async def test_through_socks() -> None:
    with scripted_peer(answers(), tls=True) as origin, scripted_peer(SocksProxy()) as proxy, no_rst(origin, proxy):
        hop = ProxyHop("socks5h", proxy.host, proxy.port)
        pool = ConnectionPool(ssl_context=certificates().client_context(), proxies=(hop,))
        await pool.request("GET", origin.url)
        report = await pool.aclose()
        await origin.ended()
        await proxy.ended()
        assert origin.connections[0].saw == ["close_notify", "FIN"]
        assert proxy.connections[0].saw == ["FIN"]
        assert origin.connections[0].when("close_notify") <= proxy.connections[0].when("FIN")
        assert [layer.layer for layer in report.connections[0].layers] == ["h1", "tls", "socks5", "tcp"]
        assert report.clean


def half(connection: PeerConnection) -> None:
    """An origin that never gets further than half of a response."""
    connection.read_request()
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nten bytes.")


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(30):
        while not condition():  # noqa: ASYNC110  what is waited for happens in threads
            await anyio.sleep(0.01)


def rude(connection: PeerConnection) -> None:
    """A proxy that opens one tunnel, carries it, and answers none of the client's goodbyes."""
    connection.answers_close_notify = False

    def carry(connection: PeerConnection, origin: Any) -> None:
        relay(connection, origin, polite=False)
        connection.stall()

    connect_proxy(carry=carry)(connection)


@pytest.mark.parametrize("grace", [0.0, 0.4])
@pytest.mark.parametrize("silent", ["origin", "proxy", "both"])
async def test_the_silent_cost_at_most_the_grace(silent: str, grace: float) -> None:
    """And all is said even to them."""
    at_origin = never_ends() if silent != "proxy" else answers()
    at_proxy = rude if silent != "origin" else connect_proxy()
    with scripted_peer(at_origin, tls=True) as origin, scripted_peer(at_proxy, tls=True) as proxy:
        pool = pool_through(proxy)
        await pool.request("GET", origin.url)
        began = monotonic()
        report = await pool.aclose(grace)
        assert monotonic() - began < grace + LAG
        proxy.release()
        origin.release()
        await proxy.ended()
        await origin.ended()
        assert origin.connections[0].saw[0] == "close_notify"
        assert proxy.connections[0].saw[:2] == ["close_notify", "FIN"]
        assert not report.clean
        said = [layer.said for layer in report.connections[0].layers]
        assert said == ["", "close_notify", "", "close_notify", "FIN"]


@pytest.mark.parametrize("grace", [0.0, 3.0])
@pytest.mark.parametrize("silent", ["origin", "proxy"])
async def test_the_silent_behind_http2_cost_at_most_the_grace(silent: str, grace: float) -> None:
    for _ in range(3):
        outcome = await _the_proxys_outcome(silent, grace)
        if not grace or outcome in (CLEAN, Outcome.PEER_FIRST):
            return
        # It has a quarter of a second for its answer, which a busy machine may use up.
    pytest.fail("the connection to the proxy never had its turn")


async def _the_proxys_outcome(silent: str, grace: float) -> Outcome:
    """How the last layer of the connection to the proxy ended. All else is checked."""
    script = Http2Proxy(ends=silent != "proxy", credits_at_once=grace > 0)
    at_origin = never_ends() if silent == "origin" else answers()
    with scripted_peer(at_origin, tls=True) as origin, scripted_peer(script, tls=h2_tls()) as proxy:
        pool = pool_through(proxy, http2=True)
        await pool.request("GET", origin.url)
        began = monotonic()
        report = await pool.aclose(grace)
        assert monotonic() - began < grace + LAG
        origin.release()
        await proxy.ended()
        await origin.ended()
        assert origin.connections[0].saw[0] == "close_notify"
        assert proxy.connections[0].saw[:2] == ["close_notify", "FIN"]
        assert script.talks[0].said_last == "GOAWAY 0"
        [to_origin], [to_proxy] = by_route(report)
        assert [layer.said for layer in to_origin.layers] == ["", "close_notify", "END_STREAM"]
        assert [layer.said for layer in to_proxy.layers] == ["GOAWAY", "close_notify", "FIN"]
        return to_proxy.layers[-1].outcome


async def test_an_aborted_transfer_says_no_goodbye_to_anyone() -> None:
    with scripted_peer(half, tls=True) as origin, scripted_peer(connect_proxy(), tls=True) as proxy:
        pool = pool_through(proxy)
        async with pool.stream("GET", origin.url) as response:
            assert await response.receive() == b"ten bytes."
        report = await pool.aclose()
        await proxy.ended()
        await origin.ended()
        assert proxy.connections[0].saw == ["RST"]
        assert "close_notify" not in origin.connections[0].saw
        assert report.connections == ()


@pytest.mark.parametrize("kind", ["http", "https", "socks5h"])
async def test_a_proxy_that_refuses_a_tunnel_hears_a_goodbye(kind: Literal["http", "https", "socks5h"]) -> None:
    """Nothing is cut: it has answered. (Of a long answer, the client does not read the end before.)"""
    refuses = SocksProxy(reply=b"\x05\x02\x00\x01" + bytes(6))
    script = refuses if kind == "socks5h" else refusing_proxy("403 No", b"x" * 5000)
    ends: list[ConnectionEnd] = []
    with scripted_peer(script, tls=kind == "https") as proxy, no_rst(proxy):
        hop = ProxyHop(kind, "localhost", proxy.port, ssl_context=certificates().client_context(), http2=False)
        async with ConnectionPool(proxies=(hop,), on_connection_end=ends.append) as pool:
            with pytest.raises(ProxyRefused):
                await pool.request("GET", "https://origin.example/")
        await proxy.ended()
        assert proxy.connections[0].saw == ["close_notify"] * (kind == "https") + ["FIN"]
    assert [(end.route, end.reason, end.clean) for end in ends] == [
        (f"the proxy {hop}", "the proxy refused a tunnel", True)
    ]


async def test_a_cancelled_handshake_through_a_tunnel_leaves_nothing() -> None:
    def silent(connection: PeerConnection) -> None:
        connection.read_until_end()

    with scripted_peer(silent, tls=True, handshake=False) as origin, scripted_peer(connect_proxy(), tls=True) as proxy:
        async with pool_through(proxy) as pool, anyio.create_task_group() as tasks:
            tasks.start_soon(pool.request, "GET", origin.url)
            await anyio.to_thread.run_sync(origin.wait_accepted)
            tasks.cancel_scope.cancel()
        await proxy.ended()
        await origin.ended()
        assert "close_notify" not in proxy.connections[0].saw


async def test_an_http2_proxy_survives_the_abort_of_a_tunnel() -> None:
    script = Http2Proxy()
    with (
        scripted_peer(half, tls=True) as halfway,
        scripted_peer(answers(), tls=True) as whole,
        scripted_peer(script, tls=h2_tls()) as proxy,
    ):
        pool = pool_through(proxy, http2=True)
        await pool.request("GET", whole.url)
        async with pool.stream("GET", halfway.url) as response:
            assert await response.receive() == b"ten bytes."
        script.talks[0].wait_for("RST_STREAM 3 8")  # CANCEL
        assert await (await pool.request("GET", f"{whole.url}/still")).read() == b"/still"
        report = await pool.aclose()
        for peer in (proxy, whole, halfway):
            await peer.ended()
        assert len(whole.connections) == len(proxy.connections) == 1
        assert script.streams == [{1: "ended", 3: "reset"}]
        assert proxy.connections[0].saw == ["close_notify", "FIN"]
        assert whole.connections[0].saw == ["close_notify", "FIN"]
        assert "close_notify" not in halfway.connections[0].saw
        assert report.clean


async def test_an_http2_proxy_that_dies_takes_its_tunnels_along() -> None:
    def die_of_the_second(talk: Talk, request: Request) -> bool:
        if request.stream == 3:
            talk.connection.reset()
            raise ClientGoneError
        return False

    ends: list[ConnectionEnd] = []
    with (
        scripted_peer(answers(), tls=True) as origin,
        scripted_peer(Http2Proxy(die_of_the_second), tls=h2_tls()) as proxy,
    ):
        pool = pool_through(proxy, http2=True, on_connection_end=ends.append)
        await pool.request("GET", origin.url)
        with pytest.raises(ConnectFailed, match="no tunnel through the proxy") as caught:
            await pool.request("GET", "https://origin.example/")
        assert str(caught.value).count(proxy.url) == 1
        await until(lambda: len(ends) == 2)
        assert await (await pool.request("GET", f"{origin.url}/again")).read() == b"/again"
        assert len(proxy.connections) == 2
        assert (await pool.aclose()).clean
        assert {end.layers[-1].outcome for end in ends[:2]} == {ABORTED}


async def test_idle_tunnels_end_and_then_their_connection() -> None:
    script = Http2Proxy()
    ends: list[ConnectionEnd] = []
    with scripted_peer(answers(), tls=True) as origin, scripted_peer(script, tls=h2_tls()) as proxy:
        async with pool_through(proxy, http2=True, keepalive_expiry=0.1, on_connection_end=ends.append) as pool:
            await pool.request("GET", origin.url)
            await origin.ended()
            await proxy.ended()
            assert script.streams == [{1: "ended"}]
            await until(lambda: len(ends) == 2)
        assert [end.reason for end in ends] == ["idle for 0.1 s"] * 2
        assert all(end.clean for end in ends)


@pytest.mark.parametrize("http2", [False, True])
async def test_an_exchange_in_flight_may_finish(http2: bool) -> None:
    script = Http2Proxy() if http2 else connect_proxy()
    with (
        scripted_peer(answers(delay=0.3), tls=True) as origin,
        scripted_peer(script, tls=h2_tls() if http2 else True) as proxy,
    ):
        pool = pool_through(proxy, http2=http2)
        bodies: list[bytes] = []

        async def get() -> None:
            response = await pool.request("GET", f"{origin.url}/slow", timeouts=Timeouts(pool=None))
            bodies.append(await response.read())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(get)
            await until(lambda: bool(origin.connections and origin.connections[0].requests))
            report = await pool.aclose()
        assert bodies == [b"/slow"]
        assert report.clean
        await origin.ended()
        await proxy.ended()
        assert origin.connections[0].saw == proxy.connections[0].saw == ["close_notify", "FIN"]
